"""What a chat template does around a reply: found out once when a tokenizer is loaded, by rendering a few messages.

A template decides more than how messages are framed. It may have no system role, open the thought itself or close it,
name a channel before the reply, put a blank before it, write today's date, and rewrite turns that are over. An episode
is one growing sequence of tokens, so each of these is settled here: works as it is, works with a change that is said
in one line, or refused in one line.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from krill_tui.errors import ModelRefusedError
from krill_tui.models.base import Message

_SYSTEM, _USER, _REPLY, _NEXT, _THOUGHT = (
    "krillsystem",
    "krilluser",
    "krillprobe",
    "krillnext",
    "krillthought",
)
"""Stand for messages while a template is tried."""
_SWITCHES: tuple[dict[str, Any], ...] = ({}, {"enable_thinking": True}, {"thinking": True})
"""How templates that close the thought are asked not to; the first that helps is used."""
_TAGS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<seed:think>", "</seed:think>"),
    ("<|channel>thought", "<channel|>"),
)
"""What encloses a thought. The first pair is that of Krill's replies."""
_OPENED = re.compile(r"<think>\s*$")
_OPENED_OTHERWISE = re.compile(r"\s*(?:" + "|".join(re.escape(tag) for tag, _ in _TAGS[1:]) + r")\s*$")
_CLOSED = re.compile(
    r"\s*(?:" + "|".join(rf"(?:{re.escape(a)}\s*)?{re.escape(b)}" for a, b in _TAGS) + r")\s*$"
)
"""A thought that is over before the reply begins, with the white space around it."""
_DATE_CODES = (
    "%F",
    "%Y",
    "%-m",
    "%m",
    "%-d",
    "%d",
    "%e",
    "%B",
    "%b",
    "%A",
    "%a",
    "%y",
    "%j",
    "%H",
    "%M",
    "%S",
)
"""What templates may ask of a date."""
_ANY_CLOSE = tuple(close for _, close in _TAGS)


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """How messages are rendered with one template, and what stands around a reply."""

    tokenizer: Any = field(repr=False)
    date: datetime.date
    """What a template that asks for the present day is told."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What the template is rendered with."""
    system: bool = True
    """It has a system role; without one the system's text begins the first user message."""
    cut: str = ""
    """The end of the prompt that is left out: a thought that is closed, or opened by another tag than `<think>`."""
    header: str = ""
    """What is added to the prompt: what the template writes before a reply and leaves to the model otherwise."""
    opened: str = ""
    """The end of the prompt that belongs to the reply's text: `<think>` and what follows it."""
    lead: str = ""
    """White space a reply begins with; not part of its text."""
    trail: str = ""
    """White space between a reply and its end, which is left out."""
    end: str = ""
    """The token that ends the assistant's turns."""
    changes: tuple[str, ...] = ()
    """What is done otherwise than the template has it, a line each."""

    def prompt(self, messages: Sequence[Message]) -> str:
        """A conversation without replies, up to where the first one begins.

        Raises:
            ModelRefusedError: the template fails.
        """
        return self._ready(self.render(messages, generation=True))

    def after_reply(self, messages: Sequence[Message]) -> str:
        """What follows the end of a reply when these user messages come next, up to where the next reply begins."""
        return self._ready(self._rest(self._after(messages)))

    def render(self, messages: Sequence[Message], *, generation: bool) -> str:
        """The template's own text."""
        try:
            return self.tokenizer.apply_chat_template(
                self._folded(messages),
                chat_template=_with_date(self.tokenizer.get_chat_template(), self.date),
                tokenize=False,
                add_generation_prompt=generation,
                **self.options,
            )
        # Templates are programs: they raise whatever they like.
        except Exception as error:
            raise ModelRefusedError(f"the chat template fails: {_one_line(error)}") from error

    def _ready(self, text: str) -> str:
        return text.removesuffix(self.cut) + self.header

    def _after(self, messages: Sequence[Message]) -> str:
        start: list[Message] = [{"role": "user", "content": "."}, {"role": "assistant", "content": _REPLY}]
        return self.render([*start, *messages], generation=True).split(_REPLY, 1)[1]

    def _rest(self, after: str) -> str:
        text = after.removeprefix(self.trail)
        if not text.startswith(self.end):
            raise ModelRefusedError("the chat template ends the assistant's turns in different ways")
        return text[len(self.end) :]

    def _folded(self, messages: Sequence[Message]) -> list[Message]:
        if self.system or not messages or messages[0]["role"] != "system":
            return list(messages)
        text, rest = messages[0]["content"], list(messages[1:])
        if text and rest:
            rest[0] = {"role": rest[0]["role"], "content": f"{text}\n\n{rest[0]['content']}"}
        return rest


