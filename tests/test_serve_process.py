"""`krill serve-env` as a process of its own: started, stopped, and killed while episodes are played."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from krill_tui.agent.collect import run_episodes
from krill_tui.agent.policies import ExpertPolicy
from krill_tui.agent.prompts import PromptOptions
from krill_tui.agent.rollout import EpisodeSpec, RolloutOptions
from krill_tui.cli.app import run
from krill_tui.envs.alfworld.source import BuiltinSource
from krill_tui.envs.remote import HttpSource
from krill_tui.errors import EnvironmentFailure
from krill_tui.events import schema as ev
from krill_tui.models.base import Sampling
from krill_tui.trajectory import StopReason, Task, Trajectory

ROOT = Path(__file__).parents[1]


@contextmanager
def server(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server process that answers, and its address."""
    command = [sys.executable, "-m", "krill_tui", "serve-env", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout and process.stderr
    try:
        line = process.stdout.readline()
        assert "http://127.0.0.1:" in line, process.stderr.read()
        yield process, line.split(" on ")[1].split(";")[0]
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


async def play(source: HttpSource, other: BuiltinSource, tasks: Sequence[Task], on_step) -> list[Trajectory]:
    """The tasks of both sources, all at once; `on_step` hears of every step."""
    specs = [
        EpisodeSpec(id=f"e{n}", number=n, task=task, seed=n, purpose="collect", with_skills=False)
        for n, task in enumerate(tasks)
    ]
    rollouts = await run_episodes(
        specs,
        lambda task: source.open(task) if task.id.startswith("http/") else other.open(task),
        ExpertPolicy(source.expert),
        RolloutOptions(40, PromptOptions(), Sampling()),
        concurrency=len(specs),
        emit=on_step,
        on_finished=lambda rollout: None,
    )
    return [rollout.trajectory for rollout in rollouts]


async def test_a_server_killed_in_mid_episode_ends_its_episodes_and_no_other() -> None:
    local = BuiltinSource(seed=4)
    with server("alfworld", "--port", "0", "--set", 'env.world_size="small"') as (process, url):
        remote = HttpSource(url)
        steps: dict[str, int] = {}
        interrupted: list[str] = []

        def on_step(event: object) -> None:
            if isinstance(event, ev.EpisodeInterrupted):
                interrupted.append(event.episode)
            if isinstance(event, ev.EpisodeStepped):
                steps[event.episode] = steps.get(event.episode, 0) + 1
                if len(steps) == 6 and min(steps.values()) >= 2:
                    process.send_signal(signal.SIGKILL)

        tasks = [*remote.tasks("train", 3), *local.tasks("train", 3)]
        trajectories = await play(remote, local, tasks, on_step)
    lost, kept = trajectories[:3], trajectories[3:]
    assert [t.stop_reason for t in lost] == [StopReason.ERROR] * 3
    assert all(t.error and url in t.error and "\n" not in t.error for t in lost)
    assert {*interrupted} == {"e0", "e1", "e2"}  # tried again first, which the others' answers did not need
    assert [t.stop_reason for t in kept] == [StopReason.SUCCESS] * 3


async def test_a_server_that_was_started_again_does_not_know_the_episode() -> None:
    with server("alfworld", "--port", "0", "--set", 'env.world_size="small"') as (process, url):
        source = HttpSource(url)
        environment = source.open(source.tasks("train", 1)[0])
        await environment.reset()
        process.send_signal(signal.SIGTERM)
        out, err = await asyncio.to_thread(process.communicate)
        assert (process.returncode, out, err) == (0, "stopped\n", "")
    port = url.rpartition(":")[2]
    with server("alfworld", "--port", port, "--set", 'env.world_size="small"'):
        with pytest.raises(EnvironmentFailure, match="the server answered 400: there is no such session"):
            await environment.step("look")
        assert (await environment.reset()).observation.startswith("-=")
    await environment.close()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["moon"], "there is no world 'moon'"),
        (["alfworld", "--port", "70000"], "--port"),
        (["alfworld", "--env", "webshop"], "contradicts"),
        (["alfworld", "--live"], "cannot be served again"),
        (["alfworld", "--backend", "http"], "cannot be served again"),
        (["alfworld", "--backend", "games"], "ALFWORLD_DATA"),
        (["alfworld", "--host", "no such host", "--port", "0"], "cannot listen on no such host:0"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert run(["serve-env", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_port_in_use_and_a_missing_extra_are_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert run(["serve-env", "alfworld", "--port", str(port), "--set", 'env.world_size="small"']) == 2
    assert f"cannot listen on 127.0.0.1:{port}: address already in use" in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "krill_tui.envs.serve.app", raising=False)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert run(["serve-env", "alfworld", "--port", "0"]) == 2
    assert "needs uvicorn, which is not installed (pip install 'krill-tui[serve]')" in capsys.readouterr().err
