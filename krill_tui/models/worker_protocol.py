"""Messages between the engine and the model worker: one JSON object a line, each way.

The worker owns torch. It is a child process that reads requests from its standard input and answers on its
standard output, one reply per request and in order, plus `Progress` and `Note` lines in between. DESIGN section 8.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, TypeAdapter

from krill_tui.trajectory import EpisodeTokens, Record


class ChatMessage(Record):
    role: Literal["system", "user", "assistant"]
    content: str


class LoadRequest(Record):
    """Load the base model and put a fresh LoRA adapter on it (or the one in `checkpoint`)."""

    kind: Literal["load"] = "load"
    model: str
    """Folder or Hugging Face name."""
    checkpoint: str | None = None
    """Folder written by `save`; also restores optimizer, RNG state and reference adapter."""
    lora_rank: int = 16
    lora_alpha: int = 32
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "auto"
    threads: int = 0
    """CPU threads; 0 lets the worker choose."""
    seed: int = 0
    max_context: int = 2048
    token_budget: int = 8192
    """Padded tokens of one training micro-batch; halved by the worker when memory runs out."""
    date: str = ""
    """What a chat template that writes the date is told, as YYYY-MM-DD; empty: today."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass: less memory, about a third more time."""
    episodes: int = 0
    """Episodes that will be live at once, for the estimate of memory; 0: nothing is sampled here."""


class SampleItem(Record):
    episode: str
    messages: tuple[ChatMessage, ...]
    """Only what is new since the worker's last reply of this episode (the whole, the first time)."""
    admissible: tuple[str, ...] = ()
    constrained: bool = False
    temperature: float = 1.0
    max_tokens: int = 64
    seed: int = 0


class SampleRequest(Record):
    kind: Literal["sample"] = "sample"
    items: tuple[SampleItem, ...]


class FinishRequest(Record):
    """Drop the KV caches of these episodes."""

    kind: Literal["finish"] = "finish"
    episodes: tuple[str, ...]


class SftExample(Record):
    """One demonstration: loss on the assistant's tokens only."""

    messages: tuple[ChatMessage, ...]


class SftStepRequest(Record):
    """One optimizer step of supervised fine-tuning over these demonstrations."""

    kind: Literal["sft_step"] = "sft_step"
    examples: tuple[SftExample, ...]
    learning_rate: float
    max_grad_norm: float = 1.0
    update: bool = True
    """False: only measure the loss."""


class CountTokensRequest(Record):
    """How long conversations are, as SFT would train on them but before any is cut."""

    kind: Literal["count_tokens"] = "count_tokens"
    examples: tuple[SftExample, ...]


class GrpoEpisode(Record):
    tokens: EpisodeTokens
    advantage: float


class GrpoStepRequest(Record):
    """One step of GRPO (the paper's Eq. 9) over a batch; the reference is the frozen SFT adapter."""

    kind: Literal["grpo_step"] = "grpo_step"
    episodes: tuple[GrpoEpisode, ...]
    learning_rate: float
    clip_epsilon: float = 0.2
    epsilon_high: float | None = None
    kl_coeff: float = 0.01
    loss_type: Literal["grpo", "dr_grpo", "dapo", "gspo"] = "grpo"
    max_grad_norm: float = 1.0
    temperature: float = 1.0
    """The temperature the episodes were sampled at; log-probabilities are taken at it."""
    importance_sampling_cap: float | None = None
    """Weigh each token by min(pi_old / sampler, cap): the sampler was another program. None: it was this worker."""
    max_completion_length: int = 0
    """What dr_grpo divides by; 0 takes the longest episode of the batch."""
    use_bias_correction_kl: bool = False
    num_iterations: int = 1
    """Optimizer steps over the same episodes."""


class FreezeReferenceRequest(Record):
    """Copy the policy adapter into the frozen reference; a fresh optimizer for RL."""

    kind: Literal["freeze_reference"] = "freeze_reference"


class SaveRequest(Record):
    """Write adapter (safetensors), reference, optimizer, RNG state; the manifest last."""

    kind: Literal["save"] = "save"
    directory: str


