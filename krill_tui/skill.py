"""What a skill is (DESIGN words: tier, kind, origin, status)."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from pydantic import Field, FiniteFloat, SerializerFunctionWrapHandler, model_serializer

from krill_tui.trajectory import Record

GENERAL = "general"
"""The tier of skills that apply to every task; any other tier is a task category."""


class SkillKind(StrEnum):
    STRATEGY = "strategy"
    """A pattern taken from successes."""
    LESSON = "lesson"
    """What failures taught."""


class SkillStatus(StrEnum):
    ACTIVE = "active"
    DISABLED = "disabled"
    """Kept, shown, never put in a prompt; a person can enable it again."""
    RETIRED = "retired"
    """Out of use for good, kept for history."""


class SkillOrigin(Record):
    """Where a skill came from."""

    phase: str = "import"
    """`distill`, `evolve`, `hand`, `import`."""
    cycle: int = 0
    """Evolution cycle, 0 before RL."""
    trajectories: tuple[str, ...] = ()
    author: str = ""
    """Teacher's name, or `hand`."""


class SkillStats(Record):
    """Counts over episodes, by the engine."""

    injected: int = 0
    cited: int = 0
    wins: int = 0
    """Episodes won with this skill in the prompt."""
    losses: int = 0


class Skill(Record):
    """One piece of advice that can stand in a policy's prompt."""

    id: str
    """Short and stable: `gen_003`, `heat_002`."""
    name: str
    principle: str
    when_to_apply: str = ""
    tier: str = GENERAL
    also: tuple[str, ...] = ()
    """Further categories it is for: one tier of another project can be several categories here."""
    kind: SkillKind = SkillKind.STRATEGY
    status: SkillStatus = SkillStatus.ACTIVE
    origin: SkillOrigin = Field(default_factory=SkillOrigin)
    stats: SkillStats = Field(default_factory=SkillStats)
    created: FiniteFloat = 0.0
    """Unix seconds."""
    updated: FiniteFloat = 0.0
    version: int = 1

    @model_serializer(mode="wrap")
    def _without_empty_also(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Banks and journals hold `also` only where it says something, as versions before it wrote them."""
        data = handler(self)
        if not self.also:
            data.pop("also", None)
        return data


class SkillProposal(Record):
    """What a teacher suggests: a new skill, or a better version of `refines`."""

    name: str
    principle: str
    when_to_apply: str = ""
    tier: str = GENERAL
    kind: SkillKind = SkillKind.STRATEGY
    refines: str | None = None
    """Id of the skill this replaces the text of."""
    evidence: tuple[str, ...] = ()
    """Trajectory ids the teacher learned it from."""
    reason: str = ""
