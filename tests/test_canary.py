"""Every secret is a string of its own; commands run, the app runs, things fail, and no byte written or printed holds one."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from krill_tui.cli.app import run
from krill_tui.config.load import load_config
from krill_tui.engine import phases
from krill_tui.engine.session import Session
from krill_tui.tui.app import KrillApp

ENVIRONMENT = (
    *(
        "OPENAI_API_KEY",
        "HF_TOKEN",
        "VLLM_API_KEY",
        "AWS_SECRET_ACCESS_KEY",
        "GITHUB_TOKEN",
        "DATABASE_PASSWORD",
    ),
)
NAMES = (
    *ENVIRONMENT,
    "policy",
    "teacher",
    "embedding",
    "sampler",
    "user",
    "password",
    "query",
    "world",
    "proxy",
)
SECRETS = {
    name: f"canary-{number:02d}-{name.lower().replace('_', '-')}-4f1d9c" for number, name in enumerate(NAMES)
}


class _Echo(BaseHTTPRequestHandler):
    """Repeats in its answers everything it was sent: keys, addresses, bodies."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        heard = f"{self.headers.get('Authorization')} {self.headers.get('api-key')} {self.path}"
        if "/refuses/" in self.path:
            self._answer(401, {"error": {"message": f"wrong key: {heard}", "code": heard}})
        elif "/breaks/" in self.path:
            self._answer(400, {"error": f"cannot do that: {heard} {body[:200]}"})
        else:
            message = {"role": "assistant", "content": f"<think>{heard}</think><action>look {heard}</action>"}
            usage = {"prompt_tokens": 1, "completion_tokens": 1}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            self._answer(200, {"id": heard, "model": heard, "choices": choices, "usage": usage})

    def do_GET(self) -> None:
        self._answer(500, {"error": f"cannot do that: {self.headers.get('Authorization')} {self.path}"})

    def _answer(self, status: int, value: object) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[str]:
    """Host and port of a server that repeats secrets."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Echo)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def secrets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, echo: str) -> Path:
    """All of them set; gives the config file that holds some."""
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, SECRETS[name])
    monkeypatch.setenv("HTTPS_PROXY", f"http://someone:{SECRETS['proxy']}@127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").mkdir()
    path = tmp_path / "config" / "config.json"
    path.write_text(json.dumps(_config(echo, "answers")))
    path.chmod(0o600)
    return path


def _config(echo: str, way: str) -> dict[str, object]:
    address = f"http://{SECRETS['user']}:{SECRETS['password']}@{echo}/{way}/v1?api_key={SECRETS['query']}"
    return {
        "preset": "tiny",
        "policy": {"kind": "openai", "sampler_api_key": SECRETS["sampler"]},
        "teacher": {"kind": "openai", "max_retries": 0},
        "collect": {"episodes": 2},
        "evaluation": {"episodes": 2},
        "env": {"max_steps": 2, "url": f"http://someone:{SECRETS['world']}@{echo}"},
        "faults": {"patience": 0.0, "first_patience": 0.0},
        "model": {
            "policy_api_base": address,
            "teacher_api_base": address,
            "embedding_api_base": address,
            "policy_api_key": SECRETS["policy"],
            "teacher_api_key": SECRETS["teacher"],
            "embedding_api_key": SECRETS["embedding"],
            "max_retries": 0,
        },
    }


def leaks(where: str, data: bytes) -> list[str]:
    return [f"{name} in {where}" for name, value in SECRETS.items() if value.encode() in data]


async def _drawn(config: Path) -> str:
    session = await Session.open("plays", load_config(config))
    try:
        app = KrillApp(session)
        async with app.run_test(size=(160, 50)) as pilot:
            await pilot.pause()
            return app.export_screenshot()
    finally:
        await session.close()


def test_no_byte_that_is_written_or_printed_holds_a_secret(
    secrets: Path,
    echo: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    config = ["--config", str(secrets)]
    quiet = [*config, "--display", "plain"]
    bank = tmp_path / "bank.json"
    skill = {"name": "Look", "principle": "look first", "when_to_apply": "always", "tier": "general"}
    bank.write_text(json.dumps([skill] * 40))
    ways: list[list[str]] = [
        ["collect", "--run", "plays", "--output", "t.json", *quiet],
        ["eval", "--run", "plays", "--json", *config],
        ["distill", "--run", "taught", "--trajectories", "t.json", "--output", "b.json", *quiet],
        [
            *("eval", "--run", "near", "--policy", "random", "--skill-bank", str(bank), *quiet),
            *("--set", 'skill_retrieval.mode="embedding"', "--set", 'skill_retrieval.embedder="openai"'),
        ],
        ["collect", "--run", "live", "--live", "--policy", "random", "--output", "l.json", *quiet],
        ["train", "--run", "no", *quiet],
        ["doctor", *config],
        ["doctor", "--json", *config],
        ["doctor", "plays"],
        ["runs"],
        ["runs", "--json"],
        ["report", "plays"],
        ["report", "plays", "--json"],
        ["report", "plays", "--verify"],
        ["replay", "plays", "--display", "json"],
        ["inspect", "t.json"],
        ["lint", "plays"],
        ["collect", "--set", f"model.policy_api_key=[{json.dumps(SECRETS['policy'])}]"],
    ]
    for way in ("refuses", "breaks"):
        other = tmp_path / "config" / f"{way}.json"
        other.write_text(json.dumps(_config(echo, way)))
        other.chmod(0o600)
        ways.append(
            ["collect", "--run", way, "--config", str(other), "--display", "json", "--output", "x.json"]
        )
        ways.append(
            [
                *("distill", "--run", f"{way}-t", "--trajectories", "t.json", "--output", "y.json"),
                *("--config", str(other), "--display", "plain"),
            ]
        )
    found: list[str] = []

    def say(where: str) -> None:
        said = capfd.readouterr()
        found.extend(leaks(f"the output of {where}", (said.out + said.err).encode()))

    for arguments in ways:
        run(arguments)
        say(" ".join(arguments[:3]))

    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError(f"everything at once: {dict(os.environ)} {_config(echo, 'answers')}")

    with monkeypatch.context() as patched:
        patched.setattr(phases, "collect", broken)
        run(["collect", "--run", "crash", "--output", "z.json", *quiet])
        say("a crash")

    drawn = asyncio.run(_drawn(secrets))
    found += leaks("the app", drawn.encode())
    say("the app")
    for path in tmp_path.rglob("*"):
        if path.is_file() and path.parent.name != "config":
            found += leaks(str(path.relative_to(tmp_path)), path.read_bytes())
    assert (tmp_path / "runs" / "plays" / "trajectories.jsonl").stat().st_size, "nothing was played"
    assert list((tmp_path / "runs" / "crash").glob("crash*.log")), "nothing crashed"
    assert not found
