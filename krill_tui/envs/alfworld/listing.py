"""Which game files of a data folder are played: those that the genuine environment plays.

`AlfredTWEnv` of the package `alfworld` leaves out folders with `movable` or `Sliced` in their names, folders without a
`traj_data.json`, task types it does not know, and games without a true `solvable`. The official counts (140 `valid_seen`,
134 `valid_unseen`) are what remains. A file that is no whole game is left out as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic_core import from_json

from krill_tui import paths
from krill_tui.envs.alfworld.text import CATEGORY_OF_TYPE
from krill_tui.errors import StorageError, UsageError
from krill_tui.io.files import write_atomically
from krill_tui.io.text import one_line

GAME_FILE = "game.tw-pddl"
TRAJECTORY_FILE = "traj_data.json"

MOVABLE = "movable or sliced"
NO_TRAJECTORY = f"without {TRAJECTORY_FILE}"
OTHER_TYPE = "of another task type"
UNCHECKED = "without the key solvable"
UNSOLVABLE = "not solvable"
BROKEN = "broken"
"""Never played; the other reasons are the genuine environment's, and `env.all_games` goes without them."""

_CACHE_VERSION = 1
_NAMED = 3
"""Broken files that a notice names."""
_MOST_BYTES = 64 * 2**20
"""A game file is some 60 KB."""


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What a game file says about itself."""

    problem: str = ""
    """Why it is no whole game; empty where it is one."""
    solvable: bool | None = None
    """None: it does not say."""
    digest: str = ""
    """SHA-256 of its bytes."""


@dataclass(slots=True)
class Listing:
    """The game files below a folder, by split; paths are relative to it."""

    games: dict[str, list[str]] = field(default_factory=dict)
    """Those that are played, sorted."""
    skipped: dict[str, dict[str, str]] = field(default_factory=dict)
    """Split -> file -> reason, of those that are not."""
    unofficial: dict[str, int] = field(default_factory=dict)
    """Split -> games that are played though the genuine environment skips them (`all_games`)."""
    problems: dict[str, str] = field(default_factory=dict)
    """File -> what is wrong with it, of the broken ones."""
    copies: int = 0
    """Games that are played and have the same content as another one."""

    def counts(self) -> dict[str, dict[str, int]]:
        """Split -> reason -> number of files that are skipped."""
        return {split: dict(sorted(Counter(files.values()).items())) for split, files in self.skipped.items()}

    def notices(self) -> list[str]:
        """What somebody should know who plays these games; one line each."""
        told: list[str] = []
        parts = []
        for split, reasons in self.counts().items():
            official = {reason: n for reason, n in reasons.items() if reason != BROKEN}
            if official:
                files = len(self.games.get(split, ())) + sum(reasons.values())
                why = ", ".join(f"{n} {reason}" for reason, n in official.items())
                parts.append(f"{one_line(split)} {sum(official.values())} of {files} ({why})")
        if parts:
            told.append(
                f"game files skipped, as the genuine environment does: {'; '.join(parts)};"
                " env.all_games=true plays them too"
            )
        if self.problems:
            named = [f"{one_line(file)}: {why}" for file, why in list(self.problems.items())[:_NAMED]]
            more = len(self.problems) - len(named)
            told.append(
                f"{len(self.problems)} broken game files are left out: {'; '.join(named)}"
                + (f"; and {more} more" if more else "")
            )
        if self.unofficial:
            parts = [f"{one_line(split)} {n}" for split, n in self.unofficial.items()]
            told.append(
                f"games are played that the genuine environment skips (env.all_games): {', '.join(parts)};"
                " rates are not those of the official splits"
            )
        if self.copies:
            told.append(f"{self.copies} games have the same content as another one")
        return told


def list_games(root: Path, *, all_games: bool = False) -> Listing:
    """The games below `root/<split>/*/*`, and what is skipped and why.

    What a file says is remembered in the user's cache by its size and time of change, so that thousands of files are
    read once. A copy of the dataset in which no folder has a `traj_data.json` is taken as it is.

    Raises:
        UsageError: the folder cannot be read.
    """
    found = _find(root)
    cache = _FactsCache(root)
    has_trajectories = {
        file for files in found.values() for file in files if _has_trajectory(f"{root}/{file}")
    }
    listing = Listing()
    digests: Counter[str] = Counter()
    for split, files in found.items():
        for file in files:
            reason = NO_TRAJECTORY if has_trajectories and file not in has_trajectories else ""
            reason = reason or reason_by_folder(f"{root}/{file}", file)
            facts = cache.facts(file) if all_games or not reason else FileFacts()
            if facts.problem:
                reason = BROKEN
                listing.problems[file] = facts.problem
            elif not reason:
                reason = _reason_by_facts(facts)
            if reason and (not all_games or reason == BROKEN):
                listing.skipped.setdefault(split, {})[file] = reason
                continue
            if reason:
                listing.unofficial[split] = listing.unofficial.get(split, 0) + 1
            listing.games.setdefault(split, []).append(file)
            digests[facts.digest] += 1
    listing.copies = sum(n - 1 for n in digests.values())
    cache.save()
    return listing


def judge(path: Path) -> str:
    """Why the genuine environment would skip the game file at `path`; empty where it would play it."""
    facts = read_facts(path)
    if facts.problem:
        return BROKEN
    named = str(Path(*path.absolute().parts[-4:]))  # split, task, trial, file
    return reason_by_folder(str(path), named) or _reason_by_facts(facts)


def reason_by_folder(path: str, name: str) -> str:
    """What its folders' names, or else its `traj_data.json`, say against a game; `name` is its path in the dataset."""
    folders = name.rpartition("/")[0]
    if "movable" in folders or "Sliced" in folders:
        return MOVABLE
    if any(folder.partition("-")[0] in CATEGORY_OF_TYPE for folder in folders.split("/")):
        return ""
    task_type = _task_type(Path(path).with_name(TRAJECTORY_FILE))
    return "" if task_type is None or task_type in CATEGORY_OF_TYPE else OTHER_TYPE


