"""Abstention: thresholds from other people, coverage that was reached, accuracy of those who got an answer."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openbrainmass.evaluation.abstention import COVERAGE_COLUMNS, confidence_of, coverage_curve, people_interval
from openbrainmass.evaluation.metrics import Weights
from openbrainmass.evaluation.results import Results
from openbrainmass.evaluation.statistics import Overlap, metric_interval


def predictions(
    protocol: str = "k-fold",
    n: int = 200,
    n_folds: int = 5,
    n_repeats: int = 2,
    seed: int = 0,
    probability: bool = True,
) -> pd.DataFrame:
    """People whose true chance of being positive is the probability that the model gives."""
    rng = np.random.default_rng(seed)
    parts = []
    for repeat in range(n_repeats):
        chance = rng.uniform(0.02, 0.98, n)
        y = (np.random.default_rng(9).uniform(size=n) < 0.5).astype(int)
        # Bayes: positive people draw the chance p with weight p, negative ones with 1 - p.
        flip = rng.uniform(size=n) < np.where(y == 1, 1 - chance, chance)
        chance = np.where(flip, 1 - chance, chance)
        parts.append(
            pd.DataFrame(
                {
                    "protocol": protocol, "repeat": repeat, "fold": rng.permutation(n) % n_folds, "model": "m",
                    "participant_id": [f"p{i:03d}" for i in range(n)], "site": "a", "y_true": y,
                    "y_score": np.log(chance / (1 - chance)), "y_pred": (chance > 0.5).astype(int),
                    "y_prob": chance if probability else np.nan, "saw_test_people": False, "n_train": n,
                }
            )
        )  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def curve(*tables: pd.DataFrame, **options: object) -> pd.DataFrame:
    return coverage_curve(Results(pd.concat(tables), {}), n_resamples=20, **options)  # type: ignore[arg-type]


def test_at_full_coverage_it_is_the_accuracy() -> None:
    table = predictions()
    row = curve(table, coverages=(1.0,)).iloc[0]
    assert row["accuracy"] == pytest.approx((table["y_true"] == table["y_pred"]).mean())
    assert (row["coverage"], row["n"], row["threshold"]) == (1.0, 200, 0.0)
    assert (row["accuracy"], row["low"], row["high"]) == metric_interval(table, "accuracy", n_resamples=20)


def test_a_difference_is_widened_by_the_overlap_of_folds_alone() -> None:
    table = predictions()
    people = table["participant_id"].nunique()

    def first_half_more(weights: Weights) -> np.ndarray:
        values = weights.people * (np.arange(people) < people / 2)
        return values.sum(axis=1) / weights.people.sum(axis=1) - 0.5

    value, low, high = people_interval(first_half_more, table, 200, 0)
    _, bare_low, bare_high = people_interval(first_half_more, table[table["repeat"] == 0].assign(fold=0), 200, 0)
    assert (high - low) / (bare_high - bare_low) == pytest.approx(np.sqrt(1 + Overlap.of(table).growth))
    assert low < value < high and low < 0  # a difference has no range


@pytest.mark.parametrize("right", [True, False])
def test_answers_without_an_error_still_have_a_bound(right: bool) -> None:
    table = predictions(n_repeats=1)
    truth = table["y_true"] if right else 1 - table["y_true"]
    row = curve(table.assign(y_pred=truth), coverages=(0.3,)).iloc[0]
    bound = 0.025 ** (1 / row["n"])
    assert (row["low"], row["high"]) == pytest.approx((bound, 1.0) if right else (0.0, 1 - bound))


def test_a_calibrated_model_is_right_more_often_where_it_is_sure() -> None:
    found = curve(predictions(n=600), coverages=(1.0, 0.5, 0.2)).set_index("wanted")
    assert found.loc[0.2, "accuracy"] > found.loc[0.5, "accuracy"] > found.loc[1.0, "accuracy"]
    # Of people whose chance is uniform, the surer half is right in 3/4 + 1/8 of the cases.
    assert found.loc[0.5, "accuracy"] == pytest.approx(0.87, abs=0.04)


def test_a_model_that_knows_nothing_gains_nothing() -> None:
    table = predictions(n=600)
    table["y_true"] = np.tile(np.random.default_rng(3).permutation(table["y_true"].to_numpy()[:600]), 2)
    found = curve(table, coverages=(1.0, 0.3)).set_index("wanted")
    assert found.loc[0.3, "low"] < 0.5 < found.loc[0.3, "high"]


@settings(max_examples=25)
@given(st.floats(0.15, 0.95))
def test_the_coverage_that_was_reached_is_near_the_wanted_one(wanted: float) -> None:
    row = curve(predictions(n=400, n_repeats=1), coverages=(wanted,)).iloc[0]
    assert row["coverage"] == pytest.approx(wanted, abs=0.06)
    assert row["n"] == pytest.approx(400 * row["coverage"])


def test_the_threshold_of_a_fold_does_not_know_its_people() -> None:
    table = predictions(n_repeats=1, n_folds=2)
    first = table["fold"] == 0
    table.loc[first, "y_prob"] = np.where(table.loc[first, "y_prob"] > 0.5, 0.999, 0.001)
    row = curve(table, coverages=(0.5,)).iloc[0]
    # By the other fold's threshold everybody of the sure fold is answered for, and nobody of the other by its own.
    assert row["coverage"] == first.mean()
    assert row["accuracy"] == pytest.approx((table["y_true"] == table["y_pred"])[first].mean())
    assert set(curve(table)["threshold_from"]) == {"other folds"}


def test_decision_values_stand_in_where_there_is_no_probability_for_everybody() -> None:
    table = predictions()
    assert confidence_of(table)[1] == "probability"
    partly = table.assign(y_prob=table["y_prob"].where(table.index > 0))
    confidence, unit = confidence_of(partly)
    assert unit == "decision value" and np.array_equal(confidence, table["y_score"].abs())
    # Both rank people alike when the score is the log-odds, so they give the same curve.
    assert curve(table)["accuracy"].tolist() == curve(partly)["accuracy"].tolist()


def test_an_external_cohort_takes_its_thresholds_from_the_training_cohort() -> None:
    inside, outside = predictions(), predictions("external", n_folds=1, n_repeats=1, seed=5)
    found = curve(inside, outside, coverages=(0.5,)).set_index("protocol")
    assert found.loc["external", "threshold_from"] == "k-fold"
    assert found.loc["external", "threshold"] == pytest.approx(np.quantile(np.abs(inside["y_prob"] - 0.5), 0.5))
    alone = curve(outside, coverages=(0.5,)).iloc[0]
    assert alone["threshold_from"] == "tested people" and alone["coverage"] == 0.5


def test_what_has_no_curve_has_no_row() -> None:
    table = predictions()
    few = predictions("few-shot-5")
    same = table.assign(y_score=0.0, y_prob=np.nan, model="chance")
    found = curve(table, few, same)
    assert set(zip(found["protocol"], found["model"], strict=True)) == {("k-fold", "m")}
    regression = coverage_curve(Results(table, {"task": {"kind": "regression"}}))
    assert list(regression.columns) == list(COVERAGE_COLUMNS) and len(regression) == 0


def test_a_handful_of_answers_has_no_accuracy() -> None:
    row = curve(predictions(n=30, n_repeats=1), coverages=(0.1,)).iloc[0]
    assert row["n"] < 10 and np.isnan(row["accuracy"])
