"""What the server answers: Krill's protocol, and AgentGym's for its two worlds. Knows nothing of HTTP.

Krill's `/reset` and `/step` take an optional `session_id`. AgentGym's carry `env_idx` (shop) or `id` (household), which
is how the protocols are told apart on one port.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import from_json

from krill_tui.envs.alfworld.text import CATEGORY_OF_TYPE
from krill_tui.envs.base import StepResult, TaskSource
from krill_tui.envs.serve.sessions import IDLE_SECONDS, MOST_SESSIONS, Session, SessionStore
from krill_tui.envs.serve.tasks import TaskDirectory
from krill_tui.envs.webshop.pages import QUERY_HINT
from krill_tui.errors import UsageError
from krill_tui.trajectory import Task

Reply = dict[str, object]
Action = Annotated[str, Field(max_length=20_000)]
Name = Annotated[str, Field(max_length=200)]

MOST_NUMBERS = 2**48
"""AgentGym's sessions are numbers; drawn from so many, one cannot be guessed."""
GREETING = "This is the ALFWorld environment of Krill."
WORLD_TYPES = ("Text", "Embody", "Hybrid")
_ARRIVAL = re.compile(r"\AYou arrive at loc \d+\. ")
_TYPE_OF_CATEGORY = {category: type_ for type_, category in CATEGORY_OF_TYPE.items()}


