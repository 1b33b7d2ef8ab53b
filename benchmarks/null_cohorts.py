"""Whether intervals hold 0.5 and tests stay silent in simulated cohorts in which nothing tells the groups apart.

Each cohort has sites with their own scanners, people who move, and no effect of the diagnosis; real pipelines are
evaluated with repeated k-fold and at held-out sites. Printed are, with binomial 95 % intervals over cohorts, the share
of 95 % intervals that hold an AUC of 0.5 (and of bare bootstrap intervals, which take no account of test people who also
train), and the share of tests with p < 0.05: of a model against chance and of two models against each other. Run
again (200 cohorts on two idle cores in under 30 minutes) with

    OMP_NUM_THREADS=1 python benchmarks/null_cohorts.py [--cohorts 200] [--jobs 2]
"""

from __future__ import annotations

import argparse
import os
from itertools import combinations

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import pandas as pd
from joblib import Parallel, delayed
from scipy.stats import binomtest
from sklearn.pipeline import make_pipeline

from openbrainmass.cohort.simulate import simulate_cohort
from openbrainmass.evaluation.baselines import Connectome, Covariates
from openbrainmass.evaluation.evaluate import evaluate
from openbrainmass.evaluation.permutation import permutation_test
from openbrainmass.evaluation.probes import make_probe
from openbrainmass.evaluation.results import Results
from openbrainmass.evaluation.statistics import Overlap, compare, metric_interval
from openbrainmass.evaluation.tasks import Task

N_PEOPLE, N_SITES, N_ROIS, N_VOLUMES, N_REPEATS = 100, 5, 30, 80, 10
FIRST_SEED = 1000


def results_of(seed: int) -> Results:
    """Evaluate four pipelines on one cohort without any effect."""
    cohort = simulate_cohort(N_PEOPLE, N_SITES, N_ROIS, N_VOLUMES, effect=0, seed=seed)
    task = Task.from_cohort(cohort, "dx")
    models = {
        "edges + logistic": make_pipeline(Connectome("fisher-z"), make_probe("logistic")),
        "edges + svm": make_pipeline(Connectome("fisher-z"), make_probe("svm")),
        "tangent + logistic": make_pipeline(Connectome("tangent"), make_probe("logistic")),
        "covariates": make_pipeline(Covariates(task.covariates), make_probe("logistic")),
    }
    return evaluate(models, cohort, task, protocols=("k-fold", "site-held-out"), n_repeats=N_REPEATS, seed=seed)


def intervals(results: Results) -> list[dict[str, object]]:
    """Whether the interval of each model holds 0.5, as given and without its stretch."""
    rows = []
    for (protocol, model), table in results.predictions.groupby(["protocol", "model"], sort=False):
        value, low, high = metric_interval(table, "auc")
        stretch = Overlap.of(table).stretch
        found = {"covers 0.5": (low, high), "bare": tuple(value + (end - value) / stretch for end in (low, high))}
        rows.append(
            {"protocol": protocol, "model": model, "auc": value, "width": high - low}
            | {name: bool(ends[0] <= 0.5 <= ends[1]) for name, ends in found.items()}
        )
    return rows


def tests(results: Results, n_permutations: int) -> list[dict[str, object]]:
    """p of every pair of models, and of every model against chance by permutation."""
    names = list(results.predictions["model"].unique())
    found = []
    for model, reference in combinations(names, 2):
        pair = Results(results.predictions[results.predictions["model"].isin([model, reference])], {})
        found += [compare(pair, reference), permutation_test(pair, model, reference, n_permutations=n_permutations)]
    found += [permutation_test(results, model, n_permutations=n_permutations) for model in names]
    rows = pd.concat([table[["protocol", "test", "model", "reference", "p"]] for table in found])
    rows["false positive"] = rows["p"] < 0.05
    return rows.to_dict("records")


def study(seed: int, n_permutations: int) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """All of one cohort."""
    results = results_of(seed)
    return intervals(results), tests(results, n_permutations)


def share(hits: pd.Series) -> str:
    """A share with its binomial 95 % interval."""
    found = binomtest(int(hits.sum()), len(hits))
    ends = found.proportion_ci(method="wilson")
    return f"{found.statistic:.3f} ({ends.low:.3f}-{ends.high:.3f})"


def main() -> None:
    """Run the cohorts and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--permutations", type=int, default=99)
    options = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + options.cohorts)
    done = Parallel(n_jobs=options.jobs)(delayed(study)(seed, options.permutations) for seed in seeds)
    covered = pd.DataFrame([row for rows, _ in done for row in rows])
    tested = pd.DataFrame([row for _, rows in done for row in rows])
    print(
        f"{options.cohorts} cohorts of {N_PEOPLE} people, {N_SITES} sites, {N_ROIS} ROIs, {N_VOLUMES} volumes; "
        f"{N_REPEATS}x5-fold and site-held-out. Should be 0.95 (covers 0.5) and 0.05 (false positive). "
        "Rows over several models count each cohort several times: their binomial intervals are too narrow.\n"
    )
    for keys in (["protocol", "model"], ["protocol"]):
        table = covered.groupby(keys, sort=False)
        print(
            table.agg({"auc": "mean", "width": "mean", "covers 0.5": share, "bare": share}).round(3).to_string(), "\n"
        )
    for keys in (["protocol", "test", "model", "reference"], ["protocol", "test"]):
        found = tested.groupby(keys, sort=False)["false positive"].agg([share, "size"])
        print(found.rename(columns={"share": "false positive", "size": "tests"}).to_string(), "\n")


if __name__ == "__main__":
    main()
