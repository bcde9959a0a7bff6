"""`krill play`: by hand and from a script."""

from __future__ import annotations

import gzip
import io
import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from krill_tui.cli.app import run
from krill_tui.cli.play import read_script
from krill_tui.errors import DataError

Play = Callable[..., list[dict[str, Any]]]
KEYS = ["step", "action", "observation", "admissible", "reward", "done", "won"]


@pytest.fixture
def play(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Play:
    """Play a script and give the printed objects."""

    def play(actions: list[str], *arguments: object) -> list[dict[str, Any]]:
        script = tmp_path / "script.txt"
        script.write_text("".join(json.dumps(action) + "\n" for action in actions), encoding="utf-8")
        code = run(["play", *map(str, arguments), "--script", str(script), "--json"])
        out, err = capfd.readouterr()
        assert (code, err) == (0, "")
        return [json.loads(line) for line in out.splitlines()]

    return play


@pytest.fixture
def by_hand(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Play by hand with these lines typed, then the end of input; gives what was printed."""

    def by_hand(typed: str) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        assert run(["play", "--mock", "--seed", "3"]) == 0
        out, err = capfd.readouterr()
        assert err == ""
        return out

    return by_hand


def test_a_script_prints_one_object_a_step(play: Play) -> None:
    steps = play(["inventory", "dance wildly"], "--mock", "--seed", 3)
    assert [list(step) for step in steps] == [KEYS] * 3
    assert [(step["step"], step["action"]) for step in steps] == [
        (0, None),
        (1, "inventory"),
        (2, "dance wildly"),
    ]
    assert "Your task is to: " in steps[0]["observation"]
    assert steps[1]["observation"] == "You are not carrying anything."
    assert steps[2]["observation"] == "Nothing happens."
    for step in steps:
        assert step["admissible"] == sorted(step["admissible"])
        assert (step["reward"], step["done"], step["won"]) == (0.0, False, False)


def test_the_same_seed_gives_the_same_game_and_another_number_another(play: Play) -> None:
    first = play([], "--mock", "--seed", 3)
    assert play([], "--mock", "--seed", 3) == first
    assert play([], "--mock", "--seed", 3, "--number", 2) != first


def test_without_json_a_script_is_told_in_words(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    script = tmp_path / "script.txt"
    script.write_text('"inventory"\n', encoding="utf-8")
    assert run(["play", "--mock", "--script", str(script)]) == 0
    assert "> inventory\nYou are not carrying anything.\n" in capfd.readouterr().out


def test_genuine_games_say_what_was_recorded(play: Play, shared_dir: Path, games_dir: Path) -> None:
    recordings = shared_dir / "alfworld" / "recordings_valid_seen.jsonl.gz"
    if not recordings.exists():
        pytest.skip("no recordings in the shared folder")
    with gzip.open(recordings, "rt", encoding="utf-8") as file:
        played = [json.loads(line) for line in islice(file, 0, 60, 20)]
    for recording in played:
        game = games_dir / recording["game"]
        assert game.exists()
        steps = play(
            [step["action"] for step in recording["steps"][1:]], "--backend", "games", "--game", game
        )
        for said, expected in zip(steps, recording["steps"], strict=True):
            assert said["observation"] == expected["observation"]
            assert said["admissible"] == expected["admissible_commands"]
            assert (said["done"], said["won"]) == (expected["done"], expected["won"])


def test_a_person_plays_by_number_and_by_command(by_hand: Callable[[str], str]) -> None:
    out = by_hand("1\ninventory\n")
    assert "You are not carrying anything." in out
    assert "not won after 2 steps" in out


def test_help_from_the_expert_wins_the_game(by_hand: Callable[[str], str]) -> None:
    typed = ""
    for _ in range(50):
        out = by_hand(typed + "hint\nquit\n")
        if "hint: " not in out:
            break
        typed += out.rpartition("hint: ")[2].partition(" (")[0].partition("\n")[0] + "\n"
    assert by_hand(typed).endswith(f"won after {typed.count(chr(10))} steps\n")
    assert "not won" not in by_hand(typed)


def test_a_number_that_is_not_listed_is_no_step(by_hand: Callable[[str], str]) -> None:
    out = by_hand("0\n9999\nquit\n")
    assert out.count("there are commands 1 to ") == 2
    assert "not won after 0 steps" in out


def test_the_end_of_input_ends_the_game_quietly(by_hand: Callable[[str], str]) -> None:
    assert by_hand("").endswith("not won after 0 steps\n")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("look\n", "line 1"),
        ('"look"\n3\n', "line 2"),
        ('"look"\n\n["a"]\n', "line 3"),
        ('"look\n', "line 1"),
    ],
)
def test_a_script_line_that_is_no_action_is_named(tmp_path: Path, text: str, said: str) -> None:
    script = tmp_path / "script.txt"
    script.write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=f"{said} should be one action as a JSON string"):
        read_script(script)


def test_actions_keep_their_spelling(tmp_path: Path) -> None:
    script = tmp_path / "script.txt"
    actions = ["  look ", "", "é\u2028x", "a\nb"]
    script.write_text(
        "\r\n".join(json.dumps(a, ensure_ascii=False) for a in actions) + "\n\n", encoding="utf-8"
    )
    assert read_script(script) == actions


def test_a_damaged_game_is_one_line(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    game = tmp_path / "game.tw-pddl"
    game.write_text('{"pddl_domain": "(define', encoding="utf-8")
    assert run(["play", "--game", str(game)]) == 2
    err = capfd.readouterr().err
    assert "game.tw-pddl" in err
    assert len(err.splitlines()) == 1
