"""Training text of krill-tiny from procedural shops: purchases of a hurried expert, and a beginner's."""

from __future__ import annotations

import asyncio
from functools import lru_cache
from random import Random

from tiny_episodes import COMPACT, SHOP_FAULTS, VAGUE, Example

from krill_tui.agent.actions import format_reply
from krill_tui.agent.prompts import first_messages, render_turn
from krill_tui.envs.webshop.expert import WebshopExpert
from krill_tui.envs.webshop.pages import QUERY_HINT
from krill_tui.envs.webshop.source import WebshopSource
from krill_tui.skill import Skill
from krill_tui.skills.lessons import LESSONS
from krill_tui.trajectory import Task

STEP_LIMIT = 7
"""So short that the expert opens one product, chooses its options and buys: longer episodes outgrow the context."""
_LESSONS = tuple(LESSONS[fault][1] for fault in SHOP_FAULTS)
_OBSERVATION = 0.025
"""Loss weight of what the shop says: its pages are long."""
_VAGUE_WEIGHT = (1.0, 0.3)
_GOALS = 400
"""Tasks drawn from each shop."""


@lru_cache(maxsize=64)
def _shop(seed: int) -> tuple[WebshopSource, tuple[Task, ...]]:
    source = WebshopSource(seed, size=400)
    return source, tuple(source.tasks("train", _GOALS, seed=seed))


def draw_skills(rng: Random) -> list[Skill]:
    """Lessons in the form of the builtin teacher's, or none."""
    lines = rng.sample(_LESSONS, rng.choice((0, 0, 1, 2, 3)))
    start = rng.randint(1, 20)
    return [Skill(id=f"gen_{start + n:03}", name="", principle=line) for n, line in enumerate(lines)]


def draw_purchase(rng: Random, shops: range, vague: float = 0.0) -> Example:
    """One purchase of the expert, with vague steps in between at the rate `vague`."""
    source, tasks = _shop(rng.choice(shops))
    return asyncio.run(_play(rng, source, rng.choice(tasks), vague))


async def _play(rng: Random, source: WebshopSource, task: Task, vague: float) -> Example:
    env, expert = source.open(task), WebshopExpert(STEP_LIMIT)
    result = await env.reset()
    task = env.task
    example = Example(first_messages("webshop", draw_skills(rng), result, task, COMPACT), [], [])
    example.weights = [(0.0, 0.0), (_OBSERVATION, _OBSERVATION)]
    example.kinds = ["", ""]
    for _ in range(STEP_LIMIT):
        thought, action = expert.act(result)
        weight = (1.0, 1.0)
        clicks = [name for name in result.admissible if name != QUERY_HINT]
        if rng.random() < vague and clicks:
            thought, action = rng.choice(VAGUE), rng.choice(clicks)
            weight = _VAGUE_WEIGHT
        example.messages.append({"role": "assistant", "content": format_reply(thought, action)})
        example.weights.append(weight)
        example.kinds.append("")
        result = await env.step(action)
        if result.done:
            example.won = result.won
            break
        example.messages.append({"role": "user", "content": render_turn(result, task, COMPACT, first=False)})
        example.weights.append((_OBSERVATION, _OBSERVATION))
        example.kinds.append("")
    return example
