"""The model worker: a process that owns torch and answers the engine's requests (`models/worker_protocol.py`).

Run as `python -m krill_tui.training.worker`. Requests come on standard input, one JSON object a line; replies leave on
standard output; everything that libraries print goes to standard error. It ends when its input ends.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
import transformers
from pydantic import BaseModel, ValidationError
from torch import Tensor

from krill_tui.errors import KrillError, ModelError
from krill_tui.models.base import Message
from krill_tui.models.worker_protocol import (
    CloseRequest,
    CountTokensRequest,
    ErrorReply,
    FinishRequest,
    FreezeReferenceRequest,
    GrpoStepRequest,
    LoadedReply,
    LoadRequest,
    MetricsReply,
    OkReply,
    ProgressReply,
    SampledReply,
    SampleRequest,
    SaveRequest,
    SftExample,
    SftStepRequest,
    TokenCountsReply,
    WorkerReply,
    WorkerRequest,
    request_adapter,
)
from krill_tui.training.checkpoint import load_checkpoint, save_checkpoint
from krill_tui.training.grpo import GrpoSettings, grpo_step, over_iterations
from krill_tui.training.model import ModelSettings, PolicyModel, load_base
from krill_tui.training.sampler import Sampler
from krill_tui.training.sft import sft_step, tokenize_demonstration
from krill_tui.training.tokens import ChatTokenizer, MaskedTokens
from krill_tui.training.trainer import Trainer

_SMALLEST_BUDGET = 256
_PROGRESS_SECONDS = 0.5


class Worker:
    """Holds the model between requests."""

    def __init__(self, send: Callable[[BaseModel], None]) -> None:
        self._send = send
        self._trainer: Trainer | None = None
        self._sampler: Sampler | None = None
        self._base: tuple[Any, ChatTokenizer] | None = None
        self._base_source: tuple[str, str, str] | None = None
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
                outputs = self._loaded[1].sample(request.items)
                seconds = time.perf_counter() - started
                return SampledReply(outputs=tuple(outputs), version=self._loaded[0].version, seconds=seconds)
            case FinishRequest():
                self._loaded[1].finish(request.episodes)
            case SftStepRequest():
                return self._sft(request)
            case CountTokensRequest():
                return self._count_tokens(request)
            case GrpoStepRequest():
                return self._grpo(request)
            case FreezeReferenceRequest():
                self._loaded[0].start_phase()
            case SaveRequest():
                save_checkpoint(self._loaded[0], Path(request.directory))
            case CloseRequest():
                pass
        return OkReply()

    @property
    def _loaded(self) -> tuple[Trainer, Sampler]:
        if self._trainer is None or self._sampler is None:
            raise ModelError("the model worker has no model yet", hint="send a load request first")
        return self._trainer, self._sampler

    def _load(self, request: LoadRequest) -> LoadedReply:
        if request.threads:
            torch.set_num_threads(request.threads)
        settings = ModelSettings(
            lora_rank=request.lora_rank,
            lora_alpha=request.lora_alpha,
            dtype=request.dtype,
            device=request.device,
            seed=request.seed,
            max_context=request.max_context,
        )
        # The old adapters go first, so that two models never need room at once; the base is kept if it is the same.
        self._trainer = self._sampler = None
        wanted = (request.model, request.dtype, request.device)
        if self._base is None or self._base_source != wanted:
            self._base = None
            self._base, self._base_source = load_base(*wanted), wanted
        policy = PolicyModel(*self._base, settings, name=request.model)
        trainer = Trainer(policy, token_budget=request.token_budget)
        if request.checkpoint:
            load_checkpoint(trainer, Path(request.checkpoint))
        self._trainer, self._sampler = trainer, Sampler(policy)
        return LoadedReply(
            parameters=sum(p.numel() for p in policy.base.parameters()),
            trainable=sum(p.numel() for p in policy.policy_parameters.values()),
            context=policy.context,
            device=str(policy.device),
            version=trainer.version,
        )

    def _sft(self, request: SftStepRequest) -> MetricsReply:
        trainer, sampler = self._loaded
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
        if request.update:
            sampler.refresh()
        return MetricsReply(version=trainer.version, values=metrics)

    def _count_tokens(self, request: CountTokensRequest) -> TokenCountsReply:
        chat = self._loaded[0].policy.chat
        sequences = [
            chat.conversation([{"role": m.role, "content": m.content} for m in example.messages])
            for example in request.examples
        ]
        return TokenCountsReply(lengths=tuple((len(s.ids), sum(s.mask)) for s in sequences))

    def _grpo(self, request: GrpoStepRequest) -> MetricsReply:
        trainer, sampler = self._loaded
        settings = GrpoSettings(
            learning_rate=request.learning_rate,
            clip_epsilon=request.clip_epsilon,
            epsilon_high=request.epsilon_high,
            kl_coeff=request.kl_coeff,
            loss_type=request.loss_type,
            max_grad_norm=request.max_grad_norm,
            temperature=request.temperature,
            max_completion_length=request.max_completion_length,
            use_bias_correction_kl=request.use_bias_correction_kl,
        )
        old_logprobs: dict[int, Tensor] = {}

        def step() -> dict[str, float]:
            return grpo_step(trainer, request.episodes, settings, self._report, old_logprobs)

        try:
            steps = [self._within_memory(step) for _ in range(request.num_iterations)]
        finally:
            sampler.refresh()
        return MetricsReply(version=trainer.version, values=over_iterations(steps))

    @staticmethod
    def _tokenize(trainer: Trainer, example: SftExample) -> MaskedTokens:
        messages: list[Message] = [{"role": m.role, "content": m.content} for m in example.messages]
        return tokenize_demonstration(trainer, messages)

    def _within_memory(self, step: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Run a step, halving its micro-batches while memory runs out; the metrics say what was used."""
        trainer = self._loaded[0]
        while True:
            try:
                return {**step(), "micro_batch_tokens": float(trainer.token_budget)}
            except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                trainer.clear_gradients()
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                if trainer.token_budget // 2 < _SMALLEST_BUDGET:
                    raise ModelError("out of memory even with the smallest micro-batch") from error
                trainer.token_budget //= 2
                print(
                    f"out of memory: micro-batches of {trainer.token_budget} tokens from now on",
                    file=sys.stderr,
                )

    def _report(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._progress_at >= _PROGRESS_SECONDS:
            self._progress_at = now
            self._send(ProgressReply(done=done, total=total))


def serve(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer requests until they end or one says close."""

    def send(reply: BaseModel) -> None:
        replies.write(reply.model_dump_json().encode() + b"\n")
        replies.flush()

    worker = Worker(send)
    for line in requests:
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


def _answer(worker: Worker, request: WorkerRequest) -> WorkerReply:
    try:
        return worker.handle(request)
    except KrillError as error:
        return ErrorReply(message=str(error), detail=traceback.format_exc())
    # The boundary of the process: whatever broke is told to the engine, which decides.
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "")
        message = f"the model worker failed at {request.kind}: {type(error).__name__}: {reason}"
        return ErrorReply(message=message, detail=traceback.format_exc())


def _is_out_of_memory(error: BaseException) -> bool:
    """torch raises a plain RuntimeError when the CPU's memory is short."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "not enough memory" in str(error)


def main() -> None:
    """Take standard output for replies alone and serve."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    with replies:
        serve(sys.stdin.buffer, replies)


if __name__ == "__main__":
    main()
