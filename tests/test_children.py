"""Child processes: nothing of the working directory runs in them, no secret reaches them, none outlives its parent."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import krill_tui
from krill_tui.io.children import child_command, child_environment
from krill_tui.models.local import Launch, LocalPolicy, WorkerClient
from krill_tui.models.worker_protocol import FinishRequest, OkReply
from tests.test_worker import _request

_SHADOWS = (
    "torch",
    "safetensors",
    "random",
    "types",
    "json",
    "transformers",
    "numpy",
    "accelerate",
    "krill_tui",
)
"""Modules that a folder could hold in the hope of being imported in place of the real ones."""
_SOURCE = Path(krill_tui.__file__).parent


def _alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while _alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not _alive(pid)


async def test_no_code_of_the_working_directory_runs_in_the_worker(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trap = tmp_path / "downloaded"
    trap.mkdir()
    sprung = tmp_path / "sprung"
    for name in _SHADOWS:
        (trap / f"{name}.py").write_text(f"open({str(sprung)!r}, 'a').write({name!r})\nraise SystemExit(9)\n")
    monkeypatch.chdir(trap)
    monkeypatch.setenv("PYTHONPATH", f".{os.pathsep}{os.pathsep}downloaded")
    client = await WorkerClient.start(log=tmp_path / "worker.log")
    try:
        loaded = await client.load(model=str(tiny_model_dir))
    finally:
        await client.close()
    assert loaded.parameters > 0
    assert not sprung.exists(), f"{sprung.read_text()} was run from the working directory"


def test_processes_that_a_launcher_starts_import_nothing_from_the_working_directory_either() -> None:
    assert child_environment()["PYTHONSAFEPATH"] == "1"
    command = Launch(processes=2).command()
    assert command[1] == "-P" and "accelerate.commands.launch" in command


def test_every_process_that_is_started_gets_the_minimal_environment() -> None:
    """A process started elsewhere in some other way would inherit everything."""
    starters = {"create_subprocess_exec", "create_subprocess_shell", "Popen", "run", "check_output", "spawnv"}
    for path in _SOURCE.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            function = call.func
            if not isinstance(function, ast.Attribute) or function.attr not in starters:
                continue
            owner = ast.unparse(function.value)
            if owner not in ("asyncio", "subprocess", "os"):
                continue
            if owner == "asyncio" and function.attr == "run":
                continue
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert "nvironment(" in given.get("env", ""), (
                f"{path}:{call.lineno} passes on the whole environment"
            )


def test_a_child_sees_what_it_needs_and_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = {
        "OPENAI_API_KEY": "sk-1",
        "AWS_SECRET_ACCESS_KEY": "aws",
        "GITHUB_TOKEN": "gh",
        "PYPI_PASSWORD": "pw",
        "HTTPS_PROXY": "http://user:pw@proxy:1",
        "HF_TOKEN": "hf",
        "TRANSFORMERS_SECRET": "t",
        "DATABASE_URL": "postgres://u:p@h",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    seen = child_environment()
    assert not set(secrets) & set(seen)
    assert {"PATH", "HOME", "CUDA_VISIBLE_DEVICES", "LC_ALL", "TOKENIZERS_PARALLELISM"} <= set(seen)
    assert set(secrets) & set(child_environment(downloads=True)) == {"HTTPS_PROXY", "HF_TOKEN"}
    assert child_environment(KRILL_RUNS="x")["KRILL_RUNS"] == "x"


_PARENT = """
import subprocess, sys, time
from krill_tui.io.children import child_command, child_environment
child = subprocess.Popen(child_command("tests.sleeper", sys.argv[1]), env=child_environment() | {"PYTHONPATH": sys.argv[2]})
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP])
def test_a_child_ends_with_its_parent_however_that_ends(tmp_path: Path, number: signal.Signals) -> None:
    root = str(_SOURCE.parent)
    ready = tmp_path / "ready"
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(ready), root],
        stdout=subprocess.PIPE,
        env=child_environment() | {"PYTHONPATH": root},
    )
    try:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        while not ready.exists():
            time.sleep(0.02)
        assert _alive(pid)
        parent.send_signal(number)
        parent.wait(timeout=10)
        assert _gone(pid, 5)
    finally:
        parent.kill()
        parent.wait()
        assert parent.stdout is not None
        parent.stdout.close()


def test_a_child_whose_parent_is_gone_before_it_begins_does_not_begin(tmp_path: Path) -> None:
    command = child_command("tests.sleeper", str(tmp_path / "ready"))
    command[4] = f"{2**22 + 1}:9"  # no process has that number
    ended = subprocess.run(command, env=child_environment(), timeout=30, check=False)
    assert ended.returncode == 1
    assert not (tmp_path / "ready").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_a_hung_worker_is_said_and_can_be_stopped(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("krill_tui.models.local._GRACE", 0.2)
    said: list[str] = []
    said_twice = asyncio.Event()

    def noted(line: str, _: str) -> None:
        if "has not answered" in line:
            said.append(line)
        if len(said) == 2:
            said_twice.set()

    client = await WorkerClient.start(log=tmp_path / "worker.log", noted=noted)
    await client.load(model=str(tiny_model_dir))
    pid = client.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    client.patience = 0.1
    policy = LocalPolicy(client)
    await policy.start("a")
    turn = asyncio.create_task(policy.act(_request("a", [{"role": "user", "content": "look"}])))
    await said_twice.wait()
    assert said[0].startswith("the model worker has not answered for 0 s (sample)")
    began = time.monotonic()
    turn.cancel()
    with pytest.raises(asyncio.CancelledError):
        await turn
    async with asyncio.timeout(5):
        await policy.finish("a")  # what an episode does at its end, cancelled or not
        await policy.close()
        await client.close()
    assert time.monotonic() - began < 3
    assert _gone(pid, 1)


async def test_the_worker_hears_of_the_last_episode_without_anybody_waiting(tmp_path: Path) -> None:
    heard: list[str] = []

    class Slow(WorkerClient):
        async def request(self, message, expected, progress=None):  # type: ignore[override]
            assert isinstance(message, FinishRequest)
            await asyncio.sleep(0)
            heard.extend(message.episodes)
            return OkReply()

    policy = LocalPolicy(Slow(tmp_path / "log"))
    await policy.start("a")
    policy._finished.add("a")
    await policy.finish("a")
    assert heard == []
    await asyncio.sleep(0.01)
    assert heard == ["a"]
    await policy.close()


def test_the_environment_of_a_real_child_is_that_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GITHUB_TOKEN", "gh-secret")
    root = str(_SOURCE.parent)
    printed = subprocess.run(
        child_command("tests.sleeper", "environment"),
        env=child_environment() | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
        cwd=tmp_path,
    ).stdout
    seen = json.loads(printed)
    assert "GITHUB_TOKEN" not in seen["environ"]
    assert str(tmp_path) not in seen["path"] and "" not in seen["path"]
    assert seen["umask"] == 0o077
