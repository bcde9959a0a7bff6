"""The local policy: a client of the model worker, the process that owns torch (DESIGN section 8)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import ValidationError

from krill_tui import paths
from krill_tui.errors import ModelError, ModelRefusedError, WorkerDiedError
from krill_tui.io.children import child_command, child_environment
from krill_tui.models.base import ActReply, ActRequest, Message
from krill_tui.models.worker_protocol import (
    ChatMessage,
    CloseRequest,
    CountTokensRequest,
    DecodeRequest,
    ErrorReply,
    ExportedReply,
    ExportRequest,
    FinishRequest,
    FreezeReferenceRequest,
    GrpoEpisode,
    GrpoStepRequest,
    LoadedReply,
    LoadRequest,
    MetricsReply,
    NoteReply,
    OkReply,
    ProgressReply,
    SampledReply,
    SampleItem,
    SampleOutput,
    SampleRequest,
    SaveRequest,
    SftExample,
    SftStepRequest,
    TextReply,
    TokenCountsReply,
    TokenizeRequest,
    TokensReply,
    WorkerReply,
    WorkerRequest,
    reply_adapter,
)

_WORKER = "krill_tui.training.worker"
SHARDED = "fsdp"
"""Name of the shipped accelerate config that shards the weights."""
_LINE_LIMIT = 256 * 2**20
"""Bytes of the longest reply."""
_COUNTED_AT_ONCE = 256
"""Conversations of one request: a line stays short enough to be read at once."""
_GRACE = 5.0
"""Seconds a closed worker may take to leave."""
_PATIENCE = 120.0
"""Seconds without an answer after which that is said; then after twice as many, and so on."""

Reply = TypeVar(
    "Reply",
    LoadedReply,
    SampledReply,
    MetricsReply,
    TokenCountsReply,
    TokensReply,
    TextReply,
    ExportedReply,
    OkReply,
)
Progress = Callable[[int, int], None]
"""Told tokens done and tokens in all while a training step runs."""
LossType = Literal["grpo", "dr_grpo", "dapo", "gspo"]
Noted = Callable[[str, Literal["info", "warning"]], None]
"""Told what the worker says for people, and how grave it is."""


@dataclass(frozen=True, slots=True)
class Launch:
    """How the worker is started: one process, or several by `accelerate launch`."""

    processes: int = 1
    config_file: str = ""
    """Of `accelerate config`; it may name several machines, of which this is one. `fsdp`: the one that is shipped."""
    cpu: bool = False
    """Stay on the CPU, also where there is a GPU."""

    def command(self) -> list[str]:
        if self.processes == 1 and not self.config_file:
            return child_command(_WORKER)
        launch = child_command("accelerate.commands.launch")
        shipped = self.config_file == SHARDED
        if self.config_file:
            launch += ["--config_file", str(paths.fsdp_config()) if shipped else self.config_file]
        if self.processes > 1 or shipped:
            launch += ["--num_processes", str(self.processes)]
        if not self.config_file:
            # `multi_gpu` is what it calls several processes on one machine; without a GPU they talk by gloo.
            launch += ["--multi_gpu", "--num_machines", "1", "--main_process_port", "0"]
            launch += ["--mixed_precision", "no", "--dynamo_backend", "no"]
        return [*launch, "-m", _WORKER]

    def environment(self) -> dict[str, str]:
        return {"ACCELERATE_USE_CPU": "true"} if self.cpu else {}


class WorkerClient:
    """Starts the worker and talks to it; requests are answered in the order they were made.

    A request that is cancelled is still answered by the worker; its reply is dropped. When the worker dies, everything
    that waits fails with `WorkerDiedError`, and so do later requests until `restart`.
    """

    def __init__(self, log: Path, launch: Launch | None = None, noted: Noted | None = None) -> None:
        """`log`: file that takes the worker's standard error, appended. Use `WorkerClient.start`."""
        self.log = log
        self._launch = launch or Launch()
        self._noted = noted
        self.patience = _PATIENCE
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._waiting: deque[_Waiting] = deque()
        self._died = asyncio.Event()
        self._death = "the model worker is not running"

    @classmethod
    async def start(cls, *, log: Path, launch: Launch | None = None, noted: Noted | None = None) -> Self:
        """Start a worker process, or several that act as one; it has no model until `load`."""
        client = cls(log, launch, noted)
        await client._spawn()
        return client

    async def restart(self) -> None:
        """End the worker, if it still runs, and start another; it has no model until `load`."""
        await self.close()
        await self._spawn()

    @property
    def died(self) -> asyncio.Event:
        """Set once the running worker is gone, for whatever reason."""
        return self._died

    @property
    def pid(self) -> int | None:
        """Process id of the running worker."""
        return self._process.pid if self._process and not self._died.is_set() else None

    async def load(
        self,
        *,
        model: str,
        checkpoint: str | None = None,
        lora_rank: int = 16,
        lora_alpha: int = 32,
        dtype: Literal["float32", "bfloat16"] = "float32",
        device: str = "auto",
        threads: int = 0,
        seed: int = 0,
        max_context: int = 2048,
        token_budget: int = 8192,
        gradient_checkpointing: bool = False,
        episodes: int = 0,
        date: str = "",
    ) -> LoadedReply:
        """Load a base model with fresh adapters, or those of a checkpoint; see `LoadRequest`."""
        request = LoadRequest(
            model=model,
            checkpoint=checkpoint,
            lora_rank=lora_rank,
            lora_alpha=lora_alpha,
            dtype=dtype,
            device=device,
            threads=threads,
            seed=seed,
            max_context=max_context,
            token_budget=token_budget,
            gradient_checkpointing=gradient_checkpointing,
            episodes=episodes,
            date=date,
        )
        return await self.request(request, LoadedReply)

    async def sample(self, items: Sequence[SampleItem]) -> SampledReply:
        """One reply for each item, in order."""
        return await self.request(SampleRequest(items=tuple(items)), SampledReply)

    async def finish(self, episodes: Sequence[str]) -> None:
        """Drop the caches of episodes."""
        await self.request(FinishRequest(episodes=tuple(episodes)), OkReply)

    async def sft_step(
        self,
        examples: Sequence[SftExample],
        *,
        learning_rate: float,
        max_grad_norm: float = 1.0,
        update: bool = True,
        progress: Progress | None = None,
    ) -> MetricsReply:
        """One optimizer step of SFT; `update=False` only measures."""
        request = SftStepRequest(
            examples=tuple(examples), learning_rate=learning_rate, max_grad_norm=max_grad_norm, update=update
        )
        return await self.request(request, MetricsReply, progress)

    async def count_tokens(self, examples: Sequence[SftExample]) -> tuple[tuple[int, int], ...]:
        """Of each example: all its tokens, however many the context holds, and those of the policy's replies."""
        lengths: list[tuple[int, int]] = []
        for start in range(0, len(examples), _COUNTED_AT_ONCE):
            request = CountTokensRequest(examples=tuple(examples[start : start + _COUNTED_AT_ONCE]))
            lengths += (await self.request(request, TokenCountsReply)).lengths
        return tuple(lengths)

    async def grpo_step(
        self,
        episodes: Sequence[GrpoEpisode],
        *,
        learning_rate: float,
        clip_epsilon: float = 0.2,
        epsilon_high: float | None = None,
        kl_coeff: float = 0.01,
        loss_type: LossType = "grpo",
        max_grad_norm: float = 1.0,
        temperature: float = 1.0,
        max_completion_length: int = 0,
        importance_sampling_cap: float | None = None,
        use_bias_correction_kl: bool = False,
        num_iterations: int = 1,
        progress: Progress | None = None,
    ) -> MetricsReply:
        """One step of GRPO; see `GrpoStepRequest`."""
        request = GrpoStepRequest(
            episodes=tuple(episodes),
            learning_rate=learning_rate,
            clip_epsilon=clip_epsilon,
            epsilon_high=epsilon_high,
            kl_coeff=kl_coeff,
            loss_type=loss_type,
            max_grad_norm=max_grad_norm,
            temperature=temperature,
            max_completion_length=max_completion_length,
            importance_sampling_cap=importance_sampling_cap,
            use_bias_correction_kl=use_bias_correction_kl,
            num_iterations=num_iterations,
        )
        return await self.request(request, MetricsReply, progress)

    async def freeze_reference(self) -> None:
        """Make the present policy the reference of RL."""
        await self.request(FreezeReferenceRequest(), OkReply)

    async def tokenize(
        self, messages: Sequence[ChatMessage], *, first: bool, ended: bool = True
    ) -> tuple[int, ...]:
        """Ids that messages add to a sequence; see `TokenizeRequest`."""
        request = TokenizeRequest(messages=tuple(messages), first=first, ended=ended)
        return (await self.request(request, TokensReply)).ids

    async def decode(self, ids: Sequence[int]) -> str:
        """The text of a reply."""
        return (await self.request(DecodeRequest(ids=tuple(ids)), TextReply)).text

    async def export(self, directory: str | Path) -> int:
        """Write the policy adapter as a PEFT folder; gives its version."""
        return (await self.request(ExportRequest(directory=str(directory)), ExportedReply)).version

    async def save(self, directory: str | Path) -> None:
        """Write a checkpoint."""
        await self.request(SaveRequest(directory=str(directory)), OkReply)

    async def request(
        self, message: WorkerRequest, expected: type[Reply], progress: Progress | None = None
    ) -> Reply:
        """Send a request and wait for its reply.

        Raises:
            WorkerDiedError: the worker is not running, or ended before it answered.
            ModelRefusedError: the model, its template or an adapter cannot be worked with.
            ModelError: it failed.
        """
        process = self._process
        if process is None or process.stdin is None or self._died.is_set():
            raise WorkerDiedError(self._death)
        waiting = _Waiting(asyncio.get_running_loop().create_future(), progress)
        # Both at once, without a wait between them, so that replies are matched in order.
        self._waiting.append(waiting)
        process.stdin.write(message.model_dump_json().encode() + b"\n")
        with contextlib.suppress(ConnectionError):
            await process.stdin.drain()
        reply = await self._answer(waiting, message.kind)
        if isinstance(reply, ErrorReply):
            raise (ModelRefusedError if reply.refused else ModelError)(reply.message, hint=reply.hint)
        if not isinstance(reply, expected):
            raise ModelError(f"the model worker answered {message.kind} with {reply.kind}")
        return reply

    async def _answer(self, waiting: _Waiting, what: str) -> WorkerReply:
        """The reply, however long it takes; a worker that hangs is not told from one that works, so people are."""
        waited, patience = 0.0, self.patience
        while True:
            try:
                async with asyncio.timeout(patience):
                    return await asyncio.shield(waiting.reply)
            except TimeoutError:
                waited += patience
                patience = waited
            except asyncio.CancelledError:
                waiting.reply.cancel()
                raise
            if self._noted:
                self._noted(
                    f"the model worker has not answered for {waited:.0f} s ({what}); stopping the run ends it",
                    "warning",
                )

    async def _spawn(self) -> None:
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._launch.command(),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=_LINE_LIMIT,
                env=_environment() | self._launch.environment(),
                start_new_session=True,
            )
        self._died = asyncio.Event()
        self._reader = asyncio.create_task(self._read(self._process, self._died), name="model worker reader")

    async def close(self) -> None:
        """Ask the worker to leave, and kill it if it does not."""
        process, reader = self._process, self._reader
        if process is None or reader is None:
            return
        self._process = self._reader = None
        try:
            if process.returncode is None and process.stdin is not None:
                process.stdin.write(CloseRequest().model_dump_json().encode() + b"\n")
                process.stdin.close()
                async with asyncio.timeout(_GRACE):
                    await process.wait()
        except TimeoutError:
            # A launcher that is asked to leave takes its processes with it.
            with contextlib.suppress(ProcessLookupError, TimeoutError):
                process.terminate()
                async with asyncio.timeout(_GRACE):
                    await process.wait()
        finally:
            _kill(process)
            await process.wait()
            await reader

    async def _read(self, process: asyncio.subprocess.Process, died: asyncio.Event) -> None:
        """Hand each line to the request that waits longest; at the end fail those that still wait."""
        assert process.stdout is not None
        try:
            while line := await process.stdout.readline():
                self._take(reply_adapter.validate_json(line))
            code = await process.wait()
            self._death = f"the model worker ended (exit code {code}); see {self.log}"
        except (ValueError, ValidationError):
            self._death = f"the model worker sent something that is no reply; see {self.log}"
        finally:
            _kill(process)
            died.set()
            while self._waiting:
                self._waiting.popleft().fail(WorkerDiedError(self._death))

    def _take(self, reply: WorkerReply) -> None:
        if isinstance(reply, ProgressReply):
            if self._waiting and self._waiting[0].progress:
                self._waiting[0].progress(reply.done, reply.total)
            return
        if isinstance(reply, NoteReply):
            if self._noted:
                self._noted(reply.message, reply.level)
            return
        if isinstance(reply, ErrorReply) and reply.detail:
            with self.log.open("a", encoding="utf-8") as log:
                log.write(reply.detail.rstrip() + "\n")
        if self._waiting:
            self._waiting.popleft().answer(reply)


