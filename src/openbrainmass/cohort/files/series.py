"""One recording's file to one array: .npy, .npz, .csv, .tsv, .1D and .txt, checked before they are trusted."""

from __future__ import annotations

import csv
import io
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from openbrainmass.atlas import Atlas
from openbrainmass.errors import OpenBrainMassError

SUFFIXES = (".npy", ".npz", ".csv", ".tsv", ".1D", ".txt")
"""File types that hold a recording."""

# None: tabs, commas or blanks, whichever the first volume has.
_SEPARATORS = {".csv": b",", ".tsv": b"\t", ".1d": None, ".txt": None}
_ARRAYS = (".npy", ".npz")
_MISSING = ["n/a", "N/A", "NaN", "nan", "NA", ""]
# Far above any parcellated recording; a larger claim in a header is damage, or an archive made to fill the memory.
_LARGEST_BYTES = 256 << 20
_LARGEST_TEXT = 128 << 20
_MOST_VOLUMES = 1_000_000
_MOST_COLUMNS = 20_000
_LONGEST_LINE = 1 << 20
# AFNI's 3dROIstats writes the image and the volume in front of every line of means.
_AFNI_COLUMNS = ["file", "sub-brick"]


@dataclass(frozen=True)
class _Table:
    """A table as it stands in its file: `numbers` are ROI numbers where the header gives such (AFNI, gaps)."""

    values: np.ndarray
    labels: list[str] | None
    numbers: list[int] | None


def read_series(path: str | Path, roi_names: Sequence[str] | None = None) -> np.ndarray:
    """Read one recording.

    A table may have a header line or none; in ``.1D`` and ``.txt`` lines that begin with ``#`` are comments, the last
    of them the header where it has a label for each column. Header labels are matched with `roi_names`: columns are
    put in the atlas's order and an ROI without a column becomes a column of NaN. Headers that merely count
    (``0..n-1``, ``1..n``) match by position.

    Parameters
    ----------
    path : path
        ``.npy`` or ``.npz`` (one array, never unpickled), ``.csv``, ``.tsv``, ``.1D`` or ``.txt``.
    roi_names : sequence of str, optional
        Names of the atlas's ROIs, to match labelled columns with.

    Returns
    -------
    ndarray (n_volumes, n_rois), float16 where the file is float16, else float32

    Raises
    ------
    OpenBrainMassError
        If the file is missing, of another type, damaged, not numeric, not two-dimensional or empty, or its column
        labels are not the atlas's.
    """
    path = Path(path)
    table = _read(path)
    if roi_names is None or table.labels is None or _merely_counts(table.labels):
        return table.values
    return _in_order(path, table.values, table.labels, roi_names)


def read_parcels(path: str | Path, atlas: Atlas) -> np.ndarray:
    """Read one recording with exactly the columns of an atlas.

    Named columns are matched by name. Columns with AFNI's ROI numbers (``#17``, ``Mean_17``), or numbers with gaps,
    are matched with ``atlas.values`` where these are known, else with the names of a numbered atlas. All others are
    taken by position, and then there must be one for each ROI.

    Parameters
    ----------
    path : path
        A file as for `read_series`.
    atlas : Atlas
        What the columns must be.

    Returns
    -------
    ndarray (n_volumes, atlas.n_rois), float16 where the file is float16, else float32
        NaN throughout in the column of an ROI that the file does not have.

    Raises
    ------
    OpenBrainMassError
        As for `read_series`, and if the columns are not those of the atlas.
    """
    path = Path(path)
    table = _read(path)
    n_columns = table.values.shape[1]
    whole = n_columns == atlas.n_rois
    if table.numbers is not None and not (whole and _merely_counts([str(number) for number in table.numbers])):
        return _in_order(path, table.values, table.numbers, _numbers_of(atlas, path, table.numbers))
    if table.numbers is None and table.labels is not None and not _merely_counts(table.labels) and not atlas.numbered:
        return _in_order(path, table.values, table.labels, atlas.roi_names)
    if not whole:
        turned = "; it looks transposed" if len(table.values) == atlas.n_rois else ""
        raise OpenBrainMassError(
            f"The recording {path} has {n_columns} columns in {len(table.values)} volumes{turned}; the atlas "
            f"{atlas.name} has {atlas.n_rois} ROIs, and no label says which column is which. Name the atlas that it "
            "was extracted with."
        )
    return table.values


