"""People without any diagnosis effect, each with a connectivity of his or her own, to leak about."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.signal import lfilter
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from openbrainmass.atlas import numbered_atlas
from openbrainmass.cohort.cohort import Cohort, bold_digest
from openbrainmass.connectivity import correlation, fisher_z, vectorize
from openbrainmass.evaluation.tasks import Task

N_ROIS = 14


def bold_of(
    person: int, session: int = 0, n_volumes: int = 100, family: int | None = None, site: int = 0
) -> np.ndarray:
    """BOLD (n_volumes, 14) of a person, whose couplings are partly those of the family and the site."""
    own = np.random.default_rng([1, person]).normal(size=(N_ROIS, 4))
    if family is not None:
        own = 0.2 * own + np.random.default_rng([2, family]).normal(size=(N_ROIS, 4))
    place = 3 * np.random.default_rng([3, site]).normal(size=(N_ROIS, 1)) if site else np.zeros((N_ROIS, 1))
    rng = np.random.default_rng([4, person, session])
    slow = lfilter([1], [1, -0.5], rng.normal(size=(n_volumes, 5)), axis=0)
    loadings = np.column_stack([own, place])
    return (slow @ loadings.T + rng.normal(size=(n_volumes, N_ROIS))).astype(np.float32)


class Reader:
    def __init__(self, arrays: dict[str, np.ndarray]) -> None:
        self.arrays = arrays

    def __call__(self, recording_id: str) -> np.ndarray:
        return self.arrays[recording_id]


def cohort_of(
    people: Sequence[str], scans: Sequence[np.ndarray], about: pd.DataFrame | None = None, name: str = "null"
) -> Cohort:
    """A cohort of one recording each of some scans; half of the people, at random, are patients."""
    ids = [f"{person}_run-{number}" for number, person in enumerate(people)]
    recordings = pd.DataFrame({"recording_id": ids, "participant_id": people, "session": "1", "run": "1", "tr": 2.0})
    recordings = recordings.assign(
        n_volumes=[len(bold) for bold in scans], dead_rois="", digest=[bold_digest(bold) for bold in scans]
    )
    if about is None:
        about = pd.DataFrame({"participant_id": list(dict.fromkeys(people))})
    if "dx" not in about:
        about = about.assign(dx=np.where(labels_of(len(about)) == 1, "patient", "control"))
    return Cohort(name, recordings, about, numbered_atlas("Null", N_ROIS), Reader(dict(zip(ids, scans, strict=True))))


def labels_of(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([5, seed]).permutation(np.arange(n) % 2)


def edges_of(cohort: Cohort) -> np.ndarray:
    return np.stack([vectorize(fisher_z(correlation(bold))) for bold in cohort]).astype(float)


def random_folds(n: int, n_folds: int = 5) -> list[tuple[np.ndarray, np.ndarray]]:
    return list(KFold(n_folds, shuffle=True, random_state=0).split(np.zeros(n)))


def fold_table(cohort: Cohort, folds: Any, protocol: str = "k-fold", by: str = "recording_id") -> pd.DataFrame:
    """Folds over recordings as the file that anybody could hand over."""
    ids = cohort.recordings[["recording_id", "participant_id"]]
    parts = [
        ids.iloc[rows].assign(protocol=protocol, repeat=0, fold=number, side=side)
        for number, fold in enumerate(folds)
        for side, rows in zip(("train", "test"), fold, strict=True)
    ]
    table = pd.concat(parts, ignore_index=True)
    return table if by == "recording_id" else table.drop(columns="recording_id").drop_duplicates()


def linear() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1))


def auc(y: np.ndarray, score: np.ndarray) -> float:
    """The share of pairs in the right order: scikit-learn's is too slow to choose by."""
    ahead = np.asarray(score)[y == 1][:, None] - np.asarray(score)[y == 0]
    return float(((ahead > 0) + 0.5 * (ahead == 0)).mean()) if ahead.size else 0.5


def fold_auc(X: np.ndarray, y: np.ndarray, folds: Any) -> float:
    """Mean over folds of the AUC of a logistic regression."""
    scores = [(y[test], linear().fit(X[train], y[train]).decision_function(X[test])) for train, test in folds]
    return float(np.mean([auc(*pair) for pair in scores if len(set(pair[0])) == 2]))


def procedure_auc(procedure: Callable[..., Any], seeds: Sequence[int] = (0, 1), n: int = 60, p: int = 40) -> float:
    """Mean AUC of a procedure, of its predictions where it makes some, on Gaussian noise."""
    values = []
    for seed in seeds:
        X, y = noise(n, p, seed)
        for train, test in random_folds(n):
            told = procedure(X.copy(), y.copy(), train, test)
            score = told.get("predictions", told["scores"]) if isinstance(told, dict) else told
            if len(set(y[test])) == 2:
                values.append(auc(y[test], score))
    return float(np.mean(values))


def noise(n: int = 60, p: int = 40, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng([6, seed]).normal(size=(n, p)), labels_of(n, seed)


def features_of(X: np.ndarray, cohort: Cohort) -> pd.DataFrame:
    ids = cohort.recordings["recording_id"]
    return pd.DataFrame(X, columns=[f"e{number}" for number in range(X.shape[1])]).assign(recording_id=ids)


@pytest.fixture(scope="session")
def null() -> SimpleNamespace:
    """What makes null people, folds and features; functions, because tests of a room cannot import from each other."""
    return SimpleNamespace(
        bold_of=bold_of, cohort_of=cohort_of, labels_of=labels_of, edges_of=edges_of, random_folds=random_folds,
        fold_table=fold_table, fold_auc=fold_auc, procedure_auc=procedure_auc, noise=noise, features_of=features_of,
        auc=auc, linear=linear,
        task=Task(name="null", target="dx", positive=("patient",), negative=("control",)),
    )  # fmt: skip


@pytest.fixture(scope="session")
def people(null: SimpleNamespace) -> Cohort:
    """60 strangers, one scan each, at three sites, with ages, sexes, motion."""
    rng = np.random.default_rng(7)
    names = [f"sub-{number:03d}" for number in rng.permutation(1000)[:60]]
    about = pd.DataFrame(
        {
            "participant_id": names,
            "site": [f"s{number}" for number in rng.integers(3, size=60)],
            "age": rng.uniform(18, 60, 60).round(1),
            "sex": rng.choice(["F", "M"], 60),
            "mean_fd": rng.gamma(2, 0.1, 60),
        }
    )
    return cohort_of(names, [bold_of(number) for number in range(60)], about)
