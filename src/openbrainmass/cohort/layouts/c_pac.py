"""C-PAC 1.8 and later (Reproducible Brain Charts too): means of ROIs as AFNI writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openbrainmass.atlas import Atlas
from openbrainmass.cohort.files.series import read_parcels, read_series, series_labels, uncovered_rois
from openbrainmass.cohort.layouts import bids
from openbrainmass.cohort.layouts.layout import Found, Layout
from openbrainmass.cohort.source import ReadingSettings, Series

# The first 1.8 end in `desc-Mean-1`, the number of the strategy, and may glue the space to the atlas; later ones have
# `reg-`, and `desc-Mean` or `desc-Mean1`.
_NAME = re.compile(r"sub-[^_]+(_[a-z]+-[^_]+)*_atlas-[^_]+(_[a-z]+-[^_]+)*_desc-Mean(-?\d+)?_timeseries\.(1D|csv|tsv)")
_DISPLACEMENT = (
    ("*desc-FDJenkinson_motion.1D", "jenkinson"),
    ("*framewise-displacement-jenkinson*.1D", "jenkinson"),
    ("*desc-FDPower_motion.1D", "power"),
    ("*framewise-displacement-power*.1D", "power"),
)


def find(folder: Path, settings: ReadingSettings) -> list[Found]:
    """Parcellated runs of a folder, one for each atlas, space and way of regression."""
    recordings = []
    for file in bids.files_below(folder, _NAME.fullmatch):
        named = bids.entities(file)
        named["atlas"], _, space = named["atlas"].partition("space-")
        named |= {"space": space} if space else {}
        # `desc-Mean` alone tells nothing apart; with a number it tells strategies apart.
        keys = ("space", "reg") if named["desc"] == "Mean" else ("space", "reg", "desc")
        tr = bids.without_errors(lambda path=folder / file: bids.tr_of(path, folder))
        recordings.append(bids.found(file, tr, bids.joined(named, keys), named["atlas"]))
    return recordings


def read(path: Path, row: Mapping[str, Any], atlas: Atlas, settings: ReadingSettings) -> Series:
    """Read one run, and its framewise displacement where that lies beside it.

    Parameters
    ----------
    path : Path
        ``*_desc-Mean_timeseries.1D``.
    row : dict
        Its row of the recordings table.
    atlas : Atlas
        What the columns must be; its voxel values are the numbers of C-PAC's header.
    settings : ReadingSettings
        Not needed here.

    Raises
    ------
    OpenBrainMassError
        If a file is damaged, or its ROI numbers are not those of the atlas.
    """
    bold = read_parcels(path, atlas)
    strategy = bids.joined(bids.entities(path.name), ("reg", "desc"))
    measures = {"steps": f"C-PAC {strategy}"} | _motion(path, len(bold)) | uncovered_rois(bold, atlas)
    return Series(bold, bids.tr_of(path, bids.root_of(path, row)), measures)


def _motion(path: Path, n_volumes: int) -> dict[str, Any]:
    """Mean FD over the whole run; the first volume has none."""
    own = bids.entities(path.name)
    for pattern, formula in _DISPLACEMENT:
        for table in sorted(path.parent.glob(f"sub-{own['sub']}{pattern}")):
            if bids.recording_id(bids.entities(table.name)) != bids.recording_id(own):
                continue
            fd = read_series(table)[:, 0].astype(float)
            lost = {"n_acquired": len(fd), "n_censored": len(fd) - n_volumes} if len(fd) >= n_volumes else {}
            mean = {"mean_fd": float(np.nanmean(fd[1:])), "fd_formula": formula} if len(fd) > 1 else {}
            return mean | lost
    return {}


LAYOUT = Layout(
    name="c-pac",
    title="C-PAC 1.8 and later",
    patterns=(
        "**/func/sub-*_atlas-*_space-*_reg-*_desc-Mean[<n>]_timeseries.1D (1.8.5 and later)",
        "**/func/sub-*_atlas-*_desc-Mean-<n>_timeseries.1D (the first 1.8)",
    ),
    header="AFNI's 3dROIstats: comment lines, then `#Mean_1, Mean_2, ...` separated by commas (or tabs). An ROI without "
    "voxels has no column, so columns are matched by these numbers: with the voxel values of the atlas image, or with "
    "1 to N where the atlas has no names. Mean FD is that of `*_desc-FDJenkinson_motion.1D` beside it.",
    find=find,
    read=read,
    labels=series_labels,
)
