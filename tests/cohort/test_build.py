"""Building: every recording is judged once, and neither kills nor processes change a byte of the store."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from openbrainmass import durable
from openbrainmass.atlas import Atlas
from openbrainmass.cohort import build, parts, staging
from openbrainmass.cohort.build import build_store, submit_build
from openbrainmass.cohort.cohort import EXCLUSION_COLUMNS, RECORDING_COLUMNS, bold_digest
from openbrainmass.cohort.duplicates import Fingerprinter
from openbrainmass.cohort.merge import merge_stores
from openbrainmass.cohort.quality import QualitySettings
from openbrainmass.cohort.source import Series, Source
from openbrainmass.cohort.store import load_cohort, save_cohort
from openbrainmass.durable import read_json, read_tsv, write_text
from openbrainmass.errors import OpenBrainMassError

SIX = Atlas("Six", tuple("abcdef"))


class Folder:
    """Reads `.npy` files of a folder; knows the folder, so that changed files are noticed."""

    def __init__(self, folder: Path, tr: Mapping[str, Mapping[str, float]] | None = None) -> None:
        self.folder, self.tr, self.n_read = folder, tr or {}, 0

    def __call__(self, row: Mapping[str, Any]) -> Series:
        self.n_read += 1
        try:
            bold = np.load(self.folder / row["file"])
        except ValueError as error:
            raise OpenBrainMassError(f"{row['file']} cannot be read. Mend it.") from error
        return Series(bold, self.tr.get(row["recording_id"], {}), {"mean_fd": np.float64(0.125), "steps": "none"})


def lab(path: Path, dtype: str = "float32", n_people: int = 6) -> Source:
    """Of the first six people, 0 and 3 are one scan, 4 is too short, 5 has no file."""
    path.mkdir()
    people = [f"sub-{i}" for i in range(n_people)]
    table = {"participant_id": people, "site": "here", "dx": ["ab"[i % 2] for i in range(n_people)]}
    participants = pd.DataFrame({**table, "age": [9.5, None, *range(11, 9 + n_people)]})
    participants.loc[3, "dx"] = "a"
    with_file = [i for i in range(n_people) if i != 5]
    for i in with_file:
        bold = np.random.default_rng(0 if i == 3 else i).normal(size=(20 if i == 4 else 90, 6))
        np.save(path / f"{people[i]}.npy", bold.astype(dtype))
    names = [people[i] for i in with_file]
    recordings = pd.DataFrame({"recording_id": names, "participant_id": names, "session": None, "run": None, "tr": 2.0})
    none = {"recording_id": None, "participant_id": "sub-5", "reason": "no-recording", "detail": "", "file": None}
    return Source(
        "lab",
        SIX,
        recordings.assign(file=[f"{name}.npy" for name in names]),
        participants,
        pd.DataFrame([none], columns=list(EXCLUSION_COLUMNS)),
        Folder(path),
    )


def contents(store: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in store.iterdir()}


def reasons(exclusions: pd.DataFrame) -> dict[str, str]:
    return dict(zip(exclusions["participant_id"], exclusions["reason"], strict=True))


def test_building_checks_lists_and_counts(tmp_path):
    made = build_store(lab(tmp_path / "lab"), tmp_path / "out", progress=False)
    assert list(made.recordings["recording_id"]) == ["sub-0", "sub-1", "sub-2"]
    assert list(made.recordings.columns[: len(RECORDING_COLUMNS)]) == list(RECORDING_COLUMNS)
    assert set(made.recordings["mean_fd"]) == {0.125} and made.recordings["typicality"].notna().all()
    assert reasons(made.exclusions) == {"sub-3": "duplicate", "sub-4": "too-short", "sub-5": "no-recording"}
    assert list(made.exclusions["recording_id"].dropna()) == ["sub-3", "sub-4"]
    assert list(made.participants["participant_id"]) == ["sub-0", "sub-1", "sub-2"]
    assert [bold_digest(bold) for bold in made] == list(made.recordings["digest"])
    manifest = read_json(tmp_path / "out" / "manifest.json")
    assert (manifest["n_recordings"], manifest["n_people"], manifest["n_excluded"]) == (3, 3, 3)
    assert manifest["quality"]["min_seconds"] == 120 and manifest["dataset"] == "lab"
    assert manifest["atlas"]["digest"] == made.atlas.digest and manifest["n_rois"] == 6
    assert manifest["excluded"] == {"duplicate": 1, "no-recording": 1, "too-short": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lab", "out"]


def test_exclusions_tell_whom_they_befall(tmp_path):
    build_store(lab(tmp_path / "lab"), tmp_path / "out", progress=False)
    table = read_tsv(tmp_path / "out" / "exclusions.tsv")
    assert list(table.columns) == ["recording_id", "participant_id", "reason", "site", "dx", "sex", "detail", "file"]
    assert set(table["site"]) == {"here"}
    assert dict(zip(table["participant_id"], table["dx"], strict=True)) == {"sub-3": "a", "sub-4": "a", "sub-5": "b"}


def test_fingerprints_are_those_of_the_recordings_that_stay(tmp_path):
    made = build_store(lab(tmp_path / "lab", n_people=9), tmp_path / "out", progress=False)
    fingerprint = Fingerprinter(6)
    assert len(made) == 6
    np.testing.assert_array_equal(made.fingerprints[:], [fingerprint(bold) for bold in made])


def test_a_cohort_can_be_checked_and_built(cohort, tmp_path):
    seconds = cohort.recordings["n_volumes"] * cohort.recordings["tr"]
    short = seconds < seconds.mean()
    made = build_store(cohort, tmp_path / "out", QualitySettings(min_seconds=seconds.mean()), progress=False)
    assert 0 < short.sum() < len(cohort)
    assert list(made.exclusions["recording_id"]) == list(cohort.recordings["recording_id"][short])


@pytest.mark.parametrize(
    ("source", "asked", "stored"),
    [
        ("float16", "auto", "float16"),
        ("float32", "auto", "float32"),
        ("float64", "auto", "float32"),
        ("float16", "float32", "float32"),
        ("float32", "float16", "float16"),
    ],
)
def test_types_are_kept_or_converted(tmp_path, source, asked, stored):
    made = build_store(lab(tmp_path / "lab", source), tmp_path / "out", dtype=asked, progress=False)
    assert made[0].dtype == stored
    np.testing.assert_allclose(made[0], np.load(tmp_path / "lab" / "sub-0.npy"), atol=2e-3)
    assert bold_digest(made[0]) == made.recordings["digest"].iloc[0]


def test_a_signal_that_rounding_would_flatten_is_left_out(tmp_path):
    source = lab(tmp_path / "lab")
    rng = np.random.default_rng(1)
    np.save(tmp_path / "lab" / "sub-1.npy", (20_000 + rng.normal(size=(90, 6))).astype("float32"))
    made = build_store(source, tmp_path / "out", dtype="float16", progress=False)
    row = made.exclusions.set_index("participant_id").loc["sub-1"]
    assert row["reason"] == "dead-rois" and "after rounding to float16" in row["detail"]


def test_values_beyond_float16_stop_the_build_and_leave_nothing(tmp_path):
    source = lab(tmp_path / "lab")
    np.save(tmp_path / "lab" / "sub-2.npy", np.random.default_rng(2).normal(size=(90, 6)) * 1e6)
    with pytest.raises(OpenBrainMassError, match="sub-2 has values up to .* float16"):
        build_store(source, tmp_path / "out", dtype="float16", progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lab"]


def test_files_that_cannot_be_read_stop_the_build_at_its_end_or_are_left_out(tmp_path):
    source = lab(tmp_path / "lab")
    (tmp_path / "lab" / "sub-2.npy").write_bytes(b"torn")
    sentence = r"1 of 5 recordings cannot be read: \(1\) sub-2\.npy cannot be read\. .*--skip-unreadable"
    with pytest.raises(OpenBrainMassError, match=sentence):
        build_store(source, tmp_path / "out", progress=False)
    made = build_store(source, tmp_path / "out", progress=False, skip_unreadable=True)
    row = made.exclusions.set_index("participant_id").loc["sub-2"]
    assert row["reason"] == "unreadable" and row["detail"] == "sub-2.npy cannot be read. Mend it."
    assert row["file"] == "sub-2.npy" and len(made) == 2


def test_what_nobody_foresaw_is_one_line_that_names_the_file(tmp_path):
    source = lab(tmp_path / "lab")
    (tmp_path / "lab" / "sub-2.npy").unlink()
    made = build_store(source, tmp_path / "out", progress=False, skip_unreadable=True)
    detail = made.exclusions.set_index("participant_id").loc["sub-2", "detail"]
    assert detail.startswith("sub-2.npy could not be read, in a way nobody foresaw (FileNotFoundError: ")
    assert "please report" in detail and "\n" not in detail


def test_a_mended_file_is_read_when_the_build_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "CHUNK", 2)
    source = lab(tmp_path / "lab", n_people=9)
    good = (tmp_path / "lab" / "sub-2.npy").read_bytes()
    (tmp_path / "lab" / "sub-2.npy").write_bytes(b"torn")
    with pytest.raises(OpenBrainMassError, match="cannot be read"):
        build_store(source, tmp_path / "out", progress=False)
    (tmp_path / "lab" / "sub-2.npy").write_bytes(good)
    source.read.n_read = 0
    made = build_store(source, tmp_path / "out", progress=False)
    assert len(made) == 6 and "unreadable" not in set(made.exclusions["reason"])
    assert source.read.n_read == 2, "only the chunk of the mended file was read again"


def test_the_tr_is_compared_with_what_files_tell_and_filled_in(tmp_path):
    source = lab(tmp_path / "lab")
    source.recordings.loc[1, "tr"] = np.nan
    told = {"sub-0": {"header of x": 2.0001}, "sub-1": {"header of x": 1.5}, "sub-2": {"header of x": 2.5}}
    source = replace(source, read=Folder(tmp_path / "lab", told))
    made = build_store(source, tmp_path / "out", progress=False)
    assert list(made.recordings["tr"]) == [2.0, 1.5]
    row = made.exclusions.set_index("participant_id").loc["sub-2"]
    assert row["reason"] == "contradicting-tr" and re.search(r"2 s in the tables, 2\.5 s in header of x", row["detail"])


def test_scrambled_rois_are_left_out_where_a_template_is_given(tmp_path):
    from openbrainmass.cohort.simulate import simulate_cohort

    cohort = simulate_cohort(12, 1, 100, 150, seed=3)
    template = simulate_cohort(30, 1, 100, 150, seed=4)
    scrambled = cohort.recordings["recording_id"][3]
    shuffled = np.random.default_rng(0).permutation(100)

    def read(row: Mapping[str, Any]) -> Series:
        bold = cohort.read(row["recording_id"])
        return Series(bold[:, shuffled] if row["recording_id"] == scrambled else bold)

    source = Source("s", cohort.atlas, cohort.recordings, cohort.participants, cohort.exclusions, read)
    made = build_store(source, tmp_path / "out", progress=False, template=template)
    assert list(made.exclusions["recording_id"]) == [scrambled]
    assert list(made.exclusions["reason"]) == ["wrong-roi-order"]


def test_scans_of_another_store_are_left_out(cohort, tmp_path):
    other = save_cohort(cohort.select(range(4)), tmp_path / "other")
    made = build_store(cohort, tmp_path / "out", progress=False, against=[other])
    assert list(made.exclusions["reason"]) == ["seen-elsewhere"] * 4 and len(made) == 20
    without = cohort.select(range(4))
    assert without.fingerprints is None
    again = build_store(cohort, tmp_path / "again", progress=False, against=[without])
    assert len(again) == 20
    toy = save_cohort(load_cohort(tmp_path / "other"), tmp_path / "toy")
    toy.atlas = SIX
    with pytest.raises(OpenBrainMassError, match="stores of the same atlas"):
        build_store(cohort, tmp_path / "third", against=[toy])


def test_nothing_left_names_the_reasons_and_leaves_nothing(tmp_path):
    source = lab(tmp_path / "lab")
    with pytest.raises(OpenBrainMassError, match=r"No recording of lab is left: .*5 too-short.*such as .* needed"):
        build_store(source, tmp_path / "out", QualitySettings(min_seconds=999), progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lab"]


def test_repeated_ids_are_refused(tmp_path):
    source = lab(tmp_path / "lab")
    source.recordings["recording_id"] = "same"
    with pytest.raises(OpenBrainMassError, match="more than one recording same"):
        build_store(source, tmp_path / "out")


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


def test_stopped_at_any_write_it_goes_on_to_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "CHUNK", 4)
    source = lab(tmp_path / "lab", n_people=8)
    build_store(source, tmp_path / "alone", progress=False)
    alone = contents(tmp_path / "alone")
    calls = {"n": 0, "last": 10**9}
    for name in ("replace", "link"):
        real = getattr(os, name)

        def dying(*args: Any, real: Any = real) -> None:
            calls["n"] += 1
            if calls["n"] > calls["last"]:
                raise Killed
            real(*args)

        monkeypatch.setattr(durable.os, name, dying)
    finished = False
    last = 0
    while not finished:
        out = tmp_path / f"killed{last}"
        calls.update(n=0, last=last)
        try:
            build_store(source, out, progress=False)
            finished = True
        except Killed:
            calls["last"] = 10**9
            with pytest.raises(OpenBrainMassError, match="is not built yet.*Run the same command again|does not exist"):
                load_cohort(out)
            build_store(source, out, progress=False)
        assert contents(out) == alone
        last += 1
    assert last > 15, "every write was a moment to die"
    assert not list(tmp_path.glob(".*"))


def test_killed_after_the_store_has_its_name_only_remains_are_removed(tmp_path, monkeypatch):
    source = lab(tmp_path / "lab")
    monkeypatch.setattr(staging.Staging, "remove", lambda self: (_ for _ in ()).throw(Killed()))
    with pytest.raises(Killed):
        build_store(source, tmp_path / "out", progress=False)
    monkeypatch.undo()
    assert len(load_cohort(tmp_path / "out")) == 3
    source.read.n_read = 0
    assert len(build_store(source, tmp_path / "out", progress=False)) == 3
    assert source.read.n_read == 0 and not list(tmp_path.glob(".*"))
    with pytest.raises(OpenBrainMassError, match="exists already"):
        build_store(source, tmp_path / "out")


def interrupted(source: Source, out: Path, monkeypatch: pytest.MonkeyPatch, after: int = 2) -> None:
    """Build until some parts are there, then stop."""
    written = []

    def write(*args: Any) -> None:
        if len(written) == after:
            raise KeyboardInterrupt
        written.append(args)
        staging.write_part(*args)

    with monkeypatch.context() as patch:
        patch.setattr(parts, "write_part", write)
        with pytest.raises(KeyboardInterrupt):
            build_store(source, out, progress=False)


def test_an_unfinished_build_says_so_when_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "CHUNK", 2)
    interrupted(lab(tmp_path / "lab", n_people=11), tmp_path / "out", monkeypatch)
    with pytest.raises(OpenBrainMassError, match=r"out is not built yet: 2 of 5 parts .*Run the same command again"):
        load_cohort(tmp_path / "out")


def test_a_build_goes_on_where_it_stopped_or_starts_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "CHUNK", 2)
    source = lab(tmp_path / "lab", n_people=11)
    for resume, n_read in ((True, 6), (False, 10)):
        out = tmp_path / f"out{resume}"
        interrupted(source, out, monkeypatch)
        source.read.n_read = 0
        assert len(build_store(source, out, progress=False, resume=resume)) == 8
        assert source.read.n_read == n_read


def test_a_changed_file_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "CHUNK", 2)
    source = lab(tmp_path / "lab", n_people=11)
    interrupted(source, tmp_path / "out", monkeypatch)
    other = np.random.default_rng(77).normal(size=(91, 6)).astype("float32")
    np.save(tmp_path / "lab" / "sub-0.npy", other)
    made = build_store(source, tmp_path / "out", progress=False)
    assert np.array_equal(made[0], other)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"dtype": "float16"}, r"dtype was auto and is float16"),
        ({"quality": QualitySettings(min_seconds=60)}, r"quality\.min_seconds was 120\.0 and is 60\.0"),
        ({}, r"n_recordings was 10 and is 9; recording_ids was"),
    ],
)
def test_another_build_is_told_what_differs(tmp_path, monkeypatch, change, sentence):
    monkeypatch.setattr(build, "CHUNK", 2)
    source = lab(tmp_path / "lab", n_people=11)
    interrupted(source, tmp_path / "out", monkeypatch)
    other = source if change else replace(source, recordings=source.recordings[1:])
    with pytest.raises(
        OpenBrainMassError, match=rf"{sentence}.*earlier command again.*remove .*incomplete to start anew"
    ):
        build_store(other, tmp_path / "out", progress=False, **change)
    assert len(build_store(other, tmp_path / "out", progress=False, resume=False, **change)) > 6


def test_an_unfinished_build_is_not_overwritten(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "CHUNK", 2)
    interrupted(lab(tmp_path / "lab", n_people=11), tmp_path / "out", monkeypatch)
    with pytest.raises(OpenBrainMassError, match="dataset was lab and is simulated"):
        save_cohort(cohort, tmp_path / "out")
    for name in ("a", "b"):
        save_cohort(cohort.select([ord(name) - ord("a")]), tmp_path / name)
    with pytest.raises(OpenBrainMassError, match=r"not built yet.*Or name another output"):
        merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "out")


def test_two_builders_of_one_store_are_refused(tmp_path):
    source = lab(tmp_path / "lab")
    _, _, held = build._prepared(source, tmp_path / "out", QualitySettings(), "auto", None, ())
    with (
        staging.held_staging(held),
        pytest.raises(OpenBrainMassError, match="Another process is building .*out at this moment"),
    ):
        build_store(source, tmp_path / "out", progress=False)
    assert len(build_store(source, tmp_path / "out", progress=False)) == 3


@pytest.mark.slow
def test_processes_change_nothing(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "CHUNK", 5)
    build_store(cohort, tmp_path / "one", progress=False)
    build_store(cohort, tmp_path / "two", progress=False, jobs=2)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


class Suicide:
    """Kills the process that reads."""

    def __call__(self, row: Mapping[str, Any]) -> Series:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError(row)


def test_a_killed_worker_is_a_sentence(cohort, tmp_path):
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    source = Source("s", cohort.atlas, cohort.recordings, cohort.participants, cohort.exclusions, Suicide())
    with pytest.raises(OpenBrainMassError, match=r"was killed, probably because memory ran out.*--jobs"):
        build_store(source, tmp_path / "out", progress=False, jobs=2)


def test_progress_goes_to_standard_error(tmp_path, capsys):
    build_store(lab(tmp_path / "lab"), tmp_path / "out")
    said = capsys.readouterr()
    assert not said.out and "5/5" in said.err and "1 left out" in said.err


CHILD = """
import sys
from openbrainmass.cohort import build
from openbrainmass.cohort.simulate import simulate_cohort
build.CHUNK = 2
print("ready", flush=True)
build.build_store(simulate_cohort(24, 2, 21, 80), sys.argv[1], progress=False)
"""


@pytest.mark.slow
def test_killed_for_real_it_goes_on(cohort, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "CHUNK", 2)
    build_store(cohort, tmp_path / "alone", progress=False)
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", CHILD, tmp_path / "out"], stdout=subprocess.PIPE)
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        time.sleep(0.15)
        process.kill()
        process.wait()
    if not (tmp_path / "out").exists():
        build_store(cohort, tmp_path / "out", progress=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")


@pytest.mark.parametrize("cluster", ["debug", pytest.param("local", marks=pytest.mark.slow)])
def test_cluster_jobs_build_the_same_store(cohort, tmp_path, monkeypatch, cluster):
    pytest.importorskip("submitit")
    monkeypatch.setattr(build, "_POLL_SECONDS", 0.1)
    monkeypatch.setattr(build, "CHUNK", 7)
    build_store(cohort, tmp_path / "alone", progress=False)
    submit_build(cohort, tmp_path / "out", "none", progress=False, jobs=2, cluster=cluster)
    assert contents(tmp_path / "out") == contents(tmp_path / "alone")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alone", "out"]


def test_a_task_that_cannot_read_tells_why(tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setattr(build, "_POLL_SECONDS", 0.1)
    source = lab(tmp_path / "lab")
    write_text(tmp_path / "lab" / "sub-2.npy", "torn")
    with pytest.raises(OpenBrainMassError, match="cannot be read"):
        submit_build(source, tmp_path / "out", "none", progress=False, cluster="debug")


def test_a_missing_submitit_or_slurm_is_a_sentence(cohort, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(OpenBrainMassError, match=r"openbrainmass\[slurm\]"):
        submit_build(cohort, tmp_path / "out", "main")
    monkeypatch.undo()
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(OpenBrainMassError, match="No job can be submitted from here"):
        submit_build(cohort, tmp_path / "out", "main")


EXPECTED = {"abide1_cc200": (785, 785), "cni_cc200": (240, 240), "hcp_dk68": (60, 30)}


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_real_cohorts(data_dir, tmp_path, name):
    from openbrainmass.cohort.layouts.read import read_source

    made = build_store(read_source(data_dir / name), tmp_path / "out", progress=False)
    assert (len(made), len(made.participants)) == EXPECTED[name]
    if name != "abide1_cc200":
        assert made.exclusions.empty
        return
    assert reasons(made.exclusions) == {
        "sub-0050286": "duplicate",
        "sub-0050578": "contradicting-duplicate",
        "sub-0050602": "contradicting-duplicate",
        "sub-0051469": "dead-rois",
        "sub-0051478": "dead-rois",
    }
