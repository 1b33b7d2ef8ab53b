from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openbrainmass.model.device_draws import draw_kept, draw_rois, philox_key, philox_words, view_key
from openbrainmass.model.pseudo_fc import AUGMENTATIONS, FIXED_COUNT, kept_volumes

CPU = torch.device("cpu")
WORDS = st.one_of(st.integers(0, 3), st.integers(0, 2**64 - 1))


def numpy_words(seed: int, stream: int, epoch: int, scan: int, n_words: int) -> np.ndarray:
    key, counter = np.array([seed, stream], np.uint64), np.array([0, 0, scan, epoch], np.uint64)
    philox = np.random.Philox(key=key, counter=counter)
    return philox.random_raw(n_words)


@given(
    seed=WORDS,
    stream=WORDS,
    epoch=st.integers(0, 2**63 - 1),
    scan=st.integers(0, 2**63 - 1),
    n_words=st.integers(1, 19),
)
def test_words_are_those_of_numpy(seed: int, stream: int, epoch: int, scan: int, n_words: int) -> None:
    words = philox_words(philox_key(seed, stream, CPU), torch.tensor(epoch), torch.tensor([0, scan]), n_words)
    for row, number in zip(words.numpy().view(np.uint64), (0, scan), strict=True):
        assert np.array_equal(row[:n_words], numpy_words(seed, stream, epoch, number, n_words))


@pytest.mark.parametrize("augmentation", sorted(AUGMENTATIONS))
@given(
    lengths=st.lists(st.integers(FIXED_COUNT, 400), min_size=1, max_size=4),
    share=st.floats(0, 0.9),
    seed=st.integers(0, 2**70),
    epoch=st.integers(0, 10_000),
    n_views=st.integers(1, 3),
    spare=st.integers(0, 5),
)
def test_the_subsets_are_those_of_kept_volumes(
    augmentation: str, lengths: list[int], share: float, seed: int, epoch: int, n_views: int, spare: int
) -> None:
    scans = [7 * place + seed % 1000 for place in range(len(lengths))]
    kept = draw_kept(
        view_key(seed, CPU),
        torch.tensor(epoch),
        torch.tensor(scans),
        torch.tensor(lengths),
        max(lengths) + spare,
        n_views,
        augmentation,
        share,
    )
    for found, n_volumes, scan in zip(kept.numpy(), lengths, scans, strict=True):
        assert not found[:, n_volumes:].any()
        expected = kept_volumes(n_volumes, n_views, augmentation, share, seed, epoch, scan)
        assert np.array_equal(found[:, :n_volumes], expected)


@given(scan=st.integers(0, 100_000), n_rois=st.integers(4, 130), epoch=st.integers(0, 3000))
def test_rois_are_drawn_by_the_order_of_words(scan: int, n_rois: int, epoch: int) -> None:
    first, second = draw_rois(
        philox_key(3, 99, CPU), torch.tensor(epoch), torch.tensor([scan, scan + 1]), n_rois, (1, 3)
    )
    for row in range(2):
        order = numpy_words(3, 99, epoch, scan + row, n_rois).argsort()
        assert first[row].tolist() == order[:1].tolist() and second[row].tolist() == order[1:4].tolist()
