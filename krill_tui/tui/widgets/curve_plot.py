"""A chart under a line that names its curves; the plotting library is loaded with the first one shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from krill_tui.io.text import one_line

if TYPE_CHECKING:
    from krill_tui.tui.widgets.chart import Chart

Points = Sequence[tuple[float, float]]


class CurvePlot(Vertical):
    """Draws some metrics on common axes."""

    DEFAULT_CSS = """
    CurvePlot {
        height: 1fr;
        & > Static { height: 1; text-wrap: nowrap; text-overflow: ellipsis; }
        & Chart {
            height: 1fr;
            & > .plot--axis { color: $border; }
            & > .plot--tick { color: $muted; text-style: none; }
        }
    }
    """

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._names = Static("", markup=False)
        self._chart: Chart | None = None
        self._drawn: object = None

    def compose(self) -> ComposeResult:
        yield self._names

    def draw(self, curves: Mapping[str, Points]) -> None:
        """Show these metrics; unchanged ones cost nothing."""
        from krill_tui.tui.widgets.chart import COLOURS, Chart

        stamp = (tuple((name, len(points)) for name, points in curves.items()), self.app.theme)
        if stamp == self._drawn or not self.is_mounted:
            return
        self._drawn = stamp
        names = [
            (f"━ {one_line(name)}   ", f"${COLOURS[position % len(COLOURS)]}")
            for position, name in enumerate(curves)
        ]
        self._names.update(Content.assemble(*names), layout=False)
        if self._chart is None:
            self._chart = Chart()
            self.mount(self._chart)
        self._chart.show(curves)
