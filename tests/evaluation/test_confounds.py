"""The confound card: it finds what was put in, says nothing of what it cannot know, and learns from training alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.baselines import Connectome, ShuffledLabels
from openbrainmass.evaluation.confounds import (
    CHECKS,
    CONFOUND_COLUMNS,
    CovariateRegression,
    Deconfounded,
    confound_card,
    describe_people,
    person_scores,
    spearman,
)
from openbrainmass.evaluation.folds import folds_table
from openbrainmass.evaluation.labelled import labelled
from openbrainmass.evaluation.results import Results
from openbrainmass.evaluation.splits import Fold, k_fold, people_of, site_held_out
from openbrainmass.evaluation.tasks import Task

MakeCohort = Callable[..., Cohort]

FIELD = {"site0": 1.5, "site1": 3.0, "site2": 7.0}

TASK = Task(name="toy", target="dx", positive=("patient",), negative=("control",), covariates=("age", "site"))


class Columns(TransformerMixin, BaseEstimator):
    """Features that are read off the cohort's table, so that every effect in them is known."""

    def __init__(self, columns: tuple[str, ...] = ("f0", "f1", "f2")) -> None:
        self.columns = columns

    def fit(self, X: Cohort, y: Any = None) -> Columns:
        return self

    def transform(self, X: Cohort) -> np.ndarray:
        return X.table[list(self.columns)].to_numpy(float)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        return tags


