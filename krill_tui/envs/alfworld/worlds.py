"""Procedural worlds: rooms like the dataset's, drawn from (size, split, seed, index), always solvable.

Which receptacles a room has, which objects lie in it, and what is asked for follow counts over the
dataset's 3,554 training games (`statistics.json`: by room, how often a receptacle type occurs in a floor
plan, how often an object type occurs and where it lies, and how often a task names a pair of types).

A seed is also a *household* with habits of its own: each object type has a home, a receptacle type drawn
from the plausible ones, where it lies nine times out of ten; and in `small` worlds each treatment has its
station: heating may be done at the stove, cleaning at the bathtub (`full` worlds keep the dataset's stations).
Worlds of one household differ in everything else, so what was learnt about its habits carries over, and to no
other household.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import resources
from random import Random
from typing import Any, Literal

from krill_tui.envs.alfworld.engine import THINGS
from krill_tui.envs.alfworld.game import GameData, Rules
from krill_tui.envs.alfworld.grammar import Grammar, compile_grammar, split_task
from krill_tui.envs.alfworld.pddl import parse_expression
from krill_tui.envs.alfworld.problem import assemble
from krill_tui.envs.alfworld.text import STATION, TREATMENT, TaskGoal, Treatment
from krill_tui.errors import DataError

WorldSize = Literal["small", "full"]
SPLITS = ("train", "evolve", "valid", "test")

_PACKAGE = "krill_tui.envs.alfworld"

HABIT = 0.9
"""Probability that an object lies at its home."""

STATIONS: dict[Treatment, tuple[str, ...]] = {
    "clean": ("sinkbasin", "bathtubbasin", "countertop"),
    "heat": ("microwave", "stoveburner", "toaster", "coffeemachine"),
    "cool": ("fridge", "sinkbasin", "countertop"),
}
"""By treatment: the receptacle types that may be a household's station for it, the dataset's first."""
_USUAL_STATION = 0.35
"""Probability that a household's station is the dataset's."""

HOME_POWER = 0.25
"""Below 1: a household may keep a thing where few others do; 1: as often as the dataset does."""
_SMALL_RECEPTACLES = (10, 14)
_SMALL_MOST = 2
"""Receptacles of one type in a small world: many types rather than many of a type, so that habits say more."""
_SMALL_OBJECTS = (5, 9)

_BLOCK = ("Pick",) * 5 + ("PickTwo",) * 6 + ("Clean",) * 4 + ("Cool",) * 4 + ("Heat",) * 3 + ("Look",) * 2
"""The dataset's proportions in every 24 consecutive games: 22, 23, 18, 15, 13 and 9 %."""

_TASK_TYPE = {
    "Pick": "pick_and_place_simple",
    "Look": "look_at_obj_in_light",
    "Clean": "pick_clean_then_place_in_recep",
    "Heat": "pick_heat_then_place_in_recep",
    "Cool": "pick_cool_then_place_in_recep",
    "PickTwo": "pick_two_obj_and_place",
}
_WORDINGS = {
    "Pick": ("put a {o} in {r}.", "put some {o} on {r}."),
    "Look": ("look at {o} under the {r}.", "examine the {o} with the {r}."),
    "Clean": ("clean some {o} and put it in {r}.", "put a clean {o} in {r}."),
    "Heat": ("heat some {o} and put it in {r}.", "put a hot {o} in {r}."),
    "Cool": ("cool some {o} and put it in {r}.", "put a cool {o} in {r}."),
    "PickTwo": ("find two {o} and put them in {r}.", "put two {o} in {r}."),
}
_STATE = {"clean": "(isclean ?o)", "heat": "(ishot ?o)", "cool": "(iscool ?o)"}


def _rules(stations: Mapping[Treatment, str]) -> Rules:
    return Rules(
        actions=frozenset(THINGS) - {"help"},
        clean_at=frozenset({f"{stations['clean']}type"}),
        heat_at=frozenset({f"{stations['heat']}type"}),
        cool_at=frozenset({f"{stations['cool']}type"}),
        slice_with=frozenset({"knifetype", "butterknifetype"}),
    )


