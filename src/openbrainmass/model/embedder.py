"""`Embedder`: a pretrained encoder as a scikit-learn transformer."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags

from openbrainmass.atlas import Atlas
from openbrainmass.cohort.cohort import Cohort
from openbrainmass.connectivity import correlation
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.baselines import Recordings, accept_recordings
from openbrainmass.model.checkpoint import Checkpoint, open_checkpoint
from openbrainmass.model.encoder import Encoder
from openbrainmass.model.inference import agreement, in_bfloat16
from openbrainmass.model.tangent import TangentEncoder
from openbrainmass.model.team import checked_device

Precision = Literal["float32", "bfloat16"]

LEAST_COSINE, LEAST_OWN_COSINE = 0.9999, 0.999
"""How alike float32 and bfloat16 embeddings of a recording must be, as they are and without what all share."""

_SYMMETRY = 1e-4
_JUDGED = 64
"""Recordings, the first of each call, on which it is judged whether bfloat16 will do."""
_AT_ONCE = 8
"""Recordings that pass the layers together on a CPU: the units of more would not stay in its cache."""


def is_fc(array: np.ndarray) -> bool:
    """Whether a 2-D array is an FC matrix rather than BOLD: BOLD is never square *and* symmetric."""
    return (
        array.ndim == 2
        and array.shape[0] == array.shape[1]
        and array.shape[0] > 1
        and bool(np.allclose(array, array.T, atol=_SYMMETRY, equal_nan=True))
    )


def check_atlas(recordings: Recordings, atlas: Atlas) -> None:
    """Refuse nothing to read, one bare matrix instead of a list, and a cohort of another atlas."""
    if isinstance(recordings, np.ndarray) and recordings.ndim != 3:
        raise OpenBrainMassError(
            f"An array of shape {recordings.shape} was given; a list of (n_volumes, n_rois) arrays or an FC stack "
            "(n, n_rois, n_rois) is expected. Put a single recording into a list: [bold]."
        )
    if len(recordings) == 0:
        raise OpenBrainMassError("No recording was given; at least one is needed. Check what selected them.")
    if isinstance(recordings, Cohort) and recordings.atlas.digest != atlas.digest:
        other = recordings.atlas
        raise OpenBrainMassError(
            f"Cohort {recordings.name} is of the atlas {other.name} ({other.n_rois} ROIs) but the checkpoint expects "
            f"{atlas.name} ({atlas.n_rois}). Extract it again with that atlas, or use a checkpoint of {other.name}."
        )


def recording_names(recordings: Recordings) -> Sequence[str | int]:
    """What messages call each recording: its ``recording_id`` in a cohort, else its place."""
    if isinstance(recordings, Cohort):
        return recordings.recordings["recording_id"].tolist()
    return range(len(recordings))


def checked_recording(array: np.ndarray, name: str | int, atlas: Atlas) -> np.ndarray:
    """BOLD or FC of one recording as float32 or float64, or a sentence that names the recording."""
    array = np.asarray(array)
    if array.ndim != 2 or not np.issubdtype(array.dtype, np.number):
        raise OpenBrainMassError(
            f"Recording {name} is an array of shape {array.shape} and type {array.dtype}; numbers of shape "
            "(n_volumes, n_rois) are expected. Give one two-dimensional array a recording."
        )
    if array.shape[1] != atlas.n_rois:
        remedy = "Extract it again with that atlas."
        if array.shape[0] == atlas.n_rois:
            remedy = "It seems transposed: give (n_volumes, n_rois)."
        raise OpenBrainMassError(
            f"Recording {name} has {array.shape[1]} ROIs but the checkpoint expects {atlas.name} "
            f"({atlas.n_rois}). {remedy}"
        )
    # float16 holds BOLD well enough but its sums overflow.
    return array if array.dtype == np.float64 else array.astype(np.float32)


def recording_fc(array: np.ndarray, name: str | int, checkpoint: Checkpoint) -> np.ndarray:
    """FC of one recording, by the checkpoint's own estimator where BOLD is given.

    Returns
    -------
    ndarray (n_rois, n_rois), float32

    Raises
    ------
    OpenBrainMassError
        If the array is neither BOLD nor FC of the checkpoint's atlas.
    """
    array = checked_recording(array, name, checkpoint.atlas)
    if is_fc(array):
        return _checked_fc(array, name).astype(np.float32)
    try:
        return correlation(array, checkpoint.fc_estimator).astype(np.float32)
    except OpenBrainMassError as error:
        raise OpenBrainMassError(f"Recording {name}: {error}") from error


def _checked_fc(fc: np.ndarray, name: str | int) -> np.ndarray:
    finite = bool(np.isfinite(fc).all())
    if not finite or np.abs(fc).max() > 1 + _SYMMETRY or not np.allclose(np.diagonal(fc), 1, atol=_SYMMETRY):
        raise OpenBrainMassError(
            f"Recording {name} is a symmetric matrix but not an FC matrix: correlations within [-1, 1] with a "
            "diagonal of 1 and no NaN are expected. Give correlations (not covariances or Fisher z; edges of a missing "
            "ROI are 0), or the BOLD itself."
        )
    return np.clip(fc, -1, 1)


def fc_batches(recordings: Recordings, checkpoint: Checkpoint, batch_size: int) -> Iterator[np.ndarray]:
    """FC stacks ``(n <= batch_size, n_rois, n_rois)`` in order; only one batch is in memory at a time."""
    names = recording_names(recordings)
    for start in range(0, len(recordings), batch_size):
        numbers = range(start, min(start + batch_size, len(recordings)))
        yield np.stack([recording_fc(recordings[number], names[number], checkpoint) for number in numbers])


def embed(
    recordings: Recordings, checkpoint: Checkpoint, batch_size: int, device: str, precision: Precision = "float32"
) -> np.ndarray:
    """Embeddings ``(n, embedding_size)``, float32, of recordings by a checkpoint; see `Embedder`."""
    return np.concatenate(list(embedded_batches(recordings, checkpoint, batch_size, device, precision)))


def embedded_batches(
    recordings: Recordings,
    checkpoint: Checkpoint,
    batch_size: int = 64,
    device: str = "cpu",
    precision: Precision = "float32",
) -> Iterator[np.ndarray]:
    """The same, ``batch_size`` recordings after the others; all in one precision."""
    if batch_size < 1:
        raise OpenBrainMassError(f"batch_size is {batch_size}; it must be at least 1.")
    if precision not in get_args(Precision):
        raise OpenBrainMassError(f"The precision {precision!r} is not known; choose float32 or bfloat16.")
    check_atlas(recordings, checkpoint.atlas)
    place = checked_device(device)
    encoder = checkpoint.encoder().to(place)
    if precision == "bfloat16":
        first = islice(fc_batches(recordings, checkpoint, batch_size), -(-_JUDGED // batch_size))
        encoder = _reduced_if_alike(encoder, torch.from_numpy(np.concatenate(list(first))[:_JUDGED]).to(place))
    for stack in fc_batches(recordings, checkpoint, batch_size):
        with torch.inference_mode():
            values = embed_fc(encoder, torch.from_numpy(stack).to(place)).cpu().numpy()
        yield values


def embed_fc(encoder: Encoder | TangentEncoder, fc: torch.Tensor) -> torch.Tensor:
    """Embeddings ``(n, size)`` of FC ``(n, n_rois, n_rois)`` on the encoder's device; on a CPU a few at a time."""
    if fc.is_cuda:
        return encoder(fc)
    return torch.cat([encoder(some) for some in fc.split(_AT_ONCE)])


