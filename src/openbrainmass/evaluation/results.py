"""`Results`: saved predictions and the tables recomputed from them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from openbrainmass.durable import new_folder, read_json, read_tsv, write_json, write_tsv
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.metrics import metric_names
from openbrainmass.evaluation.statistics import compare, metric_interval

PREDICTION_COLUMNS = (
    "protocol", "repeat", "fold", "model", "participant_id", "site", "y_true", "y_score", "y_pred", "y_prob",
    "saw_test_people", "n_train",
)  # fmt: skip
"""Columns of ``predictions.tsv``: one row a tested person, fold and model.

``y_prob`` is the probability of the positive class, missing where the model gives none; of a regression, ``y_true``
and ``y_score`` are values of the target and ``y_pred`` is ``y_score``; ``n_train`` counts people.
"""

METRIC_COLUMNS = (
    "protocol", "model", "metric", "value", "low", "high", "n_people", "n_positive", "saw_test_people",
)  # fmt: skip


OWN_TABLES = frozenset({"predictions", "metrics", "comparisons"})
"""Tables that every results folder has; all others are those of `Results.tables`."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")


class Results:
    """What `evaluate` found.

    Parameters
    ----------
    predictions : DataFrame
        One row a tested person, fold and model, with `PREDICTION_COLUMNS` (``y_prob`` may be absent).
    settings : mapping
        What was done: task, cohorts, protocols, seeds, models as text, notes.
    tables : mapping of str to DataFrame, optional
        Further tables that belong to the results (folds, confounds, audit, ...), saved as ``NAME.tsv``.
    """

    def __init__(
        self,
        predictions: pd.DataFrame,
        settings: Mapping[str, Any],
        tables: Mapping[str, pd.DataFrame] | None = None,
    ) -> None:
        if "y_prob" not in predictions:
            # Results folders of version 0.1 have no such column.
            predictions = predictions.assign(y_prob=np.nan)
        missing = [column for column in PREDICTION_COLUMNS if column not in predictions.columns]
        if missing or not len(predictions):
            raise OpenBrainMassError(
                f"A predictions table needs at least one row and the columns {', '.join(PREDICTION_COLUMNS)}; "
                f"found {len(predictions)} rows, without {', '.join(missing) or 'nothing missing'}."
            )
        self.predictions = predictions[list(PREDICTION_COLUMNS)].reset_index(drop=True)
        self.settings = dict(settings)
        self.tables = dict(tables or {})
        for name in self.tables:
            _check_table_name(name)
        self._metrics: dict[tuple[int, int], pd.DataFrame] = {}

    def __repr__(self) -> str:
        table = self.predictions
        return (
            f"Results({table['model'].nunique()} models, protocols {', '.join(table['protocol'].unique())}, "
            f"{table['participant_id'].nunique()} people)"
        )

    @property
    def kind(self) -> str:
        """What the task is: ``classification`` (of two classes) or ``regression``."""
        return _kind(self.settings)

    def metrics(self, n_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
        """Every metric of every protocol and model, recomputed from the predictions.

        Parameters
        ----------
        n_resamples : int
            Bootstrap samples of those 95 % intervals that are bootstrapped (see `metric_interval`).
        seed : int
            Of the bootstrap.

        Returns
        -------
        DataFrame
            ``protocol model metric value low high n_people n_positive saw_test_people``. Repeats are averaged.
            ``n_positive`` is missing for a regression.
        """
        if (n_resamples, seed) not in self._metrics:
            rows = []
            for (protocol, model), table in self.predictions.groupby(["protocol", "model"], sort=False):
                rows += _metric_rows(str(protocol), str(model), table, self.kind, n_resamples, seed)
            self._metrics[n_resamples, seed] = pd.DataFrame(rows, columns=list(METRIC_COLUMNS))
        return self._metrics[n_resamples, seed].copy()

    def save(self, folder: str | Path, reference: str | None = None) -> Path:
        """Write ``predictions.tsv metrics.tsv comparisons.tsv settings.json`` and `tables`, whole or not at all.

        Parameters
        ----------
        folder : path
            Must not hold anything yet.
        reference : str, optional
            Model that the comparisons are with (see `compare`).
        """
        with new_folder(folder) as temporary:
            write_tsv(temporary / "predictions.tsv", self.predictions)
            write_tsv(temporary / "metrics.tsv", self.metrics())
            write_tsv(temporary / "comparisons.tsv", compare(self, reference))
            write_json(temporary / "settings.json", self.settings)
            for name, table in self.tables.items():
                _check_table_name(name)
                write_tsv(temporary / f"{name}.tsv", table)
        return Path(folder)

    @classmethod
    def load(cls, folder: str | Path) -> Self:
        """Read the predictions, settings and further tables of a results folder; the metrics are computed again.

        Raises
        ------
        OpenBrainMassError
            If the folder is not a results folder, or a value in it is not possible.
        """
        folder = Path(folder)
        path = folder / "predictions.tsv"
        table = read_tsv(path)
        needed = [column for column in PREDICTION_COLUMNS if column != "y_prob"]
        if absent := [column for column in needed if column not in table.columns]:
            raise OpenBrainMassError(f"{path} lacks the columns {', '.join(absent)}. Restore it or evaluate again.")
        settings = read_json(folder / "settings.json")
        table["site"] = table["site"].fillna("").astype(str)
        for column in ("model", "participant_id", "protocol"):
            table[column] = table[column].astype(str)
        if "y_prob" in table and table["y_prob"].isna().all():
            table["y_prob"] = np.nan
        flags = table["saw_test_people"].astype(str)
        if not set(flags) <= {"True", "False"} or not _possible(table, _kind(settings)):
            raise OpenBrainMassError(
                f"{path} holds a value that no evaluation writes (classes are 0 or 1, scores finite numbers, "
                "probabilities from 0 to 1, saw_test_people True or False). It was edited or damaged; evaluate again."
            )
        table["saw_test_people"] = flags == "True"
        names = sorted(path.stem for path in folder.glob("*.tsv"))
        further = [name for name in names if name not in OWN_TABLES and _NAME.fullmatch(name)]
        return cls(table, settings, {name: read_tsv(folder / f"{name}.tsv") for name in further})


def _kind(settings: Mapping[str, Any]) -> str:
    task = settings.get("task")
    return str(task.get("kind") or "classification") if isinstance(task, Mapping) else "classification"


def _possible(table: pd.DataFrame, kind: str) -> bool:
    """Whether every truth, score, class and probability is one that `evaluate` could have written."""
    columns = [column for column in ("y_true", "y_score", "y_pred", "y_prob") if column in table]
    if not all(pd.api.types.is_numeric_dtype(table[column]) for column in columns):
        return False
    if not np.isfinite(table[["y_true", "y_score", "y_pred"]].to_numpy(float)).all():
        return False
    probable = "y_prob" not in table or table["y_prob"].dropna().between(0, 1).all()
    return bool(probable) and (kind == "regression" or set(table["y_true"]) | set(table["y_pred"]) <= {0, 1})


def _check_table_name(name: str) -> None:
    if name in OWN_TABLES or not _NAME.fullmatch(name):
        raise OpenBrainMassError(
            f"A further table of results cannot be named {name!r}: a word of small letters, digits and underscores is "
            f"expected, other than {', '.join(sorted(OWN_TABLES))}. Choose another name."
        )


def _metric_rows(
    protocol: str, model: str, table: pd.DataFrame, kind: str, n_resamples: int, seed: int
) -> list[dict[str, Any]]:
    n_people = int(table["participant_id"].nunique())
    is_regression = kind == "regression"
    n_positive = np.nan if is_regression else int(table.loc[table["y_true"] == 1, "participant_id"].nunique())
    rows = []
    for name in metric_names(protocol, kind):
        value, low, high = metric_interval(table, name, n_resamples=n_resamples, seed=seed)
        rows.append(
            dict(zip(METRIC_COLUMNS, (protocol, model, name, value, low, high, n_people, n_positive,
                                      bool(table["saw_test_people"].any())), strict=True))
        )  # fmt: skip
    return rows
