"""One store of several: shards are linked, people joined, and scans that are in two of them found.

Appending is merging, too: the old store and the new one become a third.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from openbrainmass.cohort.assembly import EXCLUSION_TABLE, fingerprints_of, store_counts
from openbrainmass.cohort.cohort import RECORDING_COLUMNS, Cohort
from openbrainmass.cohort.quality import QualitySettings, judge
from openbrainmass.cohort.shards import Fingerprints, kept_blocks, rewrite_shard, write_fingerprints
from openbrainmass.cohort.staging import unfinished
from openbrainmass.cohort.store import INTERNAL, WARNING_COLUMNS, load_cohort, read_manifest, read_shards, seal_store
from openbrainmass.durable import link_file, new_folder, read_tsv, require_free, write_tsv
from openbrainmass.errors import OpenBrainMassError

_BLOCK = 4096


@dataclass(frozen=True)
class _Member:
    """A store to be merged; tables have the ids of the merged store."""

    path: Path
    manifest: dict[str, Any]
    cohort: Cohort
    recordings: pd.DataFrame
    participants: pd.DataFrame
    exclusions: pd.DataFrame


def merge_stores(
    stores: Sequence[str | Path], out: str | Path, name: str | None = None, quality: QualitySettings | None = None
) -> Cohort:
    """Make one store of several of the same atlas.

    Where the stores are of different datasets, ids become ``dataset/id``, so that people who happen to have the same
    id stay apart and a checkpoint still knows whom it has seen. Where they are of one dataset, people are joined.
    No recording is written again, except shards that lose one.

    Parameters
    ----------
    stores : sequence of path
        At least two.
    out : path
        The new store's folder; must not exist yet (or be empty).
    name : str, optional
        Name of the new dataset; that of the stores, joined by ``+``, where it is not given.
    quality : QualitySettings, optional
        What recordings must be like, with which scans that are in two of the stores are found.

    Returns
    -------
    Cohort
        The store, opened.

    Raises
    ------
    OpenBrainMassError
        If the atlases differ, a person has contradicting values, or a recording id stands for two scans.
    """
    if len(stores) < 2:
        raise OpenBrainMassError(f"Merging needs at least two stores, {len(stores)} was given. Name the others, too.")
    require_free(out)
    if sentence := unfinished(Path(out)):
        raise OpenBrainMassError(f"{sentence} Or name another output.")
    quality = quality or QualitySettings()
    opened = [(Path(store), read_manifest(Path(store)), load_cohort(store)) for store in stores]
    _refuse_other_atlases(opened)
    dataset, prefixed = _naming([(manifest["dataset"], cohort) for _, manifest, cohort in opened], name)
    members = [_member(*store, prefixed) for store in opened]
    people = _joined_people(members)
    recordings, twice = _joined_recordings(members)
    with new_folder(out) as folder:
        _write(folder, dataset, members, recordings, people, twice, quality)
    return load_cohort(out)


def _refuse_other_atlases(opened: list[tuple[Path, dict[str, Any], Cohort]]) -> None:
    first, atlas = opened[0][0], opened[0][2].atlas
    for path, _, cohort in opened[1:]:
        if cohort.atlas.digest != atlas.digest:
            raise OpenBrainMassError(
                f"{first} has the atlas {atlas.name} ({atlas.n_rois} ROIs) and {path} {cohort.atlas.name} "
                f"({cohort.atlas.n_rois} ROIs). Merge stores of the same atlas, or bring one to the atlas of the other "
                "(`openbrainmass bridge`)."
            )


def _naming(datasets: list[tuple[str, Cohort]], name: str | None) -> tuple[str, bool]:
    """Name of the merged dataset, and whether ids must name theirs."""
    merged_before = any(_is_prefixed(cohort) for _, cohort in datasets)
    names = list(dict.fromkeys(dataset for dataset, _ in datasets))
    if not merged_before and len(names) == 1 and name in {None, names[0]}:
        return names[0], False
    return name or "+".join(dict.fromkeys(piece for one in names for piece in one.split("+"))), True


def _is_prefixed(cohort: Cohort) -> bool:
    return bool(cohort.participants["participant_id"].str.contains("/", regex=False).any())


def _member(path: Path, manifest: dict[str, Any], cohort: Cohort, prefixed: bool) -> _Member:
    own = f"{manifest['dataset']}/" if prefixed and not _is_prefixed(cohort) else ""
    tables = []
    for table in (cohort.recordings, cohort.participants, cohort.exclusions):
        # As objects, whole numbers stay whole where another store lacks the column.
        table = table.astype(object)
        for column in ("recording_id", "participant_id"):
            if column in table:
                table[column] = [own + value if isinstance(value, str) else value for value in table[column]]
        tables.append(table)
    shards, keys = read_shards(path)
    return _Member(path, manifest, cohort, tables[0].assign(shard=shards, shard_key=keys), *tables[1:])


def _joined_people(members: list[_Member]) -> pd.DataFrame:
    """All people, one row each; what two stores know of a person must agree."""
    table = pd.concat([member.participants for member in members], ignore_index=True)
    repeated = table["participant_id"].duplicated(keep=False)
    contradictions = []
    for person, rows in table[repeated].groupby("participant_id", sort=False):
        for column in rows.columns:
            values = list(dict.fromkeys(_comparable(value) for value in rows[column].dropna()))
            if len(values) > 1:
                contradictions.append(f"{column} of {person} is " + " and ".join(str(value) for value in values))
    if contradictions:
        raise OpenBrainMassError(
            f"{' and '.join(str(member.path) for member in members)} contradict each other: "
            f"{'; '.join(contradictions[:5])} ({len(contradictions)} in all). Find out which is right and build that "
            "store again."
        )
    # The first value that is known, column by column; people in the order in which they first appear.
    return table.groupby("participant_id", sort=False, as_index=False).first() if repeated.any() else table


def _comparable(value: Any) -> Any:
    try:
        return float(value)
    except ValueError:
        return value


def _joined_recordings(members: list[_Member]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """All recordings, with whose they are (``member`` and ``row``), and those that are in two of the stores."""
    parts = [
        member.recordings.assign(member=number, row=np.arange(len(member.recordings)))
        for number, member in enumerate(members)
    ]
    table = pd.concat(parts, ignore_index=True)
    repeated = table["recording_id"].duplicated()
    again = table[repeated]
    wanted = table[table["recording_id"].isin(set(again["recording_id"])) & ~repeated]
    first = {row["recording_id"]: row for row in wanted.to_dict("records")}
    details = []
    for row in again.to_dict("records"):
        earlier = first[row["recording_id"]]
        paths = members[earlier["member"]].path, members[row["member"]].path
        if earlier["digest"] != row["digest"]:
            raise OpenBrainMassError(
                f"{paths[0]} and {paths[1]} both have a recording {row['recording_id']}, but with different values. "
                "Find out which is right and build the other store again without it, or under another dataset name "
                "(--dataset)."
            )
        details.append(f"the same recording is in {paths[0].name}")
    return table[~repeated].reset_index(drop=True), again.assign(reason="duplicate", detail=details)


def _write(
    folder: Path,
    dataset: str,
    members: list[_Member],
    recordings: pd.DataFrame,
    people: pd.DataFrame,
    twice: pd.DataFrame,
    quality: QualitySettings,
) -> None:
    path = folder / "fingerprints.npy"
    write_fingerprints(path, len(recordings), _fingerprint_blocks(members, recordings))
    fingerprints = Fingerprints(path)
    judgement = judge(recordings.infer_objects(), people, fingerprints, _reader(members, recordings), quality)
    left_out = judgement.excluded.set_index("recording_id")
    keep = ~recordings["recording_id"].isin(set(left_out.index)).to_numpy()
    judged = recordings[~keep]
    judged = judged.assign(**{c: left_out.loc[judged["recording_id"], c].to_numpy() for c in ("reason", "detail")})
    typicality = judgement.measures["typicality"].to_numpy(dtype=float).round(4)
    recordings = recordings.assign(typicality=typicality)[keep]
    if recordings.empty:
        raise OpenBrainMassError(
            f"No recording of {dataset} is left. Set other limits (--set quality.min_typicality=...)."
        )
    shards, recordings = _write_shards(folder, members, recordings)
    write_fingerprints(path, len(recordings), kept_blocks(fingerprints, keep))
    exclusions = _exclusions(members, people, [twice, judged])
    kept_people = set(recordings["participant_id"])
    # One store may lack the recording of a person that another has.
    lacking = exclusions["reason"].eq("no-recording") & exclusions["participant_id"].isin(kept_people)
    exclusions = exclusions[~lacking]
    people = people[people["participant_id"].isin(kept_people)]
    others = [c for c in recordings.columns if c not in (*RECORDING_COLUMNS, "member", "row")]
    write_tsv(folder / "recordings.tsv", recordings[[*RECORDING_COLUMNS, *others]])
    write_tsv(folder / "participants.tsv", people)
    write_tsv(folder / "exclusions.tsv", exclusions)
    warnings = pd.concat([judgement.warnings, *map(_lasting_warnings, members)], ignore_index=True)
    write_tsv(folder / "warnings.tsv", warnings[list(WARNING_COLUMNS)])
    made_of = {
        "merged_from": [
            {"dataset": member.manifest["dataset"], "recordings": member.manifest["tables"]["recordings.tsv"]}
            for member in members
        ],
        "dtypes": sorted({dtype for member in members for dtype in member.manifest["dtypes"]}),
        "quality": quality.model_dump(mode="json"),
    }
    without_tr = int(recordings["tr"].isna().sum())
    counts = store_counts(len(recordings), len(people), Counter(exclusions["reason"]), len(warnings), without_tr)
    seal_store(folder, dataset, members[0].cohort.atlas, shards, made_of | counts)


def _lasting_warnings(member: _Member) -> pd.DataFrame:
    """Warnings of a store that judging its recordings again does not bring back."""
    file = member.path / "warnings.tsv"
    table = read_tsv(file) if file.is_file() else pd.DataFrame(columns=list(WARNING_COLUMNS))
    table = table[table["kind"] == "order-unchecked"].astype(object)
    return table.assign(detail=[f"{member.manifest['dataset']}: {detail}" for detail in table["detail"]])


def _fingerprint_blocks(members: list[_Member], recordings: pd.DataFrame) -> Iterator[np.ndarray]:
    for number, member in enumerate(members):
        keep = np.zeros(len(member.recordings), dtype=bool)
        keep[recordings.loc[recordings["member"] == number, "row"].to_numpy(dtype=int)] = True
        known = fingerprints_of(member.cohort)
        for start in range(0, len(keep), _BLOCK):
            yield known[start : start + _BLOCK][keep[start : start + _BLOCK]]


def _reader(members: list[_Member], recordings: pd.DataFrame) -> Callable[[int], np.ndarray]:
    whose, rows = recordings["member"].to_numpy(dtype=int), recordings["row"].to_numpy(dtype=int)
    return lambda position: members[whose[position]].cohort.bold(int(rows[position]))


def _write_shards(
    folder: Path, members: list[_Member], recordings: pd.DataFrame
) -> tuple[list[dict[str, Any]], pd.DataFrame]:
    """Link the shards of the members under new names, those that lose a recording written again without it."""
    shards: list[dict[str, Any]] = []
    new_name: dict[tuple[int, str], str] = {}
    kept = {key: list(rows["shard_key"]) for key, rows in recordings.groupby(["member", "shard"], sort=False)}
    for number, member in enumerate(members):
        for entry in member.manifest["shards"]:
            keys = kept.get((number, entry["file"]), [])
            source, target = member.path / entry["file"], folder / f"shard-{len(shards):05d}.safetensors"
            if len(keys) == entry["n_recordings"]:
                link_file(source, target)
                shards.append({**entry, "file": target.name})
            elif (fewer := rewrite_shard(source, target, entry, keys)) is not None:
                shards.append(fewer)
            new_name[number, entry["file"]] = target.name
    files = [new_name[key] for key in zip(recordings["member"], recordings["shard"], strict=True)]
    recordings = recordings.assign(shard=files)
    if (recordings["shard_key"] == recordings["recording_id"]).all():
        recordings = recordings.drop(columns="shard_key")
    inside = [column for column in INTERNAL if column in recordings]
    return shards, recordings[[*(c for c in recordings.columns if c not in inside), *inside]]


def _exclusions(members: list[_Member], people: pd.DataFrame, more: list[pd.DataFrame]) -> pd.DataFrame:
    """What the stores had left out already, then what was left out now, each with site and class."""
    tables = [*(member.exclusions for member in members), *more]
    tables = [table.reindex(columns=list(EXCLUSION_TABLE)).astype(object) for table in tables if len(table)]
    if not tables:
        return pd.DataFrame(columns=list(EXCLUSION_TABLE), dtype=object)
    exclusions = pd.concat(tables, ignore_index=True)
    for column in ("site", "dx"):
        if column in people:
            known = dict(zip(people["participant_id"], people[column], strict=True))
            exclusions[column] = exclusions[column].fillna(exclusions["participant_id"].map(known))
    return exclusions
