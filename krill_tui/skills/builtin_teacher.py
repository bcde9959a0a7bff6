"""The builtin teacher: a program that mines episodes and writes skills in the form a teacher would.

It is no LLM. It counts where objects were seen, in what order won episodes did things, and how lost
ones went wrong. What it can say is fixed; what it says comes from the episodes alone.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter

from krill_tui.envs.alfworld.text import object_type, parse_task
from krill_tui.skill import GENERAL, Skill, SkillKind, SkillProposal
from krill_tui.skills.plays import Deed, Faults, deeds, faults, inspected, sightings
from krill_tui.skills.teacher import DistillResult, EvolveResult, OnCall, TeacherCall, check_teachable
from krill_tui.skills.text import Location, Station, normalised, parse_location
from krill_tui.trajectory import StopReason, Trajectory

_SEEN = re.compile(r"seen there (\d+) of (\d+) times")
_ALFWORLD = "alfworld"
_PRIOR_GAMES = 8
_STRATEGIES = {
    "Pick": ("put", "Take it, then put it"),
    "PickTwo": ("put two", "One after the other"),
    "Look": ("look", "Carry it to the lamp"),
    "Clean": ("clean", "Clean before putting"),
    "Heat": ("heat", "Heat before putting"),
    "Cool": ("cool", "Cool before putting"),
}
_LESSONS = {
    "revisited": (
        "Search each place once",
        "search: go to each place once, then the next",
        "the object is not found yet",
    ),
    "unopened": (
        "Open what is closed",
        "search: open each closed place, then look inside",
        "the place is closed",
    ),
    "repeated": (
        "Do not repeat what does nothing",
        "nothing happens: do something else",
        "the last action had no effect",
    ),
    "invalid": (
        "Say only what is possible",
        "act: name only things that are here",
        "an action was not possible",
    ),
    "unbought": (
        "Buy before the steps end",
        "buy: take the best product seen before the steps end",
        "few steps are left",
    ),
    "unchosen": (
        "Choose every option asked for",
        "choose: click each option that is asked for, then buy",
        "a product comes in several options",
    ),
    "dear": (
        "Mind the price",
        "price: go back when a product costs more than asked",
        "a product's page is open",
    ),
}


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
    """Mines ALFWorld episodes for all kinds of skills, and WebShop episodes for lessons only."""

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
            proposals += _strategies(usable, bank_skills)
        proposals += _lessons([t for t in usable if not t.success], bank_skills, least=2)
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
        on_call: OnCall | None = None,
    ) -> EvolveResult:
        """See `Teacher.evolve`: what failed tasks needed comes first, then corrections, then lessons."""
        check_teachable([*failures, *successes])
        started = perf_counter()
        failed, won = _usable(failures), _usable(successes)
        proposals: list[SkillProposal] = []
        if any(trajectory.env == _ALFWORLD for trajectory in failed):
            wanted = _wanted(failed)
            places = self._locations(_survey([*failed, *won]), bank_skills, anything=wanted)
            proposals += sorted(
                (p for p in places if p.refines or _object(p) in wanted),
                key=lambda p: -wanted[_object(p)],
            )
            failing = {trajectory.category for trajectory in failed}
            proposals += _strategies([t for t in won if t.category in failing], bank_skills)
        proposals += _lessons(failed, bank_skills, least=1)
        proposals = proposals[:max_new_skills]
        prompt, reply = _summary([*failed, *won], category_rates), _as_json(proposals)
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
        evidence=tuple(evidence.trajectories[place]),
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
    """How many failed tasks asked for each object type, or for a lamp."""
    wanted: Counter[str] = Counter()
    for trajectory in failed:
        goal = parse_task(trajectory.task)
        if goal is not None:
            wanted.update({goal.object, goal.target} if goal.category == "Look" else {goal.object})
    return wanted


def _object(proposal: SkillProposal) -> str:
    place = parse_location(proposal.principle)
    return place.object if place else ""


def _strategies(trajectories: Sequence[Trajectory], bank_skills: Sequence[Skill]) -> list[SkillProposal]:
    """Per category the order of actions most won episodes share, where the bank does not say it yet."""
    orders: defaultdict[str, defaultdict[tuple[str, ...], list[str]]]
    orders = defaultdict(lambda: defaultdict(list))
    for trajectory in trajectories:
        if trajectory.success and trajectory.category in _STRATEGIES:
            order = tuple(_phrases(deeds(trajectory)))
            if order:
                orders[trajectory.category][order].append(trajectory.id)
    said = {(skill.tier, normalised(skill.principle)) for skill in bank_skills}
    proposals: list[SkillProposal] = []
    for category, found in orders.items():
        order = min(found, key=lambda phrases: (-len(found[phrases]), len(phrases), phrases))
        ids, total = found[order], sum(map(len, found.values()))
        verb, name = _STRATEGIES[category]
        *first, last = order
        principle = f"{verb}: {', '.join(first)}, then {last}" if first else f"{verb}: {last}"
        if station := _station_of(order, verb):
            principle = Station(verb, station).principle
        if (category, normalised(principle)) in said:
            continue
        proposals.append(
            SkillProposal(
                name=name,
                principle=principle,
                when_to_apply=f"{category} tasks (the order of {len(ids)} of {total} wins)",
                tier=category,
                evidence=tuple(ids),
                reason=f"the order of {len(ids)} of {total} wins",
            )
        )
    return proposals


def _station_of(order: Sequence[str], treatment: str) -> str:
    """The receptacle type of an order such as: take it, go to stoveburner, heat it, put it; "" where it is another."""
    if len(order) != 4 or not order[1].startswith("go to ") or order[2] != f"{treatment} it":
        return ""
    return order[1].removeprefix("go to ")


def _phrases(done: Sequence[Deed]) -> Iterable[str]:
    taken = 0
    for deed in done:
        if deed.verb == "take":
            taken += 1
            yield "take it" if taken == 1 else "take the other"
        elif deed.verb == "put":
            yield "put it"
        elif deed.verb == "use":
            yield f"go to {deed.object}"
            yield "use it"
        else:
            yield f"go to {deed.place}"
            yield f"{deed.verb} it"


def _lessons(
    failed: Sequence[Trajectory], bank_skills: Sequence[Skill], *, least: int
) -> list[SkillProposal]:
    """What `least` failures or more did wrong and the bank does not say yet, most frequent first."""
    said = {normalised(skill.principle) for skill in bank_skills}
    found = {trajectory.id: faults(trajectory) for trajectory in failed}
    proposals: list[tuple[int, SkillProposal]] = []
    for fault, (name, principle, when) in _LESSONS.items():
        guilty = [t for t in failed if _has(found[t.id], fault)]
        if len(guilty) < least or normalised(principle) in said:
            continue
        categories = {trajectory.category for trajectory in guilty}
        tier = categories.pop() if len(categories) == 1 else GENERAL
        proposal = SkillProposal(
            name=name,
            principle=principle,
            when_to_apply=when,
            tier=tier or GENERAL,
            kind=SkillKind.LESSON,
            evidence=tuple(trajectory.id for trajectory in guilty),
            reason=f"{len(guilty)} of {len(failed)} failures",
        )
        proposals.append((len(guilty), proposal))
    return [proposal for _, proposal in sorted(proposals, key=lambda item: -item[0])]


def _has(found: Faults, fault: str) -> bool:
    return bool(getattr(found, fault))


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
