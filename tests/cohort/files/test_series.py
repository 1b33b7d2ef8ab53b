"""Files of one recording: what is read, and what is refused in a sentence."""

from __future__ import annotations

import io
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openbrainmass.atlas import Atlas, numbered_atlas
from openbrainmass.cohort.files.series import SUFFIXES, read_parcels, read_series, series_labels
from openbrainmass.errors import OpenBrainMassError

BOLD = np.arange(12, dtype=np.float32).reshape(4, 3) / 7
ROWS = "\n".join(",".join(map(str, row)) for row in BOLD) + "\n"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int16"])
def test_arrays_keep_float16_and_become_float32_otherwise(tmp_path, dtype):
    np.save(tmp_path / "a.npy", (BOLD * 10).astype(dtype))
    values = read_series(tmp_path / "a.npy")
    assert values.dtype == ("float16" if dtype == "float16" else "float32")
    np.testing.assert_allclose(values, (BOLD * 10).astype(dtype), rtol=1e-6)
    assert values.flags.writeable and type(values) is np.ndarray


def test_an_npz_with_one_array_is_read_and_with_two_is_not(tmp_path):
    np.savez_compressed(tmp_path / "one.npz", bold=BOLD)
    np.testing.assert_array_equal(read_series(tmp_path / "one.npz"), BOLD)
    np.savez(tmp_path / "two.npz", a=BOLD, b=BOLD)
    with pytest.raises(OpenBrainMassError, match="holds 2 arrays"):
        read_series(tmp_path / "two.npz")


def test_an_npz_that_unfolds_beyond_measure_is_refused_unread(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "bomb.npz", bold=np.zeros((2000, 50)))
    monkeypatch.setattr("openbrainmass.cohort.files.series._LARGEST_BYTES", 10_000)
    with pytest.raises(OpenBrainMassError, match="less than 10,000 bytes"):
        read_series(tmp_path / "bomb.npz")


@pytest.mark.parametrize("header", ["", "0,1,2\n", "1,2,3\n", "#1,#2,#3\n", '"a","b","c"\n'])
def test_tables_are_read_with_any_header_or_none(tmp_path, header):
    (tmp_path / "a.csv").write_text(header + ROWS)
    np.testing.assert_allclose(read_series(tmp_path / "a.csv"), BOLD, rtol=1e-6)
    (tmp_path / "a.tsv").write_text((header + ROWS).replace(",", "\t"))
    np.testing.assert_allclose(read_series(tmp_path / "a.tsv"), BOLD, rtol=1e-6)


def test_a_first_volume_of_whole_numbers_is_data_unless_it_counts_upwards(tmp_path):
    (tmp_path / "a.csv").write_text("5,3,4\n1,2,2\n")
    assert read_series(tmp_path / "a.csv").shape == (2, 3)
    assert series_labels(tmp_path / "a.csv") is None


def test_a_first_volume_with_missing_values_is_data(tmp_path):
    (tmp_path / "a.csv").write_text("n/a,0.5,0.1\nn/a,1,2\n")
    values = read_series(tmp_path / "a.csv")
    assert values.shape == (2, 3) and np.isnan(values[:, 0]).all() and np.isfinite(values[:, 1:]).all()


def test_an_empty_line_of_a_single_column_is_a_missing_value(tmp_path):
    (tmp_path / "a.csv").write_text("1.5\n\n2.5\n")
    np.testing.assert_array_equal(read_series(tmp_path / "a.csv"), [[1.5], [np.nan], [2.5]])


def test_labelled_columns_go_where_the_atlas_has_them(tmp_path):
    (tmp_path / "a.csv").write_text("c,a,b\n" + ROWS)
    values = read_series(tmp_path / "a.csv", ["a", "b", "missing", "c"])
    np.testing.assert_allclose(values[:, [3, 0, 1]], BOLD, rtol=1e-6)
    assert np.isnan(values[:, 2]).all()
    assert series_labels(tmp_path / "a.csv") == ("c", "a", "b")


