"""Correlations of parts of a recording by float32 products, as precise as two passes in float64.

Two ways lead to the centred products of the volumes that a view keeps. `_products_of_kept` multiplies them, those that
two views share only once. `_products_by_removal` starts from the products of all volumes, which a `StandardisedScan`
holds, and takes away those of the volumes left out. `fill_views` chooses, looks whether float32 was precise enough,
and computes by `openbrainmass.connectivity.correlation` what was not.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch

from openbrainmass.connectivity import correlation
from openbrainmass.errors import OpenBrainMassError

_BLOCK_BYTES = 1 << 21  # of products, which stay in a core's cache until they are correlations
_BLOCK_VOLUMES, _BLOCK_VOLUMES_FAR = 128, 48
_FAR = 1e4  # squared mean over squared deviation
_LARGEST_SHARE_REMOVED = 0.4
_SMALLEST_SHARE_LEFT = 0.4  # of the variance of a ROI
_LARGEST_SHARE_OF_POWER = 0.5  # that is removed with the volumes left out
_SMALLEST, _LARGEST = 1e-30, 1e30  # products whose inverses and squares float32 holds
_SMALLEST_OVER_OFFSET = 1.6  # variance over squared mean
_LARGEST_CONCENTRATION = 0.25  # sum of fourth powers over squared sum of squares: 1 if one volume has all variance
_WORTH_CENTRING = 0.1  # squared mean over squared deviation
_ROUNDINGS = 64
_NONE = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class StandardisedScan:
    """A recording made ready for many views; made by `standardise`.

    Attributes
    ----------
    bold : ndarray (n_volumes, n_rois)
        The recording as it was given, for views that need more precision.
    rows : ndarray (n_volumes, n_rois), float32
        Every ROI with mean 0 and mean square 1; 0 at constant and missing ROIs.
    gram : ndarray (n_rois, n_rois), float32
        Products of all volumes: ``n_volumes`` times the correlation.
    still : ndarray, int
        The numbers of the constant and missing ROIs.
    """

    bold: np.ndarray
    rows: np.ndarray
    gram: np.ndarray
    still: np.ndarray

    @property
    def shape(self) -> tuple[int, ...]:
        """``(n_volumes, n_rois)``."""
        return self.rows.shape

    @cached_property
    def third(self) -> np.ndarray:
        """Products of the squared rows with the rows ``(n_rois, n_rois)``, float32; made when Ledoit-Wolf needs them."""
        rows = self.rows.astype(np.float64)
        return (np.square(rows).T @ rows).astype(np.float32)

    @cached_property
    def fourth(self) -> np.ndarray:
        """Products of the squared rows with each other ``(n_rois, n_rois)``, float32; likewise."""
        squares = np.square(self.rows.astype(np.float64))
        return (squares.T @ squares).astype(np.float32)


def standardise(bold: np.ndarray) -> StandardisedScan:
    """Make a recording ready for many views, each of which then costs as much as the volumes it leaves out.

    This takes as long as about three views of the recording as it is, and pays from about the sixth view on: several
    epochs in memory, or a study of how reliable edges are.

    Parameters
    ----------
    bold : ndarray (n_volumes, n_rois)
        One recording, any float type, in any unit; it is held, so do not change it afterwards.

    Returns
    -------
    StandardisedScan
        To be given to `pseudo_fc` or `pseudo_fc_batch` in place of the recording. It needs
        ``4 * n_rois * (n_volumes + n_rois)`` bytes besides the recording itself, ``8 * n_rois ** 2`` more when Ledoit-Wolf
        is first asked for.

    Raises
    ------
    OpenBrainMassError
        As `openbrainmass.connectivity.correlation` does, or if the array is not of two dimensions.
    """
    bold = np.asarray(bold)
    if bold.ndim != 2:
        raise OpenBrainMassError(
            f"standardise was given BOLD of shape {tuple(bold.shape)}; one recording (n_volumes, n_rois) is expected. "
            "Call it once for each recording."
        )
    wide = np.asarray(bold, dtype=np.float64)
    if len(wide) < 3 or not np.isfinite(wide.sum()):
        # Tells what is wrong, if it is more than ROIs that are missing throughout.
        correlation(wide)
        wide = np.where(np.isnan(wide[0]), 0, wide)
    centred = wide - wide[0]
    centred -= centred.mean(axis=0)
    deviation = np.sqrt(np.einsum("ti,ti->i", centred, centred) / len(wide))
    still, doubtful = deviation == 0, _doubtful(wide[0], deviation)
    deviation[still | doubtful] = np.inf
    centred /= deviation
    gram = centred.T @ centred
    # A variance of 0 sends every view of a doubtful ROI the precise way.
    np.fill_diagonal(gram, np.where(doubtful, 0, len(wide)))
    return StandardisedScan(bold, centred.astype(np.float32), gram.astype(np.float32), np.flatnonzero(still))


class _Memory(threading.local):
    """Memory that a thread uses again for every scan; fresh memory would cost more than the products."""

    def __init__(self) -> None:
        self._held: dict[str, np.ndarray] = {}
        self._ones = np.ones(0, dtype=np.float32)

    def array(self, name: str, *shape: int, dtype: type = np.float32) -> np.ndarray:
        """Uninitialised memory of that name, which the next call with it hands out again."""
        size = math.prod(shape)
        held = self._held.get(name)
        if held is None or held.size < size:
            held = self._held[name] = np.empty(size, dtype=dtype)
        return held[:size].reshape(shape)

    def ones(self, n: int) -> np.ndarray:
        """``(n,)`` ones: sums by a matrix product are faster than by `sum`."""
        if len(self._ones) < n:
            self._ones = np.ones(n, dtype=np.float32)
        return self._ones[:n]


_MEMORY = _Memory()


_Block = Sequence[tuple[int, np.ndarray | StandardisedScan, np.ndarray]]


class _Products(NamedTuple):
    """What goes with the products of some views of a scan."""

    least: np.ndarray | float  # variance of a ROI, times volumes, that float32 needs (n_rois,)
    offset: np.ndarray | None  # whose outer product is still to be taken away (n_views, n_rois)
    sums: np.ndarray  # of the volumes of each view (n_views, n_rois)
    n_kept: int  # volumes of a view
    still: np.ndarray  # numbers of the ROIs that are constant
    rows: np.ndarray  # those left out (n_views, n, n_rois), or all in the order of `_layout` (n, n_rois)
    n_own: int  # of these, how many belong to a view alone


def scans_at_once(n_rois: int) -> int:
    """How many scans `fill_views` should be given, so that two views of each stay in a core's cache."""
    return max(1, _BLOCK_BYTES // (2 * 4 * max(n_rois, 1) ** 2))


def fill_views(block: _Block, estimator: str, fc: np.ndarray) -> None:
    """FC of the kept volumes of a few scans.

    Parameters
    ----------
    block : sequence of (int, ndarray or StandardisedScan (n_volumes_i, n_rois), ndarray (n_views, n_volumes_i))
        The number of each scan, for messages; the scan; which volumes each view keeps, as many in each.
    estimator : {"pearson", "ledoit-wolf"}
        As for `openbrainmass.connectivity.correlation`.
    fc : ndarray (n_views, n_scans, n_rois, n_rois), float32
        Is filled.

    Raises
    ------
    OpenBrainMassError
        As `correlation` does; the message names the scan's number.
    """
    views_at_once = 2 * max(1, scans_at_once(fc.shape[-1]) // len(block))
    with np.errstate(all="ignore"):
        for start in range(0, len(fc), views_at_once):
            views = slice(start, start + views_at_once)
            _fill([(key, scan, kept[views]) for key, scan, kept in block], estimator, fc[views])


def _fill(block: _Block, estimator: str, fc: np.ndarray) -> None:
    products = _MEMORY.array("products", *fc.shape)
    offset, least = _MEMORY.array("offset", *fc.shape[:3]), _MEMORY.array("least", *fc.shape[:3])
    offset[:] = 0
    power, n_kept, n_still = np.empty(fc.shape[:2]), np.empty(fc.shape[:2]), np.empty(fc.shape[:2])
    for number, (_, scan, kept) in enumerate(block):
        for views, part in _products(scan, kept, products[:, number]):
            least[views, number] = part.least
            if part.offset is not None:
                offset[views, number] = part.offset
            if estimator == "ledoit-wolf":
                power[views, number] = _mean_squared_power(scan, part, products[views, number])
                n_kept[views, number], n_still[views, number] = part.n_kept, len(part.still)
    precise = _normalise(products, offset, least, fc)
    if estimator == "ledoit-wolf":
        _shrink(fc, power, n_kept, n_still)
        precise &= np.isfinite(power)
    if not precise.all():
        for view, number in np.argwhere(~precise):
            key, scan, kept = block[number]
            fc[view, number] = _exact(scan, kept[view], estimator, key)


def _products(
    scan: np.ndarray | StandardisedScan, kept: np.ndarray, products: np.ndarray
) -> Iterator[tuple[slice, _Products]]:
    """Fill products ``(n_views, n_rois, n_rois)``: of all views at once, or by twos, which share theirs."""
    if isinstance(scan, StandardisedScan):
        if np.count_nonzero(kept[0]) >= (1 - _LARGEST_SHARE_REMOVED) * kept.shape[1]:
            yield slice(None), _products_by_removal(scan, kept, products)
            return
        scan = scan.bold
    for start in range(0, len(kept), 2):
        pair = slice(start, start + 2)
        yield pair, _products_of_kept(scan, kept[pair], products[pair])


def _products_by_removal(scan: StandardisedScan, kept: np.ndarray, products: np.ndarray) -> _Products:
    """Fill products of sets of volumes of one size from those of all volumes."""
    n_volumes, n_rois = scan.rows.shape
    gone = (~kept).nonzero()[1].reshape(len(kept), -1)
    n_gone = gone.shape[1]
    n_kept = n_volumes - n_gone
    rows = _MEMORY.array("rows", len(gone), n_gone + 1, n_rois)
    for view, volumes in enumerate(gone):
        scan.rows.take(volumes, axis=0, out=rows[view, 1:], mode="clip")
    sums = _sums(rows[:, 1:])
    # One more row takes the product of the means away together with the volumes.
    np.multiply(sums, np.float32(n_kept**-0.5), out=rows[:, 0])
    np.matmul(rows.swapaxes(1, 2), rows, out=products)
    np.subtract(scan.gram, products, out=products)
    return _Products(_SMALLEST_SHARE_LEFT * n_volumes, None, sums, n_kept, scan.still, rows[:, 1:], 0)


def _products_of_kept(bold: np.ndarray, kept: np.ndarray, products: np.ndarray) -> _Products:
    """Fill products of one or two sets of volumes of one size, multiplying the volumes that both have once."""
    order, n_own, n_both = _layout(kept)
    rows, still, at_once = _rows(bold, order, n_both)
    own, both = rows[: 2 * n_own].reshape(2, n_own, rows.shape[1]), rows[2 * n_own :]
    n_kept, sums = n_own + n_both, np.broadcast_to(_sums(both), products.shape[:2])
    if n_own:
        shared = _MEMORY.array("shared", *products.shape[1:])
        _multiply(both, shared, at_once)
        _multiply(own, products, at_once)
        products += shared
        sums = _sums(own) + sums
    else:
        _multiply(both, products[0], at_once)
        products[1:] = products[0]
    if len(still):
        products[:, still, still] = 1
    # Whatever is added to the square of a spike is rounded as coarsely as that.
    fourth = np.square(rows, out=_MEMORY.array("squares", *rows.shape))
    least = np.sqrt(_sums(np.square(fourth, out=fourth)) / np.float32(_LARGEST_CONCENTRATION))
    return _Products(least, sums * np.float32(n_kept**-0.5), sums, n_kept, still, rows, n_own)


def _layout(kept: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Volumes in the order [only first | only second | both], and the sizes of the parts."""
    first, second = kept[0], kept[-1]
    parts = [part.nonzero()[0] for part in (first > second, first < second, first & second)]
    return np.concatenate(parts), len(parts[0]), len(parts[2])


def _rows(bold: np.ndarray, order: np.ndarray, n_both: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Volumes in that order as float32, centred where its products need it; constant ROIs; volumes to multiply at once.

    Constant and missing ROIs are 0 throughout.
    """
    rows = _MEMORY.array("rows", len(order), bold.shape[1])
    if bold.dtype.char == "f":
        np.take(bold, order, axis=0, out=rows, mode="clip")
    elif bold.dtype.char == "e":
        half = _MEMORY.array("half", *rows.shape, dtype=np.float16)
        np.take(bold, order, axis=0, out=half, mode="clip")
        # numpy takes 20 times as long.
        torch.from_numpy(rows).copy_(torch.from_numpy(half))
    else:
        wide = bold[order].astype(np.float64)
        parts, reference = _parts(wide, n_both)
        np.subtract(parts, reference.mean(axis=-2, keepdims=True), out=rows.reshape(parts.shape), casting="same_kind")
        # What is not finite in part must not look as if it were missing throughout.
        rows[1:, ~np.isfinite(wide.sum(axis=0)) & ~np.isnan(wide).all(axis=0)] = 0
        # One NaN sends the views of a ROI that hardly varies the precise way.
        rows[0, _doubtful(wide[0], np.std(wide - wide[0], axis=0))] = np.nan
    still = _still(rows)
    if len(still):
        rows[:, still] = 0
    parts, reference = _parts(rows, n_both)
    mean = _sums(reference) / np.float32(reference.shape[-2])
    deviation = parts[..., -1, :] - mean
    ratio = np.vdot(mean, mean) / np.vdot(deviation, deviation)
    if ratio > _WORTH_CENTRING:
        # Products of uncentred BOLD are too coarse in float32; their difference to a rough mean is exact.
        torch.from_numpy(parts).sub_(torch.from_numpy(mean[..., None, :]))
    # Far from 0 few distinct values are left, whose products do not round in all directions alike.
    return rows, still, _BLOCK_VOLUMES_FAR if ratio > _FAR else _BLOCK_VOLUMES


def _doubtful(volume: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Which ROIs deviate so little from a float64 volume that it may be rounding."""
    return (deviation > 0) & (deviation <= _ROUNDINGS * np.finfo(np.float64).eps * np.abs(volume))


def _parts(rows: np.ndarray, n_both: int) -> tuple[np.ndarray, np.ndarray]:
    """The volumes that have one centre, and those whose mean it is: what both views keep, or each its own.

    A spike that only one view keeps then costs the other no digits.
    """
    if n_both:
        return rows, rows[-n_both:]
    halves = rows.reshape(2, -1, rows.shape[1])
    return halves, halves


def _still(rows: np.ndarray) -> np.ndarray:
    """Numbers of the ROIs that are constant, or NaN throughout."""
    differs = np.abs(rows[0] - rows[-1]) > 0
    if np.count_nonzero(differs) == len(differs):
        return _NONE
    suspects = np.flatnonzero(~differs)
    columns = rows[:, suspects]
    constant = (columns == columns[0]).all(axis=0) & np.isfinite(columns[0])
    return suspects[constant | np.isnan(columns).all(axis=0)]


def _sums(volumes: np.ndarray) -> np.ndarray:
    return _MEMORY.ones(volumes.shape[-2]) @ volumes


def _multiply(volumes: np.ndarray, products: np.ndarray, at_once: int) -> None:
    """Fill ``products`` with ``volumes.T @ volumes``, in blocks: float32 rounds short sums less than one long sum."""
    n_volumes = volumes.shape[-2]
    n_blocks = max(1, -(-n_volumes // at_once))
    scratch = products if n_blocks == 1 else _MEMORY.array("block", *products.shape)
    for index in range(n_blocks):
        block = volumes[..., index * n_volumes // n_blocks : (index + 1) * n_volumes // n_blocks, :]
        np.matmul(block.swapaxes(-1, -2), block, out=scratch if index else products)
        if index:
            products += scratch


def _normalise(products: np.ndarray, offset: np.ndarray, least: np.ndarray, fc: np.ndarray) -> np.ndarray:
    """Fill ``fc`` with correlations; returns where float32 was precise ``(n_views, n_scans)``.

    The outer products of ``offset (n_views, n_scans, n_rois)`` are still to be taken away from the products.
    """
    squared_offset = np.square(offset)
    variance = products.diagonal(axis1=-2, axis2=-1) - squared_offset
    # Written so that NaN counts as imprecise.
    within = (
        (variance > _SMALLEST_OVER_OFFSET * squared_offset)
        & (variance > least)
        & (variance > _SMALLEST)
        & (variance < _LARGEST)
    )
    scale = 1 / np.sqrt(variance)
    values, outer = torch.from_numpy(products), torch.from_numpy(_MEMORY.array("outer", *products.shape))
    if squared_offset.any():
        values -= _outer(offset, outer)
    values *= _outer(scale, outer)
    torch.clamp(values, -1, 1, out=torch.from_numpy(fc))
    np.einsum("vsii->vsi", fc)[:] = 1
    return np.logical_and.reduce(within, axis=-1)


def _outer(vectors: np.ndarray, out: torch.Tensor) -> torch.Tensor:
    """Outer product of every vector with itself, symmetric to the last bit."""
    values = torch.from_numpy(vectors)
    return torch.mul(values[..., :, None], values[..., None, :], out=out)


def _mean_squared_power(scan: np.ndarray | StandardisedScan, part: _Products, products: np.ndarray) -> np.ndarray:
    """Mean over the volumes of each view of their squared power ``(n_views,)``; overwrites the part's rows.

    The power of a volume is the sum over ROIs of its squared standardised BOLD. NaN where float32 is not precise enough.
    """
    variance = products.diagonal(axis1=1, axis2=2)
    weight = part.n_kept / (variance if part.offset is None else variance - np.square(part.offset))
    if len(part.still):
        weight[:, part.still] = 0
    if part.offset is None and isinstance(scan, StandardisedScan):
        return _power_by_removal(scan, part, weight)
    mean = part.sums / np.float32(part.n_kept)
    linear = 2 * weight * mean
    squares = np.square(part.rows, out=_MEMORY.array("squares", *part.rows.shape))
    power = (squares @ weight.T - part.rows @ linear.T + np.vecdot(linear, mean) / 2).astype(np.float64)
    if part.n_own:
        power[part.n_own : 2 * part.n_own, 0] = 0
        power[: part.n_own, 1] = 0
    return np.einsum("nv,nv->v", power, power) / part.n_kept


def _power_by_removal(scan: StandardisedScan, part: _Products, weight: np.ndarray) -> np.ndarray:
    """The same from the scan's moments and the volumes left out."""
    mean = part.sums / np.float32(-part.n_kept)
    rows = np.square(np.subtract(part.rows, mean[:, None], out=part.rows), out=part.rows)
    gone = np.matvec(rows, weight)
    # All volumes: (squares @ weight - rows @ linear + constant) ** 2 multiplied out, where the rows have mean 0 and
    # mean square 1.
    linear = 2 * weight * mean
    constant = np.vecdot(linear, mean) / 2
    total = np.vecdot(weight @ scan.fourth, weight) + np.vecdot(linear @ scan.gram - 2 * (weight @ scan.third), linear)
    total += len(scan.rows) * constant * (2 * weight.sum(axis=1) + constant)
    removed = np.vecdot(gone, gone)
    return np.where(removed < _LARGEST_SHARE_OF_POWER * total, total - removed, np.nan) / part.n_kept


def _shrink(fc: np.ndarray, power: np.ndarray, n_kept: np.ndarray, n_still: np.ndarray) -> None:
    """Ledoit-Wolf shrinkage of correlations, in place; see `openbrainmass.connectivity.ledoit_wolf_shrinkage`.

    Of each view, the mean squared power of its volumes, how many these are, and its number of constant ROIs.
    """
    values = torch.from_numpy(fc)
    flat = fc.reshape(*fc.shape[:2], -1)
    squares = np.vecdot(flat, flat).astype(np.float64) - n_still
    distance = squares - (fc.shape[-1] - n_still)
    shrinkage = np.where(distance > 0, np.clip((power - squares) / n_kept / distance, 0, 1), 1)
    values *= torch.from_numpy(np.float32(1) - shrinkage.astype(np.float32))[..., None, None]
    np.einsum("vsii->vsi", fc)[:] = 1


def _exact(scan: np.ndarray | StandardisedScan, kept: np.ndarray, estimator: str, key: int) -> np.ndarray:
    try:
        return correlation((scan if isinstance(scan, np.ndarray) else scan.bold)[kept], estimator)
    except OpenBrainMassError as error:
        raise OpenBrainMassError(f"Scan {key}: {error}") from error
