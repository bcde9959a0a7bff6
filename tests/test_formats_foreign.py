"""Records of AgentGym, SkillRL's memories and the Rust project, one by one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from krill_tui.errors import DataError
from krill_tui.skills.formats.agentgym import from_agentgym
from krill_tui.skills.formats.memories import from_memory
from krill_tui.skills.formats.records import Refused
from krill_tui.skills.formats.rust import from_rust, to_rust
from krill_tui.skills.formats.trajectories import convert_file, load_trajectories
from krill_tui.trajectory import StopReason
from tests.episodes import ROOM, episode

PAGE = "WebShop [SEP] Instruction: [SEP] i need red shoes under 30 dollars [SEP] Search"
BOUGHT = "Thank you for shopping with us! [SEP] Reward [SEP] Your score (min 0.0, max 1.0) [SEP] {} [SEP] Reward Details"


def agentgym(
    *turns: str, item: str = "alfworld_7", start: tuple[str, ...] = ("Act.", "Ok.")
) -> dict[str, Any]:
    said = (*start, *turns)
    conversations = [
        {"from": ("human", "gpt")[i % 2], "loss": None if i < 2 else bool(i % 2), "value": text}
        for i, text in enumerate(said)
    ]
    return {"item_id": item, "conversations": conversations}


HOUSE = agentgym(
    f"{ROOM}\nYour task is to: put some mug on shelf.\nAVAILABLE ACTIONS: go to shelf 1,look, inventory",
    "Thought:\nThe shelf may hold it.\n\nAction:\ngo to shelf 1",
    "On the shelf 1, you see a mug 1.",
    "Action:\ntake mug 1 from shelf 1",
)


def memory(**fields: Any) -> dict[str, Any]:
    refined = [
        {
            "step_index": -1,
            "action": "go to cabinet 1",
            "critical_observation": "A room.",
            "reasoning": "Near.",
        },
        {"step_index": 4, "action": " open cabinet 1 ", "critical_observation": None, "reasoning": None},
    ]
    content = {
        "task_meta": {"original_goal": "put a clean mug in shelf."},
        "refined_trajectory": {"refined_trajectory": refined},
        "strategic_guidelines": {"planning_pattern": "Look first.", "mistakes_to_avoid": []},
    }
    tags = {"environment": "Alfworld", "outcome": "Success"}
    record = {"memory_id": "mem_alfworld_1", "contextual_description": "A mug.", "tags": tags}
    return {**record, "origin_env_id": "17", "content": content, **fields}


RUST: dict[str, Any] = {
    "id": "0b5e5c3e-2f0e-4d36-9a55-1f4ab0a2c001",
    "task_description": "put a hot mug in shelf.",
    "task_category": "Heat",
    "steps": [
        {
            "observation": "A room.",
            "action": "look",
            "reward": 0.0,
            "step_index": 0,
            "action_log_prob": None,
            "ref_log_prob": None,
        },
        {
            "observation": "Still.",
            "action": "go to shelf 1",
            "reward": 1.0,
            "step_index": 1,
            "action_log_prob": None,
            "ref_log_prob": None,
        },
    ],
    "total_reward": 1.0,
    "success": True,
    "metadata": {"environment": "alfworld", "num_steps": 2, "total_tokens": 40, "skills_used": ["s1"]},
}


def test_an_agentgym_household_keeps_thoughts_and_the_actions_listed_below_its_first_turn() -> None:
    played = from_agentgym(HOUSE)
    assert (played.env, played.task, played.category) == ("alfworld", "put some mug on shelf", "Pick")
    assert (played.task_id, played.split) == ("agentgym/alfworld_7", "train")
    first, second = played.steps
    assert (first.thought, first.action) == ("The shelf may hold it.", "go to shelf 1")
    assert first.admissible == ("go to shelf 1", "look", "inventory")
    assert first.observation.endswith("Your task is to: put some mug on shelf.") and second.admissible == ()
    assert second.action == "take mug 1 from shelf 1" and played.success and second.reward == 1.0


def test_an_agentgym_item_of_the_test_games_is_no_training_data() -> None:
    splits = [from_agentgym({**HOUSE, "item_id": f"alfworld_{n}"}).split for n in ("2419", "2420", "x")]
    assert splits == ["train", "valid_train", ""]


@pytest.mark.parametrize(("score", "won"), [("1.0", True), ("0.6666666666666666", False), ("0.0", False)])
def test_a_shop_record_is_won_by_the_score_on_its_last_page(score: str, won: bool) -> None:
    played = from_agentgym(
        agentgym(PAGE, "Thought:\nBuy.\n\nAction:\nclick[Buy Now]", BOUGHT.format(score), item="webshop_3")
    )
    assert (played.env, played.category, played.success) == ("webshop", "fashion", won)
    assert played.total_reward == float(score) and played.final_observation.startswith("Thank you")


def test_an_agentgym_record_without_instruction_and_with_other_speakers_is_read() -> None:
    record = agentgym(PAGE, "Action: search[red shoes]", item="webshop_3", start=())
    for turn in record["conversations"]:
        turn["from"] = {"human": "user", "gpt": "assistant"}[turn["from"]]
    assert [step.action for step in from_agentgym(record).steps] == ["search[red shoes]"]


def test_agentgym_records_of_other_worlds_are_refused() -> None:
    with pytest.raises(Refused, match="neither an ALFWorld nor a WebShop episode"):
        from_agentgym(agentgym("You see a red ball.", "Action: go to red ball", item="babyai_1"))


def test_a_memory_of_a_success_becomes_its_refined_steps() -> None:
    played = from_memory(memory())
    assert (played.env, played.task, played.category) == ("alfworld", "put a clean mug in shelf", "Clean")
    assert [(s.action, s.observation, s.thought) for s in played.steps] == [
        ("go to cabinet 1", "A room.", "Near."),
        ("open cabinet 1", "", ""),
    ]
    assert played.success and played.steps[-1].reward == played.total_reward == 1.0
    assert played.task_id == "skillrl/17"


@pytest.mark.parametrize("wrap", [lambda r: r, lambda r: {"refined_trajectory": {"refined_trajectory": r}}])
def test_the_refined_trajectory_is_unwrapped_however_often_it_is_nested(wrap: Any) -> None:
    record = memory(tags={"environment": "Webshop", "outcome": "Success"})
    content = record["content"]
    content["refined_trajectory"] = wrap(content["refined_trajectory"]["refined_trajectory"])
    content["strategic_guidelines"] = {"strategic_guidelines": content["strategic_guidelines"]}
    played = from_memory(record)
    assert (played.env, played.category, len(played.steps)) == ("webshop", "garden", 2)


@pytest.mark.parametrize("outcome", ["Failure", "Failed"])
def test_a_memory_of_a_failure_is_a_lost_episode_without_steps(outcome: str) -> None:
    record = memory(tags={"environment": "Alfworld", "outcome": outcome})
    record["content"]["refined_trajectory"] = None
    lost = from_memory(record)
    assert (lost.success, lost.steps, lost.stop_reason) == (False, (), StopReason.STEP_LIMIT)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"tags": {"environment": "Search", "outcome": "Success"}}, "its environment is 'search'"),
        ({"tags": {"environment": "Alfworld", "outcome": "?"}}, "its outcome is '\\?'"),
        ({"content": {"task_meta": {"original_goal": "a mug"}}}, "a success without a refined trajectory"),
        ({"content": {"task_meta": {"original_goal": " ."}}}, "its original goal is empty"),
        (
            {"content": {"task_meta": {"original_goal": "a"}, "refined_trajectory": [{"action": 3}]}},
            "step 0: action:",
        ),
        ({"content": {"task_meta": {"original_goal": "a"}, "refined_trajectory": 3}}, "is no list of steps"),
        ({"content": 3}, "^content: "),
    ],
)
def test_a_memory_that_cannot_be_an_episode_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(Refused, match=says):
        from_memory(memory(**change))


def test_a_rust_trajectory_comes_back_from_ours_as_it_was() -> None:
    shop = {
        **RUST,
        "id": "0b5e5c3e-2f0e-4d36-9a55-1f4ab0a2c002",
        "task_category": "search",
        "success": False,
        "metadata": {**RUST["metadata"], "environment": "webshop"},
    }
    for record in (RUST, shop):
        assert to_rust(from_rust(record)) == record


def test_our_episode_becomes_a_rust_record_with_every_key_and_ours_again() -> None:
    ours = episode("e1", skills=("gen_001",))
    record = to_rust(ours)
    assert sorted(record) == sorted(RUST) and sorted(record["steps"][0]) == sorted(RUST["steps"][0])
    assert record == to_rust(ours) and record["id"] != to_rust(episode("e2"))["id"]
    back = from_rust(record)
    assert [(s.observation, s.action) for s in back.steps] == [(s.observation, s.action) for s in ours.steps]
    assert (back.task, back.category, back.skills) == (ours.task, ours.category, ours.skills)
    assert to_rust(episode("shop", env="webshop", category="beauty"))["task_category"] == "search"


@pytest.mark.parametrize("stop", [StopReason.ERROR, StopReason.CANCELLED])
def test_an_episode_that_broke_off_does_not_become_a_failure(stop: StopReason) -> None:
    with pytest.raises(Refused, match=stop.value):
        to_rust(episode(success=False, stop=stop))


def test_a_rust_category_that_is_missing_or_unknown_is_inferred() -> None:
    assert from_rust({**RUST, "task_category": ""}).category == "Heat"
    assert from_rust({**RUST, "task_category": "pick_cool_then_place_in_recep"}).category == "Cool"


@pytest.mark.parametrize("number", ["1e999", "NaN", "1" + "0" * 400])
def test_a_number_that_is_none_is_refused(tmp_path: Path, number: str) -> None:
    path = tmp_path / "r.jsonl"
    text = json.dumps({**RUST, "total_reward": 0}).replace('"total_reward": 0', f'"total_reward": {number}')
    path.write_text(text + "\n" + json.dumps(RUST) + "\n")
    report = convert_file(path, "rust")
    assert report.converted == 1 and report.refused[0][1].startswith("total_reward: ")
    talk = json.dumps({**HOUSE, "reward": 0}).replace('"reward": 0', f'"reward": {number}')
    path.write_text(talk + "\n" + json.dumps(HOUSE) + "\n")
    assert convert_file(path, "agentgym").refused == ((0, "its reward is no number"),)


def test_every_format_is_known_by_its_first_record(tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    for record, policy in ((HOUSE, "agentgym"), (memory(), "skillrl"), (RUST, "rust")):
        path.write_text(json.dumps([record, {**record, "extra": 1}]))
        assert {t.policy for t in load_trajectories(path)} == {f"import:{policy}"}


def test_an_agentgym_file_is_not_taken_for_one_of_eto(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps([HOUSE]))
    with pytest.raises(DataError, match=r"record 0: it is a record of agentgym \(it looks like agentgym\)"):
        convert_file(tmp_path / "a.json", "eto")
