"""Building a store: every recording is read once, judged, and stored; a build that was stopped goes on."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from openbrainmass.cohort.assembly import assemble
from openbrainmass.cohort.cohort import Cohort
from openbrainmass.cohort.order import Template, cohort_template
from openbrainmass.cohort.parts import Work, busy, counted, read_chunks
from openbrainmass.cohort.quality import QualitySettings
from openbrainmass.cohort.shards import converter
from openbrainmass.cohort.source import Series, Source
from openbrainmass.cohort.staging import CHUNK, COSTLY_CHUNK, Staging, held_staging, staging_folder
from openbrainmass.cohort.store import FORMAT_VERSION, load_cohort
from openbrainmass.durable import make_folder, read_json, require_free, sha256_file
from openbrainmass.errors import OpenBrainMassError

_POLL_SECONDS = 5.0


def build_store(
    source: Source | Cohort,
    out: str | Path,
    quality: QualitySettings | None = None,
    dtype: str = "auto",
    progress: bool = True,
    jobs: int = 1,
    resume: bool = True,
    against: Sequence[Cohort] = (),
    template: Cohort | Template | None = None,
    skip_unreadable: bool = False,
) -> Cohort:
    """Check every recording of a source and store those that pass.

    Stopped at any moment and called again, it goes on where it stopped. The store's bytes depend neither on that nor
    on the number of processes. Memory is that of one shard being written, in each process.

    Parameters
    ----------
    source : Source or Cohort
        From `read_source`, or a cohort. Where ``source.read`` has a ``folder``, files that were changed between two
        calls are read again; where it has ``settings``, a call with others is told so.
    out : path
        The store's folder; must not exist yet (or be empty).
    quality : QualitySettings, optional
        What recordings must be like.
    dtype : {"auto", "float32", "float16"}
        How BOLD is stored; "auto" keeps float16 where the source is float16 and stores float32 otherwise.
    progress : bool
        Whether a progress bar is drawn (on standard error).
    jobs : int
        Processes that read.
    resume : bool
        Whether to go on with an earlier, unfinished build; it is thrown away otherwise.
    against : sequence of Cohort
        Scans that must not be among these.
    template : Cohort or Template, optional
        What the order of the ROIs is checked with: a cohort of the same atlas.
    skip_unreadable : bool
        Whether recordings that cannot be read are left out; they stop the build at its end otherwise.

    Returns
    -------
    Cohort
        The store, opened.

    Raises
    ------
    OpenBrainMassError
        If `out` is taken, being built by another process, or cannot be written; an unfinished build of something else
        is there; a recording cannot be read; none is left; or values overflow `dtype`.
    """
    quality = quality or QualitySettings()
    source, work, staging = _prepared(source, out, quality, dtype, template, against)
    if _finished_before(staging):
        return load_cohort(out)
    require_free(out)
    with held_staging(staging, resume), _one_thread():
        read_chunks(staging, work, source, jobs, progress, skip_unreadable)
        with busy("Comparing all recordings and writing the store", progress):
            assemble(staging, source, quality, against)
    return load_cohort(out)


def submit_build(
    source: Source | Cohort,
    out: str | Path,
    partition: str,
    quality: QualitySettings | None = None,
    dtype: str = "auto",
    progress: bool = True,
    jobs: int = 1,
    resume: bool = True,
    against: Sequence[Cohort] = (),
    template: Cohort | Template | None = None,
    skip_unreadable: bool = False,
    minutes: int = 240,
    memory_gb: int = 4,
    cluster: str = "slurm",
) -> Cohort:
    """Build a store with an array of SLURM tasks, and a job that puts it together when they have ended.

    Waits until the store is there. If the waiting is interrupted, the jobs go on; called again, it takes over what
    they have done. The source and the store must be on disks that all nodes see.

    Parameters
    ----------
    source, out, quality, dtype, progress, resume, against, template, skip_unreadable
        See `build_store`; the bytes of the store are the same.
    partition : str
        Where the jobs go.
    jobs : int
        How many tasks read; task *i* takes the chunks whose number leaves *i* when divided by this.
    minutes, memory_gb : int
        Limits of each task.
    cluster : {"slurm", "local", "debug"}
        Submitit's name of where the jobs run; "local" are processes of this machine.

    Returns
    -------
    Cohort
        The store, opened.

    Raises
    ------
    OpenBrainMassError
        As `build_store`; or if submitit or SLURM is missing, or a job ends without a result.
    """
    quality = quality or QualitySettings()
    out = Path(out).absolute()
    source, work, staging = _prepared(source, out, quality, dtype, template, against)
    if _finished_before(staging):
        return load_cohort(out)
    require_free(out)
    with held_staging(staging, resume):
        logs = make_folder(out.with_name(f".{out.name}.jobs"))
    executor = _executor(logs, cluster, partition, minutes, memory_gb)
    common = (staging, work, source, skip_unreadable)
    with executor.batch():
        tasks = [executor.submit(_read_share, *common, (task, jobs)) for task in range(jobs)]
    if cluster == "slurm":
        # It starts when the tasks have ended, however they did, also when nobody waits here any more.
        dependency = f"afterany:{tasks[0].job_id.split('_')[0]}"
        executor.update_parameters(slurm_additional_parameters={"dependency": dependency})
    else:
        _wait(tasks, staging, progress)
    last = executor.submit(_put_together, *common, quality, against)
    _wait([*tasks, last], staging, progress)
    if (sentence := _outcome(last, logs)) is not None:
        causes = [_outcome(task, logs) for task in tasks]
        raise OpenBrainMassError(next((cause for cause in causes if cause), sentence))
    shutil.rmtree(logs, ignore_errors=True)
    return load_cohort(out)


def _executor(logs: Path, cluster: str, partition: str, minutes: int, memory_gb: int) -> Any:
    try:
        import submitit
    except ImportError as error:
        raise OpenBrainMassError(
            "SLURM jobs need the package submitit, which is not installed. Install the extra: "
            "`pip install 'openbrainmass[slurm]'`."
        ) from error
    try:
        executor = submitit.AutoExecutor(folder=str(logs), cluster=cluster)
    except RuntimeError as error:
        raise OpenBrainMassError(
            f"No job can be submitted from here ({error}). Run the command on a login node of the cluster, or without "
            "--slurm."
        ) from error
    executor.update_parameters(name="openbrainmass", timeout_min=minutes, cpus_per_task=1)
    executor.update_parameters(slurm_partition=partition, slurm_mem=f"{memory_gb}G")
    return executor


def _read_share(
    staging: Staging, work: Work, source: Source, skip_unreadable: bool, share: tuple[int, int]
) -> str | None:
    """What one task does; returns a sentence where something is wrong."""
    try:
        with staging.hold(shared=True), _one_thread():
            read_chunks(staging, work, source, 1, False, skip_unreadable, share)
    except OpenBrainMassError as error:
        return str(error)
    return None


def _put_together(
    staging: Staging,
    work: Work,
    source: Source,
    skip_unreadable: bool,
    quality: QualitySettings,
    against: Sequence[Cohort],
) -> str | None:
    """What the last job does; returns a sentence where something is wrong."""
    missing = staging.n_chunks - staging.n_done
    if missing:
        return (
            f"{missing} of the {staging.n_chunks} parts of {staging.out} are missing: their tasks ended early. Run the "
            "same command again to go on with these."
        )
    try:
        with staging.hold(), _one_thread():
            read_chunks(staging, work, source, 1, False, skip_unreadable)
            assemble(staging, source, quality, against)
    except OpenBrainMassError as error:
        return str(error)
    return None


def _wait(jobs: list[Any], staging: Staging, progress: bool) -> None:
    """Wait until jobs have ended, and show how many recordings they have read."""
    seen = 0
    with counted(staging.n_recordings, progress) as count:
        while not all(job.done() for job in jobs):
            done = min(staging.n_done * staging.chunk, staging.n_recordings)
            count(done - seen, 0)
            seen = done
            time.sleep(_POLL_SECONDS)


def _outcome(job: Any, logs: Path) -> str | None:
    try:
        return job.result()
    # Submitit raises several kinds of errors, all of which mean that the job did not come to its end.
    except Exception as error:
        return (
            f"The job {job.job_id} ended without a result ({str(error).splitlines()[0]}); its output is in {logs}. Run "
            "the same command again to go on with what is missing."
        )


def store_as_it_is(cohort: Cohort, out: Path, dtype: str, progress: bool) -> None:
    """Store a cohort without judging it; what `save_cohort` does."""
    source, work, staging = _prepared(cohort, out, None, dtype, None, ())
    require_free(out)
    with held_staging(staging), _one_thread():
        try:
            read_chunks(staging, work, source, 1, progress, skip_unreadable=False)
            assemble(staging, source, None, ())
        except OpenBrainMassError:
            staging.remove()
            raise


def _prepared(
    source: Source | Cohort,
    out: str | Path,
    quality: QualitySettings | None,
    dtype: str,
    template: Cohort | Template | None,
    against: Sequence[Cohort],
) -> tuple[Source, Work, Staging]:
    """Check what can be checked before anything is read, and describe the build."""
    converter(dtype)
    if isinstance(template, Cohort):
        with _one_thread():
            template = cohort_template(template)
    if isinstance(source, Cohort):
        source = _as_source(source)
    _refuse_what_cannot_be_stored(source, against)
    reading = getattr(source.read, "settings", None)
    facts = {
        "package_version": version("openbrainmass"),
        "store_version": FORMAT_VERSION,
        "dataset": source.name,
        "atlas": f"{source.atlas.name} ({source.atlas.digest})",
        # Names and count may be the same where the ROIs of an image are not.
        "atlas_image": sha256_file(source.atlas.image) if source.atlas.image else None,
        "dtype": dtype,
        "quality": quality.model_dump(mode="json") if quality else None,
        "reading": reading.model_dump(mode="json") if reading is not None else None,
        "template": _template_digest(template) if template else None,
        "chunk": COSTLY_CHUNK if source.costly else CHUNK,
        "n_recordings": len(source.recordings),
        "recording_ids": hashlib.sha256("\n".join(source.recordings["recording_id"]).encode()).hexdigest(),
    }
    folder = staging_folder(Path(out))
    staging = Staging(folder, Path(out), facts, len(source.recordings), facts["chunk"])
    return source, Work(folder, source.read, source.atlas, quality, dtype, template), staging


def _template_digest(template: Template) -> str:
    # Rounded, for the last bits of a sum are other ones on another machine; adding zero makes -0 the same as 0.
    return hashlib.sha256((template.fc.round(6) + 0.0).tobytes()).hexdigest()


def _refuse_what_cannot_be_stored(source: Source, against: Sequence[Cohort]) -> None:
    for other in against:
        if other.atlas.digest != source.atlas.digest:
            raise OpenBrainMassError(
                f"{source.name} has the atlas {source.atlas.name} and {other.name}, which it is to be compared with, "
                f"{other.atlas.name}. Compare with stores of the same atlas."
            )
    if source.recordings.empty:
        raise OpenBrainMassError(f"The cohort {source.name} has no recordings, so there is nothing to store. Add some.")
    repeated = source.recordings["recording_id"][source.recordings["recording_id"].duplicated()]
    if len(repeated):
        raise OpenBrainMassError(
            f"{source.name} has more than one recording {repeated.iloc[0]}. Give each recording an id of its own."
        )


def _one_thread() -> AbstractContextManager[Any]:
    """Sums of several threads differ in their last bits, and on matrices of this size more threads are slower."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)


def _as_source(cohort: Cohort) -> Source:
    return Source(
        cohort.name,
        cohort.atlas,
        cohort.recordings,
        cohort.participants,
        cohort.exclusions,
        partial(_read_from, cohort.read),
    )


def _read_from(read: Callable[[str], np.ndarray], row: Mapping[str, Any]) -> Series:
    return Series(read(str(row["recording_id"])))


def _finished_before(staging: Staging) -> bool:
    """Whether an earlier call was stopped after the store had got its name; then only its remains are left."""
    manifest = staging.out / "manifest.json"
    if not manifest.is_file() or not (staging.folder / "plan.json").is_file():
        return False
    if read_json(manifest).get("plan") != staging.digest:
        return False
    staging.remove()
    return True
