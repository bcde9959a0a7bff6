"""What the keys do here: made from the table of keys."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from krill_tui.tui import keys
from krill_tui.tui.screens.sized import NewestSize
from krill_tui.tui.wording import HEADING, KEY, MUTED

KEY_COLUMN = 18


def help_text(scopes: Sequence[keys.Scope]) -> Content:
    """The keys of some scopes, then those of lists."""
    parts: list[Content] = []
    for scope in (*scopes, "list"):
        lines = [Content.styled(keys.SCOPE_TITLES[scope], HEADING)]
        for key in keys.scoped(scope):
            lines.append(Content.assemble((f"{key.shown:<{KEY_COLUMN}}", KEY), key.help))
        parts.append(Content("\n").join(lines))
    return Content("\n\n").join(parts)


class HelpScreen(NewestSize, ModalScreen[None]):
    BINDINGS: ClassVar = [Binding("escape,q,question_mark,f1", "dismiss", show=False)]

    def __init__(self, scopes: Sequence[keys.Scope]) -> None:
        super().__init__()
        self.scopes = scopes

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog -large"):
            yield Static("Keys", classes="dialog-title", markup=False)
            with VerticalScroll():
                yield Static(help_text(self.scopes), markup=False)
            yield Static(
                Content.styled(
                    "● active  ○ disabled  ✖ retired or lost  ✔ won  ▸ live  ‼ error      esc back", MUTED
                ),
                classes="dialog-hint",
                markup=False,
            )
