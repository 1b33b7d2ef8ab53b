from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.baselines import Chance, Connectome, Covariates, ScoreSum, ShuffledLabels
from openbrainmass.evaluation.prepared import Features, OwnPart, Parts, prepare, same_step, take
from openbrainmass.evaluation.probes import flat_steps

MakeCohort = Callable[..., Cohort]
END = (StandardScaler(), LogisticRegression())


def test_what_needs_no_fitting_is_taken_off_wherever_it_is() -> None:
    edges = make_pipeline(Connectome(), make_pipeline(*END))
    assert [type(step) for step in flat_steps(edges)] == [Connectome, StandardScaler, LogisticRegression]
    kinds = {
        "transform": edges,
        "prepare": make_pipeline(Connectome("tangent"), *END),
        "recordings": make_pipeline(Covariates(), *END),
        "parts": ScoreSum([("e", edges)]),
    }
    assert {kind: prepare("m", model).kind for kind, model in kinds.items()} == {kind: kind for kind in kinds}
    shuffled = prepare("m", ShuffledLabels(edges, seed=3))
    assert shuffled.kind == "transform" and isinstance(shuffled.model, ShuffledLabels) and shuffled.model.seed == 3
    assert isinstance(shuffled.step, Connectome)


def test_equal_steps_share_features_and_others_do_not(make_cohort: MakeCohort) -> None:
    assert same_step(Connectome("partial"), Connectome("partial"))
    assert not same_step(Connectome("partial"), Connectome())
    edges, tangent = (make_pipeline(Connectome(kind), *END) for kind in ("fisher-z", "tangent"))
    models = {
        "e": edges, "t": tangent, "sum": ScoreSum([("e", edges), ("t", tangent)]), "p": make_pipeline(Connectome("partial"), *END)
    }  # fmt: skip
    ready = {name: prepare(name, model) for name, model in models.items()}
    assert [ready["sum"].shares_with(ready[name]) for name in ("e", "t", "sum", "p")] == [True, True, True, False]
    assert not ready["e"].shares_with(ready["t"])
    features = Features([ready["t"], ready["sum"], ready["e"]], make_cohort(n_people=6))
    assert len(features.made) == 2
    parts = features.of(ready["sum"])
    assert parts.values[0] is features.of(ready["e"]) and parts.values[1] is features.of(ready["t"])


def test_rows_of_parts_are_rows_of_each(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=6)
    parts = Parts([np.arange(12).reshape(6, 2), cohort])
    some = take(parts, np.array([4, 1]))
    assert len(parts) == 6 and len(some) == 2
    np.testing.assert_array_equal(OwnPart(0).fit_transform(some), [[8, 9], [2, 3]])
    assert OwnPart(1).transform(some).recordings["recording_id"].tolist() == ["p004-0", "p001-0"]
    assert prepare("m", Chance()).features(cohort) is cohort


@pytest.mark.parametrize("unit", [1e-6, 1.0, 1e6])
def test_features_that_depend_on_who_else_is_there_are_refused_in_any_unit(
    make_cohort: MakeCohort, unit: float
) -> None:
    def variances(X: Cohort) -> np.ndarray:
        return unit * np.stack([bold.var(axis=0) for bold in X])

    def centred(X: Cohort) -> np.ndarray:
        return variances(X) - variances(X).mean(axis=0)

    cohort = make_cohort(n_people=6)
    assert prepare("m", make_pipeline(FunctionTransformer(variances), *END)).features(cohort).shape == (6, 6)
    with pytest.raises(OpenBrainMassError, match="change with the recordings around it"):
        prepare("m", make_pipeline(FunctionTransformer(centred), *END)).features(cohort)
