"""Reads a whole game: a `game.tw-pddl` file, or its three texts."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from krill_tui.envs.alfworld.facts import OBJECT_FLAGS, OBJECT_STATES
from krill_tui.envs.alfworld.game import GameData, Rules
from krill_tui.envs.alfworld.goal import compile_goal, deciding_actions
from krill_tui.envs.alfworld.grammar import Grammar, compile_grammar, split_task
from krill_tui.envs.alfworld.pddl import BOUND, Expr, parse_domain, parse_expression
from krill_tui.errors import DataError

_ORDER = {"agent": 0, "location": 1, "object": 2, "receptacle": 3}
_ARGUMENTS = {
    "atlocation": ("agent", "location"),
    "receptacleatlocation": ("receptacle", "location"),
    "objectatlocation": ("object", "location"),
    "inreceptacle": ("object", "receptacle"),
    "inreceptacleobject": ("object", "object"),
    "receptacletype": ("receptacle", ""),
    "objecttype": ("object", ""),
    "openable": ("receptacle",),
    "opened": ("receptacle",),
    "holds": ("agent", "object"),
    **dict.fromkeys((*OBJECT_FLAGS, *OBJECT_STATES), ("object",)),
}
"""By predicate: the types of its arguments; constants have none."""

Facts = Mapping[str, set[tuple[str, str]]]


def load_game(path: Path) -> GameData:
    """The game of a `game.tw-pddl` file.

    Raises:
        DataError: the file cannot be read as a game; the message names it.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        domain, problem, grammar = (data[key] for key in ("pddl_domain", "pddl_problem", "grammar"))
    except OSError as error:
        raise DataError(f"cannot read the game {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a game file: it is not valid JSON ({error})") from None
    except (KeyError, TypeError, IndexError):
        raise DataError(
            f"{path} is not a game file: it needs pddl_domain, pddl_problem and grammar"
        ) from None
    if not all(isinstance(text, str) for text in (domain, problem, grammar)):
        raise DataError(f"{path} is not a game file: pddl_domain, pddl_problem and grammar must be texts")
    try:
        return build_game(domain, problem, grammar)
    except (DataError, RecursionError) as error:
        # A piece of the file that the message quotes may hold line breaks.
        raise DataError(f"{path} cannot be played: {' '.join(str(error).split())}") from None


def build_game(domain: str, problem: str, grammar: str) -> GameData:
    """The game of three texts.

    Raises:
        DataError: one of them is not what it should be.
    """
    rules = parse_domain(domain)
    shared, task = split_task(grammar)
    compiled = compile_grammar(shared)
    missing = sorted(name for name in rules.actions if name not in compiled.actions)
    if missing:
        raise DataError(f"the text grammar says nothing about the action '{missing[0]}'")
    compiled.render("#intro#", ())
    for action in rules.actions:
        for template in compiled.actions[action]:
            compiled.render(template, BOUND[action])
    text = problem.lower()
    if ";" in text:
        text = re.sub(r";[^\n]*", "", text)
    init, goal = text.find("(:init"), text.find("(:goal")
    if not 0 <= init < goal or text.count("(") != text.count(")"):
        raise DataError("the PDDL problem breaks off, or lacks its (:init or its (:goal")
    facts: dict[str, set[tuple[str, str]]] = defaultdict(set)
    for fact in text[init + 6 : goal].split(")"):
        words = fact.split("(")[-1].split()
        if 2 <= len(words) <= 3:
            facts[words[0]].add((words[1], words[2] if len(words) == 3 else ""))
    goal_expr = parse_expression("(" + text[goal:])
    return assemble(rules, compiled, task, facts, goal_expr[0])


