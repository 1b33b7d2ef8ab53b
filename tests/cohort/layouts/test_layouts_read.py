"""A folder of any layout to a source: which layout, atlas, version and people, and each doubt as one sentence."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from openbrainmass.atlas import Atlas
from openbrainmass.cohort.layouts.read import LAYOUTS, read_source
from openbrainmass.cohort.source import ReadingSettings, one_tr
from openbrainmass.errors import OpenBrainMassError

N_ROIS = 4


def giga(folder: Path, seg: str = "Toy4", desc: str = "denoiseSimple", people: tuple[str, ...] = ("1", "2")) -> Path:
    """Time series as giga_connectome names them: a header that counts from 0."""
    rng = np.random.default_rng(0)
    for person in people:
        place = folder / f"sub-{person}" / "func"
        place.mkdir(parents=True, exist_ok=True)
        table = pd.DataFrame(rng.normal(size=(60, N_ROIS)))
        name = f"sub-{person}_task-rest_seg-{seg}_desc-{desc}_timeseries.tsv"
        table.to_csv(place / name, sep="\t", index=False)
        sidecar = place / f"sub-{person}_task-rest_desc-{desc}_timeseries.json"
        sidecar.write_text(json.dumps({"SamplingFrequency": 0.5}))
    about = {"Name": None, "DatasetType": "derivative", "GeneratedBy": [{"Name": "giga_connectome"}]}
    (folder / "dataset_description.json").write_text(json.dumps(about))
    return folder


def test_a_layout_is_recognised_and_its_recordings_are_read(tmp_path):
    source = read_source(giga(tmp_path / "out"))
    assert source.name == "out" and source.atlas.name == "Toy4" and source.atlas.n_rois == N_ROIS
    assert source.recordings["recording_id"].tolist() == ["sub-1_task-rest", "sub-2_task-rest"]
    assert source.recordings["tr"].tolist() == [2.0, 2.0]
    row = source.recordings.iloc[0].to_dict()
    assert pickle.loads(pickle.dumps(source.read))(row).bold.shape == (60, N_ROIS)


def test_columns_are_named_by_the_atlas_that_is_given(tmp_path):
    (tmp_path / "names.txt").write_text("a\nb\nc\nd\n")
    source = read_source(giga(tmp_path / "out"), atlas=tmp_path / "names.txt")
    assert source.atlas.roi_names == tuple("abcd")


def test_one_of_several_atlases_must_be_named(tmp_path):
    giga(giga(tmp_path, seg="Toy4"), seg="Other4")
    with pytest.raises(OpenBrainMassError, match=r"several atlases \(Other4, Toy4\); none was named"):
        read_source(tmp_path)
    assert read_source(tmp_path, atlas="other4").recordings["file"].str.contains("Other4").all()
    with pytest.raises(OpenBrainMassError, match="none of them is Third"):
        read_source(tmp_path, atlas="Third")


def test_one_of_several_versions_must_be_chosen(tmp_path):
    giga(giga(tmp_path), desc="denoiseScrubbing")
    with pytest.raises(OpenBrainMassError, match=r"more than one version.*reading\.entities\.desc"):
        read_source(tmp_path)
    settings = ReadingSettings(entities={"desc": "denoiseSimple"})
    assert len(read_source(tmp_path, settings=settings).recordings) == 2
    with pytest.raises(OpenBrainMassError, match="No file .* has the entities"):
        read_source(tmp_path, settings=ReadingSettings(entities={"task": "nback"}))


def test_what_is_known_of_people_comes_from_participants_tsv_beside_or_named(tmp_path):
    giga(tmp_path / "out")
    table = pd.DataFrame({"participant_id": ["1", "2", "3"], "dx": ["a", "b", "a"]})
    table.to_csv(tmp_path / "participants.tsv", sep="\t", index=False)
    source = read_source(tmp_path / "out")
    assert source.participants["participant_id"].tolist() == ["sub-1", "sub-2", "sub-3"]
    assert source.exclusions[["participant_id", "reason"]].to_numpy().tolist() == [["sub-3", "no-recording"]]
    table.iloc[:1].to_csv(tmp_path / "some.tsv", sep="\t", index=False)
    source = read_source(tmp_path / "out", participants=tmp_path / "some.tsv")
    assert source.participants["dx"].isna().tolist() == [False, True]
    table.assign(participant_id=["x", "y", "z"]).to_csv(tmp_path / "wrong.tsv", sep="\t", index=False)
    with pytest.raises(OpenBrainMassError, match=r"sub-1, sub-2, who are not in .*wrong.tsv.*sub-x"):
        read_source(tmp_path / "out", participants=tmp_path / "wrong.tsv")


def test_sidecars_that_contradict_each_other_exclude_the_recording(tmp_path):
    giga(tmp_path)
    (tmp_path / "task-rest_timeseries.json").write_text(json.dumps({"RepetitionTime": 3.0}))
    source = read_source(tmp_path)
    assert source.recordings.empty
    assert set(source.exclusions["reason"]) == {"contradicting-tr"}
    assert "3 s in" in source.exclusions["detail"].iloc[0] and "2 s in" in source.exclusions["detail"].iloc[0]


def test_filters_are_recorded_as_steps(tmp_path):
    source = read_source(giga(tmp_path), settings=ReadingSettings(detrend=True, band_pass=(0.01, 0.1)))
    series = source.read(source.recordings.iloc[0].to_dict())
    assert "detrend" in series.measures["steps"] and "0.01-0.1 Hz" in series.measures["steps"]


def test_folders_that_nobody_knows(tmp_path):
    with pytest.raises(OpenBrainMassError, match="has no recordings that are known"):
        read_source(tmp_path)
    with pytest.raises(OpenBrainMassError, match="no layout 'mine'; known are plain"):
        read_source(tmp_path, layout="mine")
    with pytest.raises(OpenBrainMassError, match="of the layout halfpipe"):
        read_source(giga(tmp_path), layout="halfpipe")


def test_an_atlas_object_is_taken_as_it_is(tmp_path):
    atlas = Atlas("Toy4", tuple("abcd"))
    assert read_source(giga(tmp_path), atlas=atlas).atlas is atlas


def test_every_layout_says_what_it_reads():
    for name, layout in LAYOUTS.items():
        assert name == layout.name and layout.title and layout.patterns and layout.header.endswith(".")


@pytest.mark.parametrize(
    ("sources", "tr"),
    [({}, None), ({"a": 2.0}, 2.0), ({"a": float("nan"), "b": 2.0}, 2.0), ({"a": 2.0, "b": 2.009}, 2.0)],
)
def test_one_tr(sources, tr):
    found = one_tr(sources, "sub-1")
    assert np.isnan(found) if tr is None else found == tr


def test_trs_that_contradict_or_cannot_be():
    with pytest.raises(OpenBrainMassError, match=r"tr of sub-1 contradict each other: 2 s in a, 2\.02 s in b"):
        one_tr({"a": 2.0, "b": 2.02}, "sub-1")
    with pytest.raises(OpenBrainMassError, match="a gives sub-1 a tr of 2000 s"):
        one_tr({"a": 2000.0}, "sub-1")


def test_a_known_dataset_without_its_table_of_people_is_a_mistake(tmp_path):
    giga(tmp_path)
    with pytest.raises(OpenBrainMassError, match="No table of the people of abide1 was found"):
        read_source(tmp_path, dataset="abide1", layout="giga-connectome")
    (tmp_path / "participants.tsv").write_text("participant_id\nsub-1\nsub-2\n")
    assert len(read_source(tmp_path, dataset="abide1", layout="giga-connectome").participants) == 2


def test_the_card_of_a_dataset_tells_the_tr_of_a_site(tmp_path):
    giga(tmp_path / "out", people=("0050003", "0050642"))
    for sidecar in tmp_path.rglob("*.json"):
        sidecar.unlink()
    table = pd.DataFrame({"SUB_ID": [50003, 50642], "SITE_ID": ["PITT", "CMU"], "DX_GROUP": [1, 2], "SEX": [1, 2]})
    table = table.assign(AGE_AT_SCAN=[20.0, 21.0], FIQ=100, EYE_STATUS_AT_SCAN=1, func_mean_fd=0.1)
    table.to_csv(tmp_path / "Phenotypic_V1_0b.csv", index=False)
    source = read_source(tmp_path / "out", dataset="abide1", layout="giga-connectome")
    assert source.participants["dx"].tolist() == ["autism", "control"]
    trs = source.recordings.set_index("participant_id")["tr"]
    assert trs["sub-0050003"] == 1.5 and np.isnan(trs["sub-0050642"])


@pytest.mark.parametrize("column", ["participant_id", "recording_id"])
def test_slashes_are_for_the_ids_of_merged_stores(tmp_path, column):
    np.save(tmp_path / "a.npy", np.ones((30, 4)))
    row = {"participant_id": "a", "recording_id": "a", "file": "a.npy"} | {column: "a/b"}
    pd.DataFrame([row]).to_csv(tmp_path / "participants.tsv", sep="\t", index=False)
    with pytest.raises(OpenBrainMassError, match=r"'a/b' of .* has a slash"):
        read_source(tmp_path, atlas="Toy")
    with pytest.raises(OpenBrainMassError, match="'x/y' of .* has a slash"):
        read_source(giga(tmp_path / "far" / "out"), dataset="x/y")


def table(path: Path, header: str | None, n_volumes: int = 60) -> None:
    """A table of series with a header line, or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = np.random.default_rng(0).normal(size=(n_volumes, N_ROIS))
    np.savetxt(path, rows, delimiter="\t", header=header or "", comments="")
    if header is None:
        path.write_text(path.read_text().lstrip())


