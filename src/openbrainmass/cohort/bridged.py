"""A store carried to another atlas by a bridge, with what that lost beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openbrainmass.atlas import Atlas, load_atlas
from openbrainmass.bridge import Bridge
from openbrainmass.cohort.build import build_store
from openbrainmass.cohort.cohort import Cohort
from openbrainmass.cohort.quality import QualitySettings
from openbrainmass.cohort.source import Series, Source
from openbrainmass.cohort.store import load_cohort
from openbrainmass.durable import write_tsv
from openbrainmass.errors import OpenBrainMassError

_MEASURED = ("n_volumes", "dead_rois", "digest", "typicality")


def bridge_store(
    store: str | Path,
    source: str | Path,
    target: str | Path,
    out: str | Path,
    quality: QualitySettings | None = None,
    progress: bool = True,
) -> Cohort:
    """Make a store of another atlas from a store, by the overlap of the label images of both atlases.

    Every recording gets the column ``bridge_agreement``: how far its FC comes back after a round trip
    (`Bridge.fc_agreement`); ``bridge.tsv`` in the new store has the coverage and sources of every ROI
    (`Bridge.report`).

    Parameters
    ----------
    store : path
        The store to carry over.
    source, target : path
        Label images of the store's atlas and of the one to go to, in the same space.
    out : path
        The new store's folder; must be free.
    quality : QualitySettings, optional
        What recordings must be like afterwards; ROIs that the bridge cannot reach count as dead.
    progress : bool
        Whether a progress bar is drawn (on standard error).

    Returns
    -------
    Cohort
        The new store, opened.

    Raises
    ------
    OpenBrainMassError
        If an image is missing or of another atlas, or the images do not overlap.
    """
    cohort = load_cohort(store)
    own, other = _with_image(source), _with_image(target)
    named_otherwise = not own.numbered and not cohort.atlas.numbered and own.digest != cohort.atlas.digest
    if own.n_rois != cohort.atlas.n_rois or named_otherwise:
        raise OpenBrainMassError(
            f"{source} has the {own.n_rois} ROIs of {own.name}, but the store {store} those of {cohort.atlas.name} "
            f"({cohort.atlas.n_rois}). Name the label image that the store's series were extracted with."
        )
    bridge = Bridge(own, other)
    rows = {recording_id: row for row, recording_id in enumerate(cohort.recordings["recording_id"])}
    carried = Source(
        cohort.name,
        other,
        cohort.recordings.drop(columns=[c for c in _MEASURED if c in cohort.recordings]).assign(file=None),
        cohort.participants,
        cohort.exclusions,
        _Bridged(cohort, bridge, rows),
    )
    made = build_store(carried, out, quality=quality, progress=progress)
    write_tsv(Path(out) / "bridge.tsv", bridge.report())
    return made


@dataclass(frozen=True)
class _Bridged:
    """Reads a recording of a cohort as the other atlas would have it."""

    cohort: Cohort
    bridge: Bridge
    rows: Mapping[str, int]

    def __call__(self, row: Mapping[str, Any]) -> Series:
        bold = self.cohort.bold(self.rows[row["recording_id"]])
        step = f"bridged from {self.cohort.atlas.name}"
        earlier = row.get("steps")
        measures = {
            "bridge_agreement": round(self.bridge.fc_agreement(bold), 4),
            "steps": f"{earlier}; {step}" if isinstance(earlier, str) else step,
        }
        return Series(self.bridge.apply(bold), {}, measures)


def _with_image(path: str | Path) -> Atlas:
    atlas = load_atlas(path)
    if atlas.image is None or atlas.image.name.endswith(".dlabel.nii"):
        raise OpenBrainMassError(
            f"{path} is no label image of volumes, and only these show where two atlases overlap. Name the .nii.gz of the "
            "atlas."
        )
    return atlas
