"""Baselines: what any model must beat, as estimators with the same interface as the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin, clone
from sklearn.dummy import DummyRegressor
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.utils import Tags
from sklearn.utils.validation import check_is_fitted

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.connectivity import correlation, fisher_z, partial_correlation, vectorize
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.fitting import fit_model
from openbrainmass.evaluation.probes import decision_values, flat_steps, make_probe
from openbrainmass.evaluation.tasks import DEFAULT_COVARIATES, Task, code
from openbrainmass.evaluation.tuning import PeopleFolds, tuned

Recordings = Cohort | Sequence[np.ndarray] | np.ndarray
"""A cohort, a list of (n_volumes_i, n_rois) arrays, or an FC stack (n, n_rois, n_rois)."""

FIXED_SHRINKAGE = 0.3
"""Share of the identity at which tangent vectors tell most (chosen on half of the sites of ABIDE I; see docs/results.md)."""

_ESTIMATORS = {"correlation": "pearson", "fisher-z": "pearson", "partial": "ledoit-wolf", "tangent": "ledoit-wolf"}


def accept_recordings(tags: Tags, requires_fit: bool = True) -> Tags:
    """Say in scikit-learn's tags that input is a sequence of recordings, not a table, and whether anything is fitted."""
    tags.input_tags.two_d_array = False
    tags.input_tags.three_d_array = True
    tags.no_validation = True
    tags.requires_fit = requires_fit
    return tags


def is_fc_stack(X: Recordings) -> bool:
    """Whether X is a stack (n, n_rois, n_rois) of correlation matrices rather than BOLD."""
    if not isinstance(X, np.ndarray) or X.ndim != 3 or X.shape[1] != X.shape[2] or len(X) == 0:
        return False
    first = X[0]
    return bool(np.allclose(first, first.T, atol=1e-4) and np.allclose(np.diagonal(first), 1, atol=1e-4))


class Connectome(TransformerMixin, BaseEstimator):
    """Functional connectivity as features: the plain baseline with a transformer's interface.

    Parameters
    ----------
    kind : {"fisher-z", "partial", "tangent", "correlation"}
        Fisher-z edges; partial correlations; tangent-space vectors around the mean of the people given to `fit`
        (`TangentSpace`); or the correlation matrices themselves.
    estimator : {"pearson", "ledoit-wolf"}, optional
        Default: pearson, and ledoit-wolf for partial and tangent, which need matrices that can be inverted and
        accept no other.
    shrinkage : float, optional
        Of tangent only: mix Pearson correlations with the identity by this share, the same for every recording, instead
        of Ledoit-Wolf's, which is larger for shorter scans. 0.3 is what the tangent encoder uses.
    """

    def __init__(self, kind: str = "fisher-z", estimator: str | None = None, shrinkage: float | None = None) -> None:
        self.kind = kind
        self.estimator = estimator
        self.shrinkage = shrinkage

    def _estimator(self) -> str:
        if self.kind not in _ESTIMATORS:
            raise OpenBrainMassError(
                f"The connectome kind {self.kind!r} is not known; choose one of {', '.join(_ESTIMATORS)}."
            )
        if self.shrinkage is not None:
            if self.kind != "tangent" or self.estimator is not None or not 0 < self.shrinkage < 1:
                raise OpenBrainMassError(
                    f"Connectome({self.kind!r}) was asked for a shrinkage of {self.shrinkage}. It is a share between 0 and 1, "
                    "of kind tangent and without an estimator. Leave it out, or give kind 'tangent' alone with it."
                )
            return "pearson"
        default = _ESTIMATORS[self.kind]
        if self.estimator is not None and default == "ledoit-wolf" and self.estimator != default:
            raise OpenBrainMassError(
                f"Connectome({self.kind!r}) was asked for {self.estimator!r} correlations, which have no inverse when "
                "there are fewer volumes than ROIs. Leave the estimator out (ledoit-wolf)."
            )
        return self.estimator or default

    def fit(self, X: Recordings, y: Any = None) -> Self:
        """Learn the tangent reference; the other kinds learn nothing."""
        self._estimator()
        if self.kind == "tangent":
            self.space_ = TangentSpace(self.shrinkage or 0.0).fit(self.matrices(X))
        return self

    def transform(self, X: Recordings) -> np.ndarray:
        """Features of recordings.

        Returns
        -------
        ndarray (n, n_features), float32
            ``n_rois * (n_rois - 1) / 2`` edges, for tangent also the diagonal; for correlation (n, n_rois, n_rois).
        """
        self._estimator()
        if self.kind == "tangent":
            check_is_fitted(self)
            return self.space_.transform(self.matrices(X))
        return np.stack([self._features(recording, number) for number, recording in enumerate(X)])

    def matrices(self, X: Recordings) -> np.ndarray:
        """Correlation matrices (n, n_rois, n_rois), float32, of each recording by itself: nothing is learnt."""
        if is_fc_stack(X):
            return np.asarray(X, dtype=np.float32)
        return np.stack([self._matrix(recording, number) for number, recording in enumerate(X)])

    def prepare(self, X: Recordings) -> np.ndarray:
        """What `fit` and `transform` take as well as BOLD, made once for all folds (see `evaluate`)."""
        return self.matrices(X)

    def _matrix(self, recording: np.ndarray, number: int) -> np.ndarray:
        try:
            return correlation(np.asarray(recording), self._estimator()).astype(np.float32)
        except OpenBrainMassError as error:
            raise OpenBrainMassError(f"Recording {number}: {error}") from error

    def _features(self, recording: np.ndarray, number: int) -> np.ndarray:
        is_fc = is_fc_stack(np.asarray(recording)[None])
        if self.kind == "partial":
            if is_fc:
                raise OpenBrainMassError(
                    "Partial correlations are made from BOLD; FC matrices were given. Give the BOLD."
                )
            return vectorize(partial_correlation(np.asarray(recording))).astype(np.float32)
        fc = np.asarray(recording, dtype=np.float32) if is_fc else self._matrix(recording, number)
        return fc if self.kind == "correlation" else vectorize(fisher_z(fc)).astype(np.float32)

    def __sklearn_tags__(self) -> Any:
        return accept_recordings(super().__sklearn_tags__(), requires_fit=self.kind == "tangent")


