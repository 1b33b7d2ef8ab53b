"""The logarithm of FC matrices, differentiable."""

from __future__ import annotations

from typing import Any

import torch


class _MatrixLog(torch.autograd.Function):
    """Logarithm of symmetric positive definite matrices, with a gradient that equal eigenvalues do not spoil.

    Differentiating through eigenvectors divides by differences of eigenvalues, of which shrunk FC of short scans has
    many that are 0; the Daleckii-Krein formula divides differences of logarithms by them, whose limit is known.
    """

    @staticmethod
    def forward(ctx: Any, matrices: torch.Tensor) -> torch.Tensor:
        values, vectors = torch.linalg.eigh(matrices)
        values = values.clamp_min(torch.finfo(values.dtype).tiny)
        ctx.save_for_backward(values, vectors)
        return (vectors * values.log()[..., None, :]) @ vectors.mT

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        values, vectors = ctx.saved_tensors
        logs = values.log()
        apart = values[..., :, None] - values[..., None, :]
        close = apart.abs() <= 1e-4 * (values[..., :, None] + values[..., None, :])
        middle = 2 / (values[..., :, None] + values[..., None, :])
        ratio = torch.where(close, middle, (logs[..., :, None] - logs[..., None, :]) / apart.where(~close, 1.0))
        symmetric = (gradients[0] + gradients[0].mT) / 2
        return vectors @ (ratio * (vectors.mT @ symmetric @ vectors)) @ vectors.mT


def shrunk(fc: torch.Tensor, share: float) -> torch.Tensor:
    """FC ``(n, n_rois, n_rois)`` mixed with the identity by a share: positive definite however short the scan."""
    eye = torch.eye(fc.shape[-1], dtype=fc.dtype, device=fc.device)
    return (1 - share) * fc + share * eye


def matrix_log(matrices: torch.Tensor) -> torch.Tensor:
    """Logarithm of symmetric positive definite matrices ``(..., n, n)``; differentiable."""
    return _MatrixLog.apply(matrices)  # pyright: ignore[reportReturnType]
