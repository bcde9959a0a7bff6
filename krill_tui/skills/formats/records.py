"""What the converters of trajectories share: records one by one, and a report of what became of them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from krill_tui.errors import DataError
from krill_tui.io.files import read_text
from krill_tui.io.json_text import NotJson, loads_leniently
from krill_tui.io.json_text import problem as json_problem
from krill_tui.io.text import clean_text
from krill_tui.trajectory import StopReason

Converted = TypeVar("Converted")
Model = TypeVar("Model", bound=BaseModel)


_REASONS_TOLD = 3


class Refused(Exception):
    """One record that cannot be converted; its text says why, in the words of the report."""


class Loose(BaseModel):
    """A record of another project; what it holds besides is left out."""

    model_config = ConfigDict(extra="ignore")


@dataclass(frozen=True, slots=True)
class ConvertReport(Generic[Converted]):
    """What became of a file of records."""

    read: int
    """Records looked at."""
    trajectories: tuple[Converted, ...]
    refused: tuple[tuple[int, str], ...]
    """(index of the record, why) of those that could not be converted."""
    left: int = 0
    """Records behind the maximum, which were not looked at."""

    @property
    def converted(self) -> int:
        return len(self.trajectories)

    def told(self) -> str:
        """What was left out, in one line; empty where nothing was."""
        return left_out(self.read, [f"record {index}: {why}" for index, why in self.refused])


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record that is not even JSON."""

    reason: str


def left_out(read: int, reasons: Sequence[str]) -> str:
    """`2 of 9 records left out: …` with the first reasons; empty where there are none."""
    if not reasons:
        return ""
    more = f"; and {len(reasons) - _REASONS_TOLD} more" if len(reasons) > _REASONS_TOLD else ""
    return f"{len(reasons)} of {read} records left out: {'; '.join(reasons[:_REASONS_TOLD])}{more}"


def convert_each(
    records: Sequence[Any],
    convert: Callable[[Any], Converted],
    *,
    key: Callable[[Converted], str],
    limit: int | None = None,
) -> ConvertReport[Converted]:
    """Convert until there are `limit`; of records with the same key the first is kept."""

    def converted_or_refused(record: Any) -> Converted:
        if isinstance(record, Unreadable):
            raise Refused(record.reason)
        converted = convert(record)
        # A number that is none may stand in a field that the conversion does not look at.
        if fault := json_problem(record):
            raise Refused(fault)
        return converted

    found: dict[str, Converted] = {}
    refused: list[tuple[int, str]] = []
    read = 0
    for index, record in enumerate(records):
        if limit is not None and len(found) >= limit:
            break
        read += 1
        try:
            converted = converted_or_refused(record)
        except Refused as reason:
            refused.append((index, clean_text(str(reason), 300)))
            continue
        if key(converted) in found:
            refused.append((index, "the same as an earlier record"))
        else:
            found[key(converted)] = converted
    return ConvertReport(read, tuple(found.values()), tuple(refused), len(records) - read)


def read_values(path: Path) -> Any:
    """The JSON value of a file; a list of them where it holds one a line (its name ends in `.jsonl`, or it does so).

    Of a file of lines, one that is not JSON is an `Unreadable` in the list; a last line that breaks off (the writer
    was killed) is left out.

    Raises:
        DataError: missing, unreadable, or not JSON.
    """
    if path.suffix == ".jsonl":
        return _read_lines(path)
    try:
        return loads_leniently(read_text(path))
    except NotJson as error:
        if error.extra:
            lines = _read_lines(path)
            if sum(not isinstance(line, Unreadable) for line in lines) > 1:
                return lines
        raise DataError(f"{path}: {error.told()}") from None


def read_records(path: Path) -> list[Any]:
    """The records of a file: `read_values`, where that is a list.

    Raises:
        DataError: missing, unreadable, or no list.
    """
    data = read_values(path)
    if isinstance(data, list):
        return data
    raise DataError(f"{path}: holds no list of trajectories")


def _read_lines(path: Path) -> list[Any]:
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    records: list[Any] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(loads_leniently(line))
        except NotJson as error:
            if number < len(lines):
                place = error.told().replace("at line 1 column", "at column")
                records.append(Unreadable(f"line {number} {place}"))
    return records


def validated(model: type[Model], record: Any) -> Model:
    """The record as `model`.

    Raises:
        Refused: it is not; names the field.
    """
    try:
        return model.model_validate(record)
    except ValidationError as error:
        raise Refused(problem(error)) from None


def problem(error: ValidationError) -> str:
    """The first thing that is wrong, on one line: `steps.0.action: Field required`."""
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"])) or "value"
    message = "should be an object" if first["type"] == "model_type" else first["msg"]
    return f"{clean_text(place, 80)}: {clean_text(message, 200)}"


def digest(record: Any) -> str:
    """16 hexadecimal digits that name the content of a record."""
    canonical = json.dumps(record, sort_keys=True, ensure_ascii=True).encode()
    return hashlib.blake2b(canonical, digest_size=8).hexdigest()


def utf8(text: str) -> str:
    """`text` without lone surrogates, which JSON can hold and no file can."""
    return text.encode("utf-8", "replace").decode("utf-8")


def finite(value: Any, name: str) -> float:
    """A number of a record.

    Raises:
        Refused: it is none, or is not finite.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused(f"its {name} is no number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise Refused(f"its {name} is no number")
    return number


def unsaid_stop(env: str, success: bool) -> StopReason:
    """Why an episode ended, where the format does not say: a household game is only lost by its step limit."""
    if success:
        return StopReason.SUCCESS
    return StopReason.STEP_LIMIT if env == "alfworld" else StopReason.FAILURE
