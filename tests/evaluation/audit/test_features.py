from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

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
