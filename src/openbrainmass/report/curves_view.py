"""Curves of the results: few labelled people, and answers withheld where a model is unsure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from openbrainmass.evaluation.protocols import few_shot_size
from openbrainmass.evaluation.runs import TRANSDUCTIVE
from openbrainmass.report.figures import SOFT, Line, Picture, coverage_chart, few_shot_curve
from openbrainmass.report.folders import ResultsFolder
from openbrainmass.report.tables import Cell, Table
from openbrainmass.report.verdict import protocol_words, role, scale, scores
from openbrainmass.report.wording import DASH, interval, listing, number

MOST_LINES = 6
"""Models that are drawn besides the pretrained ones; the table holds them all."""

MOST_BANDS = 2
"""Bands that can be told apart where they cross."""


@dataclass(frozen=True)
class Look:
    """How the line of a model is drawn (see `Line`)."""

    color: str
    strong: bool
    dash: tuple[int, ...]

    def line(self, label: str, x: np.ndarray, y: np.ndarray, low: np.ndarray, high: np.ndarray) -> Line:
        """A line of this look, without a band."""
        return Line(label, x, y, low, high, self.color, self.strong, dash=self.dash)


@dataclass(frozen=True)
class CurveView:
    """One chart with what it asks, its lines for the legend, and its numbers."""

    title: str
    asks: str
    picture: Picture
    legend: tuple[Line, ...]
    table: Table
    areas: Table | None = None


def few_shot_views(results: ResultsFolder) -> tuple[CurveView, ...]:
    """How much each number of labelled people gives: of the cohort itself, and of another cohort after zero-shot."""
    views = []
    for family, title, asks in (
        (
            "few-shot-",
            "Few labelled people",
            "Only the given number of people per class train the probe; the people tested are those of the same folds.",
        ),
        (
            "external-few-shot-",
            "Zero-shot and few-shot in another cohort",
            "0: the training cohort alone trains the probe, without any label of the other one. Then: the given number "
            "of people per class of the other cohort join the training cohort; other people of it are tested.",
        ),
    ):
        found = _sizes(results, family)
        if found:
            views.append(_few_shot_view(results, found, title, asks, _areas(results, family.removesuffix("-"))))
    return tuple(views)


def _sizes(results: ResultsFolder, family: str) -> dict[int, str]:
    names = [str(name) for name in results.metrics["protocol"].unique()]
    found = {few_shot_size(name): name for name in names if name.startswith(family)}
    sizes = {k: name for k, name in found.items() if k is not None}
    if sizes and family.startswith("external") and "external" in names:
        sizes[0] = "external"
    return dict(sorted(sizes.items()))


def _areas(results: ResultsFolder, family: str) -> Table | None:
    """Area under each model's curve over log k, where it was saved."""
    table = results.tables.get("log_auc", pd.DataFrame(columns=["protocol", "reference", "value"]))
    table = table[(table["protocol"] == family) & (table["reference"].fillna("") == "")]
    rows = table.sort_values("value", ascending=False).to_dict("records")
    cells = [(str(row["model"]), Cell(number(row["value"]), interval(row["low"], row["high"]))) for row in rows]
    caption = "Area under the curve over log k, as a mean, with 95 % intervals."
    return Table(("Model", scale(results).title), tuple(cells), frozenset({1}), caption) if cells else None


def _few_shot_view(
    results: ResultsFolder, found: dict[int, str], title: str, asks: str, areas: Table | None
) -> CurveView:
    tables = {k: scores(results, name).set_index("model") for k, name in found.items()}
    models = list(dict.fromkeys(model for table in tables.values() for model in table.index))
    last = max(tables)
    models.sort(key=lambda model: -float(tables[last]["value"].get(model, -np.inf)))
    looks = line_looks(models)
    lines, rows = [], []
    for model in models:
        have = [k for k in tables if model in tables[k].index]
        cells = [tables[k].loc[model] for k in have]
        y, low, high = (np.array([float(cell[name]) for cell in cells]) for name in ("value", "low", "high"))
        if model in looks:
            lines.append(looks[model].line(model, np.array(have, float), y, low, high))
        by_k = dict(zip(have, cells, strict=True))
        rows.append((model, *(_score_cell(by_k.get(k)) for k in tables)))
    lines = _banded(lines)
    unit = scale(results)
    caption = f"{_bands(lines)}; thin dashed line: {unit.line}."
    shown = few_shot_curve(
        lines, title=f"{unit.title} by number of labelled people per class", caption=caption, metric=unit.title
    )
    columns = ("Model", *(str(k) for k in tables))
    told = f"{unit.title} by labelled people per class, with 95 % intervals."
    table = Table(columns, tuple(rows), frozenset(range(1, len(columns))), told)
    return CurveView(title, asks, shown, tuple(lines), table, areas)


def _score_cell(row: pd.Series | None) -> Cell:
    return Cell(DASH) if row is None else Cell(number(row["value"]), interval(row["low"], row["high"]))


