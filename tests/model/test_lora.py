"""Low-rank updates start at nothing, are all that is learnt, and merge into a plain encoder."""

from __future__ import annotations

import pickle

import pytest
import torch

from openbrainmass.model.encoder import Encoder
from openbrainmass.model.finetune import _choose_layers, _Classifier, _Head
from openbrainmass.model.lora import ALPHA, add_updates, merge_updates, updates
from openbrainmass.model.settings import EncoderSettings

N_ROIS = 10
SETTINGS = EncoderSettings(width=8, depth=2, heads=2, ffn=12)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder(N_ROIS, SETTINGS).eval()


@pytest.fixture
def fc():
    return torch.randn(5, N_ROIS, N_ROIS, generator=torch.Generator().manual_seed(1))


def _train_a_little(encoder, fc):
    encoder.requires_grad_(False)
    factors = [factor for update in updates(encoder) for factor in update.requires_grad_(True).parameters()]
    optimiser = torch.optim.SGD(factors, lr=0.1)
    for _ in range(3):
        optimiser.zero_grad()
        encoder(fc).square().mean().backward()
        optimiser.step()


def test_an_untrained_update_changes_nothing(encoder, fc):
    before = encoder(fc)
    add_updates(encoder, rank=3)
    assert torch.equal(encoder(fc), before)
    assert len(updates(encoder)) == 8
    for update in updates(encoder):
        assert torch.count_nonzero(update.up) == 0
        assert torch.count_nonzero(update.down) == update.down.numel()
        assert update.up.shape[1] == update.down.shape[0] == 3


def test_the_update_is_the_scaled_product_of_its_factors(encoder):
    weight = encoder.layers[1].linear1.weight.detach().clone()
    add_updates(encoder, rank=2)
    update = encoder.layers[1].linear1.parametrizations.weight[0]
    torch.nn.init.normal_(update.up)
    torch.testing.assert_close(encoder.layers[1].linear1.weight, weight + ALPHA / 2 * update.up @ update.down)


def test_the_random_generator_decides_the_factors():
    drawn = []
    for seed in (0, 0, 1):
        encoder = Encoder(N_ROIS, SETTINGS)
        torch.manual_seed(seed)
        add_updates(encoder, rank=2)
        drawn.append(updates(encoder)[0].down)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_only_factors_and_head_are_learnt(encoder, fc):
    embedding = encoder(fc).detach().numpy()
    add_updates(encoder, rank=2)
    model = _Classifier(encoder, _Head(embedding, torch.tensor([0, 1, 0, 1, 1]).numpy(), 2))
    moving = _choose_layers(model, "lora")
    learnt = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    factors = {name for name, _ in model.named_parameters() if name.endswith((".0.up", ".0.down"))}
    assert len(factors) == 16
    assert learnt == factors | {"head.linear.weight", "head.linear.bias"}
    assert len(moving) == len(learnt)


def test_every_update_is_trained_also_behind_dropout(encoder, fc):
    add_updates(encoder, rank=2)
    _train_a_little(encoder.train(), fc)
    assert all(torch.count_nonzero(update.up) > 0 for update in updates(encoder))


def test_merging_leaves_a_plain_encoder_that_says_the_same(encoder, fc):
    names = list(encoder.state_dict())
    start = {name: value.clone() for name, value in encoder.state_dict().items()}
    add_updates(encoder, rank=2)
    _train_a_little(encoder, fc)
    trained = encoder(fc)
    merge_updates(encoder)
    assert sorted(encoder.state_dict()) == sorted(names)
    assert updates(encoder) == []
    torch.testing.assert_close(encoder(fc), trained)
    assert not torch.allclose(encoder(fc), _with(start)(fc))
    torch.testing.assert_close(pickle.loads(pickle.dumps(encoder))(fc), trained)


def _with(weights):
    encoder = Encoder(N_ROIS, SETTINGS).eval()
    encoder.load_state_dict(weights)
    return encoder
