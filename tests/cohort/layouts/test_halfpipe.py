"""HALFpipe: tables without a header, uncovered parcels by name."""

from __future__ import annotations

import json

import numpy as np
import pytest

from openbrainmass.atlas import Atlas, load_atlas, numbered_atlas
from openbrainmass.cohort.layouts.halfpipe import LAYOUT
from openbrainmass.cohort.source import ReadingSettings
from openbrainmass.errors import OpenBrainMassError

SETTINGS = ReadingSettings()
NAMES = ("a", "b", "c", "d")
BOLD = np.random.default_rng(0).normal(10_000, 50, (6, 4)).astype(np.float32)
BOLD[:, [1, 3]] = np.nan
SAID = {
    "Coverage": [1.0, 0.25, 0.75, 0.0],
    "RepetitionTime": 2.0,
    "SamplingFrequency": 2.0,
    "FDMean": 0.16,
    "NumberOfVolumes": 6,
    "Setting": {
        "BandpassFilter": {"HighPassWidth": 125.0, "LowPassWidth": None, "Type": "gaussian"},
        "ConfoundsRemoval": ["c_comp_cor_0[0-4]", "global_signal"],
        "ICAAROMA": True,
    },
}


def write_run(folder, feature="corr1", atlas="s400", said=SAID):
    func = folder / "derivatives" / "halfpipe" / "sub-1" / "func" / "task-rest"
    func.mkdir(parents=True, exist_ok=True)
    path = func / f"sub-1_task-rest_feature-{feature}_atlas-{atlas}_timeseries.tsv"
    np.savetxt(path, BOLD, fmt="%.10f", delimiter="\t")
    (func / f"sub-1_task-rest_feature-{feature}_atlas-{atlas}_desc-correlation_matrix.tsv").write_text("1\n")
    if said is not None:
        path.with_suffix(".json").write_text(json.dumps(said))
    return path


def test_a_recording_keeps_its_first_volume_and_names_uncovered_parcels(tmp_path):
    path = write_run(tmp_path)
    (one,) = LAYOUT.find(tmp_path, SETTINGS)
    assert (one.recording_id, one.atlas, one.variant) == ("sub-1_task-rest", "s400", "feature-corr1")
    assert set(one.tr.values()) == {2.0} and len(one.tr) == 2 and LAYOUT.labels(path) is None
    series = LAYOUT.read(path, {"file": one.file}, Atlas("x", NAMES), SETTINGS)
    np.testing.assert_allclose(series.bold, BOLD, rtol=1e-6)
    assert series.tr == one.tr
    steps = (
        "HALFpipe feature-corr1; ICA-AROMA; regressed out: c_comp_cor_0[0-4], global_signal; band-pass (HighPassWidth "
    )
    assert series.measures == {
        "uncovered_rois": "b;d",
        "min_coverage": 0.0,
        "mean_fd": 0.16,
        "fd_formula": "power",
        "n_acquired": 6,
        "steps": steps + "125.0, Type gaussian)",
    }


def test_features_and_atlases_are_told_apart_and_seeds_are_no_parcellation(tmp_path):
    for feature, atlas in (("corr1", "s400"), ("corr2", "s400"), ("corr1", "tian")):
        path = write_run(tmp_path, feature, atlas)
    path.with_name("sub-1_task-rest_feature-seeds_seed-pcc_timeseries.tsv").write_text("1\n")
    assert {(one.variant, one.atlas) for one in LAYOUT.find(tmp_path, SETTINGS)} == {
        ("feature-corr1", "s400"),
        ("feature-corr2", "s400"),
        ("feature-corr1", "tian"),
    }


def test_without_a_sidecar_empty_columns_still_name_their_parcels(tmp_path):
    path = write_run(tmp_path, said=None)
    series = LAYOUT.read(path, {}, numbered_atlas("x", 4), SETTINGS)
    assert series.tr == {} and series.measures == {"uncovered_rois": "2;4", "steps": "HALFpipe feature-corr1"}


def test_a_coverage_that_does_not_fit_and_another_atlas_are_errors(tmp_path):
    path = write_run(tmp_path, said={"Coverage": [1.0]})
    with pytest.raises(OpenBrainMassError, match="has 4 columns, but the Coverage in its sidecar lists 1 regions"):
        LAYOUT.read(path, {}, Atlas("x", NAMES), SETTINGS)
    with pytest.raises(OpenBrainMassError, match="4 columns in 6 volumes; the atlas x has 5 ROIs"):
        LAYOUT.read(path, {}, numbered_atlas("x", 5), SETTINGS)


@pytest.mark.parametrize("name", ["sub-1_seg-A_desc-denoiseB_timeseries.tsv", "sub-1_space-M_atlas-A_timeseries.tsv"])
def test_files_of_other_tools_are_not_claimed(tmp_path, name):
    (tmp_path / name).write_text("1\n")
    assert LAYOUT.find(tmp_path, SETTINGS) == []


@pytest.mark.data
def test_the_real_tree_is_two_people_of_152_volumes_with_their_uncovered_parcels(data_dir):
    folder = data_dir / "derivatives" / "halfpipe_ds000030"
    atlas = load_atlas(folder / "atlas" / "atlas-Schaefer2018Combined_dseg.tsv")
    found = LAYOUT.find(folder, SETTINGS)
    assert [one.participant_id for one in found] == ["sub-10159", "sub-10171"]
    for one in found:
        series = LAYOUT.read(folder / one.file, {"file": one.file}, atlas, SETTINGS)
        empty = np.isnan(series.bold).all(axis=0)
        assert series.bold.shape == (152, 434) and empty.sum() == 28 and set(series.tr.values()) == {2.0}
        uncovered = series.measures["uncovered_rois"].split(";")
        assert uncovered == [name for name, lost in zip(atlas.roi_names, empty, strict=True) if lost]
        assert not any(name.isdigit() for name in uncovered)
