"""Who may call a served world, and what it does when too much comes at once."""

from __future__ import annotations

import asyncio
import json
import logging
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.reliability.connections import measure
from krill_tui.envs.alfworld.source import BuiltinSource
from krill_tui.envs.serve.app import Access, create_app
from krill_tui.envs.serve.connections import FewRecords, Limits
from krill_tui.envs.serve.protocols import Service
from krill_tui.envs.webshop.source import WebshopSource
from tests.serving import served


@pytest.fixture(scope="module")
def household() -> BuiltinSource:
    return BuiltinSource(seed=1)


@pytest.fixture(scope="module")
def shop() -> WebshopSource:
    return WebshopSource(seed=1, size=200)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "LOCALHOST:1"}, 200),
        ({"Host": "[::1]:3000"}, 200),
        ({"Host": "127.8.8.8"}, 200),
        ({"Host": "app.localhost"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "evil.example:3000"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "127.0.0.1@evil.example"}, 403),
        ({"Host": "10.0.0.7"}, 403),
        ({"Host": "0.0.0.0"}, 403),
        ({"Host": "2130706433"}, 403),
        ({"Host": "localhost:x"}, 403),
        ({"Host": ""}, 403),
        ({"Origin": "http://localhost:8000"}, 200),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1.evil.example"}, 403),
        ({"Origin": "https://6.6.6.6"}, 403),
        ({"Origin": "chrome-extension://localhost"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "Text/Plain; charset=utf-8"}, 415),
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
    ],
    ids=str,
)
async def test_only_callers_of_this_machine_play(
    household: BuiltinSource, headers: dict[str, str], status: int
) -> None:
    async with served(household) as url, httpx.AsyncClient(base_url=url) as client:
        typed = {"Content-Type": "application/json", **headers}
        for path in ("/reset", "/step", "/create", "/close"):
            response = await client.post(path, content=b'{"action": "look"}', headers=typed)
            if status == 200:
                assert response.status_code == 200, path
            else:
                assert response.status_code == status
                assert "\n" not in response.json()["error"]
        if "Host" in headers:  # reading matters too where a name was made to point here
            read = await client.get("/", headers=headers)
            assert read.status_code == (200 if status == 200 else 403)


async def test_a_server_beyond_loopback_answers_to_addresses_and_to_names_it_was_given(
    household: BuiltinSource,
) -> None:
    access = Access(("worlds.example", "0.0.0.0"), any_address=True)
    async with served(household, access=access) as url, httpx.AsyncClient(base_url=url) as client:

        async def status(**headers: str) -> int:
            return (await client.post("/reset", json={}, headers=headers)).status_code

        assert await status(Host="10.0.0.7:3000") == 200
        assert await status(Host="Worlds.Example:3000") == 200
        assert await status(Host="evil.example") == 403
        assert await status(Host="10.0.0.7", Origin="http://10.0.0.7") == 200
        assert await status(Host="10.0.0.7", Origin="http://6.6.6.6") == 403


async def test_a_call_that_names_two_hosts_is_refused(household: BuiltinSource) -> None:
    async with served(household) as url:
        reader, writer = await asyncio.open_connection(*address(url))
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nOrigin: http://a\r\nOrigin: http://b\r\n\r\n")
        assert b" 403 " in await reader.readline()
        writer.close()
        await writer.wait_closed()


async def test_sessions_of_agentgym_cannot_be_guessed_and_are_closed(
    household: BuiltinSource, shop: WebshopSource
) -> None:
    async with served(household) as url, httpx.AsyncClient(base_url=url) as client:
        numbers = [(await client.post("/create")).json()["id"] for _ in range(5)]
        assert len(set(numbers)) == 5 and min(numbers) > 1000
        reset = {"id": numbers[0], "game": 0, "world_type": "Text"}
        assert "observation" in (await client.post("/reset", json=reset)).json()
        assert (await client.post("/close", json={"id": numbers[0]})).json() == {"closed": True}
        assert "not valid" in (await client.post("/reset", json=reset)).json()["error"]
        await client.post("/reset", json={"session_id": "s"})
        assert (await client.post("/close", json={"session_id": "s"})).status_code == 200
        assert (await client.post("/step", json={"session_id": "s", "action": "x"})).status_code == 400
    async with served(shop) as url, httpx.AsyncClient(base_url=url) as client:
        number = (await client.post("/create")).json()
        assert (await client.post("/close", json={"env_idx": number})).json() == {"closed": True}