def _banded(lines: list[Line]) -> list[Line]:
    """Whole lines of pretrained models have bands, else the best line; more than two bands would hide each other."""
    own = [place for place, line in enumerate(lines) if line.strong and not line.dash]
    chosen = own[:MOST_BANDS] or [0]
    return [
        replace(line, band=place in chosen, strong=line.strong or place in chosen) for place, line in enumerate(lines)
    ]


def _bands(lines: Sequence[Line]) -> str:
    return f"Bands: 95 % intervals of {listing([line.label for line in lines if line.band])}"


def coverage_view(results: ResultsFolder, protocol: str | None) -> CurveView | None:
    """Accuracy among the people whom a model is sure about; None without a saved curve of the protocol."""
    table = results.tables.get("coverage")
    if table is None or not len(table) or protocol not in set(table["protocol"]):
        return None
    table = table[table["protocol"] == protocol]
    full = table.sort_values("wanted", ascending=False).drop_duplicates("model").set_index("model")["accuracy"]
    models = sorted(full.index, key=lambda model: -float(full[model]))
    looks = line_looks(models)
    lines = []
    for model in models:
        part = table[(table["model"] == model) & table["accuracy"].notna()].sort_values("coverage")
        if model in looks and len(part):
            x, y, low, high = (part[name].to_numpy(float) for name in ("coverage", "accuracy", "low", "high"))
            lines.append(looks[model].line(model, x, y, low, high))
    if not lines:
        return None
    lines = _banded(lines)
    shown = coverage_chart(
        lines,
        title="Accuracy by share of people answered for",
        caption=f"{_bands(lines)}.",
    )
    asks = _rule(table, str(protocol))
    return CurveView("Answers withheld", asks, shown, tuple(lines), _coverage_table(table, models))


def _rule(table: pd.DataFrame, protocol: str) -> str:
    sources = {
        "other folds": "fixed on the other folds, so the share reached may differ from the one wanted",
        "k-fold": "fixed on the training cohort",
        "tested people": "taken from the tested people themselves, which only describes them",
    }
    told = listing([sources.get(str(source), str(source)) for source in table["threshold_from"].unique()])
    units = table.drop_duplicates("model").groupby("confidence")["model"].agg(list)
    confident = "; ".join(
        f"the {'predicted probability' if unit == 'probability' else 'size of the decision value'}"
        + (f" of {listing([str(name) for name in names], 3)}" if len(units) > 1 else "")
        for unit, names in units.items()
    )
    return (
        f"{protocol_words(protocol).title}: a model answers only where it is sure enough. Its confidence is {confident}; "
        f"the threshold is {told}."
    )


def _coverage_table(table: pd.DataFrame, models: Sequence[str]) -> Table:
    wanted = sorted(table["wanted"].unique(), reverse=True)
    wanted = [share for share in wanted if round(100 * share) in {100, 80, 60, 50, 40, 20}]
    cells = {(row["model"], row["wanted"]): row for row in table.to_dict("records")}
    rows = []
    for model in models:
        found = [cells.get((model, share)) for share in wanted]
        rows.append((model, *(_answered_cell(row) for row in found)))
    columns = ("Model", *(f"{100 * share:.0f} %" for share in wanted))
    caption = "Accuracy by share of people to be answered for; beside it, where they differ, the share reached."
    return Table(columns, tuple(rows), frozenset(range(1, len(columns))), caption)


def _answered_cell(row: object) -> Cell:
    if not isinstance(row, dict):
        return Cell(DASH)
    reached = f"{100 * row['coverage']:.0f} %"
    return Cell(number(row["accuracy"]), "" if reached == f"{100 * row['wanted']:.0f} %" else reached)


def line_looks(models: Sequence[str]) -> dict[str, Look]:
    """Pretrained models in the strong colours, the best baselines in the others; controls are not drawn.

    A transductive row has the colour of its model and is dashed; where colours come again, the lines differ.
    """
    own = [model for model in models if role(model) == "own"]
    baselines = [model for model in models if role(model) == "baseline"]
    strong = ("#0072B2", "#D55E00", "#CC79A7")
    pale = (SOFT, "#009E73", "#E69F00", "#56B4E9", "#000000", "#9aa1aa")
    return _looks(own, strong, True) | _looks(baselines[:MOST_LINES], pale, False)


def _looks(models: Sequence[str], colors: Sequence[str], strong: bool) -> dict[str, Look]:
    plain = list(dict.fromkeys(model.removesuffix(TRANSDUCTIVE) for model in models))
    looks = {}
    for model in models:
        again, place = divmod(plain.index(model.removesuffix(TRANSDUCTIVE)), len(colors))
        dashes = ((6, 3), (6, 2, 2, 2)) if model.endswith(TRANSDUCTIVE) else ((), (2, 2))
        looks[model] = Look(colors[place], strong, dashes[again % 2])
    return looks
