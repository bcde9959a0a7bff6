"""Worlds behind a live server (backend `http`), in one of three protocols: Krill's own (`krill`), AgentGym's
(`agentgym`), and the pages of the unmodified WebShop site (`site`).
"""

from __future__ import annotations

import re
import ssl
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Literal

import httpx

from krill_tui.envs.alfworld.expert import AlfworldExpert
from krill_tui.envs.base import Environment, Expert
from krill_tui.envs.clients.agentgym import HouseholdEnvironment, ShopEnvironment
from krill_tui.envs.clients.calls import ServerCalls
from krill_tui.envs.clients.krill import KrillEnvironment
from krill_tui.envs.clients.site import SiteEnvironment
from krill_tui.envs.gym_numbers import GAME_RANGES
from krill_tui.envs.webshop.expert import WebshopExpert
from krill_tui.errors import UsageError
from krill_tui.trajectory import Task

Protocol = Literal["krill", "agentgym", "site"]

SPLITS = ("train", "evolve", "valid", "test", "valid_seen", "valid_unseen")
"""Names under which Krill's protocol asks for tasks; that they share no task is the server's promise."""
ANSWER_SECONDS = 60.0
"""A call may take this long, connecting included."""
CONNECT_RETRIES = 2
"""A step is never sent twice: the server may have played it before the connection broke."""

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

    Raises:
        UsageError: the address is none, or the protocol does not know the world.
    """

    backend = "http"

    def __init__(
        self,
        url: str,
        *,
        env: str = "alfworld",
        protocol: Protocol = "krill",
        timeout: float = ANSWER_SECONDS,
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
                f"the protocol '{protocol}' cannot play {env}", hint="env.protocol: krill or agentgym"
            )
        self.env = env
        self.url = url.rstrip("/")
        self.protocol: Protocol = protocol
        self._client = _CLIENTS[protocol, env]
        self._timeout = timeout
        self._max_steps = max_steps
        # Loading the certificates takes longer than an episode of a local server: once for all of them.
        self._tls: ssl.SSLContext | bool = httpx.create_ssl_context() if parsed.scheme == "https" else False

    def splits(self) -> dict[str, int]:
        if self.protocol == "krill":
            return dict.fromkeys(SPLITS, -1)
        return {split: len(numbers) for split, numbers in GAME_RANGES[self.env].items()}

    def tasks(self, split: str, count: int, *, seed: int = 0) -> Sequence[Task]:
        if split not in self.splits():
            raise UsageError(f"there is no split '{split}'", hint=f"choose one of {', '.join(self.splits())}")
        if self.protocol == "krill":
            return [self._task(split, f"{split}/{seed}/{number}") for number in range(count)]
        numbers = list(GAME_RANGES[self.env][split])
        Random(f"{self.protocol}/{split}/{seed}").shuffle(numbers)
        return [self._task(split, str(number)) for number in numbers[:count]]

    def _task(self, split: str, ref: str) -> Task:
        kind = "http" if self.protocol == "krill" else f"http/{self.protocol}"
        return Task(id=f"{kind}/{ref}", env=self.env, split=split, ref=ref)

    def open(self, task: Task) -> Environment:
        if self.protocol != "krill" and not re.fullmatch(r"\d{1,9}", task.ref, re.ASCII):
            raise UsageError(f"'{task.id}' is no task of the protocol '{self.protocol}'")
        transport = httpx.AsyncHTTPTransport(verify=self._tls, retries=CONNECT_RETRIES)
        return self._client(task, ServerCalls(self.url, transport, self._timeout))

    def expert(self, hints: Mapping[str, Sequence[str]] | None = None) -> Expert:
        return WebshopExpert(self._max_steps) if self.env == "webshop" else AlfworldExpert(hints)

    def content_hash(self) -> str:
        """Which games a server plays cannot be known: only where it was."""
        return f"live:{self.url}"
