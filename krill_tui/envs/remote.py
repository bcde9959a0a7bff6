"""Worlds behind a live server (backend `http`), in one of three protocols: Krill's own (`krill`), AgentGym's
(`agentgym`), and the pages of the unmodified WebShop site (`site`).
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from random import Random
from typing import Literal

import httpx

from krill_tui.envs.alfworld.expert import AlfworldExpert
from krill_tui.envs.base import Environment, Expert
from krill_tui.envs.clients.agentgym import HouseholdEnvironment, ShopEnvironment
from krill_tui.envs.clients.calls import CallSlots, ServerCalls
from krill_tui.envs.clients.krill import KrillEnvironment
from krill_tui.envs.clients.site import SiteEnvironment
from krill_tui.envs.gym_numbers import GAME_RANGES
from krill_tui.envs.webshop.expert import WebshopExpert
from krill_tui.errors import UsageError
from krill_tui.io.open_files import room_for_files
from krill_tui.trajectory import Task

Protocol = Literal["krill", "agentgym", "site"]

SPLITS = ("train", "evolve", "valid", "test", "valid_seen", "valid_unseen")
"""Names under which Krill's protocol asks for tasks; that they share no task is the server's promise."""
ANSWER_SECONDS = 60.0
"""A call may take this long, connecting included, where nothing else is known of the server."""
SLOW_ANSWER_SECONDS = 300.0
"""AgentGym's household server takes seconds to begin a game, half a minute on a busy machine."""
_SLOW = ("agentgym", "alfworld")
"""(protocol, world) whose server answers one call at a time, so that calls at once would only time out."""
FILES_BESIDE = 64
"""Files that are open beside the connections: of the run, of the model worker, of Python itself."""
CONNECT_RETRIES = 2
"""A step is never sent twice: the server may have played it before the connection broke."""

MOST_GAMES = 1_000_000

_CLIENTS: Mapping[tuple[str, str], Callable[[Task, ServerCalls], Environment]] = {
    ("krill", "alfworld"): KrillEnvironment,
    ("krill", "webshop"): KrillEnvironment,
    ("agentgym", "alfworld"): HouseholdEnvironment,
    ("agentgym", "webshop"): ShopEnvironment,
    ("site", "webshop"): SiteEnvironment,
}
"""(protocol, world) -> what plays it."""


class HttpSource:
    """Tasks of one live server. Krill's protocol asks for `<split>/<seed>/<number>`; the others number their games.

    `timeout` is in seconds, `max_calls` how many are asked for at once over all episodes; None is what suits the
    protocol. `game_ranges` replaces the numbers that the protocol's games have: split to its first and last number.
    `concurrency` is how many episodes will be played at once: where fewer files may be open, they share connections.

    Raises:
        UsageError: the address is none, the protocol does not know the world, or ranges overlap.
    """

    backend = "http"

    def __init__(
        self,
        url: str,
        *,
        env: str = "alfworld",
        protocol: Protocol = "krill",
        timeout: float | None = None,
        max_calls: int | None = None,
        game_ranges: Mapping[str, tuple[int, int]] | None = None,
        concurrency: int = 1,
        max_steps: int = 15,
    ) -> None:
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL:
            parsed = httpx.URL()
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise UsageError(
                f"'{url}' is no address of a server", hint="env.url should be like http://localhost:3000"
            )
        if (protocol, env) not in _CLIENTS:
            raise UsageError(
                f"the protocol '{protocol}' cannot play {env}",
                hint="env.protocol: krill or agentgym, and for webshop also site",
            )
        if game_ranges and protocol == "krill":
            raise UsageError(
                "env.game_ranges is of no use with env.protocol krill",
                hint="its games are asked for as <split>/<seed>/<number>; agentgym and site number theirs",
            )
        self.env = env
        self.url = url.rstrip("/")
        self.protocol: Protocol = protocol
        self._client = _CLIENTS[protocol, env]
        slow = (protocol, env) == _SLOW
        self._timeout = timeout or (SLOW_ANSWER_SECONDS if slow else ANSWER_SECONDS)
        self._ranges = _checked_ranges(game_ranges) if game_ranges else GAME_RANGES[env]
        self._max_steps = max_steps
        most = max_calls or (1 if slow else concurrency)
        room = room_for_files(concurrency + FILES_BESIDE) - FILES_BESIDE
        if room < 1:
            raise UsageError("too few files may be open to play on a server", hint="raise `ulimit -n`")
        self._kept = concurrency <= room
        """Whether each episode keeps its connection between two calls."""
        self._most = min(most, room) if min(most, room) < concurrency else None
        self._slots = CallSlots(self._most) if self._most else None
        # Loading the certificates takes longer than an episode of a local server: once for all of them.
        self._tls: ssl.SSLContext | bool = httpx.create_ssl_context() if parsed.scheme == "https" else False

    @property
    def settings(self) -> tuple[float, int | None]:
        """Seconds for an answer, and calls at once where that is fewer than episodes."""
        return self._timeout, self._most

    def splits(self) -> dict[str, int]:
        if self.protocol == "krill":
            return dict.fromkeys(SPLITS, -1)
        return {split: len(numbers) for split, numbers in self._ranges.items()}

    def tasks(self, split: str, count: int, *, seed: int = 0) -> Sequence[Task]:
        if split not in self.splits():
            raise UsageError(f"there is no split '{split}'", hint=f"choose one of {', '.join(self.splits())}")
        if self.protocol == "krill":
            return [self._task(split, f"{split}/{seed}/{number}") for number in range(count)]
        numbers = list(self._ranges[split])
        Random(f"{self.protocol}/{split}/{seed}").shuffle(numbers)
        return [self._task(split, str(number)) for number in numbers[:count]]

    def _task(self, split: str, ref: str) -> Task:
        kind = "http" if self.protocol == "krill" else f"http/{self.protocol}"
        return Task(id=f"{kind}/{ref}", env=self.env, split=split, ref=ref)

    def open(self, task: Task) -> Environment:
        if self.protocol != "krill" and not re.fullmatch(r"\d{1,9}", task.ref, re.ASCII):
            raise UsageError(f"'{task.id}' is no task of the protocol '{self.protocol}'")
        transport = httpx.AsyncHTTPTransport(verify=self._tls, retries=CONNECT_RETRIES)
        calls = ServerCalls(self.url, transport, self._timeout, self._slots, kept=self._kept)
        return self._client(task, calls)

    def expert(self, hints: Mapping[str, Sequence[str]] | None = None) -> Expert:
        return WebshopExpert(self._max_steps) if self.env == "webshop" else AlfworldExpert(hints)

    def content_hash(self) -> str:
        """Which games a server plays cannot be known: only where it was."""
        return f"live:{self.url}"


def _checked_ranges(ranges: Mapping[str, tuple[int, int]]) -> dict[str, range]:
    """Split -> numbers of its games; no game may lie in two splits, else what is learned from would be reported on."""
    numbers = {split: range(first, last + 1) for split, (first, last) in ranges.items()}
    for split, games in numbers.items():
        if not games or games.start < 0 or games.stop > MOST_GAMES:
            raise UsageError(
                f"env.game_ranges.{split}: [{games.start}, {games.stop - 1}] is no range of games",
                hint="the first number and the last one, e.g. [0, 499]",
            )
    order = sorted(numbers.items(), key=lambda item: item[1].start)
    for (split, games), (other, others) in pairwise(order):
        if others.start < games.stop:
            raise UsageError(f"env.game_ranges: {split} and {other} share game {others.start}")
    return numbers