class TangentSpace(TransformerMixin, BaseEstimator):
    """Tangent vectors of correlation matrices at the arithmetic mean of those given to `fit`.

    ``log(G^-1/2 C G^-1/2)``, its upper triangle with the off-diagonal scaled by sqrt(2), so that Euclidean distances
    are the matrices' (Varoquaux et al., MICCAI 2010).

    Parameters
    ----------
    shrinkage : float
        Share of the identity that every matrix is mixed with first.

    Attributes
    ----------
    reference_ : ndarray (n_rois, n_rois)
        The mean G, after shrinkage.
    """

    def __init__(self, shrinkage: float = 0.0) -> None:
        self.shrinkage = shrinkage

    def fit(self, X: np.ndarray, y: Any = None) -> Self:
        """Take the mean of positive definite matrices (n, n_rois, n_rois)."""
        self.reference_ = self._shrunk(np.asarray(X).mean(axis=0, dtype=np.float64))
        values, vectors = np.linalg.eigh(self.reference_)
        if values[0] <= 1e-10 * values[-1]:
            raise OpenBrainMassError(
                "The mean of the correlation matrices has no inverse, so it has no tangent space. Use Ledoit-Wolf "
                "correlations: Connectome('tangent')."
            )
        self._whitener = ((vectors / np.sqrt(values)) @ vectors.T).astype(np.float32)
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Tangent vectors, (n, n_rois * (n_rois + 1) / 2), float32."""
        check_is_fitted(self)
        rows, columns = np.triu_indices(X.shape[-1])
        scale = np.where(rows == columns, 1, np.sqrt(2)).astype(np.float32)
        out = np.empty((len(X), len(rows)), dtype=np.float32)
        for number, matrix in enumerate(X):
            shrunk = self._shrunk(matrix.astype(np.float32))
            values, vectors = np.linalg.eigh(self._whitener @ shrunk @ self._whitener)
            if values[0] <= 0:
                raise OpenBrainMassError(
                    f"Matrix {number} is not positive definite, so it has no tangent vector. Use Ledoit-Wolf "
                    "correlations: Connectome('tangent')."
                )
            out[number] = ((vectors * np.log(values)) @ vectors.T)[rows, columns] * scale
        return out

    def _shrunk(self, matrix: np.ndarray) -> np.ndarray:
        return (1 - self.shrinkage) * matrix + self.shrinkage * np.eye(len(matrix), dtype=matrix.dtype)


class Covariates(TransformerMixin, BaseEstimator):
    """What is known of people without their brains: age, sex, site, motion, scan length.

    Numbers have their missing values set to the training median; everything else, and sites also where they are
    numbered, becomes one column a training value (one that training did not hold, or a missing one, is 0 in all of
    them). A column that only the training cohort has counts as missing in the other.

    Parameters
    ----------
    columns : sequence of str, optional
        Columns of the cohort's table.
    must_exist : bool
        Whether a column that the training cohort does not have is an error or is left out.
    site : str
        Column of the site.
    """

    def __init__(
        self, columns: Sequence[str] = DEFAULT_COVARIATES, must_exist: bool = False, site: str = "site"
    ) -> None:
        self.columns = columns
        self.must_exist = must_exist
        self.site = site

    def fit(self, X: Cohort, y: Any = None) -> Self:
        """Learn medians and categories from the training recordings of a cohort."""
        table = self._table(X)
        absent = [column for column in self.columns if column not in table]
        if absent and self.must_exist:
            raise OpenBrainMassError(
                f"Cohort {X.name} has no covariate {', '.join(absent)} to offer (the predicted column is never one); "
                f"it has {', '.join(table.columns)}. Name some of those."
            )
        self.medians_: dict[str, float] = {}
        self.categories_: dict[str, list[str]] = {}
        for column in (column for column in self.columns if column in table):
            if column != self.site and pd.api.types.is_numeric_dtype(table[column]):
                median = table[column].median()
                self.medians_[column] = 0.0 if pd.isna(median) else float(median)
            else:
                self.categories_[column] = sorted({code(value) for value in table[column]} - {""})
        return self

    def transform(self, X: Cohort) -> np.ndarray:
        """Covariates of each recording, (n, n_columns), float64; one column of 0 where there is none."""
        check_is_fitted(self)
        table = self._table(X).reindex(columns=[*self.medians_, *self.categories_])
        parts = [np.zeros((len(X), 0))]
        for column, median in self.medians_.items():
            parts.append(pd.to_numeric(table[column], errors="coerce").fillna(median).to_numpy(float)[:, None])
        for column, categories in self.categories_.items():
            codes = np.array([code(value) for value in table[column]])
            parts.append((codes[:, None] == np.array(categories, dtype=str)[None]).astype(float))
        values = np.hstack(parts)
        return values if values.shape[1] else np.zeros((len(X), 1))

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of the columns: the covariate, or covariate=value."""
        check_is_fitted(self)
        pairs = [f"{column}={value}" for column, values in self.categories_.items() for value in values]
        return np.array([*self.medians_, *pairs] or ["none"], dtype=object)

    @staticmethod
    def _table(X: Cohort) -> pd.DataFrame:
        if not isinstance(X, Cohort):
            raise OpenBrainMassError(
                f"Covariates were given {type(X).__name__}; they are columns of a cohort's table. Give a Cohort."
            )
        return X.table

    def __sklearn_tags__(self) -> Any:
        return accept_recordings(super().__sklearn_tags__())


