"""What makes a run the run it is: the fields of the schema that are marked, and where two configs differ in them."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel

from krill_tui.config.schema import FixedFrom, KrillConfig, Since


class Difference(NamedTuple):
    """A field that has another value than before."""

    field: str
    """`section.field`, or the name of a field of no section."""
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.field} {_shown(self.old)} -> {_shown(self.new)}"


def fixed_fields() -> dict[str, Since]:
    """Every marked field as `section.field`, with what fixes it, in the schema's order."""
    return {name: mark.since for name, metadata in _fields(KrillConfig) for mark in _marks(metadata)}


def differences(
    old: Mapping[str, Any], new: Mapping[str, Any], fields: Collection[str] | None = None
) -> list[Difference]:
    """Where two configs, as they are written into a run, differ: in `fields`, or in all there are.

    What the old one does not hold is a setting of a later version, and no difference.
    """
    found = []
    for name, _ in _fields(KrillConfig):
        if fields is not None and name not in fields:
            continue
        before, after = _value(old, name), _value(new, name)
        if before is not _MISSING and after is not _MISSING and before != after:
            found.append(Difference(name, before, after))
    return found


def listed(found: Collection[Difference], limit: int = 8) -> str:
    """The differences in one line."""
    shown = [str(difference) for difference in list(found)[:limit]]
    more = [f"and {len(found) - limit} more"] if len(found) > limit else []
    return ", ".join(shown + more)


_MISSING = object()


def _value(config: Mapping[str, Any], name: str) -> Any:
    value: Any = config
    for part in name.split("."):
        value = value.get(part, _MISSING) if isinstance(value, Mapping) else _MISSING
    return value


def _fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, list[Any]]]:
    for name, info in section.model_fields.items():
        annotation = info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from _fields(annotation, f"{name}.")
        else:
            yield prefix + name, info.metadata


def _marks(metadata: list[Any]) -> list[FixedFrom]:
    return [mark for mark in metadata if isinstance(mark, FixedFrom)]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
