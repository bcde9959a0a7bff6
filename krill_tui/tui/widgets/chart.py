"""textual-plot's chart as we use it. Imports numpy: imported only when a chart is shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from textual.app import ComposeResult
from textual.containers import Grid
from textual.strip import Strip
from textual_hires_canvas import Canvas
from textual_plot import HiResMode, PlotWidget
from textual_plot.plot_widget import Legend

Points = Sequence[tuple[float, float]]
LEFT_MARGIN = 7
"""Columns of the tick labels."""
COLOURS = ("primary", "secondary", "success", "warning")
"""Theme colours of a chart's lines, in turn."""
RATE_TICKS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
FEW_RATE_TICKS = (0.0, 0.5, 1.0)


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


class StyledCanvas(Canvas):
    """A canvas whose lines always have a style: the base class's unsized ones crash Textual under NO_COLOR."""

    def render_line(self, y: int) -> Strip:
        strip = super().render_line(y)
        return strip if strip.cell_length else Strip.blank(self.size.width, self.rich_style)


class Chart(PlotWidget, can_focus=False):
    """A chart to look at: no focus, no zoom, narrow margins."""

    def __init__(self) -> None:
        super().__init__(allow_pan_and_zoom=False)
        self.set_reactive(PlotWidget.margin_top, 0)
        self.set_reactive(PlotWidget.margin_bottom, 1)
        self.set_reactive(PlotWidget.margin_left, LEFT_MARGIN)
        self._curves: dict[str, Points] = {}

    def compose(self) -> ComposeResult:
        """The parts `PlotWidget` looks up by their ids."""
        with Grid():
            for part in ("margin-top", "margin-left", "plot", "margin-bottom"):
                yield StyledCanvas(1, 1, id=part)
        yield Legend(id="legend")

    def on_mount(self) -> None:
        self.call_later(self._plot_curves)  # after the base class's own handler, which clears the chart

    def on_canvas_resize(self) -> None:
        """Canvases take their new size only when they are told to."""
        self._plot_curves()
        self.refresh(layout=True)

    def show(self, curves: Mapping[str, Points]) -> None:
        """Plot these metrics, now or as soon as the chart is mounted."""
        self._curves = {name: points for name, points in curves.items() if points}
        if self.is_mounted:
            self._plot_curves()

    def _plot_curves(self) -> None:
        self.clear()
        rates = all("success" in name for name in self._curves)
        self.set_ylimits(*((0.0, 1.0) if rates else (None, None)))
        self.set_yticks((RATE_TICKS if self.size.height >= 11 else FEW_RATE_TICKS) if rates else None)
        xs = [x for points in self._curves.values() for x, _ in points]
        if xs:  # a margin, or the first and last points fall on the frame
            margin = 0.02 * (max(xs) - min(xs)) or 0.5
            self.set_xlimits(min(xs) - margin, max(xs) + margin)
        columns = max(1, self.size.width - LEFT_MARGIN - 2)
        for position, points in enumerate(self._curves.values()):
            thinned = downsample(points, columns)
            colour = self.app.theme_variables[COLOURS[position % len(COLOURS)]]
            xs, ys = [x for x, _ in thinned], [y for _, y in thinned]
            if len(thinned) == 1:
                self.scatter(xs, ys, marker="●", marker_style=colour)
            else:
                self.plot(xs, ys, line_style=colour, hires_mode=HiResMode.BRAILLE)
