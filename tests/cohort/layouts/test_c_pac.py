"""C-PAC 1.8 and later: ROI numbers of AFNI, names with and without `reg-`."""

from __future__ import annotations

import json

import numpy as np
import pytest

from openbrainmass.atlas import Atlas, numbered_atlas
from openbrainmass.cohort.layouts.c_pac import LAYOUT
from openbrainmass.cohort.source import ReadingSettings
from openbrainmass.errors import OpenBrainMassError

SETTINGS = ReadingSettings()
BOLD = np.random.default_rng(0).normal(10_000, 50, (5, 3)).round(6)
RUN = "sub-A1_ses-B_task-rest_acq-645_run-1"
NEW = "atlas-CC200_space-MNI152NLin6ASym_reg-36Parameter_desc-Mean_timeseries.1D"


def write_run(folder, ending=NEW, numbers=(1, 2, 3), comment="#File,Sub-brick\n", run=RUN):
    func = folder / "output" / "pipeline_RBC" / "sub-A1" / "ses-B" / "func"
    func.mkdir(parents=True, exist_ok=True)
    path = func / f"{run}_{ending}"
    header = "#" + ",".join(f"Mean_{number}  " for number in numbers)
    rows = "\n".join(",".join(f"{value:f}" for value in row) for row in BOLD[:, : len(numbers)])
    path.write_text(f"{comment}{header}\n{rows}\n")
    return path


def read(folder, atlas):
    (one,) = LAYOUT.find(folder, SETTINGS)
    return LAYOUT.read(folder / one.file, {"file": one.file}, atlas, SETTINGS)


@pytest.mark.parametrize(
    ("ending", "atlas", "variant"),
    [
        (NEW, "CC200", "space-MNI152NLin6ASym_reg-36Parameter"),
        (NEW.replace("Mean", "Mean2"), "CC200", "space-MNI152NLin6ASym_reg-36Parameter_desc-Mean2"),
        ("atlas-aalmaskpad_desc-Mean-1_timeseries.1D", "aalmaskpad", "desc-Mean-1"),
        (
            "atlas-AALspace-MNI152NLin6res-1x1x1_desc-Mean-1_timeseries.1D",
            "AAL",
            "space-MNI152NLin6res-1x1x1_desc-Mean-1",
        ),
    ],
)
def test_names_of_every_1_8_are_found(tmp_path, ending, atlas, variant):
    path = write_run(tmp_path, ending)
    path.with_name(f"{RUN}_{ending}".replace("_timeseries.1D", "_timeseries.json")).write_text(
        '{"RepetitionTime": 0.645}'
    )
    (one,) = LAYOUT.find(tmp_path, SETTINGS)
    assert (one.recording_id, one.participant_id, one.session) == (RUN, "sub-A1", "B")
    assert (one.atlas, one.variant, set(one.tr.values())) == (atlas, variant, {0.645})


@pytest.mark.parametrize("comment", ["", "#File,Sub-brick\n", "# 3dROIstats -1Dformat -mask a.nii b.nii\n"])
def test_columns_are_matched_by_roi_number_and_lost_rois_are_named(tmp_path, comment):
    write_run(tmp_path, numbers=(1, 3, 4), comment=comment)
    series = read(tmp_path, numbered_atlas("CC200", 5))
    np.testing.assert_allclose(series.bold[:, [0, 2, 3]], BOLD, rtol=1e-6)
    assert series.measures["uncovered_rois"] == "2;5"
    assert series.measures["steps"] == "C-PAC reg-36Parameter_desc-Mean"
    by_value = read(tmp_path, Atlas("AAL", ("x", "y", "z", "w"), values=(4, 3, 2, 1)))
    np.testing.assert_allclose(by_value.bold[:, [3, 1, 0]], BOLD, rtol=1e-6)
    assert by_value.measures["uncovered_rois"] == "z"
    with pytest.raises(OpenBrainMassError, match="only names are known"):
        read(tmp_path, Atlas("AAL", ("x", "y", "z", "w")))


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("desc-FDJenkinson_motion.1D", "jenkinson"),
        ("framewise-displacement-jenkinson.1D", "jenkinson"),
        ("desc-FDPower_motion.1D", "power"),
    ],
)
def test_mean_fd_is_that_of_the_same_run(tmp_path, name, formula):
    path = write_run(tmp_path)
    np.savetxt(path.with_name(f"{RUN}_{name}"), [0, 0.1, 0.3, 0.2, 0.2, 0.2, 0.2])
    np.savetxt(path.with_name(f"{RUN}0_{name}"), [9, 9])
    measures = read(tmp_path, numbered_atlas("x", 3)).measures
    assert measures["mean_fd"] == pytest.approx(0.2) and measures["fd_formula"] == formula
    assert (measures["n_acquired"], measures["n_censored"]) == (7, 2)


@pytest.mark.parametrize(
    "ending",
    [
        "desc-FDJenkinson_motion.1D",
        NEW.replace("Mean", "SpatReg"),
        NEW.replace("Mean_timeseries.1D", "PearsonNilearn_correlations.tsv"),
        "space-M_seg-A_stat-mean_timeseries.tsv",
    ],
)
def test_other_files_are_not_claimed(tmp_path, ending):
    write_run(tmp_path, ending)
    assert LAYOUT.find(tmp_path, SETTINGS) == []


def test_a_wrong_tr_in_a_sidecar_is_said_when_its_recording_is_read(tmp_path):
    path = write_run(tmp_path)
    path.with_suffix(".json").write_text(json.dumps({"RepetitionTime": 645}))
    with pytest.raises(OpenBrainMassError, match="RepetitionTime 645"):
        read(tmp_path, numbered_atlas("x", 3))
