"""Files with holes: what cannot be a skill or an episode is left out, counted and named; the rest is read."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from krill_tui.cli.app import run
from krill_tui.errors import DataError
from krill_tui.skill import GENERAL, Skill, SkillKind, SkillOrigin, SkillProposal
from krill_tui.skills.bank import SkillBank, copy_into
from krill_tui.skills.formats.bank_writers import write_json, write_rust
from krill_tui.skills.formats.banks import LoadedBank, load_bank
from krill_tui.skills.formats.trajectories import convert_file, read_trajectories
from tests.episodes import episode
from tests.test_formats_banks import RUST, SKILLRL
from tests.test_formats_foreign import HOUSE, memory
from tests.test_formats_foreign import RUST as RUST_EPISODE

NO_SKILLS: list[Any] = [
    7,
    None,
    "",
    [],
    {},
    {"name": "x"},
    {"name": "x", "principle": 5},
    {"name": "x", "principle": "\u202e \u202e"},
    {"name": "x", "principle": "y", "extra": float("nan")},
    {"name": "x", "principle": "y", "kind": "spell"},
    {"title": "x", "content": ""},
]


def load(path: Path, text: str) -> LoadedBank:
    path.write_text(text)
    return load_bank(path)


def test_records_that_are_no_skills_cost_nothing_but_themselves(tmp_path: Path) -> None:
    good = [{"name": "a", "principle": "b"}, {"name": "c", "principle": "d"}]
    bank = load(tmp_path / "b.json", json.dumps([good[0], *NO_SKILLS, good[1]]))
    assert [skill.name for skill in bank.skills] == ["a", "c"]
    assert (bank.records, len(bank.refused)) == (len(NO_SKILLS) + 2, len(NO_SKILLS))
    assert bank.told().startswith("11 of 13 records left out: 1: should be an object; ")
    with pytest.raises(DataError, match=r"is no skill bank: .* \(and 10 more records\)") as caught:
        load(tmp_path / "b.json", json.dumps(NO_SKILLS))
    assert "\n" not in str(caught.value)


def test_a_list_and_lines_lose_the_same_records(tmp_path: Path) -> None:
    records = [{"name": "a", "principle": "b"}, *NO_SKILLS, {"name": "c", "principle": "d"}]
    as_list = load(tmp_path / "b.json", json.dumps(records))
    as_lines = load(tmp_path / "b.jsonl", "\n".join(map(json.dumps, records)) + "\n")
    unnamed = load(tmp_path / "lines.json", "\n".join(map(json.dumps, records)) + "\n")
    assert as_list == as_lines == unnamed
    broken = load(
        tmp_path / "b.jsonl", f'{json.dumps(records[0])}\n{{"name": \n\xff\n{json.dumps(records[-1])}\n'
    )
    assert [skill.name for skill in broken.skills] == ["a", "c"] and len(broken.refused) == 2
    assert broken.refused[0].startswith("1: line 2 is not JSON: ")


@pytest.mark.parametrize(("bank", "format"), [(RUST, "rust"), (SKILLRL, "skillrl")])
def test_every_list_of_a_foreign_bank_may_have_holes(tmp_path: Path, bank: Any, format: str) -> None:
    whole = load(tmp_path / "b.json", json.dumps(bank)).skills
    holed = json.loads(json.dumps(bank))
    holed["general_skills"] += [{"id": 1}, float("inf")]
    holed["task_specific_skills"]["cool"] = "none"
    for members in list(holed["task_specific_skills"].values())[:-1]:
        members.append({"name": "no id"})
    holed["history"] = [*holed.get("history", []), {"skill_id": 3}]
    read = load(tmp_path / "b.json", json.dumps(holed))
    assert read.skills == whole and read.format == format
    places = [line.split(":")[0] for line in read.refused]
    assert "task_specific_skills.cool" in places and "general_skills.2" in places
    assert len(places) == 3 + len(bank["task_specific_skills"])


def test_a_skillrl_bank_without_general_skills_and_mistakes_is_known(tmp_path: Path) -> None:
    data = {"general_skills": [], "task_specific_skills": SKILLRL["task_specific_skills"]}
    bank = load(tmp_path / "b.json", json.dumps(data))
    assert (bank.format, [skill.id for skill in bank.skills]) == ("skillrl", ["pic_001", "app_001"])


def test_why_a_mistake_happens_and_its_whole_name_are_kept(tmp_path: Path) -> None:
    words = "Agent repeatedly revisits the same already-searched locations, instead of exploring new ones"
    data = {**SKILLRL, "common_mistakes": [{**SKILLRL["common_mistakes"][0], "description": words}]}
    lesson = load(tmp_path / "b.json", json.dumps(data)).skills[-1]
    assert (lesson.name, lesson.kind) == (words, SkillKind.LESSON)
    assert lesson.when_to_apply == f"{words} Why it happens: No memory."
    data["common_mistakes"][0]["description"] = f"{words}; {words}"
    assert load(tmp_path / "b.json", json.dumps(data)).skills[-1].name == words


def test_ids_that_stand_twice_cost_no_skill(tmp_path: Path) -> None:
    records = [{"id": "a", "name": "x", "principle": p} for p in ("one", "two", "one", "three")]
    bank = load(tmp_path / "b.json", json.dumps(records))
    assert [(s.id, s.principle) for s in bank.skills] == [("a", "one"), ("a-2", "two"), ("a-3", "three")]
    assert bank.refused == ["2: the same as an earlier record, a"]
    assert "2 ids stood twice and were changed" in bank.told()


def test_lone_surrogates_are_replaced_wherever_they_stand(tmp_path: Path) -> None:
    skill = Skill(id="a", name="b", principle="c", origin=SkillOrigin(author="x")).model_dump(mode="json")
    text = json.dumps([skill]).replace('"x"', '"\\ud800"').replace('"c"', '"c\\udfff"')
    bank = load(tmp_path / "b.json", text)
    assert (bank.skills[0].principle, bank.skills[0].origin.author) == ("c\ufffd", "\ufffd")
    for writer in (write_json, write_rust):
        writer(tmp_path / "out.json", bank.skills)
        assert load_bank(tmp_path / "out.json").skills[0].principle == "c\ufffd"


def test_joiners_of_scripts_and_emoji_are_kept(tmp_path: Path) -> None:
    family, persian = "\U0001f468\u200d\U0001f469\u200d\U0001f467", "می\u200cخواهم"
    bank = load(tmp_path / "b.json", json.dumps([{"name": family, "principle": persian}]))
    assert (bank.skills[0].name, bank.skills[0].principle) == (family, persian)


def own_bank(path: Path) -> dict[str, Any]:
    bank = SkillBank.open(path)
    for number in range(6):
        bank.add(SkillProposal(name=f"n{number}", principle=f"p{number}", tier="Heat"), SkillOrigin())
    bank.close()
    return json.loads(path.read_text())


def test_a_bank_of_ours_with_gaps_in_its_numbers_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "bank.json"
    data = own_bank(path)
    for table in ("skills", "history"):
        del data[table]["3"], data[table]["4"]
    path.write_text(json.dumps(data))
    bank = SkillBank.open(path)
    added = bank.add(SkillProposal(name="new", principle="p9", tier="Heat"), SkillOrigin())
    bank.edit("heat_006", principle="p6 edited")
    bank.close()
    again = SkillBank.open(path)
    assert [skill.name for skill in again.skills()] == ["n0", "n1", "n4", "n5", "new"]
    assert again.get("heat_006").principle == "p6 edited" and added.id in again
    numbers = [change.seq for change in again.history()]
    assert numbers == sorted(set(numbers)) and numbers[-2:] == [7, 8]


def test_a_bank_of_ours_with_holes_is_imported_but_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "bank.json"
    data = own_bank(path)
    data["skills"]["2"] = {"id": 5}
    data["skills"]["3"]["stats"]["wins"] = float("nan")
    data["skills"]["4"]["id"] = "heat_001"
    text = json.dumps(data)
    imported = load(path, text)
    assert [skill.name for skill in imported.skills] == ["n0", "n3", "n4", "n5"]
    assert [line.split(".")[1].split(":")[0] for line in imported.refused] == ["2", "3"]
    with pytest.raises(DataError, match="NaN is no number") as caught:
        SkillBank.open(path)
    assert "\n" not in str(caught.value)


def test_an_id_that_stands_twice_in_a_run_s_own_bank_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bank.json"
    data = own_bank(path)
    data["skills"]["4"]["id"] = "heat_001"
    path.write_text(json.dumps(data))
    with pytest.raises(DataError, match="an id stands in it twice"):
        SkillBank.open(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_is_none_is_none_as_a_text_too(tmp_path: Path, number: str) -> None:
    skills = [Skill(id=name, name="a", principle=name).model_dump(mode="json") for name in "ab"]
    bank = load(tmp_path / "b.json", json.dumps([{**skills[0], "created": number}, skills[1]]))
    assert [skill.id for skill in bank.skills] == ["b"] and "finite" in bank.refused[0]
    ours = [episode(name).model_dump(mode="json") for name in "ab"]
    (tmp_path / "t.json").write_text(json.dumps([{**ours[0], "total_reward": number}, ours[1]]))
    report = read_trajectories(tmp_path / "t.json")
    assert [t.id for t in report.trajectories] == ["b"]
    assert report.refused == ((0, "its total reward is no number"),)


# Trajectories


@pytest.mark.parametrize(
    ("good", "spoilt"),
    [
        (episode("a").model_dump(mode="json"), {"steps": 3}),
        (RUST_EPISODE, {"success": "perhaps"}),
        (HOUSE, {"conversations": []}),
        (memory(), {"tags": {}}),
    ],
)
@pytest.mark.parametrize("suffix", ["json", "jsonl"])
def test_records_that_are_no_episodes_cost_nothing_but_themselves(
    tmp_path: Path, good: Any, spoilt: Any, suffix: str
) -> None:
    records = [{**good, **spoilt}, good, 7, {**good, "x": float("nan")}]
    path = tmp_path / f"t.{suffix}"
    lines = [json.dumps(record) for record in records]
    path.write_text("[" + ",".join(lines) + "]" if suffix == "json" else "\n".join(lines) + "\n")
    report = read_trajectories(path)
    assert len(report.trajectories) == 1 and [index for index, _ in report.refused] == [0, 2, 3]
    assert report.refused[-1][1] in ("NaN is no number", "x: Extra inputs are not permitted")
    assert report.told().startswith("3 of 4 records left out: record 0: ")


def test_surrogates_in_trajectories_are_written_as_what_files_can_hold(tmp_path: Path) -> None:
    ours = episode("a").model_dump(mode="json")
    spoilt = json.dumps([{**ours, "task": "SURROGATE", "policy": "SURROGATE"}]).replace(
        "SURROGATE", "\\ud800"
    )
    (tmp_path / "t.json").write_text(spoilt)
    assert read_trajectories(tmp_path / "t.json").trajectories[0].task == "\ufffd"
    (tmp_path / "r.json").write_text(json.dumps([{**RUST_EPISODE, "task_description": "\ud83d"}]))
    (read,) = convert_file(tmp_path / "r.json", "rust").trajectories
    assert read.task == "\ufffd" and read.model_dump_json()
    assert run(["convert", "to-rust", str(tmp_path / "t.json"), str(tmp_path / "out.json")]) == 0
    assert "\ufffd" in (tmp_path / "out.json").read_text()


def test_a_run_says_what_an_import_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("t.json").write_text(json.dumps([episode("a").model_dump(mode="json"), {"id": "b"}]))
    assert run(["distill", "--trajectories", "t.json", "--output", "b.json", "--display", "plain"]) == 0
    out = capfd.readouterr().out
    assert "1 trajectories taken over from t.json" in out
    assert "t.json: 1 of 2 records left out: record 1: env: Field required" in out


def test_copying_skills_keeps_what_else_they_are_for() -> None:
    bank = SkillBank.in_memory()
    (skill,) = copy_into(
        bank, [Skill(id="a", name="b", principle="c", tier="Pick", also=("PickTwo",))], SkillOrigin()
    )
    assert skill.also == ("PickTwo",) and bank.edit("a", principle="d").also == ("PickTwo",)
    assert bank.edit("a", tier=GENERAL).also == ()
    assert "also" not in Skill(id="a", name="b", principle="c").model_dump(mode="json")
