from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.splits import (
    N_BINS,
    Fold,
    People,
    cohort_held_out,
    external_few_shot_folds,
    few_shot_folds,
    identity_groups,
    k_fold,
    paper_split,
    people_of,
    random_splits,
    site_held_out,
    ties,
)

MakeCohort = Callable[..., Cohort]


def people(labels: list[int], counts: list[int], sites: list[str] | None = None, shared: tuple[int, int] | None = None):
    """People with several recordings each; two of them may share a series."""
    participant = np.repeat([f"p{i:03d}" for i in range(len(labels))], counts)
    group = np.arange(len(labels))
    if shared is not None:
        group[shared[1]] = group[shared[0]]
    site = None if sites is None else np.repeat(sites, counts)
    return People(participant, np.repeat(labels, counts), np.repeat(group, counts), site)


def sides_are_disjoint(folds: list[Fold], who: People) -> bool:
    return all(
        not set(who.group[fold.train]) & set(who.group[fold.test])
        and not set(who.participant[fold.train]) & set(who.participant[fold.test])
        for fold in folds
    )


cohorts = st.integers(12, 30).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 1), min_size=n, max_size=n),
        st.lists(st.integers(1, 4), min_size=n, max_size=n),
        st.lists(st.sampled_from(["A", "B", "C"]), min_size=n, max_size=n),
        st.tuples(st.integers(0, n - 1), st.integers(0, n - 1)),
        st.integers(0, 1000),
    )
)


@settings(max_examples=40)
@given(cohorts)
def test_nobody_is_on_both_sides_of_any_fold(drawn) -> None:
    labels, counts, sites, shared, seed = drawn
    labels = [0, 1] * 8 + labels  # enough of both classes for every protocol
    counts, sites = [2, 1] * 8 + counts, ["A", "B"] * 8 + sites
    who = people(labels, counts, sites, (shared[0] + 16, shared[1] + 16))
    folds = k_fold(who, 3, 2, seed) + paper_split(who, 2, seed) + site_held_out(who)[0]
    folds += few_shot_folds(who, (1, 2), 3, 1, seed)[0] + random_splits(who, 2, seed)
    values = People(who.participant, np.repeat(np.arange(len(labels)) + 0.5, counts), who.group, who.site, who.site)
    of_values = k_fold(values, 3, 1, seed) + cohort_held_out(values)[0]
    assert len(folds) >= 6 + 2 + 2 and len(of_values) >= 3 + 2
    assert sides_are_disjoint(folds + of_values, who)
    assert all(who.can_train(fold.train) for fold in folds) and all(values.can_train(fold.train) for fold in of_values)


def test_the_check_of_the_property_can_fail() -> None:
    who = people([0, 1], [2, 1])
    assert not sides_are_disjoint([Fold("k-fold", 0, 0, np.array([0]), np.array([1]))], who)


def test_every_recording_is_tested_once_a_repeat_and_classes_and_sites_are_spread() -> None:
    who = people([0, 1] * 20, [1, 2] * 20, ["A", "A", "B", "B"] * 10)
    folds = k_fold(who, 5, 3, seed=4)
    for repeat in range(3):
        tested = np.concatenate([fold.test for fold in folds if fold.repeat == repeat])
        assert sorted(tested) == list(range(60))
    for fold in folds:
        strata = {f"{who.y[row]}{who.site[row]}{who.participant[row]}" for row in fold.test}
        assert sorted(name[:2] for name in strata) == ["0A", "0A", "0B", "0B", "1A", "1A", "1B", "1B"]


def test_repeats_and_seeds_differ_and_the_same_seed_does_not() -> None:
    who = people([0, 1] * 20, [1] * 40)
    tests = [fold.test.tolist() for fold in k_fold(who, 5, 2, seed=0)]
    assert tests[:5] != tests[5:]
    assert tests == [fold.test.tolist() for fold in k_fold(who, 5, 2, seed=0)]
    assert tests != [fold.test.tolist() for fold in k_fold(who, 5, 2, seed=1)]


def test_many_small_sites_do_not_hinder_stratification_by_class() -> None:
    who = people([0, 1] * 10, [1] * 20, [f"site{i}" for i in range(20)])
    assert [who.y[fold.test].sum() for fold in k_fold(who, 5, 1, seed=0)] == [2] * 5


