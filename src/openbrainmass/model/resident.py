"""Recordings held on the device, and their pseudo-FC made there without the processor.

Every ROI is centred on its median and scaled by a power of two to the range of float16; correlation cares for
neither. So a spike of up to 1e9 standard deviations leaves the other volumes their precision, which
centring on the mean would not.
The products of a view are those of the volumes that it keeps, never a difference of larger ones, and sum in float32.
What float16 costs: edges differ from the float64 correlation of the recording by 3e-4 (root mean square; at most about
2e-3) over the root of the number of volumes kept, a few thousandths of what sampling that many volumes leaves uncertain.
That grows in proportion where the kept volumes of an ROI lie further from the median of the scan than they vary (a
narrow window on one side of a step).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from openbrainmass.connectivity import ledoit_wolf_shrinkage
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.model.device_draws import draw_kept, view_key
from openbrainmass.model.pseudo_fc import kept_volumes
from openbrainmass.model.scans import Scans
from openbrainmass.model.settings import ViewSettings

WORKING_BYTES = 1 << 30
"""About how much device memory `make_views` uses at a time besides its result."""

_LARGEST_EXPONENT = 14  # squares of 2**14 times any number of volumes stay far within float32
_CONSTANT = 8 * float(np.finfo(np.float64).eps)
_LEAST_VARIANCE = 1e-6  # of the mean square: below, float16 and float32 cannot tell what varies
_UPLOAD_BYTES = 32 << 20
_SHARE_FOR_SCANS = 0.5  # of the free memory; the rest is for training


@dataclass(frozen=True)
class ResidentScans:
    """Recordings one after the other in the memory of a device.

    Attributes
    ----------
    values : Tensor (total_volumes + 1, n_columns), float16
        Each ROI centred and scaled (in arbitrary units), a column of ones, then zeros up to a multiple of 8 columns; the
        last row is zero throughout.
    starts, lengths : Tensor (n_scans,), int64
        First row and number of volumes of each scan, on the same device.
    n_volumes : ndarray (n_scans,), int64
        The lengths, where the processor can see them without waiting for the device.
    n_rois : int
    """

    values: torch.Tensor
    starts: torch.Tensor
    lengths: torch.Tensor
    n_volumes: np.ndarray
    n_rois: int

    def __len__(self) -> int:
        return len(self.n_volumes)


def n_columns(n_rois: int) -> int:
    """Columns of `ResidentScans.values`: room for the ones, and a multiple of 8, which matrix units want."""
    return (n_rois // 8 + 1) * 8


def bytes_needed(n_volumes: int, n_rois: int) -> int:
    """Device memory for scans of ``n_volumes`` volumes in total."""
    return 2 * (n_volumes + 1) * n_columns(n_rois)


def why_not_resident(scans: Scans, device: torch.device) -> str | None:
    """One sentence if the scans should not be held on the device, None if they fit.

    Parameters
    ----------
    scans : Scans
    device : torch.device
        On ``cpu`` every number of scans "fits".
    """
    if device.type != "cuda":
        return None
    needed = bytes_needed(int(_lengths(scans).sum()), scans.atlas.n_rois)
    free, _ = torch.cuda.mem_get_info(device)
    if needed <= _SHARE_FOR_SCANS * free:
        return None
    return (
        f"The {len(scans)} recordings would take {needed / 1e9:.1f} GB of the {free / 1e9:.1f} GB free on {device}, of "
        f"which training may need half; their pseudo-FC is made by the processor instead."
    )


def hold_scans(scans: Scans, device: torch.device) -> ResidentScans:
    """Read every recording once and hold it on the device.

    Parameters
    ----------
    scans : Scans
    device : torch.device

    Returns
    -------
    ResidentScans

    Raises
    ------
    OpenBrainMassError
        As `hold_recordings`.
    """
    return hold_recordings(scans.bold, _lengths(scans), scans.atlas.n_rois, device)


def _lengths(scans: Scans) -> np.ndarray:
    return np.concatenate([cohort.recordings["n_volumes"].to_numpy(np.int64) for cohort in scans.cohorts])


def hold_recordings(
    read: Callable[[int], np.ndarray], n_volumes: Sequence[int] | np.ndarray, n_rois: int, device: torch.device
) -> ResidentScans:
    """Hold recordings of known lengths on the device; the processor's memory holds a few of them at a time.

    Parameters
    ----------
    read : callable
        ``read(number) -> ndarray (n_volumes, n_rois)``, called once for each number from 0, in order.
    n_volumes : sequence of int (n_scans,)
        Length of each recording.
    n_rois : int
    device : torch.device

    Returns
    -------
    ResidentScans

    Raises
    ------
    OpenBrainMassError
        If a recording has another shape than told, or an ROI is non-finite in part.
    """
    told = np.asarray(n_volumes, dtype=np.int64)
    ends = told.cumsum()
    values = torch.zeros(int(told.sum()) + 1, n_columns(n_rois), dtype=torch.float16, device=device)
    values[:-1, n_rois] = 1
    waiting, n_waiting, done = [], 0, 0
    for number in range(len(told)):
        bold = read(number)
        if bold.shape != (told[number], n_rois):
            raise OpenBrainMassError(
                f"Scan {number} has shape {bold.shape} where {(int(told[number]), n_rois)} is expected from the table "
                "of recordings and the atlas. Build the store again."
            )
        waiting.append(_in_range_of_float16(bold, number))
        n_waiting += len(bold)
        if n_waiting * n_rois * 2 >= _UPLOAD_BYTES or number == len(told) - 1:
            values[done : done + n_waiting, :n_rois].copy_(torch.cat(waiting))
            waiting, n_waiting, done = [], 0, done + n_waiting
    starts, lengths = (torch.from_numpy(array).to(device) for array in (ends - told, told))
    return ResidentScans(values, starts, lengths, told, n_rois)


def _in_range_of_float16(bold: np.ndarray, number: int) -> torch.Tensor:
    """Centre each ROI on its median and scale it by a power of two, on the processor, so that all devices hold the same.

    The lower median is a value of the scan itself, so that an ROI which is constant wherever a view keeps it is 0 there.
    """
    rows = np.ascontiguousarray(bold.T, dtype=np.float64 if bold.dtype == np.float64 else np.float32)
    middle = (rows.shape[1] - 1) // 2
    with np.errstate(invalid="ignore"):
        median = np.partition(rows, middle, axis=1)[:, middle]
        rows -= median[:, None]
        largest = np.abs(rows).max(axis=1)
    broken = ~np.isfinite(largest)
    if broken.any():
        partly = np.flatnonzero(broken & ~np.isnan(bold).all(axis=0))
        if len(partly):
            raise OpenBrainMassError(
                f"Scan {number}: ROI column(s) {', '.join(map(str, partly[:5]))} of the BOLD hold NaN or infinity at "
                "some volumes. Finite values are expected, or NaN throughout for a ROI that was not covered; interpolate "
                "or remove those volumes."
            )
    dead = broken | (largest <= _CONSTANT * np.abs(median))
    rows[dead], largest[dead] = 0, 1
    exponents = np.minimum(_LARGEST_EXPONENT - np.frexp(largest)[1], 126)
    rows *= np.ldexp(np.ones((), rows.dtype), exponents)[:, None]
    return torch.from_numpy(rows).T.to(torch.float16, memory_format=torch.contiguous_format)


def make_views(
    held: ResidentScans,
    numbers: Sequence[int] | np.ndarray | torch.Tensor,
    epoch: int | torch.Tensor,
    seed: int,
    settings: ViewSettings,
    n_views: int = 2,
    working_bytes: int = WORKING_BYTES,
    compiled: bool = False,
) -> torch.Tensor:
    """Views of the FC of some scans, made where the scans are held.

    Parameters
    ----------
    held : ResidentScans
    numbers : sequence of int or Tensor (n,), int64
        Which scans. As a tensor on the device (with ``epoch`` another) the call can be captured in a CUDA graph, and
        every scan costs as much as the longest of all.
    epoch : int or Tensor (), int64
    seed : int
        With the scan's number and the view's these decide which volumes are kept: those of `pseudo_fc.kept_volumes`.
    settings : ViewSettings
    n_views : int
    working_bytes : int
        About how much memory to use at a time besides the result.
    compiled : bool
        Fuse the many small kernels with ``torch.compile``, which takes half a minute at the first call.

    Returns
    -------
    Tensor (n_views, n, n_rois, n_rois), float32
        Symmetric to the bit, within [-1, 1], diagonal exactly 1; an ROI that does not vary has edges 0. Equal calls
        give equal bits; among other scans the same scan's may differ by float32 rounding.

    Raises
    ------
    OpenBrainMassError
        As `pseudo_fc.kept_volumes`, if the shortest of all held scans is too short.
    """
    _check_lengths(held, settings, seed)
    device, longest = held.values.device, int(held.n_volumes.max())
    key = view_key(seed, device)
    epoch = epoch if isinstance(epoch, torch.Tensor) else torch.full((), epoch, device=device)
    if isinstance(numbers, torch.Tensor):
        which, lengths = numbers, np.full(len(numbers), longest)
    else:
        which, lengths = _sent(np.asarray(numbers), device), held.n_volumes[np.asarray(numbers)]
    groups = list(_groups(lengths, held, settings, n_views, working_bytes))
    make = _compiled() if compiled else _views_of_group
    # Autocast would round float16 to bfloat16.
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        if len(groups) == 1:
            return make(held, which, groups[0][1], epoch, key, settings, n_views)
        views = torch.empty(n_views, len(which), held.n_rois, held.n_rois, device=device)
        for group, longest in groups:
            # What a CUDA graph replays must not come from the processor's memory; there the order is as given.
            fixed = isinstance(numbers, torch.Tensor)
            places = torch.arange(group[0], group[-1] + 1, device=device) if fixed else _sent(group, device)
            views.index_copy_(1, places, make(held, which[places], longest, epoch, key, settings, n_views))
    return views


def _check_lengths(held: ResidentScans, settings: ViewSettings, seed: int) -> None:
    """Refuse what `kept_volumes` refuses; the longer a scan, the more it keeps."""
    shortest = int(held.n_volumes.argmin())
    kept_volumes(int(held.n_volumes[shortest]), 1, settings.augmentation, settings.share, seed, 0, shortest)


@cache
def _compiled() -> Callable[..., torch.Tensor]:
    return torch.compile(_views_of_group)


def _groups(
    lengths: np.ndarray, held: ResidentScans, settings: ViewSettings, n_views: int, working_bytes: int
) -> Iterator[tuple[np.ndarray, int]]:
    """Places of scans of similar lengths that fit into the memory together, and the greatest length of each group."""
    columns = held.values.shape[1]
    a_volume = n_views * (2 * columns + 80)
    if settings.estimator == "ledoit-wolf" or not held.values.is_cuda:
        a_volume += 4 * n_views * columns
    order = np.argsort(-lengths, kind="stable")
    start = 0
    while start < len(order):
        longest = int(lengths[order[start]])
        size = max(1, working_bytes // (longest * a_volume + 16 * n_views * columns**2))
        yield order[start : start + size], longest
        start += size


def _sent(numbers: np.ndarray, device: torch.device) -> torch.Tensor:
    """Numbers on the device, without waiting for what it is doing."""
    tensor = torch.from_numpy(np.ascontiguousarray(numbers, dtype=np.int64))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _views_of_group(
    held: ResidentScans,
    numbers: torch.Tensor,
    longest: int,
    epoch: torch.Tensor,
    key: torch.Tensor,
    settings: ViewSettings,
    n_views: int,
) -> torch.Tensor:
    lengths, starts = held.lengths[numbers], held.starts[numbers]
    kept = draw_kept(key, epoch, numbers, lengths, longest, n_views, settings.augmentation, settings.share)
    rows = torch.arange(longest, device=numbers.device) + starts[:, None]
    # What a view leaves out is read from the row of zeros, which adds nothing to any sum.
    rows = torch.where(kept.transpose(0, 1), rows, len(held.values) - 1)
    # Copied in words of four values: fewer, and so few that 32 bits number those of a large cohort.
    bold = held.values.view(torch.int64).index_select(0, rows.flatten()).view(torch.float16)
    fc = correlate_rows(bold.view(-1, longest, held.values.shape[1]), held.n_rois, settings.estimator)
    return fc.view(n_views, -1, held.n_rois, held.n_rois)


def correlate_rows(bold: torch.Tensor, n_rois: int, estimator: str) -> torch.Tensor:
    """FC of recordings in the form of `ResidentScans.values`, in which rows of zeros do not count.

    Parameters
    ----------
    bold : Tensor (n, n_volumes, n_columns), float16
    n_rois : int
    estimator : {"pearson", "ledoit-wolf"}

    Returns
    -------
    Tensor (n, n_rois, n_rois), float32
    """
    products = _products(bold)
    gram, sums, n_kept = products[:, :n_rois, :n_rois], products[:, n_rois, :n_rois], products[:, n_rois, n_rois, None]
    offset = sums / n_kept.sqrt()
    power = gram.diagonal(dim1=-2, dim2=-1)
    deviation = power - offset.square()
    scale = torch.where(deviation > _LEAST_VARIANCE * power, deviation.rsqrt(), 0.0)
    fc = torch.addcmul(gram, offset[:, :, None], offset[:, None, :], value=-1)
    fc = fc.mul_(0.5 * scale[:, :, None]).mul_(scale[:, None, :])
    # The products of (i, j) and (j, i) may have been summed in another order.
    fc = (fc + fc.mT).clamp_(-1, 1)
    diagonal = fc.diagonal(dim1=-2, dim2=-1)
    if estimator == "ledoit-wolf":
        diagonal.copy_(scale > 0)
        fc *= 1 - _shrinkage(fc, bold, scale * n_kept.sqrt(), sums / n_kept)[:, None, None]
    diagonal.fill_(1)
    return fc


def _products(bold: torch.Tensor) -> torch.Tensor:
    """Sums over rows of the products of all columns, ``(n, n_columns, n_columns)`` in float32."""
    # Products of float16 are exact in float32, so that only the sums are rounded.
    if bold.is_cuda:
        return torch.bmm(bold.mT, bold, out_dtype=torch.float32)
    wide = bold.float()
    return torch.bmm(wide.mT, wide)


def _shrinkage(fc: torch.Tensor, bold: torch.Tensor, scale: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
    """Ledoit-Wolf shrinkage ``(n,)``; ``scale`` and ``mean (n, n_rois)`` standardise the columns of ``bold``."""
    n_rois, n_rows = scale.shape[1], bold.shape[1]
    values, ones = bold[..., :n_rois].float(), bold[..., n_rois].float()
    weight = scale.square()
    linear = torch.bmm(values, (weight * mean)[..., None])
    power = (torch.bmm(values.square_(), weight[..., None]) - 2 * linear)[..., 0]
    power += ones * (weight * mean.square()).sum(-1, keepdim=True)
    # The formula takes means over all rows, of which a share counts: told by scaling before and after.
    rows_a_volume = n_rows / ones.sum(-1)
    shrinkage = ledoit_wolf_shrinkage(torch, fc, power * rows_a_volume.sqrt()[:, None], (scale > 0).sum(-1))
    return (shrinkage * rows_a_volume).clamp_(max=1)
