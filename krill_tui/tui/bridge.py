"""From events to the screen: where a view's state comes from, and when it is drawn again.

A source keeps a `RunState` current and calls back on every change. The bridge only remembers that something
changed; the app asks it ten times a second, so a burst of events costs one drawing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from krill_tui.engine.state import RunState
from krill_tui.errors import KrillError
from krill_tui.events.journal import JournalFollower
from krill_tui.events.schema import Event

if TYPE_CHECKING:
    from krill_tui.engine.session import Session
    from krill_tui.tui.replay import ReplaySource

REDRAW_SECONDS = 0.1
POLL_SECONDS = 0.25
APPLY_AT_ONCE = 500
"""Events taken in before the event loop gets a turn: some milliseconds of work."""


class Source(Protocol):
    """Something that keeps the state of one run."""

    label: str
    """What the status bar calls it; empty for the live run."""

    @property
    def state(self) -> RunState: ...

    def start(self, on_change: Callable[[], None], on_problem: Callable[[str], None]) -> None:
        """Begin, on the running event loop; `on_problem` gets one line when it cannot go on."""
        ...

    async def stop(self) -> None: ...


class SessionSource:
    """The run that this process works on."""

    label = ""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._unsubscribe: Callable[[], None] | None = None

    @property
    def state(self) -> RunState:
        return self.session.state

    def start(self, on_change: Callable[[], None], on_problem: Callable[[str], None]) -> None:
        self._unsubscribe = self.session.bus.subscribe(lambda event: on_change())

    async def stop(self) -> None:
        if self._unsubscribe:
            self._unsubscribe()
            self._unsubscribe = None


class EmptySource:
    """No run yet."""

    label = "no run"

    def __init__(self) -> None:
        self.state = RunState()

    def start(self, on_change: Callable[[], None], on_problem: Callable[[str], None]) -> None:
        pass

    async def stop(self) -> None:
        pass


class WatchSource:
    """A run that another process writes, or wrote: its journal is followed."""

    label = "watching"

    def __init__(self, path: Path) -> None:
        """`path` is the run's folder."""
        self.path = path
        self.state = RunState(run=path.name)
        self._task: asyncio.Task[None] | None = None

    def start(self, on_change: Callable[[], None], on_problem: Callable[[str], None]) -> None:
        self._task = asyncio.create_task(self._follow(on_change, on_problem), name=f"watch {self.path.name}")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def _follow(self, on_change: Callable[[], None], on_problem: Callable[[str], None]) -> None:
        follower = JournalFollower(self.path / "events.jsonl")
        while True:
            try:
                events = await asyncio.to_thread(follower.read_new)
            except (KrillError, OSError) as error:
                on_problem(str(error))
                return
            await apply_all(self.state, events, on_change)
            await asyncio.sleep(POLL_SECONDS)


async def apply_all(state: RunState, events: Sequence[Event], on_change: Callable[[], None]) -> None:
    """Take events in, letting keys through between portions."""
    for start in range(0, len(events), APPLY_AT_ONCE):
        for event in events[start : start + APPLY_AT_ONCE]:
            state.apply(event)
        on_change()
        await asyncio.sleep(0)


class Bridge:
    """What every screen draws from: the state of the source in view, and the session if it is ours."""

    def __init__(self, source: Source, on_problem: Callable[[str], None]) -> None:
        self.source = source
        self._on_problem = on_problem
        self._dirty = True

    @property
    def state(self) -> RunState:
        return self.source.state

    @property
    def session(self) -> Session | None:
        """The live session when it is what is in view: only then do phases and edits work."""
        return self.source.session if isinstance(self.source, SessionSource) else None

    @property
    def replay(self) -> ReplaySource | None:
        from krill_tui.tui.replay import ReplaySource

        return self.source if isinstance(self.source, ReplaySource) else None

    @property
    def running(self) -> bool:
        """A phase is going on, here or in the process that is watched."""
        if session := self.session:
            return session.running is not None
        phase = self.state.phase
        return phase is not None and not phase.finished and not self.state.outcome

    def start(self) -> None:
        self._dirty = True
        self.source.start(self.touch, self._on_problem)

    async def stop(self) -> None:
        await self.source.stop()

    async def switch(self, source: Source) -> None:
        """Look at another run; the session, if there is one, goes on unseen."""
        await self.source.stop()
        self.source = source
        self.start()

    def touch(self) -> None:
        """Something changed: draw at the next beat."""
        self._dirty = True

    def take_dirty(self) -> bool:
        """Whether anything changed since the last call."""
        dirty, self._dirty = self._dirty, False
        return dirty
