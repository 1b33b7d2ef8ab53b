"""`Cohort`: an immutable sequence of recordings, the people they come from, and one atlas."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import pandas as pd

from openbrainmass.atlas import Atlas
from openbrainmass.errors import OpenBrainMassError

RECORDING_COLUMNS = ("recording_id", "participant_id", "session", "run", "tr", "n_volumes", "dead_rois", "digest")
"""Columns that every recordings table has; ``tr`` in seconds, ``dead_rois`` names joined by ``;``."""

EXCLUSION_COLUMNS = ("recording_id", "participant_id", "reason", "detail", "file")
"""Columns of the exclusions table."""


ANYONE = "anyone"
"""Stands among the identities that a model has seen when nobody knows whom it saw; then it may be every test person."""


class Cohort(Sequence[np.ndarray]):
    """Recordings + participants + one atlas.

    ``len(cohort)`` is the number of recordings, ``cohort[i]`` the BOLD of recording *i*, read on demand.

    Parameters
    ----------
    name : str
        Name of the dataset; with ``participant_id`` it identifies a person.
    recordings : DataFrame
        One row a recording, at least `RECORDING_COLUMNS`.
    participants : DataFrame
        One row a person, column ``participant_id`` first.
    atlas : Atlas
        What the columns of every BOLD array are.
    read : callable
        ``read(recording_id) -> ndarray (n_volumes, n_rois)``.
    exclusions : DataFrame, optional
        What was left out and why (`EXCLUSION_COLUMNS`).
    fingerprints : sequence, optional
        FC fingerprints of the recordings, in their order; slices are float16 (n, 1024).
    """

    def __init__(
        self,
        name: str,
        recordings: pd.DataFrame,
        participants: pd.DataFrame,
        atlas: Atlas,
        read: Callable[[str], np.ndarray],
        exclusions: pd.DataFrame | None = None,
        fingerprints: Any = None,
    ) -> None:
        missing = [column for column in RECORDING_COLUMNS if column not in recordings.columns]
        if missing:
            raise OpenBrainMassError(f"The recordings of cohort {name} lack the columns {', '.join(missing)}.")
        strangers = set(recordings["participant_id"].to_numpy()) - set(participants["participant_id"].to_numpy())
        if strangers:
            raise OpenBrainMassError(
                f"Cohort {name} has recordings of {sorted(strangers)[:5]}, who are not in its participants table. Add them."
            )
        self.name = name
        self.atlas = atlas
        self._recordings = recordings.reset_index(drop=True)
        self._participants = participants.reset_index(drop=True)
        self._exclusions = pd.DataFrame(columns=list(EXCLUSION_COLUMNS)) if exclusions is None else exclusions
        self._read = read
        self._ids = self._recordings["recording_id"].to_numpy(dtype=object)
        self._fingerprints = fingerprints

    def __repr__(self) -> str:
        return (
            f"Cohort({self.name!r}: {len(self)} recordings of {len(self._participants)} people, "
            f"{self.atlas.n_rois} ROIs of {self.atlas.name}, {len(self._exclusions)} excluded)"
        )

    def __len__(self) -> int:
        return len(self._recordings)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self.bold(i) for i in range(*index.indices(len(self)))]
        return self.bold(index)

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self.bold(i) for i in range(len(self)))

    def bold(self, index: int) -> np.ndarray:
        """BOLD of one recording.

        Returns
        -------
        ndarray (n_volumes, n_rois), float32 or float16 as stored
            A missing ROI is a column of NaN or of one constant, named in ``recordings["dead_rois"]``.
        """
        if not -len(self) <= index < len(self):
            raise IndexError(f"recording {index} of {len(self)}")
        return self._read(str(self._ids[index]))

    @property
    def read(self) -> Callable[[str], np.ndarray]:
        """``read(recording_id) -> ndarray (n_volumes, n_rois)``; can be pickled, so that other processes read."""
        return self._read

    @property
    def fingerprints(self) -> Any:
        """FC fingerprints in the order of the recordings, to be sliced (float16 (n, 1024)); None where not kept."""
        return self._fingerprints

    @property
    def recordings(self) -> pd.DataFrame:
        """A copy of the recordings table, one row a recording, in the order of the sequence."""
        return self._recordings.copy()

    @property
    def participants(self) -> pd.DataFrame:
        """A copy of the participants table, one row a person."""
        return self._participants.copy()

    @property
    def exclusions(self) -> pd.DataFrame:
        """A copy of the table of what was left out: one row a recording, with its reason."""
        return self._exclusions.copy()

    @property
    def table(self) -> pd.DataFrame:
        """Recordings joined with what is known of their people; where both have a column, the recording's holds."""
        own = [c for c in self._participants.columns if c == "participant_id" or c not in self._recordings.columns]
        return self._recordings.merge(self._participants[own], on="participant_id", how="left", validate="many_to_one")

    def select(self, keep: Sequence[int] | Sequence[bool] | np.ndarray | pd.Series) -> Cohort:
        """A cohort of some of the recordings, by positions or by a mask of length ``len(self)``.

        Examples
        --------
        >>> adults = cohort.select(cohort.table["age"] >= 18)  # doctest: +SKIP
        """
        chosen = np.asarray(keep)
        if chosen.dtype == bool:
            if len(chosen) != len(self):
                raise OpenBrainMassError(f"The mask has {len(chosen)} values but the cohort {len(self)} recordings.")
            chosen = np.flatnonzero(chosen)
        recordings = self._recordings.iloc[chosen.astype(int)]
        here = self._participants["participant_id"].isin(set(recordings["participant_id"]))
        return Cohort(self.name, recordings, self._participants[here], self.atlas, self._read, self._exclusions)

    def identities(self) -> list[frozenset[str]]:
        """For each recording, hashes that tell who it is: of the person (dataset + id) and of the BOLD itself.

        A checkpoint stores these of what it was pretrained on, so that an evaluation can tell, without any name,
        whether a test person was seen.
        """
        return [
            frozenset({participant_hash(self.name, str(person)), str(digest)})
            for person, digest in zip(self._recordings["participant_id"], self._recordings["digest"], strict=True)
        ]

    def hashes(self) -> frozenset[str]:
        """Those of `identities` for all recordings together."""
        people = self._recordings["participant_id"].unique()
        return frozenset(self._recordings["digest"]).union(participant_hash(self.name, str(one)) for one in people)


def participant_hash(dataset: str, participant_id: str) -> str:
    """sha256 of a person's id within a dataset; in a merged store, whose ids name the dataset, that of the id itself."""
    identity = participant_id if "/" in participant_id else f"{dataset}/{participant_id}"
    return hashlib.sha256(identity.encode()).hexdigest()


def bold_digest(bold: np.ndarray) -> str:
    """sha256 of the values of a BOLD array, independent of the float type that holds them losslessly."""
    return hashlib.sha256(np.ascontiguousarray(bold, dtype=np.float32).tobytes()).hexdigest()
