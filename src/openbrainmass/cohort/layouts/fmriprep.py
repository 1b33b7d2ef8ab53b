"""fMRIPrep: preprocessed BOLD in a standard space, as volumes or CIFTI, with its confounds."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from openbrainmass.atlas import Atlas
from openbrainmass.cohort.files.cleaning import clean_series
from openbrainmass.cohort.files.confounds import read_confounds
from openbrainmass.cohort.files.images import image_labels, parcellate
from openbrainmass.cohort.layouts import bids
from openbrainmass.cohort.layouts.layout import Found, Layout
from openbrainmass.cohort.source import ReadingSettings, Series, one_tr

_VERSION = ("space", "cohort", "res", "den")
# The brain of each person in its own shape: no atlas of a template fits.
_NATIVE = frozenset({"T1w", "T2w", "anat", "boldref", "bold", "func", "orig", "individual", "fsnative"})
_DENSE = re.compile(r"_space-[^_]+(_den-[^_]+)?_bold\.dtseries\.nii")
_VOLUME = {
    True: re.compile(r"_desc-smoothAROMAnonaggr_bold\.nii(\.gz)?"),
    False: re.compile(r"_desc-preproc_bold\.nii(\.gz)?"),
}
_NAMELESS = re.compile(r"[A-Za-z0-9]+(?=_)")


def find(folder: Path, settings: ReadingSettings) -> list[Found]:
    """Recordings in standard spaces; the images of the strategy (those of ICA-AROMA for it, else the preprocessed)."""
    of_aroma = settings.denoising == "ica_aroma"

    def _is_wanted(name: str) -> bool:
        if _space(name) in _NATIVE:
            return False
        return bool(_VOLUME[of_aroma].search(name) or (not of_aroma and _DENSE.search(name)))

    return [one for file in bids.files_below(folder, _is_wanted) if (one := _found(folder, file))]


def _space(name: str) -> str:
    # Without an entity the image is in the space of the scanner.
    return bids.entities(name).get("space", "bold")


def _found(folder: Path, file: str) -> Found | None:
    named = bids.entities(file)
    label = named.get("sub")
    if label is None:
        # Files that somebody has renamed are called by what stands before the first entity.
        first = _NAMELESS.match(Path(file).name)
        if first is None:
            return None
        label = first[0]
    return Found(
        file=file,
        recording_id=bids.recording_id({**named, "sub": label}),
        participant_id=f"sub-{label}",
        session=named.get("ses"),
        run=named.get("run"),
        task=named.get("task"),
        variant=bids.joined(named, _VERSION),
        tr=bids.without_errors(lambda: bids.tr_of(folder / file, folder)),
    )


def read(path: Path, row: Mapping[str, Any], atlas: Atlas, settings: ReadingSettings) -> Series:
    """Parcellate one image and take its confounds out.

    Parameters
    ----------
    path : Path
        The image. Where its brain mask lies beside it, only voxels in the mask are averaged.
    row : dict
        Its row of the recordings table.
    atlas : Atlas
        With a label image for volumes, a dlabel for CIFTI.
    settings : ReadingSettings
        Strategy, thresholds, coverage and filters.

    Raises
    ------
    OpenBrainMassError
        If the image, its confounds, mask or sidecars are missing or damaged, do not fit each other or the atlas, or the
        sources of the TR contradict each other.
    """
    told = bids.tr_of(path, bids.root_of(path, row))
    # The small file first: what is wrong with it is known in milliseconds.
    confounds = read_confounds(path, settings)
    image = parcellate(path, atlas, settings, _mask(path))
    tr = {**told, **image.tr}
    known = one_tr({"the tables": float(row.get("tr", math.nan)), **tr}, str(row.get("recording_id", path.name)))
    bold, steps = clean_series(image.bold, known, settings, confounds)
    measures = {**image.measures, **confounds.measures, "steps": "; ".join(filter(None, (_spaces(path, atlas), steps)))}
    return Series(bold, tr, measures)


def _mask(path: Path) -> Path | None:
    mask = path.with_name(re.sub(r"_desc-[^_]+_bold\.nii", "_desc-brain_mask.nii", path.name))
    return mask if mask != path and mask.is_file() else None


def _spaces(path: Path, atlas: Atlas) -> str:
    """A note where the names of image and atlas speak of different templates; these lie millimetres apart."""
    named = bids.entities(atlas.image.name) if atlas.image is not None else {}
    template = named.get("tpl") or named.get("space")
    if template is None or template == _space(path.name):
        return ""
    return f"atlas in {template} on an image in {_space(path.name)}"


LAYOUT = Layout(
    name="fmriprep",
    title="fMRIPrep",
    patterns=(
        "sub-*/[ses-*/]func/sub-*_space-<template>[_res-*]_desc-preproc_bold.nii.gz",
        "sub-*/[ses-*/]func/sub-*_space-fsLR_den-*_bold.dtseries.nii",
        "sub-*/[ses-*/]func/sub-*_space-<template>_desc-smoothAROMAnonaggr_bold.nii.gz",
        "sub-*/[ses-*/]func/sub-*_desc-confounds_timeseries.tsv (before 20.2: _regressors.tsv)",
    ),
    header="Images are averaged over the ROIs of `--atlas`: volumes with a label image (brought to the grid of the BOLD "
    "by nearest neighbour), `dtseries` with a `.dlabel.nii` of the same mesh. Only voxels in the brain mask beside the "
    "image and with a changing value count; an ROI of which less than `reading.min_coverage` is covered becomes NaN and "
    "is named. `reading.strategy` names nilearn's choice of confounds; `ica_aroma` takes the `smoothAROMAnonaggr` "
    "images, everything else the preprocessed ones. Images in the person's own space (T1w, boldref, none) are not "
    "offered; where several spaces are there, choose with `reading.entities.space`. The TR comes from sidecars and from "
    "the header where that names its unit.",
    find=find,
    read=read,
    labels=image_labels,
)