def _reduced_if_alike(encoder: Encoder | TangentEncoder, fc: torch.Tensor) -> Encoder | TangentEncoder:
    """The bfloat16 copy of an encoder, or with a warning itself where the copy says something else of these FC."""
    if isinstance(encoder, TangentEncoder):
        warnings.warn("A tangent encoder has no layers that bfloat16 would speed up; float32 is used.", stacklevel=3)
        return encoder
    if len(fc) < 2:
        warnings.warn("One recording does not tell whether bfloat16 changes embeddings; float32 is used.", stacklevel=3)
        return encoder
    with torch.inference_mode():
        reduced = in_bfloat16(encoder)
        whole, own = agreement(embed_fc(encoder, fc), embed_fc(reduced, fc))
    if whole >= LEAST_COSINE and own >= LEAST_OWN_COSINE:
        return reduced
    warnings.warn(
        f"bfloat16 would change the embeddings of this checkpoint (smallest cosine of {len(fc)} recordings {whole:.6f}, "
        f"without their mean {own:.6f}; at least {LEAST_COSINE} and {LEAST_OWN_COSINE} are needed), so float32 is used.",
        stacklevel=3,
    )
    return encoder


def embedding_names(checkpoint: Checkpoint) -> np.ndarray:
    """Names of the embedding's columns: of a transformer the ROI and the number of its value (``A_0``), else ``A x B``."""
    rois, settings = checkpoint.atlas.roi_names, checkpoint.settings.encoder
    if settings.kind == "tangent":
        names = [f"{rois[row]} x {rois[column]}" for row, column in zip(*np.triu_indices(len(rois)), strict=True)]
    else:
        names = [f"{roi}_{number}" for roi in rois for number in range(settings.readout)]
    return np.asarray(names, dtype=object)


