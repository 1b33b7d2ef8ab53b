"""fMRIPrep folders: what is offered, and painted series that come back cleaned."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from openbrainmass.atlas import Atlas, label_volume, load_atlas
from openbrainmass.cohort.files.cleaning import clean_series
from openbrainmass.cohort.files.confounds import Confounds, read_confounds
from openbrainmass.cohort.layouts.fmriprep import LAYOUT, find
from openbrainmass.cohort.layouts.layout import Found
from openbrainmass.cohort.source import ReadingSettings, Series
from openbrainmass.errors import OpenBrainMassError

NONE = ReadingSettings(strategy="none")
PREFIX = "sub-01_ses-2_task-rest_run-1"
VOLUME = f"sub-01/ses-2/func/{PREFIX}_space-MNI152NLin2009cAsym_res-2_desc-preproc_bold.nii.gz"
DENSE = f"sub-01/ses-2/func/{PREFIX}_space-fsLR_den-91k_bold.dtseries.nii"
TABLE = f"sub-01/ses-2/func/{PREFIX}_desc-confounds_timeseries.tsv"


def touch(folder: Path, *files: str) -> None:
    for file in files:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).touch()


def read(folder: Path, found: Found, atlas: Atlas, settings: ReadingSettings) -> Series:
    """As the builder of a store reads it."""
    row = {"recording_id": found.recording_id, "file": found.file, "tr": next(iter(found.tr.values()), float("nan"))}
    return LAYOUT.read(folder / found.file, row, atlas, settings)


def agreement(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Correlation of each ROI's series with what was painted."""
    return np.array([np.corrcoef(found[:, i], truth[:, i])[0, 1] for i in range(truth.shape[1])])


# -- what is offered ---------------------------------------------------------------------------------------------------


def test_standard_spaces_are_offered_and_native_ones_are_not(tmp_path):
    func = f"sub-01/ses-2/func/{PREFIX}"
    touch(
        tmp_path,
        VOLUME,
        DENSE,
        TABLE,
        f"{func}_desc-preproc_bold.nii.gz",
        f"{func}_space-T1w_desc-preproc_bold.nii.gz",
        f"{func}_space-boldref_desc-preproc_bold.nii.gz",
        f"{func}_space-MNI152NLin6Asym_desc-smoothAROMAnonaggr_bold.nii.gz",
        f"{func}_space-MNI152NLin2009cAsym_res-2_desc-brain_mask.nii.gz",
        f"{func}_space-MNI152NLin2009cAsym_res-2_boldref.nii.gz",
        f"{func}_hemi-L_space-fsaverage5_bold.func.gii",
        f"{func}_space-fsLR_den-91k_desc-denoised_bold.dtseries.nii",
        "sub-02/func/sub-02_task-rest_space-MNIPediatricAsym_cohort-2_res-1_desc-preproc_bold.nii",
    )
    (tmp_path / "task-rest_bold.json").write_text(json.dumps({"RepetitionTime": 2.5}))
    found = find(tmp_path, ReadingSettings())
    assert [(one.file, one.recording_id, one.variant) for one in found] == [
        (VOLUME, PREFIX, "space-MNI152NLin2009cAsym_res-2"),
        (DENSE, PREFIX, "space-fsLR_den-91k"),
        (
            "sub-02/func/sub-02_task-rest_space-MNIPediatricAsym_cohort-2_res-1_desc-preproc_bold.nii",
            "sub-02_task-rest",
            "space-MNIPediatricAsym_cohort-2_res-1",
        ),
    ]
    assert found[0].participant_id == "sub-01" and (found[0].session, found[0].run) == ("2", "1")
    assert set(found[0].tr.values()) == {2.5}
    aroma = find(tmp_path, ReadingSettings(strategy="ica_aroma"))
    assert [one.variant for one in aroma] == ["space-MNI152NLin6Asym"]


def test_other_folders_are_left_alone(tmp_path):
    touch(
        tmp_path,
        "sub-1/func/sub-1_task-rest_feature-x_atlas-a_timeseries.tsv",
        "sub-1/func/sub-1_task-rest_bold.nii.gz",
        "sub-1/func/sub-1_task-rest_space-MNI152NLin6Asym_desc-denoised_bold.nii.gz",
    )
    assert find(tmp_path, ReadingSettings()) == []


def test_files_without_a_person_are_called_by_their_first_word(tmp_path):
    touch(tmp_path, "nonss_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz")
    (one,) = find(tmp_path, ReadingSettings())
    assert (one.participant_id, one.recording_id) == ("sub-nonss", "sub-nonss")


