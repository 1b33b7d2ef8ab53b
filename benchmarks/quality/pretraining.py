"""What each choice in pretraining is worth: paired differences between recipes, objectives, views and schedules.

The people of a store are divided by site into two halves. On each half every variant pretrains with every seed, from
the same initial weights and the same batches; the embeddings of the *other* half, whose people and sites it never saw,
are judged by 10 x 5 folds: logistic regression for the diagnosis and the sex (AUC), ridge for the age (correlation).
A person's score is the mean over the repeats. Differences to the study's first variant are means over seeds and halves,
with a bootstrap over people (95 %, percentile). Nothing is chosen by these figures but what may become a default.

    OMP_NUM_THREADS=1 python benchmarks/quality/pretraining.py PATH --out FOLDER [--study repairs] [--seeds 3]

PATH is a store or a plain folder with `participants.tsv`; the studies are the keys of `STUDIES`. Runs that are finished
in FOLDER are not repeated.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
from scipy.stats import rankdata
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from openbrainmass.cohort.build import build_store
from openbrainmass.cohort.cohort import Cohort
from openbrainmass.cohort.layouts.read import read_source
from openbrainmass.cohort.store import load_cohort, read_manifest
from openbrainmass.evaluation.baselines import Connectome
from openbrainmass.evaluation.probes import make_probe
from openbrainmass.model.checkpoint import Checkpoint
from openbrainmass.model.embedder import Embedder
from openbrainmass.model.pretrain import pretrain
from openbrainmass.model.settings import PretrainSettings, Size, preset

PAPER = {
    "views": {"estimator": "ledoit-wolf"},
    "objective": {"mask": "rows", "masked_passes": 2, "extra_tokens": 2, "train_heads": False},
    "encoder": {"positions": "masked-only", "attention_dropout": 0.1},
}
"""The published recipe's choices (`preset(size, "paper")`), at any size."""


def changed(base: dict[str, dict], **sections: dict) -> dict[str, dict]:
    """Some choices of a recipe made otherwise."""
    return base | {name: base.get(name, {}) | values for name, values in sections.items()}


STUDIES: dict[str, dict[str, dict]] = {
    "schedules": {
        "two masked passes, attention dropout": {
            "objective": {"masked_passes": 2},
            "encoder": {"attention_dropout": 0.1},
        },
        "one masked pass": {"encoder": {"attention_dropout": 0.1}},
        "one masked pass, no attention dropout (default)": {},
        "default, no dropout at all": {"encoder": {"dropout": 0.0}},
        "default, bfloat16": {"precision": "bfloat16"},
        "default, feed-forward halved": {"encoder": {"ffn": 64}},
        "default, masked views predict": {"objective": {"lra_online": "masked"}},
        "default, one direction": {"objective": {"lra_directions": 1}},
    },
    "repairs": {
        "paper recipe": PAPER,
        "paper, Pearson FC": changed(PAPER, views={"estimator": "pearson"}),
        "paper, rows and columns masked": changed(PAPER, objective={"mask": "rows-and-columns"}),
        "paper, mask token and heads trained": changed(PAPER, objective={"train_heads": True}),
        "paper, no extra tokens, positions everywhere": changed(
            PAPER, objective={"extra_tokens": 0}, encoder={"positions": "both"}
        ),
        "default: all repaired": {},
    },
    "views": {
        "default: 20 % dropped at random": {},
        "50 % dropped at random": {"views": {"share": 0.5}},
        "80 % dropped at random": {"views": {"share": 0.8}},
        "50 % contiguous crop": {"views": {"augmentation": "contiguous-crop", "share": 0.5}},
        "50 % in chunks": {"views": {"augmentation": "chunk-drop", "share": 0.5}},
        "60 volumes kept": {"views": {"augmentation": "fixed-count"}},
    },
    "inputs": {
        "default: FC, readout of 8": {},
        "FC, readout of 64": {"encoder": {"readout": 64}},
        "logarithm, readout of 8": {"encoder": {"input": "logarithm"}},
        "logarithm, readout of 64": {"encoder": {"input": "logarithm", "readout": 64}},
        "FC, readout of 64, untrained": {"encoder": {"readout": 64}, "untrained": True},
        "logarithm, readout of 8, untrained": {"encoder": {"input": "logarithm"}, "untrained": True},
        "logarithm, readout of 64, untrained": {"encoder": {"input": "logarithm", "readout": 64}, "untrained": True},
        "tangent encoder": {"encoder": {"kind": "tangent"}},
        "tangent encoder, untrained": {"encoder": {"kind": "tangent"}, "untrained": True},
    },
    "objectives": {
        "default: LRA + MRM, readout of 8": {},
        "LRA alone": {"objective": {"identification": 0.0, "reconstruction": 0.0}},
        "MRM alone": {"objective": {"lra": 0.0}},
        "no positions": {"encoder": {"positions": "none"}},
        "readout of 32": {"encoder": {"readout": 32}},
        "target follows slowly (0.999)": {"objective": {"momentum": 0.999}},
    },
}
UNTRAINED = "default, untrained"
N_REPEATS, N_FOLDS, N_BOOTSTRAPS = 10, 5, 2000


def settings_of(changes: dict, size: Size, seed: int, steps: int) -> PretrainSettings:
    """A preset with what a variant changes."""
    settings = preset(size)
    update: dict[str, object] = {"seed": seed, "max_steps": steps}
    for name, value in changes.items():
        update[name] = getattr(settings, name).model_copy(update=value) if isinstance(value, dict) else value
    return settings.model_copy(update=update)


