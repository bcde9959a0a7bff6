"""The `http` backend against real servers on loopback, good and bad."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from krill_tui.agent.collect import run_episodes
from krill_tui.agent.policies import ExpertPolicy
from krill_tui.agent.prompts import PromptOptions
from krill_tui.agent.rollout import EpisodeSpec, RolloutOptions
from krill_tui.envs.alfworld.source import BuiltinSource
from krill_tui.envs.base import Environment, FreeActions
from krill_tui.envs.clients.calls import LONGEST_ANSWER
from krill_tui.envs.remote import HttpSource
from krill_tui.errors import EnvironmentFailure, UsageError
from krill_tui.models.base import Sampling
from krill_tui.trajectory import StopReason, Task

Handler = Callable[[str, dict[str, Any]], Awaitable[bytes]]


def answer(body: object, status: str = "200 OK", kind: str = "application/json") -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(data)}\r\nConnection: close\r\n\r\n"
    return head.encode() + data


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    """A server whose answers are raw bytes, so that it can misbehave; gives its address."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            request = await reader.readline()
            length = 0
            while (line := await reader.readline()).strip():
                name, _, value = line.partition(b":")
                if name.lower() == b"content-length":
                    length = int(value)
            body = json.loads(await reader.readexactly(length) or b"{}")
            writer.write(await handler(request.split()[1].decode(), body))
            await writer.drain()
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.close()


class Household:
    """The protocol over our own procedural worlds, one game a session."""

    def __init__(self) -> None:
        self.source = BuiltinSource(seed=5)
        self.sessions: dict[str, Environment] = {}
        self.asked: list[str] = []

    async def __call__(self, path: str, body: dict[str, Any]) -> bytes:
        if path == "/reset":
            split, _, number = body["task_id"].split("/")
            self.asked.append(body["task_id"])
            task = self.source.tasks(split, int(number) + 1)[int(number)]
            env = self.sessions[body["session_id"]] = self.source.open(task)
            result = await env.reset()
        else:
            env = self.sessions[body["session_id"]]
            result = await env.step(body["action"])
        return answer(
            {
                "observation": result.observation,
                "available_actions": list(result.admissible),
                "done": result.done,
                "reward": result.reward,
                "task_description": env.task.description,
                "task_category": env.task.category,
                "info": {"won": result.won},
                "env_idx": 3,
            }
        )


async def first_failure(handler: Handler, *, timeout: float = 5.0) -> str:
    """The line that a reset against this server fails with."""
    async with serving(handler) as url:
        source = HttpSource(url, timeout=timeout)
        env = source.open(source.tasks("train", 1)[0])
        with pytest.raises(EnvironmentFailure) as caught:
            await env.reset()
        await env.close()
    message = str(caught.value)
    assert "\n" not in message
    assert url in message
    return message


async def test_many_episodes_are_played_at_once_and_won() -> None:
    household = Household()
    async with serving(household) as url:
        source = HttpSource(url)
        specs = [
            EpisodeSpec(id=f"e{n}", number=n, task=task, seed=n, purpose="collect", with_skills=False)
            for n, task in enumerate(source.tasks("train", 12))
        ]
        rollouts = await run_episodes(
            specs,
            source.open,
            ExpertPolicy(source.expert),
            RolloutOptions(40, PromptOptions(), Sampling()),
            concurrency=6,
            emit=lambda event: None,
            on_finished=lambda rollout: None,
        )
    trajectories = [rollout.trajectory for rollout in rollouts]
    assert [t.stop_reason for t in trajectories] == [StopReason.SUCCESS] * 12
    assert sorted(household.asked) == sorted(f"train/0/{n}" for n in range(12))
    assert len(household.sessions) == 12
    expected = [household.source.open(task).task.category for task in household.source.tasks("train", 12)]
    assert [t.category for t in trajectories] == expected


async def test_a_live_shop_keeps_page_order_and_takes_any_query() -> None:
    listed = ["search[<your query>]", "click[search]", "click[back to search]"]

    async def handler(path: str, body: dict[str, Any]) -> bytes:
        page = "WebShop [SEP] Instruction: [SEP] Find me mugs [SEP] Search"
        return answer({"observation": page, "available_actions": listed})

    async with serving(handler) as url:
        source = HttpSource(url, env="webshop")
        env = source.open(source.tasks("train", 1)[0])
        first = await env.reset()
        assert isinstance(env, FreeActions)
        accepted = [
            env.accepts(a) for a in ("search[mugs]", "click[Back to Search]", "click[buy now]", "mugs")
        ]
        await env.close()
    assert list(first.admissible) == listed
    assert env.task.description == "Find me mugs"
    assert accepted == [True, True, False, False]
    assert source.expert().act(first)[1] == "search[mugs]"


