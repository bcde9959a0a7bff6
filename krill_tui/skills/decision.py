"""What a teacher's round decided, written with the skills it made in one go: nothing of it is lost to a kill."""

from __future__ import annotations

from typing import Literal

from krill_tui.skill import SkillProposal
from krill_tui.trajectory import Record


class RefusedProposal(Record):
    """A proposal that did not change the bank."""

    proposal: SkillProposal
    reason: str


class Decision(Record):
    """One distillation, or one evolution cycle, as it stands in the bank until the journal holds it."""

    phase: Literal["distill", "evolve"]
    cycle: int
    """Evolution cycle; 0 before RL."""
    failing: tuple[str, ...] = ()
    chosen: tuple[str, ...] = ()
    """Ids of the failed trajectories the teacher read."""
    prompt: str = ""
    reply: str = ""
    accepted: tuple[str, ...] = ()
    """Ids of new or refined skills."""
    refused: tuple[RefusedProposal, ...] = ()
    reason: str = ""
    """Why nothing was done, where nothing was."""
    episodes: int = 0
    """That were distilled."""
    failures: int = 0
    """Calls to the teacher that gave nothing."""
    nothing: str = ""
    """Why a distillation gave no skill."""
