"""What happened to the skills and to success, as it happened; the newest line last."""

from __future__ import annotations

from functools import lru_cache

from textual.content import Content

from krill_tui.engine.state import LogLine, RunState
from krill_tui.io.text import one_line
from krill_tui.tui.widgets.line_list import Row
from krill_tui.tui.widgets.pane import SearchableList
from krill_tui.tui.wording import BAD, GOOD, MUTED, WARN

MARKS = {
    "evolved": ("◆", "$primary"),
    "added": ("+", GOOD),
    "changed": ("~", "$secondary"),
    "refused": ("✖", MUTED),
    "validated": ("◎", "$secondary"),
    "note": ("·", MUTED),
    "warning": ("▲", WARN),
    "error": ("‼", BAD),
}
MAX_LINES = 3
"""Lines one entry takes in the pane; all of it stands in its detail."""


@lru_cache(maxsize=4096)
def wrapped(text: str, width: int) -> tuple[str, ...]:
    """`text` broken at blanks into lines of at most `width` cells, three lines at most."""
    lines = [line.plain.rstrip() for line in Content(one_line(text)).wrap(max(8, width))]
    if len(lines) > MAX_LINES:
        lines = [*lines[: MAX_LINES - 1], lines[MAX_LINES - 1] + " …"]
    return tuple(lines)


class EvolutionLog(SearchableList):
    noun = "evolution"
    one = "line of the log"

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id, follow=True)
        self.empty = Content.styled(
            "Here stands what becomes of the skills: which were added, refused or changed, "
            "why, and what success was then.",
            MUTED,
        )

    def title(self, state: RunState) -> Content:
        cycles = sum(line.kind == "evolved" for line in state.log)
        return Content.assemble(
            "Evolution", (f" {cycles} cycle{'s'[: cycles != 1]}" if cycles else "", MUTED)
        )

    def stamp(self, state: RunState) -> object:
        last = state.log[-1].event.seq if state.log else 0
        return id(state), len(state.log), last, self.size.width

    def make_rows(self, state: RunState) -> list[Row]:
        width = self.size.width - 3
        rows: list[Row] = []
        for line in state.log:
            if self.matches(line.text, line.kind):
                key = str(line.event.seq)
                text = line.text.removeprefix(MARKS.get(line.kind, MARKS["note"])[0] + " ")
                parts = wrapped(text, width)
                rows += [Row(key, (line, part, number == 0)) for number, part in enumerate(parts)]
        return rows

    def line(self, row: Row, width: int) -> Content:
        entry: LogLine
        entry, text, first = row.data
        mark, style = MARKS.get(entry.kind, MARKS["note"])
        tone = (
            MUTED
            if entry.kind in ("note", "refused")
            else style
            if entry.kind in ("warning", "error")
            else ""
        )
        return Content.assemble((f"{mark} " if first else "  ", style), (text, tone))
