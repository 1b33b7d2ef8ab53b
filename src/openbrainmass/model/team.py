"""The processes that train together under ``torchrun``; without it, a team of one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from openbrainmass.errors import OpenBrainMassError


def checked_device(device: str) -> torch.device:
    """Turn a device name into a torch device that exists here."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise OpenBrainMassError(
            f"The device {device!r} cannot be used here ({str(error).splitlines()[0]}). Use device='cpu'."
        ) from error
    return found


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows: torch.Tensor) -> torch.Tensor:
        ctx.n_rows = len(rows)
        parts = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient[dist.get_rank() * ctx.n_rows :][: ctx.n_rows]


@dataclass(frozen=True)
class Team:
    """This process's place among those that train together.

    Attributes
    ----------
    rank, size : int
        Number of this process, and how many there are.
    device : torch.device
        Where this process computes.
    """

    rank: int
    size: int
    device: torch.device

    @property
    def leads(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return self.rank == 0

    def gather(self, rows: torch.Tensor) -> torch.Tensor:
        """Join the rows of all processes, in order of rank; gradients find their way back.

        Every process then computes the same loss on the whole batch, so that batch norm and loss are those of one
        process. Gradients arrive ``size``-fold, which `average_gradients` sets right.
        """
        return rows if self.size == 1 else _GatherRows.apply(rows)

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replace each gradient by its mean over the processes."""
        if self.size == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.size
        parts = flat.split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Mean of a tensor over the processes."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def require_same(self, tensors: Iterable[torch.Tensor]) -> None:
        """Refuse to go on if the processes no longer hold the same weights, bit by bit.

        Raises
        ------
        OpenBrainMassError
            If they differ.
        """
        if self.size == 1:
            return
        digest = hashlib.sha256()
        for tensor in tensors:
            digest.update(tensor.detach().cpu().numpy().tobytes())
        digests = [""] * self.size
        dist.all_gather_object(digests, digest.hexdigest())
        if len(set(digests)) > 1:
            raise OpenBrainMassError(
                f"The {self.size} processes no longer have the same weights. They need the same package versions, kind "
                "of processor and settings; start again from the last restart state on machines that are alike."
            )

    def wait(self) -> None:
        """Wait until every process has come here."""
        if self.size > 1:
            dist.barrier()


def own_device(device: str) -> torch.device:
    """The device of this process: under ``torchrun`` each has its own."""
    if "LOCAL_RANK" in os.environ and device.startswith("cuda"):
        return torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    return torch.device(device)


@contextmanager
def join_team(device: str) -> Iterator[Team]:
    """Join the processes that ``torchrun`` started, each of which runs the same command.

    Parameters
    ----------
    device : str
        ``"cpu"`` (gloo) or ``"cuda"`` (nccl, one device a process).
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield Team(0, 1, torch.device(device))
        return
    place = own_device(device)
    on_cuda = place.type == "cuda"
    if on_cuda:
        torch.cuda.set_device(place)
    started_here = not dist.is_initialized()
    if started_here:
        dist.init_process_group("nccl" if on_cuda else "gloo")
    try:
        yield Team(dist.get_rank(), dist.get_world_size(), place)
    finally:
        if started_here:
            dist.destroy_process_group()
