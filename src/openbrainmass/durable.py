"""The only code that writes files: whole or not at all, flushed to disk, with checksums.

Every function writes to a temporary name beside the target, flushes it, and renames it,
so a reader (or a crash) sees the old content or the new one, never a mixture.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from openbrainmass.errors import OpenBrainMassError

TEXT_COLUMNS = frozenset(
    {
        "participant_id", "recording_id", "session", "run", "site", "file", "reason", "detail", "digest", "dead_rois",
        "protocol", "model",
    }
)  # fmt: skip
"""Columns that stay text even where every value looks like a number (an id such as 0050003, a model named 0.1)."""

MISSING = "n/a"
"""How a missing value is written in every table (the BIDS spelling)."""

_ROWS_AT_ONCE, _FEW_WORDS = 8192, 1000


def _explain(path: Path, error: OSError) -> OpenBrainMassError:
    return OpenBrainMassError(
        f"Cannot write {path}: {error.strerror or error}. "
        "A writable place was expected; choose another output or mend its permissions."
    )


def make_folder(path: str | Path) -> Path:
    """Create a folder (and its parents), or say why it cannot be used.

    Raises
    ------
    OpenBrainMassError
        If the folder cannot be created or written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path):
            pass
    except OSError as error:
        raise _explain(path, error) from error
    return path


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[IO[bytes]]:
    """Write a file piece by piece; it takes its name, whole, only when the block ends well."""
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as handle:
            temporary = Path(handle.name)
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        _sync(path.parent)
    except OSError as error:
        raise _explain(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file atomically: the old content or the new, never a part."""
    with new_file(path) as handle:
        handle.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON atomically; NaN is refused because other readers refuse it."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file, or say in one sentence why it cannot be read."""
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise OpenBrainMassError(f"{path} does not exist; a JSON file was expected. Check the path.") from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise OpenBrainMassError(
            f"{path} is not readable JSON ({error}). It may be torn or edited; restore or rebuild it."
        ) from error


def append_json_line(path: str | Path, record: Mapping[str, Any]) -> None:
    """Append one JSON record to a log; a torn last line is dropped by `read_json_lines`."""
    path = Path(path)
    try:
        with path.open("a", encoding="utf-8") as handle:
            handle.write(json.dumps(record) + "\n")
    except OSError as error:
        raise _explain(path, error) from error


def read_json_lines(path: str | Path) -> list[dict[str, Any]]:
    """Read a log written by `append_json_line`; a last line torn by a crash is left out."""
    records = []
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise OpenBrainMassError(
                    f"{path} line {number} is not JSON; the log was edited or damaged. Remove that line."
                ) from error
    return records


def write_tsv(path: str | Path, table: pd.DataFrame) -> None:
    """Write a table as TSV, ``n/a`` for missing values, floats at full precision."""
    with _new_text(path) as text:
        table.to_csv(text, sep="\t", index=False, na_rep=MISSING, lineterminator="\n")


def write_rows(path: str | Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as they come, as `write_tsv` would write their table; what a row lacks is ``n/a``.

    Parameters
    ----------
    path : path
    columns : sequence of str
        Header, and which values of a row are written.
    rows : iterable of dict
        Never held together, so a table may be larger than memory.
    """
    with _new_text(path) as text:
        writer = csv.writer(text, delimiter="\t", lineterminator="\n")
        writer.writerow(columns)
        for row in rows:
            writer.writerow([_cell(row.get(column)) for column in columns])


@contextlib.contextmanager
def _new_text(path: str | Path) -> Iterator[io.TextIOWrapper]:
    with new_file(path) as handle:
        text = io.TextIOWrapper(handle, encoding="utf-8", newline="", write_through=False)
        yield text
        text.flush()
        text.detach()


def _cell(value: Any) -> Any:
    missing = value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value))
    return MISSING if missing else value


def read_tsv(path: str | Path) -> pd.DataFrame:
    """Read a BIDS-style TSV; id-like columns stay text, others become numbers where every value is one.

    Raises
    ------
    OpenBrainMassError
        If the file is missing or is not a table.
    """
    path = Path(path)
    text = set(TEXT_COLUMNS)
    try:
        pieces = list(_pieces(path, text))
        # A column of numbers that turns to words further down is text from its first row on.
        mixed = {c for c in pieces[0].columns if len({piece[c].dtype.kind == "O" for piece in pieces}) > 1}
        if mixed:
            pieces = list(_pieces(path, text | mixed))
    except FileNotFoundError as error:
        raise OpenBrainMassError(f"{path} does not exist; a tab-separated table was expected.") from error
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise OpenBrainMassError(
            f"{path} is not a readable tab-separated table ({error}). Save it again as TSV with a header line."
        ) from error
    table = pieces[0] if len(pieces) == 1 else pd.concat(pieces, ignore_index=True)
    for column in table.columns:
        if table[column].isna().all():
            table[column] = table[column].astype("str")
    return table


def _pieces(path: Path, text: Set[str]) -> Iterator[pd.DataFrame]:
    """The rows of a TSV some thousands at a time, so that a large table is never held as text and as numbers."""
    reader = pd.read_csv(
        path,
        sep="\t",
        dtype=str,
        na_values=[MISSING, ""],
        keep_default_na=False,
        encoding="utf-8-sig",
        chunksize=_ROWS_AT_ONCE,
    )
    words: dict[str, dict[str, str]] = {}
    with reader:
        for piece in reader:
            piece.columns = [str(column).strip() for column in piece.columns]
            yield piece.assign(
                **{
                    column: _numbers(piece[column], column in text, words.setdefault(column, {}))
                    for column in piece.columns
                }
            )


def _numbers(values: pd.Series, text: bool, words: dict[str, str]) -> pd.Series:
    """A column as numbers where it may be and can; else as text that holds each repeated word once."""
    if not text:
        # An unparsable value means that the column is text, which is no error.
        with contextlib.suppress(ValueError, TypeError):
            return pd.to_numeric(values)
    found = values.to_numpy(dtype=object)
    if len(words) <= _FEW_WORDS:
        found = np.array([words.setdefault(v, v) if isinstance(v, str) else v for v in found], dtype=object)
    return pd.Series(found, index=values.index, dtype="str")


def write_tensors(path: str | Path, tensors: Mapping[str, Any], metadata: Mapping[str, str] | None = None) -> str:
    """Write numpy arrays or torch tensors as one safetensors file and return its sha256."""
    if all(isinstance(tensor, np.ndarray) for tensor in tensors.values()):
        from safetensors.numpy import save

        # safetensors stores the buffer of a strided array as it lies in memory, which would scramble it.
        tensors = {name: np.asarray(tensor, order="C") for name, tensor in tensors.items()}
    else:
        from safetensors.torch import save
    data = save(dict(tensors), metadata=dict(metadata) if metadata else None)
    write_bytes(path, data)
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: str | Path) -> str:
    """sha256 of a file's bytes, read in blocks."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as handle:
            while block := handle.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise OpenBrainMassError(f"{path} cannot be read ({error.strerror}). Check its permissions.") from error
    return digest.hexdigest()


def require_free(path: str | Path) -> Path:
    """Check, before hours of work, that a folder can later be made here: nothing is there and its place is writable.

    Raises
    ------
    OpenBrainMassError
        If something is there already or the place cannot be written to.
    """
    path = Path(path)
    try:
        taken = path.is_file() or (path.is_dir() and any(path.iterdir()))
        if taken:
            raise OpenBrainMassError(
                f"{path} exists already and would be overwritten. Name another output or remove it."
            )
        place = next(parent for parent in path.absolute().parents if parent.exists())
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise _explain(path, error) from error
    return path


@contextlib.contextmanager
def new_folder(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """Fill a folder under a temporary name; it takes its real name only when the block ends well.

    Parameters
    ----------
    path : path
        The folder to create.
    replace : bool
        Replace a folder that is there already; otherwise its presence is an error.

    Yields
    ------
    Path
        The temporary folder to write into.
    """
    path = Path(path)
    if not replace:
        require_free(path)
    temporary, held = path.with_name(f".{path.name}.incomplete"), path.with_name(f".{path.name}.lock")
    make_folder(path.absolute().parent)
    with lock(held, f"Another process is writing {path} at this moment. Wait until it has ended, or stop it."):
        try:
            # Another process may have finished it between the first look and the lock.
            if not replace:
                require_free(path)
            if temporary.exists():
                shutil.rmtree(temporary)
            make_folder(temporary)
            yield temporary
            install_folder(temporary, path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            held.unlink(missing_ok=True)


def install_folder(temporary: Path, path: Path) -> None:
    """Give a finished folder its name, retiring what had it; the folder's entries are flushed first."""
    try:
        _sync(temporary)
        _install(temporary, path)
    except OSError as error:
        raise _explain(path, error) from error


def _install(temporary: Path, path: Path) -> None:
    """Give a finished folder its name, retiring what had it."""
    if path.exists():
        retired = path.with_name(f".{path.name}.replaced")
        shutil.rmtree(retired, ignore_errors=True)
        os.replace(path, retired)
        os.replace(temporary, path)
        shutil.rmtree(retired)
    else:
        os.replace(temporary, path)
    _sync(path.parent)


def link_file(source: str | Path, target: str | Path) -> None:
    """Give a file a second name without copying it; where the file system cannot, copy it."""
    source, target = Path(source), Path(target)
    try:
        os.link(source, target)
    except OSError:
        with new_file(target) as handle, source.open("rb") as content:
            shutil.copyfileobj(content, handle, 1 << 20)


@contextlib.contextmanager
def lock(path: str | Path, busy: str, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock file, which the system frees when this process ends, however it ends.

    Parameters
    ----------
    path : path
        The lock file; it is created where it is missing.
    busy : str
        What to say when another process holds the lock.
    shared : bool
        Let others in that hold it shared, too.

    Raises
    ------
    OpenBrainMassError
        With `busy` as its message, at once, when another process holds the lock; or if it cannot be created.
    """
    descriptor = _locked(Path(path), busy, shared)
    try:
        yield
    finally:
        os.close(descriptor)


def _locked(path: Path, busy: str, shared: bool) -> int:
    import fcntl

    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise _explain(path, error) from error
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            if isinstance(error, BlockingIOError):
                raise OpenBrainMassError(busy) from error
            raise _explain(path, error) from error
        # Its holder may have removed the file after it was opened here; a lock on a removed file locks nobody out.
        if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
        os.close(descriptor)
