"""What a teacher is, and which trajectories it may never see."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from krill_tui.errors import SplitProtectedError
from krill_tui.models.base import ChatUsage
from krill_tui.skill import Skill, SkillProposal
from krill_tui.trajectory import Trajectory

PROTECTED_SPLITS = frozenset({"valid", "valid_seen", "valid_unseen", "test"})
"""Splits whose success is reported; a teacher that saw them would make the report worthless."""


@dataclass(frozen=True, slots=True)
class TeacherCall:
    """One question to a teacher and how it went: the event log's material."""

    kind: Literal["distill", "evolve"]
    trajectories: tuple[str, ...]
    prompt: str
    reply: str = ""
    """The last reply, exactly as it was said."""
    error: str | None = None
    """Why the call gave nothing, in one line."""
    attempts: int = 1
    """Questions asked until a reply could be read; retries of the connection are not counted."""
    seconds: float = 0.0
    usage: ChatUsage = field(default_factory=ChatUsage)


OnCall = Callable[[TeacherCall], None]


@dataclass(frozen=True, slots=True)
class DistillResult:
    """What a teacher made of trajectories, before duplicates are dropped."""

    proposals: tuple[SkillProposal, ...] = ()
    """In the order of the trajectories."""
    calls: int = 0
    failures: tuple[TeacherCall, ...] = ()
    """Calls that gave nothing; each has its `error`."""


@dataclass(frozen=True, slots=True)
class EvolveResult:
    """What a teacher suggests after failures."""

    proposals: tuple[SkillProposal, ...] = ()
    prompt: str = ""
    reply: str = ""
    error: str | None = None
    read: tuple[str, ...] | None = None
    """Ids of the failures it really saw, where that is not all of them."""


class Teacher(Protocol):
    """Turns episodes into skills."""

    name: str
    is_llm: bool
    """False: the screen says that this teacher is a program."""

    async def distill(
        self,
        trajectories: Sequence[Trajectory],
        bank_skills: Sequence[Skill],
        *,
        env: str,
        on_call: OnCall | None = None,
    ) -> DistillResult:
        """Patterns from successes, lessons from failures.

        Raises:
            SplitProtectedError: a trajectory comes from a split that is reported.
        """
        ...

    async def evolve(
        self,
        failures: Sequence[Trajectory],
        successes: Sequence[Trajectory],
        *,
        category_rates: Mapping[str, float],
        bank_skills: Sequence[Skill],
        max_new_skills: int,
        background: Sequence[Trajectory] = (),
        on_call: OnCall | None = None,
    ) -> EvolveResult:
        """New skills, or better versions of skills, against these failures.

        `successes` are of the same validation; `background` are other episodes, e.g. of RL since the last cycle:
        what they show may be evidence, but they are not what has to be mended.

        Raises:
            SplitProtectedError: a trajectory comes from a split that is reported.
        """
        ...

    async def close(self) -> None: ...


def check_teachable(trajectories: Sequence[Trajectory]) -> None:
    """Refuse trajectories of splits that are reported.

    Raises:
        SplitProtectedError: names the first one.
    """
    for trajectory in trajectories:
        # An imported trajectory may not know its split; the game's path tells.
        places = {trajectory.split.strip().lower(), *trajectory.task_id.lower().split("/")}
        if split := next(iter(sorted(places & PROTECTED_SPLITS)), None):
            raise SplitProtectedError(
                f"trajectory {trajectory.id} is from split {split!r}, which is only reported",
                hint="a teacher learns from train and evolve games only",
            )
