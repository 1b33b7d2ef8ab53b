"""Foreign NIfTI files: their headers checked before anything is opened, their volumes read one after another."""

from __future__ import annotations

import gzip
import io
import math
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openbrainmass.errors import OpenBrainMassError

_KINDS = {1: (348, (b"n+1\0",), 352), 2: (540, (b"n+2\0\r\n\x1a\n",), 544)}
_PAIRS = (b"ni1\0", b"ni2\0\r\n\x1a\n")
_HEADER_BYTES = 544
# Deflate cannot do better.
_MOST_FOLDED = 1100
_LARGEST_OFFSET = 256 << 20
_FIRST_CIFTI = 3000
_SECONDS_OF_UNIT = {8: 1.0, 16: 1e-3, 24: 1e-6}
Stream = gzip.GzipFile | io.BufferedReader
_UNREADABLE = (OSError, EOFError, zlib.error)


@dataclass(frozen=True)
class Header:
    """What a checked NIfTI header says.

    Attributes
    ----------
    shape : tuple of int
        The dimensions that are used, at least three.
    dtype : dtype
        Type of the values as stored, with its byte order.
    offset : int
        Bytes before the values.
    slope, intercept : float
        A value is ``slope * stored + intercept``.
    affine : ndarray (4, 4)
        From voxels to mm.
    tr : float or None
        Seconds between volumes, where the header has the unit of its time step.
    intent : int
        NIfTI intent code (3000-3010 for CIFTI).
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    offset: int
    slope: float
    intercept: float
    affine: np.ndarray
    tr: float | None
    intent: int

    @property
    def n_bytes(self) -> int:
        """Bytes of the whole file, unpacked."""
        return self.offset + math.prod(self.shape) * self.dtype.itemsize

    @property
    def seconds(self) -> float:
        """How long reading the file may take on a busy machine."""
        return 5 + self.n_bytes / 8e6

    @property
    def extra_bytes(self) -> int:
        """How much memory reading the file volume by volume may take."""
        return (512 << 20) + 64 * math.prod(self.shape[:3])


def read_header(path: str | Path) -> Header:
    """Read the header of a ``.nii`` or ``.nii.gz`` file and check it against the size of the file.

    Parameters
    ----------
    path : path
        NIfTI-1 or NIfTI-2 in one file.

    Returns
    -------
    Header

    Raises
    ------
    OpenBrainMassError
        If the file is empty, no NIfTI, damaged, shorter or longer than its header says, or packed beyond measure.
    """
    path = Path(path)
    raw = _first_bytes(path)
    version = next(
        (v for v, (size, *_) in _KINDS.items() if _int32(raw, "<") == size or _int32(raw, ">") == size), None
    )
    if version is None or len(raw) < _KINDS[version][0]:
        raise refused(path, "it begins with no NIfTI header")
    size, magics, first_offset = _KINDS[version]
    magic = raw[344:348] if version == 1 else raw[4:12]
    if magic in _PAIRS:
        raise refused(path, "it is the half of a pair (.hdr and .img)", "one file")
    if magic not in magics:
        raise refused(path, f"its header lacks the mark of NIfTI-{version}")
    header = _parsed(path, raw[:size], version, first_offset)
    _check_size(path, header)
    return header


def refused(path: Path, found: str, expected: str = "a whole NIfTI image") -> OpenBrainMassError:
    """The error of an image that is not what it should be.

    Parameters
    ----------
    path : Path
        The image.
    found, expected : str
        What was found, as a clause; what should have been.
    """
    return OpenBrainMassError(
        f"The image {path} cannot be read: {found}. In its place {expected} was expected; write or fetch it again."
    )


def open_image(path: Path) -> Stream:
    """The bytes of an image, unpacked where its name ends on ``.gz``."""
    return gzip.open(path, "rb") if path.name.lower().endswith(".gz") else path.open("rb")


def _first_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise OpenBrainMassError(f"The image {path} does not exist. Check the path.")
    if path.stat().st_size == 0:
        raise refused(path, "it is empty (0 bytes)")
    packed = path.name.lower().endswith(".gz")
    try:
        with path.open("rb") as handle:
            is_packed = handle.read(2) == b"\x1f\x8b"
        if is_packed != packed:
            raise refused(
                path,
                f"its name {'ends' if packed else 'does not end'} on .gz but it is {'' if is_packed else 'not '}packed",
            )
        with open_image(path) as handle:
            return handle.read(_HEADER_BYTES)
    except _UNREADABLE as error:
        raise refused(path, f"its first bytes cannot be unpacked ({' '.join(str(error).split())})") from error


def _int32(raw: bytes, order: str) -> int:
    return int(np.frombuffer(raw[:4], f"{order}i4")[0]) if len(raw) >= 4 else 0


def _parsed(path: Path, raw: bytes, version: int, first_offset: int) -> Header:
    import nibabel as nib

    kind = nib.Nifti1Header if version == 1 else nib.Nifti2Header  # pyright: ignore[reportPrivateImportUsage]
    fields = kind(raw, check=False)
    shape = _shape(path, fields["dim"])
    offset = float(fields["vox_offset"]) or first_offset
    if not (math.isfinite(offset) and first_offset <= offset <= _LARGEST_OFFSET and offset == int(offset)):
        raise refused(path, f"its values are said to begin at byte {offset:g}")
    try:
        dtype = np.dtype(fields.get_data_dtype())
    except KeyError as error:
        raise refused(path, f"its values are of the type {error}, which NIfTI does not know") from error
    try:
        slope, intercept = fields.get_slope_inter()
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            affine = np.asarray(fields.get_best_affine(), dtype=float)
    except Exception as error:  # nibabel has its own error for every field that may be wrong
        raise refused(path, f"its header is wrong ({' '.join(str(error).split())})") from error
    if dtype.kind not in "iuf" or dtype.itemsize > 8 or dtype.itemsize * 8 != int(fields["bitpix"]):
        raise refused(path, f"its values are of type {dtype} in {int(fields['bitpix'])} bits", "an image of numbers")
    # CIFTI files have no use for an affine and leave it empty.
    if not _FIRST_CIFTI <= int(fields["intent_code"]) < _FIRST_CIFTI + 100:
        _check_place(path, fields, affine)
    return Header(
        shape=shape,
        dtype=dtype,
        offset=int(offset),
        slope=1.0 if slope is None else float(slope),
        intercept=0.0 if intercept is None else float(intercept),
        affine=affine,
        tr=_seconds(fields),
        intent=int(fields["intent_code"]),
    )


def _check_place(path: Path, fields: Any, affine: np.ndarray) -> None:
    if int(fields["sform_code"]) == int(fields["qform_code"]) == 0:
        raise refused(path, "its header does not tell where it lies (sform and qform are unset)", "an image in mm")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise refused(path, "its affine is not invertible")


def _shape(path: Path, dim: np.ndarray) -> tuple[int, ...]:
    n_dims = int(dim[0])
    if not 1 <= n_dims <= 7 or (dim[1 : n_dims + 1] < 1).any():
        raise refused(path, f"its dimensions are {dim.tolist()}")
    shape = [int(n) for n in dim[1 : n_dims + 1]]
    while len(shape) > 4 and shape[-1] == 1:
        shape.pop()
    return (*shape, *(1,) * (3 - len(shape)))


def _seconds(fields: Any) -> float | None:
    """The time step; None without a unit, because tools that know no TR leave a 1 there."""
    unit = _SECONDS_OF_UNIT.get(int(fields["xyzt_units"]) & 0b111000)
    step = float(fields["pixdim"][4])
    return step * unit if unit and math.isfinite(step) and step > 0 else None


def _check_size(path: Path, header: Header) -> None:
    size = path.stat().st_size
    claim = f"its header speaks of {header.n_bytes:,} bytes ({' x '.join(map(str, header.shape))} {header.dtype.name})"
    if path.name.lower().endswith(".gz"):
        if header.n_bytes > _MOST_FOLDED * size:
            raise refused(path, f"{claim} but its {size:,} packed bytes cannot hold an image of that size")
    elif size != header.n_bytes:
        raise refused(path, f"{claim} but it has {size:,}")


def voxel_values(path: str | Path, header: Header, voxels: np.ndarray) -> np.ndarray:
    """Some voxels of the first volume of an image, to be called through `limited.in_child`.

    Returns
    -------
    ndarray (n_voxels,), float64
    """
    path = Path(path)
    with open_image(path) as stream:
        _skip(path, stream, header.offset)
        return _volume(path, stream, header)[voxels] * header.slope + header.intercept


def roi_means(path: str | Path, header: Header, voxels: np.ndarray, rois: np.ndarray, n_rois: int) -> dict:
    """Mean of the voxels of each ROI in each volume, to be called through `limited.in_child`.

    Voxels that never change, and those that lack a number in some volume, hold no signal and are left out.

    Parameters
    ----------
    path : path
        The image.
    header : Header
        Its header; four dimensions.
    voxels : ndarray (n_voxels,), int
        Where the atlas has labels, in the order of the file (first axis fastest).
    rois : ndarray (n_voxels,), int
        Row of the atlas of each of them.
    n_rois : int
        Rows of the atlas.

    Returns
    -------
    dict
        ``means`` (n_volumes, n_rois) float64, NaN for an ROI without a voxel; ``counts`` (n_rois,), voxels averaged.
    """
    path = Path(path)
    # One pass; a second where numbers are missing, because sums cannot be undone.
    sums, first, changing, whole = _sums(path, header, voxels, rois, n_rois)
    if not whole.all():
        voxels, rois = voxels[whole], rois[whole]
        sums, first, changing, _ = _sums(path, header, voxels, rois, n_rois)
    sums -= np.bincount(rois[~changing], weights=first[~changing], minlength=n_rois)
    counts = np.bincount(rois[changing], minlength=n_rois)
    with np.errstate(all="ignore"):
        return {"means": sums / counts * header.slope + header.intercept, "counts": counts}


def _sums(
    path: Path, header: Header, voxels: np.ndarray, rois: np.ndarray, n_rois: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Sums (n_volumes, n_rois); first value, whether it changes and whether it is always a number, of each voxel."""
    n_volumes = header.shape[3]
    sums = np.zeros((n_volumes, n_rois))
    first = np.zeros(len(voxels))
    changing = np.zeros(len(voxels), dtype=bool)
    whole = np.ones(len(voxels), dtype=bool)
    with open_image(path) as stream:
        _skip(path, stream, header.offset)
        for volume in range(n_volumes):
            values = _volume(path, stream, header)[voxels].astype(np.float64)
            finite = np.isfinite(values)
            if not finite.all():
                whole &= finite
                values[~finite] = 0
            if volume == 0:
                first = values
            changing |= values != first
            sums[volume] = np.bincount(rois, weights=values, minlength=n_rois)
        if stream.read(1):
            raise refused(path, f"it goes on after the {n_volumes} volumes that its header speaks of")
    return sums, first, changing, whole


def _skip(path: Path, stream: Stream, n_bytes: int) -> None:
    if len(stream.read(n_bytes)) < n_bytes:
        raise refused(path, "it ends within its header")


def _volume(path: Path, stream: Stream, header: Header) -> np.ndarray:
    n_bytes = math.prod(header.shape[:3]) * header.dtype.itemsize
    data = stream.read(n_bytes)
    if len(data) < n_bytes:
        raise refused(path, "it ends within its volumes")
    return np.frombuffer(data, header.dtype)
