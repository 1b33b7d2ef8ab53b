"""Our models as Brainmarks calls them: samples through the transform, a batch through the backbone."""

from __future__ import annotations

import runpy
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import default_collate

from openbrainmass.atlas import Atlas, numbered_atlas
from openbrainmass.connectivity import correlation
from openbrainmass.errors import OpenBrainMassError
from openbrainmass.evaluation.baselines import Connectome
from openbrainmass.model.brainmarks import (
    CHECKPOINT_VARIABLE,
    SPACES,
    FCTransform,
    connectome_model,
    encoder_model,
    space_of,
    untrained_model,
)
from openbrainmass.model.checkpoint import Checkpoint
from openbrainmass.model.embedder import Embedder
from openbrainmass.model.settings import EncoderSettings, PretrainSettings

PLUGIN = Path(__file__).parents[2] / "src" / "brainmarks" / "models" / "openbrainmass.py"
SETTINGS = PretrainSettings(encoder=EncoderSettings(width=16, depth=1, heads=2, ffn=32, readout=2))


def schaefer(n_rois: int = 400, networks: int = 17, n_cortical: int | None = None) -> Atlas:
    cortical = n_rois if n_cortical is None else n_cortical
    names = [f"{networks}Networks_{'LH' if i < cortical // 2 else 'RH'}_VisCent_{i}" for i in range(cortical)]
    return Atlas("Schaefer", (*names, *(f"Tian_{i}" for i in range(n_rois - cortical))))


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return Checkpoint.untrained(schaefer(), SETTINGS)


def recordings(n: int = 3, n_rois: int = 400) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    scale = rng.uniform(1, 50, n_rois)
    shared = [rng.standard_normal((40 + 10 * i, 1)) for i in range(n)]
    return [1000 + scale * (part + rng.standard_normal((len(part), n_rois))) for part in shared]


def sample(bold: np.ndarray) -> dict[str, Any]:
    mean, deviation = bold.mean(axis=0, keepdims=True), bold.std(axis=0, keepdims=True)
    tensors = {"bold": (bold - mean) / (deviation + 1e-6), "mean": mean, "std": deviation}
    return {"tr": 2.0, "target": 1, **{name: torch.from_numpy(value).float() for name, value in tensors.items()}}


def batch_of(transform: Callable[[Any], dict[str, Any]], scans: list[np.ndarray]) -> dict[str, Any]:
    return default_collate([transform(sample(scan)) for scan in scans])


@pytest.mark.parametrize("estimator", ["pearson", "ledoit-wolf"])
def test_fc_is_that_of_the_bold_before_brainmarks_scaled_it(estimator: str) -> None:
    scan = recordings(1, 30)[0]
    scan[:, 4] = 7.0  # a parcel outside the field of view
    made = FCTransform(estimator)(sample(scan))
    np.testing.assert_allclose(made["fc"].numpy(), correlation(scan, estimator), atol=2e-5)
    assert made["target"] == 1 and made["tr"] == 2.0 and "bold" not in made


def test_class_embedding_is_the_embedding(checkpoint: Checkpoint) -> None:
    transform, backbone = encoder_model(checkpoint)
    scans = recordings()
    cls, registers, patches = backbone(batch_of(transform, scans))
    assert cls is not None and patches is not None and registers is None
    assert backbone.__space__ == "schaefer400"
    assert cls.shape == (3, 1, 800) and patches.shape == (3, 400, 16)
    np.testing.assert_allclose(cls[:, 0].detach().numpy(), Embedder(checkpoint).transform(scans), atol=1e-4)


def test_mixed_precision_of_the_caller_changes_nothing(checkpoint: Checkpoint) -> None:
    transform, backbone = encoder_model(checkpoint)
    batch = batch_of(transform, recordings(2))
    plain = backbone(batch)[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = backbone(batch)[0]
    assert plain is not None and mixed is not None
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, plain)


