"""CONN projects: their files, their ROIs, their conditions and their TR."""

import numpy as np
import pytest
from scipy.io import savemat

from openbrainmass.atlas import Atlas, numbered_atlas
from openbrainmass.cohort.layouts.conn import find, labels, read
from openbrainmass.cohort.source import ReadingSettings
from openbrainmass.errors import OpenBrainMassError

SETTINGS = ReadingSettings()
TISSUES = ("Grey Matter", "White Matter", "CSF")
ROIS = ("atlas.A", "atlas.B (left, 1,2)", "networks.DefaultMode.MPFC", "MySeed")


def cells(values):
    row = np.empty((1, len(values)), dtype=object)
    for i, value in enumerate(values):
        row[0, i] = value
    return row


def columns(names=ROIS, n_volumes=10):
    return np.arange(n_volumes)[:, None] + 100.0 * np.arange(1, len(names) + 1)


def place(folder, subject=1, condition=1, names=ROIS, weights=None, n_volumes=10):
    """One file as CONN writes it: tissues with several components in front, a covariate behind the ROIs."""
    values = columns(names, n_volumes)
    content = {
        "data": cells([np.ones((n_volumes, 3))] * 3 + [values[:, [i]] for i in range(len(names))]),
        "names": cells([*TISSUES, *names]),
        "xyz": cells([np.zeros((1, 3))] * (3 + len(names))),
    }
    if condition:
        content = {
            "data": np.append(content["data"], cells([np.zeros((n_volumes, 6))]), axis=1),
            "names": np.append(content["names"], cells(["realignment"]), axis=1),
            "xyz": np.append(content["xyz"], cells([np.full((1, 3), np.nan)]), axis=1),
            "conditionweights": cells([np.ones((n_volumes, 1)) if weights is None else weights[:, None]] * 5),
            "conditionname": "rest",
        }
    path = folder / "results" / "preprocessing" / f"ROI_Subject{subject:03}_Condition{condition:03}.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, content, do_compression=True)
    return path


@pytest.fixture
def project(tmp_path):
    for subject in (1, 2):
        for condition in (0, 1, 2):
            place(tmp_path / "conn_rest", subject, condition)
    names = {"allnames": cells(["rest", "task one"])}
    savemat(tmp_path / "conn_rest" / "results" / "preprocessing" / "_list_conditions.mat", names)
    savemat(tmp_path / "conn_rest.mat", {"CONN_x": {"Setup": {"RT": 2.0}}})
    return tmp_path


def test_one_recording_a_subject_condition_and_atlas(project):
    found = find(project, SETTINGS)
    assert len(found) == 2 * 2 * 3
    assert {one.atlas for one in found} == {"atlas", "networks", "rois"}
    assert [(one.recording_id, one.participant_id, one.task) for one in found if one.atlas == "atlas"] == [
        ("sub-001_task-rest", "sub-001", "rest"),
        ("sub-001_task-taskone", "sub-001", "taskone"),
        ("sub-002_task-rest", "sub-002", "rest"),
        ("sub-002_task-taskone", "sub-002", "taskone"),
    ]
    assert {one.file for one in found if one.task == "rest" and one.participant_id == "sub-001"} == {
        "conn_rest/results/preprocessing/ROI_Subject001_Condition001.mat"
    }


@pytest.mark.parametrize("below", ["conn_rest", "conn_rest/results", "conn_rest/results/preprocessing"])
def test_the_tr_is_the_projects(project, below):
    assert all(one.tr == {"conn_rest.mat": 2.0} for one in find(project / below, SETTINGS))


def test_each_subject_may_have_its_tr(project):
    savemat(project / "conn_rest.mat", {"CONN_x": {"Setup": {"RT": np.array([[2.0, 2.5]])}}})
    assert {one.participant_id: one.tr["conn_rest.mat"] for one in find(project, SETTINGS)} == {
        "sub-001": 2.0,
        "sub-002": 2.5,
    }


def test_no_tr_where_the_project_has_none(project):
    savemat(project / "conn_rest.mat", {"CONN_x": {"Setup": {"RT": np.array([[2.0, np.nan]])}}})
    assert {one.participant_id: one.tr for one in find(project, SETTINGS)} == {
        "sub-001": {"conn_rest.mat": 2.0},
        "sub-002": {},
    }
    (project / "conn_rest.mat").unlink()
    assert all(one.tr == {} for one in find(project, SETTINGS))


