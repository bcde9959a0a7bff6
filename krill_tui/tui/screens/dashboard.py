"""The four live panes: skills, episodes, curves, evolution."""

from __future__ import annotations

from dataclasses import dataclass

from textual import events
from textual.app import ComposeResult
from textual.containers import Container
from textual.message import Message

from krill_tui.engine.state import RunState
from krill_tui.tui import keys
from krill_tui.tui.bridge import Bridge
from krill_tui.tui.screens.base import RunScreen
from krill_tui.tui.screens.detail import DetailScreen, event_text
from krill_tui.tui.screens.episode import EpisodeScreen
from krill_tui.tui.screens.skills import SkillsScreen
from krill_tui.tui.screens.training import TrainingScreen
from krill_tui.tui.widgets.curve_plot import CurvePlot
from krill_tui.tui.widgets.episode_list import EpisodeList
from krill_tui.tui.widgets.evolution_log import EvolutionLog
from krill_tui.tui.widgets.key_footer import KeyFooter
from krill_tui.tui.widgets.line_list import LineList
from krill_tui.tui.widgets.metric_list import MetricList
from krill_tui.tui.widgets.pane import Pane
from krill_tui.tui.widgets.skill_tree import SkillTree
from krill_tui.tui.widgets.status_bar import StatusBar

CHART_MIN_HEIGHT = 18
"""Lines the curves pane must have before half of it becomes a chart."""


class CurvesPane(Pane):
    """Bars and sparklines, with a chart of success on top where there is room."""

    def __init__(self, list_: MetricList, *, number: int, id: str) -> None:
        super().__init__(list_, number=number, id=id)
        self._plot = CurvePlot()

    def compose(self) -> ComposeResult:
        yield self._plot
        yield from super().compose()

    def draw(self, state: RunState) -> None:
        super().draw(state)
        curves = self.headline()
        self._plot.display = bool(curves) and self.size.height >= CHART_MIN_HEIGHT
        if self._plot.display and self.display:
            self._plot.draw(curves)

    def headline(self) -> dict[str, list[tuple[float, float]]]:
        """Success, in training and on validation; the loss while there is no success yet."""
        curves = self.state.curves
        for names in (("success", "validation/success"), ("reward", "validation/success"), ("sft/loss",)):
            chosen = {name: curves[name] for name in names if curves.get(name)}
            if any(len(points) > 1 for points in chosen.values()):
                return chosen
        return {}


class DashboardScreen(RunScreen):
    @dataclass
    class Launched(Message):
        """A person asked for phases."""

        phases: list[str]

    SCOPES = ("dashboard", "run", "replay", "app")
    BINDINGS = keys.bindings("dashboard")

    def __init__(self, bridge: Bridge) -> None:
        super().__init__(bridge)
        self.panes = [
            Pane(SkillTree(), number=1, id="skills-pane"),
            Pane(EpisodeList(), number=2, id="episodes-pane"),
            CurvesPane(MetricList(), number=3, id="curves-pane"),
            Pane(EvolutionLog(), number=4, id="evolution-pane"),
        ]
        self.current_pane = self.panes[1]
        """The one with the focus, else the one that had it last."""

    def compose(self) -> ComposeResult:
        yield StatusBar()
        yield Container(*self.panes, id="panes")
        yield KeyFooter(*self.SCOPES)

    def on_mount(self) -> None:
        self._show_pane(2)

    def draw_content(self) -> None:
        for pane in self.panes:
            pane.draw(self.bridge.state)

    def on_resize(self, event: events.Resize) -> None:
        self.call_after_refresh(self._settle)

    def _settle(self) -> None:
        """After the layout: the current pane may be the only one there is room for."""
        if self.focused is None:
            self.current_pane.focus_list()
        self.draw()

    def on_descendant_focus(self, event: events.DescendantFocus) -> None:
        pane = next((p for p in self.panes if event.widget in p.walk_children()), None)
        if pane:
            self._mark_current(pane)

    def action_pane(self, number: int) -> None:
        self._show_pane(number)

    def action_cycle_pane(self, step: int) -> None:
        self._show_pane((self.current_pane.number - 1 + step) % 4 + 1)

    def action_maximise_pane(self) -> None:
        self.query_one("#panes").toggle_class("-one")
        self.call_after_refresh(self._settle)

    def action_search(self) -> None:
        self.current_pane.open_search()

    def action_clear_search(self) -> None:
        self.current_pane.clear_search()

    def action_launch(self, phase: str) -> None:
        if self.bridge.session is None:
            self.say("this run can only be watched here; phases start in its own app", severity="warning")
        else:
            self.post_message(self.Launched([phase]))

    def on_line_list_picked(self, event: LineList.Picked) -> None:
        match event.list:
            case SkillTree() as tree:
                if not tree.toggle(event.row, self.bridge.state):
                    self.app.push_screen(SkillsScreen(self.bridge, event.row.key))
            case EpisodeList():
                self.app.push_screen(EpisodeScreen(self.bridge, event.row.key))
            case MetricList():
                self.app.push_screen(TrainingScreen(self.bridge, event.row.key))
            case EvolutionLog():
                line = event.row.data[0]
                self.app.push_screen(DetailScreen(line.text, event_text(line.event)))

    def _show_pane(self, number: int) -> None:
        pane = self.panes[number - 1]
        self._mark_current(pane)
        pane.draw(self.bridge.state)
        pane.focus_list()

    def _mark_current(self, pane: Pane) -> None:
        self.current_pane = pane
        for other in self.panes:
            other.set_class(other is pane, "-current")
