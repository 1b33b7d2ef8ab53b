"""Human Connectome Project: resting-state runs as its minimal preprocessing and its clean-ups leave them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openbrainmass.atlas import Atlas
from openbrainmass.cohort.files.cleaning import clean_series
from openbrainmass.cohort.files.images import image_labels, parcellate, refuse_strategy
from openbrainmass.cohort.layouts import bids
from openbrainmass.cohort.layouts.layout import Found, Layout
from openbrainmass.cohort.source import ReadingSettings, Series, one_tr

_RUN = (
    r"(?:(?P<person>[A-Za-z0-9]+(?:_V\d+_MR)?)_)?"
    r"rfMRI_(?P<task>[A-Za-z]+?)(?P<run>\d+[a-z]?)?(?:_(?P<field>7T))?(?:_(?P<way>LR|RL|AP|PA))?"
)
_CIFTI = re.compile(_RUN + r"_Atlas(?P<done>[A-Za-z0-9_.-]*)\.(?P<kind>dtseries|ptseries)\.nii")
# Beside the runs lie single volumes with other endings.
_VOLUME = re.compile(_RUN + r"(?P<done>(?:_hp\d+)?(?:_clean(?:_rclean_tclean)?)?)\.(?P<kind>nii)(?:\.gz)?")
_PERSON = re.compile(r"(?P<label>[A-Za-z0-9]+)(?:_V(?P<visit>\d+)_MR)?")
_MOTION = "Movement_RelativeRMS.txt"


def _match(name: str) -> re.Match[str] | None:
    return _CIFTI.fullmatch(name) or _VOLUME.fullmatch(name)


def find(folder: Path, settings: ReadingSettings) -> list[Found]:
    """Resting-state runs; a run of all runs joined (``rfMRI_REST``) only where the runs themselves are not there."""
    found = [one for file in bids.files_below(folder, _match) if (one := _found(folder, file))]
    with_runs = {(one.participant_id, one.session) for one in found if one.run is not None}
    return [one for one in found if one.run is not None or (one.participant_id, one.session) not in with_runs]


def _found(folder: Path, file: str) -> Found | None:
    name = _match(Path(file).name)
    of_folder = _person(folder, file)
    person = _PERSON.fullmatch(of_folder or (name and name["person"]) or "")
    # Volumes of the same names are also what came from the scanner; only those below MNINonLinear are in a standard space.
    if name is None or person is None or (name["kind"] == "nii" and of_folder is None):
        return None
    named = {"sub": person["label"]}
    named |= {"ses": f"V{person['visit']}"} if person["visit"] else {}
    named |= {"task": name["task"].lower()}
    named |= {"acq": name["field"]} if name["field"] else {}
    named |= {"dir": name["way"]} if name["way"] else {}
    named |= {"run": name["run"]} if name["run"] else {}
    return Found(
        file=file,
        recording_id=bids.recording_id(named),
        participant_id=f"sub-{named['sub']}",
        session=named.get("ses"),
        run=named.get("run"),
        task=named["task"],
        variant=f"desc-{_spelt(name['done']) or 'minimal'}" + ("_kind-ptseries" if name["kind"] == "ptseries" else ""),
    )


def _person(folder: Path, file: str) -> str | None:
    """The folder above MNINonLinear, which may be the one that was named."""
    parts = Path(file).parts
    if "MNINonLinear" in parts[:-1]:
        above = parts.index("MNINonLinear")
        return parts[above - 1] if above else folder.resolve().name
    parents = [parent.name for parent in (folder.resolve() / file).parents]
    if "MNINonLinear" in parents[:-1]:
        return parents[parents.index("MNINonLinear") + 1]
    return None


def _spelt(done: str) -> str:
    """What was done, as a BIDS label: MSMAllhp2000clean."""
    return re.sub(r"[^A-Za-z0-9]", "", done)


def read(path: Path, row: Mapping[str, Any], atlas: Atlas, settings: ReadingSettings) -> Series:
    """Parcellate one run; detrend and filter it where the settings ask for it.

    Parameters
    ----------
    path : Path
        ``*.dtseries.nii``, ``*.ptseries.nii`` or a volume, whose brain mask may lie beside it.
    row : dict
        Its row of the recordings table.
    atlas : Atlas
        With a dlabel, or a label image for volumes; a parcellated series is matched by name.
    settings : ReadingSettings
        Coverage and filters.

    Raises
    ------
    OpenBrainMassError
        If the file is damaged or does not fit the atlas, or a strategy for confounds was asked for.
    """
    refuse_strategy(path, settings)
    image = parcellate(path, atlas, settings, _mask(path))
    known = one_tr({"the tables": float(row.get("tr", math.nan)), **image.tr}, str(row.get("recording_id", path.name)))
    bold, steps = clean_series(image.bold, known, settings)
    name = _match(path.name)
    done = f"HCP {name['done'].strip('_') or 'minimal preprocessing'}" if name else ""
    motion, note = _motion(path.with_name(_MOTION), len(image.bold))
    return Series(bold, image.tr, {**image.measures, **motion, "steps": "; ".join(filter(None, (done, steps, note)))})


def _mask(path: Path) -> Path | None:
    masks = sorted(path.parent.glob("brainmask_fs.*.nii.gz")) if not path.name.endswith("series.nii") else []
    return masks[0] if len(masks) == 1 else None


def _motion(path: Path, n_volumes: int) -> tuple[dict[str, Any], str]:
    """Mean relative RMS displacement in mm, or a note why there is none."""
    if not path.is_file():
        return {}, ""
    try:
        moved = np.array(path.read_text().split(), dtype=float)
    except ValueError:
        return {}, f"{path.name} is not readable and was not used"
    if len(moved) not in (n_volumes, n_volumes - 1) or not np.isfinite(moved).all():
        return {}, f"{path.name} has {len(moved)} rows for {n_volumes} volumes and was not used"
    # The first volume has none before it.
    return {"mean_fd": float(moved[-(n_volumes - 1) :].mean()), "fd_formula": "relative-rms"}, ""


LAYOUT = Layout(
    name="hcp",
    title="Human Connectome Project",
    patterns=(
        "<id>/MNINonLinear/Results/rfMRI_REST1_LR/rfMRI_REST1_LR_Atlas[_MSMAll][_hp2000_clean...].dtseries.nii",
        "<id>/MNINonLinear/Results/rfMRI_REST1_LR/*.ptseries.nii",
        "<id>_rfMRI_REST1_LR_Atlas*.dtseries.nii",
        "<id>/MNINonLinear/Results/rfMRI_REST1_LR/rfMRI_REST1_LR[_hp2000_clean...].nii.gz",
    ),
    header="Dense series (grayordinates) are averaged over the parcels of a `.dlabel.nii` of the same mesh (`--atlas`); "
    "parcellated series are matched by the names of their parcels; volumes need a label image. What follows the run (and "
    "`_Atlas`) in the name says what was done and tells versions apart: choose with `reading.entities.desc`, such as "
    "`MSMAllhp2000clean`, or `minimal` where nothing follows. `<id>_V1_MR` is a person and a session. A joined run "
    "(`rfMRI_REST`) is left out where its runs are there. Motion is the mean of `Movement_RelativeRMS.txt` (mm); the TR is "
    "that of the file.",
    find=find,
    read=read,
    labels=image_labels,
)
