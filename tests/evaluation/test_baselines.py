from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nilearn.connectome import ConnectivityMeasure
from sklearn.base import clone
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils import get_tags

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.connectivity import correlation, fisher_z, ledoit_wolf, partial_correlation, vectorize
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.baselines import (
    Chance,
    Connectome,
    Covariates,
    ScoreSum,
    ShuffledLabels,
    TangentSpace,
    edges_and_tangent,
    floors,
    is_fc_stack,
    rivals,
    shuffled,
)
from openbrainmass.evaluation.evaluate import evaluate
from openbrainmass.evaluation.fitting import asks_for_groups, fit_model
from openbrainmass.evaluation.leakage import without_column
from openbrainmass.evaluation.probes import decision_values
from openbrainmass.evaluation.tasks import Task
from openbrainmass.evaluation.tuning import tuned

MakeCohort = Callable[..., Cohort]


def test_edges_of_a_cohort_a_list_and_an_fc_stack_agree(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=6)
    edges = Connectome().transform(cohort)
    assert edges.shape == (6, 15) and edges.dtype == np.float32
    np.testing.assert_array_equal(edges[3], vectorize(fisher_z(correlation(cohort[3]))))
    np.testing.assert_array_equal(Connectome().fit(None).transform(list(cohort)), edges)
    stack = Connectome("correlation").transform(cohort)
    assert stack.shape == (6, 6, 6) and is_fc_stack(stack) and not is_fc_stack(np.stack(list(cohort)))
    np.testing.assert_allclose(Connectome().transform(stack), edges, atol=1e-6)


def test_half_precision_bold_does_not_overflow(make_cohort: MakeCohort) -> None:
    bold = [(1000 * array).astype(np.float16) for array in make_cohort(n_people=2)]
    np.testing.assert_allclose(
        Connectome().transform(bold)[0], Connectome().transform([bold[0].astype(float)])[0], atol=1e-3
    )


def test_estimators_and_kinds(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=4)
    shrunk = Connectome("fisher-z", "ledoit-wolf").transform(cohort)
    np.testing.assert_allclose(shrunk[0], vectorize(fisher_z(ledoit_wolf(cohort[0]))), atol=1e-6)
    partial = Connectome("partial").transform(cohort)
    np.testing.assert_allclose(partial[1], vectorize(partial_correlation(cohort[1])), atol=1e-6)


@pytest.mark.parametrize(
    ("connectome", "found"),
    [
        (Connectome("edges"), "'edges' is not known; choose one of correlation, fisher-z, partial, tangent"),
        (Connectome("tangent", "pearson"), "no inverse"),
        (Connectome("fisher-z", "spearman"), "Recording 0: .*'spearman' is not known"),
    ],
)
def test_a_wrong_connectome_is_one_sentence(make_cohort: MakeCohort, connectome: Connectome, found: str) -> None:
    with pytest.raises(OpenBrainMassError, match=found):
        connectome.fit_transform(make_cohort(n_people=4))


def test_partial_correlations_are_not_made_of_fc(make_cohort: MakeCohort) -> None:
    with pytest.raises(OpenBrainMassError, match="made from BOLD"):
        Connectome("partial").transform(Connectome("correlation").transform(make_cohort(n_people=4)))


def test_tangent_vectors_are_nilearns_up_to_their_reference(make_cohort: MakeCohort) -> None:
    # nilearn's reference is the geometric mean; with one recording, and of itself, both are that matrix.
    cohort = make_cohort(n_people=6)
    scaled = [(bold - bold.mean(axis=0)) / bold.std(axis=0) for bold in np.stack(list(cohort)).astype(float)]
    measure = ConnectivityMeasure(cov_estimator=LedoitWolf(store_precision=False), kind="tangent")
    theirs = measure.fit(scaled[:1]).transform(scaled)
    ours = Connectome("tangent").fit(cohort.select([0])).transform(cohort)
    rows, columns = np.triu_indices(6)
    np.testing.assert_allclose(ours, theirs[:, rows, columns] * np.where(rows == columns, 1, np.sqrt(2)), atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), np.linalg.norm(theirs, axis=(1, 2)), atol=1e-4)


