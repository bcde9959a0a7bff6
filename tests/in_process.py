"""Whole episodes with the real sampler, in the test's own process: the engine's client without the worker between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from krill_tui.agent.collect import run_episodes
from krill_tui.agent.prompts import PromptOptions
from krill_tui.agent.rollout import EpisodeSpec, Rollout, RolloutOptions
from krill_tui.engine.context import derive_seed
from krill_tui.envs.alfworld.source import BuiltinSource
from krill_tui.models.base import Sampling
from krill_tui.models.local import LocalPolicy
from krill_tui.models.worker_protocol import SampledReply, SampleItem
from krill_tui.skill import Skill
from krill_tui.training.model import PolicyModel
from krill_tui.training.sampler import Sampler
from krill_tui.trajectory import Task


class SamplerClient:
    """What `LocalPolicy` asks of a worker, answered by a sampler at once."""

    def __init__(self, policy: PolicyModel) -> None:
        self.sampler = Sampler(policy)
        self.batches: list[int] = []
        """Size of each batch that was sampled."""

    async def sample(self, items: Sequence[SampleItem]) -> SampledReply:
        self.batches.append(len(items))
        return SampledReply(outputs=tuple(self.sampler.sample(items)), version=0)

    async def finish(self, episodes: Sequence[str]) -> None:
        self.sampler.finish(episodes)


async def play_household(
    policy: PolicyModel,
    games: int,
    *,
    concurrency: int,
    sampling: Sampling,
    prompt: PromptOptions,
    max_steps: int = 16,
    skills: tuple[Skill, ...] = (),
    split: str = "test",
) -> tuple[list[Rollout], list[int]]:
    """Procedural games with a seed each; gives the episodes in the games' order, and the sizes of the batches."""
    source = BuiltinSource("small", 0)
    specs = [
        EpisodeSpec(id=f"game-{n}", number=n, task=task, seed=derive_seed("household", n), purpose="evaluate")
        for n, task in enumerate(source.tasks(split, games))
    ]

    async def select(task: Task) -> tuple[tuple[Skill, ...], int]:
        return skills, 1

    client: Any = SamplerClient(policy)
    # A batch is exactly the live episodes, however slow the machine is.
    local = LocalPolicy(client, window=30.0)
    rollouts = await run_episodes(
        specs,
        source.open,
        local,
        RolloutOptions(max_steps, prompt, sampling),
        concurrency=concurrency,
        emit=lambda event: None,
        on_finished=lambda rollout: None,
        select=select,
    )
    await local.close()
    return rollouts, client.batches
