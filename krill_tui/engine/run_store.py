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

import contextlib
import fcntl
import json
import os
import re
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from krill_tui import paths
from krill_tui.config.load import explain, load_config, public_dict
from krill_tui.config.schema import KrillConfig
from krill_tui.errors import DataError, RunLockedError, StorageError, UsageError
from krill_tui.io.files import read_json, remove_unfinished, write_atomically
from krill_tui.io.json_text import loads_leniently
from krill_tui.io.jsonl import whole_lines

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
    """Names of the runs, the newest first; what cannot be looked at or named is left out (`odd_folders`)."""
    return [path.name for path in _run_folders() if _NAME.fullmatch(path.name)]


def odd_folders() -> list[str]:
    """Folders that hold a run under a name that no command takes, for instance a file manager's `x (copy)`."""
    return sorted(path.name for path in _run_folders() if not _NAME.fullmatch(path.name))


def _run_folders() -> list[Path]:
    found: list[tuple[float, Path]] = []
    with contextlib.suppress(OSError):
        for path in paths.runs_dir().iterdir():
            with contextlib.suppress(OSError):
                journal = path / "events.jsonl"
                if journal.is_file():
                    found.append((journal.stat().st_mtime, path))
    return [path for _, path in sorted(found, key=lambda item: item[0], reverse=True)]


def ended_cold_start(path: Path, config: KrillConfig) -> Path | None:
    """The checkpoint that ended the cold start of a run, where its world and model are those of `config`."""
    try:
        progress, other = read_json(path / "progress.json"), read_json(path / "config.json")
        step = int(progress.get("sft_step", 0))
        ended = 0 < step >= int(progress.get("sft_total", step))
        policy = config.policy
        same = (other["env"]["name"], other["policy"]["model"]) == (config.env.name, policy.model)
        rank = (other["policy"]["lora_rank"], other["policy"]["lora_alpha"])
    except (DataError, StorageError, KeyError, TypeError, ValueError, AttributeError):
        return None
    folder = path / "checkpoints" / f"sft-{step}"
    fits = ended and same and rank == (policy.lora_rank, policy.lora_alpha)
    return folder if fits and (folder / "manifest.json").exists() else None


def stored_config(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """The config a run goes on with, as it is written down, and what is wrong with `config.json`, if anything.

    Where that file is missing or no config, the journal says what the run was started with. None for a new run.
    """
    path = folder / "config.json"
    problem = ""
    try:
        found = read_json(path)
        KrillConfig.model_validate_json(json.dumps(found))
        return found, ""
    except DataError as error:
        problem = str(error)
    except ValidationError as error:
        problem = f"{path}: {explain(error)}"
    found = journal_config(folder / "events.jsonl")
    return found, f"{problem}: going on with the config in the journal" if found else ""


def journal_config(journal: Path) -> dict[str, Any] | None:
    """The config of the newest start in a journal; None where there is none."""
    found = None
    for line in whole_lines(journal):
        if b'"kind":"run_started"' in line.data[:200]:
            with contextlib.suppress(ValueError, RecursionError):
                config = json.loads(line.data).get("config")
                found = config if isinstance(config, dict) else found
    return found


def current_checkpoint(folder: Path) -> Path | None:
    """Folder of the checkpoint that a run goes on from; None where it has none."""
    try:
        progress = read_json(folder / "progress.json")
    except DataError:
        return None
    name = progress.get("checkpoint") if isinstance(progress, dict) else None
    found = folder / "checkpoints" / name if isinstance(name, str) and "/" not in name else None
    return found if found is not None and (found / "manifest.json").is_file() else None


def has_writer(path: Path) -> bool:
    """Whether a process has the run in this folder open for writing. Nothing is made or changed there."""
    return any(_is_locked(path / name) for name in (".lock", "events.jsonl"))


def _is_locked(file: Path) -> bool:
    try:
        handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(handle)
    return False


class RunStore:
    """A run directory opened for writing; only one process at a time."""

    def __init__(self, path: Path, lock: FileLock) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def open(cls, path: Path) -> RunStore:
        """Create the folder where it is missing, lock it, and remove what a killed writer left half written.

        Raises:
            RunLockedError: another process writes to this run.
            UsageError: the folder cannot be made.
            StorageError: it cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            for folder in (path, path / "checkpoints"):
                folder.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise UsageError(f"{path}: cannot be created: {(error.strerror or '').lower()}") from None
        locked = RunLockedError(
            f"run '{path.name}' is being written by another process",
            hint=f"watch it with: krill watch {path.name}",
        )
        lock = FileLock(path / ".lock", mode=0o600)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise locked from None
        except OSError as error:
            raise StorageError(path / ".lock", error) from None
        try:
            # The lock file may have been removed under a writer; its journal is locked as well.
            if _is_locked(path / "events.jsonl"):
                raise locked
            remove_unfinished(path)
            remove_unfinished(path / "checkpoints")
            remove_unfinished(path / "adapters")
        except BaseException:
            lock.release()
            raise
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
        stored, _ = stored_config(self.path)
        return load_config(self.path / "config.json", stored=stored) if stored is not None else None

    def load_progress(self) -> dict[str, Any]:
        """What `save_progress` last wrote; {} for a new run."""
        path = self.path / "progress.json"
        if not path.exists():
            return {}
        try:
            return loads_leniently(path.read_bytes())
        except (OSError, ValueError):
            raise DataError(f"{path}: is damaged", hint="start a new run with --run NAME") from None

    def save_progress(self, progress: dict[str, Any]) -> None:
        write_atomically(self.path / "progress.json", json.dumps(progress, indent=1) + "\n")

    def close(self) -> None:
        self._lock.release()
