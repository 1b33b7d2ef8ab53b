"""REST-meta-MDD: who is in the folder, and which columns are whose."""

import numpy as np
import pytest
from scipy.io import savemat

from openbrainmass.atlas import numbered_atlas
from openbrainmass.cohort.layouts.rest_meta_mdd import BLOCKS, LAYOUT, find, labels, read
from openbrainmass.cohort.source import ReadingSettings
from openbrainmass.errors import OpenBrainMassError

SETTINGS = ReadingSettings()


def signals(width=1833, n_volumes=9):
    """Every value tells its volume and column (from 1)."""
    return np.arange(n_volumes)[:, None] * 10000.0 + np.arange(1, width + 1)


def place(folder, subject="S1-1-0001", processing="FunImgARCWF", width=1833):
    path = folder / f"ROISignals_{processing}" / f"ROISignals_{subject}.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"ROISignals": signals(width)}, do_compression=True)
    return path


def test_every_atlas_is_a_recording(tmp_path):
    place(tmp_path / "Results")
    found = find(tmp_path, SETTINGS)
    assert {one.atlas: one.columns["n_rois"] for one in found} == {
        "AAL116": 116,
        "HO112": 112,
        "CC200": 200,
        "Zalesky980": 980,
        "Dosenbach160": 160,
        "Power264": 264,
    }
    assert {one.file for one in found} == {"Results/ROISignals_FunImgARCWF/ROISignals_S1-1-0001.mat"}
    assert {(one.recording_id, one.participant_id) for one in found} == {("sub-S1-1-0001", "sub-S1-1-0001")}


def test_site_and_diagnosis_are_in_the_name(tmp_path):
    for subject in ("S1-1-0001", "S20-2-0095", "IS001-1-0025", "S9-3-0001"):
        place(tmp_path, subject)
    known = {one.participant_id: {k: one.columns.get(k) for k in ("site", "dx")} for one in find(tmp_path, SETTINGS)}
    assert known == {
        "sub-S1-1-0001": {"site": "S1", "dx": "mdd"},
        "sub-S20-2-0095": {"site": "S20", "dx": "control"},
        "sub-IS001-1-0025": {"site": "IS001", "dx": "mdd"},
        "sub-S9-3-0001": {"site": "S9", "dx": None},
    }


def test_both_ways_of_processing_are_told_apart(tmp_path):
    place(tmp_path)
    place(tmp_path, processing="FunImgARglobalCWF")
    assert {one.variant for one in find(tmp_path, SETTINGS)} == {"desc-FunImgARCWF", "desc-FunImgARglobalCWF"}
    # Pointing at one of the two folders chooses it.
    chosen = find(tmp_path / "ROISignals_FunImgARglobalCWF", SETTINGS)
    assert {(one.variant, one.file) for one in chosen} == {("desc-FunImgARglobalCWF", "ROISignals_S1-1-0001.mat")}


@pytest.mark.parametrize("name", ["ROISignals_sub-01.mat", "ROISignals_S1-1-0001.txt", "ROICorrelation_S1-1-0001.mat"])
def test_other_files_are_not_claimed(tmp_path, name):
    (tmp_path / name).write_bytes(b"")
    assert find(tmp_path, SETTINGS) == []


@pytest.mark.parametrize(
    ("atlas", "first", "last"),
    [
        ("AAL116", 1, 116),
        ("HO112", 117, 228),
        ("CC200", 229, 428),
        ("Zalesky980", 429, 1408),
        ("Dosenbach160", 1409, 1568),
        ("Power264", 1570, 1833),
        ("cc-200", 229, 428),
    ],
)
def test_columns_of_each_atlas(tmp_path, atlas, first, last):
    series = read(place(tmp_path), {}, numbered_atlas(atlas, last - first + 1), SETTINGS)
    np.testing.assert_array_equal(series.bold, signals()[:, first - 1 : last].astype(np.float32))


def test_blocks_do_not_overlap_and_leave_out_the_global_signal():
    columns = [column for first, end in BLOCKS.values() for column in range(first, end)]
    assert sorted(columns) == [column for column in range(2233) if column != 1568]


@pytest.mark.parametrize(("width", "atlas", "n_rois"), [(1568, "Dosenbach160", 160), (2233, "Schaefer400", 400)])
def test_shorter_and_longer_versions(tmp_path, width, atlas, n_rois):
    assert read(place(tmp_path, width=width), {}, numbered_atlas(atlas, n_rois), SETTINGS).bold.shape == (9, n_rois)


@pytest.mark.parametrize(
    ("width", "atlas", "n_rois", "words"),
    [
        (1568, "Power264", 264, "1568 columns.*1833, 2233 were expected"),
        (1700, "CC200", 200, "1700 columns, so nothing tells"),
        (1833, "Schaefer100", 100, "AAL116, HO112.*but not Schaefer100"),
        (1833, "CC200", 190, "CC200 has 190 ROIs.*200 columns"),
    ],
)
def test_what_is_refused(tmp_path, width, atlas, n_rois, words):
    path = place(tmp_path, width=width)
    with pytest.raises(OpenBrainMassError, match=words) as caught:
        read(path, {}, numbered_atlas(atlas, n_rois), SETTINGS)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_steps_are_recorded(tmp_path):
    atlas = numbered_atlas("CC200", 200)
    plain = read(place(tmp_path), {}, atlas, SETTINGS).measures["steps"]
    regressed = read(place(tmp_path, processing="FunImgARglobalCWF"), {}, atlas, SETTINGS).measures["steps"]
    assert plain == "DPARSF: slice timing, realignment, nuisance regression, normalisation, band-pass 0.01-0.1 Hz"
    assert "global-signal regression" in regressed
    lying = tmp_path / "elsewhere" / "ROISignals_S1-1-0001.mat"
    lying.parent.mkdir()
    lying.write_bytes(place(tmp_path).read_bytes())
    assert read(lying, {}, atlas, SETTINGS).measures == {}


def test_columns_have_no_names(tmp_path):
    assert labels(place(tmp_path)) is None
    assert "1833" in LAYOUT.header
