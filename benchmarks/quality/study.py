"""Is the shipped encoder better than a plain connectome? Every claim about it, on people it has not met.

    OMP_NUM_THREADS=1 python benchmarks/quality/study.py PART --abide STORE --cni STORE --hcp STORE --out FOLDER [--jobs 2]

PART is one of

    folds       ABIDE autism: 10 x 5-fold, held-out sites and few-shot; the encoder pretrained in each fold on its
                training people (for few-shot on all of them, for k labels of each class), with every floor
    transfer    pretrained on ABIDE, tested on CNI: ADHD, sex and age in 10 x 5-fold
    site        how well the site is read from features of people who were not in the pretraining
    retrieval   HCP: which of the people is this, REST1 -> REST2, whole runs and 60 s; pretrained on other people
    membership  whether the weights tell who was in the pretraining
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
from openbrainmass.model.checkpoint import Checkpoint
from openbrainmass.model.embedder import Embedder
from openbrainmass.model.encoder import Encoder, sinusoidal_positions
from openbrainmass.model.finetune import FineTuneClassifier
from openbrainmass.model.in_fold import PretrainInFold
from openbrainmass.model.pretrain import pretrain
from openbrainmass.model.settings import preset
from openbrainmass.model.tangent import LEAST_RECORDINGS, TangentEncoder, between_sites, matrix_log, whitening

OURS = "pretrained + ridge"
DEVELOPMENT = ("UM_1", "PITT", "MAX_MUN", "STANFORD", "OLIN", "SBL", "OHSU")
SETTINGS = preset("tangent")
N_SEEDS = 3


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
    """Balanced accuracy of a linear reader of the 14 sites, 5-fold among people who did not pretrain."""
    cohort = load_cohort(options.abide)
    names = cohort.table["site"].to_numpy(str)
    rows = []
    for seed in range(N_SEEDS):
        seen = halves(names, seed)
        new, own = cohort.select(~seen), names[~seen]
        for model, front in {
            "edges": Connectome("fisher-z"),
            "tangent": Connectome("tangent"),
            "pretrained": PretrainInFold(SETTINGS),
            "pretrained tiny transformer, 200 steps": PretrainInFold(preset("tiny")),
        }.items():
            features = front.fit(cohort.select(seen)).transform(new)
            told = np.empty_like(own)
            for train, test in StratifiedKFold(5, shuffle=True, random_state=seed).split(features, own):
                reader = make_pipeline(StandardScaler(), RidgeClassifier(alpha=1e3, class_weight="balanced"))
                told[test] = reader.fit(features[train], own[train]).predict(features[test])
            rows.append({"model": model, "seed": seed, "accuracy": balanced_accuracy_score(y_true=own, y_pred=told)})
    print(
        pd.DataFrame(rows)
        .pivot_table(index="model", columns="seed", values="accuracy", sort=False)
        .round(3)
        .to_string()
    )


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


def membership(options: argparse.Namespace) -> None:
    """Homer's attack (2008): is a person nearer to what the weights say of the mean than to the mean of other people?

    The attacker has the person's FC and site, the weights, and the FC and sites of 110 other people, none of whom
    pretrained, from whom the same weights are made. 115 more are the non-members. The more people pretrain, the less each of
    them shows.
    """
    cohorts = [load_cohort(path) for path in (options.abide, options.cni)]
    fc = torch.from_numpy(np.stack([correlation(bold) for cohort in cohorts for bold in cohort]))
    sites = np.concatenate([cohort.table["site"].to_numpy(str) for cohort in cohorts])
    encoder, rows = TangentEncoder(fc.shape[1], SETTINGS.encoder), []
    encoder.whitener = whitening(encoder.shrunk(fc.mean(0)[None])[0].double(), SETTINGS.encoder.modes).float()
    tokens = torch.cat([encoder.logarithms(some.float()) for some in fc.split(64)])
    n_rois, n_sites = fc.shape[1], len(np.unique(sites))
    for n_members, modes, site_modes in (
        *((n, SETTINGS.encoder.modes, SETTINGS.encoder.site_modes) for n in (200, 400, 800)),
        *((400, 1, 0), (400, 3, 0), (400, 10, 0), (400, n_rois, 0), (400, 1, 8), (800, 1, 0), (800, 1, 8)),
    ):
        for seed in range(10):
            order = np.random.default_rng(seed).permutation(len(fc))
            member, known, stranger = np.split(order[: n_members + 225], [n_members, n_members + 110])
            asked = np.r_[member, stranger]
            attacks = attacks_on_modes(encoder.shrunk(fc), member, known, asked, modes)
            if site_modes:
                attacks += attacks_on_sites(tokens, sites, member, known, asked, site_modes)
            truth = np.arange(len(asked)) < n_members
            best = max(roc_auc_score(y_true=truth, y_score=attack.numpy()) for attack in attacks)
            kept = {"modes": "all" if modes == n_rois else modes, "site modes": min(site_modes, n_sites)}
            rows.append({"members": n_members, **kept, "auc": best})
    found = (
        pd.DataFrame(rows).groupby(["members", "modes", "site modes"], sort=False)["auc"].agg(["mean", "std", "max"])
    )
    print(f"115 others; the strongest attack, ten draws\n{found.round(3).to_string()}")


def attacks_on_modes(
    shrunk: torch.Tensor, member: np.ndarray, known: np.ndarray, asked: np.ndarray, modes: int
) -> list[torch.Tensor]:
    """What the whitener gives away of the mean FC, compared with a person's FC as it is and whitened."""
    means = [shrunk[group].mean(0).double() for group in (member, known)]
    told = [torch.linalg.inv(torch.linalg.matrix_power(whitening(mean, modes), 2)) for mean in means]
    difference, apart = told[0] - told[1], shrunk[asked].double() - means[1]
    full = whitening(means[1], shrunk.shape[1])
    return [(apart * difference).sum((1, 2)), ((full @ apart @ full) * (full @ difference @ full)).sum((1, 2))]


