"""How often the 95 % intervals hold the truth and the paired tests cry wolf, in simulated studies of known truth.

Each study draws people with Gaussian features from a population and evaluates a logistic probe under a protocol. The
truth is the AUC on 2,000 new people, averaged over all studies: what such a study is worth in this population. For the
tests, a second probe gets other features of the same worth, so that no difference is the truth. Run again with

    OMP_NUM_THREADS=1 python benchmarks/interval_coverage.py [--studies 200]
"""

from __future__ import annotations

import argparse

import numpy as np
import pandas as pd

from openbrainmass.evaluation.metrics import METRICS, Predictions, concordance
from openbrainmass.evaluation.probes import make_probe
from openbrainmass.evaluation.results import Results
from openbrainmass.evaluation.splits import Fold, People, few_shot_folds, k_fold, site_held_out
from openbrainmass.evaluation.statistics import bootstrap_interval, compare, metric_interval

N_PEOPLE, N_SITES, N_FEATURES, N_NEW = 120, 6, 40, 2000


def features(rng: np.random.Generator, y: np.ndarray, effect: float) -> np.ndarray:
    """Gaussian features, the first four of which tell the classes apart."""
    X = rng.normal(size=(len(y), N_FEATURES))
    X[:, :4] += effect * y[:, None]
    return X


def predictions(
    model: str, X: np.ndarray, people: People, folds: list[Fold], new: np.ndarray
) -> tuple[pd.DataFrame, float]:
    """Predictions of every fold, and the mean AUC of the fits on new people (first half negative)."""
    tables, truths = [], []
    for fold in folds:
        probe = make_probe("logistic").fit(X[fold.train], people.y[fold.train])
        right, pairs = concordance(np.arange(N_NEW) >= N_NEW // 2, probe.decision_function(new), np.ones((1, N_NEW)))
        truths.append(right[0] / pairs[0])
        score = probe.decision_function(X[fold.test])
        columns = {
            "protocol": fold.protocol, "repeat": fold.repeat, "fold": fold.fold, "model": model,
            "participant_id": people.participant[fold.test], "site": "", "y_true": people.y[fold.test],
            "y_score": score, "y_pred": (score > 0).astype(int), "y_prob": np.nan, "saw_test_people": False,
            "n_train": len(fold.train),
        }  # fmt: skip
        tables.append(pd.DataFrame(columns))
    return pd.concat(tables), float(np.mean(truths))


def bare_bootstrap(table: pd.DataFrame) -> tuple[float, float]:
    """What a bootstrap over test people alone would say."""
    one = Predictions.of(table)
    return bootstrap_interval(lambda weights: METRICS["auc"](one, weights), one, n_resamples=400)[1:]


def study(seed: int, effect: float) -> list[dict[str, object]]:
    """One study under each protocol."""
    rng = np.random.default_rng(seed)
    y = np.arange(N_PEOPLE) % 2
    people = People(
        np.array([f"p{i:03d}" for i in range(N_PEOPLE)]),
        y,
        np.arange(N_PEOPLE),
        (np.arange(N_PEOPLE) // 2 % N_SITES).astype(str),
    )
    new_y = (np.arange(N_NEW) >= N_NEW // 2).astype(int)
    plans = {
        "k-fold": k_fold(people, 5, 5, seed),
        "site-held-out": site_held_out(people)[0],
        "few-shot-5": few_shot_folds(people, (5,), 5, 5, seed)[0],
    }
    one, other = features(rng, y, effect), features(rng, y, effect)
    new = [features(rng, new_y, effect) for _ in range(2)]
    rows = []
    for protocol, folds in plans.items():
        table, truth = predictions("one", one, people, folds, new[0])
        rival, _ = predictions("other", other, people, folds, new[1])
        value, low, high = metric_interval(table, "auc", n_resamples=400)
        bare = bare_bootstrap(table)
        p = compare(Results(pd.concat([table, rival]), {}), n_resamples=400)["p"].iloc[0]
        rows.append(
            {"protocol": protocol, "effect": effect, "value": value, "truth": truth, "low": low, "high": high,
             "bare low": bare[0], "bare high": bare[1], "wolf": p < 0.05}
        )  # fmt: skip
    return rows


def main() -> None:
    """Run the studies and print one row a protocol and effect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=200)
    options = parser.parse_args()
    rows = [row for effect in (0.0, 0.5) for seed in range(options.studies) for row in study(seed, effect)]
    table = pd.DataFrame(rows)
    keys = ["effect", "protocol"]
    truth = table.groupby(keys)["truth"].transform("mean")
    table["width"] = table["high"] - table["low"]
    table["holds"] = (table["low"] <= truth) & (truth <= table["high"])
    table["too high"] = table["low"] > truth
    table["bare holds"] = (table["bare low"] <= truth) & (truth <= table["bare high"])
    columns = ["value", "truth", "width", "holds", "too high", "bare holds", "wolf"]
    print(
        f"{options.studies} studies of {N_PEOPLE} people; shares should be 0.95 (holds), 0.025 (too high), 0.05 (wolf)"
    )
    print(table.groupby(keys, sort=False)[columns].mean().round(3).to_string())


if __name__ == "__main__":
    main()
