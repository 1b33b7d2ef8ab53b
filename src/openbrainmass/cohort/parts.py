"""The parts of a build: the recordings of each chunk are read, judged each by itself, and stored."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from openbrainmass.atlas import Atlas
from openbrainmass.cohort.cohort import bold_digest
from openbrainmass.cohort.duplicates import Fingerprinter
from openbrainmass.cohort.order import Template, check
from openbrainmass.cohort.quality import QualitySettings, inspect
from openbrainmass.cohort.shards import FINGERPRINT_LENGTH, ShardWriter, converter, write_fingerprints
from openbrainmass.cohort.source import Series, Source, one_tr
from openbrainmass.cohort.staging import Staging, chunk_digest, chunk_rows, plain, write_part
from openbrainmass.durable import sha256_file
from openbrainmass.errors import OpenBrainMassError

_SHOWN = 5


class Counter(Protocol):
    """Told of every recording that was read: whether it was left out, and how many were read together."""

    def __call__(self, n_read: int, n_excluded: int) -> None: ...  # noqa: D102


@dataclass(frozen=True)
class Work:
    """What a process needs to read chunks; can be pickled."""

    folder: Path
    read: Callable[[Mapping[str, Any]], Series]
    atlas: Atlas
    quality: QualitySettings | None
    dtype: str
    template: Template | None


def read_chunks(
    staging: Staging,
    work: Work,
    source: Source,
    jobs: int,
    progress: bool,
    skip_unreadable: bool,
    share: tuple[int, int] = (0, 1),
) -> None:
    """Read every chunk whose part is not there yet.

    Parameters
    ----------
    staging, work, source
        The build.
    jobs : int
        Processes.
    progress : bool
        Whether a progress bar is drawn.
    skip_unreadable : bool
        Whether recordings that cannot be read are just left out.
    share : (int, int)
        Which chunks: those whose number leaves the first when divided by the second.

    Raises
    ------
    OpenBrainMassError
        If recordings cannot be read (at the end), values do not fit the type, or a process is killed.
    """
    numbers = range(share[0], staging.n_chunks, share[1])
    unreadable: list[str] = []
    with counted(sum(len(range(*staging.span(n).indices(staging.n_recordings))) for n in numbers), progress) as count:
        for result in _results(staging, work, source, numbers, jobs, count, skip_unreadable):
            if "failure" in result:
                staging.remove()
                raise OpenBrainMassError(result["failure"])
            unreadable += result["unreadable"]
    if unreadable and not skip_unreadable:
        shown = " ".join(f"({number}) {sentence}" for number, sentence in enumerate(unreadable[:_SHOWN], start=1))
        more = f" And {len(unreadable) - _SHOWN} more." if len(unreadable) > _SHOWN else ""
        raise OpenBrainMassError(
            f"{len(unreadable)} of {staging.n_recordings} recordings cannot be read: {shown}{more} Mend the files and run "
            "the command again (what could be read is kept), or leave them out, each with its reason: --skip-unreadable."
        )


def _results(
    staging: Staging,
    work: Work,
    source: Source,
    numbers: range,
    jobs: int,
    count: Counter,
    skip_unreadable: bool,
) -> Iterator[dict[str, Any]]:
    """What each chunk came to, in any order."""
    digest, folder = staging.digest, getattr(source.read, "folder", None)

    def missing() -> Iterator[tuple[int, list[dict[str, Any]], str]]:
        for number in numbers:
            rows = chunk_rows(source, staging.span(number))
            made_of = chunk_digest(digest, rows, folder)
            part = staging.done(number, made_of)
            if part is None or (part["unreadable"] and not skip_unreadable):
                yield number, rows, made_of
            else:
                count(len(rows), len(part["exclusions"]))

    if jobs == 1:
        for number, rows, made_of in missing():
            yield make_part(work, number, rows, made_of, count)
        return
    from joblib import Parallel, delayed, parallel_config

    with parallel_config(backend="loky", inner_max_num_threads=1):
        tasks = (delayed(make_part)(work, *chunk) for chunk in missing())
        try:
            for result in Parallel(n_jobs=jobs, batch_size=1, return_as="generator_unordered")(tasks):
                count(result.get("n_read", 0), result.get("n_excluded", 0))
                yield result
        except BrokenProcessPool as error:
            raise OpenBrainMassError(
                f"A process that read for {staging.out} was killed, probably because memory ran out. Run the command "
                "again with fewer processes (--jobs) to go on where it stopped."
            ) from error


def make_part(
    work: Work,
    number: int,
    rows: list[dict[str, Any]],
    digest: str,
    count: Counter | None = None,
) -> dict[str, Any]:
    """Read the recordings of one chunk, judge each by itself, and write the chunk's part.

    Parameters
    ----------
    work : Work
    number : int
        Which chunk.
    rows : list of dict
        Its rows of the recordings table.
    digest : str
        What the part is made of.
    count : callable, optional
        Told of every recording.

    Returns
    -------
    dict
        ``n_read``, ``n_excluded``, ``unreadable`` (sentences); or ``failure``, a sentence, where values do not fit.
    """
    writer = ShardWriter(work.folder, f"shard-{number:05d}")
    part: dict[str, Any] = {
        "digest": digest,
        "rows": [],
        "places": [],
        "exclusions": [],
        "dtypes": [],
        "unreadable": [],
    }
    fingerprint = Fingerprinter(work.atlas.n_rois)
    fingerprints = np.zeros((len(rows), FINGERPRINT_LENGTH), dtype=np.float16)
    convert = converter(work.dtype)
    for at, row in enumerate(rows):
        bold, kept = _judged(work, row, part)
        if bold is not None:
            try:
                bold = convert(bold, row["recording_id"])
            except OpenBrainMassError as error:
                return {"failure": str(error)}
            bold, kept = _still_good(work, row, bold, kept, part)
        if bold is not None:
            fingerprints[len(part["rows"])] = fingerprint(bold)
            part["dtypes"] = sorted({*part["dtypes"], str(bold.dtype)})
            shard = writer.add(row["recording_id"], bold)
            part["rows"].append({**row, **kept, "digest": bold_digest(bold), "shard": shard})
            part["places"].append(at)
        if count is not None:
            count(1, bold is None)
    writer.close()
    part["shards"] = writer.entries
    part["fingerprints"] = _stored_fingerprints(work.folder, number, fingerprints[: len(part["rows"])])
    write_part(work.folder, number, part)
    return {"n_read": len(rows), "n_excluded": len(part["exclusions"]), "unreadable": part["unreadable"]}


def _stored_fingerprints(folder: Path, number: int, fingerprints: np.ndarray) -> dict[str, Any]:
    file = folder / f"fingerprints-{number:05d}.npy"
    write_fingerprints(file, len(fingerprints), [fingerprints])
    return {"file": file.name, "bytes": file.stat().st_size, "sha256": sha256_file(file)}


def _judged(work: Work, row: dict[str, Any], part: dict[str, Any]) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Read one recording and judge it: its BOLD (None where it is left out) and what was measured."""
    # Readers expect what a table gives them, where an unknown tr is NaN.
    asked = {**row, "tr": float("nan") if row.get("tr") is None else row["tr"]}
    try:
        series = work.read(asked)
    # One file that nobody foresaw must not stop the reading of thousands; it is named like the others.
    except Exception as error:
        sentence = str(error) if isinstance(error, OpenBrainMassError) else _unforeseen(row, error)
        part["unreadable"].append(sentence)
        return _excluded(row, "unreadable", sentence, part)
    measured = {key: plain(value) for key, value in series.measures.items()}
    if work.quality is None:
        return series.bold, measured | {"n_volumes": len(series.bold)}
    try:
        tr = one_tr({"the tables": asked["tr"], **series.tr}, row["recording_id"])
    except OpenBrainMassError as error:
        return _excluded(row, "contradicting-tr", str(error), part)
    finding = inspect(series.bold, work.atlas, tr, work.quality)
    measured |= {key: plain(value) for key, value in finding.measures.items()}
    if finding.reason is not None:
        return _excluded(row, finding.reason, finding.detail, part)
    if work.template is not None and (wrong := check(series.bold, work.template)):
        return _excluded(row, "wrong-roi-order", wrong, part)
    return series.bold, measured | {"tr": plain(tr)}


