"""What every environment offers, and how its games are found.

An environment is single-use: one object plays one episode. A source lists tasks and opens them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from krill_tui.trajectory import Task


@dataclass(frozen=True, slots=True)
class StepResult:
    """What the environment says after reset (`action is None`) or one action."""

    observation: str
    admissible: tuple[str, ...] = ()
    """In the world's own order (ALFWorld: sorted); empty where the environment does not list its actions."""
    reward: float = 0.0
    """Reward of this step alone."""
    done: bool = False
    won: bool = False
    info: dict[str, object] = field(default_factory=dict)


class Environment(Protocol):
    """One episode of one task."""

    task: Task
    """Description and category are filled in once `reset` returned."""

    async def reset(self) -> StepResult: ...

    async def step(self, action: str) -> StepResult:
        """Play one action; after the end it repeats the last result.

        Raises:
            EnvironmentFailure: the environment broke; the episode ends as `error`.
        """
        ...

    async def close(self) -> None: ...


@runtime_checkable
class FreeActions(Protocol):
    """An environment whose list cannot hold every action: a query is anybody's words."""

    def accepts(self, action: str) -> bool:
        """Whether the environment would act on this text now, listed or not."""
        ...


class Expert(Protocol):
    """Plays from observations alone and says why, in a few words."""

    def act(self, result: StepResult) -> tuple[str, str]:
        """Return (thought, action) for the newest observation; called once per step, in order."""
        ...


@runtime_checkable
class Noticing(Protocol):
    """A source that has something to say about its games before they are played."""

    def notices(self) -> Sequence[str]:
        """What is left out and why, or played against the custom; one line each."""
        ...


@runtime_checkable
class Pinnable(Protocol):
    """A source whose games can be named for good, and known again by their content."""

    def task(self, id: str) -> Task:
        """The game of an id, as `tasks` gives it.

        Raises:
            KrillError: there is no such game here.
        """
        ...

    def game_hash(self, task: Task) -> str:
        """SHA-256 of the game's content, in hex: the same wherever the same game is played.

        Raises:
            KrillError: it cannot be read.
        """
        ...


def notices_of(source: object) -> tuple[str, ...]:
    """The notices of a source; none where it has nothing to say."""
    return tuple(source.notices()) if isinstance(source, Noticing) else ()


class TaskSource(Protocol):
    """A set of games of one environment and backend."""

    env: str
    backend: str

    def splits(self) -> dict[str, int]:
        """Name of each split and how many games it holds (-1: unbounded)."""
        ...

    def tasks(self, split: str, count: int, *, seed: int = 0) -> Sequence[Task]:
        """The first `count` tasks of the split in an order fixed by `seed`.

        Raises:
            UsageError: unknown split; the message names the known ones.
        """
        ...

    def open(self, task: Task) -> Environment: ...

    def expert(self, hints: Mapping[str, Sequence[str]] | None = None) -> Expert:
        """A planner for one episode; `hints` maps an object type to the receptacle types to search first."""
        ...

    def content_hash(self) -> str:
        """Identifies the games played: in every result file."""
        ...
