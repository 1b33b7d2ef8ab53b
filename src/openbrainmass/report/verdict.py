"""The sentence that a reader takes home: what the model reaches, and whether that beats the plain methods."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from openbrainmass.evaluation.protocols import few_shot_size
from openbrainmass.evaluation.results import Results
from openbrainmass.evaluation.statistics import compare
from openbrainmass.evaluation.tasks import DEFAULT_COVARIATES
from openbrainmass.report.checked import truth
from openbrainmass.report.folders import ResultsFolder
from openbrainmass.report.wording import count, interval, number, p_value, signed


@dataclass(frozen=True)
class Protocol:
    """How a protocol is named and explained to readers."""

    title: str
    asks: str
    where: str


PROTOCOLS = {
    "site-held-out": Protocol(
        "Held-out sites",
        "Each site's people are predicted by models fitted on the other sites only: what a new hospital would see.",
        "at sites whose labels it was never given",
    ),
    "k-fold": Protocol(
        "Repeated k-fold by person",
        "People are split into folds at random, so the same scanners are on both sides; nobody is on both.",
        "on people whose labels it was never given, from the same sites",
    ),
    "cohort-held-out": Protocol(
        "Held-out datasets",
        "Each dataset's people are predicted by models fitted on the other datasets only.",
        "in datasets whose labels it was never given",
    ),
    "external": Protocol(
        "Zero-shot: another cohort",
        "Models fitted on the whole cohort predict another one, of which no label is used.",
        "on another cohort, with none of its labels used",
    ),
    "random-splits": Protocol(
        "Repeated random splits by person",
        "A random part of the people is tested, again and again; nobody is on both sides of a split.",
        "on people whose labels it was never given, from the same sites",
    ),
    "paper-split": Protocol(
        "70/15/15 split by person",
        "The split of the BrainMass paper: one random draw of people, the 15 % for validation left unused.",
        "on 15 % of the people, whose labels it was never given",
    ),
}
"""Protocols in the order of how much each says about new people: the first one saved is the headline."""

BASELINES = ("covariates", "edges", "tangent", "partial", "brainnetcnn", "brain network transformer", "meanmlp")
ALPHA = 0.05


@dataclass(frozen=True)
class Scale:
    """The metric that models are compared by: its name on the page, its value without any skill, and what that is."""

    metric: str
    title: str
    no_skill: float
    line: str


SCALES = {
    "classification": Scale("auc", "AUC", 0.5, "chance"),
    "regression": Scale("r2", "R²", 0.0, "what the mean of the tested people themselves would give"),
}
"""By kind of task."""


def scale(results: ResultsFolder) -> Scale:
    """The metric that the models of a results folder are compared by."""
    return SCALES.get(results.kind, SCALES["classification"])


def role(model: str) -> str:
    """What a model is in the comparison: ``own``, ``baseline``, or ``control`` (no skill is expected of it)."""
    name = model.lower()
    if name.startswith("chance") or name == "mean" or "shuffled" in name:
        return "control"
    alone = name.partition(" + ")[0] in DEFAULT_COVARIATES
    return "baseline" if alone or name.startswith(BASELINES) or "untrained" in name else "own"


def protocol_words(protocol: str) -> Protocol:
    """Words for a protocol, also for one that this version does not know."""
    return PROTOCOLS.get(protocol) or Protocol(protocol.capitalize(), "", f"in the protocol {protocol}")


def protocols(results: ResultsFolder) -> list[str]:
    """Protocols that were saved, the most telling first; few-shot is shown apart."""
    found = [str(name) for name in results.metrics["protocol"].unique() if few_shot_size(str(name)) is None]
    known = [name for name in PROTOCOLS if name in found]
    return known + [name for name in found if name not in known]


def scores(results: ResultsFolder, protocol: str) -> pd.DataFrame:
    """The models' scores, the best first: ``model value low high n_people saw_test_people role order``."""
    table = results.metrics
    table = table[(table["protocol"] == protocol) & (table["metric"] == scale(results).metric)].copy()
    table["order"] = range(len(table))
    table["role"] = [role(str(model)) for model in table["model"]]
    table["saw_test_people"] = truth(table["saw_test_people"]) if "saw_test_people" in table else False
    return table.sort_values("value", ascending=False, kind="stable").reset_index(drop=True)


