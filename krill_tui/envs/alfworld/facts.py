"""Facts of a running game as relations, and conjunctive queries over them.

A query binds its new variables in the order of its atoms, each atom's answers in the order of the sorted
ids; two variables of one type never stand for the same thing. That is the genuine engine's order.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from krill_tui.envs.alfworld.engine import State

OBJECT_FLAGS = (
    "pickupable",
    "cleanable",
    "heatable",
    "coolable",
    "sliceable",
    "toggleable",
    "isreceptacleobject",
)
"""Unary predicates of objects that no action changes."""

OBJECT_STATES = ("isclean", "ishot", "iscool", "issliced", "istoggled", "ison")
"""Unary predicates of objects that actions change."""

Env = dict[str, int]
Bound = tuple[tuple[str, str], ...]
"""(variable, type) of what is known, in the order in which it became known."""
Atom = tuple[str, Bound]
"""(predicate, its arguments)"""
Query = Callable[["State", Env], Sequence[Env]]

NAMES: dict[str, Callable[[State], Sequence[str]]] = {
    "agent": lambda state: (state.game.agent_name,),
    "object": lambda state: state.game.object_names,
    "receptacle": lambda state: state.game.receptacle_names,
    "location": lambda state: state.game.location_names,
}
"""By type: the names of all things of it, by number."""


def _flag(name: str) -> Callable[[State], Container[int]]:
    return lambda state: state.game.flags[name]


def _state(name: str) -> Callable[[State], Container[int]]:
    return lambda state: state.states[name]


UNARY: dict[str, Callable[[State], Container[int]]] = {
    **{name: _flag(name) for name in OBJECT_FLAGS},
    **{name: _state(name) for name in OBJECT_STATES},
    "openable": lambda state: state.game.openable,
    "opened": lambda state: state.opened,
    "holdsany": lambda state: (0,) if state.held >= 0 else (),
}

_Relation = tuple[Callable[["State", int], Sequence[int]], Callable[["State", int], Sequence[int]]]


BINARY: dict[str, _Relation] = {
    "atlocation": (
        lambda state, place: (0,) if state.location == place else (),
        lambda state, _agent: (state.location,),
    ),
    "receptacleatlocation": (
        lambda state, place: state.game.receptacles_at[place],
        lambda state, receptacle: (state.game.receptacle_location[receptacle],),
    ),
    "objectatlocation": (
        lambda state, place: sorted(o for o, at in state.object_at if at == place),
        lambda state, thing: sorted(at for o, at in state.object_at if o == thing),
    ),
    "inreceptacle": (
        lambda state, receptacle: state.contents[receptacle],
        lambda state, thing: [r for r, inside in enumerate(state.contents) if thing in inside],
    ),
    "not_inreceptacle": (
        lambda state, receptacle: sorted(o for o, r in state.left if r == receptacle),
        lambda state, thing: sorted(r for o, r in state.left if o == thing),
    ),
    "inreceptacleobject": (
        lambda state, outer: state.game.inner_objects.get(outer, ()),
        lambda state, inner: sorted(o for o, held in state.game.inner_objects.items() if inner in held),
    ),
    "holds": (
        lambda state, thing: (0,) if state.held == thing else (),
        lambda state, _agent: (state.held,) if state.held >= 0 else (),
    ),
}
"""By predicate: (first arguments that go with a second, second arguments that go with a first)."""


def bound_after(atoms: Sequence[Atom], bound: Bound) -> Bound:
    """What is known once a query over `atoms` is answered."""
    known = dict(bound)
    for _, arguments in atoms:
        for variable, kind in arguments:
            known.setdefault(variable, kind)
    return tuple(known.items())


def compile_query(atoms: Sequence[Atom], bound: Bound) -> Query:
    """All extensions of an environment under which every atom holds.

    A predicate that nothing here can be said about is a fact that never holds.
    """
    if not atoms:
        return lambda state, env: (env,)
    extends: list[Query] = []
    for atom in atoms:
        extends.append(_compile_atom(atom, bound))
        bound = bound_after([atom], bound)
    first, rest = extends[0], extends[1:]
    if not rest:
        return first

    def query(state: State, env: Env) -> Sequence[Env]:
        answers = first(state, env)
        for extend in rest:
            if not answers:
                return answers
            answers = [more for answer in answers for more in extend(state, answer)]
        return answers

    return query


def _compile_atom(atom: Atom, bound: Bound) -> Query:
    predicate, arguments = atom
    known = dict(bound)
    if predicate in UNARY and len(arguments) == 1:
        (variable, kind), members = arguments[0], UNARY[predicate]
        if variable in known:
            return lambda state, env: (env,) if env[variable] in members(state) else ()
        others = _same_kind(kind, bound)
        everything = NAMES[kind]

        def over(state: State, env: Env) -> Sequence[Env]:
            inside, taken = members(state), {env[other] for other in others}
            numbers = range(len(everything(state)))
            return [{**env, variable: n} for n in numbers if n in inside and n not in taken]

        return over
    if predicate in BINARY and len(arguments) == 2:
        return _compile_pair(BINARY[predicate], arguments[0], arguments[1], bound)
    return lambda state, env: ()


def _compile_pair(relation: _Relation, one: tuple[str, str], two: tuple[str, str], bound: Bound) -> Query:
    firsts, seconds = relation
    (first, kind), (second, _) = one, two
    known = dict(bound)
    if first in known and second in known:
        return lambda state, env: (env,) if env[first] in firsts(state, env[second]) else ()
    if second in known:
        return _choices(firsts, second, first, _same_kind(kind, bound))
    if first in known:
        return _choices(seconds, first, second, _same_kind(two[1], bound))
    everything = NAMES[kind]
    taken_first, taken_second = _same_kind(kind, bound), _same_kind(two[1], (*bound, one))

    def over(state: State, env: Env) -> Sequence[Env]:
        taken = {env[other] for other in taken_first}
        answers: list[Env] = []
        for number in range(len(everything(state))):
            if number not in taken:
                inner = {**env, first: number}
                answers += _extended(inner, second, seconds(state, number), taken_second)
        return answers

    return over


def compile_choice(
    atoms: Sequence[Atom], bound: Bound
) -> tuple[str, str, Callable[[State, Env], Sequence[int]]] | None:
    """(new variable, its type, its answers) of a query of one atom over two things of which one is known.

    A short cut for the commonest lists, e.g. what is in a receptacle; None for every other query.
    """
    if len(atoms) != 1 or atoms[0][0] not in BINARY or len(atoms[0][1]) != 2:
        return None
    (first, kind), (second, other) = atoms[0][1]
    firsts, seconds = BINARY[atoms[0][0]]
    known = dict(bound)
    if second in known and first not in known and not _same_kind(kind, bound):
        return first, kind, lambda state, env: firsts(state, env[second])
    if first in known and second not in known and not _same_kind(other, bound):
        return second, other, lambda state, env: seconds(state, env[first])
    return None


def _choices(
    side: Callable[[State, int], Sequence[int]], given: str, new: str, others: tuple[str, ...]
) -> Query:
    return lambda state, env: _extended(env, new, side(state, env[given]), others)


def _extended(env: Env, new: str, numbers: Sequence[int], others: tuple[str, ...]) -> list[Env]:
    if not others:
        return [{**env, new: number} for number in numbers]
    taken = {env[other] for other in others}
    return [{**env, new: number} for number in numbers if number not in taken]


def _same_kind(kind: str, bound: Bound) -> tuple[str, ...]:
    return tuple(variable for variable, other in bound if other == kind)
