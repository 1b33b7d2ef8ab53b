from __future__ import annotations

import pickle
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.ensemble import BaggingClassifier, VotingClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import FeatureUnion, make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.utils.validation import check_is_fitted

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.baselines import ShuffledLabels, floors
from openbrainmass.evaluation.leakage import (
    prefitted_parts,
    refuse_overlap,
    refuse_prefitted,
    seen_identities,
    without_column,
)

MakeCohort = Callable[..., Cohort]


class Card:
    """Not an estimator, like a checkpoint."""

    seen_identities = frozenset({"ann"})


class Encoder(TransformerMixin, BaseEstimator):
    """Knows whom it met from its parameter, or only once fitted."""

    def __init__(self, card: object = None) -> None:
        self.card = card

    def fit(self, X: np.ndarray, y: object = None) -> Encoder:
        self.met_ = frozenset({"bob"})
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        return X

    @property
    def seen_identities(self) -> frozenset[str]:
        check_is_fitted(self)
        return self.met_


X, Y = np.random.default_rng(0).normal(size=(20, 2)), np.arange(20) % 2


@pytest.mark.parametrize(
    "wrapped",
    [
        make_pipeline(Encoder(), LogisticRegression()),
        make_pipeline(FeatureUnion([("one", Encoder()), ("other", Encoder())]), LogisticRegression()),
        ShuffledLabels(make_pipeline(Encoder(), LogisticRegression())),
        GridSearchCV(make_pipeline(Encoder(), LogisticRegression()), {"logisticregression__C": [1.0]}, cv=2),
        CalibratedClassifierCV(make_pipeline(Encoder(), LogisticRegression()), cv=2),
        VotingClassifier([("one", make_pipeline(Encoder(), LogisticRegression()))]),
        BaggingClassifier(make_pipeline(Encoder(), LogisticRegression()), n_estimators=2),
    ],
    ids=lambda wrapped: type(wrapped).__name__,
)
def test_no_wrapper_hides_whom_a_fitted_encoder_met(wrapped: BaseEstimator) -> None:
    assert seen_identities(wrapped) == frozenset()
    assert seen_identities(wrapped.fit(X, Y)) == {"bob"}  # type: ignore[attr-defined]


def test_records_of_parameters_lists_and_objects_are_found_and_cycles_end() -> None:
    encoder = Encoder(Card())
    encoder.me = encoder
    assert seen_identities(encoder) == {"ann"}
    assert seen_identities([None, {"a": (Encoder(Card()),)}]) == {"ann"}
    assert seen_identities(np.array([Encoder().fit(X), None], dtype=object)) == {"bob"}
    assert seen_identities(LogisticRegression().fit(X, Y)) == frozenset()


def test_a_record_that_cannot_be_read_is_no_empty_record() -> None:
    class Torn(BaseEstimator):
        @property
        def seen_identities(self) -> frozenset[str]:
            raise AttributeError("the card is gone")

    with pytest.raises(AttributeError, match="the card is gone"):
        seen_identities(make_pipeline(Torn(), LogisticRegression()))


def test_estimators_cannot_read_the_label(make_cohort: MakeCohort) -> None:
    cohort = make_cohort(n_people=6, n_recordings=2)
    hidden = without_column(cohort, "dx")
    assert "dx" in cohort.table and "dx" not in hidden.table
    assert set(hidden.table) == set(cohort.table) - {"dx"}
    for row in (0, 5, 11):
        np.testing.assert_array_equal(hidden[row], cohort[row])
    assert hidden.identities() == cohort.identities()
    chosen = pickle.loads(pickle.dumps(hidden.select([7, 3])))
    np.testing.assert_array_equal(chosen[0], cohort[7])


def test_a_fold_with_a_person_on_both_sides_is_refused() -> None:
    refuse_overlap(np.array([1, 2]), np.array([3]), "Fold 0")
    with pytest.raises(OpenBrainMassError, match="Fold 0 has the same people on its training and its test side"):
        refuse_overlap(np.array([1, 2]), np.array([2]), "Fold 0")


def test_parts_in_functions_and_methods_do_not_hide() -> None:
    met = Encoder().fit(X)
    for hidden in (met.transform, partial(np.dot, met), lambda rows: met.transform(rows)):
        assert seen_identities(make_pipeline(FunctionTransformer(hidden), LogisticRegression())) == {"bob"}


@pytest.mark.parametrize(
    "front",
    [
        FrozenEstimator(StandardScaler().fit(X)),
        FunctionTransformer(StandardScaler().fit(X).transform),
        FeatureUnion([("one", FrozenEstimator(StandardScaler().fit(X)))]),
    ],
    ids=lambda front: type(front).__name__,
)
def test_a_fitted_part_without_a_record_is_refused_by_name(front: BaseEstimator) -> None:
    model = make_pipeline(front, LogisticRegression())
    assert "StandardScaler" in prefitted_parts(model)
    with pytest.raises(OpenBrainMassError, match="The model mine holds a StandardScaler .*pretraining-statistics"):
        refuse_prefitted({"edges": LogisticRegression(), "mine": model})


def test_a_fitted_part_with_a_record_or_one_that_is_fitted_anew_is_not() -> None:
    scaler = StandardScaler().fit(X)
    scaler.seen_identities = frozenset({"ann"})
    frozen = make_pipeline(FrozenEstimator(scaler), LogisticRegression())
    refuse_prefitted({"frozen": frozen, "fitted": make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y)})
    refuse_prefitted(floors("svm"))
    assert seen_identities(frozen) == {"ann"}
