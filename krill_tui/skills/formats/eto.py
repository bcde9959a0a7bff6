"""ETO's demonstrations (`alfworld_sft.json`, `webshop_sft.json`), and others of their kind, as trajectories.

AgentInstruct's records are read too, and lists of chat messages; thoughts are kept.
"""

from __future__ import annotations

from typing import Any

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

_SPLITS = ("train", "valid_seen", "valid_unseen", "valid_train")


def from_eto(record: Any) -> Trajectory:
    """One demonstration; the same record always gives the same trajectory.

    Raises:
        Refused: it is none.
    """
    return _read(record, "eto")


def from_messages(record: Any) -> Trajectory:
    """As `from_eto`, of chat messages."""
    return _read(record, "messages")


def _read(record: Any, kind: str) -> Trajectory:
    if not isinstance(record, dict):
        raise Refused("it is no object")
    steps, last = read_steps(without_instruction(read_turns(record)))
    game_file = record.get("game_file")
    game_file = utf8(game_file) if isinstance(game_file, str) else ""
    env, task = read_task(steps[0].observation, household=bool(game_file))
    reward = read_reward(record.get("reward"), last)
    won = reward >= 1.0
    steps[-1] = steps[-1].model_copy(update={"reward": reward})
    name = digest(record)
    return Trajectory(
        id=f"{kind}-{name}",
        env=env,
        task_id=_below_dataset(game_file) or f"{kind}/{name}",
        split=next((part for part in game_file.replace("\\", "/").split("/") if part in _SPLITS), ""),
        task=task,
        category=household_category(game_file or _id(record), task)
        if env == "alfworld"
        else shopping_category(task),
        steps=tuple(steps),
        final_observation=last,
        total_reward=reward,
        success=won,
        stop_reason=StopReason.SUCCESS if won else StopReason.FAILURE,
        policy=f"import:{kind}",
    )


def _id(record: dict[str, Any]) -> str:
    """A record's id, which may be the name of its game's folder."""
    return record["id"] if isinstance(record.get("id"), str) else ""


def _below_dataset(game_file: str) -> str:
    """The path from `json_2.1.1` on, which names the game on every machine."""
    parts = [part for part in game_file.replace("\\", "/").split("/") if part]
    start = next((i for i, part in enumerate(parts) if part.startswith("json_2")), 0)
    return "/".join(parts[start:])
