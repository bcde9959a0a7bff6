"""A krill command in a terminal of its own, of which every byte is kept."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
_CONTROL = re.compile(
    rb"\x1b\[[?<>=]?[0-9;:]*[ $]?[A-Za-z]"  # cursor, colours, modes: what Textual and Rich write
    rb"|\x1b[78=>]|\x1b\([0B]|\x1b\]22;[a-z-]*\x07"
)


class PseudoTerminal:
    """A command in a pseudo-terminal; `screen` is all it wrote."""

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        columns: int = 120,
        lines: int = 40,
        environment: Mapping[str, str] | None = None,
        seconds: float = 60.0,
    ) -> None:
        """`seconds`: a command that is still there after them is killed."""
        self.screen = bytearray()
        self._master, slave = pty.openpty()
        self._set_size(slave, columns, lines)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "krill_tui", *arguments],
            cwd=cwd,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **(environment or {})},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self._watchdog = threading.Timer(seconds, self.process.kill)
        self._watchdog.start()

    def read_until(self, happened: Callable[[], bool]) -> None:
        """Keep the screen's output flowing until something happened, or the command ended."""
        while not happened():
            if select.select([self._master], [], [], 0.05)[0]:
                try:
                    self.screen += os.read(self._master, 65536)
                except OSError:  # the command has ended
                    return

    def wait(self, seconds: float) -> None:
        """Read on for so long."""
        end = time.monotonic() + seconds
        self.read_until(lambda: time.monotonic() >= end)

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def type(self, keys: str | bytes) -> None:
        """Send keys; nothing where the command has ended."""
        if self.alive:
            os.write(self._master, keys if isinstance(keys, bytes) else keys.encode())

    def resize(self, columns: int, lines: int) -> None:
        self._set_size(self._master, columns, lines)
        if self.alive:
            self.process.send_signal(signal.SIGWINCH)

    def finish(self) -> int:
        """Read to the end; returns the exit code."""
        self.read_until(lambda: False)
        code = self.process.wait()
        self._watchdog.cancel()
        os.close(self._master)
        return code

    def text(self) -> str:
        """What was written, without the control sequences of a terminal application."""
        return _CONTROL.sub(b"", bytes(self.screen)).decode("utf-8", "replace")

    @staticmethod
    def _set_size(handle: int, columns: int, lines: int) -> None:
        fcntl.ioctl(handle, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
