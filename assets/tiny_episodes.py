"""Training text of krill-tiny: episodes of procedural households, and drills of what an episode decides seldom.

Everything is drawn from a `random.Random`; households are those of the seeds a caller gives, so training and
measurement can use disjoint ones. Conversations are rendered by the product's own prompt code.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Literal

from tiny_orders import LAMP_LAST, ORDERED_CATEGORIES, OrderedExpert, OrderedGame, Orders, draw_orders

from krill_tui.agent.actions import format_reply
from krill_tui.agent.policies import place_hints, quote
from krill_tui.agent.prompts import PromptOptions, first_messages, render_system, render_turn
from krill_tui.envs.alfworld import worlds
from krill_tui.envs.alfworld.engine import AlfworldGame
from krill_tui.envs.alfworld.expert import CLOSED_KINDS, AlfworldExpert, usual_places
from krill_tui.envs.alfworld.game import GameData
from krill_tui.envs.alfworld.text import CATEGORIES, STATION, TREATMENT, Treatment, parse_task
from krill_tui.envs.alfworld.worlds import Household, WorldSize
from krill_tui.envs.base import StepResult
from krill_tui.models.base import Message
from krill_tui.skill import Skill
from krill_tui.skills.lessons import LESSONS
from krill_tui.skills.text import Station
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
    """The skills of a category's own tier: the procedure, right, wrong or not at all, and lessons in any order."""
    lines = [line.principle for line in _lessons(rng, "x", rng.choice((0, 0, 1, 2)))]
    treatment = TREATMENT.get(category)
    if treatment and mode in ("right", "wrong"):
        place = stations[treatment]
        if mode == "wrong":
            place = rng.choice([kind for kind in worlds.STATIONS[treatment] if kind != place])
        lines.insert(rng.choice((0, 0, 0, len(lines))), told.station(treatment, place))
    elif category == "Look" and (mode == "right" or (mode == "wrong" and told.lamp_first)):
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
    orders = draw_orders(habits.seed) if ordered else None
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
    place = f"{rng.choice(_all_places())} {rng.choice((1, 1, 2, 3))}"
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


def draw_drill(rng: Random, most: int = 14, weights: Weights = Weights()) -> Example:
    """Many lookups in one list of up to `most` skills: any thing may lie anywhere, some asked for are not listed."""
    things, places = sorted(usual_places()), _all_places()
    listed = rng.sample(things, rng.randint(2, most))
    numbers = rng.sample(range(1, LAST_ID + 1), len(listed))
    skills = {
        thing: location_skill(thing, rng.choice(places), number)
        for thing, number in zip(listed, numbers, strict=True)
    }
    treatment: Treatment = rng.choice(("clean", "heat", "cool"))
    procedure = Skill(
        id=f"{treatment}_{rng.randint(1, 9):03}",
        name="",
        principle=Station(treatment, rng.choice(places)).principle,
    )
    shown = [*skills.values(), *([procedure] if rng.random() < 0.7 else [])]
    missing = [thing for thing in things if thing not in skills]
    system = render_system("alfworld", shown, COMPACT)
    example = Example([{"role": "system", "content": system}], [(0.0, 0.0)], [""])
    for _ in range(rng.randint(10, 16)):
        thing = rng.choice(listed) if rng.random() < 0.8 else rng.choice(missing)
        category = rng.choice(("Pick", "PickTwo", "Clean", "Heat", "Cool"))
        sentence = rng.choice(worlds._WORDINGS[category]).format(o=thing, r=rng.choice(places))
        action = "look"
        if procedure in shown and rng.random() < 0.25:
            category = procedure.id.partition("_")[0].title()
            sentence = rng.choice(worlds._WORDINGS[category]).format(o=thing, r=rng.choice(places))
            thought = quote(procedure)
            action = f"go to {thought.split()[1]} 1"
            sentence = f"You pick up the {thing} 1 from the {rng.choice(places)} 1.\nTask: {sentence}"
        elif thing in skills:
            thought = quote(skills[thing])
            action = f"go to {thought.split()[1]} 1"
            sentence = f"Task: {sentence}"
        else:
            sentence = f"Task: {sentence}"
            thought = f"find {thing}"
        # Mostly without an action: more lookups for the same number of tokens.
        reply = format_reply(thought, action) if rng.random() < 0.3 else f"<think>{thought}</think>"
        example.messages.append({"role": "user", "content": sentence.removesuffix(".")})
        example.messages.append({"role": "assistant", "content": reply})
        example.weights += [(0.0, 0.0), (weights.reply, 0.2 * weights.reply)]
        example.kinds += ["", step_kind(thought)]
    return example


