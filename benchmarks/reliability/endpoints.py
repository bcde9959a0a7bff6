"""Model servers that deviate: policy, teacher and embeddings against every way in `tests/deviating_endpoint.py`.

python -m benchmarks.reliability.endpoints [--count N --seed S] [--keep]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import resource
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from benchmarks.reliability.record import show
from tests.deviating_endpoint import DEVIATIONS, Deviation, deviating
from tests.deviating_play import CALLERS, Caller, tried


@dataclass
class Facts:
    """What came of it."""

    tried: int = 0
    calls: int = 0
    keys: set[str] = field(default_factory=set)
    """Keys that the server got."""
    wrong: dict[str, str] = field(default_factory=dict)
    """`caller: deviation` -> what is wrong."""
    slowest: float = 0.0
    """Seconds of one case."""


async def run(deviations: Sequence[Deviation], callers: Sequence[Caller], *, at_once: int) -> Facts:
    """Try each deviation with each caller that it is for."""
    facts = Facts()
    slots = asyncio.Semaphore(at_once)

    async with deviating() as endpoint:

        async def one(deviation: Deviation, caller: Caller) -> None:
            async with slots:
                began = time.perf_counter()
                problem = await tried(endpoint, deviation, caller)
                facts.slowest = max(facts.slowest, time.perf_counter() - began)
            facts.tried += 1
            if problem:
                facts.wrong[f"{caller}: {deviation.name}"] = problem

        async with asyncio.TaskGroup() as group:
            for deviation in deviations:
                for caller in callers:
                    if getattr(deviation, caller):
                        group.create_task(one(deviation, caller))
        facts.calls = endpoint.calls.total()
        facts.keys = endpoint.keys
    return facts


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=len(DEVIATIONS), help="deviations to try")
    parser.add_argument("--seed", type=int, default=0, help="of their choice")
    parser.add_argument("--keep", action="store_true", help="write the figure into docs/reliability.md")
    options = parser.parse_args()
    chosen = random.Random(options.seed).sample(DEVIATIONS, min(options.count, len(DEVIATIONS)))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    facts = asyncio.run(run(chosen, CALLERS, at_once=16))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    show(
        "Model servers that deviate",
        {
            "deviations": len(chosen),
            "cases (policy, teacher, embeddings)": facts.tried,
            "calls": facts.calls,
            "cases that came out wrong": len(facts.wrong),
            "which": "; ".join(f"{name}: {problem}" for name, problem in facts.wrong.items()) or "none",
            "slowest case, s": round(facts.slowest, 1),
            "all, s": round(time.perf_counter() - began, 1),
            "memory grown by, MB": round(grown),
        },
        keep=options.keep,
    )
    return 1 if facts.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
