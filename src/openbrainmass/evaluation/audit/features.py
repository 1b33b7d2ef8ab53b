"""Marks that preprocessing of everybody together leaves in a table of features.

What was fitted on training people only fits them and, but for chance, nobody else. A table whose columns have the mean
0 to the last digit over *everybody*, or correlate with nothing, or whose site means agree far better than chance allows,
was made with the test people. Each test asks how likely so perfect a fit would be by chance, and refuses below one in a
million.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import log_ndtr
from scipy.stats import chi2, t

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.connectivity import correlation, fisher_z, vectorize
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.audit.checks import Finding, some
from openbrainmass.evaluation.audit.labels import telling_columns
from openbrainmass.evaluation.tasks import Task, code, is_known

FEATURE_CHECKS = (
    "scaler-before-split", "pca-before-split", "imputation-before-split", "combat-before-split", "combat-keeps-label",
    "regression-before-split", "selection-before-split", "label-as-feature", "derived-score",
)  # fmt: skip
"""What `audit_features` looks for."""

# So unlikely that in a million honest tables one would be refused.
_P = 1e-6
# Columns go together; more than a few never count as independent witnesses.
_MOST_WITNESSES = 4
_MIN_ROWS, _MIN_SELECTED = 10, 10
# One rounded column has a mean of exactly 0, or the same in two groups, by chance; a repeated value is its median.
_MIN_TOGETHER, _MIN_REPEATS = 3, 3
_CHOSEN_SHARE, _AN_EDGE = 0.9, 0.98
_ABOUT_PLACES = ("tr", "n_volumes", "dataset")


class Table(NamedTuple):
    """Features of recordings whose label is known."""

    X: np.ndarray
    names: np.ndarray
    y: np.ndarray
    about: pd.DataFrame


def audit_features(features: pd.DataFrame, cohort: Cohort, task: Task) -> list[Finding]:
    """Look for the marks of preprocessing before the split in a table of features that was made elsewhere.

    Parameters
    ----------
    features : DataFrame (n_rows, n_columns)
        Column ``recording_id`` or ``participant_id``, and numbers; columns of the cohort's own table are no features.
    cohort : Cohort
    task : Task

    Returns
    -------
    list of Finding
        One for each of `FEATURE_CHECKS` (two where both groups of columns tell the label).

    Raises
    ------
    OpenBrainMassError
        If rows cannot be matched to the cohort, or fewer than ten have a label.

    Notes
    -----
    A pass is no proof: imputation by neighbours, or anything fitted on nearly all people, leaves no mark. The proof is
    `audit_procedure`, which runs the analysis again.
    """
    table = _matched(features, cohort, task)
    dense = _filled(table.X)
    pca = _principal(dense)
    places, kept = _harmonised(dense, table, task)
    regressed = _regressed(dense, table, task, bool(places or kept))
    scaled = None if pca or regressed else _standardised(table.X)
    found = {
        "scaler-before-split": scaled or _standardised(table.X, unit=True),
        "pca-before-split": pca,
        "imputation-before-split": _imputed(table, task),
        "combat-before-split": places,
        "combat-keeps-label": kept,
        "regression-before-split": regressed,
        "selection-before-split": _selected(dense, table, cohort),
    }
    done = [
        Finding(check, "refused", f"{told} Fit it on the training side of each fold.")
        if told
        else Finding(check, "passed", f"No mark of it in {table.X.shape[1]} features of {len(table.X)} recordings.")
        for check, told in found.items()
    ]
    return [*done, *_telling(table, task)]


def _matched(features: pd.DataFrame, cohort: Cohort, task: Task) -> Table:
    key = next((column for column in ("recording_id", "participant_id") if column in features), None)
    if key is None:
        raise OpenBrainMassError(
            f"The features have the columns {some(features.columns)}; recording_id or participant_id was expected, to "
            "tell whose they are. Add it."
        )
    about = cohort.table.assign(_y=task.labels(cohort)).drop_duplicates(key).set_index(key, drop=False)
    ids = features[key].astype(str).to_numpy()
    if strangers := sorted(set(ids) - set(about.index.astype(str))):
        raise OpenBrainMassError(
            f"The features name {some(strangers)}, which cohort {cohort.name} has not. Give the features of this cohort."
        )
    rows = about.loc[list(ids)].reset_index(drop=True)
    known = is_known(rows["_y"].to_numpy())
    columns = [column for column in features.columns if column not in about and column != key]
    numbers = _numbers(features[columns])
    X = numbers.to_numpy(float)[known]
    varied = np.nanstd(X, axis=0) > 1e-12 * (1 + np.abs(np.nanmean(X, axis=0))) if len(X) else np.zeros(0, dtype=bool)
    if known.sum() < _MIN_ROWS or not varied.any():
        raise OpenBrainMassError(
            f"The features have {int(known.sum())} rows with a label and {int(varied.sum())} columns that vary; at least "
            f"{_MIN_ROWS} and 1 were expected. Give the features of the whole cohort."
        )
    y = rows["_y"].to_numpy()[known]
    return Table(X[:, varied], numbers.columns.to_numpy(str)[varied], y, rows[known].reset_index(drop=True))


def _numbers(table: pd.DataFrame) -> pd.DataFrame:
    """The columns that hold numbers, as numbers."""
    words = [column for column, kind in table.dtypes.items() if not pd.api.types.is_numeric_dtype(kind)]
    if words:
        table = table.assign(**{str(column): pd.to_numeric(table[column], errors="coerce") for column in words})
    return table.loc[:, table.notna().any(axis=0).to_numpy()]


def _filled(X: np.ndarray) -> np.ndarray:
    return np.where(np.isnan(X), np.nanmean(X, axis=0), X)


def _chance(distances: np.ndarray) -> float:
    """Log of the chance that standard normal values are all this near 0; only a few count as independent."""
    largest = float(np.max(np.abs(distances)))
    within = np.log(-np.expm1(log_ndtr(-largest) + np.log(2))) if largest > 0 else -np.inf
    return float(within) * min(len(distances), _MOST_WITNESSES)


def _standardised(X: np.ndarray, unit: bool = False) -> str:
    """Says that columns are centred (with `unit`, also scaled) on everybody; empty where they are not."""
    if X.shape[1] < _MIN_TOGETHER:
        return ""
    n = np.isfinite(X).sum(axis=0)
    spread = np.nanstd(X, axis=0)
    low, middle, high = np.nanquantile(X, (0.25, 0.5, 0.75), axis=0)
    # Ranges that end at the same two numbers in every column.
    ends = np.nanmin(X, axis=0), np.nanmax(X, axis=0)
    if all(np.ptp(end) < 1e-6 * np.median(ends[1] - ends[0]) for end in ends):
        return f"Every column runs from {ends[0][0]:.3g} to {ends[1][0]:.3g} over everybody."
    means = np.nanmean(X, axis=0) / spread * np.sqrt(n)
    if _chance(means) < np.log(_P) and (not unit or np.abs(spread - 1).max() < 0.02):
        return f"Every column has the mean 0 over everybody (farthest {np.abs(means).max():.1g} standard errors)."
    # The median's standard error is a quarter larger than the mean's.
    if _chance(middle / spread * np.sqrt(n) / 1.25) < np.log(_P) and (not unit or np.ptp(high - low) < 1e-3):
        return "Every column has the median 0 over everybody."
    return ""


def _principal(X: np.ndarray) -> str:
    """Says that no two columns correlate."""
    if X.shape[1] < 2 or X.shape[1] >= len(X):
        return ""
    correlations = np.corrcoef(X, rowvar=False)[np.triu_indices(X.shape[1], k=1)]
    if _chance(correlations * np.sqrt(len(X))) >= np.log(_P):
        return ""
    return f"No two of {X.shape[1]} columns correlate over everybody (largest {np.abs(correlations).max():.1g})."


def _imputed(table: Table, task: Task) -> str:
    """Says in which columns a repeated value is the mean or median of the others."""
    groups = [np.ones(len(table.y), dtype=bool)]
    if task.kind == "classification":
        groups += [table.y == label for label in (0, 1)]
    filled = np.zeros(len(table.names), dtype=bool)
    for group in groups:
        rows = np.sort(table.X[group], axis=0)
        for place in np.flatnonzero((np.diff(rows, axis=0) == 0).any(axis=0) & ~filled):
            filled[place] = _filled_with_middle(table.X[group, place])
    found = list(table.names[filled])
    if not found:
        return ""
    return f"In {len(found)} columns ({some(found)}) one value comes again and again, and is the mean or median of the rest."


def _filled_with_middle(column: np.ndarray) -> bool:
    values, counts = np.unique(column[np.isfinite(column)], return_counts=True)
    # In a column of few values repetition says nothing.
    if len(values) < _MIN_ROWS or counts.max() < _MIN_REPEATS or (counts > 1).sum() > max(1, len(values) // 10):
        return False
    often = values[counts.argmax()]
    rest = column[np.isfinite(column) & (column != often)]
    tolerance = 1e-5 * rest.std()
    return bool(min(abs(often - rest.mean()), abs(often - np.median(rest))) <= tolerance)


def _witnesses(X: np.ndarray) -> float:
    """How many independent columns these are worth: square of the sum of the covariance's eigenvalues by that of squares."""
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    gram = Z @ Z.T if len(Z) <= Z.shape[1] else Z.T @ Z
    return float(np.trace(gram) ** 2 / (gram**2).sum())


