"""Permutation tests on saved predictions: of two models, and of one model against chance."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy import stats

from openbrainmass.evaluation.metrics import Metric, Predictions, Weights, find_metric, metric_names
from openbrainmass.evaluation.results import Results
from openbrainmass.evaluation.statistics import Overlap, chosen_metric, paired_rows

PERMUTATION_COLUMNS = (
    "protocol", "model", "reference", "metric", "value", "expected", "p", "n_permutations", "test", "saw_test_people",
)  # fmt: skip

_RANKED = ("auc", "auc_site_mean")


def permutation_test(
    results: Results,
    model: str,
    reference: str | None = None,
    metric: str | None = None,
    *,
    n_permutations: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Test two models against each other, or one against chance, by permuting the saved predictions.

    With a `reference`, what the two models say of a person (all repeats together) is swapped for random people, after
    decision values have become ranks among those they are compared with. Without one, labels are permuted among the
    people of a site, so that telling sites apart is no merit. No model is fitted again: both tests are exact for one
    fixed model on new people (``external``). In cross-validation test people also train, which permuting predictions
    does not repeat; there the permuted values are stretched by `Overlap.growth`, as are the intervals.

    Parameters
    ----------
    results : Results
    model : str
        Whose predictions are tested.
    reference : str, optional
        The model that it is compared with.
    metric : str, optional
        A name of `METRICS`; without it, the AUC, or R2 for a regression.
    n_permutations, seed : int
        Of the permutations; the smallest possible p is ``1 / (n_permutations + 1)``.

    Returns
    -------
    DataFrame
        One row a protocol, `PERMUTATION_COLUMNS`: `value` is the metric or the difference, `expected` its mean over
        permutations, p two-sided.

    Raises
    ------
    OpenBrainMassError
        If a model or the metric is not known.
    """
    metric = chosen_metric(results, metric, model, reference)
    rows = []
    for protocol, table in results.predictions.groupby("protocol", sort=False):
        one, other = (table[table["model"] == name] for name in (model, reference))
        if metric not in metric_names(str(protocol), results.kind) or one.empty or (reference and other.empty):
            continue
        rng = np.random.default_rng([seed, n_permutations])
        if reference is None:
            found = _against_chance(one, metric, n_permutations, rng)
            test = "labels permuted within sites" if one["site"].nunique() > 1 else "labels permuted"
        else:
            one, other = paired_rows(one, other)
            found = _swapped(one, other, metric, n_permutations, rng)
            test = "models swapped within people"
        saw = bool(one["saw_test_people"].any() or other["saw_test_people"].any())
        suffix = ", corrected for overlap" if Overlap.of(one).growth else ""
        row = (protocol, model, reference or "", metric, *found, n_permutations, f"{test}{suffix}", saw)
        rows.append(dict(zip(PERMUTATION_COLUMNS, row, strict=True)))
    return pd.DataFrame(rows, columns=list(PERMUTATION_COLUMNS))


def _against_chance(
    table: pd.DataFrame, metric: str, n_permutations: int, rng: np.random.Generator
) -> tuple[float, float, float]:
    """The metric, its mean with permuted labels, and p."""
    function, predictions = find_metric(metric), Predictions.of(table)
    first = table.drop_duplicates("participant_id").sort_values("participant_id")
    truth, site = first["y_true"].to_numpy(float), first["site"].to_numpy(str)
    order = np.argsort(site, kind="stable")

    def permuted() -> float:
        labels = np.empty_like(truth)
        labels[order] = truth[order[np.lexsort((rng.random(len(site)), site[order]))]]
        rows = labels[predictions.person]
        return _value(function, replace(predictions, truth=rows, y=rows == 1))

    values = np.array([permuted() for _ in range(n_permutations)])
    return _judged(_value(function, predictions), values, table)


def _swapped(
    one: pd.DataFrame, other: pd.DataFrame, metric: str, n_permutations: int, rng: np.random.Generator
) -> tuple[float, float, float]:
    """The difference, its mean over swaps, and p."""
    function = find_metric(metric)
    first, second = (_ranked(Predictions.of(part), metric) for part in (one, other))

    def permuted() -> float:
        swap = (rng.random(len(first.people)) < 0.5)[first.person]
        sides = []
        for mine, yours in ((first, second), (second, first)):
            score, predicted, probability = (
                np.where(swap, getattr(yours, name), getattr(mine, name))
                for name in ("score", "predicted", "probability")
            )
            sides.append(_value(function, replace(mine, score=score, predicted=predicted, probability=probability)))
        return sides[0] - sides[1]

    values = np.array([permuted() for _ in range(n_permutations)])
    return _judged(_value(function, first) - _value(function, second), values, one)


def _ranked(predictions: Predictions, metric: str) -> Predictions:
    """Decision values as ranks, since those of two models have no common unit; an AUC does not change by it."""
    if metric not in _RANKED:
        return predictions
    score = np.empty_like(predictions.score)
    by_fold = metric == "auc_site_mean" or not predictions.pooled
    for folds in predictions.parts(by_fold=by_fold):
        for rows in folds:
            score[rows] = stats.rankdata(predictions.score[rows])
    return replace(predictions, score=score)


def _value(function: Metric, predictions: Predictions) -> float:
    return float(function(predictions, Weights.equal(predictions))[0])


def _judged(value: float, values: np.ndarray, table: pd.DataFrame) -> tuple[float, float, float]:
    values = values[np.isfinite(values)]
    if not np.isfinite(value) or not len(values):
        return value, float("nan"), float("nan")
    expected = float(values.mean())
    stretch = np.sqrt(1 + Overlap.of(table).growth)
    # Rounding must not tell two equal sums of ranks apart.
    as_far = stretch * np.abs(values - expected) >= abs(value - expected) - 1e-12
    return value, expected, float((1 + as_far.sum()) / (1 + len(values)))
