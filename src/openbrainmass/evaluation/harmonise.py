"""Site harmonisation of features (ComBat), learnt inside the fold from training people alone."""

from __future__ import annotations

import copy
import warnings
from typing import Any, Literal, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.utils.validation import check_is_fitted

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.baselines import accept_recordings
from openbrainmass.evaluation.tasks import code

LEAST_RECORDINGS = 3
"""Training recordings that a site needs for its own mean and variance to be learnt."""


class Harmonised(TransformerMixin, BaseEstimator):
    """Features of recordings with the mean and variance of each site brought to those of all sites (ComBat).

    Fitted on training recordings only; test recordings are moved by what was learnt of their site. No covariate is
    protected: the class of test people is unknown and may not be one, so where sites and classes go together,
    harmonisation takes some of the difference between classes away as well.

    Parameters
    ----------
    features : transformer
        Makes a table of features (n, n_features) of recordings, such as ``Connectome("fisher-z")``; a copy is fitted.
    site : str
        Column of the cohort's table that says what is to be made alike.
    unseen : {"keep", "error"}
        What happens to recordings of a site of which training had fewer than `LEAST_RECORDINGS` recordings (in
        site-held-out folds, all test recordings): their features stay as they are, or an error.

    Attributes
    ----------
    features_ : transformer
        The fitted copy.
    sites_ : tuple of str
        Sites that were learnt; with fewer than two of them nothing is changed.

    References
    ----------
    Johnson, Li and Rabinovic, 2007, "Adjusting batch effects in microarray expression data using empirical Bayes
    methods"; Fortin et al., 2018, "Harmonization of cortical thickness measurements across scanners and sites".

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from openbrainmass.evaluation.baselines import Connectome
    >>> from openbrainmass.evaluation.probes import make_probe
    >>> model = make_pipeline(Harmonised(Connectome("fisher-z")), make_probe("logistic"))
    """

    def __init__(self, features: Any, site: str = "site", unseen: Literal["keep", "error"] = "keep") -> None:
        self.features = features
        self.site = site
        self.unseen = unseen

    def fit(self, X: Cohort, y: Any = None) -> Self:
        """Learn the features, and each site's mean and variance of them, from training recordings."""
        self._learn(X, y)
        return self

    def fit_transform(self, X: Cohort, y: Any = None, **fit_params: Any) -> np.ndarray:
        """Fit, and give the harmonised features of the training recordings, (n, n_features)."""
        return self._harmonised(*self._learn(X, y))

    def transform(self, X: Cohort) -> np.ndarray:
        """Harmonised features of recordings.

        Returns
        -------
        ndarray (n, n_features), float32

        Raises
        ------
        OpenBrainMassError
            If the recordings are no cohort, a site is missing, or it was not learnt and `unseen` is "error".
        """
        check_is_fitted(self)
        return self._harmonised(
            feature_table(self.features_.transform(X), self.features_, "Harmonised"),
            sites_of(X, self.site, "Harmonised"),
        )

    def _learn(self, X: Cohort, y: Any) -> tuple[np.ndarray, np.ndarray]:
        if self.unseen not in ("keep", "error"):
            raise OpenBrainMassError(f"Harmonised was given unseen={self.unseen!r}; choose keep or error.")
        make_combat = _combat()
        sites = sites_of(X, self.site, "Harmonised")
        self.features_ = clone(self.features)
        features = feature_table(self.features_.fit_transform(X, y), self.features_, "Harmonised")
        names, counts = np.unique(sites, return_counts=True)
        self.sites_ = tuple(str(name) for name in names[counts >= LEAST_RECORDINGS])
        rows = np.isin(sites, self.sites_)
        # A feature that is the same in all recordings of a site has no variance to be scaled by.
        self.varies_ = np.all(
            [np.ptp(features[sites == site], axis=0) > 1e-6 for site in self.sites_] or [[False]], axis=0
        )
        self.combat_ = None
        if len(self.sites_) > 1 and self.varies_.any():
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Batch sizes are highly imbalanced")
                self.combat_ = make_combat(batch=sites[rows]).fit(features[rows][:, self.varies_])
        return features, sites

    def _harmonised(self, features: np.ndarray, sites: np.ndarray) -> np.ndarray:
        rows = np.isin(sites, self.sites_)
        if self.unseen == "error" and not rows.all():
            raise OpenBrainMassError(
                f"The site {sites[~rows][0]} was not learnt: training had fewer than {LEAST_RECORDINGS} of its "
                "recordings. Leave it out, or let its features stay as they are (unseen='keep')."
            )
        out = features.copy()
        if self.combat_ is not None and rows.any():
            moved = copy.copy(self.combat_).set_params(batch=sites[rows]).transform(features[rows][:, self.varies_])
            out[np.ix_(rows, self.varies_)] = np.asarray(moved)
        return out.astype(np.float32)

    def __sklearn_tags__(self) -> Any:
        return accept_recordings(super().__sklearn_tags__())


def _combat() -> Any:
    try:
        from combatlearn import ComBat
    except ImportError as error:
        raise OpenBrainMassError(
            "Harmonisation needs the package combatlearn, which is not installed. Install the extra: "
            "pip install 'openbrainmass[harmonise]'."
        ) from error
    return ComBat


def sites_of(X: Cohort, column: str, asked_by: str) -> np.ndarray:
    """Site of each recording of a cohort, (n,), as `asked_by` needs it to make sites alike.

    Raises
    ------
    OpenBrainMassError
        If X is no cohort, has no such column, or a recording has no site.
    """
    if not isinstance(X, Cohort):
        raise OpenBrainMassError(
            f"{asked_by} was given {type(X).__name__}; sites are a column of a cohort's table. Give a Cohort."
        )
    table = X.table
    if column not in table:
        raise OpenBrainMassError(
            f"Cohort {X.name} has no column {column} to harmonise over; it has {', '.join(table.columns)}. Name "
            "the column of the site, or evaluate without harmonisation."
        )
    sites = np.array([code(value) for value in table[column]])
    if (sites == "").any():
        who = table["recording_id"].to_numpy()[sites == ""]
        raise OpenBrainMassError(
            f"{len(who)} recordings of cohort {X.name} have no {column} (the first is {who[0]}), so they cannot be "
            "harmonised. Fill the column in, or leave them out (select)."
        )
    return sites


def feature_table(values: Any, maker: Any, asked_by: str) -> np.ndarray:
    """Features of recordings (n, n_features), float64, as `asked_by` needs them.

    Raises
    ------
    OpenBrainMassError
        If they are no table of finite numbers.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise OpenBrainMassError(
            f"{type(maker).__name__} made features of shape {values.shape}"
            f"{'' if np.isfinite(values).all() else ' with values that are not finite'}; {asked_by} needs a finite table "
            "(n_recordings, n_features), such as Connectome('fisher-z') makes."
        )
    return values
