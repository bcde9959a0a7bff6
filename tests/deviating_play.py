"""One caller against one deviation, and whether what came of it is what the table wants."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Literal

import numpy as np

from krill_tui.agent.actions import parse_reply
from krill_tui.errors import ModelError
from krill_tui.models.base import ActRequest, Message, Sampling
from krill_tui.models.endpoint import Limits
from krill_tui.models.openai_api import OpenAIChat, OpenAIEmbedder, OpenAIPolicy
from krill_tui.skills.llm_teacher import LLMTeacher
from tests.deviating_endpoint import KEY, DeviatingEndpoint, Deviation, vector
from tests.episodes import episode

Caller = Literal["policy", "teacher", "embeddings"]
CALLERS: tuple[Caller, ...] = ("policy", "teacher", "embeddings")

LIMITS = Limits(
    timeout=1.0, max_retries=2, longest_wait=0.2, longest_answer=8 * 1024 * 1024, base_delay=0.001
)
SECONDS = 20.0
"""No deviation may cost more."""
_TEXTS = [f"text {'x' * n}" for n in range(40)]


class Wrong(Exception):
    """It did not come as it should."""


async def tried(endpoint: DeviatingEndpoint, deviation: Deviation, caller: Caller) -> str:
    """What is wrong with how `caller` deals with a deviation, in one line; empty where nothing is."""
    kind, _, pattern = getattr(deviation, caller).partition(":")
    said: list[str] = []
    play = {"policy": _play, "teacher": _teach, "embeddings": _embed}[caller]
    began = time.perf_counter()
    try:
        async with asyncio.timeout(SECONDS):
            await play(endpoint.url(deviation, caller), kind, pattern, lambda line, level: said.append(line))
        if kind in ("error", "permanent", "unreachable"):
            raise Wrong("no error")
    except ModelError as error:
        said.append(str(error))
        if problem := _not_as_wanted(error, kind, pattern):
            return f"{problem}: {error}"
    except Wrong as problem:
        return str(problem)
    except TimeoutError:
        return f"takes more than {time.perf_counter() - began:.1f} s"
    except Exception as error:  # what a caller never may see
        return f"{type(error).__name__}: {error}"
    if deviation.says and caller != "teacher" and not any(re.search(deviation.says, line) for line in said):
        return f"nobody says {deviation.says!r}, but {said}"
    if leak := [line for line in said if KEY in line or not line.isprintable()]:
        return f"a key or a control character in {leak[0]!r}"
    return ""


def _not_as_wanted(error: ModelError, kind: str, pattern: str) -> str:
    if kind not in ("error", "permanent", "unreachable"):
        return "an error"
    if (error.permanent, error.unreachable) != (kind == "permanent", kind == "unreachable"):
        return f"permanent {error.permanent}, unreachable {error.unreachable}"
    return "" if re.search(pattern, str(error), re.DOTALL) else f"not in the words {pattern!r}"


async def _play(url: str, kind: str, pattern: str, say) -> None:
    """Two turns, the second with the first reply in the conversation."""
    policy = OpenAIPolicy(
        OpenAIChat(url, "m", KEY, role="policy", setting="model.policy_api_base", limits=LIMITS, say=say), say
    )
    messages: list[Message] = [
        {"role": "system", "content": "You are an agent."},
        {"role": "user", "content": "You see a cabinet 1."},
    ]
    try:
        for _ in range(2):
            sampling = Sampling(temperature=0.7, max_tokens=64)
            reply = await policy.act(ActRequest("e", messages, "", (), 0, sampling))
            if kind == "context":
                if reply.finish != "context" or reply.text:
                    raise Wrong(f"no end of the context, but {reply.text[:80]!r}")
                return
            parsed = parse_reply(reply.text)
            wanted = "" if kind == "invalid" else "look"
            if parsed.action != wanted or reply.finish == "context":
                raise Wrong(f"the action is {parsed.action[:80]!r} of {reply.text[:80]!r}")
            if pattern and not re.search(pattern, parsed.thought if kind == "reply" else reply.text):
                raise Wrong(f"{pattern!r} is not in {reply.text[:120]!r}")
            reply.text.encode()  # no lone surrogates: a file has to hold it
            messages.append({"role": "assistant", "content": reply.text})
            messages.append({"role": "user", "content": "You see a drawer."})
    finally:
        await policy.close()


async def _teach(url: str, kind: str, pattern: str, say) -> None:
    chat = OpenAIChat(url, "m", KEY, role="teacher", setting="model.teacher_api_base", limits=LIMITS, say=say)
    teacher = LLMTeacher(chat, max_tokens=64)
    try:
        result = await teacher.distill([episode("e1")], (), env="alfworld")
    finally:
        await teacher.close()
    if result.failures:
        [call] = result.failures
        error = call.error or ""
        if kind not in ("error", "permanent", "unreachable") or not re.search(pattern, error, re.DOTALL):
            raise Wrong(f"the call failed: {error}")
        if "\n" in error or KEY in error:
            raise Wrong(f"more than one clean line: {error!r}")
        raise ModelError(error, permanent=kind == "permanent", unreachable=kind == "unreachable")
    if [proposal.name for proposal in result.proposals] != ["Look first"]:
        raise Wrong(f"the skills are {result.proposals}")


async def _embed(url: str, kind: str, pattern: str, say) -> None:
    embedder = OpenAIEmbedder(url, "m", KEY, limits=LIMITS, say=say)
    try:
        first = await embedder.embed(_TEXTS)
        second = await embedder.embed(_TEXTS[:3])
    finally:
        await embedder.close()
    wanted = np.array([vector(text) for text in _TEXTS])
    wanted /= np.linalg.norm(wanted, axis=1, keepdims=True)
    if kind == "reply" and not (
        np.allclose(first, wanted, atol=1e-5) and np.allclose(second, wanted[:3], atol=1e-5)
    ):
        raise Wrong(f"the vectors are {first[:2]}")
