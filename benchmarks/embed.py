"""Embedding: the plain float32 forward against ours in float32 and bfloat16, and what bfloat16 does to a diagnosis.

Run again with::

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 python benchmarks/embed.py
    ... python benchmarks/embed.py --sizes --cohort STORE --checkpoints RUN --target dx

The plain forward is torch's own `nn.TransformerEncoderLayer` stack (`reference/recipe.py`) with the same weights, in
evaluation mode and `torch.inference_mode`: by batches of 64 as the published code embeds, by batches of 8, and scan by
scan. All take turns in one process on one thread; figures are medians of CPU time. The encoders are untrained, of the
published recipe (``preset(size, "paper")``). FC of the scans (200 volumes) is timed on a line of its own and is in no other.

With a store, the people of one label column are told apart from the embedding (`StandardScaler`, logistic probe) over folds of
people, by float32 and by bfloat16 embeddings on the same folds, whether or not `Embedder` would refuse the latter.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from machine import about_machine
from openbrainmass.atlas import numbered_atlas
from openbrainmass.cohort.store import load_cohort
from openbrainmass.evaluation.probes import make_probe
from openbrainmass.model.checkpoint import Checkpoint
from openbrainmass.model.embedder import LEAST_COSINE, LEAST_OWN_COSINE, embed_fc, fc_batches
from openbrainmass.model.encoder import Encoder
from openbrainmass.model.inference import agreement, in_bfloat16
from openbrainmass.model.settings import preset
from reference.recipe import ReferenceEncoder

_BATCH = 64


def scans(n: int, n_rois: int) -> list[np.ndarray]:
    """BOLD-like float32 recordings ``(200, n_rois)``."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(12, n_rois))
    return [
        (rng.normal(size=(200, 12)) @ mixing + 3 * rng.normal(size=(200, n_rois))).astype(np.float32) for _ in range(n)
    ]


def plain_forward(encoder: Encoder, at_once: int) -> Callable[[torch.Tensor], torch.Tensor]:
    """Torch's own layers with the weights of an encoder of tokens as wide as its input, some scans at a time."""
    settings = encoder.settings
    layers = ReferenceEncoder(encoder.width, settings.depth, settings.heads, settings.ffn, settings.dropout, 8).eval()
    layers.load_state_dict(encoder.state_dict(), strict=False)

    def forward(fc: torch.Tensor) -> torch.Tensor:
        passed = [layers.tokens(encoder.project(some), "masks") for some in fc.split(at_once)]
        return torch.nn.functional.leaky_relu(layers.readout(torch.cat(passed))).flatten(1)

    return forward


