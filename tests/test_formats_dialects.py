"""Conversations as different projects tell them: labels, tags, tool calls, speakers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from time import process_time
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from krill_tui.errors import DataError
from krill_tui.skills.formats.conversations import parse_said
from krill_tui.skills.formats.trajectories import (
    FOREIGN,
    convert_file,
    load_trajectories,
    read_trajectories,
    save_trajectories,
)
from krill_tui.trajectory import Trajectory
from tests.episodes import ROOM

TASK = f"{ROOM}\n\nYour task is to: put a hot mug in shelf."
EXPECTED = [("First a mug.", "go to desk 1"), ("", "take mug 1 from desk 1")]


def told(replies: tuple[str, str], *, start: tuple[str, ...] = ()) -> list[str]:
    return [*start, TASK, replies[0], "On the desk 1, you see a mug 1.", replies[1], "You win."]


def turns(texts: list[str], speakers: tuple[str, str] = ("human", "gpt"), key: str = "value") -> list[Any]:
    who = "from" if key == "value" else "role"
    return [{who: speakers[number % 2], key: text} for number, text in enumerate(texts)]


LABELS = [
    ("Thought: First a mug.\nAction: go to desk 1", "Action: take mug 1 from desk 1"),
    ("THOUGHT: First a mug.\n ACTION: go to desk 1", "ACTION: take mug 1 from desk 1"),
    ("thought: First a mug.\naction: go to desk 1", "action: take mug 1 from desk 1"),
    ("**Thought:** First a mug.\n**Action:** go to desk 1", "**Action**: `take mug 1 from desk 1`"),
    ("Thought:\nFirst a mug.\n\nAction:\ngo to desk 1", "Action:\ntake mug 1 from desk 1"),
    ("Thought: First a mug. Action: go to desk 1", "Action: take mug 1 from desk 1"),
    (
        "<think>First a mug.</think>\n<action>go to desk 1</action>",
        "<action>look</action> no, <ACTION>take mug 1 from desk 1</ACTION>",
    ),
    (
        "<think>First a mug.</think>\nAction: go to desk 1",
        "<think>\n</think>\nACTION: take mug 1 from desk 1",
    ),
]


@pytest.mark.parametrize("replies", LABELS)
def test_thoughts_and_actions_are_read_however_they_are_marked(replies: tuple[str, str]) -> None:
    played = FOREIGN["eto"](
        {"conversations": turns(told(replies, start=("Interact with a household.", "OK")))}
    )
    assert [(step.thought, step.action) for step in played.steps] == EXPECTED
    assert played.final_observation == "You win." and played.category == "Heat"


@pytest.mark.parametrize(
    "record",
    [
        {"conversations": turns(told(LABELS[0]))},
        {"conversations": turns(told(LABELS[0], start=("Play.", "I understand. Let us begin.")))},
        {"messages": turns(told(LABELS[0]), ("user", "assistant"), "content")},
        {
            "messages": [
                {"role": "system", "content": "You are an agent."},
                *turns(told(LABELS[0], start=("Play.", "OK.")), ("user", "assistant"), "content"),
            ]
        },
        {"messages": turns(told(LABELS[6]), ("tool", "assistant"), "content")},
        {
            "messages": [
                {"role": turn["role"], "content": [{"type": "text", "text": turn["content"]}]}
                for turn in turns(told(LABELS[0]), ("user", "assistant"), "content")
            ]
        },
        {
            "conversations": [
                {**turn, "loss": None if number < 2 else number % 2 == 1}
                for number, turn in enumerate(turns(told(LABELS[1], start=("Play.", "OK"))))
            ],
            "id": "pick_heat_then_place_in_recep-Mug-None-Shelf-7",
        },
        {"item_id": "alfworld_7", "messages": turns(told(LABELS[0]), ("USER", "Assistant"), "content")},
    ],
)
def test_turns_are_read_whoever_says_them(tmp_path: Path, record: Any) -> None:
    (tmp_path / "t.json").write_text(json.dumps([record]))
    (played,) = load_trajectories(tmp_path / "t.json")
    assert [(step.thought, step.action) for step in played.steps] == EXPECTED
    assert (played.task, played.category) == ("put a hot mug in shelf", "Heat")
    kinds = [kind for kind in ("eto", "messages", "agentgym") if played.policy == f"import:{kind}"]
    assert convert_file(tmp_path / "t.json", kinds[0]).trajectories == (played,)


def test_tool_calls_and_reasoning_are_actions_and_thoughts() -> None:
    def call(name: str, **arguments: str) -> dict[str, Any]:
        function = {"name": name, "arguments": json.dumps(arguments)}
        return {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"type": "function", "function": function}],
        }

    page = "WebShop [SEP] Instruction: [SEP] i need red shoes [SEP] Search"
    messages = [
        {"role": "user", "content": page},
        {**call("search", query="red shoes"), "reasoning_content": "Look for them."},
        {"role": "tool", "content": "Page 1"},
        call("act", action="click[b001]"),
        {"role": "tool", "content": "B001"},
        call("click", button="Buy Now"),
    ]
    played = FOREIGN["messages"]({"messages": messages})
    assert [step.action for step in played.steps] == ["search[red shoes]", "click[b001]", "click[Buy Now]"]
    assert played.steps[0].thought == "Look for them." and played.category == "fashion"


def test_a_shop_told_without_separators_is_known() -> None:
    page = "WebShop \nInstruction:  \ni need a gold hdmi cable under 20 dollars \n[button] Search [button_]"
    played = FOREIGN["eto"]({"conversations": turns([page, "Action: search[hdmi cable]"])})
    assert (played.task, played.category) == ("i need a gold hdmi cable under 20 dollars", "electronics")


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"messages": "none"}, "it has no conversations and no messages"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "turn 0 has no speaker or no text"),
        ({"messages": turns([TASK, TASK], ("user", "user"), "content")}, "turn 1 is out of turn"),
        ({"messages": turns([TASK, "I do not know"], ("user", "assistant"), "content")}, "holds an action"),
    ],
)
def test_what_is_no_episode_says_why(tmp_path: Path, record: Any, says: str) -> None:
    (tmp_path / "t.json").write_text(json.dumps([record]))
    with pytest.raises(DataError, match=says):
        load_trajectories(tmp_path / "t.json")


@pytest.mark.parametrize(
    "part",
    ["Action: a\n", "action", " ", "\n", "<think>", "</think>", "<action>", "*", "Thought:", "`", "é "],
)
@pytest.mark.parametrize("before", ["", "Thought: ", "Action: ", "<action>"])
def test_long_replies_are_read_in_time_that_grows_with_their_length(part: str, before: str) -> None:
    started = process_time()
    parse_said(before + part * (60_000 // len(part)) + "b")
    assert process_time() - started < 0.3


SAID = st.sampled_from(
    [
        *(reply for pair in LABELS for reply in pair),
        TASK,
        "OK",
        "",
        "\ud800",
        "Your task is to: x",
        "[SEP]",
        "\x00",
    ]
) | st.text(max_size=5)
TURN = st.dictionaries(
    st.sampled_from(["from", "role", "value", "content", "tool_calls", "loss", "reasoning"]),
    SAID
    | st.sampled_from(["human", "gpt", "user", "assistant", "system", "tool"])
    | st.lists(st.dictionaries(st.sampled_from(["function", "text", "name", "arguments"]), SAID), max_size=2),
    max_size=4,
) | st.builds(lambda who, text: {"from": who, "value": text}, st.sampled_from(["human", "gpt"]), SAID)
RECORD = st.dictionaries(
    st.sampled_from(["conversations", "messages", "item_id", "reward", "game_file", "id"]),
    st.lists(TURN, max_size=5) | SAID | st.none() | st.floats() | st.integers(),
    max_size=4,
)


@settings(deadline=None, max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(RECORD | st.just({"conversations": turns(told(LABELS[0]))}), max_size=3))
def test_whatever_is_read_can_be_written_and_read_again(tmp_path: Path, records: list[Any]) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(records))
    reads: list[Callable[[], tuple[Trajectory, ...]]] = [
        lambda: read_trajectories(path).trajectories,
        *(
            lambda kind=kind: convert_file(path, kind).trajectories
            for kind in ("eto", "messages", "agentgym")
        ),
    ]
    for read in reads:
        try:
            played = read()
        except DataError as error:
            assert "\n" not in str(error)
            continue
        save_trajectories(tmp_path / "out.json", played)
        assert tuple(load_trajectories(tmp_path / "out.json")) == played
