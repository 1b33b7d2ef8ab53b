"""The random draws of `pseudo_fc.kept_volumes` on a torch device, bit by bit the same, for many scans at once.

Nothing here makes the processor wait for the device: no value is read back, and every shape follows from arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch

from openbrainmass.model.pseudo_fc import CHUNK_VOLUMES, FIXED_COUNT, VIEW_STREAM

_HALF = (1 << 32) - 1
_LOWEST, _HIGHEST = -(1 << 63), (1 << 63) - 1

# Philox 4x64 with 10 rounds: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
_MULTIPLIERS = 0xD2E7470EE14C6C93, 0xCA5A826395121157
_KEY_STEPS = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
_ROUNDS = 10


@lru_cache(maxsize=16)
def philox_key(seed: int, stream: int, device: torch.device) -> torch.Tensor:
    """The constants of a generator's ten rounds, kept on the device because sending them would make it wait.

    Parameters
    ----------
    seed, stream : int
        The two words of the key.
    device : torch.device

    Returns
    -------
    Tensor (13, 2, 1, 1), int64
        Factors, their lower and upper halves, then the key of each round.
    """
    rows = [[_signed(factor) for factor in _MULTIPLIERS]]
    rows += [[factor & _HALF for factor in _MULTIPLIERS], [factor >> 32 for factor in _MULTIPLIERS]]
    for number in range(_ROUNDS):
        steps = zip((seed, stream), _KEY_STEPS, strict=True)
        rows.append([_signed(start + number * step) for start, step in steps])
    return torch.tensor(rows, device=device)[:, :, None, None]


def view_key(seed: int, device: torch.device) -> torch.Tensor:
    """The `philox_key` of the views of that seed."""
    return philox_key(seed, VIEW_STREAM, device)


def philox_words(key: torch.Tensor, epoch: torch.Tensor, scans: torch.Tensor, n_words: int) -> torch.Tensor:
    """The first words of a counter-based generator for each scan: those of ``numpy.random.Philox(...).random_raw``.

    Parameters
    ----------
    key : Tensor
        What `philox_key` returned.
    epoch : Tensor (), int64
        The last of the counter's four words.
    scans : Tensor (n,), int64
        Numbers of the scans, the third of the counter's words.
    n_words : int
        How many words each scan needs.

    Returns
    -------
    Tensor (n, at least n_words), int64
        Unsigned words, held in signed integers of the same bits.
    """
    n_blocks = -(-n_words // 4)
    # numpy counts up before it makes a block of four words, so that the first block has number 1.
    block = torch.arange(1, n_blocks + 1, device=scans.device).expand(len(scans), n_blocks)
    even = torch.stack([block, scans[:, None].expand_as(block)])
    odd = torch.stack([torch.zeros_like(block), epoch.expand_as(block)])
    for round_key in key[3:].unbind():
        high = _high_word(even, key[1], key[2]).flip(0)
        even, odd = high ^ odd ^ round_key, (even * key[0]).flip(0)
    return torch.stack([even, odd], dim=-1).permute(1, 2, 0, 3).flatten(1)


def _signed(word: int) -> int:
    word &= (1 << 64) - 1
    return word - (1 << 64) if word > _HIGHEST else word


def _upper_half(words: torch.Tensor) -> torch.Tensor:
    return words >> 32 & _HALF


def _high_word(words: torch.Tensor, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """The upper 64 of the 128 bits of an unsigned product, from 32-bit halves whose sums cannot overflow."""
    own_low, own_high = words & _HALF, _upper_half(words)
    middle = own_high * low + _upper_half(own_low * low)
    crossed = own_low * high + (middle & _HALF)
    return own_high * high + _upper_half(middle) + _upper_half(crossed)


def draw_kept(
    key: torch.Tensor,
    epoch: torch.Tensor,
    scans: torch.Tensor,
    n_volumes: torch.Tensor,
    longest: int,
    n_views: int,
    augmentation: str,
    share: float,
) -> torch.Tensor:
    """Which volumes each view of each scan keeps: `pseudo_fc.kept_volumes` of scans whose lengths may differ.

    Parameters
    ----------
    key : Tensor
        What `view_key` returned.
    epoch : Tensor (), int64
    scans, n_volumes : Tensor (n,), int64
        Numbers and lengths of the scans.
    longest : int
        At least the greatest length; places beyond a scan's length are not kept.
    n_views, augmentation, share
        As for `pseudo_fc.kept_volumes`, which checks them.

    Returns
    -------
    Tensor (n, n_views, longest), bool
    """
    place = torch.arange(longest, device=scans.device)
    n_volumes = n_volumes[:, None, None]
    words = philox_words(key, epoch, scans, n_views * longest)
    # The words of a view follow those of the view before it without a gap.
    of_view = torch.arange(n_views, device=scans.device)[:, None] * n_volumes + place
    words = words.gather(1, of_view.clamp_(max=words.shape[1] - 1).flatten(1)).view_as(of_view)
    by_share = (n_volumes.double() * share).round().long()
    n_left_out = n_volumes - FIXED_COUNT if augmentation == "fixed-count" else by_share
    return ~_LEFT_OUT[augmentation](words, place, n_volumes, n_left_out) & (place < n_volumes)


def draw_rois(
    key: torch.Tensor, epoch: torch.Tensor, scans: torch.Tensor, n_rois: int, counts: Sequence[int]
) -> list[torch.Tensor]:
    """Draw disjoint sets of ROIs without replacement.

    Parameters
    ----------
    key : Tensor
        What `philox_key` returned, of another stream than the views'.
    epoch : Tensor (), int64
    scans : Tensor (n,), int64
    n_rois : int
    counts : sequence of int
        Size of each set.

    Returns
    -------
    list of Tensor (n, count), int64
        The first places of the order in which ``numpy.argsort`` puts the scan's first ``n_rois`` Philox words.
    """
    words = philox_words(key, epoch, scans, n_rois)[:, :n_rois] ^ _LOWEST
    drawn = words.argsort(dim=1)[:, : sum(counts)]
    return list(drawn.split(list(counts), dim=1))


def _smallest(words: torch.Tensor, place: torch.Tensor, n_first: torch.Tensor, count: torch.Tensor) -> torch.Tensor:
    """Where the smallest ``count`` of the first ``n_first`` words of each row are."""
    # Unsigned words keep their order as signed ones when the uppermost bit is turned.
    ordered = (words ^ _LOWEST).masked_fill_(place >= n_first, _HIGHEST)
    last = ordered.sort(dim=-1).values.gather(-1, (count - 1).clamp_(min=0).expand(*words.shape[:2], 1))
    return (ordered <= last) & (count > 0)


def _random_drop(
    words: torch.Tensor, place: torch.Tensor, n_volumes: torch.Tensor, n_left_out: torch.Tensor
) -> torch.Tensor:
    return _smallest(words, place, n_volumes, n_left_out)


def _outside_window(
    words: torch.Tensor, place: torch.Tensor, n_volumes: torch.Tensor, n_left_out: torch.Tensor
) -> torch.Tensor:
    first, n_starts = words[..., :1], n_left_out + 1
    # The remainder of an unsigned word, from its halves.
    upper = (_upper_half(first) % n_starts) * ((1 << 32) % n_starts)
    start = (upper + (first & _HALF)) % n_starts
    return (place < start) | (place >= start + n_volumes - n_left_out)


def _chunks(
    words: torch.Tensor, place: torch.Tensor, n_volumes: torch.Tensor, n_left_out: torch.Tensor
) -> torch.Tensor:
    n_chunks = (n_left_out.double() / CHUNK_VOLUMES).round().long().clamp_(min=1)
    whole, rest = n_left_out // n_chunks, n_left_out % n_chunks
    # Each chunk is one slot among the kept volumes; a slot's place grows by what the chunks before it added.
    slots = _smallest(words, place, n_volumes - n_left_out + n_chunks, n_chunks)
    before = slots.cumsum(-1) - slots.long()
    start = place + before * (whole - 1) + torch.minimum(before, rest)
    end = start + whole + (before < rest)
    edges = torch.zeros(*words.shape[:2], words.shape[2] + 1, dtype=torch.int64, device=words.device)
    for at, step in ((start, 1), (end, -1)):
        edges.scatter_add_(-1, at.clamp(0, words.shape[2]), slots.long() * step)
    return edges.cumsum(-1)[..., :-1] > 0


_LEFT_OUT: dict[str, Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "random-drop": _random_drop,
    "fixed-count": _random_drop,
    "contiguous-crop": _outside_window,
    "chunk-drop": _chunks,
}