def made(make_cohort: MakeCohort, n: int = 120, seed: int = 0, **effects: float) -> Cohort:
    """People of 3 sites with noise features, of which the first takes effects of age, site, motion and label."""
    rng = np.random.default_rng(seed)
    label = np.arange(n) % 2
    site = np.arange(n) // 2 % 3
    age = rng.uniform(8, 40, n)
    motion = rng.gamma(2, 0.1, n)
    features = rng.normal(size=(n, 3))
    known = {"age": (age - 24) / 10, "site": site, "mean_fd": motion / 0.14, "dx": label}
    features[:, 0] += sum(size * known[name] for name, size in effects.items())
    columns = {"age": age, "mean_fd": motion, "sex": np.array(["F", "M"])[rng.integers(2, size=n)]}
    columns |= {f"f{i}": features[:, i] for i in range(3)}
    return make_cohort(
        ["control", "patient"] * (n // 2), n_sites=3, n_volumes=4, columns={k: list(v) for k, v in columns.items()}
    )


def results_of(cohort: Cohort, model: Any, folds: list[Fold], name: str = "model", continuous: bool = False) -> Results:
    """Predictions of a model on folds, by hand."""
    target = TASK.labels(cohort) if not continuous else cohort.table["age"].to_numpy(float)
    sites = cohort.table["site"].to_numpy(str)
    parts = []
    for fold in folds:
        fitted = model.fit(cohort.select(fold.train), target[fold.train])
        score = (fitted.predict if continuous else fitted.decision_function)(cohort.select(fold.test))
        table = pd.DataFrame({"participant_id": cohort.recordings["participant_id"].to_numpy(str)[fold.test]})
        parts.append(
            table.assign(
                protocol=fold.protocol, repeat=fold.repeat, fold=fold.fold, model=name, site=sites[fold.test],
                y_true=target[fold.test], y_score=score, y_pred=score if continuous else (score > 0).astype(int),
                y_prob=np.nan, saw_test_people=False, n_train=len(fold.train),
            )
        )  # fmt: skip
    settings = {"task": {"kind": "regression" if continuous else "classification"}}
    own = labelled(cohort, TASK)
    return Results(pd.concat(parts), settings, {"folds": folds_table(folds, own, own)})


def changed(cohort: Cohort, **columns: Any) -> Cohort:
    """The same cohort with other columns of its participants; None takes one away."""
    participants = cohort.participants.assign(**{name: new for name, new in columns.items() if new is not None})
    participants = participants.drop(columns=[name for name, new in columns.items() if new is None])
    return Cohort(cohort.name, cohort.recordings, participants, cohort.atlas, cohort.read, cohort.exclusions)


def card_of(cohort: Cohort, protocol: str = "k-fold", **options: Any) -> pd.DataFrame:
    people = people_of(cohort, TASK.labels(cohort))
    folds = k_fold(people, 5, 1, 0) if protocol == "k-fold" else site_held_out(people)[0]
    model = make_pipeline(Columns(), LogisticRegression())
    results = results_of(cohort, model, folds)
    return confound_card(results, cohort, TASK, {"model": model}, n_resamples=20, **options)


def value(card: pd.DataFrame, check: str, starts: str) -> pd.Series:
    found = card[(card["check"] == check) & card["item"].str.startswith(starts)]
    assert len(found) == 1, (check, starts, card["item"].tolist())
    return found.iloc[0]


def test_the_card_has_every_check_and_people_count(make_cohort: MakeCohort) -> None:
    card = card_of(made(make_cohort, dx=3.0))
    assert list(card.columns) == list(CONFOUND_COLUMNS)
    assert set(card["check"]) == set(CHECKS) - {"n_volumes"}  # all scans are of one length, so nothing can go with it
    assert value(card, "age", "difference")["n"] == 80 and value(card, "covariates", "change")["n"] == 120
    known = card.dropna(subset="low")
    assert (known["low"] <= known["value"]).all() and (known["value"] <= known["high"]).all()
    assert known.loc[known["item"].str.startswith("auc"), "high"].max() == 1  # and not above


@pytest.mark.parametrize(("effect", "low", "high"), [(0.0, 0.2, 0.47), (8.0, 0.95, 1.0)])
def test_the_site_is_read_from_features_that_hold_it(
    make_cohort: MakeCohort, effect: float, low: float, high: float
) -> None:
    card = card_of(made(make_cohort, site=effect))
    assert low <= value(card, "site", "balanced")["value"] <= high
    assert value(card, "site", "chance")["value"] == pytest.approx(1 / 3)
    assert (value(card, "site", "balanced")["low"] <= 1 / 3) == (effect == 0)


def test_motion_that_goes_with_the_score_is_found(make_cohort: MakeCohort) -> None:
    card = card_of(made(make_cohort, dx=1.0, mean_fd=1.5))
    row = value(card, "mean_fd", "correlation within")
    assert row["low"] > 0.3
    still = value(card_of(made(make_cohort, dx=1.0)), "mean_fd", "correlation within")
    assert still["low"] < 0 < still["high"]


def test_motion_that_goes_with_the_label_only_vanishes_within_class() -> None:
    rng = np.random.default_rng(0)
    label = np.arange(400) % 2
    score, motion = 3 * label + rng.normal(size=400), 3 * label + rng.normal(size=400)
    assert spearman(score, motion)[1] > 0.5
    _, low, high = spearman(score, motion, label)
    assert low < 0 < high


@given(st.integers(0, 50), st.integers(8, 60))
def test_spearman_is_scipys(seed: int, n: int) -> None:
    one, other = np.random.default_rng(seed).integers(0, 12, size=(2, n)).astype(float)
    one[:2], other[:2] = (0, 1), (1, 0)
    r, low, high = spearman(one, other)
    assert r == pytest.approx(stats.spearmanr(one, other).statistic)
    assert low < r < high


def test_strata_are_the_auc_of_their_people(make_cohort: MakeCohort) -> None:
    cohort = made(make_cohort, dx=1.0)
    people = people_of(cohort, TASK.labels(cohort))
    results = results_of(cohort, make_pipeline(Columns(), LogisticRegression()), site_held_out(people)[0])
    card = confound_card(results, cohort, TASK, {}, n_resamples=20)
    sex = describe_people(cohort, TASK)["sex"]
    table = results.predictions.assign(sex=results.predictions["participant_id"].map(sex))
    aucs = {name: roc_auc_score(y_true=t["y_true"], y_score=t["y_score"]) for name, t in table.groupby("sex")}
    for name, auc in aucs.items():
        assert value(card, "sex", f"auc {name}")["value"] == pytest.approx(auc)
    assert value(card, "sex", "difference")["value"] == pytest.approx(aucs["M"] - aucs["F"])
    assert set(card["check"]) == {"mean_fd", "sex", "age"}  # without models there are no features


def test_a_stratum_without_an_error_still_has_a_bound(make_cohort: MakeCohort) -> None:
    cohort = made(make_cohort, dx=100.0)
    people = people_of(cohort, TASK.labels(cohort))
    results = results_of(cohort, make_pipeline(Columns(), LogisticRegression()), site_held_out(people)[0])
    card = confound_card(results, cohort, TASK, {}, n_resamples=20)
    women = cohort.table["dx"][cohort.table["sex"] == "F"]
    row = value(card, "sex", "auc F")
    assert (row["value"], row["high"]) == (1, 1)
    assert row["low"] == pytest.approx(0.025 ** (1 / women.value_counts().min()))


def test_an_effect_that_is_only_age_goes_with_age(make_cohort: MakeCohort) -> None:
    cohort = made(make_cohort, age=2.0)
    older = cohort.table["age"].rank(method="first") > 60
    card = card_of(changed(cohort, dx=np.where(older, "patient", "control")))
    assert value(card, "covariates", "auc before")["value"] > 0.85
    assert value(card, "covariates", "auc after")["value"] < 0.65
    assert value(card, "covariates", "change")["high"] < -0.1


def regressed(cohort: Cohort, folds: list[Fold]) -> pd.DataFrame:
    """What the card says of regressing out an age that is the same for all, which can change nothing."""
    cohort = changed(cohort, age=30.0)
    model = make_pipeline(Columns(), LogisticRegression())
    task = TASK.model_copy(update={"covariates": ("age",)})
    card = confound_card(results_of(cohort, model, folds), cohort, task, {"model": model}, n_resamples=20)
    return card[card["check"] == "covariates"]


def test_covariates_are_regressed_out_on_the_training_side_that_the_models_had(make_cohort: MakeCohort) -> None:
    cohort = made(make_cohort, dx=1.0)
    people = people_of(cohort, TASK.labels(cohort))
    half = [Fold("k-fold", 0, f.fold, f.train[::3], f.test) for f in k_fold(people, 5, 1, 0)]
    for folds in (half, site_held_out(people)[0][:1]):
        rows = regressed(cohort, folds).set_index("item")["value"]
        assert rows["auc before regression of age"] > 0.5 and rows["change of auc"] == 0


def test_without_folds_or_a_second_class_nothing_is_regressed_out(make_cohort: MakeCohort) -> None:
    cohort = made(make_cohort, dx=1.0)
    people = people_of(cohort, TASK.labels(cohort))
    fold = k_fold(people, 5, 1, 0)[0]
    controls = Fold("k-fold", 0, 0, fold.train, fold.test[people.y[fold.test] == 0])
    assert len(regressed(cohort, [controls])) == 0
    model = make_pipeline(Columns(), LogisticRegression())
    bare = Results(results_of(cohort, model, [fold]).predictions, {})
    card = confound_card(bare, cohort, TASK, {"model": model}, n_resamples=20)
    assert "site" in set(card["check"]) and "covariates" not in set(card["check"])


@pytest.mark.parametrize(("protocol", "confound"), [("k-fold", "site"), ("site-held-out", "age")])
def test_an_effect_of_the_label_stays(make_cohort: MakeCohort, protocol: str, confound: str) -> None:
    card = card_of(made(make_cohort, **{"dx": 2.0, confound: 2.0}), protocol)
    assert value(card, "covariates", "auc after")["value"] > 0.85


def test_a_regression_is_looked_at_by_its_correlation(make_cohort: MakeCohort) -> None:
    cohort = made(make_cohort, age=2.0)
    people = people_of(cohort, TASK.labels(cohort))
    results = results_of(cohort, make_pipeline(Columns(), Ridge()), k_fold(people, 5, 1, 0), continuous=True)
    task = Task(name="age", kind="regression", target="age")
    card = confound_card(results, cohort, task, {}, n_resamples=20)
    assert value(card, "sex", "r F")["value"] > 0.7
    assert "correlation within class" not in set(card["item"]) and "age" not in set(card["check"])


def test_a_model_that_says_nothing_and_few_shot_have_no_row(make_cohort: MakeCohort) -> None:
    cohort = made(make_cohort)
    folds = k_fold(people_of(cohort, TASK.labels(cohort)), 5, 1, 0)
    table = results_of(cohort, make_pipeline(Columns(), LogisticRegression()), folds).predictions
    mute, few = table.assign(y_score=0.0, model="chance"), table.assign(protocol="few-shot-5")
    card = confound_card(Results(pd.concat([mute, few]), {}), cohort, TASK, {}, n_resamples=20)
    assert len(card) == 0 and list(card.columns) == list(CONFOUND_COLUMNS)


def test_an_external_cohort_is_described_by_its_own_table(make_cohort: MakeCohort) -> None:
    cohort, other = made(make_cohort, dx=1.0), made(make_cohort, dx=1.0, seed=3)
    everybody = np.arange(120)
    fold = Fold("external", 0, 0, everybody, everybody)
    results = results_of(other, make_pipeline(Columns(), LogisticRegression()), [fold])
    assert len(confound_card(results, cohort, TASK, {}, n_resamples=20)) == 0
    card = confound_card(results, cohort, TASK, {}, test_cohort=other, n_resamples=20)
    scores = person_scores(results.predictions)["score"]
    motion = describe_people(other, TASK)["mean_fd"].loc[scores.index]
    found = card[(card["check"] == "mean_fd") & (card["item"] == "correlation")].iloc[0]
    assert found["value"] == pytest.approx(stats.spearmanr(scores, motion).statistic)


def test_an_external_cohort_is_described_by_the_recordings_that_were_tested(make_cohort: MakeCohort) -> None:
    cohort = made(make_cohort, dx=1.0)
    motion = list(np.random.default_rng(1).uniform(0, 0.3, 120))
    other = made(make_cohort, dx=1.0, seed=3)
    fold = Fold("external", 0, 0, np.arange(120), np.arange(120))
    results = results_of(other, make_pipeline(Columns(), LogisticRegression()), [fold])
    # The diagnosis has another name there, and each person a second session without one, in which they move.
    recordings = other.recordings
    twice = pd.concat([recordings, recordings.assign(recording_id=recordings["recording_id"] + "b", session="2")])
    twice["diagnosis"] = [*other.table["dx"], *["n/a"] * 120]
    twice["mean_fd"] = motion + list(np.random.default_rng(2).uniform(1, 9, 120))
    people = other.participants.drop(columns=["dx", "mean_fd"])
    sessions = Cohort("other", twice.reset_index(drop=True), people, other.atlas, other.read)
    task = TASK.model_copy(update={"target": "diagnosis"})
    card = confound_card(results, cohort, TASK, {}, test_cohort=sessions, test_task=task, n_resamples=20)
    scores = person_scores(results.predictions)["score"]
    row = card[(card["check"] == "mean_fd") & (card["item"] == "correlation")].iloc[0]
    assert row["value"] == pytest.approx(stats.spearmanr(scores, motion).statistic)


def test_features_that_are_fitted_are_done_when_asked(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(["control", "patient"] * 15, n_volumes=30, columns={"mean_fd": list(np.linspace(0, 1, 30))})
    model = make_pipeline(Connectome("tangent"), LogisticRegression())
    results = results_of(cohort, model, k_fold(people_of(cohort, TASK.labels(cohort)), 3, 1, 0))
    # Labels that are shuffled around the pipeline leave no step to take off: that model has no such rows.
    models = {"model": model, "shuffled": ShuffledLabels(model)}
    cards = [
        confound_card(results, cohort, TASK, models, n_resamples=20, refit_learnt=asked) for asked in (False, True)
    ]
    assert set(cards[1]["check"]) - set(cards[0]["check"]) == {"site", "covariates"}
    assert set(cards[1]["model"]) == {"model"}


@settings(max_examples=10)
@given(st.integers(0, 20))
def test_residuals_of_training_do_not_go_with_any_covariate(make_cohort: MakeCohort, seed: int) -> None:
    cohort = made(make_cohort, n=60, seed=seed, age=1.0, site=1.0, mean_fd=1.0)
    features = Columns().transform(cohort)
    columns = ("age", "site", "mean_fd", "sex")
    left = CovariateRegression(columns).fit(cohort, features).residuals(cohort, features)
    table = cohort.table
    for name in ("age", "mean_fd"):
        assert np.abs(np.corrcoef(left.T, table[name].to_numpy(float))[-1, :-1]).max() < 1e-8
    for name in ("site", "sex"):
        means = pd.DataFrame(left).groupby(table[name].to_numpy()).mean()
        assert np.allclose(means, left.mean(axis=0))
    assert np.allclose(left.mean(axis=0), features.mean(axis=0))


def test_effects_are_those_of_training_people(make_cohort: MakeCohort) -> None:
    cohort = made(make_cohort, age=3.0)
    train, test = cohort.select(np.arange(60)), cohort.select(np.arange(60, 120))
    model = Deconfounded(Columns(), ("age",))
    known = model.fit_transform(train)
    assert np.array_equal(known, model.transform(train)) and np.array_equal(known, model.fit(train).transform(train))
    slope = np.polyfit(train.table["age"], Columns().transform(train)[:, 0], 1)[0]
    moved = Columns().transform(test)[:, 0] - model.transform(test)[:, 0]
    assert moved == pytest.approx(slope * (test.table["age"].to_numpy() - train.table["age"].mean()))


def test_an_unseen_site_is_not_moved(make_cohort: MakeCohort) -> None:
    cohort = made(make_cohort, site=5.0)
    site = cohort.table["site"].to_numpy(str)
    train, test = (cohort.select(np.flatnonzero(rows)) for rows in (site != "site2", site == "site2"))
    model = Deconfounded(Columns(), ("site",)).fit(train)
    assert np.allclose(model.transform(test), Columns().transform(test))
    means = pd.Series(model.transform(train)[:, 0]).groupby(site[site != "site2"]).mean()
    assert np.ptp(means) < 1e-8


def test_what_only_differs_between_sites_is_left_to_the_site(make_cohort: MakeCohort) -> None:
    cohort = made(make_cohort)
    scanned = changed(cohort, field=cohort.participants["site"].map(FIELD))
    features = Columns().transform(scanned)
    columns = ("age", "site", "field", "absent")
    assert CovariateRegression(columns).fit(scanned, features).columns_ == ("age", "site")
    assert CovariateRegression(("age", "field")).fit(scanned, features).columns_ == ("age", "field")


def test_the_site_may_have_a_column_of_another_name(make_cohort: MakeCohort) -> None:
    cohort = made(make_cohort, dx=1.0, site=1.0)
    cohort = changed(cohort, field=cohort.participants["site"].map(FIELD))
    other = changed(cohort, center=cohort.participants["site"], site=None)
    known = Deconfounded(Columns(), ("site", "field")).fit_transform(cohort)
    assert np.allclose(Deconfounded(Columns(), ("center", "field"), site="center").fit_transform(other), known)
    model = make_pipeline(Columns(), LogisticRegression())
    results = results_of(cohort, model, site_held_out(people_of(cohort, TASK.labels(cohort)))[0])
    after = []
    for one, column in ((cohort, "site"), (other, "center")):
        task = TASK.model_copy(update={"site": column, "covariates": (column, "field")})
        card = confound_card(results, one, task, {"model": model}, n_resamples=20)
        after.append(value(card, "covariates", "auc after")["value"])
    assert after[0] == after[1]


@pytest.mark.parametrize("broken", [np.zeros((120, 3, 3)), np.zeros((5, 3)), np.full((120, 2), np.nan)])
def test_features_that_are_no_table_are_refused(make_cohort: MakeCohort, broken: np.ndarray) -> None:
    with pytest.raises(OpenBrainMassError, match="finite table of features"):
        CovariateRegression(("age",)).fit(made(make_cohort), broken)


def test_scores_of_different_fits_are_brought_to_one_scale() -> None:
    table = pd.DataFrame(
        {"participant_id": ["a", "b", "c", "d"], "y_true": [0, 1, 0, 1], "y_score": [0.0, 1.0, 100.0, 300.0]}
    ).assign(repeat=0, fold=[0, 0, 1, 1], protocol="k-fold")
    assert person_scores(table)["score"].tolist() == [-1, 1, -1, 1]
    assert person_scores(table.assign(protocol="site-held-out"))["score"].tolist() == [0, 1, 100, 300]


def test_the_predicted_column_is_no_covariate(make_cohort: MakeCohort) -> None:
    cohort = made(make_cohort)
    task = Task(name="sex", target="sex", positive=("F",), negative=("M",))
    assert list(describe_people(cohort, task).columns) == ["mean_fd", "n_volumes", "age"]
