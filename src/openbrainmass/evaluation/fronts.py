"""What of a model is learnt without labels: the part in front of its classifier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import OneToOneFeatureMixin, clone
from sklearn.pipeline import Pipeline, make_pipeline

from openbrainmass.evaluation.baselines import Connectome, ScoreSum, ShuffledLabels
from openbrainmass.evaluation.fitting import asks_for_groups, fit_model
from openbrainmass.evaluation.prepared import Parts, copied, of_parts, same_step, take
from openbrainmass.evaluation.probes import flat_steps


@dataclass(frozen=True, eq=False)
class Front:
    """The fitted front of a model, and what is still to be fitted.

    Attributes
    ----------
    fitted : Pipeline, or list of Front
        What was fitted without labels; of a `ScoreSum`, that of each part.
    last : estimator
        Not fitted; takes what `transform` gives, and labels.
    """

    fitted: Pipeline | list[Front]
    last: Any

    def transform(self, X: Any) -> Any:
        """Features for `last` of recordings."""
        if isinstance(self.fitted, list):
            return Parts([part.transform(X) for part in self.fitted])
        return np.asarray(self.fitted.transform(X))

    def refitted(self, X: Any) -> Front | None:
        """The same, learnt from other recordings, where the columns keep their meaning; None where nothing is.

        A scaler (scikit-learn's `OneToOneFeatureMixin`) or a tangent reference brings the recordings of another cohort
        to the middle of the first one. Other steps stay as they are: components found anew, say, would have nothing to
        do with those that the classifier knows.
        """
        if isinstance(self.fitted, list):
            parts = [(part.refitted(X), part) for part in self.fitted]
            if all(again is None for again, _ in parts):
                return None
            return Front([again or part for again, part in parts], self.last)
        steps, changed = [], False
        for _, step in self.fitted.steps:
            if isinstance(step, (OneToOneFeatureMixin, Connectome)):
                step, changed = clone(step).fit(X), True
            X = step.transform(X)
            steps.append(step)
        return Front(make_pipeline(*steps), self.last) if changed else None


def fit_front(model: Any, X: Any) -> tuple[Front, Any] | None:
    """Fit all of a model but its classifier, without labels.

    Parameters
    ----------
    model : estimator
        Not fitted; stays so.
    X : Cohort, Parts or ndarray
        Recordings, or features of them.

    Returns
    -------
    front : Front
    features : ndarray or Parts
        What the front makes of X. None instead of both where a step needs labels or nothing stands in front.
    """
    if isinstance(model, ShuffledLabels):
        found = fit_front(model.estimator, X)
        return found and (Front(found[0].fitted, clone(model).set_params(estimator=found[0].last)), found[1])
    if isinstance(model, ScoreSum):
        found = [fit_front(part, X) for _, part in model.estimators]
        parts = [one for one in found if one is not None]
        if len(parts) < len(found):
            return None
        fronts = [front for front, _ in parts]
        return Front(fronts, of_parts(model, [front.last for front in fronts])), Parts([known for _, known in parts])
    if not isinstance(model, Pipeline) or len(flat_steps(model)) < 2:
        return None
    *steps, last = flat_steps(model)
    front = make_pipeline(*(clone(step) for step in steps))
    try:
        return Front(front, last), np.asarray(front.fit_transform(X))
    except (TypeError, ValueError):
        # A step that selects by label; scikit-learn's tags do not tell which do.
        return None


class SharedSteps:
    """The steps that models have in common, fitted once to the training side of a fold.

    Parameters
    ----------
    train, test : ndarray of int
        Rows of features.
    y, groups : ndarray (n_train,)
        Labels and groups of the training side.
    """

    def __init__(self, train: np.ndarray, test: np.ndarray, y: np.ndarray, groups: np.ndarray) -> None:
        self.rows = (train, test)
        self.y = y
        self.groups = groups
        self._fitted: list[tuple[Any, Any, Any, tuple[Any, Any]]] = []

    def before_last(self, model: Any, features: Any) -> tuple[list[Any], Any, Any, Any]:
        """Fit all of a model but its last step.

        Parameters
        ----------
        model : estimator
            Not fitted; stays so.
        features : Cohort, Parts or ndarray
            Of all recordings.

        Returns
        -------
        front : list of fitted estimators
        last : estimator
            Still to be fitted; of a `ScoreSum`, the sum of its parts' last steps.
        train, test : Cohort, Parts or ndarray
            What `last` takes.
        """
        if isinstance(model, ScoreSum) and isinstance(features, Parts):
            ready = [
                self._before(part[1:], own) for (_, part), own in zip(model.estimators, features.values, strict=True)
            ]
            fronts, lasts, trains, tests = zip(*ready, strict=True)
            return [step for front in fronts for step in front], of_parts(model, lasts), Parts(trains), Parts(tests)
        return self._before(model, features)

    def _before(self, model: Any, features: Any) -> tuple[list[Any], Any, Any, Any]:
        *steps, last = flat_steps(model) if isinstance(model, Pipeline) else [model]
        source, sides = features, (take(features, self.rows[0]), take(features, self.rows[1]))
        front = []
        for step in steps:
            found = next((one for one in self._fitted if one[0] is source and same_step(one[1], step)), None)
            if found is None:
                fitted, train = self._fit(step, sides[0])
                found = (source, step, fitted, (train, fitted.transform(sides[1])))
                self._fitted.append(found)
            source, sides = found[2], (copied(found[3][0]), copied(found[3][1]))
            front.append(source)
        return front, last, *sides

    def _fit(self, step: Any, X: Any) -> tuple[Any, Any]:
        fitted = clone(step)
        if asks_for_groups(fitted) or not hasattr(fitted, "fit_transform"):
            fitted = fit_model(fitted, X, self.y, self.groups)
            return fitted, fitted.transform(X)
        return fitted, fitted.fit_transform(X, self.y)
