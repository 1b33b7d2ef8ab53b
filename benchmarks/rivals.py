"""Every simple model on the same folds of a cohort, in one table with intervals, and what each costs.

Run again with

    OMP_NUM_THREADS=1 python benchmarks/rivals.py STORE --out FOLDER [--jobs 2] [--networks]

STORE is a store made by `openbrainmass cohort`. All `rivals`, some with permuted labels (`shuffled`), and with --networks the
three supervised networks, are tested under 10 x 5 k-fold and at held-out sites. FOLDER receives the results of the simple
models, of the networks, and of all together; what is there already is not done again. Seconds a fold are processor time
to fit and test one model, the features that all folds share not counted.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from pathlib import Path
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np
import pandas as pd
from joblib.externals.loky import get_reusable_executor
from sklearn.base import clone

from machine import about_machine, peak_mib
from openbrainmass.cohort.cohort import Cohort
from openbrainmass.cohort.store import load_cohort
from openbrainmass.evaluation.baselines import rivals, shuffled
from openbrainmass.evaluation.evaluate import evaluate
from openbrainmass.evaluation.fitting import fit_model, predicted
from openbrainmass.evaluation.labelled import labelled
from openbrainmass.evaluation.prepared import Features, prepare, take
from openbrainmass.evaluation.results import Results
from openbrainmass.evaluation.splits import k_fold
from openbrainmass.evaluation.statistics import compare
from openbrainmass.evaluation.tasks import Task

REFERENCE = {"classification": "edges + logistic", "regression": "edges + ridge"}
SHOWN = {
    "k-fold": {"classification": ("auc", "balanced_accuracy"), "regression": ("r2", "r")},
    "site-held-out": {"classification": ("auc", "auc_site_mean"), "regression": ("r2", "r")},
}


def entrants(cohort: Cohort, task: Task, networks: bool, n_shuffles: int) -> dict[str, dict[str, Any]]:
    """Name and estimator of every model that takes part, in the parts that are evaluated one after the other."""
    simple = rivals(task, cohort)
    simple |= shuffled(simple[REFERENCE[task.kind]], n_shuffles) if task.kind == "classification" else {}
    if not networks:
        return {"simple": simple}
    from openbrainmass.model.rivals import rival_networks

    return {"simple": simple, "networks": rival_networks(0)}


def part(
    name: str, models: dict[str, Any], cohort: Cohort, task: Task, repeats: int, jobs: int, out: Path
) -> tuple[Results, str]:
    """Evaluate one part, or load it if that was done before; and what it cost."""
    if (out / name).exists():
        return Results.load(out / name), f"{name}: loaded"
    started, before = time.perf_counter(), processor_seconds()
    results = evaluate(models, cohort, task, n_repeats=repeats, n_jobs=jobs, progress=True)
    evaluated = time.perf_counter()
    results.save(out / name, REFERENCE[task.kind] if REFERENCE[task.kind] in models else None)
    ended, after = time.perf_counter(), processor_seconds()
    return results, (
        f"{name}: folds {evaluated - started:.0f} s, tables {ended - evaluated:.0f} s, processor {after - before:.0f} s "
        f"with {jobs} job(s)"
    )


def joined(parts: list[Results]) -> Results:
    """All parts as one result; they have the same folds."""
    settings = dict(parts[0].settings)
    settings["models"] = {name: text for one in parts for name, text in one.settings["models"].items()}
    return Results(pd.concat([one.predictions for one in parts], ignore_index=True), settings, parts[0].tables)


def seconds_a_fold(models: dict[str, Any], cohort: Cohort, task: Task) -> dict[str, float]:
    """Processor seconds to fit and test each model on the first fold."""
    own = labelled(cohort, task)
    fold = k_fold(own.people, 5, 1, 0)[0]
    ready = [prepare(name, model) for name, model in models.items()]
    shared = Features(ready, own.cohort)
    seconds = {}
    for prepared in ready:
        features = shared.of(prepared)
        started = time.process_time()
        fitted = clone(prepared.model)
        fit_model(fitted, take(features, fold.train), own.people.y[fold.train], own.people.group[fold.train])
        predicted(fitted, take(features, fold.test), task.kind == "regression")
        seconds[prepared.name] = time.process_time() - started
    return seconds


def table(results: Results, seconds: dict[str, float]) -> pd.DataFrame:
    """One row a model: value and 95 % interval of two metrics of each protocol, and seconds a fold."""
    metrics = results.metrics().set_index(["protocol", "metric", "model"]).sort_index()
    columns: dict[str, list[str]] = {}
    for protocol in dict.fromkeys(results.predictions["protocol"]):
        for metric in SHOWN[protocol][results.kind]:
            found = metrics.loc[(protocol, metric)].reindex(list(seconds))
            rows = zip(found["value"], found["low"], found["high"], strict=True)
            columns[f"{protocol} {metric}"] = [f"{value:.3f} ({low:.3f} to {high:.3f})" for value, low, high in rows]
    return pd.DataFrame(columns, index=pd.Index(seconds, name="model")).assign(
        **{"s a fold": np.round(list(seconds.values()), 2)}
    )


def processor_seconds() -> float:
    """Of this process and its ended children."""
    get_reusable_executor().shutdown(wait=True)  # only ended processes are counted
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path)
    parser.add_argument("--target", help="column to predict; without it dx, else sex")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--networks", action="store_true")
    parser.add_argument("--shuffles", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    options = parser.parse_args()
    cohort = load_cohort(options.store)
    task = Task.from_cohort(cohort, options.target)
    models = entrants(cohort, task, options.networks, options.shuffles)
    print(about_machine("scikit-learn", "numpy"))
    print(repr(cohort), flush=True)
    done = []
    for name, own in models.items():
        results, cost = part(name, own, cohort, task, options.repeats, options.jobs, options.out)
        done.append(results)
        print(cost, flush=True)
    together = joined(done)
    if len(done) > 1 and not (options.out / "all").exists():
        together.save(options.out / "all", REFERENCE[task.kind])
    everything = {name: model for own in models.values() for name, model in own.items()}
    with pd.option_context("display.width", 250, "display.max_columns", 20):
        print(table(together, seconds_a_fold(everything, cohort, task)).to_string())
        print(compare(together, REFERENCE[task.kind]).round(4).to_string(index=False))
    print(f"peak memory of this process {peak_mib():.0f} MiB")


if __name__ == "__main__":
    main()
