"""An atlas is an ordered list of ROIs: row i is the same ROI everywhere."""

from __future__ import annotations

import csv
import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from openbrainmass.durable import MISSING
from openbrainmass.errors import OpenBrainMassError

_NAMES = ("roi_name", "label", "name", "region", "region_name")
_VALUES = ("value", "index", "label", "ROI number")
_TEXTS = {
    "networks": ("network", "network7", "networks", "network_label"),
    "hemispheres": ("hemisphere", "hemi"),
}
_CENTRE = "center of mass"
_BACKGROUND = frozenset({"", "???", "unknown", "background", MISSING})
_SEPARATORS = {".tsv": "\t", ".csv": ","}
_IMAGES = (".nii.gz", ".nii")
_CIFTI = ".dlabel.nii"
_ENDING = re.compile(r"_(centroids|labels|roi_atlas|ROI_labels|atlas|dseg)$")

_SCHAEFER = re.compile(
    r"(?:Schaefer2018_)?(?:(?:7|17)Networks_)?[LR]H[_-]((?:Vis|SomMot|DorsAttn|SalVentAttn|Limbic|Cont|Default|TempPar)"
    r"(?:Cent|Peri|[ABC])?)(?:[_-]|$)"
)
_SIDES = {
    side: re.compile(rf"(?:^|[_.-])(?:{letter}|{letter}H|{letter}h|{letter.lower()}h|{word})(?:[_. -]|$)", re.ASCII)
    for side, letter, word in (("LH", "L", "[Ll]eft"), ("RH", "R", "[Rr]ight"))
}
NO_GROUP = "other"
"""Network or hemisphere of an ROI whose name tells none, in an atlas where most names do."""


@dataclass(frozen=True, eq=False)
class Atlas:
    """The ROIs of a parcellation, in order.

    Attributes
    ----------
    name : str
        Short name, e.g. ``"CC200"``.
    roi_names : tuple of str, length n_rois
        Names; ``"1".."n"`` where nobody knows them (see `numbered`).
    networks, hemispheres : tuple of str, length n_rois, or None
        Functional network and hemisphere of each ROI, where known.
    coords_mm : ndarray (n_rois, 3) or None
        Centroids in MNI space, in mm, where known; NaN for an ROI of unknown place.
    image : Path or None
        The label image (NIfTI or CIFTI), where one is at hand; stores and checkpoints do not keep it.
    values : tuple of int, length n_rois, or None
        Value of each ROI in a label image, where known; no part of the digest.
    """

    name: str
    roi_names: tuple[str, ...]
    networks: tuple[str, ...] | None = None
    hemispheres: tuple[str, ...] | None = None
    coords_mm: np.ndarray | None = None
    image: Path | None = None
    values: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for field in ("networks", "hemispheres", "coords_mm", "values"):
            value = getattr(self, field)
            if value is not None and len(value) != self.n_rois:
                raise OpenBrainMassError(
                    f"Atlas {self.name} has {self.n_rois} ROI names but {len(value)} {field}; give one for each ROI."
                )
        repeated = sorted({name for name in self.roi_names if self.roi_names.count(name) > 1})
        if repeated:
            raise OpenBrainMassError(
                f"Atlas {self.name} names {', '.join(repeated[:5])} more than once; each ROI needs its own name."
            )

    def __repr__(self) -> str:
        known = [field for field in ("networks", "hemispheres", "coords_mm") if getattr(self, field) is not None]
        return f"Atlas({self.name!r}, n_rois={self.n_rois}, knows={known})"

    @property
    def n_rois(self) -> int:
        """Number of ROIs."""
        return len(self.roi_names)

    @property
    def numbered(self) -> bool:
        """Whether the ROIs have numbers instead of names."""
        return all(name.isdigit() for name in self.roi_names)

    @property
    def digest(self) -> str:
        """sha256 (first 16 hex digits) of what the rows are: the ROI names, or name and count where only numbered."""
        identity = [self.name.lower(), str(self.n_rois)] if self.numbered else list(self.roi_names)
        return hashlib.sha256("\n".join(identity).encode()).hexdigest()[:16]

    def table(self) -> pd.DataFrame:
        """One row an ROI: ``roi_name network hemisphere x y z`` (mm), with the columns that are known."""
        table = pd.DataFrame({"roi_name": list(self.roi_names)})
        if self.networks is not None:
            table["network"] = list(self.networks)
        if self.hemispheres is not None:
            table["hemisphere"] = list(self.hemispheres)
        if self.coords_mm is not None:
            table[["x", "y", "z"]] = np.asarray(self.coords_mm)
        return table


