"""Skill banks of other projects: reading them all, writing what others read.

Read are Krill's own bank, the Rust project's (`general_skills`, `history`), the official SkillRL one
(`general_skills` with `skill_id`, `common_mistakes`) and a plain list of skills.
"""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from krill_tui.errors import DataError
from krill_tui.io.files import read_json, write_output
from krill_tui.io.text import clean_text, markdown_text
from krill_tui.skill import GENERAL, Skill, SkillKind, SkillOrigin, SkillStatus
from krill_tui.skills.bank import SkillBank
from krill_tui.skills.formats.records import problem

BankFormat = Literal["krill", "rust", "skillrl", "json"]

_SKILLRL_TIERS = {
    "pick_and_place": "Pick",
    "look_at_obj_in_light": "Look",
    "examine": "Look",
    "clean": "Clean",
    "heat": "Heat",
    "cool": "Cool",
}
_NAMESPACE = uuid.UUID("6a1f3c52-6b8e-5a5e-9d3f-2d9f6a0c7b41")


class BankFacts(BaseModel):
    """What a bank file holds."""

    path: str
    format: BankFormat
    skills: list[Skill]
    """In bank order, of all tiers and in every status."""
    tiers: dict[str, int]
    """Skills of each tier, general first."""
    kinds: dict[str, int]
    statuses: dict[str, int]
    cycle: int = 0
    """Evolution cycles behind it."""
    version: int = 0
    """Content changes; 0 where the format keeps none."""
    history: int = 0
    """Entries of its history."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """What the format knows besides."""


class LoadedBank(BaseModel):
    """Skills read from a file, to be shown or copied into a bank."""

    skills: list[Skill]
    format: BankFormat
    cycle: int = 0
    version: int = 0
    history: int = 0
    extra: dict[str, Any] = Field(default_factory=dict)


class _Loose(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _RustSkill(_Loose):
    id: str
    name: str
    principle: str
    when_to_apply: str = ""
    category: str | dict[str, str] = "General"


class _RustEntry(_Loose):
    skill_id: str
    added_at: datetime
    evolution_cycle: int = 0


class _RustBank(_Loose):
    general_skills: list[_RustSkill]
    task_specific_skills: dict[str, list[_RustSkill]] = {}
    history: list[_RustEntry] = []
    current_cycle: int = 0


class _SkillrlSkill(_Loose):
    skill_id: str
    title: str
    principle: str
    when_to_apply: str = ""


class _SkillrlMistake(_Loose):
    mistake_id: str
    description: str
    how_to_avoid: str
    why_it_happens: str = ""


class _SkillrlBank(_Loose):
    general_skills: list[_SkillrlSkill] = []
    task_specific_skills: dict[str, list[_SkillrlSkill]] = {}
    query_type_skills: dict[str, list[_SkillrlSkill]] = {}
    common_mistakes: list[_SkillrlMistake] = []
    metadata: dict[str, Any] = {}


class _PlainSkill(_Loose):
    id: str = ""
    name: str = ""
    title: str = ""
    principle: str
    when_to_apply: str = ""
    tier: str = ""
    category: str | dict[str, str] = ""
    kind: SkillKind = SkillKind.STRATEGY
    status: SkillStatus = SkillStatus.ACTIVE


def load_bank(path: str | Path) -> LoadedBank:
    """Read a bank of any known format; its text is cleaned to printable lines.

    Raises:
        DataError: missing, unreadable, or no bank of a known format; one line that says what is wrong.
    """
    path = Path(path)
    data = read_json(path)
    try:
        if isinstance(data, list):
            return _read_plain(data)
        if isinstance(data, dict) and isinstance(data.get("skills"), list):
            return _read_plain(data["skills"])
        if isinstance(data, dict) and ("meta" in data or "skills" in data):
            return _read_krill(path)
        if isinstance(data, dict) and _looks_like_skillrl(data):
            return _read_skillrl(_SkillrlBank.model_validate(data))
        if isinstance(data, dict) and "general_skills" in data:
            return _read_rust(_RustBank.model_validate(data))
    except ValidationError as error:
        raise DataError(f"{path}: is no skill bank: {problem(error)}") from None
    raise DataError(
        f"{path}: is no skill bank of a known format",
        hint="known are Krill's own, the Rust project's, SkillRL's, and a JSON list of skills",
    )


def inspect_bank(path: str | Path) -> BankFacts:
    """The facts of a bank file of any known format; for `--json` use `.model_dump(mode="json")`.

    Raises:
        DataError: as `load_bank`.
    """
    bank = load_bank(path)
    tiers = Counter(skill.tier for skill in bank.skills)
    ordered = sorted(tiers, key=lambda tier: tier != GENERAL)
    return BankFacts(
        path=str(path),
        format=bank.format,
        skills=bank.skills,
        tiers={tier: tiers[tier] for tier in ordered},
        kinds=dict(Counter(skill.kind.value for skill in bank.skills)),
        statuses=dict(Counter(skill.status.value for skill in bank.skills)),
        cycle=bank.cycle,
        version=bank.version,
        history=bank.history,
        extra=bank.extra,
    )


def write_rust(path: str | Path, skills: Sequence[Skill], *, cycle: int = 0) -> None:
    """The Rust project's bank: active skills only, as it has no status; their ids become UUIDs.

    Raises:
        DataError: the file cannot be written.
    """
    active = [skill for skill in skills if skill.status is SkillStatus.ACTIVE]
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


def write_json(path: str | Path, skills: Sequence[Skill]) -> None:
    """A list of skills with every field of ours.

    Raises:
        DataError: the file cannot be written.
    """
    data = [skill.model_dump(mode="json") for skill in skills]
    write_output(Path(path), json.dumps(data, ensure_ascii=False, indent=2) + "\n")


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


def _read_krill(path: Path) -> LoadedBank:
    bank = SkillBank.open(path)
    loaded = LoadedBank(
        skills=bank.skills(active_only=False),
        format="krill",
        cycle=bank.cycle,
        version=bank.version,
        history=len(bank.history()),
    )
    bank.close()
    return loaded


def _read_rust(bank: _RustBank) -> LoadedBank:
    entries = {entry.skill_id: entry for entry in bank.history}
    placed = [(GENERAL, skill) for skill in bank.general_skills]
    placed += [(tier, skill) for tier, members in bank.task_specific_skills.items() for skill in members]
    skills = []
    for tier, skill in placed:
        entry = entries.get(skill.id)
        added = _seconds(entry.added_at) if entry else 0.0
        skills.append(
            _skill(
                id=skill.id,
                name=skill.name,
                principle=skill.principle,
                when_to_apply=skill.when_to_apply,
                tier=tier,
                origin=SkillOrigin(author="rust bank", cycle=entry.evolution_cycle if entry else 0),
                created=added,
                updated=added,
            )
        )
    return LoadedBank(skills=skills, format="rust", cycle=bank.current_cycle, history=len(bank.history))


def _looks_like_skillrl(data: dict[str, Any]) -> bool:
    if "common_mistakes" in data or "query_type_skills" in data:
        return True
    general = data.get("general_skills")
    first = general[0] if isinstance(general, list) and general else None
    return isinstance(first, dict) and "skill_id" in first


def _read_skillrl(bank: _SkillrlBank) -> LoadedBank:
    origin = SkillOrigin(author="skillrl bank")
    categories = {**bank.task_specific_skills, **bank.query_type_skills}
    placed = [(GENERAL, skill) for skill in bank.general_skills]
    placed += [
        (_SKILLRL_TIERS.get(name, name), skill) for name, members in categories.items() for skill in members
    ]
    skills = [
        _skill(
            id=skill.skill_id,
            name=skill.title,
            principle=skill.principle,
            when_to_apply=skill.when_to_apply,
            tier=tier,
            origin=origin,
        )
        for tier, skill in placed
    ]
    skills += [
        _skill(
            id=mistake.mistake_id,
            name=clean_text(mistake.description, 60),
            principle=mistake.how_to_avoid,
            when_to_apply=mistake.description,
            tier=GENERAL,
            kind=SkillKind.LESSON,
            origin=origin,
        )
        for mistake in bank.common_mistakes
    ]
    extra: dict[str, Any] = {
        "categories": {name: len(members) for name, members in categories.items()},
        "common_mistakes": len(bank.common_mistakes),
        "metadata": bank.metadata,
    }
    return LoadedBank(skills=skills, format="skillrl", extra=extra)


def _read_plain(items: list[Any]) -> LoadedBank:
    ours = TypeAdapter(list[Skill])
    try:
        return LoadedBank(
            skills=[_skill(**dict(skill)) for skill in ours.validate_python(items)], format="json"
        )
    except ValidationError:
        plain = TypeAdapter(list[_PlainSkill]).validate_python(items)
    skills = [
        _skill(
            id=skill.id or f"skill_{number:03d}",
            name=skill.name or skill.title or clean_text(skill.principle, 60),
            principle=skill.principle,
            when_to_apply=skill.when_to_apply,
            tier=skill.tier or _rust_tier(skill.category),
            kind=skill.kind,
            status=skill.status,
        )
        for number, skill in enumerate(plain, start=1)
    ]
    return LoadedBank(skills=skills, format="json")


def _skill(**fields: Any) -> Skill:
    for key, limit in (("id", 60), ("name", 120), ("principle", 2000), ("when_to_apply", 2000), ("tier", 60)):
        fields[key] = clean_text(fields[key], limit)
    return Skill(**{**fields, "tier": fields["tier"] or GENERAL})


def _rust_tier(category: str | dict[str, str]) -> str:
    if isinstance(category, dict):
        return category.get("TaskSpecific", "") or GENERAL
    return GENERAL if category.casefold() in ("", GENERAL) else category


def _rfc3339(seconds: float) -> str:
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, OSError, ValueError):
        moment = datetime.fromtimestamp(0, UTC)
    return moment.isoformat().replace("+00:00", "Z")


def _seconds(moment: datetime) -> float:
    """Unix seconds; a time without a zone is taken as UTC."""
    try:
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (OverflowError, ValueError):
        return 0.0


def _rust_id(skill: Skill) -> str:
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
