"""ADHD-200 preprocessed by the Athena pipeline (Neuro Bureau): means of ROIs as AFNI's 3dROIstats prints them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openbrainmass.atlas import Atlas
from openbrainmass.cohort.files.series import read_parcels, series_labels, uncovered_rois
from openbrainmass.cohort.layouts import bids
from openbrainmass.cohort.layouts.layout import Found, Layout
from openbrainmass.cohort.source import ReadingSettings, Series

_NAME = re.compile(
    r"(?P<steps>sf?nwmrda)(?P<person>\d+)_session_(?P<session>\d+)_rest_(?P<run>\d+)_(?P<atlas>[A-Za-z0-9]+)_TCs\.1D"
)
_FILTERED = {"sfnwmrda": "desc-filtered", "snwmrda": "desc-unfiltered"}


def find(folder: Path, settings: ReadingSettings) -> list[Found]:
    """Recordings of a folder, with and without band-pass, one for each atlas."""
    recordings = []
    for file in bids.files_below(folder, _NAME.fullmatch):
        match = _NAME.fullmatch(Path(file).name)
        if match is None:
            continue
        person = f"sub-{match['person']}"
        named = {"sub": match["person"], "ses": match["session"], "task": "rest", "run": match["run"]}
        recordings.append(
            Found(
                file=file,
                recording_id=bids.recording_id(named),
                participant_id=person,
                session=match["session"],
                run=match["run"],
                task="rest",
                atlas=match["atlas"],
                variant=_FILTERED[match["steps"]],
            )
        )
    return recordings


def read(path: Path, row: Mapping[str, Any], atlas: Atlas, settings: ReadingSettings) -> Series:
    """Read one recording; the columns ``File`` and ``Sub-brick`` are left out.

    Parameters
    ----------
    path : Path
        ``sfnwmrda*_TCs.1D`` or ``snwmrda*_TCs.1D``.
    row : dict
        Its row of the recordings table.
    atlas : Atlas
        What the columns must be; its voxel values are the numbers of the header.
    settings : ReadingSettings
        Not needed here.

    Raises
    ------
    OpenBrainMassError
        If the file is damaged, or its ROI numbers are not those of the atlas.
    """
    bold = read_parcels(path, atlas)
    filtered = path.name.startswith("sf")
    steps = "Athena; " + ("band-pass 0.009-0.08 Hz" if filtered else "no band-pass")
    return Series(bold, {}, {"steps": steps} | uncovered_rois(bold, atlas))


LAYOUT = Layout(
    name="adhd200",
    title="ADHD-200, Athena pipeline",
    patterns=(
        "<site>/<id>/sfnwmrda<id>_session_<n>_rest_<n>_<atlas>_TCs.1D (band-passed)",
        "<site>/<id>/snwmrda<id>_session_<n>_rest_<n>_<atlas>_TCs.1D (not band-passed)",
    ),
    header="AFNI's 3dROIstats: `File  Sub-brick  Mean_1  Mean_2 ...`, tabs; the two text columns in front are left out. An "
    "ROI without voxels has no column, so columns are matched by these numbers: with the voxel values of the atlas image, "
    "or with 1 to N where the atlas has no names. No sidecar: TR comes from the dataset's card.",
    find=find,
    read=read,
    labels=series_labels,
    card="adhd200",
)
