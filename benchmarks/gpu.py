"""Pseudo-FC and training on one GPU: is it right, how fast is it, and how far from the machine's limit.

    python benchmarks/gpu.py                  # under 8 minutes on an H200; without a GPU: the checks, on the processor
    python benchmarks/gpu.py --rehearse       # every measurement, tiny and on the processor, to see that it runs

Speed counts recordings held on the device (`model/resident.py`) of 300 volumes, other scans at every call. "graph" is a
CUDA graph, which the processor starts and takes no other part in; "compiled" is ``torch.compile`` (for training: of the
encoder's layers). Training is a whole step from recordings to new weights: views, masks, losses, gradients, clipping,
AdamW, target. The limit of a line is the larger of two times: its floating point operations at the GPU's dense bfloat16
rate, and its least memory traffic at the rate of its memory (datasheet values). For training, the traffic is what torch
moves when every operation reads and writes memory, so that fused (compiled) lines may pass that limit.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from openbrainmass.connectivity import ESTIMATORS, correlation
from openbrainmass.model import encoder
from openbrainmass.model.device_draws import draw_kept, view_key
from openbrainmass.model.gradients import take_gradients
from openbrainmass.model.objectives import Objective
from openbrainmass.model.pseudo_fc import AUGMENTATIONS, kept_volumes
from openbrainmass.model.resident import WORKING_BYTES, ResidentScans, hold_recordings, make_views, n_columns
from openbrainmass.model.settings import PretrainSettings, ViewSettings, preset

FLOPS, BANDWIDTH = 990e12, 4.8e12
"""Dense bfloat16 operations and bytes a second of an H200, by its datasheet."""

MODES = ("eager", "compiled", "graph", "graph, compiled")


@dataclass(frozen=True)
class Size:
    """How large the measurements are."""

    n_scans: int = 70_781
    n_volumes: int = 300
    n_rois: int = 100
    views: tuple[int, ...] = (256, 1024, 4096, 16_384)
    more_rois: tuple[int, ...] = (200, 400)
    batches: tuple[int, ...] = (64, 256, 1024)
    models: tuple[tuple[Any, Any], ...] = (
        ("paper", "default"),
        ("paper", "paper"),
        ("base", "default"),
        ("small", "default"),
    )
    modes: tuple[str, ...] = MODES
    working_bytes: tuple[int, ...] = (32 << 20, 128 << 20, 8 << 30)
    seconds: float = 0.4


REHEARSAL = Size(40, 70, 12, (8,), (16,), (4,), (("tiny", "default"),), ("eager", "graph"), (1 << 20,), 0.01)


@dataclass
class Report:
    """The table while it grows, and the time it has left."""

    device: torch.device
    deadline: float
    rows: list[tuple[str, str, str, str, str]] = field(default_factory=list)

    def add(self, what: str, found: str, limit: str = "", share: str = "", note: str = "") -> None:
        self.rows.append((what, found, limit, share, note))

    def attempt(self, what: str, measure: Callable[[], object]) -> None:
        """Measure, unless time has run out; a failure becomes a line of the table, and the rest goes on."""
        if time.monotonic() > self.deadline:
            self.add(what, "not measured: out of time")
            return
        try:
            measure()
        except Exception as error:
            reason = (str(error).strip().splitlines() or [""])[0]
            self.add(what, f"failed: {type(error).__name__}: {reason[:90]}")


def recordings(lengths: Sequence[int], n_rois: int) -> list[np.ndarray]:
    """BOLD-like float32 recordings."""
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(12, n_rois))
    return [
        (rng.normal(size=(length, 12)) @ mixing + 3 * rng.normal(size=(length, n_rois))).astype(np.float32)
        for length in lengths
    ]


def random_scans(n_scans: int, n_volumes: int, n_rois: int, device: torch.device) -> ResidentScans:
    """Noise in the form of held recordings, made on the device."""
    values = torch.randn(n_scans * n_volumes + 1, n_columns(n_rois), dtype=torch.float16, device=device)
    values[:, n_rois], values[:, n_rois + 1 :], values[-1] = 1, 0, 0
    lengths = np.full(n_scans, n_volumes)
    starts = torch.arange(n_scans, device=device) * n_volumes
    return ResidentScans(values, starts, torch.from_numpy(lengths).to(device), lengths, n_rois)


# Is it right?


def check_subsets(report: Report) -> None:
    """Count scans whose kept volumes differ from those that the processor draws."""
    lengths, device = [60, 61, 78, 300, 1200], report.device
    numbers, differing, total = [0, 1, 7, 70_780, 12_345], 0, 0
    for augmentation in AUGMENTATIONS:
        for share, epoch, seed in ((0.05, 0, 0), (0.2, 1999, 2**63 + 9), (0.9, 3, 5)):
            at, which, n_volumes = (torch.tensor(values, device=device) for values in (epoch, numbers, lengths))
            drawn = draw_kept(view_key(seed, device), at, which, n_volumes, max(lengths), 2, augmentation, share)
            kept = drawn.cpu().numpy()
            for found, number, length in zip(kept, numbers, lengths, strict=True):
                expected = kept_volumes(length, 2, augmentation, share, seed, epoch, number)
                differing += not np.array_equal(found[:, :length], expected) or bool(found[:, length:].any())
                total += 1
    report.add("subsets that differ from kept_volumes", f"{differing} of {total}", "0", _verdict(differing == 0))


def check_fc(report: Report, estimator: Any) -> None:
    """Compare FC on the device with float64 FC of the recordings themselves."""
    scans = recordings([30, 78, 176, 300, 490, 1200], 100)
    scans[2][17, 3:6] += 1e4
    held = hold_recordings(lambda number: scans[number], [len(bold) for bold in scans], 100, report.device)
    settings, numbers = ViewSettings(estimator=estimator), range(len(scans))
    fc = make_views(held, numbers, 0, 0, settings)
    again = make_views(held, numbers, 0, 0, settings)
    sound = torch.equal(fc, fc.mT) and bool(fc.abs().max() <= 1) and bool((fc.diagonal(dim1=-2, dim2=-1) == 1).all())
    errors = []
    for number, bold in enumerate(scans):
        for view, kept in enumerate(kept_volumes(len(bold), 2, share=settings.share, scan=number)):
            exact = correlation(bold[kept].astype(np.float64), estimator)
            errors.append(np.abs(fc[view, number].cpu().numpy() - exact) * math.sqrt(kept.sum()))
    rms, largest = math.sqrt(np.mean(np.square(errors))), float(np.max(errors))
    report.add(
        f"error of {estimator} x root of the volumes kept",
        f"rms {rms:.1e}, largest {largest:.1e}",
        "3e-03",
        _verdict(largest < 3e-3),
    )
    report.add(f"{estimator}: symmetric to the bit, |r| <= 1, diagonal 1", str(sound), "True", _verdict(sound))
    same = torch.equal(fc, again)
    report.add(f"{estimator}: equal calls give equal bits", str(same), "True", _verdict(same))


def check_waiting(report: Report) -> None:
    """Let torch refuse whatever makes the processor wait for the device."""
    what = "make_views never waits for the device"
    if report.device.type != "cuda":
        report.add(what, "not measured: no GPU", "True")
        return
    held = random_scans(100, 100, 100, report.device)
    for estimator, augmentation in product(ESTIMATORS, AUGMENTATIONS):
        settings = ViewSettings.checked({"estimator": estimator, "augmentation": augmentation}, "the benchmark")
        make_views(held, range(100), 0, 0, settings)
        torch.cuda.set_sync_debug_mode("error")
        try:
            make_views(held, range(100), 0, 0, settings, working_bytes=1 << 20)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    report.add(what, "True", "True", "ok")


def check_losses(report: Report) -> None:
    """Losses on the device against those on the processor, and bfloat16."""
    base = preset("small")
    without = base.encoder.model_copy(update={"dropout": 0.0, "attention_dropout": 0.0})
    settings = base.model_copy(update={"encoder": without})
    bold = recordings([100] * 8, 20)
    held = hold_recordings(lambda number: bold[number], [100] * 8, 20, torch.device("cpu"))
    views = make_views(held, range(8), 0, 0, settings.views)

    def losses(device: torch.device, precision: str) -> tuple[float, bool]:
        torch.manual_seed(0)
        objective = Objective(20, settings).to(device).train()
        found = take_gradients(objective, views.to(device), range(8), 0, precision)
        gradients = [p.grad for p in objective.parameters() if p.grad is not None]
        return float(found.total), all(bool(torch.isfinite(gradient).all()) for gradient in gradients)

    reference, _ = losses(torch.device("cpu"), "float32")
    found, _ = losses(report.device, "float32")
    difference = abs(found / reference - 1)
    # The same machine on both sides would show nothing.
    compared = report.device.type == "cuda"
    report.add(
        "loss on the device against the processor's, float32",
        f"{difference:.1e}" if compared else "not measured: no GPU",
        "1e-04",
        _verdict(difference < 1e-4) if compared else "",
    )
    value, finite = losses(report.device, "bfloat16")
    report.add(
        "bfloat16: loss and gradients finite", f"{finite}, {value / reference - 1:+.1e}", "True", _verdict(finite)
    )


def _verdict(passed: bool) -> str:
    return "ok" if passed else "WRONG"


# How fast is it?


def seconds_a_call(call: Callable[[], object], device: torch.device, budget: float) -> float:
    """Median over blocks of calls that together take about the budget, after two calls to warm up."""
    for _ in range(2):
        call()
    wait(device)
    started = time.perf_counter()
    call()
    wait(device)
    n_calls = max(1, math.ceil(budget / 5 / max(time.perf_counter() - started, 1e-6)))
    blocks = []
    for _ in range(5):
        started = time.perf_counter()
        for _ in range(n_calls):
            call()
        wait(device)
        blocks.append((time.perf_counter() - started) / n_calls)
    return statistics.median(blocks)


def wait(device: torch.device) -> None:
    """Until the device has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def captured(call: Callable[[], object]) -> Callable[[], object]:
    """A CUDA graph of a call, which is made a few times on another stream before, as capturing asks.

    Without a GPU (in a rehearsal) it is the call itself.
    """
    if not torch.cuda.is_available():
        return call
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        call()
    return graph.replay


