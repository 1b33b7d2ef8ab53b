"""The published data path written plainly: one sample after another, nothing shared with the package.

Volumes by `random.sample`, FC by nilearn's default (scikit-learn's checks of its input, Ledoit-Wolf) on that one view.
"""

from __future__ import annotations

import random

import numpy as np
from nilearn.connectome import ConnectivityMeasure


def sample_by_sample(scans: list[np.ndarray], n_views: int = 2, share: float = 0.2) -> np.ndarray:
    """Pseudo-FC ``(n_views, n_scans, n_rois, n_rois)`` of BOLD arrays ``(n_volumes_i, n_rois)``."""
    views = []
    for _ in range(n_views):
        fc = []
        for bold in scans:
            kept = random.sample(range(len(bold)), len(bold) - round(share * len(bold)))
            fc.append(ConnectivityMeasure(kind="correlation", verbose=0).fit_transform([bold[kept]])[0])
        views.append(np.stack(fc))
    return np.stack(views)
