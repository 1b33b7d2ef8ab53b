from __future__ import annotations

import time
import tracemalloc
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.datasets import make_classification
from sklearn.ensemble import RandomForestClassifier
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC, OneClassSVM
from sklearn.utils.estimator_checks import check_estimator

from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation import probes
from openbrainmass.evaluation.probes import (
    KERNEL_RIDGE,
    PROBES,
    REGRESSORS,
    LogisticProbe,
    PrototypeProbe,
    SupportVectorProbe,
    decision_values,
    make_probe,
    unit_rows,
)


def data(n: int, p: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    X = rng.normal(size=(n, p))
    X[:, : p // 4] += 0.5 * y[:, None]
    return X, y


@pytest.mark.parametrize(("n", "p"), [(40, 300), (60, 20), (30, 30)])
@pytest.mark.parametrize("C", [1e-3, 1.0])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_logistic_has_the_solution_of_scikit_learn(n: int, p: int, C: float, class_weight: str | None) -> None:
    X, y = data(n, p)
    y = np.where(np.arange(n) < n // 3, 1, y)
    ours = LogisticProbe(C=C, class_weight=class_weight).fit(X, y)
    theirs = LogisticRegression(C=C, class_weight=class_weight, tol=1e-10, max_iter=10000).fit(X, y)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-4)
    np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), atol=1e-4)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-4)


def test_logistic_in_single_precision_and_with_repeated_rows() -> None:
    X, y = data(40, 2000)
    X[7], y[7] = X[5], y[5]
    ours = LogisticProbe(C=1e-3).fit(X.astype(np.float32), y).decision_function(X.astype(np.float32))
    theirs = LogisticRegression(C=1e-3, tol=1e-10, max_iter=10000).fit(X, y).decision_function(X)
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_rows_that_are_alike_are_ties(dtype: type, order: Literal["C", "F"]) -> None:
    for p in range(2, 24):
        X, y = data(40, p, seed=p)
        probe = LogisticProbe().fit(X.astype(dtype), y)
        for n in (7, 20, 37, 101):
            same = np.asarray(np.tile(X[3].astype(dtype), (n, 1)), order=order)
            assert len(np.unique(probe.decision_function(same))) == 1


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_many_rows_are_solved_without_a_double_copy(monkeypatch: pytest.MonkeyPatch, class_weight: str | None) -> None:
    monkeypatch.setattr(probes, "MANY", 1e8)
    rng = np.random.default_rng(0)
    y = (rng.random(6000) < 0.3).astype(int)
    X = rng.standard_normal((6000, 200), dtype=np.float32)
    X[:, :20] += np.float32(0.2) * y[:, None].astype(np.float32)
    X += 10  # without centring L-BFGS would stop far from the solution
    tracemalloc.start()
    ours = LogisticProbe(class_weight=class_weight).fit(X, y).decision_function(X)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 1.5 * X.size * 4
    solver = LogisticRegression(C=0.1, class_weight=class_weight, solver="newton-cholesky", tol=1e-10)
    theirs = solver.fit(X.astype(np.float64), y).decision_function(X.astype(np.float64))
    assert np.abs(ours - theirs).max() < 3e-3 * np.abs(theirs).max()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("p", [3, 50])
def test_features_without_information_give_the_prior(p: int) -> None:
    y = np.array([1] * 12 + [0] * 8)
    probe = LogisticProbe().fit(np.zeros((20, p)), y)
    np.testing.assert_allclose(probe.decision_function(np.zeros((1, p))), np.log(12 / 8), atol=1e-4)
    np.testing.assert_allclose(LogisticProbe().fit(np.zeros((20, p)), np.arange(20) % 2).coef_, 0, atol=1e-9)


def test_the_scaled_strength_is_twenty_over_the_columns() -> None:
    X, y = data(30, 200)
    np.testing.assert_array_equal(LogisticProbe().fit(X, y).coef_, LogisticProbe(C=0.1).fit(X, y).coef_)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("C", "gamma"), [(1.0, "scale"), (0.3, 0.01)])
