"""How each screen looks; accept a change with `pytest tests/tui/test_snapshots.py --snapshot-update`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from textual.pilot import Pilot

from krill_tui.tui.app import KrillApp
from tests.tui.conftest import drawn, live, replayed
from tests.tui.journals import Script, finished_run, hostile_run, running_run

SCREENS = {
    "dashboard": ((120, 40), ()),
    "dashboard_80x24": ((80, 24), ()),
    "dashboard_light": ((120, 40), ("f9",)),
    "episode": ((120, 40), ("down", "enter", "left")),
    "skills": ((120, 40), ("f2", "slash", *"heat", "enter")),
    "training": ((120, 40), ("f3",)),
    "help": ((120, 40), ("question_mark",)),
    "evolution_detail": ((120, 40), ("4", "up", "up", "up", "enter")),
}


async def settled(pilot: Pilot[None]) -> None:
    """Until drawing once more changes nothing: charts are laid out a few messages after they are shown."""
    before = ""
    while (now := await drawn(pilot)) != before:
        before = now


@pytest.mark.parametrize("name", SCREENS)
def test_a_screen_looks_as_it_did(name: str, snap_compare: Callable[..., bool]) -> None:
    size, press = SCREENS[name]
    assert snap_compare(replayed(finished_run()), press=press, terminal_size=size, run_before=settled)


def test_a_run_that_goes_on_looks_as_it_did(snap_compare: Callable[..., bool]) -> None:
    assert snap_compare(replayed(running_run()), terminal_size=(120, 40), run_before=settled)


def test_the_form_of_a_skill_looks_as_it_did(snap_compare: Callable[..., bool]) -> None:
    assert snap_compare(live(finished_run()), press=("f2", "e"), terminal_size=(120, 40), run_before=settled)


def test_the_first_screen_looks_as_it_did(snap_compare: Callable[..., bool]) -> None:
    script = Script()
    script.open()
    assert snap_compare(live(script), terminal_size=(120, 40), run_before=settled)


def test_hostile_text_looks_as_it_did(snap_compare: Callable[..., bool]) -> None:
    assert snap_compare(replayed(hostile_run()), terminal_size=(120, 40), run_before=settled)


def test_the_list_of_runs_looks_as_it_did(
    snap_compare: Callable[..., bool],
    journalled: Callable[..., Script],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    import os

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KRILL_RUNS", "runs")
    for position, (build, name) in enumerate([(running_run, "swift-otter"), (finished_run, "calm-heron")]):
        journalled(build, name)
        time = 1_790_000_000 + 3600 * position
        os.utime(tmp_path / "runs" / name / "events.jsonl", (time, time))
    assert snap_compare(KrillApp(), press=("f4",), terminal_size=(120, 40), run_before=settled)
