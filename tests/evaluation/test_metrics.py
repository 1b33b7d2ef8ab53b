from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr
from sklearn import config_context
from sklearn.calibration import calibration_curve
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    brier_score_loss,
    mean_absolute_error,
    mean_squared_error,
    multilabel_confusion_matrix,
    precision_recall_fscore_support,
    r2_score,
    roc_auc_score,
)

from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.metrics import METRICS, Predictions, Weights, concordance, find_metric, metric_names


def table(y: np.ndarray, score: np.ndarray, fold: np.ndarray | int = 0, protocol: str = "external", repeat: int = 0):
    return pd.DataFrame(
        {
            "protocol": protocol,
            "repeat": repeat,
            "fold": fold,
            "participant_id": [f"p{i}" for i in range(len(y))],
            "y_true": y,
            "y_score": score,
            "y_pred": (score > 0).astype(int),
            "y_prob": 1 / (1 + np.exp(-score)),
        }
    )


def value(name: str, rows: pd.DataFrame) -> float:
    predictions = Predictions.of(rows)
    return float(METRICS[name](predictions, Weights.equal(predictions))[0])


# Scores on a coarse grid, so that ties are common.
scored = st.lists(st.tuples(st.integers(0, 1), st.integers(-4, 4)), min_size=4, max_size=60).filter(
    lambda rows: len({y for y, _ in rows}) == 2
)


def random_table(rng: np.random.Generator, protocol: str) -> pd.DataFrame:
    """People in folds over repeats, scores on a coarse grid (ties) in half of the tables, one-class folds in some."""
    n, n_repeats, n_folds = int(rng.integers(4, 40)), int(rng.integers(1, 4)), int(rng.integers(1, 5))
    y = (rng.random(n) < rng.uniform(0.1, 0.9)).astype(int)
    y[:2] = 0, 1
    parts = []
    for repeat in range(n_repeats):
        score = rng.normal(size=n) if rng.random() < 0.5 else rng.integers(-3, 4, size=n) / 2
        parts.append(table(y, score, rng.integers(n_folds, size=n), protocol, repeat))
    return pd.concat(parts, ignore_index=True)


def mean_of(rows: pd.DataFrame, function: Callable[..., object]) -> float:
    """Mean over repeats of a metric of the true and the predicted values."""
    parts = [function(part["y_true"], part["y_score"]) for _, part in rows.groupby("repeat")]
    return float(np.mean(np.array(parts, dtype=float)))


def fold_auc(part: pd.DataFrame) -> float:
    """Mean of the folds' AUC by their numbers of pairs, folds of one class having none."""
    right, pairs = 0.0, 0
    for _, fold in part.groupby("fold"):
        count = int((fold["y_true"] == 1).sum() * (fold["y_true"] == 0).sum())
        right += count * roc_auc_score(y_true=fold["y_true"], y_score=fold["y_score"]) if count else 0.0
        pairs += count
    return right / pairs if pairs else float("nan")


def calibration_error(part: pd.DataFrame) -> float:
    share, mean = calibration_curve(part["y_true"], part["y_prob"], n_bins=10)
    counts = np.histogram(part["y_prob"], np.linspace(0, 1, 11))[0]
    return float(np.average(np.abs(share - mean), weights=counts[counts > 0]))


def expected(part: pd.DataFrame, pooled: bool) -> list[float]:
    """scikit-learn's metrics of one repeat, in the order of `EXPECTED`."""
    y, predicted, probability = part["y_true"], part["y_pred"], part["y_prob"]
    precision, recall, f_score, _ = precision_recall_fscore_support(
        y_true=y, y_pred=predicted, labels=[0, 1], zero_division=np.nan
    )
    auc = roc_auc_score(y_true=y, y_score=part["y_score"]) if pooled else fold_auc(part)
    balanced, accuracy = (score(y_true=y, y_pred=predicted) for score in (balanced_accuracy_score, accuracy_score))
    brier = brier_score_loss(y_true=y, y_proba=probability)
    return [
        auc, balanced, accuracy, recall[1], recall[0], precision[1], precision[0], f_score[1], brier,
        calibration_error(part),
    ]  # fmt: skip


EXPECTED = ("auc", "balanced_accuracy", "accuracy", "sensitivity", "specificity", "ppv", "npv", "f1", "brier", "ece")


