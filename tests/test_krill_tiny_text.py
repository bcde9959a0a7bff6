"""The training text of krill-tiny: households with an order of their own, and drills of rooms and orders."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from krill_tui.envs.alfworld.expert import usual_places

ASSETS = Path(__file__).resolve().parent.parent / "assets"
sys.path.insert(0, str(ASSETS))
# Scripts beside the package, not part of it.
tiny_drills: Any = importlib.import_module("tiny_drills")
tiny_episodes: Any = importlib.import_module("tiny_episodes")
tiny_measure: Any = importlib.import_module("tiny_measure")
tiny_orders: Any = importlib.import_module("tiny_orders")

HOUSEHOLDS = range(7_000_000, 8_000_000)
EXAMINE_ALL = tiny_orders.Orders(frozenset({"clean", "heat", "cool"}), lamp_first=True)
NOTHING = "Nothing happens."


def _at_station(category: str, orders: Any) -> tuple[Any, str, str]:
    """A game in which a thing is held at the station; (game, the station, the command that treats)."""
    rng = Random(category)
    habits, world, _ = tiny_episodes.draw_world(rng, HOUSEHOLDS, categories=(category,))
    treatment = tiny_episodes.TREATMENT[category]
    game = tiny_orders.OrderedGame(world, orders)
    expert = tiny_episodes.AlfworldExpert({treatment: [habits.stations[treatment]]})
    result = game.reset()
    while not expert._held:
        result = game.step(expert.act(result)[1])
        expert._observe(result)
    station = next(p for p in expert._receptacles if p.startswith(habits.stations[treatment]))
    game.step(f"go to {station}")
    return game, station, f"{treatment} {expert._held} with {station}"


@pytest.mark.parametrize("category", ["Clean", "Heat", "Cool"])
def test_where_a_station_has_to_be_examined_nothing_is_treated_before(category: str) -> None:
    game, place, treat = _at_station(category, EXAMINE_ALL)
    assert treat not in game._last.admissible
    assert game.step(treat).observation == NOTHING
    assert treat in game.step(f"examine {place}").admissible
    # Whoever goes away has to examine it again.
    elsewhere = next(action for action in game._last.admissible if action.startswith("go to "))
    game.step(elsewhere)
    assert treat not in game.step(f"go to {place}").admissible
    game.step(f"examine {place}")
    assert game.step(treat).observation.startswith(f"You {treat.split()[0]} the ")
    free, _, treat = _at_station(category, tiny_episodes.USUAL)
    assert treat in free._last.admissible


@pytest.mark.parametrize("lamp_first", [True, False])
def test_the_lamp_is_used_with_empty_hands_or_with_full_ones(lamp_first: bool) -> None:
    rng, used = Random(3), set()
    for _ in range(6):
        _, world, _ = tiny_episodes.draw_world(rng, HOUSEHOLDS, categories=("Look",))
        game = tiny_orders.OrderedGame(world, tiny_orders.Orders(frozenset(), lamp_first))
        skill = tiny_episodes.Skill(
            id="look_001", name="", principle=tiny_orders.LAMP_FIRST if lamp_first else tiny_orders.LAMP_LAST
        )
        expert = tiny_orders.OrderedExpert([skill])
        result = game.reset()
        for _ in range(60):
            held = game.state.held >= 0
            assert not any(a.startswith("use ") for a in result.admissible) or held != lamp_first
            action = expert.act(result)[1]
            if action.startswith("use "):
                used.add(held)
            result = game.step(action)
            if result.done:
                break
        assert result.won
    assert used == {not lamp_first}


def test_the_planner_wins_in_any_order_and_soonest_when_told_the_right_one() -> None:
    steps = {}
    for told in ("right", "wrong", "none"):
        rng, steps[told] = Random(11), 0
        for _ in range(40):
            habits, world, task = tiny_episodes.draw_world(
                rng, HOUSEHOLDS, categories=tiny_orders.ORDERED_CATEGORIES
            )
            orders = tiny_orders.orders_of(habits.seed)
            said = orders.other() if told == "wrong" else orders
            mode = "none" if told == "none" else "right"
            skills = tiny_episodes.draw_skills(
                Random(habits.seed),
                tiny_episodes.Prompted("right", mode),
                habits,
                habits.stations,
                task,
                said,
            )
            example = tiny_episodes.play_expert(
                rng, tiny_orders.OrderedGame(world, orders), task, skills, 0.0, tiny_episodes.Weights(), 40
            )
            assert example.won
            steps[told] += sum(bool(kind) for kind in example.kinds)
    assert steps["right"] < steps["wrong"] - 10
    assert steps["right"] < steps["none"] - 20


def test_the_planner_that_is_told_the_station_examines_no_other_place() -> None:
    rng, examined = Random(12), 0
    for _ in range(40):
        habits, world, task = tiny_episodes.draw_world(rng, HOUSEHOLDS, categories=("Clean", "Heat", "Cool"))
        orders = tiny_orders.orders_of(habits.seed)
        skills = tiny_episodes.draw_skills(
            rng, tiny_measure.asked("right"), habits, habits.stations, task, orders
        )
        treatment = tiny_episodes.TREATMENT[task.category]
        example = tiny_episodes.play_expert(
            rng, tiny_orders.OrderedGame(world, orders), task, skills, 0.0, tiny_episodes.Weights(), 40
        )
        places = re.findall(
            r"<action>examine ([a-z]+) ", " ".join(str(m["content"]) for m in example.messages)
        )
        assert set(places) <= {habits.stations[treatment]}
        assert bool(places) == (treatment in orders.examined)
        examined += len(places)
    assert examined >= 10


@pytest.mark.parametrize("mode", ["right", "wrong"])
def test_what_a_skill_says_of_the_lamp_is_the_order_told(mode: str) -> None:
    for lamp_first in (True, False):
        told = tiny_orders.Orders(frozenset(), lamp_first)
        tier = tiny_episodes._draw_tier(Random(1), mode, {}, "Look", told)
        assert tier[0].principle == (tiny_orders.LAMP_FIRST if lamp_first else tiny_orders.LAMP_LAST)


def test_in_a_drill_of_a_room_one_goes_only_where_one_is_not_and_what_there_is() -> None:
    rng, goes, opens = Random(5), 0, 0
    for _ in range(40):
        example = tiny_drills.draw_room(rng)
        room = set(re.findall(r"\ba ([a-z]+ \d+)", str(example.messages[1]["content"])))
        here = ""
        for message in example.messages[2::2]:
            action = re.search(r"<action>(.*)</action>", str(message["content"]))
            assert action
            if action[1].startswith("go to "):
                place = action[1].removeprefix("go to ")
                assert place in room and place != here
                here, goes = place, goes + 1
            elif action[1].startswith("open "):
                assert action[1] == f"open {here}"
                opens += 1
    assert goes >= 300 and opens >= 20


def test_a_drill_of_orders_examines_where_the_skill_says_so_and_nowhere_else() -> None:
    rng, examined, at_once = Random(6), 0, 0
    for _ in range(40):
        example = tiny_drills.draw_order(rng)
        skills = {line.split()[0]: line for line in str(example.messages[0]["content"]).splitlines()}
        for view, reply in zip(example.messages[1::2], example.messages[2::2], strict=True):
            said, answer = str(view["content"]), str(reply["content"])
            thought = answer.removeprefix("<think>").partition(" ")[0]
            if not said.startswith("You arrive"):
                continue
            if thought == "examine":
                skill_id = re.search(r"\[.*\]", answer)
                assert skill_id
                line = next(line for line in skills.values() if line.endswith(skill_id[0]))
                examined += 1
            else:
                line = skills[thought]
                at_once += 1
            assert ("examine the place" in line) == (thought == "examine")
    assert examined >= 40 and at_once >= 40


def test_a_drill_of_tours_goes_where_one_has_not_been_and_quotes_a_skill_while_its_places_last() -> None:
    rng, quoted, exhausted = Random(9), 0, 0
    for _ in range(40):
        example = tiny_drills.draw_tour(rng)
        told = dict(re.findall(r"^([a-z]+): ([a-z]+) \[", str(example.messages[0]["content"]), re.MULTILINE))
        room = set(re.findall(r"\ba ([a-z]+ \d+)", str(example.messages[1]["content"]).split("\n\nYou")[1]))
        passed: set[str] = set()
        for view, reply in zip(example.messages[1::2], example.messages[2::2], strict=True):
            said, _, task = str(view["content"]).rpartition("Task: ")
            passed |= set(re.findall(r"(?:On the|The) ([a-z]+ \d+)(?:, you| is open)", said))
            action = re.search(r"<action>go to (.*)</action>", str(reply["content"]))
            assert action and action[1] in room - passed
            wanted = next(thing for thing in usual_places() if f" {thing} " in f" {task} ")
            thought = str(reply["content"]).removeprefix("<think>")
            left = wanted in told and any(place.split()[0] == told[wanted] for place in room - passed)
            assert thought.startswith(f"{wanted}: {told[wanted]} [" if left else f"find {wanted} in ")
            quoted += left
            exhausted += wanted in told and not left
    assert quoted >= 100 and exhausted >= 40


def test_a_drill_of_memory_goes_back_to_where_a_thing_is_and_not_where_it_was() -> None:
    rng, back, gone = Random(10), 0, 0
    for _ in range(40):
        example = tiny_drills.draw_memory(rng)
        inside: dict[str, set[str]] = {}
        moved: set[str] = set()
        for view, reply in zip(example.messages[1::2], example.messages[2::2], strict=True):
            said, _, task = str(view["content"]).rpartition("Task: ")
            seen = re.findall(r"(?:On the|The) ([a-z]+ \d+)(?: is open\. In it)?, you see ([^.]*)\.", said)
            inside |= {place: set(re.findall(r"\ba ([a-z]+ \d+)", things)) for place, things in seen}
            if taken := re.search(r"You pick up the (\w+ \d+) from the (\w+ \d+)\.", said):
                inside[taken[2]].remove(taken[1])
            wanted = next(thing for thing in usual_places() if f" {thing} " in f" {task} ")
            if placed := re.search(r"You put the (\w+ \d+) in/on the (\w+ \d+)\.", said):
                inside.setdefault(placed[2], set()).add(placed[1])
            # What is where it is to be is done.
            inside_elsewhere = {p: things for p, things in inside.items() if p.split()[0] != task.split()[-1]}
            places = [
                p for p, things in inside_elsewhere.items() if any(t.split()[0] == wanted for t in things)
            ]
            answer = str(reply["content"])
            moved |= {wanted} if placed else set()
            assert bool(places) == answer.startswith("<think>take ")
            if action := re.search(r"<action>go to (.*)</action>", answer):
                assert action[1] in places
                back += 1
            gone += wanted in moved and not places
    assert back >= 150 and gone >= 60


def test_drills_and_ordered_episodes_come_again_with_the_seed() -> None:
    def text() -> list[Any]:
        rng = Random(8)
        episode = tiny_episodes.draw_episode(rng, HOUSEHOLDS, tiny_measure.asked("right"), 0.2, ordered=True)
        draws = (
            tiny_drills.draw_room,
            tiny_drills.draw_tour,
            tiny_drills.draw_memory,
            tiny_drills.draw_order,
        )
        return [*episode.messages, *(message for draw in draws for message in draw(rng).messages)]

    assert text() == text()
