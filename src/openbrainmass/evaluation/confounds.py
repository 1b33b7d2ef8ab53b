"""The confound card: what else than the label a model's features and scores go with; and covariates regressed out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import pandas as pd
from scipy.linalg import pinv
from scipy.stats import norm, rankdata
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import recall_score
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.abstention import people_interval
from openbrainmass.evaluation.baselines import DEFAULT_COVARIATES, Covariates, accept_recordings
from openbrainmass.evaluation.fitting import fit_model, predicted
from openbrainmass.evaluation.folds import folds_of
from openbrainmass.evaluation.labelled import Labelled, labelled
from openbrainmass.evaluation.metrics import Predictions, Weights, find_metric
from openbrainmass.evaluation.prepared import Prepared, prepare
from openbrainmass.evaluation.protocols import POOLED_PROTOCOLS, few_shot_size
from openbrainmass.evaluation.results import Results
from openbrainmass.evaluation.splits import Fold
from openbrainmass.evaluation.statistics import metric_interval
from openbrainmass.evaluation.tasks import Task, code

CONFOUND_COLUMNS = ("model", "protocol", "check", "item", "value", "low", "high", "n")
"""``check`` is one of `CHECKS`; ``item`` says what the value is; ``n`` counts people."""

CHECKS = {
    "site": "how well the site can be read from the features, beside chance",
    "mean_fd": "rank correlation of the score with motion, over everybody and within class",
    "n_volumes": "rank correlation of the score with the length of the scan, over everybody and within class",
    "sex": "the metric within each sex, and the difference",
    "age": "the metric within thirds of age, and the difference of the oldest and the youngest",
    "covariates": "the metric before and after the covariates are regressed out of the features inside the folds",
}
"""What the card looks at."""

METRIC = {"classification": "auc", "regression": "r"}
"""What is looked at within strata: R2 would fall with the spread of the target within a stratum alone."""

REGRESSED_PROTOCOLS = ("k-fold", "site-held-out", "cohort-held-out")
"""Protocols whose folds test people at most once a repeat."""

WITHIN_SITES = 0.1
"""Share of a covariate's variance that must lie within sites for it to be told from the site."""

LEAST_PEOPLE = 10
"""People (of each class) that a stratum needs."""

Row = tuple[str, str, float, float, float, int]


class CovariateRegression:
    """Linear effects of covariates on features, by least squares, learnt from training recordings.

    Where covariates determine each other, the solution of least norm in standardised covariates is taken. A code that
    training did not hold (an unseen site) is taken as the average one: nothing is moved for it. A number that hardly
    varies within sites (TR, mostly the length) is left to the site where the site is a covariate: its effect would
    rest on a handful of sites, and at a new one be a guess that moves all its people together.

    Parameters
    ----------
    columns : sequence of str
        Columns of the cohort's table; those that it does not have are left out.
    site : str
        Column of the site.

    Attributes
    ----------
    columns_ : tuple of str
        Covariates that were regressed out.
    effects_ : ndarray (n_covariate_columns, n_features)
        Change of each feature for one standard deviation of each covariate.
    """

    def __init__(self, columns: Sequence[str] = DEFAULT_COVARIATES, site: str = "site") -> None:
        self.columns = columns
        self.site = site

    def fit(self, X: Cohort, features: np.ndarray) -> Self:
        """Learn the effects from the features (n, n_features) of the recordings of a cohort."""
        features = np.asarray(features)
        if features.ndim != 2 or len(features) != len(X) or not np.isfinite(features).all():
            raise OpenBrainMassError(
                f"Covariates can be regressed out of a finite table of features ({len(X)}, n_features), one row a "
                f"recording; found shape {features.shape}. Put a step in front that makes one, such as "
                "Connectome('fisher-z')."
            )
        self.columns_ = self._varying(X)
        self.covariates_ = Covariates(self.columns_).fit(X)
        self.scaler_ = StandardScaler().fit(self.covariates_.transform(X))
        self.effects_ = (pinv(self._design(X)) @ (features - features.mean(axis=0))).astype(features.dtype)
        return self

    def residuals(self, X: Cohort, features: np.ndarray) -> np.ndarray:
        """Features (n, n_features) of recordings without the effects of their covariates; training means stay."""
        return np.asarray(features) - (self._design(X) @ self.effects_).astype(self.effects_.dtype)

    def _varying(self, X: Cohort) -> tuple[str, ...]:
        table = X.table
        columns = [column for column in self.columns if column in table]
        if self.site not in columns:
            return tuple(columns)
        sites = table.groupby(table[self.site].map(code))

        def varies(column: str) -> bool:
            if column == self.site or not pd.api.types.is_numeric_dtype(table[column]):
                return True
            within = float((table[column] - sites[column].transform("mean")).var())
            return within > WITHIN_SITES * float(table[column].var())

        return tuple(column for column in columns if varies(column))

    def _design(self, X: Cohort) -> np.ndarray:
        values = self.covariates_.transform(X)
        design = self.scaler_.transform(values)
        start = len(self.covariates_.medians_)
        for categories in self.covariates_.categories_.values():
            block = slice(start, start + len(categories))
            design[np.ix_(~values[:, block].any(axis=1), np.r_[block])] = 0
            start = block.stop
        return design


