"""Few-shot learning curves, and the area under them over the logarithm of the number of labelled people."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd

from openbrainmass.evaluation.metrics import HEADLINE, Predictions, Weights, find_metric
from openbrainmass.evaluation.protocols import few_shot_size
from openbrainmass.evaluation.results import Results
from openbrainmass.evaluation.statistics import (
    Overlap,
    bca_bounds,
    bootstrap_counts,
    bootstrap_p,
    chosen_metric,
    holm,
    metric_interval,
    resampled,
    smallest_difference,
    within_range,
)

CURVE_COLUMNS = ("protocol", "model", "k", "metric", "value", "low", "high", "n_draws", "saw_test_people")

AREA_COLUMNS = (
    "protocol", "model", "reference", "metric", "smallest_k", "largest_k", "value", "low", "high", "p", "p_corrected",
    "smallest_difference", "saw_test_people",
)  # fmt: skip


def learning_curves(
    results: Results, metric: str | None = None, *, n_resamples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """A metric against the number of labelled people of each class.

    Parameters
    ----------
    results : Results
    metric : str, optional
        A name of `METRICS`; without it, the AUC, or R2 for a regression.
    n_resamples, seed : int
        Of the bootstrap (see `metric_interval`).

    Returns
    -------
    DataFrame
        `CURVE_COLUMNS`: `protocol` is ``few-shot`` or ``external-few-shot``, whose k = 0 is ``external`` (zero-shot).
        Empty without few-shot protocols.
    """
    metric = HEADLINE[results.kind] if metric is None else metric
    rows = []
    for (family, model), points in _curves(results).items():
        for k, table in points.items():
            value, low, high = metric_interval(table, metric, n_resamples=n_resamples, seed=seed)
            saw = bool(table["saw_test_people"].any())
            row = (family, model, k, metric, value, low, high, table["repeat"].nunique(), saw)
            rows.append(dict(zip(CURVE_COLUMNS, row, strict=True)))
    return pd.DataFrame(rows, columns=list(CURVE_COLUMNS))


def log_auc(
    results: Results,
    reference: str | None = None,
    metric: str | None = None,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Area under the learning curve over log k, as a mean: 1 for a metric that is 1 at every k.

    Between the smallest and the largest k of one or more, by trapezoids; zero-shot (k = 0) has no logarithm. People
    and draws are resampled jointly for all k, and for both models of a comparison.

    Parameters
    ----------
    results : Results
    reference : str, optional
        Model that every other one is compared with; without it, the areas alone.
    metric : str, optional
        A name of `METRICS`; without it, the AUC, or R2 for a regression.
    n_resamples, seed : int
        Of the bootstrap.

    Returns
    -------
    DataFrame
        `AREA_COLUMNS`, first the areas (without `reference`), then the differences with two-sided p, which Holm's
        correction is applied to within a protocol. A curve of fewer than two k has no area.

    Raises
    ------
    OpenBrainMassError
        If the reference or the metric is not known.
    """
    metric = chosen_metric(results, metric, reference)
    curves = {key: {k: table for k, table in points.items() if k} for key, points in _curves(results).items()}
    curves = {key: points for key, points in curves.items() if len(points) > 1}
    rows = [_area_row(key, points, None, metric, n_resamples, seed) for key, points in curves.items()]
    for family in dict.fromkeys(family for family, _ in curves):
        other = curves.get((family, str(reference)), {})
        pairs = [key for key, points in curves.items() if key[0] == family and len(points.keys() & other.keys()) > 1]
        pairs = [key for key in pairs if key[1] != reference]
        tested = [_area_row(key, curves[key], (str(reference), other), metric, n_resamples, seed) for key in pairs]
        corrected = holm(np.array([row["p"] for row in tested], dtype=float))
        rows += [{**row, "p_corrected": float(p)} for row, p in zip(tested, corrected, strict=True)]
    return pd.DataFrame(rows, columns=list(AREA_COLUMNS))


