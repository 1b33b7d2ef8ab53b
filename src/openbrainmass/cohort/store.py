"""The store: a cohort as a folder of safetensors shards and tables, checked before it is trusted.

The manifest is written last, so a folder without one is no store. When a store is opened, the tables' sha256 and
the sizes of the shards and fingerprints are checked; their sha256 is checked once, when they are first read.
"""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from openbrainmass.atlas import Atlas
from openbrainmass.cohort.cohort import Cohort
from openbrainmass.cohort.shards import REBUILD, Fingerprints, ShardReader
from openbrainmass.cohort.staging import unfinished
from openbrainmass.durable import read_json, read_tsv, sha256_file, write_json, write_tsv
from openbrainmass.errors import OpenBrainMassError

FORMAT = "openbrainmass-store"
FORMAT_VERSION = 2
"""Version 2 has fingerprints and warnings; stores of version 1 can be opened, too."""

WARNING_COLUMNS = ("kind", "recording_id", "participant_id", "detail")
"""Columns of the table of what was kept but is strange."""

_TABLES = ("recordings.tsv", "participants.tsv", "exclusions.tsv", "atlas.tsv")
INTERNAL = ("shard", "shard_key")
"""Columns of the recordings table that only a store's reader needs."""


def save_cohort(cohort: Cohort, out: str | Path, dtype: str = "auto", progress: bool = False) -> Cohort:
    """Store a cohort as it is, without judging it.

    Parameters
    ----------
    cohort : Cohort
        For instance a simulated one, or a selection.
    out : path
        The store's folder; must not exist yet (or be empty).
    dtype : {"auto", "float32", "float16"}
        How BOLD is stored; "auto" keeps float16 where the source is float16 and stores float32 otherwise.
    progress : bool
        Whether a progress bar is drawn (on standard error).

    Returns
    -------
    Cohort
        The store, opened.

    Raises
    ------
    OpenBrainMassError
        If `out` is taken or cannot be written, there is no recording, or values overflow `dtype`.
    """
    from openbrainmass.cohort.build import store_as_it_is

    store_as_it_is(cohort, Path(out), dtype, progress)
    return load_cohort(out)


def load_cohort(path: str | Path) -> Cohort:
    """Open a store; BOLD is read when it is asked for.

    Parameters
    ----------
    path : path
        A folder made by `build_store`, `save_cohort` or ``openbrainmass cohort``.

    Raises
    ------
    OpenBrainMassError
        If the folder is no store, a table was changed, or a shard is missing or cut.
    """
    path = Path(path)
    manifest = read_manifest(path)
    for name, digest in manifest["tables"].items():
        if not (path / name).is_file() or sha256_file(path / name) != digest:
            raise OpenBrainMassError(
                f"{path / name} is missing or was changed since the store was built; stores are never edited. {REBUILD}"
            )
    for entry in (*manifest["shards"], *filter(None, [manifest.get("fingerprints")])):
        found = (path / entry["file"]).stat().st_size if (path / entry["file"]).is_file() else 0
        if found != entry["bytes"]:
            raise OpenBrainMassError(
                f"The shard {path / entry['file']} has {found:,} bytes, {entry['bytes']:,} were expected: it is "
                f"missing or cut. {REBUILD}"
            )
    recordings = read_tsv(path / "recordings.tsv")
    recordings["dead_rois"] = recordings["dead_rois"].fillna("")
    # A column without any value comes back as text.
    recordings["tr"] = recordings["tr"].astype(float)
    return Cohort(
        manifest["dataset"],
        recordings.drop(columns=[column for column in INTERNAL if column in recordings]),
        read_tsv(path / "participants.tsv"),
        _read_atlas(path, manifest),
        _reader(path, manifest, recordings),
        read_tsv(path / "exclusions.tsv"),
        read_fingerprints(path, manifest),
    )


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a store.

    Raises
    ------
    OpenBrainMassError
        If the folder is no store (how to make one of it is said), or one of another version.
    """
    if not (path / "manifest.json").is_file():
        if sentence := unfinished(path):
            raise OpenBrainMassError(sentence)
        if not path.is_dir():
            raise OpenBrainMassError(
                f"The store {path} does not exist. Check the path, or make it: `openbrainmass cohort`."
            )
        remedy = "Name a folder made by `openbrainmass cohort`."
        if (path / "participants.tsv").is_file():
            remedy = f"It is a folder of recordings: run `openbrainmass cohort {path} --out STORE` first."
        raise OpenBrainMassError(f"{path} has no manifest.json, so it is no store. {remedy}")
    manifest = read_json(path / "manifest.json")
    needed = {"format", "version", "dataset", "atlas", "tables", "shards"}
    known = isinstance(manifest, dict) and needed <= set(manifest) and set(_TABLES) <= set(manifest["tables"])
    found = (manifest.get("format"), manifest.get("version")) if isinstance(manifest, dict) else None
    if not known or found not in {(FORMAT, number) for number in range(1, FORMAT_VERSION + 1)}:
        raise OpenBrainMassError(
            f"{path / 'manifest.json'} is not the manifest of a store of version {FORMAT_VERSION} or before (found "
            f"{found}). Build the store again with this version of openbrainmass."
        )
    return manifest


def read_fingerprints(path: Path, manifest: dict[str, Any]) -> Fingerprints | None:
    """The fingerprints of a store's recordings; None in a store of version 1."""
    entry = manifest.get("fingerprints")
    return Fingerprints(path / entry["file"], entry["sha256"]) if entry else None


