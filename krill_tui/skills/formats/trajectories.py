"""Trajectory files: ours, the Rust project's, and ETO's demonstrations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from krill_tui.errors import DataError
from krill_tui.skills.formats.eto import convert_records
from krill_tui.skills.storage import read_json, write_atomically
from krill_tui.skills.text import clean_text
from krill_tui.trajectory import Step, StopReason, TokenCounts, Trajectory


class _Loose(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _RustStep(_Loose):
    observation: str
    action: str
    reward: float = 0.0


class _RustMetadata(_Loose):
    environment: Literal["alfworld", "webshop"] = "alfworld"
    total_tokens: int = 0
    skills_used: tuple[str, ...] = ()


class _RustTrajectory(_Loose):
    id: str
    task_description: str
    task_category: str = ""
    steps: tuple[_RustStep, ...]
    total_reward: float = 0.0
    success: bool
    metadata: _RustMetadata = _RustMetadata()


def load_trajectories(path: str | Path) -> list[Trajectory]:
    """Read a JSON list or one JSON object a line, of ours, the Rust project's or ETO's; a run folder means its own.

    A last line that breaks off (the writer was killed) is left out. Of ETO files, records that cannot be
    converted are left out; `convert_eto` says which and why.

    Raises:
        DataError: missing, unreadable, of no known format, or a record is wrong; says which one.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "trajectories.jsonl"
    records = _read_records(path)
    if not records:
        return []
    first = records[0]
    if isinstance(first, dict) and "conversations" in first:
        report = convert_records(records, limit=None)
        if not report.trajectories:
            raise DataError(f"{path}: no record can be converted; record 0: {report.refused[0][1]}")
        return list(report.trajectories)
    read = (
        _from_rust if isinstance(first, dict) and "task_description" in first else Trajectory.model_validate
    )
    trajectories: list[Trajectory] = []
    for index, record in enumerate(records):
        try:
            trajectories.append(read(record))
        except ValidationError as error:
            problem = error.errors()[0]
            place = ".".join(map(str, problem["loc"])) or "value"
            raise DataError(
                f"{path}: record {index} is no trajectory: {clean_text(place, 80)}: {clean_text(problem['msg'], 200)}"
            ) from None
    return trajectories


def save_trajectories(path: str | Path, trajectories: Sequence[Trajectory]) -> None:
    """Write a JSON list, one trajectory a line; the same trajectories give the same bytes.

    Raises:
        DataError: the file cannot be written.
    """
    lines = [
        json.dumps(trajectory.model_dump(mode="json"), ensure_ascii=False) for trajectory in trajectories
    ]
    write_atomically(Path(path), "[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n")


def _read_records(path: Path) -> list[Any]:
    if path.suffix != ".jsonl":
        data = read_json(path)
        if isinstance(data, list):
            return data
        raise DataError(f"{path}: holds no list of trajectories")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not UTF-8 text") from None
    lines = text.split("\n")
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(json.loads(line))
        except (ValueError, RecursionError):
            if number == len(lines):
                break
            raise DataError(f"{path}: line {number} is not JSON") from None
    return records


def _from_rust(record: Any) -> Trajectory:
    source = _RustTrajectory.model_validate(record)
    if source.success:
        stop = StopReason.SUCCESS
    else:
        # The format does not say: a household game is only lost by its step limit.
        stop = StopReason.STEP_LIMIT if source.metadata.environment == "alfworld" else StopReason.FAILURE
    steps = tuple(
        Step(
            index=index,
            observation=step.observation,
            action=step.action,
            text=step.action,
            reward=step.reward,
        )
        for index, step in enumerate(source.steps)
    )
    return Trajectory(
        id=clean_text(source.id, 80),
        env=source.metadata.environment,
        task_id=f"rust/{clean_text(source.id, 80)}",
        split="",
        task=source.task_description,
        category=source.task_category,
        steps=steps,
        total_reward=source.total_reward,
        success=source.success,
        stop_reason=stop,
        policy="import:rust",
        skills=source.metadata.skills_used,
        tokens=TokenCounts(policy=source.metadata.total_tokens),
    )
