"""Fitting a model so that its inner folds keep people whole, and what a fitted model says of recordings."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn import config_context
from sklearn.pipeline import Pipeline
from sklearn.utils.metadata_routing import get_routing_for_object

from openbrainmass.evaluation.probes import decision_values


def fit_model(model: Any, X: Any, y: np.ndarray, groups: np.ndarray | None = None) -> Any:
    """Fit a model, handing the groups of people to whatever inside it makes folds of its own.

    A model asks for them through scikit-learn's metadata routing, as ``GridSearchCV(cv=StratifiedGroupKFold(5))`` or
    ``CalibratedClassifierCV`` with such a ``cv`` do, alone or at the end of a pipeline. With folds that are not
    grouped, scans of one person, or twins, would stand on both sides of the inner folds.

    Parameters
    ----------
    model : estimator
        Is fitted itself, not a copy.
    X : Cohort, list of ndarray or ndarray
        Training recordings, or features of them.
    y : ndarray (n_recordings,)
        Classes or values.
    groups : ndarray (n_recordings,), optional
        Who must stay together.

    Returns
    -------
    estimator
        The model, fitted.
    """
    if groups is None:
        return model.fit(X, y)
    with config_context(enable_metadata_routing=True):
        if asks_for_groups(model):
            return model.fit(X, y, groups=groups)
    return model.fit(X, y)


def asks_for_groups(model: Any) -> bool:
    """Whether something in a model takes the groups of people when it is fitted."""
    with config_context(enable_metadata_routing=True):
        return "groups" in get_routing_for_object(model).consumes("fit", ["groups"])


def predicted(model: Any, X: Any, continuous: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """What a fitted model says of recordings.

    Parameters
    ----------
    model : fitted estimator
    X : Cohort, list of ndarray or ndarray
        Recordings, or features of them.
    continuous : bool
        Whether the model predicts a value and not a class.

    Returns
    -------
    scores : ndarray (n_recordings,)
        Decision values, 0 being the threshold; or the predicted values.
    probabilities : ndarray (n_recordings,)
        Of the positive class; NaN where the model gives none.
    """
    model, X = at_its_end(model, X)
    none = np.full(len(X), np.nan)
    if continuous:
        return np.asarray(model.predict(X), dtype=float).reshape(len(X)), none
    scores = decision_values(model, _kept(X))
    if not hasattr(model, "predict_proba"):
        return scores, none
    return scores, np.asarray(model.predict_proba(_kept(X)), dtype=float)[:, 1]


def at_its_end(model: Any, X: Any) -> tuple[Any, Any]:
    """The last step of a fitted pipeline and what it takes.

    It is asked several times; what comes before it (a tangent space, an encoder) is worth doing once.
    """
    if isinstance(model, Pipeline) and len(model.steps) > 1:
        return model.steps[-1][1], model[:-1].transform(X)
    return model, X


def has_own_threshold(model: Any, X: Any, scores: np.ndarray) -> bool:
    """Whether a fitted classifier gives a class that the sign of its decision value does not (`FixedThresholdClassifier`).

    Parameters
    ----------
    model : fitted classifier
    X : Cohort, list of ndarray or ndarray
    scores : ndarray (n_recordings,)
        Its decision values of them.
    """
    if not hasattr(model, "predict"):
        return False
    # Next to 0, rounding may decide the one and the other way.
    clear = np.abs(scores) > 1e-6 * np.max(np.abs(scores), initial=0)
    return bool(((np.asarray(model.predict(_kept(X))) == 1) != (scores > 0))[clear].any())


def _kept(X: Any) -> Any:
    """Features that a step may change in place, of which the next question needs the original."""
    return X.copy() if isinstance(X, np.ndarray) else X
