"""One episode, full screen, step by step: what the policy was told, what it thought and did, what came of it."""

from __future__ import annotations

from collections.abc import Mapping

from textual import events
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from krill_tui.engine.state import EpisodeView
from krill_tui.io.text import one_line, plain
from krill_tui.trajectory import StopReason
from krill_tui.tui import keys
from krill_tui.tui.bridge import Bridge
from krill_tui.tui.screens.base import RunScreen
from krill_tui.tui.widgets.key_footer import KeyFooter
from krill_tui.tui.widgets.status_bar import StatusBar
from krill_tui.tui.wording import (
    BAD,
    CITED,
    GOOD,
    HEADING,
    KEY,
    MUTED,
    WARN,
    citations,
    cited,
    duration,
    number,
    outcome_mark,
)

TWO_COLUMNS = 100
"""Width from which what the policy was told stands beside what it did."""


class EpisodeScreen(RunScreen):
    """A live episode is followed until a person scrubs back."""

    SCOPES = ("episode", "screen", "run", "app")
    BINDINGS = keys.bindings("episode")
    DEFAULT_CSS = """
    EpisodeScreen {
        & #episode-head {
            height: 3; padding: 0 2; border-bottom: solid $border-blurred;
            text-wrap: nowrap; text-overflow: ellipsis;
        }
        & #episode-body { height: 1fr; }
        & VerticalScroll { padding: 1 2; width: 1fr; }
        & #done { border-left: solid $border-blurred; }
        &.-narrow #done, &.-tiny #done { border-left: none; }
    }
    """

    def __init__(self, bridge: Bridge, episode: str) -> None:
        super().__init__(bridge)
        self.episode_id = episode
        self.place: int | None = None
        """Step in view; None follows the last one."""
        self._kept: EpisodeView | None = None
        self._head = Static(id="episode-head", markup=False)
        self._told_text, self._done_text = Static(markup=False), Static(markup=False)
        self._told = VerticalScroll(self._told_text, id="told", can_focus=False)
        self._done = VerticalScroll(self._done_text, id="done", can_focus=False)

    def compose(self) -> ComposeResult:
        yield StatusBar()
        yield self._head
        yield Horizontal(self._told, self._done, id="episode-body")
        yield KeyFooter(*self.SCOPES)

    def on_resize(self, event: events.Resize) -> None:
        self.draw()

    def draw_content(self) -> None:
        view = self.bridge.state.episode(self.episode_id) or self._kept
        if view is None:
            self._head.update("This episode is no longer kept in view.")
            return
        self._kept = view
        index = self._index(view)
        self._head.update(_head(view, index, self.place is None))
        told, done = _told(view, index), _done(view, index)
        if narrow := self.size.width < TWO_COLUMNS:
            seen = {"Saw": told.pop("Saw")} if "Saw" in told else {}
            done = {**seen, **done, **told}
        self._told.display = not narrow
        self._told_text.update(_joined(told))
        self._done_text.update(_joined(done))

    def action_scrub(self, steps: int) -> None:
        if self._kept and self._kept.steps:
            last = len(self._kept.steps) - 1
            aim = min(max(self._index(self._kept) + steps, 0), last)
            self._go(None if aim == last and self._kept.finished is None else aim)

    def action_scrub_edge(self, end: int) -> None:
        self._go(None if end > 0 else 0)

    def action_neighbour(self, step: int) -> None:
        state = self.bridge.state
        ids = [view.id for view in state.finished] + list(state.live)
        if self.episode_id in ids:
            at = ids.index(self.episode_id) + step
            if 0 <= at < len(ids):
                self.episode_id, self._kept = ids[at], None
                self._go(None)

    def action_scroll_text(self, lines: int) -> None:
        for side in (self._told, self._done):
            side.scroll_relative(y=lines, animate=False)

    def _index(self, view: EpisodeView) -> int:
        last = len(view.steps) - 1
        return last if self.place is None else min(self.place, last)

    def _go(self, place: int | None) -> None:
        self.place = place
        for side in (self._told, self._done):
            side.scroll_home(animate=False)
        self.draw()


