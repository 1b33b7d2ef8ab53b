"""Low-rank updates of an encoder's frozen weights (LoRA: Hu et al., ICLR 2022)."""

from __future__ import annotations

import math

import torch
from torch import nn
from torch.nn.utils import parametrize

from openbrainmass.model.encoder import Encoder, EncoderLayer

ALPHA = 8.0
"""What the update is scaled by, after division by the rank; fixed, so that another rank needs no other learning rate."""


class LowRankUpdate(nn.Module):
    """A weight plus ``ALPHA / rank`` times the product of two thin factors, for `torch.nn.utils.parametrize`.

    Parameters
    ----------
    weight : Tensor (n_out, n_in)
        The weight that is to be updated; decides shape, type and device of the factors.
    rank : int
        Rank of the update.

    Attributes
    ----------
    down : Parameter (rank, n_in)
        A of the paper, random.
    up : Parameter (n_out, rank)
        B of the paper, zero at first, so that the weight is at first what it was.
    """

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        n_out, n_in = weight.shape
        self.scale = ALPHA / rank
        self.down = nn.Parameter(weight.new_empty(rank, n_in))
        self.up = nn.Parameter(weight.new_zeros(n_out, rank))
        # As the authors' own code draws it: uniform within 1 / sqrt(n_in).
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The updated weight, ``(n_out, n_in)``."""
        return weight + self.scale * (self.up @ self.down)


def add_updates(encoder: Encoder, rank: int) -> None:
    """Give both attention projections and both feed-forward matrices of every layer a low-rank update.

    Parameters
    ----------
    encoder : Encoder
        Changed in place; its output stays what it was until the updates are trained.
    rank : int
        Rank of each update. The factors are drawn from torch's random generator.
    """
    for module, name in _weights(encoder):
        weight = getattr(module, name)
        parametrize.register_parametrization(module, name, LowRankUpdate(weight, rank))


def updates(encoder: Encoder) -> list[LowRankUpdate]:
    """The updates that an encoder was given, layer after layer; none before `add_updates` and after `merge_updates`."""
    return [module for module in encoder.modules() if isinstance(module, LowRankUpdate)]


def merge_updates(encoder: Encoder) -> None:
    """Add the updates to the weights in place, which leaves a plain encoder."""
    for module, name in _weights(encoder):
        parametrize.remove_parametrizations(module, name, leave_parametrized=True)


def _weights(encoder: Encoder) -> list[tuple[nn.Module, str]]:
    """Modules and names of the weights that are updated."""
    return [
        place
        for layer in encoder.modules()
        if isinstance(layer, EncoderLayer)
        for place in (
            (layer.self_attn, "in_proj_weight"),
            (layer.self_attn.out_proj, "weight"),
            (layer.linear1, "weight"),
            (layer.linear2, "weight"),
        )
    ]
