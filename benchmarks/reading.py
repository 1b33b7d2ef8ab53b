"""How long reading one recording takes, by type of file, and how much memory the child process needs for it.

    OMP_NUM_THREADS=1 python benchmarks/reading.py

Synthetic files of usual sizes, each read once to start the child process and then three times; the median is printed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")

import nibabel as nib
import numpy as np
from nibabel.cifti2.cifti2 import Cifti2Image
from nibabel.cifti2.cifti2_axes import BrainModelAxis, LabelAxis, SeriesAxis
from scipy.io import savemat

from openbrainmass.atlas import Atlas, load_atlas, numbered_atlas
from openbrainmass.cohort.files.read import read_file

N_ROIS, N_VOLUMES = 100, 200
GRID = (91, 109, 91)
VERTICES = 32_492


def array(folder: Path, rng: np.random.Generator) -> tuple[Path, Atlas]:
    np.save(folder / "a.npy", rng.normal(size=(N_VOLUMES, 200)).astype(np.float32))
    return folder / "a.npy", numbered_atlas("Toy", 200)


def table(folder: Path, rng: np.random.Generator) -> tuple[Path, Atlas]:
    header = "\t".join(f"#{i}" for i in range(1, 201))
    np.savetxt(
        folder / "a.1D", rng.normal(size=(N_VOLUMES, 200)), fmt="%.6f", delimiter="\t", header=header, comments=""
    )
    return folder / "a.1D", numbered_atlas("Toy", 200)


def matlab(folder: Path, rng: np.random.Generator) -> tuple[Path, Atlas]:
    savemat(folder / "a.mat", {"bold": rng.normal(size=(N_VOLUMES, 200))}, do_compression=True)
    return folder / "a.mat", numbered_atlas("Toy", 200)


def volume(folder: Path, rng: np.random.Generator) -> tuple[Path, Atlas]:
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    inside = np.zeros(GRID, dtype=bool)
    inside[10:80, 12:96, 10:80] = True
    bold = np.zeros((*GRID, N_VOLUMES), dtype=np.int16)
    for number in range(N_VOLUMES):
        bold[inside, number] = rng.normal(1000, 30, inside.sum())
    image = nib.Nifti1Image(bold, affine)
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, folder / "a.nii.gz")
    labels = np.zeros(GRID, dtype=np.int16)
    labels[inside] = np.arange(inside.sum()) * N_ROIS // inside.sum() + 1
    nib.save(nib.Nifti1Image(labels, affine), folder / "labels.nii.gz")
    return folder / "a.nii.gz", load_atlas(folder / "labels.nii.gz")


def dense(folder: Path, rng: np.random.Generator) -> tuple[Path, Atlas]:
    left, right = (
        BrainModelAxis.from_surface(np.arange(VERTICES), VERTICES, f"CORTEX_{side}") for side in ("LEFT", "RIGHT")
    )
    cortex = left + right
    keys = np.arange(len(cortex)) * N_ROIS // len(cortex) + 1
    names = {0: ("???", (0, 0, 0, 0))} | {key: (f"parcel-{key}", (0, 0, 0, 1)) for key in range(1, N_ROIS + 1)}
    labels = LabelAxis(["parcels"], [names])
    Cifti2Image(keys[None].astype(np.float32), (labels, cortex)).to_filename(folder / "atlas.dlabel.nii")
    series = rng.standard_normal((1200, len(cortex)), dtype=np.float32)
    Cifti2Image(series, (SeriesAxis(0, 0.72, 1200), cortex)).to_filename(folder / "a.dtseries.nii")
    return folder / "a.dtseries.nii", load_atlas(folder / "atlas.dlabel.nii")


FILES: dict[str, Callable[[Path, np.random.Generator], tuple[Path, Atlas]]] = {
    ".npy, 200 x 200": array,
    ".1D, 200 x 200": table,
    ".mat, 200 x 200": matlab,
    ".nii.gz, 2 mm, 200 volumes": volume,
    ".dtseries.nii, 1,200 x 64,984": dense,
}


def children_peak() -> float:
    """Largest resident size (MiB) that a living child of this process has had."""
    own, peak = os.getpid(), 0.0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            told = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        if int(told.get("PPid", 0)) == own and "VmHWM" in told:
            peak = max(peak, int(told["VmHWM"].split()[0]) / 1024)
    return peak


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print("| file | on disk, MB | ms | child, MiB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as temporary:
        for name, make in FILES.items():
            folder = Path(temporary) / make.__name__
            folder.mkdir()
            path, atlas = make(folder, np.random.default_rng(0))
            seconds = []
            for _ in range(4):
                start = time.perf_counter()
                read_file(path, atlas)
                seconds.append(time.perf_counter() - start)
            child = f"{children_peak():.0f}" if path.suffix in {".mat", ".gz", ".nii"} else "none"
            size = path.stat().st_size / 1e6
            print(f"| {name} | {size:.1f} | {1e3 * float(np.median(seconds[1:])):,.1f} | {child} |", flush=True)


if __name__ == "__main__":
    main()
