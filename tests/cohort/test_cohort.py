"""`Cohort`: an immutable sequence that keeps people, recordings and atlas together."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openbrainmass.cohort.cohort import Cohort, bold_digest, participant_hash
from openbrainmass.cohort.simulate import simulate_cohort
from openbrainmass.errors import OpenBrainMassError

SMALL = simulate_cohort(5, 1, 14, 30, n_sessions=2)


def test_it_is_a_sequence():
    assert len(SMALL) == 10 and len(list(SMALL)) == 10
    assert np.array_equal(SMALL[-1], SMALL[9])
    assert [bold.shape for bold in SMALL[2:4]] == [SMALL[2].shape] * 2
    with pytest.raises(IndexError):
        SMALL[10]
    assert "10 recordings of 5 people" in repr(SMALL)


def test_tables_are_copies():
    for table in (SMALL.recordings, SMALL.participants, SMALL.exclusions):
        table[["participant_id", "dx", "reason"]] = "x"
    assert "reason" not in SMALL.recordings and SMALL.table["participant_id"].nunique() == 5
    assert set(SMALL.table["dx"]) == {"patient", "control"}


@given(st.lists(st.integers(0, 9), unique=True))
def test_selecting_keeps_order_and_people(rows):
    chosen = SMALL.select(rows)
    assert list(chosen.recordings["recording_id"]) == [SMALL.recordings["recording_id"][i] for i in rows]
    assert set(chosen.participants["participant_id"]) == set(chosen.recordings["participant_id"])
    for bold, row in zip(chosen, rows, strict=True):
        assert np.array_equal(bold, SMALL[row])


def test_selecting_by_mask():
    patients = SMALL.select(SMALL.table["dx"] == "patient")
    assert set(patients.table["dx"]) == {"patient"} and 0 < len(patients) < 10
    with pytest.raises(OpenBrainMassError, match="3 values but the cohort 10"):
        SMALL.select([True, False, True])


def test_a_column_of_recordings_holds_before_the_persons():
    recordings = SMALL.recordings.assign(mean_fd=range(10))
    cohort = Cohort("x", recordings, SMALL.participants, SMALL.atlas, lambda _: SMALL[0])
    assert list(cohort.table["mean_fd"]) == list(range(10))


def test_incomplete_tables_are_refused():
    with pytest.raises(OpenBrainMassError, match="lack the columns digest"):
        Cohort("x", SMALL.recordings.drop(columns="digest"), SMALL.participants, SMALL.atlas, lambda _: SMALL[0])
    with pytest.raises(OpenBrainMassError, match="not in its participants table"):
        Cohort("x", SMALL.recordings, SMALL.participants[1:], SMALL.atlas, lambda _: SMALL[0])


def test_identities_name_nobody_but_tell_people_apart():
    identities = SMALL.identities()
    assert participant_hash("simulated", "sub-s00p0001") in identities[0] & identities[1]
    assert not identities[0] & identities[2]
    assert not any("sub-" in value for identity in identities for value in identity)


@given(st.lists(st.floats(-100, 100, width=16), min_size=1))
def test_digests_do_not_depend_on_the_float_type(values):
    bold = np.array([values])
    assert bold_digest(bold.astype(np.float16)) == bold_digest(bold.astype(np.float64))
    assert bold_digest(bold) != bold_digest(bold + 1)


def test_fingerprints_belong_to_the_whole_cohort_only():
    marks = np.zeros((10, 1024), dtype=np.float16)
    cohort = Cohort("x", SMALL.recordings, SMALL.participants, SMALL.atlas, SMALL.read, fingerprints=marks)
    assert cohort.fingerprints is marks and SMALL.fingerprints is None
    assert cohort.select([1, 2]).fingerprints is None


def test_a_recording_can_be_read_by_its_name():
    assert np.array_equal(SMALL.read(SMALL.recordings["recording_id"][4]), SMALL[4])


def test_the_identity_of_a_merged_id_is_the_persons():
    assert participant_hash("both", "abide/sub-1") == participant_hash("abide", "sub-1")


def test_exclusions_travel_along():
    rows = pd.DataFrame([{"recording_id": "r", "participant_id": "p", "reason": "too-short", "detail": "", "file": ""}])
    cohort = Cohort("x", SMALL.recordings, SMALL.participants, SMALL.atlas, lambda _: SMALL[0], rows)
    assert list(cohort.select([0]).exclusions["reason"]) == ["too-short"]
