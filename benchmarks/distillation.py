"""Distillation against a slow, faulty teacher: wall time as a multiple of the ideal.

`python benchmarks/distillation.py` starts an OpenAI-compatible endpoint on loopback that takes 5 s for each answer
and spoils a fifth of them (429, 500, dropped, truncated, prose around the JSON), and distils 100 trajectories at
concurrency 8. Ideal is the time of 100 faultless answers, in rounds of 8. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from krill_tui.models.builtin_embedder import BuiltinEmbedder
from krill_tui.models.endpoint import Limits
from krill_tui.models.openai_api import OpenAIChat
from krill_tui.skills.bank import SkillBank
from krill_tui.skills.distill import distill
from krill_tui.skills.llm_teacher import LLMTeacher
from tests.episodes import LOST, episode
from tests.faulty_endpoint import Fault, FaultyEndpoint

_KINDS: tuple[Fault, ...] = ("429", "500", "drop", "truncate", "prose")


def _teach(request: dict[str, object]) -> str:
    number = str(request["messages"]).partition("Episode e")[2].partition("\\n")[0]
    return json.dumps([{"name": f"Skill {number}", "principle": f"word{number} " * 5, "category": "general"}])


async def measure(count: int, latency: float, share: float, concurrency: int, seed: int) -> dict[str, object]:
    """Distil `count` trajectories once."""
    rng = random.Random(seed)
    faults: list[Fault] = [rng.choice(_KINDS) if rng.random() < share else "" for _ in range(count * 10)]
    trajectories = [
        episode(f"e{n}", success=n % 2 == 0, play=None if n % 2 == 0 else LOST) for n in range(count)
    ]
    async with FaultyEndpoint(fault=lambda n: faults[n], reply=_teach, latency=latency) as server:
        chat = OpenAIChat(
            server.url, "teacher", "key", limits=Limits(concurrency=concurrency), rng=random.Random(seed)
        )
        began = time.perf_counter()
        report = await distill(
            trajectories, SkillBank.in_memory(), LLMTeacher(chat), BuiltinEmbedder(), env="alfworld"
        )
        wall = time.perf_counter() - began
        await chat.close()
    ideal = math.ceil(count / concurrency) * latency
    requests = len(server.requests)
    return {
        "trajectories": count,
        "processed": report.calls - len(report.failures),
        "requests": requests,
        "faulty": sum(bool(fault) for fault in faults[:requests]),
        "wall_s": round(wall, 2),
        "ideal_s": round(ideal, 2),
        "ratio": round(wall / ideal, 3),
        "ratio_with_repeats_in_the_ideal": round(wall / (math.ceil(requests / concurrency) * latency), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--latency", type=float, default=5.0)
    parser.add_argument("--faults", type=float, default=0.2)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print(
        json.dumps(asyncio.run(measure(args.count, args.latency, args.faults, args.concurrency, args.seed)))
    )


if __name__ == "__main__":
    main()
