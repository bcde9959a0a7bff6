"""Skill banks of other projects: reading them all.

Read are Krill's own bank, the Rust project's (`general_skills`, `history`), the official SkillRL one
(`general_skills` with `skill_id`, `common_mistakes`), lists of skills, memories (title, description, content) or
sentences, one a line too, and folders of SKILL.md files.

What cannot be a skill is left out, counted and named; the rest is read.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from krill_tui.errors import DataError
from krill_tui.io.json_text import problem as json_problem
from krill_tui.io.text import clean_text
from krill_tui.skill import GENERAL, Skill, SkillKind, SkillOrigin, SkillStats, SkillStatus
from krill_tui.skills.formats.memory_items import Item, memory_items
from krill_tui.skills.formats.records import Unreadable, left_out, problem, read_values
from krill_tui.skills.formats.skill_md import read_skill_files
from krill_tui.skills.tiers import known_tier

BankFormat = Literal["krill", "rust", "skillrl", "json", "skill-md"]

WHY = " Why it happens: "
"""Between what a mistake is and why it happens, in `when_to_apply`."""
LIMITS = {"id": 60, "name": 120, "principle": 2000, "when_to_apply": 2000, "tier": 60}
"""Characters that are kept."""
_HINT = (
    "known are Krill's own, the Rust project's, SkillRL's, lists of skills or memories, and SKILL.md files"
)
_LISTS = ("skills", "memories", "memory", "memory_items", "items", "insights", "rules")
"""Keys under which some files hold their list."""

_Read = TypeVar("_Read", bound=BaseModel)


class LoadedBank(BaseModel):
    """Skills read from a file, to be shown or copied into a bank."""

    skills: list[Skill]
    """In bank order, of all tiers and in every status."""
    format: BankFormat
    cycle: int = 0
    """Evolution cycles behind it."""
    version: int = 0
    """Content changes; 0 where the format keeps none."""
    history: int = 0
    """Entries of its history."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """What the format knows besides."""
    records: int = 0
    """Records that could have been skills."""
    refused: list[str] = Field(default_factory=list)
    """Where each record stood that is none, and why."""
    notes: list[str] = Field(default_factory=list)
    """What was changed on the way."""

    def told(self) -> str:
        """What was left out and changed, in one line; empty where nothing was."""
        return "; ".join(filter(None, [left_out(self.records, self.refused), *self.notes]))


class BankFacts(LoadedBank):
    """What a bank file holds."""

    path: str
    tiers: dict[str, int]
    """Skills of each tier, general first."""
    kinds: dict[str, int]
    statuses: dict[str, int]


class _Loose(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _RustSkill(_Loose):
    id: str
    name: str
    principle: str
    when_to_apply: str | None = ""
    category: Any = "General"


class _RustEntry(_Loose):
    skill_id: str
    added_at: datetime
    evolution_cycle: int = 0


class _SkillrlSkill(_Loose):
    skill_id: str
    title: str
    principle: str
    when_to_apply: str | None = ""


class _SkillrlMistake(_Loose):
    mistake_id: str
    description: str
    how_to_avoid: str
    why_it_happens: str | None = ""


class _PlainSkill(_Loose):
    id: str | int = ""
    name: str | None = ""
    title: str | None = ""
    principle: str
    when_to_apply: str | None = ""
    tier: str = ""
    also: tuple[str, ...] = ()
    category: str | dict[str, str] = ""
    kind: SkillKind = SkillKind.STRATEGY
    status: SkillStatus = SkillStatus.ACTIVE


def load_bank(path: str | Path) -> LoadedBank:
    """Read a bank of any known format, or a folder of SKILL.md files; its text is cleaned to printable lines.

    Raises:
        DataError: missing, unreadable, no bank of a known format, or none of its records is a skill; one line.
    """
    path = Path(path)
    found = _Found()
    if os.path.isdir(path) or path.suffix.lower() == ".md":
        for place, item in read_skill_files(path):
            found.take(place, item, _from_item)
        return _checked(path, found.bank("skill-md"))
    return _checked(path, _read(path, read_values(path), found))


def inspect_bank(path: str | Path) -> BankFacts:
    """The facts of a bank file of any known format; for `--json` use `.model_dump(mode="json")`.

    Raises:
        DataError: as `load_bank`.
    """
    bank = load_bank(path)
    tiers = Counter(skill.tier for skill in bank.skills)
    ordered = sorted(tiers, key=lambda tier: tier != GENERAL)
    return BankFacts(
        **dict(bank),
        path=str(path),
        tiers={tier: tiers[tier] for tier in ordered},
        kinds=dict(Counter(skill.kind.value for skill in bank.skills)),
        statuses=dict(Counter(skill.status.value for skill in bank.skills)),
    )


def _checked(path: Path, bank: LoadedBank) -> LoadedBank:
    if bank.records and not bank.skills:
        more = f" (and {len(bank.refused) - 1} more records)" if len(bank.refused) > 1 else ""
        raise DataError(f"{path}: is no skill bank: {bank.refused[0]}{more}", hint=_HINT)
    return bank


def _read(path: Path, data: Any, found: _Found) -> LoadedBank:
    if isinstance(data, list):
        return _read_list(found, data)
    if isinstance(data, dict):
        for key in _LISTS:
            if isinstance(data.get(key), list):
                return _read_list(found, data[key])
        if "meta" in data or isinstance(data.get("skills"), dict):
            return _read_krill(path, found, data)
        if _looks_like_skillrl(data):
            return _read_skillrl(found, data)
        if "general_skills" in data:
            return _read_rust(found, data)
    raise DataError(f"{path}: is no skill bank of a known format", hint=_HINT)


@dataclass
class _Found:
    """The skills of a file so far, and what was none."""

    skills: list[Skill] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    records: int = 0
    renamed: int = 0
    cut: int = 0
    ids: dict[str, Skill] = field(default_factory=dict)

    def refuse(self, place: str, reason: str) -> None:
        reason = reason.removeprefix("value: ")
        self.refused.append(f"{clean_text(place, 80)}{'.' if _names_a_field(reason) else ': '}{reason}")

    def read(self, place: str, model: type[_Read], record: Any) -> _Read | None:
        """The record as `model`; None where it is none, which is noted."""
        self.records += 1
        if isinstance(record, Unreadable):
            self.refuse(place, record.reason)
        elif fault := json_problem(record):
            self.refuse(place, fault)
        else:
            try:
                return model.model_validate(record)
            except ValidationError as error:
                self.refuse(place, problem(error))
        return None

    def take(self, place: str, item: Item | str, make: Callable[[Item], dict[str, Any]]) -> None:
        """One skill of a file that is no JSON, or the reason why it is none."""
        self.records += 1
        if isinstance(item, str):
            self.refuse(place, item)
        else:
            self.add(place, **make(item))

    def add(self, place: str, **fields: Any) -> None:
        """One skill, its text cleaned; one without a name or a principle is none."""
        for key, limit in LIMITS.items():
            text = clean_text(fields.get(key) or "", 1_000_000)
            self.cut += len(text) > limit
            fields[key] = clean_text(text, limit)
        tier, also = known_tier(fields["tier"])
        given = (clean_text(category, 60) for category in fields.get("also", ()))
        fields["tier"] = tier or GENERAL
        fields["also"] = tuple(dict.fromkeys(c for c in (*also, *given) if c and c != tier))
        if not fields["name"] or not fields["principle"]:
            self.refuse(place, f"it has no {'principle' if fields['name'] else 'name'}")
            return
        fields["id"] = fields["id"] or f"skill_{len(self.skills) + 1:03d}"
        skill = Skill(**fields)
        if (other := self.ids.get(skill.id)) is not None:
            if (other.tier, other.name, other.principle) == (skill.tier, skill.name, skill.principle):
                self.refuse(place, f"the same as an earlier record, {skill.id}")
                return
            number = 2
            while (id_ := f"{skill.id[:54]}-{number}") in self.ids:
                number += 1
            self.renamed += 1
            skill = skill.model_copy(update={"id": id_})
        self.ids[skill.id] = skill
        self.skills.append(skill)

    def bank(self, format: BankFormat, **facts: Any) -> LoadedBank:
        notes = []
        if self.renamed:
            notes.append(f"{self.renamed} ids stood twice and were changed")
        if self.cut:
            notes.append(f"{self.cut} texts were longer than Krill keeps and were cut")
        return LoadedBank(
            skills=self.skills,
            format=format,
            records=self.records,
            refused=self.refused,
            notes=notes,
            **facts,
        )


def _names_a_field(reason: str) -> bool:
    """Whether a reason of pydantic begins with the field that it is about."""
    return ": " in reason and " " not in reason.split(": ", 1)[0] and not reason.startswith("line ")


def _read_krill(path: Path, found: _Found, data: dict[str, Any]) -> LoadedBank:
    tables = [data.get(name) or {} for name in ("skills", "history", "meta")]
    if not all(isinstance(table, dict) for table in tables):
        raise DataError(f"{path}: is not a skill bank of Krill: its tables cannot be read")
    skills, history, meta = tables
    for number, record in sorted(skills.items(), key=lambda entry: _number(entry[0])):
        skill = found.read(f"skills.{number}", Skill, record)
        if skill is not None:
            found.add(f"skills.{number}", **_our_fields(skill))
    facts = next((entry for entry in meta.values() if isinstance(entry, dict)), {})
    counts = [facts.get(name) for name in ("version", "cycle")]
    if not all(isinstance(count, int) and abs(count) < 2**53 for count in counts):
        if not found.skills:
            raise DataError(f"{path}: is not a skill bank of Krill: it has no version")
        counts = [0, 0]
    extra = {"metadata": facts["metadata"]} if isinstance(facts.get("metadata"), dict) else {}
    return found.bank("krill", version=counts[0], cycle=counts[1], history=len(history), extra=extra)


def _number(name: str) -> tuple[int, str]:
    """Document numbers in their order; what is none comes last."""
    return (int(name), "") if name.isascii() and name.isdigit() and len(name) < 16 else (2**60, name)


def _our_fields(skill: Skill) -> dict[str, Any]:
    origin = skill.origin
    cleaned = SkillOrigin(
        phase=clean_text(origin.phase, 40),
        cycle=_bounded(origin.cycle),
        trajectories=tuple(clean_text(name, 200) for name in origin.trajectories),
        author=clean_text(origin.author, 80),
    )
    stats = SkillStats(**{name: max(0, _bounded(count)) for name, count in dict(skill.stats).items()})
    version = _bounded(skill.version)
    return {**dict(skill), "origin": cleaned, "stats": stats, "version": version}


def _bounded(number: int) -> int:
    return max(-(2**53), min(number, 2**53))


def _members(found: _Found, data: dict[str, Any], key: str, parent: str = "") -> Iterable[tuple[str, Any]]:
    """(place, record) of a list of the file; anything else under its key is noted."""
    members = data.get(key)
    place = f"{parent}{key}"
    if isinstance(members, list):
        return [(f"{place}.{number}", record) for number, record in enumerate(members)]
    if members is not None:
        found.records += 1
        found.refuse(place, "it is no list")
    return []


def _tiered(found: _Found, data: dict[str, Any], key: str) -> Iterable[tuple[str, str, Any]]:
    """(place, tier, record) of an object of lists."""
    tiers = data.get(key)
    if not isinstance(tiers, dict):
        if tiers is not None:
            found.records += 1
            found.refuse(key, "it is no object of lists")
        return []
    return [
        (place, tier, record) for tier in tiers for place, record in _members(found, tiers, tier, f"{key}.")
    ]


def _read_rust(found: _Found, data: dict[str, Any]) -> LoadedBank:
    entries: dict[str, _RustEntry] = {}
    history = data.get("history") if isinstance(data.get("history"), list) else []
    for record in history or []:
        try:
            entry = _RustEntry.model_validate(record)
            entries[entry.skill_id] = entry
        except ValidationError:
            continue  # a skill without its date is still a skill
    placed = [(place, GENERAL, record) for place, record in _members(found, data, "general_skills")]
    for place, tier, record in [*placed, *_tiered(found, data, "task_specific_skills")]:
        skill = found.read(place, _RustSkill, record)
        if skill is None:
            continue
        entry = entries.get(skill.id)
        added = _seconds(entry.added_at) if entry else 0.0
        found.add(
            place,
            **skill.model_dump(include={"id", "name", "principle", "when_to_apply"}),
            tier=tier,
            origin=SkillOrigin(author="rust bank", cycle=_bounded(entry.evolution_cycle) if entry else 0),
            created=added,
            updated=added,
        )
    cycle = data.get("current_cycle")
    cycle = _bounded(cycle) if isinstance(cycle, int) else 0
    return found.bank("rust", cycle=cycle, history=len(history or []))


def _looks_like_skillrl(data: dict[str, Any]) -> bool:
    if "common_mistakes" in data or "query_type_skills" in data:
        return True
    tiers = data.get("task_specific_skills")
    lists = [data.get("general_skills"), *(tiers.values() if isinstance(tiers, dict) else ())]
    first = next((record for members in lists if isinstance(members, list) for record in members), None)
    return isinstance(first, dict) and "skill_id" in first


def _read_skillrl(found: _Found, data: dict[str, Any]) -> LoadedBank:
    origin = SkillOrigin(author="skillrl bank")
    placed = [(place, GENERAL, record) for place, record in _members(found, data, "general_skills")]
    for key in ("task_specific_skills", "query_type_skills"):
        placed += _tiered(found, data, key)
    categories: Counter[str] = Counter()
    for place, tier, record in placed:
        skill = found.read(place, _SkillrlSkill, record)
        if skill is None:
            continue
        if tier != GENERAL:
            categories[tier] += 1
        found.add(
            place,
            id=skill.skill_id,
            name=skill.title,
            principle=skill.principle,
            when_to_apply=skill.when_to_apply,
            tier=tier,
            origin=origin,
        )
    mistakes = 0
    for place, record in _members(found, data, "common_mistakes"):
        mistake = found.read(place, _SkillrlMistake, record)
        if mistake is None:
            continue
        mistakes += 1
        why = clean_text(mistake.why_it_happens or "")
        found.add(
            place,
            id=mistake.mistake_id,
            name=_short_name(mistake.description),
            principle=mistake.how_to_avoid,
            when_to_apply=clean_text(mistake.description) + (f"{WHY}{why}" if why else ""),
            tier=GENERAL,
            kind=SkillKind.LESSON,
            origin=origin,
        )
    metadata = data.get("metadata")
    extra: dict[str, Any] = {"categories": dict(categories), "common_mistakes": mistakes}
    if isinstance(metadata, dict) and not json_problem(metadata):
        extra["metadata"] = metadata
    return found.bank("skillrl", extra=extra)


def _read_list(found: _Found, items: list[Any]) -> LoadedBank:
    for number, record in enumerate(items):
        place = str(number)
        if isinstance(record, dict) and {"id", "origin", "stats"} <= record.keys():
            skill = found.read(place, Skill, record)
            if skill is not None:
                found.add(place, **_our_fields(skill))
            continue
        if (memories := memory_items(record)) is not None:
            for memory in memories:
                found.take(place, memory, _from_item)
            continue
        plain = found.read(place, _PlainSkill, record)
        if plain is None:
            continue
        found.add(
            place,
            id=str(plain.id) or f"skill_{number + 1:03d}",
            name=plain.name or plain.title or _short_name(plain.principle),
            principle=plain.principle,
            when_to_apply=plain.when_to_apply,
            tier=plain.tier or _rust_tier(plain.category),
            also=plain.also,
            kind=plain.kind,
            status=plain.status,
        )
    return found.bank("json")


def _from_item(item: Item) -> dict[str, Any]:
    name = item.name or _short_name(item.principle)
    return {**dict(item), "name": name, "kind": SkillKind(item.kind), "status": SkillStatus(item.status)}


def _short_name(text: str) -> str:
    """A name for what is only a sentence: all of it where there is room, else its first clauses, else its first words."""
    text = clean_text(text, 1_000_000)
    if len(text) <= LIMITS["name"]:
        return text
    start = text[: LIMITS["name"]]
    for end in (". ", "; ", ", ", " "):
        if (place := start.rfind(end)) > 30:
            return start[:place]
    return start


def _rust_tier(category: str | dict[str, str]) -> str:
    if isinstance(category, dict):
        return category.get("TaskSpecific", "") or GENERAL
    return GENERAL if category.casefold() in ("", GENERAL) else category


def _seconds(moment: datetime) -> float:
    """Unix seconds; a time without a zone is taken as UTC."""
    try:
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (OverflowError, ValueError):
        return 0.0
