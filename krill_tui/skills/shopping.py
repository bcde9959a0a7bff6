"""What won purchases have in common that others lack: habits of shopping, each with its counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from krill_tui.envs.webshop.reading import Wish, coverage, read_wish
from krill_tui.skill import GENERAL, Skill, SkillProposal
from krill_tui.skills.procedures import EVIDENCE_KEPT
from krill_tui.skills.purchases import Purchase, purchase
from krill_tui.skills.text import normalised
from krill_tui.trajectory import Trajectory

LEAST_WINS = 3
"""Wins in which a habit shows before it is called one."""
_MOST_WINS = 0.6
"""Share of the wins that have it."""
_EDGE = 0.1
"""How much larger that share is than among purchases that did not win, where there were any."""
_FIRST = 3
"""Results that count as the first ones."""


@dataclass(frozen=True, slots=True)
class _Habit:
    name: str
    principle: str
    when: str
    holds: Callable[[Wish, Purchase], bool | None]
    """None where the instruction or the episode does not tell."""


def _searched_for_all(wish: Wish, bought: Purchase) -> bool | None:
    if not wish.phrases or not bought.query:
        return None
    return all(coverage(phrase, bought.query) == 1 for phrase in wish.phrases)


_HABITS = (
    _Habit(
        "Search for all of it",
        "search: name the product and every attribute that is asked for",
        "a search begins",
        _searched_for_all,
    ),
    _Habit(
        "Look at the first results",
        f"open: the product is mostly among the first {_FIRST} results",
        "results are shown",
        lambda _, bought: bought.rank <= _FIRST if bought.rank else None,
    ),
    _Habit(
        "Choose every option asked for",
        "choose: click each option that is asked for, then buy",
        "a product comes in several options",
        lambda wish, bought: not bought.unchosen if wish.options else None,
    ),
    _Habit(
        "Mind the price",
        "price: go back when a product costs more than asked",
        "a product's page is open",
        lambda wish, bought: not bought.dear if wish.bound < float("inf") else None,
    ),
    _Habit(
        "Read before you buy",
        "read: open the features before buying when the title does not say all that is asked for",
        "a product's page is open",
        lambda _, bought: bought.read,
    ),
)


def shopping_skills(trajectories: Sequence[Trajectory], bank_skills: Sequence[Skill]) -> list[SkillProposal]:
    """Habits that most wins have, and clearly fewer of the purchases that did not win; what the bank says is left out.

    A correlation over episodes, and it is told as one: so many wins did it, so many others.
    """
    said = {normalised(skill.principle) for skill in bank_skills}
    bought = [(t, read_wish(t.task), p) for t in trajectories if (p := purchase(t)) is not None]
    proposals: list[SkillProposal] = []
    for habit in _HABITS:
        seen = [(t, held) for t, wish, p in bought if (held := habit.holds(wish, p)) is not None]
        wins = [(t, held) for t, held in seen if t.success]
        others = [held for t, held in seen if not t.success]
        having = [t.id for t, held in wins if held]
        if (
            len(having) < LEAST_WINS
            or len(having) < _MOST_WINS * len(wins)
            or normalised(habit.principle) in said
        ):
            continue
        if others and len(having) / len(wins) < sum(others) / len(others) + _EDGE:
            continue
        facts = f"{len(having)} of {len(wins)} wins did so"
        facts += f", {sum(others)} of {len(others)} purchases that did not win" if others else ""
        proposals.append(
            SkillProposal(
                name=habit.name,
                principle=habit.principle,
                when_to_apply=f"{habit.when} ({facts})",
                tier=GENERAL,
                evidence=tuple(having)[:EVIDENCE_KEPT],
                reason=facts,
            )
        )
    return proposals