def test_numbers_with_gaps_are_labels(tmp_path):
    (tmp_path / "a.csv").write_text("2,4,5\n" + ROWS)
    values = read_series(tmp_path / "a.csv", [str(i) for i in range(1, 6)])
    np.testing.assert_allclose(values[:, [1, 3, 4]], BOLD, rtol=1e-6)
    assert np.isnan(values[:, [0, 2]]).all()


@pytest.mark.parametrize(("header", "said"), [("a,b,zz", "named zz"), ("a,b,b", "alike")])
def test_labels_that_the_atlas_does_not_have_are_an_error(tmp_path, header, said):
    (tmp_path / "a.csv").write_text(header + "\n" + ROWS)
    with pytest.raises(OpenBrainMassError, match=said):
        read_series(tmp_path / "a.csv", ["a", "b", "c"])


def write_truncated(path):
    np.save(path, np.ones((50, 40)))
    path.write_bytes(path.read_bytes()[:-100])


def write_lie(path):
    header = io.BytesIO()
    shape = {"shape": (10**9, 10**4), "fortran_order": False, "descr": "<f8"}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", header.getvalue() + bytes(1000))


@pytest.mark.parametrize(
    ("name", "write", "said"),
    [
        ("missing.npy", lambda path: None, "does not exist"),
        ("a.mat", lambda path: path.write_bytes(b"x"), r"\.mat file"),
        ("nothing", lambda path: path.write_bytes(b"x"), "nameless file"),
        ("cut.npy", write_truncated, "cannot be read"),
        ("no.npy", lambda path: path.write_bytes(b"no array"), "cannot be read"),
        ("no.npz", lambda path: path.write_bytes(b"no archive"), "cannot be read"),
        ("empty.npy", lambda path: path.write_bytes(b""), "cannot be read"),
        ("objects.npy", lambda path: np.save(path, np.array([{}, 1], dtype=object)), "cannot be read"),
        ("text.npy", lambda path: np.save(path, np.array([["a", "b"]])), "values are of type"),
        ("flat.npy", lambda path: np.save(path, np.ones(5)), r"shape \(5,\)"),
        ("none.npy", lambda path: np.save(path, np.ones((0, 5))), r"shape \(0, 5\)"),
        ("word.csv", lambda path: path.write_text("1.5,2,3\n1,x,3\n"), "cannot be read"),
        ("first.csv", lambda path: path.write_text("1.5,x,3\n1,2,3\n"), "first line has 'x' among 2 numbers"),
        ("ragged.csv", lambda path: path.write_text("1.5,2\n1,2,3,4\n"), "cannot be read"),
        ("short.csv", lambda path: path.write_text("a,b\n1,2,3\n1,2,3\n"), "cannot be read"),
        ("blank.tsv", lambda path: path.write_text(""), "cannot be read"),
        ("bytes.csv", lambda path: path.write_bytes(b"\xff\xfe\x00\x81"), "UTF-16 text; save it as UTF-8"),
        ("marked.tsv", lambda path: path.write_text("a\tb\n1\t2\n", encoding="utf-16"), "UTF-16"),
        ("unmarked.tsv", lambda path: path.write_text("a\tb\n1\t2\n", encoding="utf-16-le"), "binary data or UTF-16"),
        ("latin.csv", lambda path: path.write_bytes("Gehörrinde,b\n1,2\n".encode("latin-1")), "not UTF-8 text"),
        ("few.csv", lambda path: path.write_text("1.5,2\n3\n"), "volume 1 has 2 values but volume 2 has 1"),
        ("gap.tsv", lambda path: path.write_text("1.5\t2\n\n1\t2\n"), "volume 2 has 1"),
        ("decimal.csv", lambda path: path.write_text("1,5;2,5\n1,5;2,5\n"), "cannot be read"),
        ("header.tsv", lambda path: path.write_text("a\tb\n"), "it has no volumes"),
        ("comments.1D", lambda path: path.write_text("# nothing\n# here\n"), "it has no volumes"),
        ("noise.1D", lambda path: path.write_bytes(bytes(range(256)) * 9), "binary data"),
        ("line.csv", lambda path: path.write_text("1," * 600_000), "a line of 1,200,000 bytes"),
        ("wide.txt", lambda path: path.write_text("1 " * 20_001), "20,001 values"),
        ("many.tsv", lambda path: path.write_text("1\n" * 1_000_005), "more than 1,000,000 lines"),
        ("huge.csv", lambda path: path.write_text("1e300,2\n1,2\n"), "values beyond 3e38"),
        ("lie.npz", write_lie, r"claims the shape \(1000000000, 10000\)"),
    ],
)
def test_what_is_no_recording_is_refused_in_one_paragraph(tmp_path, name, write, said):
    write(tmp_path / name)
    with pytest.raises(OpenBrainMassError, match=said) as caught:
        read_series(tmp_path / name)
    message = str(caught.value)
    assert str(tmp_path / name) in message and message.isprintable() and len(message) < len(str(tmp_path)) + 400


