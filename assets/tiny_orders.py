"""Households in which the order of steps differs, for training text of krill-tiny and its measurement.

In some a station has to be examined before anything can be treated there; in some the lamp can be used with empty
hands only, so it comes before the thing, in the others only by who holds something. A prompt can say which it is,
in the words the builtin teacher finds for what it saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import cast

from krill_tui.agent.policies import place_hints
from krill_tui.envs.alfworld import text, worlds
from krill_tui.envs.alfworld.engine import AlfworldGame
from krill_tui.envs.alfworld.expert import AlfworldExpert
from krill_tui.envs.alfworld.game import GameData, Move, Options
from krill_tui.envs.alfworld.text import TREATMENT, TaskGoal, Treatment, object_type
from krill_tui.envs.base import StepResult
from krill_tui.skill import Skill
from krill_tui.skills.text import Station

ORDERED_CATEGORIES = ("Look", "Clean", "Heat", "Cool")
"""Those of which the order can differ."""
LAMP_FIRST = "look: go to desklamp, use it, then take it"
LAMP_LAST = "look: take it, go to desklamp, then use it"
_EXAMINE = "examine the place, "
_TREATING: dict[str, Treatment] = {"cleanobject": "clean", "heatobject": "heat", "coolobject": "cool"}


@dataclass(frozen=True, slots=True)
class Orders:
    """In what order a household's things are done."""

    examined: frozenset[Treatment]
    """Treatments whose station has to be examined after one came there, and before one treats anything."""
    lamp_first: bool
    """The lamp can be used with empty hands only; else only by who holds something."""

    def other(self) -> Orders:
        """The opposite in everything."""
        treatments = cast("frozenset[Treatment]", frozenset(TREATMENT.values()))
        return Orders(treatments - self.examined, not self.lamp_first)

    def station(self, treatment: Treatment, place: str) -> str:
        """What a skill says: where something is treated, and in what order."""
        principle = Station(treatment, place).principle
        return (
            principle.replace("go there, ", f"go there, {_EXAMINE}")
            if treatment in self.examined
            else principle
        )

    @property
    def look(self) -> str:
        return LAMP_FIRST if self.lamp_first else LAMP_LAST


def orders_of(seed: int) -> Orders:
    """Those of the household of a seed."""
    return draw_orders(Random(f"orders/{seed}"))


def draw_orders(rng: Random) -> Orders:
    return Orders(frozenset(t for t in TREATMENT.values() if rng.random() < 0.5), rng.random() < 0.5)


class OrderedGame(AlfworldGame):
    """A game of a household with an order of its own: what comes too early is not admissible."""

    def __init__(self, game: GameData, orders: Orders) -> None:
        super().__init__(game)
        self._orders = orders
        self._examined = -1
        """The receptacle examined since one came here."""

    def reset(self) -> StepResult:
        self._examined = -1
        return super().reset()

    def step(self, command: str) -> StepResult:
        move = self._moves.get(command.strip())
        if move and move.action == "gotolocation":
            self._examined = -1
        elif move and move.action == "examinereceptacle":
            self._examined = move.first
        return super().step(command)

    def _admissible(self) -> Options:
        moves, commands = super()._admissible()
        early = {command for command, move in moves.items() if self._comes_early(move)}
        if not early:
            return moves, commands
        left = {command: move for command, move in moves.items() if command not in early}
        return left, tuple(command for command in commands if command not in early)

    def _comes_early(self, move: Move) -> bool:
        if move.action == "toggleobject":
            return (self.state.held >= 0) == self._orders.lamp_first
        return _TREATING.get(move.action) in self._orders.examined and move.second != self._examined


class OrderedExpert(AlfworldExpert):
    """The planner for such households: it does things in the order the `skills` say, and tries the other where none
    says so or where that does not work.
    """

    def __init__(self, skills: Sequence[Skill]) -> None:
        hints = place_hints(skills)
        super().__init__({key: places for key, (places, _) in hints.items()})
        self._told = {key: skill for key, (_, skill) in hints.items() if _EXAMINE in skill.principle}
        self._lamp_first = any(skill.principle == LAMP_FIRST for skill in skills)
        self._lit = False
        self._examined: set[str] = set()
        """Since it came here."""
        self._origin = ""
        """Where the thing in hand was taken from."""
        self._last = ""

    def act(self, result: StepResult) -> tuple[str, str]:
        if result.observation.startswith("You arrive"):
            self._examined.clear()
        self._lit = self._lit or (
            self._last.startswith("use ") and result.observation.startswith("You turn on")
        )
        if taken := text.taken(result.observation):
            self._origin = taken[1]
        thought, self._last = super().act(result)
        return thought, self._last

    def _decide(self) -> tuple[str, str]:
        goal = self._goal
        if goal and goal.category == "Look" and self._held is None and self._lamp_first and not self._lit:
            lamp = self._lamp_here(goal)
            if lamp and f"use {lamp}" not in self._admissible:
                self._lamp_first = False
            else:
                return super()._light(goal)
        return super()._decide()

    def _lamp_here(self, goal: TaskGoal) -> str:
        lamps = (
            thing
            for place, things in self._inside.items()
            if self._is_at(place)
            for thing in things
            if object_type(thing) == goal.target
        )
        return next(lamps, "")

    def _light(self, goal: TaskGoal) -> tuple[str, str]:
        lamp = self._lamp_here(goal)
        early = bool(lamp) and f"use {lamp}" not in self._admissible
        if self._held and not self._lit and (early or self._lamp_first):
            self._lamp_first = True
            puts = (text.put_command(self._admissible, self._held, place) for place in self._inside)
            # Where it does not fit, it goes back to where it was.
            action = next(filter(None, puts), None) or self._reach(self._origin, None)
            if action:
                return f"put {goal.object} first", action
        return super()._light(goal)

    def _treat(self, goal: TaskGoal, held: str) -> tuple[str, str]:
        treatment = goal.treatment or "clean"
        hinted = self._hints.get(treatment, ())
        elsewhere = not hinted or self._useless.issuperset(hinted)
        for place in filter(self._is_at, self._receptacles):
            kind = object_type(place)
            told = self._told.get(treatment) if kind in hinted else None
            possible = f"{treatment} {held} with {place}" in self._admissible
            plausible = not possible and (
                kind in hinted or (elsewhere and kind in worlds.STATIONS[treatment])
            )
            if place not in self._examined and (told or plausible):
                self._examined.add(place)
                return "examine the place first" + (f" [{told.id}]" if told else ""), f"examine {place}"
        return super()._treat(goal, held)
