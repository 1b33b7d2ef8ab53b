"""The tangent encoder: FC as a whole, seen from what all brains share, with nothing thrown away.

A transformer that reads a few values out of each ROI keeps the directions in which FC varies most. What tells a diagnosis
lies in the others: the logarithm of an FC brings them up, and dividing by what is common to all brains first (the tangent
space, Varoquaux et al., MICCAI 2010) takes away what tells nobody apart. Every FC is mixed with the identity by one and the
same share before, so that it has an inverse however short the scan, and so that the length of a scan does not decide how
much it is shrunk.

What is learnt, in closed form and without a diagnosis, is the strongest mode (eigenvector) of the mean FC of the
pretraining people, which is divided out, and the few patterns in which the means of their sites differ most, which are
taken out: with few labels a difference between scanners is what a probe would take for one between people. Both are so few
numbers of so many people that membership can hardly be told from them; from whole means it can (docs/results.md).
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import torch
from torch import nn

from openbrainmass.connectivity import correlation
from openbrainmass.model.encoder import require_fc
from openbrainmass.model.matrix_log import matrix_log, shrunk
from openbrainmass.model.scans import Scans
from openbrainmass.model.settings import EncoderSettings

SITE_RANK = 5
"""Rank to which the difference of a site's mean is cut: what is left out is mostly that of its people."""

LEAST_RECORDINGS = 10
"""Recordings that a site needs for its mean to be used."""


class TangentEncoder(nn.Module):
    """FC in, embedding out: one value for each pair of ROIs, and for each ROI.

    Until it has learnt (`learn_tangent`) it is the logarithm of the shrunk FC itself, the untrained floor.

    Parameters
    ----------
    n_rois : int
        ROIs of the atlas.
    settings : EncoderSettings
        Of kind ``"tangent"``; ``shrinkage`` is the share of the identity, ``modes`` and ``site_modes`` how many of each
        are learnt.
    """

    whitener: torch.Tensor
    site_modes: torch.Tensor

    def __init__(self, n_rois: int, settings: EncoderSettings) -> None:
        super().__init__()
        self.n_rois = n_rois
        self.settings = settings
        self.register_buffer("whitener", torch.eye(n_rois))
        self.register_buffer("site_modes", torch.zeros(settings.site_modes, n_rois, n_rois))

    @property
    def embedding_size(self) -> int:
        """Values of an embedding: ``n_rois * (n_rois + 1) / 2``."""
        return self.settings.embedding_size(self.n_rois)

    def shrunk(self, fc: torch.Tensor) -> torch.Tensor:
        """FC ``(n, n_rois, n_rois)`` with its share of the identity: positive definite."""
        require_fc(fc, self.n_rois)
        return shrunk(fc, self.settings.shrinkage)

    def tokens(self, fc: torch.Tensor) -> torch.Tensor:
        """``log(W S W)`` of shrunk FC S, without its part along the site modes.

        Parameters
        ----------
        fc : Tensor (n, n_rois, n_rois)
            Correlations.

        Returns
        -------
        Tensor (n, n_rois, n_rois)
            Symmetric.
        """
        tokens = self.logarithms(fc)
        along = torch.einsum("nij,kij->nk", tokens, self.site_modes)
        return tokens - torch.einsum("nk,kij->nij", along, self.site_modes)

    def logarithms(self, fc: torch.Tensor) -> torch.Tensor:
        """``log(W S W)`` of shrunk FC S ``(n, n_rois, n_rois)``, site modes included."""
        return matrix_log(self.whitener @ self.shrunk(fc) @ self.whitener)

    def read_out(self, tokens: torch.Tensor) -> torch.Tensor:
        """Embeddings ``(n, n_rois * (n_rois + 1) / 2)``: the upper triangle of the tokens, row by row."""
        rows, columns = np.triu_indices(self.n_rois)
        return tokens[:, rows, columns]

    def forward(self, fc: torch.Tensor) -> torch.Tensor:
        """Embed FC ``(n, n_rois, n_rois)``."""
        return self.read_out(self.tokens(fc))


@torch.no_grad()
def learn_tangent(scans: Scans, settings: EncoderSettings, estimator: str = "pearson") -> TangentEncoder:
    """Learn the modes of the scans' mean FC, then those of their sites; one scan is in memory at a time.

    Parameters
    ----------
    scans : Scans
        Every recording counts the same. Sites of fewer than `LEAST_RECORDINGS`, and recordings without a site, do not enter
        the site modes; with fewer than two sites left there are none.
    settings : EncoderSettings
        Of kind ``"tangent"``.
    estimator : str
        FC estimator (see `connectivity.correlation`).

    Returns
    -------
    TangentEncoder
    """
    encoder = TangentEncoder(scans.atlas.n_rois, settings)
    total = np.zeros((encoder.n_rois, encoder.n_rois))
    for number in range(len(scans)):
        total += correlation(scans.bold(number), estimator)
    mean = encoder.shrunk(torch.from_numpy(total / len(scans))[None])[0]
    encoder.whitener = whitening(mean, settings.modes).float()
    sites = scans.sites()
    counts = {site: n for site, n in Counter(sites).items() if site is not None and n >= LEAST_RECORDINGS}
    if settings.site_modes and len(counts) > 1:
        sums = {site: torch.zeros_like(mean) for site in counts}
        for number, site in enumerate(sites):
            if site in sums:
                fc = torch.from_numpy(correlation(scans.bold(number), estimator)).float()
                sums[site] += encoder.logarithms(fc[None])[0]
        found = between_sites(torch.stack(list(sums.values())), torch.tensor(list(counts.values())))
        encoder.site_modes[: len(found)] = found[: settings.site_modes]
    return encoder


def between_sites(sums: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Patterns in which sites differ, the one of most variance between them first.

    Each site's difference to the mean of all is cut to its `SITE_RANK` strongest eigenvectors, which are the same for a whole
    site, while what a few people happen to add to a mean is spread over all of them.

    Parameters
    ----------
    sums : Tensor (n_sites, n_rois, n_rois)
        Sum of the tokens of each site.
    counts : Tensor (n_sites,)
        Recordings of each site.

    Returns
    -------
    Tensor (at most n_sites, n_rois, n_rois)
        Symmetric, of length 1 and at right angles to each other.
    """
    counts = counts.to(sums.dtype)[:, None, None]
    values, vectors = torch.linalg.eigh(sums / counts - sums.sum(0) / counts.sum())
    weak = values.abs().argsort(dim=1, descending=True)[:, SITE_RANK:]
    apart = (vectors * values.scatter(1, weak, 0.0)[:, None]) @ vectors.mT * counts.sqrt()
    _, lengths, modes = torch.linalg.svd(apart.flatten(1), full_matrices=False)
    return modes[lengths > 1e-6 * lengths[0].clamp_min(1e-12)].unflatten(1, sums.shape[1:])


def whitening(mean: torch.Tensor, modes: int) -> torch.Tensor:
    """Inverse square root of a mean FC ``(n_rois, n_rois)`` of which all but the strongest modes are made alike.

    The other eigenvalues are replaced by their geometric mean, and their eigenvectors do not enter.
    """
    values, vectors = torch.linalg.eigh(mean)
    first = max(0, len(values) - modes)
    middle = values[:first].log().mean().exp() if first else values.new_ones(())
    gains = values[first:].rsqrt() - middle.rsqrt()
    kept = vectors[:, first:]
    return torch.eye(len(values), dtype=mean.dtype) * middle.rsqrt() + (kept * gains) @ kept.mT
