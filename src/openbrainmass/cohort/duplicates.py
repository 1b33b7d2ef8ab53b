"""Scans that are in a cohort twice, under one name or two, as they were or altered.

Two scans are one when their FC is alike *and* their volumes belong together: the FC of two long scans can be alike by
anatomy, but no two brains fluctuate in step. A short random projection of every FC (2 KiB a scan) finds the pairs
worth looking at; only those are read again and compared volume by volume. That comparison knows eight kinds of
altered copies: `ALTERATIONS`. How often it finds them, and errs, is printed by ``benchmarks/duplicates.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from openbrainmass.connectivity import correlation, fisher_z, vectorize

ALTERATIONS: Mapping[str, str] = {
    "scaled": "another gain and offset in every ROI",
    "cropped": "only the first, the last or the middle half of the volumes",
    "rounded": "few digits, or float16",
    "reversed": "volumes in reverse order",
    "shuffled": "volumes in another order",
    "noisy": "noise added",
    "resampled": "another TR: every second volume, or interpolated",
    "filtered": "detrended and band-passed",
}
"""The kinds of copies that are found, and what each is."""

MIN_FOR_MEAN = 16
"""From so many scans on, what all of them share is known and removed; of fewer, every pair is compared in full."""

_LENGTH = 1024
_BLOCK = 1024
# The metric divides by the spread of a direction over the cohort plus this share of the mean spread. A pair of copies
# is itself 2 / n of the spread, so in small cohorts the share must grow or copies would be pushed apart.
_RIDGE, _RIDGE_PER_SCAN = 3.0, 4.0
# A peak of synchrony stands out when nothing farther away than this share of the volumes comes near it.
_NEAR_PEAK, _LEAST_NEAR, _STANDS_OUT = 0.1, 10, 1.4


class Fingerprints(Protocol):
    """What holds one fingerprint a recording: an array, or a file that is read piece by piece."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Any, /) -> Any:
        """Rows of a slice: float (n, 1024)."""


class Fingerprinter:
    """Turns BOLD into short fingerprints whose inner products are those of the standardised edges.

    Parameters
    ----------
    n_rois : int
        Width of the BOLD.
    """

    def __init__(self, n_rois: int) -> None:
        rng = np.random.default_rng(n_rois)
        n_edges = n_rois * (n_rois - 1) // 2
        self._bucket = rng.integers(_LENGTH, size=n_edges)
        self._sign = rng.choice([-1.0, 1.0], size=n_edges)

    def __call__(self, bold: np.ndarray) -> np.ndarray:
        """Fingerprint of BOLD (n_volumes, n_rois): float16 (1024,)."""
        signed = standard_edges(bold) * self._sign
        return np.bincount(self._bucket, weights=signed, minlength=_LENGTH).astype(np.float16)


