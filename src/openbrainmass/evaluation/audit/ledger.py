"""The ledger of looks at a test set: who looks often enough finds a good result by luck."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import norm

from openbrainmass.durable import lock, read_tsv, write_tsv
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.audit.association import auc_error
from openbrainmass.evaluation.audit.checks import Finding

LOOK_COLUMNS = ("time", "task", "protocols", "models", "n_models", "n_people", "digest")
"""Columns of a ledger; ``models`` are names joined by ``;``."""

_PATIENCE_S = 10.0


def ledger_path(store: str | Path) -> Path:
    """Where the ledger of a store is: beside it, since a store is never changed."""
    store = Path(store).absolute()
    return store.with_name(f"{store.name}.looks.tsv")


def looks(store: str | Path, task: str | None = None) -> pd.DataFrame:
    """Evaluations that were made on a store.

    Parameters
    ----------
    store : path
    task : str, optional
        Name of a task, to have only its rows.

    Returns
    -------
    DataFrame
        `LOOK_COLUMNS`, one row an evaluation, the first first.
    """
    path = ledger_path(store)
    if not path.is_file():
        return pd.DataFrame(columns=list(LOOK_COLUMNS))
    table = read_tsv(path)
    if missing := [column for column in LOOK_COLUMNS if column not in table]:
        raise OpenBrainMassError(
            f"The ledger {path} lacks {', '.join(missing)}; the columns {', '.join(LOOK_COLUMNS)} were expected. "
            "Restore it; what it has recorded cannot be made again."
        )
    return table if task is None else table[table["task"].astype(str) == task].reset_index(drop=True)


def record_look(
    store: str | Path,
    task: str,
    protocols: Sequence[str],
    models: Mapping[str, object],
    n_people: int,
    settings: Mapping[str, object] | None = None,
) -> bool:
    """Enter an evaluation into the ledger of the store whose people it tests; the identical one only once.

    Parameters
    ----------
    store : path
        Of the test people.
    task : str
        Name of the task.
    protocols : sequence of str
    models : mapping of str to object
        Each model, or a text that says what it is; only its text counts.
    n_people : int
        Who are tested.
    settings : mapping, optional
        What else makes an evaluation another one: seed, folds...

    Returns
    -------
    bool
        Whether this was a new look.

    Raises
    ------
    OpenBrainMassError
        If the ledger cannot be written, or another process holds it for ten seconds.
    """
    path = ledger_path(store)
    texts = {name: " ".join(str(model).split()) for name, model in models.items()}
    what = json.dumps([task, sorted(protocols), texts, dict(settings or {})], sort_keys=True, default=str)
    digest = hashlib.sha256(what.encode()).hexdigest()
    row = (
        datetime.now(UTC).isoformat(timespec="seconds"),
        task,
        ";".join(protocols),
        ";".join(texts),
        len(texts),
        n_people,
        digest,
    )
    with _held(path):
        known = looks(store)
        new = digest not in set(known["digest"])
        if new:
            added = pd.DataFrame([row], columns=list(LOOK_COLUMNS))
            write_tsv(path, added if known.empty else pd.concat([known, added], ignore_index=True))
    return new


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """The lock of a ledger, waited for as long as another evaluation may need to enter its look."""
    held = path.with_name(f".{path.name}.lock")
    deadline = time.monotonic() + _PATIENCE_S
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(lock(held, f"Another process is writing {path}. Wait until it has ended."))
                break
            except OpenBrainMassError:
                if not held.exists() or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        yield


def expected_best_auc(n_models: int, n_positive: int, n_negative: int) -> float:
    """AUC that the best of some models without any skill is expected to reach on the same people.

    Parameters
    ----------
    n_models : int
        Independent ones; models that are alike reach less.
    n_positive, n_negative : int
        People of each class.

    Returns
    -------
    float
        0.5 plus the expected largest of `n_models` normal values times the AUC's standard error at 0.5.
    """
    if n_models < 1:
        return 0.5
    # The expected largest is the area above its distribution right of 0 less the area below it left of 0.
    z = np.linspace(0, 12, 2401)
    areas = -np.expm1(n_models * norm.logcdf(z)) - np.exp(n_models * norm.logcdf(-z))
    return min(1.0, 0.5 + float(np.trapezoid(areas, z)) * auc_error(0.5, n_positive, n_negative))


def audit_looks(store: str | Path, task: str, n_positive: int, n_negative: int) -> Finding:
    """How good the best of as many models as were tried on these people would look without any skill.

    Parameters
    ----------
    store : path
        Of the test people.
    task : str
        Name of the task.
    n_positive, n_negative : int
        People of each class.
    """
    table, name = looks(store, task), Path(store).name
    if table.empty:
        told = f"Nobody has evaluated {task} on these people, says the ledger of {name}."
        return Finding("repeated-looks", "passed", told)
    n_models = int(table["n_models"].sum())
    best = expected_best_auc(n_models, n_positive, n_negative)
    told = (
        f"{_count(len(table), 'evaluation')} of {task} with {_count(n_models, 'model')} {'is' if len(table) == 1 else 'are'} in "
        f"the ledger of {name}; the best of so many without any skill would have an AUC of {best:.2f} here."
    )
    return Finding("repeated-looks", "floor" if n_models > 1 else "passed", told)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
