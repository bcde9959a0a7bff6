"""Standard input, output and error of a command: open, and never the reason it fails.

A closed one is replaced by the null device, and a character that the encoding lacks is written as an escape:
output that is redirected or piped keeps the encoding its reader asked for.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Mapping
from typing import Any

from krill_tui.io.secrets import masked, masked_json
from krill_tui.io.text import json_line, plain, plain_line

_NAMES = ("stdin", "stdout", "stderr")
_SIZE = re.compile(r"[1-9][0-9]{0,3}")


def prepare_streams() -> None:
    """Open what is closed, make output tolerant, and forget terminal sizes that are none."""
    for number, name in enumerate(_NAMES):
        if getattr(sys, name) is None:
            stream = _null_device(number)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
    for name in ("stdout", "stderr"):
        stream = _Output.over(getattr(sys, name), f"standard {'error' if name == 'stderr' else 'output'}")
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    for variable in ("COLUMNS", "LINES"):
        if not _SIZE.fullmatch(os.environ.get(variable, "")):
            os.environ.pop(variable, None)


class _Output(io.TextIOWrapper):
    """A stream whose errors name it, as those of a file do, and that writes any character."""

    label = ""

    @classmethod
    def over(cls, stream: io.TextIOWrapper, label: str) -> _Output:
        """Takes the place of `stream`."""
        lines, through, encoding = stream.line_buffering, stream.write_through, stream.encoding
        made = cls(
            stream.detach(),
            encoding=encoding,
            errors="backslashreplace",
            line_buffering=lines,
            write_through=through,
        )
        made.label = label
        return made

    def write(self, text: str, /) -> int:
        try:
            return super().write(text)
        except OSError as error:
            error.filename = self.label
            raise

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            error.filename = self.label
            raise


def is_dumb(environment: Mapping[str, str]) -> bool:
    """Whether `TERM` names a terminal that shows lines and no more, or none at all."""
    return environment.get("TERM", "").lower() in ("", "dumb", "unknown")


def show(text: str) -> None:
    """One line on standard output, of which some may come from anywhere."""
    print(plain_line(masked(text)))


def show_text(text: str) -> None:
    """A document of many lines on standard output."""
    sys.stdout.write(plain(masked(text), limit=sys.maxsize))


def show_json(value: Any, indent: int | None = None) -> None:
    """`value` on standard output as JSON that is the same in every encoding and does nothing to a terminal."""
    print(masked_json(json_line(value, indent).encode()).decode())


def say(text: str) -> None:
    """One line on standard error; whoever cannot read it misses it."""
    with contextlib.suppress(OSError, ValueError):
        print(plain_line(masked(text)), file=sys.stderr, flush=True)


def finish_streams() -> None:
    """Write out what is held; what a stream does not take is thrown away.

    The interpreter would complain about it once more at its end.
    """
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, stream.fileno())
                os.close(null)


def _null_device(number: int) -> io.TextIOWrapper:
    """The null device as file `number`, which children inherit."""
    handle = os.open(os.devnull, os.O_RDWR)
    if handle != number:
        os.dup2(handle, number)
        os.close(handle)
    os.set_inheritable(number, True)
    return open(
        number, "r" if number == 0 else "w", encoding="utf-8", errors="backslashreplace", closefd=False
    )
