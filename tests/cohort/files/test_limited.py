"""A child process that opens foreign files: its limits, its answers, and what becomes of it."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from openbrainmass.cohort.files import limited, messages
from openbrainmass.cohort.files.limited import in_child
from openbrainmass.errors import OpenBrainMassError

MODULE = """
import ctypes
import os
import time

import numpy as np

from openbrainmass.errors import OpenBrainMassError

IN_CHILD = ("fractions",)


def pid(path):
    return os.getpid()


def echo(path, *values):
    print("chatter that must not get between the answers")
    return {"path": str(path), "values": list(values)}


def preloaded(path):
    import sys

    return "fractions" in sys.modules


def columns(path):
    return np.asfortranarray(np.arange(12.0).reshape(4, 3))


def everything(path):
    return {
        "table": np.arange(6, dtype=">i2").reshape(2, 3),
        "names": np.array(["left", "right"]),
        "sliced": np.arange(10.0)[::3],
        "none": None,
        "number": np.float32(0.5),
        "nested": {"array": "text", "rows": (1, [2, "three"])},
        "empty": np.zeros((0, 4)),
        "scalar": np.array(7),
    }


def ramp(path, length):
    return np.arange(length, dtype=np.float64).reshape(-1, 8).T


def objects(path):
    return np.array([{"a": 1}], dtype=object)


def sentence(path):
    raise OpenBrainMassError(f"{path} is not to my taste. Choose another.")


def fault(path):
    raise ValueError("two\\nlines " + "and much more " * 200)


def lookup(path):
    return {}["intent"]


def crash(path):
    ctypes.string_at(0)


def close(path):
    os.closerange(3, 64)
    time.sleep(60)


def leave(path):
    os._exit(7)


def dawdle(path, seconds):
    time.sleep(seconds)
    return "awake"


def spin(path):
    while True:
        pass


def fill(path, n_bytes):
    return np.empty(n_bytes, dtype=np.uint8).nbytes


_KEPT = []


def lose(path, n_bytes):
    _KEPT.append(np.ones(n_bytes, dtype=np.uint8))
    return os.getpid()
"""


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    """A module of readers that a child can import by name."""
    folder = tmp_path_factory.mktemp("readers")
    (folder / "strange_readers.py").write_text(MODULE)
    sys.path.insert(0, str(folder))
    try:
        import strange_readers

        yield strange_readers
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("strange_readers", None)


def message_of(function, *args, **limits):
    with pytest.raises(OpenBrainMassError) as caught:
        in_child(function, "scan.mat", *args, **limits)
    message = str(caught.value)
    assert "\n" not in message
    assert "scan.mat" in message
    return message


def gone(pid, seconds=10.0):
    """Whether a process has ended (a zombie has)."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_arguments_go_in_and_values_come_out(readers):
    assert in_child(readers.echo, "a/b.mat", 1, "two", [3.5]) == {"path": "a/b.mat", "values": [1, "two", [3.5]]}


def test_arrays_of_every_order_and_type_come_back(readers):
    answer = in_child(readers.everything, "x")
    expected = readers.everything("x")
    for name in ("table", "names", "sliced", "empty", "scalar"):
        np.testing.assert_array_equal(answer[name], expected[name])
        assert answer[name].dtype == expected[name].dtype
    assert answer["nested"] == {"array": "text", "rows": (1, [2, "three"])}
    assert (answer["none"], answer["number"]) == (None, 0.5)
    np.testing.assert_array_equal(in_child(readers.columns, "x"), readers.columns("x"))


def test_a_large_array_comes_back_whole(readers):
    start = time.monotonic()
    values = in_child(readers.ramp, "x", 8 << 20)
    np.testing.assert_array_equal(values, readers.ramp("x", 8 << 20))
    assert time.monotonic() - start < 4


def test_one_child_serves_many_files(readers):
    assert len({in_child(readers.pid, str(i)) for i in range(20)}) == 1


def test_modules_are_imported_before_the_clock_starts(readers):
    assert in_child(readers.preloaded, "x") is True


@pytest.mark.parametrize("name", ["crash", "leave", "close"])
def test_a_crash_costs_one_file_and_a_fresh_child_follows(readers, name):
    before = in_child(readers.pid, "x")
    assert "ended the process" in message_of(getattr(readers, name))
    assert in_child(readers.pid, "x") != before


def test_a_crash_names_the_signal(readers):
    assert "SIGSEGV" in message_of(readers.crash)


@pytest.mark.parametrize(("name", "args", "seconds"), [("spin", (), 0.5), ("dawdle", (60,), 0.1)])
def test_time_is_limited(readers, name, args, seconds):
    assert f"more than {seconds:g} s" in message_of(getattr(readers, name), *args, seconds=seconds)
    assert in_child(readers.dawdle, "x", 0.01) == "awake"


