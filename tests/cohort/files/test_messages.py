"""What goes through a pipe comes out the same, and nothing else comes out."""

import io
import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays, scalar_dtypes

from openbrainmass.atlas import Atlas
from openbrainmass.cohort.files.messages import read_exactly, receive_message, send_message

PLAIN = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.builds(Path, st.just("a/b"))
)
NUMBERS = arrays(
    scalar_dtypes().filter(lambda dtype: dtype.kind in "biufc"), array_shapes(min_dims=0, min_side=0, max_dims=3)
)


def through(value, most=None, trusted=False):
    pipe = io.BytesIO()
    send_message(pipe, value)
    pipe.seek(0)
    received = receive_message(pipe, most, trusted=trusted)
    assert pipe.read() == b""
    return received


@given(
    st.recursive(
        PLAIN,
        lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text(), inner),
        max_leaves=12,
    )
)
def test_plain_values(value):
    assert through(value) == value
    assert type(through(value)) is type(value)


@given(NUMBERS, st.booleans(), st.integers(1, 3))
def test_arrays_of_any_order(values, turned, step):
    values = values.T if turned else values
    values = values[::step] if values.ndim else values
    received = through({"first": values, "second": [values]})
    for array in (received["first"], received["second"][0]):
        np.testing.assert_array_equal(array, values)
        assert array.dtype == values.dtype
        assert array.shape == values.shape


def test_numpy_scalars_text_arrays_and_dtypes():
    assert through(np.float32(0.5)) == 0.5
    assert through(np.dtype(">i2")) == np.dtype(">i2")
    np.testing.assert_array_equal(through(np.array(["left", "right"])), ["left", "right"])
    assert np.isnan(through(float("nan")))


@dataclass(frozen=True)
class Held:
    shape: tuple
    values: np.ndarray


def test_dataclasses_only_from_whom_is_trusted():
    atlas = Atlas("toy", ("a", "b"), coords_mm=np.zeros((2, 3)))
    received = through(atlas, trusted=True)
    assert isinstance(received, Atlas)
    assert received.roi_names == ("a", "b")
    with pytest.raises(ValueError, match="garbled"):
        through(atlas)


@pytest.mark.parametrize("value", [{1, 2}, object(), np.array([{}]), b"bytes", np.dtype([("a", "f4")]), Held])
def test_what_cannot_be_sent(value):
    pipe = io.BytesIO()
    with pytest.raises(ValueError, match="type"):
        send_message(pipe, [1, value])
    assert pipe.getvalue() == b""


def packed(text, rest=b""):
    return io.BytesIO(struct.pack(">Q", len(text)) + text.encode() + rest)


@pytest.mark.parametrize(
    "text",
    [
        "not json",
        '{"array": "|O", "shape": [1], "turned": false}',
        '{"array": "<f8", "shape": [-1], "turned": false}',
        '{"array": "<f8", "shape": [1e400], "turned": false}',
        '{"array": "<f8", "shape": "x", "turned": false}',
        '{"array": "nonsense", "shape": [1], "turned": false}',
        '{"array": "<f8", "shape": [1000000], "turned": false}',
        '{"class": ["os", "system"], "fields": {}}',
        '{"other": 1}',
        "[" * 100000,
    ],
)
def test_garbled_messages(text):
    with pytest.raises(ValueError):
        receive_message(packed(text, bytes(64)), 1 << 20)


def test_size_is_limited():
    assert through("x" * 10, most=100) == "x" * 10
    with pytest.raises(ValueError, match="larger than allowed"):
        through("x" * 1000, most=100)
    with pytest.raises(ValueError, match="larger than allowed"):
        through(np.zeros(100), most=100)


def test_a_pipe_that_ends():
    whole = io.BytesIO()
    send_message(whole, {"values": np.arange(10)})
    for length in (0, 5, 20, len(whole.getvalue()) - 1):
        with pytest.raises(EOFError):
            receive_message(io.BytesIO(whole.getvalue()[:length]))
    with pytest.raises(EOFError):
        read_exactly(io.BytesIO(b"ab"), 3)
    assert json.loads(read_exactly(io.BytesIO(b"12"), 2)) == 12
