"""JSON as language models write it, read in one pass: time grows with the length, whatever the text.

Forgiven are single and curly quotes, quotes inside a text, line ends in it, bare words, trailing, doubled and missing
commas, comments, Python's constants, and an end that never comes.
"""

from __future__ import annotations

import re
from typing import Any

DEEPEST = 30
"""Lists and objects inside each other."""
_MOST_PARTS = 20_000
"""Values, keys and quotes; a hundred skills are some thousand."""

_OBJECTS = re.compile(r"\[\s*+\{|\{")
_BLANK = re.compile(r"(?:[\s,;]|//[^\n]*+|#[^\n]*+|/\*(?:[^*]|\*(?!/))*+(?:\*/|\Z))*+")
_COLON = re.compile(r"\s*+(?:[:=]>?|：)")
_BARE = re.compile(r"[^\s,:={}\[\]\"'“”]++(?:[ \t]++[^\s,:={}\[\]\"'“”]++)*+")
_PLAIN = re.compile(r"[^\"'“”‘’\\]++")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|(.))", re.DOTALL)
_CLOSERS = {'"': '"', "'": "'", "“": '”"', "”": '”"', "‘": "’'"}
_ENDS_VALUE = re.compile(
    r"\s*+(?:[}\]]|,\s*+(?:[\"'“{\[}\]]|[A-Za-z_]\w*+\s*+:|-?\d|null|true|false|//|#|\Z)|//|\Z)"
)
_NEXT_KEY = re.compile(r"\s*+[\"'“][A-Za-z_][\w -]{0,40}+[\"'”]\s*+:")
_ENDS_KEY = re.compile(r"\s*+[:=]")
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "", "f": "", "/": "/"}
_WORDS = {"true": True, "false": False, "null": None, "none": None, "undefined": None}
_NUMBER = re.compile(r"-?\d{1,15}(?:\.\d{1,15})?(?:[eE][+-]?\d{1,2})?")


def loose_values(text: str) -> list[Any]:
    """The lists of objects and the objects in `text`, one after the other, as well as they can be read.

    Where there are none, its first list.

    Raises:
        ValueError: there is no list either, or more levels or parts than any list of skills has.
    """
    reader = _Reader(text)
    values: list[Any] = []
    while match := _OBJECTS.search(text, reader.place):
        reader.place = match.start()
        values.append(reader.value(0))
    if not values:
        reader.place = text.find("[")
        if reader.place < 0:
            raise ValueError("it holds no list and no object")
        values.append(reader.value(0))
    return values


class _Reader:
    def __init__(self, text: str) -> None:
        self.text = text
        self.place = 0
        self._parts = 0

    def _count(self) -> None:
        self._parts += 1
        if self._parts > _MOST_PARTS:
            raise ValueError(f"it has more than {_MOST_PARTS} parts")

    def value(self, depth: int) -> Any:
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} levels")
        letter = self.text[self.place]
        if letter == "[":
            return self._list(depth)
        if letter == "{":
            return self._object(depth)
        if letter in _CLOSERS:
            return self._quoted(is_key=False)
        return self._bare()

    def _skip(self) -> str:
        """Go past blanks, commas and comments; returns the letter there, empty at the end."""
        self._count()
        match = _BLANK.match(self.text, self.place)
        self.place = match.end() if match else self.place
        return self.text[self.place : self.place + 1]

    def _list(self, depth: int) -> list[Any]:
        items: list[Any] = []
        self.place += 1
        while letter := self._skip():
            if letter in "]}":
                self.place += 1
                break
            if letter == ":":
                self.place += 1
                continue
            items.append(self.value(depth + 1))
        return items

    def _object(self, depth: int) -> dict[str, Any]:
        found: dict[str, Any] = {}
        self.place += 1
        while letter := self._skip():
            if letter == "}":
                self.place += 1
                break
            if letter == "]":
                break  # the list around it ends: its own end was forgotten
            if letter in "{[:":
                # No key can begin so: what stands there belongs to nothing.
                self.place += 1
                continue
            key = self._quoted(is_key=True) if letter in _CLOSERS else self._word()
            if match := _COLON.match(self.text, self.place):
                self.place = match.end()
                letter = self._skip()
                if not letter or letter in "}]":
                    continue
                found[str(key)] = self.value(depth + 1)
        return found

    def _quoted(self, *, is_key: bool) -> str:
        """A text up to the quote that ends it: one that more of the JSON follows."""
        closers = _CLOSERS[self.text[self.place]]
        self.place += 1
        parts: list[str] = []
        while self.place < len(self.text):
            if match := _PLAIN.match(self.text, self.place):
                parts.append(match[0])
                self.place = match.end()
                continue
            self._count()
            letter = self.text[self.place]
            if letter == "\\":
                match = _ESCAPE.match(self.text, self.place)
                if match is None:
                    self.place += 1
                    continue
                parts.append(chr(int(match[1], 16)) if match[1] else _ESCAPED.get(match[2], match[2]))
                self.place = match.end()
                continue
            self.place += 1
            if letter in closers and self._ends(is_key):
                break
            parts.append(letter)
        return "".join(parts)

    def _ends(self, is_key: bool) -> bool:
        if is_key:
            return bool(_ENDS_KEY.match(self.text, self.place) or _ENDS_VALUE.match(self.text, self.place))
        return bool(_ENDS_VALUE.match(self.text, self.place) or _NEXT_KEY.match(self.text, self.place))

    def _word(self) -> str:
        match = _BARE.match(self.text, self.place)
        if match is None:
            self.place += 1
            return ""
        self.place = match.end()
        return match[0]

    def _bare(self) -> Any:
        word = self._word()
        if word.lower() in _WORDS:
            return _WORDS[word.lower()]
        if _NUMBER.fullmatch(word):
            return float(word) if any(c in word for c in ".eE") else int(word)
        return word