async def test_an_ended_episode_repeats_its_last_result_and_asks_no_more() -> None:
    calls: list[str] = []

    async def handler(path: str, body: dict[str, Any]) -> bytes:
        calls.append(path)
        return answer({"observation": "o", "available_actions": ["b", "a", "a"], "done": True, "reward": 0.6})

    async with serving(handler) as url:
        env = HttpSource(url).open(Task(id="t", env="alfworld", split="train", ref="x"))
        start = await env.reset()
        assert (start.done, start.reward, start.admissible) == (False, 0.0, ("a", "b"))
        end = await env.step("a")
        assert (end.done, end.won, end.reward) == (True, False, 0.6)
        assert await env.step("a") is end
        await env.close()
    assert calls == ["/reset", "/step"]


async def test_rewards_that_add_up_to_one_win() -> None:
    replies = iter([{"reward": 9.0}, {"reward": 0.5}, {"reward": 0.5, "done": True}])

    async def handler(path: str, body: dict[str, Any]) -> bytes:
        return answer({"observation": "o", **next(replies)})

    async with serving(handler) as url:
        env = HttpSource(url).open(Task(id="t", env="alfworld", split="train", ref="x"))
        await env.reset()
        assert not (await env.step("a")).won
        assert (await env.step("b")).won
        await env.close()


async def test_the_task_is_read_from_the_observation_where_the_server_does_not_say_it() -> None:
    async def handler(path: str, body: dict[str, Any]) -> bytes:
        return answer({"observation": "A room.\n\nYour task is to: put a hot egg in fridge."})

    async with serving(handler) as url:
        env = HttpSource(url).open(Task(id="t", env="alfworld", split="train", ref="x"))
        await env.reset()
        await env.close()
    assert (env.task.description, env.task.category) == ("put a hot egg in fridge", "Heat")


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (answer({"detail": "boom"}, "500 Internal Server Error"), "the server answered 500"),
        (answer({"detail": "moved"}, "307 Temporary Redirect"), "the server answered 307"),
        (answer(b"<html><body>hello</body></html>", kind="text/html"), "no answer of the protocol"),
        (answer(b""), "no answer of the protocol"),
        (answer([1, 2]), "no answer of the protocol"),
        (answer({"obs": "x"}), "observation: field required"),
        (answer({"observation": 3}), "observation"),
        (answer({"observation": "x", "available_actions": "look"}), "available_actions"),
        (answer(b'{"observation": "x", "reward": NaN}'), "reward"),
        (answer(b'{"observation": "\xff"}'), "no answer of the protocol"),
        (b"nonsense\r\n\r\n", "the connection broke"),
        (b"", "the connection broke"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", "the connection broke"),
        (answer(b" " * (LONGEST_ANSWER + 1)), "longer than"),
    ],
    ids=[
        "500",
        "redirect",
        "html",
        "empty",
        "list",
        "field",
        "type",
        "actions",
        "nan",
        "utf8",
        "raw",
        "closed",
        "truncated",
        "endless",
    ],
)
async def test_a_server_that_answers_nonsense_is_one_line(reply: bytes, said: str) -> None:
    async def handler(path: str, body: dict[str, Any]) -> bytes:
        return reply

    assert said in await first_failure(handler)


async def test_a_server_that_hangs_is_given_up() -> None:
    never = asyncio.Event()

    async def handler(path: str, body: dict[str, Any]) -> bytes:
        await never.wait()
        return b""

    assert "no answer within 0.2 s" in await first_failure(handler, timeout=0.2)


async def test_a_server_that_is_not_there_is_one_line_with_a_hint() -> None:
    async with serving(Household()) as url:
        pass
    env = HttpSource(url).open(Task(id="t", env="alfworld", split="train", ref="x"))
    with pytest.raises(
        EnvironmentFailure, match=r"no connection: connection refused \(is the server running\?"
    ):
        await env.reset()
    await env.close()


async def test_a_step_is_never_sent_twice() -> None:
    steps = 0

    async def handler(path: str, body: dict[str, Any]) -> bytes:
        nonlocal steps
        if path == "/reset":
            return answer({"observation": "o"})
        steps += 1
        return b""

    async with serving(handler) as url:
        env = HttpSource(url).open(Task(id="t", env="alfworld", split="train", ref="x"))
        await env.reset()
        with pytest.raises(EnvironmentFailure, match="the connection broke"):
            await env.step("look")
        await env.close()
    assert steps == 1


@pytest.mark.parametrize("url", ["localhost:3000", "ftp://host", "http://", "nonsense"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="is no address of a server"):
        HttpSource(url)


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(UsageError, match="there is no split 'moon'"):
        HttpSource("http://localhost:3000").tasks("moon", 1)
