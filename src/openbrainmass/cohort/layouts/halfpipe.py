"""HALFpipe: atlas-based connectivity features, tables without any header."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openbrainmass.atlas import Atlas
from openbrainmass.cohort.files.series import read_parcels, series_labels, uncovered_rois
from openbrainmass.cohort.layouts import bids
from openbrainmass.cohort.layouts.layout import Found, Layout
from openbrainmass.cohort.source import ReadingSettings, Series
from openbrainmass.errors import OpenBrainMassError

_NAME = re.compile(r"sub-[^_]+(_[a-z]+-[^_]+)*_feature-[^_]+(_[a-z]+-[^_]+)*_timeseries\.tsv")


def _is_parcellated(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and "_atlas-" in name


def find(folder: Path, settings: ReadingSettings) -> list[Found]:
    """Recordings of every atlas-based feature; those of seeds and maps are no parcellation."""
    return [
        bids.found(
            file,
            bids.without_errors(lambda path=folder / file: bids.tr_of(path, folder, hertz=False)),
            bids.joined(bids.entities(file), ("feature", "setting")),
        )
        for file in bids.files_below(folder, _is_parcellated)
    ]


def read(path: Path, row: Mapping[str, Any], atlas: Atlas, settings: ReadingSettings) -> Series:
    """Read one recording; its sidecar tells coverage, motion and what was done.

    Parameters
    ----------
    path : Path
        ``*_timeseries.tsv``.
    row : dict
        Its row of the recordings table.
    atlas : Atlas
        What the columns are, one for each ROI, in order.
    settings : ReadingSettings
        Not needed here: HALFpipe has emptied parcels of little coverage by its own threshold.

    Raises
    ------
    OpenBrainMassError
        If the table or its sidecar is damaged, or has not as many columns as the atlas.
    """
    root = bids.root_of(path, row)
    bold = read_parcels(path, atlas)
    said = bids.metadata(path, root)
    measures = _coverage(path, bold, atlas, said.get("Coverage"))
    if isinstance(said.get("FDMean"), int | float):
        measures |= {"mean_fd": float(said["FDMean"]), "fd_formula": "power"}
    if isinstance(said.get("NumberOfVolumes"), int):
        measures["n_acquired"] = said["NumberOfVolumes"]
    # HALFpipe writes the time between volumes under both keys.
    return Series(bold, bids.tr_of(path, root, hertz=False), measures | {"steps": _steps(path, said.get("Setting"))})


def _coverage(path: Path, bold: np.ndarray, atlas: Atlas, coverage: Any) -> dict[str, Any]:
    measures: dict[str, Any] = {**uncovered_rois(bold, atlas)}
    if not isinstance(coverage, list):
        return measures
    if len(coverage) != bold.shape[1]:
        raise OpenBrainMassError(
            f"The recording {path} has {bold.shape[1]} columns, but the Coverage in its sidecar lists "
            f"{len(coverage)} regions. Take both from one run of HALFpipe."
        )
    known = np.array([value if isinstance(value, int | float) else np.nan for value in coverage], dtype=float)
    return measures | ({"min_coverage": float(np.nanmin(known))} if np.isfinite(known).any() else {})


def _steps(path: Path, setting: Any) -> str:
    """What HALFpipe did, from the setting in the sidecar."""
    done = [f"HALFpipe {bids.joined(bids.entities(path.name), ('feature', 'setting'))}"]
    if not isinstance(setting, dict):
        return done[0]
    if setting.get("ICAAROMA"):
        done.append("ICA-AROMA")
    if setting.get("ConfoundsRemoval"):
        done.append(f"regressed out: {', '.join(map(str, setting['ConfoundsRemoval']))}")
    band = setting.get("BandpassFilter")
    if isinstance(band, dict):
        told = [f"{key} {value}" for key, value in band.items() if value is not None]
        done.append(f"band-pass ({', '.join(told)})")
    return "; ".join(done)


LAYOUT = Layout(
    name="halfpipe",
    title="HALFpipe",
    patterns=("derivatives/halfpipe/sub-*/[ses-*/]func/[task-*/]sub-*_feature-*_atlas-*_timeseries.tsv",),
    header="No header: the columns are the labels of the atlas image in ascending order, so the atlas must be named "
    "(--atlas) and have as many ROIs. A region covered too little is `nan` throughout, and is named with the atlas's "
    "names. The sidecar has RepetitionTime (s), SamplingFrequency (also the seconds between volumes, not Hz), Coverage "
    "of each region, FDMean (mm) and the setting of the feature.",
    find=find,
    read=read,
    labels=series_labels,
)
