"""From folders or stores to one checked store: what `openbrainmass cohort` does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from openbrainmass.cohort.build import build_store, submit_build
from openbrainmass.cohort.cohort import Cohort
from openbrainmass.cohort.layouts.read import read_source
from openbrainmass.cohort.merge import merge_stores
from openbrainmass.cohort.order import find_template
from openbrainmass.cohort.quality import QualitySettings
from openbrainmass.cohort.source import ReadingSettings
from openbrainmass.cohort.store import load_cohort
from openbrainmass.durable import require_free
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.settings import Settings


class CurationSettings(Settings):
    """How a cohort is made.

    Attributes
    ----------
    reading, quality : tables
        See `ReadingSettings`, `QualitySettings`.
    """

    reading: ReadingSettings = ReadingSettings()
    quality: QualitySettings = QualitySettings()


def curate(
    sources: Sequence[str | Path],
    out: str | Path,
    *,
    atlas: str | None = None,
    dataset: str | None = None,
    layout: str | None = None,
    participants: str | Path | None = None,
    settings: CurationSettings | None = None,
    against: Sequence[str | Path] = (),
    template: str | Path | None = None,
    skip_unreadable: bool = False,
    dtype: str = "auto",
    jobs: int = 1,
    slurm: str | None = None,
    progress: bool = True,
) -> Cohort:
    """Make a store of a folder, or one store of several.

    Parameters
    ----------
    sources : sequence of path
        One folder of any layout, or stores.
    out : path
        The store's folder; must be free.
    atlas, dataset, layout, participants
        See `read_source`.
    settings : CurationSettings, optional
        How files are read and what recordings must be like.
    against : sequence of path
        Stores whose scans must not be among these.
    template : path, optional
        A store of the same atlas, to check the order of unlabelled ROIs with.
    skip_unreadable : bool
        Whether recordings that cannot be read are left out; they stop the build at its end otherwise.
    dtype : {"auto", "float32", "float16"}
        See `build_store`.
    jobs : int
        Processes that read.
    slurm : str, optional
        Partition of a cluster whose array tasks read instead.
    progress : bool
        Whether progress bars are drawn (on standard error).

    Returns
    -------
    Cohort
        The store, opened.
    """
    settings = settings or CurationSettings()
    paths = [Path(source) for source in sources]
    stores = [path for path in paths if (path / "manifest.json").is_file()]
    require_free(out)
    if len(stores) == len(paths):
        told = {
            "--atlas": atlas,
            "--layout": layout,
            "--participants": participants,
            "--against": against,
            "--template": template,
            "--skip-unreadable": skip_unreadable,
            "--dtype": dtype != "auto",
            "--slurm": slurm,
            "--set reading": settings.reading != ReadingSettings(),
        }
        _refuse_for_stores([option for option, value in told.items() if value])
        return merge_stores(stores, out, name=dataset, quality=settings.quality)
    if len(paths) > 1:
        other = next(path for path in paths if path not in stores)
        raise OpenBrainMassError(
            f"Several sources can be made into one only where each is a store; {other} is none. Make a store of it "
            f"first: `openbrainmass cohort {other} --out STORE`."
        )
    source = read_source(paths[0], atlas, dataset, layout=layout, participants=participants, settings=settings.reading)
    expected = None
    if template is not None or (settings.quality.check_order and not source.labelled):
        expected = find_template(source.atlas, load_cohort(template) if template else None)
    build = partial(submit_build, partition=slurm) if slurm else build_store
    return build(
        source,
        out,
        quality=settings.quality,
        dtype=dtype,
        progress=progress,
        jobs=jobs,
        against=[load_cohort(path) for path in against],
        template=expected,
        skip_unreadable=skip_unreadable,
    )


def _refuse_for_stores(options: Sequence[str]) -> None:
    if options:
        raise OpenBrainMassError(
            f"The sources are stores, which are made into one without being read again, so {', '.join(options)} would do "
            "nothing. Leave it out here and give it where a store is made of a folder."
        )
