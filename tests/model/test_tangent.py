"""The tangent encoder is the tangent space with a fixed shrinkage, learnt in closed form, differentiable and honest."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import logm, sqrtm
from sklearn.pipeline import make_pipeline

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.cohort.simulate import simulate_cohort
from openbrainmass.connectivity import correlation
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.baselines import Connectome
from openbrainmass.evaluation.evaluate import evaluate
from openbrainmass.evaluation.probes import make_probe
from openbrainmass.evaluation.tasks import Task
from openbrainmass.interpretation.explain import explain
from openbrainmass.model.checkpoint import Checkpoint
from openbrainmass.model.embedder import Embedder
from openbrainmass.model.finetune import FineTuneClassifier
from openbrainmass.model.in_fold import PretrainInFold
from openbrainmass.model.pretrain import pretrain
from openbrainmass.model.scans import Scans
from openbrainmass.model.settings import PretrainSettings, preset
from openbrainmass.model.tangent import (
    LEAST_RECORDINGS,
    TangentEncoder,
    between_sites,
    learn_tangent,
    whitening,
)

SETTINGS = preset("tangent")


def with_modes(modes: int) -> PretrainSettings:
    encoder = SETTINGS.encoder.model_copy(update={"modes": modes, "site_modes": 0})
    return SETTINGS.model_copy(update={"encoder": encoder})


@pytest.fixture(scope="module")
def checkpoint(cohort, tmp_path_factory) -> Checkpoint:
    return pretrain(cohort, SETTINGS, tmp_path_factory.mktemp("tangent") / "run")


def positive(rng: np.random.Generator, n: int) -> np.ndarray:
    values = rng.normal(size=(2 * n, n))
    return values.T @ values / (2 * n) + 0.1 * np.eye(n)


def test_all_modes_whiten_the_mean_and_none_only_scale_it():
    mean = torch.from_numpy(positive(np.random.default_rng(1), 6))
    expected = np.linalg.inv(sqrtm(mean.numpy()))
    for enough in (6, 100):
        np.testing.assert_allclose(whitening(mean, enough).numpy(), expected, atol=1e-10)
    none = whitening(mean, 0)
    torch.testing.assert_close(none, none[0, 0] * torch.eye(6, dtype=torch.float64))


def test_one_mode_whitens_the_strongest_direction_alone():
    mean = torch.from_numpy(positive(np.random.default_rng(2), 6))
    values, vectors = torch.linalg.eigh(mean)
    first = vectors[:, -1]
    whitener = whitening(mean, 1)
    torch.testing.assert_close(whitener @ first, first * values[-1].rsqrt())
    others = whitener @ vectors[:, :-1]
    torch.testing.assert_close(others, vectors[:, :-1] * values[:-1].log().mean().exp().rsqrt())


def test_with_all_modes_it_is_the_baseline_that_is_fitted_in_the_fold(cohort, tmp_path):
    whole = pretrain(cohort, with_modes(1000), tmp_path / "run")
    ours = whole.encoder().tokens(torch.from_numpy(np.stack([correlation(bold) for bold in cohort])))
    rows, columns = np.triu_indices(cohort.atlas.n_rois)
    baseline = Connectome("tangent", shrinkage=0.3).fit_transform(cohort)
    root = np.where(rows == columns, 1, np.sqrt(2))
    np.testing.assert_allclose(ours.numpy()[:, rows, columns] * root, baseline, atol=1e-4)


@given(seed=st.integers(0, 1000), n_sites=st.integers(2, 6))
def test_site_modes_are_symmetric_and_at_right_angles_and_hold_what_sites_differ_in(seed, n_sites):
    rng = np.random.default_rng(seed)
    columns = torch.from_numpy(rng.normal(size=(n_sites, 9, 2)))
    effects = columns @ torch.diag(torch.tensor([1.0, -1.0], dtype=torch.float64)) @ columns.mT
    counts = torch.from_numpy(rng.integers(10, 50, size=n_sites))
    centred = effects - (effects * counts[:, None, None]).sum(0) / counts.sum()
    modes = between_sites((centred + 3.0) * counts[:, None, None], counts)
    assert len(modes) <= n_sites
    torch.testing.assert_close(modes, modes.mT)
    flat = modes.flatten(1)
    torch.testing.assert_close(flat @ flat.T, torch.eye(len(modes), dtype=torch.float64))
    if n_sites == 2:
        along = centred.flatten(1) @ flat[:1].T
        assert len(modes) == 1
        torch.testing.assert_close(along @ flat[:1], centred.flatten(1))


def test_what_differs_between_sites_is_taken_out_of_new_people_too():
    plain = simulate_cohort(n_people=160, n_sites=2, n_rois=21, n_volumes=80, effect=0.0, seed=1)
    names, site = plain.recordings["recording_id"].tolist(), plain.table["site"].to_numpy()
    rng = np.random.default_rng(0)
    pattern, at_second = rng.normal(size=21), site == np.unique(site)[1]

    def read(name: str) -> np.ndarray:
        number = names.index(name)
        bold = plain.bold(number)
        noise = np.random.default_rng(number).normal(size=(len(bold), 1)) * bold.std()
        return bold + at_second[number] * noise * pattern

    people = Cohort(plain.name, plain.recordings, plain.participants, plain.atlas, read)
    first, new = people.select(np.arange(160) < 80), people.select(np.arange(160) >= 80)
    apart = []
    for settings in (with_modes(1), SETTINGS):
        values = PretrainInFold(settings).fit(first).transform(new)
        apart.append(np.linalg.norm(values[at_second[80:]].mean(0) - values[~at_second[80:]].mean(0)))
    assert apart[1] < 0.55 * apart[0]


def test_one_site_or_too_small_ones_have_no_modes():
    people = simulate_cohort(n_people=40, n_sites=2, n_rois=21, n_volumes=80, seed=1)
    of_first = (people.table["site"] == people.table["site"].iloc[0]).to_numpy()
    few = of_first | (np.cumsum(~of_first) <= LEAST_RECORDINGS - 1)
    enough = of_first | (np.cumsum(~of_first) <= LEAST_RECORDINGS)
    found = [learn_tangent(Scans(people.select(rows)), SETTINGS.encoder).site_modes for rows in (of_first, few, enough)]
    assert [int(modes.flatten(1).any(1).sum()) for modes in found] == [0, 0, 1]


def test_the_embedding_has_a_named_value_for_each_pair_of_rois(checkpoint, cohort):
    n_rois = cohort.atlas.n_rois
    embedder = Embedder(checkpoint)
    embedding = embedder.transform(cohort)
    names = embedder.get_feature_names_out()
    assert embedding.shape == (len(cohort), n_rois * (n_rois + 1) // 2) == (len(cohort), len(names))
    assert embedding.shape[1] == checkpoint.encoder().embedding_size
    first, second = cohort.atlas.roi_names[:2]
    assert list(names[:2]) == [f"{first} x {first}", f"{first} x {second}"]
    assert len(set(names)) == len(names)


def test_untrained_it_is_the_logarithm_of_the_shrunk_fc(cohort):
    untrained = Checkpoint.untrained(cohort.atlas, SETTINGS)
    fc = correlation(np.asarray(cohort[0], dtype=np.float64))
    expected = logm(0.7 * fc + 0.3 * np.eye(len(fc)))
    embedding = Embedder(untrained).transform([cohort[0]])[0]
    np.testing.assert_allclose(embedding, expected[np.triu_indices(len(fc))], atol=1e-4)


def test_what_is_saved_comes_back_and_says_whom_it_saw(checkpoint, cohort, tmp_path):
    again = Checkpoint.load(checkpoint.save(tmp_path / "copy"))
    np.testing.assert_array_equal(Embedder(again).transform(cohort), Embedder(checkpoint).transform(cohort))
    assert again.seen_identities == cohort.hashes()
    assert again.facts["n_people"] == 24


def test_pretraining_again_reads_the_finished_run(cohort, tmp_path):
    pretrain(cohort, SETTINGS, tmp_path / "run")
    before = (tmp_path / "run" / "card.json").read_bytes()
    pretrain(cohort, SETTINGS, tmp_path / "run")
    assert (tmp_path / "run" / "card.json").read_bytes() == before
    with pytest.raises(OpenBrainMassError, match="other settings"):
        pretrain(cohort, with_modes(2), tmp_path / "run")


def test_scans_shorter_than_the_atlas_and_missing_parcels_have_finite_embeddings(checkpoint):
    rng = np.random.default_rng(0)
    short, missing = rng.normal(size=(8, 21)), rng.normal(size=(50, 21))
    missing[:, 3] = np.nan
    assert np.isfinite(Embedder(checkpoint).transform([short, missing])).all()


def test_fc_of_another_atlas_is_refused(checkpoint):
    with pytest.raises(OpenBrainMassError, match=r"expects FC of shape \(n, 21, 21\)"):
        checkpoint.encoder()(torch.eye(5)[None])


def test_there_are_no_layers_to_move_or_to_reduce(checkpoint, cohort):
    with pytest.raises(OpenBrainMassError, match="no layers"):
        FineTuneClassifier(checkpoint).fit(cohort, np.arange(len(cohort)) % 2)
    with pytest.warns(UserWarning, match="no layers that bfloat16"):
        reduced = Embedder(checkpoint, precision="bfloat16").transform(cohort)
    np.testing.assert_array_equal(reduced, Embedder(checkpoint).transform(cohort))


def test_the_paper_has_none():
    with pytest.raises(OpenBrainMassError, match="paper's recipe has no tangent"):
        preset("tangent", "paper")


def test_it_finds_an_effect_in_people_it_has_not_met():
    people = simulate_cohort(n_people=80, n_sites=2, n_rois=21, n_volumes=100, effect=2.0, seed=3)
    task = Task.from_cohort(people, "dx")
    models = {"ours": make_pipeline(PretrainInFold(SETTINGS), make_probe("ridge"))}
    results = evaluate(models, people, task, protocols=("k-fold",), n_repeats=1)
    assert results.metrics().query("metric == 'auc'")["value"].item() > 0.7


def test_its_decisions_are_explained_edge_by_edge(checkpoint):
    people = simulate_cohort(n_people=40, n_sites=2, n_rois=21, n_volumes=80, seed=4)
    own = Checkpoint(checkpoint.settings, people.atlas, checkpoint.weights)
    model = make_pipeline(Embedder(own), make_probe("ridge"))
    found = explain(model, people, Task.from_cohort(people, "dx"), n_folds=2, n_permutations=3)
    assert len(found.rois) == 21
    assert found.settings["completeness_error"] < 1e-3


def test_encoders_have_a_kind(cohort):
    assert isinstance(Checkpoint.untrained(cohort.atlas, SETTINGS).encoder(), TangentEncoder)
    with pytest.raises(OpenBrainMassError, match="no layers"):
        Checkpoint.untrained(cohort.atlas, SETTINGS).transformer()
    Checkpoint.untrained(cohort.atlas, preset("tiny")).transformer()
