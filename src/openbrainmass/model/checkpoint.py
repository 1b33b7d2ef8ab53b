"""`Checkpoint`: the weights of an encoder and the card that says what they are."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from openbrainmass.atlas import Atlas
from openbrainmass.durable import make_folder, read_json, write_json, write_tensors
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.model.encoder import Encoder
from openbrainmass.model.pretrained import pretrained_folder, pretrained_names
from openbrainmass.model.settings import EncoderSettings, PretrainSettings
from openbrainmass.model.tangent import TangentEncoder

FORMAT = 1
"""Version of the layout of ``card.json``; another number is refused, not guessed at."""

ENCODER_PREFIX = "encoder."
"""Names of the encoder's weights start with this; others (projector, heads) are kept but never needed."""


@dataclass(frozen=True, eq=False, repr=False)
class Checkpoint:
    """Weights of an encoder with all that is needed to use them honestly. Treat it as immutable.

    Attributes
    ----------
    settings : PretrainSettings
        All settings of the pretraining; ``settings.encoder`` rebuilds the encoder.
    atlas : Atlas
        The ROIs that the encoder reads, in order.
    weights : dict of str to Tensor
        ``encoder.*`` and, where pretraining kept them, other parts.
    identities : frozenset of str
        Hashes of every person and recording that pretraining saw (union of `Cohort.identities`).
    facts : dict
        Free JSON: ``n_recordings``, ``n_people``, ``datasets``, ``epochs``, final metrics...
    """

    settings: PretrainSettings
    atlas: Atlas
    weights: Mapping[str, torch.Tensor]
    identities: frozenset[str] = frozenset()
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        people = self.facts.get("n_people", 0)
        return f"Checkpoint({self.atlas.name!r}, n_rois={self.atlas.n_rois}, n_people={people})"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # scikit-learn's clone copies parameters deeply; a copy of the weights for every fold would serve nobody.
        return self

    @property
    def seen_identities(self) -> frozenset[str]:
        """Hashes of every person and recording that pretraining saw."""
        return self.identities

    @property
    def fc_estimator(self) -> str:
        """Name of the FC estimator that the encoder was trained on (see `connectivity.correlation`)."""
        return self.settings.views.estimator

    @classmethod
    def untrained(cls, atlas: Atlas, settings: PretrainSettings, seed: int = 0) -> Self:
        """Random weights: the floor that a pretrained encoder must beat."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            encoder = build_encoder(atlas.n_rois, settings.encoder)
        weights = {ENCODER_PREFIX + name: value for name, value in encoder.state_dict().items()}
        return cls(settings, atlas, weights, frozenset(), {"n_recordings": 0, "n_people": 0, "untrained_seed": seed})

    def encoder(self) -> Encoder | TangentEncoder:
        """Build the encoder with these weights, in evaluation mode, on the CPU.

        Raises
        ------
        OpenBrainMassError
            If the weights are not those of the encoder that the settings describe.
        """
        own = {
            name.removeprefix(ENCODER_PREFIX): value
            for name, value in self.weights.items()
            if name.startswith(ENCODER_PREFIX)
        }
        with torch.random.fork_rng(devices=[]):
            encoder = build_encoder(self.atlas.n_rois, self.settings.encoder)
        try:
            encoder.load_state_dict(own)
        except RuntimeError as error:
            raise OpenBrainMassError(
                f"The weights of {self!r} are not those of the encoder that its settings describe "
                f"({' '.join(str(error).split())[:300]}). Take the card and the weights from the same run."
            ) from error
        return encoder.eval()

    def transformer(self) -> Encoder:
        """The encoder, where it is one with layers (to move, or to reduce in precision).

        Raises
        ------
        OpenBrainMassError
            If it is a tangent encoder.
        """
        encoder = self.encoder()
        if isinstance(encoder, TangentEncoder):
            raise OpenBrainMassError(
                f"{self!r} holds a tangent encoder, which has no layers. Put a probe on its embedding: "
                "make_pipeline(Embedder(checkpoint), PROBES['ridge'])."
            )
        return encoder

    def save(self, folder: str | Path) -> Path:
        """Write ``weights.safetensors``, then ``card.json``, into a folder (a run folder may hold more files).

        Returns
        -------
        Path
            The folder.
        """
        folder = make_folder(folder)
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in self.weights.items()}
        sha256 = write_tensors(folder / "weights.safetensors", tensors)
        # As it will be read again; the identities, which may be many, are that already.
        card = json.loads(json.dumps(self._card(sha256))) | {"identities": sorted(self.identities)}
        write_json(folder / "card.json", {**card, "card_sha256": _digest(card)})
        return folder

    def _card(self, weights_sha256: str) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "n_rois": self.atlas.n_rois,
            "fc_estimator": self.fc_estimator,
            "facts": dict(self.facts),
            "settings": self.settings.model_dump(mode="json"),
            "atlas": _atlas_card(self.atlas),
            "package_version": version("openbrainmass"),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "weights_sha256": weights_sha256,
        }

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read a checkpoint; nothing in it is ever executed, and both files are checked against their sha256.

        Parameters
        ----------
        folder : path or str
            A run folder, or the name of weights that come with the package (a folder of that name comes first).

        Raises
        ------
        OpenBrainMassError
            If the folder holds no checkpoint, is of another format version, or was damaged or edited.
        """
        folder = _resolved(folder)
        if not (folder / "card.json").is_file():
            raise OpenBrainMassError(
                f"{folder} holds no checkpoint: there is no card.json in it. "
                "Name the folder that `openbrainmass pretrain` or `convert` wrote, let the pretraining finish, or name "
                f"weights that come with the package ({', '.join(pretrained_names())})."
            )
        card = _checked_card(folder / "card.json")
        atlas = _read_atlas(card["atlas"])
        settings = PretrainSettings.checked(card["settings"], source=str(folder / "card.json"))
        weights = _checked_weights(folder / "weights.safetensors", card["weights_sha256"])
        return cls(settings, atlas, weights, frozenset(card["identities"]), card["facts"])


