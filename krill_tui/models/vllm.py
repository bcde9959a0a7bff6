"""Sampling by a vLLM server, while the model worker trains: token ids in, token ids and log-probabilities out.

The worker owns chat template and tokenizer, so that a sequence is the same, token for token, whoever samples it. After
an update its adapter is written as a PEFT folder and loaded into the server by its runtime LoRA endpoint, under a name
made of the adapter's content: a server that keeps an earlier version, or its prefix cache, never mixes the two up.
The server needs `--enable-lora` and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, and must see the adapter's folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import shutil
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from krill_tui.errors import ModelError
from krill_tui.models.base import ActReply, ActRequest, Message
from krill_tui.models.endpoint import ContextOverflow, Endpoint, Limits, Refused, Say
from krill_tui.models.local import WorkerClient
from krill_tui.models.worker_protocol import ChatMessage, LoadedReply

_ACTION_END = "</action>"
_SHORTEST_REPLY = 16
"""With less room than this an episode has reached the end of the context."""
_SEED_BITS = 2**63 - 1
"""Of a seed; larger ones are folded into as many."""
_HINT = "see docs/scaling.md for how to start the server"
_MOST_CALLS = 4096
"""The server batches by itself; the engine's own limit is `env.concurrency`."""
_LONGEST_ANSWER = 32 * 1024 * 1024


class _Logprobs(BaseModel):
    token_logprobs: list[float | None]


class _Choice(BaseModel):
    token_ids: list[int]
    logprobs: _Logprobs
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    prompt_token_ids: list[int] | None = None


class _Completion(BaseModel):
    """The part that is read of an answer of `/v1/completions` with `return_token_ids`."""

    choices: list[_Choice]


@dataclass(frozen=True, slots=True)
class Sampled:
    """One completion."""

    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    stopped: bool
    """Ended by a stop token or string, not by the limit."""


