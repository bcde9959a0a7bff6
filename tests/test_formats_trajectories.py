from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krill_tui.errors import DataError
from krill_tui.skills.formats.records import ConvertReport
from krill_tui.skills.formats.trajectories import (
    convert_file,
    load_trajectories,
    read_trajectories,
    save_trajectories,
)
from krill_tui.trajectory import StopReason, Trajectory
from tests.episodes import LOST, ROOM, episode

GAME = "/data/alfworld/json_2.1.1/train/pick_heat_then_place_in_recep-Mug-None-Shelf-7/trial_T1/game.tw-pddl"


def convert_eto(path: Path, max: int | None = None) -> ConvertReport[Trajectory]:
    return convert_file(path, "eto", max)


def talk(*turns: str, **fields: Any) -> dict[str, Any]:
    speakers = ("human", "gpt")
    conversations = [
        {"from": speakers[i % 2], "value": text} for i, text in enumerate(("Play.", "OK", *turns))
    ]
    return {"id": "x", "conversations": conversations, **fields}


def household(**fields: Any) -> dict[str, Any]:
    return talk(
        f"{ROOM}\n\nYour task is to: put a hot mug in shelf.",
        "Thought: I need a mug first.\nIt may be in the cabinet.\nAction: go to cabinet 1",
        "Observation: The cabinet 1 is closed.",
        "Thought: Open it.\nAction: open cabinet 1",
        **fields,
    )


SHOP = talk(
    "Observation:\nWebShop [SEP] Instruction: [SEP] i need red shoes under 30 dollars [SEP] Search",
    "Thought: Search.\nAction: search[red shoes]",
    "Observation:\nInstruction: [SEP] i need red shoes under 30 dollars [SEP] Back to Search [SEP] B01",
    "Thought: Buy.\nAction: click[Buy Now]",
    id=7,
    reward=0.75,
)


def write(path: Path, data: Any) -> Path:
    path.write_text(json.dumps(data))
    return path


def test_trajectories_read_back_as_they_were_saved_and_saving_twice_gives_the_same_bytes(
    tmp_path: Path,
) -> None:
    path = tmp_path / "out.json"
    played = [episode("a"), episode("b", play=LOST, success=False)]
    save_trajectories(path, played)
    first = path.read_bytes()
    save_trajectories(path, load_trajectories(path))
    assert load_trajectories(path) == played and path.read_bytes() == first
    save_trajectories(path, [])
    assert load_trajectories(path) == []


def test_a_run_folder_is_read_from_its_lines_without_a_last_one_that_breaks_off(tmp_path: Path) -> None:
    lines = [episode("a").model_dump_json(), episode("b").model_dump_json()]
    (tmp_path / "trajectories.jsonl").write_text("\n".join(lines) + "\n" + lines[0][:50])
    assert [t.id for t in load_trajectories(tmp_path)] == ["a", "b"]
    (tmp_path / "trajectories.jsonl").write_text(lines[0][:50] + "\n" + lines[1] + "\n")
    report = read_trajectories(tmp_path)
    assert [t.id for t in report.trajectories] == ["b"]
    assert report.told().startswith("1 of 2 records left out: record 0: line 1 is not JSON: ")


def test_trajectories_of_the_rust_project_are_read(tmp_path: Path) -> None:
    record = {
        "id": "0b5e",
        "task_description": "put a hot mug in shelf.",
        "task_category": "Heat",
        "steps": [
            {
                "observation": "A room.",
                "action": "look",
                "reward": 0.0,
                "step_index": 0,
                "action_log_prob": None,
            },
            {"observation": "Still.", "action": "go to shelf 1", "reward": 1.0, "step_index": 1},
        ],
        "total_reward": 1.0,
        "success": True,
        "metadata": {"environment": "alfworld", "num_steps": 2, "total_tokens": 40, "skills_used": ["s1"]},
    }
    lost = {**record, "id": "0b5f", "success": False, "total_reward": 0.0}
    won, other = load_trajectories(write(tmp_path / "t.json", [record, lost]))
    assert (won.task, won.category, won.split, won.skills) == ("put a hot mug in shelf.", "Heat", "", ("s1",))
    assert [(s.observation, s.action, s.reward) for s in won.steps][1] == ("Still.", "go to shelf 1", 1.0)
    assert (won.stop_reason, other.stop_reason) == (StopReason.SUCCESS, StopReason.STEP_LIMIT)
    holed = write(tmp_path / "t.json", [record, {k: v for k, v in record.items() if k != "success"}])
    assert [t.id for t in load_trajectories(holed)] == ["0b5e"]
    assert read_trajectories(holed).refused == ((1, "success: Field required"),)


def test_a_household_demonstration_keeps_thoughts_and_takes_its_category_from_the_game_file(
    tmp_path: Path,
) -> None:
    report = convert_eto(write(tmp_path / "eto.json", [household(game_file=GAME)]))
    (won,) = report.trajectories
    assert (report.read, report.converted, report.refused) == (1, 1, ())
    assert (won.task, won.category, won.split) == ("put a hot mug in shelf", "Heat", "train")
    assert won.task_id.startswith("json_2.1.1/train/pick_heat")
    assert won.steps[0].thought == "I need a mug first.\nIt may be in the cabinet."
    assert [s.action for s in won.steps] == ["go to cabinet 1", "open cabinet 1"]
    assert won.steps[1].observation == "The cabinet 1 is closed."
    assert won.success and won.steps[-1].reward == won.total_reward == 1.0


