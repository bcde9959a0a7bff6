"""Random models of many families, each saved as an ordinary Hugging Face folder with a ChatML tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.chatml import chatml_tokenizer

VOCABULARY = 1200
"""More rows than the tokenizer has tokens, as chat models have, and too many for krill-tiny's kind."""
_COMMON = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 1024,
    "bos_token_id": None,
    "pad_token_id": None,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2": {"tie_word_embeddings": True},
    "llama": {"tie_word_embeddings": False},
    "qwen3": {"head_dim": 16},
    "mistral": {"sliding_window": 200},
    "phi3": {},
    "granite": {"logits_scaling": 4.0},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "final_logit_softcapping": 5.0},
    "gemma3_text": {"head_dim": 16, "sliding_window": 4096},
    "gpt_neox": {"num_key_value_heads": None},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 1024, "n_inner": 64},
    "olmo2": {},
}
"""What each takes on top of the common dimensions."""


def family_config(family: str, **changes: Any) -> Any:
    """A config of a family, in the common tiny dimensions unless `changes` says otherwise."""
    if family == "gpt2":
        common = {key: _COMMON[key] for key in ("vocab_size", "bos_token_id", "pad_token_id")}
    else:
        common = _COMMON
    values = {**common, **FAMILIES.get(family, {}), **changes}
    return AutoConfig.for_model(family, **{k: v for k, v in values.items() if v is not None or "token" in k})


def build_family(folder: Path, family: str, **changes: Any) -> Path:
    """Write a random model of a family with its tokenizer; the same bytes each time."""
    tokenizer = chatml_tokenizer()
    config = family_config(family, eos_token_id=tokenizer.eos_token_id, **changes)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        # Small random weights give every token the same chance; larger ones make replies that can be told apart.
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(4)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
