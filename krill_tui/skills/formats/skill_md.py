"""Agent skills: folders that hold a SKILL.md, whose front matter has a name and a description.

Their description says when to apply them, their body is the principle, on one line. Scripts and other files beside a
SKILL.md are neither read nor run.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from krill_tui.errors import DataError, UsageError
from krill_tui.io.files import read_text, write_output
from krill_tui.io.json_text import NotJson, loads
from krill_tui.io.text import clean_text
from krill_tui.skill import GENERAL, Skill, SkillKind, SkillStatus
from krill_tui.skills.formats.memory_items import Item

FILE = "SKILL.md"
_LARGEST = 1024 * 1024
"""Bytes of a SKILL.md."""
_MOST_FOLDERS = 10_000
_DEPTH = 4
"""Folders below the one that was named."""
_KEY = re.compile(r"([A-Za-z0-9_-]{1,64}):(?:[ \t]+(.*))?")


def read_skill_files(path: Path) -> Iterator[tuple[str, Item | str]]:
    """(place, skill or why it is none) of a SKILL.md, or of every one in a folder and below it, by their paths.

    Raises:
        DataError: there is no such file, or none in the folder.
    """
    if not os.path.isdir(path):
        yield path.name, _read(path)
        return
    files = _find(path)
    if not files:
        raise DataError(f"{path}: holds neither a skill_bank.json nor a {FILE}")
    for file in files:
        yield str(file.relative_to(path)), _read_or_reason(file)


def write_skill_files(folder: Path, skills: Sequence[Skill]) -> None:
    """A new or empty folder with a folder for each skill, named by its id, and in that a SKILL.md.

    Raises:
        DataError, UsageError: there is something in it, or a file cannot be written.
    """
    if os.path.isdir(folder) and os.listdir(folder):
        raise UsageError(f"{folder}: is not empty", hint="name a folder that is new or empty")
    taken: set[str] = set()
    for skill in skills:
        name = _folder_name(skill, taken)
        taken.add(name)
        write_output(folder / name / FILE, skill_file(skill, name))


def skill_file(skill: Skill, name: str) -> str:
    """The text of a SKILL.md; what the format has no field for stands under `metadata`, as texts."""
    metadata = {
        "krill-id": skill.id,
        "krill-name": skill.name,
        "krill-when": skill.when_to_apply,
        "krill-tier": skill.tier,
        "krill-also": " ".join(skill.also),
        "krill-kind": skill.kind.value,
        "krill-status": skill.status.value,
    }
    lines = [
        "---",
        f"name: {name}",
        f"description: {_quoted(skill.when_to_apply or skill.name)}",
        "metadata:",
    ]
    lines += [f"  {key}: {_quoted(value)}" for key, value in metadata.items() if value]
    return "\n".join([*lines, "---", "", f"# {skill.name}", "", skill.principle, ""])


def _folder_name(skill: Skill, taken: set[str]) -> str:
    stem = re.sub(r"[^a-z0-9]+", "-", f"{skill.id} {skill.name}".lower())[:56].strip("-") or "skill"
    name, number = stem, 2
    while name in taken:
        name, number = f"{stem}-{number}", number + 1
    return name


def _quoted(text: str) -> str:
    """A YAML text: JSON's double quotes are YAML's."""
    return json.dumps(text, ensure_ascii=False)


def _find(folder: Path) -> list[Path]:
    """Every SKILL.md up to `_DEPTH` folders below; hidden folders and links to folders are left out."""
    found: list[Path] = []
    level = [folder]
    for _ in range(_DEPTH + 1):
        below: list[Path] = []
        for place in level[:_MOST_FOLDERS]:
            try:
                entries = sorted(os.scandir(place), key=lambda entry: entry.name)
            except OSError:
                continue
            found += [Path(entry.path) for entry in entries if entry.name.lower() == FILE.lower()]
            below += [
                Path(entry.path)
                for entry in entries
                if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False)
            ]
        level = below
    return sorted(found)


def _read_or_reason(file: Path) -> Item | str:
    try:
        return _read(file)
    except DataError as error:
        return str(error).removeprefix(f"{file}: ")


def _read(file: Path) -> Item | str:
    if file.is_file() and file.stat().st_size > _LARGEST:
        raise DataError(f"{file}: is larger than {_LARGEST // 1024} KB")
    return parse_skill_file(read_text(file))


def parse_skill_file(text: str) -> Item | str:
    """The skill of a SKILL.md's text, or why it is none."""
    lines = text.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    if not lines or lines[0].rstrip() != "---":
        return "it does not begin with a front matter (---)"
    end = next((number for number, line in enumerate(lines[1:], start=1) if line.rstrip() == "---"), None)
    if end is None:
        return "its front matter has no end (---)"
    facts = _front_matter(lines[1:end])
    nested = facts.get("metadata")
    ours = nested if isinstance(nested, dict) else {}
    name, description = (_text(facts.get(key)) for key in ("name", "description"))
    body = [line for line in lines[end + 1 :] if line.strip()]
    title = ours.get("krill-name", "")
    if body and title and body[0].removeprefix("# ").strip() == title:
        del body[0]  # the heading that `skill_file` writes
    principle = " ".join(body)
    if not name:
        return "its front matter has no name"
    if not clean_text(principle):
        principle = description
    if not clean_text(principle):
        return "it has neither a body nor a description"
    kind, status = ours.get("krill-kind", ""), ours.get("krill-status", "")
    return Item(
        principle=principle,
        name=title or name,
        when_to_apply=ours.get("krill-when", "") if "krill-id" in ours else description,
        id=ours.get("krill-id", ""),
        tier=ours.get("krill-tier", "") or GENERAL,
        also=tuple(ours.get("krill-also", "").split()),
        kind=kind if kind in set(SkillKind) else SkillKind.STRATEGY.value,
        status=status if status in set(SkillStatus) else SkillStatus.ACTIVE.value,
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _front_matter(lines: Sequence[str]) -> dict[str, str | dict[str, str]]:
    """Keys with texts, and with one level of keys below: all of YAML that SKILL.md files need."""
    facts: dict[str, str | dict[str, str]] = {}
    number = 0
    while number < len(lines):
        line = lines[number]
        match = _KEY.fullmatch(line.rstrip())
        number += 1
        if match is None or line[:1].isspace():
            continue
        block: list[str] = []
        while number < len(lines) and (not lines[number].strip() or lines[number][0].isspace()):
            block.append(lines[number])
            number += 1
        value = (match[2] or "").strip()
        nested = [_KEY.fullmatch(inner.strip()) for inner in block if inner.strip()]
        if not value and nested and all(nested):
            facts[match[1]] = {inner[1]: _scalar(inner[2] or "") for inner in nested if inner}
        elif value[:1] in ("|", ">"):
            facts[match[1]] = " ".join(inner.strip() for inner in block).strip()
        else:
            facts[match[1]] = _scalar(" ".join([value, *(inner.strip() for inner in block)]))
    return facts


def _scalar(text: str) -> str:
    text = text.strip()
    if text[:1] == '"':
        try:
            value = loads(text)
            return value if isinstance(value, str) else text
        except NotJson:
            return text.strip('"')
    if len(text) > 1 and text[0] == text[-1] == "'":
        return text[1:-1].replace("''", "'")
    comment = text.find(" #")
    return text if comment < 0 else text[:comment].rstrip()
