"""What the server answers to calls that cannot work, and how it keeps its sessions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krill_tui.envs.alfworld.source import BuiltinSource
from krill_tui.envs.alfworld.text import CATEGORY_OF_TYPE
from krill_tui.envs.base import Environment, StepResult
from krill_tui.envs.serve.app import LONGEST_REQUEST
from krill_tui.envs.serve.protocols import HouseholdError, Service
from krill_tui.envs.serve.sessions import SessionStore
from krill_tui.envs.serve.tasks import MOST_TASKS, TaskDirectory
from krill_tui.envs.webshop.source import WebshopSource
from krill_tui.errors import EnvironmentFailure, KrillError, UsageError
from krill_tui.trajectory import Task
from tests.serving import served


@pytest.fixture(scope="module")
def household() -> BuiltinSource:
    return BuiltinSource(seed=1)


@pytest.fixture(scope="module")
def shop() -> WebshopSource:
    return WebshopSource(seed=1, size=200)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "no JSON"),
        (b"{", "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b'{"task_id": "\\ud800"}', "no JSON"),
        (b"[" * 10_000, "no JSON"),
        (b"[1]", "should be a JSON object"),
        (b'{"task_id": 3}', "task_id: input should be a valid string"),
        (b'{"task_id": "moon/0/0"}', "there is no split 'moon'"),
        (b'{"task_id": "../../etc/passwd"}', "is no task"),
        (b'{"task_id": "train/0/999999999"}', "is too far"),
        (b'{"id": "x", "game": 0, "world_type": "Text"}', "id: input should be a valid integer"),
        (b'{"id": 1}', "game: field required"),
        (b'{"env_idx": 0, "session_id": 1}', "'env_idx' belongs to webshop"),
    ],
)
async def test_a_reset_that_cannot_work_is_status_400_and_one_line(
    household: BuiltinSource, body: bytes, said: str
) -> None:
    async with served(household) as url, httpx.AsyncClient(base_url=url) as client:
        response = await client.post("/reset", content=body)
        assert response.status_code == 400
        assert said in response.json()["error"]
        assert "\n" not in response.json()["error"]
        assert (await client.post("/reset", json={})).status_code == 200


async def test_calls_that_do_not_exist_are_json_too(household: BuiltinSource) -> None:
    async with served(household) as url, httpx.AsyncClient(base_url=url) as client:
        missing = await client.get("/nothing/here")
        wrong = await client.get("/reset")
        unknown = await client.post("/step", json={"action": "look", "session_id": "ghost"})
        long = await client.post("/step", content=b" " * (LONGEST_REQUEST + 1))
        assert (missing.status_code, wrong.status_code) == (404, 405)
        assert missing.json() == {"error": "there is no call GET /nothing/here"}
        assert (unknown.status_code, long.status_code) == (400, 413)
        assert "no such session" in unknown.json()["error"]


async def test_a_caller_without_session_plays_one_episode_after_another(household: BuiltinSource) -> None:
    async with served(household) as url, httpx.AsyncClient(base_url=url) as client:
        first = (await client.post("/reset", json={"task_id": None})).json()
        moved = (await client.post("/step", json={"action": "inventory"})).json()
        second = (await client.post("/reset", json={})).json()
    expected = household.tasks("train", 2)
    assert first["observation"] == (await household.open(expected[0]).reset()).observation
    assert second["observation"] == (await household.open(expected[1]).reset()).observation
    assert moved["observation"] == "You are not carrying anything."
    assert first["task_category"] == expected[0].category
    assert (first["done"], first["reward"], first["info"], first["session_id"]) == (
        False,
        0.0,
        {"won": False},
        None,
    )


async def test_agentgym_household_errors_have_status_200(household: BuiltinSource) -> None:
    async with served(household) as url, httpx.AsyncClient(base_url=url) as client:

        async def post(path: str, **body: object) -> Any:
            response = await client.post(path, json=body)
            assert response.status_code == 200
            return response.json()

        assert "ALFWorld" in (await client.get("/")).json()
        number = (await client.post("/create")).json()["id"]
        assert await post("/step", id=number, action="look") == {
            "error": f"The environment {number} was not reset."
        }
        assert await post("/reset", id=99, game=0, world_type="Text") == {"error": "The id 99 is not valid."}
        assert "world_type" in (await post("/reset", id=number, game=0, world_type="Moon"))["error"]
        assert "no game 2620" in (await post("/reset", id=number, game=2620, world_type="Text"))["error"]
        start = await post("/reset", id=number, game=0, world_type="Text")
        assert start["observation"].startswith("You are in the middle of a room.")
        assert "\n\n" not in start["observation"]
        kind = start["task_type"].partition("/")[0]
        assert CATEGORY_OF_TYPE[kind] == household.tasks("train", 1)[0].category
        detail = (await client.get("/detail", params={"id": number})).json()
        assert (detail["game"], detail["done"], detail["observation"]) == (0, False, start["observation"])
        assert (await client.get("/available_actions", params={"id": number})).json() == start[
            "available_actions"
        ]


async def test_agentgym_shop_tells_what_can_be_clicked(shop: WebshopSource) -> None:
    async with served(shop) as url, httpx.AsyncClient(base_url=url) as client:
        assert (await client.get("/")).json() == "ok"
        number = (await client.post("/create")).json()
        query = {"env_idx": number}
        early = await client.get("/observation", params=query)
        assert (early.status_code, early.json()) == (400, {"error": "the environment was not reset"})
        first, nothing = (await client.post("/reset", json={"env_idx": number, "session_id": 1500})).json()
        assert nothing is None
        assert (await client.get("/available_actions", params=query)).json() == {
            "has_search_bar": True,
            "clickables": ["search"],
        }
        assert (await client.get("/observation", params=query)).json() == first
        instruction = (await client.get("/instruction_text", params=query)).json()
        assert instruction.removeprefix("Instruction: ") in first
        far = await client.post("/reset", json={"env_idx": number, "session_id": 6910})
        assert (far.status_code, far.json()) == (400, {"error": "there is no game 6910"})
        assert (await client.get("/available_actions", params={"env_idx": "x"})).status_code == 400


class Breaking:
    """A world whose first step breaks it: as announced, or with a bug."""

    def __init__(self, task: Task) -> None:
        self.task = task

    async def reset(self) -> StepResult:
        return StepResult("here")

    async def step(self, action: str) -> StepResult:
        if action == "bug":
            raise ZeroDivisionError("secret detail")
        raise EnvironmentFailure("the world\nbroke")

    async def close(self) -> None:
        pass


class BreakingSource(BuiltinSource):
    def open(self, task: Task) -> Environment:
        return Breaking(task)


async def test_a_world_that_breaks_is_status_500_and_the_server_goes_on() -> None:
    async with served(BreakingSource()) as url, httpx.AsyncClient(base_url=url) as client:
        for action, said in (
            ("break", "the world broke"),
            ("bug", "something went wrong inside the server: ZeroDivisionError"),
        ):
            assert (await client.post("/reset", json={})).status_code == 200
            response = await client.post("/step", json={"action": action})
            assert (response.status_code, response.json()) == (500, {"error": said})


async def test_idle_sessions_are_dropped_and_the_idlest_where_there_are_too_many(
    household: BuiltinSource,
) -> None:
    now = 0.0
    store = SessionStore(household, idle_seconds=10, most=3, clock=lambda: now)
    for name in ("a", "b", "c"):
        await store.reset(await store.create(name), household.tasks("train", 1)[0])
    now = 5.0
    assert await store.find("a") is not None
    await store.create("d")
    assert [name for name in "abcd" if await store.find(name)] == ["a", "c", "d"]
    now = 20.0
    assert await store.find("a") is None
    assert len(store) == 0


async def test_calls_to_one_session_take_their_turn(household: BuiltinSource) -> None:
    task = household.tasks("train", 1)[0]
    store = SessionStore(household)
    session = await store.create("a")
    await store.reset(session, task)
    results = await asyncio.gather(*(store.step(session, "inventory") for _ in range(20)))
    assert {result.observation for result in results} == {"You are not carrying anything."}
    await store.close()
    with pytest.raises(UsageError, match="step before reset"):
        await store.step(session, "look")


class Games(BuiltinSource):
    """A source like a folder of games: a bounded train split, the dataset's names, no evolve."""

    def splits(self) -> dict[str, int]:
        return {"train": 20, "valid_seen": 4}

    def tasks(self, split: str, count: int, *, seed: int = 0) -> Sequence[Task]:
        if split not in self.splits():
            raise UsageError(f"there is no split '{split}'")
        order = [Task(id=f"{split}{n}", env="alfworld", split=split) for n in range(self.splits()[split])]
        return (order[seed:] + order[:seed])[:count]