# -- what is read ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path, paint, labelled, surface):
    """One run as volumes and as CIFTI, with confounds that share much with its series."""
    table = paint.confounds(tmp_path / TABLE, 120, unsteady=2, jumps=(50, 51, 53))
    bold = np.random.default_rng(3).normal(size=(120, 6)) * 10
    told = pd.read_csv(table, sep="\t")[["trans_x", "csf", "cosine00"]].to_numpy()
    bold += told @ np.random.default_rng(4).normal(size=(3, 6)) * 10
    paint.volume(tmp_path / VOLUME, bold, paint.labels, noise=3.0)
    paint.dense(tmp_path / DENSE, bold, surface.image, noise=1.0)
    (tmp_path / "task-rest_bold.json").write_text(json.dumps({"RepetitionTime": 2.0}))
    return tmp_path, bold


SETTINGS = [
    {"strategy": "none"},
    {"strategy": "simple"},
    {"strategy": "scrubbing", "band_pass": (0.01, 0.2)},
    {"strategy": "compcor", "detrend": True},
]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("version", [0, 1])
def test_painted_series_come_back_cleaned(folder, labelled, surface, settings, version):
    path, bold = folder
    chosen = ReadingSettings(**settings)
    found = find(path, chosen)[version]
    series = read(path, found, (labelled, surface)[version], chosen)
    truth = bold[:, : series.bold.shape[1]]
    expected, _ = clean_series(truth, 2.0, chosen, read_confounds(path / found.file, chosen))
    assert series.bold.shape == expected.shape
    assert agreement(series.bold, expected).min() > 0.99
    assert set(series.tr.values()) == {2.0} and len(series.tr) == 2
    assert series.measures["mean_fd"] > 0.1 and series.measures["fd_formula"] == "power"
    assert series.measures.get("n_acquired", 120) == 120


def test_the_mask_beside_the_image_is_used(folder, paint, labelled):
    path, _ = folder
    mask = np.ones(paint.labels.shape, dtype=np.uint8)
    mask[paint.labels == 3] = 0
    nib.save(nib.Nifti1Image(mask, paint.affine), path / VOLUME.replace("preproc_bold", "brain_mask"))
    series = read(path, find(path, NONE)[0], labelled, NONE)
    assert series.measures["uncovered_rois"] == "3" and np.isnan(series.bold[:, 2]).all()


def test_trs_that_contradict_each_other_are_refused(folder, labelled):
    path, _ = folder
    (path / "task-rest_bold.json").write_text(json.dumps({"RepetitionTime": 3.0}))
    with pytest.raises(OpenBrainMassError, match="contradict each other: 3 s in .* 2 s in header of"):
        read(path, find(path, NONE)[0], labelled, NONE)


def test_templates_that_differ_are_told(folder, labelled):
    path, _ = folder
    named = path / "tpl-MNI152NLin6Asym_atlas-six_dseg.nii.gz"
    shutil.copy(labelled.image, named)
    series = read(path, find(path, NONE)[0], load_atlas(named), NONE)
    assert series.measures["steps"].startswith("atlas in MNI152NLin6Asym on an image in MNI152NLin2009cAsym; ")


def test_confounds_of_another_run_are_refused(folder, paint, labelled):
    path, _ = folder
    paint.confounds(path / TABLE, 100)
    with pytest.raises(OpenBrainMassError, match="has 100 rows but its image 120 volumes"):
        read(path, find(path, ReadingSettings())[0], labelled, ReadingSettings())


def test_a_broken_sidecar_is_told_of_its_recording(folder, labelled):
    path, _ = folder
    (path / "task-rest_bold.json").write_text("{")
    found = find(path, NONE)[0]
    assert found.tr == {}
    with pytest.raises(OpenBrainMassError, match="task-rest_bold.json is not readable JSON"):
        read(path, found, labelled, NONE)


# -- real scans --------------------------------------------------------------------------------------------------------

CONFOUNDS = (
    "derivatives/halfpipe_ds000030/derivatives/fmriprep/sub-10159/func/sub-10159_task-rest_desc-confounds_timeseries"
)
RUN = "sub-01/func/sub-01_task-rest"


@pytest.fixture(scope="module")
def scan(data_dir) -> np.ndarray:
    """A real scan of 152 volumes without a dead ROI, its values as in an image."""
    table = pd.read_csv(data_dir / "abide1_cc200" / "participants.tsv", sep="\t")
    for file in table["file"]:
        bold = np.load(data_dir / "abide1_cc200" / file).astype(float)
        if len(bold) >= 152 and (bold.std(axis=0) > 0).all():
            return bold[:152] / bold[:152].std(axis=0) * 10
    raise AssertionError("no whole scan")


@pytest.fixture
def real(data_dir, tmp_path) -> Path:
    """A folder with the confounds of a real run."""
    (tmp_path / RUN).parent.mkdir(parents=True)
    for suffix in (".tsv", ".json"):
        shutil.copy(data_dir / f"{CONFOUNDS}{suffix}", f"{tmp_path / RUN}_desc-confounds_timeseries{suffix}")
    return tmp_path


