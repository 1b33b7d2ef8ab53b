"""The encoder: rows of an FC matrix are tokens; a few values are read out of each ROI."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import nn
from torch.nn import functional

from openbrainmass.errors import OpenBrainMassError
from openbrainmass.model.dropout import dropout, dropout_positive, relu_dropout
from openbrainmass.model.matrix_log import matrix_log, shrunk
from openbrainmass.model.settings import EncoderSettings


class SelfAttention(nn.Module):
    """Multi-head self-attention with the parameter names of ``torch.nn.MultiheadAttention``.

    On a CPU torch's fused kernel has no dropout, and takes four times as long as plain products in bfloat16.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.dropout = dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens ``(n, length, width)`` in, the same shape out."""
        n, length, width = tokens.shape
        projected = functional.linear(tokens, self.in_proj_weight, self.in_proj_bias)
        query, key, value = projected.view(n, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        share = self.dropout if self.training else 0.0
        if tokens.is_cuda or (share == 0 and query.dtype == torch.float32):
            mixed = functional.scaled_dot_product_attention(query, key, value, dropout_p=share)
        else:
            scores = torch.matmul(query / math.sqrt(query.shape[-1]), key.transpose(-2, -1))
            weights, factor = dropout_positive(scores.softmax(dim=-1), share, self.training)
            mixed = torch.matmul(weights, value * factor)
        return self.out_proj(mixed.transpose(1, 2).reshape(n, length, width))


class EncoderLayer(nn.Module):
    """A post-norm transformer layer with the parameter names of ``torch.nn.TransformerEncoderLayer``."""

    def __init__(self, width: int, settings: EncoderSettings) -> None:
        super().__init__()
        self.dropout = settings.dropout
        self.self_attn = SelfAttention(width, settings.heads, settings.attention_dropout)
        self.linear1 = nn.Linear(width, settings.ffn)
        self.linear2 = nn.Linear(settings.ffn, width)
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens ``(n, length, width)`` in, the same shape out."""
        attended = dropout(self.self_attn(tokens), self.dropout, self.training)
        tokens = self.norm1(tokens + attended)
        hidden, factor = relu_dropout(self.linear1(tokens), self.dropout, self.training)
        change = functional.linear(hidden, self.linear2.weight * factor, self.linear2.bias)
        return self.norm2(tokens + dropout(change, self.dropout, self.training))


class Encoder(nn.Module):
    """FC in, embedding out.

    Parameters
    ----------
    n_rois : int
        ROIs of the atlas.
    settings : EncoderSettings
        Width, depth, heads and so on.

    Raises
    ------
    OpenBrainMassError
        If the heads cannot share the width.
    """

    def __init__(self, n_rois: int, settings: EncoderSettings) -> None:
        super().__init__()
        width = settings.token_width(n_rois)
        self.n_rois = n_rois
        self.width = width
        self.settings = settings
        self.project = nn.Identity() if settings.width is None else nn.Linear(n_rois, width)
        self.layers = nn.ModuleList(EncoderLayer(width, settings) for _ in range(settings.depth))
        self.readout = nn.Linear(width, settings.readout)

    @property
    def embedding_size(self) -> int:
        """Values of an embedding: ``readout * n_rois``."""
        return self.settings.embedding_size(self.n_rois)

    def read_in(self, fc: torch.Tensor) -> torch.Tensor:
        """What tokens are made of: FC ``(n, n_rois, n_rois)`` as it is, or the logarithm of its mixture with the identity."""
        require_fc(fc, self.n_rois)
        if self.settings.input == "fc":
            return fc
        return matrix_log(shrunk(fc.float(), self.settings.shrinkage)).to(fc.dtype)

    def run_layers(self, tokens: torch.Tensor) -> torch.Tensor:
        """Pass tokens ``(n, length, width)`` through every layer."""
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens

    def tokens(self, fc: torch.Tensor) -> torch.Tensor:
        """What the last layer says of each ROI.

        Parameters
        ----------
        fc : Tensor (n, n_rois, n_rois)
            Correlations.

        Returns
        -------
        Tensor (n, n_rois, width)
        """
        tokens = self.project(self.read_in(fc))
        if self.settings.positions == "both":
            tokens = tokens + positions_on(tokens.device, self.n_rois, self.width).to(tokens.dtype)
        return self.run_layers(tokens)

    def forward(self, fc: torch.Tensor) -> torch.Tensor:
        """Embed FC ``(n, n_rois, n_rois)`` as ``(n, readout * n_rois)``, ROI after ROI."""
        return self.read_out(self.tokens(fc))

    def read_out(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embeddings ``(n, readout * n_rois)`` from the last layer's tokens ``(n, n_rois, width)``."""
        return functional.leaky_relu(self.readout(tokens)).flatten(1)


def require_fc(fc: torch.Tensor, n_rois: int) -> None:
    """Refuse anything but FC ``(n, n_rois, n_rois)`` of an encoder's own atlas."""
    if fc.ndim != 3 or fc.shape[1:] != (n_rois, n_rois):
        raise OpenBrainMassError(
            f"The encoder expects FC of shape (n, {n_rois}, {n_rois}) but was given {tuple(fc.shape)}. "
            "Give FC of the atlas it was built for."
        )


def sinusoidal_positions(length: int, width: int) -> torch.Tensor:
    """Sines (even columns) and cosines (odd) of a position at falling frequencies, ``(length, width)``."""
    position = torch.arange(length, dtype=torch.float64)[:, None]
    frequency = 10000 ** (-2 * (torch.arange(width) // 2).double() / width)
    angle = position * frequency
    return torch.where(torch.arange(width) % 2 == 0, angle.sin(), angle.cos()).float()


@lru_cache(maxsize=16)
def positions_on(device: torch.device, length: int, width: int) -> torch.Tensor:
    """`sinusoidal_positions` on a device, kept there because sending them at every pass would make it wait."""
    return sinusoidal_positions(length, width).to(device)
