"""Confounds as fMRIPrep writes them: found beside an image and chosen by nilearn's strategies."""

from __future__ import annotations

import io
import re
import tempfile
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from openbrainmass.cohort.source import ReadingSettings, volume_ranges
from openbrainmass.durable import read_json, write_bytes
from openbrainmass.errors import OpenBrainMassError

_SUFFIXES = ("_desc-confounds_timeseries.tsv", "_desc-confounds_regressors.tsv")
_AROMA = "_desc-smoothAROMAnonaggr_bold"
_MOTION = tuple(f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz")
_EXPANSIONS = ("", "_derivative1", "_power2", "_derivative1_power2")
_MOTION_24 = tuple(name + more for name in _MOTION for more in _EXPANSIONS)
_TISSUES = ("csf", "white_matter")
_NEEDED = {
    "simple": (*_MOTION_24, *_TISSUES),
    "scrubbing": (
        *_MOTION_24,
        *(name + more for name in _TISSUES for more in _EXPANSIONS),
        "framewise_displacement",
        "std_dvars",
    ),
    "compcor": (*_MOTION_24, "a_comp_cor_00"),
    "ica_aroma": _TISSUES,
}
_FD = "framewise_displacement"
_FAMILIES = (
    ("motion", re.compile("trans_|rot_")),
    ("cosine", re.compile("cosine")),
    ("white matter and CSF", re.compile("csf|white_matter")),
    ("aCompCor", re.compile("a_comp_cor")),
    ("global signal", re.compile("global_signal")),
)


@dataclass(frozen=True)
class Confounds:
    """What a strategy takes out of the series of one image.

    Attributes
    ----------
    regressors : ndarray (n_volumes, n_regressors) or None
        Columns to regress out.
    kept : ndarray (n_kept,), int, or None
        Volumes to keep, counted from 0; None where all are.
    measures : dict
        ``mean_fd`` (mm, over all volumes), ``fd_formula``, ``n_acquired``, ``n_censored``, ``kept_volumes``.
    steps : str
        What the regressors are and why volumes go.
    file : Path or None
        Where they come from.
    n_volumes : int or None
        Rows of that file.
    """

    regressors: np.ndarray | None = None
    kept: np.ndarray | None = None
    measures: dict[str, Any] = field(default_factory=dict)
    steps: str = "no confounds regressed out"
    file: Path | None = None
    n_volumes: int | None = None


def find_confounds(image: str | Path) -> Path | None:
    """The confounds file of an image: beside it, with no entity that the image has not.

    Parameters
    ----------
    image : path
        What fMRIPrep wrote; only its name is read.

    Returns
    -------
    Path or None

    Raises
    ------
    OpenBrainMassError
        If two different files could be meant.
    """
    image = Path(image)
    own = set(image.name.split("_"))
    fitting: dict[Path, int] = {}
    for suffix in _SUFFIXES:
        for path in sorted(image.parent.glob(f"*{suffix}")):
            parts = path.name.removesuffix(suffix).split("_")
            if own.issuperset(parts):
                fitting[path] = len(parts)
    nearest = [path for path, count in fitting.items() if count == max(fitting.values())]
    if len(nearest) > 1 and len({path.read_bytes() for path in nearest}) > 1:
        raise OpenBrainMassError(
            f"The image {image} has two confounds files that differ, {nearest[0].name} and {nearest[1].name}. Keep the "
            "one of the run of fMRIPrep that made the image."
        )
    return nearest[0] if nearest else None


def read_confounds(image: str | Path, settings: ReadingSettings) -> Confounds:
    """Choose confounds and volumes by one of nilearn's strategies, with the thresholds of the settings.

    Parameters
    ----------
    image : path
        What fMRIPrep wrote; only its name is read.
    settings : ReadingSettings
        `strategy`, `global_signal`, `fd_threshold`, `dvars_threshold`, `scrub_run`, `band_pass`.

    Returns
    -------
    Confounds
        With strategy ``none`` only the motion, where a confounds file tells it.

    Raises
    ------
    OpenBrainMassError
        If the confounds file is missing, damaged, lacks columns, or no volume is left.
    """
    image = Path(image)
    if (settings.denoising == "ica_aroma") != (_AROMA in image.name) and settings.denoising != "none":
        raise OpenBrainMassError(
            f"The image {image} does not fit the strategy {settings.denoising}: ica_aroma goes with "
            "desc-smoothAROMAnonaggr images and nothing else does. Change reading.strategy (--set)."
        )
    path = find_confounds(image)
    if path is None:
        if settings.denoising == "none":
            return Confounds()
        raise OpenBrainMassError(
            f"The image {image} has no confounds file beside it (*{_SUFFIXES[0]} or *{_SUFFIXES[1]}), which the "
            f"strategy {settings.denoising} needs. Fetch it, or use reading.strategy=none (--set)."
        )
    table = _table(path)
    if settings.denoising == "none":
        return Confounds(measures=_motion(table, path), file=path, n_volumes=len(table))
    return _chosen(path, table, settings)


def _table(path: Path) -> pd.DataFrame:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OpenBrainMassError(
            f"The confounds file {path} cannot be read ({error.strerror}). Check its permissions."
        ) from error
    if not data.strip():
        raise OpenBrainMassError(
            f"The confounds file {path} is empty; a table with a row for each volume was expected. Fetch it again."
        )
    try:
        table = pd.read_csv(io.BytesIO(data), sep="\t", na_values=["n/a"], encoding="utf-8-sig")
    except (ValueError, UnicodeDecodeError, pd.errors.ParserError) as error:
        raise OpenBrainMassError(
            f"The confounds file {path} is no tab-separated table ({' '.join(str(error).split())}). Fetch it again."
        ) from error
    if {"X", "Y", "Z", "FramewiseDisplacement"} & set(table.columns):
        raise OpenBrainMassError(
            f"The confounds file {path} has the column names of fMRIPrep before 1.2. Run a newer fMRIPrep."
        )
    return table


def _motion(table: pd.DataFrame, path: Path) -> dict[str, Any]:
    if _FD not in table:
        return {}
    fd = pd.to_numeric(table[_FD], errors="coerce").to_numpy(dtype=float)[1:]
    if not np.isfinite(fd).all() or not len(fd):
        raise OpenBrainMassError(
            f"The confounds file {path} has a {_FD} that is no number beyond its first row. Fetch it again."
        )
    return {"mean_fd": float(fd.mean()), "fd_formula": "power"}


def _chosen(path: Path, table: pd.DataFrame, settings: ReadingSettings) -> Confounds:
    needed = _NEEDED[settings.denoising] + (("global_signal",) if settings.global_signal else ())
    missing = [name for name in needed if name not in table]
    if missing:
        raise OpenBrainMassError(
            f"The confounds file {path} lacks {len(missing)} columns that the strategy {settings.denoising} needs, such "
            f"as {', '.join(missing[:3])}. Fetch the whole file or choose another strategy (--set reading.strategy)."
        )
    frame, kept = _by_nilearn(path, settings)
    if settings.band_pass and settings.band_pass[0] > 0:
        # The band-pass takes their place; filtered, they would be nothing but noise.
        frame = frame[[name for name in frame if not str(name).startswith("cosine")]]
    regressors = frame.to_numpy(dtype=float)
    odd = [str(frame.columns[i]) for i in np.flatnonzero(~np.isfinite(regressors).all(axis=0)).tolist()]
    if odd:
        raise OpenBrainMassError(
            f"The confounds file {path} has values that are no numbers in {', '.join(odd[:3])}. Fetch it again."
        )
    measures = _motion(table, path) | {"n_acquired": len(table), "n_censored": 0}
    if kept is not None:
        measures |= {"n_censored": len(table) - len(kept), "kept_volumes": volume_ranges(kept)}
    return Confounds(regressors, kept, measures, _steps(frame, table, kept, settings), path, len(table))


def _by_nilearn(path: Path, settings: ReadingSettings) -> tuple[pd.DataFrame, np.ndarray | None]:
    from nilearn.interfaces.fmriprep import load_confounds_strategy

    options: dict[str, Any] = {"demean": False}
    if settings.global_signal:
        options["global_signal"] = "basic"
    if settings.denoising == "scrubbing":
        options["fd_threshold"] = settings.fd_threshold
        options["std_dvars_threshold"] = settings.dvars_threshold
        options["scrub"] = settings.scrub_run
    described = path.with_suffix(".json")
    if settings.denoising == "compcor":
        _check_described(path, described)
    # nilearn looks for confounds by the name of the image and takes only some spellings, so it gets its own.
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        write_bytes(Path(folder) / f"sub-1{_SUFFIXES[0]}", path.read_bytes())
        if settings.denoising == "compcor":
            write_bytes(Path(folder) / f"sub-1{_SUFFIXES[0].replace('.tsv', '.json')}", described.read_bytes())
        kind = _AROMA if settings.denoising == "ica_aroma" else "_desc-preproc_bold"
        try:
            frame, kept = load_confounds_strategy(
                f"{folder}/sub-1_space-MNI152NLin6Asym{kind}.nii.gz", denoise_strategy=settings.denoising, **options
            )
        except (ValueError, KeyError, TypeError, IndexError) as error:
            why = " ".join(str(error).split())
            raise OpenBrainMassError(
                f"The confounds file {path} does not serve the strategy {settings.denoising} ({why}). Fetch it again, "
                "with its JSON file, or choose another strategy (--set reading.strategy)."
            ) from error
    if kept is not None and not len(kept):
        raise OpenBrainMassError(
            f"The confounds file {path} leaves no volume: each moved more than {settings.fd_threshold:g} mm, has a "
            f"standardised DVARS above {settings.dvars_threshold:g} or stands between such ones. Raise "
            "reading.fd_threshold and reading.dvars_threshold or leave the run out."
        )
    return pd.DataFrame(frame), kept


def _check_described(path: Path, described: Path) -> None:
    """CompCor takes the masks of its components from the JSON file."""
    if not described.is_file():
        raise OpenBrainMassError(
            f"The confounds file {path} has no {described.name} beside it, which the strategy compcor needs to tell the "
            "masks of the components. Fetch it, or choose another strategy (--set reading.strategy)."
        )
    entries = read_json(described)
    components = [name for name in entries if "a_comp_cor" in name] if isinstance(entries, dict) else []
    if not any(isinstance(entries[name], dict) and entries[name].get("Mask") == "combined" for name in components):
        raise OpenBrainMassError(
            f"{described} describes no a_comp_cor component of the combined mask, which the strategy compcor needs. "
            "Fetch it again, or choose another strategy (--set reading.strategy)."
        )


def _steps(frame: pd.DataFrame, table: pd.DataFrame, kept: np.ndarray | None, settings: ReadingSettings) -> str:
    family = Counter(
        next((word for word, known in _FAMILIES if known.match(name)), "other") for name in map(str, frame)
    )
    columns = ", ".join(f"{count} {word}" for word, count in family.items())
    steps = [f"{settings.denoising} confounds ({columns})"]
    if not family["cosine"] and not (settings.band_pass and settings.band_pass[0] > 0):
        steps.append("no high-pass: the confounds have no cosines")
    unsteady = sum(str(name).startswith("non_steady_state") for name in table)
    if unsteady:
        steps.append(f"{unsteady} non-steady-state volumes dropped")
    if settings.denoising == "scrubbing":
        steps.append(
            f"{len(table) - len(kept) if kept is not None else 0} volumes dropped in all (FD > "
            f"{settings.fd_threshold:g} mm, standardised DVARS > {settings.dvars_threshold:g}, runs < {settings.scrub_run})"
        )
    return "; ".join(steps)
