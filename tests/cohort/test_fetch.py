"""Downloads: what is asked of nilearn, and what is done with a taken folder or a lost connection."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nilearn.datasets
import numpy as np
import pandas as pd
import pytest

from openbrainmass.cohort.catalogue import dataset_card, dataset_names
from openbrainmass.cohort.fetch import DOWNLOADS, fetch
from openbrainmass.cohort.phenotype import find_phenotype, read_people, read_phenotype
from openbrainmass.errors import OpenBrainMassError


@pytest.fixture
def asked(monkeypatch) -> list[dict[str, Any]]:
    """nilearn's fetchers replaced: each notes what it is called with and leaves what the real one would."""
    calls: list[dict[str, Any]] = []

    def stand_in(name: str, place: str):
        def fetcher(**arguments: Any) -> SimpleNamespace:
            calls.append({"function": name} | arguments)
            target = Path(arguments["data_dir"]) / re.sub(r"_\d+Parcels", f"_{arguments.get('n_rois')}Parcels", place)
            target.parent.mkdir(parents=True, exist_ok=True)
            if "." in target.name:
                target.write_bytes(b"image")
            else:
                target.mkdir(exist_ok=True)
            told = pd.DataFrame({"Subject": ["0010064", "0010042"], "age": [9.5, 11.0], "adhd": [1, 0]})
            images = [target / "data" / label / f"{label}_rest_mni.nii.gz" for label in ("0010042", "0010064")]
            return SimpleNamespace(func=[str(image) for image in images], phenotypic=told, t_r=2.0)

        return fetcher

    for download in DOWNLOADS.values():
        monkeypatch.setattr(nilearn.datasets, download.function, stand_in(download.function, download.place))
    return calls


def test_abide_is_asked_for_as_series_and_says_so_first(tmp_path, asked):
    said: list[str] = []
    place = fetch("abide1", tmp_path / "abide", say=said.append)
    assert place == tmp_path / "abide" / "ABIDE_pcp"
    (call,) = asked
    assert call["function"] == "fetch_abide_pcp" and call["derivatives"] == ["rois_cc200"]
    assert call["pipeline"] == "cpac" and not call["band_pass_filtering"] and not call["global_signal_regression"]
    assert call["data_dir"] == tmp_path / "abide" and "n_subjects" not in call
    assert "CC200" in said[0] and "Size" in said[1] and "non-commercial" in said[1]


def test_what_arrived_of_abide_is_read_by_its_card(tmp_path, monkeypatch):
    def arrives(**arguments: Any) -> None:
        top = Path(arguments["data_dir"]) / "ABIDE_pcp"
        series = top / "cpac" / "nofilt_noglobal"
        series.mkdir(parents=True)
        np.savetxt(series / "Pitt_0050003_rois_cc200.1D", np.ones((3, 2)), header="#1\t#2", comments="")
        header = "SUB_ID,SITE_ID,FILE_ID,DX_GROUP,SEX,AGE_AT_SCAN,FIQ,EYE_STATUS_AT_SCAN\n"
        (top / "Phenotypic_V1_0b_preprocessed1.csv").write_text(header + "50003,PITT,Pitt_0050003,1,1,24.5,100,2\n")

    monkeypatch.setattr(nilearn.datasets, "fetch_abide_pcp", arrives)
    place = fetch("abide1", tmp_path / "abide", say=lambda line: None)
    card = dataset_card("abide1")
    for folder in (place, place / "cpac" / "nofilt_noglobal"):
        path = find_phenotype(folder, card)
        assert path is not None
        assert read_phenotype(path, card)["participant_id"].tolist() == ["sub-0050003"]


@pytest.mark.parametrize("name", DOWNLOADS)
def test_every_download_calls_a_function_of_nilearn_with_arguments_it_knows(name):
    download = DOWNLOADS[name]
    known = inspect.signature(getattr(nilearn.datasets, download.function)).parameters
    wanted = {
        *download.arguments,
        "data_dir",
        "verbose",
        *([download.people_argument] if download.people_argument else []),
    }
    assert wanted <= set(known)
    assert download.what and download.size and download.terms
    if download.people_argument:
        assert dataset_card(name).fetch == download.function


