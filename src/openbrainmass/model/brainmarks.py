"""Our encoders and connectomes as models of Brainmarks, the evaluation suite for fMRI foundation models.

Brainmarks (``pip install brainmarks``; written against its version 0.1.1) imports whatever it finds in its namespace
package ``brainmarks.models``; the file of ours that lies there calls `register`. Its own commands then know our models:

    python -m brainmarks.main_logistic openbrainmass cls abide_dx --overrides model_kwargs.ckpt_path=runs/base
    python -m brainmarks.main_logistic openbrainmass_connectome_schaefer400 cls abide_dx

Brainmarks hands a model BOLD of one of its own parcellations, z-scored in time, and takes back up to three arrays of
embeddings. It reads Schaefer's 400 parcels in the order of the *17* networks. It does not ask whom a model has met.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from openbrainmass.atlas import Atlas
from openbrainmass.connectivity import correlation, fisher_z, vectorize
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.model.checkpoint import Checkpoint, open_checkpoint

SPACES = {"schaefer400": 400, "schaefer400_tians3": 450, "schaefer400_tians3_buckner7": 457, "a424": 424}
"""Brainmarks' parcellations, by their names there, and their numbers of ROIs."""

CHECKPOINT_VARIABLE = "OPENBRAINMASS_CHECKPOINT"
"""Environment variable that names the checkpoint where no ``ckpt_path`` is given, as in Brainmarks' own model test."""

Sample = Mapping[str, Any]
Embeddings = tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]
"""What Brainmarks unpacks: class ``(n, 1, d)``, register ``(n, r, d)`` and patch ``(n, l, d)`` embeddings."""

_SEVENTEEN = re.compile(r"(?:Schaefer2018_)?17Networks_[LR]H_")
_SEVEN = re.compile(r"(?:Schaefer2018_)?7Networks_[LR]H_")


def space_of(atlas: Atlas, space: str | None = None) -> str:
    """Which of Brainmarks' parcellations gives an atlas its ROIs, row by row.

    Parameters
    ----------
    atlas : Atlas
        Of the checkpoint.
    space : str, optional
        One of `SPACES`: the caller vouches that the rows of the atlas are those of that parcellation, which names
        cannot tell for the ones with subcortical ROIs. Without it only Schaefer's 400 parcels are recognised.

    Raises
    ------
    OpenBrainMassError
        If the ROIs are others, are in the order of the 7 networks, or cannot be told.
    """
    if space is not None and space not in SPACES:
        raise OpenBrainMassError(
            f"Brainmarks' space {space!r} has no ROIs that an atlas could match; choose one of {', '.join(SPACES)}."
        )
    if atlas.n_rois not in SPACES.values() or (space is not None and SPACES[space] != atlas.n_rois):
        wanted = ", ".join(f"{name} ({n})" for name, n in SPACES.items() if space in (None, name))
        raise OpenBrainMassError(
            f"The checkpoint reads the atlas {atlas.name} ({atlas.n_rois} ROIs), which Brainmarks does not give; it "
            f"gives {wanted}. Pretrain on Schaefer's 400 parcels (17 networks) to evaluate there."
        )
    if any(_SEVEN.match(name) for name in atlas.roi_names):
        raise OpenBrainMassError(
            f"The ROIs of the atlas {atlas.name} are in the order of Schaefer's 7 networks, but Brainmarks reads them "
            "in the order of the 17 networks. Extract and pretrain with the 17-network atlas."
        )
    if space is None and sum(bool(_SEVENTEEN.match(name)) for name in atlas.roi_names) == SPACES["schaefer400"]:
        space = "schaefer400" if atlas.n_rois == SPACES["schaefer400"] else None
    if space is None:
        raise OpenBrainMassError(
            f"Nothing tells in which order the {atlas.n_rois} ROIs of the atlas {atlas.name} are. If they are those of "
            "one of Brainmarks' parcellations row by row, say which one (--overrides model_kwargs.space=schaefer400)."
        )
    return space


class FCTransform:
    """Turn a sample's BOLD into FC, so that scans of any length make one batch.

    Parameters
    ----------
    estimator : {"pearson", "ledoit-wolf"}
        Of the FC; a checkpoint's own.
    """

    def __init__(self, estimator: str = "pearson") -> None:
        self.estimator = estimator

    def __call__(self, sample: Sample) -> dict[str, Any]:
        """The sample without ``bold`` (n_frames, n_rois), and with ``fc`` (n_rois, n_rois), float32, in its place."""
        # Shrinkage depends on the ROIs' variances, which Brainmarks keeps apart; the means change no correlation.
        bold = np.asarray(sample["bold"], dtype=np.float64) * np.asarray(sample["std"], dtype=np.float64)
        kept = {key: value for key, value in sample.items() if key not in ("bold", "mean", "std")}
        return {**kept, "fc": torch.from_numpy(correlation(bold, self.estimator).astype(np.float32))}


