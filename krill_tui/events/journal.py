"""The append-only journal of a run: one event a line, whole lines only."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from krill_tui.errors import DataError
from krill_tui.events.schema import BaseEvent, Event, event_adapter
from krill_tui.io.jsonl import JsonLines, Line, has_checksum, parsed, whole_lines, without_checksum


class Journal:
    """Appends to `events.jsonl`. A torn last line (killed while writing) is cut off on opening."""

    def __init__(self, path: Path, on_read: Callable[[Event], None] | None = None) -> None:
        """Open the file; `on_read` sees every event that is already there.

        Raises:
            RunLockedError: another process writes to it.
            DataError: a whole line is no event; names the line.
            StorageError: it cannot be opened or written.
        """
        self.path = path
        self.last_seq = 0
        self._file = JsonLines(path, exclusive=True, checked=True)
        try:
            for event in read_journal(path):
                self.last_seq = event.seq
                if on_read:
                    on_read(event)
        except BaseException:
            self._file.close(sync=False)  # or it would stay locked
            raise

    def append(self, event: BaseEvent) -> None:
        """Write one line, whole: the kernel holds it even if this process is killed.

        Raises:
            StorageError: it could not be written; the journal is as it was.
        """
        self._file.append(event.model_dump_json().encode())

    def sync(self) -> None:
        """Wait until the disk holds every event."""
        self._file.sync()

    def close(self) -> None:
        self._file.close()


def read_journal(path: Path) -> Iterator[Event]:
    """Every whole event of a journal, in order; a torn last line is left out.

    Raises:
        DataError: the file is missing or cannot be read, or a whole line is no event; names the line.
    """
    if not path.exists():
        raise DataError(f"{path}: cannot be read: no such file or directory")
    reader = _Reader(path)
    for line in whole_lines(path):
        yield reader.read(line)


class _Reader:
    """Reads the lines of a journal in order; with their numbers it notices those that are gone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seq = 0

    def read(self, line: Line) -> Event:
        event = parsed(line, self.path, event_adapter.validate_json, "an event")
        # Earlier versions wrote no checksums, and left a number out where the disk was full.
        if event.seq not in (0, self._seq + 1) and has_checksum(line.data):
            raise DataError(
                f"{self.path}: before line {line.number} events are missing ({self._seq + 1} should follow, not"
                f" {event.seq})",
                hint="krill doctor RUN says what is damaged and what can be restored",
            )
        self._seq = event.seq
        return event


AFTER_THE_END = ("run_started", "noted", "control_changed", "skill_added", "skill_changed", "skill_removed")
"""Kinds of events that do not begin a run's work again: it was opened, looked at and curated."""


def last_outcome(path: Path) -> tuple[str, float]:
    """How a run ended, read from the end of its journal, and the Unix time of its last event.

    The outcome of the newest `run_finished` that no work followed (`RunState.outcome` says the same); `""` for a run
    that was broken off or runs, `damaged` where the last line cannot be read.

    Raises:
        OSError: the file cannot be read.
    """
    last = 0.0
    for line in _lines_from_the_end(path):
        try:
            event = event_adapter.validate_json(without_checksum(line))
        except ValueError:
            return "damaged", last
        last = last or event.time
        if event.kind == "run_finished":
            return event.outcome, last
        if event.kind not in AFTER_THE_END:
            return "", last
    return ("", last) if last else ("damaged", 0.0)


def _lines_from_the_end(path: Path, window: int = 1 << 16) -> Iterator[bytes]:
    """The whole lines, the last one first; a torn last one is left out."""
    with path.open("rb") as file:
        position = file.seek(0, os.SEEK_END)
        rest = b""
        torn = True
        while position > 0:
            start = max(0, position - window)
            file.seek(start)
            rest = file.read(position - start) + rest
            position = start
            window *= 2
            if torn:
                end = rest.rfind(b"\n")
                if end < 0:
                    continue
                rest, torn = rest[:end], False
            first, *whole = rest.split(b"\n")
            yield from reversed(whole)
            rest = first
        if rest and not torn:
            yield rest


class JournalFollower:
    """Reads a journal that another process is still writing."""

    def __init__(self, path: Path, on_read: Callable[[Event], None] | None = None) -> None:
        """Open the file; `on_read` sees every event that is already there."""
        self.path = path
        self._offset = 0
        self._line = 0
        self._reader = _Reader(path)

    def read_new(self) -> list[Event]:
        """Events that were completed since the last call; [] while the file does not exist."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._offset)
            data = file.read()
        end = data.rfind(b"\n") + 1
        events: list[Event] = []
        for line in data[:end].split(b"\n")[:-1]:
            self._line += 1
            whole = Line(self._line, self._offset, line)
            events.append(self._reader.read(whole))
        self._offset += end
        return events
