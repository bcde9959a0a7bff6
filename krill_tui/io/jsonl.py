"""Append-only files of JSON, one value a line: the journal, the episodes, their tokens, a teacher's replies.

A line is written whole or not at all. What a kill left torn at the end is cut off when the file is opened for
writing; every error names the file, and the line where there is one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeVar

from pydantic import ValidationError

from krill_tui.errors import DataError, RunLockedError, StorageError
from krill_tui.io.secrets import masked_json

T = TypeVar("T")


class Line(NamedTuple):
    """A whole line without its line end."""

    number: int
    """From 1."""
    offset: int
    """Bytes before it."""
    data: bytes


class JsonLines:
    """A file of JSON lines, opened for appending."""

    def __init__(self, path: Path, *, exclusive: bool = False, checked: bool = False) -> None:
        """Create the file where it is missing, with mode 0600; cut off a torn last line.

        With `exclusive` no second process can open it so, until it is closed. With `checked` every line, which has
        to be an object, ends with a checksum, which reading takes off again.

        Raises:
            RunLockedError: another process has it open exclusively.
            StorageError: it cannot be opened or written.
        """
        self.path = path
        try:
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                if exclusive:
                    _lock(handle, path)
                repair_tail(path)
            except BaseException:
                os.close(handle)
                raise
        except OSError as error:
            raise StorageError(path, error) from None
        self._handle = handle
        self._end = os.fstat(handle).st_size
        self._checked = checked

    def append(self, data: bytes) -> int:
        """Write one line, given without its line end; returns where it begins.

        The kernel holds it when this returns, even if the process is killed then. Known secrets are masked.

        Raises:
            StorageError: it could not be written whole; the file is as it was before.
        """
        line = masked_json(data)
        line = (with_checksum(line) if self._checked else line) + b"\n"
        start = self._end
        try:
            if os.fstat(self._handle).st_nlink == 0:
                raise FileNotFoundError(2, "it was deleted while Krill was writing to it")
            written = 0
            while written < len(line):
                written += os.write(self._handle, line[written:])
        except BaseException as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._handle, start)
            if isinstance(error, OSError):
                raise StorageError(self.path, error) from None
            raise
        self._end = start + len(line)
        return start

    def sync(self) -> None:
        """Wait until the disk holds what was written: after that, even a power cut loses nothing of it.

        Raises:
            StorageError: the disk refused.
        """
        try:
            os.fsync(self._handle)
        except OSError as error:
            raise StorageError(self.path, error) from None

    def close(self, *, sync: bool = True) -> None:
        """Sync, as far as the disk lets us, and close; more than once does no harm."""
        if self._handle < 0:
            return
        if sync:
            with contextlib.suppress(OSError):
                os.fsync(self._handle)
        os.close(self._handle)
        self._handle = -1


def with_checksum(line: bytes) -> bytes:
    """A JSON object in one line, with a CRC of itself as its last member."""
    return b'%b,"crc":"%08x"}' % (line[:-1], zlib.crc32(line))


def without_checksum(line: bytes) -> bytes:
    """The line as it was before `with_checksum`; one that never had a checksum is given back as it is.

    Raises:
        ValueError: it is not the line that was written.
    """
    found = _CHECKSUM.search(line, max(0, len(line) - _CHECKSUM_LENGTH))
    if found is None:
        return line
    whole = line[: found.start()] + b"}"
    if zlib.crc32(whole) != int(found.group(1), 16):
        raise ValueError("it was changed after it was written (its checksum differs)")
    return whole


def has_checksum(line: bytes) -> bool:
    return _CHECKSUM.search(line, max(0, len(line) - _CHECKSUM_LENGTH)) is not None


_CHECKSUM = re.compile(rb',"crc":"([0-9a-f]{8})"\}$')
_CHECKSUM_LENGTH = len(b',"crc":"00000000"}')


def _lock(handle: int, path: Path) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunLockedError(f"{path}: another process writes to it") from None
    except OSError:
        return  # a file system without locks


def repair_tail(path: Path) -> int:
    """Cut what follows the last line end; it was never finished, so nothing refers to it. Returns the bytes cut."""
    if not path.exists():
        return 0
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
        return size - end


def whole_lines(path: Path) -> Iterator[Line]:
    """Every finished line, in order; a torn last one is left out. A missing file has none.

    Raises:
        DataError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            offset = 0
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    return
                yield Line(number, offset, line[:-1])
                offset += len(line)
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None


def parsed(line: Line, path: Path, parse: Callable[[bytes], T], what: str) -> T:
    """One line through `parse`; `what` says what it should be: `an event`.

    Raises:
        DataError: it is not; names the file and the line.
    """
    try:
        return parse(without_checksum(line.data))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        problem = f"{place}: {first['msg'].lower()}" if place else first["msg"].lower()
    except (ValueError, TypeError, KeyError, IndexError, OverflowError, RecursionError) as error:
        problem = str(error).lower() or type(error).__name__
    raise DataError(
        f"{path}: line {line.number} is not {what} of this version: {problem[:300]}",
        hint="krill doctor RUN says what is damaged and what can be restored",
    )


def read_lines(path: Path, parse: Callable[[bytes], T], what: str) -> Iterator[T]:
    """`parsed` over the `whole_lines` of a file."""
    for line in whole_lines(path):
        yield parsed(line, path, parse, what)
