"""Advice of other kinds (SKILL.md, memories, sentences), and banks written for other projects."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from krill_tui.cli.app import run
from krill_tui.errors import DataError
from krill_tui.skill import GENERAL, Skill, SkillKind, SkillStatus
from krill_tui.skills.formats.bank_writers import ACTIVE_ONLY, WRITERS, export_bank
from krill_tui.skills.formats.banks import LoadedBank, inspect_bank, load_bank
from krill_tui.skills.formats.skill_md import parse_skill_file

SKILL_MD = """---
name: pdf-forms
description: >
  Fills forms in PDF files.
  Use when a form is named.
license: Apache-2.0
metadata:
  author: "somebody"
---

# PDF forms

Read the form's fields first.

- Then fill one field after the other.
"""


def skill_file(folder: Path, text: str) -> None:
    folder.mkdir(parents=True)
    (folder / "SKILL.md").write_text(text)


def test_a_skill_md_is_read_by_its_front_matter_and_body(tmp_path: Path) -> None:
    (tmp_path / "SKILL.md").write_text(SKILL_MD)
    facts = inspect_bank(tmp_path / "SKILL.md")
    (skill,) = facts.skills
    assert (facts.format, skill.name, skill.tier) == ("skill-md", "pdf-forms", GENERAL)
    assert skill.when_to_apply == "Fills forms in PDF files. Use when a form is named."
    assert skill.principle == (
        "# PDF forms Read the form's fields first. - Then fill one field after the other."
    )


def test_a_folder_of_skills_is_read_and_what_is_none_named(tmp_path: Path) -> None:
    skill_file(tmp_path / "b" / "forms", SKILL_MD)
    skill_file(tmp_path / "a", "---\nname: \"quoted: name\"\ndescription: 'it''s'\n---\nBody.\n")
    skill_file(tmp_path / "c", "no front matter")
    skill_file(tmp_path / "d", "---\ndescription: x\n---\nBody")
    skill_file(tmp_path / "e", "---\nname: x\n")
    skill_file(tmp_path / ".git" / "f", SKILL_MD)
    (tmp_path / "g").mkdir()
    (tmp_path / "g" / "SKILL.md").write_bytes(b"---\nname: \xff\n---\n")
    bank = load_bank(tmp_path)
    assert [(s.name, s.when_to_apply[:5]) for s in bank.skills] == [
        ("quoted: name", "it's"),
        ("pdf-forms", "Fills"),
    ]
    assert [line.split(": ", 1)[1] for line in bank.refused] == [
        "it does not begin with a front matter (---)",
        "its front matter has no name",
        "its front matter has no end (---)",
        "is not UTF-8 text",
    ]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds neither a skill_bank\.json nor a SKILL\.md"):
        load_bank(tmp_path / "empty")


def test_a_skill_without_a_body_says_its_description() -> None:
    item = parse_skill_file("---\r\nname: a\r\ndescription: Do it. # not this\r\n---\r\n")
    assert not isinstance(item, str) and (item.principle, item.when_to_apply) == ("Do it.", "Do it.")


def test_a_run_starts_from_a_folder_of_skills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    skill_file(Path("skills") / "a", SKILL_MD)
    command = ["eval", "--policy", "random", "--episodes", "1", "--set", "env.max_steps=2", "--run", "r"]
    assert run([*command, "--skill-bank", "skills", "--display", "plain"]) == 0
    assert "1 skills taken over from skills (skill-md)" in capfd.readouterr().out
    assert run(["inspect", "skills"]) == 0 and "pdf-forms" in capfd.readouterr().out
    assert run(["inspect", "runs/r"]) == 0 and "skill bank (krill), 1 skills" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("data", "skills"),
    [
        (
            [{"title": "Ask", "description": "In doubt", "content": "Ask first."}],
            [("Ask", "Ask first.", "In doubt", SkillKind.STRATEGY)],
        ),
        (
            [
                {
                    "task_id": "t",
                    "status": "fail",
                    "memory_items": [
                        "# Memory Item 1\n## Title Ask\n## Description In doubt\n## Content Ask first.",
                        {"title": "Stop", "content": "Stop then."},
                        {"title": "none"},
                    ],
                }
            ],
            [
                ("Ask", "Ask first.", "In doubt", SkillKind.LESSON),
                ("Stop", "Stop then.", "", SkillKind.LESSON),
            ],
        ),
        (
            ["1. Look everywhere.", ["Open what is closed.", 3]],
            [
                ("Look everywhere.", "Look everywhere.", "", SkillKind.STRATEGY),
                ("Open what is closed.", "Open what is closed.", "", SkillKind.STRATEGY),
            ],
        ),
        ({"rules": ["Look."]}, [("Look.", "Look.", "", SkillKind.STRATEGY)]),
    ],
)
def test_memories_and_sentences_are_skills(tmp_path: Path, data: Any, skills: Any) -> None:
    path = tmp_path / "b.json"
    path.write_text(json.dumps(data))
    assert [(s.name, s.principle, s.when_to_apply, s.kind) for s in load_bank(path).skills] == skills


def test_a_long_sentence_is_named_by_its_first_clause(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    path.write_text(json.dumps(["When a place is closed open it before you go on, " + "and then " * 40]))
    assert load_bank(path).skills[0].name == "When a place is closed open it before you go on"


# Export

NUMBERS = itertools.count()
WORDS = st.text(alphabet="ab :#'\"\\-é|>\u200d\U0001f600*`", min_size=1, max_size=12).map(
    lambda text: " ".join(f"x{text}".split())
)
SKILLS = st.lists(
    st.builds(
        Skill,
        id=st.text(alphabet="abc_", min_size=1, max_size=6),
        name=WORDS,
        principle=WORDS,
        when_to_apply=WORDS | st.just(""),
        tier=st.sampled_from([GENERAL, "Pick", "PickTwo", "Heat", "apparel", "search"]),
        kind=st.sampled_from(SkillKind),
        status=st.sampled_from(SkillStatus),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda skill: skill.id,
)


@pytest.mark.parametrize("format", [name for name in WRITERS if name != "markdown"])
@settings(deadline=None, max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(skills=SKILLS)
def test_what_is_exported_reads_back(tmp_path: Path, format: str, skills: list[Skill]) -> None:
    path = tmp_path / f"{format}-{next(NUMBERS)}"
    written = export_bank(path, LoadedBank(skills=skills, format="json"), format)
    expected = [s for s in skills if s.status is SkillStatus.ACTIVE or format not in ACTIVE_ONLY]
    assert written == len(expected)
    if not expected and format in ACTIVE_ONLY:
        return
    found = load_bank(path).skills
    assert load_bank(path).refused == []

    def told(skill: Skill) -> tuple[str, ...]:
        lesson = skill.kind is SkillKind.LESSON
        if format == "rust":
            return (skill.name, skill.principle, skill.when_to_apply, skill.tier)
        if format == "skillrl" and lesson:  # its mistakes have no name and no tier
            return (skill.principle, skill.when_to_apply or skill.name, skill.kind)
        return (skill.name, skill.principle, skill.when_to_apply, skill.tier, skill.kind, skill.status)

    assert sorted(map(told, found)) == sorted(map(told, expected))


def test_a_skillrl_bank_goes_in_and_out_again(shared_dir: Path, tmp_path: Path) -> None:
    source = shared_dir / "banks" / "skillrl_alfworld_skills.json"
    export_bank(tmp_path / "out.json", load_bank(source), "skillrl")
    before, after = json.loads(source.read_text()), json.loads((tmp_path / "out.json").read_text())
    for key in ("general_skills", "common_mistakes", "metadata"):
        assert after[key] == before[key]
    tiers = before["task_specific_skills"]
    # Two of its tiers are one category here.
    tiers["look_at_obj_in_light"] += tiers.pop("examine")
    assert after["task_specific_skills"] == tiers


def test_the_commands_write_banks_and_say_what_stays_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    records = [{"name": "a", "principle": "b"}, {"name": "c", "principle": "d", "status": "retired"}, {}]
    Path("bank.json").write_text(json.dumps(records))
    assert run(["skills", "export", "bank.json", "out.json", "--format", "skillrl"]) == 0
    out = capfd.readouterr().out
    assert "wrote out.json (skillrl): 1 of 2 skills of bank.json" in out
    assert "1 skills not in use stay out" in out and "1 of 3 records left out" in out
    assert run(["skills", "import", "out.json", "ours.json"]) == 0
    assert load_bank("ours.json").format == "krill"
    assert run(["skills", "export", "bank.json", "page.md", "--format", "markdown"]) == 0
    assert "**c**" in Path("page.md").read_text()
    capfd.readouterr()
    for arguments, says in (
        (["bank.json", "bank.json"], "would be written over"),
        (["bank.json", "x", "--format", "yaml"], "there is no format 'yaml' (known: krill, rust, "),
        (["gone.json", "x"], "gone.json: there is no such file, folder or run"),
        (["bank.json", "bank.json/x", "--format", "skill-md"], "cannot be written"),
        (["bank.json", ".", "--format", "skill-md"], ".: is not empty"),
    ):
        assert run(["skills", "export", *arguments]) == 2
        err = capfd.readouterr().err
        assert says in err and err.count("\n") == 1


# Anything at all


@settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.binary(max_size=80)
    | st.lists(
        st.sampled_from(
            [
                "---",
                "name: a",
                "name:",
                "description: |",
                "  x: y",
                "metadata:",
                "'",
                '"',
                "\ud800",
                "# b",
                "",
            ]
        )
    ).map(lambda lines: "\n".join(lines).encode("utf-8", "surrogatepass"))
)
def test_any_skill_md_is_a_skill_or_one_line(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "SKILL.md").write_bytes(data)
    try:
        bank = load_bank(tmp_path / "SKILL.md")
    except DataError as error:
        assert "\n" not in str(error)
    else:
        out = tmp_path / f"out-{next(NUMBERS)}"
        export_bank(out, bank, "skill-md")
        assert [s.principle for s in load_bank(out).skills] == [s.principle for s in bank.skills]
