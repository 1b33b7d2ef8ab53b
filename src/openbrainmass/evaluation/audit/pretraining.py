"""What a pretrained encoder has met: test people by their hashes, their scans under other ids, their share of its means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from openbrainmass.cohort.cohort import ANYONE, Cohort
from openbrainmass.evaluation.audit.checks import Finding, some
from openbrainmass.evaluation.audit.copies import find_copies
from openbrainmass.evaluation.leakage import has_met, prefitted_parts, seen_identities

_ALONG, _LEAST_SHARE = 0.99, 1e-4


def audit_pretraining(
    cohort: Cohort,
    *,
    seen: Any = None,
    pretrained_on: Cohort | None = None,
    models: Mapping[str, Any] | None = None,
) -> list[Finding]:
    """Compare what a model has met before with the people it is tested on.

    Parameters
    ----------
    cohort : Cohort
        The test people.
    seen : object, optional
        A checkpoint, an estimator, or anything whose ``seen_identities`` tell whom it has met; or those hashes; or a
        sequence of such.
    pretrained_on : Cohort, optional
        The pretraining corpus itself: its people are compared by identity, and, where it is of the same atlas, test scans
        are found in it under any id, altered ones too.
    models : mapping of str to estimator, optional
        To be looked through for parts that are fitted already.

    Returns
    -------
    list of Finding
        One or two for each thing that was given.
    """
    found = []
    if seen is not None:
        found.append(_people(cohort, _met(seen)))
    if pretrained_on is not None:
        found += [_people(cohort, pretrained_on.hashes()), _scans(cohort, pretrained_on)]
    if models is not None:
        found.append(_parts(models))
    return found


def _met(seen: Any) -> frozenset[str]:
    if isinstance(seen, frozenset):
        return seen
    if isinstance(seen, (list, tuple)):
        return frozenset[str]().union(*map(_met, seen))
    return seen_identities(seen)


def _people(cohort: Cohort, seen: frozenset[str]) -> Finding:
    people = cohort.recordings["participant_id"].to_numpy(str)
    met = sorted({str(p) for p, own in zip(people, cohort.identities(), strict=True) if has_met(seen, own)})
    if ANYONE in seen:
        told = "Nobody knows whom the encoder has met, so all may be among them. Use weights that say."
    elif met:
        told = (
            f"It has met {len(met)} of {len(set(people))} people: {some(met)}. Pretrain without them (PretrainInFold)."
        )
    else:
        told = f"None of {len(set(people))} people is among those whom it has met."
    return Finding("pretraining-people", "refused" if met else "passed", told)


def _scans(cohort: Cohort, corpus: Cohort) -> Finding:
    if cohort.atlas.digest != corpus.atlas.digest:
        told = (
            f"{corpus.name} is of the atlas {corpus.atlas.name}, {cohort.name} of {cohort.atlas.name}; scans of two atlases "
            "cannot be compared. Extract one of them again with the other's atlas."
        )
        return Finding("pretraining-scans", "not checked", told)
    copies = find_copies(cohort, corpus)
    own, theirs = (one.recordings["recording_id"].to_numpy(str) for one in (cohort, corpus))
    if not copies:
        told = f"None of {len(cohort)} scans is among the {len(corpus)} of {corpus.name}."
        return Finding("pretraining-scans", "passed", told)
    named = some(f"{own[copy.first]} is {theirs[copy.second]} ({copy.told})" for copy in copies)
    told = f"In {corpus.name}: {named}. Pretrain without them."
    return Finding("pretraining-scans", "refused", told)


def _parts(models: Mapping[str, Any]) -> Finding:
    held = [f"{name} holds a fitted {part}" for name, model in models.items() for part in prefitted_parts(model)]
    if held:
        told = f"{some(held)}, nobody knows on whom. Fit it inside the folds, or give it seen_identities."
        return Finding("pretraining-statistics", "refused", told)
    return Finding("pretraining-statistics", "passed", f"No fitted part without a record in {len(models)} models.")


def audit_statistics(mean: np.ndarray, corpus: np.ndarray, tested: np.ndarray) -> Finding:
    """Whether a mean that pretraining stored (to standardise, to harmonise, as a reference) holds test scans.

    Parameters
    ----------
    mean : ndarray (n_features,)
        What was stored.
    corpus : ndarray (n_corpus, n_features)
        The features it is said to be the mean of.
    tested : ndarray (n_tested, n_features)
        Features of the test scans.

    Returns
    -------
    Finding
        Refused where the mean departs from that of the corpus towards the test scans.
    """
    own, towards = corpus.mean(axis=0), tested.mean(axis=0)
    moved, way = mean - own, towards - own
    share = float(moved @ way / max(float(way @ way), 1e-300))
    along = float(moved @ way / max(float(np.linalg.norm(moved) * np.linalg.norm(way)), 1e-300))
    if share > _LEAST_SHARE and along > _ALONG:
        told = f"The stored mean is that of the corpus and the test scans together, who have a share of {share:.1%}."
        return Finding("pretraining-statistics", "refused", told)
    return Finding("pretraining-statistics", "passed", "The stored mean does not depart towards the test scans.")
