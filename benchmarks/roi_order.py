"""How often wrong ROI orders of real scans are told, and right ones are not.

Every scan is checked as it is and in altered orders, against templates from other people. Run again with

    OMP_NUM_THREADS=1 python benchmarks/roi_order.py FOLDER [FOLDER ...] [--atlas ATLAS]

where a FOLDER has ``participants.tsv`` (and ``recordings.tsv``) with a column ``file``, or
``*_atlas-*_timeseries.tsv`` (or ``seg-``) files, all of the same atlas. Each folder is the template of the others; one
folder alone is split into two halves, by person. With an atlas that knows coordinates, its geometry is a template as well.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from openbrainmass.atlas import Atlas, load_atlas
from openbrainmass.cohort.order import LEAST_AGREEMENT, Template, check_order, geometry_template, template_of
from openbrainmass.connectivity import correlation
from openbrainmass.durable import read_tsv


def read_scans(folder: Path) -> tuple[list[np.ndarray], np.ndarray]:
    """BOLD of every scan in a folder, and whose it is."""
    tables = [folder / "recordings.tsv", folder / "participants.tsv"]
    table = next((file for file in tables if file.is_file()), None)
    if table is None:
        files = sorted(folder.rglob("*_atlas-*_timeseries.tsv")) or sorted(folder.rglob("*_seg-*_timeseries.tsv"))
        return [_table(file) for file in files], np.array([file.name.split("_")[0] for file in files])
    rows = read_tsv(table)
    return [np.load(folder / file) for file in rows["file"]], rows["participant_id"].to_numpy()


def _table(file: Path) -> np.ndarray:
    values = pd.read_csv(file, sep="\t", header=None, na_values="n/a", dtype=float)
    header = np.array_equal(values.iloc[0].to_numpy(), np.arange(values.shape[1]))
    return values.iloc[1:].to_numpy() if header else values.to_numpy()


def altered_orders(n_rois: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Which column of the right order stands in each column of the altered one."""
    rows = np.arange(n_rois)
    blocked = np.r_[rows[::2], rows[1::2]]
    start, late = int(rng.integers(1, n_rois // 2)), int(rng.integers(n_rois // 2, n_rois - 1))
    return {
        "right": rows,
        "random": rng.permutation(n_rois),
        "interleaved": np.argsort(blocked),
        "de-interleaved": blocked,
        "off by one, first missing": np.r_[rows[1:], rows[-1]],
        "off by one, first doubled": np.r_[rows[0], rows[:-1]],
        "rolled by one": np.roll(rows, 1),
        "off by one from a random ROI of the first half on": np.r_[rows[:start], rows[start + 1 :], rows[-1]],
        "off by one from a random ROI of the second half on": np.r_[rows[:late], rows[late + 1 :], rows[-1]],
        "reversed": rows[::-1],
        "halves exchanged": np.roll(rows, n_rois // 2),
        "two ROIs exchanged": np.r_[rows[1], rows[0], rows[2:]],
    }


def measure(fcs: list[np.ndarray], template: Template) -> pd.DataFrame:
    """One row a scan and order: whether it was called wrong, and the agreement."""
    rng = np.random.default_rng(0)
    rows = []
    for fc in fcs:
        for name, order in altered_orders(len(fc), rng).items():
            verdict = check_order(fc[np.ix_(order, order)], template)
            rows.append((name, not verdict.ok, verdict.agreement))
    return pd.DataFrame(rows, columns=["order", "wrong", "agreement"])


def studies(folders: list[Path], atlas: Atlas | None) -> Iterator[tuple[str, list[np.ndarray], Template]]:
    """Scans and a template that does not hold them."""
    scans = {folder.name: read_scans(folder) for folder in folders}
    for name, (bolds, people) in scans.items():
        fcs = [correlation(bold) for bold in bolds]
        if len(scans) == 1 and len(set(people)) > 1:
            half = np.isin(people, np.unique(people)[::2])
            for own in (half, ~half):
                other = template_of((bolds[i] for i in np.flatnonzero(~own)), f"the other half of {name}")
                yield name, [fcs[i] for i in np.flatnonzero(own)], other
        for other in scans.keys() - {name}:
            yield name, fcs, template_of(scans[other][0], other)
        if atlas is not None and atlas.coords_mm is not None:
            yield name, fcs, geometry_template(atlas)


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+")
    parser.add_argument("--atlas")
    options = parser.parse_args()
    atlas = load_atlas(options.atlas) if options.atlas else None
    print(f"wrong: agreement below {LEAST_AGREEMENT}, or another order agrees better\n")
    for name, fcs, template in studies(options.folders, atlas):
        started = time.perf_counter()
        rows = measure(fcs, template)
        each = (time.perf_counter() - started) / len(rows)
        print(
            f"{len(fcs)} scans of {name}, {len(fcs[0])} ROIs; template: {template.source}; {each * 1e3:.1f} ms a check"
        )
        for order, group in rows.groupby("order", sort=False):
            low, high = group["agreement"].min(), group["agreement"].max()
            print(
                f"  {order:<52}{group['wrong'].sum():>5} of {len(group):>4} called wrong; r {low:.3f} to {high:.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
