"""Marks that preprocessing of everybody together leaves in a table of features.

What was fitted on training people only fits them and, but for chance, nobody else. A table whose columns have the mean
0 to the last digit over *everybody*, or correlate with nothing, or whose site means agree far better than chance allows,
was made with the test people. Each test asks how likely so perfect a fit would be by chance, and refuses below one in a
million. Those that need no label look at all rows of the table, too: people without one were preprocessed with the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Self

import numpy as np
import pandas as pd
from scipy.stats import t

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.connectivity import correlation, fisher_z, vectorize
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.audit.checks import Finding, some
from openbrainmass.evaluation.audit.labels import telling_columns
from openbrainmass.evaluation.audit.marks import (
    MIN_VALUES,
    UNLIKELY,
    filled,
    imputed,
    standardised,
    too_good,
    uncorrelated,
    witnesses,
)
from openbrainmass.evaluation.tasks import Task, code, is_known

FEATURE_CHECKS = (
    "scaler-before-split", "pca-before-split", "imputation-before-split", "combat-before-split", "combat-keeps-label",
    "regression-before-split", "selection-before-split", "label-as-feature", "derived-score",
)  # fmt: skip
"""What `audit_features` looks for."""

_MIN_SELECTED = 10
_CHOSEN_SHARE, _AN_EDGE = 0.9, 0.98
_ABOUT_PLACES = ("tr", "n_volumes", "dataset")


class Table(NamedTuple):
    """Features of recordings, and their labels."""

    X: np.ndarray
    names: np.ndarray
    y: np.ndarray
    about: pd.DataFrame

    def part(self, rows: np.ndarray) -> Self:
        """Some rows (n_rows,) of bool, with the columns that vary there."""
        X = self.X[rows]
        known = np.isfinite(X).sum(axis=0) > 1
        varied = np.zeros(X.shape[1], dtype=bool)
        kept = X[:, known]
        varied[known] = np.nanstd(kept, axis=0) > 1e-12 * (1 + np.abs(np.nanmean(kept, axis=0)))
        about = self.about[rows].reset_index(drop=True)
        return type(self)(X[:, varied], self.names[varied], self.y[rows], about)


def audit_features(features: pd.DataFrame, cohort: Cohort, task: Task) -> list[Finding]:
    """Look for the marks of preprocessing before the split in a table of features that was made elsewhere.

    Parameters
    ----------
    features : DataFrame (n_rows, n_columns)
        Column ``recording_id`` or ``participant_id``, and numbers; columns of the cohort's own table are no features.
        Columns of words are only looked through for the label.
    cohort : Cohort
    task : Task

    Returns
    -------
    list of Finding
        One for each of `FEATURE_CHECKS` (two where both groups of columns tell the label).

    Raises
    ------
    OpenBrainMassError
        If rows cannot be matched to the cohort, fewer than ten have a label, all have the same one, or a column holds
        infinite values, or numbers and words.

    Notes
    -----
    A pass is no proof: imputation by neighbours, or anything fitted on nearly all people, leaves no mark; nor do scaled
    ends in fewer than eight columns. The proof is `audit_procedure`, which runs the analysis again.
    """
    everybody, words = _matched(features, cohort, task)
    known = is_known(everybody.y)
    labelled = _labelled(everybody.part(known), task)
    marks = [_marks(labelled, task)]
    if not known.all():
        marks.append(_marks(everybody.part(np.ones(len(known), dtype=bool)), task))
    found = {check: next((own[check] for own in marks if own[check]), "") for check in marks[0]}
    if found["combat-keeps-label"]:
        found["combat-before-split"] = ""
    found["selection-before-split"] = _selected(filled(labelled.X), labelled, cohort)
    done = [
        Finding(check, "refused", f"{told} Fit it on the training side of each fold.")
        if told
        else Finding(check, "passed", f"No mark of it in {labelled.X.shape[1]} features of {len(known)} recordings.")
        for check, told in found.items()
    ]
    return [*done, *_telling(labelled, words[known].reset_index(drop=True), task)]


def _marks(table: Table, task: Task) -> dict[str, str]:
    """What the checks that need no label say of some rows; empty where there is no mark."""
    dense = filled(table.X)
    pca = uncorrelated(dense)
    places, kept = _harmonised(dense, table, task)
    regressed = _regressed(dense, table, task, bool(places or kept))
    scaled = None if pca or regressed else standardised(table.X)
    return {
        "scaler-before-split": scaled or standardised(table.X, unit=True),
        "pca-before-split": pca,
        "imputation-before-split": _imputed(table, task),
        "combat-before-split": places,
        "combat-keeps-label": kept,
        "regression-before-split": regressed,
    }


def _matched(features: pd.DataFrame, cohort: Cohort, task: Task) -> tuple[Table, pd.DataFrame]:
    """The columns of numbers of all rows, and those of words."""
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
    columns = [column for column in features.columns if column not in about and column != key]
    numbers, words = _numbers(features[columns].reset_index(drop=True))
    everybody = Table(numbers.to_numpy(float), numbers.columns.to_numpy(str), rows["_y"].to_numpy(), rows)
    return everybody, words


def _labelled(table: Table, task: Task) -> Table:
    """The same table, if there is enough in it to be looked at."""
    if len(table.y) < MIN_VALUES or not len(table.names):
        raise OpenBrainMassError(
            f"The features have {len(table.y)} rows with a label and {len(table.names)} columns of numbers that vary; at "
            f"least {MIN_VALUES} and 1 were expected. Give the features of the whole cohort."
        )
    if len(np.unique(table.y)) < 2:
        named = task.positive_name if table.y[0] else task.negative_name
        held = f"one class only ({named})" if task.kind == "classification" else "one value of the label only"
        raise OpenBrainMassError(
            f"The features have rows of {held}; both classes, or several values, were expected. Give the features of the "
            "whole cohort."
        )
    return table


def _numbers(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The columns that hold numbers, as numbers, and those that hold words; columns without any value are neither."""
    table = table.loc[:, table.notna().any(axis=0).to_numpy()]
    wordy = np.array([not pd.api.types.is_numeric_dtype(kind) for kind in table.dtypes], dtype=bool)
    read = table.loc[:, wordy].apply(pd.to_numeric, errors="coerce")
    n_read, n_values = read.notna().sum(), table.loc[:, wordy].notna().sum()
    for name in read.columns[(n_values / 2 < n_read) & (n_read < n_values)]:
        odd = table[name][read[name].isna() & table[name].notna()].iloc[0]
        raise OpenBrainMassError(
            f"The column {name} of the features holds numbers and {str(odd)!r}; numbers were expected. Write n/a where one "
            "is missing."
        )
    words = table[read.columns[n_read < n_values]]
    numbers = table.drop(columns=words.columns).astype(float)
    if endless := [str(name) for name in numbers if np.isinf(numbers[name].to_numpy()).any()]:
        raise OpenBrainMassError(
            f"The features have infinite values in {some(endless)}; numbers were expected. Write n/a where there is none."
        )
    return numbers, words


