from __future__ import annotations

import asyncio
import json
import random
import time

import numpy as np
import pytest

from krill_tui.errors import ModelError
from krill_tui.models.base import ActRequest, Message, Sampling
from krill_tui.models.builtin_embedder import BuiltinEmbedder
from krill_tui.models.endpoint import Limits
from krill_tui.models.openai_api import OpenAIChat, OpenAIEmbedder, OpenAIPolicy
from krill_tui.skills.bank import SkillBank
from krill_tui.skills.distill import distill
from krill_tui.skills.llm_teacher import LLMTeacher
from krill_tui.skills.teacher import TeacherCall
from tests.episodes import episode
from tests.faulty_endpoint import Fault, FaultyEndpoint

HELLO: list[Message] = [{"role": "user", "content": "hello"}]
KEY = "sk-secret-42"


def chat_of(server: FaultyEndpoint, model: str = "m", **options: object) -> OpenAIChat:
    settings: dict[str, object] = {"base_delay": 0.001, "timeout": 5, **options}
    return OpenAIChat(server.url, model, KEY, limits=Limits(**settings))  # pyright: ignore[reportArgumentType]


async def test_a_reply_comes_with_its_usage() -> None:
    async with FaultyEndpoint() as server:
        chat = chat_of(server)
        reply = await chat.complete(HELLO)
        await chat.close()
    assert (reply.text, reply.usage.prompt_tokens, reply.usage.completion_tokens) == ("hello", 7, 5)
    assert server.keys == [f"Bearer {KEY}"]


@pytest.mark.parametrize("fault", ["429", "500", "drop", "truncate", "not json", "no choices", "html"])
async def test_a_fault_that_may_pass_is_tried_again(fault: Fault) -> None:
    async with FaultyEndpoint(fault=lambda number: fault if number < 2 else "") as server:
        chat = chat_of(server)
        assert (await chat.complete(HELLO)).text == "hello"
        await chat.close()
    assert len(server.requests) == 3


async def test_an_endpoint_that_does_not_answer_in_time_is_tried_again() -> None:
    async with FaultyEndpoint(fault=lambda number: "hang" if number == 0 else "") as server:
        chat = chat_of(server, timeout=0.5)
        assert (await chat.complete(HELLO)).text == "hello"
        await chat.close()
    assert len(server.requests) == 2


async def test_an_endpoint_that_stays_broken_is_one_line_without_the_key() -> None:
    async with FaultyEndpoint(fault=lambda _: "500") as server:
        chat = chat_of(server, max_retries=3)
        with pytest.raises(ModelError, match=r"answered 500: no, .*, after 4 attempts") as caught:
            await chat.complete(HELLO)
        await chat.close()
    assert len(server.requests) == 4
    assert KEY not in str(caught.value) and "\n" not in str(caught.value) and server.url in str(caught.value)


@pytest.mark.parametrize(("fault", "status"), [("401", 401), ("400", 400), ("quota", 429)])
async def test_a_refusal_for_good_is_not_tried_again_and_hides_the_key_the_server_quotes(
    fault: Fault, status: int
) -> None:
    async with FaultyEndpoint(fault=lambda _: fault) as server:
        chat = chat_of(server)
        with pytest.raises(ModelError, match=rf"(refused with|answered) {status}: no, \[hidden\]") as caught:
            await chat.complete(HELLO)
        await chat.close()
    assert len(server.requests) == 1 and KEY not in str(caught.value)


async def test_nobody_listening_is_one_line() -> None:
    chat = OpenAIChat("http://127.0.0.1:9/v1", "m", limits=Limits(max_retries=1, base_delay=0.001))
    with pytest.raises(ModelError, match=r"127\.0\.0\.1:9.*connection was refused"):
        await chat.complete(HELLO)
    await chat.close()


async def test_retry_after_is_honoured() -> None:
    server = FaultyEndpoint(fault=lambda n: "429" if n == 0 else "", headers="Retry-After: 0.3\r\n")
    async with server:
        chat = chat_of(server)
        began = time.perf_counter()
        await chat.complete(HELLO)
        await chat.close()
    assert time.perf_counter() - began >= 0.3


async def test_no_more_calls_than_the_concurrency_are_in_flight() -> None:
    async with FaultyEndpoint(latency=0.05) as server:
        chat = chat_of(server, concurrency=3)
        await asyncio.gather(*(chat.complete(HELLO) for _ in range(12)))
        await chat.close()
    assert server.busiest == 3 and len(server.requests) == 12


