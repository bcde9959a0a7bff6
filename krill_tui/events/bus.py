"""Publishes events: numbers them, writes them down, hands them to whoever listens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from krill_tui.events.journal import Journal
from krill_tui.events.schema import BaseEvent, Event, Noted
from krill_tui.io.text import one_line

E = TypeVar("E", bound=BaseEvent)
Listener = Callable[[Event], None]


class EventBus:
    """One per run, used from the engine's event loop only.

    The journal comes first: what a listener sees is already written. A listener must be quick and must not
    raise; one that does is dropped and named in `broken`, and the others are told by an event. Only what stops the
    engine itself passes through.
    """

    def __init__(self, journal: Journal | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self._journal = journal
        self._clock = clock
        self._seq = journal.last_seq if journal else 0
        self._listeners: list[Listener] = []
        self.broken: list[str] = []

    def sync(self) -> None:
        """Wait until the disk holds every event.

        Raises:
            StorageError: the disk refused.
        """
        if self._journal:
            self._journal.sync()

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with every later event; returns how to stop that."""
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    def emit(self, event: E) -> E:
        """Number, time, write and hand out one event; returns it as it was written."""
        stamped = event.model_copy(update={"seq": self._seq + 1, "time": self._clock()})
        if self._journal:
            self._journal.append(stamped)
        self._seq += 1
        broken: list[str] = []
        for listener in tuple(self._listeners):
            try:
                listener(stamped)  # pyright: ignore[reportArgumentType]
            except (KeyboardInterrupt, GeneratorExit, asyncio.CancelledError):
                raise
            except (
                BaseException
            ) as error:  # a broken view must not break the run, not even one that wants to exit
                if listener in self._listeners:
                    self._listeners.remove(listener)
                broken.append(f"{type(error).__name__}: {error}")
        self.broken += broken
        for message in broken:
            self.emit(
                Noted(level="warning", message=f"a view failed and shows no more ({one_line(message)})")
            )
        return stamped
