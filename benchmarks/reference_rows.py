"""Leave-one-site-out AUC of plain connectomes on a cohort, beside reference values measured by other code.

The references are for 785 people of ABIDE I (CC200, C-PAC, no band-pass, no global-signal regression). Run again with

    OMP_NUM_THREADS=1 python benchmarks/reference_rows.py PATH [--jobs 2]

where PATH is a store made by `openbrainmass cohort`, or a plain folder with ``participants.tsv``. The reference of the
sum z-scores each part within the site under test, which takes knowing all its people at once: that row is computed so
from the predictions of its two parts. The last row is our `ScoreSum` of the same parts, which uses no test value.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import pandas as pd
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from machine import about_machine
from openbrainmass.cohort.build import build_store
from openbrainmass.cohort.cohort import Cohort
from openbrainmass.cohort.layouts.read import read_source
from openbrainmass.cohort.store import load_cohort
from openbrainmass.evaluation.baselines import Connectome, ScoreSum
from openbrainmass.evaluation.evaluate import evaluate
from openbrainmass.evaluation.probes import LogisticProbe, SupportVectorProbe
from openbrainmass.evaluation.results import Results
from openbrainmass.evaluation.tasks import Task

TOLERANCE = 0.01
REFERENCE = {
    "edges + logistic 1e-4": (0.729, 0.727),
    "edges + logistic 1e-3": (0.740, 0.735),
    "edges + svm": (0.725, 0.717),
    "tangent + logistic 1e-4": (0.741, 0.749),
    "tangent + logistic 1e-3": (0.764, 0.759),
    "partial + logistic 1e-3": (0.649, 0.653),
    "sum, scaled in test sites": (0.780, 0.764),
}
"""Pooled AUC and mean of the sites' AUCs."""

STEPS = {
    "edges + logistic 1e-4": (Connectome("fisher-z"), LogisticProbe(C=1e-4)),
    "edges + logistic 1e-3": (Connectome("fisher-z"), LogisticProbe(C=1e-3)),
    "edges + svm": (Connectome("fisher-z"), SupportVectorProbe()),
    "tangent + logistic 1e-4": (Connectome("tangent"), LogisticProbe(C=1e-4)),
    "tangent + logistic 1e-3": (Connectome("tangent"), LogisticProbe(C=1e-3)),
    "partial + logistic 1e-3": (Connectome("partial"), LogisticProbe(C=1e-3)),
}
SUMMED = ("edges + logistic 1e-3", "tangent + logistic 1e-4")
OURS = "sum, scaled in training"


def sum_within_test_sites(results: Results) -> pd.DataFrame:
    """Metrics of the sum of two models' decision values, each z-scored over the people of the site under test."""
    table = results.predictions[results.predictions["model"].isin(SUMMED)].copy()
    by_site = table.groupby(["model", "fold"])["y_score"]
    table["y_score"] = (table["y_score"] - by_site.transform("mean")) / by_site.transform("std", ddof=0)
    people = table[table["model"] == SUMMED[0]].drop(columns="y_score")
    summed = people.merge(table.groupby("participant_id")["y_score"].sum(), on="participant_id")
    summed = summed.assign(model="sum, scaled in test sites", y_pred=(summed["y_score"] > 0).astype(int))
    return Results(summed, results.settings).metrics()


def reference_rows(cohort: Cohort, jobs: int) -> None:
    """Print each reference row beside ours."""
    models = {name: make_pipeline(step, StandardScaler(), probe) for name, (step, probe) in STEPS.items()}
    everything = models | {OURS: ScoreSum([(name, models[name]) for name in SUMMED])}
    results = evaluate(everything, cohort, Task.from_cohort(cohort), protocols=["site-held-out"], n_jobs=jobs)
    metrics = pd.concat([results.metrics(), sum_within_test_sites(results)])
    values = metrics.set_index(["model", "metric"])["value"]
    print(f"{'model':<28}{'reference':>16}{'ours':>16}{'difference':>18}   within {TOLERANCE}")
    for name, expected in REFERENCE.items():
        ours = (values[name, "auc"], values[name, "auc_site_mean"])
        apart = [own - other for own, other in zip(ours, expected, strict=True)]
        verdict = "yes" if max(map(abs, apart)) <= TOLERANCE else "NO"
        pairs = [f"{pair[0]:.3f} / {pair[1]:.3f}" for pair in (expected, ours)]
        print(f"{name:<28}{pairs[0]:>16}{pairs[1]:>16}{apart[0]:>+9.3f} /{apart[1]:>+7.3f}   {verdict}")
    print(f"{OURS:<44}{values[OURS, 'auc']:>8.3f} / {values[OURS, 'auc_site_mean']:.3f}")


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if (options.path / "manifest.json").is_file():
            cohort = load_cohort(options.path)
        else:
            cohort = build_store(read_source(options.path), Path(temporary) / "store")
        print(about_machine("scikit-learn"))
        print(repr(cohort))
        started = time.perf_counter()
        reference_rows(cohort, options.jobs)
        print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
