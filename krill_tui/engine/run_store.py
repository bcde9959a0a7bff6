"""One run directory: what is in it, who may write to it, and how it survives being killed.

config.json          resolved config, no keys
events.jsonl         the journal
trajectories.jsonl   finished episodes, one a line
tokens/              token sequences of episodes that wait for their update
skill_bank.json      TinyDB
checkpoints/         <phase>-<step>/
progress.json        where the pipeline stands (written beside and renamed)
report.md
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from krill_tui import paths
from krill_tui.config.load import load_config, public_dict
from krill_tui.config.schema import KrillConfig
from krill_tui.errors import DataError, RunLockedError, UsageError
from krill_tui.io.files import write_atomically

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def run_path(name: str) -> Path:
    """Folder of a run by name, or the path itself when it is one that holds a run.

    Raises:
        UsageError: the name cannot be a folder's name.
    """
    given = Path(os.path.expanduser(name))
    if (given / "events.jsonl").exists():
        return given
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"'{name}' is no name for a run", hint="letters, digits, dots, dashes and underscores, up to 64"
        )
    return paths.runs_dir() / name


def existing_run(name: str) -> Path:
    """Like `run_path`, but the run must be there.

    Raises:
        UsageError: no such run; names the ones there are.
    """
    path = run_path(name)
    if not (path / "events.jsonl").exists():
        known = ", ".join(list_runs()[:8])
        raise UsageError(f"there is no run '{name}'", hint=f"known: {known}" if known else "no runs yet")
    return path


def list_runs() -> list[str]:
    """Names of the runs, the newest first."""
    root = paths.runs_dir()
    if not root.is_dir():
        return []
    found = [p for p in root.iterdir() if (p / "events.jsonl").exists()]
    return [p.name for p in sorted(found, key=lambda p: (p / "events.jsonl").stat().st_mtime, reverse=True)]


def has_writer(path: Path) -> bool:
    """Whether a process has the run in this folder open for writing."""
    lock = FileLock(path / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


class RunStore:
    """A run directory opened for writing; only one process at a time."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def open(cls, path: Path) -> RunStore:
        """Create the folder where it is missing and lock it.

        Raises:
            RunLockedError: another process writes to this run.
            UsageError: the folder cannot be made or written.
        """
        try:
            (path / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{path}: cannot be created: {(error.strerror or '').lower()}") from None
        lock = FileLock(path / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunLockedError(
                f"run '{path.name}' is being written by another process",
                hint=f"watch it with: krill watch {path.name}",
            ) from None
        return cls(path, lock)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def events_file(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def trajectories_file(self) -> Path:
        return self.path / "trajectories.jsonl"

    @property
    def bank_file(self) -> Path:
        return self.path / "skill_bank.json"

    @property
    def worker_log(self) -> Path:
        return self.path / "worker.log"

    def checkpoint_dir(self, phase: str, step: int) -> Path:
        return self.path / "checkpoints" / f"{phase}-{step}"

    def save_config(self, config: KrillConfig) -> None:
        write_atomically(self.path / "config.json", json.dumps(public_dict(config), indent=2) + "\n")

    def load_config(self) -> KrillConfig | None:
        """The config the run was started with, its keys filled from the environment; None for a new run."""
        path = self.path / "config.json"
        return load_config(path) if path.exists() else None

    def load_progress(self) -> dict[str, Any]:
        """What `save_progress` last wrote; {} for a new run."""
        path = self.path / "progress.json"
        if not path.exists():
            return {}
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise DataError(f"{path}: is damaged", hint="start a new run with --run NAME") from None

    def save_progress(self, progress: dict[str, Any]) -> None:
        write_atomically(self.path / "progress.json", json.dumps(progress, indent=1) + "\n")

    def close(self) -> None:
        self._lock.release()
