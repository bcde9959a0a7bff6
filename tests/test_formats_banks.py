from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krill_tui.errors import DataError
from krill_tui.skill import GENERAL, Skill, SkillKind, SkillOrigin, SkillProposal, SkillStatus
from krill_tui.skills.bank import SkillBank, copy_into
from krill_tui.skills.formats.bank_writers import WRITERS, export_bank, write_json, write_markdown, write_rust
from krill_tui.skills.formats.banks import inspect_bank, load_bank

RUST = {
    "general_skills": [
        {
            "id": "a1b2c3d4-e5f6-7890-abcd-ef1234567890",
            "name": "Explore",
            "principle": "Look everywhere once.",
            "when_to_apply": "At the start.",
            "category": "General",
            "embedding": None,
        }
    ],
    "task_specific_skills": {
        "Heat": [
            {
                "id": "b2c3d4e5-f6a7-8901-bcde-f12345678901",
                "name": "Hot",
                "principle": "Heat first.",
                "when_to_apply": "",
                "category": {"TaskSpecific": "Heat"},
                "embedding": [0.1, 0.2],
            }
        ]
    },
    "history": [
        {
            "skill_id": "b2c3d4e5-f6a7-8901-bcde-f12345678901",
            "added_at": "2025-06-15T10:30:00Z",
            "evolution_cycle": 2,
        }
    ],
    "current_cycle": 2,
}
SKILLRL = {
    "general_skills": [
        {"skill_id": "gen_001", "title": "Explore", "principle": "Once each.", "when_to_apply": "Always."}
    ],
    "task_specific_skills": {
        "pick_and_place": [
            {"skill_id": "pic_001", "title": "Take", "principle": "Take it.", "when_to_apply": ""}
        ],
        "apparel": [{"skill_id": "app_001", "title": "Size", "principle": "Choose it.", "when_to_apply": ""}],
    },
    "common_mistakes": [
        {
            "mistake_id": "err_001",
            "description": "Walks in circles.",
            "why_it_happens": "No memory.",
            "how_to_avoid": "Keep a list.",
        }
    ],
    "metadata": {"source": "somewhere"},
}


def write(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data))
    return path


def test_a_rust_bank_is_read_with_tiers_cycles_and_dates(tmp_path: Path) -> None:
    facts = inspect_bank(write(tmp_path / "bank.json", RUST))
    assert (facts.format, facts.tiers, facts.cycle, facts.history) == ("rust", {GENERAL: 1, "Heat": 1}, 2, 1)
    hot = facts.skills[1]
    assert (hot.name, hot.tier, hot.origin.cycle) == ("Hot", "Heat", 2)
    assert hot.created == 1749983400.0


def test_a_skillrl_bank_is_read_and_its_mistakes_become_general_lessons(tmp_path: Path) -> None:
    facts = inspect_bank(write(tmp_path / "bank.json", SKILLRL))
    assert facts.format == "skillrl"
    assert facts.tiers == {GENERAL: 2, "Pick": 1, "apparel": 1}, "known categories get the names tasks have"
    lesson = facts.skills[-1]
    assert (lesson.id, lesson.kind, lesson.principle) == ("err_001", SkillKind.LESSON, "Keep a list.")
    assert facts.extra["metadata"] == {"source": "somewhere"}


def test_a_bank_of_ours_is_inspected_without_being_touched(tmp_path: Path) -> None:
    path = tmp_path / "bank.json"
    bank = SkillBank.open(path)
    bank.add(SkillProposal(name="a", principle="b", tier="Heat"), SkillOrigin())
    bank.set_status("heat_001", SkillStatus.DISABLED)
    bank.set_cycle(4)
    before = path.read_bytes()
    facts = inspect_bank(path)
    assert path.read_bytes() == before
    assert (facts.format, facts.cycle, facts.version, facts.history) == ("krill", 4, 2, 2)
    assert facts.statuses == {"disabled": 1}
    assert json.loads(json.dumps(facts.model_dump(mode="json")))["skills"][0]["id"] == "heat_001"


def test_a_plain_list_of_skills_is_read(tmp_path: Path) -> None:
    taught = [{"name": "a", "principle": "b", "category": "Heat"}, {"title": "c", "principle": "d\x1b[2J"}]
    skills = load_bank(write(tmp_path / "bank.json", taught)).skills
    assert [(s.name, s.principle, s.tier) for s in skills] == [("a", "b", "Heat"), ("c", "d[2J", GENERAL)]


def test_imported_skills_fill_a_bank_under_short_ids(tmp_path: Path) -> None:
    bank = SkillBank.in_memory()
    copy_into(bank, load_bank(write(tmp_path / "r.json", RUST)).skills, SkillOrigin())
    copy_into(bank, load_bank(write(tmp_path / "s.json", SKILLRL)).skills, SkillOrigin())
    assert [s.id for s in bank.skills()] == [
        "gen_001",
        "heat_001",
        "gen_002",
        "pic_001",
        "app_001",
        "err_001",
    ]


@pytest.fixture
def skills() -> list[Skill]:
    return [
        Skill(id="gen_001", name="Look *once*", principle="<b>[x](y)", when_to_apply="ever", created=1.5),
        Skill(id="heat_001", name="Hot", principle="Heat first", tier="Heat", kind=SkillKind.LESSON),
        Skill(id="heat_002", name="Old", principle="Cold", tier="Heat", status=SkillStatus.RETIRED),
    ]


