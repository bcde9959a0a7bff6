"""How much memory a model will need, from its `config.json` alone and before anything is loaded.

An estimate: parameters, adapters, optimizer state and KV caches are counted exactly for decoders of the Llama kind and
GPT-NeoX; activations and logits are counted by the tensors that autograd keeps. Knows nothing of torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from krill_tui.errors import DataError
from krill_tui.io.json_text import loads_leniently

GIB = 2**30
_BYTES = {"float32": 4, "bfloat16": 2}
_NO_QKV_BIAS = {
    "llama",
    "mistral",
    "qwen3",
    "phi3",
    "olmo2",
    "granite",
    "gemma",
    "gemma2",
    "gemma3_text",
    "cohere",
}
_SMALL = 50_000_000
"""Up to this many parameters the trainer works on merged weights (`training/model.py`)."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The dimensions of a decoder."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_size: int
    mlp: int
    vocabulary: int
    tied: bool
    gated: bool = True
    """Three matrices in the MLP, not two."""
    qkv_bias: bool = False
    bias: bool = False
    """In all linear layers and norms, as GPT-NeoX has it."""
    norms: int = 2
    """In a layer, each of the hidden size."""
    head_norms: int = 0
    """In a layer, each of a head's size."""
    positions: int = 0
    """Positions that have an embedding, as GPT-2's."""

    @property
    def attention(self) -> int:
        return self.heads * self.head_size

    @property
    def kv(self) -> int:
        return self.kv_heads * self.head_size

    def linear_layers(self) -> list[tuple[int, int]]:
        """(in, out) of the matrices of one layer that LoRA adapts."""
        if self.bias:  # query, key and value are one matrix
            attention = [(self.hidden, self.attention + 2 * self.kv), (self.attention, self.hidden)]
        else:
            attention = [
                (self.hidden, self.attention),
                *[(self.hidden, self.kv)] * 2,
                (self.attention, self.hidden),
            ]
        into = [(self.hidden, self.mlp)] * (2 if self.gated else 1)
        return [*attention, *into, (self.mlp, self.hidden)]


@dataclass(frozen=True, slots=True)
class Load:
    """What is asked of the model."""

    dtype: str = "float32"
    lora_rank: int = 16
    gradient_checkpointing: bool = False
    micro_batch_tokens: int = 8192
    episodes: int = 64
    """Live at once in this process; 0: sampled elsewhere, or not at all."""
    context: int = 2048
    """Tokens that an episode may take."""
    shards: int = 1
    """Processes that the weights are sharded over."""
    policy_share: float = 0.3
    """Part of a micro-batch's tokens that the policy said: logits are computed for those alone."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Bytes of one process."""

    parameters: int
    """Not bytes: how many there are."""
    weights: int
    gathered: int
    """What is whole of sharded weights at a time."""
    sampling_copy: int
    """The weights with the adapter in them, which sampling uses; embeddings are shared."""
    adapters: int
    """Policy and frozen reference, in float32."""
    optimizer: int
    """Gradients and AdamW's two moments of the policy adapter."""
    kv_cache: int
    """Of all live episodes at full length."""
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values()) - self.parameters


