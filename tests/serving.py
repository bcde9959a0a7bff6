"""A real server of ours on loopback, in the test's own event loop, and play by a fixed script."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from krill_tui.envs.base import Environment, StepResult, TaskSource
from krill_tui.envs.serve.app import Access, create_server
from krill_tui.envs.serve.connections import Limits
from krill_tui.envs.serve.protocols import Service


@asynccontextmanager
async def served(
    source: TaskSource,
    service: Service | None = None,
    *,
    access: Access | None = None,
    limits: Limits | None = None,
) -> AsyncIterator[str]:
    """The address at which `source` is served."""
    ready = asyncio.Event()
    server = create_server(service or Service(source), ready.set, access=access, limits=limits)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        running = asyncio.create_task(server.serve(sockets=[listening]))
        await ready.wait()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            await running


async def played(
    source: TaskSource, environment: Environment, extra: tuple[str, ...], steps: int
) -> list[StepResult]:
    """All results of an episode: the `extra` moves, the expert's to its end, and one more."""
    expert = source.expert()
    results = [await environment.reset()]
    action = expert.act(results[0])[1]
    for move in extra:
        results.append(await environment.step(move))
    for _ in range(steps):
        results.append(await environment.step(action))
        if results[-1].done:
            break
        action = expert.act(results[-1])[1]
    results.append(await environment.step("look"))
    await environment.close()
    return results


def told(result: StepResult) -> tuple[object, ...]:
    """All that an agent or a trainer gets to see of a result."""
    return result.observation, result.admissible, result.reward, result.done, result.won
