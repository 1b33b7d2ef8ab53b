from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.connectivity import correlation
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.model import resident
from openbrainmass.model.pseudo_fc import AUGMENTATIONS, kept_volumes
from openbrainmass.model.resident import (
    ResidentScans,
    bytes_needed,
    hold_recordings,
    hold_scans,
    make_views,
    why_not_resident,
)
from openbrainmass.model.scans import Scans
from openbrainmass.model.settings import ViewSettings

CPU = torch.device("cpu")
ESTIMATORS = ["pearson", "ledoit-wolf"]
PER_VOLUME = 3e-3
"""Largest error of an edge times the root of the volumes kept; measured: rms 3.2e-4, largest of 10,000 edges 2e-3."""


def bold_like(n_volumes: int, n_rois: int = 20, seed: int = 0, noise: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(n_volumes, 4)) @ rng.normal(size=(4, n_rois))
    return (shared + noise * rng.normal(size=(n_volumes, n_rois))).astype(np.float32)


def hold(scans: list[np.ndarray]) -> ResidentScans:
    return hold_recordings(lambda number: scans[number], [len(bold) for bold in scans], scans[0].shape[1], CPU)


def exact(bold: np.ndarray, number: int, views: ViewSettings, epoch: int = 0, n_views: int = 2) -> np.ndarray:
    kept = kept_volumes(len(bold), n_views, views.augmentation, views.share, 0, epoch, number)
    return np.stack([correlation(bold[view].astype(np.float64), views.estimator) for view in kept])


def worst_error(scans: list[np.ndarray], **choices) -> float:
    """Largest error of an edge times the root of the volumes kept, of `make_views` in two views of every scan."""
    views = ViewSettings(**choices)
    fc = make_views(hold(scans), range(len(scans)), 0, 0, views).numpy()
    errors = []
    for number, bold in enumerate(scans):
        n_kept = kept_volumes(len(bold), 1, views.augmentation, views.share, scan=number).sum()
        errors.append(np.abs(fc[:, number] - exact(bold, number, views)).max() * n_kept**0.5)
    return max(errors)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("noise", [1.0, 0.01])
def test_float16_costs_little(estimator: str, noise: float) -> None:
    scans = [bold_like(n, 100, seed=n, noise=noise) for n in (30, 78, 176, 300, 490, 1200)]
    assert worst_error(scans, estimator=estimator) < PER_VOLUME


@pytest.mark.parametrize("augmentation", sorted(AUGMENTATIONS))
@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("share", [0.05, 0.6, 0.9])
def test_each_view_is_the_fc_of_what_it_keeps(augmentation: str, estimator: str, share: float) -> None:
    scans = [bold_like(n, seed=n) for n in (70, 133, 300)]
    assert worst_error(scans, augmentation=augmentation, estimator=estimator, share=share) < PER_VOLUME


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("height", [1e2, 1e4, 1e8])
def test_spikes_cost_no_precision(estimator: str, height: float) -> None:
    scans = []
    for seed, volume in itertools.product(range(4), (0, 40, 119)):
        bold = bold_like(120, seed=seed)
        bold[volume, seed : seed + 3] += height
        scans.append(bold)
    # A large spike leaves float32 less of the volume beside it; that is in the recording, not in how it is held.
    assert worst_error(scans, estimator=estimator) < PER_VOLUME


@pytest.mark.parametrize("offset", [30.0, 1e4, 1e7])
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e25])
def test_any_unit_and_offset(offset: float, scale: float) -> None:
    assert worst_error([(bold_like(120).astype(np.float64) + offset) * scale]) < PER_VOLUME


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dead", [0.0, 3.3, np.nan])
@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_dead_rois(dead: float, estimator: str, kind: type) -> None:
    bold = bold_like(100).astype(kind)
    bold[:, 5] = dead
    assert worst_error([bold], estimator=estimator) < PER_VOLUME
    fc = make_views(hold([bold]), [0], 0, 0, ViewSettings(estimator=estimator)).numpy()
    assert np.all(np.delete(fc[:, 0, 5], 5, axis=1) == 0)


