"""A cohort written as BIDS derivatives comes back as it was."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from openbrainmass import __version__
from openbrainmass.atlas import Atlas, load_atlas, numbered_atlas
from openbrainmass.cohort.cohort import Cohort, bold_digest
from openbrainmass.cohort.export import export_cohort
from openbrainmass.cohort.layouts import plain
from openbrainmass.cohort.layouts.bids import tr_of
from openbrainmass.cohort.source import ReadingSettings
from openbrainmass.connectivity import correlation
from openbrainmass.durable import read_json, read_tsv
from openbrainmass.errors import OpenBrainMassError

SETTINGS = ReadingSettings()
ATLAS = Atlas("My-atlas 3", ("left a", "right", 'the nan, "third"'))
IDS = ("sub-1_ses-b_task-rest_run-01", "sub-1_ses-c_task-rest_run-01", "odd id/2")


def make(atlas=ATLAS, ids=IDS, dtype=np.float32):
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(0, 10.0 ** (3 * i), (7 + i, 3)).astype(dtype) for i, name in enumerate(ids)}
    arrays[ids[0]][:, 1] = np.nan
    rows = [
        {"recording_id": name, "participant_id": "sub-1" if i < 2 else "P 2", "session": None, "run": None}
        | {"tr": (2.0, 0.72, np.nan)[i], "n_volumes": 7 + i, "dead_rois": None, "digest": bold_digest(arrays[name])}
        | {"mean_fd": 0.1 * i, "steps": "band-pass" if i else None}
        for i, name in enumerate(ids)
    ]
    people = pd.DataFrame({"participant_id": ["sub-1", "P 2"], "sex": ["F", None], "age": [20.5, 30]})
    excluded = pd.DataFrame([{"recording_id": None, "participant_id": "P 3", "reason": "no-recording"}])
    return Cohort("toy", pd.DataFrame(rows), people, atlas, arrays.__getitem__, excluded)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("atlas", [ATLAS, numbered_atlas("three", 3)])
def test_what_is_written_is_read_back_exactly(tmp_path, dtype, atlas):
    cohort = make(atlas, dtype=dtype) if dtype == np.float32 else make(atlas, IDS[:2], dtype)
    out = export_cohort(cohort, tmp_path / "out")
    found = plain.find(out, SETTINGS)
    table = cohort.recordings
    assert [one.recording_id for one in found] == list(table["recording_id"])
    assert [one.participant_id for one in found] == list(table["participant_id"])
    again = load_atlas(out / "atlas.tsv")
    assert again.roi_names == atlas.roi_names
    for index, one in enumerate(found):
        assert list(one.tr.values()) == list(table["tr"].dropna().loc[index:index])
        series = plain.read(out / one.file, {}, again, SETTINGS)
        np.testing.assert_array_equal(series.bold, cohort.bold(index).astype(np.float32))
        assert bold_digest(series.bold) == table["digest"][index]


def test_the_folder_is_a_bids_derivative(tmp_path):
    cohort = make()
    out = export_cohort(cohort, tmp_path / "out")
    assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == {
        ".bidsignore",
        "dataset_description.json",
        "participants.tsv",
        "recordings.tsv",
        "exclusions.tsv",
        "atlas.tsv",
        "atlas-Myatlas3_meas-PearsonCorrelation_relmat.json",
        *(
            f"{folder}/func/{name}_atlas-Myatlas3_{ending}"
            for folder, name in (
                ("sub-1/ses-b", IDS[0]),
                ("sub-1/ses-c", IDS[1]),
                ("sub-P2", "sub-P2_rec-oddid2"),
            )
            for ending in ("timeseries.tsv", "timeseries.json", "meas-PearsonCorrelation_relmat.tsv")
        ),
    }
    described = read_json(out / "dataset_description.json")
    assert described["DatasetType"] == "derivative" and described["Name"] == "toy"
    assert described["GeneratedBy"][0]["Name"] == "openbrainmass"
    assert described["GeneratedBy"][0]["Version"] == __version__
    stem = out / "sub-1" / "ses-b" / "func" / f"{IDS[0]}_atlas-Myatlas3"
    lines = stem.with_name(stem.name + "_timeseries.tsv").read_text().splitlines()
    assert lines[0] == 'left a\tright\t"the nan, ""third"""' and lines[1].split("\t")[1] == "n/a" and len(lines) == 8
    sidecar = read_json(stem.with_name(stem.name + "_timeseries.json"))
    assert sidecar == {
        "NumberOfVolumes": 7,
        "Atlas": "My-atlas 3",
        "RepetitionTime": 2.0,
        "SamplingFrequency": 0.5,
        "MissingROIs": ["right"],
    }
    assert set(tr_of(stem.with_name(stem.name + "_timeseries.tsv"), out).values()) == {2.0}
    other = out / "sub-P2" / "func" / "sub-P2_rec-oddid2_atlas-Myatlas3_timeseries.json"
    assert read_json(other) == {"NumberOfVolumes": 9, "Atlas": "My-atlas 3", "Steps": "band-pass"}
    assert list(read_tsv(out / "participants.tsv")["participant_id"]) == ["sub-1", "P 2"]
    assert list(read_tsv(out / "recordings.tsv")["mean_fd"]) == pytest.approx([0, 0.1, 0.2])


def test_the_matrix_is_the_pearson_correlation_with_missing_rois_missing(tmp_path):
    cohort = make()
    out = export_cohort(cohort, tmp_path / "out")
    for index, file in enumerate(read_tsv(out / "recordings.tsv")["file"]):
        table = read_tsv(out / file.replace("_timeseries", "_meas-PearsonCorrelation_relmat"))
        assert tuple(table.columns) == ATLAS.roi_names
        expected = correlation(cohort.bold(index))
        if index == 0:
            expected[1] = expected[:, 1] = np.nan
        np.testing.assert_allclose(table.to_numpy(dtype=float), expected, atol=1e-7)


def test_two_recordings_of_one_file_name_are_an_error_before_anything_is_written(tmp_path):
    with pytest.raises(OpenBrainMassError, match=r"sub-1/ses-b/func/.* Rename recording_id|rec-oddid2_atlas.* Rename"):
        cohort = make(ids=(IDS[0], "odd id/2", "odd-id 2"))
        cohort = Cohort("x", cohort.recordings.assign(participant_id="P 2"), cohort.participants, ATLAS, lambda _: None)
        export_cohort(cohort, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_left_alone_and_a_failure_leaves_nothing(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("x")
    with pytest.raises(OpenBrainMassError, match="exists already"):
        export_cohort(make(), tmp_path / "out")
    cohort = make()
    broken = Cohort("x", cohort.recordings, cohort.participants, ATLAS, lambda name: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export_cohort(broken, tmp_path / "new")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_simulated_cohort_survives_the_round_trip(tmp_path, cohort):
    out = export_cohort(cohort.select([0, 1, 2]), tmp_path / "out")
    for index, one in enumerate(plain.find(out, SETTINGS)):
        series = plain.read(out / one.file, {}, cohort.atlas, SETTINGS)
        np.testing.assert_array_equal(series.bold, cohort.bold(index).astype(np.float32))
