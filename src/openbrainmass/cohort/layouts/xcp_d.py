"""XCP-D: parcellated time series, censored or interpolated, of three generations of names."""

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
from openbrainmass.cohort.source import ReadingSettings, Series, volume_ranges
from openbrainmass.errors import OpenBrainMassError

# `_atlas-<A>_desc-timeseries_bold` before 0.2, `_atlas-<A>_timeseries` to 0.6, `_seg-<A>_stat-mean_timeseries` from 0.7 to
# 0.14, `_atlas-<A>_stat-mean_timeseries` from 26.0. CIFTI runs have `_den-91k` too; all but the first name the space.
_RUN = r"sub-[^_]+(_(ses|task|acq|ce|rec|dir|run|echo|cohort|proc|hash|part)-[^_]+)*"
_SPACE = r"_space-[^_]+(_cohort-[^_]+)?(_res-[^_]+)?(_den-[^_]+)?"
_NAME = re.compile(
    rf"{_RUN}({_SPACE}_(atlas|seg)-[^_]+(_res-[^_]+)?(_den-[^_]+)?(_stat-mean)?_timeseries"
    rf"|({_SPACE})?_atlas-[^_]+_desc-timeseries_bold)\.tsv"
)
_VERSIONS = ("space", "cohort", "res", "den")
# Runs that XCP-D also joins (--combine-runs) lose these.
_JOINED = ("run", "dir")
_DENOISED = {"denoised", "denoisedSmoothed", "interpolated", "residual", "residual_smooth"}


def find(folder: Path, settings: ReadingSettings) -> list[Found]:
    """Parcellated runs of a folder; the runs that XCP-D joined to one file again are left out."""
    tools = bids.generators(folder)
    if tools and "xcp-d" not in tools:
        return []
    files = bids.files_below(folder, _NAME.fullmatch)
    single = {_across_runs(file) for file in files if set(bids.entities(file)) & set(_JOINED)}
    kept = [f for f in files if set(bids.entities(f)) & set(_JOINED) or _across_runs(f) not in single]
    return [
        bids.found(
            file,
            bids.without_errors(lambda path=folder / file: _tr(path, folder)),
            bids.joined(bids.entities(file), _VERSIONS),
        )
        for file in kept
    ]


def _across_runs(file: str) -> tuple[str, frozenset[tuple[str, str]]]:
    named = {key: value for key, value in bids.entities(file).items() if key not in (*_JOINED, "res", "den")}
    return str(Path(file).parent), frozenset(named.items())


def _tr(path: Path, root: Path) -> dict[str, float]:
    """TR by the sidecars of the series and of the denoised image it was taken from."""
    images = bids.sidecars(path, root, "bold", ("desc", "res", "den"))
    denoised = [image for image in images if bids.entities(image.name).get("desc") in _DENOISED]
    return bids.tr_of(path, root) | bids.seconds_of(denoised, root)


def read(path: Path, row: Mapping[str, Any], atlas: Atlas, settings: ReadingSettings) -> Series:
    """Read one run, without the volumes that XCP-D found to be of high motion, or with them filled in.

    Parameters
    ----------
    path : Path
        ``*_timeseries.tsv``.
    row : dict
        Its row of the recordings table.
    atlas : Atlas
        What the columns must be.
    settings : ReadingSettings
        ``motion`` says which of the two.

    Raises
    ------
    OpenBrainMassError
        If a table is damaged, is not of this atlas, does not fit ``outliers.tsv``, or the filled-in series is asked
        for and XCP-D wrote only the censored one.
    """
    root = bids.root_of(path, row)
    bold = read_parcels(path, atlas)
    measures: dict[str, Any] = {}
    outliers = _beside(path, ("_outliers.tsv",))
    if outliers is None:
        measures["steps"] = f"{_tool(root)}; no outliers.tsv, so nothing is known of censoring"
    else:
        bold, censoring = _censored(path, bold, outliers, settings)
        measures |= censoring
        measures["steps"] = f"{_tool(root)}; {measures['steps']}"
    return Series(bold, _tr(path, root), measures | _motion(path) | uncovered_rois(bold, atlas))


def _tool(root: Path) -> str:
    return f"XCP-D {bids.generators(root).get('xcp-d', '')}".strip()


