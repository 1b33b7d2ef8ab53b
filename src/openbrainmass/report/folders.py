"""What a report is made from: saved folders, recognised by their files and read as tables."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from openbrainmass.durable import read_json, read_json_lines, read_tsv
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.report.checked import read_checked, refuse_twice

KINDS = (
    "a store (manifest.json)",
    "a run or checkpoint (card.json)",
    "results (predictions.tsv)",
    "an explanation (explanation.json)",
    "embeddings.tsv",
)

SHOWN_TABLES = ("confounds", "coverage", "audit", "log_auc")
"""Further tables of a results folder that have a place on the page."""


@dataclass(frozen=True)
class StoreFolder:
    """A cohort store: its manifest and its three tables."""

    path: Path
    manifest: Mapping[str, Any]
    recordings: pd.DataFrame
    participants: pd.DataFrame
    exclusions: pd.DataFrame

    @property
    def name(self) -> str:
        """Name of the dataset."""
        return str(self.manifest.get("dataset") or self.path.name)


@dataclass(frozen=True)
class HealthWarning:
    """What the pretraining warned of: the first message, its step, and how often it came."""

    text: str
    step: int
    times: int


@dataclass(frozen=True)
class RunFolder:
    """A checkpoint and, where it was pretrained here, the log of its pretraining."""

    path: Path
    card: Mapping[str, Any]
    steps: pd.DataFrame
    warnings: tuple[HealthWarning, ...]

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name


@dataclass(frozen=True)
class ResultsFolder:
    """Saved predictions and the tables made from them; `tables` are those of `SHOWN_TABLES` that were saved."""

    path: Path
    settings: Mapping[str, Any]
    predictions: pd.DataFrame
    metrics: pd.DataFrame
    comparisons: pd.DataFrame
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def task(self) -> Mapping[str, Any]:
        """Settings of the task, empty where they were not saved."""
        task = self.settings.get("task")
        return task if isinstance(task, Mapping) else {}

    def task_of(self, protocol: str | None) -> Mapping[str, Any]:
        """Settings of the task of a protocol: another cohort may be tested on something else."""
        other = self.settings.get("test_task")
        return other if isinstance(other, Mapping) and (protocol or "").startswith("external") else self.task

    @property
    def kind(self) -> str:
        """``classification`` or ``regression``."""
        return str(self.task.get("kind") or "classification")

    @property
    def name(self) -> str:
        """Title of the task, as far as the settings tell."""
        task = self.settings.get("task")
        if isinstance(task, Mapping):
            return str(task.get("title") or task.get("name") or self.path.name)
        return str(task or self.path.name)


@dataclass(frozen=True)
class ExplanationFolder:
    """Attributions of a model for a task."""

    path: Path
    settings: Mapping[str, Any]
    rois: pd.DataFrame
    edges: pd.DataFrame
    networks: pd.DataFrame
    network_pairs: pd.DataFrame

    @property
    def name(self) -> str:
        """Name of the folder."""
        return self.path.name


@dataclass(frozen=True)
class EmbeddingsFile:
    """Embeddings, one row a recording: what is known of it, and the values."""

    path: Path
    known: pd.DataFrame
    values: np.ndarray

    @property
    def name(self) -> str:
        """Name of the file."""
        return self.path.name


@dataclass
class Material:
    """Everything that a report is made from, by kind."""

    stores: list[StoreFolder] = field(default_factory=list)
    runs: list[RunFolder] = field(default_factory=list)
    results: list[ResultsFolder] = field(default_factory=list)
    explanations: list[ExplanationFolder] = field(default_factory=list)
    embeddings: list[EmbeddingsFile] = field(default_factory=list)


def read_material(paths: Sequence[str | Path]) -> Material:
    """Recognise each folder by its files and read its tables; BOLD and weights are not read.

    Raises
    ------
    OpenBrainMassError
        If a path is given twice, does not exist or is none of the known kinds, one of its tables is missing or
        damaged, or metrics do not follow from their predictions.
    """
    if not paths:
        raise OpenBrainMassError(f"A report needs at least one folder: {', '.join(KINDS)}. Name what you have.")
    refuse_twice([Path(path) for path in paths])
    material = Material()
    for path in map(Path, paths):
        _add(material, path)
    return material


def _add(material: Material, path: Path) -> None:
    if not path.exists():
        raise OpenBrainMassError(f"{path} does not exist; a report is made from saved folders. Check the path.")
    if path.is_file() and path.suffix == ".tsv":
        material.embeddings.append(_read_embeddings(path))
    elif (path / "manifest.json").is_file():
        material.stores.append(_read_store(path))
    elif (path / "card.json").is_file():
        material.runs.append(_read_run(path))
    elif (path / "predictions.tsv").is_file():
        material.results.append(_read_results(path))
    elif (path / "explanation.json").is_file():
        material.explanations.append(_read_explanation(path))
    elif (path / "embeddings.tsv").is_file():
        material.embeddings.append(_read_embeddings(path / "embeddings.tsv"))
    else:
        raise OpenBrainMassError(
            f"{path} is nothing that a report can show; expected one of: {', '.join(KINDS)}. "
            "Name a folder that another command of openbrainmass has finished writing."
        )


def _read_store(path: Path) -> StoreFolder:
    return StoreFolder(
        path,
        read_json(path / "manifest.json"),
        read_tsv(path / "recordings.tsv"),
        read_tsv(path / "participants.tsv"),
        read_tsv(path / "exclusions.tsv"),
    )


def _read_run(path: Path) -> RunFolder:
    log = path / "metrics.jsonl"
    records = read_json_lines(log) if log.is_file() else []
    steps = pd.DataFrame([record for record in records if "step" in record and "loss" in record])
    return RunFolder(path, read_json(path / "card.json"), steps, _warnings(records))


def _warnings(records: Sequence[Mapping[str, Any]]) -> tuple[HealthWarning, ...]:
    found: dict[str, HealthWarning] = {}
    for record in records:
        for text in record.get("warnings") or ():
            # The same warning comes with other numbers at every step.
            kind = re.sub(r"[\d.]+", "", str(text))
            seen = found.get(kind)
            found[kind] = (
                replace(seen, times=seen.times + 1) if seen else HealthWarning(str(text), int(record.get("step", 0)), 1)
            )
    return tuple(found.values())


def _read_results(path: Path) -> ResultsFolder:
    comparisons = path / "comparisons.tsv"
    results, metrics = read_checked(path)
    return ResultsFolder(
        path,
        results.settings,
        results.predictions,
        metrics,
        read_tsv(comparisons) if comparisons.is_file() else pd.DataFrame(),
        {name: table for name, table in results.tables.items() if name in SHOWN_TABLES},
    )


def _read_explanation(path: Path) -> ExplanationFolder:
    tables = {name: path / f"{name}.tsv" for name in ("rois", "edges", "networks", "network_pairs")}
    # Networks are unknown in some atlases; the folder then has no table of them.
    read = {name: read_tsv(file) if file.is_file() else pd.DataFrame() for name, file in tables.items()}
    return ExplanationFolder(path, read_json(path / "explanation.json"), **read)


def _read_embeddings(path: Path) -> EmbeddingsFile:
    table = read_tsv(path)
    columns = [name for name in table.columns if name[:1] == "e" and name[1:].isdigit()]
    if not columns or "participant_id" not in table:
        raise OpenBrainMassError(
            f"{path} is no table of embeddings: columns participant_id and e0, e1, ... were expected, found "
            f"{', '.join(table.columns[:8])}. Make one with `openbrainmass embed`."
        )
    values = table[columns].to_numpy(dtype=np.float32)
    if not np.isfinite(values).all():
        raise OpenBrainMassError(f"{path} has embeddings that are not finite numbers. Make it again with `embed`.")
    return EmbeddingsFile(path, table.drop(columns=columns), values)
