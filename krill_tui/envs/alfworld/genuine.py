"""Backend `textworld`: genuine games on the genuine engine, the package `alfworld`, in worker processes.

The engine makes some ten steps a second and holds the interpreter meanwhile, so it runs in processes of its
own (`genuine_worker`), as many as there are cores, each with its share of the live episodes. A process
ends with its last episode. One that dies fails its episodes and no others.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import os
from itertools import count
from pathlib import Path
from typing import Any

from krill_tui.envs.alfworld import text
from krill_tui.envs.alfworld.source import GamesSource
from krill_tui.envs.base import Environment, StepResult
from krill_tui.errors import EnvironmentFailure, UsageError
from krill_tui.io.children import child_command, child_environment
from krill_tui.trajectory import Task

PATIENCE = 300.0
"""Seconds that one answer may take, waiting behind the other episodes of the process included."""
_FAREWELL = 5.0
"""Seconds that a process may take to end."""
_LINE_LIMIT = 2**23
_WORKER = "krill_tui.envs.alfworld.genuine_worker"


class GenuineProcess:
    """One worker process; requests are answered one after the other."""

    def __init__(self) -> None:
        self.episodes = 0
        self.dead = ""
        """Why it answers no more; empty while it lives."""
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._numbers = count()

    @property
    def pid(self) -> int | None:
        """Of the process; None before the first call."""
        return self._process.pid if self._process else None

    async def call(self, **request: object) -> dict[str, Any]:
        """Send a request and return its answer; starts the process where there is none yet.

        Raises:
            EnvironmentFailure: the process is dead, too slow, or answered an error.
        """
        try:
            async with asyncio.timeout(PATIENCE), self._lock:
                answer = await self._exchange(request)
        except TimeoutError:
            self._bury(f"did not answer within {PATIENCE:.0f} s")
            raise EnvironmentFailure(self.dead) from None
        if "error" in answer:
            raise EnvironmentFailure(f"the genuine engine failed: {answer['error']}")
        return answer

    async def _exchange(self, request: dict[str, object]) -> dict[str, Any]:
        if self.dead:
            raise EnvironmentFailure(self.dead)
        if self._process is None:
            self._process = await _spawn()
        process, number = self._process, next(self._numbers)
        assert process.stdin is not None and process.stdout is not None
        try:
            process.stdin.write(json.dumps({"id": number, **request}).encode() + b"\n")
            await process.stdin.drain()
            while line := await process.stdout.readline():
                answer = json.loads(line)
                # Whoever waited for an earlier one was cancelled.
                if answer["id"] == number:
                    return answer
        except (ConnectionError, ValueError):
            pass  # ended, or answered with what is no line of JSON
        self._bury("died")
        raise EnvironmentFailure(self.dead)

    def _bury(self, how: str) -> None:
        self.dead = self.dead or f"a process of the genuine engine {how}"
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def end(self) -> None:
        """End the process, and wait until it is gone."""
        process = self._process
        if process is None:
            return
        assert process.stdin is not None
        process.stdin.close()
        try:
            async with asyncio.timeout(_FAREWELL):
                await process.wait()
        except TimeoutError:
            self._bury("would not end")
            await process.wait()


async def _spawn() -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *child_command(_WORKER),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        limit=_LINE_LIMIT,
        env=child_environment(),
        start_new_session=True,
    )


class ProcessPool:
    """Shares processes out: an episode goes to the one with the fewest, or to a new one."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.processes: list[GenuineProcess] = []

    def join(self) -> GenuineProcess:
        """A process for one more episode."""
        self.processes = [process for process in self.processes if not process.dead]
        chosen = min(self.processes, key=lambda process: process.episodes, default=None)
        if chosen is None or (chosen.episodes and len(self.processes) < self.most):
            chosen = GenuineProcess()
            self.processes.append(chosen)
        chosen.episodes += 1
        return chosen

    async def leave(self, process: GenuineProcess) -> None:
        """One episode less; the process ends with its last."""
        process.episodes -= 1
        if process.episodes == 0:
            if process in self.processes:
                self.processes.remove(process)
            await process.end()


class GenuineEnvironment:
    """One episode on the genuine engine."""

    def __init__(self, task: Task, path: Path, pool: ProcessPool, number: int) -> None:
        self.task = task
        self._path = path
        self._pool = pool
        self._number = number
        self._process: GenuineProcess | None = None
        self._last: StepResult | None = None

    async def reset(self) -> StepResult:
        if self._process is None:
            self._process = self._pool.join()
        result = await self._ask(op="reset", game=str(self._path))
        description = text.task_sentence(result.observation)
        goal = text.parse_task(description)
        category = self.task.category or (goal.category if goal else "")
        self.task = self.task.model_copy(update={"description": description, "category": category})
        return result

    async def step(self, action: str) -> StepResult:
        if self._last is None:
            raise EnvironmentFailure("the game was not reset before its first step")
        if self._last.done:
            return self._last
        return await self._ask(op="step", action=action)

    async def _ask(self, **request: object) -> StepResult:
        assert self._process is not None
        answer = await self._process.call(episode=self._number, **request)
        self._last = StepResult(
            answer["observation"],
            tuple(answer["admissible"]),
            reward=answer["reward"],
            done=answer["done"],
            won=answer["won"],
        )
        return self._last

    async def close(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            # With its last episode the whole process ends; no need to tidy up in it.
            if process.episodes > 1 and not process.dead:
                with contextlib.suppress(EnvironmentFailure, TimeoutError):
                    async with asyncio.timeout(_FAREWELL):
                        await process.call(op="close", episode=self._number)
        finally:
            await self._pool.leave(process)


class TextworldSource(GamesSource):
    """Genuine game files, played by the package `alfworld` in at most `processes` processes (0: one a core).

    Raises:
        UsageError: the package is not installed, or there are no games.
    """

    backend = "textworld"

    def __init__(self, data_dir: Path, processes: int = 0, *, all_games: bool = False) -> None:
        for package in ("textworld", "alfworld"):
            if importlib.util.find_spec(package) is None:
                raise UsageError(
                    f"the textworld backend needs the package {package}, which is not installed",
                    hint="pip install 'krill-tui[alfworld]', or --backend games plays the same files",
                )
        super().__init__(data_dir, all_games=all_games)
        self.pool = ProcessPool(processes or os.cpu_count() or 1)
        self._numbers = count()

    def open(self, task: Task) -> Environment:
        return GenuineEnvironment(task, self.path_of(task), self.pool, next(self._numbers))
