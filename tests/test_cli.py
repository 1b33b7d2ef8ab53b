"""The command line as a user meets it: each verb works, each mistake gets one paragraph and leaves nothing behind."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from openbrainmass import cli
from openbrainmass.cohort.simulate import simulate_cohort
from openbrainmass.cohort.store import save_cohort
from openbrainmass.durable import read_json, read_tsv, write_tsv
from openbrainmass.model.checkpoint import Checkpoint
from openbrainmass.model.settings import preset

VERBS = (
    "demo", "run", "cohort", "export", "bridge", "fetch", "pretrain", "embed", "evaluate", "audit", "explain", "report",
    "leaderboard", "convert", "datasets", "tasks",
)  # fmt: skip


@pytest.fixture
def command(monkeypatch, capsys, tmp_path):
    """Run the command line in this process: exit code, standard output, standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["openbrainmass", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "small"
    save_cohort(simulate_cohort(n_people=24, n_sites=2, n_rois=14, n_volumes=60, seed=5), path)
    return path


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, store) -> Path:
    from openbrainmass.cohort.store import load_cohort

    path = tmp_path_factory.mktemp("runs") / "bare"
    Checkpoint.untrained(load_cohort(store).atlas, preset("tiny")).save(path)
    return path


@pytest.fixture
def folder(tmp_path) -> Path:
    """A plain folder of 12 people that is all right until a test spoils it."""
    return write_folder(tmp_path / "bold")


def write_folder(path: Path, n_people: int = 12, n_rois: int = 14) -> Path:
    cohort = simulate_cohort(n_people=n_people, n_sites=2, n_rois=n_rois, n_volumes=80, seed=3)
    path.mkdir(parents=True)
    table = cohort.table[["participant_id", "site", "dx", "sex", "age", "tr"]]
    table["file"] = [f"{person}_atlas-Sim{n_rois}_timeseries.npy" for person in table["participant_id"]]
    for bold, file in zip(cohort, table["file"], strict=True):
        np.save(path / file, bold)
    write_tsv(path / "participants.tsv", table)
    return path


def edit(folder: Path, change) -> None:
    table = read_tsv(folder / "participants.tsv")
    write_tsv(folder / "participants.tsv", change(table))


def first_array(folder: Path) -> Path:
    return sorted(folder.glob("*.npy"))[0]


def refused(result: tuple[int, str, str], *said: str) -> None:
    """One paragraph on standard error that says what is wrong, exit code 1, no traceback."""
    code, _, err = result
    lines = [line for line in err.splitlines() if line.startswith("Error: ")]
    assert code == 1, err
    assert len(lines) == 1 and err.rstrip().endswith(lines[0])
    assert "Traceback" not in err
    for words in said:
        assert words in lines[0]


def nothing_written(out: Path) -> None:
    assert not out.exists()
    assert not [path for path in out.parent.glob(f".{out.name}*")] if out.parent.is_dir() else True


# ---- each verb does its work ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_with_an_example(command, verb):
    code, out, _ = command(verb, "--help")
    assert code == 0
    assert f"openbrainmass {verb}" in " ".join(out.split("Example")[-1].split())


def test_the_help_names_every_layout(command):
    from openbrainmass.cohort.layouts.read import LAYOUTS

    words = " ".join(command("cohort", "--help")[1].replace("│", " ").split())
    listed = words.split("Where the folder could be two: ")[1].split(".")[0]
    assert set(listed.replace(" or ", ", ").split(", ")) == set(LAYOUTS)


