from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openbrainmass.atlas import Atlas, label_volume, load_atlas, numbered_atlas
from openbrainmass.durable import write_tsv
from openbrainmass.errors import OpenBrainMassError


@pytest.fixture
def atlas() -> Atlas:
    return Atlas("Two", ("a", "b"), ("Vis", "Default"), ("L", "R"), np.array([[-1.0, 2, 3], [4, 5, 6]]))


def test_it_says_what_it_knows(atlas: Atlas) -> None:
    assert atlas.n_rois == 2
    assert not atlas.numbered
    assert repr(atlas) == "Atlas('Two', n_rois=2, knows=['networks', 'hemispheres', 'coords_mm'])"
    assert repr(numbered_atlas("X", 3)) == "Atlas('X', n_rois=3, knows=[])"


def test_a_table_comes_back_as_it_went(tmp_path: Path, atlas: Atlas) -> None:
    write_tsv(tmp_path / "Two.tsv", atlas.table())
    read = load_atlas(tmp_path / "Two.tsv")
    assert (read.name, read.roi_names, read.networks, read.hemispheres) == (
        atlas.name,
        atlas.roi_names,
        atlas.networks,
        atlas.hemispheres,
    )
    np.testing.assert_array_equal(read.coords_mm, atlas.coords_mm)
    assert read.digest == atlas.digest


def test_a_table_has_only_what_is_known() -> None:
    assert list(numbered_atlas("X", 2).table().columns) == ["roi_name"]


def test_the_digest_is_of_the_rows_in_their_order(atlas: Atlas) -> None:
    assert Atlas("Another name", ("a", "b")).digest == atlas.digest
    assert Atlas("Two", ("b", "a")).digest != atlas.digest


def test_the_digest_of_numbers_is_name_and_count() -> None:
    assert numbered_atlas("CC200", 200).digest == numbered_atlas("cc200", 200).digest
    assert numbered_atlas("CC200", 200).digest != numbered_atlas("AAL", 200).digest
    assert numbered_atlas("CC200", 200).digest != numbered_atlas("CC200", 199).digest


@given(
    first=st.lists(st.text(st.characters(codec="ascii", categories=["L"]), min_size=1), min_size=1, unique=True),
    second=st.lists(st.text(st.characters(codec="ascii", categories=["L"]), min_size=1), min_size=1, unique=True),
)
def test_two_atlases_share_a_digest_only_when_they_share_their_rois(first: list[str], second: list[str]) -> None:
    same = Atlas("X", tuple(first)).digest == Atlas("X", tuple(second)).digest
    assert same == (first == second)


@pytest.mark.parametrize("field", ["networks", "hemispheres", "coords_mm", "values"])
def test_each_roi_has_one_of_each(field: str) -> None:
    with pytest.raises(OpenBrainMassError, match=f"2 ROI names but 1 {field}"):
        Atlas("X", ("a", "b"), **{field: np.zeros((1, 3)) if field == "coords_mm" else (1,)})


def test_image_and_values_are_no_part_of_the_digest(atlas: Atlas) -> None:
    assert Atlas("Two", ("a", "b"), image=Path("x.nii"), values=(3, 7)).digest == atlas.digest


def test_each_roi_has_its_own_name() -> None:
    with pytest.raises(OpenBrainMassError, match="names a more than once"):
        Atlas("X", ("a", "a", "b"))