def _curves(results: Results) -> dict[tuple[str, str], dict[int, pd.DataFrame]]:
    """Predictions of every point of every curve, by protocol and model, in the order of k."""
    curves: dict[tuple[str, str], dict[int, pd.DataFrame]] = {}
    for (protocol, model), table in results.predictions.groupby(["protocol", "model"], sort=False):
        size = few_shot_size(str(protocol))
        if size is not None:
            curves.setdefault((str(protocol).rsplit("-", 1)[0], str(model)), {})[size] = table
    for (family, model), points in curves.items():
        rows = results.predictions
        zero = rows[(rows["protocol"] == "external") & (rows["model"] == model)]
        if family == "external-few-shot" and len(zero):
            points[0] = zero
    return {key: dict(sorted(points.items())) for key, points in curves.items()}


def _area_row(
    key: tuple[str, str],
    points: dict[int, pd.DataFrame],
    other: tuple[str, dict[int, pd.DataFrame]] | None,
    metric: str,
    n_resamples: int,
    seed: int,
) -> dict[str, object]:
    reference, others = other if other is not None else ("", {})
    sizes = [k for k in points if other is None or k in others]
    sides = [[points[k] for k in sizes]] + ([[others[k] for k in sizes]] if other is not None else [])
    found = _area(sizes, sides, metric, n_resamples, seed)
    saw = any(bool(table["saw_test_people"].any()) for side in sides for table in side)
    p = found[3] if other is not None else float("nan")
    power = smallest_difference(found[1], found[2]) if other is not None else float("nan")
    row = (*key, reference, metric, min(sizes), max(sizes), *found[:3], p, float("nan"), power, saw)
    return dict(zip(AREA_COLUMNS, row, strict=True))


def _area(
    sizes: list[int], sides: list[list[pd.DataFrame]], metric: str, n_resamples: int, seed: int
) -> tuple[float, float, float, float]:
    """Area under the tables of one model (minus that of a second, where there is one), low, high and p."""
    tables = [table for side in sides for table in side]
    people = np.unique(np.concatenate([table["participant_id"].to_numpy(str) for table in tables]))
    repeats = np.unique(np.concatenate([table["repeat"].to_numpy(int) for table in tables]))
    share = _trapezoid_weights(np.log(sizes))
    first, *second = ([_point(table, metric, people, repeats) for table in side] for side in sides)

    def area(weights: Weights) -> np.ndarray:
        values = np.stack([part(weights) for part in first])
        return share @ (values - np.stack([part(weights) for part in second[0]]) if second else values)

    ones = np.ones((1, len(repeats)))
    value = float(area(Weights(np.ones((1, len(people))), ones))[0])
    counts = [bootstrap_counts(n, n_resamples, seed, stream) for stream, n in enumerate((len(people), len(repeats)))]
    samples = resampled(area, Weights(counts[0], counts[1]))
    if not np.isfinite(value) or len(samples) < n_resamples / 2:
        return value, float("nan"), float("nan"), float("nan")
    alone = 1 - np.eye(len(people), dtype=np.float32)
    low, high = bca_bounds(value, samples, resampled(area, Weights(alone, np.repeat(ones, len(people), axis=0))))
    stretch = max(Overlap.of(table).stretch for table in tables)
    low, high = value + stretch * (low - value), value + stretch * (high - value)
    if not second:
        low, high = within_range(metric, low, high)
    return value, low, high, bootstrap_p(value + stretch * (samples - value))


def _trapezoid_weights(places: np.ndarray) -> np.ndarray:
    """What each value counts in the mean of the line through them."""
    steps = np.diff(places) / (places[-1] - places[0])
    return (np.append(steps, 0) + np.append(0, steps)) / 2


def _point(
    table: pd.DataFrame, metric: str, people: np.ndarray, repeats: np.ndarray
) -> Callable[[Weights], np.ndarray]:
    """A metric of one k as a function of weights of all `people` and `repeats` of the curve."""
    function, predictions = find_metric(metric), Predictions.of(table)
    person = np.searchsorted(people, predictions.people)
    repeat = np.searchsorted(repeats, np.unique(predictions.repeat))
    return lambda weights: function(predictions, Weights(weights.people[:, person], weights.repeats[:, repeat]))
