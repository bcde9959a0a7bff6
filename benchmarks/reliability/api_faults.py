"""A fifth of all calls to the model endpoints goes wrong for a moment: is anything lost, doubled or failed?

    python -m benchmarks.reliability.api_faults [--count N --seed S] [--keep]

A policy and a teacher, both behind one endpoint on loopback that plays by a rule and fails in ten ways, one call in five:
`--count` episodes are collected and each is distilled, with the retries of the defaults.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.reliability.record import show
from krill_tui.config.load import load_config
from krill_tui.config.schema import KrillConfig
from krill_tui.engine.session import Session
from krill_tui.events.journal import read_journal
from krill_tui.trajectory import StopReason
from tests.deviating_endpoint import Answer, Call, answer, chat, serving

SHARE = 0.2
"""Of the calls that go wrong."""

FAULTS: dict[str, Answer] = {
    "429": answer({"error": {"message": "slow down"}}, 429, retry_after="0.01"),
    "500": answer({"error": {"message": "boom"}}, 500),
    "503": answer({"error": "loading"}, 503),
    "a dropped connection": Answer(then="close"),
    "half an answer": Answer(200, b'{"choices": [{"mess', {"content-length": "900"}, then="close"),
    "half of the JSON": Answer(200, b'{"choices": [{"message": {"content": "<act'),
    "HTML": Answer(200, b"<html>502 Bad Gateway</html>", {"content-type": "text/html"}),
    "no choices": answer({"choices": []}),
    "nothing": Answer(200, b""),
    "an error with status 200": answer({"error": {"message": "provider error", "code": 502}}),
}


@dataclass
class Facts:
    """What came of it."""

    calls: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    episodes: int = 0
    distilled: int = 0
    wrong: list[str] = field(default_factory=list)


class Endpoint:
    """Plays one of the admissible actions, writes one skill for an episode, and fails at random."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self.calls = 0
        self.faults: Counter[str] = Counter()
        self._in_a_row: Counter[str] = Counter()

    def act(self, call: Call) -> Answer:
        self.calls += 1
        question = json.dumps(call.body["messages"])
        # Seven in a row, one call in 80,000, would be no passing fault any more.
        if self._in_a_row[question] < 5 and self._rng.random() < SHARE:
            self._in_a_row[question] += 1
            name = self._rng.choice(sorted(FAULTS))
            self.faults[name] += 1
            return FAULTS[name]
        self._in_a_row[question] = 0
        return answer(chat(_said(call.body)))


def _said(body: dict[str, Any]) -> str:
    text = "\n".join(message["content"] for message in body["messages"])
    if "when_to_apply" in text:
        number = re.search(r"Episode (\S+)", text)
        name = number.group(1) if number else "?"
        return json.dumps(
            [{"name": f"Skill of {name}", "principle": f"{name} {random.Random(name).random()}"}]
        )
    last = body["messages"][-1]["content"]
    actions = last.partition("Admissible actions:\n")[2].splitlines()
    return f"<think>by rule</think><action>{random.Random(text).choice(actions)}</action>"


async def run(count: int, seed: int, first_wait: float = 0.5) -> Facts:
    """Collect and distill `count` episodes; `first_wait` is `model.first_wait`."""
    endpoint = Endpoint(seed)
    facts = Facts()
    async with serving(endpoint.act) as base:
        session = await Session.open("faults", _config(f"{base}/v1", count, seed, first_wait))
        try:
            session.launch(["collect", "distill"])
            outcome = await session.wait()
            if outcome != "completed":
                facts.wrong.append(f"the run {outcome}: {session.error}")
            _check(facts, session, count)
        finally:
            await session.close()
    facts.calls, facts.faults = endpoint.calls, endpoint.faults
    return facts


def _config(base: str, count: int, seed: int, first_wait: float) -> KrillConfig:
    return load_config(
        overrides={
            "seed": seed,
            "env": {"max_steps": 4, "concurrency": 32},
            "collect": {"episodes": count},
            "policy": {"kind": "openai", "temperature": 0.7},
            "teacher": {"kind": "openai", "concurrency": 32},
            "model": {"policy_api_base": base, "teacher_api_base": base, "first_wait": first_wait},
        },
        environ={},
    )


def _check(facts: Facts, session: Session, count: int) -> None:
    ended = Counter[str]()
    calls = Counter[str]()
    for event in read_journal(session.store.events_file):
        if event.kind == "episode_finished":
            ended[event.episode] += 1
        elif event.kind == "teacher_called":
            calls.update(event.trajectories)
            if event.error:
                facts.wrong.append(f"the teacher on {event.trajectories[0]}: {event.error}")
    written = Counter(trajectory.id for trajectory in session.episodes.read("collect"))
    wanted = {f"collect-{index:04d}" for index in range(count)}
    for what, seen in (("events", ended), ("trajectories", written), ("teacher's calls", calls)):
        lost = wanted - seen.keys()
        doubled = [name for name, times in seen.items() if times > 1]
        if lost or doubled or seen.keys() - wanted:
            facts.wrong.append(f"{what}: {len(lost)} lost, {len(doubled)} doubled, {len(seen)} in all")
    broken = [t.id for t in session.episodes.read("collect") if t.stop_reason is StopReason.ERROR]
    if broken:
        facts.wrong.append(f"{len(broken)} episodes broke, {broken[0]} first")
    facts.episodes, facts.distilled = len(written), len(calls)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=1000, help="episodes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", action="store_true", help="write the figure into docs/reliability.md")
    options = parser.parse_args()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["KRILL_RUNS"] = str(Path(folder))
        facts = asyncio.run(run(options.count, options.seed))
    show(
        "Passing faults of model endpoints",
        {
            "episodes": facts.episodes,
            "distilled": facts.distilled,
            "calls": facts.calls,
            "calls that went wrong": facts.faults.total(),
            "ways": len(facts.faults),
            "lost, doubled or failed": len(facts.wrong),
            "which": "; ".join(facts.wrong[:5]) or "none",
            "seconds": round(time.perf_counter() - began, 1),
        },
        keep=options.keep,
    )
    return 1 if facts.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
