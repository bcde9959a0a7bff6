"""Curves of runs, and a chart of conditions, as SVG: no plotting library, one file, light and dark.

The numbers come from the journals alone. Text is escaped by `xml.etree`; what XML cannot hold is left out.
"""

from __future__ import annotations

import math
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from krill_tui.engine.state import RunState
from krill_tui.errors import DataError
from krill_tui.events import schema as ev
from krill_tui.events.schema import Rate, event_adapter
from krill_tui.io.jsonl import parsed, whole_lines
from krill_tui.io.text import one_line

Points = list[tuple[float, float]]

_KINDS = tuple(
    f'"kind":"{kind}"'.encode() for kind in ("sft_stepped", "grpo_stepped", "validated", "evolved")
)
_WIDTH, _HEIGHT = 320, 210
"""Of one panel, in pixels."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 14, 34, 34
"""Between a panel's edge and its plot."""
_COLUMNS = 3
_PALETTE = ("#2079c9", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1", "#7f7f7f")
"""After Okabe and Ito: told apart by most eyes, and seen on white and on black."""
_STYLE = """
text { font-family: system-ui, sans-serif; font-size: 11px; fill: #24292f; }
text.title { font-size: 13px; font-weight: 600; }
text.tick { fill: #57606a; }
.page { fill: #ffffff; }
.grid { stroke: #d0d7de; stroke-width: 1; }
.axis { stroke: #8c959f; stroke-width: 1; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  text.tick { fill: #9198a1; }
  .page { fill: #0d1117; }
  .grid { stroke: #30363d; }
  .axis { stroke: #6e7681; }
}
"""


@dataclass(frozen=True, slots=True)
class RunCurves:
    """What one journal says about the course of a run."""

    name: str
    curves: Mapping[str, Points]
    """Metric -> (step, value), named as in `RunState.curves`."""
    cycles: Sequence[tuple[int, int]] = ()
    """(RL step, skills added or refined) of the evolution cycles that changed the bank."""


@dataclass(frozen=True, slots=True)
class _Panel:
    title: str
    metric: str
    percent: bool = False
    marks: bool = False
    """Show where evolution changed the bank."""


_PANELS = (
    _Panel("Success on validation", "validation/success", percent=True, marks=True),
    _Panel("Success while sampling", "success", percent=True),
    _Panel("Reward", "reward"),
    _Panel("KL to the reference", "kl"),
    _Panel("Entropy", "entropy"),
    _Panel("SFT loss", "sft/loss"),
)


def read_curves(journal: Path, name: str = "") -> RunCurves:
    """The curves of a journal; the many events about single episodes are not parsed.

    Raises:
        DataError: the journal cannot be read.
    """
    state = RunState()
    cycles: list[tuple[int, int]] = []
    if not journal.exists():
        raise DataError(f"{journal}: cannot be read: no such file or directory")
    for line in whole_lines(journal):
        if any(kind in line.data for kind in _KINDS):
            event = parsed(line, journal, event_adapter.validate_json, "an event")
            state.apply(event)
            if isinstance(event, ev.Evolved) and event.accepted:
                cycles.append((event.step, len(event.accepted)))
    return RunCurves(name or journal.parent.name, state.curves, cycles)


def curves_svg(groups: Mapping[str, Sequence[RunCurves]], title: str = "") -> str:
    """One figure: a colour for each group; its runs (seeds) are thin lines, their mean a thick one.

    Panels: success on validation, with the evolution cycles that changed the bank, and while sampling; reward, KL and
    entropy; SFT loss; success on validation by category. Panels without a number are left out.
    """
    metrics = {metric for runs in groups.values() for run in runs for metric in run.curves}
    categories = sorted(
        metric for metric in metrics if metric.startswith("validation/") and metric != "validation/success"
    )
    panels = [panel for panel in _PANELS if panel.metric in metrics]
    panels += [
        _Panel(f"Validation: {metric.partition('/')[2]}", metric, percent=True, marks=True)
        for metric in categories
    ]
    columns = max(1, min(_COLUMNS, len(panels)))
    rows = math.ceil(len(panels) / columns)
    width = columns * _WIDTH
    colours = {group: _PALETTE[number % len(_PALETTE)] for number, group in enumerate(groups)}
    drawing = _Drawing()
    top = drawing.head(
        title, colours, width, marks=any(run.cycles for runs in groups.values() for run in runs)
    )
    for number, panel in enumerate(panels):
        x, y = number % columns * _WIDTH, top + number // columns * _HEIGHT
        drawing.panel(panel, groups, colours, x, y)
    return drawing.text(width, top + rows * _HEIGHT + 4)


@dataclass(frozen=True, slots=True)
class RateRow:
    """One line of the chart of rates."""

    label: str
    rate: Rate
    parts: Sequence[float] = ()
    """The rates of the seeds, 0 to 1."""


def rates_svg(rows: Sequence[RateRow], title: str = "") -> str:
    """Rates with their intervals, one below the other; the small dots are the seeds."""
    left, line, width = 190, 26, 720
    right = width - 70
    drawing = _Drawing()
    top = drawing.head(title, {}, width, marks=False) + 8
    bottom = top + line * len(rows)

    def place(value: float) -> float:
        return left + value * (right - left)

    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        drawing.line(place(tick), top, place(tick), bottom, "grid")
        drawing.words(f"{tick:.0%}", place(tick), bottom + 16, "tick", anchor="middle")
    for number, row in enumerate(rows):
        y = top + line * (number + 0.5)
        drawing.words(row.label, left - 12, y + 4, anchor="end")
        colour = _PALETTE[0]
        drawing.shape("line", x1=place(row.rate.low), x2=place(row.rate.high), y1=y, y2=y, stroke=colour).set(
            "stroke-width", "2.5"
        )
        for part in row.parts if len(row.parts) > 1 else ():
            drawing.shape("circle", cx=place(part), cy=y, r=2.5, fill=_PALETTE[1])
        drawing.shape("circle", cx=place(row.rate.rate), cy=y, r=5, fill=colour)
        drawing.words(f"{100 * row.rate.rate:.1f} %", right + 12, y + 4)
    return drawing.text(width, bottom + 28)


@dataclass
class _Drawing:
    """An SVG that grows."""

    root: ET.Element = field(default_factory=lambda: ET.Element("svg", xmlns="http://www.w3.org/2000/svg"))

    def head(self, title: str, colours: Mapping[str, str], width: int, *, marks: bool) -> int:
        """Page, title and legend; returns where the panels begin."""
        ET.SubElement(self.root, "style").text = _STYLE
        self.page = self.shape("rect", x=0, y=0, rx=6)
        self.page.set("class", "page")
        y = 12
        if title:
            y += 16
            self.words(_fitted(title, width - 28, 7.5), 14, y, "title")
        x, y = 14.0, y + 20
        entries = [(group, colour) for group, colour in colours.items()]
        if marks:
            entries.append(("evolution changed the bank", ""))
        for label, colour in entries:
            label = _fitted(label, 240, 6.2)
            room = 24 + 6.4 * len(label) + 18
            if x > 14 and x + room > width:
                x, y = 14.0, y + 18
            if colour:
                self.shape("line", x1=x, x2=x + 16, y1=y - 4, y2=y - 4, stroke=colour).set(
                    "stroke-width", "3"
                )
            else:
                self.mark(x + 8, y, "#8c959f")
            self.words(label, x + 22, y)
            x += room
        return y + 10 if entries else y

    def panel(
        self,
        panel: _Panel,
        groups: Mapping[str, Sequence[RunCurves]],
        colours: Mapping[str, str],
        x: float,
        y: float,
    ) -> None:
        """Title, axes and lines of one metric."""
        lines = {
            group: [finite for run in runs if (finite := _finite(run.curves.get(panel.metric, [])))]
            for group, runs in groups.items()
        }
        points = [point for several in lines.values() for one in several for point in one]
        if not points:
            return
        horizontal = _ticks(min(p[0] for p in points), max(p[0] for p in points), 5, whole=True)
        values = (0.0, 1.0) if panel.percent else (min(p[1] for p in points), max(p[1] for p in points))
        vertical = [0.0, 0.25, 0.5, 0.75, 1.0] if panel.percent else _ticks(*values, 4)
        x0, x1 = x + _LEFT, x + _WIDTH - _RIGHT
        y0, y1 = y + _HEIGHT - _BOTTOM, y + _TOP

        def across(value: float) -> float:
            return x0 + (value - horizontal[0]) / (horizontal[-1] - horizontal[0]) * (x1 - x0)

        def up(value: float) -> float:
            return y0 - (value - vertical[0]) / (vertical[-1] - vertical[0]) * (y0 - y1)

        self.words(panel.title, x0, y + 22, "title")
        for tick in vertical:
            self.line(x0, up(tick), x1, up(tick), "grid")
            shown = f"{tick:.0%}" if panel.percent else f"{tick:.4g}"
            self.words(shown, x0 - 6, up(tick) + 4, "tick", anchor="end")
        for tick in horizontal:
            self.line(across(tick), y0, across(tick), y0 + 4, "axis")
            self.words(f"{tick:g}", across(tick), y0 + 16, "tick", anchor="middle")
        self.line(x0, y0, x1, y0, "axis")
        self.words("step", x1, y0 + 29, "tick", anchor="end")
        for group, several in lines.items():
            colour = colours[group]
            placed = [[(across(a), up(b)) for a, b in one] for one in several]
            if len(placed) > 1:
                for one in placed:
                    self.path(one, colour, 1.0, 0.3)
                self.path([(across(a), up(b)) for a, b in _mean(several)], colour, 2.2, 1.0)
            elif placed:
                self.path(placed[0], colour, 2.0, 1.0)
        if panel.marks:
            for group, runs in groups.items():
                for run in runs:
                    for step, changed in run.cycles:
                        if horizontal[0] <= step <= horizontal[-1]:
                            told = f"{run.name}: {changed} skills added or refined at step {step}"
                            self.mark(across(step), y0, colours[group], told)

    def path(self, points: Sequence[tuple[float, float]], colour: str, width: float, opacity: float) -> None:
        if len(points) == 1:
            self.shape("circle", cx=points[0][0], cy=points[0][1], r=3, fill=colour)
            return
        places = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        made = ET.SubElement(self.root, "polyline", points=places, fill="none", stroke=colour)
        made.set("stroke-width", f"{width:g}")
        made.set("stroke-linejoin", "round")
        made.set("stroke-opacity", f"{opacity:g}")

    def mark(self, x: float, y: float, colour: str, told: str = "") -> None:
        """A triangle that stands on a line."""
        made = ET.SubElement(
            self.root,
            "polygon",
            points=f"{x - 4:.1f},{y:.1f} {x + 4:.1f},{y:.1f} {x:.1f},{y - 7:.1f}",
            fill=colour,
        )
        if told:
            ET.SubElement(made, "title").text = one_line(told)

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        self.shape("line", x1=x1, y1=y1, x2=x2, y2=y2).set("class", kind)

    def words(self, text: str, x: float, y: float, kind: str = "", anchor: str = "start") -> None:
        made = self.shape("text", x=x, y=y)
        made.text = one_line(text)
        if kind:
            made.set("class", kind)
        if anchor != "start":
            made.set("text-anchor", anchor)

    def shape(self, tag: str, **attributes: float | str) -> ET.Element:
        texts = {
            key: value if isinstance(value, str) else f"{value:.1f}" for key, value in attributes.items()
        }
        return ET.SubElement(self.root, tag, texts)

    def text(self, width: float, height: float) -> str:
        for element in (self.root, self.page):
            element.set("width", f"{width:g}")
            element.set("height", f"{height:g}")
        self.root.set("viewBox", f"0 0 {width:g} {height:g}")
        return ET.tostring(self.root, encoding="unicode") + "\n"


def _finite(points: Sequence[tuple[float, float]]) -> Points:
    return [(a, b) for a, b in points if math.isfinite(a) and math.isfinite(b)]


def _mean(several: Sequence[Points]) -> Points:
    """Over the steps that every run has."""
    runs = [dict(points) for points in several]
    shared = sorted(set(runs[0]).intersection(*runs[1:]))
    return [(step, sum(run[step] for run in runs) / len(runs)) for step in shared]


def _ticks(low: float, high: float, wanted: int, *, whole: bool = False) -> list[float]:
    """Round numbers around [low, high], at least two of them."""
    if high - low < 1e-12 * max(1.0, abs(high)):
        pad = 1.0 if whole else (abs(high) / 2 or 1.0)
        low, high = low - pad * (not whole or low > 0), high + pad
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * 0.999)
    if whole:
        step = max(1.0, math.ceil(step))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def _fitted(text: str, width: float, letter: float) -> str:
    """`text` cut to what fits into `width` pixels at `letter` pixels a letter."""
    room = max(4, int(width / letter))
    return text if len(text) <= room else text[: room - 1] + "…"
