"""One GRPO step (the paper's Eq. 9) on whole episodes, each a single masked sequence."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from krill_tui.errors import ModelError
from krill_tui.models.worker_protocol import GrpoEpisode
from krill_tui.training.batches import TokenBatch, make_batch, pad, split
from krill_tui.training.losses import GrpoLoss, LossType, grpo_loss, token_weights, truncated_weights
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
    importance_sampling_cap: float | None = None
    """Weigh tokens by min(pi_old / sampler, cap); None: not at all."""
    max_completion_length: int = 0
    """Divisor of dr_grpo; 0 takes the longest episode of the batch."""
    use_bias_correction_kl: bool = False


def grpo_step(
    trainer: Trainer,
    episodes: Sequence[GrpoEpisode],
    settings: GrpoSettings,
    progress: Progress = no_progress,
    old_logprobs: dict[int, Tensor] | None = None,
) -> dict[str, float]:
    """One optimizer step over all episodes of a batch of groups, which the processes share.

    Gives metrics under TRL's names.

    pi_old of Eq. 9 is the policy before the first step on these episodes, computed here and not taken from the sampler,
    as TRL does it: an update is a function of weights, tokens and advantages, whatever batches the episodes were
    sampled in. `old_logprobs` is empty at the first step, which fills it, and is handed to later ones over the same
    episodes; by index of an episode `[T]`. An episode without policy tokens counts as an episode, and no more.

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
    first: dict[int, Tensor] = {}
    done = 0
    packed = trainer.policy.packable
    computed = 0
    learning = [i for i, count in enumerate(own) if count]
    learning = [learning[position] for position in trainer.ranks.share([lengths[i] for i in learning])]
    with trainer.ranks.together():
        groups = split([sequences[i] for i in learning], trainer.token_budget, packed=packed)
        for positions in trainer.rounds(groups):
            group = [learning[position] for position in positions]
            with trainer.micro_batch(reference=bool(settings.kl_coeff), train=True, empty=not group):
                if not group:
                    continue
                batch = make_batch([sequences[i] for i in group], packed=packed).to(trainer.policy.device)
                computed += batch.tokens
                weights = token_weights(batch.mask, settings.loss_type, len(episodes), sum(own), longest)
                old = [old_logprobs[i] for i in group] if old_logprobs else None
                scored = _micro_batch(
                    trainer, batch, weights, [episodes[i] for i in group], settings, tally, old
                )
            first.update((i, row[: lengths[i]]) for i, row in zip(group, scored, strict=True))
            done += sum(lengths[i] for i in group)
            progress(done, sum(lengths))
    if old_logprobs is not None and not old_logprobs:
        old_logprobs.update(first)
    tally.gather(trainer.ranks)
    metrics = tally.metrics(with_reference=settings.kl_coeff != 0)
    metrics["grad_norm"] = trainer.update(settings.learning_rate, settings.max_grad_norm)
    metrics["learning_rate"] = settings.learning_rate
    metrics["num_tokens"] = float(sum(lengths))
    metrics["computed_tokens"] = float(sum(trainer.ranks.gather([computed])))
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
    old: Sequence[Tensor] | None,
) -> Tensor:
    """Add the gradients and the metrics of some episodes; gives their log-probabilities `[B, T]` without gradient.

    `old`: those of the first step on these episodes, `[T]` each; None: this is it.
    """
    policy = trainer.policy
    width = batch.ids.shape[1]
    sampled = pad([e.tokens.logprobs for e in episodes], width, torch.float32).to(policy.device)
    advantages = torch.tensor([e.advantage for e in episodes], dtype=torch.float32, device=policy.device)
    reference = None
    if settings.kl_coeff:
        with torch.no_grad():
            reference = policy.token_scores(batch, "reference", settings.temperature)[0]
    logprobs, entropies, _ = policy.token_scores(batch, "policy", settings.temperature)
    scored = logprobs.detach()
    before = scored
    if old is not None:
        before = torch.stack([functional.pad(row, (0, width - len(row))) for row in old])
    correction = None
    if settings.importance_sampling_cap is not None:
        correction = truncated_weights(before, sampled, settings.importance_sampling_cap)
    result = grpo_loss(
        logprobs,
        before,
        reference,
        advantages,
        batch.mask,
        weights,
        clip_epsilon=settings.clip_epsilon,
        epsilon_high=settings.epsilon_high,
        kl_coeff=settings.kl_coeff,
        loss_type=settings.loss_type,
        use_bias_correction_kl=settings.use_bias_correction_kl,
        correction=correction,
    )
    result.loss.backward()
    tally.add(result, scored - sampled, scored - before, entropies, batch.mask)
    return scored


class _Tally:
    """Metrics of the whole batch."""

    def __init__(self) -> None:
        self._loss = 0.0
        self._largest_gap = 0.0
        self._means = MaskedMeans()

    def add(
        self, result: GrpoLoss, from_sampler: Tensor, from_old: Tensor, entropies: Tensor, mask: Tensor
    ) -> None:
        """`from_sampler`, `from_old`: log-ratios of the policy to the sampler and to pi_old, `[B, T]`."""
        gap = (from_sampler * mask).abs()
        self._loss += float(result.loss.detach())
        self._largest_gap = max(self._largest_gap, float(gap.max()))
        self._means.add(
            mask,
            kl=result.kl,
            entropy=entropies,
            low=result.clipped_low,
            high=result.clipped_high,
            region=result.clipped_low | result.clipped_high,
            ratio=torch.exp(from_sampler * mask),
            gap=gap,
            move=-from_old,
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


def over_iterations(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Metrics of several steps over the same episodes: their means, and of `sampling/` the first, before any update."""
    first = steps[0]
    return {
        name: first[name] if name.startswith("sampling/") else statistics.fmean(step[name] for step in steps)
        for name in first
    }
