"""Publishes events: numbers them, writes them down, hands them to whoever listens."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from krill_tui.events.journal import Journal
from krill_tui.events.schema import BaseEvent, Event

E = TypeVar("E", bound=BaseEvent)
Listener = Callable[[Event], None]


class EventBus:
    """One per run, used from the engine's event loop only.

    The journal comes first: what a listener sees is already written. A listener must be quick and must not
    raise; one that does is dropped and named in `broken`.
    """

    def __init__(self, journal: Journal | None = None, *, clock: Callable[[], float] = time.time) -> None:
        self._journal = journal
        self._clock = clock
        self._seq = journal.last_seq if journal else 0
        self._listeners: list[Listener] = []
        self.broken: list[str] = []

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with every later event; returns how to stop that."""
        self._listeners.append(listener)

        def unsubscribe() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return unsubscribe

    def emit(self, event: E) -> E:
        """Number, time, write and hand out one event; returns it as it was written."""
        self._seq += 1
        stamped = event.model_copy(update={"seq": self._seq, "time": self._clock()})
        if self._journal:
            self._journal.append(stamped)
        for listener in tuple(self._listeners):
            try:
                listener(stamped)  # pyright: ignore[reportArgumentType]
            except Exception as error:  # a broken view must not break the run
                self._listeners.remove(listener)
                self.broken.append(f"{type(error).__name__}: {error}")
        return stamped