def read_facts(path: Path) -> FileFacts:
    """Read a game file as far as that tells whether it is a whole game and whether it can be solved."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            return FileFacts(problem="it is no file")
        if found.st_size > _MOST_BYTES:
            return FileFacts(problem=f"it is larger than {_MOST_BYTES // 2**20} MiB")
        raw = path.read_bytes()
    except OSError as error:
        return FileFacts(problem=f"it cannot be read: {(error.strerror or str(error)).lower()}")
    if not raw.strip():
        return FileFacts(problem="it is empty")
    try:
        data = from_json(raw, allow_inf_nan=False, cache_strings="none")
    except ValueError:
        return FileFacts(problem="it is not JSON")
    if problem := _problem(data):
        return FileFacts(problem=problem)
    solvable = bool(data["solvable"]) if "solvable" in data else None
    return FileFacts(solvable=solvable, digest=hashlib.sha256(raw).hexdigest())


def _problem(data: Any) -> str:
    """What of a game is missing; a whole one is still parsed when it is opened."""
    if not isinstance(data, dict):
        return "it is no JSON object"
    for key in ("pddl_domain", "pddl_problem", "grammar"):
        if not isinstance(data.get(key), str):
            return f"it has no text {key}"
    problem = data["pddl_problem"].lower()
    init, goal = problem.find("(:init"), problem.find("(:goal")
    if not 0 <= init < goal or (";" not in problem and problem.count("(") != problem.count(")")):
        return "its pddl_problem breaks off"
    return ""


def _reason_by_facts(facts: FileFacts) -> str:
    if facts.solvable is None:
        return UNCHECKED
    return "" if facts.solvable else UNSOLVABLE


def _find(root: Path) -> dict[str, list[str]]:
    """Split -> its game files, sorted; a folder that cannot be read counts as empty, but for the first."""
    try:
        splits = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    except OSError as error:
        raise UsageError(f"{root}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    found = {
        split: sorted(
            f"{split}/{task}/{trial}/{GAME_FILE}"
            for task in _folders(f"{root}/{split}")
            for trial in _folders(f"{root}/{split}/{task}")
            if os.path.lexists(f"{root}/{split}/{task}/{trial}/{GAME_FILE}")
        )
        for split in splits
    }
    return {split: files for split, files in found.items() if files}


def _folders(path: str) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(path) if entry.is_dir()]
    except OSError:
        return []


def _has_trajectory(path: str) -> bool:
    return os.path.isfile(f"{path.removesuffix(GAME_FILE)}{TRAJECTORY_FILE}")


def _task_type(path: Path) -> str | None:
    """What a `traj_data.json` calls its task; None where there is none, empty where it does not say."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            return ""
        data = from_json(path.read_bytes())
    except OSError:
        return None
    except ValueError:
        return ""
    task_type = data.get("task_type") if isinstance(data, dict) else None
    return task_type if isinstance(task_type, str) else ""


class _FactsCache:
    """`FileFacts` by size and time of change, in the user's cache; without one everything is read."""

    def __init__(self, root: Path) -> None:
        self._root = root
        name = hashlib.sha256(str(root.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]
        self._path = paths.user_cache_dir() / f"games-{name}.json"
        self._old = self._read()
        self._new: dict[str, list[Any]] = {}
        self._changed = False

    def facts(self, file: str) -> FileFacts:
        path = f"{self._root}/{file}"
        try:
            found = os.stat(path)
        except OSError:
            return read_facts(Path(path))
        key = [found.st_size, found.st_mtime_ns]
        facts = _known(self._old.get(file), key)
        if facts is None:
            facts = read_facts(Path(path))
            self._changed = True
        self._new[file] = [*key, facts.problem, facts.solvable, facts.digest]
        return facts

    def save(self) -> None:
        """Keep what was read, where there is a place for it."""
        if not self._changed:
            return
        with contextlib.suppress(
            OSError, StorageError, UnicodeError
        ):  # then the next start reads the files again
            self._path.parent.mkdir(parents=True, mode=0o700, exist_ok=True)
            write_atomically(self._path, json.dumps({"version": _CACHE_VERSION, "files": self._new}))

    def _read(self) -> Mapping[str, Any]:
        try:
            data = from_json(self._path.read_bytes())
        except (OSError, ValueError):
            return {}
        if not isinstance(data, dict) or data.get("version") != _CACHE_VERSION:
            return {}
        files = data.get("files")
        return files if isinstance(files, dict) else {}


def _known(entry: Any, key: Sequence[int]) -> FileFacts | None:
    """The facts of a cache entry that is still true."""
    if not isinstance(entry, list) or len(entry) != 5 or entry[:2] != list(key):
        return None
    problem, solvable, digest = entry[2:]
    if not (isinstance(problem, str) and isinstance(digest, str) and solvable in (True, False, None)):
        return None
    return FileFacts(problem, solvable, digest)


def category_of(folders: Iterable[str]) -> str:
    """The category of a game by the names of its folders, the innermost first that has one; empty where none has."""
    for folder in reversed(list(folders)):
        if category := CATEGORY_OF_TYPE.get(folder.partition("-")[0], ""):
            return category
    return ""
