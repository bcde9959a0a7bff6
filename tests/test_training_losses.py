"""Advantages and losses against hand-computed cases and the properties they must have."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from krill_tui.training.advantage import group_advantages
from krill_tui.training.losses import GrpoLoss, LossType, grpo_loss, k3, token_weights


def test_advantages_are_centred_and_scaled_by_the_unbiased_deviation() -> None:
    # mean 0.5, deviations +-0.5, unbiased std sqrt(4 * 0.25 / 3)
    expected = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    assert group_advantages([1, 0, 1, 0]) == pytest.approx(
        [expected, -expected, expected, -expected], abs=1e-12
    )


def test_advantages_without_scaling_are_differences_from_the_mean() -> None:
    assert group_advantages([3.0, 1.0], "none") == pytest.approx([1.0, -1.0])


@pytest.mark.parametrize("returns", [[0.1] * 3, [1.0], [0.7] * 7, []])
def test_a_group_without_spread_gets_exactly_zero(returns: list[float]) -> None:
    assert group_advantages(returns).tolist() == [0.0] * len(returns)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=9), st.floats(-3, 3))
@settings(max_examples=60, deadline=None)
def test_advantages_do_not_change_when_all_returns_are_shifted(returns: list[float], shift: float) -> None:
    base = group_advantages(returns)
    # A spread near the float's precision is lost by the shift itself.
    if np.ptp(returns) > 1e-6:
        assert group_advantages([r + shift for r in returns]) == pytest.approx(base, abs=1e-4)
    assert abs(base.sum()) < 1e-6


def _loss(
    logprobs: torch.Tensor,
    old: torch.Tensor,
    advantages: list[float],
    mask: torch.Tensor,
    *,
    loss_type: LossType = "grpo",
    reference: torch.Tensor | None = None,
    kl_coeff: float = 0.0,
    epsilon_high: float | None = None,
) -> GrpoLoss:
    weights = token_weights(mask, loss_type, len(advantages), int(mask.sum()), int(mask.sum(-1).max()))
    return grpo_loss(
        logprobs,
        old,
        reference,
        torch.tensor(advantages),
        mask,
        weights,
        clip_epsilon=0.2,
        epsilon_high=epsilon_high,
        kl_coeff=kl_coeff,
        loss_type=loss_type,
    )


RATIOS = torch.tensor([[1.5, 0.5, 1.0], [0.5, 1.5, 1.1]])
MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
OLD = torch.full((2, 3), -1.0)


@pytest.mark.parametrize(
    ("loss_type", "expected"),
    [
        # episode 1, A = 2: min(1.5, 1.2) * 2 = 2.4 and 0.5 * 2 = 1.0
        # episode 2, A = -1: -max(0.5, 0.8) = -0.8, -1.5, -1.1
        ("grpo", -((2.4 + 1.0) / 2 + (-0.8 - 1.5 - 1.1) / 3) / 2),
        ("dapo", -(2.4 + 1.0 - 0.8 - 1.5 - 1.1) / 5),
        ("dr_grpo", -(2.4 + 1.0 - 0.8 - 1.5 - 1.1) / (2 * 3)),
        # one ratio per episode: sqrt(1.5 * 0.5) = 0.866 and (0.5 * 1.5 * 1.1) ** (1/3) = 0.938, neither clipped
        ("gspo", -(2 * math.sqrt(0.75) - 0.825 ** (1 / 3)) / 2),
    ],
)
def test_each_loss_type_has_its_hand_computed_value(loss_type: LossType, expected: float) -> None:
    result = _loss(OLD + RATIOS.log(), OLD, [2.0, -1.0], MASK, loss_type=loss_type)
    assert result.loss.item() == pytest.approx(expected, abs=1e-6)


def test_clipping_is_counted_by_the_side_on_which_it_stops_the_gradient() -> None:
    result = _loss(OLD + RATIOS.log(), OLD, [2.0, -1.0], MASK)
    assert result.clipped_high.tolist() == [[True, False, False], [False, False, False]]
    assert result.clipped_low.tolist() == [[False, False, False], [True, False, False]]


def test_epsilon_high_widens_the_upper_side_only() -> None:
    result = _loss(OLD + RATIOS.log(), OLD, [2.0, -1.0], MASK, epsilon_high=0.6)
    assert not result.clipped_high.any()
    assert result.clipped_low[1, 0]


def test_the_kl_term_is_k3_and_not_multiplied_by_the_ratio() -> None:
    logprobs = (OLD + RATIOS.log()).requires_grad_()
    reference = torch.full((2, 3), -1.2)
    plain = _loss(logprobs, OLD, [0.0, 0.0], MASK)
    penalised = _loss(logprobs, OLD, [0.0, 0.0], MASK, reference=reference, kl_coeff=0.5)
    d = reference - logprobs.detach()
    expected = ((torch.exp(d) - d - 1) * MASK).sum(-1) / MASK.sum(-1)
    assert plain.loss.item() == pytest.approx(0.0)
    assert penalised.loss.item() == pytest.approx(0.5 * expected.mean().item(), abs=1e-6)


def test_k3_is_never_negative_and_zero_only_where_both_agree() -> None:
    logprobs = torch.tensor([-3.0, -1.0, -0.5])
    assert (k3(logprobs, torch.tensor([-1.0, -1.0, -4.0])) >= 0).all()
    assert k3(logprobs, logprobs).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "gspo"])
def test_tokens_outside_the_mask_get_no_gradient(loss_type: LossType) -> None:
    logprobs = (OLD + 0.01).requires_grad_()
    _loss(logprobs, OLD, [1.0, -1.0], MASK, loss_type=loss_type, reference=OLD, kl_coeff=0.1).loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad[0, 2] == 0
    assert (logprobs.grad[MASK.bool()] != 0).all()


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "dr_grpo", "gspo"])
def test_a_loss_is_the_sum_over_its_micro_batches(loss_type: LossType) -> None:
    logprobs, advantages = OLD + RATIOS.log(), [2.0, -1.0]
    whole = _loss(logprobs, OLD, advantages, MASK, loss_type=loss_type).loss
    parts = torch.zeros(())
    for row in range(2):
        one = slice(row, row + 1)
        parts += grpo_loss(
            logprobs[one],
            OLD[one],
            None,
            torch.tensor(advantages[one]),
            MASK[one],
            token_weights(MASK[one], loss_type, 2, 5, 3),
            clip_epsilon=0.2,
            epsilon_high=None,
            kl_coeff=0.0,
            loss_type=loss_type,
        ).loss
    assert parts.item() == pytest.approx(whole.item(), abs=1e-6)


def test_an_episode_without_policy_tokens_counts_but_adds_nothing() -> None:
    mask = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
    result = _loss(OLD, OLD, [1.0, 1.0], mask)
    assert result.loss.item() == pytest.approx(-0.5)
