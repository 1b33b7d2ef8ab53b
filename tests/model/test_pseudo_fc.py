from __future__ import annotations

import itertools
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from openbrainmass.connectivity import correlation
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.model.pseudo_fc import AUGMENTATIONS, FIXED_COUNT, kept_volumes, pseudo_fc, pseudo_fc_batch

NAMES = sorted(AUGMENTATIONS)


def bold_like(n_volumes: int, n_rois: int = 20, seed: int = 0, noise: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n_volumes, 4)) @ rng.normal(size=(4, n_rois))
    return (shared + noise * rng.normal(size=(n_volumes, n_rois))).astype(np.float32)


def exact(bold: np.ndarray, kept: np.ndarray, estimator: str = "pearson") -> np.ndarray:
    return np.stack([correlation(bold[view].astype(np.float64), estimator) for view in kept])


def worst_error(scans: list[np.ndarray], **settings) -> float:
    fc = pseudo_fc_batch(scans, range(len(scans)), **settings)
    draw = {name: value for name, value in settings.items() if name != "estimator"}
    errors = [
        np.abs(fc[:, i] - exact(bold, kept_volumes(len(bold), scan=i, **draw), settings.get("estimator", "pearson")))
        for i, bold in enumerate(scans)
    ]
    return max(float(error.max()) for error in errors)


@pytest.mark.parametrize("estimator", ["pearson", "ledoit-wolf"])
@pytest.mark.parametrize("noise", [1.0, 0.01])
def test_as_precise_as_two_passes_in_float64(estimator: str, noise: float) -> None:
    scans = [bold_like(n, 40, seed=n, noise=noise) for n in (30, 78, 176, 300, 381, 490, 1200)]
    assert worst_error(scans, estimator=estimator) <= 1e-6


@pytest.mark.parametrize("estimator", ["pearson", "ledoit-wolf"])
@pytest.mark.parametrize("offset", [30.0, 900.0, 1e4])
def test_offsets_cost_no_precision(estimator: str, offset: float) -> None:
    scans = [bold_like(n, seed=n) * 7 + 7 * offset for n in (90, 380)]
    assert worst_error([bold.astype(np.float32) for bold in scans], estimator=estimator) <= 1e-6
    assert worst_error([bold.astype(np.float64) for bold in scans], estimator=estimator) <= 1e-6


@pytest.mark.parametrize("estimator", ["pearson", "ledoit-wolf"])
@pytest.mark.parametrize("height", [30.0, 1e4, 1e6])
def test_spikes_cost_no_precision(estimator: str, height: float) -> None:
    # Whether the spike stays or goes, and whether it stands first, where a shift by the first volume would fail.
    scans = []
    for seed, volume in itertools.product(range(6), (0, 40, 119)):
        bold = bold_like(120, seed=seed)
        bold[volume, seed : seed + 3] += height
        scans.append(bold)
    assert worst_error(scans, estimator=estimator) <= 1e-6


@pytest.mark.parametrize("scale", [1e-22, 1e-16, 1e12, 1e25])
def test_any_unit(scale: float) -> None:
    assert worst_error([bold_like(100) * np.float32(scale)]) <= 1e-6


@pytest.mark.parametrize("dead", [0.0, 3.3, np.nan])
@pytest.mark.parametrize("estimator", ["pearson", "ledoit-wolf"])
def test_dead_rois(dead: float, estimator: str) -> None:
    bold = bold_like(100)
    bold[:, 5] = dead
    assert worst_error([bold], estimator=estimator) <= 1e-6
    fc = pseudo_fc(bold, estimator=estimator)
    assert np.all(np.delete(fc[:, 5], 5, axis=1) == 0) and np.all(fc[:, 5, 5] == 1)


def test_a_roi_that_varies_only_where_volumes_were_left_out() -> None:
    bold = bold_like(50)
    gone = np.flatnonzero(~kept_volumes(50)[0] & kept_volumes(50)[1])
    bold[:, 3] = 2.0
    bold[gone, 3] = 5.0
    fc = pseudo_fc(bold)
    assert np.all(np.delete(fc[0, 3], 3) == 0) and np.abs(np.delete(fc[1, 3], 3)).max() > 0
    assert worst_error([bold]) <= 1e-6


@pytest.mark.parametrize("augmentation", NAMES)
@pytest.mark.parametrize("n_views", [1, 2, 3, 4])
@pytest.mark.parametrize("estimator", ["pearson", "ledoit-wolf"])
def test_each_view_is_the_fc_of_what_it_keeps(augmentation: str, n_views: int, estimator: str) -> None:
    scans = [bold_like(n, seed=n) for n in (70, 133)]
    assert worst_error(scans, n_views=n_views, augmentation=augmentation, estimator=estimator) <= 1e-6


