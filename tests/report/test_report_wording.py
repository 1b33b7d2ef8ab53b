"""How numbers are written."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openbrainmass.report.methods import _intervals
from openbrainmass.report.wording import (
    compact,
    count,
    duration,
    interval,
    listing,
    number,
    p_value,
    short_p,
    signed,
)


@given(st.floats(-1e6, 1e6))
def test_number_reads_back_to_its_rounding(value: float) -> None:
    assert float(number(value).replace("\N{MINUS SIGN}", "-")) == pytest.approx(value, abs=0.00501)


@pytest.mark.parametrize(
    ("value", "written"), [(-0.004, "0.00"), (-1.5, "\N{MINUS SIGN}1.50"), (math.nan, "\N{EN DASH}")]
)
def test_number(value: float, written: str) -> None:
    assert number(value) == written


@pytest.mark.parametrize(
    ("value", "written"), [(0.031, "+0.03"), (-0.031, "\N{MINUS SIGN}0.03"), (0.001, "0.00"), (0.0, "0.00")]
)
def test_signed_shows_a_sign_only_where_a_digit_does(value: float, written: str) -> None:
    assert signed(value) == written


@pytest.mark.parametrize(("low", "high", "written"), [(0.5, 0.75, "0.50 to 0.75"), (0.5, 0.5, ""), (math.nan, 0.7, "")])
def test_interval(low: float, high: float, written: str) -> None:
    assert interval(low, high) == written


@pytest.mark.parametrize(
    ("p", "written", "cell"),
    [
        (0.0004, "< 0.001", "< 0.001"),
        (0.0312, "= 0.031", "0.031"),
        (0.52, "= 0.52", "0.52"),
        (math.nan, "not saved", "\N{EN DASH}"),
    ],
)
def test_p_value(p: float, written: str, cell: str) -> None:
    assert p_value(p) == written
    assert short_p(p) == cell


def test_count_and_listing() -> None:
    assert count(1, "person", "people") == "1 person"
    assert count(1204, "site") == "1,204 sites"
    assert listing(["a"]) == "a"
    assert listing(["a", "b", "c"]) == "a, b and c"
    assert listing(["a", "b", "c"], most=2) == "a, b and c"
    assert listing(["a", "b", "c", "d"], most=2) == "a, b and 2 others"
    assert listing([]) == "none"


@pytest.mark.parametrize(("seconds", "written"), [(12.2, "12 s"), (600, "10 min"), (9000, "2.5 h")])
def test_duration(seconds: float, written: str) -> None:
    assert duration(seconds) == written


@pytest.mark.parametrize(("value", "written"), [(5e-5, "5e-5"), (0.001, "0.001"), (3e12, "3e12")])
def test_compact(value: float, written: str) -> None:
    assert compact(value) == written


def test_the_methods_name_the_interval_of_each_protocol() -> None:
    told = _intervals(
        {"k-fold": "t interval", "external": "bootstrap", "few-shot-1": "bootstrap", "few-shot-5": "bootstrap"}
    )
    assert told == "95 % intervals are, by protocol, k-fold: t interval; external and few-shot: bootstrap."
    assert _intervals({}) == "Intervals are 95 % intervals."
