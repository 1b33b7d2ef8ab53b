from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.fitting import asks_for_groups, fit_model
from openbrainmass.evaluation.probes import LogisticProbe, SupportVectorProbe, decision_values
from openbrainmass.evaluation.tuning import GRIDS, PeopleFolds, RowSpace, calibrated, tuned


def data(n: int, p: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features, labels, and the person of each row: two rows each."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) // 2 % 2
    X = rng.normal(size=(n, p))
    X[:, : p // 4 + 1] += 0.5 * y[:, None]
    return X, y, np.arange(n) // 2


@pytest.fixture
def seen_groups(monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray | None]:
    """The groups that inner folds were made with."""
    seen: list[np.ndarray | None] = []
    split = StratifiedGroupKFold.split

    def recorded(self, X, y=None, groups=None):
        seen.append(groups)
        return split(self, X, y, groups)

    monkeypatch.setattr(StratifiedGroupKFold, "split", recorded)
    return seen


@settings(max_examples=15, deadline=None)
@given(st.integers(2, 12), st.integers(1, 30), st.integers(0, 2**32 - 1))
def test_the_row_space_keeps_products_with_training_rows(n: int, p: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    X, new = rng.normal(size=(n, p)), rng.normal(size=(4, p))
    space = RowSpace()
    rows = space.fit_transform(X)
    assert rows.shape[1] <= n
    middle = X.mean(axis=0) if p > n else 0
    np.testing.assert_allclose(rows @ rows.T, (X - middle) @ (X - middle).T, atol=1e-7)
    np.testing.assert_allclose(space.transform(new) @ rows.T, (new - middle) @ (X - middle).T, atol=1e-7)


@pytest.mark.parametrize("last", [LogisticProbe(C=0.01), Ridge(alpha=10.0)])
def test_a_linear_model_is_the_same_in_the_row_space(last: LogisticProbe | Ridge) -> None:
    (X, y, _), (new, _, _) = data(30, 200), data(10, 200, seed=1)
    say = "decision_function" if isinstance(last, LogisticProbe) else "predict"
    plain = getattr(make_pipeline(StandardScaler(), last).fit(X, y), say)(new)
    turned = getattr(make_pipeline(StandardScaler(), RowSpace(), last).fit(X, y), say)(new)
    np.testing.assert_allclose(turned, plain, atol=1e-4)


@pytest.mark.parametrize("probe", list(GRIDS["classification"]))
def test_tuned_chooses_by_inner_folds_of_people(probe: str, seen_groups: list[np.ndarray | None]) -> None:
    X, y, people = data(60, 100)
    model = fit_model(tuned(probe), X, y, people)
    search = model[-1]
    assert isinstance(search, GridSearchCV)
    (name, values) = next(iter(GRIDS["classification"][probe].items()))
    assert search.best_params_[name] in values
    assert len(search.cv_results_["params"]) == len(values)
    assert seen_groups and all(np.array_equal(np.asarray(groups), people) for groups in seen_groups)
    assert np.mean((decision_values(model, X) > 0) == y) > 0.7


def test_tuned_finds_the_strength_that_plain_grid_search_finds() -> None:
    X, y, people = data(80, 300)
    grid = {"logisticprobe__C": GRIDS["classification"]["logistic"]["C"]}
    folds = StratifiedGroupKFold(3, shuffle=True, random_state=0)
    Z = StandardScaler().fit_transform(X)
    plain = GridSearchCV(make_pipeline(LogisticProbe()), grid, scoring="roc_auc", cv=folds).fit(Z, y, groups=people)
    ours = fit_model(tuned("logistic"), X, y, people)
    np.testing.assert_allclose(
        ours[-1].cv_results_["mean_test_score"], plain.cv_results_["mean_test_score"], atol=1e-12
    )
    np.testing.assert_allclose(decision_values(ours, X), decision_values(plain, Z), atol=1e-4)


@pytest.mark.parametrize("probe", list(GRIDS["regression"]))
def test_tuned_regression_beats_a_hopeless_strength(probe: str) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 40))
    y = X[:, 0] + X[:, 1] + 0.1 * rng.normal(size=80)
    model = fit_model(tuned(probe, "regression"), X[:60], y[:60], np.arange(60) // 2)
    assert np.corrcoef(model.predict(X[60:]), y[60:])[0, 1] > 0.6


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 3), min_size=2, max_size=14), st.integers(1, 6), st.integers(0, 99))
def test_inner_folds_keep_people_whole_and_ask_about_everybody_once(rows: list[int], n_folds: int, seed: int) -> None:
    people = np.repeat(np.arange(len(rows)), rows)
    y = people % 2
    folds = list(PeopleFolds(n_folds + 1, seed).split(np.zeros(len(y)), y, people))
    assert len(folds) == min(n_folds + 1, len(rows) // 2)
    assert sorted(np.concatenate([test for _, test in folds])) == list(range(len(y)))
    if len(folds) > 1:
        for train, test in folds:
            assert not set(people[train]) & set(people[test])


def test_one_person_a_class_gets_the_strongest_regularisation() -> None:
    X, y, people = data(4, 50)
    for probe in ("logistic", "ridge", "kernel ridge", "svm"):
        (name, values) = next(iter(GRIDS["classification"][probe].items()))
        assert fit_model(tuned(probe), X, y, people)[-1].best_params_ == {name: values[0]}
    assert fit_model(calibrated("logistic"), X, y, people).predict_proba(X).shape == (4, 2)


def test_inner_folds_that_are_not_told_people_are_refused() -> None:
    X, y, _ = data(20, 3)
    with pytest.raises(OpenBrainMassError, match="were not told who is who"):
        tuned("ridge").fit(X, y)


def test_a_probe_without_a_grid_is_one_sentence() -> None:
    with pytest.raises(OpenBrainMassError, match=r"no grid for the probe 'svm' \(regression\); choose one of ridge, "):
        tuned("svm", "regression")


def test_calibrated_is_scikit_learns_with_folds_of_people() -> None:
    X, y, people = data(60, 20)
    ours = fit_model(calibrated("svm"), X, y, people)
    folds = list(StratifiedGroupKFold(5, shuffle=True, random_state=0).split(X, y, people))
    probe = make_pipeline(StandardScaler(), SupportVectorProbe())
    theirs = CalibratedClassifierCV(probe, method="sigmoid", ensemble=False, cv=folds).fit(X, y)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X))
    np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    np.testing.assert_allclose(decision_values(ours, X), ours.predict_proba(X)[:, 1] - 0.5)
    order = np.argsort(probe.fit(X, y).decision_function(X))
    assert (np.diff(ours.predict_proba(X)[order, 1]) > -1e-9).all()


def test_calibration_asks_for_people_wherever_it_stands(seen_groups: list[np.ndarray | None]) -> None:
    X, y, people = data(40, 5)
    model = make_pipeline(StandardScaler(), calibrated("logistic", n_folds=2))
    assert asks_for_groups(model)
    fit_model(model, X, y, people)
    np.testing.assert_array_equal(seen_groups[0], people)


def test_a_tuned_probe_can_be_calibrated() -> None:
    X, y, people = data(60, 5)
    model = fit_model(calibrated(tuned("logistic"), n_folds=3), X, y, people)
    assert ((model.predict_proba(X) > 0) & (model.predict_proba(X) < 1)).all()


def test_the_row_space_is_a_scikit_learn_transformer() -> None:
    check_estimator(RowSpace(), on_skip=None)
