"""What can be set about a live server, and what is said when it cannot do what it is asked."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from krill_tui.agent.collect import run_episodes
from krill_tui.agent.policies import ExpertPolicy
from krill_tui.agent.prompts import PromptOptions
from krill_tui.agent.rollout import EpisodeSpec, Rollout, RolloutOptions
from krill_tui.cli.app import run
from krill_tui.config.load import load_config
from krill_tui.engine.build import build_source
from krill_tui.envs.clients.calls import server_words
from krill_tui.envs.remote import HttpSource
from krill_tui.errors import EnvironmentFailure, UsageError
from krill_tui.models.base import Sampling
from tests.test_remote import answer, serving

ROOT = Path(__file__).parents[1]


def configured(**env: object) -> HttpSource:
    source = build_source(load_config(overrides={"env": {"backend": "http", **env}}))
    assert isinstance(source, HttpSource)
    return source


async def collected(source: HttpSource, count: int, concurrency: int) -> list[Rollout]:
    specs = [
        EpisodeSpec(id=f"e{n}", number=n, task=task, seed=n, purpose="collect", with_skills=False)
        for n, task in enumerate(source.tasks("test", count))
    ]
    return await run_episodes(
        specs,
        source.open,
        ExpertPolicy(source.expert),
        RolloutOptions(3, PromptOptions(), Sampling()),
        concurrency=concurrency,
        emit=lambda event: None,
        on_finished=lambda rollout: None,
    )


class OneAtATime:
    """AgentGym's household server: it answers calls one after the other, and each takes its time."""

    def __init__(self, seconds: float, reset_seconds: float) -> None:
        self.seconds, self.reset_seconds = seconds, reset_seconds
        self.waiting = self.most = self.games = 0
        self._lock = asyncio.Lock()

    async def __call__(self, path: str, body: dict[str, Any]) -> bytes:
        self.waiting += 1
        self.most = max(self.most, self.waiting)
        async with self._lock:
            await asyncio.sleep(self.reset_seconds if path == "/reset" else self.seconds)
            self.waiting -= 1
        if path == "/create":
            self.games += 1
            return answer({"id": self.games})
        start = {
            "observation": "A room.\nYour task is to: put some mug on shelf.",
            "available_actions": ["look"],
        }
        return answer({**start, "task_type": "x/y", "reward": 0.0, "done": False})


async def test_a_server_that_answers_one_call_at_a_time_is_asked_one_at_a_time() -> None:
    household = OneAtATime(0.001, 0.05)
    async with serving(household) as url:
        rollouts = await collected(
            configured(url=url, protocol="agentgym", timeout=0.3, concurrency=12), 12, concurrency=12
        )
    assert [rollout.trajectory.error for rollout in rollouts] == [None] * 12
    assert household.most == 1


async def test_calls_that_were_given_up_do_not_pile_up_in_the_server() -> None:
    household = OneAtATime(0.0, 0.35)
    async with serving(household) as url:
        source = configured(url=url, protocol="agentgym", timeout=0.2, concurrency=4)
        environments = [source.open(task) for task in source.tasks("test", 4)]
        faults = await asyncio.gather(*(env.reset() for env in environments), return_exceptions=True)
        for environment in environments:
            await environment.close()
        assert household.most == 1
    assert all(isinstance(fault, EnvironmentFailure) for fault in faults)
    assert all(
        "/reset: no answer within 0.2 s" in str(fault) and "env.timeout" in str(fault) for fault in faults
    )


def test_what_suits_a_protocol_is_the_default() -> None:
    assert configured(protocol="agentgym").settings == (300.0, 1)
    assert configured(name="webshop", protocol="agentgym", concurrency=8).settings == (60.0, None)
    assert configured(timeout=7, max_calls=3).settings == (7.0, 3)
    assert configured(protocol="agentgym", timeout=7, max_calls=3).settings == (7.0, 3)


