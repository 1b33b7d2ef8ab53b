"""Downloads, only where somebody typed `openbrainmass fetch`: nilearn's own fetchers, into a folder of one's choice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from openbrainmass.durable import make_folder, read_json, write_json, write_tsv
from openbrainmass.errors import OpenBrainMassError

_MARK = "fetch.json"


@dataclass(frozen=True)
class Download:
    """What can be downloaded, and with which function of ``nilearn.datasets``.

    Attributes
    ----------
    function : str
        Name of the nilearn function.
    arguments : dict
        What it is called with, besides the folder.
    people_argument : str or None
        Its argument for the number of people; None for an atlas.
    what, size, terms : str
        What arrives, how much of it there is, and on which terms it may be used.
    place : str
        The folder or file, from the chosen folder on, that `openbrainmass cohort` then reads.
    list_people : callable or None
        Makes a ``participants.tsv`` of what nilearn hands back and that folder, where the download has none.
    """

    function: str
    arguments: dict[str, Any]
    people_argument: str | None
    what: str
    size: str
    terms: str
    place: str
    list_people: Callable[[Any, Path], pd.DataFrame] | None = None


def _people_of_adhd(fetched: Any, place: Path) -> pd.DataFrame:
    """The people whose images arrived, one row each, with what nilearn tells of them in its own words."""
    files = {Path(file).name.split("_")[0]: str(Path(file).relative_to(place)) for file in fetched.func}
    told = fetched.phenotypic.rename(columns=str)
    told = told[told["Subject"].isin(list(files))]
    people = pd.DataFrame({"participant_id": [f"sub-{label}" for label in told["Subject"]]})
    people["file"] = [files[label] for label in told["Subject"]]
    people["tr"] = float(fetched.t_r)
    rest = [column for column in told.columns if column not in {"Subject", *people.columns}]
    return people.join(told[rest].reset_index(drop=True))


_SCHAEFER_ROIS = (100, 200, 300, 400, 500, 600, 700, 800, 900, 1000)

DOWNLOADS: dict[str, Download] = {
    "abide1": Download(
        function="fetch_abide_pcp",
        arguments={
            "pipeline": "cpac",
            "band_pass_filtering": False,
            "global_signal_regression": False,
            "derivatives": ["rois_cc200"],
            "quality_checked": True,
        },
        people_argument="n_subjects",
        what="ABIDE I of the Preprocessed Connectomes Project: C-PAC, no band-pass, no global signal regression, CC200 "
        "series of the people that passed all three raters, and the phenotype table",
        size="one text file of about half a megabyte a person, some 870 people",
        terms="for non-commercial research, with the sites and funders named (1000 Functional Connectomes / INDI)",
        place="ABIDE_pcp",
    ),
    "adhd200": Download(
        function="fetch_adhd",
        arguments={},
        people_argument="n_subjects",
        what="40 people of ADHD-200 (nilearn's teaching sample, not the whole release): preprocessed 4-D images in MNI "
        "space that are not denoised, a table of confounds each in a form of its own, and the phenotype table",
        size="some tens of megabytes a person, 40 people",
        terms="for non-commercial research (1000 Functional Connectomes / INDI)",
        place="adhd",
        list_people=_people_of_adhd,
    ),
    "ds000228": Download(
        function="fetch_development_fmri",
        arguments={"reduce_confounds": False, "age_group": "both"},
        people_argument="n_subjects",
        what="155 children and adults who watched a film (not rest): fMRIPrep images at 4 mm with their whole confounds "
        "tables, and participants.tsv",
        size="about 6 megabytes a person, 155 people",
        terms="of OpenNeuro ds000228; cite Richardson et al. 2018, doi:10.1038/s41467-018-03399-2",
        place="development_fmri",
    ),
    **{
        f"schaefer-{n_rois}": Download(
            function="fetch_atlas_schaefer_2018",
            arguments={"n_rois": n_rois, "yeo_networks": 7, "resolution_mm": 2},
            people_argument=None,
            what=f"the Schaefer 2018 atlas of {n_rois} ROIs in 7 networks, 2 mm, FSL's MNI space: label image and table",
            size="less than a megabyte",
            terms="MIT licence of CBIG; cite Schaefer et al. 2018, doi:10.1093/cercor/bhx179",
            place=f"schaefer_2018/Schaefer2018_{n_rois}Parcels_7Networks_order_FSLMNI152_2mm.nii.gz",
        )
        for n_rois in _SCHAEFER_ROIS
    },
}
"""What `fetch` can download: a choice is an entry."""


def fetch(name: str, out: str | Path, n_people: int | None = None, say: Callable[[str], None] = print) -> Path:
    """Download a public dataset or atlas with nilearn's fetcher.

    Nothing else in this package opens a connection. A download that was cut off goes on where it stopped when it is
    asked for again with the same folder.

    Parameters
    ----------
    name : str
        A key of `DOWNLOADS`.
    out : path
        A new or empty folder, or that of an earlier download of the same name.
    n_people : int, optional
        Only so many people; by default all.
    say : callable
        Is told what comes, how much of it and on which terms, before anything is downloaded.

    Returns
    -------
    Path
        What `openbrainmass cohort` reads: a folder, or for an atlas its label image.

    Raises
    ------
    OpenBrainMassError
        If the name is not known, the folder is taken, or the download fails.
    """
    if name not in DOWNLOADS:
        raise OpenBrainMassError(
            f"Nothing called {name!r} can be downloaded; {', '.join(DOWNLOADS)} can. For other datasets, "
            "`openbrainmass datasets NAME` says where they are."
        )
    download = DOWNLOADS[name]
    arguments = dict(download.arguments)
    if n_people is not None:
        if download.people_argument is None or n_people < 1:
            raise OpenBrainMassError(
                f"{n_people} people of {name} cannot be downloaded: "
                f"{'it is an atlas' if download.people_argument is None else 'at least 1 is needed'}. Leave that out."
            )
        arguments[download.people_argument] = n_people
    folder = _claim(Path(out), name, n_people)
    say(f"Downloading {download.what}.")
    say(f"Size: {download.size}. Terms: {download.terms}.")
    fetched = _run(download, arguments, folder, name)
    place = folder / download.place
    if not place.exists():
        raise OpenBrainMassError(
            f"The download of {name} ended, but {place} is not there, where nilearn used to put it. Look into {folder}; "
            "if the files are there, name their folder to `openbrainmass cohort`."
        )
    if download.list_people is not None:
        write_tsv(place / "participants.tsv", download.list_people(fetched, place))
    return place


def _claim(out: Path, name: str, n_people: int | None) -> Path:
    """Take a folder that is free, or that an earlier download of the same name began."""
    mark = out / _MARK
    if mark.is_file():
        begun = read_json(mark)
        if not isinstance(begun, dict) or begun.get("name") != name:
            raise OpenBrainMassError(f"{out} holds another download ({mark.name} says so). Name another folder.")
    elif out.is_file() or (out.is_dir() and any(out.iterdir())):
        raise OpenBrainMassError(f"{out} is not empty, and no download of {name} began there. Name a new folder.")
    make_folder(out)
    write_json(mark, {"name": name, "n_people": n_people, "with": f"nilearn.datasets.{DOWNLOADS[name].function}"})
    return out


def _run(download: Download, arguments: dict[str, Any], folder: Path, name: str) -> Any:
    import nilearn.datasets

    fetcher = getattr(nilearn.datasets, download.function, None)
    if fetcher is None:
        raise OpenBrainMassError(
            f"This nilearn has no {download.function}, with which {name} is downloaded. Install a version that "
            "pyproject.toml allows."
        )
    try:
        return fetcher(data_dir=folder, verbose=0, **arguments)
    # Network errors of requests and urllib are OSErrors; an archive cut short is an EOFError or a ValueError.
    except (OSError, EOFError, ValueError) as error:
        told = " ".join(str(error).split())[:200] or type(error).__name__
        raise OpenBrainMassError(
            f"{name} could not be downloaded into {folder} ({told}). Check the connection and the space on the disk; the "
            "same command goes on where it stopped."
        ) from error
