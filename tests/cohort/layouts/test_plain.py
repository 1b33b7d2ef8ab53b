"""Plain folders: tables to a source, and each wrong folder to one sentence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from openbrainmass.atlas import Atlas
from openbrainmass.cohort.layouts.read import read_source
from openbrainmass.cohort.source import Source
from openbrainmass.errors import OpenBrainMassError

N_ROIS = 5


def make_folder(path: Path, n_people: int = 3, suffix: str = "_atlas-Toy_timeseries.npy", **columns: object) -> Path:
    """A folder of people with one array each: lengths 40, 41, ..."""
    path.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    people = [f"sub-{i:03d}" for i in range(n_people)]
    for i, person in enumerate(people):
        np.save(path / f"{person}{suffix}", rng.normal(size=(40 + i, N_ROIS)).astype(np.float32))
    table = {"participant_id": people, "tr": 2.0, "dx": "control", "file": [f"{p}{suffix}" for p in people]}
    write(path / "participants.tsv", pd.DataFrame({**table, **columns}))
    return path


def write(path: Path, table: pd.DataFrame) -> None:
    table.to_csv(path, sep="\t", index=False, na_rep="n/a")


def read(source: Source, recording_id: str) -> np.ndarray:
    """BOLD of one recording, as the builder of a store reads it."""
    table = source.recordings.set_index("recording_id", drop=False)
    return source.read(table.loc[recording_id].to_dict()).bold


def test_a_folder_of_one_recording_each(tmp_path):
    source = read_source(make_folder(tmp_path / "lab", n_volumes=7, n_rois=N_ROIS))
    assert source.name == "lab"
    assert list(source.recordings.columns) == ["recording_id", "participant_id", "session", "run", "tr", "file"]
    assert list(source.participants.columns) == ["participant_id", "dx"]
    assert list(source.recordings["recording_id"]) == ["sub-000", "sub-001", "sub-002"]
    assert (source.recordings["tr"] == 2).all() and source.exclusions.empty
    assert read(source, "sub-001").shape == (41, N_ROIS)
    assert repr(source.atlas) == repr(Atlas("Toy", tuple("12345")))


def test_a_dataset_name_and_a_missing_tr(tmp_path):
    source = read_source(make_folder(tmp_path, tr=[2.0, None, 1.5]), dataset="mine")
    assert source.name == "mine"
    assert source.recordings["tr"].isna().tolist() == [False, True, False]


def test_recordings_of_several_sessions_and_people_without_any(tmp_path):
    make_folder(tmp_path)
    files = [f"sub-00{i}_atlas-Toy_timeseries.npy" for i in (0, 1, 0)]
    people = ["sub-000", "sub-001", "sub-000"]
    table = {"participant_id": people, "session": ["01", "ses-01", "02"], "run": ["LR", None, "LR"], "file": files}
    write(tmp_path / "recordings.tsv", pd.DataFrame({**table, "mean_fd": [0.1, 0.2, 0.3]}))
    source = read_source(tmp_path)
    assert list(source.recordings["recording_id"]) == [
        "sub-000_ses-01_run-LR",
        "sub-001_ses-01",
        "sub-000_ses-02_run-LR",
    ]
    assert list(source.recordings["tr"]) == [2.0, 2.0, 2.0]
    assert list(source.recordings["mean_fd"]) == [0.1, 0.2, 0.3]
    assert source.exclusions[["participant_id", "reason"]].to_numpy().tolist() == [["sub-002", "no-recording"]]
    assert read(source, "sub-001_ses-01").shape == (41, N_ROIS)


def test_a_person_whose_file_is_not_named_is_listed_not_dropped(tmp_path):
    make_folder(tmp_path, file=["sub-000_atlas-Toy_timeseries.npy", None, "sub-002_atlas-Toy_timeseries.npy"])
    source = read_source(tmp_path)
    assert list(source.exclusions["participant_id"]) == ["sub-001"]
    assert len(source.recordings) == 2


def test_own_recording_ids_are_kept(tmp_path):
    source = read_source(make_folder(tmp_path, recording_id=["x", "y", "z"]))
    assert list(source.recordings["recording_id"]) == ["x", "y", "z"]
    assert read(source, "y").shape == (41, N_ROIS)


@pytest.mark.parametrize("name", ["atlas.tsv", "region_names.txt"])
def test_an_atlas_in_the_folder_is_called_by_the_file_names(tmp_path, name):
    header = "roi_name\n" if name == "atlas.tsv" else ""
    (make_folder(tmp_path) / name).write_text(header + "a\nb\nc\nd\ne\n")
    atlas = read_source(tmp_path).atlas
    assert (atlas.name, atlas.roi_names) == ("Toy", tuple("abcde"))
    assert read_source(tmp_path, atlas="toy").atlas.roi_names == tuple("abcde")
    assert read_source(tmp_path, atlas="Other").atlas.roi_names == tuple("12345")


def test_an_atlas_may_be_given_as_table_or_object(tmp_path):
    make_folder(tmp_path, suffix=".npy")
    (tmp_path / "mine.csv").write_text("label,x,y,z\n" + "".join(f"r{i},1,2,3\n" for i in range(N_ROIS)))
    atlas = read_source(tmp_path, atlas=tmp_path / "mine.csv").atlas
    assert atlas.roi_names == ("r0", "r1", "r2", "r3", "r4") and atlas.coords_mm is not None
    assert read_source(tmp_path, atlas=atlas).atlas is atlas


def test_the_column_n_rois_says_the_width_without_reading(tmp_path):
    make_folder(tmp_path, n_rois=9)
    assert read_source(tmp_path).atlas.n_rois == 9


def test_the_commonest_width_is_the_atlas(tmp_path):
    make_folder(tmp_path)
    np.save(tmp_path / "sub-000_atlas-Toy_timeseries.npy", np.ones((40, 4)))
    assert read_source(tmp_path).atlas.n_rois == N_ROIS


def test_labels_of_the_first_table_name_the_rois_and_order_the_others(tmp_path):
    (tmp_path / "s1_seg-Mine.tsv").write_text("a\tb\n1.5\t2\n3\t4\n")
    (tmp_path / "s2_seg-Mine.tsv").write_text("b\ta\n2\t1.5\n4\t3\n")
    table = {"participant_id": ["s1", "s2"], "file": ["s1_seg-Mine.tsv", "s2_seg-Mine.tsv"]}
    write(tmp_path / "participants.tsv", pd.DataFrame(table))
    source = read_source(tmp_path)
    assert (source.atlas.name, source.atlas.roi_names) == ("Mine", ("a", "b"))
    assert np.array_equal(read(source, "s1"), read(source, "s2"))
    assert source.recordings["tr"].isna().all()


def test_a_transposed_recording_is_recognised(tmp_path):
    make_folder(tmp_path)
    np.save(tmp_path / "sub-001_atlas-Toy_timeseries.npy", np.ones((N_ROIS, 40)))
    with pytest.raises(OpenBrainMassError, match=r"sub-001.*looks transposed.*5 columns"):
        read(read_source(tmp_path), "sub-001")


def test_a_folder_of_transposed_recordings_is_recognised(tmp_path):
    make_folder(tmp_path)
    for file in tmp_path.glob("*.npy"):
        np.save(file, np.load(file).T)
    with pytest.raises(OpenBrainMassError, match="looks transposed"):
        read_source(tmp_path)


def spoil(folder: Path, **columns: object) -> None:
    make_folder(folder, **columns)


WRONG = [
    (lambda f: f.rename(f.with_name("gone")), "does not exist"),
    (lambda f: (f / "participants.tsv").write_text("participant_id\tfile\n"), "names no recording"),
    (lambda f: (f / "participants.tsv").write_text("id\tfile\nx\ty\n"), "lacks the column participant_id; it has id"),
    (lambda f: spoil(f, participant_id=["a", "b", "a"]), "has a more than once"),
    (lambda f: spoil(f, participant_id=["a", None, "b"]), "line 3 has nothing in participant_id"),
    (lambda f: spoil(f, file=None), "names no recording"),
    (lambda f: spoil(f, tr=[2.0, 2000, 2.0]), "sub-001 a tr of 2000"),
    (lambda f: spoil(f, tr=[2.0, "fast", 2.0]), "sub-001 a tr of fast"),
    (lambda f: spoil(f, suffix=".npy"), "Nothing says which atlas"),
    (lambda f: spoil(f, file=["a_atlas-A.npy", "b_atlas-B.npy", "c.npy"]), r"several atlases \(A, B\)"),
    (lambda f: spoil(f, recording_id="same"), "more than one recording same"),
    (
        lambda f: (f / "recordings.tsv").write_text("participant_id\tfile\nsub-000\ta.npy\nstranger\tb.npy\n"),
        "recordings of stranger",
    ),
    (
        lambda f: (f / "recordings.tsv").write_text("participant_id\tfile\nsub-000\ta.npy\nsub-000\tb.npy\n"),
        "session and run",
    ),
]


@pytest.mark.parametrize(("spoiling", "said"), WRONG)
def test_wrong_folders_are_explained_in_one_paragraph(tmp_path, spoiling, said):
    folder = make_folder(tmp_path / "lab")
    spoiling(folder)
    with pytest.raises(OpenBrainMassError, match=said) as caught:
        read_source(folder)
    assert "\n" not in str(caught.value)
