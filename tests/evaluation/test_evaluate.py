from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import RandomForestClassifier
from sklearn.feature_selection import SelectKBest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import Tags

from openbrainmass.atlas import numbered_atlas
from openbrainmass.cohort.cohort import Cohort
from openbrainmass.cohort.simulate import simulate_cohort
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.baselines import Chance, Connectome, Covariates, ScoreSum, ShuffledLabels, floors
from openbrainmass.evaluation.evaluate import evaluate
from openbrainmass.evaluation.probes import make_probe
from openbrainmass.evaluation.results import Results
from openbrainmass.evaluation.statistics import compare
from openbrainmass.evaluation.tasks import Task

MakeCohort = Callable[..., Cohort]
TASK = Task(name="toy", target="dx", positive=("patient",), negative=("control",))


def edges(probe: str = "logistic") -> Any:
    return make_pipeline(Connectome(), make_probe(probe))


def auc(results: Results, protocol: str, model: str) -> pd.Series:
    return results.metrics(n_resamples=300).set_index(["protocol", "model", "metric"]).loc[(protocol, model, "auc")]


class Spy(ClassifierMixin, BaseEstimator):
    """Writes down who trained and who was tested."""

    log: list[tuple[frozenset[str], frozenset[str], tuple[str, ...]]] = []

    def fit(self, X: Cohort, y: np.ndarray) -> Spy:
        self.classes_, self.train_ = np.unique(y), frozenset(X.table["participant_id"])
        return self

    def decision_function(self, X: Cohort) -> np.ndarray:
        Spy.log.append((self.train_, frozenset(X.table["participant_id"]), tuple(X.table.columns)))
        return np.zeros(len(X))


class Seen(TransformerMixin, BaseEstimator):
    """A pretrained encoder that needs no fitting and remembers whom it met."""

    def __init__(self, met: frozenset[str] = frozenset()) -> None:
        self.met = met

    def fit(self, X: Any, y: Any = None) -> Seen:
        return self

    def transform(self, X: Cohort) -> np.ndarray:
        return np.stack([np.corrcoef(bold.T)[0, 1:] for bold in X])

    @property
    def seen_identities(self) -> frozenset[str]:
        return self.met

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        return tags


# People


@settings(max_examples=5)
@given(st.lists(st.integers(1, 4), min_size=24, max_size=24), st.integers(0, 99))
def test_no_person_is_on_both_sides_in_any_protocol(counts: list[int], seed: int) -> None:
    from tests.evaluation.conftest import build  # type: ignore[import-not-found]

    cohort = build(n_people=24, n_recordings=counts, n_sites=3, seed=seed, n_volumes=10)
    Spy.log.clear()
    protocols = ("k-fold", "site-held-out", "paper-split", "few-shot")
    results = evaluate(
        {"spy": Spy()}, cohort, TASK, protocols=protocols, n_folds=3, n_repeats=2, n_draws=1, few_shot=(1, 3), seed=seed
    )
    assert len(Spy.log) == 6 + 3 + 2 + 6
    for train, test, columns in Spy.log:
        assert train and test and not train & test
        assert "dx" not in columns
    tested = results.predictions.groupby(["protocol", "repeat"])["participant_id"].value_counts()
    assert tested.max() == 1 and tested.loc["k-fold"].size == 48


def test_scores_of_a_persons_recordings_are_averaged(make_cohort: MakeCohort) -> None:
    class Run(ClassifierMixin, BaseEstimator):
        def fit(self, X: Cohort, y: np.ndarray) -> Run:
            self.classes_ = np.unique(y)
            return self

        def decision_function(self, X: Cohort) -> np.ndarray:
            return X.table["run"].astype(float).to_numpy() - 0.8

    cohort = make_cohort(n_people=20, n_recordings=[1, 2, 3, 4] * 5)
    table = evaluate({"run": Run()}, cohort, TASK, protocols=["k-fold"], n_repeats=1).predictions
    assert len(table) == 20 and set(table["n_train"]) == {16}
    expected = {0: -0.8, 1: -0.3, 2: 0.2, 3: 0.7}
    for person, score, predicted in zip(table["participant_id"], table["y_score"], table["y_pred"], strict=True):
        assert score == pytest.approx(expected[int(person[1:]) % 4])
        assert predicted == (score > 0)


