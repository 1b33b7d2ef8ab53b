"""Quality control: which recordings are left out of a cohort, each with its reason, and what else is strange.

`inspect` judges a recording by itself when it is read; `judge` judges all of them together, from their fingerprints.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from pydantic import Field

from openbrainmass.atlas import Atlas
from openbrainmass.cohort.duplicates import (
    MIN_FOR_MEAN,
    Fingerprints,
    Neighbours,
    Pair,
    Space,
    across,
    blocks,
    confirmed,
    fit_space,
    groups,
    neighbours,
)
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.settings import Settings

REASONS = {
    "unreadable": "the file cannot be read",
    "contradicting-tr": "two places tell another time between volumes",
    "wrong-roi-count": "the array has another number of ROIs than the atlas",
    "wrong-roi-order": "the ROIs are not in the order of the atlas",
    "non-finite": "an ROI has NaN or infinity at some volumes",
    "dead-rois": "too many ROIs are constant or missing",
    "too-short": "too little of the recording is left",
    "too-much-motion": "the head moved too much",
    "atypical-fc": "the connectivity is unlike everybody else's",
    "duplicate": "the same scan is there already",
    "contradicting-duplicate": "the same scan is there with another label",
    "seen-elsewhere": "the same scan is in another store",
    "unknown-label": "a label is not among the known ones",
    "no-recording": "the person has no recording",
}
"""Why something is left out."""

WARNINGS = {
    "mixed-up": "the scan is more like another person's than like the same person's others",
    "atypical-fc": "the connectivity is far less typical than that of the others",
    "order-unchecked": "nobody has checked that the ROIs stand in the order of the atlas",
    "contradicting-age": "a copy of the scan, left out, gives the person another age",
}
"""What is kept but strange."""

_LABELS = ("dx", "sex")
# An amplitude a hundred times below that of the typical ROI comes from a parcel that hardly a voxel covers: in real
# CC200 scans the FC profile of such ROIs agrees with the cohort's as 0.2, that of others as 0.6.
_FAINT = 0.01
_UNCHANGED = 0.9
_OUTLIER_MADS = 5.0
# Of what recordings of one person have in common, the share that makes another person's scan look like his own.
_LIKE_OWN, _CLEAR_MARGIN = 0.75, 0.15


class QualitySettings(Settings):
    """What a recording must be like to stay in a cohort.

    Attributes
    ----------
    min_seconds : float
        Shortest recording, seconds of volumes that were not taken out or filled in for motion; holds where the tr is
        known.
    min_volumes : int
        Shortest recording, volumes; holds always.
    max_dead_share : float
        Largest share of ROIs that may be constant, nearly so, or missing (NaN throughout).
    max_mean_fd : float or None
        Largest mean framewise displacement, mm; holds where ``mean_fd`` is known.
    max_censored_share : float or None
        Largest share of the acquired volumes that may have been taken out or filled in for motion; holds where known.
    min_typicality : float or None
        Smallest correlation of the FC edges with the mean of the other recordings. None leaves nobody out; outliers
        are listed among the warnings either way.
    check_duplicates : bool
        Whether scans that are there twice are looked for.
    duplicate_similarity : float
        Correlation of the FC of two scans, beyond what all have in common, from which on they are compared in full.
    duplicate_synchrony : float
        Mean correlation of their time courses (at the best shift) from which on they are one.
    duplicate_match : float
        Or: correlation of the typical volume of one with the most similar of the other from which on they are one.
    check_order : bool
        Whether the order of unlabelled ROIs is checked, where the atlas has coordinates or a template store is given.
    known_labels : dict of str to tuple of str
        For a column of the participants table, its allowed values; people with another are left out.
    """

    min_seconds: float = Field(default=120.0, ge=0)
    min_volumes: int = Field(default=30, ge=3)
    max_dead_share: float = Field(default=0.1, ge=0, le=1)
    max_mean_fd: float | None = Field(default=None, gt=0)
    max_censored_share: float | None = Field(default=None, ge=0, le=1)
    min_typicality: float | None = Field(default=None, ge=-1, le=1)
    check_duplicates: bool = True
    duplicate_similarity: float = Field(default=0.25, gt=0, le=1)
    duplicate_synchrony: float = Field(default=0.4, gt=0, le=1)
    duplicate_match: float = Field(default=0.75, gt=0, le=1)
    check_order: bool = True
    known_labels: dict[str, tuple[str, ...]] = Field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """What is wrong with a recording, if anything, and what was measured.

    Attributes
    ----------
    reason : str or None
        One of `REASONS`; None where the recording may stay.
    detail : str
        The figures behind it.
    measures : dict of str to value
        ``n_volumes``, ``seconds`` (NaN where the tr is not known), ``n_dead`` and ``dead_rois`` (names joined by ``;``).
    """

    reason: str | None
    detail: str
    measures: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Judgement:
    """What comparing all recordings of a cohort says.

    Attributes
    ----------
    excluded : DataFrame
        ``recording_id reason detail``, in the order of the recordings.
    measures : DataFrame
        ``recording_id typicality``, one row a recording.
    warnings : DataFrame
        ``kind recording_id participant_id detail``; kinds are those of `WARNINGS`.
    """

    excluded: pd.DataFrame
    measures: pd.DataFrame
    warnings: pd.DataFrame


def dead_rois(bold: np.ndarray) -> np.ndarray:
    """Positions of the ROIs of BOLD (n_volumes, n_rois) that are constant, nearly so, or NaN throughout.

    Nearly constant is an ROI whose standard deviation is below a hundredth of the median ROI's, or that does not
    change in nine of ten steps.
    """
    unchanged = (bold[1:] == bold[:-1]).mean(axis=0)
    missing = np.isnan(bold).all(axis=0)
    dead = (unchanged == 1) | missing
    with np.errstate(invalid="ignore", over="ignore"):
        spread = bold.std(axis=0, dtype=np.float64)
    typical = float(np.nanmedian(spread[~dead])) if np.isfinite(spread[~dead]).any() else 0.0
    with np.errstate(invalid="ignore"):
        return np.flatnonzero(dead | (unchanged > _UNCHANGED) | (spread < _FAINT * typical))


def inspect(bold: np.ndarray, atlas: Atlas, tr: float, settings: QualitySettings) -> Finding:
    """Judge one recording by itself.

    Parameters
    ----------
    bold : ndarray (n_volumes, n_rois)
    atlas : Atlas
        What its columns are.
    tr : float
        Seconds; NaN where unknown.
    settings : QualitySettings
    """
    measures: dict[str, Any] = {"n_volumes": len(bold), "seconds": round(len(bold) * tr, 3)}
    if bold.shape[1] != atlas.n_rois:
        return Finding("wrong-roi-count", f"{bold.shape[1]} ROIs, the atlas has {atlas.n_rois}", measures)
    dead = dead_rois(bold)
    measures |= {"n_dead": len(dead), "dead_rois": ";".join(atlas.roi_names[roi] for roi in dead)}
    broken = np.flatnonzero(~np.isfinite(bold).all(axis=0) & ~np.isnan(bold).all(axis=0))
    if len(broken):
        return Finding("non-finite", f"NaN or infinity at some volumes of {len(broken)} ROIs", measures)
    if len(dead) > settings.max_dead_share * atlas.n_rois:
        allowed = math.floor(settings.max_dead_share * atlas.n_rois)
        detail = f"{len(dead)} of {atlas.n_rois} ROIs constant or missing, {allowed} allowed"
        return Finding("dead-rois", detail, measures)
    if len(bold) * tr < settings.min_seconds:
        return Finding("too-short", f"{len(bold) * tr:.0f} s, {settings.min_seconds:.0f} s needed", measures)
    if len(bold) < settings.min_volumes:
        return Finding("too-short", f"{len(bold)} volumes, {settings.min_volumes} needed", measures)
    return Finding(None, "", measures)


def judge(
    recordings: pd.DataFrame,
    participants: pd.DataFrame,
    fingerprints: Fingerprints,
    read: Callable[[int], np.ndarray],
    settings: QualitySettings,
    others: Iterable[tuple[str, pd.DataFrame, Fingerprints, Callable[[int], np.ndarray]]] = (),
) -> Judgement:
    """Judge all recordings of a cohort together: labels, motion, typicality, copies, people mixed up.

    Of copies of one scan the longest stays, of equally long ones the first; none where their labels contradict each
    other. Beyond its arguments this needs about 30 MiB, however many recordings there are.

    Parameters
    ----------
    recordings : DataFrame
        One row a recording: ``recording_id participant_id digest n_volumes tr``, and of ``mean_fd n_censored
        n_acquired dx sex age`` those that are known.
    participants : DataFrame
        One row a person.
    fingerprints : array or file (n_recordings, 1024)
        From `duplicates.Fingerprinter`, in the order of `recordings`; only slices of it are read.
    read : callable
        ``read(position) -> ndarray (n_volumes, n_rois)``, for the few that are compared in full.
    settings : QualitySettings
    others : iterable of (name, recordings, fingerprints, read)
        Other stores of the same atlas; a scan that is in one of them is left out here.

    Raises
    ------
    OpenBrainMassError
        If a setting names a column that is not there, or there is not one fingerprint a recording.
    """
    if len(fingerprints) != len(recordings):
        raise OpenBrainMassError(
            f"There are {len(fingerprints)} fingerprints for {len(recordings)} recordings; one for each was expected. "
            "Build the store again."
        )
    case = _Case(recordings.reset_index(drop=True), participants, settings)
    case.judge_labels()
    case.judge_motion()
    case.judge_typicality(fingerprints)
    if settings.check_duplicates and len(recordings):
        case.judge_copies(fingerprints, read)
        for name, theirs, their_fingerprints, read_theirs in others:
            case.judge_against(
                name, theirs["recording_id"].to_numpy(), fingerprints, their_fingerprints, read, read_theirs
            )
    return case.judgement()


class _Case:
    """What is known of one cohort while it is judged; positions are those of its recordings."""

    def __init__(self, recordings: pd.DataFrame, participants: pd.DataFrame, settings: QualitySettings) -> None:
        self.recordings, self.participants, self.settings = recordings, participants, settings
        self.ids = recordings["recording_id"].to_numpy()
        self.people = recordings["participant_id"].to_numpy()
        self.excluded: dict[int, tuple[str, str]] = {}
        self.warnings: list[tuple[str, int, str]] = []
        self.typicality = np.full(len(recordings), np.nan, dtype=np.float32)
        self._columns: dict[str, pd.Series | None] = {}

    def judgement(self) -> Judgement:
        order = sorted(self.excluded)
        excluded = [(self.ids[place], *self.excluded[place]) for place in order]
        # What is left out needs no further doubts.
        warnings = [
            (kind, self.ids[place], self.people[place], detail)
            for kind, place, detail in self.warnings
            if place not in self.excluded
        ]
        return Judgement(
            pd.DataFrame(excluded, columns=["recording_id", "reason", "detail"], dtype=object),
            pd.DataFrame({"recording_id": self.ids, "typicality": self.typicality.round(4)}),
            pd.DataFrame(warnings, columns=["kind", "recording_id", "participant_id", "detail"], dtype=object),
        )

    def exclude(self, place: int, reason: str, detail: str) -> None:
        self.excluded.setdefault(place, (reason, detail))

    def column(self, name: str) -> pd.Series | None:
        """A column of the recordings, where it is not known that of their people; None where neither table has it."""
        if name not in self._columns:
            own = self.recordings.get(name)
            if name in self.participants:
                known = dict(zip(self.participants["participant_id"], self.participants[name], strict=True))
                theirs = self.recordings["participant_id"].map(known)
                own = theirs if own is None else own.where(own.notna(), theirs)
            self._columns[name] = own
        return self._columns[name]

    def judge_labels(self) -> None:
        strange = _unknown_labels(self.participants, self.settings)
        if strange:
            for place in np.flatnonzero(self.recordings["participant_id"].isin(set(strange))).tolist():
                self.exclude(place, "unknown-label", strange[str(self.people[place])])

    def judge_motion(self) -> None:
        most, share = self.settings.max_mean_fd, self.settings.max_censored_share
        fd = self.column("mean_fd") if most is not None else None
        if most is not None and fd is not None:
            for place in np.flatnonzero(fd.to_numpy(dtype=float) > most).tolist():
                self.exclude(place, "too-much-motion", f"mean FD {fd[place]:.2f} mm, {most:g} mm allowed")
        if not {"n_censored", "n_acquired"} <= set(self.recordings):
            return
        censored, acquired = (self.recordings[name].to_numpy(dtype=float) for name in ("n_censored", "n_acquired"))
        seconds = (acquired - censored) * self.recordings["tr"].to_numpy(dtype=float)
        if share is not None:
            for place in np.flatnonzero(censored > share * acquired).tolist():
                detail = f"{censored[place]:.0f} of {acquired[place]:.0f} volumes moved, {share:.0%} allowed"
                self.exclude(place, "too-much-motion", detail)
        least = self.settings.min_seconds
        for place in np.flatnonzero(seconds < least).tolist():
            self.exclude(place, "too-short", f"{seconds[place]:.0f} s without motion, {least:.0f} s needed")

    def judge_typicality(self, fingerprints: Fingerprints) -> None:
        """Correlation of each recording's edges with the mean of the others."""
        n = len(self.ids)
        if n < 3:
            return
        total = sum(block.sum(axis=0, dtype=np.float64) for _, block in blocks(fingerprints))
        for rows, block in blocks(fingerprints):
            rest = np.asarray(total, dtype=np.float32) - block
            lengths = np.linalg.norm(block, axis=1) * np.linalg.norm(rest, axis=1)
            self.typicality[rows] = (block * rest).sum(axis=1) / np.maximum(lengths, 1e-9)
        least = self.settings.min_typicality
        for place in np.flatnonzero(self.typicality < least).tolist() if least is not None else ():
            detail = f"FC correlates {self.typicality[place]:.2f} with the mean of the others, {least:g} needed"
            self.exclude(place, "atypical-fc", detail)
        if n < MIN_FOR_MEAN:
            return
        middle = float(np.median(self.typicality))
        spread = 1.4826 * float(np.median(np.abs(self.typicality - middle)))
        for place in np.flatnonzero(self.typicality < middle - _OUTLIER_MADS * spread).tolist():
            if place not in self.excluded:
                detail = (
                    f"FC correlates {self.typicality[place]:.2f} with the mean of the others, {middle:.2f} is usual"
                )
                self.warnings.append(("atypical-fc", place, detail))

    def judge_copies(self, fingerprints: Fingerprints, read: Callable[[int], np.ndarray]) -> None:
        repeated = self.recordings["digest"].duplicated().to_numpy()
        pairs = self._identical(repeated)
        n = len(self.ids)
        if n < MIN_FOR_MEAN:
            worth = np.argwhere(np.triu(~(repeated[:, None] | repeated), k=1))
        else:
            space = fit_space(fingerprints)
            people = pd.factorize(self.people)[0]
            near = neighbours(fingerprints, people, space, self.settings.duplicate_similarity, repeated)
            worth = near.pairs
        pairs += confirmed(worth, read, self.settings.duplicate_synchrony, self.settings.duplicate_match)
        of_place: dict[int, list[Pair]] = {}
        for pair in pairs:
            for place in (pair.first, pair.second):
                of_place.setdefault(place, []).append(pair)
        for group in groups(pairs):
            self._settle(group, of_place)
        if n >= MIN_FOR_MEAN:
            self._look_for_mix_ups(fingerprints, space, near, people, set(of_place))

    def _identical(self, repeated: np.ndarray) -> list[Pair]:
        digests = self.recordings["digest"]
        again = np.flatnonzero(repeated)
        first: dict[str, int] = {}
        if len(again):
            for place in np.flatnonzero(digests.isin(set(digests[again]))).tolist():
                first.setdefault(str(digests[place]), place)
        return [Pair(first[str(digests[place])], place, "identical values") for place in again.tolist()]

    def _settle(self, group: list[int], of_place: dict[int, list[Pair]]) -> None:
        """Of one scan keep the longest, or none where labels contradict each other."""
        left = [place for place in group if place not in self.excluded]
        clash = self._contradiction(group)
        volumes = self.recordings["n_volumes"]
        kept = max(left, key=lambda place: (volumes[place], -place)) if left and not clash else None
        for place in left:
            if place == kept:
                continue
            pair = next((pair for pair in of_place[place] if kept in (pair.first, pair.second)), of_place[place][0])
            other = pair.first if place == pair.second else pair.second
            detail = f"same scan as {self.ids[other]} ({pair.told})"
            if self.people[other] == self.people[place]:
                detail += ", filed as two recordings of one person"
            if clash:
                self.exclude(place, "contradicting-duplicate", f"{detail}; {clash}")
            else:
                self.exclude(place, "duplicate", detail)
        if kept is not None:
            self._compare_ages(kept, group)

    def _known(self, name: str, group: list[int]) -> pd.Series:
        """What is known of one column in a group."""
        column = self.column(name)
        return pd.Series(dtype=object) if column is None else column.loc[group].dropna()

    def _contradiction(self, group: list[int]) -> str:
        """Says which label differs among copies of one scan; empty where none does."""
        for name in _LABELS:
            values = self._known(name, group).unique()
            if len(values) > 1:
                return f"but {name} is " + " and ".join(str(value) for value in values)
        return ""

    def _compare_ages(self, kept: int, group: list[int]) -> None:
        ages = self._known("age", group)
        if ages.nunique() > 1:
            named = ", ".join(f"{age} in {self.ids[place]}" for place, age in ages.items())
            self.warnings.append(("contradicting-age", kept, f"copies of one scan give the ages {named}"))

    def _look_for_mix_ups(
        self, fingerprints: Fingerprints, space: Space, near: Neighbours, people: np.ndarray, copies: set[int]
    ) -> None:
        """Recordings more like another person's than like all others of their own person."""
        own = _own_likeness(fingerprints, space, people)
        known = own[own > -1]
        if not len(known):
            return
        least = _LIKE_OWN * float(np.median(known))
        strange = (own > -1) & (near.cosine - own >= _CLEAR_MARGIN) & (near.cosine >= least)
        for place in np.flatnonzero(strange).tolist():
            other = int(near.nearest[place])
            if not copies & {place, other}:
                detail = (
                    f"its FC is more like {self.ids[other]} of {self.people[other]} (likeness {near.cosine[place]:.2f}) "
                    f"than the other recordings of {self.people[place]} ({own[place]:.2f})"
                )
                self.warnings.append(("mixed-up", place, detail))

    def judge_against(
        self,
        name: str,
        their_ids: np.ndarray,
        fingerprints: Fingerprints,
        their_fingerprints: Fingerprints,
        read: Callable[[int], np.ndarray],
        read_theirs: Callable[[int], np.ndarray],
    ) -> None:
        worth = across(fingerprints, their_fingerprints, self.settings.duplicate_similarity)
        settings = self.settings
        for pair in confirmed(worth, read, settings.duplicate_synchrony, settings.duplicate_match, read_theirs):
            detail = f"same scan as {their_ids[pair.second]} of the store {name} ({pair.told})"
            self.exclude(pair.first, "seen-elsewhere", detail)