def find_format(tokenizer: Any, controls: Sequence[str], date: datetime.date) -> ChatFormat:
    """Try out a tokenizer's chat template; `controls`: its control tokens.

    Raises:
        ModelRefusedError: episodes cannot be one growing sequence with it, and why, in one line.
    """
    plain = ChatFormat(tokenizer, date)
    changes: list[str] = []
    system = _has_system(plain)
    if not system:
        changes.append("the chat template has no system role: its text begins the first user message")
    options, tail = _prompt_end(plain, system)
    if options:
        said = ", ".join(f"{name}={str(value).lower()}" for name, value in options.items())
        changes.append(f"the chat template closes the thought before the reply: rendered with {said}")
    cut, opened = "", ""
    if found := _CLOSED.search(tail):
        cut = found.group()
        changes.append("the chat template closes the thought before each reply: that part is left out")
    elif found := _OPENED.search(tail):
        opened = found.group()
        changes.append("the chat template opens <think> itself: replies get the tag back")
    elif found := _OPENED_OTHERWISE.search(tail):
        cut = found.group()
        changes.append(f"the chat template opens a thought by {cut.strip()}: that tag is left out")
    trial = ChatFormat(tokenizer, date, options, system, cut=cut, opened=opened)
    before, after = _around_reply(trial)
    header, lead = ("", "") if opened or cut else _header(tail, before, controls)
    if header:
        changes.append(f"the chat template lets the model begin with {header.strip()!r}: replies follow it")
    trail, end = _end(after, controls)
    if trail:
        changes.append("the chat template puts white space before the end of a reply: it is left out")
    changes += _last_end(trial, end, controls)
    form = ChatFormat(tokenizer, date, options, system, cut, header, opened, lead, trail, end)
    if not _same_end(form, tail):
        raise ModelRefusedError("the chat template begins the assistant's turns in different ways")
    changes += _rewrites(form)
    changes += _dated(form)
    return ChatFormat(tokenizer, date, options, system, cut, header, opened, lead, trail, end, tuple(changes))


def _with_date(template: str, date: datetime.date) -> str:
    """The template with a clock that stands still: a macro in place of the function that transformers has."""
    if "strftime_now" not in template:
        return template
    filters = "".join(f" | replace({code!r}, {date.strftime(code)!r})" for code in _DATE_CODES)
    # An expression at the end: behind a block, the template's own first line end would be dropped.
    return f"{{%- macro strftime_now(format) -%}}{{{{ format{filters} }}}}{{%- endmacro -%}}{{{{ '' }}}}{template}"


def _messages(*pairs: tuple[str, str]) -> list[Message]:
    return [{"role": role, "content": content} for role, content in pairs]  # pyright: ignore[reportReturnType]


def _has_system(plain: ChatFormat) -> bool:
    """Whether a system message stands before the user's; a template may refuse one, or drop it without a word."""
    try:
        text = plain.render(_messages(("system", _SYSTEM), ("user", _USER)), generation=True)
    except ModelRefusedError:
        text = ""
    if _SYSTEM in text and _USER in text:
        return text.index(_SYSTEM) < text.index(_USER)
    text = plain.render(_messages(("user", _USER)), generation=True)
    if _USER not in text:
        raise ModelRefusedError(
            "the chat template leaves messages out that are plain text",
            hint="it wants messages in parts, as models that see images do; use a model for text",
        )
    return False


