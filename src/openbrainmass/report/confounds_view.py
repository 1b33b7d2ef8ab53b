"""The confound card and the leakage audit of a results folder, as the page shows them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from openbrainmass.evaluation.audit.checks import CHECKS
from openbrainmass.report.folders import ResultsFolder
from openbrainmass.report.tables import Cell, Estimate, Forest, Table, forest
from openbrainmass.report.verdict import protocol_words, role, scale
from openbrainmass.report.wording import DASH, count, interval, listing, number, signed

MEASURES = {"mean_fd": "motion", "n_volumes": "scan length"}
METRIC_WORDS = {"auc": "AUC", "r": "correlation"}
VERDICTS = {"refused": 0, "floor": 1, "passed": 2, "not checked": 3}
"""Verdicts of an audit in the order of the page."""


@dataclass(frozen=True)
class ConfoundsView:
    """What else than the label scores and features go with."""

    lead: str
    sentences: tuple[tuple[str, bool], ...]
    overview: Table | None
    strata: Forest | None
    regressed: Forest | None


@dataclass(frozen=True)
class AuditView:
    """What the leakage audit found, and what it could not look at."""

    sentence: str
    warns: bool
    found: Table
    unchecked: Table | None


def confounds_view(results: ResultsFolder, protocol: str | None, model: str) -> ConfoundsView | None:
    """The card of one protocol, strata for one model; None where no card was saved."""
    card = results.tables.get("confounds")
    if card is None or not len(card):
        return None
    card = card.assign(protocol=card["protocol"].fillna("").astype(str))
    chosen = card[(card["protocol"] == protocol) | (card["protocol"] == "")]
    if not len(chosen):
        return None
    title = protocol_words(str(protocol)).title
    shown = model if model in set(chosen["model"]) else str(chosen["model"].iloc[0])
    return ConfoundsView(
        f"{title}: what else than the label the models go with.",
        tuple(_sentences(chosen, shown, str(protocol))),
        _overview(chosen),
        _strata(chosen, shown, results),
        _regressed(chosen),
    )


def _pick(card: pd.DataFrame, model: str, check: str, starts: str) -> pd.Series | None:
    rows = card[(card["model"] == model) & (card["check"] == check) & card["item"].str.startswith(starts)]
    return rows.iloc[0] if len(rows) else None


def _sentences(card: pd.DataFrame, model: str, protocol: str) -> list[tuple[str, bool]]:
    """What the card says of one model, and whether each is a warning."""
    said: list[tuple[str, bool]] = []
    site, chance = _pick(card, model, "site", "balanced"), _pick(card, model, "site", "chance")
    if site is not None and chance is not None:
        told = f"From the features of {model} the site can be read with a balanced accuracy of {number(site['value'])}"
        # Where whole sites are held out, what is known of a site cannot help.
        readable = bool(site["low"] > chance["value"]) and protocol not in {"site-held-out", "cohort-held-out"}
        said.append((f"{told} (chance {number(chance['value'])}).", readable))
    for check, word in MEASURES.items():
        row = _pick(card, model, check, "correlation within class")
        if row is None:
            row = _pick(card, model, check, "correlation")
        if row is not None and (row["low"] > 0 or row["high"] < 0):
            where = "within class, too" if "within" in str(row["item"]) else "over everybody"
            told = f"The score of {model} goes with {word} {where}: rank correlation {number(row['value'])}"
            said.append((f"{told} ({interval(row['low'], row['high'])}).", True))
    for check in ("sex", "age"):
        row = _pick(card, model, check, "difference")
        if row is not None and (row["low"] > 0 or row["high"] < 0):
            words = _words(str(row["item"]))
            told = f"{model} does not do equally well in all: {words} is {signed(row['value'])}"
            said.append((f"{told} ({interval(row['low'], row['high'])}).", True))
    return said


def _words(item: str) -> str:
    """An item of the card with its metric as the page writes it."""
    return " ".join(METRIC_WORDS.get(word, word) for word in item.split(" "))


def _overview(card: pd.DataFrame) -> Table | None:
    """Site, motion and length, one row a model."""
    columns = [("site", "balanced", "site read from features")]
    for check, word in MEASURES.items():
        columns += [(check, "correlation", f"score with {word}"), (check, "correlation within", "within class")]
    columns = [one for one in columns if _any(card, *one[:2])]
    if not columns:
        return None
    rows = []
    for model in card["model"].unique():
        found = [_pick(card, str(model), check, starts) for check, starts, _ in columns]
        rows.append((str(model), *(_cell(row) for row in found)))
    chance = card[(card["check"] == "site") & (card["item"] == "chance")]["value"]
    told = f"Balanced accuracy with which the site is read (chance {number(chance.iloc[0])}); r" if len(chance) else "R"
    caption = f"{told}ank correlations of the score with motion and length, with 95 % intervals."
    names = ("Model", *(name for _, _, name in columns))
    return Table(names, tuple(rows), frozenset(range(1, len(names))), caption)


def _any(card: pd.DataFrame, check: str, starts: str) -> bool:
    return bool(((card["check"] == check) & card["item"].str.startswith(starts)).any())


def _cell(row: pd.Series | None) -> Cell:
    return Cell(DASH) if row is None else Cell(number(row["value"]), interval(row["low"], row["high"]))


def _strata(card: pd.DataFrame, model: str, results: ResultsFolder) -> Forest | None:
    rows = card[(card["model"] == model) & card["check"].isin(["sex", "age"])]
    rows = rows[~rows["item"].str.startswith("difference")]
    if not len(rows):
        return None
    metric = str(rows.iloc[0]["item"]).split(" ")[0]
    estimates = [
        Estimate(
            label=f"{row['check']} {str(row['item']).removeprefix(metric).strip()}",
            value=row["value"], low=row["low"], high=row["high"],
            text=number(row["value"]), between=interval(row["low"], row["high"]),
            role="own", more=(f"{int(row['n']):,}",),
        )
        for row in rows.to_dict("records")
    ]  # fmt: skip
    gaps = card[(card["model"] == model) & card["item"].str.startswith("difference")]
    told = [
        f"{_words(str(row['item'])).split(', ', 1)[-1]}: {signed(row['value'])} ({interval(row['low'], row['high'])})"
        for row in gaps.to_dict("records")
    ]
    word = METRIC_WORDS.get(metric, metric)
    caption = f"{word} of {model} within strata" + (f"; differences: {listing(told)}." if told else ".")
    heading = f"{word} (95 % interval)"
    zero = 0.5 if metric == "auc" else scale(results).no_skill
    return forest(estimates, heading=heading, zero=zero, caption=caption, columns=("people",), first="Stratum")


def _regressed(card: pd.DataFrame) -> Forest | None:
    """What the score loses when covariates are regressed out of the features."""
    rows = card[card["check"] == "covariates"]
    if not len(rows):
        return None
    metric = str(rows.iloc[0]["item"]).split(" ")[0]
    estimates = []
    for model in rows["model"].unique():
        before = _pick(card, str(model), "covariates", f"{metric} before")
        after = _pick(card, str(model), "covariates", f"{metric} after")
        change = _pick(card, str(model), "covariates", "change")
        if before is None or after is None or change is None:
            continue
        estimates.append(
            Estimate(
                label=str(model), value=change["value"], low=change["low"], high=change["high"],
                text=signed(change["value"]), between=interval(change["low"], change["high"]),
                role=role(str(model)), more=(number(before["value"]), number(after["value"])),
            )
        )  # fmt: skip
    if not estimates:
        return None
    estimates.sort(key=lambda estimate: -estimate.value)
    names = str(rows.iloc[0]["item"]).partition("regression of ")[2]
    word = METRIC_WORDS.get(metric, metric)
    caption = (
        f"What {word} loses when {names or 'the covariates'} are regressed out of the features inside the folds (first "
        "repeat), with 95 % intervals; what they share with the label goes with them."
    )
    return forest(estimates, heading=f"change of {word}", zero=0.0, caption=caption, columns=("before", "after"))


def audit_view(results: ResultsFolder) -> AuditView | None:
    """The audit's table, what was refused first; None where no audit was saved."""
    table = results.tables.get("audit")
    if table is None or not len(table):
        return None
    verdicts = table["verdict"].astype(str)
    order = [VERDICTS.get(str(word), -1) for word in verdicts]
    table = table.iloc[np.argsort(order, kind="stable")]
    looked = table[table["verdict"] != "not checked"]
    left = table[table["verdict"] == "not checked"]
    n = {word: int((verdicts == word).sum()) for word in VERDICTS}
    parts = [f"{count(n['passed'], 'check')} passed"]
    if n["floor"]:
        parts.append(f"{n['floor']} gave a floor that a model has to beat")
    parts.append(f"{n['refused']} refused" if n["refused"] else "none was refused")
    sentence = f"Of {count(len(table), 'check')} for leaks {listing(parts)}; {n['not checked']} could not be done."
    return AuditView(sentence, n["refused"] > 0, _audit_table(looked), _audit_table(left) if len(left) else None)


def _audit_table(table: pd.DataFrame) -> Table:
    cells = table[["check", "verdict", "finding"]].fillna("").astype(str).to_numpy()
    rows = []
    for check, verdict, finding in cells:
        meaning = CHECKS[check].meaning if check in CHECKS else check
        rows.append((meaning[:1].upper() + meaning[1:], verdict, finding))
    return Table(("Leak", "Verdict", "Finding"), tuple(rows))