def numbered_atlas(name: str, n_rois: int) -> Atlas:
    """An atlas of which only the name and the number of ROIs are known."""
    return Atlas(name, tuple(str(i) for i in range(1, n_rois + 1)))


def load_atlas(name_or_path: str | Path, n_rois: int | None = None) -> Atlas:
    """Load an atlas from a table, a list of names or a label image, or number the ROIs of a name nobody knows.

    Names like Schaefer's (``7Networks_LH_Vis_1``) also tell network and hemisphere, names with a side in them
    (``Precentral_L``, ``ctx-lh-cuneus``) the hemisphere. A row of value 0 called ``Unknown``, ``Background`` or
    ``???`` is no ROI.

    Parameters
    ----------
    name_or_path : str or path
        One of

        - a ``.tsv``/``.csv`` table with what is known of ``roi_name``/``label``/``name``, ``value``/``index`` (a
          ``label`` of numbers is a value), ``network``, ``hemisphere``, ``x y z`` in mm; or, without a header, a value
          and a name in each line;
        - a ``.txt`` list of names, or of values and names (a colour may follow);
        - a ``.nii``/``.nii.gz`` label image: ROIs in the order of their values, named by the table beside it
          (``<image>.tsv``, ``..._labels.csv`` ...) where there is one, else by their values;
        - a ``.dlabel.nii`` CIFTI of one map, named by its own label table;
        - a name.
    n_rois : int, optional
        How many ROIs the data have; needed for a bare name, checked against a file.

    Returns
    -------
    Atlas

    Raises
    ------
    OpenBrainMassError
        If a file is missing or unreadable, the count disagrees, or a bare name comes without a count.
    """
    path = Path(name_or_path)
    if path.suffix in _SEPARATORS or path.suffix == ".txt":
        atlas = _from_table(path)
    elif path.name.endswith(_CIFTI):
        atlas = _from_cifti(path)
    elif path.name.endswith(_IMAGES):
        atlas = _from_image(path)
    elif n_rois is None:
        raise OpenBrainMassError(
            f"Nothing is known of the atlas {name_or_path}; give a table of its ROIs (--atlas file.tsv) or their number."
        )
    else:
        return numbered_atlas(str(name_or_path), n_rois)
    if n_rois is not None and atlas.n_rois != n_rois:
        raise OpenBrainMassError(
            f"The atlas {path} has {atlas.n_rois} ROIs but the data have {n_rois}. Name the atlas they were extracted with."
        )
    return atlas


def label_volume(atlas: Atlas) -> tuple[np.ndarray, np.ndarray]:
    """The NIfTI label image of an atlas, its voxels as row numbers.

    Returns
    -------
    labels : ndarray (nx, ny, nz), int
        0 in the background, ``i + 1`` in row ``i`` of the atlas.
    affine : ndarray (4, 4)
        From voxels to mm.

    Raises
    ------
    OpenBrainMassError
        If the atlas has no NIfTI image, or its image lacks an ROI or holds a value that is none.
    """
    cifti = atlas.image is not None and atlas.image.name.endswith(_CIFTI)
    if atlas.image is None or atlas.values is None or cifti:
        raise OpenBrainMassError(
            f"No label image of the atlas {atlas.name} is at hand. Load the atlas from its NIfTI image (.nii.gz)."
        )
    voxels, affine = _voxels(atlas.image)
    odd = sorted((set(np.unique(voxels).tolist()) - {0}).symmetric_difference(atlas.values))
    if odd:
        raise OpenBrainMassError(
            f"The image {atlas.image} and the {atlas.n_rois} ROIs of the atlas {atlas.name} do not fit: only one of "
            f"them has {_few(odd)}. Give image and table of the same atlas."
        )
    by_value = np.argsort(atlas.values)
    nearest = np.searchsorted(np.asarray(atlas.values), np.maximum(voxels, min(atlas.values)), sorter=by_value)
    return np.where(voxels == 0, 0, by_value[nearest] + 1), affine


