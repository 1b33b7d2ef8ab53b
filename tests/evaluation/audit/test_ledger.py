from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openbrainmass.durable import write_text
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.audit.ledger import (
    LOOK_COLUMNS,
    audit_looks,
    expected_best_auc,
    ledger_path,
    looks,
    record_look,
)


def test_the_identical_evaluation_is_one_look(tmp_path: Path) -> None:
    store = tmp_path / "abide"
    assert record_look(store, "asd", ["k-fold"], {"a": "SVC()"}, 40, {"seed": 0})
    assert not record_look(store, "asd", ["k-fold"], {"a": "SVC()"}, 40, {"seed": 0})
    assert record_look(store, "asd", ["k-fold"], {"a": "SVC(C=2)"}, 40, {"seed": 0})
    assert record_look(store, "asd", ["k-fold"], {"a": "SVC()"}, 40, {"seed": 1})
    assert record_look(store, "sex", ["k-fold"], {"a": "SVC()", "b": "SVC(C=2)"}, 40, {"seed": 0})
    table = looks(store)
    assert tuple(table.columns) == LOOK_COLUMNS
    assert list(table["n_models"]) == [1, 1, 1, 2]
    assert len(looks(store, "asd")) == 3
    assert ledger_path(store) == tmp_path / "abide.looks.tsv"
    assert {path.name for path in tmp_path.iterdir()} <= {"abide.looks.tsv", ".abide.looks.tsv.lock"}


def test_looks_at_the_same_time_are_all_recorded(tmp_path: Path) -> None:
    def look(number: int) -> bool:
        return record_look(tmp_path / "store", "asd", ["k-fold"], {"a": number % 12}, 40)

    with ThreadPoolExecutor(8) as pool:
        new = list(pool.map(look, range(24)))
    assert sum(new) == len(looks(tmp_path / "store")) == 12


@given(st.integers(1, 200), st.integers(5, 400), st.integers(5, 400))
def test_the_best_of_more_models_and_of_fewer_people_is_better(n: int, n_positive: int, n_negative: int) -> None:
    best = expected_best_auc(n, n_positive, n_negative)
    assert 0.5 - 1e-9 <= best <= expected_best_auc(n + 1, n_positive, n_negative) <= 1
    assert expected_best_auc(n, n_positive + 50, n_negative) <= best + 1e-12


def test_the_expected_best_is_that_of_simulated_models_without_skill() -> None:
    rng = np.random.default_rng(0)
    y = np.arange(80) % 2 == 1
    # The AUC of ranks is the rank sum.
    ranks = rng.random((20_000, 80)).argsort(axis=1).argsort(axis=1)
    aucs = (ranks[:, y].sum(axis=1) - 40 * 39 / 2) / 1600
    for n_models in (1, 5, 40):
        best = aucs[: 20_000 // n_models * n_models].reshape(-1, n_models).max(axis=1)
        assert expected_best_auc(n_models, 40, 40) == pytest.approx(best.mean(), abs=3e-3)
    assert expected_best_auc(0, 40, 40) == 0.5


def test_one_model_is_no_choice_and_a_damaged_ledger_is_no_empty_one(tmp_path: Path) -> None:
    record_look(tmp_path / "store", "asd", ["k-fold"], {"a": 1}, 40)
    finding = audit_looks(tmp_path / "store", "asd", 20, 20)
    assert finding.verdict == "passed"
    assert finding.finding.startswith("1 evaluation of asd with 1 model is in the ledger of store;")
    write_text(ledger_path(tmp_path / "store"), "time\ttask\n")
    with pytest.raises(OpenBrainMassError, match="lacks protocols"):
        looks(tmp_path / "store")
    with pytest.raises(OpenBrainMassError, match="lacks protocols"):
        record_look(tmp_path / "store", "asd", ["k-fold"], {"a": 2}, 40)
