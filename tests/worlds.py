"""A scripted environment and policy for tests of what is around them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from krill_tui.envs.base import StepResult
from krill_tui.errors import EnvironmentFailure
from krill_tui.models.base import ActReply, ActRequest
from krill_tui.trajectory import Task


def task(number: int = 0, split: str = "train") -> Task:
    return Task(id=f"corridor/{number}", env="alfworld", split=split, category="Pick")


class Corridor:
    """Doors 1..length in a row: `open door n` in order wins; anything else does nothing."""

    def __init__(self, task: Task, length: int = 3, breaks_at: int | None = None) -> None:
        self.task = task.model_copy(update={"description": f"open {length} doors"})
        self._length, self._breaks_at = length, breaks_at
        self._opened = self._steps = 0
        self.closed = False

    async def reset(self) -> StepResult:
        return self._result("A corridor. Your task is to: open the doors.")

    async def step(self, action: str) -> StepResult:
        self._steps += 1
        if self._steps == self._breaks_at:
            raise EnvironmentFailure("the corridor collapsed")
        if action != f"open door {self._opened + 1}":
            return self._result("Nothing happens.")
        self._opened += 1
        return self._result(f"Door {self._opened} is open.")

    async def close(self) -> None:
        self.closed = True

    def _result(self, observation: str) -> StepResult:
        won = self._opened >= self._length
        doors = tuple(f"open door {n}" for n in range(1, self._length + 1))
        return StepResult(observation, doors, reward=float(won), done=won, won=won)


class Talker:
    """Says the given replies, one a turn, over and over; its tokens are the characters' code points."""

    name = "talker"

    def __init__(self, replies: Sequence[str]) -> None:
        self._replies = replies
        self._turns: dict[str, int] = {}
        self.live: set[str] = set()
        self.most_live = 0

    async def act(self, request: ActRequest) -> ActReply:
        await asyncio.sleep(0)
        turn = self._turns[request.episode]
        self._turns[request.episode] += 1
        text = self._replies[turn % len(self._replies)]
        ids = tuple(ord(c) for c in text)
        context = tuple(ord(c) for c in request.messages[-1]["content"])
        return ActReply(
            text, context, ids, (-0.5,) * len(ids), prompt_tokens=len(context), completion_tokens=len(ids)
        )

    async def start(self, episode: str) -> None:
        self._turns[episode] = 0
        self.live.add(episode)
        self.most_live = max(self.most_live, len(self.live))

    async def finish(self, episode: str) -> None:
        self.live.discard(episode)

    async def close(self) -> None:
        self.live.clear()


def door(number: int, thought: str = "next") -> str:
    return f"<think>{thought}</think><action>open door {number}</action>"