def _stem(path: Path) -> str:
    return path.name.split(".")[0]


def _name_of(path: Path) -> str:
    entity = re.search(r"(?:atlas|seg)-([A-Za-z0-9]+)(?:.*?desc-([A-Za-z0-9]+))?", _stem(path))
    if entity:
        return "".join(part for part in entity.groups() if part)
    return _ENDING.sub("", _stem(path)).removeprefix("pcp_")


def _existing(path: Path) -> Path:
    if not path.is_file():
        raise OpenBrainMassError(f"The atlas file {path} does not exist. Check its path.")
    return path


def _few(things: list[Any]) -> str:
    return ", ".join(map(str, things[:5])) + (f" and {len(things) - 5} more" if len(things) > 5 else "")


def _from_table(path: Path) -> Atlas:
    found = _columns(_read_table(_existing(path)), path)
    beside = (path.with_name(path.name.removesuffix(path.suffix) + suffix) for suffix in _IMAGES)
    image = next((file for file in beside if file.is_file()), None) if found["values"] is not None else None
    if image is not None and found["coords_mm"] is None:
        values, centroids = _centroids(*_voxels(image))
        places = dict(zip(values, centroids, strict=True))
        found["coords_mm"] = np.array([places.get(value, np.full(3, np.nan)) for value in found["values"] or ()])
    return Atlas(_name_of(path), image=image, **found)


def _read_table(path: Path) -> pd.DataFrame:
    """Read a table as text under named columns; lines of a number and a name need no header."""
    lines = _lines(path)
    if path.suffix == ".txt":
        return _listed(lines)
    # In the PCP's table of CC200 quotes stand within fields, never around one.
    quoting = csv.QUOTE_NONE if _CENTRE in lines[0] else csv.QUOTE_MINIMAL
    reader = csv.reader(lines, delimiter=_SEPARATORS[path.suffix], quoting=quoting, skipinitialspace=True)
    try:
        rows = [[field.strip() for field in row] for row in reader]
    except csv.Error as error:
        raise OpenBrainMassError(f"The atlas file {path} is no table ({error}). Save it again as text.") from error
    if len(rows[0]) == 2 and _whole(rows[0][0]) and not _number(rows[0][1]):
        rows.insert(0, ["value", "name"])
    if len(set(rows[0])) < len(rows[0]):
        raise OpenBrainMassError(
            f"The atlas table {path} has two columns of one name in its header ({', '.join(rows[0][:8])}). Rename one."
        )
    for row in rows[1:]:
        if len(row) != len(rows[0]):
            raise OpenBrainMassError(
                f"The atlas table {path} has {len(row)} fields in the row of {row[0]!r} but {len(rows[0])} in its "
                "header. Give every ROI a row with all columns."
            )
    return pd.DataFrame(rows[1:], columns=rows[0], dtype=str)


def _lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        if "\0" in text:
            raise ValueError("it holds NUL characters")
    except (OSError, ValueError) as error:
        raise OpenBrainMassError(
            f"The atlas file {path} is not readable text ({error}). Save it again as UTF-8."
        ) from error
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if not lines:
        raise OpenBrainMassError(
            f"The atlas file {path} is empty; a line for each ROI was expected. Give the whole file."
        )
    return lines


def _listed(lines: list[str]) -> pd.DataFrame:
    """Names; or values and names as colour tables have them (``12 Left-Putamen 236 13 176 0``)."""
    parts = [re.fullmatch(r"\s*(\d+)\s+(\S.*?)(?:\s+\d+){0,4}\s*", line) for line in lines]
    if all(part and not _number(part[2]) for part in parts):
        return pd.DataFrame([(part[1], part[2]) for part in parts if part], columns=["value", "name"], dtype=str)
    return pd.DataFrame({"name": [line.strip() for line in lines]}, dtype=str)


