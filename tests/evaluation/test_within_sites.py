"""What is kept are directions in which people of a site differ, none of them one in which sites do."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.cohort.simulate import simulate_cohort
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.baselines import Connectome
from openbrainmass.evaluation.evaluate import evaluate
from openbrainmass.evaluation.probes import make_probe
from openbrainmass.evaluation.tasks import Task
from openbrainmass.evaluation.within_sites import WithinSites


class Offset(Connectome):
    """Edges to the first half of which every site adds its own pattern."""

    def transform(self, X: Cohort) -> np.ndarray:
        edges = super().transform(X)
        number = X.table["site"].str.removeprefix("site-").astype(int).to_numpy()
        patterns = np.random.default_rng(0).normal(size=(number.max() + 10, edges.shape[1]))
        patterns[:, edges.shape[1] // 2 :] = 0
        return (edges + patterns[number]).astype(np.float32)


@pytest.fixture(scope="module")
def cohort() -> Cohort:
    return simulate_cohort(n_people=60, n_sites=3, n_rois=21, n_volumes=60, effect=0.0, seed=0)


def site_means(values: np.ndarray, cohort: Cohort) -> np.ndarray:
    sites = cohort.table["site"].to_numpy()
    return np.stack([values[sites == site].mean(axis=0) for site in np.unique(sites)])


def test_directions_are_at_right_angles_to_each_other_and_to_what_sites_differ_in(cohort):
    model = WithinSites(Offset(), n_values=20).fit(cohort)
    np.testing.assert_allclose(model.components_ @ model.components_.T, np.eye(20), atol=1e-8)
    means = site_means(model.scaler_.transform(Offset().fit_transform(cohort)), cohort)
    np.testing.assert_allclose((means - means.mean(axis=0)) @ model.components_.T, 0, atol=1e-5)


def test_sites_of_new_people_are_alike(cohort):
    train, test = cohort.select(range(0, 60, 2)), cohort.select(range(1, 60, 2))
    values = WithinSites(Offset(), n_values=10).fit(train).transform(test)
    assert values.shape == (30, 10) and values.dtype == np.float32
    before = Offset().fit_transform(test)
    ratio = [np.ptp(site_means(some, test), axis=0).max() / some.std() for some in (before, values)]
    assert ratio[1] < 0.4 * ratio[0]


def test_the_strongest_direction_within_sites_comes_first(cohort):
    values = WithinSites(Offset(), n_values=30).fit_transform(cohort)
    sites = cohort.table["site"].to_numpy()
    centred = values - np.stack([values[sites == site].mean(axis=0) for site in sites])
    assert (np.diff(centred.var(axis=0)) <= 1e-6).all()
    np.testing.assert_allclose(WithinSites(Offset(), n_values=30).fit(cohort).transform(cohort), values, atol=1e-5)


def test_fewer_people_than_values_give_as_many_as_there_are(cohort):
    assert WithinSites(Offset()).fit(cohort).components_.shape[0] == 60 - 3
    assert WithinSites(Offset()).fit(cohort.select([0, 3, 6])).components_.shape[0] == 2


def test_it_is_a_step_of_a_pipeline(cohort):
    model = make_pipeline(WithinSites(Connectome("fisher-z"), n_values=10), make_probe("ridge"))
    results = evaluate(
        {"within": model}, cohort, Task.from_cohort(cohort, "dx"), protocols=("k-fold", "site-held-out"), n_repeats=1
    )
    assert set(results.metrics()["protocol"]) == {"k-fold", "site-held-out"}


def test_what_it_cannot_use_is_said(cohort):
    with pytest.raises(OpenBrainMassError, match="WithinSites was given ndarray"):
        WithinSites(Offset()).fit(np.zeros((3, 5, 5)))  # type: ignore[arg-type]
    with pytest.raises(OpenBrainMassError, match="no column scanner to harmonise over"):
        WithinSites(Offset(), site="scanner").fit(cohort)
    with pytest.raises(OpenBrainMassError, match="asked for 0 values"):
        WithinSites(Offset(), n_values=0).fit(cohort)
    with pytest.raises(OpenBrainMassError, match="no direction in which people of a site differ"):
        WithinSites(Offset()).fit(cohort.select([0, 1, 2]))
