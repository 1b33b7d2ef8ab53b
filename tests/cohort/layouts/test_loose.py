"""Loose files: whose they are by their names, and what beside them is no series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from openbrainmass.cohort.layouts import loose
from openbrainmass.cohort.layouts.read import read_source
from openbrainmass.cohort.source import ReadingSettings

BOLD = np.random.default_rng(0).normal(size=(40, 3))


def save(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, BOLD) if path.suffix == ".npy" else np.savetxt(path, BOLD)


@pytest.mark.parametrize(
    ("file", "participant", "recording"),
    [
        ("sub-07_ses-1_task-rest_bold.npy", "sub-07", "sub-07_ses-1_task-rest"),
        ("patient 12.npy", "sub-patient12", "sub-patient12"),
        ("subjects/sub3/rest.1D", "sub-3", "sub-3_desc-rest"),
        ("group_a/Subject004/run_2.txt", "sub-004", "sub-004_desc-run2"),
    ],
)
def test_names_say_whose_a_file_is(tmp_path, file, participant, recording):
    save(tmp_path / file)
    [found] = loose.find(tmp_path, ReadingSettings())
    assert (found.participant_id, found.recording_id) == (participant, recording)


def test_tables_and_masks_beside_series_are_no_series(tmp_path):
    import nibabel as nib

    save(tmp_path / "a.npy")
    for name in ("participants.tsv", "atlas.csv", "x_confounds.tsv", "a_relmat.tsv", "labels.txt", "notes.docx"):
        (tmp_path / name).write_text("a\tb\n1\t2\n")
    nib.save(nib.Nifti1Image(np.ones((3, 3, 3), dtype=np.uint8), np.eye(4)), tmp_path / "gm.nii.gz")
    nib.save(nib.Nifti1Image(np.ones((3, 3, 3, 9), dtype=np.uint8), np.eye(4)), tmp_path / "b.nii.gz")
    (tmp_path / "torn.nii.gz").write_bytes(b"no image")
    assert [found.file for found in loose.find(tmp_path, ReadingSettings())] == ["a.npy", "b.nii.gz", "torn.nii.gz"]


def test_a_table_of_people_without_files_adds_what_is_known(tmp_path):
    save(tmp_path / "sub-1_atlas-Toy_timeseries.npy")
    save(tmp_path / "sub-2_atlas-Toy_timeseries.npy")
    table = pd.DataFrame({"participant_id": ["sub-1", "sub-2"], "dx": ["a", "b"]})
    table.to_csv(tmp_path / "participants.tsv", sep="\t", index=False)
    source = read_source(tmp_path)
    assert source.participants["dx"].tolist() == ["a", "b"] and source.atlas.name == "Toy"
    assert source.read(source.recordings.iloc[1].to_dict()).bold.shape == (40, 3)
