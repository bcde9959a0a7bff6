"""Models behind an OpenAI-compatible endpoint: OpenAI, vLLM, SGLang, llama.cpp, Ollama."""

from __future__ import annotations

import base64
import binascii
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from krill_tui.errors import ModelError
from krill_tui.io.text import one_line
from krill_tui.models.base import ActReply, ActRequest, ChatReply, Message
from krill_tui.models.chat_answer import UnreadableAnswer, read_chat, with_thought
from krill_tui.models.endpoint import ContextOverflow, Endpoint, Limits, Refused, Say

_EMBEDDING_BATCH = 256
LONGEST_VECTORS = 64 * 1024 * 1024
"""Bytes of an answer of vectors."""


class OpenAIChat:
    """A chat model of an endpoint."""

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str = "",
        *,
        role: str = "chat",
        setting: str = "the address",
        limits: Limits | None = None,
        say: Say | None = None,
        hint: str = "",
        rng: random.Random | None = None,
    ) -> None:
        """See `Endpoint`."""
        self.name = f"openai:{model}"
        self._model = model
        self.endpoint = Endpoint(
            base_url,
            api_key,
            role=role,
            setting=setting,
            limits=limits or Limits(),
            say=say,
            hint=hint,
            model=model,
            rng=rng,
        )

    async def complete(
        self, messages: Sequence[Message], *, temperature: float | None = None, max_tokens: int | None = None
    ) -> ChatReply:
        """Answer a conversation; see `ChatModel.complete`."""
        body: dict[str, Any] = {"model": self._model, "messages": list(messages)}
        if temperature is not None:
            body["temperature"] = temperature
        if max_tokens is not None:
            body["max_tokens"] = max_tokens
        return await self.endpoint.call("chat/completions", body, read_chat)

    async def close(self) -> None:
        await self.endpoint.close()


