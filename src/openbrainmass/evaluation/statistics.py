"""Intervals and paired comparisons, computed from saved predictions only.

In cross-validation a person is tested by models that other people trained, and trains the models that test those
people, so that each pair of people enters an estimate twice. An interval or test that looks at test people alone, or
at folds with the correction of Nadeau & Bengio (2003), counts it once and promises too much. `Overlap` holds what
the second time adds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.metrics import HEADLINE, RANGES, Metric, Predictions, Weights, find_metric, metric_names
from openbrainmass.evaluation.protocols import RESAMPLED_PROTOCOLS, few_shot_size

if TYPE_CHECKING:
    from openbrainmass.evaluation.results import Results

COMPARISON_COLUMNS = (
    "protocol", "model", "reference", "difference", "low", "high", "p", "p_corrected", "test", "metric",
    "saw_test_people", "smallest_difference",
)  # fmt: skip

Statistic = Callable[[Weights], np.ndarray]

SKEWNESS = 1.25
"""What the growth of the variance is multiplied by in the interval of one model.

With d independent directions in the features, the variance grows to ``2 d / (d - 2)`` times that over test people
instead of twice it, and is skewed, since the decision values are divided by their own random spread: 2.25 for d = 18.
In a difference of two models that cancels.
"""

_BLOCK = 500
_ROUNDING = 1e-12
_TESTED = ("difference", "low", "high", "p")


@lru_cache(maxsize=8)
def bootstrap_counts(n: int, n_resamples: int, seed: int, stream: int) -> np.ndarray:
    """How often each of n is drawn in each bootstrap sample, (n_resamples, n), float32."""
    rng = np.random.default_rng([seed, stream])
    flat = rng.integers(n, size=(n_resamples, n)) + np.arange(n_resamples)[:, None] * n
    counts = np.bincount(flat.ravel(), minlength=n_resamples * n)
    return counts.reshape(n_resamples, n).astype(np.float32)


def bootstrap_weights(predictions: Predictions, n_resamples: int, seed: int) -> Weights:
    """Bootstrap samples of the people and, of few-shot, of the draws, which differ more than people do."""
    if few_shot_size(predictions.protocol) is None:
        repeats = np.ones((n_resamples, predictions.n_repeats), dtype=np.float32)
    else:
        repeats = bootstrap_counts(predictions.n_repeats, n_resamples, seed, 1)
    return Weights(bootstrap_counts(len(predictions.people), n_resamples, seed, 0), repeats)


def leave_one_out(predictions: Predictions) -> Weights:
    """Jackknife samples: each person left out in turn, all repeats counting once."""
    n_people = len(predictions.people)
    return Weights(1 - np.eye(n_people, dtype=np.float32), np.ones((n_people, predictions.n_repeats)))


def resampled(statistic: Statistic, weights: Weights) -> np.ndarray:
    """A statistic of each sample, defined ones only, a block of samples at a time to bound memory."""
    starts = range(0, len(weights), _BLOCK)
    values = np.concatenate([statistic(weights[start : start + _BLOCK]) for start in starts])
    return values[np.isfinite(values)]


def bca_bounds(value: float, samples: np.ndarray, left_out: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Bias-corrected and accelerated bootstrap interval (Efron, 1987).

    Parameters
    ----------
    value : float
        The statistic.
    samples : ndarray (n_resamples,)
        Its value in bootstrap samples.
    left_out : ndarray (n_people,)
        Its value without each person.

    Returns
    -------
    low, high : float
    """
    tails = np.array([(1 - level) / 2, (1 + level) / 2])
    # Half of the ties count as below, so that a statistic with few values is not pushed to one side.
    below = ((samples < value).sum() + (samples == value).sum() / 2) / len(samples)
    if below in (0.0, 1.0):
        low, high = np.quantile(samples, tails)
        return float(low), float(high)
    influence = left_out.mean() - left_out
    spread = float((influence**2).sum())
    acceleration = float((influence**3).sum()) / (6 * spread**1.5) if spread > 0 else 0.0
    bias = stats.norm.ppf(below)
    normal = bias + stats.norm.ppf(tails)
    low, high = np.quantile(samples, stats.norm.cdf(bias + normal / (1 - acceleration * normal)))
    return float(low), float(high)


