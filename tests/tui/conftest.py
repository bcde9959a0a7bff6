"""Apps in front of scripted runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from textual.app import App
from textual.pilot import Pilot

from krill_tui.tui.app import KrillApp
from krill_tui.tui.replay import ReplaySource
from krill_tui.tui.screens import runs
from tests.tui.fakes import FakeSession
from tests.tui.journals import CONFIG, Script


@pytest.fixture(autouse=True)
def still(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No animation, no local time zone."""
    monkeypatch.setenv("TEXTUAL_ANIMATIONS", "none")
    monkeypatch.setattr(
        runs, "local_time", lambda seconds: datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M")
    )
    yield


@pytest.fixture
def journalled(tmp_path: Path) -> Iterator[Callable[[Callable[[Path], Script], str], Script]]:
    """Writes a scripted run as a run directory below $KRILL_RUNS."""
    scripts: list[Script] = []

    def write(build: Callable[[Path], Script], name: str) -> Script:
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(CONFIG))
        scripts.append(build(folder / "events.jsonl"))
        return scripts[-1]

    yield write
    for script in scripts:
        script.close()


def live(script: Script, running: str | None = None) -> KrillApp:
    """The app in front of a session that has said all of `script`."""
    return KrillApp(FakeSession(script, running))  # pyright: ignore[reportArgumentType]


def session_of(app: KrillApp) -> FakeSession:
    session = app.session
    assert isinstance(session, FakeSession)
    return session


def replayed(script: Script, position: int | None = None) -> KrillApp:
    """The app in front of a paused replay, at its end or after `position` events."""
    source = ReplaySource(events=script.events, playing=False)
    source.seek(len(script.events) if position is None else position)
    return KrillApp(source=source)


def shown(app: App[None]) -> str:
    """Everything on the screen, as a person reads it."""
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips())


async def drawn(pilot: Pilot[None]) -> str:
    """The screen after the next beat."""
    app = pilot.app
    assert isinstance(app, KrillApp)
    app.redraw()
    await pilot.pause()
    return shown(app)


def toasts(app: KrillApp) -> str:
    """What was notified."""
    return " | ".join(note.message for note in app._notifications)
