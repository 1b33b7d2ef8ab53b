"""What a page may show: results whose metrics follow from their predictions, each folder once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from openbrainmass.durable import read_tsv
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.metrics import HEADLINE, Predictions, Weights, find_metric
from openbrainmass.evaluation.results import METRIC_COLUMNS, Results

_APART = 1e-6


def refuse_twice(paths: Sequence[Path]) -> None:
    """Refuse a path that is given twice, however it is spelled.

    Raises
    ------
    OpenBrainMassError
    """
    if twice := [path for path, n in Counter(path.resolve() for path in paths).items() if n > 1]:
        raise OpenBrainMassError(f"{twice[0]} was given twice; name each folder once.")


def read_checked(path: Path) -> tuple[Results, pd.DataFrame]:
    """Load a results folder and its saved metrics, once those are known to follow from the predictions.

    Parameters
    ----------
    path : Path
        What `Results.save` wrote.

    Returns
    -------
    results : Results
    metrics : DataFrame
        As saved, with `METRIC_COLUMNS`; ``saw_test_people`` is of bool.

    Raises
    ------
    OpenBrainMassError
        If it is not a results folder, or its headline metrics do not follow from its predictions.
    """
    results = Results.load(path)
    metrics = read_tsv(path / "metrics.tsv")
    if absent := [column for column in METRIC_COLUMNS if column not in metrics]:
        raise OpenBrainMassError(f"{path / 'metrics.tsv'} lacks the columns {', '.join(absent)}. Evaluate again.")
    metrics = metrics.assign(
        protocol=metrics["protocol"].astype(str),
        model=metrics["model"].astype(str),
        saw_test_people=truth(metrics["saw_test_people"]),
    )
    _refuse_edited(path, results, metrics)
    return results, metrics


def truth(column: pd.Series) -> pd.Series:
    """A saved column of true/false, whichever way it was spelled."""
    return column.astype(str).str.lower().isin({"true", "1", "1.0"})


def _refuse_edited(path: Path, results: Results, metrics: pd.DataFrame) -> None:
    name = HEADLINE[results.kind]
    saved = {(row["protocol"], row["model"]): row for row in metrics[metrics["metric"] == name].to_dict("records")}
    for (protocol, model), rows in results.predictions.groupby(["protocol", "model"], sort=False):
        row = saved.get((protocol, model))
        if row is None:
            raise OpenBrainMassError(f"{path / 'metrics.tsv'} has no {name} of {model} in {protocol}. Evaluate again.")
        predictions = Predictions.of(rows)
        value = float(find_metric(name)(predictions, Weights.equal(predictions))[0])
        saw = bool(rows["saw_test_people"].any())
        same = np.isclose(value, float(row["value"]), atol=_APART, equal_nan=True)
        if not same or saw != bool(row["saw_test_people"]):
            raise OpenBrainMassError(
                f"{path / 'metrics.tsv'} says {name} {row['value']:.6f} of {model} in {protocol}, with saw_test_people "
                f"{bool(row['saw_test_people'])}, but predictions.tsv gives {value:.6f} and {saw}. It was edited, or "
                "its files are of two evaluations; evaluate again."
            )
