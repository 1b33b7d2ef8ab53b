from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from openbrainmass import durable
from openbrainmass.errors import OpenBrainMassError


@pytest.fixture
def blocked(tmp_path: Path) -> Path:
    """A path that nobody can write to, not even root: its parent is a file."""
    (tmp_path / "file").write_text("in the way")
    return tmp_path / "file" / "below"


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def failing_rename(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable.os, "replace", refuse)


def test_two_processes_do_not_write_one_folder(tmp_path):
    with durable.new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("mine")
        with (
            pytest.raises(OpenBrainMassError, match=r"Another process is writing .*out"),
            durable.new_folder(tmp_path / "out"),
        ):
            pass
    assert (tmp_path / "out" / "a").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_make_folder_makes_parents_and_leaves_no_trace(tmp_path: Path) -> None:
    assert durable.make_folder(tmp_path / "a" / "b") == tmp_path / "a" / "b"
    assert _names(tmp_path / "a" / "b") == []


@pytest.mark.parametrize(
    "write",
    [
        durable.make_folder,
        lambda path: durable.write_bytes(path, b"x"),
        lambda path: durable.write_json(path, {}),
        lambda path: durable.write_tsv(path, pd.DataFrame({"a": [1]})),
        lambda path: durable.write_tensors(path, {"a": np.zeros(2)}),
        lambda path: durable.append_json_line(path, {}),
    ],
)
def test_an_unwritable_place_is_one_sentence_that_names_it(blocked: Path, write) -> None:
    with pytest.raises(OpenBrainMassError, match=r"Cannot write .*below.*choose another output"):
        write(blocked)


def test_bytes_replace_what_was_there_and_can_be_read_by_others(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.bin"
    durable.write_bytes(target, b"old")
    durable.write_bytes(target, b"new")
    assert target.read_bytes() == b"new"
    assert target.stat().st_mode & 0o777 == 0o644
    assert _names(tmp_path / "new") == ["a.bin"]


@pytest.mark.usefixtures("failing_rename")
def test_a_write_that_fails_keeps_the_old_content_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("old")
    with pytest.raises(OpenBrainMassError, match="No space left on device"):
        durable.write_json(tmp_path / "a.json", {"new": 1})
    assert (tmp_path / "a.json").read_text() == "old"
    assert _names(tmp_path) == ["a.json"]


def test_new_file_takes_its_name_only_when_the_block_ends_well(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), durable.new_file(tmp_path / "a") as handle:
        handle.write(b"half")
        raise RuntimeError
    assert _names(tmp_path) == []
    with durable.new_file(tmp_path / "a") as handle:
        handle.write(b"first ")
        assert not (tmp_path / "a").exists()
        handle.write(b"second")
    assert (tmp_path / "a").read_bytes() == b"first second"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(value=json_values)
def test_json_comes_back_as_it_went(tmp_path_factory: pytest.TempPathFactory, value) -> None:
    path = tmp_path_factory.mktemp("json") / "value.json"
    durable.write_json(path, value)
    assert durable.read_json(path) == value


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path: Path) -> None:
    durable.write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="JSON compliant"):
        durable.write_json(tmp_path / "a.json", float("nan"))
    assert durable.read_json(tmp_path / "a.json") == 1


def test_missing_and_torn_json_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(OpenBrainMassError, match=r"none\.json does not exist"):
        durable.read_json(tmp_path / "none.json")
    (tmp_path / "torn.json").write_text('{"a": ')
    with pytest.raises(OpenBrainMassError, match=r"torn\.json is not readable JSON"):
        durable.read_json(tmp_path / "torn.json")


def test_a_log_survives_a_torn_last_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in range(3):
        durable.append_json_line(path, {"step": step})
    with path.open("a") as handle:
        handle.write('{"step": 3, "lo')
    assert [record["step"] for record in durable.read_json_lines(path)] == [0, 1, 2]


