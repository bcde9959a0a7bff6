"""AgentGym's records (AgentTraj, AgentEval) of ALFWorld and WebShop as trajectories, their thoughts kept."""

from __future__ import annotations

import re
from typing import Any

from krill_tui.io.text import clean_text
from krill_tui.skills.formats.conversations import (
    read_reward,
    read_steps,
    read_task,
    read_turns,
    without_instruction,
)
from krill_tui.skills.formats.records import Refused, digest, utf8
from krill_tui.skills.tiers import household_category, shopping_category
from krill_tui.trajectory import StopReason, Trajectory

_TRAIN_GAMES = 2420
"""ALFWorld items below it are of the train split, the others of AgentGym's test, from `valid_train`."""


def from_agentgym(record: Any) -> Trajectory:
    """One record: `conversations` of ReAct replies, and an `item_id` such as `webshop_6`.

    Raises:
        Refused: it is none, or is of a world that Krill does not play.
    """
    if not isinstance(record, dict):
        raise Refused("it is no object")
    steps, last = read_steps(without_instruction(read_turns(record)))
    item = record.get("item_id")
    item = clean_text(utf8(item), 120) if isinstance(item, str) else ""
    env, task = read_task(steps[0].observation, household=item.startswith("alfworld_"))
    reward = read_reward(record.get("reward"), last)
    won = reward >= 1.0
    steps[-1] = steps[-1].model_copy(update={"reward": reward})
    name = digest(record)
    return Trajectory(
        id=f"agentgym-{name}",
        env=env,
        task_id=f"agentgym/{item or name}",
        split=_split(item),
        task=task,
        category=household_category(item, task) if env == "alfworld" else shopping_category(task),
        steps=tuple(steps),
        final_observation=last,
        total_reward=reward,
        success=won,
        stop_reason=StopReason.SUCCESS if won else StopReason.FAILURE,
        policy="import:agentgym",
    )


def _split(item: str) -> str:
    number = item.removeprefix("alfworld_")
    if number == item or not re.fullmatch(r"[0-9]{1,9}", number):
        return ""
    return "train" if int(number) < _TRAIN_GAMES else "valid_train"