class Deconfounded(TransformerMixin, BaseEstimator):
    """Features of recordings with covariates regressed out, their effects learnt from training recordings alone.

    What the covariates share with the label goes with them, so a model on these features shows what is left when
    everything that *could* be explained by the covariates is given to them.

    Parameters
    ----------
    features : transformer
        Makes a table of features (n, n_features) of recordings, such as ``Connectome("fisher-z")``; a copy is fitted.
    columns : sequence of str
        Covariates: columns of the cohort's table (see `CovariateRegression`).
    site : str
        Column of the site.

    Attributes
    ----------
    features_ : transformer
        The fitted copy.
    regression_ : CovariateRegression

    References
    ----------
    Snoek, Miletić and Scholte, 2019, "How to control for confounds in decoding analyses of neuroimaging data".

    Examples
    --------
    >>> from sklearn.pipeline import make_pipeline
    >>> from openbrainmass.evaluation.baselines import Connectome
    >>> from openbrainmass.evaluation.probes import make_probe
    >>> model = make_pipeline(Deconfounded(Connectome("fisher-z"), ["age", "mean_fd"]), make_probe("logistic"))
    """

    def __init__(self, features: Any, columns: Sequence[str] = DEFAULT_COVARIATES, site: str = "site") -> None:
        self.features = features
        self.columns = columns
        self.site = site

    def fit(self, X: Cohort, y: Any = None) -> Self:
        """Learn the features, and what the covariates do to them, from training recordings."""
        self._learn(X, y)
        return self

    def fit_transform(self, X: Cohort, y: Any = None, **fit_params: Any) -> np.ndarray:
        """Fit, and give the residuals of the training recordings, (n, n_features)."""
        features = self._learn(X, y)
        return self.regression_.residuals(X, features)

    def transform(self, X: Cohort) -> np.ndarray:
        """Features without the effects of the covariates, (n, n_features)."""
        check_is_fitted(self)
        return self.regression_.residuals(X, self.features_.transform(X))

    def _learn(self, X: Cohort, y: Any) -> np.ndarray:
        self.features_ = clone(self.features)
        features = np.asarray(self.features_.fit_transform(X, y))
        self.regression_ = CovariateRegression(self.columns, self.site).fit(X, features)
        return features

    def __sklearn_tags__(self) -> Any:
        return accept_recordings(super().__sklearn_tags__())


