"""Pause, resume and single-step: every turn of every episode passes here before the policy is asked."""

from __future__ import annotations

import asyncio
from collections import deque


class Gate:
    """Open unless paused. While paused, `step` lets the turn that has waited longest through."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._open.set()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._arrived = asyncio.Event()

    @property
    def paused(self) -> bool:
        return not self._open.is_set()

    def pause(self) -> None:
        self._open.clear()

    def resume(self) -> None:
        self._open.set()
        while self._waiting:
            self._release(self._waiting.popleft())

    def step(self) -> bool:
        """Let one waiting turn through; False when none waits."""
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                self._release(future)
                return True
        return False

    async def wait(self) -> None:
        """Let others run, then return while open, else when released.

        Programs as policies and worlds in process never wait for anything: without a turn of the event loop here
        nobody could pause, cancel or draw.
        """
        await asyncio.sleep(0)
        if self._open.is_set():
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._arrived.set()
        await future

    async def someone_waits(self) -> None:
        """Until a turn is held here."""
        while not any(not future.done() for future in self._waiting):
            self._arrived.clear()
            await self._arrived.wait()

    @staticmethod
    def _release(future: asyncio.Future[None]) -> None:
        if not future.done():
            future.set_result(None)
