"""How perfectly columns fit a set of people, and how likely that would be by chance."""

from __future__ import annotations

import numpy as np
from scipy.special import erf
from scipy.stats import binom, chi2

# So unlikely that in a million honest tables one would be refused.
UNLIKELY = 1e-6
# One rounded column has a mean of exactly 0, or the same in two groups, by chance; a repeated value is its median.
MIN_TOGETHER = 3
MIN_VALUES = 10
_MIN_REPEATS = 3
# Columns go together; more than a few never count as independent witnesses.
_MOST_WITNESSES = 4
# Values that are cut off at an end reach it any number of times, and just once with a chance of 1/e at the most.
_ONCE, _JUST_ONCE = 1.1, np.exp(-1)
_MOST_COMPARED = 1000
_PERFECT = 0.01


def filled(X: np.ndarray) -> np.ndarray:
    """Features (n_rows, n_columns) with the mean of each column in its gaps."""
    return np.where(np.isnan(X), np.nanmean(X, axis=0), X)


def witnesses(X: np.ndarray) -> float:
    """How many independent columns these are worth: square of the sum of the covariance's eigenvalues by that of squares."""
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    gram = Z @ Z.T if len(Z) <= Z.shape[1] else Z.T @ Z
    return float(np.trace(gram) ** 2 / (gram**2).sum())