def test_the_tangent_reference_is_that_of_fit_only(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=10)
    space = Connectome("tangent").fit(cohort.select([0, 1, 2]))
    np.testing.assert_allclose(
        space.space_.reference_, np.mean([ledoit_wolf(cohort[i]) for i in range(3)], axis=0), atol=1e-6
    )
    np.testing.assert_array_equal(space.transform(cohort)[:3], space.transform(cohort.select([0, 1, 2])))
    prepared = space.prepare(cohort)
    np.testing.assert_array_equal(clone(space).fit(prepared[:3]).transform(prepared), space.transform(cohort))


def test_matrices_without_an_inverse_have_no_tangent() -> None:
    flat = np.ones((3, 4, 4), dtype=np.float32)
    with pytest.raises(OpenBrainMassError, match="no inverse"):
        TangentSpace().fit(flat)
    with pytest.raises(OpenBrainMassError, match="Matrix 1 is not positive definite"):
        TangentSpace().fit(np.stack([np.eye(4)] * 2)).transform(np.stack([np.eye(4), -np.eye(4)]))


def test_covariates_are_coded_and_filled_from_training_people_only(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(
        ["patient", "control"] * 3,
        columns={"age": [10.0, 20.0, np.nan, 30.0, 1000.0, np.nan], "sex": ["F", "M", "F", None, "X", "M"]},
    )
    covariates = Covariates(("age", "sex", "absent")).fit(cohort.select([0, 1, 2, 3]))
    assert covariates.get_feature_names_out().tolist() == ["age", "sex=F", "sex=M"]
    assert covariates.transform(cohort).tolist() == [
        [10, 1, 0], [20, 0, 1], [20, 1, 0], [30, 0, 0], [1000, 0, 0], [20, 0, 1],
    ]  # fmt: skip


def test_default_covariates_are_those_that_are_there_and_never_the_label(make_cohort: MakeCohort) -> None:
    names = Covariates().fit(make_cohort(n_people=8)).get_feature_names_out().tolist()
    assert names == ["age", "n_volumes", "tr", "site=site0", "site=site1"]


def test_covariates_that_must_exist_or_do_not(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=4)
    with pytest.raises(OpenBrainMassError, match="no covariate iq"):
        Covariates(("age", "iq"), must_exist=True).fit(cohort)
    nothing = Covariates(("iq",)).fit(cohort)
    assert nothing.transform(cohort).tolist() == [[0.0]] * 4
    assert nothing.get_feature_names_out().tolist() == ["none"]
    with pytest.raises(OpenBrainMassError, match="given ndarray"):
        Covariates().fit(np.zeros((3, 3)))


def test_a_covariate_that_only_training_has_is_missing_elsewhere(make_cohort: MakeCohort) -> None:
    covariates = Covariates(("age", "site")).fit(make_cohort(n_people=8))
    elsewhere = make_cohort(n_people=4)
    elsewhere = Cohort(
        elsewhere.name,
        elsewhere.recordings,
        elsewhere.participants.drop(columns=["age", "site"]),
        elsewhere.atlas,
        elsewhere.bold,
        elsewhere.exclusions,
    )
    assert covariates.transform(elsewhere).tolist() == [[covariates.medians_["age"], 0, 0]] * 4


def test_a_numbered_site_is_not_a_number(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=8, columns={"center": [0, 3, 1, 2] * 2})
    assert Covariates(("center",)).fit_transform(cohort).shape == (8, 1)
    assert Covariates(("center",), site="center").fit_transform(cohort).shape == (8, 4)
    task = Task(name="t", target="dx", positive=("patient",), negative=("control",), site="center")
    models = {**floors(None, task), **rivals(task.model_copy(update={"covariates": ("center",)}), cohort)}
    found = {name: model[0].site for name, model in models.items() if name.startswith(("covariates", "center"))}
    assert found == {"covariates + logistic": "center", "center + logistic": "center"}


def test_an_all_missing_covariate_is_zero(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=4, columns={"mean_fd": [np.nan] * 4})
    assert Covariates(("mean_fd",)).fit_transform(cohort).tolist() == [[0.0]] * 4


def test_chance_ranks_nobody_and_predicts_the_larger_class() -> None:
    chance = Chance().fit(np.zeros((5, 1)), [1, 1, 1, 0, 0])
    assert chance.decision_function([[0]] * 3).tolist() == [0, 0, 0]
    assert chance.predict([[0]] * 2).tolist() == [1, 1]


def test_shuffled_labels_permute_and_do_not_touch_the_estimator() -> None:
    X, y = np.arange(200.0)[:, None], (np.arange(200) >= 100).astype(int)
    inner = LogisticRegression()
    shuffled = ShuffledLabels(inner, seed=1).fit(X, y)
    assert not hasattr(inner, "coef_")
    assert abs(shuffled.estimator_.coef_[0, 0]) < 0.1 * abs(LogisticRegression().fit(X, y).coef_[0, 0])
    assert set(shuffled.predict(X)) <= {0, 1} and shuffled.classes_.tolist() == [0, 1]
    np.testing.assert_array_equal(
        shuffled.decision_function(X), ShuffledLabels(inner, 1).fit(X, y).decision_function(X)
    )
    assert not np.array_equal(shuffled.decision_function(X), ShuffledLabels(inner, 2).fit(X, y).decision_function(X))


def test_shuffled_labels_are_one_a_person() -> None:
    people = np.arange(60) // 3
    given: list[np.ndarray] = []

    class Spy(LogisticRegression):
        def fit(self, X, y):
            given.append(y)
            return super().fit(X, y)

    y = people % 2
    fit_model(ShuffledLabels(Spy()), np.arange(60.0)[:, None], y, people)
    assert given[0].sum() == y.sum() and not np.array_equal(given[0], y)
    assert all(len(set(given[0][people == person])) == 1 for person in range(20))


def test_siblings_of_both_classes_keep_both_after_shuffling() -> None:
    families, given = np.arange(20) // 2, []

    class Spy(LogisticRegression):
        def fit(self, X, y):
            given.append(y)
            return super().fit(X, y)

    y = np.arange(20) % 2
    fit_model(ShuffledLabels(Spy()), np.arange(20.0)[:, None], y, families)
    assert given[0].sum() == 10 and not np.array_equal(given[0], y)


def test_shuffles_have_their_own_permutations() -> None:
    X, y = np.random.default_rng(0).normal(size=(40, 3)), np.arange(40) % 2
    models = shuffled(LogisticRegression(), 3, seed=7)
    assert list(models) == ["shuffled labels 1", "shuffled labels 2", "shuffled labels 3"]
    assert [model.seed for model in models.values()] == [7, 8, 9]
    values = [model.fit(X, y).decision_function(X) for model in models.values()]
    assert not np.allclose(values[0], values[1]) and not np.allclose(values[1], values[2])


class Times(LogisticRegression):
    """A classifier whose decision values are in other units."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    def decision_function(self, X):
        return self.factor * super().decision_function(X) + 5 * self.factor


def two_views(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Four columns, of which each of two parts takes two; labels; the person of each row (two rows each)."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) // 2 % 2
    return rng.normal(size=(n, 4)) + 0.7 * y[:, None], y, np.arange(n) // 2


def columns(first: int) -> FunctionTransformer:
    return FunctionTransformer(np.take, kw_args={"indices": [first, first + 1], "axis": 1})


def test_a_score_sum_by_hand() -> None:
    (X, y, people), (new, _, _) = two_views(60), two_views(10, seed=1)
    parts = [("a", make_pipeline(columns(0), LogisticRegression())), ("b", make_pipeline(columns(2), Times(50)))]
    ours = fit_model(ScoreSum(parts, n_folds=3, seed=4), X, y, people).decision_function(new)
    folds = StratifiedGroupKFold(3, shuffle=True, random_state=4)
    expected = np.zeros(10)
    for _, part in parts:
        held_out = cross_val_predict(part, X, y, groups=people, cv=folds, method="decision_function")
        values = part.fit(X, y).decision_function(new)
        expected += (values - held_out.mean()) / held_out.std()
    np.testing.assert_allclose(ours, expected)


def test_a_score_sum_does_not_depend_on_how_pipelines_are_nested() -> None:
    (X, y, people), (new, _, _) = two_views(60), two_views(10, seed=1)
    flat = make_pipeline(columns(0), StandardScaler(), LogisticRegression())
    nested = make_pipeline(make_pipeline(columns(0), make_pipeline(StandardScaler(), LogisticRegression())))
    sums = [fit_model(ScoreSum([("a", part)]), X, y, people).decision_function(new) for part in (flat, nested)]
    np.testing.assert_allclose(*sums)


def test_a_score_sum_may_be_a_part_of_another(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=24)
    task = Task(name="t", target="dx", positive=("patient",), negative=("control",))
    models = {"sum": ScoreSum([("inner", edges_and_tangent()), ("chance", Chance())])}
    results = evaluate(models, cohort, task, protocols=["k-fold", "few-shot"], n_folds=2, n_repeats=1, n_draws=1,
                       few_shot=[2])  # fmt: skip
    assert np.isfinite(results.predictions["y_score"]).all()


@settings(max_examples=5, deadline=None)
@given(st.floats(1e-3, 1e3), st.integers(0, 1000))
def test_a_score_sum_does_not_depend_on_the_units_of_its_parts(factor: float, seed: int) -> None:
    X, y, people = two_views(24, seed)

    def values(part: LogisticRegression) -> np.ndarray:
        model = ScoreSum([("a", LogisticRegression()), ("b", part)], n_folds=3)
        return fit_model(model, X, y, people).decision_function(X)

    np.testing.assert_allclose(values(Times(factor)), values(LogisticRegression()), atol=1e-8)


def test_a_score_sum_says_the_same_of_a_person_in_any_company() -> None:
    (X, y, people), (new, _, _) = two_views(40), two_views(12, seed=2)
    model = fit_model(ScoreSum([("a", LogisticRegression()), ("b", Times(9))]), X, y, people)
    alone = [model.decision_function(row[None])[0] for row in new]
    np.testing.assert_allclose(model.decision_function(new), alone)
    np.testing.assert_array_equal(model.predict(new), (np.array(alone) > 0).astype(int))


def test_inner_folds_of_a_score_sum_keep_people_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y, people = two_views(40)
    seen: list[np.ndarray] = []
    split = StratifiedGroupKFold.split
    monkeypatch.setattr(
        StratifiedGroupKFold,
        "split",
        lambda self, X, y, groups: (seen.append(groups), split(self, X, y, groups))[1],
    )
    model = ScoreSum([("a", LogisticRegression())])
    assert asks_for_groups(model)
    fit_model(model, X, y, people)
    np.testing.assert_array_equal(seen[0], people)


@pytest.mark.parametrize("n_people", [2, 4])
def test_a_score_sum_of_very_few_people(n_people: int) -> None:
    X, y, people = two_views(2 * n_people)
    model = fit_model(ScoreSum([("a", LogisticRegression()), ("b", Times(9))]), X, y, people)
    assert np.isfinite(model.decision_function(X)).all()
    assert model.spreads_[1] > 3 * model.spreads_[0]


def test_a_part_that_takes_recordings_itself_gets_them_as_they_came(make_cohort: MakeCohort) -> None:
    class OnBold(LogisticRegression):
        def fit(self, X, y):
            return super().fit(Connectome().transform(X), y)

        def decision_function(self, X):
            return super().decision_function(Connectome().transform(X))

    cohort = make_cohort(n_people=16, effect=3.0)
    y, people, stack = np.arange(16) % 2, np.arange(16), Connectome("correlation").transform(cohort)
    values = [
        fit_model(ScoreSum([("bold", OnBold())]), X, y, people).decision_function(X)
        for X in (cohort, list(cohort), stack)
    ]
    np.testing.assert_allclose(values[1], values[0])
    np.testing.assert_allclose(values[2], values[0], atol=1e-4)


def test_parts_of_a_score_sum_may_be_tuned(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=16, effect=3.0)
    y, people = np.arange(16) % 2, np.arange(16)
    parts = [(kind, make_pipeline(Connectome(kind), tuned("prototype"))) for kind in ("fisher-z", "tangent")]
    values = fit_model(ScoreSum(parts, n_folds=2), cohort, y, people).decision_function(cohort)
    assert values[y == 1].mean() > values[y == 0].mean() + 1


def task_of(target: str, **changes: object) -> Task:
    return Task(name=target, target=target, **{"positive": ("patient",), "negative": ("control",), **changes})


def number_task(target: str) -> Task:
    return Task(name=target, target=target, kind="regression", positive=(), negative=())


def test_floors_hold_the_same_probe_and_never_the_target_as_covariate() -> None:
    assert (
        list(floors())
        == list(floors("svm"))
        == [
            "chance",
            "covariates + logistic",
            "edges + logistic",
            "edges + svm",
            "tangent + logistic",
        ]
    )
    assert list(floors("logistic")) == ["chance", "covariates + logistic", "edges + logistic", "tangent + logistic"]
    assert "edges + same probe" in floors(LogisticRegression())
    assert floors("svm", task_of("dx", covariates=("age",)))["covariates + logistic"][0].columns == ("age",)


def test_floors_of_a_number() -> None:
    task = number_task("age")
    assert list(floors(None, task)) == ["mean", "covariates + ridge", "edges + ridge", "tangent + ridge"]
    assert list(floors("kernel ridge", task))[3] == "edges + kernel ridge"
    assert "age" not in floors(None, task)["covariates + ridge"][0].columns
    with pytest.raises(OpenBrainMassError, match="'svm' is not known; choose one of ridge, kernel ridge, or give a"):
        floors("svm", task)


def test_rivals_have_a_row_for_each_covariate_that_tells_people_apart(make_cohort: MakeCohort) -> None:
    names = list(rivals(task_of("dx"), make_cohort(n_people=16)))
    assert names == [
        "chance", "covariates + logistic", "edges + logistic", "edges + svm", "tangent + logistic",
        "age + logistic", "site + logistic",
        "edges + ridge", "tangent, shrunk by 0.3 + ridge", "tangent + ridge",
        "edges + kernel ridge, tuned", "edges + logistic, tuned", "partial + logistic",
        "edges + tangent, sum",
    ]  # fmt: skip


def test_a_fixed_shrinkage_does_not_depend_on_the_length_of_the_scan(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=12)
    fitted = Connectome("tangent", shrinkage=0.3).fit(cohort)
    fc = np.stack([correlation(bold) for bold in cohort])
    np.testing.assert_allclose(fitted.transform(fc), fitted.transform(cohort), atol=1e-5)
    mean = 0.7 * fc.mean(axis=0) + 0.3 * np.eye(fc.shape[1])
    np.testing.assert_allclose(fitted.space_.reference_, mean, atol=1e-6)
    assert np.isfinite(fitted.transform([cohort[0][:5]])).all()


@pytest.mark.parametrize(
    "asked", [{"kind": "fisher-z"}, {"kind": "tangent", "shrinkage": 1.5}, {"kind": "tangent", "estimator": "pearson"}]
)
def test_a_shrinkage_that_makes_no_sense_is_refused(make_cohort: MakeCohort, asked: dict) -> None:
    with pytest.raises(OpenBrainMassError, match="share between 0 and 1"):
        Connectome(**{"shrinkage": 0.3} | asked).fit(make_cohort(n_people=4))


def test_every_rival_of_classes_runs(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=40, effect=3.0)
    y, people = 1 - np.arange(40) % 2, np.arange(40)
    train, test = cohort.select(range(20)), cohort.select(range(20, 40))
    for name, model in rivals(task_of("dx"), without_column(cohort, "dx")).items():
        values = decision_values(fit_model(model, train, y[:20], people[:20]), test)
        area = roc_auc_score(y[20:], values)
        assert area == 0.5 if name == "chance" else area > 0.8 or name.split()[0] in ("covariates", "age", "site"), name


def test_every_rival_of_a_number_runs(make_cohort: MakeCohort) -> None:
    strength = np.random.default_rng(1).uniform(0, 3, 40)
    cohort = make_cohort(n_people=40, effect=0.0, columns={"strength": strength})
    coupled = [bold + np.outer(bold[:, 0], np.eye(6)[1]) * s for bold, s in zip(cohort, strength, strict=True)]
    X, people = coupled[:30], np.arange(30)
    for name, model in rivals(number_task("strength"), cohort).items():
        on_table = "covariates" in name or name in ("age + ridge", "site + ridge")
        train, test = (cohort.select(range(30)), cohort.select(range(30, 40))) if on_table else (X, coupled[30:])
        said = fit_model(model, train, strength[:30], people).predict(test)
        if name == "mean":
            np.testing.assert_allclose(said, strength[:30].mean())
        elif not on_table:
            assert np.corrcoef(said, strength[30:])[0, 1] > 0.7, name


@pytest.mark.parametrize(
    ("estimator", "requires_fit"),
    [(Connectome(), False), (Connectome("partial"), False), (Connectome("tangent"), True), (Covariates(), True),
     (Chance(), True), (ShuffledLabels(Chance()), True),
     (ScoreSum([]), True)],
)  # fmt: skip
def test_tags_tell_what_may_be_computed_once(estimator: object, requires_fit: bool) -> None:
    assert get_tags(estimator).requires_fit is requires_fit


def test_covariates_keep_codes_of_numbers_apart_from_text(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(["patient", "control"], columns={"group": pd.Series(["1", "2"])})
    assert Covariates(("group",)).fit(cohort).get_feature_names_out().tolist() == ["group=1", "group=2"]
