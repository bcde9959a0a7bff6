"""`krill doctor RUN`: whatever happened to the files of a run is told, and what the journal holds is restored."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from krill_tui.cli.app import run
from krill_tui.engine.checkup import check_run
from krill_tui.engine.repair import repair_run
from krill_tui.engine.run_store import run_path

FILES = (
    "events.jsonl",
    "trajectories.jsonl",
    "skill_bank.json",
    "config.json",
    "report.md",
    "teacher_replies.jsonl",
)


@pytest.fixture
def whole(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Path:
    """A finished run of three phases."""
    common = ["--run", "r", "--display", "none"]
    out = str(tmp_path / "t.json")
    collected = ["collect", "--policy", "expert", "--episodes", "8", "--output", out, *common]
    assert run(collected) == 0
    assert run(["distill", "--teacher", "builtin", "--output", str(tmp_path / "b.json"), *common]) == 0
    evaluated = ["eval", "--policy", "expert", "--episodes", "4", *common]
    assert run(evaluated) == 0, capfd.readouterr().err
    capfd.readouterr()
    return run_path("r")


def doctor(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(["doctor", "r", *arguments])
    said = capfd.readouterr()
    return code, said.out, said.err


def test_a_whole_run_is_whole(whole: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
    code, out, _ = doctor(capfd)
    assert code == 0 and "nothing is damaged" in out and "12 episodes" in out
    assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before, "it only looks"
    code, out, _ = doctor(capfd, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["damaged"] == [] and facts["episodes"] == 12


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _zeroed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 64] = bytes(64)
    path.write_bytes(data)


def _replaced(path: Path) -> None:
    path.write_text('{"a": 1}\n')


@pytest.mark.parametrize("file", ["trajectories.jsonl", "skill_bank.json", "config.json"])
@pytest.mark.parametrize("damage", [Path.unlink, _empty, _zeroed, _replaced])
def test_what_the_journal_holds_is_restored(
    whole: Path, file: str, damage: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    kept = whole / file
    before = kept.read_bytes()
    damage(kept)
    code, out, err = doctor(capfd)
    assert code == 1 and f"damaged: {file}" in out and "--repair" in out, (out, err)
    code, out, _ = doctor(capfd, "--repair")
    assert code == 0 and "repaired: " in out and "nothing is damaged" in out
    if file == "config.json":
        assert json.loads(kept.read_bytes()) == json.loads(before)
    elif file == "trajectories.jsonl":
        assert sorted(kept.read_bytes().splitlines()) == sorted(before.splitlines())
    if damage in (_zeroed, _replaced):
        assert kept.with_name(f"{file}.damaged").exists(), "set aside, not deleted"
    out = str(kept.with_name("exported.json"))
    again = ["collect", "--policy", "expert", "--episodes", "8", "--output", out, "--run", "r"]
    assert run([*again, "--display", "none"]) == 0, capfd.readouterr().err


def test_a_line_of_the_journal_that_was_changed_is_noticed_and_the_rest_kept(
    whole: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    journal = whole / "events.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[5] = lines[5].replace(b'"', b"'", 3)
    journal.write_bytes(b"".join(lines))
    again = ["collect", "--run", "r", "--policy", "expert", "--display", "none"]
    assert run([*again, "--output", str(whole / "exported.json")]) == 2
    assert "line 6" in capfd.readouterr().err
    code, out, _ = doctor(capfd)
    assert code == 1 and "line 6" in out
    code, out, _ = doctor(capfd, "--repair")
    print(out)
    assert code == 0, out
    assert (whole / "events.jsonl.damaged").exists()


def test_a_run_that_is_not_there_and_a_repair_of_nothing_are_one_line(
    capfd: pytest.CaptureFixture[str],
) -> None:
    code, _, err = doctor(capfd)
    assert code == 2 and err.count("\n") == 1 and "there is no run 'r'" in err
    assert run(["doctor", "--repair"]) == 2
    assert "krill doctor RUN --repair" in capfd.readouterr().err


def test_no_damage_whatever_makes_it_fail(whole: Path, tmp_path: Path) -> None:
    rng = random.Random(0)
    for number in range(40):
        copy = tmp_path / f"copy-{number}"
        shutil.copytree(whole, copy)
        for _ in range(rng.randint(1, 3)):
            path = copy / rng.choice(FILES)
            if path.is_dir():
                continue
            data = bytearray(path.read_bytes() if path.is_file() else b"")
            place = rng.randrange(len(data) + 1)
            match rng.randrange(5):
                case 0:
                    del data[place:]
                case 1 if data:
                    data[min(place, len(data) - 1)] ^= 1 << rng.randrange(8)
                case 2:
                    data[place : place + 50] = rng.randbytes(50)
                case 3:
                    path.unlink(missing_ok=True)
                    path.symlink_to("nowhere")
                    continue
                case _:
                    path.unlink(missing_ok=True)
                    path.mkdir(exist_ok=True)
                    continue
            path.unlink(missing_ok=True)
            path.write_bytes(data)
        checkup = check_run(copy)
        if checkup.events and not (copy / "events.jsonl").is_symlink():
            repair_run(copy)
            left = [f for f in check_run(copy).damaged if f.repair]
            assert not left, left
        shutil.rmtree(copy)