def _imputed(table: Table, task: Task) -> str:
    groups = [np.ones(len(table.y), dtype=bool)]
    if task.kind == "classification":
        groups += [table.y == label for label in (0, 1)]
    found = list(table.names[imputed(table.X, groups)])
    if not found:
        return ""
    return f"In {len(found)} columns ({some(found)}) one value comes again and again, and is the mean or median of the rest."


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
    known = [c for c in ("age", "sex") if c in table.about and c != task.target]
    covariates = np.column_stack([design_of(table.about[c]) for c in known]) if known else np.zeros((len(X), 0))
    plain = min(too_good(X, sites), too_good(X, sites, covariates))
    kept = 1.0, 1.0
    if is_known(table.y).all():
        label = table.y[:, None].astype(float)
        kept = min(too_good(X, sites, label), too_good(X, sites, np.column_stack([label, covariates])))
    # Where classes are balanced over sites the two are the same, and nothing of the label need be in it.
    if kept[1] < UNLIKELY and kept[0] < plain[0] / 2:
        return "", (
            f"Given the label, sites differ {kept[0]:.1g} times as much as by chance, without it {plain[0]:.1g} times: "
            "site effects were removed with everybody's label in the model."
        )
    if plain[1] < UNLIKELY:
        told = f"Sites differ {plain[0]:.1g} times as much as they would by chance."
        unseen = " Classes are alike over sites, so nobody can see whether the label was kept."
        return told + (unseen if kept[1] < UNLIKELY else ""), ""
    return "", ""


def _regressed(X: np.ndarray, table: Table, task: Task, places_removed: bool) -> str:
    """Names covariates that explain far less of the features than chance."""
    skipped = {task.target, task.site, *(_ABOUT_PLACES if places_removed else ())}
    found = []
    for column in dict.fromkeys([*task.covariates, "age", "sex", "mean_fd"]):
        if column in skipped or column not in table.about or table.about[column].nunique() < 2:
            continue
        ratio, p = too_good(X, design_of(table.about[column]))
        if p < UNLIKELY:
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
    log_p = np.log(2 * t.sf(least, n - 2)) * max(1.0, min(p, witnesses(X)))
    if log_p >= np.log(UNLIKELY) or least < t.ppf(0.95, n - 2):
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


def _telling(table: Table, words: pd.DataFrame, task: Task) -> Iterator[Finding]:
    """Looks for the label among numbers and words; one row a person."""
    first = ~table.about["participant_id"].duplicated().to_numpy()
    columns = pd.concat([pd.DataFrame(table.X, columns=table.names), words], axis=1)[first].reset_index(drop=True)
    told = telling_columns(columns, table.y[first], task.kind)
    unread = f"; no numbers are in {some(words.columns)}, of which nothing else was looked at" if words.shape[1] else ""
    for check in ("label-as-feature", "derived-score"):
        own = [f"{name} {finding}" for name, (of, finding) in told.items() if of == check]
        if own:
            yield Finding(check, "refused", f"Among the features, {some(own)}. Take it out.")
        else:
            yield Finding(check, "passed", f"None of {columns.shape[1]} features{unread}.")
