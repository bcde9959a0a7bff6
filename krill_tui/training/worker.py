"""The model worker: a process that owns torch and answers the engine's requests (`models/worker_protocol.py`).

Run as `python -m krill_tui.training.worker`. Requests come on standard input, one JSON object a line; replies leave on
standard output; everything that libraries print goes to standard error. It ends when its input ends.

Under `accelerate launch` there are several of it. The first reads and answers; the others get every request from it,
and each does its share: `training/ranks.py`.
"""

from __future__ import annotations

import datetime
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch
import transformers
from pydantic import BaseModel, ValidationError
from torch import Tensor
from transformers import AutoConfig

from krill_tui.errors import DataError, KrillError, ModelError, ModelRefusedError
from krill_tui.io.children import watch_parent
from krill_tui.models.base import Message
from krill_tui.models.worker_protocol import (
    CloseRequest,
    CountTokensRequest,
    DecodeRequest,
    ErrorReply,
    ExportedReply,
    ExportRequest,
    FinishRequest,
    FreezeReferenceRequest,
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
    request_adapter,
)
from krill_tui.training.adapter import AdapterShape, is_adapter, load_adapter, read_shape
from krill_tui.training.architecture import has_experts
from krill_tui.training.checkpoint import export_adapter, load_checkpoint, save_checkpoint
from krill_tui.training.grpo import GrpoSettings, grpo_step, over_iterations
from krill_tui.training.loading import choose_device, load_base, load_sharded
from krill_tui.training.memory import Load, advice, describe, estimate, shape_of
from krill_tui.training.model import ModelSettings, PolicyModel
from krill_tui.training.probe import probe
from krill_tui.training.ranks import (
    ALONE,
    Ranks,
    free_memory,
    is_lost_peer,
    is_out_of_memory,
    launched_ranks,
    release_memory,
)
from krill_tui.training.sampler import Sampler
from krill_tui.training.sft import sft_step, tokenize_demonstration
from krill_tui.training.shard import Sharded
from krill_tui.training.tokens import ChatTokenizer, MaskedTokens
from krill_tui.training.trainer import Trainer

_SMALLEST_BUDGET = 256
_PROGRESS_SECONDS = 0.5
_SAMPLE_BY = "policy.sampler vllm"


