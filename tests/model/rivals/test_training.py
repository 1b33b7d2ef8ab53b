"""Rival networks learn what is planted and nothing else, choose their epoch on whole people, and are classifiers."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import sklearn
import torch
from scipy.special import logit
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.utils import get_tags
from sklearn.utils.metadata_routing import get_routing_for_object

from openbrainmass.cohort.simulate import simulate_cohort
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.baselines import Connectome
from openbrainmass.evaluation.evaluate import evaluate
from openbrainmass.evaluation.tasks import Task
from openbrainmass.model.rivals import (
    BrainNetCNN,
    BrainNetworkTransformer,
    MeanMLP,
    NetworkClassifier,
    rival_networks,
    training,
)

N_ROIS = 14
NETWORKS = [BrainNetCNN, BrainNetworkTransformer, MeanMLP]
NAMES = list(rival_networks())


@pytest.fixture(scope="module")
def people():
    return simulate_cohort(n_people=60, n_sites=2, n_rois=N_ROIS, n_volumes=60, effect=2.0, seed=1)


@pytest.fixture(scope="module")
def y(people):
    return people.table["dx"].to_numpy()


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(training, "FEWEST_STEPS", 1)


def _held_out_auc(model, cohort, y):
    train = np.random.default_rng(0).permutation(len(y)) < 0.7 * len(y)
    scores = model.fit(cohort.select(train), y[train]).decision_function(cohort.select(~train))
    return roc_auc_score(y_true=y[~train] == "patient", y_score=scores)


@pytest.mark.parametrize("name", NAMES)
def test_finds_what_is_planted(name):
    cohort = simulate_cohort(n_people=140, n_sites=2, n_rois=30, n_volumes=120, effect=2.0, seed=1)
    assert _held_out_auc(rival_networks()[name], cohort, cohort.table["dx"].to_numpy()) > 0.8


@pytest.mark.parametrize("name", NAMES)
def test_finds_nothing_in_labels_without_meaning(name, people, y, few_steps):
    # 18 test people: the standard error of a chance AUC is 0.14.
    shuffled = np.random.default_rng(3).permutation(y)
    assert 0.15 < _held_out_auc(rival_networks()[name], people, shuffled) < 0.8


@pytest.mark.parametrize("network", NETWORKS)
def test_seed_decides_everything_and_touches_nothing(network, people, y, few_steps):
    some, labels = people.select(np.arange(24)), y[:24]
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = NetworkClassifier(network, epochs=1, seed=1).fit(some, labels).decision_function(some)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    again = NetworkClassifier(network, epochs=1, seed=1).fit(some, labels).decision_function(some)
    other = NetworkClassifier(network, epochs=1, seed=2).fit(some, labels).decision_function(some)
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)


@pytest.mark.parametrize("network", NETWORKS)
def test_is_a_classifier(network, people, y, few_steps):
    model = NetworkClassifier(network, epochs=1)
    assert is_classifier(model) and not get_tags(model).input_tags.two_d_array
    assert clone(model).get_params() == model.get_params()
    with pytest.raises(NotFittedError):
        model.predict(people)
    model.fit(people, y)
    scores, shares = model.decision_function(people), model.predict_proba(people)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    np.testing.assert_allclose(logit(shares[:, 1]), scores, atol=1e-6)
    np.testing.assert_array_equal(model.predict(people), np.where(scores > 0, "patient", "control"))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).decision_function(people), scores)


def test_three_classes_have_three_scores(people, few_steps):
    y = np.arange(len(people)) % 3
    model = NetworkClassifier(MeanMLP, epochs=1).fit(people, y)
    assert model.decision_function(people).shape == model.predict_proba(people).shape == (len(people), 3)
    assert set(model.predict(people)) <= {0, 1, 2}


@pytest.mark.parametrize("network", NETWORKS)
def test_another_atlas_is_refused(network, people, y, few_steps):
    model = NetworkClassifier(network, epochs=1).fit(people.select(np.arange(8)), y[:8])
    other = simulate_cohort(n_people=2, n_sites=1, n_rois=20, n_volumes=30)
    with pytest.raises(OpenBrainMassError, match=f"Recording 0 has 20 ROIs but {network.__name__} was trained on 14"):
        model.predict(other)


@pytest.mark.parametrize("network", [BrainNetCNN, BrainNetworkTransformer])
def test_fc_stack_and_bold_give_the_same(network, people, y, few_steps):
    some, labels = people.select(np.arange(20)), y[:20]
    fc = Connectome("correlation").transform(some)
    model = NetworkClassifier(network, epochs=1).fit(fc, labels)
    np.testing.assert_array_equal(model.decision_function(fc), model.decision_function(list(some)))


def test_edges_are_standardised_by_the_training_people_alone(people, y, few_steps):
    fc = Connectome("correlation").transform(people)
    model = NetworkClassifier(BrainNetCNN, epochs=1, validation_share=0).fit(fc, y)
    mean, scale = (part.numpy() for part in model.scaling_)
    np.testing.assert_allclose(mean, fc.mean(axis=0), atol=1e-5)
    np.testing.assert_allclose(np.diagonal(scale), 1)
    off = ~np.eye(N_ROIS, dtype=bool)
    np.testing.assert_allclose(scale[off], fc.std(axis=0)[off], rtol=1e-4)
    before = model.decision_function(fc[:2])
    np.testing.assert_allclose(model.decision_function(fc[:30])[:2], before, atol=1e-5)


def test_epoch_that_tells_held_out_people_apart_best_is_kept(people, y):
    model = NetworkClassifier(MeanMLP, epochs=6, learning_rate=0.1, validation_share=0.2, precision="float32")
    model.fit(people, y)
    _, held_out = training._hold_out((y == "patient").astype(int), np.arange(len(y)), 0.2, 0)
    scores = model.decision_function(people.select(held_out))
    auc = roc_auc_score(y_true=y[held_out] == "patient", y_score=scores)
    assert len(set(model.validation_auc_)) > 1
    assert auc == pytest.approx(model.validation_auc_.max(), abs=1e-9)
    assert model.validation_auc_[model.best_epoch_] == model.validation_auc_.max()


def test_nobody_is_on_both_sides_of_the_inner_split():
    people = np.repeat(np.arange(80), 3)
    targets = people % 2
    train, held_out = training._hold_out(targets, people, 0.125, 0)
    assert not set(people[train]) & set(people[held_out])
    assert len(train) + len(held_out) == 240 and len(held_out) == 30
    assert set(targets[held_out]) == {0, 1}


@pytest.mark.parametrize(("n_people", "share"), [(78, 0.125), (100, 0)])
def test_too_few_people_all_train(n_people, share):
    targets = np.arange(n_people) % 2
    train, held_out = training._hold_out(targets, np.arange(n_people), share, 0)
    assert len(train) == n_people and len(held_out) == 0


def test_groups_reach_the_inner_split_through_a_pipeline(people, y, few_steps, monkeypatch):
    seen = []
    monkeypatch.setattr(
        training, "_hold_out", lambda targets, people, *rest: (seen.append(people), (np.arange(len(targets)), []))[1]
    )
    model = make_pipeline(Connectome("correlation"), NetworkClassifier(BrainNetCNN, epochs=1))
    groups = np.arange(len(y)) // 2
    with sklearn.config_context(enable_metadata_routing=True):
        assert "groups" in get_routing_for_object(model).consumes("fit", ["groups"])
        model.fit(people, y, groups=groups)
    np.testing.assert_array_equal(seen[0], groups)


def test_a_cohort_knows_its_people_itself(y, few_steps, monkeypatch):
    seen = []
    monkeypatch.setattr(
        training, "_hold_out", lambda targets, people, *rest: (seen.append(people), (np.arange(len(targets)), []))[1]
    )
    cohort = simulate_cohort(n_people=6, n_sites=1, n_rois=N_ROIS, n_volumes=30, n_sessions=2)
    NetworkClassifier(MeanMLP, epochs=1).fit(cohort, cohort.table["dx"].to_numpy())
    np.testing.assert_array_equal(seen[0], np.repeat(np.arange(6), 2))


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"epochs": 0}, "cannot train"),
        ({"validation_share": 0.5}, "validation_share is 0.5"),
        ({"precision": "float16"}, "choose float32 or bfloat16"),
    ],
)
def test_parameters_that_cannot_train_are_named(parameters, sentence, people, y):
    with pytest.raises(OpenBrainMassError, match=sentence):
        NetworkClassifier(MeanMLP, **parameters).fit(people, y)


def test_labels_and_groups_must_fit(people, y):
    with pytest.raises(OpenBrainMassError, match="60 recordings were given with 3 labels"):
        NetworkClassifier(MeanMLP).fit(people, y[:3])
    with pytest.raises(OpenBrainMassError, match="60 recordings were given with 2 groups"):
        NetworkClassifier(MeanMLP).fit(people, y, groups=[1, 2])
    with pytest.raises(OpenBrainMassError, match="at least two classes"):
        NetworkClassifier(MeanMLP).fit(people, np.zeros(len(people)))


def test_a_loss_that_is_not_finite_is_an_error(people, y):
    with pytest.raises(OpenBrainMassError, match="The loss of MeanMLP became nan in epoch 1"):
        NetworkClassifier(MeanMLP, learning_rate=1e38).fit(people, y)


def test_they_run_on_the_folds_of_evaluate(people, few_steps):
    task = Task.from_cohort(people, target="dx")
    models = {name: model for name, model in rival_networks(seed=1).items()}
    results = evaluate(models, people, task, protocols=("k-fold",), n_folds=2, n_repeats=1)
    assert set(results.predictions["model"]) == set(NAMES)
    assert np.isfinite(results.predictions["y_score"]).all()
