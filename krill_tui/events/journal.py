"""The append-only journal of a run: one event a line, whole lines only."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import ValidationError

from krill_tui.errors import DataError
from krill_tui.events.schema import BaseEvent, Event, event_adapter


class Journal:
    """Appends to `events.jsonl`. A torn last line (killed while writing) is cut off on opening."""

    def __init__(self, path: Path, on_read: Callable[[Event], None] | None = None) -> None:
        """Open the file; `on_read` sees every event that is already there."""
        self.path = path
        self.last_seq = 0
        truncate_torn_line(path)
        if path.exists():
            for event in read_journal(path):
                self.last_seq = event.seq
                if on_read:
                    on_read(event)
        self._file = path.open("ab", buffering=0)

    def append(self, event: BaseEvent) -> None:
        """Write one line with one system call: the kernel holds it even if this process is killed."""
        self._file.write(event.model_dump_json().encode() + b"\n")

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


def truncate_torn_line(path: Path) -> None:
    """Cut what follows the last newline; it was never finished, so nothing refers to it."""
    if not path.exists():
        return
    with path.open("r+b") as file:
        size = end = file.seek(0, os.SEEK_END)
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end < size:
            file.truncate(end)


def read_journal(path: Path) -> Iterator[Event]:
    """Every whole event of a journal, in order; a torn last line is left out.

    Raises:
        DataError: the file cannot be read, or a whole line is no event; names the line.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    with file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            yield parse_event(line, path, number)


class JournalFollower:
    """Reads a journal that another process is still writing."""

    def __init__(self, path: Path, on_read: Callable[[Event], None] | None = None) -> None:
        """Open the file; `on_read` sees every event that is already there."""
        self.path = path
        self._offset = 0
        self._line = 0

    def read_new(self) -> list[Event]:
        """Events that were completed since the last call; [] while the file does not exist."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        end = data.rfind(b"\n") + 1
        events: list[Event] = []
        for line in data[:end].splitlines():
            self._line += 1
            events.append(parse_event(line, self.path, self._line))
        self._offset += end
        return events


def parse_event(line: bytes, path: Path, number: int) -> Event:
    """One line of a journal.

    Raises:
        DataError: it is no event; names `path` and the line's `number`.
    """
    try:
        return event_adapter.validate_json(line)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"].lower()
        raise DataError(f"{path}: line {number} is not an event of this version: {problem}") from None
