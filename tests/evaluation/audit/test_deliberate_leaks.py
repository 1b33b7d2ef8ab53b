"""Every leak that the audit knows, committed on purpose: it is refused by name (or its floor is printed), its honest
twin is not, and without the guard those that inflate lift the AUC of people without any effect above 0.60.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, SGDClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from openbrainmass.cohort.cohort import Cohort
from openbrainmass.evaluation.audit.checks import CHECKS, Finding
from openbrainmass.evaluation.audit.copies import find_copies
from openbrainmass.evaluation.audit.features import audit_features
from openbrainmass.evaluation.audit.folds import audit_folds
from openbrainmass.evaluation.audit.labels import audit_columns, audit_floors, audit_labels, audit_names
from openbrainmass.evaluation.audit.ledger import audit_looks, expected_best_auc, record_look
from openbrainmass.evaluation.audit.pretraining import audit_pretraining, audit_statistics
from openbrainmass.evaluation.audit.procedure import audit_procedure

INFLATED = 0.60
Null = SimpleNamespace


def refused(findings: Iterable[Finding]) -> set[str]:
    return {finding.check for finding in findings if finding.verdict == "refused"}


def of_procedure(null: Null, procedure: Callable[..., Any], p: int = 40) -> set[str]:
    X, y = null.noise(p=p)
    return refused(audit_procedure(procedure, X, y, null.random_folds(len(y))[:1]))


def of_features(null: Null, people: Cohort, X: np.ndarray) -> set[str]:
    return refused(audit_features(null.features_of(X, people), people, null.task))


# Fitted on the test people


def test_leak_test_is_train(null: Null, people: Cohort) -> None:
    def fits_all(X: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        return null.linear().fit(X, y).decision_function(X[test])

    def fits_training(X: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> np.ndarray:
        return null.linear().fit(X[train], y[train]).decision_function(X[test])

    everybody = np.arange(len(people))
    same = null.fold_table(people, [(everybody, everybody)])
    assert refused(audit_folds(people, null.task, same, [])) == {"test-is-train"}
    assert "test-is-train" in of_procedure(null, fits_all)
    assert of_procedure(null, fits_training) == set()
    assert null.procedure_auc(fits_all) > INFLATED


def _projected(X: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, width: int) -> np.ndarray:
    keep = np.random.default_rng(width).permutation(X.shape[1])[:5]
    weights = np.linalg.lstsq(X[train][:, keep], y[train] - 0.5, rcond=None)[0]
    return np.asarray(X[test][:, keep] @ weights)


def test_leak_hyper_parameters_tuned_on_test(null: Null) -> None:
    def tuned(X: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, on_test: bool) -> dict[str, Any]:
        half = len(train) // 2
        learn, judge = (train, test) if on_test else (train[:half], train[half:])
        width = max(range(30), key=lambda w: null.auc(y[judge], _projected(X, y, learn, judge, w)))
        return {"scores": _projected(X, y, train, test, width), "width": width}

    assert of_procedure(null, lambda *fold: tuned(*fold, on_test=True)) == {"tuned-on-test"}
    assert of_procedure(null, lambda *fold: tuned(*fold, on_test=True)["scores"]) == {"tuned-on-test"}
    assert of_procedure(null, lambda *fold: tuned(*fold, on_test=False)) == set()
    assert null.procedure_auc(lambda *fold: tuned(*fold, on_test=True)) > INFLATED


def test_leak_threshold_on_test(null: Null) -> None:
    def cut(X: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, on_test: bool) -> dict[str, Any]:
        model = null.linear().fit(X[train], y[train])
        judge = test if on_test else train
        scores = model.decision_function(X[judge])
        threshold = max(scores, key=lambda value: ((scores >= value) == y[judge]).mean())
        scores = model.decision_function(X[test])
        return {"scores": scores, "threshold": threshold, "predictions": (scores >= threshold).astype(int)}

    assert of_procedure(null, lambda *fold: cut(*fold, on_test=True)) == {"threshold-on-test"}
    assert of_procedure(null, lambda *fold: cut(*fold, on_test=False)) == set()
    assert null.procedure_auc(lambda *fold: cut(*fold, on_test=True), seeds=range(4)) > INFLATED


def test_leak_epoch_on_test(null: Null) -> None:
    def trained(X: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, on_test: bool) -> dict[str, Any]:
        model = SGDClassifier(learning_rate="constant", eta0=1.0, random_state=0)
        epochs = []
        for _ in range(15):
            model.partial_fit(X[train], y[train], classes=np.array([0, 1]))
            epochs.append(model.decision_function(X[test]))
        epoch = int(np.argmax([null.auc(y[test], scores) for scores in epochs])) if on_test else 14
        return {"scores": epochs[epoch], "epoch": epoch}

    assert of_procedure(null, lambda *fold: trained(*fold, on_test=True)) == {"epoch-on-test"}
    assert of_procedure(null, lambda *fold: trained(*fold, on_test=False)) == set()
    assert null.procedure_auc(lambda *fold: trained(*fold, on_test=True)) > INFLATED


# Preprocessing before the split


def _after(fit: Callable[..., Any], null: Null, on_all: bool, name: str) -> Callable[..., Any]:
    """A procedure that preprocesses by what `fit` learns from everybody or from the training side."""

    def procedure(X: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray) -> dict[str, Any]:
        learnt, apply = fit(X if on_all else X[train])
        model = null.linear().fit(apply(X[train]), y[train])
        return {"scores": model.decision_function(apply(X[test])), name: learnt}

    return procedure


def _scaler(X: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    scaler = StandardScaler().fit(X)
    return np.asarray(scaler.mean_), lambda rows: np.asarray(scaler.transform(rows))


def _pca(X: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    pca = PCA(8, random_state=0).fit(X)
    return np.asarray(pca.components_), lambda rows: np.asarray(pca.transform(rows))


def _imputation(X: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    middle = np.nanmean(X, axis=0)
    return middle, lambda rows: np.where(np.isnan(rows), middle, rows)


def _site(X: np.ndarray) -> np.ndarray:
    return (X[:, 0] > 0).astype(float)


def _combat(X: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    means = np.array([X[_site(X) == site].mean(axis=0) for site in (0, 1)])
    return means, lambda rows: rows - means[_site(rows).astype(int)]


def _regression(X: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    model = LinearRegression().fit(X[:, :1], X[:, 1:])
    return np.asarray(model.coef_), lambda rows: rows[:, 1:] - model.predict(rows[:, :1])


@pytest.mark.parametrize(
    ("fit", "name", "check"),
    [
        (_scaler, "scaler", "scaler-before-split"),
        (_pca, "pca", "pca-before-split"),
        (_combat, "combat", "combat-before-split"),
        (_regression, "regression", "regression-before-split"),
    ],
)
def test_preprocessing_of_test_people_is_proved_in_any_code(
    null: Null, fit: Callable[..., Any], name: str, check: str
) -> None:
    assert of_procedure(null, _after(fit, null, True, name)) == {check}
    assert of_procedure(null, _after(fit, null, True, "unnamed")) == {"statistics-of-test"}
    assert of_procedure(null, _after(fit, null, False, name)) == set()


def _mixed(people: Cohort, p: int = 40) -> np.ndarray:
    rng = np.random.default_rng(8)
    return 3 + rng.normal(size=(len(people), p)) @ (np.eye(p) + 0.2 * rng.normal(size=(p, p)))


def test_leak_scaler_before_split(null: Null, people: Cohort) -> None:
    X = _mixed(people)
    half = StandardScaler().fit(X[:30])
    assert of_features(null, people, np.asarray(StandardScaler().fit_transform(X))) == {"scaler-before-split"}
    assert of_features(null, people, (X - X.min(axis=0)) / np.ptp(X, axis=0)) == {"scaler-before-split"}
    assert of_features(null, people, X) == of_features(null, people, np.asarray(half.transform(X))) == set()


def test_leak_pca_before_split(null: Null, people: Cohort) -> None:
    X = _mixed(people)
    half = PCA(6, random_state=0).fit(X[:30])
    everybody = PCA(6, random_state=0).fit_transform(X)
    assert of_features(null, people, everybody) == {"pca-before-split"}
    assert of_features(null, people, np.asarray(half.transform(X))) == set()


def test_leak_imputation_before_split(null: Null, people: Cohort) -> None:
    X = _mixed(people, 12)
    gaps = np.random.default_rng(9).random(X.shape) < 0.1
    gappy = np.where(gaps, np.nan, X)
    of_half, of_all = np.nanmean(gappy[:30], axis=0), np.nanmean(gappy, axis=0)
    assert of_features(null, people, np.where(gaps, of_all, X)) == {"imputation-before-split"}
    assert of_features(null, people, np.where(gaps, of_half, X)) == of_features(null, people, gappy) == set()
    Y, y = null.noise()
    Y[np.random.default_rng(9).random(Y.shape) < 0.1] = np.nan
    folds = null.random_folds(len(y))[:1]
    leaky, honest = (_after(_imputation, null, on_all, "imputation") for on_all in (True, False))
    assert refused(audit_procedure(leaky, Y, y, folds)) == {"imputation-before-split"}
    assert refused(audit_procedure(honest, Y, y, folds)) == set()


def test_leak_imputation_by_class_inflates(null: Null, people: Cohort) -> None:
    y = null.task.labels(people)
    X = _mixed(people, 100)
    gaps = np.random.default_rng(9).random(X.shape) < 0.4
    for label in (0, 1):
        own = np.where(gaps | (y != label)[:, None], np.nan, X)
        X = np.where(gaps & (y == label)[:, None], np.nanmean(own, axis=0), X)
    assert "imputation-before-split" in of_features(null, people, X)
    assert null.fold_auc(X, y, null.random_folds(len(y))) > INFLATED


def _site_effects(people: Cohort, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    sites = pd.factorize(people.table["site"])[0]
    return X + np.random.default_rng(10).normal(size=(3, X.shape[1]))[sites], sites


def test_leak_combat_before_split(null: Null, people: Cohort) -> None:
    X, sites = _site_effects(people, _mixed(people))
    means = np.array([X[sites == site].mean(axis=0) for site in range(3)])
    half = np.array([X[:40][sites[:40] == site].mean(axis=0) for site in range(3)])
    assert of_features(null, people, X + 5 - means[sites]) == {"combat-before-split"}
    # Empirical Bayes takes not all of a site's mean away.
    assert of_features(null, people, X - 0.9 * means[sites]) == {"combat-before-split"}
    assert of_features(null, people, X + 5 - half[sites]) == of_features(null, people, X) == set()


def test_leak_combat_keeping_the_label(null: Null) -> None:
    y = null.labels_of(90)
    rng = np.random.default_rng(11)
    sites = np.where(rng.random(90) < 0.85, y, 1 - y) + 2 * rng.integers(3, size=90)
    names = [f"sub-{number}" for number in rng.permutation(900)[:90]]
    dx = np.where(y == 1, "patient", "control")
    about = pd.DataFrame({"participant_id": names, "site": [f"s{site}" for site in sites], "dx": dx})
    people = null.cohort_of(names, [null.bold_of(0, number, 20) for number in range(90)], about)
    X = rng.normal(size=(90, 60)) + 2 * rng.normal(size=(6, 60))[sites]
    dummies = np.eye(6)[sites]
    kept = np.linalg.lstsq(np.column_stack([dummies, y]), X, rcond=None)[0]
    blind = np.linalg.lstsq(dummies, X, rcond=None)[0]
    folds = null.random_folds(90)
    assert of_features(null, people, X + 5 - dummies @ kept[:6]) == {"combat-keeps-label"}
    assert of_features(null, people, X + 5 - dummies @ blind) == {"combat-before-split"}
    assert null.fold_auc(X - dummies @ kept[:6], y, folds) > INFLATED > null.fold_auc(X - dummies @ blind, y, folds)


def test_leak_confound_regression_before_split(null: Null, people: Cohort) -> None:
    about = people.table
    X = _mixed(people) + 0.1 * about[["age"]].to_numpy()
    model = LinearRegression().fit(about[["age"]], X)
    half = LinearRegression().fit(about[["age"]].iloc[:30], X[:30])
    assert of_features(null, people, X - model.predict(about[["age"]])) == {"regression-before-split"}
    assert of_features(null, people, X - half.predict(about[["age"]])) == of_features(null, people, X) == set()


def test_leak_edge_selection_before_split(null: Null, people: Cohort) -> None:
    y = null.task.labels(people)
    X = np.random.default_rng(12).normal(size=(60, 2000))

    def chosen(rows: np.ndarray) -> np.ndarray:
        return np.argsort(-np.abs((y[rows] - y[rows].mean()) @ X[rows]))[:20]

    def select(X: np.ndarray, y: np.ndarray, train: np.ndarray, test: np.ndarray, on_all: bool) -> dict[str, Any]:
        rows = np.r_[train, test] if on_all else train
        columns = np.sort(np.argsort(-np.abs((y[rows] - y[rows].mean()) @ X[rows]))[:10])
        model = null.linear().fit(X[train][:, columns], y[train])
        return {"scores": model.decision_function(X[test][:, columns]), "columns": columns}

    assert of_features(null, people, X[:, chosen(np.arange(60))]) == {"selection-before-split"}
    assert of_features(null, people, X[:, :20]) == of_features(null, people, X[:, chosen(np.arange(30))]) == set()
    assert "selection-before-split" in of_procedure(null, lambda *fold: select(*fold, on_all=True), p=300)
    assert of_procedure(null, lambda *fold: select(*fold, on_all=False), p=300) == set()
    assert null.fold_auc(X[:, chosen(np.arange(60))], y, null.random_folds(60)) > INFLATED


# One person, or one scan, on both sides


def _twice(null: Null, again: Callable[[np.ndarray, int], np.ndarray], n: int = 30, **columns: Any) -> Cohort:
    """Everybody twice, under two ids, with the same class; the second time as `again` makes it."""
    scans = [null.bold_of(number) for number in range(n)]
    names = [f"sub-{number:03d}" for number in np.random.default_rng(13).permutation(999)[: 2 * n]]
    dx = np.where(null.labels_of(n) == 1, "patient", "control")
    about = pd.DataFrame({"participant_id": names, "dx": np.r_[dx, dx], **columns})
    return null.cohort_of(names, [*scans, *(again(bold, number) for number, bold in enumerate(scans))], about)


def _crossing(null: Null, cohort: Cohort, check: str, finding_copies: bool = True) -> None:
    """Refused by name where folds part the two, and inflated; not refused where they do not."""
    n = len(cohort) // 2
    y = null.task.labels(cohort)
    apart = null.random_folds(2 * n)
    together = [(np.r_[train, train + n], np.r_[test, test + n]) for train, test in null.random_folds(n)]
    copies = find_copies(cohort)
    assert refused(audit_folds(cohort, null.task, null.fold_table(cohort, apart), copies)) == {check}
    assert refused(audit_folds(cohort, null.task, null.fold_table(cohort, together), copies)) == set()
    assert refused(audit_folds(cohort, null.task, None, copies)) == ({check} if finding_copies else set())
    X = null.edges_of(cohort)
    assert null.fold_auc(X, y, apart) > INFLATED
    assert null.fold_auc(X, y, together) < INFLATED


def test_leak_duplicates_under_other_ids(null: Null) -> None:
    _crossing(null, _twice(null, lambda bold, number: bold), "duplicates")


def test_leak_near_duplicates_under_other_ids(null: Null) -> None:
    def altered(bold: np.ndarray, number: int) -> np.ndarray:
        rng = np.random.default_rng([14, number])
        noisy = bold + 0.3 * bold.std(axis=0) * rng.normal(size=bold.shape)
        return (100 + 7 * noisy).astype(np.float32)

    _crossing(null, _twice(null, altered), "near-duplicates")


def test_leak_windows_across_folds(null: Null) -> None:
    _crossing(null, _twice(null, lambda bold, number: bold[number % 20 : number % 20 + 70]), "windows-across-folds")


def test_leak_windows_without_a_common_volume(null: Null) -> None:
    scans = [null.bold_of(number, n_volumes=400) for number in range(40)]
    names = [f"sub-{number:03d}" for number in np.random.default_rng(21).permutation(999)[:80]]
    halves = null.cohort_of(names, [*(bold[:200] for bold in scans), *(bold[200:] for bold in scans)])
    assert refused(audit_folds(halves, null.task)) == {"windows-across-folds"}
    assert refused(audit_folds(null.cohort_of(names[:40], scans), null.task)) == set()


def test_leak_pseudo_fc_views_across_folds(null: Null) -> None:
    def view(bold: np.ndarray, number: int) -> np.ndarray:
        return bold[np.sort(np.random.default_rng([15, number]).permutation(len(bold))[:80])]

    _crossing(null, _twice(null, view), "views-across-folds")


def test_leak_sessions_across_folds(null: Null) -> None:
    n = 30
    names = [f"sub-{number:03d}" for number in range(n)] * 2
    scans = [null.bold_of(row % n, session=row // n, n_volumes=300) for row in range(2 * n)]
    _crossing(null, null.cohort_of(names, scans), "sessions-across-folds", finding_copies=False)


def test_leak_twins_across_folds(null: Null) -> None:
    n = 30
    family = [f"f{number}" for number in range(n)] * 2
    cohort = _twice(null, lambda bold, number: bold, family_id=family)
    scans = [null.bold_of(row, n_volumes=300, family=row % n) for row in range(2 * n)]
    people = list(cohort.recordings["participant_id"])
    _crossing(null, null.cohort_of(people, scans, cohort.participants), "twins-across-folds", finding_copies=False)


def test_leak_site_on_both_sides_of_a_claim(null: Null) -> None:
    rng = np.random.default_rng(16)
    sites = np.arange(80) % 8
    y = (rng.random(80) < np.where(sites % 2 == 1, 0.85, 0.15)).astype(int)
    names = [f"sub-{number:03d}" for number in rng.permutation(999)[:80]]
    dx = np.where(y == 1, "patient", "control")
    about = pd.DataFrame({"participant_id": names, "site": [f"site {site}" for site in sites], "dx": dx})
    scans = [null.bold_of(row, n_volumes=100, site=1 + int(sites[row])) for row in range(80)]
    cohort = null.cohort_of(names, scans, about)
    mixed = null.random_folds(80)
    held_out = [(np.flatnonzero(sites != site), np.flatnonzero(sites == site)) for site in range(8)]
    leaky, honest = (null.fold_table(cohort, folds, "site-held-out", "participant_id") for folds in (mixed, held_out))
    assert refused(audit_folds(cohort, null.task, leaky, [])) == {"site-on-both-sides"}
    assert refused(audit_folds(cohort, null.task, honest, [])) == set()
    assert refused(audit_folds(cohort, null.task, leaky.assign(protocol="k-fold"), [])) == set()
    X = null.edges_of(cohort)
    assert null.fold_auc(X, y, mixed) > INFLATED > null.fold_auc(X, y, held_out)


# Pretraining


def test_leak_pretraining_corpus_holds_test_people(null: Null, people: Cohort) -> None:
    y = null.task.labels(people)
    X = null.edges_of(people)
    # Pretrained with labels, on everybody, and then frozen: the folds come too late.
    encoder = FrozenEstimator(null.linear().fit(X, y))
    encoder.seen_identities = people.hashes()
    strangers = null.cohort_of(["somebody", "else"], [null.bold_of(901), null.bold_of(902)], name="other").hashes()
    assert refused(audit_pretraining(people, seen=encoder)) == {"pretraining-people"}
    assert refused(audit_pretraining(people, seen=frozenset({"anyone"}))) == {"pretraining-people"}
    assert refused(audit_pretraining(people, seen=strangers)) == set()
    embedded = np.asarray(encoder.decision_function(X))[:, None]
    assert null.fold_auc(embedded, y, null.random_folds(60)) > INFLATED


def test_leak_pretraining_corpus_holds_test_scans_under_other_ids(null: Null, people: Cohort) -> None:
    strangers = [null.bold_of(800 + number) for number in range(40)]
    again = [1 + 2 * people[row] + 0.1 * null.bold_of(700 + row) for row in range(5)]
    corpus = null.cohort_of([f"x{row}" for row in range(45)], [*strangers, *again], name="corpus")
    clean = null.cohort_of([f"x{row}" for row in range(40)], strangers, name="corpus")
    assert refused(audit_pretraining(people, seen=corpus.hashes())) == set()
    assert refused(audit_pretraining(people, pretrained_on=corpus)) == {"pretraining-scans"}
    assert refused(audit_pretraining(people, pretrained_on=clean)) == set()


def test_leak_test_scans_in_pretraining_statistics(null: Null, people: Cohort) -> None:
    corpus, tested = _mixed(people)[:40], _mixed(people)[40:]
    both = np.r_[corpus, tested].mean(axis=0)
    assert refused([audit_statistics(both, corpus, tested)]) == {"pretraining-statistics"}
    assert refused([audit_statistics(corpus.mean(axis=0), corpus, tested)]) == set()
    prefitted = make_pipeline(FrozenEstimator(StandardScaler().fit(tested)), null.linear())
    assert refused(audit_pretraining(people, models={"mine": prefitted})) == {"pretraining-statistics"}
    assert refused(audit_pretraining(people, models={"mine": null.linear().fit(corpus, np.arange(40) % 2)})) == set()


# The label in sight


def _with(people: Cohort, **columns: Any) -> Cohort:
    return Cohort(people.name, people.recordings, people.participants.assign(**columns), people.atlas, people.read)


def _alone(null: Null, cohort: Cohort, column: str) -> float:
    """AUC over folds of one column, as a model that may read it would have it."""
    codes = pd.get_dummies(cohort.table[column]).to_numpy(float)
    return null.fold_auc(codes, null.task.labels(cohort), null.random_folds(len(cohort)))


def test_leak_label_as_a_feature(null: Null, people: Cohort) -> None:
    y = null.task.labels(people)
    cohort = _with(people, group=np.where(y == 1, "A", "B"))
    task = null.task.model_copy(update={"covariates": ("age", "group")})
    assert refused(audit_columns(cohort, task)) == {"label-as-feature"}
    assert refused(audit_columns(cohort, null.task)) == refused(audit_labels(people, null.task)) == set()
    assert of_features(null, people, np.column_stack([_mixed(people), y])) == {"label-as-feature"}
    assert _alone(null, cohort, "group") > INFLATED


def test_leak_derived_score_as_a_feature(null: Null, people: Cohort) -> None:
    y = null.task.labels(people)
    rng = np.random.default_rng(17)
    ados = np.round(8 * y + rng.normal(3, 1.2, 60), 1)
    task = null.task.model_copy(update={"covariates": ("age", "ados")})
    assert refused(audit_columns(_with(people, ados=ados), task)) == {"derived-score"}
    only_patients = np.where(y == 1, rng.normal(size=60), np.nan)
    assert refused(audit_columns(_with(people, ados=only_patients), task)) == {"derived-score"}
    assert refused(audit_columns(_with(people, ados=rng.normal(size=60)), task)) == set()
    leaky = np.column_stack([_mixed(people), ados])
    assert of_features(null, people, leaky) == {"derived-score"}
    assert null.fold_auc(leaky, y, null.random_folds(60)) > INFLATED


def test_leak_file_name_spells_the_label(null: Null, people: Cohort) -> None:
    y = null.task.labels(people)
    codes = {"spelled": ("HC", "patient"), "hidden": ("x", "q"), "numbered": ("1", "2")}
    for spelling in codes.values():
        named = people.recordings.assign(
            file=[
                f"{spelling[label]}{row:03d}_bold.npy"
                for row, label in zip(np.random.default_rng(18).permutation(60), y, strict=True)
            ]
        )
        cohort = Cohort(people.name, named, people.participants, people.atlas, people.read)
        assert refused(audit_names(cohort, null.task)) == {"file-name-spells-label"}
        first = cohort.table["file"].str[0]
        assert null.fold_auc(pd.get_dummies(first).to_numpy(float), y, null.random_folds(60)) > INFLATED
    assert "file-name-spells-label" not in refused(audit_names(people, null.task))


@pytest.mark.parametrize(
    ("check", "column", "values"),
    [
        ("site-predicts-label", "site", ("east", "west")),
        ("length-predicts-label", "n_volumes", (150, 200)),
        ("tr-predicts-label", "tr", (2.0, 3.0)),
        ("motion-predicts-label", "mean_fd", (0.1, 0.3)),
    ],
)
def test_leak_nuisance_predicts_the_label(
    null: Null, people: Cohort, check: str, column: str, values: tuple[Any, Any]
) -> None:
    y = null.task.labels(people)
    rng = np.random.default_rng(19)
    with_label, by_chance = (np.where(rng.random(60) < 0.85, one, 1 - one) for one in (y, rng.permutation(y)))
    found = {}
    for kind, which in (("told", with_label), ("chance", by_chance)):
        drawn = np.array(values, dtype=object)[which]
        if column == "mean_fd":
            drawn = drawn.astype(float) * rng.gamma(8, 1 / 8, 60)
        table = people.recordings.assign(**{column: drawn}).infer_objects()
        cohort = Cohort(
            people.name, table, people.participants.drop(columns=column, errors="ignore"), people.atlas, people.read
        )
        found[kind] = {finding.check: finding for finding in audit_floors(cohort, null.task, [check])}[check]
        if kind == "told":
            codes = pd.get_dummies(drawn).to_numpy(float) if column == "site" else drawn.astype(float)[:, None]
            assert null.fold_auc(codes, y, null.random_folds(60)) > INFLATED
    assert found["told"].verdict == "floor"
    assert column in found["told"].finding and "AUC of 0." in found["told"].finding
    assert found["chance"].verdict == "passed"


# Looks


def test_leak_repeated_looks_at_a_test_set(null: Null, tmp_path: Path) -> None:
    store = tmp_path / "store"
    y = null.labels_of(40)
    rng = np.random.default_rng(20)
    aucs = [null.auc(y, rng.normal(size=40)) for _ in range(50)]
    for number in range(50):
        record_look(store, "null", ["external"], {f"model {number}": number}, 40)
    finding = audit_looks(store, "null", 20, 20)
    assert finding.check == "repeated-looks" and finding.verdict == "floor"
    assert "50 models" in finding.finding and f"{expected_best_auc(50, 20, 20):.2f}" in finding.finding
    assert max(aucs) > INFLATED
    assert audit_looks(tmp_path / "other", "null", 20, 20).verdict == "passed"


def test_every_check_has_a_deliberate_leak() -> None:
    text = Path(__file__).read_text()
    assert len(CHECKS) >= 26
    assert not [name for name in CHECKS if f'"{name}"' not in text]
