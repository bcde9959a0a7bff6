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
from krill_tui.io.files import read_json
from krill_tui.io.text import clean_text
from krill_tui.trajectory import StopReason

Converted = TypeVar("Converted")
Model = TypeVar("Model", bound=BaseModel)


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


def convert_each(
    records: Sequence[Any],
    convert: Callable[[Any], Converted],
    *,
    key: Callable[[Converted], str],
    limit: int | None = None,
) -> ConvertReport[Converted]:
    """Convert until there are `limit`; of records with the same key the first is kept."""
    found: dict[str, Converted] = {}
    refused: list[tuple[int, str]] = []
    read = 0
    for index, record in enumerate(records):
        if limit is not None and len(found) >= limit:
            break
        read += 1
        try:
            converted = convert(record)
        except Refused as reason:
            refused.append((index, clean_text(str(reason), 300)))
            continue
        if key(converted) in found:
            refused.append((index, "the same as an earlier record"))
        else:
            found[key(converted)] = converted
    return ConvertReport(read, tuple(found.values()), tuple(refused), len(records) - read)


def read_records(path: Path) -> list[Any]:
    """The records of a JSON list, or of one JSON value a line where the file's name ends in `.jsonl`.

    A last line that breaks off (the writer was killed) is left out.

    Raises:
        DataError: missing, unreadable, or no list.
    """
    if path.suffix != ".jsonl":
        data = read_json(path)
        if isinstance(data, list):
            return data
        raise DataError(f"{path}: holds no list of trajectories")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text") from None
    lines = text.split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError):
            if number == len(lines):
                break
            raise DataError(f"{path}: line {number} is not JSON") from None
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
