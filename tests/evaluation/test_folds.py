from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import make_pipeline

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.durable import write_tsv
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.baselines import Chance, Connectome
from openbrainmass.evaluation.evaluate import evaluate
from openbrainmass.evaluation.folds import (
    FOLD_COLUMNS,
    Design,
    check_folds,
    folds_of,
    folds_table,
    make_folds,
    read_folds,
)
from openbrainmass.evaluation.labelled import Labelled, labelled
from openbrainmass.evaluation.probes import make_probe
from openbrainmass.evaluation.splits import Fold
from openbrainmass.evaluation.tasks import Task

MakeCohort = Callable[..., Cohort]
TASK = Task(name="toy", target="dx", positive=("patient",), negative=("control",))
DESIGN = Design(n_folds=3, n_repeats=2, n_splits=3, few_shot=(1, 2), n_draws=2, seed=0)
ALL = ("k-fold", "random-splits", "site-held-out", "cohort-held-out", "paper-split", "few-shot")


@pytest.fixture(scope="module")
def cohorts(make_cohort: MakeCohort) -> tuple[Labelled, Labelled]:
    family = [f"f{i // 2}" if i < 4 else "" for i in range(36)]
    dataset = ["one", "one", "two", "two"] * 9
    columns = {"family_id": family, "dataset": dataset}
    own = make_cohort(n_people=36, n_recordings=[1, 2] * 18, n_sites=3, n_volumes=12, columns=columns)
    return labelled(own, TASK), labelled(make_cohort(n_people=16, seed=9, name="other", n_volumes=12), TASK)


def test_folds_written_and_read_again_are_the_same(cohorts: tuple[Labelled, Labelled], tmp_path: Path) -> None:
    folds, notes = make_folds(*cohorts, ALL, DESIGN)
    assert notes == []
    table = folds_table(folds, *cohorts)
    assert tuple(table.columns) == FOLD_COLUMNS
    assert table.equals(folds_table(folds, *cohorts))
    write_tsv(tmp_path / "folds.tsv", table)
    again = folds_of(read_folds(tmp_path / "folds.tsv"), *cohorts)
    check_folds(again, *cohorts)
    assert len(again) == len(folds) == 6 + 3 + 3 + 2 + 2 + 2 * 3 * 2 + 1 + 2 * 3 * 2
    for one, two in zip(folds, again, strict=True):
        assert (one.protocol, one.repeat, one.fold) == (two.protocol, two.repeat, two.fold)
        for name in ("train", "test", "unlabelled", "joining"):
            np.testing.assert_array_equal(getattr(one, name), getattr(two, name), err_msg=f"{one.protocol} {name}")


def test_of_few_shot_folds_only_the_tested_and_the_labelled_are_named(cohorts: tuple[Labelled, Labelled]) -> None:
    table = folds_table(make_folds(*cohorts, ["few-shot"], DESIGN)[0], *cohorts)
    counts = table[table["side"] == "train"].groupby(["protocol", "repeat", "fold"]).size()
    for kind in ("few-shot", "external-few-shot"):
        assert set(counts[f"{kind}-1"]) == {2} and set(counts[f"{kind}-2"]) == {4}
    assert counts["external"].tolist() == [36]


