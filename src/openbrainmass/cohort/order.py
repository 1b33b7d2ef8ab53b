"""Whether the columns of unlabelled BOLD stand in the order of the atlas: their FC against a template FC.

Files without labels may come with their columns permuted, interleaved (left, right, left, right instead of all left,
then all right) or shifted by one (a column of indices or of the background in front, a parcel dropped). Every such
file loads without complaint. Its FC betrays it: FC is much alike in all people, and near and mirrored ROIs correlate.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from openbrainmass.atlas import Atlas
from openbrainmass.cohort.cohort import Cohort
from openbrainmass.connectivity import correlation
from openbrainmass.errors import OpenBrainMassError

LEAST_AGREEMENT = 0.10
"""Agreement below which an order counts as wrong: random orders of 200 ROIs reach 0.03, right ones start at 0.2."""

LEAST_GAIN = 0.005
"""An order is wrong when another agrees with the template by this much better."""

MIRRORED = 0.9
"""An order in which the template is as much like itself as this is not looked for: one scan could not tell the two."""

LEAST_ROIS = 40
"""With fewer ROIs that vary in both, nothing is said: random orders then agree too well by chance."""

_REACH_MM = 25.0
_MIRROR_REACH_MM = 20.0
_MIRROR_SHARE = 0.6
_STARTS = 8


@dataclass(frozen=True)
class Edges:
    """FC as it is compared: without the mean of its edges and of each ROI's edges.

    A global signal, or an ROI that correlates with everything, then says nothing.

    Attributes
    ----------
    values, squares : ndarray (n_rois, n_rois), float32
        Symmetric, 0 on the diagonal and at ROIs that do not vary; ``squares = values ** 2``.
    live : ndarray (n_rois,), bool
        ROIs that vary.
    """

    values: np.ndarray
    squares: np.ndarray
    live: np.ndarray


@dataclass(frozen=True)
class Template:
    """What FC looks like when the ROIs stand in the order of the atlas.

    Attributes
    ----------
    fc : ndarray (n_rois, n_rois)
        Expected FC; its scale does not matter, its diagonal is not read. Rows of NaN: nothing is known of that ROI.
    source : str
        Where it is from, for messages.
    """

    fc: np.ndarray
    source: str

    @cached_property
    def edges(self) -> Edges:
        """The template as it is compared."""
        return _edges_of(self.fc)

    @cached_property
    def other_orders(self) -> dict[str, np.ndarray]:
        """Usual mistakes that one scan can show, each as the column where every ROI would then be (-1: nowhere)."""
        orders = _other_orders(len(self.fc))
        return {
            name: order for name, order in orders.items() if _agreements(self.edges, self.edges, order)[0] <= MIRRORED
        }


@dataclass(frozen=True)
class OrderVerdict:
    """Whether columns stand in the order of a template.

    Attributes
    ----------
    ok : bool
        False where the order is wrong; True where it is right or cannot be told.
    agreement : float
        Correlation of the scan's FC with the template over edges, both without their ROI means; NaN where there are
        too few ROIs.
    alternative : str or None
        The order that agrees best, where that is another one.
    detail : str
        A sentence.
    """

    ok: bool
    agreement: float
    alternative: str | None
    detail: str


def template_of(recordings: Iterable[np.ndarray], source: str) -> Template:
    """The mean FC of recordings whose order is known to be right.

    Parameters
    ----------
    recordings : iterable of ndarray (n_volumes_i, n_rois)
        BOLD of one atlas, in its order.
    source : str
        What to call them.

    Returns
    -------
    Template
        With NaN at ROIs that vary in none of the recordings.

    Raises
    ------
    OpenBrainMassError
        If there is no recording, or they differ in their number of ROIs.
    """
    total: np.ndarray | None = None
    seen: np.ndarray | None = None
    for bold in recordings:
        fc = correlation(np.asarray(bold))
        live = _varies(fc)
        known = np.outer(live, live)
        if total is None or seen is None:
            total, seen = np.zeros(fc.shape), np.zeros(fc.shape)
        if fc.shape != total.shape:
            raise OpenBrainMassError(
                f"The template from {source} was given recordings of {len(total)} and of {len(fc)} ROIs. A template is "
                "of one atlas; give recordings of one."
            )
        total += np.where(known, fc, 0)
        seen += known
    if total is None or seen is None:
        raise OpenBrainMassError(f"The template from {source} was given no recording; give a cohort that has some.")
    return Template(np.divide(total, seen, out=np.full(total.shape, np.nan), where=seen > 0), source)


def cohort_template(cohort: Cohort, most: int = 300) -> Template:
    """The mean FC of at most `most` recordings of a cohort, spread evenly over it; see `template_of`."""
    rows = np.unique(np.linspace(0, len(cohort) - 1, min(most, len(cohort))).astype(int)) if len(cohort) else []
    return template_of((cohort.bold(int(row)) for row in rows), f"{len(rows)} recordings of {cohort.name}")


def geometry_template(atlas: Atlas) -> Template:
    """What the places of ROIs foretell of FC: near ROIs correlate, and so do mirrored ones.

    Raises
    ------
    OpenBrainMassError
        If the atlas knows no coordinates.
    """
    if atlas.coords_mm is None:
        raise OpenBrainMassError(
            f"The atlas {atlas.name} knows no coordinates, so nothing can be foretold of its FC. Give its label image "
            "or a table with x y z, or a store of the same atlas."
        )
    coords = np.asarray(atlas.coords_mm, dtype=float)
    apart = np.linalg.norm(coords[:, None] - coords[None], axis=2)
    mirrored = np.linalg.norm(coords[:, None] - coords[None] * (-1, 1, 1), axis=2)
    fc = np.exp(-apart / _REACH_MM) + _MIRROR_SHARE * np.exp(-mirrored / _MIRROR_REACH_MM)
    return Template(fc, f"the geometry of {atlas.name}")


def find_template(atlas: Atlas, cohort: Cohort | None = None) -> Template | None:
    """The best template at hand for recordings of an atlas: another cohort, else geometry, else None.

    Parameters
    ----------
    atlas : Atlas
        What the recordings should be.
    cohort : Cohort, optional
        Other recordings of the same atlas, whose order is known to be right.

    Raises
    ------
    OpenBrainMassError
        If the cohort is of another atlas.
    """
    if cohort is None:
        return None if atlas.coords_mm is None else geometry_template(atlas)
    if cohort.atlas.digest != atlas.digest:
        raise OpenBrainMassError(
            f"The ROI order of {atlas.name} ({atlas.n_rois} ROIs) cannot be checked against cohort {cohort.name}, which is "
            f"of {cohort.atlas.name} ({cohort.atlas.n_rois} ROIs). Give a store of the same atlas."
        )
    return cohort_template(cohort)


def check(bold: np.ndarray, template: Template) -> str | None:
    """What is wrong with the order of a recording's columns, in a sentence; None where nothing is known to be.

    Parameters
    ----------
    bold : ndarray (n_volumes, n_rois)
        A recording.
    template : Template
        From other recordings of the same atlas, or from its geometry.
    """
    verdict = check_order(correlation(np.asarray(bold)), template)
    return None if verdict.ok else verdict.detail


def check_order(fc: np.ndarray, template: Template) -> OrderVerdict:
    """Whether the ROIs of an FC matrix stand in the order of a template.

    Told are random and reversed orders, interleaved instead of blocked hemispheres (and back), exchanged halves, and
    shifts by one column from the first or from any later ROI on. Not told are exchanges of a few ROIs, and orders in
    which the template looks like itself (`MIRRORED`), such as hemispheres exchanged in an atlas of mirrored ROIs.

    Parameters
    ----------
    fc : ndarray (n_rois, n_rois)
        FC of one recording.
    template : Template
        Of the same number of ROIs.

    Returns
    -------
    OrderVerdict

    Raises
    ------
    OpenBrainMassError
        If the numbers of ROIs differ.
    """
    n_rois = len(template.fc)
    if np.shape(fc) != (n_rois, n_rois):
        raise OpenBrainMassError(
            f"The order of {len(fc)} ROIs cannot be checked against the template from {template.source}, which has "
            f"{n_rois}. Give a template of the same atlas."
        )
    own, expected = _edges_of(fc), template.edges
    n_live = int((own.live & expected.live).sum())
    if n_live < LEAST_ROIS:
        told = f"Only {n_live} ROIs vary; the order of fewer than {LEAST_ROIS} cannot be told."
        return OrderVerdict(True, float("nan"), None, told)
    agreement, _ = _agreements(own, expected, np.arange(n_rois))
    threshold = max(LEAST_AGREEMENT, 8 / n_live)
    compared = f"The FC agrees with that of {template.source} by r = "
    others = {name: _agreements(own, expected, order) for name, order in template.other_orders.items()}
    best = max(others, key=lambda name: others[name][0] - others[name][1])
    there, here = others[best]
    if there > max(here + LEAST_GAIN, threshold):
        return OrderVerdict(
            False,
            agreement,
            best,
            f"{compared}{here:.2f}, but by {there:.2f} if {best}: the columns are not in the order of the atlas.",
        )
    if agreement < threshold:
        return OrderVerdict(
            False,
            agreement,
            None,
            f"{compared}{agreement:.2f}, as random orders do (right ones reach more than {threshold:.2f}): the columns are "
            "in another order than the atlas, or hold no brain signal.",
        )
    return OrderVerdict(True, agreement, None, f"{compared}{agreement:.2f}; no other order agrees better.")


def _varies(fc: np.ndarray) -> np.ndarray:
    """Which ROIs have any edge: constant and missing ones have only zeros (or NaN) beside their diagonal."""
    edges = np.nan_to_num(np.abs(fc))
    return edges.sum(axis=1) - np.diagonal(edges) > 1e-6


def _agreements(own: Edges, template: Edges, order: np.ndarray) -> tuple[float, float]:
    """Correlation over edges when ROI *i* of the template is column ``order[i]`` (-1: none), and when it is column *i*.

    Both over the same columns of the scan, because some ROIs agree better than others in every order.
    """
    rows = ((order >= 0) & own.live[order] & template.live & template.live[order]).astype(np.float32)
    if rows.sum() < LEAST_ROIS / 2:
        return -1.0, -1.0
    columns = np.zeros(len(order), dtype=np.float32)
    columns[order[rows > 0]] = 1
    there = rows @ (own.values[order][:, order] * template.values) @ rows
    here = columns @ (own.values * template.values) @ columns
    length = columns @ own.squares @ columns
    lengths = [length * (kept @ template.squares @ kept) for kept in (rows, columns)]
    return float(there / np.sqrt(lengths[0])), float(here / np.sqrt(lengths[1]))


def _edges_of(fc: np.ndarray) -> Edges:
    live = _varies(fc)
    if live.sum() < 3:
        return Edges(np.zeros_like(fc), np.zeros_like(fc), live)
    n_live, both = int(live.sum()), np.outer(live, live)
    # A template may hold ROIs that were never seen together.
    edges = np.where(both & np.isfinite(fc), fc, 0).astype(np.float64)
    np.fill_diagonal(edges, 0)
    # The additive fit to all edges of ROIs that vary; what it leaves sums to 0 in every row.
    sums = edges.sum(axis=0)
    effect = (sums - sums.sum() / (2 * (n_live - 1))) / (n_live - 2)
    edges = np.where(both, edges - effect[:, None] - effect, 0).astype(np.float32)
    np.fill_diagonal(edges, 0)
    return Edges(edges, edges**2, live)


def _other_orders(n_rois: int) -> dict[str, np.ndarray]:
    """Usual mistakes, each as the column where every ROI of the atlas would then be."""
    rows = np.arange(n_rois)
    blocked = np.r_[rows[::2], rows[1::2]]
    orders = {
        "they are in reverse": rows[::-1],
        "two blocks (hemispheres) are interleaved": blocked,
        "alternating ROIs (hemispheres) stand in two blocks": np.argsort(blocked),
        "the two halves (hemispheres) are exchanged": np.roll(rows, -(n_rois // 2)),
    }
    for start in range(0, n_rois, -(-n_rois // _STARTS)):
        where = "all stand" if start == 0 else f"those from about column {start + 1} on stand"
        early, late = np.r_[rows[:start], rows[start:] - 1], np.r_[rows[:start], rows[start:] + 1]
        early[start], late[-1] = -1, -1
        orders[f"{where} one column too early"] = early
        orders[f"{where} one column too late"] = late
    return orders