def _own_likeness(fingerprints: Fingerprints, space: Space, people: np.ndarray) -> np.ndarray:
    """For each recording its likeness to the most similar other one of its person; -1 where it is the only one."""
    own = np.full(len(people), -1, dtype=np.float32)
    order = np.argsort(people, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(people[order]) != 0])
    for start, end in zip(starts, np.r_[starts[1:], len(people)], strict=True):
        places = order[start:end]
        if len(places) < 2:
            continue
        rows = np.concatenate([np.asarray(fingerprints[place : place + 1], dtype=np.float32) for place in places])
        centred = rows - space.mean
        weighted = space.weighted(rows)
        lengths = np.sqrt(np.maximum(((centred @ space.metric) * centred).sum(axis=1), 1e-12))
        cosines = weighted @ (centred / lengths[:, None]).T
        np.fill_diagonal(cosines, -1)
        own[places] = cosines.max(axis=1)
    return own


def _unknown_labels(participants: pd.DataFrame, settings: QualitySettings) -> dict[str, str]:
    """People with a label that is not allowed, and the sentence that says so."""
    strange: dict[str, str] = {}
    for column, known in settings.known_labels.items():
        if column not in participants:
            raise OpenBrainMassError(
                f"The setting known_labels names the column {column}, which the participants table lacks; it has "
                f"{', '.join(participants.columns)}. Mend the setting."
            )
        for person, label in zip(participants["participant_id"], participants[column], strict=True):
            # A column of whole numbers with a gap holds floats: code 1 is 1.0 there.
            code = str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)
            if code not in known:
                found = "missing" if pd.isna(label) else repr(code)
                strange.setdefault(str(person), f"{column} is {found}, known are {', '.join(known)}")
    return strange
