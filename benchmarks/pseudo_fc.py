"""Two pseudo-FC views a scan: openbrainmass against nilearn, numpy and the published data path.

Run again with (the second prints everything that docs/performance.md shows; about 3 minutes)::

    OMP_NUM_THREADS=1 python benchmarks/pseudo_fc.py
    OMP_NUM_THREADS=1 python benchmarks/pseudo_fc.py --all

All contenders work on the same float32 recordings and, the published path excepted, on the same volumes, on one thread.
They take turns in one process, so what else the machine does hits all alike; figures are medians of CPU time.
nilearn runs as BrainMass ran it: ``ConnectivityMeasure(kind="correlation")`` (Ledoit-Wolf, standardised), on a list of
all the scans' views. "nilearn, plain covariance" is the cheapest way to have a plain correlation from nilearn.
Ours takes recordings as they are ("raw"), or made ready once by `standardise` ("prepared"), whose own cost is a line.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable
from typing import Any

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")

import numpy as np
import torch
from nilearn.connectome import ConnectivityMeasure
from rich.console import Console
from rich.table import Table
from sklearn.covariance import EmpiricalCovariance

from machine import about_machine
from openbrainmass.connectivity import correlation
from openbrainmass.model.pseudo_fc import kept_volumes, pseudo_fc_batch
from openbrainmass.model.view_products import StandardisedScan, standardise
from reference.pseudo_fc import sample_by_sample

N_VIEWS = 2
N_MANY, MANY_VIEWS = 16, ", 16 views of each"
LENGTHS = (78, 120, 150, 176, 195, 236, 240, 295, 316, 490, 652, 1200)
REFERENCE = "nilearn, its default"
BATCH = 64
SHARE = 0.2
Runs = dict[str, Callable[[], object]]


def recordings(n_scans: int, n_rois: int, n_volumes: int, mixed: bool, seed: int = 0) -> list[np.ndarray]:
    """BOLD-like float32 recordings, of one length or (mixed) of 78 to 1200 volumes with that mean."""
    rng = np.random.default_rng(seed)
    lengths = np.full(n_scans, n_volumes)
    if mixed:
        drawn = rng.choice(LENGTHS, size=n_scans)
        lengths = np.clip(drawn * n_volumes / drawn.mean(), min(LENGTHS), max(LENGTHS)).astype(int)
    mixing = rng.normal(size=(12, n_rois))
    return [
        (rng.normal(size=(length, 12)) @ mixing + 3 * rng.normal(size=(length, n_rois))).astype(np.float32)
        for length in lengths
    ]


def kept_of(scans: list[np.ndarray]) -> list[np.ndarray]:
    """The volumes that each view keeps; a scan's place in the list is its number."""
    return [kept_volumes(len(bold), N_VIEWS, scan=number) for number, bold in enumerate(scans)]


def nilearn_views(scans: list[np.ndarray], **options: Any) -> np.ndarray:
    """The same views by nilearn."""
    kept = kept_of(scans)
    measure = ConnectivityMeasure(kind="correlation", verbose=0, **options)
    return np.stack(
        [
            measure.fit_transform([bold[mask[view]] for bold, mask in zip(scans, kept, strict=True)])
            for view in range(N_VIEWS)
        ]
    )


def numpy_views(scans: list[np.ndarray]) -> list[np.ndarray]:
    """The same views by `numpy.corrcoef`, one at a time."""
    return [np.corrcoef(bold[mask].T) for bold, kept in zip(scans, kept_of(scans), strict=True) for mask in kept]


