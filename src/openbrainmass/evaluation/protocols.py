"""The words for protocols, and what each means for ranking and averaging."""

from __future__ import annotations

import re

PROTOCOLS = (
    "k-fold", "random-splits", "site-held-out", "cohort-held-out", "paper-split", "few-shot", "external",
)  # fmt: skip
"""What `evaluate` can do; few-shot stands in the results as ``few-shot-k`` for each size k, and on a test cohort as
``external-few-shot-k``, of which ``external`` itself is the point without any label (zero-shot)."""

POOLED_PROTOCOLS = frozenset({"site-held-out", "cohort-held-out", "external"})
"""Protocols whose AUC ranks all test people together; elsewhere people are ranked within their fold only."""

RESAMPLED_PROTOCOLS = frozenset({"k-fold", "random-splits", "paper-split"})
"""Protocols that repeat a random split of all people."""

_FEW_SHOT = re.compile(r"(external-)?few-shot-([1-9]\d*)")


def few_shot_size(protocol: str) -> int | None:
    """Labelled people of each class in a few-shot protocol, such as 5 of ``few-shot-5``; None for other protocols."""
    found = _FEW_SHOT.fullmatch(protocol)
    return int(found[2]) if found else None