class Traffic(TorchDispatchMode):
    """Counts the bytes that operations read and write when each does so in memory."""

    _FREE = ("empty", "new_empty", "_unsafe_view", "lift_fresh")
    _SELECT = ("index_select", "index", "gather")

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.operations = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if not (func.is_view or name.startswith(self._FREE)):
            read = () if name in self._SELECT else tree_leaves((args, kwargs))
            tensors = [leaf for leaf in (*read, *tree_leaves(result)) if isinstance(leaf, torch.Tensor)]
            self.bytes += sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors)
            self.operations += 1
        return result


@dataclass(frozen=True)
class Cost:
    """What one call does."""

    flops: float
    bytes: float
    operations: int

    def limit(self, n: int) -> tuple[float, str]:
        """Most items a second, and what sets that."""
        compute, memory = n * FLOPS / self.flops, n * BANDWIDTH / self.bytes
        return (compute, "arithmetic") if compute < memory else (memory, "memory")


def cost_of(call: Callable[[], object]) -> Cost:
    """Count the operations and the traffic of a call."""
    flops, traffic = FlopCounterMode(display=False), Traffic()
    with flops, traffic:
        call()
    return Cost(flops.get_total_flops(), traffic.bytes, traffic.operations)


class Visits:
    """Other scans at every call: their numbers on the processor, or in a tensor that changes on the device."""

    def __init__(self, held: ResidentScans, n: int) -> None:
        self.held, self.n, self.call = held, n, 0
        device = held.values.device
        self.rng = np.random.default_rng(0)
        self.order = torch.from_numpy(self.rng.permutation(len(held))).to(device)
        self.at = torch.arange(n, device=device)
        self.epoch = torch.zeros((), dtype=torch.int64, device=device)

    def here(self) -> np.ndarray:
        self.call += 1
        return self.rng.integers(len(self.held), size=self.n)

    def there(self) -> torch.Tensor:
        self.epoch += 1
        self.at.copy_((self.at + self.n) % len(self.held))
        return self.order[self.at]