def test_every_card_that_promises_a_download_has_one():
    promised = {name for name in dataset_names() if dataset_card(name).fetch}
    assert promised == {name for name, download in DOWNLOADS.items() if download.people_argument}


def test_a_download_without_a_table_of_people_gets_one(tmp_path, asked):
    place = fetch("adhd200", tmp_path / "a", say=lambda line: None)
    people = read_people(place / "participants.tsv")
    assert people["participant_id"].tolist() == ["sub-0010064", "sub-0010042"]
    assert people["file"].tolist()[0] == "data/0010064/0010064_rest_mni.nii.gz"
    assert people["age"].tolist() == [9.5, 11.0] and people["tr"].tolist() == [2.0, 2.0]
    assert not (fetch("abide1", tmp_path / "b", say=lambda line: None) / "participants.tsv").exists()


def test_an_atlas_is_one_image(tmp_path, asked):
    place = fetch("schaefer-200", tmp_path / "atlas", say=lambda line: None)
    assert place.name == "Schaefer2018_200Parcels_7Networks_order_FSLMNI152_2mm.nii.gz" and place.is_file()
    assert asked[0]["n_rois"] == 200 and asked[0]["resolution_mm"] == 2


def test_fewer_people_can_be_asked_for_but_not_of_an_atlas(tmp_path, asked):
    fetch("adhd200", tmp_path / "a", n_people=2, say=lambda line: None)
    assert asked[0]["n_subjects"] == 2
    with pytest.raises(OpenBrainMassError, match="atlas"):
        fetch("schaefer-100", tmp_path / "b", n_people=2)
    with pytest.raises(OpenBrainMassError, match="at least 1"):
        fetch("adhd200", tmp_path / "c", n_people=0)
    assert not (tmp_path / "b").exists() and len(asked) == 1


def test_a_download_goes_on_in_its_own_folder_only(tmp_path, asked):
    fetch("ds000228", tmp_path / "film", say=lambda line: None)
    fetch("ds000228", tmp_path / "film", say=lambda line: None)
    assert len(asked) == 2 and json.loads((tmp_path / "film" / "fetch.json").read_text())["name"] == "ds000228"
    with pytest.raises(OpenBrainMassError, match="another download"):
        fetch("adhd200", tmp_path / "film")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    with pytest.raises(OpenBrainMassError, match="taken is not empty"):
        fetch("adhd200", tmp_path / "taken")
    with pytest.raises(OpenBrainMassError, match="not empty"):
        fetch("adhd200", tmp_path / "taken" / "thesis.txt")
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionError("Name or service\nnot known"), "Name or service not known"),
        (TimeoutError(), "TimeoutError"),
        (EOFError(), "EOFError"),
        (ValueError("bad gzip"), "bad gzip"),
    ],
)
def test_a_lost_connection_is_one_sentence(tmp_path, monkeypatch, error, told):
    def fails(**arguments: Any) -> None:
        raise error

    monkeypatch.setattr(nilearn.datasets, "fetch_adhd", fails)
    with pytest.raises(OpenBrainMassError, match="adhd200 could not be downloaded.*connection.*same command") as caught:
        fetch("adhd200", tmp_path / "a", say=lambda line: None)
    assert "\n" not in str(caught.value) and told in str(caught.value)


def test_a_download_that_leaves_nothing_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(nilearn.datasets, "fetch_adhd", lambda **arguments: None)
    with pytest.raises(OpenBrainMassError, match="is not there"):
        fetch("adhd200", tmp_path / "a", say=lambda line: None)


def test_an_older_or_newer_nilearn_without_the_function_is_told(tmp_path, monkeypatch):
    monkeypatch.delattr(nilearn.datasets, "fetch_adhd")
    with pytest.raises(OpenBrainMassError, match="nilearn has no fetch_adhd"):
        fetch("adhd200", tmp_path / "a", say=lambda line: None)


def test_what_cannot_be_downloaded_is_answered_with_what_can(tmp_path):
    with pytest.raises(OpenBrainMassError, match="'ukb'.*abide1, adhd200, ds000228, schaefer-100"):
        fetch("ukb", tmp_path / "a")
    assert not (tmp_path / "a").exists()