class Chance(ClassifierMixin, BaseEstimator):
    """Knows only which class is larger: decision value 0 for everyone, hence AUC 0.5 under every protocol.

    `evaluate` gives a value of exactly 0 to the larger training class. (The prior itself as decision value would fall
    below 0.5 when folds are pooled, since a fold with many patients leaves few for training.)
    """

    def fit(self, X: Any, y: Any) -> Self:
        """Count the classes."""
        self.classes_, counts = np.unique(y, return_counts=True)
        self.majority_ = self.classes_[counts.argmax()]
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Zeros, (n,)."""
        check_is_fitted(self)
        return np.zeros(len(X))

    def predict(self, X: Any) -> np.ndarray:
        """The larger training class for everyone, (n,)."""
        check_is_fitted(self)
        return np.full(len(X), self.majority_)

    def __sklearn_tags__(self) -> Any:
        return accept_recordings(super().__sklearn_tags__())


class ShuffledLabels(ClassifierMixin, BaseEstimator):
    """A classifier whose training labels are permuted among the training people.

    A permutation is as likely as the same with the classes swapped, so the AUC is 0.5 on average over permutations,
    and a table's distance from it is what the protocol adds (such as ranking people of several folds together). One
    permutation strays, since people's values are alike along a few directions: look at several (`shuffled`).

    Parameters
    ----------
    estimator : classifier
        What is fitted.
    seed : int
        Of the permutation; the size of the training set enters too, so folds differ.
    """

    __metadata_request__fit = {"groups": True}

    def __init__(self, estimator: Any, seed: int = 0) -> None:
        self.estimator = estimator
        self.seed = seed

    def fit(self, X: Any, y: Any, groups: Any = None) -> Self:
        """Fit a copy of the classifier to permuted labels; `groups` (n,) names people, who keep one label each."""
        y = np.asarray(y)
        groups = np.arange(len(y)) if groups is None else np.asarray(groups)
        # Siblings of both classes are two to be relabelled; one label for a family would change how many of each there are.
        family, classes = (np.unique(values, return_inverse=True)[1] for values in (groups, y))
        _, first, person = np.unique(family * (classes.max() + 1) + classes, return_index=True, return_inverse=True)
        order = np.random.default_rng([self.seed, len(y)]).permutation(len(first))
        self.estimator_ = fit_model(clone(self.estimator), X, y[first][order][person], groups)
        self.classes_ = self.estimator_.classes_
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """The decision value of the classifier, or its probability of the second class minus 0.5."""
        check_is_fitted(self)
        return decision_values(self.estimator_, X)

    def predict(self, X: Any) -> np.ndarray:
        """The class that the classifier predicts."""
        check_is_fitted(self)
        return self.estimator_.predict(X)

    def __sklearn_tags__(self) -> Any:
        return accept_recordings(super().__sklearn_tags__())


class ScoreSum(ClassifierMixin, BaseEstimator):
    """The sum of several classifiers' decision values, each z-scored by what it says of training people it was not fitted to.

    Values of people whom a classifier was fitted to are far too large, and more so the less it is regularised; so the
    last step of each part is fitted again without each inner fold of people in turn, and the mean and spread of those
    held-out values are what its values are z-scored by. No test value enters. 0 is the training people's average.

    Parameters
    ----------
    estimators : list of (str, classifier)
        The parts.
    n_folds : int
        Inner folds (`PeopleFolds`); with one person a class the fitted values themselves serve.
    seed : int
        Of the inner folds.

    Attributes
    ----------
    estimators_ : list of classifier
        The fitted parts.
    centres_, spreads_ : ndarray (n_parts,)
        Mean and standard deviation of each part's held-out decision values.
    """

    __metadata_request__fit = {"groups": True}

    def __init__(self, estimators: list[tuple[str, Any]], n_folds: int = 5, seed: int = 0) -> None:
        self.estimators = estimators
        self.n_folds = n_folds
        self.seed = seed

    def fit(self, X: Recordings, y: Any, groups: Any = None) -> Self:
        """Fit the parts to recordings (n,) and labels 0/1; `groups` (n,) names the person of each recording."""
        y = np.asarray(y)
        groups = np.arange(len(y)) if groups is None else np.asarray(groups)
        folds = list(PeopleFolds(self.n_folds, self.seed).split(X, y, groups))
        self.classes_ = np.unique(y)
        self.estimators_, moments = [], []
        for _, part in self.estimators:
            front, features, last = _split(part, X, y)
            held_out = _held_out_values(last, features, y, groups, folds)
            self.estimators_.append(make_pipeline(*front, fit_model(clone(last), features, y, groups)))
            moments.append((held_out.mean(), held_out.std() or 1.0))
        self.centres_, self.spreads_ = np.array(moments).T
        return self

    def decision_function(self, X: Recordings) -> np.ndarray:
        """The sum of the parts' z-scored decision values, (n,)."""
        check_is_fitted(self)
        values = [decision_values(part, X) for part in self.estimators_]
        return ((np.stack(values, axis=1) - self.centres_) / self.spreads_).sum(axis=1)

    def predict(self, X: Recordings) -> np.ndarray:
        """The second class where the sum is positive, (n,)."""
        return self.classes_[(self.decision_function(X) > 0).astype(int)]

    def __sklearn_tags__(self) -> Any:
        return accept_recordings(super().__sklearn_tags__())


