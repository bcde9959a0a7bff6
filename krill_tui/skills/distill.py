"""Phase 2: episodes become skills, s+ = M_T(tau+, d) and s- = M_T(tau-, d)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from krill_tui.errors import ModelError
from krill_tui.models.base import Embedder
from krill_tui.skill import Skill, SkillOrigin
from krill_tui.skills.admission import Refused, admit
from krill_tui.skills.bank import SkillBank
from krill_tui.skills.decision import Decision, RefusedProposal
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


def why_nothing(trajectories: Sequence[Trajectory], report: DistillReport, *, env: str, is_llm: bool) -> str:
    """Why a distillation gave no skill, in a few words; empty where it gave one."""
    if report.accepted:
        return ""
    said = []
    if report.refused:
        reasons = Counter(refused.reason for refused in report.refused)
        said.append(f"all {len(report.refused)} proposals were refused, the first: {next(iter(reasons))}")
    if report.failures:
        said.append(f"{len(report.failures)} calls failed, the first: {report.failures[0].error}")
    if not is_llm and not report.refused:
        others = sum(trajectory.env != env for trajectory in trajectories)
        own = [trajectory for trajectory in trajectories if trajectory.env == env]
        stepless = sum(not trajectory.steps for trajectory in own)
        if others:
            said.append(f"{others} episodes are of another world than {env}")
        if stepless:
            said.append(f"{stepless} episodes hold no steps")
        if stepless < len(own):
            said.append(
                f"the other {len(own) - stepless} do not show what the builtin teacher reads: where things are seen,"
                " what is done with them, what won purchases share; an LLM teacher (--teacher openai) reads any text"
            )
    return "; ".join(said) or "the teacher proposed none"


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
    # One write for the skills and what was decided: a run that is killed here repeats all of it or has all of it.
    with bank.batch():
        accepted, refused = await admit(
            result.proposals, bank, embedder, origin, threshold=duplicate_threshold
        )
        report = DistillReport(tuple(accepted), tuple(refused), result.failures, result.calls)
        bank.decide(
            Decision(
                phase="distill",
                cycle=bank.cycle,
                accepted=tuple(skill.id for skill in accepted),
                refused=tuple(RefusedProposal(proposal=r.proposal, reason=r.reason) for r in refused),
                episodes=len(trajectories),
                failures=len(result.failures),
                nothing=why_nothing(trajectories, report, env=env, is_llm=teacher.is_llm),
            )
        )
    return report
