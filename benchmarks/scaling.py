"""How cost grows: pseudo-FC with ROIs and volumes, pretraining with the number of scans, and with processes.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py views
    OMP_NUM_THREADS=1 python benchmarks/scaling.py cohort --scans 1000 20000 70781 --folder DIR
    OMP_NUM_THREADS=1 python benchmarks/scaling.py team

``views``: microseconds a view of `pseudo_fc_batch` (two views a scan) for each number of ROIs and volumes, and how many
times nilearn's cost is. ``cohort``: peak memory and median time of a step of pretraining (size `tiny`, 100 ROIs) from
simulated stores, which need 40 KB a scan under DIR. ``team``: time of a step (size `small`, batch 64) with one process
and with two under torchrun, which takes a core each.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np

from machine import peak_mib

STEPS, WARM_STEPS = 40, 10


def views(rois: list[int], lengths: list[int]) -> None:
    """Print a table of ROIs by volumes."""
    from openbrainmass.model.pseudo_fc import pseudo_fc_batch
    from pseudo_fc import medians, nilearn_views

    warnings.simplefilter("ignore")
    rng = np.random.default_rng(0)
    print("microseconds of processor time a view / times nilearn's (Ledoit-Wolf, its default)")
    print(f"{'ROIs':>6}" + "".join(f"{f'{length} volumes':>20}" for length in lengths))
    for n_rois in rois:
        line = f"{n_rois:6}"
        for n_volumes in lengths:
            n_scans = max(1, min(16, 4_000_000 // (n_rois * n_rois)))
            scans = [rng.standard_normal((n_volumes, n_rois), dtype=np.float32) for _ in range(n_scans)]
            seconds = medians(
                {
                    "nilearn": lambda scans=scans: nilearn_views(scans),
                    "ours": lambda scans=scans: pseudo_fc_batch(scans, range(len(scans))),
                },
                n_rounds=5,
            )
            each = f"{1e6 * seconds['ours'] / (2 * n_scans):,.0f}"
            ratio = f"{seconds['nilearn'] / seconds['ours']:.1f}"
            line += f"{each + ' / ' + ratio:>20}"
        print(line, flush=True)


def cohort(sizes: list[int], folder: Path | None) -> None:
    """Print peak memory and step time of pretraining for each number of scans."""
    print(f"{'scans':>8}{'peak MiB':>10}{'ms a step':>11}{'of the first':>14}", flush=True)
    first = 0.0
    with tempfile.TemporaryDirectory(dir=folder) as name:
        for n_scans in sizes:
            store = Path(name) / f"store-{n_scans}"
            # In a process of its own, whose memory is not counted.
            command = [sys.executable, __file__, "cohort", "--build", str(store), "--scans", str(n_scans)]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
            command = [sys.executable, __file__, "cohort", "--pretrain", str(store)]
            found = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            )
            first = first or found["peak_mib"]
            share = f"{100 * (found['peak_mib'] / first - 1):+.1f} %"
            print(f"{n_scans:8}{found['peak_mib']:10.0f}{found['ms']:11.1f}{share:>14}", flush=True)


def pretrain_some_steps(store: Path) -> None:
    """In a process of its own: pretrain for a few steps; print peak memory and the median step."""
    from openbrainmass.cohort.store import load_cohort
    from openbrainmass.durable import read_json_lines
    from openbrainmass.model.pretrain import pretrain
    from openbrainmass.model.settings import preset

    settings = preset("tiny").model_copy(update={"max_steps": STEPS})
    out = store.with_name(store.name + "-run")
    pretrain(load_cohort(store), settings, out, progress=False)
    seconds = np.diff([record["seconds"] for record in read_json_lines(out / "metrics.jsonl")])
    print(json.dumps({"peak_mib": peak_mib(), "ms": 1e3 * statistics.median(seconds[WARM_STEPS:])}))


def team(n_scans: int, steps: int) -> None:
    """Print the time of a step with one process and with two, which take turns."""
    from openbrainmass.cohort.simulate import simulate_cohort
    from openbrainmass.cohort.store import save_cohort
    from openbrainmass.durable import read_json_lines

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_cohort(simulate_cohort(n_people=n_scans, n_rois=100, n_volumes=120), folder / "store")
        seconds: dict[int, list[float]] = {1: [], 2: []}
        for turn in range(3):
            for n_processes, found in seconds.items():
                out = folder / f"run-{n_processes}-{turn}"
                launch = [
                    sys.executable,
                    "-m",
                    "torch.distributed.run",
                    "--standalone",
                    f"--nproc-per-node={n_processes}",
                ]
                command = [*launch, "-m", "openbrainmass.cli", "pretrain", str(folder / "store"), "--out", str(out)]
                options = ["--size", "small", "--set", "batch_size=64", "--set", f"max_steps={steps}"]
                environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                subprocess.run([*command, *options], check=True, capture_output=True, env=environment)
                found += np.diff([record["seconds"] for record in read_json_lines(out / "metrics.jsonl")]).tolist()
        one, two = (statistics.median(found) for found in seconds.values())
        print(
            f"one process {1e3 * one:.0f} ms a step, two {1e3 * two:.0f} ms: {one / two:.2f} times, "
            f"{100 * one / two / 2:.0f} % of twice"
        )


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["views", "cohort", "team"])
    parser.add_argument("--rois", type=int, nargs="+", default=[68, 100, 200, 400, 1000])
    parser.add_argument("--volumes", type=int, nargs="+", default=[60, 200, 490, 1200])
    parser.add_argument("--scans", type=int, nargs="+", default=[1000, 20_000])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--pretrain", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    started = time.perf_counter()
    if options.pretrain:
        pretrain_some_steps(options.pretrain)
        return
    if options.build:
        from store import build

        build(options.scans[0], options.build, jobs=1)
        return
    if options.what == "views":
        views(options.rois, options.volumes)
    elif options.what == "cohort":
        cohort(options.scans, options.folder)
    else:
        team(n_scans=128, steps=options.steps)
    print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
