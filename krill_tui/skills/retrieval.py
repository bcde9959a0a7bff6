"""Which skills stand in a prompt: S_ret = TopK({s in S_k : sim(e_d, e_s) > delta}, K)."""

from __future__ import annotations

import asyncio
import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from krill_tui.models.base import Embedder
from krill_tui.skill import GENERAL, Skill
from krill_tui.skills.bank import SkillBank
from krill_tui.skills.text import skill_text
from krill_tui.skills.tiers import tiers_for

RetrievalMode = Literal["embedding", "template"]

_TASKS_KEPT = 4096
_LEFT_OUT_SHOWN = 32


@dataclass(frozen=True, slots=True)
class RetrievalOptions:
    """The paper's values."""

    mode: RetrievalMode = "embedding"
    """`template`: all skills of the task's category, in bank order, without a similarity threshold."""
    top_k: int = 6
    threshold: float = 0.4
    """Task-specific skills enter only above this cosine (mode `embedding`)."""
    general_top_k: int = 12
    token_budget: int | None = None
    """Tokens all skills of a prompt may take together; None is no limit."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A skill that was considered and is not in the prompt."""

    id: str
    reason: str
    score: float


@dataclass(frozen=True, slots=True)
class Selection:
    """The skills of one prompt."""

    skills: tuple[Skill, ...] = ()
    """General ones first, best first; then the task-specific ones."""
    scores: dict[str, float] = field(default_factory=dict)
    """Cosine with the task, by skill id, of the skills here and of those in `left_out`."""
    left_out: tuple[LeftOut, ...] = ()
    """The next best of each tier, at most 32 of them."""
    tokens: int = 0
    bank_version: int = 0


def estimate_tokens(skill: Skill) -> int:
    """Tokens of a skill in a prompt where no tokenizer is at hand: a quarter of its characters."""
    return (len(skill.id) + len(skill_text(skill))) // 4 + 1


@dataclass(frozen=True, slots=True)
class _Index:
    """Active skills of one bank version."""

    version: int
    skills: tuple[Skill, ...]
    texts: tuple[str, ...]
    matrix: np.ndarray
    """[skills, dim], sorted by tier so that each tier is one block of rows."""
    rows: dict[str, slice]
    order: np.ndarray
    """[skills], the place of each in the bank."""
    also: dict[str, list[int]]
    """Category -> rows of the skills of other tiers that serve it too."""


