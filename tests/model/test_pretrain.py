from __future__ import annotations

import json
import os
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openbrainmass.cohort.simulate import simulate_cohort
from openbrainmass.durable import make_folder, read_json, read_json_lines
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.model.gradients import take_gradients
from openbrainmass.model.memory import kept_memory
from openbrainmass.model.pretrain import _Run, pretrain
from openbrainmass.model.resident import hold_scans
from openbrainmass.model.scans import Scans, batch_scans, n_batches
from openbrainmass.model.settings import EncoderSettings, ObjectiveSettings, PretrainSettings, ViewSettings
from openbrainmass.model.team import Team

NO_DROPOUT = {"width": 16, "depth": 1, "heads": 2, "ffn": 16, "dropout": 0.0}
LOSSES = ["loss", "lra", "identification", "reconstruction", "grad_norm"]
FIELDS = ["epoch", "step", *LOSSES, "embedding_spread", "effective_rank", "lr", "scans_per_s", "seconds", "warnings"]


def quick(**changes) -> PretrainSettings:
    base = PretrainSettings(
        encoder=EncoderSettings(width=16, depth=1, heads=2, ffn=16),
        objective=ObjectiveSettings(head_hidden=16, projector_hidden=32, projector_out=16, predictor_hidden=16),
        epochs=3,
        batch_size=4,
        warmup_epochs=2,
        learning_rate=2e-3,
    )
    return PretrainSettings.model_validate(base.model_dump() | changes)


def people(n: int = 10, n_rois: int = 14, **changes):
    return simulate_cohort(n_people=n, n_sites=2, n_rois=n_rois, n_volumes=40, **changes)


@pytest.fixture(scope="module")
def small_cohort():
    return people()


