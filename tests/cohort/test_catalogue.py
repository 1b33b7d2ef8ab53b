"""Cards of the datasets that are known."""

from __future__ import annotations

from pathlib import Path

import pytest

from openbrainmass.cohort.catalogue import ACCESS, Column, DatasetCard, dataset_card, dataset_names, dataset_table
from openbrainmass.cohort.layouts.read import LAYOUTS
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.tasks import task_names

NAMES = dataset_names()


def test_there_are_cards_of_the_datasets_of_the_paper_and_of_the_field():
    assert len(NAMES) >= 30 and sorted(set(NAMES)) == NAMES
    paper = {"ukb", "hcp-ya", "abide1", "abide2", "adhd200", "adni", "oasis3", "ppmi", "cnp", "xuanwu"}
    assert paper <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_card_is_whole_and_fits_its_file_and_the_page(name: str):
    card = dataset_card(name)
    assert card.name == name and card.access in ACCESS
    assert card.traps and card.sources and card.reference and card.source and card.terms
    assert {layout.replace("-", "_") for layout in card.layouts} <= {layout.replace("-", "_") for layout in LAYOUTS}
    assert set(card.tasks) <= set(task_names())
    assert card.layouts or card.access == "private"
    line, text = card.line(), card.text()
    assert line.startswith(f"{name} ") and "\n" not in line and len(line) <= 110
    assert max(len(row) for row in text.splitlines() if "://" not in row) <= 110
    assert all(fact.fact.split()[0] in text for fact in card.sources)
    assert all(0.3 < tr < 4 for tr in card.trs) and list(card.trs) == sorted(card.trs)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_card_does_not_know_is_named(name: str):
    card = dataset_card(name)
    unknown = " ".join(card.unknown).lower()
    assert card.trs or "tr" in unknown
    assert card.people or "people" in unknown or card.sites
    assert card.phenotype or "table" in unknown or "columns" in unknown or card.version


@pytest.mark.parametrize("name", [name for name in NAMES if dataset_card(name).phenotype])
def test_codes_lead_to_our_words(name: str):
    phenotype = dataset_card(name).phenotype
    assert phenotype is not None and phenotype.columns
    sex = phenotype.columns.get("sex")
    if sex is not None:
        assert set(sex.codes.values()) - {""} == {"F", "M"}
    for column, spec in phenotype.columns.items():
        assert column == column.lower() and " " not in column
        assert (spec.unit is not None) == (column in {"age", "age_at_entry"})
        assert not (spec.codes and (spec.number or spec.unit))
    dx = phenotype.columns.get("dx")
    if dx is not None and dx.codes:
        assert "control" in dx.codes.values() and all(word == word.lower() for word in dx.codes.values())


def test_shared_people_are_told_on_both_cards():
    for name in NAMES:
        for other in dataset_card(name).overlaps:
            assert name in dataset_card(other).overlaps, f"{other} does not say that it shares people with {name}"


def test_facts_of_the_versions_that_were_seen_are_kept():
    text = dataset_card("abide1").text()
    assert "0050279 and 0050286" in text and "790 people" in text and "388" in text
    assert "KKI" in dataset_card("cni-tlc").text() and "122 to 156" in dataset_card("cni-tlc").text()
    assert "1200" in dataset_card("hcp-ya").text()


def test_the_table_has_a_line_for_each_dataset_and_the_page_shows_it():
    table = dataset_table()
    assert len(table.splitlines()) == len(NAMES) + 2
    assert len({line.count("|") for line in table.splitlines()}) == 1
    page = (Path(__file__).resolve().parents[2] / "docs" / "datasets.md").read_text()
    assert table in page, "docs/datasets.md is old: put what dataset_table() returns at its end"


def test_a_card_with_a_key_nobody_knows_is_refused():
    whole = dataset_card("cobre").model_dump()
    with pytest.raises(OpenBrainMassError, match="mystery"):
        DatasetCard.checked(whole | {"mystery": 1}, "a card")
    with pytest.raises(OpenBrainMassError, match="one group"):
        Column.checked({"column": "ID", "pattern": "^S"}, "a column")
    with pytest.raises(OpenBrainMassError, match="no regular expression"):
        Column.checked({"column": "ID", "pattern": "("}, "a column")


def test_an_unknown_dataset_is_answered_with_the_known_ones():
    with pytest.raises(OpenBrainMassError, match="abide9.*abide1, abide2, adhd200"):
        dataset_card("abide9")
