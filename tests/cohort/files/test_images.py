"""Images to series: painted series come back, and every broken image is answered in one sentence."""

from __future__ import annotations

import gzip
import struct
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from openbrainmass.atlas import Atlas, load_atlas, numbered_atlas
from openbrainmass.cohort.files.images import image_labels, parcellate, read_image
from openbrainmass.cohort.files.nifti import read_header
from openbrainmass.cohort.source import ReadingSettings
from openbrainmass.errors import OpenBrainMassError

PLAIN = ReadingSettings(strategy="none")
SERIES = np.random.default_rng(7).normal(size=(20, 6)) * 10


def refusal(path: Path, atlas: Atlas, settings: ReadingSettings = PLAIN) -> str:
    """The sentence about a bad image: one line that names it."""
    with pytest.raises(OpenBrainMassError) as caught:
        read_image(path, atlas, settings)
    sentence = str(caught.value)
    assert "\n" not in sentence and path.name in sentence
    return sentence


# -- volumes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bold.nii", "bold.nii.gz"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16])
def test_a_painted_series_comes_back(tmp_path, paint, labelled, name, dtype):
    image = paint.volume(tmp_path / name, np.rint(SERIES), paint.labels, dtype=dtype)
    series = read_image(image, labelled, PLAIN)
    np.testing.assert_allclose(series.bold, 1000 + np.rint(SERIES), atol=1e-3)
    assert series.bold.dtype == np.float32
    assert series.tr == {f"header of {name}": 2.0}
    assert series.measures == {"min_coverage": 1.0, "steps": "no confounds regressed out"}


def test_means_are_those_of_nilearn(tmp_path, paint, labelled):
    from nilearn.maskers import NiftiLabelsMasker

    image = paint.volume(tmp_path / "bold.nii.gz", SERIES, paint.labels, noise=5.0)
    expected = NiftiLabelsMasker(labels_img=str(labelled.image), standardize=None).fit_transform(str(image))
    np.testing.assert_allclose(read_image(image, labelled, PLAIN).bold, expected, rtol=1e-6)


def test_scale_and_byte_order_of_the_header_are_followed(tmp_path, paint, labelled):
    image = nib.load(paint.volume(tmp_path / "a.nii", np.rint(SERIES), paint.labels))
    data = np.asarray(image.dataobj)
    swapped = nib.Nifti1Image(data.astype(">i2"), paint.affine, nib.Nifti1Header(endianness=">"))
    nib.save(swapped, tmp_path / "b.nii")
    raw = bytearray((tmp_path / "b.nii").read_bytes())
    raw[112:120] = struct.pack(">ff", 0.5, -3.0)
    (tmp_path / "b.nii").write_bytes(raw)
    np.testing.assert_allclose(
        read_image(tmp_path / "b.nii", labelled, PLAIN).bold, (1000 + np.rint(SERIES)) * 0.5 - 3, atol=1e-3
    )


def test_labels_are_brought_to_the_grid_of_the_bold(tmp_path, paint, labelled):
    from nilearn.image import resample_img

    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = paint.affine[:3, 3] - 3
    finer = resample_img(
        str(labelled.image), affine, (18, 21, 16), interpolation="nearest", copy_header=True, force_resample=True
    )
    image = paint.volume(tmp_path / "bold.nii.gz", SERIES, np.asarray(finer.dataobj).astype(int), affine)
    found = read_image(image, labelled, PLAIN)
    np.testing.assert_allclose(found.bold, 1000 + SERIES, atol=1e-2)
    assert found.measures["min_coverage"] == 1


def test_an_roi_beyond_the_edge_of_the_image_is_covered_in_part(tmp_path, paint, labelled):
    # The lower six slices of voxels are cut: of every ROI 4 of 6 slices remain.
    affine = paint.affine.copy()
    affine[2, 3] += 4 * 4
    image = paint.volume(tmp_path / "cut.nii.gz", SERIES, paint.labels[:, :, 4:], affine)
    assert read_image(image, labelled, PLAIN).measures["min_coverage"] == pytest.approx(4 / 6, abs=1e-3)
    found = read_image(image, labelled, ReadingSettings(strategy="none", min_coverage=0.7))
    assert np.isnan(found.bold).all() or found.measures["uncovered_rois"].count(";") == 5


