"""textual-plot's chart as we use it. Imports numpy: imported only when a chart is shown."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Grid
from textual.strip import Strip
from textual_hires_canvas import Canvas
from textual_plot import HiResMode, PlotWidget
from textual_plot.plot_widget import Legend

BRAILLE = HiResMode.BRAILLE
LEFT_MARGIN = 7
"""Columns of the tick labels."""


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

    def compose(self) -> ComposeResult:
        """The parts `PlotWidget` looks up by their ids."""
        with Grid():
            for part in ("margin-top", "margin-left", "plot", "margin-bottom"):
                yield StyledCanvas(1, 1, id=part)
        yield Legend(id="legend")

    def on_canvas_resize(self) -> None:
        """Canvases take their new size only when they are told to."""
        self.refresh(layout=True)