def confound_card(
    results: Results,
    cohort: Cohort,
    task: Task,
    models: Mapping[str, Any],
    *,
    test_cohort: Cohort | None = None,
    test_task: Task | None = None,
    n_resamples: int = 500,
    seed: int = 0,
    refit_learnt: bool = False,
) -> pd.DataFrame:
    """What else than the label the features and scores of models go with.

    Site decodability is the mean recall of the sites of a linear classifier in 5-fold by person. Correlations are
    Spearman's; where the AUC ranks people within folds, scores are standardised within folds first. Strata need
    `LEAST_PEOPLE` of each class. Covariates are regressed out of the features inside the folds of the first repeat,
    as the table ``folds`` of the results has them, and the classifier is fitted anew.

    Parameters
    ----------
    results : Results
        What `evaluate` returned; without the table ``folds`` nothing is regressed out.
    cohort : Cohort
        The cohort that was given to it.
    task : Task
    models : mapping of str to classifier
        Models of the results, unfitted, each a pipeline whose first step makes its features (others have only the
        rows that need no features).
    test_cohort : Cohort, optional
        The external cohort, for the rows of protocol ``external``.
    test_task : Task, optional
        What is told apart in it, where that is something else.
    n_resamples : int
        Bootstrap samples of the intervals of strata and differences.
    seed : int
        Of bootstrap and site folds.
    refit_learnt : bool
        Whether also models whose features are fitted (tangent) are fitted anew for site and covariates: slow.

    Returns
    -------
    DataFrame
        `CONFOUND_COLUMNS`; a row a value, with its 95 % interval. What cannot be computed has no row.
    """
    own = labelled(cohort, task)
    metric = METRIC[results.kind]
    people = {False: describe_people(own.cohort, task)}
    if test_cohort is not None:
        target = test_task or task
        people[True] = describe_people(labelled(test_cohort, target, [task.target]).cohort, target)
    table: list[dict[str, Any]] = []
    for (protocol, model), predictions in results.predictions.groupby(["protocol", "model"], sort=False):
        external = str(protocol).startswith("external")
        told_apart = predictions["y_score"].nunique() > 1
        if few_shot_size(str(protocol)) is not None or external not in people or not told_apart:
            continue
        rows = list(_correlations(predictions, people[external]))
        rows += _strata(predictions, people[external], metric, n_resamples, seed)
        table += _named(rows, str(model), str(protocol))
    prepared = [prepare(name, model) for name, model in models.items()]
    folds = _first_folds(results, own)
    for together, features in _shared(own, prepared, refit_learnt):
        site = _site_rows(together[0], features, own, seed)
        for one in together:
            table += _named(site, one.name, "")
            for fold_set in folds:
                rows = _regressed(results, fold_set, one, features, own, task, n_resamples, seed)
                table += _named(rows, one.name, fold_set[0].protocol)
    return pd.DataFrame(table, columns=list(CONFOUND_COLUMNS))


def _named(rows: Iterable[Row], model: str, protocol: str) -> list[dict[str, Any]]:
    known = [row for row in rows if np.isfinite(row[2])]
    return [dict(zip(CONFOUND_COLUMNS, (model, protocol, *row), strict=True)) for row in known]


def describe_people(cohort: Cohort, task: Task) -> pd.DataFrame:
    """One row a person, by ``participant_id``: ``mean_fd n_volumes age`` (means over recordings) and ``sex`` as a code.

    Columns that the cohort lacks, or that the task predicts, are left out.
    """
    table = cohort.table
    grouped = table.groupby(table["participant_id"].astype(str))
    wanted = [name for name in ("mean_fd", "n_volumes", "age", "sex") if name in table and name != task.target]
    out = pd.DataFrame(index=grouped.size().index)
    for name in wanted:
        if name == "sex":
            out[name] = grouped[name].first().map(code)
        else:
            out[name] = pd.to_numeric(table[name], errors="coerce").groupby(table["participant_id"].astype(str)).mean()
    return out