def test_a_source_without_evolve_lends_games_that_train_never_shows() -> None:
    directory = TaskDirectory(Games())
    train = {directory.named(f"train/{seed}/{n}").id for seed in (0, 3) for n in range(40)}
    evolve = {directory.named(f"evolve/{seed}/{n}").id for seed in (0, 3) for n in range(40)}
    assert (len(train), len(evolve), train & evolve) == (16, 4, set())
    assert directory.named("valid/0/3") == directory.named("valid_seen/0/3")
    with pytest.raises(UsageError, match="split 'valid' holds 4 games, none at position 4"):
        directory.named("valid/0/4")
    with pytest.raises(UsageError, match="no split"):
        directory.named("test/0/0")


def test_positions_of_an_order_do_not_depend_on_what_was_asked_before(household: BuiltinSource) -> None:
    directory = TaskDirectory(household)
    ids = [directory.named(f"test/2/{n}").id for n in (300, 0, 70, 64, 63)]
    tasks = household.tasks("test", 301, seed=2)
    assert ids == [tasks[n].id for n in (300, 0, 70, 64, 63)]
    with pytest.raises(UsageError, match="too far"):
        directory.named(f"test/2/{MOST_TASKS}")


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
_FIELDS = st.sampled_from(["task_id", "session_id", "action", "env_idx", "id", "game", "world_type"])


@settings(max_examples=150, deadline=None)
@given(
    body=st.binary(max_size=60)
    | st.dictionaries(_FIELDS, _ANY, max_size=5).map(lambda d: json.dumps(d).encode())
)
def test_no_body_whatever_gets_anything_but_an_answer_or_one_line(body: bytes) -> None:
    async def ask() -> None:
        service = Service(_FUZZED)
        for call in (service.reset, service.step):
            try:
                json.dumps(await call(body))
            except (KrillError, HouseholdError) as error:
                assert "\n" not in str(error)

    asyncio.run(ask())


_FUZZED = BuiltinSource(seed=9)
