"""The episodes that a server plays for its callers."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from krill_tui.envs.base import Environment, StepResult, TaskSource
from krill_tui.errors import UsageError
from krill_tui.trajectory import Task

IDLE_SECONDS = 1800.0
MOST_SESSIONS = 10_000


@dataclass(slots=True, eq=False)
class Session:
    """One caller's episode."""

    used: float
    """When it was last asked for, by the store's clock."""
    environment: Environment | None = None
    """None before the first reset."""
    last: StepResult | None = None
    number: int = -1
    """AgentGym's number of the game; -1 in Krill's protocol."""
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    """Calls to one session take their turn."""


class SessionStore:
    """Sessions by name. Those idle for `idle_seconds` are dropped, and the idlest where there are too many.

    Nothing watches the clock: what has expired goes when the next call comes.
    """

    def __init__(
        self,
        source: TaskSource,
        *,
        idle_seconds: float = IDLE_SECONDS,
        most: int = MOST_SESSIONS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._idle_seconds = idle_seconds
        self._most = most
        self._clock = clock
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._opening = asyncio.Lock()

    def __len__(self) -> int:
        return len(self._sessions)

    async def create(self, name: str) -> Session:
        """The session of this name, made where there is none."""
        session = self._sessions.get(name)
        await self._expire(self._most if session else self._most - 1)
        session = self._sessions.get(name)
        if session is None:
            session = self._sessions[name] = Session(self._clock())
        self._touch(name, session)
        return session

    async def find(self, name: str) -> Session | None:
        """The session of this name; None where there is none, or no longer."""
        await self._expire(self._most)
        session = self._sessions.get(name)
        if session is not None:
            self._touch(name, session)
        return session

    async def reset(self, session: Session, task: Task, number: int = -1) -> StepResult:
        """Begin an episode of `task`; the one before is given up."""
        async with session.lock:
            await _close(session)
            async with self._opening:  # a world may be read from files, and drawing a shop takes its time
                environment = await asyncio.to_thread(self._source.open, task)
            session.environment, session.number = environment, number
            session.last = await environment.reset()
            return session.last

    async def step(self, session: Session, action: str) -> StepResult:
        """Play one action.

        Raises:
            UsageError: the session was not reset.
            EnvironmentFailure: the environment broke.
        """
        async with session.lock:
            if session.environment is None or session.last is None:
                raise UsageError("step before reset")
            session.last = await session.environment.step(action)
            return session.last

    async def drop(self, name: str) -> None:
        """End the session of this name, where there is one."""
        session = self._sessions.pop(name, None)
        if session is not None:
            async with session.lock:
                await _close(session)

    async def close(self) -> None:
        while self._sessions:
            _, session = self._sessions.popitem()
            async with session.lock:
                await _close(session)

    def _touch(self, name: str, session: Session) -> None:
        session.used = self._clock()
        self._sessions.move_to_end(name)

    async def _expire(self, most: int) -> None:
        """Drop what was not asked for in time, and more until `most` are left.

        The order of the sessions is the order of their last use.
        """
        latest = self._clock() - self._idle_seconds
        while self._sessions:
            name, idlest = next(iter(self._sessions.items()))
            if idlest.used > latest and len(self._sessions) <= most:
                return
            del self._sessions[name]
            async with idlest.lock:
                await _close(idlest)


async def _close(session: Session) -> None:
    environment, session.environment, session.last = session.environment, None, None
    if environment is not None:
        await environment.close()
