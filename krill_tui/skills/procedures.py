"""What household episodes show of how things are done: where a treatment works, in what order a task is won."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from krill_tui.envs.alfworld.text import STATION, TREATMENT, parse_task
from krill_tui.skill import GENERAL, Skill, SkillProposal
from krill_tui.skills.plays import Deed, deeds, trials
from krill_tui.skills.text import Station, normalised, parse_station
from krill_tui.trajectory import Trajectory

EVIDENCE_KEPT = 50
"""Trajectory ids a proposal names at most; its counts are over all."""

_LEAST_AGAINST = 3
"""Games that speak against a place before a skill says only where not to go."""
_IN_ORDER = re.compile(r"(clean|heat|cool): take it, go to ([a-z]+), \1 it, .*")
_DOING = {"heat": "heating", "cool": "cooling", "clean": "cleaning"}
_NAMES = {
    "Pick": ("put", "Take it, then put it"),
    "PickTwo": ("put two", "One after the other"),
    "Look": ("look", "Carry it to the lamp"),
    "Clean": ("clean", "Clean before putting"),
    "Heat": ("heat", "Heat before putting"),
    "Cool": ("cool", "Cool before putting"),
}
_PLAIN_ORDERS = {
    "Pick": ("take it", "put it"),
    "PickTwo": ("take it", "put it", "take the other", "put it"),
}
"""What the task itself asks for, where wins show no more."""


@dataclass(slots=True)
class Tally:
    """How often one thing could be done at one type of place."""

    possible: set[str] = field(default_factory=set)
    """Games."""
    impossible: set[str] = field(default_factory=set)
    """Games in which the thing was held there and it could not be done."""
    vain: int = 0
    """Times it was tried there without effect."""
    evidence: dict[str, None] = field(default_factory=dict)
    """Trajectories in which it was possible, or was found impossible."""

    @property
    def counts(self) -> tuple[int, int]:
        """(games in which it was possible, games in which that was seen)"""
        return len(self.possible), len(self.possible | self.impossible)


Tallies = dict[tuple[str, str], Tally]
"""By (verb, receptacle type)."""


def tally_trials(trajectories: Iterable[Trajectory]) -> Tallies:
    """Over all episodes, won or lost; a game counts once however often it was played."""
    tallies: defaultdict[tuple[str, str], Tally] = defaultdict(Tally)
    for trajectory in trajectories:
        game = trajectory.task_id or trajectory.id
        found = trials(trajectory)
        for where in found.possible:
            tallies[where].possible.add(game)
            tallies[where].evidence[trajectory.id] = None
        for where in found.impossible:
            tallies[where].impossible.add(game)
            tallies[where].evidence[trajectory.id] = None
        for where, times in found.vain.items():
            tallies[where].vain += times
    for tally in tallies.values():
        tally.impossible -= tally.possible
    return dict(tallies)


def best_station(tallies: Tallies, treatment: str) -> str:
    """The type of place where a treatment is most surely possible; empty where it was seen nowhere.

    By the rule of succession, so that one lucky game proves less than many.
    """

    def surety(place: str) -> tuple[float, str]:
        possible, seen = tallies[treatment, place].counts
        return -(possible + 1) / (seen + 2), place

    return min(
        (place for (verb, place), tally in tallies.items() if verb == treatment and tally.possible),
        key=surety,
        default="",
    )


def treatment_skills(
    trajectories: Sequence[Trajectory], bank_skills: Sequence[Skill], categories: Collection[str] = TREATMENT
) -> list[SkillProposal]:
    """For each treatment where it is done, where the bank does not say so, or says what episodes contradict.

    The evidence is whatever could be done, in won and lost episodes of every category: heating is possible where
    an admissible action says so, whether or not anybody did it.
    """
    tallies = tally_trials(trajectories)
    proposals = [
        _treatment_skill(category, tallies, trajectories, bank_skills)
        for category in TREATMENT
        if category in categories
    ]
    return [proposal for proposal in proposals if proposal is not None]


def _treatment_skill(
    category: str, tallies: Tallies, trajectories: Sequence[Trajectory], bank_skills: Sequence[Skill]
) -> SkillProposal | None:
    treatment = TREATMENT[category]
    station = best_station(tallies, treatment)
    stated = {s.id: place for s in bank_skills if (place := _stated(s, category)) is not None}
    skill = next((s for s in bank_skills if s.id in stated), None)
    against = stated[skill.id] if skill else STATION[treatment]
    if station in stated.values() and station:
        return None
    if skill is not None and against and _holds(skill, tallies.get((treatment, against), Tally()), against):
        return None
    if not station:
        return _not_there(category, against, tallies, skill) if skill and against else None
    done = [
        t.id for t in trajectories if t.success and t.category == category and _used(t, treatment, station)
    ]
    facts = _where(treatment, station, tallies)
    if (treatment, against) in tallies and against != station:
        facts += f", {_where(treatment, against, tallies).removeprefix(_possible(treatment))}"
    wins = f"{len(done)} won {'game' if len(done) == 1 else 'games'} did so; " if done else ""
    said = f"said {against or 'no place'}, but " if skill else ""
    evidence = dict.fromkeys([*done, *tallies[treatment, station].evidence])
    if (treatment, against) in tallies:
        evidence |= tallies[treatment, against].evidence
    return SkillProposal(
        name=_NAMES[category][1],
        principle=Station(treatment, station).principle,
        when_to_apply=f"{category} tasks ({wins}{facts})",
        tier=category,
        refines=skill.id if skill else None,
        evidence=tuple(evidence)[:EVIDENCE_KEPT],
        reason=f"{said}{wins}{facts}{_in_vain(treatment, against, tallies)}",
    )


def _not_there(category: str, stated: str, tallies: Tallies, skill: Skill) -> SkillProposal | None:
    """Where a skill is contradicted often and no other place is known: say at least where it is not."""
    treatment = TREATMENT[category]
    tally = tallies.get((treatment, stated), Tally())
    if len(tally.impossible) < _LEAST_AGAINST:
        return None
    facts = _where(treatment, stated, tallies)
    return SkillProposal(
        name=_NAMES[category][1],
        principle=f"{treatment}: take it, try each place but {stated}, {treatment} it there, then put it",
        when_to_apply=f"{category} tasks ({facts}; where else is not known)",
        tier=category,
        refines=skill.id,
        evidence=tuple(tally.evidence)[:EVIDENCE_KEPT],
        reason=f"said {stated}, but {facts}{_in_vain(treatment, stated, tallies)}",
    )


def _stated(skill: Skill, category: str) -> str | None:
    """The station a skill of the bank names for this category; empty: it is about that, but names none.

    A skill in other words counts where it names the usual station, the likeliest mistake.
    """
    treatment = TREATMENT[category]
    if skill.tier not in (category, GENERAL):
        return None
    if said := parse_station(skill.principle):
        return said.receptacle if said.treatment == treatment else None
    if order := _IN_ORDER.fullmatch(skill.principle):
        return order[2] if order[1] == treatment else None
    if skill.principle.startswith(f"{treatment}: take it, "):
        return ""
    words = normalised(skill.principle).split()
    return STATION[treatment] if treatment in words and STATION[treatment] in words else None


def _holds(skill: Skill, tally: Tally, station: str) -> bool:
    """Whether the counts in a skill's own text and the new ones together still speak for its station."""
    old = re.search(rf"\bat {re.escape(station)} in (\d{{1,9}}) of (\d{{1,9}}) games", skill.when_to_apply)
    possible, seen = tally.counts
    if old:
        possible, seen = possible + int(old[1]), seen + int(old[2])
    return seen > 0 and possible * 2 >= seen


