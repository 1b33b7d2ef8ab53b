"""A store carried to another atlas: series, what was lost, and stores of the wrong atlas."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest

from openbrainmass.atlas import Atlas
from openbrainmass.cohort.bridged import bridge_store
from openbrainmass.cohort.simulate import simulate_cohort
from openbrainmass.cohort.store import load_cohort, save_cohort
from openbrainmass.durable import read_tsv
from openbrainmass.errors import OpenBrainMassError


@pytest.fixture
def images(tmp_path):
    """Fourteen slabs of two planes, and seven of four: each target ROI is two source ROIs."""
    fine = np.repeat(np.arange(15), 2)[:, None, None] * np.ones((1, 4, 4))
    for name, labels in (("fine", fine), ("coarse", (fine + 1) // 2)):
        nib.save(nib.Nifti1Image(labels.astype(np.int16), np.eye(4) * [2, 2, 2, 1]), tmp_path / f"{name}.nii.gz")
    return tmp_path / "fine.nii.gz", tmp_path / "coarse.nii.gz"


def test_a_store_is_carried_over_and_says_what_was_lost(tmp_path, images):
    save_cohort(simulate_cohort(n_people=8, n_sites=2, n_rois=14, n_volumes=90, seed=1), tmp_path / "fourteen")
    made = bridge_store(tmp_path / "fourteen", *images, tmp_path / "seven", progress=False)
    assert len(made) == 8 and made.atlas.n_rois == 7 and made.atlas.name == "coarse"
    assert made.recordings["bridge_agreement"].between(0, 1).all()
    assert made.recordings["steps"].str.startswith("bridged from").all()
    before = load_cohort(tmp_path / "fourteen")[0]
    mean = before[:, :2].mean(axis=1)
    assert abs(np.corrcoef(mean, made[0][:, 0])[0, 1]) > 0.99
    lost = read_tsv(tmp_path / "seven" / "bridge.tsv")
    assert len(lost) == 7 and np.allclose(lost["coverage"], 1) and np.allclose(lost["n_sources"], 2)


def test_an_image_of_another_atlas_is_refused(tmp_path, images, paint):
    save_cohort(simulate_cohort(n_people=4, n_sites=1, n_rois=21, n_volumes=60, seed=1), tmp_path / "wide")
    save_cohort(simulate_cohort(n_people=4, n_sites=1, n_rois=14, n_volumes=60, seed=1), tmp_path / "fit")
    with pytest.raises(OpenBrainMassError, match=r"fine\.nii\.gz has the 14 ROIs .* \(21\)"):
        bridge_store(tmp_path / "wide", *images, tmp_path / "out", progress=False)
    (tmp_path / "names.txt").write_text("a\nb\n")
    with pytest.raises(OpenBrainMassError, match=r"names\.txt is no label image"):
        bridge_store(tmp_path / "wide", images[0], tmp_path / "names.txt", tmp_path / "out", progress=False)
    surface = paint.dlabel(tmp_path / "four.dlabel.nii")
    with pytest.raises(OpenBrainMassError, match=r"four\.dlabel\.nii is no label image of volumes"):
        bridge_store(tmp_path / "fit", images[0], surface, tmp_path / "out", progress=False)
    assert Atlas("x", ("a",)).image is None
