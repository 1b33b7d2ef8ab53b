"""What a model computes of each recording by itself, taken off its front so that all folds share it."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import get_tags

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.baselines import ScoreSum, ShuffledLabels, accept_recordings
from openbrainmass.evaluation.probes import flat_steps


class Parts:
    """The same recordings in the form that each part of a `ScoreSum` takes them.

    Parameters
    ----------
    values : sequence
        One entry a part: a cohort, or features (n_recordings, ...).
    """

    def __init__(self, values: Sequence[Any]) -> None:
        self.values = tuple(values)

    def __len__(self) -> int:
        return len(self.values[0])

    def __getitem__(self, rows: np.ndarray) -> Parts:
        """The same of some recordings."""
        return Parts([take(own, rows) for own in self.values])


class OwnPart(TransformerMixin, BaseEstimator):
    """What one part of a `ScoreSum` takes of `Parts`.

    Parameters
    ----------
    number : int
        Of the part.
    """

    def __init__(self, number: int) -> None:
        self.number = number

    def fit(self, X: Parts, y: Any = None) -> Self:
        """Nothing is learnt."""
        return self

    def transform(self, X: Parts) -> Any:
        """The part's features, or its cohort."""
        return X.values[self.number]

    def __sklearn_tags__(self) -> Any:
        return accept_recordings(super().__sklearn_tags__(), requires_fit=False)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A model without the step that needs no fitting, and what that step makes of the recordings.

    Attributes
    ----------
    name : str
    model : estimator
        The rest, which is fitted in each fold.
    step : estimator, or list of Prepared
        What is done once; of a `ScoreSum`, its parts (none of which is a sum itself).
    kind : {"transform", "prepare", "parts", "recordings"}
        Which method of the step makes the features; ``recordings`` where the model must see the cohort itself.
    """

    name: str
    model: Any
    step: Any
    kind: str

    def sources(self) -> list[Prepared]:
        """What has features of its own: the parts of a `ScoreSum`, else the model itself."""
        return self.step if self.kind == "parts" else [self]

    def shares_with(self, other: Prepared) -> bool:
        """Whether both start from the same features, or a part of them does."""
        if "parts" in (self.kind, other.kind):
            return any(one.shares_with(two) for one in self.sources() for two in other.sources())
        return self.kind == other.kind and (self.kind == "recordings" or same_step(self.step, other.step))

    def features(self, cohort: Cohort) -> Any:
        """Features of all recordings, or the cohort itself where the model must see it fold by fold."""
        if self.kind == "recordings":
            return cohort
        step = clone(self.step)
        compute = step.prepare if self.kind == "prepare" else step.transform
        features = np.asarray(compute(cohort))
        # What is computed once for all folds must not depend on who else is there, or it carries test people into training.
        alone = np.asarray(compute(cohort.select([0])))
        # Relative to the largest value, since features have any unit: edges are near 1, variances of BOLD near 1e-6.
        near = 1e-3 * float(np.max(np.abs(features), where=np.isfinite(features), initial=0))
        if len(features) != len(cohort) or not np.allclose(alone[0], features[0], rtol=1e-3, atol=near, equal_nan=True):
            raise OpenBrainMassError(
                f"The first step of {self.name} ({type(step).__name__}) says that it needs no fitting, but the features "
                "of a recording change with the recordings around it. Set its scikit-learn tag requires_fit to True."
            )
        return features

    def encoders(self) -> list[Any]:
        """The steps that were taken off, which may have been fitted (pretrained) before."""
        return [source.step for source in self.sources()]


class Features:
    """Features of the recordings of a cohort, each set made once for all models that start from it.

    Parameters
    ----------
    models : sequence of Prepared
    cohort : Cohort
    """

    def __init__(self, models: Sequence[Prepared], cohort: Cohort) -> None:
        self.made: list[tuple[Prepared, Any]] = []
        for source in (source for model in models for source in model.sources()):
            if not any(one.shares_with(source) for one, _ in self.made):
                self.made.append((source, source.features(cohort)))

    def of(self, model: Prepared) -> Any:
        """What a model starts from: an array, the cohort, or `Parts` of those."""
        found = [next(own for one, own in self.made if one.shares_with(source)) for source in model.sources()]
        return Parts(found) if model.kind == "parts" else found[0]


def prepare(name: str, model: Any) -> Prepared:
    """Take the part that need not be fitted off the front of a model."""
    if isinstance(model, ShuffledLabels):
        inner = prepare(name, model.estimator)
        return Prepared(name, clone(model).set_params(estimator=inner.model), inner.step, inner.kind)
    if isinstance(model, ScoreSum) and not any(isinstance(part, ScoreSum) for _, part in model.estimators):
        parts = [prepare(name, part) for _, part in model.estimators]
        return Prepared(name, of_parts(model, [part.model for part in parts]), parts, "parts")
    if isinstance(model, Pipeline) and len(flat_steps(model)) > 1:
        model = make_pipeline(*flat_steps(model))
        first = model.steps[0][1]
        if isinstance(first, BaseEstimator) and not get_tags(first).requires_fit:
            return Prepared(name, model[1:], first, "transform")
        if hasattr(first, "prepare"):
            return Prepared(name, model, first, "prepare")
    return Prepared(name, model, model, "recordings")


def of_parts(model: ScoreSum, estimators: Sequence[Any]) -> ScoreSum:
    """The same sum of other estimators, each of which takes its own of `Parts`."""
    steps = [flat_steps(one) if isinstance(one, Pipeline) else [one] for one in estimators]
    own = [make_pipeline(OwnPart(number), *rest) for number, rest in enumerate(steps)]
    labels = [label for label, _ in model.estimators]
    return clone(model).set_params(estimators=list(zip(labels, own, strict=True)))


def take(features: Any, rows: np.ndarray) -> Any:
    """Some rows of features: of a cohort, of an array, or of the parts of a sum."""
    return features.select(rows) if isinstance(features, Cohort) else features[rows]


def copied(features: Any) -> Any:
    """Features to hand on where others still need them: a step that changes them in place (``copy=False``) spoils these only."""
    if isinstance(features, Parts):
        return Parts([copied(own) for own in features.values])
    return features if isinstance(features, Cohort) else deepcopy(features)


def same_step(one: Any, other: Any) -> bool:
    """Whether two steps do the same: equal parameters, or the same object."""
    if one is other:
        return True
    if type(one) is not type(other) or not isinstance(one, BaseEstimator):
        return False
    ours, theirs = one.get_params(deep=False), other.get_params(deep=False)
    return all(_same_value(ours[name], theirs[name]) for name in ours)


def _same_value(one: Any, other: Any) -> bool:
    plain = isinstance(one, (str, int, float, bool, Path))
    return one is other or (plain and type(one) is type(other) and one == other)