class OpenAIEmbedder:
    """An embedding model of an endpoint."""

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str = "",
        *,
        setting: str = "model.embedding_api_base",
        limits: Limits | None = None,
        say: Say | None = None,
        hint: str = "",
        rng: random.Random | None = None,
    ) -> None:
        """See `Endpoint`."""
        self.name = f"openai:{model}"
        self._model = model
        self._batch = _EMBEDDING_BATCH
        self._width = 0
        """Numbers of a vector, once one was seen."""
        self._endpoint = Endpoint(
            base_url,
            api_key,
            role="embeddings",
            setting=setting,
            limits=limits or Limits(longest_answer=LONGEST_VECTORS),
            say=say,
            hint=hint,
            rng=rng,
        )
        self._say = say or (lambda message, level: None)

    async def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 `[len(texts), dim]` with rows of length 1.

        Raises:
            ModelError: the endpoint refused for good, stayed broken, or gives what are no vectors.
        """
        if not texts:
            return np.zeros((0, 0), dtype=np.float32)
        # Endpoints refuse empty texts.
        owed = [text if text.strip() else "(empty)" for text in texts]
        parts: list[np.ndarray] = []
        while owed:
            batch = owed[: self._batch]
            try:
                parts.append(await self._embed_batch(batch))
            except Refused as refusal:
                if refusal.said.kind != "batch":
                    raise
                # Halved once for all calls that fail at the same time.
                if self._batch >= len(batch):
                    self._batch = len(batch) // 2
                    self._say(
                        f"embeddings: {len(batch)} texts are too many for one call, {self._batch} from now on",
                        "info",
                    )
                continue
            owed = owed[len(batch) :]
        matrix = np.concatenate(parts)
        norms = np.linalg.norm(matrix, axis=1, keepdims=True)
        return (matrix / np.where(norms > 0, norms, 1.0)).astype(np.float32)

    async def _embed_batch(self, texts: list[str]) -> np.ndarray:
        body = {"model": self._model, "input": texts, "encoding_format": "float"}
        data = await self._endpoint.call("embeddings", body, lambda answer: _vector_rows(answer, len(texts)))
        matrix = _matrix(data)
        problem = _problem(matrix, self._width)
        if problem:
            raise ModelError(
                f"embeddings at {self._endpoint.shown}: {problem[0]}", hint=problem[1], permanent=True
            )
        assert matrix is not None
        self._width = matrix.shape[1]
        return matrix

    async def close(self) -> None:
        await self._endpoint.close()


class OpenAIPolicy:
    """Acts through a chat endpoint: text only, no token ids, so it cannot be trained."""

    def __init__(self, chat: OpenAIChat, say: Callable[[str, str], None] | None = None) -> None:
        """`say` takes what a person should know, each line once."""
        self.name = chat.name
        self._chat = chat
        self._listener = say
        self._said: set[str] = set()

    async def act(self, request: ActRequest) -> ActReply:
        """Continue one episode; see `Policy.act`. Constrained sampling is not available."""
        sampling = request.sampling
        try:
            reply = await self._chat.complete(
                request.messages, temperature=sampling.temperature, max_tokens=sampling.max_tokens
            )
        except ContextOverflow:
            return ActReply("", finish="context")
        if reply.finish == "context" and not reply.text.strip():
            return ActReply("", finish="context")
        if reply.finish == "length":
            self._say(
                f"policy: replies are cut off after {sampling.max_tokens} tokens; raise rl.max_response_length, "
                "more so for a model that thinks",
                "warning",
            )
        if (reply.refusal and not reply.text) or (reply.finish == "filter" and not reply.text.strip()):
            words = f": {one_line(reply.refusal, limit=120)}" if reply.refusal else " (content filter)"
            self._say(f"policy: the model refused to answer a turn{words}", "warning")
        return ActReply(
            with_thought(reply if reply.text else replace(reply, text=reply.refusal)),
            finish="length" if reply.finish == "length" else "stop",
            prompt_tokens=reply.usage.prompt_tokens,
            completion_tokens=reply.usage.completion_tokens,
        )

    async def start(self, episode: str) -> None:
        """The endpoint keeps no state."""

    async def finish(self, episode: str) -> None:
        """The endpoint keeps no state."""

    async def close(self) -> None:
        await self._chat.close()

    def _say(self, line: str, level: str) -> None:
        if self._listener and line not in self._said:
            self._said.add(line)
            self._listener(line, level)


def _vector_rows(answer: object, count: int) -> list[Any]:
    """The vectors as they came, in the order of the texts."""
    data = answer.get("data") if isinstance(answer, dict) else None
    if not isinstance(data, list) or len(data) != count or not all(isinstance(row, Mapping) for row in data):
        raise UnreadableAnswer("the answer does not hold one vector for each text")
    places = [row.get("index") for row in data]
    if any(place is not None for place in places):
        if any(isinstance(place, bool) or not isinstance(place, int) for place in places):
            raise UnreadableAnswer("the answer's vectors are not numbered")
        if sorted(places) != list(range(count)):
            raise UnreadableAnswer("the answer numbers its vectors in a way that names no text for each")
        data = sorted(data, key=lambda row: row["index"])
    return [row.get("embedding") for row in data]


def _matrix(rows: list[Any]) -> np.ndarray | None:
    """float64 (a sum of squares of large numbers has to fit), or None where they are no numbers."""
    try:
        matrix = np.array([_unpacked(row) for row in rows], dtype=np.float64)
    except (TypeError, ValueError, OverflowError, binascii.Error):
        return None
    # llama.cpp puts a pooled vector into a list of its own.
    return matrix[:, 0] if matrix.ndim == 3 and matrix.shape[1] == 1 else matrix


def _unpacked(row: object) -> object:
    if isinstance(row, str):  # base64, which OpenAI's own client asks for, and some servers always send
        return np.frombuffer(base64.b64decode(row, validate=True), dtype="<f4")
    if not isinstance(row, list) or any(isinstance(value, str | bool | None) for value in row):
        raise ValueError
    return row


def _problem(matrix: np.ndarray | None, width: int) -> tuple[str, str | None] | None:
    """(what is wrong with vectors, what to do)."""
    if (matrix is not None and matrix.ndim == 3) or matrix is None:
        return (
            "the answer's vectors cannot be read",
            "one vector for each text is needed; a server that gives one for each token has to pool them "
            "(llama.cpp: --pooling mean)",
        )
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        return "the answer's vectors are empty", None
    if not np.isfinite(matrix).all():
        return "the answer's vectors hold numbers that are none (NaN or infinite)", None
    if not matrix.any(axis=1).all():
        return "a vector holds nothing but zeros", None
    if width and matrix.shape[1] != width:
        return f"vectors have {matrix.shape[1]} numbers now, and had {width} before", "has the model changed?"
    return None