@dataclass(slots=True)
class _Waiting:
    """A request on its way to an answer."""

    reply: asyncio.Future[WorkerReply]
    progress: Progress | None

    def answer(self, reply: WorkerReply) -> None:
        if not self.reply.done():
            self.reply.set_result(reply)

    def fail(self, error: ModelError) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)


def _kill(process: asyncio.subprocess.Process) -> None:
    """End a worker at once, stopped or not, and whatever it started: they are a process group of their own."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)


def _environment() -> dict[str, str]:
    environment = child_environment(downloads=True)
    # Threads that spin while they wait for each other make torch several times slower once anything else runs.
    environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # What torch cannot do on Apple's GPUs it does on the CPU instead of failing.
    environment.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    return environment


@dataclass(slots=True)
class _Conversation:
    """What the worker knows of an episode."""

    messages: list[Message] = field(default_factory=list)
    """Everything sent, and the worker's replies."""
    started_over: bool = False
    """Its first message to the worker held replies: the next answer is a restart."""


@dataclass(slots=True)
class _Call:
    """An `act` that waits."""

    request: ActRequest
    reply: asyncio.Future[ActReply]

    def answer(self, reply: ActReply) -> None:
        if not self.reply.done():
            self.reply.set_result(reply)

    def fail(self, error: ModelError) -> None:
        if not self.reply.done():
            self.reply.set_exception(error)


