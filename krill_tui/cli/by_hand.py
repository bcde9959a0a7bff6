"""A game played by a person: what the screen shows, what may be typed, and the way back."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType

from rich.columns import Columns
from rich.console import Console
from rich.rule import Rule
from rich.text import Text

from krill_tui.envs.base import Environment, FreeActions, StepResult, TaskSource
from krill_tui.envs.webshop.pages import QUERY_HINT
from krill_tui.errors import EnvironmentFailure, KrillError, UsageError
from krill_tui.headless import make_console, print_line
from krill_tui.io.text import one_line, plain_line
from krill_tui.skills.formats.records import digest, utf8
from krill_tui.skills.formats.trajectories import save_trajectories
from krill_tui.trajectory import Step, StopReason, Task, Trajectory

WORDS = ("hint", "undo", "save", "quit")
_HELP = (
    "A number or a command plays it; hint asks the expert, undo takes a step back, save FILE keeps the episode, "
    "quit (or ctrl-d) ends."
)
_AT_THE_END = "undo takes a step back, save FILE keeps the episode, quit ends."
_SEARCH = "search["
_DEFAULT_FILE = "played.json"


class Game:
    """One episode that knows the way it came, so that it can go a step back."""

    def __init__(self, source: TaskSource, task: Task) -> None:
        self._source = source
        self._start = task
        self._environment = source.open(task)
        self._expert = source.expert()
        self._hints: list[tuple[str, str]] = []
        self.results: list[StepResult] = []
        """What was said after the reset and after each action."""
        self.steps: list[Step] = []

    @property
    def task(self) -> Task:
        """Description and category are filled in after `reset`."""
        return self._environment.task

    @property
    def result(self) -> StepResult:
        return self.results[-1]

    async def reset(self) -> None:
        self._take(await self._environment.reset())

    async def step(self, action: str) -> None:
        before = self.result
        valid = _is_valid(self._environment, before, action)
        after = await self._environment.step(action)
        self.steps.append(
            Step(
                index=len(self.steps),
                observation=before.observation,
                admissible=tuple(before.admissible),
                action=action,
                text=action,
                valid=valid,
                reward=after.reward,
                author="human",
            )
        )
        self._take(after)

    async def undo(self) -> None:
        """Go one step back: a fresh world plays everything before it again, and must say the same.

        Raises:
            EnvironmentFailure: it said something else (a server may); the game stays as it was.
        """
        fresh = self._source.open(self._start)
        try:
            results = [await fresh.reset()]
            for step in self.steps[:-1]:
                results.append(await fresh.step(step.action))
            if any(_said(a) != _said(b) for a, b in zip(results, self.results, strict=False)):
                raise EnvironmentFailure("this world does not repeat itself: no step can be taken back")
        except BaseException:
            await fresh.close()
            raise
        old, self._environment = self._environment, fresh
        self._expert, self._hints, self.results = self._source.expert(), [], []
        self.steps.pop()
        for result in results:
            self._take(result)
        await old.close()

    def hint(self) -> tuple[str, str]:
        """(why, action) of the expert, who has watched from the start."""
        return self._hints[-1]

    async def close(self) -> None:
        await self._environment.close()

    def trajectory(self) -> Trajectory:
        """The episode so far; one that was left before its end counts as cancelled. Its id names its content."""
        task, result = self.task, self.result
        if result.done:
            stop = StopReason.SUCCESS if result.won else StopReason.FAILURE
        else:
            stop = StopReason.CANCELLED
        return Trajectory(
            id=f"human-{digest([task.id, [step.action for step in self.steps]])}",
            env=task.env,
            task_id=task.id,
            split=task.split,
            task=task.description,
            category=task.category,
            steps=tuple(self.steps),
            final_observation=result.observation,
            total_reward=sum(step.reward for step in self.steps),
            success=result.won,
            stop_reason=stop,
            policy="human",
        )

    def _take(self, result: StepResult) -> None:
        self.results.append(result)
        if not result.done:
            self._hints.append(self._expert.act(result))


def play_by_hand(runner: asyncio.Runner, source: TaskSource, task: Task, save: Path | None) -> None:
    """Play until `quit`, the end of input or ctrl-c; `save` names the file that is written at the end.

    Raises:
        EnvironmentFailure: the world broke.
        UsageError: `save` exists already.
    """
    if save is not None and os.path.exists(save):
        raise UsageError(f"{save} exists already", hint="name another file for --save")
    table = _Table(runner, Game(source, task), make_console())
    try:
        with contextlib.suppress(EOFError, KeyboardInterrupt), table.completion():
            table.play()
        table.finish(save)
    except EnvironmentFailure:
        table.finish(save)
        raise
    finally:
        runner.run(table.game.close())


class _Table:
    """The game as a person sees it, line by line."""

    def __init__(self, runner: asyncio.Runner, game: Game, console: Console) -> None:
        self.game = game
        self._runner = runner
        self._console = console
        self._written: set[Path] = set()

    def play(self) -> None:
        self._runner.run(self.game.reset())
        self._show()
        self._say(_HELP, "dim")
        while True:
            line = self._ask()
            word, _, rest = line.partition(" ")
            if line in ("quit", "exit", "q"):
                return
            elif line == "hint":
                self._hint()
            elif line == "undo":
                self._undo()
            elif word == "save":
                self._save(Path(rest.strip() or _DEFAULT_FILE))
            elif line == "?":
                self._say(_HELP, "dim")
            elif line:
                self._act(self._chosen(line))

    def finish(self, save: Path | None) -> None:
        """The last lines, and the file of `--save`."""
        if not self.game.results:
            return
        if save is not None:
            self._save(save)
        outcome = "won" if self.game.result.won else "not won"
        self._say(f"{outcome} after {len(self.game.steps)} steps")

    @contextlib.contextmanager
    def completion(self) -> Iterator[None]:
        """The tab key completes commands and words, where there is a terminal with a readline."""
        readline = _readline()
        if readline is None:
            yield
            return
        before, delimiters = readline.get_completer(), readline.get_completer_delims()
        readline.set_completer(completer(lambda: self.game.result.admissible if self.game.results else ()))
        readline.set_completer_delims("\n")
        libedit = "libedit" in (readline.__doc__ or "")
        readline.parse_and_bind("bind ^I rl_complete" if libedit else "tab: complete")
        try:
            yield
        finally:
            readline.set_completer(before)
            readline.set_completer_delims(delimiters)

    def _ask(self) -> str:
        try:
            return utf8(input("> ")).strip()
        except UnicodeDecodeError:
            return ""
        except (EOFError, KeyboardInterrupt):
            self._console.print()
            raise

    def _chosen(self, line: str) -> str | None:
        """The action of a number or of a command's own words; None for a number that is not listed."""
        admissible = self.game.result.admissible
        if not (line.isascii() and line.isdigit() and admissible):
            return line
        number = int(line) if len(line) < 10 else 0
        if not 1 <= number <= len(admissible):
            self._say(f"there are commands 1 to {len(admissible)}")
        elif admissible[number - 1] == QUERY_HINT:
            self._say("type it with words of your own, like: search[red mug]")
        else:
            return admissible[number - 1]
        return None

    def _act(self, action: str | None) -> None:
        if action is None:
            return
        if self.game.result.done:
            self._say(f"the game is over: {_AT_THE_END}")
            return
        self._runner.run(self.game.step(action))
        self._show()

    def _hint(self) -> None:
        if self.game.result.done:
            self._say("the game is over")
            return
        thought, action = self.game.hint()
        self._say(f"hint: {action}" + (f" ({thought})" if thought else ""), "cyan")

    def _undo(self) -> None:
        if not self.game.steps:
            self._say("there is no step to take back")
            return
        taken_back = self.game.steps[-1].action
        try:
            self._runner.run(self.game.undo())
        except EnvironmentFailure as error:
            self._say(str(error), "red")
            return
        self._say(f"taken back: {taken_back}", "dim")
        self._show()

    def _save(self, path: Path) -> None:
        if not str(path).isprintable():
            self._say("that is no name for a file", "red")
            return
        if path not in self._written and os.path.exists(path):
            self._say(f"{path} exists already: name another file", "red")
            return
        try:
            save_trajectories(path, [self.game.trajectory()])
        except KrillError as error:
            self._say(str(error), "red")
            return
        self._written.add(path)
        self._say(f"saved {path}: {len(self.game.steps)} steps")

    def _show(self) -> None:
        task, result = self.game.task, self.game.result
        if self._console.is_terminal:
            title = f"step {len(self.game.steps)} · {task.category} · {task.description}"
            self._console.print(Rule(Text(one_line(title, limit=100)), align="left", style="dim"))
        for line in result.observation.split("\n"):
            self._console.print(Text(plain_line(line)), soft_wrap=not self._console.is_terminal)
        if result.done:
            outcome = "You won" if result.won else "The game is over, and not won"
            self._say(f"{outcome}: {_AT_THE_END}", "bold green" if result.won else "bold")
            return
        self._list(result.admissible)

    def _list(self, admissible: Sequence[str]) -> None:
        width = len(str(len(admissible)))
        entries = [
            Text.assemble((f"{number:>{width}}", "dim"), " ", plain_line(command))
            for number, command in enumerate(admissible, start=1)
        ]
        if self._console.is_terminal:
            self._console.print(Columns(entries, column_first=True, padding=(0, 2)))
        else:
            for entry in entries:
                print_line(self._console, f"  {entry.plain}")

    def _say(self, text: str, style: str = "") -> None:
        print_line(self._console, text, style)


def completer(admissible: Callable[[], Sequence[str]]) -> Callable[[str, int], str | None]:
    """A completer for readline over the commands of the moment and our own words.

    Commands that hold control characters are left out: readline would print them as they are.
    """

    def complete(text: str, state: int) -> str | None:
        offered = [_SEARCH if c == QUERY_HINT else c for c in (*admissible(), *WORDS)]
        candidates = [c for c in offered if c.isprintable() and c.startswith(text)]
        return candidates[state] if state < len(candidates) else None

    return complete


def _readline() -> ModuleType | None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None
    try:
        import readline
    except ImportError:
        return None
    return readline


def _said(result: StepResult) -> tuple[str, tuple[str, ...], float, bool, bool]:
    return (result.observation, tuple(result.admissible), result.reward, result.done, result.won)


def _is_valid(environment: Environment, result: StepResult, action: str) -> bool:
    listed = not result.admissible or action in result.admissible
    return listed or (isinstance(environment, FreeActions) and environment.accepts(action))
