"""REST-meta-MDD as shared: ``ROISignals_S1-1-0001.mat``, all atlases side by side in one matrix."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openbrainmass.atlas import Atlas
from openbrainmass.cohort.files.matlab import read_matlab
from openbrainmass.cohort.layouts.layout import Found, Layout
from openbrainmass.cohort.source import ReadingSettings, Series
from openbrainmass.errors import OpenBrainMassError

BLOCKS = {
    "AAL116": (0, 116),
    "HO112": (116, 228),
    "CC200": (228, 428),
    "Zalesky980": (428, 1408),
    "Dosenbach160": (1408, 1568),
    "Power264": (1569, 1833),
    "Schaefer400": (1833, 2233),
}
"""First column and the one after the last of each atlas, from 0. Column 1568 is the global signal, no ROI."""

_SHARED = ("AAL116", "HO112", "CC200", "Zalesky980", "Dosenbach160", "Power264")
# Versions of DPARSF appended the global signal (4.2), Power's ROIs (4.3) and Schaefer's parcels (4.4).
_WIDTHS = (1568, 1569, 1833, 2233)
_NAME = re.compile(r"ROISignals_((?P<site>I?S\d+)-(?P<dx>\d)-\d+)\.mat")
_DIAGNOSES = {"1": "mdd", "2": "control"}
_STEPS = {
    "A": "slice timing",
    "R": "realignment",
    "globalC": "nuisance and global-signal regression",
    "C": "nuisance regression",
    "W": "normalisation",
    "S": "smoothing",
    "F": "band-pass 0.01-0.1 Hz",
}


def find(folder: Path, settings: ReadingSettings) -> list[Found]:
    """Recordings of a folder, one for each atlas in a file.

    The two ways of processing that are shared differ in their folder (``ROISignals_FunImgARCWF``, and with the
    global signal regressed out ``ROISignals_FunImgARglobalCWF``), which becomes the variant.
    """
    files = sorted((path, name) for path in folder.rglob("ROISignals_*.mat") if (name := _NAME.fullmatch(path.name)))
    return [found for path, name in files for found in _of_file(folder, path, name)]


def _of_file(folder: Path, path: Path, name: re.Match[str]) -> list[Found]:
    subject = f"sub-{name.group(1)}"
    columns = {"site": name["site"]}
    if name["dx"] in _DIAGNOSES:
        columns["dx"] = _DIAGNOSES[name["dx"]]
    processing = _processing(path)
    return [
        Found(
            file=path.relative_to(folder).as_posix(),
            recording_id=subject,
            participant_id=subject,
            atlas=atlas,
            variant=f"desc-{processing}" if processing else "",
            columns={**columns, "n_rois": BLOCKS[atlas][1] - BLOCKS[atlas][0]},
        )
        for atlas in _SHARED
    ]


def _processing(path: Path) -> str:
    """``FunImgARCWF`` of the folder ``ROISignals_FunImgARCWF``; empty where the file lies elsewhere."""
    name = path.absolute().parent.name
    return name.removeprefix("ROISignals_") if name.startswith("ROISignals_FunImg") else ""


def read(path: Path, row: Mapping[str, Any], atlas: Atlas, settings: ReadingSettings) -> Series:
    """Read the columns of one atlas.

    Parameters
    ----------
    path : Path
        A file ``ROISignals_S1-1-0001.mat``.
    row : mapping
        Its row of the recordings table.
    atlas : Atlas
        One that is called as in `BLOCKS` (capitals and signs do not matter).
    settings : ReadingSettings
        Not needed here.

    Raises
    ------
    OpenBrainMassError
        If the file cannot be read, or has not the columns of this atlas.
    """
    block = next((name for name in BLOCKS if _spelt(name) == _spelt(atlas.name)), None)
    if block is None:
        raise OpenBrainMassError(
            f"The file {path} has the atlases {', '.join(_SHARED)}, but not {atlas.name}. Name one of them (--atlas); "
            "for its ROI names, call its table so."
        )
    first, end = BLOCKS[block]
    if atlas.n_rois != end - first:
        raise OpenBrainMassError(
            f"The atlas {atlas.name} has {atlas.n_rois} ROIs, but {path} has {end - first} columns of it. Give the "
            "table of the version that was used."
        )
    values = read_matlab(path, "ROISignals")
    if values.shape[1] not in _WIDTHS or values.shape[1] < end:
        raise OpenBrainMassError(
            f"The file {path} has {values.shape[1]} columns, so nothing tells which are those of {block}: "
            f"{', '.join(str(width) for width in _WIDTHS if width >= end)} were expected. Leave it out, or name another "
            "atlas (--atlas)."
        )
    steps = _steps(_processing(path))
    return Series(values[:, first:end], measures={"steps": steps} if steps else {})


def _spelt(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _steps(processing: str) -> str:
    """What the letters of a folder of DPARSF say was done, in order."""
    done = re.findall("|".join(_STEPS), processing.removeprefix("FunImg"))
    return "DPARSF: " + ", ".join(_STEPS[step] for step in done) if done else ""


def labels(path: Path) -> None:
    """None: the columns have no names."""


LAYOUT = Layout(
    name="rest-meta-mdd",
    title="REST-meta-MDD (DPARSF)",
    patterns=("**/ROISignals_FunImg*/ROISignals_S<site>-<1 patient, 2 control>-<number>.mat",),
    header=(
        "Variable ROISignals (n_volumes, 1833), no names: columns 1-116 AAL116, 117-228 HO112 (96 cortical, 16 "
        "subcortical), 229-428 CC200, 429-1408 Zalesky980, 1409-1568 Dosenbach160, 1569 the global signal, 1570-1833 "
        "Power264; some files end at column 1568. The files do not tell the TR. Site 4 repeats people of site 14."
    ),
    find=find,
    read=read,
    labels=labels,
    card="rest-meta-mdd",
)
"""The shared ROI signals of the REST-meta-MDD consortium."""
