"""From a folder of any known layout to a source: which layout, which atlas, whose recordings."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import pandas as pd

from openbrainmass.atlas import Atlas, load_atlas
from openbrainmass.cohort.catalogue import DatasetCard, dataset_card, dataset_names
from openbrainmass.cohort.cohort import EXCLUSION_COLUMNS
from openbrainmass.cohort.files.read import IMAGES, file_shape, transposed
from openbrainmass.cohort.filters import filter_series
from openbrainmass.cohort.layouts import (
    abide_pcp,
    adhd200,
    c_pac,
    conn,
    fmriprep,
    giga_connectome,
    halfpipe,
    hcp,
    loose,
    plain,
    rest_meta_mdd,
    xcp_d,
)
from openbrainmass.cohort.layouts.bids import entities
from openbrainmass.cohort.layouts.layout import Found, Layout
from openbrainmass.cohort.phenotype import find_phenotype, fits_card, read_people, read_phenotype
from openbrainmass.cohort.source import ReadingSettings, Series, Source, one_tr
from openbrainmass.errors import OpenBrainMassError

LAYOUTS: dict[str, Layout] = {
    module.LAYOUT.name: module.LAYOUT
    for module in (
        plain,
        fmriprep,
        xcp_d,
        giga_connectome,
        halfpipe,
        c_pac,
        abide_pcp,
        adhd200,
        hcp,
        conn,
        rest_meta_mdd,
        loose,
    )
}
"""Every layout that is known, by name."""

_ATLAS_FILES = (".tsv", ".csv", ".txt", ".nii", ".gz")
_ATLAS_TABLES = ("atlas.tsv", "atlas.csv", "region_names.txt")
_PEEKED = 25


def read_source(
    folder: str | Path,
    atlas: str | Path | Atlas | None = None,
    dataset: str | None = None,
    *,
    layout: str | None = None,
    participants: str | Path | None = None,
    settings: ReadingSettings | None = None,
) -> Source:
    """Find the recordings of a folder; their files stay on disk until they are asked for.

    The layout is recognised by its files. The atlas is the argument; else the folder's ``atlas.tsv``, ``atlas.csv`` or
    ``region_names.txt``, called by the ``atlas-`` or ``seg-`` entity of the file names; else that entity alone, with
    the labels of the first file as ROI names where it has some, else with numbered ROIs.

    Parameters
    ----------
    folder : path
        What a tool wrote, what was downloaded, or a plain folder with ``participants.tsv``.
    atlas : str, path or Atlas, optional
        A name (as the files spell it), table or label image of the atlas, or the atlas itself.
    dataset : str, optional
        Name of the dataset; the folder's name where it is not given. A name of the catalogue (`dataset_names`) also
        says how its phenotype table is read.
    layout : str, optional
        One of `LAYOUTS`, where a folder could be two.
    participants : path, optional
        Table of the people (``participant_id`` and what is known of them) that lies elsewhere.
    settings : ReadingSettings, optional
        Which files, and how they are read.

    Raises
    ------
    OpenBrainMassError
        If nothing is found, the layout or the atlas is not clear, a table is wrong or no person of it is there.
    """
    folder = Path(folder)
    settings = settings or ReadingSettings()
    if not folder.is_dir():
        told = "is a file. Name the folder that it is in" if folder.exists() else "does not exist. Check the path"
        raise OpenBrainMassError(f"The folder {folder} {told}.")
    chosen, found = _layout(folder, layout, settings)
    found = [one for one in found if _has_entities(one, settings.entities)]
    if not found:
        raise OpenBrainMassError(
            f"No file of {folder} has the entities {settings.entities}. Change reading.entities (--set)."
        )
    given = load_atlas(atlas) if _is_file(atlas) else atlas
    found = _of_one_atlas(folder, found, given)
    if chosen is not plain.LAYOUT:
        found = _of_its_kind(found, given)
    asked = dataset if dataset in dataset_names() else None
    described = asked or chosen.card
    card = dataset_card(described) if described else None
    people = _people(folder, chosen, card, participants, found, needed=asked is not None)
    first = folder / found[0].file
    is_image = first.name.lower().endswith(IMAGES)
    labels = found[0].labels or (chosen.labels(first) if first.is_file() else None)
    known = _atlas(folder, found, given, labels)
    _refuse_versions(folder, found)
    recordings, contradicting = _recordings(found, _site_trs(card, people))
    name = dataset or folder.resolve().name
    _refuse_slashes([name, *people["participant_id"], *recordings["recording_id"]], folder)
    without = people[~people["participant_id"].isin({one.participant_id for one in found})]
    return Source(
        name=name,
        atlas=known,
        recordings=recordings,
        participants=people,
        exclusions=pd.concat([_without_recording(without), contradicting], ignore_index=True),
        read=Reader(chosen.name, folder, known, settings),
        costly=is_image,
        # What is parcellated here has the order of the image.
        labelled=labels is not None or is_image,
    )


@dataclass(frozen=True)
class Reader:
    """Reads the recordings of one folder; can be pickled.

    Attributes
    ----------
    layout : str
        Name of the layout.
    folder : Path
        Where its files are.
    atlas : Atlas
        What the columns of every array are.
    settings : ReadingSettings
        How files are read.
    """

    layout: str
    folder: Path
    atlas: Atlas
    settings: ReadingSettings

    def __call__(self, row: Mapping[str, Any]) -> Series:
        """Read the recording of a row of the recordings table."""
        layout = LAYOUTS[self.layout]
        series = layout.read(self.folder / row["file"], row, self.atlas, self.settings)
        # Images are filtered together with their confounds.
        filtered = str(row["file"]).lower().endswith(IMAGES)
        if filtered or not (self.settings.detrend or self.settings.band_pass):
            return series
        if self.settings.band_pass and series.measures.get("kept_volumes"):
            raise OpenBrainMassError(
                f"{self.folder / row['file']} lacks the volumes that were censored, and a band-pass takes volumes as evenly "
                "spaced. Read the interpolated series (--set reading.motion=interpolated), or leave reading.band_pass out."
            )
        tr = one_tr({"the tables": row["tr"], **series.tr}, str(row["recording_id"]))
        bold, steps = filter_series(series.bold, tr, self.settings)
        earlier = series.measures.get("steps")
        return Series(bold, series.tr, {**series.measures, "steps": "; ".join(filter(None, (earlier, steps)))})


def _layout(folder: Path, name: str | None, settings: ReadingSettings) -> tuple[Layout, list[Found]]:
    if name is not None and name not in LAYOUTS:
        raise OpenBrainMassError(f"There is no layout {name!r}; known are {', '.join(LAYOUTS)}.")
    if name is None and (found := plain.find(folder, settings)):
        # Tables that name each file say what is meant, whatever else the folder looks like.
        return plain.LAYOUT, found
    tools = [layout for layout in LAYOUTS.values() if layout not in (plain.LAYOUT, loose.LAYOUT)]
    asked = [LAYOUTS[name]] if name else tools
    matches = [(layout, found) for layout in asked if (found := layout.find(folder, settings))]
    if {layout.name for layout, _ in matches} == {fmriprep.LAYOUT.name, c_pac.LAYOUT.name}:
        # C-PAC calls its images as fMRIPrep does; its tables are what it parcellated of them.
        matches = [match for match in matches if match[0] is c_pac.LAYOUT]
    if not matches and name is None and (found := loose.find(folder, settings)):
        return loose.LAYOUT, found
    if len(matches) == 1:
        return matches[0]
    if matches:
        names = ", ".join(f"{layout.name} ({len(found)} recordings)" for layout, found in matches)
        raise OpenBrainMassError(f"{folder} holds files of several layouts: {names}. Choose one with --layout.")
    raise OpenBrainMassError(
        f"{folder} has no recordings that are known{f' of the layout {name}' if name else ''}: neither a "
        "participants.tsv or recordings.tsv with a column file nor files of "
        f"{', '.join(layout.title for layout in asked if layout in tools)}. Check the path, or list each "
        "recording's file in participants.tsv."
    )


def _has_entities(found: Found, wanted: Mapping[str, str]) -> bool:
    named = {**entities(found.recording_id), **entities(found.variant), **entities(found.file)} if wanted else {}
    return all(named.get(entity) == value for entity, value in wanted.items())


def _is_file(atlas: str | Path | Atlas | None) -> TypeGuard[str | Path]:
    return isinstance(atlas, str | Path) and Path(atlas).suffix in _ATLAS_FILES


def _spelt(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _of_one_atlas(folder: Path, found: list[Found], given: str | Path | Atlas | None) -> list[Found]:
    """Of files of several atlases those of the one that was asked for."""
    names = sorted({one.atlas for one in found if one.atlas})
    if len(names) <= 1:
        return found
    wanted = _spelt(given.name if isinstance(given, Atlas) else str(given or ""))
    chosen = [one for one in found if one.atlas and _spelt(one.atlas) == wanted]
    if not chosen:
        asked = f"none of them is {given.name if isinstance(given, Atlas) else given}" if given else "none was named"
        raise OpenBrainMassError(
            f"The file names of {folder} speak of several atlases ({', '.join(names[:12])}); {asked}. A cohort has one: "
            "name it (--atlas), spelt so; for its ROI names, call its table or image so."
        )
    return chosen


def _of_its_kind(found: list[Found], given: str | Path | Atlas | None) -> list[Found]:
    """Where a folder has volumes, surface images and parcellated series: those that the atlas is meant for."""
    image = given.image if isinstance(given, Atlas) else None
    if image is None:
        fitting = [one for one in found if not one.file.endswith(IMAGES) or one.file.endswith(".ptseries.nii")]
    elif image.name.endswith(".dlabel.nii"):
        fitting = [one for one in found if one.file.endswith(".dtseries.nii")]
    else:
        fitting = [one for one in found if not one.file.endswith((".dtseries.nii", ".ptseries.nii"))]
    return fitting or found


def _refuse_versions(folder: Path, found: list[Found]) -> None:
    seen: dict[str, Found] = {}
    for one in found:
        other = seen.setdefault(one.recording_id, one)
        if other is not one:
            versions = f"{other.file} and {one.file}" + (f" ({other.variant} or {one.variant})" if one.variant else "")
            raise OpenBrainMassError(
                f"{folder} has the recording {one.recording_id} in more than one version: {versions}. Choose by what "
                "tells them apart, such as --set reading.entities.desc=NAME or reading.entities.space=NAME."
            )


def _site_trs(card: DatasetCard | None, people: pd.DataFrame) -> dict[str, dict[str, float]]:
    """For people of a known dataset the tr of their site, by where that was found."""
    if card is None or "site" not in people:
        return {}
    return {
        person: {f"the card of {card.name} for {site}": card.tr_by_site[site]}
        for person, site in zip(people["participant_id"], people["site"], strict=True)
        if site in card.tr_by_site
    }


def _recordings(
    found: Sequence[Found], site_trs: Mapping[str, Mapping[str, float]]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The recordings table, and the exclusions of those for which two places tell another tr."""
    rows: list[dict[str, Any]] = []
    excluded: list[dict[str, Any]] = []
    for one in found:
        row: dict[str, Any] = {"recording_id": one.recording_id, "participant_id": one.participant_id}
        try:
            tr = one_tr({**one.tr, **site_trs.get(one.participant_id, {})}, one.recording_id)
        except OpenBrainMassError as error:
            excluded.append({**row, "reason": "contradicting-tr", "detail": str(error), "file": one.file})
            continue
        row |= {"session": one.session, "run": one.run, "tr": tr, "file": one.file}
        rows.append(row | ({"task": one.task} if one.task else {}) | dict(one.columns))
    first = ["recording_id", "participant_id", "session", "run", "tr", "file"]
    table = pd.DataFrame(rows, columns=None if rows else first)
    table["tr"] = table["tr"].astype(float)
    rest = [column for column in table.columns if column not in (*first, *plain.MEASURED)]
    return table[first + rest], pd.DataFrame(excluded, columns=list(EXCLUSION_COLUMNS), dtype=object)