def _too_good(X: np.ndarray, design: np.ndarray, given: np.ndarray | None = None) -> tuple[float, float]:
    """How far a design explains less of X than chance would, after what is given.

    Returns
    -------
    ratio : float
        Explained over expected variance, 1 by chance.
    p : float
        Chance of so little.
    """
    if X.shape[1] < _MIN_TOGETHER:
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
    freedom = min(_witnesses(left[:, good]), len(X) / 2) * extra.shape[1]
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


def design_of(column: pd.Series) -> np.ndarray:
    """A column as numbers (n, 1), or as one column a word but one (n, n_words - 1)."""
    numbers = pd.to_numeric(column, errors="coerce")
    if numbers.notna().sum() == column.notna().sum() and numbers.notna().any():
        return numbers.fillna(numbers.mean()).to_numpy(float)[:, None]
    return pd.get_dummies(pd.Series([code(value) for value in column]), dtype=float).to_numpy()[:, 1:]


def _harmonised(X: np.ndarray, table: Table, task: Task) -> tuple[str, str]:
    """Says that site means agree too well: as they are, and after the label is taken into account."""
    if task.site not in table.about or table.about[task.site].nunique() < 2:
        return "", ""
    sites = design_of(table.about[task.site].map(code))
    label = table.y[:, None].astype(float)
    known = [c for c in ("age", "sex") if c in table.about and c != task.target]
    covariates = np.column_stack([design_of(table.about[c]) for c in known]) if known else np.zeros((len(X), 0))
    plain = min(_too_good(X, sites), _too_good(X, sites, covariates))
    kept = min(_too_good(X, sites, label), _too_good(X, sites, np.column_stack([label, covariates])))
    # Where classes are balanced over sites the two are the same, and nothing of the label need be in it.
    if kept[1] < _P and kept[0] < plain[0] / 2:
        return "", (
            f"Given the label, sites differ {kept[0]:.1g} times as much as by chance, without it {plain[0]:.1g} times: "
            "site effects were removed with everybody's label in the model."
        )
    if plain[1] < _P:
        told = f"Sites differ {plain[0]:.1g} times as much as they would by chance."
        unseen = " Classes are alike over sites, so nobody can see whether the label was kept."
        return told + (unseen if kept[1] < _P else ""), ""
    return "", ""


