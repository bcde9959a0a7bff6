"""Episodes on servers that lie, hang, die and flood, in every protocol (tests/lying_world.py).

    python -m benchmarks.reliability.environments [--count N --seed S] [--keep]

Each fault is one episode of a random player with a short answer time. It must end, in one clean line, without a win, with
little written down. `--count` faults of each protocol are drawn by the seed; without it all are tried.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, cast
from urllib.parse import quote

from benchmarks.reliability.record import show
from krill_tui.agent.policies import RandomPolicy
from krill_tui.agent.prompts import PromptOptions
from krill_tui.agent.rollout import EpisodeSpec, RolloutOptions, run_episode
from krill_tui.envs.remote import HttpSource
from krill_tui.io.text import plain
from krill_tui.models.base import Sampling
from krill_tui.trajectory import StopReason, Trajectory
from tests.lying_world import HONEST, faults, lying

ANSWER_SECONDS = 0.5
STEPS = 3
LONGEST = 30.0
"""Seconds of one episode, with many others at once on few cores."""
MOST_WRITTEN = 1_000_000
"""Bytes of one episode's trajectory and events."""
MOST_GROWTH = 600 * 1024 * 1024
"""Bytes by which the process may grow, the lying server included, which is part of it."""
LONGEST_PAUSE = 2.0
"""Seconds in which nothing else is done."""


@dataclass(slots=True)
class Facts:
    """Of one protocol."""

    tried: int = 0
    errors: int = 0
    largest: int = 0
    bad: list[str] = field(default_factory=list)


async def one(source_url: str, protocol: str, world: str, fault: str, number: int, facts: Facts) -> None:
    """Play one episode on a server with this fault, and note what is not as it should be."""
    source = HttpSource(
        f"{source_url}/{quote(fault, safe='~')}",
        env=world,
        protocol=cast(Any, protocol),
        timeout=ANSWER_SECONDS,
        concurrency=1,
    )
    task = source.tasks("test", 1, seed=number)[0]
    spec = EpisodeSpec(
        id=f"e{number}", number=number, task=task, seed=number, purpose="collect", with_skills=False
    )
    written = 0

    def emit(event: Any) -> None:
        nonlocal written
        written += len(event.model_dump_json())

    options = RolloutOptions(STEPS, PromptOptions(), Sampling())
    facts.tried += 1
    try:
        async with asyncio.timeout(LONGEST):
            rollout = await run_episode(spec, source.open, RandomPolicy(), options, emit=emit)
        written += len(rollout.trajectory.model_dump_json())
        problems = wrong(rollout.trajectory)
    except TimeoutError:
        problems = [f"no end within {LONGEST:g} s"]
    except Exception as error:
        problems = [f"{type(error).__name__}: {error}"[:200]]
    else:
        facts.errors += rollout.trajectory.stop_reason is StopReason.ERROR
        facts.largest = max(facts.largest, written)
        if written > MOST_WRITTEN:
            problems.append(f"{written} bytes written")
    facts.bad += [f"{protocol}/{world} {fault}: {problem}" for problem in problems]


def wrong(trajectory: Trajectory) -> list[str]:
    """What is wrong with an episode on a lying server."""
    problems: list[str] = []
    if trajectory.success:
        problems.append("a win that was not earned")
    if not math.isfinite(trajectory.total_reward):
        problems.append(f"a reward of {trajectory.total_reward}")
    error = trajectory.error or ""
    if (trajectory.stop_reason is StopReason.ERROR) != bool(error):
        problems.append("an error without words")
    if "inside Krill" in error or "Traceback" in error:
        problems.append(error[:200])
    if len(error) > 600 or "\n" in error or plain(error) != error:
        problems.append(f"not one clean line: {error[:200]!r}")
    return problems


async def measure(count: int | None, seed: int = 0) -> dict[str, object]:
    """The facts of the figure; `faults` names what is not as it should be."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began = time.perf_counter()
    facts: dict[str, object] = {}
    bad: list[str] = []
    pauses: list[float] = []
    watching = asyncio.create_task(_watch(pauses))
    for protocol, world in HONEST:
        known = faults(protocol, world)
        chosen = known if count is None else Random(seed).sample(known, min(count, len(known)))
        found = Facts()
        async with lying(protocol, world) as url:
            await _all_of(url, protocol, world, chosen, found)
        facts[f"{protocol}, {world}: faults tried"] = found.tried
        facts[f"{protocol}, {world}: ended as an error"] = found.errors
        facts[f"{protocol}, {world}: most written for an episode (kB)"] = round(found.largest / 1000)
        bad += found.bad
    watching.cancel()
    growth = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    facts["memory grew by (MB)"] = round(growth / 1e6)
    facts["longest pause of the event loop (s)"] = round(max(pauses, default=0.0), 2)
    facts["seconds"] = round(time.perf_counter() - began)
    if growth > MOST_GROWTH:
        bad.append(f"memory grew by {growth / 1e6:.0f} MB")
    if max(pauses, default=0.0) > LONGEST_PAUSE:
        bad.append(f"nothing else was done for {max(pauses):.1f} s")
    return {**facts, "faults": bad}


async def _all_of(url: str, protocol: str, world: str, chosen: Sequence[str], facts: Facts) -> None:
    places = asyncio.Semaphore(24)

    async def placed(fault: str, number: int) -> None:
        async with places:
            await one(url, protocol, world, fault, number, facts)

    async with asyncio.TaskGroup() as group:
        for number, fault in enumerate(chosen):
            group.create_task(placed(fault, number))


async def _watch(pauses: list[float]) -> None:
    """Note how late the event loop comes back."""
    while True:
        began = time.perf_counter()
        await asyncio.sleep(0.05)
        pauses.append(time.perf_counter() - began - 0.05)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    facts = asyncio.run(measure(options.count, options.seed))
    show("Servers of worlds that lie, hang and die", facts, keep=options.keep)
    return 1 if facts["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
