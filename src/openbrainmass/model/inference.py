"""A copy of an encoder that only embeds, with matrix products in bfloat16.

Tokens stay float32 between the products, and so do both normalisations: rounding them costs ten times the error and
saves nothing. Attention is written as plain products, because torch's fused kernel is slow in bfloat16 on a CPU.
"""

from __future__ import annotations

import copy
import math
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from openbrainmass.model.encoder import Encoder, EncoderLayer


class _ReducedLayer(nn.Module):
    """A layer of the encoder in evaluation mode: weights converted once, the scale of the scores put into them."""

    def __init__(self, layer: EncoderLayer) -> None:
        super().__init__()
        attention = layer.self_attn
        width = attention.in_proj_weight.shape[1]
        self.heads = attention.heads
        scale = torch.ones(3 * width, device=attention.in_proj_weight.device)
        scale[:width] = 1 / math.sqrt(width // self.heads)
        self.project = _reduced(attention.in_proj_weight * scale[:, None], attention.in_proj_bias * scale)
        self.out = _reduced(attention.out_proj.weight, attention.out_proj.bias)
        self.widen = _reduced(layer.linear1.weight, layer.linear1.bias)
        self.narrow = _reduced(layer.linear2.weight, layer.linear2.bias)
        self.norm1, self.norm2 = layer.norm1, layer.norm2

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Tokens ``(n, length, width)``, float32, in and out."""
        tokens = self.norm1(tokens + self.attend(tokens.bfloat16()))
        hidden = functional.linear(tokens.bfloat16(), *self.widen).relu_()
        return self.norm2(tokens + functional.linear(hidden, *self.narrow))

    def attend(self, tokens: torch.Tensor) -> torch.Tensor:
        """Self-attention of tokens ``(n, length, width)``, bfloat16, in and out."""
        n, length, width = tokens.shape
        projected = functional.linear(tokens, *self.project).view(n, length, 3, self.heads, -1)
        query, key, value = projected.permute(2, 0, 3, 1, 4).reshape(3, n * self.heads, length, -1).unbind(0)
        weights = torch.bmm(query, key.transpose(1, 2)).softmax(dim=-1)
        mixed = torch.bmm(weights, value).view(n, self.heads, length, -1)
        return functional.linear(mixed.transpose(1, 2).reshape(n, length, width), *self.out)


def _reduced(weight: torch.Tensor, bias: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return weight.detach().bfloat16(), bias.detach().bfloat16()


def in_bfloat16(encoder: Encoder) -> Encoder:
    """Copy of an encoder, in evaluation mode, whose layers multiply in bfloat16; input, readout and sums are float32.

    Parameters
    ----------
    encoder : Encoder
        On the device where the copy will be used; it is left as it is.

    Returns
    -------
    Encoder
        FC ``(n, n_rois, n_rois)`` in, float32 embeddings ``(n, readout * n_rois)`` out, without gradients.
    """
    reduced = copy.deepcopy(encoder).eval()
    reduced.layers = nn.ModuleList(_ReducedLayer(cast(EncoderLayer, layer)) for layer in reduced.layers)
    return reduced


def agreement(exact: torch.Tensor, reduced: torch.Tensor) -> tuple[float, float]:
    """Smallest cosine between two embeddings of one recording, as they are and without what all recordings share.

    Embeddings of different people have cosines of 0.9 and more, so the first alone says little of what tells people
    apart. For the second the mean of the exact embeddings is taken from both, so a shift of all counts as error.

    Parameters
    ----------
    exact, reduced : Tensor (n, size)
        Embeddings of the same recordings; of a single one there is nothing shared to take away.

    Returns
    -------
    float, float
        Both within [-1, 1]; the second is 0 where several recordings do not differ.
    """
    exact, reduced = exact.double(), reduced.double()
    mean = exact.mean(dim=0) if len(exact) > 1 else torch.zeros_like(exact[0])
    whole = functional.cosine_similarity(exact, reduced)
    own = functional.cosine_similarity(exact - mean, reduced - mean)
    return float(whole.min()), float(own.min())
