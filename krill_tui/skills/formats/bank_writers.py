"""Writing skill banks as other projects read them."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from krill_tui.errors import UsageError
from krill_tui.io.files import write_output
from krill_tui.io.text import markdown_text
from krill_tui.skill import GENERAL, Skill, SkillKind, SkillOrigin, SkillStatus
from krill_tui.skills.bank import SkillBank, copy_into
from krill_tui.skills.formats.banks import WHY, LoadedBank
from krill_tui.skills.formats.skill_md import write_skill_files

_NAMESPACE = uuid.UUID("6a1f3c52-6b8e-5a5e-9d3f-2d9f6a0c7b41")
_SKILLRL_NAMES = {
    "Pick": "pick_and_place",
    "PickTwo": "pick_two_obj_and_place",
    "Look": "look_at_obj_in_light",
    "Clean": "clean",
    "Heat": "heat",
    "Cool": "cool",
}


def write_rust(path: str | Path, skills: Sequence[Skill], *, cycle: int = 0) -> None:
    """The Rust project's bank: active skills only, as it has no status; their ids become UUIDs.

    Raises:
        DataError: the file cannot be written.
    """
    active = _active(skills)
    tiers: dict[str, list[dict[str, Any]]] = {}
    for skill in active:
        if skill.tier != GENERAL:
            tiers.setdefault(skill.tier, []).append(_rust_skill(skill))
    bank = {
        "general_skills": [_rust_skill(skill) for skill in active if skill.tier == GENERAL],
        "task_specific_skills": tiers,
        "history": [
            {
                "skill_id": _rust_id(skill),
                "added_at": _rfc3339(skill.created),
                "evolution_cycle": skill.origin.cycle,
            }
            for skill in active
        ],
        "current_cycle": cycle,
    }
    write_output(Path(path), json.dumps(bank, ensure_ascii=False, indent=2) + "\n")


def write_skillrl(
    path: str | Path, skills: Sequence[Skill], *, metadata: Mapping[str, Any] | None = None
) -> None:
    """SkillRL's bank: active skills only; lessons are its common mistakes, whatever their tier.

    A lesson's tier has no place there, so a lesson of one category becomes one for all.

    Raises:
        DataError: the file cannot be written.
    """
    general: list[dict[str, str]] = []
    tiers: dict[str, list[dict[str, str]]] = {}
    mistakes: list[dict[str, str]] = []
    for skill in _active(skills):
        if skill.kind is SkillKind.LESSON:
            mistakes.append(_skillrl_mistake(skill))
        elif skill.tier == GENERAL:
            general.append(_skillrl_skill(skill))
        else:
            tiers.setdefault(_SKILLRL_NAMES.get(skill.tier, skill.tier), []).append(_skillrl_skill(skill))
    bank = {
        "general_skills": general,
        "task_specific_skills": tiers,
        "common_mistakes": mistakes,
        "metadata": dict(metadata or {"source": "krill"}),
    }
    write_output(Path(path), json.dumps(bank, ensure_ascii=False, indent=2) + "\n")


def write_json(path: str | Path, skills: Sequence[Skill]) -> None:
    """A list of skills with every field of ours.

    Raises:
        DataError: the file cannot be written.
    """
    data = [skill.model_dump(mode="json") for skill in skills]
    write_output(Path(path), json.dumps(data, ensure_ascii=False, indent=2) + "\n")


def write_krill(path: str | Path, skills: Sequence[Skill], *, cycle: int = 0) -> None:
    """A bank of Krill's own; ids that are long become short ones.

    Raises:
        DataError: the file cannot be written.
    """
    newest = max((skill.updated for skill in skills), default=0.0)
    bank = SkillBank.in_memory(clock=lambda: newest)
    copy_into(bank, skills, SkillOrigin())
    bank.set_cycle(cycle)
    write_output(Path(path), bank.as_json())
    bank.close()


def write_markdown(path: str | Path, skills: Sequence[Skill]) -> None:
    """A page for people, a section for each tier; whatever a skill's text holds shows as plain text.

    Raises:
        DataError: the file cannot be written.
    """
    lines = ["# Skill bank", ""]
    tiers = dict.fromkeys(skill.tier for skill in skills)
    for tier in sorted(tiers, key=lambda tier: tier != GENERAL):
        members = [skill for skill in skills if skill.tier == tier]
        lines += [f"## {markdown_text(tier)} ({len(members)})", ""]
        for skill in members:
            notes = [skill.kind.value] + (
                [skill.status.value] if skill.status is not SkillStatus.ACTIVE else []
            )
            lines.append(
                f"- **{markdown_text(skill.name)}** (`{skill.id}`, {', '.join(notes)}): "
                f"{markdown_text(skill.principle)}"
            )
            if skill.when_to_apply:
                lines.append(f"  Apply when: {markdown_text(skill.when_to_apply)}")
        lines.append("")
    write_output(Path(path), "\n".join(lines))


WRITERS: Mapping[str, Callable[[Path, LoadedBank], None]] = {
    "krill": lambda path, bank: write_krill(path, bank.skills, cycle=bank.cycle),
    "rust": lambda path, bank: write_rust(path, bank.skills, cycle=bank.cycle),
    "skillrl": lambda path, bank: write_skillrl(path, bank.skills, metadata=bank.extra.get("metadata")),
    "json": lambda path, bank: write_json(path, bank.skills),
    "markdown": lambda path, bank: write_markdown(path, bank.skills),
    "skill-md": lambda path, bank: write_skill_files(path, bank.skills),
}
"""By the format's name on the command line."""
ACTIVE_ONLY = frozenset({"rust", "skillrl"})
"""Formats without a status: retired and disabled skills stay at home."""


def export_bank(path: Path, bank: LoadedBank, format: str) -> int:
    """Write a bank that was read in another format; returns how many skills it holds there.

    Raises:
        UsageError: there is no such format, or the target cannot be one.
        DataError: it cannot be written.
    """
    if format not in WRITERS:
        raise UsageError(f"there is no format '{format}'", hint=f"known: {', '.join(WRITERS)}")
    WRITERS[format](path, bank)
    return len(_active(bank.skills) if format in ACTIVE_ONLY else bank.skills)


def _active(skills: Sequence[Skill]) -> list[Skill]:
    return [skill for skill in skills if skill.status is SkillStatus.ACTIVE]


def _skillrl_skill(skill: Skill) -> dict[str, str]:
    return {
        "skill_id": skill.id,
        "title": skill.name,
        "principle": skill.principle,
        "when_to_apply": skill.when_to_apply,
    }


def _skillrl_mistake(skill: Skill) -> dict[str, str]:
    description, _, why = skill.when_to_apply.partition(WHY)
    return {
        "mistake_id": skill.id,
        "description": description or skill.name,
        "why_it_happens": why,
        "how_to_avoid": skill.principle,
    }


def _rfc3339(seconds: float) -> str:
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):
        moment = datetime.fromtimestamp(0, UTC)
    return moment.isoformat().replace("+00:00", "Z")


def _rust_id(skill: Skill) -> str:
    try:
        return str(uuid.UUID(skill.id))
    except ValueError:
        return str(uuid.uuid5(_NAMESPACE, f"{skill.id}/{skill.created}/{skill.name}"))


def _rust_skill(skill: Skill) -> dict[str, Any]:
    return {
        "id": _rust_id(skill),
        "name": skill.name,
        "principle": skill.principle,
        "when_to_apply": skill.when_to_apply,
        "category": "General" if skill.tier == GENERAL else {"TaskSpecific": skill.tier},
        "embedding": None,
    }