def _regressed(X: np.ndarray, table: Table, task: Task, places_removed: bool) -> str:
    """Names covariates that explain far less of the features than chance."""
    skipped = {task.target, task.site, *(_ABOUT_PLACES if places_removed else ())}
    found = []
    for column in dict.fromkeys([*task.covariates, "age", "sex", "mean_fd"]):
        if column in skipped or column not in table.about or table.about[column].nunique() < 2:
            continue
        ratio, p = _too_good(X, design_of(table.about[column]))
        if p < _P:
            found.append(f"{column} explains {ratio:.1g} times what it would by chance")
    return f"Of the features {some(found)}." if found else ""


def _selected(X: np.ndarray, table: Table, cohort: Cohort) -> str:
    """Says that every column goes with the label, or that they are just the best edges of everybody."""
    n, p = X.shape
    if p < _MIN_SELECTED:
        return ""
    statistics = _statistics(X, table.y)
    least = float(statistics.min())
    # Columns that go together count once.
    log_p = np.log(2 * t.sf(least, n - 2)) * max(1.0, min(p, _witnesses(X)))
    if log_p >= np.log(_P) or least < t.ppf(0.95, n - 2):
        return ""
    told = f"Each of {p} columns goes with the label over everybody (least |t| {least:.1f})"
    share = _share_of_best(X, table, cohort)
    if share is None:
        return f"{told}, as if chosen by it."
    # Edges that training people chose go with the label in others, too, where there is an effect; but they are not the best.
    return f"{told}; {share:.0%} are the best {p} edges of everybody." if share >= _CHOSEN_SHARE else ""


