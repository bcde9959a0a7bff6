"""An outage: while nobody answers, new episodes wait, one of them tries again, and none is written down as lost."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from krill_tui.errors import ServiceError
from krill_tui.events import schema as ev

TRIES = 4
"""An episode that broke this often, while others went on, is broken itself."""
FEW = 3
"""So many episodes without an answer may be to blame themselves; more are an outage."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an outage is waited for, in seconds."""

    first: float = 1.0
    """Before the first new try; each further one waits twice as long."""
    longest: float = 60.0
    total: float = 600.0
    """Without any answer, after which the phase fails."""
    unknown: float = 600.0
    """The same where nobody has ever answered: a wrong address or port is not going to."""


class Outage:
    """Tells an outage from broken episodes, and holds new episodes while it lasts.

    A step of any episode is the sign of life: world and policy answered. `works` plays a first turn of an episode that
    went well before; None where there is none.
    """

    def __init__(
        self,
        patience: Patience,
        emit: Callable[[ev.BaseEvent], object],
        works: Callable[[], Awaitable[bool] | None],
    ) -> None:
        self._patience = patience
        self._emit = emit
        self._works = works
        self._fault: ServiceError | None = None
        """Why nobody answered last; None while somebody does."""
        self._silent: set[str] = set()
        """Episodes that got no answer since the last sign of life."""
        self._blamed: Counter[str] = Counter()
        self._prober: object | None = None
        """Whose turn it is to try again; nobody else does."""
        self._began = self._delay = 0.0
        self._said = False
        self._signs = 0
        self._own: dict[str, int] = {}
        """Of each live episode: how many signs of life there had been at its own last one."""
        self._change = asyncio.Event()

    def started(self, episode: str) -> None:
        self._own[episode] = self._signs

    def stepped(self, episode: str) -> None:
        """World and policy answered: whoever waited goes on."""
        self._signs += 1
        self._own[episode] = self._signs
        if self._fault is not None:
            self._end()
        self._silent.clear()

    def ended(self, episode: str) -> None:
        """It came to an end, or broke by itself: somebody answered."""
        self._own.pop(episode, None)
        if self._fault is not None:
            self._end()

    def broke(self, episode: str, fault: ServiceError, *, steps: int, turn: object | None) -> bool:
        """Whether the episode is to be played again: nobody answered, and that is not its own fault.

        `turn` is what `admitted` gave for it.
        """
        others = self._signs > self._own.pop(episode, self._signs)
        if others or steps:
            self._blamed[episode] += 1
        if not others:
            self._silent.add(episode)
            if self._fault is None:
                self._began, self._delay = asyncio.get_running_loop().time(), self._patience.first
            self._fault = fault
        if turn is not None and turn is self._prober:
            self._prober = None
        self._wake()
        return self._blamed[episode] < TRIES

    async def admitted(self) -> object | None:
        """Until somebody answers (None), or it is this caller's turn to try (a token for that turn).

        Raises:
            ServiceError: nobody answered for too long.
        """
        while self._fault is not None and self._prober is not None:
            await self._change.wait()
        if self._fault is None:
            return None
        self._prober = turn = object()
        if len(self._silent) < FEW and (check := self._works()) is not None and await check:
            self._blamed.update(self._silent)
            self._silent.clear()
            self._end()
            return None
        await self._back_off(self._fault)
        return turn

    async def _back_off(self, fault: ServiceError) -> None:
        clock = asyncio.get_running_loop().time
        patience = self._patience
        total = patience.total if self._signs else min(patience.total, patience.unknown)
        left = self._began + total - clock()
        if left <= 0:
            raise type(fault)(
                f"no answer for {clock() - self._began:.0f} s, given up: {fault.message}",
                hint="what is finished is kept; the same command with --run goes on from there",
                unreachable=True,
            )
        wait = min(self._delay, left)
        self._delay = min(2 * self._delay, self._patience.longest)
        self._said = True
        self._emit(
            ev.Noted(level="warning", message=f"no answer ({fault.message}); trying again in {wait:.3g} s")
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait):
                while self._fault is not None:
                    await self._change.wait()

    def _end(self) -> None:
        seconds = asyncio.get_running_loop().time() - self._began
        self._fault = self._prober = None
        if self._said:
            self._said = False
            self._emit(ev.Noted(message=f"answered again after {seconds:.0f} s: going on"))
        self._wake()

    def _wake(self) -> None:
        self._change.set()
        self._change = asyncio.Event()
