"""What a layout is: how the folder of one tool or one public download is found and read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openbrainmass.atlas import Atlas
from openbrainmass.cohort.source import ReadingSettings, Series


@dataclass(frozen=True)
class Found:
    """One recording that a layout has found in a folder.

    Attributes
    ----------
    file : str
        Its file, from the folder on.
    recording_id, participant_id : str
        What it is called (unique within one atlas and one way of processing), and whose it is (``sub-...``).
    session, run, task : str or None
        Entities of the file name, without their keys.
    atlas : str or None
        The atlas as the file name spells it.
    variant : str
        What tells several versions of one recording apart (``desc-denoiseSimple``); empty where nothing does.
    tr : dict of str to float
        Seconds between volumes, by where each figure was found (a sidecar); what the file itself says comes later.
    columns : dict of str to value
        Further columns of the recordings table.
    labels : tuple of str or None
        Names of this atlas's ROIs, where the file has those of several.
    """

    file: str
    recording_id: str
    participant_id: str
    session: str | None = None
    run: str | None = None
    task: str | None = None
    atlas: str | None = None
    variant: str = ""
    tr: Mapping[str, float] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    labels: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Layout:
    """How the folder of one tool is found and read.

    Attributes
    ----------
    name, title : str
        Short name for ``--layout``, and the tool.
    patterns : tuple of str
        Globs of its files.
    header : str
        What the columns are and how missing values and parcels are written, in a sentence.
    find : callable
        ``find(folder, settings) -> list of Found``; empty where the folder is of another layout. Reads names and
        sidecars, never series.
    read : callable
        ``read(path, row, atlas, settings) -> Series`` for the row of the recordings table (a dict) of a file.
    labels : callable
        ``labels(path) -> tuple of str or None``: the ROI names that a file itself has.
    card : str or None
        The catalogue's dataset whose phenotype table lies in such a folder.
    """

    name: str
    title: str
    patterns: tuple[str, ...]
    header: str
    find: Callable[[Path, ReadingSettings], list[Found]]
    read: Callable[[Path, Mapping[str, Any], Atlas, ReadingSettings], Series]
    labels: Callable[[Path], tuple[str, ...] | None]
    card: str | None = None