@dataclass(frozen=True, slots=True)
class Household:
    """The hidden habits of one seed."""

    seed: int
    home: dict[str, str]
    """Object type -> the receptacle type where it usually lies."""
    stations: dict[Treatment, str]
    """Treatment -> the receptacle type where it is done, in `small` worlds."""


@dataclass(slots=True)
class _Plan:
    """A world while it is drawn."""

    room: str
    goal: TaskGoal
    rng: Random
    household: Household
    stations: Mapping[Treatment, str]
    receptacles: list[str] = field(default_factory=list)
    """The type of each."""
    placed: list[tuple[str, int]] = field(default_factory=list)
    """(object type, index of the receptacle)"""


@lru_cache(maxsize=1)
def statistics() -> dict[str, Any]:
    """The counts of `statistics.json`."""
    return json.loads(resources.files(_PACKAGE).joinpath("statistics.json").read_text(encoding="utf-8"))


@lru_cache(maxsize=1)
def household_grammar() -> Grammar:
    """The text grammar of procedural worlds: the sentences of the dataset's."""
    text = resources.files(_PACKAGE).joinpath("household.twl2").read_text(encoding="utf-8")
    return compile_grammar(split_task(text)[0])


@lru_cache(maxsize=256)
def household(seed: int, power: float = HOME_POWER) -> Household:
    """The habits of a seed: the same in every split and size. `power` is for training text of other households."""
    rng = Random(f"household/{seed}")
    home: dict[str, str] = {}
    for thing in sorted({thing for room in statistics()["rooms"].values() for thing in room["objects"]}):
        weights = _plausible(thing)
        home[thing] = rng.choices(list(weights), [weight**power for weight in weights.values()])[0]
    rng = Random(f"household/{seed}/stations")
    stations: dict[Treatment, str] = {}
    for treatment, (usual, *others) in STATIONS.items():
        stations[treatment] = usual if rng.random() < _USUAL_STATION else rng.choice(others)
    return Household(seed, home, stations)


def _plausible(thing: str) -> dict[str, float]:
    """Receptacle types where the dataset keeps an object type, with how often; common room types only."""
    weights: dict[str, float] = defaultdict(float)
    for room in statistics()["rooms"].values():
        kind = room["objects"].get(thing)
        for place, count in (kind["where"] if kind else {}).items():
            if place not in ("garbagecan", "coffeemachine") or len(kind["where"]) == 1:
                weights[place] += count
    return dict(weights)


@lru_cache(maxsize=256)
def build_world(
    size: WorldSize, split: str, seed: int, index: int, power: float = HOME_POWER
) -> tuple[GameData, str]:
    """(game, category) of one world; the same arguments give the same world everywhere."""
    rng = Random(f"world/{size}/{split}/{seed}/{index}")
    habits = household(seed, power)
    stations = habits.stations if size == "small" else STATION
    plan = _draw_task(category_of(split, seed, index), rng, habits, stations)
    _draw_receptacles(plan, size)
    _draw_objects(plan, size)
    return _assemble(plan, size), plan.goal.category


def category_of(split: str, seed: int, index: int) -> str:
    """The category of a game: every block of 24 holds the dataset's proportions, in its own order."""
    block, place = divmod(index, len(_BLOCK))
    order = list(_BLOCK)
    Random(f"order/{split}/{seed}/{block}").shuffle(order)
    return order[place]


