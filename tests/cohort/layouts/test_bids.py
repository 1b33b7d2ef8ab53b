"""BIDS names and sidecars with inheritance."""

from __future__ import annotations

import json
import time

import pytest

from openbrainmass.cohort.layouts import bids
from openbrainmass.errors import OpenBrainMassError


def write(path, text=""):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text if isinstance(text, str) else json.dumps(text))
    return path


def test_entities_keep_order_spelling_and_dots_within_values():
    named = bids.entities("a/b-c/sub-01_task-rest_run-02_seg-S100_desc-denoiseScrubbing.5+gsr_timeseries.tsv")
    assert list(named.items()) == [
        ("sub", "01"),
        ("task", "rest"),
        ("run", "02"),
        ("seg", "S100"),
        ("desc", "denoiseScrubbing.5+gsr"),
    ]
    assert bids.entities("sub-1_desc-Mean-1_timeseries.1D")["desc"] == "Mean-1"
    assert bids.entities("sub-1_atlas-A.tsv") == {"sub": "1", "atlas": "A"}
    assert bids.entities("participants.tsv") == {} and bids.suffix("participants.tsv") == "participants"
    assert bids.suffix("x/sub-1_bold.nii.gz") == "bold" and bids.suffix("sub-1_atlas-A.tsv") == ""


def test_a_recording_is_called_by_what_tells_recordings_apart():
    name = "sub-1_ses-2_task-rest_acq-mb_dir-AP_run-3_echo-2_space-MNI_res-2_atlas-A_desc-x_timeseries.tsv"
    assert bids.recording_id(bids.entities(name)) == "sub-1_ses-2_task-rest_acq-mb_dir-AP_run-3_echo-2"
    assert bids.joined(bids.entities(name), ("space", "res", "den")) == "space-MNI_res-2"
    found = bids.found("sub-1/" + name, {}, "space-MNI")
    assert (found.participant_id, found.session, found.run, found.task, found.atlas) == ("sub-1", "2", "3", "rest", "A")


def test_sidecars_are_inherited_from_the_root_down_and_the_nearer_has_the_word(tmp_path):
    write(tmp_path / "task-rest_timeseries.json", {"RepetitionTime": 2, "Steps": "root"})
    write(tmp_path / "task-nback_timeseries.json", {"RepetitionTime": 9})
    write(tmp_path / "task-rest_bold.json", {"RepetitionTime": 8})
    write(tmp_path / "sub-1" / "sub-1_timeseries.json", {"Steps": "person"})
    own = {"SamplingFrequency": 0.5, "Steps": "own"}
    write(tmp_path / "sub-1" / "func" / "sub-1_task-rest_desc-x_timeseries.json", own)
    write(tmp_path / "sub-1" / "func" / "sub-1_task-rest_desc-y_timeseries.json", {"RepetitionTime": 7})
    path = write(tmp_path / "sub-1" / "func" / "sub-1_task-rest_seg-A_desc-x_timeseries.tsv")
    assert [side.name for side in bids.sidecars(path, tmp_path)] == [
        "task-rest_timeseries.json",
        "sub-1_timeseries.json",
        "sub-1_task-rest_desc-x_timeseries.json",
    ]
    assert bids.metadata(path, tmp_path) == {"RepetitionTime": 2, "SamplingFrequency": 0.5, "Steps": "own"}
    assert bids.tr_of(path, tmp_path) == {
        "task-rest_timeseries.json": 2.0,
        "sub-1/func/sub-1_task-rest_desc-x_timeseries.json (SamplingFrequency)": 2.0,
    }
    assert bids.tr_of(path, tmp_path / "sub-1")["func/sub-1_task-rest_desc-x_timeseries.json (SamplingFrequency)"] == 2
    assert len(bids.sidecars(path, tmp_path / "elsewhere")) == 1


def test_sidecars_that_contradict_each_other_are_both_reported(tmp_path):
    write(tmp_path / "timeseries.json", {"RepetitionTime": 2.5})
    write(tmp_path / "sub-1_timeseries.json", {"RepetitionTime": 2.0})
    path = write(tmp_path / "sub-1_timeseries.tsv")
    assert bids.tr_of(path, tmp_path) == {"timeseries.json": 2.5, "sub-1_timeseries.json": 2.0}


def test_a_frequency_is_in_hertz_unless_a_tool_writes_seconds(tmp_path):
    path = write(tmp_path / "sub-1_timeseries.tsv")
    write(tmp_path / "sub-1_timeseries.json", {"SamplingFrequency": 1.25})
    assert set(bids.tr_of(path, tmp_path).values()) == {0.8}
    assert set(bids.tr_of(path, tmp_path, hertz=False).values()) == {1.25}


