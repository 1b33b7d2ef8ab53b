"""Sample folders of every kind, in the formats that the other parts of the package write."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from openbrainmass.cohort.cohort import EXCLUSION_COLUMNS, Cohort
from openbrainmass.cohort.simulate import simulate_cohort
from openbrainmass.cohort.store import save_cohort
from openbrainmass.durable import append_json_line, write_json, write_tsv
from openbrainmass.evaluation.results import Results

SKILL = {
    "BrainMass + svm": 1.3,
    "BrainMass + logistic": 1.2,
    "BrainMass, shuffled labels": 0.0,
    "BrainMass, untrained + svm": 0.6,
    "chance": None,
    "covariates + logistic": 0.2,
    "edges + logistic": 1.25,
    "tangent + logistic": 1.5,
}
"""Distance of the classes' scores in standard deviations; None gives everyone the same."""

OWN_MODEL, HELD_OUT = "BrainMass + svm", "site-held-out"

TASK = {
    "name": "simulated-dx",
    "title": "Patients and controls, simulated",
    "target": "dx",
    "positive": ["patient"],
    "negative": ["control"],
    "positive_name": "patient",
    "negative_name": "control",
}


def make_store(folder: Path, n_people: int = 24, n_rois: int = 21, n_sites: int = 2) -> Cohort:
    simulated = simulate_cohort(n_people, n_sites=n_sites, n_rois=n_rois, n_volumes=60, seed=3)
    rows = [
        ("sub-90_run-1", "sub-90", "duplicate", "same scan as sub-01", "a.npy"),
        ("sub-91_run-1", "sub-91", "dead-rois", "9 of 21 ROIs constant or missing, 2 allowed", "b.npy"),
        ("sub-92_run-1", "sub-92", "dead-rois", "8 of 21 ROIs constant or missing, 2 allowed", "c.npy"),
    ]
    cohort = Cohort(
        simulated.name,
        simulated.recordings,
        simulated.participants,
        simulated.atlas,
        lambda name: simulated.bold(list(simulated.recordings["recording_id"]).index(name)),
        pd.DataFrame(rows, columns=list(EXCLUSION_COLUMNS)),
    )
    return save_cohort(cohort, folder)


def make_run(folder: Path, n_rois: int = 21, n_steps: int = 60, warn: bool = False) -> Path:
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for step in range(1, n_steps + 1):
        fall = float(np.exp(-step / (n_steps / 4)))
        noise = 0.03 * rng.standard_normal(6)
        record: dict[str, Any] = {
            "epoch": 1 + (step - 1) // 6,
            "step": step,
            "loss": 1.2 + 2 * fall + noise[0],
            "lra": 0.1 + fall + noise[1] / 2,
            "identification": 2.0 + fall + noise[2],
            "reconstruction": 0.05 + 0.1 * fall + noise[3] / 20,
            "grad_norm": 0.6 + fall + abs(noise[4]),
            "embedding_spread": 0.5 + 0.3 * fall,
            "effective_rank": 6 + 3 * fall + noise[5],
            "lr": min(1e-3, 1e-4 * step),
            "scans_per_s": 220.0,
            "seconds": 0.5 * step,
            "warnings": [f"The embeddings have collapsed (spread 0.00{step})."] if warn and step > n_steps - 3 else [],
        }
        append_json_line(folder / "metrics.jsonl", record)
    write_json(folder / "card.json", card(n_rois))
    return folder


def card(n_rois: int) -> dict[str, Any]:
    return {
        "format": 1,
        "n_rois": n_rois,
        "fc_estimator": "pearson",
        "facts": {"n_recordings": 24, "n_people": 24, "datasets": ["simulated"], "epochs": 10},
        "settings": {
            "encoder": {"width": 64, "depth": 2, "heads": 4, "ffn": 128, "dropout": 0.1, "readout": 8},
            "objective": {"lra": 1.0, "identification": 0.1, "reconstruction": 2.0, "momentum": 0.99},
            "views": {"augmentation": "random-drop", "share": 0.2, "estimator": "pearson"},
            "epochs": 10,
            "batch_size": 4,
            "learning_rate": 0.001,
            "weight_decay": 5e-5,
            "warmup_epochs": 3,
            "seed": 0,
        },
        "atlas": {"name": f"Simulated{n_rois}", "digest": "0" * 16},
        "package_version": "0.1.0",
        "weights_sha256": "ab" * 32,
        "identities": ["cd" * 32],
    }


