"""The backend `textworld`: its processes, with our own engine behind the names of the genuine package."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from krill_tui.envs.alfworld.expert import AlfworldExpert
from krill_tui.envs.alfworld.genuine import GenuineEnvironment, TextworldSource
from krill_tui.envs.alfworld.source import GamesSource, open_source
from krill_tui.envs.base import StepResult
from krill_tui.errors import EnvironmentFailure, UsageError
from tests.alfworld_games import write_game

STAND_IN = """
import os, pathlib, time
from krill_tui.envs.alfworld.engine import AlfworldGame
from krill_tui.envs.alfworld.problem import load_game

print("what a package prints must not get into the replies")

class EnvInfos:
    def __init__(self, **asked):
        assert asked == {"won": True, "admissible_commands": True}

class Game:
    def __init__(self, path):
        self.game = AlfworldGame(load_game(pathlib.Path(path)))
    def reset(self):
        return self.state(self.game.reset())
    def step(self, command):
        if command == "crash":
            raise RuntimeError("out of\\n  order")
        if command.startswith("wait for "):
            while not os.path.exists(command.removeprefix("wait for ")):
                time.sleep(0.005)
        result = self.game.step(command)
        return self.state(result), result.reward, result.done
    def state(self, result):
        print("noise")
        return {"feedback": result.observation, "admissible_commands": list(result.admissible), "won": result.won}
    def close(self):
        pass

def start(path, infos, wrappers):
    return Game(path)
"""


@pytest.fixture
def games(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder of four games; the names of the genuine package lead to the stand-in."""
    package = tmp_path / "package"
    wrappers = package / "alfworld" / "agents" / "environment"
    wrappers.mkdir(parents=True)
    (wrappers / "alfred_tw_env.py").write_text("class AlfredDemangler:\n    pass\n")
    (package / "textworld.py").write_text(STAND_IN)
    monkeypatch.setenv("PYTHONPATH", str(package))
    monkeypatch.syspath_prepend(package)
    root = tmp_path / "data"
    for name in "abcd":
        folder = root / "valid_seen" / "pick_heat_then_place_in_recep-Mug-None-CounterTop-1" / name
        folder.mkdir(parents=True)
        write_game(folder)
    return root


def environments(source: TextworldSource, number: int) -> list[GenuineEnvironment]:
    opened = [source.open(task) for task in source.tasks("valid_seen", number)]
    return [env for env in opened if isinstance(env, GenuineEnvironment)]


async def play(
    reset: Callable[[], Awaitable[StepResult]], step: Callable[[str], Awaitable[StepResult]]
) -> list[StepResult]:
    """What the expert is told until the end, and after it."""
    expert = AlfworldExpert()
    results = [await reset()]
    while not results[-1].done and len(results) < 60:
        results.append(await step(expert.act(results[-1])[1]))
    return [*results, await step("look")]


async def test_several_episodes_of_two_processes_are_played_as_in_process_and_leave_nothing(
    games: Path,
) -> None:
    source = TextworldSource(games, processes=2)
    envs = environments(source, 4)
    plays = await asyncio.gather(*(play(env.reset, env.step) for env in envs))
    assert [process.episodes for process in source.pool.processes] == [2, 2]
    pids = [process.pid for process in source.pool.processes]
    ours = GamesSource(games)
    for env, told in zip(envs, plays, strict=True):
        known = ours.open(env.task)
        assert told == await play(known.reset, known.step)
        assert told[-1].won
        assert (env.task.description, env.task.category) == (known.task.description, "Heat")
    for env in envs:
        await env.close()
        await env.close()
    assert source.pool.processes == []
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid or 0, 0)


async def test_a_process_that_dies_fails_its_episodes_and_no_others(games: Path) -> None:
    source = TextworldSource(games, processes=2)
    doomed, other, sibling, late = environments(source, 4)
    for env in (doomed, other, sibling):
        await env.reset()
    process = source.pool.processes[0]
    os.kill(process.pid or 0, signal.SIGKILL)
    for env in (doomed, sibling):
        with pytest.raises(EnvironmentFailure, match="died"):
            await env.step("look")
    assert (await other.step("inventory")).observation == "You are not carrying anything."
    await late.reset()
    assert process not in source.pool.processes
    for env in (doomed, other, sibling, late):
        await env.close()
    assert source.pool.processes == []


async def test_what_the_package_raises_fails_one_episode_in_one_line(games: Path) -> None:
    source = TextworldSource(games, processes=1)
    one, other = environments(source, 2)
    await one.reset()
    await other.reset()
    with pytest.raises(EnvironmentFailure, match=r"RuntimeError: out of order$"):
        await one.step("crash")
    assert (await other.step("inventory")).observation == "You are not carrying anything."
    await one.close()
    assert (await other.step("look")).observation.startswith("You are in the middle of a room.")
    await other.close()


async def test_a_slow_step_stops_neither_the_event_loop_nor_later_answers(
    games: Path, tmp_path: Path
) -> None:
    source = TextworldSource(games, processes=1)
    slow, patient = environments(source, 2)
    await slow.reset()
    await patient.reset()
    signal_file = tmp_path / "go on"
    waiting = asyncio.create_task(slow.step(f"wait for {signal_file}"))
    behind = asyncio.create_task(patient.step("inventory"))
    done, _ = await asyncio.wait([waiting, behind], timeout=0.05)
    assert not done
    waiting.cancel()
    await asyncio.wait([waiting])
    signal_file.touch()
    assert (await behind).observation == "You are not carrying anything."
    await slow.close()
    await patient.close()


async def test_a_step_before_the_reset_is_refused_and_closing_then_is_nothing(games: Path) -> None:
    (env,) = environments(TextworldSource(games), 1)
    with pytest.raises(EnvironmentFailure, match="not reset"):
        await env.step("look")
    await env.close()


def test_a_missing_package_is_one_line_that_says_what_to_install(
    games: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert open_source("textworld", data_dir=games).splits() == {"valid_seen": 4}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"needs the package textworld.*krill-tui\[alfworld\]"):
        open_source("textworld", data_dir=games)
