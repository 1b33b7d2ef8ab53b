"""Metrics of saved predictions, for many weightings of the people at once.

One row of weights is one bootstrap or jackknife sample, so an interval costs a few matrix products. Unit weights give
the metric itself, equal to scikit-learn's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.protocols import POOLED_PROTOCOLS

_ROUNDING = 1e-12

N_BINS = 10
"""Bins of equal width, of the predicted probability, in `ece`."""


@dataclass(frozen=True, eq=False)
class Predictions:
    """Predictions of one model under one protocol.

    Attributes
    ----------
    people : ndarray (n_people,) of str
        Who was tested, each once.
    person : ndarray (n_rows,) of int
        Position in `people` of each row.
    y : ndarray (n_rows,) of bool
        Whether the person is positive.
    truth : ndarray (n_rows,)
        Value of the target: the class as 0 or 1, or what a regression predicts.
    score, predicted : ndarray (n_rows,)
        Decision value (of a regression, the predicted value), and whether the class that was given is positive.
    probability : ndarray (n_rows,)
        Probability of the positive class; NaN where the model gives none.
    repeat, fold : ndarray (n_rows,) of int
    protocol : str
    """

    people: np.ndarray
    person: np.ndarray
    y: np.ndarray
    truth: np.ndarray
    score: np.ndarray
    predicted: np.ndarray
    probability: np.ndarray
    repeat: np.ndarray
    fold: np.ndarray
    protocol: str

    @classmethod
    def of(cls, table: pd.DataFrame) -> Predictions:
        """Take the rows of one protocol and one model out of a predictions table."""
        people, person = np.unique(table["participant_id"].to_numpy(str), return_inverse=True)
        return cls(
            people,
            person,
            table["y_true"].to_numpy() == 1,
            table["y_true"].to_numpy(float),
            table["y_score"].to_numpy(float),
            table["y_pred"].to_numpy() == 1,
            table["y_prob"].to_numpy(float),
            table["repeat"].to_numpy(int),
            table["fold"].to_numpy(int),
            str(table["protocol"].iloc[0]),
        )

    @property
    def pooled(self) -> bool:
        """Whether people of different folds are ranked against each other."""
        return self.protocol in POOLED_PROTOCOLS

    @property
    def n_repeats(self) -> int:
        """Number of repeats."""
        return len(np.unique(self.repeat))

    def parts(self, by_fold: bool) -> list[list[np.ndarray]]:
        """For each repeat, the rows to be looked at together: its folds, or all of it."""
        folds = self.fold if by_fold else np.zeros_like(self.fold)
        return [
            [
                np.flatnonzero((self.repeat == repeat) & (folds == fold))
                for fold in np.unique(folds[self.repeat == repeat])
            ]
            for repeat in np.unique(self.repeat)
        ]


@dataclass(frozen=True, eq=False)
class Weights:
    """How much each person and each repeat counts in each of many samples.

    Attributes
    ----------
    people : ndarray (n_samples, n_people)
    repeats : ndarray (n_samples, n_repeats)
    """

    people: np.ndarray
    repeats: np.ndarray

    @classmethod
    def equal(cls, predictions: Predictions) -> Weights:
        """One sample in which everybody counts once."""
        return cls(np.ones((1, len(predictions.people))), np.ones((1, predictions.n_repeats)))

    def __len__(self) -> int:
        return len(self.people)

    def __getitem__(self, rows: slice) -> Weights:
        return Weights(self.people[rows].astype(float), self.repeats[rows].astype(float))


Metric = Callable[[Predictions, Weights], np.ndarray]
"""``metric(predictions, weights) -> (n_samples,)``, NaN where it is not defined."""


def concordance(y: np.ndarray, score: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Weighted pairs of a positive and a negative row in the right order (a tie is half), and all such pairs.

    Parameters
    ----------
    y : ndarray (n_rows,) of bool
    score : ndarray (n_rows,)
    weights : ndarray (n_samples, n_rows)

    Returns
    -------
    right, pairs : ndarray (n_samples,)
        Their ratio is the AUC of each sample.
    """
    levels, level = np.unique(score, return_inverse=True)
    order = np.argsort(level, kind="stable")
    starts = np.searchsorted(level[order], np.arange(len(levels)))
    positive = np.add.reduceat(np.where(y[order], weights[:, order], 0.0), starts, axis=1)
    negative = np.add.reduceat(np.where(y[order], 0.0, weights[:, order]), starts, axis=1)
    below = np.cumsum(negative, axis=1) - negative / 2
    return (positive * below).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1)


