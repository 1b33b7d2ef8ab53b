"""The pictures of a report: matplotlib figures as self-contained images with alternative text.

No label is drawn that a reader of the page could not read at the width of a phone, so figures are small
and many instead of large and few; titles and legends are text of the page.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from openbrainmass.report.wording import number

INK, SOFT, RULE = "#16191d", "#59616b", "#dfe3e8"

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which readers with any colour vision tell apart (yellow left out: too pale on white)."""

SHAPES = ("o", "s", "^", "D")
"""Marker shapes; with `PALETTE` they tell 28 groups apart."""

_STYLE: Mapping[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.labelsize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.solid_capstyle": "round",
    "svg.fonttype": "none",
    "svg.hashsalt": "openbrainmass",
}
_FONTS = "-apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'Liberation Sans', sans-serif"

styled = mpl.rc_context(dict(_STYLE))
"""Decorator: text takes its settings when it is made, so the whole figure is made under them."""


@dataclass(frozen=True)
class Picture:
    """An image of the page.

    Attributes
    ----------
    src : str
        A ``data:`` address that holds the whole image.
    alt : str
        What the image shows, for readers who do not see it.
    width, height : int, CSS pixels
    title, caption : str
        Text that the page sets around the image.
    """

    src: str
    alt: str
    width: int
    height: int
    title: str = ""
    caption: str = ""


def picture(figure: Figure, alt: str, *, title: str = "", caption: str = "", bitmap: bool = False) -> Picture:
    """Encode a figure: as SVG, or as PNG of twice the screen's resolution where it holds an image."""
    width, height = (round(96 * inches) for inches in figure.get_size_inches())
    buffer = io.BytesIO()
    if bitmap:
        figure.savefig(buffer, format="png", dpi=192, metadata={"Software": None})
        kind, data = "png", buffer.getvalue()
    else:
        nothing = {"Date": None, "Creator": None, "Format": None, "Type": None}
        figure.savefig(buffer, format="svg", metadata=nothing)
        kind, data = "svg+xml", _plain_svg(buffer.getvalue().decode()).encode()
    src = f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
    return Picture(src, alt, width, height, title, caption)


