"""The scans of one or several cohorts as one numbered sequence, and the order in which they are visited."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from openbrainmass.atlas import Atlas
from openbrainmass.cohort.cohort import Cohort
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.tasks import code

_ORDER_STREAM = 0x6F72646572


class Scans:
    """Recordings of cohorts that share an atlas, read on demand.

    Parameters
    ----------
    cohorts : Cohort or sequence of Cohort

    Raises
    ------
    OpenBrainMassError
        If there are fewer than two recordings, or the cohorts' atlases differ.
    """

    def __init__(self, cohorts: Cohort | Sequence[Cohort]) -> None:
        self.cohorts = [cohorts] if isinstance(cohorts, Cohort) else list(cohorts)
        self._starts = np.cumsum([0, *(len(cohort) for cohort in self.cohorts)])
        if len(self) < 2:
            raise OpenBrainMassError(
                f"Pretraining was given {len(self)} recordings, but compares at least two. "
                "Give a larger cohort, or see its exclusions.tsv for what was left out."
            )
        first = self.cohorts[0]
        for cohort in self.cohorts[1:]:
            if cohort.atlas.digest != first.atlas.digest:
                raise OpenBrainMassError(
                    f"Cohort {cohort.name} uses the atlas {cohort.atlas.name} ({cohort.atlas.n_rois} ROIs) but cohort "
                    f"{first.name} uses {first.atlas.name} ({first.atlas.n_rois} ROIs). "
                    "Pretrain on cohorts that were extracted with the same atlas."
                )

    def __len__(self) -> int:
        return int(self._starts[-1])

    def bold(self, number: int) -> np.ndarray:
        """BOLD ``(n_volumes, n_rois)`` of one scan."""
        which = int(np.searchsorted(self._starts, number, side="right")) - 1
        return self.cohorts[which].bold(int(number - self._starts[which]))

    def sites(self) -> list[tuple[str, str] | None]:
        """Cohort and site of each scan; None where its site is not known."""
        return [
            (cohort.name, code(site)) if code(site) else None
            for cohort in self.cohorts
            for site in cohort.table.get("site", [None] * len(cohort))
        ]

    @property
    def atlas(self) -> Atlas:
        """The atlas that all cohorts share."""
        return self.cohorts[0].atlas

    @property
    def identities(self) -> frozenset[str]:
        """Hashes of every person and recording."""
        return frozenset().union(*(cohort.hashes() for cohort in self.cohorts))

    @property
    def digest(self) -> str:
        """sha256 (first 16 hex digits) of which recordings these are, and in which order."""
        digest = hashlib.sha256()
        for cohort in self.cohorts:
            digest.update("\n".join([cohort.name, *cohort.recordings["digest"].astype(str), ""]).encode())
        return digest.hexdigest()[:16]

    def facts(self) -> dict[str, object]:
        """What the checkpoint's card tells of the data."""
        people = {(cohort.name, person) for cohort in self.cohorts for person in cohort.recordings["participant_id"]}
        return {
            "n_recordings": len(self),
            "n_people": len(people),
            "datasets": sorted({cohort.name for cohort in self.cohorts}),
        }


def n_batches(n_scans: int, batch_size: int) -> int:
    """Batches of an epoch: every scan once, sizes alike, never a batch of one (which batch norm cannot take)."""
    return min(-(-n_scans // batch_size), n_scans // 2)


def batch_scans(n_scans: int, batch_size: int, seed: int, epoch: int, batch: int) -> np.ndarray:
    """Numbers of the scans of a batch, from (seed, epoch, batch) alone.

    Parameters
    ----------
    n_scans, batch_size : int
        Batches have at most ``batch_size`` scans, one more where else a scan would be left alone.
    seed, epoch, batch : int

    Returns
    -------
    ndarray (n,), int64
    """
    size, larger = divmod(n_scans, n_batches(n_scans, batch_size))
    start = batch * size + min(batch, larger)
    return _order(n_scans, seed, epoch)[start : start + size + (batch < larger)]


@lru_cache(maxsize=1)
def _order(n_scans: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch; drawing it anew at every step would take longer the more scans there are."""
    order = np.random.Generator(np.random.PCG64([_ORDER_STREAM, seed, epoch])).permutation(n_scans)
    order.flags.writeable = False
    return order