def auc(predictions: Predictions, weights: Weights) -> np.ndarray:
    """Area under the ROC curve, mean over repeats.

    Pooled protocols rank all test people together. Elsewhere only people of the same fold are compared, because
    decision values of different fits have no common zero: the folds' AUC, weighted by their numbers of pairs.
    """
    values = []
    for folds in predictions.parts(by_fold=not predictions.pooled):
        right, pairs = np.sum([_concordance(predictions, rows, weights) for rows in folds], axis=0)
        values.append(_ratio(right, pairs))
    return _mean(values, weights.repeats)


def auc_site_mean(predictions: Predictions, weights: Weights) -> np.ndarray:
    """Plain mean of the AUC of each fold (site) that has both classes."""
    values = []
    for folds in predictions.parts(by_fold=True):
        sites = [_ratio(*_concordance(predictions, rows, weights)) for rows in folds]
        values.append(_mean(sites, np.ones((1, len(sites)))))
    return _mean(values, weights.repeats)


def accuracy(predictions: Predictions, weights: Weights) -> np.ndarray:
    """Share of people given their own class, mean over repeats."""
    return _share(predictions, weights, predictions.y == predictions.predicted, np.ones_like(predictions.y))


def sensitivity(predictions: Predictions, weights: Weights) -> np.ndarray:
    """Share of the positive people who are found, mean over repeats."""
    return _share(predictions, weights, predictions.predicted, predictions.y)


def specificity(predictions: Predictions, weights: Weights) -> np.ndarray:
    """Share of the negative people who are given the negative class, mean over repeats."""
    return _share(predictions, weights, ~predictions.predicted, ~predictions.y)


def balanced_accuracy(predictions: Predictions, weights: Weights) -> np.ndarray:
    """Mean of sensitivity and specificity."""
    return (sensitivity(predictions, weights) + specificity(predictions, weights)) / 2


def ppv(predictions: Predictions, weights: Weights) -> np.ndarray:
    """Share of positive people among those given the positive class (precision), mean over repeats."""
    return _share(predictions, weights, predictions.y, predictions.predicted)


def npv(predictions: Predictions, weights: Weights) -> np.ndarray:
    """Share of negative people among those given the negative class, mean over repeats."""
    return _share(predictions, weights, ~predictions.y, ~predictions.predicted)


def f1(predictions: Predictions, weights: Weights) -> np.ndarray:
    """Harmonic mean of sensitivity and ppv, mean over repeats; not defined without any positive, true or given."""
    found = 2.0 * (predictions.y & predictions.predicted)
    return _mean_of(predictions, weights, found, predictions.y + 1.0 * predictions.predicted)


def brier(predictions: Predictions, weights: Weights) -> np.ndarray:
    """Mean squared distance of the probability from the class, 0 at best, mean over repeats."""
    return _mean_of(predictions, weights, (predictions.probability - predictions.truth) ** 2)


def ece(predictions: Predictions, weights: Weights) -> np.ndarray:
    """Expected calibration error: how far probabilities are from frequencies, over `N_BINS` bins, mean over repeats.

    In each bin of probability, the distance of the mean probability from the share of positive people; bins count by
    their people (Naeini et al., 2015). Small samples inflate it, since frequencies scatter.
    """
    gap = predictions.probability - predictions.truth
    if not np.isfinite(gap).all():
        return np.full(len(weights), np.nan)
    place = np.minimum((predictions.probability * N_BINS).astype(int), N_BINS - 1)
    gaps = [_sums(predictions, weights, np.where(place == number, gap, 0.0)) for number in range(N_BINS)]
    everybody = _sums(predictions, weights, np.ones_like(gap))
    values = [
        _ratio(np.sum([np.abs(bin_gap) for bin_gap in repeat], axis=0), whole)
        for *repeat, whole in zip(*gaps, everybody, strict=True)
    ]
    return _mean(values, weights.repeats)


def r2(predictions: Predictions, weights: Weights) -> np.ndarray:
    """Explained variance around the test people's own mean (scikit-learn's ``r2_score``), mean over repeats."""
    left = _sums(predictions, weights, (predictions.truth - predictions.score) ** 2)
    spread = _products(predictions, weights, predictions.truth, predictions.truth)
    return _mean([1 - _ratio(error, whole) for error, whole in zip(left, spread, strict=True)], weights.repeats)


def r(predictions: Predictions, weights: Weights) -> np.ndarray:
    """Pearson correlation of predicted and true values, mean over repeats."""
    pairs = ((predictions.truth, predictions.score), (predictions.truth,) * 2, (predictions.score,) * 2)
    joint, *own = (_products(predictions, weights, *pair) for pair in pairs)
    values = [_ratio(part, np.sqrt(one * other)) for part, one, other in zip(joint, *own, strict=True)]
    return _mean(values, weights.repeats)


