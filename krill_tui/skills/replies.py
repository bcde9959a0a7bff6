"""From a teacher's reply to skills: JSON out of prose, repaired, validated."""

from __future__ import annotations

import itertools
import re
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from krill_tui.io.json_text import NotJson, loads
from krill_tui.io.text import clean_text
from krill_tui.skills.loose_json import loose_values

_FENCE = re.compile(r"```(?:json)?[ \t]*\n?(.*?)(?:```|\Z)", re.DOTALL)
_WRAPPERS = ("skills", "new_skills", "general_skills", "items", "result")
_LONGEST_REPLY = 200_000


class UnreadableReply(Exception):
    """A reply that holds no list of skills; the message says what is wrong with it."""


class TaughtSkill(BaseModel):
    """One element of a teacher's reply."""

    model_config = ConfigDict(extra="ignore", str_strip_whitespace=True)

    name: str = Field(min_length=1)
    principle: str = Field(min_length=1)
    when_to_apply: str = ""
    category: str = ""
    refines: str | None = None
    reason: str = ""

    @field_validator("name", "principle", "when_to_apply", "category", "refines", "reason", mode="before")
    @classmethod
    def _one_clean_line(cls, value: object) -> object:
        return clean_text(value) if isinstance(value, str) else ("" if value is None else value)


def parse_reply(text: str) -> list[TaughtSkill]:
    """The skills of a reply; an empty list where it says `[]`.

    Prose around the JSON, code fences, single quotes, trailing commas and the like are forgiven. Of a reply
    that breaks off, the skills that were complete are kept.

    Raises:
        UnreadableReply: no list of skills in it, or none of its elements is a skill.
    """
    # What stands before is thought, drafts of the answer among it.
    value, complete = _load(text[:_LONGEST_REPLY].rpartition("</think>")[2])
    items = _as_items(value)
    if items and not complete:
        # The last element is where the reply broke off: half a principle is worse than none.
        items = items[:-1]
        if not items:
            raise UnreadableReply("it breaks off before the first skill is complete")
    skills: list[TaughtSkill] = []
    problem = ""
    for number, item in enumerate(items):
        try:
            skills.append(TaughtSkill.model_validate(item))
        except ValidationError as error:
            first = error.errors()[0]
            problem = (
                problem or f"element {number}: {'.'.join(map(str, first['loc'])) or 'value'}: {first['msg']}"
            )
    if items and not skills:
        raise UnreadableReply(problem)
    return skills


def _load(text: str) -> tuple[Any, bool]:
    """The JSON value in a reply, and whether it ends where it should."""
    fences = [block for block in _FENCE.findall(text) if "{" in block or "[" in block]
    body = fences[-1] if fences else text
    for candidate in _candidates(body):
        try:
            return loads(candidate), True
        except NotJson:
            continue
    if "[" not in body and "{" not in body:
        raise UnreadableReply("it holds no JSON")
    # An element that was opened after the last one was closed is one that breaks off.
    complete = "{" not in body[body.rfind("}") + 1 :]
    try:
        values = loose_values(body)
        return values[0] if len(values) == 1 else values, complete
    except ValueError as error:
        raise UnreadableReply(f"its JSON cannot be read: {error}") from None


def _candidates(body: str) -> list[str]:
    """Stretches of a reply that may be the JSON, the most likely first."""
    found = [body]
    for opening, closing in (("[", "]"), ("{", "}")):
        start, end = body.find(opening), body.rfind(closing)
        if 0 <= start < end:
            found.append(body[start : end + 1])
    # Prose may hold brackets too ("[gen_001] was followed"): the array of objects is meant.
    arrays = itertools.islice(re.finditer(r"\[\s*+\{", body), 3)
    found += [body[match.start() : body.rfind("]") + 1] for match in arrays]
    return found


def _as_items(value: Any) -> list[Any]:
    if isinstance(value, dict):
        for key in _WRAPPERS:
            if isinstance(value.get(key), list):
                return value[key]
        return [value] if "principle" in value else _refuse("it is an object without a list of skills")
    if not isinstance(value, list):
        return _refuse("it is no JSON array")
    # A reply may hold two arrays, or stray words between.
    flat = [item for part in value for item in (part if isinstance(part, list) else [part])]
    items = [item for item in flat if isinstance(item, dict)]
    return items if items or not flat else _refuse("its array holds no objects")


def _refuse(problem: str) -> list[Any]:
    raise UnreadableReply(problem)
