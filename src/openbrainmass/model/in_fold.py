"""`PretrainInFold`: pretraining as a step of a pipeline, so that held-out people are never seen."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.durable import make_folder
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.baselines import Recordings, accept_recordings
from openbrainmass.model.checkpoint import Checkpoint
from openbrainmass.model.embedder import embed, embedding_names
from openbrainmass.model.pretrain import pretrain
from openbrainmass.model.settings import PretrainSettings


class PretrainInFold(TransformerMixin, BaseEstimator):
    """Pretrain on exactly the recordings given to `fit`, then embed.

    Parameters
    ----------
    settings : PretrainSettings
        How to pretrain (see `preset`).
    folder : path, optional
        Where runs are kept, each under the digest of its training recordings and settings. Another pipeline with the
        same folder, training set and settings then reads the finished run instead of repeating it, and an interrupted
        one continues. Without it the run is made in a temporary folder and nothing is shared.
    progress : bool
        Show the progress of each pretraining.
    batch_size : int
        Recordings embedded at a time; decides memory, not results.

    Attributes
    ----------
    checkpoint_ : Checkpoint
        What was pretrained.
    """

    def __init__(
        self,
        settings: PretrainSettings,
        folder: str | Path | None = None,
        progress: bool = False,
        batch_size: int = 64,
    ) -> None:
        self.settings = settings
        self.folder = folder
        self.progress = progress
        self.batch_size = batch_size

    @property
    def seen_identities(self) -> frozenset[str]:
        """Hashes of every person and recording that `fit` was given."""
        check_is_fitted(self)
        return self.checkpoint_.seen_identities

    def fit(self, X: Cohort, y: Any = None) -> Self:
        """Pretrain on the recordings of a cohort; labels are not used.

        Raises
        ------
        OpenBrainMassError
            If X is not a Cohort, or pretraining refuses it.
        """
        if not isinstance(X, Cohort):
            raise OpenBrainMassError(
                f"PretrainInFold was given {type(X).__name__}; a Cohort is needed, because it must record whom it saw. "
                "Use cohort.select(rows) for the training people."
            )
        if self.folder is None:
            with tempfile.TemporaryDirectory(prefix="openbrainmass-") as temporary:
                self.checkpoint_ = pretrain(X, self.settings, Path(temporary) / "run", progress=self.progress)
        else:
            self.checkpoint_ = self._shared(X, make_folder(self.folder))
        return self

    def _shared(self, cohort: Cohort, folder: Path) -> Checkpoint:
        digest = training_digest(cohort, self.settings)
        with _only_one_process(folder / f"{digest}.lock"):
            # A finished run is loaded there, a killed one continues.
            return pretrain(cohort, self.settings, folder / digest, progress=self.progress)

    def transform(self, X: Recordings) -> np.ndarray:
        """Embed recordings with the encoder that `fit` pretrained; see `Embedder.transform`.

        Returns
        -------
        ndarray (n, embedding_size), float32
        """
        check_is_fitted(self)
        return embed(X, self.checkpoint_, self.batch_size, self.settings.device)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns (see `embedding_names`)."""
        check_is_fitted(self)
        return embedding_names(self.checkpoint_)

    def __sklearn_tags__(self) -> Tags:
        return accept_recordings(super().__sklearn_tags__())


def training_digest(cohort: Cohort, settings: PretrainSettings) -> str:
    """Name of a pretraining: sha256 (first 16 hex digits) of who is in it, in order, atlas, settings, version.

    The order counts because it decides the random views of each recording.
    """
    who = [sorted(identities) for identities in cohort.identities()]
    description = json.dumps([who, cohort.atlas.digest, settings.digest, version("openbrainmass")])
    return hashlib.sha256(description.encode()).hexdigest()[:16]


@contextlib.contextmanager
def _only_one_process(lock: Path) -> Iterator[None]:
    """Let the second process wait for the first; the kernel frees the lock of a process that was killed."""
    try:
        import fcntl
    except ImportError:  # pragma: no cover  (Windows: nothing is locked, so share a folder between jobs elsewhere)
        yield
        return
    handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
