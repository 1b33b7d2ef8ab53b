"""Features of a table: the right rows, nothing of the label, and no claim about whom their maker had met."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.durable import write_tsv
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.evaluate import evaluate
from openbrainmass.evaluation.features import TableFeatures
from openbrainmass.evaluation.tasks import Task

MakeCohort = Callable[..., Cohort]


def table_of(cohort: Cohort, n: int = 3, **more: object) -> pd.DataFrame:
    values = np.random.default_rng(0).standard_normal((len(cohort), n))
    table = pd.DataFrame({"recording_id": cohort.recordings["recording_id"], **more})
    return table.join(pd.DataFrame(values, columns=[f"f{i}" for i in range(n)]))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), n_kept=st.integers(1, 40))
def test_rows_follow_the_cohort_whatever_the_order_of_the_table(
    seed: int, n_kept: int, make_cohort: MakeCohort
) -> None:
    cohort = make_cohort()
    table = table_of(cohort)
    kept = np.random.default_rng(seed).permutation(len(cohort))[:n_kept]
    shuffled = table.sample(frac=1, random_state=seed)
    found = TableFeatures(shuffled).transform(cohort.select(kept))
    np.testing.assert_array_equal(found, table[["f0", "f1", "f2"]].to_numpy()[kept])


def test_a_file_gives_what_the_table_gives(make_cohort: MakeCohort, tmp_path: Path) -> None:
    cohort = make_cohort()
    write_tsv(tmp_path / "theirs.tsv", table_of(cohort))
    features = TableFeatures.of_cohort(tmp_path / "theirs.tsv", cohort)
    np.testing.assert_allclose(features.transform(cohort), TableFeatures(table_of(cohort)).transform(cohort))
    assert list(features.get_feature_names_out()) == ["f0", "f1", "f2"]


def test_embedding_columns_alone_are_taken_from_a_table_of_embeddings(make_cohort: MakeCohort) -> None:
    cohort = make_cohort()
    table = cohort.table.assign(e0=1.0, e1=range(len(cohort)))
    np.testing.assert_array_equal(TableFeatures(table).transform(cohort)[:, 1], np.arange(len(cohort)))


def test_every_row_is_marked_while_nobody_knows_whom_the_maker_met(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=20)
    task = Task.from_cohort(cohort)
    some = frozenset().union(*cohort.select([0, 1, 2]).identities())
    models = {
        name: make_pipeline(TableFeatures(table_of(cohort), seen=seen), LogisticRegression())
        for name, seen in {"unknown": "unknown", "nobody": "nobody", "three": some}.items()
    }
    table = evaluate(models, cohort, task, protocols=["k-fold"], n_folds=2, n_repeats=1).predictions
    marked = {name: set(rows.loc[rows["saw_test_people"], "participant_id"]) for name, rows in table.groupby("model")}
    assert len(marked["unknown"]) == 20
    assert marked["nobody"] == set()
    assert marked["three"] == {"p000", "p001", "p002"}


def test_a_copy_keeps_what_was_said(make_cohort: MakeCohort) -> None:
    features = clone(TableFeatures(table_of(make_cohort()), seen="nobody"))
    assert features.seen_identities == frozenset()


def test_an_unknown_word_for_who_was_seen_is_refused(make_cohort: MakeCohort) -> None:
    with pytest.raises(OpenBrainMassError, match="seen='none'"):
        _ = TableFeatures(table_of(make_cohort()), seen="none").seen_identities


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda table: table.iloc[1:], "no row of 1 recordings"),
        (lambda table: pd.concat([table, table.iloc[:1]]), "several rows of the recording p000-0"),
        (lambda table: table.drop(columns="recording_id"), "no column recording_id"),
        (lambda table: table[["recording_id"]], "no column but recording_id"),
        (lambda table: table.assign(f1=np.where(table["f1"] > 0, table["f1"], np.nan)), "no finite number for f1"),
        (lambda table: table.assign(f1="high"), "no finite number for f1"),
        (lambda table: table.assign(age=20), "age of The table of features is also a column of cohort toy"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(
    change: Callable[[pd.DataFrame], pd.DataFrame], told: str, make_cohort: MakeCohort
) -> None:
    cohort = make_cohort()
    with pytest.raises(OpenBrainMassError, match=told):
        TableFeatures(change(table_of(cohort))).transform(cohort)


def test_rows_of_other_recordings_and_the_label_are_refused(make_cohort: MakeCohort, tmp_path: Path) -> None:
    cohort = make_cohort()
    write_tsv(tmp_path / "more.tsv", table_of(cohort))
    with pytest.raises(OpenBrainMassError, match=r"1 rows of recordings that cohort toy does not have \(p000-0"):
        TableFeatures.of_cohort(tmp_path / "more.tsv", cohort.select(range(1, len(cohort))))
    write_tsv(tmp_path / "label.tsv", table_of(cohort, dx=np.arange(len(cohort)) % 2))
    with pytest.raises(OpenBrainMassError, match="The feature dx"):
        TableFeatures.of_cohort(tmp_path / "label.tsv", cohort)


def test_columns_that_were_named_are_taken_and_must_be_there(make_cohort: MakeCohort) -> None:
    cohort = make_cohort()
    assert TableFeatures(table_of(cohort), columns=["f2"]).transform(cohort).shape == (len(cohort), 1)
    with pytest.raises(OpenBrainMassError, match="no column f9"):
        TableFeatures(table_of(cohort), columns=["f9"]).transform(cohort)


def test_only_cohorts_have_recordings_to_look_up(make_cohort: MakeCohort) -> None:
    cohort = make_cohort()
    with pytest.raises(OpenBrainMassError, match="given list"):
        TableFeatures(table_of(cohort)).transform([cohort[0]])  # pyright: ignore[reportArgumentType]
