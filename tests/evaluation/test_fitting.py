from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.linear_model import LinearRegression, LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.evaluation.baselines import Chance, Connectome
from openbrainmass.evaluation.evaluate import evaluate
from openbrainmass.evaluation.fitting import asks_for_groups, fit_model, predicted
from openbrainmass.evaluation.probes import make_probe
from openbrainmass.evaluation.tasks import Task

MakeCohort = Callable[..., Cohort]
TASK = Task(name="toy", target="dx", positive=("patient",), negative=("control",))


class Watched(StratifiedGroupKFold):
    """Inner folds that note which groups were on which side."""

    seen: list[tuple[set[int], set[int]]] = []

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for train, test in super().split(X, y, groups):
            Watched.seen.append((set(groups[train]), set(groups[test])))
            yield train, test


def search(probe: Any = None) -> GridSearchCV:
    return GridSearchCV(probe or LogisticRegression(), {"C": [0.1, 1.0]}, cv=Watched(3))


def data(n_people: int = 24, n_recordings: int = 3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(n_people), n_recordings)
    y = groups % 2
    # Recordings of a person are nearly copies, so inner folds that part them would seem perfect.
    X = rng.normal(size=(n_people, 5))[groups] + 0.01 * rng.normal(size=(len(groups), 5))
    return X, y, groups


@pytest.mark.parametrize(
    "model",
    [
        search(),
        make_pipeline(StandardScaler(), search()),
        CalibratedClassifierCV(make_probe("svm"), method="sigmoid", ensemble=True, cv=Watched(3)),
        make_pipeline(StandardScaler(), CalibratedClassifierCV(LogisticRegression(), cv=Watched(3))),
    ],
)
def test_inner_folds_never_part_the_recordings_of_a_person(model: Any) -> None:
    Watched.seen.clear()
    X, y, groups = data()
    assert asks_for_groups(model)
    fit_model(model, X, y, groups)
    assert len(Watched.seen) >= 3
    for train, test in Watched.seen:
        assert train and test and not train & test


def test_models_that_make_no_folds_are_fitted_as_they_are() -> None:
    X, y, groups = data()
    for model in (LogisticRegression(), make_pipeline(StandardScaler(), make_probe("logistic")), Chance()):
        assert not asks_for_groups(model)
        assert fit_model(model, X, y, groups) is model
    with pytest.raises(ValueError, match="groups"):
        fit_model(search(), X, y)  # grouped folds without groups


@pytest.mark.parametrize("whole", [True, False])
def test_evaluate_hands_families_to_the_inner_folds(make_cohort: MakeCohort, whole: bool) -> None:
    Watched.seen.clear()
    cohort = make_cohort(n_people=36, n_recordings=2, columns={"family_id": [f"f{i // 4}" for i in range(36)]})
    inner = GridSearchCV(make_probe("logistic"), {"logisticprobe__C": [0.1, 1.0]}, cv=Watched(2))
    # The features are computed once for all folds, or by the model that sees the recordings.
    model = make_pipeline(Connectome(), inner) if not whole else _Whole(make_pipeline(Connectome(), inner))
    evaluate({"m": model}, cohort, TASK, protocols=["k-fold"], n_folds=2, n_repeats=1)
    assert len(Watched.seen) == 4
    for train, test in Watched.seen:
        assert train and test and not train & test
        assert 3 <= len(train | test) <= 6  # of the nine families, those of the training side


class _Whole(ClassifierMixin, BaseEstimator):
    """A model that must see the recordings and passes the groups on."""

    __metadata_request__fit = {"groups": True}

    def __init__(self, model: Any) -> None:
        self.model = model

    def fit(self, X: Cohort, y: np.ndarray, groups: np.ndarray | None = None) -> _Whole:
        self.classes_ = np.unique(y)
        self.fitted_ = fit_model(self.model, X, y, groups)
        return self

    def decision_function(self, X: Cohort) -> np.ndarray:
        return self.fitted_.decision_function(X)


def test_what_is_predicted_is_what_the_pipeline_says() -> None:
    X, y, _ = data()
    for model in (make_pipeline(StandardScaler(), LogisticRegression()), LogisticRegression()):
        scores, probabilities = predicted(model.fit(X, y), X)
        np.testing.assert_allclose(scores, model.decision_function(X))
        np.testing.assert_allclose(probabilities, model.predict_proba(X)[:, 1])
    scores, probabilities = predicted(make_probe("svm").fit(X, y), X)
    assert np.isnan(probabilities).all() and scores.shape == (len(X),)
    line = make_pipeline(StandardScaler(), LinearRegression()).fit(X, X[:, 0])
    scores, probabilities = predicted(line, X, continuous=True)
    np.testing.assert_allclose(scores, X[:, 0])
    assert np.isnan(probabilities).all()


def test_the_front_of_a_pipeline_is_asked_once() -> None:
    calls: list[int] = []

    class Counting(StandardScaler):
        def transform(self, X: Any, copy: bool | None = None) -> Any:
            calls.append(len(X))
            return super().transform(X, copy)

    X, y, _ = data()
    model = make_pipeline(Counting(), LogisticRegression()).fit(X, y)
    calls.clear()
    predicted(model, X)
    assert calls == [len(X)]
