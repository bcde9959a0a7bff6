"""Krill's protocol, from the caller's side.

    POST /reset {"task_id": str, "session_id": str}
    POST /step  {"action": str, "session_id": str}

Both answer one JSON object: observation, available_actions, done, reward, task_description, task_category, info.
Servers of the first protocol know no sessions: they play one episode at a time (set env.concurrency to 1) and may
choose the task themselves.
"""

from __future__ import annotations

import uuid

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from krill_tui.envs.base import StepResult
from krill_tui.envs.clients.calls import ServerCalls
from krill_tui.envs.clients.common import WON_REWARD, RemoteEnvironment, described
from krill_tui.trajectory import Task


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


_REPLY = TypeAdapter(ServerReply)


class KrillEnvironment(RemoteEnvironment):
    """One episode, in a session of its own."""

    def __init__(self, task: Task, calls: ServerCalls) -> None:
        super().__init__(task, calls)
        self._session = uuid.uuid4().hex
        self._reward = 0.0

    async def _begin(self) -> StepResult:
        body = {"task_id": self.task.ref, "session_id": self._session}
        reply = await self._calls.post("/reset", body, _REPLY)
        self.task = described(self.task, reply.observation, reply.task_description, reply.task_category)
        self._reward = 0.0
        return self._result(reply, reward=0.0, done=False, won=False)

    async def _go_on(self, action: str, last: StepResult) -> StepResult:
        reply = await self._calls.post("/step", {"action": action, "session_id": self._session}, _REPLY)
        self._reward += reply.reward
        return self._result(reply, reward=reply.reward, done=reply.done, won=self._won(reply))

    def _won(self, reply: ServerReply) -> bool:
        said = (reply.info or {}).get("won")
        return reply.done and (said if isinstance(said, bool) else self._reward >= WON_REWARD)

    def _result(self, reply: ServerReply, *, reward: float, done: bool, won: bool) -> StepResult:
        """A shop's actions stay in page order."""
        actions = dict.fromkeys(reply.available_actions or ())
        admissible = tuple(actions if self.task.env == "webshop" else sorted(actions))
        return StepResult(reply.observation, admissible, reward, done, won)
