"""Cold-start SFT: cross-entropy on the assistant's tokens of demonstrated episodes."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from krill_tui.errors import ModelError
from krill_tui.models.base import Message
from krill_tui.training.batches import make_batch, split
from krill_tui.training.tokens import MaskedTokens
from krill_tui.training.trainer import MaskedMeans, Progress, Trainer, no_progress


def tokenize_demonstration(trainer: Trainer, messages: Sequence[Message]) -> MaskedTokens:
    """A demonstration as the sequence that sampling would build, cut to the model's context."""
    tokens = trainer.policy.chat.conversation(messages)
    limit = trainer.policy.context
    return MaskedTokens(tokens.ids[:limit], tokens.mask[:limit])


def sft_step(
    trainer: Trainer,
    demonstrations: Sequence[MaskedTokens],
    *,
    learning_rate: float,
    max_grad_norm: float = 1.0,
    update: bool = True,
    progress: Progress = no_progress,
) -> dict[str, float]:
    """One optimizer step on the mean cross-entropy over all policy tokens of the batch, which the processes share.

    With `update=False` only measures. Gives metrics under TRL's names.

    Raises:
        ModelError: no token to learn from, or a gradient that is not finite.
    """
    started = time.perf_counter()
    total = sum(len(tokens.ids) for tokens in demonstrations)
    own = sum(sum(tokens.mask) for tokens in demonstrations)
    if own == 0:
        raise ModelError("the demonstrations hold no reply to learn from")
    trainer.clear_gradients()
    means = MaskedMeans()
    done = 0
    packed = trainer.policy.packable
    share = [demonstrations[i] for i in trainer.ranks.share([len(tokens.ids) for tokens in demonstrations])]
    with trainer.ranks.together():
        for group in trainer.rounds(split(share, trainer.token_budget, packed=packed)):
            with trainer.micro_batch(reference=False, train=update, empty=not group):
                if not group:
                    continue
                batch = make_batch([share[i] for i in group], packed=packed).to(trainer.policy.device)
                with torch.set_grad_enabled(update):
                    logprobs, entropies, hits = trainer.policy.token_scores(batch)
                    loss = -(logprobs * batch.mask).sum() / own
                if update:
                    loss.backward()
            means.add(batch.mask, nll=-logprobs, entropy=entropies, hits=hits)
            done += sum(len(share[i].ids) for i in group)
            progress(done, total)
    means.gather(trainer.ranks)
    metrics = {
        "loss": means.mean("nll"),
        "mean_token_accuracy": means.mean("hits"),
        "entropy": means.mean("entropy"),
        "num_tokens": float(total),
        "policy_tokens": float(own),
    }
    if update:
        metrics["grad_norm"] = trainer.update(learning_rate, max_grad_norm)
        metrics["learning_rate"] = learning_rate
    metrics["training_tokens_per_second"] = total / (time.perf_counter() - started)
    return metrics
