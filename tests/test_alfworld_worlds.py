"""Procedural worlds: deterministic, apart by split, solvable, and true to their household's habits."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import islice

import pytest

from krill_tui.envs.alfworld import worlds
from krill_tui.envs.alfworld.engine import AlfworldGame
from krill_tui.envs.alfworld.expert import AlfworldExpert
from krill_tui.envs.alfworld.game import GameData
from krill_tui.envs.alfworld.source import BuiltinSource
from krill_tui.envs.alfworld.text import CATEGORIES, STATION, object_type, parse_task
from krill_tui.envs.alfworld.worlds import SPLITS, build_world, household
from krill_tui.errors import UsageError
from krill_tui.trajectory import Task

SIZES: tuple[worlds.WorldSize, ...] = ("small", "full")


def fingerprint(size: worlds.WorldSize, split: str, seed: int, index: int) -> tuple[object, ...]:
    """What tells one world from another: the task, the room and where everything lies."""
    game, _ = build_world(size, split, seed, index)
    return game.task, game.receptacle_names, game.object_names, game.contents, game.receptacle_location


@pytest.mark.parametrize("size", SIZES)
def test_splits_and_households_share_no_world(size: worlds.WorldSize) -> None:
    drawn = [fingerprint(size, split, seed, n) for split in SPLITS for seed in (0, 1) for n in range(40)]
    assert len(set(drawn)) == len(drawn)


def test_a_world_is_the_same_in_another_process() -> None:
    code = (
        "from krill_tui.envs.alfworld.worlds import build_world;"
        "game, category = build_world('small', 'train', 7, 12);"
        "print(game.task, category, game.contents, game.location_names, game.receptacle_location)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    game, category = build_world("small", "train", 7, 12)
    assert said.rstrip("\n") == (
        f"{game.task} {category} {game.contents} {game.location_names} {game.receptacle_location}"
    )


def test_a_small_world_is_small_and_a_full_one_like_the_dataset() -> None:
    small = [build_world("small", "train", 2, n)[0] for n in range(150)]
    assert {10, 14} <= {len(game.receptacle_names) for game in small} <= set(range(10, 15))
    assert {5, 9} <= {len(game.object_names) for game in small} <= set(range(5, 10))
    full = [build_world("full", "train", 2, n)[0] for n in range(150)]
    # Floor plans of the dataset have 14 to 34 receptacles in the mean, by room.
    assert 18 < sum(len(game.receptacle_names) for game in full) / 150 < 32
    assert 20 < sum(len(game.object_names) for game in full) / 150 < 46


def test_every_24_games_hold_the_proportions_of_the_dataset() -> None:
    tasks = BuiltinSource(seed=3).tasks("evolve", 48)
    for block in (tasks[:24], tasks[24:]):
        counts = Counter(task.category for task in block)
        assert [counts[category] for category in CATEGORIES] == [5, 2, 4, 3, 4, 6]
    assert [task.category for task in tasks[:24]] != [task.category for task in tasks[24:]]


@pytest.mark.parametrize("size", SIZES)
def test_the_task_sentence_says_the_category_and_nothing_is_done_at_the_start(size: worlds.WorldSize) -> None:
    for index in range(96):
        game, category = build_world(size, "valid", 4, index)
        goal = parse_task(game.task)
        assert goal is not None
        assert goal.category == category
        assert not AlfworldGame(game).reset().done
        at_target = [
            thing
            for kind, things in zip(game.receptacle_types, game.contents, strict=True)
            for thing in things
            if kind == f"{goal.target}type" and game.object_types[thing] == f"{goal.object}type"
        ]
        assert not at_target


def test_things_lie_at_home_nine_times_out_of_ten_in_every_split() -> None:
    home = household(11).home
    for split in ("train", "test"):
        at_home: Counter[bool] = Counter()
        for index in range(250):
            game, _ = build_world("small", split, 11, index)
            kinds = {object_type(name) for name in game.receptacle_names}
            for place, things in zip(game.receptacle_names, game.contents, strict=True):
                for thing in things:
                    kind = object_type(game.object_names[thing])
                    if home[kind] in kinds:
                        at_home[home[kind] == object_type(place)] += 1
        share = at_home[True] / at_home.total()
        assert 0.88 < share < 0.95, f"{split}: {share:.3f}"


def test_households_differ_and_keep_their_habits() -> None:
    assert household(1) == household.__wrapped__(1)
    homes = [household(seed).home for seed in range(60)]
    for kind in ("mug", "apple", "keychain", "soapbar", "book"):
        assert max(Counter(home[kind] for home in homes).values()) < 30, f"{kind} has nearly always one home"


def test_every_category_can_be_drawn_in_many_households() -> None:
    for seed in range(40):
        for index in range(24):
            build_world.__wrapped__("small", "train", seed, index)


async def test_a_task_record_alone_rebuilds_its_world() -> None:
    (task,) = islice(BuiltinSource(size="full", seed=9).tasks("test", 4), 3, None)
    assert task.id == "builtin/full/test/9/3"
    record = Task.model_validate_json(task.model_dump_json())
    # A source of another size and seed opens it all the same: everything is in the record.
    env = BuiltinSource(size="small", seed=0).open(record)
    game, category = build_world("full", "test", 9, 3)
    assert (await env.reset()).observation == AlfworldGame(game).reset().observation
    assert env.task.category == category == task.category
    assert env.task.description == game.task.removesuffix(".")


def test_the_seed_of_the_order_gives_other_worlds_of_the_same_household() -> None:
    source = BuiltinSource(seed=5)
    one, two = source.tasks("valid", 20, seed=0), source.tasks("valid", 20, seed=1)
    assert not {task.id for task in one} & {task.id for task in two}
    assert all(task.id.split("/")[3] == "5" for task in [*one, *two])
    assert list(one) == list(source.tasks("valid", 40, seed=0)[:20])


@pytest.mark.parametrize(
    "wrong",
    ["builtin/huge/train/0/0", "builtin/small/train/0", "builtin/small/train/x/0", "builtin/small/a/0/0"],
)
def test_a_task_that_is_no_world_is_refused(wrong: str) -> None:
    with pytest.raises(UsageError, match="not a procedural world"):
        BuiltinSource().open(Task(id=wrong, env="alfworld", split="train"))


def test_the_content_hash_names_size_and_household() -> None:
    hashes = {BuiltinSource(size, seed).content_hash() for size in SIZES for seed in (0, 1)}
    assert len(hashes) == 4
    assert BuiltinSource().content_hash() == BuiltinSource().content_hash()


def without_needless_visits(world: GameData, actions: list[str]) -> list[str]:
    """A won play, less every visit (a `go to` and what is done there) that the win does not need."""

    def wins(plan: list[str]) -> bool:
        game = AlfworldGame(world)
        result = game.reset()
        for action in plan:
            result = game.step(action)
        return result.won

    start = 0
    while start < len(actions):
        end = start + 1
        while end < len(actions) and not actions[end].startswith("go to"):
            end += 1
        rest = actions[:start] + actions[end:]
        if actions[start].startswith("go to") and wins(rest):
            actions = rest
        else:
            start += 1
    return actions


@pytest.mark.parametrize("size", SIZES)
def test_every_world_has_a_plan_far_within_the_step_limit(size: worlds.WorldSize) -> None:
    # The last one is a world that the expert, who has to search, wins only after 50 steps.
    for seed, index in [*((seed, index) for seed in range(4) for index in range(15)), (2, 33)]:
        world, _ = worlds.build_world(size, "test", seed, index)
        game, expert = AlfworldGame(world), AlfworldExpert()
        actions: list[str] = []
        result = game.reset()
        while not result.done and len(actions) < 300:
            actions.append(expert.act(result)[1])
            result = game.step(actions[-1])
        assert result.won
        assert len(without_needless_visits(world, actions)) <= 15


def test_a_household_treats_things_at_stations_of_its_own_in_small_worlds_only() -> None:
    seed = next(n for n in range(50) if household(n).stations["heat"] == "stoveburner")
    index = next(n for n in range(48) if build_world("small", "train", seed, n)[1] == "Heat")
    small, full = (build_world(size, "train", seed, index)[0] for size in SIZES)
    assert small.rules.heat_at == {"stoveburnertype"}
    assert full.rules.heat_at == {"microwavetype"}


def test_every_station_is_some_households_and_the_datasets_is_the_most_frequent() -> None:
    for treatment, kinds in worlds.STATIONS.items():
        counts = Counter(household(seed).stations[treatment] for seed in range(300))
        assert set(counts) == set(kinds)
        assert kinds[0] == STATION[treatment]
        assert counts[kinds[0]] > 75
