"""Procedural households beside genuine games: the table of docs/worlds.md, and the memory of many episodes.

    python benchmarks/worlds.py [--games $ALFWORLD_DATA] [--split train] [--count 1000] [--memory 1000] [--json]

Each column plays `--count` games with the expert, up to 50 steps: procedural ones of the train split, drawn
from twenty households in turn, and genuine ones of `--split` in a seeded order. `--memory N` then holds N
episodes of different games at once in a fresh process, plays 50 random steps in each, and says how
much memory the process had at most.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import re
import resource
import statistics
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

from krill_tui.envs.alfworld import text
from krill_tui.envs.alfworld.engine import AlfworldGame
from krill_tui.envs.alfworld.expert import AlfworldExpert
from krill_tui.envs.alfworld.game import GameData
from krill_tui.envs.alfworld.problem import load_game
from krill_tui.envs.alfworld.source import GamesSource
from krill_tui.envs.alfworld.worlds import WorldSize, build_world

HOUSEHOLDS = 20
MAX_STEPS = 50
_Kind = TypeVar("_Kind")
_WORD = re.compile(r"[a-z']+")


class Column:
    """What was counted over the games of one kind."""

    def __init__(self) -> None:
        self.numbers: dict[str, list[float]] = {}
        self.words: set[str] = set()
        self.receptacles: Counter[str] = Counter()
        """Receptacle types."""
        self.objects: Counter[str] = Counter()
        """Types of the objects that lie in receptacles."""
        self.places: Counter[tuple[str, str]] = Counter()
        """(object type, type of the receptacle it lies in)"""
        self.categories: Counter[str] = Counter()

    def note(self, **numbers: float) -> None:
        for name, number in numbers.items():
            self.numbers.setdefault(name, []).append(number)

    def add(self, game: GameData) -> None:
        """Play one game with the expert."""
        episode, expert = AlfworldGame(game), AlfworldExpert()
        result, steps = episode.reset(), 0
        self.note(
            receptacles=len(game.receptacle_names),
            objects=len(game.object_names),
            lying=sum(map(len, game.contents)),
            first_length=len(result.observation),
            first_admissible=len(result.admissible),
        )
        self.words.update(_WORD.findall(result.observation.lower()))
        self.receptacles.update(game.receptacle_types)
        for kind, inside in zip(game.receptacle_types, game.contents, strict=True):
            self.objects.update(game.object_types[thing] for thing in inside)
            self.places.update((game.object_types[thing], kind) for thing in inside)
        while not result.done and steps < MAX_STEPS:
            result = episode.step(expert.act(result)[1])
            steps += 1
            self.note(length=len(result.observation), admissible=len(result.admissible))
            self.words.update(_WORD.findall(result.observation.lower()))
        goal = text.parse_task(game.task)
        self.categories[goal.category if goal else "?"] += 1
        self.note(won=float(result.won))
        if result.won:
            self.note(steps=steps)


ROWS = {
    "receptacles": "receptacles",
    "lying": "objects in receptacles",
    "objects": "objects, fixtures included",
    "first_length": "first observation, characters",
    "length": "later observations, characters",
    "first_admissible": "admissible commands at the start",
    "admissible": "admissible commands later",
    "steps": "expert, steps of wins",
}


def procedural(size: WorldSize, count: int) -> Iterator[GameData]:
    return (build_world(size, "train", n % HOUSEHOLDS, n // HOUSEHOLDS)[0] for n in range(count))


def genuine(folder: Path, split: str, count: int) -> Iterator[GameData]:
    source = GamesSource(folder)
    return (load_game(source.path_of(task)) for task in source.tasks(split, count))


def spread(values: list[float]) -> str:
    """Mean, and in brackets the 5th and the 95th percentile."""
    cuts = statistics.quantiles(values, n=20)
    return f"{statistics.mean(values):.1f} [{cuts[0]:.0f}, {cuts[-1]:.0f}]"


def overlap(one: Counter[_Kind], other: Counter[_Kind]) -> str:
    """What two distributions share, one less their total variation distance."""
    shared = sum(min(one[kind] / one.total(), other[kind] / other.total()) for kind in one)
    return f"{100 * shared:.1f} %"


def table(columns: dict[str, Column]) -> list[str]:
    """The comparison as lines of Markdown; the last column is the genuine one where there are games."""
    *_, reference = columns.values()

    def row(title: str, cell: Callable[[Column], object]) -> str:
        return f"| {title} | {' | '.join(str(cell(column)) for column in columns.values())} |"

    def share(category: str) -> Callable[[Column], str]:
        return lambda column: f"{100 * column.categories[category] / column.categories.total():.1f} %"

    return [
        f"| | {' | '.join(columns)} |",
        "|---" * (len(columns) + 1) + "|",
        row("games", lambda column: column.categories.total()),
        *(row(title, lambda column, name=name: spread(column.numbers[name])) for name, title in ROWS.items()),
        row("expert, games won", lambda column: f"{100 * statistics.mean(column.numbers['won']):.1f} %"),
        row("types of receptacles", lambda column: len(column.receptacles)),
        row("types of objects in them", lambda column: len(column.objects)),
        row("receptacle types, overlap", lambda column: overlap(column.receptacles, reference.receptacles)),
        row("object types, overlap", lambda column: overlap(column.objects, reference.objects)),
        row("which object lies where, overlap", lambda column: overlap(column.places, reference.places)),
        row("different words", lambda column: len(column.words)),
        row("words that the last column has too", lambda column: len(column.words & reference.words)),
        *(row(f"category {category}", share(category)) for category in text.CATEGORIES),
    ]


def hold(kind: str, folder: Path | None, split: str, count: int) -> tuple[int, float]:
    """(episodes, peak memory in MiB) of a process that holds so many at once."""
    games = (
        genuine(folder, split, count) if folder else procedural("full" if kind == "full" else "small", count)
    )
    episodes = [AlfworldGame(game) for game in games]
    results = [episode.reset() for episode in episodes]
    rng = random.Random(0)
    for _ in range(MAX_STEPS):
        for number, episode in enumerate(episodes):
            results[number] = episode.step(rng.choice(results[number].admissible))
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    return len(episodes), peak


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--games", type=Path, help="folder that holds json_2.1.1; without it, procedural only"
    )
    parser.add_argument("--split", default="train", help="of the genuine games")
    parser.add_argument("--count", type=int, default=1000, help="games of each kind")
    parser.add_argument("--memory", type=int, default=0, help="episodes to hold at once")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    kinds: dict[str, Callable[[], Iterator[GameData]]] = {
        "small": lambda: procedural("small", options.count),
        "full": lambda: procedural("full", options.count),
    }
    if options.games:
        kinds[f"genuine {options.split}"] = lambda: genuine(options.games, options.split, options.count)
    columns: dict[str, Column] = {}
    for kind, games in kinds.items():
        columns[kind] = Column()
        for game in games():
            columns[kind].add(game)
    memory: dict[str, float] = {}
    for kind in kinds if options.memory else ():
        folder = options.games if kind.startswith("genuine") else None
        with multiprocessing.get_context("spawn").Pool(1) as fresh:
            held, peak = fresh.apply(hold, (kind, folder, options.split, options.memory))
        memory[f"{kind}, {held} episodes"] = peak
    if options.json:
        means = {
            kind: {
                **{name: statistics.mean(values) for name, values in column.numbers.items()},
                "words": len(column.words),
                "categories": dict(column.categories),
            }
            for kind, column in columns.items()
        }
        print(json.dumps({"columns": means, "memory_mib": memory}))
        return
    print("\n".join(table(columns)))
    for name, peak in memory.items():
        print(f"{name} at once: {peak:.0f} MiB")


if __name__ == "__main__":
    main()
