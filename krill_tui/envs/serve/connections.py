"""Limits of connections: how many, how long one may be idle or take over a request, and how often faults are logged.

uvicorn closes an idle connection only after its first answer, and limits neither the time of headers nor what is open.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_CONNECTIONS = 2048
LEAST_CONNECTIONS = 16
FILES_BESIDE = 192
"""Open files that are kept for other things than connections that are counted: games, and those just being accepted."""
ACCEPTED_AT_ONCE = 32
"""asyncio accepts so many connections before it looks at any of them, whether files are left for them or not."""
WAITING_CALLERS = 2048
"""Callers that the system lets wait to be accepted."""
LONGEST_HEADERS = 16 * 1024
"""Bytes."""
REQUEST_SECONDS = 20.0
"""From the connection, or from the first byte of a further request, to the last byte of the request."""
IDLE_SECONDS = 60.0
"""Between two requests of one connection."""
CALL_SECONDS = 600.0
"""From the request to the last byte of the answer, which the caller has to take."""


@dataclass(slots=True)
class Limits:
    """Of one server; lives as long as it does."""

    most: int = MOST_CONNECTIONS
    request_seconds: float = REQUEST_SECONDS
    idle_seconds: float = IDLE_SECONDS
    call_seconds: float = CALL_SECONDS
    silent: dict[LimitedProtocol, None] = field(default_factory=dict)
    """Connections that owe a whole request, the oldest first."""
    idle: dict[LimitedProtocol, None] = field(default_factory=dict)
    """Connections between two requests, the one idle for longest first."""

    def make_room(self, newest: LimitedProtocol, count: int) -> None:
        """Where there are too many connections, drop the oldest silent one, else the idlest, else the newest."""
        if count <= self.most:
            return
        candidates = (next(iter(queue), newest) for queue in (self.silent, self.idle))
        victim = next((one for one in candidates if one is not newest), newest)
        victim.drop()


class LimitedProtocol(H11Protocol):
    """One connection. `limits` is set by a subclass for each server (`limited_protocol`)."""

    limits: Limits
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.limits.silent[self] = None
        self._limit(self.limits.request_seconds)
        self.limits.make_room(self, len(self.connections))

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._is_playing():
            self._plays()
        elif self in self.limits.idle:  # a further request begins
            del self.limits.idle[self]
            self.limits.silent[self] = None
            self._limit(self.limits.request_seconds)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._is_playing():  # the next request had already come
            self._plays()
        else:
            self.limits.silent.pop(self, None)
            self.limits.idle[self] = None
            self._limit(self.limits.idle_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget()
        super().connection_lost(exc)

    def drop(self) -> None:
        """Cut the connection off, whatever is still to be sent."""
        self._forget()
        self.connections.discard(self)
        if self.transport is not None:
            self.transport.abort()

    def _is_playing(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body

    def _plays(self) -> None:
        if self in self.limits.silent or self in self.limits.idle or self._timer is None:
            self._forget()
            self._limit(self.limits.call_seconds)

    def _limit(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self.loop.call_later(seconds, self.drop)

    def _forget(self) -> None:
        self.limits.silent.pop(self, None)
        self.limits.idle.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def limited_protocol(limits: Limits) -> type[LimitedProtocol]:
    """The protocol of one server, for uvicorn, which makes one object a connection."""
    return type("LimitedProtocol", (LimitedProtocol,), {"limits": limits})


class FewRecords(logging.Filter):
    """Lets `most` records through every `seconds`; the last of them says that there are more."""

    def __init__(self, most: int = 20, seconds: float = 60.0) -> None:
        super().__init__()
        self._most, self._seconds = most, seconds
        self._began = -seconds
        self._seen = 0

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        if now - self._began >= self._seconds:
            self._began, self._seen = now, 0
        self._seen += 1
        if self._seen == self._most:
            record.msg = f"{record.getMessage()} (further lines of this minute are left out)"
            record.args = ()
        return self._seen <= self._most
