"""The verbs of a session, on the embedded worlds with the expert as policy: no model is needed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from krill_tui.config.load import load_config
from krill_tui.engine.run_store import list_runs
from krill_tui.engine.session import Session
from krill_tui.errors import DataError, RunLockedError, UsageError
from krill_tui.events import schema as ev
from krill_tui.events.journal import read_journal
from krill_tui.skill import SkillStatus
from krill_tui.skills.teacher import PROTECTED_SPLITS


def config(**sections: dict[str, object]):
    base: dict[str, dict[str, object]] = {
        "policy": {"kind": "expert"},
        "collect": {"episodes": 12},
        "env": {"concurrency": 4},
        "evaluation": {"episodes": 6},
    }
    for section, values in sections.items():
        base[section] = base.get(section, {}) | values
    return load_config(overrides=base, environ={})


@asynccontextmanager
async def session(name: str = "run", **sections: dict[str, object]) -> AsyncIterator[Session]:
    opened = await Session.open(name, config(**sections))
    try:
        yield opened
    finally:
        await opened.close()


async def seen(opened: Session, when: Callable[[ev.Event], bool]) -> None:
    """Until an event fits."""
    happened = asyncio.Event()
    stop = opened.bus.subscribe(lambda event: happened.set() if when(event) else None)
    await asyncio.wait_for(happened.wait(), 30)
    stop()


async def test_collect_and_distill_fill_the_bank_and_leave_a_report():
    async with session() as opened:
        opened.launch(["collect", "distill"])
        assert opened.running == "collect"
        assert await opened.wait() == "completed"
        assert opened.running is None
        assert opened.state.episodes_done == 12
        assert len(opened.bank) > 3
        assert set(opened.state.skills) == {skill.id for skill in opened.bank.skills()}
        report = (opened.store.path / "report.md").read_text()
        assert "collected 12 episodes" in report


async def test_the_state_read_from_the_journal_is_the_state_that_was_live():
    async with session() as opened:
        opened.launch(["collect", "distill"])
        await opened.wait()
        live = opened.state
    async with session() as again:
        assert again.state.skills == live.skills
        assert again.state.episodes_done == live.episodes_done
        assert [v.id for v in again.state.finished] == [v.id for v in live.finished]


async def test_a_second_launch_while_one_runs_is_refused():
    async with session() as opened:
        opened.launch(["collect"])
        with pytest.raises(UsageError, match="'collect' is running"):
            opened.launch(["distill"])
        await opened.wait()


async def test_a_cancelled_phase_keeps_what_was_finished_and_goes_on_from_there():
    async with session(collect={"episodes": 40}, env={"concurrency": 2}) as opened:
        opened.launch(["collect"])
        await seen(opened, lambda e: e.kind == "episode_finished")
        await opened.cancel()
        assert await opened.wait() == "cancelled"
        kept = len(opened.episodes)
        assert 0 < kept < 40
        opened.launch(["collect"])
        assert await opened.wait() == "completed"
        assert len(opened.episodes) == 40
        assert opened.state.episodes_done == 40


async def test_a_paused_run_stands_still_steps_turn_by_turn_and_goes_on():
    async with session() as opened:
        opened.pause()
        opened.launch(["collect"])
        await seen(opened, lambda e: e.kind == "episode_started")
        assert opened.state.paused
        steps = [0]
        opened.bus.subscribe(lambda e: steps.__setitem__(0, steps[0] + (e.kind == "episode_stepped")))
        stepped = asyncio.create_task(seen(opened, lambda e: e.kind == "episode_stepped"))
        await asyncio.sleep(0)
        opened.step_once()
        await stepped
        for _ in range(50):
            await asyncio.sleep(0)
        assert steps == [1]
        opened.resume()
        assert await opened.wait() == "completed"


async def test_a_second_writer_is_refused_by_name():
    async with session("busy"):
        with pytest.raises(RunLockedError, match="run 'busy' is being written"):
            await Session.open("busy", config())


async def test_training_a_policy_that_is_no_local_model_fails_with_one_line():
    async with session() as opened:
        opened.launch(["rl"])
        assert await opened.wait() == "failed"
        assert "policy 'expert' cannot be trained here" in str(opened.error)


async def test_distilling_nothing_says_what_to_do():
    async with session() as opened:
        opened.launch(["distill"])
        assert await opened.wait() == "failed"
        assert "collect some first" in str(opened.error)


async def test_the_teacher_never_sees_a_reported_split():
    async with session() as opened:
        opened.launch(["evaluate", "collect", "distill"])
        assert await opened.wait() == "completed"
        shown = {
            i
            for e in read_journal(opened.store.events_file)
            if e.kind == "teacher_called"
            for i in e.trajectories
        }
        by_id = {t.id: t for t in opened.episodes.read()}
        assert shown and not any(by_id[i].split in PROTECTED_SPLITS for i in shown)
        assert any(t.split == "test" for t in by_id.values())


async def test_the_same_evaluation_is_the_same_games_whatever_the_concurrency():
    results = []
    for name, concurrency in (("one", 1), ("many", 6)):
        async with session(name, env={"concurrency": concurrency}) as opened:
            opened.launch(["evaluate"])
            await opened.wait()
            played = opened.episodes.read("evaluate")
            results.append({t.id: (t.success, [s.action for s in t.steps]) for t in played})
    assert results[0] == results[1]


async def test_curation_by_hand_is_journalled_and_undone():
    async with session() as opened:
        skill = opened.add_skill(name="Mugs", principle="mug: shelf")
        opened.edit_skill(skill.id, principle="mug: cabinet")
        opened.set_skill_status(skill.id, SkillStatus.DISABLED)
        assert opened.state.skills[skill.id].status is SkillStatus.DISABLED
        assert opened.undo_skill_change()
        assert opened.state.skills[skill.id].status is SkillStatus.ACTIVE
        said = list(read_journal(opened.store.events_file))
        authors = [e.author for e in said if isinstance(e, ev.SkillAdded | ev.SkillChanged)]
        assert authors == ["hand"] * 4
        assert opened.state.skills[skill.id].principle == "mug: cabinet"


async def test_undoing_nothing_says_nothing():
    async with session() as opened:
        assert opened.undo_skill_change() is None


async def test_a_skill_added_by_hand_stands_in_the_next_prompts():
    async with session() as opened:
        skill = opened.add_skill(name="Doors", principle="open what is closed")
        opened.launch(["collect"])
        await opened.wait()
        assert all(skill.id in t.skills for t in opened.episodes.read("collect"))
        assert opened.bank.get(skill.id).stats.injected == 12


async def test_a_file_that_cannot_be_used_is_refused_and_leaves_no_run_behind(tmp_path: Path):
    broken = tmp_path / "bank.json"
    broken.write_text("{")
    with pytest.raises(DataError, match=r"bank\.json"):
        await Session.open("run", config(), bank=broken)
    with pytest.raises(DataError, match=r"bank\.json"):
        await Session.open("run", config(), trajectories=broken)
    assert list_runs() == [], "a run was left behind"
    async with session("run"):
        pass


async def test_a_session_may_leave_the_config_of_a_run_as_it_was():
    async with session("run"):
        pass
    measured = await Session.open("run", config(policy={"kind": "random"}), keep_config=True)
    await measured.close()
    assert measured.config.policy.kind == "random"
    stored = measured.store.load_config()
    assert stored is not None
    assert stored.policy.kind == "expert"
