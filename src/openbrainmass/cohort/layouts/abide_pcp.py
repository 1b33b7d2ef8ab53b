"""ABIDE I as the Preprocessed Connectomes Project shares it: one .1D file a person, pipeline, strategy and atlas."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openbrainmass.atlas import Atlas
from openbrainmass.cohort.files.series import read_parcels, series_labels
from openbrainmass.cohort.layouts import bids
from openbrainmass.cohort.layouts.layout import Found, Layout
from openbrainmass.cohort.source import ReadingSettings, Series

# FILE_ID is the site and the seven digits of the person; sites have digits and underscores too (UM_1).
_NAME = re.compile(r"(?P<site>.+)_(?P<person>\d{7})_rois_(?P<atlas>[A-Za-z0-9]+)\.1D")
_PIPELINES = ("ccs", "cpac", "dparsf", "niak")
_STRATEGIES = {
    "filt_global": "band-pass 0.01-0.1 Hz; global signal regressed out",
    "filt_noglobal": "band-pass 0.01-0.1 Hz",
    "nofilt_global": "global signal regressed out",
    "nofilt_noglobal": "neither band-pass nor global signal regression",
}


def find(folder: Path, settings: ReadingSettings) -> list[Found]:
    """Recordings of a folder, one for each pipeline, strategy and atlas that its folders name."""
    recordings = []
    for file in bids.files_below(folder, _NAME.fullmatch):
        match = _NAME.fullmatch(Path(file).name)
        if match is None:
            continue
        person = f"sub-{match['person']}"
        pipeline, strategy = _processing(folder / file)
        known = {"pipeline": pipeline, "strategy": strategy.replace("_", "")}
        variant = bids.joined({key: value for key, value in known.items() if value}, ("pipeline", "strategy"))
        recordings.append(Found(file, person, person, atlas=match["atlas"], variant=variant))
    return recordings


def _processing(path: Path) -> tuple[str, str]:
    """Pipeline and strategy, by the nearest folders that are called so; empty where none is."""
    above = [folder.name for folder in path.absolute().parents[:5]]
    pipeline = next((name for name in above if name in _PIPELINES), "")
    return pipeline, next((name for name in above if name in _STRATEGIES), "")


def read(path: Path, row: Mapping[str, Any], atlas: Atlas, settings: ReadingSettings) -> Series:
    """Read one recording; an ROI that was not covered is zero throughout, as the files have it.

    Parameters
    ----------
    path : Path
        ``<FILE_ID>_rois_<atlas>.1D``.
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
    pipeline, strategy = _processing(path)
    done = "; ".join(part for part in (pipeline, _STRATEGIES.get(strategy, "")) if part)
    return Series(read_parcels(path, atlas), {}, {"steps": f"ABIDE preprocessed {done}"} if done else {})


LAYOUT = Layout(
    name="abide-pcp",
    title="ABIDE I, Preprocessed Connectomes Project",
    patterns=(
        "[Outputs/]<pipeline>/<strategy>/[rois_<atlas>/]<FILE_ID>_rois_<atlas>.1D",
        "pipeline: ccs cpac dparsf niak; strategy: filt_global filt_noglobal nofilt_global nofilt_noglobal",
    ),
    header="One line of ROI numbers (`#1 #2 ...`, or the voxel values of the atlas), tabs, no sidecar: TR, diagnosis and "
    "mean FD come from the phenotype table and the dataset's card. The last seven digits of FILE_ID are the person. An ROI "
    "without voxels is 0 throughout.",
    find=find,
    read=read,
    labels=series_labels,
    card="abide1",
)
