"""Probes: the classifiers put on top of features. A choice is an entry of `PROBES` or any scikit-learn classifier.

The kernel forms here give the same solution as scikit-learn's own and are many times faster where there are more
columns than people, which is the rule with edges.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal, Self

import numpy as np
from scipy.linalg import eigh
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge, RidgeClassifier
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import SVC
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from openbrainmass.errors import OpenBrainMassError

SCALED_STRENGTH = 20.0
"""``C="scale"`` is this over the number of columns: 1 for 20 covariates, 1e-3 for the 19,900 edges of 200 ROIs."""


MANY = 1e10
"""Rows times squared columns from which `LogisticProbe` uses L-BFGS: Newton's method would take seconds."""


class _Binary(ClassifierMixin, BaseEstimator):
    """What the probes share: checked input, two classes, a decision value whose sign is the class."""

    classes_: np.ndarray

    def _checked(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) != 2:
            raise OpenBrainMassError(
                f"Only binary classification is supported. The {type(self).__name__} was given labels of "
                f"{len(self.classes_)} class(es); give exactly two."
            )
        return X, codes

    def _test(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return validate_data(self, X, dtype=[np.float64, np.float32], reset=False)

    def predict(self, X: Any) -> np.ndarray:
        """Class of each row: the second class where the decision value is positive."""
        values = self.decision_function(X)
        return self.classes_[(values > 0).astype(int)]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags


class LogisticProbe(_Binary):
    """L2 logistic regression, solved in the space of the training rows where there are more columns than rows.

    The solution is a combination of the training rows, so the problem is rotated into their span (an
    eigendecomposition of ``X @ X.T``), solved there, and rotated back: the same coefficients as
    `LogisticRegression`, at a cost that hardly grows with the number of columns. Tens of thousands of rows are solved
    by L-BFGS in the type that they have, without a float64 copy; on columns of like units it
    stops within 0.3 % of the largest log odds.

    Parameters
    ----------
    C : float or "scale"
        Inverse strength of the penalty; "scale" is ``20 / n_columns`` (`SCALED_STRENGTH`).
    class_weight : "balanced" or None
        As in `LogisticRegression`.

    Attributes
    ----------
    coef_ : ndarray (1, n_columns)
    intercept_ : ndarray (1,)
    classes_ : ndarray (2,)
    """

    def __init__(self, C: float | str = "scale", class_weight: str | None = None) -> None:
        self.C = C
        self.class_weight = class_weight

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to features (n_rows, n_columns) and labels of two classes."""
        X, codes = self._checked(X, y)
        strength = SCALED_STRENGTH / X.shape[1] if self.C == "scale" else float(self.C)
        # Newton's method forms a Gram matrix of the columns at every step.
        many = X.shape[1] <= X.shape[0] and X.shape[0] * X.shape[1] ** 2 > MANY
        method, steps = ("lbfgs", 1000) if many else ("newton-cholesky", 200)
        solver = LogisticRegression(C=strength, class_weight=self.class_weight, solver=method, tol=1e-6, max_iter=steps)
        with warnings.catch_warnings():
            # Newton's line search gives up where the start is the solution (constant features); lbfgs then confirms it.
            warnings.filterwarnings("ignore", message="Line search of Newton solver", category=ConvergenceWarning)
            if many:
                # L-BFGS stops far too early on columns that lie far from 0; the intercept is free to make up for it.
                middle = X.mean(axis=0, dtype=np.float64)
                self.coef_ = solver.fit(X - middle.astype(X.dtype), codes).coef_
                solver.intercept_ = solver.intercept_ - self.coef_ @ middle.astype(X.dtype)
            elif X.shape[1] <= X.shape[0]:
                self.coef_ = solver.fit(X.astype(np.float64), codes).coef_
            else:
                lengths, directions = row_space(X)
                solver.fit(directions * lengths, codes)
                self.coef_ = ((directions / lengths) @ solver.coef_[0])[None] @ X
        self.intercept_ = solver.intercept_
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Log odds of the second class, (n_rows,)."""
        X = np.ascontiguousarray(self._test(X))
        # BLAS sums rows in different orders, so that people with the same covariates (all of a site) would be ranked by
        # rounding errors, and not be the ties that they are.
        return np.einsum("ij,j->i", X, self.coef_[0].astype(X.dtype)) + self.intercept_[0]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probability of each class, (n_rows, 2)."""
        positive = expit(self.decision_function(X))
        return np.column_stack([1 - positive, positive])


def row_space(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Singular values of a wide matrix, without those that are rounding, and their left singular vectors."""
    values, vectors = eigh((X @ X.T).astype(np.float64))
    keep = values > values[-1] * len(X) * np.finfo(X.dtype).eps
    keep[-1] = True
    return np.sqrt(np.maximum(values[keep], np.finfo(float).tiny)), vectors[:, keep]


class SupportVectorProbe(_Binary):
    """`SVC()` with an RBF kernel taken by matrix product: the same machine, 10-20 times faster on wide data.

    Parameters
    ----------
    C : float
        Penalty of the margin errors.
    gamma : float or "scale"
        Width of the kernel; "scale" is ``1 / (n_columns * X.var())``, as in `SVC`.

    Attributes
    ----------
    support_vectors_ : ndarray (n_support, n_columns)
    dual_coef_ : ndarray (1, n_support)
    intercept_ : ndarray (1,)
    gamma_ : float
        The width that was used: ``decision = exp(-gamma_ * |x - support_vectors_|^2) @ dual_coef_.T + intercept_``.
    """

    def __init__(self, C: float = 1.0, gamma: float | str = "scale") -> None:
        self.C = C
        self.gamma = gamma

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to features (n_rows, n_columns) and labels of two classes."""
        X, codes = self._checked(X, y)
        spread = float(X.var(dtype=np.float64)) * X.shape[1]
        self.gamma_ = (1 / spread if spread > 0 else 1.0) if self.gamma == "scale" else float(self.gamma)
        machine = SVC(C=self.C, kernel="precomputed").fit(rbf_kernel(X, gamma=self.gamma_), codes)
        self.support_ = machine.support_
        self.support_vectors_ = X[machine.support_]
        self.dual_coef_ = machine.dual_coef_
        self.intercept_ = machine.intercept_
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Signed distance from the margin in units of the kernel expansion, (n_rows,)."""
        kernel = rbf_kernel(self._test(X), self.support_vectors_, gamma=self.gamma_)
        return kernel @ self.dual_coef_[0] + self.intercept_[0]


class PrototypeProbe(_Binary):
    """Nearest class mean.

    Parameters
    ----------
    metric : {"cosine", "euclidean"}
        The decision value is the similarity to the mean of the second class minus that to the first: cosines, or
        negative distances. It is linear in the features (after their length, for the cosine).

    Attributes
    ----------
    prototypes_ : ndarray (2, n_columns)
        Mean of each class.
    """

    def __init__(self, metric: str = "cosine") -> None:
        self.metric = metric

    def fit(self, X: Any, y: Any) -> Self:
        """Fit to features (n_rows, n_columns) and labels of two classes."""
        if self.metric not in {"cosine", "euclidean"}:
            raise OpenBrainMassError(f"The prototype metric {self.metric!r} is not known; use cosine or euclidean.")
        X, codes = self._checked(X, y)
        self.prototypes_ = np.stack([X[codes == label].mean(axis=0) for label in (0, 1)])
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Similarity to the second class's mean minus that to the first's, (n_rows,)."""
        X = self._test(X)
        if self.metric == "cosine":
            similarity = _unit(X) @ _unit(self.prototypes_).T
        else:
            similarity = -np.stack([np.linalg.norm(X - mean, axis=1) for mean in self.prototypes_], axis=1)
        return similarity[:, 1] - similarity[:, 0]


def _unit(rows: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def flat_steps(model: Pipeline) -> list[Any]:
    """Steps of a pipeline, those of pipelines within it in their place."""
    steps = [step for _, step in model.steps if step is not None and step != "passthrough"]
    return [part for step in steps for part in (flat_steps(step) if isinstance(step, Pipeline) else [step])]


def decision_values(estimator: Any, X: Any) -> np.ndarray:
    """Decision values (n,) of a fitted two-class classifier; 0 is the threshold.

    Raises
    ------
    OpenBrainMassError
        If it has neither ``decision_function`` nor ``predict_proba``.
    """
    if hasattr(estimator, "decision_function"):
        return np.asarray(estimator.decision_function(X), dtype=float).reshape(len(X))
    if hasattr(estimator, "predict_proba"):
        return np.asarray(estimator.predict_proba(X), dtype=float)[:, 1] - 0.5
    raise OpenBrainMassError(
        f"{type(estimator).__name__} has neither decision_function nor predict_proba, so it cannot rank people. "
        "Put a classifier that has one at the end of the pipeline."
    )


def unit_rows(X: np.ndarray) -> np.ndarray:
    """Rows (n_rows, n_columns) with mean 0 and length 1, so that their products are the correlations between rows."""
    X = np.asarray(X)
    return _unit(X - X.mean(axis=1, keepdims=True))


PROBES: dict[str, Pipeline] = {
    "svm": make_pipeline(StandardScaler(), SupportVectorProbe()),
    "logistic": make_pipeline(StandardScaler(), LogisticProbe()),
    "ridge": make_pipeline(StandardScaler(), RidgeClassifier(alpha=1e3)),
    "prototype": make_pipeline(StandardScaler(), PrototypeProbe()),
}
"""Probes by name, each standardising its features by the training rows. Use copies: `make_probe`."""

KERNEL_RIDGE: Pipeline = make_pipeline(FunctionTransformer(unit_rows), RidgeClassifier(alpha=1.0))
"""Kernel ridge on the correlation between two people's connectivity (He et al., NeuroImage 2020), classes as -1 and 1.

It is ridge on rows of length 1, solved in the space of the people, with an intercept that is not penalised. It is not
one of `PROBES`, all of which can be explained edge by edge.
"""

REGRESSORS: dict[str, Pipeline] = {
    "ridge": make_pipeline(StandardScaler(), Ridge(alpha=1e3)),
    "kernel ridge": make_pipeline(FunctionTransformer(unit_rows), Ridge(alpha=1.0)),
}
"""Probes for numbers by name, as `PROBES` and `KERNEL_RIDGE` for classes."""


def make_probe(probe: str | BaseEstimator, kind: Literal["classification", "regression"] = "classification") -> Any:
    """A fresh, unfitted probe, by name or from an estimator of one's own.

    Parameters
    ----------
    probe : str or estimator
        A name in `PROBES` (or kernel ridge) or `REGRESSORS`, or an estimator, of which a copy is made.
    kind : {"classification", "regression"}
        Which of the two a name is looked up in.

    Raises
    ------
    OpenBrainMassError
        If the name is not known for that kind.
    """
    if not isinstance(probe, str):
        return clone(probe)
    known = {**PROBES, "kernel ridge": KERNEL_RIDGE} if kind == "classification" else REGRESSORS
    if probe not in known:
        raise OpenBrainMassError(
            f"The probe {probe!r} is not known; choose one of {', '.join(known)}, or give a scikit-learn "
            f"{'classifier' if kind == 'classification' else 'regressor'}."
        )
    return clone(known[probe])