class Worker:
    """Holds the model between requests."""

    def __init__(self, send: Callable[[BaseModel], None], ranks: Ranks = ALONE) -> None:
        self._send = send
        self.ranks = ranks
        self._trainer: Trainer | None = None
        self._sampler: Sampler | None = None
        """Made when something is sampled: it holds a second copy of the weights."""
        self._sampler_is_stale = False
        self._homes: dict[str, int] = {}
        """Which process has the KV cache of a live episode."""
        self._base: tuple[Any, ChatTokenizer] | None = None
        self._sharded: Sharded | None = None
        """The base model where its weights are sharded."""
        self._base_source: tuple[object, ...] | None = None
        """What `_base` was loaded as."""
        self._progress_at = 0.0

    def handle(self, request: WorkerRequest) -> WorkerReply:
        """Do what a request asks.

        Raises:
            KrillError: it cannot be done; the model is as it was before, after a failed load there is none.
        """
        match request:
            case LoadRequest():
                return self._load(request)
            case SampleRequest():
                started = time.perf_counter()
                outputs = self._sample(request.items)
                seconds = time.perf_counter() - started
                return SampledReply(outputs=tuple(outputs), version=self._loaded.version, seconds=seconds)
            case FinishRequest():
                self._finish(request.episodes)
            case SftStepRequest():
                return self._sft(request)
            case CountTokensRequest():
                return self._count_tokens(request)
            case GrpoStepRequest():
                return self._grpo(request)
            case FreezeReferenceRequest():
                self._loaded.start_phase()
            case SaveRequest():
                with self.ranks.together():
                    if self.ranks.index == 0:
                        save_checkpoint(self._loaded, Path(request.directory))
            case TokenizeRequest():
                return self._tokens(request)
            case DecodeRequest():
                return TextReply(text=self._loaded.policy.chat.reply_text(request.ids))
            case ExportRequest():
                with self.ranks.together():
                    if self.ranks.index == 0:
                        export_adapter(self._loaded, Path(request.directory))
                return ExportedReply(version=self._loaded.version)
            case CloseRequest():
                pass
        return OkReply()

    @property
    def _loaded(self) -> Trainer:
        if self._trainer is None:
            raise ModelError("the model worker has no model yet", hint="send a load request first")
        return self._trainer

    def _load(self, request: LoadRequest) -> LoadedReply:
        if request.threads:
            torch.set_num_threads(request.threads)
        sharding = self.ranks.sharding
        if sharding and request.episodes:
            raise ModelError(
                "a policy whose weights are sharded is not sampled by the worker", hint=_SAMPLE_BY
            )
        device = self.ranks.device or request.device
        start = Path(request.checkpoint) if request.checkpoint else None
        shape = _shape_of(start) if start else None
        settings = ModelSettings(
            lora_rank=shape.rank if shape else request.lora_rank,
            lora_alpha=shape.alpha if shape else request.lora_alpha,
            targets=shape.targets if shape else (),
            dtype=request.dtype,
            device=device,
            seed=request.seed,
            max_context=request.max_context,
            gradient_checkpointing=request.gradient_checkpointing,
        )
        # The old adapters go first, so that two models never need room at once; the base is kept if it is the same.
        if self._trainer and sharding:
            self._trainer.policy.release()
        self._trainer = self._sampler = None
        self._homes.clear()
        date = datetime.date.fromisoformat(request.date) if request.date else None
        sampling = request.episodes > 0
        wanted = (request.model, request.dtype, device, date, sampling)
        if self._base is None or self._base_source != wanted:
            self._base = self._sharded = None
            self._estimate_memory(request, choose_device(device), self.ranks.count if sharding else 1)
            if sharding:
                base, chat, self._sharded = load_sharded(*wanted[:2], self.ranks, sharding, date)
                self._base = base, chat
                self._say_shares(self._sharded)
            else:
                self._base = load_base(*wanted[:3], date=date, sampling=sampling)
        # Until this has gone well, adapters that were put into it may still be there.
        known, self._base_source = self._base_source == wanted, None
        policy = PolicyModel(*self._base, settings, name=request.model, sharded=self._sharded)
        trainer = Trainer(policy, token_budget=request.token_budget, ranks=self.ranks)
        changes = list(policy.chat.format.changes)
        if has_experts(policy.base):
            changes.append(
                "a mixture of experts: adapters are on attention, experts and router stay as they are"
            )
        if start and is_adapter(start):
            changes += load_adapter(policy, start)
        elif start:
            load_checkpoint(trainer, start)
        if not known and not sharding:
            with self.ranks.together():
                probe(policy, sampling=sampling)
        self._trainer, self._base_source = trainer, wanted
        return LoadedReply(
            parameters=policy.base_parameters,
            trainable=sum(p.numel() for p in policy.policy_parameters.values()),
            context=policy.context,
            device=str(policy.device),
            version=trainer.version,
            vocabulary=policy.base.get_input_embeddings().weight.shape[0],
            end_of_turn=policy.chat.end_of_turn,
            stop_ids=tuple(sorted(policy.chat.stop_ids)),
            changes=tuple(changes),
        )

    def _tokens(self, request: TokenizeRequest) -> TokensReply:
        chat = self._loaded.policy.chat
        messages: list[Message] = [{"role": m.role, "content": m.content} for m in request.messages]
        ids = chat.context(messages) if request.first else chat.next_context(messages, ended=request.ended)
        return TokensReply(ids=ids)

    def _say_shares(self, sharded: Sharded) -> None:
        held = self.ranks.gather([sharded.held()])
        message = f"weights sharded over {len(held)} processes, {max(held):,} of them in each at most"
        self._send(NoteReply(message=message))

    def _estimate_memory(self, request: LoadRequest, device: str, shards: int) -> None:
        """Say what the model will need, before it is loaded; what cannot be estimated is not said."""
        try:
            shape = shape_of(AutoConfig.from_pretrained(request.model).to_dict())
        except (OSError, ValueError, DataError):
            return
        load = Load(
            dtype=request.dtype,
            lora_rank=request.lora_rank,
            gradient_checkpointing=request.gradient_checkpointing,
            micro_batch_tokens=request.token_budget,
            episodes=-(-request.episodes // self.ranks.count),
            context=request.max_context,
            shards=shards,
        )
        needed, found = estimate(shape, load), free_memory(device)
        short = needed.total > found
        message = describe(needed, load, found)
        if short:
            message += f": too little; {advice(needed, load)}"
        self._send(NoteReply(level="warning" if short else "info", message=message))

    def _sample(self, items: Sequence[SampleItem]) -> list[SampleOutput]:
        """Every process samples the episodes whose caches it has; all of them get all replies."""
        trainer, ranks = self._loaded, self.ranks
        if self._sharded:
            raise ModelError("sharded weights are not sampled", hint=_SAMPLE_BY)
        if self._sampler is None:
            self._sampler = Sampler(trainer.policy, self._warn)
        elif self._sampler_is_stale:
            self._sampler.refresh()
        self._sampler_is_stale = False
        new = [item.episode for item in items if item.episode not in self._homes]
        self._homes |= {episode: i * ranks.count // len(new) for i, episode in enumerate(new)}
        with ranks.together():
            own = self._sampler.sample([item for item in items if self._homes[item.episode] == ranks.index])
        outputs = {output.episode: output for output in ranks.gather(own)}
        return [outputs[item.episode] for item in items]

    def _finish(self, episodes: Sequence[str]) -> None:
        for episode in episodes:
            self._homes.pop(episode, None)
        if self._loaded and self._sampler:
            self._sampler.finish(episodes)

    def _sft(self, request: SftStepRequest) -> MetricsReply:
        trainer = self._loaded
        demonstrations = [self._tokenize(trainer, example) for example in request.examples]
        metrics = self._within_memory(
            lambda: sft_step(
                trainer,
                demonstrations,
                learning_rate=request.learning_rate,
                max_grad_norm=request.max_grad_norm,
                update=request.update,
                progress=self._report,
            )
        )
        self._sampler_is_stale = self._sampler_is_stale or request.update
        return MetricsReply(version=trainer.version, values=metrics)

    def _count_tokens(self, request: CountTokensRequest) -> TokenCountsReply:
        chat = self._loaded.policy.chat
        sequences = [
            chat.conversation([{"role": m.role, "content": m.content} for m in example.messages])
            for example in request.examples
        ]
        return TokenCountsReply(lengths=tuple((len(s.ids), sum(s.mask)) for s in sequences))

    def _grpo(self, request: GrpoStepRequest) -> MetricsReply:
        trainer = self._loaded
        settings = GrpoSettings(
            learning_rate=request.learning_rate,
            clip_epsilon=request.clip_epsilon,
            epsilon_high=request.epsilon_high,
            kl_coeff=request.kl_coeff,
            loss_type=request.loss_type,
            max_grad_norm=request.max_grad_norm,
            temperature=request.temperature,
            max_completion_length=request.max_completion_length,
            importance_sampling_cap=request.importance_sampling_cap,
            use_bias_correction_kl=request.use_bias_correction_kl,
        )
        old_logprobs: dict[int, Tensor] = {}

        def step() -> dict[str, float]:
            return grpo_step(trainer, request.episodes, settings, self._report, old_logprobs)

        try:
            steps = [self._within_memory(step) for _ in range(request.num_iterations)]
        finally:
            self._sampler_is_stale = True
        return MetricsReply(version=trainer.version, values=over_iterations(steps))

    @staticmethod
    def _tokenize(trainer: Trainer, example: SftExample) -> MaskedTokens:
        messages: list[Message] = [{"role": m.role, "content": m.content} for m in example.messages]
        return tokenize_demonstration(trainer, messages)

    def _within_memory(self, step: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Run a step, halving its micro-batches while memory runs out; the metrics say what was used."""
        trainer = self._loaded
        # The pause between two reports is not carried over: a short step right behind another would say nothing.
        self._progress_at = 0.0
        while True:
            try:
                return {**step(), "micro_batch_tokens": float(trainer.token_budget)}
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                trainer.clear_gradients()
                release_memory()
                if trainer.token_budget // 2 < _SMALLEST_BUDGET:
                    raise ModelError(
                        f"out of memory even with micro-batches of {trainer.token_budget} tokens",
                        hint="policy.gradient_checkpointing, policy.dtype bfloat16 or a shorter rl.max_prompt_length",
                    ) from error
                trainer.token_budget //= 2
                self._warn(f"out of memory: micro-batches of {trainer.token_budget} tokens from now on")

    def _warn(self, message: str) -> None:
        print(message, file=sys.stderr)
        self._send(NoteReply(level="warning", message=message))

    def _report(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._progress_at >= _PROGRESS_SECONDS:
            self._progress_at = now
            self._send(ProgressReply(done=done, total=total))


def _shape_of(start: Path) -> AdapterShape | None:
    """The shape of the adapter to start from; None where a checkpoint does not say, which is then told by reading it."""
    if is_adapter(start):
        return read_shape(start)
    try:
        return read_shape(start / "policy")
    except ModelRefusedError:
        return None


def serve(requests: BinaryIO, replies: BinaryIO, ranks: Ranks = ALONE) -> None:
    """Answer requests until they end or one says close; only the first process reads and writes."""

    def send(reply: BaseModel) -> None:
        if ranks.index == 0:
            replies.write(reply.model_dump_json().encode() + b"\n")
            replies.flush()

    worker = Worker(send, ranks)
    for line in _lines(requests, ranks):
        try:
            request = request_adapter.validate_json(line)
        except ValidationError as error:
            send(
                ErrorReply(message="the model worker got a request it does not understand", detail=str(error))
            )
            continue
        send(_answer(worker, request))
        if isinstance(request, CloseRequest):
            return


def _lines(requests: BinaryIO, ranks: Ranks) -> Iterator[bytes]:
    while line := ranks.broadcast(requests.readline() if ranks.index == 0 else b""):
        yield line


def _answer(worker: Worker, request: WorkerRequest) -> WorkerReply:
    try:
        return worker.handle(request)
    except KrillError as error:
        return ErrorReply(
            message=error.message,
            hint=error.hint,
            refused=isinstance(error, ModelRefusedError),
            detail=traceback.format_exc(),
        )
    # The boundary of the process: whatever broke is told to the engine, which decides.
    except Exception as error:
        if worker.ranks.count > 1 and is_lost_peer(error):
            # An answer would end the phase; the end of this process has the worker started again.
            traceback.print_exc()
            os._exit(1)
        reason = next(iter(str(error).splitlines()), "")
        message = f"the model worker failed at {request.kind}: {type(error).__name__}: {reason}"
        return ErrorReply(message=message, detail=traceback.format_exc())


def main() -> None:
    """Take standard output for replies alone and serve."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    # A launcher starts its processes itself, unbound; one process alone is bound already.
    launcher = os.getppid()
    ranks = launched_ranks()
    if ranks.count > 1:
        watch_parent(launcher)
    with replies:
        serve(sys.stdin.buffer, replies, ranks)
    ranks.end_process()


if __name__ == "__main__":
    main()
