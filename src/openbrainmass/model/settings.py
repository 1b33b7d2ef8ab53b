"""Settings of the encoder and its pretraining, and the presets: a size and a recipe."""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

from pydantic import Field, model_validator

from openbrainmass.errors import OpenBrainMassError
from openbrainmass.settings import Settings

Size = Literal["tangent", "tiny", "small", "base", "paper"]
Recipe = Literal["default", "paper"]


class EncoderSettings(Settings):
    """What the encoder is; with the number of ROIs it fixes every weight's shape.

    Attributes
    ----------
    kind : {"transformer", "tangent"}
        The transformer of the paper, or the tangent space of the pretraining people, learnt in closed form
        (`openbrainmass.model.tangent`): for that only ``shrinkage``, ``modes`` and ``site_modes`` mean anything.
    input : {"fc", "logarithm"}
        What a transformer's tokens are rows of, and what it reconstructs: FC (the paper), or its matrix logarithm.
    shrinkage : float
        Share of the identity in the FC whose logarithm is taken, by a transformer or a tangent encoder.
    modes : int
        How many eigenvectors of the mean FC a tangent encoder learns. The fewer, the less of any person is in its weights.
    site_modes : int
        How many of the patterns in which sites differ most it takes out of every FC; likewise.
    width : int or None
        Width of a token. None: the number of ROIs, with no input projection (the paper).
    depth, heads, ffn : int
        Transformer layers, attention heads a layer, hidden units of a layer's feed-forward part.
    dropout, attention_dropout : float
        In feed-forward units and residual branches, and in attention weights, while training. Without the latter (the
        paper: 0.1) attention needs no memory for its weights and, from 200 ROIs on, half the time.
    readout : int
        Values read out of each ROI; the embedding has ``readout * n_rois`` values.
    positions : {"both", "masked-only", "none"}
        Where the sinusoidal ROI positions are added: on every branch, or on the masked branch alone (the paper).
    """

    kind: Literal["transformer", "tangent"] = "transformer"
    input: Literal["fc", "logarithm"] = "fc"
    shrinkage: float = Field(default=0.3, gt=0, lt=1)
    modes: int = Field(default=1, ge=0)
    site_modes: int = Field(default=3, ge=0)
    width: int | None = Field(default=64, ge=2)
    depth: int = Field(default=2, ge=1)
    heads: int = Field(default=2, ge=1)
    ffn: int = Field(default=128, ge=1)
    dropout: float = Field(default=0.1, ge=0, lt=1)
    attention_dropout: float = Field(default=0.0, ge=0, lt=1)
    readout: int = Field(default=8, ge=1)
    positions: Literal["both", "masked-only", "none"] = "both"

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> EncoderSettings:
        if self.width is not None and self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}; choose one that is")
        return self

    def embedding_size(self, n_rois: int) -> int:
        """Values of an embedding: ``readout`` an ROI, or for a tangent encoder one for each pair of ROIs and each ROI."""
        return n_rois * (n_rois + 1) // 2 if self.kind == "tangent" else self.readout * n_rois

    def token_width(self, n_rois: int) -> int:
        """Width of a token for an atlas of ``n_rois`` ROIs.

        Raises
        ------
        OpenBrainMassError
            If tokens as wide as the atlas cannot be shared among the heads.
        """
        width = n_rois if self.width is None else self.width
        if width % self.heads:
            raise OpenBrainMassError(
                f"The encoder takes whole FC rows as tokens, and {n_rois} ROIs cannot be shared among {self.heads} "
                f"attention heads. Set encoder.heads to a divisor of {n_rois}, or encoder.width to a multiple of "
                f"{self.heads}."
            )
        return width


