"""A model on folds that share something: fitted on the training side, asked about the test people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.base import clone

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.fitting import at_its_end, fit_model, has_own_threshold, predicted
from openbrainmass.evaluation.fronts import Front, SharedSteps, fit_front
from openbrainmass.evaluation.labelled import joined
from openbrainmass.evaluation.leakage import has_met, seen_identities
from openbrainmass.evaluation.prepared import Parts, Prepared, copied, take
from openbrainmass.evaluation.splits import Fold, People

TRANSDUCTIVE = " (transductive)"
"""Ends the name of a model in rows for which what needs no label was learnt from the test cohort's recordings, too."""

OWN_THRESHOLD = "own_threshold"
"""Column of what `fit_and_test` returns: whether the model has a threshold of its own (see `has_own_threshold`)."""


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
        With ``PREDICTION_COLUMNS`` and `OWN_THRESHOLD`, one row a test person.
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
        tables.append(_predictions(run, entry, fold, run.own, [front, last], *_said(run, last, copied(test))))
    return tables


def _external(run: Run, entry: Entry, other: Side) -> list[pd.DataFrame]:
    """Zero-shot, k people of the test cohort that join, and both again with the test cohort's recordings in view."""
    mine, theirs = take(entry.features, run.folds[0].train), entry.other_features
    zero_shot = [fold for fold in run.folds if fold.joining is None]
    few_shot = [fold for fold in run.folds if fold.joining is not None]
    found = fit_front(entry.prepared.model, copied(mine)) if few_shot or run.transductive else None
    again = found[0].refitted(copied(theirs)) if run.transductive and found is not None else None
    # Zero-shot is the same whether few-shot is asked for or not, also of a step that takes labels where it gets them.
    ways: list[tuple[str, list[Fold], Front | None, Any, Any]] = [("", zero_shot, None, mine, theirs)]
    if few_shot and found is not None:
        ways.append(("", few_shot, found[0], found[1], found[0].transform(copied(theirs))))
    elif few_shot:
        ways.append(("", few_shot, None, mine, theirs))
    if found is not None and again is not None:
        ways.append((TRANSDUCTIVE, run.folds, again, found[1], again.transform(copied(theirs))))
    tables = []
    for ending, folds, front, mine, theirs in ways:
        for fold in folds:
            table = _adapted(run, entry, fold, other, front, mine, theirs)
            tables.append(table.assign(model=entry.prepared.name + ending))
    return tables


def _adapted(
    run: Run, entry: Entry, fold: Fold, other: Side, front: Front | None, mine: Any, theirs: Any
) -> pd.DataFrame:
    """Fit to the training cohort and those of the test cohort who join; test others of the test cohort."""
    y, groups = run.labels(fold.train)
    if fold.joining is None:
        mine = copied(mine)
    else:
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


def _said(run: Run, model: Any, X: Any) -> tuple[np.ndarray, np.ndarray, bool]:
    model, X = at_its_end(model, X)
    scores, probabilities = predicted(model, X, run.own.people.continuous)
    return scores, probabilities, not run.own.people.continuous and has_own_threshold(model, X, scores)


def _predictions(
    run: Run,
    entry: Entry,
    fold: Fold,
    tested: Side,
    fitted: list[Any],
    scores: np.ndarray,
    probabilities: np.ndarray,
    own_threshold: bool,
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
        **{OWN_THRESHOLD: own_threshold},
    )


def _classes(run: Run, fold: Fold, score: np.ndarray) -> np.ndarray:
    # A value of exactly 0 says nothing either way; the larger training class is then the best guess.
    tie = int(run.own.people.y[fold.train].mean() > 0.5)
    return np.where(score == 0, tie, score > 0).astype(int)