def halves(cohort: Cohort) -> list[np.ndarray]:
    """Rows of two sets of sites of about equal size: from the largest on, each goes to the smaller set."""
    sites = cohort.table["site"].to_numpy()
    found: list[list[int]] = [[], []]
    names, counts = np.unique(sites, return_counts=True)
    for name in names[np.argsort(-counts, kind="stable")]:
        min(found, key=len).extend(np.flatnonzero(sites == name))
    return [np.sort(rows) for rows in found]


def targets_of(cohort: Cohort) -> dict[str, np.ndarray]:
    """Diagnosis and sex as 0 / 1, age in years."""
    people = cohort.table
    binary = {name: (people[name] == people[name].max()).to_numpy().astype(int) for name in ("dx", "sex")}
    return binary | {"age": people["age"].to_numpy(dtype=float)}


def scores(features: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Out-of-fold score of each person, mean over the repeats; standardised within a fold, whose scales differ."""
    classes = len(np.unique(target)) == 2
    total = np.zeros(len(target))
    for repeat in range(N_REPEATS):
        splitter = (StratifiedKFold if classes else KFold)(N_FOLDS, shuffle=True, random_state=repeat)
        for train, test in splitter.split(features, target):
            probe = make_probe("logistic") if classes else make_pipeline(StandardScaler(), Ridge(alpha=1e3))
            probe.fit(features[train], target[train])
            values = probe.decision_function(features[test]) if classes else probe.predict(features[test])
            spread = values.std()
            total[test] += (values - values.mean()) / (spread if spread > 0 else 1)
    return total / N_REPEATS


def quality(score: np.ndarray, target: np.ndarray) -> float:
    """AUC (by ranks: a bootstrap needs thousands), or for numbers the correlation."""
    if set(np.unique(target)) == {0, 1}:
        n_positive = int(target.sum())
        ranks = rankdata(score)[target == 1].sum()
        return float((ranks - n_positive * (n_positive + 1) / 2) / (n_positive * (len(target) - n_positive)))
    return float(np.corrcoef(score, target)[0, 1])


def resampled(scored: list[list[np.ndarray]], targets: list[np.ndarray], rng: np.random.Generator | None) -> float:
    """Mean quality over halves and seeds; `rng` draws people with replacement, the same for every seed."""
    values = []
    for of_half, target in zip(scored, targets, strict=True):
        rows = np.arange(len(target)) if rng is None else rng.integers(len(target), size=len(target))
        values += [quality(score[rows], target[rows]) for score in of_half]
    return float(np.mean(values))


def bootstraps(scored: list[list[np.ndarray]], targets: list[np.ndarray]) -> np.ndarray:
    """Mean quality of each bootstrap sample of people, which are the same people for every model."""
    return np.array([resampled(scored, targets, np.random.default_rng(seed)) for seed in range(N_BOOTSTRAPS)])


def all_scores(
    cohort: Cohort, variants: dict[str, dict], out: Path, size: Size, seeds: int, steps: int
) -> tuple[dict[str, dict[str, list[list[np.ndarray]]]], dict[str, list[np.ndarray]]]:
    """Scores by model, target, half and seed; and targets by half."""
    rows = halves(cohort)
    targets = {name: [values[half] for half in rows] for name, values in targets_of(cohort).items()}
    variants = variants | {UNTRAINED: {"untrained": True}}
    models = ["edges", *variants]
    found: dict[str, dict[str, list[list[np.ndarray]]]] = {
        model: {name: [[] for _ in rows] for name in targets} for model in models
    }
    for seed in range(seeds):
        for model in models if seed == 0 else models[1:]:
            for number, half in enumerate(rows):
                seen, unseen = cohort.select(rows[1 - number]), cohort.select(half)
                started = time.process_time()
                if model == "edges":
                    features = Connectome("fisher-z").fit_transform(unseen)
                else:
                    changes = dict(variants[model])
                    untrained = changes.pop("untrained", False)
                    settings = settings_of(changes, size, seed, steps)
                    folder = out / f"half{number}-{settings.digest}"
                    checkpoint = (
                        Checkpoint.untrained(seen.atlas, settings, seed)
                        if untrained
                        else pretrain(seen, settings, folder, progress=False)
                    )
                    features = Embedder(checkpoint).transform(unseen)
                for name, of_half in targets.items():
                    found[model][name][number].append(scores(np.asarray(features), of_half[number]))
                print(f"seed {seed}, half {number}, {model}: {time.process_time() - started:.0f} s", flush=True)
    return found, targets


def report(
    found: dict[str, dict[str, list[list[np.ndarray]]]], targets: dict[str, list[np.ndarray]], reference: str
) -> None:
    """Print quality, difference to the reference and its interval."""
    for name, of_half in targets.items():
        unit = "AUC" if len(np.unique(of_half[0])) == 2 else "r"
        print(f"\n{name} ({unit}), n = {' + '.join(map(str, map(len, of_half)))}")
        middle, draws = resampled(found[reference][name], of_half, None), bootstraps(found[reference][name], of_half)
        for model, scored in found.items():
            value = resampled(scored[name], of_half, None)
            line = f"  {model:52}{value:8.3f}"
            if model not in ("edges", reference):
                low, high = np.percentile(bootstraps(scored[name], of_half) - draws, [2.5, 97.5])
                line += f"{value - middle:+8.3f}  [{low:+.3f}, {high:+.3f}]"
            print(line, flush=True)


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("path", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--study", choices=list(STUDIES), default="repairs")
    parser.add_argument("--size", default="tiny")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=120)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    store = options.path if (options.path / "manifest.json").is_file() else options.out / "store"
    if not (store / "manifest.json").is_file():
        build_store(read_source(options.path), store)
    read_manifest(store)
    variants = STUDIES[options.study]
    found, targets = all_scores(load_cohort(store), variants, options.out, options.size, options.seeds, options.steps)
    report(found, targets, next(iter(variants)))


if __name__ == "__main__":
    main()
