"""Hyper-parameters and probabilities by inner folds of the training people, never by the test people."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.decomposition import KernelPCA
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.model_selection import GridSearchCV, GroupKFold, StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils.validation import check_is_fitted, validate_data

from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.fitting import fit_model
from openbrainmass.evaluation.probes import LogisticProbe, make_probe

GRIDS: dict[str, dict[str, dict[str, list[Any]]]] = {
    "classification": {
        "svm": {"C": [0.1, 1.0, 10.0]},
        "logistic": {"C": [1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0]},
        "ridge": {"alpha": [1e5, 1e4, 1e3, 1e2, 1e1]},
        "kernel ridge": {"alpha": [30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01]},
        "prototype": {"metric": ["cosine", "euclidean"]},
    },
    "regression": {
        "ridge": {"alpha": [1e5, 1e4, 1e3, 1e2, 1e1]},
        "kernel ridge": {"alpha": [30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01]},
    },
}
"""What `tuned` tries, by kind and name of the probe: the strongest regularisation first, which wins where all are equal."""


class PeopleFolds(StratifiedGroupKFold):
    """Inner folds of people, stratified by class, as many as there can be.

    Where a class has fewer people than folds are wanted there are as many folds as it has people; where it has one,
    all people are both fitted to and asked about, so that few-shot draws of one person a class can be done at all.

    Parameters
    ----------
    n_splits : int
        Folds that are wanted.
    random_state : int
        Of their draw.
    """

    def __init__(self, n_splits: int = 5, random_state: int = 0) -> None:
        super().__init__(n_splits, shuffle=True, random_state=random_state)

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows to fit to and rows to ask about, for each fold, of labels and people (n_rows,)."""
        n_splits = self.get_n_splits(X, y, groups)
        if n_splits == 1:
            everyone = np.arange(len(y))
            return iter([(everyone, everyone)])
        return StratifiedGroupKFold(n_splits, shuffle=True, random_state=self.random_state).split(X, y, groups)

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """How many folds labels and people allow."""
        if groups is None:
            raise OpenBrainMassError(
                "Inner folds keep people whole, and were not told who is who. Fit with "
                "openbrainmass.evaluation.fitting.fit_model(model, X, y, groups), as evaluate does."
            )
        y, groups = np.asarray(y), np.asarray(groups)
        return min(self.n_splits, *(len(np.unique(groups[y == label])) for label in np.unique(y)))


class RowSpace(TransformerMixin, BaseEstimator):
    """Features turned into the space that the training rows span, where there are more columns than rows.

    Products between rows stay as they are, so a linear model has the same solution in there, and a grid of
    regularisations costs one eigendecomposition of the training side and not one for each value.

    Attributes
    ----------
    rotation_ : KernelPCA or None
        None where there are no more columns than rows.
    """

    def fit(self, X: Any, y: Any = None) -> Self:
        """Learn the axes from training rows (n_rows, n_columns)."""
        self.fit_transform(X)
        return self

    def fit_transform(self, X: Any, y: Any = None, **fit_params: Any) -> np.ndarray:
        """Learn the axes, and give the training rows along them, (n_rows, at most n_rows)."""
        X = validate_data(self, X, dtype=[np.float64, np.float32])
        self.rotation_ = None
        if X.shape[1] <= X.shape[0]:
            return X
        self.rotation_ = KernelPCA(kernel="linear", eigen_solver="dense", copy_X=False)
        return self.rotation_.fit_transform(X)

    def transform(self, X: Any) -> np.ndarray:
        """Rows (n_rows, n_columns) along the axes, less what no training row has a share in."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return X if self.rotation_ is None else self.rotation_.transform(X)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def tuned(
    probe: str, kind: Literal["classification", "regression"] = "classification", n_folds: int = 3, seed: int = 0
) -> Pipeline:
    """A probe whose regularisation is chosen by inner folds of the training people.

    The features are brought to scale by the whole training side once; each value of the grid is then fitted and tested
    on the inner folds, and the best (AUC, or mean squared error) is fitted to the whole training side.

    Parameters
    ----------
    probe : str
        A name in `GRIDS`.
    kind : {"classification", "regression"}
        What is predicted.
    n_folds : int
        Inner folds of people, for classes `PeopleFolds`.
    seed : int
        Of the inner folds.

    Returns
    -------
    Pipeline
        Fitted with ``groups``, the person of each row, through scikit-learn's metadata routing (see
        `openbrainmass.evaluation.fitting.fit_model`).

    Raises
    ------
    OpenBrainMassError
        If the probe has no grid.
    """
    if probe not in GRIDS[kind]:
        raise OpenBrainMassError(
            f"There is no grid for the probe {probe!r} ({kind}); choose one of {', '.join(GRIDS[kind])}, or put "
            "scikit-learn's GridSearchCV with cv=StratifiedGroupKFold() around a classifier of your own."
        )
    *front, last = (step for _, step in make_probe(probe, kind).steps)
    if isinstance(last, (LogisticProbe, RidgeClassifier, Ridge)):
        front.append(RowSpace())
    classes = kind == "classification"
    folds = PeopleFolds(n_folds, seed) if classes else GroupKFold(n_folds, shuffle=True, random_state=seed)
    scoring = "roc_auc" if classes else "neg_mean_squared_error"
    return make_pipeline(*front, GridSearchCV(last, GRIDS[kind][probe], scoring=scoring, cv=folds))


class Calibrated(ClassifierMixin, BaseEstimator):
    """scikit-learn's `CalibratedClassifierCV` with inner folds that keep people whole.

    (Its own ``ensemble=False`` does not hand the groups on to a splitter that asks for them, as of version 1.9.)

    Parameters
    ----------
    estimator : classifier
        What is calibrated; a copy is fitted to all training people.
    n_folds : int
        Inner folds of people (`PeopleFolds`).
    seed : int
        Of the inner folds.

    Attributes
    ----------
    calibrated_ : CalibratedClassifierCV
    """

    __metadata_request__fit = {"groups": True}

    def __init__(self, estimator: Any, n_folds: int = 5, seed: int = 0) -> None:
        self.estimator = estimator
        self.n_folds = n_folds
        self.seed = seed

    def fit(self, X: Any, y: Any, groups: Any = None) -> Self:
        """Fit to features (n_rows, n_columns) and classes; `groups` (n_rows,) names the person of each row."""
        groups = np.arange(len(y)) if groups is None else groups
        folds = list(PeopleFolds(self.n_folds, self.seed).split(X, y, groups))
        calibrator = CalibratedClassifierCV(self.estimator, method="sigmoid", ensemble=False, cv=folds)
        self.calibrated_ = fit_model(calibrator, X, y, groups)
        self.classes_ = self.calibrated_.classes_
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability of each class, (n_rows, 2)."""
        check_is_fitted(self)
        return self.calibrated_.predict_proba(X)

    def predict(self, X: Any) -> np.ndarray:
        """The more probable class, (n_rows,)."""
        check_is_fitted(self)
        return self.calibrated_.predict(X)


def calibrated(probe: str | BaseEstimator, n_folds: int = 5, seed: int = 0) -> Calibrated:
    """A probe whose decision values become probabilities by a sigmoid, learnt from inner folds of the training people.

    Parameters
    ----------
    probe : str or classifier
        As for `make_probe`.
    n_folds, seed : int
        As for `Calibrated`.
    """
    return Calibrated(make_probe(probe), n_folds, seed)
