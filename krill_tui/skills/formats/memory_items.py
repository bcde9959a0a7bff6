"""Advice as other projects keep it: ReasoningBank's titled memories, ExpeL's sentences."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel

from krill_tui.skill import GENERAL, SkillKind, SkillStatus

_FAILED = re.compile(r"\b(fail|failed|failure|mistake|lesson)", re.IGNORECASE)
_HEADING = re.compile(r"^#{1,6}[ \t]*(title|description|content)\b[ \t:]*", re.IGNORECASE | re.MULTILINE)
_NUMBERED = re.compile(r"^\s*\(?\d{1,3}[.):]\s+")


class Item(BaseModel):
    """One piece of advice."""

    principle: str
    name: str = ""
    """Empty: its first words."""
    when_to_apply: str = ""
    id: str = ""
    tier: str = GENERAL
    also: tuple[str, ...] = ()
    kind: str = SkillKind.STRATEGY.value
    status: str = SkillStatus.ACTIVE.value


def memory_items(record: Any) -> list[Item | str] | None:
    """The advice of one record, each an item or why it is none; None where the record is of another form.

    A sentence, or a sentence with its count (ExpeL); title, description and content, or a list of those or of their
    Markdown under `memory_items` (ReasoningBank).
    """
    if isinstance(record, str):
        return [_sentence(record)]
    if isinstance(record, list):
        is_counted = len(record) == 2 and isinstance(record[0], str) and isinstance(record[1], int | float)
        return [_sentence(record[0])] if is_counted else None
    if not isinstance(record, dict):
        return None
    memories = record.get("memory_items")
    if isinstance(memories, list):
        lost = bool(_FAILED.search(str(record.get("status", ""))[:200]))
        return [_memory(memory, lost) for memory in memories]
    if isinstance(record.get("content"), str) and "principle" not in record:
        return [_memory(record, False)]
    return None


def _sentence(text: str) -> Item | str:
    words = _NUMBERED.sub("", text, count=1).strip()
    return Item(principle=words) if words else "it is empty"


def _memory(memory: Any, lost: bool) -> Item | str:
    if isinstance(memory, str):
        return _from_markdown(memory, lost)
    if not isinstance(memory, dict):
        return "it is no memory"
    content = memory.get("content")
    if not isinstance(content, str) or not content.strip():
        return "it has no content"
    texts = {key: value for key, value in memory.items() if isinstance(value, str)}
    return Item(
        principle=content,
        name=texts.get("title", ""),
        when_to_apply=texts.get("description", ""),
        id=texts.get("id", ""),
        kind=(SkillKind.LESSON if lost else SkillKind.STRATEGY).value,
    )


def _from_markdown(text: str, lost: bool) -> Item | str:
    """`# Memory Item 1 ## Title … ## Description … ## Content …`; text without such headings is a sentence."""
    headings = list(_HEADING.finditer(text))
    if not headings:
        return _sentence(text)
    ends = [*(heading.start() for heading in headings[1:]), len(text)]
    parts = {
        heading[1].lower(): text[heading.end() : end] for heading, end in zip(headings, ends, strict=True)
    }
    return _memory(parts, lost)
