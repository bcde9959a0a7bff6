"""Where household games come from: procedural worlds (`builtin`) or genuine files (`games`; `textworld` in `genuine.py`)."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from random import Random

from krill_tui.envs.alfworld import text, worlds
from krill_tui.envs.alfworld.engine import AlfworldGame
from krill_tui.envs.alfworld.expert import AlfworldExpert, ExpertHints
from krill_tui.envs.alfworld.game import GameData
from krill_tui.envs.alfworld.listing import GAME_FILE, Listing, category_of, list_games
from krill_tui.envs.alfworld.problem import load_game
from krill_tui.envs.alfworld.worlds import SPLITS, WorldSize
from krill_tui.envs.base import Environment, StepResult
from krill_tui.errors import DataError, UsageError
from krill_tui.io.text import one_line
from krill_tui.trajectory import Task

DATA_FOLDER = "json_2.1.1"
_STRIDE = 1_000_000
"""Worlds between the orders of two seeds."""


class AlfworldEnvironment:
    """One episode of a household game, for the rollout."""

    def __init__(self, task: Task, game: GameData) -> None:
        description = game.task.strip().removesuffix(".")
        goal = text.parse_task(description)
        category = task.category or (goal.category if goal else "")
        self.task = task.model_copy(update={"description": description, "category": category})
        self._game = AlfworldGame(game)

    async def reset(self) -> StepResult:
        return self._game.reset()

    async def step(self, action: str) -> StepResult:
        return self._game.step(action)

    async def close(self) -> None:
        """Nothing is held outside the object."""


class BuiltinSource:
    """Procedural worlds of one household; every split is unbounded and shares no world with another."""

    env = "alfworld"
    backend = "builtin"

    def __init__(self, size: WorldSize = "small", seed: int = 0) -> None:
        self.size: WorldSize = size
        self.seed = seed

    def splits(self) -> dict[str, int]:
        return dict.fromkeys(SPLITS, -1)

    def tasks(self, split: str, count: int, *, seed: int = 0) -> Sequence[Task]:
        if split not in SPLITS:
            raise UsageError(f"there is no split '{split}'", hint=f"choose one of {', '.join(SPLITS)}")
        return [self._task(split, seed * _STRIDE + number) for number in range(count)]

    def _task(self, split: str, index: int) -> Task:
        return Task(
            id=f"builtin/{self.size}/{split}/{self.seed}/{index}",
            env=self.env,
            split=split,
            category=worlds.category_of(split, self.seed, index),
            ref=f"{self.seed}:{index}",
        )

    def task(self, id: str) -> Task:
        """The world of an id, of whatever household."""
        size, split, seed, index = world_of(id)
        return Task(
            id=f"builtin/{size}/{split}/{seed}/{index}",
            env=self.env,
            split=split,
            category=worlds.category_of(split, seed, index),
            ref=f"{seed}:{index}",
        )

    def game_hash(self, task: Task) -> str:
        game, category = worlds.build_world(*world_of(task.id))
        start = AlfworldGame(game).reset()
        facts = canonical((game, category, start.observation, start.admissible))
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()

    def open(self, task: Task) -> Environment:
        size, split, seed, index = world_of(task.id)
        game, _ = worlds.build_world(size, split, seed, index)
        return AlfworldEnvironment(task, game)

    def expert(self, hints: ExpertHints | None = None) -> AlfworldExpert:
        return AlfworldExpert(hints)

    def content_hash(self) -> str:
        package = Path(worlds.__file__).parent
        digest = hashlib.sha256(f"{self.size}/{self.seed}".encode())
        for name in ("worlds.py", "statistics.json", "household.twl2"):
            digest.update((package / name).read_bytes())
        return digest.hexdigest()[:16]


def world_of(id: str) -> tuple[WorldSize, str, int, int]:
    """(size, split, seed, index) of a procedural world's id.

    Raises:
        UsageError: it is none.
    """
    match = re.fullmatch(r"builtin/(small|full)/([a-z]+)/(-?\d{1,18})/(-?\d{1,18})", id, re.ASCII)
    if match is None or match[2] not in SPLITS:
        raise UsageError(
            f"'{one_line(id)}' is not a procedural world", hint="builtin/<size>/<split>/<seed>/<index>"
        )
    return "small" if match[1] == "small" else "full", match[2], int(match[3]), int(match[4])


def canonical(value: object) -> object:
    """`value` as JSON that is the same in every process: sets sorted, caches and the shared text grammar left out."""
    if is_dataclass(value) and not isinstance(value, type):
        shown = [f for f in fields(value) if f.compare and f.name not in ("grammar", "commands")]
        return {f.name: canonical(getattr(value, f.name)) for f in shown}
    if isinstance(value, Mapping):
        return sorted(([canonical(k), canonical(v)] for k, v in value.items()), key=json.dumps)
    if isinstance(value, (set, frozenset)):
        return sorted((canonical(item) for item in value), key=json.dumps)
    if isinstance(value, (tuple, list)):
        return [canonical(item) for item in value]
    return value


class GamesSource:
    """Genuine `game.tw-pddl` files below one folder, by split."""

    env = "alfworld"
    backend = "games"

    def __init__(self, data_dir: Path, *, all_games: bool = False) -> None:
        """`all_games` also plays what the genuine environment skips (see `listing`).

        Raises:
            UsageError: there is no such folder, or no game in it that is played.
        """
        root = data_dir / DATA_FOLDER
        self.root = root if root.is_dir() else data_dir
        if not self.root.is_dir():
            raise UsageError(
                f"there is no folder {data_dir}", hint="set ALFWORLD_DATA, or pass --game with a game file"
            )
        self.listing = list_games(self.root, all_games=all_games)
        self._games = self.listing.games
        if not self._games:
            skipped = sum(map(len, self.listing.skipped.values()))
            raise UsageError(
                f"there are no game files below {self.root}"
                + (f" that are played: {'; '.join(self.listing.notices())}" if skipped else ""),
                hint=None if skipped else f"ALFWORLD_DATA must hold {DATA_FOLDER}/<split>/*/*/{GAME_FILE}",
            )

    @classmethod
    def from_game(cls, path: Path) -> GamesSource:
        """A source of one game: a `game.tw-pddl` file, or the folder that holds it.

        Raises:
            UsageError: there is no such file.
        """
        game = path / GAME_FILE if path.is_dir() else path
        if not game.is_file():
            raise UsageError(f"there is no game {game}", hint=f"pass a {GAME_FILE} or its folder")
        source = cls.__new__(cls)
        source.root = game.parent
        source.listing = Listing(games={"game": [game.name]})
        source._games = source.listing.games
        return source

    def notices(self) -> list[str]:
        return self.listing.notices()

    def splits(self) -> dict[str, int]:
        return {split: len(games) for split, games in self._games.items()}

    def tasks(self, split: str, count: int, *, seed: int = 0) -> Sequence[Task]:
        if split not in self._games:
            skipped = self.listing.skipped.get(split)
            problem = (
                f"all {len(skipped)} game files of split '{split}' are skipped"
                if skipped
                else f"there is no split '{split}'"
            )
            raise UsageError(problem, hint=f"found: {', '.join(self._games)}")
        order = list(self._games[split])
        Random(f"games/{split}/{seed}").shuffle(order)
        return [self._task(split, game) for game in order[:count]]

    def _task(self, split: str, game: str) -> Task:
        return Task(id=game, env=self.env, split=split, category=category_of(Path(game).parts), ref=game)

    def task(self, id: str) -> Task:
        split = id.partition("/")[0]
        if id in self._games.get(split, ()):
            return self._task(split, id)
        skipped = self.listing.skipped.get(split, {}).get(id)
        why = f"is skipped here: {skipped}" if skipped else f"is not below {self.root}"
        raise DataError(f"the game file {one_line(id)} {why}")

    def game_hash(self, task: Task) -> str:
        path = self.path_of(task)
        try:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None

    def path_of(self, task: Task) -> Path:
        """The file of a task.

        Raises:
            DataError: it lies outside the folder.
        """
        path = (self.root / task.ref).resolve()
        if not path.is_relative_to(self.root.resolve()):
            raise DataError(f"the game '{task.ref}' lies outside {self.root}")
        return path

    def open(self, task: Task) -> Environment:
        path = self.path_of(task)
        return AlfworldEnvironment(task, _load(path, path.stat().st_mtime_ns if path.exists() else 0))

    def expert(self, hints: ExpertHints | None = None) -> AlfworldExpert:
        return AlfworldExpert(hints)

    def content_hash(self) -> str:
        digest = hashlib.sha256()
        for games in self._games.values():
            for game in games:
                digest.update(f"{game}\0{(self.root / game).stat().st_size}\n".encode())
        return digest.hexdigest()[:16]


@lru_cache(maxsize=256)
def _load(path: Path, _modified: int) -> GameData:
    """The episodes of a group share one game, and what it has rendered so far."""
    return load_game(path)


def alfworld_data() -> Path | None:
    """The folder that `$ALFWORLD_DATA` names; None where it is not set."""
    folder = os.environ.get("ALFWORLD_DATA")
    return Path(os.path.expanduser(folder)) if folder else None


def open_source(
    backend: str,
    *,
    data_dir: Path | None = None,
    size: WorldSize = "small",
    seed: int = 0,
    all_games: bool = False,
) -> BuiltinSource | GamesSource:
    """The source of a backend; `games` and `textworld` look in `data_dir`, else in $ALFWORLD_DATA.

    Raises:
        UsageError: unknown backend, or no games where they should be.
    """
    if backend == "builtin":
        return BuiltinSource(size, seed)
    if backend not in ("games", "textworld"):
        raise UsageError(
            f"there is no ALFWorld backend '{backend}'", hint="choose builtin, games or textworld"
        )
    folder = data_dir or alfworld_data()
    if folder is None:
        raise UsageError(
            f"the {backend} backend needs games", hint="set ALFWORLD_DATA, or pass --game with a game file"
        )
    if backend == "textworld":
        from krill_tui.envs.alfworld.genuine import TextworldSource

        return TextworldSource(folder, all_games=all_games)
    return GamesSource(folder, all_games=all_games)