def test_other_spellings_of_the_columns(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("label, network7, hemi\na, Vis, L\nb, Default, R\n")
    read = load_atlas(tmp_path / "x.csv")
    assert (read.roi_names, read.networks, read.hemispheres) == (("a", "b"), ("Vis", "Default"), ("L", "R"))
    assert read.coords_mm is None


def test_a_table_without_names_is_numbered(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("x\ty\tz\n1\t2\t3\n4\t5\t6\n")
    read = load_atlas(tmp_path / "x.tsv")
    assert read.numbered
    assert read.coords_mm is not None
    assert read.coords_mm.shape == (2, 3)


def test_a_list_of_names(tmp_path: Path) -> None:
    (tmp_path / "DK.txt").write_text("L.bankssts\nR.bankssts\n\n")
    assert load_atlas(tmp_path / "DK.txt", n_rois=2).roi_names == ("L.bankssts", "R.bankssts")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_a_label_image_gives_coordinates(tmp_path: Path, suffix: str) -> None:
    labels = np.zeros((10, 10, 10), dtype=np.int16)
    labels[1:4, 1:4, 1:4] = 1
    labels[6:9, 6:9, 6:9] = 2
    path = tmp_path / f"atlas-Two_dseg{suffix}"
    nib.save(nib.Nifti1Image(labels, np.diag([2.0, 2.0, 2.0, 1.0])), path)
    read = load_atlas(path)
    assert (read.name, read.roi_names) == ("Two", ("1", "2"))
    np.testing.assert_allclose(read.coords_mm, [[4, 4, 4], [14, 14, 14]], atol=2)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("atlas-Schaefer2018_desc-100Parcels7Networks_dseg.tsv", "Schaefer2018100Parcels7Networks"),
        ("seg-AAL_timeseries.tsv", "AAL"),
        ("CC200_centroids.tsv", "CC200"),
        ("plain.tsv", "plain"),
    ],
)
def test_the_name_comes_from_the_file(tmp_path: Path, file: str, name: str) -> None:
    (tmp_path / file).write_text("roi_name\na\nb\n")
    assert load_atlas(tmp_path / file).name == name


def test_a_name_nobody_knows_needs_a_count() -> None:
    assert load_atlas("Mine", n_rois=5).roi_names == ("1", "2", "3", "4", "5")
    with pytest.raises(OpenBrainMassError, match="Nothing is known of the atlas Mine"):
        load_atlas("Mine")


def test_a_count_that_disagrees_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("a\nb\n")
    with pytest.raises(OpenBrainMassError, match="has 2 ROIs but the data have 3"):
        load_atlas(tmp_path / "x.txt", n_rois=3)


@pytest.mark.parametrize("file", ["none.tsv", "none.csv", "none.txt", "none.nii.gz"])
def test_a_missing_file_is_a_sentence(tmp_path: Path, file: str) -> None:
    with pytest.raises(OpenBrainMassError, match=f"{file} does not exist"):
        load_atlas(tmp_path / file)


def cube_image(path: Path, values: tuple[int, ...], dtype: type = np.int16) -> Path:
    """A label image with a cube of 27 voxels of 2 mm for every value."""
    labels = np.zeros((4 * len(values), 5, 5), dtype=dtype)
    for number, value in enumerate(values):
        labels[4 * number : 4 * number + 3, 1:4, 1:4] = value
    nib.save(nib.Nifti1Image(labels, np.diag([2.0, 2.0, 2.0, 1.0])), path)
    return path


LISTS = {
    "headerless.tsv": "1\tSchaefer2018_17Networks_LH_VisCent_ExStr_1\n2\tSchaefer2018_17Networks_RH_DefaultC_PHC_1\n",
    "headerless.csv": "# made of\n# something, else\n1,7Networks_LH_VisCent_1\n2,7Networks_RH_DefaultC_1\n",
    "bids_dseg.tsv": 'index\tname\tcolor\n0\t"Unknown"\t#000000\n1\t"LH_VisCent_1"\t#f00\n2\t"RH_DefaultC_1"\t#0f0\n',
    "value.tsv": "value\tlabel\n1\t17Networks_LH_VisCent_1\n2\t17Networks_RH_DefaultC_1\n",
    "colours.txt": "# name\n0 Unknown 0 0 0 0\n1 LH-VisCent-1 120 18 134 0\n2 RH-DefaultC-1 0 18 134 0\n",
    "order.txt": "1\t7Networks_LH_VisCent_1\t120\t18\t131\t0\n2\t7Networks_RH_DefaultC_1\t120\t18\t132\t0\n",
}


@pytest.mark.parametrize("file", LISTS)
def test_values_and_names_in_many_spellings(tmp_path: Path, file: str) -> None:
    (tmp_path / file).write_text(LISTS[file])
    read = load_atlas(tmp_path / file, n_rois=2)
    assert read.values == (1, 2)
    assert read.networks == ("VisCent", "DefaultC")
    assert read.hemispheres == ("LH", "RH")
    assert all("VisCent" in name or "DefaultC" in name for name in read.roi_names)


