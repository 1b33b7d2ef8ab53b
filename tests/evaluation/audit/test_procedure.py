from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.audit.procedure import PROCEDURE_CHECKS, audit_procedure

Null = SimpleNamespace
FOLD = [(np.arange(20), np.arange(20, 30))]


def test_a_procedure_that_is_not_deterministic_is_refused_with_a_remedy(null: Null) -> None:
    draws = itertools.count()
    with pytest.raises(OpenBrainMassError, match="differ in scores.*Fix its seeds"):
        audit_procedure(lambda X, y, train, test: X[test, 0] + next(draws), *null.noise(30), FOLD)


def test_a_wrong_number_of_scores_is_an_error(null: Null) -> None:
    with pytest.raises(OpenBrainMassError, match="20 scores for 10 test people"):
        audit_procedure(lambda X, y, train, test: X[train, 0], *null.noise(30), FOLD)


def test_a_procedure_cannot_hide_by_changing_what_it_is_given_or_by_reusing_its_answer(null: Null) -> None:
    buffer = np.zeros(10)

    def reuses(X: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        buffer[:] = X[test, 0] - X[:, 0].mean()
        X[:], y[:] = 0, 0
        return buffer

    found = audit_procedure(reuses, *null.noise(30), FOLD)
    assert {finding.check for finding in found if finding.verdict == "refused"} == {"statistics-of-test"}
    assert {finding.check for finding in found} == set(PROCEDURE_CHECKS)


def test_numbers_as_labels_are_audited_too(null: Null) -> None:
    X, _ = null.noise(30)
    y = np.random.default_rng(0).normal(size=30)

    def honest(X: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        return X[test, :3] @ np.linalg.lstsq(X[train, :3], y[train], rcond=None)[0]

    def leaky(X: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        return X[test, :3] @ np.linalg.lstsq(X[train, :3], y[train], rcond=None)[0] + y.mean()

    assert not [finding for finding in audit_procedure(honest, X, y, FOLD) if finding.verdict == "refused"]
    assert [finding.check for finding in audit_procedure(leaky, X, y, FOLD) if finding.verdict == "refused"]
