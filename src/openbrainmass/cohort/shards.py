"""Shards: safetensors files of some recordings each, and the file of all fingerprints; written once, read at random."""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openbrainmass.durable import new_file, sha256_file, write_tensors
from openbrainmass.errors import OpenBrainMassError

SHARD_BYTES = 16 << 20
"""Largest shard; writing holds about three of them at once. A single larger recording has a shard of its own."""

FINGERPRINT_LENGTH = 1024

REBUILD = "The store is damaged; build it again with `openbrainmass cohort`."
"""What to do about files that are not those that were written."""

_DTYPES = (np.dtype("<f2"), np.dtype("<f4"))
_CODES = {"F16": 0, "F32": 1}
_OPEN_AT_ONCE = 128
_BLOCK = 4096


def converter(dtype: str) -> Callable[[np.ndarray, str], np.ndarray]:
    """How BOLD is brought into the type that a store holds.

    Parameters
    ----------
    dtype : {"auto", "float32", "float16"}
        "auto" keeps float16 where the source is float16 and gives float32 otherwise.

    Returns
    -------
    callable
        ``convert(bold, recording_id) -> ndarray`` of the same shape, little-endian and C-contiguous.

    Raises
    ------
    OpenBrainMassError
        If the type is another; later, if a value is too large for it.
    """
    if dtype not in {"auto", "float32", "float16"}:
        raise OpenBrainMassError(f"A store cannot hold {dtype!r}; choose auto, float32 or float16 as dtype.")

    def convert(bold: np.ndarray, recording_id: str) -> np.ndarray:
        half = dtype == "float16" or (dtype == "auto" and bold.dtype == np.float16)
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(bold, dtype=_DTYPES[0 if half else 1])
        if np.isinf(stored).any() and not np.isinf(bold).any():
            most = np.nanmax(np.abs(bold))
            if not half:
                raise OpenBrainMassError(
                    f"Recording {recording_id} has values up to {most:.3g}, which no BOLD has and float32 cannot hold. "
                    "Mend or leave out its file."
                )
            raise OpenBrainMassError(
                f"Recording {recording_id} has values up to {most:.3g}, which float16 cannot hold "
                "(65504 at most). Store float32 (--dtype float32), or scale the BOLD."
            )
        return stored

    return convert


class ShardWriter:
    """Packs recordings into shards of at most `SHARD_BYTES`.

    Parameters
    ----------
    folder : path
        Where the shards go.
    stem : str
        Name of the first shard, without suffix; the second is ``stem-1``.
    """

    def __init__(self, folder: Path, stem: str) -> None:
        self._folder, self._stem = folder, stem
        self._waiting: dict[str, np.ndarray] = {}
        self.entries: list[dict[str, Any]] = []
        """What the manifest says of each shard: ``file n_recordings bytes sha256``."""

    def add(self, recording_id: str, bold: np.ndarray) -> str:
        """Take a recording's BOLD (n_volumes, n_rois) in; returns the name of the shard that will hold it."""
        if self._waiting and sum(array.nbytes for array in self._waiting.values()) + bold.nbytes > SHARD_BYTES:
            self.close()
        self._waiting[recording_id] = bold
        return self._name()

    def _name(self) -> str:
        return f"{self._stem}-{len(self.entries)}.safetensors" if self.entries else f"{self._stem}.safetensors"

    def close(self) -> None:
        """Write what waits."""
        if self._waiting:
            self.entries.append(_write_shard(self._folder / self._name(), self._waiting))
            self._waiting = {}


def _write_shard(path: Path, recordings: dict[str, np.ndarray]) -> dict[str, Any]:
    digest = write_tensors(path, recordings)
    size = path.stat().st_size
    return {"file": path.name, "n_recordings": len(recordings), "bytes": size, "sha256": digest}


def rewrite_shard(source: Path, target: Path, entry: dict[str, Any], keys: Collection[str]) -> dict[str, Any] | None:
    """Write a shard again with some of its recordings only.

    Parameters
    ----------
    source, target : path
        The shard and the new one.
    entry : dict
        What the manifest says of it.
    keys : collection of str
        Which recordings stay, by their names in the shard.

    Returns
    -------
    dict or None
        What the manifest says of the new shard; None, and nothing is written, where no recording stays.
    """
    if not keys:
        return None
    header, start = open_shard(source, entry["sha256"])
    chosen = {}
    with source.open("rb") as handle:
        for key in keys:
            code, shape, offset = header[key]
            handle.seek(start + offset)
            count = shape[0] * shape[1]
            chosen[key] = np.fromfile(handle, _DTYPES[code], count=count).reshape(shape)
    return _write_shard(target, chosen)


def open_shard(path: Path, sha256: str) -> tuple[dict[str, tuple[int, tuple[int, int], int]], int]:
    """Check a shard's bytes and read its header.

    Returns
    -------
    header : dict
        For each recording the code of its type, its shape (n_volumes, n_rois) and its place among the data.
    start : int
        Where the data begin.

    Raises
    ------
    OpenBrainMassError
        If the file is missing or was changed.
    """
    if not path.is_file() or sha256_file(path) != sha256:
        raise OpenBrainMassError(
            f"The shard {path} is missing or its bytes are not those that were written (sha256 differs). {REBUILD}"
        )
    with path.open("rb") as handle:
        length = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(length))
    header.pop("__metadata__", None)
    places = {
        key: (_CODES[entry["dtype"]], tuple(entry["shape"]), entry["data_offsets"][0]) for key, entry in header.items()
    }
    return places, 8 + length


