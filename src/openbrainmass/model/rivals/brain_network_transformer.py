"""Brain Network Transformer: attention between ROIs, read out by soft clusters around orthonormal centres.

Kan et al., "Brain Network Transformer", NeurIPS 2022: two transformer layers whose tokens are the rows of the FC matrix,
then 100 clusters with fixed orthonormal centres, then a small dense head.
"""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn import functional

from openbrainmass.model.encoder import EncoderLayer
from openbrainmass.model.rivals.training import Network
from openbrainmass.model.settings import EncoderSettings

HEADS = 4
"""Attention heads; rows are padded with zeros where their length is no multiple of this."""

CLUSTERS = 100
"""Clusters of the readout; no more than there are ROIs."""

_LAYER = EncoderSettings(heads=HEADS, ffn=1024, dropout=0.1, attention_dropout=0.1)
_BOTTLENECK = 32
_REDUCED = 8


class OrthonormalClusters(nn.Module):
    """Tokens pooled by how much of each lies along each of a set of orthonormal centres, which are not trained.

    Parameters
    ----------
    n_tokens, width : int
        Shape of the tokens.
    n_clusters : int
        Centres, at most `width`.
    """

    centres: torch.Tensor

    def __init__(self, n_tokens: int, width: int, n_clusters: int) -> None:
        super().__init__()
        self.encode = nn.Sequential(
            nn.Linear(n_tokens * width, _BOTTLENECK),
            nn.LeakyReLU(),
            nn.Linear(_BOTTLENECK, _BOTTLENECK),
            nn.LeakyReLU(),
            nn.Linear(_BOTTLENECK, n_tokens * width),
        )
        self.register_buffer("centres", nn.init.orthogonal_(torch.empty(n_clusters, width)))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens ``(n, n_tokens, width)`` in, clusters ``(n, n_clusters, width)`` out."""
        encoded = self.encode(tokens.flatten(1)).view(tokens.shape)
        shares = functional.linear(encoded, self.centres).square().softmax(dim=-1)
        return torch.matmul(shares.transpose(1, 2), encoded)


class BrainNetworkTransformer(Network):
    """Two transformer layers, orthonormal clustering, a dense head.

    Parameters
    ----------
    n_rois : int
        ROIs of the atlas: tokens and, up to padding, their width.
    n_classes : int
        Logits.
    """

    def __init__(self, n_rois: int, n_classes: int) -> None:
        super().__init__(n_rois, n_classes)
        width = math.ceil(n_rois / HEADS) * HEADS
        n_clusters = min(CLUSTERS, n_rois)
        self.padding = width - n_rois
        self.layers = nn.Sequential(EncoderLayer(width, _LAYER), EncoderLayer(width, _LAYER))
        self.clusters = OrthonormalClusters(n_rois, width, n_clusters)
        self.reduce = nn.Linear(width, _REDUCED)
        self.head = nn.Sequential(
            nn.Linear(_REDUCED * n_clusters, 256),
            nn.LeakyReLU(),
            nn.Linear(256, 32),
            nn.LeakyReLU(),
            nn.Linear(32, n_classes),
        )

    def forward(self, fc: torch.Tensor) -> torch.Tensor:
        """FC ``(n, n_rois, n_rois)`` in, logits ``(n, n_classes)`` out."""
        tokens = self.layers(functional.pad(fc, (0, self.padding)))
        return self.head(functional.leaky_relu(self.reduce(self.clusters(tokens))).flatten(1))
