"""The small protocols every model implementation follows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypedDict

import numpy as np

from krill_tui.skill import Skill

Role = Literal["system", "user", "assistant"]


class Message(TypedDict):
    """One chat message, as chat templates and chat APIs take it."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a reply is drawn."""

    temperature: float = 1.0
    """0 is greedy."""
    max_tokens: int = 64
    """Policy tokens of one reply; a longer one is cut and counts as truncated."""
    constrained: bool = False
    """Choose the action among the admissible ones only (a token trie); the thought stays free."""


@dataclass(frozen=True, slots=True)
class ActRequest:
    """Ask a policy for the next turn of one episode."""

    episode: str
    """Policies that keep state (a KV cache) keep it under this id until `finish(episode)`."""
    messages: Sequence[Message]
    """The whole conversation; the last message is the user's. It only ever grows."""
    observation: str
    admissible: Sequence[str]
    seed: int
    """Of the episode: the same seed and conversation give the same reply, whatever else is batched."""
    sampling: Sampling
    skills: Sequence[Skill] = ()
    """Those that stand in the prompt: for policies that are programs and read no prompts."""


@dataclass(frozen=True, slots=True)
class ActReply:
    """What the policy said, with its tokens where it has any."""

    text: str
    context_ids: tuple[int, ...] = ()
    """Tokens that entered the sequence since the last reply (template, observation): not the policy's."""
    ids: tuple[int, ...] = ()
    """The policy's own tokens, its end-of-turn token included."""
    logprobs: tuple[float, ...] = ()
    """Of `ids`, under the distribution they were drawn from."""
    allowed: tuple[tuple[int, ...], ...] = ()
    """Per token of `ids` the ids it was chosen among, () where it was free; empty if unconstrained."""
    finish: Literal["stop", "length", "context"] = "stop"
    """`context`: the sequence would outgrow the model; there is no text."""
    restarted: bool = False
    """The policy had to read the whole conversation again (an overridden reply, a restarted worker): `context_ids`
    begin at its first token, and what was collected of this episode before is void."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    version: int = 0
    """The policy's weights: number of updates so far."""


class Policy(Protocol):
    """Acts in many episodes at once."""

    name: str

    async def act(self, request: ActRequest) -> ActReply:
        """Continue one episode; implementations batch concurrent calls.

        Raises:
            ModelError: failed for good; the episode ends as `error`.
        """
        ...

    async def start(self, episode: str) -> None:
        """Announce an episode; `act` calls of announced episodes are batched together."""
        ...

    async def finish(self, episode: str) -> None:
        """Forget the episode's state."""
        ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class ChatUsage:
    prompt_tokens: int = 0
    completion_tokens: int = 0


Finish = Literal["stop", "length", "filter", "context"]
"""Why a chat model stopped: it was done, ran out of tokens, was cut by a filter, or filled its context."""


@dataclass(frozen=True, slots=True)
class ChatReply:
    text: str
    """What was said; a thought that the model wrote into it stands there as `<think>…</think>`."""
    usage: ChatUsage = field(default_factory=ChatUsage)
    thought: str = ""
    """What the server keeps apart from the text."""
    finish: Finish = "stop"
    refusal: str = ""
    """The model's words where it refuses to answer."""


class ChatModel(Protocol):
    """A chat endpoint: the LLM teacher and the `openai` policy stand on it."""

    name: str

    async def complete(
        self, messages: Sequence[Message], *, temperature: float | None = None, max_tokens: int | None = None
    ) -> ChatReply:
        """Answer; transient faults (429, 5xx, dropped or timed-out connections) are retried inside.

        Raises:
            ModelError: the endpoint refused for good or stayed broken.
        """
        ...

    async def close(self) -> None: ...


class Embedder(Protocol):
    name: str
    """Also says which vectors can be compared: vectors of another embedder are recomputed."""

    async def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 `[len(texts), dim]`, each row of length 1 (or 0 for an empty text)."""
        ...

    async def close(self) -> None: ...
