from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.audit.folds import audit_folds, fold_sides, open_folds
from openbrainmass.evaluation.splits import k_fold, people_of, site_held_out

Null = SimpleNamespace


def test_folds_of_evaluate_pass(null: Null, people: Cohort) -> None:
    of = people_of(people, null.task.labels(people))
    folds = [*k_fold(of, 5, 2, 0), *site_held_out(of)[0]]
    findings = audit_folds(people, null.task, folds, [])
    assert not [finding for finding in findings if finding.verdict == "refused"]
    told = next(finding.finding for finding in findings if finding.check == "site-on-both-sides")
    assert told == "Each of 3 folds that claim it tests new sites only."


def test_positions_of_folds_are_those_of_the_people_with_a_class(null: Null, people: Cohort) -> None:
    task = null.task.model_copy(update={"exclude": ("unclear",)})
    dx = people.participants["dx"].mask(np.arange(60) < 10, "unclear")
    cohort = Cohort(people.name, people.recordings, people.participants.assign(dx=dx), people.atlas, people.read)
    known = cohort.select(task.labels(cohort) >= 0)
    folds = k_fold(people_of(known, task.labels(known)), 5, 1, 0)
    sides = fold_sides(folds, cohort, task)
    assert sorted(np.concatenate([fold.test for fold in sides])) == list(range(10, 60))


def test_a_table_that_is_no_table_of_folds_is_an_error(null: Null, people: Cohort) -> None:
    table = null.fold_table(people, null.random_folds(60), by="participant_id")
    with pytest.raises(OpenBrainMassError, match="lacks repeat, side"):
        fold_sides(table.drop(columns=["repeat", "side"]), people, null.task)
    with pytest.raises(OpenBrainMassError, match="the side 'validation'"):
        fold_sides(table.assign(side="validation"), people, null.task)
    with pytest.raises(OpenBrainMassError, match="name nobody, which cohort null has not"):
        fold_sides(table.assign(participant_id="nobody"), people, null.task)


def test_a_claim_without_a_column_of_sites_is_refused(null: Null, people: Cohort) -> None:
    bare = Cohort(people.name, people.recordings, people.participants.drop(columns="site"), people.atlas, people.read)
    table = null.fold_table(bare, null.random_folds(60), "site-held-out")
    refused = [finding for finding in audit_folds(bare, null.task, table, []) if finding.verdict == "refused"]
    assert [finding.check for finding in refused] == ["site-on-both-sides"]


@pytest.mark.parametrize("column", ["protocol", "repeat", "fold", "participant_id", "recording_id", "side"])
def test_gaps_in_a_table_of_folds_are_an_error(null: Null, people: Cohort, column: str) -> None:
    table = null.fold_table(people, null.random_folds(60))
    gaps = table.assign(**{column: table[column].astype(object).mask(np.arange(len(table)) < 5)})
    with pytest.raises(OpenBrainMassError, match=f"rows without {column}"):
        audit_folds(people, null.task, gaps, [])


def test_folds_without_rows_or_without_a_side_are_an_error(null: Null, people: Cohort) -> None:
    table = null.fold_table(people, null.random_folds(60))
    with pytest.raises(OpenBrainMassError, match="has no rows"):
        audit_folds(people, null.task, table.head(0), [])
    with pytest.raises(OpenBrainMassError, match="The fold k-fold, repeat 0, fold 0 has no training people"):
        audit_folds(people, null.task, table[table["side"] == "test"], [])
    without = table[(table["side"] == "train") | (table["fold"] != 3)]
    with pytest.raises(OpenBrainMassError, match="The fold k-fold, repeat 0, fold 3 has no test people"):
        audit_folds(people, null.task, without, [])
    with pytest.raises(OpenBrainMassError, match="list of folds is empty"):
        open_folds([])
    # The two sides of an external fold are of two cohorts.
    external = table.assign(protocol="external")
    assert isinstance(open_folds(external), pd.DataFrame)