def _statistics(X: np.ndarray, y: np.ndarray) -> np.ndarray:
    """|t| of each column with the label (n_columns,)."""
    label = (y - y.mean()) / y.std()
    spread = X.std(axis=0)
    r = (X - X.mean(axis=0)).T @ label / len(y) / np.where(spread > 0, spread, np.inf)
    return np.abs(r) * np.sqrt((len(y) - 2) / np.maximum(1 - r**2, 1e-12))


def _share_of_best(X: np.ndarray, table: Table, cohort: Cohort) -> float | None:
    """Share of the columns that are among the cohort's own edges the best ones; None where they are no edges of it."""
    place = {name: row for row, name in enumerate(cohort.recordings["recording_id"])}
    scans = (cohort.bold(place[name]) for name in table.about["recording_id"])
    edges = np.stack([vectorize(fisher_z(correlation(np.asarray(bold, dtype=np.float32)))) for bold in scans])
    edges = np.nan_to_num(edges.astype(np.float64))
    spread = edges.std(axis=0)
    Z = (edges - edges.mean(axis=0)) / np.where(spread > 0, spread, np.inf)
    likeness = np.abs((X - X.mean(axis=0)).T @ Z) / len(X) / X.std(axis=0)[:, None]
    if np.mean(likeness.max(axis=1) > _AN_EDGE) < _CHOSEN_SHARE:
        return None
    best = np.argsort(-_statistics(edges, table.y))[: X.shape[1]]
    return float(np.isin(likeness.argmax(axis=1), best).mean())


def _telling(table: Table, task: Task) -> Iterator[Finding]:
    first = ~table.about["participant_id"].duplicated().to_numpy()
    columns = pd.DataFrame(table.X[first], columns=table.names)
    told = telling_columns(columns, table.y[first], task.kind)
    for check in ("label-as-feature", "derived-score"):
        own = [f"{name} {finding}" for name, (of, finding) in told.items() if of == check]
        if own:
            yield Finding(check, "refused", f"Among the features, {some(own)}. Take it out.")
        else:
            yield Finding(check, "passed", f"None of {len(table.names)} features.")
