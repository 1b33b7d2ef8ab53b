from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openbrainmass.cohort.filters import filter_series
from openbrainmass.cohort.source import ReadingSettings
from openbrainmass.errors import OpenBrainMassError

TR = 2.0
SECONDS = TR * np.arange(300)


def wave(frequency: float) -> np.ndarray:
    return np.sin(2 * np.pi * frequency * SECONDS)


def test_nothing_asked_is_nothing_done() -> None:
    bold = np.ones((5, 3), dtype=np.float16)
    same, steps = filter_series(bold, None, ReadingSettings())
    assert same is bold
    assert steps == ""


@pytest.mark.parametrize(
    ("band", "kept", "gone"),
    [((0.01, 0.1), 0.05, 0.2), ((0.01, 0.1), 0.05, 0.002), ((0.0, 0.1), 0.005, 0.2), ((0.05, 0.2), 0.1, 0.01)],
)
def test_the_band_stays_and_the_rest_goes(band: tuple[float, float], kept: float, gone: float) -> None:
    bold = np.column_stack([wave(kept), wave(gone), wave(kept) + wave(gone)])
    filtered, steps = filter_series(bold, TR, ReadingSettings(band_pass=band))
    assert steps == f"band-pass {band[0]:g}-{band[1]:g} Hz"
    middle = slice(60, -60)
    np.testing.assert_allclose(filtered[middle, 0], bold[middle, 0], atol=0.1)
    np.testing.assert_allclose(filtered[middle, 1], 0, atol=0.1)
    np.testing.assert_allclose(filtered[:, 2], filtered[:, 0] + filtered[:, 1], atol=1e-8)


@given(st.floats(-100, 100), st.floats(-5, 5))
def test_a_line_goes(offset: float, slope: float) -> None:
    bold = (wave(0.05) + offset + slope * SECONDS)[:, None]
    filtered, steps = filter_series(bold, None, ReadingSettings(detrend=True))
    plain, _ = filter_series(wave(0.05)[:, None], None, ReadingSettings(detrend=True))
    assert steps == "detrend"
    np.testing.assert_allclose(filtered, plain, atol=1e-8)


def test_both_steps_are_told_in_their_order() -> None:
    _, steps = filter_series(wave(0.05)[:, None], TR, ReadingSettings(detrend=True, band_pass=(0.01, 0.1)))
    assert steps == "detrend; band-pass 0.01-0.1 Hz"


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_missing_parcels_type_and_input_stay(dtype: type) -> None:
    bold = np.column_stack([wave(0.05), np.full(300, np.nan), wave(0.2)]).astype(dtype)
    before = bold.copy()
    filtered, _ = filter_series(bold, TR, ReadingSettings(detrend=True, band_pass=(0.01, 0.1)))
    assert filtered.dtype == dtype
    assert np.isnan(filtered[:, 1]).all()
    assert np.isfinite(filtered[:, [0, 2]]).all()
    np.testing.assert_array_equal(bold, before)


def test_nothing_but_missing_parcels() -> None:
    filtered, _ = filter_series(np.full((100, 2), np.nan), TR, ReadingSettings(detrend=True, band_pass=(0.01, 0.1)))
    assert np.isnan(filtered).all()


@pytest.mark.parametrize("tr", [None, float("nan"), 0.0, -2.0])
def test_a_band_needs_the_tr(tr: float | None) -> None:
    with pytest.raises(OpenBrainMassError, match=r"0\.01-0\.1 Hz needs the TR, which is unknown"):
        filter_series(wave(0.05)[:, None], tr, ReadingSettings(band_pass=(0.01, 0.1)))


@pytest.mark.parametrize("band", [(0.1, 0.01), (0.1, 0.1), (-0.1, 0.1)])
def test_a_band_is_low_and_high(band: tuple[float, float]) -> None:
    with pytest.raises(OpenBrainMassError, match=r"is no band; give \(low, high\)"):
        filter_series(wave(0.05)[:, None], TR, ReadingSettings(band_pass=band))


@pytest.mark.parametrize("high", [0.25, 0.3])
def test_a_band_ends_below_half_the_sampling_rate(high: float) -> None:
    with pytest.raises(OpenBrainMassError, match=r"reaches 0\.25 Hz, half the sampling rate at a TR of 2 s"):
        filter_series(wave(0.05)[:, None], TR, ReadingSettings(band_pass=(0.01, high)))


@pytest.mark.parametrize(("n_volumes", "low"), [(39, 0.1), (45, 0.01)])
def test_a_run_can_be_too_short(n_volumes: int, low: float) -> None:
    with pytest.raises(OpenBrainMassError, match=f"cannot be applied to {n_volumes} volumes"):
        filter_series(wave(0.05)[:n_volumes, None], TR, ReadingSettings(band_pass=(low, 0.2)))


def test_holes_are_not_filtered_over() -> None:
    bold = wave(0.05)[:, None].copy()
    bold[10] = np.nan
    with pytest.raises(OpenBrainMassError, match="some ROIs hold NaN or infinity at some volumes"):
        filter_series(bold, TR, ReadingSettings(detrend=True))