def test_the_same_folds_give_the_same_predictions(make_cohort: MakeCohort, tmp_path: Path) -> None:
    cohort = make_cohort(n_people=30, n_recordings=[1, 2] * 15, n_sites=3, n_volumes=12)
    test = make_cohort(n_people=12, seed=3, name="other", n_volumes=12)
    models = {"edges": make_pipeline(Connectome(), make_probe("logistic"))}
    protocols = tuple(name for name in ALL if name != "cohort-held-out")
    first = evaluate(
        models, cohort, TASK, protocols=protocols, test_cohort=test,
        n_folds=2, n_repeats=2, n_splits=3, few_shot=(1, 2), n_draws=2,
    )  # fmt: skip
    write_tsv(tmp_path / "folds.tsv", first.tables["folds"])
    again = evaluate(models, cohort, TASK, folds=tmp_path / "folds.tsv", test_cohort=test)
    pd.testing.assert_frame_equal(first.predictions, again.predictions)
    pd.testing.assert_frame_equal(first.tables["folds"], again.tables["folds"])
    assert again.settings["folds"] == "handed over" and again.settings["protocols"] == first.settings["protocols"]
    # The test cohort may come later: external is made for it.
    own = first.tables["folds"].query("protocol == 'k-fold'")
    later = evaluate(models, cohort, TASK, folds=own, test_cohort=test)
    assert list(later.settings["protocols"]) == ["k-fold", "external"] and later.settings["folds"] == "handed over"
    kept = first.predictions["protocol"].isin(["k-fold", "external"])
    pd.testing.assert_frame_equal(first.predictions[kept].reset_index(drop=True), later.predictions)
    with pytest.raises(OpenBrainMassError, match="external, repeat 0, fold 0 is on a test cohort"):
        evaluate(models, cohort, TASK, folds=tmp_path / "folds.tsv")


def _fold(own: Labelled) -> Fold:
    return make_folds(own, None, ["k-fold"], DESIGN)[0][0]


def _with(own: Labelled, **changes: object) -> list[Fold]:
    return [replace(_fold(own), **changes)]


def _both(own: Labelled) -> list[Fold]:
    fold = _fold(own)
    return _with(own, train=np.append(fold.train, fold.test[0]))


def _family(own: Labelled) -> list[Fold]:
    names = own.people.participant
    return _with(own, train=np.flatnonzero(names != "p001"), test=np.flatnonzero(names == "p001"))


def _few_shot(own: Labelled, **changes: object) -> list[Fold]:
    return [replace(make_folds(own, None, ["few-shot"], DESIGN)[0][0], **changes)]


def _one_class(own: Labelled) -> list[Fold]:
    fold = _fold(own)
    return _with(own, train=fold.train[own.people.y[fold.train] == 1])


def _twice(own: Labelled) -> list[Fold]:
    """Random splits that are numbered as the folds of one repeat."""
    splits = make_folds(own, None, ["random-splits"], DESIGN)[0] * 3
    return [replace(fold, repeat=0, fold=number) for number, fold in enumerate(splits)]


def _same_number(own: Labelled) -> list[Fold]:
    return [replace(fold, fold=0) for fold in make_folds(own, None, ["k-fold"], DESIGN)[0]]


def _same_site(own: Labelled) -> list[Fold]:
    first = make_folds(own, None, ["site-held-out"], DESIGN)[0][0]
    return [first, replace(first, fold=1)]


@pytest.mark.parametrize(
    ("make", "found"),
    [
        (_both, r"k-fold, repeat 0, fold 0 has p\d+ on its training and its test side"),
        (_family, r"has p000 in training and p001 in the test, who .* are of one family"),
        (_one_class, "training side of the fold k-fold.* holds only one class"),
        (lambda own: _with(own, protocol="site-held-out"), "claims to hold a site out, but 'site0' is on both sides"),
        (lambda own: _with(own, protocol="cohort-held-out"), "claims to hold a cohort out, but 'one' is on both sides"),
        (lambda own: _with(own, test=np.array([10_000])), "positions outside of the 54 labelled recordings"),
        (lambda own: _with(own, test=np.array([], dtype=int)), "has an empty side"),
        (
            lambda own: _few_shot(own, unlabelled=np.arange(54)),
            r"few-shot-1.* has p\d+ on its training and its test side",
        ),
        (
            lambda own: _few_shot(own, unlabelled=_few_shot(own)[0].train[1:]),
            "labelled people who are not among its unlab",
        ),
        (lambda own: _with(own, protocol="external"), "is on a test cohort, and none was given"),
        (_twice, r"random-splits, repeat 0, fold \d tests p\d+ twice in one repeat. Give each random split a repeat"),
        (_same_number, "There are two folds k-fold, repeat 0, fold 0"),
        (_same_site, r"site-held-out, repeat 0, fold 1 tests p\d+ twice in one repeat"),
        (
            lambda own: _with(own, protocol="few-shot-2", unlabelled=_fold(own).train),
            "few-shot-2, repeat 0, fold 0 has 12 labelled people of one class, and 2 were expected",
        ),
    ],
)
def test_folds_that_would_not_measure_what_they_say_are_refused_by_name(
    cohorts: tuple[Labelled, Labelled], make: Callable[[Labelled], list[Fold]], found: str
) -> None:
    check_folds([_fold(cohorts[0])], cohorts[0])
    with pytest.raises(OpenBrainMassError, match=found):
        check_folds(make(cohorts[0]), cohorts[0])


