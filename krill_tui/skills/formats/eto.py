"""ETO's demonstrations (`alfworld_sft.json`, `webshop_sft.json`) as trajectories, their thoughts kept."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krill_tui.envs.alfworld.text import CATEGORY_OF_TYPE, parse_task, task_sentence
from krill_tui.errors import DataError
from krill_tui.skills.storage import read_json
from krill_tui.trajectory import Step, StopReason, Trajectory

DEFAULT_MAX = 100

_SPLITS = ("train", "valid_seen", "valid_unseen", "valid_train")
_OBSERVATION = re.compile(r"\s*Observation:\s*")
_ACTION = re.compile(r"Action:[ \t]*(.*)", re.DOTALL)
_THOUGHT = re.compile(r"\s*Thought:[ \t]*(.*?)(?=\n\s*Action:|\Z)", re.DOTALL)
_INSTRUCTION = re.compile(r"Instruction:\s*(?:\[SEP\])?\s*(.+?)\s*(?:\[SEP\]|\n|\Z)", re.DOTALL)
_KEYWORDS = (
    (re.compile(r"\btwo\b"), "PickTwo"),
    (re.compile(r"\b(look|examine|light|lamp|desklamp)\b"), "Look"),
    (re.compile(r"\b(clean|rinse|wash)"), "Clean"),
    (re.compile(r"\b(hot|heat|warm|microwave)"), "Heat"),
    (re.compile(r"\b(cool|cold|chill)"), "Cool"),
)


@dataclass(frozen=True, slots=True)
class ConvertReport:
    """What became of a file of demonstrations."""

    read: int
    """Records looked at."""
    trajectories: tuple[Trajectory, ...]
    refused: tuple[tuple[int, str], ...]
    """(index of the record, why) of those that are not demonstrations."""

    @property
    def converted(self) -> int:
        return len(self.trajectories)


class _Refused(Exception):
    pass


def convert_eto(path: str | Path, max: int = DEFAULT_MAX) -> ConvertReport:
    """Convert the first `max` good records of a file; the same file always gives the same trajectories.

    Raises:
        DataError: the file cannot be read or is no list; a bad record is no error but a line of the report.
    """
    data = read_json(Path(path))
    if not isinstance(data, list):
        raise DataError(f"{path}: holds no list of conversations")
    return convert_records(data, limit=max)


def convert_records(records: Sequence[Any], limit: int | None) -> ConvertReport:
    """As `convert_eto`, over records that were read already."""
    trajectories: dict[str, Trajectory] = {}
    refused: list[tuple[int, str]] = []
    read = 0
    for index, record in enumerate(records):
        if limit is not None and len(trajectories) >= limit:
            break
        read += 1
        try:
            trajectory = _convert(record)
        except _Refused as reason:
            refused.append((index, str(reason)))
            continue
        if trajectory.id in trajectories:
            refused.append((index, "the same as an earlier record"))
        else:
            trajectories[trajectory.id] = trajectory
    return ConvertReport(read, tuple(trajectories.values()), tuple(refused))


def _convert(record: Any) -> Trajectory:
    if not isinstance(record, dict):
        raise _Refused("it is no object")
    turns = _turns(record.get("conversations"))
    steps, last = _steps(turns)
    game_file = record.get("game_file")
    game_file = game_file if isinstance(game_file, str) else ""
    first = steps[0].observation
    env = "alfworld" if game_file or "Your task is to:" in first else "webshop" if "[SEP]" in first else ""
    if not env:
        raise _Refused("it is neither an ALFWorld nor a WebShop episode")
    task = task_sentence(first) if env == "alfworld" else _instruction(first)
    if not task:
        raise _Refused("its first observation holds no task")
    reward = _reward(record.get("reward"))
    won = reward >= 1.0
    steps[-1] = steps[-1].model_copy(update={"reward": reward})
    digest = hashlib.blake2b(_canonical(record), digest_size=8).hexdigest()
    return Trajectory(
        id=f"eto-{digest}",
        env=env,
        task_id=_below_dataset(game_file) or f"eto/{digest}",
        split=next((part for part in game_file.replace("\\", "/").split("/") if part in _SPLITS), ""),
        task=task,
        category=_category(game_file, task) if env == "alfworld" else "search",
        steps=tuple(steps),
        final_observation=last,
        total_reward=reward,
        success=won,
        stop_reason=StopReason.SUCCESS if won else StopReason.FAILURE,
        policy="import:eto",
    )


def _turns(conversations: Any) -> list[tuple[str, str]]:
    """(speaker, text) after the instruction and its `OK`, speakers taking turns."""
    if not isinstance(conversations, list):
        raise _Refused("it has no conversations")
    turns: list[tuple[str, str]] = []
    for number, turn in enumerate(conversations):
        speaker = turn.get("from") if isinstance(turn, dict) else None
        text = turn.get("value") if isinstance(turn, dict) else None
        if speaker not in ("human", "gpt") or not isinstance(text, str):
            raise _Refused(f"turn {number} has no speaker or no text")
        if speaker != ("human", "gpt")[number % 2]:
            raise _Refused(f"turn {number} is out of turn")
        # A lone surrogate cannot be written as UTF-8.
        turns.append((speaker, text.encode("utf-8", "replace").decode("utf-8")))
    if len(turns) < 4:
        raise _Refused("it holds no step")
    return turns[2:]


def _steps(turns: Sequence[tuple[str, str]]) -> tuple[list[Step], str]:
    """The steps, and the last observation where the file has one."""
    steps: list[Step] = []
    for number in range(0, len(turns) - 1, 2):
        observation, reply = turns[number][1], turns[number + 1][1]
        action = _ACTION.findall(reply)
        thought = _THOUGHT.match(reply)
        said = action[-1].rpartition("Action:")[2].strip() if action else ""
        steps.append(
            Step(
                index=len(steps),
                observation=_OBSERVATION.sub("", observation, count=1)
                if _OBSERVATION.match(observation)
                else observation,
                thought=thought.group(1).strip() if thought else "",
                action=said.splitlines()[0].strip() if said else "",
                text=reply,
                valid=bool(said),
            )
        )
    if not any(step.valid for step in steps):
        raise _Refused("none of its replies holds an action")
    last = turns[-1][1] if turns[-1][0] == "human" else ""
    return steps, _OBSERVATION.sub("", last, count=1) if _OBSERVATION.match(last) else last


def _instruction(observation: str) -> str:
    match = _INSTRUCTION.search(observation)
    return match.group(1).strip() if match else ""


def _reward(value: Any) -> float:
    """A demonstration without a reward was won: ETO kept no others."""
    if value is None:
        return 1.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _Refused("its reward is no number")
    return float(value)


def _category(game_file: str, task: str) -> str:
    for part in game_file.replace("\\", "/").split("/"):
        if category := CATEGORY_OF_TYPE.get(part.split("-")[0]):
            return category
    goal = parse_task(task)
    if goal is not None:
        return goal.category
    return next((category for words, category in _KEYWORDS if words.search(task.lower())), "Pick")


def _below_dataset(game_file: str) -> str:
    """The path from `json_2.1.1` on, which names the game on every machine."""
    parts = [part for part in game_file.replace("\\", "/").split("/") if part]
    start = next((i for i, part in enumerate(parts) if part.startswith("json_2")), 0)
    return "/".join(parts[start:])


def _canonical(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, ensure_ascii=True).encode()
