"""Duplicate scans: every kind of altered copy is found, and people alike by nature are not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openbrainmass.cohort.duplicates import (
    ALTERATIONS,
    Fingerprinter,
    Likeness,
    Pair,
    Space,
    across,
    blocks,
    compare,
    confirmed,
    fit_space,
    groups,
    neighbours,
    similarity,
    standard_edges,
)
from openbrainmass.cohort.simulate import simulate_cohort

COPIES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "scaled": lambda bold: -3.0 * bold * np.linspace(0.3, 3, bold.shape[1]) + 50,
    "cropped": lambda bold: bold[len(bold) // 4 : len(bold) // 4 + len(bold) // 2],
    "rounded": lambda bold: np.round(bold, 1).astype(np.float16),
    "reversed": lambda bold: bold[::-1],
    "shuffled": lambda bold: bold[np.random.default_rng(1).permutation(len(bold))],
    "noisy": lambda bold: bold + 0.3 * bold.std(axis=0) * np.random.default_rng(2).normal(size=bold.shape),
    "resampled": lambda bold: bold[::2],
    "filtered": lambda bold: np.apply_along_axis(np.convolve, 0, bold - bold.mean(axis=0), np.ones(4) / 4, "same"),
}


def noise(seed: int, n_volumes: int = 80, n_rois: int = 30) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n_volumes, n_rois)).astype(np.float32)


@pytest.fixture(scope="module")
def sixty() -> list[np.ndarray]:
    return list(simulate_cohort(60, 2, 40, 160))


def prints_of(arrays: list[np.ndarray]) -> np.ndarray:
    fingerprinter = Fingerprinter(arrays[0].shape[1])
    return np.stack([fingerprinter(bold) for bold in arrays])


def found(arrays: list[np.ndarray]) -> list[tuple[int, int]]:
    prints = prints_of(arrays)
    near = neighbours(prints, np.arange(len(arrays)), fit_space(prints), 0.25)
    return [(p.first, p.second) for p in confirmed(near.pairs, arrays.__getitem__, 0.4, 0.75)]


def test_the_documented_kinds_are_those_tested():
    assert list(ALTERATIONS) == list(COPIES) and len(ALTERATIONS) == 8


def test_nobody_of_a_clean_cohort_is_a_duplicate(sixty):
    assert found(sixty) == []


@pytest.mark.parametrize("kind", COPIES)
def test_an_altered_copy_is_found_in_a_cohort_and_against_a_store(sixty, kind):
    copy = COPIES[kind](sixty[7]).astype(np.float32)
    assert found([*sixty, copy]) == [(7, 60)]
    store = [*sixty[30:50], copy]
    pairs = across(prints_of(sixty[:30]), prints_of(store), 0.25)
    named = [(p.first, p.second) for p in confirmed(pairs, sixty.__getitem__, 0.4, 0.75, store.__getitem__)]
    assert named == [(7, 20)]


@pytest.mark.parametrize("kind", COPIES)
def test_a_store_of_nothing_but_copies_is_recognised(sixty, kind):
    store = [COPIES[kind](bold).astype(np.float32) for bold in sixty[:20]]
    pairs = across(prints_of(sixty[:20]), prints_of(store), 0.25)
    named = [(p.first, p.second) for p in confirmed(pairs, sixty.__getitem__, 0.4, 0.75, store.__getitem__)]
    assert named == [(i, i) for i in range(20)]


def test_of_few_scans_every_pair_is_looked_at(sixty):
    assert len(across(prints_of(sixty[:3]), prints_of(sixty[5:9]), 0.99)) == 12
    assert across(prints_of(sixty[:3]), np.empty((0, 1024)), 0.25).shape == (0, 2)


def test_like_connectivity_without_synchrony_is_no_duplicate():
    mixing = np.random.default_rng(0).normal(size=(6, 30))
    one, two = (
        np.random.default_rng(seed).normal(size=(1500, 6)) @ mixing + 0.3 * noise(seed + 9, 1500) for seed in (1, 2)
    )
    assert similarity(one, two) > 0.95
    assert compare(one, two).synchrony < 0.1 and not compare(one, two).same(0.4, 0.75)


def test_few_rois_whose_volumes_all_look_alike_are_no_duplicate():
    one, two = noise(1, 300, 3), noise(2, 300, 3)
    likeness = compare(one, two)
    assert likeness.match > 0.9 and not likeness.same(0.4, 0.75)


def test_a_periodic_signal_in_two_people_is_no_duplicate():
    wave = np.sin(np.arange(160) / 5)[:, None] * np.linspace(-1, 1, 30)
    likeness = compare(wave + 0.3 * noise(1, 160), wave + 0.3 * noise(2, 160))
    assert likeness.synchrony > 0.4 and not likeness.same(0.4, 0.99)


@given(st.integers(0, 500), st.integers(0, 30), st.sampled_from([-1, 1]))
def test_comparison_ignores_gain_sign_offset_shift_and_direction(seed, shift, step):
    bold = noise(seed)
    likeness = compare(bold, (3 * step * bold[shift:] + 5)[::step])
    assert likeness.synchrony == pytest.approx(1, abs=0.2) and likeness.backwards == (step < 0)
    assert likeness.same(0.4, 0.75)
    assert not compare(bold, noise(seed + 5000)).same(0.4, 0.75)


@given(st.integers(0, 500))
def test_comparison_is_symmetric(seed):
    a, b = noise(seed, 60), noise(seed + 1, 90)
    one, two = compare(a, b), compare(b, a)
    assert one.synchrony == pytest.approx(two.synchrony, abs=1e-5) and one.match == pytest.approx(two.match, abs=1e-5)


def test_dead_rois_do_not_count():
    bold = noise(3)
    broken = bold.copy()
    broken[:, :5], broken[:, 5:8] = 7.0, np.nan
    assert compare(bold, broken).same(0.4, 0.75) and compare(bold, broken).synchrony > 0.9
    assert compare(np.zeros((40, 5)), noise(1, 40, 5)).same(0.4, 0.75) is False


def test_findings_are_told_in_words():
    assert Likeness(0.98, 0.1, False, 0.99, 0.4).told() == "time courses correlate 0.980"
    assert Likeness(0.98, 0.1, True, 0.99, 0.4).told() == "time courses correlate 0.980, one backwards"
    assert "another order or at another TR, correlation 0.950" in Likeness(0.05, 0.04, True, 0.95, 0.4).told()


@given(st.integers(0, 10_000))
def test_fingerprints_keep_inner_products(seed):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(60, 40))
    b = (a + rng.uniform(0, 2) * rng.normal(size=a.shape)).astype(np.float32)
    fingerprinter = Fingerprinter(40)
    short = fingerprinter(a).astype(float) @ fingerprinter(b).astype(float)
    assert abs(short - similarity(a, b)) < 0.16
    assert fingerprinter(a).nbytes == 2048


def test_standard_edges_have_unit_length_and_dead_rois_do_no_harm():
    bold = noise(3)
    bold[:, :4] = 0
    edges = standard_edges(bold)
    assert np.isfinite(edges).all()
    assert np.linalg.norm(edges) == pytest.approx(1) and edges.mean() == pytest.approx(0, abs=1e-12)
    assert np.abs(standard_edges(np.zeros((10, 5)))).max() == 0


def test_the_blocks_are_all_rows_once_whatever_holds_them(tmp_path):
    values = np.random.default_rng(0).normal(size=(2500, 1024)).astype(np.float16)
    np.save(tmp_path / "prints.npy", values)
    onfile = np.load(tmp_path / "prints.npy", mmap_mode="r")
    rows = np.concatenate([np.arange(2500)[place] for place, _ in blocks(onfile)])
    assert np.array_equal(rows, np.arange(2500))
    assert max(len(block) for _, block in blocks(onfile)) == 1024
    assert np.allclose(fit_space(onfile).mean, values.astype(float).mean(axis=0), atol=1e-5)


def test_neighbours_agree_with_the_whole_matrix_across_blocks():
    rng = np.random.default_rng(1)
    prints = rng.normal(size=(2300, 1024)).astype(np.float32)
    prints[2200] = prints[10] + 0.3 * rng.normal(size=1024)
    prints[1500] = prints[1400] + 0.3 * rng.normal(size=1024)
    people = np.arange(2300)
    people[1500] = people[1400]
    near = neighbours(prints, people, Space(np.zeros(1024, np.float32), np.eye(1024, dtype=np.float32)), 0.5)
    assert sorted(map(tuple, near.pairs)) == [(10, 2200), (1400, 1500)]
    unit = prints / np.linalg.norm(prints, axis=1, keepdims=True)
    cosines = unit @ unit.T
    cosines[people[:, None] == people] = -1
    assert np.array_equal(near.nearest, cosines.argmax(axis=1))
    assert np.allclose(near.cosine, cosines.max(axis=1), atol=1e-5)


def test_recordings_to_be_skipped_are_in_no_pair():
    prints = np.repeat(np.random.default_rng(0).normal(size=(20, 1024)), 2, axis=0)
    skip = np.arange(40) % 2 == 1
    assert neighbours(prints, np.arange(40), fit_space(prints), 0.5, skip).pairs.size == 0


def test_a_space_without_a_direction_does_not_see_it():
    prints = np.random.default_rng(0).normal(size=(50, 1024)).astype(np.float32)
    direction = np.random.default_rng(1).normal(size=1024).astype(np.float32)
    blind = fit_space(prints).without(direction)
    moved = blind.weighted(prints + 5 * direction)
    assert np.allclose(moved, blind.weighted(prints), atol=1e-3 * np.abs(moved).max())


def test_what_is_connected_already_is_not_read_again():
    arrays = [noise(1) * gain for gain in (1, 2, 3, 4, 5)]
    read: list[int] = []

    def reader(place: int) -> np.ndarray:
        read.append(place)
        return arrays[place]

    pairs = np.argwhere(np.triu(np.ones((5, 5)), k=1))
    assert [(pair.first, pair.second) for pair in confirmed(pairs, reader, 0.4, 0.75)] == [(0, i) for i in range(1, 5)]
    assert read == [0, 1, 2, 3, 4]


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=12))
def test_groups_are_what_pairs_connect(links):
    links = [(a, b) for a, b in links if a != b]
    made = groups([Pair(a, b, "") for a, b in links])
    assert sorted(place for group in made for place in group) == sorted({place for link in links for place in link})
    assert all(any({a, b} <= set(group) for group in made) for a, b in links)
    graph = pd.DataFrame(links, columns=["a", "b"])
    for group in made:
        reached, before = {group[0]}, set()
        while reached != before:
            before = set(reached)
            touched = graph[graph["a"].isin(reached) | graph["b"].isin(reached)]
            reached |= set(touched["a"]) | set(touched["b"])
        assert reached == set(group)


@pytest.mark.data
def test_the_known_copies_of_a_real_cohort_are_found_and_nobody_else(data_dir: Path):
    folder = data_dir / "abide1_cc200"
    table = pd.read_csv(folder / "participants.tsv", sep="\t", dtype=str)
    near_the_pairs = table[table["site"].isin(["UM_1", "YALE"])].reset_index(drop=True)
    arrays = [np.load(folder / file).astype(np.float32) for file in near_the_pairs["file"]]
    named = [tuple(near_the_pairs["participant_id"][list(pair)]) for pair in found(arrays)]
    assert named == [("sub-0050279", "sub-0050286"), ("sub-0050578", "sub-0050602")]


@pytest.mark.data
def test_two_runs_of_one_person_are_no_copies(data_dir: Path):
    folder = data_dir / "hcp_dk68"
    files = pd.read_csv(folder / "recordings.tsv", sep="\t", dtype=str)["file"][:24]
    assert found([np.load(folder / file).astype(np.float32) for file in files]) == []
