"""Pseudo-FC: the FC of a part of a recording's volumes, the augmentation that pretraining learns from.

Which volumes are kept depends on (seed, epoch, scan, view) and on nothing else, so neither workers, nor a
restart, nor the order of the scans can change it.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from openbrainmass.connectivity import ESTIMATORS, correlation
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.model.view_products import StandardisedScan, fill_views, scans_at_once

if TYPE_CHECKING:
    import torch

CHUNK_VOLUMES = 10
"""About how many volumes a chunk of "chunk-drop" has."""

VIEW_STREAM = 0x5046
"""Sets the random words of views apart from all others of the same seed, epoch and scan."""

FIXED_COUNT = 60
"""How many volumes "fixed-count" keeps: fewer than 80 % of the shortest usual scan."""

_WORD = (1 << 64) - 1
_UPPER_HALF = 1 if sys.byteorder == "little" else 0


@overload
def pseudo_fc(
    bold: torch.Tensor,
    n_views: int = 2,
    augmentation: str = "random-drop",
    share: float = 0.2,
    estimator: str = "pearson",
    seed: int = 0,
    epoch: int = 0,
    scan: int = 0,
) -> torch.Tensor: ...
@overload
def pseudo_fc(
    bold: np.ndarray | StandardisedScan,
    n_views: int = 2,
    augmentation: str = "random-drop",
    share: float = 0.2,
    estimator: str = "pearson",
    seed: int = 0,
    epoch: int = 0,
    scan: int = 0,
) -> np.ndarray: ...
def pseudo_fc(
    bold: np.ndarray | torch.Tensor | StandardisedScan,
    n_views: int = 2,
    augmentation: str = "random-drop",
    share: float = 0.2,
    estimator: str = "pearson",
    seed: int = 0,
    epoch: int = 0,
    scan: int = 0,
) -> np.ndarray | torch.Tensor:
    """Views of one recording's FC, each from another part of its volumes.

    Parameters
    ----------
    bold : ndarray or Tensor (n_volumes, n_rois), or StandardisedScan
        One recording, in any unit, or what `standardise` made of it, which pays from about the sixth view on.
    n_views : int
        How many views.
    augmentation : {"random-drop", "fixed-count", "contiguous-crop", "chunk-drop"}
        Which volumes stay; see `AUGMENTATIONS` and `kept_volumes`.
    share : float
        Share of the volumes that is left out, at least 0 and below 1 ("fixed-count" does not use it).
    estimator : {"pearson", "ledoit-wolf"}
        As for `openbrainmass.connectivity.correlation`.
    seed, epoch, scan : int
        The key of the randomness.

    Returns
    -------
    ndarray or Tensor (n_views, n_rois, n_rois)
        What `correlation` gives for the kept volumes of each view: float64 for float64 input, else float32 within
        1e-6 of that (3e-6 for series of two values only). A Tensor is differentiable.

    Raises
    ------
    OpenBrainMassError
        If too few volumes would stay, or as `correlation` does.
    """
    if len(bold.shape) != 2:
        raise OpenBrainMassError(
            f"pseudo_fc was given BOLD of shape {tuple(bold.shape)}; one recording (n_volumes, n_rois) is expected. "
            "Give the recordings of a batch to pseudo_fc_batch as a list."
        )
    if isinstance(bold, StandardisedScan) or (isinstance(bold, np.ndarray) and bold.dtype != np.float64):
        return pseudo_fc_batch([bold], [scan], n_views, augmentation, share, estimator, seed, epoch)[:, 0]
    kept = kept_volumes(bold.shape[0], n_views, augmentation, share, seed, epoch, scan)
    if isinstance(bold, np.ndarray):
        return np.stack([correlation(bold[view], estimator) for view in kept])
    import torch

    return torch.stack([correlation(bold[np.flatnonzero(view)], estimator) for view in kept])


def pseudo_fc_batch(
    scans: Iterable[np.ndarray | StandardisedScan],
    keys: Sequence[int],
    n_views: int = 2,
    augmentation: str = "random-drop",
    share: float = 0.2,
    estimator: str = "pearson",
    seed: int = 0,
    epoch: int = 0,
) -> np.ndarray:
    """Views of the FC of several recordings, whose lengths may differ; each scan is read once.

    Parameters
    ----------
    scans : iterable of ndarray (n_volumes_i, n_rois) or StandardisedScan
        Recordings of one atlas, any float type; a few of them are held at a time.
    keys : sequence of int
        The scan number of each, which keys its randomness.
    n_views, augmentation, share, estimator, seed, epoch
        As for `pseudo_fc`.

    Returns
    -------
    ndarray (n_views, n_scans, n_rois, n_rois), float32
        Equal to `correlation` of the kept volumes within 1e-6 (3e-6 for series of two values only).

    Raises
    ------
    OpenBrainMassError
        If there are no scans, the numbers of ROIs differ, or as `pseudo_fc`; the message names the scan's key.
    """
    if estimator not in ESTIMATORS:
        raise OpenBrainMassError(
            f"The FC estimator {estimator!r} is not known; choose one of {', '.join(sorted(ESTIMATORS))}."
        )
    if len(keys) == 0:
        raise OpenBrainMassError("pseudo_fc_batch was given no scans; at least one is needed. Check the selection.")
    fc, block = np.empty((0, 0, 0, 0), dtype=np.float32), []
    for index, (scan, key) in enumerate(zip(scans, keys, strict=True)):
        if index == 0:
            fc = np.empty((n_views, len(keys), scan.shape[-1], scan.shape[-1]), dtype=np.float32)
        if len(scan.shape) != 2 or scan.shape[1] != fc.shape[-1]:
            raise OpenBrainMassError(
                f"Scan {key} has shape {tuple(scan.shape)} where (n_volumes, {fc.shape[-1]}) is expected as in the "
                "first scan. A batch needs one atlas; extract the scan again with it."
            )
        block.append((key, scan, kept_volumes(scan.shape[0], n_views, augmentation, share, seed, epoch, key)))
        if index + 1 == len(keys) or len(block) == scans_at_once(fc.shape[-1]):
            fill_views(block, estimator, fc[:, index + 1 - len(block) : index + 1])
            block = []
    return fc


def kept_volumes(
    n_volumes: int,
    n_views: int = 2,
    augmentation: str = "random-drop",
    share: float = 0.2,
    seed: int = 0,
    epoch: int = 0,
    scan: int = 0,
) -> np.ndarray:
    """Which volumes each view keeps.

    Parameters
    ----------
    n_volumes : int
        Length of the recording.
    n_views, augmentation, share, seed, epoch, scan
        As for `pseudo_fc`. ``round(share * n_volumes)`` volumes are left out.

    Returns
    -------
    ndarray (n_views, n_volumes), bool
        View *i* does not depend on how many views are drawn.

    Raises
    ------
    OpenBrainMassError
        If the augmentation is unknown, the share is not in [0, 1), or fewer than 3 volumes would stay.
    """
    if augmentation not in AUGMENTATIONS:
        raise OpenBrainMassError(
            f"The augmentation {augmentation!r} is not known; choose one of {', '.join(sorted(AUGMENTATIONS))}."
        )
    if n_views < 1:
        raise OpenBrainMassError(f"{n_views} views were asked for; ask for at least 1.")
    if not 0 <= share < 1:
        raise OpenBrainMassError(
            f"The share of volumes to leave out is {share}; it must be at least 0 and below 1, such as 0.2."
        )
    n_left_out = n_volumes - FIXED_COUNT if augmentation == "fixed-count" else round(share * n_volumes)
    if n_left_out < 0 or n_volumes - n_left_out < 3:
        raise OpenBrainMassError(
            f"Scan {scan} has {n_volumes} volumes, too few for {augmentation} (which keeps "
            f"{n_volumes - n_left_out}; at least 3 must stay). Leave out shorter scans or a smaller share."
        )
    if n_left_out == 0:
        return np.ones((n_views, n_volumes), dtype=bool)
    return AUGMENTATIONS[augmentation](_words(seed, epoch, scan, n_views, n_volumes), n_left_out)


def _words(seed: int, epoch: int, scan: int, n_views: int, n_volumes: int) -> np.ndarray:
    """Random words ``(n_views, n_volumes)``: a counter-based generator read from the position that the key names.

    Only raw words are used: numpy keeps their stream the same for ever, which it does not promise of its distributions.
    """
    generator = _GENERATOR
    generator.key[0] = seed & _WORD
    generator.counter[2] = scan & _WORD
    generator.counter[3] = epoch & _WORD
    generator.philox.state = generator.state  # type: ignore[assignment]
    return generator.philox.random_raw(n_views * n_volumes).reshape(n_views, n_volumes)


class _Generator(threading.local):
    """A generator of each thread's own, because a new one would cost more than the words."""

    def __init__(self) -> None:
        self.philox = np.random.Philox(key=0)
        self.state: dict[str, Any] = self.philox.state  # type: ignore[assignment]
        self.key, self.counter = self.state["state"]["key"], self.state["state"]["counter"]
        self.key[1] = VIEW_STREAM
        self.counter[:] = 0


