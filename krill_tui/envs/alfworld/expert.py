"""A planner that plays household games from their text alone, and says why in a few words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from random import Random

from krill_tui.envs.alfworld import text, worlds
from krill_tui.envs.alfworld.text import TaskGoal, object_type
from krill_tui.envs.base import StepResult

ExpertHints = Mapping[str, Sequence[str]]
"""Object type -> receptacle types to search first, treatment (`heat`) -> receptacle types to try first; best first."""

CLOSED_KINDS = frozenset({"cabinet", "drawer", "fridge", "microwave", "safe"})
_RARE = 0.003
"""Chance given to a place where the dataset never keeps a thing."""


@lru_cache(maxsize=1)
def usual_places() -> dict[str, dict[str, float]]:
    """Object type -> receptacle type -> how likely one such receptacle holds it, over the dataset."""
    likely: dict[str, dict[str, float]] = {}
    for room in worlds.statistics()["rooms"].values():
        plans = max(map(len, room["receptacles"].values()))
        for thing, facts in room["objects"].items():
            for place, count in facts["where"].items():
                instances = sum(room["receptacles"][place]) / plans
                chance = likely.setdefault(thing, {})
                chance[place] = max(chance.get(place, 0.0), count / room["games"] / max(instances, 0.5))
    return likely


class AlfworldExpert:
    """Explores the likeliest places first, remembers what it saw, and does what the task needs.

    It sees observations and admissible commands only. With `hints` it searches the hinted places before all others,
    and treats things at the hinted stations first; where no hint says better it tries the dataset's station, then
    those of other households, then whatever is there.
    """

    def __init__(self, hints: ExpertHints | None = None, rng: Random | None = None) -> None:
        self._hints = hints or {}
        self._rng = rng
        self.last_hint: str | None = None
        """Object type or treatment whose hint the last action followed."""
        self._goal: TaskGoal | None = None
        self._receptacles: list[str] = []
        self._inside: dict[str, list[str]] = {}
        """What was last seen in each receptacle that was looked into."""
        self._held: str | None = None
        self._treated: set[str] = set()
        self._refused: set[str] = set()
        """Receptacles that do not take what has to be put there."""
        self._stuck: set[str] = set()
        """Things that cannot be taken."""
        self._useless: set[str] = set()
        """Types of receptacles at which the task's treatment turned out not to be possible."""
        self._admissible: Sequence[str] = ()

    def act(self, result: StepResult) -> tuple[str, str]:
        """(thought, action) for the newest observation; called once per step, in order."""
        self._observe(result)
        self.last_hint = None
        thought, action = self._decide()
        return thought, action

    def _observe(self, result: StepResult) -> None:
        self._admissible = result.admissible
        observation = result.observation
        if self._goal is None:
            self._goal = text.parse_task(text.task_sentence(observation))
        for command in result.admissible:
            name = command.removeprefix("go to ")
            if name != command and name not in self._receptacles:
                self._receptacles.append(name)
        if seen := text.sight(observation):
            if seen.receptacle not in self._receptacles:
                self._receptacles.append(seen.receptacle)
            if not seen.closed:
                self._inside[seen.receptacle] = list(seen.objects)
        if taken := text.taken(observation):
            thing, place = taken
            self._held = thing
            self._inside[place] = [other for other in self._inside.get(place, []) if other != thing]
        if placed := text.placed(observation):
            self._held = None
            self._inside.setdefault(placed[1], []).append(placed[0])
        if treated := text.treated(observation):
            self._treated.add(treated[1])

    def _decide(self) -> tuple[str, str]:
        goal = self._goal
        if goal is None:
            return "the task is not clear", self._fallback()
        if self._held is None:
            return self._fetch(goal)
        if goal.category == "Look":
            return self._light(goal)
        if goal.treatment and self._held not in self._treated:
            return self._treat(goal, self._held)
        return self._deliver(goal, self._held)

    def _fetch(self, goal: TaskGoal) -> tuple[str, str]:
        """Take a thing of the wanted type that is not yet where it belongs, or look for one."""
        candidates: list[tuple[str, str]] = []
        for place, things in self._inside.items():
            for thing in things:
                wanted = object_type(thing) == goal.object and thing not in self._stuck
                if wanted and not self._is_done(goal, thing, place):
                    candidates.append((thing, place))
        if not candidates:
            return self._search(goal.object)
        here = [pair for pair in candidates if self._is_at(pair[1])]
        thing, place = (here or candidates)[0]
        action = self._reach(place, f"take {thing} from {place}")
        if action is None:
            self._stuck.add(thing)
            return self._fetch(goal)
        return f"take {goal.object}", action

    def _is_done(self, goal: TaskGoal, thing: str, place: str) -> bool:
        if goal.category == "Look" or object_type(place) != goal.target:
            return False
        if goal.treatment:
            return thing in self._treated
        return goal.count == 1 or place == self._collecting(goal)

    def _collecting(self, goal: TaskGoal) -> str | None:
        """Where the things of a task for two are brought together: where most of them already are."""
        places = [place for place in self._receptacles if object_type(place) == goal.target]
        places = [place for place in places if place not in self._refused] or places
        return max(places, key=lambda place: self._count(goal, place), default=None)

    def _count(self, goal: TaskGoal, place: str) -> int:
        return sum(object_type(thing) == goal.object for thing in self._inside.get(place, ()))

    def _treat(self, goal: TaskGoal, held: str) -> tuple[str, str]:
        treatment = goal.treatment or ""
        for place in self._receptacles:
            action = f"{treatment} {held} with {place}"
            if action in self._admissible:
                return self._at_station(goal, object_type(place)), action
            if self._is_at(place):
                self._useless.add(object_type(place))
        hinted = list(self._hints.get(treatment, ()))
        order = (*hinted, *worlds.STATIONS[goal.treatment or "clean"])
        stations = [place for place in self._receptacles if object_type(place) not in self._useless]
        if not stations:
            self._useless.clear()
            return f"{treatment} {goal.object}", self._fallback()
        station = min(stations, key=lambda place: (_position(order, object_type(place)), self._number(place)))
        return self._at_station(goal, object_type(station)), self._reach(station, None) or self._fallback()

    def _at_station(self, goal: TaskGoal, kind: str) -> str:
        if kind in self._hints.get(goal.treatment or "", ()):
            self.last_hint = goal.treatment
        return f"{goal.treatment} {goal.object} at {kind}"

    def _deliver(self, goal: TaskGoal, held: str) -> tuple[str, str]:
        thought = f"put {goal.object} in {goal.target}"
        target = self._collecting(goal)
        if target is None:
            return thought, self._fallback()
        put = text.put_command(self._admissible, held, target)
        action = put or self._reach(target, None)
        if action is None:
            self._refused.add(target)
            again = self._collecting(goal)
            action = self._reach(again, None) if again and again != target else None
        return thought, action or self._fallback()

    def _light(self, goal: TaskGoal) -> tuple[str, str]:
        lamps = [
            (thing, place)
            for place, things in self._inside.items()
            for thing in things
            if object_type(thing) == goal.target
        ]
        for lamp, place in lamps:
            action = self._reach(place, f"use {lamp}", opening=False)
            if action:
                return f"use {goal.target}", action
        return self._search(goal.target)

    def _search(self, wanted: str) -> tuple[str, str]:
        """Go to, or open, the likeliest place not looked into yet."""
        unknown = [place for place in self._receptacles if place not in self._inside]
        if not unknown:
            # Everything was seen and it is nowhere: what was seen may be out of date.
            self._inside.clear()
            self._stuck.clear()
            unknown = list(self._receptacles)
        if not unknown:
            return f"find {wanted}", self._fallback()
        hinted = list(self._hints.get(wanted, ()))
        place = min(unknown, key=lambda name: self._rank(name, wanted, hinted))
        kind = object_type(place)
        if kind in hinted:
            self.last_hint = wanted
        return f"find {wanted} in {kind}", self._reach(place, f"examine {place}") or self._fallback()

    def _rank(self, place: str, wanted: str, hinted: Sequence[str]) -> tuple[float, ...]:
        kind = object_type(place)
        if kind in hinted:
            return (0.0, float(hinted.index(kind)), 0.0 if self._is_at(place) else 1.0, self._number(place))
        chance = usual_places().get(wanted, {}).get(kind, _RARE)
        steps = 2.0 if kind in CLOSED_KINDS else 1.0
        if self._is_at(place):
            steps -= 0.9
        return (1.0, -chance / steps, 0.0, self._number(place))

    def _number(self, place: str) -> float:
        if self._rng is not None:
            return self._rng.random()
        return float(self._receptacles.index(place))

    def _is_at(self, place: str) -> bool:
        return f"examine {place}" in self._admissible

    def _reach(self, place: str, command: str | None, *, opening: bool = True) -> str | None:
        """`command` when it can be given; else the step that leads towards it; None when nothing does."""
        if f"go to {place}" in self._admissible and not self._is_at(place):
            return f"go to {place}"
        if opening and f"open {place}" in self._admissible:
            return f"open {place}"
        return command if command in self._admissible else None

    def _fallback(self) -> str:
        return "look" if "look" in self._admissible or not self._admissible else self._admissible[0]


def _position(order: Sequence[str], kind: str) -> int:
    return order.index(kind) if kind in order else len(order)
