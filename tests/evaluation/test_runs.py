from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import FixedThresholdClassifier, GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.evaluation.baselines import Chance, Connectome, ScoreSum, ShuffledLabels
from openbrainmass.evaluation.evaluate import evaluate
from openbrainmass.evaluation.probes import PROBES
from openbrainmass.evaluation.tasks import Task

MakeCohort = Callable[..., Cohort]
TASK = Task(name="toy", target="dx", positive=("patient",), negative=("control",))
FEW: dict[str, Any] = {"few_shot": (1, 3), "n_folds": 2, "n_draws": 1}


class Top(TransformerMixin, BaseEstimator):
    """The two columns that tell the labels apart best or, without labels, that vary most."""

    def fit(self, X: np.ndarray, y: Any = None) -> Top:
        self.n_features_in_ = X.shape[1]
        by = X.std(axis=0) if y is None else np.abs(X[y == 1].mean(axis=0) - X[y == 0].mean(axis=0))
        self.keep_ = np.argsort(-by)[:2]
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        return X[:, self.keep_]


@pytest.fixture(scope="module")
def cohorts(make_cohort: MakeCohort) -> tuple[Cohort, Cohort]:
    return make_cohort(n_people=20, seed=1), make_cohort(n_people=24, seed=2, name="other")


def edges(*steps: Any) -> Any:
    return make_pipeline(Connectome(), *steps, LogisticRegression())


def rows(table: pd.DataFrame, protocol: str, model: str = "m") -> np.ndarray:
    return table.query("protocol == @protocol and model == @model")["y_score"].to_numpy()


def test_zero_shot_is_the_same_whether_few_shot_or_transductive_rows_are_asked_for(
    cohorts: tuple[Cohort, Cohort],
) -> None:
    own, other = cohorts
    models = {"m": edges(Top()), "sum": ScoreSum([("a", edges(Top())), ("b", edges(StandardScaler()))], n_folds=2)}
    alone = evaluate(models, own, TASK, protocols=[], test_cohort=other).predictions
    for transductive in (False, True):
        table = evaluate(
            models, own, TASK, protocols=["few-shot"], test_cohort=other, transductive=transductive, **FEW
        ).predictions
        for name in models:
            np.testing.assert_allclose(rows(table, "external", name), rows(alone, "external", name), rtol=1e-6)
    assert {"external", "external-few-shot-1", "external-few-shot-3"} <= set(table["protocol"])
    assert set(table.query("protocol == 'external-few-shot-1'")["model"]) == {"m", "sum", "sum (transductive)"}


def test_steps_that_work_in_place_change_no_other_row(cohorts: tuple[Cohort, Cohort]) -> None:
    own, other = cohorts

    def predicted(copy: bool) -> pd.DataFrame:
        inner = make_pipeline(StandardScaler(copy=copy), LogisticRegression())
        models = {
            "m": edges(StandardScaler(copy=copy), Normalizer(copy=copy)),
            "search": make_pipeline(Connectome(), GridSearchCV(inner, {}, cv=2)),
            "plain": edges(),
        }
        shape: dict[str, Any] = {**FEW, "few_shot": (2, 3), "test_cohort": other, "transductive": True, "n_repeats": 1}
        return evaluate(models, own, TASK, protocols=["few-shot", "k-fold"], **shape).predictions

    pd.testing.assert_frame_equal(predicted(False), predicted(True))


@pytest.mark.parametrize("protocol", ["k-fold", "few-shot"])
def test_a_threshold_of_a_models_own_is_noted(cohorts: tuple[Cohort, Cohort], protocol: str) -> None:
    own = FixedThresholdClassifier(LogisticRegression(), threshold=0.9)
    models = {
        "high": make_pipeline(Connectome(), own),
        "half": make_pipeline(Connectome(), FixedThresholdClassifier(LogisticRegression(), threshold=0.5)),
        "chance": Chance(),
        "shuffled": ShuffledLabels(edges()),
        **{name: make_pipeline(Connectome(), probe) for name, probe in PROBES.items()},
    }
    results = evaluate(models, cohorts[0], TASK, protocols=[protocol], n_repeats=1, **FEW)
    assert len(results.settings["notes"]) == 1
    assert results.settings["notes"][0].startswith("The threshold of high is not 0")
    assert (results.predictions["y_pred"] == (results.predictions["y_score"] > 0))[
        results.predictions["y_score"] != 0
    ].all()