def test_metrics_equal_those_of_scikit_learn_over_folds_and_repeats() -> None:
    rng = np.random.default_rng(0)
    for number in range(20):
        rows = random_table(rng, ("k-fold", "site-held-out", "external", "random-splits")[number % 4])
        pooled = number % 4 in (1, 2)
        with config_context(assume_finite=True, skip_parameter_validation=True), warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            reference = np.nanmean([expected(part, pooled) for _, part in rows.groupby("repeat")], axis=0)
        predictions = Predictions.of(rows)
        ours = [METRICS[name](predictions, Weights.equal(predictions))[0] for name in EXPECTED]
        np.testing.assert_allclose(ours, reference, rtol=1e-9, atol=1e-12, err_msg=f"table {number}: {EXPECTED}")


@pytest.mark.parametrize("n", [3, 5, 9, 12, 17, 24, 31, 40, 55, 80])
def test_metrics_equal_those_of_scikit_learn_on_100_random_tables(n: int) -> None:
    rng = np.random.default_rng(n)
    y = (rng.random((n, 100)) < rng.uniform(0.1, 0.9, size=100)).astype(int)
    y[:2] = [[0], [1]]
    score = np.where(rng.random(100) < 0.5, rng.normal(size=(n, 100)), rng.integers(-2, 3, size=(n, 100)))
    score = score + rng.uniform(-1.5, 1.5, size=100) + y * rng.uniform(0, 2, size=100)
    predicted = (score > 0).astype(int)
    # One call for many tables: scikit-learn's checks of each call take longer than all else here.
    positive, negative = (
        precision_recall_fscore_support(y_true=a, y_pred=b, average=None, zero_division=np.nan)
        for a, b in ((y, predicted), (1 - y, 1 - predicted))
    )
    reference = {
        "auc": roc_auc_score(y_true=y, y_score=score, average=None),
        "ppv": positive[0],
        "npv": negative[0],
        "sensitivity": positive[1],
        "specificity": negative[1],
        "balanced_accuracy": (positive[1] + negative[1]) / 2,
        "f1": positive[2],
        "accuracy": np.trace(multilabel_confusion_matrix(y_true=y, y_pred=predicted), axis1=1, axis2=2) / n,
        "brier": mean_squared_error(y, 1 / (1 + np.exp(-score)), multioutput="raw_values"),
    }
    for column in range(100):
        one = Predictions.of(table(y[:, column], score[:, column]))
        for name, values in reference.items():
            ours = METRICS[name](one, Weights.equal(one))[0]
            assert ours == pytest.approx(values[column], nan_ok=True), (column, name)


def correlation(one: pd.Series, other: pd.Series) -> float:
    return float(pearsonr(one, other).statistic)


def test_regression_metrics_equal_those_of_scikit_learn_and_scipy() -> None:
    rng = np.random.default_rng(0)
    for number in range(30):
        n, n_repeats = int(rng.integers(3, 30)), int(rng.integers(1, 4))
        y = rng.normal(size=n) * 10 + 1000 * (number % 2)
        parts = [
            table(y, y + rng.normal(size=n) * rng.uniform(0, 30), 0, "k-fold", repeat) for repeat in range(n_repeats)
        ]
        rows = pd.concat(parts).assign(y_prob=np.nan)
        assert value("r2", rows) == pytest.approx(mean_of(rows, r2_score))
        assert value("mae", rows) == pytest.approx(mean_of(rows, mean_absolute_error))
        assert value("r", rows) == pytest.approx(mean_of(rows, correlation))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000))
