"""`trajectories.jsonl`: the finished episodes of a run, found by id without reading the whole file again."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import ValidationError

from krill_tui.errors import DataError
from krill_tui.events.journal import truncate_torn_line
from krill_tui.trajectory import Trajectory


class EpisodeFile:
    """Append-only; keeps where each episode stands, not the episodes themselves."""

    def __init__(self, path: Path, on_read: Callable[[Trajectory], None] | None = None) -> None:
        """Open the file, cutting off a torn last line; `on_read` sees every episode that is already there."""
        self.path = path
        self._offsets: dict[str, int] = {}
        self._purposes: dict[str, str] = {}
        truncate_torn_line(path)
        offset = 0
        for line, trajectory in _lines(path):
            self._note(trajectory, offset)
            offset += len(line)
            if on_read:
                on_read(trajectory)
        self._file = path.open("ab", buffering=0)

    def __contains__(self, episode: object) -> bool:
        return episode in self._offsets

    def __len__(self) -> int:
        return len(self._offsets)

    def append(self, trajectory: Trajectory) -> None:
        """Write one line with one system call."""
        offset = self._file.seek(0, os.SEEK_END)
        self._file.write(trajectory.model_dump_json().encode() + b"\n")
        self._note(trajectory, offset)

    def read(self, purpose: str | None = None, *, prefix: str = "") -> list[Trajectory]:
        """Episodes of one purpose, with ids that begin with `prefix`, in the order they ended."""
        wanted = [
            offset
            for episode, offset in self._offsets.items()
            if episode.startswith(prefix) and purpose in (None, self._purposes[episode])
        ]
        with self.path.open("rb") as file:
            found = []
            for offset in wanted:
                file.seek(offset)
                found.append(Trajectory.model_validate_json(file.readline()))
        return found

    def close(self) -> None:
        self._file.close()

    def _note(self, trajectory: Trajectory, offset: int) -> None:
        self._offsets[trajectory.id] = offset
        self._purposes[trajectory.id] = trajectory.purpose


def read_trajectory_lines(path: Path) -> Iterator[Trajectory]:
    """Whole lines of a `trajectories.jsonl`, in order.

    Raises:
        DataError: a whole line is no trajectory; names the line.
    """
    for _, trajectory in _lines(path):
        yield trajectory


def _lines(path: Path) -> Iterator[tuple[bytes, Trajectory]]:
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                yield line, Trajectory.model_validate_json(line)
            except ValidationError:
                raise DataError(f"{path}: line {number} is not a trajectory of this version") from None
