"""What the clients share: the life of one remote episode, and how a task is read from what a server says."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from krill_tui.envs.alfworld import text
from krill_tui.envs.base import StepResult
from krill_tui.envs.clients.calls import ServerCalls, ServerRefused
from krill_tui.envs.limits import LONGEST_DESCRIPTION, SERVER, admitted, admitted_task
from krill_tui.envs.webshop.reading import read_page
from krill_tui.envs.webshop.session import parse_action
from krill_tui.errors import EnvironmentFailure
from krill_tui.trajectory import Task

WON_REWARD = 1.0
"""Total reward from which an episode counts as won, where the server does not say so itself."""


class RemoteEnvironment:
    """One episode on a server; a protocol says how it begins and goes on."""

    def __init__(self, task: Task, calls: ServerCalls) -> None:
        self.task = task
        self._calls = calls
        self._last: StepResult | None = None

    async def reset(self) -> StepResult:
        begun = await self._begin()
        self.task = admitted_task(self.task)
        self._last = self._admitted(begun)
        return self._last

    async def step(self, action: str) -> StepResult:
        if self._last is None:
            raise EnvironmentFailure(f"{self._calls.url}: step before reset")
        if not self._last.done:
            sendable = action.encode(errors="replace").decode()
            self._last = self._admitted(await self._go_on(sendable, self._last))
        return self._last

    async def close(self) -> None:
        await self._calls.close()

    def accepts(self, action: str) -> bool:
        """Whether a shop would act on this unlisted text: any search, and clicks however they are written."""
        if self.task.env != "webshop" or self._last is None or self._last.done:
            return False
        name, argument = parse_action(action)
        listed = argument != "search" and f"click[{argument}]" in self._last.admissible
        return name == "search" or (name == "click" and listed)

    def _admitted(self, result: StepResult) -> StepResult:
        try:
            return admitted(result, SERVER)
        except EnvironmentFailure as error:
            raise EnvironmentFailure(f"{self._calls.url}: {error}") from None

    @contextlib.contextmanager
    def _asking_for_game(self) -> Iterator[None]:
        """An error while a numbered game is begun says which game, and that the server may not have it."""
        try:
            yield
        except ServerRefused as error:
            if error.unreachable or error.permanent or error.status == 404:
                raise
            hint = f"game {self.task.ref}: where a server has fewer games, env.game_ranges names those it has"
            raise EnvironmentFailure(error.message, hint=hint) from None

    async def _begin(self) -> StepResult:
        """Ask for the task; fill in its description and category."""
        raise NotImplementedError

    async def _go_on(self, action: str, last: StepResult) -> StepResult:
        """Play one action of an episode that has not ended."""
        raise NotImplementedError


def described(
    task: Task, observation: str, description: str | None = None, category: str | None = None
) -> Task:
    """The task with what the server says of it, or what its first observation shows."""
    if task.env == "webshop":
        sentence = description or read_page(observation, ()).instruction or observation
        changes = {"description": sentence[:LONGEST_DESCRIPTION], "category": category or ""}
        return task.model_copy(update=changes)
    sentence = description or text.task_sentence(observation) or observation
    sentence = " ".join(sentence.split()).removesuffix(".")[:LONGEST_DESCRIPTION]
    goal = text.parse_task(sentence)
    category = category or (goal.category if goal else "")
    return task.model_copy(update={"description": sentence, "category": category})
