"""The whole road on a small folder: every stage leaves its result, and a second run goes on from there."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.cohort.simulate import simulate_cohort
from openbrainmass.cohort.store import load_cohort, save_cohort
from openbrainmass.durable import read_tsv, write_tsv
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.audit.ledger import looks
from openbrainmass.evaluation.results import Results
from openbrainmass.evaluation.tasks import Task
from openbrainmass.model.checkpoint import Checkpoint
from openbrainmass.model.settings import preset
from openbrainmass.road import EvaluationSettings, RunSettings, compare_models, load_pretrain_settings, run

SMALL = {
    "pretraining": {"epochs": 1, "encoder": {"width": 16, "ffn": 16, "depth": 1}},
    "evaluation": {"n_folds": 2, "n_repeats": 2, "few_shot": (2,), "n_draws": 1},
    "permutations": 3,
    "jobs": 1,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A plain folder: 16 people at 2 sites, two sessions each, one session too short."""
    path = tmp_path_factory.mktemp("data") / "lab"
    path.mkdir()
    cohort = simulate_cohort(n_people=16, n_sites=2, n_rois=14, n_volumes=70, n_sessions=2, seed=8)
    table = cohort.recordings[["participant_id", "session", "run", "tr", "recording_id"]]
    table["file"] = table["recording_id"] + "_atlas-Lab_timeseries.npy"
    for number, (bold, file) in enumerate(zip(cohort, table["file"], strict=True)):
        np.save(path / file, bold[:10] if number == 0 else bold)
    write_tsv(path / "recordings.tsv", table.drop(columns="recording_id"))
    write_tsv(path / "participants.tsv", cohort.participants)
    write_tsv(path / "atlas.tsv", cohort.atlas.table())
    return path


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "study"
    run(RunSettings(data=str(folder), **SMALL), out, say=lambda line: None)
    return out


def test_every_stage_leaves_its_result(finished):
    cohort = load_cohort(finished / "cohort")
    assert len(cohort) == 31 and cohort.exclusions["reason"].tolist() == ["too-short"]
    assert Checkpoint.load(finished / "pretraining").facts["n_people"] == 16
    assert len(read_tsv(finished / "embeddings.tsv")) == 31
    assert (finished / "explanation" / "networks.tsv").is_file()
    page = (finished / "report.html").read_text()
    assert "too-short" in page and page.rstrip().endswith("</html>")


def test_nobody_is_on_both_sides_and_seen_people_are_named(finished):
    table = Results.load(finished / "evaluation").predictions
    assert table.groupby(["protocol", "model", "repeat", "participant_id"]).size().max() == 1
    seen = table.groupby("model")["saw_test_people"].any()
    assert seen["pretrained + svm"] and not seen["pretrained without the test site + svm"]
    assert not seen["edges + logistic"] and not seen["pretrained: untrained + svm"]
    within = table[table["model"] == "pretrained without the test site + svm"]
    assert set(within["protocol"]) == {"site-held-out"} and len(within) == 16


def test_a_second_run_goes_on_where_the_first_stopped(folder, finished):
    before = {path: path.stat().st_mtime_ns for path in (finished / "pretraining").iterdir()}
    (finished / "report.html").unlink()
    run(RunSettings(data=str(folder), **SMALL | {"jobs": 2}), finished, say=lambda line: None)
    assert (finished / "report.html").is_file()
    assert before == {path: path.stat().st_mtime_ns for path in (finished / "pretraining").iterdir()}


