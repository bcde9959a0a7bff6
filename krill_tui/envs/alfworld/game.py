"""One household game as data: what never changes, and how it starts.

Objects, receptacles and locations are numbered from 0, each in the order of their sorted PDDL ids,
which is also the order in which the genuine engine lists them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from krill_tui.envs.alfworld.grammar import Grammar


class Move(NamedTuple):
    """A grounded action: its lower-case name and up to two things, -1 where it has fewer."""

    action: str
    first: int = -1
    second: int = -1


Options = tuple[dict[str, Move], tuple[str, ...]]
"""The admissible commands with what they do, and the commands alone, sorted."""

Literal = tuple[str, tuple[str, ...]]
"""(predicate, variables); `!=` for inequality."""


@dataclass(frozen=True, slots=True)
class GoalClause:
    """`exists` variables such that every literal holds.

    Static facts (types, cleanable, ...) are already used up to narrow `candidates`.
    """

    variables: tuple[tuple[str, str], ...]
    """(name, type) in the order in which they are bound: agents and locations first."""
    candidates: Mapping[str, tuple[int, ...]]
    literals: tuple[tuple[Literal, ...], ...]
    """By variable: the literals that can be judged once it is bound."""


@dataclass(frozen=True, slots=True)
class Rules:
    """What a domain of the ALFRED family leaves open."""

    actions: frozenset[str]
    """Lower-case names of its actions, e.g. `gotolocation`."""
    clean_at: frozenset[str]
    """Receptacle types that clean, e.g. `sinkbasintype`."""
    heat_at: frozenset[str]
    cool_at: frozenset[str]
    slice_with: frozenset[str]
    """Object types that slice."""
    examine_in_place: bool = False
    """Whether an object can be examined where it lies. In the published domains it cannot: a comma after a
    type (`?l - location, ?r - receptacle`) makes that case a type which nothing has."""


@dataclass(frozen=True, slots=True)
class GameData:
    """Everything an episode starts from; immutable and shared by all episodes of the game."""

    rules: Rules
    grammar: Grammar
    task: str
    """The rest of the sentence `Your task is to: `, full stop included."""
    receptacle_names: tuple[str, ...]
    receptacle_types: tuple[str, ...]
    """Lower case, ending in `type`; empty where the file gives none (a cracked egg)."""
    receptacle_location: tuple[int, ...]
    openable: frozenset[int]
    object_names: tuple[str, ...]
    object_types: tuple[str, ...]
    flags: Mapping[str, frozenset[int]]
    """`facts.OBJECT_FLAGS`: the objects that have it."""
    location_names: tuple[str, ...]
    receptacles_at: tuple[tuple[int, ...], ...]
    """By location."""
    inner_objects: Mapping[int, tuple[int, ...]]
    """Object that can hold others: the objects in it."""
    can_contain: frozenset[tuple[str, str]]
    """(receptacle type, object type)"""
    goal: tuple[GoalClause, ...]
    deciding: frozenset[str]
    """The actions after which the goal may have become true."""
    start_location: int
    contents: tuple[tuple[int, ...], ...]
    """By receptacle: the objects in it at the start, ascending."""
    object_at: frozenset[tuple[int, int]]
    """(object, location) at the start."""
    opened: frozenset[int] = frozenset()
    states: Mapping[str, frozenset[int]] = field(default_factory=dict)
    """`facts.OBJECT_STATES`: the objects in it at the start."""
    held: int = -1
    """The object in the agent's hands at the start, -1 for none."""
    agent_name: str = "agent1 "
    commands: dict[Move, str] = field(default_factory=dict, compare=False, repr=False)
    """Cache of rendered commands."""
    travel: dict[int, dict[str, Move]] = field(default_factory=dict, compare=False, repr=False)
    """Cache by location of the agent: the commands that can be given there whatever has changed."""
    options: dict[tuple[object, ...], Options] = field(default_factory=dict, compare=False, repr=False)
    """Cache by what the agent has around it: all commands that can be given."""
