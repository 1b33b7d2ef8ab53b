"""Confounds: which are chosen, which volumes stay, and one sentence for each way in which the file can be wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openbrainmass.cohort.files.cleaning import clean_series
from openbrainmass.cohort.files.confounds import Confounds, find_confounds, read_confounds
from openbrainmass.cohort.source import ReadingSettings
from openbrainmass.errors import OpenBrainMassError

IMAGE = "sub-1_task-rest_space-MNI152NLin6Asym_desc-preproc_bold.nii.gz"
AROMA = "sub-1_task-rest_space-MNI152NLin6Asym_desc-smoothAROMAnonaggr_bold.nii.gz"
TABLE = "sub-1_task-rest_desc-confounds_timeseries.tsv"


def refusal(image: Path, names: str, **settings: object) -> str:
    with pytest.raises(OpenBrainMassError) as caught:
        read_confounds(image, ReadingSettings(**settings))
    assert "\n" not in str(caught.value) and names in str(caught.value)
    return str(caught.value)


def rewrite(path: Path, change) -> None:
    change(pd.read_csv(path, sep="\t")).to_csv(path, sep="\t", index=False, na_rep="n/a")


# -- which file --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "table"),
    [
        (IMAGE, TABLE),
        (IMAGE, TABLE.replace("timeseries", "regressors")),
        (
            "sub-1_ses-2_task-rest_run-01_space-fsLR_den-91k_bold.dtseries.nii",
            "sub-1_ses-2_task-rest_run-01_desc-confounds_timeseries.tsv",
        ),
        ("odd_space-X_desc-preproc_bold.nii.gz", "odd_desc-confounds_timeseries.tsv"),
    ],
)
def test_confounds_are_found_by_entities(tmp_path, image, table):
    (tmp_path / table).write_text("a\n1\n")
    (tmp_path / "sub-1_task-rest_run-02_desc-confounds_timeseries.tsv").write_text("b\n1\n")
    (tmp_path / "sub-10_task-rest_desc-confounds_timeseries.tsv").write_text("b\n1\n")
    assert find_confounds(tmp_path / image) == tmp_path / table


def test_two_files_that_differ_are_refused_and_two_that_do_not_are_one(tmp_path, paint):
    paint.confounds(tmp_path / TABLE, 90)
    other = tmp_path / TABLE.replace("timeseries", "regressors")
    shutil.copy(tmp_path / TABLE, other)
    assert find_confounds(tmp_path / IMAGE) == tmp_path / TABLE
    other.write_text("a\n1\n")
    assert "two confounds files that differ" in refusal(tmp_path / IMAGE, IMAGE)


def test_no_confounds_are_needed_without_a_strategy(tmp_path):
    assert "has no confounds file beside it" in refusal(tmp_path / IMAGE, IMAGE, strategy="simple")
    assert read_confounds(tmp_path / IMAGE, ReadingSettings(strategy="none")) == Confounds()


# -- strategies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "image", "columns", "steps"),
    [
        ("simple", IMAGE, 28, "simple confounds (2 cosine, 2 white matter and CSF, 24 motion)"),
        ("compcor", IMAGE, 30, "compcor confounds (4 aCompCor, 2 cosine, 24 motion)"),
        ("ica_aroma", AROMA, 4, "ica_aroma confounds (2 cosine, 2 white matter and CSF)"),
        (
            "scrubbing",
            IMAGE,
            34,
            "scrubbing confounds (2 cosine, 8 white matter and CSF, 24 motion); 0 volumes dropped in all (FD > 0.5 mm, "
            "standardised DVARS > 1.5, runs < 5)",
        ),
    ],
)
def test_each_strategy_takes_its_columns(tmp_path, paint, strategy, image, columns, steps):
    paint.confounds(tmp_path / TABLE, 90)
    chosen = read_confounds(tmp_path / image, ReadingSettings(strategy=strategy))
    assert chosen.regressors is not None and chosen.regressors.shape == (90, columns)
    assert chosen.kept is None and chosen.steps == steps
    assert chosen.measures == {"mean_fd": pytest.approx(0.1), "fd_formula": "power", "n_acquired": 90, "n_censored": 0}
    more = read_confounds(tmp_path / image, ReadingSettings(strategy=strategy, global_signal=True))
    assert (
        more.regressors is not None and more.regressors.shape == (90, columns + 1) and "1 global signal" in more.steps
    )


def test_regressors_are_those_of_nilearn(tmp_path, paint):
    from nilearn.interfaces.fmriprep import load_confounds_strategy

    paint.confounds(tmp_path / TABLE, 90, unsteady=2, jumps=(30, 33, 60))
    own = read_confounds(tmp_path / IMAGE, ReadingSettings(strategy="scrubbing", fd_threshold=0.4))
    frame, kept = load_confounds_strategy(
        str(tmp_path / IMAGE), "scrubbing", fd_threshold=0.4, std_dvars_threshold=1.5, scrub=5, demean=False
    )
    np.testing.assert_allclose(own.regressors, frame.to_numpy())
    np.testing.assert_array_equal(own.kept, kept)


def test_moved_and_unsteady_volumes_go_and_are_told(tmp_path, paint):
    paint.confounds(tmp_path / TABLE, 90, unsteady=2, jumps=(30, 33, 60))
    chosen = read_confounds(tmp_path / IMAGE, ReadingSettings(strategy="scrubbing"))
    assert chosen.measures["kept_volumes"] == "2-29;34-59;61-89"
    assert chosen.measures["n_censored"] == 7 and chosen.measures["n_acquired"] == 90
    assert chosen.measures["mean_fd"] == pytest.approx((86 * 0.1 + 3 * 2) / 89)
    assert "2 non-steady-state volumes dropped; 7 volumes dropped in all (FD > 0.5 mm" in chosen.steps
    assert read_confounds(tmp_path / IMAGE, ReadingSettings(strategy="simple")).measures["kept_volumes"] == "2-89"
    longer = read_confounds(tmp_path / IMAGE, ReadingSettings(strategy="scrubbing", scrub_run=0))
    assert longer.measures["kept_volumes"] == "2-29;31-32;34-59;61-89"
    lax = read_confounds(tmp_path / IMAGE, ReadingSettings(strategy="scrubbing", fd_threshold=3))
    assert lax.measures["kept_volumes"] == "2-89"


def test_a_band_pass_takes_the_place_of_the_cosines(tmp_path, paint):
    paint.confounds(tmp_path / TABLE, 90)
    chosen = read_confounds(tmp_path / IMAGE, ReadingSettings(strategy="simple", band_pass=(0.01, 0.1)))
    assert chosen.regressors is not None and chosen.regressors.shape == (90, 26)
    assert chosen.steps == "simple confounds (2 white matter and CSF, 24 motion)"


def test_a_file_without_cosines_says_so(tmp_path, paint):
    rewrite(paint.confounds(tmp_path / TABLE, 90), lambda table: table.drop(columns=["cosine00", "cosine01"]))
    chosen = read_confounds(tmp_path / IMAGE, ReadingSettings(strategy="simple"))
    assert chosen.steps.endswith("no high-pass: the confounds have no cosines")


# -- what is refused ---------------------------------------------------------------------------------------------------


def test_an_image_must_fit_the_strategy(tmp_path, paint):
    paint.confounds(tmp_path / TABLE, 90)
    assert "does not fit the strategy ica_aroma" in refusal(tmp_path / IMAGE, IMAGE, strategy="ica_aroma")
    assert "does not fit the strategy simple" in refusal(tmp_path / AROMA, AROMA, strategy="simple")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\n \n", "is empty"),
        (b"\xff\xfe\x00\x01" * 30, "no tab-separated table"),
        (b"a\tb\n1\t2\t3\t4\n5\n", "lacks 26 columns"),
        (b"X\tY\tZ\tFramewiseDisplacement\n1\t2\t3\t4\n", "fMRIPrep before 1.2"),
    ],
)
def test_a_broken_table_is_refused(tmp_path, content, words):
    (tmp_path / TABLE).write_bytes(content)
    assert words in refusal(tmp_path / IMAGE, TABLE, strategy="simple")


def test_a_table_that_cannot_be_opened_is_refused(tmp_path):
    (tmp_path / TABLE).mkdir()
    assert "cannot be read (Is a directory)" in refusal(tmp_path / IMAGE, TABLE, strategy="simple")


def test_missing_columns_are_named(tmp_path, paint):
    rewrite(paint.confounds(tmp_path / TABLE, 90), lambda table: table.drop(columns=["trans_y", "rot_z_power2", "csf"]))
    assert "lacks 3 columns that the strategy simple needs, such as trans_y, rot_z_power2, csf" in refusal(
        tmp_path / IMAGE, TABLE, strategy="simple"
    )


@pytest.mark.parametrize(
    ("column", "words"), [("rot_x", "no numbers in rot_x"), ("framewise_displacement", "beyond its first row")]
)
def test_holes_in_a_column_are_refused(tmp_path, paint, column, words):
    def spoil(table):
        table.loc[40, column] = np.nan
        return table

    rewrite(paint.confounds(tmp_path / TABLE, 90), spoil)
    assert words in refusal(tmp_path / IMAGE, TABLE, strategy="simple")


def test_words_where_numbers_belong_are_refused(tmp_path, paint):
    def spoil(table):
        return table.astype({"rot_x": object}).assign(rot_x="much")

    rewrite(paint.confounds(tmp_path / TABLE, 90), spoil)
    refusal(tmp_path / IMAGE, TABLE, strategy="simple")


def test_a_run_of_nothing_but_motion_is_refused(tmp_path, paint):
    paint.confounds(tmp_path / TABLE, 90, jumps=tuple(range(1, 90)))
    assert "leaves no volume" in refusal(tmp_path / IMAGE, TABLE, strategy="scrubbing")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "has no sub-1_task-rest_desc-confounds_timeseries.json beside it"),
        ("{ broken", "not readable JSON"),
        ("[]", "describes no a_comp_cor"),
        (json.dumps({"a_comp_cor_00": {"Method": "aCompCor"}}), "describes no a_comp_cor"),
        (json.dumps({f"a_comp_cor_{i:02d}": {"Mask": "combined"} for i in range(9)}), "does not serve the strategy"),
    ],
)
def test_compcor_needs_its_json(tmp_path, paint, content, words):
    described = paint.confounds(tmp_path / TABLE, 90).with_suffix(".json")
    described.unlink()
    if content is not None:
        described.write_text(content)
    assert words in refusal(tmp_path / IMAGE, "confounds_timeseries", strategy="compcor")
    assert read_confounds(tmp_path / IMAGE, ReadingSettings(strategy="simple")).regressors is not None


# -- cleaning ----------------------------------------------------------------------------------------------------------


def test_nothing_to_do_leaves_the_series_alone():
    bold = np.random.default_rng(0).normal(size=(30, 3))
    done, steps = clean_series(bold, float("nan"), ReadingSettings())
    np.testing.assert_allclose(done, bold, rtol=1e-6)
    assert done.dtype == np.float32 and steps == "no confounds regressed out"


def test_confounds_are_gone_and_means_and_missing_columns_stay():
    rng = np.random.default_rng(0)
    regressors = rng.normal(size=(200, 5))
    signal = rng.normal(size=(200, 3)) + regressors @ rng.normal(size=(5, 3)) + 500
    signal[:, 1] = np.nan
    done, steps = clean_series(signal, 2.0, ReadingSettings(), Confounds(regressors, steps="five"))
    assert np.isnan(done[:, 1]).all() and steps == "five"
    np.testing.assert_allclose(done[:, [0, 2]].mean(axis=0), signal[:, [0, 2]].mean(axis=0), rtol=1e-5)
    centred = done[:, [0, 2]] - done[:, [0, 2]].mean(axis=0)
    assert np.abs((regressors - regressors.mean(axis=0)).T @ centred).max() < 0.05


@given(st.sets(st.integers(0, 119), max_size=40))
def test_what_lies_in_dropped_volumes_never_matters(dropped):
    """Whatever the moved volumes hold, and wherever they lie, the kept ones come out the same, in their places."""
    kept = np.setdiff1d(np.arange(120), list(dropped))
    slow = np.sin(2 * np.pi * 0.04 * 2.0 * np.arange(120))[:, None]
    moved = slow.copy()
    moved[list(dropped)] = 1e4
    regressors = np.random.default_rng(0).normal(size=(120, 3))
    spoiled = regressors.copy()
    spoiled[list(dropped)] = -1e3
    for settings in (ReadingSettings(band_pass=(0.01, 0.1)), ReadingSettings(detrend=True)):
        clean, _ = clean_series(slow, 2.0, settings, Confounds(regressors, kept))
        other, _ = clean_series(moved, 2.0, settings, Confounds(spoiled, kept))
        np.testing.assert_allclose(other, clean, atol=1e-5)
        assert clean.shape == (len(kept), 1)
    assert np.corrcoef(clean[:, 0], slow[kept, 0])[0, 1] > 0.9


def test_a_band_pass_without_gaps_is_that_of_nilearn():
    from nilearn.signal import clean

    bold = np.random.default_rng(0).normal(size=(150, 4)).cumsum(axis=0)
    done, steps = clean_series(bold, 2.0, ReadingSettings(detrend=True, band_pass=(0.01, 0.1)))
    expected = clean(bold, detrend=True, standardize=None, low_pass=0.1, high_pass=0.01, t_r=2.0)
    np.testing.assert_allclose(done, expected, atol=1e-4)
    assert steps == "no confounds regressed out; detrended; band-pass 0.01-0.1 Hz"


@pytest.mark.parametrize(
    ("tr", "band", "words"),
    [
        (float("nan"), (0.01, 0.1), "tells the tr"),
        (2.0, (0.01, 0.3), "does not fit a tr of 2 s"),
        (2.0, (0.1, 0.01), "does not fit"),
    ],
)
def test_impossible_bands_are_refused(tr, band, words):
    with pytest.raises(OpenBrainMassError, match=words):
        clean_series(np.ones((50, 2)), tr, ReadingSettings(band_pass=band))


def test_confounds_of_another_run_or_too_many_are_refused(tmp_path, paint):
    paint.confounds(tmp_path / TABLE, 90)
    chosen = read_confounds(tmp_path / IMAGE, ReadingSettings(strategy="simple"))
    with pytest.raises(OpenBrainMassError, match=f"{TABLE} has 90 rows but its image 80 volumes"):
        clean_series(np.ones((80, 2)), 2.0, ReadingSettings(), chosen)
    paint.confounds(tmp_path / TABLE, 29)
    chosen = read_confounds(tmp_path / IMAGE, ReadingSettings(strategy="simple"))
    with pytest.raises(OpenBrainMassError, match="keeps 29 of 29 volumes and has 28 regressors"):
        clean_series(np.ones((29, 2)), 2.0, ReadingSettings(), chosen)


# -- real files --------------------------------------------------------------------------------------------------------

SIMPLE, SCRUBBING, COMPCOR = ({"strategy": name} for name in ("simple", "scrubbing", "compcor"))


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "settings", "words"),
    [
        ("invalid", SIMPLE, "invalid_desc-confounds_timeseries.tsv is empty"),
        ("missing", SIMPLE, "missing_desc-confounds_regressors.tsv lacks 3 columns"),
        ("noconfound", SIMPLE, "has no confounds file beside it"),
        ("nonss", COMPCOR, "has no nonss_desc-confounds_regressors.json beside it"),
    ],
)
def test_the_broken_cases_of_load_confounds_each_have_their_sentence(data_dir, name, settings, words):
    folder = data_dir / "derivatives" / "load_confounds_testdata"
    assert words in refusal(folder / f"{name}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz", name, **settings)


@pytest.mark.data
@pytest.mark.parametrize(
    ("folder", "name", "settings", "columns", "kept"),
    [
        ("load_confounds_testdata", "nonss", SIMPLE, 30, None),
        ("load_confounds_testdata", "test", SIMPLE, 30, "1-29"),
        ("load_confounds_testdata", "test", COMPCOR, 85, "1-29"),
        ("nilearn_fmriprep_confounds", "test", SIMPLE, 30, "1-29"),
        ("nilearn_fmriprep_confounds", "test-v21", SIMPLE, 27, "3-29"),
        ("nilearn_fmriprep_confounds", "test-v21", COMPCOR, 30, "3-29"),
        ("nilearn_fmriprep_confounds", "no_nonsteady", SIMPLE, 30, None),
    ],
)
def test_confounds_of_every_version_are_read(data_dir, folder, name, settings, columns, kept):
    image = data_dir / "derivatives" / folder / f"{name}_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
    chosen = read_confounds(image, ReadingSettings(**settings))
    assert chosen.regressors is not None and chosen.regressors.shape == (30, columns)
    assert chosen.measures.get("kept_volumes") == kept


@pytest.mark.data
def test_version_21_without_or_with_a_broken_json(data_dir, tmp_path):
    source = data_dir / "derivatives" / "nilearn_fmriprep_confounds"
    table = tmp_path / "test-v21_desc-confounds_timeseries.tsv"
    table.write_bytes((source / table.name).read_bytes())
    image = tmp_path / "test-v21_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
    assert "has no test-v21_desc-confounds_timeseries.json" in refusal(image, table.name, **COMPCOR)
    table.with_suffix(".json").write_text("{")
    assert "not readable JSON" in refusal(image, table.stem, **COMPCOR)
    assert read_confounds(image, ReadingSettings(**SIMPLE)).measures["n_censored"] == 3


@pytest.mark.data
def test_real_motion_is_scrubbed(data_dir):
    func = data_dir / "derivatives" / "halfpipe_ds000030" / "derivatives" / "fmriprep" / "sub-10159" / "func"
    image = func / "sub-10159_task-rest_space-MNI152NLin2009cAsym_desc-preproc_bold.nii.gz"
    chosen = read_confounds(image, ReadingSettings(**SCRUBBING))
    fd = pd.read_csv(find_confounds(image), sep="\t")["framewise_displacement"]
    assert chosen.measures["mean_fd"] == pytest.approx(fd.mean()) and chosen.kept is not None
    assert (fd[chosen.kept].fillna(0) <= 0.5).all() and chosen.measures["n_acquired"] == 152
