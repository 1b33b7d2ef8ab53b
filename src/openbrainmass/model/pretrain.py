"""Pretraining: two views of each scan, one loss, a target that follows; any run can be killed and started again.

No random state outlives a step. Order, views, masks and dropout are drawn afresh from (seed, epoch or step, scan),
so a run that goes on from its last state takes the very steps that it would have taken.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from openbrainmass import durable
from openbrainmass.cohort.cohort import Cohort
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.model import health
from openbrainmass.model.checkpoint import ENCODER_PREFIX, Checkpoint
from openbrainmass.model.gradients import Losses, take_gradients
from openbrainmass.model.memory import kept_memory
from openbrainmass.model.objectives import Objective
from openbrainmass.model.pseudo_fc import pseudo_fc_batch
from openbrainmass.model.resident import ResidentScans, hold_scans, make_views, why_not_resident
from openbrainmass.model.scans import Scans, batch_scans, n_batches
from openbrainmass.model.settings import PretrainSettings
from openbrainmass.model.state import RunState, load_state, read_run_state, save_state
from openbrainmass.model.tangent import learn_tangent
from openbrainmass.model.team import Team, checked_device, join_team, own_device


def pretrain(
    cohorts: Cohort | Sequence[Cohort], settings: PretrainSettings, out: str | Path, progress: bool = True
) -> Checkpoint:
    """Pretrain an encoder, or go on where a killed run of the same settings and data stopped.

    Parameters
    ----------
    cohorts : Cohort or sequence of Cohort
        The data; every cohort of the same atlas. Recordings are read when their turn comes.
    settings : PretrainSettings
        See `openbrainmass.model.settings.preset`.
    out : path
        Run folder: ``settings.json``, ``metrics.jsonl``, ``state.safetensors`` and, at the end, the checkpoint
        (``weights.safetensors``, ``card.json``). A tangent encoder has neither a log nor a state: it is learnt at once.
    progress : bool
        Show a progress bar with rate and time left.

    Returns
    -------
    Checkpoint
        Online encoder and projector. A finished run is loaded, not run again.

    Raises
    ------
    OpenBrainMassError
        If the device is not there, the atlases differ, there are fewer than two recordings, the folder belongs to a run
        of other settings or data, or a loss is no longer finite.

    Notes
    -----
    Under ``torchrun`` each process takes its share of every batch, and the loss is that of the whole batch; a batch
    that the processes cannot share evenly leaves out the last few scans of its random order.
    """
    checked_device(str(own_device(settings.device)))
    scans, out = Scans(cohorts), durable.make_folder(out)
    _check_folder(out, settings, scans)
    if (out / "card.json").exists():
        return Checkpoint.load(out)
    if settings.encoder.kind == "tangent":
        return _learn_in_closed_form(scans, settings, out)
    with join_team(settings.device) as team, _reproducible(settings), kept_memory():
        if team.leads and not (out / "settings.json").exists():
            durable.write_json(out / "settings.json", settings.model_dump(mode="json"))
        run = _Run(scans, settings, out, team)
        with _bar(run.step, run.n_steps, progress and team.leads) as advance:
            while run.step < run.n_steps:
                record = run.train_step()
                run.log_and_save(record)
                advance(record)
        team.require_same(run.parameters)
        if team.leads:
            run.checkpoint().save(out)
        team.wait()
        # What it holds of every recording must not be in memory twice.
        del run, scans
    return Checkpoint.load(out)


def _learn_in_closed_form(scans: Scans, settings: PretrainSettings, out: Path) -> Checkpoint:
    """A tangent encoder, which takes no steps; under torchrun the first process learns it alone."""
    with join_team("cpu") as team, _reproducible(settings):
        if team.leads:
            durable.write_json(out / "settings.json", settings.model_dump(mode="json"))
            encoder = learn_tangent(scans, settings.encoder, settings.views.estimator)
            weights = {ENCODER_PREFIX + name: value for name, value in encoder.state_dict().items()}
            Checkpoint(settings, scans.atlas, weights, scans.identities, scans.facts()).save(out)
        team.wait()
    return Checkpoint.load(out)


class _Run:
    """One pretraining under way: everything between two steps is in the state file or follows from the step number."""

    def __init__(self, scans: Scans, settings: PretrainSettings, out: Path, team: Team) -> None:
        self.scans, self.settings, self.out, self.team = scans, settings, out, team
        self.steps_an_epoch = n_batches(len(scans), settings.batch_size)
        self.n_steps = settings.epochs * self.steps_an_epoch
        if settings.max_steps is not None:
            self.n_steps = min(self.n_steps, settings.max_steps)
        torch.manual_seed(settings.seed)
        self.objective = Objective(scans.atlas.n_rois, settings).to(team.device).train()
        self.parameters = [parameter for _, parameter in self.objective.trainable()]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        self.step, self.seconds, self.saved_at = 0, 0.0, time.monotonic()
        self.held = self._hold_on_device()
        self.warned: set[str] = set()
        if (out / "state.safetensors").exists():
            self._restart()
        team.wait()
        if team.leads:
            _rewind_metrics(out / "metrics.jsonl", self.step)

    def _restart(self) -> None:
        state = load_state(self.out / "state.safetensors", self.objective, self.optimizer)
        self.step, self.seconds = state.step, state.seconds
        if self.settings.restart_resets_target:
            self.objective.reset_target()

    def train_step(self) -> dict[str, object]:
        """Take one optimiser step and describe it."""
        started = time.perf_counter()
        epoch, batch = divmod(self.step, self.steps_an_epoch)
        numbers = self._my_scans(epoch, batch)
        learning_rate = self._set_learning_rate(epoch)
        views = self._views(numbers, epoch)
        self.optimizer.zero_grad(set_to_none=True)
        losses = take_gradients(
            self.objective,
            views,
            numbers,
            epoch,
            self.settings.precision,
            self.settings.scans_at_once,
            self.team.gather,
            seed=_key(self.settings.seed, self.step, self.team.rank),
        )
        self.team.average_gradients(self.parameters)
        values = self._values(losses)
        health.require_finite(self.step + 1, **values)
        torch.nn.utils.clip_grad_value_(self.parameters, self.settings.clip_value)
        self.optimizer.step()
        self.objective.follow()
        self.step += 1
        elapsed = time.perf_counter() - started
        self.seconds += elapsed
        n_scans = len(losses.embeddings)
        record = {"epoch": epoch + 1, "step": self.step, **values}
        if self._is_logged():
            spread = health.embedding_spread(losses.embeddings)
            rank = health.effective_rank(losses.embeddings)
            record |= {"embedding_spread": spread, "effective_rank": rank}
            record |= {"lr": learning_rate, "scans_per_s": n_scans / elapsed, "seconds": self.seconds}
            record["warnings"] = self._warn(health.warnings_of(spread, rank, n_scans))
        return record

    def _my_scans(self, epoch: int, batch: int) -> list[int]:
        numbers = batch_scans(len(self.scans), self.settings.batch_size, self.settings.seed, epoch, batch)
        share = len(numbers) // self.team.size
        if share == 0:
            raise OpenBrainMassError(
                f"A batch of {len(numbers)} scans cannot be shared among {self.team.size} processes. "
                "Raise batch_size or start fewer processes."
            )
        return numbers[self.team.rank * share :][:share].tolist()

    def _set_learning_rate(self, epoch: int) -> float:
        warmup = self.settings.warmup_epochs
        rate = self.settings.learning_rate * min(1.0, (epoch + 1) / warmup if warmup else 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def _hold_on_device(self) -> ResidentScans | None:
        """All scans in the device's memory, where it has one of its own and they fit."""
        if self.team.device.type == "cpu":
            return None
        reason = why_not_resident(self.scans, self.team.device)
        if reason is None:
            return hold_scans(self.scans, self.team.device)
        if self.team.leads:
            Console(stderr=True).print(reason, style="yellow", markup=False)
        return None

    def _views(self, numbers: list[int], epoch: int) -> torch.Tensor:
        views = self.settings.views
        if self.held is not None:
            return make_views(self.held, numbers, epoch, self.settings.seed, views)
        fc = pseudo_fc_batch(
            [self.scans.bold(number) for number in numbers],
            numbers,
            n_views=2,
            augmentation=views.augmentation,
            share=views.share,
            estimator=views.estimator,
            seed=self.settings.seed,
            epoch=epoch,
        )
        return torch.from_numpy(fc).to(self.team.device)

    def _values(self, losses: Losses) -> dict[str, float]:
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        parts = torch.stack([losses.total, losses.lra, losses.identification, losses.reconstruction, norm])
        # Read in one go, because each time the processor waits for the device.
        values = self.team.mean(parts).tolist()
        return dict(zip(("loss", "lra", "identification", "reconstruction", "grad_norm"), values, strict=True))

    def _is_logged(self) -> bool:
        return self.step % self.settings.log_every_steps == 0 or self.step in (1, self.n_steps)

    def _warn(self, warnings: list[str]) -> list[str]:
        for warning in warnings:
            kind = warning.partition(":")[0].partition("(")[0]
            if kind not in self.warned and self.team.leads:
                self.warned.add(kind)
                Console(stderr=True).print(f"Warning, step {self.step}: {warning}", style="yellow", markup=False)
        return warnings

    def log_and_save(self, record: dict[str, object]) -> None:
        """Add to the log, and write the restart state when its time has come or the run has ended."""
        if not self.team.leads:
            return
        if "warnings" in record:
            durable.append_json_line(self.out / "metrics.jsonl", record)
        due = time.monotonic() - self.saved_at >= self.settings.checkpoint_every_seconds
        if due or self.step == self.n_steps:
            state = RunState(self.step, self.seconds, self.settings.digest, self.scans.digest)
            save_state(self.out / "state.safetensors", state, self.objective, self.optimizer)
            self.saved_at = time.monotonic()

    def checkpoint(self) -> Checkpoint:
        """The online encoder and projector, with what the card tells."""
        weights = {
            name: tensor.detach().cpu().clone()
            for name, tensor in self.objective.state_dict().items()
            if name.startswith(("encoder.", "projector."))
        }
        log = durable.read_json_lines(self.out / "metrics.jsonl")
        facts = {
            **self.scans.facts(),
            "epochs": -(-self.step // self.steps_an_epoch),
            "steps": self.step,
            "final_metrics": log[-1] if log else {},
            "views_made_by": "processor" if self.held is None else str(self.team.device),
        }
        return Checkpoint(self.settings, self.scans.atlas, weights, self.scans.identities, facts)


def _key(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0])


