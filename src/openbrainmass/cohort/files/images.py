"""Images parcellated into BOLD series: NIfTI with a label image, CIFTI dense series with a dlabel, parcellated series."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from openbrainmass.atlas import Atlas, label_volume
from openbrainmass.cohort.files.cifti import atlas_places, dense_means, parcel_names, parcels
from openbrainmass.cohort.files.cleaning import clean_series
from openbrainmass.cohort.files.limited import in_child
from openbrainmass.cohort.files.nifti import Header, read_header, refused, roi_means, voxel_values
from openbrainmass.cohort.source import ReadingSettings, Series, one_tr
from openbrainmass.errors import OpenBrainMassError

_DENSE_SERIES, _PARCEL_SERIES = 3002, 3004
_CIFTI = range(3000, 3100)
# BOLD images get to 2-10; unpacking nothing but zeros for minutes helps nobody.
_MOST_FOLDED = 300


@dataclass(frozen=True)
class Parcellated:
    """Means of the ROIs of an image, not yet cleaned.

    Attributes
    ----------
    bold : ndarray (n_volumes, n_rois), float64
        In the order of the atlas, NaN throughout where the image covers too little of an ROI.
    tr : dict of str to float
        Seconds between volumes, if the header tells it.
    measures : dict
        ``min_coverage`` (the smallest share covered of any ROI), and ``uncovered_rois`` where there are some (names
        joined by ``;``).
    """

    bold: np.ndarray
    tr: dict[str, float] = field(default_factory=dict)
    measures: dict[str, Any] = field(default_factory=dict)


def read_image(path: str | Path, atlas: Atlas, settings: ReadingSettings) -> Series:
    """Parcellate an image that comes without confounds; detrend and filter it where the settings ask for it.

    Parameters
    ----------
    path : path
        ``.nii`` or ``.nii.gz`` of four dimensions, ``.dtseries.nii`` or ``.ptseries.nii``.
    atlas : Atlas
        With a label image (volumes) or dlabel (dense series); parcellated series are matched by name.
    settings : ReadingSettings
        `min_coverage`, `detrend` and `band_pass` are used.

    Returns
    -------
    Series

    Raises
    ------
    OpenBrainMassError
        If the file is damaged, its atlas has no fitting image or lies elsewhere, or confounds are asked for.
    """
    refuse_strategy(path, settings)
    image = parcellate(path, atlas, settings)
    tr = one_tr(image.tr, Path(path).name)
    bold, steps = clean_series(image.bold, tr, settings)
    return Series(bold, image.tr, {**image.measures, "steps": steps})


def refuse_strategy(path: str | Path, settings: ReadingSettings) -> None:
    """Refuse a strategy that was asked for where there are no confounds; "auto" does nothing there.

    Raises
    ------
    OpenBrainMassError
        If the settings name a strategy.
    """
    if settings.strategy not in {"auto", "none"}:
        raise OpenBrainMassError(
            f"The image {path} comes without confounds of fMRIPrep, so the strategy {settings.strategy} cannot be "
            "followed. Use reading.strategy=none (--set), or name the folder that fMRIPrep wrote."
        )


def parcellate(
    path: str | Path, atlas: Atlas, settings: ReadingSettings, mask: str | Path | None = None
) -> Parcellated:
    """Average an image over the ROIs of an atlas.

    The label image is brought to the grid of the BOLD by nearest neighbour. A voxel counts as covered where its value
    changes over time, is a number throughout and lies in the mask; only such voxels are averaged.

    Parameters
    ----------
    path : path
        ``.nii`` or ``.nii.gz`` of four dimensions, ``.dtseries.nii`` or ``.ptseries.nii``.
    atlas : Atlas
        With a label image (volumes) or dlabel (dense series); parcellated series are matched by name.
    settings : ReadingSettings
        `min_coverage` is used.
    mask : path, optional
        Brain mask on the grid of a volume.

    Returns
    -------
    Parcellated

    Raises
    ------
    OpenBrainMassError
        If the file is damaged, or its atlas has no fitting image or covers nothing of it.
    """
    path = Path(path)
    header = read_header(path)
    if _intent(path, header) == _PARCEL_SERIES:
        return _parcels(path, header, atlas)
    if header.intent in _CIFTI:
        means, counts, total, tr = _dense(path, header, atlas)
    else:
        means, counts, total, tr = _volumes(path, header, atlas, Path(mask) if mask else None)
    with np.errstate(all="ignore"):
        coverage = np.where(total > 0, counts / total, 0.0)
    if not coverage.any():
        raise OpenBrainMassError(
            f"The image {path} covers no ROI of the atlas {atlas.name} with a signal. Check that both are in the same "
            "space, and that the image is not empty."
        )
    bold = np.where((coverage >= settings.min_coverage) & (coverage > 0), means, np.nan)
    _check_numbers(path, bold)
    measures = {"min_coverage": round(float(coverage.min()), 4), **_uncovered(bold, atlas)}
    return Parcellated(bold, _told(tr, path), measures)


def image_labels(path: str | Path) -> tuple[str, ...] | None:
    """ROI names that an image itself has: those of a parcellated series; None for all others.

    Raises
    ------
    OpenBrainMassError
        If the file is damaged.
    """
    path = Path(path)
    if not path.name.endswith(".ptseries.nii"):
        return None
    return tuple(in_child(parcel_names, path, read_header(path)))


def _told(tr: float | None, path: Path) -> dict[str, float]:
    return {} if tr is None else {f"header of {path.name}": tr}


def _uncovered(bold: np.ndarray, atlas: Atlas) -> dict[str, str]:
    names = [atlas.roi_names[i] for i in np.flatnonzero(np.isnan(bold).all(axis=0))]
    return {"uncovered_rois": ";".join(names)} if names else {}


def _check_numbers(path: Path, bold: np.ndarray) -> None:
    """NaN marks whole columns; any other that is no number, or none that float32 can hold, is damage."""
    columns = bold[:, ~np.isnan(bold).all(axis=0)]
    if not (np.abs(columns) < np.finfo(np.float32).max).all():
        raise refused(path, "some of its values are no numbers, or beyond all measure")


def _volumes(
    path: Path, header: Header, atlas: Atlas, mask: Path | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray, float | None]:
    """Means, voxels averaged, voxels that there should be, and the TR."""
    if len(header.shape) != 4 or header.shape[3] < 2:
        raise refused(path, f"it has the shape {header.shape}", "an image of (x, y, z, volumes) with several volumes")
    if header.n_bytes > _MOST_FOLDED * path.stat().st_size:
        raise refused(path, f"it is packed {header.n_bytes // path.stat().st_size}-fold, so that little can be in it")
    if atlas.image is None or atlas.values is None or atlas.image.name.endswith(".dlabel.nii"):
        raise OpenBrainMassError(
            f"The atlas {atlas.name} cannot parcellate the volume {path}: "
            f"{'its image is a surface' if atlas.image else 'no image of it is at hand'}. Name its label image "
            "(--atlas atlas.nii.gz), in the same space."
        )
    grid = header.shape[:3]
    voxels, rois, within = _labels_on_grid(
        atlas.name, atlas.image, atlas.values, atlas.image.stat().st_mtime_ns, grid, header.affine.tobytes()
    )
    total = np.bincount(rois, minlength=atlas.n_rois)
    if mask is not None:
        inside = _in_mask(mask, path, header, voxels)
        voxels, rois = voxels[inside], rois[inside]
    found = in_child(
        roi_means, path, header, voxels, rois, atlas.n_rois, seconds=header.seconds, extra_bytes=header.extra_bytes
    )
    # What of an ROI lies beyond the edge of the image is missing too.
    with np.errstate(all="ignore"):
        return found["means"], found["counts"], total / within, header.tr


@lru_cache(maxsize=4)
def _labels_on_grid(
    name: str, image: Path, values: tuple[int, ...], changed: int, shape: tuple[int, ...], affine: bytes
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labelled voxels of a grid (Fortran order), the row of each, and the share of each ROI that lies on the grid."""
    labels, own_affine = label_volume(Atlas(name, tuple(map(str, values)), image=image, values=values))
    target = np.frombuffer(affine).reshape(4, 4)
    within = np.ones(len(values))
    if labels.shape != shape or not np.allclose(own_affine, target, atol=1e-4):
        within = _share_within(labels, own_affine, shape, target, len(values))
        labels = _resampled(labels, own_affine, shape, target) if within.any() else np.zeros(shape, dtype=int)
    flat = labels.ravel(order="F")
    voxels = np.flatnonzero(flat)
    return voxels.astype(np.int32), (flat[voxels] - 1).astype(np.int32), within