def _correlations(predictions: pd.DataFrame, people: pd.DataFrame) -> Iterator[Row]:
    """Spearman correlations of the score with motion and length."""
    scores = person_scores(predictions)
    classes = scores["y_true"].nunique() == 2
    for name in ("mean_fd", "n_volumes"):
        if name not in people:
            continue
        known = scores.join(people[name], how="inner").dropna()
        if len(known) < LEAST_PEOPLE or min(known[name].nunique(), known["score"].nunique()) < 2:
            continue
        yield (name, "correlation", *spearman(known["score"], known[name]), len(known))
        if classes:
            within = spearman(known["score"], known[name], known["y_true"])
            yield (name, "correlation within class", *within, len(known))


def person_scores(predictions: pd.DataFrame) -> pd.DataFrame:
    """One row a person, by ``participant_id``: ``score y_true``.

    Decision values of different fits have no common zero, so outside of `POOLED_PROTOCOLS` they are standardised
    within folds before the mean over repeats is taken.
    """
    table = predictions[["participant_id", "y_true", "y_score", "repeat", "fold"]].rename(columns={"y_score": "score"})
    if str(predictions["protocol"].iloc[0]) not in POOLED_PROTOCOLS:
        folds = table.groupby(["repeat", "fold"])["score"]
        spread = folds.transform("std", ddof=0)
        table["score"] = ((table["score"] - folds.transform("mean")) / spread.where(spread > 0)).fillna(0.0)
    return table.groupby(table["participant_id"].astype(str)).agg({"score": "mean", "y_true": "first"})


def spearman(one: Any, other: Any, group: Any = None) -> tuple[float, float, float]:
    """Spearman's correlation with a 95 % interval by Fisher's z; with groups given, of the ranks within them.

    The standard error of z is ``sqrt((1 + r^2 / 2) / (n - 3))`` (Bonett and Wright, 2000), one degree of freedom less
    for each further group. Within groups, the groups' means are taken out of the ranks.

    Parameters
    ----------
    one, other : array (n,)
    group : array (n,), optional

    Returns
    -------
    r, low, high : float
    """
    ranks = [pd.Series(rankdata(values)) for values in (one, other)]
    groups = pd.Series(0, index=ranks[0].index) if group is None else pd.Series(np.asarray(group))
    first, second = (rank - rank.groupby(groups).transform("mean") for rank in ranks)
    r = float((first * second).sum() / np.sqrt((first**2).sum() * (second**2).sum()))
    error = np.sqrt((1 + r**2 / 2) / max(1, len(first) - 2 - groups.nunique()))
    z = np.arctanh(np.clip(r, -1 + 1e-12, 1 - 1e-12))
    low, high = np.tanh(z + norm.ppf([0.025, 0.975]) * error)
    return r, float(low), float(high)


def _strata(predictions: pd.DataFrame, people: pd.DataFrame, metric: str, n_resamples: int, seed: int) -> Iterator[Row]:
    """The metric within sex and thirds of age, and the difference of the first and the last stratum."""
    taken = Predictions.of(predictions)
    here = people.reindex(taken.people)
    y = np.zeros(len(taken.people))
    y[taken.person] = taken.truth
    value_of = find_metric(metric)

    def within(members: np.ndarray) -> Callable[[Weights], np.ndarray]:
        return lambda weights: value_of(taken, Weights(weights.people * members, weights.repeats))

    for name, strata in _members(here).items():
        kept = [(label, members) for label, members in strata if _n_relevant(y[members], metric) >= LEAST_PEOPLE]
        if len(kept) < 2:
            continue
        for label, members in kept:
            n = _n_relevant(y[members], metric)
            found = people_interval(within(members), predictions, n_resamples, seed, metric=metric, n_relevant=n)
            yield (name, f"{metric} {label}", *found, int(members.sum()))
        (one, first), (other, last) = kept[0], kept[-1]
        gap = people_interval(_less(within(last), within(first)), predictions, n_resamples, seed)
        yield (name, f"difference of {metric}, {other} minus {one}", *gap, int(first.sum() + last.sum()))