def test_fine_tuning_reaches_every_weight(checkpoint: Checkpoint) -> None:
    transform, backbone = encoder_model(checkpoint)
    cls = backbone(batch_of(transform, recordings(2)))[0]
    assert cls is not None
    cls.square().sum().backward()
    assert all(weight.grad is not None and weight.grad.abs().sum() > 0 for weight in backbone.parameters())


def test_connectome_is_the_same_as_our_own() -> None:
    transform, backbone = connectome_model("schaefer400")
    scans = recordings(2)
    cls, registers, patches = backbone(batch_of(transform, scans))
    assert cls is not None and registers is None and patches is None
    np.testing.assert_allclose(cls[:, 0].numpy(), Connectome("fisher-z").transform(scans), atol=1e-4)


def test_untrained_takes_everything_but_the_weights(checkpoint: Checkpoint) -> None:
    batch = batch_of(FCTransform(), recordings(2))
    one, same, other = (untrained_model(checkpoint, seed=seed)[1](batch)[0] for seed in (1, 1, 2))
    assert one is not None and same is not None and other is not None
    torch.testing.assert_close(one, same)
    assert not torch.allclose(one, other)


def test_warns_that_brainmarks_does_not_look_for_people_of_the_pretraining(checkpoint: Checkpoint) -> None:
    trained = Checkpoint(SETTINGS, checkpoint.atlas, checkpoint.weights, frozenset({"ab"}), {"datasets": ["abide1"]})
    with pytest.warns(UserWarning, match="people of abide1"):
        encoder_model(trained)


def test_seventeen_networks_are_recognised() -> None:
    assert space_of(schaefer()) == "schaefer400"


@pytest.mark.parametrize("space", SPACES)
def test_a_named_space_is_taken_where_the_count_fits(space: str) -> None:
    assert space_of(numbered_atlas("mine", SPACES[space]), space) == space


@pytest.mark.parametrize(
    ("atlas", "space", "told"),
    [
        (numbered_atlas("CC200", 200), None, "does not give"),
        (numbered_atlas("CC200", 200), "schaefer400", r"gives schaefer400 \(400\)"),
        (schaefer(networks=7), None, "7 networks"),
        (schaefer(networks=7), "schaefer400", "7 networks"),
        (numbered_atlas("Schaefer400", 400), None, "Nothing tells in which order"),
        (schaefer(450, n_cortical=400), None, "Nothing tells in which order"),
        (numbered_atlas("A424", 424), "schaefer400", "does not give"),
        (schaefer(), "mni", "has no ROIs that an atlas could match"),
    ],
)
def test_an_atlas_that_brainmarks_does_not_give_is_refused(atlas: Atlas, space: str | None, told: str) -> None:
    with pytest.raises(OpenBrainMassError, match=told):
        space_of(atlas, space)


def test_the_checkpoint_may_come_from_the_environment(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(CHECKPOINT_VARIABLE, raising=False)
    with pytest.raises(OpenBrainMassError, match="No checkpoint was named"):
        encoder_model()
    monkeypatch.setenv(CHECKPOINT_VARIABLE, str(checkpoint.save(tmp_path / "run")))
    assert encoder_model()[1].__space__ == "schaefer400"


def test_brainmarks_finds_our_models_by_importing_the_plug_in(monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[str, Callable[..., Any]] = {}
    registry = types.ModuleType("brainmarks.models.registry")
    vars(registry)["register_model"] = lambda name: lambda make: found.setdefault(name, make)
    for name in ("brainmarks", "brainmarks.models"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "brainmarks.models.registry", registry)
    runpy.run_path(str(PLUGIN))
    assert set(found) == {
        "openbrainmass",
        "openbrainmass_untrained",
        *(f"openbrainmass_connectome_{space}" for space in SPACES),
    }
    assert found["openbrainmass_connectome_a424"]()[1].__space__ == "a424"
