"""Evolution of the bank after a validation: S_new = M_T(T_val-, SkillBank), SkillBank <- SkillBank + S_new."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from krill_tui.models.base import Embedder
from krill_tui.skill import GENERAL, Skill, SkillOrigin, SkillProposal
from krill_tui.skills.admission import Refused, admit
from krill_tui.skills.bank import SkillBank
from krill_tui.skills.decision import Decision, RefusedProposal
from krill_tui.skills.dedupe import DUPLICATE_SIMILARITY
from krill_tui.skills.teacher import OnCall, Teacher, check_teachable
from krill_tui.skills.text import parse_location
from krill_tui.trajectory import StopReason, Trajectory


@dataclass(frozen=True, slots=True)
class CategoryRate:
    """Success of one category in a validation."""

    wins: int
    episodes: int

    @property
    def rate(self) -> float:
        return self.wins / self.episodes if self.episodes else 0.0


@dataclass(frozen=True, slots=True)
class EvolveReport:
    """One cycle; where nothing was done, `reason` says why."""

    rates: dict[str, CategoryRate]
    failing: tuple[str, ...] = ()
    """Categories below the threshold, worst first."""
    chosen: tuple[str, ...] = ()
    """Ids of the failed trajectories the teacher read."""
    prompt: str = ""
    reply: str = ""
    accepted: tuple[Skill, ...] = ()
    """New or refined, as they are in the bank."""
    refused: tuple[Refused, ...] = ()
    reason: str = ""


def category_rates(trajectories: Sequence[Trajectory]) -> dict[str, CategoryRate]:
    """Success by category, in alphabetical order; episodes that broke or were stopped do not count."""
    counts: defaultdict[str, list[bool]] = defaultdict(list)
    for trajectory in _judged(trajectories):
        counts[trajectory.category or GENERAL].append(trajectory.success)
    return {name: CategoryRate(sum(wins), len(wins)) for name, wins in sorted(counts.items())}


def failing_categories(rates: Mapping[str, CategoryRate], threshold: float) -> tuple[str, ...]:
    """Categories below the threshold, worst first."""
    below = [name for name, rate in rates.items() if rate.rate < threshold]
    return tuple(sorted(below, key=lambda name: (rates[name].rate, name)))


def select_failures(
    trajectories: Sequence[Trajectory],
    *,
    threshold: float = 0.4,
    max_analysis_deep: int = 10,
    max_analysis_shallow: int = 5,
) -> list[Trajectory]:
    """The failures a teacher reads: in turn from each failing category, worst category first.

    `max_analysis_deep` of them where the worst category is below half the threshold, else
    `max_analysis_shallow`. Within a category, a task not chosen yet comes before another failure of one that was.
    """
    rates = category_rates(trajectories)
    failing = failing_categories(rates, threshold)
    if not failing:
        return []
    deep = rates[failing[0]].rate < threshold / 2
    count = max_analysis_deep if deep else max_analysis_shallow
    lost = [trajectory for trajectory in _judged(trajectories) if not trajectory.success]
    queues = [_fresh_tasks_first([t for t in lost if (t.category or GENERAL) == name]) for name in failing]
    chosen: list[Trajectory] = []
    while len(chosen) < count and any(queues):
        for queue in queues:
            if queue and len(chosen) < count:
                chosen.append(queue.pop(0))
    return chosen


async def evolve(
    trajectories: Sequence[Trajectory],
    bank: SkillBank,
    teacher: Teacher,
    embedder: Embedder,
    *,
    threshold: float = 0.4,
    max_new_skills: int = 3,
    max_analysis_deep: int = 10,
    max_analysis_shallow: int = 5,
    background: Sequence[Trajectory] = (),
    duplicate_threshold: float = DUPLICATE_SIMILARITY,
    on_call: OnCall | None = None,
) -> EvolveReport:
    """One cycle over the episodes of a validation on the evolve split; counts the bank's cycle up.

    `background` are other episodes a teacher may take evidence from, as it may from failures that were not chosen;
    rates and failures are of the validation.
    The defaults are the paper's. A teacher that fails ends the cycle with a reason, not the run.

    Raises:
        SplitProtectedError: a trajectory comes from a split that is reported.
        ModelError: the embedder failed.
    """
    check_teachable([*trajectories, *background])
    cycle = bank.cycle + 1
    rates = category_rates(trajectories)
    failing = failing_categories(rates, threshold)
    failures = select_failures(
        trajectories,
        threshold=threshold,
        max_analysis_deep=max_analysis_deep,
        max_analysis_shallow=max_analysis_shallow,
    )
    if not failures or max_new_skills < 1:
        reason = _why_nothing_to_ask(rates, failing, threshold, max_new_skills)
        with bank.batch():
            bank.set_cycle(cycle)
            bank.decide(Decision(phase="evolve", cycle=cycle, failing=failing, reason=reason))
        return EvolveReport(rates, failing, reason=reason)
    chosen = {trajectory.id for trajectory in failures}
    result = await teacher.evolve(
        failures,
        [trajectory for trajectory in _judged(trajectories) if trajectory.success],
        category_rates={name: rate.rate for name, rate in rates.items()},
        bank_skills=bank.skills(),
        max_new_skills=max_new_skills,
        background=[*(t for t in _judged(trajectories) if not t.success and t.id not in chosen), *background],
        on_call=on_call,
    )
    by_id = {trajectory.id: trajectory for trajectory in trajectories}
    # One write for skills, cycle and what was decided: a run that is killed here repeats the cycle or has all of it.
    with bank.batch():
        accepted, refused = await admit(
            [_to_failing_tier(proposal, failing, by_id) for proposal in result.proposals],
            bank,
            embedder,
            SkillOrigin(phase="evolve", cycle=cycle, author=teacher.name),
            threshold=duplicate_threshold,
            max_new=max_new_skills,
        )
        bank.set_cycle(cycle)
        report = EvolveReport(
            rates=rates,
            failing=failing,
            chosen=tuple(t.id for t in failures) if result.read is None else result.read,
            prompt=result.prompt,
            reply=result.reply,
            accepted=tuple(accepted),
            refused=tuple(refused),
            reason="" if accepted else _why_nothing_accepted(result.error, len(refused)),
        )
        bank.decide(
            Decision(
                phase="evolve",
                cycle=cycle,
                failing=failing,
                chosen=report.chosen,
                prompt=report.prompt,
                reply=report.reply,
                accepted=tuple(skill.id for skill in accepted),
                refused=tuple(RefusedProposal(proposal=r.proposal, reason=r.reason) for r in refused),
                reason=report.reason,
            )
        )
    return report


def _judged(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    spoilt = (StopReason.CANCELLED, StopReason.ERROR)
    return [trajectory for trajectory in trajectories if trajectory.stop_reason not in spoilt]


def _fresh_tasks_first(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    turns: defaultdict[str, int] = defaultdict(int)
    ranked: list[tuple[int, Trajectory]] = []
    for trajectory in trajectories:
        ranked.append((turns[trajectory.task_id], trajectory))
        turns[trajectory.task_id] += 1
    return [trajectory for _, trajectory in sorted(ranked, key=lambda item: item[0])]


def _to_failing_tier(
    proposal: SkillProposal, failing: Sequence[str], trajectories: Mapping[str, Trajectory]
) -> SkillProposal:
    """A location helps every task; anything else goes to the failing category it was learned from."""
    if parse_location(proposal.principle) is not None:
        return proposal.model_copy(update={"tier": GENERAL})
    if proposal.tier in failing:
        return proposal
    sources = [trajectories[i].category for i in proposal.evidence if i in trajectories]
    tier = next((category for category in sources if category in failing), failing[0])
    return proposal.model_copy(update={"tier": tier})


def _why_nothing_to_ask(
    rates: Mapping[str, CategoryRate], failing: Sequence[str], threshold: float, max_new_skills: int
) -> str:
    if not rates:
        return "no episode of the validation was finished"
    if max_new_skills < 1:
        return "max_new_skills is 0"
    if failing:
        return "no failures may be analysed: max_analysis_deep or max_analysis_shallow is 0"
    worst = min(rates, key=lambda name: (rates[name].rate, name))
    return f"no category is below {threshold:.0%} (the worst: {worst} {rates[worst].rate:.0%})"


def _why_nothing_accepted(error: str | None, refused: int) -> str:
    if error:
        return f"the teacher failed: {error}"
    return f"all {refused} proposals were refused" if refused else "the teacher proposed nothing"
