"""The engine says what the genuine one says, and nothing but admissible commands changes a game."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krill_tui.envs.alfworld.engine import AlfworldGame
from krill_tui.envs.alfworld.problem import load_game
from krill_tui.envs.alfworld.worlds import build_world
from krill_tui.errors import EnvironmentFailure
from tests.alfworld_games import COMMA, PROBLEM, domain, grammar, newer_grammar, write_game

HEAT_THE_MUG = [
    "go to cabinet 2",
    "open cabinet 2",
    "take mug 1 from cabinet 2",
    "go to microwave 1",
    "heat mug 1 with microwave 1",
    "go to countertop 1",
    "put mug 1 in/on countertop 1",
]


def play(path: Path, *commands: str) -> list[str]:
    """The observations of a whole play."""
    game = AlfworldGame(load_game(path))
    return [game.reset().observation, *(game.step(command).observation for command in commands)]


def test_recorded_play_of_the_genuine_engine_is_repeated_byte_for_byte(
    shared_dir: Path, games_dir: Path
) -> None:
    recordings = shared_dir / "alfworld" / "recordings_valid_seen.jsonl.gz"
    if not recordings.exists():
        pytest.skip("no recordings in the shared folder")
    steps = 0
    with gzip.open(recordings, "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            game = AlfworldGame(load_game(games_dir / record["game"]))
            for number, step in enumerate(record["steps"]):
                said = game.reset() if step["action"] is None else game.step(step["action"])
                told = (said.observation, list(said.admissible), said.reward, said.done, said.won)
                genuine = (
                    step["observation"],
                    step["admissible_commands"],
                    step["score"],
                    step["done"],
                    step["won"],
                )
                assert told == genuine, f"{record['game']} step {number}: {step['action']!r}"
                steps += 1
    assert steps > 2000


def test_a_game_is_told_from_the_first_look_to_the_win(tmp_path: Path) -> None:
    assert play(write_game(tmp_path), *HEAT_THE_MUG) == [
        "-= Welcome to TextWorld, ALFRED! =-\n\nYou are in the middle of a room. Looking quickly around you, "
        "you see a cabinet 2, a cabinet 1, a countertop 1, a fridge 1, a microwave 1, and a sinkbasin 1.\n\n"
        "Your task is to: heat some mug and put it in countertop.",
        "You arrive at loc 5. The cabinet 2 is closed.",
        "You open the cabinet 2. The cabinet 2 is open. In it, you see a mug 1.",
        "You pick up the mug 1 from the cabinet 2.",
        "You arrive at loc 2. The microwave 1 is closed.",
        "You heat the mug 1 using the microwave 1.",
        "You arrive at loc 4. On the countertop 1, you see a apple 1, a desklamp 1, and a knife 1.",
        "You put the mug 1 in/on the countertop 1.",
    ]


def test_only_the_winning_step_is_rewarded_and_its_result_is_repeated(tmp_path: Path) -> None:
    game = AlfworldGame(load_game(write_game(tmp_path)))
    game.reset()
    results = [game.step(command) for command in HEAT_THE_MUG]
    assert [(r.reward, r.done, r.won) for r in results[:-1]] == [(0.0, False, False)] * 6
    assert (results[-1].reward, results[-1].done, results[-1].won) == (1.0, True, True)
    assert game.step("go to fridge 1") == results[-1]


def test_putting_down_an_unheated_mug_does_not_win(tmp_path: Path) -> None:
    game = AlfworldGame(load_game(write_game(tmp_path)))
    game.reset()
    for command in [*HEAT_THE_MUG[:3], HEAT_THE_MUG[5]]:
        game.step(command)
    result = game.step(HEAT_THE_MUG[6])
    assert result.observation == "You put the mug 1 in/on the countertop 1."
    assert not result.won


def test_a_game_won_in_another_order_of_states_needs_the_last_one(tmp_path: Path) -> None:
    game = AlfworldGame(load_game(write_game(tmp_path)))
    game.reset()
    detour = ["go to fridge 1", "cool mug 1 with fridge 1", HEAT_THE_MUG[5]]
    for command in [*HEAT_THE_MUG[:5], *detour]:
        game.step(command)
    result = game.step(HEAT_THE_MUG[6])
    assert result.observation == "You put the mug 1 in/on the countertop 1."
    assert not result.won


def test_what_can_be_done_follows_from_where_one_is_and_what_one_holds(tmp_path: Path) -> None:
    game = AlfworldGame(load_game(write_game(tmp_path)))
    travel = {f"go to {place} 1" for place in ("countertop", "fridge", "microwave", "sinkbasin")}
    cabinets = {"go to cabinet 1", "go to cabinet 2"}
    always = {"look", "inventory", "help"}
    assert set(game.reset().admissible) == travel | cabinets | always
    # Two receptacles in one place: one does not go to either of them from there.
    here = {"examine cabinet 1", "examine cabinet 2"}
    assert set(game.step("go to cabinet 1").admissible) == travel | always | here | {"open cabinet 2"}
    opened = travel | always | here | {"close cabinet 2", "take mug 1 from cabinet 2"}
    assert set(game.step("open cabinet 2").admissible) == opened
    held = set(game.step("take mug 1 from cabinet 2").admissible) - opened
    assert held == {"examine mug 1", "put mug 1 in/on cabinet 1", "put mug 1 in/on cabinet 2"}
    assert "clean mug 1 with sinkbasin 1" in game.step("go to sinkbasin 1").admissible
    assert game.step("go to fridge 1").admissible == tuple(sorted(game.step("look").admissible))


def test_only_a_knife_slices_and_only_what_lies_there(tmp_path: Path) -> None:
    game = AlfworldGame(load_game(write_game(tmp_path)))
    game.reset()
    assert not any(command.startswith("slice") for command in game.step("go to countertop 1").admissible)
    assert "slice apple 1 with knife 1" in game.step("take knife 1 from countertop 1").admissible
    assert game.step("slice apple 1 with knife 1").observation == "You sliced the apple 1 with the knife 1."
    game.step("put knife 1 in/on countertop 1")
    game.step("take apple 1 from countertop 1")
    assert game.step("examine apple 1").observation == "This is a sliced apple 1."


def test_the_room_is_named_only_before_the_first_step(tmp_path: Path) -> None:
    said = play(write_game(tmp_path), "look", "go to cabinet 1", "look")
    assert said[1] == "You are in the middle of a room. Looking quickly around you, you see nothing."
    assert said[3] == "You are facing the cabinet 2, and cabinet 1. Next to it, you see nothing."


def test_a_thing_moved_within_one_place_is_seen_next_to_it(tmp_path: Path) -> None:
    moved = [*HEAT_THE_MUG[:3], "put mug 1 in/on cabinet 1", "look"]
    said = play(write_game(tmp_path), *moved)
    assert said[-1] == "You are facing the cabinet 2, and cabinet 1. Next to it, you see a mug 1."


def test_the_lamp_is_turned_on_again_and_again(tmp_path: Path) -> None:
    said = play(write_game(tmp_path), "go to countertop 1", "use desklamp 1", "use desklamp 1")
    assert said[2:] == ["You turn on the desklamp 1."] * 2


def test_white_space_around_a_command_is_ignored_and_any_other_change_is_refused(tmp_path: Path) -> None:
    game = AlfworldGame(load_game(write_game(tmp_path)))
    game.reset()
    assert game.step("\t inventory\n").observation == "You are not carrying anything."
    for wrong in ("", "Inventory", "go  to fridge 1", "look.", "open fridge 1", "go to fridge\xa01"):
        assert game.step(wrong).observation == "Nothing happens."


def test_the_newer_wording_comes_from_the_file(tmp_path: Path) -> None:
    newer = grammar().replace("put {o} in/on {r}", "move {o} to {r}")
    newer = newer.replace(
        "You put the {o.name} in/on the {r.name}.", "You move the {o.name} to the {r.name}."
    )
    newer = newer.replace("{lend.name}", "{r.name}")
    commands = [*HEAT_THE_MUG[:-1], "move mug 1 to countertop 1"]
    said = play(write_game(tmp_path, grammar=newer), *commands, "help")
    assert said[1] == "You arrive at cabinet 2. The cabinet 2 is closed."
    assert said[7] == "You move the mug 1 to the countertop 1."


def test_the_newer_grammar_with_rules_inside_its_actions_is_told(tmp_path: Path) -> None:
    path = write_game(tmp_path, grammar=newer_grammar())
    lamp = ["use desklamp 1", "use desklamp 1", "look", "put mug 1 in/on countertop 1"]
    game = AlfworldGame(load_game(path))
    first = game.reset()
    assert "you see a cabinet 2, a cabinet 1, a countertop 1, a fridge 1," in first.observation
    said = [game.step(command).observation for command in [*HEAT_THE_MUG[:-1], *lamp]]
    assert said == [
        "You arrive at cabinet 2. The cabinet 2 is closed.",
        "You open the cabinet 2. The cabinet 2 is open. In it, you see a mug 1.",
        "You pick up the mug 1 from the cabinet 2.",
        "You arrive at microwave 1. The microwave 1 is closed.",
        "You heat the mug 1 using the microwave 1.",
        "You arrive at countertop 1. On the countertop 1, you see a apple 1, a desklamp 1, and a knife 1.",
        "You turn on the desklamp 1.",
        "You turn on the desklamp 1.",
        "You are facing the countertop 1. Next to it, you see nothing.",
        "Nothing happens.",
    ]
    last = game.step("move mug 1 to countertop 1")
    assert (last.observation, last.won) == ("You move the mug 1 to the countertop 1.", True)


def test_help_is_said_without_its_leading_line_break(tmp_path: Path) -> None:
    assert play(write_game(tmp_path), "help")[1] == "You can look.\n"


def test_where_things_are_cleaned_is_read_from_the_domain(tmp_path: Path) -> None:
    both = (
        "(and (cleanable ?o) (or (receptacletype ?r sinkbasintype) (receptacletype ?r fridgetype))"
        " (atlocation ?a ?l) (receptacleatlocation ?r ?l) (holds ?a ?o))"
    )
    path = write_game(tmp_path, pddl_domain=domain(cleanobject=both))
    said = play(path, *HEAT_THE_MUG[:3], "go to fridge 1", "clean mug 1 with fridge 1")
    assert said[-1] == "You clean the mug 1 using the fridge 1."


def test_a_comma_in_the_domain_decides_whether_things_are_examined_where_they_lie(tmp_path: Path) -> None:
    commands = ["go to countertop 1", "examine apple 1"]
    assert play(write_game(tmp_path), *commands)[-1] == "Nothing happens."
    mended = domain().replace(COMMA, COMMA.replace(",", ""))
    assert mended != domain()
    said = play(write_game(tmp_path, pddl_domain=mended), *commands)
    assert said[-1] == "There's nothing special about apple 1."


def test_a_game_can_start_with_something_in_hand(tmp_path: Path) -> None:
    held = PROBLEM.replace(
        "(inReceptacle Mug_bar_1 Cabinet_bar_1)", "(holds agent1 Mug_bar_1) (holdsAny agent1)"
    )
    assert play(write_game(tmp_path, pddl_problem=held), "inventory")[1] == "You are carrying: a mug 1."


def test_a_step_before_the_reset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailure, match="not reset"):
        AlfworldGame(load_game(write_game(tmp_path))).step("look")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.text(max_size=30), st.binary(max_size=30)), max_size=8), st.integers(0, 40))
def test_no_string_raises_and_none_but_an_admissible_one_changes_the_game(
    actions: list[str | bytes], index: int
) -> None:
    game = AlfworldGame(build_world("small", "train", 5, index)[0])
    before = game.reset()
    for action in actions:
        command = action if isinstance(action, str) else action.decode("latin-1")
        result = game.step(command)
        if command.strip() in before.admissible:
            before = result
        else:
            assert result.observation == "Nothing happens."
            assert result.admissible == before.admissible
            assert (result.reward, result.done) == (0.0, False)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 30), st.lists(st.integers(0, 200), min_size=1, max_size=40))
def test_play_is_a_function_of_the_world_and_the_commands(index: int, choices: list[int]) -> None:
    one = AlfworldGame(build_world("full", "valid", 3, index)[0])
    two = AlfworldGame(build_world.__wrapped__("full", "valid", 3, index)[0])
    result, other = one.reset(), two.reset()
    for choice in choices:
        assert result == other
        assert list(result.admissible) == sorted(set(result.admissible))
        command = result.admissible[choice % len(result.admissible)]
        result, other = one.step(command), two.step(command)