@pytest.mark.parametrize(
    ("names", "sides"),
    [
        (("Precentral_L", "Precentral_R", "Frontal_Sup_L", "Vermis_3"), ("LH", "RH", "LH", "other")),
        (("ctx-lh-cuneus", "ctx-rh-cuneus"), ("LH", "RH")),
        (("HIP-rh", "AMY-lh"), ("RH", "LH")),
        (("Left Thalamus", "Right Caudate"), ("LH", "RH")),
        (("FreeSurfer_Left-Putamen", "FreeSurfer_Right-Putamen"), ("LH", "RH")),
        (("Leftover", "Rightly"), None),
    ],
)
def test_sides_are_in_names(tmp_path: Path, names: tuple[str, ...], sides: tuple[str, ...] | None) -> None:
    (tmp_path / "x.txt").write_text("\n".join(names))
    read = load_atlas(tmp_path / "x.txt")
    assert read.hemispheres == sides
    assert read.networks is None


def test_networks_of_a_table_come_before_those_in_names(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("label\tnetwork\n7Networks_LH_Vis_1\tmine\n7Networks_RH_Vis_1\tyours\n")
    assert load_atlas(tmp_path / "x.tsv").networks == ("mine", "yours")


def test_networks_that_most_names_tell(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("7Networks_LH_Vis_1\n7Networks_RH_Limbic_OFC_1\nBuckner2011_17Networks_1\n")
    assert load_atlas(tmp_path / "x.txt").networks == ("Vis", "Limbic", "other")


def test_a_label_of_numbers_is_a_value(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("label,x,y,z,n_vox\n2001,-38.4,-7.6,52.7,1327\n9170,1.0,n/a,3,5\n")
    read = load_atlas(tmp_path / "x.csv")
    assert read.values == (2001, 9170)
    assert read.roi_names == ("2001", "9170")
    assert read.numbered
    np.testing.assert_array_equal(read.coords_mm, [[-38.4, -7.6, 52.7], [1, np.nan, 3]])


def test_the_table_of_cc200(tmp_path: Path) -> None:
    (tmp_path / "CC200_ROI_labels.csv").write_text(
        "ROI number, volume, center of mass,Dosenbach,AAL\n"
        '1, 162, (-39.6;-85.4;1.4),["None": 0.91],["Somewhere_L": 0.81]["Elsewhere; beyond_L": 0.19]\n'
        '2, 269, (49.7;-60.8;23.2),["None": 0.94],["Somewhere_R": 0.49]\n'
    )
    read = load_atlas(tmp_path / "CC200_ROI_labels.csv")
    assert (read.name, read.roi_names, read.values) == ("CC200", ("1", "2"), (1, 2))
    np.testing.assert_array_equal(read.coords_mm, [[-39.6, -85.4, 1.4], [49.7, -60.8, 23.2]])
    assert read.digest == numbered_atlas("cc200", 2).digest


def test_rois_counted_from_zero_have_no_voxel_values(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("index\tname\n0\tfirst\n1\tsecond\n")
    read = load_atlas(tmp_path / "x.tsv")
    assert read.roi_names == ("first", "second")
    assert read.values is None


def test_an_roi_without_a_name_has_its_number(tmp_path: Path) -> None:
    (tmp_path / "x.tsv").write_text("index\tname\n4\tfirst\n9\tn/a\n")
    assert load_atlas(tmp_path / "x.tsv").roi_names == ("first", "9")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("first\nsecond\n", "has the columns first; at least one of roi_name, label, name"),
        ("index\tname\n1\ta\n1\tb\n", "gives the value 1 to more than one ROI"),
        ("index\tname\n1\ta\n2\n", "has 1 fields in the row of '2' but 2 in its header"),
        ("name\tx\ty\tz\na\t1\tfar\t2\n", "coordinates of the atlas table .* are not all numbers"),
        ("# nothing\n", "is empty; a line for each ROI was expected"),
        ("index\tname\n1\ta\n2\ta\n", "names a more than once"),
        ("name\tname\na\tb\n", r"two columns of one name in its header \(name, name\)"),
        ("index\tname\n", "has no ROI below its header"),
    ],
)
def test_tables_that_are_none(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "x.tsv").write_text(text)
    with pytest.raises(OpenBrainMassError, match=message):
        load_atlas(tmp_path / "x.tsv")


@pytest.mark.parametrize("content", [b"\xff\xfe\x00\x81", b"name\nfirst\x00\n"])
def test_bytes_are_no_table(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(OpenBrainMassError, match=r"x\.csv is not readable text"):
        load_atlas(tmp_path / "x.csv")


def test_values_with_gaps_keep_their_order(tmp_path: Path) -> None:
    path = cube_image(tmp_path / "AAL.nii.gz", (9170, 2001, 4012))
    read = load_atlas(path)
    assert (read.values, read.roi_names) == ((2001, 4012, 9170), ("2001", "4012", "9170"))
    assert read.image == path
    np.testing.assert_allclose(read.coords_mm, [[10, 4, 4], [18, 4, 4], [2, 4, 4]])


@pytest.mark.parametrize("table", ["AAL_roi_atlas.tsv", "AAL_labels.csv", "AAL.txt"])
def test_names_come_from_a_table_beside(tmp_path: Path, table: str) -> None:
    path = cube_image(tmp_path / "AAL_roi_atlas.nii.gz", (9170, 2001, 4012))
    separator = "," if table.endswith("csv") else "\t"
    rows = ["9170,Vermis_10", "2001,Precentral_L", "77,Nowhere_R"]
    (tmp_path / table).write_text("\n".join(rows).replace(",", separator))
    read = load_atlas(path)
    assert read.name == "AAL"
    assert read.roi_names == ("Precentral_L", "4012", "Vermis_10")
    assert read.values == (2001, 4012, 9170)


def test_names_without_values_go_by_position(tmp_path: Path) -> None:
    path = cube_image(tmp_path / "x.nii.gz", (7, 3))
    (tmp_path / "x.txt").write_text("first\nsecond\n")
    assert load_atlas(path).roi_names == ("first", "second")
    (tmp_path / "x.txt").write_text("first\nsecond\nthird\n")
    with pytest.raises(OpenBrainMassError, match=r"holds 2 ROIs but the table beside it, .*x\.txt, names 3"):
        load_atlas(path)


def test_a_table_knows_the_image_beside_it(tmp_path: Path) -> None:
    path = cube_image(tmp_path / "seg-X_dseg.nii.gz", (5, 6))
    (tmp_path / "seg-X_dseg.tsv").write_text("index\tname\n6\tb\n5\ta\n")
    read = load_atlas(tmp_path / "seg-X_dseg.tsv")
    assert read.image == path
    np.testing.assert_allclose(read.coords_mm, [[2, 4, 4], [10, 4, 4]][::-1])
    labels, affine = label_volume(read)
    assert labels.shape == (8, 5, 5)
    assert labels[0, 1, 1] == 2
    assert labels[4, 1, 1] == 1
    assert (labels == 0).sum() == 200 - 54
    np.testing.assert_array_equal(affine, np.diag([2, 2, 2, 1]))


def test_image_and_table_must_fit(tmp_path: Path) -> None:
    cube_image(tmp_path / "x.nii.gz", (5, 6))
    (tmp_path / "x.tsv").write_text("index\tname\n5\ta\n7\tb\n")
    read = load_atlas(tmp_path / "x.tsv")
    np.testing.assert_array_equal(read.coords_mm, [[2, 4, 4], [np.nan] * 3])
    with pytest.raises(OpenBrainMassError, match=r"the 2 ROIs of the atlas x do not fit: only one of them has 6, 7"):
        label_volume(read)


def test_an_image_of_a_fourth_dimension_of_one(tmp_path: Path) -> None:
    labels = np.arange(8, dtype=np.float32).reshape(2, 2, 2, 1)
    nib.save(nib.Nifti1Image(labels, np.eye(4)), tmp_path / "x.nii")
    read = load_atlas(tmp_path / "x.nii")
    assert read.n_rois == 7
    assert label_volume(read)[0].shape == (2, 2, 2)


@pytest.mark.parametrize("labels", [np.full((2, 2, 2), 0.5), np.ones((2, 2, 2, 3)), np.full((2, 2, 2), -1.0)])
def test_maps_are_no_labels(tmp_path: Path, labels: np.ndarray) -> None:
    nib.save(nib.Nifti1Image(labels.astype(np.float32), np.eye(4)), tmp_path / "x.nii.gz")
    with pytest.raises(OpenBrainMassError, match="is no label image: one volume of whole numbers"):
        load_atlas(tmp_path / "x.nii.gz")


def test_an_empty_image(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((2, 2, 2), dtype=np.int16), np.eye(4)), tmp_path / "x.nii.gz")
    with pytest.raises(OpenBrainMassError, match="every voxel is 0"):
        load_atlas(tmp_path / "x.nii.gz")


@pytest.mark.parametrize("content", [b"", b"no image at all", "cut"])
def test_a_damaged_image_is_a_sentence(tmp_path: Path, content: bytes | str) -> None:
    path = cube_image(tmp_path / "x.nii", (1, 2))
    path.write_bytes(path.read_bytes()[:400] if isinstance(content, str) else content)
    with pytest.raises(OpenBrainMassError, match=r"x\.nii is not readable") as told:
        load_atlas(path)
    assert "\n" not in str(told.value)


def dlabel(path: Path, tables: list[dict[int, tuple[str, tuple[float, ...]]]], keys: list[list[int]]) -> Path:
    from nibabel import cifti2

    brain = cifti2.BrainModelAxis.from_mask(np.ones(len(keys[0]), dtype=bool), name="cortex_left")
    labels = cifti2.LabelAxis([f"map {i}" for i in range(len(tables))], tables)
    nib.save(cifti2.Cifti2Image(np.array(keys, dtype=np.float32), (labels, brain)), path)
    return path


GREY = (0.5, 0.5, 0.5, 1.0)


def test_a_cifti_has_its_own_names(tmp_path: Path) -> None:
    table = {0: ("???", GREY), 181: ("L_V1_ROI", GREY), 1: ("R_V1_ROI", GREY), 5: ("R_unused_ROI", GREY)}
    path = dlabel(tmp_path / "Glasser.dlabel.nii", [table], [[0, 181, 1, 181, 1]])
    read = load_atlas(path)
    assert (read.name, read.roi_names, read.values) == ("Glasser", ("R_V1_ROI", "L_V1_ROI"), (1, 181))
    assert read.hemispheres == ("RH", "LH")
    assert read.image == path
    assert read.coords_mm is None
    with pytest.raises(OpenBrainMassError, match="No label image of the atlas Glasser is at hand"):
        label_volume(read)


def test_a_cifti_of_several_maps(tmp_path: Path) -> None:
    table = {0: ("???", GREY), 1: ("a", GREY)}
    path = dlabel(tmp_path / "x.dlabel.nii", [table, table], [[0, 1], [1, 0]])
    with pytest.raises(OpenBrainMassError, match=r"has 2 label maps \(map 0, map 1\); one was expected"):
        load_atlas(path)


def test_a_cifti_whose_table_lacks_a_label(tmp_path: Path) -> None:
    path = dlabel(tmp_path / "x.dlabel.nii", [{0: ("???", GREY), 1: ("a", GREY)}], [[0, 1, 3]])
    with pytest.raises(OpenBrainMassError, match="vertices of the label 3, which its own label table lacks"):
        load_atlas(path)


@pytest.mark.data
def test_the_atlases_at_hand(data_dir: Path) -> None:
    expected = {
        "pcp_CC200_ROI_labels.csv": ("CC200", 200),
        "pcp_cc200_roi_atlas.nii.gz": ("cc200", 200),
        "pcp_aal_labels.csv": ("aal", 116),
        "pcp_aal_roi_atlas.nii.gz": ("aal", 116),
        "pcp_ho_roi_atlas.nii.gz": ("ho", 111),
        "AAL2_labels.tsv": ("AAL2", 120),
    }
    for file, (name, n_rois) in expected.items():
        read = load_atlas(data_dir / "atlases" / file, n_rois)
        assert read.name == name
    combined = load_atlas(data_dir / "derivatives/halfpipe_ds000030/atlas/atlas-Schaefer2018Combined_dseg.tsv", 434)
    assert combined.image is not None
    assert label_volume(combined)[0].max() == 434
    for n_rois in (100, 200, 300, 400):
        stem = f"tpl-MNI152NLin6Asym_res-02_atlas-Schaefer2018_desc-{n_rois}Parcels7Networks"
        table = load_atlas(data_dir / "atlases" / f"{stem}_centroids.tsv", n_rois)
        image = load_atlas(data_dir / "atlases" / f"{stem}_dseg.nii.gz", n_rois)
        assert image.digest == table.digest
        assert image.networks == table.networks
        np.testing.assert_allclose(image.coords_mm, table.coords_mm, atol=0.01)
