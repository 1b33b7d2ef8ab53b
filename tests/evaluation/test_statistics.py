from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.metrics import METRICS, Predictions, concordance
from openbrainmass.evaluation.results import PREDICTION_COLUMNS, Results
from openbrainmass.evaluation.statistics import (
    Overlap,
    bca_bounds,
    bootstrap_interval,
    compare,
    corrected_error,
    corrected_resampled_t,
    delong,
    fold_values,
    holm,
    interval_method,
    metric_interval,
    smallest_difference,
)


def rows(
    score: np.ndarray,
    y: np.ndarray,
    *,
    model: str = "m",
    protocol: str = "external",
    fold: np.ndarray | int = 0,
    repeat: int = 0,
    n_train: int = 80,
) -> pd.DataFrame:
    table = pd.DataFrame(
        {
            "protocol": protocol,
            "repeat": repeat,
            "fold": fold,
            "model": model,
            "participant_id": [f"p{i:04d}" for i in range(len(y))],
            "site": "A",
            "y_true": y,
            "y_score": score,
            "y_pred": (score > 0).astype(int),
            "y_prob": np.nan,
            "saw_test_people": False,
            "n_train": n_train,
        }
    )
    return table[list(PREDICTION_COLUMNS)]


def shifted(n: int, shift: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.tile([0, 1], n // 2)
    return rng.normal(size=n) + shift * (y - 0.5), y


# Intervals


def test_the_interval_is_scipys_bca() -> None:
    hits = np.random.default_rng(0).random(60) < 0.8
    table = rows(np.where(hits, 1.0, -1.0), np.ones(60, dtype=int))
    predictions = Predictions.of(table)
    ours = bootstrap_interval(lambda weights: METRICS["accuracy"](predictions, weights), predictions, n_resamples=20000)
    reference = stats.bootstrap((hits,), np.mean, n_resamples=20000, method="BCa", rng=np.random.default_rng(1))
    assert ours[0] == hits.mean()
    assert ours[1:] == pytest.approx(tuple(reference.confidence_interval), abs=0.012)


def test_bca_bounds_of_a_constant_and_of_a_skewed_statistic() -> None:
    assert bca_bounds(0.5, np.full(100, 0.5), np.full(10, 0.5)) == (0.5, 0.5)
    samples = np.random.default_rng(0).exponential(size=5000)
    assert bca_bounds(10.0, np.clip(samples, 0, 9), np.arange(10.0))[1] < 9
    low, high = bca_bounds(float(np.median(samples)), samples, np.ones(10))
    assert (low, high) == pytest.approx(tuple(np.quantile(samples, [0.025, 0.975])), abs=0.1)


def test_auc_interval_widens_with_fewer_people_and_holds_the_truth() -> None:
    truth = stats.norm.cdf(1 / np.sqrt(2))
    held = 0
    for seed in range(40):
        value, low, high = metric_interval(rows(*shifted(200, 1.0, seed)), "auc", n_resamples=400)
        assert low < value < high
        held += low <= truth <= high
    assert held >= 34
    small = metric_interval(rows(*shifted(40, 1.0, 0)), "auc", n_resamples=400)
    assert small[2] - small[1] > 1.5 * (high - low)


def test_a_perfect_score_is_not_certain() -> None:
    y = np.tile([0, 1], 10)
    value, low, high = metric_interval(rows(y - 0.5, y), "auc")
    assert (value, high) == (1.0, 1.0)
    assert low == pytest.approx(0.025 ** (1 / 10))
    value, low, high = metric_interval(rows(0.5 - y, y), "accuracy")
    assert (value, low) == (0.0, 0.0)
    assert high == pytest.approx(1 - 0.025 ** (1 / 20))
    assert metric_interval(rows(y * 0.0, y), "auc") == (0.5, 0.5, 0.5)


def test_an_interval_that_is_mostly_undefined_is_not_given() -> None:
    y = np.array([1, 1, 1, 1, 1, 1, 1, 1])
    value, low, high = metric_interval(rows(np.ones(8), y), "auc")
    assert np.isnan([value, low, high]).all()


def cross_validated(n_repeats: int, n_folds: int, *, n: int = 100, protocol: str = "k-fold") -> pd.DataFrame:
    parts = []
    for repeat in range(n_repeats):
        score, y = shifted(n, 1.0, seed=repeat)
        fold = np.random.default_rng(repeat).permutation(n) % n_folds
        parts.append(rows(score, y, protocol=protocol, fold=fold, repeat=repeat, n_train=n - n // n_folds))
    return pd.concat(parts)


@pytest.mark.parametrize(("n_repeats", "n_folds"), [(1, 2), (1, 5), (10, 5), (3, 10)])
def test_people_count_twice_in_cross_validation(n_repeats: int, n_folds: int) -> None:
    assert Overlap.of(cross_validated(n_repeats, n_folds)).growth == pytest.approx(1)
    assert Overlap.of(cross_validated(1, n_folds, protocol="site-held-out")).growth == pytest.approx(1)


def test_one_fit_has_no_overlap_and_splits_have_ever_more() -> None:
    score, y = shifted(20, 1.0, 0)
    splits = [rows(score, y, protocol="random-splits", repeat=repeat, n_train=80) for repeat in range(100)]
    growth = [Overlap.of(pd.concat(splits[:n])).growth for n in (1, 2, 10, 100)]
    assert growth[0] == 0 and growth == sorted(growth) and 0.9 < growth[-1] < 1


def pairs_variance(tests: list[np.ndarray], trains: list[np.ndarray], repeat: list[int]) -> tuple[float, float]:
    """Variance of the mean over folds of ``y_i y_j c_ij``, and what one sees who looks at test people only."""
    n = max(int(part.max()) for part in tests) + 1
    n_repeats, total = len(set(repeat)), np.zeros((n, n))
    for test, train in zip(tests, trains, strict=True):
        share = sum(number == repeat[0] for number in repeat)
        total[np.ix_(test, train)] += 1 / (len(test) * len(train) * share * n_repeats)
    both = total + total.T
    return float((both[np.triu_indices(n, 1)] ** 2).sum()), float((total**2).sum())


@pytest.mark.parametrize(("n_repeats", "n_folds"), [(1, 4), (6, 5), (40, 5)])
def test_the_overlap_is_that_of_pairs_of_people_who_swap_roles(n_repeats: int, n_folds: int) -> None:
    rng = np.random.default_rng(0)
    folds = [np.split(rng.permutation(60), n_folds) for _ in range(n_repeats)]
    tests = [fold for repeat in folds for fold in repeat]
    trains = [np.setdiff1d(np.arange(60), test) for test in tests]
    true, seen = pairs_variance(tests, trains, list(np.repeat(range(n_repeats), n_folds)))
    assert 1 + Overlap.of(cross_validated(n_repeats, n_folds, n=60)).growth == pytest.approx(true / seen, rel=0.02)


def test_the_overlap_of_few_shot_draws_is_that_of_their_pairs() -> None:
    rng = np.random.default_rng(0)
    tests, trains, parts = [], [], []
    for repeat in range(30):
        for number, test in enumerate(np.split(rng.permutation(60), 3)):
            tests.append(test)
            trains.append(rng.choice(np.setdiff1d(np.arange(60), test), 20, replace=False))
            parts.append(
                rows(np.arange(60.0), np.arange(60) % 2, protocol="few-shot-10", fold=number, repeat=repeat).iloc[test]
            )
    overlap = Overlap.of(pd.concat(parts).assign(n_train=20))
    true, seen = pairs_variance(tests, trains, list(np.repeat(range(30), 3)))
    assert (overlap.own + overlap.swapped + 2 * overlap.repeated) / (overlap.own + overlap.repeated) == pytest.approx(
        true / seen, rel=0.03
    )
    assert overlap.draws == pytest.approx((overlap.own + overlap.swapped) - 2 / 30)


def test_k_fold_intervals_are_stretched_bootstrap_intervals() -> None:
    table = cross_validated(4, 5)
    predictions = Predictions.of(table)
    bare = bootstrap_interval(lambda weights: METRICS["auc"](predictions, weights), predictions, n_resamples=500)
    value, low, high = metric_interval(table, "auc", n_resamples=500)
    assert (low - value, high - value) == pytest.approx(1.5 * (np.array(bare[1:]) - bare[0]))
    values = fold_values(table, "auc")
    assert len(values) == 20 and bare[0] == pytest.approx(values.mean(), abs=0.02)
    assert interval_method("external").endswith("over people") and "draws, widened" in interval_method("few-shot-2")


@pytest.mark.parametrize("metric", ["auc", "accuracy"])
def test_a_test_cohort_in_several_folds_is_still_one_that_nobody_trained_on(metric: str) -> None:
    score, y = shifted(80, 1.0, seed=4)
    whole, parts = rows(score, y), rows(score, y, fold=np.arange(80) // 2 % 4)
    assert Overlap.of(parts).stretch == 1
    assert metric_interval(parts, metric, n_resamples=200) == pytest.approx(
        metric_interval(whole, metric, n_resamples=200)
    )


def test_only_what_is_widened_is_said_to_be() -> None:
    assert "widened" not in interval_method("external")
    # A single random split has no second fold, and its interval is not.
    assert interval_method("random-splits").endswith("widened where test people of one fold train another")


def test_repeats_of_a_k_fold_are_correlated_more_than_their_test_people_alone_explain() -> None:
    overlap = Overlap.of(cross_validated(10, 5))
    share = overlap.share(50)
    correlation = share / (1 + share)
    assert correlation == pytest.approx((4 * 0.25 + 45 * 0.32) / 49)


def test_few_shot_intervals_know_that_draws_differ() -> None:
    y = np.tile([0, 1], 100)
    same, apart = [], []
    for repeat, shift in enumerate([0.0, 0.5, 1.0, 1.5, 2.0]):
        score, _ = shifted(200, 1.0, seed=0)
        same.append(rows(score, y, protocol="few-shot-2", repeat=repeat))
        apart.append(rows(shifted(200, shift, seed=0)[0], y, protocol="few-shot-2", repeat=repeat))
    widths = [np.diff(metric_interval(pd.concat(parts), "auc", n_resamples=500)[1:])[0] for parts in (same, apart)]
    assert widths[1] > 1.5 * widths[0]


# Tests


def test_the_corrected_t_test_by_hand() -> None:
    # mean 0.02, variance 1e-4 (n = 5), correction 1/5 + 1/4 = 0.45: error = sqrt(0.45e-4) = 0.0067082
    differences = np.array([0.01, 0.03, 0.02, 0.03, 0.01])
    error = np.sqrt(0.45 * 1e-4)
    assert corrected_error(differences, 0.25) == pytest.approx(0.00670820393)
    mean, low, high, p = corrected_resampled_t(differences, 0.25)
    assert mean == pytest.approx(0.02)
    assert (low, high) == pytest.approx((0.02 - 2.7764451 * error, 0.02 + 2.7764451 * error))
    assert p == pytest.approx(2 * stats.t.sf(0.02 / error, df=4))
    assert p > stats.ttest_1samp(differences, 0).pvalue


def test_differences_without_spread_prove_nothing() -> None:
    assert corrected_resampled_t(np.zeros(5), 0.25) == (0.0, 0.0, 0.0, 1.0)
    mean, *rest = corrected_resampled_t(np.full(3, -0.08333), 0.2)
    assert mean == pytest.approx(-0.08333) and np.isnan(rest).all()
    assert np.isnan(corrected_resampled_t(np.array([0.1]), 0.2)[1:]).all()
    y = np.tile([False, True], 5)
    assert delong(y, y * 1.0, y * 2.0) == (0.0, 0.0, 0.0, 1.0)
    difference, *rest = delong(y, y * 1.0, y * 0.0)
    assert difference == 0.5 and np.isnan(rest).all()
    assert np.isnan(delong(np.array([True, False, False]), np.array([3.0, 1, 2]), np.array([1.0, 2, 3]))[1:]).all()


def test_delong_is_right_on_value_and_spread() -> None:
    rng = np.random.default_rng(0)
    y = np.tile([False, True], 60)
    base = rng.normal(size=120) + y
    one, other = base + 0.3 * rng.normal(size=120), base + 0.9 * rng.normal(size=120)
    difference, low, high, p = delong(y, one, other)
    expected = roc_auc_score(y_true=y, y_score=one) - roc_auc_score(y_true=y, y_score=other)
    assert difference == pytest.approx(expected)
    ids = (rng.integers(0, 60, size=(2000, 2, 60)) * 2 + np.array([0, 1])[:, None]).reshape(2000, 120)
    counts = np.apply_along_axis(np.bincount, 1, ids, minlength=120).astype(float)
    aucs = [np.divide(*concordance(y, score, counts)) for score in (one, other)]
    spread = np.std(aucs[0] - aucs[1])
    assert (high - low) / 2 / 1.96 == pytest.approx(spread, rel=0.12)
    assert p == pytest.approx(2 * stats.norm.sf(abs(difference) * 2 * 1.959964 / (high - low)), rel=1e-4)
    assert delong(y, other, one)[0] == pytest.approx(-difference)


def test_overlap_widens_the_tests_of_one_pass_over_the_people() -> None:
    score, y = shifted(100, 1.0, 0)
    plain, wide = delong(y == 1, score, -score), delong(y == 1, score, -score, overlap=3.0)
    assert wide[0] == plain[0] and wide[3] > plain[3]
    assert wide[2] - wide[1] == pytest.approx(2 * (plain[2] - plain[1]))
    other = rows(score + np.random.default_rng(1).normal(size=100), y, model="o")
    folds = {"protocol": "site-held-out", "fold": np.repeat([0, 1, 2, 3], 25), "n_train": 75}
    widths = {}
    for name, changes in (("external", {}), ("site-held-out", folds)):
        both = pd.concat([rows(score, y).assign(**changes), other.assign(**changes)])
        found = compare(Results(both, {}), metric="accuracy", n_resamples=400).iloc[0]
        widths[name] = found["high"] - found["low"]
        assert found["smallest_difference"] == pytest.approx(smallest_difference(found["low"], found["high"]))
    assert widths["site-held-out"] == pytest.approx(widths["external"] * np.sqrt(2))


def test_the_smallest_difference_is_found_with_the_promised_power() -> None:
    error = 0.03
    truth = smallest_difference(-stats.norm.ppf(0.975) * error, stats.norm.ppf(0.975) * error)
    found = np.random.default_rng(0).normal(truth, error, size=20000) > stats.norm.ppf(0.975) * error
    assert found.mean() == pytest.approx(0.8, abs=0.01)


def test_holm_by_hand() -> None:
    assert holm(np.array([0.01, 0.04, 0.03])).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm(np.array([0.6, 0.7])).tolist() == [1.0, 1.0]
    corrected = holm(np.array([0.01, np.nan, 0.02]))
    assert corrected[[0, 2]].tolist() == pytest.approx([0.02, 0.02]) and np.isnan(corrected[1])


# Comparing


def _results() -> Results:
    parts = []
    fold = np.repeat(np.arange(5), 20)
    for model, shift in (("strong", 3.0), ("weak", 0.8), ("none", 0.0)):
        for repeat in range(2):
            score, y = shifted(100, shift, seed=repeat)
            parts.append(rows(score, y, model=model, protocol="k-fold", fold=fold, repeat=repeat))
        parts.append(rows(*shifted(100, shift, seed=2), model=model, protocol="site-held-out", fold=fold))
        for repeat in range(2):
            parts.append(rows(*shifted(100, shift, seed=repeat), model=model, protocol="few-shot-5", repeat=repeat))
    return Results(pd.concat(parts), {})


def test_the_first_model_is_compared_with_every_other() -> None:
    table = compare(_results(), n_resamples=400)
    assert list(table["model"].unique()) == ["strong"]
    assert list(table["reference"]) == ["weak", "none"] * 3
    assert (table["difference"] > 0.05).all() and (table["low"] > 0).all() and (table["p"] < 0.05).all()
    assert (table["p_corrected"] >= table["p"]).all()
    tests = dict(zip(table["protocol"], table["test"], strict=True))
    assert tests == {
        "k-fold": "corrected resampled t",
        "site-held-out": "DeLong, corrected for overlap",
        "few-shot-5": "paired bootstrap over people",
    }


def test_a_reference_is_what_the_others_are_compared_with() -> None:
    table = compare(_results(), "weak", n_resamples=400)
    signs = table.groupby("model")["difference"].agg(["min", "max"])
    assert signs.loc["strong", "min"] > 0 > signs.loc["none", "max"]
    assert set(table["reference"]) == {"weak"}
    with pytest.raises(OpenBrainMassError, match="no model 'x' in these results; they have strong, weak, none"):
        compare(_results(), "x")


def test_other_metrics_of_pooled_protocols_are_bootstrapped() -> None:
    table = compare(_results(), "none", metric="auc_site_mean", n_resamples=400)
    assert set(table["protocol"]) == {"site-held-out"}
    assert set(table["test"]) == {"paired bootstrap over people, corrected for overlap"}
    with pytest.raises(OpenBrainMassError, match="'kappa' is not known"):
        compare(_results(), metric="kappa")


def test_the_same_predictions_twice_do_not_differ() -> None:
    first = rows(*shifted(60, 1.0, 0), model="a")
    for protocol in ("external", "few-shot-1"):
        both = pd.concat([first, first.assign(model="b")]).assign(protocol=protocol)
        found = compare(Results(both, {}), n_resamples=200).iloc[0]
        assert (found["difference"], found["p"]) == (0.0, 1.0)


def test_only_people_and_folds_that_both_models_have_are_compared() -> None:
    score, y = shifted(60, 1.0, 0)
    one, other = rows(score, y, model="a"), rows(score, y, model="b").iloc[10:].assign(saw_test_people=True)
    found = compare(Results(pd.concat([one, other]), {})).iloc[0]
    assert found["difference"] == 0.0 and found["saw_test_people"]


def test_one_repeat_of_the_papers_split_is_bootstrapped() -> None:
    parts = [rows(*shifted(40, s, 0), model=m, protocol="paper-split") for m, s in (("a", 2.0), ("b", 0.0))]
    found = compare(Results(pd.concat(parts), {}), n_resamples=300).iloc[0]
    assert found["test"] == "paired bootstrap over people" and found["low"] > 0