def _where(treatment: str, station: str, tallies: Tallies) -> str:
    possible, seen = tallies.get((treatment, station), Tally()).counts
    return f"{_possible(treatment)}at {station} in {possible} of {seen} games"


def _possible(treatment: str) -> str:
    return f"{_DOING[treatment]} was possible "


def _in_vain(treatment: str, place: str, tallies: Tallies) -> str:
    times = tallies[treatment, place].vain if (treatment, place) in tallies else 0
    return f" (tried {times} {'time' if times == 1 else 'times'} in vain)" if times else ""


def _used(trajectory: Trajectory, treatment: str, station: str) -> bool:
    return any(deed.verb == treatment and deed.place == station for deed in deeds(trajectory))


def strategy_skills(trajectories: Sequence[Trajectory], bank_skills: Sequence[Skill]) -> list[SkillProposal]:
    """Per category without a treatment the order of actions most wins share, where the bank does not say it yet.

    Where no two wins agree, what all episodes show to be possible: putting it where it belongs, using the lamp.
    """
    said = {(skill.tier, normalised(skill.principle)) for skill in bank_skills}
    proposals = []
    for category in _NAMES:
        if category in TREATMENT:
            continue
        mine = [trajectory for trajectory in trajectories if trajectory.category == category]
        proposal = _won_order(category, mine)
        # One win alone may have come about in any order.
        if proposal is None or len(proposal.evidence) < 2:
            proposal = _possible_order(category, mine) or proposal
        if proposal and (category, normalised(proposal.principle)) not in said:
            proposals.append(proposal)
    return proposals


def _won_order(category: str, trajectories: Sequence[Trajectory]) -> SkillProposal | None:
    found: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for trajectory in trajectories:
        if trajectory.success and (order := tuple(_phrases(deeds(trajectory)))):
            found[order].append(trajectory.id)
    if not found:
        return None
    order = min(found, key=lambda phrases: (-len(found[phrases]), len(phrases), phrases))
    ids = found[order]
    return _order_skill(
        category, order, ids, f"the order of {len(ids)} of {sum(map(len, found.values()))} wins"
    )


def _possible_order(category: str, trajectories: Sequence[Trajectory]) -> SkillProposal | None:
    games: defaultdict[tuple[str, ...], set[str]] = defaultdict(set)
    ids: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for trajectory in trajectories:
        goal = parse_task(trajectory.task)
        if goal is None or goal.category != category:
            continue
        wanted = ("use" if category == "Look" else "put", goal.target)
        if wanted in trials(trajectory).possible:
            order = _PLAIN_ORDERS.get(category) or ("take it", f"go to {goal.target}", "use it")
            games[order].add(trajectory.task_id or trajectory.id)
            ids[order].append(trajectory.id)
    if not games:
        return None
    order = min(games, key=lambda phrases: (-len(games[phrases]), phrases))
    count = len(games[order])
    what = "using it" if category == "Look" else "putting it where it belongs"
    wins = sum(trajectory.success for trajectory in trajectories)
    facts = f"{what} was possible in {count} {'game' if count == 1 else 'games'}; {wins or 'none'} won"
    return _order_skill(category, order, ids[order], facts)


def _order_skill(category: str, order: Sequence[str], ids: Sequence[str], facts: str) -> SkillProposal:
    verb, name = _NAMES[category]
    *first, last = order
    return SkillProposal(
        name=name,
        principle=f"{verb}: {', '.join(first)}, then {last}" if first else f"{verb}: {last}",
        when_to_apply=f"{category} tasks ({facts})",
        tier=category,
        evidence=tuple(ids)[:EVIDENCE_KEPT],
        reason=facts,
    )


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
