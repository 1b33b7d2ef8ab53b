"""Matlab files (.mat) of versions 4 to 7, opened by scipy in the limited child after their headers are checked."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Container
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from openbrainmass.cohort.files.limited import in_child
from openbrainmass.errors import OpenBrainMassError

IN_CHILD = ("scipy.io",)
"""What the child imports before a file's time runs."""

_HEADER = 128
_HDF5 = b"\x89HDF\r\n\x1a\n"
_COMPRESSED, _MATRIX = 15, 14
# Far above any parcellated recording; what claims more is damage, or made to fill the memory.
_LARGEST_BYTES = 256 << 20
_PEEKED = 1024
_ITEM_BYTES = {7: 4, 8: 1, 9: 1, 10: 2, 11: 2, 12: 4, 13: 4}
_LAST_PLAIN_CLASS = 15
_NUMERIC = frozenset({"double", "single", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"})
_TISSUES = 3
_CONN = ("data", "names", "xyz", "conditionweights")


def read_matlab(path: str | Path, variable: str | None = None) -> np.ndarray:
    """Read the one matrix of a .mat file.

    Parameters
    ----------
    path : path
        A file of version 4, 5 or 7 (``save -v7``, Matlab's default).
    variable : str, optional
        Its variable; without it the file must hold one numeric matrix. Scalars and vectors beside it do not count.

    Returns
    -------
    ndarray (n_volumes, n_rois), float32

    Raises
    ------
    OpenBrainMassError
        If the file is missing, damaged or of version 7.3, or has no such matrix or several.
    """
    path = Path(path)
    _check(path, None if variable is None else (variable,))
    return in_child(_matrix, path, variable)


def read_conn(path: str | Path) -> dict[str, Any]:
    """Read the ROI series of a file of CONN (``ROI_Subject001_Condition001.mat``).

    The three tissue masks in front and the covariates behind the ROIs, which have no coordinates, are left out. Of an
    ROI with several components the first is taken, which CONN makes the average.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    dict
        ``names`` (list of str), ``bold`` (ndarray (n_volumes, n_rois), float32) and ``weights`` (ndarray (n_volumes,)
        or None: how much each volume belongs to the condition).

    Raises
    ------
    OpenBrainMassError
        If the file is missing or damaged, or is no such file.
    """
    path = Path(path)
    _check(path, _CONN)
    return in_child(_conn_rois, path)


def read_conn_names(path: str | Path) -> list[str]:
    """Names of the ROIs of a file of CONN, tissues and covariates left out.

    Raises
    ------
    OpenBrainMassError
        If the file is missing or damaged, or is no such file.
    """
    path = Path(path)
    _check(path, _CONN)
    return in_child(_conn_names, path)


def read_conn_conditions(path: str | Path) -> list[str]:
    """Names of a project's conditions, in the order of their numbers, from ``_list_conditions.mat`` of CONN.

    Raises
    ------
    OpenBrainMassError
        If the file is missing or damaged, or is no such file.
    """
    path = Path(path)
    _check(path)
    return in_child(_conn_conditions, path)


def read_conn_tr(path: str | Path) -> list[float]:
    """Seconds between volumes that a project file of CONN (``conn_*.mat``) gives: one, or one a subject.

    Empty where it leaves them to the sidecars of the images.

    Raises
    ------
    OpenBrainMassError
        If the file is missing or damaged, or is no such file.
    """
    path = Path(path)
    _check(path)
    return in_child(_conn_tr, path, seconds=20.0, extra_bytes=1 << 30)


# -- headers, checked here: what is wrong with most files shows before anything parses them --------------------------


def _check(path: Path, wanted: Container[str] | None = None) -> None:
    try:
        with path.open("rb") as handle:
            header = handle.read(_HEADER)
            size = handle.seek(0, 2)
            if header.startswith(_HDF5) or _version(header) == 2:
                raise OpenBrainMassError(
                    f"The file {path} is a Matlab 7.3 (HDF5) file; version 7 or older was expected. In Matlab, load it "
                    "and save it again with save(..., '-v7')."
                )
            if _version(header) == 1:
                order: Literal["<", ">"] = "<" if header[126:128] == b"IM" else ">"
                _check_elements(handle, path, size, order, wanted)
            elif not _looks_old(header, size):
                raise _damaged(path, "it does not begin as Matlab files do")
    except FileNotFoundError as error:
        raise OpenBrainMassError(
            f"The file {path} does not exist; a .mat file was expected. Check the path."
        ) from error
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error


def _version(header: bytes) -> int | None:
    """Major version of a file of version 5 or later; None for others."""
    orders = {b"IM": "<", b"MI": ">"}
    if len(header) < _HEADER or header[126:128] not in orders:
        return None
    return struct.unpack(orders[header[126:128]] + "H", header[124:126])[0] >> 8


def _looks_old(header: bytes, size: int) -> bool:
    """Whether a file begins as version 4 does: type, rows, columns, whether complex, length of the name."""
    if len(header) < 20:
        return False
    for order in "<>":
        kind, rows, columns, is_complex, length = struct.unpack(order + "5i", header[:20])
        if 0 <= kind <= 4052 and min(rows, columns) >= 0 and is_complex in (0, 1) and 1 <= length <= 64:
            return rows * columns <= size
    return False


def _check_elements(handle: IO[bytes], path: Path, size: int, order: str, wanted: Container[str] | None) -> None:
    """Follow the file from one variable to the next: none may reach beyond its end, none that is read take too much."""
    position = _HEADER
    while position < size:
        handle.seek(position)
        tag = handle.read(8)
        if len(tag) < 8:
            raise _damaged(path, "it ends within a variable")
        kind, length = struct.unpack(order + "2I", tag)
        if kind not in (_COMPRESSED, _MATRIX):
            raise _damaged(path, f"it holds something of the unknown type {kind}")
        if position + 8 + length > size:
            raise _damaged(path, f"it ends within a variable: {position + 8 + length:,} bytes expected, {size:,} found")
        start = handle.read(min(length, _PEEKED))
        name, needed = _described(_unpacked(start) if kind == _COMPRESSED else tag + start, order)
        if needed is None:
            raise _damaged(path, "a variable has a broken header")
        if needed > _LARGEST_BYTES and (wanted is None or name in wanted):
            raise _damaged(path, f"the variable {name} would take {needed >> 20:,} MiB")
        position += 8 + length


def _unpacked(start: bytes) -> bytes:
    """The first bytes of a compressed variable; none where it does not unpack."""
    try:
        return zlib.decompressobj().decompress(start, _PEEKED)
    except zlib.error:
        return b""


def _described(start: bytes, order: str) -> tuple[str, int | None]:
    """Name of a variable, and how many bytes it takes by its own account; None where its header is broken."""
    try:
        _, length, flags_kind, _, flags, _, shape_kind, shape_length = struct.unpack_from(order + "8I", start)
        if flags & 0xFF > _LAST_PLAIN_CLASS:
            # Objects have a header of their own; nothing here reads them.
            return "", length
        shape = struct.unpack_from(f"{order}{min(shape_length, _PEEKED) // 4}i", start, 32)
        name = _name(start, 32 + -(-shape_length // 8) * 8, order)
    except struct.error:
        return "", None
    if flags_kind != 6 or shape_kind != 5 or min(shape, default=-1) < 0:
        return name, None
    return name, max(length, math.prod(shape) * _ITEM_BYTES.get(flags & 0xFF, 8))


def _name(start: bytes, place: int, order: str) -> str:
    (kind,) = struct.unpack_from(order + "I", start, place)
    # Up to four letters lie within the tag, whose upper half then tells how many.
    length, first = (
        (kind >> 16, place + 4) if kind >> 16 else (struct.unpack_from(order + "I", start, place + 4)[0], place + 8)
    )
    return start[first : first + length].decode("latin-1")


def _damaged(path: Path, why: str) -> OpenBrainMassError:
    return OpenBrainMassError(
        f"The file {path} cannot be read ({why}). A whole Matlab file of version 4 to 7 was expected; save it again "
        "with save(..., '-v7') or remove it."
    )


# -- what runs in the child ------------------------------------------------------------------------------------------


def _matrix(path: Path, variable: str | None) -> np.ndarray:
    from scipy.io import loadmat, whosmat

    found = {name: (shape, kind) for name, shape, kind in whosmat(str(path))}
    matrices = [
        name for name, (shape, kind) in found.items() if kind in _NUMERIC and len(shape) == 2 and min(shape) > 1
    ]
    described = ", ".join(f"{name} {'x'.join(map(str, shape))} {kind}" for name, (shape, kind) in found.items())[:200]
    if variable is not None and variable not in found:
        raise OpenBrainMassError(
            f"The file {path} has no variable {variable}; it has {described or 'none'}. Name the right file."
        )
    if variable is None and len(matrices) != 1:
        raise OpenBrainMassError(
            f"The file {path} has {len(matrices) or 'no'} matrices ({described or 'no variables'}); one numeric variable "
            "(n_volumes, n_rois) was expected. Save it by itself."
        )
    name = variable or matrices[0]
    values = loadmat(str(path), variable_names=[name])[name]
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "fiu" or values.ndim != 2 or 0 in values.shape:
        raise OpenBrainMassError(
            f"The variable {name} of {path} is no matrix of real numbers ({described}); (n_volumes, n_rois) was "
            "expected. Save it so."
        )
    return values.astype(np.float32)


def _conn_rois(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    content = loadmat(str(path), variable_names=list(_CONN))
    names, kept = _conn_kept(path, content)
    cells = _cells(path, content, "data")
    if len(cells) != len(names):
        raise _not_conn(path, f"{len(cells)} cells of data but {len(names)} names")
    columns = [np.atleast_2d(np.asarray(cells[i])) for i in kept]
    lengths = {column.shape[0] for column in columns}
    if any(column.dtype.kind not in "fiu" or column.size == 0 for column in columns) or len(lengths) != 1:
        raise _not_conn(path, f"ROI series that are no numbers or of different lengths ({sorted(lengths)[:4]})")
    bold = np.stack([column[:, 0] for column in columns], axis=1).astype(np.float32)
    weights = _cells(path, content, "conditionweights") if "conditionweights" in content else []
    first = np.asarray(weights[0], dtype=np.float64).ravel() if weights else np.empty(0)
    if weights and first.size != len(bold):
        raise _not_conn(path, f"{first.size} weights of the condition but {len(bold)} volumes")
    return {"names": [names[i] for i in kept], "bold": bold, "weights": first if weights else None}


def _conn_names(path: Path) -> list[str]:
    from scipy.io import loadmat

    names, kept = _conn_kept(path, loadmat(str(path), variable_names=["names", "xyz"]))
    return [names[i] for i in kept]


def _conn_kept(path: Path, content: dict[str, Any]) -> tuple[list[str], list[int]]:
    """All names, and which of them are ROIs: not the tissues in front, not the covariates, which lie nowhere."""
    names = _texts(path, content, "names")
    places = _cells(path, content, "xyz") if "xyz" in content else []
    if any("." in name for name in names[:_TISSUES]):
        raise _not_conn(path, f"{', '.join(names[:_TISSUES])} in front, where the three tissues belong")
    if places and len(places) != len(names):
        raise _not_conn(path, f"{len(places)} places but {len(names)} names")
    nowhere = [bool(places) and bool(np.isnan(np.asarray(place, dtype=float)).all()) for place in places]
    is_covariate = nowhere or [name.startswith("Effect of ") for name in names]
    kept = [i for i in range(_TISSUES, len(names)) if not is_covariate[i]]
    if not kept:
        raise _not_conn(path, "no ROI behind the three tissues")
    return names, kept


def _texts(path: Path, content: dict[str, Any], name: str) -> list[str]:
    return [str(cell.ravel()[0]) if cell.size else "" for cell in map(np.asarray, _cells(path, content, name))]


def _cells(path: Path, content: dict[str, Any], name: str) -> list[Any]:
    value = content.get(name)
    if not isinstance(value, np.ndarray) or value.dtype != object:
        raise _not_conn(path, f"no cell array {name}")
    return list(value.ravel())


def _conn_conditions(path: Path) -> list[str]:
    from scipy.io import loadmat

    return _texts(path, loadmat(str(path), variable_names=["allnames"]), "allnames")


def _conn_tr(path: Path) -> list[float]:
    from scipy.io import loadmat

    project = loadmat(str(path), variable_names=["CONN_x"], struct_as_record=False, squeeze_me=True).get("CONN_x")
    setup = getattr(project, "Setup", None)
    if setup is None:
        raise _not_conn(path, "no CONN_x.Setup")
    seconds = np.atleast_1d(np.asarray(getattr(setup, "RT", np.nan), dtype=float)).ravel()
    return [] if np.isnan(seconds).all() else seconds.tolist()


def _not_conn(path: Path, found: str) -> OpenBrainMassError:
    return OpenBrainMassError(
        f"The file {path} is not as CONN writes it (it has {found}). Point at the results/preprocessing folder of a "
        "CONN project, or run its denoising step again."
    )
