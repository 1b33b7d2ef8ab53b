"""Recordings that are one scan though they have different ids: copies, altered copies, windows, views.

Volumes that two recordings share to the last bit prove it at once, even if they share few of them. Copies whose
values were changed are found as `cohort.duplicates` does: by their FC, confirmed volume by volume.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from openbrainmass.cohort.assembly import fingerprints_of
from openbrainmass.cohort.cohort import Cohort
from openbrainmass.cohort.duplicates import MIN_FOR_MEAN, Fingerprinter, Space, across, confirmed, fit_space, neighbours
from openbrainmass.cohort.quality import QualitySettings

_MIN_SHARED = 3
_BITS = 10
# In 785 scans of ABIDE I no two strangers are as alike as three quarters of the halves are; of its halves under two ids
# 780 pairs of 785 are found.
_USUAL, _LEAST_OF_HALVES = 0.25, 0.15


class Copy(NamedTuple):
    """Two recordings, by position, that are one scan; the second is of the other cohort where there are two.

    ``check`` names the leak that they would be on two sides of a fold; `proved` is whether they share volumes, or run
    in step, and not only have the same FC.
    """

    first: int
    second: int
    check: str
    told: str
    proved: bool = True


def find_copies(cohort: Cohort, other: Cohort | None = None) -> list[Copy]:
    """Recordings under different ids of people that are one scan.

    Parameters
    ----------
    cohort : Cohort
        All its scans are read, up to three times.
    other : Cohort, optional
        Look for the scans of `cohort` in this one, of the same atlas, and not among themselves.

    Returns
    -------
    list of Copy
        With one entry a pair; of altered copies only as many as connect them.
    """
    shared = _sharing_volumes(cohort, other)
    settings = QualitySettings()
    candidates = _alike(cohort, other, settings.duplicate_similarity)
    done = {(copy.first, copy.second) for copy in shared}
    left = np.array([pair for pair in candidates.tolist() if tuple(pair) not in done], dtype=int).reshape(-1, 2)
    read_other = None if other is None else other.bold
    limits = settings.duplicate_synchrony, settings.duplicate_match
    altered = [
        Copy(pair.first, pair.second, "near-duplicates", pair.told)
        for pair in confirmed(left, cohort.bold, *limits, read_other)
    ]
    found = [*shared, *altered]
    if other is None:
        found += _pieces(cohort, {(copy.first, copy.second) for copy in found})
    people = cohort.recordings["participant_id"].to_numpy(str)
    # Ids of two cohorts always count as different.
    return [copy for copy in found if other is not None or people[copy.first] != people[copy.second]]


def _alike(cohort: Cohort, other: Cohort | None, threshold: float) -> np.ndarray:
    """Pairs (n_pairs, 2) whose FC is alike enough to compare them in full."""
    own = fingerprints_of(cohort)
    if other is not None:
        return across(own, fingerprints_of(other), threshold)
    if len(cohort) < MIN_FOR_MEAN:
        return np.argwhere(np.triu(np.ones((len(cohort), len(cohort)), dtype=bool), k=1))
    people = pd.factorize(cohort.recordings["participant_id"])[0]
    return neighbours(own, people, fit_space(own), threshold).pairs


def _pieces(cohort: Cohort, known: set[tuple[int, int]]) -> list[Copy]:
    """Pairs whose FC is as alike as that of two halves of one scan: windows without a common volume, or two sessions.

    How alike halves are is measured in this cohort. Where hardly more than strangers, nothing can be said.
    """
    if len(cohort) < 2 * MIN_FOR_MEAN:
        return []
    fingerprints = fingerprints_of(cohort)
    space, fingerprint = fit_space(fingerprints), Fingerprinter(cohort.atlas.n_rois)
    likeness = np.empty(len(cohort))
    for row, bold in enumerate(cohort):
        half = len(bold) // 2
        first, second = (fingerprint(part)[None] for part in (bold[:half], bold[half:]))
        likeness[row] = _cosines(space, first, second)[0]
    usual = float(np.quantile(likeness, _USUAL))
    if usual < _LEAST_OF_HALVES:
        return []
    rows = np.arange(len(cohort))
    pairs = [(i, j) for i, j in neighbours(fingerprints, rows, space, usual).pairs.tolist() if (i, j) not in known]
    told = f"their FC is as alike as that of two halves of one scan, {usual:.2f} or more"
    return [Copy(first, second, "windows-across-folds", told, proved=False) for first, second in pairs]


def _cosines(space: Space, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Likeness (n,) of fingerprints (n, 1024) to others, one by one."""
    centred = second.astype(np.float32) - space.mean
    return np.asarray((space.weighted(first) * centred).sum(axis=1) / space.lengths(second))


