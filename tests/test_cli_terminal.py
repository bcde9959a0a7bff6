"""The commands in a terminal: bars, and the app opened on the run."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.reliability.pseudo_terminal import PseudoTerminal
from krill_tui import headless
from krill_tui.engine.run_store import run_path
from krill_tui.engine.state import RunState
from krill_tui.events import schema as ev
from krill_tui.events.journal import JournalFollower

ROOT = Path(__file__).parents[1]


def rate(wins: int, episodes: int) -> ev.Rate:
    return ev.Rate(wins=wins, episodes=episodes, low=0.25, high=0.75)


def shown(view: headless.View, state: RunState, events: list[ev.Event]) -> None:
    for seq, event in enumerate(events, start=1):
        event = event.model_copy(update={"seq": seq, "time": 100.0 + seq})
        state.apply(event)
        view.show(event)
    view.close()


EVENTS: list[ev.Event] = [
    ev.PhaseStarted(phase="collect", title="Collecting", total=4, unit="episodes"),
    ev.PhaseProgressed(phase="collect", done=1, total=4, detail="won: [bold]a\x1b[31m mug"),
    ev.Noted(level="warning", message="[red]left\x1b[2Jout\u202e"),
    ev.PhaseProgressed(phase="collect", done=4, total=4),
    ev.PhaseFinished(phase="collect", seconds=65, summary="4 episodes"),
]


def test_lines_hold_the_time_left_and_no_markup_or_control_characters() -> None:
    out, state = io.StringIO(), RunState()
    shown(headless.LineView(headless.make_console(out), state), state, EVENTS)
    assert out.getvalue().splitlines() == [
        "collect: Collecting (4 episodes)",
        "collect 1/4 (25%, 3s left): won: [bold]a mug",
        "[red]leftout",
        "collect 4/4 (100%)",
        "collect: done in 1m05s: 4 episodes",
    ]


def test_bars_show_count_and_time_left() -> None:
    out, state = io.StringIO(), RunState()
    console = Console(file=out, force_terminal=True, width=100, markup=False, color_system=None)
    view = headless.BarView(console, state)
    shown(view, state, EVENTS[:3])
    text = out.getvalue()
    assert "collect" in text
    assert "1/4" in text
    assert "3s left" in text
    assert "[red]leftout" in text
    assert "\x1b[2J" not in text
    assert "\x1b[31m" not in text


def test_results_show_each_stage_with_its_interval() -> None:
    state = RunState()
    stages: tuple[tuple[ev.Stage, int], ...] = (("base", 2), ("sft", 5), ("rl", 9))
    for stage, wins in stages:
        evaluated = ev.Evaluated(
            stage=stage, split="test", overall=rate(wins, 10), categories={}, mean_steps=7.5
        )
        state.apply(evaluated)
    out = io.StringIO()
    headless.make_console(out).print(headless.results_table(state))
    lines = out.getvalue().splitlines()
    assert [line.split()[0:2] for line in lines[1:]] == [["base", "test"], ["after", "SFT"], ["after", "RL"]]
    assert "90.0%  25.0% - 75.0%" in lines[3]
    assert "9/10" in lines[3]


@pytest.mark.parametrize(
    ("seconds", "said"), [(None, "?"), (0.4, "0s"), (59.6, "1m00s"), (61, "1m01s"), (3700, "1h01m")]
)
def test_durations_read_easily(seconds: float | None, said: str) -> None:
    assert headless.duration(seconds) == said


def journal_has(name: str, kind: type[ev.BaseEvent]) -> Callable[[], bool]:
    follower = JournalFollower(run_path(name) / "events.jsonl")
    return lambda: any(isinstance(event, kind) for event in follower.read_new())


def test_in_a_terminal_a_command_opens_the_app_and_its_result_stays_when_it_closes(tmp_path: Path) -> None:
    expert = ("collect", "--mock", "--policy", "expert", "--set", "env.max_steps=30")
    arguments = (*expert, "--episodes", "4", "--run", "mine")
    terminal = PseudoTerminal(*arguments, cwd=tmp_path)
    # The journal may be ahead of the screen: a key is for what is seen.
    terminal.read_until(lambda: b"completed" in terminal.screen)
    terminal.type("q")
    code = terminal.finish()
    text = terminal.screen.decode(errors="replace")
    assert code == 0, text[-2000:]
    assert "\x1b[?1049h" in text, "the app took the whole screen"
    assert "wrote data/trajectories.json: 4 episodes, 4 won" in text.rpartition("\x1b[?1049l")[2]
    assert (tmp_path / "data" / "trajectories.json").exists()


def test_bare_krill_opens_the_app_and_q_leaves_it(tmp_path: Path) -> None:
    terminal = PseudoTerminal(cwd=tmp_path)
    terminal.read_until(lambda: b"collect" in terminal.screen.lower())
    terminal.type("q")
    code = terminal.finish()
    text = terminal.screen.decode(errors="replace")
    assert code == 0, text[-2000:]
    assert "Traceback" not in text
