"""`krill play`: by hand and from a script."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import os
import pty
import select
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from krill_tui.cli.app import run
from krill_tui.cli.by_hand import Game, completer, play_by_hand
from krill_tui.cli.play import read_script
from krill_tui.envs.alfworld.source import open_source
from krill_tui.envs.base import StepResult
from krill_tui.errors import DataError, EnvironmentFailure
from krill_tui.skills.formats.trajectories import load_trajectories
from krill_tui.trajectory import StopReason, Task
from tests.worlds import Corridor, task

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


def test_a_step_taken_back_leaves_the_game_as_it_was(by_hand: Callable[[str], str]) -> None:
    straight = by_hand("1\nhint\n2\n").partition("quit (or ctrl-d) ends.")[2]
    roundabout = by_hand("1\nlook\ninventory\nundo\nundo\nhint\n2\n")
    assert "taken back: inventory" in roundabout and "taken back: look" in roundabout
    tail = "hint: " + straight.partition("hint: ")[2]
    assert tail.count("> ") == 2 and roundabout.endswith(tail)


def test_there_is_nothing_to_take_back_before_the_first_step(by_hand: Callable[[str], str]) -> None:
    assert "there is no step to take back" in by_hand("undo\n")


def test_a_lost_move_of_the_last_step_can_be_taken_back_after_a_win() -> None:
    with asyncio.Runner() as runner:
        source = open_source("builtin", data_dir=None, size="small", seed=3)
        game = Game(source, source.tasks("train", 1, seed=3)[0])
        runner.run(game.reset())
        while not game.result.done:
            runner.run(game.step(game.hint()[1]))
        won, steps = game.trajectory(), len(game.steps)
        said = game.results[-2]
        runner.run(game.undo())
        assert game.result == said and len(game.steps) == steps - 1
        assert game.trajectory().stop_reason is StopReason.CANCELLED
        runner.run(game.step(game.hint()[1]))
        assert game.trajectory() == won and won.success
        runner.run(game.close())


class Doors:
    """A source of corridors; each later one is `growing` doors longer, so a second visit tells another story."""

    env, backend = "alfworld", "test"

    def __init__(self, growing: int = 0, breaks_at: int | None = None) -> None:
        self.opened: list[Corridor] = []
        self._growing, self._breaks_at = growing, breaks_at

    def splits(self) -> dict[str, int]:
        return {"train": 1}

    def tasks(self, split: str, count: int, *, seed: int = 0) -> list[Task]:
        return [task()]

    def open(self, task: Task) -> Corridor:
        self.opened.append(Corridor(task, 3 + self._growing * len(self.opened), self._breaks_at))
        return self.opened[-1]

    def expert(self, hints: object = None) -> Doorman:
        return Doorman()

    def content_hash(self) -> str:
        return ""


class Doorman:
    def act(self, result: StepResult) -> tuple[str, str]:
        return "[bold]because[/bold]\x1b[2J", result.admissible[0]


def test_a_world_that_does_not_repeat_itself_keeps_the_game_where_it_is() -> None:
    source = Doors(growing=1)
    with asyncio.Runner() as runner:
        game = Game(source, task())
        runner.run(game.reset())
        runner.run(game.step("open door 1"))
        with pytest.raises(EnvironmentFailure, match="does not repeat itself"):
            runner.run(game.undo())
        assert (len(game.steps), game.result.observation) == (1, "Door 1 is open.")
        runner.run(game.step("open door 2"))
        assert game.result.observation == "Door 2 is open."
        runner.run(game.close())
    assert all(corridor.closed for corridor in source.opened)


def test_a_world_that_breaks_ends_the_game_and_what_was_played_is_saved(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("1\n2\n"))
    source = Doors(breaks_at=2)
    with asyncio.Runner() as runner, pytest.raises(EnvironmentFailure, match="the corridor collapsed"):
        play_by_hand(runner, source, task(), tmp_path / "kept.json")
    assert source.opened[0].closed and "not won after 1 steps" in capfd.readouterr().out
    (kept,) = load_trajectories(tmp_path / "kept.json")
    assert [step.action for step in kept.steps] == ["open door 1"]


def test_hostile_text_is_shown_as_it_is(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hostile(Corridor):
        async def reset(self) -> StepResult:
            return StepResult("[red]a\x1b[2Jroom\u202e\r\n\x9b1mnext", ("[/]\x1b]0;x\x07", "look"))

    source = Doors()
    monkeypatch.setattr(source, "open", Hostile)
    monkeypatch.setattr("sys.stdin", io.StringIO("hint\nsave /nowhere/\x1b[31m/f.json\n"))
    with asyncio.Runner() as runner:
        play_by_hand(runner, source, task(), None)
    out = capfd.readouterr().out
    assert "[red]aroom" in out and "next" in out and "1 [/]\n" in out
    assert "([bold]because[/bold])" in out
    assert all(c.isprintable() or c == "\n" for c in out)


def test_an_episode_played_by_hand_is_saved_once_under_a_name(
    by_hand: Callable[[str], str], tmp_path: Path
) -> None:
    path, taken = tmp_path / "mine.json", tmp_path / "taken.json"
    taken.write_text("[]")
    out = by_hand(f"1\nsave {path}\ndance\nsave {path}\nsave {taken}\nsave {tmp_path}/no\x00where\n")
    assert "saved " in out and "taken.json exists already" in out and taken.read_text() == "[]"
    (played,) = load_trajectories(path)
    assert [(s.valid, s.author) for s in played.steps] == [(True, "human"), (False, "human")]
    assert (played.policy, played.stop_reason) == ("human", StopReason.CANCELLED)
    assert played.steps[0].action == played.steps[0].admissible[0] and played.category and played.task


def test_save_at_the_end_does_not_write_over_a_file(
    capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "f.json").write_text("[]")
    assert run(["play", "--mock", "--save", str(tmp_path / "f.json")]) == 2
    assert "exists already" in capfd.readouterr().err


def test_completion_offers_commands_and_words_but_no_control_characters() -> None:
    complete = completer(lambda: ("go to shelf 1", "go to\x1b[2J", "search[<your query>]"))
    assert [complete("go", n) for n in range(2)] == ["go to shelf 1", None]
    assert [complete("s", n) for n in range(3)] == ["search[", "save", None]


_IN_OWN_TERMINAL = """
import fcntl, runpy, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
sys.argv = ["krill", "play", "--mock", "--seed", "3"]
runpy.run_module("krill_tui", run_name="__main__", alter_sys=True)
"""


def test_in_a_terminal_the_tab_key_completes_and_ctrl_c_ends_quietly() -> None:
    pytest.importorskip("readline")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", _IN_OWN_TERMINAL],
        cwd=Path(__file__).parents[1],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm"},
    ) as process:
        os.close(theirs)
        terminal = _Terminal(ours)
        try:
            terminal.until("\n> ")
            os.write(ours, b"inv\t\n")
            terminal.until("carrying anything")
            terminal.until("\n> ")
            # readline may miss a signal that comes just before it waits for a key: press until it is heard.
            while process.poll() is None:
                os.write(ours, b"\x03")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(2)
            assert "not won after 1 steps" in terminal.until("")
            assert process.returncode == 0
        finally:
            process.kill()
            os.close(ours)


class _Terminal:
    """Reads up to a text and keeps the rest: what is printed may come in pieces of any size."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._unread = ""

    def until(self, text: str) -> str:
        """What is printed up to and with `text`, or to the end where it is empty."""
        while not text or text not in self._unread:
            assert select.select([self._descriptor], [], [], 30)[0], self._unread
            try:
                new = os.read(self._descriptor, 65536)
            except OSError:
                break
            if not new:
                break
            self._unread += new.decode(errors="replace").replace("\r", "")
        end = self._unread.index(text) + len(text) if text and text in self._unread else len(self._unread)
        said, self._unread = self._unread[:end], self._unread[end:]
        return said


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
