"""A titled frame around one list, with a search line that filters it."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Input

from krill_tui.engine.state import RunState
from krill_tui.io.text import one_line
from krill_tui.tui.widgets.line_input import LineInput
from krill_tui.tui.widgets.line_list import LineList, Row
from krill_tui.tui.wording import MUTED


class SearchableList(LineList):
    """A list drawn from a run's state, narrowed by a query."""

    noun = "rows"
    """What the search line says it searches."""
    one = "row"
    """A single one of them."""

    def __init__(self, *, id: str | None = None, follow: bool = False) -> None:
        super().__init__(id=id, follow=follow)
        self.query_text = ""
        self._drawn: object = None

    def title(self, state: RunState) -> Content:
        """What the frame around it says."""
        return Content(self.noun.capitalize())

    def make_rows(self, state: RunState) -> list[Row]:
        raise NotImplementedError

    def stamp(self, state: RunState) -> object:
        """Equal stamps mean equal rows: nothing is made again."""
        return object()

    def draw(self, state: RunState) -> bool:
        """Take the state in; False when nothing of it changed here."""
        stamp = (self.stamp(state), self.query_text)
        if stamp == self._drawn:
            return False
        self._drawn = stamp
        self.set_rows(self.make_rows(state))
        return True

    def nothing(self) -> Content:
        searched = one_line(self.query_text, limit=40)
        return Content.styled(f"No {self.one} matches “{searched}”.", MUTED) if searched else self.empty

    def first_hit(self) -> str | None:
        """Key of the row a search goes to."""
        return next((row.key for row in self.rows if row.pick), None)

    def matches(self, *texts: str) -> bool:
        """Whether every word of the query is in one of the texts."""
        words = self.query_text.casefold().split()
        return all(any(word in text.casefold() for text in texts) for word in words)


class Pane(Vertical):
    """Frame, search line, list. `number` is the key that goes to it; 0 for none."""

    DEFAULT_CSS = """
    Pane {
        border: round $border-blurred;
        border-title-color: $muted;
        padding: 0 0 0 1;
        &:focus-within { border: round $primary; border-title-color: $foreground; }
        & > Input {
            height: 1; border: none; padding: 0; margin: 0 1 0 0; background: $panel; display: none;
            &:focus { border: none; }
        }
        &.-searching > Input { display: block; }
    }
    """

    def __init__(self, list_: SearchableList, *, number: int = 0, id: str | None = None) -> None:
        super().__init__(id=id)
        self.list = list_
        self.number = number
        self.search_input = LineInput(placeholder=f"search {list_.noun}", select_on_focus=False, compact=True)
        self.search_input.cursor_blink = False
        self.state = RunState()

    def compose(self) -> ComposeResult:
        yield self.search_input
        yield self.list

    def draw(self, state: RunState) -> None:
        """Draw, unless nobody can see it."""
        self.state = state
        if not self.display or not self.is_attached:
            return
        if self.list.draw(state):
            title = self.list.title(state)
            number = Content.styled(f"{self.number} " if self.number else "", "$primary")
            self.border_title = number + title  # pyright: ignore[reportAttributeAccessIssue]

    def focus_list(self) -> None:
        self.list.focus()

    def open_search(self) -> None:
        self.add_class("-searching")
        self.search_input.focus()

    def clear_search(self) -> bool:
        """Show everything again; False when there was no search."""
        if not self.has_class("-searching"):
            return False
        self.search_input.value = ""
        self.remove_class("-searching")
        self._search("")
        self.focus_list()
        return True

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        self._search(event.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self.focus_list()

    def _search(self, query: str) -> None:
        if query != self.list.query_text:
            self.list.query_text = query
            self.draw(self.state)
            if query and (key := self.list.first_hit()):
                self.list.select(key)
