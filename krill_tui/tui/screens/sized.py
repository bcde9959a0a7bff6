"""Screens in a terminal whose size changes quickly."""

from __future__ import annotations

from typing import TYPE_CHECKING

from textual import events

if TYPE_CHECKING:
    from textual.screen import Screen

    _Base = Screen
else:
    _Base = object


class NewestSize(_Base):
    """Mixed into a screen: sizes that the terminal no longer has are not laid out.

    A layout tells the screen its size by another event. While the terminal changes quickly two of them can be under way,
    and each layout for the one begets it anew: the app would draw both in turn for ever, and take in no key.
    """

    async def _on_resize(self, event: events.Resize) -> None:
        if event.size != self.app.size:
            event.stop()
            event.prevent_default()
