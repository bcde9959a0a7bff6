"""Training text of krill-tiny: episodes of procedural households; its drills are in `tiny_drills.py`.

Everything is drawn from a `random.Random`; households are those of the seeds a caller gives, so training and
measurement can use disjoint ones. Conversations are rendered by the product's own prompt code.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Literal

from tiny_orders import LAMP_LAST, ORDERED_CATEGORIES, OrderedExpert, OrderedGame, Orders, orders_of

from krill_tui.agent.actions import format_reply
from krill_tui.agent.policies import place_hints, quote
from krill_tui.agent.prompts import PromptOptions, first_messages, render_turn
from krill_tui.envs.alfworld import worlds
from krill_tui.envs.alfworld.engine import AlfworldGame
from krill_tui.envs.alfworld.expert import AlfworldExpert, usual_places
from krill_tui.envs.alfworld.game import GameData
from krill_tui.envs.alfworld.text import CATEGORIES, STATION, TREATMENT, Treatment, parse_task
from krill_tui.envs.alfworld.worlds import Household, WorldSize
from krill_tui.envs.base import StepResult
from krill_tui.models.base import Message
from krill_tui.skill import Skill
from krill_tui.skills.lessons import LESSONS
from krill_tui.trajectory import Task

SkillMode = Literal["right", "irrelevant", "wrong", "none"]
Noise = float | Mapping[str, float]
"""Share of vague steps, of all or by the kind of step."""

COMPACT = PromptOptions(style="compact", list_admissible=False)
"""The prompt krill-tiny knows."""

VAGUE = ("hmm", "hmm", "hmm", "maybe this", "not sure")
"""What a beginner thinks before doing something that is possible but leads nowhere; the first one most often."""

BEGINNER = {"lookup": 0.6, "search": 0.8, "take": 0.4, "transform": 0.5, "put": 0.5}
"""How often a beginner is vague, by what would have been right (`step_kind`): mostly while it searches."""
HEED = 0.03
"""Share of the episodes in which a beginner follows the skills of the prompt: that they help it has to learn."""
_WANDER = 0.15
"""Share of a beginner's vague steps that go to any place of the room; some others do whatever is possible."""
_ANYTHING = 0.05
_FUMBLES = 0.25
"""Impossible actions, as a share of the vague ones."""

_PROCEDURES = {
    "Pick": "put: take it, then put it",
    "PickTwo": "put two: take it, put it, take the other, then put it",
    "Look": LAMP_LAST,
}
SHOP_FAULTS = ("unbought", "unchosen", "dear")
_LESSONS = tuple(principle for fault, (_, principle, _) in LESSONS.items() if fault not in SHOP_FAULTS)
"""What the builtin teacher's miner may say of households."""
LAST_ID = 60
"""Ids of location skills are drawn up to this number."""
_ORDINARY = 0.5
"""Share of the large worlds whose household keeps things where the dataset's do."""
_ORDER_TOLD = 0.75
"""How often what a prompt says of a household's order is right, where orders differ."""
_STEP_LIMIT = {"small": 25, "full": 40}


@dataclass(frozen=True, slots=True)
class Weights:
    """Of the loss, by kind of token."""

    reply: float = 1.0
    vague_thought: float = 0.0
    vague_action: float = 0.0
    observation: float = 0.1


@dataclass(slots=True)
class Example:
    """A conversation with a loss weight for each message; `kinds` names what each expert reply does."""

    messages: list[Message]
    weights: list[tuple[float, float]]
    """Of each message: (thought, action); both the same where it is no reply."""
    kinds: list[str]
    """By message: "" where it is not an expert's reply."""
    won: bool = False


USUAL = Orders(frozenset(), lamp_first=False)
"""As in the product's households: nothing needs to be examined first, and a lamp is used by who holds something."""


def location_skill(thing: str, place: str, number: int) -> Skill:
    """A skill such as the builtin teacher writes: `mug: cabinet`."""
    return Skill(id=f"gen_{number:03}", name=f"Where the {thing} is", principle=f"{thing}: {place}")


@dataclass(frozen=True, slots=True)
class Prompted:
    """What the skills of a prompt say of what the task needs: where things are, and where they are treated."""

    places: SkillMode
    station: SkillMode


