"""Where a view's state comes from: a journal that grows, a replay, a burst of events."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from krill_tui.engine.state import RunState
from krill_tui.events import schema as ev
from krill_tui.tui.bridge import Bridge, EmptySource, WatchSource
from krill_tui.tui.replay import SNAPSHOT_EVERY, SPEEDS, ReplaySource, copy_state
from tests.tui.journals import Script, finished_run, running_run

Journalled = Callable[[Callable[[Path], Script], str], Script]


def reduced(events: list[ev.Event]) -> RunState:
    state = RunState()
    for event in events:
        state.apply(event)
    return state


def long_run() -> Script:
    """More events than lie between two snapshots of a replay."""
    script = running_run()
    while len(script.events) < 2.5 * SNAPSHOT_EVERY:
        script.episode(won=len(script.events) % 2 == 0)
    return script


def test_a_burst_of_events_asks_for_one_drawing() -> None:
    bridge = Bridge(EmptySource(), print)
    for _ in range(500):
        bridge.touch()
    assert bridge.take_dirty()
    assert not bridge.take_dirty()


async def test_a_growing_journal_is_followed(journalled: Journalled, tmp_path: Path) -> None:
    script = journalled(running_run, "otter")
    changed = asyncio.Event()
    source = WatchSource(tmp_path / "runs" / "otter")
    source.start(changed.set, print)
    await changed.wait()
    assert source.state == reduced(script.events)
    changed.clear()
    script.finish_phase("rl", 9.0, "over")
    await changed.wait()
    assert source.state.phase is not None
    assert source.state.phase.summary == "over"
    await source.stop()


async def test_a_damaged_journal_is_one_line_and_no_crash(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text('{"kind": "nonsense"}\n')
    said: asyncio.Queue[str] = asyncio.Queue()
    source = WatchSource(tmp_path)
    source.start(lambda: None, said.put_nowait)
    assert "line 1 is not an event" in await said.get()
    await source.stop()


async def test_a_replay_reads_its_run_from_the_journal(journalled: Journalled, tmp_path: Path) -> None:
    script = journalled(finished_run, "heron")
    read = asyncio.Event()
    source = ReplaySource(tmp_path / "runs" / "heron", playing=False)
    source.start(read.set, print)
    await read.wait()
    source.seek(len(script.events))
    assert source.state == reduced(script.events)
    await source.stop()


def test_seeking_shows_what_applying_from_the_start_shows() -> None:
    events = long_run().events
    replay = ReplaySource(events=events, playing=False)
    for position in (len(events), 3, SNAPSHOT_EVERY + 7, SNAPSHOT_EVERY - 1, 2 * SNAPSHOT_EVERY, 0, 900, 899):
        replay.seek(position)
        assert replay.position == position
        assert replay.state == (reduced(events[:position]) if position else RunState())


def test_a_copied_state_does_not_change_with_its_original() -> None:
    script = running_run()
    state = reduced(script.events)
    copied, expected = copy_state(state), reduced(script.events)
    seen = len(script.events)
    script.step("e0015", 5)
    script.finish_episode("e0016", won=True, steps=4)
    script.emit(ev.PhaseProgressed(phase="rl", done=11, total=12))
    script.emit(ev.GrpoStepped(step=9, total=12, metrics={"reward": 0.9}))
    for event in script.events[seen:]:
        state.apply(event)
    assert copied == expected
    assert state != expected


def test_playing_keeps_the_pace_and_cuts_long_waits_short() -> None:
    script = Script()
    script.open()
    for _ in range(4):
        script.emit(ev.Noted(message="tick"), seconds=2.0)
    script.emit(ev.Noted(message="much later"), seconds=3600.0)
    replay = ReplaySource(events=script.events)
    replay.speed = 2
    replay.advance(0.1)
    assert replay.position == 1
    replay.advance(1.0)
    assert replay.position == 2
    replay.advance(3.0)
    assert replay.position == 5
    for _ in range(11):
        replay.advance(0.1)
    assert replay.at_end
    assert not replay.playing


def test_speed_stays_within_its_steps() -> None:
    replay = ReplaySource(events=running_run().events)
    replay.change_speed(99)
    assert replay.speed == SPEEDS[-1]
    replay.change_speed(-99)
    assert replay.speed == SPEEDS[0]


def test_playing_again_at_the_end_starts_over() -> None:
    replay = ReplaySource(events=running_run().events, playing=False)
    replay.seek(10_000)
    replay.toggle()
    assert replay.playing
    assert replay.position == 0