def test_every_metric_counts_people_as_often_as_copies_of_them_would(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = random_table(rng, "external").query("repeat == 0")
    counts = rng.integers(0, 4, size=len(rows))
    copies = rows.loc[rows.index.repeat(counts)].assign(participant_id=[f"c{number}" for number in range(counts.sum())])
    if not len(copies):
        return
    predictions = Predictions.of(rows)
    ordered = np.array([counts[predictions.person == person].sum() for person in range(len(rows))])
    for name, metric in METRICS.items():
        weighted = metric(predictions, Weights(ordered[None].astype(float), np.ones((1, 1))))[0]
        assert weighted == pytest.approx(value(name, copies), nan_ok=True), name


def test_numbers_without_spread_have_no_explained_variance() -> None:
    rows = table(np.full(5, 33.3), np.array([1.0, 2, 3, 4, 5])).assign(y_prob=np.nan)
    assert np.isnan(value("r2", rows)) and np.isnan(value("r", rows))
    assert np.isnan(value("r", table(np.array([1.0, 2, 3]), np.full(3, 0.1))))


def test_a_model_without_probabilities_has_no_calibration() -> None:
    rows = table(np.array([0, 1, 1, 0]), np.array([-1.0, 2.0, 3.0, -0.5]))
    assert np.isnan(value("brier", rows.assign(y_prob=np.nan))) and np.isnan(value("ece", rows.assign(y_prob=np.nan)))
    assert value("ece", rows.assign(y_prob=[0.0, 1.0, 1.0, 0.0])) == 0
    assert value("ece", rows.assign(y_prob=[0.55, 0.55, 0.55, 0.55])) == pytest.approx(0.05)


@settings(max_examples=25, deadline=None)
@given(scored, st.data())
def test_weights_count_people_as_often_as_copies_of_them_would(
    rows: list[tuple[int, int]], data: st.DataObject
) -> None:
    y, score = (np.array(column) for column in zip(*rows, strict=True))
    counts = np.array(data.draw(st.lists(st.integers(0, 3), min_size=len(y), max_size=len(y))))
    copies_y, copies_score = np.repeat(y, counts), np.repeat(score, counts)
    right, pairs = concordance(y == 1, score.astype(float), counts[None].astype(float))
    if len(set(copies_y)) == 2:
        assert right[0] / pairs[0] == pytest.approx(roc_auc_score(y_true=copies_y, y_score=copies_score))
    else:
        assert pairs[0] == 0


def test_auc_of_k_fold_compares_people_of_one_fold_only() -> None:
    y = np.array([1, 0, 1, 0])
    # Within each fold the patient is above the control; across folds the offset would undo that.
    rows = table(y, np.array([11.0, 10.0, -10.0, -11.0]), fold=np.array([0, 0, 1, 1]))
    assert value("auc", rows.assign(protocol="k-fold")) == 1.0
    assert value("auc", rows.assign(protocol="site-held-out")) == 0.75
    assert value("auc_site_mean", rows.assign(protocol="site-held-out")) == 1.0


def test_auc_of_k_fold_weights_folds_by_their_pairs() -> None:
    rng = np.random.default_rng(0)
    fold = np.repeat([0, 1], [10, 30])
    y, score = np.tile([0, 1], 20), rng.normal(size=40)
    parts = [roc_auc_score(y_true=y[fold == f], y_score=score[fold == f]) for f in (0, 1)]
    expected = (25 * parts[0] + 225 * parts[1]) / 250
    assert value("auc", table(y, score, fold, "k-fold")) == pytest.approx(expected)


def test_repeats_are_averaged() -> None:
    y = np.array([1, 0])
    first, second = table(y, np.array([1.0, -1.0])), table(y, np.array([-1.0, 1.0]), repeat=1)
    rows = pd.concat([first, second, first.assign(repeat=2)])
    assert value("auc", rows) == pytest.approx(2 / 3)
    assert value("sensitivity", rows) == pytest.approx(2 / 3)
    predictions = Predictions.of(rows)
    weights = Weights(np.ones((1, 2)), np.array([[0.0, 1.0, 0.0]]))
    assert METRICS["auc"](predictions, weights).tolist() == [0.0]


def test_sites_of_one_class_do_not_enter_the_mean_of_sites() -> None:
    rows = table(np.array([1, 0, 1]), np.array([2.0, 1.0, 0.5]), np.array([0, 0, 1]), "site-held-out")
    assert value("auc_site_mean", rows) == 1.0


def test_what_is_not_defined_is_nan() -> None:
    rows = table(np.array([1, 1]), np.array([1.0, -1.0]))
    assert np.isnan(value("auc", rows)) and np.isnan(value("specificity", rows))
    assert value("sensitivity", rows) == 0.5


def test_metric_names_by_protocol() -> None:
    assert "auc_site_mean" in metric_names("site-held-out")
    assert "auc_site_mean" not in metric_names("k-fold")
    assert metric_names("site-held-out", "regression") == ["r2", "r", "mae"]
    assert {"ppv", "npv", "f1", "brier", "ece"} < set(metric_names("k-fold")) and "r2" not in metric_names("k-fold")
    with pytest.raises(OpenBrainMassError, match="'kappa' is not known; choose one of auc"):
        find_metric("kappa")
