"""`trajectories.jsonl`: the finished episodes of a run, found by id without reading the whole file again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

from krill_tui.errors import UsageError
from krill_tui.io.jsonl import JsonLines, Line, parsed, read_lines, whole_lines
from krill_tui.io.secrets import masked_json
from krill_tui.trajectory import StopReason, Trajectory


class EpisodeFile:
    """Append-only; keeps where each episode stands, not the episodes themselves.

    An episode that broke (`StopReason.ERROR`) is owed: it is written down, but is not in here (`in`, `read`) before it
    was played to an end; that later line then counts.
    """

    def __init__(self, path: Path, on_read: Callable[[Trajectory, Line], None] | None = None) -> None:
        """Open the file, cutting off a torn last line; `on_read` sees every line that is already there."""
        self.path = path
        self._offsets: dict[str, int] = {}
        self._purposes: dict[str, str] = {}
        self._broken: dict[str, Trajectory] = {}
        self._tasks: dict[str, str] = {}
        self._file = JsonLines(path)
        try:
            for line in whole_lines(path):
                trajectory = parsed(line, path, Trajectory.model_validate_json, "a trajectory")
                self._note(trajectory, line.offset)
                if on_read:
                    on_read(trajectory, line)
        except BaseException:
            self._file.close(sync=False)
            raise

    def __contains__(self, episode: object) -> bool:
        return episode in self._offsets

    def __len__(self) -> int:
        """Episodes that were played to an end."""
        return len(self._offsets)

    def check_plan(self, episode: str, task_id: str) -> None:
        """An episode that is written down is done only if it is the one that is planned.

        Raises:
            UsageError: it was played on another game.
        """
        played = self._tasks.get(episode, task_id)
        if played != task_id:
            raise UsageError(
                f"episode {episode} of this run was played on {played}, not on {task_id}: its games were planned with"
                " other settings",
                hint="leave them as they were, or begin a new run from this one with --fork NAME",
            )

    def append(self, trajectory: Trajectory) -> str:
        """Write one line, whole; returns its digest.

        Raises:
            StorageError: it could not be written; the file is as it was.
        """
        line = trajectory.model_dump_json().encode()
        self._note(trajectory, self._file.append(line))
        return line_digest(masked_json(line))

    def sync(self) -> None:
        """Wait until the disk holds every episode."""
        self._file.sync()

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

    def count(self, prefix: str) -> int:
        """Episodes that were played to an end, with ids that begin with `prefix`."""
        return sum(episode.startswith(prefix) for episode in self._offsets)

    def broken(self, purpose: str | None = None, *, prefix: str = "") -> list[Trajectory]:
        """Episodes that broke and were not played to an end since, without their steps."""
        return [
            t
            for episode, t in self._broken.items()
            if episode.startswith(prefix) and purpose in (None, t.purpose)
        ]

    def close(self) -> None:
        self._file.close()

    def _note(self, trajectory: Trajectory, offset: int) -> None:
        if trajectory.stop_reason is StopReason.ERROR:
            if trajectory.id not in self._offsets:
                self._broken[trajectory.id] = trajectory.model_copy(update={"steps": (), "system": ""})
            return
        self._broken.pop(trajectory.id, None)
        self._offsets[trajectory.id] = offset
        self._purposes[trajectory.id] = trajectory.purpose
        self._tasks[trajectory.id] = trajectory.task_id


def line_digest(line: bytes) -> str:
    """Sixteen letters of a line of `trajectories.jsonl`, by which the journal knows it."""
    return hashlib.blake2b(line, digest_size=8).hexdigest()


def read_trajectory_lines(path: Path) -> Iterator[Trajectory]:
    """Whole lines of a `trajectories.jsonl`, in order.

    Raises:
        DataError: a whole line is no trajectory; names the line.
    """
    yield from read_lines(path, Trajectory.model_validate_json, "a trajectory")