def bootstrap_interval(
    statistic: Statistic, predictions: Predictions, *, n_resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """A statistic and its 95 % interval over the test people (and repeats); NaN bounds where it is mostly undefined."""
    value = float(statistic(Weights.equal(predictions))[0])
    samples = resampled(statistic, bootstrap_weights(predictions, n_resamples, seed))
    if not np.isfinite(value) or len(samples) < n_resamples / 2:
        return value, float("nan"), float("nan")
    return value, *bca_bounds(value, samples, resampled(statistic, leave_one_out(predictions)))


@dataclass(frozen=True)
class Overlap:
    """How the folds of a protocol hang together through the people who are tested in one and train in another.

    The variance of a metric that no model can beat (no effect, many features) is a sum over pairs of people, one as
    test and the other as training person. In units in which each such pair of a very long series of splits counts 1:

    Attributes
    ----------
    own : float
        Folds each for themselves.
    swapped : float
        Folds of one repeat: who is tested in one trains in the other.
    repeated : float
        Folds of different repeats, a pair in the same roles; in swapped roles it adds as much again.
    draws : float
        What repeats of one data set differ by, over their number.
    part : float
        Share of a training set that is tested elsewhere; the rest may be another cohort.
    """

    own: float
    swapped: float
    repeated: float
    draws: float = 0.0
    part: float = 1.0

    @classmethod
    def of(cls, table: pd.DataFrame) -> Overlap:
        """Count folds, test and training people of one protocol and model."""
        folds = table.groupby(["repeat", "fold"]).agg(test=("participant_id", "size"), train=("n_train", "first"))
        n_folds, n_repeats = len(folds), table["repeat"].nunique()
        # Nobody of a test cohort trains, in however many folds it was handed over.
        if n_folds == 1 or table["protocol"].iloc[0] == "external":
            return cls(1.0, 0.0, 0.0)
        each = n_folds / n_repeats
        shot = few_shot_size(str(table["protocol"].iloc[0]))
        n_people = table["participant_id"].nunique()
        if each > 1:
            test, others = 1 / each, 1 - 1 / each
        else:
            n_people = max(n_people, float((folds["test"] + folds["train"]).mean()))
            test = others = float(folds["test"].mean()) / n_people
        train = others if each > 1 else float(folds["train"].mean()) / n_people
        if shot is not None:
            train = 2 * shot / n_people
        own, swapped = 1 / (each * test * train), (each - 1) / (each * others**2)
        draws = max(0.0, own + swapped - 2) / n_repeats if shot is not None else 0.0
        part = 1.0 if shot is None else min(1.0, 2 * shot / float(folds["train"].mean()))
        return cls(own / n_repeats, swapped / n_repeats, 1 - 1 / n_repeats, draws, part)

    @property
    def growth(self) -> float:
        """What the variance over test people (and draws) grows by: 1 for k-fold and site-held-out, 0 for one fit."""
        seen = self.own + self.repeated + self.draws
        return self.part * max(0.0, (self.own + self.swapped + 2 * self.repeated) / seen - 1)

    @property
    def stretch(self) -> float:
        """How many times wider than a bootstrap over test people the interval of one model is."""
        return float(np.sqrt(1 + SKEWNESS * self.growth))

    def share(self, n_folds: int) -> float:
        """What takes the place of test people / training people in `corrected_error`; for three folds or more."""
        # Repeats that lack a fold (a model that could not do it) fit no count of pairs and could come out above 1.
        correlation = min(0.9, (self.swapped + 2 * self.repeated) / (self.own * (n_folds - 1)))
        return correlation / (1 - correlation)


def interval_method(protocol: str) -> str:
    """What the 95 % intervals of a protocol's metrics are (see `metric_interval`)."""
    method = "bias-corrected and accelerated bootstrap over people"
    if protocol == "external":
        return method
    draws = " and draws" if few_shot_size(protocol) is not None else ""
    return f"{method}{draws}, widened where test people of one fold train another"


def metric_interval(
    table: pd.DataFrame, metric: str, *, n_resamples: int = 2000, seed: int = 0
) -> tuple[float, float, float]:
    """A metric of one model under one protocol, with its 95 % interval.

    A BCa bootstrap over people, for few-shot over draws as well, stretched by `Overlap.stretch` where test people
    of one fold train another. A metric that is 0 or 1 without any spread has an exact binomial bound.

    Parameters
    ----------
    table : DataFrame
        Predictions of one protocol and one model.
    metric : str
        A name of `METRICS`.

    Returns
    -------
    value, low, high : float
    """
    function = find_metric(metric)
    predictions = Predictions.of(table)
    value, low, high = bootstrap_interval(
        lambda weights: function(predictions, weights), predictions, n_resamples=n_resamples, seed=seed
    )
    return value, *widened(metric, value, low, high, Overlap.of(table), _n_relevant(predictions, metric))


def widened(
    metric: str, value: float, low: float, high: float, overlap: Overlap, n_relevant: int
) -> tuple[float, float]:
    """Bounds of a bootstrap over people as those of a metric of one model (see `metric_interval`).

    Parameters
    ----------
    metric : str
        A name of `METRICS`.
    value, low, high : float
        The metric, and the bounds that a bootstrap over people gives.
    overlap : Overlap
        Of all predictions of the protocol.
    n_relevant : int
        People that a perfect value rests on.

    Returns
    -------
    low, high : float
    """
    stretch = overlap.stretch
    low, high = within_range(metric, value + stretch * (low - value), value + stretch * (high - value))
    if low == high and value in (0.0, 1.0) and metric not in RANGES:
        bound = 0.025 ** (1 / n_relevant)
        low, high = (bound, 1.0) if value == 1 else (0.0, 1 - bound)
    return low, high


def within_range(metric: str, low: float, high: float) -> tuple[float, float]:
    """Bounds of a metric cut off where it has no values."""
    lowest, highest = RANGES.get(metric, (0.0, 1.0))
    return float(np.clip(low, lowest, highest)), float(np.clip(high, lowest, highest))


def _n_relevant(predictions: Predictions, metric: str) -> int:
    """People that a perfect value of a metric rests on."""
    n_positive = len(np.unique(predictions.person[predictions.y]))
    n_negative = len(predictions.people) - n_positive
    counts = {"sensitivity": n_positive, "specificity": n_negative, "accuracy": n_positive + n_negative}
    return max(1, counts.get(metric, min(n_positive, n_negative)))


def corrected_error(values: np.ndarray, share: float) -> float:
    """Standard error of the mean over repeated splits, corrected for their correlation.

    The variance of the mean is ``(1 / n + share) * variance``. With a correlation r between splits, ``share`` is
    ``r / (1 - r)`` (Nadeau & Bengio, 2003). They take the share of test people for r; over repeats of a k-fold that is
    already used up by people who are tested twice, and `Overlap.share` counts those who also train.

    Parameters
    ----------
    values : ndarray (n_splits,)
        A metric, or the difference of two models, in each split.
    share : float
        See `Overlap.share`.

    Returns
    -------
    float
        NaN for fewer than two splits.
    """
    if len(values) < 2:
        return float("nan")
    return float(np.sqrt((1 / len(values) + share) * np.var(values, ddof=1)))


def corrected_resampled_t(
    differences: np.ndarray, share: float, level: float = 0.95
) -> tuple[float, float, float, float]:
    """t-test of differences over repeated splits with the error of `corrected_error`.

    Parameters
    ----------
    differences : ndarray (n_splits,)
        Difference of two models in each split.
    share : float
        See `corrected_error`.

    Returns
    -------
    difference, low, high, p : float
        p is two-sided; 1 where all differences are 0, NaN (with NaN bounds) where they are all the same other value,
        from which no spread can be estimated.
    """
    mean = float(np.mean(differences))
    error = corrected_error(differences, share)
    if error <= _ROUNDING:
        return _without_spread(mean)
    reach = float(stats.t.ppf((1 + level) / 2, len(differences) - 1)) * error
    return mean, mean - reach, mean + reach, float(2 * stats.t.sf(abs(mean / error), len(differences) - 1))


def _without_spread(difference: float) -> tuple[float, float, float, float]:
    if abs(difference) <= _ROUNDING:
        return 0.0, 0.0, 0.0, 1.0
    return difference, float("nan"), float("nan"), float("nan")


def delong(
    y: np.ndarray, one: np.ndarray, other: np.ndarray, *, overlap: float = 0.0, level: float = 0.95
) -> tuple[float, float, float, float]:
    """Paired test of two AUC on the same people (DeLong et al., 1988, by mid-ranks).

    Parameters
    ----------
    y : ndarray (n_people,) of bool
    one, other : ndarray (n_people,)
        Decision values of the two models.
    overlap : float
        What the variance grows by because test people also train (`Overlap.growth`).

    Returns
    -------
    difference, low, high, p : float
        AUC of `one` minus that of `other`; p is two-sided; NaN where a class has fewer than two people, or where the
        difference has no spread (a model without a single error against one that gives everybody the same value).
    """
    positive, negative = np.flatnonzero(y), np.flatnonzero(~y)
    aucs, by_positive, by_negative = [], [], []
    for score in (one, other):
        ranks = stats.rankdata(score)
        own_positive, own_negative = stats.rankdata(score[positive]), stats.rankdata(score[negative])
        by_positive.append((ranks[positive] - own_positive) / len(negative))
        by_negative.append(1 - (ranks[negative] - own_negative) / len(positive))
        aucs.append(by_positive[-1].mean())
    difference = float(aucs[0] - aucs[1])
    if min(len(positive), len(negative)) < 2:
        return difference, float("nan"), float("nan"), float("nan")
    variance = np.var(by_positive[0] - by_positive[1], ddof=1) / len(positive)
    variance += np.var(by_negative[0] - by_negative[1], ddof=1) / len(negative)
    error = float(np.sqrt(variance * (1 + overlap)))
    if error <= _ROUNDING:
        return _without_spread(difference)
    reach = float(stats.norm.ppf((1 + level) / 2)) * error
    return difference, difference - reach, difference + reach, float(2 * stats.norm.sf(abs(difference / error)))


def smallest_difference(low: float, high: float, power: float = 0.8) -> float:
    """Smallest true difference that a study of this kind finds at 0.05, two-sided, with the given power.

    Parameters
    ----------
    low, high : float
        95 % interval of the difference, from whose width its standard error follows.
    power : float
        Share of such studies in which it is found.
    """
    quantile = stats.norm.ppf(0.975)
    return float((high - low) / 2 * (quantile + stats.norm.ppf(power)) / quantile)


def holm(p: np.ndarray) -> np.ndarray:
    """p-values corrected for their number (Holm, 1979); NaN stays NaN and is not counted."""
    p = np.asarray(p, dtype=float)
    corrected = np.full(len(p), np.nan)
    order = [index for index in np.argsort(p, kind="stable") if np.isfinite(p[index])]
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[index]))
        corrected[index] = largest
    return corrected


