"""Losses and gradients of a batch, in an order that holds as few activations at a time as the losses allow.

The masked part of the objective treats scans one by one, so its gradients are taken first and its activations are gone
before the alignment begins. The alignment compares whole batches (batch norm). Where the batch is cut, embeddings are
made without a graph, the gradient of the loss with respect to them is taken, and each cut is embedded again to pass its
gradient on: the gradients are those of the whole batch (Gao et al., "Scaling Deep Contrastive Learning Batch Size under
Memory Limited Setup", RepL4NLP 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from openbrainmass.model.objectives import Objective

Gather = Callable[[torch.Tensor], torch.Tensor]
"""Joins the rows of all processes."""


@dataclass(frozen=True)
class Losses:
    """Losses of one step (scalar tensors) and the online embeddings ``(n_scans, readout * n_rois)``, all detached."""

    total: torch.Tensor
    lra: torch.Tensor
    identification: torch.Tensor
    reconstruction: torch.Tensor
    embeddings: torch.Tensor


def take_gradients(
    objective: Objective,
    views: torch.Tensor,
    scans: Sequence[int],
    epoch: int,
    precision: str = "float32",
    at_once: int | None = None,
    gather: Gather = lambda rows: rows,
    seed: int = 0,
) -> Losses:
    """Add the gradients of a batch's losses to the parameters' and return the losses.

    Parameters
    ----------
    objective : Objective
    views : Tensor (2, n_scans, n_rois, n_rois)
        Two views of each scan.
    scans : sequence of int, length n_scans
        Numbers of the scans, from which (with the objective's seed and the epoch) their masks are drawn.
    epoch : int
    precision : {"float32", "bfloat16"}
        Number format of matrix products.
    at_once : int, optional
        Scans that go through the encoder together; None: all. It decides memory and time, and which units dropout
        drops; without dropout nothing else.
    gather : Gather
        Joins the rows of all processes, so that batch norm sees the whole batch.
    seed : int
        Of dropout: torch's random generator is seeded with it.
    """
    batch = _Batch(objective, views, scans, epoch, precision, at_once or len(scans), seed)
    settings = objective.settings
    masked = views.new_zeros(2)
    if settings.lra_online == "clean" and (settings.reconstruction or settings.identification):
        for cut in batch.cuts:
            part, _ = batch.masked(cut, n_views=1)
            batch.weigh(part).backward()
            masked += part.detach()
    targets = batch.targets(gather)
    with torch.set_grad_enabled(bool(settings.lra) or settings.lra_online == "masked"):
        lra, part, embeddings = (_whole if len(batch.cuts) == 1 else _in_cuts)(batch, targets, gather)
    masked += part
    total = settings.lra * lra + batch.weigh(masked)
    return Losses(total, lra, masked[1], masked[0], embeddings)


def _whole(batch: _Batch, targets: list[torch.Tensor], gather: Gather) -> tuple[torch.Tensor, ...]:
    """Alignment, masked losses that came with it, and the first view's embeddings; the gradients are taken."""
    own, part = batch.online(batch.cuts[0])
    embeddings = [gather(view) for view in own]
    lra = batch.lra(embeddings, targets)
    total = batch.objective.settings.lra * lra + batch.weigh(part)
    if total.requires_grad:
        total.backward()
    return lra.detach(), part.detach(), embeddings[0].detach().float()


def _in_cuts(batch: _Batch, targets: list[torch.Tensor], gather: Gather) -> tuple[torch.Tensor, ...]:
    """The same as `_whole`, of one cut of the batch after another."""
    with torch.no_grad():
        found = [batch.online(cut) for cut in batch.cuts]
    own = torch.cat([embeddings for embeddings, _ in found], dim=1)
    own.requires_grad_(torch.is_grad_enabled())
    embeddings = [gather(view) for view in own]
    lra = batch.lra(embeddings, targets)
    if own.requires_grad:
        (batch.objective.settings.lra * lra).backward()
        for cut in batch.cuts:
            again, part = batch.online(cut)
            gradient = torch.zeros_like(again) if own.grad is None else own.grad[:, cut]
            ((again * gradient).sum() + batch.weigh(part)).backward()
    part = torch.stack([part for _, part in found]).sum(dim=0)
    return lra.detach(), part, embeddings[0].detach().float()


@dataclass(frozen=True)
class _Batch:
    """A batch and how it is passed through the networks."""

    objective: Objective
    views: torch.Tensor
    scans: Sequence[int]
    epoch: int
    precision: str
    at_once: int
    seed: int

    @property
    def cuts(self) -> list[slice]:
        return [slice(start, start + self.at_once) for start in range(0, len(self.scans), self.at_once)]

    def weigh(self, masked: torch.Tensor) -> torch.Tensor:
        """Reconstruction and identification losses ``(2,)`` by their weights."""
        return self.objective.settings.reconstruction * masked[0] + self.objective.settings.identification * masked[1]

    def masked(self, cut: slice, n_views: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The cut's share in the batch's reconstruction and identification losses, and the masked views' embeddings."""
        scans = self.scans[cut]
        with self._forward(cut, stream=0):
            *losses, embeddings = self.objective.masked_losses(self.views[:n_views, cut], scans, self.epoch)
        return torch.stack(losses) * (len(scans) / len(self.scans)), embeddings.unflatten(0, (n_views, -1))

    def online(self, cut: slice) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings ``(n_views, n, size)`` of the views that predict, and masked losses where these were masked."""
        settings = self.objective.settings
        if settings.lra_online == "masked":
            part, embeddings = self.masked(cut, settings.lra_directions)
            return embeddings, part
        with self._forward(cut, stream=1):
            embeddings = self.objective.encoder(self.views[: settings.lra_directions, cut].flatten(0, 1))
        return embeddings.unflatten(0, (settings.lra_directions, -1)), self.views.new_zeros(2)

    def targets(self, gather: Gather) -> list[torch.Tensor]:
        """What each view that predicts has to predict, of the whole batch."""
        # The first view predicts the second, so their order is turned round.
        views = self.views.flip(0)[: self.objective.settings.lra_directions]
        found = []
        for cut in self.cuts:
            with self._forward(cut, stream=2):
                found.append(
                    self.objective.target_embeddings(views[:, cut].flatten(0, 1)).unflatten(0, (len(views), -1))
                )
        return [gather(view) for view in torch.cat(found, dim=1)]

    def lra(self, online: list[torch.Tensor], targets: list[torch.Tensor]) -> torch.Tensor:
        with self._forward(slice(0), stream=3):
            return self.objective.lra(online, targets)

    @contextmanager
    def _forward(self, cut: slice, stream: int) -> Iterator[None]:
        # Whatever is passed twice drops the same units twice.
        torch.manual_seed((self.seed + 4 * (cut.start or 0) + stream) % (1 << 63))
        with torch.autocast(self.views.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            yield
