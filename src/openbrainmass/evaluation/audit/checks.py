"""The leaks that an audit knows by name, and the table of its verdicts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import pandas as pd

from openbrainmass.errors import OpenBrainMassError

VERDICTS = ("not checked", "passed", "floor", "refused")
"""What a check may say, from the least to the most grave; where one has several findings the gravest holds."""


class Check(NamedTuple):
    """A leak: what it is, and what an audit must be given to look for it."""

    meaning: str
    needs: str


_FOLDS, _FEATURES = "Give the folds (--folds).", "Give the features (--features)."
_PROCEDURE = "Give the analysis as a function to audit_procedure."

CHECKS: Mapping[str, Check] = {
    "test-is-train": Check("the people tested are those trained on", _FOLDS),
    "tuned-on-test": Check("hyper-parameters or models chosen with the labels of test people", _PROCEDURE),
    "threshold-on-test": Check("the threshold of the classes chosen with the labels of test people", _PROCEDURE),
    "epoch-on-test": Check("the epoch or stopping point chosen with the labels of test people", _PROCEDURE),
    "statistics-of-test": Check("scores of test people that depend on other test people", _PROCEDURE),
    "scaler-before-split": Check("features standardised over training and test people together", _FEATURES),
    "pca-before-split": Check("components fitted on training and test people together", _FEATURES),
    "imputation-before-split": Check("gaps filled with the mean of training and test people together", _FEATURES),
    "combat-before-split": Check("site effects removed over training and test people together", _FEATURES),
    "combat-keeps-label": Check("site effects removed with the label, also of test people, in the model", _FEATURES),
    "regression-before-split": Check("covariates regressed out over training and test people together", _FEATURES),
    "selection-before-split": Check("features chosen by the labels of training and test people together", _FEATURES),
    "duplicates": Check("the same scan under two ids", "Give the folds (--folds), or scans that can be read."),
    "near-duplicates": Check("an altered copy of a scan under another id", "Give scans that can be read."),
    "windows-across-folds": Check("windows of one scan under several ids", "Give scans that can be read."),
    "views-across-folds": Check("pseudo-FC views of one scan under several ids", "Give scans that can be read."),
    "sessions-across-folds": Check("sessions or runs of one person on both sides of a fold", _FOLDS),
    "twins-across-folds": Check("members of one family on both sides of a fold", _FOLDS),
    "site-on-both-sides": Check("a site on both sides of a fold that claims generalisation to new sites", _FOLDS),
    "pretraining-people": Check("people who are tested were in pretraining", "Give the checkpoint (--checkpoint)."),
    "pretraining-scans": Check(
        "scans that are tested were in pretraining under other ids", "Give the pretraining store (--pretrained-on)."
    ),
    "pretraining-statistics": Check(
        "a fitted part inside the model whose people nobody knows, or who are tested", "Give the models."
    ),
    "label-as-feature": Check("a covariate or feature that is the label under another name", _FEATURES),
    "derived-score": Check("a covariate or feature that was made from the label", _FEATURES),
    "file-name-spells-label": Check("ids or file names that tell the label", "Give a task."),
    "site-predicts-label": Check("what the site alone tells of the label", "Add the column of sites."),
    "length-predicts-label": Check("what the number of volumes alone tells of the label", "Add the column n_volumes."),
    "tr-predicts-label": Check("what the repetition time alone tells of the label", "Add the column tr."),
    "motion-predicts-label": Check("what head motion alone tells of the label", "Add the column mean_fd."),
    "repeated-looks": Check("how often the test people have been looked at", "Give the store of the test people."),
}
"""Every leak by its name, in the order of the table."""

AUDIT_COLUMNS = ("check", "verdict", "finding")
"""Columns of the table of verdicts."""


class Finding(NamedTuple):
    """What one check found."""

    check: str
    verdict: str
    finding: str


def verdict_table(findings: Iterable[Finding]) -> pd.DataFrame:
    """One row for each of `CHECKS`, in their order; of several findings of a check the gravest are told.

    Parameters
    ----------
    findings : iterable of Finding
        Checks without any are "not checked", and what they need is said.

    Returns
    -------
    DataFrame
        ``check verdict finding``.
    """
    found: dict[str, list[Finding]] = {name: [] for name in CHECKS}
    for finding in findings:
        found[finding.check].append(finding)
    rows = []
    for name, own in found.items():
        gravest = max((one.verdict for one in own), key=VERDICTS.index, default="not checked")
        told = [one.finding for one in own if one.verdict == gravest] or [CHECKS[name].needs]
        rows.append((name, gravest, " ".join(dict.fromkeys(told))))
    return pd.DataFrame(rows, columns=list(AUDIT_COLUMNS))


def refuse(table: pd.DataFrame) -> None:
    """Stop if anything was refused.

    Parameters
    ----------
    table : DataFrame
        As from `verdict_table`.

    Raises
    ------
    OpenBrainMassError
        With the names of the leaks that were found.
    """
    refused = table[table["verdict"] == "refused"]
    if len(refused):
        raise OpenBrainMassError(
            f"The audit refuses {len(refused)} of {len(table)} checks ({', '.join(refused['check'])}). Mend what its table "
            "says of them and audit again."
        )


def some(names: Iterable[object], most: int = 3) -> str:
    """The first few of some names, and how many there are beyond them."""
    listed = [str(name) for name in names]
    rest = len(listed) - most
    return ", ".join(listed[:most]) + (f" and {rest} more" if rest > 0 else "")