def draw_sight(rng: Random, weights: Weights = Weights()) -> Example:
    """Many looks at places, each time for another thing: is it among what one sees now, or is it to be looked for?

    What is asked for and absent was mostly seen earlier, so only the last observation tells.
    """
    things, places = sorted(usual_places()), _all_places()
    pool = rng.sample(things, rng.randint(8, 20))
    listed = rng.sample(pool, rng.choice((0, 0, 1, 2, 3)))
    skills = {
        thing: location_skill(thing, rng.choice(places), number)
        for thing, number in zip(listed, rng.sample(range(1, LAST_ID + 1), len(listed)), strict=True)
    }
    system = render_system("alfworld", list(skills.values()), COMPACT)
    example = Example([{"role": "system", "content": system}], [(0.0, 0.0)], [""])
    for _ in range(rng.randint(8, 14)):
        place = f"{rng.choice(places)} {rng.choice((1, 1, 1, 2, 3, 4))}"
        seen = rng.sample(pool, min(len(pool) - 1, rng.choice((0, 1, 1, 2, 3, 5, 8, 12))))
        hidden = [thing for thing in pool if thing not in seen]
        thing = rng.choice(seen) if seen and rng.random() < 0.45 else rng.choice(hidden)
        number = rng.choice((1, 1, 2, 2, 3, 4))
        names = [f"{other} {number if other == thing else rng.choice((1, 2, 3))}" for other in seen]
        for other in rng.sample(seen, rng.randint(0, min(2, len(seen)))):
            if other != thing:
                names += [f"{other} {n}" for n in (5, 6)[: rng.randint(1, 2)]]
        category = rng.choice(("Pick", "PickTwo", "Clean", "Heat", "Cool"))
        sentence = rng.choice(worlds._WORDINGS[category]).format(o=thing, r=rng.choice(places))
        example.messages.append(
            {
                "role": "user",
                "content": f"{_view(rng, place, sorted(names))}\nTask: {sentence}".removesuffix("."),
            }
        )
        if thing in seen:
            thought, action = f"take {thing}", f"take {thing} {number} from {place}"
        else:
            thought, action = quote(skills[thing]) if thing in skills else f"find {thing}", ""
        reply = format_reply(thought, action) if action else f"<think>{thought}</think>"
        example.messages.append({"role": "assistant", "content": reply})
        example.weights += [(0.0, 0.0), (weights.reply, 0.2 * weights.reply)]
        example.kinds += ["", step_kind(thought)]
    return example


class _Asked(AlfworldExpert):
    """The planner, asked for another task at every step; what it saw it keeps in mind."""

    def answer(self, sentence: str, held: str, result: StepResult) -> tuple[str, str]:
        self._goal = parse_task(sentence)
        self._observe(result)
        self._held = held or None
        self._useless.clear()
        self.last_hint = None
        return self._decide()


def draw_room(rng: Random, weights: Weights = Weights()) -> Example:
    """One room, and at every turn another task: where would one go? What there is, and what was seen, decides.

    The planner answers, as it would in an episode; nothing is ever taken or put down.
    """
    kinds = rng.sample(_all_places(), rng.randint(4, 14))
    counts = {kind: rng.choice((1, 1, 1, 2, 2, 3, 4, 6)) for kind in kinds}
    places = [f"{kind} {n}" for kind in sorted(kinds) for n in range(counts[kind], 0, -1)]
    things = rng.sample(sorted(usual_places()), rng.randint(20, 40))
    inside = {place: rng.sample(things, rng.choice((0, 0, 1, 1, 2, 4))) for place in places}
    closed = {place for place in places if place.split()[0] in CLOSED_KINDS}
    listed = rng.sample(things, rng.choice((0, 0, 3, 6, 8, 10)))
    numbers = rng.sample(range(1, LAST_ID + 1), len(listed))
    # Places of which there are few: one has soon been to all of them, and has to look elsewhere all the same.
    few = [kind for kind in kinds if counts[kind] <= 2] or kinds
    skills = [
        location_skill(thing, rng.choice(few if rng.random() < 0.7 else _all_places()), number)
        for thing, number in zip(listed, numbers, strict=True)
    ]
    hints = place_hints(skills)
    expert = _Asked({key: where for key, (where, _) in hints.items()})
    example = Example(
        [{"role": "system", "content": render_system("alfworld", skills, COMPACT)}], [(0.0, 0.0)], [""]
    )
    here, answer = "", f"{_WELCOME} you see {_listed(places)}."
    for turn in range(rng.randint(10, 18)):
        thing = rng.choice(listed) if listed and rng.random() < 0.7 else rng.choice(things)
        while here and here not in closed and thing in inside[here]:
            thing = rng.choice(things)
        kind = here.partition(" ")[0]
        held, categories = "", ["Pick", "PickTwo"]
        if here and here not in closed and rng.random() < 0.25:
            held = f"{thing} {rng.choice((1, 2))}"
            answer = f"You pick up the {held} from the {here}."
            # Not where it might be done at once.
            categories += [c for c, t in TREATMENT.items() if kind not in worlds.STATIONS[t]]
        target = rng.choice([other for other in kinds if other != kind])
        sentence = rng.choice(worlds._WORDINGS[rng.choice(categories)]).format(o=thing, r=target)
        admissible = [f"go to {place}" for place in sorted(places) if place != here]
        if here:
            admissible += [f"examine {here}", *([f"open {here}"] if here in closed else [])]
        asked = f"Your task is to: {sentence}" if not turn else f"Task: {sentence.removesuffix('.')}"
        thought, action = expert.answer(sentence, held, StepResult(answer, tuple(admissible)))
        if expert.last_hint in hints:
            thought = quote(hints[expert.last_hint][1])
        blank = "\n\n" if not turn else "\n"
        example.messages.append({"role": "user", "content": f"{answer}{blank}{asked}"})
        example.messages.append({"role": "assistant", "content": format_reply(thought, action)})
        example.weights += [(0.0, 0.0), (weights.reply, weights.reply)]
        example.kinds += ["", step_kind(thought)]
        if action.startswith("open "):
            closed.discard(here)
            answer = (
                f"You open the {here}. The {here} is open. In it, you see {_listed_things(inside[here])}."
            )
        elif action.startswith("go to "):
            here = action.removeprefix("go to ")
            answer = f"You arrive at loc {rng.randint(1, 45)}. "
            if here in closed:
                answer += f"The {here} is closed."
            else:
                answer += f"On the {here}, you see {_listed_things(inside[here])}."
        else:
            break
    return example