def test_waiting_is_not_computing(readers):
    assert in_child(readers.dawdle, "x", 0.6, seconds=0.3) == "awake"


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not limit memory")
def test_memory_is_limited(readers):
    assert in_child(readers.fill, "x", 100 << 20) == 100 << 20
    assert "more than 64 MiB" in message_of(readers.fill, 100 << 20, extra_bytes=64 << 20)
    assert "more than 512 MiB" in message_of(readers.fill, 600 << 20)
    assert in_child(readers.fill, "x", 600 << 20, extra_bytes=700 << 20) == 600 << 20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="this system does not tell sizes")
def test_a_child_that_loses_memory_is_replaced(readers):
    first = in_child(readers.pid, "x")
    assert in_child(readers.lose, "x", 300 << 20) == first
    assert in_child(readers.pid, "x") != first


def test_our_own_sentences_pass_unchanged(readers):
    assert message_of(readers.sentence) == "scan.mat is not to my taste. Choose another."


def test_other_errors_become_one_short_line(readers):
    message = message_of(readers.fault)
    assert "two lines" in message
    assert len(message) < 600


def test_a_lookup_that_fails_says_more_than_its_key(readers):
    assert "structure is broken, KeyError: 'intent'" in message_of(readers.lookup)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("x.mat", " .mat file"),
        ("x.nii.gz", " .nii.gz file"),
        ("x.y.ptseries.nii", " .ptseries.nii file"),
        ("x", " binary file"),
    ],
)
def test_the_type_that_was_expected_is_named(readers, name, kind):
    with pytest.raises(OpenBrainMassError, match=f"A whole{kind} was expected"):
        in_child(readers.fault, name)


def test_an_array_that_would_need_unpickling_is_refused(readers):
    assert "type object" in message_of(readers.objects)


def test_threads_take_turns(readers):
    answers = {}

    def ask(number):
        answers[number] = in_child(readers.echo, "x", number)["values"]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {i: [i] for i in range(8)}


def test_a_child_killed_between_files_is_replaced(readers):
    os.kill(in_child(readers.pid, "x"), signal.SIGKILL)
    assert in_child(readers.echo, "x", 1)["values"] == [1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_starts_its_own(readers):
    ours = in_child(readers.pid, "x")
    read_end, write_end = os.pipe()
    forked = os.fork()
    if not forked:
        try:
            os.write(write_end, str(in_child(readers.pid, "x")).encode())
            limited._stop()
        finally:
            os._exit(0)
    os.waitpid(forked, 0)
    theirs = int(os.read(read_end, 20))
    os.close(read_end)
    os.close(write_end)
    assert theirs != ours
    assert in_child(readers.pid, "x") == ours


def test_an_interrupted_call_leaves_no_stale_answer(readers, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(limited, "receive_message", interrupted)
        with pytest.raises(KeyboardInterrupt):
            in_child(readers.echo, "x", "stale")
    assert in_child(readers.echo, "x", "fresh")["values"] == ["fresh"]


def test_a_garbled_answer_costs_one_file(readers, monkeypatch):
    first = in_child(readers.pid, "x")
    with monkeypatch.context() as patch:
        patch.setattr(messages, "_KINDS", "")
        assert "garbled" in message_of(readers.columns)
    assert in_child(readers.pid, "x") != first


PARENT = """
import sys, threading, time
sys.path[:] = {path!r}
import strange_readers
from openbrainmass.cohort.files.limited import in_child
print(in_child(strange_readers.pid, "x"), flush=True)
if {busy}:
    threading.Thread(target=in_child, args=(strange_readers.spin, "x"), kwargs={{"seconds": 0.6}}, daemon=True).start()
    time.sleep(0.3)
print("ready", flush=True)
if {wait}:
    time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize(("busy", "wait"), [(False, True), (True, True), (False, False)])
def test_no_child_outlives_its_parent(readers, busy, wait):
    code = textwrap.dedent(PARENT).format(path=sys.path, busy=busy, wait=wait)
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        child = int(parent.stdout.readline())
        assert parent.stdout.readline() == "ready\n"
        assert not wait or not gone(child, seconds=0)
    finally:
        if wait:
            parent.kill()
        parent.wait(timeout=20)
        parent.stdout.close()
    assert gone(child)


def test_processes_of_joblib_have_their_own(readers):
    from joblib import Parallel, delayed

    pids = Parallel(n_jobs=2)(delayed(_pids)(list(sys.path)) for _ in range(2))
    assert all(theirs != ours for ours, theirs in pids)
    assert in_child(readers.pid, "x") not in {theirs for _, theirs in pids}


def _pids(path):
    sys.path[:] = path
    import strange_readers

    return os.getpid(), in_child(strange_readers.pid, "x")


def test_a_reader_that_cannot_be_imported_says_why(readers, tmp_path, monkeypatch):
    (tmp_path / "lacking_reader.py").write_text("IN_CHILD = ('no_such_library',)\n\ndef read(path):\n    return 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import lacking_reader

    assert "No module named 'no_such_library'" in message_of(lacking_reader.read)
    assert in_child(readers.echo, "x", 1)["values"] == [1]


def test_a_child_that_cannot_start_is_said_to(readers, monkeypatch):
    limited._stop()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(OpenBrainMassError, match="cannot be started"):
        in_child(readers.pid, "x")