def _unforeseen(row: dict[str, Any], error: Exception) -> str:
    told = " ".join(str(error).split())[:300]
    return (
        f"{row.get('file') or row['recording_id']} could not be read, in a way nobody foresaw "
        f"({type(error).__name__}: {told}). Check the file; if it is sound, please report this."
    )


def _still_good(
    work: Work, row: dict[str, Any], bold: np.ndarray, kept: dict[str, Any], part: dict[str, Any]
) -> tuple[np.ndarray | None, dict[str, Any]]:
    """Judge again what float16 has rounded: a weak signal on a large mean may have become a constant."""
    if work.quality is None or work.dtype != "float16":
        return bold, kept
    finding = inspect(bold, work.atlas, kept["tr"] or float("nan"), work.quality)
    if finding.reason is not None:
        return _excluded(row, finding.reason, f"{finding.detail} (after rounding to float16)", part)
    return bold, kept | {key: plain(value) for key, value in finding.measures.items()}


def _excluded(row: dict[str, Any], reason: str, detail: str, part: dict[str, Any]) -> tuple[None, dict[str, Any]]:
    known = {key: row.get(key) for key in ("recording_id", "participant_id", "site", "dx", "file")}
    part["exclusions"].append({**known, "reason": reason, "detail": detail})
    return None, {}


@contextmanager
def counted(total: int, progress: bool) -> Iterator[Counter]:
    """Draw a progress bar on standard error with the time left and how many were left out so far."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[excluded]} left out"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not progress) as bar:
        task = bar.add_task("Reading recordings", total=total, excluded=0)
        excluded = 0

        def count(n_read: int, n_excluded: int) -> None:
            nonlocal excluded
            excluded += n_excluded
            bar.update(task, advance=n_read, excluded=excluded)

        yield count


def busy(title: str, progress: bool) -> AbstractContextManager[Any]:
    """Show on standard error that something is being done of which nobody knows how long it takes."""
    from rich.console import Console

    return Console(stderr=True).status(title) if progress else nullcontext()
