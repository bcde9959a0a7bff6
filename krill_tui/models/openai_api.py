"""Models behind an OpenAI-compatible endpoint: OpenAI, vLLM, SGLang, llama.cpp, Ollama."""

from __future__ import annotations

import asyncio
import json
import random
import re
from collections.abc import Awaitable, Callable, Sequence
from email.utils import parsedate_to_datetime
from time import time
from typing import Any, TypeVar

import numpy as np

from krill_tui.errors import ModelError
from krill_tui.models.base import ActReply, ActRequest, ChatReply, ChatUsage, Message

R = TypeVar("R")

_LONGEST_WAIT = 120.0
_REASONING_MODEL = re.compile(r"(?:.*/)?(?:o\d|gpt-5)")
_EMBEDDING_BATCH = 256
_REFUSED = (401, 402, 403, 404, 407, 429)
"""Statuses that the same call gets again, whatever it asks. Of 429 those that are no passing limit: a spent quota."""


class ContextOverflow(ModelError):
    """The conversation is longer than the model can read."""


class _Transient(Exception):
    """A fault that may be gone at the next try."""

    def __init__(self, message: str, wait: float | None = None, *, unreachable: bool = False) -> None:
        super().__init__(message)
        self.wait = wait
        """Seconds the server asked to wait."""
        self.unreachable = unreachable


class _Endpoint:
    """One server: the client, its retries and the number of calls in flight."""

    def __init__(
        self,
        base_url: str,
        api_key: str,
        *,
        timeout: float,
        max_retries: int,
        concurrency: int,
        base_delay: float,
        rng: random.Random | None,
    ) -> None:
        import openai

        self._openai = openai
        self._api_key = api_key
        self._url = base_url
        self._max_retries = max_retries
        self._base_delay = base_delay
        # The jitter spreads clients in time; it never reaches a result.
        self._rng = rng or random.Random(0)
        self._slots = asyncio.Semaphore(concurrency)
        # Local servers take any key, but the client insists on one.
        self.client = openai.AsyncOpenAI(
            base_url=base_url, api_key=api_key or "none", timeout=timeout, max_retries=0
        )

    async def call(self, request: Callable[[], Awaitable[Any]], read: Callable[[Any], R]) -> R:
        """`read` of what `request` returns, retried while the fault is transient.

        A call keeps its slot while it waits: a server that is out of breath gets fewer calls.

        Raises:
            ModelError: refused for good, or still broken after the last retry.
        """
        async with self._slots:
            for attempt in range(self._max_retries + 1):
                try:
                    return await self._once(request, read)
                except _Transient as fault:
                    if attempt == self._max_retries:
                        raise self._error(
                            f"{fault}, after {attempt + 1} attempts", unreachable=fault.unreachable
                        ) from None
                    await asyncio.sleep(self._wait(attempt, fault.wait))
        raise AssertionError("unreachable")

    async def _once(self, request: Callable[[], Awaitable[Any]], read: Callable[[Any], R]) -> R:
        openai = self._openai
        try:
            return read(await request())
        except openai.APITimeoutError:
            raise _Transient("the endpoint did not answer in time", unreachable=True) from None
        except openai.APIConnectionError as error:
            raise _Transient(
                f"the connection failed ({type(error.__cause__).__name__})", unreachable=True
            ) from None
        except openai.APIStatusError as error:
            status = error.status_code
            if (status in (408, 409, 429) and error.code != "insufficient_quota") or status >= 500:
                raise _Transient(
                    f"the endpoint answered {status}", _retry_after(error), unreachable=True
                ) from None
            if error.code == "context_length_exceeded" or "maximum context length" in error.message:
                raise ContextOverflow(self._line(error.message)) from None
            raise self._error(
                f"the endpoint refused with {status}: {error.message}", permanent=status in _REFUSED
            ) from None
        except (openai.OpenAIError, json.JSONDecodeError, UnicodeDecodeError) as error:
            raise _Transient(f"the answer cannot be read ({type(error).__name__})") from None

    def _wait(self, attempt: int, asked: float | None) -> float:
        backoff = min(self._base_delay * 2**attempt, _LONGEST_WAIT) * self._rng.uniform(0.5, 1.0)
        return min(max(asked or 0.0, backoff), _LONGEST_WAIT)

    def _line(self, message: str) -> str:
        # A server may quote the key it refused.
        hidden = message.replace(self._api_key, "***") if self._api_key else message
        return " ".join(f"{self._url}: {hidden}".split())[:400]

    def _error(self, message: str, *, unreachable: bool = False, permanent: bool = False) -> ModelError:
        return ModelError(self._line(message), unreachable=unreachable, permanent=permanent)


