"""`long_table`: the metrics of several results folders as one table, checked against their predictions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.results import Results
from openbrainmass.report.checked import read_checked, refuse_twice

LONG_COLUMNS = (
    "results", "task", "dataset", "protocol", "model", "metric", "value", "low", "high", "n_people", "n_positive",
    "saw_test_people", "seed", "version", "looks", "folds",
)  # fmt: skip
"""Columns of the long table: one row a folder, protocol, model and metric.

``task`` and ``dataset`` are ``trained on > tested on`` where those differ; ``folds`` is a digest of who was tested with
which label in which fold, and, where the folder has a ``folds.tsv``, of who trained: only rows with the same digest can
be compared. ``looks`` counts the evaluations of that test set so far, where the settings tell.
"""


@dataclass(frozen=True)
class Entry:
    """One results folder, its predictions loaded and its metrics checked against them.

    Attributes
    ----------
    name : str
        Of the folder, with as much of its path as tells it from the others.
    results : Results
    metrics : DataFrame
        As saved.
    """

    name: str
    results: Results
    metrics: pd.DataFrame

    def task(self, protocol: str) -> str:
        """Name of the task; ``trained on > tested on`` where an external protocol tests another one."""
        return self._of_both(protocol, "task", "name", "title")

    def title(self, protocol: str) -> str:
        """The task in words."""
        return self._of_both(protocol, "task", "title", "name")

    def dataset(self, protocol: str) -> str:
        """Cohort that was tested; ``trained on > tested on`` for external protocols."""
        return self._of_both(protocol, "cohort", "name")

    def _of_both(self, protocol: str, key: str, *names: str) -> str:
        own, other = (_text(self.results.settings.get(which), names) for which in (key, f"test_{key}"))
        return f"{own} > {other}" if protocol.startswith("external") and other else own

    def digest(self, protocol: str, model: str) -> str:
        """sha256 (first 12 hex digits) of the folds that a model was tested on."""
        rows = self.results.predictions
        rows = rows[(rows["protocol"] == protocol) & (rows["model"] == model)]
        rows = rows.sort_values(["repeat", "fold", "participant_id"])
        lines = [
            f"{repeat}\t{fold}\t{person}\t{float(label):.10g}\t{n_train}"
            for repeat, fold, person, label, n_train in zip(
                rows["repeat"], rows["fold"], rows["participant_id"], rows["y_true"], rows["n_train"], strict=True
            )
        ]
        folds = self.results.tables.get("folds")
        if folds is not None:
            lines += sorted("\t".join(map(str, row)) for row in folds[folds["protocol"] == protocol].to_numpy())
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:12]


def read_entries(folders: Sequence[str | Path]) -> list[Entry]:
    """Load results folders.

    Raises
    ------
    OpenBrainMassError
        If there is none, one is given twice or is not a results folder, or its saved metrics do not follow from its
        predictions.
    """
    if not folders:
        raise OpenBrainMassError(
            "No results folder was given; at least one is needed. Name what `openbrainmass evaluate` wrote."
        )
    paths = [Path(folder) for folder in folders]
    refuse_twice(paths)
    names = _names([path.resolve() for path in paths])
    return [Entry(name, *read_checked(path)) for path, name in zip(paths, names, strict=True)]


def long_table(folders: Sequence[str | Path] | Sequence[Entry]) -> pd.DataFrame:
    """One row a results folder, protocol, model and metric, with `LONG_COLUMNS`.

    Parameters
    ----------
    folders : sequence of path
        Results folders, or what `read_entries` made of them.
    """
    entries = [f for f in folders if isinstance(f, Entry)]
    if len(entries) < len(folders):
        entries = read_entries([f for f in folders if not isinstance(f, Entry)])
    return pd.concat([_rows(entry) for entry in entries], ignore_index=True)


def _rows(entry: Entry) -> pd.DataFrame:
    settings, table = entry.results.settings, entry.metrics
    digests = {
        (protocol, model): entry.digest(protocol, model)
        for protocol, model in table[["protocol", "model"]].drop_duplicates().itertuples(index=False)
    }
    software = settings.get("software")
    return table.assign(
        results=entry.name,
        task=[entry.task(protocol) for protocol in table["protocol"]],
        dataset=[entry.dataset(protocol) for protocol in table["protocol"]],
        seed=_count(settings.get("seed")),
        version=str(software.get("openbrainmass", "")) if isinstance(software, Mapping) else "",
        looks=_count(settings.get("looks")),
        folds=[digests[key] for key in zip(table["protocol"], table["model"], strict=True)],
    ).astype({"seed": "Int64", "looks": "Int64"})[list(LONG_COLUMNS)]


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as many as tell all of them apart."""
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _text(facts: Any, names: Sequence[str]) -> str:
    if not isinstance(facts, Mapping):
        return str(facts or "")
    return next((str(facts[name]) for name in names if facts.get(name)), "")


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) else None
