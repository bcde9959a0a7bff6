"""`krill serve-env`: a world for other programs, over HTTP."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from krill_tui.cli.options import Options, resolve_config
from krill_tui.errors import UsageError
from krill_tui.io.streams import say, show

_PORTS = {"alfworld": 3000, "webshop": 3001}


def serve_env(
    options: Options,
    world: Annotated[str, typer.Argument(help="alfworld or webshop.")],
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65535, help="Default: 3000 (alfworld), 3001 (webshop); 0: any."),
    ] = None,
    host: Annotated[
        str, typer.Option("--host", help="Address to listen on; others than loopback let anybody play.")
    ] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", help="Another name it may be called by, as a proxy has. Repeatable."),
    ] = None,
    idle_minutes: Annotated[
        float, typer.Option("--idle-minutes", min=0.01, help="Sessions idle for so long are dropped.")
    ] = 30.0,
) -> None:
    """Serve a world to other programs: Krill's protocol and AgentGym's, many sessions at once."""
    if world not in _PORTS:
        raise UsageError(f"there is no world '{world}'", hint=f"choose {' or '.join(_PORTS)}")
    if options.env not in (None, world):
        raise UsageError(f"serve-env {world} contradicts --env {options.env}")
    if options.mock is False or options.backend == "http":
        raise UsageError(
            "a live server cannot be served again", hint="use --backend builtin, games or textworld"
        )
    config = resolve_config(options, {"env": {"name": world}})
    try:
        from krill_tui.envs.serve.app import serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise UsageError(
            f"krill serve-env needs {error.name}, which is not installed",
            hint="pip install 'krill-tui[serve]'",
        ) from None
    from krill_tui.engine.build import build_source
    from krill_tui.envs.base import notices_of
    from krill_tui.envs.serve.app import Access
    from krill_tui.envs.serve.protocols import Service

    source = build_source(config)
    for notice in notices_of(source):
        say(notice)
    source.open(source.tasks(next(iter(source.splits())), 1)[0])  # draws or reads it before anybody waits
    with _listen(host, port if port is not None else _PORTS[world]) as listening:
        address = _address(listening)
        beyond = not _is_loopback(listening)
        names = (host, *((socket.gethostname(),) if beyond else ()), *(allow_host or ()))
        if beyond:
            say(
                f"warning: {address} is not loopback: whoever reaches it can play; there is no password and no "
                "encryption"
            )

        access = Access(names, any_address=beyond)

        def ready() -> None:
            show(f"serving {world} ({source.backend}) on {address}; ctrl-c stops")
            sys.stdout.flush()

        asyncio.run(
            serve(Service(source, idle_seconds=60 * idle_minutes), listening, on_ready=ready, access=access)
        )
    show("stopped")


COMMANDS: dict[str, Callable[..., None]] = {"serve-env": serve_env}


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host}:{port}: {(error.strerror or str(error)).lower()}",
            hint="choose another --port or --host",
        ) from None


def _is_loopback(listening: socket.socket) -> bool:
    return ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
