"""Loose files: a folder of series that no tool's layout and no table describes; names say whose they are."""

from __future__ import annotations

import re
from pathlib import Path

from openbrainmass.cohort.files.nifti import read_header
from openbrainmass.cohort.files.read import IMAGES, SUFFIXES, file_labels
from openbrainmass.cohort.layouts import bids, plain
from openbrainmass.cohort.layouts.layout import Found, Layout
from openbrainmass.cohort.source import ReadingSettings
from openbrainmass.errors import OpenBrainMassError

# Tables and images that lie beside series and are none.
_NO_SERIES = re.compile(
    r"participants|phenotyp|recordings|sessions|scans|atlas\.|region|dseg|labels?\.|centroid|confound|regressors|mixing|"
    r"metrics|events|relmat|matrix|motion|outliers|mask|boldref|probseg|readme",
    re.IGNORECASE,
)
_PERSON = re.compile(r"sub(?:ject|j)?[-_]?([A-Za-z]*\d[A-Za-z0-9]*)$", re.IGNORECASE)
_SERIES_INTENTS = (3002, 3004)
_SUFFIXES = tuple(suffix.lower() for suffix in SUFFIXES)


def find(folder: Path, settings: ReadingSettings) -> list[Found]:
    """Every array, table, Matlab file and image with volumes; the person is the `sub-` entity, a folder or the name."""
    return [_found(file) for file in bids.files_below(folder, _may_be) if _has_volumes(folder / file)]


def _may_be(name: str) -> bool:
    return name.lower().endswith(_SUFFIXES) and not _NO_SERIES.search(name)


def _has_volumes(path: Path) -> bool:
    """Whether an image is a series; a damaged one is kept, to be told of when it is read."""
    if not path.name.lower().endswith(IMAGES):
        return True
    try:
        header = read_header(path)
    except OpenBrainMassError:
        return True
    return header.intent in _SERIES_INTENTS or (header.intent < 3000 and len(header.shape) > 3 and header.shape[3] > 1)


def _found(file: str) -> Found:
    if "sub" in bids.entities(file):
        return bids.found(file, {})
    *folders, name = Path(file).parts
    stem = re.sub(r"[\W_]", "", name.split(".")[0])
    person = next((match[1] for part in reversed(folders) if (match := _PERSON.match(part))), None)
    if person is None:
        return Found(file, f"sub-{stem}", f"sub-{stem}")
    return Found(file, f"sub-{person}_desc-{stem}", f"sub-{person}")


LAYOUT = Layout(
    name="loose",
    title="loose files, whose names say whose they are",
    patterns=tuple(f"**/*{suffix}" for suffix in SUFFIXES),
    header="Any file that the plain folder reads, where nothing else is recognised; tables of people, confounds, masks "
    "and the like are passed over by their names. The person is the `sub-` entity, else a folder such as `sub01`, "
    "else the file's name; a `participants.tsv` may add what is known.",
    find=find,
    read=plain.read,
    labels=file_labels,
)