def test_people_without_a_class_are_neither_trained_nor_tested(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(["patient", "control"] * 10 + ["n/a", "pending"])
    results = evaluate({"edges": edges()}, cohort, TASK, protocols=["k-fold"], n_repeats=1)
    assert not {"p020", "p021"} & set(results.predictions["participant_id"])
    assert results.settings["cohort"]["n_recordings_without_class"] == 2
    assert results.settings["cohort"]["n_people"] == 20


# What is measured is true


def test_the_planted_effect_is_found_and_shuffled_labels_give_chance(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=80, effect=0.6, n_sites=4)
    models = {"edges": edges(), "shuffled": ShuffledLabels(edges())}
    results = evaluate(models, cohort, TASK, n_repeats=3)
    for protocol in ("k-fold", "site-held-out"):
        assert auc(results, protocol, "edges")["low"] > 0.75
        shuffled = auc(results, protocol, "shuffled")
        assert shuffled["low"] < 0.5 < shuffled["high"]


def test_shuffled_labels_are_chance_on_average(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=60, effect=1.0)
    models = {f"shuffled {seed}": ShuffledLabels(edges(), seed) for seed in range(8)}
    results = evaluate(models, cohort, TASK, protocols=["k-fold"], n_repeats=1)
    values = results.metrics(n_resamples=50).query("metric == 'auc'")["value"]
    assert 0.4 < values.mean() < 0.6


def test_a_null_cohort_gives_an_interval_that_covers_chance() -> None:
    cohort = simulate_cohort(n_people=60, n_sites=3, n_rois=21, n_volumes=60, effect=0.0, seed=3)
    task = Task.from_cohort(cohort)
    results = evaluate(
        {name: floors()[name] for name in ("edges + logistic", "edges + svm")}, cohort, task, n_repeats=3
    )
    found = results.metrics(n_resamples=500).query("metric == 'auc'")
    assert len(found) == 4
    assert ((found["low"] < 0.5) & (found["high"] > 0.5)).all()


def test_a_scaler_is_fitted_in_the_fold(make_cohort: MakeCohort) -> None:
    fitted: list[tuple[int, float]] = []

    class Scaler(StandardScaler):
        def fit(self, X: np.ndarray, y: Any = None, sample_weight: Any = None) -> Scaler:
            fitted.append((len(X), float(np.mean(X))))
            return super().fit(X, y)

    model = make_pipeline(Connectome(), Scaler(), LogisticRegression())
    cohort = make_cohort(n_people=40)
    evaluate({"m": model}, cohort, TASK, protocols=["k-fold"], n_repeats=1)
    whole = float(np.mean(Connectome().transform(cohort)))
    assert [size for size, _ in fitted] == [32] * 5
    assert len({mean for _, mean in fitted}) == 5
    assert whole not in {mean for _, mean in fitted}


def test_chance_is_exactly_chance_under_every_protocol(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(["patient"] * 24 + ["control"] * 12, n_sites=3)
    results = evaluate({"chance": Chance()}, cohort, TASK, n_repeats=2)
    table = results.metrics(n_resamples=100).set_index(["protocol", "metric"])["value"]
    for protocol in ("k-fold", "site-held-out"):
        assert table[protocol, "auc"] == 0.5
        assert table[protocol, "balanced_accuracy"] == 0.5
        assert table[protocol, "accuracy"] == pytest.approx(24 / 36)


def test_features_computed_once_equal_those_computed_in_each_fold(make_cohort: MakeCohort) -> None:
    class Afresh(Connectome):
        """The same, but not known to need no fitting, and without preparation."""

        prepare = property()  # type: ignore[assignment]

        def __sklearn_tags__(self) -> Tags:
            tags = super().__sklearn_tags__()
            tags.requires_fit = True
            return tags

    cohort = make_cohort(n_people=30, n_sites=3)
    for kind in ("fisher-z", "tangent"):
        models = {
            "once": make_pipeline(Connectome(kind), make_probe("logistic")),
            "each": make_pipeline(Afresh(kind), make_probe("logistic")),
        }
        table = evaluate(models, cohort, TASK, n_repeats=1).predictions
        scores = [table.loc[table["model"] == name, "y_score"].to_numpy() for name in models]
        np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)


def test_features_are_computed_once_for_all_models_that_share_their_first_step(make_cohort: MakeCohort) -> None:
    computed: list[int] = []

    class Counting(Connectome):
        def transform(self, X: Any) -> np.ndarray:
            computed.append(len(X))
            return super().transform(X)

    one = Counting()
    models = {
        name: make_pipeline(step, make_probe("ridge")) for name, step in (("a", one), ("b", one), ("c", Counting()))
    }
    models["other"] = make_pipeline(Counting("partial"), make_probe("ridge"))
    evaluate(models, make_cohort(n_people=20), TASK, protocols=["k-fold"], n_repeats=1)
    # Each set of features once, and one recording alone for the check that it does not depend on the others.
    assert computed == [20, 1, 20, 1]


def test_a_step_that_wrongly_claims_to_need_no_fitting_is_refused(make_cohort: MakeCohort) -> None:
    class Centred(Seen):
        def transform(self, X: Cohort) -> np.ndarray:
            features = super().transform(X)
            return features - features.mean(axis=0)

    with pytest.raises(OpenBrainMassError, match=r"Centred\) says that it needs no fitting"):
        evaluate({"m": make_pipeline(Centred(), LogisticRegression())}, make_cohort(), TASK)


# Flags


def test_rows_whose_encoder_saw_test_people_say_so(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=20)
    identities = cohort.identities()
    by_name = frozenset({min(identities[3] - {cohort.recordings["digest"].iloc[3]})})
    by_series = frozenset({cohort.recordings["digest"].iloc[7]})
    models = {
        "clean": make_pipeline(Seen(), make_probe("logistic")),
        "met": make_pipeline(Seen(by_name | by_series), make_probe("logistic")),
        "shuffled": ShuffledLabels(make_pipeline(Seen(by_name), make_probe("logistic"))),
    }
    results = evaluate(models, cohort, TASK, n_repeats=2)
    table = results.predictions
    flagged = table[table["saw_test_people"]]
    assert set(zip(flagged["model"], flagged["participant_id"], strict=True)) == {
        ("met", "p003"), ("met", "p007"), ("shuffled", "p003"),
    }  # fmt: skip
    marks = results.metrics(n_resamples=50).groupby("model")["saw_test_people"].agg(["any", "all"])
    assert marks["any"].tolist() == marks["all"].tolist() == [False, True, True]
    compared = compare(results, "clean").set_index("model")["saw_test_people"]
    assert compared.all()


def test_an_encoder_fitted_in_the_fold_has_not_seen_its_test_people(make_cohort: MakeCohort) -> None:
    class InFold(Seen):
        def fit(self, X: Cohort, y: Any = None) -> InFold:
            self.met_ = frozenset().union(*X.identities())
            return self

        @property
        def seen_identities(self) -> frozenset[str]:
            return getattr(self, "met_", frozenset())

        def __sklearn_tags__(self) -> Tags:
            tags = super().__sklearn_tags__()
            tags.requires_fit = True
            return tags

    cohort = make_cohort(n_people=24, n_sites=3)
    site_models = {"in fold": make_pipeline(InFold(), make_probe("logistic"))}
    results = evaluate({"chance": Chance()}, cohort, TASK, n_repeats=1, site_models=site_models)
    own = results.predictions.query("model == 'in fold'")
    assert set(own["protocol"]) == {"site-held-out"} and len(own) == 24
    assert not own["saw_test_people"].any()
    assert list(results.settings["site_models"]) == ["in fold"]


# Protocols


def test_site_held_out_tests_each_site_once_and_is_noted_when_impossible(make_cohort: MakeCohort) -> None:
    results = evaluate({"edges": edges()}, make_cohort(n_sites=4), TASK, protocols=["site-held-out"])
    assert results.predictions.groupby("fold")["site"].nunique().tolist() == [1] * 4
    single = evaluate({"edges": edges()}, make_cohort(n_sites=1), TASK, n_repeats=1)
    assert set(single.predictions["protocol"]) == {"k-fold"}
    assert "1 site(s)" in single.settings["notes"][0]
    with pytest.raises(OpenBrainMassError, match="No protocol can be done"):
        evaluate({"edges": edges()}, make_cohort(n_sites=1), TASK, protocols=["site-held-out"])


def test_external_uses_no_label_of_the_test_cohort_and_none_of_its_people(make_cohort: MakeCohort) -> None:
    train, test = make_cohort(n_people=40, seed=1), make_cohort(n_people=30, seed=2, name="other")
    results = evaluate({"e": edges()}, train, TASK, protocols=[], test_cohort=test)
    assert set(results.predictions["protocol"]) == {"external"} and len(results.predictions) == 30
    assert set(results.predictions["n_train"]) == {40}
    assert auc(results, "external", "e")["value"] > 0.8
    participants = test.participants
    swapped = participants["dx"].map({"patient": "control", "control": "patient"})
    flipped = Cohort("other", test.recordings, participants.assign(dx=swapped), test.atlas, test._read)
    again = evaluate({"e": edges()}, train, TASK, protocols=[], test_cohort=flipped)
    np.testing.assert_array_equal(results.predictions["y_score"], again.predictions["y_score"])


def test_external_leaves_shared_people_out_of_training(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=40)
    test = cohort.select(np.arange(10))
    renamed = Cohort("renamed", test.recordings, test.participants, test.atlas, test._read)
    for other in (test, renamed):  # the same people by name, or only the same series
        results = evaluate({"e": edges()}, cohort, TASK, protocols=["external"], test_cohort=other)
        assert set(results.predictions["n_train"]) == {30}
        assert "10 recordings of toy" in results.settings["notes"][0]
    with pytest.raises(OpenBrainMassError, match="not both classes left"):
        evaluate({"e": edges()}, cohort, TASK, protocols=["external"], test_cohort=renamed_whole(cohort))


def renamed_whole(cohort: Cohort) -> Cohort:
    return Cohort("renamed", cohort.recordings, cohort.participants, cohort.atlas, cohort._read)


def test_few_shot_learns_scaling_without_labels_and_the_classifier_from_k(make_cohort: MakeCohort) -> None:
    fitted: list[tuple[int, bool]] = []

    class Scaler(StandardScaler):
        def fit(self, X: np.ndarray, y: Any = None, sample_weight: Any = None) -> Scaler:
            fitted.append((len(X), y is None))
            return super().fit(X, y)

    class Classifier(LogisticRegression):
        def fit(self, X: np.ndarray, y: np.ndarray) -> Classifier:  # type: ignore[override]
            fitted.append((len(X), y is None))
            return super().fit(X, y)

    models = {"m": make_pipeline(Connectome(), Scaler(), Classifier())}
    cohort = make_cohort(n_people=40)
    results = evaluate(models, cohort, TASK, protocols=["few-shot"], few_shot=(1, 4), n_draws=1, n_folds=2)
    assert fitted == [(20, True), (2, False), (8, False)] * 2
    assert results.settings["intervals"]["few-shot-4"].count("people and draws") == 1
    assert dict(results.predictions.groupby("protocol")["n_train"].first()) == {"few-shot-1": 2, "few-shot-4": 8}


def test_few_shot_improves_with_more_people(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=100, effect=0.6)
    results = evaluate({"e": edges()}, cohort, TASK, protocols=["few-shot"], few_shot=(1, 2, 30), n_draws=2)
    values = results.metrics(n_resamples=50).query("metric == 'auc'").set_index("protocol")["value"]
    assert list(values.index) == ["few-shot-1", "few-shot-2", "few-shot-30"]
    assert values["few-shot-30"] > values["few-shot-1"] + 0.05


def test_few_shot_of_a_model_that_selects_by_label_sees_only_the_k(make_cohort: MakeCohort) -> None:
    model = make_pipeline(Connectome(), SelectKBest(k=3), LogisticRegression())
    cohort = make_cohort(n_people=40)
    results = evaluate({"m": model, "spy": Spy()}, cohort, TASK, protocols=["few-shot"], few_shot=(2,), n_draws=1)
    assert set(results.predictions["n_train"]) == {4}


def test_random_splits_are_as_many_as_asked_for(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=60, n_volumes=12)
    results = evaluate({"c": Chance()}, cohort, TASK, protocols=["random-splits"], n_splits=7)
    assert results.predictions.groupby("repeat").size().tolist() == [9] * 7
    assert set(results.predictions["n_train"]) == {51}


def test_each_dataset_of_a_merged_cohort_is_tested_once(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=20, columns={"dataset": ["a"] * 8 + ["b"] * 12}, n_volumes=12)
    table = evaluate({"c": Chance()}, cohort, TASK, protocols=["cohort-held-out"]).predictions
    assert table.groupby("fold").size().tolist() == [8, 12] and sorted(set(table["n_train"])) == [8, 12]


def test_families_are_never_parted(make_cohort: MakeCohort) -> None:
    family = [f"f{number // 4}" for number in range(40)]
    cohort = make_cohort(n_people=40, columns={"family_id": family}, n_volumes=12)
    Spy.log.clear()
    evaluate({"spy": Spy()}, cohort, TASK, protocols=["k-fold", "paper-split"], n_repeats=2)
    of = dict(zip(cohort.participants["participant_id"], family, strict=True))
    assert len(Spy.log) == 12
    assert all(not {of[who] for who in train} & {of[who] for who in test} for train, test, _ in Spy.log)


def test_the_labelled_of_a_test_cohort_join_and_external_is_the_point_without_them(make_cohort: MakeCohort) -> None:
    train, test = make_cohort(n_people=20, seed=1), make_cohort(n_people=24, seed=2, name="other")
    models = {
        "edges": edges(),
        "whole": Spy(),
        "selects": make_pipeline(Connectome(), SelectKBest(k=3), make_probe("ridge")),
    }
    Spy.log.clear()
    shape = {"few_shot": (1, 3), "n_folds": 2, "n_draws": 2, "protocols": ["few-shot"], "test_cohort": test}
    results = evaluate(models, train, TASK, **shape)  # type: ignore[arg-type]
    table = results.predictions.query("protocol.str.startswith('external')")
    assert table.groupby("protocol")["n_train"].unique().map(list).to_dict() == {
        "external": [20], "external-few-shot-1": [22], "external-few-shot-3": [26],
    }  # fmt: skip
    assert len(table.query("protocol == 'external-few-shot-3' and model == 'edges'")) == 24 * 2
    joint = [(people, tested) for people, tested, _ in Spy.log if len(people) > 20]
    assert len(joint) == 2 * 2 * 2
    for people, tested in joint:
        assert sum(name.startswith("toy/") for name in people) == 20
        assert not {name.removeprefix("other/") for name in people if name.startswith("other/")} & tested
    alone = evaluate({"edges": edges()}, train, TASK, protocols=[], test_cohort=test).predictions
    np.testing.assert_allclose(alone["y_score"], table.query("protocol == 'external' and model == 'edges'")["y_score"])
    assert "train together with all of toy" in results.settings["notes"][-1]


def test_the_few_of_a_test_cohort_help_where_the_training_cohort_misleads(make_cohort: MakeCohort) -> None:
    train = make_cohort(["patient", "control"] * 8, seed=1)
    backwards = make_cohort(["control", "patient"] * 40, seed=2, name="other")
    flipped = backwards.participants.assign(
        dx=backwards.participants["dx"].map({"patient": "control", "control": "patient"})
    )
    test = Cohort("other", backwards.recordings, flipped, backwards.atlas, backwards.read)
    results = evaluate(
        {"e": edges()}, train, TASK, protocols=["few-shot"], few_shot=(18,), n_folds=2, n_draws=2, test_cohort=test
    )
    scores = {
        protocol: float(
            np.mean(table["y_score"][table["y_true"] == 1]) - np.mean(table["y_score"][table["y_true"] == 0])
        )
        for protocol, table in results.predictions.groupby("protocol")
    }
    assert scores["external"] < 0 < scores["external-few-shot-18"]


def test_a_transductive_row_is_added_and_the_other_uses_nothing_of_the_test_cohort(make_cohort: MakeCohort) -> None:
    fitted: list[tuple[int, bool]] = []

    class Scaler(StandardScaler):
        def fit(self, X: np.ndarray, y: Any = None, sample_weight: Any = None) -> Scaler:
            fitted.append((len(X), y is None))
            return super().fit(X, y)

    train, test = make_cohort(n_people=20, seed=1), make_cohort(n_people=30, seed=2, name="other")
    models = {"m": make_pipeline(Connectome(), Scaler(), LogisticRegression()), "spy": Spy()}
    plain = evaluate(models, train, TASK, protocols=[], test_cohort=test)
    assert fitted == [(20, False)]
    fitted.clear()
    both = evaluate(models, train, TASK, protocols=[], test_cohort=test, transductive=True)
    assert sorted(fitted) == [(20, False), (20, True), (30, True)]
    rows = both.predictions
    assert list(rows["model"].unique()) == ["m", "m (transductive)", "spy"]
    pd.testing.assert_frame_equal(rows[rows["model"].isin(["m", "spy"])].reset_index(drop=True), plain.predictions)
    moved = rows.query("model == 'm (transductive)'")["y_score"].to_numpy()
    assert not np.allclose(moved, plain.predictions.query("model == 'm'")["y_score"])
    assert both.settings["transductive"] is True and plain.settings["transductive"] is False
    assert "no label of them was used" in both.settings["notes"][0] and "Nothing of spy" in both.settings["notes"][1]


def test_the_test_cohort_may_have_another_task(make_cohort: MakeCohort) -> None:
    train = make_cohort(n_people=20, seed=1)
    test = make_cohort(["adhd", "typical"] * 8, seed=2, name="other")
    adhd = Task(name="adhd", target="dx", positive=("adhd",), negative=("typical",))
    results = evaluate({"e": edges()}, train, TASK, protocols=[], test_cohort=test, test_task=adhd)
    assert results.predictions["y_true"].tolist() == [1, 0] * 8
    assert results.settings["test_task"]["name"] == "adhd"
    with pytest.raises(OpenBrainMassError, match="adhd is for a test cohort, and none was given"):
        evaluate({"e": edges()}, train, TASK, test_task=adhd)
    with pytest.raises(OpenBrainMassError, match="The task toy is a classification and age, that of the test cohort"):
        evaluate({"e": edges()}, train, TASK, test_cohort=test, test_task=AGE)


AGE = Task(name="age", target="age", kind="regression")


def test_a_value_is_predicted_with_people_kept_whole(make_cohort: MakeCohort) -> None:
    rng = np.random.default_rng(0)
    motion = rng.normal(size=60)
    age = 40 + 10 * motion + rng.normal(size=60)
    cohort = make_cohort(
        n_people=60, n_recordings=[1, 2] * 30, n_sites=3, n_volumes=12, columns={"mean_fd": motion, "age": age}
    )
    models = {
        "covariates": make_pipeline(Covariates(("mean_fd",)), Ridge(0.1)),
        "mean": make_pipeline(Covariates(), DummyRegressor()),
    }
    protocols = ["k-fold", "random-splits", "site-held-out", "paper-split", "few-shot"]
    results = evaluate(models, cohort, AGE, protocols=protocols, n_repeats=2, n_splits=3)
    table = results.predictions
    assert "predicts a value" in results.settings["notes"][0]
    assert set(table["protocol"]) == {"k-fold", "random-splits", "site-held-out", "paper-split"}
    np.testing.assert_array_equal(table["y_pred"], table["y_score"])
    assert table["y_prob"].isna().all() and table["y_true"].dtype == float
    whole = table.query("protocol == 'k-fold' and model == 'covariates' and repeat == 0")
    np.testing.assert_allclose(whole.sort_values("participant_id")["y_true"], age)
    assert np.corrcoef(whole["y_true"], whole["y_score"])[0, 1] > 0.97
    assert results.settings["cohort"]["mean"] == pytest.approx(age.mean())
    test = make_cohort(n_people=10, seed=4, name="other", n_volumes=12, columns={"mean_fd": motion[:10]})
    elsewhere = evaluate(models, cohort, AGE, protocols=["few-shot"], test_cohort=test, transductive=True)
    assert set(elsewhere.predictions["protocol"]) == {"external"} and len(elsewhere.predictions) == 2 * 10
    with pytest.raises(OpenBrainMassError, match="transductive row uses a test cohort"):
        evaluate(models, cohort, AGE, transductive=True)


def test_probabilities_stand_beside_the_scores(make_cohort: MakeCohort) -> None:
    models = {
        "logistic": edges(),
        "svm": edges("svm"),
        "forest": make_pipeline(Connectome(), RandomForestClassifier(8, random_state=0)),
    }
    table = evaluate(models, make_cohort(n_recordings=2), TASK, protocols=["k-fold"], n_repeats=1).predictions
    logistic, svm, forest = (table[table["model"] == name] for name in models)
    assert svm["y_prob"].isna().all()
    assert ((logistic["y_prob"] > 0.5) == (logistic["y_score"] > 0)).mean() > 0.9
    np.testing.assert_allclose(forest["y_prob"], forest["y_score"] + 0.5)


def test_the_parts_of_a_sum_are_computed_once(make_cohort: MakeCohort) -> None:
    computed: list[int] = []

    class Counting(Connectome):
        def prepare(self, X: Any) -> np.ndarray:
            computed.append(len(X))
            return super().prepare(X)

    def total(first: Any, second: Any) -> ScoreSum:
        ends = (LogisticRegression(), LogisticRegression(C=0.1))
        parts = [
            ("a", make_pipeline(first, StandardScaler(), ends[0])),
            ("b", make_pipeline(second, StandardScaler(), ends[1])),
        ]
        return ScoreSum(parts, n_folds=2)

    cohort, test = make_cohort(n_people=24), make_cohort(n_people=12, seed=5, name="other")
    shape = {"protocols": ["k-fold", "few-shot"], "n_repeats": 1, "n_folds": 3, "few_shot": (2,), "n_draws": 1}
    table = evaluate(
        {"sum": total(Connectome(), Counting("tangent"))}, cohort, TASK, test_cohort=test, transductive=True, **shape
    ).predictions
    assert set(table["model"]) == {"sum", "sum (transductive)"}
    # All recordings, and one alone for the check that it does not depend on the others; of both cohorts.
    assert computed == [24, 1, 12, 1]
    rows = table.query("protocol == 'k-fold' and fold == 0")
    names = cohort.recordings["participant_id"]
    tested = names.isin(rows["participant_id"]).to_numpy()
    y = TASK.labels(cohort)
    by_hand = total(Connectome(), Connectome("tangent")).fit(
        cohort.select(~tested), y[~tested], groups=np.flatnonzero(~tested)
    )
    np.testing.assert_allclose(by_hand.decision_function(cohort.select(tested)), rows["y_score"], atol=1e-4)


def test_the_papers_split_tests_fifteen_percent(make_cohort: MakeCohort) -> None:
    results = evaluate({"e": edges()}, make_cohort(n_people=60), TASK, protocols=["paper-split"], n_repeats=3)
    assert results.predictions.groupby("repeat").size().tolist() == [9, 9, 9]
    assert "over people" in results.settings["intervals"]["paper-split"]
    assert set(results.predictions["n_train"]) == {42}


# The rest


def test_results_do_not_depend_on_the_number_of_processes(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=20)
    models = {"edges": edges("svm"), "covariates": make_pipeline(Covariates(), make_probe("logistic"))}
    one, two = (evaluate(models, cohort, TASK, n_repeats=1, n_jobs=jobs).predictions for jobs in (1, 2))
    pd.testing.assert_frame_equal(one, two)


def test_a_cohort_that_cannot_travel_is_read_in_this_process(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=20)
    bound = Cohort("toy", cohort.recordings, cohort.participants, cohort.atlas, lambda name: cohort._read(name))
    results = evaluate({"spy": Spy()}, bound, TASK, protocols=["k-fold"], n_repeats=1, n_jobs=2)
    assert len(results.predictions) == 20


def test_seeds_decide_and_repeat(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=30)
    tables = [evaluate({"e": edges()}, cohort, TASK, n_repeats=1, seed=seed).predictions for seed in (0, 0, 1)]
    pd.testing.assert_frame_equal(tables[0], tables[1])
    assert not tables[0].equals(tables[2])


def test_models_keep_their_order_and_probabilities_are_enough(make_cohort: MakeCohort) -> None:
    models = {"b": make_pipeline(Connectome(), DummyClassifier()), "a": edges(), "c": Chance()}
    results = evaluate(models, make_cohort(), TASK, protocols=["k-fold"], n_repeats=1, progress=True)
    assert list(results.predictions["model"].unique()) == ["b", "a", "c"]
    assert results.settings["models"]["c"] == "Chance()"


def _nothing_finite(cohort: Cohort) -> Any:
    class Broken(Chance):
        def decision_function(self, X: Any) -> np.ndarray:
            return np.full(len(X), np.nan)

    return evaluate({"broken": Broken()}, cohort, TASK)


@pytest.mark.parametrize(
    ("call", "found"),
    [
        (lambda c: evaluate({}, c, TASK), "No model was given"),
        (lambda c: evaluate({"a": Chance()}, c, TASK, site_models={"a": Chance()}), "a is both in models"),
        (lambda c: evaluate({"a": Chance()}, c, TASK, protocols=["loso"]), "'loso' is not known; choose from k-fold"),
        (lambda c: evaluate({"a": Chance()}, c, TASK, protocols=["external"]), "give test_cohort"),
        (lambda c: evaluate({"a": Chance()}, c, TASK, n_folds=30), "20 people, which cannot be spread over 30 folds"),
        (lambda c: evaluate({"a": Chance()}, c, TASK, few_shot=(0, 5)), "few_shot has the size 0, and a whole number"),
        (_nothing_finite, "broken gave 8 decision values that are not finite"),
    ],
)
def test_a_wrong_call_is_one_sentence(make_cohort: MakeCohort, call: Callable[[Cohort], Any], found: str) -> None:
    with pytest.raises(OpenBrainMassError, match=found):
        call(make_cohort(n_people=40))


def test_numbers_of_numpy_are_numbers(make_cohort: MakeCohort, tmp_path: Any) -> None:
    counts = {"few_shot": np.array([1, 2]), "n_folds": np.int64(2), "n_draws": np.int64(1), "seed": np.int64(3)}
    shape: dict[str, Any] = {**counts, "n_repeats": np.int64(1), "n_splits": np.int64(1), "transductive": np.False_}
    results = evaluate({"e": edges()}, make_cohort(n_people=12), TASK, protocols=["few-shot"], **shape)
    assert results.settings["few_shot"] == [1, 2]
    results.save(tmp_path / "results")


def test_another_atlas_is_refused(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=20)
    other = Cohort("o", cohort.recordings, cohort.participants, numbered_atlas("Other", 7), cohort._read)
    with pytest.raises(OpenBrainMassError, match=r"test cohort o is of the atlas Other \(7 ROIs\) but toy of Toy"):
        evaluate({"a": Chance()}, cohort, TASK, test_cohort=other)


@pytest.mark.data
def test_edges_reach_their_reference_on_real_people(data_dir: Any, tmp_path: Any) -> None:
    from openbrainmass.cohort.build import build_store
    from openbrainmass.cohort.layouts.read import read_source

    cohort = build_store(read_source(data_dir / "abide1_cc200"), tmp_path / "store", progress=False)
    model = {"edges": make_pipeline(Connectome(), make_probe("logistic"))}
    results = evaluate(model, cohort, Task.load("abide1-asd"), protocols=["site-held-out"])
    values = results.metrics(n_resamples=100).set_index("metric")["value"]
    assert values["auc"] == pytest.approx(0.740, abs=0.015)
    assert values["auc_site_mean"] == pytest.approx(0.735, abs=0.015)