def _split(part: Any, X: Any, y: np.ndarray) -> tuple[list[Any], Any, Any]:
    """Fitted steps in front of a part's last one, what they make of X, and the last one, not fitted."""
    *before, last = flat_steps(part) if isinstance(part, Pipeline) else [part]
    if not before:
        return [], X, last
    front = clone(make_pipeline(*before))
    features = front.fit_transform(X, y)
    return [step for _, step in front.steps], features, last


def _held_out_values(
    last: Any, features: Any, y: np.ndarray, groups: np.ndarray, folds: list[tuple[np.ndarray, np.ndarray]]
) -> np.ndarray:
    """Decision values of training recordings by copies of a classifier that did not see the person's label."""
    values = np.full(len(y), np.nan)
    for train, test in folds:
        fitted = fit_model(clone(last), _rows(features, train), y[train], groups[train])
        values[test] = decision_values(fitted, _rows(features, test))
    return values


def _rows(values: Any, rows: np.ndarray) -> Any:
    if isinstance(values, Cohort):
        return values.select(rows)
    return [values[row] for row in rows] if isinstance(values, list) else values[rows]


def floors(probe: str | BaseEstimator | None = None, task: Task | None = None) -> dict[str, Any]:
    """The models that no table should be without.

    Parameters
    ----------
    probe : str or estimator, optional
        The probe of the model under test, put on the plain edges as well; svm if not given, for regression ridge.
    task : Task, optional
        Its kind decides between classifiers and regressors, and its covariates are used; without it classifiers, and
        those of `DEFAULT_COVARIATES` that the cohort has.

    Returns
    -------
    dict of str to estimator
        chance (for regression the mean), covariates, edges, edges + the probe (where it is another), tangent.
    """
    kind, linear, probe = _words(task, probe)
    same = probe if isinstance(probe, str) else "same probe"
    site = "site" if task is None else task.site
    return {
        **({"chance": Chance()} if kind == "classification" else {"mean": DummyRegressor()}),
        f"covariates + {linear}": make_pipeline(Covariates(_covariates(task), site=site), make_probe(linear, kind)),
        f"edges + {linear}": make_pipeline(Connectome("fisher-z"), make_probe(linear, kind)),
        f"edges + {same}": make_pipeline(Connectome("fisher-z"), make_probe(probe, kind)),
        f"tangent + {linear}": make_pipeline(Connectome("tangent"), make_probe(linear, kind)),
    }