@dataclass(frozen=True)
class Verdict:
    """The summary of one results folder.

    Attributes
    ----------
    protocol, model : str
        The protocol and the model it speaks of.
    reached : str
        What the model reaches.
    judgement, rival : str
        The judgement in a few words, and the baseline it is about; empty where there is nothing to compare.
    evidence : str
        What the judgement rests on, or why there is none.
    remarks : tuple of (str, bool)
        Further sentences, and whether each is a warning.
    """

    protocol: str
    model: str
    reached: str
    judgement: str
    rival: str
    evidence: str
    remarks: tuple[tuple[str, bool], ...]


def verdict(results: ResultsFolder) -> Verdict | None:
    """Say in one sentence what was found, from the saved metrics and comparisons; None without a score."""
    for protocol in protocols(results):
        table = scores(results, protocol)
        if len(table):
            break
    else:
        return None
    own = table[table["role"] == "own"]
    baselines = table[table["role"] == "baseline"]
    fair = own[~own["saw_test_people"]]
    candidates = fair if len(fair) else own
    if len(candidates):
        # The first one named, not the best one found: a choice made after seeing the results flatters.
        best = candidates.sort_values("order").iloc[0]
        judged = _judged(results, protocol, best, baselines)
    else:
        best = (baselines if len(baselines) else table).iloc[0]
        judged = ("", "", "No pretrained model is among these results.")
    remarks = [*_caution(best, candidates, own), *_floor_remarks(results, table, best)]
    remarks += power_remark(results, protocol, str(best["model"]), judged[1], best)
    remarks += _looks_remark(results)
    return Verdict(protocol, str(best["model"]), _reached(results, protocol, best), *judged, tuple(remarks))


def _reached(results: ResultsFolder, protocol: str, row: pd.Series) -> str:
    between = interval(row["low"], row["high"])
    # The interval is of the headline metric, so no other metric comes between the two.
    details = [f"95 % interval {between}"] if between else []
    told = contrast(results.task_of(protocol))
    chance = row["low"] <= scale(results).no_skill <= row["high"]
    if results.kind == "regression":
        told = f"predicts {results.task.get('target') or 'the target'}"
        details += _regression_details(results, protocol, str(row["model"]))
    else:
        told = f"tells {told}" if told else "predicts the target"
    if "n_people" in row and np.isfinite(row["n_people"]):
        details.append(count(row["n_people"], "person", "people"))
    return (
        f"{told} with {scale(results).title} {number(row['value'])} "
        f"({'; '.join(details)}) {protocol_words(protocol).where}"
        + (", which chance alone could give." if chance else ".")
    )


def _regression_details(results: ResultsFolder, protocol: str, model: str) -> list[str]:
    table = results.metrics
    table = table[(table["protocol"] == protocol) & (table["model"] == model)].set_index("metric")["value"]
    words = {"r": "correlation", "mae": "mean absolute error"}
    return [f"{words[name]} {number(float(table[name]))}" for name in words if name in table]


def contrast(task: Mapping[str, Any]) -> str:
    """The two classes of a task, ``autism from control``; empty where its settings do not tell."""
    positive, negative = (str(task.get(key) or "") for key in ("positive_name", "negative_name"))
    return f"{positive} from {negative}" if positive and negative else ""


def _judged(results: ResultsFolder, protocol: str, best: pd.Series, baselines: pd.DataFrame) -> tuple[str, str, str]:
    """The judgement, the rival, and the evidence."""
    if not len(baselines):
        return "", "", "No baseline is among these results, so how good that is remains open."
    rival = baselines.iloc[0]
    gap, low, high, p = difference(results, protocol, str(best["model"]), str(rival["model"]))
    certain = p < ALPHA if np.isfinite(p) else low > 0 or high < 0
    word = "better than" if gap > 0 and certain else "worse than" if gap < 0 and certain else "not better than"
    told = f"difference {signed(gap)}"
    if between := interval(low, high):
        told += f", 95 % interval {between}"
    if np.isfinite(p):
        told += f", corrected p {p_value(p)}"
    return word, str(rival["model"]), f"({number(rival['value'])}): {told}."


