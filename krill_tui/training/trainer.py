"""What SFT and GRPO share: the optimizer of the policy adapter, micro-batches, one guarded update."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from krill_tui.errors import ModelError
from krill_tui.training.batches import make_batch
from krill_tui.training.model import PolicyModel
from krill_tui.training.ranks import ALONE, Ranks
from krill_tui.training.tokens import MaskedTokens

Progress = Callable[[int, int], None]
"""Told after each micro-batch: tokens done, tokens in all."""

DEFAULT_TOKEN_BUDGET = 8192


def no_progress(done: int, total: int) -> None:
    """For callers that do not watch."""


@dataclass(slots=True)
class Trainer:
    """The policy under training."""

    policy: PolicyModel
    version: int = 0
    """Optimizer steps behind the policy adapter."""
    token_budget: int = DEFAULT_TOKEN_BUDGET
    """Padded tokens of one micro-batch; results do not depend on it, memory does."""
    ranks: Ranks = ALONE
    """The processes that train together."""
    optimizer: torch.optim.AdamW = field(init=False)

    def __post_init__(self) -> None:
        self.reset_optimizer()
        if self.policy.sharded:
            self.policy.sharded.learn(lambda train: self._idle(reference=False, train=train))
            self.clear_gradients()

    def rounds(self, groups: Sequence[list[int]]) -> list[list[int]]:
        """Micro-batches to go through; with sharded weights as many in every process, the last ones empty."""
        if self.policy.sharded is None:
            return list(groups)
        most = max(self.ranks.gather([len(groups)]))
        return [*groups, *[[] for _ in range(most - len(groups))]]

    @contextmanager
    def micro_batch(self, *, reference: bool, train: bool, empty: bool = False) -> Iterator[None]:
        """Around the passes of a micro-batch: perhaps one of the reference, one of the policy, perhaps one backward.

        With sharded weights it is one of all processes: what fails in one fails in all, and where it is `empty` here
        the passes are made without it.
        """
        if self.policy.sharded is None:
            yield
            return
        with self.ranks.together(), self.policy.sharded.keeping_pace(reference=reference, train=train):
            if empty:
                self._idle(reference=reference, train=train)
            yield

    def _idle(self, *, reference: bool, train: bool) -> None:
        """Go through the model with a few tokens that count nothing."""
        policy = self.policy
        batch = make_batch([MaskedTokens((0, 0), (0, 1))])
        if reference:
            with torch.no_grad():
                policy.token_scores(batch, "reference")
        with torch.set_grad_enabled(train):
            logprobs = policy.token_scores(batch)[0]
        if train:
            logprobs.backward(torch.zeros_like(logprobs))

    def reset_optimizer(self) -> None:
        """Start with a fresh AdamW over the adapter's float32 weights."""
        parameters = list(self.policy.policy_parameters.values())
        self.optimizer = torch.optim.AdamW(parameters, lr=0.0, weight_decay=0.0, fused=True)

    def start_phase(self) -> None:
        """Freeze the policy as reference; RL starts with a fresh optimizer."""
        self.policy.freeze_reference()
        self.reset_optimizer()

    def clear_gradients(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)

    def update(self, learning_rate: float, max_grad_norm: float) -> float:
        """Sum the accumulated gradients over the processes, clip and step; gives their norm before clipping.

        Raises:
            ModelError: the gradient is not finite; the weights stay as they were.
        """
        parameters = list(self.policy.policy_parameters.values())
        self.ranks.sum_gradients(parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm or float("inf")))
        if not torch.isfinite(torch.tensor(norm)):
            self.clear_gradients()
            raise ModelError(
                "the gradient is not finite; nothing was updated", hint="lower the learning rate"
            )
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()
        self.clear_gradients()
        self.version += 1
        return norm


@dataclass(slots=True)
class MaskedMeans:
    """Means over the policy's tokens of a whole batch, gathered micro-batch by micro-batch."""

    sums: dict[str, float] = field(default_factory=dict)
    tokens: float = 0.0

    def add(self, mask: Tensor, **values: Tensor) -> None:
        """Add `[B, T]` (or `[B, 1]`) values where `mask` `[B, T]` is 1."""
        self.tokens += float(mask.sum())
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float((value.detach() * mask).sum())

    def gather(self, ranks: Ranks) -> None:
        """Make these the means over what all processes added."""
        self.tokens = sum(ranks.gather([self.tokens]))
        self.sums = ranks.totals(self.sums)

    def mean(self, name: str) -> float:
        return self.sums.get(name, 0.0) / max(self.tokens, 1.0)