def test_people_who_join_are_not_tested(cohorts: tuple[Labelled, Labelled]) -> None:
    folds = [fold for fold in make_folds(*cohorts, ["few-shot"], DESIGN)[0] if fold.joining is not None]
    with pytest.raises(OpenBrainMassError, match=r"external-few-shot-1.* has p\d+ on its training and its test side"):
        check_folds([replace(folds[0], joining=folds[0].test[:2])], *cohorts)
    with pytest.raises(OpenBrainMassError, match="external-few-shot-1, .* has 2 labelled people of one class"):
        check_folds([replace(folds[1], protocol="external-few-shot-1")], *cohorts)


def test_evaluate_refuses_such_folds(make_cohort: MakeCohort, tmp_path: Path) -> None:
    cohort = make_cohort(n_people=12, n_volumes=12)
    known = labelled(cohort, TASK)
    with pytest.raises(OpenBrainMassError, match="on its training and its test side"):
        evaluate({"chance": Chance()}, cohort, TASK, folds=_both(known))
    with pytest.raises(OpenBrainMassError, match="No fold was handed over"):
        evaluate({"chance": Chance()}, cohort, TASK, folds=[])
    results = evaluate({"chance": Chance()}, cohort, TASK, folds=[_fold(known)])
    assert len(results.predictions) == 4


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda table: table.drop(columns="side"), "lacks the columns side"),
        (lambda table: table.iloc[:0], "has no rows"),
        (
            lambda table: table.assign(participant_id=[None, *table["participant_id"][1:]]),
            "rows without participant_id",
        ),
        (lambda table: table.assign(side="left"), "the side 'left'"),
        (lambda table: table.assign(protocol="loso"), "the protocol 'loso', which is not known"),
        (lambda table: table.assign(protocol="few-shot"), "the protocol 'few-shot', which is not known"),
        (lambda table: table.assign(fold=0.5), "not whole numbers"),
        (
            lambda table: table[table["side"] == "train"],
            "fold k-fold, repeat 0, fold 0 of the folds has no test people",
        ),
        (
            lambda table: table.replace("p003", "p999"),
            "names p999, who are not among the labelled people of cohort toy",
        ),
    ],
)
def test_a_damaged_table_is_one_sentence(
    cohorts: tuple[Labelled, Labelled], tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], found: str
) -> None:
    table = folds_table([_fold(cohorts[0])], cohorts[0])
    write_tsv(tmp_path / "folds.tsv", change(table))
    for handed_over in (tmp_path / "folds.tsv", change(table)):
        with pytest.raises(OpenBrainMassError, match=found):
            folds_of(read_folds(handed_over), cohorts[0])


def test_a_person_of_two_sites_is_tested_with_the_recordings_of_the_site(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=12, n_recordings=[2] + [1] * 11, n_volumes=12)
    sites = ["site1", *cohort.table["site"][1:]]  # p000 was scanned at site1, then at site0
    moved = Cohort("toy", cohort.recordings.assign(site=sites), cohort.participants, cohort.atlas, cohort.read)
    own = labelled(moved, TASK)
    folds = make_folds(own, None, ["site-held-out"], DESIGN)[0]
    again = folds_of(folds_table(folds, own), own)
    assert [fold.test.tolist() for fold in again] == [fold.test.tolist() for fold in folds]
    check_folds(again, own)
    assert 0 in folds[1].test and 1 not in folds[1].test and 0 not in folds[0].train
