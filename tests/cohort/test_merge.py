"""Merging: shards are linked, people joined, and the same scan is never in twice."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from openbrainmass import durable
from openbrainmass.cohort.build import build_store
from openbrainmass.cohort.cohort import Cohort, participant_hash
from openbrainmass.cohort.merge import merge_stores
from openbrainmass.cohort.simulate import simulate_cohort
from openbrainmass.cohort.store import load_cohort, save_cohort
from openbrainmass.durable import read_json, read_tsv, write_json
from openbrainmass.errors import OpenBrainMassError


def renamed(cohort: Cohort, name: str) -> Cohort:
    return Cohort(name, cohort.recordings, cohort.participants, cohort.atlas, cohort.read, cohort.exclusions)


def store(cohort: Cohort, path: Path) -> Path:
    save_cohort(cohort, path)
    return path


@pytest.fixture(scope="module")
def halves(cohort, tmp_path_factory) -> tuple[Path, Path]:
    """The first 12 and the last 12 recordings of one dataset."""
    folder = tmp_path_factory.mktemp("halves")
    return store(cohort.select(range(12)), folder / "a"), store(cohort.select(range(12, 24)), folder / "b")


def test_two_halves_of_a_dataset_are_the_whole(cohort, halves, tmp_path):
    made = merge_stores(halves, tmp_path / "out")
    assert made.name == cohort.name and len(made) == 24 and len(made.participants) == 24
    assert list(made.recordings["recording_id"]) == list(cohort.recordings["recording_id"])
    assert all(np.array_equal(a, b) for a, b in zip(made, cohort, strict=True))
    assert made.identities() == cohort.identities()
    assert "shard_key" not in read_tsv(tmp_path / "out" / "recordings.tsv")
    whole = build_store(cohort, tmp_path / "whole", progress=False)
    np.testing.assert_array_equal(made.fingerprints[:], whole.fingerprints[:])
    np.testing.assert_allclose(made.recordings["typicality"], whole.recordings["typicality"])


def test_shards_are_linked_not_copied(halves, tmp_path):
    merge_stores(halves, tmp_path / "out")
    for number, half in enumerate(halves):
        assert (tmp_path / "out" / f"shard-{number:05d}.safetensors").samefile(half / "shard-00000.safetensors")


def test_where_files_cannot_be_linked_they_are_copied(cohort, halves, tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(durable.os, "link", refuse)
    made = merge_stores(halves, tmp_path / "out")
    assert os.stat(tmp_path / "out" / "shard-00000.safetensors").st_nlink == 1
    assert np.array_equal(made[20], cohort[20])


def test_people_of_different_datasets_stay_apart_and_keep_their_identity(cohort, halves, tmp_path):
    # The same ids, but other people.
    other = store(renamed(simulate_cohort(24, 2, 21, 80, seed=9), "other"), tmp_path / "other")
    made = merge_stores([halves[0], other], tmp_path / "out", name="both")
    assert len(made) == 36 and len(made.participants) == 36 and made.name == "both"
    first, last = made.recordings.iloc[0], made.recordings.iloc[-1]
    assert first["participant_id"] == f"simulated/{cohort.recordings['participant_id'][0]}"
    assert last["recording_id"] == f"other/{load_cohort(other).recordings['recording_id'][23]}"
    assert made.identities() == load_cohort(halves[0]).identities() + load_cohort(other).identities()
    assert np.array_equal(made[3], cohort[3]) and np.array_equal(made[35], load_cohort(other)[23])
    assert merge_stores([halves[0], other], tmp_path / "unnamed").name == "simulated+other"
    assert merge_stores([tmp_path / "unnamed", halves[1]], tmp_path / "more").name == "simulated+other"
    # A third store joins: people of a dataset that is there already are joined, nobody is renamed twice.
    third = merge_stores([tmp_path / "out", halves[1]], tmp_path / "third")
    assert len(third) == 48 and third.name == "both+simulated"
    assert third.recordings["participant_id"].str.count("/").eq(1).all()
    assert third.identities() == made.identities() + load_cohort(halves[1]).identities()
    assert np.array_equal(third[47], cohort[23])


def test_a_new_name_does_not_make_other_people(halves, tmp_path):
    made = merge_stores(halves, tmp_path / "out", name="renamed")
    assert made.name == "renamed"
    assert made.identities()[0] == load_cohort(halves[0]).identities()[0]


def test_the_hash_of_a_merged_id_is_that_of_the_person():
    assert participant_hash("both", "abide/sub-1") == participant_hash("abide", "sub-1")
    assert participant_hash("both", "sub-1") != participant_hash("abide", "sub-1")


def test_the_same_recording_twice_is_kept_once(cohort, halves, tmp_path):
    again = store(cohort.select(range(10, 16)), tmp_path / "again")
    made = merge_stores([halves[0], again], tmp_path / "out")
    assert list(made.recordings["recording_id"]) == list(cohort.recordings["recording_id"][:16])
    assert list(made.exclusions["recording_id"]) == list(cohort.recordings["recording_id"][10:12])
    assert set(made.exclusions["reason"]) == {"duplicate"} and made.exclusions["site"].notna().all()
    assert "is in a" in made.exclusions["detail"][0]
    assert len(made.fingerprints) == 16 and all(np.array_equal(made[i], cohort[i]) for i in range(16))


def test_one_id_for_two_scans_is_an_error_that_names_both_stores(cohort, halves, tmp_path):
    scaled = Cohort("simulated", cohort.recordings, cohort.participants, cohort.atlas, lambda r: 2 * cohort.read(r))
    other = store(scaled.select([0]), tmp_path / "other")
    with pytest.raises(OpenBrainMassError, match=r"/a and .*/other both have a recording .* different values"):
        merge_stores([halves[0], other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_scans_of_two_datasets_that_are_one_are_found(cohort, halves, tmp_path):
    new_ids = cohort.recordings.assign(
        recording_id=[f"x{i}" for i in range(24)], participant_id=lambda t: t.recording_id
    )
    people = cohort.participants.assign(participant_id=[f"x{i}" for i in range(24)])
    reads = dict(zip(new_ids["recording_id"], cohort.recordings["recording_id"], strict=True))
    other = Cohort("other", new_ids, people, cohort.atlas, lambda name: 3 * cohort.read(reads[name]) + 1)
    made = merge_stores([halves[0], store(other.select(range(6, 18)), tmp_path / "other")], tmp_path / "out")
    assert len(made) == 18 and set(made.exclusions["reason"]) == {"duplicate"}
    assert list(made.exclusions["recording_id"]) == [f"other/x{i}" for i in range(6, 12)]
    assert np.array_equal(made[17], other[17]) and len(made.fingerprints) == 18
    manifest = read_json(tmp_path / "out" / "manifest.json")
    assert [shard["n_recordings"] for shard in manifest["shards"]] == [12, 6]
    assert manifest["excluded"] == {"duplicate": 6} and manifest["n_people"] == 18


def test_contradicting_people_are_named(cohort, halves, tmp_path):
    people = cohort.participants.copy()
    person = cohort.recordings["participant_id"][11]
    people.loc[people["participant_id"] == person, "age"] = 99.5
    other = Cohort("simulated", cohort.recordings, people, cohort.atlas, cohort.read).select([11, 12])
    with pytest.raises(OpenBrainMassError, match=rf"contradict each other: age of {person} is .* and 99\.5"):
        merge_stores([halves[0], store(other, tmp_path / "other")], tmp_path / "out")


def test_what_one_store_knows_of_a_person_completes_the_other(cohort, tmp_path):
    left = Cohort("s", cohort.recordings, cohort.participants.drop(columns="sex"), cohort.atlas, cohort.read)
    right = Cohort("s", cohort.recordings, cohort.participants[["participant_id", "sex"]], cohort.atlas, cohort.read)
    paths = [store(left.select([0, 1]), tmp_path / "l"), store(right.select([1, 2]), tmp_path / "r")]
    people = merge_stores(paths, tmp_path / "out").participants.set_index("participant_id")
    ids = list(cohort.recordings["participant_id"][:3])
    assert list(people.index) == ids
    assert list(people["sex"].isna()) == [True, False, False] and list(people["age"].isna()) == [False, False, True]


def test_stores_of_version_1_can_be_merged(cohort, halves, tmp_path):
    old = store(cohort.select(range(12, 24)), tmp_path / "old")
    manifest = read_json(old / "manifest.json")
    for name in ("fingerprints.npy", "warnings.tsv"):
        (old / name).unlink()
    del manifest["fingerprints"], manifest["tables"]["warnings.tsv"]
    write_json(old / "manifest.json", {**manifest, "version": 1})
    made = merge_stores([halves[0], old], tmp_path / "out")
    np.testing.assert_array_equal(made.fingerprints[12:], load_cohort(halves[1]).fingerprints[:])


def test_other_atlases_and_single_stores_are_refused(halves, tmp_path):
    other = store(simulate_cohort(3, 1, 14, 30), tmp_path / "other")
    with pytest.raises(OpenBrainMassError, match=r"Simulated21 \(21 ROIs\) and .*other Simulated14 \(14 ROIs\)"):
        merge_stores([halves[0], other], tmp_path / "out")
    with pytest.raises(OpenBrainMassError, match="at least two stores"):
        merge_stores(halves[:1], tmp_path / "out")
    with pytest.raises(OpenBrainMassError, match="exists already"):
        merge_stores(halves, halves[0])
    with pytest.raises(OpenBrainMassError, match="does not exist"):
        merge_stores([halves[0], tmp_path / "nowhere"], tmp_path / "out")


def test_a_merged_selection_can_be_stored_and_built_again(halves, tmp_path):
    other = store(renamed(simulate_cohort(8, 2, 21, 80, seed=9), "other"), tmp_path / "other")
    made = merge_stores([halves[0], other], tmp_path / "out")
    part = save_cohort(made.select([0, 13]), tmp_path / "part")
    assert part.identities() == [made.identities()[0], made.identities()[13]]
    again = build_store(made, tmp_path / "again", progress=False)
    assert len(again) == 20 and np.array_equal(again[19], made[19])