def draw_order(rng: Random, weights: Weights = Weights()) -> Example:
    """Stations and lamps, one after the other, in the orders that the skills of one prompt say."""
    things, places = sorted(usual_places()), _all_places()
    treatments: list[Treatment] = ["clean", "heat", "cool"]
    orders = Orders(frozenset(t for t in treatments if rng.random() < 0.5), rng.random() < 0.5)
    stations = {
        t: Skill(
            id=f"{t}_{rng.randint(1, 9):03}",
            name="",
            principle=orders.station(t, rng.choice(places)),
        )
        for t in rng.sample(treatments, rng.randint(1, 3))
    }
    listed = rng.sample([thing for thing in things if thing != "desklamp"], rng.randint(2, 6))
    lamp = rng.random() < 0.5
    known = [*listed, "desklamp"] if lamp else listed
    numbers = rng.sample(range(1, LAST_ID + 1), len(known))
    located = {
        thing: location_skill(thing, rng.choice(places), number)
        for thing, number in zip(known, numbers, strict=True)
    }
    look = Skill(id=f"look_{rng.randint(1, 9):03}", name="", principle=orders.look)
    skills = [*located.values(), *stations.values(), *([look] if lamp else [])]
    example = Example(
        [{"role": "system", "content": render_system("alfworld", skills, COMPACT)}], [(0.0, 0.0)], [""]
    )

    def turn(answer: str, task: str, thought: str, action: str) -> None:
        example.messages.append(
            {"role": "user", "content": f"{answer}\nTask: {task.removesuffix('.')}".strip()}
        )
        example.messages.append({"role": "assistant", "content": format_reply(thought, action)})
        example.weights += [(0.0, 0.0), (weights.reply, 0.5 * weights.reply)]
        example.kinds += ["", step_kind(thought)]

    for _ in range(rng.randint(5, 8)):
        thing = rng.choice(listed)
        if lamp and rng.random() < 0.35:
            task = rng.choice(worlds._WORDINGS["Look"]).format(o=thing, r="desklamp")
            first = located["desklamp" if orders.lamp_first else thing]
            turn("", task, quote(first), f"go to {quote(first).split()[1]} 1")
            continue
        treatment = rng.choice(sorted(stations))
        said = quote(stations[treatment])
        place = f"{said.split()[1]} {rng.choice((1, 1, 1, 2, 3))}"
        task = rng.choice(worlds._WORDINGS[treatment.title()]).format(o=thing, r=rng.choice(places))
        turn(f"You pick up the {thing} 1 from the {rng.choice(places)} 1.", task, said, f"go to {place}")
        seen = _listed_things(rng.sample(things, rng.choice((0, 0, 1, 2))))
        view = rng.choice((f"On the {place}, you see {seen}.", f"The {place} is closed."))
        answer = f"You arrive at loc {rng.randint(1, 45)}. {view}"
        if treatment in orders.examined:
            turn(answer, task, f"examine the place first [{stations[treatment].id}]", f"examine {place}")
            answer = view
        turn(answer, task, said, f"{treatment} {thing} 1 with {place}")
    return example


_WELCOME = (
    "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you,"
)


def _listed_things(things: Sequence[str]) -> str:
    return _listed([f"{thing} 1" for thing in sorted(things)])


def _listed(names: Sequence[str]) -> str:
    """`a desk 1, a shelf 2, and a shelf 1`; `nothing`."""
    names = [f"a {name}" for name in names]
    return ", ".join([*names[:-1], f"and {names[-1]}"]) if len(names) > 1 else "".join(names) or "nothing"


def _view(rng: Random, place: str, names: Sequence[str]) -> str:
    """What the games say when one comes to a place, or opens it, and sees this there."""
    listed = _listed(names)
    arrived = f"You arrive at loc {rng.randint(1, 45)}. "
    return rng.choice(
        (
            f"{arrived}On the {place}, you see {listed}.",
            f"{arrived}On the {place}, you see {listed}.",
            f"{arrived}The {place} is open. In it, you see {listed}.",
            f"You open the {place}. The {place} is open. In it, you see {listed}.",
        )
    )


@lru_cache(maxsize=1)
def _all_places() -> list[str]:
    return sorted({place for where in usual_places().values() for place in where})