def test_voxels_without_signal_are_left_out_and_an_roi_of_few_is_named(tmp_path, paint, labelled):
    image = nib.load(paint.volume(tmp_path / "a.nii", SERIES, paint.labels))
    data = np.asanyarray(image.dataobj).copy()
    first, second, third = (np.argwhere(paint.labels == i) for i in (1, 2, 3))
    data[tuple(first[:40].T)] = 0  # of 120 voxels
    data[tuple(second[:90].T)] = 55.5
    data[tuple(third[:30].T)] = np.nan
    data[tuple(third[30])][4] = np.inf
    nib.save(nib.Nifti1Image(data, paint.affine), tmp_path / "b.nii")
    found = read_image(tmp_path / "b.nii", labelled, PLAIN)
    kept = [0, 2, 3, 4, 5]
    np.testing.assert_allclose(found.bold[:, kept], 1000 + SERIES[:, kept], atol=1e-2)
    assert np.isnan(found.bold[:, 1]).all()
    assert found.measures["uncovered_rois"] == "2" and found.measures["min_coverage"] == 0.25
    assert parcellate(tmp_path / "b.nii", labelled, ReadingSettings(min_coverage=0.2)).measures == {
        "min_coverage": 0.25
    }


def test_only_voxels_in_the_mask_are_averaged(tmp_path, paint, labelled):
    image = paint.volume(tmp_path / "bold.nii.gz", SERIES, paint.labels)
    mask = np.ones(paint.labels.shape, dtype=np.uint8)
    mask[:, :, :5] = 0
    nib.save(nib.Nifti1Image(mask, paint.affine), tmp_path / "mask.nii.gz")
    found = parcellate(image, labelled, ReadingSettings(min_coverage=0.4), tmp_path / "mask.nii.gz")
    assert found.measures["min_coverage"] == 0.5
    np.testing.assert_allclose(found.bold, 1000 + SERIES, atol=1e-3)
    nib.save(nib.Nifti1Image(mask[:-1], paint.affine), tmp_path / "mask.nii.gz")
    with pytest.raises(OpenBrainMassError, match="brain mask .* has the grid"):
        parcellate(image, labelled, PLAIN, tmp_path / "mask.nii.gz")


def test_values_of_an_atlas_need_not_count(tmp_path, paint):
    values = (4, 7, 8, 2001, 9170, 30000)
    labels = np.array([0, *values], dtype=np.int32)[paint.labels]
    nib.save(nib.Nifti1Image(labels, paint.affine), tmp_path / "odd.nii.gz")
    image = paint.volume(tmp_path / "bold.nii.gz", SERIES, paint.labels)
    found = read_image(image, load_atlas(tmp_path / "odd.nii.gz"), PLAIN)
    np.testing.assert_allclose(found.bold, 1000 + SERIES, atol=1e-3)


@pytest.mark.parametrize(
    ("step", "unit", "expected"),
    [(2.2, "sec", 2.2), (2200.0, "msec", 2.2), (1.0, "unknown", None), (0.0, "sec", None)],
)
def test_the_time_step_counts_only_with_its_unit(tmp_path, paint, step, unit, expected):
    header = read_header(paint.volume(tmp_path / "bold.nii", SERIES, paint.labels, tr=step, unit=unit))
    assert header.tr == (None if expected is None else pytest.approx(expected))


def test_filters_apply_to_plain_images(tmp_path, paint, labelled):
    times = np.arange(200) * 2.0
    slow, fast = np.sin(2 * np.pi * 0.05 * times), np.sin(2 * np.pi * 0.2 * times)
    image = paint.volume(tmp_path / "bold.nii.gz", np.repeat((slow + fast)[:, None], 6, axis=1), paint.labels)
    found = read_image(image, labelled, ReadingSettings(strategy="none", detrend=True, band_pass=(0.01, 0.1)))
    assert np.corrcoef(found.bold[20:-20, 0], slow[20:-20])[0, 1] > 0.99
    assert found.measures["steps"] == "no confounds regressed out; detrended; band-pass 0.01-0.1 Hz"


