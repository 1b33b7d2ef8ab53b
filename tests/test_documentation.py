"""The documentation says what is: its links lead somewhere, its commands and names exist, its lists are whole."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import openbrainmass

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_links_of_a_page_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text())
    assert not [target for target in targets if "://" not in target and not (page.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_commands_of_a_page_exist(page: Path) -> None:
    from typer.main import get_command

    from openbrainmass.cli import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    blocks = "".join(re.findall(r"^```\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL))
    for line in re.findall(r"^openbrainmass +(.*)$", blocks.replace("\\\n", " "), re.MULTILINE):
        verb, *words = line.split("#")[0].split()
        if verb == "--help":
            continue
        assert verb in commands, f"{page.name}: {verb}"
        known = {option for parameter in commands[verb].params for option in parameter.opts}
        used = {word.split("=")[0] for word in words if word.startswith("--")}
        assert used <= known | {"--help"}, f"{page.name}: openbrainmass {verb} does not know {sorted(used - known)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_of_a_page_uses_names_that_exist(page: Path) -> None:
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL):
        tree = ast.parse(block)
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "obm":
                assert hasattr(openbrainmass, node.attr), f"{page.name}: obm.{node.attr}"
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("openbrainmass"):
                module = importlib.import_module(node.module)
                assert all(hasattr(module, alias.name) for alias in node.names), f"{page.name}: {node.module}"


def test_the_picture_and_example_of_the_readme_are_on_its_first_screen() -> None:
    first = (ROOT / "README.md").read_text().splitlines()[:60]
    assert any("docs/images/report.png" in line for line in first)
    start = first.index("```python")
    assert first.index("```", start) - start - 1 <= 15
    assert {"make demo", "make demo DATA=my_folder"} <= {line.split("  #")[0].strip() for line in first}


def _missing(page: str, words: Iterator[str] | set[str] | list[str] | dict) -> list[str]:
    text = (DOCS / page).read_text()
    return [
        word
        for word in words
        if f"`{word}`" not in text and not re.search(rf"^\[?{re.escape(word)}\b", text, re.MULTILINE)
    ]


def test_every_reason_for_an_exclusion_is_explained() -> None:
    from openbrainmass.cohort.quality import REASONS

    assert not _missing("your-data.md", REASONS)


def test_every_setting_of_a_cohort_is_explained_with_its_default() -> None:
    from openbrainmass.cohort.curate import CurationSettings

    text = (DOCS / "your-data.md").read_text()
    for section, part in CurationSettings():
        for name, value in part:
            shown = {True: "true", False: "false", None: "none"}.get(value, value) if value != {} else "none"
            assert re.search(rf"^\| `{section}\.{name}` \| `?{re.escape(str(shown))}`? \|", text, re.MULTILINE), name


def test_the_table_of_layouts_says_what_the_code_says() -> None:
    from openbrainmass.cohort.layouts.read import LAYOUTS

    text = (DOCS / "your-data.md").read_text()
    for layout in LAYOUTS.values():
        patterns = ", ".join(f"`{pattern}`" for pattern in layout.patterns)
        row = f"| `{layout.name}` | {layout.title} | {patterns} | {layout.header} |".replace("||", "")
        assert row in text, row


def test_every_key_of_a_run_is_explained() -> None:
    from openbrainmass.road import EvaluationSettings, RunSettings

    assert not _missing("running.md", {*RunSettings.model_fields, *EvaluationSettings.model_fields})


def test_the_settings_of_the_running_page_are_accepted(tmp_path: Path) -> None:
    from openbrainmass.road import RunSettings

    blocks = re.findall(r"^```toml\n(.*?)^```", (DOCS / "running.md").read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        (tmp_path / "run.toml").write_text(block)
        assert RunSettings.load(tmp_path / "run.toml") != RunSettings()


def test_the_task_of_the_evaluation_page_is_accepted(tmp_path: Path) -> None:
    [block] = re.findall(r"^```toml\n(.*?)^```", (DOCS / "evaluation.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "mine.toml").write_text(block)
    assert openbrainmass.Task.load(tmp_path / "mine.toml").name == "mine"


def test_every_protocol_is_explained() -> None:
    from openbrainmass.evaluation.evaluate import PROTOCOLS

    assert not _missing("evaluation.md", list(PROTOCOLS))


def _flat(settings: dict) -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{inner}": inside for inner, inside in _flat(value).items()}
        else:
            flat[name] = value
    return flat


def test_every_fault_of_the_published_recipe_is_explained() -> None:
    default, paper = (_flat(openbrainmass.preset("paper", recipe).model_dump()) for recipe in ("default", "paper"))
    changed = {f"{name}={paper[name]}".lower() for name in paper if paper[name] != default[name]}
    explained = re.findall(r"^\|.*\| `([a-z_.]+=[^`]+)` \|", (DOCS / "pretraining.md").read_text(), re.MULTILINE)
    assert {setting.replace('"', "") for setting in explained} == changed


def test_every_size_is_in_the_table_as_it_is() -> None:
    text = (DOCS / "pretraining.md").read_text()
    for size in ("tiny", "small", "base", "paper"):
        encoder = openbrainmass.preset(size).encoder
        row = f"| `{size}` | {encoder.width or 'n_rois'} | {encoder.depth} | {encoder.heads} | {encoder.ffn} |"
        assert row in text, row


@pytest.mark.slow
def test_the_example_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [example] = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    small = example.replace("n_people=120", "n_people=40, n_rois=28, n_volumes=60").replace(
        'preset("tiny")', 'preset("tiny").model_copy(update={"max_steps": 3})'
    )
    assert small.count("n_rois=28") == small.count("max_steps") == 1
    monkeypatch.chdir(tmp_path)
    exec(compile(small, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert "BrainMass" in printed
    assert "edges" in printed
    assert (tmp_path / "runs" / "tiny" / "card.json").is_file()
