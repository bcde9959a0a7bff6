"""PDDL expressions, and domains of the ALFRED family.

The domain's actions are compared with the family's schemas; what may differ between versions (where
things are cleaned, heated, cooled, what slices) is taken from the file. An action or a condition that is
none of these is refused by name, because playing it by guess would be wrong silently.
"""

from __future__ import annotations

import re
from functools import lru_cache

from krill_tui.envs.alfworld.facts import NAMES
from krill_tui.envs.alfworld.game import Rules
from krill_tui.errors import DataError

Expr = str | tuple["Expr", ...]

_NEAR = "(atlocation ?a ?l) (receptacleatlocation ?r ?l)"
_VISIBLE = "(or (not (openable ?r)) (opened ?r))"
SCHEMAS: dict[str, tuple[str, str, str]] = {
    "look": ("?a - agent ?l - location", "(atlocation ?a ?l)", "(checked ?l)"),
    "inventory": ("?a - agent", "()", "(checked ?a)"),
    "help": ("?a - agent", "()", "(checked ?a)"),
    "examinereceptacle": (
        "?a - agent ?r - receptacle",
        f"(exists (?l - location) (and {_NEAR}))",
        "(checked ?r)",
    ),
    "examineobject": (
        "?a - agent ?o - object",
        f"(or (exists (?l - location ?r - receptacle) (and {_NEAR} (inreceptacle ?o ?r) {_VISIBLE}))"
        " (holds ?a ?o))",
        "(checked ?o)",
    ),
    "gotolocation": (
        "?a - agent ?lstart - location ?lend - location ?r - receptacle",
        "(and (atlocation ?a ?lstart) (receptacleatlocation ?r ?lend))",
        "(and (not (atlocation ?a ?lstart)) (atlocation ?a ?lend))",
    ),
    "openobject": (
        "?a - agent ?l - location ?r - receptacle",
        f"(and (openable ?r) {_NEAR} (not (opened ?r)))",
        "(and (opened ?r) (checked ?r))",
    ),
    "closeobject": (
        "?a - agent ?l - location ?r - receptacle",
        f"(and (openable ?r) {_NEAR} (opened ?r))",
        "(not (opened ?r))",
    ),
    "pickupobject": (
        "?a - agent ?l - location ?o - object ?r - receptacle",
        f"(and (pickupable ?o) {_NEAR} (inreceptacle ?o ?r) (not (holdsany ?a)) {_VISIBLE})",
        "(and (not (inreceptacle ?o ?r)) (holds ?a ?o) (holdsany ?a) (not (objectatlocation ?o ?l)))",
    ),
    "putobject": (
        "?a - agent ?l - location ?o - object ?r - receptacle ?ot - otype ?rt - rtype",
        f"(and (holds ?a ?o) {_NEAR} {_VISIBLE} (objecttype ?o ?ot) (receptacletype ?r ?rt)"
        " (cancontain ?rt ?ot))",
        "(and (inreceptacle ?o ?r) (objectatlocation ?o ?l) (not (holds ?a ?o)) (not (holdsany ?a)))",
    ),
    "cleanobject": (
        "?a - agent ?l - location ?r - receptacle ?o - object",
        f"(and (cleanable ?o) (receptacletype ?r *) {_NEAR} (holds ?a ?o))",
        "(isclean ?o)",
    ),
    "heatobject": (
        "?a - agent ?l - location ?r - receptacle ?o - object",
        f"(and (heatable ?o) (receptacletype ?r *) {_NEAR} (holds ?a ?o))",
        "(and (ishot ?o) (not (iscool ?o)))",
    ),
    "coolobject": (
        "?a - agent ?l - location ?r - receptacle ?o - object",
        f"(and (coolable ?o) (receptacletype ?r *) {_NEAR} (holds ?a ?o))",
        "(and (iscool ?o) (not (ishot ?o)))",
    ),
    "toggleobject": (
        "?a - agent ?l - location ?o - object ?r - receptacle",
        f"(and (toggleable ?o) {_NEAR} (inreceptacle ?o ?r))",
        "(and (when (ison ?o) (not (ison ?o))) (when (not (ison ?o)) (ison ?o)) (istoggled ?o))",
    ),
    "sliceobject": (
        "?a - agent ?l - location ?co - object ?ko - object",
        "(and (sliceable ?co) (objecttype ?ko *) (atlocation ?a ?l) (objectatlocation ?co ?l)"
        " (holds ?a ?ko))",
        "(issliced ?co)",
    ),
}
"""By action: parameters, precondition, effect; `*` is any constant or several of them under `or`."""

PARAMETERS: dict[str, tuple[tuple[str, str], ...]] = {
    name: tuple(re.findall(r"\?(\w+) - (\w+)", schema[0])) for name, schema in SCHEMAS.items()
}
"""By action: (variable, type) of each parameter."""

BOUND = {
    name: tuple(parameter for parameter in parameters if parameter[1] in NAMES)
    for name, parameters in PARAMETERS.items()
}
"""By action: the parameters that its texts can speak of."""


