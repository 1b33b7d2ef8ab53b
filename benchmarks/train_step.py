"""Time and memory of one training step: ours against the published recipe written plainly (same views, one run).

Processor seconds (with one thread, those of the wall clock on an idle machine), because they bear other users. Each
contender has a process of its own and they take turns; the peak memory is that of the whole process.

    OMP_NUM_THREADS=1 python benchmarks/train_step.py
    OMP_NUM_THREADS=1 python benchmarks/train_step.py --batch 64 --rounds 1 --ours
    OMP_NUM_THREADS=1 python benchmarks/train_step.py --sizes tiny small base --rois 100 200
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from multiprocessing import get_context
from multiprocessing.connection import Connection

import numpy as np
import torch

from machine import about_machine, peak_mib
from openbrainmass.model.gradients import take_gradients
from openbrainmass.model.memory import kept_memory
from openbrainmass.model.objectives import Objective
from openbrainmass.model.settings import PretrainSettings, Size, preset
from reference.recipe import ReferenceRecipe

PLAIN = ("plain, scan by scan", "plain, whole batches", "plain, whole batches, memory kept")
"""The published recipe; "memory kept" gives it our memory settings, too."""

_NO_DROPOUT = {"encoder": {"dropout": 0.0, "attention_dropout": 0.0}}
_ONE_PASS = {"objective": {"masked_passes": 1}}
OURS: dict[str, dict] = {
    "float32, dropout": {},
    "float32, no dropout": _NO_DROPOUT,
    "bfloat16, dropout": {"precision": "bfloat16"},
    "bfloat16, no dropout": {"precision": "bfloat16"} | _NO_DROPOUT,
    "bfloat16, no dropout, one masked pass": {"precision": "bfloat16"} | _NO_DROPOUT | _ONE_PASS,
    "the same, masked views predict": {
        "precision": "bfloat16",
        **_NO_DROPOUT,
        "objective": {"masked_passes": 1, "lra_online": "masked"},
    },
    "bfloat16, dropout, 16 scans at once": {"precision": "bfloat16", "scans_at_once": 16},
    "float32, dropout, 16 scans at once": {"scans_at_once": 16},
}
"""What each of ours changes in the published settings."""


def random_views(n_scans: int, n_rois: int, seed: int = 0) -> torch.Tensor:
    """Two views ``(2, n_scans, n_rois, n_rois)`` of correlated noise."""
    generator = np.random.default_rng(seed)
    mixing = generator.normal(size=(n_rois, n_rois)) / np.sqrt(n_rois) + np.eye(n_rois)
    series = generator.normal(size=(n_scans, 200, n_rois)) @ mixing
    views = [[np.corrcoef(scan[generator.random(200) > 0.2].T) for scan in series] for _ in range(2)]
    return torch.from_numpy(np.asarray(views, dtype=np.float32))


def our_step(settings: PretrainSettings, views: torch.Tensor) -> Callable[[], float]:
    """One step of `pretrain` after its views are made: losses, gradients, clipping, optimiser, target."""
    torch.manual_seed(0)
    objective = Objective(views.shape[2], settings).train()
    parameters = [parameter for _, parameter in objective.trainable()]
    optimizer = torch.optim.AdamW(parameters, lr=3e-4, weight_decay=5e-5, fused=True)
    scans = list(range(views.shape[1]))

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        losses = take_gradients(objective, views, scans, 0, settings.precision, settings.scans_at_once)
        torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        torch.nn.utils.clip_grad_value_(parameters, 1.0)
        optimizer.step()
        objective.follow()
        return float(losses.total)

    return step


def changed(settings: PretrainSettings, changes: dict) -> PretrainSettings:
    """Settings with some values changed, sections included."""
    sections = {name: getattr(settings, name) for name in changes}
    new = {
        name: section.model_copy(update=changes[name]) if isinstance(changes[name], dict) else changes[name]
        for name, section in sections.items()
    }
    return settings.model_copy(update=new)


def contender(name: str, batch: int, n_rois: int) -> Callable[[], float]:
    """A step by its name in the table."""
    views = random_views(batch, n_rois)
    if name in PLAIN:
        torch.manual_seed(0)
        reference = ReferenceRecipe(n_rois)
        return lambda: reference.step(views, "scans" if "scan by scan" in name else "masks")
    return our_step(changed(preset("paper", "paper"), OURS[name]), views)


def serve(name: str, batch: int, n_rois: int, threads: int, pipe: Connection) -> None:
    """In a process of its own: take a step whenever asked, and answer its processor seconds and the peak so far."""
    torch.set_num_threads(threads)
    with nullcontext() if name in PLAIN[:2] else kept_memory():
        step = contender(name, batch, n_rois)
        step()
        while pipe.recv():
            started = time.process_time()
            step()
            pipe.send((time.process_time() - started, peak_mib() / 1024))


def measure_in_turns(
    names: Sequence[str], batch: int, n_rois: int, threads: int, n_rounds: int
) -> dict[str, tuple[float, float]]:
    """Median processor seconds and peak GiB of each step, taken in turns so that a busy machine is busy for all."""
    spawn = get_context("spawn")
    pipes: dict[str, Connection] = {}
    for name in names:
        pipes[name], theirs = spawn.Pipe()
        spawn.Process(target=serve, args=(name, batch, n_rois, threads, theirs), daemon=True).start()
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for _ in range(n_rounds):
        for name, pipe in pipes.items():
            pipe.send(True)
            found[name].append(pipe.recv())
    for pipe in pipes.values():
        pipe.send(False)
    return {name: (statistics.median(s for s, _ in rows), max(g for _, g in rows)) for name, rows in found.items()}


def compare(names: Sequence[str], batch: int, n_rois: int, threads: int, n_rounds: int) -> None:
    """Print time, memory and, where the plain recipe takes part, its time over ours."""
    ours = Objective(n_rois, preset("paper", "paper"))
    count = sum(p.numel() for part in (ours.encoder, ours.projector) for p in part.parameters())
    print(f"online network: {count:,} parameters at {n_rois} ROIs; batch {batch}, {n_rounds} steps each, median")
    # Without the plain recipe there are no ratios to protect, and one process at a time needs less memory.
    groups = [names] if PLAIN[0] in names else [[name] for name in names]
    found = {}
    for group in groups:
        found |= measure_in_turns(group, batch, n_rois, threads, n_rounds)
    print(f"{'step':40}{'seconds':>9}{'peak GiB':>10}{'scan by scan / it':>19}{'whole batches / it':>20}")
    for name, (seconds, peak) in found.items():
        ratios = [f"{found[plain][0] / seconds:.2f}" if plain in found else "-" for plain in PLAIN[:2]]
        print(f"{name:40}{seconds:9.3f}{peak:10.2f}{ratios[0]:>19}{ratios[1]:>20}")
    print(f"{about_machine('torch')}; {threads} thread(s) used")


def print_limit(n_rois: int, batch: int) -> None:
    """Print how long the matrix products of a step alone take, at the rate of the largest of them."""
    settings = preset("paper", "paper")
    encoder, width = settings.encoder, settings.encoder.token_width(n_rois)
    # Of one FC through one layer: query, key, value and output; scores and mixture; feed-forward.
    products = 4 * n_rois * width**2 + 2 * n_rois**2 * width + 2 * n_rois * width * encoder.ffn
    for n_masked in (2, 1):
        # Online networks go forward once and back at twice the cost, the target forward only.
        passes = 3 * (2 + n_masked) + 2
        flops = 2 * products * encoder.depth * passes * batch
        for dtype in (torch.float32, torch.bfloat16):
            tokens, weight = (torch.ones(rows, width, dtype=dtype) for rows in (2 * batch * n_rois, encoder.ffn))
            rates = []
            for _ in range(20):
                started = time.process_time()
                torch.mm(tokens, weight.T)
                rates.append(2 * tokens.shape[0] * width * encoder.ffn / (time.process_time() - started))
            rate = statistics.median(rates)
            print(
                f"limit, {n_masked} masked pass(es), {dtype}: {flops / 1e9:.0f} GFLOP at {rate / 1e9:.0f} GFLOP/s "
                f"= {flops / rate:.2f} s"
            )


def sizes(names: list[Size], rois: list[int], n_rounds: int) -> None:
    """Print the step time of presets."""
    print(f"{'size':8}{'ROIs':>6}{'batch':>7}{'seconds':>10}{'scans/s':>9}")
    for name in names:
        for n_rois in rois:
            settings = preset(name)
            views = random_views(settings.batch_size, n_rois)
            with kept_memory():
                step = our_step(settings, views)
                step()
                started = time.process_time()
                for _ in range(n_rounds):
                    step()
                seconds = (time.process_time() - started) / n_rounds
            print(f"{name:8}{n_rois:6}{settings.batch_size:7}{seconds:10.3f}{settings.batch_size / seconds:9.0f}")


def main() -> None:
    """Parse the command line and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sizes", nargs="*", default=[])
    parser.add_argument("--rois", nargs="*", type=int, default=[100])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--ours", action="store_true", help="leave out the plain recipe, which needs 20 GiB at 64")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.sizes:
        sizes(arguments.sizes, arguments.rois, arguments.rounds)
    else:
        for n_rois in arguments.rois:
            names = tuple(OURS) if arguments.ours else (*PLAIN, *OURS)
            compare(names, arguments.batch, n_rois, arguments.threads, arguments.rounds)
            print_limit(n_rois, arguments.batch)


if __name__ == "__main__":
    main()