def assemble(rules: Rules, grammar: Grammar, task: str, facts: Facts, goal: Expr) -> GameData:
    """The game of its parsed parts; `facts` by predicate, constants in lower case.

    Raises:
        DataError: an object, a receptacle or the agent lacks what the rules need, or the goal is not
            a conjunction of existence statements.
    """
    members = _things(facts)
    ids = {kind: sorted(names) for kind, names in members.items()}
    names = display_names([identity for identities in ids.values() for identity in identities])
    number = {kind: {identity: n for n, identity in enumerate(ids[kind])} for kind in ids}
    objects, receptacles, locations = number["object"], number["receptacle"], number["location"]
    if len(ids["agent"]) != 1 or len(facts["atlocation"]) != 1:
        raise DataError("the PDDL problem must place exactly one agent")
    where = dict(sorted(facts["receptacleatlocation"]))
    receptacle_types, object_types = dict(sorted(facts["receptacletype"])), dict(sorted(facts["objecttype"]))
    unplaced = next((r for r in ids["receptacle"] if r not in where), None)
    if unplaced is not None:
        raise DataError(f"the PDDL problem does not say where the receptacle '{unplaced}' is")
    places = tuple(locations[where[r]] for r in ids["receptacle"])
    at_place = _grouped((r, place) for r, place in enumerate(places))
    inside = _grouped((objects[o], receptacles[r]) for o, r in facts["inreceptacle"])
    game = GameData(
        rules=rules,
        grammar=grammar,
        task=task,
        receptacle_names=tuple(names[r] for r in ids["receptacle"]),
        receptacle_types=tuple(receptacle_types.get(r, "") for r in ids["receptacle"]),
        receptacle_location=places,
        openable=frozenset(receptacles[r] for r, _ in facts["openable"]),
        object_names=tuple(names[o] for o in ids["object"]),
        object_types=tuple(object_types.get(o, "") for o in ids["object"]),
        flags={name: frozenset(objects[o] for o, _ in facts[name]) for name in OBJECT_FLAGS},
        location_names=tuple(names[place] for place in ids["location"]),
        receptacles_at=tuple(at_place.get(place, ()) for place in range(len(locations))),
        inner_objects=_grouped((objects[o], objects[outer]) for o, outer in facts["inreceptacleobject"]),
        can_contain=frozenset(facts["cancontain"]),
        goal=(),
        deciding=frozenset(),
        start_location=locations[next(iter(facts["atlocation"]))[1]],
        contents=tuple(inside.get(r, ()) for r in range(len(receptacles))),
        object_at=frozenset((objects[o], locations[place]) for o, place in facts["objectatlocation"]),
        opened=frozenset(receptacles[r] for r, _ in facts["opened"]),
        states={name: frozenset(objects[o] for o, _ in facts[name]) for name in OBJECT_STATES},
        held=next((objects[o] for _, o in sorted(facts["holds"])), -1),
        agent_name=names[ids["agent"][0]],
    )
    clauses = compile_goal(goal, game)
    return replace(game, goal=clauses, deciding=deciding_actions(clauses))


def _grouped(pairs: Iterable[tuple[int, int]]) -> dict[int, tuple[int, ...]]:
    """By second number of a pair: the first ones, ascending."""
    groups: dict[int, list[int]] = defaultdict(list)
    for first, second in pairs:
        groups[second].append(first)
    return {second: tuple(sorted(firsts)) for second, firsts in groups.items()}


def _things(facts: Facts) -> dict[str, set[str]]:
    """By type: the ids that occur in the facts."""
    members: dict[str, set[str]] = {kind: set() for kind in _ORDER}
    for predicate, kinds in _ARGUMENTS.items():
        for column, kind in enumerate(kinds):
            if kind:
                members[kind].update([pair[column] for pair in facts[predicate]])
    return members


def display_names(ids: list[str]) -> dict[str, str]:
    """ALFWorld's names of PDDL ids: the type and a number, given out from the sorted ids, highest first."""
    stems: dict[str, str] = {}
    for identity in sorted(ids):
        stem, bar, _ = identity.partition("_bar_")
        if bar:
            stems[identity] = stem + "basin" if "basin" in identity else stem
    left = Counter(stems.values())
    names = {identity: f"{_demangled(identity)} " for identity in ids if identity not in stems}
    for identity, stem in stems.items():
        names[identity] = f"{stem} {left[stem]}"
        left[stem] -= 1
    return names


def _demangled(identity: str) -> str:
    for mangled, sign in (("_minus_", "-"), ("_plus_", "+"), ("_dot_", "."), ("_comma_", ",")):
        identity = identity.replace(mangled, sign)
    return identity
