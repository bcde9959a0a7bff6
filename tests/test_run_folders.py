"""Run folders: who may write to one, what is left in it, how its run ended, and what else may lie beside it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from krill_tui import paths
from krill_tui.cli.app import run
from krill_tui.engine.run_store import has_writer, list_runs, run_path
from krill_tui.engine.session import Session
from krill_tui.engine.state import RunState
from krill_tui.errors import RunLockedError
from krill_tui.events import schema as ev
from krill_tui.events.journal import Journal, last_outcome, read_journal
from krill_tui.io.files import remove_unfinished
from tests.test_session import config, seen, session


async def a_completed_run(name: str = "run") -> Path:
    async with session(name) as opened:
        opened.launch(["collect"])
        assert await opened.wait() == "completed"
        return opened.store.path


async def test_a_completed_run_that_is_opened_and_closed_again_is_completed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = await a_completed_run()
    async with session() as opened:
        assert opened.state.outcome == "completed"
        opened.add_skill(name="Doors", principle="open them")
        opened.pause()
    assert last_outcome(path / "events.jsonl")[0] == "completed"
    assert run(["runs", "--json"]) == 0
    [fact] = json.loads(capfd.readouterr().out)
    assert fact["outcome"] == "completed"
    assert run(["report", "run", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["outcome"] == "completed"


async def test_work_that_was_broken_off_takes_the_outcome_back() -> None:
    path = await a_completed_run()
    with_phase = Journal(path / "events.jsonl")
    with_phase.append(ev.PhaseStarted(phase="distill", title="x", total=1, unit="calls"))
    with_phase.close()
    state = RunState()
    for event in read_journal(path / "events.jsonl"):
        state.apply(event)
    assert last_outcome(path / "events.jsonl")[0] == state.outcome == ""


def test_the_end_of_a_journal_is_read_without_the_whole_of_it(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    journal = Journal(path)
    journal.append(ev.RunFinished(outcome="failed", time=7.0))
    for number in range(400):
        journal.append(ev.Noted(message=f"{number} " + "x" * 700, time=8.0))
    journal.close()
    with path.open("ab") as file:
        file.write(b'{"kind": "torn')
    assert last_outcome(path) == ("failed", 8.0)
    path.write_bytes(b"nonsense\n")
    assert last_outcome(path)[0] == "damaged"
    path.write_bytes(b"")
    assert last_outcome(path)[0] == "damaged"


async def test_an_odd_folder_is_left_out_and_disables_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    path = await a_completed_run()
    shutil.copytree(path, path.with_name("run (copy)"))
    (path.with_name("folder") / "events.jsonl").mkdir(parents=True)
    (path.with_name("dangling")).symlink_to("nowhere")
    (no_text := paths.runs_dir() / os.fsdecode(b"\xff")).mkdir()
    shutil.copy(path / "events.jsonl", no_text)
    assert list_runs() == ["run"]
    assert run(["runs"]) == 0
    out, err = capfd.readouterr()
    assert "run" in out and "left out" in err and "'run (copy)'" in err and "Traceback" not in err
    assert (
        run(["rl", "--display", "none", "--skill-bank", str(path / "skill_bank.json"), "--run", "new"]) == 2
    )
    assert "no name" not in capfd.readouterr().err
    assert run(["report", str(path.with_name("run (copy)"))]) == 0, "it can still be named by its path"


async def test_a_second_writer_is_refused_though_the_lock_file_was_removed() -> None:
    async with session("busy") as opened:
        (opened.store.path / ".lock").unlink()
        assert has_writer(opened.store.path)
        code = (
            "import sys; from krill_tui.cli.app import run; sys.exit(run(['collect', '--policy', 'expert',"
            " '--episodes', '2', '--run', 'busy', '--display', 'none', '--output', 'o.json']))"
        )
        command, folder = [sys.executable, "-c", code], opened.store.path.parent
        result = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, cwd=folder)
        assert result.returncode == 1 and "is being written by another process" in result.stderr
        with pytest.raises(RunLockedError):
            await Session.open("busy", config())
    assert not has_writer(run_path("busy"))


async def test_asking_for_the_writer_makes_nothing() -> None:
    path = await a_completed_run()
    (path / ".lock").unlink()
    before = sorted(p.name for p in path.iterdir())
    assert not has_writer(path)
    assert sorted(p.name for p in path.iterdir()) == before


@pytest.mark.parametrize("phases", [["collect"], ["evaluate"], ["collect", "distill"]])
async def test_a_run_that_is_deleted_while_it_works_ends_in_one_line_and_is_not_half_made_again(
    phases: list[str],
) -> None:
    opened = await Session.open("gone", config(env={"concurrency": 2}))
    opened.launch(phases)
    await seen(opened, lambda e: e.kind == "episode_finished")
    shutil.rmtree(opened.store.path)
    assert await opened.wait() == "failed"
    await opened.close()
    assert "deleted" in str(opened.error) and "\n" not in str(opened.error)
    assert not opened.store.path.exists()


async def test_leftovers_of_a_killed_writer_are_removed_when_the_run_is_opened() -> None:
    path = await a_completed_run()
    (path / ".skill_bank.json.abc123.tmp").write_text("half")
    (path / ".skill_bank.copy").write_text("half")
    (path / "checkpoints" / ".rl-3.partial" / "policy").mkdir(parents=True)
    (path / "checkpoints" / ".rl-2.old").mkdir()
    (path / "checkpoints" / "rl-2").mkdir()
    (path / "checkpoints" / ".rl-1.old").mkdir()
    async with session():
        assert [p.name for p in path.rglob(".*")] == [".lock"]
    assert sorted(p.name for p in (path / "checkpoints").iterdir()) == ["rl-1", "rl-2"], (
        "a replaced one comes back"
    )


def test_unfinished_files_of_others_stay(tmp_path: Path) -> None:
    for name in (".lock", ".hidden", "x.tmp"):
        (tmp_path / name).write_text("")
    assert remove_unfinished(tmp_path) == []
    assert remove_unfinished(tmp_path / "nowhere") == []
    assert all((tmp_path / name).exists() for name in (".lock", ".hidden", "x.tmp"))


def test_a_run_in_a_folder_that_cannot_be_written_is_refused_in_one_line(
    capfd: pytest.CaptureFixture[str],
) -> None:
    paths.runs_dir().mkdir(parents=True)
    (paths.runs_dir() / "x").write_text("a file")
    assert run(["collect", "--policy", "expert", "--run", "x", "--display", "none"]) == 2
    assert capfd.readouterr().err.count("\n") <= 2
