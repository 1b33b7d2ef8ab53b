"""How numbers, counts and names are written on the page."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

MINUS = "\N{MINUS SIGN}"
DASH = "\N{EN DASH}"


def number(value: float, digits: int = 2) -> str:
    """A number with fixed decimals and a true minus sign; a dash where there is none."""
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{value:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text.replace("-", MINUS)


def signed(value: float, digits: int = 2) -> str:
    """A number that always shows its sign."""
    text = number(value, digits)
    return f"+{text}" if value > 0 and float(f"{value:.{digits}f}") > 0 else text


def interval(low: float, high: float, digits: int = 2) -> str:
    """An interval: ``0.67 to 0.75``; empty where it was not saved or has no width."""
    known = all(bound is not None and math.isfinite(bound) for bound in (low, high)) and low < high
    return f"{number(low, digits)} to {number(high, digits)}" if known else ""


def p_value(p: float) -> str:
    """A p-value with its relation: ``= 0.03``, ``< 0.001``."""
    if p is None or not math.isfinite(p):
        return "not saved"
    if p < 0.001:
        return "< 0.001"
    return f"= {p:.3f}" if p < 0.1 else f"= {p:.2f}"


def short_p(p: float) -> str:
    """A p-value for a table cell."""
    return p_value(p).removeprefix("= ") if p is not None and math.isfinite(p) else DASH


def count(n: float, one: str, many: str | None = None) -> str:
    """A count with its noun: ``1 site``, ``1,024 people``."""
    return f"{int(n):,} {one if int(n) == 1 else many or one + 's'}"


def listing(names: Sequence[str], most: int | None = None, more: str = "others") -> str:
    """Names joined as in a sentence, at most `most` of them; a single one left over is named, too."""
    shown = list(names if most is not None and len(names) == most + 1 else names[:most])
    left = len(names) - len(shown)
    if left:
        return f"{', '.join(shown)} and {left:,} {more}"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}" if shown else "none"


def compact(value: float) -> str:
    """A setting in the fewest digits: ``0.001``, ``5e-5``."""
    return re.sub(r"e([+-])0+", r"e\1", f"{value:g}").replace("e+", "e")


def duration(seconds: float) -> str:
    """A duration in the unit that fits."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
