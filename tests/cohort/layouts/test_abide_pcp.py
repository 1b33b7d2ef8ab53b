"""ABIDE of the Preprocessed Connectomes Project."""

from __future__ import annotations

import numpy as np
import pytest

from openbrainmass.atlas import Atlas, numbered_atlas
from openbrainmass.cohort.layouts.abide_pcp import LAYOUT
from openbrainmass.cohort.source import ReadingSettings
from openbrainmass.durable import read_tsv
from openbrainmass.errors import OpenBrainMassError

SETTINGS = ReadingSettings()


def write(path, numbers=("1", "2", "3")):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\t".join(f"#{number}" for number in numbers) + "\n" + "0.5\t-1.25\t0\n" * 4)
    return path


def test_a_person_is_the_last_number_of_the_file_id(tmp_path):
    for name in ("UM_1_0050272", "CMU_a_0050642", "Pitt_0050003"):
        write(tmp_path / "Outputs" / "cpac" / "filt_noglobal" / "rois_cc200" / f"{name}_rois_cc200.1D")
    found = LAYOUT.find(tmp_path, SETTINGS)
    assert [one.participant_id for one in found] == ["sub-0050642", "sub-0050003", "sub-0050272"]
    assert all(one.recording_id == one.participant_id and one.atlas == "cc200" for one in found)
    assert {one.variant for one in found} == {"pipeline-cpac_strategy-filtnoglobal"}
    assert LAYOUT.card == "abide1"


def test_the_layout_of_nilearn_and_single_folders_are_found_too(tmp_path):
    write(tmp_path / "ABIDE_pcp" / "niak" / "nofilt_global" / "Yale_0050551_rois_aal.1D")
    write(tmp_path / "flat" / "Yale_0050551_rois_ho.1D")
    assert {(one.atlas, one.variant) for one in LAYOUT.find(tmp_path, SETTINGS)} == {
        ("aal", "pipeline-niak_strategy-nofiltglobal"),
        ("ho", ""),
    }
    (one,) = LAYOUT.find(tmp_path / "ABIDE_pcp" / "niak" / "nofilt_global", SETTINGS)
    assert one.variant == "pipeline-niak_strategy-nofiltglobal"


def test_values_stay_as_they_are_and_the_strategy_is_recorded(tmp_path):
    path = write(tmp_path / "cpac" / "filt_global" / "Yale_0050551_rois_cc200.1D")
    series = LAYOUT.read(path, {}, numbered_atlas("cc200", 3), SETTINGS)
    np.testing.assert_array_equal(series.bold, [[0.5, -1.25, 0]] * 4)
    assert (
        series.measures == {"steps": "ABIDE preprocessed cpac; band-pass 0.01-0.1 Hz; global signal regressed out"}
        and not series.tr
    )
    assert LAYOUT.labels(path) is None
    assert LAYOUT.read(write(tmp_path / "x_0050551_rois_cc200.1D"), {}, numbered_atlas("a", 3), SETTINGS).measures == {}


def test_numbers_of_the_header_are_the_voxel_values_of_the_atlas(tmp_path):
    path = write(tmp_path / "Yale_0050551_rois_aal.1D", ("2001", "2002", "2101"))
    atlas = Atlas("aal", ("c", "b", "a", "d"), values=(2101, 2002, 2001, 2102))
    np.testing.assert_array_equal(LAYOUT.read(path, {}, atlas, SETTINGS).bold[0], [0, -1.25, 0.5, np.nan])
    assert LAYOUT.labels(path) == ("2001", "2002", "2101")
    with pytest.raises(OpenBrainMassError, match="only names are known"):
        LAYOUT.read(path, {}, Atlas("aal", ("c", "b", "a")), SETTINGS)


@pytest.mark.parametrize(
    "name", ["Yale_0050551_mean.1D", "sub-0050551_rois_cc200.1D", "a_rois_cc200.1D", "Yale_51_rois_a.1D"]
)
def test_other_files_are_not_claimed(tmp_path, name):
    write(tmp_path / name)
    assert LAYOUT.find(tmp_path, SETTINGS) == []


@pytest.mark.data
def test_the_real_slice_is_fourteen_recordings_of_the_same_values_as_the_cohort(data_dir):
    folder = data_dir / "abide_pcp_slice"
    people = read_tsv(data_dir / "abide1_cc200" / "participants.tsv").set_index("participant_id")
    found = LAYOUT.find(folder, SETTINGS)
    assert len(found) == 14 and len({one.participant_id for one in found}) == 14
    for one in found:
        series = LAYOUT.read(folder / one.file, {"file": one.file}, numbered_atlas("cc200", 200), SETTINGS)
        known = np.load(data_dir / "abide1_cc200" / str(people.loc[one.participant_id, "file"]))
        np.testing.assert_array_equal(series.bold.astype(np.float16), known.astype(np.float16))
