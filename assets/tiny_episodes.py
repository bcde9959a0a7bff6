"""Training text of krill-tiny: episodes of procedural households, and drills of looking things up.

Everything is drawn from a `random.Random`; households are those of the seeds a caller gives, so training and
measurement can use disjoint ones. Conversations are rendered by the product's own prompt code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import Literal

from krill_tui.agent.actions import format_reply
from krill_tui.agent.prompts import PromptOptions, first_messages, render_system, render_turn
from krill_tui.envs.alfworld import worlds
from krill_tui.envs.alfworld.engine import AlfworldGame
from krill_tui.envs.alfworld.expert import AlfworldExpert, usual_places
from krill_tui.envs.alfworld.game import GameData
from krill_tui.envs.alfworld.text import parse_task
from krill_tui.models.base import Message
from krill_tui.skill import Skill
from krill_tui.trajectory import Task

SkillMode = Literal["right", "irrelevant", "wrong", "none"]
Noise = float | Mapping[str, float]
"""Share of vague steps, of all or by the kind of step."""

COMPACT = PromptOptions(style="compact", list_admissible=False)
"""The prompt krill-tiny knows."""

VAGUE = ("hmm", "hmm", "hmm", "maybe this", "not sure")
"""What a player thinks who then does anything that is possible; the first one most often."""

BEGINNER = {"lookup": 0.7, "search": 0.9, "take": 0.5, "transform": 0.55, "put": 0.55}
"""How often a beginner is vague, by what would have been right (`step_kind`): mostly while it searches."""

_PROCEDURES = {
    "Pick": "put: take it, then put it",
    "PickTwo": "put two: take it, put it, take the other, then put it",
    "Look": "look: take it, go to desklamp, then use it",
    "Clean": "clean: take it, go to sinkbasin, clean it, then put it",
    "Heat": "heat: take it, go to microwave, heat it, then put it",
    "Cool": "cool: take it, go to fridge, cool it, then put it",
}
_LESSONS = (
    "search: go to each place once, then the next",
    "search: open each closed place, then look inside",
    "nothing happens: do something else",
    "act: name only things that are here",
)
_LAST_ID = 60
"""Ids of location skills are drawn up to this number."""
_STEP_LIMIT = 25


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


def location_skill(thing: str, place: str, number: int) -> Skill:
    """A skill such as the builtin teacher writes: `mug: cabinet`."""
    return Skill(id=f"gen_{number:03}", name=f"Where the {thing} is", principle=f"{thing}: {place}")


def draw_skills(
    rng: Random, mode: SkillMode, home: Mapping[str, str], relevant: Sequence[str], category: str
) -> list[Skill]:
    """The skills of a prompt: location skills (general tier), then perhaps a procedure and lessons."""
    others = [thing for thing in home if thing not in relevant]
    things = rng.sample(others, rng.randint(2, 7))
    if mode in ("right", "wrong"):
        things += relevant
    if mode == "none":
        things = []
    rng.shuffle(things)
    numbers = rng.sample(range(1, _LAST_ID + 1), len(things))
    skills = []
    for thing, number in zip(things, numbers, strict=True):
        place = home[thing]
        if mode == "wrong":
            place = rng.choice([other for other in usual_places()[thing] if other != place] or [place])
        skills.append(location_skill(thing, place, number))
    if rng.random() < (0.5 if mode != "none" else 0.3):
        prefix = category.lower()
        lines = [_PROCEDURES[category], *rng.sample(_LESSONS, rng.randint(0, 2))]
        start = rng.randint(1, 4)
        for offset, line in enumerate(lines):
            skills.append(Skill(id=f"{prefix}_{start + offset:03}", name="", principle=line, tier=category))
    return skills


def draw_world(rng: Random, households: range, split: str = "train") -> tuple[int, GameData, Task]:
    """(household seed, game, task) of a new world, as the product would open it."""
    seed, index = rng.choice(households), rng.randrange(10_000)
    game, category = worlds.build_world("small", split, seed, index)
    description = game.task.strip().removesuffix(".")
    name = f"builtin/small/{split}/{seed}/{index}"
    task = Task(id=name, env="alfworld", split=split, category=category, description=description)
    return seed, game, task


def relevant_things(task: Task) -> list[str]:
    """The object types a task makes one look for."""
    goal = parse_task(task.description)
    if goal is None:
        return []
    return [goal.object, goal.target] if goal.category == "Look" else [goal.object]


def draw_episode(
    rng: Random, households: range, mode: SkillMode, noise: Noise, weights: Weights = Weights()
) -> Example:
    """An episode of the expert who follows the skills of the prompt, with vague steps in between."""
    seed, world, task = draw_world(rng, households)
    things = relevant_things(task)
    skills = draw_skills(rng, mode, worlds.household(seed).home, things, task.category)
    return play_expert(rng, AlfworldGame(world), task, skills, noise, weights)


def play_expert(
    rng: Random, game: AlfworldGame, task: Task, skills: Sequence[Skill], noise: Noise, weights: Weights
) -> Example:
    """Let the expert play, quoting skills with their ids, with vague steps in between."""
    hints = {s.principle.partition(": ")[0]: s for s in skills if s.id.startswith("gen_")}
    expert = AlfworldExpert({thing: [s.principle.partition(": ")[2]] for thing, s in hints.items()})
    result = game.reset()
    example = Example(first_messages("alfworld", skills, result, task, COMPACT), [], [])
    example.weights = [(0.0, 0.0), (weights.observation, weights.observation)]
    example.kinds = ["", ""]
    for _ in range(_STEP_LIMIT):
        thought, action = expert.act(result)
        if expert.last_hint in hints:
            skill = hints[expert.last_hint]
            thought = f"{skill.principle} [{skill.id}]"
        kind, weight = step_kind(thought), (weights.reply, weights.reply)
        if rng.random() < (noise if isinstance(noise, (int, float)) else noise[kind]):
            thought, action = rng.choice(VAGUE), rng.choice(result.admissible)
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
    numbers = rng.sample(range(1, _LAST_ID + 1), len(listed))
    skills = {
        thing: location_skill(thing, rng.choice(places), number)
        for thing, number in zip(listed, numbers, strict=True)
    }
    missing = [thing for thing in things if thing not in skills]
    system = render_system("alfworld", list(skills.values()), COMPACT)
    example = Example([{"role": "system", "content": system}], [(0.0, 0.0)], [""])
    for _ in range(rng.randint(10, 16)):
        thing = rng.choice(listed) if rng.random() < 0.8 else rng.choice(missing)
        category = rng.choice(("Pick", "PickTwo", "Clean", "Heat", "Cool"))
        sentence = rng.choice(worlds._WORDINGS[category]).format(o=thing, r=rng.choice(places))
        action = "look"
        if thing in skills:
            skill = skills[thing]
            thought = f"{skill.principle} [{skill.id}]"
            action = f"go to {skill.principle.partition(': ')[2]} 1"
        else:
            thought = f"find {thing}"
        # Mostly without an action: more lookups for the same number of tokens.
        reply = format_reply(thought, action) if rng.random() < 0.3 else f"<think>{thought}</think>"
        example.messages.append({"role": "user", "content": f"Task: {sentence.removesuffix('.')}"})
        example.messages.append({"role": "assistant", "content": reply})
        example.weights += [(0.0, 0.0), (weights.reply, 0.2 * weights.reply)]
        example.kinds += ["", "lookup" if thing in skills else "search"]
    return example


@lru_cache(maxsize=1)
def _all_places() -> list[str]:
    return sorted({place for where in usual_places().values() for place in where})