class _Body(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _Reset(_Body):
    task_id: Name | None = None
    session_id: Name | None = None


class _Step(_Body):
    action: Action
    session_id: Name | None = None


class _ShopReset(_Body):
    env_idx: int
    session_id: int | None = None


class _ShopStep(_Body):
    env_idx: int
    action: Action


class _HouseholdReset(_Body):
    id: int
    game: int
    world_type: Name


class _HouseholdStep(_Body):
    id: int
    action: Action


class _Close(_Body):
    id: int = 0
    env_idx: int | None = None


class _CloseKrill(_Body):
    session_id: Name | None = None


_B = TypeVar("_B", bound=_Body)


class HouseholdError(Exception):
    """What AgentGym's household server says with status 200 and `{"error": ...}`."""


class Service:
    """All calls of one server over one source.

    Every method raises UsageError for a call that cannot work and EnvironmentFailure where the world broke.
    """

    def __init__(
        self, source: TaskSource, *, idle_seconds: float = IDLE_SECONDS, most: int = MOST_SESSIONS
    ) -> None:
        self._world = source.env
        self._tasks = TaskDirectory(source)
        self.sessions = SessionStore(source, idle_seconds=idle_seconds, most=most)
        self._finding = asyncio.Lock()

    def greet(self) -> str:
        return "ok" if self._world == "webshop" else GREETING

    async def create(self) -> object:
        """AgentGym: a new session's number, as its two servers wrap it."""
        number = secrets.randbelow(MOST_NUMBERS)
        await self.sessions.create(_gym_name(number))
        return number if self._world == "webshop" else {"id": number}

    async def reset(self, data: bytes) -> object:
        body = _object(data)
        if "env_idx" in body:
            return await self._reset_shop(_checked(_ShopReset, body))
        if "id" in body:
            return await self._reset_household(_checked(_HouseholdReset, body))
        call = _checked(_Reset, body)
        task = await self._find(call.task_id)
        session = await self.sessions.create(_krill_name(call.session_id))
        return _krill_reply(session, await self.sessions.reset(session, task), call.session_id)

    async def step(self, data: bytes) -> object:
        body = _object(data)
        if "env_idx" in body:
            return await self._step_shop(_checked(_ShopStep, body))
        if "id" in body:
            return await self._step_household(_checked(_HouseholdStep, body))
        call = _checked(_Step, body)
        session = await self.sessions.find(_krill_name(call.session_id))
        if session is None:
            raise UsageError("there is no such session, or it was idle for too long", hint="reset it first")
        return _krill_reply(session, await self.sessions.step(session, call.action), call.session_id)

    async def close(self, data: bytes) -> object:
        """AgentGym's clients say when they are done; so may anybody. A session that is gone stays gone."""
        body = _object(data)
        if "env_idx" in body or "id" in body:
            call = _checked(_Close, body)
            await self.sessions.drop(_gym_name(call.id if call.env_idx is None else call.env_idx))
            return {"closed": True}
        await self.sessions.drop(_krill_name(_checked(_CloseKrill, body).session_id))
        return {"closed": True}

    async def available_actions(self, query: Mapping[str, str]) -> object:
        if self._world == "alfworld":
            return list((await self._household_now(query))[1].admissible)
        return _clickables((await self._shop_now(query))[1])

    async def observation(self, query: Mapping[str, str]) -> object:
        if self._world == "alfworld":
            return _household_text((await self._household_now(query))[1].observation)
        return (await self._shop_now(query))[1].observation

    async def instruction_text(self, query: Mapping[str, str]) -> object:
        session, _ = await self._shop_now(query)
        return f"Instruction: {_task(session).description}"

    async def detail(self, query: Mapping[str, str]) -> object:
        session, last = await self._household_now(query)
        return {
            "world_type": WORLD_TYPES[0],
            "game": session.number,
            **_household_reply(last),
            "deleted": False,
        }

    async def _reset_shop(self, call: _ShopReset) -> object:
        session = await self._shop_session(call.env_idx)
        number = call.session_id
        task = await self._find(number)
        result = await self.sessions.reset(session, task, -1 if number is None else number)
        return [result.observation, None]

    async def _step_shop(self, call: _ShopStep) -> object:
        session = await self._shop_session(call.env_idx)
        result = await self.sessions.step(session, call.action)
        return {"state": result.observation, "reward": result.reward, "done": result.done, "info": None}

    async def _shop_session(self, number: int) -> Session:
        self._must_play("webshop", "env_idx")
        session = await self.sessions.find(_gym_name(number))
        if session is None:
            raise UsageError(f"there is no environment {number}, or it was idle for too long")
        return session

    async def _shop_now(self, query: Mapping[str, str]) -> tuple[Session, StepResult]:
        session = await self._shop_session(_number(query, "env_idx"))
        if session.last is None:
            raise UsageError("the environment was not reset")
        return session, session.last

    async def _reset_household(self, call: _HouseholdReset) -> object:
        session = await self._household_session(call.id)
        if call.world_type not in WORLD_TYPES:
            raise HouseholdError(f"world_type should be one of {', '.join(WORLD_TYPES)}")
        try:
            task = await self._find(call.game)
        except UsageError as error:
            raise HouseholdError(str(error)) from None
        result = await self.sessions.reset(session, task, call.game)
        return {
            "id": call.id,
            "observation": _household_text(result.observation),
            "available_actions": list(result.admissible),
            "task_type": _task_type(session),
        }

    async def _step_household(self, call: _HouseholdStep) -> object:
        session, last = await self._household_state(call.id)
        if last.done:
            raise HouseholdError(f"The task with environment {call.id} has finished.")
        return _household_reply(await self.sessions.step(session, call.action))

    async def _household_session(self, number: int) -> Session:
        self._must_play("alfworld", "id")
        session = await self.sessions.find(_gym_name(number))
        if session is None:
            raise HouseholdError(f"The id {number} is not valid.")
        return session

    async def _household_state(self, number: int) -> tuple[Session, StepResult]:
        session = await self._household_session(number)
        if session.last is None:
            raise HouseholdError(f"The environment {number} was not reset.")
        return session, session.last

    async def _household_now(self, query: Mapping[str, str]) -> tuple[Session, StepResult]:
        number = _number(query, "id")
        session, last = await self._household_state(number)
        if last.done:
            raise HouseholdError(f"The task with environment {number} has finished.")
        return session, last

    async def _find(self, which: str | int | None) -> Task:
        """The task of a name or number, the next one for None; a long order takes seconds to draw."""
        async with self._finding:
            if which is None:
                return await asyncio.to_thread(self._tasks.following)
            if isinstance(which, str):
                return await asyncio.to_thread(self._tasks.named, which)
            return await asyncio.to_thread(self._tasks.numbered, which)

    def _must_play(self, world: str, field: str) -> None:
        if self._world != world:
            raise UsageError(f"'{field}' belongs to {world}, and this server plays {self._world}")


def _object(data: bytes) -> dict[str, Any]:
    try:
        body = from_json(data, allow_inf_nan=False)
    except ValueError:
        raise UsageError("the body is no JSON") from None
    if not isinstance(body, dict):
        raise UsageError("the body should be a JSON object")
    return body


def _checked(kind: type[_B], body: dict[str, Any]) -> _B:
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise UsageError(f"{where}: {problem['msg'].lower()}") from None


def _number(query: Mapping[str, str], name: str) -> int:
    value = query.get(name, "")
    if not re.fullmatch(r"\d{1,18}", value, re.ASCII):
        raise UsageError(f"the address should end in ?{name}=<number>")
    return int(value)


def _krill_name(session_id: str | None) -> str:
    return f"krill/{session_id or ''}"


def _gym_name(number: int) -> str:
    return f"agentgym/{number}"


def _task(session: Session) -> Task:
    assert session.environment is not None, "a session that was reset has an environment"
    return session.environment.task


def _krill_reply(session: Session, result: StepResult, session_id: str | None) -> Reply:
    task = _task(session)
    return {
        "observation": result.observation,
        "available_actions": list(result.admissible),
        "done": result.done,
        "reward": result.reward,
        "task_description": task.description,
        "task_category": task.category,
        "info": {**result.info, "won": result.won},
        "session_id": session_id,
    }


def _clickables(result: StepResult) -> Reply:
    clickables = [action[6:-1] for action in result.admissible if action.startswith("click[")]
    return {"has_search_bar": QUERY_HINT in result.admissible, "clickables": clickables}


def _household_reply(result: StepResult) -> Reply:
    return {
        "observation": _household_text(result.observation),
        "reward": float(result.won),
        "available_actions": list(result.admissible),
        "done": result.done,
    }


def _household_text(observation: str) -> str:
    """Without the welcome of a first observation, whose paragraphs become lines, and without a loc's number."""
    if observation.startswith("-="):
        return "\n".join(observation.split("\n\n")[1:])
    return _ARRIVAL.sub("", observation)


def _task_type(session: Session) -> str:
    """`<type>/<trial>`: the folders of a game file, or the same made up for a procedural world."""
    task = _task(session)
    folders = task.ref.split("/")
    if len(folders) >= 3:
        return "/".join(folders[-3:-1])
    return f"{_TYPE_OF_CATEGORY.get(task.category, 'unknown')}/{task.id.replace('/', '_')}"
