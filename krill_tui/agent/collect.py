"""Many episodes at once, each a record of its own."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace

from krill_tui.agent.gate import Gate
from krill_tui.agent.outage import Outage, Patience
from krill_tui.agent.rollout import Emit, EpisodeSpec, Rollout, RolloutOptions, SkillSelector, run_episode
from krill_tui.envs.base import Environment
from krill_tui.errors import KrillError
from krill_tui.events import schema as ev
from krill_tui.models.base import Policy
from krill_tui.trajectory import StopReason, Task


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
    patience: Patience | None = None,
    known: EpisodeSpec | None = None,
) -> list[Rollout]:
    """Play all episodes, `concurrency` at a time; returns them in the order of `specs`.

    `on_finished` is called in the order they end, on the event loop, before another one takes the place: what it
    writes down survives a later cancellation.

    An episode that breaks because nobody answers is no result: it is played again, and while nobody answers at all, new
    ones wait (`patience`). `known`, an episode that was played well before, helps to tell one broken game from that.

    Raises:
        ServiceError: nobody answered for too long, or refused for good (a wrong key).
    """
    owed = deque(enumerate(specs))
    finished: dict[int, Rollout] = {}
    good = known

    def said(event: ev.BaseEvent) -> None:
        if isinstance(event, ev.EpisodeStepped):
            outage.stepped(event.episode)
        emit(event)

    def works() -> Awaitable[bool] | None:
        return None if good is None else first_turn(good)

    async def first_turn(spec: EpisodeSpec) -> bool:
        """Whether an episode that went well before still begins; nothing of it is kept."""
        rollout = await run_episode(
            replace(spec, id=f"{spec.id}-probe"),
            open_env,
            policy,
            replace(options, max_steps=1),
            emit=lambda event: None,
            select=select,
        )
        return rollout.trajectory.stop_reason is not StopReason.ERROR

    outage = Outage(patience or Patience(), emit, works)

    async def player() -> None:
        nonlocal good
        while owed:
            turn = await outage.admitted()
            if not owed:
                return
            index, spec = owed.popleft()
            outage.started(spec.id)
            rollout = await run_episode(spec, open_env, policy, options, emit=said, select=select, gate=gate)
            fault, steps = rollout.fault, len(rollout.trajectory.steps)
            if fault is not None and fault.permanent:
                raise fault
            if fault is not None and fault.unreachable:
                if outage.broke(spec.id, fault, steps=steps, turn=turn):
                    emit(ev.EpisodeInterrupted(episode=spec.id, reason=str(fault)))
                    owed.append((index, spec))
                    continue
            else:
                outage.ended(spec.id)
            if rollout.trajectory.stop_reason is not StopReason.ERROR:
                good = spec
            finished[index] = rollout
            on_finished(rollout)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(owed))):
                group.create_task(player())
    except ExceptionGroup as group:
        # Several players fail of the same: the first says it.
        first = group.exceptions[0]
        if isinstance(first, KrillError) and len({type(one) for one in group.exceptions}) == 1:
            raise first from None
        raise
    return [finished[index] for index in sorted(finished)]