def test_the_numbers_of_games_are_what_the_setting_says() -> None:
    ranges = {"test": [0, 19], "train": [100, 12086]}
    source = configured(name="webshop", protocol="site", game_ranges=ranges)
    assert source.splits() == {"test": 20, "train": 11987}
    assert sorted(int(task.ref) for task in source.tasks("test", 500)) == list(range(20))
    with pytest.raises(UsageError, match="there is no split 'valid'"):
        source.tasks("valid", 1)


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"protocol": "agentgym", "game_ranges": {"test": [0, 9], "train": [9, 20]}}, "share game 9"),
        ({"protocol": "agentgym", "game_ranges": {"test": [9, 0]}}, "no range of games"),
        ({"protocol": "agentgym", "game_ranges": {"test": [-1, 5]}}, "no range of games"),
        ({"protocol": "agentgym", "game_ranges": {"test": [0, 10**12]}}, "no range of games"),
        ({"protocol": "krill", "game_ranges": {"test": [0, 9]}}, "of no use with env.protocol krill"),
        ({"protocol": "site"}, "krill or agentgym, and for webshop also site"),
    ],
)
def test_settings_that_cannot_work_are_one_line(env: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        configured(**env)
    assert said in str(caught.value)


HOUSEHOLD_ERROR = {"error": "list index\nout of range"}


@pytest.mark.parametrize(
    ("protocol", "world", "reply", "said"),
    [
        ("agentgym", "alfworld", answer(HOUSEHOLD_ERROR), "the server says: list index out of range"),
        ("agentgym", "webshop", answer(b"Internal Server Error", "500 X"), "500: Internal Server Error"),
        ("site", "webshop", answer(b"<title>IndexError</title><p>x", "500 X"), "500: IndexError"),
    ],
)
async def test_a_game_that_the_server_does_not_have_is_named_with_the_setting(
    protocol: str, world: str, reply: bytes, said: str
) -> None:
    async def handler(path: str, body: dict[str, Any]) -> bytes:
        return answer({"id": 1} if world == "alfworld" else 1) if path == "/create" else reply

    async with serving(handler) as url:
        source = configured(name=world, protocol=protocol, url=url)
        task = source.tasks("test", 1)[0]
        environment = source.open(task)
        with pytest.raises(EnvironmentFailure) as caught:
            await environment.reset()
        await environment.close()
    assert said in str(caught.value)
    assert f"game {task.ref}: where a server has fewer games, env.game_ranges" in str(caught.value)
    assert not caught.value.unreachable


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b'{"error": "CUDA out\\nof memory"}', "CUDA out of memory"),
        (b'{"error": {"message": "no such model", "code": 3}}', "no such model"),
        (b'{"detail": [{"loc": ["body"], "msg": "field required"}]}', "field required"),
        (b'{"detail": "Not Found"}', "Not Found"),
        (b'{"message": "busy"}', "busy"),
        (b'"plain"', "plain"),
        (b"Internal Server Error", "Internal Server Error"),
        (b"\n\n Traceback (most recent call last):\n  File", "Traceback (most recent call last):"),
        (b"<!doctype html><script>x</script><h1>Bad <b>Gateway</b></h1>", "Bad"),
        (b"<html><head><title>IndexError: 3 // Debugger</title>", "IndexError: 3 // Debugger"),
        (b"\x1b]0;owned\x07hello \xe2\x80\xae\xff", "hello \N{REPLACEMENT CHARACTER}"),
        (b"", ""),
        (b"{", "{"),
        (b"[" * 100_000, "[" * 199 + "…"),
        (b"x" * 100_000, "x" * 199 + "…"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, bytes) else "",
)
def test_a_servers_own_words_are_one_clean_short_line(data: bytes, words: str) -> None:
    assert server_words(data) == words


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://no-such-host.invalid:80", "the host's name is not known"),
        ("http://127.0.0.1:1", "connection refused"),
    ],
)
async def test_why_there_is_no_connection_is_said(url: str, said: str) -> None:
    source = configured(url=url)
    environment = source.open(source.tasks("train", 1)[0])
    with pytest.raises(EnvironmentFailure, match=said) as caught:
        await environment.reset()
    await environment.close()
    assert caught.value.unreachable


async def test_a_server_that_speaks_no_tls_is_said() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(refuse, "127.0.0.1", 0)
    source = configured(url=f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    environment = source.open(source.tasks("train", 1)[0])
    with pytest.raises(EnvironmentFailure, match="does not speak TLS"):
        await environment.reset()
    await environment.close()
    server.close()


FEW_FILES = """
import asyncio, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
sys.path.insert(0, {root!r})
from tests.test_remote_settings import collected, configured
async def main():
    source = configured(url={url!r}, concurrency=120)
    rollouts = await collected(source, 120, 120)
    print(sorted({{str(r.trajectory.error) for r in rollouts}}))
asyncio.run(main())
"""


async def test_more_episodes_than_files_may_be_open_share_their_connections() -> None:
    sessions: dict[str, int] = {}

    async def handler(path: str, body: dict[str, Any]) -> bytes:
        sessions[body["session_id"]] = sessions.get(body["session_id"], 0) + 1
        await asyncio.sleep(0.01)
        return answer({"observation": "A room.", "available_actions": ["look"]})

    async with serving(handler) as url:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            FEW_FILES.format(root=str(ROOT), url=url),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, error = await child.communicate()
    assert out.decode().strip() == "['None']", error.decode()
    assert sorted(sessions.values()) == [4] * 120


def shop_files(folder: Path) -> Path:
    products = [
        {
            "asin": f"B{n:09d}",
            "name": f"Plain Lamp {n}",
            "category": "garden",
            "query": "lamps",
            "product_category": "Home › Lamps",
            "full_description": "It is plain.",
            "small_description": ["One"],
            "pricing": "$12.50",
            "images": [],
            "customization_options": {"color": [{"value": "red"}, {"value": "blue"}]},
        }
        for n in range(4)
    ]
    asked = {
        p["asin"]: {
            "instruction": "Find me a lamp",
            "attributes": ["plain"],
            "instruction_attributes": ["plain"],
        }
        for p in products
    }
    (folder / "items_shuffle.json").write_text(json.dumps(products))
    (folder / "items_ins_v2.json").write_text(json.dumps(asked))
    return folder


HUMAN = {
    "B000000001": [
        {
            "instruction": "i want a lamp for my desk.",
            "instruction_attributes": ["plain"],
            "instruction_options": [],
        }
    ]
}


def test_the_goals_of_people_are_a_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = shop_files(tmp_path)
    arguments = [
        "eval",
        "--env",
        "webshop",
        "--policy",
        "expert",
        "--webshop-data",
        str(folder),
        "--display",
        "none",
    ]
    human = ["--set", "env.human_goals=true", "--set", "env.genuine=true", "--split", "test"]
    assert run([*arguments, *human]) == 2
    assert "comes with what a person asked for" in capsys.readouterr().err
    (folder / "items_human_ins.json").write_text(json.dumps(HUMAN))
    source = build_source(
        load_config(
            overrides={
                "env": {"name": "webshop", "webshop_data": str(folder), "human_goals": True, "genuine": True}
            }
        )
    )
    assert [task.description.partition(",")[0] for task in source.tasks("test", 9)] == [
        "i want a lamp for my desk"
    ]
    assert run(["eval", "--env", "webshop", "--policy", "expert", "--set", "env.human_goals=true"]) == 2
    assert "--webshop-data DIR" in capsys.readouterr().err