def test_ctrl_c_says_how_to_go_on(command, folder, tmp_path, monkeypatch):
    def stopped(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("openbrainmass.cohort.curate.curate", stopped)
    code, _, err = command("cohort", folder, "--out", tmp_path / "out")
    assert code == 130 and "Stopped. Run the same command again to go on." in err


def test_wrong_usage_exits_with_2(command):
    assert command("embed")[0] == 2
    assert command("nonsense")[0] == 2


def test_cohort_writes_a_store_and_says_what_it_left_out(command, folder, tmp_path):
    np.save(first_array(folder), np.load(first_array(folder))[:20])
    code, out, _ = command("cohort", folder, "--out", tmp_path / "store")
    assert code == 0
    assert "11 recordings of 11 people" in out and "Excluded: 1 too-short" in out
    assert read_json(tmp_path / "store" / "manifest.json")["n_recordings"] == 11


def test_the_road_by_single_verbs(command, store, tmp_path):
    shrink = ("--set", "epochs=1", "--set", "encoder.width=16", "--set", "encoder.ffn=16")
    assert command("pretrain", store, "--size", "tiny", "--out", tmp_path / "run", *shrink)[0] == 0
    code, _, _ = command("embed", store, "--checkpoint", tmp_path / "run", "--out", tmp_path / "embeddings.tsv")
    embedded = read_tsv(tmp_path / "embeddings.tsv")
    assert code == 0 and len(embedded) == 24 and {"participant_id", "dx", "e0", "e111"} <= set(embedded.columns)
    options = ("--checkpoint", tmp_path / "run", "--out", tmp_path / "short.tsv", "--precision", "bfloat16")
    code, _, warned = command("embed", store, *options)
    short = read_tsv(tmp_path / "short.tsv")
    assert code == 0 and (short.equals(embedded) == ("Warning: bfloat16 would change" in warned))
    np.testing.assert_allclose(short.filter(regex=r"^e\d"), embedded.filter(regex=r"^e\d"), atol=0.02)
    options = ("--checkpoint", tmp_path / "run", "--out", tmp_path / "other.tsv", "--precision", "float8")
    refused(command("embed", store, *options), "float8", "choose float32 or bfloat16")
    quick = ("--set", "n_folds=2", "--set", "n_repeats=2", "--set", "few_shot=[2]", "--set", "n_draws=1")
    code, out, _ = command(
        "evaluate",
        store,
        "--task",
        "simulated-dx",
        "--checkpoint",
        tmp_path / "run",
        "--out",
        tmp_path / "results",
        *quick,
    )
    assert code == 0 and "edges + logistic" in out and "run + svm" in out
    metrics = read_tsv(tmp_path / "results" / "metrics.tsv")
    assert metrics.query("model == 'run + svm'")["saw_test_people"].astype(str).eq("True").all()
    assert metrics.query("model == 'edges + svm'")["saw_test_people"].astype(str).eq("False").all()
    code, _, _ = command(
        "explain", store, "--checkpoint", tmp_path / "run", "--permutations", 3, "--out", tmp_path / "maps"
    )
    assert code == 0 and (tmp_path / "maps" / "rois.tsv").is_file()
    parts = [store, tmp_path / "run", tmp_path / "results", tmp_path / "maps", tmp_path / "embeddings.tsv"]
    code, _, _ = command("report", *parts, "--out", tmp_path / "report.html")
    assert code == 0 and "</html>" in (tmp_path / "report.html").read_text()


def test_evaluate_can_move_the_weights(command, store, checkpoint, tmp_path):
    quick = ("--set", 'protocols=["k-fold"]', "--set", "n_folds=2", "--set", "n_repeats=1")
    code, out, _ = command(
        "evaluate", store, "--checkpoint", checkpoint, "--fine-tune", "--out", tmp_path / "results", *quick
    )
    assert code == 0 and "bare, fine-tuned" in out


QUICK = ("--set", "n_folds=2", "--set", "n_repeats=1", "--set", "n_draws=1", "--set", "few_shot=[2]")


def test_folds_are_handed_over_audited_and_ranked(command, store, tmp_path):
    # A store of its own: its ledger counts the looks of no other test.
    store = shutil.copytree(store, tmp_path / "own")
    first, second = tmp_path / "first", tmp_path / "second"
    code, _, err = command("evaluate", store, "--out", first, *QUICK)
    assert code == 0, err
    for name in ("folds", "confounds", "coverage", "log_auc", "audit"):
        assert (first / f"{name}.tsv").is_file(), name
    code, _, err = command("evaluate", store, "--rivals", "--folds", first / "folds.tsv", "--out", second, *QUICK)
    assert code == 0, err
    one, two = (read_tsv(path / "predictions.tsv").query("model == 'edges + logistic'") for path in (first, second))
    pd.testing.assert_frame_equal(one.reset_index(drop=True), two.reset_index(drop=True))
    assert len(read_tsv(store.with_name(f"{store.name}.looks.tsv"))) == 2
    code, _, _ = command("audit", store, "--folds", first / "folds.tsv", "--out", tmp_path / "audit.tsv")
    assert code == 0 and set(read_tsv(tmp_path / "audit.tsv")["verdict"]) <= {"passed", "floor", "not checked"}
    code, _, err = command("leaderboard", first, second, "--out", tmp_path / "board.html")
    assert code == 0, err
    assert "edges + tangent, sum" in (tmp_path / "board.html").read_text()
    folds = read_tsv(first / "folds.tsv").query("protocol == 'k-fold'")
    folds.assign(side="test").to_csv(tmp_path / "all.tsv", sep="\t", index=False)
    both = pd.concat([folds, folds.assign(side=folds["side"].map({"train": "test", "test": "train"}))])
    both.to_csv(tmp_path / "both.tsv", sep="\t", index=False)
    refused(command("audit", store, "--folds", tmp_path / "both.tsv"), "test-is-train")
    refused(
        command("evaluate", store, "--folds", tmp_path / "both.tsv", "--out", tmp_path / "no"),
        "training and its test side",
    )


def test_the_networks_are_rivals_on_the_same_folds(command, store, tmp_path):
    code, out, err = command(
        "evaluate", store, "--networks", "--out", tmp_path / "r", *QUICK, "--set", 'protocols=["k-fold", "few-shot"]'
    )
    assert code == 0, err
    assert "BrainNetCNN" in out and "meanMLP" in out and "few-shot" not in out and "no table" not in err
    assert "BrainNetCNN" in set(read_tsv(tmp_path / "r" / "confounds.tsv")["model"])


def test_a_number_and_another_cohort_are_evaluated(command, store, tmp_path):
    code, out, err = command("evaluate", store, "--target", "age", "--out", tmp_path / "age", *QUICK)
    assert code == 0 and "r2" in out, err
    save_cohort(
        simulate_cohort(n_people=16, n_rois=14, n_volumes=60, n_sites=2, seed=9, name="other"), tmp_path / "other"
    )
    code, out, err = command(
        "evaluate",
        store,
        "--test",
        tmp_path / "other",
        "--out",
        tmp_path / "external",
        *QUICK,
        "--set",
        "transductive=true",
    )
    assert code == 0 and "external-few-shot-2" in out and "edges + logistic (transductive)" in out, err


def test_two_tasks_at_once_and_impossible_few_shots_are_refused(command, store, tmp_path):
    out = ("--out", tmp_path / "no")
    refused(command("evaluate", store, "--task", "sex", "--target", "dx", *out), "sex", "dx")
    refused(command("evaluate", store, "--set", "few_shot=[0]", *out), "few_shot")
    refused(command("evaluate", store, "--test-task", "sex", *out), "test")
    refused(command("evaluate", store, "--target", "age", "--fine-tune", *out), "age", "number")


def test_evaluate_can_harmonise_sites_inside_the_folds(command, store, tmp_path):
    pytest.importorskip("combatlearn")
    quick = ("--set", 'protocols=["k-fold"]', "--set", "n_folds=2", "--set", "n_repeats=1", "--set", "harmonise=true")
    code, out, _ = command("evaluate", store, "--out", tmp_path / "results", *quick)
    assert code == 0 and "edges, ComBat + logistic" in out


def test_demo_and_run_walk_the_whole_road_on_a_folder(command, folder, tmp_path):
    quick = {
        "pretraining.epochs": 1, "evaluation.n_folds": 2, "evaluation.n_repeats": 1, "evaluation.few_shot": [1],
        "evaluation.n_draws": 1, "permutations": 2, "jobs": 1,
    }  # fmt: skip
    sets = [word for key, value in quick.items() for word in ("--set", f"{key}={value}")]
    code, out, err = command("demo", folder, "--target", "sex", "--out", tmp_path / "demo", *sets)
    assert code == 0, err
    assert str(tmp_path / "demo" / "report.html") in out and "task: M against F" in out
    assert (tmp_path / "demo" / "cohort" / "quality.html").is_file()
    code, out, _ = command("run", tmp_path / "demo" / "settings.json", "--out", tmp_path / "demo")
    assert code == 0 and "Done" in out


def test_datasets_and_tasks_have_lines_and_cards(command):
    assert "abide1" in command("datasets")[1]
    assert "ABIDE" in command("datasets", "abide1")[1]
    assert "abide1-asd" in command("tasks")[1]
    assert "autism" in command("tasks", "abide1-asd")[1]
    refused(command("tasks", "nonsense"), "nonsense")
    refused(command("datasets", "nonsense"), "nonsense")


def test_a_store_is_carried_to_another_atlas(command, store, tmp_path):
    import nibabel as nib

    fine = np.repeat(np.arange(15), 2)[:, None, None] * np.ones((1, 4, 4))
    for name, labels in (("fine", fine), ("coarse", (fine + 1) // 2)):
        nib.save(nib.Nifti1Image(labels.astype(np.int16), np.eye(4)), tmp_path / f"{name}.nii.gz")
    images = ("--from", tmp_path / "fine.nii.gz", "--to", tmp_path / "coarse.nii.gz")
    code, out, _ = command("bridge", store, *images, "--out", tmp_path / "coarse")
    assert code == 0 and "7 ROIs of coarse" in out and "bridge.tsv" in out


def test_fetch_hands_name_and_number_to_nilearn(command, monkeypatch, tmp_path):
    asked = {}

    def fetched(name, out, n_people):
        asked.update(name=name, out=out, n_people=n_people)
        return out

    monkeypatch.setattr("openbrainmass.cohort.fetch.fetch", fetched)
    code, out, _ = command("fetch", "abide1", "--people", "3", "--out", tmp_path / "download")
    assert code == 0 and "Wrote" in out
    assert asked == {"name": "abide1", "out": tmp_path / "download", "n_people": 3}


def test_errors_reach_a_real_shell_as_one_paragraph(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "openbrainmass.cli", "cohort", str(tmp_path / "none"), "--out", str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ") and "Traceback" not in done.stderr


@pytest.mark.parametrize("verb", ["cohort", "embed", "evaluate", "explain", "convert"])
def test_nothing_that_is_there_is_overwritten(command, folder, store, checkpoint, tmp_path, verb):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "thesis.txt").write_text("mine")
    source = {"cohort": folder, "convert": tmp_path / "none.pth"}.get(verb, store)
    extra = ("--checkpoint", checkpoint) if verb in {"embed", "explain"} else ()
    refused(command(verb, source, *extra, "--out", kept), "kept", "overwritten")
    assert [path.name for path in kept.iterdir()] == ["thesis.txt"]


# ---- fifteen wrong inputs -------------------------------------------------------------------------------------------


def test_missing_file(command, folder, tmp_path):
    file = first_array(folder)
    bold = np.load(file)
    file.unlink()
    refused(command("cohort", folder, "--out", tmp_path / "out"), file.name, "does not exist", "--skip-unreadable")
    assert not (tmp_path / "out").exists()
    np.save(file, bold)
    assert "12 recordings" in command("cohort", folder, "--out", tmp_path / "out")[1]
    assert not [path for path in tmp_path.glob(".out*")]


def test_files_that_cannot_be_read_are_left_out_when_that_is_asked_for(command, folder, tmp_path):
    first_array(folder).write_bytes(b"torn")
    code, out, _ = command("cohort", folder, "--out", tmp_path / "out", "--skip-unreadable")
    assert code == 0 and "11 recordings" in out and "Excluded: 1 unreadable" in out
    table = read_tsv(tmp_path / "out" / "exclusions.tsv")
    assert table["reason"].tolist() == ["unreadable"] and first_array(folder).name in table["detail"][0]


def test_wrong_shape(command, folder, tmp_path):
    np.save(first_array(folder), np.zeros((3, 4, 5), dtype=np.float32))
    refused(command("cohort", folder, "--out", tmp_path / "out"), first_array(folder).name, "(3, 4, 5)")
    assert not (tmp_path / "out").exists()


def test_transposed(command, folder, tmp_path):
    for file in folder.glob("*.npy"):
        np.save(file, np.load(file).T)
    refused(command("cohort", folder, "--out", tmp_path / "out"), "transposed")
    nothing_written(tmp_path / "out")


def test_nan_scans(command, folder, tmp_path):
    for file in folder.glob("*.npy"):
        bold = np.load(file)
        bold[7, 3] = np.nan
        np.save(file, bold)
    refused(command("cohort", folder, "--out", tmp_path / "out"), "non-finite")
    nothing_written(tmp_path / "out")


def test_one_nan_scan_is_excluded_with_its_reason(command, folder, tmp_path):
    bold = np.load(first_array(folder))
    bold[7, 3] = np.nan
    np.save(first_array(folder), bold)
    assert command("cohort", folder, "--out", tmp_path / "out")[0] == 0
    assert read_tsv(tmp_path / "out" / "exclusions.tsv")["reason"].tolist() == ["non-finite"]


def test_unknown_label(command, folder, tmp_path):
    edit(folder, lambda table: table.assign(dx=["odd", *table["dx"][1:]]))
    assert command("cohort", folder, "--out", tmp_path / "store")[0] == 0
    refused(
        command("evaluate", tmp_path / "store", "--task", "simulated-dx", "--out", tmp_path / "out"),
        "odd", "patient", "control",
    )  # fmt: skip
    nothing_written(tmp_path / "out")


def test_duplicate_id(command, folder, tmp_path):
    edit(folder, lambda table: pd.concat([table, table.iloc[:1]]))
    refused(command("cohort", folder, "--out", tmp_path / "out"), "more than once", "participants.tsv")
    nothing_written(tmp_path / "out")


def test_roi_count_mismatch_with_the_checkpoint(command, checkpoint, tmp_path):
    write_folder(tmp_path / "wide", n_rois=20)
    assert command("cohort", tmp_path / "wide", "--out", tmp_path / "store")[0] == 0
    refused(
        command("embed", tmp_path / "store", "--checkpoint", checkpoint, "--out", tmp_path / "out.tsv"),
        "20",
        "14",
        "atlas",
    )
    nothing_written(tmp_path / "out.tsv")


def test_truncated_shard(command, folder, checkpoint, tmp_path):
    assert command("cohort", folder, "--out", tmp_path / "store")[0] == 0
    shard = next((tmp_path / "store").glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(command("embed", tmp_path / "store", "--checkpoint", checkpoint, "--out", tmp_path / "out.tsv"), shard.name)
    nothing_written(tmp_path / "out.tsv")


def test_flipped_bit_in_a_checkpoint(command, store, checkpoint, tmp_path):
    weights = checkpoint / "weights.safetensors"
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        refused(
            command("embed", store, "--checkpoint", checkpoint, "--out", tmp_path / "out.tsv"), "weights.safetensors"
        )
    finally:
        weights.write_bytes(whole)
    nothing_written(tmp_path / "out.tsv")


@pytest.mark.parametrize("verb", ["pretrain", "evaluate"])
def test_unknown_setting(command, store, tmp_path, verb):
    refused(command(verb, store, "--set", "encoder.colour=3", "--out", tmp_path / "out"), "unknown setting", "encoder")
    nothing_written(tmp_path / "out")


def test_missing_column(command, store, tmp_path):
    refused(command("evaluate", store, "--target", "iq", "--out", tmp_path / "out"), "iq", "dx")
    nothing_written(tmp_path / "out")


def test_empty_cohort(command, folder, tmp_path):
    edit(folder, lambda table: table.iloc[:0])
    refused(command("cohort", folder, "--out", tmp_path / "out"), "participants.tsv")
    nothing_written(tmp_path / "out")


def test_one_class_only(command, folder, tmp_path):
    edit(folder, lambda table: table.assign(dx="patient"))
    assert command("cohort", folder, "--out", tmp_path / "store")[0] == 0
    refused(command("evaluate", tmp_path / "store", "--task", "simulated-dx", "--out", tmp_path / "out"), "control")
    nothing_written(tmp_path / "out")


def test_fewer_people_than_folds(command, store, tmp_path):
    refused(command("evaluate", store, "--set", "n_folds=13", "--out", tmp_path / "out"), "12 people", "13 folds")
    nothing_written(tmp_path / "out")


@pytest.mark.parametrize("verb", ["cohort", "demo", "pretrain", "evaluate", "embed"])
def test_unwritable_output(command, folder, store, checkpoint, tmp_path, verb):
    (tmp_path / "file").write_text("in the way")
    source = folder if verb in {"cohort", "demo"} else store
    extra = ("--checkpoint", checkpoint) if verb == "embed" else ("--set", "n_repeats=1") if verb == "evaluate" else ()
    refused(command(verb, source, *extra, "--out", tmp_path / "file" / "out"), "file/out")
    assert (tmp_path / "file").read_text() == "in the way"
