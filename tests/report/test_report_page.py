"""The page shows what was given and says what was not."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from openbrainmass.atlas import numbered_atlas
from openbrainmass.cohort.simulate import simulate_cohort
from openbrainmass.cohort.store import load_cohort
from openbrainmass.durable import read_json, read_tsv, write_json, write_text, write_tsv
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.model.pretrain import pretrain
from openbrainmass.model.settings import preset
from openbrainmass.report.cohort_view import class_order, cohort_view, exclusion_rows
from openbrainmass.report.connectivity_view import colour_limit, connectivity_view, network_order
from openbrainmass.report.embedding_view import embedding_view
from openbrainmass.report.explanation_view import explanation_view
from openbrainmass.report.folders import EmbeddingsFile, Material, read_material
from openbrainmass.report.methods import methods
from openbrainmass.report.page import SECTIONS, render, write_report
from openbrainmass.report.rendering import flat
from openbrainmass.report.reproduction import commands, task_option
from openbrainmass.report.results_view import results_view
from openbrainmass.report.run_view import run_view
from openbrainmass.report.verdict import contrast


@pytest.fixture(scope="module")
def page(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> str:
    out = write_report(list(folders.values()), tmp_path_factory.mktemp("page") / "report.html")
    return out.read_text(encoding="utf-8")


def words(html: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<style>.*?</style>|<[^>]+>", " ", html, flags=re.DOTALL))


def test_every_section_is_there_and_linked(page: str) -> None:
    for key, name in SECTIONS:
        assert f'<section id="{key}">' in page and f'href="#{key}"' in page and name in page


def test_the_page_is_one_file_that_asks_for_nothing(page: str) -> None:
    addresses = re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', page)
    assert addresses and all(address.startswith(("#", "data:")) for address in addresses)
    assert "url(" not in page and "@import" not in page and "<script" not in page
    assert "default-src 'none'" in page


def test_images_have_words(page: str) -> None:
    images = re.findall(r"<img [^>]*>", page)
    assert len(images) >= 14
    assert all(len(re.search(r'alt="([^"]*)"', image)[1]) > 15 for image in images)  # type: ignore[index]


def test_numbers_are_those_of_the_tables(page: str, folders: dict[str, Path]) -> None:
    shown = words(page)
    for row in read_tsv(folders["results"] / "metrics.tsv").query("metric == 'auc'").to_dict("records"):
        assert f"{row['value']:.2f}" in shown
    assert "same scan as sub-01" in shown
    assert "site-held-out leaves out 1 person." in shown


def test_the_same_folders_give_the_same_page(page: str, folders: dict[str, Path]) -> None:
    assert render(read_material(list(folders.values()))) == page


@pytest.mark.parametrize(
    ("kind", "missing"),
    [
        ("store", ["openbrainmass evaluate", "openbrainmass pretrain", "openbrainmass embed", "openbrainmass explain"]),
        ("run", ["openbrainmass cohort", "openbrainmass evaluate"]),
        ("results", ["openbrainmass cohort", "openbrainmass pretrain"]),
        ("embeddings", ["openbrainmass cohort"]),
        ("explanation", ["openbrainmass evaluate"]),
    ],
)
def test_a_section_without_its_folder_says_so(folders: dict[str, Path], kind: str, missing: list[str]) -> None:
    html = render(read_material([folders[kind]]))
    for command in missing:
        assert f"(<code>{command}</code>)" in html


def test_two_of_a_kind_are_both_shown(folders: dict[str, Path], make: SimpleNamespace, tmp_path: Path) -> None:
    again = make.run(tmp_path / "longer", warn=True)
    html = render(read_material([folders["run"], again]))
    assert "<h3>pretraining</h3>" in html and "<h3>longer</h3>" in html
    assert "Step 58:" in html and "(3 times)" in html


def test_numbers_and_their_units_stay_on_one_line(page: str) -> None:
    text = re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL)
    assert "95\N{NO-BREAK SPACE}%" in text and not re.search(r"\d %", text)
    assert re.search("p\N{NO-BREAK SPACE}(=|&lt;)\N{NO-BREAK SPACE}[01]", text)


def test_text_from_tables_is_escaped(make: SimpleNamespace, tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    folder = make.results(tmp_path / "evaluation", skill={f"{evil} + svm": 1.0, "edges + svm": 0.5}, saw=())
    html = render(read_material([folder]))
    assert evil not in html and "&lt;img src=x" in html


def test_a_folder_as_output_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(OpenBrainMassError, match=r"report\.html"):
        write_report([folders["run"]], tmp_path)


def test_a_refused_report_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(OpenBrainMassError):
        write_report([tmp_path / "empty"], tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_cohort_counts_people_by_site_and_class(folders: dict[str, Path]) -> None:
    material = read_material([folders["store"], folders["results"]])
    view = cohort_view(material.stores[0], material)
    people = material.stores[0].participants
    assert [name for name, _ in view.classes] == ["patient", "control"]
    for site in view.sites:
        here = people[people["site"] == site.name]["dx"]
        assert site.counts == ((here == "patient").sum(), (here == "control").sum())
        assert sum(part.width for part in site.bar) <= 100.01
    assert [(row.code, row.n) for row in view.exclusions] == [("dead-rois", 2), ("duplicate", 1)]


def test_a_cohort_of_which_little_is_known(folders: dict[str, Path], tmp_path: Path) -> None:
    store = read_material([folders["store"]]).stores[0]
    unknown = store.participants.drop(columns=["site", "dx", "sex", "age", "mean_fd"])
    view = cohort_view(replace(store, participants=unknown), Material())
    assert view.target == "" and len(view.sites) == 1 and view.sites[0].counts == (24,)
    assert view.columns == ("volumes", "TR, s")


def test_missing_values_are_shown_as_such(folders: dict[str, Path]) -> None:
    store = read_material([folders["store"]]).stores[0]
    people = store.participants.assign(site=[np.nan, *[3.0] * 23], age=np.nan, mean_fd=np.nan)
    unknown = replace(store, participants=people, recordings=store.recordings.assign(n_volumes=np.nan))
    view = cohort_view(unknown, Material())
    assert [site.name for site in view.sites] == ["3", "not known"]
    cells = dict(zip(view.columns, view.sites[0].cells, strict=True))
    assert cells["age, years"] == cells["mean FD, mm"] == cells["volumes"] == "\N{EN DASH}"


def test_without_a_task_the_comparison_group_comes_second() -> None:
    values = pd.Series(["control", "control", "autism"])
    assert class_order(Material(), "dx", values) == ["autism", "control"]


def test_long_lists_of_exclusions_are_cut(folders: dict[str, Path]) -> None:
    store = read_material([folders["store"]]).stores[0]
    row = exclusion_rows(store, most=1)[0]
    assert (row.n, len(row.named), row.more) == (2, 1, 1) and "too many" in row.words


def test_connectivity_uses_the_views_of_the_run(
    folders: dict[str, Path], make: SimpleNamespace, tmp_path: Path
) -> None:
    run = make.run(tmp_path / "run")
    card = read_json(run / "card.json")
    card["settings"]["views"] = {"augmentation": "contiguous-crop", "share": 0.3, "estimator": "ledoit-wolf"}
    write_json(run / "card.json", card)
    view = connectivity_view(read_material([folders["store"], run]))
    assert view is not None and "keeps one stretch of 70 % of the volumes" in view.rule
    assert len(view.views) == 3 and view.views[2].limit < view.fc.limit


def test_an_atlas_without_networks_keeps_its_order() -> None:
    order, networks = network_order(numbered_atlas("mine", 4))
    assert list(order) == [0, 1, 2, 3] and networks == ()


def test_colour_limit_is_round_and_bounded() -> None:
    assert colour_limit(np.full((5, 5), 0.43)) == 0.5
    assert colour_limit(np.zeros((5, 5))) == 0.1
    assert colour_limit(np.full((5, 5), 3.0)) == 1.0


def embeddings_of(n: int, groups: list[str], shift: float) -> EmbeddingsFile:
    rng = np.random.default_rng(0)
    known = pd.DataFrame({"participant_id": [f"p{i // 2}" for i in range(n)], "site": groups})
    return EmbeddingsFile(
        Path("e.tsv"), known, rng.normal(size=(n, 4)) + shift * pd.factorize(known["site"])[0][:, None]
    )


def test_neighbours_are_other_people_and_know_their_group() -> None:
    groups = ["a"] * 40 + ["b"] * 40
    apart = embedding_view(embeddings_of(80, groups, 50.0), Material()).maps[0]
    mixed = embedding_view(embeddings_of(80, groups, 0.0), Material()).maps[0]
    assert "100 % share its site; 50 % would by chance" in apart.neighbours
    assert "100 %" not in mixed.neighbours


def test_few_recordings_are_drawn_by_principal_components() -> None:
    view = embedding_view(embeddings_of(6, ["a"] * 6, 0.0), Material())
    assert "principal components" in view.sentence and view.maps[0].neighbours == ""


def test_very_many_recordings_are_drawn_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openbrainmass.report.embedding_view.MOST_POINTS", 12)
    view = embedding_view(embeddings_of(80, ["a"] * 80, 0.0), Material())
    assert "12 recordings (a random part of 80)" in view.sentence


def test_run_without_log_has_facts_only(folders: dict[str, Path], tmp_path: Path) -> None:
    write_text(tmp_path / "card.json", (folders["run"] / "card.json").read_text())
    view = run_view(read_material([tmp_path]).runs[0])
    assert not view.logged and view.curves == () and view.health == ""
    assert {fact.name: fact.value for fact in view.facts}["embedding"] == "168"


def test_run_shows_every_logged_quantity(folders: dict[str, Path]) -> None:
    view = run_view(read_material([folders["run"]]).runs[0])
    assert len(view.curves) == 8
    assert view.health.startswith("No warning in the log.")


def test_a_tangent_encoder_has_facts_and_methods_and_no_curves(tmp_path: Path) -> None:
    cohort = simulate_cohort(n_people=6, n_sites=1, n_rois=14, n_volumes=30)
    pretrain(cohort, preset("tangent"), tmp_path / "run")
    material = read_material([tmp_path / "run"])
    view = run_view(material.runs[0])
    assert {fact.value for fact in view.facts} >= {"tangent", "105"}
    assert not view.curves and view.at_once
    told = " ".join(methods(material, "0").paragraphs)
    assert "6 recordings of 6 people" in told and "mixed with the identity by 30 %" in told and "1 mode" in told
    write_report([tmp_path / "run"], tmp_path / "report.html")
    assert "closed form" in (tmp_path / "report.html").read_text()


def test_results_have_sites_comparisons_and_few_shot(folders: dict[str, Path]) -> None:
    view = results_view(read_material([folders["results"]]).results[0])
    sites = view.protocols[0].sites
    assert sites is not None and {row.estimate.label for row in sites.rows} == {"site-0", "site-1"}
    comparisons = view.protocols[0].comparisons
    assert comparisons is not None and "BrainMass + svm minus each other model" in comparisons.caption
    assert len(view.few_shot) == 1 and view.few_shot[0].table.columns == ("Model", "2", "10")
    assert view.facts == "48 people from 2 sites: 24 patient, 24 control."


def test_people_of_another_cohort_are_counted_by_themselves_and_by_their_own_classes(
    folders: dict[str, Path],
) -> None:
    results = read_material([folders["results"]]).results[0]
    people = results.predictions["participant_id"].unique()
    other = results.predictions["participant_id"].isin(people[:10])
    predictions = results.predictions.assign(
        protocol=results.predictions["protocol"].mask(other, "external"),
    )
    settings = {**results.settings, "test_task": {"positive_name": "adhd", "negative_name": "typical"}}
    changed = replace(results, predictions=predictions, settings=settings)
    n_positive = int(predictions[other].drop_duplicates("participant_id")["y_true"].sum())
    assert results_view(changed).facts == (
        f"38 people from 2 sites: {24 - n_positive} patient, {14 + n_positive} control. "
        f"Another cohort: 10 people from 2 sites: {n_positive} adhd, {10 - n_positive} typical."
    )
    assert contrast(changed.task_of("external")) == "adhd from typical"
    assert contrast(changed.task_of("k-fold")) == "patient from control"


def test_results_without_comparisons_show_none(folders: dict[str, Path]) -> None:
    results = read_material([folders["results"]]).results[0]
    other = results.comparisons[results.comparisons["protocol"] == "k-fold"]
    views = [results_view(replace(results, comparisons=table)) for table in (pd.DataFrame(), other)]
    assert [protocol.comparisons for protocol in views[0].protocols] == [None, None]
    assert [protocol.comparisons is None for protocol in views[1].protocols] == [True, False]


def test_methods_tell_what_quality_was_asked(folders: dict[str, Path]) -> None:
    store = read_material([folders["store"]]).stores[0]
    asked = replace(store, manifest={**store.manifest, "quality": {"min_seconds": 120.0, "max_dead_share": 0.1}})
    text = methods(Material(stores=[asked]), "1.0").paragraphs[0]
    assert "needed at least 120 s of data and at most 10 % of the regions without signal." in text


def test_comparisons_with_one_reference_name_the_models(make: SimpleNamespace, tmp_path: Path) -> None:
    folder = make.results(tmp_path / "evaluation", protocols=("k-fold",))
    table = read_tsv(folder / "comparisons.tsv")
    write_tsv(folder / "comparisons.tsv", table.rename(columns={"model": "reference", "reference": "model"}))
    comparisons = results_view(read_material([folder]).results[0]).protocols[0].comparisons
    assert comparisons is not None and comparisons.first == "Model"
    assert "each model minus BrainMass + svm" in comparisons.caption


def test_methods_tell_what_was_done_and_cite_it(folders: dict[str, Path]) -> None:
    told = methods(read_material(list(folders.values())), "9.9")
    text = " ".join(told.paragraphs)
    for part in ("24 recordings of 24 people", "2 because too many ROIs", "2 layers of width 64, 4 heads",
                 "leaves out 20 % of the volumes at random", "weight decay 5e-5", "3 times repeated 4-fold",
                 "(2 and 10)", "openbrainmass 9.9"):  # fmt: skip
        assert part in text
    cited = " ".join(told.references)
    assert "arXiv:2403.01433" in cited and "Varoquaux" in cited and "Ledoit" not in cited


def test_commands_name_the_task_that_was_saved() -> None:
    assert task_option({"task": {"name": "simulated-dx", "target": "dx"}}) == " --task simulated-dx"
    assert task_option({"task": {"name": "mine-sex", "target": "sex"}}) == " --target sex"
    assert task_option({}) == " --task TASK"


def test_commands_walk_the_whole_road(folders: dict[str, Path]) -> None:
    lines = commands(read_material(list(folders.values())))
    assert [line.split()[1] for line in lines[1:]] == ["cohort", "pretrain", "embed", "evaluate", "explain", "report"]
    assert "evaluate cohort --task simulated-dx --checkpoint pretraining --out evaluation" in lines[4]
    assert commands(Material())[0] == "pip install openbrainmass"


def test_explanation_draws_the_brain_and_names_what_leads(folders: dict[str, Path]) -> None:
    folder = read_material([folders["explanation"]]).explanations[0]
    view = explanation_view(folder)
    assert [len(map_.pictures) for map_ in view.brains] == [4, 4] and view.no_brain == ""
    assert str(folder.rois.iloc[0]["roi_name"]) in view.brains[0].pictures[0].alt
    assert view.brains[0].limit == folder.rois["z_score"].abs().max()
    assert view.networks is not None and len(view.networks.rows) == 7
    assert view.networks.rows[0].estimate.role == "own" and view.networks.rows[-1].estimate.role == "baseline"
    assert view.pairs is not None and len(view.rois.rows) == 15 and len(view.edges.rows) == 9
    assert not any(warns for _, warns in view.remarks)


def test_an_atlas_of_which_nothing_is_known_gives_the_reason(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = read_material([folders["explanation"]]).explanations[0]
    bare = replace(
        folder,
        rois=folder.rois.drop(columns=["network", "hemisphere", "x", "y", "z"]),
        edges=folder.edges.drop(columns=["network_a", "network_b"]),
        networks=pd.DataFrame(),
        network_pairs=pd.DataFrame(),
    )
    view = explanation_view(bare)
    assert view.brains == () and "--atlas table.tsv" in view.no_brain and "Simulated21" in view.no_brain
    assert view.networks is None and view.pairs is None
    assert view.edges.columns[1] == "share"
    html = render(Material(explanations=[bare]))
    assert "nothing can be drawn on the brain" in html


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"separation_p": 0.4}, "nothing to be interpreted"),
        ({"stability": 0.1}, "too little to trust single ROIs"),
        ({"completeness_error": 0.2}, "miss the separation by 20 %"),
    ],
)
def test_maps_that_cannot_be_trusted_say_so(
    make: SimpleNamespace, folders: dict[str, Path], tmp_path: Path, change: dict[str, float], told: str
) -> None:
    saved = make.explanation(tmp_path / "maps", load_cohort(folders["store"]), **change)
    folder = read_material([saved]).explanations[0]
    view = explanation_view(replace(folder, rois=folder.rois.drop(columns=["x", "y", "z"])))
    warned = [text for text, warns in view.remarks if warns]
    assert len(warned) == 1 and told in warned[0]


def test_methods_of_the_published_recipe_and_of_bare_folders(folders: dict[str, Path]) -> None:
    material = read_material([folders["store"], folders["run"], folders["results"]])
    store, run, results = material.stores[0], material.runs[0], material.results[0]
    card = dict(run.card)
    card["settings"] = card["settings"] | {"views": card["settings"]["views"] | {"estimator": "ledoit-wolf"}}
    card["facts"] = {}
    other = Material(
        stores=[
            replace(store, exclusions=store.exclusions.head(0), participants=store.participants[["participant_id"]])
        ],
        runs=[replace(run, card=card)],
        results=[replace(results, settings={}, comparisons=pd.DataFrame())],
    )
    told = methods(other, "1.0")
    text = " ".join(told.paragraphs)
    assert "left out:" not in text and "sites" not in told.paragraphs[0]
    assert "without labels, following BrainMass" in text and "for 10 epochs" in text
    assert "tested in pairs" in text
    assert any("Ledoit" in item for item in told.references)


def test_flat_settings() -> None:
    nested = {"a": {"b": (1, 2), "c": {}}, "d": "x" * 500}
    rows = dict(flat(nested))
    assert rows["a.b"] == "1, 2" and rows["a.c"] == "{}" and len(rows["d"]) == 401
