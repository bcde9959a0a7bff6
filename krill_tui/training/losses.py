"""Losses of SFT and GRPO on log-probabilities. Pure functions of tensors.

Shapes: B episodes, T token positions. Every loss is a weighted sum over tokens whose weights are fixed by the whole
batch (`token_weights`), so that it can be summed over micro-batches of any size and order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LossType = Literal["grpo", "dr_grpo", "dapo", "gspo"]


@dataclass(frozen=True, slots=True)
class GrpoLoss:
    """What one micro-batch adds to the loss, and the tensors its metrics are made of."""

    loss: Tensor
    """Scalar with gradient."""
    ratio: Tensor
    """`[B, T]`, or `[B, 1]` for gspo: pi_theta / pi_old."""
    kl: Tensor
    """`[B, T]`, k3 against the reference; 0 without one."""
    clipped_low: Tensor
    """Like `ratio`, bool: ratio below 1 - epsilon where the advantage is negative."""
    clipped_high: Tensor
    """Like `ratio`, bool: ratio above 1 + epsilon_high where the advantage is positive."""


def token_weights(mask: Tensor, loss_type: LossType, episodes: int, tokens: int, longest: int) -> Tensor:
    """How much each token counts in the loss, TRL's aggregations; `[B, T]`, 0 where `mask` is 0.

    `mask`: `[B, T]`, of a micro-batch. The other three describe the whole batch: number of episodes, policy tokens,
    and the constant length that dr_grpo divides by.

    - grpo, gspo: mean over the tokens of an episode, then over episodes
    - dapo: mean over all tokens
    - dr_grpo: sum over tokens / (episodes * longest)
    """
    mask = mask.to(torch.float32)
    if loss_type == "dapo":
        return mask / max(tokens, 1)
    if loss_type == "dr_grpo":
        return mask / max(episodes * longest, 1)
    return mask / (mask.sum(-1, keepdim=True).clamp(min=1.0) * max(episodes, 1))


def k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Schulman's k3 estimate of KL(pi_theta || pi_ref) per token, same shape: exp(d) - d - 1, d = log ref - log pi."""
    difference = reference_logprobs - logprobs
    return torch.exp(difference) - difference - 1


def truncated_weights(old_logprobs: Tensor, sampled_logprobs: Tensor, cap: float) -> Tensor:
    """Truncated importance weights min(pi_old / sampler, cap) per token, without gradient, shaped like the arguments.

    For episodes that another program sampled (TRL's `vllm_importance_sampling_mode="token_truncate"`): its
    distribution differs a little from the trainer's under the same weights.
    """
    return torch.exp(old_logprobs - sampled_logprobs).clamp(max=cap).detach()


def grpo_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    reference_logprobs: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    weights: Tensor,
    *,
    clip_epsilon: float,
    epsilon_high: float | None,
    kl_coeff: float,
    loss_type: LossType,
    use_bias_correction_kl: bool = False,
    correction: Tensor | None = None,
) -> GrpoLoss:
    """GRPO's clipped surrogate (the paper's Eq. 9) as a loss to minimise.

    `logprobs`, `old_logprobs`, `reference_logprobs`, `mask`, `weights`: `[B, T]`; `advantages`: `[B]`. The ratio is
    taken per token, for gspo per episode (the geometric mean over its tokens). `epsilon_high` None means symmetric
    clipping. `use_bias_correction_kl` multiplies the KL term by the ratio (DeepSeek-V3.2, and TRL's default).
    `correction` `[B, T]` multiplies the surrogate, not the KL term (`truncated_weights`).
    """
    mask = mask.to(logprobs.dtype)
    log_ratio = (logprobs - old_logprobs) * mask
    if loss_type == "gspo":
        log_ratio = log_ratio.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp(min=1.0)
    ratio = torch.exp(log_ratio)
    low, high = 1 - clip_epsilon, 1 + (clip_epsilon if epsilon_high is None else epsilon_high)
    advantage = advantages[:, None]
    per_token = -torch.minimum(ratio * advantage, ratio.clamp(low, high) * advantage)
    if correction is not None:
        per_token = per_token * correction
    kl = torch.zeros_like(logprobs)
    if reference_logprobs is not None:
        kl = k3(logprobs, reference_logprobs) * mask
        if use_bias_correction_kl:
            kl = kl * ratio
        per_token = per_token + kl_coeff * kl
    return GrpoLoss(
        loss=(per_token * weights).sum(),
        ratio=ratio.detach(),
        kl=kl.detach(),
        clipped_low=((ratio < low) & (advantage < 0)).detach(),
        clipped_high=((ratio > high) & (advantage > 0)).detach(),
    )
