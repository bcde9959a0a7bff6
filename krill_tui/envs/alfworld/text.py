"""Reads the sentences of household games: what lies where, and what the task asks for.

Works on the text alone, for the older wording (`put X in/on Y`) and the newer one (`move X to Y`), so
that a planner, a miner of skills or a test sees no more than an agent does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Treatment = Literal["clean", "heat", "cool"]

CATEGORIES = ("Pick", "Look", "Clean", "Heat", "Cool", "PickTwo")

CATEGORY_OF_TYPE = {
    "pick_and_place_simple": "Pick",
    "look_at_obj_in_light": "Look",
    "pick_clean_then_place_in_recep": "Clean",
    "pick_heat_then_place_in_recep": "Heat",
    "pick_cool_then_place_in_recep": "Cool",
    "pick_two_obj_and_place": "PickTwo",
}
"""By the dataset's task type, which is also how its folders begin."""

TREATMENT: dict[str, Treatment] = {"Clean": "clean", "Heat": "heat", "Cool": "cool"}
"""By category, where it has one."""

STATION: dict[Treatment, str] = {"clean": "sinkbasin", "heat": "microwave", "cool": "fridge"}
"""By treatment: the receptacle type that does it."""

_THING = re.compile(r"\ba ([a-z]+ \d+)")
_SIGHT = re.compile(r"(?:On|The) (?:the )?([a-z]+ \d+)(?: is open\. In it)?, you see ([^.\n]*)")
_CLOSED = re.compile(r"The ([a-z]+ \d+) is closed")
_ROOM = re.compile(r"Looking quickly around you, you see ([^.\n]*)")
_TASK = re.compile(r"Your task is to: ([^\n]*)")
_TAKEN = re.compile(r"You pick up the ([a-z]+ \d+) from the ([a-z]+ \d+)")
_PLACED = re.compile(r"You (?:put|move) the ([a-z]+ \d+) (?:in/on|to) the ([a-z]+ \d+)")
_TREATED = re.compile(r"You (clean|heat|cool) the ([a-z]+ \d+) using the ([a-z]+ \d+)")

_SENTENCES: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"(?:put|find) two (?P<object>\w+)(?: and put them)? (?:in|on) (?P<target>\w+)"), "PickTwo"),
    (re.compile(r"(?P<how>clean|heat|cool) some (?P<object>\w+) and put it (?:in|on) (?P<target>\w+)"), ""),
    (re.compile(r"put an? (?P<how>clean|hot|cool) (?P<object>\w+) (?:in|on) (?P<target>\w+)"), ""),
    (re.compile(r"put (?:an?|some) (?P<object>\w+) (?:in|on) (?P<target>\w+)"), "Pick"),
    (re.compile(r"(?:look at|examine) (?:the )?(?P<object>\w+) (?:under|with) the (?P<target>\w+)"), "Look"),
)
_HOW: dict[str, Treatment] = {"clean": "clean", "heat": "heat", "hot": "heat", "cool": "cool"}


@dataclass(frozen=True, slots=True)
class TaskGoal:
    """What a task sentence asks for."""

    category: str
    """One of CATEGORIES."""
    object: str
    """Object type, e.g. `mug`."""
    target: str
    """Receptacle type to put it in, or the lamp's type in Look."""
    count: int = 1
    treatment: Treatment | None = None


@dataclass(frozen=True, slots=True)
class Sight:
    """What one observation shows of one receptacle."""

    receptacle: str
    objects: tuple[str, ...] = ()
    closed: bool = False


def parse_task(description: str) -> TaskGoal | None:
    """The goal of a task sentence; None where it is worded freely (a human annotation)."""
    sentence = description.strip().lower().rstrip(".")
    for pattern, category in _SENTENCES:
        match = pattern.fullmatch(sentence)
        if match is None:
            continue
        how = match.groupdict().get("how")
        treatment = _HOW[how] if how else None
        return TaskGoal(
            category=category or (treatment or "").capitalize(),
            object=match["object"],
            target=match["target"],
            count=2 if category == "PickTwo" else 1,
            treatment=treatment,
        )
    return None


def task_sentence(observation: str) -> str:
    """The task in a first observation, without its full stop; empty where there is none."""
    match = _TASK.search(observation)
    return match[1].strip().removesuffix(".") if match else ""


def room_receptacles(observation: str) -> list[str]:
    """The receptacles that a first observation lists."""
    match = _ROOM.search(observation)
    return _THING.findall(match[1]) if match else []


def sight(observation: str) -> Sight | None:
    """What arriving at, opening or examining a receptacle shows; None for every other sentence."""
    match = _SIGHT.search(observation)
    if match:
        return Sight(match[1], tuple(_THING.findall(match[2])))
    closed = _CLOSED.search(observation)
    return Sight(closed[1], closed=True) if closed else None


def seen_objects(observation: str) -> tuple[str | None, list[str]]:
    """(receptacle, objects in it) that an observation shows; (None, []) where it shows none."""
    seen = sight(observation)
    return (seen.receptacle, list(seen.objects)) if seen else (None, [])


def taken(observation: str) -> tuple[str, str] | None:
    """(object, receptacle) where the agent has just picked something up."""
    match = _TAKEN.search(observation)
    return (match[1], match[2]) if match else None


def placed(observation: str) -> tuple[str, str] | None:
    """(object, receptacle) where the agent has just put something down."""
    match = _PLACED.search(observation)
    return (match[1], match[2]) if match else None


def treated(observation: str) -> tuple[str, str, str] | None:
    """(treatment, object, receptacle) where the agent has just cleaned, heated or cooled something."""
    match = _TREATED.search(observation)
    return (match[1], match[2], match[3]) if match else None


def object_type(name: str) -> str:
    """`mug` of `mug 2`; receptacles likewise."""
    return name.partition(" ")[0]


def put_command(admissible: Iterable[str], thing: str, receptacle: str) -> str | None:
    """The admissible command that puts `thing` there, in either wording."""
    wordings = {f"put {thing} in/on {receptacle}", f"move {thing} to {receptacle}"}
    return next((command for command in admissible if command in wordings), None)
