"""What a bridge from one atlas to another costs on real scans, beside bridges to random parcels of the same sizes.

Run again with

    OMP_NUM_THREADS=1 python benchmarks/bridge.py FOLDER --source IMAGE --target IMAGE [--finer FOLDER IMAGE]
        [--truth FOLDER]

where FOLDER has ``participants.tsv`` with a column ``file`` (scans of the source atlas), and the IMAGEs are label images
in one space. Measured for the target and for each random parcellation of the target's voxels:

- round trip: correlation over edges of a scan's FC with its FC after the bridge there and back;
- differences: do people who are alike before stay alike? Correlation, over pairs of people, of FC similarity before with
  FC similarity after the bridge;
- dx, sex: AUC of ridge regression on edges, site-held-out;
- with --finer (scans of a finer atlas: ``*_atlas-*_timeseries.tsv`` without a header, and its image), agreement with
  truth: the finer scans are painted into voxels, extracted with source and target, and the target's FC is compared with
  that of the source's series (as they are, and standardised) after the bridge;
- with --truth (scans of other people extracted with the target itself: ``*_seg-*_timeseries.tsv`` with a header), the
  mean bridged FC against their mean FC, over edges (no random parcels there: nobody extracted with those).
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from sklearn.kernel_ridge import KernelRidge
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import LeaveOneGroupOut
from sklearn.preprocessing import KernelCenterer

from openbrainmass.atlas import Atlas, label_volume, load_atlas
from openbrainmass.bridge import Bridge
from openbrainmass.connectivity import correlation, fisher_z, vectorize
from openbrainmass.durable import read_tsv

STEPS = 60


def random_atlas(target: Atlas, seed: int, path: Path) -> Atlas:
    """Compact random parcels of the target's voxels, in each half of the brain as many and as large as the target's."""
    labels, affine = label_volume(target)
    places = np.argwhere(labels)
    coords = places @ affine[:3, :3].T + affine[:3, 3]
    own = labels[tuple(places.T)]
    left = np.array([coords[own == i + 1, 0].mean() < 0 for i in range(target.n_rois)])
    side = left[own - 1]
    rng = np.random.default_rng(seed)
    drawn = np.zeros(labels.shape, dtype=np.int16)
    for half in (True, False):
        rows = np.flatnonzero(side == half)
        sizes = rng.permutation(np.bincount(own, minlength=target.n_rois + 1)[1:][left == half])
        first = 0 if half else int(left.sum())
        drawn[tuple(places[rows].T)] = first + 1 + _cells(coords[rows], sizes, rng)
    nib.save(nib.Nifti1Image(drawn, affine), path)
    return load_atlas(path)


def _cells(coords: np.ndarray, sizes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Cells around random seeds (a power diagram), their weights adapted until they have the sizes that are wanted."""
    seeds = coords[rng.choice(len(coords), len(sizes), replace=False)]
    squared = ((coords[:, None] - seeds[None]) ** 2).sum(axis=2)
    weights = np.zeros(len(sizes))
    for step in range(STEPS):
        cells = (squared - weights).argmin(axis=1)
        found = np.bincount(cells, minlength=len(sizes))
        weights += (1 - step / STEPS) * 400 * np.log((sizes + 10) / (found + 10))
    return cells


def scans_of(folder: Path) -> tuple[list[np.ndarray], pd.DataFrame]:
    """BOLD (n_volumes, n_rois) and the row of the table of every scan."""
    table = read_tsv(folder / "participants.tsv")
    return [np.load(folder / file).astype(float) for file in table["file"]], table


def edges_of(bolds: list[np.ndarray]) -> np.ndarray:
    """Fisher-z edges (n, n_edges)."""
    return np.stack([vectorize(fisher_z(correlation(bold))).astype(np.float32) for bold in bolds])


def similarity(edges: np.ndarray) -> np.ndarray:
    """Correlation of every two people's edges, without the mean person, as a vector of pairs."""
    return vectorize(np.corrcoef(edges - edges.mean(axis=0)))


def auc(edges: np.ndarray, y: np.ndarray, site: np.ndarray) -> float:
    """Pooled site-held-out AUC of ridge regression on edges, its penalty the total variance of the edges."""
    inner = edges @ edges.T
    penalty = float(edges.var(axis=0).sum())
    scores = np.zeros(len(y))
    for train, test in LeaveOneGroupOut().split(edges, y, site):
        centre = KernelCenterer().fit(inner[np.ix_(train, train)])
        model = KernelRidge(alpha=penalty, kernel="precomputed")
        model.fit(centre.transform(inner[np.ix_(train, train)]), y[train] - y[train].mean())
        scores[test] = model.predict(centre.transform(inner[np.ix_(test, train)]))
    return float(roc_auc_score(y_true=y, y_score=scores))


