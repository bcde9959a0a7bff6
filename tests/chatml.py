"""A tokenizer with the chat template that Qwen and many others use."""

from __future__ import annotations

from transformers import PreTrainedTokenizerFast

from krill_tui.training.tiny import build_tokenizer
from tests.tiny_model import TEXTS

CHATML = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Like Qwen2.5's: a default system message, and a line end after each turn's end."""


def chatml_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = build_tokenizer(TEXTS, 400)
    tokenizer.add_special_tokens({"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]})
    tokenizer.chat_template = CHATML
    return tokenizer
