"""Many episodes at once, each a record of its own."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable

from krill_tui.agent.gate import Gate
from krill_tui.agent.rollout import Emit, EpisodeSpec, Rollout, RolloutOptions, SkillSelector, run_episode
from krill_tui.envs.base import Environment
from krill_tui.models.base import Policy
from krill_tui.trajectory import Task


async def run_episodes(
    specs: Iterable[EpisodeSpec],
    open_env: Callable[[Task], Environment],
    policy: Policy,
    options: RolloutOptions,
    *,
    concurrency: int,
    emit: Emit,
    on_finished: Callable[[Rollout], None],
    select: SkillSelector | None = None,
    gate: Gate | None = None,
) -> list[Rollout]:
    """Play all episodes, `concurrency` at a time; returns them in the order of `specs`.

    `on_finished` is called in the order they end, on the event loop, before another one takes the place: what it
    writes down survives a later cancellation.
    """
    owed = deque(enumerate(specs))
    finished: dict[int, Rollout] = {}

    async def player() -> None:
        while owed:
            index, spec = owed.popleft()
            rollout = await run_episode(spec, open_env, policy, options, emit=emit, select=select, gate=gate)
            finished[index] = rollout
            on_finished(rollout)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(owed))):
            group.create_task(player())
    return [finished[index] for index in sorted(finished)]
