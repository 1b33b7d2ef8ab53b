"""The bfloat16 copy of an encoder says the same as the encoder, to the rounding of its products."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openbrainmass.model.encoder import Encoder
from openbrainmass.model.inference import agreement, in_bfloat16
from openbrainmass.model.settings import EncoderSettings

N_ROIS = 20


def encoder(**changes: object) -> Encoder:
    torch.manual_seed(0)
    return Encoder(N_ROIS, EncoderSettings.checked({"width": 24, "heads": 3, "ffn": 40, "depth": 2} | changes, "test"))


def fc(n: int, seed: int = 0) -> torch.Tensor:
    series = np.random.default_rng(seed).normal(size=(n, 40, N_ROIS))
    return torch.from_numpy(np.stack([np.corrcoef(scan.T) for scan in series]).astype(np.float32))


@pytest.mark.parametrize("positions", ["both", "masked-only"])
@pytest.mark.parametrize("width", [None, 24])
def test_the_copy_differs_by_rounding_alone(positions, width):
    exact = encoder(positions=positions, width=width, heads=2).eval()
    reduced = in_bfloat16(exact)
    with torch.inference_mode():
        error = (reduced(fc(6)) - exact(fc(6))).abs()
    assert 1e-5 < error.max() < 0.03
    assert error.mean() < 0.005


def test_with_weights_that_bfloat16_holds_one_layer_is_nearly_exact():
    exact = encoder(depth=1)
    with torch.no_grad():
        for name, parameter in exact.named_parameters():
            parameter.copy_(parameter.bfloat16().float())
            if name.endswith(("out_proj.weight", "linear2.weight")):
                parameter.zero_()
        reduced = in_bfloat16(exact)
        torch.testing.assert_close(reduced(fc(3)), exact.eval()(fc(3)), atol=1e-5, rtol=0)


def test_the_encoder_is_left_as_it_is_and_the_copy_has_no_dropout():
    exact = encoder(dropout=0.5).train()
    before = {name: value.clone() for name, value in exact.state_dict().items()}
    reduced = in_bfloat16(exact)
    assert exact.training
    torch.testing.assert_close(dict(exact.state_dict()), before, atol=0, rtol=0)
    with torch.inference_mode():
        torch.testing.assert_close(reduced(fc(3)), reduced(fc(3)), atol=0, rtol=0)


@settings(max_examples=25, deadline=None)
@given(shared=st.floats(0, 1e3), size=st.floats(1e-3, 1e3), n=st.integers(2, 6))
def test_the_own_cosine_does_not_see_what_all_recordings_share(shared, size, n):
    generator = np.random.default_rng(0)
    exact, noise = (torch.from_numpy(size * generator.normal(size=(n, 50))) for _ in range(2))
    _, own = agreement(exact, exact + 0.01 * noise)
    whole_shifted, own_shifted = agreement(exact + shared * size, exact + shared * size + 0.01 * noise)
    assert own_shifted == pytest.approx(own, abs=1e-6)
    assert whole_shifted >= own_shifted - 1e-4


def test_agreement_by_hand():
    exact = torch.tensor([[10.0, 1.0], [10.0, -1.0]])
    assert agreement(exact, exact) == pytest.approx((1, 1))
    turned = torch.tensor([[10.0, 1.0], [11.0, 0.0]])
    whole, own = agreement(exact, turned)
    assert whole == pytest.approx(10 / np.sqrt(101))
    assert own == pytest.approx(0)
    assert agreement(exact[:1], turned[:1]) == pytest.approx((1, 1))
    assert agreement(torch.ones(3, 4), torch.ones(3, 4))[1] == 0
