from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.permutation import PERMUTATION_COLUMNS, permutation_test
from openbrainmass.evaluation.results import Results


def rows(score: np.ndarray, y: np.ndarray, model: str, *, site: np.ndarray | str = "A", **more: Any) -> pd.DataFrame:
    table = {
        "protocol": "external", "repeat": 0, "fold": 0, "model": model, "site": site, "y_true": y, "y_score": score,
        "y_pred": (score > 0).astype(int), "saw_test_people": False, "n_train": 80,
        "participant_id": [f"p{number:03d}" for number in range(len(y))],
    }  # fmt: skip
    return pd.DataFrame(table).assign(**more)


def noise(seed: int, n: int = 40) -> tuple[np.ndarray, np.ndarray]:
    return np.random.default_rng(seed).normal(size=n), np.tile([0, 1], n // 2)


def test_labels_permuted_are_the_rank_test_of_a_fixed_model() -> None:
    score, y = noise(3, 60)
    score = score + 0.5 * y
    found = permutation_test(Results(rows(score, y, "a"), {}), "a", n_permutations=2000).iloc[0]
    exact = stats.mannwhitneyu(score[y == 1], score[y == 0], method="asymptotic", use_continuity=False)
    assert found["value"] == pytest.approx(exact.statistic / 900) and found["expected"] == pytest.approx(0.5, abs=0.01)
    assert found["p"] == pytest.approx(exact.pvalue, abs=0.03)
    assert tuple(found.index) == PERMUTATION_COLUMNS and found["test"] == "labels permuted"


def test_telling_sites_apart_is_no_merit() -> None:
    _, y = noise(0, 80)
    rng = np.random.default_rng(1)
    site = np.where((y == 1) ^ (rng.random(80) < 0.1), "A", "B")
    table = rows((site == "A") + 0.01 * rng.normal(size=80), y, "a", site=site)
    found = permutation_test(Results(table, {}), "a", n_permutations=200).iloc[0]
    assert found["value"] > 0.8 and found["expected"] > 0.8 and found["p"] > 0.05
    assert found["test"] == "labels permuted within sites"
    assert permutation_test(Results(table.assign(site=""), {}), "a", n_permutations=200)["p"].iloc[0] < 0.01


def test_swapping_finds_a_better_model_and_nothing_between_equals() -> None:
    score, y = noise(1, 100)
    good, other = rows(10 * (score + 3 * y), y, "good"), rows(noise(2, 100)[0], y, "other")
    found = permutation_test(Results(pd.concat([good, other]), {}), "good", "other", n_permutations=300).iloc[0]
    assert found["p"] == pytest.approx(1 / 301) and found["expected"] == pytest.approx(0, abs=0.02)
    # Another unit of the decision values changes nothing, and a model does not differ from itself.
    same = pd.concat([good, good.assign(model="other", y_score=good["y_score"] / 7 - 2)])
    assert permutation_test(Results(same, {}), "good", "other", n_permutations=50)["p"].iloc[0] == 1


def test_false_positives_of_swaps_are_those_promised() -> None:
    p = []
    for seed in range(100):
        score, y = noise(seed)
        table = pd.concat([rows(score, y, "a"), rows(noise(seed + 9999)[0], y, "b")])
        p.append(permutation_test(Results(table, {}), "a", "b", n_permutations=19)["p"].iloc[0])
    assert stats.binomtest(int((np.array(p) <= 0.05).sum()), 100, 0.05).pvalue > 0.001


def test_cross_validation_is_stretched_and_other_metrics_and_regressions_have_a_test() -> None:
    score, y = noise(5, 40)
    score = score + 0.8 * y
    fold = np.arange(40) // 2 % 5
    both = pd.concat([rows(score, y, "a"), rows(score, y, "a", protocol="k-fold", fold=fold, n_train=32)])
    table = permutation_test(Results(both, {}), "a", metric="accuracy", n_permutations=400)
    external, folds = (table[table["protocol"] == name].iloc[0] for name in ("external", "k-fold"))
    assert folds["value"] == external["value"] and folds["p"] > external["p"]
    assert folds["test"] == "labels permuted, corrected for overlap"
    values = rows(score, score + 0.1 * noise(6)[0], "a").assign(y_pred=score)
    numbers = Results(values, {"task": {"kind": "regression"}})
    assert permutation_test(numbers, "a", n_permutations=100).iloc[0][["metric", "p"]].tolist() == ["r2", 1 / 101]


def test_an_unknown_model_is_refused() -> None:
    results = Results(rows(*noise(0), "a"), {})
    with pytest.raises(OpenBrainMassError, match="no model 'x' in these results; they have a"):
        permutation_test(results, "a", "x")
    assert permutation_test(results, "a", metric="auc_site_mean").empty