@pytest.mark.parametrize("n_folds", [1, 4])
def test_fewer_people_than_folds_is_an_error(n_folds: int) -> None:
    with pytest.raises(OpenBrainMassError, match="3 people, which cannot be spread"):
        k_fold(people([0, 0, 0, 0, 1, 1, 1], [1] * 7), n_folds, 1, 0)


def test_random_splits_test_fifteen_percent_with_the_classes_in_their_shares() -> None:
    who = people([0] * 60 + [1] * 40, [1, 2] * 50)
    folds = random_splits(who, 4, seed=0)
    for fold in folds:
        tested, classes = np.unique(who.participant[fold.test], return_index=True)
        assert len(tested) == 15 and who.y[fold.test][classes].sum() == 6
        assert sorted([*fold.train, *fold.test]) == list(range(150))
    assert [(fold.repeat, fold.fold) for fold in folds] == [(0, 0), (1, 0), (2, 0), (3, 0)]
    assert len({tuple(fold.test) for fold in folds}) == 4
    with pytest.raises(OpenBrainMassError, match=r"6 people; 85/15 needs at least 7"):
        random_splits(people([0, 1] * 6, [1] * 12), 1, 0)


@settings(max_examples=20)
@given(st.integers(7, 25), st.integers(7, 60), st.integers(0, 1000))
def test_every_part_of_the_papers_split_has_both_classes_and_sites_in_their_shares(few: int, many: int, seed: int):
    who = people(
        [1] * few + [0] * many, [1] * (few + many), ["A", "B"] * ((few + many) // 2) + ["A"] * ((few + many) % 2)
    )
    for fold in paper_split(who, 2, seed):
        validation = np.setdiff1d(np.arange(few + many), [*fold.train, *fold.test])
        assert all(set(who.y[part]) == {0, 1} for part in (fold.train, fold.test, validation))
        for wanted, part in ((0.7, fold.train), (0.15, fold.test)):
            assert abs(len(part) - wanted * (few + many)) <= 3.01
            # Of each class and site, as many as its share, up to what whole people allow.
            for label in (0, 1):
                own = (who.y == label) & (who.site == "A")
                assert abs(own[part].sum() - wanted * own.sum()) <= 4


def test_the_papers_split_has_its_shares_and_leaves_validation_alone() -> None:
    who = people([0, 1] * 50, [1] * 100)
    for fold in paper_split(who, 3, seed=0):
        assert (len(fold.train), len(fold.test)) == (70, 15)
        assert who.y[fold.train].sum() == 35
    with pytest.raises(OpenBrainMassError, match="70/15/15"):
        paper_split(people([0, 1] * 6, [1] * 12), 1, 0)


def test_each_site_is_held_out_with_all_who_were_ever_there() -> None:
    # p000 was scanned at A and at B.
    who = People(
        np.array(["p000", "p000", "p001", "p002", "p003", "p004", "p005"]),
        np.array([0, 0, 1, 0, 1, 1, 0]),
        np.array([0, 0, 1, 2, 3, 4, 5]),
        np.array(["A", "B", "A", "B", "B", "C", "C"]),
    )
    folds, notes = site_held_out(who)
    assert [fold.test.tolist() for fold in folds] == [[0, 2], [1, 3, 4], [5, 6]]
    assert folds[0].train.tolist() == [3, 4, 5, 6]
    assert notes == []


def test_each_dataset_of_a_merged_cohort_is_held_out(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=12)
    names = ["one" if number < 5 else "two" for number in range(12)]
    ids = [f"{name}/{person}" for name, person in zip(names, cohort.participants["participant_id"], strict=True)]
    merged = Cohort(
        "one+two",
        cohort.recordings.assign(participant_id=ids),
        cohort.participants.assign(participant_id=ids),
        cohort.atlas,
        cohort.read,
    )
    who = people_of(merged, np.array([1, 0] * 6))
    folds, notes = cohort_held_out(who)
    assert [fold.test.tolist() for fold in folds] == [list(range(5)), list(range(5, 12))]
    assert [fold.protocol for fold in folds] == ["cohort-held-out"] * 2 and notes == []
    assert cohort_held_out(people_of(cohort, np.array([1, 0] * 6)))[1] == [
        "cohort-held-out was skipped: the cohort has no column of datasets."
    ]
    named = Cohort("x", cohort.recordings, cohort.participants.assign(dataset=names), cohort.atlas, cohort.read)
    assert [len(fold.test) for fold in cohort_held_out(people_of(named, np.array([1, 0] * 6)))[0]] == [5, 7]


def test_what_cannot_be_held_out_is_noted() -> None:
    assert site_held_out(people([0, 1], [1, 1]))[1] == ["site-held-out was skipped: the cohort has no column of sites."]
    assert "1 site(s)" in site_held_out(people([0, 1], [1, 1], ["A", "A"]))[1][0]
    folds, notes = site_held_out(people([0, 1, 1, 1, 0], [1] * 5, ["A", "A", "B", "B", ""]))
    assert [fold.test.tolist() for fold in folds] == [[2, 3]]
    assert folds[0].train.tolist() == [0, 1]
    assert "1 people whose site is not known" in notes[0]
    assert "without A was skipped" in notes[1]


def test_few_shot_draws_k_people_of_each_class_from_training_and_nests_them() -> None:
    who = people([0, 1] * 20, [1, 2] * 20)
    folds, notes = few_shot_folds(who, (5, 1, 2, 30), 4, 2, seed=0)
    assert notes == ["few-shot-30 was skipped: a class has too few training people."]
    assert [fold.protocol for fold in folds[:3]] == ["few-shot-1", "few-shot-2", "few-shot-5"]
    for fold in folds:
        size = int(fold.protocol.rsplit("-", 1)[1])
        drawn = {label: set(who.participant[fold.train][who.y[fold.train] == label]) for label in (0, 1)}
        assert [len(drawn[0]), len(drawn[1])] == [size, size]
        assert fold.unlabelled is not None and set(fold.train) < set(fold.unlabelled)
        assert not set(fold.unlabelled) & set(fold.test)
    assert set(folds[0].train) < set(folds[1].train) < set(folds[2].train)
    assert {tuple(fold.train) for fold in folds if fold.protocol == "few-shot-1"} != {tuple(folds[0].train)}


def test_few_shot_draws_one_of_a_family() -> None:
    participant = np.array([f"p{i:02d}" for i in range(32)])
    families = People(participant, np.tile([0, 0, 0, 1], 8), np.repeat(np.arange(8), 4), None)
    folds, notes = few_shot_folds(families, (1, 2), 2, 3, seed=1)
    assert not notes and len(folds) == 12
    for fold in folds:
        size = int(fold.protocol.rsplit("-", 1)[1])
        assert [int((families.y[fold.train] == label).sum()) for label in (0, 1)] == [size, size]
        assert len(set(families.group[fold.train][families.y[fold.train] == 0])) == size


def test_few_shot_draws_one_of_a_family_that_has_both_classes() -> None:
    """Siblings of whom one is a patient, and people without any."""
    participant = np.array([f"p{i:02d}" for i in range(48)])
    group = np.concatenate([np.repeat(np.arange(12), 2), np.arange(12, 36)])
    siblings = People(participant, np.tile([0, 1], 24), group, None)
    folds, notes = few_shot_folds(siblings, (1, 2, 6), 3, 4, seed=0)
    assert not notes and len(folds) == 3 * 3 * 4
    drawn_siblings = 0
    for fold in folds:
        assert len(set(group[fold.train])) == len(fold.train)
        assert siblings.y[fold.train].tolist().count(1) == len(fold.train) / 2 == int(fold.protocol.rsplit("-", 1)[1])
        drawn_siblings += int((fold.train < 24).sum())
    assert drawn_siblings > 0
    assert set(folds[0].train) < set(folds[1].train) < set(folds[2].train)
    # Where all have a sibling in the other class, half of the families can be drawn for each.
    pairs = People(participant[:24], siblings.y[:24], group[:24], None)
    assert few_shot_folds(pairs, (4, 5), 3, 1, seed=0)[1] == [
        "few-shot-5 was skipped: a class has too few training people."
    ]


def test_families_of_both_classes_are_spread_over_folds() -> None:
    """Twins of different sex, say: every group has both classes, and so has every side."""
    who = People(np.array([f"p{i:02d}" for i in range(24)]), np.tile([0, 1], 12), np.repeat(np.arange(12), 2), None)
    for fold in [*k_fold(who, 4, 2, 0), *random_splits(who, 2, 0), *paper_split(who, 2, 0)]:
        assert who.y[fold.train].mean() == who.y[fold.test].mean() == 0.5


def test_external_few_shot_draws_from_the_test_cohort_and_trains_on_both() -> None:
    who = people([0, 1] * 20, [1] * 40)
    train = np.arange(7)
    folds, notes = external_few_shot_folds(train, who, (1, 3, 40), 4, 2, seed=0)
    assert notes == ["external-few-shot-40 was skipped: a class has too few training people."]
    assert len(folds) == 2 * 4 * 2
    for fold in folds:
        assert fold.external and fold.train is train and fold.joining is not None
        size = int(fold.protocol.rsplit("-", 1)[1])
        assert who.y[fold.joining].tolist().count(1) == size and len(fold.joining) == 2 * size
        assert not set(fold.joining) & set(fold.test)
    assert external_few_shot_folds(train, people([0, 1] * 3, [1] * 6), (1,), 4, 1, 0) == (
        [], ["external-few-shot was skipped: the smaller class of the test cohort has 3 people for 4 folds."]
    )  # fmt: skip


def test_a_value_is_spread_over_folds_as_classes_are() -> None:
    values = np.random.default_rng(0).permutation(np.arange(100.0))
    who = People(np.array([f"p{i:03d}" for i in range(100)]), values, np.arange(100), None)
    assert who.continuous and not people([0, 1], [1, 1]).continuous
    bins = who.groups()["y"]
    assert bins.value_counts().tolist() == [100 // N_BINS] * N_BINS
    for fold in k_fold(who, 5, 2, seed=0):
        assert np.histogram(values[fold.test], bins=N_BINS, range=(0, 100))[0].tolist() == [4] * N_BINS
    assert [len(fold.test) for fold in random_splits(who, 2, 0) + paper_split(who, 2, 0)] == [15] * 4
    assert "predicts a value" in few_shot_folds(who, (1,), 5, 1, 0)[1][0]
    with pytest.raises(OpenBrainMassError, match=r"cohort has 100 people, which cannot be spread over 101"):
        k_fold(who, 101, 1, 0)


@pytest.mark.parametrize("n", [10, 20, 22, 24])
def test_a_value_of_few_people_is_spread_over_folds_too(n: int) -> None:
    """Bins of fewer people than there are folds cannot be balanced over them."""
    who = People(np.array([f"p{i:03d}" for i in range(n)]), np.arange(n) + 0.5, np.arange(n), None)
    folds = k_fold(who, 5, 2, seed=0)
    for repeat in (0, 1):
        tested = [fold.test for fold in folds if fold.repeat == repeat]
        assert sorted(np.concatenate(tested)) == list(range(n))
        assert max(map(len, tested)) - min(map(len, tested)) <= 1


def test_families_stay_together_within_a_dataset_only(make_cohort: MakeCohort) -> None:
    family = ["7", "7", "", None, "8", "9"] * 2
    cohort = make_cohort(n_people=12, columns={"family_id": family})
    own = ties(cohort, ("family_id", "not there"))
    assert own[0] & own[1] == own[0] & own[6] == {"family_id=toy/7"}
    assert not own[2] & own[3] and not own[2] & own[8]
    who = people_of(cohort, np.array([1, 0] * 6), together=("family_id",))
    assert len(set(who.group)) == 3 + 4
    in_two = cohort.participants.assign(dataset=["a"] * 6 + ["b"] * 6)
    apart = Cohort("m", cohort.recordings, in_two, cohort.atlas, cohort.read)
    assert len(set(people_of(apart, np.array([1, 0] * 6), together=("family_id",)).group)) == 6 + 4


def test_groups_follow_shared_identities() -> None:
    a, b, c = frozenset({"ann", "scan1"}), frozenset({"bob", "scan1"}), frozenset({"cleo", "scan2"})
    groups = identity_groups([a, c, b, a])
    assert groups[0] == groups[2] == groups[3] != groups[1]


def test_people_who_share_a_series_under_two_names_are_one_group(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(["patient", "control"] * 3, n_recordings=2)
    recordings = cohort.recordings
    recordings.loc[recordings["recording_id"] == "p003-0", "digest"] = recordings["digest"].iloc[0]
    twins = Cohort("toy", recordings, cohort.participants, cohort.atlas, cohort.bold)
    who = people_of(twins, np.repeat([1, 0] * 3, 2))
    assert who.group[0] == who.group[1] == who.group[6] == who.group[7]
    assert len(set(who.group)) == 5
    assert who.groups().query("group == @who.group[0]")["y"].tolist() == [1]
    assert who.site is not None and who.site[0] == "site0"
