"""Real household games with rules of their own, played by small players; for tests of teachers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from random import Random

from krill_tui.envs.alfworld.engine import AlfworldGame
from krill_tui.envs.alfworld.expert import AlfworldExpert
from krill_tui.envs.alfworld.game import GameData
from krill_tui.envs.alfworld.text import TaskGoal, object_type, parse_task
from krill_tui.envs.alfworld.worlds import build_world
from krill_tui.envs.base import StepResult
from krill_tui.trajectory import Step, StopReason, Trajectory

Player = Callable[[StepResult], str]

RULE = {"heat": "heat_at", "cool": "cool_at", "clean": "clean_at"}


def household_games(
    count: int, stations: Mapping[str, str], *, category: str = "", holds: str = ""
) -> list[tuple[str, str, GameData]]:
    """(id, category, game) of full worlds in which treatments are done at `stations` (treatment to receptacle type).

    `category` and `holds` (a receptacle type) keep only the games that are of the one and have the other.
    """
    found: list[tuple[str, str, GameData]] = []
    index = 0
    while len(found) < count:
        game, kind = build_world("full", "train", 5, index)
        rules = replace(game.rules, **{RULE[t]: frozenset({f"{place}type"}) for t, place in stations.items()})
        # Caches of what can be done belong to the old rules.
        game = replace(game, rules=rules, commands={}, travel={}, options={})
        if category in ("", kind) and (not holds or f"{holds}type" in game.receptacle_types):
            found.append((f"world/{index}", kind, game))
        index += 1
    return found


def play(
    game_id: str,
    category: str,
    game: GameData,
    player: Player,
    *,
    id: str = "",
    split: str = "train",
    limit: int = 60,
) -> Trajectory:
    """One episode; a player that raises StopIteration has no more to say."""
    env = AlfworldGame(game)
    result = env.reset()
    steps: list[Step] = []
    reward = 0.0
    for index in range(limit):
        try:
            action = player(result)
        except StopIteration:
            break
        after = env.step(action)
        steps.append(
            Step(
                index=index,
                observation=result.observation,
                admissible=result.admissible,
                action=action,
                text=action,
                valid=action in result.admissible,
                reward=after.reward,
            )
        )
        reward += after.reward
        result = after
        if result.done:
            break
    return Trajectory(
        id=id or game_id,
        env="alfworld",
        task_id=game_id,
        split=split,
        task=game.task.strip().removesuffix("."),
        category=category,
        steps=tuple(steps),
        final_observation=result.observation,
        total_reward=reward,
        success=result.won,
        stop_reason=StopReason.SUCCESS if result.won else StopReason.STEP_LIMIT,
    )


def fetcher(game: GameData, then: Callable[[StepResult, str], str]) -> Player:
    """Plays like the expert until it holds what the task asks for; `then` gets the result and the thing."""
    goal = goal_of(game)
    expert = AlfworldExpert()
    held: list[str] = []

    def act(result: StepResult) -> str:
        if not held:
            mark = "You pick up the "
            if result.observation.startswith(mark):
                name = result.observation.removeprefix(mark).partition(" from")[0]
                if object_type(name) == goal.object:
                    held.append(name)
        return then(result, held[0]) if held else expert.act(result)[1]

    return act


def wanderer(game: GameData, seed: int = 0, *, shuns: str = "") -> Player:
    """Fetches the thing, then carries it from place to place (never to a `shuns`) and does nothing with it."""
    rng = Random(seed)

    def wander(result: StepResult, held: str) -> str:
        places = [a for a in result.admissible if a.startswith("go to ") and object_type(a[6:]) != shuns]
        return rng.choice(places)

    return fetcher(game, wander)


def stubborn(game: GameData, treatment: str, station: str) -> Player:
    """Fetches the thing, carries it to the first `station` and says again and again that it treats it there."""

    def insist(result: StepResult, held: str) -> str:
        there = next((a for a in result.admissible if a.startswith(f"go to {station} ")), None)
        here = next((a[8:] for a in result.admissible if a.startswith(f"examine {station} ")), "")
        if not here and there:
            return there
        return f"{treatment} {held} with {here}"

    return fetcher(game, insist)


def goer(
    goal_kind: Callable[[], str], wanted: Callable[[str, str], bool]
) -> Callable[[StepResult, str], str]:
    """Goes to the receptacle type `goal_kind()`, opens it, and takes the first action that is `wanted`."""

    def act(result: StepResult, held: str) -> str:
        kind = goal_kind()
        options = [a for a in result.admissible if wanted(a, held)]
        options += [a for a in result.admissible if a.startswith(f"open {kind} ")]
        options += [a for a in result.admissible if a.startswith(f"go to {kind} ")]
        if not options:
            raise StopIteration
        return options[0]

    return act


def puts(action: str, held: str, kind: str) -> bool:
    """Whether an action puts the thing in hand somewhere of this type."""
    return action.startswith((f"put {held} ", f"move {held} ")) and f" {kind} " in action


def knowing(game: GameData, treatment: str, station: str) -> Player:
    """Fetches the thing, treats it at `station`, and puts it where it belongs."""
    target = goal_of(game).target
    done: list[str] = []

    def wanted(action: str, held: str) -> bool:
        return (
            puts(action, held, target) if done else action.startswith(f"{treatment} {held} with {station} ")
        )

    go = goer(lambda: target if done else station, wanted)

    def act(result: StepResult, held: str) -> str:
        if f"You {treatment} the {held}" in result.observation:
            done.append(held)
        return go(result, held)

    return fetcher(game, act)


def goal_of(game: GameData) -> TaskGoal:
    """What the task asks for."""
    goal = parse_task(game.task)
    assert goal is not None
    return goal
