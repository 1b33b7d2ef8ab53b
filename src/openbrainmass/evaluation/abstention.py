"""Abstention: how much more often a model is right when it may stay silent about those it is unsure of."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from openbrainmass.evaluation.metrics import Predictions, Weights, accuracy, balanced_accuracy
from openbrainmass.evaluation.protocols import few_shot_size
from openbrainmass.evaluation.results import Results
from openbrainmass.evaluation.statistics import Overlap, bootstrap_interval, widened

COVERAGE_COLUMNS = (
    "model", "protocol", "wanted", "coverage", "accuracy", "low", "high", "balanced_accuracy", "n", "threshold",
    "confidence", "threshold_from",
)  # fmt: skip
"""See `coverage_curve`."""

COVERAGES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
"""Shares of people that a model is asked to answer for."""

LEAST_ANSWERED = 10
"""People that must be answered for, so that an accuracy is given."""


def coverage_curve(
    results: Results, coverages: Sequence[float] = COVERAGES, *, n_resamples: int = 500, seed: int = 0
) -> pd.DataFrame:
    """Accuracy among the people whom a model is confident about, for falling shares of people.

    A rule that can be used says "no answer" by a threshold that was fixed before the person came. So the threshold of
    a fold is the confidence that the wanted share of people in the *other* folds of the same repeat exceeds, and what
    is reported is the coverage that was reached with it, not the one that was wanted. A single fold (``external``) has
    no others: its threshold comes from the k-fold predictions of the same model on the training cohort, and where there
    are none, from the tested people themselves, which only describes them.

    Parameters
    ----------
    results : Results
        Of a classification; few-shot is left out.
    coverages : sequence of float
        Wanted shares of people, in (0, 1].
    n_resamples, seed : int
        Of the bootstrap over people.

    Returns
    -------
    DataFrame
        ``wanted coverage``; ``accuracy low high`` (95 % interval) and ``balanced_accuracy`` of the answered people,
        ``n`` of them on average; ``threshold`` (mean over folds); ``confidence``: "probability", ``|y_prob - 0.5|``,
        where the model gives one for everybody, else "decision value", ``|y_score|``; ``threshold_from``: "other
        folds", "k-fold" or "tested people". Accuracy is missing below `LEAST_ANSWERED` people. Empty for a regression.
    """
    rows: list[tuple[object, ...]] = []
    for (protocol, model), table in results.predictions.groupby(["protocol", "model"], sort=False):
        silent = results.kind == "regression" or few_shot_size(str(protocol)) is not None
        confidence, unit = confidence_of(table)
        if silent or len(np.unique(confidence)) < 2:
            continue
        folds = [part.index.to_numpy() for _, part in table.reset_index().groupby(["repeat", "fold"])]
        source, known = _source(results, table, len(folds), str(model))
        for wanted in coverages:
            threshold = _thresholds(table["repeat"].to_numpy(), folds, confidence, known, wanted)
            answered = confidence >= threshold
            measured = _measured(table, answered, n_resamples, seed)
            n = float(answered.sum()) / table["repeat"].nunique()
            rows.append(
                (model, protocol, wanted, answered.mean(), *measured, n, float(np.mean(threshold)), unit, source)
            )
    return pd.DataFrame(rows, columns=list(COVERAGE_COLUMNS))


def confidence_of(table: pd.DataFrame) -> tuple[np.ndarray, str]:
    """How sure a model is of each row, (n_rows,), and what that is: a probability, or a decision value."""
    probability = table["y_prob"].to_numpy(float)
    if np.isfinite(probability).all():
        return np.abs(probability - 0.5), "probability"
    return np.abs(table["y_score"].to_numpy(float)), "decision value"


def _source(results: Results, table: pd.DataFrame, n_folds: int, model: str) -> tuple[str, np.ndarray | None]:
    """Where thresholds come from, and for a single fold the confidences that they are taken from."""
    if n_folds > table["repeat"].nunique():
        return "other folds", None
    everything = results.predictions
    own = everything[(everything["model"] == model) & (everything["protocol"] == "k-fold")]
    if len(own) and str(table["protocol"].iloc[0]).startswith("external"):
        confidence, unit = confidence_of(own)
        if unit == confidence_of(table)[1]:
            return "k-fold", confidence
    return "tested people", None


def _thresholds(
    repeat: np.ndarray, folds: list[np.ndarray], confidence: np.ndarray, known: np.ndarray | None, wanted: float
) -> np.ndarray:
    """The confidence that each row needs, (n_rows,)."""
    needed = np.zeros(len(confidence))
    if wanted >= 1:
        return needed
    for rows in folds:
        others = np.flatnonzero(repeat == repeat[rows[0]])
        others = np.setdiff1d(others, rows) if len(others) > len(rows) else rows
        needed[rows] = np.quantile(confidence[others] if known is None else known, 1 - wanted)
    return needed


def _measured(
    table: pd.DataFrame, answered: np.ndarray, n_resamples: int, seed: int
) -> tuple[float, float, float, float]:
    """Accuracy of the answered people with its interval, and their balanced accuracy."""
    if table.loc[answered, "participant_id"].nunique() < LEAST_ANSWERED:
        return float("nan"), float("nan"), float("nan"), float("nan")
    chosen = Predictions.of(table[answered])
    value, low, high = people_interval(
        lambda weights: accuracy(chosen, weights),
        table,
        n_resamples,
        seed,
        metric="accuracy",
        n_relevant=len(chosen.people),
        taken=chosen,
    )
    return value, low, high, float(balanced_accuracy(chosen, Weights.equal(chosen))[0])


def people_interval(
    statistic: Callable[[Weights], np.ndarray],
    table: pd.DataFrame,
    n_resamples: int,
    seed: int,
    *,
    metric: str | None = None,
    n_relevant: int = 1,
    taken: Predictions | None = None,
) -> tuple[float, float, float]:
    """Any statistic of the predictions of one model with a 95 % interval, as `metric_interval` gives of a metric.

    Parameters
    ----------
    statistic : callable
        Takes the weights of the people of `taken`, gives (n_samples,).
    table : DataFrame
        All predictions of the protocol and the model: its folds say how much wider than a bootstrap the interval is.
    n_resamples, seed : int
        Of the bootstrap.
    metric : str, optional
        The metric of one model that the statistic is a value of: the interval is then as wide as that of
        `metric_interval`, and within the metric's range. Without it, the statistic is a difference, whose variance
        overlap makes grow by less (`SKEWNESS`).
    n_relevant : int
        People that a perfect value of the metric rests on: where it is 0 or 1 without any spread, an exact binomial
        bound follows from them.
    taken : Predictions, optional
        What the statistic is computed from, if not from all of the table.

    Returns
    -------
    value, low, high : float
    """
    chosen = Predictions.of(table) if taken is None else taken
    value, low, high = bootstrap_interval(statistic, chosen, n_resamples=n_resamples, seed=seed)
    overlap = Overlap.of(table)
    if metric is None:
        stretch = float(np.sqrt(1 + overlap.growth))
        return value, value + stretch * (low - value), value + stretch * (high - value)
    return value, *widened(metric, value, low, high, overlap, n_relevant)