def test_a_log_damaged_in_the_middle_is_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"ste\n{"step": 2}\n')
    with pytest.raises(OpenBrainMassError, match="line 2 is not JSON"):
        durable.read_json_lines(path)


def test_tables_keep_ids_as_text_and_numbers_as_numbers(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "participant_id": ["0050003", "0050004"],
            "session": ["01", None],
            "model": ["01", "1"],
            "protocol": ["1", "2"],
            "dx": ["1", "control"],
            "age": [10.1, np.nan],
            "scans": [1, 2],
            "note": [None, None],
        }
    )
    durable.write_tsv(tmp_path / "t.tsv", table)
    assert (tmp_path / "t.tsv").read_text().splitlines()[2] == "0050004\tn/a\t1\t2\tcontrol\tn/a\t2\tn/a"
    read = durable.read_tsv(tmp_path / "t.tsv")
    assert list(read["participant_id"]) == ["0050003", "0050004"]
    assert list(read["session"].dropna()) == ["01"]
    assert list(read["model"]) == ["01", "1"] and list(read["protocol"]) == ["1", "2"]
    assert list(read["dx"]) == ["1", "control"]
    assert pd.api.types.is_float_dtype(read["age"])
    assert np.isnan(read["age"][1])
    assert pd.api.types.is_integer_dtype(read["scans"])
    assert read["note"].isna().all()


def test_only_n_a_and_nothing_are_missing(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("dx\tNA\nNA\tnone\nn/a\t\n")
    read = durable.read_tsv(tmp_path / "t.tsv")
    assert read["dx"][0] == "NA"
    assert pd.isna(read["dx"][1])
    assert list(read["NA"].dropna()) == ["none"]


def test_a_byte_order_mark_and_blanks_in_the_header_do_not_matter(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_bytes("\ufeffparticipant_id\t age \nsub-01\t3\n".encode())
    assert list(durable.read_tsv(tmp_path / "t.tsv").columns) == ["participant_id", "age"]


@given(numbers=st.lists(st.floats(allow_nan=False, width=64), min_size=1, max_size=5))
def test_floats_keep_every_digit(tmp_path_factory: pytest.TempPathFactory, numbers: list[float]) -> None:
    path = tmp_path_factory.mktemp("tsv") / "t.tsv"
    durable.write_tsv(path, pd.DataFrame({"x": numbers}))
    # pandas' own parser may be off in the last digit, the text in the file may not.
    assert [float(line) for line in path.read_text().splitlines()[1:]] == numbers
    np.testing.assert_allclose(durable.read_tsv(path)["x"].astype(float), numbers, rtol=1e-15)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"", "not a readable"), (b"a\tb\n\xff\xfe\t1\n", "not a readable"), (None, "does not exist")],
)
def test_what_is_no_table_is_a_sentence(tmp_path: Path, content: bytes | None, complaint: str) -> None:
    if content is not None:
        (tmp_path / "t.tsv").write_bytes(content)
    with pytest.raises(OpenBrainMassError, match=complaint):
        durable.read_tsv(tmp_path / "t.tsv")