def uncovered_rois(bold: np.ndarray, atlas: Atlas) -> dict[str, str]:
    """Names of the ROIs without any value, joined by ``;``, as the measure ``uncovered_rois``; empty where none is.

    Parameters
    ----------
    bold : ndarray (n_volumes, n_rois)
        BOLD with the columns of the atlas.
    atlas : Atlas
        What the columns are.
    """
    empty = np.flatnonzero(np.isnan(bold).all(axis=0))
    return {"uncovered_rois": ";".join(atlas.roi_names[roi] for roi in empty)} if len(empty) else {}


def series_labels(path: str | Path) -> tuple[str, ...] | None:
    """Column labels of a table that has some; None for arrays, for no header and for headers that merely count.

    Raises
    ------
    OpenBrainMassError
        If the file is no text.
    """
    path = Path(path)
    if path.suffix.lower() not in _SEPARATORS or not path.is_file():
        return None
    labels = _guarded(path, lambda: _layout(path)[0])
    return None if labels is None or _merely_counts(labels) else tuple(labels)


def _read(path: Path) -> _Table:
    if not path.is_file():
        raise OpenBrainMassError(
            f"The recording {path} does not exist. Check the column `file`; its paths start at the folder of the table."
        )
    if path.suffix.lower() not in (*_ARRAYS, *_SEPARATORS):
        raise OpenBrainMassError(
            f"The recording {path} is a {path.suffix or 'nameless'} file; one of {', '.join(SUFFIXES)} was expected. "
            "Save the (n_volumes, n_rois) array as .npy or as a table."
        )
    table = _guarded(path, lambda: _read_array(path) if path.suffix.lower() in _ARRAYS else _read_table(path))
    values = table.values
    if values.ndim != 2 or 0 in values.shape:
        raise OpenBrainMassError(
            f"The recording {path} has the shape {values.shape}; (n_volumes, n_rois) was expected. Save it so."
        )
    if values.dtype == np.float16:
        return table
    with np.errstate(over="ignore"):
        single = values.astype(np.float32)
    if np.isinf(single).any() and not np.isinf(values).any():
        raise OpenBrainMassError(
            f"The recording {path} has values beyond 3e38, which no BOLD has. Write it again or remove its row."
        )
    return _Table(single, table.labels, table.numbers)


def _guarded(path: Path, read):
    """What a reader returns; whatever a foreign file makes it raise becomes one sentence."""
    try:
        return read()
    except OpenBrainMassError:
        raise
    # Damage surfaces as almost any exception of numpy, zipfile, zlib and pandas, so none can be listed.
    except Exception as error:
        raise OpenBrainMassError(
            f"The recording {path} cannot be read ({_printable(error)}). Numbers in a whole, unpickled {path.suffix} "
            "file were expected; write it again or remove its row."
        ) from error


def _printable(error: Exception) -> str:
    """The words of an error without the bytes of the file that it may quote."""
    words = " ".join((str(error) or type(error).__name__).split())
    # numpy's own words advise its reader to unpickle what a stranger sent.
    words = "it is damaged or holds Python objects, not numbers" if "allow_pickle" in words else words
    words = "".join(letter if letter.isprintable() else "?" for letter in words)
    return words if len(words) <= 160 else words[:157] + "..."


def _read_array(path: Path) -> _Table:
    if path.suffix.lower() == ".npz":
        values = _read_archive(path)
    else:
        _small_enough(path, path.stat().st_size)
        # Mapping first: a false header is noticed before memory is given to it.
        with np.errstate(over="ignore"):
            values = np.load(path, mmap_mode="r", allow_pickle=False)
    if values.dtype.kind not in "fiu":
        raise ValueError(f"its values are of type {values.dtype}")
    return _Table(np.array(values), None, None)


