"""Tokenizer and architecture of krill-tiny, the embedded policy; tests build smaller models of the same kind."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

PAD, SYSTEM, USER, ASSISTANT, END = "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
CONTROL_TOKENS = (PAD, SYSTEM, USER, ASSISTANT, END)
"""Template tokens, ids 0-4; decoding with `skip_special_tokens` drops them."""
FORMAT_TOKENS = ("<think>", "</think>", "<action>", "</action>")
"""Part of a reply's text, one token each, ids 5-8."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ '<|end|>' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build_tokenizer(texts: Iterable[str], vocab_size: int, words: Iterable[str] = ()) -> Qwen2Tokenizer:
    """Train a byte-level BPE tokenizer on `texts` and give it the chat template.

    Its class is Qwen2's, whose pre-tokenizer splits digits and words from what precedes them. Whatever stands in
    `words` is one token all the same, wherever it occurs (` 12`, `mug:`, ` [gen_`). Every text in NFC can be encoded
    and is decoded unchanged. `vocab_size` is the upper bound of `len(tokenizer)` and at least 265 (256 bytes and 9
    special tokens) plus the number of `words`.
    """
    words = tuple(dict.fromkeys(words))
    added = (*CONTROL_TOKENS, *FORMAT_TOKENS, *words)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, normalized=False) for token in added],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    # What is one token anyway teaches the merges nothing. Longest first, as the tokenizer matches them.
    known = re.compile("|".join(re.escape(token) for token in sorted(added, key=len, reverse=True)))
    tokenizer.train_from_iterator((part for text in texts for part in known.split(text) if part), trainer)
    model = json.loads(tokenizer.to_str())["model"]
    # Its annotations are narrower than what it takes.
    make: Any = Qwen2Tokenizer
    fast = make(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        unk_token=None,
        pad_token=PAD,
        eos_token=END,
        clean_up_tokenization_spaces=False,
    )
    fast.add_tokens([AddedToken(token, normalized=False, special=True) for token in CONTROL_TOKENS])
    fast.add_tokens(
        [AddedToken(token, normalized=False, special=False) for token in (*FORMAT_TOKENS, *words)]
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def build_model(
    vocab: int,
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    mlp: int,
    context: int,
    *,
    rope_theta: float = 10_000.0,
) -> Qwen2ForCausalLM:
    """Build a randomly initialised decoder with tied embeddings; call `torch.manual_seed` before."""
    config = Qwen2Config(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=mlp,
        max_position_embeddings=context,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        tie_word_embeddings=True,
        pad_token_id=CONTROL_TOKENS.index(PAD),
        bos_token_id=None,
        eos_token_id=CONTROL_TOKENS.index(END),
    )
    return Qwen2ForCausalLM(config)
