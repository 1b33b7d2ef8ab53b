from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openbrainmass.connectivity import correlation
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.model import view_products
from openbrainmass.model.pseudo_fc import AUGMENTATIONS, FIXED_COUNT, kept_volumes, pseudo_fc, pseudo_fc_batch
from openbrainmass.model.view_products import standardise

ESTIMATORS = ["pearson", "ledoit-wolf"]
ROUTES = [lambda bold: bold, standardise]


def bold_like(n_volumes: int, n_rois: int = 20, seed: int = 0, noise: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n_volumes, 4)) @ rng.normal(size=(4, n_rois))
    return (shared + noise * rng.normal(size=(n_volumes, n_rois))).astype(np.float32)


def error(given_scan, bold: np.ndarray, n_views: int = 2, estimator: str = "pearson", **draw) -> float:
    """Largest difference from two passes in float64, once the shape of a correlation matrix is seen to."""
    fc = pseudo_fc_batch([given_scan], [draw.get("scan", 0)], n_views, estimator=estimator, **without_scan(draw))[:, 0]
    assert np.array_equal(fc, fc.swapaxes(-1, -2)) and np.abs(fc).max() <= 1
    assert np.all(np.diagonal(fc, axis1=-2, axis2=-1) == 1)
    kept = kept_volumes(len(bold), n_views, **draw)
    exact = np.stack([correlation(bold[mask].astype(np.float64), estimator) for mask in kept])
    return float(np.abs(fc - exact).max())


def without_scan(draw: dict) -> dict:
    return {name: value for name, value in draw.items() if name != "scan"}


