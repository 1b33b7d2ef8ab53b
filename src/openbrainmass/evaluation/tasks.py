"""`Task`: which column is predicted, which of its values mean what, of which dataset, and who is left out."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from pydantic import field_validator, model_validator

from openbrainmass.cohort.catalogue import dataset_card, dataset_names
from openbrainmass.cohort.cohort import Cohort
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.settings import Settings

CONTROL_NAMES = frozenset(
    {"control", "controls", "healthy", "healthy control", "healthy-control", "hc", "con", "cn", "nc", "td", "tdc",
     "ctl", "ctrl", "neurotypical", "typical", "none", "no", "false", "0"}
)  # fmt: skip
"""Values, in lower case, that `Task.from_cohort` takes for the comparison group."""

MISSING_CODES = ("n/a", "na", "nan", "-9999", "-999", "pending")
"""Values, in lower case, that mean "not known" in the tables of public datasets."""

DEFAULT_COVARIATES = ("age", "sex", "site", "mean_fd", "n_volumes", "tr")
"""Columns of the covariates-only baseline where a task names none."""

# Fewer different whole numbers can be codes of groups, which have no order.
_MANY_VALUES = 10
_MIN_VALUES = 3
_ROOM = "openbrainmass.evaluation"
_NAME_WIDTH = 18
_KEY_WIDTH = 15
_LINE_WIDTH = 110


def code(value: Any) -> str:
    """A value of a table as text, so that ``1``, ``1.0`` and ``"1"`` are one code; missing is the empty string."""
    if value is None or (isinstance(value, float) and np.isnan(value)) or value is pd.NA:
        return ""
    if isinstance(value, (float, np.floating)) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()


def is_known(y: np.ndarray) -> np.ndarray:
    """Which recordings take part: those that `Task.labels` gives a class or a number.

    Parameters
    ----------
    y : ndarray (n_recordings,)
        Classes (int, -1 where not known or excluded) or numbers (float, NaN there).

    Returns
    -------
    ndarray (n_recordings,), bool
    """
    y = np.asarray(y)
    return ~np.isnan(y) if y.dtype.kind == "f" else y >= 0


class Task(Settings):
    """What is to be told apart, or the number that is to be predicted.

    Attributes
    ----------
    name, title : str
        Short name and one line for people.
    kind : {"classification", "regression"}
        Two classes, or a number.
    dataset : tuple of str
        Datasets of the catalogue (see `openbrainmass.cohort.catalogue`) whose codes the task knows; empty is any. A
        cohort whose name is none of the catalogue's is taken as it is.
    target : str
        Column of the cohort's table.
    positive, negative : tuple of str
        The codes of each class; sensitivity is about the positive ones. Empty for regression.
    positive_name, negative_name : str
        What the classes are called in tables and figures.
    missing : tuple of str
        Codes that mean "not known" (any case); those people are left out, like those without a value.
    exclude : tuple of str
        Known codes that belong to neither class, or are no number; those people are left out.
    where : dict of str to tuple of str
        Only recordings whose column has one of these codes; the others are left out.
    groups : tuple of str
        Columns, those that a cohort has, whose equal values keep people on one side of a fold (twins, siblings).
    covariates : tuple of str
        Columns for the covariates-only baseline, those that a cohort has.
    site : str
        Column of the scanner or site.
    note : str
        What misleads in this task.
    """

    name: str
    title: str = ""
    kind: Literal["classification", "regression"] = "classification"
    dataset: tuple[str, ...] = ()
    target: str
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    positive_name: str = ""
    negative_name: str = ""
    missing: tuple[str, ...] = MISSING_CODES
    exclude: tuple[str, ...] = ()
    where: dict[str, tuple[str, ...]] = {}
    groups: tuple[str, ...] = ("family_id",)
    covariates: tuple[str, ...] = DEFAULT_COVARIATES
    site: str = "site"
    note: str = ""

    @field_validator("positive", "negative", "exclude", "missing", mode="before")
    @classmethod
    def _as_codes(cls, values: Any) -> Any:
        return tuple(code(value) for value in values) if isinstance(values, (list, tuple)) else values

    @field_validator("where", mode="before")
    @classmethod
    def _as_columns_of_codes(cls, columns: Any) -> Any:
        if not isinstance(columns, dict):
            return columns
        return {
            column: tuple(code(value) for value in values) if isinstance(values, (list, tuple)) else values
            for column, values in columns.items()
        }

    @field_validator("dataset")
    @classmethod
    def _in_catalogue(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        strangers = sorted(set(names) - set(dataset_names()))
        if strangers:
            raise ValueError(f"there is no dataset {strangers[0]!r}; known are {', '.join(dataset_names())}")
        return names

    @model_validator(mode="before")
    @classmethod
    def _with_names(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        values = {**values}
        if values.get("positive") and values.get("negative"):
            values["positive_name"] = values.get("positive_name") or code(values["positive"][0])
            values["negative_name"] = values.get("negative_name") or code(values["negative"][0])
            values["title"] = values.get("title") or f"{values['positive_name']} against {values['negative_name']}"
        values["title"] = values.get("title") or str(values.get("target", ""))
        # What is predicted cannot be what it is predicted from.
        values.setdefault("covariates", tuple(c for c in DEFAULT_COVARIATES if c != values.get("target")))
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.kind == "regression" and (self.positive or self.negative):
            raise ValueError("a regression task predicts a number, so it has no positive and no negative codes")
        if self.kind == "classification" and (not self.positive or not self.negative):
            raise ValueError("positive and negative each need at least one code")
        if self.target in self.covariates:
            raise ValueError(f"the target {self.target} is among the covariates, which would tell it")
        groups = [set(self.positive), set(self.negative), set(self.exclude), {m for m in self.missing if m}]
        shared = [label for i, one in enumerate(groups) for other in groups[i + 1 :] for label in one & other]
        if shared:
            raise ValueError(f"the code {shared[0]!r} stands in more than one of positive, negative, exclude, missing")
        return self

    @classmethod
    def load(cls, file: str | Path | None = None, overrides: Iterable[str] = ()) -> Self:
        """Load a known task by its name (see `task_names`) or from a TOML file.

        Raises
        ------
        OpenBrainMassError
            If neither a known task nor a file has that name, or the file is not a task.
        """
        known = task_names()
        if file is None or (str(file) not in known and not str(file).endswith(".toml")):
            raise OpenBrainMassError(
                f"The task {file} is not known. Known are {', '.join(known)}; or give a TOML file (name.toml) with "
                "the keys name, target, positive and negative."
            )
        if str(file) in known:
            with resources.as_file(resources.files(_ROOM) / "tasks" / f"{file}.toml") as path:
                return super().load(path, overrides)
        return super().load(file, overrides)

    @classmethod
    def from_cohort(cls, cohort: Cohort, target: str | None = None) -> Self:
        """Make a task of a column that has two values, or of a column of many numbers.

        Parameters
        ----------
        cohort : Cohort
            Where the column is looked up.
        target : str, optional
            Column; without it ``dx``, else ``sex``. The positive class is the value that does not name a comparison
            group (`CONTROL_NAMES`), else the alphabetically last one. A column of numbers, of which more than ten
            differ or one has decimals, is predicted as a number.

        Raises
        ------
        OpenBrainMassError
            If there is no such column, or it has neither two known values nor many numbers.
        """
        table = cohort.table
        if target is None:
            target = next((column for column in ("dx", "sex") if column in table.columns), "dx")
        values = sorted(set(_codes(cohort, target)) - {""})
        values = [value for value in values if value.lower() not in MISSING_CODES]
        if _are_many_numbers(values):
            return cls(name=f"{cohort.name}-{target}", target=target, kind="regression")
        if len(values) != 2:
            shown = ", ".join(values[:8]) + (", ..." if len(values) > 8 else "")
            raise OpenBrainMassError(
                f"The column {target} of cohort {cohort.name} has {len(values)} known values ({shown or 'none'}) and a "
                "task tells two classes apart or predicts a number that has many. Name another column (--target), or "
                "write a task file that says which values are positive, negative and excluded."
            )
        controls = [value for value in values if value.lower() in CONTROL_NAMES]
        negative = controls[0] if len(controls) == 1 else values[0]
        positive = next(value for value in values if value != negative)
        return cls(name=f"{cohort.name}-{target}", target=target, positive=(positive,), negative=(negative,))

    def labels(self, cohort: Cohort) -> np.ndarray:
        """Class or number of each recording.

        Of a person whose class or number differs between sessions (age, or a diagnosis in a cohort of many years), the
        first session in which it is known counts, in the order of their names (``2`` before ``10``), and recordings
        with another one are left out: so it belongs to the recording it stands for, and every person has one.

        Returns
        -------
        ndarray (n_recordings,)
            Classification: int, 1 positive, 0 negative, -1 not known or excluded. Regression: float, NaN there.

        Raises
        ------
        OpenBrainMassError
            If the cohort is of another dataset; if a column is missing, a code is not known to the task or is no
            number; if a person has both classes or two numbers in one session; if only one class is there, or fewer
            than three different numbers.
        """
        taking_part = self._of_dataset(cohort) & self._chosen(cohort)
        found = [text if keep else "" for text, keep in zip(_codes(cohort, self.target), taking_part, strict=True)]
        return self._numbers(found, cohort) if self.kind == "regression" else self._classes(found, cohort)

    def _of_dataset(self, cohort: Cohort) -> np.ndarray:
        """Which recordings are of the task's datasets, or of one that the catalogue does not know."""
        found = dataset_of(cohort)
        foreign = np.isin(found, sorted(set(dataset_names()) - set(self.dataset)))
        if not self.dataset or not foreign.any():
            return np.ones(len(cohort), dtype=bool)
        if foreign.all():
            others = list(dict.fromkeys(found))
            known = sorted({task for one in others for task in dataset_card(one).tasks})
            raise OpenBrainMassError(
                f"Cohort {cohort.name} is of the dataset {' and '.join(others)}, but the task {self.name} is of "
                f"{', '.join(self.dataset)}. Use a task of that dataset ({', '.join(known) or 'none is known'}) or a task "
                "file; where the name of the store is wrong, build it with another (--dataset)."
            )
        return ~foreign

    def _chosen(self, cohort: Cohort) -> np.ndarray:
        """Which recordings have the codes that `where` asks for."""
        chosen = np.ones(len(cohort), dtype=bool)
        for column, wanted in self.where.items():
            chosen &= np.isin(_codes(cohort, column), wanted)
        return chosen

    def _classes(self, found: list[str], cohort: Cohort) -> np.ndarray:
        values = {
            **dict.fromkeys(self.positive, 1),
            **dict.fromkeys(self.negative, 0),
            **dict.fromkeys(self.exclude, -1),
        }
        unknown = sorted({label for label in found if label not in values and not self._is_missing(label)})
        if unknown:
            raise OpenBrainMassError(
                f"The column {self.target} of cohort {cohort.name} has the value {unknown[0]!r}"
                f"{f' and {len(unknown) - 1} others' if len(unknown) > 1 else ''}, which the task {self.name} does not "
                f"know: positive {', '.join(self.positive)}; negative {', '.join(self.negative)}; excluded "
                f"{', '.join(self.exclude) or 'none'}. Add it to the task file, or choose the task of this dataset."
            )
        y = np.array([values.get(label, -1) for label in found], dtype=int)
        y[~_in_first_session(y, found, cohort, self.target)] = -1
        self._check(y, cohort)
        return y

    def _check(self, y: np.ndarray, cohort: Cohort) -> None:
        for value, name, labels in ((1, "positive", self.positive), (0, "negative", self.negative)):
            if not (y == value).any():
                raise OpenBrainMassError(
                    f"No recording of cohort {cohort.name} is {name} in {self.target} ({', '.join(labels)}), so there "
                    f"is nothing to tell apart. Use a cohort with both classes, or another task than {self.name}."
                )

    def _numbers(self, found: list[str], cohort: Cohort) -> np.ndarray:
        known = {label for label in found if label not in self.exclude and not self._is_missing(label)}
        wrong = sorted(label for label in known if not _is_number(label))
        if wrong:
            raise OpenBrainMassError(
                f"The column {self.target} of cohort {cohort.name} has the value {wrong[0]!r}"
                f"{f' and {len(wrong) - 1} others' if len(wrong) > 1 else ''}, but the task {self.name} predicts a "
                "number. Correct the table, or name that value among exclude or missing in a task file."
            )
        y = np.array([float(label) if label in known else np.nan for label in found])
        y[~_in_first_session(y, found, cohort, self.target)] = np.nan
        n_values = len(np.unique(y[is_known(y)]))
        if n_values < _MIN_VALUES:
            raise OpenBrainMassError(
                f"The column {self.target} of cohort {cohort.name} has {n_values} different known numbers, and a "
                f"number is predicted where at least {_MIN_VALUES} differ. Use another cohort, or a task with classes."
            )
        return y

    def _is_missing(self, label: str) -> bool:
        return not label or label.lower() in {one.lower() for one in self.missing}

    def line(self) -> str:
        """Name and title in one line."""
        return f"{self.name:<{_NAME_WIDTH}} {self.title}"

    def text(self) -> str:
        """The task's card: every setting that is not empty, one a line."""
        return "\n".join(
            textwrap.fill(
                f"{key:<{_KEY_WIDTH - 1}} {_as_text(value)}",
                width=_LINE_WIDTH,
                subsequent_indent=" " * _KEY_WIDTH,
                break_on_hyphens=False,
            )
            for key, value in self.model_dump().items()
            if value
        )