def test_rounding_is_not_variance() -> None:
    bold = bold_like(100).astype(np.float64)
    bold[:, 5] = 1e6 * (1 + np.finfo(np.float64).eps * (np.arange(100) % 2))
    assert bold[:, 5].std() > 0 and worst_error([bold]) < PER_VOLUME


def test_a_roi_that_is_constant_within_a_window() -> None:
    # Off the scan's median, so that it is not zero as held.
    views = ViewSettings(augmentation="contiguous-crop", share=0.9)
    for level in (1.7, 3.0, 1e4 / 3):
        bold = bold_like(200)
        bold[:, 3] = np.where(np.arange(200) < 105, 0.1, level)
        scans = [bold] * 20
        fc = make_views(hold(scans), range(20), 0, 0, views).numpy()
        for number in range(20):
            expected = exact(bold, number, views)
            constant = (expected[:, 3] == 0).sum(axis=1) == 19
            assert np.array_equal(fc[constant, number, 3], expected[constant, 3])


def test_a_roi_that_varies_only_where_volumes_were_left_out() -> None:
    bold = bold_like(50)
    gone = np.flatnonzero(~kept_volumes(50)[0] & kept_volumes(50)[1])
    bold[:, 3] = 2.0
    bold[gone, 3] = 5.0
    fc = make_views(hold([bold]), [0], 0, 0, ViewSettings())[:, 0]
    assert torch.all(fc[0, 3, torch.arange(20) != 3] == 0) and fc[1, 3, :3].abs().max() > 0
    assert worst_error([bold]) < PER_VOLUME


