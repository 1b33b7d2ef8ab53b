from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.pipeline import make_pipeline

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.durable import read_tsv, write_tsv
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.baselines import Chance, Connectome
from openbrainmass.evaluation.evaluate import evaluate
from openbrainmass.evaluation.probes import make_probe
from openbrainmass.evaluation.results import METRIC_COLUMNS, PREDICTION_COLUMNS, Results
from openbrainmass.evaluation.statistics import COMPARISON_COLUMNS, compare
from openbrainmass.evaluation.tasks import Task

MakeCohort = Callable[..., Cohort]


@pytest.fixture(scope="module")
def results(make_cohort: MakeCohort) -> Results:
    cohort = make_cohort(n_people=40, n_recordings=2, n_sites=2, effect=0.5)
    models = {"7": make_pipeline(Connectome(), make_probe("svm")), "chance": Chance()}
    return evaluate(models, cohort, Task.from_cohort(cohort), n_repeats=2, protocols=("k-fold", "site-held-out"))


def test_what_is_read_back_is_what_was_saved_and_metrics_are_recomputed_identically(
    results: Results, tmp_path: Path
) -> None:
    assert results.save(tmp_path / "r") == tmp_path / "r"
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == [
        "comparisons.tsv", "folds.tsv", "metrics.tsv", "predictions.tsv", "settings.json",
    ]  # fmt: skip
    again = Results.load(tmp_path / "r")
    pd.testing.assert_frame_equal(again.predictions, results.predictions, check_exact=True)
    pd.testing.assert_frame_equal(again.metrics(), results.metrics(), check_exact=True)
    assert again.settings == results.settings
    written = read_tsv(tmp_path / "r" / "metrics.tsv")
    assert tuple(written.columns) == METRIC_COLUMNS
    np.testing.assert_array_equal(written["value"], results.metrics()["value"])
    compared = read_tsv(tmp_path / "r" / "comparisons.tsv")
    assert tuple(compared.columns) == COMPARISON_COLUMNS
    np.testing.assert_array_equal(compared["p"], compare(again)["p"])


def test_metrics_come_from_predictions_and_nothing_else(results: Results) -> None:
    flipped = results.predictions.assign(y_true=1 - results.predictions["y_true"])
    one, other = (
        table.metrics(n_resamples=50).query("metric == 'auc'")["value"].to_numpy()
        for table in (results, Results(flipped, {}))
    )
    np.testing.assert_allclose(one + other, 1)


def test_counts_of_people(results: Results) -> None:
    table = results.metrics()
    assert set(table["n_people"]) == {40} and set(table["n_positive"]) == {20}
    assert tuple(table.columns) == METRIC_COLUMNS
    table["value"] = 0
    assert (results.metrics()["value"] != 0).any()


def test_a_reference_can_be_saved(results: Results, tmp_path: Path) -> None:
    results.save(tmp_path / "r", reference="chance")
    assert set(read_tsv(tmp_path / "r" / "comparisons.tsv")["reference"]) == {"chance"}


def test_saving_over_something_is_refused(results: Results, tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("x")
    with pytest.raises(OpenBrainMassError, match="exists already"):
        results.save(tmp_path)
    assert (tmp_path / "kept").read_text() == "x"


@pytest.mark.parametrize(
    ("column", "value"),
    [("y_true", 2), ("y_pred", "yes"), ("y_score", np.inf), ("y_prob", 1.2), ("saw_test_people", "maybe")],
)
def test_damaged_predictions_are_refused(results: Results, tmp_path: Path, column: str, value: object) -> None:
    results.save(tmp_path / "r")
    table = results.predictions.astype({column: object})
    table.loc[3, column] = value
    write_tsv(tmp_path / "r" / "predictions.tsv", table)
    with pytest.raises(OpenBrainMassError, match="holds a value that no evaluation writes"):
        Results.load(tmp_path / "r")


def test_folders_of_before_probabilities_are_read(results: Results, tmp_path: Path) -> None:
    old = Results(results.predictions.drop(columns="y_prob"), results.settings)
    old.save(tmp_path / "r")
    write_tsv(tmp_path / "r" / "predictions.tsv", results.predictions.drop(columns="y_prob"))
    again = Results.load(tmp_path / "r")
    assert again.predictions["y_prob"].isna().all() and again.kind == "classification"
    pd.testing.assert_frame_equal(again.metrics(100), old.metrics(100), check_exact=True)


def test_further_tables_are_kept(results: Results, tmp_path: Path) -> None:
    further = {"audit": pd.DataFrame({"check": ["a"], "value": [0.1]}), "folds": pd.DataFrame({"fold": [0, 1]})}
    Results(results.predictions, results.settings, further).save(tmp_path / "r")
    (tmp_path / "r" / "My notes.tsv").write_text("not\ta table of results\n")
    again = Results.load(tmp_path / "r")
    assert sorted(again.tables) == ["audit", "folds"]
    pd.testing.assert_frame_equal(
        again.tables["audit"].astype({"check": object}), further["audit"].astype({"check": object})
    )
    for name in ("metrics", "../x"):
        with pytest.raises(OpenBrainMassError, match="cannot be named"):
            Results(results.predictions, {}, {name: further["audit"]})


def numbers(n: int, seed: int) -> Results:
    """A regression, with scores that need every digit of a float."""
    rng = np.random.default_rng(seed)
    truth = np.exp(rng.normal(size=n) * 10)
    columns = {
        "protocol": "k-fold", "repeat": 0, "fold": np.arange(n) % 3, "model": "m", "site": "",
        "participant_id": [f"{number:05d}" for number in range(n)], "y_true": truth, "y_prob": np.nan,
        "y_score": truth / 3 + rng.normal(size=n), "saw_test_people": False, "n_train": 20,
    }  # fmt: skip
    table = pd.DataFrame(columns)
    return Results(table.assign(y_pred=table["y_score"]), {"task": {"kind": "regression"}})


def test_a_regression_is_saved_to_the_last_bit(tmp_path: Path) -> None:
    results = numbers(500, 0)
    results.save(tmp_path / "r")
    again = Results.load(tmp_path / "r")
    assert again.kind == "regression" and list(again.metrics()["metric"]) == ["r2", "r", "mae"]
    for column in ("y_true", "y_score", "y_pred"):
        assert (
            again.predictions[column].to_numpy().view(np.int64) == results.predictions[column].to_numpy().view(np.int64)
        ).all()
    pd.testing.assert_frame_equal(again.metrics(), results.metrics(), check_exact=True)
    assert again.metrics()["n_positive"].isna().all() and again.metrics().query("metric == 'mae'")["value"].item() > 1
    assert compare(Results(pd.concat([results.predictions, results.predictions.assign(model="n")]), results.settings))[
        "metric"
    ].tolist() == ["r2"]


def test_a_folder_without_its_columns_or_files_is_refused(results: Results, tmp_path: Path) -> None:
    with pytest.raises(OpenBrainMassError, match="does not exist"):
        Results.load(tmp_path)
    results.save(tmp_path / "r")
    write_tsv(tmp_path / "r" / "predictions.tsv", results.predictions.drop(columns="fold"))
    with pytest.raises(OpenBrainMassError, match="lacks the columns fold"):
        Results.load(tmp_path / "r")
    with pytest.raises(OpenBrainMassError, match="needs at least one row"):
        Results(pd.DataFrame(columns=list(PREDICTION_COLUMNS)), {})


def test_repr_tells_what_there_is(results: Results) -> None:
    assert repr(results) == "Results(2 models, protocols k-fold, site-held-out, 40 people)"