def _members(people: pd.DataFrame) -> dict[str, list[tuple[str, np.ndarray]]]:
    """For sex and age the strata by name, each with the people in it, (n_people,) of bool."""
    found: dict[str, list[tuple[str, np.ndarray]]] = {}
    if "sex" in people:
        sexes = people["sex"].fillna("").to_numpy(str)
        found["sex"] = [(str(sex), sexes == sex) for sex in sorted(set(sexes) - {""})]
    if "age" in people and people["age"].nunique() > 2:
        age = people["age"].to_numpy(float)
        low, high = np.nanquantile(age, [1 / 3, 2 / 3])
        found["age"] = [
            (f"below {low:.3g}", age < low),
            (f"{low:.3g} to {high:.3g}", (age >= low) & (age < high)),
            (f"from {high:.3g}", age >= high),
        ]
    return found


def _n_relevant(y: np.ndarray, metric: str) -> int:
    """People that a value of the metric rests on: of an AUC those of the smaller class."""
    counts = [len(y)] if metric == "r" else [int((y == label).sum()) for label in (0, 1)]
    return min(counts)


def _less(
    one: Callable[[Weights], np.ndarray], other: Callable[[Weights], np.ndarray]
) -> Callable[[Weights], np.ndarray]:
    return lambda weights: one(weights) - other(weights)


def _shared(own: Labelled, prepared: list[Prepared], refit_learnt: bool) -> Iterator[tuple[list[Prepared], np.ndarray]]:
    """Models that start from the same features, and those features, one set in memory at a time."""

    def suits(one: Prepared) -> bool:
        # Around a pipeline (labels that are shuffled) the step that is fitted cannot be taken off.
        return one.kind == "transform" or (refit_learnt and one.kind == "prepare" and isinstance(one.model, Pipeline))

    waiting = [one for one in prepared if suits(one)]
    while waiting:
        together = [one for one in waiting if one.shares_with(waiting[0])]
        waiting = [one for one in waiting if not one.shares_with(together[0])]
        yield together, together[0].features(own.cohort)