def test_a_window_beside_a_step_is_less_precise_in_proportion() -> None:
    # What the module says of its limits: the window lies 100 or 1000 standard deviations off the scan's median.
    errors = []
    for step in (100, 1000):
        bold = bold_like(300)
        bold[:150, :5] += step
        errors.append(worst_error([bold] * 4, augmentation="contiguous-crop", share=0.9))
    assert PER_VOLUME < errors[0] < 60 * PER_VOLUME and errors[1] < 600 * PER_VOLUME


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    lengths=st.lists(st.integers(60, 200), min_size=1, max_size=4),
    n_rois=st.integers(1, 17),
    augmentation=st.sampled_from(sorted(AUGMENTATIONS)),
    estimator=st.sampled_from(ESTIMATORS),
    noise=st.sampled_from([1e-6, 1e-2, 1.0]),
)
def test_shape_of_any_fc(
    seed: int, lengths: list[int], n_rois: int, augmentation: str, estimator: str, noise: float
) -> None:
    scans = [bold_like(n, n_rois, seed, noise) for n in lengths]
    for bold in scans:
        bold[:, n_rois // 2 :] = -3 * bold[:, : n_rois - n_rois // 2]
    fc = make_views(
        hold(scans), range(len(scans)), 1, seed, ViewSettings(augmentation=augmentation, estimator=estimator), n_views=3
    )
    assert fc.shape == (3, len(scans), n_rois, n_rois) and fc.dtype == torch.float32 and fc.is_contiguous()
    assert torch.equal(fc, fc.mT) and fc.abs().max() <= 1
    assert torch.all(fc.diagonal(dim1=-2, dim2=-1) == 1)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_little_memory_gives_the_same_views(estimator: str) -> None:
    scans = [bold_like(n, seed=n) for n in (70, 300, 90, 133, 61, 300)]
    held, views = hold(scans), ViewSettings(estimator=estimator)
    order = [5, 0, 3, 2, 1, 4, 0]
    whole = make_views(held, order, 4, 1, views)
    for working_bytes in (1, 400_000):
        parts = make_views(held, order, 4, 1, views, working_bytes=working_bytes)
        assert (whole - parts).abs().max() < 1e-6
    numbers = torch.tensor(order)
    for working_bytes in (1, 1 << 30):
        parts = make_views(held, numbers, torch.tensor(4), 1, views, working_bytes=working_bytes)
        assert (whole - parts).abs().max() < 1e-6
    assert torch.equal(whole, make_views(held, order, 4, 1, views))
    assert torch.equal(whole[:, 1], whole[:, 6])


def test_epoch_seed_and_scan_count() -> None:
    bold = bold_like(100)
    held = hold([bold, bold])
    first = make_views(held, [0], 0, 0, ViewSettings())
    others = [make_views(held, *key, ViewSettings()) for key in (([1], 0, 0), ([0], 1, 0), ([0], 0, 1))]
    assert all((first - other).abs().max() > 0.01 for other in others)


def test_autocast_and_gradients_are_left_alone() -> None:
    held = hold([bold_like(100)])
    plain = make_views(held, [0], 0, 0, ViewSettings(estimator="ledoit-wolf"))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(plain, make_views(held, [0], 0, 0, ViewSettings(estimator="ledoit-wolf")))


def test_nothing_is_read_back_from_the_device() -> None:
    # On the "meta" device tensors have shapes and no values, so that whatever needs a value fails.
    held = hold([bold_like(n) for n in (70, 100)])
    there = torch.device("meta")
    ghost = ResidentScans(
        held.values.to(there), held.starts.to(there), held.lengths.to(there), held.n_volumes, held.n_rois
    )
    for augmentation, estimator in itertools.product(AUGMENTATIONS, ESTIMATORS):
        views = ViewSettings(augmentation=augmentation, estimator=estimator)
        key = resident.view_key(0, there)
        numbers = torch.zeros(2, dtype=torch.int64, device=there)
        fc = resident._views_of_group(ghost, numbers, 100, key[0, 0, 0, 0], key, views, 2)
        assert fc.shape == (2, 2, 20, 20)


def test_a_cohort_is_held_whole(cohort: Cohort) -> None:
    scans = Scans([cohort, cohort])
    held = hold_scans(scans, CPU)
    assert len(held) == len(scans) and held.values.shape == (held.n_volumes.sum() + 1, 24)
    assert bytes_needed(int(held.n_volumes.sum()), 21) == held.values.numel() * held.values.element_size()
    number = len(cohort) + 3
    fc = make_views(held, [number], 2, 0, ViewSettings())[:, 0].numpy()
    assert np.abs(fc - exact(cohort.bold(3), number, ViewSettings(), epoch=2)).max() < 1e-3


def test_uploads_in_parts_hold_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    scans = [bold_like(n, seed=n) for n in (70, 300, 90)]
    whole = hold(scans)
    monkeypatch.setattr(resident, "_UPLOAD_BYTES", 1)
    assert torch.equal(whole.values, hold(scans).values)


def test_a_device_that_is_too_small_is_told(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    scans = Scans(cohort)
    needed = bytes_needed(int(cohort.recordings["n_volumes"].sum()), 21)
    assert why_not_resident(scans, CPU) is None
    for free, fits in ((2 * needed, True), (2 * needed - 2, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, 10 * free))
        told = why_not_resident(scans, torch.device("cuda"))
        assert (told is None) == fits
    assert told is not None and "24 recordings" in told and "processor" in told


def test_mistakes_are_explained() -> None:
    bold = bold_like(100)
    bold[4, [2, 6]] = np.nan
    with pytest.raises(OpenBrainMassError, match=r"Scan 1: ROI column\(s\) 2, 6 .* NaN or infinity"):
        hold([bold_like(90), bold])
    with pytest.raises(OpenBrainMassError, match=r"Scan 0 has shape \(100, 20\) where \(100, 21\)"):
        hold_recordings(lambda number: bold_like(100), [100], 21, CPU)
    held = hold([bold_like(100), bold_like(40)])
    with pytest.raises(OpenBrainMassError, match="Scan 1 has 40 volumes, too few for fixed-count"):
        make_views(held, [0], 0, 0, ViewSettings(augmentation="fixed-count"))


def test_views_compile_as_one_graph() -> None:
    held = hold([bold_like(n) for n in (70, 100)])
    arguments = (torch.tensor([1, 0]), 100, torch.tensor(3), resident.view_key(0, CPU), ViewSettings(), 2)
    traced = torch.compile(resident._views_of_group, backend="eager", fullgraph=True)
    assert torch.equal(traced(held, *arguments), resident._views_of_group(held, *arguments))


@pytest.mark.slow
def test_the_benchmark_runs() -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
    done = subprocess.run([sys.executable, str(script), "--rehearse"], capture_output=True, text=True, check=True)
    assert "training scans/s" in done.stdout and "again:" in done.stdout
    assert "failed" not in done.stdout and "WRONG" not in done.stdout
