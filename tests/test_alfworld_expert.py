"""The planner solves what can be solved, from what it is told alone, and follows the hints it is given."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import pytest

from krill_tui.envs.alfworld import text
from krill_tui.envs.alfworld.engine import AlfworldGame
from krill_tui.envs.alfworld.expert import AlfworldExpert
from krill_tui.envs.alfworld.game import GameData
from krill_tui.envs.alfworld.problem import load_game
from krill_tui.envs.alfworld.source import BuiltinSource, GamesSource
from krill_tui.envs.alfworld.text import TaskGoal
from krill_tui.envs.alfworld.worlds import build_world, household
from tests.alfworld_games import grammar, write_game

LIMIT = 50


def play(game: GameData, expert: AlfworldExpert) -> tuple[bool, list[tuple[str, str]]]:
    """(won, decisions) of one episode of at most 50 steps."""
    episode = AlfworldGame(game)
    result = episode.reset()
    decisions: list[tuple[str, str]] = []
    while not result.done and len(decisions) < LIMIT:
        thought, action = expert.act(result)
        assert action in result.admissible
        decisions.append((thought, action))
        result = episode.step(action)
    return result.won, decisions


def mean_steps(seed: int, hints: Mapping[str, Sequence[str]] | None) -> float:
    plays = [play(build_world("small", "valid", seed, n)[0], AlfworldExpert(hints)) for n in range(120)]
    return sum(len(decisions) for _, decisions in plays) / len(plays)


def test_procedural_worlds_of_every_category_are_solved_within_50_steps() -> None:
    won: Counter[str] = Counter()
    for size in ("small", "full"):
        for index in range(72):
            game, category = build_world(size, "test", 1, index)
            success, decisions = play(game, AlfworldExpert())
            assert success or size == "full", f"{size} {index}: {decisions[-3:]}"
            won[category] += success
    assert sum(won.values()) >= 142
    assert set(won) == set(text.CATEGORIES)


def test_genuine_games_are_solved_within_50_steps(games_dir: Path) -> None:
    source = GamesSource(games_dir)
    tasks = source.tasks("valid_seen", 140)
    won = sum(play(load_game(source.root / task.ref), source.expert())[0] for task in tasks)
    assert won >= 0.98 * len(tasks)


def test_the_newer_wording_is_played_as_well(tmp_path: Path) -> None:
    newer = grammar().replace("put {o} in/on {r}", "move {o} to {r}")
    newer = newer.replace(
        "You put the {o.name} in/on the {r.name}.", "You move the {o.name} to the {r.name}."
    )
    won, decisions = play(load_game(write_game(tmp_path, grammar=newer)), AlfworldExpert())
    assert won
    assert decisions[-1] == ("put mug in countertop", "move mug 1 to countertop 1")


def test_thoughts_are_few_plain_words() -> None:
    for index in range(48):
        _, decisions = play(build_world("small", "train", 6, index)[0], AlfworldExpert())
        for thought, _ in decisions:
            assert re.fullmatch(
                r"(take|use) [a-z]+|(find|put) [a-z]+ in [a-z]+|(clean|heat|cool) [a-z]+ at [a-z]+", thought
            )


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_the_habits_of_a_household_shorten_the_search(seed: int) -> None:
    hints = {kind: [place] for kind, place in household(seed).home.items()}
    elsewhere = {kind: [place] for kind, place in household(seed + 50).home.items()}
    assert mean_steps(seed, hints) < mean_steps(seed, None) - 0.5
    assert mean_steps(seed, hints) < mean_steps(seed, elsewhere) - 0.5


def test_a_hint_is_followed_first_and_named() -> None:
    game, _ = build_world("small", "train", 8, 0)
    goal = text.parse_task(game.task)
    assert goal is not None
    place = next(kind for kind in ("garbagecan", "countertop") if f"{kind} 1" in game.receptacle_names)
    expert = AlfworldExpert({goal.object: [place]})
    thought, action = expert.act(AlfworldGame(game).reset())
    assert (thought, action) == (f"find {goal.object} in {place}", f"go to {place} 1")
    assert expert.last_hint == goal.object
    without = AlfworldExpert()
    without.act(AlfworldGame(game).reset())
    assert without.last_hint is None


def treating_games() -> list[tuple[int, TaskGoal, GameData]]:
    """(household, goal, game) of worlds whose station is not the dataset's."""
    found = []
    for seed in range(8):
        for index in range(24):
            game, _ = build_world("small", "train", seed, index)
            goal = text.parse_task(game.task)
            assert goal is not None
            if goal.treatment and household(seed).stations[goal.treatment] != text.STATION[goal.treatment]:
                found.append((seed, goal, game))
    return found


