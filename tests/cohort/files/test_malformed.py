"""Malformed files of fifteen kinds: each is refused in one line that names it, fast, in little memory, by nobody's crash."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("malformed", Path(__file__).with_name("malformed.py"))
malformed = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(malformed)

SCRIPT = """
import json, resource, sys, time
from pathlib import Path
from openbrainmass.atlas import Atlas
from openbrainmass.cohort.files import limited
from openbrainmass.cohort.files.read import read_file
from openbrainmass.errors import OpenBrainMassError

def peak(who):
    try:
        lines = Path(f"/proc/{who}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0) // 1024

folder = Path(sys.argv[1])
atlas = Atlas("toy", tuple("abcdefghij"), image=folder / "atlas.nii", values=tuple(range(1, 11)))
first = None
for path in sorted(folder.glob("*/*")):
    start = time.monotonic()
    try:
        message = f"READ {path} {read_file(path, atlas).bold.shape}"
        refused = False
    except OpenBrainMassError as error:
        message, refused = str(error), True
    child = limited._HELD.child
    # What reading itself imports is there once; the first files pay for it.
    first = first if first is not None else peak("self")
    print(json.dumps({"file": str(path), "refused": refused, "message": message,
                      "seconds": time.monotonic() - start, "own_mib": peak("self") - first,
                      "child": child.pid if child else None, "child_mib": peak(child.pid) if child else 0}))
"""


def answers(folder, each, kinds=malformed.KINDS):
    """What becomes of the files, read by a process of its own."""
    for kind in kinds:
        for index in range(each):
            malformed.write_malformed(folder, kind, index)
    malformed.write_atlas(folder)
    done = subprocess.run(
        # numpy warns while it multiplies a false header's dimensions; the refusal follows.
        [sys.executable, "-c", SCRIPT, str(folder)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(rows, expected):
    assert len(rows) == expected
    assert [row["message"] for row in rows if not row["refused"]] == []
    for row in rows:
        assert row["file"] in row["message"]
        assert "\n" not in row["message"]
        assert "Traceback" not in row["message"]
        assert len(row["message"]) < 900
    assert max(row["seconds"] for row in rows) <= 5
    assert max(row["own_mib"] for row in rows) <= 512
    assert max(row["child_mib"] for row in rows) <= 512 + 128, "512 MiB beyond what the readers themselves take"
    wait_until_gone({row["child"] for row in rows} - {None})


def wait_until_gone(pids, seconds=10.0):
    end = time.monotonic() + seconds
    while left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < end, f"processes left behind: {left}"
        time.sleep(0.02)


def test_there_are_fifteen_kinds_and_every_file_is_another(tmp_path):
    assert len(malformed.KINDS) == 15
    for kind in malformed.KINDS:
        contents = {malformed.write_malformed(tmp_path, kind, index).read_bytes() for index in range(40)}
        assert len(contents) == 40, kind


@pytest.mark.parametrize("kind", malformed.KINDS)
def test_the_same_number_gives_the_same_file(tmp_path, kind):
    first = malformed.write_malformed(tmp_path / "a", kind, 3)
    again = malformed.write_malformed(tmp_path / "b", kind, 3)
    assert first.relative_to(tmp_path / "a") == again.relative_to(tmp_path / "b")
    assert first.read_bytes() == again.read_bytes()


def test_some_files_of_each_kind(tmp_path):
    check(answers(tmp_path, 3), 45)


@pytest.mark.slow
def test_all_files(tmp_path):
    check(answers(tmp_path, 100), 1500)


@pytest.mark.slow
def test_the_script_writes_a_cohort(tmp_path):
    script = Path(__file__).with_name("malformed.py")
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "--each", "2"], capture_output=True, text=True, check=True
    )
    assert "30 files of 15 kinds" in done.stdout
    header, *lines = (tmp_path / "participants.tsv").read_text().splitlines()
    assert header.split("\t") == ["participant_id", "file"]
    assert len({line.split("\t")[0] for line in lines}) == 30
    assert all((tmp_path / line.split("\t")[1]).is_file() for line in lines)
