"""When two skills say the same."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from krill_tui.models.base import Embedder
from krill_tui.skill import GENERAL, Skill, SkillProposal
from krill_tui.skills.text import normalised, parse_location, parse_station, skill_text

DUPLICATE_SIMILARITY = 0.92
"""Cosine from which two skills of one tier count as the same."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """The skill that already says it."""

    skill: Skill
    similarity: float
    """1.0 where the texts are the same words."""


async def find_duplicate(
    proposal: SkillProposal,
    skills: Sequence[Skill],
    embedder: Embedder,
    threshold: float = DUPLICATE_SIMILARITY,
) -> Duplicate | None:
    """The most similar of `skills` that says what the proposal says, among its tier and the general one."""
    near = [skill for skill in skills if _serves(skill, proposal.tier)]
    if not near:
        return None
    matrix = await embedder.embed([skill_text(proposal), *map(skill_text, near)])
    return nearest_duplicate(proposal, near, matrix[0], matrix[1:], threshold)


def nearest_duplicate(
    proposal: SkillProposal,
    skills: Sequence[Skill],
    vector: np.ndarray,
    matrix: np.ndarray,
    threshold: float = DUPLICATE_SIMILARITY,
) -> Duplicate | None:
    """As `find_duplicate`, over embeddings: `vector` [dim] of the proposal, `matrix` [skills, dim]."""
    same_words = normalised(proposal.principle)
    best: Duplicate | None = None
    for skill, similarity in zip(skills, (matrix @ vector).tolist(), strict=True):
        if not _serves(skill, proposal.tier):
            continue
        if not are_comparable(proposal.principle, skill.principle):
            continue
        if normalised(skill.principle) == same_words:
            return Duplicate(skill, 1.0)
        if similarity >= threshold and (best is None or similarity > best.similarity):
            best = Duplicate(skill, similarity)
    return best


def _serves(skill: Skill, tier: str) -> bool:
    return skill.tier in (tier, GENERAL) or tier in skill.also


def are_comparable(first: str, second: str) -> bool:
    """False for two locations, or two stations, that differ: their texts are alike, what they say is not."""
    for parse in (parse_location, parse_station):
        one, other = parse(first), parse(second)
        if one is not None and other is not None and one != other:
            return False
    return True