def _read_archive(path: Path) -> np.ndarray:
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        size = sum(member.file_size for member in members)
        if len(members) != 1 or size > _LARGEST_BYTES:
            names = ", ".join(member.filename for member in members[:4])
            raise OpenBrainMassError(
                f"The recording {path} holds {len(members)} arrays of {size:,} bytes ({names}); one array of less than "
                f"{_LARGEST_BYTES:,} bytes was expected. Save each recording by itself."
            )
        with archive.open(members[0]) as member:
            # The reader gives memory to the claimed shape before it has seen the bytes.
            version = np.lib.format.read_magic(member)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, dtype = header(member)
            if int(np.prod(shape, dtype=object)) * dtype.itemsize > size:
                raise ValueError(f"its header claims the shape {shape}, more than its {size:,} bytes hold")
    with np.load(path, allow_pickle=False) as archive:
        return archive[archive.files[0]]


def _small_enough(path: Path, size: int, largest: int | None = None) -> None:
    largest = _LARGEST_BYTES if largest is None else largest
    if size > largest:
        raise OpenBrainMassError(
            f"The recording {path} has {size:,} bytes; less than {largest:,} were expected of one parcellated "
            "recording. Save each recording by itself."
        )


def _read_table(path: Path) -> _Table:
    labels, numbers, rows, separator = _layout(path)
    if not rows:
        raise ValueError("it has no volumes")
    widths = [row.count(separator) + 1 if separator else len(row.split()) for row in rows]
    ragged = next((line for line, width in enumerate(widths) if width != widths[0]), None)
    if ragged is not None:
        raise ValueError(f"volume 1 has {widths[0]} values but volume {ragged + 1} has {widths[ragged]}")
    if labels is not None and len(labels) != widths[0]:
        raise ValueError(f"its header has {len(labels)} labels but its rows {widths[0]} values")
    table = pd.read_csv(
        io.BytesIO(b"\n".join(rows)),
        sep=separator.decode() if separator else r"\s+",
        header=None,
        na_values=_MISSING,
        dtype=np.float64,
        index_col=False,
        # The missing value of a one-column table is an empty line.
        skip_blank_lines=False,
    )
    return _Table(table.to_numpy(dtype=np.float64), labels, numbers)


def _layout(path: Path) -> tuple[list[str] | None, list[int] | None, list[bytes], bytes | None]:
    """Labels and ROI numbers of a text file where it has such, its lines of data, and what separates values."""
    lines = _lines(path)
    separator, comments = _SEPARATORS[path.suffix.lower()], []
    if separator is None:
        first = next((i for i, line in enumerate(lines) if not _is_comment(line)), len(lines))
        comments = lines[:first]
        # Tools end every line with a separator, which is no missing value.
        lines = [line.strip().rstrip(b",") for line in lines[first:] if not _is_comment(line)]
        separator = next((mark for mark in (b"\t", b",") if lines and mark in lines[0]), None)
    elif separator == b"\t" and lines and b"\t" not in lines[0] and b"," in lines[0]:
        # Tools have written tables with commas and called them .tsv.
        separator = b","
    if not lines:
        return None, None, [], separator
    fields = _fields(lines[0], separator)
    if len(fields) > _MOST_COLUMNS:
        raise ValueError(f"its first line has {len(fields):,} values")
    words = [field for field in fields if _number(field) is None]
    if 0 < len(words) <= len(fields) // 2:
        raise ValueError(f"its first line has {words[0]!r} among {len(fields) - len(words)} numbers")
    commented = None if words else _commented(comments, separator, len(fields))
    header = commented or (fields if words or _count_upwards(fields) else None)
    if header is None:
        return None, None, lines, separator
    if header is fields:
        lines = lines[1:]
        if [field.lower() for field in header[:2]] == _AFNI_COLUMNS:
            header = header[2:]
            lines = [line.split(separator, 2)[-1] for line in lines]
    labels, numbers = _roi_numbers(header, marked=bool(comments))
    return labels, numbers, lines, separator


