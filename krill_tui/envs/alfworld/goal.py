"""Goals of the dataset: conjunctions of `exists ... such that all of these facts hold`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from krill_tui.envs.alfworld.facts import BINARY, OBJECT_FLAGS, UNARY
from krill_tui.envs.alfworld.game import GameData, GoalClause, Literal
from krill_tui.envs.alfworld.pddl import Expr, typed_list
from krill_tui.errors import DataError

if TYPE_CHECKING:
    from krill_tui.envs.alfworld.engine import State

_ORDER = {"agent": 0, "location": 1, "object": 2, "receptacle": 3}
_CHANGED_BY = {
    "atlocation": ("gotolocation",),
    "opened": ("openobject", "closeobject"),
    "inreceptacle": ("pickupobject", "putobject"),
    "not_inreceptacle": ("pickupobject", "putobject"),
    "objectatlocation": ("pickupobject", "putobject"),
    "holds": ("pickupobject", "putobject"),
    "holdsany": ("pickupobject", "putobject"),
    "isclean": ("cleanobject",),
    "ishot": ("heatobject", "coolobject"),
    "iscool": ("heatobject", "coolobject"),
    "istoggled": ("toggleobject",),
    "ison": ("toggleobject",),
    "issliced": ("sliceobject",),
}
_TYPING = {"objecttype", "receptacletype"}
_STATIC = {*OBJECT_FLAGS, "openable", *_TYPING}


def compile_goal(expr: Expr, game: GameData) -> tuple[GoalClause, ...]:
    """The clauses of a PDDL goal `(:goal ...)`, with its static facts already looked up.

    Raises:
        DataError: the goal says something that the dataset's goals do not.
    """
    if isinstance(expr, str) or len(expr) != 2:
        raise DataError("the PDDL goal cannot be read")
    return tuple(_clause(part, game) for part in _conjuncts(expr[1]))


def _conjuncts(expr: Expr) -> list[Expr]:
    if isinstance(expr, tuple) and expr and expr[0] == "and":
        return [inner for part in expr[1:] for inner in _conjuncts(part)]
    return [expr]


def _clause(expr: Expr, game: GameData) -> GoalClause:
    kinds: dict[str, str] = {}
    literals: list[tuple[str, ...]] = []
    _flatten(expr, kinds, literals)
    counts = {
        "agent": 1,
        "location": len(game.location_names),
        "object": len(game.object_names),
        "receptacle": len(game.receptacle_names),
    }
    candidates = {name: tuple(range(counts[kind])) for name, kind in kinds.items()}
    running: list[Literal] = []
    for predicate, *arguments in literals:
        if predicate in _STATIC:
            variable = arguments[0]
            fits = _static(predicate, arguments, game)
            candidates[variable] = tuple(n for n in candidates[variable] if fits(n))
        else:
            running.append((predicate, tuple(arguments)))
    ordered = tuple(sorted(kinds.items(), key=lambda item: _ORDER[item[1]]))
    depth = {name: number for number, (name, _) in enumerate(ordered)}
    literals_at: list[list[Literal]] = [[] for _ in ordered]
    for literal in running:
        literals_at[max(depth[name] for name in literal[1])].append(literal)
    return GoalClause(ordered, candidates, tuple(map(tuple, literals_at)))


def _flatten(expr: Expr, kinds: dict[str, str], literals: list[tuple[str, ...]]) -> None:
    """Collect the variables and literals of nested `exists` and `and`."""
    if isinstance(expr, str) or not expr:
        raise DataError("the PDDL goal cannot be read")
    head, *rest = expr
    if head == "and":
        for part in rest:
            _flatten(part, kinds, literals)
    elif head == "exists" and len(rest) == 2 and isinstance(rest[0], tuple):
        for name, kind in typed_list(rest[0]):
            if kind not in _ORDER or kinds.setdefault(name, kind) != kind:
                raise DataError(f"the PDDL goal has a variable of an unknown type: '{name} - {kind}'")
        _flatten(rest[1], kinds, literals)
    else:
        literals.append(_literal(expr, kinds))


def _literal(expr: tuple[Expr, ...], kinds: Mapping[str, str]) -> tuple[str, ...]:
    if expr[0] == "not" and len(expr) == 2 and isinstance(expr[1], tuple) and expr[1][:1] == ("=",):
        expr = ("!=", *expr[1][1:])
    words = [word for word in expr if isinstance(word, str)]
    predicate, arguments = (words or [""])[0], words[1:]
    count = 1 if predicate in _STATIC - _TYPING or predicate in UNARY else 2
    known = predicate in _STATIC or predicate in UNARY or predicate in BINARY or predicate == "!="
    variables = arguments[:1] if predicate in _TYPING else arguments
    strange = any(variable not in kinds for variable in variables)
    if not known or strange or len(words) != len(expr) or len(arguments) != count:
        raise DataError(f"the PDDL goal asks for something this engine does not know: '{predicate}'")
    return tuple(words)


def _static(predicate: str, arguments: list[str], game: GameData) -> Callable[[int], bool]:
    if predicate == "objecttype":
        return lambda n: game.object_types[n] == arguments[1]
    if predicate == "receptacletype":
        return lambda n: game.receptacle_types[n] == arguments[1]
    members = game.openable if predicate == "openable" else game.flags[predicate]
    return lambda n: n in members


def reached(state: State) -> bool:
    """Whether every clause of the game's goal holds."""
    return all(_satisfied(clause, state, {}, 0) for clause in state.game.goal)


def _satisfied(clause: GoalClause, state: State, env: dict[str, int], depth: int) -> bool:
    if depth == len(clause.variables):
        return True
    variable, kind = clause.variables[depth]
    # A place matters to a goal only as the agent's.
    candidates = (state.location,) if kind == "location" else clause.candidates[variable]
    for number in candidates:
        env[variable] = number
        for literal in clause.literals[depth]:
            if not _holds(literal, state, env):
                break
        else:
            if _satisfied(clause, state, env, depth + 1):
                return True
    return False


def _holds(literal: Literal, state: State, env: Mapping[str, int]) -> bool:
    predicate, arguments = literal
    if len(arguments) == 1:
        return env[arguments[0]] in UNARY[predicate](state)
    first, second = arguments
    if predicate == "!=":
        return env[first] != env[second]
    return env[first] in BINARY[predicate][0](state, env[second])


def deciding_actions(goal: tuple[GoalClause, ...]) -> frozenset[str]:
    """The actions that can make the goal true: after all others there is nothing to check."""
    predicates = {literal[0] for clause in goal for literals in clause.literals for literal in literals}
    return frozenset(action for predicate in predicates for action in _CHANGED_BY.get(predicate, ()))
