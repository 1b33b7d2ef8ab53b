"""Build a large simulated store: memory, time to open, random reads, and what being killed does to it.

    OMP_NUM_THREADS=1 python benchmarks/store.py --scans 70781 --kills 50 --folder DIR

70,781 scans of 46,686 people (100 ROIs, 200 volumes, float16) need 3 GB under DIR, twice that with --kills. The peak
memory is that of the building process (it has no children with --jobs 1), compared with a build of 200 scans.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from machine import peak_mib

N_ROIS, N_VOLUMES, N_FACTORS, TR = 100, 200, 12, 2.0
SCANS_A_PERSON = 70_781 / 46_686


def read(row: Mapping[str, Any]) -> Any:
    """A scan made from its number: what all people share, what this person has alone, and noise."""
    from openbrainmass.cohort.source import Series

    person, scan = int(row["participant_id"][4:]), int(row["recording_id"][4:])
    everybody = np.random.default_rng(0).standard_normal((N_FACTORS, N_ROIS), dtype=np.float32)
    own = np.random.default_rng([1, person]).standard_normal((N_FACTORS, N_ROIS), dtype=np.float32)
    rng = np.random.default_rng([2, scan])
    slow = rng.standard_normal((N_VOLUMES, N_FACTORS), dtype=np.float32)
    noise = rng.standard_normal((N_VOLUMES, N_ROIS), dtype=np.float32)
    return Series((slow @ (everybody + own) + 3 * noise).astype(np.float16), {"the simulation": TR})


def source(n_scans: int) -> Any:
    """A source of that many scans."""
    import pandas as pd

    from openbrainmass.atlas import numbered_atlas
    from openbrainmass.cohort.cohort import EXCLUSION_COLUMNS
    from openbrainmass.cohort.source import Source

    n_people = round(n_scans / SCANS_A_PERSON)
    people = np.array([f"sub-{number:06d}" for number in range(n_people)], dtype=object)
    recordings = pd.DataFrame(
        {
            "recording_id": [f"rec-{number:06d}" for number in range(n_scans)],
            "participant_id": people[np.arange(n_scans) % n_people],
            "session": np.array(["1", "2"], dtype=object)[np.arange(n_scans) // n_people],
            "run": None,
            "tr": TR,
        }
    )
    sites = np.array([f"site{number}" for number in range(30)], dtype=object)
    participants = pd.DataFrame(
        {"participant_id": people, "site": sites[np.arange(n_people) % 30], "age": np.arange(n_people) % 70 + 10.0}
    )
    none = pd.DataFrame(columns=list(EXCLUSION_COLUMNS))
    return Source("simulated", numbered_atlas("Simulated", N_ROIS), recordings, participants, none, read)


def build(n_scans: int, out: Path, jobs: int) -> None:
    """The build that is measured or killed; prints what it took."""
    from openbrainmass.cohort.build import build_store

    print("started", flush=True)
    began = time.monotonic()
    made = build_store(source(n_scans), out, progress=False, jobs=jobs)
    print(json.dumps({"n": len(made), "seconds": time.monotonic() - began, "peak_mib": peak_mib()}), flush=True)


def start(n_scans: int, out: Path, jobs: int) -> subprocess.Popen[str]:
    """Start a build in a process group of its own and wait until it is about to begin."""
    command = [sys.executable, __file__, "--build", str(out), "--scans", str(n_scans), "--jobs", str(jobs)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    if process.stdout is None or process.stdout.readline() != "started\n":
        raise RuntimeError("the build did not start")
    return process


def measured(n_scans: int, out: Path, jobs: int) -> dict[str, float]:
    """Build without disturbance."""
    process = start(n_scans, out, jobs)
    output, _ = process.communicate()
    return json.loads(output.splitlines()[-1])


def reads_a_second(out: Path) -> tuple[float, float]:
    """Seconds to open a store, and random reads a second once every shard was read."""
    from openbrainmass.cohort.store import load_cohort

    began = time.monotonic()
    cohort = load_cohort(out)
    seconds = time.monotonic() - began
    for index in range(len(cohort)):
        cohort.bold(index)
    places = np.random.default_rng(0).integers(len(cohort), size=50_000).tolist()
    began = time.monotonic()
    for index in places:
        cohort.bold(index)
    return seconds, len(places) / (time.monotonic() - began)


def state(out: Path) -> str:
    """What opening the store says: whole, or how to resume."""
    from openbrainmass.cohort.store import load_cohort
    from openbrainmass.errors import OpenBrainMassError

    try:
        return "whole" if load_cohort(out)[-1].shape == (N_VOLUMES, N_ROIS) else "WRONG"
    except OpenBrainMassError as error:
        for sentence, what in (("Run the same command again", "says how to resume"), ("does not exist", "not begun")):
            if sentence in str(error):
                return what
        return f"UNCLEAR: {error}"


def killed(n_scans: int, out: Path, jobs: int, kills: int, seconds: float) -> list[str]:
    """Kill a build at random moments and start it again; what reopening said each time."""
    said = []
    for number in range(kills):
        if out.exists():
            shutil.rmtree(out)
        process = start(n_scans, out, jobs)
        # Mostly soon, so that many kills fall into one build; sometimes late enough to hit its end.
        time.sleep(random.uniform(0, 2 * seconds / kills if number % 5 else seconds / 2))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        said.append(state(out))
        print(f"  kill {number + 1:2}: {said[-1]}", flush=True)
    if said[-1] != "whole":
        start(n_scans, out, jobs).communicate()
    return said


def same(left: Path, right: Path) -> bool:
    """Whether two stores are the same files."""
    names = sorted(path.name for path in left.iterdir())
    return names == sorted(path.name for path in right.iterdir()) and all(
        subprocess.run(["cmp", "-s", left / name, right / name], check=False).returncode == 0 for name in names
    )


def main() -> None:
    """Run the study; exit code 1 if a killed build ends otherwise than one left alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scans", type=int, default=70_781)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="Where the stores are built and deleted; default: a temporary one.")
    parser.add_argument("--build", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.build:
        build(arguments.scans, arguments.build, arguments.jobs)
        return
    random.seed(arguments.seed)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        small = measured(200, folder / "small", arguments.jobs)
        large = measured(arguments.scans, folder / "large", arguments.jobs)
        for what in (small, large):
            print(f"{what['n']:6} scans: {what['seconds']:7.1f} s, peak {what['peak_mib']:6.1f} MiB", flush=True)
        print(f"more memory: {large['peak_mib'] - small['peak_mib']:.1f} MiB")
        seconds, speed = reads_a_second(folder / "large")
        print(f"opened in {seconds:.2f} s; {speed:,.0f} random reads a second, warm", flush=True)
        if not arguments.kills:
            return
        said = killed(arguments.scans, folder / "killed", arguments.jobs, arguments.kills, large["seconds"])
        equal = same(folder / "large", folder / "killed")
        counts = ", ".join(f"{said.count(what)} {what}" for what in sorted(set(said)))
        print(f"{len(said)} kills: {counts}; the store is {'the same, bit by bit' if equal else 'DIFFERENT'}")
    sys.exit(0 if equal and not any(what.startswith(("WRONG", "UNCLEAR")) for what in said) else 1)


if __name__ == "__main__":
    main()