def test_arrays_have_no_labels(tmp_path):
    np.save(tmp_path / "a.npy", BOLD)
    assert series_labels(tmp_path / "a.npy") is None
    assert series_labels(tmp_path / "missing.csv") is None


def test_a_file_is_too_big_before_it_is_read(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text(ROWS * 10)
    monkeypatch.setattr("openbrainmass.cohort.files.series._LARGEST_TEXT", 100)
    with pytest.raises(OpenBrainMassError, match="less than 100 were expected"):
        read_series(tmp_path / "a.csv")


AFNI = "#1\t#2\t#3\n1\t2\t3\n4\t5\t6\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("abide.1D", AFNI),
        ("abide.txt", AFNI),
        ("SHOUT.1d", AFNI),
        ("commas.tsv", "1.0,2,3\n4,5,6\n"),
        ("SHOUT.TXT", AFNI),
        ("plain.1D", "1.0 2 3\n4 5 6\n"),
        ("blanks.txt", "  1  2.0  3 \r\n  4  5  6 \r\n\r\n"),
        ("commas.1D", "1.0,2,3,\n4,5,6,\n"),
        ("cpac.1D", "# 3dROIstats -mask a.nii b.nii\n#File,Sub-brick\n#Mean_1  ,Mean_2  ,Mean_3\n1,2,3\n4,5,6\n"),
        ("middle.1D", "# a comment of many words\n1.0 2 3\n# another\n4 5 6\n"),
        ("adhd.1D", "File\tSub-brick\tMean_1  \tMean_2  \tMean_3  \t\na b.nii\t0[?]\t1\t2\t3\nc\t1[?]\t4\t5\t6\n"),
    ],
)
def test_afni_and_text_tables_are_read_whatever_separates_their_values(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    np.testing.assert_array_equal(read_series(tmp_path / name), [[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(read_parcels(tmp_path / name, numbered_atlas("x", 3)), [[1, 2, 3], [4, 5, 6]])
    assert series_labels(tmp_path / name) is None


def test_words_above_a_text_table_are_its_labels(tmp_path):
    (tmp_path / "a.txt").write_text("# made today\n# c a b\n1 2 3\n")
    assert series_labels(tmp_path / "a.txt") == ("c", "a", "b")
    values = read_parcels(tmp_path / "a.txt", Atlas("x", ("a", "b", "c", "d")))
    np.testing.assert_array_equal(values, [[2, 3, 1, np.nan]])


@pytest.mark.parametrize("header", ["#2,#5", "#Mean_2  ,Mean_5", "2,5", "Mean_2,Mean_5"])
def test_roi_numbers_find_their_rois(tmp_path, header):
    for name in ("a.1D", "a.csv"):
        (tmp_path / name).write_text(header + "\n1,2\n3,4\n")
        values = read_parcels(tmp_path / name, numbered_atlas("x", 5))
        np.testing.assert_array_equal(values[:, [1, 4]], [[1, 2], [3, 4]])
        assert np.isnan(values[:, [0, 2, 3]]).all()
        by_value = Atlas("x", ("one", "two"), values=(5, 2))
        np.testing.assert_array_equal(read_parcels(tmp_path / name, by_value), [[2, 1], [4, 3]])
        with pytest.raises(
            OpenBrainMassError, match=r"by number \(2 to 5\), but .* only names are known. Give its label"
        ):
            read_parcels(tmp_path / name, Atlas("x", ("one", "two", "three")))
        with pytest.raises(OpenBrainMassError, match="columns named 5"):
            read_parcels(tmp_path / name, numbered_atlas("x", 4))


def test_afni_numbers_that_end_early_are_roi_numbers_but_a_mere_count_is_none(tmp_path):
    (tmp_path / "a.1D").write_text(AFNI)
    assert np.isnan(read_parcels(tmp_path / "a.1D", numbered_atlas("x", 4))[:, 3]).all()
    (tmp_path / "a.tsv").write_text("1\t2\t3\n.1\t.2\t.3\n.4\t.5\t.6\n")
    with pytest.raises(OpenBrainMassError, match="3 columns in 2 volumes; the atlas x has 4 ROIs, and no label"):
        read_parcels(tmp_path / "a.tsv", numbered_atlas("x", 4))


def test_columns_without_names_go_by_position_and_must_be_as_many_as_the_rois(tmp_path):
    (tmp_path / "a.tsv").write_text("0\t1\n.1\t.2\n.3\t.4\n.5\t.6\n")
    named = Atlas("x", ("a", "b"))
    np.testing.assert_allclose(read_parcels(tmp_path / "a.tsv", named), [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]], rtol=1e-6)
    with pytest.raises(OpenBrainMassError, match="it looks transposed"):
        read_parcels(tmp_path / "a.tsv", numbered_atlas("x", 3))
    np.save(tmp_path / "a.npy", np.ones((4, 2), dtype=np.float16))
    assert read_parcels(tmp_path / "a.npy", named).dtype == np.float16


def test_names_go_by_position_only_where_the_atlas_has_none(tmp_path):
    (tmp_path / "a.tsv").write_text("b\ta\n1\t2\n")
    np.testing.assert_array_equal(read_parcels(tmp_path / "a.tsv", numbered_atlas("x", 2)), [[1, 2]])
    np.testing.assert_array_equal(read_parcels(tmp_path / "a.tsv", Atlas("x", ("a", "b"))), [[2, 1]])


@given(
    st.integers(1, 6).flatmap(
        lambda n: st.tuples(
            st.permutations(range(n)),
            st.lists(
                st.lists(st.floats(width=32, allow_infinity=False), min_size=n, max_size=n), min_size=1, max_size=5
            ),
        )
    ),
    st.sampled_from([".csv", ".tsv", ".1D", ".txt"]),
)
def test_any_float32_comes_back_exactly_to_the_column_of_its_roi(tmp_path_factory, drawn, suffix):
    order, rows = drawn
    bold = np.array(rows, dtype=np.float32)
    separator = {".csv": ",", ".tsv": "\t"}.get(suffix, " ")
    lines = [[f"roi{i}" for i in order], *[[f"{row[i]:.9g}" for i in order] for row in bold]]
    path = tmp_path_factory.mktemp("table") / f"a{suffix}"
    path.write_text("\n".join(separator.join(line) for line in lines) + "\n")
    values = read_parcels(path, Atlas("x", tuple(f"roi{i}" for i in range(len(order)))))
    np.testing.assert_array_equal(values, bold)


@given(
    st.binary(max_size=300), st.sampled_from(SUFFIXES), st.sampled_from([b"", b"1,2,3\n4,5,6\n", b"\x93NUMPY\x01\x00"])
)
def test_noise_is_read_or_refused_in_one_paragraph_but_never_falls_over(tmp_path_factory, noise, suffix, start):
    path = tmp_path_factory.mktemp("noise") / f"a{suffix}"
    path.write_bytes(start + noise)
    for read in (read_series, series_labels):
        try:
            read(path)
        except OpenBrainMassError as error:
            assert str(path) in str(error) and str(error).isprintable()
