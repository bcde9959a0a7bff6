"""Reading the answer of a chat endpoint, in any of the shapes that servers give it. Pure.

A thought may come as `reasoning_content`, `reasoning`, `reasoning_details`, as parts of the content, between tags of
the model's own, or in a channel of its own. In a `ChatReply` it is in `thought`, or stands in the text as
`<think>…</think>`; nothing of it is lost.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from krill_tui.io.text import cut_middle, storable
from krill_tui.models.base import ChatReply, ChatUsage, Finish

LONGEST_TEXT = 150_000
"""Characters of a text, and of a thought, that are kept of an answer; of a longer one the middle is cut out."""
_MOST_TOKENS = 10**9

_FINISH: dict[str, Finish] = {
    "length": "length",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "token_limit": "length",
    "content_filter": "filter",
    "safety": "filter",
    "recitation": "filter",
    "prohibited_content": "filter",
    "blocklist": "filter",
    "refusal": "filter",
    "sensitive": "filter",
    "context_length_exceeded": "context",
    "model_context_window_exceeded": "context",
}
_TAGS = (
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<reasoning>", "</reasoning>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought\n", "<channel|>"),
)
"""What other models write for `<think>` and `</think>`."""
_HARMONY = re.compile(r"<\|channel\|>(\w{1,20})[^<]{0,80}<\|message\|>")
_HARMONY_END = re.compile(r"<\|(?:end|return|call|start)\|>")
_WRAPPERS = re.compile(
    r"<\|(?:begin_of_solution|end_of_solution|START_RESPONSE|END_RESPONSE|START_TEXT|END_TEXT)\|>"
)
_REASONING = ("reasoning_content", "reasoning", "thinking", "reasoning_text", "thoughts")


class UnreadableAnswer(Exception):
    """An answer that holds no message; says what is wrong with it."""


def read_chat(answer: object) -> ChatReply:
    """The reply in an answer of `/chat/completions`.

    No content is an empty reply: the model was asked, and said nothing.

    Raises:
        UnreadableAnswer: it holds no message.
    """
    choices = answer.get("choices") if isinstance(answer, dict) else None
    choice = choices[0] if isinstance(choices, list) and choices else None
    message = choice.get("message") if isinstance(choice, dict) else None
    if not isinstance(answer, dict) or not isinstance(choice, dict) or not isinstance(message, dict):
        raise UnreadableAnswer("the answer holds no message")
    content = message.get("content")
    if content is not None and not isinstance(content, str | list | dict):
        raise UnreadableAnswer("the answer's message is no text")
    text, thought = _parts(content)
    text = with_think_tags(text)
    thought = "\n".join(filter(None, (_reasoning(message), thought)))
    refusal = message.get("refusal")
    said = next(
        (c for c in (choice.get("finish_reason"), choice.get("stop_reason")) if isinstance(c, str)), ""
    )
    return ChatReply(
        storable(cut_middle(text, LONGEST_TEXT)),
        _usage(answer.get("usage")),
        thought=storable(cut_middle(thought, LONGEST_TEXT)),
        finish=_FINISH.get(said.lower(), "stop"),
        refusal=storable(refusal[:2000]) if isinstance(refusal, str) else "",
    )


def joined_stream(text: str) -> object:
    """The answer in a stream of events, for a server that streams though nobody asked it to.

    Raises:
        UnreadableAnswer: an event is no JSON.
    """
    message: dict[str, Any] = {"content": None}
    usage = finish = None
    begun = False
    for line in text.splitlines():
        data = line.removeprefix("data:").strip()
        if not line.startswith("data:") or data in ("", "[DONE]"):
            continue
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            raise UnreadableAnswer("the answer is a stream that cannot be read") from None
        if not isinstance(event, dict):
            continue
        if "error" in event:
            return event
        usage = event.get("usage") or usage
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(choice, dict):
            continue
        finish = choice.get("finish_reason") or finish
        delta = choice.get("delta") or choice.get("message")
        for key in ("content", *_REASONING, "refusal"):
            if isinstance(delta, dict) and isinstance(delta.get(key), str):
                message[key] = (message.get(key) or "") + delta[key]
        begun = True
    return {"choices": [{"message": message, "finish_reason": finish}] if begun else [], "usage": usage}


def with_think_tags(text: str) -> str:
    """`text` with a thought that other tags or channels mark between `<think>` and `</think>`.

    A thought that only ends was begun by the prompt, and gets its beginning back.
    """
    if _HARMONY.search(text):
        text = _without_channels(text)
    for opening, closing in _TAGS:
        if closing in text or text.lstrip().startswith(opening):
            text = text.replace(opening, "<think>").replace(closing, "</think>")
    text = _WRAPPERS.sub("", text)
    end = text.find("</think>")
    return f"<think>{text}" if end >= 0 and "<think>" not in text[:end] else text


def with_thought(reply: ChatReply) -> str:
    """The text as a policy would have said it: its thought first, between `<think>` and `</think>`."""
    thought = reply.thought.replace("<think>", "").replace("</think>", "").strip()
    if not thought:
        return reply.text
    if not reply.text.strip() and reply.finish == "stop" and "<action>" in thought:
        return thought  # a server that took the whole reply for a thought
    body = reply.text.lstrip()
    if body.startswith("<think>"):
        return f"<think>{thought}\n{body.removeprefix('<think>').lstrip()}"
    return f"<think>{thought}</think>{body}"


def _without_channels(text: str) -> str:
    """Harmony's channels: what is not final is thought."""
    marks = list(_HARMONY.finditer(text))
    thoughts: list[str] = []
    answers: list[str] = []
    for mark, after in zip(marks, [*marks[1:], None], strict=True):
        body = text[mark.end() : after.start() if after else len(text)]
        if end := _HARMONY_END.search(body):
            body = body[: end.start()]
        (answers if mark.group(1) == "final" else thoughts).append(body.strip())
    thought = "\n".join(filter(None, thoughts))
    return (f"<think>{thought}</think>" if thought else "") + "\n".join(answers)