def test_a_json_list_reads_back_as_it_was_written(tmp_path: Path, skills: list[Skill]) -> None:
    write_json(tmp_path / "out.json", skills)
    assert load_bank(tmp_path / "out.json").skills == skills


def test_a_written_rust_bank_has_the_fields_that_its_reader_requires(
    tmp_path: Path, skills: list[Skill]
) -> None:
    path = tmp_path / "out.json"
    write_rust(path, skills, cycle=3)
    written = json.loads(path.read_text())
    assert written["general_skills"][0].keys() == RUST["general_skills"][0].keys()
    assert written["task_specific_skills"]["Heat"][0]["category"] == {"TaskSpecific": "Heat"}
    assert written["history"][0]["added_at"] == "1970-01-01T00:00:01.500000Z"
    assert written["current_cycle"] == 3
    facts = inspect_bank(path)
    assert (facts.format, facts.tiers) == ("rust", {GENERAL: 1, "Heat": 1}), "retired skills stay at home"
    first = path.read_bytes()
    write_rust(path, skills, cycle=3)
    assert path.read_bytes() == first


def test_markdown_shows_text_as_it_is(tmp_path: Path, skills: list[Skill]) -> None:
    write_markdown(tmp_path / "out.md", skills)
    page = (tmp_path / "out.md").read_text()
    assert "## general (1)" in page and "## Heat (2)" in page
    assert r"**Look \*once\*** (`gen_001`, strategy): \<b\>\[x\](y)" in page
    assert "(`heat_002`, strategy, retired)" in page


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not JSON"),
        ('{"general_skills": [', "is not JSON: .* line 1"),
        ("7", "no skill bank of a known format"),
        ('{"config": {}}', "no skill bank of a known format"),
        ('{"general_skills": [{"id": 1}]}', r"general_skills\.0\.id"),
        ('{"general_skills": [{"skill_id": "x"}]}', r"general_skills\.0\.title"),
        ('[{"name": "x"}]', r"0\.principle"),
        ('{"meta": {"1": {"version": 1}}}', "not a skill bank"),
        ('[{"principle": NaN}]', "NaN"),
    ],
)
def test_a_file_that_is_no_bank_gives_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "bank.json"
    path.write_text(text)
    with pytest.raises(DataError, match=says) as caught:
        inspect_bank(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_missing_files_folders_and_bytes_give_one_line(tmp_path: Path) -> None:
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00[")
    for name, says in (
        ("gone.json", "no such file"),
        (".", "holds neither a skill_bank.json nor a SKILL.md"),
        ("bytes.json", "not UTF-8"),
    ):
        with pytest.raises(DataError, match=says):
            load_bank(tmp_path / name)


KEYS = st.sampled_from(
    [
        "general_skills",
        "task_specific_skills",
        "skill_id",
        "id",
        "name",
        "title",
        "principle",
        "category",
        "common_mistakes",
        "history",
        "added_at",
        "current_cycle",
        "skills",
        "meta",
        "1",
        "Heat",
        "tier",
        "status",
        "memory_items",
        "content",
        "also",
        "created",
    ]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["2025-06-15", "\ud800", "NaN", "\u202e a \u200b b"])
)
VALUES = st.recursive(
    LEAVES, lambda v: st.lists(v, max_size=3) | st.dictionaries(KEYS, v, max_size=4), max_leaves=12
)


def texts(skill: Skill) -> tuple[object, ...]:
    return (
        skill.name,
        skill.principle,
        skill.when_to_apply,
        skill.tier,
        skill.also,
        skill.kind,
        skill.status,
    )


@settings(deadline=None, max_examples=60)
@given(VALUES)
def test_no_json_makes_the_reader_fail_otherwise(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "random_bank.json"
    path.write_text(json.dumps(value))
    try:
        facts = inspect_bank(path)
    except DataError as error:
        assert "\n" not in str(error)
    else:
        for number, name in enumerate(WRITERS):
            if name == "skill-md":
                continue  # a folder of files: tests/test_formats_advice.py
            out = path.with_suffix(f".out{number}")
            export_bank(out, facts, name)
            if name in ("krill", "json"):
                assert [texts(skill) for skill in load_bank(out).skills] == [texts(s) for s in facts.skills]


def test_the_real_banks_are_read_right(shared_dir: Path) -> None:
    rust = inspect_bank(shared_dir / "banks" / "krill_rust_sample_skill_bank.json")
    assert (rust.format, rust.cycle, rust.history) == ("rust", 2, 11)
    assert rust.tiers == {GENERAL: 5, "Pick": 2, "Clean": 1, "Heat": 1, "search": 2}
    official = inspect_bank(shared_dir / "banks" / "skillrl_alfworld_skills.json")
    assert official.format == "skillrl" and len(official.skills) == 55
    assert official.tiers == {GENERAL: 23, "Pick": 5, "Look": 11, "Clean": 6, "Heat": 5, "Cool": 5}
    assert official.kinds == {"strategy": 44, "lesson": 11}
    assert official.skills[0].name == "Systematic Exploration"
