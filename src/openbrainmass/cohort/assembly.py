"""From the parts of a build to a store: recordings are judged together, then shards, tables and manifest are put down.

Everything is streamed part by part, so memory does not grow with the cohort beyond the few columns it is judged by.
"""

from __future__ import annotations

import shutil
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from openbrainmass.cohort.cohort import RECORDING_COLUMNS, Cohort
from openbrainmass.cohort.duplicates import Fingerprinter
from openbrainmass.cohort.quality import Judgement, QualitySettings, judge
from openbrainmass.cohort.shards import (
    FINGERPRINT_LENGTH,
    Fingerprints,
    ShardReader,
    kept_blocks,
    rewrite_shard,
    write_fingerprints,
)
from openbrainmass.cohort.source import Source
from openbrainmass.cohort.staging import Staging, plain
from openbrainmass.cohort.store import WARNING_COLUMNS, seal_store
from openbrainmass.durable import install_folder, link_file, make_folder, require_free, write_rows, write_tsv
from openbrainmass.errors import OpenBrainMassError

EXCLUSION_TABLE = ("recording_id", "participant_id", "reason", "site", "dx", "sex", "detail", "file")
"""Columns of a store's exclusions: `EXCLUSION_COLUMNS` and, beside the reason, whom it befalls."""

_UNCHECKED = (
    "the columns have no labels and the atlas {} no coordinates: name its label image or a table with x, y and z "
    "(--atlas), or a store of the same atlas (--template)"
)

# What recordings are judged by, besides who they are.
_JUDGED_BY = ("tr", "n_volumes", "mean_fd", "n_censored", "n_acquired", "seconds")


def assemble(staging: Staging, source: Source, quality: QualitySettings | None, against: Sequence[Cohort]) -> None:
    """Make the store of a build all of whose parts are done, and give it its name.

    Until the last step nothing of the build is changed, so stopped at any moment it can be done again.

    Parameters
    ----------
    staging, source
        The build.
    quality : QualitySettings or None
        What recordings must be like; None stores them all.
    against : sequence of Cohort
        Scans that must not be among these.

    Raises
    ------
    OpenBrainMassError
        If no recording is left, or something cannot be written.
    """
    table, reader, columns = _gathered(staging, source)
    file = staging.folder / "fingerprints.npy"
    write_fingerprints(file, len(table), _fingerprint_blocks(staging))
    fingerprints = Fingerprints(file)
    keep = np.ones(len(table), dtype=bool)
    judgement = None
    if quality is not None and len(table):
        others = [_other(cohort) for cohort in against]
        judgement = judge(table, source.participants, fingerprints, reader.at, quality, others)
        keep = ~table["recording_id"].isin(set(judgement.excluded["recording_id"])).to_numpy()
    final = staging.folder / "store"
    shutil.rmtree(final, ignore_errors=True)
    make_folder(final)
    excluded = _write_exclusions(final, staging, source, judgement)
    if not keep.any():
        sentence = _none_left(source, excluded, final)
        staging.remove()
        raise OpenBrainMassError(sentence)
    shards = _write_shards(final, staging, keep)
    _write_recordings(final, staging, keep, columns, judgement)
    write_fingerprints(final / "fingerprints.npy", int(keep.sum()), kept_blocks(fingerprints, keep))
    people = source.participants
    people = people[people["participant_id"].isin(set(table["participant_id"].to_numpy()[keep]))]
    write_tsv(final / "participants.tsv", people)
    warnings = judgement.warnings if judgement else pd.DataFrame(columns=list(WARNING_COLUMNS))
    if quality is not None and quality.check_order and not source.labelled and staging.facts["template"] is None:
        unchecked = pd.DataFrame([{"kind": "order-unchecked", "detail": _UNCHECKED.format(source.atlas.name)}])
        warnings = pd.concat([warnings, unchecked], ignore_index=True)[list(WARNING_COLUMNS)]
    write_tsv(final / "warnings.tsv", warnings)
    made_of = {
        "plan": staging.digest,
        "dtypes": sorted({dtype for part in staging.parts() for dtype in part["dtypes"]}),
        "quality": staging.facts["quality"],
        "reading": staging.facts["reading"],
        "compared_with": [cohort.name for cohort in against],
    }
    without_tr = int(table["tr"].isna().to_numpy()[keep].sum())
    counts = store_counts(int(keep.sum()), len(people), excluded, len(warnings), without_tr)
    seal_store(final, source.name, source.atlas, shards, made_of | counts)
    require_free(staging.out)
    install_folder(final, staging.out)
    staging.remove()


def store_counts(
    n_recordings: int, n_people: int, excluded: Mapping[str, int], n_warnings: int, without_tr: int
) -> dict[str, Any]:
    """What the manifest of every store counts; `excluded` is how many were left out for each reason."""
    return {
        "n_recordings": n_recordings,
        "n_people": n_people,
        "n_excluded": sum(excluded.values()),
        "excluded": dict(sorted(excluded.items())),
        "n_warnings": n_warnings,
        "n_recordings_without_tr": without_tr,
    }


def fingerprints_of(cohort: Cohort) -> Any:
    """The fingerprints of a cohort's recordings: those its store kept, else made now (float16 (n, 1024))."""
    if cohort.fingerprints is not None:
        return cohort.fingerprints
    fingerprint = Fingerprinter(cohort.atlas.n_rois)
    made = np.zeros((len(cohort), FINGERPRINT_LENGTH), dtype=np.float16)
    for row, bold in enumerate(cohort):
        made[row] = fingerprint(bold)
    return made


def _other(cohort: Cohort) -> tuple[str, pd.DataFrame, Any, Callable[[int], np.ndarray]]:
    return cohort.name, cohort.recordings, fingerprints_of(cohort), cohort.bold


