"""What an architecture means for sampling and training: read from its config, before or while it is loaded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from krill_tui.errors import ModelRefusedError

_EXPERT_LEAVES = frozenset({"gate", "router", "w1", "w2", "w3", "gate_proj", "up_proj", "down_proj"})
"""Names that PEFT takes for those of experts, which transformers keeps in one tensor, or that route to them."""
_ATTENTION = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
"""Kinds of layers whose state is keys and values alone."""
_SAMPLE_ELSEWHERE = "take another model, or sample it with policy.sampler vllm"


def check_config(config: Any, name: str, *, sampling: bool) -> None:
    """Refuse what cannot work, before the weights are read; `sampling`: the worker is to sample it itself.

    Raises:
        ModelRefusedError: an encoder-decoder, quantised weights, or with `sampling` layers that keep a state.
    """
    kind = getattr(config, "model_type", "") or "unknown"
    if getattr(config, "is_encoder_decoder", False):
        raise ModelRefusedError(
            f"{name}: {kind} is an encoder-decoder, and episodes are one growing sequence",
            hint="use a decoder, such as Qwen, Llama or Gemma",
        )
    if quantized := getattr(config, "quantization_config", None):
        method = quantized.get("quant_method") if isinstance(quantized, dict) else quantized.quant_method
        raise ModelRefusedError(
            f"{name}: its weights are quantised ({getattr(method, 'value', method) or 'unknown'}), "
            "and an adapter cannot be multiplied into them",
            hint="use the copy in bfloat16 or float32",
        )
    if sampling and (other := sorted(set(layer_types(config)) - _ATTENTION)):
        raise ModelRefusedError(
            f"{name}: {kind} has layers that keep a state of their own ({', '.join(other)}), which the sampler "
            "cannot keep between turns",
            hint=_SAMPLE_ELSEWHERE,
        )


def layer_types(config: Any) -> tuple[str, ...]:
    """The kind of each layer, where a config tells them apart."""
    return tuple(getattr(config.get_text_config(), "layer_types", None) or ())


def context_limits(config: Any) -> list[int]:
    """Tokens after which positions end, or the window of an attention that slides in all layers; none where neither
    does. Where some layers slide and others do not, or a config says which do, the window is no limit."""
    text = config.get_text_config()
    limits = [getattr(text, "max_position_embeddings", None)]
    if getattr(text, "use_sliding_window", True) and not layer_types(config):
        limits.append(getattr(text, "sliding_window", None))
    return [int(limit) for limit in limits if isinstance(limit, int) and limit > 0]


def attention_masks(config: Any, positions: Tensor, span: int, dtype: torch.dtype) -> Any:
    """What each new token attends to among the first `span` columns, added to the scores.

    `positions` `[n, L]`: the columns of the new tokens. One mask `[n, 1, L, span]`, or one for each kind of layer.
    """
    columns = torch.arange(span, device=positions.device)
    here = positions[:, None, :, None]
    seen = columns <= here
    kinds = set(layer_types(config))
    if not kinds - {"full_attention"}:
        return _mask(seen, dtype)
    text = config.get_text_config()
    masks = {}
    for kind in kinds | {"full_attention"}:
        allowed = seen
        if kind == "sliding_attention":
            allowed = seen & (columns > here - int(text.sliding_window))
        elif kind == "chunked_attention":
            size = int(text.attention_chunk_size)
            allowed = seen & (columns // size == here // size)
        masks[kind] = _mask(allowed, dtype)
    return masks


def _mask(seen: Tensor, dtype: torch.dtype) -> Tensor:
    mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
    return mask.masked_fill_(~seen, float("-inf"))


def adapter_targets(base: Any) -> str | list[str]:
    """The layers that LoRA goes to: all linear ones, without experts that share one tensor and what routes to them."""
    if not has_experts(base):
        return "all-linear"
    head = base.get_output_embeddings()
    leaves = {
        name.rpartition(".")[2]
        for name, module in base.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    return sorted(leaves - _EXPERT_LEAVES)


def has_experts(base: Any) -> bool:
    """Whether a model holds experts whose weights are one tensor."""
    return any(p.dim() == 3 and "expert" in name for name, p in base.named_parameters())
