from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from openbrainmass.errors import OpenBrainMassError
from openbrainmass.model import health
from openbrainmass.model.gradients import take_gradients
from openbrainmass.model.objectives import Objective, alignment, draw_masks, identification_loss
from openbrainmass.model.settings import EncoderSettings, ObjectiveSettings, PretrainSettings

REFERENCE = Path(__file__).parents[2] / "benchmarks" / "reference" / "recipe.py"


def tiny(encoder: dict | None = None, **objective) -> PretrainSettings:
    heads = {"head_hidden": 10, "projector_hidden": 14, "projector_out": 8, "predictor_hidden": 9}
    return PretrainSettings(
        encoder=EncoderSettings(**{"width": 12, "depth": 2, "heads": 3, "ffn": 16, "readout": 4} | (encoder or {})),
        objective=ObjectiveSettings(**heads | objective),
    )


def build(n_rois: int = 20, encoder: dict | None = None, **objective) -> Objective:
    torch.manual_seed(0)
    return Objective(n_rois, tiny(encoder, **objective)).train()


def random_views(n_scans: int = 6, n_rois: int = 20, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    series = torch.randn(2 * n_scans, 40, n_rois, generator=generator)
    return torch.stack([torch.corrcoef(one.T) for one in series]).view(2, n_scans, n_rois, n_rois)


def reference_module():
    spec = importlib.util.spec_from_file_location("reference_recipe", REFERENCE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("loop", ["scans", "masks"])
def test_paper_losses_and_gradients_are_those_of_the_plain_recipe(loop):
    torch.manual_seed(0)
    plain = reference_module().ReferenceRecipe(n_rois=20, depth=2, heads=4, ffn=30, dropout=0.0, out=16)
    whole = {"width": None, "depth": 2, "heads": 4, "ffn": 30, "dropout": 0.0, "readout": 8, "positions": "masked-only"}
    ours = build(
        encoder=whole,
        mask="rows",
        masked_passes=2,
        extra_tokens=2,
        train_heads=False,
        head_hidden=30,
        projector_hidden=None,
        projector_out=16,
        predictor_hidden=32,
    )
    weights = {}
    for theirs, name in (("online", ""), ("target", "target.")):
        network = getattr(plain, theirs)
        weights |= {f"{name}encoder.layers.{k}": v for k, v in network.layers.state_dict().items()}
        weights |= {f"{name}encoder.readout.{k}": v for k, v in network.readout.state_dict().items()}
        weights |= {f"{name}projector.{k}": v for k, v in network.projector.state_dict().items()}
    for part in ("identify", "reconstruct"):
        weights |= {f"masked.{part}.{k}": v for k, v in getattr(plain, part).state_dict().items()}
    weights |= {f"predictor.{k}": v for k, v in plain.predictor.state_dict().items()}
    weights |= {"masked.mask_token": plain.mask_token.data.view(1, 1, 20)}
    weights |= {"masked.extra_tokens": plain.extra_tokens.data[None]}
    ours.load_state_dict(weights)

    views, scans = random_views(), [4, 9, 2, 0, 7, 5]
    masks = draw_masks(20, ours.settings.n_masked(20), scans, seed=0, epoch=3)
    lra, identification, reconstruction = plain.losses(views, *masks, loop)
    losses = take_gradients(ours, views, scans, epoch=3)
    torch.testing.assert_close(losses.lra, lra, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(losses.identification, identification, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(losses.reconstruction, reconstruction, rtol=1e-6, atol=1e-7)
    (lra + 0.1 * identification + 2 * reconstruction).backward()
    for name, parameter in plain.online.layers.named_parameters():
        found = ours.encoder.layers.get_parameter(name).grad
        assert (found - parameter.grad).norm() <= 1e-5 * parameter.grad.norm(), name


def test_alignment_is_two_minus_two_cosines():
    rows = torch.randn(5, 7)
    assert alignment(rows, 3 * rows).item() == pytest.approx(0, abs=1e-6)
    assert alignment(rows, -rows).item() == pytest.approx(4, abs=1e-6)
    assert alignment(torch.eye(4)[:2], torch.eye(4)[2:]).item() == pytest.approx(2, abs=1e-6)


def test_identification_is_low_only_when_each_row_finds_its_own_prediction():
    rows = torch.eye(6)[None, :4] * 20
    assert identification_loss(rows, torch.eye(6)[None, :4] * 20).item() < 1e-6
    assert identification_loss(rows, torch.eye(6)[None, [1, 0, 3, 2]] * 20).item() > 10
    assert identification_loss(rows, torch.zeros(1, 4, 6)).item() == pytest.approx(torch.log(torch.tensor(4.0)).item())


@settings(max_examples=30)
@given(n_rois=st.integers(3, 40), seed=st.integers(0, 99), epoch=st.integers(0, 99), scan=st.integers(0, 10**6))
def test_masks_are_distinct_rois_that_depend_on_their_key_alone(n_rois, seed, epoch, scan):
    first, second = draw_masks(n_rois, (2, 3), [scan, scan + 1], seed, epoch)
    alone = draw_masks(n_rois, (2, 3), [scan + 1], seed, epoch)
    assert first.shape == (2, 2) and second.shape == (2, 3)
    assert all(len(set(row.tolist())) == len(row) for row in [*first, *second])
    assert set(second.flatten().tolist()) <= set(range(n_rois))
    assert torch.equal(alone[0][0], first[1]) and torch.equal(alone[1][0], second[1])


def test_masks_apart_share_no_roi():
    first, second = draw_masks(20, (5, 10), range(8), seed=0, epoch=0, apart=True)
    for row in torch.cat([first, second], dim=1):
        assert len(set(row.tolist())) == 15


@pytest.mark.parametrize("passes", [1, 2])
def test_masked_passes_hide_both_parts_together_or_apart(passes):
    objective = build(masked_passes=passes)
    hidden = []
    original = objective.masked.masked_tokens
    objective.masked.masked_tokens = lambda encoder, fc, mask: hidden.append(mask) or original(encoder, fc, mask)
    take_gradients(objective, random_views(), range(6), epoch=0)
    counts = hidden[0].sum(1).tolist()
    assert counts == ([1 + 2] * 6 if passes == 1 else [1] * 6 + [2] * 6)


def test_masks_change_with_the_epoch():
    drawn = [draw_masks(100, (5, 10), [3], seed=0, epoch=epoch)[1] for epoch in range(4)]
    assert len({tuple(mask.flatten().tolist()) for mask in drawn}) == 4


def hidden_rois(n: int, n_rois: int, rois: list[int]) -> torch.Tensor:
    hidden = torch.zeros(n, n_rois, dtype=torch.bool)
    hidden[:, rois] = True
    return hidden


@pytest.mark.parametrize(("mask", "leaks"), [("rows-and-columns", False), ("rows", True)])
def test_only_masked_columns_keep_the_answer_secret(mask, leaks):
    objective = build(mask=mask).eval()
    fc = random_views()[0]
    other = fc.clone()
    other[:, 3, :] = other[:, :, 3] = 0.77
    hidden = hidden_rois(6, 20, [3])
    seen = [objective.masked.masked_tokens(objective.encoder, one, hidden) for one in (fc, other)]
    assert torch.allclose(seen[0], seen[1], atol=1e-6) != leaks


@pytest.mark.parametrize("extra", [0, 2])
@pytest.mark.parametrize("positions", ["both", "masked-only", "none"])
def test_masked_branch_returns_the_rois_in_order(extra, positions):
    objective = build(encoder={"positions": positions}, extra_tokens=extra).eval()
    fc = random_views()[0]
    nothing = hidden_rois(6, 20, [])
    tokens = objective.masked.masked_tokens(objective.encoder, fc, nothing)
    assert tokens.shape == (6, 20, 12)
    same = torch.allclose(tokens, objective.encoder.tokens(fc), atol=1e-5)
    assert same == (extra == 0 and positions != "masked-only")


def test_roi_positions_agree_between_branches_when_extra_tokens_come_last():
    objective = build(encoder={"depth": 1, "positions": "both"}, extra_tokens=2).eval()
    captured = []
    objective.encoder.run_layers = lambda tokens: captured.append(tokens) or tokens
    fc = random_views()[0]
    objective.masked.masked_tokens(objective.encoder, fc, hidden_rois(6, 20, []))
    objective.encoder.tokens(fc)
    torch.testing.assert_close(captured[0][:, 2:], captured[1])


def test_weights_of_zero_skip_their_part():
    losses = take_gradients(build(identification=0.0, reconstruction=0.0), random_views(), range(6), epoch=0)
    assert losses.identification.item() == 0 and losses.reconstruction.item() == 0
    torch.testing.assert_close(losses.total, losses.lra)
    only = take_gradients(build(identification=0.0, lra=0.0), random_views(), range(6), epoch=0)
    torch.testing.assert_close(only.total, 2 * only.reconstruction)
    assert only.identification.item() == 0 and only.reconstruction.item() > 0


def test_total_is_the_weighted_sum():
    losses = take_gradients(build(), random_views(), range(6), epoch=0)
    expected = losses.lra + 0.1 * losses.identification + 2 * losses.reconstruction
    torch.testing.assert_close(losses.total, expected)
    assert losses.embeddings.shape == (6, 80) and not losses.embeddings.requires_grad


def test_target_follows_the_online_network_by_the_momentum():
    objective = build(momentum=0.75)
    before = [parameter.clone() for parameter in objective.target.parameters()]
    with torch.no_grad():
        for parameter in [*objective.encoder.parameters(), *objective.projector.parameters()]:
            parameter.add_(1.0)
    objective.follow()
    for old, new in zip(before, objective.target.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.25)
    objective.reset_target()
    assert torch.equal(objective.target["encoder"].readout.weight, objective.encoder.readout.weight)


def test_target_gets_no_gradient_and_starts_as_the_online_network():
    objective = build()
    assert torch.equal(objective.target["encoder"].readout.weight, objective.encoder.readout.weight)
    take_gradients(objective, random_views(), range(6), epoch=0)
    assert all(parameter.grad is None for parameter in objective.target.parameters())


@pytest.mark.parametrize("train_heads", [True, False])
def test_after_one_step_exactly_what_is_given_to_the_optimiser_has_moved(train_heads):
    objective = build(train_heads=train_heads, extra_tokens=2)
    named = dict(objective.trainable())
    before = {name: value.clone() for name, value in objective.named_parameters() if not name.startswith("target.")}
    optimizer = torch.optim.AdamW(named.values(), lr=1e-2)
    take_gradients(objective, random_views(), range(6), epoch=0)
    optimizer.step()
    moved = {name for name, old in before.items() if not torch.equal(old, objective.get_parameter(name))}
    kept_back = {name for name in before if name.startswith("masked.")}
    assert {name.split(".")[1] for name in kept_back} == {"mask_token", "extra_tokens", "identify", "reconstruct"}
    assert moved == (set(before) if train_heads else set(before) - kept_back)


# ---- health


def test_spread_and_rank_of_collapsed_and_of_healthy_embeddings():
    generator = torch.Generator().manual_seed(0)
    healthy = torch.randn(64, 200, generator=generator)
    collapsed = torch.ones(64, 200) + 1e-4 * healthy
    line = torch.outer(torch.linspace(-1, 1, 64), torch.ones(200)) + 1e-3 * healthy
    assert health.embedding_spread(healthy) > 0.9 and health.effective_rank(healthy) > 50
    assert health.embedding_spread(collapsed) < health.MIN_SPREAD
    assert 1 <= health.effective_rank(line) < health.MIN_EFFECTIVE_RANK
    assert health.effective_rank(torch.ones(8, 5)) == 1.0


@given(n=st.integers(2, 20), size=st.integers(2, 30), seed=st.integers(0, 99))
def test_effective_rank_lies_between_one_and_the_number_of_directions(n, size, seed):
    embeddings = torch.randn(n, size, generator=torch.Generator().manual_seed(seed))
    assert 1 - 1e-9 <= health.effective_rank(embeddings) <= min(n - 1, size) + 1e-6
    assert 0 <= health.embedding_spread(embeddings) <= 1 + 1e-6


def test_warnings_say_what_has_collapsed():
    assert health.warnings_of(spread=0.3, rank=12.0, n_scans=32) == []
    assert "collapsed" in health.warnings_of(spread=0.001, rank=12.0, n_scans=32)[0]
    assert "one direction" in health.warnings_of(spread=0.3, rank=1.1, n_scans=32)[0]
    assert health.warnings_of(spread=0.3, rank=1.1, n_scans=4) == []


def test_a_loss_that_is_no_number_stops_the_run():
    health.require_finite(1, loss=1.0, grad_norm=2.0)
    with pytest.raises(OpenBrainMassError, match="step 7: grad_norm is inf"):
        health.require_finite(7, loss=1.0, grad_norm=float("inf"))
