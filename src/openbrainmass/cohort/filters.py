"""Detrending and band-pass of parcel series, as recorded steps."""

from __future__ import annotations

import numpy as np

from openbrainmass.cohort.source import ReadingSettings
from openbrainmass.errors import OpenBrainMassError

LEAST_VOLUMES = 40
"""Volumes that the band-pass needs: it mirrors 33 of them beyond either end of the run."""


def filter_series(bold: np.ndarray, tr: float | None, settings: ReadingSettings) -> tuple[np.ndarray, str]:
    """Take straight lines and unwanted frequencies out of parcel series.

    For series as files hold them; what is read from images is filtered together with its confounds. The band-pass is
    nilearn's (Butterworth of order 5, forwards and backwards). It takes volumes as evenly spaced, so series from
    which volumes were cut out should not be given to it.

    Parameters
    ----------
    bold : ndarray (n_volumes, n_rois)
        Series; columns of NaN stay as they are.
    tr : float or None
        Seconds between volumes.
    settings : ReadingSettings
        Its ``detrend`` and ``band_pass`` (Hz; a lower edge of 0 makes it a low-pass) say what to do.

    Returns
    -------
    bold : ndarray (n_volumes, n_rois)
        The same array where nothing is to be done, else a new one of the same type.
    steps : str
        What was done, such as ``detrend; band-pass 0.01-0.1 Hz``; empty where nothing was.

    Raises
    ------
    OpenBrainMassError
        If the TR is needed and unknown, the band is no band or reaches half the sampling rate, the run is too short,
        or a ROI is NaN in part.
    """
    if not settings.detrend and settings.band_pass is None:
        return bold, ""
    present = ~np.isnan(bold).all(axis=0)
    series = bold[:, present].astype(np.float64)
    if not np.isfinite(series).all():
        raise OpenBrainMassError(
            "The series cannot be filtered: some ROIs hold NaN or infinity at some volumes. Finite values are expected, "
            "or NaN throughout for a ROI that was not covered; read an interpolated series, or filter nothing."
        )
    steps = []
    if settings.detrend:
        from scipy.signal import detrend

        series = detrend(series, axis=0) if series.size else series
        steps.append("detrend")
    if settings.band_pass is not None:
        series = _band_pass(series, tr, settings.band_pass)
        steps.append(f"band-pass {settings.band_pass[0]:g}-{settings.band_pass[1]:g} Hz")
    filtered = np.array(bold)
    filtered[:, present] = series
    return filtered, "; ".join(steps)


def _band_pass(series: np.ndarray, tr: float | None, band: tuple[float, float]) -> np.ndarray:
    from nilearn.signal import butterworth

    low, high = band
    wanted = f"The band-pass {low:g}-{high:g} Hz"
    if not 0 <= low < high:
        raise OpenBrainMassError(f"{wanted} is no band; give (low, high) with 0 <= low < high, such as (0.01, 0.1).")
    if tr is None or not np.isfinite(tr) or tr <= 0:
        raise OpenBrainMassError(
            f"{wanted} needs the TR, which is unknown (found {tr}). Put it into a sidecar (RepetitionTime) or a column tr, "
            "in seconds."
        )
    if high >= 0.5 / tr:
        raise OpenBrainMassError(
            f"{wanted} reaches {0.5 / tr:.4g} Hz, half the sampling rate at a TR of {tr:g} s. Check the TR, or give a "
            "lower upper frequency."
        )
    if len(series) < LEAST_VOLUMES or 0 < len(series) * tr * low < 1:
        raise OpenBrainMassError(
            f"{wanted} cannot be applied to {len(series)} volumes of {tr:g} s: it needs {LEAST_VOLUMES} volumes and one "
            "whole period of its lower frequency. Leave the run out, or filter nothing."
        )
    if not series.size:
        return series
    return butterworth(series, sampling_rate=1 / tr, low_pass=high, high_pass=low or None, copy=True)
