from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openbrainmass.atlas import Atlas, numbered_atlas
from openbrainmass.cohort.order import (
    LEAST_ROIS,
    Template,
    check,
    check_order,
    cohort_template,
    find_template,
    geometry_template,
    template_of,
)
from openbrainmass.cohort.simulate import simulate_cohort
from openbrainmass.connectivity import correlation
from openbrainmass.errors import OpenBrainMassError

N_ROIS = 60
ROWS = np.arange(N_ROIS)
BLOCKED = np.r_[ROWS[::2], ROWS[1::2]]
WRONG = {
    "one column too early": np.r_[ROWS[1:], ROWS[-1]],
    "one column too late": np.r_[ROWS[0], ROWS[:-1]],
    "in reverse": ROWS[::-1],
    "are interleaved": np.argsort(BLOCKED),
    "stand in two blocks": BLOCKED,
    "halves (hemispheres) are exchanged": np.roll(ROWS, N_ROIS // 2),
    "those from about column 33 on stand one column too early": np.r_[ROWS[:32], ROWS[33:], ROWS[-1]],
}


def people(n_people: int, seed: int = 0, n_rois: int = N_ROIS, n_volumes: int = 120) -> list[np.ndarray]:
    """BOLD of people who share smooth patterns over the ROIs."""
    shared = np.random.default_rng(99).normal(size=(n_rois, n_rois))
    smooth = np.exp(-(((np.arange(n_rois)[:, None] - np.arange(n_rois)) / 1.5) ** 2)) @ shared
    rng = np.random.default_rng(seed)
    return [
        rng.normal(size=(n_volumes, n_rois)) @ (smooth.T + rng.normal(size=(n_rois, n_rois))) for _ in range(n_people)
    ]


@pytest.fixture(scope="module")
def template() -> Template:
    return template_of(people(12), "twelve people")


@pytest.fixture(scope="module")
def others() -> list[np.ndarray]:
    return people(10, seed=1)


def test_right_orders_pass(template: Template, others: list[np.ndarray]) -> None:
    for bold in others:
        verdict = check_order(correlation(bold), template)
        assert verdict.ok
        assert verdict.agreement > 0.4
        assert verdict.alternative is None
        assert "no other order agrees better" in verdict.detail
        assert check(bold, template) is None


@pytest.mark.parametrize("name", WRONG)
def test_usual_mistakes_are_named(template: Template, others: list[np.ndarray], name: str) -> None:
    for bold in others:
        verdict = check_order(correlation(bold[:, WRONG[name]]), template)
        assert not verdict.ok
        assert verdict.alternative is not None
        assert name in verdict.alternative
        assert verdict.alternative in verdict.detail
        assert "the columns are not in the order of the atlas" in verdict.detail


@given(st.integers(0, 2**32 - 1))
def test_random_orders_are_told(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sentence = check(people(1, seed=2)[0][:, rng.permutation(N_ROIS)], template_of(people(4), "four people"))
    assert sentence is not None
    assert "four people" in sentence


def test_noise_is_no_brain(template: Template) -> None:
    sentence = check(np.random.default_rng(0).normal(size=(100, N_ROIS)), template)
    assert sentence is not None
    assert "as random orders do" in sentence
    assert "or hold no brain signal" in sentence


@given(gain=st.floats(0.01, 100), offset=st.floats(-1000, 1000))
def test_amplitudes_and_a_global_signal_do_not_matter(gain: float, offset: float) -> None:
    rng = np.random.default_rng(5)
    known = template_of(people(6), "six people")
    bold = people(1, seed=3)[0]
    bold = (bold + 10 * rng.normal(size=(len(bold), 1))) * gain * rng.uniform(0.5, 2, N_ROIS) + offset
    assert check(bold, known) is None


@pytest.mark.parametrize("missing", [0.0, np.nan])
def test_missing_rois_say_nothing(template: Template, others: list[np.ndarray], missing: float) -> None:
    bold = others[0].copy()
    bold[:, 5:30:2] = missing
    assert check(bold, template) is None
    assert check(bold[:, WRONG["one column too early"]], template) is not None
    few = np.full_like(bold, missing)
    few[:, : LEAST_ROIS - 1] = bold[:, : LEAST_ROIS - 1]
    few[:, : LEAST_ROIS - 1] += np.random.default_rng(0).normal(size=(len(bold), LEAST_ROIS - 1))
    verdict = check_order(correlation(few), template)
    assert verdict.ok
    assert np.isnan(verdict.agreement)
    assert "cannot be told" in verdict.detail


def test_a_template_without_some_rois(others: list[np.ndarray]) -> None:
    known = people(8)
    for bold in known:
        bold[:, 10] = 0
    partial = template_of(known, "eight people")
    assert np.isnan(partial.fc[10]).all()
    assert check(others[0], partial) is None
    assert check(others[0][:, WRONG["in reverse"]], partial) is not None


def test_an_order_that_the_template_cannot_tell_is_left_alone() -> None:
    half = people(9, n_rois=30)
    rng = np.random.default_rng(0)
    mirrored = [np.hstack([bold, bold + rng.normal(size=bold.shape)]) for bold in half]
    template = template_of(mirrored[:8], "mirrored people")
    assert not any("halves" in name for name in template.other_orders)
    assert check(mirrored[8], template) is None
    assert check(np.roll(mirrored[8], 30, axis=1), template) is None


def test_geometry_foretells_near_and_mirrored_rois() -> None:
    atlas = Atlas("Three", ("a", "b", "c"), coords_mm=np.array([[-30.0, 0, 0], [30, 0, 0], [-30, 60, 0]]))
    fc = geometry_template(atlas).fc
    assert fc[0, 1] > fc[0, 2]
    np.testing.assert_allclose(fc, fc.T)


def test_geometry_by_itself_tells_orders() -> None:
    rng = np.random.default_rng(0)
    coords = rng.uniform(-60, 60, size=(N_ROIS, 3))
    atlas = Atlas("Places", tuple(f"r{i}" for i in range(N_ROIS)), coords_mm=coords)
    near = np.exp(-np.linalg.norm(coords[:, None] - coords[None], axis=2) / 30)
    bold = rng.normal(size=(150, N_ROIS)) @ np.linalg.cholesky(near + 0.01 * np.eye(N_ROIS)).T
    assert check(bold, geometry_template(atlas)) is None
    assert check(bold[:, WRONG["one column too late"]], geometry_template(atlas)) is not None


def test_geometry_needs_coordinates() -> None:
    with pytest.raises(OpenBrainMassError, match="The atlas X knows no coordinates"):
        geometry_template(numbered_atlas("X", 40))


def test_an_roi_of_unknown_place_is_left_out() -> None:
    coords = np.random.default_rng(0).uniform(-60, 60, size=(N_ROIS, 3))
    coords[7] = np.nan
    template = geometry_template(Atlas("Places", tuple(f"r{i}" for i in range(N_ROIS)), coords_mm=coords))
    assert not template.edges.live[7]
    assert template.edges.live.sum() == N_ROIS - 1


def test_the_best_template_at_hand() -> None:
    cohort = simulate_cohort(n_people=4, n_sites=2, n_rois=40, n_volumes=60, seed=0)
    found = find_template(cohort.atlas, cohort)
    assert found is not None
    assert found.source.startswith("4 recordings of")
    found = find_template(cohort.atlas)
    assert found is not None
    assert found.source == f"the geometry of {cohort.atlas.name}"
    assert find_template(numbered_atlas("X", 40)) is None
    with pytest.raises(OpenBrainMassError, match=r"order of X \(40 ROIs\) cannot be checked against cohort"):
        find_template(numbered_atlas("X", 40), cohort)


def test_a_cohort_as_template() -> None:
    cohort = simulate_cohort(n_people=12, n_sites=2, n_rois=40, n_volumes=100, seed=0)
    template = cohort_template(cohort, most=5)
    assert template.source == f"5 recordings of {cohort.name}"
    assert template.fc.shape == (40, 40)
    assert check(cohort.bold(3), template) is None
    assert check(cohort.bold(3)[:, np.random.default_rng(0).permutation(40)], template) is not None


def test_templates_are_of_one_atlas() -> None:
    with pytest.raises(OpenBrainMassError, match="recordings of 60 and of 30 ROIs"):
        template_of([*people(1), *people(1, n_rois=30)], "two atlases")
    with pytest.raises(OpenBrainMassError, match="was given no recording"):
        template_of([], "nobody")
    with pytest.raises(OpenBrainMassError, match="The order of 30 ROIs cannot be checked .* which has 60"):
        check(people(1, n_rois=30)[0], template_of(people(1), "one person"))


@pytest.mark.data
def test_real_scans_of_another_cohort(data_dir) -> None:
    from openbrainmass.durable import read_tsv

    def some(name: str, every: int) -> list[np.ndarray]:
        files = read_tsv(data_dir / name / "participants.tsv")["file"].iloc[::every]
        return [np.load(data_dir / name / file) for file in files]

    template = template_of(some("cni_cc200", 8), "CNI")
    rng = np.random.default_rng(0)
    rows = np.arange(200)
    for bold in some("abide1_cc200", 40):
        assert check(bold, template) is None
        for order in (rng.permutation(200), np.r_[rows[::2], rows[1::2]], np.r_[rows[1:], 199], np.r_[0, rows[:-1]]):
            assert check(bold[:, order], template) is not None