class _Descriptor:
    """An open file that closes when nobody reads from it any more, so that one thread cannot close another's."""

    def __init__(self, path: Path) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class ShardReader:
    """Reads one recording at a time from shards; keeps where each lies, never its data.

    Parameters
    ----------
    folder : path
        Where the shards are.
    entries : sequence of dict
        ``file`` and ``sha256`` of each shard.
    shards : ndarray (n_recordings,), int
        For each recording, its shard's position among the entries.
    recording_ids : sequence of str
        What the recordings are called.
    keys : sequence of str, optional
        What they are called in the shards, where that differs.
    """

    def __init__(
        self,
        folder: Path,
        entries: Sequence[dict[str, Any]],
        shards: np.ndarray,
        recording_ids: Sequence[str],
        keys: Sequence[str] | None = None,
    ) -> None:
        self._folder = folder
        self._files = [(entry["file"], entry["sha256"]) for entry in entries]
        self._shards = shards.astype(np.int32)
        self._ids = recording_ids
        self._keys = recording_ids if keys is None else keys
        self._offsets = np.full(len(shards), -1, dtype=np.int64)
        self._shapes = np.zeros((len(shards), 3), dtype=np.int32)
        self._row_of: dict[str, int] | None = None
        self._open: OrderedDict[int, _Descriptor] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        # Another process opens its own files.
        return {**self.__dict__, "_open": OrderedDict(), "_row_of": None}

    def __call__(self, recording_id: str) -> np.ndarray:
        """BOLD of a recording (n_volumes, n_rois), in memory of its own."""
        if self._row_of is None:
            self._row_of = {name: row for row, name in enumerate(self._ids)}
        return self.at(self._row_of[recording_id])

    def at(self, row: int) -> np.ndarray:
        """BOLD of the recording at a position (n_volumes, n_rois), in memory of its own."""
        shard, offset = int(self._shards[row]), int(self._offsets[row])
        if offset < 0:
            self._locate(shard)
            offset = int(self._offsets[row])
        file = self._file(shard)
        n_volumes, n_rois, code = self._shapes[row].tolist()
        bold = np.empty((n_volumes, n_rois), _DTYPES[code])
        # Plain reads, not a map: pages of a map would count as memory of the process and grow with the store.
        if os.preadv(file.number, [bold.data], offset) != bold.nbytes:
            raise OpenBrainMassError(f"The shard {self._folder / self._files[shard][0]} was cut meanwhile. {REBUILD}")
        return bold

    def _locate(self, shard: int) -> None:
        file, sha256 = self._files[shard]
        header, start = open_shard(self._folder / file, sha256)
        for row in np.flatnonzero(self._shards == shard).tolist():
            if self._keys[row] not in header:
                raise OpenBrainMassError(f"The shard {self._folder / file} lacks {self._keys[row]}. {REBUILD}")
            code, shape, offset = header[self._keys[row]]
            self._shapes[row] = (*shape, code)
            self._offsets[row] = start + offset

    def _file(self, shard: int) -> _Descriptor:
        file = self._open.get(shard)
        if file is None:
            file = self._open[shard] = _Descriptor(self._folder / self._files[shard][0])
            while len(self._open) > _OPEN_AT_ONCE:
                self._open.popitem(last=False)
        return file


class Fingerprints:
    """The fingerprints of a store, read from disk by slices.

    Parameters
    ----------
    path : path
        An ``.npy`` file, float16 (n_recordings, 1024).
    sha256 : str, optional
        What its bytes must hash to; checked once, when the first slice is read.

    Examples
    --------
    >>> Fingerprints(store / "fingerprints.npy")[256:512].shape  # doctest: +SKIP
    (256, 1024)
    """

    def __init__(self, path: Path, sha256: str | None = None) -> None:
        self.path, self._sha256 = path, sha256
        try:
            with path.open("rb") as handle:
                np.lib.format.read_magic(handle)
                self.shape, _, dtype = np.lib.format.read_array_header_1_0(handle)
                self._start = handle.tell()
        except (OSError, ValueError) as error:
            raise OpenBrainMassError(f"The fingerprints {path} are missing or damaged ({error}). {REBUILD}") from error
        if dtype != _DTYPES[0] or self.shape[1:] != (FINGERPRINT_LENGTH,):
            raise OpenBrainMassError(f"{path} holds {dtype} {self.shape}; float16 (n, 1024) was expected. {REBUILD}")

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Fingerprints of consecutive recordings: float16 (n, 1024)."""
        start, stop, step = rows.indices(len(self))
        if step != 1:
            raise ValueError(f"fingerprints are read in one direction without gaps, not by {rows}")
        if self._sha256 is not None and sha256_file(self.path) != self._sha256:
            raise OpenBrainMassError(f"The bytes of {self.path} are not those that were written. {REBUILD}")
        self._sha256 = None
        count = max(0, stop - start) * FINGERPRINT_LENGTH
        offset = self._start + start * FINGERPRINT_LENGTH * 2
        return np.fromfile(self.path, _DTYPES[0], count=count, offset=offset).reshape(-1, FINGERPRINT_LENGTH)


def write_fingerprints(path: Path, n_recordings: int, blocks: Iterable[np.ndarray]) -> None:
    """Write fingerprints block by block (each float16 (n, 1024)) as one file that `Fingerprints` reads."""
    header = {"descr": "<f2", "fortran_order": False, "shape": (n_recordings, FINGERPRINT_LENGTH)}
    with new_file(path) as handle:
        np.lib.format.write_array_header_1_0(handle, header)
        for block in blocks:
            handle.write(np.ascontiguousarray(block, dtype=_DTYPES[0]).data)


def kept_blocks(fingerprints: Fingerprints, keep: np.ndarray) -> Iterable[np.ndarray]:
    """Some of the fingerprints, a block at a time; `keep` is a mask of their length."""
    for start in range(0, len(fingerprints), _BLOCK):
        yield fingerprints[start : start + _BLOCK][keep[start : start + _BLOCK]]
