"""Our engine beside the genuine one, on the same commands: needs the package `alfworld` and genuine games."""

from __future__ import annotations

import json
import random
import warnings
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from krill_tui.envs.alfworld.engine import AlfworldGame
from krill_tui.envs.alfworld.expert import AlfworldExpert
from krill_tui.envs.alfworld.genuine import TextworldSource
from krill_tui.envs.alfworld.problem import load_game
from krill_tui.envs.alfworld.source import GamesSource
from krill_tui.envs.base import StepResult

# The package leaves files open: its warnings are not ours to mend.
pytestmark = [pytest.mark.alfworld, pytest.mark.filterwarnings("ignore")]

with warnings.catch_warnings():  # what the package's own imports say is not about us
    warnings.simplefilter("ignore")
    textworld = pytest.importorskip("textworld", exc_type=ImportError)
    genuine_module = pytest.importorskip("alfworld.agents.environment.alfred_tw_env", exc_type=ImportError)

WRONG = ["", "dance", "Look", "go  to cabinet 1", "look.", "put mug 1 on desk 1", "take", "examine nothing 9"]
STEPS = 30

Choose = Callable[[StepResult], str]
"""The next command, from the newest result."""


def one_of_each_kind(games_dir: Path) -> list[Path]:
    """The first game of every task type."""
    paths = sorted((games_dir / "json_2.1.1" / "valid_seen").glob("*/*/game.tw-pddl"))
    return [next(group) for _, group in groupby(paths, key=lambda path: path.parts[-3].partition("-")[0])]


def package_file(name: str) -> str:
    """A text of the installed package: its domain or its grammar."""
    package = Path(genuine_module.__file__).parents[2]
    return (package / "data" / name).read_text(encoding="utf-8")


def newer_game(path: Path, folder: Path) -> Path:
    """The game with the domain and the grammar of the installed package, as its generator writes them."""
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    task = load_game(path).task
    data["pddl_domain"] = package_file("alfred.pddl")
    data["grammar"] = package_file("alfred.twl2").replace("UNKNOWN GOAL.", task)
    newer = folder / "game.tw-pddl"
    newer.write_text(json.dumps(data), encoding="utf-8")
    return newer


def play_both(path: Path, choose: Choose, steps: int) -> set[str]:
    """Play the chosen commands on both and compare all that is told; returns the verbs that were played."""
    infos = textworld.EnvInfos(won=True, admissible_commands=True)
    genuine = textworld.start(str(path), infos, wrappers=[genuine_module.AlfredDemangler()])
    ours = AlfworldGame(load_game(path))
    verbs: set[str] = set()
    try:
        state, result, command, score, done = genuine.reset(), ours.reset(), "", 0, False
        for step in range(steps + 1):
            told = (result.observation, list(result.admissible), result.reward, result.won, result.done)
            said = (state["feedback"], state["admissible_commands"], score, state["won"], done)
            assert told == said, f"{path.parent} step {step}: {command!r}"
            if done or step == steps:
                break
            command = choose(result)
            verbs.add(command.partition(" ")[0] if command in result.admissible else "(wrong)")
            state, score, done = genuine.step(command)
            result = ours.step(command)
    finally:
        genuine.close()
    return verbs | ({"(won)"} if done else set())


def at_random(seed: int) -> Choose:
    """A fifth of the commands wrong, the others mostly what changes the game: travel is most of the list."""
    rng = random.Random(seed)
    disguises: list[Callable[[str], str]] = [str.upper, str.title, lambda c: c + "!", lambda c: f" {c}\t"]

    def choose(result: StepResult) -> str:
        chance = rng.random()
        if chance < 0.2:
            command = rng.choice(result.admissible)
            return rng.choice([*WRONG, *(disguise(command) for disguise in disguises)])
        telling = [command for command in result.admissible if not command.startswith("go to")]
        return rng.choice(telling if chance < 0.7 else result.admissible)

    return choose


def by_the_expert() -> Choose:
    """Plays to win, and looks at what it holds before it puts it down."""
    expert = AlfworldExpert()
    waiting: list[str] = []

    def choose(result: StepResult) -> str:
        if waiting:
            return waiting.pop()
        action = expert.act(result)[1]
        about = f"examine {' '.join(action.split()[1:3])}"
        if action.split()[0] in ("put", "move", "use") and about in result.admissible:
            waiting.append(action)
            return about
        return action

    return choose


@pytest.mark.parametrize("kind", [0, 2, 3])
def test_random_play_is_told_as_by_the_genuine_engine(games_dir: Path, kind: int) -> None:
    verbs = play_both(one_of_each_kind(games_dir)[kind], at_random(kind), STEPS)
    assert {"go", "examine", "look", "inventory", "(wrong)"} <= verbs


@pytest.mark.parametrize("kind", [1, 3, 5])
def test_random_play_of_the_newer_domain_is_told_as_by_the_genuine_engine(
    games_dir: Path, tmp_path: Path, kind: int
) -> None:
    path = newer_game(one_of_each_kind(games_dir)[kind], tmp_path)
    verbs = play_both(path, at_random(kind), STEPS)
    assert {"go", "look", "inventory", "(wrong)"} <= verbs


@pytest.mark.parametrize("kind", range(6))
def test_a_won_game_of_the_newer_domain_is_told_as_by_the_genuine_engine(
    games_dir: Path, tmp_path: Path, kind: int
) -> None:
    path = newer_game(one_of_each_kind(games_dir)[kind], tmp_path)
    verbs = play_both(path, by_the_expert(), 50)
    assert "(won)" in verbs
    assert {"move", "use"} & verbs


async def test_the_genuine_package_in_processes_of_its_own_plays_as_we_do(games_dir: Path) -> None:
    source, ours = TextworldSource(games_dir, processes=1), GamesSource(games_dir)
    (task,) = source.tasks("valid_seen", 1)
    env, known = source.open(task), ours.open(task)
    choose = by_the_expert()
    result, expected = await env.reset(), await known.reset()
    while result == expected and not result.done:
        command = choose(result)
        result, expected = await env.step(command), await known.step(command)
    assert result == expected
    assert result.won
    assert env.task == known.task
    await env.close()