def task_names() -> list[str]:
    """Names of the tasks that come with the package."""
    folder = resources.files(_ROOM) / "tasks"
    return sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))


def dataset_of(cohort: Cohort) -> np.ndarray:
    """Name of the dataset of each recording.

    In a merged store every id names its dataset (``abide1/sub-0050003``); elsewhere the cohort's name is it.

    Returns
    -------
    ndarray (n_recordings,), str
    """
    people = cohort.recordings["participant_id"].astype(str)
    return np.array([person.split("/", 1)[0] if "/" in person else cohort.name for person in people], dtype=str)


def _codes(cohort: Cohort, column: str) -> list[str]:
    table = cohort.table
    if column not in table.columns:
        raise OpenBrainMassError(
            f"Cohort {cohort.name} has no column {column}; it has {', '.join(table.columns)}. Name one of those "
            "(--target), or add the column to participants.tsv and build the store again."
        )
    return [code(value) for value in table[column]]


def _is_number(label: str) -> bool:
    try:
        return bool(np.isfinite(float(label)))
    except ValueError:
        return False


def _are_many_numbers(values: list[str]) -> bool:
    if len(values) < _MIN_VALUES or not all(map(_is_number, values)):
        return False
    return len(values) > _MANY_VALUES or any(not float(value).is_integer() for value in values)


