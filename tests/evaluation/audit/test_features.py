from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import MaxAbsScaler, MinMaxScaler, RobustScaler, StandardScaler

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.cohort.simulate import simulate_cohort
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.audit.checks import Finding
from openbrainmass.evaluation.audit.features import FEATURE_CHECKS, audit_features

Null = SimpleNamespace


def _refused(findings: list[Finding]) -> set[str]:
    return {finding.check for finding in findings if finding.verdict == "refused"}


@pytest.mark.parametrize("p", [1, 2, 12, 300])
def test_honest_tables_pass_however_their_columns_go_together(null: Null, people: Cohort, p: int) -> None:
    rng = np.random.default_rng(p)
    for _ in range(8):
        shared = rng.normal(size=(60, 3)) @ rng.normal(size=(3, p))
        X = rng.normal() + rng.uniform(0.2, 5) * shared + rng.normal(size=(60, p))
        assert _refused(audit_features(null.features_of(X, people), people, null.task)) == set()


def test_real_group_site_and_age_effects_are_no_leak(null: Null, people: Cohort) -> None:
    y = null.task.labels(people)
    table = people.table
    rng = np.random.default_rng(1)
    sites = pd.factorize(table["site"])[0]
    X = rng.normal(size=(60, 80)) + 0.8 * y[:, None] * (rng.random(80) < 0.3) + rng.normal(size=(3, 80))[sites]
    X = X + 0.05 * table[["age"]].to_numpy() * rng.normal(size=80)
    findings = audit_features(null.features_of(X, people), people, null.task)
    assert _refused(findings) == set()
    assert {finding.check for finding in findings} == set(FEATURE_CHECKS)


def test_the_marks_survive_a_table_of_six_digits_and_another_order(null: Null, people: Cohort) -> None:
    rng = np.random.default_rng(2)
    X = rng.normal(3, 2, size=(60, 30))
    X = ((X - X.mean(axis=0)) / X.std(axis=0)).round(6)
    table = null.features_of(X, people).sample(frac=1, random_state=0)
    assert _refused(audit_features(table, people, null.task)) == {"scaler-before-split"}


def test_features_of_strangers_or_of_nobody_are_an_error(null: Null, people: Cohort) -> None:
    table = null.features_of(np.random.default_rng(0).normal(size=(60, 3)), people)
    with pytest.raises(OpenBrainMassError, match="recording_id or participant_id was expected"):
        audit_features(table.drop(columns="recording_id"), people, null.task)
    with pytest.raises(OpenBrainMassError, match="name nobody, which cohort null has not"):
        audit_features(table.assign(recording_id="nobody"), people, null.task)
    with pytest.raises(OpenBrainMassError, match="at least 10 and 1 were expected"):
        audit_features(table.head(5), people, null.task)


def test_edges_that_training_people_chose_pass_where_the_effect_is_real(null: Null) -> None:
    cohort = simulate_cohort(n_people=120, n_sites=2, n_rois=30, n_volumes=60, effect=0.8, seed=1)
    y = null.task.labels(cohort)
    X = null.edges_of(cohort)

    def chosen(rows: np.ndarray) -> pd.DataFrame:
        gap = X[rows][y[rows] == 1].mean(axis=0) - X[rows][y[rows] == 0].mean(axis=0)
        columns = np.argsort(-np.abs(gap / X[rows].std(axis=0)))[:15]
        return null.features_of(X[:, columns], cohort)

    everybody, some = (audit_features(chosen(np.arange(n)), cohort, null.task) for n in (120, 80))
    assert "selection-before-split" in _refused(everybody)
    assert "selection-before-split" not in _refused(some)


def _unlabelled(people: Cohort, n: int) -> Cohort:
    dx = people.participants["dx"].mask(np.arange(len(people.participants)) < n)
    return Cohort(people.name, people.recordings, people.participants.assign(dx=dx), people.atlas, people.read)


def _raw(n: int = 60, p: int = 40) -> np.ndarray:
    rng = np.random.default_rng(3)
    return 3 + rng.normal(size=(n, p)) @ (np.eye(p) + 0.1 * rng.normal(size=(p, p)))


