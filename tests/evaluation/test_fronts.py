from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.evaluation.baselines import Connectome, ScoreSum, ShuffledLabels
from openbrainmass.evaluation.evaluate import evaluate
from openbrainmass.evaluation.fronts import SharedSteps, fit_front
from openbrainmass.evaluation.prepared import Parts, of_parts
from openbrainmass.evaluation.tasks import Task

MakeCohort = Callable[..., Cohort]
TASK = Task(name="toy", target="dx", positive=("patient",), negative=("control",))
RNG = np.random.default_rng(0)
X, Y = RNG.normal(3, 2, size=(30, 6)), np.tile([0, 1], 15)


def test_a_front_and_its_last_step_are_the_model() -> None:
    model = make_pipeline(StandardScaler(), PCA(3), LogisticRegression())
    found = fit_front(model, X)
    assert found is not None
    front, features = found
    np.testing.assert_allclose(front.transform(X), features)
    last = front.last.fit(features, Y)
    np.testing.assert_allclose(last.decision_function(features), model.fit(X, Y).decision_function(X))


@pytest.mark.parametrize(
    "model",
    [LogisticRegression(), make_pipeline(SelectKBest(k=2), LogisticRegression()), make_pipeline(LogisticRegression())],
)
def test_what_needs_labels_or_has_no_front_is_left_whole(model: Any) -> None:
    assert fit_front(model, X) is None
    assert fit_front(ShuffledLabels(model), X) is None


def test_a_sum_with_a_part_that_needs_labels_is_left_whole() -> None:
    parts = [
        make_pipeline(SelectKBest(k=2), LogisticRegression()),
        make_pipeline(StandardScaler(), LogisticRegression()),
    ]
    assert fit_front(of_parts(ScoreSum([("a", None), ("b", None)]), parts), Parts([X, X])) is None


def test_the_parts_of_a_sum_have_fronts_of_their_own() -> None:
    parts = [make_pipeline(StandardScaler(), LogisticRegression()), make_pipeline(PCA(2), LogisticRegression())]
    total = of_parts(ScoreSum([("a", None), ("b", None)], n_folds=2), parts)
    both = Parts([X, X[:, :4]])
    found = fit_front(ShuffledLabels(total, seed=1), both)
    assert found is not None
    front, features = found
    assert [values.shape for values in features.values] == [(30, 6), (30, 2)]
    assert isinstance(front.last, ShuffledLabels) and isinstance(front.last.estimator, ScoreSum)
    np.testing.assert_allclose(front.transform(both[np.arange(3)]).values[1], features.values[1][:3])


def test_only_steps_whose_columns_keep_their_meaning_are_learnt_anew() -> None:
    elsewhere = 10 * X + 5
    found = fit_front(make_pipeline(StandardScaler(), PCA(2), StandardScaler(), LogisticRegression()), X)
    assert found is not None
    again = found[0].refitted(elsewhere)
    assert again is not None and isinstance(again.fitted, Pipeline) and isinstance(found[0].fitted, Pipeline)
    np.testing.assert_allclose(again.transform(elsewhere), found[1], atol=1e-6)
    kept = [one is two for (_, one), (_, two) in zip(found[0].fitted.steps, again.fitted.steps, strict=True)]
    assert kept == [False, True, False]
    only = fit_front(make_pipeline(PCA(2), LogisticRegression()), X)
    assert only is not None and only[0].refitted(elsewhere) is None


def test_models_share_what_is_fitted_in_a_fold_and_say_the_same_alone(make_cohort: MakeCohort) -> None:
    fitted: list[str] = []

    class Tangent(Connectome):
        def fit(self, X: Any, y: Any = None) -> Tangent:
            fitted.append("tangent")
            super().fit(X, y)
            return self

    class Scaler(StandardScaler):
        def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Scaler:
            fitted.append("scaler")
            return super().fit(X, y)

    def tangent(strength: float) -> Any:
        return make_pipeline(Tangent("tangent"), Scaler(), LogisticRegression(C=strength))

    edges = make_pipeline(Connectome(), Scaler(), LogisticRegression())
    models = {
        "weak": tangent(0.1),
        "strong": tangent(1.0),
        "sum": ScoreSum([("e", edges), ("t", tangent(0.1))]),
        "e": edges,
    }
    cohort = make_cohort(n_people=20)
    together = evaluate(models, cohort, TASK, protocols=["k-fold"], n_repeats=1, n_folds=2).predictions
    # In each fold one reference, and a scaler each for tangent vectors and edges, for all four models.
    assert sorted(fitted) == ["scaler"] * 4 + ["tangent"] * 2
    for name, model in models.items():
        alone = evaluate({name: model}, cohort, TASK, protocols=["k-fold"], n_repeats=1, n_folds=2).predictions
        np.testing.assert_array_equal(alone["y_score"], together.loc[together["model"] == name, "y_score"])


def test_a_step_that_works_in_place_does_not_change_other_models(make_cohort: MakeCohort) -> None:
    def model(*steps: Any) -> Any:
        return make_pipeline(Connectome(), StandardScaler(), *steps, LogisticRegression())

    spoilers = {"one": model(Normalizer(copy=False)), "two": model(StandardScaler(copy=False), Normalizer(copy=False))}
    models = {**spoilers, "sum": ScoreSum([("a", spoilers["two"]), ("b", model())]), "plain": model()}
    cohort = make_cohort(n_people=20)
    together = evaluate(models, cohort, TASK, protocols=["k-fold"], n_repeats=1, n_folds=2).predictions
    for name, own in models.items():
        alone = evaluate({name: own}, cohort, TASK, protocols=["k-fold"], n_repeats=1, n_folds=2).predictions
        np.testing.assert_array_equal(alone["y_score"], together.loc[together["model"] == name, "y_score"])


def test_steps_that_differ_are_not_shared() -> None:
    rows = np.arange(20), np.arange(20, 30)
    steps = SharedSteps(*rows, Y[:20], np.arange(20))
    front, last, train, test = steps.before_last(make_pipeline(PCA(2), LogisticRegression()), X)
    assert isinstance(last, LogisticRegression) and train.shape == (20, 2) and test.shape == (10, 2)
    assert steps.before_last(make_pipeline(PCA(2), LogisticRegression()), X)[0][0] is front[0]
    assert steps.before_last(make_pipeline(PCA(3), LogisticRegression()), X)[0][0] is not front[0]
    assert steps.before_last(make_pipeline(PCA(2), LogisticRegression()), X.copy())[0][0] is not front[0]
    assert steps.before_last(LogisticRegression(), X)[0] == []
