"""An input of one line."""

from __future__ import annotations

from textual import events
from textual.widgets import Input


class LineInput(Input):
    """Lines that are pasted are joined by blanks; Textual keeps the first one alone."""

    def _on_paste(self, event: events.Paste) -> None:
        event.prevent_default()
        event.stop()
        line = " ".join(part for part in map(str.strip, event.text.splitlines()) if part)
        if self.selection.is_empty:
            self.insert_text_at_cursor(line)
        else:
            self.replace(line, *self.selection)