class ObjectiveSettings(Settings):
    """The three losses, their weights, and what the masked branch hides.

    Attributes
    ----------
    lra, identification, reconstruction : float
        Weights of the latent representation alignment and of both parts of masked ROI modelling; 0 skips that part.
    n_reconstruct, n_identify : float
        Shares of the ROIs that are masked for each part (of 100 ROIs: 5 and 10).
    mask : {"rows-and-columns", "rows"}
        Hide a masked ROI's row and column, or (the paper) its row alone, of which the columns tell the answer.
    masked_passes : {1, 2}
        Mask the ROIs of both parts together, or in passes of their own (the paper).
    lra_online : {"clean", "masked"}
        Which views the online network predicts from: whole ones (the paper), or those that were masked, which saves a
        pass and needs ``masked_passes`` 1.
    lra_directions : {1, 2}
        Each view predicts the other one (the paper), or the first the second alone.
    extra_tokens : int
        Learned tokens put in front of the masked branch (the paper: 2). Nothing reads them.
    train_heads : bool
        Whether the mask token, the extra tokens and both heads are given to the optimiser (the paper: not).
    head_hidden, projector_hidden, projector_out, predictor_hidden : int
        Hidden and output units; ``projector_hidden`` None means twice the embedding.
    momentum : float
        Share of the target kept when it follows the online network at each step.
    """

    lra: float = Field(default=1.0, ge=0)
    identification: float = Field(default=0.1, ge=0)
    reconstruction: float = Field(default=2.0, ge=0)
    n_reconstruct: float = Field(default=0.05, gt=0, lt=1)
    n_identify: float = Field(default=0.10, gt=0, lt=1)
    mask: Literal["rows-and-columns", "rows"] = "rows-and-columns"
    masked_passes: Literal[1, 2] = 1
    lra_online: Literal["clean", "masked"] = "clean"
    lra_directions: Literal[1, 2] = 2
    extra_tokens: int = Field(default=0, ge=0)
    train_heads: bool = True
    head_hidden: int = Field(default=128, ge=1)
    projector_hidden: int | None = Field(default=256, ge=1)
    projector_out: int = Field(default=128, ge=1)
    predictor_hidden: int = Field(default=256, ge=1)
    momentum: float = Field(default=0.99, ge=0, le=1)

    @model_validator(mode="after")
    def _masked_views_have_one_pass(self) -> ObjectiveSettings:
        if self.lra_online == "masked" and self.masked_passes != 1:
            raise ValueError("lra_online 'masked' needs masked_passes 1, because a view is predicted from one pass")
        return self

    def n_masked(self, n_rois: int) -> tuple[int, int]:
        """How many ROIs are masked for reconstruction (at least 1) and identification (at least 2)."""
        return max(1, round(self.n_reconstruct * n_rois)), max(2, round(self.n_identify * n_rois))


class ViewSettings(Settings):
    """How a scan becomes two views: which volumes are left out, and how the rest become FC.

    Attributes
    ----------
    augmentation : {"random-drop", "fixed-count", "contiguous-crop", "chunk-drop"}
        See `openbrainmass.model.pseudo_fc.pseudo_fc`.
    share : float
        Share of the volumes left out (``fixed-count`` keeps 60 volumes whatever the share).
    estimator : {"pearson", "ledoit-wolf"}
        FC estimator of pretraining and, recorded in the checkpoint, of every later use. Ledoit-Wolf (the paper)
        shrinks edges the more the shorter the scan.
    """

    augmentation: Literal["random-drop", "fixed-count", "contiguous-crop", "chunk-drop"] = "random-drop"
    share: float = Field(default=0.2, gt=0, lt=1)
    estimator: Literal["pearson", "ledoit-wolf"] = "pearson"


class PretrainSettings(Settings):
    """Everything that decides a pretraining, besides the data.

    Attributes
    ----------
    epochs : int
        Passes over the recordings.
    max_steps : int or None
        Stop after so many steps even within an epoch.
    batch_size : int
        Recordings a step, over all processes together.
    scans_at_once : int or None
        Recordings that go through the encoder together; fewer need less memory and up to a quarter more time, and the losses
        remain those of the whole batch. None: all of the batch.
    learning_rate, weight_decay, warmup_epochs, clip_value
        AdamW; linear warm-up, then constant; each gradient value is clipped to ``+-clip_value``.
    restart_resets_target : bool
        The published code's fault: a restart overwrites the EMA target with the online network.
    precision : {"float32", "bfloat16"}
        Number format of matrix products; weights stay float32.
    seed, threads, device
        The seed decides weights, order, views, masks and dropout; ``threads`` are torch's; device ``cpu`` or ``cuda``.
    checkpoint_every_seconds : float
        How often the restart state is written; the end of the run always writes it.
    log_every_steps : int
        How often a line is added to ``metrics.jsonl``.
    """

    encoder: EncoderSettings = EncoderSettings()
    objective: ObjectiveSettings = ObjectiveSettings()
    views: ViewSettings = ViewSettings()
    epochs: int = Field(default=30, ge=1)
    max_steps: int | None = Field(default=None, ge=1)
    batch_size: int = Field(default=32, ge=2)
    scans_at_once: int | None = Field(default=None, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=5e-5, ge=0)
    warmup_epochs: int = Field(default=3, ge=0)
    clip_value: float = Field(default=1.0, gt=0)
    restart_resets_target: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = Field(default=0, ge=0)
    threads: int = Field(default=1, ge=1)
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    checkpoint_every_seconds: float = Field(default=60.0, ge=0)
    log_every_steps: int = Field(default=1, ge=1)

    @property
    def digest(self) -> str:
        """sha256 (first 16 hex digits) of all that decides the final weights."""
        decisive = self.model_dump_json(exclude={"checkpoint_every_seconds", "log_every_steps"})
        return hashlib.sha256(decisive.encode()).hexdigest()[:16]


