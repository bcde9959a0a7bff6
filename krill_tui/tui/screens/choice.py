"""A question with a few answers, each with its letter."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Button, Static

from krill_tui.io.text import plain
from krill_tui.tui.screens.sized import NewestSize


class ChoiceScreen(NewestSize, ModalScreen[str]):
    """Dismissed with the chosen value; escape chooses "", which must be the harmless answer."""

    BINDINGS: ClassVar = [Binding("escape", "choose('')", show=False)]

    def __init__(self, question: str, body: str, answers: Mapping[str, tuple[str, str]]) -> None:
        """`answers`: value -> (letter, words)."""
        super().__init__()
        self.question = question
        self.body = body
        self.answers = answers

    def compose(self) -> ComposeResult:
        with Vertical(classes="dialog"):
            yield Static(plain(self.question), classes="dialog-title", markup=False)
            yield Static(plain(self.body), markup=False)
            with Horizontal(classes="dialog-buttons"):
                for value, (letter, words) in self.answers.items():
                    label = Content.assemble((letter, "bold underline"), f"  {words}")
                    yield Button(label, id=f"answer-{value}", compact=True)

    def on_mount(self) -> None:
        self.query_one("#answer-", Button).focus()
        for value, (letter, _) in self.answers.items():
            self._bindings.bind(letter, f"choose('{value}')", show=False)

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss((event.button.id or "").removeprefix("answer-"))

    def action_choose(self, value: str) -> None:
        self.dismiss(value)
