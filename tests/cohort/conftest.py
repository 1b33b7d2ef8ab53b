"""Images painted with known series, for every reader of images."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from openbrainmass.atlas import load_atlas

AFFINE = np.diag([4.0, 4.0, 4.0, 1.0])
AFFINE[:3, 3] = (-24, -28, -20)


def _volume(path: Path, bold: np.ndarray, labels: np.ndarray, affine: np.ndarray = AFFINE, **options) -> Path:
    """Write a 4-D image: ROI i + 1 of the labels has column i of the series, each voxel its own noise."""
    options = {"noise": 0.0, "tr": 2.0, "unit": "sec", "dtype": np.float32, "level": 1000.0, **options}
    noise = np.random.default_rng(0).normal(size=(*labels.shape, len(bold))) * options["noise"]
    data = np.zeros(noise.shape)
    inside = labels > 0
    data[inside] = options["level"] + bold.T[labels[inside] - 1] + noise[inside]
    image = nib.Nifti1Image(data.astype(options["dtype"]), affine)
    image.header.set_xyzt_units("mm", options["unit"])
    image.header["pixdim"][4] = options["tr"]
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(image, path)
    return path


def _labels() -> np.ndarray:
    """Six ROIs in an image of 12 x 14 x 10 voxels."""
    labels = np.zeros((12, 14, 10), dtype=np.int16)
    for i in range(6):
        labels[1 + 5 * (i % 2) : 6 + 5 * (i % 2), 1 + 4 * (i // 2) : 5 + 4 * (i // 2), 2:8] = i + 1
    return labels


def _brain_models(voxels: bool):
    """Two surfaces of 40 vertices, 4 of them without data, and a few voxels."""
    from nibabel.cifti2 import BrainModelAxis

    seen = np.delete(np.arange(40), [0, 13, 14, 39])
    models = BrainModelAxis.from_surface(seen, 40, "CortexLeft") + BrainModelAxis.from_surface(seen, 40, "CortexRight")
    if voxels:
        mask = np.zeros((5, 5, 5), dtype=bool)
        mask[1:3, 1:3, 1:4] = True
        models += BrainModelAxis.from_mask(mask, affine=AFFINE, name="ThalamusLeft")
    return models


def _cifti(path: Path, data: np.ndarray, first, second) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    kinds = {".dtseries.nii": 3002, ".ptseries.nii": 3004, ".dlabel.nii": 3007}
    image = nib.Cifti2Image(data, (first, second))
    image.nifti_header.set_intent(next(code for ending, code in kinds.items() if path.name.endswith(ending)))
    nib.save(image, path)
    return path


def _dlabel(path: Path, voxels: bool = True) -> Path:
    """Four parcels with the keys 2, 3, 5 and 9; the last one in the voxels, or across both surfaces without them."""
    from nibabel.cifti2 import LabelAxis

    models = _brain_models(voxels)
    keys = np.repeat([2, 3, 5, 0], [20, 25, 25, 2]).astype(np.float32)
    keys = np.concatenate([keys, np.full(len(models) - 72, 9)]) if voxels else np.where(np.arange(72) % 9 == 4, 9, keys)
    table = {0: ("???", (0, 0, 0, 0)), **{key: (f"parcel_{key}", (1, 0, 0, 1)) for key in (2, 3, 5, 9)}}
    return _cifti(path, keys[None].astype(np.float32), LabelAxis(["parcels"], [table]), models)


def _dense(path: Path, bold: np.ndarray, dlabel: Path, noise: float = 0.0, tr: float = 2.0, models=None) -> Path:
    """Write a dense series in which parcel i of the dlabel has column i of the series."""
    from nibabel.cifti2 import SeriesAxis

    image = nib.load(dlabel)
    own, keys = image.header.get_axis(1), np.asanyarray(image.dataobj)[0].astype(int)
    values = np.array(load_atlas(dlabel).values)
    models = own if models is None else models
    place = {key: i for i, key in enumerate(zip(own.name, own.vertex, map(tuple, own.voxel), strict=True))}
    found = [place[key] for key in zip(models.name, models.vertex, map(tuple, models.voxel), strict=True)]
    keys = keys[found]
    data = np.random.default_rng(1).normal(size=(len(bold), len(keys))) * noise + 1000
    inside = np.isin(keys, values)
    data[:, inside] += bold[:, np.searchsorted(values, keys[inside])]
    return _cifti(path, data.astype(np.float32), SeriesAxis(0, tr, len(bold), "SECOND"), models)


def _parcels(path: Path, bold: np.ndarray, names: list[str], tr: float = 0.72) -> Path:
    from nibabel.cifti2 import ParcelsAxis, SeriesAxis

    parts = [(name, _brain_models(False)[36 * (i % 2) + i : 36 * (i % 2) + i + 1]) for i, name in enumerate(names)]
    return _cifti(
        path, bold.astype(np.float32), SeriesAxis(0, tr, len(bold), "SECOND"), ParcelsAxis.from_brain_models(parts)
    )


def _confounds(path: Path, n_volumes: int, unsteady: int = 0, jumps: tuple[int, ...] = ()) -> Path:
    """A confounds file with the columns of fMRIPrep, its JSON, and volumes that moved by 2 mm."""
    import json

    import pandas as pd

    rng = np.random.default_rng(2)
    names = [f"{kind}_{axis}" for kind in ("trans", "rot") for axis in "xyz"] + ["csf", "white_matter", "global_signal"]
    table = pd.DataFrame(
        {
            name + more: rng.normal(size=n_volumes)
            for name in names
            for more in ("", "_derivative1", "_power2", "_derivative1_power2")
        }
    )
    table.loc[0, [name for name in table if "derivative1" in name]] = np.nan
    for i in range(4):
        table[f"a_comp_cor_{i:02d}"] = rng.normal(size=n_volumes)
    for i in range(2):
        table[f"cosine{i:02d}"] = np.cos(np.pi * (np.arange(n_volumes) + 0.5) * (i + 1) / n_volumes)
    fd = np.full(n_volumes, 0.1)
    fd[list(jumps)] = 2.0
    table["framewise_displacement"] = np.where(np.arange(n_volumes) == 0, np.nan, fd)
    table["std_dvars"] = np.where(np.arange(n_volumes) == 0, np.nan, 1.0)
    for i in range(unsteady):
        table[f"non_steady_state_outlier{i:02d}"] = (np.arange(n_volumes) == i).astype(int)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, sep="\t", index=False, na_rep="n/a")
    about = {f"a_comp_cor_{i:02d}": {"Mask": "combined", "Method": "aCompCor", "Retained": True} for i in range(4)}
    path.with_suffix(".json").write_text(json.dumps(about))
    return path


@pytest.fixture(scope="session")
def paint():
    """Functions that write small images with known series, and the confounds beside them."""
    return SimpleNamespace(
        affine=AFFINE,
        labels=_labels(),
        volume=_volume,
        brain_models=_brain_models,
        cifti=_cifti,
        dlabel=_dlabel,
        dense=_dense,
        parcels=_parcels,
        confounds=_confounds,
    )


@pytest.fixture
def labelled(tmp_path, paint):
    """An atlas of six ROIs with its label image."""
    nib.save(nib.Nifti1Image(paint.labels, paint.affine), tmp_path / "six_dseg.nii.gz")
    return load_atlas(tmp_path / "six_dseg.nii.gz")


@pytest.fixture
def surface(tmp_path, paint):
    """An atlas of four parcels, three on surfaces and one in voxels, with its dlabel."""
    return load_atlas(paint.dlabel(tmp_path / "four.dlabel.nii"))