def _sharing_volumes(cohort: Cohort, other: Cohort | None) -> list[Copy]:
    """Pairs that share volumes bit by bit, whatever float type holds them."""
    n_own = len(cohort)
    keys, recordings, volumes = [], [], []
    for number, bold in enumerate((*cohort, *(other or ()))):
        hashes, places = volume_hashes(bold)
        keys.append(hashes)
        recordings.append(np.full(len(hashes), number, dtype=np.int32))
        volumes.append(places)
    table = pd.DataFrame(
        {"key": np.concatenate(keys), "recording": np.concatenate(recordings), "volume": np.concatenate(volumes)}
    )
    # A volume that occurs twice within a recording was filled in; it proves nothing between two.
    table = table[~table.duplicated(["key", "recording"], keep=False) & table["key"].duplicated(keep=False)]
    pairs = table.merge(table, on="key", suffixes=("_a", "_b"))
    pairs = pairs[pairs["recording_a"] < pairs["recording_b"]]
    if other is not None:
        pairs = pairs[(pairs["recording_a"] < n_own) & (pairs["recording_b"] >= n_own)]
    lengths = np.array([len(places) for places in volumes])
    copies = []
    for _, rows in pairs.groupby(["recording_a", "recording_b"]):
        if len(rows) < _MIN_SHARED:
            continue
        first, second = int(rows["recording_a"].iloc[0]), int(rows["recording_b"].iloc[0])
        a, b = rows["volume_a"].to_numpy(), rows["volume_b"].to_numpy()
        check, told = _kind(a, b, int(lengths[first]), int(lengths[second]))
        copies.append(Copy(first, second - (0 if other is None else n_own), check, told))
    return copies


def volume_hashes(bold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Numbers that are equal where volumes of BOLD (n_volumes, n_rois) are, to the ten bits that float16 keeps.

    Returns
    -------
    hashes : ndarray (n,) of uint64
        Of the volumes in which at least half of the ROIs differ from each other.
    volumes : ndarray (n,) of int
        Their positions.
    """
    with np.errstate(invalid="ignore"):
        mantissa, exponent = np.frexp(np.nan_to_num(np.asarray(bold, dtype=np.float64)))
    rounded = np.ldexp(np.round(np.ldexp(mantissa, _BITS + 1)), exponent)
    ordered = np.sort(rounded, axis=1)
    n_different = 1 + (np.diff(ordered, axis=1) > 0).sum(axis=1)
    kept = np.flatnonzero(n_different >= max(3, bold.shape[1] // 2))
    rows = np.ascontiguousarray(rounded[kept]) + 0.0
    return pd.util.hash_array(np.array([row.tobytes() for row in rows], dtype=object), categorize=False), kept


def _kind(a: np.ndarray, b: np.ndarray, n_a: int, n_b: int) -> tuple[str, str]:
    """Name of the leak from the positions of the volumes that two recordings share, and the finding."""
    told = f"they share {len(a)} volumes"
    if len(a) >= n_a and len(a) >= n_b and np.array_equal(a, b):
        return "duplicates", f"identical in all {len(a)} volumes"
    # A window is one piece: a stretch of its volumes without a gap, in order, is the other's.
    order = np.argsort(a)
    if (np.diff(a[order]) == 1).all() and (np.diff(b[order]) == 1).all():
        return "windows-across-folds", f"{told} in one piece"
    return "views-across-folds", f"{told} that do not follow each other"