class VllmServer:
    """The calls of a vLLM server that Krill needs."""

    def __init__(
        self,
        url: str,
        key: str = "",
        *,
        timeout: float = 600.0,
        retries: int = 3,
        retry_seconds: float = 1.0,
        say: Say | None = None,
        hint: str = "",
    ) -> None:
        """`url`: of the server, with or without `/v1`; `key`: what it was started with as `--api-key`.

        Faults that may pass (5xx, no connection) are tried again.
        """
        self._endpoint = Endpoint(
            _with_version(url),
            key,
            role="the vLLM server",
            setting="policy.sampler_url",
            limits=Limits(
                timeout=timeout,
                max_retries=retries,
                base_delay=retry_seconds,
                concurrency=_MOST_CALLS,
                longest_answer=_LONGEST_ANSWER,
            ),
            say=say,
            hint=hint or "policy.sampler_api_key or VLLM_API_KEY holds its --api-key",
            adapts=False,
        )

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Make an adapter known under a name; one of that name that is there already is left as it is.

        Raises:
            ModelError: the server refuses, or is not there.
        """
        body = {"lora_name": name, "lora_path": str(folder)}
        try:
            await self._endpoint.call("load_lora_adapter", body, _anything, json_answer=False)
        except Refused as refusal:
            if "already been loaded" in refusal.said.what:
                return
            if refusal.unreachable:
                raise
            raise ModelError(
                f"the adapter is refused: {refusal.message}",
                hint=refusal.hint or _HINT,
                permanent=refusal.permanent,
            ) from None

    async def unload_adapter(self, name: str) -> None:
        """Let the server forget an adapter; one that it does not know is no fault."""
        with contextlib.suppress(Refused):
            await self._endpoint.call(
                "unload_lora_adapter", {"lora_name": name}, _anything, json_answer=False
            )

    async def complete(
        self,
        model: str,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        temperature: float,
        seed: int,
        stop_ids: Sequence[int],
    ) -> Sampled:
        """Continue a prompt of token ids; the plain distribution at this temperature, nothing cut off from it.

        Raises:
            ModelError: the server is not there, refuses, or answers what cannot be trained on.
        """
        body = {
            "model": model,
            "prompt": list(prompt),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "seed": seed,
            "stop_token_ids": list(stop_ids),
            "stop": [_ACTION_END],
            "include_stop_str_in_output": True,
            "skip_special_tokens": False,
            "add_special_tokens": False,
            "logprobs": 1,
            "return_token_ids": True,
            # The server's defaults may come from the model's generation_config.json.
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }
        choice = await self._endpoint.call("completions", body, _read_choice)
        logprobs = choice.logprobs.token_logprobs
        if len(logprobs) != len(choice.token_ids) or not logprobs or None in logprobs:
            raise ModelError(
                f"the vLLM server sent {len(choice.token_ids)} tokens with {len(logprobs)} log-probabilities"
            )
        if choice.prompt_token_ids is not None and choice.prompt_token_ids != list(prompt):
            raise ModelError("the vLLM server changed the prompt's tokens")
        known = tuple(float(value) for value in logprobs if value is not None)
        return Sampled(tuple(choice.token_ids), known, choice.finish_reason == "stop")

    async def close(self) -> None:
        await self._endpoint.close()


def _with_version(url: str) -> str:
    """The address with its `/v1`, before a query where there is one."""
    address, mark, query = url.strip().partition("?")
    return f"{address.rstrip('/').removesuffix('/v1')}/v1{mark}{query}"


def _read_choice(answer: Any) -> _Choice:
    try:
        [choice] = _Completion.model_validate(answer).choices
    except (ValidationError, ValueError):
        raise ModelError(
            "the vLLM server's answer holds no token ids and log-probabilities",
            hint="vLLM 0.10.2 or newer",
            permanent=True,
        ) from None
    return choice


def _anything(answer: Any) -> None:
    """What is said to the loading of an adapter is for people."""


@dataclass(slots=True)
class _Conversation:
    """What was said and sampled of an episode."""

    messages: list[Message] = field(default_factory=list)
    ids: tuple[int, ...] = ()
    ended: bool = True
    """The last reply closed with the end-of-turn token."""


class VllmPolicy:
    """A policy whose turns a vLLM server samples with the worker's newest adapter."""

    def __init__(
        self,
        client: WorkerClient,
        server: VllmServer,
        loaded: LoadedReply,
        adapters: Path,
        name: str = "vllm",
    ) -> None:
        """`loaded`: what the worker said of the model; `adapters`: folder for the adapters, which the server sees."""
        self.name = name
        self._client = client
        self._server = server
        self._loaded = loaded
        self._adapters = adapters.resolve()
        self._conversations: dict[str, _Conversation] = {}
        self._lock = asyncio.Lock()
        self._stale = True
        self._adapter = ""
        self._folder: Path | None = None
        self._version = loaded.version

    def weights_changed(self) -> None:
        """The worker made an update: the next turn is sampled with the new adapter."""
        self._stale = True

    async def start(self, episode: str) -> None:
        """Nothing to prepare: the server batches what comes in."""

    async def act(self, request: ActRequest) -> ActReply:
        """Continue one episode."""
        if request.sampling.constrained:
            raise ModelError(
                "a vLLM server cannot bind replies to actions", hint="set policy.constrained to false"
            )
        await self._sync()
        messages = list(request.messages)
        known = self._conversations.get(request.episode)
        restarted = False
        if known is None or messages[: len(known.messages)] != known.messages:
            restarted = any(message["role"] == "assistant" for message in messages)
            known = _Conversation()
        new = [ChatMessage(role=m["role"], content=m["content"]) for m in messages[len(known.messages) :]]
        context = await self._client.tokenize(new, first=not known.ids, ended=known.ended)
        prompt = (*known.ids, *context)
        left = self._loaded.context - len(prompt) - 1
        if left < min(request.sampling.max_tokens, _SHORTEST_REPLY):
            self._conversations.pop(request.episode, None)
            return ActReply(text="", finish="context", restarted=restarted, version=self._version)
        version = self._version
        try:
            sampled = await self._server.complete(
                self._adapter,
                prompt,
                max_tokens=min(request.sampling.max_tokens, left),
                temperature=request.sampling.temperature,
                seed=_turn_seed(request.seed, len(prompt)),
                stop_ids=sorted(self._loaded.stop_ids),
            )
        except ContextOverflow:
            # A server started with a smaller --max-model-len than the model has here.
            self._conversations.pop(request.episode, None)
            return ActReply(text="", finish="context", restarted=restarted, version=self._version)
        reply = await self._reply(context, sampled, restarted, version)
        self._conversations[request.episode] = _Conversation(
            messages=[*messages, Message(role="assistant", content=reply.text)],
            ids=(*prompt, *reply.ids),
            ended=reply.ids[-1] == self._loaded.end_of_turn,
        )
        return reply

    async def finish(self, episode: str) -> None:
        self._conversations.pop(episode, None)

    async def close(self) -> None:
        """Take the adapter back out of the server; the worker goes on."""
        with contextlib.suppress(ModelError):
            if self._adapter:
                await self._server.unload_adapter(self._adapter)
        self._remove(self._folder)
        await self._server.close()

    async def _reply(
        self, context: tuple[int, ...], sampled: Sampled, restarted: bool, version: int
    ) -> ActReply:
        ids, logprobs = sampled.ids, sampled.logprobs
        if wrong := [token for token in ids if not 0 <= token < self._loaded.vocabulary]:
            raise ModelError(
                f"the vLLM server sent token {wrong[0]}, but the model has {self._loaded.vocabulary}: "
                "it serves another model"
            )
        allowed: tuple[tuple[int, ...], ...] = ()
        if sampled.stopped and ids[-1] not in self._loaded.stop_ids:
            # It stopped at </action>: what follows there is always the end of the turn, as in the worker's sampler.
            end = self._loaded.end_of_turn
            allowed = (*[()] * len(ids), (end,))
            ids, logprobs = (*ids, end), (*logprobs, 0.0)
        return ActReply(
            text=await self._client.decode(ids),
            context_ids=context,
            ids=ids,
            logprobs=logprobs,
            allowed=allowed,
            finish="stop" if sampled.stopped else "length",
            restarted=restarted,
            prompt_tokens=len(context),
            completion_tokens=len(ids),
            version=version,
        )

    async def _sync(self) -> None:
        """Have the server know the worker's present adapter, before anything is sampled with it."""
        async with self._lock:
            if not self._stale:
                return
            folder = self._adapters / "next"
            version = await self._client.export(folder)
            digest = hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()[:12]
            name = f"krill-{version}-{digest}"
            target = folder.with_name(name)
            shutil.rmtree(target, ignore_errors=True)
            folder.rename(target)
            await self._server.load_adapter(name, target)
            before, self._adapter = self._adapter, name
            old, self._folder = self._folder, target
            self._version, self._stale = version, False
            if before and before != name:
                # The new one is there already: a server that cannot let go of the old one costs memory, no more.
                with contextlib.suppress(ModelError):
                    await self._server.unload_adapter(before)
                self._remove(old)

    @staticmethod
    def _remove(folder: Path | None) -> None:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _turn_seed(seed: int, position: int) -> int:
    """A 63-bit seed of one turn: turns of an episode must not draw the same random numbers."""
    digest = hashlib.blake2b(struct.pack("<qQ", seed & _SEED_BITS, position), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
