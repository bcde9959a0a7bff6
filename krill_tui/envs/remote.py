"""Worlds behind a live server that speaks Krill's protocol (backend `http`).

    POST /reset {"task_id": str, "session_id": str}
    POST /step  {"action": str, "session_id": str}

Both answer one JSON object: observation, available_actions, done, reward, task_description, task_category, info.
Servers of the first protocol know no sessions: they play one episode at a time (set env.concurrency to 1) and may
choose the task themselves.
"""

from __future__ import annotations

import asyncio
import ssl
import uuid
from collections.abc import Mapping, Sequence

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from krill_tui.envs.alfworld import text
from krill_tui.envs.alfworld.expert import AlfworldExpert
from krill_tui.envs.base import Environment, Expert, StepResult
from krill_tui.envs.webshop.expert import WebshopExpert
from krill_tui.envs.webshop.reading import read_page
from krill_tui.envs.webshop.session import parse_action
from krill_tui.errors import EnvironmentFailure, UsageError
from krill_tui.trajectory import Task

SPLITS = ("train", "evolve", "valid", "test")
"""Names under which tasks are asked for; that they share no task is the server's promise."""
ANSWER_SECONDS = 60.0
"""A call may take this long, connecting included."""
CONNECT_SECONDS = 5.0
CONNECT_RETRIES = 2
"""A step is never sent twice: the server may have played it before the connection broke."""
LONGEST_ANSWER = 4 * 1024 * 1024
"""Bytes."""
WON_REWARD = 1.0
"""Total reward from which an episode counts as won, where the server does not say so itself."""


