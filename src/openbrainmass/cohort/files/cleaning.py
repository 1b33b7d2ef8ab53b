"""Parcel series cleaned: confounds, drifts and other frequencies taken out in one step."""

from __future__ import annotations

import warnings

import numpy as np

from openbrainmass.cohort.files.confounds import Confounds
from openbrainmass.cohort.source import ReadingSettings
from openbrainmass.errors import OpenBrainMassError


def clean_series(
    bold: np.ndarray, tr: float, settings: ReadingSettings, confounds: Confounds | None = None
) -> tuple[np.ndarray, str]:
    """Take confounds, drifts and other frequencies out of parcel series in one step, by nilearn.

    The regressors are detrended and filtered as the series are, so that nothing comes back in. The mean of an ROI
    stays unless detrending or a band-pass takes it out.

    Parameters
    ----------
    bold : ndarray (n_volumes, n_rois)
        Columns of NaN stay so.
    tr : float
        Seconds between volumes; needed for a band-pass only.
    settings : ReadingSettings
        `detrend` and `band_pass`.
    confounds : Confounds, optional
        What to regress out, and which volumes to keep.

    Returns
    -------
    bold : ndarray (n_kept, n_rois), float32
    steps : str
        What was done.

    Raises
    ------
    OpenBrainMassError
        If the confounds are of another run or leave nothing of the signal, or a band-pass lacks the TR or asks for
        frequencies that it does not hold.
    """
    confounds = confounds or Confounds()
    _check_rows(confounds, len(bold))
    kept = np.arange(len(bold)) if confounds.kept is None else confounds.kept
    present = ~np.isnan(bold).all(axis=0)
    done = np.full((len(kept), bold.shape[1]), np.nan, dtype=np.float32)
    if confounds.regressors is None and not settings.detrend and not settings.band_pass:
        done[:] = bold[kept]
        return done, confounds.steps
    from nilearn.signal import clean

    signals, regressors = bold[:, present].astype(np.float64), confounds.regressors
    low, high = _band(tr, settings)
    if settings.band_pass and len(kept) < len(bold):
        signals, regressors, kept = _bridged(signals, regressors, kept)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        done[:, present] = clean(
            signals,
            confounds=regressors,
            sample_mask=kept.copy() if len(kept) < len(signals) else None,
            detrend=settings.detrend,
            standardize=None,
            filter="butterworth" if settings.band_pass else False,
            high_pass=low,
            low_pass=high,
            t_r=tr if settings.band_pass else None,
        )
    return done, "; ".join(filter(None, (confounds.steps, _filter_steps(settings))))


def _filter_steps(settings: ReadingSettings) -> str:
    band = settings.band_pass
    return "; ".join(
        filter(None, ("detrended" if settings.detrend else "", f"band-pass {band[0]:g}-{band[1]:g} Hz" if band else ""))
    )


def _band(tr: float, settings: ReadingSettings) -> tuple[float | None, float | None]:
    if settings.band_pass is None:
        return None, None
    low, high = settings.band_pass
    if not tr > 0:
        raise OpenBrainMassError(
            "A band-pass was asked for, but neither the header nor a sidecar tells the tr of this recording. Add a JSON "
            "sidecar with RepetitionTime, or leave reading.band_pass out."
        )
    if not 0 <= low < high < 0.5 / tr:
        raise OpenBrainMassError(
            f"The band-pass {low:g}-{high:g} Hz does not fit a tr of {tr:g} s: 0 <= low < high < {0.5 / tr:g} Hz was "
            "expected. Change reading.band_pass."
        )
    return low or None, high


def _bridged(
    signals: np.ndarray, regressors: np.ndarray | None, kept: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Cut to the span of kept volumes and fill the gaps in it, as a filter needs it.

    nilearn (0.14) means to do both, but passes over gaps that are mirrored by another one and then filters
    the moved volumes in; on series that are bridged already it finds nothing left to do.
    """
    from scipy.interpolate import CubicSpline

    span = slice(kept[0], kept[-1] + 1)
    kept = kept - kept[0]
    bridged = []
    for series in (signals, regressors):
        if series is not None:
            series = CubicSpline(kept, series[span][kept])(np.arange(span.stop - span.start))
        bridged.append(series)
    return bridged[0], bridged[1], kept


def _check_rows(confounds: Confounds, n_volumes: int) -> None:
    if confounds.n_volumes not in (None, n_volumes):
        raise OpenBrainMassError(
            f"The confounds file {confounds.file} has {confounds.n_volumes} rows but its image {n_volumes} volumes. Both "
            "must come from the same run: fetch them again."
        )
    if confounds.regressors is None:
        return
    n_kept, n_regressors = (
        len(confounds.regressors if confounds.kept is None else confounds.kept),
        confounds.regressors.shape[1],
    )
    if n_kept <= n_regressors + 1:
        raise OpenBrainMassError(
            f"The confounds file {confounds.file} keeps {n_kept} of {n_volumes} volumes and has {n_regressors} regressors "
            "for them, so nothing would be left of the signal. Choose a milder strategy (--set reading.strategy) or "
            "leave the run out."
        )