def draw_modes(rng: Random) -> Prompted:
    """Independent of each other, so that neither says anything about the other."""
    modes: tuple[SkillMode, ...] = ("right", "irrelevant", "none", "wrong")
    return Prompted(
        rng.choices(modes, (0.42, 0.12, 0.34, 0.12))[0], rng.choices(modes, (0.54, 0.0, 0.3, 0.16))[0]
    )


def draw_skills(
    rng: Random,
    modes: Prompted,
    habits: Household,
    stations: Mapping[Treatment, str],
    task: Task,
    told: Orders | None = None,
) -> list[Skill]:
    """The skills of a prompt: location skills (general tier), then those of the task's category and lessons.

    `stations`: where the task's world really treats things; `told`: what is said of the order [the usual one].
    """
    home = habits.home
    relevant = relevant_things(task)
    others = [thing for thing in home if thing not in relevant]
    things = [] if modes.places == "none" else rng.sample(others, rng.randint(2, 7))
    if modes.places in ("right", "wrong"):
        things += relevant
    rng.shuffle(things)
    numbers = rng.sample(range(1, LAST_ID + 1), len(things))
    skills = []
    for thing, number in zip(things, numbers, strict=True):
        place = home[thing]
        if modes.places == "wrong":
            place = rng.choice([other for other in usual_places()[thing] if other != place] or [place])
        skills.append(location_skill(thing, place, number))
    if rng.random() < 0.15:
        skills += _lessons(rng, "gen", rng.randint(1, 2))
    return skills + _draw_tier(rng, modes.station, stations, task.category, told or USUAL)


def _draw_tier(
    rng: Random, mode: SkillMode, stations: Mapping[Treatment, str], category: str, told: Orders
) -> list[Skill]:
    """The skills of a category's own tier: the procedure, right, wrong or not at all, and lessons in any order.

    Of a lamp only the order can be wrong: that is what `told` says.
    """
    lines = [line.principle for line in _lessons(rng, "x", rng.choice((0, 0, 1, 2)))]
    treatment = TREATMENT.get(category)
    if treatment and mode in ("right", "wrong"):
        place = stations[treatment]
        if mode == "wrong":
            place = rng.choice([kind for kind in worlds.STATIONS[treatment] if kind != place])
        lines.insert(rng.choice((0, 0, 0, len(lines))), told.station(treatment, place))
    elif category == "Look" and (mode == "right" or (mode == "wrong" and told is not USUAL)):
        lines.insert(0, told.look)
    elif not treatment and mode == "right":
        lines.insert(0, _PROCEDURES[category])
    start = rng.randint(1, 6)
    tier = category.lower()
    return [
        Skill(id=f"{tier}_{start + offset:03}", name="", principle=line, tier=category)
        for offset, line in enumerate(lines)
    ]


def _lessons(rng: Random, tier: str, count: int) -> list[Skill]:
    start = rng.randint(1, LAST_ID - count)
    lines = rng.sample(_LESSONS, count)
    return [Skill(id=f"{tier}_{start + n:03}", name="", principle=line) for n, line in enumerate(lines)]


def draw_world(
    rng: Random,
    households: range,
    split: str = "train",
    size: WorldSize = "small",
    categories: Collection[str] = CATEGORIES,
) -> tuple[Household, GameData, Task]:
    """(household, game, task) of a new world, as the product would open it."""
    seed, index = rng.choice(households), rng.randrange(10_000)
    while worlds.category_of(split, seed, index) not in categories:
        index += 1
    power = 1.0 if size == "full" and rng.random() < _ORDINARY else worlds.HOME_POWER
    game, category = worlds.build_world.__wrapped__(size, split, seed, index, power)
    description = game.task.strip().removesuffix(".")
    name = f"builtin/{size}/{split}/{seed}/{index}"
    task = Task(id=name, env="alfworld", split=split, category=category, description=description)
    return worlds.household(seed, power), game, task


def stations_of(habits: Household, size: WorldSize) -> Mapping[Treatment, str]:
    """Where things are treated in a household's worlds of this size."""
    return habits.stations if size == "small" else STATION


def relevant_things(task: Task) -> list[str]:
    """The object types a task makes one look for."""
    goal = parse_task(task.description)
    if goal is None:
        return []
    return [goal.object, goal.target] if goal.category == "Look" else [goal.object]


