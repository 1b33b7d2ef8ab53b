from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openbrainmass.atlas import Atlas, load_atlas, numbered_atlas
from openbrainmass.bridge import Bridge
from openbrainmass.errors import OpenBrainMassError

GRID = np.diag([2.0, 2.0, 2.0, 1.0])


def save_atlas(path: Path, labels: np.ndarray, affine: np.ndarray = GRID) -> Atlas:
    nib.save(nib.Nifti1Image(labels.astype(np.int16), affine), path)
    return load_atlas(path)


@pytest.fixture
def thirds(tmp_path: Path) -> Atlas:
    """Three slabs of four planes each; the last two planes of the image are empty."""
    labels = np.zeros((14, 6, 6))
    for number in range(3):
        labels[4 * number : 4 * number + 4] = number + 1
    return save_atlas(tmp_path / "Thirds.nii.gz", labels)


@pytest.fixture
def halves(tmp_path: Path) -> Atlas:
    """Two slabs of six planes, and a third one of which nothing of `thirds` covers more than nothing."""
    labels = np.zeros((14, 6, 6))
    labels[:6], labels[6:12], labels[12:] = 10, 20, 30
    return save_atlas(tmp_path / "Halves.nii.gz", labels)


def series(n_rois: int, n_volumes: int = 50, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n_volumes, n_rois))


def test_weights_are_shares_of_the_target(thirds: Atlas, halves: Atlas) -> None:
    bridge = Bridge(thirds, halves)
    np.testing.assert_allclose(bridge.weights, [[4 / 6, 2 / 6, 0], [0, 2 / 6, 4 / 6], [0, 0, 0]])
    assert bridge.overlap[1:].sum() == 14 * 36
    assert bridge.overlap[3, 0] == 2 * 36


def test_series_are_weighted_means(thirds: Atlas, halves: Atlas) -> None:
    bold = series(3)
    bridged = Bridge(thirds, halves).apply(bold)
    np.testing.assert_allclose(bridged[:, 0], (2 * bold[:, 0] + bold[:, 1]) / 3)
    np.testing.assert_allclose(bridged[:, 1], (bold[:, 1] + 2 * bold[:, 2]) / 3)
    assert np.isnan(bridged[:, 2]).all()


