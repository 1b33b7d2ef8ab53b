"""`write_quality_page`: what a cohort's curation found, left out and doubts, as one HTML page beside its tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.cohort.quality import REASONS, WARNINGS
from openbrainmass.cohort.store import load_cohort
from openbrainmass.durable import read_json, read_tsv, write_text
from openbrainmass.report.cohort_view import CLASS_COLORS, Segment, text_of
from openbrainmass.report.figures import INK, PALETTE, SOFT, Picture, picture, styled
from openbrainmass.report.rendering import environment, flat
from openbrainmass.report.tables import Fact, Table
from openbrainmass.report.wording import DASH, count, listing, number

SECTIONS = (
    ("summary", "Summary"),
    ("left-out", "Left out"),
    ("measures", "Measures by site"),
    ("repetition", "Repetition times"),
    ("copies", "Copies"),
    ("doubts", "Doubts"),
    ("exclusions", "Every exclusion"),
    ("settings", "Settings"),
)
COPIES = ("duplicate", "contradicting-duplicate", "seen-elsewhere")
_UNKNOWN = "not known"
# Rows of the page's tables and rows of its figures; the rest is in the store's own tables, and the page says so.
_MOST_ROWS, _MOST_SITES, _MOST_POINTS = 1000, 30, 120


@dataclass(frozen=True)
class Step:
    """One reason on the way from what was found to what was kept; `before` and `after` count recordings."""

    code: str
    words: str
    n: int
    kept: Segment
    lost: Segment
    after: int


@dataclass(frozen=True)
class Measure:
    """A figure of each recording, drawn by site.

    Attributes
    ----------
    title, unit : str
        What it is, and the label of its axis.
    values : callable
        From the table of recordings and people to a Series of numbers; None where it is not known.
    limit : callable
        From the quality settings to the value from which on recordings are left out; None where there is none.
    digits : int
        Decimals that its values are told with.
    """

    title: str
    unit: str
    values: Callable[[pd.DataFrame], pd.Series | None]
    limit: Callable[[Mapping[str, Any]], float | None]
    digits: int = 2


def write_quality_page(store_path: str | Path) -> Path:
    """Write ``quality.html`` beside the tables of a store; it holds everything it shows and asks no other address.

    Parameters
    ----------
    store_path : path
        A folder made by ``openbrainmass cohort``. Its ``warnings.tsv`` may be missing.

    Returns
    -------
    Path
        The page; an older one is replaced.

    Raises
    ------
    OpenBrainMassError
        If the folder is no store, one of its tables is damaged, or the page cannot be written.
    """
    folder = Path(store_path)
    cohort = load_cohort(folder)
    file = folder / "warnings.tsv"
    warnings = read_tsv(file) if file.is_file() else None
    out = folder / "quality.html"
    write_text(out, render(cohort, read_json(folder / "manifest.json"), warnings))
    return out


def render(cohort: Cohort, manifest: Mapping[str, Any], warnings: pd.DataFrame | None) -> str:
    """The page as HTML text.

    Parameters
    ----------
    cohort : Cohort
    manifest : mapping
        Of its store; ``quality`` and ``reading`` are the settings it was made with.
    warnings : DataFrame or None
        ``kind recording_id participant_id detail``; None where the store has no such table.
    """
    table = cohort.table
    everything = _with_people(cohort.exclusions, cohort.participants)
    # People without a recording are no recordings that were left out.
    exclusions = everything[everything["reason"] != "no-recording"]
    settings = manifest.get("quality") or {}
    copies = exclusions[exclusions["reason"].isin(COPIES)]
    return (
        environment()
        .get_template("quality.html.j2")
        .render(
            version=version("openbrainmass"),
            title=cohort.name,
            sections=SECTIONS,
            facts=_facts(cohort, table, exclusions),
            sentence=_sentence(table, exclusions, warnings),
            remarks=_remarks(everything, warnings),
            steps=_steps(len(table), exclusions),
            by_site=_by(table, exclusions, "site", "Site"),
            by_class=[found for name in ("dx", "sex") if (found := _by(table, exclusions, name, name))],
            by_all=_by_all(table, exclusions),
            bars=_bars(table, exclusions),
            pictures=[drawn for measure in MEASURES if (drawn := _drawn(measure, table, settings))],
            repetition=_repetition(table),
            copies=_listed(copies, "Recordings that are another one again."),
            has_copies=len(copies),
            checked=settings.get("check_duplicates", True),
            doubts=_doubts(warnings),
            exclusions=_listed(everything, "What was left out, in the order of the source."),
            n_excluded=len(everything),
            settings=_settings(manifest),
        )
    )


def _with_people(exclusions: pd.DataFrame, people: pd.DataFrame) -> pd.DataFrame:
    """Exclusions with the columns site, dx and sex, from the table itself or from people who have other recordings."""
    exclusions = exclusions.copy()
    for name in ("site", "dx", "sex"):
        if name in exclusions or name not in people:
            continue
        known = dict(zip(people["participant_id"], people[name], strict=True))
        exclusions[name] = exclusions["participant_id"].map(known)
    return exclusions


def _seconds(table: pd.DataFrame) -> pd.Series:
    return table["n_volumes"] * table["tr"]


def _facts(cohort: Cohort, table: pd.DataFrame, exclusions: pd.DataFrame) -> list[Fact]:
    n_found = len(table) + len(exclusions)
    hours = _seconds(table).sum() / 3600
    facts = [
        Fact("found", f"{n_found:,}", "recordings"),
        Fact("kept", f"{len(table):,}", f"{100 * len(table) / max(1, n_found):.1f}\N{NO-BREAK SPACE}%"),
        Fact("left out", f"{len(exclusions):,}"),
        Fact("people kept", f"{table['participant_id'].nunique():,}"),
        Fact("ROIs", f"{cohort.atlas.n_rois:,}", cohort.atlas.name),
    ]
    if "site" in table:
        facts.insert(4, Fact("sites", f"{table['site'].nunique():,}"))
    return [*facts, Fact("of data", number(hours, 1), "hours")] if hours > 0 else facts


def _sentence(table: pd.DataFrame, exclusions: pd.DataFrame, warnings: pd.DataFrame | None) -> str:
    n_found = len(table) + len(exclusions)
    if not len(exclusions):
        start = f"All {n_found:,} recordings were kept." if n_found > 1 else "The only recording was kept."
    else:
        kept = f"Of {count(n_found, 'recording')}, {len(table):,} {'was' if len(table) == 1 else 'were'} kept"
        reasons = exclusions["reason"].value_counts()
        named = [f"{REASONS.get(str(reason), str(reason))} ({n:,})" for reason, n in reasons.items()]
        start = f"{kept}. Left out: {'; '.join(named[:4])}{'; and more' if len(named) > 4 else ''}."
    n = 0 if warnings is None else len(warnings)
    return f"{start} {count(n, 'doubt')} about what was kept {'is' if n == 1 else 'are'} listed below." if n else start


def _remarks(exclusions: pd.DataFrame, warnings: pd.DataFrame | None) -> list[tuple[str, bool]]:
    """What the reader should know first, and whether it is alarming."""
    counts = exclusions["reason"].value_counts()
    clashes, absent = int(counts.get("contradicting-duplicate", 0)), int(counts.get("no-recording", 0))
    mixed = 0 if warnings is None else int((warnings["kind"] == "mixed-up").sum())
    remarks = []
    if mixed:
        told = f"{count(mixed, 'recording')} may belong to another person: check names before anything else."
        remarks.append((told, True))
    if clashes:
        told = f"{count(clashes, 'recording')} carried contradicting labels: ask whoever labelled them."
        remarks.append((told, True))
    if absent:
        remarks.append((f"{count(absent, 'person', 'people')} of the participants table had no recording.", False))
    return remarks


def _steps(n_kept: int, exclusions: pd.DataFrame) -> list[Step]:
    """The reasons in the order in which recordings are judged, each with what is left after it."""
    counts = exclusions["reason"].value_counts()
    order = [reason for reason in REASONS if reason in counts] + sorted(set(counts.index) - set(REASONS))
    total = max(1, n_kept + len(exclusions))
    left, steps = n_kept + len(exclusions), []
    for reason in order:
        n = int(counts[reason])
        after = left - n
        kept = Segment(0, round(100 * after / total, 3), "#c9d3dc")
        lost = Segment(kept.width, round(100 * n / total, 3), CLASS_COLORS[0])
        steps.append(Step(str(reason), REASONS.get(str(reason), ""), n, kept, lost, after))
        left = after
    return steps


def _by(table: pd.DataFrame, exclusions: pd.DataFrame, column: str, name: str) -> Table | None:
    """Found, kept and left out for each reason, one row a value of a column."""
    if column not in table:
        return None
    kept = text_of(table[column]).value_counts()
    lost = exclusions.assign(group=_groups_of(exclusions, column))
    found = set(map(str, lost["reason"]))
    reasons = [reason for reason in REASONS if reason in found] + sorted(found - set(REASONS))
    rows = []
    for value in sorted({*kept.index, *lost["group"]}):
        counts = [
            int(n) for n in lost.loc[lost["group"] == value, "reason"].value_counts().reindex(reasons, fill_value=0)
        ]
        n = int(kept.get(value, 0))
        share = 100 * sum(counts) / (n + sum(counts))
        told = f"{share:.1f}\N{NO-BREAK SPACE}%" if share else "·"
        cells = (f"{n + sum(counts):,}", f"{n:,}", told)
        rows.append((str(value), *cells, *(f"{k:,}" if k else "·" for k in counts)))
    columns = (name, "found", "kept", "left out", *reasons)
    return Table(columns, tuple(rows), frozenset(range(1, len(columns))))


def _groups_of(exclusions: pd.DataFrame, column: str) -> pd.Series:
    if column not in exclusions:
        return pd.Series(_UNKNOWN, index=exclusions.index, dtype=object)
    return text_of(exclusions[column])


def _bars(table: pd.DataFrame, exclusions: pd.DataFrame) -> dict[str, tuple[Segment, Segment]]:
    """For each site a bar: kept and left out, in percent of the largest site."""
    if "site" not in table:
        return {}
    kept, lost = text_of(table["site"]).value_counts(), _groups_of(exclusions, "site").value_counts()
    both = kept.add(lost, fill_value=0)
    scale = 100 / max(1, both.max())
    bars = {}
    for site in both.index:
        width = round(float(kept.get(site, 0) * scale), 2)
        rest = round(float(lost.get(site, 0) * scale), 2)
        bars[str(site)] = (Segment(0, width, PALETTE[0]), Segment(width, rest, CLASS_COLORS[0]))
    return bars


def _by_all(table: pd.DataFrame, exclusions: pd.DataFrame) -> Table | None:
    """Left out by reason, site and classes together."""
    columns = [name for name in ("site", "dx", "sex") if name in table]
    if not columns or not len(exclusions):
        return None
    groups = pd.DataFrame({name: _groups_of(exclusions, name) for name in columns}).assign(reason=exclusions["reason"])
    counts = groups.groupby(["reason", *columns], sort=True).size()
    rows = [(*map(str, key), f"{n:,}") for key, n in zip(counts.index.tolist(), counts.tolist(), strict=True)]
    caption = "Left out by reason, site and class." + _more(len(rows), "table")
    return Table(("reason", *columns, "recordings"), tuple(rows[:_MOST_ROWS]), frozenset({len(columns) + 1}), caption)


def _more(n: int, what: str) -> str:
    return f" The first {_MOST_ROWS:,} of {n:,} rows of the {what}." if n > _MOST_ROWS else ""


def _column(name: str) -> Callable[[pd.DataFrame], pd.Series | None]:
    return lambda table: pd.to_numeric(table[name], errors="coerce") if name in table else None


def _censored(table: pd.DataFrame) -> pd.Series | None:
    if not {"n_censored", "n_acquired"} <= set(table):
        return None
    return 100 * table["n_censored"] / table["n_acquired"]


def _dead(table: pd.DataFrame) -> pd.Series:
    return table["dead_rois"].fillna("").map(lambda names: len(str(names).split(";")) if names else 0)


MEASURES = (
    Measure(
        "Length", "minutes", lambda table: _seconds(table) / 60, lambda s: (s.get("min_seconds") or 0) / 60 or None
    ),
    Measure("Motion", "mean FD, mm", _column("mean_fd"), lambda s: s.get("max_mean_fd")),
    Measure(
        "Volumes lost to motion",
        "percent of those acquired",
        _censored,
        lambda s: 100 * s["max_censored_share"] if s.get("max_censored_share") is not None else None,
    ),
    Measure("Dead ROIs", "ROIs", _dead, lambda s: None, 0),
    Measure("Coverage", "covered share of the worst ROI", _column("min_coverage"), lambda s: None),
    Measure("Typicality", "correlation with the mean FC", _column("typicality"), lambda s: s.get("min_typicality")),
)
"""What is drawn by site, where it is known."""


def _drawn(measure: Measure, table: pd.DataFrame, settings: Mapping[str, Any]) -> Picture | None:
    values = measure.values(table)
    if values is None or not values.notna().any():
        return None
    sites = text_of(table["site"]) if "site" in table else pd.Series("all", index=table.index)
    known = values.notna()
    largest = sites[known].value_counts()
    shown = list(largest.index[:_MOST_SITES])
    sites = sites.where(sites.isin(shown), "other sites")
    groups = {str(site): group.to_numpy(float) for site, group in values[known].groupby(sites[known], sort=True)}
    missing = int((~known).sum())
    least, middle, most = (number(float(v), measure.digits) for v in (values.min(), values.median(), values.max()))
    caption = f"Median {middle}; {least} to {most}."
    if measure.title == "Motion" and "fd_formula" in table:
        formulas = sorted(table["fd_formula"].dropna().astype(str).unique())
        caption += f" Formula: {listing(formulas)}." if formulas else ""
    if missing:
        caption += f" Not known of {count(missing, 'recording')}."
    return _strips(groups, measure, measure.limit(settings), caption)


@styled
def _strips(groups: Mapping[str, np.ndarray], measure: Measure, limit: float | None, caption: str) -> Picture:
    """One row of dots a site with its median; a dashed line where recordings are left out."""
    figure = Figure(figsize=(4.4, 0.62 + 0.215 * max(2, len(groups))), layout="constrained")
    axes = figure.add_subplot()
    rng = np.random.default_rng(0)
    for row, values in enumerate(groups.values()):
        dots = np.sort(values)[np.linspace(0, len(values) - 1, min(len(values), _MOST_POINTS)).astype(int)]
        height = row + rng.uniform(-0.24, 0.24, len(dots))
        axes.scatter(dots, height, s=9, color=PALETTE[0], alpha=0.4, linewidths=0)
        axes.plot([np.median(values)] * 2, [row - 0.36, row + 0.36], color=INK, linewidth=1.8)
    if limit is not None:
        axes.axvline(limit, color=CLASS_COLORS[0], linewidth=1.2, linestyle=(0, (4, 3)))
    axes.set_yticks(range(len(groups)), list(groups), color=INK, fontsize=8.5)
    axes.set_ylim(len(groups) - 0.4, -0.6)
    axes.grid(False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel(measure.unit, color=SOFT)
    axes.locator_params(axis="x", nbins=6, integer=measure.digits == 0)
    low, high = axes.get_xlim()
    if high - low < 10.0 ** (-measure.digits):
        # All values are one: an axis magnified until its ticks mean nothing is not drawn.
        axes.set_xlim(low - 10.0**-measure.digits / 2, high + 10.0 ** (1 - measure.digits) / 2)
    medians = ", ".join(f"{site} {number(float(np.median(values)), measure.digits)}" for site, values in groups.items())
    line = f" A dashed line at {limit:g}." if limit is not None else ""
    tail = " The dashed line is the limit." if limit is not None else ""
    alt = f"{measure.title} ({measure.unit}) of each recording by site; medians: {medians}.{line}"
    return picture(figure, alt, title=measure.title, caption=caption + tail)


def _repetition(table: pd.DataFrame) -> Table:
    """Which TRs each site has, of how many recordings, and their lengths."""
    sites = text_of(table["site"]) if "site" in table else pd.Series("all", index=table.index)
    rows = []
    for site, group in table.groupby(sites, sort=True):
        counts = group["tr"].round(4).value_counts().sort_index()
        told = listing([f"{tr:g} s ({n:,})" if len(counts) > 1 else f"{tr:g} s" for tr, n in counts.items()], 6)
        volumes = group["n_volumes"]
        span = f"{volumes.min():,}" if volumes.nunique() == 1 else f"{volumes.min():,}{DASH}{volumes.max():,}"
        unknown = int(group["tr"].isna().sum())
        rows.append((str(site), told if len(counts) else DASH, f"{unknown:,}" if unknown else "·", span))
    return Table(("Site", "TR", "without TR", "volumes"), tuple(rows), frozenset({2, 3}))


def _listed(exclusions: pd.DataFrame, caption: str) -> Table:
    """Recordings that were left out, one row each."""
    extra = [name for name in ("site", "dx") if name in exclusions]
    columns = ["recording_id", "participant_id", *extra, "reason", "detail"]
    shown = exclusions[columns].iloc[:_MOST_ROWS]
    rows = tuple(tuple(DASH if pd.isna(cell) else str(cell) for cell in row) for row in shown.itertuples(index=False))
    names = ("Recording", "Person", *extra, "Reason", "Detail")
    return Table(names, rows, frozenset(), caption + _more(len(exclusions), "table exclusions.tsv"))


def _doubts(warnings: pd.DataFrame | None) -> list[tuple[str, Table]] | None:
    """Warnings by kind, in words; None where none were saved."""
    if warnings is None:
        return None
    found = []
    for kind, group in warnings.groupby("kind", sort=True):
        columns = ["recording_id", "participant_id", "detail"]
        rows = tuple(
            tuple(map(str, row)) for row in group[columns].fillna(DASH).iloc[:_MOST_ROWS].itertuples(index=False)
        )
        words = WARNINGS.get(str(kind), str(kind))
        caption = f"{words[:1].upper()}{words[1:]}." + _more(len(group), "table warnings.tsv")
        found.append((str(kind), Table(("Recording", "Person", "Finding"), rows, frozenset(), caption)))
    return found


def _settings(manifest: Mapping[str, Any]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    for key, name in (("quality", "Limits"), ("reading", "Reading")):
        if manifest.get(key):
            yield name, list(flat(manifest[key]))