def _share_within(
    labels: np.ndarray, own: np.ndarray, shape: tuple[int, ...], target: np.ndarray, n_rois: int
) -> np.ndarray:
    where = np.argwhere(labels)
    rois = labels[tuple(where.T)] - 1
    to_target = np.linalg.inv(target) @ own
    places = where @ to_target[:3, :3].T + to_target[:3, 3]
    inside = ((places > -0.5) & (places < np.asarray(shape) - 0.5)).all(axis=1)
    return np.bincount(rois[inside], minlength=n_rois) / np.bincount(rois, minlength=n_rois)


def _resampled(labels: np.ndarray, own: np.ndarray, shape: tuple[int, ...], target: np.ndarray) -> np.ndarray:
    import nibabel as nib
    from nilearn.image import resample_img

    image = nib.Nifti1Image(labels.astype(np.int32), own)  # pyright: ignore[reportPrivateImportUsage]
    moved = resample_img(
        image, target_affine=target, target_shape=shape, interpolation="nearest", copy_header=True, force_resample=True
    )
    return np.asarray(moved.dataobj).astype(np.int64)


def _in_mask(mask: Path, path: Path, header: Header, voxels: np.ndarray) -> np.ndarray:
    of_mask = read_header(mask)
    if of_mask.shape[:3] != header.shape[:3] or not np.allclose(of_mask.affine, header.affine, atol=1e-3):
        raise OpenBrainMassError(
            f"The brain mask {mask} has the grid {of_mask.shape[:3]} but the image {path.name} {header.shape[:3]}, or "
            "lies elsewhere. Both must come from the same run: fetch them again, or remove the mask."
        )
    values = in_child(voxel_values, mask, of_mask, voxels, seconds=of_mask.seconds, extra_bytes=of_mask.extra_bytes)
    return values > 0