def test_the_support_vector_probe_is_svc(dtype: type, C: float, gamma: float | str) -> None:
    (X, y), (new, _) = data(60, 200), data(20, 200, seed=1)
    ours = SupportVectorProbe(C=C, gamma=gamma).fit(X.astype(dtype), y)
    theirs = SVC(C=C, gamma=gamma).fit(X, y)
    np.testing.assert_allclose(ours.decision_function(new.astype(dtype)), theirs.decision_function(new), atol=2e-3)
    np.testing.assert_array_equal(ours.predict(new.astype(dtype)), theirs.predict(new))
    distances = ((new[:, None] - ours.support_vectors_[None]) ** 2).sum(axis=2)
    by_hand = np.exp(-ours.gamma_ * distances) @ ours.dual_coef_[0] + ours.intercept_[0]
    np.testing.assert_allclose(by_hand, ours.decision_function(new.astype(dtype)), atol=1e-4)


@pytest.mark.parametrize(("probe", "slow"), [(LogisticProbe(C=1e-3), None), (SupportVectorProbe(), SVC())])
def test_wide_data_are_fast(probe: object, slow: SVC | None) -> None:
    X, y = data(200, 8000)
    X = X.astype(np.float32)
    started = time.process_time()
    probe.fit(X, y).decision_function(X)  # type: ignore[attr-defined]
    ours = time.process_time() - started
    if slow is not None:
        started = time.process_time()
        slow.fit(X, y).decision_function(X)
        assert ours < (time.process_time() - started) / 2
    assert ours < 3


