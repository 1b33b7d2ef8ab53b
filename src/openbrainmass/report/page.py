"""`write_report`: one self-contained HTML page from saved folders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from openbrainmass.durable import write_text
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.report.cohort_view import cohort_view
from openbrainmass.report.connectivity_view import connectivity_view
from openbrainmass.report.embedding_view import embedding_view
from openbrainmass.report.explanation_view import explanation_view
from openbrainmass.report.figures import SHAPES
from openbrainmass.report.folders import Material, read_material
from openbrainmass.report.methods import methods
from openbrainmass.report.rendering import environment, flat
from openbrainmass.report.reproduction import checksums, commands
from openbrainmass.report.results_view import results_view
from openbrainmass.report.run_view import run_view

SECTIONS = (
    ("summary", "Summary"),
    ("cohort", "Cohort"),
    ("connectivity", "Connectivity"),
    ("pretraining", "Pretraining"),
    ("embedding", "Embedding map"),
    ("results", "Results"),
    ("maps", "Brain maps"),
    ("methods", "Methods"),
    ("settings", "Settings"),
    ("reproduce", "How to reproduce"),
)
_SHAPE_PATHS = dict(
    zip(
        SHAPES,
        ("M6 1.5a4.5 4.5 0 1 0 .001 0Z", "M2 2h8v8H2Z", "M6 1.2 11 10.4H1Z", "M6 .8 11.2 6 6 11.2.8 6Z"),
        strict=True,
    )
)


def write_report(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Write one HTML page that holds everything it shows and asks no other address for anything.

    Parameters
    ----------
    folders : sequence of path
        Stores, run folders or checkpoints, results, explanations (each recognised by its files) and tables of
        embeddings; any number of each. Every number on the page comes from their tables; a section whose folder is
        not given says so.
    out : path
        The HTML file; an older one is replaced.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    OpenBrainMassError
        If a folder is given twice or none of those, one of its tables is damaged, metrics do not follow from their
        predictions, or `out` is a folder or cannot be written.

    Examples
    --------
    >>> write_report(["demo/cohort", "demo/pretraining", "demo/evaluation"], "report.html")  # doctest: +SKIP
    """
    out = Path(out)
    if out.is_dir():
        raise OpenBrainMassError(f"{out} is a folder; a report is one file. Name it, e.g. {out / 'report.html'}.")
    write_text(out, render(read_material(folders)))
    return out


def render(material: Material) -> str:
    """The page as HTML text."""
    package = version("openbrainmass")
    page = (
        environment()
        .get_template("page.html.j2")
        .render(
            version=package,
            title=_title(material),
            sections=SECTIONS,
            shapes=_SHAPE_PATHS,
            results=[results_view(folder) for folder in material.results],
            cohorts=[cohort_view(store, material) for store in material.stores],
            connectivity=connectivity_view(material),
            runs=[run_view(run) for run in material.runs],
            embeddings=[embedding_view(file, material) for file in material.embeddings],
            explanations=[explanation_view(folder) for folder in material.explanations],
            methods=methods(material, package),
            settings=_settings(material),
            commands=commands(material),
            checksums=checksums(material),
        )
    )
    return _unbroken(page)


def _unbroken(page: str) -> str:
    """Keep ``95 %`` and ``p = 0.03`` on one line each."""
    page = re.sub(r"(?<=\d) %", "\N{NO-BREAK SPACE}%", page)
    return re.sub(r"\bp ([=<]|&lt;) (?=\d)", "p\N{NO-BREAK SPACE}\\1\N{NO-BREAK SPACE}", page)


def _title(material: Material) -> str:
    if material.results:
        name = material.results[0].name
        return name[:1].upper() + name[1:]
    named = [*material.stores, *material.runs, *material.explanations, *material.embeddings]
    return named[0].name


def _settings(material: Material) -> list[tuple[str, list[tuple[str, str]]]]:
    parts: list[tuple[str, Mapping[str, Any]]] = []
    parts += [(f"Quality control of {s.name}", s.manifest.get("quality") or {}) for s in material.stores]
    parts += [(f"Pretraining (folder {run.name})", run.card["settings"]) for run in material.runs]
    parts += [(f"Evaluation: {results.name}", results.settings) for results in material.results]
    parts += [(f"Explanation (folder {folder.name})", folder.settings) for folder in material.explanations]
    return [(name, list(flat(settings))) for name, settings in parts if settings]
