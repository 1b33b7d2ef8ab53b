"""`WithinSites`: few values a recording, in which sites differ less; learnt inside the fold, without labels."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.baselines import accept_recordings
from openbrainmass.evaluation.harmonise import feature_table, sites_of
from openbrainmass.evaluation.probes import row_space


class WithinSites(TransformerMixin, BaseEstimator):
    """The directions in which people of the same site differ most, none of them one in which sites differ.

    Features are standardised, the means of the training sites are taken out (all of them, as a subspace), and the principal
    components of what is left *within* sites are kept. Of a new recording no site need be known. Fewer values show less of
    the scanner, and less of everything else: see docs/results.md for how much.

    Parameters
    ----------
    features : transformer
        Makes a table of features (n, n_features) of recordings, such as ``Embedder(checkpoint)``; a copy is fitted.
    n_values : int
        How many directions are kept; fewer where training has not as many people.
    site : str
        Column of the cohort's table.

    Attributes
    ----------
    features_ : transformer
        The fitted copy.
    components_ : ndarray (n_values, n_features)
        Directions in standardised features, of length 1 and at right angles to each other and to every site mean.

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from openbrainmass.evaluation.baselines import Connectome
    >>> from openbrainmass.evaluation.probes import make_probe
    >>> model = make_pipeline(WithinSites(Connectome("tangent"), n_values=100), make_probe("ridge"))
    """

    def __init__(self, features: Any, n_values: int = 200, site: str = "site") -> None:
        self.features = features
        self.n_values = n_values
        self.site = site

    def fit(self, X: Cohort, y: Any = None) -> Self:
        """Learn the directions from training recordings; labels are not used."""
        self._learn(X, y)
        return self

    def fit_transform(self, X: Cohort, y: Any = None, **fit_params: Any) -> np.ndarray:
        """Fit, and give the values of the training recordings, (n, n_values)."""
        return self._projected(self._learn(X, y))

    def transform(self, X: Cohort) -> np.ndarray:
        """Values of recordings.

        Returns
        -------
        ndarray (n, n_values), float32
        """
        check_is_fitted(self)
        return self._projected(feature_table(self.features_.transform(X), self.features_, "WithinSites"))

    def _learn(self, X: Cohort, y: Any) -> np.ndarray:
        if self.n_values < 1:
            raise OpenBrainMassError(f"WithinSites was asked for {self.n_values} values; give 1 or more.")
        _, site = np.unique(sites_of(X, self.site, "WithinSites"), return_inverse=True)
        self.features_ = clone(self.features)
        features = feature_table(self.features_.fit_transform(X, y), self.features_, "WithinSites")
        self.scaler_ = StandardScaler()
        scaled = self.scaler_.fit_transform(features)
        counts = np.bincount(site)[:, None]
        means = np.stack([scaled[site == number].mean(axis=0) for number in range(len(counts))])
        within = scaled - means[site]
        between = _directions(means * np.sqrt(counts))
        within -= (within @ between.T) @ between
        self.components_ = _directions(within)[: self.n_values]
        if not len(self.components_):
            raise OpenBrainMassError(
                f"Cohort {X.name} has {len(site)} recordings of {len(counts)} sites, which leaves no direction in which "
                "people of a site differ. Give at least two people of a site."
            )
        return features

    def _projected(self, features: np.ndarray) -> np.ndarray:
        return (self.scaler_.transform(features) @ self.components_.T).astype(np.float32)

    def __sklearn_tags__(self) -> Any:
        return accept_recordings(super().__sklearn_tags__())


def _directions(rows: np.ndarray) -> np.ndarray:
    """Right singular vectors of rows (n, n_features), strongest first, without those that are rounding."""
    lengths, left = row_space(rows)
    # The rows are means or residuals, so some directions are nothing but the rounding of a difference.
    keep = lengths > max(1e-5 * lengths[-1], 1e-9)
    return (left[:, keep] / lengths[keep]).T[::-1] @ rows
