"""Keys and pastes of a real terminal, whatever bytes it sends.

Textual's own driver decodes strictly: one byte that is no UTF-8 (a Latin-1 keyboard, an old mouse report, a pasted
picture) ends the app.
"""

from __future__ import annotations

import codecs
import os
import re
import selectors

from textual import events
from textual._xterm_parser import XTermParser
from textual.drivers.linux_driver import LinuxDriver
from textual.message import Message

from krill_tui.io.text import plain

POLL_SECONDS = 0.1
_READ_BYTES = 4096
_OLD_MOUSE = re.compile(rb"\x1b\[M[\x20-\xff]{3}")
"""A mouse report with raw bytes as coordinates, which would be taken for typed keys."""


class TolerantDriver(LinuxDriver):
    """A byte that is no text becomes U+FFFD, which no key is bound to; what is pasted holds no control characters."""

    def run_input_thread(self) -> None:
        parser = XTermParser(self._debug)
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        with selectors.DefaultSelector() as selector:
            selector.register(self.fileno, selectors.EVENT_READ)
            while not self.exit_event.is_set():
                data = b""
                if selector.select(POLL_SECONDS):
                    try:
                        data = os.read(self.fileno, _READ_BYTES)
                    except OSError:  # the terminal is gone
                        return
                    if not data:
                        return
                try:
                    self._dispatch(parser, decoder.decode(_OLD_MOUSE.sub(b"", data)))
                except Exception:  # a sequence that the parser cannot read: what follows it is read anew
                    parser = XTermParser(self._debug)

    def _dispatch(self, parser: XTermParser, text: str) -> None:
        for message in (*(parser.feed(text) if text else ()), *parser.tick()):
            self.process_message(message)

    def process_message(self, message: Message) -> None:
        if isinstance(message, events.Paste):
            message = events.Paste(plain(message.text))
        super().process_message(message)
