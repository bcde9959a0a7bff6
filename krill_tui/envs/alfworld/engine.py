"""Plays a household game: the state of one episode, what can be done, and what is said about it."""

from __future__ import annotations

from bisect import insort
from dataclasses import replace

from krill_tui.envs.alfworld import goal
from krill_tui.envs.alfworld.facts import OBJECT_STATES
from krill_tui.envs.alfworld.game import GameData, Move, Options
from krill_tui.envs.alfworld.grammar import TASK_PLACE
from krill_tui.envs.alfworld.pddl import BOUND
from krill_tui.envs.base import StepResult
from krill_tui.errors import EnvironmentFailure

NOTHING_HAPPENS = "Nothing happens."
_MOST_OPTIONS = 4096
"""Kept lists of commands of one game."""


THINGS: dict[str, tuple[str, ...]] = {
    "look": (),
    "inventory": (),
    "help": (),
    "examinereceptacle": ("r",),
    "examineobject": ("o",),
    "gotolocation": ("r",),
    "openobject": ("r",),
    "closeobject": ("r",),
    "pickupobject": ("o", "r"),
    "putobject": ("o", "r"),
    "cleanobject": ("o", "r"),
    "heatobject": ("o", "r"),
    "coolobject": ("o", "r"),
    "toggleobject": ("o", "r"),
    "sliceobject": ("co", "ko"),
}
"""By action: which parameters a `Move` gives; the others are the agent and the places."""


class State:
    """Everything that changes during an episode."""

    __slots__ = ("contents", "game", "held", "left", "location", "object_at", "opened", "states")

    def __init__(self, game: GameData) -> None:
        self.game = game
        self.location = game.start_location
        self.held = game.held
        """The object in the agent's hands, -1 for none."""
        self.contents = [list(inside) for inside in game.contents]
        """By receptacle: the objects in it, ascending."""
        self.opened = set(game.opened)
        self.object_at = set(game.object_at)
        self.left: set[tuple[int, int]] = set()
        """(object, receptacle): taken out of it, and not put back."""
        self.states = {name: set(game.states.get(name, ())) for name in OBJECT_STATES}
        """By predicate of `facts.OBJECT_STATES`: the objects of which it is true."""

    def visible(self, receptacle: int) -> bool:
        """Whether the contents can be seen and reached."""
        return receptacle not in self.game.openable or receptacle in self.opened


class AlfworldGame:
    """One episode: `reset`, then `step` for each command; after the end the last result is repeated."""

    def __init__(self, game: GameData) -> None:
        self.game = game
        self.state = State(game)
        self._moves: dict[str, Move] = {}
        self._last: StepResult | None = None

    def reset(self) -> StepResult:
        """Begin again; the observation is the room and the task."""
        self.state = State(self.game)
        intro = self.game.grammar.render("#intro#", ())(self.state, {})
        won = goal.reached(self.state)
        return self._result(intro.replace(TASK_PLACE, self.game.task), won)

    def step(self, command: str) -> StepResult:
        """Play one command; one that is not admissible changes nothing and says so.

        Raises:
            EnvironmentFailure: `reset` was not called, or the game's grammar has no sentence for this.
        """
        if self._last is None:
            raise EnvironmentFailure("the game was not reset before its first step")
        if self._last.done:
            return self._last
        move = self._moves.get(command.strip())
        if move is None:
            self._last = replace(self._last, observation=NOTHING_HAPPENS)
            return self._last
        start = self.state.location
        _apply(self.state, move)
        won = move.action in self.game.deciding and goal.reached(self.state)
        return self._result(self._feedback(move, start), won)

    def _feedback(self, move: Move, start: int) -> str:
        text = self.game.grammar.actions[move.action][1]
        env = _environment(self.game, move, start)
        return self.game.grammar.render(text, BOUND[move.action])(self.state, env)

    def _result(self, observation: str, won: bool) -> StepResult:
        self._moves, admissible = self._admissible()
        self._last = StepResult(observation, admissible, reward=float(won), done=won, won=won)
        return self._last

    def _admissible(self) -> Options:
        """Every command that can be given now, and the same sorted."""
        key = _surroundings(self.state)
        options = self.game.options.get(key)
        if options is None:
            if len(self.game.options) >= _MOST_OPTIONS:
                self.game.options.clear()
            options = self.game.options[key] = self._list_options()
        return options

    def _list_options(self) -> Options:
        state, game = self.state, self.game
        if state.location not in game.travel:
            game.travel[state.location] = self._travel(state.location)
        moves = dict(game.travel[state.location])
        for move in _local_moves(state):
            moves.setdefault(self._command(move), move)
        return moves, tuple(sorted(moves))

    def _travel(self, location: int) -> dict[str, Move]:
        """What can be done at a place whatever has changed there."""
        moves = [Move(name) for name in ("look", "inventory", "help") if name in self.game.rules.actions]
        places = self.game.receptacle_location
        moves += [Move("gotolocation", r) for r, place in enumerate(places) if place != location]
        return {self._command(move): move for move in moves}

    def _command(self, move: Move) -> str:
        command = self.game.commands.get(move)
        if command is None:
            command = self.game.commands[move] = self._render_command(move)
        return command

    def _render_command(self, move: Move) -> str:
        text = self.game.grammar.actions[move.action][0]
        env = _environment(self.game, move, self.state.location)
        return self.game.grammar.render(text, BOUND[move.action])(self.state, env)