def attacks_on_sites(
    tokens: torch.Tensor, sites: np.ndarray, member: np.ndarray, known: np.ndarray, asked: np.ndarray, n_modes: int
) -> list[torch.Tensor]:
    """How much of a person lies along the site modes: as it is, within the site, and beyond one's own modes."""
    told, own = (site_modes_of(tokens[group], sites[group])[:n_modes] for group in (member, known))
    apart = tokens - tokens[known].mean(0)
    length = (apart**2).sum((1, 2))
    share = torch.einsum("nij,kij->nk", apart, told).square().sum(1) / length
    by_own = torch.einsum("nij,kij->nk", apart, own).square().sum(1) / length
    usual = {name: share[known[sites[known] == name]].mean() for name in np.unique(sites[known])}
    within = share - torch.stack([usual.get(name, share[known].mean()) for name in sites])
    return [share[asked], within[asked], (share - by_own)[asked]]


def site_modes_of(tokens: torch.Tensor, sites: np.ndarray) -> torch.Tensor:
    """Site modes of people, as `learn_tangent` has them."""
    names, counts = np.unique(sites, return_counts=True)
    names, counts = names[counts >= LEAST_RECORDINGS], counts[counts >= LEAST_RECORDINGS]
    sums = torch.stack([tokens[sites == name].sum(0) for name in names])
    return between_sites(sums, torch.from_numpy(counts))


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
    eye = torch.eye(fc.shape[1])
    found = {
        "FC (Fisher z)": vectorize(fisher_z(fc)),
        "FC (logarithm)": vectorize(matrix_log(0.7 * fc + 0.3 * eye)),
        "input projection": encoder.project(fc).flatten(1),
    }
    tokens = encoder.project(fc) + sinusoidal_positions(fc.shape[1], encoder.width)
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
        checkpoint = pretrain(others, preset("tiny"), options.out / f"layers-half{1 - number}", progress=False)
        untrained = Checkpoint.untrained(cohort.atlas, preset("tiny"))
        moved = {"patience": 5, "epochs": 20}
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
                models, new, task, protocols=("k-fold",), n_folds=3, n_repeats=1, n_jobs=options.jobs, progress=True
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
    "membership": membership,
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