def test_a_strategy_needs_confounds_and_the_default_does_not_insist(tmp_path, paint, labelled):
    image = paint.volume(tmp_path / "bold.nii.gz", SERIES, paint.labels)
    assert "comes without confounds" in refusal(image, labelled, ReadingSettings(strategy="scrubbing"))
    assert read_image(image, labelled, ReadingSettings()).measures["steps"] == "no confounds regressed out"


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_an_atlas_without_a_fitting_image_is_named(tmp_path, paint, labelled, surface):
    image = paint.volume(tmp_path / "bold.nii.gz", SERIES, paint.labels)
    assert "no image of it is at hand" in refusal(image, numbered_atlas("six", 6))
    assert "its image is a surface" in refusal(image, surface)
    dense = paint.dense(tmp_path / "bold.dtseries.nii", SERIES[:, :4], surface.image)
    with pytest.raises(OpenBrainMassError, match="six_dseg.nii.gz is a volume"):
        read_image(dense, labelled, PLAIN)
    with pytest.raises(OpenBrainMassError, match="no image of it is at hand"):
        read_image(dense, numbered_atlas("four", 4), PLAIN)


def test_an_image_that_lies_elsewhere_is_refused(tmp_path, paint, labelled):
    affine = paint.affine.copy()
    affine[0, 3] = 500
    image = paint.volume(tmp_path / "bold.nii.gz", SERIES, paint.labels, affine)
    assert "covers no ROI of the atlas six" in refusal(image, labelled)


