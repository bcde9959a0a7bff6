"""From a policy's reply to a thought and an action. Pure, and linear in the length of the reply."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from krill_tui.io.text import cut_middle, storable

LONGEST_REPLY = 32_768
"""Characters of a reply that are read and kept; of a longer one the middle is cut out."""
LONGEST_ACTION = 2_000
"""Characters."""

# A label stands at the beginning of a line, whatever Markdown is around it. Nothing here backtracks.
_LABEL = re.compile(
    r"(?P<marks>[*_#>`-]{0,8}+[ \t]{0,8}+[*_`]{0,4}+)(?P<name>action|thought)[*_`]{0,4}+[ \t]{0,8}+:\*{0,4}+",
    re.IGNORECASE,
)
_FENCE = re.compile(r"```[a-z]{0,12}+\n")
_MARKS = "*`"
_CITATION = re.compile(r"\[([A-Za-z0-9][A-Za-z0-9_.-]*+)\]")


@dataclass(frozen=True, slots=True)
class ParsedReply:
    thought: str
    action: str
    """Empty when the reply holds no action."""


def kept_reply(text: str) -> str:
    """The reply as it is parsed, shown and written down: storable, and of at most about LONGEST_REPLY characters.

    A cut is said in the text. Beginning and end stay: an action stands at the end.
    """
    return storable(cut_middle(text, LONGEST_REPLY))


def parse_reply(text: str) -> ParsedReply:
    """Read `<think>…</think><action>…</action>`, or `Thought: … Action: …`; the last action counts.

    What is said inside a thought is no action, tags included: only what follows the last `</think>` is, or, where
    that holds none, what stands between the thoughts. Markdown around an action (`**Action:** look`, backquotes)
    is taken off. Actions keep their inner spelling: environments differ in what they forgive.
    """
    thought, said = _without_thoughts(text)
    for part in said:
        if actions := list(_between(part, "<action>", "</action>", open_end=True)):
            return ParsedReply(thought, _action(actions[-1]))
        labels = list(_labels(part))
        lines = [end for name, _, end in labels if name == "action"]
        if lines:
            return ParsedReply(thought or _labelled_thought(part, labels), _action(_line_at(part, lines[-1])))
    return ParsedReply(thought, "")


def format_reply(thought: str, action: str) -> str:
    """The text a policy is taught to say."""
    return f"<think>{thought}</think><action>{action}</action>"


def citations(thought: str, known: frozenset[str]) -> tuple[str, ...]:
    """Ids of known skills that the thought quotes as `[id]`, in order, each once."""
    return tuple(dict.fromkeys(i for i in _CITATION.findall(thought) if i in known))


def _without_thoughts(text: str) -> tuple[str, tuple[str, ...]]:
    """The last closed thought, and where to look for the action: behind all thoughts, then anywhere outside them.

    A reply that closes a thought it did not open began inside one: its prompt ended in `<think>`.
    """
    after = text.rfind("</think>")
    if after < 0:
        return "", (text,)
    thoughts = list(_between(text, "<think>", "</think>", open_end=False))
    thought = thoughts[-1] if thoughts else text[: text.find("</think>")]
    rest = text[after + len("</think>") :]
    outside: list[str] = []
    position = 0
    while (start := text.find("<think>", position)) >= 0 and (end := text.find("</think>", start)) >= 0:
        outside.append(text[position:start])
        position = end + len("</think>")
    between = "\n".join(outside) if thoughts else ""
    return thought.strip(), (rest, between)


def _between(text: str, opening: str, closing: str, *, open_end: bool) -> Iterator[str]:
    """What stands between each pair of tags; with `open_end` the last one need not be closed."""
    position = 0
    while (start := text.find(opening, position)) >= 0:
        start += len(opening)
        end = text.find(closing, start)
        if end < 0:
            if open_end:
                yield text[start:]
            return
        yield text[start:end]
        position = end + len(closing)


def _labels(text: str) -> Iterator[tuple[str, int, int]]:
    """(name, start, end) of each label that begins a line; blanks before it do not count."""
    start = 0
    while start < len(text):
        newline = text.find("\n", start)
        line_end = len(text) if newline < 0 else newline
        line = text[start:line_end]
        blanks = len(line) - len(line.lstrip())
        if match := _LABEL.match(line, blanks):
            yield match["name"].lower(), start, start + match.end()
        start = line_end + 1


def _line_at(text: str, position: int) -> str:
    """The rest of the line; where that is blank, the next line that is not. A fenced block is one line."""
    rest = text[position:].lstrip()
    if fence := _FENCE.match(rest):
        rest = rest[fence.end() :].lstrip()
    return rest.partition("\n")[0]


def _labelled_thought(text: str, labels: list[tuple[str, int, int]]) -> str:
    """From the first `Thought:`, wherever it stands, to the next `Action:` that begins a line."""
    starts = [end for name, _, end in labels if name == "thought"]
    plain = text.find("Thought:")
    if plain >= 0:
        starts.append(plain + len("Thought:"))
    if not starts:
        return ""
    start = min(starts)
    end = next((at for name, at, _ in labels if name == "action" and at >= start), len(text))
    return text[start:end].strip().removeprefix("**").strip()


def _action(text: str) -> str:
    """Without the Markdown around it; one that is no sensible action's length is cut."""
    action = text.strip()
    if fence := _FENCE.match(action):
        action = action[fence.end() :]
    return action.strip(_MARKS).strip()[:LONGEST_ACTION]
