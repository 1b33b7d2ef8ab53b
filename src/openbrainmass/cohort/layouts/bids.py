"""BIDS names: the entities of a file, what its recording is called, and its sidecars with inheritance."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from openbrainmass.cohort.layouts.layout import Found
from openbrainmass.errors import OpenBrainMassError

RECORDING = ("sub", "ses", "task", "acq", "ce", "rec", "dir", "run", "echo")
"""Entities that tell recordings apart; all others tell versions of one recording apart."""

_SECONDS = (0.05, 20.0)
_DEEPEST = 12
_STORE = frozenset({"manifest.json", "recordings.tsv", "fingerprints.npy"})


def entities(name: str) -> dict[str, str]:
    """Entities of a BIDS file name, in its order, without its suffix.

    Parameters
    ----------
    name : str
        A file name or a path.

    Examples
    --------
    >>> entities("func/sub-01_task-rest_seg-Schaefer2018_timeseries.tsv")
    {'sub': '01', 'task': 'rest', 'seg': 'Schaefer2018'}
    """
    parts = os.path.basename(name).split("_")
    if "-" in parts[-1]:
        parts[-1] = parts[-1].partition(".")[0]
    return {key: value for key, dash, value in (part.partition("-") for part in parts) if dash and key and value}


def suffix(name: str) -> str:
    """What follows the last entity of a BIDS file name, without the extension; empty where nothing does."""
    last = os.path.basename(name).rsplit("_", 1)[-1]
    return "" if "-" in last.partition(".")[0] else last.partition(".")[0]


def recording_id(named: Mapping[str, str]) -> str:
    """What a recording is called: its entities among `RECORDING`, joined."""
    return joined(named, RECORDING)


def joined(named: Mapping[str, str], keys: tuple[str, ...]) -> str:
    """Entities with these keys as a file name spells them (``space-MNI_res-2``)."""
    return "_".join(f"{key}-{named[key]}" for key in keys if key in named)


def found(file: str, tr: Mapping[str, float], variant: str = "", atlas: str | None = None) -> Found:
    """Build a `Found` from a BIDS name.

    Parameters
    ----------
    file : str
        Path of the file, from the folder on.
    tr : dict of str to float
        Seconds between volumes, by source.
    variant : str
        What tells versions of the recording apart.
    atlas : str, optional
        The atlas, where it is not the name's ``atlas-`` or ``seg-`` entity.
    """
    named = entities(file)
    return Found(
        file=file,
        recording_id=recording_id(named),
        participant_id=f"sub-{named['sub']}",
        session=named.get("ses"),
        run=named.get("run"),
        task=named.get("task"),
        atlas=atlas or named.get("atlas") or named.get("seg"),
        variant=variant,
        tr=tr,
    )


def files_below(folder: Path, wanted: Callable[[str], object]) -> list[str]:
    """Paths, from a folder on, of the files whose names are wanted; in order, hidden folders left out.

    Parameters
    ----------
    folder : Path
        Where to look, at any depth.
    wanted : callable
        ``wanted(name)``; true for the files to list.
    """
    return sorted(_walk(str(folder), "", wanted))


def _walk(
    folder: str, below: str, wanted: Callable[[str], object], above: frozenset[tuple[int, int]] = frozenset()
) -> Iterator[str]:
    try:
        about = os.stat(folder)
        with os.scandir(folder) as entries:
            listed = list(entries)
    except OSError as error:
        raise OpenBrainMassError(
            f"The folder {folder} cannot be listed ({error.strerror}). Mend its permissions."
        ) from error
    own = (about.st_dev, about.st_ino)
    # Folders may be links, and links may form a ring. Stores made here may lie beside what they were made of.
    if own in above or (below and {entry.name for entry in listed} >= _STORE):
        return
    for entry in listed:
        if _is_folder(entry):
            if not entry.name.startswith(".") and below.count("/") < _DEEPEST:
                yield from _walk(entry.path, f"{below}{entry.name}/", wanted, above | {own})
        elif wanted(entry.name):
            yield below + entry.name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    # A link to itself is neither a folder nor a file; whoever wants it is told when it is read.
    except OSError:
        return False


def generators(folder: Path) -> dict[str, str]:
    """Tools that a dataset says it was made by (lower case, ``-`` for ``_``), with their versions.

    Parameters
    ----------
    folder : Path
        Where its ``dataset_description.json`` is; without one nothing is known.
    """
    try:
        description = json.loads((folder / "dataset_description.json").read_bytes())
        named = [tool for tool in description.get("GeneratedBy", []) if tool.get("Name")]
    # A description that cannot be read tells nothing; the names of the files still do.
    except (OSError, ValueError, AttributeError, TypeError):
        return {}
    return {str(tool["Name"]).lower().replace("_", "-"): str(tool.get("Version", "")) for tool in named}


def sidecars(path: Path, root: Path, kind: str | None = None, ignored: tuple[str, ...] = ()) -> list[Path]:
    """JSON files that apply to a file by BIDS inheritance, farthest first.

    A sidecar lies in the folder of the file or above, has the file's suffix, and no entity that the file does not
    have with the same value.

    Parameters
    ----------
    path, root : Path
        The file, and the folder of the dataset above which nothing applies.
    kind : str, optional
        Sidecars of another suffix instead (``"bold"``).
    ignored : tuple of str
        Entities that a sidecar may have although the file does not.
    """
    own = entities(path.name).items()
    wanted = suffix(path.name) if kind is None else kind
    chosen: list[Path] = []
    for folder in _folders(path.parent, root):
        fitting = [
            (len(named), name)
            for name, ending, named in _sidecars_in(str(folder), folder.stat().st_mtime_ns)
            if ending == wanted and {item for item in named if item[0] not in ignored} <= own
        ]
        chosen += [folder / name for _, name in sorted(fitting)]
    return chosen


def _folders(folder: Path, root: Path) -> list[Path]:
    """Folders from the root down to a folder; the folder alone where it is not below the root."""
    above = [folder, *folder.parents]
    return above[: above.index(root) + 1][::-1] if root in above else [folder]


# The time of change in the key lets an old listing lapse.
@lru_cache(maxsize=4096)
def _sidecars_in(folder: str, changed: int) -> tuple[tuple[str, str, frozenset[tuple[str, str]]], ...]:
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if entry.name.endswith(".json"))
    return tuple((name, suffix(name), frozenset(entities(name).items())) for name in names)


def values_of(path: Path) -> dict[str, Any]:
    """What a sidecar says.

    Raises
    ------
    OpenBrainMassError
        If it is no JSON object.
    """
    try:
        at = path.stat()
        values = _values(str(path), at.st_mtime_ns, at.st_size)
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise OpenBrainMassError(f"The sidecar {path} is not readable JSON ({why}). Restore or remove it.") from error
    if not isinstance(values, dict):
        raise OpenBrainMassError(f"The sidecar {path} holds no JSON object. Restore or remove it.")
    return values


@lru_cache(maxsize=256)
def _values(path: str, changed: int, size: int) -> Any:
    with open(path, "rb") as handle:
        return json.load(handle)


def metadata(path: Path, root: Path) -> dict[str, Any]:
    """What all sidecars of a file say together; the nearer one has the word.

    Raises
    ------
    OpenBrainMassError
        If a sidecar is no JSON object.
    """
    merged: dict[str, Any] = {}
    for sidecar in sidecars(path, root):
        merged |= values_of(sidecar)
    return merged


def tr_of(path: Path, root: Path, hertz: bool = True) -> dict[str, float]:
    """Seconds between the volumes of a file, from every sidecar that tells it.

    Parameters
    ----------
    path, root : Path
        The file, and the folder of the dataset.
    hertz : bool
        Whether ``SamplingFrequency`` is in Hz, as BIDS has it; where not (HALFpipe), it is in seconds.

    Returns
    -------
    dict of str to float
        By sidecar (its path from the root on, and the key where that is ``SamplingFrequency``).

    Raises
    ------
    OpenBrainMassError
        If a sidecar is no JSON object, or its value no time between 0.05 and 20 seconds.
    """
    return seconds_of(sidecars(path, root), root, hertz)


def seconds_of(paths: list[Path], root: Path, hertz: bool = True) -> dict[str, float]:
    """Seconds between volumes that some sidecars tell; see `tr_of`.

    Raises
    ------
    OpenBrainMassError
        As for `tr_of`.
    """
    told = {}
    for path in paths:
        values = values_of(path)
        name = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.name
        if values.get("RepetitionTime") is not None:
            told[name] = _seconds(path, "RepetitionTime", values["RepetitionTime"], False)
        if values.get("SamplingFrequency") is not None:
            key = "SamplingFrequency"
            told[f"{name} ({key})"] = _seconds(path, key, values[key], hertz)
    return told


def _seconds(path: Path, key: str, value: Any, hertz: bool) -> float:
    number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else float("nan")
    seconds = (1 / number if number else float("inf")) if hertz else number
    if not _SECONDS[0] <= seconds <= _SECONDS[1]:
        raise OpenBrainMassError(
            f"The sidecar {path} has {key} {value!r}, which is no time between volumes from {_SECONDS[0]} to "
            f"{_SECONDS[1]:g} s. Mend it (RepetitionTime is in seconds, SamplingFrequency in Hz)."
        )
    return seconds


def root_of(path: Path, row: Mapping[str, Any]) -> Path:
    """The folder that a row's column ``file`` starts at."""
    depth = len(Path(str(row["file"])).parts) if row.get("file") else 1
    return path.parents[min(depth, len(path.parents)) - 1]


def without_errors(tell: Callable[[], dict[str, float]]) -> dict[str, float]:
    """What sidecars tell; nothing where one is broken, which is said of its recording alone when that is read."""
    try:
        return tell()
    except OpenBrainMassError:
        return {}
