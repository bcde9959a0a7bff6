"""What an exception means to a person: the one place where foreign exceptions become an error of ours."""

from __future__ import annotations

import asyncio
import errno
import os
import tempfile
import traceback
from collections.abc import Iterator
from pathlib import Path

from krill_tui.errors import STORAGE_HINTS, EnvironmentFailure, KrillError, StorageError
from krill_tui.io.secrets import masked
from krill_tui.io.text import one_line, storable

_URL_ERRORS = frozenset({"InvalidURL", "UnsupportedProtocol", "LocalProtocolError"})
"""Of the HTTP clients, known by name: importing them takes longer than most commands."""
_UNNAMED = {
    errno.ENOSPC: "a file cannot be written",
    errno.EDQUOT: "a file cannot be written",
    errno.EFBIG: "a file cannot be written",
    errno.EROFS: "a file cannot be written",
    errno.EIO: "a file or terminal cannot be read or written",
    errno.EMFILE: "a file cannot be opened",
    errno.ENFILE: "a file cannot be opened",
}


class InternalError(KrillError):
    """A fault of Krill's own; its traceback is in a log."""


def leaves(error: BaseException) -> Iterator[BaseException]:
    """The exceptions in a group, however deep, in their order; one that is no group itself."""
    owed = [error]
    while owed:
        one = owed.pop()
        if isinstance(one, BaseExceptionGroup):
            owed += reversed(one.exceptions)
        else:
            yield one


def was_stopped(error: BaseException) -> bool:
    """Whether a person or a caller stopped what ended by `error`."""
    return any(isinstance(leaf, KeyboardInterrupt | asyncio.CancelledError) for leaf in leaves(error))


def explained(error: BaseException) -> KrillError:
    """The error a person should read: of a group the most telling one, with a count of the others."""
    told = sorted(map(_explain, leaves(error)), key=_rank)
    first, others = told[0], {str(one) for one in told} - {str(told[0])}
    if not others:
        return first
    counted = f"{first.message}; and {len(others)} other error{'s' * (len(others) > 1)}"
    summary = KrillError(counted, hint=first.hint)
    summary.exit_code = first.exit_code
    return summary


def needs_log(error: BaseException) -> bool:
    """Whether the line of `explained` leaves out what somebody who mends it would need."""
    found = list(leaves(error))
    return len({str(leaf) for leaf in found}) > 1 or any(not _says_all(leaf) for leaf in found)


def write_crash_log(path: Path, error: BaseException) -> str:
    """Keep the traceback, groups in full and secrets masked; says where, or why it could not be kept.

    Where the folder of `path` takes no file, the folder for temporary files does.
    """
    trace = traceback.TracebackException.from_exception(error, max_group_width=100, max_group_depth=30)
    report = masked(storable("".join(trace.format())))
    refused = ""
    for place in (path, Path(tempfile.gettempdir()) / f"krill-{os.getpid()}-{path.name}"):
        try:
            _write_private(place, report)
        except OSError as problem:
            refused = refused or f"details could not be kept: {(problem.strerror or str(problem)).lower()}"
        else:
            return f"details: {place}"
    return refused


def _write_private(path: Path, text: str) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
    except OSError:
        path.unlink(missing_ok=True)
        raise


def _says_all(error: BaseException) -> bool:
    if isinstance(error, OSError):
        return error.filename is not None or error.errno in _UNNAMED
    return isinstance(error, KrillError) and not isinstance(error, InternalError)


def _rank(error: KrillError) -> int:
    """A full disk breaks many things, and a world or a bug seldom the disk."""
    kinds = (StorageError, EnvironmentFailure, InternalError)
    return {StorageError: 0, EnvironmentFailure: 2, InternalError: 3}.get(
        next((kind for kind in kinds if isinstance(error, kind)), KrillError), 1
    )


def _explain(error: BaseException) -> KrillError:
    words = one_line(str(error), limit=300)
    match error:
        case KrillError():
            return error
        case OSError():
            return _of_the_system(error, words)
        case MemoryError():
            return KrillError("there is not enough memory", hint="lower env.concurrency or rl.batch_size")
        case RecursionError():
            return KrillError("something that was read is nested too deeply")
        case UnicodeDecodeError():
            return KrillError(f"something that was read is not {error.encoding} text")
        case UnicodeEncodeError():
            return KrillError(
                f"a character cannot be written in {error.encoding}", hint="PYTHONUTF8=1 makes it UTF-8"
            )
        case OverflowError():
            return KrillError(f"a number is too large: {words}")
    if _URL_ERRORS & {kind.__name__ for kind in type(error).__mro__}:
        return KrillError(
            f"a URL or a header cannot be used: {words}", hint="check env.url, model.*_api_base and the keys"
        )
    return InternalError(
        f"something went wrong inside Krill: {type(error).__name__}{': ' if words else ''}{words}"
    )


def _of_the_system(error: OSError, words: str) -> KrillError:
    reason = one_line(error.strerror or words or "an input or output error").lower()
    hint = STORAGE_HINTS.get(error.errno or 0)
    if error.filename is not None:
        name = error.filename2 if error.filename2 is not None else error.filename
        return KrillError(f"{_name(name)}: {reason}", hint=hint)
    if error.errno in _UNNAMED:
        return KrillError(f"{_UNNAMED[error.errno]}: {reason}", hint=hint)
    if error.errno == errno.ENOENT and not _here():
        return KrillError("the current directory was deleted", hint="change to another one")
    if isinstance(error, ConnectionError | TimeoutError) or type(error).__module__ in ("socket", "ssl"):
        return KrillError(f"a connection failed: {reason}")
    return KrillError(f"the operating system refused: {reason}", hint=hint)


def _name(name: object) -> str:
    return one_line(os.fsdecode(name) if isinstance(name, str | bytes | os.PathLike) else f"file {name}")


def _here() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True
