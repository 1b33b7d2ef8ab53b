from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from openbrainmass.cohort.simulate import simulate_cohort
from openbrainmass.durable import read_json_lines, sha256_file
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.model import pretrain as pretraining
from openbrainmass.model.gradients import take_gradients
from openbrainmass.model.objectives import Objective
from openbrainmass.model.pretrain import pretrain
from openbrainmass.model.settings import EncoderSettings, PretrainSettings
from openbrainmass.model.state import RunState, load_state, save_state

RUN = """
import sys
from openbrainmass.cohort.simulate import simulate_cohort
from openbrainmass.model.pretrain import pretrain
from openbrainmass.model.settings import PretrainSettings
cohort = simulate_cohort(n_people=12, n_sites=2, n_rois=14, n_volumes=40)
pretrain(cohort, PretrainSettings.load(overrides=sys.argv[2:]), sys.argv[1], progress=False)
"""
STEPS = 120
OVERRIDES = (
    "encoder.width=16",
    "encoder.depth=1",
    "encoder.heads=2",
    "encoder.ffn=16",
    "batch_size=4",
    "epochs=1000",
    f"max_steps={STEPS}",
    "checkpoint_every_seconds=0.05",
)


def start(out) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", RUN, str(out), *OVERRIDES])


def log_of(out) -> list[dict]:
    times = ("seconds", "scans_per_s")
    return [{k: v for k, v in record.items() if k not in times} for record in read_json_lines(out / "metrics.jsonl")]


def lines(out) -> int:
    log = out / "metrics.jsonl"
    return log.read_bytes().count(b"\n") if log.exists() else 0


@pytest.mark.slow
def test_killed_runs_end_with_the_weights_of_a_run_left_alone(tmp_path):
    alone, killed = tmp_path / "alone", tmp_path / "killed"
    left_alone = start(alone)
    generator = random.Random(0)
    for step in sorted(generator.sample(range(1, STEPS - 20), 3)):
        process = start(killed)
        deadline = time.monotonic() + 120
        while lines(killed) < step and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (killed / "card.json").exists()
    assert start(killed).wait() == 0
    assert left_alone.wait() == 0
    assert sha256_file(killed / "weights.safetensors") == sha256_file(alone / "weights.safetensors")
    assert log_of(killed) == log_of(alone)


class Stop(Exception):
    pass


def settings(**changes) -> PretrainSettings:
    encoder = EncoderSettings(width=16, depth=1, heads=2, ffn=16)
    values = {"encoder": encoder, "batch_size": 4, "epochs": 4, "checkpoint_every_seconds": 0}
    return PretrainSettings(**values | changes)


def cohort():
    return simulate_cohort(n_people=12, n_sites=2, n_rois=14, n_volumes=40)


def stop_after(monkeypatch, n_steps: int) -> None:
    """Break off between the log line and the state of a step, the worst moment."""
    original = pretraining.save_state

    def save(path, state, *rest):
        if state.step > n_steps:
            raise Stop
        original(path, state, *rest)

    monkeypatch.setattr(pretraining, "save_state", save)


def run_with_stop(out, monkeypatch, n_steps=5, **changes):
    with monkeypatch.context() as patch:
        stop_after(patch, n_steps)
        with pytest.raises(Stop):
            pretrain(cohort(), settings(**changes), out, progress=False)
    return pretrain(cohort(), settings(**changes), out, progress=False)


@pytest.mark.parametrize("n_steps", [1, 3, 5])
def test_restart_is_exact_within_an_epoch_and_at_its_end(tmp_path, monkeypatch, n_steps):
    alone = pretrain(cohort(), settings(), tmp_path / "alone", progress=False)
    again = run_with_stop(tmp_path / "stopped", monkeypatch, n_steps)
    assert all(torch.equal(value, again.weights[name]) for name, value in alone.weights.items())
    assert log_of(tmp_path / "alone") == log_of(tmp_path / "stopped")


def test_restart_before_the_first_state_begins_again(tmp_path, monkeypatch):
    alone = pretrain(cohort(), settings(max_steps=2), tmp_path / "alone", progress=False)
    again = run_with_stop(tmp_path / "stopped", monkeypatch, n_steps=0, max_steps=2)
    assert all(torch.equal(value, again.weights[name]) for name, value in alone.weights.items())
    assert log_of(tmp_path / "alone") == log_of(tmp_path / "stopped")


def test_a_torn_last_line_of_the_log_is_forgotten(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Stop):
            pretrain(cohort(), settings(), tmp_path, progress=False)
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write('{"step": 7, "lo')
    pretrain(cohort(), settings(), tmp_path, progress=False)
    assert [record["step"] for record in log_of(tmp_path)] == list(range(1, 13))
    assert all(json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines())


def test_the_papers_restart_loses_the_target(tmp_path, monkeypatch):
    faulty = {"restart_resets_target": True}
    alone = pretrain(cohort(), settings(**faulty), tmp_path / "alone", progress=False)
    again = run_with_stop(tmp_path / "stopped", monkeypatch, **faulty)
    name = "encoder.layers.0.linear1.weight"
    assert not torch.equal(alone.weights[name], again.weights[name])


def make(seed: int = 0, **changes):
    torch.manual_seed(seed)
    objective = Objective(14, settings(**changes)).train()
    parameters = [parameter for _, parameter in objective.trainable()]
    return objective, torch.optim.AdamW(parameters, lr=1e-3, fused=True)


def take_step(objective, optimizer, seed):
    views = torch.randn(2, 5, 14, 14, generator=torch.Generator().manual_seed(seed))
    take_gradients(objective, views, range(5), epoch=seed, seed=seed)
    optimizer.step()
    optimizer.zero_grad()
    objective.follow()


def test_state_restores_weights_target_batch_statistics_and_moments(tmp_path):
    objective, optimizer = make()
    take_step(objective, optimizer, 1)
    written = RunState(1, 2.5, "settings", "data")
    save_state(tmp_path / "state.safetensors", written, objective, optimizer)
    other, other_optimizer = make(seed=9)
    assert load_state(tmp_path / "state.safetensors", other, other_optimizer) == written
    for seed in (2, 3):
        take_step(objective, optimizer, seed)
        take_step(other, other_optimizer, seed)
    for name, value in objective.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_state_of_another_model_is_refused(tmp_path):
    objective, optimizer = make()
    save_state(tmp_path / "state.safetensors", RunState(0, 0.0, "", ""), objective, optimizer)
    with pytest.raises(OpenBrainMassError, match="damaged or of another model"):
        load_state(tmp_path / "state.safetensors", *make(encoder=EncoderSettings(width=32, depth=2)))
