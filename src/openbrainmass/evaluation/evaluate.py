"""`evaluate`: every model on the same folds, whole people on one side, predictions kept."""

from __future__ import annotations

import pickle
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from joblib import Parallel, delayed
from rich.progress import track

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.folds import Design, check_folds, folds_of, folds_table, make_folds, read_folds
from openbrainmass.evaluation.labelled import Labelled, labelled
from openbrainmass.evaluation.leakage import refuse_prefitted
from openbrainmass.evaluation.prepared import Features, Parts, Prepared, prepare
from openbrainmass.evaluation.protocols import PROTOCOLS
from openbrainmass.evaluation.results import PREDICTION_COLUMNS, Results
from openbrainmass.evaluation.runs import OWN_THRESHOLD, TRANSDUCTIVE, Entry, Run, Side, fit_and_test
from openbrainmass.evaluation.splits import Fold
from openbrainmass.evaluation.statistics import interval_method
from openbrainmass.evaluation.tasks import Task

__all__ = ["PROTOCOLS", "Labelled", "evaluate", "labelled", "prepare"]

LARGEST_MESSAGE = 64 << 20
"""Bytes of a cohort that are still sent to another process; a model that reads a larger one runs in this process."""


def evaluate(
    models: Mapping[str, Any],
    cohort: Cohort,
    task: Task,
    *,
    protocols: Sequence[str] = ("k-fold", "site-held-out"),
    test_cohort: Cohort | None = None,
    test_task: Task | None = None,
    transductive: bool = False,
    n_folds: int = 5,
    n_repeats: int = 10,
    n_splits: int = 100,
    few_shot: Sequence[int] = (1, 2, 5, 10, 20, 50),
    n_draws: int = 20,
    folds: Sequence[Fold] | pd.DataFrame | str | Path | None = None,
    seed: int = 0,
    n_jobs: int = 1,
    site_models: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Results:
    """Fit and test every model on the same folds.

    People are never split: a person's recordings (and people who share a BOLD series under two names, or one of the
    task's groups, such as a family) are on one side, training uses all recordings of the training people, and a test
    person's decision value is the mean over their recordings. Everything that is fitted is fitted on the training
    side, and inner folds get the groups of people (`fit_model`). Estimators get a `Cohort` without the target column.
    A first pipeline step that needs no fitting (scikit-learn's tag ``requires_fit``) is computed once for all folds.

    Parameters
    ----------
    models : mapping of str to estimator
        Each takes a `Cohort` (a sequence of BOLD arrays) and labels 0/1; or values, where the task is a regression.
    cohort : Cohort
        Where folds are made, and what trains for ``external``.
    task : Task
        What is told apart or predicted.
    protocols : sequence of str
        Of `PROTOCOLS`. ``external`` is done whenever there is a `test_cohort`: no label of it is used (zero-shot).
        With a `test_cohort`, ``few-shot`` also gives ``external-few-shot-k``: k of its people of each class join the
        training cohort, and others of it are tested.
    test_cohort : Cohort, optional
        Other people, same atlas.
    test_task : Task, optional
        What is told apart in the test cohort, where that is something else (ADHD after training on autism, say).
    transductive : bool
        Add to ``external`` and ``external-few-shot-k`` a row a model, marked in its name, for which what needs no
        label (a scaler, a tangent reference) is fitted anew to all recordings of the test cohort. Otherwise no
        statistic of it is used.
    n_folds, n_repeats : int
        Of k-fold; paper-split is repeated as often.
    n_splits : int
        Of random-splits.
    few_shot : sequence of int
        Labelled training people of each class.
    n_draws : int
        Repeats of few-shot (each a new partition into folds and a new draw in each fold).
    folds : sequence of Fold, DataFrame or path, optional
        Folds of one's own, a table of them (``results.tables["folds"]``) or a ``folds.tsv``, instead of those of
        `protocols`; they are checked first.
    seed : int
        Of every split and draw.
    n_jobs : int
        Processes; they do not change the result.
    site_models : mapping of str to estimator, optional
        Models that are done for site-held-out only (pretrained anew without each site, say).
    progress : bool
        Show a progress bar.

    Returns
    -------
    Results
        With the table ``folds`` (see `folds_table`).

    Raises
    ------
    OpenBrainMassError
        If the task does not fit the cohort, there are fewer people than folds, nothing is left to evaluate, the test
        cohort has another atlas, folds handed over have people on both sides, or a model returns values that are not
        finite.
    """
    site_models = site_models or {}
    _check(models, site_models, protocols, test_cohort, cohort)
    _check_tasks(task, test_task, test_cohort)
    if transductive and test_cohort is None:
        raise OpenBrainMassError(
            "A transductive row uses a test cohort's recordings, and none was given; give test_cohort."
        )
    target = test_task or task
    own = labelled(cohort, task, [target.target])
    other = labelled(test_cohort, target, [task.target]) if test_cohort is not None else None
    design = Design(int(n_folds), int(n_repeats), int(n_splits), _sizes(few_shot), int(n_draws), int(seed))
    chosen, notes = _chosen_folds(folds, own, other, protocols, design)
    plan = [(prepare(name, model), chosen) for name, model in models.items()]
    at_sites = [fold for fold in chosen if fold.protocol == "site-held-out"]
    plan += [(prepare(name, model), at_sites) for name, model in site_models.items()]
    total = sum(len(_lots(together, n_jobs)) for together in _sharing(plan))
    tables = list(track(_run(plan, own, other, n_jobs, transductive), "evaluating", total, disable=not progress))
    names = [name + ending for name in (*models, *site_models) for ending in ("", TRANSDUCTIVE)]
    predictions = _ordered(tables, names, chosen)
    settings = {
        "task": task.model_dump(mode="json"),
        "test_task": test_task.model_dump(mode="json") if test_task is not None else None,
        "cohort": own.facts,
        "test_cohort": other.facts if other is not None else None,
        "protocols": list(dict.fromkeys(fold.protocol for fold in chosen)),
        "intervals": {fold.protocol: interval_method(fold.protocol) for fold in chosen},
        "transductive": bool(transductive),
        "folds": "handed over" if folds is not None else "made",
        **{name: getattr(design, name) for name in ("n_folds", "n_repeats", "n_splits", "n_draws", "seed")},
        "few_shot": list(design.few_shot),
        "models": {name: _text(model) for name, model in models.items()},
        "site_models": {name: _text(model) for name, model in site_models.items()},
        "notes": notes + _thresholds(tables) + _remarks(predictions, own, other, transductive),
        "software": _software(),
    }
    return Results(predictions, settings, {"folds": folds_table(chosen, own, other)})


def _chosen_folds(
    folds: Sequence[Fold] | pd.DataFrame | str | Path | None,
    own: Labelled,
    other: Labelled | None,
    protocols: Sequence[str],
    design: Design,
) -> tuple[list[Fold], list[str]]:
    """Folds of the protocols, or those handed over, to which ``external`` is added where they have no external ones."""
    if folds is None:
        chosen, notes = make_folds(own, other, protocols, design)
        if not chosen:
            raise OpenBrainMassError(
                f"No protocol can be done on cohort {own.cohort.name}: {' '.join(notes)} Choose another."
            )
        return chosen, notes
    given = folds_of(read_folds(folds), own, other) if isinstance(folds, (pd.DataFrame, str, Path)) else list(folds)
    if not given:
        raise OpenBrainMassError("No fold was handed over; give at least one, or leave folds out and name protocols.")
    check_folds(given, own, other)
    if other is None or any(fold.external for fold in given):
        return given, []
    external, notes = make_folds(own, other, (), design)
    return given + external, notes


def _run(
    plan: list[tuple[Prepared, list[Fold]]], own: Labelled, other: Labelled | None, n_jobs: int, transductive: bool
) -> Iterator[pd.DataFrame]:
    """Models that share features go together, so that only one set of features is in memory at a time."""
    sides = Side(own.people, own.identities), Side(other.people, other.identities) if other is not None else None
    for together in _sharing(plan):
        models = [prepared for prepared, _ in together]
        features = Features(models, own.cohort)
        needs_other = any(fold.external for _, folds in together for fold in folds)
        others = Features(models, other.cohort) if other is not None and needs_other else None
        entries = {
            prepared.name: Entry(prepared, features.of(prepared), others.of(prepared) if others else None)
            for prepared in models
        }
        calls = (
            delayed(fit_and_test)(Run([entries[one.name] for one in lot], folds, *sides, transductive))
            for lot, folds in _lots(together, n_jobs)
        )
        portable = all(_portable(one.features) and _portable(one.other_features) for one in entries.values())
        # One call at a time: after many quick ones joblib would hand several pretrainings to one process.
        yield from Parallel(n_jobs=n_jobs if portable else 1, return_as="generator", batch_size=1)(calls)


def _sharing(plan: list[tuple[Prepared, list[Fold]]]) -> list[list[tuple[Prepared, list[Fold]]]]:
    """Models in sets that are connected by common features."""
    sets: list[list[tuple[Prepared, list[Fold]]]] = []
    for entry in plan:
        near = [one for one in sets if any(entry[0].shares_with(prepared) for prepared, _ in one)]
        joint = [member for one in near for member in one] + [entry]
        sets = [joint if near and one is near[0] else one for one in sets if one not in near[1:]]
        sets += [] if near else [joint]
    return sets


def _lots(together: list[tuple[Prepared, list[Fold]]], n_jobs: int) -> list[tuple[list[Prepared], list[Fold]]]:
    """What is done in one call: all models on a fold, where they share steps; else one model on the folds of a draw."""
    lots: list[tuple[list[Prepared], list[Fold]]] = []
    at: dict[int, list[Prepared]] = {}
    for prepared, folds in together:
        for draw in _draws(folds, n_jobs):
            alone = prepared.kind == "recordings" or draw[0].external or draw[0].unlabelled is not None
            if not alone and id(draw[0]) in at:
                at[id(draw[0])].append(prepared)
                continue
            lots.append(([prepared], draw))
            if not alone:
                at[id(draw[0])] = lots[-1][0]
    return lots


def _draws(folds: list[Fold], n_jobs: int) -> list[list[Fold]]:
    """Folds one by one, those together that share what is learnt without labels: of one few-shot draw, or external."""
    groups: dict[tuple[Any, ...], list[Fold]] = {}
    for fold in folds:
        key: tuple[Any, ...] = (fold.protocol, fold.repeat, fold.fold)
        if fold.external:
            # As many lots as there are processes, each of which learns the same from the training cohort.
            key = ("external", fold.train.tobytes(), fold.repeat % max(n_jobs, 1))
        elif fold.unlabelled is not None:
            key = ("few-shot", fold.repeat, fold.fold, fold.test.tobytes())
        groups.setdefault(key, []).append(fold)
    return list(groups.values())


def _check(
    models: Mapping[str, Any],
    site_models: Mapping[str, Any],
    protocols: Sequence[str],
    test_cohort: Cohort | None,
    cohort: Cohort,
) -> None:
    if not models and not site_models:
        raise OpenBrainMassError("No model was given to evaluate; give at least one, or floors() for the baselines.")
    if twice := sorted(set(models) & set(site_models)):
        raise OpenBrainMassError(f"{twice[0]} is both in models and in site_models; give each model its own name.")
    refuse_prefitted({**models, **site_models})
    if unknown := [protocol for protocol in protocols if protocol not in PROTOCOLS]:
        raise OpenBrainMassError(f"The protocol {unknown[0]!r} is not known; choose from {', '.join(PROTOCOLS)}.")
    if test_cohort is None:
        if "external" in protocols:
            raise OpenBrainMassError("The protocol external needs a cohort of other people; give test_cohort (--test).")
    elif test_cohort.atlas.digest != cohort.atlas.digest:
        one, other = cohort.atlas, test_cohort.atlas
        raise OpenBrainMassError(
            f"The test cohort {test_cohort.name} is of the atlas {other.name} ({other.n_rois} ROIs) but {cohort.name} "
            f"of {one.name} ({one.n_rois}). Extract one of them again with the other's atlas."
        )


def _check_tasks(task: Task, test_task: Task | None, test_cohort: Cohort | None) -> None:
    if test_task is None:
        return
    if test_cohort is None:
        raise OpenBrainMassError(
            f"The task {test_task.name} is for a test cohort, and none was given; give test_cohort."
        )
    if test_task.kind != task.kind:
        raise OpenBrainMassError(
            f"The task {task.name} is a {task.kind} and {test_task.name}, that of the test cohort, a {test_task.kind}; "
            "what a model learns from one it cannot say of the other. Give two of one kind."
        )


def _sizes(few_shot: Sequence[int]) -> tuple[int, ...]:
    if strange := [size for size in few_shot if size < 1 or size != int(size)]:
        raise OpenBrainMassError(
            f"few_shot has the size {strange[0]}, and a whole number of labelled people of each class from 1 on was "
            "expected; without any label, see the protocol external. Leave it out."
        )
    return tuple(int(size) for size in few_shot)


def _thresholds(tables: list[pd.DataFrame]) -> list[str]:
    names = dict.fromkeys(name for table in tables for name in table.loc[table[OWN_THRESHOLD], "model"])
    return [
        f"The threshold of {name} is not 0: it gives some people another class than the sign of their decision value, and "
        "the metrics of classes (accuracy, sensitivity and others) are those of the sign."
        for name in names
    ]


def _remarks(predictions: pd.DataFrame, own: Labelled, other: Labelled | None, transductive: bool) -> list[str]:
    if other is None:
        return []
    remarks = []
    if any(name.startswith("external-few-shot") for name in predictions["protocol"].unique()):
        remarks.append(
            f"In external-few-shot-k, k people of each class of {other.cohort.name} train together with all of "
            f"{own.cohort.name}; external is the same without them."
        )
    if transductive:
        names = set(predictions.loc[predictions["protocol"] == "external", "model"])
        without = sorted(name for name in names if not name.endswith(TRANSDUCTIVE) and name + TRANSDUCTIVE not in names)
        remarks.append(
            f"For models marked{TRANSDUCTIVE}, what needs no label was fitted anew to all recordings of "
            f"{other.cohort.name}; no label of them was used. The others used nothing of them."
        )
        if without:
            remarks.append(f"Nothing of {', '.join(without)} is fitted without labels, so no such row was added.")
    return remarks


def _portable(features: Any) -> bool:
    """Whether features can be sent to another process: unless they are a cohort that is large or cannot travel."""
    if isinstance(features, Parts):
        return all(_portable(part) for part in features.values)
    if not isinstance(features, Cohort):
        return True
    try:
        return len(pickle.dumps(features)) <= LARGEST_MESSAGE
    except Exception:  # whatever it is that a reader holds (locks, open files), it cannot travel
        return False


def _ordered(tables: list[pd.DataFrame], models: list[str], folds: list[Fold]) -> pd.DataFrame:
    table = pd.concat(tables, ignore_index=True)
    for column, order in (("protocol", [fold.protocol for fold in folds]), ("model", models)):
        table[column] = pd.Categorical(table[column], list(dict.fromkeys(order)), ordered=True)
    table = table.sort_values(["protocol", "model", "repeat", "fold", "participant_id"], ignore_index=True)
    return table.astype({"protocol": str, "model": str})[list(PREDICTION_COLUMNS)]


def _text(model: Any) -> str:
    text = " ".join(repr(model).split())
    return text if len(text) <= 500 else f"{text[:500]}..."


def _software() -> dict[str, str]:
    names = ("openbrainmass", "scikit-learn", "numpy", "scipy", "pandas")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}