def test_marks_over_everybody_are_seen_though_some_have_no_label(null: Null, people: Cohort) -> None:
    cohort, X = _unlabelled(people, 6), _raw()
    sites = pd.get_dummies(people.table["site"]).to_numpy(float)
    age = np.column_stack([np.ones(60), people.table["age"]])
    gaps = np.random.default_rng(4).random(X.shape) < 0.1
    leaks = {
        "scaler-before-split": np.asarray(StandardScaler().fit_transform(X)),
        "pca-before-split": np.asarray(PCA(6, random_state=0).fit_transform(X)),
        "imputation-before-split": np.where(gaps, np.nanmean(np.where(gaps, np.nan, X), axis=0), X),
        "combat-before-split": X + 5 - sites @ np.linalg.lstsq(sites, X, rcond=None)[0],
        "regression-before-split": X - age @ np.linalg.lstsq(age, X, rcond=None)[0],
    }
    for check, table in leaks.items():
        assert _refused(audit_features(null.features_of(table, cohort), cohort, null.task)) == {check}
    ends = np.asarray(MinMaxScaler().fit_transform(X))
    assert _refused(audit_features(null.features_of(ends, cohort), cohort, null.task)) == {"scaler-before-split"}
    assert _refused(audit_features(null.features_of(X, cohort), cohort, null.task)) == set()


def test_raw_columns_hide_no_others(null: Null, people: Cohort) -> None:
    X = _raw()
    raw = X[:, :1]
    for scaler in (StandardScaler(), MinMaxScaler(), RobustScaler(), MaxAbsScaler()):
        mixed = np.column_stack([np.asarray(scaler.fit_transform(X)), raw])
        assert _refused(audit_features(null.features_of(mixed, people), people, null.task)) == {"scaler-before-split"}
    mixed = np.column_stack([np.asarray(PCA(10, random_state=0).fit_transform(X)), raw])
    assert _refused(audit_features(null.features_of(mixed, people), people, null.task)) == {"pca-before-split"}


@pytest.mark.parametrize(
    "coarse",
    [
        lambda X: X > 0.3,
        lambda X: np.sign(X),
        lambda X: np.clip(X, -1, 1),
        lambda X: np.clip(np.round(X) + 3, 1, 5),
        lambda X: np.maximum(X, 0),
        lambda X: np.eye(4)[np.argmax(X[:, :4], axis=1)],
        lambda X: np.sign(X)[:, :3] * np.argsort(np.argsort(X[:, :3], axis=1), axis=1),
    ],
    ids=["binary", "signs", "clipped", "ratings", "rectified", "one-hot", "ranks"],
)
def test_columns_of_few_values_are_no_scaled_ones(
    null: Null, people: Cohort, coarse: Callable[[np.ndarray], np.ndarray]
) -> None:
    for seed in range(5):
        X = np.asarray(coarse(np.random.default_rng(seed).normal(size=(60, 12))), dtype=float)
        assert _refused(audit_features(null.features_of(X, people), people, null.task)) == set()


def test_rows_of_one_class_are_an_error(null: Null, people: Cohort) -> None:
    table = null.features_of(_raw(), people)[null.task.labels(people) == 1]
    with pytest.raises(OpenBrainMassError, match="rows of one class only \\(patient\\)"):
        audit_features(table, people, null.task)


def test_words_are_looked_through_for_the_label_and_named(null: Null, people: Cohort) -> None:
    y = null.task.labels(people)
    table = null.features_of(_raw(), people)
    findings = audit_features(table.assign(group=np.where(y == 1, "A", "B")), people, null.task)
    assert _refused(findings) == {"label-as-feature"}
    findings = audit_features(table.assign(hand=np.where(np.arange(60) % 3, "left", "right")), people, null.task)
    told = next(finding for finding in findings if finding.check == "label-as-feature")
    assert told.verdict == "passed" and "no numbers are in hand" in told.finding
    with pytest.raises(OpenBrainMassError, match="column e0 of the features holds numbers and 'none'"):
        audit_features(table.assign(e0=["none", *table["e0"].iloc[1:]]), people, null.task)
    with pytest.raises(OpenBrainMassError, match="infinite values in e1;"):
        audit_features(table.assign(e1=[np.inf, *table["e1"].iloc[1:]]), people, null.task)
