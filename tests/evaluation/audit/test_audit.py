from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.durable import write_tsv
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.audit.audit import audit, check_list
from openbrainmass.evaluation.audit.checks import AUDIT_COLUMNS, CHECKS, VERDICTS, Finding, refuse, verdict_table
from openbrainmass.evaluation.audit.labels import audit_labels
from openbrainmass.evaluation.audit.ledger import record_look
from openbrainmass.evaluation.tasks import Task

Null = SimpleNamespace


def _verdict(table: object, check: str) -> str:
    return table.set_index("check").loc[check, "verdict"]  # type: ignore[attr-defined]


def _told(table: object, check: str) -> str:
    return table.set_index("check").loc[check, "finding"]  # type: ignore[attr-defined]


def test_an_audit_has_every_check_and_says_what_those_not_done_need(null: Null, people: Cohort) -> None:
    table = audit(people, null.task)
    assert tuple(table.columns) == AUDIT_COLUMNS
    assert list(table["check"]) == list(CHECKS)
    assert set(table["verdict"]) <= set(VERDICTS)
    assert table["finding"].str.len().min() > 0
    assert "(--folds)" in table.set_index("check").loc["test-is-train", "finding"]
    assert not (table["verdict"] == "refused").any()
    refuse(table)
    assert check_list().count("\n") == len(CHECKS) - 1


def test_everything_that_is_given_is_checked(null: Null, people: Cohort, tmp_path: Path) -> None:
    folds = null.fold_table(people, null.random_folds(60), by="participant_id")
    write_tsv(tmp_path / "folds.tsv", folds)
    write_tsv(tmp_path / "features.tsv", null.features_of(null.edges_of(people), people))
    record_look(tmp_path / "store", null.task.name, ["k-fold"], {"edges": "edges"}, 60)
    other = null.cohort_of(["a", "b", "c", "d"], [null.bold_of(number) for number in range(300, 304)], name="other")
    table = audit(
        people,
        null.task,
        folds=tmp_path / "folds.tsv",
        features=tmp_path / "features.tsv",
        models={"edges": null.linear()},
        seen=frozenset({"a-hash"}),
        pretrained_on=other,
        store=tmp_path / "store",
    )
    undone = set(table["check"][table["verdict"] == "not checked"])
    assert undone == {
        "tuned-on-test", "threshold-on-test", "epoch-on-test", "statistics-of-test", "twins-across-folds",
    }  # fmt: skip
    assert not (table["verdict"] == "refused").any()


def test_people_and_scans_of_a_test_cohort_that_trained_are_refused(null: Null, people: Cohort) -> None:
    strangers = [null.bold_of(number) for number in range(400, 420)]
    names = [f"t{number}" for number in range(20)]
    clean = null.cohort_of(names, strangers, name="test")
    assert not (audit(people, null.task, test_cohort=clean)["verdict"] == "refused").any()
    altered = null.cohort_of(names, [5 - 3 * people[0], *strangers[1:]], name="test")
    assert _verdict(audit(people, null.task, test_cohort=altered), "near-duplicates") == "refused"
    copied = null.cohort_of(names, [people[0], *strangers[1:]], name="test")
    table = audit(people, null.task, test_cohort=copied)
    assert _verdict(table, "test-is-train") == _verdict(table, "duplicates") == "refused"
    with pytest.raises(OpenBrainMassError, match="refuses 2 of 30 checks \\(test-is-train, duplicates\\)"):
        refuse(table)


def test_the_gravest_finding_of_a_check_holds() -> None:
    table = verdict_table(
        [Finding("duplicates", "passed", "Here none."), Finding("duplicates", "refused", "There one."),
         Finding("duplicates", "refused", "There another.")]
    )  # fmt: skip
    assert table.set_index("check").loc["duplicates"].to_list() == ["refused", "There one. There another."]
    with pytest.raises(KeyError):
        verdict_table([Finding("an unknown leak", "passed", "")])


def test_findings_of_a_procedure_stand_in_the_same_table(null: Null, people: Cohort) -> None:
    table = audit(people, null.task, findings=[Finding("epoch-on-test", "refused", "Proved.")])
    assert _verdict(table, "epoch-on-test") == "refused"
    assert np.array_equal(table["check"], list(CHECKS))


def test_a_task_of_numbers_is_audited(null: Null, people: Cohort) -> None:
    months = 12 * people.participants["age"]
    cohort = Cohort(
        people.name, people.recordings, people.participants.assign(months=months), people.atlas, people.read
    )
    task = Task(name="age", kind="regression", target="age", covariates=("sex", "months"))
    table = audit(cohort, task, features=null.features_of(null.edges_of(people), people), store="no-such-store")
    refused = table.set_index("check")["finding"][list(table["verdict"] == "refused")]
    assert list(refused.index) == ["label-as-feature"]
    assert "months follows the label" in refused["label-as-feature"]
    assert "a correlation of" in table.set_index("check").loc["motion-predicts-label", "finding"]
    assert _verdict(table, "repeated-looks") == "not checked"


