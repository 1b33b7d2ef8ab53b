"""BrainNetCNN is the convolution of its paper, however it is computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torch.nn import functional

from openbrainmass.model.rivals.brain_net_cnn import LEAK, BrainNetCNN, cross_to_node

N_ROIS = 9


def _by_convolution(network: BrainNetCNN, fc: torch.Tensor) -> torch.Tensor:
    """The same network with cross-shaped convolutions that are moved over the matrix."""
    maps, n_rois = fc.unsqueeze(1), fc.shape[-1]
    first, second = (network.first_row, network.first_column), (network.second_row, network.second_column)
    for n_in, (row, column) in ((1, first), (32, second)):
        along_row = row.weight.view(-1, n_in, 1, n_rois)
        if n_in > 1:
            along_column = column.weight.view(-1, n_rois, n_in).transpose(1, 2).unsqueeze(-1)
        else:
            along_column = column.weight.view(-1, 1, n_rois, 1)
        crosses = functional.conv2d(maps, along_row, row.bias) + functional.conv2d(maps, along_column, column.bias)
        maps = functional.leaky_relu(crosses, LEAK)
    nodes = functional.conv2d(maps, network.to_node.weight.view(1, 64, 1, n_rois), network.to_node.bias)
    values = functional.leaky_relu(nodes.flatten(1), LEAK)
    for layer in network.dense:
        values = functional.leaky_relu(layer(values), LEAK)
    return network.head(values)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return BrainNetCNN(N_ROIS, 2).eval()


def test_output_and_gradients_are_those_of_the_convolutions(network):
    # Not symmetric, so that rows and columns cannot stand in for each other.
    fc = torch.randn(3, N_ROIS, N_ROIS)
    torch.testing.assert_close(network(fc), _by_convolution(network, fc))
    ours = torch.autograd.grad(network(fc)[:, 1].sum(), list(network.parameters()))
    theirs = torch.autograd.grad(_by_convolution(network, fc)[:, 1].sum(), list(network.parameters()))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_parameters_are_as_many_as_the_paper_has():
    n = 200
    edges = 2 * (n * 32 + 32) + 2 * (32 * n * 64 + 64)
    nodes_and_dense = (64 * n + 1) + (n * 256 + 256) + (256 * 128 + 128) + (128 * 30 + 30) + (30 * 2 + 2)
    assert sum(parameter.numel() for parameter in BrainNetCNN(n, 2).parameters()) == edges + nodes_and_dense


def test_every_parameter_is_trained(network):
    functional.cross_entropy(network.train()(torch.randn(6, N_ROIS, N_ROIS)), torch.tensor([0, 1] * 3)).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_reordering_rois_and_filters_alike_changes_nothing(network):
    fc = torch.randn(2, N_ROIS, N_ROIS)
    order = torch.randperm(N_ROIS)
    before = network(fc)
    with torch.no_grad():
        for first in (network.first_row, network.first_column, network.dense[0]):
            first.weight.copy_(first.weight[:, order])
        network.second_row.weight.copy_(network.second_row.weight.view(64, 32, N_ROIS)[..., order].flatten(1))
        columns = network.second_column.weight
        columns.copy_(columns.view(64, N_ROIS, 32)[:, order].flatten(1))
        network.to_node.weight.copy_(network.to_node.weight.view(64, N_ROIS)[:, order].view(1, -1))
    torch.testing.assert_close(network(fc[:, order][:, :, order]), before)


_VALUES = st.floats(-3, 3, width=32)


@given(
    rows=arrays(np.float32, (2, 4, 3), elements=_VALUES),
    columns=arrays(np.float32, (2, 3, 4), elements=_VALUES),
    weight=arrays(np.float32, (3, 4), elements=_VALUES),
)
def test_cumulative_sums_are_the_sum_over_the_maps(rows, columns, weight):
    rows, columns, weight = torch.from_numpy(rows), torch.from_numpy(columns), torch.from_numpy(weight)
    maps = functional.leaky_relu(rows.unsqueeze(-1) + columns.unsqueeze(1), LEAK)
    expected = (maps * weight).sum(dim=(2, 3))
    torch.testing.assert_close(cross_to_node(rows, columns, weight), expected, rtol=1e-4, atol=1e-4)


def test_bfloat16_says_about_the_same(network):
    fc = torch.randn(4, N_ROIS, N_ROIS)
    with torch.autocast("cpu", torch.bfloat16):
        reduced = network(fc).float()
    torch.testing.assert_close(reduced, network(fc), rtol=0.05, atol=0.02)
