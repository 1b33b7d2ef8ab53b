"""The losses of pretraining: latent representation alignment (LRA) and masked ROI modelling (MRM).

Source: Yang et al., "BrainMass: Advancing Brain Network Analysis for Diagnosis With Large-Scale Self-Supervised
Learning", IEEE Transactions on Medical Imaging 2024; LRA is BYOL (Grill et al., NeurIPS 2020).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional

from openbrainmass.model.device_draws import draw_rois, philox_key
from openbrainmass.model.encoder import Encoder, positions_on
from openbrainmass.model.settings import PretrainSettings

_MASK_STREAM = 0x6D61736B0000
"""Sets the random numbers of masks apart from those of views, which share seed, epoch and scan."""


def projection_head(n_in: int, n_hidden: int, n_out: int) -> nn.Sequential:
    """Linear, batch norm, ReLU, linear: BYOL's projector and predictor."""
    return nn.Sequential(nn.Linear(n_in, n_hidden), nn.BatchNorm1d(n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_out))


def alignment(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """``2 - 2 cos`` of paired rows ``(n, size)``, averaged."""
    return (2 - 2 * functional.cosine_similarity(prediction, target, dim=-1)).mean()


def identification_loss(rows: torch.Tensor, predictions: torch.Tensor) -> torch.Tensor:
    """InfoNCE among the masked ROIs of the same brain: which prediction belongs to this row?

    Parameters
    ----------
    rows, predictions : Tensor (n, n_masked, n_rois)
        True FC rows of the masked ROIs, and what the identification head says of them.
    """
    logits = rows @ predictions.transpose(1, 2)
    answer = torch.arange(rows.shape[1], device=rows.device).expand(rows.shape[:2])
    return functional.cross_entropy(logits.flatten(0, 1), answer.flatten())


def draw_masks(
    n_rois: int,
    counts: Sequence[int],
    scans: Sequence[int] | torch.Tensor,
    seed: int,
    epoch: int | torch.Tensor,
    apart: bool = False,
    view: int = 0,
    device: torch.device | str = "cpu",
) -> list[torch.Tensor]:
    """Which ROIs to mask, from (seed, epoch, scan, view) alone, on any device the same.

    Parameters
    ----------
    n_rois : int
    counts : sequence of int
        How many ROIs each part masks.
    scans : sequence of int or Tensor (n_scans,), int64
    seed, epoch, view : int
        The epoch may be a Tensor (), too. Tensors on the device spare it the wait for the processor.
    apart : bool
        No ROI belongs to two parts; otherwise they are drawn independently of each other.
    device : torch.device or str
        Where to draw.

    Returns
    -------
    list of Tensor (n_scans, count), int64
        One for each of ``counts``, drawn without replacement.
    """
    device = torch.device(device)
    numbers, when = torch.as_tensor(scans, device=device), torch.as_tensor(epoch, device=device)
    groups = [counts] if apart else [[count] for count in counts]
    drawn = []
    for part, group in enumerate(groups):
        key = philox_key(seed, _MASK_STREAM + (view << 8) + part, device)
        drawn += draw_rois(key, when, numbers, n_rois, group)
    return drawn


class MaskedModelling(nn.Module):
    """What masked ROI modelling learns besides the encoder: mask token, extra tokens, and two heads."""

    def __init__(self, n_rois: int, width: int, settings: PretrainSettings) -> None:
        super().__init__()
        objective = settings.objective
        self.settings = objective
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        nn.init.xavier_normal_(self.mask_token)
        self.extra_tokens = (
            nn.Parameter(torch.empty(1, objective.extra_tokens, width)) if objective.extra_tokens else None
        )
        if self.extra_tokens is not None:
            nn.init.xavier_normal_(self.extra_tokens)
        self.identify = self._head(width, objective.head_hidden, n_rois)
        self.reconstruct = self._head(width, objective.head_hidden, n_rois)

    @staticmethod
    def _head(width: int, n_hidden: int, n_rois: int) -> nn.Sequential:
        return nn.Sequential(nn.Linear(width, n_hidden), nn.LeakyReLU(), nn.Linear(n_hidden, n_rois))

    def masked_tokens(self, encoder: Encoder, fc: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Encode FC of which some ROIs are hidden.

        Parameters
        ----------
        encoder : Encoder
        fc : Tensor (n, n_rois, n_rois)
            As the encoder reads it in (`Encoder.read_in`).
        hidden : Tensor (n, n_rois), bool
            True where an ROI is masked.

        Returns
        -------
        Tensor (n, n_rois, width)
        """
        if self.settings.mask == "rows-and-columns":
            fc = fc.masked_fill(hidden[:, None, :], 0.0)
        tokens = torch.where(hidden[:, :, None], self.mask_token, encoder.project(fc))
        n_extra = 0
        if self.extra_tokens is not None:
            n_extra = self.extra_tokens.shape[1]
            tokens = torch.cat([self.extra_tokens.expand(len(fc), -1, -1), tokens], dim=1)
        if encoder.settings.positions != "none":
            positions = positions_on(tokens.device, tokens.shape[1], encoder.width)
            if encoder.settings.positions == "both":
                # An ROI has the same position as on the clean branch; the extra tokens come after the last ROI.
                positions = positions.roll(n_extra, dims=0)
            tokens = tokens + positions.to(tokens.dtype)
        return encoder.run_layers(tokens)[:, n_extra:]

    def forward(
        self, encoder: Encoder, fc: torch.Tensor, to_reconstruct: torch.Tensor, to_identify: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Reconstruction and identification losses of FC ``(n, n_rois, n_rois)``, and the tokens of the last pass.

        Parameters
        ----------
        to_reconstruct, to_identify : Tensor (n, count), int64
            The masked ROIs of each part.
        """
        fc = encoder.read_in(fc)
        weights, parts = self.settings, []
        if weights.reconstruction or weights.lra_online == "masked":
            parts.append((to_reconstruct, self.reconstruct))
        if weights.identification or weights.lra_online == "masked":
            parts.append((to_identify, self.identify))
        loss = {id(self.reconstruct): fc.new_zeros(()), id(self.identify): fc.new_zeros(())}
        hidden = [_one_hot(rois, fc.shape[1]) for rois, _ in parts]
        if self.settings.masked_passes == 1:
            hidden = [torch.stack(hidden).any(0)]
        n_passes = len(hidden)
        tokens = self.masked_tokens(encoder, fc.repeat(n_passes, 1, 1), torch.cat(hidden)).chunk(n_passes)
        for (rois, head), part in zip(parts, tokens if n_passes > 1 else tokens * len(parts), strict=True):
            rows, predictions = _take(fc, rois), head(_take(part, rois))
            compare = functional.mse_loss if head is self.reconstruct else identification_loss
            loss[id(head)] = compare(rows.float(), predictions.float())
        return loss[id(self.reconstruct)], loss[id(self.identify)], tokens[-1]


def _one_hot(rois: torch.Tensor, n_rois: int) -> torch.Tensor:
    return torch.zeros(len(rois), n_rois, dtype=torch.bool, device=rois.device).scatter_(1, rois, True)


def _take(rows: torch.Tensor, rois: torch.Tensor) -> torch.Tensor:
    return rows.gather(1, rois[:, :, None].expand(-1, -1, rows.shape[2]))


class Objective(nn.Module):
    """The online network, its slow-moving target, and the losses between them.

    Parameters
    ----------
    n_rois : int
    settings : PretrainSettings
    """

    def __init__(self, n_rois: int, settings: PretrainSettings) -> None:
        super().__init__()
        self.settings = settings.objective
        self.seed = settings.seed
        self.encoder = Encoder(n_rois, settings.encoder)
        size, out = self.encoder.embedding_size, self.settings.projector_out
        self.projector = projection_head(size, self.settings.projector_hidden or 2 * size, out)
        self.predictor = projection_head(out, self.settings.predictor_hidden, out)
        self.masked = MaskedModelling(n_rois, self.encoder.width, settings)
        self.target = copy.deepcopy(nn.ModuleDict({"encoder": self.encoder, "projector": self.projector}))
        self.target.requires_grad_(False)

    def trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and parameters for the optimiser; with ``train_heads`` off, those of `MaskedModelling` stay as drawn."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad and (self.settings.train_heads or not name.startswith("masked.")):
                yield name, parameter

    @torch.no_grad()
    def follow(self) -> None:
        """Move the target's parameters towards the online network's."""
        online = [*self.encoder.parameters(), *self.projector.parameters()]
        for kept, leading in zip(self.target.parameters(), online, strict=True):
            kept.lerp_(leading, 1 - self.settings.momentum)

    def reset_target(self) -> None:
        """Overwrite the target with the online network."""
        self.target["encoder"].load_state_dict(self.encoder.state_dict())
        self.target["projector"].load_state_dict(self.projector.state_dict())

    def masked_losses(
        self, views: torch.Tensor, scans: Sequence[int] | torch.Tensor, epoch: int | torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Reconstruction and identification losses, and the masked views' embeddings.

        Parameters
        ----------
        views : Tensor (n_views, n_scans, n_rois, n_rois)
            The views to be masked.
        scans, epoch
            Numbers of the scans, from which (with seed and epoch) their masks are drawn; see `draw_masks`.

        Returns
        -------
        reconstruction, identification : Tensor ()
        embeddings : Tensor (n_views * n_scans, readout * n_rois)
        """
        n_rois, together = views.shape[2], self.settings.masked_passes == 1
        drawn = [
            draw_masks(n_rois, self.settings.n_masked(n_rois), scans, self.seed, epoch, together, view, views.device)
            for view in range(len(views))
        ]
        masks = [torch.cat(of_part) for of_part in zip(*drawn, strict=True)]
        reconstruction, identification, tokens = self.masked(self.encoder, views.flatten(0, 1), *masks)
        return reconstruction, identification, self.encoder.read_out(tokens)

    @torch.no_grad()
    def target_embeddings(self, views: torch.Tensor) -> torch.Tensor:
        """The target encoder's embeddings of FC ``(n, n_rois, n_rois)``."""
        return self.target["encoder"](views)

    def lra(self, online: Sequence[torch.Tensor], target: Sequence[torch.Tensor]) -> torch.Tensor:
        """Latent representation alignment of embeddings (of the whole batch, because batch norm sees it).

        Parameters
        ----------
        online : sequence of Tensor (n_scans, readout * n_rois)
            The online encoder's embeddings of each view that predicts: both, or the first.
        target : sequence of Tensor (n_scans, readout * n_rois)
            The target encoder's embeddings of the views that they predict: the other one each.
        """
        with torch.no_grad():
            targets = [self.target["projector"](half).float() for half in target]
        predictions = [self.predictor(self.projector(half)).float() for half in online]
        aligned = [alignment(*pair) for pair in zip(predictions, targets, strict=True)]
        return 2 * torch.stack(aligned).mean()