def test_other_settings_are_refused(folder, finished):
    with pytest.raises(OpenBrainMassError, match="other settings.*permutations"):
        run(RunSettings(data=str(folder), **SMALL | {"permutations": 4}), finished, say=lambda line: None)


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(OpenBrainMassError, match="not empty"):
        run(RunSettings(), tmp_path, say=lambda line: None)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_test_store_adds_the_external_protocol_and_a_checkpoint_spares_pretraining(finished, tmp_path):
    other = simulate_cohort(n_people=12, n_sites=1, n_rois=14, n_volumes=70, seed=9, first_site=50, name="other")
    save_cohort(other, tmp_path / "other")
    settings = RunSettings(
        data=str(finished / "cohort"),
        test=str(tmp_path / "other"),
        checkpoint=str(finished / "pretraining"),
        probe="prototype",
        permutations=3,
        jobs=1,
        evaluation={"protocols": ("k-fold",), "n_folds": 2, "n_repeats": 1},
    )
    # The simulated atlas of the other store is the one of the lab's atlas.tsv: same names, same digest.
    run(settings, tmp_path / "out", say=lambda line: None)
    table = Results.load(tmp_path / "out" / "evaluation").predictions
    external = table[table["protocol"] == "external"]
    assert external["participant_id"].nunique() == 12 and not external["saw_test_people"].any()
    assert not (tmp_path / "out" / "pretraining").exists()
    assert json.loads((tmp_path / "out" / "evaluation" / "settings.json").read_text())["test_cohort"]["name"] == "other"


@pytest.fixture(scope="module")
def small_cohort(tmp_path_factory) -> tuple[Cohort, Task, Path]:
    """A few people, what is told apart in them, and where their store would be."""
    cohort = simulate_cohort(n_people=24, n_sites=2, n_rois=14, n_volumes=70, seed=8)
    return cohort, Task.from_cohort(cohort, "dx"), tmp_path_factory.mktemp("stores") / "small"


def test_other_weights_under_the_same_name_are_another_look(small_cohort, tmp_path):
    cohort, task, store = small_cohort
    once = EvaluationSettings(protocols=("k-fold",), n_folds=2, n_repeats=1)
    seen = []
    for seed in (1, 2, 2):
        folder = Checkpoint.untrained(cohort.atlas, preset("tiny"), seed).save(tmp_path / f"{seed}-{len(seen)}")
        results = compare_models(cohort, task, once, checkpoints={"mine": folder}, stores=(store, None))
        seen.append((results.settings["looks"], len(looks(store))))
    assert seen == [(1, 1), (2, 2), (2, 2)]


def test_one_held_out_site_that_was_handed_over_has_a_card(small_cohort, tmp_path):
    cohort, task, _ = small_cohort
    table = cohort.participants
    sides = np.where(table["site"] == table["site"].iloc[0], "test", "train")
    folds = table[["participant_id"]].assign(protocol="site-held-out", repeat=0, fold=0, side=sides)
    write_tsv(tmp_path / "one.tsv", folds)
    results = compare_models(cohort, task, EvaluationSettings(), checkpoints={}, folds=tmp_path / "one.tsv")
    card = results.tables["confounds"]
    assert {"site", "covariates"} <= set(card["check"]) and set(card["protocol"]) == {"site-held-out", ""}


def test_a_card_that_fails_costs_no_results(small_cohort, monkeypatch):
    def broken(*args, **options):
        raise ValueError("no such matrix")

    monkeypatch.setattr("openbrainmass.road.confound_card", broken)
    cohort, task, _ = small_cohort
    once = EvaluationSettings(protocols=("k-fold",), n_folds=2, n_repeats=1)
    with pytest.warns(UserWarning, match="no table confounds.*no such matrix"):
        results = compare_models(cohort, task, once, checkpoints={})
    assert any("no such matrix" in note for note in results.settings["notes"])
    assert "confounds" not in results.tables and len(results.tables["audit"]) and len(results.tables["coverage"])


def test_pretrain_settings_come_from_preset_file_and_overrides(tmp_path):
    (tmp_path / "mine.toml").write_text("epochs = 7\n[encoder]\ndepth = 3\n")
    settings = load_pretrain_settings("small", "paper", tmp_path / "mine.toml", ["encoder.depth=5"])
    assert (settings.epochs, settings.encoder.depth, settings.encoder.width) == (7, 5, 128)
    assert settings.objective.mask == "rows"
    with pytest.raises(OpenBrainMassError, match="unknown setting encoder.depht"):
        load_pretrain_settings(overrides=["encoder.depht=5"])