def _table_of(one: Prepared, train: np.ndarray, test: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features of training and test recordings as tables, where they are fitted by the training side."""
    if one.kind == "prepare":
        step = clone(one.model[0]).fit(train, y)
        train, test = step.transform(train), step.transform(test)
    return train.reshape(len(train), -1), test.reshape(len(test), -1)


def _site_rows(one: Prepared, features: np.ndarray, own: Labelled, seed: int, n_folds: int = 5) -> list[Row]:
    """Balanced accuracy with which the site is read from the features of new people, and its chance level."""
    if own.people.site is None:
        return []
    # One recording a person: otherwise those with many would count more, or be on both sides.
    _, first = np.unique(own.people.group, return_index=True)
    sites, counts = np.unique(own.people.site[first], return_counts=True)
    sites = [site for site, n in zip(sites, counts, strict=True) if site and n >= n_folds]
    rows = first[np.isin(own.people.site[first], sites)]
    if len(sites) < 2:
        return []
    site = own.people.site[rows]
    told = np.empty_like(site)
    for train, test in StratifiedKFold(n_folds, shuffle=True, random_state=seed).split(rows, site):
        known, new = _table_of(one, features[rows[train]], features[rows[test]], own.people.y[rows[train]])
        told[test] = _site_reader(len(known), known.shape[1], len(sites)).fit(known, site[train]).predict(new)
    recalls = np.asarray(recall_score(y_true=site, y_pred=told, labels=sites, average=None))
    n = np.array([(site == name).sum() for name in sites])
    # Two successes and two failures more (Agresti and Coull), so that a site without an error still has a spread.
    smooth = (recalls * n + 2) / (n + 4)
    reach = norm.ppf(0.975) * np.sqrt(np.sum(smooth * (1 - smooth) / (n + 4))) / len(sites)
    value, chance = float(recalls.mean()), 1 / len(sites)
    bounds = (max(0.0, value - reach), min(1.0, value + reach))
    return [
        ("site", "balanced accuracy", value, *bounds, len(rows)),
        ("site", "chance", chance, np.nan, np.nan, len(rows)),
    ]


def _site_reader(n_rows: int, n_columns: int, n_sites: int) -> Any:
    """A linear classifier of sites that count alike.

    Ridge regression on class codes is fast with many columns, but with few it hides a class that lies between others.
    """
    if n_columns < n_rows:
        reader = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto", priors=np.full(n_sites, 1 / n_sites))
        return make_pipeline(StandardScaler(), reader)
    return make_pipeline(StandardScaler(), RidgeClassifier(alpha=1e3, class_weight="balanced"))


def _first_folds(results: Results, own: Labelled) -> list[list[Fold]]:
    """Folds of the first repeat of each protocol of `REGRESSED_PROTOCOLS`, as the models were tested on them."""
    table = results.tables.get("folds")
    if table is None:
        return []
    table = table[table["protocol"].isin(REGRESSED_PROTOCOLS)]
    table = table[table["repeat"] == table.groupby("protocol")["repeat"].transform("min")]
    return [folds_of(part, own) for _, part in table.groupby("protocol", sort=False)]


def _regressed(
    results: Results, folds: list[Fold], one: Prepared, features: np.ndarray, own: Labelled, task: Task,
    n_resamples: int, seed: int,
) -> list[Row]:  # fmt: skip
    """The metric before and after covariate regression, on the folds of one repeat of a protocol."""
    columns = [name for name in task.covariates if name != task.target and name in own.cohort.table]
    table = results.predictions
    before = table[(table["model"] == one.name) & (table["protocol"] == folds[0].protocol)]
    before = before[before["repeat"] == folds[0].repeat].reset_index(drop=True)
    # What is left of matrices (of the networks) after a regression is no correlation matrix any more.
    matrices = one.kind == "transform" and features.ndim > 2
    if before.empty or not columns or isinstance(one.step, Covariates) or matrices:
        return []
    metric = METRIC[results.kind]
    after = before.assign(y_score=_scores_without(before, folds, one, features, own, columns, task.site))
    old, new = (partial(find_metric(metric), Predictions.of(scores)) for scores in (before, after))
    values = {
        f"{metric} before regression of {', '.join(columns)}": metric_interval(
            before, metric, n_resamples=n_resamples, seed=seed
        ),
        f"{metric} after regression of {', '.join(columns)}": metric_interval(
            after, metric, n_resamples=n_resamples, seed=seed
        ),
        f"change of {metric}": people_interval(_less(new, old), before, n_resamples, seed),
    }
    n = before["participant_id"].nunique()
    return [("covariates", item, *found, n) for item, found in values.items()]


def _scores_without(
    before: pd.DataFrame, folds: list[Fold], one: Prepared, features: np.ndarray, own: Labelled, columns: list[str],
    site: str,
) -> np.ndarray:  # fmt: skip
    """Scores (n_rows,) of the tested people of one repeat, from features without the covariates, on the same folds."""
    people = own.people.participant
    scores = pd.Series(np.nan, index=before.index)
    for fold in folds:
        part = before[before["fold"] == fold.fold]
        known, new = _table_of(one, features[fold.train], features[fold.test], own.people.y[fold.train])
        training, tested = own.cohort.select(fold.train), own.cohort.select(fold.test)
        regression = CovariateRegression(columns, site).fit(training, known)
        last = one.model[1:] if one.kind == "prepare" else one.model
        known = regression.residuals(training, known)
        fitted = fit_model(clone(last), known, own.people.y[fold.train], own.people.group[fold.train])
        values, _ = predicted(fitted, regression.residuals(tested, new), own.people.continuous)
        means = pd.Series(values, index=people[fold.test]).groupby(level=0).mean()
        scores[part.index] = means.reindex(part["participant_id"].astype(str)).to_numpy()
    return scores.to_numpy()
