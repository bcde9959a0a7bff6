"""The dashboard, driven through its keys."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest
from textual.widgets import Input

from krill_tui.engine.state import RunState
from krill_tui.events import schema as ev
from krill_tui.tui.app import KrillApp
from krill_tui.tui.replay import ReplaySource
from krill_tui.tui.screens.choice import ChoiceScreen
from krill_tui.tui.screens.dashboard import DashboardScreen
from krill_tui.tui.screens.detail import DetailScreen
from krill_tui.tui.screens.episode import EpisodeScreen
from krill_tui.tui.screens.skills import SkillsScreen
from krill_tui.tui.screens.training import TrainingScreen
from krill_tui.tui.widgets.key_footer import KeyFooter
from krill_tui.tui.widgets.status_bar import StatusBar
from tests.tui.conftest import drawn, live, replayed, session_of, shown, toasts
from tests.tui.journals import Script, finished_run, hostile_run, running_run

SIZE = (120, 40)


def dashboard(app: KrillApp) -> DashboardScreen:
    screen = app.screen
    assert isinstance(screen, DashboardScreen)
    return screen


def opened() -> Script:
    script = Script()
    script.open()
    return script


async def test_the_first_screen_says_what_to_press() -> None:
    async with live(opened()).run_test(size=SIZE) as pilot:
        text = await drawn(pilot)
        for words in (
            "swift-otter",
            "all four phases",
            "1 collect",
            "No skills yet",
            "○ idle",
            "constrained",
        ):
            assert words in text
        assert "not an LLM" in text


async def test_four_panes_show_a_run_that_goes_on() -> None:
    async with live(running_run(), "rl").run_test(size=SIZE) as pilot:
        text = await drawn(pilot)
        assert "● running" in text
        assert "phase 4/4 RL" in text
        assert "steps 8/12" in text
        assert "heat_003 Close the loop" in text
        assert "[heat_001]" in text
        assert "> heat potato 2 with microwave 1" in text
        assert "cycle 1: Heat → +1 skills" in text
        assert "66 % [57, 73]" in text


async def test_an_event_appears_at_the_next_beat() -> None:
    script = running_run()
    async with live(script, "rl").run_test(size=SIZE) as pilot:
        await drawn(pilot)
        script.emit(ev.Noted(message="the kettle boils"))
        assert "the kettle boils" in await drawn(pilot)


async def test_a_phase_key_launches_its_phase() -> None:
    app = live(opened())
    async with app.run_test(size=SIZE) as pilot:
        session = session_of(app)
        for key in "tcdsre":
            session.running = None
            await pilot.press(key)
            assert "● running" in await drawn(pilot)
        phases = ["train", "collect", "distill", "sft", "rl", "evaluate"]
        assert session.said == [f"launch {phase}" for phase in phases]


async def test_a_second_launch_is_refused_in_one_line() -> None:
    app = live(running_run(), "rl")
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("c")
        assert session_of(app).said == []
        assert "'rl' is running (cancel it first, or wait)" in toasts(app)


async def test_a_failed_phase_says_why_without_markup() -> None:
    app = live(opened())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("c")
        session_of(app).error = ValueError("no [red]games[/red] here")
        session_of(app).end("failed", "no games")
        await pilot.pause()
        await app.workers.wait_for_complete()
        assert "no [red]games[/red] here" in toasts(app)
        assert "✖ failed" in await drawn(pilot)


async def test_space_pauses_and_resumes_and_a_dot_lets_one_turn_through() -> None:
    app = live(running_run(), "rl")
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("space")
        assert app.bridge.state.paused
        assert "‖ paused" in await drawn(pilot)
        await pilot.press("full_stop")
        assert session_of(app).said == ["step"]
        await pilot.press("space")
        assert not app.bridge.state.paused


async def test_cancel_asks_first_and_the_harmless_answer_is_the_default() -> None:
    app = live(running_run(), "rl")
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("X", "enter")
        assert session_of(app).said == []
        await pilot.press("X", "escape")
        assert session_of(app).said == []
        await pilot.press("X", "y")
        assert session_of(app).said == ["cancel"]
        assert "– cancelled" in await drawn(pilot)


async def test_cancel_without_a_phase_asks_nothing() -> None:
    app = live(opened())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("X")
        assert isinstance(app.screen, DashboardScreen)


async def test_quitting_while_a_phase_runs_offers_stop_or_stay() -> None:
    app = live(running_run(), "rl")
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("ctrl+c")
        assert app.is_running
        await pilot.press("q")
        assert isinstance(app.screen, ChoiceScreen)
        await pilot.press("y")
        assert isinstance(app.screen, DashboardScreen)
        assert session_of(app).said == []
        await pilot.press("ctrl+q", "s")
        assert session_of(app).said == ["cancel"]
    assert app._exit


async def test_a_termination_signal_stops_the_phase_and_leaves() -> None:
    app = live(running_run(), "rl")
    async with app.run_test(size=SIZE) as pilot:
        await drawn(pilot)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(10):
            while not app._exit:
                await pilot.pause()
        assert session_of(app).said == ["cancel"]
    assert app._exit
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_refined_skill_is_not_counted_as_a_new_one() -> None:
    script = running_run()
    state = RunState()
    for event in script.events:
        state.apply(event)
    refined = state.skills["heat_003"].model_copy(update={"version": 2})
    before = len(script.events)
    script.emit(ev.SkillChanged(skill=refined, change="refine", author="builtin", bank_version=8))
    script.emit(ev.Evolved(cycle=2, step=9, rates={}, failing=("Heat",), accepted=("heat_003",)))
    script.emit(ev.Evolved(cycle=3, step=9, rates={}, failing=("Heat",), accepted=("heat_003", "heat_009")))
    for event in script.events[before:]:
        state.apply(event)
    lines = [line.text for line in state.log if line.kind == "evolved"]
    assert lines[-2:] == ["cycle 2: Heat → 1 refined", "cycle 3: Heat → +1 skills, 1 refined"]


async def test_quitting_an_idle_run_asks_nothing() -> None:
    app = live(opened())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("q")
    assert app._exit


async def test_tab_and_numbers_go_round_the_panes() -> None:
    app = live(running_run(), "rl")
    async with app.run_test(size=SIZE) as pilot:
        screen = dashboard(app)
        places = []
        for key in ("tab", "tab", "tab", "shift+tab", "1", "4"):
            await pilot.press(key)
            places.append(screen.current_pane.number)
            assert screen.current_pane.list.has_focus
        assert places == [3, 4, 1, 4, 1, 4]


async def test_plus_gives_one_pane_the_room_of_all() -> None:
    app = live(running_run(), "rl")
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("4", "plus")
        screen = dashboard(app)
        assert [pane.display for pane in screen.panes] == [False, False, False, True]
        assert screen.current_pane.size.width > 110
        await pilot.press("tab")
        assert [pane.display for pane in screen.panes] == [True, False, False, False]
        assert "heat_003" in await drawn(pilot)
        await pilot.press("plus")
        assert all(pane.display for pane in screen.panes)


async def test_search_narrows_the_pane_and_typing_launches_nothing() -> None:
    app = live(running_run())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("1", "slash", *"mic")
        pane = dashboard(app).current_pane
        assert [row.key for row in pane.list.rows] == ["tier:Heat", "heat_001", "heat_002", "heat_003"]
        assert pane.list.cursor_row is not None
        assert pane.list.cursor_row.key == "heat_001"
        assert session_of(app).said == []
        await pilot.press("enter")
        assert pane.list.has_focus
        await pilot.press("escape")
        assert len(pane.list.rows) == 11
        assert not app.screen.query_one(Input).display


async def test_every_pane_can_be_searched() -> None:
    app = live(running_run())
    async with app.run_test(size=SIZE) as pilot:
        found = []
        for pane, query in (("2", "pla"), ("3", "ent"), ("4", "ref"), ("1", "zz")):
            await pilot.press(pane, "slash", *query)
            found.append({row.key for row in dashboard(app).current_pane.list.rows})
            await pilot.press("escape")
        assert found[0] == {"e0015", "e0009", "e0003"}
        assert found[1] == {"entropy"}
        assert len(found[2]) == 1
        assert found[3] == set()


async def test_enter_opens_what_the_cursor_is_on() -> None:
    app = live(running_run())
    async with app.run_test(size=SIZE) as pilot:
        for pane, kind in (("2", EpisodeScreen), ("3", TrainingScreen), ("4", DetailScreen)):
            await pilot.press(pane, "enter")
            assert isinstance(app.screen, kind)
            await pilot.press("escape")
        await pilot.press("1", "enter")
        assert [row.key for row in dashboard(app).current_pane.list.rows][:2] == [
            "tier:general",
            "tier:Clean",
        ]
        await pilot.press("enter", "down", "enter")
        assert isinstance(app.screen, SkillsScreen)
        assert app.screen.skill is not None
        assert app.screen.skill.id == "gen_001"


async def test_the_cursor_stays_on_its_episode_while_others_come_and_go() -> None:
    script = running_run()
    app = live(script, "rl")
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("down")
        episodes = dashboard(app).current_pane.list
        assert episodes.cursor_row is not None
        assert episodes.cursor_row.key == "e0016"
        script.finish_episode("e0015", won=True, steps=6)
        script.start_episode()
        await drawn(pilot)
        assert episodes.cursor_row.key == "e0016"


async def test_an_untouched_cursor_keeps_to_the_newest_live_episode() -> None:
    script = running_run()
    app = live(script, "rl")
    async with app.run_test(size=SIZE) as pilot:
        await drawn(pilot)
        script.finish_episode("e0015", won=True, steps=6)
        await drawn(pilot)
        row = dashboard(app).current_pane.list.cursor_row
        assert row is not None
        assert row.key == "e0016"


async def test_the_log_follows_its_end_until_the_cursor_leaves_it() -> None:
    script = running_run()
    app = live(script, "rl")
    async with app.run_test(size=SIZE) as pilot:
        log = dashboard(app).panes[3].list
        script.emit(ev.Noted(message="first"))
        await drawn(pilot)
        assert log.cursor_row is not None
        assert log.cursor_row.data[0].text == "first"
        await pilot.press("4", "up", "up")
        place = log.cursor_row
        script.emit(ev.Noted(message="second"))
        await drawn(pilot)
        assert log.cursor_row.key == place.key
        await pilot.press("G")
        script.emit(ev.Noted(message="third"))
        await drawn(pilot)
        assert log.cursor_row.data[0].text == "third"


async def test_a_watched_run_cannot_be_launched_or_changed() -> None:
    app = KrillApp()
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("t", "space", "full_stop", "X")
        assert "can only be watched" in toasts(app)


async def test_a_replay_is_played_by_its_keys() -> None:
    app = replayed(finished_run(), position=100)
    async with app.run_test(size=SIZE) as pilot:
        source = app.bridge.replay
        assert isinstance(source, ReplaySource)
        places = []
        for key in ("right_square_bracket", "left_square_bracket", "right_curly_bracket", "left_curly_bracket",
                    "home", "end"):  # fmt: skip
            await pilot.press(key)
            places.append(source.position)
        assert places == [101, 100, 110, 100, 0, len(source.events)]
        await pilot.press("greater_than_sign", "less_than_sign", "less_than_sign")
        assert source.speed == 4
        await pilot.press("space")
        assert source.playing
        await pilot.press("space")
        assert not source.playing


async def test_the_cursor_keys_stay_the_list_s_own_outside_a_replay() -> None:
    app = live(running_run())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("end")
        row = dashboard(app).current_pane.list.cursor_row
        assert row is not None
        assert row.key == "e0001"


async def test_hostile_text_is_only_text() -> None:
    app = live(hostile_run(), "collect")
    async with app.run_test(size=SIZE) as pilot:
        text = await drawn(pilot)
        assert "[bold]x[/bold] red" in text
        assert "[@click=app.quit]quit[/]" in text
        assert "\x1b" not in text
        assert "\u202e" not in text
        for keys_ in (
            ("2", "enter"),
            ("escape", "4", "enter"),
            ("escape", "f2"),
            ("escape", "f3"),
            ("escape",),
        ):
            await pilot.press(*keys_)
            assert "\x1b" not in await drawn(pilot)
        await pilot.press("ctrl+p", *"epi")
        await pilot.pause()
        assert "[bold]" in shown(app)


async def test_every_screen_survives_a_tiny_terminal_and_comes_back() -> None:
    app = live(running_run(), "rl")
    async with app.run_test(size=(80, 24)) as pilot:
        for key in ("f2", "f3", "f4", "enter", "question_mark", "q", "plus"):
            await pilot.press(key)
            for size in ((20, 5), (80, 24)):
                await pilot.resize_terminal(*size)
                await drawn(pilot)
            await pilot.press("escape")
            assert isinstance(app.screen, DashboardScreen)


@pytest.mark.parametrize("size", [(20, 5), (200, 60)])
async def test_the_dashboard_opens_in_the_smallest_and_a_large_terminal(size: tuple[int, int]) -> None:
    async with live(running_run(), "rl").run_test(size=size) as pilot:
        text = await drawn(pilot)
        assert "Episodes" in text
        assert ("Curves" in text) == (size[0] > 20)


async def test_at_80_by_24_all_four_panes_are_there() -> None:
    async with live(running_run(), "rl").run_test(size=(80, 24)) as pilot:
        text = await drawn(pilot)
        for words in ("1 Skills", "2 Episodes", "3 Curves", "4 Evolution", "alfworld/builtin", "no LLM"):
            assert words in text


async def test_the_footer_offers_what_can_be_done_now_and_can_be_clicked() -> None:
    app = live(opened())
    async with app.run_test(size=SIZE) as pilot:
        assert "c collect" in await drawn(pilot)
        await pilot.click(KeyFooter, offset=(2, 0))
        assert session_of(app).said == ["launch train"]
        text = await drawn(pilot)
        assert "c collect" not in text.splitlines()[-1]
        assert "X cancel" in text


async def test_a_hidden_pane_is_not_drawn() -> None:
    script = running_run()
    app = live(script, "rl")
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("1", "plus")
        log = dashboard(app).panes[3].list
        before = log.rows
        script.emit(ev.Noted(message="unseen"))
        await drawn(pilot)
        assert log.rows is before
        await pilot.press("plus")
        assert "unseen" in await drawn(pilot)


async def test_no_color_leaves_the_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    async with live(running_run(), "rl").run_test(size=SIZE) as pilot:
        text = await drawn(pilot)
        assert all(mark in text for mark in "✔✖●○▸")


async def test_both_themes_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    app = live(running_run(), "rl")
    async with app.run_test(size=SIZE) as pilot:
        dark = app.screen.styles.background
        await pilot.press("f9")
        await drawn(pilot)
        assert app.theme == "krill-light"
        assert app.screen.styles.background != dark


async def test_the_status_bar_drops_the_least_telling_first() -> None:
    app = live(running_run(), "rl")
    async with app.run_test(size=(44, 24)) as pilot:
        await drawn(pilot)
        text = str(app.screen.query_one(StatusBar).render())
        assert "swift-otter" in text
        assert "constrained" in text
        assert "preset" not in text