@pytest.mark.parametrize("model", ["o3", "openai/o4-mini", "gpt-5.1"])
async def test_reasoning_models_are_asked_without_what_they_refuse(model: str) -> None:
    async with FaultyEndpoint() as server:
        chat = chat_of(server, model)
        await chat.complete(HELLO, temperature=0.5, max_tokens=9)
        await chat.close()
    assert server.requests[0].keys() == {"model", "messages", "max_completion_tokens"}


async def test_other_models_get_temperature_and_max_tokens_only_where_they_are_set() -> None:
    async with FaultyEndpoint() as server:
        chat = chat_of(server, "Qwen/Qwen2.5-7B-Instruct")
        await chat.complete(HELLO, temperature=0.0, max_tokens=9)
        await chat.complete(HELLO)
        await chat.close()
    assert (server.requests[0]["temperature"], server.requests[0]["max_tokens"]) == (0.0, 9)
    assert server.requests[1].keys() == {"model", "messages"}


async def test_embeddings_come_in_the_order_of_the_texts_with_rows_of_length_one() -> None:
    async with FaultyEndpoint(fault=lambda number: "500" if number == 0 else "") as server:
        embedder = OpenAIEmbedder(server.url, "e", KEY, limits=Limits(base_delay=0.001))
        matrix = await embedder.embed(["a" * n for n in range(300)])
        assert (await embedder.embed([])).shape[0] == 0
        await embedder.close()
    assert matrix.shape == (300, 2) and matrix.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), 1, atol=1e-6)
    lengths = [len("(empty)"), *range(1, 300)]  # an empty text is sent as words that say so
    np.testing.assert_allclose(matrix[:, 0] / matrix[:, 1], lengths, rtol=1e-4)
    assert [len(request["input"]) for request in server.requests] == [256, 256, 44]


async def test_the_policy_says_what_the_endpoint_says() -> None:
    async with FaultyEndpoint(reply=lambda _: "<action>look</action>") as server:
        policy = OpenAIPolicy(chat_of(server))
        await policy.start("e")
        sampling = Sampling(temperature=0.7, max_tokens=11)
        reply = await policy.act(ActRequest("e", HELLO, "", (), 0, sampling))
        await policy.finish("e")
        await policy.close()
    assert (reply.text, reply.ids, reply.prompt_tokens) == ("<action>look</action>", (), 7)
    assert (server.requests[0]["temperature"], server.requests[0]["max_tokens"]) == (0.7, 11)


async def test_a_conversation_that_outgrows_the_model_ends_the_episode_not_the_run() -> None:
    async with FaultyEndpoint(fault=lambda _: "long") as server:
        policy = OpenAIPolicy(chat_of(server))
        reply = await policy.act(ActRequest("e", HELLO, "", (), 0, Sampling()))
        await policy.close()
    assert (reply.finish, reply.text) == ("context", "") and len(server.requests) == 1


async def test_every_trajectory_is_distilled_though_a_fifth_of_the_answers_is_faulty() -> None:
    kinds: list[Fault] = ["429", "500", "drop", "truncate", "prose"]
    rng = random.Random(1)
    faults: list[Fault] = [rng.choice(kinds) if rng.random() < 0.2 else "" for _ in range(400)]

    def teach(request: dict[str, object]) -> str:
        number = str(request["messages"]).partition("Episode e")[2].partition("\\n")[0]
        return json.dumps(
            [{"name": f"Skill {number}", "principle": f"word{number} " * 5, "category": "Heat"}]
        )

    calls: list[TeacherCall] = []
    async with FaultyEndpoint(fault=lambda n: faults[n], reply=teach, latency=0.02) as server:
        chat = chat_of(server, concurrency=8)
        bank = SkillBank.in_memory()
        report = await distill(
            [episode(f"e{n}") for n in range(60)],
            bank,
            LLMTeacher(chat),
            BuiltinEmbedder(),
            env="alfworld",
            on_call=calls.append,
        )
        await chat.close()
    assert len(calls) == report.calls == 60 and report.failures == ()
    assert [skill.origin.trajectories for skill in report.accepted] == [(f"e{n}",) for n in range(60)]
    assert 1 < server.busiest <= 8 and len(server.requests) > 60
