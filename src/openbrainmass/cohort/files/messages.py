"""Values sent through a pipe as JSON and the bytes of their arrays: unlike pickles, they can be received from anybody."""

from __future__ import annotations

import importlib
import json
import math
import struct
from dataclasses import fields, is_dataclass
from pathlib import Path, PurePath
from typing import IO, Any

import numpy as np

_LENGTH = struct.Struct(">Q")
# Numbers, truth values and text. Arrays of objects would have to be unpickled.
_KINDS = "biufcUS"


def send_message(pipe: IO[bytes], value: Any) -> None:
    """Write a value to an unbuffered pipe.

    Parameters
    ----------
    pipe : binary file
        Where to.
    value : object
        Made of dicts with text keys, lists, tuples, text, numbers, None, paths, dtypes, arrays of numbers or text, and
        instances of dataclasses.

    Raises
    ------
    ValueError
        If it holds anything else; nothing is written then.
    """
    arrays: list[np.ndarray] = []
    text = json.dumps(_described(value, arrays)).encode()
    _write(pipe, _LENGTH.pack(len(text)) + text)
    for array in arrays:
        _write(pipe, array.reshape(-1).view(np.uint8).data)


def receive_message(pipe: IO[bytes], most: int | None = None, *, trusted: bool = False) -> Any:
    """Read a value that `send_message` wrote.

    Parameters
    ----------
    pipe : binary file
        Where from.
    most : int, optional
        Bytes that its text, and each of its arrays, may have.
    trusted : bool
        Whether it may name dataclasses, which are imported.

    Raises
    ------
    ValueError
        If it is garbled, larger than allowed, or names a class without being trusted.
    EOFError
        If the pipe ends within it.
    """
    (length,) = _LENGTH.unpack(read_exactly(pipe, _LENGTH.size))
    try:
        return _restored(json.loads(read_exactly(pipe, _allowed(length, most))), pipe, most, trusted)
    except (TypeError, KeyError, RecursionError) as error:
        raise ValueError("a garbled message") from error


def read_exactly(pipe: IO[bytes], n_bytes: int) -> bytearray:
    """Read so many bytes.

    Raises
    ------
    EOFError
        If the pipe ends before.
    """
    buffer = bytearray(n_bytes)
    view = memoryview(buffer)
    while len(view):
        count = pipe.readinto(view)  # pyright: ignore[reportAttributeAccessIssue]
        if not count:
            raise EOFError
        view = view[count:]
    return buffer


def _write(pipe: IO[bytes], data: bytes | memoryview) -> None:
    view = memoryview(data)
    while len(view):
        view = view[pipe.write(view) :]


def _described(value: Any, arrays: list[np.ndarray]) -> Any:
    """The value as JSON can write it; its arrays are put into the list instead."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, np.ndarray):
        return _described_array(value, arrays)
    if isinstance(value, np.generic):
        return _described(value.item(), arrays)
    if isinstance(value, dict):
        return {"dict": {str(key): _described(item, arrays) for key, item in value.items()}}
    if isinstance(value, list):
        return [_described(item, arrays) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_described(item, arrays) for item in value]}
    if isinstance(value, PurePath):
        return {"path": str(value)}
    if isinstance(value, np.dtype) and value.kind in _KINDS:
        return {"dtype": value.str}
    if is_dataclass(value) and not isinstance(value, type):
        held = {one.name: _described(getattr(value, one.name), arrays) for one in fields(value)}
        return {"class": [type(value).__module__, type(value).__qualname__], "fields": held}
    raise ValueError(f"it holds a value of type {type(value).__name__}")


def _described_array(value: np.ndarray, arrays: list[np.ndarray]) -> dict[str, Any]:
    if value.dtype.kind not in _KINDS:
        raise ValueError(f"its values are of type {value.dtype}")
    # A turned view of a column-major array needs no copy, which might not fit.
    turned = value.ndim > 1 and value.flags.f_contiguous and not value.flags.c_contiguous
    rows = value.T if turned else value
    arrays.append(np.ascontiguousarray(rows))
    return {"array": value.dtype.str, "shape": list(rows.shape), "turned": turned}


def _restored(value: Any, pipe: IO[bytes], most: int | None, trusted: bool) -> Any:
    if isinstance(value, list):
        return [_restored(item, pipe, most, trusted) for item in value]
    if not isinstance(value, dict):
        return value
    if "dict" in value:
        return {key: _restored(item, pipe, most, trusted) for key, item in value["dict"].items()}
    if "tuple" in value:
        return tuple(_restored(item, pipe, most, trusted) for item in value["tuple"])
    if "path" in value:
        return Path(value["path"])
    if "dtype" in value:
        return np.dtype(value["dtype"])
    if "class" in value and trusted:
        module, name = value["class"]
        held = {key: _restored(item, pipe, most, trusted) for key, item in value["fields"].items()}
        return getattr(importlib.import_module(module), name)(**held)
    return _restored_array(value, pipe, most)


def _restored_array(value: dict[str, Any], pipe: IO[bytes], most: int | None) -> np.ndarray:
    dtype, shape = np.dtype(value["array"]), tuple(value["shape"])
    if dtype.kind not in _KINDS:
        raise ValueError("an array that is none of numbers or text")
    n_bytes = _allowed(math.prod(shape) * dtype.itemsize, most)
    array = np.frombuffer(read_exactly(pipe, n_bytes), dtype).reshape(shape)
    return array.T if value["turned"] else array


def _allowed(n_bytes: int, most: int | None) -> int:
    if n_bytes < 0 or (most is not None and n_bytes > most):
        raise ValueError("a message that is larger than allowed")
    return n_bytes
