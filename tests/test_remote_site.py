"""The WebShop site's pages, read and played like a browser would."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import httpx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from krill_tui.config.schema import EnvConfig, KrillConfig
from krill_tui.engine.build import build_source
from krill_tui.envs.base import Environment, StepResult
from krill_tui.envs.clients.agentgym import HouseholdEnvironment, ShopEnvironment
from krill_tui.envs.clients.calls import ServerCalls
from krill_tui.envs.clients.krill import KrillEnvironment
from krill_tui.envs.clients.site import SiteEnvironment
from krill_tui.envs.clients.site_pages import read_site_page
from krill_tui.envs.remote import HttpSource
from krill_tui.envs.webshop.expert import WebshopExpert
from krill_tui.envs.webshop.source import WebshopSource
from krill_tui.errors import EnvironmentFailure, UsageError
from krill_tui.trajectory import Task
from tests.serving import told
from tests.test_remote import answer, serving
from tests.webshop_site import Site

SEED, SIZE = 2, 200


@asynccontextmanager
async def site_served(site: Site) -> AsyncIterator[str]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        method, path, _ = (await reader.readline()).decode().split()
        length = 0
        while (line := await reader.readline()).strip():
            name, _, value = line.partition(b":")
            length = int(value) if name.lower() == b"content-length" else length
        body = (await reader.readexactly(length)).decode()
        status, headers, html = site.answer(method, path, body)
        lines = [f"HTTP/1.1 {status} X", *(f"{k}: {v}" for k, v in headers.items()), "Connection: close"]
        data = html.encode()
        writer.write("\r\n".join([*lines, f"Content-Length: {len(data)}", "", ""]).encode() + data)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def opened(url: str, goal: int) -> Environment:
    return HttpSource(url, env="webshop", protocol="site").open(
        Task(id=f"http/site/{goal}", env="webshop", split="test", ref=str(goal))
    )


async def both(remote: Environment, local: Environment, action: str) -> tuple[StepResult, StepResult]:
    return await remote.step(action), await local.step(action)


@pytest.mark.parametrize("goal", range(4))
async def test_play_on_the_site_equals_play_in_process_up_to_the_receipt(goal: int) -> None:
    source = WebshopSource(seed=SEED, size=SIZE)
    async with site_served(Site(SEED, SIZE)) as url:
        remote, local = opened(url, goal), source.open(source.tasks("test", goal + 1)[goal])
        theirs, ours = await remote.reset(), await local.reset()
        assert told(theirs) == told(ours)
        assert remote.task.description == local.task.description
        expert, rng = WebshopExpert(), Random(goal)
        for number in range(25):
            if number % 3:
                action = rng.choice([a for a in ours.admissible if "buy now" not in a] or ["click[x]"])
                action = action.replace("<your query>", "red &amp; blue <b>shirt</b>")
            else:
                action = rng.choice(["click[nothing]", 'search[lamp 12" & more]', "dance", "click[search]"])
            theirs, ours = await both(remote, local, action)
            assert told(theirs) == told(ours)
        theirs, ours = await both(remote, local, "click[back to search]")
        while not ours.done:
            assert told(theirs) == told(ours)
            theirs, ours = await both(remote, local, expert.act(ours)[1])
        assert told(theirs)[1:] == told(ours)[1:]
        assert theirs.reward > 0
        assert theirs.observation.endswith(f"Your score (min 0.0, max 1.0) [SEP] {ours.reward}")
        assert "red hat" not in theirs.observation
        assert await remote.step("search[x]") is theirs
        await remote.close()


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (answer(b"<html>hello</html>", kind="text/html"), "no search bar"),
        (answer(b"<h1>Internal Server Error</h1>", "500 X"), "the server answered 500"),
        (
            b"HTTP/1.1 302 X\r\nLocation: http://example.com/\r\nContent-Length: 0\r\n\r\n",
            "to another server",
        ),
        (b"HTTP/1.1 302 X\r\nLocation: file:///etc/passwd\r\nContent-Length: 0\r\n\r\n", "to another server"),
        (
            b"HTTP/1.1 302 X\r\nLocation: /again\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
            "too many redirects",
        ),
        (b"", "the connection broke"),
    ],
)
async def test_a_site_that_is_none_is_one_line(reply: bytes, said: str) -> None:
    async with site_answering(reply) as url:
        environment = opened(url, 0)
        with pytest.raises(EnvironmentFailure) as caught:
            await environment.reset()
        await environment.close()
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@asynccontextmanager
async def site_answering(reply: bytes) -> AsyncIterator[str]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (await reader.readline()).strip():
            pass
        writer.write(reply)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


@given(st.text(alphabet=st.sampled_from(list("<>/\"'=!?-[] abdivhtmlscr&;#\n")), max_size=200))
@example("a<![foo[x]]>b")
def test_no_page_whatever_breaks_the_reader(html: str) -> None:
    try:
        page = read_site_page(html)
    except EnvironmentFailure as error:
        assert "no HTML" in str(error)
    else:
        assert isinstance(page.observation, str)
        assert page.score is None


def test_hidden_parts_are_not_read_and_what_follows_them_is() -> None:
    page = read_site_page(
        '<p>a</p><input hidden><p>b</p><div style="display: none"><p>goal<div>x</div></h2></div>'
        "<h4 hidden>c <h4>d</h4></h4><br><b>e</b><!-- f --><script>g</script>"
        "Your score (min 0.0, max 1.0)<pre>0.5</pre>"
    )
    assert page.observation == "a [SEP] b [SEP] e [SEP] Your score (min 0.0, max 1.0) [SEP] 0.5"
    assert page.score == 0.5


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "id",
                    "error",
                    "observation",
                    "state",
                    "reward",
                    "done",
                    "available_actions",
                    "clickables",
                    "has_search_bar",
                    "info",
                    "task_type",
                    "task_description",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(
    answers=st.lists(
        _JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=30), min_size=1, max_size=6
    )
)
def test_no_answer_whatever_gives_anything_but_a_result_or_one_line(answers: list[bytes]) -> None:
    async def meet(client: type[Environment], world: str) -> None:
        replies = itertools.cycle(answers)
        transport = httpx.MockTransport(lambda request: httpx.Response(200, content=next(replies)))
        task = Task(id="t", env=world, split="test", ref="1")
        environment = client(task, ServerCalls("http://server", transport, 5.0))  # pyright: ignore[reportCallIssue]
        try:
            result = await environment.reset()
            result = await environment.step(next(iter(result.admissible), "search[\ud800]"))
            assert isinstance(result.observation, str)
        except EnvironmentFailure as error:
            assert "\n" not in str(error)
        finally:
            await environment.close()

    async def meet_all() -> None:
        await meet(KrillEnvironment, "alfworld")
        await meet(HouseholdEnvironment, "alfworld")
        await meet(ShopEnvironment, "webshop")
        await meet(SiteEnvironment, "webshop")

    asyncio.run(meet_all())


def test_protocols_number_their_games_and_refuse_what_they_cannot_play() -> None:
    gym = HttpSource("http://localhost:1", env="alfworld", protocol="agentgym")
    assert gym.splits() == {"train": 2420, "test": 200}
    test = [int(task.ref) for task in gym.tasks("test", 300, seed=1)]
    assert sorted(test) == list(range(2420, 2620)) != test
    with pytest.raises(UsageError, match="cannot play alfworld"):
        HttpSource("http://localhost:1", env="alfworld", protocol="site")
    with pytest.raises(UsageError, match="is no task of the protocol"):
        gym.open(Task(id="http/train/0/1", env="alfworld", split="train", ref="train/0/1"))


def test_the_config_says_which_protocol_is_spoken() -> None:
    config = KrillConfig(
        env=EnvConfig(name="webshop", backend="http", protocol="site", url="http://localhost:1/")
    )
    source = build_source(config)
    assert isinstance(source, HttpSource)
    assert (source.protocol, source.url, source.splits()["train"]) == ("site", "http://localhost:1", 5410)


@pytest.mark.parametrize("path", ["/create", "/reset", "/step"])
async def test_what_an_agentgym_server_says_is_wrong_ends_the_episode_with_its_words(path: str) -> None:
    async def handler(asked: str, body: dict[str, object]) -> bytes:
        if asked == path:
            return answer({"error": "no\nsuch id"})
        start = {
            "id": 3,
            "observation": "room\nYour task is to: put a mug in shelf.",
            "available_actions": [],
        }
        return answer({**start, "task_type": "x/y"})

    async with serving(handler) as url:
        source = HttpSource(url, protocol="agentgym")
        environment = source.open(source.tasks("train", 1)[0])
        with pytest.raises(EnvironmentFailure, match=f"{path}: the server says: no such id"):
            await environment.reset()
            await environment.step("look")
        await environment.close()
