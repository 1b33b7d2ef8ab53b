"""How often copies of scans are found, altered in eight ways, and how often different scans are taken for one.

Each kind of copy is made of every scan of a cohort, once inside the cohort (all scans and their copies together) and
once in another store (the cohort against a store of nothing but copies). The thresholds were chosen on the first cohort
alone; the others are held out. Six harder kinds, which are not promised, are printed below the eight. Small cohorts,
where nothing is known of what brains share, are drawn from the same scans, with five mixed copies each. Then people are
mixed up between their two sessions, and 10,000 simulated scans with copies of 100 among them are judged;
``--fingerprints 70781`` measures the memory of judging that many. Run again with

    OMP_NUM_THREADS=1 python benchmarks/duplicates.py DATA [--cohorts abide1_cc200 cni_cc200 hcp_dk68]

DATA holds one folder a cohort: ``participants.tsv`` or ``recordings.tsv`` with the columns ``participant_id tr file``.
"""

from __future__ import annotations

import argparse
import os
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import numpy as np
import pandas as pd
from scipy.signal import butter, detrend, sosfiltfilt

from openbrainmass.cohort.cohort import bold_digest
from openbrainmass.cohort.duplicates import ALTERATIONS, Fingerprinter
from openbrainmass.cohort.quality import Judgement, QualitySettings, judge

Alteration = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def scaled(bold: np.ndarray, tr: float, rng: np.random.Generator) -> np.ndarray:
    """Another gain (0.25 to 4 for most ROIs) and offset in every ROI."""
    return bold * np.exp(rng.normal(0, 0.7, bold.shape[1])) + rng.normal(0, 5, bold.shape[1]) * bold.std(axis=0)