def _gathered(staging: Staging, source: Source) -> tuple[pd.DataFrame, ShardReader, list[str]]:
    """What recordings are judged by, a reader of them, and the columns of their table."""
    places, shards = array("i"), array("i")
    columns: dict[str, None] = dict.fromkeys(RECORDING_COLUMNS)
    entries: list[dict[str, Any]] = []
    digests: list[str] = []
    measured: dict[str, array[float]] = {column: array("d") for column in _JUDGED_BY}
    for number, part in enumerate(staging.parts()):
        first = {entry["file"]: len(entries) + at for at, entry in enumerate(part["shards"])}
        entries += part["shards"]
        places.extend(staging.span(number).start + place for place in part["places"])
        for row in part["rows"]:
            columns |= dict.fromkeys(row)
            shards.append(first[row["shard"]])
            digests.append(row["digest"])
            for column, values in measured.items():
                values.append(_number(row.get(column)))
    known = ("recording_id", "participant_id", "session", "dx", "sex", "age")
    # Taken from the source's table, where its strings are already.
    table = source.recordings[[c for c in known if c in source.recordings]].iloc[np.array(places, dtype=int)]
    table = table.reset_index(drop=True).assign(digest=digests)
    for column, values in measured.items():
        if column in columns:
            table[column] = np.frombuffer(values) if len(values) else np.zeros(0)
    ids = table["recording_id"].to_numpy(dtype=object)
    reader = ShardReader(staging.folder, entries, np.array(shards, dtype=np.int32), ids)
    return table, reader, list(columns)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")


def _fingerprint_blocks(staging: Staging) -> Iterator[np.ndarray]:
    for part in staging.parts():
        yield Fingerprints(staging.folder / part["fingerprints"]["file"], part["fingerprints"]["sha256"])[:]


def _write_exclusions(final: Path, staging: Staging, source: Source, judgement: Judgement | None) -> Counter[str]:
    """Write who was left out and why, in the order of the source; returns how many for each reason."""
    counts: Counter[str] = Counter()
    judged = {}
    if judgement is not None:
        judged = {str(name): (reason, detail) for name, reason, detail in judgement.excluded.itertuples(index=False)}
    known = _known_of_people(source)

    def rows() -> Iterator[dict[str, Any]]:
        for row in source.exclusions.to_dict("records"):
            yield {str(key): plain(value) for key, value in row.items()}
        for number, part in enumerate(staging.parts()):
            found = {row["recording_id"]: row for row in part["exclusions"]}
            for row in part["rows"]:
                if row["recording_id"] in judged:
                    reason, detail = judged[row["recording_id"]]
                    found[row["recording_id"]] = {**row, "reason": reason, "detail": detail}
            if found:
                for recording_id in source.recordings["recording_id"].iloc[staging.span(number)]:
                    if recording_id in found:
                        yield found[recording_id]

    def completed() -> Iterator[dict[str, Any]]:
        for row in rows():
            counts[row["reason"]] += 1
            yield {**known(row.get("participant_id")), **{key: v for key, v in row.items() if v is not None}}

    write_rows(final / "exclusions.tsv", EXCLUSION_TABLE, completed())
    return counts


def _known_of_people(source: Source) -> Callable[[Any], dict[str, Any]]:
    """Site and class of a person, where the participants table tells them."""
    columns = [column for column in ("site", "dx", "sex") if column in source.participants]
    rows: dict[str, int] = {}

    def known(participant_id: Any) -> dict[str, Any]:
        if columns and not rows:
            rows.update(zip(source.participants["participant_id"], range(len(source.participants)), strict=True))
        if not columns or participant_id not in rows:
            return {}
        row = source.participants.iloc[rows[participant_id]]
        return {column: plain(row[column]) for column in columns}

    return known


def _none_left(source: Source, excluded: Counter[str], final: Path) -> str:
    counts = ", ".join(f"{count} {reason}" for reason, count in excluded.most_common())
    last = (final / "exclusions.tsv").read_text(encoding="utf-8").splitlines()[-1].split("\t")
    return (
        f"No recording of {source.name} is left: {counts} (such as {last[EXCLUSION_TABLE.index('detail')]}). Mend "
        "the data, or set other limits (--set quality.min_seconds=...)."
    )


def _write_shards(final: Path, staging: Staging, keep: np.ndarray) -> list[dict[str, Any]]:
    """Link the shards into the store, those with judged-out recordings written again without them."""
    shards: list[dict[str, Any]] = []
    start = 0
    for part in staging.parts():
        kept: dict[str, list[str]] = {entry["file"]: [] for entry in part["shards"]}
        for row, stays in zip(part["rows"], keep[start : start + len(part["rows"])], strict=True):
            if stays:
                kept[row["shard"]].append(row["recording_id"])
        start += len(part["rows"])
        for entry in part["shards"]:
            file, keys = entry["file"], kept[entry["file"]]
            if len(keys) == entry["n_recordings"]:
                link_file(staging.folder / file, final / file)
                shards.append(entry)
            elif (fewer := rewrite_shard(staging.folder / file, final / file, entry, keys)) is not None:
                shards.append(fewer)
    return shards


def _write_recordings(
    final: Path, staging: Staging, keep: np.ndarray, columns: list[str], judgement: Judgement | None
) -> None:
    typicality = None if judgement is None else judgement.measures["typicality"].to_numpy(dtype=float).round(4)

    def rows() -> Iterator[dict[str, Any]]:
        at = 0
        for part in staging.parts():
            for row in part["rows"]:
                if keep[at]:
                    yield row if typicality is None else {**row, "typicality": float(typicality[at])}
                at += 1

    if typicality is not None and "typicality" not in columns:
        columns = [*columns, "typicality"]
    write_rows(final / "recordings.tsv", columns, rows())