@pytest.mark.parametrize("wrong", [2000, 0, -1, "2.0", True, [2], float("inf")])
def test_a_time_that_is_none_is_an_error_that_names_the_sidecar(tmp_path, wrong):
    path = write(tmp_path / "sub-1_timeseries.tsv")
    write(tmp_path / "sub-1_timeseries.json", {"RepetitionTime": wrong})
    with pytest.raises(OpenBrainMassError, match=r"sub-1_timeseries\.json has RepetitionTime .* from 0.05 to 20 s"):
        bids.tr_of(path, tmp_path)
    assert bids.without_errors(lambda: bids.tr_of(path, tmp_path)) == {}


@pytest.mark.parametrize(
    ("text", "said"), [("{", "not readable JSON"), ("[1]", "no JSON object"), ("[" * 9999, "JSON")]
)
def test_a_broken_sidecar_is_an_error_that_names_it(tmp_path, text, said):
    path = write(tmp_path / "sub-1_timeseries.tsv")
    write(tmp_path / "sub-1_timeseries.json", text)
    with pytest.raises(OpenBrainMassError, match=said) as caught:
        bids.metadata(path, tmp_path)
    assert "sub-1_timeseries.json" in str(caught.value) and "\n" not in str(caught.value)


def test_a_sidecar_that_was_not_fetched_is_named(tmp_path):
    path = write(tmp_path / "sub-1_timeseries.tsv")
    (tmp_path / "sub-1_timeseries.json").symlink_to(tmp_path / "annex")
    with pytest.raises(OpenBrainMassError, match=r"sub-1_timeseries\.json is not readable JSON \(No such file"):
        bids.tr_of(path, tmp_path)


def test_a_sidecar_that_changes_or_appears_is_read_anew(tmp_path):
    path = write(tmp_path / "sub-1_timeseries.tsv")
    assert bids.tr_of(path, tmp_path) == {}
    side = write(tmp_path / "sub-1_timeseries.json", {"RepetitionTime": 2})
    assert bids.tr_of(path, tmp_path) == {side.name: 2.0}
    write(side, {"RepetitionTime": 1.25})
    assert bids.tr_of(path, tmp_path) == {side.name: 1.25}


def test_who_made_a_dataset(tmp_path):
    assert bids.generators(tmp_path) == {}
    made = {"GeneratedBy": [{"Name": "xcp_d", "Version": "0.7.0"}, {"Name": "fMRIPrep"}]}
    side = write(tmp_path / "dataset_description.json", made)
    assert bids.generators(tmp_path) == {"xcp-d": "0.7.0", "fmriprep": ""}
    for broken in ("{", "[]", '{"GeneratedBy": 3}', '{"GeneratedBy": ["x"]}'):
        write(side, broken)
        assert bids.generators(tmp_path) == {}


def test_files_are_listed_in_order_without_hidden_folders_and_without_rings(tmp_path):
    for name in ("b/x.tsv", "a/x.tsv", "a/y.json", ".git/x.tsv", "x.tsv"):
        write(tmp_path / name)
    (tmp_path / "a" / "ring").symlink_to(tmp_path)
    listed = bids.files_below(tmp_path, lambda name: name.endswith(".tsv"))
    assert listed == sorted(listed) and {"a/x.tsv", "b/x.tsv", "x.tsv"} <= set(listed)
    assert not any(name.startswith(".git") for name in listed)


def test_a_row_tells_where_its_dataset_begins(tmp_path):
    path = tmp_path / "sub-1" / "func" / "a.tsv"
    assert bids.root_of(path, {"file": "sub-1/func/a.tsv"}) == tmp_path
    assert bids.root_of(path, {}) == path.parent


def write_runs(folder, n_people, n_runs):
    write(folder / "timeseries.json", {"RepetitionTime": 2})
    for person in range(n_people):
        for run in range(n_runs):
            write(folder / f"sub-{person}" / "func" / f"sub-{person}_run-{run}_timeseries.tsv")


def test_each_folder_is_listed_once_and_each_sidecar_read_once(tmp_path):
    write_runs(tmp_path, 20, 10)
    listings, sidecars = bids._sidecars_in.cache_info().misses, bids._values.cache_info().misses
    files = bids.files_below(tmp_path, lambda name: name.endswith(".tsv"))
    assert [bids.tr_of(tmp_path / file, tmp_path) for file in files] == [{"timeseries.json": 2.0}] * 200
    assert bids._sidecars_in.cache_info().misses - listings == 41
    assert bids._values.cache_info().misses - sidecars == 1


@pytest.mark.slow
def test_ten_thousand_files_are_found_with_their_sidecars_in_seconds(tmp_path):
    write_runs(tmp_path, 100, 100)
    began = time.process_time()
    files = bids.files_below(tmp_path, lambda name: name.endswith(".tsv"))
    told = [bids.tr_of(tmp_path / file, tmp_path) for file in files]
    took = time.process_time() - began
    assert len(files) == 10_000 and all(one == {"timeseries.json": 2.0} for one in told)
    assert took < 5, f"{took:.2f} s"