def view_call(held: ResidentScans, n_views: int, mode: str, working_bytes: int = WORKING_BYTES) -> Callable[[], object]:
    """Make ``n_views`` views, two of each scan, in one of the `MODES`."""
    visits = Visits(held, n_views // 2)
    make = partial(make_views, settings=ViewSettings(), working_bytes=working_bytes, compiled="compiled" in mode)
    if "graph" in mode:
        return captured(lambda: make(held, visits.there(), visits.epoch, 0))
    return lambda: make(held, visits.here(), visits.call, 0)


def measure_views(report: Report, size: Size, n_rois: int, calls: Sequence[int]) -> None:
    """Pseudo-FC a second for several sizes of call."""
    n_scans = size.n_scans * size.n_rois // n_rois
    held = random_scans(n_scans, size.n_volumes, n_rois, report.device)
    for n_views, mode in product(calls, size.modes):
        what = f"pseudo-FC/s, {n_rois} ROIs, {n_views} a call, {mode}"
        report.attempt(what, partial(_view_line, report, size, held, n_views, mode, what))
    for working_bytes in size.working_bytes if n_rois == size.n_rois else ():
        what = f"pseudo-FC/s, {n_rois} ROIs, {calls[-1]} a call, {size.modes[-1]}, {working_bytes >> 20} MiB at a time"
        report.attempt(what, partial(_view_line, report, size, held, calls[-1], size.modes[-1], what, working_bytes))


def least_cost(n_volumes: int, n_rois: int) -> Cost:
    """What a view takes at least: half a scan read (two views share it) and its FC written."""
    columns = n_columns(n_rois)
    return Cost(2 * n_volumes * columns**2, n_volumes * columns + 4 * n_rois**2, 1)


def _view_line(
    report: Report,
    size: Size,
    held: ResidentScans,
    n_views: int,
    mode: str,
    what: str,
    working_bytes: int = WORKING_BYTES,
) -> None:
    rate = n_views / seconds_a_call(view_call(held, n_views, mode, working_bytes), report.device, size.seconds)
    limit, by = least_cost(size.n_volumes, held.n_rois).limit(1)
    note = f"limit: {by}"
    if mode == "eager":
        moved = cost_of(view_call(held, n_views, mode)).bytes / n_views
        note += f"; moves {moved / 1e3:.0f} kB a view"
    report.add(what, f"{rate:,.0f}", f"{limit:,.0f}", f"{rate / limit:.0%}", note)


class Training:
    """One model under training, for steps of any batch size."""

    def __init__(self, held: ResidentScans, settings: PretrainSettings, mode: str) -> None:
        torch.manual_seed(0)
        self.held, self.settings, self.mode = held, settings, mode
        device = held.values.device
        self.objective = Objective(held.n_rois, settings).to(device).train()
        self.parameters = [parameter for _, parameter in self.objective.trainable()]
        capturable = "graph" in mode and device.type == "cuda"
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=3e-4, weight_decay=5e-5, fused=True, capturable=capturable
        )
        self.make_views = partial(make_views, compiled="compiled" in mode)
        if "compiled" in mode:
            for module in self.objective.modules():
                if isinstance(module, encoder.EncoderLayer):
                    module.compile()

    def update(self) -> None:
        """Take the optimiser's step with the gradients that are there."""
        torch.nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        torch.nn.utils.clip_grad_value_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.objective.follow()

    def step(self, visits: Visits) -> None:
        """A step as `pretrain` takes it."""
        numbers = visits.here()
        views = self.make_views(self.held, numbers, visits.call, 0, self.settings.views)
        take_gradients(self.objective, views, numbers.tolist(), visits.call, "bfloat16")
        self.update()

    def step_of_graph(self, visits: Visits) -> None:
        """The same losses with nothing from the processor, so that they can be captured."""
        numbers, settings, objective = visits.there(), self.settings.objective, self.objective
        views = self.make_views(self.held, numbers, visits.epoch, 0, self.settings.views)
        with torch.autocast(views.device.type, torch.bfloat16):
            reconstruction, identification, _ = objective.masked_losses(views[:1], numbers, visits.epoch)
            both = views.flatten(0, 1)
            targets = objective.target_embeddings(both).chunk(2)
            lra = objective.lra(objective.encoder(both).chunk(2), targets[::-1])
            masked = settings.identification * identification + settings.reconstruction * reconstruction
        (settings.lra * lra + masked).backward()
        self.update()