@pytest.mark.parametrize(
    ("task", "category"),
    [
        ("put a clean mug in shelf.", "Clean"),
        ("find two pen and put them in drawer.", "PickTwo"),
        ("look at bowl under the desklamp.", "Look"),
        ("warm up a slice of bread for me", "Heat"),
        ("chill the wine", "Cool"),
        ("bring me the keys", "Pick"),
    ],
)
def test_without_a_game_file_the_words_of_the_task_tell_its_category(
    tmp_path: Path, task: str, category: str
) -> None:
    record = talk(f"{ROOM}\n\nYour task is to: {task}", "Thought: a\nAction: look")
    assert load_trajectories(write(tmp_path / "eto.json", [record]))[0].category == category


def test_a_shop_demonstration_is_won_only_with_the_full_reward(tmp_path: Path) -> None:
    lost, won = convert_eto(write(tmp_path / "e.json", [SHOP, {**SHOP, "reward": 1}])).trajectories
    assert (lost.env, lost.task, lost.total_reward) == ("webshop", "i need red shoes under 30 dollars", 0.75)
    assert (lost.success, lost.stop_reason, won.success) == (False, StopReason.FAILURE, True)
    assert lost.steps[0].observation.startswith("WebShop [SEP]") and lost.steps[1].action == "click[Buy Now]"


def test_bad_records_are_reported_by_their_place_and_the_others_converted(tmp_path: Path) -> None:
    turns = household()["conversations"]
    records = [
        5,
        {"id": "no talk"},
        {"conversations": turns[:3]},
        {"conversations": [*turns[:3], turns[2], turns[3]]},
        {"conversations": [*turns[:3], {"from": "gpt", "value": None}]},
        talk("An experiment in a laboratory.", "Action: look"),
        talk(f"{ROOM}\n\nYour task is to: put a mug in shelf.", "I do not know"),
        {**SHOP, "reward": "much"},
        household(),
        household(),
    ]
    report = convert_eto(write(tmp_path / "eto.json", records))
    assert report.converted == 1 and report.read == 10
    reasons = dict(report.refused)
    assert list(reasons) == [0, 1, 2, 3, 4, 5, 6, 7, 9]
    assert reasons[3] == "turn 3 is out of turn" and reasons[4] == "turn 3 has no speaker or no text"
    assert (
        reasons[6] == "none of its replies holds an action" and reasons[9] == "the same as an earlier record"
    )


def test_converting_stops_at_the_maximum_and_twice_gives_the_same(tmp_path: Path) -> None:
    records = [household(extra=number) for number in range(5)]
    path = write(tmp_path / "eto.json", records)
    assert convert_eto(path, max=3) == convert_eto(path, max=3)
    assert (convert_eto(path, max=3).converted, convert_eto(path, max=3).read) == (3, 3)


def test_an_action_is_what_follows_the_last_action_mark_and_steps_without_one_are_invalid(
    tmp_path: Path,
) -> None:
    record = talk(
        f"{ROOM}\n\nYour task is to: put a mug in shelf.",
        "I would like to look around.",
        "Observation: Invalid format. The input must contains 'Action: '",
        "Thought: The form is Action: x\nAction: go to shelf 1\n",
        "Observation: You see nothing.",
    )
    (played,) = load_trajectories(write(tmp_path / "eto.json", [record]))
    assert [(s.action, s.valid) for s in played.steps] == [("", False), ("go to shelf 1", True)]
    assert played.steps[0].text == "I would like to look around."
    assert played.final_observation == "You see nothing."


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "is not JSON"),
        ("{}", "no list of trajectories"),
        ("[3]", "record 0 is no trajectory"),
        ('[{"id": "a"}]', "record 0 is no trajectory: env"),
        ('[{"conversations": 3}]', "no record can be converted; record 0: it has no conversations"),
    ],
)
def test_a_file_without_trajectories_gives_one_line(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "t.json"
    path.write_text(text)
    with pytest.raises(DataError, match=says) as caught:
        load_trajectories(path)
    assert "\n" not in str(caught.value)


KEYS = st.sampled_from(
    [
        "conversations",
        "from",
        "value",
        "task_description",
        "steps",
        "observation",
        "action",
        "reward",
        "success",
        "id",
        "game_file",
        "metadata",
        "env",
    ]
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.floats()
    | st.text(max_size=4)
    | st.sampled_from(
        [
            "human",
            "gpt",
            "Action: look",
            "Your task is to: put a mug in shelf.",
            "[SEP] Instruction: a",
            "\ud800",
        ]
    )
)
VALUES = st.recursive(
    LEAVES, lambda v: st.lists(v, max_size=5) | st.dictionaries(KEYS, v, max_size=4), max_leaves=15
)
TURNS = st.fixed_dictionaries(
    {"from": st.sampled_from(["human", "gpt"]), "value": st.text(max_size=8) | LEAVES}
)
TALKS = st.fixed_dictionaries(
    {"conversations": st.lists(TURNS, max_size=6), "reward": LEAVES, "game_file": LEAVES}
)


@settings(deadline=None, max_examples=60)
@given(st.lists(VALUES | TALKS, max_size=4))
def test_no_json_makes_the_readers_fail_otherwise(
    tmp_path_factory: pytest.TempPathFactory, value: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "random_trajectories.json"
    path.write_text(json.dumps(value))
    for read in (load_trajectories, convert_eto):
        try:
            found = read(path)
        except DataError as error:
            assert "\n" not in str(error)
        else:
            save_trajectories(
                path.with_suffix(".out"), found if isinstance(found, list) else found.trajectories
            )