def standard_edges(bold: np.ndarray) -> np.ndarray:
    """Fisher-z edges of BOLD (n_volumes, n_rois), mean 0 and length 1: float64 (n_edges,)."""
    edges = vectorize(fisher_z(correlation(bold))).astype(np.float64)
    edges -= edges.mean()
    return edges / max(float(np.linalg.norm(edges)), 1e-12)


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of the Fisher-z edges of two BOLD arrays with the same ROIs."""
    return float(standard_edges(a) @ standard_edges(b))


@dataclass(frozen=True)
class Likeness:
    """How far two scans are one.

    Attributes
    ----------
    synchrony : float
        Mean correlation of their ROIs at the best shift, forwards or backwards, whatever its sign.
    elsewhere : float
        The largest far from that shift: what scans of this length and smoothness reach by chance.
    backwards : bool
        Whether the best shift is one of the reversed scan.
    match : float
        For the typical volume of the shorter scan, correlation over ROIs with the most similar volume of the other.
    self_match : float
        The same between volumes of one scan that are far apart: what volumes reach by chance.
    """

    synchrony: float
    elsewhere: float
    backwards: bool
    match: float
    self_match: float

    def same(self, min_synchrony: float, min_match: float) -> bool:
        """Whether the two are one scan: they run in step, or consist of the same volumes in any order."""
        in_step = self.synchrony >= min_synchrony and self.synchrony >= _STANDS_OUT * self.elsewhere
        half_way = (1 + self.self_match) / 2
        return in_step or (self.match >= min_match and self.match >= half_way)

    def told(self) -> str:
        """The finding in words."""
        if self.synchrony >= self.match / 2:
            return f"time courses correlate {self.synchrony:.3f}{', one backwards' if self.backwards else ''}"
        return f"the same volumes in another order or at another TR, correlation {self.match:.3f}"


def compare(a: np.ndarray, b: np.ndarray) -> Likeness:
    """Compare two scans of the same ROIs volume by volume.

    The mean over ROIs is taken out of every volume first: it is breathing and motion, and alike in strangers.

    Parameters
    ----------
    a, b : ndarray (n_volumes, n_rois)
        Lengths may differ; a shift counts where at least half of the shorter overlaps.
    """
    a, b = sorted((_standard(a), _standard(b)), key=len)
    live = max(1, int((a.any(axis=0) & b.any(axis=0)).sum()))
    products = a @ b.T
    forwards, backwards = _along_diagonals(products[:, ::-1]) / live, _along_diagonals(products) / live
    run_backwards = bool(np.abs(backwards).max() > np.abs(forwards).max())
    best, other = (backwards, forwards) if run_backwards else (forwards, backwards)
    peak = int(np.abs(best).argmax())
    near = max(_LEAST_NEAR, int(_NEAR_PEAK * len(a)))
    far = np.r_[best[: max(0, peak - near)], best[peak + near + 1 :], other]
    lengths_a, lengths_b = (np.maximum(np.linalg.norm(x, axis=1), 1e-9) for x in (a, b))
    cosines = np.abs(products / lengths_a[:, None] / lengths_b)
    match = float(np.median(cosines.max(axis=1)))
    return Likeness(
        float(np.abs(best[peak])), float(np.abs(far).max()), run_backwards, match, _self_match(a / lengths_a[:, None])
    )


def _self_match(volumes: np.ndarray) -> float:
    """Median over volumes of unit length of the likeness to the most similar one that is not near in time."""
    near = min(max(_LEAST_NEAR, int(_NEAR_PEAK * len(volumes))), max(1, len(volumes) // 3))
    cosines = np.abs(volumes @ volumes.T)
    place = np.arange(len(volumes))
    cosines[np.abs(place[:, None] - place) <= near] = 0
    return float(np.median(cosines.max(axis=1)))


def _along_diagonals(products: np.ndarray) -> np.ndarray:
    """Mean of an array (n, m), n <= m, along each anti-diagonal that has at least n / 2 entries."""
    n, m = products.shape
    shifted = np.zeros((n, n + m), dtype=products.dtype)
    shifted[:, :m] = products
    # Read with rows one shorter, each row starts one place further right: anti-diagonals become columns.
    sums = shifted.ravel()[:-n].reshape(n, n + m - 1).sum(axis=0)
    place = np.arange(n + m - 1)
    overlap = np.minimum(np.minimum(place + 1, n + m - 1 - place), n)
    enough = overlap >= n / 2
    return sums[enough] / overlap[enough]


def _standard(bold: np.ndarray) -> np.ndarray:
    """ROIs of mean 0 and variance 1 with the mean over ROIs taken out of every volume; dead ROIs are 0: float32."""
    values = np.nan_to_num(bold.astype(np.float64))
    values -= values.mean(axis=0)
    spread = values.std(axis=0)
    live = spread > 0
    values /= np.where(live, spread, 1)
    values -= values.sum(axis=1, keepdims=True) / max(1, int(live.sum()))
    values *= live
    spread = values.std(axis=0)
    return (values / np.where(spread > 1e-6, spread, 1)).astype(np.float32)


@dataclass(frozen=True, eq=False)
class Space:
    """What the fingerprints of a cohort share, and how they spread.

    Attributes
    ----------
    mean : ndarray (1024,)
        Mean fingerprint: what all brains have in common.
    metric : ndarray (1024, 1024)
        Inverse of the regularised covariance: directions in which many differ (site, global signal) count less.
    """

    mean: np.ndarray
    metric: np.ndarray

    def weighted(self, rows: np.ndarray) -> np.ndarray:
        """Fingerprints (n, 1024) to be multiplied by centred ones of length 1, so that cosines result."""
        centred = rows.astype(np.float32) - self.mean
        product = centred @ self.metric
        lengths = np.sqrt(np.maximum((centred * product).sum(axis=1), 1e-12))
        product /= lengths[:, None]
        return product

    def lengths(self, fingerprints: Fingerprints) -> np.ndarray:
        """Length of each centred fingerprint: float32 (n,)."""
        lengths = np.empty(len(fingerprints), dtype=np.float32)
        for rows, block in blocks(fingerprints):
            centred = block - self.mean
            lengths[rows] = np.sqrt(np.maximum(((centred @ self.metric) * centred).sum(axis=1), 1e-12))
        return lengths

    def without(self, direction: np.ndarray) -> Space:
        """The same, blind to one direction (1024,): the difference between two cohorts."""
        unit = direction / max(float(np.linalg.norm(direction)), 1e-12)
        left = self.metric - np.outer(unit, unit @ self.metric)
        return Space(self.mean, left - np.outer(left @ unit, unit))


def blocks(fingerprints: Fingerprints) -> Iterator[tuple[slice, np.ndarray]]:
    """Pieces of 1,024 fingerprints: their rows, and float32 (n, 1024)."""
    for start in range(0, len(fingerprints), _BLOCK):
        rows = slice(start, min(start + _BLOCK, len(fingerprints)))
        yield rows, np.asarray(fingerprints[rows], dtype=np.float32)


def fit_space(fingerprints: Fingerprints) -> Space:
    """Mean and metric of the fingerprints of a cohort (n, 1024); two passes, a few MiB."""
    n = len(fingerprints)
    mean = np.zeros(_LENGTH)
    for _, block in blocks(fingerprints):
        mean += block.sum(axis=0, dtype=np.float64) / n
    mean = mean.astype(np.float32)
    covariance = np.zeros((_LENGTH, _LENGTH), dtype=np.float32)
    for _, block in blocks(fingerprints):
        block -= mean
        covariance += block.T @ block / n
    spread = float(np.trace(covariance))
    covariance[np.diag_indices(_LENGTH)] += max(_RIDGE / _LENGTH, _RIDGE_PER_SCAN / n) * spread + 1e-12
    return Space(mean, np.linalg.inv(covariance))


@dataclass(frozen=True, eq=False)
class Neighbours:
    """What a comparison of all fingerprints with each other finds.

    Attributes
    ----------
    pairs : ndarray (n_pairs, 2)
        Positions of fingerprints that are alike enough to be looked at, first < second.
    nearest, cosine : ndarray (n,)
        For each recording the most similar one of another person, and how similar.
    """

    pairs: np.ndarray
    nearest: np.ndarray
    cosine: np.ndarray


def neighbours(
    fingerprints: Fingerprints, people: np.ndarray, space: Space, threshold: float, skip: np.ndarray | None = None
) -> Neighbours:
    """Compare every fingerprint with every other one.

    Parameters
    ----------
    fingerprints : array or file (n, 1024)
    people : ndarray of int (n,)
        Whose each is.
    space : Space
        From `fit_space`.
    threshold : float
        Cosine from which on a pair is worth a look.
    skip : ndarray of bool (n,), optional
        Which take no part, such as exact copies of others.
    """
    n = len(fingerprints)
    inverse = 1 / space.lengths(fingerprints)
    if skip is not None:
        inverse[skip] = 0
    nearest, cosine = np.full(n, -1, dtype=np.int32), np.full(n, -1, dtype=np.float32)
    found: list[np.ndarray] = [np.empty((0, 2), dtype=np.int64)]
    several = len(np.unique(people)) < n
    for rows, block in blocks(fingerprints):
        weighted = space.weighted(block)
        if skip is not None:
            weighted[skip[rows]] = 0
        for start in range(rows.start, n, _BLOCK):
            columns = slice(start, min(start + _BLOCK, n))
            centred = np.asarray(fingerprints[columns], dtype=np.float32) - space.mean
            centred *= inverse[columns, None]
            cosines = weighted @ centred.T
            found.append(_alike(cosines, threshold, rows.start, columns.start))
            if several:
                cosines[people[rows, None] == people[columns]] = -1
                _update(nearest, cosine, rows, columns.start, cosines)
                _update(nearest, cosine, columns, rows.start, cosines.T)
    return Neighbours(np.concatenate(found), nearest, cosine)


def _alike(cosines: np.ndarray, threshold: float, first: int, second: int) -> np.ndarray:
    """Positions (n_pairs, 2) of cosines from the threshold on; of a block on the diagonal only its upper triangle."""
    i, j = np.nonzero(cosines >= threshold)
    pairs = np.column_stack([i + first, j + second])
    return pairs[pairs[:, 0] < pairs[:, 1]] if first == second else pairs


def _update(nearest: np.ndarray, cosine: np.ndarray, rows: slice, offset: int, cosines: np.ndarray) -> None:
    best = cosines.argmax(axis=1)
    value = cosines[np.arange(len(best)), best]
    better = value > cosine[rows]
    nearest[rows] = np.where(better, best + offset, nearest[rows])
    cosine[rows] = np.where(better, value, cosine[rows])


def across(own: Fingerprints, other: Fingerprints, threshold: float) -> np.ndarray:
    """Pairs of recordings of two cohorts that are worth a look: positions (n_pairs, 2), own first.

    What distinguishes the two cohorts as wholes (scanner, pipeline) is taken out, so that a copy that went through
    another pipeline is still found.
    """
    if not len(own) or not len(other):
        return np.empty((0, 2), dtype=np.int64)
    large, small = (own, other) if len(own) >= len(other) else (other, own)
    if len(large) < MIN_FOR_MEAN:
        return np.argwhere(np.ones((len(own), len(other)), dtype=bool))
    space = fit_space(large)
    if len(small) >= MIN_FOR_MEAN:
        mean = sum(block.sum(axis=0, dtype=np.float64) for _, block in blocks(small)) / len(small)
        space = space.without((mean - space.mean).astype(np.float32))
    lengths = space.lengths(other)
    found = [np.empty((0, 2), dtype=np.int64)]
    for rows, block in blocks(own):
        weighted = space.weighted(block)
        for columns, theirs in blocks(other):
            i, j = np.nonzero(weighted @ ((theirs - space.mean) / lengths[columns, None]).T >= threshold)
            found.append(np.column_stack([i + rows.start, j + columns.start]))
    return np.concatenate(found)


@dataclass(frozen=True)
class Pair:
    """Two recordings, by position, that are one scan."""

    first: int
    second: int
    told: str


def confirmed(
    pairs: np.ndarray,
    read: Callable[[int], np.ndarray],
    min_synchrony: float,
    min_match: float,
    read_other: Callable[[int], np.ndarray] | None = None,
) -> Iterator[Pair]:
    """Those of some pairs that are one scan, in order; of scans that earlier pairs connect none is compared again.

    Parameters
    ----------
    pairs : ndarray of int (n_pairs, 2)
        Positions.
    read : callable
        ``read(position) -> ndarray (n_volumes, n_rois)``.
    min_synchrony, min_match : float
        See `Likeness.same`.
    read_other : callable, optional
        Reads the second of each pair, where that is a recording of another store.
    """
    parent: dict[int, int] = {}
    position, bold = -1, np.empty((0, 0))
    for first, second in pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))].tolist():
        # Positions in another store are told apart from those in this one by their sign.
        mate = second if read_other is None else ~second
        if _root(parent, first) == _root(parent, mate):
            continue
        if first != position:
            position, bold = first, read(first)
        likeness = compare(bold, (read_other or read)(second))
        if likeness.same(min_synchrony, min_match):
            parent[_root(parent, mate)] = _root(parent, first)
            yield Pair(first, second, likeness.told())


def groups(pairs: list[Pair]) -> list[list[int]]:
    """Positions that are connected by pairs, each group sorted."""
    parent: dict[int, int] = {}
    for pair in pairs:
        parent[_root(parent, pair.second)] = _root(parent, pair.first)
    members: dict[int, list[int]] = {}
    for position in sorted(parent):
        members.setdefault(_root(parent, position), []).append(position)
    return list(members.values())


def _root(parent: dict[int, int], position: int) -> int:
    """Who stands for the group of a position; shortens the way there."""
    while parent.setdefault(position, position) != position:
        parent[position] = parent[parent[position]]
        position = parent[position]
    return position
