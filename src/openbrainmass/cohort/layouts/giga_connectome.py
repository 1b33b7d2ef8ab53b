"""giga_connectome: parcellated and denoised series by the names of BIDS proposal 17."""

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

_NAME = re.compile(r"sub-[^_]+(_[a-z]+-[^_]+)*_seg-[^_]+_desc-denoise[^_]+_timeseries\.tsv")


def find(folder: Path, settings: ReadingSettings) -> list[Found]:
    """Parcellated runs of a folder, one for each way of denoising."""
    return [
        bids.found(
            file,
            bids.without_errors(lambda path=folder / file: bids.tr_of(path, folder)),
            bids.joined(bids.entities(file), ("space", "res", "desc")),
        )
        for file in bids.files_below(folder, _NAME.fullmatch)
    ]


def read(path: Path, row: Mapping[str, Any], atlas: Atlas, settings: ReadingSettings) -> Series:
    """Read one run; its sidecar tells motion, and how many volumes were left out.

    Parameters
    ----------
    path : Path
        ``*_timeseries.tsv``.
    row : dict
        Its row of the recordings table.
    atlas : Atlas
        What the columns must be: without names in the file, one for each ROI.
    settings : ReadingSettings
        Not needed here.

    Raises
    ------
    OpenBrainMassError
        If the table or a sidecar is damaged, or the columns are not those of the atlas.
    """
    root = bids.root_of(path, row)
    bold = read_parcels(path, atlas)
    said = bids.metadata(path, root)
    measures: dict[str, Any] = {}
    if isinstance(said.get("MeanFramewiseDisplacement"), int | float):
        measures |= {"mean_fd": float(said["MeanFramewiseDisplacement"]), "fd_formula": "power"}
    scrubbed = said.get("NumberOfVolumesDiscardedByMotionScrubbing")
    unsteady = said.get("NumberOfVolumesDiscardedByNonsteadyStatesDetector")
    if isinstance(scrubbed, int) and isinstance(unsteady, int):
        measures |= {"n_censored": scrubbed, "n_acquired": len(bold) + scrubbed + unsteady}
    confounds = said.get("ConfoundRegressors")
    regressed = f"; regressed out: {', '.join(map(str, confounds))}" if isinstance(confounds, list) else ""
    measures["steps"] = f"giga_connectome {bids.entities(path.name)['desc']}{regressed}"
    return Series(bold, bids.tr_of(path, root), measures)


LAYOUT = Layout(
    name="giga-connectome",
    title="giga_connectome",
    patterns=("sub-*/[ses-*/]func/sub-*_seg-*_desc-denoise*_timeseries.tsv",),
    header="One line that counts the columns, 0 to N-1, so they are matched with the atlas by position and must be as "
    "many. The sidecar `*_desc-denoise*_timeseries.json`, without the entity seg, has SamplingFrequency (Hz), mean FD "
    "and how many volumes were scrubbed; volumes before steady state are left out of the file.",
    find=find,
    read=read,
    labels=series_labels,
)