class Retriever:
    """Selects skills from one bank, embedding each text once."""

    def __init__(
        self,
        bank: SkillBank,
        embedder: Embedder,
        options: RetrievalOptions | None = None,
        count_tokens: Callable[[Skill], int] = estimate_tokens,
        env: str = "",
    ) -> None:
        """`env` is the world's name: with it, tiers of other projects reach the tasks they are for."""
        self._env = env
        self._bank = bank
        self._embedder = embedder
        self._options = options or RetrievalOptions()
        self._count_tokens = count_tokens
        self._index: _Index | None = None
        self._tasks: OrderedDict[str, np.ndarray] = OrderedDict()
        # Many episodes begin at once: each text is still embedded once.
        self._indexing = asyncio.Lock()
        self._embedding: dict[str, asyncio.Lock] = {}

    async def select(self, task: str, category: str) -> Selection:
        """Skills for a task description and its category (empty: what the task's words tell, else general ones)."""
        index = await self._current_index()
        vector = await self._embed_task(task)
        options = self._options
        general = index.rows.get(GENERAL)
        chosen, left_out = self._best(index, general, vector, options.general_top_k)
        left = [(skill, score, "past general_top_k") for skill, score in left_out]
        if rows := self._specific(index, task, category):
            in_order = options.mode == "template"
            specific, left_out = self._best(index, rows, vector, options.top_k, in_order=in_order)
            threshold = -math.inf if in_order else options.threshold
            chosen += [scored for scored in specific if scored[1] > threshold]
            for skill, score in specific + left_out:
                if score <= threshold:
                    left.append((skill, score, "below the threshold"))
                elif (skill, score) not in specific:
                    left.append((skill, score, "past top_k"))
        return self._within_budget(chosen, left, index.version)

    def _specific(self, index: _Index, task: str, category: str) -> slice | list[int] | None:
        """The rows of the skills for this task beside the general ones, in bank order."""
        tiers = [tier for tier in tiers_for(task, category, index.rows, self._env) if tier != GENERAL]
        also = index.also.get(category, [])
        if len(tiers) == 1 and not also:
            return index.rows[tiers[0]]
        rows = {row for tier in tiers for row in range(index.rows[tier].start, index.rows[tier].stop)}
        return sorted(rows.union(also), key=lambda row: index.order[row])

    @staticmethod
    def _best(
        index: _Index,
        rows: slice | list[int] | None,
        vector: np.ndarray,
        count: int,
        *,
        in_order: bool = False,
    ) -> tuple[list[tuple[Skill, float]], list[tuple[Skill, float]]]:
        """(the `count` best of these rows, the next best), each with its score; or the first ones."""
        if rows is None:
            return [], []
        scores = index.matrix[rows] @ vector
        numbers = range(rows.start, rows.stop) if isinstance(rows, slice) else rows
        wanted = count + _LEFT_OUT_SHOWN
        if in_order:
            order = np.arange(min(wanted, len(scores)))
        else:
            near = (
                np.argpartition(-scores, wanted)[:wanted] if wanted < len(scores) else np.arange(len(scores))
            )
            # Bank order among equals.
            near.sort()
            order = near[np.argsort(-scores[near], kind="stable")]
        ranked = [(index.skills[numbers[place]], float(scores[place])) for place in order]
        return ranked[:count], ranked[count:]

    def _within_budget(
        self, chosen: Sequence[tuple[Skill, float]], left_out: list[tuple[Skill, float, str]], version: int
    ) -> Selection:
        budget = self._options.token_budget
        kept: list[Skill] = []
        tokens = 0
        for skill, score in chosen:
            cost = self._count_tokens(skill)
            if budget is not None and tokens + cost > budget:
                left_out.append((skill, score, "over the token budget"))
                continue
            kept.append(skill)
            tokens += cost
        scores = {skill.id: score for skill, score in chosen}
        scores |= {skill.id: score for skill, score, _ in left_out}
        dropped = tuple(LeftOut(skill.id, reason, score) for skill, score, reason in left_out)
        return Selection(tuple(kept), scores, dropped, tokens, version)

    async def _current_index(self) -> _Index:
        async with self._indexing:
            return await self._refreshed()

    async def _refreshed(self) -> _Index:
        old = self._index
        if old is not None and old.version == self._bank.version:
            return old
        version = self._bank.version
        # A stable sort: bank order holds inside each tier.
        in_bank = self._bank.skills()
        order = sorted(range(len(in_bank)), key=lambda place: in_bank[place].tier)
        skills = tuple(in_bank[place] for place in order)
        texts = tuple(map(skill_text, skills))
        known = dict(zip(old.texts, old.matrix, strict=True)) if old is not None else {}
        missing = list(dict.fromkeys(text for text in texts if text not in known))
        if missing:
            known |= zip(missing, await self._embedder.embed(missing), strict=True)
        matrix = np.stack([known[text] for text in texts]) if texts else np.zeros((0, 0), np.float32)
        starts: dict[str, int] = {}
        rows: dict[str, slice] = {}
        also: dict[str, list[int]] = {}
        for number, skill in enumerate(skills):
            for category in skill.also:
                also.setdefault(category, []).append(number)
            start = starts.setdefault(skill.tier, number)
            rows[skill.tier] = slice(start, number + 1)
        self._index = _Index(version, skills, texts, matrix, rows, np.array(order), also)
        return self._index

    async def _embed_task(self, task: str) -> np.ndarray:
        async with self._embedding.setdefault(task, asyncio.Lock()):
            if task not in self._tasks:
                self._tasks[task] = (await self._embedder.embed([task]))[0]
            vector = self._tasks[task]
        self._tasks.move_to_end(task)
        if len(self._tasks) > _TASKS_KEPT:
            oldest, _ = self._tasks.popitem(last=False)
            self._embedding.pop(oldest, None)
        return vector


async def select_skills(
    bank: SkillBank,
    task: str,
    category: str,
    *,
    embedder: Embedder,
    options: RetrievalOptions | None = None,
    count_tokens: Callable[[Skill], int] = estimate_tokens,
    env: str = "",
) -> Selection:
    """One selection without a kept index; an engine keeps a `Retriever`."""
    return await Retriever(bank, embedder, options, count_tokens, env).select(task, category)