def _surroundings(state: State) -> tuple[object, ...]:
    """All that the admissible commands depend on."""
    here = state.game.receptacles_at[state.location]
    inside = tuple([(r in state.opened, *state.contents[r]) for r in here])
    if state.held >= 0 and state.game.object_types[state.held] in state.game.rules.slice_with:
        near = frozenset(thing for thing, place in state.object_at if place == state.location)
        return state.location, state.held, inside, near
    return state.location, state.held, inside


def _environment(game: GameData, move: Move, start: int) -> dict[str, int]:
    """The parameters of a move made by an agent that stood at `start`."""
    env = {"a": 0, **dict(zip(THINGS[move.action], move[1:], strict=False))}
    if move.action == "gotolocation":
        return {**env, "lstart": start, "lend": game.receptacle_location[move.first]}
    return {**env, "l": start}


def _local_moves(state: State) -> list[Move]:
    """What the receptacles at the agent's place and the thing in its hands allow."""
    game, held = state.game, state.held
    moves: list[Move] = []
    add = moves.append
    pickupable, toggleable = game.flags["pickupable"], game.flags["toggleable"]
    for r in game.receptacles_at[state.location]:
        add(Move("examinereceptacle", r))
        visible = True
        if r in game.openable:
            visible = r in state.opened
            add(Move("closeobject" if visible else "openobject", r))
        for o in state.contents[r]:
            if visible and held < 0 and o in pickupable:
                add(Move("pickupobject", o, r))
            if visible and game.rules.examine_in_place:
                add(Move("examineobject", o))
            if o in toggleable:
                add(Move("toggleobject", o, r))
        if held >= 0:
            if visible and (game.receptacle_types[r], game.object_types[held]) in game.can_contain:
                add(Move("putobject", held, r))
            _treatments(game, held, r, moves)
    if held >= 0:
        add(Move("examineobject", held))
        if game.object_types[held] in game.rules.slice_with:
            sliceable = game.flags["sliceable"]
            moves += [
                Move("sliceobject", o, held)
                for o, place in state.object_at
                if place == state.location and o in sliceable
            ]
    return moves


def _treatments(game: GameData, held: int, receptacle: int, moves: list[Move]) -> None:
    kind, rules = game.receptacle_types[receptacle], game.rules
    if kind in rules.clean_at and held in game.flags["cleanable"]:
        moves.append(Move("cleanobject", held, receptacle))
    if kind in rules.heat_at and held in game.flags["heatable"]:
        moves.append(Move("heatobject", held, receptacle))
    if kind in rules.cool_at and held in game.flags["coolable"]:
        moves.append(Move("coolobject", held, receptacle))


def _apply(state: State, move: Move) -> None:
    """The effect of a move whose precondition holds."""
    match move.action:
        case "gotolocation":
            state.location = state.game.receptacle_location[move.first]
        case "openobject":
            state.opened.add(move.first)
        case "closeobject":
            state.opened.discard(move.first)
        case "pickupobject":
            state.contents[move.second].remove(move.first)
            state.left.add((move.first, move.second))
            state.object_at.discard((move.first, state.location))
            state.held = move.first
        case "putobject":
            if move.first not in state.contents[move.second]:
                insort(state.contents[move.second], move.first)
            state.left.discard((move.first, move.second))
            state.object_at.add((move.first, state.location))
            state.held = -1
        case "cleanobject":
            state.states["isclean"].add(move.first)
        case "heatobject":
            state.states["ishot"].add(move.first)
            state.states["iscool"].discard(move.first)
        case "coolobject":
            state.states["iscool"].add(move.first)
            state.states["ishot"].discard(move.first)
        case "toggleobject":
            state.states["istoggled"].add(move.first)
            state.states["ison"] ^= {move.first}
        case "sliceobject":
            state.states["issliced"].add(move.first)
