"""What can stand in a prompt in place of a task's own skills: won episodes as they were played, or skills that
are about something else. Both are controls of `krill ablate`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random

import numpy as np

from krill_tui.agent.prompts import episode_block
from krill_tui.errors import SplitProtectedError
from krill_tui.models.base import Embedder
from krill_tui.skill import GENERAL, Skill, SkillKind
from krill_tui.skills.retrieval import estimate_tokens
from krill_tui.skills.teacher import PROTECTED_SPLITS
from krill_tui.trajectory import Task, Trajectory

_WORD = re.compile(r"[a-z]{2,}")
_COMMON = frozenset(
    [
        "an",
        "and",
        "at",
        "find",
        "for",
        "from",
        "go",
        "in",
        "into",
        "is",
        "it",
        "look",
        "of",
        "on",
        "once",
        "one",
        "open",
        "place",
        "put",
        "some",
        "take",
        "that",
        "the",
        "them",
        "then",
        "to",
        "two",
        "where",
        "with",
    ]
)
"""Words that say nothing about which task a skill is for."""


class ExampleEpisodes:
    """Won episodes, as blocks for prompts: those of the task's category, nearest task first.

    Where none of the category was won, the nearest of the others. Blocks that the budget has no room for are left
    out; the token count is the one that skills are measured with (`estimate_tokens`).
    """

    def __init__(
        self, trajectories: Sequence[Trajectory], embedder: Embedder, *, count: int, token_budget: int
    ) -> None:
        """Raises SplitProtectedError where an episode is of a split whose success is reported."""
        won = [t for t in trajectories if t.success]
        reported = next((t.id for t in won if t.split in PROTECTED_SPLITS), None)
        if reported:
            raise SplitProtectedError(f"'{reported}' is of a reported split: no prompt may show it")
        self._won = won
        self._blocks = [episode_block(t) for t in won]
        self._embedder = embedder
        self._count = count
        self._budget = token_budget
        self._vectors: dict[str, np.ndarray] = {}

    def __len__(self) -> int:
        return len(self._won)

    async def select(self, task: Task) -> tuple[Skill, ...]:
        """Up to `count` blocks for this task, within the token budget."""
        same = [n for n, t in enumerate(self._won) if task.category and t.category == task.category]
        candidates = same or range(len(self._won))
        texts = dict.fromkeys([task.description, *(self._won[n].task for n in candidates)])
        missing = [text for text in texts if text not in self._vectors]
        if missing:
            self._vectors |= zip(missing, await self._embedder.embed(missing), strict=True)
        asked = self._vectors[task.description]
        nearest = sorted(candidates, key=lambda n: (-float(asked @ self._vectors[self._won[n].task]), n))
        chosen: list[Skill] = []
        tokens = 0
        for number in nearest:
            cost = estimate_tokens(self._blocks[number])
            if len(chosen) < self._count and tokens + cost <= self._budget:
                chosen.append(self._blocks[number])
                tokens += cost
        return tuple(chosen)


def irrelevant_skills(skills: Sequence[Skill], task: Task, count: int) -> tuple[Skill, ...]:
    """Up to `count` skills about things this task does not name, drawn by the task's id.

    Left out are the skills of the task's category, those that share a word with its description, and lessons of the
    general tier, which hold for every task.
    """
    named = _words(f"{task.description} {task.category}")
    pool = [
        skill
        for skill in skills
        if task.category not in (skill.tier, *skill.also)
        and not (skill.tier == GENERAL and skill.kind is SkillKind.LESSON)
        and not named & _words(f"{skill.name} {skill.principle} {skill.when_to_apply}")
    ]
    return tuple(Random(f"irrelevant/{task.id}").sample(pool, min(count, len(pool))))


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower())) - _COMMON
