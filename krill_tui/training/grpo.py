"""One GRPO step (the paper's Eq. 9) on whole episodes, each a single masked sequence."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from krill_tui.errors import ModelError
from krill_tui.models.worker_protocol import GrpoEpisode
from krill_tui.training.batches import TokenBatch, make_batch, pad, split_by_tokens
from krill_tui.training.losses import GrpoLoss, LossType, grpo_loss, token_weights
from krill_tui.training.ranks import Ranks
from krill_tui.training.tokens import MaskedTokens
from krill_tui.training.trainer import MaskedMeans, Progress, Trainer, no_progress


@dataclass(frozen=True, slots=True)
class GrpoSettings:
    """Of one step; names and defaults are TRL's where it has them."""

    learning_rate: float
    clip_epsilon: float = 0.2
    epsilon_high: float | None = None
    """None: as `clip_epsilon`."""
    kl_coeff: float = 0.01
    """0 leaves the reference out altogether."""
    loss_type: LossType = "grpo"
    max_grad_norm: float = 1.0
    temperature: float = 1.0
    """The one the episodes were sampled at."""
    max_completion_length: int = 0
    """Divisor of dr_grpo; 0 takes the longest episode of the batch."""


def grpo_step(
    trainer: Trainer,
    episodes: Sequence[GrpoEpisode],
    settings: GrpoSettings,
    progress: Progress = no_progress,
) -> dict[str, float]:
    """One optimizer step over all episodes of a batch of groups, which the processes share.

    Gives metrics under TRL's names.

    Raises:
        ModelError: no policy token in the batch, or a gradient that is not finite.
    """
    started = time.perf_counter()
    sequences = [MaskedTokens(e.tokens.ids, e.tokens.mask, e.tokens.allowed) for e in episodes]
    lengths = [len(sequence.ids) for sequence in sequences]
    own = [sum(sequence.mask) for sequence in sequences]
    if not sum(own):
        raise ModelError("the episodes hold no policy token to learn from")
    longest = settings.max_completion_length or max(own)
    trainer.clear_gradients()
    tally = _Tally()
    done = 0
    share = trainer.ranks.share(lengths)
    with trainer.ranks.together():
        for positions in split_by_tokens([lengths[i] for i in share], trainer.token_budget):
            group = [share[position] for position in positions]
            batch = make_batch([sequences[i] for i in group]).to(trainer.policy.device)
            weights = token_weights(batch.mask, settings.loss_type, len(episodes), sum(own), longest)
            _micro_batch(trainer, batch, weights, [episodes[i] for i in group], settings, tally)
            done += sum(lengths[i] for i in group)
            progress(done, sum(lengths))
    tally.gather(trainer.ranks)
    metrics = tally.metrics(with_reference=settings.kl_coeff != 0)
    metrics["grad_norm"] = trainer.update(settings.learning_rate, settings.max_grad_norm)
    metrics["learning_rate"] = settings.learning_rate
    metrics["num_tokens"] = float(sum(lengths))
    metrics["policy_tokens"] = float(sum(own))
    metrics["training_tokens_per_second"] = sum(lengths) / (time.perf_counter() - started)
    return metrics


def _micro_batch(
    trainer: Trainer,
    batch: TokenBatch,
    weights: Tensor,
    episodes: Sequence[GrpoEpisode],
    settings: GrpoSettings,
    tally: _Tally,
) -> None:
    """Add the gradients and the metrics of some episodes."""
    policy = trainer.policy
    width = batch.ids.shape[1]
    old = pad([e.tokens.logprobs for e in episodes], width, torch.float32).to(policy.device)
    advantages = torch.tensor([e.advantage for e in episodes], dtype=torch.float32, device=policy.device)
    reference = None
    if settings.kl_coeff:
        with torch.no_grad():
            reference = policy.token_scores(batch, "reference", settings.temperature)[0]
    logprobs, entropies, _ = policy.token_scores(batch, "policy", settings.temperature)
    result = grpo_loss(
        logprobs,
        old,
        reference,
        advantages,
        batch.mask,
        weights,
        clip_epsilon=settings.clip_epsilon,
        epsilon_high=settings.epsilon_high,
        kl_coeff=settings.kl_coeff,
        loss_type=settings.loss_type,
    )
    result.loss.backward()
    tally.add(result, logprobs.detach() - old, entropies, batch.mask)


class _Tally:
    """Metrics of the whole batch."""

    def __init__(self) -> None:
        self._loss = 0.0
        self._largest_gap = 0.0
        self._means = MaskedMeans()

    def add(self, result: GrpoLoss, log_ratio: Tensor, entropies: Tensor, mask: Tensor) -> None:
        gap = (log_ratio * mask).abs()
        self._loss += float(result.loss.detach())
        self._largest_gap = max(self._largest_gap, float(gap.max()))
        self._means.add(
            mask,
            kl=result.kl,
            entropy=entropies,
            low=result.clipped_low,
            high=result.clipped_high,
            region=result.clipped_low | result.clipped_high,
            ratio=result.ratio,
            gap=gap,
            move=-log_ratio,
        )

    def gather(self, ranks: Ranks) -> None:
        """Make this the tally of all processes."""
        self._loss = sum(ranks.gather([self._loss]))
        self._largest_gap = max(ranks.gather([self._largest_gap]))
        self._means.gather(ranks)

    def metrics(self, *, with_reference: bool) -> dict[str, float]:
        """`policy_move` is verl's ppo_kl, mean(log pi_old - log pi_theta); the other names are TRL's."""
        mean = self._means.mean
        metrics = {
            "loss": self._loss,
            "entropy": mean("entropy"),
            "clip_ratio/low_mean": mean("low"),
            "clip_ratio/high_mean": mean("high"),
            "clip_ratio/region_mean": mean("region"),
            "sampling/importance_sampling_ratio/mean": mean("ratio"),
            "sampling/sampling_logp_difference/mean": mean("gap"),
            "sampling/sampling_logp_difference/max": self._largest_gap,
            "policy_move": mean("move"),
        }
        if with_reference:
            metrics["kl"] = mean("kl")
        return metrics
