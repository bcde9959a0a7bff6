"""One strict way to read JSON that somebody else may have written: every fault is a `NotJson` of one line.

Python's own reader takes NaN, takes 1e999 as infinite, raises plain ValueErrors at long integers and RecursionErrors
at deep nesting, and hands on lone surrogates that no file can hold.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, NoReturn

from krill_tui.io.text import storable

DEEPEST = 200
"""Lists and objects inside each other; a C stack and every writer can take that."""
_LONGEST_INTEGER = 4300
"""Digits; Python reads no more."""
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


class NotJson(ValueError):
    """Text that is not JSON, or that holds what no program should take over; the message is one line."""

    is_json: bool = True
    """Whether it is JSON by the letter, and yet cannot be taken over."""
    extra: bool = False
    """Whether something follows a whole value: perhaps it is one value a line."""

    def told(self) -> str:
        """The end of a sentence that begins with the file's name."""
        return f"holds JSON that cannot be read: {self}" if self.is_json else f"is not JSON: {self}"


def loads(text: str | bytes) -> Any:
    """The JSON value of `text`: finite numbers, text that any file can hold, no key twice, `DEEPEST` levels at most.

    Raises:
        NotJson: it is not.
    """
    return _loads(text, _int, _float, _constant, _once)


def loads_leniently(text: str | bytes, *, once: bool = False) -> Any:
    """As `loads`, but numbers that are none become infinite or NaN; of a key that stands twice the last is taken,
    unless it may stand only `once`.

    For files of many records, of which one may be spoilt: `problem` says it of each.

    Raises:
        NotJson: it is not JSON, or nested too deeply.
    """
    return _loads(text, _any_int, float, float, _once if once else None)


def problem(value: Any) -> str | None:
    """What a value of `loads_leniently` holds that `loads` would refuse; None where nothing."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, float) and not math.isfinite(item):
            return f"{'NaN' if math.isnan(item) else 'Infinity'} is no number"
        if isinstance(item, dict):
            pending += item.values()
        elif isinstance(item, list):
            pending += item
    return None


def _loads(
    text: str | bytes,
    parse_int: Callable[[str], Any],
    parse_float: Callable[[str], Any],
    parse_constant: Callable[[str], Any],
    pairs: Callable[[list[tuple[str, Any]]], Any] | None,
) -> Any:
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8-sig")
        except UnicodeDecodeError:
            raise NotJson("it is not UTF-8 text") from None
    try:
        value = json.loads(
            text.removeprefix("\ufeff"),
            parse_int=parse_int,
            parse_float=parse_float,
            parse_constant=parse_constant,
            object_pairs_hook=pairs,
        )
    except json.JSONDecodeError as error:
        found = NotJson(f"{error.msg} at line {error.lineno} column {error.colno}")
        found.is_json = False
        found.extra = error.msg == "Extra data"
        raise found from None
    except RecursionError:
        raise NotJson("it is nested too deeply") from None
    if text.count("[") + text.count("{") > DEEPEST and _is_deeper(value, DEEPEST):
        raise NotJson("it is nested too deeply")
    return _storable(value) if _SURROGATE.search(text) else value


def _is_deeper(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                below += [inner for inner in item.values() if isinstance(inner, dict | list)]
            elif isinstance(item, list):
                below += [inner for inner in item if isinstance(inner, dict | list)]
        if not below:
            return False
        level = below
    return True


def _storable(value: Any) -> Any:
    if isinstance(value, str):
        return storable(value)
    if isinstance(value, list):
        return [_storable(item) for item in value]
    if isinstance(value, dict):
        return {storable(key): _storable(item) for key, item in value.items()}
    return value


def _int(digits: str) -> int:
    if len(digits) > _LONGEST_INTEGER:
        raise NotJson(f"it holds a number of {len(digits)} digits")
    return int(digits)


def _any_int(digits: str) -> int | float:
    return int(digits) if len(digits) <= _LONGEST_INTEGER else math.inf


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise NotJson(f"{text[:40]} is too large for a number")
    return number


def _constant(name: str) -> NoReturn:
    raise NotJson(f"{name} is no number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise NotJson(f"the key {json.dumps(key)[:60]} stands twice in one object")
            seen.add(key)
    return found