def _draw_task(category: str, rng: Random, habits: Household, stations: Mapping[Treatment, str]) -> _Plan:
    """Room, object and target, as often as the dataset asks for them, where the household allows it."""
    station = stations[TREATMENT[category]] if category in TREATMENT else ""
    choices: list[tuple[str, str, str]] = []
    weights: list[float] = []
    for room, facts in statistics()["rooms"].items():
        for pair, count in facts["tasks"].get(_TASK_TYPE[category], {}).items():
            thing, target = pair.split()
            lives = _home_in(room, thing, habits)
            lamp = category != "Look" or _home_in(room, "desklamp", habits)
            stands = not station or station in facts["receptacles"]
            if lives and lamp and stands and target != habits.home[thing]:
                choices.append((room, thing, target))
                weights.append(count)
    if not choices:
        raise DataError(f"household {habits.seed} allows no task of the category {category}")
    room, thing, target = rng.choices(choices, weights)[0]
    goal = TaskGoal(category, thing, target, 2 if category == "PickTwo" else 1, TREATMENT.get(category))
    return _Plan(room, goal, rng, habits, stations)


def _home_in(room: str, thing: str, habits: Household) -> bool:
    """Whether a room of this kind has such things, kept at their home."""
    facts = statistics()["rooms"][room]
    return thing in facts["objects"] and habits.home[thing] in facts["objects"][thing]["where"]


def _draw_receptacles(plan: _Plan, size: WorldSize) -> None:
    kinds = statistics()["rooms"][plan.room]["receptacles"]
    plans = max(map(len, kinds.values()))
    rng, goal = plan.rng, plan.goal
    needed = {plan.household.home[goal.object]}
    needed.add(plan.household.home["desklamp"] if goal.category == "Look" else goal.target)
    if goal.treatment:
        needed.add(plan.stations[goal.treatment])
        # The usual station stands there as well: who does not know better tries it first.
        needed |= {STATION[goal.treatment]} & set(kinds)
    present = [kind for kind in kinds if kind in needed or rng.random() < len(kinds[kind]) / plans]
    counts = {kind: rng.choice(kinds[kind]) for kind in present}
    if size == "small":
        low, high = _SMALL_RECEPTACLES
        total = rng.randint(low, high)
        counts = {kind: min(count, _SMALL_MOST) for kind, count in counts.items()}
        order = sorted(counts, key=lambda kind: (kind in needed, rng.random()))
        while sum(counts.values()) > total:
            kind = next((kind for kind in order if counts[kind] > 1), order[0])
            counts[kind] -= 1
            if not counts[kind]:
                del counts[kind]
                order.remove(kind)
        several = [kind for kind in sorted(counts) if max(kinds[kind]) > 1]
        while sum(counts.values()) < low:
            counts[rng.choice(several)] += 1
    plan.receptacles = [kind for kind in sorted(counts) for _ in range(counts[kind])]


def _draw_objects(plan: _Plan, size: WorldSize) -> None:
    rng, goal = plan.rng, plan.goal
    kinds = statistics()["rooms"][plan.room]["objects"]
    wanted = [goal.object] * (goal.count + (rng.random() < 0.4))
    if goal.category == "Look":
        wanted.append("desklamp")
    low, high = _SMALL_OBJECTS if size == "small" else (len(kinds), 2 * len(kinds))
    total = rng.randint(low, high)
    others = [kind for kind in kinds if kind not in wanted and kind != "desklamp"]
    rng.shuffle(others)
    # What has its home in this room comes first: the rest would lie elsewhere and blur the habits.
    others.sort(key=lambda kind: plan.household.home[kind] not in plan.receptacles)
    for kind in others:
        enough = plan.household.home[kind] in plan.receptacles or len(wanted) < low
        if len(wanted) < total and enough and rng.random() < kinds[kind]["share"]:
            most = 2 if size == "small" else max(1, round(2 * kinds[kind]["mean"] - 1))
            wanted += [kind] * rng.randint(1, most)
    for kind in wanted[: max(total, goal.count + 1)]:
        place = _draw_place(plan, kind)
        if place is not None:
            plan.placed.append((kind, place))


