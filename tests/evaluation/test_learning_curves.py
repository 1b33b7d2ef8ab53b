from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.learning_curves import AREA_COLUMNS, CURVE_COLUMNS, learning_curves, log_auc
from openbrainmass.evaluation.results import Results

SHIFTS = {1: 0.2, 5: 0.8, 20: 1.6}


def point(protocol: str, model: str, shift: float, n_train: int, n_draws: int = 4, seed: int = 0) -> pd.DataFrame:
    y = np.tile([0, 1], 20)
    parts = []
    for draw in range(n_draws):
        score = np.random.default_rng([seed, draw]).normal(size=40) + shift * y
        table = {
            "protocol": protocol, "repeat": draw, "fold": np.arange(40) // 2 % 2, "model": model, "site": "A",
            "y_true": y, "y_score": score, "y_pred": (score > 0.5).astype(int), "saw_test_people": False,
            "n_train": n_train, "participant_id": [f"p{number:03d}" for number in range(40)],
        }  # fmt: skip
        parts.append(pd.DataFrame(table))
    return pd.concat(parts)


@pytest.fixture(scope="module")
def results() -> Results:
    parts = []
    for model, gain in (("good", 2.0), ("plain", 1.0), ("twin", 1.0)):
        for k, shift in SHIFTS.items():
            parts.append(point(f"few-shot-{k}", model, gain * shift, 2 * k))
            parts.append(point(f"external-few-shot-{k}", model, gain * shift, 100 + 2 * k))
        parts.append(point("external", model, 0.1, 100, n_draws=1))
    parts.append(point("k-fold", "plain", 1.0, 20, n_draws=1))
    return Results(pd.concat(parts), {})


def test_curves_have_every_k_and_zero_shot_is_that_of_no_label(results: Results) -> None:
    table = learning_curves(results, n_resamples=60)
    assert tuple(table.columns) == CURVE_COLUMNS
    by = table.groupby(["protocol", "model"])["k"].apply(list)
    assert by["few-shot", "good"] == [1, 5, 20] and by["external-few-shot", "twin"] == [0, 1, 5, 20]
    assert (table["low"] <= table["value"]).all() and (table["value"] <= table["high"]).all()
    assert set(table.loc[table["k"] > 0, "n_draws"]) == {4} and set(table.loc[table["k"] == 0, "n_draws"]) == {1}
    values = results.metrics(n_resamples=20).query("metric == 'auc'").set_index(["protocol", "model"])["value"]
    assert table.set_index(["protocol", "model", "k"])["value"]["few-shot", "good", 5] == values["few-shot-5", "good"]


def test_the_area_is_the_trapezoid_over_the_logarithm(results: Results) -> None:
    curve = learning_curves(results, n_resamples=50).query("protocol == 'few-shot' and model == 'good'")
    expected = np.trapezoid(curve["value"], np.log(curve["k"])) / np.log(20)
    table = log_auc(results, n_resamples=200)
    assert tuple(table.columns) == AREA_COLUMNS and len(table) == 6
    found = table.query("protocol == 'few-shot' and model == 'good'").iloc[0]
    assert found["value"] == pytest.approx(expected) and found["low"] < found["value"] < found["high"]
    assert (found["smallest_k"], found["largest_k"]) == (1, 20) and np.isnan(found["p"])


def test_an_area_stays_where_its_metric_has_values() -> None:
    parts = [point(f"few-shot-{k}", *model, 2 * k) for k in (1, 5) for model in (("high", 2.6), ("low", -2.6))]
    results = Results(pd.concat(parts), {})
    high = log_auc(results, n_resamples=200).set_index("model").loc["high"]
    assert high["high"] == 1 and 0.9 < high["value"] < 1
    apart = log_auc(results, "high", n_resamples=200).query("reference == 'high'").iloc[0]
    assert apart["low"] < apart["value"] < -0.8


def test_areas_are_compared_on_the_same_people_and_draws(results: Results) -> None:
    table = log_auc(results, "plain", n_resamples=300).query("reference == 'plain'")
    assert table.groupby("protocol")["model"].apply(list).tolist() == [["good", "twin"]] * 2
    good, twin = (table[table["model"] == name].iloc[0] for name in ("good", "twin"))
    assert good["low"] > 0 and good["p"] < good["p_corrected"] < 0.05 and good["smallest_difference"] > 0
    assert twin["value"] == twin["low"] == twin["high"] == 0 and twin["p"] == 1


def test_what_has_no_curve_has_no_area(results: Results) -> None:
    rows = results.predictions
    single = Results(rows[rows["protocol"].isin(["few-shot-5", "k-fold"])], {})
    assert log_auc(single, "plain").empty and len(learning_curves(single, n_resamples=50)) == 3
    assert learning_curves(Results(rows[rows["protocol"] == "k-fold"], {})).empty
    with pytest.raises(OpenBrainMassError, match="no model 'x'"):
        log_auc(results, "x")