def test_a_folder_of_two_tools_asks_which(tmp_path):
    giga(tmp_path)
    table(tmp_path / "sub-1" / "func" / "sub-1_task-rest_feature-a_atlas-Toy4_timeseries.tsv", None)
    with pytest.raises(OpenBrainMassError, match=r"giga-connectome \(2 recordings\), halfpipe \(1 recordings\)"):
        read_source(tmp_path)
    assert len(read_source(tmp_path, layout="halfpipe").recordings) == 1


def test_images_beside_the_tables_of_c_pac_are_what_it_parcellated(tmp_path):
    func = tmp_path / "sub-1" / "func"
    numbers = "#File,Sub-brick\n#" + "\t".join(f"Mean_{number}" for number in range(1, N_ROIS + 1))
    table(func / "sub-1_task-rest_atlas-Toy4_space-MNI_reg-36p_desc-Mean_timeseries.1D", numbers)
    (func / "sub-1_task-rest_space-MNI_desc-preproc_bold.nii.gz").write_bytes(b"")
    source = read_source(tmp_path)
    assert source.read.layout == "c-pac"  # type: ignore[attr-defined]


def test_censored_series_are_not_filtered(tmp_path):
    func = tmp_path / "sub-1" / "func"
    table(func / "sub-1_task-rest_space-MNI_seg-Toy4_stat-mean_timeseries.tsv", "a\tb\tc\td")
    outliers = "framewise_displacement\n" + "0\n" * 50 + "1\n" * 10
    (func / "sub-1_task-rest_outliers.tsv").write_text(outliers)
    (func / "sub-1_task-rest_timeseries.json").write_text(json.dumps({"RepetitionTime": 2}))
    row = read_source(tmp_path).recordings.iloc[0].to_dict()
    assert read_source(tmp_path).read(row).bold.shape == (50, N_ROIS)
    band = {"band_pass": (0.01, 0.1)}
    with pytest.raises(OpenBrainMassError, match=r"lacks the volumes that were censored.*motion=interpolated"):
        read_source(tmp_path, settings=ReadingSettings(**band)).read(row)
    whole = read_source(tmp_path, settings=ReadingSettings(motion="interpolated", **band)).read(row)
    assert whole.bold.shape == (60, N_ROIS) and "band-pass" in whole.measures["steps"]


def test_the_kind_of_atlas_chooses_among_volumes_surfaces_and_parcels(tmp_path, surface):
    func = tmp_path / "sub-1" / "func"
    func.mkdir(parents=True)
    for ending in ("space-fsLR_den-91k_bold.dtseries.nii", "space-MNI_desc-preproc_bold.nii.gz"):
        (func / f"sub-1_task-rest_{ending}").write_bytes(b"")
    [file] = read_source(tmp_path, atlas=surface).recordings["file"]
    assert file.endswith(".dtseries.nii")
    with pytest.raises(OpenBrainMassError, match="only an atlas image can parcellate"):
        read_source(tmp_path, atlas="Toy")