def test_all_sessions_only_where_there_is_nothing_else(tmp_path):
    place(tmp_path, 1, 0)
    place(tmp_path, 2, 0)
    place(tmp_path, 2, 1)
    found = [one for one in find(tmp_path, SETTINGS) if one.atlas == "atlas"]
    assert [one.recording_id for one in found] == ["sub-001_task-condition000", "sub-002_task-condition001"]


def test_conditions_from_the_text_list(tmp_path):
    path = place(tmp_path, 1, 2)
    (path.parent / "_list_conditions.txt").write_text("Condition001 = other\nCondition002 = rest eyes-open\n")
    assert {one.task for one in find(tmp_path, SETTINGS)} == {"resteyesopen"}


def test_a_damaged_first_file_does_not_hide_the_others(project):
    first = project / "conn_rest/results/preprocessing/ROI_Subject001_Condition000.mat"
    first.write_bytes(b"torn")
    assert len(find(project, SETTINGS)) == 12
    for path in first.parent.glob("ROI_*.mat"):
        path.write_bytes(b"torn")
    with pytest.raises(OpenBrainMassError, match=str(first)):
        find(project, SETTINGS)


@pytest.mark.parametrize("name", ["ROI_Subject001_Session001.mat", "resultsROI_Subject001_Condition001.mat"])
def test_other_files_of_conn_are_not_claimed(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    assert find(tmp_path, SETTINGS) == []


def test_columns_by_label_in_the_order_of_the_atlas(tmp_path):
    path = place(tmp_path)
    atlas = Atlas("atlas", ("missing", "B (left, 1,2)", "A"))
    series = read(path, {}, atlas, SETTINGS)
    assert np.isnan(series.bold[:, 0]).all()
    np.testing.assert_array_equal(series.bold[:, 1:], columns()[:, [1, 0]].astype(np.float32))
    assert series.measures == {"steps": "CONN denoising; volumes of the condition"}


def test_an_atlas_that_is_called_otherwise_is_known_by_its_rois(tmp_path):
    series = read(place(tmp_path), {}, Atlas("Yeo networks", ("DefaultMode.MPFC", "Visual.Medial")), SETTINGS)
    np.testing.assert_array_equal(series.bold[:, 0], columns()[:, 2].astype(np.float32))


def test_numbered_rois_match_by_position(tmp_path):
    path = place(tmp_path)
    np.testing.assert_array_equal(
        read(path, {}, numbered_atlas("CC2", 2), SETTINGS).bold, columns()[:, :2].astype(np.float32)
    )
    with pytest.raises(OpenBrainMassError, match="networks \\(1\\)") as caught:
        read(path, {}, numbered_atlas("CC200", 200), SETTINGS)
    assert str(path) in str(caught.value)


def test_rois_of_another_atlas_are_refused(tmp_path):
    path = place(tmp_path)
    with pytest.raises(OpenBrainMassError, match="ROIs called A, B \\(left.*such as V1.*atlas \\(2 ROIs\\)") as caught:
        read(path, {}, Atlas("atlas", ("V1", "V2")), SETTINGS)
    assert str(path) in str(caught.value)


def test_volumes_outside_the_condition_are_left_out(tmp_path):
    weights = np.array([0, 0.2, 1, 1, 0, 0, 1, 0, 1, 1])
    series = read(place(tmp_path, weights=weights), {}, Atlas("atlas", ("A", "B (left, 1,2)")), SETTINGS)
    np.testing.assert_array_equal(series.bold, columns()[weights > 0, :2].astype(np.float32))
    assert series.measures["kept_volumes"] == "1-3;6;8-9"


def test_a_condition_that_the_subject_lacks(tmp_path):
    path = place(tmp_path, weights=np.zeros(10))
    with pytest.raises(OpenBrainMassError, match="no volume of its condition") as caught:
        read(path, {}, Atlas("atlas", ("A", "B (left, 1,2)")), SETTINGS)
    assert str(path) in str(caught.value)


def test_all_sessions_are_read_whole(tmp_path):
    series = read(place(tmp_path, condition=0), {}, Atlas("atlas", ("A", "B (left, 1,2)")), SETTINGS)
    assert series.bold.shape == (10, 2)
    assert "all sessions" in series.measures["steps"]


def test_labels_are_those_of_the_first_atlas(tmp_path):
    assert labels(place(tmp_path)) == ("A", "B (left, 1,2)")
    assert labels(place(tmp_path, 2, names=("MySeed", "Other"))) == ("MySeed", "Other")
