"""giga_connectome: headers that count, sidecars without the entity seg."""

from __future__ import annotations

import json

import numpy as np
import pytest

from openbrainmass.atlas import Atlas, numbered_atlas
from openbrainmass.cohort.layouts.giga_connectome import LAYOUT
from openbrainmass.cohort.source import ReadingSettings
from openbrainmass.errors import OpenBrainMassError

SETTINGS = ReadingSettings()
STEM = "sub-1_ses-t1_task-rest_run-01"
BOLD = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
SAID = {
    "MeanFramewiseDisplacement": 0.03,
    "ConfoundRegressors": ["csf", "trans_x"],
    "NumberOfVolumesDiscardedByMotionScrubbing": 2,
    "NumberOfVolumesDiscardedByNonsteadyStatesDetector": 5,
    "SamplingFrequency": 0.5,
}


def write_run(folder, atlas="Schaefer2018100Parcels7Networks", strategy="Simple", said=SAID):
    func = folder / "sub-1" / "ses-t1" / "func"
    func.mkdir(parents=True, exist_ok=True)
    path = func / f"{STEM}_seg-{atlas}_desc-denoise{strategy}_timeseries.tsv"
    np.savetxt(path, BOLD, fmt="%.9g", delimiter="\t", header="\t".join("0123"), comments="")
    (func / f"{STEM}_seg-{atlas}_meas-PearsonCorrelation_desc-denoise{strategy}_relmat.tsv").write_text("0\n1\n")
    if said is not None:
        (func / f"{STEM}_desc-denoise{strategy}_timeseries.json").write_text(json.dumps(said))
    return path


def test_a_run_is_found_and_read_by_position_with_what_its_sidecar_says(tmp_path):
    path = write_run(tmp_path)
    (one,) = LAYOUT.find(tmp_path, SETTINGS)
    assert (one.recording_id, one.participant_id, one.session, one.run) == (STEM, "sub-1", "t1", "01")
    assert (one.atlas, one.variant) == ("Schaefer2018100Parcels7Networks", "desc-denoiseSimple")
    sidecar = f"sub-1/ses-t1/func/{STEM}_desc-denoiseSimple_timeseries.json (SamplingFrequency)"
    assert one.tr == {sidecar: 2.0} and LAYOUT.labels(path) is None
    series = LAYOUT.read(path, {"file": one.file}, Atlas("x", tuple("dcba")), SETTINGS)
    np.testing.assert_array_equal(series.bold, BOLD)
    assert series.tr == {sidecar: 2.0}
    assert series.measures == {
        "mean_fd": 0.03,
        "fd_formula": "power",
        "n_censored": 2,
        "n_acquired": 16,
        "steps": "giga_connectome denoiseSimple; regressed out: csf, trans_x",
    }


def test_atlases_and_strategies_are_told_apart(tmp_path):
    write_run(tmp_path)
    write_run(tmp_path, "MIST7", "Scrubbing.5+gsr", None)
    found = LAYOUT.find(tmp_path, SETTINGS)
    assert {(one.atlas, one.variant) for one in found} == {
        ("Schaefer2018100Parcels7Networks", "desc-denoiseSimple"),
        ("MIST7", "desc-denoiseScrubbing.5+gsr"),
    }
    assert len({one.recording_id for one in found}) == 1


def test_without_a_sidecar_only_the_name_is_known(tmp_path):
    path = write_run(tmp_path, said=None)
    (one,) = LAYOUT.find(tmp_path, SETTINGS)
    series = LAYOUT.read(path, {"file": one.file}, numbered_atlas("x", 4), SETTINGS)
    assert one.tr == series.tr == {} and series.measures == {"steps": "giga_connectome denoiseSimple"}


def test_columns_that_are_not_as_many_as_the_rois_are_an_error(tmp_path):
    path = write_run(tmp_path)
    with pytest.raises(OpenBrainMassError, match="4 columns in 9 volumes; the atlas x has 5 ROIs"):
        LAYOUT.read(path, {}, numbered_atlas("x", 5), SETTINGS)


def test_a_broken_sidecar_is_an_error_of_its_recording_alone(tmp_path):
    path = write_run(tmp_path)
    (path.parent / f"{STEM}_desc-denoiseSimple_timeseries.json").write_text("{")
    (one,) = LAYOUT.find(tmp_path, SETTINGS)
    assert one.tr == {}
    with pytest.raises(OpenBrainMassError, match="is not readable JSON"):
        LAYOUT.read(path, {"file": one.file}, numbered_atlas("x", 4), SETTINGS)


@pytest.mark.parametrize(
    "name", ["sub-1_seg-A_stat-mean_timeseries.tsv", "sub-1_desc-confounds_timeseries.tsv", "seg-A_desc-denoiseB_x.tsv"]
)
def test_files_of_other_tools_are_not_claimed(tmp_path, name):
    (tmp_path / name).write_text("0\n1\n")
    assert LAYOUT.find(tmp_path, SETTINGS) == []


@pytest.mark.data
def test_the_real_tree_is_ten_runs_of_100_rois(data_dir):
    folder = data_dir / "derivatives" / "giga_connectome_ds000017"
    found = LAYOUT.find(folder, SETTINGS)
    assert len(found) == 10 and len({one.recording_id for one in found}) == 10
    for one in found:
        series = LAYOUT.read(folder / one.file, {"file": one.file}, numbered_atlas("x", 100), SETTINGS)
        assert series.bold.shape[1] == 100 and np.isfinite(series.bold).all()
    assert [set(one.tr.values()) for one in found if one.tr] == [{2.0}]
