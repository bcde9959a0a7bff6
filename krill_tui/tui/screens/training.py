"""Large curves: choose metrics on the left, see up to four of them on the right."""

from __future__ import annotations

from textual import events
from textual.app import ComposeResult
from textual.containers import Grid, Horizontal
from textual.widgets import Static

from krill_tui.tui import keys
from krill_tui.tui.bridge import Bridge
from krill_tui.tui.screens.base import RunScreen
from krill_tui.tui.widgets.curve_plot import CurvePlot
from krill_tui.tui.widgets.key_footer import KeyFooter
from krill_tui.tui.widgets.line_list import LineList
from krill_tui.tui.widgets.metric_list import MetricList, ordered_metrics
from krill_tui.tui.widgets.pane import Pane
from krill_tui.tui.widgets.status_bar import StatusBar

MOST_CHARTS = 4
NO_CURVES = "Curves appear here once a phase trains: s for SFT, r for RL, t for all."
NOTHING_CHOSEN = "Nothing chosen: x shows the metric under the cursor."
CHART_HEIGHT = 7
"""Lines a chart needs to be read."""
TWO_CHARTS = 76
"""Width from which two charts stand side by side."""


class TrainingScreen(RunScreen):
    SCOPES = ("training", "screen", "run", "replay", "app")
    BINDINGS = keys.bindings("training")
    DEFAULT_CSS = """
    TrainingScreen {
        & #training-body { height: 1fr; }
        & Pane { width: 44; }
        & #charts { width: 1fr; grid-size: 2; grid-gutter: 1 2; padding: 1 1 0 2; }
        & #charts.-single { grid-size: 1; }
        & #no-charts { padding: 1 2; color: $muted; }
        &.-narrow #training-body, &.-tiny #training-body {
            layout: vertical;
            & Pane { width: 1fr; height: 2fr; }
            & #charts { height: 3fr; padding: 0 1; }
        }
    }
    """

    def __init__(self, bridge: Bridge, metric: str = "") -> None:
        super().__init__(bridge)
        self._first = metric
        self.metrics = MetricList()
        self._pane = Pane(self.metrics)
        self._hint = Static(id="no-charts", markup=False)
        self._charts = [CurvePlot() for _ in range(MOST_CHARTS)]
        self._grid = Grid(self._hint, *self._charts, id="charts")
        self._chosen: list[str] | None = [metric] if metric else None

    def compose(self) -> ComposeResult:
        yield StatusBar()
        with Horizontal(id="training-body"):
            yield self._pane
            yield self._grid
        yield KeyFooter(*self.SCOPES)

    def on_mount(self) -> None:
        pane = self._pane
        pane.draw(self.bridge.state)
        pane.list.select(self._first)
        pane.focus_list()

    def on_resize(self, event: events.Resize) -> None:
        self.call_after_refresh(self.draw)

    @property
    def chosen(self) -> list[str]:
        """The metrics in view: those a person chose, else the most telling ones there are."""
        curves = self.bridge.state.curves
        if self._chosen is not None:
            return [name for name in self._chosen if name in curves]
        return ordered_metrics(curves)[:MOST_CHARTS]

    def draw_content(self) -> None:
        wide = self.size.width >= TWO_CHARTS
        names = self.chosen[: self._room(2 if wide else 1)]
        self.metrics.chosen = set(names)
        self._pane.draw(self.bridge.state)
        self._hint.display = not names
        self._hint.update(NOTHING_CHOSEN if self.bridge.state.curves else NO_CURVES)
        self._grid.set_class(len(names) < 2 or not wide, "-single")
        for position, plot in enumerate(self._charts):
            plot.display = position < len(names)
            if position < len(names):
                plot.draw({names[position]: self.bridge.state.curves[names[position]]})

    def on_line_list_picked(self, event: LineList.Picked) -> None:
        self.action_toggle_metric()

    def action_toggle_metric(self) -> None:
        """Show the metric under the cursor, or hide it; the oldest gives way to a fifth."""
        row = self.metrics.cursor_row
        if row is None:
            return
        chosen = self.chosen
        if row.key in chosen:
            chosen.remove(row.key)
        else:
            chosen = [*chosen, row.key][-MOST_CHARTS:]
        self._chosen = chosen
        self.draw()

    def action_search(self) -> None:
        self._pane.open_search()

    def action_back(self) -> None:
        if not self._pane.clear_search():
            self.dismiss()

    def _room(self, columns: int) -> int:
        """How many charts can be read at this size."""
        height = self._grid.size.height
        return min(MOST_CHARTS, columns * max(1, height // CHART_HEIGHT))
