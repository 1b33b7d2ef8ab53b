"""Folds: who trains and who is tested, always whole people.

Every function works on `People`, the labelled recordings of a cohort, and returns `Fold`s whose rows are positions
among those recordings.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedKFold, train_test_split

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.tasks import code

N_BINS = 5
"""Equally large bins of a continuous target, over which folds are balanced as they are over classes."""

_PARTS = 20
# Spread so that any seven neighbours hold one of each: the smallest class may have no more people.
_TEST_PARTS = (3, 10, 17)
_VALIDATION_PARTS = (0, 6, 13)


@dataclass(frozen=True, eq=False)
class People:
    """Who each labelled recording is of.

    Attributes
    ----------
    participant : ndarray (n_recordings,) of str
        Person of each recording.
    y : ndarray (n_recordings,)
        Class, 0 or 1 (int); or the value to be predicted (float).
    group : ndarray (n_recordings,) of int
        Who must stay together: a person's recordings, people who share a BOLD series under two names, and people who
        share one of the task's groups (a family).
    site : ndarray (n_recordings,) of str, or None
        Site; empty where it is not known. None without such a column.
    dataset : ndarray (n_recordings,) of str, or None
        Dataset that a recording of a merged cohort comes from; empty where it is not known. None in other cohorts.
    """

    participant: np.ndarray
    y: np.ndarray
    group: np.ndarray
    site: np.ndarray | None
    dataset: np.ndarray | None = None

    @property
    def continuous(self) -> bool:
        """Whether a value is predicted and not a class."""
        return self.y.dtype.kind == "f"

    def groups(self) -> pd.DataFrame:
        """One row a group, ``group y mixed site``, by class and site.

        Where a group has two classes (a family), it is ``mixed`` and ``y`` is the majority; of two sites the first is
        taken. Where a value is predicted, ``y`` is the bin of the group's mean, of `N_BINS` equally large ones.
        """
        site = self.site if self.site is not None else np.full(len(self.y), "")
        table = pd.DataFrame({"group": self.group, "y": self.y, "site": site}).groupby("group")
        mean = table["y"].mean()
        bins = (mean.rank(method="first") - 1) * min(N_BINS, len(mean)) // len(mean)
        y = bins if self.continuous else mean >= 0.5
        mixed = (table["y"].nunique() > 1) & (not self.continuous)
        rows = pd.DataFrame({"y": y.astype(int), "mixed": mixed, "site": table["site"].first()})
        return rows.reset_index().sort_values(["y", "site", "group"], ignore_index=True)

    def can_train(self, rows: np.ndarray) -> bool:
        """Whether these recordings hold both classes, or two different values."""
        return len(np.unique(self.y[rows])) > 1


@dataclass(frozen=True, eq=False)
class Fold:
    """One training set and one test set, as positions of recordings."""

    protocol: str
    repeat: int
    fold: int
    train: np.ndarray
    test: np.ndarray
    unlabelled: np.ndarray | None = None
    """few-shot: the whole training side, whose labels are not used."""
    joining: np.ndarray | None = None
    """external-few-shot: recordings of the test cohort that train, too."""

    @property
    def external(self) -> bool:
        """Whether `test` and `joining` are positions in the test cohort."""
        return self.protocol.startswith("external")


def identity_groups(identities: Sequence[frozenset[str]]) -> np.ndarray:
    """Number the groups of recordings that are connected by a common identity.

    Parameters
    ----------
    identities : sequence of frozenset of str, length n_recordings
        As from `Cohort.identities`, or `ties`.

    Returns
    -------
    ndarray (n_recordings,) of int
    """
    names: dict[str, int] = {}
    pairs = [(row, names.setdefault(name, len(names))) for row, own in enumerate(identities) for name in sorted(own)]
    rows, columns = np.array(pairs, dtype=int).reshape(-1, 2).T
    size = len(identities) + len(names)
    graph = coo_matrix((np.ones(len(rows)), (rows, columns + len(identities))), shape=(size, size))
    return connected_components(graph, directed=False)[1][: len(identities)]


def external_groups(own: Sequence[frozenset[str]], other: Sequence[frozenset[str]]) -> tuple[np.ndarray, np.ndarray]:
    """Number the groups of two cohorts' recordings together, so that people who are in both have one number.

    Parameters
    ----------
    own, other : sequence of frozenset of str
        `ties` of each cohort's recordings.

    Returns
    -------
    own, other : ndarray of int
    """
    groups = identity_groups([*own, *other])
    return groups[: len(own)], groups[len(own) :]


def ties(cohort: Cohort, together: Sequence[str] = ()) -> list[frozenset[str]]:
    """For each recording, what it has in common with recordings that must be on its side: person, series, family.

    Parameters
    ----------
    cohort : Cohort
    together : sequence of str
        Columns, those that the cohort has, whose equal values keep people together; an empty value ties nobody.
    """
    own: list[set[str]] = [set(identity) for identity in cohort.identities()]
    table = cohort.table
    datasets = _datasets(table)
    for column in (column for column in together if column in table):
        for row, value in enumerate(table[column]):
            if code(value):
                # The first family of one dataset is not that of another.
                dataset = cohort.name if datasets is None else datasets[row]
                own[row].add(f"{column}={dataset}/{code(value)}")
    return [frozenset(names) for names in own]


def people_of(cohort: Cohort, y: np.ndarray, site: str = "site", together: Sequence[str] = ()) -> People:
    """Describe the people of a cohort whose recordings are all labelled.

    Parameters
    ----------
    cohort : Cohort
    y : ndarray (n_recordings,)
        Classes (int) or values (float).
    site : str
        Column of the site.
    together : sequence of str
        Columns of people who must stay on one side, such as ``family_id``.
    """
    table = cohort.table
    sites = table[site].map(lambda value: "" if pd.isna(value) else str(value)).to_numpy(str) if site in table else None
    group = identity_groups(ties(cohort, together))
    return People(table["participant_id"].to_numpy(str), np.asarray(y), group, sites, _datasets(table))


def _datasets(table: pd.DataFrame) -> np.ndarray | None:
    """The column ``dataset``, or what merged stores write before the slash of every id."""
    if "dataset" in table:
        return np.array([code(value) for value in table["dataset"]], dtype=str)
    people = table["participant_id"].astype(str)
    return people.str.split("/").str[0].to_numpy(str) if people.str.contains("/", regex=False).all() else None


def k_fold(people: People, n_folds: int, n_repeats: int, seed: int) -> list[Fold]:
    """Repeated k-fold, stratified by class (or bin of the value) and site, whole people on one side.

    Without the stratification by site, a site's patients in the test fold would be missing in training, which teaches
    whatever can tell sites apart the opposite of the truth.

    Raises
    ------
    OpenBrainMassError
        If a class has fewer people than there are folds.
    """
    groups = people.groups()
    smallest = _smallest_class(people)
    if n_folds < 2 or smallest < n_folds:
        raise OpenBrainMassError(
            f"The {_smaller(people)} {smallest} people, which cannot be spread over {n_folds} folds. At least two "
            "folds and one person of each class a fold are needed; ask for fewer folds (n_folds) or bring more people."
        )
    # scikit-learn refuses strata all of which have fewer people than there are folds; the coarsest is everybody.
    finest_first = (_strata(groups), groups["y"].astype(str), pd.Series("", index=groups.index))
    strata = next(one for one in finest_first if one.value_counts().max() >= n_folds)
    folds = []
    for repeat in range(n_repeats):
        splitter = StratifiedKFold(n_folds, shuffle=True, random_state=_seed(seed, 0, repeat))
        with warnings.catch_warnings():
            # A site with fewer people of a class than folds cannot be in each of them, which does no harm.
            warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
            # One row a group: whole people, and folds equal in people where some have more recordings than others.
            parts = list(splitter.split(groups, strata))
        folds += [
            Fold("k-fold", repeat, number, *_rows(people, groups, train, test))
            for number, (train, test) in enumerate(parts)
        ]
    return folds


def random_splits(people: People, n_splits: int, seed: int) -> list[Fold]:
    """Random splits as Brainmarks makes them: 85 % train and 15 % are tested, stratified by class.

    Brainmarks (version 0.1.1, ``main_logistic``) joins the training and validation parts of its fixed 70/15/15 split
    and draws 100 splits of that share anew, stratified by the target alone; its probe finds its C by inner splits of
    the training side. There a row is a scan, one a person; here the unit is the person whatever the number of scans.

    Raises
    ------
    OpenBrainMassError
        If a class has fewer than 7 people, so that a test side might have none.
    """
    groups = people.groups()
    _refuse_few(people, "random-splits", "85/15")
    rows, labels = np.arange(len(groups)), groups["y"].to_numpy()
    if groups["y"].value_counts().min() < 2:
        labels = None  # next to all groups are families of both classes
    folds = []
    for repeat in range(n_splits):
        train, test = train_test_split(rows, test_size=0.15, random_state=_seed(seed, 4, repeat), stratify=labels)
        folds.append(Fold("random-splits", repeat, 0, *_rows(people, groups, np.sort(train), np.sort(test))))
    return folds


def paper_split(people: People, n_repeats: int, seed: int) -> list[Fold]:
    """The paper's 70 % training, 15 % validation, 15 % test, by site; the validation people are not used.

    The published code draws the test part stratified by site. Here class and site are spread as evenly as whole
    people allow: the people of each class, in the order of their sites and at random within them, are dealt out to 20
    parts in turn, of which 14 train and 3 are tested.

    Raises
    ------
    OpenBrainMassError
        If a class has fewer than 7 people, so that a part might have none of it.
    """
    groups = people.groups()
    _refuse_few(people, "paper-split", "70/15/15")
    strata = pd.factorize(_strata(groups))[0]
    folds = []
    for repeat in range(n_repeats):
        rng = np.random.default_rng([seed, 1, repeat])
        part = np.empty(len(groups), dtype=int)
        part[np.lexsort((rng.random(len(groups)), strata))] = (np.arange(len(groups)) + rng.integers(_PARTS)) % _PARTS
        train = np.flatnonzero(~np.isin(part, _TEST_PARTS + _VALIDATION_PARTS))
        folds.append(
            Fold("paper-split", repeat, 0, *_rows(people, groups, train, np.flatnonzero(np.isin(part, _TEST_PARTS))))
        )
    return folds


def site_held_out(people: People) -> tuple[list[Fold], list[str]]:
    """Each site in turn is the test set; nobody of it (nor who was also scanned elsewhere) trains.

    Returns
    -------
    folds : list of Fold
    notes : list of str
        What could not be done, and who is left out.
    """
    return _held_out(people, people.site, "site-held-out", "site")


def cohort_held_out(people: People) -> tuple[list[Fold], list[str]]:
    """Each dataset of a merged cohort in turn is the test set; nobody who is in it trains.

    Returns
    -------
    folds : list of Fold
    notes : list of str
        What could not be done, and who is left out.
    """
    return _held_out(people, people.dataset, "cohort-held-out", "dataset")


def _held_out(people: People, values: np.ndarray | None, protocol: str, noun: str) -> tuple[list[Fold], list[str]]:
    if values is None:
        return [], [f"{protocol} was skipped: the cohort has no column of {noun}s."]
    names = sorted(set(values) - {""})
    if len(names) < 2:
        return [], [f"{protocol} was skipped: the cohort has {len(names)} {noun}(s) and at least two are needed."]
    notes, folds = [], []
    unknown = values == ""
    if unknown.any():
        n_people = len(set(people.participant[unknown]))
        notes.append(f"{protocol} leaves out {n_people} people whose {noun} is not known.")
    for number, name in enumerate(names):
        test = np.flatnonzero(values == name)
        train = np.flatnonzero(~np.isin(people.group, people.group[test]) & ~unknown)
        if not people.can_train(train):
            held = "only one value" if people.continuous else "only one class"
            notes.append(f"{protocol} without {name} was skipped: the other {noun}s hold {held}.")
            continue
        folds.append(Fold(protocol, 0, number, train, test))
    return folds, notes


def few_shot_folds(
    people: People, sizes: Sequence[int], n_folds: int, n_draws: int, seed: int
) -> tuple[list[Fold], list[str]]:
    """k labelled people of each class, drawn from the training side of a k-fold; the fold's test people are tested.

    The protocol of each fold is ``few-shot-k``. Draws are nested: the person of k = 1 is one of those of k = 2. Of a
    family at most one is drawn, of either class. The folds of one draw follow each other, with the same test people.

    Returns
    -------
    folds : list of Fold
    notes : list of str
        Sizes that a class is too small for.
    """
    if people.continuous:
        return [], ["few-shot was skipped: it draws people of each class, and the task predicts a value."]
    folds: list[Fold] = []
    too_large: set[int] = set()
    for base in k_fold(people, n_folds, n_draws, seed):
        rng = np.random.default_rng([seed, 3, base.repeat, base.fold])
        labels = people.y[base.train]
        drawn = [rng.permutation(_one_of_each_group(people, base.train[labels == label])) for label in (0, 1)]
        drawn = _of_other_groups(people, drawn)
        too_large |= {size for size in sizes if size > min(len(of_class) for of_class in drawn)}
        for size in sorted(set(sizes)):
            chosen = np.concatenate([of_class[:size] for of_class in drawn])
            train = base.train[np.isin(people.participant[base.train], chosen)]
            folds.append(Fold(f"few-shot-{size}", base.repeat, base.fold, train, base.test, base.train))
    notes = [f"few-shot-{size} was skipped: a class has too few training people." for size in sorted(too_large)]
    skipped = {f"few-shot-{size}" for size in too_large}
    return [fold for fold in folds if fold.protocol not in skipped], notes


def external_few_shot_folds(
    train: np.ndarray, people: People, sizes: Sequence[int], n_folds: int, n_draws: int, seed: int
) -> tuple[list[Fold], list[str]]:
    """k labelled people of each class of a test cohort join the training cohort; others of the test cohort are tested.

    The protocol of each fold is ``external-few-shot-k``, of which ``external`` is k = 0. Draws and folds are those of
    `few_shot_folds` within the test cohort.

    Parameters
    ----------
    train : ndarray of int
        Recordings of the training cohort that train.
    people : People
        Of the test cohort.
    sizes, n_folds, n_draws, seed
        As in `few_shot_folds`.

    Returns
    -------
    folds : list of Fold
    notes : list of str
    """
    smallest = _smallest_class(people)
    if not people.continuous and smallest < n_folds:
        note = f"external-few-shot was skipped: the smaller class of the test cohort has {smallest} people for {n_folds} folds."
        return [], [note]
    folds, notes = few_shot_folds(people, sizes, n_folds, n_draws, seed)
    external = [
        replace(fold, protocol=f"external-{fold.protocol}", train=train, joining=fold.train, unlabelled=None)
        for fold in folds
    ]
    return external, [f"external-{note}" for note in notes]


def _one_of_each_group(people: People, rows: np.ndarray) -> np.ndarray:
    _, first = np.unique(people.group[rows], return_index=True)
    return people.participant[rows][first]


def _of_other_groups(people: People, drawn: list[np.ndarray]) -> list[np.ndarray]:
    """People of each class, in turn the next one of whose family, which may have both classes, nobody stands before."""
    group = dict(zip(people.participant, people.group, strict=True))
    if not {group[name] for name in drawn[0]} & {group[name] for name in drawn[1]}:
        return drawn
    kept: list[list[str]] = [[], []]
    waiting, taken = [iter(names) for names in drawn], set()
    while True:
        for names, rest in zip(kept, waiting, strict=True):
            name = next((name for name in rest if group[name] not in taken), None)
            if name is None:
                return [np.array(names, dtype=str) for names in kept]
            taken.add(group[name])
            names.append(name)


def _strata(groups: pd.DataFrame) -> pd.Series:
    return groups["y"].astype(str) + groups["mixed"].map({True: "+", False: ""}) + "/" + groups["site"]


def _smallest_class(people: People) -> int:
    """People of the smaller class, of each family one; all of them where a value is predicted."""
    if people.continuous:
        return len(np.unique(people.group))
    return min(len(np.unique(people.group[people.y == label])) for label in (0, 1))


def _smaller(people: People) -> str:
    return "cohort has" if people.continuous else "smaller class has"


def _refuse_few(people: People, protocol: str, shares: str) -> None:
    smallest = _smallest_class(people)
    if smallest < 7 * (N_BINS if people.continuous else 1):
        raise OpenBrainMassError(
            f"The {_smaller(people)} {smallest} people; {shares} needs at least "
            f"{f'{7 * N_BINS}' if people.continuous else '7'} so that each part has one. Leave out the protocol "
            f"{protocol} or bring more people."
        )


def _rows(people: People, groups: pd.DataFrame, train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    numbers = groups["group"].to_numpy()
    return (
        np.flatnonzero(np.isin(people.group, numbers[train])),
        np.flatnonzero(np.isin(people.group, numbers[test])),
    )


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])