def make_results(
    folder: Path,
    n_people: int = 48,
    n_sites: int = 2,
    skill: Mapping[str, float | None] = SKILL,
    protocols: tuple[str, ...] = ("k-fold", "site-held-out", "few-shot-2", "few-shot-10"),
    saw: tuple[str, ...] = ("BrainMass + logistic",),
    seed: int = 0,
    tables: Mapping[str, pd.DataFrame] | None = None,
) -> Path:
    """Results of which every model has the same folds: whole repeats, each of which tests everybody once."""
    rng = np.random.default_rng(seed)
    y = np.arange(n_people) % 2
    site = np.array([f"site-{i // 2 % n_sites}" for i in range(n_people)])
    shared = rng.standard_normal(n_people)
    parts = []
    for protocol in protocols:
        held_out = protocol == "site-held-out"
        repeats = 3 if protocol == "k-fold" else 1
        # Pairs of both classes, so that no fold is of one class only.
        pairs = np.arange((n_people + 1) // 2)
        draws = [pairs % n_sites if held_out else rng.permutation(pairs) % 4 for _ in range(repeats)]
        for name, distance in skill.items():
            for repeat, draw in enumerate(draws):
                fold = draw[np.arange(n_people) // 2]
                weak = 0.4 if protocol.startswith("few-shot") else 1.0
                own = rng.standard_normal(n_people)
                score = (
                    np.zeros(n_people) if distance is None else weak * distance * (y - 0.5) + 0.8 * shared + 0.6 * own
                )
                parts.append(
                    pd.DataFrame(
                        {
                            "protocol": protocol, "repeat": repeat, "fold": fold, "model": name,
                            "participant_id": [f"sub-{i:03d}" for i in range(n_people)], "site": site, "y_true": y,
                            "y_score": score, "y_pred": (score > 0).astype(int), "saw_test_people": name in saw,
                            "n_train": n_people * 3 // 4,
                        }
                    )
                )  # fmt: skip
    settings = {
        "task": TASK,
        "n_folds": 4,
        "n_repeats": 3,
        "seed": seed,
        "notes": ["site-held-out leaves out 1 person."],
    }
    Results(pd.concat(parts), settings, tables).save(folder)
    return folder


def make_card(**changes: tuple[float, float, float]) -> pd.DataFrame:
    """A confound card; items by a short name can be changed."""
    values = {
        "site": ("", "site", "balanced accuracy", 0.8, 0.75, 0.85),
        "chance": ("", "site", "chance", 0.5, np.nan, np.nan),
        "motion": (HELD_OUT, "mean_fd", "correlation", 0.2, 0.1, 0.3),
        "motion_within": (HELD_OUT, "mean_fd", "correlation within class", 0.02, -0.1, 0.12),
        "female": (HELD_OUT, "sex", "auc F", 0.7, 0.6, 0.8),
        "male": (HELD_OUT, "sex", "auc M", 0.72, 0.62, 0.82),
        "gap": (HELD_OUT, "sex", "difference of auc, M minus F", 0.02, -0.1, 0.14),
        "before": (HELD_OUT, "covariates", "auc before regression of age, site", 0.74, 0.7, 0.78),
        "after": (HELD_OUT, "covariates", "auc after regression of age, site", 0.66, 0.61, 0.71),
        "change": (HELD_OUT, "covariates", "change of auc", -0.08, -0.12, -0.04),
    }
    rows = [(OWN_MODEL, *row[:3], *changes.get(name, row[3:]), 48) for name, row in values.items()]
    return pd.DataFrame(rows, columns=["model", "protocol", "check", "item", "value", "low", "high", "n"])


def make_curve(source: str = "other folds") -> pd.DataFrame:
    """A coverage curve of one model."""
    wanted = np.array([1.0, 0.8, 0.5, 0.2])
    return pd.DataFrame(
        {"model": OWN_MODEL, "protocol": HELD_OUT, "wanted": wanted, "coverage": [1.0, 0.76, 0.5, 0.2],
         "accuracy": [0.7, 0.75, 0.82, np.nan], "low": 0.6, "high": 0.9, "balanced_accuracy": 0.7, "n": 48 * wanted,
         "threshold": 1 - wanted, "confidence": "probability", "threshold_from": source}
    )  # fmt: skip


def make_audit() -> pd.DataFrame:
    """An audit with every verdict."""
    rows = [
        ("test-is-train", "passed", "Nobody is on both sides."),
        ("motion-predicts-label", "floor", "AUC 0.58."),
        ("file-name-spells-label", "refused", "autism is in 14 names."),
        ("pca-before-split", "not checked", "Give it."),
        ("repeated-looks", "floor", "7 evaluations were made on these people."),
    ]
    return pd.DataFrame(rows, columns=["check", "verdict", "finding"])


def make_embeddings(file: Path, cohort: Cohort) -> Path:
    rng = np.random.default_rng(0)
    table = cohort.table.drop(columns="digest")
    patient = (table["dx"] == "patient").to_numpy(float)[:, None]
    site = pd.factorize(table["site"])[0][:, None]
    values = rng.standard_normal((len(table), 12)) + patient * rng.standard_normal(12) + site * rng.standard_normal(12)
    write_tsv(file, table.join(pd.DataFrame(values, columns=[f"e{i}" for i in range(12)])))
    return file


def make_explanation(folder: Path, cohort: Cohort, **changes: Any) -> Path:
    rng = np.random.default_rng(0)
    atlas = cohort.atlas.table()

    def measured(n: int) -> pd.DataFrame:
        z = np.sort(np.abs(rng.standard_normal(n)))[::-1] * np.where(np.arange(n) % 3, 1, -1) * 3
        p = np.clip(0.02 * np.arange(1, n + 1), 0, 1)
        return pd.DataFrame({"contribution": z / 10, "share": z / z.sum(), "z_score": z, "p": p, "p_corrected": p})

    names = sorted(set(cohort.atlas.networks or ()))
    pairs = [(a, b) for i, a in enumerate(names) for b in names[i:]]
    rois = [cohort.atlas.roi_names[i] for i in range(10)]
    edges = pd.DataFrame({"roi_a": rois[:9], "roi_b": rois[1:], "network_a": "Vis", "network_b": "Cont"})
    write_tsv(folder / "rois.tsv", atlas.join(measured(len(atlas))).assign(same_sign=0.8))
    write_tsv(folder / "edges.tsv", edges.join(measured(9)).assign(fc_difference=0.1))
    write_tsv(folder / "networks.tsv", pd.DataFrame({"network": names, "n_rois": 3}).join(measured(len(names))))
    table = pd.DataFrame(pairs, columns=["network_a", "network_b"]).assign(n_edges=9)
    write_tsv(folder / "network_pairs.tsv", table.join(measured(len(pairs))))
    settings = {
        "task": TASK, "cohort": {"atlas": cohort.atlas.name}, "n_folds": 5, "n_permutations": 100, "seed": 0,
        "separation": 1.9, "separation_p": 0.01, "held_out_auc": 0.85, "completeness_error": 0.001, "stability": 0.74,
        "encoder_saw_people": True, "permuted_within": "fold and site", "method": "integrated gradients",
    }  # fmt: skip
    write_json(folder / "explanation.json", settings | changes)
    return folder


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """The makers of sample folders."""
    makers: dict[str, Callable[..., Any]] = {
        "store": make_store, "run": make_run, "results": make_results, "embeddings": make_embeddings,
        "explanation": make_explanation, "card": make_card, "curve": make_curve, "audit": make_audit,
    }  # fmt: skip
    return SimpleNamespace(**makers, skill=SKILL, task=TASK)


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One folder of each kind; tests read them only."""
    root = tmp_path_factory.mktemp("study")
    cohort = make_store(root / "cohort")
    return {
        "store": root / "cohort",
        "run": make_run(root / "pretraining"),
        "embeddings": make_embeddings(root / "embeddings.tsv", cohort),
        "results": make_results(
            root / "evaluation",
            tables={"confounds": make_card(), "coverage": make_curve(), "audit": make_audit(), "folds": make_audit()},
        ),
        "explanation": make_explanation(root / "explanation", cohort),
    }