def chance(distances: np.ndarray, n_independent: float) -> float:
    """Chance that so many of some values are so near 0.

    Parameters
    ----------
    distances : ndarray (n,)
        Each standard normal, were it chance; those that do not fit hide none of those that do.
    n_independent : float
        How many of them are worth a witness of their own; only a few count.
    """
    n = len(distances)
    within = np.sort(erf(np.abs(distances) / np.sqrt(2)))
    counts = np.arange(min(n, MIN_TOGETHER), n + 1)
    # However they go together (Benjamini and Yekutieli 2001).
    of_any_share = float((within[counts - 1] * n / counts).min()) * (1 + np.log(n))
    n_witnesses = max(1, min(n, _MOST_WITNESSES, int(n_independent + 1e-6)))
    of_more_than_half = float(binom.sf(n_witnesses // 2, n_witnesses, within[n // 2]))
    return min(of_any_share, of_more_than_half)


def standardised(X: np.ndarray, unit: bool = False) -> str:
    """Says that columns are centred (with `unit`, also scaled) on everybody; empty where they are not."""
    if X.shape[1] < MIN_TOGETHER:
        return ""
    root_n = np.sqrt(np.isfinite(X).sum(axis=0))
    spread = np.nanstd(X, axis=0)
    n_independent = witnesses(filled(X))
    if told := _same_ends(X, spread, n_independent):
        return told
    least = _least_distance(X, spread) / root_n
    means = np.maximum(np.abs(np.nanmean(X, axis=0)) / spread * root_n, least)
    if chance(means, n_independent) < UNLIKELY and (not unit or np.median(np.abs(spread - 1)) < 0.02):
        return f"{_how_many(means)} the mean 0 over everybody (half of them within {np.median(means):.1g} standard errors)."
    low, middle, high = np.nanquantile(X, (0.25, 0.5, 0.75), axis=0)
    # The median's standard error is a quarter larger than the mean's.
    medians = np.maximum(np.abs(middle) / spread * root_n / 1.25, least)
    # Where 0 is a frequent value it is the median anyway.
    medians[(np.abs(X - middle) <= 1e-9 * spread).sum(axis=0) > 2] = np.inf
    width = high - low
    if chance(medians, n_independent) < UNLIKELY and (not unit or np.median(np.abs(width - np.median(width))) < 1e-3):
        return f"{_how_many(medians)} the median 0 over everybody."
    return ""


def _how_many(distances: np.ndarray) -> str:
    n_perfect = int((distances < _PERFECT).sum())
    return "Every column has" if n_perfect == len(distances) else f"{n_perfect} of {len(distances)} columns have"


def _least_distance(X: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Half the step between the values of each column, by its spread; 0 where they are not whole or half steps.

    A sum of whole numbers is often exactly 0, which is no nearer than half a step.
    """
    gaps = np.diff(np.sort(X, axis=0), axis=0)
    step = np.nanmin(np.where(gaps > 1e-9 * spread, gaps, np.nan), axis=0)
    multiples = 2 * X / step
    whole = np.nanmax(np.abs(multiples - np.round(multiples)), axis=0) < 1e-3
    return np.where(whole, step / (2 * spread), 0.0)


def _same_ends(X: np.ndarray, spread: np.ndarray, n_independent: float) -> str:
    """Says that columns end at the same numbers, which one person each reaches: values cut off are reached by many."""
    found: dict[str, tuple[float, float]] = {}
    for name, values in (("largest", X), ("smallest", -X), ("farthest from 0", np.abs(X))):
        ends = np.nanmax(values, axis=0)
        middle = float(np.median(ends))
        same = np.abs(ends - middle) < 1e-6 * np.median(spread)
        reached = (np.abs(values[:, same] - ends[same]) <= 1e-6 * np.median(spread)).sum(axis=0)
        if same.mean() > 0.5 and reached.mean() <= _ONCE:
            found[name] = -middle if name == "smallest" else middle, min(n_independent, float(same.sum()))
    if len(found) > 1:
        # The value that is farthest from 0 is the largest or the smallest.
        found.pop("farthest from 0", None)
    if _JUST_ONCE ** sum(n for _, n in found.values()) >= UNLIKELY:
        return ""
    told = " and ".join(f"{value + 0.0:.3g} as {name} value" for name, (value, _) in found.items())
    return f"Columns have {told} over everybody, which one person each reaches."


def uncorrelated(X: np.ndarray) -> str:
    """Says that columns do not correlate with each other."""
    # Among columns of few values a correlation of exactly 0 is nothing rare.
    n_values = 1 + (np.diff(np.sort(X, axis=0), axis=0) > 0).sum(axis=0)
    X = X[:, n_values > max(MIN_VALUES, len(X) // 2)]
    n_columns = X.shape[1]
    if not 2 <= n_columns <= _MOST_COMPARED:
        return ""
    correlations = np.corrcoef(X, rowvar=False)[np.triu_indices(n_columns, k=1)]
    distances = np.abs(correlations) * np.sqrt(len(X))
    n_independent = int(witnesses(X) + 1e-6)
    if chance(distances, n_independent * (n_independent - 1) / 2) >= UNLIKELY:
        return ""
    none = distances < _PERFECT
    largest = f"(largest {np.abs(correlations[none]).max():.1g})"
    if none.all():
        return f"No two of {n_columns} columns correlate over everybody {largest}."
    return f"{none.sum()} of the {len(none)} pairs of columns do not correlate over everybody {largest}."


def imputed(X: np.ndarray, groups: list[np.ndarray]) -> np.ndarray:
    """In which columns (n_columns,) a repeated value is the mean or median of the others of a group of rows."""
    found = np.zeros(X.shape[1], dtype=bool)
    for group in groups:
        rows = np.sort(X[group], axis=0)
        for place in np.flatnonzero((np.diff(rows, axis=0) == 0).any(axis=0) & ~found):
            found[place] = _filled_with_middle(X[group, place])
    return found


def _filled_with_middle(column: np.ndarray) -> bool:
    values, counts = np.unique(column[np.isfinite(column)], return_counts=True)
    # In a column of few values repetition says nothing.
    if len(values) < MIN_VALUES or counts.max() < _MIN_REPEATS or (counts > 1).sum() > max(1, len(values) // 10):
        return False
    often = values[counts.argmax()]
    rest = column[np.isfinite(column) & (column != often)]
    tolerance = 1e-5 * rest.std()
    return bool(min(abs(often - rest.mean()), abs(often - np.median(rest))) <= tolerance)


def too_good(X: np.ndarray, design: np.ndarray, given: np.ndarray | None = None) -> tuple[float, float]:
    """How far a design explains less of X than chance would, after what is given.

    Returns
    -------
    ratio : float
        Explained over expected variance, 1 by chance.
    p : float
        Chance of so little.
    """
    if X.shape[1] < MIN_TOGETHER:
        return 1.0, 1.0
    base = np.ones((len(X), 1)) if given is None else np.column_stack([np.ones(len(X)), given])
    left, extra = _residuals(X, base), _residuals(design, base)
    extra = _basis(extra)
    if not extra.shape[1]:
        return 1.0, 1.0
    explained = ((extra.T @ left) ** 2).sum(axis=0)
    rest = (left**2).sum(axis=0) - explained
    spare = max(1, len(X) - _basis(base).shape[1] - extra.shape[1])
    good = rest > 1e-12 * (X**2).sum(axis=0)
    if not good.any():
        return 1.0, 1.0
    ratio = float(np.mean(explained[good] / extra.shape[1] / (rest[good] / spare)))
    freedom = min(witnesses(left[:, good]), len(X) / 2) * extra.shape[1]
    return ratio, float(chi2.cdf(ratio * freedom, freedom))


def _basis(design: np.ndarray) -> np.ndarray:
    """Orthonormal columns that span a design."""
    if not design.size:
        return np.zeros((len(design), 0))
    left, values, _ = np.linalg.svd(design, full_matrices=False)
    return left[:, values > 1e-9 * max(float(values[0]), 1e-9) * np.sqrt(len(design))]


def _residuals(X: np.ndarray, design: np.ndarray) -> np.ndarray:
    basis = _basis(design)
    return X - basis @ (basis.T @ X)