def _intent(path: Path, header: Header) -> int:
    """What a CIFTI file is; by its name where its writer left that open, as nibabel does."""
    if header.intent != _CIFTI.start:
        return header.intent
    return {".dtseries.nii": _DENSE_SERIES, ".ptseries.nii": _PARCEL_SERIES}.get("".join(path.suffixes[-2:]), 0)


def _dense(path: Path, header: Header, atlas: Atlas) -> tuple[np.ndarray, np.ndarray, np.ndarray, float | None]:
    if _intent(path, header) != _DENSE_SERIES:
        raise refused(path, f"it is CIFTI of another kind (intent {header.intent})", "a dense or parcellated series")
    places = atlas_places(atlas, path)
    extra = (512 << 20) + 16 * header.shape[-2] * (atlas.n_rois + 1)
    found = in_child(dense_means, path, header, places, atlas.n_rois, seconds=header.seconds, extra_bytes=extra)
    return found["means"], found["counts"], places["counts"], found["tr"]


def _parcels(path: Path, header: Header, atlas: Atlas) -> Parcellated:
    extra = (512 << 20) + 8 * header.n_bytes
    found = in_child(parcels, path, header, seconds=header.seconds, extra_bytes=extra)
    bold, names = found["bold"], found["names"]
    if atlas.numbered:
        if bold.shape[1] != atlas.n_rois:
            raise OpenBrainMassError(
                f"The image {path} has {bold.shape[1]} parcels but the atlas {atlas.name} {atlas.n_rois} ROIs. Name the "
                "atlas that it was made with."
            )
    else:
        bold = _by_name(path, bold, names, atlas)
    _check_numbers(path, bold)
    return Parcellated(bold, _told(found["tr"], path), _uncovered(bold, atlas))


def _by_name(path: Path, bold: np.ndarray, names: list[str], atlas: Atlas) -> np.ndarray:
    """Columns in the order of the atlas; NaN where the file has no such parcel."""
    row_of = {name: row for row, name in enumerate(atlas.roi_names)}
    strangers = [name for name in names if name not in row_of]
    if strangers or len(set(names)) < len(names):
        raise OpenBrainMassError(
            f"The image {path} has parcels named {', '.join(strangers[:4]) or 'alike'}, which the atlas {atlas.name} "
            f"(with ROIs such as {atlas.roi_names[0]}) does not have. Name the atlas that it was made with."
        )
    ordered = np.full((len(bold), atlas.n_rois), np.nan)
    ordered[:, [row_of[name] for name in names]] = bold
    return ordered