def _people(
    folder: Path,
    layout: Layout,
    card: DatasetCard | None,
    participants: str | Path | None,
    found: Sequence[Found],
    needed: bool,
) -> pd.DataFrame:
    """What is known of the people: the table that was named, the dataset's own, or a participants.tsv."""
    path = Path(participants) if participants else next(_tables_of_people(folder, card), None)
    ids = pd.unique(pd.Series([one.participant_id for one in found], dtype=object))
    if path is None and card is not None and needed:
        raise OpenBrainMassError(
            f"No table of the people of {card.name} was found in {folder} or above it. Name it (--participants), or give "
            "the cohort another name (--dataset) if nothing is to be known of its people."
        )
    if path is None:
        return pd.DataFrame({"participant_id": ids})
    is_generic = path.name == "participants.tsv"
    table = None
    # What was named by hand, and a participants.tsv, may be the user's own table; another that was found is the dataset's.
    if card is not None and not (layout is plain.LAYOUT and is_generic):
        table = read_phenotype(path, card) if fits_card(path, card) or not (participants or is_generic) else None
    table = read_people(path) if table is None else table
    if all(str(person).startswith("sub-") for person in ids):
        bare = ~table["participant_id"].str.startswith("sub-")
        table.loc[bare, "participant_id"] = "sub-" + table.loc[bare, "participant_id"]
    strangers = [person for person in ids if person not in set(table["participant_id"])]
    if strangers and (layout is plain.LAYOUT or len(strangers) == len(ids)):
        raise OpenBrainMassError(
            f"{folder} has recordings of {', '.join(strangers[:5])}, who are not in {path} (with people such as "
            f"{', '.join(table['participant_id'].iloc[:2])}). Add their rows, or name the right table (--participants)."
        )
    owned = [c for c in table.columns if layout is not plain.LAYOUT or c not in (*plain.OF_RECORDINGS, *plain.MEASURED)]
    # Recordings of people whom the table lacks stay, with nothing known: pretraining needs no label.
    return pd.concat([table[owned], pd.DataFrame({"participant_id": strangers})], ignore_index=True)


