"""All of one event, as text to read: the evolution's prompt and reply, a refusal's reason."""

from __future__ import annotations

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from krill_tui.events.schema import Event, Rate
from krill_tui.io.text import one_line, plain
from krill_tui.skill import Skill, SkillProposal
from krill_tui.tui.screens.sized import NewestSize
from krill_tui.tui.wording import HEADING, MUTED, percent

_HIDDEN = {"kind", "seq", "time"}
NAME_COLUMN = 14
INLINE = 70
"""Cells up to which a value stands beside its name."""


def event_text(event: Event) -> Content:
    """Every field of an event after its name, long texts whole, nothing taken for markup."""
    parts: list[Content] = []
    for name in type(event).model_fields:
        value = getattr(event, name)
        if name in _HIDDEN or value in ("", (), {}, None):
            continue
        lines = _lines(value)
        heading = Content.styled(name.replace("_", " "), HEADING)
        if len(lines) == 1 and lines[0].cell_length < INLINE:
            parts.append(
                Content.assemble(heading.pad_right(max(1, NAME_COLUMN - heading.cell_length)), lines[0])
            )
        else:
            parts.append(Content("\n").join([heading, *lines]))
    return Content("\n\n").join(parts)


def _lines(value: object) -> list[Content]:
    if isinstance(value, Rate):
        lost = f", {value.errors} broke" if value.errors else ""
        return [Content(f"{percent(value)}  {value.wins} of {value.episodes}{lost}")]
    if isinstance(value, dict):
        return [
            Content.assemble(
                (f"{one_line(str(key)):<{NAME_COLUMN}}", MUTED), Content("\n").join(_lines(item))
            )
            for key, item in value.items()
        ]
    if isinstance(value, tuple | list):
        return [line for item in value for line in _lines(item)]
    if isinstance(value, Skill | SkillProposal):
        when = value.when_to_apply and f"when: {value.when_to_apply}"
        words = [f"{value.name} ({value.tier})", value.principle, when]
        return [Content(plain(word)) for word in words if word]
    return [Content(plain(str(value)).strip())]


class DetailScreen(NewestSize, ModalScreen[None]):
    BINDINGS: ClassVar = [Binding("escape,q,b,enter", "dismiss", show=False)]

    def __init__(self, title: str, body: Content) -> None:
        super().__init__()
        self.heading = one_line(title)
        self.body = body

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog -large"):
            yield Static(self.heading, classes="dialog-title", markup=False)
            with VerticalScroll():
                yield Static(self.body, markup=False)
            yield Static("esc back", classes="dialog-hint", markup=False)
