"""A form for one skill."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Label, Static, TextArea

from krill_tui.io.text import one_line, plain
from krill_tui.skill import GENERAL
from krill_tui.tui.screens.choice import ChoiceScreen
from krill_tui.tui.screens.sized import NewestSize
from krill_tui.tui.widgets.line_input import LineInput


@dataclass(frozen=True, slots=True)
class SkillDraft:
    """What a person writes of a skill."""

    name: str = ""
    principle: str = ""
    when_to_apply: str = ""
    tier: str = GENERAL


class SkillForm(NewestSize, ModalScreen[SkillDraft | None]):
    """Dismissed with the draft when it was saved, with None otherwise."""

    BINDINGS: ClassVar = [
        Binding("escape", "leave", show=False),
        Binding("ctrl+s", "save", show=False, priority=True),
    ]

    def __init__(self, title: str, draft: SkillDraft, tiers: Sequence[str]) -> None:
        super().__init__()
        self.heading = title
        self.draft = draft
        self.tiers = tiers
        self._at_first = draft

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog -form"):
            yield Static(self.heading, classes="dialog-title", markup=False)
            yield Label("Name", id="name-label")
            yield LineInput(
                plain(self.draft.name), id="name", select_on_focus=False, compact=True, max_length=200
            )
            yield Label("Principle: what to do")
            area = TextArea(plain(self.draft.principle), id="principle", tab_behavior="focus", compact=True)
            area.cursor_blink = False
            yield area
            yield Label("When to apply")
            yield LineInput(plain(self.draft.when_to_apply), id="when", compact=True, max_length=500)
            yield Label(Content(f"Tier: {' '.join(map(one_line, self.tiers))}, or another category"))
            yield LineInput(plain(self.draft.tier), id="tier", compact=True, max_length=60)
            yield Static("", id="form-problem", markup=False)
            with Horizontal(classes="dialog-buttons"):
                yield Button(Content.assemble(("^s", "bold underline"), "  Save"), id="save", compact=True)
                yield Button(Content.assemble(("esc", "bold underline"), "  Leave"), id="leave", compact=True)

    def on_mount(self) -> None:
        for field in self.query(Input):
            field.cursor_blink = False
        self.query_one("#name", Input).focus()
        self._at_first = self._written()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        if event.button.id == "save":
            self.action_save()
        else:
            self.action_leave()

    def action_leave(self) -> None:
        """Leave; what was typed is thrown away only after a question."""
        if self._written() == self._at_first:
            self.dismiss(None)
            return
        self.app.push_screen(
            ChoiceScreen(
                "Leave without saving?",
                "What you typed would be lost.",
                {"leave": ("y", "Leave"), "": ("n", "Go on writing")},
            ),
            self._leave,
        )

    def _leave(self, answer: str | None) -> None:
        if answer:
            self.dismiss(None)

    def _written(self) -> SkillDraft:
        return SkillDraft(
            name=self.query_one("#name", Input).value.strip(),
            principle=self.query_one("#principle", TextArea).text.strip(),
            when_to_apply=self.query_one("#when", Input).value.strip(),
            tier=self.query_one("#tier", Input).value.strip() or GENERAL,
        )

    def action_save(self) -> None:
        draft = self._written()
        if not draft.name or not draft.principle:
            self.query_one("#form-problem", Static).update("A skill needs a name and a principle.")
            return
        self.dismiss(draft)