@pytest.mark.data
@pytest.mark.parametrize(("size", "ending"), [pytest.param(4.0, ".nii", marks=pytest.mark.slow), (6.0, ".nii.gz")])
def test_a_real_scan_painted_into_cc200_comes_back(data_dir, scan, real, paint, size, ending):
    from scipy.ndimage import map_coordinates

    atlas = load_atlas(data_dir / "atlases" / "pcp_cc200_roi_atlas.nii.gz")
    labels, own = label_volume(atlas)
    shape = (int(189 / size), int(225 / size), int(183 / size))
    affine = np.diag([-size, size, size, 1.0])
    affine[:3, 3] = (93, -129, -72)
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1) @ affine[:3, :3].T + affine[:3, 3]
    voxels = (grid - own[:3, 3]) @ np.linalg.inv(own[:3, :3]).T
    coarse = map_coordinates(labels, np.moveaxis(voxels, -1, 0), order=0)
    paint.volume(real / f"{RUN}_space-MNI152NLin6Asym_desc-preproc_bold{ending}", scan, coarse, affine, noise=3.0)
    check(real, atlas, scan)


@pytest.mark.slow
@pytest.mark.data
def test_a_real_scan_painted_into_grayordinates_comes_back(data_dir, scan, real, paint):
    from nibabel.cifti2 import LabelAxis

    sample = data_dir / "derivatives" / "cifti2_sample"
    image = nib.load(sample / "Conte69.parcellations_VGD11b.32k_fs_LR.dlabel.nii")
    axis = image.header.get_axis(0)
    keys = np.asanyarray(image.dataobj)[:1].astype(np.float32)
    dlabel = paint.cifti(
        real / "vgd11b.dlabel.nii", keys, LabelAxis(axis.name[:1], axis.label[:1]), image.header.get_axis(1)
    )
    # The surface without its medial wall, as fMRIPrep and HCP write it.
    models = nib.load(sample / "Conte69.MyelinAndCorrThickness.32k_fs_LR.dtseries.nii").header.get_axis(1)
    paint.dense(real / f"{RUN}_space-fsLR_den-91k_bold.dtseries.nii", scan, dlabel, noise=4.0, models=models)
    check(real, load_atlas(dlabel), scan)


def check(folder: Path, atlas: Atlas, scan: np.ndarray) -> None:
    """Each covered ROI comes back, raw and cleaned by each strategy as the true series are."""
    (found,) = find(folder, ReadingSettings())
    raw = read(folder, found, atlas, NONE)
    there = np.flatnonzero(~np.isnan(raw.bold[0]))
    gone = raw.measures.get("uncovered_rois", "").split(";")
    assert [name for i, name in enumerate(atlas.roi_names) if i not in there] == [name for name in gone if name]
    assert len(there) > 0.9 * atlas.n_rois
    truth = scan[:, : atlas.n_rois][:, there]
    assert agreement(raw.bold[:, there], truth).min() > 0.99
    for settings in (ReadingSettings(strategy="simple"), ReadingSettings(strategy="scrubbing", band_pass=(0.01, 0.1))):
        confounds: Confounds = read_confounds(folder / found.file, settings)
        expected, _ = clean_series(truth, 2.0, settings, confounds)
        series = read(folder, found, atlas, settings)
        assert agreement(series.bold[:, there], expected).min() > 0.99
        assert len(series.bold) == 152 - series.measures["n_censored"]


@pytest.mark.data
def test_layouts_of_public_trees_are_found(data_dir):
    trees = data_dir / "derivatives"
    found = find(trees / "fmriprep_ds000228_layout", ReadingSettings())
    assert {(one.participant_id, one.variant) for one in found} == {
        (f"sub-pixar00{i}", space)
        for i in (1, 2)
        for space in ("space-MNI152NLin2009cAsym_res-2", "space-fsLR_den-91k")
    }
    assert {tr for one in found for tr in one.tr.values()} == {2.0}
    for tree in ("halfpipe_ds000030", "giga_connectome_ds000017", "cifti2_sample", "nifti_4d_sample"):
        assert find(trees / tree, ReadingSettings()) == []


@pytest.mark.data
@pytest.mark.parametrize("tree", ["fmriprep_ds000228_layout", "load_confounds_testdata", "bids_examples"])
@pytest.mark.parametrize("strategy", ["none", "simple", "ica_aroma"])
def test_stand_ins_for_images_are_each_refused_in_a_line(data_dir, labelled, tree, strategy):
    folder, settings = data_dir / "derivatives" / tree, ReadingSettings(strategy=strategy)
    found = find(folder, settings)
    assert found
    for one in found[:12]:
        with pytest.raises(OpenBrainMassError) as caught:
            read(folder, one, labelled, settings)
        assert "\n" not in str(caught.value) and one.participant_id.removeprefix("sub-") in str(caught.value)
