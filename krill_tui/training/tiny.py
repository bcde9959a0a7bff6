"""Tokenizer and architecture of krill-tiny, the embedded policy; tests build smaller models of the same kind."""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

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

# Alternatives, first match wins: the head of an id such as "[gen_"; a word with its leading space and trailing
# colon; a number; other symbols; line ends; any other white space.
_SPLIT = Regex(r" ?\[\p{L}+_| ?\p{L}+:?| ?\p{N}+| ?\[| ?[^\s\p{L}\p{N}\[]+|\n+|\s")


def build_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on `texts` and give it the chat template.

    Every text can be encoded and is decoded unchanged. `vocab_size` is the upper bound of `len(tokenizer)` and at
    least 265 (256 bytes and 9 special tokens).
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_SPLIT, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, normalized=False) for token in (*CONTROL_TOKENS, *FORMAT_TOKENS)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=_with_visible_format(tokenizer),
        pad_token=PAD,
        eos_token=END,
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def _with_visible_format(tokenizer: Tokenizer) -> Tokenizer:
    """The trainer marks all its added tokens special; unmark those that belong to a reply's text."""
    state = json.loads(tokenizer.to_str())
    for token in state["added_tokens"]:
        token["special"] = token["content"] in CONTROL_TOKENS
    return Tokenizer.from_str(json.dumps(state))


def build_model(
    vocab: int,
    hidden: int,
    layers: int,
    heads: int,
    kv_heads: int,
    mlp: int,
    context: int,
    *,
    head_size: int | None = None,
    rope_theta: float = 10_000.0,
    attention_bias: bool = False,
) -> LlamaForCausalLM:
    """Build a randomly initialised decoder with tied embeddings; call `torch.manual_seed` before.

    `head_size`: of each attention head, `hidden // heads` unless given.

    Llama's layers are Qwen2's without the biases of the attention. The name matters: transformers 5 gives every
    model that calls itself qwen2 the Qwen2 pre-tokenizer, whatever its tokenizer.json says.
    """
    config = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=mlp,
        max_position_embeddings=context,
        head_dim=head_size,
        rope_parameters={"rope_type": "default", "rope_theta": rope_theta},
        attention_bias=attention_bias,
        tie_word_embeddings=True,
        pad_token_id=CONTROL_TOKENS.index(PAD),
        bos_token_id=None,
        eos_token_id=CONTROL_TOKENS.index(END),
    )
    return LlamaForCausalLM(config)
