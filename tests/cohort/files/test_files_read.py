"""Any file that holds one recording: by its type, in the atlas's order, or one sentence."""

from __future__ import annotations

import numpy as np
import pytest

from openbrainmass.atlas import Atlas, numbered_atlas
from openbrainmass.cohort.files.read import file_labels, file_shape, read_file
from openbrainmass.errors import OpenBrainMassError

BOLD = np.random.default_rng(0).normal(size=(12, 3)).astype(np.float32)


def test_arrays_tables_and_matlab_files_are_one_to_the_reader(tmp_path):
    from scipy.io import savemat

    np.save(tmp_path / "a.npy", BOLD)
    np.savetxt(tmp_path / "a.csv", BOLD, delimiter=",")
    savemat(tmp_path / "a.mat", {"bold": BOLD})
    for name in ("a.npy", "a.csv", "a.mat"):
        np.testing.assert_allclose(read_file(tmp_path / name, numbered_atlas("Toy", 3)).bold, BOLD, rtol=1e-6)
        assert file_shape(tmp_path / name) == (12, 3)
        shouted = (tmp_path / name).rename(tmp_path / name.upper())
        np.testing.assert_allclose(read_file(shouted, numbered_atlas("Toy", 3)).bold, BOLD, rtol=1e-6)
        assert file_shape(shouted) == (12, 3)


def test_columns_are_matched_by_label(tmp_path):
    (tmp_path / "a.tsv").write_text("b\ta\n1\t2\n3\t4\n")
    bold = read_file(tmp_path / "a.tsv", Atlas("Toy", ("a", "b", "c"))).bold
    np.testing.assert_array_equal(bold, [[2, 1, np.nan], [4, 3, np.nan]])
    assert file_labels(tmp_path / "a.tsv") == ("b", "a")
    assert file_labels((tmp_path / "a.tsv").rename(tmp_path / "a.TSV")) == ("b", "a")


def test_labels_of_files_that_have_none(tmp_path):
    np.save(tmp_path / "a.npy", BOLD)
    assert file_labels(tmp_path / "a.npy") is None
    assert file_labels(tmp_path / "image.nii.gz") is None


def test_an_image_needs_an_atlas_image(tmp_path):
    import nibabel as nib

    nib.save(nib.Nifti1Image(np.ones((4, 4, 4, 5), dtype=np.float32), np.eye(4)), tmp_path / "a.nii.gz")
    with pytest.raises(OpenBrainMassError, match=r"a\.nii\.gz.*atlas"):
        read_file(tmp_path / "a.nii.gz", numbered_atlas("Toy", 3))


def test_files_that_are_missing_transposed_or_of_another_type(tmp_path):
    with pytest.raises(OpenBrainMassError, match=r"gone\.npy does not exist"):
        read_file(tmp_path / "gone.npy", numbered_atlas("Toy", 3))
    np.save(tmp_path / "t.npy", BOLD.T)
    with pytest.raises(OpenBrainMassError, match=r"t\.npy has the shape \(3, 12\) and looks transposed"):
        read_file(tmp_path / "t.npy", numbered_atlas("Toy", 3))
    (tmp_path / "a.docx").write_bytes(b"words")
    with pytest.raises(OpenBrainMassError, match=r"a\.docx is a \.docx file"):
        read_file(tmp_path / "a.docx", numbered_atlas("Toy", 3))
