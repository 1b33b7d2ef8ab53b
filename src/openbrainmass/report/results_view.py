"""The results sections: the headline table, every protocol with its baselines, the curves and the cards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score

from openbrainmass.report.confounds_view import AuditView, ConfoundsView, audit_view, confounds_view
from openbrainmass.report.curves_view import CurveView, coverage_view, few_shot_views
from openbrainmass.report.folders import ResultsFolder
from openbrainmass.report.tables import Cell, Estimate, Forest, Table, forest
from openbrainmass.report.verdict import Verdict, protocol_words, protocols, role, scale, scores, verdict
from openbrainmass.report.wording import DASH, count, interval, listing, number, short_p, signed

METRICS = {
    "auc_site_mean": "mean of the sites' AUC",
    "balanced_accuracy": "balanced accuracy",
    "accuracy": "accuracy",
    "sensitivity": "sensitivity",
    "specificity": "specificity",
    "r": "correlation",
    "mae": "mean absolute error",
}
FURTHER_METRICS = {
    "ppv": "positive predictive value",
    "npv": "negative predictive value",
    "f1": "F1",
    "brier": "Brier score",
    "ece": "calibration error",
}
TESTS = {
    "corrected resampled t": "corrected resampled t-test",
    "DeLong": "DeLong's test",
    "DeLong, corrected for overlap": "DeLong's test, corrected for the overlap of training sets",
}


@dataclass(frozen=True)
class ProtocolView:
    """One protocol: its forest plot, all metrics, paired comparisons, and the sites."""

    title: str
    asks: str
    forest: Forest
    metrics: Table
    further: Table | None
    comparisons: Forest | None
    sites: Forest | None
    saw: bool


@dataclass(frozen=True)
class ResultsView:
    """Everything that one results folder has to show."""

    name: str
    facts: str
    verdict: Verdict | None
    headline: Forest | None
    headline_saw: bool
    protocols: tuple[ProtocolView, ...]
    few_shot: tuple[CurveView, ...]
    coverage: CurveView | None
    confounds: ConfoundsView | None
    audit: AuditView | None
    no_skill: str
    notes: tuple[str, ...]


def results_view(results: ResultsFolder) -> ResultsView:
    """All that the page shows of one results folder."""
    said = verdict(results)
    leading = said.protocol if said else None
    shown = tuple(_protocol_view(results, name, said) for name in protocols(results) if len(scores(results, name)))
    return ResultsView(
        name=results.name,
        facts=_facts(results),
        verdict=said,
        headline=_score_forest(results, said.protocol, with_balance=True) if said else None,
        headline_saw=bool(said and scores(results, said.protocol)["saw_test_people"].any()),
        protocols=shown,
        few_shot=few_shot_views(results),
        coverage=coverage_view(results, leading),
        confounds=confounds_view(results, leading, said.model if said else ""),
        audit=audit_view(results),
        no_skill=_no_skill(results, leading),
        notes=tuple(str(note) for note in results.settings.get("notes") or ()),
    )


def _class_names(task: Mapping[str, Any]) -> tuple[str, str]:
    return str(task.get("positive_name") or "positive"), str(task.get("negative_name") or "negative")


def _no_skill(results: ResultsFolder, protocol: str | None) -> str:
    """What the score of the headline means."""
    if results.kind == "regression":
        return (
            "R² is the share of the variance among the tested people that is predicted; 0 is what their own mean would "
            "give, below 0 is worse than that."
        )
    positive, negative = _class_names(results.task_of(protocol))
    return (
        f"AUC is the chance that a randomly drawn {positive} person is ranked above a randomly drawn {negative} one; "
        "0.5 is chance."
    )


def _facts(results: ResultsFolder) -> str:
    """Who was tested; people of another cohort by themselves, since they may have been told apart by something else."""
    external = results.predictions["protocol"].astype(str).str.startswith("external")
    told = [
        start + _people(results, rows.drop_duplicates("participant_id"), str(rows["protocol"].iloc[0]))
        for start, rows in (("", results.predictions[~external]), ("Another cohort: ", results.predictions[external]))
        if len(rows)
    ]
    return " ".join(told)


def _people(results: ResultsFolder, people: pd.DataFrame, protocol: str) -> str:
    named = people.loc[people["site"] != "", "site"]
    sites = f" from {count(named.nunique(), 'site')}" if len(named) else ""
    task = results.task_of(protocol)
    if results.kind == "regression":
        spread = f"{number(people['y_true'].mean(), 1)} ± {number(people['y_true'].std(), 1)}"
        return f"{count(len(people), 'person', 'people')}{sites}; {task.get('target', 'target')} {spread}."
    n_positive = int((people["y_true"] == 1).sum())
    positive, negative = _class_names(task)
    classes = f"{n_positive:,} {positive}, {len(people) - n_positive:,} {negative}"
    return f"{count(len(people), 'person', 'people')}{sites}: {classes}."


def _score_forest(results: ResultsFolder, protocol: str, *, with_balance: bool) -> Forest:
    table = scores(results, protocol)
    balance = _values(results, protocol, "balanced_accuracy")
    extra = with_balance and bool(balance)
    estimates = [
        Estimate(
            label=str(row["model"]),
            value=row["value"], low=row["low"], high=row["high"],
            text=number(row["value"]), between=interval(row["low"], row["high"]),
            role=row["role"], saw=bool(row["saw_test_people"]),
            more=(number(balance.get(row["model"], np.nan)),) if extra else (),
        )
        for row in table.to_dict("records")
    ]  # fmt: skip
    title = protocol_words(protocol).title
    unit = scale(results)
    caption = f"{title}: {unit.title} of every model on the same people, with 95 % intervals; dashed line: {unit.line}."
    columns = ("balanced accuracy",) if extra else ()
    heading = f"{unit.title} (95 % interval)"
    return forest(estimates, heading=heading, zero=unit.no_skill, caption=caption, columns=columns)


def _values(results: ResultsFolder, protocol: str, metric: str) -> dict[str, float]:
    table = results.metrics
    table = table[(table["protocol"] == protocol) & (table["metric"] == metric)]
    return dict(zip(table["model"], table["value"], strict=True))


def _protocol_view(results: ResultsFolder, protocol: str, said: Verdict | None) -> ProtocolView:
    words = protocol_words(protocol)
    table = scores(results, protocol)
    return ProtocolView(
        title=words.title,
        asks=words.asks,
        forest=_score_forest(results, protocol, with_balance=False),
        metrics=_metrics_table(results, protocol, list(table["model"]), METRICS),
        further=_further_table(results, protocol, list(table["model"])),
        comparisons=_comparison_forest(results, protocol),
        sites=_site_forest(results, protocol, _shown_model(table, said)),
        saw=bool(table["saw_test_people"].any()),
    )


def _shown_model(table: pd.DataFrame, said: Verdict | None) -> str:
    return said.model if said and said.model in set(table["model"]) else str(table.iloc[0]["model"])


def _further_table(results: ResultsFolder, protocol: str, models: Sequence[str]) -> Table | None:
    table = _metrics_table(results, protocol, models, FURTHER_METRICS)
    return table if len(table.columns) > 1 else None


def _metrics_table(results: ResultsFolder, protocol: str, models: Sequence[str], words: Mapping[str, str]) -> Table:
    """Metrics but the one that the forest plot above it shows."""
    table = results.metrics[(results.metrics["protocol"] == protocol) & results.metrics["value"].notna()]
    found = [metric for metric in words if metric in set(table["metric"])]
    cells = {(row["model"], row["metric"]): row for row in table.to_dict("records")}
    rows = []
    for model in models:
        found_cells = [cells.get((model, metric)) for metric in found]
        rows.append((str(model), *(_cell(cell) for cell in found_cells)))
    columns = ("Model", *(words[metric] for metric in found))
    own = "" if results.kind == "regression" else " at the models' own threshold"
    told = f"Other metrics{own}" if words is METRICS else "Predictive values; and how true probabilities are (0: best)"
    caption = f"{told}, with 95 % intervals."
    return Table(columns, tuple(rows), frozenset(range(1, len(columns))), caption)


def _cell(row: Mapping[Any, Any] | None) -> Cell:
    return Cell(DASH) if row is None else Cell(number(row["value"]), interval(row["low"], row["high"]))


def _comparison_forest(results: ResultsFolder, protocol: str) -> Forest | None:
    table = results.comparisons
    if "metric" not in table:
        return None
    table = table[(table["protocol"] == protocol) & (table["metric"] == scale(results).metric)]
    if not len(table):
        return None
    # Either every model is compared with one reference, or one model with every other: the row names what varies.
    fixed = table["model"].nunique() == 1 and table["reference"].nunique() > 1
    varied = "reference" if fixed else "model"
    estimates = [
        Estimate(
            label=str(row[varied]),
            value=row["difference"], low=row["low"], high=row["high"],
            text=signed(row["difference"]), between=interval(row["low"], row["high"]),
            role=role(str(row[varied])), more=(short_p(row["p_corrected"]),),
        )
        for row in table.sort_values("difference", ascending=False).to_dict("records")
    ]  # fmt: skip
    one = str(table["model" if fixed else "reference"].iloc[0])
    which = f"{one} minus each other model" if fixed else f"each model minus {one}"
    tests = listing([TESTS.get(str(test), str(test)) for test in table["test"].dropna().unique()])
    caption = f"Paired differences of {scale(results).title}: {which}, on the same people and folds "
    caption += f"({tests}; p corrected by Holm)."
    first = "Compared with" if fixed else "Model"
    return forest(
        estimates,
        heading="difference (95 % interval)",
        zero=0.0,
        caption=caption,
        columns=("corrected p",),
        first=first,
    )


def _site_forest(results: ResultsFolder, protocol: str, best: str) -> Forest | None:
    """AUC of one model at each held-out site, from the saved predictions."""
    if protocol != "site-held-out" or results.kind == "regression":
        return None
    rows = results.predictions
    rows = rows[(rows["protocol"] == protocol) & (rows["model"] == best)]
    estimates = []
    for site, group in rows.groupby("site"):
        if group["y_true"].nunique() == 2:
            auc = float(roc_auc_score(y_true=group["y_true"], y_score=group["y_score"]))
            half = 1.96 * _auc_error(auc, int((group["y_true"] == 1).sum()), int((group["y_true"] == 0).sum()))
            low, high = max(0.0, auc - half), min(1.0, auc + half)
            estimates.append(
                Estimate(str(site), auc, low, high, number(auc), interval(low, high), "own", more=(str(len(group)),))
            )
    if len(estimates) < 2:
        return None
    estimates.sort(key=lambda estimate: -estimate.value)
    caption = f"The model {best} at each site when that site is held out (intervals by Hanley and McNeil's formula)."
    return forest(
        estimates, heading="AUC (95 % interval)", zero=0.5, caption=caption, columns=("people",), first="Held-out site"
    )


def _auc_error(auc: float, n_positive: int, n_negative: int) -> float:
    """Standard error of one AUC (Hanley and McNeil, Radiology 1982)."""
    q1, q2 = auc / (2 - auc), 2 * auc**2 / (1 + auc)
    spread = auc * (1 - auc) + (n_positive - 1) * (q1 - auc**2) + (n_negative - 1) * (q2 - auc**2)
    return float(np.sqrt(max(0.0, spread) / (n_positive * n_negative)))