def measure_training(report: Report, size: Size, name: Any, recipe: Any) -> None:
    """Scans a second of whole training steps."""
    held = random_scans(size.n_scans, size.n_volumes, size.n_rois, report.device)
    costs: dict[int, Cost] = {}
    for mode in size.modes:
        training = Training(held, preset(name, recipe), mode)
        for batch in size.batches:
            what = f"training scans/s, {name} ({recipe} recipe), batch {batch}, {mode}"
            report.attempt(what, partial(_training_line, report, size, training, batch, what, costs))


def _training_line(
    report: Report, size: Size, training: Training, batch: int, what: str, costs: dict[int, Cost]
) -> None:
    visits, mode = Visits(training.held, batch), training.mode
    cuda = report.device.type == "cuda"
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    step = training.step_of_graph if "graph" in mode else training.step
    call = captured(partial(step, visits)) if "graph" in mode else partial(step, visits)
    seconds = seconds_a_call(call, report.device, size.seconds)
    memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if cuda else "not measured"
    views = seconds_a_call(view_call(training.held, 2 * batch, mode), report.device, size.seconds)
    if mode == "eager":
        costs[batch] = cost_of(call)
    found, note = f"{batch / seconds:,.0f}", f"memory {memory}; views {views / seconds:.0%} of the step"
    if batch not in costs:
        report.add(what, found, note=note)
        return
    cost = costs[batch]
    limit, by = cost.limit(batch)
    note += (
        f"; limit: {by}; {cost.flops / batch / 1e9:.1f} GFLOP, "
        f"{cost.bytes / batch / 1e6:.0f} MB a scan; {cost.operations:,} operations a step"
    )
    report.add(what, found, f"{limit:,.0f}", f"{batch / seconds / limit:.0%}", note)


