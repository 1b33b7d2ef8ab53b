"""Probes on many people: ours against scikit-learn's own, in time and in what they answer.

Run again with::

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 python benchmarks/probes.py

Embedding-like float32 features: 800 columns that share 50 factors, with a class difference of two thirds of a standard
deviation on one column in 40; `--columns 800 19900` adds a support vector machine on the edges of 200 ROIs, which takes
scikit-learn's minutes. Contenders take turns in one process on one thread; figures are medians of CPU seconds. The
support vector machine is timed with the prediction of as many new people; the linear probes from unstandardised
features to fitted, so with their `StandardScaler`. Their references are exact: newton-cholesky, on a float64 copy made
beforehand (ours is scikit-learn's L-BFGS on float32). Every row is compared with the second of its section; the
differences are shares of that one's largest coefficient and largest decision value.
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from machine import about_machine
from openbrainmass.evaluation.probes import SCALED_STRENGTH, SupportVectorProbe, make_probe


@dataclass(frozen=True)
class Outcome:
    """What a contender answered, and its CPU seconds."""

    seconds: float
    parts: str
    values: np.ndarray
    coefficients: np.ndarray | None = None


def features(n: int, n_columns: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Float32 features ``(n, n_columns)`` and labels of two classes."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 2, n)
    mixing = np.random.default_rng(99).normal(size=(50, n_columns)).astype(np.float32) / 7
    X = rng.standard_normal((n, n_columns), dtype=np.float32)
    X += rng.standard_normal((n, 50), dtype=np.float32) @ mixing
    X += 3
    X[:, : n_columns // 40] += np.float32(2 / 3) * y[:, None].astype(np.float32)
    return X, y


def machine_run(machine: Any, X: np.ndarray, y: np.ndarray, new: np.ndarray) -> Outcome:
    """Fit a support vector machine and predict as many new rows."""
    started = time.process_time()
    machine.fit(X, y)
    fitted = time.process_time()
    answers = machine.predict(new)
    ended = time.process_time()
    return Outcome(ended - started, f"{fitted - started:.3f} + {ended - fitted:.3f}", answers.astype(float))


def linear_run(pipeline: Any, X: np.ndarray, y: np.ndarray) -> Outcome:
    """Standardise and fit; the decision values are of the training rows, not timed."""
    started = time.process_time()
    scaled = pipeline[0].fit_transform(X)
    standardised = time.process_time()
    probe = pipeline[-1].fit(scaled, y)
    ended = time.process_time()
    parts = f"{standardised - started:.3f} + {ended - standardised:.3f}"
    return Outcome(ended - started, parts, pipeline.decision_function(X), probe.coef_[0])


def take_turns(contenders: dict[str, Callable[[], Outcome]], n_rounds: int) -> dict[str, Outcome]:
    """The run of median time of each contender."""
    runs: dict[str, list[Outcome]] = {name: [] for name in contenders}
    for _ in range(n_rounds):
        for name, run in contenders.items():
            runs[name].append(run())
    return {name: sorted(found, key=lambda run: run.seconds)[len(found) // 2] for name, found in runs.items()}


def add_rows(table: Table, title: str, outcomes: dict[str, Outcome]) -> None:
    """One row a contender; the first is the reference of time, the second of the answers."""
    names = list(outcomes)
    slow, right = outcomes[names[0]], outcomes[names[1]]
    table.add_section()
    table.add_row(f"[bold]{title}")
    for name, outcome in outcomes.items():
        equal = np.mean((outcome.values > 0) == (right.values > 0))
        difference = ""
        if outcome.coefficients is not None and right.coefficients is not None:
            coefficients = np.abs(outcome.coefficients - right.coefficients).max() / np.abs(right.coefficients).max()
            values = np.abs(outcome.values - right.values).max() / np.abs(right.values).max()
            difference = f"{coefficients:.0e}, {values:.0e}"
        ratio = f"{slow.seconds / outcome.seconds:.1f}"
        table.add_row(name, f"{outcome.seconds:.3f}", outcome.parts, ratio, f"{100 * equal:.2f} %", difference)


def support_vectors(table: Table, n: int, n_columns: int, n_rounds: int) -> None:
    """SVC with and without probabilities, and ours."""
    (X, y), (new, _) = features(n, n_columns, 0), features(n, n_columns, 1)
    X, new = (np.asarray(rows - rows.mean(axis=0)) / rows.std(axis=0) for rows in (X, new))
    contenders = {
        "SVC(probability=True)": lambda: machine_run(SVC(probability=True, random_state=0), X, y, new),
        "SVC()": lambda: machine_run(SVC(), X, y, new),
        "ours, SupportVectorProbe()": lambda: machine_run(SupportVectorProbe(), X, y, new),
    }
    add_rows(table, f"RBF SVM, fit + predict, {n:,} x {n_columns:,}", take_turns(contenders, n_rounds))


def linear_probes(table: Table, n: int, n_columns: int, n_rounds: int) -> None:
    """Logistic and ridge probes against scikit-learn's classes in float64."""
    X, y = features(n, n_columns, 2)
    double = X.astype(np.float64)
    strength = SCALED_STRENGTH / n_columns

    def logistic(tol: float) -> Any:
        solver = LogisticRegression(C=strength, solver="newton-cholesky", tol=tol, max_iter=200)
        return make_pipeline(StandardScaler(copy=True), solver)

    contenders = {
        "LogisticRegression, usual tol": lambda: linear_run(logistic(1e-4), double, y),
        "LogisticRegression, tol=1e-10": lambda: linear_run(logistic(1e-10), double, y),
        'ours, make_probe("logistic")': lambda: linear_run(make_probe("logistic"), X, y),
    }
    title = f"scaler + fit, {n:,} x {n_columns:,}"
    add_rows(table, f"Logistic, {title}", take_turns(contenders, n_rounds))
    ridge = make_pipeline(StandardScaler(), RidgeClassifier(alpha=1e3))
    contenders = {
        "RidgeClassifier, lsqr": lambda: linear_run(
            make_pipeline(StandardScaler(), RidgeClassifier(alpha=1e3, solver="lsqr", tol=1e-8)), double, y
        ),
        "RidgeClassifier, float64": lambda: linear_run(ridge, double, y),
        'ours, make_probe("ridge")': lambda: linear_run(make_probe("ridge"), X, y),
    }
    add_rows(table, f"Ridge, {title}", take_turns(contenders, n_rounds))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="probes against scikit-learn")
    parser.add_argument("--people", type=int, default=2000, help="rows of the support vector machines")
    parser.add_argument("--columns", type=int, nargs="+", default=[800], help="columns of those")
    parser.add_argument("--rows", type=int, default=70000, help="rows of the linear probes (800 columns)")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    # scikit-learn announces the end of SVC(probability=True).
    warnings.simplefilter("ignore", FutureWarning)
    table = Table(title="Probes: CPU seconds, one thread")
    for column in (
        "",
        "seconds",
        "of which",
        "times faster",
        "same class",
        "largest difference: coefficient, decision",
    ):
        table.add_column(column, justify="right" if column else "left")
    for n_columns in options.columns:
        support_vectors(table, options.people, n_columns, options.rounds if n_columns < 5000 else 1)
    linear_probes(table, options.rows, 800, options.rounds)
    console = Console(width=140)
    console.print(table)
    machine = about_machine("numpy", "scipy", "scikit-learn")
    console.print(f"{machine}; 1 thread used\nmedians of {options.rounds} rounds in turn (1 beyond 5,000 columns)")
    console.print("again: OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 python benchmarks/probes.py")


if __name__ == "__main__":
    main()
