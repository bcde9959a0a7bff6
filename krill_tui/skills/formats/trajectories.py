"""Trajectory files: ours, the Rust project's, conversations (ETO, AgentGym, chat messages), SkillRL's memories.

What cannot be an episode is left out, counted and named; the rest is read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from krill_tui.errors import DataError
from krill_tui.io.files import write_output
from krill_tui.skills.formats.agentgym import from_agentgym
from krill_tui.skills.formats.conversations import TURNS
from krill_tui.skills.formats.eto import from_eto, from_messages
from krill_tui.skills.formats.memories import from_memory
from krill_tui.skills.formats.records import (
    ConvertReport,
    Refused,
    convert_each,
    finite,
    read_records,
    validated,
)
from krill_tui.skills.formats.rust import from_rust, to_rust
from krill_tui.trajectory import Trajectory

FOREIGN: Mapping[str, Callable[[Any], Trajectory]] = {
    "eto": from_eto,
    "rust": from_rust,
    "skillrl": from_memory,
    "agentgym": from_agentgym,
    "messages": from_messages,
}
"""What reads a record, by the format's name on the command line."""

DEFAULT_MAX = {"eto": 100}
"""How many records are converted where nobody says; all of the other formats."""


def load_trajectories(path: str | Path) -> list[Trajectory]:
    """The trajectories of `read_trajectories`, where nobody asks what was left out."""
    return list(read_trajectories(path).trajectories)


def read_trajectories(path: str | Path) -> ConvertReport[Trajectory]:
    """Read a JSON list or one JSON object a line, in any known format; a run folder means its own.

    A last line that breaks off (the writer was killed) is left out, and so is a record that is no trajectory.

    Raises:
        DataError: missing, unreadable, of no known format, or not one record is a trajectory; says why.
    """
    path = _file(path)
    records = read_records(path)
    usual = next((kind for record in records if (kind := kind_of(record))), "krill")

    def convert(record: Any) -> Trajectory:
        return FOREIGN.get(kind_of(record) or usual, _from_krill)(record)

    report = convert_each(records, convert, key=_id)
    if records and not report.trajectories:
        index, why = report.refused[0]
        if usual in FOREIGN and usual != "rust":
            raise DataError(f"{path}: no record can be converted; record {index}: {why}")
        raise DataError(f"{path}: record {index} is no trajectory: {why}")
    return report


def save_trajectories(path: str | Path, trajectories: Sequence[Trajectory]) -> None:
    """Write a JSON list, one trajectory a line; the same trajectories give the same bytes.

    Raises:
        DataError: the file cannot be written.
    """
    _save(path, [trajectory.model_dump(mode="json") for trajectory in trajectories])


def convert_file(path: str | Path, kind: str, limit: int | None = None) -> ConvertReport[Trajectory]:
    """Convert the first `limit` good records of a file of the format `kind` (a key of `FOREIGN`).

    Raises:
        DataError: it cannot be read, or holds no record of the kind; one bad record is a line of the report.
    """
    read = FOREIGN[kind]

    def convert(record: Any) -> Trajectory:
        other = kind_of(record)
        if other == "agentgym" and kind == "eto":
            raise Refused("it is a record of agentgym")
        return read(record)

    path = _file(path)
    records = read_records(path)
    return _unless_none(path, kind, records, convert_each(records, convert, key=_id, limit=limit))


def convert_to_rust(path: str | Path, limit: int | None = None) -> ConvertReport[dict[str, Any]]:
    """As `convert_file`, from trajectories in any known format to records of the Rust project."""

    def convert(record: Any) -> dict[str, Any]:
        return to_rust(FOREIGN.get(kind_of(record) or "", _from_krill)(record))

    path = _file(path)
    records = read_records(path)
    report = convert_each(records, convert, key=lambda converted: converted["id"], limit=limit)
    return _unless_none(path, "to-rust", records, report)


def save_rust(path: str | Path, records: Sequence[dict[str, Any]]) -> None:
    """Write what `convert_to_rust` made.

    Raises:
        DataError: the file cannot be written.
    """
    _save(path, records)


def kind_of(record: Any) -> str | None:
    """The format that a record's fields tell: `krill` or a key of `FOREIGN`; None where they tell none."""
    if not isinstance(record, dict):
        return None
    if turns := next((key for key in TURNS if key in record), None):
        return "agentgym" if "item_id" in record else "messages" if turns == "messages" else "eto"
    if "memory_id" in record:
        return "skillrl"
    if "task_description" in record:
        return "rust"
    return "krill" if "stop_reason" in record else None


def holds_trajectories(path: Path) -> bool:
    """Whether a file holds records of trajectories, even if some are wrong."""
    try:
        return any(kind_of(record) for record in read_records(path))
    except DataError:
        return False


def _unless_none(path: Path, kind: str, records: Sequence[Any], report: ConvertReport[Any]) -> Any:
    """The report, where anything was converted or there was nothing to convert."""
    if report.trajectories or not records:
        return report
    known = next((found for record in records if (found := kind_of(record))), None)
    hint = f"it looks like {known}" if known and known != kind and kind != "to-rust" else None
    why = report.refused[0][1]
    raise DataError(f"{path}: no record can be converted by {kind}; record 0: {why}", hint=hint)


def _file(path: str | Path) -> Path:
    path = Path(path)
    return path / "trajectories.jsonl" if os.path.isdir(path) else path


def _save(path: str | Path, records: Sequence[Mapping[str, Any]]) -> None:
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    write_output(Path(path), "[\n" + ",\n".join(lines) + "\n]\n" if lines else "[]\n")


def _from_krill(record: Any) -> Trajectory:
    trajectory = validated(Trajectory, record)
    finite(trajectory.total_reward, "total reward")
    for step in trajectory.steps:
        finite(step.reward, "reward")
        finite(step.latency, "latency")
    return trajectory


def _id(trajectory: Trajectory) -> str:
    return trajectory.id