def test_voxels_give_what_the_bridge_gives_when_parcels_nest(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    fine = np.repeat(np.arange(1, 9), 27).reshape(8, 27)
    coarse = (fine + 1) // 2
    bridge = Bridge(
        save_atlas(tmp_path / "Fine.nii", fine[..., None]), save_atlas(tmp_path / "Coarse.nii", coarse[..., None])
    )
    voxels = rng.normal(size=(30, *fine.shape))
    of = {n: np.column_stack([voxels[:, labels == i].mean(axis=1) for i in range(1, n + 1)]) for n, labels in
          ((8, fine), (4, coarse))}  # fmt: skip
    np.testing.assert_allclose(bridge.apply(of[8]), of[4], atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.floats(0.1, 10), st.floats(-10, 10))
def test_a_bridge_is_linear(seed: int, a: float, b: float) -> None:
    atlas = numbered_atlas("X", 4)
    bridge = Bridge(atlas, numbered_atlas("Y", 3))
    counts = np.random.default_rng(seed).integers(0, 9, size=(4, 5))
    counts[1:, 1:] += 5
    bridge.__dict__["overlap"] = counts
    one, other = series(4, seed=1), series(4, seed=2)
    np.testing.assert_allclose(
        bridge.apply(a * one + b * other), a * bridge.apply(one) + b * bridge.apply(other), atol=1e-9
    )


@pytest.mark.parametrize("missing", [np.nan, 0.0, 7.0])
def test_missing_sources_count_as_uncovered(thirds: Atlas, halves: Atlas, missing: float) -> None:
    bold = series(3)
    bold[:, 0] = missing
    bridged = Bridge(thirds, halves).apply(bold)
    assert np.isnan(bridged[:, 0]).all()
    np.testing.assert_allclose(bridged[:, 1], (bold[:, 1] + 2 * bold[:, 2]) / 3)
    lenient = Bridge(thirds, halves, least_coverage=0.3).apply(bold)
    np.testing.assert_allclose(lenient[:, 0], bold[:, 1])


@pytest.mark.parametrize(("given_type", "kept"), [(np.float16, np.float32), (np.float32, np.float32), (float, float)])
def test_types(thirds: Atlas, halves: Atlas, given_type: type, kept: type) -> None:
    assert Bridge(thirds, halves).apply(series(3).astype(given_type)).dtype == kept


def test_an_atlas_bridges_to_itself_without_loss(thirds: Atlas) -> None:
    bridge = Bridge(thirds, thirds)
    np.testing.assert_allclose(bridge.apply(series(3)), series(3))
    assert bridge.fc_agreement(series(3)) == pytest.approx(1)
    report = bridge.report()
    assert report["coverage"].tolist() == [1, 1, 1]
    assert report["n_sources"].tolist() == [1, 1, 1]
    assert report["purity"].tolist() == [1, 1, 1]


def test_a_round_trip_through_coarser_parcels_loses(tmp_path: Path) -> None:
    lines = np.arange(24).repeat(4).reshape(24, 2, 2)
    fine, coarse = save_atlas(tmp_path / "F.nii", lines + 1), save_atlas(tmp_path / "C.nii", lines // 3 + 1)
    bold = series(24, 200)
    assert 0 < Bridge(fine, coarse).fc_agreement(bold) < 0.9
    smooth = np.repeat(series(8, 200), 3, axis=1) + 0.01 * bold
    assert Bridge(fine, coarse).fc_agreement(smooth) > 0.99


def test_too_few_rois_have_no_agreement(thirds: Atlas, halves: Atlas) -> None:
    bold = series(3)
    bold[:, 1] = np.nan
    assert np.isnan(Bridge(thirds, halves).fc_agreement(bold))


def test_the_report(thirds: Atlas, halves: Atlas) -> None:
    report = Bridge(thirds, halves).report().set_index("roi_name")
    assert report.index.tolist() == ["10", "20", "30"]
    assert report["coverage"].tolist() == [1, 1, 0]
    assert report.loc["10", "n_sources"] == pytest.approx(1 / ((2 / 3) ** 2 + (1 / 3) ** 2))
    assert report.loc["20", "main_source"] == "3"
    assert report.loc["20", "main_share"] == pytest.approx(2 / 3)
    assert report.loc["10", "purity"] == 1
    assert report.loc["30", "main_source"] == ""
    assert report.loc["30", "n_sources"] == 0


@pytest.mark.parametrize("swap", [False, True])
def test_images_of_other_grids_meet_on_the_finer_one(tmp_path: Path, swap: bool) -> None:
    labels = np.zeros((8, 8, 8))
    labels[1:4, 1:7, 1:7], labels[4:7, 1:7, 1:7] = 1, 2
    coarse = save_atlas(tmp_path / "Coarse.nii.gz", labels, np.diag([4.0, 4, 4, 1]))
    finer = np.kron(labels, np.ones((2, 2, 2)))[::-1]
    # Left and right are exchanged in memory and put right by the affine; voxel centres lie a quarter voxel off.
    affine = np.diag([-2.0, 2, 2, 1])
    affine[:3, 3] = 15 * 2 - 1, -1, -1
    fine = save_atlas(tmp_path / "Fine.nii.gz", finer, affine)
    bridge = Bridge(fine, coarse) if swap else Bridge(coarse, fine)
    np.testing.assert_allclose(bridge.weights, np.eye(2))
    assert bridge.overlap.sum() == 16**3


def test_atlases_that_do_not_touch(tmp_path: Path) -> None:
    left, right = np.zeros((4, 4, 4)), np.zeros((4, 4, 4))
    left[0], right[3] = 1, 1
    one, other = save_atlas(tmp_path / "Left.nii", left), save_atlas(tmp_path / "Right.nii", right)
    with pytest.raises(OpenBrainMassError, match="No voxel of the atlas Right lies in one of Left"):
        Bridge(one, other).report()


def test_an_atlas_without_an_image(thirds: Atlas) -> None:
    with pytest.raises(OpenBrainMassError, match="No label image of the atlas X is at hand"):
        Bridge(thirds, numbered_atlas("X", 2)).report()


def test_bold_of_another_atlas(thirds: Atlas, halves: Atlas) -> None:
    with pytest.raises(OpenBrainMassError, match=r"BOLD of shape \(50, 4\) .* atlas Thirds; \(n_volumes, 3\)"):
        Bridge(thirds, halves).apply(series(4))


@pytest.mark.parametrize("share", [0, -1, 1.1])
def test_the_least_coverage_is_a_share(thirds: Atlas, share: float) -> None:
    with pytest.raises(OpenBrainMassError, match=f"least coverage of a bridge was set to {share}"):
        Bridge(thirds, thirds, least_coverage=share)


@pytest.mark.data
def test_real_images(data_dir: Path) -> None:
    atlases = data_dir / "atlases"
    name = "tpl-MNI152NLin6Asym_res-02_atlas-Schaefer2018_desc-100Parcels7Networks_dseg.nii.gz"
    bridge = Bridge(load_atlas(atlases / "pcp_cc200_roi_atlas.nii.gz"), load_atlas(atlases / name))
    report = bridge.report()
    assert len(report) == 100
    assert report["coverage"].mean() > 0.8
    bold = np.random.default_rng(0).normal(size=(60, 200))
    assert np.isnan(bridge.apply(bold)).all(axis=0).sum() == (report["coverage"] < 0.5).sum() < 10