def build_encoder(n_rois: int, settings: EncoderSettings) -> Encoder | TangentEncoder:
    """An encoder of the kind that the settings name, with the weights it starts with."""
    return (TangentEncoder if settings.kind == "tangent" else Encoder)(n_rois, settings)


def _resolved(folder: str | Path) -> Path:
    if Path(folder).exists():
        return Path(folder)
    return pretrained_folder(str(folder)) or Path(folder)


def open_checkpoint(checkpoint: Checkpoint | str | Path) -> Checkpoint:
    """Return the checkpoint itself, or the one that a folder or a name stands for."""
    return checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint.load(checkpoint)


def _digest(card: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(card, sort_keys=True).encode()).hexdigest()


def _checked_card(path: Path) -> dict[str, Any]:
    card = read_json(path)
    found = card.pop("format", None) if isinstance(card, dict) else None
    if found != FORMAT:
        raise OpenBrainMassError(
            f"{path} is of format {found} but this version reads format {FORMAT}. "
            "Use the version of openbrainmass that wrote it (see package_version in the card)."
        )
    card["format"] = found
    expected = card.pop("card_sha256", None)
    if _digest(card) != expected:
        raise OpenBrainMassError(
            f"{path} was damaged or edited: its content does not match the sha256 written in it. "
            "Copy it again from where it came from, or pretrain again."
        )
    return card


def _checked_weights(path: Path, expected: str) -> dict[str, torch.Tensor]:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise OpenBrainMassError(
            f"{path} cannot be read ({error.strerror}); the weights were expected beside card.json. "
            "Copy the whole folder again."
        ) from error
    if hashlib.sha256(data).hexdigest() != expected:
        raise OpenBrainMassError(
            f"{path} was damaged or exchanged: its sha256 is not the one in card.json. "
            "Copy it again from where it came from, or pretrain again."
        )
    try:
        return load_tensors(data)
    except SafetensorError as error:
        raise OpenBrainMassError(f"{path} is not a safetensors file ({error}). Write the checkpoint again.") from error


def _atlas_card(atlas: Atlas) -> dict[str, Any]:
    return {
        "name": atlas.name,
        "digest": atlas.digest,
        "roi_names": list(atlas.roi_names),
        "networks": None if atlas.networks is None else list(atlas.networks),
        "hemispheres": None if atlas.hemispheres is None else list(atlas.hemispheres),
        "coords_mm": None if atlas.coords_mm is None else _finite_or_none(atlas.coords_mm),
    }


def _finite_or_none(coords_mm: np.ndarray) -> list[list[float | None]]:
    # JSON has no NaN; an ROI without a place is written as nulls, which numpy reads back as NaN.
    rows = np.asarray(coords_mm, dtype=float)
    return [[float(value) if np.isfinite(value) else None for value in row] for row in rows]


def _read_atlas(card: Mapping[str, Any]) -> Atlas:
    return Atlas(
        card["name"],
        tuple(card["roi_names"]),
        None if card["networks"] is None else tuple(card["networks"]),
        None if card["hemispheres"] is None else tuple(card["hemispheres"]),
        None if card["coords_mm"] is None else np.asarray(card["coords_mm"], dtype=float),
    )