def read_shards(path: Path) -> tuple[list[str], list[str]]:
    """For each recording of a store, the shard that holds it and what it is called there."""
    recordings = read_tsv(path / "recordings.tsv")
    return list(recordings["shard"]), list(recordings.get("shard_key", recordings["recording_id"]))


def _reader(path: Path, manifest: dict[str, Any], recordings: pd.DataFrame) -> ShardReader:
    position = {entry["file"]: number for number, entry in enumerate(manifest["shards"])}
    shards = np.fromiter(
        (position[file] for file in recordings["shard"].to_numpy()), dtype=np.int32, count=len(recordings)
    )
    ids = recordings["recording_id"].to_numpy(dtype=object)
    keys = recordings["shard_key"].to_numpy(dtype=object) if "shard_key" in recordings else None
    return ShardReader(path, manifest["shards"], shards, ids, keys)


def _read_atlas(path: Path, manifest: dict[str, Any]) -> Atlas:
    # Everything as text: an ROI may be called 01 or NA.
    table = pd.read_csv(path / "atlas.tsv", sep="\t", dtype=str, keep_default_na=False)
    columns: dict[str, Any] = {
        field: tuple(table[column])
        for field, column in (("networks", "network"), ("hemispheres", "hemisphere"))
        if column in table
    }
    if "x" in table:
        columns["coords_mm"] = table[["x", "y", "z"]].replace("n/a", "nan").to_numpy(dtype=float)
    return Atlas(manifest["atlas"]["name"], tuple(table["roi_name"]), **columns)


def seal_store(folder: Path, dataset: str, atlas: Atlas, shards: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Write the atlas and, last of all, the manifest of a folder that has everything else of a store.

    Parameters
    ----------
    folder : path
        With ``recordings.tsv participants.tsv exclusions.tsv warnings.tsv fingerprints.npy`` and the shards.
    dataset : str
        Name of the dataset.
    atlas : Atlas
        What the columns of every BOLD array are.
    shards : list of dict
        ``file n_recordings bytes sha256`` of each shard.
    facts : dict
        What else the manifest tells.
    """
    write_tsv(folder / "atlas.tsv", atlas.table())
    tables = (*_TABLES, "warnings.tsv")
    fingerprints = folder / "fingerprints.npy"
    manifest = {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "package_version": version("openbrainmass"),
        "dataset": dataset,
        "atlas": {"name": atlas.name, "digest": atlas.digest},
        "n_rois": atlas.n_rois,
        **facts,
        "tables": {name: sha256_file(folder / name) for name in tables},
        "fingerprints": {
            "file": fingerprints.name,
            "bytes": fingerprints.stat().st_size,
            "sha256": sha256_file(fingerprints),
        },
        "shards": shards,
    }
    write_json(folder / "manifest.json", manifest)
