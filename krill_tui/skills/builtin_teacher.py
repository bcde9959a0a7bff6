"""The builtin teacher: a program that mines episodes and writes skills in the form a teacher would.

It is no LLM. It counts where objects were seen, where things could be done and in what order won episodes
did them, and how lost ones went wrong. What it can say is fixed; what it says comes from the episodes alone.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from krill_tui.envs.alfworld.text import object_type, parse_task
from krill_tui.skill import GENERAL, Skill, SkillProposal
from krill_tui.skills.lessons import lesson_skills
from krill_tui.skills.plays import inspected, sightings, taken_things
from krill_tui.skills.procedures import EVIDENCE_KEPT, strategy_skills, treatment_skills
from krill_tui.skills.shopping import shopping_skills
from krill_tui.skills.teacher import DistillResult, EvolveResult, OnCall, TeacherCall, check_teachable
from krill_tui.skills.text import Location, parse_location
from krill_tui.trajectory import StopReason, Trajectory

_SEEN = re.compile(r"seen there (\d{1,9}) of (\d{1,9}) times")
_ALFWORLD = "alfworld"
_WEBSHOP = "webshop"
_PRIOR_GAMES = 8


@dataclass(slots=True)
class _Evidence:
    """Where objects of one type were seen."""

    seen: defaultdict[str, set[tuple[str, str]]] = field(default_factory=lambda: defaultdict(set))
    """Receptacle type to (game, object): the same object of the same game counts once, however often played."""
    trajectories: defaultdict[str, dict[str, None]] = field(default_factory=lambda: defaultdict(dict))

    @property
    def total(self) -> int:
        return sum(map(len, self.seen.values()))

    def count(self, place: str) -> int:
        return len(self.seen[place]) if place in self.seen else 0


@dataclass(slots=True)
class _Survey:
    """What all episodes together show of where things are."""

    objects: defaultdict[str, _Evidence] = field(default_factory=lambda: defaultdict(_Evidence))
    """By object type."""
    games: defaultdict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Receptacle type to the games in which one was looked into."""

    def best(self, name: str) -> tuple[str, float]:
        """Where objects of this type most likely are, and that place's share of the likelihood.

        Sightings are divided by the games in which that type of place was looked into (and a few more, so that
        one look proves little): what stands open is seen in every episode, a closed drawer in few.
        """
        evidence = self.objects[name]
        rates = {
            place: evidence.count(place) / (len(self.games[place]) + _PRIOR_GAMES) for place in evidence.seen
        }
        place = min(rates, key=lambda place: (-rates[place], -evidence.count(place), place))
        return place, rates[place] / sum(rates.values())


class BuiltinTeacher:
    """Mines ALFWorld episodes for all kinds of skills, and WebShop episodes for habits of shopping and lessons."""

    is_llm = False

    def __init__(self, *, share: float = 0.5, min_sightings: int = 1) -> None:
        self.name = "builtin miner"
        self._share = share
        """Of the likelihood of an object type's places that one needs to become a skill."""
        self._min_sightings = min_sightings

    async def distill(
        self,
        trajectories: Sequence[Trajectory],
        bank_skills: Sequence[Skill],
        *,
        env: str,
        on_call: OnCall | None = None,
    ) -> DistillResult:
        """See `Teacher.distill`; one pass over all trajectories is one call."""
        check_teachable(trajectories)
        started = perf_counter()
        usable = _usable(trajectories)
        proposals: list[SkillProposal] = []
        if env == _ALFWORLD:
            proposals += self._locations(_survey(usable), bank_skills)
            proposals += treatment_skills(usable, bank_skills)
            proposals += strategy_skills(usable, bank_skills)
        elif env == _WEBSHOP:
            proposals += shopping_skills(usable, bank_skills)
        lost = [trajectory for trajectory in usable if not trajectory.success]
        proposals += lesson_skills(lost, [*bank_skills, *map(_as_skill, proposals)], least=2)
        if on_call is not None:
            on_call(
                TeacherCall(
                    kind="distill",
                    trajectories=tuple(trajectory.id for trajectory in usable),
                    prompt=_summary(usable),
                    reply=_as_json(proposals),
                    seconds=perf_counter() - started,
                )
            )
        return DistillResult(tuple(proposals), calls=1)

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
        """See `Teacher.evolve`.

        A procedure that a whole category lacks or has wrong comes first, worst category first; then where the
        things are that failed tasks never got; then orders of actions; then lessons.
        """
        check_teachable([*failures, *successes, *background])
        started = perf_counter()
        failed, won = _usable(failures), _usable(successes)
        others = _usable(background)
        proposals: list[SkillProposal] = []
        if any(trajectory.env == _ALFWORLD for trajectory in failed):
            seen = [*failed, *won, *others]
            failing = {trajectory.category for trajectory in failed}
            procedures = treatment_skills(seen, bank_skills, failing)
            proposals += sorted(procedures, key=lambda p: (category_rates.get(p.tier, 0.0), p.tier))
            wanted = _wanted(failed)
            places = self._locations(_survey(seen), bank_skills, anything=wanted)
            proposals += sorted(
                (p for p in places if p.refines or _object(p) in wanted),
                key=lambda p: -wanted[_object(p)],
            )
            proposals += strategy_skills([t for t in seen if t.category in failing], bank_skills)
        elif any(trajectory.env == _WEBSHOP for trajectory in failed):
            proposals += shopping_skills([*failed, *won, *others], bank_skills)
        proposals += lesson_skills(failed, [*bank_skills, *map(_as_skill, proposals)], least=1)
        proposals = proposals[:max_new_skills]
        prompt, reply = _summary([*failed, *won, *others], category_rates), _as_json(proposals)
        if on_call is not None:
            ids = tuple(trajectory.id for trajectory in failed)
            on_call(TeacherCall("evolve", ids, prompt, reply, seconds=perf_counter() - started))
        return EvolveResult(tuple(proposals), prompt, reply)

    async def close(self) -> None:
        """Nothing to let go of."""

    def _locations(
        self, survey: _Survey, bank_skills: Sequence[Skill], anything: Iterable[str] = ()
    ) -> list[SkillProposal]:
        """One proposal per object type with evidence enough; `anything`: types for which any will do."""
        known = {
            place.object: (skill, place.receptacle)
            for skill in bank_skills
            if (place := parse_location(skill.principle)) is not None
        }
        lenient = frozenset(anything)
        proposals: list[SkillProposal] = []
        for name in sorted(survey.objects, key=lambda name: (-survey.objects[name].total, name)):
            evidence = survey.objects[name]
            place, share = survey.best(name)
            count, total = evidence.count(place), evidence.total
            if name in known:
                skill, stated = known[name]
                against = count - evidence.count(stated)
                if place != stated and against > _margin(skill):
                    reason = f"said {stated}, but seen there {evidence.count(stated)} of {total} times"
                    proposals.append(_location(name, place, evidence, reason, refines=skill.id))
            elif (share >= self._share and total >= self._min_sightings) or name in lenient:
                proposals.append(_location(name, place, evidence, f"seen there {count} of {total} times"))
        return proposals


