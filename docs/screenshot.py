"""Draw the dashboard of a recorded run as SVG: `python docs/screenshot.py RUN FILE [--at SHARE] [--size 150x44]`."""

from __future__ import annotations

import argparse
import asyncio
from pathlib import Path

from krill_tui.engine.run_store import existing_run
from krill_tui.events.journal import read_journal
from krill_tui.tui.app import KrillApp
from krill_tui.tui.replay import ReplaySource


async def draw(run: Path, share: float, size: tuple[int, int]) -> str:
    """The app over the first `share` of the run's events."""
    events = list(read_journal(run / "events.jsonl"))
    source = ReplaySource(events=events[: max(1, int(len(events) * share))])
    app = KrillApp(source=source)
    async with app.run_test(size=size) as pilot:
        source.seek(len(source.events))
        await pilot.pause(1.0)
        return app.export_screenshot(title=f"krill · {run.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run")
    parser.add_argument("file", type=Path)
    parser.add_argument("--at", type=float, default=1.0)
    parser.add_argument("--size", default="150x44")
    arguments = parser.parse_args()
    width, height = map(int, arguments.size.split("x"))
    arguments.file.write_text(asyncio.run(draw(existing_run(arguments.run), arguments.at, (width, height))))


if __name__ == "__main__":
    main()
