"""Fine-tuning helps, does not invent, is repeatable, and behaves as a scikit-learn classifier."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils import get_tags

from openbrainmass.atlas import numbered_atlas
from openbrainmass.cohort.simulate import simulate_cohort
from openbrainmass.connectivity import correlation
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.fitting import fit_model
from openbrainmass.model.checkpoint import Checkpoint
from openbrainmass.model.embedder import Embedder
from openbrainmass.model.finetune import HEAD_C, FineTuneClassifier
from openbrainmass.model.settings import EncoderSettings, PretrainSettings

N_ROIS = 14
SMALL = PretrainSettings(encoder=EncoderSettings(width=16, depth=2, heads=2, ffn=16))


@pytest.fixture(scope="module")
def people():
    return simulate_cohort(n_people=40, n_sites=2, n_rois=N_ROIS, n_volumes=60, effect=2.0, seed=1)


@pytest.fixture(scope="module")
def y(people):
    return people.table["dx"].to_numpy()


@pytest.fixture(scope="module")
def checkpoint(people):
    untrained = Checkpoint.untrained(people.atlas, SMALL)
    return Checkpoint(SMALL, people.atlas, untrained.weights, frozenset({"somebody"}))


@pytest.fixture(scope="module")
def fitted(checkpoint, people, y):
    return FineTuneClassifier(checkpoint, epochs=3).fit(people, y)


def _held_out_auc(model, cohort, y):
    scores = np.zeros(len(y))
    for train, test in StratifiedKFold(3, shuffle=True, random_state=0).split(y, y):
        scores[test] = clone(model).fit(cohort.select(train), y[train]).decision_function(cohort.select(test))
    return roc_auc_score(y_true=y == "patient", y_score=scores)


@pytest.mark.slow
def test_it_beats_the_frozen_encoder():
    cohort = simulate_cohort(n_people=80, n_sites=2, n_rois=35, n_volumes=120, effect=1.5, seed=2)
    y = cohort.table["dx"].to_numpy()
    wider = PretrainSettings(encoder=EncoderSettings(width=32, depth=2, heads=4, ffn=32))
    checkpoint = Checkpoint.untrained(cohort.atlas, wider)
    tuned = _held_out_auc(FineTuneClassifier(checkpoint), cohort, y)
    frozen = _held_out_auc(make_pipeline(Embedder(checkpoint), StandardScaler(), SVC()), cohort, y)
    assert tuned > 0.85
    assert tuned > frozen + 0.1


def test_it_finds_nothing_where_nothing_is():
    cohort = simulate_cohort(n_people=60, n_sites=2, n_rois=N_ROIS, n_volumes=60, effect=0.0, seed=2)
    model = FineTuneClassifier(Checkpoint.untrained(cohort.atlas, SMALL), epochs=10)
    assert 0.3 < _held_out_auc(model, cohort, cohort.table["dx"].to_numpy()) < 0.7


def test_the_loss_falls_and_the_training_people_are_learnt(people, y):
    steady = PretrainSettings(encoder=EncoderSettings(width=32, depth=2, heads=2, ffn=32, dropout=0))
    model = FineTuneClassifier(Checkpoint.untrained(people.atlas, steady), epochs=20).fit(people, y)
    assert model.loss_.shape == (20,)
    assert model.loss_[-1] < 0.75 * model.loss_[0]
    assert model.score(people, y) > 0.8


def test_scores_classes_and_probabilities_agree(fitted, people):
    assert fitted.classes_.tolist() == ["control", "patient"]
    scores, probability = fitted.decision_function(people), fitted.predict_proba(people)
    assert scores.shape == (40,)
    assert probability.shape == (40, 2)
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    np.testing.assert_allclose(probability[:, 1], 1 / (1 + np.exp(-scores)), atol=1e-6)
    np.testing.assert_array_equal(fitted.predict(people), np.where(scores > 0, "patient", "control"))


def test_three_classes(checkpoint, people):
    sites = np.array(["a", "b", "c"])[np.arange(40) % 3]
    model = FineTuneClassifier(checkpoint, epochs=1).fit(people, sites)
    assert model.decision_function(people).shape == (40, 3)
    np.testing.assert_allclose(model.predict_proba(people).sum(axis=1), 1)
    assert set(model.predict(people)) <= {"a", "b", "c"}
    best = model.predict_proba(people).argmax(axis=1)
    np.testing.assert_array_equal(model.predict(people), model.classes_[best])


def test_the_seed_decides_everything(checkpoint, people, y):
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    one, two, other = (FineTuneClassifier(checkpoint, epochs=1, seed=seed).fit(people, y) for seed in (5, 5, 6))
    assert torch.equal(torch.rand(2), expected), "the caller's random numbers were moved"
    np.testing.assert_array_equal(one.decision_function(people), two.decision_function(people))
    assert np.abs(one.decision_function(people) - other.decision_function(people)).max() > 1e-4


def test_a_test_recording_is_scored_whole_and_on_its_own(fitted, people):
    alone = np.concatenate([fitted.decision_function([people[i]]) for i in (3, 1)])
    np.testing.assert_allclose(alone, fitted.decision_function(people)[[3, 1]], atol=1e-5)


@pytest.mark.parametrize(
    ("layers", "moved"),
    [
        ("all", {"encoder.project", "encoder.layers.0", "encoder.layers.1", "encoder.readout", "head"}),
        ("last", {"encoder.layers.1", "encoder.readout", "head"}),
        ("head", {"head"}),
    ],
)
def test_only_the_chosen_layers_move(checkpoint, people, y, layers, moved):
    model = FineTuneClassifier(checkpoint, epochs=1, layers=layers).fit(people, y).model_
    start = checkpoint.encoder().state_dict()
    changed = {name for name, value in model.encoder.state_dict().items() if not torch.equal(value, start[name])}
    places = [place.removeprefix("encoder.") for place in moved if place != "head"]
    expected = {name for name in start for place in places if name.startswith(place + ".")}
    assert changed == expected


def test_the_checkpoint_itself_does_not_move(checkpoint, people, y):
    before = {name: value.clone() for name, value in checkpoint.weights.items()}
    FineTuneClassifier(checkpoint, epochs=1).fit(people, y)
    assert all(torch.equal(value, before[name]) for name, value in checkpoint.weights.items())


def test_without_training_it_is_the_logistic_regression_on_the_frozen_embedding(checkpoint, people, y):
    model = FineTuneClassifier(checkpoint, epochs=1, learning_rate=1e-12).fit(people, y)
    probe = make_pipeline(Embedder(checkpoint), StandardScaler(), LogisticRegression(C=HEAD_C, max_iter=1000))
    expected = probe.fit(people, y).decision_function(people)
    np.testing.assert_allclose(model.decision_function(people), expected, atol=1e-3)


def test_lists_and_fc_are_read_too(checkpoint, people, y):
    bold = list(people)
    fc = np.stack([correlation(scan) for scan in bold])
    of_cohort = FineTuneClassifier(checkpoint, epochs=1, share=0.0).fit(people, y).decision_function(people)
    of_list = FineTuneClassifier(checkpoint, epochs=1, share=0.0).fit(bold, list(y)).decision_function(bold)
    of_fc = FineTuneClassifier(checkpoint, epochs=1, share=0.0).fit(fc, y).decision_function(fc)
    np.testing.assert_array_equal(of_list, of_cohort)
    assert FineTuneClassifier(checkpoint, epochs=1).fit(bold, y).seen_identities == {"somebody"}
    np.testing.assert_allclose(of_fc, of_cohort, atol=1e-3)


def test_pseudo_fc_is_what_it_trains_on(checkpoint, people, y):
    plain = FineTuneClassifier(checkpoint, epochs=1, share=0.0).fit(people, y).decision_function(people)
    augmented = FineTuneClassifier(checkpoint, epochs=1, share=0.3).fit(people, y).decision_function(people)
    assert np.abs(plain - augmented).max() > 1e-4


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"layers": "first"}, "layers is 'first'; choose one of all, last, head, lora"),
        ({"epochs": 0}, "cannot train"),
        ({"learning_rate": 0.0}, "cannot train"),
        ({"batch_size": 0}, "cannot train"),
        ({"rank": 0}, "rank of at least 1"),
        ({"patience": 0}, "patience of at least 1 epoch"),
        ({"share": 0.99}, "too few"),
        ({"device": "abacus"}, "device='cpu'"),
    ],
)
def test_bad_parameters_are_one_sentence(checkpoint, people, y, changes, sentence):
    with pytest.raises(OpenBrainMassError, match=sentence):
        FineTuneClassifier(checkpoint, **changes).fit(people, y)


def test_bad_labels_are_one_sentence(checkpoint, people, y):
    with pytest.raises(OpenBrainMassError, match="40 recordings were given with 39 labels"):
        FineTuneClassifier(checkpoint).fit(people, y[:-1])
    with pytest.raises(OpenBrainMassError, match="at least two classes"):
        FineTuneClassifier(checkpoint).fit(people, np.zeros(40))
    with pytest.raises(ValueError, match="continuous"):
        FineTuneClassifier(checkpoint).fit(people, np.linspace(0, 1, 40))


def test_another_atlas_is_refused_in_fit_and_predict(checkpoint, fitted, people, y):
    other = Checkpoint(SMALL, numbered_atlas("Other", N_ROIS), checkpoint.weights)
    with pytest.raises(OpenBrainMassError, match="but the checkpoint expects Other"):
        FineTuneClassifier(other).fit(people, y)
    with pytest.raises(OpenBrainMassError, match="Recording 0 has 15 ROIs"):
        fitted.predict([np.zeros((30, 15))])


def test_a_loss_that_is_not_finite_stops_with_a_sentence(people, y, checkpoint):
    weights = {name: value.clone() for name, value in checkpoint.weights.items()}
    broken = Checkpoint(SMALL, people.atlas, weights)
    with pytest.raises(OpenBrainMassError, match=r"loss became .* Lower learning_rate"):
        FineTuneClassifier(broken, epochs=3, learning_rate=1e30).fit(people, y)


def test_it_follows_scikit_learn(checkpoint, fitted, people, tmp_path):
    model = FineTuneClassifier(checkpoint, epochs=2, layers="last", rank=3, patience=2)
    assert is_classifier(model)
    assert get_tags(model).requires_fit
    assert clone(model).get_params() == model.get_params()
    assert model.get_params()["checkpoint"] is checkpoint
    assert model.seen_identities == {"somebody"}
    with pytest.raises(NotFittedError):
        model.predict(people)
    assert fitted.seen_identities == frozenset({"somebody"}).union(*people.identities())
    again = pickle.loads(pickle.dumps(fitted))
    np.testing.assert_array_equal(again.decision_function(people), fitted.decision_function(people))


def test_the_checkpoint_can_be_a_folder(checkpoint, people, y, tmp_path):
    checkpoint.save(tmp_path)
    of_folder = FineTuneClassifier(str(tmp_path), epochs=1).fit(people, y)
    assert of_folder.checkpoint == str(tmp_path)
    of_checkpoint = FineTuneClassifier(checkpoint, epochs=1).fit(people, y)
    np.testing.assert_array_equal(of_folder.decision_function(people), of_checkpoint.decision_function(people))


# LoRA


@pytest.fixture(scope="module")
def low_rank(checkpoint, people, y):
    return FineTuneClassifier(checkpoint, epochs=3, layers="lora", rank=2, learning_rate=1e-2).fit(people, y)


def test_lora_moves_four_matrices_a_layer_by_its_rank_and_leaves_a_plain_encoder(low_rank, checkpoint):
    start, end = checkpoint.encoder().state_dict(), low_rank.model_.encoder.state_dict()
    assert end.keys() == start.keys()
    moved = {name for name in start if not torch.equal(end[name], start[name])}
    names = ("self_attn.in_proj_weight", "self_attn.out_proj.weight", "linear1.weight", "linear2.weight")
    assert moved == {f"layers.{layer}.{name}" for layer in range(2) for name in names}
    for name in moved:
        assert torch.linalg.matrix_rank(end[name] - start[name], atol=1e-5, rtol=0) == 2, name
    assert not any(hasattr(module, "parametrizations") for module in low_rank.model_.modules())


def test_the_merged_encoder_is_what_was_trained_and_can_be_pickled(low_rank, people):
    again = pickle.loads(pickle.dumps(low_rank))
    np.testing.assert_array_equal(again.decision_function(people), low_rank.decision_function(people))
    assert clone(low_rank).get_params() == low_rank.get_params()


def test_lora_learns_and_its_seed_decides(people, y):
    steady = PretrainSettings(encoder=EncoderSettings(width=32, depth=2, heads=2, ffn=32, dropout=0))
    start = Checkpoint.untrained(people.atlas, steady)
    one, two, other = (
        FineTuneClassifier(start, epochs=15, layers="lora", learning_rate=3e-3, seed=seed).fit(people, y)
        for seed in (0, 0, 1)
    )
    assert np.isfinite(one.loss_).all()
    assert one.loss_[-1] < 0.9 * one.loss_[0]
    np.testing.assert_array_equal(one.decision_function(people), two.decision_function(people))
    assert np.abs(one.decision_function(people) - other.decision_function(people)).max() > 1e-4


def test_lora_without_training_is_the_frozen_encoder(checkpoint, people, y):
    lora, head = (
        FineTuneClassifier(checkpoint, epochs=1, layers=layers, learning_rate=1e-12).fit(people, y)
        for layers in ("lora", "head")
    )
    np.testing.assert_allclose(lora.decision_function(people), head.decision_function(people), atol=1e-5)


# Early stopping


@pytest.fixture(scope="module")
def visits():
    """20 people with two recordings each."""
    return simulate_cohort(n_people=20, n_sites=2, n_rois=N_ROIS, n_volumes=60, effect=2.0, n_sessions=2, seed=3)


@pytest.fixture
def trained_on(monkeypatch):
    """The rows of every recording that is shown while training."""
    rows = set()
    view = FineTuneClassifier._view

    def noted(self, recording, row, *rest):
        rows.add(row)
        return view(self, recording, row, *rest)

    monkeypatch.setattr(FineTuneClassifier, "_view", noted)
    return rows


def _held_out(visits, trained_on):
    return np.setdiff1d(np.arange(len(visits)), list(trained_on))


@pytest.mark.parametrize("layers", ["all", "lora"])
def test_patience_holds_out_whole_people_and_keeps_the_epoch_that_tells_them_apart_best(
    checkpoint, visits, trained_on, layers
):
    y, person = visits.table["dx"].to_numpy(), visits.table["participant_id"].to_numpy()
    model = FineTuneClassifier(checkpoint, epochs=12, layers=layers, patience=2, learning_rate=1e-2, rank=2)
    fit_model(model, visits, y, person)
    held_out = _held_out(visits, trained_on)
    assert not set(person[held_out]) & set(person[list(trained_on)])
    assert len(set(person[held_out])) == 4
    assert set(y[held_out]) == set(y)
    assert model.n_epochs_ == model.validation_loss_.argmin()
    assert len(model.validation_loss_) == len(model.loss_) + 1
    assert len(model.loss_) == min(12, model.n_epochs_ + 2)
    kept = log_loss(y[held_out], model.predict_proba(visits.select(held_out)))
    assert kept == pytest.approx(model.validation_loss_.min(), abs=1e-5)


def test_the_start_is_a_candidate_and_its_head_has_not_met_the_held_out_people(checkpoint, visits, trained_on):
    y, person = visits.table["dx"].to_numpy(), visits.table["participant_id"].to_numpy()
    # Steps so large that training only harms.
    model = FineTuneClassifier(checkpoint, epochs=5, patience=1, learning_rate=1.0).fit(visits, y, groups=person)
    assert model.n_epochs_ == 0
    assert len(model.loss_) == 1
    rows = sorted(trained_on)
    probe = make_pipeline(Embedder(checkpoint), StandardScaler(), LogisticRegression(C=HEAD_C, max_iter=1000))
    probe.fit(visits.select(rows), y[rows])
    np.testing.assert_allclose(model.decision_function(visits), probe.decision_function(visits), atol=1e-3)
    start = checkpoint.encoder().state_dict()
    assert all(torch.equal(value, start[name]) for name, value in model.model_.encoder.state_dict().items())


def test_held_out_people_count_as_seen(checkpoint, visits):
    y = visits.table["dx"].to_numpy()
    model = FineTuneClassifier(checkpoint, epochs=1, patience=1).fit(visits, y, visits.table["participant_id"])
    assert model.seen_identities == frozenset({"somebody"}).union(*visits.identities())


def test_without_groups_each_recording_is_a_person(checkpoint, people, y, trained_on):
    FineTuneClassifier(checkpoint, epochs=1, patience=1).fit(list(people), y)
    assert len(_held_out(people, trained_on)) == 8


def test_patience_that_never_runs_out_trains_as_long(checkpoint, people, y):
    model = FineTuneClassifier(checkpoint, epochs=3, patience=9).fit(people, y)
    assert len(model.loss_) == 3
    assert model.n_epochs_ == model.validation_loss_.argmin()


def test_with_held_out_people_it_trains_as_if_they_were_not_there(checkpoint, people, y, trained_on):
    stopping = FineTuneClassifier(checkpoint, epochs=3, share=0.0, patience=9).fit(people, y)
    rows = sorted(trained_on)
    alone = FineTuneClassifier(checkpoint, epochs=3, share=0.0).fit(people.select(rows), y[rows])
    np.testing.assert_allclose(stopping.loss_, alone.loss_, atol=1e-5)


def test_without_patience_everyone_is_trained_on_and_nothing_changes(checkpoint, fitted, people, y, trained_on):
    model = FineTuneClassifier(checkpoint, epochs=3).fit(people, y, groups=np.zeros(40))
    assert trained_on == set(range(40))
    assert model.n_epochs_ == 3
    assert model.validation_loss_.shape == (0,)
    np.testing.assert_array_equal(model.loss_, fitted.loss_)
    np.testing.assert_array_equal(model.decision_function(people), fitted.decision_function(people))


def test_too_few_people_to_hold_out_are_one_sentence(checkpoint, people, y):
    first = np.flatnonzero(y == "patient")[0]
    rows = np.concatenate([np.flatnonzero(y == "control"), [first, first]])
    model = FineTuneClassifier(checkpoint, epochs=1, patience=1)
    with pytest.raises(OpenBrainMassError, match=r"patient has 1 of the .* people; patience needs"):
        model.fit(people.select(rows), y[rows], groups=rows)
    with pytest.raises(OpenBrainMassError, match=r"40 recordings were given with groups of shape \(39,\)"):
        model.fit(people, y, groups=np.arange(39))


def test_people_of_several_classes_who_leave_a_side_without_one_are_refused(checkpoint, people):
    # Whoever is held out, all recordings of a class are.
    y, person = np.array([0, 1, 0, 2, 1, 2]), np.array([0, 0, 1, 1, 2, 2])
    with pytest.raises(OpenBrainMassError, match="has 2 of the 3 training people"):
        FineTuneClassifier(checkpoint, epochs=1, patience=1).fit(people.select(range(6)), y, groups=person)
