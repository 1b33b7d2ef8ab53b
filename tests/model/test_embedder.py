"""The embedder is a scikit-learn transformer of recordings that refuses what it was not made for."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC
from sklearn.utils import get_tags
from sklearn.utils.validation import check_is_fitted

from openbrainmass.atlas import Atlas, numbered_atlas
from openbrainmass.cohort.cohort import Cohort
from openbrainmass.cohort.simulate import simulate_cohort
from openbrainmass.connectivity import correlation, ledoit_wolf
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.model.checkpoint import Checkpoint
from openbrainmass.model.embedder import Embedder, checked_device, is_fc
from openbrainmass.model.settings import EncoderSettings, PretrainSettings, ViewSettings

N_ROIS = 21
SMALL = PretrainSettings(encoder=EncoderSettings(width=16, depth=1, heads=2, ffn=16))
ATLAS = numbered_atlas("CC200", N_ROIS)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    untrained = Checkpoint.untrained(ATLAS, SMALL, seed=0)
    return Checkpoint(SMALL, ATLAS, untrained.weights, frozenset({"somebody"}))


@pytest.fixture(scope="module")
def bold() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(n, N_ROIS)).astype(np.float32) for n in (40, 60, 55, 41, 80)]


def test_the_embedding_is_what_the_encoder_says_of_the_fc(checkpoint, bold):
    embedding = Embedder(checkpoint).fit(bold).transform(bold)
    with torch.no_grad():
        expected = checkpoint.encoder()(torch.from_numpy(np.stack([correlation(scan) for scan in bold]))).numpy()
    assert embedding.shape == (5, 8 * N_ROIS)
    assert embedding.dtype == np.float32
    np.testing.assert_allclose(embedding, expected, atol=1e-6)
    assert np.abs(embedding[0] - embedding[1]).max() > 0.01


def test_bold_and_its_fc_give_the_same(checkpoint, bold):
    fc = np.stack([correlation(scan) for scan in bold])
    from_bold = Embedder(checkpoint).transform(bold)
    np.testing.assert_allclose(Embedder(checkpoint).transform(fc), from_bold, atol=1e-6)
    np.testing.assert_allclose(Embedder(checkpoint).transform(list(fc)), from_bold, atol=1e-6)


def test_the_estimator_is_the_checkpoints_own(bold):
    shrunk = PretrainSettings(encoder=SMALL.encoder, views=ViewSettings(estimator="ledoit-wolf"))
    checkpoint = Checkpoint.untrained(ATLAS, shrunk)
    expected = Embedder(checkpoint).transform(np.stack([ledoit_wolf(scan) for scan in bold]))
    np.testing.assert_allclose(Embedder(checkpoint).transform(bold), expected, atol=1e-6)
    plain = Embedder(checkpoint).transform(np.stack([correlation(scan) for scan in bold]))
    assert np.abs(plain - expected).max() > 1e-3


@settings(max_examples=15, deadline=None)
@given(batch_size=st.integers(1, 7), order=st.permutations(range(5)))
def test_nobody_changes_the_embedding_of_another(checkpoint, bold, batch_size, order):
    alone = Embedder(checkpoint, batch_size=64).transform(bold)
    together = Embedder(checkpoint, batch_size=batch_size).transform([bold[i] for i in order])
    np.testing.assert_allclose(together, alone[order], atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(scale=st.floats(0.01, 1000), offset=st.floats(-1000, 1000))
def test_the_unit_of_the_bold_does_not_matter(checkpoint, bold, scale, offset):
    changed = bold[0].astype(np.float64) * scale + offset
    np.testing.assert_allclose(
        Embedder(checkpoint).transform([changed]), Embedder(checkpoint).transform(bold[:1]), atol=1e-4
    )


def test_float16_bold_of_raw_size_does_not_overflow(checkpoint, bold):
    raw = (bold[0] * 1000 + 20000).astype(np.float16)
    embedding = Embedder(checkpoint).transform([raw])
    np.testing.assert_allclose(embedding, Embedder(checkpoint).transform([raw.astype(np.float64)]), atol=1e-5)
    assert np.isfinite(embedding).all()


def test_a_missing_parcel_leaves_a_finite_embedding(checkpoint, bold):
    missing = bold[0].copy()
    missing[:, 3] = np.nan
    assert np.isfinite(Embedder(checkpoint).transform([missing])).all()


def test_a_cohort_is_read(checkpoint):
    cohort = simulate_cohort(n_people=6, n_sites=2, n_rois=N_ROIS, n_volumes=40, seed=0)
    own = Checkpoint(SMALL, cohort.atlas, checkpoint.weights)
    np.testing.assert_array_equal(Embedder(own).transform(cohort), Embedder(own).transform(list(cohort)))


def test_a_cohort_of_another_atlas_is_refused(checkpoint):
    cohort = simulate_cohort(n_people=4, n_sites=1, n_rois=N_ROIS, n_volumes=30)
    with pytest.raises(OpenBrainMassError, match=rf"{cohort.atlas.name} \(21 ROIs\) but the checkpoint expects CC200"):
        Embedder(checkpoint).transform(cohort)


def test_a_recording_with_other_rois_is_named_with_the_remedy(checkpoint, bold):
    other = np.zeros((50, 16))
    with pytest.raises(OpenBrainMassError) as error:
        Embedder(checkpoint).transform([*bold[:3], other])
    assert str(error.value) == (
        "Recording 3 has 16 ROIs but the checkpoint expects CC200 (21). Extract it again with that atlas."
    )


@pytest.mark.parametrize(
    ("recordings", "sentence"),
    [
        ([], "No recording was given"),
        (np.zeros((30, N_ROIS)), "Put a single recording into a list"),
        ([np.zeros((N_ROIS, 30))], "It seems transposed"),
        ([np.zeros(N_ROIS)], "Recording 0 is an array of shape"),
        ([np.full((30, N_ROIS), "a")], "numbers of shape"),
        ([np.zeros((2, N_ROIS))], "Recording 0: BOLD of shape"),
        ([3 * np.eye(N_ROIS)], "symmetric matrix but not an FC matrix"),
        ([np.eye(N_ROIS) + 2 - 2 * np.eye(N_ROIS)], "symmetric matrix but not an FC matrix"),
        ([np.where(np.eye(N_ROIS) == 1, 1, np.nan)], "symmetric matrix but not an FC matrix"),
    ],
)
def test_what_cannot_be_embedded_is_one_sentence(checkpoint, recordings, sentence):
    with pytest.raises(OpenBrainMassError, match=sentence):
        Embedder(checkpoint).transform(recordings)


def test_a_scan_with_as_many_volumes_as_rois_is_bold(checkpoint):
    square = np.random.default_rng(0).normal(size=(N_ROIS, N_ROIS)).astype(np.float32)
    assert not is_fc(square)
    expected = Embedder(checkpoint).transform([correlation(square)])
    np.testing.assert_allclose(Embedder(checkpoint).transform(np.stack([square])), expected, atol=1e-6)


def test_bad_parameters_are_one_sentence(checkpoint, bold):
    with pytest.raises(OpenBrainMassError, match="batch_size is 0"):
        Embedder(checkpoint, batch_size=0).transform(bold)
    with pytest.raises(OpenBrainMassError, match="'float16' is not known; choose float32 or bfloat16"):
        Embedder(checkpoint, precision="float16").transform(bold)  # type: ignore[arg-type]
    with pytest.raises(OpenBrainMassError, match=r"device 'abacus' cannot be used.*device='cpu'"):
        Embedder(checkpoint, device="abacus").transform(bold)
    assert checked_device("cpu").type == "cpu"


def test_a_bad_recording_of_a_cohort_is_named_by_its_id(checkpoint):
    cohort = simulate_cohort(n_people=5, n_sites=1, n_rois=N_ROIS, n_volumes=40, seed=0)
    ids = cohort.recordings["recording_id"].tolist()
    broken = Cohort(
        name=cohort.name,
        atlas=cohort.atlas,
        participants=cohort.participants,
        recordings=cohort.recordings,
        read=lambda name: np.full((40, N_ROIS), np.inf) if name == ids[3] else cohort.bold(ids.index(name)),
    )
    with pytest.raises(OpenBrainMassError, match=rf"^Recording {ids[3]}: .*NaN or infinity"):
        Embedder(Checkpoint(SMALL, cohort.atlas, checkpoint.weights), batch_size=2).transform(broken)


@pytest.mark.filterwarnings("error")
def test_bfloat16_embeddings_are_those_of_float32_to_its_rounding(bold):
    wide = PretrainSettings(encoder=EncoderSettings(width=None, depth=2, heads=3, ffn=32, positions="masked-only"))
    checkpoint = Checkpoint.untrained(ATLAS, wide, seed=0)
    exact = Embedder(checkpoint, batch_size=3).transform(bold)
    reduced = Embedder(checkpoint, batch_size=3, precision="bfloat16").transform(bold)
    assert reduced.dtype == np.float32
    assert 1e-5 < np.abs(reduced - exact).max() < 0.02
    assert np.abs(reduced[4] - exact[4]).max() > 1e-5


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_bfloat16_is_not_used_where_it_changes_what_tells_people_apart(bold, batch_size):
    deep = PretrainSettings(encoder=EncoderSettings(width=16, depth=8, heads=2, ffn=64))
    checkpoint = Checkpoint.untrained(ATLAS, deep, seed=0)
    with pytest.warns(UserWarning, match=r"5 recordings .* so float32 is used") as caught:
        kept = Embedder(checkpoint, batch_size, precision="bfloat16").transform(bold)
    assert len(caught) == 1
    np.testing.assert_array_equal(kept, Embedder(checkpoint).transform(bold))


def test_a_single_recording_is_embedded_in_float32(checkpoint, bold):
    with pytest.warns(UserWarning, match="One recording does not tell"):
        found = Embedder(checkpoint, precision="bfloat16").transform(bold[:1])
    np.testing.assert_array_equal(found, Embedder(checkpoint).transform(bold[:1]))


def test_it_is_a_scikit_learn_transformer(checkpoint, bold):
    embedder = Embedder(checkpoint, batch_size=3)
    copy = clone(embedder)
    assert copy is not embedder
    assert copy.get_params() == {"checkpoint": checkpoint, "batch_size": 3, "device": "cpu", "precision": "float32"}
    assert copy.set_params(batch_size=2).batch_size == 2
    assert not get_tags(embedder).requires_fit
    check_is_fitted(embedder)
    assert embedder.fit() is embedder
    np.testing.assert_allclose(copy.transform(bold), embedder.fit_transform(bold), atol=1e-6)
    assert "Embedder(" in repr(embedder)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(embedder)).transform(bold), embedder.transform(bold))


def test_a_checkpoint_can_be_a_folder(checkpoint, bold, tmp_path):
    checkpoint.save(tmp_path)
    for path in (tmp_path, str(tmp_path)):
        embedder = clone(Embedder(path))
        assert embedder.checkpoint == path
        np.testing.assert_array_equal(embedder.transform(bold), Embedder(checkpoint).transform(bold))
        assert embedder.seen_identities == {"somebody"}


def test_columns_are_named_after_rois(bold):
    names = tuple(f"roi-{chr(97 + i)}" for i in range(N_ROIS))
    checkpoint = Checkpoint.untrained(Atlas("Named", names), SMALL)
    table = Embedder(checkpoint).set_output(transform="pandas").transform(bold)
    assert list(table.columns[:9]) == [f"roi-a_{k}" for k in range(8)] + ["roi-b_0"]
    assert table.shape == (5, 8 * N_ROIS)
    np.testing.assert_array_equal(table.to_numpy(), Embedder(checkpoint).transform(bold))


def test_columns_belong_to_the_rois_they_are_named_after():
    without_layers = Checkpoint.untrained(ATLAS, SMALL)
    encoder = without_layers.encoder()
    fc = torch.eye(N_ROIS)[None]
    with torch.no_grad():
        of_roi_7 = torch.nn.functional.leaky_relu(encoder.readout(encoder.tokens(fc)[0, 6])).numpy()
    columns = [i for i, name in enumerate(Embedder(without_layers).get_feature_names_out()) if name.startswith("7_")]
    np.testing.assert_allclose(Embedder(without_layers).transform(fc.numpy())[0, columns], of_roi_7, atol=1e-6)


def test_a_pipeline_learns_from_it():
    cohort = simulate_cohort(n_people=120, n_sites=2, n_rois=N_ROIS, n_volumes=120, effect=2.0, seed=0)
    y = cohort.table["dx"].to_numpy() == "patient"
    order = np.random.default_rng(0).permutation(len(y))
    train, test = order[:70], order[70:]
    embedder = Embedder(Checkpoint.untrained(cohort.atlas, SMALL))
    pipeline = make_pipeline(embedder, StandardScaler(), SVC()).fit(cohort.select(train), y[train])
    assert roc_auc_score(y_true=y[test], y_score=pipeline.decision_function(cohort.select(test))) > 0.75