def test_an_unusual_station_is_found_and_sooner_where_a_hint_names_it() -> None:
    steps: Counter[str] = Counter()
    for seed, goal, game in treating_games():
        stations = household(seed).stations
        hints: dict[str, list[str]] = {treatment: [place] for treatment, place in stations.items()}
        for how, expert in (("without", AlfworldExpert()), ("hinted", AlfworldExpert(hints))):
            won, decisions = play(game, expert)
            assert won
            treated = [action for _, action in decisions if action.startswith(f"{goal.treatment} ")]
            assert len(treated) == 1
            assert treated[0].split(" with ")[1].split()[0] == stations[goal.treatment or "heat"]
            steps[how] += len(decisions)
    assert steps["hinted"] < steps["without"] - 0.8 * len(treating_games())


def test_the_hint_of_a_station_is_named_while_it_is_followed() -> None:
    seed, goal, game = treating_games()[0]
    expert = AlfworldExpert({goal.treatment or "": [household(seed).stations[goal.treatment or "heat"]]})
    episode = AlfworldGame(game)
    result, named = episode.reset(), []
    while not result.done:
        result = episode.step(expert.act(result)[1])
        named.append(expert.last_hint)
    assert named.count(goal.treatment) >= 1
    assert set(named) == {None, goal.treatment}


def test_a_random_order_is_fixed_by_its_generator() -> None:
    game, _ = build_world("full", "train", 8, 1)
    one = play(game, AlfworldExpert(rng=Random(3)))
    assert one == play(game, AlfworldExpert(rng=Random(3)))


def test_a_source_hands_out_experts_with_hints() -> None:
    assert BuiltinSource().expert({"mug": ["cabinet"]}).last_hint is None


@pytest.mark.parametrize(
    ("sentence", "goal"),
    [
        ("put a mug in desk.", TaskGoal("Pick", "mug", "desk")),
        ("put some book on sofa", TaskGoal("Pick", "book", "sofa")),
        ("look at cd under the desklamp.", TaskGoal("Look", "cd", "desklamp")),
        ("examine the pillow with the desklamp.", TaskGoal("Look", "pillow", "desklamp")),
        ("clean some cloth and put it in drawer.", TaskGoal("Clean", "cloth", "drawer", treatment="clean")),
        ("put a clean pan in stoveburner.", TaskGoal("Clean", "pan", "stoveburner", treatment="clean")),
        ("put a hot egg in fridge.", TaskGoal("Heat", "egg", "fridge", treatment="heat")),
        ("cool some mug and put it in shelf.", TaskGoal("Cool", "mug", "shelf", treatment="cool")),
        ("put two watch in dresser.", TaskGoal("PickTwo", "watch", "dresser", count=2)),
        ("find two pen and put them in desk.", TaskGoal("PickTwo", "pen", "desk", count=2)),
        ("Bring me the vase, please.", None),
    ],
)
def test_task_sentences_are_understood(sentence: str, goal: TaskGoal | None) -> None:
    assert text.parse_task(sentence) == goal


def test_every_task_sentence_of_the_dataset_is_understood(games_dir: Path) -> None:
    source = GamesSource(games_dir)
    for task in source.tasks("valid_seen", 140):
        goal = text.parse_task(source.open(task).task.description)
        assert goal is not None
        assert goal.category == task.category


@pytest.mark.parametrize(
    ("observation", "seen"),
    [
        (
            "You arrive at loc 2. On the sidetable 1, you see a cd 3, and a pen 3.",
            ("sidetable 1", ["cd 3", "pen 3"]),
        ),
        ("You arrive at desk 1. On the desk 1, you see nothing.", ("desk 1", [])),
        ("You open the safe 1. The safe 1 is open. In it, you see a vase 1.", ("safe 1", ["vase 1"])),
        ("You arrive at loc 3. The drawer 2 is closed.", ("drawer 2", [])),
        ("You are facing the drawer 7, and drawer 6. Next to it, you see a cd 1.", (None, [])),
        ("You pick up the mug 1 from the desk 1.", (None, [])),
        ("Nothing happens.", (None, [])),
    ],
)
def test_what_lies_where_is_read_from_a_sentence(
    observation: str, seen: tuple[str | None, list[str]]
) -> None:
    assert text.seen_objects(observation) == seen


def test_both_wordings_of_putting_down_are_read() -> None:
    assert text.placed("You put the mug 1 in/on the desk 2.") == ("mug 1", "desk 2")
    assert text.placed("You move the mug 1 to the desk 2.") == ("mug 1", "desk 2")
    assert text.put_command(["look", "move mug 1 to desk 2"], "mug 1", "desk 2") == "move mug 1 to desk 2"
    assert text.put_command(["put mug 1 in/on desk 2"], "mug 1", "desk 2") == "put mug 1 in/on desk 2"
    assert text.put_command(["put mug 1 in/on desk 2"], "mug 1", "desk 1") is None


def test_the_first_observation_lists_the_room_and_the_task() -> None:
    game, _ = build_world("small", "train", 8, 2)
    observation = AlfworldGame(game).reset().observation
    assert sorted(text.room_receptacles(observation)) == sorted(game.receptacle_names)
    assert text.task_sentence(observation) == game.task.removesuffix(".")
