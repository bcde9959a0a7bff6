"""The text grammar of a game file: templates of commands, and sentences that depend on facts.

The format is that of TextWorld's PDDL games: `grammar :: triple-quoted JSON` blocks of production
rules, and `action NAME { template :: ...; feedback :: ...; }`. A production rule has an optional
condition (a conjunction of facts); the first one that applies is used. Its right-hand side mixes plain
text, `#symbol#`, `{expression}`, `{expression | query}` and `[{expression | query}]` (a spoken list).

Everything is compiled to closures over (state, variables) once per distinct text; expressions are
attribute look-ups, string literals, `+` and `or`, and nothing else: the text of a file is never run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from krill_tui.envs.alfworld import facts
from krill_tui.envs.alfworld.facts import Bound, Env
from krill_tui.errors import DataError, EnvironmentFailure
from krill_tui.io.json_text import NotJson, loads_leniently

if TYPE_CHECKING:
    from krill_tui.envs.alfworld.engine import State

Render = Callable[["State", Env], str]
RenderMany = Callable[["State", Env], list[str]]

# A game file is foreign text: nothing here may take more than linear time on any of it, hence the possessive parts.
_BLOCK_START = re.compile(r'grammar\s*+::\s*+"""')
_BLOCK_END = re.compile(r'"""\s*+;')
_ACTION = re.compile(r'action\s++([\w/-]++)\s*+\{((?:[^{}"]++|"""(?s:.*?)"""|"[^"]*+")*+)\}')
_TEMPLATE = re.compile(r'template\s*::\s*"([^"]*)"\s*;')
_FEEDBACK = re.compile(r'feedback\s*::\s*"([^"]*)"\s*;')
_ATOM = re.compile(r"\s*([\w-]+)\s*\(([^()]*)\)\s*")
_TOKEN = re.compile(
    r"#([\w()/!<>\-\s,.]+)#|\[\{([^\[\]{}]*)\}\]|\{([^\[\]{}]*)\}|([^#\[\]{}]+)|(.)", re.DOTALL
)
_TERM = re.compile(r"\s*(?:'([^']*)'|\"([^\"]*)\"|(\w+)(?:\.(\w+))?)\s*$")
_SIMPLE = re.compile(r"(?:(\w+)\.indefinite \+ ' ' \+ )?(\w+)\.name")
_TASK_START = "Your task is to: "
_TASK = re.compile(r'((?:[^"\\]++|\\.)*+)"')
TASK_PLACE = "\ue000"
"""Stands for the task sentence in a shared grammar: a private-use character that no game says."""

Production = tuple[str, str]
"""(condition, right-hand side)"""