@contextmanager
def _reproducible(settings: PretrainSettings) -> Iterator[None]:
    """Torch's thread count and random state are the caller's again afterwards."""
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        with torch.random.fork_rng():
            yield
    finally:
        torch.set_num_threads(threads)


def _check_folder(out: Path, settings: PretrainSettings, scans: Scans) -> None:
    if not (out / "settings.json").exists():
        if any((out / name).exists() for name in ("state.safetensors", "card.json", "manifest.json")):
            raise OpenBrainMassError(f"{out} holds something else than a pretraining. Name another output folder.")
        return
    there = PretrainSettings.checked(durable.read_json(out / "settings.json"), source=str(out / "settings.json"))
    if there.digest != settings.digest:
        changed = ", ".join(_differences(there.model_dump(), settings.model_dump()))
        raise OpenBrainMassError(
            f"{out} holds a pretraining with other settings ({changed}). Name another output folder for a new run, or "
            f"go on with the settings in {out / 'settings.json'}."
        )
    state = out / "state.safetensors"
    if state.exists() and read_run_state(state).data_digest != scans.digest:
        raise OpenBrainMassError(
            f"{out} holds a pretraining on other recordings. Name another output folder, or give the same cohorts in "
            "the same order."
        )


def _differences(there: dict, here: dict, prefix: str = "") -> Iterator[str]:
    for key, value in there.items():
        if isinstance(value, dict):
            yield from _differences(value, here[key], f"{prefix}{key}.")
        elif value != here[key]:
            yield f"{prefix}{key} is {value} there and {here[key]} here"


def _rewind_metrics(path: Path, step: int) -> None:
    """Forget what was logged after the state from which the run goes on; those steps are taken again."""
    records = durable.read_json_lines(path) if path.exists() else []
    kept = [record for record in records if record["step"] <= step]
    durable.write_text(path, "".join(json.dumps(record) + "\n" for record in kept))


@contextmanager
def _bar(step: int, n_steps: int, shown: bool) -> Iterator:
    columns = (
        TextColumn("pretraining"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=not shown) as bar:
        task = bar.add_task("", total=n_steps, completed=step, loss="", rate="")

        def advance(record: dict) -> None:
            rate = f"{record['scans_per_s']:.0f} scans/s" if "scans_per_s" in record else bar.tasks[0].fields["rate"]
            bar.update(task, advance=1, loss=f"loss {record['loss']:.3f}", rate=rate)

        yield advance