class EncoderBackbone(nn.Module):
    """The encoder of a checkpoint; its embedding is the class embedding, its tokens (one an ROI) the patches.

    Parameters
    ----------
    checkpoint : Checkpoint
    space : str
        Parcellation that Brainmarks is to read (see `space_of`).
    """

    def __init__(self, checkpoint: Checkpoint, space: str) -> None:
        super().__init__()
        self.__space__ = space
        self.encoder = checkpoint.encoder()

    def forward(self, batch: Sample) -> Embeddings:
        """Embeddings of ``batch["fc"]`` (n, n_rois, n_rois): ``(n, 1, embedding_size)``, none, ``(n, n_rois, width)``."""
        fc = batch["fc"]
        # Brainmarks computes in bfloat16 unless told otherwise, which would change the embeddings it is to judge.
        with torch.autocast(fc.device.type, enabled=False):
            tokens = self.encoder.tokens(fc.float())
            return self.encoder.read_out(tokens)[:, None], None, tokens


class ConnectomeBackbone(nn.Module):
    """Fisher-z edges as class embedding: what an encoder has to beat, by the same code as everywhere in this package.

    Parameters
    ----------
    space : str
        One of `SPACES`.
    """

    def __init__(self, space: str) -> None:
        super().__init__()
        self.__space__ = space

    def forward(self, batch: Sample) -> Embeddings:
        """Edges of ``batch["fc"]`` (n, n_rois, n_rois), ``(n, 1, n_rois * (n_rois - 1) / 2)``."""
        return vectorize(fisher_z(batch["fc"].float()))[:, None], None, None


def encoder_model(
    ckpt_path: Checkpoint | str | Path | None = None, space: str | None = None
) -> tuple[FCTransform, EncoderBackbone]:
    """A pretrained encoder for Brainmarks.

    Parameters
    ----------
    ckpt_path : Checkpoint or path, optional
        What `pretrain` wrote; without it the environment variable ``OPENBRAINMASS_CHECKPOINT`` says where.
    space : str, optional
        See `space_of`.

    Raises
    ------
    OpenBrainMassError
        If there is no checkpoint, or Brainmarks has no parcellation with its ROIs.
    """
    checkpoint = _checkpoint(ckpt_path)
    if checkpoint.seen_identities:
        sets = ", ".join(map(str, checkpoint.facts.get("datasets") or ())) or "datasets that its card does not name"
        warnings.warn(
            f"{checkpoint!r} was pretrained on people of {sets}. Brainmarks does not look for them among its test "
            "people; on those datasets its figures may flatter this model.",
            stacklevel=2,
        )
    return FCTransform(checkpoint.fc_estimator), EncoderBackbone(checkpoint, space_of(checkpoint.atlas, space))


def untrained_model(
    ckpt_path: Checkpoint | str | Path | None = None, space: str | None = None, seed: int = 0
) -> tuple[FCTransform, EncoderBackbone]:
    """The same encoder with random weights: the floor of `encoder_model`.

    Parameters
    ----------
    ckpt_path, space
        As for `encoder_model`; atlas and settings are taken from that checkpoint, its weights are not.
    seed : int
        Of the random weights.
    """
    trained = _checkpoint(ckpt_path)
    untrained = Checkpoint.untrained(trained.atlas, trained.settings, seed)
    return FCTransform(untrained.fc_estimator), EncoderBackbone(untrained, space_of(untrained.atlas, space))


def connectome_model(space: str = "schaefer400") -> tuple[FCTransform, ConnectomeBackbone]:
    """Fisher-z edges of one of Brainmarks' parcellations."""
    return FCTransform(), ConnectomeBackbone(space)


def register() -> tuple[str, ...]:
    """Tell Brainmarks of our models; needs the package ``brainmarks``.

    Returns
    -------
    tuple of str
        Their names: ``openbrainmass``, ``openbrainmass_untrained``, ``openbrainmass_connectome_<space>``.
    """
    from brainmarks.models.registry import register_model  # pyright: ignore[reportMissingImports]

    models: dict[str, Callable[..., Any]] = {
        "openbrainmass": encoder_model,
        "openbrainmass_untrained": untrained_model,
        **{f"openbrainmass_connectome_{space}": partial(connectome_model, space) for space in SPACES},
    }
    for name, make in models.items():
        register_model(name)(make)
    return tuple(models)


def _checkpoint(given: Checkpoint | str | Path | None) -> Checkpoint:
    place = given or os.environ.get(CHECKPOINT_VARIABLE)
    if not place:
        raise OpenBrainMassError(
            "No checkpoint was named for Brainmarks; an openbrainmass model needs one. Add --overrides "
            f"model_kwargs.ckpt_path=FOLDER, or set {CHECKPOINT_VARIABLE}."
        )
    return open_checkpoint(place)