def read_shape(folder: str | Path) -> Shape:
    """The shape of a model folder.

    Raises:
        DataError: there is no `config.json`, or it lacks a dimension.
    """
    path = Path(folder) / "config.json"
    try:
        config = loads_leniently(path.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as a model's config") from error
    return shape_of(config)


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The shape that a `config.json` describes, with the names that transformers gives the dimensions.

    Raises:
        DataError: a dimension is missing or no number.
    """
    text = config.get("text_config")
    if isinstance(text, Mapping):
        config = text
    kind = str(config.get("model_type", ""))
    try:
        hidden = int(config.get("hidden_size") or config["n_embd"])
        heads = int(config.get("num_attention_heads") or config["n_head"])
        neox = kind in ("gpt_neox", "gpt2")
        gemma = kind in ("gemma2", "gemma3_text")
        default_tied = kind in ("gemma", "gemma2", "gemma3_text", "gpt2", "cohere")
        return Shape(
            layers=int(config.get("num_hidden_layers") or config["n_layer"]),
            hidden=hidden,
            heads=heads,
            kv_heads=int(config.get("num_key_value_heads") or heads),
            head_size=int(config.get("head_dim") or hidden // heads),
            mlp=int(config.get("intermediate_size") or config.get("n_inner") or 4 * hidden),
            vocabulary=int(config["vocab_size"]),
            tied=bool(config.get("tie_word_embeddings", default_tied)),
            gated=not neox,
            qkv_bias=bool(config.get("attention_bias", kind not in _NO_QKV_BIAS)) and not neox,
            bias=neox,
            norms=4 if gemma else 2,
            positions=int(config.get("n_positions") or 0) if kind == "gpt2" else 0,
            head_norms=2 if kind in ("qwen3", "gemma3_text") else 0,
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise DataError(f"the model's config has no usable dimension {error}") from error


def count_parameters(shape: Shape) -> int:
    """Parameters of the model: embeddings, layers, norms, and the head where it is not the embedding's."""
    matrices = shape.linear_layers()
    layer = sum(rows * columns for rows, columns in matrices)
    layer += shape.norms * shape.hidden * (2 if shape.bias else 1) + shape.head_norms * shape.head_size
    if shape.bias:
        layer += sum(columns for _, columns in matrices)
    elif shape.qkv_bias:
        layer += shape.attention + 2 * shape.kv
    embeddings = (shape.vocabulary * (1 if shape.tied else 2) + shape.positions) * shape.hidden
    return shape.layers * layer + embeddings + shape.hidden * (2 if shape.bias else 1)


def estimate(shape: Shape, load: Load) -> Estimate:
    """What one process needs at its peak: everything that stays, and the largest training pass.

    Sharing the episodes among processes divides the caches. Work space of a moment and what an allocator holds back
    are not counted.
    """
    size = _BYTES[load.dtype]
    parameters = count_parameters(shape)
    matrices = shape.linear_layers()
    adapted = shape.layers * sum(rows * columns for rows, columns in matrices)
    adapter = shape.layers * load.lora_rank * sum(rows + columns for rows, columns in matrices)
    small = parameters <= _SMALL and not load.gradient_checkpointing and load.shards == 1
    # Small models are trained on merged weights of policy and reference, with a gradient of full size.
    merged = 3 * adapted * size if small else 0
    return Estimate(
        parameters=parameters,
        weights=-(-parameters // load.shards) * size + merged,
        gathered=_gathered(shape) * size if load.shards > 1 else 0,
        sampling_copy=adapted * size if load.episodes else 0,
        adapters=2 * adapter * 4,
        optimizer=3 * adapter * 4,
        kv_cache=2 * load.episodes * load.context * shape.layers * shape.kv * size,
        activations=load.micro_batch_tokens
        * activation_bytes(shape, size, load.gradient_checkpointing, small),
        # Logits in the model's precision and in float32, their logarithms, the entropy's work and two gradients.
        logits=int(load.micro_batch_tokens * load.policy_share) * shape.vocabulary * (size + 5 * 4),
    )


def _gathered(shape: Shape) -> int:
    """Parameters that a pass over sharded weights has in one piece: what is outside of the layers, and three layers,
    one that computes, the next, and the buffer that one came in."""
    layer = sum(rows * columns for rows, columns in shape.linear_layers())
    return count_parameters(shape) - (shape.layers - min(shape.layers, 3)) * layer


def activation_bytes(shape: Shape, size: int, checkpointing: bool, merged: bool) -> int:
    """Bytes that one token of a training pass keeps for the backward pass."""
    hidden, attention, kv, mlp = shape.hidden, shape.attention, shape.kv, shape.mlp
    # Norms keep what came in and what went out (float32); attention its three inputs, after the rotation as well, and
    # its output; the MLP both branches, the activation and the product.
    layer = shape.norms * hidden * (4 + 2 * size) + (3 * attention + 4 * kv) * size
    layer += (4 if shape.gated else 2) * mlp * size
    if not merged and size < 4:
        # PEFT's layers each keep their input once more, in float32 for the adapter.
        layer += sum(rows for rows, _ in shape.linear_layers()) * 4
    if not checkpointing:
        return shape.layers * layer
    return shape.layers * hidden * size + layer


def describe(needed: Estimate, load: Load, found: int | None) -> str:
    """One line: what is needed, of what it is made, and what was found."""
    parts = {
        "weights": needed.weights + needed.adapters,
        "gathered for a pass": needed.gathered,
        "sampling copy": needed.sampling_copy,
        "optimizer": needed.optimizer,
        f"KV of {load.episodes} episodes": needed.kv_cache,
        f"micro-batch of {load.micro_batch_tokens} tokens": needed.activations + needed.logits,
    }
    said = ", ".join(f"{name} {_gib(value)}" for name, value in parts.items() if value)
    of = f"; found {_gib(found)} GiB" if found is not None else ""
    return f"memory: about {_gib(needed.total)} GiB at most ({said}){of}"


def advice(needed: Estimate, load: Load) -> str:
    """What would save the most."""
    if load.dtype == "float32":
        return "policy.dtype bfloat16 halves most of it"
    largest = max(
        ("kv_cache", "activations", "logits", "sampling_copy"), key=lambda name: getattr(needed, name)
    )
    return {
        "kv_cache": "lower env.concurrency or rl.max_prompt_length",
        "activations": "lower policy.micro_batch_tokens, or set policy.gradient_checkpointing",
        "logits": "lower policy.micro_batch_tokens",
        "sampling_copy": "sample with policy.sampler vllm",
    }[largest]


def _gib(value: int) -> str:
    return f"{value / GIB:.1f}" if value >= GIB else f"{value / GIB:.2f}"