def test_the_ledger_of_a_test_cohort_is_that_of_its_own_task(null: Null, people: Cohort, tmp_path: Path) -> None:
    about = {"participant_id": [f"t{number}" for number in range(20)], "dx": ["adhd", "none"] * 10}
    scans = [null.bold_of(number) for number in range(500, 520)]
    other = null.cohort_of(about["participant_id"], scans, pd.DataFrame(about), name="adhd")
    task = Task(name="adhd", target="dx", positive=("adhd",), negative=("none",))
    record_look(tmp_path / "adhd", "adhd", ["external"], {"a": 1, "b": 2}, 20)
    stores = {"store": tmp_path / "null", "test_store": tmp_path / "adhd"}
    table = audit(people, null.task, test_cohort=other, test_task=task, **stores)
    assert _verdict(table, "repeated-looks") == "floor"
    assert "1 evaluation of adhd with 2 models is in the ledger of adhd" in _told(table, "repeated-looks")
    record_look(tmp_path / "null", null.task.name, ["k-fold"], {"a": 1, "b": 2, "c": 3}, 60)
    told = _told(audit(people, null.task, test_cohort=other, test_task=task, **stores), "repeated-looks")
    assert "with 3 models is in the ledger of null" in told and "with 2 models is in the ledger of adhd" in told


def test_what_is_given_for_a_test_cohort_needs_one_of_the_same_kind(null: Null, people: Cohort) -> None:
    external = null.fold_table(people, null.random_folds(60), "external-few-shot-5")
    age = Task(name="age", kind="regression", target="age")
    other = null.cohort_of(["a", "b", "c", "d"], [null.bold_of(number) for number in range(300, 304)], name="other")
    for given, told in (
        ({"test_task": null.task}, "The task null is for a test cohort"),
        ({"test_store": "adhd"}, "The store adhd is for a test cohort"),
        ({"folds": external}, "Folds \\(external-few-shot-5\\) are for a test cohort, and none was given"),
        ({"test_task": age, "test_cohort": other}, "null is a classification and age, that of the test cohort, a regr"),
    ):
        with pytest.raises(OpenBrainMassError, match=told):
            audit(people, null.task, **given)


def test_names_and_floors_of_the_test_cohort_are_audited_too(null: Null, people: Cohort) -> None:
    names = [f"{'patient' if label else 'control'}{row}" for row, label in enumerate(null.labels_of(20))]
    other = null.cohort_of(names, [null.bold_of(number) for number in range(400, 420)], name="other")
    table = audit(people, null.task, test_cohort=other)
    assert list(table["check"][table["verdict"] == "refused"]) == ["file-name-spells-label"]
    assert _told(table, "file-name-spells-label").startswith("In other: ")
    few = null.cohort_of(["x", "y", "z"], [null.bold_of(number) for number in (500, 501, 502)], name="few")
    findings = audit_labels(few, null.task)
    assert {finding.verdict for finding in findings} == {"not checked"}
    assert "At least 2 people of each class are needed, and few has only 1." in findings[0].finding


def test_many_copies_between_cohorts_are_told_briefly_and_refused_by_name(null: Null, people: Cohort) -> None:
    scans = [people[row] for row in range(12)]
    again = null.cohort_of([f"t{number}" for number in range(12)], scans, name="again")
    table = audit(people, null.task, test_cohort=again)
    assert "and 9 more" in _told(table, "duplicates") and _told(table, "duplicates").count("identical") == 3
    with pytest.raises(OpenBrainMassError) as stopped:
        refuse(table)
    assert "duplicates" in str(stopped.value) and "identical" not in str(stopped.value)


def test_folds_that_test_another_cohort_are_audited_where_they_belong(null: Null, people: Cohort) -> None:
    names = [f"t{number}" for number in range(20)]
    strangers = [null.bold_of(number) for number in range(600, 619)]
    other = null.cohort_of(names, [people[0], *strangers], name="test")
    external = null.fold_table(people, [(np.arange(1, 60), [])], "external", "participant_id")
    tested = null.fold_table(other, [([], np.arange(20))], "external", "participant_id")
    crossing = null.fold_table(other, [(np.arange(4), np.arange(2, 20))], "external-few-shot-2", "participant_id")
    table = audit(people, null.task, test_cohort=other, folds=pd.concat([external, tested]))
    # The one whom both cohorts have does not train.
    assert not (table["verdict"] == "refused").any()
    table = audit(people, null.task, test_cohort=other, folds=pd.concat([external, tested, crossing]))
    assert list(table["check"][table["verdict"] == "refused"]) == ["test-is-train"]
