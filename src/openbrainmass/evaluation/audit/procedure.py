"""Any analysis, as a black box: run it again with other labels of test people, or other scans, and see what moves.

What a procedure says of one test person must depend neither on the label of any test person nor on the features of
another one. Both can be tried, so that a leak is proved, wherever in the code it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.audit.checks import Finding

Procedure = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Any]
"""``procedure(X, y, train, test)`` -> scores (n_test,), or a mapping with ``scores`` and whatever else was decided."""

BY_LABELS = {
    "threshold": "threshold-on-test", "predictions": "threshold-on-test",
    "epoch": "epoch-on-test", "n_epochs": "epoch-on-test", "iteration": "epoch-on-test", "step": "epoch-on-test",
    "columns": "selection-before-split", "features": "selection-before-split",
    "combat": "combat-keeps-label",
}  # fmt: skip
"""Names under which a procedure may tell what it decided, and the leak if the labels of test people change it; any other
decision is `tuned-on-test`."""

BY_FEATURES = {
    "scaler": "scaler-before-split", "pca": "pca-before-split", "imputation": "imputation-before-split",
    "combat": "combat-before-split", "regression": "regression-before-split",
}  # fmt: skip
"""Names under which it may tell what it fitted, and the leak if the features of a test person change it; any other
fitted value, and scores that change, are `statistics-of-test`."""

PROCEDURE_CHECKS = ("test-is-train", "statistics-of-test", "tuned-on-test", *dict.fromkeys(BY_LABELS.values()),
                    *(name for name in BY_FEATURES.values()))  # fmt: skip
"""What `audit_procedure` can find."""

_N_SHUFFLES, _FOLLOWS, _FURTHER = 3, 0.6, 1.2
_TOLERANCE = 1e-7


def audit_procedure(
    procedure: Procedure,
    X: np.ndarray,
    y: np.ndarray,
    folds: Iterable[tuple[Sequence[int] | np.ndarray, Sequence[int] | np.ndarray]],
    *,
    n_people: int = 5,
    seed: int = 0,
) -> list[Finding]:
    """Run an analysis under interventions on test people, which must not change what it says of others.

    Parameters
    ----------
    procedure : callable
        ``procedure(X, y, train, test)`` is given everything, fits what it likes, and returns the scores (n_test,) of the
        test people; or a mapping with ``scores`` and what it decided (`BY_LABELS`) and fitted (`BY_FEATURES`). It must be
        deterministic, and must not change X or y.
    X : ndarray (n_people, ...)
        One row a person; gaps are allowed.
    y : ndarray (n_people,)
        Two classes, or numbers.
    folds : iterable of (train, test)
        Positions; two or three folds are enough.
    n_people : int
        Test people of each fold whose features and labels are changed one by one.
    seed : int
        Who they are.

    Returns
    -------
    list of Finding
        Refused, or passed, for each of `PROCEDURE_CHECKS`.

    Raises
    ------
    OpenBrainMassError
        If two runs on the same data differ, or there is not one score a test person.

    Examples
    --------
    >>> import numpy as np
    >>> X, y = np.random.default_rng(0).normal(size=(20, 3)), np.arange(20) % 2
    >>> def standardised_with_the_test_people(X, y, train, test):
    ...     return (X[test, 0] - X[:, 0].mean()) / X[:, 0].std()
    >>> findings = audit_procedure(standardised_with_the_test_people, X, y, [(range(10), range(10, 20))])
    >>> [finding.check for finding in findings if finding.verdict == "refused"]
    ['statistics-of-test']
    """
    found: dict[str, str] = {}
    n_folds = 0
    for train, test in folds:
        trial = _Trial(procedure, X, y, np.asarray(train), np.asarray(test), np.random.default_rng([seed, n_folds]))
        by_labels = trial.by_labels(n_people)
        for check, told in (*by_labels, *trial.by_features(n_people, fitted_only=bool(by_labels))):
            found.setdefault(check, f"{told} (fold {n_folds}).")
        n_folds += 1
    return [
        Finding(check, "refused", found[check])
        if check in found
        else Finding(
            check, "passed", f"In {n_folds} folds, nothing changed under other labels and scans of test people."
        )
        for check in dict.fromkeys(PROCEDURE_CHECKS)
    ]


class _Trial:
    """One fold, with what the procedure says of it when nothing is changed."""

    def __init__(
        self,
        procedure: Procedure,
        X: np.ndarray,
        y: np.ndarray,
        train: np.ndarray,
        test: np.ndarray,
        rng: np.random.Generator,
    ) -> None:
        self.procedure, self.X, self.y, self.train, self.test, self.rng = procedure, X, y, train, test, rng
        self.base = self._run(X, y)
        again = self._run(X, y)
        if changed := _changed(self.base, again):
            raise OpenBrainMassError(
                f"Two runs of the procedure on the same data differ in {', '.join(changed)}; a deterministic one was "
                "expected, so that a change can be put down to the test people. Fix its seeds."
            )

    def _run(self, X: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
        told = self.procedure(X.copy(), y.copy(), self.train.copy(), self.test.copy())
        values = dict(told) if isinstance(told, Mapping) else {"scores": told}
        # A copy, or a buffer that the procedure uses again would make two runs look alike.
        values = {name: np.array(value) for name, value in values.items()}
        if len(np.atleast_1d(values.get("scores", ()))) != len(self.test):
            raise OpenBrainMassError(
                f"The procedure returned {len(np.atleast_1d(values.get('scores', ())))} scores for {len(self.test)} test "
                "people; one a person was expected. Return them, or a mapping with scores."
            )
        return values

    def by_labels(self, n_people: int) -> list[tuple[str, str]]:
        """Leaks that other labels of the test people show."""
        changed: dict[str, None] = {}
        for y in self._other_labels():
            changed.update(dict.fromkeys(_changed(self.base, self._run(self.X, y))))
        if not changed:
            return []
        found = [
            (BY_LABELS.get(name, "tuned-on-test"), f"With other labels of the test people {name} changes")
            for name in changed
            if name != "scores"
        ]
        if "scores" in changed and self._scores_follow_labels(n_people):
            found.append(("test-is-train", "The score of a test person follows his or her own label"))
        return found or [("tuned-on-test", "With other labels of the test people their scores change")]

    def _other_labels(self) -> list[np.ndarray]:
        """All labels of test people turned round, and some of them exchanged."""
        turned = self.y.copy()
        turned[self.test] = self._turned(self.test)
        others = [turned]
        for _ in range(_N_SHUFFLES):
            shuffled = self.y.copy()
            shuffled[self.test] = self.y[self.rng.permutation(self.test)]
            others.append(shuffled)
        return others

    def _turned(self, rows: np.ndarray) -> np.ndarray:
        values = np.unique(self.y)
        return values.min() + values.max() - self.y[rows]

    def _scores_follow_labels(self, n_people: int) -> bool:
        """Whether one person's label moves that person's own score its way, and further than anybody else's."""
        follows = []
        for place in self.rng.permutation(len(self.test))[: max(2, n_people)]:
            y = self.y.copy()
            y[self.test[place]] = self._turned(self.test[place : place + 1])[0]
            moved = np.asarray(self._run(self.X, y)["scores"] - self.base["scores"], dtype=float)
            own = moved[place] * np.sign(y[self.test[place]] - self.y[self.test[place]])
            follows.append(own > _TOLERANCE + _FURTHER * np.abs(np.delete(moved, place)).max(initial=0.0))
        return float(np.mean(follows)) >= _FOLLOWS

    def by_features(self, n_people: int, fitted_only: bool) -> list[tuple[str, str]]:
        """Leaks that another scan of one test person shows in the others.

        What was decided by the labels of test people moves with their features, too, which is no second leak; then only
        what was fitted counts.
        """
        changed: dict[str, None] = {}
        for place in self.rng.permutation(len(self.test))[:n_people]:
            X = self.X.copy()
            X[self.test[place]] = self._another()
            after = self._run(X, self.y)
            for values in (self.base, after):
                values["others"] = np.delete(values["scores"], place, axis=0)
            named = set(_changed(self.base, after)) - {"scores", "predictions", "threshold"}
            changed.update(dict.fromkeys(sorted(named)))
        fitted = [name for name in changed if name in BY_FEATURES]
        if fitted or fitted_only or not changed:
            return [(BY_FEATURES[name], f"With another scan of one test person {name} changes") for name in fitted]
        return [("statistics-of-test", "With another scan of one test person the scores of the others change")]

    def _another(self) -> np.ndarray:
        """Features (...) unlike anybody's."""
        values = self.X.astype(float)
        spread = np.nanstd(values, axis=0)
        other = np.nanmean(values, axis=0) + 5 * (spread + 1e-3) * self.rng.choice([-1, 1], size=spread.shape)
        return np.asarray(other, dtype=self.X.dtype)


def _changed(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> list[str]:
    """Names of the values that differ by more than rounding."""
    return [name for name in before if name not in after or not _same(before[name], after[name])]


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape:
        return False
    if one.dtype.kind not in "fiub" or other.dtype.kind not in "fiub":
        return bool(np.array_equal(one, other))
    scale = float(np.nanmax(np.abs(one), initial=0.0))
    return bool(np.allclose(one, other, rtol=_TOLERANCE, atol=_TOLERANCE * scale, equal_nan=True))