def mean_fc(bolds: list[np.ndarray]) -> np.ndarray:
    """Mean over scans of the edges, NaN where an ROI is missing in all of them."""
    edges = [np.where(np.isfinite(fc := vectorize(correlation(bold))) & (fc != 0), fc, np.nan) for bold in bolds]
    counts = np.isfinite(edges).sum(axis=0)
    return np.divide(np.nansum(edges, axis=0), counts, out=np.full(len(counts), np.nan), where=counts > 0)


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation over the edges that both know."""
    both = np.isfinite(one) & np.isfinite(other)
    return float(np.corrcoef(one[both], other[both])[0, 1])


def painted_agreement(finer: list[np.ndarray], finest: Atlas, source: Atlas, target: Atlas) -> dict[str, float]:
    """Mean FC agreement of bridged series with the truth, where finer scans are painted into voxels."""
    to_source, to_target, bridge = Bridge(finest, source), Bridge(finest, target), Bridge(source, target)
    values: dict[str, list[float]] = {"painted": [], "painted, standardised": []}
    for bold in finer:
        truth, series = to_target.apply(bold), to_source.apply(bold)
        standardised = (series - series.mean(axis=0)) / series.std(axis=0)
        for name, given in zip(values, (series, standardised), strict=True):
            bridged = bridge.apply(given)
            rows = np.isfinite(truth).all(axis=0) & np.isfinite(bridged).all(axis=0)
            values[name].append(
                agreement(vectorize(correlation(truth[:, rows])), vectorize(correlation(bridged[:, rows])))
            )
    return {name: float(np.mean(found)) for name, found in values.items()}


def against_truth(mean: np.ndarray, truth: Path, finer: list[np.ndarray], to_target: Bridge | None) -> None:
    """Print how mean bridged FC agrees with that of other people's scans in the target atlas."""
    files = sorted(truth.rglob("*_seg-*_timeseries.tsv"))
    true = mean_fc([pd.read_csv(file, sep="\t").to_numpy(dtype=float) for file in files])
    print(f"mean bridged FC with the mean FC of {len(files)} scans of {truth.name}: {agreement(mean, true):.3f}")
    if to_target is not None:
        others = mean_fc([to_target.apply(bold) for bold in finer])
        print(f"mean bridged FC with that of {len(finer)} finer scans: {agreement(mean, others):.3f}")
        print(f"those two with each other: {agreement(true, others):.3f}")


def costs(
    bridge: Bridge, bolds: list[np.ndarray], alike: np.ndarray, labels: dict[str, np.ndarray], site: np.ndarray
) -> dict:
    """What one bridge costs the scans: one row of the table."""
    report = bridge.report()
    bridged = [bridge.apply(bold) for bold in bolds]
    edges = edges_of(bridged)
    return {
        "coverage": report["coverage"].mean(),
        "n_sources": report["n_sources"].mean(),
        "missing ROIs": np.mean([np.isnan(bold).all(axis=0).sum() for bold in bridged]),
        "round trip": np.nanmean([bridge.fc_agreement(bold) for bold in bolds]),
        "differences": np.corrcoef(alike, similarity(edges))[0, 1],
        **{name: auc(edges, y, site) for name, y in labels.items()},
    }


def main() -> None:
    """Read the command line and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--source", required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--finer", nargs=2, metavar=("FOLDER", "IMAGE"))
    parser.add_argument("--truth", type=Path)
    parser.add_argument("--controls", type=int, default=10)
    options = parser.parse_args()
    source, target = load_atlas(options.source), load_atlas(options.target)
    bolds, table = scans_of(options.folder)
    site = table["site"].to_numpy()
    labels = {column: pd.factorize(table[column], sort=True)[0] for column in ("dx", "sex")}
    before = edges_of(bolds)
    own = {name: auc(before, y, site) for name, y in labels.items()}
    print(f"{source.name} itself, {len(bolds)} scans: " + ", ".join(f"{k} AUC {v:.3f}" for k, v in own.items()))
    finest, finer = load_atlas(options.finer[1]) if options.finer else None, []
    if options.finer:
        files = sorted(Path(options.finer[0]).rglob("*_atlas-*_timeseries.tsv"))
        finer = [pd.read_csv(file, sep="\t", header=None).to_numpy(dtype=float) for file in files]
    if options.truth:
        direct = Bridge(source, target)
        mean = mean_fc([direct.apply(bold) for bold in bolds])
        against_truth(mean, options.truth, finer, Bridge(finest, target) if finest else None)
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(-1, options.controls):
            name = target.name if seed < 0 else f"random {seed}"
            atlas = target if seed < 0 else random_atlas(target, seed, Path(folder) / f"random{seed}.nii.gz")
            rows[name] = costs(Bridge(source, atlas), bolds, similarity(before), labels, site)
            if finest:
                rows[name].update(painted_agreement(finer, finest, source, atlas))
            print(name, " ".join(f"{k} {v:.3f}" for k, v in rows[name].items()), flush=True)
    controls = pd.DataFrame(rows).T.iloc[1:]
    print(pd.DataFrame({"random, mean": controls.mean(), "standard deviation": controls.std()}).T.round(3).to_string())


if __name__ == "__main__":
    main()