def unmeasured(report: Report, size: Size) -> None:
    """What a machine without a GPU cannot tell."""
    for n_rois in (size.n_rois, *size.more_rois):
        limit, by = least_cost(size.n_volumes, n_rois).limit(1)
        report.add(f"pseudo-FC/s, {n_rois} ROIs", "not measured: no GPU", f"{limit:,.0f}", "", f"limit: {by}")
    for name, recipe in size.models:
        training = Training(random_scans(8, 70, size.n_rois, report.device), preset(name, recipe), "eager")
        what, step = f"training scans/s, {name} ({recipe} recipe)", partial(training.step, Visits(training.held, 4))
        report.attempt(what, partial(_unmeasured_training, report, what, step))


def _unmeasured_training(report: Report, what: str, step: Callable[[], object]) -> None:
    flops = cost_of(step).flops / 4
    note = f"{flops / 1e9:.1f} GFLOP a scan; limit: arithmetic alone"
    report.add(what, "not measured: no GPU", f"{FLOPS / flops:,.0f}", "", note)


def show(report: Report, started: float) -> None:
    """Print the table."""
    table = Table(title="openbrainmass on one device")
    for number, heading in enumerate(("what", "found", "limit", "of it", "notes")):
        table.add_column(heading, justify="left" if number in (0, 4) else "right")
    for row in report.rows:
        table.add_row(*row)
    console = Console(width=210)
    console.print(table)
    name = torch.cuda.get_device_name() if report.device.type == "cuda" else platform.processor() or "processor"
    versions = f"python {platform.python_version()}, torch {torch.__version__}, CUDA {torch.version.cuda}"
    console.print(f"{name}; {versions}; {time.monotonic() - started:.0f} s in all")
    console.print("again: python benchmarks/gpu.py")


def main() -> None:
    """Check, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rehearse", action="store_true", help="every measurement, tiny, on the processor")
    parser.add_argument("--minutes", type=float, default=7.5, help="begin no measurement after that time")
    options = parser.parse_args()
    started = time.monotonic()
    on_gpu = torch.cuda.is_available() and not options.rehearse
    device = torch.device("cuda", 0) if on_gpu else torch.device("cpu")
    if on_gpu:
        # Each size and batch is compiled anew; past torch's usual limit it would quietly go uncompiled.
        torch._dynamo.config.recompile_limit = 100
    else:
        torch.set_num_threads(1)
    size = REHEARSAL if options.rehearse else Size()
    report = Report(device, started + 60 * options.minutes)
    checks: dict[str, Callable[[], None]] = {
        "subsets": lambda: check_subsets(report),
        "pearson": lambda: check_fc(report, "pearson"),
        "ledoit-wolf": lambda: check_fc(report, "ledoit-wolf"),
        "waiting": lambda: check_waiting(report),
        "losses": lambda: check_losses(report),
    }
    for what, check in checks.items():
        report.attempt(what, check)
    if not on_gpu and not options.rehearse:
        unmeasured(report, size)
    else:
        first, *others = (partial(measure_training, report, size, *model) for model in size.models)
        report.attempt("pseudo-FC", partial(measure_views, report, size, size.n_rois, size.views))
        report.attempt("training", first)
        for n_rois in size.more_rois:
            report.attempt("pseudo-FC", partial(measure_views, report, size, n_rois, size.views[-2:][:1]))
        for other in others:
            report.attempt("training", other)
    show(report, started)


if __name__ == "__main__":
    main()
