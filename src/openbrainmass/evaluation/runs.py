"""A model on folds that share something: fitted on the training side, asked about the test people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import clone

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.fitting import fit_model, predicted
from openbrainmass.evaluation.fronts import Front, SharedSteps, fit_front
from openbrainmass.evaluation.labelled import joined
from openbrainmass.evaluation.leakage import has_met, seen_identities
from openbrainmass.evaluation.prepared import Parts, Prepared, take
from openbrainmass.evaluation.splits import Fold, People

TRANSDUCTIVE = " (transductive)"
"""Ends the name of a model in rows for which what needs no label was learnt from the test cohort's recordings, too."""


@dataclass(frozen=True, eq=False)
class Side:
    """The people of a cohort, without the cohort, which need not travel to other processes.

    Attributes
    ----------
    people : People
    identities : list of frozenset of str
        Of each recording.
    """

    people: People
    identities: list[frozenset[str]]


@dataclass(frozen=True, eq=False)
class Entry:
    """A model, and what it starts from.

    Attributes
    ----------
    prepared : Prepared
    features, other_features : Cohort, Parts or ndarray
        What `prepared` makes of the cohort, and of the test cohort.
    """

    prepared: Prepared
    features: Any
    other_features: Any


@dataclass(frozen=True, eq=False)
class Run:
    """Models and folds that are done in one go, since they share something.

    Attributes
    ----------
    entries : list of Entry
        Several only with one fold, on which they share what is fitted.
    folds : list of Fold
        Of one few-shot draw, or external ones with the same training people; else one fold.
    own, other : Side
        Of the cohort and the test cohort.
    transductive : bool
        Whether to add rows that use the test cohort's recordings.
    """

    entries: list[Entry]
    folds: list[Fold]
    own: Side
    other: Side | None
    transductive: bool

    def labels(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Labels and groups of recordings of the cohort."""
        return self.own.people.y[rows], self.own.people.group[rows]


def fit_and_test(run: Run) -> pd.DataFrame:
    """Fit fresh copies of models on the training side of folds and predict their test people.

    What a model learns without labels (scaling, a tangent reference) it learns in a few-shot fold from the whole
    training side, without labels, and only its classifier from the k people of each class.

    Returns
    -------
    DataFrame
        With ``PREDICTION_COLUMNS``, one row a test person.
    """
    first = run.folds[0]
    if first.external and run.other is not None:
        tables = [table for entry in run.entries for table in _external(run, entry, run.other)]
    elif first.unlabelled is not None:
        tables = [table for entry in run.entries for table in _few_shot(run, entry, first.unlabelled)]
    else:
        tables = [table for fold in run.folds for table in _plain(run, run.entries, fold)]
    return pd.concat(tables, ignore_index=True)


def _plain(run: Run, entries: list[Entry], fold: Fold) -> list[pd.DataFrame]:
    y, groups = run.labels(fold.train)
    steps = SharedSteps(fold.train, fold.test, y, groups)
    tables = []
    for entry in entries:
        front, last, train, test = steps.before_last(entry.prepared.model, entry.features)
        last = fit_model(clone(last), train, y, groups)
        tables.append(_predictions(run, entry, fold, run.own, [*front, last], *_said(run, last, test)))
    return tables


def _few_shot(run: Run, entry: Entry, unlabelled: np.ndarray) -> list[pd.DataFrame]:
    found = fit_front(entry.prepared.model, take(entry.features, unlabelled))
    if found is None:
        return [table for fold in run.folds for table in _plain(run, [entry], fold)]
    front, known = found
    test = front.transform(take(entry.features, run.folds[0].test))
    tables = []
    for fold in run.folds:
        rows = np.flatnonzero(np.isin(unlabelled, fold.train))
        last = fit_model(clone(front.last), take(known, rows), *run.labels(unlabelled[rows]))
        tables.append(_predictions(run, entry, fold, run.own, [front, last], *_said(run, last, test)))
    return tables


def _external(run: Run, entry: Entry, other: Side) -> list[pd.DataFrame]:
    """Zero-shot, k people of the test cohort that join, and both again with the test cohort's recordings in view."""
    mine = take(entry.features, run.folds[0].train)
    few_shot = any(fold.joining is not None for fold in run.folds)
    found = fit_front(entry.prepared.model, mine) if few_shot or run.transductive else None
    again = found[0].refitted(entry.other_features) if run.transductive and found is not None else None
    ways: list[tuple[str, Front | None, Any, Any]] = [("", None, mine, entry.other_features)]
    if found is not None and few_shot:
        ways = [("", found[0], found[1], found[0].transform(entry.other_features))]
    if found is not None and again is not None:
        ways.append((TRANSDUCTIVE, again, found[1], again.transform(entry.other_features)))
    tables = []
    for ending, front, mine, theirs in ways:
        for fold in run.folds:
            table = _adapted(run, entry, fold, other, front, mine, theirs)
            tables.append(table.assign(model=entry.prepared.name + ending))
    return tables


def _adapted(
    run: Run, entry: Entry, fold: Fold, other: Side, front: Front | None, mine: Any, theirs: Any
) -> pd.DataFrame:
    """Fit to the training cohort and those of the test cohort who join; test others of the test cohort."""
    y, groups = run.labels(fold.train)
    if fold.joining is not None:
        mine = _stacked(mine, take(theirs, fold.joining))
        y = np.concatenate([y, other.people.y[fold.joining]])
        groups = np.concatenate([groups, other.people.group[fold.joining] + groups.max() + 1])
    model = fit_model(clone(entry.prepared.model if front is None else front.last), mine, y, groups)
    said = _said(run, model, take(theirs, fold.test))
    return _predictions(run, entry, fold, other, [front, model], *said)


def _stacked(one: Any, two: Any) -> Any:
    if isinstance(one, Cohort):
        return joined(one, two)
    if isinstance(one, Parts):
        return Parts([_stacked(*pair) for pair in zip(one.values, two.values, strict=True)])
    return np.concatenate([one, two])


def _said(run: Run, model: Any, X: Any) -> tuple[np.ndarray, np.ndarray]:
    return predicted(model, X, run.own.people.continuous)


def _predictions(
    run: Run,
    entry: Entry,
    fold: Fold,
    tested: Side,
    fitted: list[Any],
    scores: np.ndarray,
    probabilities: np.ndarray,
) -> pd.DataFrame:
    """Rows of the predictions table: one a test person, the mean over their recordings."""
    if not np.isfinite(scores).all():
        raise OpenBrainMassError(
            f"The model {entry.prepared.name} gave {int((~np.isfinite(scores)).sum())} decision values that are not finite "
            f"({fold.protocol}, repeat {fold.repeat}, fold {fold.fold}). Scale its features, or regularise it more."
        )
    seen = seen_identities([*entry.prepared.encoders(), *fitted])
    sites = tested.people.site
    rows = pd.DataFrame(
        {
            "participant_id": tested.people.participant[fold.test],
            "site": sites[fold.test] if sites is not None else "",
            "y_true": tested.people.y[fold.test],
            "y_score": scores,
            "y_prob": probabilities,
            "saw_test_people": [has_met(seen, tested.identities[row]) for row in fold.test],
        }
    )
    continuous = run.own.people.continuous
    people = rows.groupby("participant_id", sort=True).agg(
        {
            "site": "first",
            "y_true": "mean" if continuous else "first",
            "y_score": "mean",
            "y_prob": "mean",
            "saw_test_people": "any",
        }
    )
    names = set(run.own.people.participant[fold.train])
    joining = set(tested.people.participant[fold.joining]) if fold.joining is not None else set()
    return people.reset_index().assign(
        y_pred=people["y_score"].to_numpy() if continuous else _classes(run, fold, people["y_score"].to_numpy()),
        protocol=fold.protocol,
        repeat=fold.repeat,
        fold=fold.fold,
        model=entry.prepared.name,
        n_train=len(names) + len(joining),
    )


def _classes(run: Run, fold: Fold, score: np.ndarray) -> np.ndarray:
    # A value of exactly 0 says nothing either way; the larger training class is then the best guess.
    tie = int(run.own.people.y[fold.train].mean() > 0.5)
    return np.where(score == 0, tie, score > 0).astype(int)
