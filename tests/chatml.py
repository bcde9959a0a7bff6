"""A tokenizer in the manner of Qwen2.5-Instruct's: the same class, pre-tokenizer, control tokens and conversation form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

from krill_tui.training.tiny import build_model
from tests.tiny_model import TEXTS

DEFAULT_SYSTEM = "You are Qwen, created by Alibaba Cloud. You are a helpful assistant."
CHATML = (
    "{% if messages[0]['role'] != 'system' %}"
    f"<|im_start|>system\n{DEFAULT_SYSTEM}<|im_end|>\n"
    "{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""A default system message, and a line end after each turn's end."""


def chatml_tokenizer(vocab: int = 500) -> Qwen2Tokenizer:
    """To it `<think>` and the like are ordinary text of several tokens, which merge with their neighbours (`><`)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    trained: dict[str, Any] = {"vocab": model["vocab"], "merges": [tuple(pair) for pair in model["merges"]]}
    fast = Qwen2Tokenizer(**trained, clean_up_tokenization_spaces=False)
    fast.add_special_tokens(
        {
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "additional_special_tokens": ["<|im_start|>"],
        }
    )
    fast.chat_template = CHATML
    return fast


def build_chatml_model(folder: Path, context: int = 2048) -> Path:
    """A random model with that tokenizer, as a Hugging Face folder."""
    tokenizer = chatml_tokenizer()
    torch.manual_seed(0)
    model = build_model(len(tokenizer), 32, layers=2, heads=4, kv_heads=2, mlp=64, context=context)
    with torch.no_grad():
        model.model.embed_tokens.weight.mul_(10)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return folder