def parse_expression(text: str) -> Expr:
    """A PDDL text as nested tuples in lower case, comments left out.

    Raises:
        DataError: the brackets do not match.
    """
    tokens = re.findall(r"[()]|[^\s()]+", re.sub(r";[^\n]*", "", text).lower())
    stack: list[list[Expr]] = [[]]
    for token in tokens:
        if token == "(":
            stack.append([])
        elif token == ")":
            if len(stack) == 1:
                raise DataError("the PDDL has a bracket too many")
            closed = tuple(stack.pop())
            stack[-1].append(closed)
        else:
            stack[-1].append(token)
    if len(stack) != 1 or len(stack[0]) != 1:
        raise DataError("the PDDL breaks off: its brackets do not match")
    return stack[0][0]


def _normal(expr: Expr) -> Expr:
    """Conjunctions flat and sorted, costs left out, alternatives of one constant merged to `*`."""
    if isinstance(expr, str) or not expr:
        return expr
    head, *rest = expr
    if (
        head in ("receptacletype", "objecttype")
        and isinstance(expr[-1], str)
        and not expr[-1].startswith("?")
    ):
        return (head, expr[1], "*")
    if head not in ("and", "or"):
        return (head, *(_normal(part) for part in rest))
    parts: set[Expr] = set()
    for part in map(_normal, rest):
        if isinstance(part, tuple) and part and part[0] == "increase":
            continue
        parts.update(part[1:] if isinstance(part, tuple) and part and part[0] == head else (part,))
    return next(iter(parts)) if len(parts) == 1 else (head, *sorted(parts, key=repr))


def _is_constant(expr: Expr) -> bool:
    return isinstance(expr, str) and not expr.startswith("?")


def _constants(expr: Expr, predicate: str) -> frozenset[str]:
    """The constants that stand as last argument of `predicate` anywhere in `expr`."""
    if isinstance(expr, str):
        return frozenset()
    if len(expr) == 3 and expr[0] == predicate and isinstance(expr[2], str) and _is_constant(expr[2]):
        return frozenset((expr[2],))
    return frozenset().union(*(_constants(part, predicate) for part in expr))


@lru_cache(maxsize=1)
def _known_schemas() -> dict[str, tuple[Expr, Expr, Expr]]:
    return {
        name: (
            parse_expression(f"({parameters})"),
            _normal(parse_expression(precondition)),
            _normal(parse_expression(effect)),
        )
        for name, (parameters, precondition, effect) in SCHEMAS.items()
    }


@lru_cache(maxsize=16)
def parse_domain(text: str) -> Rules:
    """The rules of a domain text.

    Raises:
        DataError: not a domain of the ALFRED family; the message names the action that is not known.
    """
    domain = parse_expression(text)
    found: dict[str, Expr] = {}
    for part in domain:
        if not isinstance(part, tuple) or len(part) < 2 or part[0] != ":action":
            continue
        name = str(part[1])
        fields = dict(zip(part[2::2], part[3::2], strict=False))
        schema = tuple(fields.get(key, ()) for key in (":parameters", ":precondition", ":effect"))
        known = _known_schemas().get(name)
        if known is None:
            raise DataError(f"the PDDL domain has an action that is not ALFRED's: '{name}'")
        same = (_commaless(schema[0]), _normal(_commaless(schema[1])), _normal(schema[2])) == known
        if not same:
            raise DataError(
                f"the PDDL domain's action '{name}' differs from ALFRED's in what it needs or does"
            )
        found[name] = schema[1]
    missing = sorted(set(SCHEMAS) - set(found) - {"help"})
    if missing:
        raise DataError(f"the PDDL domain lacks ALFRED's action '{missing[0]}'")
    return Rules(
        actions=frozenset(found),
        clean_at=_constants(found["cleanobject"], "receptacletype"),
        heat_at=_constants(found["heatobject"], "receptacletype"),
        cool_at=_constants(found["coolobject"], "receptacletype"),
        slice_with=_constants(found["sliceobject"], "objecttype"),
        examine_in_place=_commaless(found["examineobject"]) == found["examineobject"],
    )


def typed_list(expr: Expr) -> list[tuple[str, str]]:
    """(variable, type) for each variable of `(?a ?b - kind ?c - other)`.

    Raises:
        DataError: a variable has no type.
    """
    pairs: list[tuple[str, str]] = []
    waiting: list[str] = []
    words = [word.rstrip(",") for word in expr if isinstance(word, str)]
    for before, word in zip(["", *words], words, strict=False):
        if before == "-":
            pairs += [(variable, word) for variable in waiting]
            waiting = []
        elif word != "-":
            waiting.append(word)
    if waiting:
        raise DataError(f"the PDDL has a variable without a type: '{waiting[0]}'")
    return pairs


def _commaless(expr: Expr) -> Expr:
    if isinstance(expr, str):
        return expr.rstrip(",")
    return tuple(_commaless(part) for part in expr)
