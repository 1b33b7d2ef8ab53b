"""meanMLP: a small perceptron on every volume, and the mean of what it says over the scan.

Popov et al., "A simple but tough-to-beat baseline for fMRI time-series classification", NeuroImage 303, 2024. The order
of the volumes cannot matter, and no pair of volumes is compared.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.baselines import Recordings, is_fc_stack
from openbrainmass.model.dropout import relu_dropout
from openbrainmass.model.rivals.training import Network

HIDDEN = 160
"""Hidden units."""

DROPOUT = 0.49
"""Share of hidden units dropped."""


def standardise(bold: np.ndarray) -> np.ndarray:
    """BOLD ``(n_volumes, n_rois)`` with mean 0 and variance 1 in each ROI, float32; what is missing or constant is 0.

    Raises
    ------
    OpenBrainMassError
        If a ROI is NaN or infinite at some volumes only.
    """
    values = np.asarray(bold, dtype=np.float64)
    values = np.where(np.isnan(values).all(axis=0), 0, values)
    if not np.isfinite(values).all():
        columns = np.flatnonzero(~np.isfinite(values).all(axis=0)).tolist()
        raise OpenBrainMassError(
            f"ROI column(s) {', '.join(map(str, columns[:5]))} of the BOLD hold NaN or infinity at some volumes. Finite "
            "values are expected, or NaN throughout for a ROI that was not covered; interpolate or remove those volumes."
        )
    # Subtracting the first volume makes a constant ROI exactly 0.
    centred = values - values[:1]
    centred -= centred.mean(axis=0)
    scale = centred.std(axis=0)
    varies = scale > 1e-7 * np.abs(values).mean(axis=0)
    return np.where(varies, centred / np.where(varies, scale, 1), 0).astype(np.float32)


class MeanMLP(Network):
    """Linear, layer norm, ReLU, dropout and linear for each volume; the mean over volumes.

    Parameters
    ----------
    n_rois : int
        ROIs of the atlas.
    n_classes : int
        Logits.
    """

    standardised = False

    def __init__(self, n_rois: int, n_classes: int) -> None:
        super().__init__(n_rois, n_classes)
        self.hidden = nn.Linear(n_rois, HIDDEN)
        self.norm = nn.LayerNorm(HIDDEN)
        self.head = nn.Linear(HIDDEN, n_classes)

    @staticmethod
    def read(X: Recordings) -> list[torch.Tensor]:
        """Standardised BOLD of each recording, ``(n_volumes_i, n_rois)``, float32.

        Raises
        ------
        OpenBrainMassError
            If FC matrices were given, or a ROI is non-finite in part.
        """
        if is_fc_stack(X):
            raise OpenBrainMassError("meanMLP classifies volumes; FC matrices were given. Give the BOLD.")
        return [torch.from_numpy(standardise(recording)) for recording in X]

    @staticmethod
    def join(recordings: list[torch.Tensor]) -> list[torch.Tensor]:
        """Scans differ in length, so that they stay a list."""
        return recordings

    def forward(self, scans: list[torch.Tensor]) -> torch.Tensor:
        """Scans ``(n_volumes_i, n_rois)`` in, logits ``(n, n_classes)`` out."""
        normed = self.norm(self.hidden(torch.cat(scans)))
        active, factor = relu_dropout(normed, DROPOUT, self.training)
        means = [part.mean(dim=0) for part in active.split([len(scan) for scan in scans])]
        # The last layer is linear: the mean of its outputs is its output for the mean, hundreds of times cheaper.
        return self.head(torch.stack(means) * factor)