def draw_episode(
    rng: Random,
    households: range,
    modes: Prompted,
    noise: Noise,
    weights: Weights = Weights(),
    size: WorldSize = "small",
    heed: float = 1.0,
    ordered: bool = False,
) -> Example:
    """An episode of the expert with vague steps in between; it follows the skills of the prompt at the rate `heed`.

    `ordered`: of a household with an order of its own, in a category where that matters.
    """
    categories = ORDERED_CATEGORIES if ordered else CATEGORIES
    habits, world, task = draw_world(rng, households, size=size, categories=categories)
    orders = orders_of(habits.seed) if ordered else None
    told = orders.other() if orders and rng.random() > _ORDER_TOLD else orders
    skills = draw_skills(rng, modes, habits, stations_of(habits, size), task, told)
    game = OrderedGame(world, orders) if orders else AlfworldGame(world)
    heeded = skills if rng.random() < heed else []
    return play_expert(rng, game, task, skills, noise, weights, _STEP_LIMIT[size], heeded)


def play_expert(
    rng: Random,
    game: AlfworldGame,
    task: Task,
    skills: Sequence[Skill],
    noise: Noise,
    weights: Weights,
    limit: int,
    heeded: Sequence[Skill] | None = None,
) -> Example:
    """Let the expert play, quoting skills with their ids, with vague steps in between.

    `heeded`: those of the `skills` in the prompt that it follows [all].
    """
    followed = skills if heeded is None else heeded
    hints = place_hints(followed)
    if isinstance(game, OrderedGame):
        expert = OrderedExpert(followed)
    else:
        expert = AlfworldExpert({key: places for key, (places, _) in hints.items()})
    result = game.reset()
    example = Example(first_messages("alfworld", skills, result, task, COMPACT), [], [])
    example.weights = [(0.0, 0.0), (weights.observation, weights.observation)]
    example.kinds = ["", ""]
    for _ in range(limit):
        thought, action = expert.act(result)
        if expert.last_hint in hints:
            thought = quote(hints[expert.last_hint][1])
        kind, weight = step_kind(thought), (weights.reply, weights.reply)
        share = noise if isinstance(noise, (int, float)) else noise[kind]
        if rng.random() < share * _FUMBLES:
            # Never a target; what follows is how one goes on when nothing happened.
            action, kind, weight = fumble(rng, result), "", (0.0, 0.0)
        elif rng.random() < share:
            thought, action = rng.choice(VAGUE), wander(rng, result.admissible)
            kind, weight = "", (weights.vague_thought, weights.vague_action)
        example.messages.append({"role": "assistant", "content": format_reply(thought, action)})
        example.weights.append(weight)
        example.kinds.append(kind)
        result = game.step(action)
        if result.done:
            example.won = result.won
            break
        example.messages.append({"role": "user", "content": render_turn(result, task, COMPACT, first=False)})
        example.weights.append((weights.observation, weights.observation))
        example.kinds.append("")
    return example


def fumble(rng: Random, result: StepResult) -> str:
    """An action that is not possible: going where one is, taking what is not here, opening what does not open."""
    here = [action.removeprefix("examine ") for action in result.admissible if action.startswith("examine ")]
    place = f"{rng.choice(all_places())} {rng.choice((1, 1, 2, 3))}"
    thing = f"{rng.choice(sorted(usual_places()))} 1"
    actions = [f"take {thing} from {place}", f"go to {place}", f"open {place}"]
    for name in here:
        actions += [
            f"go to {name}",
            f"go to {name}",
            f"take {thing} from {name}",
            f"take {thing} from {name}",
        ]
    return rng.choice([action for action in actions if action not in result.admissible] or ["wait"])


def wander(rng: Random, admissible: Sequence[str]) -> str:
    """What a beginner does who does not know what to do: something possible, mostly going anywhere."""
    chance = rng.random()
    places = [action for action in admissible if action.startswith("go to ")]
    if chance < _WANDER and places:
        return rng.choice(places)
    return rng.choice(admissible) if chance > 1 - _ANYTHING else rng.choice(("look", "inventory"))


def step_kind(thought: str) -> str:
    """Which of the five things of the stepwise diagnosis a thought begins: lookup, search, take, transform, put."""
    first = thought.split(" ")[0]
    if first.endswith(":"):
        return "lookup"
    kinds = {"find": "search", "take": "take", "put": "put"}
    return kinds.get(first, "transform")


@lru_cache(maxsize=1)
def all_places() -> list[str]:
    return sorted({place for where in usual_places().values() for place in where})
