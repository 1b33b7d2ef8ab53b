"""Is the shipped encoder better than a plain connectome? Every claim about it, on people it has not met.

    OMP_NUM_THREADS=1 python benchmarks/quality/study.py PART --abide STORE --cni STORE --hcp STORE --out FOLDER [--jobs 2]

PART is one of

    folds       ABIDE autism: 10 x 5-fold, held-out sites and few-shot; the encoder pretrained in each fold on its
                training people (for few-shot on all of them, for k labels of each class), with every floor
    transfer    pretrained on ABIDE, tested on CNI: ADHD, sex and age in 10 x 5-fold
    site        how well the site is read from features of people who were not in the pretraining
    retrieval   HCP: which of the people is this, REST1 -> REST2, whole runs and 60 s; pretrained on other people
    layers      where a transformer loses what edges know: the same probe after each of its stages
    finetune    whether moving a transformer's weights for the task helps, on people of other sites than pretrained it
    atlas       the same encoder on ABIDE carried to another atlas (--bridged STORE, by `openbrainmass bridge`)

The stores are made by `openbrainmass cohort`. The share of the identity and the numbers of modes were chosen on half of the
sites of ABIDE (DEVELOPMENT, each tested when left out), so rows on the others are the ones to trust most.
"""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any, Literal

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np
import pandas as pd
import torch
from pretraining import halves as rows_of_halves
from pretraining import targets_of
from sklearn.base import clone
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.cohort.store import load_cohort
from openbrainmass.connectivity import correlation, fisher_z, vectorize
from openbrainmass.evaluation.baselines import Connectome, Covariates, ScoreSum, edges_and_tangent
from openbrainmass.evaluation.evaluate import evaluate
from openbrainmass.evaluation.probes import KERNEL_RIDGE, make_probe
from openbrainmass.evaluation.results import Results
from openbrainmass.evaluation.statistics import compare
from openbrainmass.evaluation.tasks import Task
from openbrainmass.evaluation.tuning import tuned
from openbrainmass.evaluation.within_sites import WithinSites
from openbrainmass.model.checkpoint import Checkpoint
from openbrainmass.model.embedder import Embedder
from openbrainmass.model.encoder import Encoder, sinusoidal_positions
from openbrainmass.model.finetune import FineTuneClassifier
from openbrainmass.model.in_fold import PretrainInFold
from openbrainmass.model.matrix_log import matrix_log, shrunk
from openbrainmass.model.pretrain import pretrain
from openbrainmass.model.settings import preset

OURS = "pretrained + ridge"
DEVELOPMENT = ("UM_1", "PITT", "MAX_MUN", "STANFORD", "OLIN", "SBL", "OHSU")
SETTINGS = preset("tangent")
N_SEEDS = 3
N_VALUES = (100, 200)
"""Of `WithinSites`."""


def floors_of(kind: Literal["classification", "regression"]) -> dict[str, Any]:
    """Edges and tangent space, each with two probes, and the tangent space that is shrunk as ours, in full."""
    linear = "logistic" if kind == "classification" else "kernel ridge"
    return {
        f"{name} + {probe}": make_pipeline(connectome, make_probe(probe, kind))
        for name, connectome in {"edges": Connectome("fisher-z"), "tangent": Connectome("tangent")}.items()
        for probe in (linear, "ridge")
    } | {
        "tangent, shrunk by 0.3 + ridge": make_pipeline(Connectome("tangent", shrinkage=0.3), make_probe("ridge", kind))
    }


def show(results: Results, out: Path, references: list[str]) -> None:
    """Metrics by protocol, and ours against every other model; saved beside the predictions."""
    results.save(out, reference=references[0])
    metrics = results.metrics()
    metrics = metrics[metrics["metric"].isin(["auc", "auc_site_mean", "r"])]
    print(metrics[["protocol", "model", "metric", "value", "low", "high"]].round(3).to_string(index=False))
    pairs = pd.concat([compare(Results(_two(results, OURS, other), results.settings), other) for other in references])
    print(pairs.drop(columns=["p_corrected"]).round(4).to_string(index=False), flush=True)


def _two(results: Results, one: str, other: str) -> pd.DataFrame:
    return results.predictions[results.predictions["model"].isin([one, other])]