def _margin(skill: Skill) -> int:
    """By how many sightings the evidence for a location skill outweighed the evidence against it."""
    match = _SEEN.search(skill.when_to_apply)
    return max(2 * int(match[1]) - int(match[2]), 0) if match else 1


def _location(
    name: str, place: str, evidence: _Evidence, reason: str, refines: str | None = None
) -> SkillProposal:
    article = "an" if name[0] in "aeiou" else "a"
    times = f"{evidence.count(place)} of {evidence.total} times"
    return SkillProposal(
        name=f"Where the {name} is",
        principle=Location(name, place).principle,
        when_to_apply=f"looking for {article} {name} (seen there {times})",
        tier=GENERAL,
        refines=refines,
        evidence=tuple(evidence.trajectories[place])[:EVIDENCE_KEPT],
        reason=reason,
    )


def _usable(trajectories: Sequence[Trajectory]) -> list[Trajectory]:
    """Without episodes that a person stopped or that broke."""
    spoilt = (StopReason.CANCELLED, StopReason.ERROR)
    return [t for t in trajectories if t.stop_reason not in spoilt and t.steps]


def _survey(trajectories: Sequence[Trajectory]) -> _Survey:
    survey = _Survey()
    for trajectory in trajectories:
        if trajectory.env != _ALFWORLD:
            continue
        game = trajectory.task_id or trajectory.id
        for place in inspected(trajectory):
            survey.games[place].add(game)
        for name, place in sightings(trajectory).items():
            evidence = survey.objects[object_type(name)]
            evidence.seen[place].add((game, name))
            evidence.trajectories[place][trajectory.id] = None
    return survey


def _wanted(failed: Sequence[Trajectory]) -> Counter[str]:
    """How many failed tasks asked for each object type, or for a lamp, and never got it.

    What was asked for and got counts as nothing, but is in it.
    """
    wanted: Counter[str] = Counter()
    for trajectory in failed:
        goal = parse_task(trajectory.task)
        if goal is None:
            continue
        got = sum(object_type(name) == goal.object for name in taken_things(trajectory))
        wanted[goal.object] += got < goal.count
        if goal.category == "Look":
            wanted[goal.target] += got > 0
    return wanted


def _as_skill(proposal: SkillProposal) -> Skill:
    """A proposal as if the bank held it, so that a lesson does not say the same once more."""
    return Skill(id="proposed", name=proposal.name, principle=proposal.principle, tier=proposal.tier)


def _object(proposal: SkillProposal) -> str:
    place = parse_location(proposal.principle)
    return place.object if place else ""


def _summary(trajectories: Sequence[Trajectory], rates: Mapping[str, float] | None = None) -> str:
    won = sum(trajectory.success for trajectory in trajectories)
    text = f"No prompt: a program read {len(trajectories)} episodes, {won} of them won."
    if rates:
        text += " Success: " + ", ".join(f"{name} {rate:.0%}" for name, rate in sorted(rates.items())) + "."
    return text


def _as_json(proposals: Sequence[SkillProposal]) -> str:
    return json.dumps(
        [p.model_dump(mode="json", exclude_defaults=True) for p in proposals], ensure_ascii=False
    )
