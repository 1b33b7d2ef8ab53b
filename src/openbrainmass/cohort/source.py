"""What a store is built of: recordings found somewhere, read one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from pydantic import Field

from openbrainmass.atlas import Atlas
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.settings import Settings

# Headers round what sidecars give in full.
_TR_TOLERANCE = 0.005


class ReadingSettings(Settings):
    """How files are turned into BOLD series.

    Attributes
    ----------
    entities : dict of str to str
        Only files whose BIDS entities have these values, such as ``{"task": "rest", "desc": "denoiseSimple"}``.
    motion : {"censored", "interpolated"}
        Where a tool wrote both (XCP-D): the series without high-motion volumes, or with them filled in.
    strategy : {"auto", "none", "simple", "scrubbing", "compcor", "ica_aroma"}
        Which confounds are regressed out of images, by nilearn's names; "auto" is ``simple`` for what fMRIPrep wrote
        and nothing for images that come without confounds.
    global_signal : bool
        Whether the global signal is among them.
    fd_threshold : float
        Framewise displacement from which on a volume counts as moved, mm (strategy ``scrubbing``).
    dvars_threshold : float
        Standardised DVARS from which on it does (strategy ``scrubbing``).
    scrub_run : int
        Runs of kept volumes shorter than this, between moved ones, are dropped too (strategy ``scrubbing``).
    min_coverage : float
        Share of an ROI's voxels that an image must cover; an ROI with less becomes a column of NaN.
    detrend : bool
        Whether a straight line is taken out of every ROI.
    band_pass : (low, high) or None
        Frequencies that stay, Hz.
    """

    entities: dict[str, str] = {}
    motion: Literal["censored", "interpolated"] = "censored"
    strategy: Literal["auto", "none", "simple", "scrubbing", "compcor", "ica_aroma"] = "auto"
    global_signal: bool = False
    fd_threshold: float = Field(default=0.5, gt=0)
    dvars_threshold: float = Field(default=1.5, gt=0)
    scrub_run: int = Field(default=5, ge=0)
    min_coverage: float = Field(default=0.5, ge=0, le=1)
    detrend: bool = False
    band_pass: tuple[float, float] | None = None

    @property
    def denoising(self) -> str:
        """What is done where there are confounds: the strategy, which is ``simple`` unless another was chosen."""
        return "simple" if self.strategy == "auto" else self.strategy


@dataclass(frozen=True)
class Series:
    """What the file of one recording holds.

    Attributes
    ----------
    bold : ndarray (n_volumes, n_rois)
        Columns in the order of the atlas, NaN throughout where a parcel is missing; float16 or float32.
    tr : dict of str to float
        Seconds between volumes, by where each figure was found.
    measures : dict of str to value
        Further columns of the recordings table, such as ``mean_fd`` (mm), ``fd_formula``, ``n_censored``,
        ``kept_volumes``, ``steps``.
    """

    bold: np.ndarray
    tr: Mapping[str, float] = field(default_factory=dict)
    measures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Recordings that a store can be built of, read one at a time.

    Attributes
    ----------
    name : str
        Name of the dataset.
    atlas : Atlas
        What the columns of the arrays are.
    recordings : DataFrame
        ``recording_id participant_id session run tr file`` (``tr`` in seconds, NaN where unknown) and what else is
        known of recordings.
    participants : DataFrame
        One row a person.
    exclusions : DataFrame
        What was left out before anything was read.
    read : callable
        ``read(row) -> Series`` for a row of ``recordings`` as a dict. It can be pickled, so that other processes read.
    costly : bool
        Whether reading one takes seconds (images) instead of milliseconds.
    labelled : bool
        Whether the files themselves say which column is which ROI; the order of the ROIs need not be checked then.
    """

    name: str
    atlas: Atlas
    recordings: pd.DataFrame
    participants: pd.DataFrame
    exclusions: pd.DataFrame
    read: Callable[[Mapping[str, Any]], Series]
    costly: bool = False
    labelled: bool = True


def one_tr(sources: Mapping[str, float], recording_id: str) -> float:
    """The one figure that every source of a recording's tr agrees on.

    Parameters
    ----------
    sources : dict of str to float
        Seconds between volumes, by where each figure was found; NaN tells nothing.
    recording_id : str
        For the message.

    Returns
    -------
    float
        Seconds; NaN where nothing tells it.

    Raises
    ------
    OpenBrainMassError
        If two of them differ by more than 0.5 %, or one is no time between volumes.
    """
    told = {place: float(tr) for place, tr in sources.items() if tr == tr}
    for place, tr in told.items():
        if not 0.05 <= tr <= 20:
            raise OpenBrainMassError(
                f"{place} gives {recording_id} a tr of {tr:g} s; seconds between 0.05 and 20 were expected. Mend it."
            )
    if told and max(told.values()) > (1 + _TR_TOLERANCE) * min(told.values()):
        figures = ", ".join(f"{tr:g} s in {place}" for place, tr in told.items())
        raise OpenBrainMassError(
            f"The sources of the tr of {recording_id} contradict each other: {figures}. Find out which is right and mend "
            "the other."
        )
    return next(iter(told.values()), math.nan)


def volume_ranges(kept: np.ndarray) -> str:
    """Numbers of volumes, counted from 0, as short text.

    Parameters
    ----------
    kept : ndarray of int
        Ascending.

    Returns
    -------
    str
        Such as ``0-40;47;50-99``.
    """
    runs = np.split(kept, np.flatnonzero(np.diff(kept) > 1) + 1)
    return ";".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs if len(run))
