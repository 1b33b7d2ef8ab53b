"""HCP folders: names taken apart, series read, motion in the formula of the HCP."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from openbrainmass.atlas import Atlas
from openbrainmass.cohort.layouts.hcp import LAYOUT, find
from openbrainmass.cohort.source import ReadingSettings
from openbrainmass.errors import OpenBrainMassError

RESULTS = "100307/MNINonLinear/Results"
CLEAN = f"{RESULTS}/rfMRI_REST1_LR/rfMRI_REST1_LR_Atlas_MSMAll_hp2000_clean.dtseries.nii"
SERIES = np.random.default_rng(0).normal(size=(60, 4)) * 10


def touch(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()


def test_names_are_taken_apart(tmp_path):
    touch(
        tmp_path,
        CLEAN,
        f"{RESULTS}/rfMRI_REST1_LR/rfMRI_REST1_LR_Atlas.dtseries.nii",
        f"{RESULTS}/rfMRI_REST1_LR/rfMRI_REST1_LR_Atlas_hp2000_clean_vn.dtseries.nii",
        f"{RESULTS}/rfMRI_REST1_LR/rfMRI_REST1_LR_Atlas_MSMAll_hp2000_clean.ptseries.nii",
        f"{RESULTS}/rfMRI_REST1_LR/rfMRI_REST1_LR_Atlas_stats.dscalar.nii",
        f"{RESULTS}/rfMRI_REST1_RL/rfMRI_REST1_RL_hp2000_clean.nii.gz",
        f"{RESULTS}/rfMRI_REST1_RL/rfMRI_REST1_RL_SBRef.nii.gz",
        f"{RESULTS}/rfMRI_REST1_RL/rfMRI_REST1_RL_Jacobian.nii.gz",
        "100307/unprocessed/3T/rfMRI_REST1_RL/100307_3T_rfMRI_REST1_RL.nii.gz",
        "100307/unprocessed/3T/rfMRI_REST1_RL/100307_rfMRI_REST1_RL.nii.gz",
        f"{RESULTS}/tfMRI_WM_LR/tfMRI_WM_LR_Atlas.dtseries.nii",
        f"{RESULTS}/rfMRI_REST2_7T_AP/rfMRI_REST2_7T_AP_Atlas_MSMAll.dtseries.nii",
        "HCA6002236_V1_MR/MNINonLinear/Results/rfMRI_REST/rfMRI_REST_Atlas_MSMAll_hp0_clean.dtseries.nii",
        "HCD0001305_V1_MR/MNINonLinear/Results/rfMRI_REST/rfMRI_REST_Atlas_MSMAll_hp0_clean.dtseries.nii",
        "HCD0001305_V1_MR/MNINonLinear/Results/rfMRI_REST1a_PA/rfMRI_REST1a_PA_Atlas_MSMAll_hp0_clean.dtseries.nii",
        "flat/100408_rfMRI_REST2_RL_Atlas_hp2000_clean.dtseries.nii",
        "flat/rfMRI_REST2_RL_Atlas_hp2000_clean.dtseries.nii",
    )
    assert {(one.recording_id, one.variant) for one in find(tmp_path, ReadingSettings())} == {
        ("sub-100307_task-rest_dir-LR_run-1", "desc-MSMAllhp2000clean"),
        ("sub-100307_task-rest_dir-LR_run-1", "desc-MSMAllhp2000clean_kind-ptseries"),
        ("sub-100307_task-rest_dir-LR_run-1", "desc-minimal"),
        ("sub-100307_task-rest_dir-LR_run-1", "desc-hp2000cleanvn"),
        ("sub-100307_task-rest_dir-RL_run-1", "desc-hp2000clean"),
        ("sub-100307_task-rest_acq-7T_dir-AP_run-2", "desc-MSMAll"),
        ("sub-HCA6002236_ses-V1_task-rest", "desc-MSMAllhp0clean"),
        ("sub-HCD0001305_ses-V1_task-rest_dir-PA_run-1a", "desc-MSMAllhp0clean"),
        ("sub-100408_task-rest_dir-RL_run-2", "desc-hp2000clean"),
    }


@pytest.mark.parametrize("inside", ["100307", RESULTS, f"{RESULTS}/rfMRI_REST1_LR"])
def test_the_person_is_known_from_any_folder(tmp_path, inside):
    touch(tmp_path, CLEAN)
    (one,) = find(tmp_path / inside, ReadingSettings())
    assert one.participant_id == "sub-100307" and (tmp_path / inside / one.file).is_file()


def test_a_dense_run_is_read_with_its_motion(tmp_path, paint, surface):
    paint.dense(tmp_path / CLEAN, SERIES, surface.image, tr=0.72)
    moved = np.concatenate([[0], np.full(59, 0.2)])
    (tmp_path / CLEAN).with_name("Movement_RelativeRMS.txt").write_text("\n".join(map(str, moved)))
    (one,) = find(tmp_path, ReadingSettings())
    series = LAYOUT.read(tmp_path / one.file, {"recording_id": one.recording_id}, surface, ReadingSettings())
    np.testing.assert_allclose(series.bold, 1000 + SERIES, atol=1e-2)
    assert list(series.tr.values()) == [pytest.approx(0.72)]
    assert series.measures["mean_fd"] == pytest.approx(0.2) and series.measures["fd_formula"] == "relative-rms"
    assert series.measures["steps"] == "HCP MSMAll_hp2000_clean; no confounds regressed out"


@pytest.mark.parametrize(("text", "note"), [("0\n0.1\n", "has 2 rows for 60 volumes"), ("none", "is not readable")])
def test_motion_that_does_not_fit_is_told_and_not_used(tmp_path, paint, surface, text, note):
    paint.dense(tmp_path / CLEAN, SERIES, surface.image)
    (tmp_path / CLEAN).with_name("Movement_RelativeRMS.txt").write_text(text)
    series = LAYOUT.read(tmp_path / CLEAN, {}, surface, ReadingSettings())
    assert "mean_fd" not in series.measures and note in series.measures["steps"]


def test_volumes_are_read_within_their_mask(tmp_path, paint, labelled):
    import nibabel as nib

    path = tmp_path / RESULTS / "rfMRI_REST1_LR" / "rfMRI_REST1_LR.nii.gz"
    paint.volume(path, np.repeat(SERIES, 2, axis=1)[:, :6], paint.labels, tr=0.72)
    mask = (paint.labels != 2).astype(np.uint8)
    nib.save(nib.Nifti1Image(mask, paint.affine), path.with_name("brainmask_fs.2.nii.gz"))
    (one,) = find(tmp_path, ReadingSettings())
    series = LAYOUT.read(tmp_path / one.file, {}, labelled, ReadingSettings())
    assert one.variant == "desc-minimal" and series.measures["uncovered_rois"] == "2"
    np.testing.assert_allclose(series.bold[:, [0, 2, 4]], 1000 + SERIES[:, :3], atol=1e-2)
    assert series.measures["steps"] == "HCP minimal preprocessing; no confounds regressed out"


def test_parcellated_runs_are_matched_by_name(tmp_path, paint):
    path = paint.parcels(tmp_path / CLEAN.replace("dtseries", "ptseries"), SERIES, ["A", "B", "C", "D"])
    assert LAYOUT.labels(path) == ("A", "B", "C", "D")
    series = LAYOUT.read(path, {}, Atlas("letters", ("D", "C", "B", "A", "E")), ReadingSettings())
    np.testing.assert_allclose(series.bold[:, :4], SERIES[:, ::-1], rtol=1e-5)
    assert series.measures["uncovered_rois"] == "E"


def test_filters_apply_and_strategies_do_not(tmp_path, paint, surface):
    paint.dense(tmp_path / CLEAN, SERIES, surface.image, tr=0.72)
    filtered = LAYOUT.read(tmp_path / CLEAN, {"tr": 0.72}, surface, ReadingSettings(band_pass=(0.01, 0.1)))
    assert np.abs(filtered.bold.mean()) < 10 and filtered.measures["steps"].endswith("band-pass 0.01-0.1 Hz")
    with pytest.raises(OpenBrainMassError, match="comes without confounds"):
        LAYOUT.read(tmp_path / CLEAN, {}, surface, ReadingSettings(strategy="simple"))
    with pytest.raises(OpenBrainMassError, match="contradict each other"):
        LAYOUT.read(tmp_path / CLEAN, {"tr": 2.0}, surface, ReadingSettings())


@pytest.mark.data
def test_other_trees_are_left_alone(data_dir):
    for tree in (data_dir / "derivatives").iterdir():
        assert find(tree, ReadingSettings()) == []
