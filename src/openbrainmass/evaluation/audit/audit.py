"""`audit`: every known leak by name, with what was found or what must be given to look for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.durable import read_tsv
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.audit.checks import CHECKS, Finding, some, verdict_table
from openbrainmass.evaluation.audit.copies import find_copies
from openbrainmass.evaluation.audit.features import audit_features
from openbrainmass.evaluation.audit.folds import audit_folds, external_protocols, fold_sides, open_folds
from openbrainmass.evaluation.audit.labels import audit_labels, people_table
from openbrainmass.evaluation.audit.ledger import audit_looks
from openbrainmass.evaluation.audit.pretraining import audit_pretraining
from openbrainmass.evaluation.splits import Fold
from openbrainmass.evaluation.tasks import Task


def audit(
    cohort: Cohort,
    task: Task,
    *,
    folds: str | Path | pd.DataFrame | Sequence[Fold] | None = None,
    features: str | Path | pd.DataFrame | None = None,
    models: Mapping[str, Any] | None = None,
    seen: Any = None,
    pretrained_on: Cohort | None = None,
    test_cohort: Cohort | None = None,
    test_task: Task | None = None,
    store: str | Path | None = None,
    test_store: str | Path | None = None,
    findings: Sequence[Finding] = (),
) -> pd.DataFrame:
    """Look for every leak in `CHECKS` that can be looked for with what is given.

    Parameters
    ----------
    cohort : Cohort
        Where models are trained, and tested unless there is a `test_cohort`.
    task : Task
    folds : path, DataFrame or sequence of Fold, optional
        A ``folds.tsv`` of anybody's (``protocol repeat fold participant_id side``), or folds.
    features : path or DataFrame, optional
        A table of features that was made elsewhere (``recording_id`` or ``participant_id``, then numbers).
    models : mapping of str to estimator, optional
        Looked through for parts that are fitted already.
    seen : object or sequence of them, optional
        A checkpoint, or what else tells by ``seen_identities`` whom it has met; people whom any of several has met count.
    pretrained_on : Cohort, optional
        The pretraining corpus; the test scans are looked for in it.
    test_cohort : Cohort, optional
        Another cohort that is tested on; it must share nobody and no scan with the first.
    test_task : Task, optional
        Its label, where that is another one of the same kind.
    store : path, optional
        Store of the cohort, beside which the ledger of looks at its people lies.
    test_store : path, optional
        Store of the test cohort.
    findings : sequence of Finding, optional
        Of `audit_procedure` or `audit_statistics`, to stand in the same table.

    Returns
    -------
    DataFrame
        ``check verdict finding``, one row for each of `CHECKS`; verdict is "passed", "refused", "floor" or
        "not checked".

    Raises
    ------
    OpenBrainMassError
        If folds or features cannot be matched to the cohort, or something of a test cohort is given without it.
    """
    tested = test_cohort if test_cohort is not None else cohort
    asked = test_task or task
    folds = open_folds(folds) if folds is not None else None
    if test_cohort is None:
        _refuse_without_test_cohort(folds, test_task, test_store)
    _refuse_other_kind(task, asked)
    found = [*findings, *audit_labels(cohort, task), *audit_folds(cohort, task, folds)]
    if test_cohort is not None:
        found += [
            one._replace(finding=f"In {test_cohort.name}: {one.finding}") for one in audit_labels(test_cohort, asked)
        ]
        found += _between(_trained(cohort, task, folds), test_cohort)
        if folds is not None:
            found += audit_folds(test_cohort, asked, folds, wanted=lambda protocol: "external-" in protocol)
    if features is not None:
        table = features if isinstance(features, pd.DataFrame) else read_tsv(features)
        found += audit_features(table, cohort, task)
    found += audit_pretraining(tested, seen=seen, pretrained_on=pretrained_on, models=models)
    for place, people, of in ((store, cohort, task), (test_store, tested, asked)):
        if place is not None and of.kind == "classification":
            y = people_table(people, of)[1]
            found.append(audit_looks(place, of.name, int(np.sum(y == 1)), int(np.sum(y == 0))))
    return verdict_table(found)


def _refuse_without_test_cohort(
    folds: pd.DataFrame | Sequence[Fold] | None, test_task: Task | None, test_store: str | Path | None
) -> None:
    external = external_protocols(folds) if folds is not None else []
    given = [
        *([f"The task {test_task.name} is"] if test_task is not None else []),
        *([f"The store {test_store} is"] if test_store is not None else []),
        *([f"Folds ({some(external)}) are"] if external else []),
    ]
    if given:
        raise OpenBrainMassError(f"{given[0]} for a test cohort, and none was given. Give test_cohort (--test).")


def _refuse_other_kind(task: Task, asked: Task) -> None:
    if asked.kind != task.kind:
        raise OpenBrainMassError(
            f"The task {task.name} is a {task.kind} and {asked.name}, that of the test cohort, a {asked.kind}; what a model "
            "learns from one it cannot say of the other. Give two of one kind."
        )


def _trained(cohort: Cohort, task: Task, folds: pd.DataFrame | Sequence[Fold] | None) -> Cohort:
    """Who trains for the test of another cohort: all, unless the folds say that some are left out."""
    if folds is None:
        return cohort
    external = fold_sides(folds, cohort, task, lambda protocol: protocol == "external", ("train",))
    return cohort.select(external[0].train) if external else cohort


def _between(cohort: Cohort, test_cohort: Cohort) -> list[Finding]:
    """People and scans of the test cohort that are in the training cohort, too."""
    if cohort.atlas.digest != test_cohort.atlas.digest:
        raise OpenBrainMassError(
            f"Cohort {test_cohort.name} is of the atlas {test_cohort.atlas.name}, {cohort.name} of {cohort.atlas.name}; "
            "their scans cannot be compared. Extract one of them again with the other's atlas."
        )
    people = test_cohort.recordings["participant_id"].to_numpy(str)
    trained = cohort.hashes()
    both = sorted({str(p) for p, own in zip(people, test_cohort.identities(), strict=True) if own & trained})
    if both:
        told = f"{len(both)} of {len(set(people))} people of {test_cohort.name} are in {cohort.name}: {some(both)}."
        found = [Finding("test-is-train", "refused", told)]
    else:
        found = [Finding("test-is-train", "passed", f"Nobody of {test_cohort.name} is in {cohort.name}.")]
    names = [one.recordings["recording_id"].to_numpy(str) for one in (cohort, test_cohort)]
    pairs: dict[str, list[str]] = {}
    for copy in find_copies(cohort, test_cohort):
        told = f"{names[0][copy.first]} of {cohort.name} is {names[1][copy.second]} of {test_cohort.name} ({copy.told})"
        pairs.setdefault(copy.check, []).append(told)
    return [*found, *(Finding(check, "refused", f"{some(told)}.") for check, told in pairs.items())]


def check_list() -> str:
    """Every check with its meaning, one a line."""
    return "\n".join(f"{name:<26} {check.meaning}" for name, check in CHECKS.items())
