"""From a policy's reply to a thought and an action. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_ACTION_TAG = re.compile(r"<action>(.*?)(?:</action>|$)", re.DOTALL)
_ACTION_LINE = re.compile(r"^\s*Action:\s*(.+?)\s*$", re.MULTILINE)
_THOUGHT_LINE = re.compile(r"Thought:\s*(.*?)(?=^\s*Action:|\Z)", re.MULTILINE | re.DOTALL)
_CITATION = re.compile(r"\[([A-Za-z0-9][A-Za-z0-9_.-]*)\]")


@dataclass(frozen=True, slots=True)
class ParsedReply:
    thought: str
    action: str
    """Empty when the reply holds no action."""


def parse_reply(text: str) -> ParsedReply:
    """Read `<think>…</think><action>…</action>`, or `Thought: … Action: …`; the last action counts.

    Actions keep their inner spelling: environments differ in what they forgive.
    """
    actions = _ACTION_TAG.findall(text)
    if actions:
        thoughts = _THINK.findall(text)
        return ParsedReply(thoughts[-1].strip() if thoughts else "", actions[-1].strip())
    lines = _ACTION_LINE.findall(text)
    if lines:
        thought = _THOUGHT_LINE.search(text)
        return ParsedReply(thought.group(1).strip() if thought else "", lines[-1].strip())
    thoughts = _THINK.findall(text)
    return ParsedReply(thoughts[-1].strip() if thoughts else "", "")


def format_reply(thought: str, action: str) -> str:
    """The text a policy is taught to say."""
    return f"<think>{thought}</think><action>{action}</action>"


def citations(thought: str, known: frozenset[str]) -> tuple[str, ...]:
    """Ids of known skills that the thought quotes as `[id]`, in order, each once."""
    return tuple(dict.fromkeys(i for i in _CITATION.findall(thought) if i in known))