def _plain_svg(text: str) -> str:
    """Keep the drawing only, in the fonts of the page."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    return text.replace("'DejaVu Sans'", _FONTS.replace("'", "&apos;"))


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


@styled
def curve(
    steps: np.ndarray, values: np.ndarray, *, title: str, caption: str, log: bool = False, floor: float | None = None
) -> Picture:
    """One logged quantity over the steps of a pretraining: the steps pale, their running median dark.

    Parameters
    ----------
    steps, values : ndarray (n_records,)
    floor : float, optional
        Lowest value of the axis.
    """
    figure, axes = _canvas(2.5, 1.6)
    window = max(1, len(values) // 40)
    smooth = pd.Series(values).rolling(window, center=True, min_periods=1).median()
    axes.plot(*_thinned(steps, values), color=PALETTE[0], alpha=0.25, linewidth=0.8)
    axes.plot(*_thinned(steps, smooth.to_numpy()), color=PALETTE[0], linewidth=1.6)
    if log and np.nanmin(values) > 0:
        axes.set_yscale("log")
    elif floor is not None:
        axes.set_ylim(bottom=floor)
    axes.grid(False, axis="x")
    axes.margins(x=0.01)
    axes.locator_params(axis="x", nbins=3, integer=True)
    axes.ticklabel_format(axis="y", scilimits=(-2, 4), useMathText=False)
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("step")
    first, last = (f"{smooth.iloc[i]:.3g}" for i in (0, -1))
    alt = f"{title} over {int(steps[-1])} training steps, from {first} to {last}."
    return picture(figure, alt, title=title, caption=caption)


def _thinned(x: np.ndarray, y: np.ndarray, most: int = 600) -> tuple[np.ndarray, np.ndarray]:
    keep = np.unique(np.linspace(0, len(x) - 1, min(len(x), most)).astype(int))
    return x[keep], y[keep]


@dataclass(frozen=True)
class Mark:
    """How one group looks on a scatter and in its legend."""

    label: str
    color: str
    shape: str
    n: int


def marks(groups: pd.Series, first: Sequence[str] = (), palette: Sequence[str] = PALETTE, most: int = 28) -> list[Mark]:
    """A colour and a shape for each group, the largest first; groups beyond `most` share a grey one."""
    counts = groups.value_counts()
    order = [g for g in first if g in counts.index] + [g for g in counts.index if g not in first]
    looks = [
        Mark(str(group), palette[i % len(palette)], SHAPES[i // len(palette) % len(SHAPES)], int(counts[group]))
        for i, group in enumerate(order[: most if len(order) > most else None])
    ]
    if len(order) > most:
        looks.append(Mark("other", "#9aa1aa", "o", int(counts[order[most:]].sum())))
    return looks


@styled
def scatter(points: np.ndarray, groups: pd.Series, looks: Sequence[Mark], *, title: str, caption: str) -> Picture:
    """A map of embeddings, one mark a recording.

    Parameters
    ----------
    points : ndarray (n_recordings, 2)
    groups : Series of str (n_recordings,)
        Which group each belongs to; `looks` says how groups look.
    """
    figure, axes = _canvas(4.4, 4.0)
    known = {look.label for look in looks}
    size = float(np.clip(5000 / len(points), 7, 30))
    order = np.random.default_rng(0).permutation(len(points))
    labels = groups.where(groups.isin(known), "other").to_numpy()[order]
    for look in looks:
        # Drawn group by group but in shuffled slices, so that no group lies wholly above another.
        for slice_number, part in enumerate(np.array_split(np.arange(len(order)), 6)):
            here = part[labels[part] == look.label]
            axes.scatter(
                *points[order[here]].T, s=size, c=look.color, marker=look.shape, alpha=0.8,
                linewidths=0.3, edgecolors="white", zorder=2 + slice_number,
            )  # fmt: skip
    axes.set(xticks=[], yticks=[])
    axes.grid(False)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_aspect("equal", "datalim")
    described = ", ".join(f"{look.label} ({look.n})" for look in looks[:8]) + (" and others" if len(looks) > 8 else "")
    return picture(figure, f"{title}: {len(points)} recordings; {described}.", title=title, caption=caption)


@styled
def matrix(
    values: np.ndarray,
    *,
    title: str,
    alt: str,
    limit: float = 1.0,
    networks: Sequence[str] = (),
    inches: float = 2.3,
) -> Picture:
    """An FC matrix as an image, blue negative, red positive; with networks given, lines and names of their blocks.

    Parameters
    ----------
    values : ndarray (n_rois, n_rois)
    limit : float
        Value of the deepest colour.
    networks : sequence of str, length n_rois, optional
        Rows are sorted by network already.
    inches : float
        Height of the picture.
    """
    figure = Figure(figsize=(1.21 * inches if len(networks) else inches, inches))
    axes = figure.add_axes((0.175, 0.005, 0.82, 0.99) if len(networks) else (0.004, 0.004, 0.992, 0.992))
    axes.imshow(values, cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest", aspect="auto")
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(visible=True, color=RULE, linewidth=0.6)
    if len(networks):
        _mark_networks(axes, np.asarray(networks))
    return picture(figure, alt, title=title, bitmap=True)


def _mark_networks(axes: Axes, names: np.ndarray, most: int = 12) -> None:
    starts = np.flatnonzero(np.r_[True, names[1:] != names[:-1]])
    for start in starts[1:]:
        axes.axhline(start - 0.5, color=INK, linewidth=0.5)
        axes.axvline(start - 0.5, color=INK, linewidth=0.5)
    if len(starts) <= most:
        middles = (starts + np.r_[starts[1:], len(names)] - 1) / 2
        # Names of thin blocks are moved apart so that none is written over another.
        least = 0.035 * len(names)
        places = np.maximum.accumulate(middles - least * np.arange(len(middles))) + least * np.arange(len(middles))
        axes.set_yticks(places, names[starts], fontsize=8.5, color=SOFT)


@styled
def pair_matrix(names: Sequence[str], values: np.ndarray, *, title: str, alt: str, caption: str) -> Picture:
    """A value of each pair of networks, written in its cell.

    Parameters
    ----------
    values : ndarray (n_networks, n_networks)
        Symmetric; only the lower triangle is drawn.
    """
    figure, axes = _canvas(4.0, 3.6)
    limit = float(np.abs(values).max()) or 1.0
    shown = np.where(np.tri(len(names), dtype=bool), values, np.nan)
    axes.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit)
    for i in range(len(names)):
        for j in range(i + 1):
            pale = abs(values[i, j]) < 0.6 * limit
            axes.text(
                j, i, number(values[i, j], 1), ha="center", va="center", fontsize=7.5, color=INK if pale else "white"
            )
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8.5)
    axes.set_yticks(range(len(names)), names, fontsize=8.5)
    return picture(figure, alt, title=title, caption=caption)


@dataclass(frozen=True)
class Line:
    """One line of a chart with its interval.

    Attributes
    ----------
    label : str
    x, y, low, high : ndarray (n_points,)
    color : str
    strong : bool
        Drawn thick.
    band : bool
        Drawn with its interval.
    dash : tuple of int
        Lengths of its dashes and gaps, in points; empty for a whole line.
    """

    label: str
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray
    high: np.ndarray
    color: str
    strong: bool = False
    band: bool = False
    dash: tuple[int, ...] = ()


def _lines(axes: Axes, lines: Sequence[Line], places: Sequence[np.ndarray]) -> None:
    """Draw lines at places on the axis."""
    for line, x in zip(lines, places, strict=True):
        # The point without any label is another fit on other people: nothing leads from it to the others.
        zero = line.x == 0
        if line.band:
            axes.fill_between(x[~zero], line.low[~zero], line.high[~zero], color=line.color, alpha=0.13, linewidth=0)
            axes.vlines(x[zero], line.low[zero], line.high[zero], color=line.color, alpha=0.45, linewidth=1.6)
        width, dots = (2.2, 5) if line.strong else (1.1, 3)
        style = {"color": line.color, "markersize": dots, "zorder": 3 + line.strong}
        if line.dash:
            style["markerfacecolor"] = "white"
        dashes = (0, tuple(length / width for length in line.dash)) if line.dash else "-"
        axes.plot(x[~zero], line.y[~zero], linewidth=width, linestyle=dashes, marker="o", **style)
        axes.plot(x[zero], line.y[zero], linestyle="none", marker="D", **style)
    axes.spines["left"].set_visible(False)


@styled
def few_shot_curve(lines: Sequence[Line], *, title: str, caption: str, metric: str = "AUC") -> Picture:
    """A metric over the number of labelled people per class (0: zero-shot), one line a model."""
    figure, axes = _canvas(4.3, 3.2)
    ticks = sorted({float(x) for line in lines for x in line.x})
    least = min([tick for tick in ticks if tick > 0], default=1.0)
    span = np.log10(max(ticks) / least) if ticks and max(ticks) > least else 1.0

    def place(x: np.ndarray, beside: float = 0.0) -> np.ndarray:
        """Logarithm of the number; none at all stands apart, left of the first, each line beside the others."""
        return np.where(x > 0, np.log10(np.maximum(x, least)), np.log10(least) - span * (0.25 - 0.12 * beside))

    beside = np.linspace(-1, 1, len(lines)) if len(lines) > 1 else np.zeros(len(lines))
    _lines(axes, lines, [place(line.x, left) for line, left in zip(lines, beside, strict=True)])
    axes.set_xticks(place(np.array(ticks)), [f"{tick:g}" for tick in ticks])
    axes.grid(False, axis="x")
    axes.axhline(0.5 if metric == "AUC" else 0.0, color=SOFT, linewidth=0.8, linestyle=(0, (3, 3)))
    axes.set(xlabel="labelled people per class", ylabel=metric)
    ends = "; ".join(f"{line.label} from {line.y[0]:.2f} to {line.y[-1]:.2f}" for line in lines)
    return picture(figure, f"{title}: {ends}.", title=title, caption=caption)


@styled
def coverage_chart(lines: Sequence[Line], *, title: str, caption: str) -> Picture:
    """Accuracy over the share of people answered for, everybody on the left."""
    figure, axes = _canvas(4.3, 3.2)
    _lines(axes, lines, [line.x for line in lines])
    axes.set_xlim(1.03, min(float(line.x.min()) for line in lines) - 0.03)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f} %")
    axes.grid(False, axis="x")
    axes.set(xlabel="people answered for", ylabel="accuracy")
    ends = "; ".join(f"{line.label} from {line.y[-1]:.2f} to {line.y[0]:.2f}" for line in lines)
    return picture(figure, f"{title}, from all to few: {ends}.", title=title, caption=caption)