class LocalPolicy:
    """A policy whose concurrent `act` calls are sampled together by the worker.

    A batch leaves when every started episode waits for its turn, or `window` seconds after the last call came. The
    worker keeps each episode's sequence, so that only new messages travel; where a conversation went on differently
    than the worker knows it (an overridden reply, a cancelled call, a restarted worker), it is sent again as a whole
    and the reply says `restarted`.
    """

    def __init__(self, client: WorkerClient, name: str = "local", *, window: float = 0.02) -> None:
        self.name = name
        self._client = client
        self._window = window
        self._live: set[str] = set()
        self._conversations: dict[str, _Conversation] = {}
        self._calls: dict[str, _Call] = {}
        self._finished: set[str] = set()
        self._arrived = asyncio.Event()
        self._batcher: asyncio.Task[None] | None = None
        self._farewells: set[asyncio.Task[None]] = set()

    async def start(self, episode: str) -> None:
        """Announce an episode."""
        self._live.add(episode)

    async def act(self, request: ActRequest) -> ActReply:
        """Continue one episode."""
        if request.episode in self._calls:
            raise ModelError(f"the episode {request.episode} is already waiting for its turn")
        if self._batcher is None or self._batcher.done():
            self._batcher = asyncio.create_task(self._run(), name="local policy batcher")
        call = _Call(request, asyncio.get_running_loop().create_future())
        self._calls[request.episode] = call
        self._arrived.set()
        try:
            return await call.reply
        except asyncio.CancelledError:
            if self._calls.get(request.episode) is call:
                del self._calls[request.episode]
            raise

    async def finish(self, episode: str) -> None:
        """Forget an episode; the worker hears of it with the next batch, or now if this was the last.

        Nobody waits for its answer: a worker that hangs must not hold up an episode that was cancelled.
        """
        self._live.discard(episode)
        if self._conversations.pop(episode, None) is not None:
            self._finished.add(episode)
        self._arrived.set()
        if not self._live and self._finished:
            farewell = asyncio.create_task(self._say_finished(), name="local policy farewell")
            self._farewells.add(farewell)
            farewell.add_done_callback(self._farewells.discard)

    async def close(self) -> None:
        """Stop batching; calls that wait fail. The worker goes on."""
        if self._batcher is not None:
            self._batcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._batcher
        for farewell in tuple(self._farewells):
            farewell.cancel()
        await asyncio.gather(*self._farewells, return_exceptions=True)
        for call in self._calls.values():
            call.fail(ModelError("the local policy was closed"))
        self._calls.clear()

    async def _run(self) -> None:
        """Send batches for as long as there are calls."""
        while self._calls:
            await self._gather_calls()
            batch = self._calls
            self._calls = {}
            if batch:
                await self._sample(list(batch.values()))

    async def _gather_calls(self) -> None:
        """Wait until all live episodes wait, or nobody came for a while."""
        while not self._live <= self._calls.keys():
            self._arrived.clear()
            try:
                async with asyncio.timeout(self._window):
                    await self._arrived.wait()
            except TimeoutError:
                return

    async def _sample(self, calls: list[_Call]) -> None:
        """Sample one batch and answer its calls; what fails, fails for all of them."""
        try:
            items = [self._item(call.request) for call in calls]
            await self._forget_finished()
            reply = await self._client.sample(items)
            for call, output in zip(calls, reply.outputs, strict=True):
                self._answer(call, output, reply.version)
        except ModelError as error:
            for call in calls:
                self._forget(call.request.episode)
                call.fail(type(error)(error.message, hint=error.hint))
        finally:
            for call in calls:
                call.fail(ModelError("the local policy stopped before it answered"))

    def _forget(self, episode: str) -> None:
        """Have the worker start this episode over at its next turn."""
        if self._conversations.pop(episode, None) is not None:
            self._finished.add(episode)

    async def _forget_finished(self) -> None:
        finished, self._finished = self._finished, set()
        if finished:
            await self._client.finish(sorted(finished))

    async def _say_finished(self) -> None:
        with contextlib.suppress(ModelError):
            await self._forget_finished()

    def _item(self, request: ActRequest) -> SampleItem:
        """What to send of a conversation; a new one, or the whole again if the worker knows another."""
        conversation = self._conversations.get(request.episode)
        messages = list(request.messages)
        if conversation is None or messages[: len(conversation.messages)] != conversation.messages:
            self._forget(request.episode)
            restarted = any(message["role"] == "assistant" for message in messages)
            conversation = _Conversation(started_over=restarted)
            self._conversations[request.episode] = conversation
        new = messages[len(conversation.messages) :]
        conversation.messages = messages
        return SampleItem(
            episode=request.episode,
            messages=tuple(ChatMessage(role=m["role"], content=m["content"]) for m in new),
            admissible=tuple(request.admissible),
            constrained=request.sampling.constrained,
            temperature=request.sampling.temperature,
            max_tokens=request.sampling.max_tokens,
            seed=request.seed,
        )

    def _answer(self, call: _Call, output: SampleOutput, version: int) -> None:
        conversation = self._conversations.get(call.request.episode)
        restarted = False
        if conversation is not None:
            restarted, conversation.started_over = conversation.started_over, False
            conversation.messages.append(Message(role="assistant", content=output.text))
        if output.finish == "context":
            self._forget(call.request.episode)
        call.answer(
            ActReply(
                text=output.text,
                context_ids=output.context_ids,
                ids=output.ids,
                logprobs=output.logprobs,
                allowed=output.allowed,
                finish=output.finish,
                restarted=restarted,
                prompt_tokens=len(output.context_ids),
                completion_tokens=len(output.ids),
                version=version,
            )
        )
