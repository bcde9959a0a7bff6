"""What the trainer's tests share: a policy whose adapter does something, and episodes sampled from it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from krill_tui.models.worker_protocol import ChatMessage, SampleItem, SampleOutput, SftExample
from krill_tui.training.loading import load_model
from krill_tui.training.model import ModelSettings, PolicyModel
from krill_tui.training.sampler import Sampler
from krill_tui.training.trainer import Trainer
from krill_tui.trajectory import EpisodeTokens

ACTIONS = ("go to cabinet 1", "go to cabinet 12", "open drawer 2", "look")
EXAMPLES = tuple(
    SftExample(
        messages=(
            ChatMessage(role="user", content="Your task is to: look. " * (1 + 3 * n)),
            ChatMessage(role="assistant", content="<think></think><action>look</action>"),
        )
    )
    for n in range(3)
)
"""Demonstrations of different lengths."""


def make_policy(folder: Path, *, strength: float = 0.3) -> PolicyModel:
    """The tiny model with a random adapter; `strength` 0 leaves the adapter without effect, as a fresh one is."""
    policy = load_model(str(folder), ModelSettings(lora_rank=4, lora_alpha=8))
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, parameter in policy.policy_parameters.items():
            if "lora_B" in name:
                parameter.copy_(strength * torch.randn(parameter.shape, generator=generator))
    return policy


def opening(text: str = "You see a cabinet 1.") -> tuple[ChatMessage, ...]:
    return (ChatMessage(role="system", content=""), ChatMessage(role="user", content=text))


def answer(text: str = "Nothing happens.") -> tuple[ChatMessage, ...]:
    return (ChatMessage(role="user", content=text),)


def item(
    episode: str,
    messages: tuple[ChatMessage, ...],
    *,
    seed: int = 0,
    constrained: bool = False,
    max_tokens: int = 24,
    temperature: float = 1.0,
    admissible: Sequence[str] = ACTIONS,
) -> SampleItem:
    return SampleItem(
        episode=episode,
        messages=messages,
        admissible=tuple(admissible),
        constrained=constrained,
        temperature=temperature,
        max_tokens=max_tokens,
        seed=seed,
    )


def as_tokens(outputs: Sequence[SampleOutput]) -> EpisodeTokens:
    """The sequence of an episode from its replies, as a rollout collects it."""
    ids: list[int] = []
    mask: list[int] = []
    logprobs: list[float] = []
    allowed: list[tuple[int, ...]] = []
    for output in outputs:
        context, own = len(output.context_ids), len(output.ids)
        ids += [*output.context_ids, *output.ids]
        mask += [0] * context + [1] * own
        logprobs += [0.0] * context + list(output.logprobs)
        allowed += [()] * context + list(output.allowed or [()] * own)
    return EpisodeTokens(ids=tuple(ids), mask=tuple(mask), logprobs=tuple(logprobs), allowed=tuple(allowed))


def sample_episodes(
    policy: PolicyModel,
    count: int,
    turns: int = 3,
    *,
    constrained: bool = True,
    temperature: float = 1.0,
    sampler: Sampler | None = None,
) -> list[EpisodeTokens]:
    """Episodes of different lengths, played together."""
    sampler = sampler or Sampler(policy)
    sampler.finish([str(n) for n in range(count)])
    outputs: list[list[SampleOutput]] = [[] for _ in range(count)]
    for turn in range(turns):
        items = [
            item(
                str(n),
                opening("a room " * (1 + n // 2)) if turn == 0 else answer("drawer " * (n % 3)),
                seed=n,
                constrained=constrained,
                temperature=temperature,
            )
            for n in range(count)
        ]
        for episode, output in zip(outputs, sampler.sample(items), strict=True):
            episode.append(output)
    return [as_tokens(episode) for episode in outputs]


def gradients_of(trainer: Trainer, step: Callable[[], object]) -> dict[str, Tensor]:
    """The gradient a step makes, by parameter, taken where the optimizer would; nothing is updated."""
    gradients: dict[str, Tensor] = {}

    def keep(self: Trainer, learning_rate: float, max_grad_norm: float) -> float:
        for name, parameter in self.policy.policy_parameters.items():
            assert parameter.grad is not None
            gradients[name] = parameter.grad.clone()
        return 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "update", keep)
        step()
    trainer.clear_gradients()
    return gradients
