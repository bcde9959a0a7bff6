"""Reading a model: its template and config are found fit before the weights are read, its logits after."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from krill_tui.errors import ModelError, ModelRefusedError
from krill_tui.training.adapter import adapter_base, is_adapter
from krill_tui.training.architecture import check_config
from krill_tui.training.model import ModelSettings, PolicyModel, output_logits
from krill_tui.training.ranks import Ranks, Sharding, is_out_of_memory
from krill_tui.training.shard import Sharded, leave, shard
from krill_tui.training.tokens import ChatTokenizer, load_tokenizer


def load_model(folder: str, settings: ModelSettings) -> PolicyModel:
    """Load a base model and put fresh adapters on it; see `load_base` for the errors."""
    base, chat = load_base(folder, settings.dtype, settings.device)
    return PolicyModel(base, chat, settings, name=folder)


def load_base(
    folder: str,
    dtype: Literal["float32", "bfloat16"],
    device: str,
    *,
    date: datetime.date | None = None,
    sampling: bool = True,
) -> tuple[Any, ChatTokenizer]:
    """Load a Hugging Face causal LM (safetensors only) and its tokenizer; `device` auto takes the GPU if there is one.

    `date`: what a chat template that writes the date is told; `sampling`: whether the worker is to sample the model.

    Raises:
        ModelRefusedError: its architecture or its chat template cannot be worked with.
        ModelError: no such model, no safetensors, no chat template, or a device that is not there.
    """
    chat = _read_chat(folder, date, sampling)
    base = _read_base(folder, dtype, choose_device(device))
    _check_logits(base, folder)
    return base, chat


def load_sharded(
    folder: str,
    dtype: Literal["float32", "bfloat16"],
    ranks: Ranks,
    sharding: Sharding,
    date: datetime.date | None = None,
) -> tuple[Any, ChatTokenizer, Sharded]:
    """Load a base model that the processes share the weights of; see `load_base` for the errors.

    The first process reads it into its main memory, and the others get their parts from it.
    """
    with ranks.together():
        chat = _read_chat(folder, date, sampling=False)
        base = _read_base(folder, dtype, "cpu")
    try:
        sharded = shard(base, ranks, sharding)
    except ModelError:
        raise
    except Exception as error:
        leave(error)
        raise
    _check_logits(base, folder, sharded)
    return base, chat, sharded


def _read_chat(folder: str, date: datetime.date | None, sampling: bool) -> ChatTokenizer:
    """The tokenizer of a model whose config and template were found fit."""
    if is_adapter(Path(folder)):
        base = adapter_base(Path(folder)) or "its base model"
        raise ModelRefusedError(
            f"{folder}: is a LoRA adapter and no model",
            hint=f"set policy.model to {base} and policy.adapter to it",
        )
    tokenizer = load_tokenizer(folder)
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelRefusedError(f"{folder}: its config cannot be read: {_one_line(error)}") from error
    check_config(config, folder, sampling=sampling)
    try:
        return ChatTokenizer(tokenizer, date)
    except ModelRefusedError as error:
        raise ModelRefusedError(f"{folder}: {error.message}", hint=error.hint) from error


def _one_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


def _read_base(folder: str, dtype: Literal["float32", "bfloat16"], device: str) -> Any:
    try:
        base: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), use_safetensors=True
        )
        base = base.to(device)
    except Exception as error:  # code of any architecture runs here
        if is_out_of_memory(error):
            raise ModelError(
                f"out of memory while loading {folder} on {device}",
                hint="a smaller model, or policy.dtype bfloat16",
            ) from error
        raise ModelError(f"cannot load the model {folder}: {_one_line(error)}") from error
    if device == "cpu":
        # Without this transformers copies grouped keys and values for every head whenever there is a mask.
        os.environ.setdefault("TRANSFORMERS_SDPA_FORCE_GQA", "1")
    return base.eval()


def choose_device(wanted: str) -> str:
    """`auto` is CUDA where there is one, else Apple's GPU, else the CPU; any other name stands for itself.

    Raises:
        ModelError: the device is not there.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if wanted == "auto":
        return "cuda" if cuda else "mps" if mps else "cpu"
    try:
        kind = torch.device(wanted).type
    except RuntimeError as error:
        raise ModelError(
            f"there is no device '{wanted}'", hint="policy.device: auto, cpu, cuda, mps"
        ) from error
    if (kind == "cuda" and not cuda) or (kind == "mps" and not mps):
        raise ModelError(
            f"this machine, or its torch, has no {kind} device", hint="policy.device: auto or cpu"
        )
    return wanted


@torch.no_grad()
def _check_logits(base: Any, folder: str, sharded: Sharded | None = None) -> None:
    """Refuse a model that makes its logits in a way of its own, before anything is trained on wrong ones."""
    ids = torch.arange(2, 6, device=base.device)[None] % base.config.get_text_config().vocab_size

    def both() -> tuple[Tensor, Tensor]:
        expected = base(input_ids=ids, use_cache=False).logits[0].float()
        hidden = base.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        return output_logits(base, hidden), expected

    try:
        given, expected = sharded(both) if sharded else both()
    except Exception as error:  # code of any architecture runs here
        if is_out_of_memory(error) or sharded:
            raise
        raise ModelRefusedError(
            f"{folder}: {base.config.model_type} is no causal language model that can be trained here: {_one_line(error)}"
        ) from error
    # As far apart as rounding in bfloat16 puts them.
    if not torch.allclose(given, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max())):
        raise ModelRefusedError(f"{folder} computes its logits in a way the trainer does not know")
