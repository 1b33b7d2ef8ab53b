"""CONN projects: ``results/preprocessing/ROI_Subject001_Condition001.mat``, the denoised series of every ROI."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from openbrainmass.atlas import Atlas
from openbrainmass.cohort.files.matlab import read_conn, read_conn_conditions, read_conn_names, read_conn_tr
from openbrainmass.cohort.layouts.layout import Found, Layout
from openbrainmass.cohort.source import ReadingSettings, Series, volume_ranges
from openbrainmass.errors import OpenBrainMassError

_NAME = re.compile(r"ROI_Subject(\d{3,})_Condition(\d{3})\.mat")
_ALL_SESSIONS = "000"
# What CONN calls an ROI that comes from a file of its own instead of an atlas: nothing stands before a dot.
_SINGLE = "rois"


def find(folder: Path, settings: ReadingSettings) -> list[Found]:
    """Recordings of the CONN projects in a folder: one for each subject, condition and atlas.

    Every condition is a recording of its own, named as the project names it. ``Condition000``, which joins all
    sessions of a subject whatever the condition, is offered only where a subject has nothing else.

    Raises
    ------
    OpenBrainMassError
        If none of a project's files can be read, or its ``conn_*.mat`` cannot.
    """
    places: dict[Path, list[tuple[Path, str, str]]] = {}
    for path in sorted(folder.rglob("ROI_Subject*_Condition*.mat")):
        if name := _NAME.fullmatch(path.name):
            places.setdefault(path.parent, []).append((path, name.group(1), name.group(2)))
    return [found for place, files in places.items() for found in _of_project(folder, place, files)]


def _of_project(folder: Path, place: Path, files: Sequence[tuple[Path, str, str]]) -> list[Found]:
    names = _names(files)
    atlases = list(dict.fromkeys(map(_atlas_of, names)))
    conditions = _conditions(place)
    source, seconds = _tr(place)
    with_conditions = {subject for _, subject, condition in files if condition != _ALL_SESSIONS}
    found = []
    for path, subject, condition in files:
        if condition == _ALL_SESSIONS and subject in with_conditions:
            continue
        task = conditions.get(int(condition), f"condition{condition}")
        # One TR for all subjects, or one each; CONN takes the last where there are fewer than subjects.
        tr = {source: seconds[min(int(subject), len(seconds)) - 1]} if seconds else {}
        found += [
            Found(
                file=path.relative_to(folder).as_posix(),
                recording_id=f"sub-{subject}_task-{task}",
                participant_id=f"sub-{subject}",
                task=task,
                atlas=atlas,
                tr={where: value for where, value in tr.items() if np.isfinite(value)},
                labels=tuple(_bare(name) for name in names if _atlas_of(name) == atlas),
            )
            for atlas in atlases
        ]
    return found


def _names(files: Sequence[tuple[Path, str, str]]) -> list[str]:
    """ROI names of the first file that can be read: CONN keeps the same ROIs in all, and a damaged one is left out later."""
    problem = None
    for path, *_ in files:
        try:
            return read_conn_names(path)
        except OpenBrainMassError as error:
            problem = problem or error
    raise problem or OpenBrainMassError("A CONN project without files was given; one or more were expected.")


def _atlas_of(name: str) -> str:
    """``atlas`` of ``atlas.FP r (Frontal Pole Right)``."""
    return name.split(".", 1)[0] if "." in name else _SINGLE


def _conditions(place: Path) -> dict[int, str]:
    """Names of the conditions by their number, as BIDS spells a task: letters and digits."""
    path = place / "_list_conditions.mat"
    names = dict(enumerate(read_conn_conditions(path), start=1)) if path.is_file() else {}
    text = place / "_list_conditions.txt"
    if not names and text.is_file():
        lines = re.findall(r"^Condition(\d+) = (.*)$", text.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        names = {int(number): name.strip() for number, name in lines}
    tasks = {number: re.sub(r"[^A-Za-z0-9]", "", name) for number, name in names.items()}
    # Two names that differ in signs only would become one task.
    return {number: task for number, task in tasks.items() if task and list(tasks.values()).count(task) == 1}


def _tr(place: Path) -> tuple[str, list[float]]:
    """Where the TR was found and the seconds, one for all subjects or one each; nothing where no project file is."""
    # conn_x/results/preprocessing belongs to conn_x.mat beside conn_x.
    project = place.absolute().parent.parent
    path = project.with_name(f"{project.name}.mat")
    if place.name != "preprocessing" or not path.is_file():
        return "", []
    return path.name, read_conn_tr(path)


def read(path: Path, row: Mapping[str, Any], atlas: Atlas, settings: ReadingSettings) -> Series:
    """Read the ROIs of one atlas, and of them the volumes that belong to the condition.

    Parameters
    ----------
    path : Path
        A file ``ROI_Subject001_Condition001.mat``.
    row : mapping
        Its row of the recordings table.
    atlas : Atlas
        ROIs called as in CONN, without what stands before the first dot (``FP r (Frontal Pole Right)``). One that is
        only numbered is matched by position.
    settings : ReadingSettings
        Not needed here.

    Raises
    ------
    OpenBrainMassError
        If the file cannot be read, or its ROIs are not the atlas's, or no volume belongs to the condition.
    """
    content = read_conn(path)
    columns = _columns(path, content["names"], atlas)
    bold, weights = content["bold"], content["weights"]
    ordered = np.full((len(bold), atlas.n_rois), np.nan, dtype=np.float32)
    for roi, column in columns.items():
        ordered[:, roi] = bold[:, column]
    if weights is None:
        return Series(ordered, measures={"steps": "CONN denoising; all sessions of the subject"})
    inside = weights > 0
    if not inside.any():
        raise OpenBrainMassError(
            f"The file {path} has no volume of its condition: the subject has no such condition. Leave the file out."
        )
    measures = {"steps": "CONN denoising; volumes of the condition"}
    if not inside.all():
        measures["kept_volumes"] = volume_ranges(np.flatnonzero(inside))
    return Series(ordered[inside], measures=measures)


def _columns(path: Path, names: Sequence[str], atlas: Atlas) -> dict[int, int]:
    """Column of the file for each ROI of the atlas that it has."""
    groups: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        groups.setdefault(_atlas_of(name), []).append(column)
    group = _group(groups, names, atlas)
    if atlas.numbered:
        if len(group) != atlas.n_rois:
            raise OpenBrainMassError(
                f"The file {path} has {len(group)} ROIs of an atlas but {atlas.name} has {atlas.n_rois}; it knows "
                f"{', '.join(f'{name} ({len(rois)})' for name, rois in groups.items())}. Name the right one (--atlas)."
            )
        return dict(enumerate(group))
    row_of = {name: row for row, name in enumerate(atlas.roi_names)}
    strangers = [_bare(names[column]) for column in group if _bare(names[column]) not in row_of]
    if strangers:
        raise OpenBrainMassError(
            f"The file {path} has ROIs called {', '.join(strangers[:4])}, which the atlas {atlas.name} (with ROIs such "
            f"as {atlas.roi_names[0]}) does not have. Give the atlas that the CONN project used: it has "
            f"{', '.join(f'{name} ({len(rois)} ROIs)' for name, rois in groups.items())}."
        )
    return {row_of[_bare(names[column])]: column for column in group}


def _group(groups: Mapping[str, list[int]], names: Sequence[str], atlas: Atlas) -> list[int]:
    """The columns of the one atlas that is meant: by its name, else the one that shares most ROI names or has as many."""
    with contextlib.suppress(StopIteration):
        return next(group for name, group in groups.items() if name.lower() == atlas.name.lower())
    known = set(atlas.roi_names)
    shared = {name: sum(_bare(names[i]) in known for i in group) for name, group in groups.items()}
    return groups[max(shared, key=lambda name: (shared[name], len(groups[name]) == atlas.n_rois))]


def _bare(name: str) -> str:
    return name.split(".", 1)[1] if "." in name else name


def labels(path: Path) -> tuple[str, ...]:
    """Names of the ROIs of a file's first atlas, without what stands before the first dot.

    Raises
    ------
    OpenBrainMassError
        If the file cannot be read.
    """
    names = read_conn_names(path)
    return tuple(_bare(name) for name in names if _atlas_of(name) == _atlas_of(names[0]))


LAYOUT = Layout(
    name="conn",
    title="CONN",
    patterns=("**/results/preprocessing/ROI_Subject<number>_Condition<number>.mat",),
    header=(
        "Cells data and names, one an ROI: first the tissues (grey matter, white matter, CSF), then ROIs such as "
        "atlas.FP r (Frontal Pole Right), where the part before the dot is the atlas, then covariates; tissues and "
        "covariates are left out. Of an ROI with several components the first, the average, is read. Volumes with "
        "weight 0 are outside the condition. Sessions follow each other. The TR is in conn_<project>.mat beside the "
        "project's folder; subjects are numbered as there."
    ),
    find=find,
    read=read,
    labels=labels,
)
"""Denoised ROI series of the CONN toolbox."""
