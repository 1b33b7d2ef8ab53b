"""Curves, confounds, audit, power and regression: what an evaluation saved beside its scores is what the page shows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from openbrainmass.report.confounds_view import audit_view, confounds_view
from openbrainmass.report.curves_view import coverage_view, few_shot_views, line_looks
from openbrainmass.report.folders import Material, ResultsFolder, read_material
from openbrainmass.report.methods import methods
from openbrainmass.report.page import render
from openbrainmass.report.results_view import results_view
from openbrainmass.report.verdict import protocols, scores, verdict

MODEL = "BrainMass + svm"
PROTOCOL = "site-held-out"
MakeCard = Callable[..., pd.DataFrame]


@pytest.fixture(scope="module")
def card_of(make: SimpleNamespace) -> MakeCard:
    """Makes a confound card; items by a short name can be changed."""
    return make.card


def metrics_of(points: dict[str, dict[str, float]], metric: str = "auc") -> pd.DataFrame:
    """A metrics table of models by protocol."""
    rows = [
        {"protocol": protocol, "model": model, "metric": metric, "value": value, "low": value - 0.05,
         "high": value + 0.05, "n_people": 48, "n_positive": 24, "saw_test_people": False}
        for protocol, models in points.items()
        for model, value in models.items()
    ]  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def results(folders: dict[str, Path]) -> ResultsFolder:
    return read_material([folders["results"]]).results[0]


def words(html: str) -> str:
    return " ".join(html.replace("\N{NO-BREAK SPACE}", " ").split())


def test_saved_tables_are_read_and_shown(folders: dict[str, Path]) -> None:
    material = read_material([folders["results"]])
    assert set(material.results[0].tables) == {"confounds", "coverage", "audit"}
    page = words(render(material))
    for part in (
        "<h3>Confounds</h3>",
        "<h3>Answers withheld</h3>",
        "<h3>Audit for leaks</h3>",
        "autism is in 14 names.",
    ):
        assert part in page


def test_without_tables_there_are_no_sections(results: ResultsFolder) -> None:
    page = render(Material(results=[replace(results, tables={})]))
    assert not any(title in page for title in ("Confounds</h3>", "Answers withheld", "Audit for leaks"))


def test_zero_shot_is_the_first_point_of_the_other_cohorts_curve(results: ResultsFolder) -> None:
    points = {
        "external": {MODEL: 0.61, "chance": 0.5},
        "external-few-shot-10": {MODEL: 0.7},
        "few-shot-2": {MODEL: 0.6},
    }
    found = replace(results, metrics=metrics_of(points))
    inside, outside = few_shot_views(found)
    assert inside.table.columns == ("Model", "2") and outside.table.columns == ("Model", "0", "10")
    assert [cell.text for cell in outside.table.rows[0][1:]] == ["0.61", "0.70"]  # type: ignore[union-attr]
    assert outside.table.rows[1][0] == "chance" and [line.label for line in outside.legend] == [MODEL]
    assert f"{MODEL} from 0.61 to 0.70" in outside.picture.alt
    assert "join the training cohort" in outside.asks and "only" not in outside.asks
    # Zero-shot has its own section as well; few-shot is in none.
    assert protocols(found) == ["external"]


def test_the_area_under_the_curve_is_shown_where_it_was_saved(results: ResultsFolder) -> None:
    points = {"few-shot-1": {MODEL: 0.6}, "few-shot-10": {MODEL: 0.7}}
    row = {"protocol": "few-shot", "model": MODEL, "reference": "", "value": 0.654, "low": 0.6, "high": 0.7}
    difference = {**row, "reference": "chance", "value": 0.154}
    found = replace(results, metrics=metrics_of(points), tables={"log_auc": pd.DataFrame([row, difference])})
    areas = few_shot_views(found)[0].areas
    assert areas is not None and areas.columns == ("Model", "AUC") and len(areas.rows) == 1
    assert areas.rows[0][1].text == "0.65"  # type: ignore[union-attr]
    assert few_shot_views(replace(found, tables={}))[0].areas is None


def test_without_a_pretrained_model_the_best_one_has_the_band(results: ResultsFolder) -> None:
    points = {f"few-shot-{k}": {"edges + svm": 0.6, "tangent + svm": 0.6 + k / 100} for k in (1, 10)}
    view = few_shot_views(replace(results, metrics=metrics_of(points)))[0]
    assert "intervals of tangent + svm" in view.picture.caption
    looks = line_looks([f"edges {i}" for i in range(9)])
    assert len(looks) == len({look.color for look in looks.values()}) == 6


def test_every_point_of_a_curve_has_its_interval(results: ResultsFolder) -> None:
    points = {f"few-shot-{k}": {MODEL: 0.6, "edges + svm": 0.7, "chance": 0.5} for k in (1, 10)}
    table = few_shot_views(replace(results, metrics=metrics_of(points)))[0].table
    assert "with 95 % intervals" in table.caption
    told = {row[0]: [cell.between for cell in row[1:]] for row in table.rows}  # type: ignore[union-attr]
    assert told["edges + svm"] == ["0.65 to 0.75"] * 2 and all(map(all, told.values()))


def test_no_two_models_look_alike_and_transductive_rows_are_dashed(results: ResultsFolder) -> None:
    models = [f"BrainMass + {probe}" for probe in ("svm", "logistic", "ridge", "trees", "forest")]
    models += [f"{model} (transductive)" for model in [*models, "edges + svm"]]
    looks = line_looks([*models, "edges + svm"])
    assert len(set(looks.values())) == len(models) + 1
    for model in (MODEL, "edges + svm"):
        plain, dashed = looks[model], looks[f"{model} (transductive)"]
        assert plain.color == dashed.color and dashed.dash and not plain.dash
    points = {f"external-few-shot-{k}": dict.fromkeys([MODEL, f"{MODEL} (transductive)"], 0.6) for k in (1, 10)}
    view = few_shot_views(replace(results, metrics=metrics_of(points)))[0]
    assert [(bool(line.dash), line.band) for line in view.legend] == [(False, True), (True, False)]
    page = render(Material(results=[replace(results, metrics=metrics_of(points | {"external": {MODEL: 0.6}}))]))
    assert page.count('stroke-dasharray="6 3"') == 1


def test_withheld_answers_tell_their_rule_and_the_share_reached(make: SimpleNamespace, results: ResultsFolder) -> None:
    view = coverage_view(results, PROTOCOL)
    assert view is not None and "fixed on the other folds" in view.asks and "predicted probability" in view.asks
    row = dict(zip(view.table.columns, view.table.rows[0], strict=True))
    assert row["80 %"].text == "0.75" and row["80 %"].between == "76 %"  # type: ignore[union-attr]
    assert row["50 %"].between == "" and row["20 %"].text == "\N{EN DASH}"  # type: ignore[union-attr]
    assert f"{MODEL} from 0.70 to 0.82" in view.picture.alt
    assert coverage_view(results, "k-fold") is None and coverage_view(replace(results, tables={}), PROTOCOL) is None
    described = replace(results, tables={"coverage": make.curve("tested people")})
    assert "only describes them" in coverage_view(described, PROTOCOL).asks  # type: ignore[union-attr]


def test_the_card_warns_of_what_is_there_only(results: ResultsFolder, card_of: MakeCard) -> None:
    view = confounds_view(results, PROTOCOL, MODEL)
    assert view is not None and view.strata is not None and view.regressed is not None
    assert not any(warns for _, warns in view.sentences)
    assert [row.estimate.label for row in view.strata.rows] == ["sex F", "sex M"]
    assert "M minus F: +0.02" in view.strata.caption
    row = view.regressed.rows[0].estimate
    assert row.more == ("0.74", "0.66") and row.text == "\N{MINUS SIGN}0.08"
    assert "age, site are regressed out" in view.regressed.caption
    loud = card_of(motion_within=(0.3, 0.2, 0.4), gap=(0.2, 0.1, 0.3))
    told = confounds_view(replace(results, tables={"confounds": loud}), PROTOCOL, MODEL).sentences  # type: ignore[union-attr]
    assert [warns for _, warns in told] == [False, True, True]
    assert "motion within class, too: rank correlation 0.30" in told[1][0] and "not do equally well" in told[2][0]


def test_a_site_that_can_be_read_warns_where_sites_are_on_both_sides(results: ResultsFolder, card_of: MakeCard) -> None:
    card = card_of().replace({"protocol": {PROTOCOL: "k-fold"}})
    view = confounds_view(replace(results, tables={"confounds": card}), "k-fold", MODEL)
    assert view is not None and view.sentences[0][1] and "0.80 (chance 0.50)" in view.sentences[0][0]


def test_a_card_of_another_protocol_or_with_little_in_it(results: ResultsFolder, card_of: MakeCard) -> None:
    assert (
        confounds_view(replace(results, tables={"confounds": card_of().query("protocol != ''")}), "k-fold", MODEL)
        is None
    )
    bare = card_of().query("check == 'mean_fd'")
    view = confounds_view(replace(results, tables={"confounds": bare}), PROTOCOL, "another model")
    assert view is not None and view.strata is None and view.regressed is None
    assert view.overview is not None and view.overview.columns == ("Model", "score with motion", "within class")


def test_the_audit_names_what_was_refused_first(make: SimpleNamespace, results: ResultsFolder) -> None:
    view = audit_view(results)
    assert view is not None and view.warns
    assert [row[1] for row in view.found.rows] == ["refused", "floor", "floor", "passed"]
    assert "1 refused" in view.sentence and "1 could not be done" in view.sentence
    assert view.unchecked is not None and len(view.unchecked.rows) == 1
    clean = audit_view(replace(results, tables={"audit": make.audit().query("verdict == 'passed'")}))
    assert clean is not None and not clean.warns and clean.unchecked is None and "none was refused" in clean.sentence


def test_looks_at_the_test_people_and_power_stand_in_the_summary(results: ResultsFolder) -> None:
    comparisons = results.comparisons.assign(smallest_difference=0.031)
    said = verdict(replace(results, comparisons=comparisons))
    assert said is not None
    told = " ".join(text for text, _ in said.remarks)
    assert "7 evaluations were made on these people." in told
    assert "With 48 people, a difference in AUC below 0.03" in told
    unknown = verdict(replace(results, comparisons=comparisons.assign(smallest_difference=np.nan)))
    assert unknown is not None and "With 48 people" not in " ".join(text for text, _ in unknown.remarks)


def regression_of(results: ResultsFolder) -> ResultsFolder:
    values = {"r2": (0.36, 0.1), "r": (0.6, 0.4), "mae": (4.2, 5.0)}
    tables = [
        metrics_of({PROTOCOL: {MODEL: own, "edges + ridge": rival}}, metric) for metric, (own, rival) in values.items()
    ]
    rng = np.random.default_rng(0)
    age = rng.uniform(8, 30, 48)
    predictions = results.predictions.query("protocol == @PROTOCOL and model == @MODEL").reset_index(drop=True)
    predictions = pd.concat(
        predictions.assign(model=name, y_true=age, y_score=age + noise * rng.normal(size=48), y_prob=np.nan)
        for name, noise in ((MODEL, 3.0), ("edges + ridge", 30.0))
    )
    task = {"name": "age", "title": "Age", "kind": "regression", "target": "age"}
    settings = {**results.settings, "task": task}
    return replace(
        results,
        metrics=pd.concat(tables),
        predictions=predictions,
        settings=settings,
        comparisons=pd.DataFrame(),
        tables={},
    )


def test_a_regression_is_told_as_one(results: ResultsFolder) -> None:
    found = regression_of(results)
    view = results_view(found)
    assert view.verdict is not None and view.headline is not None
    assert (
        "predicts age with R² 0.36 (95 % interval 0.31 to 0.41; correlation 0.60; mean absolute error 4.20; 48 people)"
        in view.verdict.reached
    )
    assert "dashed line: what the mean of the tested people themselves would give" in view.headline.caption
    assert view.headline.heading.startswith("R²") and view.headline.zero is not None
    assert "age" in view.facts and "R² is the share" in view.no_skill
    assert view.protocols[0].metrics.columns == ("Model", "correlation", "mean absolute error")
    assert view.protocols[0].sites is None and view.protocols[0].further is None
    assert len(scores(found, PROTOCOL)) == 2
    assert "The age of 48 people was predicted" in " ".join(methods(Material(results=[found]), "1").paragraphs)


def test_calibration_has_its_own_table(results: ResultsFolder) -> None:
    metrics = pd.concat(
        [metrics_of({PROTOCOL: {MODEL: 0.7}}, name) for name in ("auc", "accuracy", "brier", "ece", "ppv")]
    )
    further = results_view(replace(results, metrics=metrics)).protocols[0].further
    assert further is not None
    assert further.columns == ("Model", "positive predictive value", "Brier score", "calibration error")


def test_methods_tell_of_the_cards_and_of_transductive_use(make: SimpleNamespace, results: ResultsFolder) -> None:
    text = " ".join(methods(Material(results=[results]), "1").paragraphs)
    for part in ("regressed out of the features inside the folds", "fixed on other people", "audited for leaks"):
        assert part in text
    rows = results.predictions.assign(protocol="external-few-shot-5")
    other = pd.concat([rows, rows.assign(protocol="external")])
    declared = replace(results, predictions=other, settings={**results.settings, "transductive": True})
    text = " ".join(methods(Material(results=[declared]), "1").paragraphs)
    assert "(transductive)" in text and "adding a few people per class of the other cohort (5)" in text
    once = replace(results, settings={**results.settings, "n_repeats": 1})
    assert "by 4-fold cross-validation" in " ".join(methods(Material(results=[once]), "1").paragraphs)