@pytest.fixture(scope="module")
def finished(small_cohort, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    return out, pretrain(small_cohort, quick(), out, progress=False)


def test_run_folder_holds_settings_log_state_and_checkpoint(finished, small_cohort):
    out, checkpoint = finished
    assert {path.name for path in out.iterdir()} == {
        "settings.json",
        "metrics.jsonl",
        "state.safetensors",
        "weights.safetensors",
        "card.json",
    }
    assert PretrainSettings.model_validate(read_json(out / "settings.json")) == quick()
    assert checkpoint.settings == quick()
    assert checkpoint.atlas.digest == small_cohort.atlas.digest
    assert checkpoint.seen_identities == frozenset().union(*small_cohort.identities())
    assert checkpoint.facts["n_recordings"] == 10 and checkpoint.facts["n_people"] == 10
    assert checkpoint.facts["steps"] == 9 and checkpoint.facts["epochs"] == 3
    assert {name.split(".")[0] for name in checkpoint.weights} == {"encoder", "projector"}
    assert checkpoint.encoder()(torch.zeros(1, 14, 14)).shape == (1, 112)


def test_log_has_every_field_at_every_step(finished):
    records = read_json_lines(finished[0] / "metrics.jsonl")
    assert [record["step"] for record in records] == list(range(1, 10))
    assert [record["epoch"] for record in records] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert all(list(record) == FIELDS for record in records)
    rates = [record["lr"] for record in records[::3]]
    assert rates == pytest.approx([1e-3, 2e-3, 2e-3])
    for record in records:
        expected = record["lra"] + 0.1 * record["identification"] + 2 * record["reconstruction"]
        assert record["loss"] == pytest.approx(expected, rel=1e-5)


def test_same_seed_same_weights_other_seed_other_weights(finished, small_cohort, tmp_path):
    again = pretrain(small_cohort, quick(), tmp_path / "again", progress=False)
    other = pretrain(small_cohort, quick(seed=1), tmp_path / "other", progress=False)
    name = "encoder.layers.0.linear1.weight"
    assert all(torch.equal(value, again.weights[key]) for key, value in finished[1].weights.items())
    assert not torch.equal(finished[1].weights[name], other.weights[name])


def test_callers_randomness_and_threads_are_left_alone(small_cohort, tmp_path):
    torch.manual_seed(5)
    expected, threads = torch.rand(3), torch.get_num_threads()
    torch.manual_seed(5)
    pretrain(small_cohort, quick(max_steps=1, threads=2), tmp_path, progress=False)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_loss_goes_down(tmp_path):
    settings = quick(epochs=20, batch_size=8, encoder=quick().encoder.model_dump() | {"dropout": 0.0})
    pretrain(people(16), settings, tmp_path, progress=False)
    losses = [record["loss"] for record in read_json_lines(tmp_path / "metrics.jsonl")]
    assert np.mean(losses[-4:]) < 0.7 * np.mean(losses[:4])


def test_a_finished_run_is_loaded_not_run_again(finished, small_cohort):
    out, checkpoint = finished
    before = (out / "metrics.jsonl").stat().st_mtime_ns
    again = pretrain(small_cohort, quick(), out, progress=False)
    assert (out / "metrics.jsonl").stat().st_mtime_ns == before
    assert all(torch.equal(value, again.weights[key]) for key, value in checkpoint.weights.items())


def test_other_settings_in_the_same_folder_are_refused_by_name(finished, small_cohort):
    changed = quick(objective=quick().objective.model_dump() | {"momentum": 0.5}, seed=3)
    with pytest.raises(OpenBrainMassError, match=r"objective\.momentum is 0\.99 there and 0\.5 here, seed is 0 there"):
        pretrain(small_cohort, changed, finished[0], progress=False)


def test_other_recordings_in_the_same_folder_are_refused(finished):
    with pytest.raises(OpenBrainMassError, match="other recordings"):
        pretrain(people(seed=4), quick(), finished[0], progress=False)


def test_a_folder_of_something_else_is_refused(small_cohort, tmp_path):
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(OpenBrainMassError, match="something else than a pretraining"):
        pretrain(small_cohort, quick(), tmp_path, progress=False)


def test_a_damaged_state_is_one_sentence(small_cohort, tmp_path):
    pretrain(small_cohort, quick(max_steps=1), tmp_path, progress=False)
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(OpenBrainMassError, match="restart state .* damaged"):
        pretrain(small_cohort, quick(max_steps=1), tmp_path, progress=False)


def test_several_cohorts_are_one_sequence_of_scans(tmp_path):
    first, second = people(4, name="first"), people(6, name="second", seed=1)
    scans = Scans([first, second])
    assert len(scans) == 10
    np.testing.assert_array_equal(scans.bold(3), first[3])
    np.testing.assert_array_equal(scans.bold(4), second[0])
    np.testing.assert_array_equal(scans.bold(9), second[5])
    assert scans.facts() == {"n_recordings": 10, "n_people": 10, "datasets": ["first", "second"]}
    assert scans.digest != Scans([second, first]).digest
    checkpoint = pretrain([first, second], quick(max_steps=1), tmp_path, progress=False)
    assert checkpoint.seen_identities == frozenset().union(*first.identities(), *second.identities())


def test_cohorts_of_different_atlases_are_refused(tmp_path):
    with pytest.raises(OpenBrainMassError, match=r"\(21 ROIs\) but .* \(14 ROIs\)"):
        pretrain([people(4), people(4, n_rois=21)], quick(), tmp_path / "run", progress=False)


@pytest.mark.parametrize("n", [0, 1])
def test_fewer_than_two_recordings_are_refused(small_cohort, tmp_path, n):
    with pytest.raises(OpenBrainMassError, match=f"given {n} recordings"):
        pretrain(small_cohort.select(range(n)), quick(), tmp_path, progress=False)
    with pytest.raises(OpenBrainMassError, match="given 0 recordings"):
        pretrain([], quick(), tmp_path, progress=False)


@given(n=st.integers(2, 200), size=st.integers(2, 70), epoch=st.integers(0, 5))
def test_an_epoch_visits_every_scan_once_in_batches_of_two_or_more(n, size, epoch):
    batches = [batch_scans(n, size, 0, epoch, batch) for batch in range(n_batches(n, size))]
    assert sorted(np.concatenate(batches)) == list(range(n))
    assert all(2 <= len(batch) <= size + 1 for batch in batches)
    assert max(map(len, batches)) - min(map(len, batches)) <= 1


def test_order_changes_with_the_epoch():
    assert batch_scans(50, 50, 0, 0, 0).tolist() != batch_scans(50, 50, 0, 1, 0).tolist()


def test_recordings_are_read_when_their_turn_comes(small_cohort, tmp_path):
    pretrain(small_cohort, quick(max_steps=1), tmp_path / "a", progress=False)
    read: list[str] = []
    original = small_cohort._read
    watched = small_cohort.select(range(10))
    watched._read = lambda recording: read.append(recording) or original(recording)
    pretrain(watched, quick(max_steps=1), tmp_path / "b", progress=False)
    assert len(read) == 4


def test_a_loss_that_is_no_number_stops_and_keeps_what_was(small_cohort, tmp_path):
    settings = quick(checkpoint_every_seconds=0, epochs=9)
    original = small_cohort._read
    broken = small_cohort.select(range(10))
    reads = iter(range(10**6))
    broken._read = lambda name: original(name) * (1 if next(reads) < 8 else np.float32(1e30))
    with pytest.raises(OpenBrainMassError):
        pretrain(broken, settings.model_copy(update={"learning_rate": 1e30}), tmp_path, progress=False)
    assert len(read_json_lines(tmp_path / "metrics.jsonl")) >= 1
    assert (tmp_path / "state.safetensors").exists() and not (tmp_path / "card.json").exists()


def test_collapse_is_logged_and_told_once(tmp_path, capsys):
    cohort = people(16)
    still = np.random.default_rng(0).normal(size=(40, 14)).astype(np.float32)
    cohort._read = lambda name: still
    alike = quick(
        batch_size=8,
        encoder=quick().encoder.model_dump() | {"dropout": 0.0},
        views=ViewSettings(share=0.001).model_dump(),
    )
    pretrain(cohort, alike, tmp_path, progress=False)
    records = read_json_lines(tmp_path / "metrics.jsonl")
    assert all(record["warnings"] for record in records)
    assert "collapsed" in records[0]["warnings"][0]
    assert capsys.readouterr().err.count("collapsed") == 1


def test_progress_shows_loss_and_rate(small_cohort, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "150")
    pretrain(small_cohort, quick(log_every_steps=2), tmp_path, progress=True)
    shown = capsys.readouterr().err
    assert "9/9" in shown and "scans/s" in shown and "loss" in shown
    assert [record["step"] for record in read_json_lines(tmp_path / "metrics.jsonl")] == [1, 2, 4, 6, 8, 9]


def test_paper_recipe_trains(tmp_path):
    from openbrainmass.model.settings import preset

    paper = preset("paper", "paper").model_dump()
    paper["encoder"] |= {"depth": 1, "heads": 7, "ffn": 32}
    paper["objective"] |= {"head_hidden": 16, "projector_out": 16, "predictor_hidden": 16}
    checkpoint = pretrain(people(), PretrainSettings.model_validate(paper | {"max_steps": 2}), tmp_path, progress=False)
    assert checkpoint.fc_estimator == "ledoit-wolf"


def test_bfloat16_losses_agree_with_float32(finished, small_cohort, tmp_path):
    pretrain(small_cohort, quick(precision="bfloat16"), tmp_path, progress=False)
    exact, short = (
        np.array([record["loss"] for record in read_json_lines(out / "metrics.jsonl")])
        for out in (finished[0], tmp_path)
    )
    assert not np.array_equal(exact, short)
    assert short.mean() == pytest.approx(exact.mean(), rel=0.03)
    np.testing.assert_allclose(short, exact, rtol=0.15)
    assert json.loads((tmp_path / "card.json").read_text())["settings"]["precision"] == "bfloat16"


def test_scans_held_on_the_device_give_the_same_training(finished, small_cohort, tmp_path, monkeypatch):
    """On the processor, which stands in for a device: its views differ by what float16 costs."""
    monkeypatch.setattr(_Run, "_hold_on_device", lambda run: hold_scans(run.scans, run.team.device))
    pretrain(small_cohort, quick(), tmp_path, progress=False)
    by_processor, held = (
        np.array([record["loss"] for record in read_json_lines(out / "metrics.jsonl")])
        for out in (finished[0], tmp_path)
    )
    assert not np.array_equal(by_processor, held)
    np.testing.assert_allclose(held, by_processor, rtol=1e-2)


def test_scans_that_do_not_fit_the_device_are_told_and_left_to_the_processor(monkeypatch, capsys):
    monkeypatch.setattr("openbrainmass.model.pretrain.why_not_resident", lambda scans, device: "Too many scans.")
    run = SimpleNamespace(scans=None, team=Team(0, 1, torch.device("cuda")))
    assert _Run._hold_on_device(run) is None  # type: ignore[arg-type]
    assert "Too many scans." in capsys.readouterr().err


def test_processes_drop_units_of_their_own(small_cohort, tmp_path, monkeypatch):
    seeds = []

    def watched(*arguments, seed, **options):
        seeds.append(seed)
        return take_gradients(*arguments, seed=seed, **options)

    monkeypatch.setattr("openbrainmass.model.pretrain.take_gradients", watched)
    for rank in (0, 1):
        team = Team(rank, 1, torch.device("cpu"))
        run = _Run(Scans(small_cohort), quick(), make_folder(tmp_path / str(rank)), team)
        monkeypatch.setattr(run, "_my_scans", lambda epoch, batch: [0, 1, 2, 3])
        run.train_step()
    assert seeds[0] != seeds[1]


def test_a_device_that_is_not_there_is_refused_before_anything_is_written(small_cohort, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(OpenBrainMassError, match="device 'cuda' cannot be used here"):
        pretrain(small_cohort, quick(device="cuda"), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def test_a_batch_in_cuts_trains_as_a_whole_one(small_cohort, tmp_path):
    losses = []
    for name, at_once in (("whole", None), ("cut", 2)):
        pretrain(small_cohort, quick(scans_at_once=at_once, encoder=NO_DROPOUT), tmp_path / name, progress=False)
        losses.append([record["loss"] for record in read_json_lines(tmp_path / name / "metrics.jsonl")])
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-3)


def test_memory_is_kept_while_training_and_given_back_afterwards():
    def resident() -> int:
        with open("/proc/self/statm") as statm:
            return int(statm.read().split()[1]) * 4096

    if not os.path.exists("/proc/self/statm"):
        pytest.skip("resident memory is read from /proc")
    before = resident()
    with kept_memory():
        buffers = [torch.ones(1 << 20) for _ in range(100)]
        del buffers
        kept = resident()
    assert kept - before > 200 << 20
    assert resident() - before < 100 << 20


def test_other_systems_allocators_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with kept_memory():
        assert torch.ones(3).sum() == 3