@pytest.mark.parametrize("estimator", ["pearson", "ledoit-wolf"])
@pytest.mark.parametrize("share", [0.0, 0.6, 0.9])
def test_shares(estimator: str, share: float) -> None:
    assert worst_error([bold_like(101)], share=share, estimator=estimator) <= 1e-6
    if share == 0:
        assert np.abs(pseudo_fc(bold_like(101), share=0) - correlation(bold_like(101))).max() <= 1e-6


@pytest.mark.parametrize("estimator", ["pearson", "ledoit-wolf"])
def test_numpy_and_torch_agree(estimator: str) -> None:
    bold = bold_like(150)
    key = {"estimator": estimator, "seed": 4, "epoch": 2, "scan": 9}
    from_torch = pseudo_fc(torch.from_numpy(bold), **key)
    assert isinstance(from_torch, torch.Tensor)
    assert np.abs(pseudo_fc(bold, **key) - from_torch.numpy()).max() <= 1e-6
    assert np.abs(pseudo_fc(bold.astype(np.float64), **key) - from_torch.numpy()).max() <= 1e-6
    assert np.abs(pseudo_fc(bold.astype(np.float16), **key) - from_torch.numpy()).max() < 5e-3


def test_torch_gradients_flow() -> None:
    bold = torch.from_numpy(bold_like(60)).requires_grad_()
    pseudo_fc(bold).square().sum().backward()
    assert torch.isfinite(bold.grad).all() and bold.grad.abs().max() > 0


def test_types_and_shape() -> None:
    bold = bold_like(60)
    assert pseudo_fc(bold, n_views=3).shape == (3, 20, 20)
    assert pseudo_fc(bold).dtype == np.float32 and pseudo_fc(bold.astype(np.float64)).dtype == np.float64
    batch = pseudo_fc_batch([bold, bold[:50]], [1, 2])
    assert batch.shape == (2, 2, 20, 20) and batch.dtype == np.float32 and batch.flags.c_contiguous


@given(
    seed=st.integers(0, 10_000), n_volumes=st.integers(10, 200), n_rois=st.integers(1, 9), name=st.sampled_from(NAMES)
)
def test_shape_of_any_pseudo_fc(seed: int, n_volumes: int, n_rois: int, name: str) -> None:
    fc = pseudo_fc_batch([bold_like(max(n_volumes, FIXED_COUNT), n_rois, seed, noise=1e-3)], [seed], augmentation=name)
    assert np.array_equal(fc, fc.swapaxes(-1, -2))
    assert np.all(np.diagonal(fc, axis1=-2, axis2=-1) == 1) and np.abs(fc).max() <= 1


def test_randomness_depends_on_the_key_only() -> None:
    scans = [bold_like(n, seed=n) for n in (120, 90, 150)]
    whole = pseudo_fc_batch(scans, [7, 8, 9], seed=3, epoch=5)
    turned = pseudo_fc_batch(scans[::-1], [9, 8, 7], seed=3, epoch=5)
    assert np.array_equal(whole, turned[:, ::-1])
    assert np.array_equal(whole[:, 1], pseudo_fc(scans[1], seed=3, epoch=5, scan=8))
    with ThreadPoolExecutor(4) as pool:
        parts = list(pool.map(lambda i: pseudo_fc_batch([scans[i % 3]], [7 + i % 3], seed=3, epoch=5), range(60)))
    assert all(np.array_equal(part[:, 0], whole[:, i % 3]) for i, part in enumerate(parts))


def test_every_part_of_the_key_counts_and_views_differ() -> None:
    first = kept_volumes(100, 3)
    for change in ({"seed": 1}, {"epoch": 1}, {"scan": 1}, {"seed": 2**64 + 1}):
        assert not np.array_equal(first, kept_volumes(100, 3, **change))
    assert not np.array_equal(first[0], first[1]) and not np.array_equal(first[1], first[2])
    assert np.array_equal(first[:2], kept_volumes(100, 2))


def test_the_draw_is_frozen() -> None:
    # A change of these numbers would change every pretraining that is restarted or repeated.
    left_out = [np.flatnonzero(~view).tolist() for view in kept_volumes(15, 2, seed=1, epoch=2, scan=3)]
    assert left_out == [[8, 11, 12], [2, 3, 14]]


@pytest.mark.parametrize("augmentation", NAMES)
@given(n_volumes=st.integers(FIXED_COUNT, 400), share=st.floats(0, 0.9), seed=st.integers(0, 2**70))
def test_how_many_volumes_stay(augmentation: str, n_volumes: int, share: float, seed: int) -> None:
    kept = kept_volumes(n_volumes, 2, augmentation, share, seed=seed)
    expected = FIXED_COUNT if augmentation == "fixed-count" else n_volumes - round(share * n_volumes)
    assert kept.sum(axis=1).tolist() == [expected] * 2