_GENERATOR = _Generator()


def _random_drop(words: np.ndarray, n_left_out: int) -> np.ndarray:
    """All but the smallest words: every subset of that size is equally likely.

    Two equal words of 64 bits do not occur in the lifetime of a cluster. Their upper halves nearly always tell the
    same, and are ordered faster.
    """
    kept = _above(words.view(np.uint32)[:, _UPPER_HALF::2], n_left_out)
    as_many = np.count_nonzero(kept) == len(words) * (words.shape[1] - n_left_out)
    return kept if as_many else _above(words, n_left_out)


def _above(words: np.ndarray, n_left_out: int) -> np.ndarray:
    return words > np.partition(words, n_left_out - 1, axis=1)[:, n_left_out - 1 : n_left_out]


def _window(words: np.ndarray, n_left_out: int) -> np.ndarray:
    n_volumes = words.shape[1]
    starts = (words[:, :1] % np.uint64(n_left_out + 1)).astype(np.int64)
    place = np.arange(n_volumes) - starts
    return (place >= 0) & (place < n_volumes - n_left_out)


def _chunks(words: np.ndarray, n_left_out: int) -> np.ndarray:
    n_views, n_volumes = words.shape
    n_chunks = max(1, round(n_left_out / CHUNK_VOLUMES))
    lengths = np.full(n_chunks, n_left_out // n_chunks)
    lengths[: n_left_out % n_chunks] += 1
    # Each chunk is one slot among the kept volumes, so all arrangements without overlap are equally likely.
    slots = ~_random_drop(words[:, : n_volumes - n_left_out + n_chunks], n_chunks)
    repeats = np.ones(slots.shape, dtype=np.int64)
    repeats[slots] = np.tile(lengths, n_views)
    return ~np.repeat(slots.ravel(), repeats.ravel()).reshape(n_views, n_volumes)


AUGMENTATIONS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "random-drop": _random_drop,
    "fixed-count": _random_drop,
    "contiguous-crop": _window,
    "chunk-drop": _chunks,
}
"""Augmentations by name: leave out a random share of the volumes; all but `FIXED_COUNT` random volumes, the same number
for every scan, so that FC noise does not tell the length; all but one window; several chunks of neighbouring
volumes. Each is given random words ``(n_views, n_volumes)`` and how many volumes to leave out, and returns what is kept,
of that shape."""
