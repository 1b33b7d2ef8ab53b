"""Leave-one-site-out AUC of plain connectomes on a cohort, beside reference values measured by other code.

The references are for 785 people of ABIDE I (CC200, C-PAC, no band-pass, no global-signal regression). Run again with

    OMP_NUM_THREADS=1 python benchmarks/reference_rows.py PATH [--jobs 2]

where PATH is a store made by `openbrainmass cohort`, or a plain folder with ``participants.tsv``. With --floors the
time and the peak memory of all floors under 10 x 5 k-fold and held-out sites are measured instead.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from pathlib import Path

from joblib.externals.loky import get_reusable_executor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from openbrainmass.cohort.build import build_store
from openbrainmass.cohort.cohort import Cohort
from openbrainmass.cohort.layouts.read import read_source
from openbrainmass.cohort.store import load_cohort
from openbrainmass.evaluation.baselines import Connectome, floors
from openbrainmass.evaluation.evaluate import evaluate
from openbrainmass.evaluation.probes import LogisticProbe, SupportVectorProbe
from openbrainmass.evaluation.statistics import compare
from openbrainmass.evaluation.tasks import Task

REFERENCE = {
    "edges + logistic 1e-4": (0.729, 0.727),
    "edges + logistic 1e-3": (0.740, 0.735),
    "edges + svm": (0.725, 0.717),
    "tangent + logistic 1e-4": (0.741, 0.749),
    "tangent + logistic 1e-3": (0.764, 0.759),
    "partial + logistic 1e-3": (0.649, 0.653),
}
TOLERANCE = 0.015
MODELS = {
    "edges + logistic 1e-4": (Connectome("fisher-z"), LogisticProbe(C=1e-4)),
    "edges + logistic 1e-3": (Connectome("fisher-z"), LogisticProbe(C=1e-3)),
    "edges + svm": (Connectome("fisher-z"), SupportVectorProbe()),
    "tangent + logistic 1e-4": (Connectome("tangent"), LogisticProbe(C=1e-4)),
    "tangent + logistic 1e-3": (Connectome("tangent"), LogisticProbe(C=1e-3)),
    "partial + logistic 1e-3": (Connectome("partial"), LogisticProbe(C=1e-3)),
}


def reference_rows(cohort: Cohort, jobs: int) -> None:
    """Print each reference row beside ours."""
    models = {name: make_pipeline(step, StandardScaler(), probe) for name, (step, probe) in MODELS.items()}
    results = evaluate(models, cohort, Task.from_cohort(cohort), protocols=["site-held-out"], n_jobs=jobs)
    values = results.metrics().set_index(["model", "metric"])["value"]
    print(f"{'model':<26}{'reference':>16}{'ours':>16}{'difference':>18}   within {TOLERANCE}")
    for name, expected in REFERENCE.items():
        ours = (values[name, "auc"], values[name, "auc_site_mean"])
        apart = [own - other for own, other in zip(ours, expected, strict=True)]
        verdict = "yes" if max(map(abs, apart)) <= TOLERANCE else "NO"
        pairs = [f"{pair[0]:.3f} / {pair[1]:.3f}" for pair in (expected, ours)]
        print(f"{name:<26}{pairs[0]:>16}{pairs[1]:>16}{apart[0]:>+9.3f} /{apart[1]:>+7.3f}   {verdict}")


def all_floors(cohort: Cohort, jobs: int) -> None:
    """Print the floors' AUC under both protocols, and what they cost."""
    started = time.perf_counter()
    task = Task.from_cohort(cohort)
    results = evaluate(floors("svm", task), cohort, task, n_jobs=jobs, progress=True)
    fitted = time.perf_counter()
    print(results.metrics().query("metric == 'auc' or metric == 'auc_site_mean'").round(3).to_string(index=False))
    print(compare(results, "edges + logistic").round(4).to_string(index=False))
    get_reusable_executor().shutdown(wait=True)  # only ended processes are counted
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    seconds = sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    print(f"folds {fitted - started:.0f} s, tables {time.perf_counter() - fitted:.0f} s with {jobs} job(s)")
    print(
        f"processor time {seconds:.0f} s; peak memory {own / 2**20:.2f} GiB in this process, {children / 2**20:.2f} GiB "
        "in the largest other one"
    )


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--floors", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if (options.path / "manifest.json").is_file():
            cohort = load_cohort(options.path)
        else:
            cohort = build_store(read_source(options.path), Path(temporary) / "store")
        print(repr(cohort))
        started = time.perf_counter()
        (all_floors if options.floors else reference_rows)(cohort, options.jobs)
        print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
