"""Game files and sources of games: what is wrong with one is said in one line that names it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from krill_tui.envs.alfworld.problem import display_names, load_game
from krill_tui.envs.alfworld.source import BuiltinSource, GamesSource, open_source
from krill_tui.errors import DataError, UsageError
from krill_tui.trajectory import Task
from tests.alfworld_games import PROBLEM, domain, grammar, write_game

LOOPING = grammar().replace('"rhs": "You are not carrying anything."', '"rhs": "#hands#"')


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ({"pddl_problem": PROBLEM[:900]}, "breaks off"),
        ({"pddl_problem": PROBLEM.replace("(:goal", "(:gaol")}, "lacks"),
        ({"pddl_problem": PROBLEM.replace("(atLocation agent1 loc_bar_00)", "")}, "exactly one agent"),
        (
            {"pddl_problem": PROBLEM.replace("(receptacleAtLocation Fridge_bar_1 loc_bar_13)", "")},
            "fridge_bar_1",
        ),
        ({"pddl_problem": PROBLEM.replace("(isHot ?o)", "(isHaunted ?o)")}, "ishaunted"),
        ({"pddl_problem": PROBLEM.replace("?o - object)", "?o - ghost)")}, "ghost"),
        ({"pddl_domain": domain()[:500]}, "breaks off"),
        ({"pddl_domain": domain(putobject="")}, "putobject"),
        ({"pddl_domain": domain(putobject="(holds ?a ?o)")}, "putobject"),
        ({"pddl_domain": domain().replace(":action help", ":action teleport")}, "teleport"),
        ({"grammar": grammar().replace("Your task is to", "Please")}, "Your task is to"),
        ({"grammar": grammar().replace('action look { template :: "look";', "action look {")}, "look"),
        ({"grammar": grammar().replace("#hands#", "#feet#")}, "feet"),
        ({"grammar": grammar().replace("{lend.name}", "{lend.colour}")}, "colour"),
        ({"grammar": grammar().replace("{lend.name}", "{__import__('os')}")}, "cannot be read"),
        ({"grammar": grammar().replace('"opened": [', '"opened": [[')}, "not readable"),
        ({"grammar": LOOPING}, "by itself"),
    ],
)
def test_a_malformed_game_is_one_line_that_names_the_file(
    tmp_path: Path, texts: dict[str, str], said: str
) -> None:
    path = write_game(tmp_path, **texts)
    with pytest.raises(DataError) as caught:
        load_game(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"pddl_domain": 1}', b"\xff\xfe\x00", b"[" * 100_000]
)
def test_a_file_that_is_no_game_is_one_line_that_names_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "game.tw-pddl"
    path.write_bytes(content)
    with pytest.raises(DataError, match="is not a game file") as caught:
        load_game(path)
    assert "\n" not in str(caught.value)


def test_a_missing_game_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere"):
        load_game(tmp_path / "nowhere")


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_damaged_game_is_played_or_refused_but_never_crashes(tmp_path: Path, data: st.DataObject) -> None:
    original = write_game(tmp_path).read_text(encoding="utf-8")
    start = data.draw(st.integers(0, len(original)))
    length = data.draw(st.integers(0, 60))
    inserted = data.draw(st.sampled_from(["", "(", ")", "()", "?o", '\\"', "#", "[", "{", "}", "x", "12"]))
    path = tmp_path / "game.tw-pddl"
    path.write_text(original[:start] + inserted + original[start + length :], encoding="utf-8")
    try:
        load_game(path)
    except DataError as error:
        assert "\n" not in str(error)


def test_an_object_without_a_type_is_kept(tmp_path: Path) -> None:
    cracked = PROBLEM.replace("(objectType Apple_bar_1 AppleType)", "")
    assert "apple 1" in load_game(write_game(tmp_path, pddl_problem=cracked)).object_names


def test_numbers_are_given_out_from_the_sorted_ids_highest_first() -> None:
    names = display_names(["mug_bar_b", "mug_bar_a", "sink_bar_a_bar_sinkbasin", "sink_bar_a", "agent1"])
    assert names == {
        "mug_bar_a": "mug 2",
        "mug_bar_b": "mug 1",
        "sink_bar_a": "sink 1",
        "sink_bar_a_bar_sinkbasin": "sinkbasin 1",
        "agent1": "agent1 ",
    }


def data_folder(root: Path) -> Path:
    """Three games in two splits, as the dataset lays them out."""
    for split, name in (("train", "a"), ("train", "b"), ("valid_seen", "c")):
        folder = root / "json_2.1.1" / split / "pick_heat_then_place_in_recep-Mug-None-CounterTop-1" / name
        folder.mkdir(parents=True)
        write_game(folder)
    return root


async def test_games_are_found_counted_and_opened(tmp_path: Path) -> None:
    source = GamesSource(data_folder(tmp_path))
    assert source.splits() == {"train": 2, "valid_seen": 1}
    (task,) = source.tasks("valid_seen", 5)
    assert task.id == "valid_seen/pick_heat_then_place_in_recep-Mug-None-CounterTop-1/c/game.tw-pddl"
    assert task.category == "Heat"
    env = source.open(Task.model_validate_json(task.model_dump_json()))
    result = await env.reset()
    assert env.task.description == "heat some mug and put it in countertop"
    assert env.task.description in result.observation
    assert (await env.step("inventory")).observation == "You are not carrying anything."
    await env.close()


def test_the_order_of_games_is_fixed_by_the_seed(tmp_path: Path, games_dir: Path) -> None:
    source = GamesSource(games_dir)
    one = [task.id for task in source.tasks("valid_seen", 140, seed=1)]
    assert one == [task.id for task in source.tasks("valid_seen", 140, seed=1)]
    assert one[:20] == [task.id for task in source.tasks("valid_seen", 20, seed=1)]
    assert one != [task.id for task in source.tasks("valid_seen", 140, seed=2)]
    assert sorted(one) == sorted(task.id for task in source.tasks("valid_seen", 1000))


def test_the_content_hash_changes_with_the_games(tmp_path: Path) -> None:
    root = data_folder(tmp_path)
    before = GamesSource(root).content_hash()
    assert before == GamesSource(root).content_hash()
    game = next(root.rglob("game.tw-pddl"))
    game.write_text(game.read_text() + " ")
    assert GamesSource(root).content_hash() != before


def test_a_game_that_was_changed_is_read_again(tmp_path: Path) -> None:
    source = GamesSource.from_game(write_game(tmp_path))
    (task,) = source.tasks("game", 1)
    assert source.open(task).task.description == "heat some mug and put it in countertop"
    changed = write_game(tmp_path, grammar=grammar().replace("heat some mug and put it", "put a hot mug"))
    os.utime(changed, (1, 1))
    assert source.open(task).task.description == "put a hot mug in countertop"


def test_one_game_is_opened_by_its_file_or_its_folder(tmp_path: Path) -> None:
    path = write_game(tmp_path)
    for given_path in (path, tmp_path):
        source = GamesSource.from_game(given_path)
        (task,) = source.tasks("game", 1)
        assert source.open(task).task.category == "Heat"
    with pytest.raises(UsageError, match="there is no game"):
        GamesSource.from_game(tmp_path / "elsewhere")


def test_a_task_cannot_point_outside_the_data_folder(tmp_path: Path) -> None:
    source = GamesSource(data_folder(tmp_path / "data"))
    write_game(tmp_path)
    with pytest.raises(DataError, match="outside"):
        source.open(Task(id="x", env="alfworld", split="train", ref="../../game.tw-pddl"))


def test_a_source_that_cannot_be_opened_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="ALFWORLD_DATA"):
        open_source("games")
    with pytest.raises(UsageError, match="no folder"):
        open_source("games", data_dir=tmp_path / "nowhere")
    with pytest.raises(UsageError, match="no game files"):
        open_source("games", data_dir=tmp_path)
    with pytest.raises(UsageError, match="builtin, games or textworld"):
        open_source("telepathy")
    monkeypatch.setenv("ALFWORLD_DATA", str(data_folder(tmp_path)))
    assert open_source("games").splits() == {"train": 2, "valid_seen": 1}
    assert isinstance(open_source("builtin", seed=3), BuiltinSource)


def test_an_unknown_split_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="train, valid_seen"):
        GamesSource(data_folder(tmp_path)).tasks("valid", 1)
    with pytest.raises(UsageError, match="train, evolve, valid, test"):
        BuiltinSource().tasks("valid_seen", 1)


def test_the_file_format_is_json_with_three_texts(tmp_path: Path) -> None:
    data = json.loads(write_game(tmp_path).read_text())
    del data["grammar"]
    (tmp_path / "game.tw-pddl").write_text(json.dumps(data))
    with pytest.raises(DataError, match="needs pddl_domain, pddl_problem and grammar"):
        load_game(tmp_path / "game.tw-pddl")
