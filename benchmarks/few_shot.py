"""Few-shot curves of plain connectomes and an untrained encoder, and what is carried over to another cohort.

    OMP_NUM_THREADS=1 python benchmarks/few_shot.py STORE --task abide1-asd [--target STORE2 --test-task cni-adhd]
        [--draws 20] [--jobs 2] [--checkpoint RUN] [--out DIR]

With k labelled people of each class (k = 1, 2, 5, 10, 20, 50), drawn from the training side of five folds, --draws times
over. With --target the same on the other cohort: k = 0 is zero-shot (trained on the first cohort, not a label nor a
statistic of the second), and k of its people join the training. --test-task is what is told apart there, where that is
not the same; --draws 0 is zero-shot alone. The results folder in --out is what `openbrainmass report` draws the curves from.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.pipeline import make_pipeline

from machine import about_machine
from openbrainmass.atlas import Atlas
from openbrainmass.cohort.store import load_cohort
from openbrainmass.evaluation.baselines import Connectome
from openbrainmass.evaluation.evaluate import evaluate
from openbrainmass.evaluation.probes import make_probe
from openbrainmass.evaluation.protocols import few_shot_size
from openbrainmass.evaluation.results import Results
from openbrainmass.evaluation.tasks import Task
from openbrainmass.model.checkpoint import Checkpoint
from openbrainmass.model.embedder import Embedder
from openbrainmass.model.settings import preset


def models(atlas: Atlas, checkpoint: Path | None) -> dict[str, Any]:
    """What the curves are of: the same frozen features with a linear probe, and edges with nearest prototypes."""
    found = {
        "edges + logistic": make_pipeline(Connectome("fisher-z"), make_probe("logistic")),
        "edges + prototype": make_pipeline(Connectome("fisher-z"), make_probe("prototype")),
        "tangent + logistic": make_pipeline(Connectome("tangent"), make_probe("logistic")),
        "untrained + logistic": make_pipeline(
            Embedder(Checkpoint.untrained(atlas, preset("tiny"))), make_probe("logistic")
        ),
    }
    if checkpoint is not None:
        found["pretrained + logistic"] = make_pipeline(Embedder(checkpoint), make_probe("logistic"))
    return found


def curves(results: Results) -> pd.DataFrame:
    """AUC with its interval by family of protocols, model and k; k = 0 is zero-shot."""
    table = results.metrics()
    table = table[table["metric"] == "auc"]
    rows = [
        {
            "tested on": "other cohort" if row["protocol"].startswith("external") else "own folds",
            "model": row["model"],
            "k": few_shot_size(row["protocol"]) or 0,
            "auc": f"{row['value']:.3f} ({row['low']:.3f}-{row['high']:.3f})",
        }
        for row in table.to_dict("records")
    ]
    wide = pd.DataFrame(rows).pivot_table(
        index=["tested on", "model"], columns="k", values="auc", aggfunc="first", sort=False
    )
    return wide.sort_index(axis="columns")


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--task")
    parser.add_argument("--target", type=Path)
    parser.add_argument("--test-task")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    cohort = load_cohort(options.path)
    other = load_cohort(options.target) if options.target else None
    task = Task.load(options.task) if options.task else Task.from_cohort(cohort)
    started = time.perf_counter()
    results = evaluate(
        models(cohort.atlas, options.checkpoint),
        cohort,
        task,
        protocols=[*(["few-shot"] if options.draws else []), *(["external"] if other is not None else [])],
        test_cohort=other,
        test_task=Task.load(options.test_task) if options.test_task else None,
        n_draws=max(1, options.draws),
        n_jobs=options.jobs,
        progress=True,
    )
    fitted, processor = time.perf_counter(), time.process_time()
    if options.out is not None:
        results.save(options.out, reference="edges + logistic")
    with pd.option_context("display.width", 220, "display.max_columns", None, "display.max_colwidth", None):
        print(curves(results).fillna("").to_string())
    print("\n".join(results.settings["notes"]))
    print(
        f"{about_machine('scikit-learn', 'torch')}\n{len(results.predictions):,} predictions, {options.draws} draws: "
        f"folds {fitted - started:.0f} s, tables {time.perf_counter() - fitted:.0f} s with {options.jobs} job(s); "
        f"processor time of this process {processor:.0f} s to the end of the folds"
    )


if __name__ == "__main__":
    main()
