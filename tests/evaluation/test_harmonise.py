from __future__ import annotations

import builtins
import sys

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.pipeline import make_pipeline

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.baselines import Connectome
from openbrainmass.evaluation.evaluate import evaluate
from openbrainmass.evaluation.harmonise import Harmonised
from openbrainmass.evaluation.probes import make_probe
from openbrainmass.evaluation.tasks import Task


class SiteFeatures(Connectome):
    """Edges, to which every site adds its own offset and scale: what harmonisation is for."""

    def transform(self, X: Cohort) -> np.ndarray:
        number = X.table["site"].str.removeprefix("site").astype(int).to_numpy()[:, None]
        return (super().transform(X) * (1 + number) + 3 * number).astype(np.float32)


@pytest.fixture
def cohort(make_cohort) -> Cohort:
    return make_cohort(n_people=60, n_sites=3, effect=0.0)


def means(features: np.ndarray, cohort: Cohort) -> np.ndarray:
    sites = cohort.table["site"].to_numpy()
    return np.stack([features[sites == site].mean(axis=0) for site in np.unique(sites)])


def spreads(features: np.ndarray, cohort: Cohort) -> np.ndarray:
    sites = cohort.table["site"].to_numpy()
    return np.stack([features[sites == site].std(axis=0).mean() for site in np.unique(sites)])


@pytest.fixture
def _combatlearn() -> None:
    pytest.importorskip("combatlearn")


pytestmark = pytest.mark.usefixtures("_combatlearn")


def test_sites_become_alike(cohort: Cohort) -> None:
    before = SiteFeatures().fit_transform(cohort)
    after = Harmonised(SiteFeatures()).fit_transform(cohort)
    assert after.shape == before.shape
    assert after.dtype == np.float32
    assert np.ptp(means(before, cohort), axis=0).min() > 4
    assert np.ptp(means(after, cohort), axis=0).max() < 1
    assert spreads(before, cohort).max() > 2.5 * spreads(before, cohort).min()
    assert spreads(after, cohort).max() < 1.6 * spreads(after, cohort).min()


def test_test_people_are_moved_by_what_training_taught(cohort: Cohort) -> None:
    train, test = cohort.select(range(0, 60, 2)), cohort.select(range(1, 60, 2))
    model = Harmonised(SiteFeatures()).fit(train)
    after = model.transform(test)
    assert np.ptp(means(after, test), axis=0).max() < 3
    np.testing.assert_allclose(model.transform(test.select([4])), after[[4]], atol=1e-4)
    np.testing.assert_allclose(model.transform(train), Harmonised(SiteFeatures()).fit_transform(train), atol=1e-4)


def test_a_site_that_was_not_learnt_stays(cohort: Cohort) -> None:
    sites = cohort.table["site"].to_numpy()
    model = Harmonised(SiteFeatures()).fit(cohort.select(sites != "site2"))
    assert model.sites_ == ("site0", "site1")
    new = cohort.select(sites == "site2")
    np.testing.assert_allclose(model.transform(new), SiteFeatures().fit_transform(new), rtol=1e-5)
    model.unseen = "error"
    with pytest.raises(OpenBrainMassError, match="The site site2 was not learnt: training had fewer than 3"):
        model.transform(new)


def test_a_site_of_two_recordings_is_not_learnt(cohort: Cohort) -> None:
    sites = cohort.table["site"].to_numpy()
    rows = np.r_[np.flatnonzero(sites != "site2"), np.flatnonzero(sites == "site2")[:2]]
    assert Harmonised(SiteFeatures()).fit(cohort.select(rows)).sites_ == ("site0", "site1")


def test_one_site_changes_nothing(cohort: Cohort) -> None:
    one = cohort.select(cohort.table["site"].to_numpy() == "site1")
    np.testing.assert_allclose(Harmonised(SiteFeatures()).fit_transform(one), SiteFeatures().fit_transform(one))


def test_features_that_do_not_vary_stay(cohort: Cohort) -> None:
    class WithConstant(Connectome):
        def transform(self, X: Cohort) -> np.ndarray:
            return np.column_stack([super().transform(X), np.full(len(X), 5.0)])

    after = Harmonised(WithConstant()).fit_transform(cohort)
    np.testing.assert_array_equal(after[:, -1], 5)
    assert np.isfinite(after).all()


def test_labels_are_not_looked_at(cohort: Cohort) -> None:
    y = np.arange(60) % 2
    one = Harmonised(SiteFeatures()).fit(cohort, y).transform(cohort)
    other = Harmonised(SiteFeatures()).fit(cohort, 1 - y).transform(cohort)
    np.testing.assert_array_equal(one, other)


def test_it_enters_an_evaluation_and_is_fitted_in_folds(make_cohort) -> None:
    cohort = make_cohort(n_people=40, n_sites=2, effect=2.0)
    task = Task.from_cohort(cohort)
    models = {"harmonised": make_pipeline(Harmonised(SiteFeatures()), make_probe("logistic"))}
    results = evaluate(models, cohort, task, protocols=["k-fold", "site-held-out"], n_folds=4, n_repeats=1)
    metrics = results.metrics().query("metric == 'auc'").set_index("protocol")["value"]
    assert metrics["k-fold"] > 0.8


def test_it_is_a_scikit_learn_estimator() -> None:
    model = Harmonised(Connectome("fisher-z"), site="scanner", unseen="error")
    copy = clone(model)
    assert (copy.site, copy.unseen, copy.features.kind) == ("scanner", "error", "fisher-z")
    assert model.__sklearn_tags__().requires_fit


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"site": "scanner"}, "has no column scanner to harmonise over; it has recording_id"),
        ({"unseen": "drop"}, "unseen='drop'; choose keep or error"),
        ({"features": Connectome("correlation")}, r"Connectome made features of shape \(60, 6, 6\); Harmonised needs"),
    ],
)
def test_settings_that_cannot_be(cohort: Cohort, change: dict, message: str) -> None:
    with pytest.raises(OpenBrainMassError, match=message):
        Harmonised(SiteFeatures()).set_params(**change).fit(cohort)


def test_a_missing_site_is_an_error(make_cohort) -> None:
    cohort = make_cohort(n_people=40, columns={"scanner": [None if i == 3 else f"s{i % 2}" for i in range(40)]})
    with pytest.raises(OpenBrainMassError, match=r"1 recordings of cohort toy have no scanner \(the first is p003-0\)"):
        Harmonised(Connectome(), site="scanner").fit(cohort)


def test_arrays_have_no_sites() -> None:
    with pytest.raises(OpenBrainMassError, match="Harmonised was given list; sites are a column"):
        Harmonised(Connectome()).fit([np.zeros((10, 3))])


def test_without_combatlearn_it_names_the_extra(cohort: Cohort, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args, **kwargs):
        if name == "combatlearn":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "combatlearn", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(OpenBrainMassError, match=r"pip install 'openbrainmass\[harmonise\]'"):
        Harmonised(Connectome()).fit(cohort)
