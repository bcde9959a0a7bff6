"""One episode, full screen, step by step: what the policy was told, what it thought and did, what came of it."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from krill_tui.engine.state import EpisodeView
from krill_tui.tui import keys
from krill_tui.tui.bridge import Bridge
from krill_tui.tui.plain import one_line, plain
from krill_tui.tui.screens.base import RunScreen
from krill_tui.tui.widgets.key_footer import KeyFooter
from krill_tui.tui.widgets.status_bar import StatusBar
from krill_tui.tui.wording import (
    BAD,
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


class EpisodeScreen(RunScreen):
    """A live episode is followed until a person scrubs back."""

    SCOPES = ("episode", "screen", "run", "app")
    BINDINGS = keys.bindings("episode")
    DEFAULT_CSS = """
    EpisodeScreen {
        & #episode-head { height: auto; max-height: 4; padding: 0 2; border-bottom: solid $border-blurred; }
        & #episode-body { height: 1fr; }
        & VerticalScroll { padding: 1 2; width: 1fr; }
        & #done { border-left: solid $border-blurred; }
        &.-narrow #episode-body, &.-tiny #episode-body {
            layout: vertical;
            & #done { border-left: none; height: auto; max-height: 60%; padding-bottom: 0; }
        }
    }
    """

    def __init__(self, bridge: Bridge, episode: str) -> None:
        super().__init__(bridge)
        self.episode_id = episode
        self.place: int | None = None
        """Step in view; None follows the last one."""
        self._kept: EpisodeView | None = None

    def compose(self) -> ComposeResult:
        yield StatusBar()
        yield Static(id="episode-head", markup=False)
        with Horizontal(id="episode-body"):
            with VerticalScroll(id="told", can_focus=False):
                yield Static(id="told-text", markup=False)
            with VerticalScroll(id="done", can_focus=False):
                yield Static(id="done-text", markup=False)
        yield KeyFooter(*self.SCOPES)

    def draw_content(self) -> None:
        view = self.bridge.state.episode(self.episode_id) or self._kept
        if view is None:
            self.query_one("#episode-head", Static).update("This episode is no longer kept in view.")
            return
        self._kept = view
        index = self._index(view)
        self.query_one("#episode-head", Static).update(_head(view, index, self.place is None))
        self.query_one("#told-text", Static).update(_told(view, index))
        self.query_one("#done-text", Static).update(_done(view, index))

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
        for side in self.query(VerticalScroll):
            side.scroll_relative(y=lines, animate=False)

    def _index(self, view: EpisodeView) -> int:
        last = len(view.steps) - 1
        return last if self.place is None else min(self.place, last)

    def _go(self, place: int | None) -> None:
        self.place = place
        for side in self.query(VerticalScroll):
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
        end = Content.assemble(
            ("   won" if done.success else "   lost", GOOD if done.success else BAD),
            (f" ({done.stop_reason.value}) · return {number(done.total_reward)}", MUTED),
            (f" · {done.invalid_actions} invalid" if done.invalid_actions else "", WARN),
        )
    elif following:
        end = Content.styled("   following", "$primary")
    return Content("\n").join([title, Content.assemble((place, ""), marks, end)])


def _told(view: EpisodeView, index: int) -> Content:
    """System message, observation and admissible actions of a step."""
    parts = [
        _section("Told at the start (system)", cited(plain(view.system).strip() or "nothing", view.skills))
    ]
    if view.skills:
        parts.insert(
            0, _section("Skills in the prompt", Content.styled("  ".join(map(one_line, view.skills)), MUTED))
        )
    if 0 <= index < len(view.steps):
        step = view.steps[index]
        parts.insert(0, _section("Saw", Content(plain(step.observation).strip())))
        if step.admissible:
            chosen = step.action
            lines = [
                Content.styled(f"● {one_line(action)}", GOOD)
                if action == chosen
                else Content.styled(f"  {one_line(action)}", MUTED)
                for action in step.admissible
            ]
            parts.append(_section(f"Admissible actions ({len(lines)})", Content("\n").join(lines)))
    return Content("\n\n").join(parts)


def _done(view: EpisodeView, index: int) -> Content:
    """Thought, action and result of a step."""
    if not 0 <= index < len(view.steps):
        return Content.styled("The first step is being thought about.", MUTED)
    step = view.steps[index]
    quoted = sorted(citations(step.text + step.thought) & set(view.skills))
    verdict = Content.styled("✔ valid", GOOD) if step.valid else Content.styled("✖ invalid", BAD)
    by = "" if step.author == "policy" else f" · by {one_line(step.author)}"
    parts = [
        _section("Thought", cited(plain(step.thought).strip() or "none", view.skills, "italic")),
        _section(
            "Cites",
            Content.styled("  ".join(quoted), "bold $accent")
            if quoted
            else Content.styled("no skill", MUTED),
        ),
        _section(
            "Action",
            Content.assemble(
                ("> ", "$primary"),
                (one_line(step.action) or "none could be read", "bold"),
                "   ",
                verdict,
                (by, MUTED),
            ),
        ),
        _section("Came of it", Content(_result(view, index))),
        _section(
            "Reward",
            Content.assemble(
                number(step.reward),
                (f"   {duration(step.latency)} to answer" if step.latency >= 1 else "", MUTED),
            ),
        ),
    ]
    if not step.action or not step.valid:
        parts.append(_section("Whole reply", Content(plain(step.text).strip() or "empty")))
    if view.finished and view.finished.error and index == len(view.steps) - 1:
        parts.append(_section("Error", Content.styled(plain(view.finished.error), BAD)))
    return Content("\n\n").join(parts)


def _result(view: EpisodeView, index: int) -> str:
    """What the world answered: the next step's observation, or the last one of all."""
    if index + 1 < len(view.steps):
        return plain(view.steps[index + 1].observation).strip()
    if view.finished:
        return plain(view.finished.final_observation).strip() or "the episode ended"
    return "not yet known"


def _section(title: str, body: Content) -> Content:
    return Content.assemble((title, HEADING), "\n", body)