class Grammar:
    """The production rules and action templates of one game file; `render` compiles and caches."""

    def __init__(self, rules: Mapping[str, list[Production]], actions: Mapping[str, tuple[str, str]]) -> None:
        self.rules = rules
        self.actions = actions
        """Lower-case action name: (command template, feedback)."""
        self._compiled: dict[tuple[str, Bound], Render] = {}
        self._open: set[tuple[str, Bound]] = set()

    def render(self, text: str, bound: Bound) -> Render:
        """The closure that writes `text` when the variables `bound` are known.

        Raises:
            DataError: the text is not of this format, or names a rule that is not there.
        """
        key = (text, bound)
        if key not in self._compiled:
            if key in self._open:
                raise DataError(f"the text grammar defines '{text.strip('#')}' by itself")
            self._open.add(key)
            try:
                self._compiled[key] = _joined(self._parts(text, bound))
            finally:
                self._open.discard(key)
        return self._compiled[key]

    def _parts(self, text: str, bound: Bound) -> list[str | Render]:
        # The genuine parser takes white space at the very start of a text for an empty comment.
        text = text.replace("\\n", "\n").lstrip()
        parts: list[str | Render] = []
        for symbol, spoken, single, plain, wrong in _TOKEN.findall(text):
            if wrong:
                raise DataError(f"the text grammar has a stray '{wrong}' in '{text[:60]}'")
            if plain:
                parts.append(plain)
            elif symbol:
                parts.append(self._symbol(symbol, bound))
            elif spoken:
                parts.append(self._spoken(self._items(spoken, bound), bound))
            elif "|" in single:
                parts.append(_concatenated(self._items(single, bound)))
            else:
                parts.append(self._item(single, bound))
        return parts

    def _symbol(self, symbol: str, bound: Bound) -> Render:
        productions = self.rules.get(symbol)
        if not productions:
            raise DataError(f"the text grammar has no rule '{symbol}'")
        choices: list[tuple[facts.Query | None, Render]] = []
        for condition, text in productions:
            query = facts.compile_query(parse_query(condition), bound) if condition else None
            choices.append((query, self.render(text, bound)))
            if query is None:
                break
        if len(choices) == 1 and choices[0][0] is None:
            return choices[0][1]

        def render(state: State, env: Env) -> str:
            for query, text in choices:
                if query is None or query(state, env):
                    return text(state, env)
            raise EnvironmentFailure(f"no case of the text grammar's rule '{symbol}' applies")

        return render

    def _items(self, body: str, bound: Bound) -> RenderMany:
        """`expression | query`: one string for each answer of the query."""
        expression, _, given = body.partition("|")
        expression = expression.strip()
        atoms = parse_query(given) if given.strip() else ()
        choice = facts.compile_choice(atoms, bound)
        simple = _SIMPLE.fullmatch(expression)
        if choice and simple and simple[2] == choice[0] and simple[1] in (None, simple[2]):
            return _named(simple[1] is not None, choice[1], choice[2])
        query = facts.compile_query(atoms, bound)
        inner = facts.bound_after(atoms, bound)
        item = self._item(expression, inner)

        def render(state: State, env: Env) -> list[str]:
            return [item(state, answer) for answer in query(state, env)]

        return render

    def _item(self, expression: str, bound: Bound) -> Render:
        if expression.startswith("#"):
            return self._symbol(expression.strip("#"), bound)
        return _expression(expression, dict(bound))

    def _spoken(self, items: RenderMany, bound: Bound) -> Render:
        """A list as it is said: `a`, `a, and b`, `a, b, and c`, or the rule for an empty one."""
        empty = self._symbol("list_empty", bound)
        separator = self._symbol("list_separator", bound)
        last = self._symbol("list_last_separator", bound)

        def render(state: State, env: Env) -> str:
            words = items(state, env)
            if not words:
                return empty(state, env)
            if len(words) == 1:
                return words[0]
            return separator(state, env).join(words[:-1]) + last(state, env) + words[-1]

        return render


def _named(article: bool, kind: str, numbers: Callable[[State, Env], Sequence[int]]) -> RenderMany:
    """The names of things of one type, each after an article or not."""
    names = facts.NAMES[kind]

    def render(state: State, env: Env) -> list[str]:
        called = names(state)
        if article:
            return ["a " + called[number] for number in numbers(state, env)]
        return [called[number] for number in numbers(state, env)]

    return render


def _concatenated(items: RenderMany) -> Render:
    return lambda state, env: "".join(items(state, env))


def _joined(parts: list[str | Render]) -> Render:
    """Parts one after the other, with neighbouring constants merged."""
    merged: list[str | Render] = []
    for part in parts:
        if isinstance(part, str) and merged and isinstance(merged[-1], str):
            merged[-1] += part
        else:
            merged.append(part)
    renders = [_constant(part) if isinstance(part, str) else part for part in merged]
    if len(renders) == 1:
        return renders[0]
    if len(merged) == 2 and isinstance(merged[0], str):
        prefix, render = merged[0], renders[1]
        return lambda state, env: prefix + render(state, env)
    return lambda state, env: "".join([render(state, env) for render in renders])


def _constant(text: str) -> Render:
    return lambda state, env: text


def _expression(text: str, types: Mapping[str, str]) -> Render:
    """`o.indefinite + ' ' + o.name`, `r.name or r.id`, `r`."""
    if re.search(r"\sor\s", text):
        options = [_expression(part, types) for part in re.split(r"\sor\s", text)]

        def first(state: State, env: Env) -> str:
            return next((said for option in options if (said := option(state, env))), "")

        return first
    return _joined([_term(part, types) for part in text.split("+")])


