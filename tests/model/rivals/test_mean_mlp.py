"""meanMLP takes the mean over volumes, in whatever order they come."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn import functional

from openbrainmass.errors import OpenBrainMassError
from openbrainmass.model.rivals.mean_mlp import MeanMLP, standardise

N_ROIS = 5


@pytest.fixture
def network():
    torch.manual_seed(0)
    return MeanMLP(N_ROIS, 2).eval()


def test_parameters_are_as_many_as_the_paper_has():
    expected = (200 * 160 + 160) + 2 * 160 + (160 * 2 + 2)
    assert sum(parameter.numel() for parameter in MeanMLP(200, 2).parameters()) == expected


def test_it_is_the_mean_of_what_is_said_of_each_volume(network):
    scans = [torch.randn(7, N_ROIS), torch.randn(4, N_ROIS)]
    said = [network.head(functional.relu(network.norm(network.hidden(scan)))).mean(dim=0) for scan in scans]
    torch.testing.assert_close(network(scans), torch.stack(said))


def test_the_order_of_the_volumes_does_not_matter(network):
    scan = torch.randn(20, N_ROIS)
    torch.testing.assert_close(network([scan[torch.randperm(20)]]), network([scan]))


def test_every_parameter_is_trained(network):
    scans = [torch.randn(9, N_ROIS) for _ in range(4)]
    functional.cross_entropy(network.train()(scans), torch.tensor([0, 1, 0, 1])).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_dropout_keeps_the_mean(network):
    scans = [torch.randn(2000, N_ROIS)]
    torch.testing.assert_close(network.train()(scans), network.eval()(scans), atol=0.05, rtol=0.1)


@given(arrays(np.float32, (6, 3), elements=st.floats(-1000, 1000, width=16)))
def test_each_roi_has_mean_0_and_variance_1_or_is_0(bold):
    values = standardise(bold)
    assert np.isfinite(values).all()
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-3)
    varies = values.any(axis=0)
    np.testing.assert_allclose(values.std(axis=0)[varies], 1, atol=1e-2)


def test_missing_and_constant_rois_are_0_and_float16_does_not_overflow():
    bold = np.random.default_rng(0).normal(20_000, 5_000, (30, 4)).astype(np.float16)
    bold[:, 1], bold[:, 2] = np.nan, 12_345
    values = standardise(bold)
    assert not values[:, 1:3].any()
    np.testing.assert_allclose(values[:, [0, 3]].std(axis=0), 1, atol=1e-3)


def test_fc_is_refused():
    with pytest.raises(OpenBrainMassError, match="Give the BOLD"):
        MeanMLP.read(np.stack([np.eye(4, dtype=np.float32)] * 3))


def test_a_roi_that_is_missing_in_part_is_refused():
    bold = np.random.default_rng(0).normal(size=(30, 4))
    bold[3, 2] = np.inf
    with pytest.raises(OpenBrainMassError, match=r"ROI column\(s\) 2 of the BOLD hold NaN or infinity at some volumes"):
        standardise(bold)
