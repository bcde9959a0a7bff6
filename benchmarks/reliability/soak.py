"""A soak: very many episodes in one process, with the journal, the bank and the run's state beside them.

`python -m benchmarks.reliability.soak --count 100000` plays procedural households by a random policy through a real
session, into a folder that is deleted afterwards, and looks at memory, open files, threads and tasks on the way. It
fails when any of them grows: what a run has to keep of each finished episode, its name and where it stands in the
file, is allowed for.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.reliability.record import show
from krill_tui.config.load import load_config
from krill_tui.engine.session import Session
from krill_tui.events import schema as ev

BYTES_PER_EPISODE = 1500
"""Growth that is allowed: names, offsets and counts of finished episodes, and what the allocator keeps on top."""
_SAMPLES = 40


@dataclass(frozen=True)
class Sample:
    episodes: int
    resident: int
    """Bytes."""
    files: int
    threads: int
    tasks: int


async def soak(count: int, seed: int, folder: Path) -> dict[str, object]:
    """Play `count` episodes and return what was seen on the way; `problems` is empty when nothing grew."""
    os.environ["KRILL_RUNS"] = str(folder)
    config = load_config(
        overrides={
            "seed": seed,
            "policy": {"kind": "random"},
            "teacher": {"kind": "builtin"},
            "collect": {"episodes": count},
        },
        environ={},
    )
    process = psutil.Process()
    samples: list[Sample] = []
    finished = 0
    every = max(1, count // _SAMPLES)

    def look(event: ev.Event) -> None:
        nonlocal finished
        if isinstance(event, ev.EpisodeFinished):
            finished += 1
            if finished % every == 0:
                samples.append(
                    Sample(
                        finished,
                        process.memory_info().rss,
                        process.num_fds(),
                        threading.active_count(),
                        len(asyncio.all_tasks()),
                    )
                )

    began = time.perf_counter()
    session = await Session.open("soak", config)
    try:
        session.bus.subscribe(look)
        session.launch(["collect"])
        outcome = await session.wait()
        kept = len(session.episodes)
    finally:
        await session.close()
    seconds = time.perf_counter() - began
    # The first quarter warms up: caches fill, the allocator finds its size.
    early, late = samples[len(samples) // 4], samples[-1]
    growth = (late.resident - early.resident) / max(1, late.episodes - early.episodes)
    problems = []
    if outcome != "completed" or kept != count:
        problems.append(f"{outcome}: {kept} of {count} episodes")
    if growth > BYTES_PER_EPISODE:
        problems.append(f"memory grows by {growth:.0f} bytes an episode")
    for name in ("files", "threads", "tasks"):
        if getattr(late, name) > getattr(early, name) + 2:
            problems.append(f"{name} grow from {getattr(early, name)} to {getattr(late, name)}")
    return {
        "episodes": kept,
        "seconds": round(seconds),
        "resident after a quarter": f"{early.resident / 2**20:.0f} MiB",
        "resident at the end": f"{late.resident / 2**20:.0f} MiB",
        "growth": f"{growth:.0f} bytes an episode",
        "open files": f"{early.files} to {late.files}",
        "threads": f"{early.threads} to {late.threads}",
        "tasks": f"{early.tasks} to {late.tasks}",
        "problems": problems,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="write the result into docs/reliability.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        facts = asyncio.run(soak(arguments.count, arguments.seed, Path(folder)))
    show("A long run in one process", facts, keep=arguments.keep)
    return 1 if facts["problems"] else 0


if __name__ == "__main__":
    sys.exit(main())
