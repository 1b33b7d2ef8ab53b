"""What folds of anybody's must not do: a person, a family, a scan or a claimed new site on both sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.durable import read_tsv
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.audit.checks import Finding, some
from openbrainmass.evaluation.audit.copies import Copy, find_copies
from openbrainmass.evaluation.folds import FOLD_COLUMNS
from openbrainmass.evaluation.splits import Fold
from openbrainmass.evaluation.tasks import Task, code, is_known

CLAIMS = {"site-held-out": "site", "cohort-held-out": "dataset"}
"""Protocols that claim generalisation to a site or a cohort, and the column that must not be on both sides."""

_MANY, _MANY_SHARE = 3, 0.05

_KEYS = ["protocol", "repeat", "fold"]

COPY_CHECKS = ("duplicates", "near-duplicates", "windows-across-folds", "views-across-folds")
"""Checks of scans that are there under several ids."""


@dataclass(frozen=True, eq=False)
class Sides:
    """A fold as positions of recordings of the cohort."""

    protocol: str
    name: str
    train: np.ndarray
    test: np.ndarray


def is_external(protocol: str) -> bool:
    """Whether a protocol tests another cohort than the one that trains."""
    return protocol.startswith("external")


def fold_sides(
    folds: str | Path | pd.DataFrame | Sequence[Fold],
    cohort: Cohort,
    task: Task,
    wanted: Callable[[str], bool] = lambda protocol: not is_external(protocol),
    sides: Sequence[str] = ("train", "test"),
) -> list[Sides]:
    """Bring folds to positions of recordings.

    Parameters
    ----------
    folds : path, DataFrame or sequence of Fold
        A table with the columns of `evaluation.folds.FOLD_COLUMNS`, whose sides are those of recordings where it has a
        ``recording_id``, too; or folds as `evaluate` makes them, whose rows are positions among the recordings whose
        class is known.
    cohort : Cohort
        Whose people they are.
    task : Task
    wanted : callable
        Which protocols; those that test another cohort are left out unless asked for.
    sides : sequence of str
        Which sides; the others are left empty.

    Raises
    ------
    OpenBrainMassError
        If the table cannot be read (`open_folds`), or somebody is not in the cohort.
    """
    folds = open_folds(folds)
    if isinstance(folds, pd.DataFrame):
        return list(_table_sides(folds, cohort, wanted, sides))
    known = np.flatnonzero(is_known(task.labels(cohort)))
    return [
        Sides(
            fold.protocol,
            _name(fold.protocol, fold.repeat, fold.fold),
            known[fold.train] if "train" in sides else known[:0],
            known[fold.test] if "test" in sides else known[:0],
        )
        for fold in folds
        if wanted(fold.protocol)
    ]


def open_folds(folds: str | Path | pd.DataFrame | Sequence[Fold]) -> pd.DataFrame | list[Fold]:
    """Read folds of anybody's, whatever their protocols are called, and refuse those that do not say who is where.

    Parameters
    ----------
    folds : path, DataFrame or sequence of Fold
        As for `fold_sides`.

    Raises
    ------
    OpenBrainMassError
        If there are none, a column is missing or has gaps, a side is neither train nor test, or nobody is on one.
    """
    if not isinstance(folds, (str, Path, pd.DataFrame)):
        folds = list(folds)
        if not folds:
            raise OpenBrainMassError("The list of folds is empty; at least one fold was expected. Give some.")
        _refuse_empty((_name(fold.protocol, fold.repeat, fold.fold), len(fold.train), len(fold.test)) for fold in folds)
        return folds
    table = folds if isinstance(folds, pd.DataFrame) else read_tsv(folds)
    if missing := [column for column in FOLD_COLUMNS if column not in table]:
        raise OpenBrainMassError(
            f"The table of folds lacks {', '.join(missing)}; the columns {', '.join(FOLD_COLUMNS)} were expected. "
            "Write one row a person and side."
        )
    gaps = [column for column in (*FOLD_COLUMNS, "recording_id") if column in table and table[column].isna().any()]
    if gaps or table.empty:
        raise OpenBrainMassError(
            f"The table of folds has {f'rows without {gaps[0]}' if gaps else 'no rows'}; each row names a person, the "
            "fold and the side. Fill them in."
        )
    if strange := sorted(set(table["side"].astype(str)) - {"train", "test"}):
        raise OpenBrainMassError(
            f"The table of folds has the side {strange[0]!r}; train and test were expected. Leave other rows out."
        )
    n_rows = table.groupby(_KEYS, sort=False)["side"]
    _refuse_empty((_name(*key), int((of == "train").sum()), int((of == "test").sum())) for key, of in n_rows)
    return table


def _refuse_empty(folds: Iterable[tuple[str, int, int]]) -> None:
    for name, n_train, n_test in folds:
        if not n_train or not n_test:
            raise OpenBrainMassError(
                f"The fold {name} has no {'test' if n_train else 'training'} people; without both sides nothing can be "
                "looked for. Add them."
            )


def external_protocols(folds: pd.DataFrame | Sequence[Fold]) -> list[str]:
    """Names of those protocols of folds that test another cohort."""
    names = folds["protocol"].astype(str) if isinstance(folds, pd.DataFrame) else [fold.protocol for fold in folds]
    return [name for name in dict.fromkeys(names) if is_external(name)]


def _table_sides(
    table: pd.DataFrame, cohort: Cohort, wanted: Callable[[str], bool], sides: Sequence[str]
) -> Iterator[Sides]:
    table = table[table["protocol"].astype(str).map(wanted) & table["side"].isin(sides)]
    column = "recording_id" if "recording_id" in table else "participant_id"
    own = cohort.recordings[column].to_numpy(str)
    if strangers := sorted(set(table[column].astype(str)) - set(own)):
        raise OpenBrainMassError(
            f"The folds name {some(strangers)}, which cohort {cohort.name} has not. Give the folds of this cohort."
        )
    for (protocol, repeat, fold), rows in table.groupby(_KEYS, sort=False):
        names = (sorted(set(rows.loc[rows["side"] == side, column].astype(str))) for side in ("train", "test"))
        train, test = (np.flatnonzero(np.isin(own, named)) for named in names)
        yield Sides(str(protocol), _name(protocol, repeat, fold), train, test)


def _name(protocol: object, repeat: object, fold: object) -> str:
    return f"{protocol}, repeat {repeat}, fold {fold}"


def audit_folds(
    cohort: Cohort,
    task: Task,
    folds: str | Path | pd.DataFrame | Sequence[Fold] | None = None,
    copies: Sequence[Copy] | None = None,
    wanted: Callable[[str], bool] = lambda protocol: not is_external(protocol),
) -> list[Finding]:
    """Look for what is on both sides of a fold.

    Without folds, only scans under several ids are looked for: whatever split by id comes later may part them.

    Parameters
    ----------
    cohort : Cohort
    task : Task
        Its `groups` are the columns of people who belong together, its `site` that of sites.
    folds : path, DataFrame or sequence of Fold, optional
        See `fold_sides`.
    copies : sequence of Copy, optional
        As from `find_copies`, so that scans are not read again.
    wanted : callable
        Which protocols are looked at.

    Returns
    -------
    list of Finding
        None where no fold is of a wanted protocol.
    """
    sides = fold_sides(folds, cohort, task, wanted) if folds is not None else []
    if folds is not None and not sides:
        return []
    copies = find_copies(cohort) if copies is None else copies
    if folds is None:
        return list(_copies_of_any_split(cohort, copies))
    return [
        *_people(cohort, sides),
        *_families(cohort, task, sides),
        *_copies_across(cohort, copies, sides),
        *_claims(cohort, task, sides),
    ]


def _copies_of_any_split(cohort: Cohort, copies: Sequence[Copy]) -> Iterator[Finding]:
    for check in COPY_CHECKS:
        own = [copy for copy in copies if copy.check == check]
        if own:
            told = f"{_pairs(cohort, own)}; a split by id can part them. Leave all but one of each out."
            yield Finding(check, _gravity(own, cohort), told)
        else:
            yield Finding(check, "passed", f"None among the {len(cohort)} recordings of {cohort.name}.")


def _gravity(copies: Sequence[Copy], cohort: Cohort) -> str:
    """One pair that is alike but not proved may be chance; many are not."""
    many = max(_MANY, _MANY_SHARE * len(cohort))
    return "refused" if any(copy.proved for copy in copies) or len(copies) >= many else "floor"


def _pairs(cohort: Cohort, copies: Sequence[Copy]) -> str:
    ids = cohort.recordings["recording_id"].to_numpy(str)
    return some(
        f"{ids[copy.first]} and {ids[copy.second]} {'are' if copy.proved else 'may be'} one scan ({copy.told})"
        for copy in copies
    )


def _people(cohort: Cohort, sides: Sequence[Sides]) -> Iterator[Finding]:
    people = cohort.recordings["participant_id"].to_numpy(str)
    whole, partly, who = [], [], Counter[str]()
    for fold in sides:
        tested = set(people[fold.test])
        both = tested & set(people[fold.train])
        if len(np.intersect1d(fold.train, fold.test)):
            whole.append(fold.name)
        elif both:
            partly.append(fold.name)
        who.update(both)
    named = some(sorted(who))
    for check, found, told in (
        ("test-is-train", whole, "test people that are trained on"),
        ("sessions-across-folds", partly, "people with recordings on both sides"),
    ):
        if found:
            yield Finding(check, "refused", f"{len(found)} of {len(sides)} folds ({found[0]}) have {told}: {named}.")
        else:
            yield Finding(check, "passed", f"None of {len(sides)} folds has {told}.")


def _families(cohort: Cohort, task: Task, sides: Sequence[Sides]) -> Iterator[Finding]:
    table = cohort.table
    columns = [column for column in task.groups if column in table]
    if not columns:
        named = ", ".join(task.groups) or "none named in the task"
        yield Finding("twins-across-folds", "not checked", f"Cohort {cohort.name} has no column of families ({named}).")
    for column in columns:
        families = np.array([code(value) for value in table[column]])
        people = table["participant_id"].to_numpy(str)
        found = Counter[str]()
        for fold in sides:
            trained = {
                name: set(people[fold.train][families[fold.train] == name]) for name in set(families[fold.train])
            }
            for row in fold.test:
                family = str(families[row])
                if family and trained.get(family, set()) - {str(people[row])}:
                    found[family] += 1
        if found:
            told = f"Families of {column} with members on both sides of a fold: {some(sorted(found))}."
            yield Finding("twins-across-folds", "refused", told)
        else:
            yield Finding("twins-across-folds", "passed", f"No family of {column} is on both sides of a fold.")


def _copies_across(cohort: Cohort, copies: Sequence[Copy], sides: Sequence[Sides]) -> Iterator[Finding]:
    for check in COPY_CHECKS:
        own = [copy for copy in copies if copy.check == check]
        parted = [copy for copy in own if any(_parts(fold, copy) for fold in sides)]
        if parted:
            told = f"{_pairs(cohort, parted)}, and a fold has one on each side."
            yield Finding(check, _gravity(parted, cohort), told)
        else:
            told = f"{len(own)} pairs, none on both sides of a fold." if own else "None among the recordings."
            yield Finding(check, "passed", told)


def _parts(fold: Sides, copy: Copy) -> bool:
    first = copy.first in fold.train, copy.first in fold.test
    second = copy.second in fold.train, copy.second in fold.test
    return bool((first[0] and second[1]) or (first[1] and second[0]))


def _claims(cohort: Cohort, task: Task, sides: Sequence[Sides]) -> Iterator[Finding]:
    table = cohort.table
    claiming = [fold for fold in sides if fold.protocol in CLAIMS]
    if not claiming:
        yield Finding("site-on-both-sides", "passed", "No fold claims generalisation to new sites.")
    found: list[str] = []
    for fold in claiming:
        column = task.site if fold.protocol == "site-held-out" else CLAIMS[fold.protocol]
        if column not in table:
            told = f"{fold.protocol} is claimed but cohort {cohort.name} has no column {column}. Add it."
            yield Finding("site-on-both-sides", "refused", told)
            return
        places = np.array([code(value) for value in table[column]])
        # A person whose site is not known may be of the held-out one.
        both = (set(places[fold.test]) & set(places[fold.train])) | (
            {"(unknown)"} if "" in places[fold.train] else set()
        )
        if both:
            found.append(f"{fold.name} has {some(sorted(both))} on both sides")
    if found:
        yield Finding("site-on-both-sides", "refused", f"{some(found)}, though {claiming[0].protocol} is claimed.")
    elif claiming:
        yield Finding(
            "site-on-both-sides", "passed", f"Each of {len(claiming)} folds that claim it tests new sites only."
        )