def rivals(task: Task, cohort: Cohort) -> dict[str, Any]:
    """The simple models that a new one has to be measured against: the floors, and everything else of their kind.

    Parameters
    ----------
    task : Task
        Its kind decides between classifiers and regressors.
    cohort : Cohort
        Which of the task's covariates it has (with more than one value) decides on the rows of one covariate each.

    Returns
    -------
    dict of str to estimator
        The `floors`; each covariate alone; edges with the other probes, and with regularisation chosen by inner folds
        (`tuned`); tangent vectors with ridge, and with a fixed shrinkage; partial correlations; for
        classes also the sum of edges and tangent (`edges_and_tangent`).
    """
    kind, linear, _ = _words(task, None)
    alone = [name for name in _covariates(task) if name in cohort.table and cohort.table[name].nunique() > 1]
    models = {
        **floors(None, task),
        **{
            f"{name} + {linear}": make_pipeline(Covariates((name,), site=task.site), make_probe(linear, kind))
            for name in alone
        },
        "edges + ridge": make_pipeline(Connectome("fisher-z"), make_probe("ridge", kind)),
        f"tangent, shrunk by {FIXED_SHRINKAGE:g} + ridge": make_pipeline(
            Connectome("tangent", shrinkage=FIXED_SHRINKAGE), make_probe("ridge", kind)
        ),
        "tangent + ridge": make_pipeline(Connectome("tangent"), make_probe("ridge", kind)),
        "edges + kernel ridge, tuned": make_pipeline(Connectome("fisher-z"), tuned("kernel ridge", kind)),
        f"edges + {linear}, tuned": make_pipeline(Connectome("fisher-z"), tuned(linear, kind)),
        f"partial + {linear}": make_pipeline(Connectome("partial"), make_probe(linear, kind)),
    }
    if kind == "classification":
        models["edges + tangent, sum"] = edges_and_tangent()
    return models


def edges_and_tangent() -> ScoreSum:
    """The sum of logistic regressions on edges and on tangent vectors: the strongest simple model that we know."""
    kinds = {"edges": "fisher-z", "tangent": "tangent"}
    return ScoreSum([(name, make_pipeline(Connectome(kind), make_probe("logistic"))) for name, kind in kinds.items()])


def shuffled(model: Any, n_shuffles: int = 5, seed: int = 0) -> dict[str, ShuffledLabels]:
    """Copies of a classifier that are fitted to labels without meaning: how far from chance that strays.

    Parameters
    ----------
    model : classifier
        With all its steps.
    n_shuffles : int
        Rows; read them together, as one permutation strays.
    seed : int
        Of the first; the others follow.

    Returns
    -------
    dict of str to ShuffledLabels
        By name: shuffled labels 1, shuffled labels 2, ...
    """
    return {f"shuffled labels {number + 1}": ShuffledLabels(model, seed + number) for number in range(n_shuffles)}


def _words(task: Task | None, probe: Any) -> tuple[Literal["classification", "regression"], str, Any]:
    kind = "classification" if task is None else task.kind
    linear, default = ("logistic", "svm") if kind == "classification" else ("ridge", "ridge")
    return kind, linear, default if probe is None else probe


def _covariates(task: Task | None) -> tuple[str, ...]:
    return DEFAULT_COVARIATES if task is None else task.covariates
