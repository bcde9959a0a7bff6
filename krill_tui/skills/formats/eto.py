"""ETO's demonstrations (`alfworld_sft.json`, `webshop_sft.json`) as trajectories, their thoughts kept."""

from __future__ import annotations

from typing import Any

from krill_tui.skills.formats.conversations import (
    SHOPPING,
    household_category,
    read_reward,
    read_steps,
    read_task,
    read_turns,
)
from krill_tui.skills.formats.records import Refused, digest, utf8
from krill_tui.trajectory import StopReason, Trajectory

_SPLITS = ("train", "valid_seen", "valid_unseen", "valid_train")


def from_eto(record: Any) -> Trajectory:
    """One demonstration; the same record always gives the same trajectory.

    Raises:
        Refused: it is none.
    """
    if not isinstance(record, dict):
        raise Refused("it is no object")
    # The first pair is the instruction, which is the same in every record, and its `OK`.
    steps, last = read_steps(read_turns(record.get("conversations"))[2:])
    game_file = record.get("game_file")
    game_file = utf8(game_file) if isinstance(game_file, str) else ""
    env, task = read_task(steps[0].observation, household=bool(game_file))
    reward = read_reward(record.get("reward"), last)
    won = reward >= 1.0
    steps[-1] = steps[-1].model_copy(update={"reward": reward})
    name = digest(record)
    return Trajectory(
        id=f"eto-{name}",
        env=env,
        task_id=_below_dataset(game_file) or f"eto/{name}",
        split=next((part for part in game_file.replace("\\", "/").split("/") if part in _SPLITS), ""),
        task=task,
        category=household_category(game_file, task) if env == "alfworld" else SHOPPING,
        steps=tuple(steps),
        final_observation=last,
        total_reward=reward,
        success=won,
        stop_reason=StopReason.SUCCESS if won else StopReason.FAILURE,
        policy="import:eto",
    )


def _below_dataset(game_file: str) -> str:
    """The path from `json_2.1.1` on, which names the game on every machine."""
    parts = [part for part in game_file.replace("\\", "/").split("/") if part]
    start = next((i for i, part in enumerate(parts) if part.startswith("json_2")), 0)
    return "/".join(parts[start:])