def _tables_of_people(folder: Path, card: DatasetCard | None) -> Iterator[Path]:
    if card is not None and (path := find_phenotype(folder, card)) is not None:
        yield path
    for place in (folder, folder.resolve().parent):
        if (place / "participants.tsv").is_file():
            yield place / "participants.tsv"


def _refuse_slashes(names: Iterable[str], folder: Path) -> None:
    wrong = next((name for name in names if "/" in name), None)
    if wrong is not None:
        raise OpenBrainMassError(
            f"{wrong!r} of {folder} has a slash, which only the ids of merged stores may have (dataset/id). Rename it."
        )


def _without_recording(people: pd.DataFrame) -> pd.DataFrame:
    rows = [
        {"recording_id": None, "participant_id": person, "reason": "no-recording", "detail": "no file of this person"}
        for person in people["participant_id"]
    ]
    return pd.DataFrame(rows, columns=list(EXCLUSION_COLUMNS), dtype=object)


def _atlas(
    folder: Path,
    found: Sequence[Found],
    given: str | Path | Atlas | None,
    labels: tuple[str, ...] | None,
) -> Atlas:
    of_image = labels is None and found[0].file.lower().endswith(IMAGES)
    if of_image and not isinstance(given, Atlas) and not any((folder / name).is_file() for name in _ATLAS_TABLES):
        raise _without_image(folder / found[0].file, f"{given} is a mere name" if given else "none was named")
    chosen = _named_atlas(folder, found, found[0].atlas, labels, given)
    if of_image and chosen.image is None:
        raise _without_image(folder / found[0].file, f"{chosen.name} comes without one")
    return chosen


