"""`python -m krill_tui.cli.ablate_job`: works on one run of an ablation.

The first line of its input is the order (`engine.ablate.job_order`); the end of its input, at the latest when the
process that started it is gone, asks it to save and stop. It prints progress as lines and leaves `ablation.json` in
the run's folder.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import Any

from krill_tui.errors import RunLockedError
from krill_tui.io.explain import explained
from krill_tui.io.secrets import masked
from krill_tui.io.streams import finish_streams, prepare_streams, say
from krill_tui.io.text import one_line

RESULT_FILE = "ablation.json"
_LOCKED_SECONDS = 60.0
"""How long another process, that was told to stop, may take to let go of the run."""


async def _work(order: dict[str, Any]) -> int:
    from krill_tui import headless
    from krill_tui.config.schema import KrillConfig
    from krill_tui.engine.ablate import job_result
    from krill_tui.engine.run_store import run_path
    from krill_tui.io.files import write_atomically

    config = KrillConfig.model_validate_json(json.dumps(order["config"]))
    folder = run_path(order["run"])
    _begin_with_bank(folder, order["bank"])
    session = await _open(
        order["run"], config, Path(order["trajectories"]) if order["trajectories"] else None
    )
    try:
        loop = asyncio.get_running_loop()
        stopping: list[asyncio.Task[None]] = []

        def stop() -> None:
            stopping.append(loop.create_task(session.cancel()))

        threading.Thread(target=_wait_for_the_end, args=(loop, stop), daemon=True).start()
        view = headless.Guarded(headless.LineView(headless.make_console(), session.state, every=25))
        outcome = await headless.run_session(session, order["stages"], view, resume=True)
        if outcome != "completed":
            if session.error:
                raise session.error
            return headless.EXIT_CODES[outcome]
        result = job_result(
            session.store.events_file,
            [*session.episodes.read("evaluate"), *session.episodes.broken("evaluate")],
        )
        write_atomically(folder / RESULT_FILE, result.model_dump_json() + "\n")
        return 0
    finally:
        await session.close()


async def _open(run: str, config: Any, trajectories: Path | None) -> Any:
    from krill_tui.engine.session import Session

    deadline = time.monotonic() + _LOCKED_SECONDS
    while True:
        try:
            return await Session.open(run, config, trajectories=trajectories)
        except RunLockedError:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.5)


def _begin_with_bank(folder: Path, bank: str) -> None:
    """A new run begins with a copy of another run's bank, its history included."""
    own = folder / "skill_bank.json"
    if not bank or own.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / ".skill_bank.copy"
    shutil.copyfile(bank, beside)
    os.replace(beside, own)


def _wait_for_the_end(loop: asyncio.AbstractEventLoop, stop: Any) -> None:
    while sys.stdin.buffer.read(1):
        pass
    if not loop.is_closed():
        loop.call_soon_threadsafe(stop)


def main() -> int:
    try:
        return asyncio.run(_work(json.loads(sys.stdin.buffer.readline())))
    except Exception as error:  # the boundary of this process: its last line is what the table's process says
        told = explained(error)
        say(one_line(masked(str(told)), limit=2000))
        return told.exit_code


if __name__ == "__main__":
    prepare_streams()
    sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    code = main()
    finish_streams()
    os._exit(code)  # a thread may still wait for input