def _in_first_session(y: np.ndarray, found: list[str], cohort: Cohort, target: str) -> np.ndarray:
    """Which recordings have the class or number that their person has in the first session in which it is known."""
    recordings = cohort.recordings
    table = pd.DataFrame(
        {"person": recordings["participant_id"], "session": recordings["session"].map(code), "y": y, "found": found}
    )
    kept = np.ones(len(y), dtype=bool)
    known = table[is_known(y)]
    for person, rows in known[known.groupby("person")["y"].transform("nunique") > 1].groupby("person"):
        first = rows[rows["session"] == min(rows["session"], key=_natural)].drop_duplicates("y")
        if len(first) > 1:
            raise OpenBrainMassError(
                f"{person} of cohort {cohort.name} has both {' and '.join(sorted(first['found']))} in {target} in "
                f"{f'session {first.iloc[0].session}' if first.iloc[0].session else 'recordings without a session'}; "
                "one value a session was expected. Correct the table, or name the sessions in recordings.tsv."
            )
        kept[rows.index[rows["y"] != first["y"].iloc[0]]] = False
    return kept


def _natural(session: str) -> list[str | int]:
    """Sort key by which session 2 comes before session 10."""
    return [int(part) if place % 2 else part for place, part in enumerate(re.split(r"([0-9]+)", session))]


def _as_text(value: object) -> str:
    if isinstance(value, dict):
        return "; ".join(f"{column} is {' or '.join(codes)}" for column, codes in value.items())
    return ", ".join(value) if isinstance(value, tuple) else str(value)
