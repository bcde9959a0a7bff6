"""Success before and after as bars, then every metric as a sparkline with its last value."""

from __future__ import annotations

from collections.abc import Iterable

from textual.content import Content

from krill_tui.engine.state import RunState
from krill_tui.events.schema import Evaluated
from krill_tui.io.text import one_line
from krill_tui.tui.widgets.line_list import Row
from krill_tui.tui.widgets.pane import SearchableList
from krill_tui.tui.wording import GOOD, HEADING, MUTED, bar, number, percent, sparkline

FIRST_METRICS = (
    "success",
    "validation/success",
    "reward",
    "kl",
    "entropy",
    "loss",
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    "grad_norm",
    "sft/loss",
    "sft/mean_token_accuracy",
)
STAGE_WORDS = {"base": "base", "sft": "after SFT", "rl": "after RL", "eval": "now"}


def ordered_metrics(names: Iterable[str]) -> list[str]:
    """The telling ones first, the others by name, SFT's last."""
    ranks = {name: rank for rank, name in enumerate(FIRST_METRICS)}
    return sorted(names, key=lambda name: (name.startswith("sft/"), ranks.get(name, len(ranks)), name))


class MetricList(SearchableList):
    noun = "curves"
    one = "curve"

    def __init__(self, *, id: str | None = None, with_results: bool = True) -> None:
        super().__init__(id=id)
        self.with_results = with_results
        self.chosen: set[str] | None = None
        """Metrics marked as shown; None where nothing can be chosen."""
        self.empty = Content.styled(
            "Curves of success, reward, KL and loss are drawn here while a phase trains; "
            "bars show success before and after.",
            MUTED,
        )

    def title(self, state: RunState) -> Content:
        return Content.assemble("Curves", (f" {len(state.curves)} metrics" if state.curves else "", MUTED))

    def stamp(self, state: RunState) -> object:
        points = sum(map(len, state.curves.values()))
        evaluated = tuple(event.seq for event in state.evaluations.values())
        return id(state), points, evaluated, frozenset(self.chosen or ())

    def make_rows(self, state: RunState) -> list[Row]:
        rows: list[Row] = []
        if self.with_results and state.evaluations and not self.query_text:
            results = list(state.evaluations.values())
            rows.append(Row("results", f"success on {results[-1].split}, 95 % interval", pick=False))
            rows += [Row(f"result:{event.stage}", event, pick=False) for event in results]
            rows.append(Row("gap", "", pick=False))
        for name in ordered_metrics(state.curves):
            if self.matches(name):
                rows.append(Row(name, [value for _, value in state.curves[name]]))
        return rows

    def line(self, row: Row, width: int) -> Content:
        if isinstance(row.data, str):
            return Content.styled(one_line(row.data), HEADING)
        if isinstance(row.data, Evaluated):
            return self._result(row.data, width)
        mark = "" if self.chosen is None else ("● " if row.key in self.chosen else "○ ")
        name_width = min(24, max(10, width // 2 - len(mark) - 1))
        name = one_line(row.key)
        if len(name) > name_width:
            name = "…" + name[-(name_width - 1) :]
        value = number(row.data[-1]).rjust(8)
        room = width - len(mark) - name_width - len(value) - 2
        return Content.assemble(
            (mark, GOOD),
            f"{name:<{name_width}} ",
            (sparkline(row.data, room).ljust(room), "$primary"),
            f" {value}",
        )

    def _result(self, event: Evaluated, width: int) -> Content:
        words = f" {percent(event.overall):>15}"
        room = max(4, width - len(words) - 11)
        filled = bar(event.overall.rate, room)
        return Content.assemble(f"{STAGE_WORDS[event.stage]:<10} ", (filled, f"{GOOD} on $panel"), words)
