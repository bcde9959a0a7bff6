"""Phase 2: episodes become skills, s+ = M_T(tau+, d) and s- = M_T(tau-, d)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from krill_tui.errors import ModelError
from krill_tui.models.base import Embedder
from krill_tui.skill import Skill, SkillOrigin
from krill_tui.skills.admission import Refused, admit
from krill_tui.skills.bank import SkillBank
from krill_tui.skills.dedupe import DUPLICATE_SIMILARITY
from krill_tui.skills.teacher import OnCall, Teacher, TeacherCall
from krill_tui.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class DistillReport:
    """What a distillation did to the bank."""

    accepted: tuple[Skill, ...]
    """New or refined, as they are in the bank."""
    refused: tuple[Refused, ...]
    failures: tuple[TeacherCall, ...]
    """Calls to the teacher that gave nothing."""
    calls: int


async def distill(
    trajectories: Sequence[Trajectory],
    bank: SkillBank,
    teacher: Teacher,
    embedder: Embedder,
    *,
    env: str,
    on_call: OnCall | None = None,
    duplicate_threshold: float = DUPLICATE_SIMILARITY,
) -> DistillReport:
    """Fill the bank from episodes.

    Raises:
        SplitProtectedError: a trajectory comes from a split that is reported.
        ModelError: not one call to the teacher succeeded.
    """
    result = await teacher.distill(trajectories, bank.skills(), env=env, on_call=on_call)
    if result.calls and len(result.failures) == result.calls:
        raise ModelError(f"every call to the teacher failed; the first: {result.failures[0].error}")
    origin = SkillOrigin(phase="distill", cycle=bank.cycle, author=teacher.name)
    accepted, refused = await admit(result.proposals, bank, embedder, origin, threshold=duplicate_threshold)
    return DistillReport(tuple(accepted), tuple(refused), result.failures, result.calls)
