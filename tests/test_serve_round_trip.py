"""Play through our own server equals play in process, byte for byte, in both worlds and both protocols."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Literal

import pytest

from krill_tui.envs.alfworld.source import BuiltinSource, GamesSource
from krill_tui.envs.base import StepResult, TaskSource
from krill_tui.envs.remote import HttpSource
from krill_tui.envs.webshop.source import WebshopSource
from krill_tui.trajectory import Task
from tests.serving import played, served, told

ODD_MOVES = {
    "alfworld": ("dance", "", " inventory ", "examine nothing 1", 'say "hä"\n\x1b[31m \ud800', "help"),
    "webshop": (
        "click[search]",
        "search[]",
        'search[Ü <b> 12" & more]',
        "Click[Buy Now]",
        "click[< prev] \n",
        "[[",
    ),
}
STEPS = {"alfworld": 40, "webshop": 15}


@pytest.fixture(scope="module")
def household() -> BuiltinSource:
    return BuiltinSource(seed=3)


@pytest.fixture(scope="module")
def shop() -> WebshopSource:
    return WebshopSource(seed=3, size=200)


def named(source: TaskSource, split: str, seed: int, position: int) -> Task:
    return source.tasks(split, position + 1, seed=seed)[position]


async def compare(
    source: TaskSource,
    protocol: Literal["krill", "agentgym"],
    pairs: list[tuple[Task, Task]],
    expected_of: list[list[tuple[object, ...]]] | None = None,
) -> list[list[StepResult]]:
    """Plays (remote task, local task) pairs, the remote ones all at once; the local plays, once they are equal."""
    extra = ODD_MOVES[source.env]
    local = [await played(source, source.open(task), extra, STEPS[source.env]) for _, task in pairs]
    async with served(source) as url:
        remote = HttpSource(url, env=source.env, protocol=protocol)
        environments = [remote.open(task) for task, _ in pairs]
        plays = await asyncio.gather(
            *(played(remote, environment, extra, STEPS[source.env]) for environment in environments)
        )
    expected = expected_of or [[told(result) for result in results] for results in local]
    assert [[told(result) for result in results] for results in plays] == expected
    for environment, (_, task) in zip(environments, pairs, strict=True):
        opened = source.open(task)
        assert environment.task.description == opened.task.description
        if protocol == "krill" or source.env == "alfworld":
            assert environment.task.category == opened.task.category
    return local


@pytest.mark.parametrize("world", ["alfworld", "webshop"])
async def test_krill_protocol(world: str, household: BuiltinSource, shop: WebshopSource) -> None:
    source = household if world == "alfworld" else shop
    places = [("train", 0, 0), ("train", 0, 5), ("evolve", 2, 1), ("test", 1, 3), ("train", 0, 5)]
    remote = HttpSource("http://unused", env=world)
    local = await compare(
        source, "krill", [(named(remote, *place), named(source, *place)) for place in places]
    )
    assert any(result.done and result.reward > 0 for results in local for result in results)


async def test_agentgym_protocol_of_the_shop(shop: WebshopSource) -> None:
    numbers = {
        "0": ("test", 0),
        "7": ("test", 7),
        "1500": ("train", 0),
        "1504": ("train", 4),
        "502": ("valid", 2),
    }
    pairs = [
        (Task(id=f"t{ref}", env="webshop", split=split, ref=ref), named(shop, split, 0, position))
        for ref, (split, position) in numbers.items()
    ]
    local = await compare(shop, "agentgym", pairs)
    assert any(result.done and result.reward > 0 for results in local for result in results)


async def test_agentgym_protocol_of_the_household_without_the_numbers_it_cuts(
    household: BuiltinSource,
) -> None:
    numbers = {"0": ("train", 0), "11": ("train", 11), "2420": ("test", 0), "2619": ("test", 199)}
    pairs = [
        (Task(id=f"t{ref}", env="alfworld", split=split, ref=ref), named(household, split, 0, position))
        for ref, (split, position) in numbers.items()
    ]
    expected = []
    for _, task in pairs:
        results = await played(household, household.open(task), ODD_MOVES["alfworld"], STEPS["alfworld"])
        expected.append(
            [
                (re.sub(r"^You arrive at loc \d+\. ", "", result.observation), *told(result)[1:])
                for result in results
            ]
        )
    local = await compare(household, "agentgym", pairs, expected)
    assert all(results[-1].won for results in local)


async def test_genuine_games_part_into_train_and_evolve_and_answer_to_both_names(games_dir: Path) -> None:
    source = GamesSource(games_dir)
    seen = source.tasks("valid_seen", 3)
    async with served(source) as url:
        remote = HttpSource(url)
        for name, position in (("valid_seen", 2), ("valid", 2)):
            environment = remote.open(remote.tasks(name, 3)[position])
            inside = source.open(seen[2])
            assert told(await environment.reset()) == told(await inside.reset())
            assert (environment.task.description, environment.task.category) == (
                inside.task.description,
                inside.task.category,
            )
            await environment.close()