class ServerReply(BaseModel):
    """What `/reset` and `/step` answer; fields of other protocols beside these are left alone."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    observation: str
    available_actions: list[str] | None = None
    done: bool = False
    reward: float = 0.0
    task_description: str | None = None
    task_category: str | None = None
    info: dict[str, object] | None = Field(default=None)


class HttpSource:
    """Tasks of one live server, asked for as `<split>/<seed>/<number>`."""

    backend = "http"

    def __init__(self, url: str, *, env: str = "alfworld", timeout: float = ANSWER_SECONDS) -> None:
        parsed = httpx.URL(url)
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise UsageError(
                f"'{url}' is no address of a server", hint="env.url should be like http://localhost:3000"
            )
        self.env = env
        self.url = url.rstrip("/")
        self._timeout = timeout
        # Loading the certificates takes longer than an episode of a local server: once for all of them.
        self._tls: ssl.SSLContext | bool = httpx.create_ssl_context() if parsed.scheme == "https" else False

    def splits(self) -> dict[str, int]:
        return dict.fromkeys(SPLITS, -1)

    def tasks(self, split: str, count: int, *, seed: int = 0) -> Sequence[Task]:
        if split not in SPLITS:
            raise UsageError(f"there is no split '{split}'", hint=f"choose one of {', '.join(SPLITS)}")
        ids = [f"{split}/{seed}/{number}" for number in range(count)]
        return [Task(id=f"http/{id_}", env=self.env, split=split, ref=id_) for id_ in ids]

    def open(self, task: Task) -> Environment:
        transport = httpx.AsyncHTTPTransport(verify=self._tls, retries=CONNECT_RETRIES)
        return HttpEnvironment(task, self.url, transport, self._timeout)

    def expert(self, hints: Mapping[str, Sequence[str]] | None = None) -> Expert:
        return WebshopExpert() if self.env == "webshop" else AlfworldExpert(hints)

    def content_hash(self) -> str:
        """Which games a server plays cannot be known: only where it was."""
        return f"live:{self.url}"


class HttpEnvironment:
    """One episode on a server; its own connection and session."""

    def __init__(self, task: Task, url: str, transport: httpx.AsyncBaseTransport, timeout: float) -> None:
        self.task = task
        self._url = url
        self._timeout = timeout
        self._session = uuid.uuid4().hex
        self._client = httpx.AsyncClient(
            transport=transport, timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS))
        )
        self._reward = 0.0
        self._last: StepResult | None = None

    async def reset(self) -> StepResult:
        reply = await self._post("/reset", {"task_id": self.task.ref, "session_id": self._session})
        self.task = _described(self.task, reply)
        self._reward = 0.0
        self._last = self._result(reply, reward=0.0, done=False, won=False)
        return self._last

    async def step(self, action: str) -> StepResult:
        if self._last is None:
            raise EnvironmentFailure(f"{self._url}: step before reset")
        if self._last.done:
            return self._last
        reply = await self._post("/step", {"action": action, "session_id": self._session})
        self._reward += reply.reward
        self._last = self._result(reply, reward=reply.reward, done=reply.done, won=self._won(reply))
        return self._last

    async def close(self) -> None:
        await self._client.aclose()

    def accepts(self, action: str) -> bool:
        """Whether a shop would act on this unlisted text: any search, and clicks however they are written."""
        if self.task.env != "webshop" or self._last is None:
            return False
        name, argument = parse_action(action)
        return name == "search" or (name == "click" and f"click[{argument}]" in self._last.admissible)

    def _result(self, reply: ServerReply, *, reward: float, done: bool, won: bool) -> StepResult:
        """A shop's actions stay in page order."""
        actions = dict.fromkeys(reply.available_actions or ())
        admissible = tuple(actions if self.task.env == "webshop" else sorted(actions))
        return StepResult(reply.observation, admissible, reward, done, won, dict(reply.info or {}))

    def _won(self, reply: ServerReply) -> bool:
        said = (reply.info or {}).get("won")
        return reply.done and (said if isinstance(said, bool) else self._reward >= WON_REWARD)

    async def _post(self, path: str, body: dict[str, str]) -> ServerReply:
        """One call.

        Raises:
            EnvironmentFailure: no connection, no answer in time, an error status, or no reply of the protocol.
        """
        where = f"{self._url}{path}"
        try:
            async with (
                asyncio.timeout(self._timeout),
                self._client.stream("POST", where, json=body) as response,
            ):
                data = await _read(response, where)
        except TimeoutError:
            raise EnvironmentFailure(f"{where}: no answer within {self._timeout:g} s") from None
        except httpx.TimeoutException:
            raise EnvironmentFailure(f"{where}: no answer within {self._timeout:g} s") from None
        except httpx.ConnectError:
            hint = "is the server running? env.url says where it is"
            raise EnvironmentFailure(f"{where}: no connection", hint=hint) from None
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise EnvironmentFailure(f"{where}: the connection broke: {type(error).__name__}") from None
        if not response.is_success:
            raise EnvironmentFailure(f"{where}: the server answered {response.status_code}")
        try:
            return ServerReply.model_validate_json(data)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, problem["loc"])) or "the answer"
            message = f"{where}: no answer of the protocol: {field}: {problem['msg'].lower()}"
            raise EnvironmentFailure(" ".join(message.split())[:300]) from None


async def _read(response: httpx.Response, where: str) -> bytes:
    """The body; a server that sends without end is cut off."""
    data = bytearray()
    async for chunk in response.aiter_bytes():
        data += chunk
        if len(data) > LONGEST_ANSWER:
            raise EnvironmentFailure(f"{where}: the answer is longer than {LONGEST_ANSWER} bytes")
    return bytes(data)


def _described(task: Task, reply: ServerReply) -> Task:
    """The task with what the server says of it, or what its first observation shows."""
    shown = read_page(reply.observation, ()).instruction if task.env == "webshop" else ""
    sentence = reply.task_description or shown or text.task_sentence(reply.observation) or reply.observation
    description = " ".join(sentence.split()).removesuffix(".")[:2000]
    goal = text.parse_task(description)
    category = reply.task_category or (goal.category if goal else "")
    return task.model_copy(update={"description": description, "category": category})
