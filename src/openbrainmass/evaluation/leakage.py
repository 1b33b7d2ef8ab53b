"""Leaks, and the guards against them: people on both sides, labels in sight, encoders that met test people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import CellType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, clone
from sklearn.exceptions import NotFittedError

from openbrainmass.cohort.cohort import ANYONE, Cohort
from openbrainmass.errors import OpenBrainMassError


def seen_identities(estimator: Any) -> frozenset[str]:
    """Hashes of whom an estimator, or anything inside it, has met before or while being fitted.

    Follows the attribute ``seen_identities`` through pipelines, wrappers, lists and fitted parts, so that no
    meta-estimator hides it.

    Returns
    -------
    frozenset of str
        Empty for an estimator that keeps no such record (see `Cohort.identities`).
    """
    return frozenset().union(*(_own_record(thing) for thing in _everything_in(estimator)))


def _everything_in(estimator: Any) -> Iterator[Any]:
    """An estimator and all that it holds that may be, or hold, estimators; each once."""
    visited: dict[int, Any] = {}
    waiting = [estimator]
    while waiting:
        thing = waiting.pop()
        if id(thing) not in visited:
            # Kept, so that no later object gets the same number.
            visited[id(thing)] = thing
            yield thing
            waiting += [part for part in _parts(thing) if _may_hold_estimators(part)]


def has_met(seen: frozenset[str], identities: frozenset[str]) -> bool:
    """Whether a model that has seen these met somebody with those identities, or cannot rule it out (`ANYONE`)."""
    return ANYONE in seen or not seen.isdisjoint(identities)


def prefitted_parts(model: Any) -> list[str]:
    """Names of the parts of a model that are fitted before it is, and do not tell on whom.

    Whatever scikit-learn's `clone` makes anew is fitted inside the folds. What outlives it (a `FrozenEstimator`, a
    fitted scaler inside a function) was fitted elsewhere; unless it has the attribute ``seen_identities``, nobody can
    tell whether that was on test people.

    Returns
    -------
    list of str
        Class names, sorted.
    """
    parts = _everything_in(clone(model, safe=False))
    return sorted({type(part).__name__ for part in parts if _is_fitted(part) and not _has_record(part)})


def refuse_prefitted(models: Mapping[str, Any]) -> None:
    """Stop if a model holds a part that was fitted on nobody knows whom.

    Parameters
    ----------
    models : mapping of str to estimator

    Raises
    ------
    OpenBrainMassError
        With the name of the model and of the part.
    """
    for name, model in models.items():
        if parts := prefitted_parts(model):
            raise OpenBrainMassError(
                f"The model {name} holds a {parts[0]} that was fitted before the folds, nobody knows on whom "
                "(pretraining-statistics). Give it unfitted, so that each fold fits it, or set its attribute "
                "seen_identities to the identities of the people that it was fitted on (Cohort.hashes())."
            )


def _is_fitted(part: Any) -> bool:
    return isinstance(part, BaseEstimator) and any(
        name.endswith("_") and not name.startswith("_") for name in vars(part)
    )


def _has_record(thing: Any) -> bool:
    return hasattr(type(thing), "seen_identities") or "seen_identities" in getattr(thing, "__dict__", {})


def _own_record(thing: Any) -> Iterable[str]:
    if not _has_record(thing):
        return ()
    try:
        return thing.seen_identities or ()
    except NotFittedError:
        # It has met nobody yet. Any other error is raised: a record that cannot be read must not pass for an empty one.
        return ()


def _parts(thing: Any) -> Iterable[Any]:
    if isinstance(thing, Mapping):
        return thing.values()
    if isinstance(thing, (list, tuple, set)):
        return thing
    if isinstance(thing, np.ndarray):
        return thing.ravel().tolist() if thing.dtype == object else ()
    if isinstance(thing, MethodType):
        return (thing.__self__,)
    if isinstance(thing, partial):
        return (thing.func, *thing.args, *thing.keywords.values())
    if isinstance(thing, FunctionType):
        return [cell.cell_contents for cell in thing.__closure__ or () if cell != CellType()]
    return getattr(thing, "__dict__", {}).values()


def _may_hold_estimators(part: Any) -> bool:
    if isinstance(part, np.ndarray):
        return part.dtype == object
    if isinstance(part, (Mapping, list, tuple, set, MethodType, partial, FunctionType)):
        return True
    if isinstance(part, (type, ModuleType, pd.DataFrame, pd.Series, Cohort)):
        return False
    return hasattr(part, "__dict__") or hasattr(type(part), "seen_identities")


def without_column(cohort: Cohort, column: str) -> Cohort:
    """The same cohort without a column of its tables: what estimators get, so that none can read the label."""
    return Cohort(
        cohort.name,
        cohort.recordings.drop(columns=column, errors="ignore"),
        cohort.participants.drop(columns=column, errors="ignore"),
        cohort.atlas,
        _ReadThrough(cohort),
        cohort.exclusions,
    )


class _ReadThrough:
    """Reads recordings by name from another cohort; a class, since a closure cannot travel to another process."""

    def __init__(self, cohort: Cohort) -> None:
        self.cohort = cohort
        self.position = {str(name): row for row, name in enumerate(cohort.recordings["recording_id"])}

    def __call__(self, recording_id: str) -> np.ndarray:
        return self.cohort.bold(self.position[recording_id])


def refuse_overlap(train_groups: np.ndarray, test_groups: np.ndarray, where: str) -> None:
    """Stop if anybody is on both sides of a fold; a last guard, whatever made the fold."""
    if np.intersect1d(train_groups, test_groups).size:
        raise OpenBrainMassError(
            f"{where} has the same people on its training and its test side; nothing measured on it would be true. "
            "Report this: it is a fault of the splitter."
        )
