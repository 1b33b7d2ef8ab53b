"""Any file that can hold one recording, by its type."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from openbrainmass.atlas import Atlas
from openbrainmass.cohort.files import matlab, series
from openbrainmass.cohort.source import ReadingSettings, Series
from openbrainmass.errors import OpenBrainMassError

IMAGES = (".nii", ".nii.gz")
"""Types that need an atlas image (`.ptseries.nii` and `.dtseries.nii` are among them)."""

SUFFIXES = (*series.SUFFIXES, ".mat", *IMAGES)
"""Types of files that can be read."""


def read_file(path: str | Path, atlas: Atlas, settings: ReadingSettings | None = None) -> Series:
    """Read one recording from an array, a table, a Matlab file or an image.

    Parameters
    ----------
    path : path
        One of `SUFFIXES`.
    atlas : Atlas
        What the columns must be; images are parcellated with its image.
    settings : ReadingSettings, optional
        How images are parcellated.

    Raises
    ------
    OpenBrainMassError
        If the file is missing, of another type, damaged, transposed, or not of this atlas.
    """
    path = Path(path)
    if not path.is_file():
        raise OpenBrainMassError(
            f"The recording {path} does not exist. Check the column `file`; its paths start at the folder of the table."
        )
    if path.name.lower().endswith(IMAGES):
        from openbrainmass.cohort.files.images import read_image

        return read_image(path, atlas, settings or ReadingSettings())
    bold = _values(path, atlas)
    if bold.shape[0] == atlas.n_rois != bold.shape[1]:
        raise transposed(path, bold.shape, atlas.n_rois)
    return Series(bold)


def _values(path: Path, atlas: Atlas) -> np.ndarray:
    if path.suffix.lower() == ".mat":
        return matlab.read_matlab(path)
    return series.read_series(path, None if atlas.numbered else atlas.roi_names)


def file_labels(path: str | Path) -> tuple[str, ...] | None:
    """Names of the ROIs that a file itself has, or None."""
    path = Path(path)
    if path.name.lower().endswith(IMAGES):
        from openbrainmass.cohort.files.images import image_labels

        return image_labels(path)
    return series.series_labels(path)


def file_shape(path: str | Path) -> tuple[int, ...]:
    """Shape (n_volumes, n_rois) of an array, table or Matlab file."""
    path = Path(path)
    return matlab.read_matlab(path).shape if path.suffix.lower() == ".mat" else series.read_series(path).shape


def transposed(path: Path, shape: tuple[int, ...], n_rois: int) -> OpenBrainMassError:
    """The error of an array whose rows are the ROIs."""
    return OpenBrainMassError(
        f"The recording {path} has the shape {shape} and looks transposed: (n_volumes, n_rois) with {n_rois} columns "
        "was expected. Save it transposed."
    )
