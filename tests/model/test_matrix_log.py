"""The logarithm is scipy's, its gradient is right, and a transformer can read it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.linalg import logm
from sklearn.pipeline import make_pipeline

from openbrainmass.cohort.simulate import simulate_cohort
from openbrainmass.connectivity import correlation
from openbrainmass.evaluation.probes import make_probe
from openbrainmass.evaluation.tasks import Task
from openbrainmass.interpretation.explain import explain
from openbrainmass.model.checkpoint import Checkpoint
from openbrainmass.model.embedder import Embedder
from openbrainmass.model.matrix_log import matrix_log
from openbrainmass.model.pretrain import pretrain
from openbrainmass.model.settings import preset


def positive(rng: np.random.Generator, n: int) -> np.ndarray:
    values = rng.normal(size=(2 * n, n))
    return values.T @ values / (2 * n) + 0.1 * np.eye(n)


@given(seed=st.integers(0, 1000), n=st.integers(2, 7))
def test_the_logarithm_is_scipys(seed, n):
    matrix = positive(np.random.default_rng(seed), n)
    np.testing.assert_allclose(matrix_log(torch.from_numpy(matrix)).numpy(), logm(matrix), atol=1e-10)


def test_the_gradient_is_right_also_where_eigenvalues_are_equal():
    rng = np.random.default_rng(0)
    equal = torch.eye(5, dtype=torch.float64) * 0.3
    equal[:2, :2] = 0.7
    equal[0, 0] = equal[1, 1] = 1.0
    matrices = torch.stack([torch.from_numpy(positive(rng, 5)), torch.eye(5, dtype=torch.float64), equal])
    assert torch.autograd.gradcheck(lambda m: matrix_log((m + m.mT) / 2), matrices.requires_grad_())


LOGARITHMS = preset("tiny").model_copy(
    update={"encoder": preset("tiny").encoder.model_copy(update={"input": "logarithm"}), "max_steps": 2}
)


def test_a_transformer_reads_the_logarithm_of_the_shrunk_fc(cohort):
    encoder = Checkpoint.untrained(cohort.atlas, LOGARITHMS).transformer()
    plain = Checkpoint.untrained(cohort.atlas, preset("tiny")).transformer()
    fc = torch.from_numpy(np.stack([correlation(cohort[0]), correlation(cohort[1])])).float()
    expected = np.stack([logm(0.7 * one + 0.3 * np.eye(len(one))) for one in fc.double().numpy()])
    torch.testing.assert_close(encoder.read_in(fc), torch.from_numpy(expected).float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(encoder(fc), plain(torch.from_numpy(expected).float()), atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(plain.read_in(fc), fc)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_it_pretrains_on_logarithms_and_reconstructs_them(cohort, tmp_path, precision):
    checkpoint = pretrain(cohort, LOGARITHMS.model_copy(update={"precision": precision}), tmp_path / "run")
    assert np.isfinite(Embedder(checkpoint).transform(cohort)).all()


def test_decisions_on_logarithms_are_explained_in_fc():
    people = simulate_cohort(n_people=40, n_sites=2, n_rois=21, n_volumes=80, effect=2.0, seed=4)
    model = make_pipeline(Embedder(Checkpoint.untrained(people.atlas, LOGARITHMS)), make_probe("ridge"))
    found = explain(model, people, Task.from_cohort(people, "dx"), n_folds=2, n_permutations=3)
    assert len(found.rois) == 21
    assert found.settings["completeness_error"] < 0.05
