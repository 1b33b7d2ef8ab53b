"""ADHD-200 of the Athena pipeline."""

from __future__ import annotations

import numpy as np
import pytest

from openbrainmass.atlas import numbered_atlas
from openbrainmass.cohort.layouts.adhd200 import LAYOUT
from openbrainmass.cohort.source import ReadingSettings
from openbrainmass.errors import OpenBrainMassError

SETTINGS = ReadingSettings()
BOLD = np.random.default_rng(0).standard_normal((4, 3)).round(6)


def write(folder, name="sfnwmrda0010001_session_1_rest_2_cc200_TCs.1D", numbers=(1, 2, 5)):
    path = folder / "NYU" / "0010001" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    header = "\t".join(["File", "Sub-brick", *(f"Mean_{number}  " for number in numbers)])
    rows = [f"/a b/x.nii.gz\t{i}[?]\t" + "\t".join(f"{value:f}" for value in row) for i, row in enumerate(BOLD)]
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_a_name_tells_person_session_run_atlas_and_filter(tmp_path):
    write(tmp_path)
    write(tmp_path, "snwmrda0010001_session_1_rest_2_cc400_TCs.1D")
    first, second = LAYOUT.find(tmp_path, SETTINGS)
    assert first.recording_id == second.recording_id == "sub-0010001_ses-1_task-rest_run-2"
    assert (first.participant_id, first.session, first.run, first.task) == ("sub-0010001", "1", "2", "rest")
    assert (first.atlas, first.variant) == ("cc200", "desc-filtered")
    assert (second.atlas, second.variant) == ("cc400", "desc-unfiltered")
    assert LAYOUT.card == "adhd200" and first.tr == {}


def test_text_columns_are_left_out_and_rois_go_by_number(tmp_path):
    path = write(tmp_path)
    series = LAYOUT.read(path, {}, numbered_atlas("cc200", 5), SETTINGS)
    np.testing.assert_allclose(series.bold[:, [0, 1, 4]], BOLD, rtol=1e-6)
    assert series.measures == {"steps": "Athena; band-pass 0.009-0.08 Hz", "uncovered_rois": "3;4"}
    assert LAYOUT.labels(path) == ("1", "2", "5")
    unfiltered = write(tmp_path, "snwmrda0010001_session_1_rest_1_cc200_TCs.1D", (1, 2, 3))
    measures = LAYOUT.read(unfiltered, {}, numbered_atlas("cc200", 3), SETTINGS).measures
    assert measures == {"steps": "Athena; no band-pass"}


def test_a_number_that_the_atlas_does_not_have_is_an_error(tmp_path):
    with pytest.raises(OpenBrainMassError, match="columns named 5, which the atlas"):
        LAYOUT.read(write(tmp_path), {}, numbered_atlas("cc200", 4), SETTINGS)


@pytest.mark.parametrize("name", ["sfnwmrda0010001_session_1_rest_1.nii.gz", "rp_0010001_session_1_rest_1.1D"])
def test_other_files_are_not_claimed(tmp_path, name):
    write(tmp_path, name)
    assert LAYOUT.find(tmp_path, SETTINGS) == []
