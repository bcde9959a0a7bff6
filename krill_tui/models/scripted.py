"""Models that say what they were told to: for tests, demonstrations and replays."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from krill_tui.errors import ModelError
from krill_tui.models.base import ActReply, ActRequest, ChatReply, ChatUsage, Message

Scripted = str | Exception
"""A reply, or an error that is raised in its place."""


class ScriptedChat:
    """A chat model that answers from a queue, or by a function of the messages."""

    def __init__(
        self, replies: Sequence[Scripted] | Callable[[Sequence[Message]], Scripted], name: str = "scripted"
    ) -> None:
        self.name = name
        self.requests: list[list[Message]] = []
        """Every conversation it was asked, oldest first."""
        self._replies = replies

    async def complete(
        self, messages: Sequence[Message], *, temperature: float | None = None, max_tokens: int | None = None
    ) -> ChatReply:
        """The next reply.

        Raises:
            ModelError: the queue is empty.
        """
        number = len(self.requests)
        self.requests.append(list(messages))
        if callable(self._replies):
            reply = self._replies(messages)
        elif number < len(self._replies):
            reply = self._replies[number]
        else:
            raise ModelError(f"{self.name}: no scripted reply is left after {number}")
        if isinstance(reply, Exception):
            raise reply
        words = sum(len(message["content"].split()) for message in messages)
        return ChatReply(reply, ChatUsage(prompt_tokens=words, completion_tokens=len(reply.split())))

    async def close(self) -> None:
        """Nothing to let go of."""


class ScriptedPolicy:
    """A policy that says the same replies, in order, in every episode, or a function of the request."""

    def __init__(
        self, replies: Sequence[Scripted] | Callable[[ActRequest], Scripted], name: str = "scripted"
    ) -> None:
        self.name = name
        self._replies = replies
        self._turns: dict[str, int] = {}

    async def act(self, request: ActRequest) -> ActReply:
        """The episode's next reply.

        Raises:
            ModelError: the script is over.
        """
        turn = self._turns.get(request.episode, 0)
        self._turns[request.episode] = turn + 1
        if callable(self._replies):
            reply = self._replies(request)
        elif turn < len(self._replies):
            reply = self._replies[turn]
        else:
            raise ModelError(f"{self.name}: no scripted reply is left after {turn}")
        if isinstance(reply, Exception):
            raise reply
        return ActReply(reply)

    async def start(self, episode: str) -> None:
        self._turns[episode] = 0

    async def finish(self, episode: str) -> None:
        self._turns.pop(episode, None)

    async def close(self) -> None:
        """Nothing to let go of."""