def chosen_metric(results: Results, metric: str | None, *models: str | None) -> str:
    """The metric that is meant, the AUC or R2 without one; an error if it or one of the models is not known."""
    metric = HEADLINE[results.kind] if metric is None else metric
    find_metric(metric)
    names = list(results.predictions["model"].unique())
    for model in models:
        if model is not None and model not in names:
            raise OpenBrainMassError(f"There is no model {model!r} in these results; they have {', '.join(names)}.")
    return metric


def compare(
    results: Results,
    reference: str | None = None,
    metric: str | None = None,
    *,
    n_resamples: int = 2000,
    seed: int = 0,
) -> pd.DataFrame:
    """Paired differences between models, on the same people and folds.

    Parameters
    ----------
    results : Results
        What `evaluate` returned.
    reference : str, optional
        Model that every other one is compared with; without it, the first model is compared with every other one.
    metric : str, optional
        A name of `METRICS`; without it, the AUC, or R2 for a regression.
    n_resamples, seed : int
        Of the paired bootstrap, where that is the test.

    Returns
    -------
    DataFrame
        `COMPARISON_COLUMNS`: the difference is model minus reference with its 95 % interval; p is two-sided and
        corrected by Holm within each protocol. The tests are the corrected resampled t-test (repeated splits), DeLong's
        (AUC of pooled protocols), and a paired bootstrap over people (everything else), all widened where test people
        also train (`Overlap`), without which they find a difference in 10-17 % of studies that have none.
        `smallest_difference` is the true one that such a study would find with a power of 0.8.

    Raises
    ------
    OpenBrainMassError
        If the reference or the metric is not known.
    """
    metric = chosen_metric(results, metric, reference)
    rows: list[dict[str, object]] = []
    for protocol, table in results.predictions.groupby("protocol", sort=False):
        if metric not in metric_names(str(protocol), results.kind):
            continue
        here = {str(name): part for name, part in table.groupby("model", sort=False)}
        if reference is None:
            first = next(iter(here))
            pairs = [(first, name) for name in here if name != first]
        else:
            pairs = [(name, reference) for name in here if name != reference and reference in here]
        tested = [
            _compare_pair(here[model], here[other], str(protocol), metric, n_resamples, seed) for model, other in pairs
        ]
        corrected = holm(np.array([row["p"] for row in tested], dtype=float))
        rows += [{**row, "p_corrected": float(p)} for row, p in zip(tested, corrected, strict=True)]
    return pd.DataFrame(rows, columns=list(COMPARISON_COLUMNS))


