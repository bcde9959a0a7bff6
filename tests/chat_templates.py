"""Chat templates to try, and tokenizers that have their tokens: those that TRL ships, and forms written for these tests
after the public description of each family (its tokens and where they stand)."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import trl
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from tests.chatml import chatml_tokenizer
from tests.tiny_model import TEXTS

_TOKEN = re.compile(
    r"<[|｜][^\s<>{}'\"]+>|<[a-z_]+\|>|<(?:start|end)_of_(?:turn|utterance)>|\[/?(?:INST|gMASK|SYSTEM_PROMPT|THINK)\]|<sop>"
)
_MARKED = ("<|channel>", "<channel|>")
_SHIPPED = Path(trl.__file__).parent / "chat_templates"

SHIPPED = {path.stem: path.read_text(encoding="utf-8") for path in sorted(_SHIPPED.glob("*.jinja"))}
"""By name, as TRL ships them."""
VISION = {name for name in SHIPPED if name.startswith(("idefics3", "llava_next", "smolvlm"))}
"""Those that want messages in parts."""


def _turns(system: str, user: str, assistant: str, opening: str, head: str = "") -> str:
    """A template of the usual form, by what it writes for each role."""
    return (
        f"{head}{{% for m in messages %}}"
        f"{{% if m.role == 'system' %}}{system}{{% elif m.role == 'user' %}}{user}{{% else %}}{assistant}{{% endif %}}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{opening}{{% endif %}}"
    )


_ALTERNATE = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}{% endfor %}"
)
_TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
WRITTEN = {
    "zephyr": _turns(
        *(
            f"<|{role}|>\n{{{{ m.content }}}}{{{{ eos_token }}}}\n"
            for role in ("system", "user", "assistant")
        ),
        opening="<|assistant|>\n",
    ),
    "vicuna": _turns(
        "{{ m.content }} ", "USER: {{ m.content }} ", "ASSISTANT: {{ m.content }}</s>", "ASSISTANT:"
    ),
    "mistral_v1": _turns(
        "",
        "[INST] {{ m.content }} [/INST]",
        "{{ m.content }}{{ eos_token }}",
        "",
        "{{ bos_token }}" + _ALTERNATE,
    ),
    "mistral_v2": _turns(
        "",
        "[INST] {{ m.content }} [/INST]",
        " {{ m.content }}{{ eos_token }}",
        "",
        "{{ bos_token }}" + _ALTERNATE,
    ),
    # The system message moves to the last user message.
    "mistral_v3": (
        "{{ bos_token }}{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
        "{% for m in messages %}{% if m.role == 'user' %}[INST] "
        "{% if loop.last and system %}{{ system }}\n\n{% endif %}{{ m.content }}[/INST]"
        "{% elif m.role == 'assistant' %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
    ),
    "llama2": (
        "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
        "{% set turns = messages[1:] if messages[0].role == 'system' else messages %}"
        "{% for m in turns %}{% if m.role == 'user' %}{{ bos_token }}[INST] "
        "{% if loop.first and system %}<<SYS>>\n{{ system }}\n<</SYS>>\n\n{% endif %}{{ m.content }} [/INST]"
        "{% else %} {{ m.content }} {{ eos_token }}{% endif %}{% endfor %}"
    ),
    "glm4": _turns(
        "<|system|>\n{{ m.content }}",
        "<|user|>\n{{ m.content }}",
        "<|assistant|>\n{{ m.content }}",
        "<|assistant|>",
        "[gMASK]<sop>",
    ),
    "phi4": _turns(
        *(
            f"<|im_start|>{role}<|im_sep|>{{{{ m.content }}}}<|im_end|>"
            for role in ("system", "user", "assistant")
        ),
        opening="<|im_start|>assistant<|im_sep|>",
    ),
    "granite": _turns(
        *(
            f"<|start_of_role|>{role}<|end_of_role|>{{{{ m.content }}}}<|end_of_text|>\n"
            for role in ("system", "user", "assistant")
        ),
        opening="<|start_of_role|>assistant<|end_of_role|>",
        head="{% if messages[0].role != 'system' %}Today is {{ strftime_now('%B %d, %Y') }}.{% endif %}",
    ),
    "smollm3": _turns(
        '<|im_start|>system\nToday Date: {{ strftime_now("%d %B %Y") }}\n{{ m.content }}<|im_end|>\n',
        _TURN,
        _TURN,
        opening=(
            "<|im_start|>assistant\n{% if enable_thinking is defined and not enable_thinking %}"
            "<think>\n\n</think>\n{% endif %}"
        ),
    ),
    # Thinks only where it is asked to; earlier replies stand behind a closed thought.
    "deepseek_v31": _turns(
        "{{ m.content }}",
        "<｜User｜>{{ m.content }}",
        "<｜Assistant｜></think>{{ m.content.split('</think>')[-1] }}<｜end▁of▁sentence｜>",
        "<｜Assistant｜>{% if thinking is defined and thinking %}<think>{% else %}</think>{% endif %}",
        "{{ bos_token }}",
    ),
    "olmo2": _turns(
        "<|system|>\n{{ m.content }}\n",
        "<|user|>\n{{ m.content }}\n",
        "<|assistant|>\n{{ m.content }}{{ eos_token }}\n",
        "<|assistant|>\n",
        "{{ bos_token }}",
    ),
    "magistral": _turns(
        "[SYSTEM_PROMPT]{{ m.content }}[/SYSTEM_PROMPT]",
        "[INST]{{ m.content }}[/INST]",
        "{{ m.content }}{{ eos_token }}",
        "[THINK]",
        "{{ bos_token }}",
    ),
    "always_closed": _turns(_TURN, _TURN, _TURN, opening="<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    "always_open": _turns(_TURN, _TURN, _TURN, opening="<|im_start|>assistant\n<think>\n"),
    "no_system": _turns(
        "{{ raise_exception('System role not supported') }}",
        _TURN,
        _TURN,
        opening="<|im_start|>assistant\n",
    ),
    "drops_system": _turns("", _TURN, _TURN, opening="<|im_start|>assistant\n"),
    "begins_with_a_line_end": _turns(
        _TURN, _TURN, _TURN, opening="<|im_start|>assistant\n", head="\n{{ strftime_now('%Y') }}\n"
    ),
}
"""By family."""
REFUSED = {
    "no_end": (
        _turns(*("{{ m.role }}: {{ m.content }}\n",) * 3, opening="assistant:"),
        "does not end the assistant's turn",
    ),
    "fails": ("{{ raise_exception('not today') }}", "the chat template fails: not today"),
    "undefined": ("{{ messages[0].content.missing.name }}", "the chat template fails"),
    "broken": ("{% for m in messages %}", "the chat template fails"),
    "only_the_last": (
        "{% set m = messages[-1] %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n<|im_start|>assistant\n",
        "leaves earlier turns out",
    ),
    "other_ends": (
        _turns(
            _TURN,
            _TURN,
            _TURN,
            opening="{% if messages | length > 3 %}<|im_start|>assistant, again\n{% else %}<|im_start|>assistant\n{% endif %}",
        ),
        "begins the assistant's turns in different ways",
    ),
    "parts": (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% for part in m.content if part is mapping %}{{ part.text }}"
        "{% endfor %}<|im_end|>\n{% endfor %}<|im_start|>assistant\n",
        "leaves messages out that are plain text",
    ),
}
"""Templates that no sequence can be made of, and why."""


def control_tokens(template: str) -> list[str]:
    """The tokens that a template writes."""
    return sorted({*_TOKEN.findall(template)} - set(_MARKED) | {"<s>", "</s>", "<|im_start|>", "<|im_end|>"})


@functools.cache
def _trained() -> str:
    """The byte-level tokenizer of Qwen's kind, as JSON: trained once."""
    return chatml_tokenizer().backend_tokenizer.to_str()


def tokenizer_for(template: str) -> Any:
    """A byte-level tokenizer with the tokens of a template; `<｜User｜>` and the like are none of its special ones."""
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained()), clean_up_tokenization_spaces=False
    )
    plain = [token for token in control_tokens(template) if token in ("<｜User｜>", "<｜Assistant｜>")]
    special = [token for token in control_tokens(template) if token not in plain]
    end = "<｜end▁of▁sentence｜>"
    fast.add_special_tokens({"additional_special_tokens": special})
    fast.add_tokens(plain)
    fast.add_special_tokens({"bos_token": "<s>", "eos_token": end if end in template else "</s>"})
    fast.chat_template = template
    return fast


def blank_first_tokenizer(template: str, scheme: Any = "first") -> Any:
    """A tokenizer of Llama's older kind: words carry their blank, and a text of its own gets one."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=True)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    letters = sorted(
        set("".join(TEXTS))
        | set("<>/[]_ .:,'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789\n")
    )
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256))],
        initial_alphabet=["▁", *letters],
        show_progress=False,
    )
    tokenizer.train_from_iterator([*TEXTS, "[INST] [/INST] <<SYS>> <</SYS>>"], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(json.loads(tokenizer.to_str()))),
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = template
    return fast