def _whole(text: str) -> bool:
    return re.fullmatch(r"\d+(\.0*)?", text) is not None


def _number(text: str) -> bool:
    return re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", text) is not None


def _columns(table: pd.DataFrame, path: Path) -> dict[str, Any]:
    """What a table tells of its ROIs, as fields of an `Atlas`."""
    values = next((table[c] for c in _VALUES if c in table and table[c].map(_whole).all()), None)
    names = next((table[c] for c in _NAMES if c in table and (c == _NAMES[0] or not table[c].map(_number).all())), None)
    if values is not None and names is not None:
        table = table[~((values.astype(float) == 0) & names.str.lower().isin(_BACKGROUND))]
        values, names = values[table.index], names[table.index]
    if not len(table):
        raise OpenBrainMassError(f"The atlas table {path} has no ROI below its header. Give the whole table.")
    found: dict[str, Any] = {"values": _voxel_values(values, path), "coords_mm": _coords(table, path)}
    for field, spellings in _TEXTS.items():
        column = next((c for c in spellings if c in table), None)
        found[field] = tuple(table[column]) if column else None
    if names is None and all(value is None for value in found.values()):
        raise OpenBrainMassError(
            f"The atlas table {path} has the columns {_few(list(table.columns))}; at least one of {', '.join(_NAMES[:3])}, "
            "value, index or x y z was expected. Name its columns in a header line."
        )
    numbers = found["values"] or range(1, len(table) + 1)
    found["roi_names"] = _names(names, numbers)
    return _with_told_by_names(found)


def _names(names: pd.Series | None, numbers: Any) -> tuple[str, ...]:
    if names is None:
        return tuple(str(number) for number in numbers)
    return tuple(
        str(number) if name in ("", MISSING) else str(name) for name, number in zip(names, numbers, strict=True)
    )


def _voxel_values(values: pd.Series | None, path: Path) -> tuple[int, ...] | None:
    numbers = () if values is None else tuple(int(float(value)) for value in values)
    if repeated := sorted({number for number in numbers if numbers.count(number) > 1}):
        raise OpenBrainMassError(
            f"The atlas table {path} gives the value {_few(repeated)} to more than one ROI. Each needs its own."
        )
    # An ROI with the number 0 is counted from 0, and 0 is the background of every image: no voxel values then.
    return None if 0 in numbers else numbers or None


def _coords(table: pd.DataFrame, path: Path) -> np.ndarray | None:
    if _CENTRE in table:
        places = table[_CENTRE].str.strip("()").str.split(";", expand=True)
    elif {"x", "y", "z"} <= set(table.columns):
        places = table[["x", "y", "z"]]
    else:
        return None
    try:
        coords = places.replace({"": "nan", MISSING: "nan"}).to_numpy(dtype=float)
    except ValueError as error:
        raise OpenBrainMassError(
            f"The coordinates of the atlas table {path} are not all numbers ({error}). Give mm, or n/a where unknown."
        ) from error
    return coords


def _with_told_by_names(found: dict[str, Any]) -> dict[str, Any]:
    """Add networks and hemispheres that most of the names tell, where nothing else does."""
    names = found["roi_names"]
    networks = [match[1] if (match := _SCHAEFER.match(name)) else NO_GROUP for name in names]
    sides = [next((side for side, told in _SIDES.items() if told.search(name)), NO_GROUP) for name in names]
    for field, told in (("networks", networks), ("hemispheres", sides)):
        if found.get(field) is None and told.count(NO_GROUP) < len(names) / 2:
            found[field] = tuple(told)
    return found