def medians(runs: Runs, n_rounds: int) -> dict[str, float]:
    """Median CPU seconds of each, taking turns."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in range(n_rounds + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            if round_number:
                seconds[name].append(time.process_time() - start)
    return {name: float(np.median(values)) for name, values in seconds.items()}


def contenders(scans: list[np.ndarray]) -> Runs:
    """Everything that is compared on a list of scans."""
    keys = range(len(scans))
    halves = [bold.astype(np.float16) for bold in scans]
    prepared = [standardise(bold) for bold in scans]
    plain = EmpiricalCovariance(store_precision=False)
    return {
        REFERENCE: lambda: nilearn_views(scans),
        "nilearn, plain covariance": lambda: nilearn_views(scans, cov_estimator=plain),
        "nilearn, sample by sample as published": lambda: sample_by_sample(scans, N_VIEWS, SHARE),
        "numpy.corrcoef": lambda: numpy_views(scans),
        "openbrainmass, pearson, raw float32": lambda: pseudo_fc_batch(scans, keys),
        "openbrainmass, pearson, raw float16": lambda: pseudo_fc_batch(halves, keys),
        "openbrainmass, pearson, prepared": lambda: pseudo_fc_batch(prepared, keys),
        f"openbrainmass, pearson, prepared{MANY_VIEWS}": lambda: pseudo_fc_batch(prepared, keys, N_MANY),
        "openbrainmass, ledoit-wolf, raw float32": lambda: pseudo_fc_batch(scans, keys, estimator="ledoit-wolf"),
        "openbrainmass, ledoit-wolf, prepared": lambda: pseudo_fc_batch(prepared, keys, estimator="ledoit-wolf"),
        f"openbrainmass, ledoit-wolf, prepared{MANY_VIEWS}": lambda: pseudo_fc_batch(
            prepared, keys, N_MANY, estimator="ledoit-wolf"
        ),
        "of these: drawing the volumes": lambda: kept_of(scans),
        "once a scan: standardise (as two views)": lambda: [standardise(bold) for bold in scans],
    }


def cohort_batches(n_scans: int, n_rois: int, n_volumes: int) -> Runs:
    """Batches of scans drawn from a cohort much larger than the caches, another batch each round, to a torch tensor."""
    scans = recordings(n_scans, n_rois, n_volumes, mixed=True)
    halves = [bold.astype(np.float16) for bold in scans]
    prepared = [standardise(bold) for bold in scans]
    rng = {}

    def batch(name: str, source: list[Any], views: Callable[[list[Any], np.ndarray], np.ndarray]) -> torch.Tensor:
        # Every contender meets the same batches, in the same order.
        numbers = rng.setdefault(name, np.random.default_rng(0)).choice(n_scans, BATCH, replace=False)
        return torch.from_numpy(views([source[number] for number in numbers], numbers))

    def ours(name: str, source: list[Any]) -> Callable[[], object]:
        return lambda: batch(name, source, lambda chosen, numbers: pseudo_fc_batch(chosen, numbers.tolist()))

    return {
        REFERENCE: lambda: batch("nilearn", scans, lambda chosen, _: nilearn_views(chosen).astype(np.float32)),
        "openbrainmass, raw float32": ours("float32", scans),
        "openbrainmass, raw float16": ours("float16", halves),
        "openbrainmass, prepared": ours("prepared", prepared),
    }


def print_speed(console: Console, title: str, runs: Runs, n_scans: int, n_rounds: int) -> None:
    """Measure and print one table."""
    seconds = medians(runs, n_rounds)
    table = Table(title=title)
    for column in ("", "microseconds a view", "times the speed of nilearn's default"):
        table.add_column(column, justify="right" if column else "left")
    for name, value in seconds.items():
        share = N_VIEWS / N_MANY if name.endswith(MANY_VIEWS) else 1.0
        a_view = 1e6 * value * share / (N_VIEWS * n_scans)
        table.add_row(name, f"{a_view:,.1f}", f"{seconds[REFERENCE] / (value * share):.1f}")
    console.print(table)


def print_limit(console: Console, n_rois: int, n_volumes: int) -> None:
    """What the products of the volumes left out cost at the measured rate of float32 products."""
    square = np.random.default_rng(0).normal(size=(1000, 1000)).astype(np.float32)
    rows = square[: round(SHARE * n_volumes) + 1, :n_rois].copy()
    out = np.empty((n_rois, n_rois), dtype=np.float32)
    other, repeats = square.copy(), 100
    alone: Runs = {
        "square": lambda: square @ other,
        "rows": lambda: [np.matmul(rows.T, rows, out=out) for _ in range(repeats)],
    }
    seconds = medians(alone, 20)
    rate, flops = 2e9 / seconds["square"], 2 * len(rows) * n_rois**2
    console.print(
        f"limit at {n_rois} ROIs and {n_volumes} volumes: a view leaves out {len(rows) - 1} volumes; with the mean "
        f"2 x {len(rows)} x {n_rois}^2 = {flops / 1e6:.2f} Mflop, at {rate / 1e9:.0f} Gflop/s (a product of 1000 x "
        f"1000) {1e6 * flops / rate:.1f} microseconds a view, {rate / flops:,.0f} views/s; numpy needs "
        f"{1e6 * seconds['rows'] / repeats:.1f} for it (a product with itself)"
    )


def hard_data(n_volumes: int, n_rois: int, seed: int) -> dict[str, np.ndarray]:
    """Float32 recordings that are hard for float32, by what is hard about them."""
    rng = np.random.default_rng(seed)
    plain = rng.normal(size=(n_volumes, 6)) @ rng.normal(size=(6, n_rois)) + rng.normal(size=(n_volumes, n_rois))
    cases = {"ordinary": plain, "mean of 1e4 sd": plain + 1e4 * plain.std(axis=0)}
    changes = {"constant ROI": 2.5, "almost constant ROI": 100 + 1e-4 * plain[:, 3], "two equal ROIs": plain[:, 4]}
    for name, column in changes.items():
        cases[name] = plain.copy()
        cases[name][:, 3] = column
    for height in (1e2, 1e4):
        spike = cases[f"spikes of {height:g} sd"] = plain.copy()
        spike[rng.integers(n_volumes), rng.random(n_rois) < 0.5] += height * plain.std()
    return {name: bold.astype(np.float32) for name, bold in cases.items()}


def errors_of(bold: np.ndarray, scan: int) -> dict[str, float]:
    """Largest differences of both views from the float64 two-pass correlation, by route and estimator."""
    kept = kept_volumes(len(bold), N_VIEWS, scan=scan)
    found = {}
    for estimator in ("pearson", "ledoit-wolf"):
        exact = np.stack([correlation(bold[mask].astype(np.float64), estimator) for mask in kept])
        for route, given in (("raw", bold), ("prepared", standardise(bold))):
            fc = pseudo_fc_batch([given], [scan], N_VIEWS, estimator=estimator)[:, 0]
            assert np.array_equal(fc, fc.swapaxes(-1, -2)) and np.abs(fc).max() <= 1
            assert np.all(np.diagonal(fc, axis1=-2, axis2=-1) == 1)
            found[f"{estimator}, {route}"] = float(np.abs(fc - exact).max())
    return found


def print_errors(console: Console, n_rois: int, n_seeds: int) -> None:
    """The largest errors over hard data, lengths and seeds."""
    worst: dict[str, dict[str, float]] = {}
    for seed in range(n_seeds):
        for n_volumes in (30, 78, 176, 380, 1200):
            for kind, bold in hard_data(n_volumes, n_rois, seed).items():
                row = worst.setdefault(kind, {})
                for name, error in errors_of(bold, scan=seed).items():
                    row[name] = max(row.get(name, 0.0), error)
    table = Table(title=f"largest error against two passes in float64, {n_rois} ROIs, 30 to 1200 volumes")
    columns = list(worst["ordinary"])
    for column in ("", *columns):
        table.add_column(column, justify="right" if column else "left")
    for kind, row in worst.items():
        table.add_row(kind, *(f"{row[column]:.1e}" for column in columns))
    console.print(table)
    scans = recordings(8, n_rois, 380, mixed=True)
    ours = pseudo_fc_batch(scans, range(len(scans)), estimator="ledoit-wolf")
    theirs = nilearn_views([bold.astype(np.float64) for bold in scans])
    console.print(f"ledoit-wolf against nilearn in float64: {np.abs(ours - theirs).max():.1e}")


def views_per_second(scans: list[np.ndarray | StandardisedScan], barrier: Any, results: Any, seconds: float) -> None:
    """In a process of its own: make views for some time, beginning when all processes do."""
    torch.set_num_threads(1)
    pseudo_fc_batch(scans, range(len(scans)))
    barrier.wait()
    start, n_views = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        pseudo_fc_batch(scans, range(len(scans)))
        n_views += N_VIEWS * len(scans)
    results.put(n_views / (time.perf_counter() - start))


def print_processes(console: Console, scans: list[np.ndarray], seconds: float) -> None:
    """Views a second of one process, of two at once and of one again (wall clock; needs two idle cores)."""
    context = multiprocessing.get_context("spawn")
    for name, given in {"raw": scans, "prepared": [standardise(bold) for bold in scans]}.items():
        rates = []
        for n_processes in (1, 2, 1):
            barrier, results = context.Barrier(n_processes), context.Queue()
            workers = [
                context.Process(target=views_per_second, args=(given, barrier, results, seconds))
                for _ in range(n_processes)
            ]
            for worker in workers:
                worker.start()
            rates.append(sum(results.get() for _ in workers))
            for worker in workers:
                worker.join()
        one = (rates[0] + rates[2]) / 2
        console.print(f"{name}: one process {one:,.0f} views/s, two {rates[1]:,.0f}: {rates[1] / one:.2f} times")


def parsed() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(description="pseudo-FC against nilearn, numpy and the published data path")
    parser.add_argument("--scans", type=int, default=64)
    parser.add_argument("--rois", type=int, default=100)
    parser.add_argument("--volumes", type=int, default=380)
    parser.add_argument("--one-length", action="store_true", help="all scans have that many volumes, else on average")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--all", action="store_true", help="other sizes, random order, two processes, errors too")
    parser.add_argument("--cohort", type=int, default=2000, help="scans that the random order is drawn from")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each measurement of processes")
    return parser.parse_args()


def main() -> None:
    """Measure and print."""
    options, console = parsed(), Console(width=130)
    torch.set_num_threads(1)
    # nilearn announces changes of its defaults, which do not touch this use.
    warnings.simplefilter("ignore")
    sizes = [(options.scans, options.rois, options.volumes, not options.one_length)]
    if options.all:
        sizes += [(16, 200, 490, False), (8, 400, 490, False)]
    for n_scans, n_rois, n_volumes, mixed in sizes:
        scans = recordings(n_scans, n_rois, n_volumes, mixed)
        mean = np.mean([len(bold) for bold in scans])
        title = f"{N_VIEWS} views of {n_scans} scans, {n_rois} ROIs, {'mean ' if mixed else ''}{mean:.0f} volumes"
        print_speed(console, title, contenders(scans), n_scans, options.rounds)
        print_limit(console, n_rois, n_volumes)
    if options.all:
        title = f"random batches of {BATCH} from {options.cohort} scans to a tensor, {options.rois} ROIs, mixed lengths"
        runs = cohort_batches(options.cohort, options.rois, options.volumes)
        print_speed(console, title, runs, BATCH, options.rounds)
        print_processes(console, recordings(options.scans, options.rois, options.volumes, mixed=True), options.seconds)
        print_errors(console, options.rois, n_seeds=5)
    machine = about_machine("numpy", "scipy", "torch", "scikit-learn", "nilearn")
    console.print(f"{machine}; 1 thread used\nmedians of CPU time over {options.rounds} rounds in turn")
    console.print(f"again: OMP_NUM_THREADS=1 python benchmarks/pseudo_fc.py{' --all' if options.all else ''}")


if __name__ == "__main__":
    main()
