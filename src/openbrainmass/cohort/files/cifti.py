"""Foreign CIFTI files: dense series (grayordinates) and parcellated series."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from openbrainmass.atlas import Atlas
from openbrainmass.cohort.files.nifti import Header, refused
from openbrainmass.errors import OpenBrainMassError

IN_CHILD = ("nibabel",)
"""What the child process imports before its time runs."""

_BLOCK_BYTES = 8 << 20
_DECLARES = (b"<!ENTITY", b"<!DOCTYPE")


def dense_means(path: str | Path, header: Header, places: Mapping[str, Any], n_rois: int) -> dict:
    """Mean of the grayordinates of each ROI in each volume, to be called through `limited.in_child`.

    Grayordinates that never change, and those that lack a number in some volume, hold no signal and are left out.

    Parameters
    ----------
    path : path
        A ``.dtseries.nii``.
    header : Header
        Its NIfTI header.
    places : dict
        Where the atlas has its ROIs, see `atlas_places`.
    n_rois : int
        Rows of the atlas.

    Returns
    -------
    dict
        ``means`` (n_volumes, n_rois) float64, NaN for an ROI without a grayordinate; ``counts`` (n_rois,),
        grayordinates averaged; ``tr`` seconds or None.
    """
    path = Path(path)
    series, models = _axes(path, header, "dense series (.dtseries.nii)", ("SeriesAxis", "BrainModelAxis"))
    rois = _rois(path, models, places)
    n_volumes = len(series)
    sums, counts = np.zeros((n_rois, n_volumes)), np.zeros(n_rois, dtype=int)
    for start, block in _rows(path, header, n_volumes, len(models)):
        wanted = rois[start : start + len(block)]
        signal = (wanted >= 0) & np.isfinite(block).all(axis=1) & (block != block[:, :1]).any(axis=1)
        order = np.argsort(wanted[signal], kind="stable")
        present, firsts = np.unique(wanted[signal][order], return_index=True)
        if len(present):
            sums[present] += np.add.reduceat(block[signal][order], firsts, axis=0)
        counts += np.bincount(wanted[signal], minlength=n_rois)
    with np.errstate(all="ignore"):
        means = sums.T / counts * header.slope + header.intercept
    return {"means": means, "counts": counts, "tr": _step(series)}


def parcels(path: str | Path, header: Header) -> dict:
    """The series of a ``.ptseries.nii``, to be called through `limited.in_child`.

    Returns
    -------
    dict
        ``bold`` (n_volumes, n_parcels) float64; ``names``, a list; ``tr`` seconds or None.
    """
    path = Path(path)
    series, axis = _axes(path, header, "parcellated series (.ptseries.nii)", ("SeriesAxis", "ParcelsAxis"))
    rows = [block for _, block in _rows(path, header, len(series), len(axis))]
    bold = np.concatenate(rows).T * header.slope + header.intercept
    return {"bold": bold, "names": [str(name) for name in axis.name], "tr": _step(series)}


def parcel_names(path: str | Path, header: Header) -> list[str]:
    """Names of the parcels of a ``.ptseries.nii``, to be called through `limited.in_child`."""
    path = Path(path)
    _, axis = _axes(path, header, "parcellated series (.ptseries.nii)", ("SeriesAxis", "ParcelsAxis"))
    return [str(name) for name in axis.name]


def atlas_places(atlas: Atlas, path: Path) -> dict[str, Any]:
    """Where a CIFTI atlas has its ROIs.

    Parameters
    ----------
    atlas : Atlas
        With a ``.dlabel.nii`` as `image` and its `values`.
    path : Path
        The dense series that is to be parcellated, for the message.

    Returns
    -------
    dict
        ``vertices``: by structure, an int array (n_vertices,) with the row of the atlas, -1 where it has none.
        ``voxels``: int array (n_voxels, 4) of i, j, k and row; ``affine`` (4, 4) and ``volume`` (3,) of their grid, or
        None. ``counts`` (n_rois,): grayordinates of each ROI.

    Raises
    ------
    OpenBrainMassError
        If the atlas has no CIFTI image.
    """
    if atlas.image is None or atlas.values is None or not atlas.image.name.endswith(".dlabel.nii"):
        named = f"{atlas.image.name} is a volume" if atlas.image else "no image of it is at hand"
        raise OpenBrainMassError(
            f"The dense series {path} cannot be parcellated with the atlas {atlas.name}: {named}. Name its .dlabel.nii "
            "(--atlas), of the same mesh."
        )
    return _places(atlas.image, atlas.values, atlas.image.stat().st_mtime_ns)


# The time of change in the key lets an old atlas lapse.
@lru_cache(maxsize=2)
def _places(image: Path, values: tuple[int, ...], changed: int) -> dict[str, Any]:
    import nibabel as nib

    labels: Any = nib.load(image)  # pyright: ignore[reportPrivateImportUsage]
    models = labels.header.get_axis(1)
    keys = np.asanyarray(labels.dataobj)[0].astype(np.int64)
    order = np.argsort(values)
    spot = np.minimum(np.searchsorted(values, keys, sorter=order), len(values) - 1)
    rows = np.where(np.asarray(values)[order[spot]] == keys, order[spot], -1)
    vertices = {}
    for name, part, model in models.iter_structures():
        if name in models.nvertices:
            vertices[str(name)] = np.full(models.nvertices[name], -1)
            vertices[str(name)][model.vertex] = rows[part]
    inside = models.volume_mask & (rows >= 0)
    return {
        "vertices": vertices,
        "voxels": np.column_stack([models.voxel[inside], rows[inside]]),
        "affine": None if models.affine is None else np.asarray(models.affine),
        "volume": None if models.volume_shape is None else list(models.volume_shape),
        "counts": np.bincount(rows[rows >= 0], minlength=len(values)),
    }


def _axes(path: Path, header: Header, wanted: str, kinds: tuple[str, str]) -> tuple[Any, Any]:
    import nibabel as nib

    with path.open("rb") as handle:
        text = handle.read(header.offset)
    if any(word in text for word in _DECLARES):
        raise refused(path, "its XML declares entities, which no CIFTI file needs", f"a {wanted}")
    image: Any = nib.Cifti2Image.from_filename(path)  # pyright: ignore[reportPrivateImportUsage]
    axes = [image.header.get_axis(i) for i in range(2)]
    found = tuple(type(axis).__name__ for axis in axes)
    if found != kinds:
        raise refused(path, f"its axes are {' and '.join(found)}", f"a {wanted}")
    lengths = tuple(len(axis) for axis in axes)
    if lengths != header.shape[4:]:
        raise refused(path, f"it describes {lengths} (volumes, rows) but holds {header.shape[4:]}", f"a {wanted}")
    if lengths[0] < 2:
        raise refused(path, "it holds one volume", f"a {wanted}")
    return axes[0], axes[1]


def _step(series: Any) -> float | None:
    return float(series.step) if series.unit == "SECOND" and series.step > 0 else None


def _rows(path: Path, header: Header, n_volumes: int, n_rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """Number of the first row, and a block (n_rows, n_volumes) as stored: each row is the series of one place."""
    at_once = max(1, _BLOCK_BYTES // (8 * n_volumes))
    with path.open("rb") as handle:
        handle.seek(header.offset)
        for start in range(0, n_rows, at_once):
            count = min(at_once, n_rows - start)
            values = np.fromfile(handle, header.dtype, count * n_volumes)
            yield start, values.reshape(count, n_volumes).astype(np.float64)


def _rois(path: Path, models: Any, places: Mapping[str, Any]) -> np.ndarray:
    """Row of the atlas of each grayordinate, -1 where it has none."""
    rois = np.full(len(models), -1)
    for name, part, model in models.iter_structures():
        of_vertex = places["vertices"].get(str(name))
        if name not in models.nvertices or of_vertex is None:
            continue
        if models.nvertices[name] != len(of_vertex):
            raise OpenBrainMassError(
                f"The image {path} has {models.nvertices[name]:,} vertices in {name} but the atlas {len(of_vertex):,}. "
                "Name the atlas for the same mesh (--atlas)."
            )
        rois[part] = of_vertex[model.vertex]
    if len(places["voxels"]) and models.volume_mask.any():
        _same_grid(path, models, places)
        row_of = {tuple(voxel): row for *voxel, row in places["voxels"].tolist()}
        for i in np.flatnonzero(models.volume_mask):
            rois[i] = row_of.get(tuple(models.voxel[i].tolist()), -1)
    return rois


def _same_grid(path: Path, models: Any, places: Mapping[str, Any]) -> None:
    shapes = list(models.volume_shape), list(places["volume"])
    if shapes[0] != shapes[1] or not np.allclose(models.affine, places["affine"], atol=1e-3):
        raise OpenBrainMassError(
            f"The voxels of the image {path} lie on another grid ({shapes[0]}) than those of the atlas ({shapes[1]}). "
            "Name the atlas for the same space and resolution (--atlas)."
        )
