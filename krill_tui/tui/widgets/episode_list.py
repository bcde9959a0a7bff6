"""Episodes: the live ones on top, unfolded as far as there is room, then the finished ones, newest first."""

from __future__ import annotations

from typing import NamedTuple

from textual.content import Content

from krill_tui.engine.state import EpisodeView, RunState
from krill_tui.io.text import one_line
from krill_tui.tui.widgets.line_list import Row
from krill_tui.tui.widgets.pane import SearchableList
from krill_tui.tui.wording import BAD, KEY, MUTED, PURPOSE_WORDS, cited, outcome_mark

UNFOLDED_LINES = 3
"""Below the title of an unfolded live episode: what it saw, thought and did."""


class Part(NamedTuple):
    """One line of an episode."""

    episode: EpisodeView
    what: str
    """`title`, `seen`, `thought`, `action`."""


def _welcome() -> Content:
    phases = (
        ("c", "1 collect", "the agent plays"),
        ("d", "2 distill", "episodes become skills"),
        ("s", "3 sft", "it learns from wins"),
        ("r", "4 rl", "it learns by practice"),
        ("e", "evaluate", "on games nobody saw"),
    )
    lines = [
        Content("Krill trains a language-model agent with skills, and shows how it goes."),
        Content(""),
        Content.assemble(("t", KEY), ("  train", "bold"), "  all four phases in turn"),
        Content(""),
        *(Content.assemble((key, KEY), f"  {name:<11}", (what, MUTED)) for key, name, what in phases),
    ]
    return Content("\n").join(lines)


WELCOME = _welcome()
"""What a newcomer reads on the first screen."""


class EpisodeList(SearchableList):
    noun = "episodes"
    one = "episode"

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self.empty = WELCOME

    def title(self, state: RunState) -> Content:
        parts = []
        if state.live:
            parts.append(f"{len(state.live)} live")
        if state.episodes_done:
            parts.append(f"{state.episodes_done} done")
            parts.append(f"{state.wins / state.episodes_done:.0%}".replace("%", " % ✔"))
        if state.broken:
            parts.append(f"{len(state.broken)} broke ‼")
        return Content.assemble("Episodes", (f" {' · '.join(parts)}" if parts else "", MUTED))

    def stamp(self, state: RunState) -> object:
        return id(state), state.seq, self.size.height

    def make_rows(self, state: RunState) -> list[Row]:
        live = [view for view in state.live.values() if self._shown(view)]
        height = max(1, self.size.height)
        unfold = max(2, (height - len(live)) // UNFOLDED_LINES)
        current = self.cursor_row.key if self.cursor_row else ""
        rows: list[Row] = []
        for position, view in enumerate(live):
            rows.append(Row(view.id, Part(view, "title")))
            if view.steps and (position < unfold or view.id == current):
                rows += [Row(view.id, Part(view, what)) for what in ("seen", "thought", "action")]
        rows += [Row(view.id, Part(view, "title")) for view in reversed(state.finished) if self._shown(view)]
        return rows

    def line(self, row: Row, width: int) -> Content:
        part: Part = row.data
        if part.what == "title":
            return episode_title(part.episode, width)
        step = part.episode.steps[-1]
        if part.what == "seen":
            return Content.styled("    " + one_line(step.observation), MUTED)
        if part.what == "thought":
            return Content.assemble(
                ("  ◆ ", "$secondary"),
                cited(one_line(step.thought) or "no thought", part.episode.skills, "italic"),
            )
        mark = Content("") if step.valid else Content.styled("  ✖ invalid", BAD)
        return Content.assemble(("  > ", "$primary"), one_line(step.action or step.text) or "no action", mark)

    def _shown(self, view: EpisodeView) -> bool:
        return self.matches(f"#{view.number}", view.category, view.task, view.purpose, view.split)


def episode_title(view: EpisodeView, width: int) -> Content:
    """One line: mark, number, purpose, category, task; steps and return at the right edge."""
    mark, style = outcome_mark(view)
    number, purpose = f"#{view.number}", PURPOSE_WORDS[view.purpose]
    columns = f" {number:<5} {purpose:<4} " if width >= 46 else f" {number:<4} "
    head = Content.assemble(
        (mark, style),
        (columns, MUTED),
        (f"{one_line(view.category, limit=7):<8}" if width >= 34 else "", "$secondary"),
        (one_line(view.task), "" if view.finished is None else "$foreground 85%"),
    )
    if view.finished is None:
        tail = f" {len(view.steps)}/{view.max_steps}" if view.max_steps else f" step {len(view.steps)}"
    else:
        tail = f" {view.finished.steps} steps" if width >= 40 else f" {view.finished.steps}"
    return head.truncate(max(1, width - len(tail)), ellipsis=True, pad=True) + Content.styled(tail, MUTED)