def _lines(path: Path) -> list[bytes]:
    """Lines of a text file, checked to be text of a bearable size."""
    _small_enough(path, path.stat().st_size, _LARGEST_TEXT)
    data = path.read_bytes()
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("it is UTF-16 text; save it as UTF-8")
    if b"\0" in data:
        raise ValueError("it holds binary data or UTF-16 text")
    data = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").replace(b"\r", b"\n").rstrip(b"\n ")
    if data.count(b"\n") > _MOST_VOLUMES:
        raise ValueError(f"it has more than {_MOST_VOLUMES:,} lines")
    lines = data.split(b"\n") if data else []
    longest = max(map(len, lines), default=0)
    if longest > _LONGEST_LINE:
        raise ValueError(f"it has a line of {longest:,} bytes")
    return lines


def _is_comment(line: bytes) -> bool:
    return not line.strip() or line.lstrip().startswith((b"#", b"//"))


def _fields(line: bytes, separator: bytes | None) -> list[str]:
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        raise ValueError("it is not UTF-8 text; save it as UTF-8") from error
    if separator is None:
        return [field.strip('"') for field in text.split()]
    return [
        field.strip() for field in next(csv.reader([text], delimiter=separator.decode(), skipinitialspace=True), [])
    ]


def _commented(comments: list[bytes], separator: bytes | None, n_columns: int) -> list[str] | None:
    """The last comment above the data that has a label for each column."""
    bare = (line.strip().lstrip(b"#/").strip().rstrip(b",") for line in reversed(comments))
    return next((labels for line in bare if len(labels := _fields(line, separator)) == n_columns), None)


def _count_upwards(fields: list[str]) -> bool:
    """Volumes are measurements: one that counts upwards in whole numbers from ROI to ROI is a header."""
    counts = len(fields) > 1 and all(field.isdecimal() for field in fields)
    return counts and bool(np.all(np.diff(np.array(fields, dtype=float)) > 0))


def _roi_numbers(header: list[str], marked: bool) -> tuple[list[str], list[int] | None]:
    """Labels without AFNI's marks, and the ROI numbers that they are, if they are such."""
    bare = [label.lstrip("#").strip().removeprefix("Mean_").strip() for label in header]
    if not all(label.isdecimal() and len(label) < 9 for label in bare):
        return [label.lstrip("#") for label in header], None
    gaps = not _merely_counts(bare)
    is_numbered = marked or gaps or bare != header
    return bare, [int(label) for label in bare] if is_numbered else None


def _number(label: str) -> float | None:
    try:
        return float("nan") if label in _MISSING else float(label)
    except ValueError:
        return None


def _merely_counts(labels: Sequence[str]) -> bool:
    return any(list(labels) == [str(i + first) for i in range(len(labels))] for first in (0, 1))


def _numbers_of(atlas: Atlas, path: Path, numbers: Sequence[int]) -> list[int]:
    """The number of each ROI of an atlas, as AFNI counts them."""
    if atlas.values is not None:
        return list(atlas.values)
    if atlas.numbered:
        return [int(name) for name in atlas.roi_names]
    raise OpenBrainMassError(
        f"The recording {path} gives {len(numbers)} ROIs by number ({numbers[0]} to {numbers[-1]}), but of the atlas "
        f"{atlas.name} ({atlas.n_rois} ROIs) only names are known. Give its label image (--atlas file.nii.gz)."
    )


def _in_order(path: Path, values: np.ndarray, labels: Sequence, roi_names: Sequence) -> np.ndarray:
    """Columns in the order of the atlas; NaN where an ROI has none."""
    row_of = {name: row for row, name in enumerate(roi_names)}
    strangers = [str(label) for label in labels if label not in row_of]
    if strangers or len(set(labels)) < len(labels):
        raise OpenBrainMassError(
            f"The recording {path} has columns named {', '.join(strangers[:4]) or 'alike'}, which the atlas (with "
            f"ROIs such as {roi_names[0]}) does not have. Give the atlas that the file was extracted with, or mend its "
            "header."
        )
    ordered = np.full((len(values), len(roi_names)), np.nan, dtype=values.dtype)
    ordered[:, [row_of[label] for label in labels]] = values
    return ordered
