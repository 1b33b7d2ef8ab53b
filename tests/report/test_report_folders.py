"""Folders are recognised by their files; what is none of them is refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from openbrainmass.durable import append_json_line, read_tsv, write_json, write_text, write_tsv
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.report.folders import read_material


def test_every_kind_is_recognised(folders: dict[str, Path]) -> None:
    material = read_material(list(folders.values()))
    counts = [len(kind) for kind in (material.stores, material.runs, material.results, material.embeddings)]
    assert counts == [1, 1, 1, 1]
    assert material.stores[0].name == "simulated"
    assert material.results[0].name == "Patients and controls, simulated"
    assert material.embeddings[0].values.shape == (24, 12)
    assert "e0" not in material.embeddings[0].known


def test_a_folder_with_embeddings_is_recognised(folders: dict[str, Path], tmp_path: Path) -> None:
    write_text(tmp_path / "embeddings.tsv", folders["embeddings"].read_text())
    assert len(read_material([tmp_path]).embeddings) == 1


def test_a_checkpoint_without_log_has_no_steps(folders: dict[str, Path], tmp_path: Path) -> None:
    write_text(tmp_path / "card.json", (folders["run"] / "card.json").read_text())
    run = read_material([tmp_path]).runs[0]
    assert len(run.steps) == 0 and run.warnings == ()


def test_a_warning_that_comes_with_other_numbers_is_one_warning(make: SimpleNamespace, tmp_path: Path) -> None:
    warning = read_material([make.run(tmp_path / "run", warn=True)]).runs[0].warnings
    assert [(w.step, w.times) for w in warning] == [(58, 3)]


def test_a_line_that_is_no_step_is_left_out(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.run(tmp_path / "run", n_steps=5)
    append_json_line(folder / "metrics.jsonl", {"note": "restarted"})
    assert len(read_material([folder]).runs[0].steps) == 5


def test_the_name_of_results_falls_back_to_the_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    for file in folders["results"].iterdir():
        write_text(tmp_path / "mine" / file.name, file.read_text())
    write_json(tmp_path / "mine" / "settings.json", {"seed": 1})
    (tmp_path / "mine" / "comparisons.tsv").unlink()
    results = read_material([tmp_path / "mine"]).results[0]
    assert results.name == "mine" and len(results.comparisons) == 0


def test_results_whose_metrics_do_not_follow_from_their_predictions_are_refused(
    make: SimpleNamespace, tmp_path: Path
) -> None:
    folder = make.results(tmp_path / "edited", skill={"ours": 1.0}, protocols=("k-fold",))
    table = read_tsv(folder / "predictions.tsv")
    write_tsv(folder / "predictions.tsv", table.assign(y_score=table["y_true"]))
    with pytest.raises(OpenBrainMassError, match=r"auc .* of ours in k-fold.* gives 1\.000000.*It was edited"):
        read_material([folder])


def test_a_folder_that_is_given_twice_is_refused(folders: dict[str, Path]) -> None:
    folder = folders["run"]
    with pytest.raises(OpenBrainMassError, match="given twice; name each folder once"):
        read_material([folder, folder / ".." / folder.name])


@pytest.mark.parametrize("name", ["nothing", "here"])
def test_what_is_no_folder_of_ours_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "here").mkdir()
    with pytest.raises(OpenBrainMassError, match=name):
        read_material([tmp_path / name])


def test_nothing_is_refused() -> None:
    with pytest.raises(OpenBrainMassError, match="at least one folder"):
        read_material([])


def test_a_table_without_embeddings_is_refused(tmp_path: Path) -> None:
    write_tsv(tmp_path / "table.tsv", pd.DataFrame({"participant_id": ["a"], "age": [3]}))
    with pytest.raises(OpenBrainMassError, match="participant_id, age"):
        read_material([tmp_path / "table.tsv"])


def test_embeddings_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    write_tsv(tmp_path / "table.tsv", pd.DataFrame({"participant_id": ["a", "b"], "e0": [1.0, np.nan]}))
    with pytest.raises(OpenBrainMassError, match="not finite"):
        read_material([tmp_path / "table.tsv"])