def cropped(bold: np.ndarray, tr: float, rng: np.random.Generator) -> np.ndarray:
    """The first, last or middle half."""
    n = len(bold)
    start = (0, n // 2, n // 4)[rng.integers(3)]
    return bold[start : start + (n + 1) // 2]


def rounded(bold: np.ndarray, tr: float, rng: np.random.Generator) -> np.ndarray:
    """Two significant digits."""
    magnitude = 10.0 ** np.floor(np.log10(np.maximum(np.abs(bold), 1e-12)))
    return np.round(bold / magnitude * 10) / 10 * magnitude


def backwards(bold: np.ndarray, tr: float, rng: np.random.Generator) -> np.ndarray:
    """Last volume first."""
    return bold[::-1]


def shuffled(bold: np.ndarray, tr: float, rng: np.random.Generator) -> np.ndarray:
    """Volumes in random order."""
    return bold[rng.permutation(len(bold))]


def noisy(bold: np.ndarray, tr: float, rng: np.random.Generator) -> np.ndarray:
    """White noise of 0.3 standard deviations of each ROI."""
    return bold + 0.3 * bold.std(axis=0) * rng.normal(size=bold.shape)


def resampled(bold: np.ndarray, tr: float, rng: np.random.Generator) -> np.ndarray:
    """Every second volume, or linear interpolation to a TR of 0.6 to 1.6 times the old one."""
    if rng.integers(2):
        return bold[::2]
    place = np.arange(0, len(bold) - 1, rng.uniform(0.6, 1.6))
    before = place.astype(int)
    share = (place - before)[:, None]
    return bold[before] * (1 - share) + bold[before + 1] * share


def filtered(bold: np.ndarray, tr: float, rng: np.random.Generator) -> np.ndarray:
    """Detrended and band-passed, 0.01 to 0.1 Hz."""
    filter_ = butter(2, (0.01, min(0.1, 0.45 / tr)), "bandpass", fs=1 / tr, output="sos")
    return sosfiltfilt(filter_, detrend(bold, axis=0), axis=0)


KINDS: dict[str, Alteration] = dict(
    zip(ALTERATIONS, (scaled, cropped, rounded, backwards, shuffled, noisy, resampled, filtered), strict=True)
)


def without_global_signal(bold: np.ndarray, tr: float, rng: np.random.Generator) -> np.ndarray:
    """The mean over ROIs regressed out of every ROI."""
    signal = bold.mean(axis=1, keepdims=True) - bold.mean()
    return bold - signal @ (signal.T @ bold) / (signal**2).sum()


HARDER: dict[str, Alteration] = {
    "first quarter": lambda bold, tr, rng: bold[: len(bold) // 4],
    "noise of 1 SD": lambda bold, tr, rng: bold + bold.std(axis=0) * rng.normal(size=bold.shape),
    "no global signal": without_global_signal,
    "cropped, filtered": lambda bold, tr, rng: filtered(cropped(bold, tr, rng), tr, rng),
    "shuffled, noisy": lambda bold, tr, rng: shuffled(noisy(bold, tr, rng), tr, rng),
    "resampled, filtered": lambda bold, tr, rng: filtered(resampled(bold, tr, rng), tr, rng),
}
"""What is not promised."""


def table_of(arrays: list[np.ndarray], ids: list[str], people: list[str], tr: np.ndarray) -> pd.DataFrame:
    """A recordings table."""
    return pd.DataFrame(
        {
            "recording_id": ids, "participant_id": people, "session": None, "tr": tr,
            "n_volumes": [len(bold) for bold in arrays], "digest": [bold_digest(bold) for bold in arrays],
        }
    )  # fmt: skip


def judged(arrays, prints, ids, people, tr, others=()) -> Judgement:
    """What `judge` says of the arrays."""
    nobody = pd.DataFrame({"participant_id": sorted(set(people))})
    recordings = table_of(arrays, ids, people, tr)
    return judge(recordings, nobody, prints, arrays.__getitem__, QualitySettings(), others)


def said(judgement: Judgement) -> list[tuple[str, str]]:
    """Which recordings are called one scan: the one that goes and the one that stays."""
    rows = judgement.excluded[["recording_id", "detail"]].to_numpy()
    return [(mine, detail.removeprefix("same scan as ").split(" ")[0]) for mine, detail in rows]


def read_cohort(folder: Path) -> tuple[list[np.ndarray], list[str], list[str], np.ndarray]:
    """Arrays (float32), recording ids, people and TRs of a cohort."""
    listing = next(folder / name for name in ("recordings.tsv", "participants.tsv") if (folder / name).is_file())
    table = pd.read_csv(listing, sep="\t", na_values="n/a", dtype={"participant_id": str})
    arrays = [np.load(folder / file).astype(np.float32) for file in table["file"]]
    ids = [f"r{i}" for i in range(len(arrays))]
    return arrays, ids, table["participant_id"].tolist(), table["tr"].to_numpy(float)


def copies_of(arrays: list[np.ndarray], tr: np.ndarray, kind: str, seed: int) -> list[np.ndarray]:
    """An altered copy of each."""
    altered = (
        (KINDS | HARDER)[kind](bold.astype(np.float64), seconds, np.random.default_rng([seed, i]))
        for i, (bold, seconds) in enumerate(zip(arrays, tr, strict=True))
    )
    return [copy.astype(np.float32) for copy in altered]


def study(folder: Path, seed: int) -> None:
    """The tables of one cohort."""
    arrays, ids, people, tr = read_cohort(folder)
    fingerprinter = Fingerprinter(arrays[0].shape[1])
    prints = np.stack([fingerprinter(bold) for bold in arrays])
    start = time.perf_counter()
    alone = judged(arrays, prints, ids, people, tr)
    seconds = time.perf_counter() - start
    named = dict(zip(ids, people, strict=True))
    known = {frozenset(pair) for pair in said(alone)}
    print(f"\n{folder.name}: {len(ids)} scans of {len(set(people))} people, judged in {seconds:.1f} s")
    print("  called one scan: " + ("; ".join(" = ".join(named[i] for i in sorted(p)) for p in known) or "none"))
    print(f"  warnings: {alone.warnings['kind'].value_counts().to_dict()}")
    print("  copies              inside the cohort: found, false | in another store: found, false")
    n = len(ids)
    for kind in [*KINDS, *HARDER]:
        copies = copies_of(arrays, tr, kind, seed)
        theirs = np.stack([fingerprinter(bold) for bold in copies])
        names = [f"{name}c" for name in ids]
        both = judged(
            arrays + copies,
            np.concatenate([prints, theirs]),
            ids + names,
            people + [f"{p}c" for p in people],
            np.r_[tr, tr],
        )
        against = judged(
            arrays,
            prints,
            ids,
            people,
            tr,
            [("copies", table_of(copies, names, people, tr), theirs, copies.__getitem__)],
        )
        inside, outside = (tally(said(judgement), known) for judgement in (both, against))
        print(
            f"  {kind:19s} {inside[0] / n:8.2%} ({n - inside[0]} missed), {inside[1]} | "
            f"{outside[0] / n:8.2%} ({n - outside[0]} missed), {outside[1]}",
            flush=True,
        )
    small_cohorts(arrays, prints, ids, people, tr, fingerprinter, known, seed)


def tally(pairs: list[tuple[str, str]], known: set[frozenset[str]]) -> tuple[int, int]:
    """Of how many scans the copy was found, and how many other recordings were called one scan.

    Scans that are copies of each other already may stand for each other.
    """
    same = {name: min(pair) for pair in known for name in pair}
    root = [tuple(same.get(name.removesuffix("c"), name.removesuffix("c")) for name in pair) for pair in pairs]
    found = {name.removesuffix("c") for pair, (a, b) in zip(pairs, root, strict=True) for name in pair if a == b}
    return len(found), sum(a != b for a, b in root)


def small_cohorts(arrays, prints, ids, people, tr, fingerprinter, known, seed, n_cohorts: int = 100) -> None:
    """Cohorts of 8 to 60 scans of one recording a person with five copies of mixed kinds each."""
    rng = np.random.default_rng(seed)
    first = pd.Series(people).drop_duplicates().index.to_numpy()
    made = missed = false = 0
    for _ in range(n_cohorts):
        chosen = rng.choice(first, size=min(len(first), int(rng.integers(8, 61))), replace=False)
        copied = rng.choice(chosen, size=5, replace=False)
        kinds = rng.choice(list(KINDS), size=5)
        copies = [
            KINDS[kind](arrays[i].astype(float), tr[i], rng).astype(np.float32)
            for i, kind in zip(copied, kinds, strict=True)
        ]
        some = [arrays[i] for i in chosen] + copies
        some_prints = np.stack([prints[i] for i in chosen] + [fingerprinter(copy) for copy in copies])
        names = [ids[i] for i in chosen] + [f"{ids[i]}c" for i in copied]
        answer = judged(
            some,
            some_prints,
            names,
            [people[i] for i in chosen] + [f"c{k}" for k in range(5)],
            np.r_[tr[chosen], tr[copied]],
        )
        wanted = {ids[i] for i in copied}
        pairs = [pair for pair in said(answer) if frozenset(pair) not in known]
        right = {a.removesuffix("c") for a, b in pairs if a.removesuffix("c") == b.removesuffix("c")}
        made, missed, false = (
            made + 5,
            missed + len(wanted - right),
            false + sum(a.removesuffix("c") != b.removesuffix("c") for a, b in pairs),
        )
    print(
        f"  {n_cohorts} cohorts of 8 to 60 scans with 5 mixed copies each: {made - missed} of {made} found, {false} false"
    )


def mix_ups(folder: Path, seed: int, n_swaps: int = 100) -> None:
    """Swap one session between two people, over and over."""
    arrays, ids, people, tr = read_cohort(folder)
    if len(set(people)) == len(people):
        return
    prints = np.stack([Fingerprinter(arrays[0].shape[1])(bold) for bold in arrays])
    rng = np.random.default_rng(seed)
    caught, false = 0, 0
    for _ in range(n_swaps):
        one, two = rng.choice(sorted(set(people)), size=2, replace=False)
        i, j = people.index(one), people.index(two)
        mixed = list(people)
        mixed[i], mixed[j] = two, one
        warnings = judged(arrays, prints, ids, mixed, tr).warnings
        flagged = warnings.loc[warnings["kind"] == "mixed-up", "participant_id"]
        caught += bool(flagged.isin([one, two]).any())
        false += int((~flagged.isin([one, two])).sum())
    print(
        f"\n{folder.name}: two people swapped in one session, {n_swaps} times: {caught} noticed; {false} warnings about others"
    )


def many(n_scans: int, n_copies: int, seed: int) -> None:
    """Judge simulated scans (100 ROIs, 200 volumes), copies of some among them."""
    from openbrainmass.cohort.simulate import simulate_cohort

    cohort = simulate_cohort(n_scans - n_copies, 20, 100, 200, seed=seed)
    rng = np.random.default_rng(seed)
    arrays = [bold.astype(np.float16) for bold in cohort]
    copied = rng.choice(len(arrays), size=n_copies, replace=False)
    kinds = rng.choice(list(KINDS), size=n_copies)
    tr = cohort.recordings["tr"].to_numpy()
    arrays += [
        KINDS[kind](arrays[i].astype(float), tr[i], rng).astype(np.float32)
        for i, kind in zip(copied, kinds, strict=True)
    ]
    fingerprinter = Fingerprinter(100)
    start = time.perf_counter()
    prints = np.stack([fingerprinter(bold) for bold in arrays])
    between = time.perf_counter()
    ids = [f"r{i}" for i in range(n_scans - n_copies)] + [f"r{i}c" for i in copied]
    answer = judged(arrays, prints, ids, [f"p{name}" for name in ids], np.r_[tr, tr[copied]])
    seconds = time.perf_counter() - between
    found, false = tally(said(answer), set())
    print(
        f"\n{n_scans:,} simulated scans: fingerprints in {between - start:.0f} s, judged in {seconds:.0f} s; {found} of "
        f"{n_copies} mixed copies found, {false} false"
    )


def memory(n_scans: int, seed: int) -> None:
    """Peak memory of judging random fingerprints in a file, beyond the tables."""
    import tempfile

    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        file = np.lib.format.open_memmap(Path(folder) / "prints.npy", "w+", np.float16, (n_scans, 1024))
        shared = rng.normal(size=1024)
        for begin in range(0, n_scans, 1024):
            end = min(begin + 1024, n_scans)
            file[begin:end] = (shared + rng.normal(size=(end - begin, 1024))) / 45
        ids = pd.Series([f"r{i}" for i in range(n_scans)])
        recordings = pd.DataFrame(
            {"recording_id": ids, "participant_id": ids, "digest": ids, "tr": 2.0, "n_volumes": 200}
        )
        people = pd.DataFrame({"participant_id": ids})
        tracemalloc.start()
        start = time.perf_counter()
        judge(recordings, people, file, lambda place: np.empty((200, 100)), QualitySettings())
        seconds, peak = time.perf_counter() - start, tracemalloc.get_traced_memory()[1]
    print(
        f"\n{n_scans:,} fingerprints in a file: judged in {seconds:.0f} s, peak {peak / 2**20:.0f} MiB beyond the tables"
    )


def main() -> None:
    """Print every table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--cohorts", nargs="*", default=["abide1_cc200", "cni_cc200", "hcp_dk68"])
    parser.add_argument("--scans", type=int, default=10_000)
    parser.add_argument("--fingerprints", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    for cohort in chosen.cohorts:
        study(chosen.data / cohort, chosen.seed)
    for cohort in chosen.cohorts:
        mix_ups(chosen.data / cohort, chosen.seed)
    if chosen.scans:
        many(chosen.scans, 100, chosen.seed)
    if chosen.fingerprints:
        memory(chosen.fingerprints, chosen.seed)


if __name__ == "__main__":
    main()
