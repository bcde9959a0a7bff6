"""The last line: the keys that make sense right now, as many as fit; each can be clicked."""

from __future__ import annotations

from textual import events
from textual.content import Content
from textual.widgets import Static

from krill_tui.tui.keys import Key, Scope, When, footer_keys
from krill_tui.tui.wording import MUTED


class KeyFooter(Static):
    DEFAULT_CSS = """
    KeyFooter { dock: bottom; height: 1; background: $panel; padding: 0 1; text-wrap: nowrap; }
    """

    def __init__(self, *scopes: Scope) -> None:
        super().__init__("", markup=False)
        self.scopes = scopes
        self.when: When = "idle"
        self._drawn: tuple[When, int] | None = None
        self._places: list[tuple[int, int, Key]] = []

    def draw(self, when: When) -> None:
        """Offer the keys of this moment."""
        if (when, self.size.width) == self._drawn:
            return
        self.when = when
        self._drawn = (when, self.size.width)
        width = max(1, self.size.width + 2)  # the last gap may fall off
        chosen = footer_keys(self.scopes, when)
        while len(chosen) > 1 and sum(len(_shown(key)) + len(key.label) + 3 for key in chosen) > width:
            chosen.remove(max(reversed(chosen), key=lambda key: key.footer))
        content, self._places = Content(""), []
        for key in chosen:
            start = content.cell_length
            content += Content.assemble((_shown(key), "bold $primary"), (f" {key.label}", MUTED))
            self._places.append((start, content.cell_length, key))
            content += "  "
        self.update(content, layout=False)

    def on_resize(self) -> None:
        self.draw(self.when)

    async def on_click(self, event: events.Click) -> None:
        column = event.get_content_offset_capture(self).x
        for start, end, key in self._places:
            if start <= column < end:
                namespace = self.app if key.scope == "app" else self.screen
                await self.app.run_action(key.action, namespace)


def _shown(key: Key) -> str:
    """The first of a key's alternatives."""
    return key.shown.split()[0]
