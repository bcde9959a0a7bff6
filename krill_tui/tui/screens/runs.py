"""The runs there are, newest first; one is opened to watch or to replay."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message

from krill_tui import paths
from krill_tui.engine.run_store import list_runs
from krill_tui.engine.state import RunState
from krill_tui.events.journal import last_outcome
from krill_tui.io.json_text import loads_leniently
from krill_tui.io.text import one_line
from krill_tui.tui import keys
from krill_tui.tui.bridge import Bridge, Source, WatchSource
from krill_tui.tui.replay import ReplaySource
from krill_tui.tui.screens.base import KrillScreen
from krill_tui.tui.widgets.key_footer import KeyFooter
from krill_tui.tui.widgets.line_list import LineList, Row
from krill_tui.tui.widgets.pane import Pane, SearchableList
from krill_tui.tui.widgets.status_bar import StatusBar
from krill_tui.tui.wording import GOOD, MUTED, policy_words, setting


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What a list shows of a run without reading all of it."""

    name: str
    path: Path
    changed: float
    """Unix seconds of the last event."""
    megabytes: float
    last: str
    """Outcome; `unfinished` or `damaged` where there is none."""
    config: dict[str, Any] = field(default_factory=dict)


def summarize(path: Path) -> RunSummary | None:
    """Read the config and the journal's end; None when the folder went away."""
    journal = path / "events.jsonl"
    try:
        stat = journal.stat()
        outcome, _ = last_outcome(journal)
    except OSError:
        return None
    return RunSummary(
        path.name,
        path,
        stat.st_mtime,
        stat.st_size / 1e6,
        outcome or "unfinished",
        _json(path / "config.json"),
    )


def _json(path: Path) -> dict[str, Any]:
    try:
        loaded = loads_leniently(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return loaded if isinstance(loaded, dict) else {}


class RunList(SearchableList):
    noun = "runs"
    one = "run"

    def __init__(self, clock: Callable[[float], str]) -> None:
        super().__init__()
        self.clock = clock
        self.summaries: list[RunSummary] = []
        self.empty = Content.styled(
            "No runs here yet. They are kept in the folder runs/, or in $KRILL_RUNS.", MUTED
        )

    def title(self, state: RunState) -> Content:
        return Content.assemble(
            "Runs", (f" {len(self.summaries)} in {one_line(str(paths.runs_dir()))}", MUTED)
        )

    def make_rows(self, state: RunState) -> list[Row]:
        return [Row(s.name, (s, s.name == state.run)) for s in self.summaries if self.matches(s.name)]

    def line(self, row: Row, width: int) -> Content:
        run: RunSummary
        run, current = row.data
        world = f"{setting(run.config, 'env', 'name') or '?'}/{setting(run.config, 'env', 'backend') or '?'}"
        return Content.assemble(
            ("● " if current else "  ", GOOD),
            (f"{one_line(run.name, limit=24):<25}", "bold"),
            (f"{self.clock(run.changed):<18}", MUTED),
            (
                f"{'✔ ' if run.last == 'completed' else '  '}{run.last:<12}",
                GOOD if run.last == "completed" else "",
            ),
            f"{one_line(world, limit=20):<20}",
            (f"{policy_words(run.config, short=True) if run.config else '?':<24}", MUTED),
            (f"{run.megabytes:6.1f} MB", MUTED),
        )


def local_time(seconds: float) -> str:
    """Date and time on this machine."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M")


class RunsScreen(KrillScreen):
    @dataclass
    class Opened(Message):
        """A person wants to see another run."""

        name: str
        source: Source

    SCOPES = ("runs", "screen", "app")
    BINDINGS = keys.bindings("runs")

    def __init__(self, bridge: Bridge, clock: Callable[[float], str] | None = None) -> None:
        super().__init__(bridge)
        self._list = RunList(clock or local_time)
        self._pane = Pane(self._list)

    def compose(self) -> ComposeResult:
        yield StatusBar()
        with Vertical():
            yield self._pane
        yield KeyFooter(*self.SCOPES)

    async def on_mount(self) -> None:
        self._pane.focus_list()
        await self.action_reload()

    def draw_content(self) -> None:
        self._pane.draw(self.bridge.state)

    async def action_reload(self) -> None:
        """Read the folder again, off the event loop."""
        root = paths.runs_dir()
        found = await asyncio.to_thread(lambda: [summarize(root / name) for name in list_runs()])
        self._list.summaries = [summary for summary in found if summary]
        self.draw()

    def on_line_list_picked(self, event: LineList.Picked) -> None:
        self.action_watch()

    def action_watch(self) -> None:
        if run := self._chosen():
            self.post_message(self.Opened(run.name, WatchSource(run.path)))

    def action_replay(self) -> None:
        if run := self._chosen():
            self.post_message(self.Opened("", ReplaySource(run.path)))

    def _chosen(self) -> RunSummary | None:
        row = self._list.cursor_row
        return row.data[0] if row else None
