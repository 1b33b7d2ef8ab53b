"""Folds of all protocols, and folds as a table of people that can be handed over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from openbrainmass.durable import read_tsv
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.labelled import Labelled
from openbrainmass.evaluation.leakage import refuse_overlap
from openbrainmass.evaluation.protocols import PROTOCOLS, few_shot_size
from openbrainmass.evaluation.splits import (
    Fold,
    People,
    cohort_held_out,
    external_few_shot_folds,
    external_groups,
    few_shot_folds,
    k_fold,
    paper_split,
    random_splits,
    site_held_out,
)

FOLD_COLUMNS = ("protocol", "repeat", "fold", "participant_id", "side")
"""Columns of ``folds.tsv``: one row a person, fold and side (``train`` or ``test``).

Of few-shot folds the labelled people alone are ``train``; everybody who is not tested is their unlabelled side. Of
``external-few-shot-k`` folds only people of the test cohort are named; who of the training cohort trains is the same
in all of them.
"""

_KEYS = ["protocol", "repeat", "fold"]


@dataclass(frozen=True)
class Design:
    """Numbers of folds; see `evaluate`."""

    n_folds: int
    n_repeats: int
    n_splits: int
    few_shot: tuple[int, ...]
    n_draws: int
    seed: int


def make_folds(
    own: Labelled, other: Labelled | None, protocols: Sequence[str], design: Design
) -> tuple[list[Fold], list[str]]:
    """Make the folds of every protocol.

    Parameters
    ----------
    own : Labelled
        The cohort that trains.
    other : Labelled, optional
        The test cohort: ``external`` is always done with it, and ``external-few-shot-k`` where few-shot is asked for.
    protocols : sequence of str
        Of `PROTOCOLS`.
    design : Design

    Returns
    -------
    folds : list of Fold
    notes : list of str
        What could not be done, and who is left out.
    """
    people, seed = own.people, design.seed
    of_people = (design.few_shot, design.n_folds, design.n_draws, seed)
    makers: dict[str, Callable[[], tuple[list[Fold], list[str]]]] = {
        "k-fold": lambda: (k_fold(people, design.n_folds, design.n_repeats, seed), []),
        "random-splits": lambda: (random_splits(people, design.n_splits, seed), []),
        "site-held-out": lambda: site_held_out(people),
        "cohort-held-out": lambda: cohort_held_out(people),
        "paper-split": lambda: (paper_split(people, design.n_repeats, seed), []),
        "few-shot": lambda: few_shot_folds(people, *of_people),
    }
    folds, notes = [], []
    for protocol in (name for name in makers if name in protocols):
        made, remarks = makers[protocol]()
        folds += made
        notes += remarks
    for fold in folds:
        refuse_overlap(people.group[fold.train], people.group[fold.test], f"Fold {fold.fold} of {fold.protocol}")
    if other is not None:
        external, remarks = _external(own, other)
        folds.append(external)
        notes += remarks
        if "few-shot" in protocols:
            made, remarks = external_few_shot_folds(external.train, other.people, *of_people)
            for fold in made:
                joining = np.empty(0, dtype=int) if fold.joining is None else fold.joining
                group = other.people.group
                refuse_overlap(group[joining], group[fold.test], f"Fold {fold.fold} of {fold.protocol}")
            folds += made
            notes += remarks
    return folds, notes


def _external(own: Labelled, other: Labelled) -> tuple[Fold, list[str]]:
    """Train on one cohort without the people who are also in the other, test on the whole other."""
    mine, theirs = external_groups(own.ties, other.ties)
    train = np.flatnonzero(~np.isin(mine, theirs))
    if not own.people.can_train(train):
        raise OpenBrainMassError(
            f"Without the people who are also in the test cohort {other.cohort.name}, cohort {own.cohort.name} has "
            "not both classes left to train on. Give a test cohort of other people."
        )
    refuse_overlap(mine[train], theirs, "The external protocol")
    shared = len(own.cohort) - len(train)
    notes = [
        f"external leaves {shared} recordings of {own.cohort.name} out of training: they are of people who are also in "
        f"{other.cohort.name}, or belong to them."
    ]
    return Fold("external", 0, 0, train, np.arange(len(other.cohort))), notes if shared else []


def folds_table(folds: Sequence[Fold], own: Labelled, other: Labelled | None = None) -> pd.DataFrame:
    """Name the people on both sides of folds.

    Parameters
    ----------
    folds : sequence of Fold
    own : Labelled
        The cohort that trains.
    other : Labelled, optional
        The test cohort, of external folds.

    Returns
    -------
    DataFrame
        With `FOLD_COLUMNS`.
    """
    names, codes = np.unique(own.people.participant, return_inverse=True)
    sides = {False: (names, codes)}
    if other is not None:
        sides[True] = np.unique(other.people.participant, return_inverse=True)
    pieces, counts, facts = [], [], []
    for fold in folds:
        for side, rows in (("train", fold.train if fold.joining is None else fold.joining), ("test", fold.test)):
            of_test_cohort = fold.external and (side == "test" or fold.joining is not None)
            names, codes = sides[of_test_cohort]
            people = names[np.unique(codes[rows])]
            pieces.append(people)
            counts.append(len(people))
            facts.append((fold.protocol, fold.repeat, fold.fold, side))
    table = pd.DataFrame(facts, columns=[*_KEYS, "side"]).loc[np.repeat(np.arange(len(facts)), counts)]
    return table.assign(participant_id=np.concatenate(pieces)).reset_index(drop=True)[list(FOLD_COLUMNS)]


def read_folds(folds: pd.DataFrame | str | Path) -> pd.DataFrame:
    """Read a table of folds, one's own or anybody's.

    Parameters
    ----------
    folds : DataFrame or path
        A table, or the path of a TSV, with at least `FOLD_COLUMNS`, such as ``folds.tsv`` of a results folder.

    Returns
    -------
    DataFrame
        With `FOLD_COLUMNS`.

    Raises
    ------
    OpenBrainMassError
        If a column is missing, a side or a protocol is not known, or repeats and folds are not whole numbers.
    """
    path = "The table of folds" if isinstance(folds, pd.DataFrame) else folds
    table = folds if isinstance(folds, pd.DataFrame) else read_tsv(folds)
    if absent := [column for column in FOLD_COLUMNS if column not in table.columns]:
        raise OpenBrainMassError(
            f"{path} lacks the columns {', '.join(absent)}; a table of folds has {', '.join(FOLD_COLUMNS)}. Add them."
        )
    table = table[list(FOLD_COLUMNS)]
    empty = [column for column in FOLD_COLUMNS if table[column].isna().any()]
    if empty or not len(table):
        raise OpenBrainMassError(
            f"{path} has {'no rows' if not len(table) else f'rows without {empty[0]}'}; each row names a person, the "
            "fold and the side. Fill them in."
        )
    table = table.astype({"protocol": str, "side": str, "participant_id": str})
    if strange := sorted(set(table["side"]) - {"train", "test"}):
        raise OpenBrainMassError(
            f"{path} has the side {strange[0]!r}; a person of a fold is on the side train or test, and who is on "
            "neither has no row. Correct it."
        )
    known = {protocol for protocol in PROTOCOLS if protocol != "few-shot"}
    if strange := [name for name in table["protocol"].unique() if name not in known and few_shot_size(name) is None]:
        raise OpenBrainMassError(
            f"{path} has the protocol {strange[0]!r}, which is not known; known are {', '.join(sorted(known))}, "
            "few-shot-k and external-few-shot-k. Name it after what it does."
        )
    if not all(pd.api.types.is_integer_dtype(table[column]) for column in ("repeat", "fold")):
        raise OpenBrainMassError(f"{path} has repeats or folds that are not whole numbers. Number both from 0.")
    return table


def folds_of(table: pd.DataFrame, own: Labelled, other: Labelled | None = None) -> list[Fold]:
    """Find the people of a table of folds in cohorts.

    A person is on a side with all recordings; in a held-out site (or dataset) only with those of that site.

    Parameters
    ----------
    table : DataFrame
        As from `read_folds`.
    own : Labelled
        The cohort that trains.
    other : Labelled, optional
        The test cohort, of external folds.

    Returns
    -------
    list of Fold
        In the order of the table; to be checked (`check_folds`).

    Raises
    ------
    OpenBrainMassError
        If a person is not in the cohort or without a label there, a fold has no training or test people, or external
        folds come without a test cohort.
    """
    across = external_groups(own.ties, other.ties) if other is not None else None
    folds = []
    for (protocol, repeat, number), rows in table.groupby(_KEYS, sort=False):
        protocol, where = str(protocol), f"{protocol}, repeat {repeat}, fold {number}"
        side = {name: set(rows.loc[rows["side"] == name, "participant_id"]) for name in ("train", "test")}
        if not side["train"] or not side["test"]:
            missing = "training" if not side["train"] else "test"
            raise OpenBrainMassError(f"The fold {where} of the folds has no {missing} people. Each side needs some.")
        external = protocol.startswith("external")
        if external and other is None:
            raise OpenBrainMassError(
                f"The fold {where} is on a test cohort, and none was given. Give test_cohort (--test)."
            )
        tested = other if external and other is not None else own
        test = _rows_of(side["test"], tested, where)
        train = _rows_of(side["train"], own if protocol == "external" else tested, where)
        fold = Fold(protocol, int(str(repeat)), int(str(number)), train, test)
        if across is not None and external and protocol != "external":
            fold = Fold(protocol, fold.repeat, fold.fold, np.flatnonzero(~np.isin(*across)), test, joining=train)
        elif few_shot_size(protocol) is not None:
            group = own.people.group
            fold = Fold(protocol, fold.repeat, fold.fold, train, test, np.flatnonzero(~np.isin(group, group[test])))
        elif (held := held_out_values(protocol, own.people)) is not None:
            fold = Fold(protocol, fold.repeat, fold.fold, train, _of_held_out(held, test, own.people))
        folds.append(fold)
    return folds


def check_folds(folds: Sequence[Fold], own: Labelled, other: Labelled | None = None) -> None:
    """Refuse folds that would measure something else than they say, by the name of who is where.

    Parameters
    ----------
    folds : sequence of Fold
        Handed over from outside.
    own : Labelled
        The cohort that trains.
    other : Labelled, optional
        The test cohort, of external folds.

    Raises
    ------
    OpenBrainMassError
        If a person is on both sides, or people who belong together are on different ones; a fold of a held-out site
        has the site on both sides; training holds one class only; a few-shot fold has more labelled people than its
        name says; somebody is tested twice in one repeat; or positions are outside of the cohort.
    """
    across = external_groups(own.ties, other.ties) if other is not None else None
    for fold in folds:
        where = f"{fold.protocol}, repeat {fold.repeat}, fold {fold.fold}"
        if fold.external and other is None:
            raise OpenBrainMassError(f"The fold {where} is on a test cohort, and none was given. Give test_cohort.")
        tested = other if fold.external and other is not None else own
        _refuse_outside(fold, own, tested, where)
        mine, theirs = across if fold.external and across is not None else (own.people.group, own.people.group)
        _refuse_both_sides(mine, fold.train, own, theirs, fold.test, tested, where)
        for rows, cohort, of in ((fold.joining, tested, theirs), (fold.unlabelled, own, mine)):
            if rows is not None:
                _refuse_both_sides(of, rows, cohort, theirs, fold.test, tested, where)
        if fold.unlabelled is not None and np.setdiff1d(fold.train, fold.unlabelled).size:
            raise OpenBrainMassError(
                f"The fold {where} has labelled people who are not among its unlabelled ones. The labelled are drawn from "
                "the training side; put all of it into unlabelled."
            )
        if not own.people.can_train(fold.train):
            raise OpenBrainMassError(
                f"The training side of the fold {where} holds only one {'value' if own.people.continuous else 'class'}, "
                "so nothing can be learnt from it. Add people of the other, or leave the fold out."
            )
        _refuse_many_labelled(fold, tested.people, where)
        held = held_out_values(fold.protocol, own.people)
        if held is not None and (shared := sorted(set(held[fold.train]) & set(held[fold.test]))):
            noun = fold.protocol.split("-")[0]
            raise OpenBrainMassError(
                f"The fold {where} claims to hold a {noun} out, but {str(shared[0])!r} is on both sides. Take its people out "
                "of training, or call the protocol by another name."
            )
    _refuse_tested_twice(folds, own, other)


def held_out_values(protocol: str, people: People) -> np.ndarray | None:
    """Site or dataset of each recording where the protocol holds those out; None for other protocols."""
    values = {"site-held-out": people.site, "cohort-held-out": people.dataset}.get(protocol)
    if values is None and protocol in {"site-held-out", "cohort-held-out"}:
        noun = protocol.split("-")[0]
        raise OpenBrainMassError(
            f"The folds hold out a {noun}, but the cohort does not say which {noun} a recording is of, so this cannot "
            "be checked. Add the column, or call the protocol by another name."
        )
    return values


def _rows_of(people: set[str], cohort: Labelled, where: str) -> np.ndarray:
    strangers = sorted(people - set(cohort.people.participant))
    if strangers:
        raise OpenBrainMassError(
            f"The fold {where} names {strangers[0]}{f' and {len(strangers) - 1} others' if len(strangers) > 1 else ''}, "
            f"who are not among the labelled people of cohort {cohort.cohort.name}. Hand over the folds of this cohort "
            "and task, or take these people out of them."
        )
    return np.flatnonzero(np.isin(cohort.people.participant, sorted(people)))


def _of_held_out(values: np.ndarray, test: np.ndarray, people: People) -> np.ndarray:
    """Of people who were scanned at several sites, only the recordings of the site that all test people have in common."""
    of_each = [set(values[test][people.participant[test] == name]) for name in np.unique(people.participant[test])]
    common = set.intersection(*of_each)
    return test[np.isin(values[test], sorted(common))] if common else test


def _refuse_outside(fold: Fold, own: Labelled, tested: Labelled, where: str) -> None:
    joining = fold.joining if fold.joining is not None else np.empty(0, dtype=int)
    for rows, cohort in ((fold.train, own), (fold.test, tested), (joining, tested)):
        if len(rows) and not 0 <= np.min(rows) <= np.max(rows) < len(cohort.cohort):
            raise OpenBrainMassError(
                f"The fold {where} has positions outside of the {len(cohort.cohort)} labelled recordings of cohort "
                f"{cohort.cohort.name}. Make folds from the people of this cohort and task."
            )
    if not len(fold.train) or not len(fold.test):
        raise OpenBrainMassError(f"The fold {where} has an empty side. Each side needs people.")


def _refuse_many_labelled(fold: Fold, people: People, where: str) -> None:
    """Refuse a few-shot fold whose labelled people of a class are more than its name says."""
    shot = few_shot_size(fold.protocol)
    rows = fold.joining if fold.external else fold.train
    if shot is None or rows is None:
        return
    named, y = people.participant[rows], people.y[rows]
    most = max(len(np.setdiff1d(named[y == label], named[y != label])) for label in np.unique(y))
    if most > shot:
        raise OpenBrainMassError(
            f"The fold {where} has {most} labelled people of one class, and {shot} were expected by its name. Name it after "
            "their number, or take people out of its training side."
        )


def _refuse_tested_twice(folds: Sequence[Fold], own: Labelled, other: Labelled | None) -> None:
    """Refuse several splits in one repeat, which the intervals and tests would take for one partition of the people."""
    numbered: set[tuple[str, int, int]] = set()
    tested: dict[tuple[str, int], set[str] | set[int]] = {}
    for fold in folds:
        where = f"{fold.protocol}, repeat {fold.repeat}, fold {fold.fold}"
        if (fold.protocol, fold.repeat, fold.fold) in numbered:
            raise OpenBrainMassError(f"There are two folds {where}. Give each its own number of repeat and fold.")
        numbered.add((fold.protocol, fold.repeat, fold.fold))
        cohort = own if not fold.external or other is None else other
        names = cohort.people.participant
        # Who was scanned at two sites is rightly tested at both, with other recordings.
        unit = np.arange(len(names)) if held_out_values(fold.protocol, own.people) is not None else names
        before = tested.setdefault((fold.protocol, fold.repeat), set())
        if twice := sorted(names[row] for row in fold.test if unit[row] in before):
            raise OpenBrainMassError(
                f"The fold {where} tests {twice[0]} twice in one repeat. Give each random split a repeat of its own."
            )
        before.update(unit[fold.test].tolist())


def _refuse_both_sides(
    train_groups: np.ndarray,
    train: np.ndarray,
    training: Labelled,
    test_groups: np.ndarray,
    test: np.ndarray,
    tested: Labelled,
    where: str,
) -> None:
    shared = np.intersect1d(train_groups[train], test_groups[test])
    if not shared.size:
        return
    one = training.people.participant[train][train_groups[train] == shared[0]][0]
    two = tested.people.participant[test][test_groups[test] == shared[0]][0]
    if one == two and training is tested:
        found = f"has {one} on its training and its test side"
    else:
        found = f"has {one} in training and {two} in the test, who are one person, share a scan or are of one family"
    raise OpenBrainMassError(
        f"The fold {where} {found} ({shared.size} such in all); nothing measured on it would be true. Put them on one side."
    )
