"""What lost episodes did wrong, as lessons in plain words, each with the failures it was learned from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from krill_tui.skill import GENERAL, Skill, SkillKind, SkillProposal
from krill_tui.skills.plays import Conditions, conditions, faults
from krill_tui.skills.procedures import EVIDENCE_KEPT
from krill_tui.skills.text import normalised
from krill_tui.trajectory import Trajectory

MOST_PER_TIER = 2
"""Lessons one tier gets from the miner: a prompt full of warnings says little."""

LESSONS = {
    "untreated": (
        "Treat it before putting",
        "put: only after it was heated, cooled or cleaned as asked",
        "a thing is to be put somewhere hot, cool or clean",
    ),
    "missed": (
        "Treat it where that is possible",
        "treat: heat, cool or clean it at the first place where that is possible",
        "the thing in hand can be heated, cooled or cleaned here",
    ),
    "untaken": (
        "Take what you came for",
        "take: when the thing asked for is here, take it",
        "the thing asked for is in sight",
    ),
    "wrong": (
        "Leave other things alone",
        "take: only what the task names",
        "other things are in sight",
    ),
    "kept": (
        "Put it down where it belongs",
        "put: when it is ready and you are there, put it at once",
        "you stand where the thing belongs",
    ),
    "carried": (
        "Bring it straight there",
        "put: when it is ready, go straight to the place asked for",
        "the thing is in hand and ready",
    ),
    "full": (
        "One thing at a time",
        "take: put down what you hold first",
        "something is in hand already",
    ),
    "unsearched": (
        "Look into more places",
        "search: look into a new place at every step",
        "the object is not found yet",
    ),
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
"""By the name of the fault: name, principle, when to apply."""


def lesson_skills(
    failed: Sequence[Trajectory], bank_skills: Sequence[Skill], *, least: int
) -> list[SkillProposal]:
    """What `least` failures or more did wrong and the bank does not say yet, most frequent first.

    A fault of one category alone goes to that category's tier.
    """
    texts = {normalised(principle): fault for fault, (_, principle, _) in LESSONS.items()}
    said = {texts.get(normalised(skill.principle), "") for skill in bank_skills}
    room = Counter(skill.tier for skill in bank_skills if normalised(skill.principle) in texts)
    found = {trajectory.id: faults(trajectory) for trajectory in failed}
    guilty = {fault: [t for t in failed if getattr(found[t.id], fault)] for fault in LESSONS}
    proposals: list[SkillProposal] = []
    for fault in sorted(LESSONS, key=lambda name: -len(guilty[name])):
        if len(guilty[fault]) < max(least, 1) or fault in said:
            continue
        categories = {trajectory.category for trajectory in guilty[fault]}
        tier = (categories.pop() if len(categories) == 1 else GENERAL) or GENERAL
        room[tier] += 1
        if room[tier] > MOST_PER_TIER:
            continue
        name, principle, when = LESSONS[fault]
        count = f"{len(guilty[fault])} of {len(failed)} failures{_condition(fault, failed)}"
        proposals.append(
            SkillProposal(
                name=name,
                principle=principle,
                when_to_apply=f"{when} ({count})",
                tier=tier,
                kind=SkillKind.LESSON,
                evidence=tuple(trajectory.id for trajectory in guilty[fault])[:EVIDENCE_KEPT],
                reason=count,
            )
        )
    return proposals


def _condition(fault: str, trajectories: Sequence[Trajectory]) -> str:
    """The counts behind what a lesson says about the world, where it says something."""
    if fault not in ("unopened", "full"):
        return ""
    found = sum(map(conditions, trajectories), Conditions())
    if fault == "unopened":
        return f"; {found.filled} of {found.opened} closed places that were opened held something"
    return f"; with a thing in hand another could be taken at {found.laden_takes} of {found.laden} steps"
