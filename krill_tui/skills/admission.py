"""The gate before the bank: which proposals become skills, and why the others do not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from krill_tui.io.text import clean_text
from krill_tui.models.base import Embedder
from krill_tui.skill import Skill, SkillOrigin, SkillProposal, SkillStatus
from krill_tui.skills.bank import SkillBank
from krill_tui.skills.dedupe import DUPLICATE_SIMILARITY, nearest_duplicate
from krill_tui.skills.text import normalised, skill_text


@dataclass(frozen=True, slots=True)
class Refused:
    """A proposal that did not change the bank."""

    proposal: SkillProposal
    reason: str


async def admit(
    proposals: Sequence[SkillProposal],
    bank: SkillBank,
    embedder: Embedder,
    origin: SkillOrigin,
    *,
    threshold: float = DUPLICATE_SIMILARITY,
    max_new: int | None = None,
) -> tuple[list[Skill], list[Refused]]:
    """Put proposals into the bank, in order, with one write; returns the new or refined skills, and the rest.

    Refused are: texts without a name or principle, what the bank says already (retired and disabled skills count:
    somebody took them out), refinements of skills that are not in use, and what is past `max_new` changes.
    """
    existing = bank.skills(active_only=False)
    texts = [skill_text(proposal) for proposal in proposals] + [skill_text(skill) for skill in existing]
    vectors = list(await embedder.embed(texts)) if texts else []
    known, known_vectors = list(existing), vectors[len(proposals) :]
    accepted: list[Skill] = []
    refused: list[Refused] = []
    with bank.batch():
        for proposal, vector in zip(proposals, vectors, strict=False):
            reason = _reason_against(proposal, vector, bank, known, known_vectors, threshold)
            if reason is None and max_new is not None and len(accepted) >= max_new:
                reason = f"past the {max_new} changes of one cycle"
            if reason is not None:
                refused.append(Refused(proposal, reason))
                continue
            source = origin.model_copy(update={"trajectories": proposal.evidence})
            if proposal.refines is not None:
                skill = bank.refine(proposal.refines, proposal, source)
                place = next(i for i, other in enumerate(known) if other.id == skill.id)
                known[place], known_vectors[place] = skill, vector
            else:
                skill = bank.add(proposal, source, reason=proposal.reason)
                known.append(skill)
                known_vectors.append(vector)
            accepted.append(skill)
    return accepted, refused


def _reason_against(
    proposal: SkillProposal,
    vector: np.ndarray,
    bank: SkillBank,
    known: Sequence[Skill],
    vectors: Sequence[np.ndarray],
    threshold: float,
) -> str | None:
    if not normalised(proposal.name) or not normalised(proposal.principle):
        return "it has no name or no principle"
    tier = proposal.tier
    if proposal.refines is not None:
        if proposal.refines not in bank:
            return f"there is no skill {clean_text(proposal.refines, 40)!r} to refine"
        target = bank.get(proposal.refines)
        if target.status is not SkillStatus.ACTIVE:
            return f"{target.id} is {target.status.value}"
        if clean_text(proposal.principle) == target.principle:
            return f"{target.id} says so already"
        tier = target.tier
    others = [i for i, skill in enumerate(known) if skill.id != proposal.refines]
    if not others:
        return None
    duplicate = nearest_duplicate(
        proposal.model_copy(update={"tier": tier}),
        [known[i] for i in others],
        vector,
        np.stack([vectors[i] for i in others]),
        threshold,
    )
    if duplicate is None:
        return None
    return f"{duplicate.skill.id} says the same (similarity {duplicate.similarity:.2f})"