def folds(options: argparse.Namespace) -> None:
    """Autism on ABIDE, on the same folds as every floor."""
    cohort, task = load_cohort(options.abide), Task.load("abide1-asd")
    ours = make_pipeline(PretrainInFold(SETTINGS), make_probe("ridge"))
    untrained = Embedder(Checkpoint.untrained(cohort.atlas, SETTINGS))
    simple = floors_of("classification")
    models = {OURS: ours, "untrained + ridge": make_pipeline(untrained, make_probe("ridge")), **simple}
    both = {
        "edges + kernel ridge, tuned": make_pipeline(Connectome("fisher-z"), tuned("kernel ridge")),
        "tangent + kernel ridge": make_pipeline(Connectome("tangent"), KERNEL_RIDGE),
        "covariates + logistic": make_pipeline(Covariates(task.covariates), make_probe("logistic")),
        "edges + tangent, sum": edges_and_tangent(),
        "pretrained + edges + tangent, sum": ScoreSum(
            [("ours", ours), *((name, simple[f"{name} + logistic"]) for name in ("edges", "tangent"))]
        ),
    }
    for name, protocols, entered, extra in (
        ("sites", ("site-held-out",), models | both, {}),
        ("k-fold", ("k-fold",), models | both, {}),
        ("few-shot", ("few-shot",), models, {"n_draws": options.draws}),
    ):
        if name not in options.protocols:
            continue
        started = time.perf_counter()
        results = evaluate(entered, cohort, task, protocols=protocols, n_jobs=options.jobs, progress=True, **extra)
        print(f"\n{name}: {time.perf_counter() - started:.0f} s")
        show(results, options.out / name, [model for model in entered if model != OURS])
        if name == "sites":
            held = results.predictions["site"].isin(DEVELOPMENT)
            for what, rows in (("sites of the development", held), ("other sites", ~held)):
                part = Results(results.predictions[rows], results.settings)
                print(f"\n{what}: {part.predictions['participant_id'].nunique()} people")
                metrics = part.metrics()
                print(
                    metrics[metrics["metric"] == "auc"][["model", "value", "low", "high"]]
                    .round(3)
                    .to_string(index=False)
                )
                print(
                    compare(Results(_two(part, OURS, "tangent + ridge"), {}), "tangent + ridge")
                    .round(4)
                    .to_string(index=False)
                )


def transfer(options: argparse.Namespace) -> None:
    """Three targets of another cohort, from weights that have met nobody of it."""
    abide, cni = load_cohort(options.abide), load_cohort(options.cni)
    checkpoint = pretrain(abide, SETTINGS, options.out / "abide-only", progress=False)
    for task in (Task.load("cni-adhd"), Task.load("sex"), Task.load("age")):
        models = {OURS: make_pipeline(Embedder(checkpoint), make_probe("ridge", task.kind)), **floors_of(task.kind)}
        print(f"\nCNI, {task.name}")
        results = evaluate(models, cni, task, protocols=("k-fold",), n_jobs=options.jobs)
        show(results, options.out / f"cni-{task.name}", [name for name in models if name != OURS])


