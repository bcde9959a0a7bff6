"""AgentGym's servers, from the caller's side: its household world and its shop.

A server's session is made by `/create` and never closed: AgentGym has no call for that.
"""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter

from krill_tui.envs.alfworld.text import CATEGORY_OF_TYPE
from krill_tui.envs.base import StepResult
from krill_tui.envs.clients.calls import LONGEST_WORDS, ServerRefused
from krill_tui.envs.clients.common import WON_REWARD, RemoteEnvironment, described
from krill_tui.envs.webshop.pages import action_list
from krill_tui.io.text import one_line

WELCOME = "-= Welcome to TextWorld, ALFRED! =-"
"""First paragraph of every household game; the server leaves it out."""


class _Reply(BaseModel):
    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class _Created(_Reply):
    id: int


class _HouseholdStart(_Reply):
    observation: str
    available_actions: list[str]
    task_type: str = ""


class _HouseholdStep(_Reply):
    observation: str
    reward: float
    available_actions: list[str]
    done: bool


class _Failed(_Reply):
    """AgentGym's household server says what went wrong with status 200."""

    error: str


class _ShopStep(_Reply):
    state: str
    reward: float
    done: bool


class _Clickables(_Reply):
    has_search_bar: bool
    clickables: list[str]


_R = TypeVar("_R", bound=_Reply)

_CREATED: TypeAdapter[_Created | _Failed] = TypeAdapter(_Created | _Failed)
_START: TypeAdapter[_HouseholdStart | _Failed] = TypeAdapter(_HouseholdStart | _Failed)
_STEP: TypeAdapter[_HouseholdStep | _Failed] = TypeAdapter(_HouseholdStep | _Failed)
_NUMBER = TypeAdapter(int)
_SHOP_START: TypeAdapter[tuple[str, None]] = TypeAdapter(tuple[str, None])
_SHOP_STEP = TypeAdapter(_ShopStep)
_CLICKABLES = TypeAdapter(_Clickables)


class HouseholdEnvironment(RemoteEnvironment):
    """One household game. The first observation gets back the welcome and the empty lines that AgentGym takes
    out; the `You arrive at loc N.` it cuts from the older grammar's observations is lost.
    """

    async def _begin(self) -> StepResult:
        created = await self._calls.post("/create", None, _CREATED)
        self._id = self._said(created, "/create").id
        body = {"id": self._id, "game": int(self.task.ref), "world_type": "Text"}
        with self._asking_for_game():
            start = self._said(await self._calls.post("/reset", body, _START), "/reset")
        observation = "\n\n".join((WELCOME, *start.observation.split("\n")))
        category = CATEGORY_OF_TYPE.get(start.task_type.partition("-")[0].partition("/")[0])
        self.task = described(self.task, observation, category=category)
        return StepResult(observation, _sorted(start.available_actions))

    async def _go_on(self, action: str, last: StepResult) -> StepResult:
        answer = await self._calls.post("/step", {"id": self._id, "action": action}, _STEP)
        reply = self._said(answer, "/step")
        won = reply.done and reply.reward >= WON_REWARD
        return StepResult(reply.observation, _sorted(reply.available_actions), reply.reward, reply.done, won)

    def _said(self, reply: _R | _Failed, path: str) -> _R:
        if isinstance(reply, _Failed):
            message = one_line(reply.error, limit=LONGEST_WORDS)
            raise ServerRefused(f"{self._calls.url}{path}: the server says: {message}")
        return reply


class ShopEnvironment(RemoteEnvironment):
    """One visit to AgentGym's shop. What can be done is asked for after each step."""

    async def _begin(self) -> StepResult:
        self._id = await self._calls.post("/create", None, _NUMBER)
        body = {"env_idx": self._id, "session_id": int(self.task.ref)}
        with self._asking_for_game():
            observation, _ = await self._calls.post("/reset", body, _SHOP_START)
        self.task = described(self.task, observation)
        return StepResult(observation, await self._actions())

    async def _go_on(self, action: str, last: StepResult) -> StepResult:
        reply = await self._calls.post("/step", {"env_idx": self._id, "action": action}, _SHOP_STEP)
        won = reply.done and reply.reward >= WON_REWARD
        return StepResult(reply.state, await self._actions(), reply.reward, reply.done, won)

    async def _actions(self) -> tuple[str, ...]:
        now = await self._calls.get("/available_actions", {"env_idx": self._id}, _CLICKABLES)
        return action_list(now.clickables, now.has_search_bar)


def _sorted(actions: list[str]) -> tuple[str, ...]:
    return tuple(sorted(set(actions)))
