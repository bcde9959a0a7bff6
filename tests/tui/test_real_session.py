"""The app in front of the real engine: the embedded world, the program that plays at random, no model."""

from __future__ import annotations

from pathlib import Path

from krill_tui.config.load import load_config
from krill_tui.engine.session import Session
from krill_tui.skill import SkillStatus
from krill_tui.tui.app import KrillApp
from krill_tui.tui.screens.dashboard import DashboardScreen
from tests.tui.conftest import drawn

OVERRIDES = {
    "policy": {"kind": "random"},
    "collect": {"episodes": 3},
    "env": {"max_steps": 4, "concurrency": 3},
}


async def test_a_phase_is_launched_watched_to_its_end_and_its_bank_edited(tmp_path: Path) -> None:
    session = await Session.open("first-light", load_config(overrides=OVERRIDES, environ={}))
    try:
        app = KrillApp(session)
        async with app.run_test(size=(120, 40)) as pilot:
            await pilot.press("c")
            assert await session.wait() == "completed"
            text = await drawn(pilot)
            assert isinstance(app.screen, DashboardScreen)
            assert "3 done" in text
            assert "phase 1/4 Collect" in text
            await pilot.press("enter")
            assert "step 4/4" in await drawn(pilot)
            await pilot.press("escape", "f2", "a", *"Look", "tab", *"First", "ctrl+s")
            assert "First" in await drawn(pilot)
            await pilot.press("u")
            assert session.state.skills["gen_001"].status is SkillStatus.RETIRED
        journal = (tmp_path / "runs" / "first-light" / "events.jsonl").read_text()
        assert '"change":"undo"' in journal
        assert '"author":"hand"' in journal
    finally:
        await session.close()


async def test_autostart_runs_and_a_cancelled_phase_leaves_the_app_usable() -> None:
    session = await Session.open("cut-short", load_config(overrides=OVERRIDES, environ={}))
    try:
        session.pause()
        app = KrillApp(session, autostart=["collect"])
        async with app.run_test(size=(120, 40)) as pilot:
            await pilot.press("X", "y")
            assert await session.wait() == "cancelled"
            assert "– cancelled" in await drawn(pilot)
            assert not session.state.paused
            await pilot.press("c")
            assert await session.wait() == "completed"
            assert "✔ completed" in await drawn(pilot)
    finally:
        await session.close()
