"""From one atlas to another: the series of target ROIs as weighted means of the source ROIs that overlap them.

Series are bridged, never FC: a mean of series is a series, and its FC a correlation matrix, which a mean of FC need not
be. What a bridge cannot do is to tell voxels of one source ROI apart, so it always loses detail; `Bridge.report` and
`Bridge.fc_agreement` tell how much.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from openbrainmass.atlas import Atlas, label_volume
from openbrainmass.connectivity import correlation, vectorize
from openbrainmass.errors import OpenBrainMassError


@dataclass(frozen=True)
class Bridge:
    """A way from the ROIs of one atlas to those of another, by the overlap of their label images.

    Both images must be in the same space (such as MNI152NLin6Asym); the coarser one is put on the grid of the finer
    one by nearest neighbours.

    Parameters
    ----------
    source, target : Atlas
        Atlases that know their label image (see `load_atlas`).
    least_coverage : float
        Share of a target ROI's voxels that source ROIs with data must cover; an ROI with less becomes NaN.
    """

    source: Atlas
    target: Atlas
    least_coverage: float = 0.5

    def __post_init__(self) -> None:
        if not 0 < self.least_coverage <= 1:
            raise OpenBrainMassError(
                f"The least coverage of a bridge was set to {self.least_coverage}; it is a share of an ROI's voxels, "
                "above 0 and at most 1."
            )

    @cached_property
    def overlap(self) -> np.ndarray:
        """Voxels that a target and a source ROI share, (n_target + 1, n_source + 1); row and column 0: outside."""
        source, target = _on_one_grid(self.source, self.target)
        pairs = target.astype(np.int64).ravel() * (self.source.n_rois + 1) + source.astype(np.int64).ravel()
        shape = (self.target.n_rois + 1, self.source.n_rois + 1)
        counts = np.bincount(pairs, minlength=shape[0] * shape[1]).reshape(shape)
        if not counts[1:, 1:].any():
            raise OpenBrainMassError(
                f"No voxel of the atlas {self.target.name} lies in one of {self.source.name}; their images may be of "
                "different spaces. Give label images in the same space."
            )
        return counts

    @property
    def weights(self) -> np.ndarray:
        """Share of each target ROI's voxels in each source ROI, (n_target, n_source); rows sum to the coverage."""
        return _shares(self.overlap)

    def apply(self, bold: np.ndarray) -> np.ndarray:
        """Series of the target ROIs.

        Parameters
        ----------
        bold : ndarray (n_volumes, n_source)
            Series of the source ROIs; columns of NaN or of one constant are missing ROIs.

        Returns
        -------
        ndarray (n_volumes, n_target)
            Weighted means over the source ROIs with data; NaN where those cover less than `least_coverage`. float64
            for float64 input, else float32.

        Raises
        ------
        OpenBrainMassError
            If `bold` does not have the columns of the source atlas.
        """
        return _bridged(bold, self.weights, self.least_coverage, self.source)

    def fc_agreement(self, bold: np.ndarray) -> float:
        """How much FC survives: FC of the source ROIs against FC after a round trip to the target and back.

        Returns
        -------
        float
            Correlation over the edges of the source ROIs that the target covers by `least_coverage`; NaN where fewer
            than three are left. 1 would be a bridge without loss.
        """
        there = self.apply(np.asarray(bold, dtype=np.float64))
        back = _bridged(there, _shares(self.overlap.T), self.least_coverage, self.target)
        rows = np.flatnonzero(np.isfinite(back).all(axis=0) & _has_data(np.asarray(bold)))
        if len(rows) < 3:
            return float("nan")
        before, after = correlation(np.asarray(bold, dtype=np.float64)[:, rows]), correlation(back[:, rows])
        return float(np.corrcoef(vectorize(before), vectorize(after))[0, 1])

    def report(self) -> pd.DataFrame:
        """What the bridge can know of every target ROI.

        Returns
        -------
        DataFrame, one row a target ROI
            ``roi_name``; ``coverage`` (share of its voxels in any source ROI); ``n_sources`` (effective number of
            source ROIs: 1 where one gives everything); ``main_source`` and ``main_share`` (of what is covered);
            ``purity`` (share of the main source's voxels that lie in this ROI: low where several target ROIs must
            share one source).
        """
        weights, counts = self.weights, self.overlap[1:, 1:]
        coverage = weights.sum(axis=1)
        shares = weights / np.where(coverage > 0, coverage, 1)[:, None]
        main = weights.argmax(axis=1)
        squares = (shares**2).sum(axis=1)
        table = pd.DataFrame({"roi_name": list(self.target.roi_names), "coverage": coverage})
        table["n_sources"] = np.divide(1, squares, out=np.zeros_like(squares), where=squares > 0)
        table["main_source"] = [self.source.roi_names[i] if c > 0 else "" for i, c in zip(main, coverage, strict=True)]
        table["main_share"] = shares.max(axis=1)
        table["purity"] = counts[np.arange(len(main)), main] / self.overlap[:, 1:].sum(axis=0)[main]
        return table


def _on_one_grid(source: Atlas, target: Atlas) -> tuple[np.ndarray, np.ndarray]:
    """Row numbers (+ 1) of both atlases at every voxel of the finer of their images."""
    import nibabel as nib
    from nilearn.image import resample_to_img

    volumes = [label_volume(atlas) for atlas in (source, target)]
    images = [nib.Nifti1Image(labels.astype(np.int32), affine) for labels, affine in volumes]
    sizes = [abs(np.linalg.det(affine[:3, :3])) for _, affine in volumes]
    finer = int(sizes[1] <= sizes[0])
    coarser: Any = resample_to_img(
        images[1 - finer], images[finer], interpolation="nearest", force_resample=True, copy_header=True
    )
    moved = np.asarray(coarser.dataobj)
    return (moved, volumes[1][0]) if finer else (volumes[0][0], moved)


def _shares(overlap: np.ndarray) -> np.ndarray:
    return overlap[1:, 1:] / np.maximum(overlap[1:].sum(axis=1, keepdims=True), 1)


def _has_data(bold: np.ndarray) -> np.ndarray:
    return np.isfinite(bold).all(axis=0) & (bold != bold[:1]).any(axis=0)


def _bridged(bold: np.ndarray, weights: np.ndarray, least_coverage: float, source: Atlas) -> np.ndarray:
    bold = np.asarray(bold)
    if bold.ndim != 2 or bold.shape[1] != source.n_rois:
        raise OpenBrainMassError(
            f"BOLD of shape {bold.shape} was given to a bridge from the atlas {source.name}; (n_volumes, "
            f"{source.n_rois}) was expected. Give recordings that were extracted with {source.name}."
        )
    known = _has_data(bold)
    series = np.where(known, bold, 0).astype(np.float64)
    usable = weights * known
    coverage = usable.sum(axis=1)
    bridged = series @ (usable / np.where(coverage > 0, coverage, 1)[:, None]).T
    bridged[:, coverage < least_coverage] = np.nan
    return bridged.astype(np.float64 if bold.dtype == np.float64 else np.float32)