BROKEN = {
    "empty": (lambda raw: b"", "is empty"),
    "text": (lambda raw: b"images are kept elsewhere\n" * 40, "no NIfTI header"),
    "short": (lambda raw: raw[:100], "no NIfTI header"),
    "magic": (lambda raw: raw[:344] + b"xyz\0" + raw[348:], "lacks the mark of NIfTI-1"),
    "pair": (lambda raw: raw[:344] + b"ni1\0" + raw[348:], "half of a pair"),
    "dimensions": (lambda raw: raw[:42] + struct.pack("<h", -12) + raw[44:], "its dimensions are"),
    "type": (lambda raw: raw[:70] + struct.pack("<hh", 128, 24) + raw[74:], "values are of type"),
    "code": (lambda raw: raw[:70] + struct.pack("<h", 77) + raw[72:], "of the type 77, which NIfTI does not know"),
    "slope": (lambda raw: raw[:112] + struct.pack("<ff", 2.0, np.nan) + raw[120:], "its header is wrong"),
    "bits": (lambda raw: raw[:72] + struct.pack("<h", 8) + raw[74:], "in 8 bits"),
    "offset": (lambda raw: raw[:108] + struct.pack("<f", np.nan) + raw[112:], "begin at byte nan"),
    "affine": (lambda raw: raw[:280] + b"\0" * 48 + raw[328:], "affine is not invertible"),
    "place": (lambda raw: raw[:252] + b"\0" * 4 + raw[256:], "does not tell where it lies"),
    "cut": (lambda raw: raw[:-1000], "speaks of"),
    "longer": (lambda raw: raw + b"\0" * 5000, "speaks of"),
    "more volumes": (lambda raw: raw[:48] + struct.pack("<h", 20000) + raw[50:], "speaks of"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_image_is_refused_in_a_sentence(tmp_path, paint, labelled, kind):
    change, words = BROKEN[kind]
    raw = paint.volume(tmp_path / "a.nii", SERIES, paint.labels).read_bytes()
    (tmp_path / "b.nii").write_bytes(change(raw))
    assert words in refusal(tmp_path / "b.nii", labelled)


def test_a_missing_image_is_named(tmp_path, labelled):
    assert "does not exist" in refusal(tmp_path / "none.nii.gz", labelled)


def test_one_volume_is_no_series(tmp_path, paint, labelled):
    nib.save(nib.Nifti1Image(np.ones((4, 4, 4), np.float32), paint.affine), tmp_path / "anat.nii.gz")
    assert "several volumes" in refusal(tmp_path / "anat.nii.gz", labelled)


def test_packed_files_are_refused_where_packing_hides_something(tmp_path, paint, labelled):
    raw = paint.volume(tmp_path / "a.nii", SERIES, paint.labels, noise=3.0).read_bytes()
    packed = gzip.compress(raw)
    bad = tmp_path / "b.nii.gz"
    bad.write_bytes(raw)
    assert "it is not packed" in refusal(bad, labelled)
    (tmp_path / "c.nii").write_bytes(packed)
    assert "does not end on .gz but it is packed" in refusal(tmp_path / "c.nii", labelled)
    bad.write_bytes(packed[: len(packed) // 2])
    assert "cannot be read" in refusal(bad, labelled)
    bad.write_bytes(gzip.compress(raw + b"\0" * 100))
    assert "goes on after the 20 volumes" in refusal(bad, labelled)
    bad.write_bytes(gzip.compress(raw[:-400]))
    assert "ends within its volumes" in refusal(bad, labelled)
    bad.write_bytes(packed[:-8] + b"\0" * 8)
    assert "cannot be read" in refusal(bad, labelled)
    bad.write_bytes(packed[:40])
    assert "cannot be read" in refusal(bad, labelled)
    bad.write_bytes(gzip.compress(raw[:352] + b"\0" * (len(raw) - 352)))
    assert "-fold, so that little can be in it" in refusal(bad, labelled)
    bad.write_bytes(gzip.compress(raw[:48] + struct.pack("<h", 30000) + raw[50:400]))
    assert "packed bytes cannot hold" in refusal(bad, labelled)


def test_values_beyond_measure_are_damage(tmp_path, paint, labelled):
    huge = SERIES.copy()
    huge[3, 2] = 1e300
    image = paint.volume(tmp_path / "a.nii.gz", huge, paint.labels, dtype=np.float64)
    assert "beyond all measure" in refusal(image, labelled)


# -- grayordinates and parcels -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("voxels", [True, False])
def test_a_dense_series_comes_back(tmp_path, paint, voxels):
    atlas = load_atlas(paint.dlabel(tmp_path / "own.dlabel.nii", voxels))
    image = paint.dense(tmp_path / "a.dtseries.nii", SERIES[:, :4], atlas.image, tr=0.72)
    found = read_image(image, atlas, PLAIN)
    np.testing.assert_allclose(found.bold, 1000 + SERIES[:, :4], atol=1e-2)
    assert found.tr == {"header of a.dtseries.nii": pytest.approx(0.72)}
    assert found.measures["min_coverage"] == 1 and "uncovered_rois" not in found.measures
    assert atlas.roi_names == ("parcel_2", "parcel_3", "parcel_5", "parcel_9")


def test_dense_means_are_those_of_the_arrays(tmp_path, paint, surface):
    image = paint.dense(tmp_path / "a.dtseries.nii", SERIES[:, :4], surface.image, noise=20.0)
    data = np.asanyarray(nib.load(image).dataobj)
    keys = np.asanyarray(nib.load(surface.image).dataobj)[0]
    expected = np.stack([data[:, keys == key].mean(axis=1) for key in (2, 3, 5, 9)], axis=1)
    np.testing.assert_allclose(read_image(image, surface, PLAIN).bold, expected, rtol=1e-5)


def test_vertices_are_matched_one_by_one(tmp_path, paint, surface):
    # The same grayordinates in another order, some of them missing.
    models = paint.brain_models(True)
    order = np.concatenate([np.arange(36, 72), np.arange(72, 84)[::-1], np.arange(5, 36)])
    image = paint.dense(tmp_path / "a.dtseries.nii", SERIES[:, :4], surface.image, models=models[order])
    found = read_image(image, surface, PLAIN)
    np.testing.assert_allclose(found.bold, 1000 + SERIES[:, :4], atol=1e-2)
    assert found.measures["min_coverage"] == 0.75  # 5 of the 20 vertices of the first parcel


def test_grayordinates_without_signal_are_left_out(tmp_path, paint, surface):
    image = nib.load(paint.dense(tmp_path / "a.dtseries.nii", SERIES[:, :4], surface.image))
    data = np.asanyarray(image.dataobj).copy()
    data[:, :12] = 0
    data[:, 25] = np.nan
    paint.cifti(tmp_path / "b.dtseries.nii", data, image.header.get_axis(0), image.header.get_axis(1))
    found = read_image(tmp_path / "b.dtseries.nii", surface, PLAIN)
    assert found.measures == {
        "min_coverage": 0.4,
        "uncovered_rois": "parcel_2",
        "steps": "no confounds regressed out",
    }
    np.testing.assert_allclose(found.bold[:, 1:], 1000 + SERIES[:, 1:4], atol=1e-2)


def test_other_meshes_and_grids_are_refused(tmp_path, paint, surface):
    from nibabel.cifti2 import BrainModelAxis, SeriesAxis

    series = SeriesAxis(0, 2, 20, "SECOND")
    mesh = BrainModelAxis.from_surface(np.arange(60), 60, "CortexLeft")
    image = paint.cifti(tmp_path / "a.dtseries.nii", np.ones((20, 60), np.float32), series, mesh)
    assert "60 vertices in CIFTI_STRUCTURE_CORTEX_LEFT but the atlas 40" in refusal(image, surface)
    mask = np.ones((3, 3, 3), dtype=bool)
    grid = BrainModelAxis.from_mask(mask, affine=np.eye(4), name="ThalamusLeft")
    image = paint.cifti(tmp_path / "b.dtseries.nii", np.ones((20, 27), np.float32), series, grid)
    assert "lie on another grid" in refusal(image, surface)


def test_parcels_go_where_the_atlas_has_their_names(tmp_path, paint):
    image = paint.parcels(tmp_path / "a.ptseries.nii", SERIES[:, :4], ["V1", "V2", "M1", "A1"])
    assert image_labels(image) == ("V1", "V2", "M1", "A1")
    assert image_labels(tmp_path / "a.dtseries.nii") is None
    found = read_image(image, Atlas("five", ("A1", "M1", "S1", "V1", "V2")), PLAIN)
    np.testing.assert_allclose(found.bold[:, [3, 4, 1, 0]], SERIES[:, :4], rtol=1e-5)
    assert np.isnan(found.bold[:, 2]).all() and found.measures["uncovered_rois"] == "S1"
    assert found.tr == {"header of a.ptseries.nii": pytest.approx(0.72)}
    assert "parcels named V1, V2, M1" in refusal(image, Atlas("other", ("A1", "B2")))
    np.testing.assert_allclose(read_image(image, numbered_atlas("four", 4), PLAIN).bold, SERIES[:, :4], rtol=1e-5)
    assert "has 4 parcels but the atlas five 5 ROIs" in refusal(image, numbered_atlas("five", 5))


def test_other_cifti_files_are_refused(tmp_path, paint, surface):
    assert "CIFTI of another kind (intent 3007)" in refusal(surface.image, surface)
    image = paint.dense(tmp_path / "a.dtseries.nii", SERIES[:, :4], surface.image)
    raw = image.read_bytes()
    (tmp_path / "b.dtseries.nii").write_bytes(raw.replace(b"<BrainModel ", b"<BrainMobel "))
    assert "cannot be read" in refusal(tmp_path / "b.dtseries.nii", surface)
    (tmp_path / "c.dtseries.nii").write_bytes(raw.replace(b"<BrainModel ", b"<!ENTITY xy "))
    assert "declares entities" in refusal(tmp_path / "c.dtseries.nii", surface)
    (tmp_path / "d.dtseries.nii").write_bytes(raw[:-3])
    assert "speaks of" in refusal(tmp_path / "d.dtseries.nii", surface)
    (tmp_path / "e.dtseries.nii").write_bytes(raw[:504] + struct.pack("<i", 3004) + raw[508:])
    assert "a parcellated series (.ptseries.nii) was expected" in refusal(tmp_path / "e.dtseries.nii", surface)


# -- real files --------------------------------------------------------------------------------------------------------


@pytest.mark.data
def test_real_parcels_are_the_means_of_real_vertices(data_dir, tmp_path):
    """The sample's ptseries holds, by its readme, the averages of its dtseries over the first map of its dlabel."""
    sample = data_dir / "derivatives" / "cifti2_sample"
    atlas = first_map(sample / "Conte69.parcellations_VGD11b.32k_fs_LR.dlabel.nii", tmp_path / "vgd11b.dlabel.nii")
    dense = read_image(sample / "Conte69.MyelinAndCorrThickness.32k_fs_LR.dtseries.nii", atlas, all_vertices())
    parcels = sample / "Conte69.MyelinAndCorrThickness.32k_fs_LR.ptseries.nii"
    named = replace(atlas, image=None)
    expected = read_image(parcels, named, PLAIN)
    both = ~np.isnan(dense.bold[0]) & ~np.isnan(expected.bold[0])
    assert both.sum() > 45
    np.testing.assert_allclose(dense.bold[:, both], expected.bold[:, both], rtol=2e-3)


@pytest.mark.data
def test_stand_ins_for_images_are_refused_in_one_line(data_dir, labelled):
    stand_ins = [path for path in (data_dir / "derivatives").rglob("*bold*.nii*") if path.stat().st_size < 100]
    assert len(stand_ins) > 10
    for path in stand_ins[:40]:
        words = (
            "is empty" if path.stat().st_size == 0 else "no NIfTI header" if path.suffix == ".gz" else "it is packed"
        )
        assert words in refusal(path, labelled)


def first_map(source: Path, target: Path) -> Atlas:
    """The first map of a dlabel in a file of its own."""
    from nibabel.cifti2 import LabelAxis

    image = nib.load(source)
    labels = image.header.get_axis(0)
    data = np.asanyarray(image.dataobj)[:1].astype(np.float32)
    one = nib.Cifti2Image(data, (LabelAxis(labels.name[:1], labels.label[:1]), image.header.get_axis(1)))
    one.nifti_header.set_intent(3007)
    nib.save(one, target)
    return load_atlas(target)


def all_vertices() -> ReadingSettings:
    return ReadingSettings(strategy="none", min_coverage=0)


def test_a_mask_of_little_but_zeros_is_no_bomb(tmp_path):
    mask = np.zeros((91, 109, 91), dtype=np.float32)
    mask[44:46, 44:46, 44:46] = 1
    (tmp_path / "mask.nii.gz").write_bytes(gzip.compress(nib.Nifti1Image(mask, np.eye(4)).to_bytes()))
    assert mask.nbytes > 300 * (tmp_path / "mask.nii.gz").stat().st_size
    assert read_header(tmp_path / "mask.nii.gz").shape == mask.shape


def test_a_cifti_file_without_an_intent_is_known_by_its_name(tmp_path, paint, surface):
    image = paint.dense(tmp_path / "a.dtseries.nii", SERIES[:, :4], surface.image)
    raw = image.read_bytes()
    (tmp_path / "b.dtseries.nii").write_bytes(raw[:504] + struct.pack("<i", 3000) + raw[508:])
    whole = read_image(image, surface, PLAIN).bold
    np.testing.assert_array_equal(read_image(tmp_path / "b.dtseries.nii", surface, PLAIN).bold, whole)
    (tmp_path / "b.dscalar.nii").write_bytes((tmp_path / "b.dtseries.nii").read_bytes())
    assert "CIFTI of another kind" in refusal(tmp_path / "b.dscalar.nii", surface)