@pytest.fixture
def precise_views(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The scans of the views that went the precise way."""
    keys: list[int] = []
    exact = view_products._exact

    def counted(scan, kept, estimator, key):
        keys.append(key)
        return exact(scan, kept, estimator, key)

    monkeypatch.setattr(view_products, "_exact", counted)
    return keys


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("augmentation", sorted(AUGMENTATIONS))
@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.4, 0.6, 0.9])
def test_a_standardised_scan_gives_the_same_views(estimator: str, augmentation: str, share: float) -> None:
    for n_volumes in (70, 381):
        bold = bold_like(n_volumes, seed=n_volumes)
        scan = standardise(bold)
        for n_views in (1, 3):
            assert error(scan, bold, n_views, estimator, augmentation=augmentation, share=share) <= 1e-6


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_dead_rois_and_missing_rois_cost_nothing(route, estimator: str, precise_views: list[int]) -> None:
    bold = bold_like(150)
    bold[:, 2], bold[:, 5], bold[:, 9] = 0, 3.3, np.nan
    assert error(route(bold), bold, estimator=estimator) <= 1e-6
    assert precise_views == []


@pytest.mark.parametrize("route", ROUTES)
def test_ordinary_scans_need_no_second_pass(route, precise_views: list[int]) -> None:
    # T = 30 is the shortest: a ROI may keep less of its variance there, and one volume may hold much of it.
    for seed, n_volumes in enumerate((30, 60, 120, 380)):
        pseudo_fc_batch([route(bold_like(n_volumes, seed=seed) + 900)], [seed])
    assert precise_views == []


@pytest.mark.parametrize("height", [1e2, 1e4, 1e6])
def test_a_spike_that_is_left_out_sends_its_view_the_precise_way(height: float, precise_views: list[int]) -> None:
    bold = bold_like(200)
    kept = kept_volumes(200, 2)
    bold[np.flatnonzero(~kept[0] & kept[1])[0], 3:6] += height
    scan = standardise(bold)
    assert error(scan, bold) <= 1e-6
    assert precise_views == [0]


def test_without_the_guard_a_spike_would_cost_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    bold = bold_like(200)
    kept = kept_volumes(200, 2)
    bold[np.flatnonzero(~kept[0] & kept[1])[0], 3:6] += 1e4
    monkeypatch.setattr(view_products, "_SMALLEST_SHARE_LEFT", 0.0)
    assert error(standardise(bold), bold) > 1e-4


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    n_volumes=st.integers(8, 600),
    n_rois=st.integers(2, 60),
    noise=st.floats(-3, 0.5),
    spikes=st.lists(st.floats(0, 6), max_size=3),
    offset=st.floats(0, 4),
    share=st.floats(0.05, 0.9),
    augmentation=st.sampled_from(sorted(AUGMENTATIONS)),
    estimator=st.sampled_from(ESTIMATORS),
    dtype=st.sampled_from([np.float32, np.float64]),
    n_views=st.integers(1, 3),
)
def test_as_precise_as_two_passes_whatever_comes(
    seed, n_volumes, n_rois, noise, spikes, offset, share, augmentation, estimator, dtype, n_views
) -> None:
    if augmentation == "fixed-count":
        n_volumes += FIXED_COUNT
    if round(share * n_volumes) > n_volumes - 3:
        share = 0.5
    rng = np.random.default_rng(seed)
    bold = bold_like(n_volumes, n_rois, seed, 10**noise).astype(np.float64)
    for height in spikes:
        bold[rng.integers(n_volumes), rng.random(n_rois) < 0.5] += 10**height
    bold = (bold + 10**offset * rng.normal(size=n_rois)).astype(dtype)
    for route in ROUTES:
        draw = {"augmentation": augmentation, "share": share, "scan": seed}
        assert error(route(bold), bold, n_views, estimator, **draw) <= 1.5e-6


@pytest.mark.parametrize("route", ROUTES)
def test_float16_recordings(route) -> None:
    bold = (bold_like(300, 40) + 5).astype(np.float16)
    assert error(route(bold), bold) <= 1e-6


def test_a_roi_that_hardly_varies_in_float64() -> None:
    bold = bold_like(80).astype(np.float64)
    bold[:, 4] = 1e8 + 1e-8 * bold[:, 4]
    bold[:, 6] = 1e8 + 1e-2 * bold[:, 6]
    for route in ROUTES:
        assert error(route(bold), bold) <= 1e-6


def test_the_number_of_views_and_the_batch_do_not_change_a_view() -> None:
    scans = [bold_like(n, 30, seed=n) for n in (90, 200, 120, 61, 300, 80, 77, 140)]
    for route in ROUTES:
        given_scans = [route(bold) for bold in scans]
        whole = pseudo_fc_batch(given_scans, range(8), 400, epoch=3)
        assert np.array_equal(whole[:4, 4], pseudo_fc(given_scans[4], 4, epoch=3, scan=4))
        assert np.abs(whole[399, 7] - pseudo_fc(scans[7].astype(np.float64), 400, epoch=3, scan=7)[399]).max() <= 1e-6


def test_threads_do_not_share_memory() -> None:
    scans = [bold_like(n, seed=n) for n in (120, 90, 150)]
    prepared = [standardise(bold) for bold in scans]
    alone = [pseudo_fc(scan, epoch=1, scan=i) for i, scan in enumerate(prepared)]
    with ThreadPoolExecutor(4) as pool:
        many = list(pool.map(lambda i: pseudo_fc(prepared[i % 3], epoch=1, scan=i % 3), range(90)))
    assert all(np.array_equal(views, alone[i % 3]) for i, views in enumerate(many))


def test_what_a_standardised_scan_holds() -> None:
    bold = bold_like(100)
    bold[:, 7] = 1.5
    scan = standardise(bold)
    assert scan.bold is bold and scan.shape == bold.shape and scan.still.tolist() == [7]
    assert np.abs(scan.gram / 100 - correlation(bold.astype(np.float64))).max() < 1e-6
    assert np.abs(scan.rows.mean(axis=0)).max() < 1e-6
    assert np.allclose(scan.rows.std(axis=0), [roi != 7 for roi in range(20)], atol=1e-6)


def test_mixed_batches_and_mistakes() -> None:
    bold = bold_like(60)
    mixed = pseudo_fc_batch([bold, standardise(bold)], [4, 4])
    assert np.abs(mixed[:, 0] - mixed[:, 1]).max() <= 1e-6
    with pytest.raises(OpenBrainMassError, match="one recording"):
        standardise(bold[None])
    with pytest.raises(OpenBrainMassError, match="Scan 2 has shape"):
        pseudo_fc_batch([standardise(bold), standardise(bold[:, :5])], [1, 2])
    bold[3, 6] = np.nan
    with pytest.raises(OpenBrainMassError, match=r"ROI column\(s\) 6"):
        standardise(bold)


@pytest.mark.parametrize("estimator", ["pearson", "ledoit-wolf"])
@pytest.mark.parametrize("height", [3.0, 10.0, 30.0, 100.0, 1e4])
@pytest.mark.parametrize("share", [0.05, 0.2, 0.4])
def test_views_of_a_ready_scan_with_spikes_are_exact_to_a_millionth(
    estimator: str, height: float, share: float
) -> None:
    """Whether the spikes are among the volumes left out or stay."""
    rng = np.random.default_rng(int(height))
    bold = (rng.normal(size=(150, 5)) @ rng.normal(size=(5, 30)) + rng.normal(size=(150, 30))).astype(np.float32)
    bold[rng.integers(150, size=4)] += np.float32(height) * (rng.random((4, 30)) < 0.4)
    views = pseudo_fc_batch([standardise(bold)], [0], 12, share=share, estimator=estimator)[:, 0]
    for view, kept in zip(views, kept_volumes(150, 12, share=share), strict=True):
        exact = correlation(bold[kept].astype(np.float64), estimator)
        assert np.abs(view - exact).max() < 1e-6
