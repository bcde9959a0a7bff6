"""A finished run played again from its journal, frame by frame."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import fields, replace
from pathlib import Path

from krill_tui.engine.state import RunState
from krill_tui.errors import KrillError
from krill_tui.events.journal import read_journal
from krill_tui.events.schema import Event

SNAPSHOT_EVERY = 500
SPEEDS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Times real time."""
LONGEST_GAP = 1.0
"""Seconds a pause of the run takes at most when it is played."""
TICK = 0.1


def copy_state(state: RunState) -> RunState:
    """A state that can go on apart from `state`; what no event changes any more is shared."""
    copied = replace(state, **{f.name: copy(getattr(state, f.name)) for f in fields(state)})
    copied.live = {key: replace(view, steps=list(view.steps)) for key, view in state.live.items()}
    copied.curves = {name: list(points) for name, points in state.curves.items()}
    copied.phases = [replace(phase) for phase in state.phases]
    copied.phase = copied.phases[-1] if copied.phases else None
    return copied


class ReplaySource:
    """Holds all events of a run and the state after the first `position` of them."""

    label = "replay"

    def __init__(
        self, path: Path | None = None, *, events: Sequence[Event] = (), playing: bool = True
    ) -> None:
        """Play the run in the folder `path`, or `events` directly."""
        self.path = path
        self.state = RunState(run=path.name if path else "")
        self.position = 0
        self.playing = playing
        self.speed = 8
        self.events: Sequence[Event] = events
        self._snapshots: list[RunState] = [RunState(run=self.state.run)]
        self._now = events[0].time if events else 0.0
        self._on_change: Callable[[], None] = lambda: None
        self._task: asyncio.Task[None] | None = None

    def start(self, on_change: Callable[[], None], on_problem: Callable[[str], None]) -> None:
        self._on_change = on_change
        self._task = asyncio.create_task(self._play(on_problem), name="replay")

    async def stop(self) -> None:
        if self._task:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    @property
    def at_end(self) -> bool:
        return self.position >= len(self.events)

    def toggle(self) -> None:
        """Play or pause; at the end, play from the start."""
        if self.at_end and not self.playing:
            self.seek(0)
        self.playing = not self.playing
        self._on_change()

    def change_speed(self, steps: int) -> None:
        """To a neighbour in `SPEEDS`."""
        index = SPEEDS.index(self.speed) + steps
        self.speed = SPEEDS[min(max(index, 0), len(SPEEDS) - 1)]
        self._on_change()

    def move(self, events: int) -> None:
        """Pause, and go some events on or back."""
        self.playing = False
        self.seek(self.position + events)

    def seek(self, position: int) -> None:
        """Show the state after the first `position` events."""
        position = min(max(position, 0), len(self.events))
        nearest = min(position // SNAPSHOT_EVERY, len(self._snapshots) - 1)
        if position < self.position or nearest * SNAPSHOT_EVERY > self.position:
            self.state = copy_state(self._snapshots[nearest])
            self.position = nearest * SNAPSHOT_EVERY
        self._apply_until(position)
        self._now = self.state.time
        self._on_change()

    def advance(self, seconds: float) -> None:
        """Play `seconds` of the watcher's time, at `speed`; long waits of the run are cut short."""
        self._now += seconds * self.speed
        position = self.position
        while position < len(self.events) and self.events[position].time <= self._now:
            position += 1
        if position > self.position:
            self._apply_until(position)
            self._on_change()
        if self.at_end:
            self.playing = False
            self._on_change()
        else:
            self._now = max(self._now, self.events[self.position].time - LONGEST_GAP * self.speed)

    def _apply_until(self, position: int) -> None:
        for event in self.events[self.position : position]:
            self.state.apply(event)
            self.position += 1
            if self.position == len(self._snapshots) * SNAPSHOT_EVERY:
                self._snapshots.append(copy_state(self.state))

    async def _play(self, on_problem: Callable[[str], None]) -> None:
        if self.path and not self.events:
            try:
                self.events = await asyncio.to_thread(
                    lambda path: list(read_journal(path)), self.path / "events.jsonl"
                )
            except KrillError as error:
                on_problem(str(error))
                return
            self._now = self.events[0].time if self.events else 0.0
            self._on_change()
        while True:
            if self.playing:
                self.advance(TICK)
            await asyncio.sleep(TICK)
