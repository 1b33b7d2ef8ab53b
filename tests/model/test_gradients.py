from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from openbrainmass.model.gradients import Losses, take_gradients
from openbrainmass.model.objectives import Objective
from openbrainmass.model.settings import EncoderSettings, ObjectiveSettings, PretrainSettings

SCHEDULES = {
    "default": {},
    "two passes": {"masked_passes": 2},
    "masked online": {"lra_online": "masked"},
    "one direction": {"lra_directions": 1},
    "both": {"lra_online": "masked", "lra_directions": 1},
    "no alignment": {"lra": 0.0},
    "no alignment, masked online": {"lra": 0.0, "lra_online": "masked"},
    "alignment alone": {"identification": 0.0, "reconstruction": 0.0},
}


def build(dropout: float = 0.0, **schedule) -> Objective:
    heads = {"head_hidden": 10, "projector_hidden": 14, "projector_out": 8, "predictor_hidden": 9}
    settings = PretrainSettings(
        encoder=EncoderSettings(width=12, depth=2, heads=3, ffn=16, readout=4, dropout=dropout),
        objective=ObjectiveSettings(**heads | schedule),
    )
    torch.manual_seed(0)
    return Objective(20, settings).train()


def random_views(n_scans: int = 7) -> torch.Tensor:
    series = torch.randn(2 * n_scans, 40, 20, generator=torch.Generator().manual_seed(0))
    return torch.stack([torch.corrcoef(one.T) for one in series]).view(2, n_scans, 20, 20)


def outcome(objective: Objective, **options) -> tuple[Losses, dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    losses = take_gradients(objective, random_views(), range(7), epoch=1, **options)
    gradients = {name: value.grad for name, value in objective.named_parameters() if value.grad is not None}
    return losses, gradients, dict(objective.named_buffers())


@pytest.mark.parametrize("at_once", [1, 3, 6])
@pytest.mark.parametrize("schedule", list(SCHEDULES))
def test_cuts_change_neither_losses_nor_gradients_nor_batch_statistics(schedule, at_once):
    whole = outcome(build(**SCHEDULES[schedule]))
    cut = outcome(build(**SCHEDULES[schedule]), at_once=at_once)
    for name in ("total", "lra", "identification", "reconstruction", "embeddings"):
        torch.testing.assert_close(getattr(cut[0], name), getattr(whole[0], name), rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(cut[1:], whole[1:], strict=True):
        assert ours.keys() == theirs.keys() and ours
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("schedule", ["default", "masked online"])
def test_a_cut_that_is_passed_twice_drops_the_same_units_twice(schedule):
    """With a step along the gradient the loss must fall at the slope that the gradient tells."""
    objective = build(dropout=0.3, **SCHEDULES[schedule])
    losses, gradients, _ = outcome(objective, at_once=2, seed=5)
    step = 5e-6
    slope = sum(gradient.square().sum() for gradient in gradients.values())
    with torch.no_grad():
        for name, gradient in gradients.items():
            objective.get_parameter(name).sub_(step * gradient)
    later, _, _ = outcome(objective, at_once=2, seed=5)
    assert (losses.total - later.total).item() == pytest.approx(step * slope.item(), rel=0.05)


def test_dropout_follows_its_seed():
    totals = [outcome(build(dropout=0.3), seed=seed)[0].total for seed in (1, 1, 2)]
    assert totals[0] == totals[1] != totals[2]


def test_one_direction_predicts_the_second_view_from_the_first():
    objective = build(lra_directions=1)
    views = random_views()
    losses = take_gradients(objective, views, range(7), epoch=1)
    with torch.no_grad():
        prediction = objective.predictor(objective.projector(objective.encoder(views[0])))
        target = objective.target["projector"](objective.target["encoder"](views[1]))
        cosines = torch.cosine_similarity(prediction, target, dim=1)
    torch.testing.assert_close(losses.lra, 2 * (2 - 2 * cosines).mean())


def test_masked_views_predict_when_asked():
    """What the online network predicts from then depends on the masks, which change with the epoch."""
    for online, differs in (("clean", False), ("masked", True)):
        objective = build(lra_online=online)
        first, other = (take_gradients(objective, random_views(), range(7), epoch).embeddings for epoch in (1, 2))
        assert torch.equal(first, other) != differs


def test_masked_views_that_predict_need_one_pass():
    with pytest.raises(ValidationError, match="needs masked_passes 1"):
        ObjectiveSettings(lra_online="masked", masked_passes=2)


def test_bfloat16_agrees_with_float32():
    plain, rounded = outcome(build())[0], outcome(build(), precision="bfloat16")[0]
    assert rounded.total.item() == pytest.approx(plain.total.item(), rel=0.03)
    assert rounded.total.dtype == torch.float32 and rounded.total != plain.total


def test_cuts_and_networks_drop_units_of_their_own(monkeypatch):
    objective, seeds = build(dropout=0.3), []
    monkeypatch.setattr(torch, "manual_seed", seeds.append)
    take_gradients(objective, random_views(), range(7), epoch=1, at_once=3, seed=100)
    # Three cuts each of the masked part, the clean views and the target; then the heads; then the clean views again.
    assert len(seeds) == 3 * 4 + 1 and len(set(seeds)) == 3 * 3 + 1