def _head(view: EpisodeView, index: int, following: bool) -> Content:
    """Which episode; a mark for every step; how it ended."""
    mark, style = outcome_mark(view)
    title = Content.assemble(
        (f"{mark} ", f"bold {style}"),
        (f"#{view.number} ", "bold"),
        (one_line(view.task), "bold"),
        (
            f"   {one_line(view.category)} · {view.purpose} · {one_line(view.split)} · {one_line(view.policy)}",
            MUTED,
        ),
    )
    marks = Content("")
    for position, step in enumerate(view.steps):
        sign = "●" if step.valid else "✖"
        tone = KEY if position == index else (MUTED if step.valid else BAD)
        marks += Content.styled("◉" if position == index else sign, tone)
    place = f"step {index + 1}/{len(view.steps)} " if view.steps else "no step yet "
    end = Content("")
    if done := view.finished:
        broke = done.stop_reason is StopReason.ERROR
        word = "   broke" if broke else "   won" if done.success else "   lost"
        why = one_line(done.error or "no reason") if broke else done.stop_reason.value
        end = Content.assemble(
            (word, WARN if broke else GOOD if done.success else BAD),
            (f" ({why}) · return {number(done.total_reward)}", MUTED),
            (f" · {done.invalid_actions} invalid" if done.invalid_actions else "", WARN),
        )
    elif following:
        end = Content.styled("   following", "$primary")
    return Content("\n").join([title, Content.assemble((place, ""), marks, end)])


def _told(view: EpisodeView, index: int) -> dict[str, Content]:
    """Observation, system message with its skills, and admissible actions of a step."""
    sections: dict[str, Content] = {}
    step = view.steps[index] if 0 <= index < len(view.steps) else None
    if step:
        sections["Saw"] = Content(plain(step.observation).strip())
    sections["Told at the start"] = cited(plain(view.system).strip() or "nothing", view.skills)
    sections["Skills in it"] = Content.styled("  ".join(map(one_line, view.skills)) or "none", MUTED)
    if step and step.admissible:
        lines = [
            Content.styled(f"● {one_line(action)}", GOOD)
            if action == step.action
            else Content.styled(f"  {one_line(action)}", MUTED)
            for action in step.admissible
        ]
        sections[f"Admissible actions ({len(lines)})"] = Content("\n").join(lines)
    return sections


def _done(view: EpisodeView, index: int) -> dict[str, Content]:
    """Thought, action and result of a step."""
    if not 0 <= index < len(view.steps):
        return {"Thought": Content.styled("the first step is being thought about", MUTED)}
    step = view.steps[index]
    quoted = sorted(citations(step.text + step.thought) & set(view.skills))
    verdict = ("✔ valid", GOOD) if step.valid else ("✖ invalid", BAD)
    by = "" if step.author == "policy" else f"  by {one_line(step.author)}"
    seconds = f"   after {duration(step.latency)}" if step.latency >= 1 else ""
    action = one_line(step.action) or "none could be read"
    sections = {
        "Thought": cited(plain(step.thought).strip() or "none", view.skills, "italic"),
        "Cites": Content.styled("  ".join(quoted), CITED) if quoted else Content.styled("no skill", MUTED),
        "Action": Content.assemble(
            ("> ", "$primary"), (action, "bold"), "   ", verdict, (by + seconds, MUTED)
        ),
        "Came of it": Content(_result(view, index)),
        "Reward": Content(number(step.reward)),
    }
    if not step.action or not step.valid:
        sections["Whole reply"] = Content(plain(step.text).strip() or "empty")
    if view.finished and view.finished.error and index == len(view.steps) - 1:
        sections["Error"] = Content.styled(plain(view.finished.error), BAD)
    return sections


def _result(view: EpisodeView, index: int) -> str:
    """What the world answered: the next step's observation, or the last one of all."""
    if index + 1 < len(view.steps):
        return plain(view.steps[index + 1].observation).strip()
    if view.finished:
        return plain(view.finished.final_observation).strip() or "the episode ended"
    return "not yet known"


def _joined(sections: Mapping[str, Content]) -> Content:
    return Content("\n\n").join(
        [Content.assemble((title, HEADING), "\n", body) for title, body in sections.items()]
    )