def test_prototypes_by_hand() -> None:
    X, y = np.array([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0], [0.0, 2.0]]), np.array([0, 0, 1, 1])
    new = np.array([[0.0, 5.0], [2.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    cosine = PrototypeProbe().fit(X, y)
    np.testing.assert_allclose(cosine.prototypes_, [[2, 0], [0, 2]])
    np.testing.assert_allclose(cosine.decision_function(new), [1, -1, 0, 0], atol=1e-12)
    euclidean = PrototypeProbe("euclidean").fit(X, y)
    np.testing.assert_allclose(euclidean.decision_function(new), [np.sqrt(29) - 3, -np.sqrt(8), 0, 0], atol=1e-12)
    with pytest.raises(OpenBrainMassError, match="'dot' is not known"):
        PrototypeProbe("dot").fit(X, y)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6), st.integers(2, 20), st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_products_of_unit_rows_are_correlations(n: int, p: int, shift: float, scale: float) -> None:
    rows = np.random.default_rng(n * 100 + p).normal(size=(n, p))
    units = unit_rows(scale * rows + shift)
    np.testing.assert_allclose(units @ units.T, np.atleast_2d(np.corrcoef(rows)), atol=1e-6)
    assert (unit_rows(np.zeros((2, p))) == 0).all()


def kernel_ridge_by_hand(X: np.ndarray, y: np.ndarray, new: np.ndarray, alpha: float) -> np.ndarray:
    """The linear system of kernel ridge regression with a free intercept, on correlations between rows."""
    n = len(X)
    kernel = np.corrcoef(X, new)
    system = np.block([[kernel[:n, :n] + alpha * np.eye(n), np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
    solution = np.linalg.solve(system, np.append(y, 0.0))
    return kernel[n:, :n] @ solution[:-1] + solution[-1]


@pytest.mark.parametrize(("n", "p"), [(30, 200), (40, 12)])
@pytest.mark.parametrize("alpha", [0.05, 1.0])
def test_kernel_ridge_is_that_of_the_correlation_kernel(n: int, p: int, alpha: float) -> None:
    (X, y), (new, _) = data(n, p), data(10, p, seed=1)
    values = np.random.default_rng(3).normal(10, 2, n)
    number = make_probe("kernel ridge", "regression").set_params(ridge__alpha=alpha).fit(X, values)
    np.testing.assert_allclose(number.predict(new), kernel_ridge_by_hand(X, values, new, alpha), atol=1e-8)
    classes = make_probe("kernel ridge").set_params(ridgeclassifier__alpha=alpha).fit(X, y)
    expected = kernel_ridge_by_hand(X, 2.0 * y - 1, new, alpha)
    np.testing.assert_allclose(classes.decision_function(new), expected, atol=1e-8)
    centred = KernelRidge(alpha=alpha, kernel="precomputed")
    kernel = np.corrcoef(X)
    away = np.eye(n) - 1 / n
    # Without an intercept of its own, scikit-learn's KernelRidge says the same of a kernel and values centred beforehand.
    ours = number.predict(X) - values.mean()
    theirs = centred.fit(away @ kernel @ away, values - values.mean()).predict(away @ kernel @ away)
    np.testing.assert_allclose(ours, theirs, atol=1e-8)


def test_ridge_for_numbers_is_ridge_on_standardised_columns() -> None:
    X, _ = data(30, 100)
    values = X[:, 0] * 3 + 7
    ours = make_probe("ridge", "regression").fit(X, values).predict(X)
    Z = (X - X.mean(axis=0)) / X.std(axis=0)
    weights = Z.T @ np.linalg.solve(Z @ Z.T + 1e3 * np.eye(30), values - values.mean())
    np.testing.assert_allclose(ours, Z @ weights + values.mean(), atol=1e-6)
    assert not hasattr(REGRESSORS["ridge"][-1], "coef_")


@pytest.mark.parametrize("name", [*PROBES, "kernel ridge"])
def test_every_probe_tells_classes_apart_and_is_a_fresh_copy(name: str) -> None:
    X, y = data(80, 40)
    probe = make_probe(name).fit(X, y)
    assert probe.score(X, y) > 0.8
    assert not hasattr({**PROBES, "kernel ridge": KERNEL_RIDGE}[name].steps[-1][1], "classes_")
    np.testing.assert_array_equal(probe.predict(X), probe.classes_[(decision_values(probe, X) > 0).astype(int)])


def test_an_unknown_probe_lists_the_known() -> None:
    with pytest.raises(
        OpenBrainMassError, match="'forest' is not known; choose one of svm, logistic, ridge, prototype, kernel ridge"
    ):
        make_probe("forest")
    with pytest.raises(OpenBrainMassError, match="'logistic' is not known; choose one of ridge, kernel ridge, or"):
        make_probe("logistic", "regression")
    assert isinstance(make_probe(RandomForestClassifier()), RandomForestClassifier)


@pytest.mark.parametrize("probe", [LogisticProbe(), SupportVectorProbe(), PrototypeProbe()])
def test_more_than_two_classes_or_one_are_refused(probe: object) -> None:
    X, _ = data(9, 4)
    with pytest.raises(OpenBrainMassError, match=r"3 class\(es\)"):
        probe.fit(X, np.arange(9) % 3)  # type: ignore[attr-defined]
    with pytest.raises(OpenBrainMassError, match=r"1 class\(es\)"):
        probe.fit(X, np.zeros(9, dtype=int))  # type: ignore[attr-defined]


@pytest.mark.parametrize("probe", [LogisticProbe(), SupportVectorProbe(), PrototypeProbe()])
def test_probes_are_scikit_learn_estimators(probe: object) -> None:
    check_estimator(probe, on_skip=None)


def test_decision_values_of_either_kind_or_none() -> None:
    X, y = make_classification(random_state=0)
    forest = RandomForestClassifier(n_estimators=5, random_state=0).fit(X, y)
    np.testing.assert_allclose(decision_values(forest, X), forest.predict_proba(X)[:, 1] - 0.5)
    assert decision_values(OneClassSVM().fit(X), X).shape == (100,)
    with pytest.raises(OpenBrainMassError, match="neither decision_function nor predict_proba"):
        decision_values(object(), X)
