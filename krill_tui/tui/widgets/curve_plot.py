"""One chart of one or a few metrics; the plotting library is loaded with the first chart that is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.widgets import Static

from krill_tui.tui.plain import one_line

if TYPE_CHECKING:
    from krill_tui.tui.widgets.chart import Chart

Points = Sequence[tuple[float, float]]
COLOURS = ("primary", "secondary", "success", "warning")
RATE_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
FEW_RATE_TICKS = (0.0, 0.5, 1.0)
MARKS = ("━", "╍", "┅", "┉")


def downsample(points: Points, columns: int) -> list[tuple[float, float]]:
    """At most two points a column, the lowest and the highest, so that no spike is lost."""
    if len(points) <= 2 * columns or columns <= 0:
        return list(points)
    kept: list[tuple[float, float]] = []
    for column in range(columns):
        share = points[column * len(points) // columns : (column + 1) * len(points) // columns]
        low, high = min(share, key=lambda p: p[1]), max(share, key=lambda p: p[1])
        kept += sorted({low, high})
    return kept


class CurvePlot(Vertical):
    """A line of names above a chart."""

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

    def __init__(self, *, id: str | None = None, classes: str | None = None) -> None:
        super().__init__(id=id, classes=classes)
        self._plot: Chart | None = None
        self._curves: dict[str, Points] = {}
        self._stamp: object = None

    def compose(self) -> ComposeResult:
        yield Static("", markup=False)

    def draw(self, curves: Mapping[str, Points]) -> None:
        """Show these metrics on common axes; unchanged ones cost nothing."""
        stamp = (tuple((name, len(points)) for name, points in curves.items()), self.size, self.app.theme)
        if stamp == self._stamp or not self.size.height:
            return
        self._stamp = stamp
        self._curves = {name: points for name, points in curves.items() if points}
        self.query_one(Static).update(self._legend())
        if self._plot is None:
            self._mount_plot()
        else:
            self._render_curves()

    def _mount_plot(self) -> None:
        from krill_tui.tui.widgets.chart import Chart

        self._plot = Chart()
        self.mount(self._plot)
        self.call_after_refresh(self._render_curves)  # the plot draws on children it makes when it is mounted

    def _render_curves(self) -> None:
        from krill_tui.tui.widgets.chart import BRAILLE, LEFT_MARGIN

        if self._plot is None or not self._plot.is_mounted:
            return
        self._plot.clear()
        rates = all("success" in name for name in self._curves)
        self._plot.set_ylimits(*((0.0, 1.0) if rates else (None, None)))
        self._plot.set_yticks((RATE_TICKS if self.size.height >= 12 else FEW_RATE_TICKS) if rates else None)
        xs = [x for points in self._curves.values() for x, _ in points]
        if xs:  # a margin, or the last points fall on the frame
            margin = 0.02 * (max(xs) - min(xs)) or 0.5
            self._plot.set_xlimits(min(xs) - margin, max(xs) + margin)
        columns = max(1, self.size.width - LEFT_MARGIN - 2)
        for position, points in enumerate(self._curves.values()):
            thinned = downsample(points, columns)
            colour = self.app.theme_variables[COLOURS[position % len(COLOURS)]]
            xs, ys = [x for x, _ in thinned], [y for _, y in thinned]
            if len(thinned) == 1:
                self._plot.scatter(xs, ys, marker="●", marker_style=colour)
            else:
                self._plot.plot(xs, ys, line_style=colour, hires_mode=BRAILLE)

    def _legend(self) -> Content:
        parts: list[tuple[str, str]] = []
        for position, name in enumerate(self._curves):
            colour = COLOURS[position % len(COLOURS)]
            parts += [(f"{MARKS[position % len(MARKS)]} {one_line(name)}   ", f"${colour}")]
        return Content.assemble(*parts)
