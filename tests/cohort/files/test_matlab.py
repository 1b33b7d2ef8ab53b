"""Matlab files: what is read, and what is refused in one line."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.io import savemat

from openbrainmass.cohort.files.matlab import (
    read_conn,
    read_conn_conditions,
    read_conn_names,
    read_conn_tr,
    read_matlab,
)
from openbrainmass.errors import OpenBrainMassError


def bold(n_volumes=20, n_rois=5, seed=0):
    return np.random.default_rng(seed).standard_normal((n_volumes, n_rois))


def cells(*values):
    row = np.empty((1, len(values)), dtype=object)
    for i, value in enumerate(values):
        row[0, i] = value
    return row


def conn_content(series, names, xyz=None, weights=None):
    content = {"data": cells(*series), "names": cells(*names)}
    content["xyz"] = cells(*(xyz or [np.zeros((1, 3))] * len(names)))
    if weights is not None:
        content["conditionweights"] = cells(*[np.asarray(weights, dtype=float)[:, None]] * 5)
    return content


def refusal(reader, path, *args):
    with pytest.raises(OpenBrainMassError) as caught:
        reader(path, *args)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize(("version", "compressed"), [("4", False), ("5", False), ("5", True)])
@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int16])
def test_versions_and_types(tmp_path, version, compressed, dtype):
    values = (bold() * 100).astype(dtype)
    savemat(tmp_path / "scan.mat", {"ROISignals": values}, format=version, do_compression=compressed)
    read = read_matlab(tmp_path / "scan.mat")
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values.astype(np.float32))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    values=arrays(
        np.float32,
        st.tuples(st.integers(2, 12), st.integers(2, 9)),
        elements=st.floats(width=32, allow_infinity=False),
    )
)
def test_what_matlab_saves_comes_back(tmp_path, values):
    savemat(tmp_path / "scan.mat", {"x": values}, do_compression=True)
    np.testing.assert_array_equal(read_matlab(tmp_path / "scan.mat"), values)


def test_scalars_and_vectors_beside_the_matrix_do_not_count(tmp_path):
    savemat(tmp_path / "scan.mat", {"x": bold(), "TR": 2.0, "fd": bold(20, 1), "name": "text"})
    np.testing.assert_array_equal(read_matlab(tmp_path / "scan.mat"), bold().astype(np.float32))


def test_one_of_several_is_named(tmp_path):
    savemat(tmp_path / "scan.mat", {"raw": bold(), "clean": bold(seed=1)})
    message = refusal(read_matlab, tmp_path / "scan.mat")
    assert "2 matrices" in message
    assert "raw 20x5 double" in message and "clean" in message
    np.testing.assert_array_equal(read_matlab(tmp_path / "scan.mat", "clean"), bold(seed=1).astype(np.float32))
    assert "no variable other" in refusal(read_matlab, tmp_path / "scan.mat", "other")


@pytest.mark.parametrize(
    "content",
    [
        {"x": "text"},
        {"x": cells(bold(), bold())},
        {"x": {"y": bold()}},
        {"x": np.zeros((3, 4, 5))},
        {"x": 3.0},
        {},
    ],
)
def test_a_file_without_a_matrix(tmp_path, content):
    savemat(tmp_path / "scan.mat", content)
    assert "no matrices" in refusal(read_matlab, tmp_path / "scan.mat")


@pytest.mark.parametrize("value", [bold() + 1j, "text", cells(1.0, 2.0), np.zeros((2, 3, 4))])
def test_a_named_variable_that_is_no_matrix(tmp_path, value):
    savemat(tmp_path / "scan.mat", {"x": value})
    assert "no matrix of real numbers" in refusal(read_matlab, tmp_path / "scan.mat", "x")


def test_hdf5_is_recognised(tmp_path):
    header = b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + struct.pack("<H", 0x0200) + b"IM"
    (tmp_path / "matlab.mat").write_bytes(header.ljust(512, b"\0") + b"\x89HDF\r\n\x1a\n" + bytes(100))
    (tmp_path / "plain.mat").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(600))
    for name in ("matlab.mat", "plain.mat"):
        assert "'-v7'" in refusal(read_matlab, tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"short", b"# Created by Octave 8\n" * 20, bytes(range(256)) * 3])
def test_a_file_that_is_no_matlab_file(tmp_path, content):
    (tmp_path / "scan.mat").write_bytes(content)
    assert "does not begin as Matlab files do" in refusal(read_matlab, tmp_path / "scan.mat")


def test_a_missing_file_and_a_folder(tmp_path):
    assert "does not exist" in refusal(read_matlab, tmp_path / "scan.mat")
    assert "cannot be read" in refusal(read_matlab, tmp_path)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_torn_file_says_how_much_is_missing(tmp_path, compressed):
    savemat(tmp_path / "scan.mat", {"x": bold(200, 50)}, do_compression=compressed)
    data = (tmp_path / "scan.mat").read_bytes()
    (tmp_path / "scan.mat").write_bytes(data[: len(data) // 2])
    message = refusal(read_matlab, tmp_path / "scan.mat")
    assert f"{len(data):,} bytes expected, {len(data) // 2:,} found" in message


def test_flipped_bits_in_compressed_data_never_pass(tmp_path):
    savemat(tmp_path / "scan.mat", {"x": bold(60, 20)}, do_compression=True)
    data = (tmp_path / "scan.mat").read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(136, len(data), 40):
        torn = bytearray(data)
        torn[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "scan.mat").write_bytes(bytes(torn))
        refusal(read_matlab, tmp_path / "scan.mat")


def packed(*variables):
    """A file of compressed variables."""
    header = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack("<H", 0x0100) + b"IM"
    return header + b"".join(struct.pack("<2I", 15, len(v)) + v for v in map(zlib.compress, variables))


def variable(name=b"bold", shape=(4, 5), length=1000, kind=6, tags=(6, 5)):
    start = struct.pack("<8I", 14, length, tags[0], 8, kind, 0, tags[1], 8) + struct.pack("<2i", *shape)
    return start + struct.pack("<2I", 1, len(name)) + name.ljust(8, b"\0") + bytes(500)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (variable(length=3 << 30), "bold would take 3,072 MiB"),
        (variable(shape=(1 << 14, 1 << 14)), "bold would take 2,048 MiB"),
        (variable(shape=(1 << 14, 1 << 16), kind=7), "bold would take 4,096 MiB"),
        (variable(shape=(1 << 15, 1 << 15), kind=1), "bold would take 8,192 MiB"),
        (variable(shape=(-4, 5)), "broken header"),
        (variable(tags=(5, 5)), "broken header"),
        (variable(tags=(6, 6)), "broken header"),
        (b"short", "broken header"),
    ],
)
def test_headers_that_lie(tmp_path, content, words):
    (tmp_path / "scan.mat").write_bytes(packed(content))
    assert words in refusal(read_matlab, tmp_path / "scan.mat")


def test_a_large_variable_beside_the_one_that_is_read_does_no_harm(tmp_path):
    savemat(tmp_path / "scan.mat", {"ROISignals": bold()}, do_compression=True)
    whole = (tmp_path / "scan.mat").read_bytes()
    (tmp_path / "scan.mat").write_bytes(whole + packed(variable(name=b"other", length=3 << 30))[128:])
    assert read_matlab(tmp_path / "scan.mat", "ROISignals").shape == (20, 5)
    assert "other would take" in refusal(read_matlab, tmp_path / "scan.mat")


NAMES = ["Grey Matter", "White Matter", "CSF", "atlas.A", "atlas.B", "networks.C", "Effect of rest"]


def conn_series(n_volumes=12):
    values = bold(n_volumes, 8)
    return [
        values[:, :1],
        values[:, 1:3],
        values[:, 2:5],
        *(values[:, i : i + 1] for i in (3, 4, 5)),
        np.ones((n_volumes, 1)),
    ]


def test_conn_keeps_rois_only(tmp_path):
    xyz = [np.zeros((1, 3))] * 6 + [np.full((1, 3), np.nan)]
    savemat(tmp_path / "roi.mat", conn_content(conn_series(), NAMES, xyz, weights=np.arange(12) > 3))
    content = read_conn(tmp_path / "roi.mat")
    assert content["names"] == ["atlas.A", "atlas.B", "networks.C"] == read_conn_names(tmp_path / "roi.mat")
    np.testing.assert_array_equal(content["bold"], bold(12, 8)[:, 3:6].astype(np.float32))
    np.testing.assert_array_equal(content["weights"] > 0, np.arange(12) > 3)


def test_conn_without_weights_and_without_places(tmp_path):
    content = conn_content(conn_series(), NAMES)
    del content["xyz"]
    savemat(tmp_path / "roi.mat", content)
    read = read_conn(tmp_path / "roi.mat")
    assert read["names"] == ["atlas.A", "atlas.B", "networks.C"]
    assert read["weights"] is None


def test_conn_takes_the_first_component(tmp_path):
    series = conn_series()
    series[3] = np.column_stack([series[3], np.full((12, 2), 7.0)])
    savemat(tmp_path / "roi.mat", conn_content(series, NAMES))
    np.testing.assert_array_equal(read_conn(tmp_path / "roi.mat")["bold"][:, 0], series[3][:, 0].astype(np.float32))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"data": None}, "no cell array data"),
        ({"names": None}, "no cell array names"),
        ({"data": cells(*conn_series()[:-1])}, "6 cells of data but 7 names"),
        ({"xyz": cells(1.0, 2.0)}, "2 places but 7 names"),
        ({"names": cells("atlas.A", *NAMES[1:])}, "where the three tissues belong"),
        ({"data": cells(*conn_series()[:-2], np.ones((5, 1)), np.ones((12, 1)))}, "different lengths"),
        ({"data": cells(*conn_series()[:-2], "text", np.ones((12, 1)))}, "no numbers"),
        ({"conditionweights": cells(np.ones((3, 1)))}, "3 weights of the condition but 12 volumes"),
        ({"xyz": cells(*[np.full((1, 3), np.nan)] * 7)}, "no ROI behind the three tissues"),
    ],
)
def test_what_conn_would_not_write(tmp_path, change, words):
    content = {**conn_content(conn_series(), NAMES), **change}
    savemat(tmp_path / "roi.mat", {name: value for name, value in content.items() if value is not None})
    assert words in refusal(read_conn, tmp_path / "roi.mat")


def test_conn_project(tmp_path):
    savemat(tmp_path / "conn_x.mat", {"CONN_x": {"Setup": {"RT": 2.5, "nsubjects": 3}}})
    savemat(tmp_path / "each.mat", {"CONN_x": {"Setup": {"RT": np.array([[2.0, 2.5, np.nan]])}}})
    savemat(tmp_path / "sidecars.mat", {"CONN_x": {"Setup": {"RT": np.nan}}})
    savemat(tmp_path / "other.mat", {"x": 1})
    assert read_conn_tr(tmp_path / "conn_x.mat") == [2.5]
    np.testing.assert_array_equal(read_conn_tr(tmp_path / "each.mat"), [2.0, 2.5, np.nan])
    assert read_conn_tr(tmp_path / "sidecars.mat") == []
    assert "no CONN_x.Setup" in refusal(read_conn_tr, tmp_path / "other.mat")


def test_conn_conditions(tmp_path):
    savemat(tmp_path / "_list_conditions.mat", {"allnames": cells("rest", "task one")})
    assert read_conn_conditions(tmp_path / "_list_conditions.mat") == ["rest", "task one"]