def paired_rows(one: pd.DataFrame, other: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of two models of one protocol, in the same order, of the people and folds that both have."""
    # A fold that only one of the two could do (a site model that failed, say) is no paired observation.
    keys = ["repeat", "fold", "participant_id"]
    both = pd.MultiIndex.from_frame(one[keys]).intersection(pd.MultiIndex.from_frame(other[keys]))
    first, second = (part.set_index(keys).loc[both].reset_index() for part in (one, other))
    return first, second


def _compare_pair(
    one: pd.DataFrame, other: pd.DataFrame, protocol: str, metric: str, n_resamples: int, seed: int
) -> dict[str, object]:
    one, other = paired_rows(one, other)
    row: dict[str, object] = {
        "protocol": protocol,
        "model": one["model"].iloc[0],
        "reference": other["model"].iloc[0],
        "metric": metric,
        "saw_test_people": bool(one["saw_test_people"].any() or other["saw_test_people"].any()),
    }
    values, test = _tested(one, other, metric, n_resamples, seed)
    tested = dict(zip(_TESTED, values, strict=True))
    return {**row, **tested, "test": test, "smallest_difference": smallest_difference(values[1], values[2])}


def _tested(
    one: pd.DataFrame, other: pd.DataFrame, metric: str, n_resamples: int, seed: int
) -> tuple[tuple[float, float, float, float], str]:
    """Difference, low, high and p by the test that the protocol calls for, and its name."""
    overlap = Overlap.of(one)
    if one["protocol"].iloc[0] in RESAMPLED_PROTOCOLS:
        differences = fold_values(one, metric) - fold_values(other, metric)
        differences = differences[np.isfinite(differences)]
        # The two halves of a single 2-fold are the same pairs of people, from which no variance can be told.
        if len(differences) > 2:
            return corrected_resampled_t(differences, overlap.share(len(differences))), "corrected resampled t"
    first, second = Predictions.of(one), Predictions.of(other)
    suffix = ", corrected for overlap" if overlap.growth else ""
    if metric == "auc" and first.pooled and len(first.people) == len(first.y):
        return delong(first.y, first.score, second.score, overlap=overlap.growth), f"DeLong{suffix}"
    values = _bootstrap_difference(first, second, find_metric(metric), overlap.growth, n_resamples, seed)
    return values, f"paired bootstrap over people{suffix}"


def fold_values(table: pd.DataFrame, metric: str) -> np.ndarray:
    """A metric in each fold of each repeat, (n_repeats * n_folds,), NaN where it is not defined."""
    function = find_metric(metric)
    parts = [Predictions.of(part) for _, part in table.groupby(["repeat", "fold"])]
    return np.array([function(part, Weights.equal(part))[0] for part in parts])


def bootstrap_p(samples: np.ndarray) -> float:
    """Two-sided p of a difference of 0, from bootstrap samples of the difference."""
    tails = [(side.sum() + 1) / (len(samples) + 1) for side in (samples <= 0, samples >= 0)]
    return float(min(1.0, 2 * min(tails)))


def _bootstrap_difference(
    one: Predictions, other: Predictions, metric: Metric, overlap: float, n_resamples: int, seed: int
) -> tuple[float, float, float, float]:
    def statistic(weights: Weights) -> np.ndarray:
        return metric(one, weights) - metric(other, weights)

    value, low, high = bootstrap_interval(statistic, one, n_resamples=n_resamples, seed=seed)
    if not np.isfinite(low):
        return value, low, high, float("nan")
    stretch = np.sqrt(1 + overlap)
    samples = value + stretch * (resampled(statistic, bootstrap_weights(one, n_resamples, seed)) - value)
    return value, value + stretch * (low - value), value + stretch * (high - value), bootstrap_p(samples)