def _draw_place(plan: _Plan, kind: str) -> int | None:
    """A receptacle for an object: its home, or now and then another plausible one.

    The object a task is about never starts where it has to go.
    """
    where = statistics()["rooms"][plan.room]["objects"][kind]["where"]
    barred = plan.goal.target if kind == plan.goal.object else ""
    home = plan.household.home[kind]
    others = {
        place: weight
        for place, weight in where.items()
        if place in plan.receptacles and place not in (barred, home)
    }
    at_home = home in plan.receptacles and home in where and home != barred
    if not at_home and not others:
        return None
    if at_home and (not others or plan.rng.random() < HABIT):
        chosen = home
    else:
        chosen = plan.rng.choices(list(others), list(others.values()))[0]
    return plan.rng.choice([n for n, place in enumerate(plan.receptacles) if place == chosen])


def _assemble(plan: _Plan, size: WorldSize) -> GameData:
    """The game of a finished plan, through the same door as a parsed file."""
    counts, rng = statistics(), plan.rng
    facts: dict[str, set[tuple[str, str]]] = defaultdict(set)
    names = [_receptacle_id(kind, number) for number, kind in enumerate(plan.receptacles)]
    places = _draw_locations(plan.receptacles, size, rng)
    for name, kind, place in zip(names, plan.receptacles, places, strict=True):
        facts["receptacletype"].add((name, f"{kind}type"))
        facts["receptacleatlocation"].add((name, place))
        if rng.random() < counts["openable"].get(kind, 0.0):
            facts["openable"].add((name, ""))
    for number, (kind, receptacle) in enumerate(plan.placed):
        name = f"{kind}_bar_{number:02}"
        facts["objecttype"].add((name, f"{kind}type"))
        facts["inreceptacle"].add((name, names[receptacle]))
        facts["objectatlocation"].add((name, places[receptacle]))
        for flag, kinds in counts["flags"].items():
            if kind in kinds:
                facts[flag].add((name, ""))
    for receptacle, kinds in counts["can_contain"].items():
        facts["cancontain"].update((f"{receptacle}type", f"{kind}type") for kind in kinds)
    facts["atlocation"].add(("agent1", f"loc_bar_{rng.randrange(100, 999)}_bar_start"))
    goal = plan.goal
    sentence = rng.choice(_WORDINGS[goal.category]).format(o=goal.object, r=goal.target)
    return assemble(
        _rules(plan.stations), household_grammar(), sentence, facts, parse_expression(_goal_text(goal))
    )


def _receptacle_id(kind: str, number: int) -> str:
    """An id that is shown as the dataset shows it: basins are parts of a sink or a bathtub."""
    stem = kind.removesuffix("basin")
    return f"{stem}_bar_{number:02}" + ("_bar_basin" if stem != kind else "")


def _draw_locations(receptacles: Sequence[str], size: WorldSize, rng: Random) -> list[str]:
    """A place for each receptacle; in full worlds neighbours of one type sometimes share one."""
    places: list[str] = []
    for number, kind in enumerate(receptacles):
        neighbours = size == "full" and number and receptacles[number - 1] == kind
        if neighbours and rng.random() < 0.1:
            places.append(places[-1])
        else:
            places.append(f"loc_bar_{rng.randrange(100, 999)}_bar_{number:02}")
    return places


def _goal_text(goal: TaskGoal) -> str:
    kinds = f"(objecttype ?o {goal.object}type)"
    if goal.category == "Look":
        return (
            "(:goal (and (exists (?ot - object ?r - receptacle ?a - agent ?l - location)"
            f" (and (objecttype ?ot {goal.target}type) (toggleable ?ot) (istoggled ?ot)"
            " (receptacleatlocation ?r ?l) (atlocation ?a ?l) (inreceptacle ?ot ?r)))"
            f" (exists (?o - object ?a - agent) (and {kinds} (holds ?a ?o)))))"
        )
    inside = f"(receptacletype ?r {goal.target}type) (inreceptacle ?o ?r)"
    state = _STATE[goal.treatment] if goal.treatment else ""
    second = ""
    if goal.count == 2:
        second = (
            f"(exists (?p - object) (and (not (= ?o ?p)) (objecttype ?p {goal.object}type)"
            " (inreceptacle ?p ?r)))"
        )
    return f"(:goal (exists (?o - object ?r - receptacle) (and {kinds} {inside} {state} {second})))"