def _term(text: str, types: Mapping[str, str]) -> str | Render:
    match = _TERM.match(text)
    if match is None:
        raise DataError(f"the text grammar has an expression that cannot be read: '{text.strip()[:60]}'")
    single, double, variable, attribute = match.groups()
    if variable is None:
        return single if single is not None else double
    if variable not in types:
        raise DataError(f"the text grammar uses '{variable}' where it is not known")
    if attribute in (None, "name", "id"):
        names = facts.NAMES[types[variable]]
        return lambda state, env: names(state)[env[variable]]
    if attribute in ("indefinite", "definite"):
        return "a" if attribute == "indefinite" else "the"
    raise DataError(f"the text grammar asks for '{variable}.{attribute}', which nothing has")


def parse_query(text: str) -> tuple[facts.Atom, ...]:
    """`opened(r:receptacle) & holds(a:agent, o:object)` as atoms (predicate, ((variable, type), ...))."""
    atoms: list[facts.Atom] = []
    for part in text.split("&"):
        match = _ATOM.fullmatch(part)
        if match is None:
            raise DataError(f"the text grammar has a condition that cannot be read: '{part.strip()[:60]}'")
        arguments: list[tuple[str, str]] = []
        for argument in match[2].split(","):
            variable, colon, kind = argument.partition(":")
            if not colon or kind.strip() not in facts.NAMES:
                raise DataError(f"the text grammar has an unknown type in '{part.strip()[:60]}'")
            arguments.append((variable.strip(), kind.strip()))
        atoms.append((match[1], tuple(arguments)))
    return tuple(atoms)


def split_task(text: str) -> tuple[str, str]:
    """(grammar text with a place for the task, the task): all games of a dataset share the former."""
    start = text.find(_TASK_START)
    match = _TASK.match(text, start + len(_TASK_START)) if start >= 0 else None
    if match is None:
        raise DataError("the text grammar has no sentence 'Your task is to: ...'")
    try:
        task = loads_leniently(f'"{match[1]}"')
    except NotJson as error:
        raise DataError(f"the text grammar's task is not readable: {error}") from None
    return text[: match.start(1)] + TASK_PLACE + text[match.end(1) :], task


def _blocks(text: str) -> Iterator[str]:
    """The JSON of each `grammar` block."""
    position = 0
    while (start := _BLOCK_START.search(text, position)) and (end := _BLOCK_END.search(text, start.end())):
        yield text[start.end() : end.start()]
        position = end.end()


@lru_cache(maxsize=64)
def compile_grammar(text: str) -> Grammar:
    """The grammar of a text from `split_task`; the engine puts the task in its place.

    Raises:
        DataError: not of the format that the module describes.
    """
    rules: dict[str, list[Production]] = {}
    actions: dict[str, tuple[str, str]] = {}
    for name, body in _ACTION.findall(text):
        template, feedback = _TEMPLATE.search(body), _FEEDBACK.search(body)
        if template is None or feedback is None:
            raise DataError(f"the text grammar's action {name} lacks a template or a feedback")
        actions[name.lower()] = (template[1], feedback[1])
    for block in _blocks(text):
        lines = [line for line in block.split("\n") if not line.lstrip().startswith("#")]
        try:
            data = loads_leniently("\n".join(lines))
            for symbol, productions in data.items():
                rules[symbol] = [(entry.get("condition", ""), entry["rhs"]) for entry in productions]
                if not all(isinstance(text, str) for production in rules[symbol] for text in production):
                    raise TypeError(f"rule '{symbol}' holds something that is not a text")
        except (NotJson, AttributeError, KeyError, TypeError) as error:
            raise DataError(f"the text grammar is not readable: {error}") from None
    if not actions or "intro" not in rules:
        raise DataError("the text grammar has no actions or no rule 'intro'")
    return Grammar(rules, actions)