class OpenAIChat:
    """A chat model of an endpoint; at most `concurrency` calls are in flight."""

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str,
        *,
        timeout: float = 120,
        max_retries: int = 6,
        concurrency: int = 8,
        base_delay: float = 0.5,
        rng: random.Random | None = None,
    ) -> None:
        self.name = f"openai:{model}"
        self._model = model
        self._endpoint = _Endpoint(
            base_url,
            api_key,
            timeout=timeout,
            max_retries=max_retries,
            concurrency=concurrency,
            base_delay=base_delay,
            rng=rng,
        )

    async def complete(
        self, messages: Sequence[Message], *, temperature: float | None = None, max_tokens: int | None = None
    ) -> ChatReply:
        """Answer a conversation; see `ChatModel.complete`."""
        options: dict[str, Any] = {"model": self._model, "messages": list(messages)}
        reasons = _REASONING_MODEL.match(self._model) is not None
        if temperature is not None and not reasons:
            options["temperature"] = temperature
        if max_tokens is not None:
            options["max_completion_tokens" if reasons else "max_tokens"] = max_tokens
        create = self._endpoint.client.chat.completions.create
        return await self._endpoint.call(lambda: create(**options), _read_chat)

    async def close(self) -> None:
        await self._endpoint.client.close()


class OpenAIEmbedder:
    """An embedding model of an endpoint."""

    def __init__(
        self,
        base_url: str,
        model: str,
        api_key: str,
        *,
        timeout: float = 60,
        max_retries: int = 6,
        concurrency: int = 8,
        base_delay: float = 0.5,
        rng: random.Random | None = None,
    ) -> None:
        self.name = f"openai:{model}"
        self._model = model
        self._endpoint = _Endpoint(
            base_url,
            api_key,
            timeout=timeout,
            max_retries=max_retries,
            concurrency=concurrency,
            base_delay=base_delay,
            rng=rng,
        )

    async def embed(self, texts: Sequence[str]) -> np.ndarray:
        """Return float32 `[len(texts), dim]` with rows of length 1.

        Raises:
            ModelError: the endpoint refused for good or stayed broken.
        """
        if not texts:
            return np.zeros((0, 0), dtype=np.float32)
        parts = [
            await self._embed_batch(list(texts[start : start + _EMBEDDING_BATCH]))
            for start in range(0, len(texts), _EMBEDDING_BATCH)
        ]
        matrix = np.concatenate(parts)
        norms = np.linalg.norm(matrix, axis=1, keepdims=True)
        return matrix / np.where(norms > 0, norms, 1.0)

    async def _embed_batch(self, texts: list[str]) -> np.ndarray:
        create = self._endpoint.client.embeddings.create
        # Endpoints refuse empty texts.
        inputs = [text or " " for text in texts]
        return await self._endpoint.call(
            lambda: create(model=self._model, input=inputs, encoding_format="float"),
            lambda answer: _read_vectors(answer, len(inputs)),
        )

    async def close(self) -> None:
        await self._endpoint.client.close()


class OpenAIPolicy:
    """Acts through a chat endpoint: text only, no token ids, so it cannot be trained."""

    def __init__(self, chat: OpenAIChat) -> None:
        self.name = chat.name
        self._chat = chat

    async def act(self, request: ActRequest) -> ActReply:
        """Continue one episode; see `Policy.act`. Constrained sampling is not available."""
        sampling = request.sampling
        try:
            reply = await self._chat.complete(
                request.messages, temperature=sampling.temperature, max_tokens=sampling.max_tokens
            )
        except ContextOverflow:
            return ActReply("", finish="context")
        return ActReply(
            reply.text,
            prompt_tokens=reply.usage.prompt_tokens,
            completion_tokens=reply.usage.completion_tokens,
        )

    async def start(self, episode: str) -> None:
        """The endpoint keeps no state."""

    async def finish(self, episode: str) -> None:
        """The endpoint keeps no state."""

    async def close(self) -> None:
        await self._chat.close()


def _read_chat(answer: Any) -> ChatReply:
    choices = getattr(answer, "choices", None)
    message = getattr(choices[0], "message", None) if isinstance(choices, list) and choices else None
    text = getattr(message, "content", None)
    if not isinstance(text, str):
        raise _Transient("the answer holds no message")
    usage = getattr(answer, "usage", None)
    return ChatReply(text, ChatUsage(_count(usage, "prompt_tokens"), _count(usage, "completion_tokens")))


def _count(usage: Any, name: str) -> int:
    value = getattr(usage, name, 0)
    return value if isinstance(value, int) else 0


def _read_vectors(answer: Any, count: int) -> np.ndarray:
    data = getattr(answer, "data", None)
    if not isinstance(data, list) or len(data) != count:
        raise _Transient("the answer does not hold one vector for each text")
    try:
        ordered = sorted(data, key=lambda item: item.index)
        matrix = np.array([item.embedding for item in ordered], dtype=np.float32)
    except (AttributeError, TypeError, ValueError):
        matrix = np.zeros(0, dtype=np.float32)
    if matrix.ndim != 2 or not np.isfinite(matrix).all():
        raise _Transient("the answer's vectors cannot be read")
    return matrix


def _retry_after(error: Any) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date."""
    value = error.response.headers.get("retry-after", "")
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except (TypeError, ValueError):
        return None