def _parts(content: object) -> tuple[str, str]:
    """(text, thought) of a content that is a text or a list of parts."""
    if isinstance(content, str):
        return content, ""
    parts = content if isinstance(content, list) else [content]
    texts: list[str] = []
    thoughts: list[str] = []
    for part in parts[:1000]:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, dict):
            thinks = any(word in str(part.get("type", "")) for word in ("think", "reason", "thought"))
            (thoughts if thinks or part.get("thought") is True else texts).append(_flat(part))
    return "".join(texts), "\n".join(filter(None, thoughts))


def _flat(value: object, depth: int = 0) -> str:
    """The text somewhere in a part."""
    if isinstance(value, str):
        return value
    if depth > 4:
        return ""
    if isinstance(value, list):
        return "".join(_flat(item, depth + 1) for item in value[:1000])
    if isinstance(value, Mapping):
        for key in ("text", "thinking", "reasoning", "content", "summary", "value"):
            if found := _flat(value.get(key), depth + 1):
                return found
    return ""


def _reasoning(message: Mapping[str, object]) -> str:
    for key in _REASONING:
        if found := _flat(message.get(key)).strip():
            return found
    details = message.get("reasoning_details")
    if isinstance(details, list):
        return "\n".join(filter(None, (_flat(part).strip() for part in details[:1000])))
    return ""


def _usage(usage: object) -> ChatUsage:
    values = usage if isinstance(usage, dict) else {}
    return ChatUsage(_count(values.get("prompt_tokens")), _count(values.get("completion_tokens")))


def _count(value: object) -> int:
    whole = isinstance(value, int) and not isinstance(value, bool)
    return min(max(value, 0), _MOST_TOKENS) if whole else 0  # pyright: ignore[reportArgumentType, reportReturnType]