_PAPER_HEADS = {"head_hidden": 2048, "projector_hidden": None, "projector_out": 1024, "predictor_hidden": 2048}

_SIZES: dict[str, dict[str, dict]] = {
    "tangent": {"encoder": {"kind": "tangent"}, "objective": {}, "training": {}},
    "tiny": {"encoder": {}, "objective": {}, "training": {"epochs": 100, "max_steps": 200}},
    "small": {
        "encoder": {"width": 128, "depth": 4, "heads": 8, "ffn": 256},
        "objective": {"head_hidden": 256, "projector_hidden": 512, "projector_out": 256, "predictor_hidden": 512},
        "training": {"epochs": 100, "warmup_epochs": 5, "learning_rate": 5e-4},
    },
    "base": {
        "encoder": {"width": 256, "depth": 8, "heads": 8, "ffn": 1024},
        "objective": _PAPER_HEADS | {"head_hidden": 1024, "momentum": 0.996},
        "training": {"epochs": 400, "warmup_epochs": 10, "learning_rate": 3e-4, "batch_size": 64},
    },
    "paper": {
        "encoder": {"width": None, "depth": 16, "heads": 10, "ffn": 2048},
        "objective": _PAPER_HEADS | {"momentum": 0.996},
        "training": {"epochs": 2000, "warmup_epochs": 10, "learning_rate": 3e-4, "batch_size": 64},
    },
}

_AS_PUBLISHED: dict[str, dict] = {
    "encoder": {"positions": "masked-only", "attention_dropout": 0.1},
    "objective": {"mask": "rows", "masked_passes": 2, "extra_tokens": 2, "train_heads": False},
    "views": {"estimator": "ledoit-wolf"},
    "training": {"restart_resets_target": True},
}


def preset(size: Size = "tiny", recipe: Recipe = "default") -> PretrainSettings:
    """Settings by a size and a recipe.

    Parameters
    ----------
    size : {"tangent", "tiny", "small", "base", "paper"}
        ``tangent`` is no transformer but the tangent space of the pretraining people (`EncoderSettings`), learnt in
        seconds and better than any transformer on a thousand people; ``tiny`` trains in a minute on one CPU core;
        ``paper`` is the published encoder (10.17 M online parameters at 100 ROIs), losses and schedule.
    recipe : {"default", "paper"}
        ``paper`` keeps the published recipe with its faults, each a named setting (``views.estimator``,
        ``objective.train_heads``, ``objective.mask``, ``objective.extra_tokens``, ``encoder.positions``,
        ``restart_resets_target``); ``default`` repairs each, and is cheaper (``objective.masked_passes``,
        ``encoder.attention_dropout``).

    Returns
    -------
    PretrainSettings

    Raises
    ------
    OpenBrainMassError
        If the size or the recipe is unknown.
    """
    if size == "tangent" and recipe == "paper":
        raise OpenBrainMassError(
            "The paper's recipe has no tangent encoder. Choose size tiny, small, base or paper with it, or the default recipe."
        )
    if size not in get_args(Size) or recipe not in get_args(Recipe):
        raise OpenBrainMassError(
            f"There is no preset of size {size!r} and recipe {recipe!r}; sizes are {', '.join(get_args(Size))}, "
            f"recipes {', '.join(get_args(Recipe))}."
        )
    sections = _SIZES[size]
    published = _AS_PUBLISHED if recipe == "paper" else {}
    return PretrainSettings(
        encoder=EncoderSettings(**sections["encoder"] | published.get("encoder", {})),
        objective=ObjectiveSettings(**sections["objective"] | published.get("objective", {})),
        views=ViewSettings(**published.get("views", {})),
        **sections["training"] | published.get("training", {}),
    )
