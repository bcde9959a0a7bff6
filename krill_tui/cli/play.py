"""`krill play`: one game, played by a person or from a script."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from krill_tui.cli.options import Options, resolve_config
from krill_tui.errors import DataError, UsageError
from krill_tui.io.json_text import NotJson, loads
from krill_tui.io.streams import say, show_json

if TYPE_CHECKING:
    from krill_tui.envs.base import Environment, StepResult, TaskSource
    from krill_tui.trajectory import Task


def play(
    options: Options,
    game: Annotated[
        Path | None, typer.Option("--game", help="A game.tw-pddl file, or the folder it lies in.")
    ] = None,
    split: Annotated[str | None, typer.Option("--split", help="Split to take the game from.")] = None,
    number: Annotated[
        int,
        typer.Option("--number", min=1, max=100_000, help="Which game of the split, by the seed's order."),
    ] = 1,
    script: Annotated[
        Path | None, typer.Option("--script", help="Play these actions: one JSON string a line.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --script: one JSON object a step.")] = False,
    save: Annotated[
        Path | None, typer.Option("--save", help="By hand: write the episode to this file at the end.")
    ] = None,
) -> None:
    """Play a game in the terminal; with --script, play a file of actions."""
    if as_json and script is None:
        raise UsageError("--json needs the actions of a --script")
    if save is not None and script is not None:
        raise UsageError("--save keeps a game played by hand", hint="leave out --script")
    actions = read_script(script) if script else None
    source, task = _find_game(options, game, split, number)
    with asyncio.Runner() as runner:
        if actions is None:
            from krill_tui.cli.by_hand import play_by_hand

            play_by_hand(runner, source, task, save)
            return
        environment = source.open(task)
        try:
            _play_script(runner, environment, actions, as_json)
        finally:
            runner.run(environment.close())


COMMANDS: dict[str, Callable[..., None]] = {"play": play}


def read_script(path: Path) -> list[str]:
    """The actions of a script: one JSON string a line, empty lines left out.

    Raises:
        DataError: it cannot be read, or a line is no JSON string; names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: is not a text file") from None
    actions: list[str] = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            action = loads(line)
        except NotJson:
            action = None
        if not isinstance(action, str):
            raise DataError(f"{path}: line {number} should be one action as a JSON string")
        actions.append(action)
    return actions


def step_facts(step: int, action: str | None, result: StepResult) -> dict[str, object]:
    """One step as `--json` prints it; step 0 is the reset."""
    return {
        "step": step,
        "action": action,
        "observation": result.observation,
        "admissible": list(result.admissible),
        "reward": result.reward,
        "done": result.done,
        "won": result.won,
    }


def _find_game(
    options: Options, game: Path | None, split: str | None, number: int
) -> tuple[TaskSource, Task]:
    config = resolve_config(options)
    if game is not None:
        from krill_tui.envs.alfworld.source import GamesSource

        if (
            config.env.name != "alfworld"
            or config.env.backend in ("http", "textworld")
            or (options.mock is True)
        ):
            raise UsageError(
                "--game plays a genuine ALFWorld game file",
                hint="leave out --env webshop, --mock, --live and --backend http or textworld",
            )
        from krill_tui.envs.alfworld.listing import BROKEN, judge

        found = GamesSource.from_game(game)
        source: TaskSource = found
        reason = judge(found.root / found.tasks("game", 1)[0].ref)
        if reason not in ("", BROKEN):  # of a broken one, opening it says more
            say(f"warning: {game} is {reason}: the genuine environment skips it, and so does an evaluation")
    else:
        from krill_tui.engine.build import build_source
        from krill_tui.envs.base import notices_of

        source = build_source(config)
        for notice in notices_of(source):
            say(f"warning: {notice}")
    splits = source.splits()
    chosen = split or next((s for s in ("train", "valid_seen") if s in splits), next(iter(splits)))
    tasks = source.tasks(chosen, number, seed=config.seed)
    if len(tasks) < number:
        raise UsageError(f"split '{chosen}' holds {len(tasks)} games, there is no game {number}")
    return source, tasks[number - 1]


def _play_script(runner: asyncio.Runner, environment: Environment, actions: list[str], as_json: bool) -> None:
    from krill_tui.headless import make_console

    console = make_console()
    for step, action, result in _steps(runner, environment, actions):
        if as_json:
            show_json(step_facts(step, action, result))
            sys.stdout.flush()
        else:
            if action is not None:
                _say(console, f"> {action}")
            _say(console, result.observation)


def _steps(
    runner: asyncio.Runner, environment: Environment, actions: list[str]
) -> Iterator[tuple[int, str | None, StepResult]]:
    yield 0, None, runner.run(environment.reset())
    for step, action in enumerate(actions, start=1):
        yield step, action, runner.run(environment.step(action))


def _say(console, text: str) -> None:
    """Text of a world, line by line, without control characters."""
    from krill_tui.headless import print_line

    for line in text.split("\n"):
        print_line(console, line)
