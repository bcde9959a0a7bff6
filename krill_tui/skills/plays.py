"""What an episode shows to a program: where things were and what order won (ALFWorld), what went wrong (all)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from krill_tui.envs.alfworld.text import object_type, parse_task, placed, sight, taken, treated
from krill_tui.skills.purchases import purchase
from krill_tui.trajectory import Step, Trajectory

_USE = re.compile(r"use (?P<object>[a-z]+) \d+")
_GO = re.compile(r"go to (?P<place>.+)")
_OPENED = re.compile(r"You open the (?P<place>[a-z]+ \d+)\.")
_NO_EFFECT = "Nothing happens."


@dataclass(frozen=True, slots=True)
class Deed:
    """One action that changed what the agent holds or what an object is like."""

    verb: str
    """`take`, `put`, `heat`, `cool`, `clean`, `use`."""
    object: str
    """Type of the object: `mug`."""
    place: str = ""
    """Type of the receptacle it was done at: `microwave`."""


@dataclass(frozen=True, slots=True)
class Faults:
    """What went wrong in one episode."""

    repeated: bool = False
    """The same action without effect three times or more."""
    unopened: bool = False
    """Stood before closed receptacles, opened few of them, and did not win."""
    revisited: bool = False
    """Went to the same places again and again without taking anything in between."""
    invalid: bool = False
    """A third of the actions or more were not possible."""
    unbought: bool = False
    """Left the shop with nothing."""
    unchosen: bool = False
    """Bought something without an option that was asked for."""
    dear: bool = False
    """Bought something above the price that was asked for."""


def answers(trajectory: Trajectory) -> Iterator[tuple[Step, str]]:
    """Each step with what the environment answered to it."""
    for step, following in zip(trajectory.steps, trajectory.steps[1:], strict=False):
        yield step, following.observation
    if trajectory.steps:
        yield trajectory.steps[-1], trajectory.final_observation


def sightings(trajectory: Trajectory) -> dict[str, str]:
    """Object (`mug 2`) to the type of receptacle it was first seen in (`cabinet`).

    Only what the world put there counts: an object is no longer noted once the agent moved it.
    """
    found: dict[str, str] = {}
    moved: set[str] = set()
    for _, answer in answers(trajectory):
        if step := taken(answer):
            found.setdefault(step[0], object_type(step[1]))
            moved.add(step[0])
        elif seen := sight(answer):
            for name in seen.objects:
                if name not in moved:
                    found.setdefault(name, object_type(seen.receptacle))
    return found


def inspected(trajectory: Trajectory) -> set[str]:
    """Types of receptacles whose inside or top was seen."""
    sights = (sight(answer) for _, answer in answers(trajectory))
    return {object_type(seen.receptacle) for seen in sights if seen is not None and not seen.closed}


def deeds(trajectory: Trajectory) -> tuple[Deed, ...]:
    """What was done with objects of the task's type, in order, the same verb never twice in a row.

    Empty where the task is worded freely.
    """
    goal = parse_task(trajectory.task)
    done: list[Deed] = []
    for step, answer in answers(trajectory):
        deed = _deed(step.action, answer)
        if goal is None or deed is None or (done and done[-1].verb == deed.verb):
            continue
        if deed.object == goal.object or deed.verb == "use":
            done.append(deed)
    return tuple(done)


def faults(trajectory: Trajectory) -> Faults:
    """What went wrong in an episode that was not won."""
    repeated = _repeats(trajectory)
    invalid = trajectory.invalid_actions * 3 >= max(len(trajectory.steps), 1)
    if trajectory.env == "webshop":
        bought = purchase(trajectory)
        return Faults(
            repeated=repeated,
            invalid=invalid,
            unbought=bought is None,
            unchosen=bought is not None and bool(bought.unchosen),
            dear=bought is not None and bought.dear,
        )
    return Faults(
        repeated=repeated,
        invalid=invalid,
        unopened=_passes_closed(trajectory),
        revisited=_revisits(trajectory),
    )


def _deed(action: str, answer: str) -> Deed | None:
    if step := taken(answer):
        return Deed("take", object_type(step[0]), object_type(step[1]))
    if step := placed(answer):
        return Deed("put", object_type(step[0]), object_type(step[1]))
    if treatment := treated(answer):
        return Deed(treatment[0], object_type(treatment[1]), object_type(treatment[2]))
    used = _USE.fullmatch(action)
    if used and answer.strip() != _NO_EFFECT:
        return Deed("use", used["object"])
    return None


def _repeats(trajectory: Trajectory) -> bool:
    run, last = 0, None
    for step, answer in answers(trajectory):
        fruitless = answer.strip() in (_NO_EFFECT, step.observation.strip())
        run = run + 1 if fruitless and step.action == last else int(fruitless)
        last = step.action
        if run >= 3:
            return True
    return False


def _passes_closed(trajectory: Trajectory) -> bool:
    met: set[str] = set()
    opened: set[str] = set()
    for _, answer in answers(trajectory):
        seen = sight(answer)
        if seen is not None and seen.closed:
            met.add(seen.receptacle)
        opened |= {match["place"] for match in _OPENED.finditer(answer)}
    return len(met) >= 2 and len(met & opened) * 2 < len(met)


def _revisits(trajectory: Trajectory) -> bool:
    visits: Counter[str] = Counter()
    again = 0
    for step, answer in answers(trajectory):
        going = _GO.fullmatch(step.action)
        if taken(answer):
            visits.clear()
        elif going and answer.strip() != _NO_EFFECT:
            visits[going["place"]] += 1
            again += visits[going["place"]] > 1
    return again >= 3
