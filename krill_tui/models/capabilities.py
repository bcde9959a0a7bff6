"""What one endpoint takes, as far as it has said so: calls are written accordingly."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from krill_tui.models.server_said import Said

EMPTY_REPLY = "(no reply)"
"""Stands for an empty turn of the model's: many servers refuse a message without content."""
EMPTY_MESSAGE = "(nothing)"

_REASONING_MODEL = re.compile(r"(?:.*/)?(?:o\d|gpt-5)")
_OTHER_NAME = {"max_tokens": "max_completion_tokens", "max_completion_tokens": "max_tokens"}


@dataclass(slots=True)
class Capabilities:
    """Grows by what a server refuses; never forgets."""

    refused: set[str] = field(default_factory=set)
    """Parameters by the name they were sent under."""
    most: dict[str, float] = field(default_factory=dict)
    least: dict[str, float] = field(default_factory=dict)
    folds_system: bool = False
    """There is no system role: its text begins the first user message."""
    drops_empty_system: bool = False
    """A system message that says nothing is refused. Elsewhere it is sent: without one, a chat template may put in words
    of its own."""

    @classmethod
    def of(cls, model: str) -> Capabilities:
        """A first guess, where a model's name says what OpenAI's reasoning models refuse; it saves two calls."""
        return cls(refused={"temperature", "max_tokens"} if _REASONING_MODEL.match(model) else set())

    def written(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """A call's body as this endpoint takes it."""
        call: dict[str, Any] = {}
        for name, value in body.items():
            sent = self._name(name)
            if sent is None:
                continue
            if name in self.most:
                value = min(value, _like(value, self.most[name]))
            if name in self.least:
                value = max(value, _like(value, self.least[name]))
            call[sent] = value
        if isinstance(call.get("messages"), list):
            call["messages"] = self._messages(call["messages"])
        return call

    def learn(self, said: Said, sent: Mapping[str, Any]) -> str:
        """Take in a refusal; returns what is done from now on, in a few words, or "" where nothing can be."""
        if said.kind == "system":
            if self.folds_system:
                return ""
            self.folds_system = True
            return "it knows no system role, so the system text begins the first message"
        if said.kind == "empty":
            if self.drops_empty_system:
                return ""
            self.drops_empty_system = True
            return "it takes no empty message, so an empty system message is left out"
        name = said.parameter
        if said.kind != "parameter" or name not in sent:
            return ""
        # Settings are kept under the name that calls give them.
        ours = "max_tokens" if name == "max_completion_tokens" else name
        if said.bound is not None:
            high = said.bound < sent[name]
            (self.most if high else self.least)[ours] = said.bound
            return f"it takes '{name}' {'up to' if high else 'from'} {said.bound:g}"
        self.refused.add(name)
        other = _OTHER_NAME.get(name)
        if other and other not in self.refused:
            return f"it wants '{other}' in place of '{name}'"
        return f"it does not take '{name}', which is left out"

    def _name(self, name: str) -> str | None:
        if name not in self.refused:
            return name
        other = _OTHER_NAME.get(name)
        return other if other and other not in self.refused else None

    def _messages(self, messages: list[Mapping[str, str]]) -> list[dict[str, str]]:
        written: list[dict[str, str]] = []
        for message in messages:
            role, content = message["role"], message["content"]
            if not content.strip():
                if role == "system" and (self.drops_empty_system or self.folds_system):
                    continue
                stand_in = {"assistant": EMPTY_REPLY, "user": EMPTY_MESSAGE}
                content = stand_in.get(role, content)
            written.append({"role": role, "content": content})
        if self.folds_system and len(written) > 1 and written[0]["role"] == "system":
            system, first, *rest = written
            return [{"role": "user", "content": f"{system['content']}\n\n{first['content']}"}, *rest]
        return written


def _like(value: object, bound: float) -> float:
    return int(bound) if isinstance(value, int) else bound
