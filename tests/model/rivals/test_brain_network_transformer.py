"""Brain Network Transformer has the parts of its paper."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from openbrainmass.model.rivals.brain_network_transformer import BrainNetworkTransformer, OrthonormalClusters

N_ROIS = 14


@pytest.fixture
def network():
    torch.manual_seed(0)
    return BrainNetworkTransformer(N_ROIS, 2).eval()


def test_parameters_are_as_many_as_the_paper_has():
    n = 200
    layer = 4 * (n * n + n) + (n * 1024 + 1024) + (1024 * n + n) + 2 * 2 * n
    clusters = (n * n * 32 + 32) + (32 * 32 + 32) + (32 * n * n + n * n)
    head = (n * 8 + 8) + (800 * 256 + 256) + (256 * 32 + 32) + (32 * 2 + 2)
    network = BrainNetworkTransformer(n, 2)
    assert sum(parameter.numel() for parameter in network.parameters()) == 2 * layer + clusters + head
    assert network.clusters.centres.shape == (100, n)


def test_centres_are_orthonormal_and_stay_where_they_are(network):
    centres = network.clusters.centres
    torch.testing.assert_close(centres @ centres.T, torch.eye(len(centres)), atol=1e-5, rtol=0)
    assert "clusters.centres" not in dict(network.named_parameters())
    assert "clusters.centres" in network.state_dict()


def test_clusters_share_out_every_token():
    torch.manual_seed(0)
    clusters, tokens = OrthonormalClusters(5, 8, 3), torch.randn(2, 5, 8)
    encoded = clusters.encode(tokens.flatten(1)).view(2, 5, 8)
    # The shares of a token over the clusters sum to one, so the clusters together hold what the tokens held.
    torch.testing.assert_close(clusters(tokens).sum(dim=1), encoded.sum(dim=1))


def test_transformer_layers_do_not_know_the_order_of_the_rois(network):
    tokens = torch.randn(2, N_ROIS, N_ROIS + network.padding)
    order = torch.randperm(N_ROIS)
    torch.testing.assert_close(network.layers(tokens[:, order]), network.layers(tokens)[:, order], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("n_rois", [14, 16])
def test_any_number_of_rois_gives_logits(n_rois):
    network = BrainNetworkTransformer(n_rois, 3)
    assert network(torch.randn(2, n_rois, n_rois)).shape == (2, 3)
    assert (n_rois + network.padding) % 4 == 0


def test_every_parameter_is_trained(network):
    functional.cross_entropy(network.train()(torch.randn(6, N_ROIS, N_ROIS)), torch.tensor([0, 1] * 3)).backward()
    still = [name for name, parameter in network.named_parameters() if not parameter.grad.any()]
    assert still == []