def _without_image(file: Path, told: str) -> OpenBrainMassError:
    return OpenBrainMassError(
        f"{file} is an image, which only an atlas image can parcellate; {told}. Name the image (--atlas atlas.nii.gz, or "
        "atlas.dlabel.nii for dtseries)."
    )


def _named_atlas(
    folder: Path,
    found: Sequence[Found],
    entity: str | None,
    labels: tuple[str, ...] | None,
    given: str | Path | Atlas | None,
) -> Atlas:
    if isinstance(given, Atlas):
        return given
    table = next((folder / name for name in _ATLAS_TABLES if (folder / name).is_file()), None)
    if given is not None and _spelt(str(given)) != _spelt(entity or ""):
        return Atlas(str(given), labels) if labels else load_atlas(str(given), _width(folder, found))
    if table is not None:
        named = load_atlas(table)
        return replace(named, name=entity or named.name)
    if entity is None and labels is None:
        raise OpenBrainMassError(
            f"Nothing says which atlas the recordings of {folder} were extracted with. Name it (--atlas), put an "
            "atlas.tsv beside participants.tsv, or an atlas- entity into the file names."
        )
    # Named columns say which ROIs they are, whatever the atlas is called.
    return (
        Atlas(entity or f"Labelled{len(labels)}", labels) if labels else load_atlas(str(entity), _width(folder, found))
    )


def _width(folder: Path, found: Sequence[Found]) -> int:
    """How many ROIs the recordings have, by their table, else by the commonest width among the first ones."""
    claimed = Counter(one.columns["n_rois"] for one in found if pd.notna(one.columns.get("n_rois")))
    if claimed:
        return int(claimed.most_common(1)[0][0])
    shapes, problem = [], None
    for one in found[:_PEEKED]:
        try:
            shapes.append(file_shape(folder / one.file))
        except OpenBrainMassError as error:
            problem = error
    if not shapes:
        raise problem or OpenBrainMassError(f"{folder} has no recordings.")
    heights, widths = (Counter(shape[axis] for shape in shapes) for axis in (0, 1))
    if len(heights) == 1 < len(widths):
        raise transposed(folder / found[0].file, shapes[0], shapes[0][0])
    return widths.most_common(1)[0][0]