def address(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or 0


async def is_ended(reader: asyncio.StreamReader, seconds: float) -> bool:
    """Whether the server ends the connection in this time without an answer."""
    try:
        async with asyncio.timeout(seconds):
            return await reader.read() == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False


@pytest.mark.parametrize(
    "first", [b"", b"POST /reset HTTP/1.1\r\nHost: localhost\r\nX: ", b"POST /step HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"]
)  # fmt: skip
async def test_a_caller_that_does_not_finish_its_request_is_cut_off(
    household: BuiltinSource, first: bytes
) -> None:
    async with served(household, limits=Limits(request_seconds=0.3, idle_seconds=0.3)) as url:
        reader, writer = await asyncio.open_connection(*address(url))
        writer.write(first)

        async def drip() -> None:
            while True:
                await asyncio.sleep(0.05)
                writer.write(b" " if first else b"")

        dripping = asyncio.create_task(drip())
        assert await is_ended(reader, 3)
        dripping.cancel()
        writer.close()


async def test_a_connection_is_kept_between_requests_and_then_closed(household: BuiltinSource) -> None:
    async with served(household, limits=Limits(request_seconds=0.3, idle_seconds=0.6)) as url:
        reader, writer = await asyncio.open_connection(*address(url))
        for _ in range(2):
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            size = 0
            while (line := await reader.readline()).strip():
                if line.startswith(b"content-length"):
                    size = int(line.split()[1])
            await reader.readexactly(size)
            await asyncio.sleep(0.4)
        assert await is_ended(reader, 3)
        writer.close()


@pytest.mark.parametrize(
    "first", [b"", b"POST /reset HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{"]
)
async def test_where_there_are_too_many_connections_the_oldest_that_wait_make_room(
    household: BuiltinSource, first: bytes
) -> None:
    async with served(household, limits=Limits(most=8)) as url:
        opened = [await asyncio.open_connection(*address(url)) for _ in range(20)]
        for _, writer in opened:
            writer.write(first)
        async with httpx.AsyncClient(base_url=url, timeout=5) as client:
            for _ in range(3):
                assert (await client.post("/reset", json={})).status_code == 200
        ended = [await is_ended(reader, 0.1) for reader, _ in opened]
        assert sum(ended) >= 12
        assert ended[0]
        for _, writer in opened:
            writer.close()


async def test_headers_without_end_are_refused(household: BuiltinSource) -> None:
    async with served(household) as url:
        reader, writer = await asyncio.open_connection(*address(url))
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000)
        assert b" 400 " in await reader.readline()
        writer.close()


async def test_an_address_with_a_slash_too_many_is_answered_in_json(household: BuiltinSource) -> None:
    async with served(household) as url, httpx.AsyncClient(base_url=url) as client:
        for path in ("/step/", "/reset/", "/create/"):
            response = await client.post(path, json={"action": "look"})
            assert response.status_code == 404
            assert "there is no call POST" in response.json()["error"]


_NAMES = st.sampled_from(["task_id", "session_id", "action", "env_idx", "id", "game", "world_type", "x"])
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.just("train/0/0"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_NAMES, inner, max_size=2),
    max_leaves=4,
)
_BODIES = st.binary(max_size=60) | st.dictionaries(_NAMES, _VALUES, max_size=4).map(
    lambda body: json.dumps(body).encode()
)


SOURCE = BuiltinSource(seed=1)


@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(
        st.tuples(st.sampled_from(["reset", "step", "close", "create", "step/"]), _BODIES), max_size=25
    )
)
def test_no_body_whatever_gets_anything_but_json(calls: list[tuple[str, bytes]]) -> None:
    async def ask() -> None:
        transport = httpx.ASGITransport(create_app(Service(SOURCE)))
        async with httpx.AsyncClient(base_url="http://localhost", transport=transport) as client:
            for path, body in calls:
                response = await client.post(f"/{path}", content=body)
                assert response.status_code in (200, 400, 404, 413)
                response.json()
            assert (await client.get("/")).status_code == 200

    asyncio.run(ask())


def test_of_many_log_lines_only_the_first_are_written() -> None:
    few = FewRecords(most=3, seconds=60)
    records = [logging.LogRecord("x", logging.ERROR, "", 0, "line %d", (n,), None) for n in range(10)]
    kept = [record.getMessage() for record in records if few.filter(record)]
    assert kept == ["line 0", "line 1", "line 2 (further lines of this minute are left out)"]


def test_a_server_beyond_loopback_is_said_to_be_open(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from krill_tui.cli.app import run
    from krill_tui.envs.serve import app

    seen: list[Access] = []

    async def no_server(service: object, listening: object, *, on_ready: object, access: Access) -> None:
        seen.append(access)

    monkeypatch.setattr(app, "serve", no_server)
    arguments = ["serve-env", "alfworld", "--port", "0", "--allow-host", "worlds.example"]
    assert run(arguments) == 0
    assert "warning" not in capsys.readouterr().err
    assert run([*arguments, "--host", "0.0.0.0"]) == 0
    assert "whoever reaches it can play" in capsys.readouterr().err
    assert [access.any_address for access in seen] == [False, True]
    assert all("worlds.example" in access.names for access in seen)


async def test_a_served_world_stands_many_connections() -> None:
    """The short form of the figure in docs/reliability.md."""
    facts = await measure(100, 256, sessions=10, header_bytes=4_000_000, wait=False)
    assert facts["faults"] == []