def _prompt_end(plain: ChatFormat, system: bool) -> tuple[dict[str, Any], str]:
    """The options to render with, and what follows the user's message where the assistant is to speak."""
    tails: list[str] = []
    for options in _SWITCHES:
        form = ChatFormat(plain.tokenizer, plain.date, options, system)
        try:
            text = form.render(_messages(("system", _SYSTEM), ("user", _USER)), generation=True)
        except ModelRefusedError:
            if not options:
                raise
            continue
        tails.append(text.rsplit(_USER, 1)[-1])
        if not _CLOSED.search(tails[-1]):
            return dict(options), tails[-1]
    return {}, tails[0]


def _around_reply(form: ChatFormat) -> tuple[str, str]:
    """What the template writes between a user's message and the reply of a turn that is over, and what follows it."""
    text = form.render(
        _messages(("user", _USER), ("assistant", _REPLY), ("user", _NEXT)),
        generation=True,
    )
    _, reached, rest = text.partition(_USER)
    before, reply, after = rest.partition(_REPLY)
    if not reached or not reply or _NEXT not in after:
        raise ModelRefusedError("the chat template leaves earlier turns out")
    return before, after


def _header(tail: str, before: str, controls: Sequence[str]) -> tuple[str, str]:
    """What is added to the prompt, and the white space a reply begins with."""
    if not before.startswith(tail):
        return "", ""
    rest = before[len(tail) :]
    if any(close in rest for close in _ANY_CLOSE):
        # A reply without a thought is marked so; ours have one. What stands before the mark belongs to both.
        return "", rest[: len(rest) - len(rest.lstrip())]
    if not rest.strip():
        return "", rest
    return rest, ""


def _end(after: str, controls: Sequence[str]) -> tuple[str, str]:
    text = after.lstrip()
    for token in sorted(controls, key=len, reverse=True):
        if text.startswith(token):
            return after[: len(after) - len(text)], token
    raise ModelRefusedError("the chat template does not end the assistant's turn with a special token")


def _last_end(form: ChatFormat, end: str, controls: Sequence[str]) -> list[str]:
    """Whether the last turn ends otherwise than the ones before it."""
    text = form.render(_messages(("user", _USER), ("assistant", _REPLY)), generation=False)
    after = text.rpartition(_REPLY)[2].strip()
    if after.startswith(end):
        return []
    if not any(after.startswith(token) for token in controls):
        return [f"the chat template has no end of a turn: replies end with {end}, which begins the next one"]
    return [f"the chat template ends the last turn otherwise than earlier ones: all replies end with {end}"]


def _same_end(form: ChatFormat, tail: str) -> bool:
    """Whether later prompts end as the first one does."""
    text = form.render(
        _messages(("system", _SYSTEM), ("user", "."), ("assistant", _REPLY), ("user", _NEXT)),
        generation=True,
    )
    return text.rpartition(_NEXT)[2] == tail


def _rewrites(form: ChatFormat) -> list[str]:
    """What the template does to turns that are over, where the sequence keeps them as they were."""
    start = _messages(("system", _SYSTEM), ("user", _USER))
    said = _messages(("assistant", f"<think>{_THOUGHT}</think>{_REPLY}"), ("user", _NEXT))
    try:
        if _THOUGHT not in form.render([*start, *said], generation=True):
            return [
                "the chat template drops the thoughts of earlier turns: they stay, so that an episode is one sequence"
            ]
    except ModelRefusedError:
        pass
    if form.opened or form.cut:
        return []
    for reply in (_REPLY, f"<think>{_THOUGHT}</think>{_REPLY}"):
        turns = _messages(("assistant", reply), ("user", _NEXT))
        whole = form.render([*start, *turns], generation=True) + form.header
        built = (form.prompt(start), form.lead, reply, form.trail, form.end, form.after_reply(turns[1:]))
        if whole == "".join(built):
            return []
    return [
        "the chat template rewrites earlier turns: they stay as they were, so that an episode is one sequence"
    ]


def _dated(form: ChatFormat) -> list[str]:
    """Whether the template writes the date."""
    messages = _messages(("system", _SYSTEM), ("user", _USER))
    later = ChatFormat(
        form.tokenizer, form.date + datetime.timedelta(days=400), form.options, form.system
    ).render(messages, generation=True)
    if later == form.render(messages, generation=True):
        return []
    return [f"the chat template writes the date: {form.date.isoformat()} in all of this run"]


def _one_line(error: Exception) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__