def difference(results: ResultsFolder, protocol: str, model: str, reference: str) -> tuple[float, float, float, float]:
    """Difference of two models, its interval and corrected p: as saved, else tested from the saved predictions."""
    table = results.comparisons
    if "metric" in table:
        table = table[(table["protocol"] == protocol) & (table["metric"] == scale(results).metric)]
        for sign, (one, other) in ((1, (model, reference)), (-1, (reference, model))):
            rows = table[(table["model"] == one) & (table["reference"] == other)]
            if len(rows):
                return _signed(rows.iloc[0], sign)
    rows = results.predictions
    contenders = rows["model"].map(lambda name: role(str(name)) == "own" or name == reference)
    rows = rows[(rows["protocol"] == protocol) & contenders]
    rows = rows.assign(saw_test_people=truth(rows["saw_test_people"]))
    tested = compare(Results(rows, results.settings), reference=reference, metric=scale(results).metric)
    return _signed(tested[tested["model"] == model].iloc[0], 1)


def _signed(row: pd.Series, sign: int) -> tuple[float, float, float, float]:
    low, high = sorted((sign * float(row["low"]), sign * float(row["high"])))
    return sign * float(row["difference"]), low, high, float(row["p_corrected"])


def _caution(best: pd.Series, candidates: pd.DataFrame, own: pd.DataFrame) -> list[tuple[str, bool]]:
    remarks = []
    if best["saw_test_people"]:
        told = "Its pretraining had read scans of the test people, without their labels; this can flatter it."
        remarks.append((told, True))
    elif own["saw_test_people"].any():
        told = (
            f"{count(own['saw_test_people'].sum(), 'model')} marked † had read scans of the test people in "
            "pretraining, without labels; this verdict leaves such models out."
        )
        remarks.append((told, False))
    better = candidates[candidates["value"] > best["value"]]
    if len(better):
        other = better.iloc[0]
        told = f"{other['model']} reaches {number(other['value'])}; choosing it after seeing that would flatter it."
        remarks.append((told, False))
    return remarks


def power_remark(
    results: ResultsFolder, protocol: str, model: str, rival: str, best: pd.Series
) -> list[tuple[str, bool]]:
    """What these people could have shown: the smallest difference that would have been found four times in five."""
    table = results.comparisons
    if "smallest_difference" not in table or not rival:
        return []
    pairs = (table["model"] == model) & (table["reference"] == rival)
    pairs |= (table["model"] == rival) & (table["reference"] == model)
    rows = table[pairs & (table["protocol"] == protocol) & (table["metric"] == scale(results).metric)]
    if not len(rows) or not np.isfinite(rows.iloc[0]["smallest_difference"]):
        return []
    smallest = number(rows.iloc[0]["smallest_difference"])
    people = f"With {count(best['n_people'], 'person', 'people')}" if "n_people" in best else "With these people"
    told = f"{people}, a difference in {scale(results).title} below {smallest} between these two could hardly have been"
    return [(f"{told} shown (power 80 %, one comparison at 0.05).", False)]


def _looks_remark(results: ResultsFolder) -> list[tuple[str, bool]]:
    """How often the test people were looked at, as the audit found it."""
    table = results.tables.get("audit", pd.DataFrame(columns=["check", "verdict", "finding"]))
    rows = table[(table["check"] == "repeated-looks") & table["verdict"].isin(["floor", "refused"])]
    return [(str(finding), True) for finding in rows["finding"]]


def _floor_remarks(results: ResultsFolder, table: pd.DataFrame, best: pd.Series) -> list[tuple[str, bool]]:
    remarks = []
    for row in table[table["model"].str.lower().str.contains("shuffled")].to_dict("records"):
        between = interval(row["low"], row["high"])
        told = f"{row['model']}: {scale(results).title} {number(row['value'])}" + (f" ({between})" if between else "")
        if row["low"] > scale(results).no_skill:
            told += ", above chance. One permutation can stray; if others do too, something leaks and no row holds."
            remarks.append((told, True))
        else:
            remarks.append((f"{told}, not above chance, as it should be.", False))
    covariates = table[table["model"].str.lower().str.startswith("covariates")]
    if len(covariates) and covariates.iloc[0]["value"] >= best["value"] and best["role"] == "own":
        told = f"Covariates without any brain data reach as much ({number(covariates.iloc[0]['value'])})."
        remarks.append((told, True))
    return remarks
