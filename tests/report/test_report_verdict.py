"""The verdict says what the saved tables say, no more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from openbrainmass.report.checked import truth
from openbrainmass.report.folders import ResultsFolder, read_material
from openbrainmass.report.verdict import difference, protocol_words, protocols, role, scores, verdict


@pytest.fixture
def results(folders: dict[str, Path]) -> ResultsFolder:
    return read_material([folders["results"]]).results[0]


def made(make: SimpleNamespace, folder: Path, **options: object) -> ResultsFolder:
    return read_material([make.results(folder / "evaluation", **options)]).results[0]


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("chance", "control"),
        ("BrainMass, shuffled labels", "control"),
        ("edges + svm", "baseline"),
        ("tangent + logistic", "baseline"),
        ("BrainMass, untrained + svm", "baseline"),
        ("BrainMass + svm", "own"),
    ],
)
def test_role(model: str, expected: str) -> None:
    assert role(model) == expected


def test_held_out_sites_come_before_folds_and_few_shot_is_apart(results: ResultsFolder) -> None:
    assert protocols(results) == ["site-held-out", "k-fold"]


def test_scores_are_sorted_and_flags_are_read(results: ResultsFolder) -> None:
    table = scores(results, "k-fold")
    assert list(table["value"]) == sorted(table["value"], reverse=True)
    assert set(table.loc[table["saw_test_people"], "model"]) == {"BrainMass + logistic"}


def test_the_first_fair_model_is_judged(results: ResultsFolder) -> None:
    said = verdict(results)
    assert said is not None
    row = scores(results, "site-held-out").set_index("model").loc["BrainMass + svm"]
    assert said.model == "BrainMass + svm"
    assert f"AUC {row['value']:.2f}" in said.reached
    assert "patient from control" in said.reached and "48 people" in said.reached


@pytest.mark.parametrize(("skill", "judgement"), [(3.0, "better than"), (0.0, "worse than"), (1.2, "not better than")])
def test_judgement_follows_the_paired_test(make: SimpleNamespace, tmp_path: Path, skill: float, judgement: str) -> None:
    models = {"BrainMass + svm": skill, "edges + logistic": 1.2}
    found = made(make, tmp_path, skill=models, n_people=120, protocols=("site-held-out",), saw=())
    said = verdict(found)
    assert said is not None and said.judgement == judgement
    assert said.rival == "edges + logistic" and "corrected p" in said.evidence
    assert ("chance alone could give" in said.reached) == (skill == 0.0)


def test_a_later_better_model_is_named_but_not_chosen(make: SimpleNamespace, tmp_path: Path) -> None:
    models = {"BrainMass + svm": 0.5, "BrainMass + ridge": 2.5, "edges + svm": 0.5}
    said = verdict(made(make, tmp_path, skill=models, protocols=("k-fold",), saw=()))
    assert said is not None and said.model == "BrainMass + svm"
    assert any("BrainMass + ridge" in text and not warns for text, warns in said.remarks)


def test_a_model_that_saw_test_people_is_judged_only_with_a_warning(make: SimpleNamespace, tmp_path: Path) -> None:
    models = {"BrainMass + svm": 1.5, "edges + svm": 0.5}
    said = verdict(made(make, tmp_path, skill=models, saw=("BrainMass + svm",)))
    assert said is not None and said.model == "BrainMass + svm"
    assert any("had read scans of the test people" in text and warns for text, warns in said.remarks)


def test_skill_without_labels_is_called_a_leak(make: SimpleNamespace, tmp_path: Path) -> None:
    models = {"BrainMass + svm": 1.5, "BrainMass, shuffled labels": 2.0, "covariates + logistic": 3.0}
    said = verdict(made(make, tmp_path, skill=models, saw=()))
    assert said is not None
    warned = [text for text, warns in said.remarks if warns]
    assert any("leaks" in text for text in warned)
    assert any(text.startswith("Covariates") for text in warned)


@pytest.mark.parametrize(
    ("models", "told"),
    [
        ({"edges + svm": 1.0, "chance": None}, "No pretrained model"),
        ({"chance": None}, "No pretrained model"),
        ({"BrainMass + svm": 1.0, "chance": None}, "No baseline"),
    ],
)
def test_what_is_missing_is_said(
    make: SimpleNamespace, tmp_path: Path, models: dict[str, float | None], told: str
) -> None:
    said = verdict(made(make, tmp_path, skill=models, protocols=("k-fold",), saw=()))
    assert said is not None and told in said.evidence and said.judgement == ""


def test_no_auc_no_verdict(results: ResultsFolder) -> None:
    assert verdict(replace(results, metrics=results.metrics[results.metrics["metric"] != "auc"])) is None


def test_difference_is_the_saved_one_in_either_direction(results: ResultsFolder) -> None:
    row = results.comparisons.query("protocol == 'k-fold' and reference == 'edges + logistic'").iloc[0]
    forth = difference(results, "k-fold", str(row["model"]), "edges + logistic")
    back = difference(results, "k-fold", "edges + logistic", str(row["model"]))
    assert forth == (row["difference"], row["low"], row["high"], row["p_corrected"])
    assert back == (-row["difference"], -row["high"], -row["low"], row["p_corrected"])


def test_difference_that_was_not_saved_is_tested_from_the_predictions(results: ResultsFolder) -> None:
    bare = replace(results, comparisons=pd.DataFrame())
    saved = difference(results, "site-held-out", "BrainMass + svm", "edges + logistic")
    tested = difference(bare, "site-held-out", "BrainMass + svm", "edges + logistic")
    assert tested[:3] == pytest.approx(saved[:3])


def test_an_unknown_protocol_has_words() -> None:
    assert protocol_words("bootstrap-hold-out").title == "Bootstrap-hold-out"


def test_truth_reads_every_spelling() -> None:
    assert list(truth(pd.Series(["True", "false", True, 1, 0]))) == [True, False, True, True, False]
