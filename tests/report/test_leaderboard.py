"""The leaderboard: only what was tested alike is ranked, ties are ties, and nothing is taken on trust."""

from __future__ import annotations

import re
import runpy
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from openbrainmass.durable import read_json, read_tsv, write_json, write_tsv
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.results import Results
from openbrainmass.report.leaderboard import RANK_COLUMNS, write_leaderboard
from openbrainmass.report.long_table import LONG_COLUMNS, long_table

SKILL: Mapping[str, float | None] = {"ours": 1.6, "edges + logistic": 1.5, "covariates + logistic": 0.2, "chance": None}


@pytest.fixture(scope="module")
def one(make: SimpleNamespace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    return make.results(root / "one", 100, skill=SKILL, protocols=("site-held-out",), saw=())


def ranks(out: Path) -> pd.DataFrame:
    return read_tsv(out.with_name(f"{out.stem}_ranks.tsv")).set_index("model")


def entered(folder: Path, out: Path, skill: Mapping[str, float], seed: int = 5, **changes: object) -> Path:
    """A folder of the same people and folds as another one, with models of its own."""
    base = Results.load(folder)
    rows = base.predictions[base.predictions["model"] == "chance"]
    rng = np.random.default_rng(seed)
    parts = []
    for name, distance in skill.items():
        score = distance * (rows["y_true"] - 0.5) + rng.standard_normal(len(rows))
        parts.append(rows.assign(model=name, y_score=score, y_pred=(score > 0).astype(int), **changes))
    Results(pd.concat(parts), base.settings).save(out)
    return out


def test_long_table_has_every_metric_of_every_folder(one: Path, make: SimpleNamespace, tmp_path: Path) -> None:
    other = make.results(tmp_path / "other", 24, skill=SKILL, protocols=("k-fold", "few-shot-2"), seed=3)
    table = long_table([one, other])
    assert tuple(table.columns) == LONG_COLUMNS
    assert len(table) == len(read_tsv(one / "metrics.tsv")) + len(read_tsv(other / "metrics.tsv"))
    assert set(table["task"]) == {"simulated-dx"}
    assert set(table.loc[table["results"] == "other", "seed"]) == {3}


def test_provenance_of_each_row_is_told(one: Path, tmp_path: Path) -> None:
    folder = entered(one, tmp_path / "told", {"new": 1.0})
    settings = read_json(folder / "settings.json")
    facts = {"cohort": {"name": "abide"}, "test_cohort": {"name": "cni"}, "test_task": {"name": "adhd"}}
    told = {"looks": 7, "software": {"openbrainmass": "9"}}
    write_json(folder / "settings.json", settings | facts | told)
    for name in ("predictions", "metrics"):
        write_tsv(folder / f"{name}.tsv", read_tsv(folder / f"{name}.tsv").assign(protocol="external"))
    table = long_table([folder])
    row = table[table["metric"] == "auc"].iloc[0]
    assert (row["task"], row["dataset"]) == ("simulated-dx > adhd", "abide > cni")
    assert (row["looks"], row["version"]) == (7, "9")


def test_models_that_the_test_does_not_tell_apart_are_tied(one: Path, tmp_path: Path) -> None:
    write_leaderboard([one], tmp_path / "board.html")
    table = ranks(tmp_path / "board.html")
    assert list(table.columns) == [name for name in RANK_COLUMNS if name != "model"]
    assert table.loc["ours", "rank"] == table.loc["edges + logistic", "rank"] == 1
    assert table.loc["covariates + logistic", "rank"] == 3
    follower = "ours" if table.loc["ours", "against"] == "edges + logistic" else "edges + logistic"
    assert table.loc[follower, "p_corrected"] >= 0.05
    assert table.loc["chance", "standing"] == "control" and pd.isna(table.loc["chance", "rank"])


def test_what_the_page_says_of_floors_is_what_the_ranks_say(one: Path, tmp_path: Path) -> None:
    page = write_leaderboard([one], tmp_path / "tied.html").read_text()
    assert "ours is not told from the best floor, edges + logistic" in page
    assert "the best model entered is not better than the best floor" in page
    weak = Results.load(one)
    rows = weak.predictions[weak.predictions["model"] != "ours"]
    Results(rows.replace({"model": {"covariates + logistic": "weak"}}), weak.settings).save(tmp_path / "weak")
    page = write_leaderboard([tmp_path / "weak"], tmp_path / "weak.html").read_text()
    assert "No model entered reaches the best floor, edges + logistic" in page


def test_points_of_a_few_shot_curve_are_folded_away(make: SimpleNamespace, tmp_path: Path) -> None:
    make.results(tmp_path / "shots", 24, skill={"ours": 1.0}, protocols=("site-held-out", "few-shot-2"))
    page = write_leaderboard([tmp_path / "shots"], tmp_path / "board.html").read_text()
    assert page.count("<details>") == 1 and page.count("</details>") == 1


def test_a_folder_of_the_same_folds_enters_the_same_board(one: Path, tmp_path: Path) -> None:
    other = entered(one, tmp_path / "two", {"strong": 4.0, "edges + logistic": 1.0})
    write_leaderboard([one, other], tmp_path / "board.html")
    table = ranks(tmp_path / "board.html")
    assert table["folds"].nunique() == 1
    assert table.loc["strong", "rank"] == 1 and table.loc["strong", "results"] == "two"
    assert table.loc["ours", "rank"] > 1
    assert "edges + logistic [two]" in table.index
    assert "strong is better than every floor" in (tmp_path / "board.html").read_text()


def test_the_same_predictions_count_once(one: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    Results.load(one).save(again)
    write_leaderboard([one, again], tmp_path / "board.html")
    assert ranks(tmp_path / "board.html").index.is_unique
    assert "In again too, with the same predictions: ours, edges" in (tmp_path / "board.html").read_text()


@pytest.mark.parametrize("change", ["fold", "label", "people", "training"])
def test_other_folds_labels_or_people_are_never_ranked_together(change: str, one: Path, tmp_path: Path) -> None:
    results = Results.load(one)
    rows = results.predictions.copy()
    if change == "fold":
        rows["fold"] = (rows["fold"] + rows.groupby("model").cumcount()) % 2
    elif change == "label":
        rows["y_true"] = np.where(rows["participant_id"] == "sub-000", 1 - rows["y_true"], rows["y_true"])
    elif change == "people":
        rows = rows[rows["participant_id"] != "sub-000"]
    else:
        rows["n_train"] -= 1
    Results(rows.assign(model="new: " + rows["model"]), results.settings).save(tmp_path / "other")
    write_leaderboard([one, tmp_path / "other"], tmp_path / "board.html")
    table = ranks(tmp_path / "board.html")
    assert table["folds"].nunique() == 2
    assert table.groupby("folds")["rank"].min().eq(1).all()
    assert (tmp_path / "board.html").read_text().count("never compare across them") == 2


def test_handed_over_training_sides_are_part_of_the_digest(one: Path, tmp_path: Path) -> None:
    digests = []
    for place, trained in enumerate(("sub-001", "sub-002", "sub-001")):
        results = Results.load(one)
        rows = [("site-held-out", 0, 0, trained, "train")]
        folds = pd.DataFrame(rows, columns=["protocol", "repeat", "fold", "participant_id", "side"])
        Results(results.predictions, results.settings, {"folds": folds}).save(tmp_path / str(place))
        digests.append(set(long_table([tmp_path / str(place)])["folds"]))
    assert digests[0] == digests[2] != digests[1]


def test_what_met_test_people_has_no_rank(one: Path, tmp_path: Path) -> None:
    other = entered(one, tmp_path / "leaky", {"leaky": 6.0}, saw_test_people=True)
    write_leaderboard([one, other], tmp_path / "board.html")
    table = ranks(tmp_path / "board.html")
    assert table.loc["leaky", "standing"] == "saw test people" and pd.isna(table.loc["leaky", "rank"])
    assert table.loc[["ours", "edges + logistic"], "rank"].eq(1).all()
    assert "not ranked: met test people" in (tmp_path / "board.html").read_text()


@pytest.mark.parametrize("column", ["value", "saw_test_people"])
def test_a_metric_that_does_not_follow_from_the_predictions_is_refused(column: str, one: Path, tmp_path: Path) -> None:
    folder = entered(one, tmp_path / "edited", {"new": 1.0}, saw_test_people=True)
    table = read_tsv(folder / "metrics.tsv")
    table[column] = 0.999 if column == "value" else False
    write_tsv(folder / "metrics.tsv", table)
    with pytest.raises(OpenBrainMassError, match=r"of new in site-held-out.*It was edited"):
        write_leaderboard([folder], tmp_path / "board.html")


def test_a_model_without_a_saved_metric_is_refused(one: Path, tmp_path: Path) -> None:
    folder = entered(one, tmp_path / "short", {"new": 1.0, "old": 1.0})
    table = read_tsv(folder / "metrics.tsv")
    write_tsv(folder / "metrics.tsv", table[table["model"] != "old"])
    with pytest.raises(OpenBrainMassError, match="no auc of old in site-held-out"):
        long_table([folder])


def test_wrong_folders_are_named(one: Path, tmp_path: Path) -> None:
    with pytest.raises(OpenBrainMassError, match="No results folder was given"):
        write_leaderboard([], tmp_path / "board.html")
    with pytest.raises(OpenBrainMassError, match="given twice"):
        write_leaderboard([one, one], tmp_path / "board.html")
    with pytest.raises(OpenBrainMassError, match="does not exist"):
        write_leaderboard([tmp_path / "nothing"], tmp_path / "board.html")
    with pytest.raises(OpenBrainMassError, match="is a folder"):
        write_leaderboard([one], tmp_path)
    with pytest.raises(OpenBrainMassError, match="a name of a table"):
        write_leaderboard([one], tmp_path / "board.tsv")


def test_folders_of_one_name_are_told_apart(one: Path, tmp_path: Path) -> None:
    for group in ("a", "b"):
        entered(one, tmp_path / group / "results", {f"model {group}": 1.0})
    table = long_table([tmp_path / "a" / "results", tmp_path / "b" / "results"])
    assert set(table["results"]) == {"a/results", "b/results"}


def test_regression_is_ranked_by_explained_variance(one: Path, tmp_path: Path) -> None:
    base = Results.load(one)
    rows = base.predictions[base.predictions["model"] == "chance"].reset_index(drop=True)
    rng = np.random.default_rng(0)
    age = rng.normal(40, 10, len(rows))
    parts = [
        rows.assign(model=name, y_true=age, y_score=guess, y_pred=guess)
        for name, guess in {
            "good": age + rng.normal(0, 3, len(rows)),
            "edges + ridge": np.full(len(rows), 40.0),
        }.items()
    ]
    settings = base.settings | {"task": {"name": "age", "title": "Age", "kind": "regression"}}
    Results(pd.concat(parts), settings).save(tmp_path / "age")
    write_leaderboard([tmp_path / "age"], tmp_path / "board.html")
    table = ranks(tmp_path / "board.html")
    assert list(table.loc[["good", "edges + ridge"], "rank"]) == [1, 2]
    page = (tmp_path / "board.html").read_text()
    assert "R²" in page and "dashed line: what the mean of the tested people themselves would give" in page


def test_tasks_of_one_title_are_told_apart_by_their_cohorts(one: Path, tmp_path: Path) -> None:
    base = Results.load(one)
    rows = base.predictions[base.predictions["model"] == "chance"]
    folders = []
    for cohort in ("abide", "cni"):
        task = {**base.settings["task"], "name": f"{cohort}-dx", "title": "patient against control"}
        Results(rows, {"task": task, "cohort": {"name": cohort}}).save(tmp_path / cohort)
        folders.append(tmp_path / cohort)
    page = write_leaderboard(folders, tmp_path / "board.html").read_text()
    for place, cohort in enumerate(("abide", "cni")):
        assert f'<a href="#task-{place}">patient against control ({cohort})</a>' in page
    page = write_leaderboard(folders[:1], tmp_path / "alone.html").read_text()
    assert '<a href="#task-0">patient against control</a>' in page


def test_sample_results_have_the_same_folds_for_every_model(one: Path, make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.results(tmp_path / "folds", 48, skill=SKILL, protocols=("k-fold",), saw=())
    for sample, n_repeats in ((folder, 3), (one, 1)):
        assert long_table([sample]).groupby("protocol")["folds"].nunique().eq(1).all()
        rows = Results.load(sample).predictions
        assert rows.groupby(["model", "participant_id"]).size().eq(n_repeats).all()


class _Addresses(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if name in ("src", "href") and value]


def test_page_asks_no_other_address_and_shows_foreign_text_as_text(one: Path, tmp_path: Path) -> None:
    other = entered(one, tmp_path / "evil", {"<script>alert(1)</script>": 1.0})
    page = write_leaderboard([one, other], tmp_path / "board.html").read_text()
    parser = _Addresses()
    parser.feed(page)
    assert all(value.startswith(("#", "data:")) for value in parser.found)
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "http" not in re.sub(r"http-equiv", "", page)


def test_written_again_it_is_the_same_in_whatever_order_the_folders_come(one: Path, tmp_path: Path) -> None:
    other = entered(one, tmp_path / "two", {"strong": 4.0})
    tables = []
    for order, name in (((one, other), "a"), ((other, one), "b")):
        write_leaderboard(order, tmp_path / f"{name}.html")
        tables.append(ranks(tmp_path / f"{name}.html").sort_index())
    pd.testing.assert_frame_equal(*tables)


@pytest.mark.slow
def test_the_example_of_an_own_model_ends_in_a_leaderboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["own_model.py", str(tmp_path)])
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "own_model.py"))
    table = read_tsv(tmp_path / "leaderboard_ranks.tsv")
    told = table[table["protocol"] == "k-fold"].set_index("model")
    assert told.loc["my edges, tuned", "rank"] == 1
    assert told.loc["their variances", "rank"] > 1
    assert told.loc["their variances, nobody asked", "standing"] == "saw test people"
    assert (tmp_path / "leaderboard.html").is_file()