class Embedder(TransformerMixin, BaseEstimator):
    """A frozen pretrained encoder: recordings in, embeddings out. Nothing is fitted.

    Parameters
    ----------
    checkpoint : Checkpoint, path or str
        What `pretrain` returned, the folder it wrote, or the name of weights that come with the package
        (``"openbrainmass-cc200"``).
    batch_size : int
        Recordings embedded at a time; decides memory, not results.
    device : str
        ``"cpu"``, ``"cuda"``...
    precision : {"float32", "bfloat16"}
        Number format of the matrix products. In bfloat16 large encoders are about twice as fast; the first 64 recordings of
        each call are embedded both ways, and where for any of them the cosine of the two is below 0.9999, or below
        0.999 after their mean was taken from both, a warning says so and float32 is used. The second condition is
        there because embeddings of all people are nearly parallel. A single recording is embedded in float32.

    Examples
    --------
    >>> make_pipeline(Embedder("runs/base"), StandardScaler(), SVC()).fit(cohort, y)  # doctest: +SKIP
    """

    def __init__(
        self,
        checkpoint: Checkpoint | str | Path,
        batch_size: int = 64,
        device: str = "cpu",
        precision: Precision = "float32",
    ) -> None:
        self.checkpoint = checkpoint
        self.batch_size = batch_size
        self.device = device
        self.precision: Precision = precision

    @classmethod
    def from_pretrained(cls, name: str | Path) -> Self:
        """The embedder of weights that come with the package, by name, or of a folder; nothing is downloaded."""
        return cls(Checkpoint.load(name))

    @property
    def seen_identities(self) -> frozenset[str]:
        """Hashes of every person and recording that the encoder has seen (see `Cohort.identities`)."""
        return open_checkpoint(self.checkpoint).seen_identities

    def fit(self, X: Any = None, y: Any = None) -> Self:
        """Do nothing: the encoder is frozen."""
        return self

    def transform(self, X: Recordings) -> np.ndarray:
        """Embed recordings.

        Parameters
        ----------
        X : Cohort, sequence of ndarray (n_volumes_i, n_rois), or ndarray (n, n_rois, n_rois)
            BOLD becomes FC by the estimator that the checkpoint was trained with. A square symmetric matrix is taken
            as FC; it must have been computed with that same estimator, which cannot be checked here.

        Returns
        -------
        ndarray (n, embedding_size), float32
            Of a transformer ``readout`` values an ROI, ROI after ROI; of a tangent encoder one a pair of ROIs.

        Raises
        ------
        OpenBrainMassError
            If a recording has other ROIs than the checkpoint, or is not usable BOLD or FC.
        """
        return embed(X, open_checkpoint(self.checkpoint), self.batch_size, self.device, self.precision)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns (see `embedding_names`)."""
        return embedding_names(open_checkpoint(self.checkpoint))

    def __sklearn_tags__(self) -> Tags:
        return accept_recordings(super().__sklearn_tags__(), requires_fit=False)
