"""`TableFeatures`: features that were computed elsewhere, entered beside ours on the same folds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, TransformerMixin

from openbrainmass.cohort.cohort import ANYONE, Cohort
from openbrainmass.durable import read_tsv
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.baselines import accept_recordings

Seen = str | frozenset[str]
"""``"unknown"``, ``"nobody"``, or identities (see `Cohort.identities`)."""


class TableFeatures(TransformerMixin, BaseEstimator):
    """Features of a table, one row a recording, such as the embeddings of another group's encoder.

    They are only as honest as their making: whatever was fitted on all people before the table was written (scaling,
    components, harmonisation, selection) has seen test people, which `audit` can find but this class cannot.

    Parameters
    ----------
    table : path or DataFrame
        TSV with a column ``recording_id`` and columns of numbers.
    columns : sequence of str, optional
        Which columns are features. Without it those called ``e0 e1 ...`` where there are any (what
        ``openbrainmass embed`` writes), else all but ``recording_id``.
    seen : {"unknown", "nobody"} or frozenset of str
        Whom the maker of the features had met before, with or without labels: nobody, or these identities (see
        `Cohort.identities`). While that is unknown, all rows are marked as tested on people who were seen.

    Examples
    --------
    >>> make_pipeline(TableFeatures("theirs.tsv", seen="nobody"), StandardScaler(), SVC())  # doctest: +SKIP
    """

    def __init__(
        self, table: str | Path | pd.DataFrame, columns: Sequence[str] | None = None, seen: Seen = "unknown"
    ) -> None:
        self.table = table
        self.columns = columns
        self.seen = seen

    @classmethod
    def of_cohort(cls, table: str | Path, cohort: Cohort, seen: Seen = "unknown") -> Self:
        """Read a table that must have one row for each recording of a cohort, and no other.

        Raises
        ------
        OpenBrainMassError
            If recordings are without a row, rows without a recording, or a feature is a column of the cohort's own
            tables, such as the label.
        """
        features = cls(table, None, seen)
        found, columns = features._read()
        known = set(cohort.recordings["recording_id"].astype(str))
        if extra := [name for name in found.index if name not in known]:
            raise OpenBrainMassError(
                f"{features._told()} has {len(extra)} rows of recordings that cohort {cohort.name} does not have "
                f"({extra[0]}...). Give the table of the same cohort."
            )
        features._rows(found[columns], cohort)
        return features

    @property
    def seen_identities(self) -> frozenset[str]:
        """Hashes of whom the maker of the features had met; `ANYONE` where that is unknown."""
        if isinstance(self.seen, str):
            known = {"unknown": frozenset({ANYONE}), "nobody": frozenset[str]()}
            if self.seen not in known:
                raise OpenBrainMassError(
                    f'TableFeatures was told seen={self.seen!r}; give "unknown", "nobody", or a frozenset of identities '
                    "(frozenset().union(*cohort.identities()) of the cohort that the encoder was trained on)."
                )
            return known[self.seen]
        return frozenset(self.seen)

    def fit(self, X: Any = None, y: Any = None) -> Self:
        """Do nothing: the features are what they are."""
        return self

    def transform(self, X: Cohort) -> np.ndarray:
        """Rows of the recordings of a cohort, in its order.

        Returns
        -------
        ndarray (n_recordings, n_features), float64

        Raises
        ------
        OpenBrainMassError
            If a recording has no row or several, a feature is not a finite number or is a column of the cohort's own
            tables, or X is no cohort.
        """
        if not isinstance(X, Cohort):
            raise OpenBrainMassError(
                f"TableFeatures was given {type(X).__name__}; its rows are found by recording_id. Give a Cohort."
            )
        table, columns = self._read()
        return self._rows(table[columns], X)

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns."""
        return np.asarray(self._read()[1], dtype=object)

    def _told(self) -> str:
        return "The table of features" if isinstance(self.table, pd.DataFrame) else str(self.table)

    def _read(self) -> tuple[pd.DataFrame, list[str]]:
        """The table by recording, and the columns that are features."""
        table = self.table if isinstance(self.table, pd.DataFrame) else read_tsv(self.table)
        if "recording_id" not in table:
            raise OpenBrainMassError(
                f"{self._told()} has no column recording_id, found {', '.join(map(str, table.columns[:8]))}. Name the "
                "recordings as in the cohort's recordings.tsv."
            )
        table = table.set_index(table["recording_id"].astype(str))
        if table.index.has_duplicates:
            twice = table.index[table.index.duplicated()][0]
            raise OpenBrainMassError(f"{self._told()} has several rows of the recording {twice}; keep one of them.")
        if self.columns is not None:
            columns = list(self.columns)
        else:
            embedding = [name for name in table.columns if name[:1] == "e" and name[1:].isdigit()]
            columns = embedding or [name for name in table.columns if name != "recording_id"]
        if absent := [name for name in columns if name not in table]:
            raise OpenBrainMassError(f"{self._told()} has no column {absent[0]}. Name columns that it has.")
        return table, columns

    def _rows(self, table: pd.DataFrame, cohort: Cohort) -> np.ndarray:
        if not len(table.columns):
            raise OpenBrainMassError(f"{self._told()} has no column but recording_id; add the features.")
        if own := [name for name in table.columns if name in cohort.table.columns]:
            raise OpenBrainMassError(
                f"The feature {own[0]} of {self._told()} is also a column of cohort {cohort.name}: what is known of "
                "people beside their brain, perhaps the label, is no feature. Take it out, or name the columns."
            )
        wanted = cohort.recordings["recording_id"].astype(str).to_list()
        if absent := [name for name in wanted if name not in table.index]:
            raise OpenBrainMassError(
                f"{self._told()} has no row of {len(absent)} recordings of cohort {cohort.name} ({absent[0]}...). "
                "Add them, or select the recordings that it has."
            )
        values = table.loc[wanted].apply(pd.to_numeric, errors="coerce").to_numpy(float)
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            raise OpenBrainMassError(
                f"{self._told()} has no finite number for {table.columns[column]} of {wanted[row]}. Give a number, "
                "or leave the recording out of table and cohort."
            )
        return values

    def __sklearn_tags__(self) -> Any:
        return accept_recordings(super().__sklearn_tags__(), requires_fit=False)