def _beside(path: Path, endings: tuple[str, ...]) -> Path | None:
    """The table of another kind that belongs to the same run, the one of unfiltered motion first."""
    own = bids.entities(path.name)
    fitting = [
        other
        for ending in endings
        for other in path.parent.glob(f"{bids.joined(own, ('sub',))}*{ending}")
        if bids.recording_id(bids.entities(other.name)) == bids.recording_id(own)
    ]
    return min(fitting, key=lambda other: (len(other.name), other.name), default=None)


def _censored(
    path: Path, bold: np.ndarray, table: Path, settings: ReadingSettings
) -> tuple[np.ndarray, dict[str, Any]]:
    moved = _outliers(table)
    n_moved = int(moved.sum())
    measures: dict[str, Any] = {"n_acquired": len(moved), "n_censored": n_moved}
    if len(bold) not in (len(moved), len(moved) - n_moved):
        raise OpenBrainMassError(
            f"The recording {path} has {len(bold)} volumes, but {table.name} lists {len(moved)} of which {n_moved} are "
            f"outliers; {len(moved)} or {len(moved) - n_moved} were expected. Take both from one run of XCP-D."
        )
    if n_moved == 0:
        return bold, measures | {"steps": "no volume censored"}
    whole = len(bold) == len(moved)
    if settings.motion == "interpolated":
        if whole:
            return bold, measures | {"steps": f"{n_moved} volumes of high motion interpolated"}
        raise OpenBrainMassError(
            f"The recording {path} has only the {len(bold)} volumes that XCP-D kept of {len(moved)}; interpolated ones "
            "were asked for. Read it with motion=censored, or let XCP-D write the interpolated series."
        )
    measures["kept_volumes"] = volume_ranges(np.flatnonzero(~moved))
    measures["steps"] = f"{n_moved} volumes of high motion censored"
    return bold[~moved] if whole else bold, measures


def _displacement(table: Path) -> np.ndarray | None:
    """The column framewise_displacement of a table; of those before 0.4, which have no header, the only column."""
    values, labels = read_series(table), series_labels(table)
    if labels is None:
        return values[:, 0] if values.shape[1] == 1 else None
    return values[:, labels.index("framewise_displacement")] if "framewise_displacement" in labels else None


def _outliers(table: Path) -> np.ndarray:
    """Whether each volume of the run is of high motion."""
    column = _displacement(table)
    if column is None or not np.isin(column, (0, 1)).all():
        raise OpenBrainMassError(
            f"{table} has no column framewise_displacement of zeros and ones (1 = high motion), which XCP-D writes. "
            "Restore it."
        )
    return column == 1


def _motion(path: Path) -> dict[str, Any]:
    """Mean FD over the whole run; the first volume has none."""
    table = _beside(path, ("_motion.tsv", "_desc-framewisedisplacement_bold.tsv"))
    fd = None if table is None else _displacement(table)
    if table is None or fd is None or not np.isfinite(fd[1:]).any():
        return {}
    # Where motion was filtered, early versions say so in the name and later ones keep both columns.
    filtered = bids.entities(table.name).get("desc") == "filtered"
    return {"mean_fd": float(np.nanmean(fd[1:].astype(float))), "fd_formula": "power-filtered" if filtered else "power"}


LAYOUT = Layout(
    name="xcp-d",
    title="XCP-D",
    patterns=(
        "sub-*/[ses-*/]func/sub-*[_space-*]_atlas-*_desc-timeseries_bold.tsv (before 0.2)",
        "sub-*/[ses-*/]func/sub-*_space-*_atlas-*[_den-91k]_timeseries.tsv (to 0.6)",
        "sub-*/[ses-*/]func/sub-*_space-*_seg-*[_den-91k]_stat-mean_timeseries.tsv (from 0.7)",
        "sub-*/[ses-*/]func/sub-*_space-*_atlas-*[_den-91k]_stat-mean_timeseries.tsv (26.0)",
    ),
    header="One line of parcel names, a parcel covered too little `n/a` throughout; before 0.4 no header (columns by "
    "position, the atlas must be named), such parcels 0, and at first commas between the values. `*_outliers.tsv` beside "
    "it has 1 for each volume of high motion: such volumes are dropped from an interpolated series (motion=censored) or kept "
    "(motion=interpolated); a file that lacks them already is recognised by its length. Mean FD is that of "
    "`*_motion.tsv` over the whole run. Files of joined runs (--combine-runs) are left out where the runs are there.",
    find=find,
    read=read,
    labels=series_labels,
)
