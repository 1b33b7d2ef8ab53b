"""Where the label stands in sight: columns, ids and file names that tell it, and what site, length, TR, motion tell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
from scipy.stats import mannwhitneyu, pearsonr, rankdata
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.evaluation.audit.association import auc_interval, told_alone
from openbrainmass.evaluation.audit.checks import Finding, some
from openbrainmass.evaluation.tasks import Task, code, is_known

FLOOR_COLUMNS = {
    "site-predicts-label": "site",
    "length-predicts-label": "n_volumes",
    "tr-predicts-label": "tr",
    "motion-predicts-label": "mean_fd",
}
"""Checks that print a floor, and the column that each looks at (the task's own for sites)."""

LABEL_CHECKS = ("label-as-feature", "derived-score", "file-name-spells-label", *FLOOR_COLUMNS)
"""What `audit_labels` looks for."""

# Columns that are not about the person, and those that have a check of their own.
_NOT_ABOUT_PEOPLE = frozenset(
    {"recording_id", "participant_id", "session", "run", "tr", "n_volumes", "dead_rois", "digest", "file", "shard"}
    | {"site", "dataset", "mean_fd", "typicality", "family_id", "n_censored", "n_acquired"}
)
_TELLING_AUC, _TELLING_R, _TELLING_P = 0.95, 0.98, 1e-3
_FEW_CODES = 12
_FEWEST_NUMBERS = 5


def people_table(cohort: Cohort, task: Task) -> tuple[pd.DataFrame, np.ndarray]:
    """The people whose label is known, one row each (the first recording's), and their labels (n_people,)."""
    y = task.labels(cohort)
    known = is_known(y)
    table = cohort.table[known].assign(_label=y[known])
    table = table.drop_duplicates("participant_id").reset_index(drop=True)
    return table.drop(columns="_label"), table["_label"].to_numpy()


def audit_labels(cohort: Cohort, task: Task) -> list[Finding]:
    """Look for the label in the tables of a cohort, and measure what nuisances tell of it.

    Parameters
    ----------
    cohort : Cohort
    task : Task

    Returns
    -------
    list of Finding
        A column that tells the label is refused where it is among the task's covariates; elsewhere it is named. Where
        there are too few people to say anything, nothing is checked.
    """
    y = people_table(cohort, task)[1]
    n_fewest = int(min(np.sum(y == 1), np.sum(y == 0))) if task.kind == "classification" else len(y)
    least = 2 if task.kind == "classification" else _FEWEST_NUMBERS
    if n_fewest < least:
        of = " of each class" if task.kind == "classification" else ""
        told = f"At least {least} people{of} are needed, and {cohort.name} has only {n_fewest}. Give more people."
        return [Finding(check, "not checked", told) for check in LABEL_CHECKS]
    return [*audit_columns(cohort, task), *audit_names(cohort, task), *audit_floors(cohort, task)]


def telling_columns(table: pd.DataFrame, y: np.ndarray, kind: str) -> dict[str, tuple[str, str]]:
    """Columns that tell the label nearly without fault: what `label-as-feature` and `derived-score` look for.

    Parameters
    ----------
    table : DataFrame (n_people, n_columns)
    y : ndarray (n_people,)
    kind : {"classification", "regression"}

    Returns
    -------
    dict of str to (str, str)
        For each such column the check and the finding.
    """
    limit = _TELLING_P / max(1, table.shape[1])
    suspects = table.columns[_suspect(table, y, kind)]
    found = {name: _told(table[name], y, kind, limit) for name in suspects}
    return {name: told for name, told in found.items() if told is not None}


def _suspect(table: pd.DataFrame, y: np.ndarray, kind: str) -> np.ndarray:
    """Which columns are worth a look (n_columns,): all but full columns of numbers that hardly rank people by label."""
    suspect = np.ones(table.shape[1], dtype=bool)
    if kind == "regression":
        return suspect
    plain = np.array([pd.api.types.is_float_dtype(one) for one in table.dtypes]) & table.notna().all(axis=0).to_numpy()
    ranks = rankdata(table.loc[:, plain].to_numpy(float), axis=0)
    n_positive = int((y == 1).sum())
    above = ranks[y == 1].sum(axis=0) - n_positive * (n_positive + 1) / 2
    auc = above / max(1, n_positive * (len(y) - n_positive))
    suspect[plain] = np.maximum(auc, 1 - auc) >= _TELLING_AUC
    return suspect


def _told(column: pd.Series, y: np.ndarray, kind: str, limit: float) -> tuple[str, str] | None:
    numbers = pd.to_numeric(column, errors="coerce").replace([np.inf, -np.inf], np.nan)
    known = column.notna().to_numpy()
    if kind == "regression":
        numeric = numbers.notna().to_numpy()
        return _correlated(numbers.to_numpy(float)[numeric], y[numeric], limit)
    if 0 < known.sum() < len(y) and _unlikely(known.astype(float), y, limit) and _auc(known, y) >= _TELLING_AUC:
        return "derived-score", f"is known for one class only (AUC {_auc(known, y):.2f})"
    words = np.array([code(value) for value in column])
    n_codes = len(set(words[known]))
    if n_codes < 2 or len(set(y[known])) < 2:
        return None
    if numbers[known].notna().all() and n_codes > 2:
        values = numbers.to_numpy(float)[known]
    elif n_codes <= _FEW_CODES:
        shares = pd.Series(y[known]).groupby(words[known]).transform("mean")
        values = shares.to_numpy(float)
    else:
        return None
    auc = _auc(values, y[known])
    if auc < _TELLING_AUC or not _unlikely(values, y[known], limit):
        return None
    check = "label-as-feature" if n_codes == 2 else "derived-score"
    return check, f"tells the classes apart (AUC {auc:.2f})"


def _correlated(values: np.ndarray, y: np.ndarray, limit: float) -> tuple[str, str] | None:
    if len(values) < 3 or np.ptp(values) == 0 or np.ptp(y) == 0:
        return None
    found = pearsonr(values, y)
    if abs(found.statistic) < _TELLING_R or found.pvalue > limit:
        return None
    check = "label-as-feature" if abs(found.statistic) > 1 - 1e-9 else "derived-score"
    return check, f"follows the label (r {found.statistic:.3f})"


def _auc(values: np.ndarray, y: np.ndarray) -> float:
    """AUC of values whichever way they point."""
    auc = float(roc_auc_score(y, values))
    return max(auc, 1 - auc)


def _unlikely(values: np.ndarray, y: np.ndarray, limit: float) -> bool:
    return bool(mannwhitneyu(values[y == 1], values[y == 0]).pvalue < limit)


def audit_columns(cohort: Cohort, task: Task) -> Iterator[Finding]:
    """Look for columns of the tables that are the label under another name, or were made from it."""
    table, y = people_table(cohort, task)
    skipped = (_NOT_ABOUT_PEOPLE - set(task.covariates)) | {task.target, task.site}
    about = table[[column for column in table.columns if column not in skipped]]
    told = telling_columns(about, y, task.kind)
    for check in ("label-as-feature", "derived-score"):
        own = {name: finding for name, (of, finding) in told.items() if of == check}
        used = [f"{name} {finding}" for name, finding in own.items() if name in task.covariates]
        idle = [f"{name} {finding}" for name, finding in own.items() if name not in task.covariates]
        if used:
            told_here = f"Among the covariates of the task, {some(used)}. Take it out of them."
            yield Finding(check, "refused", told_here)
        elif idle:
            yield Finding(check, "floor", f"In the table, though no covariate, {some(idle)}: no model may read it.")
        else:
            yield Finding(check, "passed", f"None of {about.shape[1]} columns of people.")


def audit_names(cohort: Cohort, task: Task) -> Iterator[Finding]:
    """Look for words in ids and file names that spell the label, and measure what pieces of them tell."""
    table, y = people_table(cohort, task)
    if task.kind == "regression":
        yield Finding(
            "file-name-spells-label", "not checked", "The label is a number; names are read for classes only."
        )
        return
    columns = [column for column in ("participant_id", "recording_id", "file") if column in table]
    texts = table[columns].fillna("").astype(str).agg(" ".join, axis=1).str.lower().to_numpy()
    # Where the place tells the label that is the floor of the site's check, not a fault of the names.
    places = [column for column in (task.site, "dataset") if column in table]
    known = _tokens(" ".join(str(value).lower() for column in places for value in table[column].unique()))
    if spelled := _spelling_tokens(texts, y, task, known):
        told = f"The ids or file names of {cohort.name} spell the label: {some(spelled)}. Rename them before any model sees them."
        yield Finding("file-name-spells-label", "refused", told)
        return
    auc, low, high = _from_characters(texts, y)
    told = f"Pieces of ids and file names tell the label with an AUC of {auc:.2f} [{low:.2f}, {high:.2f}]."
    # Ids that were given in blocks of one class tell it, too, and nobody can rename a public dataset.
    yield Finding("file-name-spells-label", "floor" if low > 0.5 else "passed", told)


def _spelling_tokens(texts: np.ndarray, y: np.ndarray, task: Task, places: set[str]) -> list[str]:
    """Words in names that go with a class, or that are one of the task's own words for the class they stand with."""
    tokens = [_tokens(text) for text in texts]
    vocabulary = sorted(set().union(*tokens) - places)
    has = np.array([[token in one for token in vocabulary] for one in tokens])
    share = {label: has[y == label].mean(axis=0) for label in (0, 1)}
    own = {1: _words((*task.positive, task.positive_name)), 0: _words((*task.negative, task.negative_name))}
    spelled = []
    for number, token in enumerate(vocabulary):
        here = has[:, number]
        named = any(token in own[label] and not share[1 - label][number] for label in (0, 1)) and here.sum() >= 3
        # The AUC of having the word or not.
        tells = 0.5 + abs(share[1][number] - share[0][number]) / 2 >= _TELLING_AUC
        if named or (tells and _unlikely(here.astype(float), y, _TELLING_P / len(vocabulary))):
            spelled.append(f"{token!r} in {here.sum()} names, {y[here].mean():.0%} of them {task.positive_name}")
    return spelled


def _tokens(text: str) -> set[str]:
    """Words and numbers of a name, and how its numbers begin: 1001 and 2001 are a usual way to write a class."""
    numbers = re.findall(r"\d+", text)
    return {*re.findall(r"[a-z]+", text), *numbers, *(f"{number[:n]}..." for number in numbers for n in (1, 2))}


def _words(names: tuple[str, ...]) -> set[str]:
    # A code such as 1 stands in every id.
    return {word for name in names for word in re.findall(r"[a-z]+", name.lower()) if len(word) > 1}


def _from_characters(texts: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    pieces = CountVectorizer(analyzer="char_wb", ngram_range=(2, 4), binary=True, max_features=5000)
    model = make_pipeline(pieces, LogisticRegression(solver="liblinear"))
    n_folds = max(2, min(5, int(min(y.sum(), len(y) - y.sum()))))
    folds = StratifiedKFold(n_folds, shuffle=True, random_state=0)
    return auc_interval(y, cross_val_predict(model, texts, y, cv=folds, method="decision_function"))


def audit_floors(cohort: Cohort, task: Task, checks: Iterable[str] = tuple(FLOOR_COLUMNS)) -> Iterator[Finding]:
    """Measure what site, length, repetition time and motion tell of the label, each by itself."""
    table, y = people_table(cohort, task)
    for check in checks:
        usual = FLOOR_COLUMNS[check]
        column = task.site if check == "site-predicts-label" else usual
        if column not in table or not table[column].notna().any() or column == task.target:
            yield Finding(check, "not checked", f"Cohort {cohort.name} has no column {column}. Add it.")
            continue
        value, low, high = told_alone(table[column], y, task.kind)
        measure = "an AUC" if task.kind == "classification" else "a correlation"
        none = 0.5 if task.kind == "classification" else 0.0
        told = f"{column} alone tells the label with {measure} of {value:.2f} [{low:.2f}, {high:.2f}]."
        yield Finding(check, "floor" if low > none else "passed", told)
