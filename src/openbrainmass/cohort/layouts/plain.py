"""The plain folder: `participants.tsv`, where needed `recordings.tsv`, and one file a recording."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from openbrainmass.atlas import Atlas
from openbrainmass.cohort.files.read import file_labels, read_file
from openbrainmass.cohort.layouts.layout import Found, Layout
from openbrainmass.cohort.source import ReadingSettings, Series
from openbrainmass.durable import read_tsv
from openbrainmass.errors import OpenBrainMassError

OF_RECORDINGS = ("recording_id", "session", "run", "task", "tr", "file")
"""Columns of a participants table that describe the one recording of each person, not the person."""

MEASURED = ("n_volumes", "n_rois", "dead_rois", "digest", "shard")
"""Columns that are measured on the arrays themselves; what a table claims of them is only a hint."""


def find(folder: Path, settings: ReadingSettings) -> list[Found]:
    """Recordings that the tables of a folder name.

    Raises
    ------
    OpenBrainMassError
        If a column is missing, an id is repeated or unknown, or a tr is impossible.
    """
    path = _table_of_recordings(folder)
    if path is None:
        return []
    table = _named(path, folder / "participants.tsv")
    # A table that is edited by hand spells a session "ses-01" or "01".
    for column, entity in (("session", "ses"), ("run", "run"), ("task", "task")):
        if column in table:
            known = table[column].astype(str).str.replace(rf"^{entity}-", "", regex=True)
            table[column] = known.where(table[column].notna(), None)
    table["recording_id"] = _recording_ids(table, path)
    known = {*OF_RECORDINGS, *MEASURED, "participant_id"} - {"n_rois"}
    extra = [column for column in table.columns if column not in known] if path.name == "recordings.tsv" else []
    hint = ["n_rois"] if "n_rois" in table and "n_rois" not in extra else []
    return [_found(row, path, [*extra, *hint]) for row in table.to_dict("records")]


def _table_of_recordings(folder: Path) -> Path | None:
    if (folder / "recordings.tsv").is_file():
        return folder / "recordings.tsv"
    path = folder / "participants.tsv"
    return path if path.is_file() and "file" in read_tsv(path).columns else None


def _named(path: Path, people: Path) -> pd.DataFrame:
    """The rows of a table that name a file, with the tr of each."""
    table = read_tsv(path)
    missing = [column for column in ("participant_id", "file") if column not in table.columns]
    if missing:
        raise OpenBrainMassError(
            f"{path} lacks the column {', '.join(missing)}; it has {', '.join(table.columns)}. Add or rename it."
        )
    if path != people and "tr" not in table and people.is_file() and "tr" in (known := read_tsv(people)):
        table = table.merge(known[["participant_id", "tr"]], on="participant_id", how="left")
    table["tr"] = _seconds(table, path)
    table = table[table["file"].notna()].reset_index(drop=True)
    if table.empty:
        raise OpenBrainMassError(f"{path} names no recording. Put the path of each array into its column file.")
    table["participant_id"] = table["participant_id"].astype(str).str.strip()
    repeated = table["participant_id"][table["participant_id"].duplicated()].unique()
    if path == people and len(repeated):
        raise OpenBrainMassError(
            f"{path} has {', '.join(repeated[:5])} more than once. Keep one row a person; where people have several "
            "recordings, list these in recordings.tsv."
        )
    return table


def _seconds(table: pd.DataFrame, path: Path) -> pd.Series:
    if "tr" not in table:
        return pd.Series(np.nan, index=table.index)
    tr = pd.to_numeric(table["tr"], errors="coerce")
    wrong = table["tr"].notna() & ~tr.between(0.05, 20)
    if wrong.any():
        row = table[wrong].iloc[0]
        raise OpenBrainMassError(
            f"{path} gives {row['participant_id']} a tr of {row['tr']}; seconds between 0.05 and 20 were expected "
            "(n/a where unknown). Mend it."
        )
    return tr


def _recording_ids(table: pd.DataFrame, path: Path) -> pd.Series:
    if "recording_id" in table:
        ids = table["recording_id"].astype(str)
    else:
        ids = table["participant_id"]
        for column, entity in (("session", "ses"), ("task", "task"), ("run", "run")):
            if column in table:
                ids = ids.where(table[column].isna(), ids + f"_{entity}-" + table[column].astype(str))
    if ids.duplicated().any():
        raise OpenBrainMassError(
            f"{path} has more than one recording {ids[ids.duplicated()].iloc[0]}. Tell recordings of a person "
            "apart by the columns session and run."
        )
    return ids


def _found(row: Mapping[Any, Any], path: Path, extra: list[str]) -> Found:
    from openbrainmass.cohort.layouts.bids import entities

    named = entities(str(row["file"]))
    return Found(
        file=str(row["file"]),
        recording_id=row["recording_id"],
        participant_id=row["participant_id"],
        session=row.get("session"),
        run=row.get("run"),
        task=row.get("task"),
        atlas=named.get("atlas") or named.get("seg"),
        tr={} if np.isnan(row["tr"]) else {path.name: float(row["tr"])},
        columns={column: row[column] for column in extra},
    )


def read(path: Path, row: Mapping[str, Any], atlas: Atlas, settings: ReadingSettings) -> Series:
    """Read one file, whatever its type."""
    return read_file(path, atlas, settings)


LAYOUT = Layout(
    name="plain",
    title="participants.tsv and one array, table or image a recording",
    patterns=("participants.tsv", "recordings.tsv"),
    header="`participants.tsv` has one row a person (`participant_id`, `file`, any of `site dx sex age tr mean_fd ...`); "
    "where people have several recordings, `recordings.tsv` has one row each (`participant_id session run tr file`). "
    "`file` is a path from the folder on; headers of tables are matched with the ROI names, `n/a` and NaN are missing.",
    find=find,
    read=read,
    labels=file_labels,
)
