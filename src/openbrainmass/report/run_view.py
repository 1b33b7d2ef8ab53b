"""The pretraining section: what was trained on what, how the losses went, and whether the embeddings stayed well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from openbrainmass.model.settings import EncoderSettings
from openbrainmass.report.cohort_view import atlas_name
from openbrainmass.report.figures import Picture, curve
from openbrainmass.report.folders import HealthWarning, RunFolder
from openbrainmass.report.tables import Fact
from openbrainmass.report.wording import count, duration, number

CURVES = (
    ("loss", "Total loss", "weighted sum of the parts", False),
    ("lra", "View agreement (LRA)", "distance between two views of a scan; 0 is perfect", True),
    ("identification", "ROI identification", "cross-entropy among the masked ROIs of a brain", True),
    ("reconstruction", "FC reconstruction", "squared error on the hidden FC rows", True),
    ("embedding_spread", "Embedding spread", "near 0, all scans would look alike", True),
    ("effective_rank", "Effective rank", "directions in which the embeddings of a batch vary", True),
    ("grad_norm", "Gradient norm", "before clipping", True),
    ("lr", "Learning rate", "", True),
)


@dataclass(frozen=True)
class RunView:
    """One checkpoint as the page shows it."""

    name: str
    facts: tuple[Fact, ...]
    curves: tuple[Picture, ...]
    warnings: tuple[HealthWarning, ...]
    health: str
    logged: bool
    at_once: bool


def run_view(run: RunFolder) -> RunView:
    """Curves, facts and health of one run or checkpoint."""
    at_once = encoder_of(run.card).kind == "tangent"
    return RunView(run.name, _facts(run), _curves(run), run.warnings, _health(run), bool(len(run.steps)), at_once)


def encoder_of(card: Mapping[str, Any]) -> EncoderSettings:
    """Settings of the encoder that a checkpoint's card describes."""
    return EncoderSettings(**card["settings"]["encoder"])


def encoder_words(card: Mapping[str, Any]) -> str:
    """Size of an encoder in words."""
    encoder = encoder_of(card)
    if encoder.kind == "tangent":
        return f"tangent space, {100 * encoder.shrinkage:g} % shrinkage"
    width = encoder.token_width(card["n_rois"])
    return f"{count(encoder.depth, 'layer')} of width {width}, {count(encoder.heads, 'head')}"


def _facts(run: RunFolder) -> tuple[Fact, ...]:
    facts: Mapping[str, Any] = run.card.get("facts") or {}
    encoder = encoder_of(run.card)
    found: list[Fact | None] = [
        _count_fact("people", facts.get("n_people")),
        _count_fact("recordings", facts.get("n_recordings")),
        Fact("ROIs", str(run.card["n_rois"]), atlas_name(run.card)),
        Fact("encoder", "tangent", "space, in closed form")
        if encoder.kind == "tangent"
        else Fact("encoder", f"{encoder.depth} × {encoder.token_width(run.card['n_rois'])}", "layers × width"),
        Fact("embedding", str(encoder.embedding_size(run.card["n_rois"])), "values"),
    ]  # fmt: skip
    if len(run.steps):
        last = run.steps.iloc[-1]
        found.append(Fact("epochs", f"{_epochs(run):,}", f"{int(last['step']):,} steps"))
        if "seconds" in last:
            found.append(Fact("time", duration(float(run.steps["seconds"].max()))))
    return tuple(fact for fact in found if fact)


def _epochs(run: RunFolder) -> int:
    # Epochs are counted from 0 or from 1 in the log; how many differ is the same.
    return int(run.steps["epoch"].nunique()) if "epoch" in run.steps else int(run.card["settings"]["epochs"])


def _count_fact(name: str, value: Any) -> Fact | None:
    return Fact(name, f"{int(value):,}") if value else None


def _curves(run: RunFolder) -> tuple[Picture, ...]:
    pictures = []
    for column, title, caption, from_zero in CURVES:
        if column in run.steps and run.steps[column].notna().sum() > 1:
            known = run.steps[["step", column]].dropna()
            steps, values = known["step"].to_numpy(float), known[column].to_numpy(float)
            pictures.append(curve(steps, values, title=title, caption=caption, floor=0.0 if from_zero else None))
    return tuple(pictures)


def _health(run: RunFolder) -> str:
    if not len(run.steps):
        return ""
    parts = []
    late = run.steps.tail(max(1, len(run.steps) // 10))
    if "effective_rank" in late:
        parts.append(f"effective rank {number(float(np.nanmedian(late['effective_rank'])), 1)}")
    if "embedding_spread" in late:
        parts.append(f"embedding spread {number(float(np.nanmedian(late['embedding_spread'])), 3)}")
    told = f" At the end: {', '.join(parts)}." if parts else ""
    return (f"{count(len(run.warnings), 'warning')} in the log." if run.warnings else "No warning in the log.") + told
