"""A build in progress: its plan and the parts that are done, in a hidden folder beside the store to be.

Recordings are cut into chunks by position. A chunk's part (its shards, its fingerprints and last its table) is
written whole or not at all and knows the digest of what it was made of, so a build that was killed goes on with the
chunks that lack one, and what it makes does not depend on who read which chunk when.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from openbrainmass.cohort.source import Source
from openbrainmass.durable import lock, make_folder, read_json, write_json, write_text
from openbrainmass.errors import OpenBrainMassError

CHUNK, COSTLY_CHUNK = 256, 2
"""Recordings a chunk, and where reading one takes seconds."""

# What a store says of recordings itself; a table that claims it is of no use.
_RESERVED = ("shard", "shard_key")


@dataclass(frozen=True)
class Staging:
    """The folder of a build in progress.

    Attributes
    ----------
    folder, out : path
        The hidden folder, and the store that it will become.
    facts : dict
        What the build is of and how it is made; a build with others is another one.
    n_recordings, chunk : int
        How many recordings there are, and how many a chunk has.
    """

    folder: Path
    out: Path
    facts: dict[str, Any]
    n_recordings: int
    chunk: int

    @property
    def digest(self) -> str:
        """sha256 of the facts."""
        return hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()

    @property
    def n_chunks(self) -> int:
        """How many chunks the recordings are cut into."""
        return -(-self.n_recordings // self.chunk)

    @property
    def n_done(self) -> int:
        """How many chunks have a part, whatever it was made of."""
        return sum((self.folder / part_name(number)).is_file() for number in range(self.n_chunks))

    def span(self, number: int) -> slice:
        """Positions of a chunk's recordings."""
        return slice(number * self.chunk, min((number + 1) * self.chunk, self.n_recordings))

    def part(self, number: int) -> dict[str, Any]:
        """A part that is done."""
        return read_json(self.folder / part_name(number))

    def parts(self) -> Iterator[dict[str, Any]]:
        """All parts in order, one at a time."""
        return (self.part(number) for number in range(self.n_chunks))

    def done(self, number: int, digest: str) -> dict[str, Any] | None:
        """A chunk's part, if it is there and was made of the same."""
        with contextlib.suppress(OpenBrainMassError):
            part = self.part(number)
            files = [*part["shards"], part["fingerprints"]]
            if part["digest"] == digest and all(_size(self.folder / file["file"]) == file["bytes"] for file in files):
                return part
        return None

    def hold(self, shared: bool = False) -> contextlib.AbstractContextManager[None]:
        """Lock the folder against other builds; tasks of one build share it."""
        busy = (
            f"Another process is building {self.out} at this moment. Wait until it has ended, or stop it; then run the "
            "command again to go on where it stopped."
        )
        return lock(self.folder / "lock", busy, shared=shared)

    def remove(self) -> None:
        """Delete the folder and all that is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)


def part_name(number: int) -> str:
    """File name of a chunk's table."""
    return f"part-{number:05d}.json"


def write_part(folder: Path, number: int, part: dict[str, Any]) -> None:
    """Write a chunk's table; the chunk is done by that."""
    write_text(folder / part_name(number), json.dumps(part, allow_nan=False))


def staging_folder(out: Path) -> Path:
    """Where the build of a store lies until it is finished."""
    return out.absolute().with_name(f".{out.absolute().name}.incomplete")


def open_staging(staging: Staging, resume: bool) -> None:
    """Make the folder, or check that the one that is there is of the same build. To be called while it is held.

    Raises
    ------
    OpenBrainMassError
        If it holds a build of something else.
    """
    plan = staging.folder / "plan.json"
    if not resume or _nothing_read(staging):
        for path in staging.folder.iterdir():
            if path.name != "lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    if plan.is_file():
        refuse_other_plan(read_json(plan), staging)
    else:
        write_json(plan, staging.facts)


def _nothing_read(staging: Staging) -> bool:
    """Whether what is there is another build none of whose recordings could be read, as with a wrong atlas."""
    plan = staging.folder / "plan.json"
    if not plan.is_file() or read_json(plan) == staging.facts:
        return False
    return any(staging.folder.glob("part-*.json")) and not any(staging.folder.glob("shard-*"))


@contextlib.contextmanager
def held_staging(staging: Staging, resume: bool = True) -> Iterator[None]:
    """Make or take up the folder of a build, and keep other builds of the same store out meanwhile."""
    make_folder(staging.folder)
    with staging.hold():
        open_staging(staging, resume)
        yield


def refuse_other_plan(earlier: Mapping[str, Any], staging: Staging) -> None:
    """Say how an earlier build differs from this one, if it does."""
    then, now = _flat(earlier), _flat(staging.facts)
    changes = [
        f"{key} was {then.get(key)} and is {now.get(key)}"
        for key in dict.fromkeys((*then, *now))
        if then.get(key) != now.get(key)
    ]
    if changes:
        raise OpenBrainMassError(
            f"{staging.folder} holds an unfinished build of {staging.out} that differs: {'; '.join(changes[:5])}. "
            f"Run the earlier command again to go on with that one, or remove {staging.folder} to start anew."
        )


def unfinished(out: Path) -> str | None:
    """How far an unfinished build of a store has come and how to go on, in a sentence; None where there is none."""
    folder = staging_folder(out)
    if not (folder / "plan.json").is_file():
        return None
    plan = read_json(folder / "plan.json")
    n_chunks = -(-plan["n_recordings"] // plan["chunk"])
    done = len(list(folder.glob("part-*.json")))
    return (
        f"{out} is not built yet: {done} of {n_chunks} parts are done in {folder}. Run the same command again to go on "
        "where it stopped."
    )


def _flat(facts: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        flat |= _flat(value, f"{above}{key}.") if isinstance(value, Mapping) and value else {f"{above}{key}": value}
    return flat


def chunk_rows(source: Source, span: slice) -> list[dict[str, Any]]:
    """Rows of the recordings table as JSON can hold them, missing values as None."""
    rows = source.recordings.iloc[span].to_dict("records")
    return [{str(key): plain(value) for key, value in row.items() if key not in _RESERVED} for row in rows]


def plain(value: Any) -> Any:
    """A value as JSON can hold it; missing ones become None."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value):
        return None
    return value if isinstance(value, str | int | float | bool) else str(value)


def chunk_digest(staging_digest: str, rows: list[dict[str, Any]], folder: Path | None) -> str:
    """sha256 of what a chunk's part is made of: the plan, the rows, and size and time of change of their files."""
    stamps = [_stamp(folder, row.get("file")) for row in rows]
    return hashlib.sha256(json.dumps([staging_digest, rows, stamps]).encode()).hexdigest()


def _stamp(folder: Path | None, file: Any) -> tuple[int, int] | None:
    if folder is None or not isinstance(file, str):
        return None
    try:
        found = os.stat(folder / file)
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1