class TokenizeRequest(Record):
    """Ids that these messages add to an episode's sequence, up to where the policy speaks."""

    kind: Literal["tokenize"] = "tokenize"
    messages: tuple[ChatMessage, ...]
    first: bool
    """They begin the sequence, and may hold earlier replies."""
    ended: bool = True
    """The reply before them closed with the end-of-turn token."""


class DecodeRequest(Record):
    """The text of a reply's ids, with what the chat template has written of it."""

    kind: Literal["decode"] = "decode"
    ids: tuple[int, ...]


class ExportRequest(Record):
    """Write the policy adapter alone, as a PEFT folder that another server can load."""

    kind: Literal["export"] = "export"
    directory: str


class CloseRequest(Record):
    kind: Literal["close"] = "close"


WorkerRequest = Annotated[
    LoadRequest
    | SampleRequest
    | FinishRequest
    | SftStepRequest
    | CountTokensRequest
    | GrpoStepRequest
    | FreezeReferenceRequest
    | SaveRequest
    | TokenizeRequest
    | DecodeRequest
    | ExportRequest
    | CloseRequest,
    Field(discriminator="kind"),
]


class LoadedReply(Record):
    kind: Literal["loaded"] = "loaded"
    parameters: int
    trainable: int
    context: int
    device: str
    version: int = 0
    """Number of optimizer steps the loaded adapter has behind it."""
    vocabulary: int = 0
    """Ids are below this."""
    end_of_turn: int = 0
    stop_ids: tuple[int, ...] = ()
    """Ids that end a reply."""
    changes: tuple[str, ...] = ()
    """What is done otherwise than the model's template, config or adapter has it, a line each."""


class SampleOutput(Record):
    episode: str
    text: str
    context_ids: tuple[int, ...]
    ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    allowed: tuple[tuple[int, ...], ...] = ()
    finish: Literal["stop", "length", "context"] = "stop"


class SampledReply(Record):
    kind: Literal["sampled"] = "sampled"
    outputs: tuple[SampleOutput, ...]
    version: int
    seconds: float = 0.0


class MetricsReply(Record):
    """Of a training step, under TRL's names where TRL has one (loss, kl, clip_ratio/low_mean, entropy, grad_norm ...)."""

    kind: Literal["metrics"] = "metrics"
    version: int
    values: dict[str, float]


class TokenCountsReply(Record):
    kind: Literal["token_counts"] = "token_counts"
    lengths: tuple[tuple[int, int], ...]
    """Of each example: all tokens, and those of the policy's replies."""


class ProgressReply(Record):
    """Between a training request and its reply, so that a long step shows life; not the reply itself."""

    kind: Literal["progress"] = "progress"
    done: int
    total: int


class TokensReply(Record):
    kind: Literal["tokens"] = "tokens"
    ids: tuple[int, ...]


class TextReply(Record):
    kind: Literal["text"] = "text"
    text: str


class ExportedReply(Record):
    kind: Literal["exported"] = "exported"
    version: int


class NoteReply(Record):
    """Between a request and its reply: a line for people. Not the reply itself."""

    kind: Literal["note"] = "note"
    level: Literal["info", "warning"] = "info"
    message: str


class OkReply(Record):
    kind: Literal["ok"] = "ok"


class ErrorReply(Record):
    kind: Literal["error"] = "error"
    message: str
    """One line."""
    hint: str | None = None
    refused: bool = False
    """The model, its template or an adapter cannot be worked with."""
    detail: str = ""
    """The worker's traceback, for the log file only."""


WorkerReply = Annotated[
    LoadedReply
    | SampledReply
    | MetricsReply
    | TokenCountsReply
    | TokensReply
    | TextReply
    | ExportedReply
    | ProgressReply
    | NoteReply
    | OkReply
    | ErrorReply,
    Field(discriminator="kind"),
]

request_adapter: TypeAdapter[WorkerRequest] = TypeAdapter(WorkerRequest)
reply_adapter: TypeAdapter[WorkerReply] = TypeAdapter(WorkerReply)
