"""XCP-D: three generations of names, censored and interpolated series."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openbrainmass.atlas import Atlas, numbered_atlas
from openbrainmass.cohort.layouts.xcp_d import LAYOUT
from openbrainmass.cohort.source import ReadingSettings
from openbrainmass.errors import OpenBrainMassError

NAMES = ("LH_Vis_1", "LH_Vis_2", "RH_Cont_1")
ATLAS = Atlas("A", NAMES)
CENSORED, INTERPOLATED = ReadingSettings(), ReadingSettings(motion="interpolated")
GENERATIONS = {
    "0.1": "space-MNI152NLin6Asym_atlas-Schaefer117_desc-timeseries_bold.tsv",
    "0.3": "space-MNI152NLin6Asym_atlas-Schaefer117_timeseries.tsv",
    "0.6": "space-fsLR_atlas-4S156Parcels_den-91k_timeseries.tsv",
    "0.7": "space-fsLR_seg-4S156Parcels_den-91k_stat-mean_timeseries.tsv",
    "0.7 volume": "space-MNI152NLin2009cAsym_seg-Glasser_stat-mean_timeseries.tsv",
    "26.0": "space-MNI152NLin6Asym_res-2_atlas-4S156Parcels_stat-mean_timeseries.tsv",
}
OUTLIERS = np.array([0, 0, 1, 0, 1, 0, 0, 0])
BOLD = np.arange(24, dtype=np.float32).reshape(8, 3) / 7


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def write_table(path, header, rows):
    lines = ["\t".join(header), *("\t".join(map(str, row)) for row in rows)]
    return write(path, "\n".join(lines).replace("nan", "n/a") + "\n")


def write_run(folder, ending, bold, run="sub-01_task-rest_run-1", outliers=OUTLIERS):
    func = folder / "sub-01" / "func"
    path = write_table(func / f"{run}_{ending}", NAMES, bold)
    if outliers is not None:
        write_table(func / f"{run}_outliers.tsv", ["framewise_displacement"], outliers[:, None])
        fd = np.where(outliers, 0.9, 0.1)
        fd[0] = np.nan
        write_table(func / f"{run}_motion.tsv", ["trans_x", "framewise_displacement"], np.c_[fd * 0, fd])
    return path


def read(folder, settings=CENSORED, atlas=ATLAS):
    found = LAYOUT.find(folder, settings)
    assert len(found) == 1
    return LAYOUT.read(folder / found[0].file, {"file": found[0].file}, atlas, settings)


@pytest.mark.parametrize("ending", GENERATIONS.values(), ids=GENERATIONS)
def test_every_generation_of_names_is_found_with_atlas_and_variant(tmp_path, ending):
    path = write_run(tmp_path, ending, BOLD)
    write(path.with_suffix(".json"), '{"RepetitionTime": 2.0}')
    write(path.parent / "sub-01_task-rest_run-1_space-fsLR_seg-A_stat-coverage_bold.tsv", "Node\tcoverage\n")
    (one,) = LAYOUT.find(tmp_path, CENSORED)
    assert one.file == f"sub-01/func/{path.name}"
    assert (one.recording_id, one.participant_id, one.run) == ("sub-01_task-rest_run-1", "sub-01", "1")
    assert one.atlas in ending and one.variant.startswith("space-") and one.variant.split("_")[0] in ending
    assert ("den-91k" in one.variant) == ("den-91k" in ending)
    assert one.tr == {f"sub-01/func/{path.with_suffix('.json').name}": 2.0}
    assert LAYOUT.labels(path) == NAMES
    assert set(one.columns) == set() and "desc" not in one.variant
    assert pickle.loads(pickle.dumps(one)) == one


def test_columns_go_to_their_rois_and_n_a_parcels_are_named(tmp_path):
    bold = BOLD.copy()
    bold[:, 1] = np.nan
    write_run(tmp_path, GENERATIONS["26.0"], bold, outliers=None)
    series = read(tmp_path, atlas=Atlas("A", ("RH_Cont_1", "absent", "LH_Vis_1", "LH_Vis_2")))
    np.testing.assert_allclose(series.bold[:, [2, 0]], BOLD[:, [0, 2]], rtol=1e-6)
    assert series.measures["uncovered_rois"] == "absent;LH_Vis_2"
    assert series.measures["steps"] == "XCP-D; no outliers.tsv, so nothing is known of censoring"
    assert "n_censored" not in series.measures and "n_acquired" not in series.measures
    assert read(tmp_path, atlas=numbered_atlas("A", 3)).bold.shape == (8, 3)


def test_an_interpolated_series_loses_its_volumes_of_high_motion_or_keeps_them_as_asked(tmp_path):
    write_run(tmp_path, GENERATIONS["0.7"], BOLD)
    write(tmp_path / "dataset_description.json", json.dumps({"GeneratedBy": [{"Name": "xcp_d", "Version": "0.8.3"}]}))
    series = read(tmp_path, CENSORED)
    np.testing.assert_allclose(series.bold, BOLD[OUTLIERS == 0], rtol=1e-6)
    assert series.measures["kept_volumes"] == "0-1;3;5-7"
    assert (series.measures["n_acquired"], series.measures["n_censored"]) == (8, 2)
    assert series.measures["steps"] == "XCP-D 0.8.3; 2 volumes of high motion censored"
    series = read(tmp_path, INTERPOLATED)
    np.testing.assert_allclose(series.bold, BOLD, rtol=1e-6)
    assert (series.measures["n_acquired"], series.measures["n_censored"]) == (8, 2)
    assert "interpolated" in series.measures["steps"] and "kept_volumes" not in series.measures


def test_a_censored_series_is_recognised_by_its_length_and_cannot_be_interpolated(tmp_path):
    write_run(tmp_path, GENERATIONS["0.6"], BOLD[OUTLIERS == 0])
    series = read(tmp_path, CENSORED)
    np.testing.assert_allclose(series.bold, BOLD[OUTLIERS == 0], rtol=1e-6)
    assert (series.measures["n_censored"], series.measures["kept_volumes"]) == (2, "0-1;3;5-7")
    with pytest.raises(
        OpenBrainMassError, match="only the 6 volumes that XCP-D kept of 8; interpolated ones were asked"
    ):
        read(tmp_path, INTERPOLATED)


@settings(max_examples=25)
@given(st.lists(st.integers(0, 1), min_size=2, max_size=40).filter(lambda drawn: 0 in drawn))
def test_both_kinds_of_series_give_the_same_censored_one_and_its_volumes(tmp_path_factory, drawn):
    outliers = np.array(drawn)
    bold = np.arange(len(outliers) * 3, dtype=np.float32).reshape(-1, 3) / 7
    results = []
    for written in (bold, bold[outliers == 0]):
        folder = tmp_path_factory.mktemp("xcp")
        write_run(folder, GENERATIONS["0.7"], written, outliers=outliers)
        results.append(read(folder))
    np.testing.assert_array_equal(results[0].bold, results[1].bold)
    np.testing.assert_allclose(results[0].bold, bold[outliers == 0], rtol=1e-6)
    assert results[0].measures == results[1].measures
    spans = [part.split("-") for part in results[0].measures.get("kept_volumes", f"0-{len(bold) - 1}").split(";")]
    kept = [volume for span in spans for volume in range(int(span[0]), int(span[-1]) + 1)]
    assert kept == list(np.flatnonzero(outliers == 0))


@pytest.mark.parametrize("settings", [CENSORED, INTERPOLATED])
def test_a_still_run_is_the_same_either_way(tmp_path, settings):
    write_run(tmp_path, GENERATIONS["0.7"], BOLD, outliers=OUTLIERS * 0)
    series = read(tmp_path, settings)
    assert series.bold.shape == (8, 3) and series.measures["n_censored"] == 0 and "kept_volumes" not in series.measures


@pytest.mark.parametrize("separator", [",", "\t"])
def test_tables_before_0_4_have_no_header_and_may_have_commas(tmp_path, separator):
    func = tmp_path / "sub-01" / "func"
    func.mkdir(parents=True)
    np.savetxt(func / f"sub-01_task-rest_{GENERATIONS['0.1']}", BOLD, delimiter=separator)
    np.savetxt(func / "sub-01_task-rest_outliers.tsv", OUTLIERS, delimiter=separator)
    np.savetxt(func / "sub-01_task-rest_desc-framewisedisplacement_bold.tsv", OUTLIERS * 0.7, delimiter=separator)
    write(func / "sub-01_task-rest_desc-residual_bold.json", '{"RepetitionTime": 3}')
    series = read(tmp_path)
    np.testing.assert_allclose(series.bold, BOLD[OUTLIERS == 0], rtol=1e-6)
    assert series.measures["kept_volumes"] == "0-1;3;5-7" and series.measures["mean_fd"] == pytest.approx(0.2)
    assert set(series.tr.values()) == {3.0}
    with pytest.raises(OpenBrainMassError, match="3 columns in 8 volumes; the atlas A has 4 ROIs"):
        read(tmp_path, atlas=numbered_atlas("A", 4))


def test_a_table_of_outliers_that_does_not_fit_is_an_error(tmp_path):
    write_run(tmp_path, GENERATIONS["0.7"], BOLD[:5])
    with pytest.raises(
        OpenBrainMassError, match=r"has 5 volumes, but .*outliers.tsv lists 8 of which 2 .* 8 or 6 were"
    ):
        read(tmp_path)
    table = tmp_path / "sub-01" / "func" / "sub-01_task-rest_run-1_outliers.tsv"
    for text in ("framewise_displacement\n0.3\n", "other\n0\n"):
        table.write_text(text)
        with pytest.raises(OpenBrainMassError, match=r"outliers\.tsv has no column framewise_displacement of zeros"):
            read(tmp_path)


def test_mean_fd_is_of_the_whole_run_and_says_its_formula(tmp_path):
    path = write_run(tmp_path, GENERATIONS["0.7"], BOLD)
    measures = read(tmp_path).measures
    assert measures["mean_fd"] == pytest.approx((5 * 0.1 + 2 * 0.9) / 7) and measures["fd_formula"] == "power"
    plain = path.parent / "sub-01_task-rest_run-1_motion.tsv"
    filtered = path.parent / "sub-01_task-rest_run-1_desc-filtered_motion.tsv"
    write_table(filtered, ["framewise_displacement"], [[0], [5]])
    assert read(tmp_path).measures == measures
    plain.rename(filtered)
    write_table(path.parent / "sub-01_task-rest_run-10_motion.tsv", ["framewise_displacement"], [[9], [9]])
    measures = read(tmp_path).measures
    assert measures["mean_fd"] == pytest.approx((5 * 0.1 + 2 * 0.9) / 7) and measures["fd_formula"] == "power-filtered"


def test_tr_comes_from_the_denoised_image_too(tmp_path):
    path = write_run(tmp_path, GENERATIONS["0.3"], BOLD)
    image = path.parent / "sub-01_task-rest_run-1_space-MNI152NLin6Asym_desc-denoised_bold.json"
    write(image, '{"RepetitionTime": 2.5}')
    write(path.parent / "sub-01_task-rest_run-2_space-MNI152NLin6Asym_desc-denoised_bold.json", '{"RepetitionTime": 9}')
    assert read(tmp_path).tr == {f"sub-01/func/{image.name}": 2.5}
    image.write_text("{")
    assert LAYOUT.find(tmp_path, CENSORED)[0].tr == {}
    with pytest.raises(OpenBrainMassError, match=r"desc-denoised_bold\.json is not readable JSON"):
        read(tmp_path)


def test_joined_runs_are_left_out_where_the_runs_are_there(tmp_path):
    ending = GENERATIONS["0.7"]
    for run in ("sub-01_task-rest_run-1", "sub-01_task-rest_dir-AP_run-2", "sub-01_task-rest", "sub-01_task-nback"):
        write_run(tmp_path, ending, BOLD, run)
    assert [one.recording_id for one in LAYOUT.find(tmp_path, CENSORED)] == [
        "sub-01_task-nback",
        "sub-01_task-rest_dir-AP_run-2",
        "sub-01_task-rest_run-1",
    ]


@pytest.mark.parametrize(
    "name",
    [
        "sub-1_task-rest_atlas-A_timeseries.tsv",
        "sub-1_task-rest_seg-A_desc-denoiseSimple_timeseries.tsv",
        "sub-1_task-rest_feature-f_atlas-A_timeseries.tsv",
        "sub-1_task-rest_desc-confounds_timeseries.tsv",
        "sub-1_task-rest_atlas-A_desc-connectivity_bold.tsv",
        "sub-1_task-rest_atlas-A_space-M_reg-36_desc-Mean_timeseries.1D",
        "sub-1_task-rest_space-M_seg-A_stat-mean_timeseries.json",
    ],
)
def test_files_of_other_tools_are_not_claimed(tmp_path, name):
    write(tmp_path / name, "a\n1\n")
    assert LAYOUT.find(tmp_path, CENSORED) == []


def test_a_folder_that_says_that_another_tool_made_it_is_not_claimed(tmp_path):
    write_run(tmp_path, GENERATIONS["0.7"], BOLD)
    write(tmp_path / "dataset_description.json", '{"GeneratedBy": [{"Name": "another"}]}')
    assert LAYOUT.find(tmp_path, CENSORED) == []
