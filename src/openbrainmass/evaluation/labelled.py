"""The labelled recordings of a cohort: who they are of, and the cohort as estimators may see it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.evaluation.leakage import without_column
from openbrainmass.evaluation.splits import People, people_of, ties
from openbrainmass.evaluation.tasks import Task, is_known


@dataclass(frozen=True, eq=False)
class Labelled:
    """The labelled recordings of a cohort, as estimators may see them.

    Attributes
    ----------
    cohort : Cohort
        The recordings whose class or value is known, without the target column.
    people : People
        Who they are of.
    identities : list of frozenset of str
        Of each recording (see `Cohort.identities`).
    facts : dict
        Counts and names, for the settings of the results.
    ties : list of frozenset of str
        The identities and the groups of each recording: those who share one must stay on one side, across cohorts, too.
    """

    cohort: Cohort
    people: People
    identities: list[frozenset[str]]
    facts: dict[str, Any]
    ties: list[frozenset[str]]


def labelled(cohort: Cohort, task: Task, hidden: Iterable[str] = ()) -> Labelled:
    """Keep the recordings whose class or value is known, and hide the label from the tables.

    Parameters
    ----------
    cohort : Cohort
    task : Task
    hidden : iterable of str
        Further columns that no estimator may see.
    """
    y = task.labels(cohort)
    known = is_known(y)
    chosen = cohort.select(known)
    people = people_of(chosen, y[known], task.site, task.groups)
    common = ties(chosen, task.groups)
    for column in dict.fromkeys([task.target, *hidden]):
        chosen = without_column(chosen, column)
    return Labelled(chosen, people, chosen.identities(), _facts(chosen, people, int((~known).sum())), common)


def _facts(cohort: Cohort, people: People, n_unknown: int) -> dict[str, Any]:
    _, first = np.unique(people.participant, return_index=True)
    of_people = people.y[first]
    facts: dict[str, Any] = {
        "name": cohort.name,
        "n_recordings": len(cohort),
        "n_people": len(first),
        "n_recordings_without_class": n_unknown,
        "sites": sorted({str(site) for site in people.site} - {""}) if people.site is not None else [],
        "datasets": sorted({str(name) for name in people.dataset} - {""}) if people.dataset is not None else [],
        "atlas": cohort.atlas.name,
        "atlas_digest": cohort.atlas.digest,
        "n_rois": cohort.atlas.n_rois,
    }
    if people.continuous:
        return facts | {"mean": float(of_people.mean()), "standard_deviation": float(of_people.std())}
    return facts | {"n_positive": int(of_people.sum())}


def joined(first: Cohort, second: Cohort) -> Cohort:
    """The recordings of two cohorts one after the other, for models that must see the recordings themselves.

    Ids are written as in merged stores (``dataset/id``), so the identities stay what they were.
    """
    parts = [_prefixed(cohort, number) for number, cohort in enumerate((first, second))]
    recordings, participants = (pd.concat(tables, ignore_index=True) for tables in zip(*parts, strict=True))
    readers = (first.read, second.read)
    return Cohort(f"{first.name}+{second.name}", recordings, participants, first.atlas, _EitherReader(readers))


def _prefixed(cohort: Cohort, number: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    def whole(ids: pd.Series) -> list[str]:
        return [value if "/" in value else f"{cohort.name}/{value}" for value in ids.astype(str)]

    recordings, participants = cohort.recordings, cohort.participants
    recordings["recording_id"] = f"{number}:" + recordings["recording_id"].astype(str)
    for table in (recordings, participants):
        table["participant_id"] = whole(table["participant_id"])
    return recordings, participants


class _EitherReader:
    """Reads from the cohort whose number an id begins with; a class, since a closure cannot travel to another process."""

    def __init__(self, readers: tuple[Callable[[str], np.ndarray], ...]) -> None:
        self.readers = readers

    def __call__(self, recording_id: str) -> np.ndarray:
        number, name = recording_id.split(":", 1)
        return self.readers[int(number)](name)