def time_in_turns(runs: dict[str, Callable[[], object]], n_rounds: int) -> dict[str, float]:
    """Median CPU seconds of each, after one turn that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(n_rounds + 1):
        for name, run in runs.items():
            started = time.process_time()
            run()
            seconds[name].append(time.process_time() - started)
    return {name: float(np.median(values[1:])) for name, values in seconds.items()}


def speed(table: Table, size: str, n_rois: int, n_rounds: int) -> None:
    """Rows of one encoder."""
    settings = preset(size, "paper")  # type: ignore[arg-type]
    checkpoint = Checkpoint.untrained(numbered_atlas("any", n_rois), settings)
    recordings = scans(_BATCH, n_rois)
    fc = torch.from_numpy(next(fc_batches(recordings, checkpoint, _BATCH)))
    encoder = checkpoint.transformer()
    reduced = in_bfloat16(encoder)
    forwards = {
        f"plain, batches of {_BATCH}": plain_forward(encoder, _BATCH),
        "plain, batches of 8": plain_forward(encoder, 8),
        "plain, scan by scan": plain_forward(encoder, 1),
        "ours, float32": lambda fc: embed_fc(encoder, fc),
        "ours, bfloat16": lambda fc: embed_fc(reduced, fc),
    }
    runs: dict[str, Callable[[], object]] = {name: partial(forward, fc) for name, forward in forwards.items()}
    runs["FC alone"] = lambda: next(fc_batches(recordings, checkpoint, _BATCH))
    times = time_in_turns(runs, n_rounds)
    plain = times[f"plain, batches of {_BATCH}"]
    exact = forwards[f"plain, batches of {_BATCH}"](fc)
    table.add_section()
    table.add_row(f"[bold]{size}, {n_rois} ROIs")
    for name, seconds in times.items():
        alike = agreement(exact, forwards[name](fc)) if name in forwards else None
        ratio = f"{plain / seconds:.2f}" if alike else ""
        cosines = (f"{alike[0]:.6f}", f"{alike[1]:.6f}") if alike else ()
        table.add_row(name, f"{1e3 * seconds / _BATCH:.2f}", ratio, *cosines)


def auc_by_folds(features: np.ndarray, y: np.ndarray, people: np.ndarray, probe: str) -> np.ndarray:
    """AUC of each of five folds of people."""
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0).split(features, y, people)
    areas = []
    for train, test in folds:
        fitted = make_probe(probe).fit(features[train], y[train])
        areas.append(roc_auc_score(y_true=y[test], y_score=fitted.decision_function(features[test])))
    return np.asarray(areas)


def diagnosis(table: Table, name: str, checkpoint: Checkpoint, store: str, target: str) -> tuple[int, int]:
    """One row a probe: AUC from float32 and from bfloat16 embeddings; the numbers of recordings and people."""
    cohort = load_cohort(store)
    labels = cohort.table[target].to_numpy()
    classes = np.unique(labels)
    y = labels == classes[0]
    people = cohort.table["participant_id"].to_numpy()
    encoder = checkpoint.transformer()
    reduced = in_bfloat16(encoder)
    exact, rounded = [], []
    for stack in fc_batches(cohort, checkpoint, _BATCH):
        exact.append(embed_fc(encoder, torch.from_numpy(stack)).numpy())
        rounded.append(embed_fc(reduced, torch.from_numpy(stack)).numpy())
    alike = agreement(torch.from_numpy(exact[0]), torch.from_numpy(rounded[0]))
    used = "yes" if alike[0] >= LEAST_COSINE and alike[1] >= LEAST_OWN_COSINE else "no"
    for probe in ("logistic", "svm"):
        before, after = (auc_by_folds(np.concatenate(found), y, people, probe) for found in (exact, rounded))
        difference = f"{(after - before).mean():+.4f} ({np.abs(after - before).max():.4f})"
        cosines = f"{alike[0]:.6f}, {alike[1]:.6f}"
        table.add_row(name, probe, cosines, used, f"{before.mean():.4f}", f"{after.mean():.4f}", difference)
    return len(y), len(np.unique(people))


def diagnoses(console: Console, store: str, target: str, runs: list[str]) -> None:
    """Table of AUC for untrained encoders and given checkpoints."""
    table = Table(title="AUC from float32 and bfloat16 embeddings, mean of 5 folds of people")
    for column in ("encoder", "probe", "cosine, own cosine", "Embedder takes it"):
        table.add_column(column)
    for column in ("float32", "bfloat16", "difference (largest of a fold)"):
        table.add_column(column, justify="right")
    atlas = load_cohort(store).atlas
    checkpoints = {Path(run).name: Checkpoint.load(run) for run in runs}
    checkpoints["untrained paper"] = Checkpoint.untrained(atlas, preset("paper", "paper"))
    checkpoints["untrained small, default recipe"] = Checkpoint.untrained(atlas, preset("small"))
    counts = (0, 0)
    for name, checkpoint in checkpoints.items():
        counts = diagnosis(table, name, checkpoint, store, target)
    console.print(table)
    console.print(f"{counts[0]} recordings of {counts[1]} people, label {target}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="embedding against a plain float32 forward")
    parser.add_argument("--sizes", nargs="*", default=["paper", "base"])
    parser.add_argument("--rois", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cohort", help="a store, for the effect on a diagnosis")
    parser.add_argument("--checkpoints", nargs="*", default=[], help="runs of the store's atlas")
    parser.add_argument("--target", default="dx")
    options = parser.parse_args()
    torch.set_num_threads(1)
    console = Console(width=130)
    with torch.inference_mode():
        if options.sizes:
            table = Table(title=f"Embedding {_BATCH} scans: CPU time, one thread")
            for column in ("", "ms a scan", "times faster", "smallest cosine", "without the mean"):
                table.add_column(column, justify="right" if column else "left")
            for size in options.sizes:
                speed(table, size, options.rois, options.rounds)
            console.print(table)
        if options.cohort:
            diagnoses(console, options.cohort, options.target, options.checkpoints)
    machine = about_machine("torch", "numpy", "scikit-learn")
    console.print(f"{machine}; 1 thread used\nmedians over {options.rounds} rounds in turn")
    console.print("again: OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 python benchmarks/embed.py")


if __name__ == "__main__":
    main()