def _voxels(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Label image (nx, ny, nz) of whole numbers, and its affine."""
    image: Any = _image(path)
    data = np.asanyarray(image.dataobj)
    if data.ndim == 4 and data.shape[3] == 1:
        data = data[..., 0]
    if data.ndim != 3 or not np.isfinite(data).all() or (data != np.rint(data)).any() or data.min() < 0:
        raise OpenBrainMassError(
            f"The atlas image {path} of shape {data.shape} is no label image: one volume of whole numbers >= 0 was "
            "expected. Maps of probabilities must be turned into labels first."
        )
    if data.max() == 0:
        raise OpenBrainMassError(f"The atlas image {path} is empty: every voxel is 0. Give the image with its labels.")
    return data.astype(np.int64), np.asarray(image.affine, dtype=float)


def _image(path: Path) -> Any:
    import nibabel as nib

    try:
        image: Any = nib.load(_existing(path))  # pyright: ignore[reportPrivateImportUsage]
        np.asanyarray(image.dataobj)
    except OpenBrainMassError:
        raise
    except Exception as error:  # nibabel, gzip and numpy each have their own way to fail on a damaged file
        raise OpenBrainMassError(
            f"The atlas image {path} is not readable ({' '.join(str(error).split()) or type(error).__name__}). It may "
            "be cut short or of another type; fetch it again."
        ) from error
    return image


def _centroids(voxels: np.ndarray, affine: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
    """Values of a label image in their order, and the centre of each, mm."""
    flat = voxels.ravel()
    values = np.unique(flat[flat > 0])
    where = np.flatnonzero(flat)
    rank = np.searchsorted(values, flat[where])
    places = np.column_stack(np.unravel_index(where, voxels.shape)) @ affine[:3, :3].T + affine[:3, 3]
    sums = np.stack([np.bincount(rank, axis) for axis in places.T], axis=1)
    return tuple(values.tolist()), sums / np.bincount(rank)[:, None]


def _from_image(path: Path) -> Atlas:
    values, centroids = _centroids(*_voxels(path))
    return Atlas(_name_of(path), coords_mm=centroids, image=path, **_named_beside(path, values))


def _named_beside(path: Path, values: tuple[int, ...]) -> dict[str, Any]:
    """Names, networks and hemispheres of the values of an image, from a table beside it."""
    stems = dict.fromkeys((_stem(path), _ENDING.sub("", _stem(path))))
    tables = [path.with_name(stem + end + suffix) for stem in stems for end in ("", "_dseg", "_labels", "_centroids")
              for suffix in (*_SEPARATORS, ".txt")]  # fmt: skip
    table = next((file for file in tables if file.is_file()), None)
    if table is None:
        return {"values": values, "roi_names": tuple(str(value) for value in values)}
    told = _columns(_read_table(table), table)
    if told["values"] is None and len(told["roi_names"]) != len(values):
        raise OpenBrainMassError(
            f"The atlas image {path} holds {len(values)} ROIs but the table beside it, {table}, names "
            f"{len(told['roi_names'])} and gives no values. Add a column value, or remove the table."
        )
    row = {value: number for number, value in enumerate(told["values"] or values)}
    rows = [row.get(value) for value in values]
    found: dict[str, Any] = {"values": values}
    for field in ("roi_names", "networks", "hemispheres"):
        column = told.get(field)
        other = [str(value) if field == "roi_names" else NO_GROUP for value in values]
        if column is not None:
            found[field] = tuple(column[i] if i is not None else spare for i, spare in zip(rows, other, strict=True))
    return found


def _from_cifti(path: Path) -> Atlas:
    image = _image(path)
    axis: Any = image.header.get_axis(0) if hasattr(image.header, "get_axis") else None
    maps = [str(name) for name in getattr(axis, "name", [])]
    if not hasattr(axis, "label") or len(maps) != 1:
        raise OpenBrainMassError(
            f"The CIFTI file {path} has {len(maps)} label maps ({_few(maps)}); one was expected. Write the map you want "
            "into a file of its own (wb_command -cifti-merge with -column)."
        )
    table = {int(key): str(entry[0]) for key, entry in axis.label[0].items()}
    present = [int(key) for key in np.unique(np.asanyarray(image.dataobj)).tolist()]
    unnamed = [key for key in present if key not in table]
    if unnamed:
        raise OpenBrainMassError(
            f"The CIFTI file {path} has vertices of the label {_few(unnamed)}, which its own label table lacks. "
            "Fetch it again or mend it."
        )
    values = tuple(key for key in present if key != 0 and table[key].lower() not in _BACKGROUND)
    told = _with_told_by_names({"roi_names": tuple(table[value] for value in values)})
    return Atlas(_name_of(path), image=path, values=values, **told)
