"""The server itself: routes, limits and errors as HTTP. Needs the extra `serve`; imported when it is served."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from krill_tui.envs.serve.answers import error_answer, json_answer
from krill_tui.envs.serve.connections import (
    ACCEPTED_AT_ONCE,
    FILES_BESIDE,
    LEAST_CONNECTIONS,
    LONGEST_HEADERS,
    MOST_CONNECTIONS,
    WAITING_CALLERS,
    FewRecords,
    Limits,
    limited_protocol,
)
from krill_tui.envs.serve.guard import Guard
from krill_tui.envs.serve.protocols import HouseholdError, Service
from krill_tui.errors import EnvironmentFailure, KrillError
from krill_tui.io.open_files import room_for_files

LONGEST_REQUEST = 128 * 1024
"""Bytes."""
GRACE_SECONDS = 5
"""Calls in progress may take this long once the server was told to stop."""

_log = logging.getLogger(__name__)
_few = FewRecords()
_log.addFilter(_few)

Endpoint = Callable[[Request], Awaitable[object]]


class TooLong(KrillError):
    """A request that is longer than LONGEST_REQUEST."""


@dataclass(frozen=True, slots=True)
class Access:
    """Under which names the server may be called, beside loopback's."""

    names: tuple[str, ...] = ()
    any_address: bool = False
    """It listens beyond loopback: any address in numbers will do."""


def create_app(service: Service, access: Access | None = None) -> ASGIApp:
    """All routes of both protocols. Every answer is JSON; one that is an error is `{"error": line}`."""
    access = access or Access()

    async def greet(request: Request) -> object:
        return service.greet()

    async def create(request: Request) -> object:
        return await service.create()

    async def reset(request: Request) -> object:
        return await service.reset(await _body(request))

    async def step(request: Request) -> object:
        return await service.step(await _body(request))

    async def close(request: Request) -> object:
        return await service.close(await _body(request))

    def read(answer: Callable[..., Awaitable[object]]) -> Endpoint:
        return lambda request: answer(request.query_params)

    routes = [
        Route("/", _answering(greet), methods=["GET"]),
        Route("/create", _answering(create), methods=["POST"]),
        Route("/reset", _answering(reset), methods=["POST"]),
        Route("/step", _answering(step), methods=["POST"]),
        Route("/close", _answering(close), methods=["POST"]),
        Route("/available_actions", _answering(read(service.available_actions)), methods=["GET"]),
        Route("/observation", _answering(read(service.observation)), methods=["GET"]),
        Route("/instruction_text", _answering(read(service.instruction_text)), methods=["GET"]),
        Route("/detail", _answering(read(service.detail)), methods=["GET"]),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        await service.sessions.close()

    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: _no_such_call})
    app.router.redirect_slashes = False
    return Guard(app, access.names, any_address=access.any_address)


def create_server(
    service: Service,
    on_ready: Callable[[], None],
    *,
    access: Access | None = None,
    limits: Limits | None = None,
) -> uvicorn.Server:
    """A server that leaves signals alone and stops once `should_exit` is set; `on_ready` is called when it answers."""
    limits = limits or Limits()
    config = uvicorn.Config(
        create_app(service, access),
        http=limited_protocol(limits),
        h11_max_incomplete_event_size=LONGEST_HEADERS,
        timeout_keep_alive=int(limits.idle_seconds) + 1,
        backlog=ACCEPTED_AT_ONCE,
        log_level="warning",
        access_log=False,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    logging.getLogger("uvicorn.error").addFilter(_few)
    return _Server(config, on_ready)


async def serve(
    service: Service,
    listening: socket.socket,
    *,
    on_ready: Callable[[], None] = lambda: None,
    access: Access | None = None,
) -> None:
    """Answer calls on the socket until SIGINT or SIGTERM; a second signal does not wait for calls in progress."""
    room = room_for_files(MOST_CONNECTIONS + FILES_BESIDE) - FILES_BESIDE
    limits = Limits(most=max(LEAST_CONNECTIONS, min(MOST_CONNECTIONS, room)))
    server = create_server(service, on_ready, access=access, limits=limits)
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_logged_in_one_line)
    signals = (signal.SIGINT, signal.SIGTERM)
    for number in signals:
        loop.add_signal_handler(number, server.handle_exit, number, None)
    try:
        await server.serve(sockets=[listening])
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


class _Server(uvicorn.Server):
    """Leaves signals to its caller: the original raises them again after it stopped."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listening in sockets or ():
            listening.listen(WAITING_CALLERS)  # uvicorn makes it as few as are accepted at once
        if self.started:
            self._on_ready()


def _logged_in_one_line(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What goes wrong outside of a call (a connection that cannot be accepted) is a line, not a traceback."""
    error = context.get("exception")
    _log.error("%s: %s", context.get("message"), error if error is not None else "no more is known")


async def _body(request: Request) -> bytes:
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > LONGEST_REQUEST:
            raise TooLong(f"the request is longer than {LONGEST_REQUEST} bytes")
    return bytes(data)


def _answering(endpoint: Endpoint) -> Callable[[Request], Awaitable[Response]]:
    """The boundary of one call: whatever goes wrong is a status and one line."""

    async def answer(request: Request) -> Response:
        try:
            return json_answer(200, await endpoint(request))
        except HouseholdError as error:
            return json_answer(200, {"error": str(error)})
        except TooLong as error:
            return error_answer(413, str(error))
        except EnvironmentFailure as error:
            return error_answer(500, str(error))
        except KrillError as error:
            return error_answer(400, str(error))
        except ClientDisconnect:
            return error_answer(400, "the caller went away")
        except Exception as error:  # one broken call must not end in a traceback, nor the server with it
            _log.error("%s %s: %s: %s", request.method, request.url.path, type(error).__name__, error)
            return error_answer(500, f"something went wrong inside the server: {type(error).__name__}")

    return answer


async def _no_such_call(request: Request, error: Exception) -> Response:
    status = error.status_code if isinstance(error, HTTPException) else 404
    return error_answer(status, f"there is no call {request.method} {request.url.path[:200]}")
