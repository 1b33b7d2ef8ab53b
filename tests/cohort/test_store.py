"""Stores: what goes in comes out, many reads are cheap, and damage is noticed."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from openbrainmass.atlas import Atlas
from openbrainmass.cohort import shards
from openbrainmass.cohort.cohort import RECORDING_COLUMNS, Cohort
from openbrainmass.cohort.duplicates import Fingerprinter
from openbrainmass.cohort.shards import Fingerprints, write_fingerprints
from openbrainmass.cohort.simulate import simulate_cohort
from openbrainmass.cohort.store import load_cohort, save_cohort
from openbrainmass.durable import read_json, sha256_file, write_json
from openbrainmass.errors import OpenBrainMassError


@pytest.fixture()
def saved(cohort, tmp_path) -> Path:
    save_cohort(cohort, tmp_path / "store")
    return tmp_path / "store"


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.iterdir()}


def test_a_saved_cohort_comes_back_whole(cohort, saved):
    back = load_cohort(saved)
    assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(cohort, back, strict=True))
    pd.testing.assert_frame_equal(cohort.table, back.table, check_dtype=False)
    assert back.name == cohort.name and back.atlas.name == cohort.atlas.name
    assert back.atlas.digest == cohort.atlas.digest and back.atlas.networks == cohort.atlas.networks
    np.testing.assert_array_equal(back.atlas.coords_mm, cohort.atlas.coords_mm)
    assert back.identities() == cohort.identities()
    assert back[0].flags.writeable


def test_a_store_is_the_same_bytes_each_time(cohort, saved, tmp_path):
    save_cohort(cohort, tmp_path / "again")
    assert contents(saved) == contents(tmp_path / "again")


def test_a_store_keeps_the_fingerprints_of_its_recordings(cohort, saved):
    kept = load_cohort(saved).fingerprints
    fingerprint = Fingerprinter(cohort.atlas.n_rois)
    assert len(kept) == len(cohort)
    np.testing.assert_array_equal(kept[3:5], [fingerprint(cohort[3]), fingerprint(cohort[4])])


def loud_cohort() -> Cohort:
    rows = pd.DataFrame([dict.fromkeys(RECORDING_COLUMNS)]).assign(recording_id="r", participant_id="p", dead_rois="")
    atlas = Atlas("Toy", ("01", "NA"), networks=("1", "2"), coords_mm=np.array([[0.1, 2, 3], [np.nan] * 3]))
    people = pd.DataFrame({"participant_id": ["p"]})
    return Cohort("loud", rows, people, atlas, lambda _: np.full((9, 2), 1e5, dtype=np.float32))


def test_values_beyond_float16_are_an_error_not_infinity(tmp_path):
    with pytest.raises(OpenBrainMassError, match="65504"):
        save_cohort(loud_cohort(), tmp_path / "out", dtype="float16")
    assert not list(tmp_path.iterdir())
    assert save_cohort(loud_cohort(), tmp_path / "out")[0].max() == 1e5


def test_awkward_roi_names_and_unknown_places_survive(tmp_path):
    atlas = save_cohort(loud_cohort(), tmp_path / "out").atlas
    assert atlas.roi_names == ("01", "NA") and atlas.networks == ("1", "2")
    assert atlas.coords_mm is not None and atlas.coords_mm[0, 0] == 0.1 and np.isnan(atlas.coords_mm[1]).all()


def test_many_shards_of_bounded_size(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 20_000)
    monkeypatch.setattr(shards, "_OPEN_AT_ONCE", 2)
    back = save_cohort(cohort, tmp_path / "out")
    entries = read_json(tmp_path / "out" / "manifest.json")["shards"]
    assert len(entries) > 5 and sum(entry["n_recordings"] for entry in entries) == len(cohort)
    assert all(entry["bytes"] < 22_000 for entry in entries)
    for i in (23, 0, 11, 23, 5, 0):
        assert np.array_equal(back[i], cohort[i])


def test_few_files_are_open_at_once(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 1)
    monkeypatch.setattr(shards, "_OPEN_AT_ONCE", 3)
    back = save_cohort(cohort, tmp_path / "out")
    before = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 0
    assert len(list(back)) == 24
    after = len(list(Path("/proc/self/fd").iterdir())) if Path("/proc/self/fd").is_dir() else 3
    assert after - before <= 3


def test_an_opened_store_can_be_sent_to_another_process(cohort, saved):
    opened = load_cohort(saved)
    assert np.array_equal(opened[4], cohort[4])
    assert np.array_equal(pickle.loads(pickle.dumps(opened))[5], cohort[5])


def test_a_selection_can_be_stored(cohort, saved, tmp_path):
    women = load_cohort(saved)
    women = women.select(women.table["sex"] == "F")
    assert women.fingerprints is None
    assert np.array_equal(save_cohort(women, tmp_path / "women")[1], women[1])


def test_columns_that_only_the_reader_needs_are_not_those_of_a_table(cohort, tmp_path):
    named = Cohort(
        "x", cohort.recordings.assign(shard="a", shard_key="b", key="c"), cohort.participants, cohort.atlas, cohort.read
    )
    back = save_cohort(named, tmp_path / "out")
    assert set(back.recordings["key"]) == {"c"} and not {"shard", "shard_key"} & set(back.recordings)
    assert np.array_equal(back[1], cohort[1])


def test_what_is_taken_or_wrong_is_left_alone(cohort, saved, tmp_path):
    before = (saved / "manifest.json").read_bytes()
    with pytest.raises(OpenBrainMassError, match="exists already"):
        save_cohort(cohort, saved)
    assert (saved / "manifest.json").read_bytes() == before
    with pytest.raises(OpenBrainMassError, match="float8"):
        save_cohort(cohort, tmp_path / "out", dtype="float8")
    with pytest.raises(OpenBrainMassError, match="nothing to store"):
        save_cohort(cohort.select([]), tmp_path / "out")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["store"]


def test_a_store_of_version_1_can_be_opened(cohort, saved):
    manifest = read_json(saved / "manifest.json")
    for name in ("fingerprints.npy", "warnings.tsv"):
        (saved / name).unlink()
    del manifest["fingerprints"], manifest["tables"]["warnings.tsv"]
    write_json(saved / "manifest.json", {**manifest, "version": 1})
    old = load_cohort(saved)
    assert old.fingerprints is None and np.array_equal(old[7], cohort[7])


def test_a_truncated_or_missing_shard_is_noticed_when_opened(saved):
    shard = saved / "shard-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-10])
    with pytest.raises(OpenBrainMassError, match=r"shard-00000.*missing or cut"):
        load_cohort(saved)
    shard.unlink()
    with pytest.raises(OpenBrainMassError, match="has 0 bytes"):
        load_cohort(saved)


@pytest.mark.parametrize("place", [0, 20, -3])
def test_a_flipped_bit_is_noticed_when_first_read(saved, place):
    shard = saved / "shard-00000.safetensors"
    data = bytearray(shard.read_bytes())
    data[place] ^= 1
    shard.write_bytes(data)
    opened = load_cohort(saved)
    with pytest.raises(OpenBrainMassError, match="sha256 differs"):
        opened[0]


def test_changed_fingerprints_are_noticed(saved):
    file = saved / "fingerprints.npy"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    kept = load_cohort(saved).fingerprints
    with pytest.raises(OpenBrainMassError, match=r"fingerprints\.npy are not those"):
        kept[:1]
    file.write_bytes(bytes(data[:-1]))
    with pytest.raises(OpenBrainMassError, match=r"fingerprints\.npy.*missing or cut"):
        load_cohort(saved)


def test_files_that_are_no_fingerprints_are_refused(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((3, 5), dtype=np.float16))
    with pytest.raises(OpenBrainMassError, match=r"float16 \(n, 1024\)"):
        Fingerprints(tmp_path / "a.npy")
    (tmp_path / "a.npy").write_bytes(b"torn")
    with pytest.raises(OpenBrainMassError, match="missing or damaged"):
        Fingerprints(tmp_path / "a.npy")


def test_fingerprints_are_read_by_slices_as_written(tmp_path):
    values = np.random.default_rng(0).normal(size=(7, 1024)).astype(np.float16)
    write_fingerprints(tmp_path / "f.npy", 7, [values[:4], values[4:]])
    assert np.array_equal(np.load(tmp_path / "f.npy"), values)
    kept = Fingerprints(tmp_path / "f.npy", sha256_file(tmp_path / "f.npy"))
    for rows in (slice(None), slice(2, 5), slice(5, 99), slice(7, 9), slice(4, 2)):
        assert np.array_equal(kept[rows], values[rows])
    with pytest.raises(ValueError, match="without gaps"):
        kept[::2]


def test_a_shard_that_vanishes_later_is_a_sentence(saved):
    opened = load_cohort(saved)
    (saved / "shard-00000.safetensors").unlink()
    with pytest.raises(OpenBrainMassError, match="is missing or its bytes"):
        opened[0]


@pytest.mark.parametrize("table", ["recordings.tsv", "participants.tsv", "exclusions.tsv", "warnings.tsv", "atlas.tsv"])
def test_an_edited_or_missing_table_is_noticed(saved, table):
    (saved / table).write_text((saved / table).read_text() + "x\n")
    with pytest.raises(OpenBrainMassError, match=rf"{table} is missing or was changed"):
        load_cohort(saved)
    (saved / table).unlink()
    with pytest.raises(OpenBrainMassError, match=rf"{table} is missing"):
        load_cohort(saved)


def test_folders_that_are_no_store_are_explained(tmp_path):
    with pytest.raises(OpenBrainMassError, match="does not exist"):
        load_cohort(tmp_path / "nowhere")
    (tmp_path / "lab").mkdir()
    with pytest.raises(OpenBrainMassError, match=r"no manifest\.json"):
        load_cohort(tmp_path / "lab")
    (tmp_path / "lab" / "participants.tsv").write_text("participant_id\n")
    with pytest.raises(OpenBrainMassError, match=r"run `openbrainmass cohort .*lab --out STORE`"):
        load_cohort(tmp_path / "lab")


@pytest.mark.parametrize("change", [{"version": 99}, {"format": "else"}, {"shards": None}])
def test_another_manifest_is_refused(saved, change):
    manifest = {**read_json(saved / "manifest.json"), **change}
    write_json(saved / "manifest.json", {key: value for key, value in manifest.items() if value is not None})
    with pytest.raises(OpenBrainMassError, match="not the manifest of a store"):
        load_cohort(saved)
    write_json(saved / "manifest.json", [1, 2])
    with pytest.raises(OpenBrainMassError, match="not the manifest of a store"):
        load_cohort(saved)


def test_sessions_share_a_person(tmp_path):
    made = save_cohort(simulate_cohort(3, 1, 14, 30, n_sessions=2), tmp_path / "out")
    assert len(made) == 6 and len(made.participants) == 3