def mae(predictions: Predictions, weights: Weights) -> np.ndarray:
    """Mean absolute error, in units of the target, mean over repeats."""
    return _mean_of(predictions, weights, np.abs(predictions.truth - predictions.score))


METRICS: dict[str, Metric] = {
    "auc": auc,
    "auc_site_mean": auc_site_mean,
    "balanced_accuracy": balanced_accuracy,
    "accuracy": accuracy,
    "sensitivity": sensitivity,
    "specificity": specificity,
    "ppv": ppv,
    "npv": npv,
    "f1": f1,
    "brier": brier,
    "ece": ece,
    "r2": r2,
    "r": r,
    "mae": mae,
}
"""Metrics by name; ``auc_site_mean`` is of the protocol site-held-out only."""

REGRESSION_METRICS = ("r2", "r", "mae")
"""Metrics of a target that is a number; all others are of two classes."""

HEADLINE = {"classification": "auc", "regression": "r2"}
"""The metric that models are compared by, for each kind of task."""

RANGES = {"r2": (-np.inf, 1.0), "r": (-1.0, 1.0), "mae": (0.0, np.inf)}
"""What values a metric can have, where it is not from 0 to 1."""


def metric_names(protocol: str, kind: str = "classification") -> list[str]:
    """The metrics that a protocol has, for a task of a kind (a key of `HEADLINE`)."""
    if kind == "regression":
        return list(REGRESSION_METRICS)
    return [
        name
        for name in METRICS
        if name not in REGRESSION_METRICS and (name != "auc_site_mean" or protocol == "site-held-out")
    ]


def find_metric(name: str) -> Metric:
    """Look a metric up by name, or say which there are."""
    if name not in METRICS:
        raise OpenBrainMassError(f"The metric {name!r} is not known; choose one of {', '.join(METRICS)}.")
    return METRICS[name]


def _concordance(predictions: Predictions, rows: np.ndarray, weights: Weights) -> tuple[np.ndarray, np.ndarray]:
    return concordance(predictions.y[rows], predictions.score[rows], weights.people[:, predictions.person[rows]])


def _share(predictions: Predictions, weights: Weights, hits: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Weighted share of `hits` in `among`, in each repeat, mean over repeats."""
    return _mean_of(predictions, weights, 1.0 * (hits & among), 1.0 * among)


def _mean_of(
    predictions: Predictions, weights: Weights, values: np.ndarray, among: np.ndarray | None = None
) -> np.ndarray:
    """Weighted sum of `values` over that of `among` (one a row), in each repeat, mean over repeats."""
    whole = np.ones_like(values) if among is None else among
    parts = zip(_sums(predictions, weights, values), _sums(predictions, weights, whole), strict=True)
    return _mean([_ratio(part, count) for part, count in parts], weights.repeats)


def _products(predictions: Predictions, weights: Weights, one: np.ndarray, other: np.ndarray) -> list[np.ndarray]:
    """Weighted sum of the products of two columns around their own weighted means, in each repeat."""
    # Columns far from 0 (ages, say) would lose their spread in the difference of two large sums.
    one, other = one - one.mean(), other - other.mean()
    columns = (one * other, one, other, np.ones_like(one))
    sums = zip(*(_sums(predictions, weights, column) for column in columns), strict=True)
    products = [(both, both - _ratio(first * second, count)) for both, first, second, count in sums]
    # What is left of a column without spread is rounding, and a ratio of it would be any number.
    return [np.where(np.abs(value) <= _ROUNDING * np.abs(both), 0.0, value) for both, value in products]


def _sums(predictions: Predictions, weights: Weights, values: np.ndarray) -> list[np.ndarray]:
    """Weighted sum over the rows of each repeat, (n_samples,) each."""
    n_people = len(predictions.people)
    return [
        weights.people
        @ np.bincount(predictions.person[rows], weights=np.asarray(values, float)[rows], minlength=n_people)
        for (rows,) in predictions.parts(by_fold=False)
    ]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.full(len(whole), np.nan), where=whole > 0)


def _mean(values: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Weighted mean over the defined values, weights (n_samples, n_values); NaN where none is defined."""
    stacked = np.stack(values, axis=1)
    counted = np.where(np.isfinite(stacked), weights, 0)
    return _ratio((np.where(np.isfinite(stacked), stacked, 0) * counted).sum(axis=1), counted.sum(axis=1))