def halves(site: np.ndarray, seed: int) -> np.ndarray:
    """Half of the people of every site, as a mask."""
    rng, chosen = np.random.default_rng(seed), np.zeros(len(site), bool)
    for name in np.unique(site):
        rows = rng.permutation(np.flatnonzero(site == name))
        chosen[rows[: len(rows) // 2]] = True
    return chosen


def site(options: argparse.Namespace) -> None:
    """How well a linear reader tells the 14 sites among people who did not pretrain, and what the diagnosis keeps."""
    cohort = load_cohort(options.abide)
    names = cohort.table["site"].to_numpy(str)
    fronts = {
        "edges": Connectome("fisher-z"),
        "tangent": Connectome("tangent"),
        "pretrained": PretrainInFold(SETTINGS),
        "pretrained tiny transformer, 200 steps": PretrainInFold(preset("tiny")),
        **{f"edges, {n} values within sites": WithinSites(Connectome("fisher-z"), n) for n in N_VALUES},
        **{f"pretrained, {n} values within sites": WithinSites(PretrainInFold(SETTINGS), n) for n in N_VALUES},
    }
    rows = []
    for seed in range(N_SEEDS):
        seen = halves(names, seed)
        new = cohort.select(~seen)
        for model, front in fronts.items():
            features = clone(front).fit(cohort.select(seen)).transform(new)
            rows.append({"model": model, "seed": seed, "accuracy": read_site(features, names[~seen], seed)})
    found = pd.DataFrame(rows).pivot_table(index="model", columns="seed", values="accuracy", sort=False)
    print(found.assign(mean=found.mean(axis=1)).round(3).to_string(), flush=True)
    models: dict[str, Any] = {
        name: make_pipeline(front, make_probe("ridge")) for name, front in fronts.items() if "within sites" in name
    }
    models |= {"edges + logistic": make_pipeline(Connectome("fisher-z"), make_probe("logistic"))}
    task = Task.load("abide1-asd")
    results = evaluate(models, cohort, task, protocols=("site-held-out",), n_jobs=options.jobs, progress=True)
    results.save(options.out / "within-sites", reference="edges + logistic")
    metrics = results.metrics()
    print(metrics[metrics["metric"] == "auc"][["model", "value", "low", "high"]].round(3).to_string(index=False))
    print(compare(results, "edges + logistic").round(4).to_string(index=False))


def read_site(features: np.ndarray, names: np.ndarray, seed: int) -> float:
    """Balanced accuracy of a linear reader in 5-fold, at the penalty of four that suits it best: an upper bound."""
    found = []
    for penalty in (0.005, 0.05, 0.5, 5.0):
        told = np.empty_like(names)
        for train, test in StratifiedKFold(5, shuffle=True, random_state=seed).split(features, names):
            ridge = RidgeClassifier(alpha=penalty * features.shape[1], class_weight="balanced")
            reader = make_pipeline(StandardScaler(), ridge)
            told[test] = reader.fit(features[train], names[train]).predict(features[test])
        found.append(balanced_accuracy_score(y_true=names, y_pred=told))
    return max(found)


def retrieval(options: argparse.Namespace) -> None:
    """How often the nearest of 30 people in REST2 is the person of REST1; features centred on the pretraining people."""
    cohort = load_cohort(options.hcp)
    table = cohort.recordings
    first, second = (np.flatnonzero(table["session"] == name) for name in ("REST1", "REST2"))
    people = table["participant_id"].to_numpy()
    assert (people[first] == people[second]).all()
    rng, shown = np.random.default_rng(0), []
    for volumes, n_draws in ((1200, 1), (300, 10), (83, 20)):
        hits: dict[str, list[np.ndarray]] = {}
        for _ in range(n_draws):
            starts = rng.integers(0, 1200 - volumes + 1, size=2)
            fc = [
                np.stack([correlation(cohort.bold(int(row))[start : start + volumes]) for row in rows])
                for rows, start in zip((first, second), starts, strict=True)
            ]
            order = rng.permutation(len(first))
            for test in np.array_split(order, 2):
                others = np.setdiff1d(order, test)
                for model, features in _features(cohort, np.r_[first[others], second[others]]).items():
                    found = [_unit(features(of_run)) for of_run in fc]
                    hits.setdefault(model, []).append(((found[0][test] @ found[1].T).argmax(1) == test).astype(float))
        for model, found in hits.items():
            by_half = np.concatenate(found)
            per_draw = by_half.reshape(n_draws, -1).mean(1)
            shown.append(
                {
                    "volumes": volumes,
                    "seconds": round(0.72 * volumes),
                    "model": model,
                    "found": per_draw.mean(),
                    "SD over draws": per_draw.std(),
                }
            )
    print(pd.DataFrame(shown).round(3).to_string(index=False))


def _features(cohort: Cohort, others: np.ndarray) -> dict[str, Any]:
    """FC to features by model, with what is learnt of other people: the encoder, and the mean that is taken away."""
    whole = np.stack([correlation(cohort.bold(int(row))) for row in others])
    checkpoint = PretrainInFold(SETTINGS).fit(cohort.select(others)).checkpoint_
    made = {
        "raw FC (Fisher z), centred in itself": lambda fc: _row_centred(vectorize(fisher_z(fc))),
        "raw FC (Fisher z), centred on other people": lambda fc: (
            vectorize(fisher_z(fc)) - vectorize(fisher_z(whole)).mean(0)
        ),
    }
    embedder = Embedder(checkpoint)
    middle = embedder.transform(whole).mean(0)
    return {**made, "pretrained, centred on other people": lambda fc: embedder.transform(fc) - middle}


def _row_centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(1, keepdims=True)


def _unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def layers(options: argparse.Namespace) -> None:
    """Ridge on what each stage of a transformer makes of people of other sites, pretrained on them and untrained."""
    cohort = load_cohort(options.abide)
    rows = []
    for number, half in enumerate(np.isin(np.arange(len(cohort)), rows) for rows in rows_of_halves(cohort)):
        seen, new = cohort.select(~half), cohort.select(half)
        fc = torch.from_numpy(np.stack([correlation(bold) for bold in new]))
        tiny = preset("tiny")
        for name, checkpoint in {
            "untrained": Checkpoint.untrained(cohort.atlas, tiny),
            "pretrained": pretrain(seen, tiny, options.out / f"layers-half{number}", progress=False),
        }.items():
            for stage, features in stages(checkpoint.transformer(), fc).items():
                found = {target: probed(features, values) for target, values in targets_of(new).items()}
                rows.append({"encoder": name, "half": number, "stage": stage, "values": features.shape[1], **found})
    columns = ["encoder", "stage", "values"]
    print(pd.DataFrame(rows).groupby(columns, sort=False).mean().drop(columns="half").round(3).to_string())


@torch.no_grad()
def stages(encoder: Encoder, fc: torch.Tensor) -> dict[str, np.ndarray]:
    """Features (n, n_values) after each stage of a transformer, and the FC before it as edges and as a logarithm."""
    projected = encoder.project(encoder.read_in(fc))
    found = {
        "FC (Fisher z)": vectorize(fisher_z(fc)),
        "FC (logarithm)": vectorize(matrix_log(shrunk(fc, SETTINGS.encoder.shrinkage))),
        "input projection": projected.flatten(1),
    }
    tokens = projected + sinusoidal_positions(fc.shape[1], encoder.width)
    for number, layer in enumerate(encoder.layers):
        tokens = torch.cat([layer(some) for some in tokens.split(16)])
        found[f"layer {number + 1}"] = tokens.flatten(1)
    return {name: values.numpy() for name, values in {**found, "readout": encoder.read_out(tokens)}.items()}


def probed(features: np.ndarray, target: np.ndarray) -> float:
    """AUC (or for numbers the correlation) of ridge in 5-fold, three times over."""
    classes, values = len(np.unique(target)) == 2, []
    for repeat in range(3):
        score = np.empty(len(target))
        splitter = (StratifiedKFold if classes else KFold)(5, shuffle=True, random_state=repeat)
        for train, test in splitter.split(features, target):
            probe = make_pipeline(StandardScaler(), Ridge(alpha=0.05 * features.shape[1]))
            score[test] = probe.fit(features[train], target[train]).predict(features[test])
        values.append(roc_auc_score(target, score) if classes else np.corrcoef(target, score)[0, 1])
    return float(np.mean(values))


def finetune(options: argparse.Namespace) -> None:
    """A `tiny` transformer of other sites' people: frozen, moved in four ways with early stopping, or moved from random."""
    cohort = load_cohort(options.abide)
    for number, rows in enumerate(rows_of_halves(cohort)):
        new = cohort.select(rows)
        others = cohort.select(np.setdiff1d(np.arange(len(cohort)), rows))
        checkpoint = pretrain(others, preset("tiny"), options.out / f"layers-half{number}", progress=False)
        untrained = Checkpoint.untrained(cohort.atlas, preset("tiny"))
        moved: dict[str, Any] = {"patience": 5, "epochs": 20}
        models: dict[str, Any] = {
            "frozen + logistic": make_pipeline(Embedder(checkpoint), make_probe("logistic")),
            "head": FineTuneClassifier(checkpoint, layers="head", **moved),
            "last": FineTuneClassifier(checkpoint, layers="last", **moved),
            "LoRA": FineTuneClassifier(checkpoint, layers="lora", learning_rate=1e-2, **moved),
            "all": FineTuneClassifier(checkpoint, layers="all", **moved),
            "all, from random weights": FineTuneClassifier(untrained, layers="all", **moved),
            "edges + logistic": make_pipeline(Connectome("fisher-z"), make_probe("logistic")),
        }
        for task in (Task.load("abide1-asd"), Task.load("sex")):
            started = time.perf_counter()
            results = evaluate(
                models, new, task, protocols=("k-fold",), n_folds=5, n_repeats=2, n_jobs=options.jobs, progress=True
            )
            results.save(options.out / f"finetune-half{number}-{task.name}", reference="frozen + logistic")
            print(f"\nhalf {number}, {task.name}, {len(new)} people: {time.perf_counter() - started:.0f} s")
            metrics = results.metrics().query("metric == 'auc'")
            print(metrics[["model", "value", "low", "high"]].round(3).to_string(index=False))
            print(compare(results, "frozen + logistic").round(4).to_string(index=False), flush=True)


def atlas(options: argparse.Namespace) -> None:
    """Autism at held-out sites on the ROIs of another atlas, with the same floors."""
    cohort = load_cohort(options.bridged)
    untrained = Embedder(Checkpoint.untrained(cohort.atlas, SETTINGS))
    models = {
        OURS: make_pipeline(PretrainInFold(SETTINGS), make_probe("ridge")),
        "untrained + ridge": make_pipeline(untrained, make_probe("ridge")),
        **floors_of("classification"),
    }
    results = evaluate(models, cohort, Task.load("abide1-asd"), protocols=("site-held-out",), n_jobs=options.jobs)
    show(results, options.out / f"atlas-{cohort.atlas.name}", [name for name in models if name != OURS])


PARTS = {
    "folds": folds,
    "transfer": transfer,
    "site": site,
    "retrieval": retrieval,
    "layers": layers,
    "finetune": finetune,
    "atlas": atlas,
}


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=list(PARTS))
    for store in ("abide", "cni", "hcp", "bridged"):
        parser.add_argument(f"--{store}", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--protocols", nargs="+", default=["sites", "k-fold", "few-shot"], help="of the part folds")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    PARTS[options.part](options)


if __name__ == "__main__":
    main()