@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_tensors_come_back_and_the_checksum_is_the_files(tmp_path: Path, kind: str) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensors = {"a": values if kind == "numpy" else torch.from_numpy(values)}
    digest = durable.write_tensors(tmp_path / "t.safetensors", tensors, {"step": "7"})
    assert digest == durable.sha256_file(tmp_path / "t.safetensors")
    with safe_open(tmp_path / "t.safetensors", framework="numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("a"), values)
        assert file.metadata() == {"step": "7"}


def test_a_transposed_array_is_stored_as_it_reads(tmp_path: Path) -> None:
    values = np.arange(6, dtype=np.float32).reshape(2, 3).T
    durable.write_tensors(tmp_path / "t.safetensors", {"a": values})
    with safe_open(tmp_path / "t.safetensors", framework="numpy") as file:
        np.testing.assert_array_equal(file.get_tensor("a"), values)


def test_an_empty_set_of_tensors_is_a_file_without_any(tmp_path: Path) -> None:
    durable.write_tensors(tmp_path / "t.safetensors", {})
    with safe_open(tmp_path / "t.safetensors", framework="numpy") as file:
        assert list(file.keys()) == []


def test_one_flipped_bit_changes_the_checksum(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    data = bytearray(os.urandom((1 << 20) + 5))
    path.write_bytes(data)
    before = durable.sha256_file(path)
    data[1 << 20] ^= 1
    path.write_bytes(data)
    assert durable.sha256_file(path) != before


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    with durable.new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        assert not (tmp_path / "out").exists()
    assert _names(tmp_path) == ["out"]
    assert _names(tmp_path / "out") == ["a"]


def test_an_empty_folder_may_be_filled_but_a_full_one_is_kept(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with durable.new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
    with pytest.raises(OpenBrainMassError, match="exists already"), durable.new_folder(tmp_path / "out"):
        pytest.fail("the block must not run")
    assert _names(tmp_path / "out") == ["a"]


def test_replace_swaps_the_whole_folder(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("1")
    with durable.new_folder(tmp_path / "out", replace=True) as folder:
        (folder / "new").write_text("2")
    assert _names(tmp_path / "out") == ["new"]
    assert _names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [RuntimeError("no"), FileNotFoundError("the source, not the output")])
def test_a_failed_block_leaves_nothing_and_its_error_stays_itself(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)) as raised, durable.new_folder(tmp_path / "out") as folder:
        (folder / "a").write_text("1")
        raise error
    assert raised.value is error
    assert _names(tmp_path) == []


@pytest.mark.usefixtures("failing_rename")
def test_a_folder_that_cannot_take_its_name_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(OpenBrainMassError, match="No space left"), durable.new_folder(tmp_path / "out"):
        pass
    assert _names(tmp_path) == []


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / ".out.incomplete").mkdir()
    (tmp_path / ".out.incomplete" / "stale").write_text("1")
    with durable.new_folder(tmp_path / "out") as folder:
        assert _names(folder) == []
    assert _names(tmp_path) == ["out"]


def test_a_kill_in_the_middle_leaves_the_old_folder_whole(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("1")
    program = (
        "import os, signal, sys\n"
        "from openbrainmass.durable import new_folder\n"
        "with new_folder(sys.argv[1], replace=True) as folder:\n"
        "    (folder / 'new').write_text('2')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program, str(tmp_path / "out")], check=False)
    assert ended.returncode == -signal.SIGKILL
    assert _names(tmp_path / "out") == ["old"]


def test_json_is_written_for_people_too(tmp_path: Path) -> None:
    durable.write_json(tmp_path / "a.json", {"name": "Zürich"})
    text = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert text == '{\n  "name": "Zürich"\n}\n'
    assert json.loads(text) == {"name": "Zürich"}


cells = st.one_of(
    st.none(), st.integers(-9, 9), st.floats(width=32), st.booleans(), st.text("ab\t\"'\n é", min_size=1, max_size=4)
)


@given(rows=st.lists(st.fixed_dictionaries({}, optional={"a": cells, "b": cells}), min_size=1, max_size=4))
def test_rows_are_written_as_their_table_would_be(tmp_path_factory: pytest.TempPathFactory, rows: list[dict]) -> None:
    folder = tmp_path_factory.mktemp("rows")
    table = pd.DataFrame([[row.get("a"), row.get("b")] for row in rows], columns=["a", "b"], dtype=object)
    durable.write_rows(folder / "rows.tsv", ["a", "b"], iter(rows))
    durable.write_tsv(folder / "table.tsv", table)
    assert (folder / "rows.tsv").read_bytes() == (folder / "table.tsv").read_bytes()


def test_rows_that_fail_half_way_leave_nothing(tmp_path: Path) -> None:
    def rows():
        yield {"a": 1}
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        durable.write_rows(tmp_path / "a.tsv", ["a"], rows())
    assert _names(tmp_path) == []


def test_a_long_table_reads_as_a_short_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pd.DataFrame(
        {
            "participant_id": [f"00{i}" for i in range(9)],
            "whole": range(9),
            "gap": [1, 2, 3, 4, None, 6, 7, 8, 9],
            "late_word": [*map(str, range(8)), "x"],
            "early_word": ["x", *map(str, range(8))],
            "late_gap": [*range(8), None],
            "empty": None,
            "half": [None] * 5 + [0.5] * 4,
        }
    )
    durable.write_tsv(tmp_path / "a.tsv", table)
    short = durable.read_tsv(tmp_path / "a.tsv")
    monkeypatch.setattr(durable, "_ROWS_AT_ONCE", 2)
    monkeypatch.setattr(durable, "_FEW_WORDS", 3)
    long = durable.read_tsv(tmp_path / "a.tsv")
    pd.testing.assert_frame_equal(long, short)
    assert list(long["late_word"]) == list(table["late_word"]) and long["whole"].dtype == np.int64
    assert list(long["participant_id"]) == list(table["participant_id"])


def test_a_table_without_rows_has_its_columns(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("a\tb\n")
    assert list(durable.read_tsv(tmp_path / "a.tsv").columns) == ["a", "b"]


def test_a_linked_file_has_two_names_and_is_copied_where_links_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").write_bytes(b"x" * 3_000_000)
    durable.link_file(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").samefile(tmp_path / "a")

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(durable.os, "link", refuse)
    durable.link_file(tmp_path / "a", tmp_path / "c")
    assert not (tmp_path / "c").samefile(tmp_path / "a")
    assert (tmp_path / "c").read_bytes() == (tmp_path / "a").read_bytes()


def test_a_lock_keeps_others_out_and_shared_ones_let_each_other_in(tmp_path: Path) -> None:
    with durable.lock(tmp_path / "lock", "busy here"):
        for shared in (False, True):
            with (
                pytest.raises(OpenBrainMassError, match="busy here"),
                durable.lock(tmp_path / "lock", "busy here", shared=shared),
            ):
                pass
    with (
        durable.lock(tmp_path / "lock", "busy", shared=True),
        durable.lock(tmp_path / "lock", "busy", shared=True),
        pytest.raises(OpenBrainMassError, match="busy"),
        durable.lock(tmp_path / "lock", "busy"),
    ):
        pass
    with durable.lock(tmp_path / "lock", "busy"):
        pass


def test_a_lock_dies_with_its_process(tmp_path: Path) -> None:
    program = (
        "import sys, time\n"
        "from openbrainmass.durable import lock\n"
        "with lock(sys.argv[1], 'busy'):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "lock")], stdout=subprocess.PIPE)
    assert process.stdout is not None and process.stdout.readline() == b"held\n"
    with pytest.raises(OpenBrainMassError, match="busy"), durable.lock(tmp_path / "lock", "busy"):
        pass
    process.kill()
    process.wait()
    with durable.lock(tmp_path / "lock", "busy"):
        pass


def test_a_lock_whose_file_its_holder_removed_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, real, opened = tmp_path / "lock", os.open, []

    def open_and_lose(*args: object) -> int:
        descriptor = real(*args)
        if not opened:
            path.unlink()
        opened.append(descriptor)
        return descriptor

    monkeypatch.setattr(durable.os, "open", open_and_lose)
    with durable.lock(path, "busy"):
        assert path.exists() and len(opened) == 2


def test_an_error_while_a_lock_is_held_stays_itself(tmp_path: Path) -> None:
    with pytest.raises(BlockingIOError, match="other"), durable.lock(tmp_path / "lock", "busy"):
        raise BlockingIOError("other")
    with durable.lock(tmp_path / "lock", "busy"):
        pass


def test_a_lock_that_cannot_be_made_is_a_sentence(blocked: Path) -> None:
    with pytest.raises(OpenBrainMassError, match=r"Cannot write .*below"), durable.lock(blocked, "busy"):
        pass
