"""How much a single column tells of the label."""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import norm, pearsonr
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from openbrainmass.evaluation.tasks import code

_N_FOLDS = 5


def auc_error(auc: float, n_positive: int, n_negative: int) -> float:
    """Standard error of an AUC; at 0.5 exactly that of the null (Hanley and McNeil 1982)."""
    auc = min(max(auc, 1e-9), 1 - 1e-9)
    q_positive, q_negative = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc) + (n_positive - 1) * (q_positive - auc**2) + (n_negative - 1) * (q_negative - auc**2)
    return float(np.sqrt(max(spread, 0.0) / (n_positive * n_negative)))


def auc_interval(y: np.ndarray, score: np.ndarray) -> tuple[float, float, float]:
    """AUC and its 95 % interval.

    Parameters
    ----------
    y : ndarray (n,) of int
        0 or 1.
    score : ndarray (n,)
    """
    auc = float(roc_auc_score(y, score))
    half = float(norm.ppf(0.975)) * auc_error(auc, int(y.sum()), int(len(y) - y.sum()))
    return auc, max(0.0, auc - half), min(1.0, auc + half)


def correlation_interval(y: np.ndarray, score: np.ndarray) -> tuple[float, float, float]:
    """Pearson's r and its 95 % interval (Fisher's z)."""
    if np.ptp(score) == 0:
        return 0.0, 0.0, 0.0
    found = pearsonr(y, score)
    low, high = found.confidence_interval(0.95)
    return float(found.statistic), float(low), float(high)


def told_alone(column: pd.Series, y: np.ndarray, kind: str, seed: int = 0) -> tuple[float, float, float]:
    """What one column tells of the label of people it was not fitted on.

    Parameters
    ----------
    column : Series (n_people,)
        Words, or numbers of which few values are treated as words; missing is a value of its own.
    y : ndarray (n_people,)
        Label of each person.
    kind : {"classification", "regression"}
    seed : int
        Of the five folds.

    Returns
    -------
    value, low, high : float
        AUC (classification) or Pearson's r (regression) of out-of-fold predictions, and its 95 % interval.
    """
    design = _design(column)
    if kind == "regression":
        folds = KFold(_N_FOLDS, shuffle=True, random_state=seed)
        score = cross_val_predict(make_pipeline(design[1], Ridge()), design[0], y, cv=folds)
        return correlation_interval(y, score)
    smallest = int(min(y.sum(), len(y) - y.sum()))
    folds = StratifiedKFold(max(2, min(_N_FOLDS, smallest)), shuffle=True, random_state=seed)
    model = make_pipeline(design[1], LogisticRegression())
    return auc_interval(y, cross_val_predict(model, design[0], y, cv=folds, method="decision_function"))


def _design(column: pd.Series) -> tuple[np.ndarray, OneHotEncoder | StandardScaler]:
    """Values as a column or two, and what makes features of them inside a fold."""
    numbers = pd.to_numeric(column, errors="coerce")
    known = numbers.notna()
    wordy = not known[column.notna()].all() or column.nunique() <= max(2, len(column) // 10)
    if wordy or not known.any():
        values = np.array([code(value) for value in column], dtype=object)[:, None]
        return values, OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    filled = numbers.fillna(numbers.median()).to_numpy(float)
    # Both ends of a range can tell the label, hence the square.
    middle = (filled - np.median(filled)) / (filled.std() + 1e-12)
    return np.column_stack([middle, middle**2, ~known]), StandardScaler()
