"""Episode, skills, training, runs, help and palette, driven through their keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from textual import events
from textual.geometry import Size
from textual.widgets import Input, Static, TextArea

from krill_tui.events import schema as ev
from krill_tui.skill import SkillStatus
from krill_tui.tui import keys
from krill_tui.tui.app import KrillApp
from krill_tui.tui.bridge import SessionSource, WatchSource
from krill_tui.tui.screens.dashboard import DashboardScreen
from krill_tui.tui.screens.episode import EpisodeScreen
from krill_tui.tui.screens.help import HelpScreen
from krill_tui.tui.screens.runs import RunList, RunsScreen
from krill_tui.tui.screens.skill_form import SkillForm
from krill_tui.tui.screens.skills import SkillsScreen
from krill_tui.tui.screens.training import TrainingScreen
from krill_tui.tui.widgets.chart import downsample
from krill_tui.tui.widgets.curve_plot import CurvePlot
from krill_tui.tui.widgets.metric_list import ordered_metrics
from tests.tui.conftest import drawn, live, replayed, session_of, shown, toasts
from tests.tui.journals import PLAY, Script, finished_run, running_run

SIZE = (120, 40)
Journalled = Callable[[Callable[[Path], Script], str], Script]


def skills_of(app: KrillApp) -> SkillsScreen:
    assert isinstance(app.screen, SkillsScreen)
    return app.screen


# Episode


async def test_an_episode_shows_what_was_told_thought_and_done() -> None:
    app = replayed(finished_run())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("enter")
        assert isinstance(app.screen, EpisodeScreen)
        text = await drawn(pilot)
        for words in ("won (success)", "Look where it usually is", "✔ valid", "Admissible actions (5)",
                      "You put the potato 2 in the fridge 1."):  # fmt: skip
            assert words in text


async def test_scrubbing_goes_through_the_steps_and_stops_at_the_ends() -> None:
    app = replayed(finished_run())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("2", "enter", "home")
        assert "step 1/3" in await drawn(pilot)
        assert PLAY[0][1].split(" [")[0] in shown(app)
        await pilot.press("left")
        assert "step 1/3" in await drawn(pilot)
        await pilot.press("right")
        text = await drawn(pilot)
        assert "step 2/3" in text
        assert "> open fridge 1" in text
        await pilot.press("end", "right")
        assert "step 3/3" in await drawn(pilot)


async def test_a_live_episode_is_followed_until_a_person_looks_back() -> None:
    script = running_run()
    app = live(script, "rl")
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("enter")
        assert "step 5/5" in await drawn(pilot)
        script.step("e0015", 5)
        assert "step 6/6" in await drawn(pilot)
        await pilot.press("left")
        script.step("e0015", 6)
        assert "step 5/7" in await drawn(pilot)
        await pilot.press("f")
        assert "step 7/7" in await drawn(pilot)
        assert "following" in shown(app)


async def test_an_invalid_step_shows_the_whole_reply() -> None:
    script = running_run()
    script.step("e0017", 3, valid=False)
    app = live(script, "rl")
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("down", "down", "enter")
        text = await drawn(pilot)
        assert "✖ invalid" in text
        assert "none could be read" in text
        assert "<think>need it hot first" in text


async def test_brackets_go_to_the_neighbouring_episodes() -> None:
    app = live(running_run())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("enter", "left_square_bracket")
        assert "#14 put a mug" in await drawn(pilot)
        await pilot.press("right_square_bracket", "right_square_bracket")
        assert "#16 put a cool tomato" in await drawn(pilot)


async def test_an_episode_stays_in_view_when_it_ends() -> None:
    script = running_run()
    app = live(script, "rl")
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("enter")
        script.finish_episode("e0015", won=False, steps=5)
        assert "lost (step limit)" in await drawn(pilot)


# Skills


async def test_a_skill_is_edited_and_the_edit_undone() -> None:
    app = live(running_run())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("f2", "e")
        assert isinstance(app.screen, SkillForm)
        app.screen.query_one("#name", Input).value = "Open every door"
        app.screen.query_one("#principle", TextArea).text = "Open [all] of them."
        await pilot.press("ctrl+s")
        assert skills_of(app).skill == session_of(app).state.skills["gen_001"]
        text = await drawn(pilot)
        assert "Open every door" in text
        assert "Open [all] of them." in text
        await pilot.press("u")
        assert session_of(app).state.skills["gen_001"].name == "Open what is shut"
        assert "undone" in toasts(app)


async def test_a_skill_is_added_in_the_tier_of_the_cursor() -> None:
    app = live(running_run())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("f2", "slash", *"heat_", "enter", "a")
        await pilot.press(*"Wait", "tab", *"Go", "ctrl+s")
        added = session_of(app).state.skills["gen_099"]
        assert (added.name, added.principle, added.tier) == ("Wait", "Go", "Heat")


async def test_the_skill_a_search_goes_to_is_the_one_shown() -> None:
    app = live(running_run())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("f2", "slash", *"heat")
        assert "After taking the object go to the microwave" in await drawn(pilot)


async def test_a_form_without_a_principle_is_not_saved_and_escape_changes_nothing() -> None:
    app = live(running_run())
    async with app.run_test(size=SIZE) as pilot:
        before = len(session_of(app).script.events)
        await pilot.press("f2", "a", "n", "ctrl+s")
        assert isinstance(app.screen, SkillForm)
        assert "needs a name and a principle" in shown(app)
        await pilot.press("escape")
        assert "What you typed would be lost" in shown(app)
        await pilot.press("escape")
        assert isinstance(app.screen, SkillForm)
        assert app.screen.query_one("#name", Input).value == "n"
        await pilot.press("escape", "y")
        assert isinstance(app.screen, SkillsScreen)
        await pilot.press("a", "escape")
        assert isinstance(app.screen, SkillsScreen), "nothing was typed: nothing is asked"
        assert len(session_of(app).script.events) == before


async def test_a_search_without_a_hit_says_so() -> None:
    app = live(running_run())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("f2", "slash", *"nowhere")
        text = await drawn(pilot)
        assert "No skill matches “nowhere”." in text
        assert "No skills yet" not in text
        await pilot.press("escape")
        assert "Open what is shut" in await drawn(pilot)


async def test_lines_that_are_pasted_are_joined() -> None:
    app = live(running_run())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("f2", "a")
        name = app.screen.query_one("#name", Input)
        name.post_message(events.Paste("Look first,\r\n\n  then take\n"))
        await pilot.pause()
        assert name.value == "Look first, then take"


async def test_a_skill_is_disabled_enabled_and_retired() -> None:
    app = live(running_run())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("f2")
        seen = []
        for key in ("x", "x", "D", "x"):
            await pilot.press(key)
            seen.append(session_of(app).state.skills["gen_001"].status)
        assert seen == [SkillStatus.DISABLED, SkillStatus.ACTIVE, SkillStatus.RETIRED, SkillStatus.ACTIVE]


async def test_a_watched_bank_is_read_only() -> None:
    app = replayed(running_run())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("f2", "a", "e", "x", "u")
        assert isinstance(app.screen, SkillsScreen)
        assert "only in the app that works on the run" in toasts(app)


async def test_a_skill_says_how_its_episodes_went() -> None:
    app = live(running_run())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("f2")
        text = await drawn(pilot)
        assert "won 8 of 14 episodes with it in the prompt" in text
        assert "from e0001, e0003" in text


# Training


async def test_metrics_are_chosen_and_the_oldest_gives_way() -> None:
    app = live(running_run())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("f3")
        screen = app.screen
        assert isinstance(screen, TrainingScreen)
        assert screen.chosen == ["success", "validation/success", "reward", "kl"]
        await pilot.press("x")
        assert screen.chosen == ["validation/success", "reward", "kl"]
        await pilot.press("G", "enter", "up", "x")
        assert screen.chosen == ["reward", "kl", "sft/learning_rate", "sft/grad_norm"]
        await pilot.pause()
        assert len([plot for plot in screen.query(CurvePlot) if plot.display]) == 4


async def test_hiding_every_metric_shows_none() -> None:
    app = live(running_run())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("3", "slash", *"ent", "enter", "enter")
        screen = app.screen
        assert isinstance(screen, TrainingScreen)
        assert screen.chosen == ["entropy"]
        await pilot.press("x")
        assert screen.chosen == []
        assert "Nothing chosen" in await drawn(pilot)


def test_downsampling_keeps_every_spike() -> None:
    points = [(float(x), 0.0) for x in range(1000)]
    points[637] = (637.0, 9.0)
    kept = downsample(points, 20)
    assert len(kept) <= 40
    assert (637.0, 9.0) in kept
    assert [x for x, _ in kept] == sorted(x for x, _ in kept)


def test_telling_metrics_come_first_and_those_of_sft_last() -> None:
    names = ["sft/loss", "zeta", "kl", "success", "alpha", "sft/alpha"]
    assert ordered_metrics(names) == ["success", "kl", "alpha", "zeta", "sft/loss", "sft/alpha"]


# Runs


async def test_a_run_is_opened_and_the_own_run_taken_up_again(journalled: Journalled) -> None:
    script = journalled(running_run, "swift-otter")
    journalled(finished_run, "calm-heron")
    app = live(script, "rl")
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("f4")
        runs = app.screen.query_one(RunList)
        assert {row.key for row in runs.rows} == {"swift-otter", "calm-heron"}
        assert "✔ completed" in await drawn(pilot)
        runs.select("calm-heron")
        await pilot.press("enter")
        assert isinstance(app.screen, DashboardScreen)
        assert isinstance(app.bridge.source, WatchSource)
        await pilot.press("f4")
        app.screen.query_one(RunList).select("swift-otter")
        await pilot.press("w")
        assert isinstance(app.bridge.source, SessionSource)
        assert session_of(app).said == []
        script.emit(ev.Noted(message="still here"))
        assert "still here" in await drawn(pilot)


async def test_a_run_is_replayed_from_the_list(journalled: Journalled) -> None:
    journalled(finished_run, "calm-heron")
    app = KrillApp()
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("f4", "p")
        assert app.bridge.replay is not None


async def test_no_runs_is_said() -> None:
    app = KrillApp()
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("f4")
        assert isinstance(app.screen, RunsScreen)
        assert "No runs here yet" in await drawn(pilot)


# Help and palette


async def test_help_lists_every_key_of_the_screen() -> None:
    app = live(running_run())
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("question_mark")
        assert isinstance(app.screen, HelpScreen)
        text = str(app.screen.query(Static)[1].render())
        for key in keys.scoped(*DashboardScreen.SCOPES, "list"):
            assert key.help in text
        await pilot.press("question_mark")
        assert isinstance(app.screen, DashboardScreen)


async def test_the_palette_goes_to_a_skill_and_to_a_command() -> None:
    app = live(running_run())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press("ctrl+p", *"at_002")
        await app.workers.wait_for_complete()
        await pilot.pause()
        await pilot.press("enter")
        await pilot.pause()
        skill = skills_of(app).skill
        assert skill is not None
        assert skill.id == "heat_002"


async def test_function_keys_go_from_screen_to_screen_and_q_goes_back() -> None:
    app = live(running_run())
    async with app.run_test(size=SIZE) as pilot:
        kinds = []
        for key in ("f2", "f3", "f4", "f2"):
            await pilot.press(key)
            kinds.append(type(app.screen))
            assert len(app.screen_stack) == 2
        assert kinds == [SkillsScreen, TrainingScreen, RunsScreen, SkillsScreen]
        await pilot.press("q")
        assert isinstance(app.screen, DashboardScreen)
        assert app.is_running


@pytest.mark.parametrize("keys", [[], ["question_mark"]])
async def test_a_size_that_the_terminal_no_longer_has_is_not_drawn(keys: list[str]) -> None:
    """A window that is dragged quickly leaves such events behind, and each layout for one would beget another."""
    app = live(running_run())
    async with app.run_test(size=SIZE) as pilot:
        await pilot.press(*keys)
        app.screen.post_message(events.Resize(Size(60, 20), Size(60, 20)))
        await pilot.pause()
        assert app.screen.size == Size(*SIZE)
        await pilot.resize_terminal(60, 20)
        assert app.screen.size == Size(60, 20)