@given(scan=st.integers(0, 10_000), n_volumes=st.integers(10, 300))
def test_a_crop_is_one_window(scan: int, n_volumes: int) -> None:
    for view in kept_volumes(n_volumes, 2, "contiguous-crop", 0.3, scan=scan):
        assert np.all(np.diff(np.flatnonzero(view)) == 1)


@given(scan=st.integers(0, 10_000), n_volumes=st.integers(10, 300))
def test_chunks_are_few_and_long(scan: int, n_volumes: int) -> None:
    for view in kept_volumes(n_volumes, 2, "chunk-drop", 0.2, scan=scan):
        gone = (~view).astype(int)
        runs = np.diff(np.flatnonzero(np.diff(np.concatenate([[0], gone, [0]]))))[::2]
        shortest = min(gone.sum(), 7)
        assert len(runs) <= max(1, round(gone.sum() / 10)) and (len(runs) == 0 or runs.min() >= shortest)


@pytest.mark.parametrize(("augmentation", "n_volumes", "share"), [("random-drop", 6, 1 / 3), ("chunk-drop", 8, 0.25)])
def test_every_subset_is_equally_likely(augmentation: str, n_volumes: int, share: float) -> None:
    counts: dict[tuple[int, ...], int] = {}
    for scan in range(3000):
        for view in kept_volumes(n_volumes, 2, augmentation, share, scan=scan):
            key = tuple(np.flatnonzero(~view).tolist())
            counts[key] = counts.get(key, 0) + 1
    assert len(counts) == (15 if augmentation == "random-drop" else 7)
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_every_crop_is_equally_likely() -> None:
    starts = [int(kept_volumes(10, 1, "contiguous-crop", 0.4, scan=scan)[0].argmax()) for scan in range(2000)]
    assert chisquare(np.bincount(starts, minlength=5)).pvalue > 1e-3


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda bold: pseudo_fc(bold, augmentation="shuffle"), "augmentation 'shuffle' is not known"),
        (lambda bold: pseudo_fc(bold, share=1.0), "below 1"),
        (lambda bold: pseudo_fc(bold, share=-0.1), "at least 0"),
        (lambda bold: pseudo_fc(bold, share=0.95), "at least 3 must stay"),
        (lambda bold: pseudo_fc(bold, augmentation="fixed-count"), "too few for fixed-count"),
        (lambda bold: pseudo_fc(bold, estimator="kendall"), "estimator 'kendall' is not known"),
        (lambda bold: pseudo_fc(bold[None]), "one recording"),
        (lambda bold: pseudo_fc_batch([], []), "no scans"),
        (lambda bold: pseudo_fc_batch([bold, bold[:, :5]], [1, 2]), "Scan 2 has shape"),
    ],
)
def test_mistakes_are_explained(call, message: str) -> None:
    with pytest.raises(OpenBrainMassError, match=message):
        call(bold_like(40))


def test_a_broken_scan_is_named() -> None:
    bold = bold_like(40)
    bold[kept_volumes(40, scan=12)[0].argmax(), 6] = np.nan
    with pytest.raises(OpenBrainMassError, match=r"Scan 12: ROI column\(s\) 6"):
        pseudo_fc_batch([bold], [12])


def test_the_benchmark_runs() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "pseudo_fc.py"
    command = [sys.executable, str(script), "--scans", "2", "--rois", "10", "--rounds", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "openbrainmass, pearson" in done.stdout and "again:" in done.stdout


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_roi_that_is_not_finite_in_part_is_refused_and_not_taken_for_missing(dtype: type, value: float) -> None:
    bold = np.random.default_rng(0).normal(size=(100, 10)).astype(dtype)
    bold[17, 3] = value
    for key in range(6):
        kept = kept_volumes(100, scan=key)[:, 17]
        if kept.any():
            with pytest.raises(OpenBrainMassError, match=r"column\(s\) 3 "):
                pseudo_fc_batch([bold], [key])
        else:
            assert np.abs(pseudo_fc_batch([bold], [key])[:, 0, 3, :3]).min() > 0


def test_at_least_one_view_must_be_asked_for() -> None:
    with pytest.raises(OpenBrainMassError, match="at least 1"):
        pseudo_fc(np.random.default_rng(0).normal(size=(50, 4)), n_views=0)


def test_words_with_equal_upper_halves_are_told_apart_by_the_lower() -> None:
    words = np.array([[5, 1, 3, 2, 4], [9, 1 << 40, 7, 8, 6]], dtype=np.uint64)
    kept = AUGMENTATIONS["random-drop"](words, 2)
    assert kept.tolist() == [[True, False, True, False, True], [True, True, False, True, False]]
