"""How calls to a model server wait, and what is said meanwhile; and that its words are read in linear time."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krill_tui.errors import ModelError
from krill_tui.models import endpoint as endpoint_module
from krill_tui.models.base import Message
from krill_tui.models.chat_answer import UnreadableAnswer, joined_stream, read_chat, with_thought
from krill_tui.models.endpoint import Limits, Refused, span
from krill_tui.models.openai_api import OpenAIChat
from krill_tui.models.remembering import RememberingChat
from krill_tui.models.server_said import read_refusal
from tests.deviating_endpoint import KEY, Answer, Call, answer, chat, fine, refusal, serving

HELLO: list[Message] = [{"role": "user", "content": "hello"}]


def chat_at(base: str, said: list[str], **limits: object) -> OpenAIChat:
    settings: dict[str, object] = {"base_delay": 0.001, "max_retries": 2, "timeout": 5.0, **limits}
    return OpenAIChat(
        f"{base}/v1",
        "m",
        KEY,
        role="teacher",
        setting="model.teacher_api_base",
        limits=Limits(**settings),  # pyright: ignore[reportArgumentType]
        say=lambda line, level: said.append(line),
    )


async def test_a_wait_is_said_once_with_the_number_of_calls_that_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(endpoint_module, "SAID_WAIT", 0.5)
    seen = Counter[str]()

    def act(call: Call) -> Answer:
        question = json.dumps(call.body)
        seen[question] += 1
        slow = answer({"error": {"message": "slow down"}}, 429, retry_after="0.6")
        return slow if seen[question] == 1 else fine(call)

    said: list[str] = []
    async with serving(act) as base:
        model = chat_at(base, said, concurrency=8)
        calls = (model.complete([{"role": "user", "content": f"{n}"}]) for n in range(8))
        await asyncio.gather(*calls)
        await model.close()
    assert said == ["teacher: asked to wait 0.6 s (rate limit), 8 calls waiting"]


async def test_a_backoff_is_said_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "SAID_WAIT", 0.01)
    said: list[str] = []
    async with serving(refusal(503, "overloaded {key}")) as base:
        model = chat_at(base, said, base_delay=0.05, max_retries=1)
        with pytest.raises(ModelError):
            await model.complete(HELLO)
        await model.close()
    assert len(said) == 1 and said[0].startswith(
        "teacher: the endpoint answered 503: overloaded [hidden]; trying again in "
    )
    assert said[0].endswith("1 call waiting")


async def test_a_call_that_gets_no_answer_is_mentioned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint_module, "SILENCE", 0.1)
    said: list[str] = []
    async with serving(lambda call: Answer(then="hang")) as base:
        model = chat_at(base, said, timeout=0.4, max_retries=0)
        with pytest.raises(ModelError, match=r"no whole answer within 0\.4 s"):
            await asyncio.gather(model.complete(HELLO), model.complete(HELLO))
        await model.close()
    assert said == ["teacher: no answer for 0.1 s, 2 calls waiting; given up after 0.4 s each"]


async def test_more_than_the_longest_wait_fails_at_once_with_the_servers_words() -> None:
    calls: list[Call] = []

    def act(call: Call) -> Answer:
        calls.append(call)
        return answer({"error": {"message": "Weekly limit reached."}}, 429, retry_after="7200")

    began = time.perf_counter()
    async with serving(act) as base:
        model = chat_at(base, [])
        with pytest.raises(Refused, match=r"429: Weekly limit reached\.; it asks to wait 2 h") as caught:
            await model.complete(HELLO)
        await model.close()
    assert len(calls) == 1 and time.perf_counter() - began < 3
    assert caught.value.unreachable and not caught.value.permanent


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:9/v1", "the connection was refused: nobody listens there"),
        ("http://nowhere.invalid/v1", r"the host's name cannot be resolved \(DNS\)"),
    ],
)
async def test_what_keeps_a_connection_from_coming_about_is_told_apart(url: str, said: str) -> None:
    model = OpenAIChat(url, "m", role="teacher", limits=Limits(max_retries=1, base_delay=0.001))
    with pytest.raises(ModelError, match=said) as caught:
        await model.complete(HELLO)
    await model.close()
    assert caught.value.unreachable


async def test_a_server_without_tls_is_told_from_one_that_is_not_there() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        model = OpenAIChat(f"https://127.0.0.1:{port}/v1", "m", limits=Limits(max_retries=0, timeout=5))
        with pytest.raises(ModelError, match="no TLS is spoken there") as caught:
            await model.complete(HELLO)
        await model.close()
    assert caught.value.permanent


def test_a_certificate_that_is_not_trusted_is_said_so() -> None:
    error = ssl.SSLCertVerificationError(1, "[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate")
    said = endpoint_module.read_failure(error, 1.0)
    assert said.kind == "denied" and "its certificate is not trusted" in said.what


async def test_cancelling_a_call_that_waits_is_immediate() -> None:
    async with serving(refusal(503, "later")) as base:
        model = chat_at(base, [], base_delay=60.0)
        call = asyncio.create_task(model.complete(HELLO))
        await asyncio.sleep(0.2)
        call.cancel()
        began = time.perf_counter()
        with pytest.raises(asyncio.CancelledError):
            await call
        await model.close()
    assert time.perf_counter() - began < 1


async def test_what_one_call_learned_of_an_endpoint_the_next_ones_know() -> None:
    bodies: list[dict[str, object]] = []

    def act(call: Call) -> Answer:
        bodies.append(call.body)
        if "temperature" in call.body:
            return refusal(
                400, "Unsupported value: 'temperature'.", code="unsupported_value", param="temperature"
            )(call)
        return fine(call)

    said: list[str] = []
    async with serving(act) as base:
        model = chat_at(base, said)
        await asyncio.gather(*(model.complete(HELLO, temperature=0.5) for _ in range(4)))
        learned = len(bodies)
        await model.complete(HELLO, temperature=0.5)
        await model.close()
    assert len(bodies) == learned + 1 and len(said) == 1


@pytest.mark.parametrize(
    "words",
    [
        "messages: text content blocks must be non-empty",
        "Invalid 'messages[0].content': empty string.",
        "String should have at least 1 character",
        "system: content cannot be empty",
    ],
)
async def test_an_empty_system_message_is_left_out_where_it_is_refused(words: str) -> None:
    bodies: list[list[str]] = []

    def act(call: Call) -> Answer:
        bodies.append(call.roles)
        return refusal(400, words)(call) if "system" in call.roles else fine(call)

    said: list[str] = []
    async with serving(act) as base:
        model = chat_at(base, said)
        for _ in range(2):
            await model.complete([{"role": "system", "content": ""}, *HELLO])
        await model.close()
    assert bodies == [["system", "user"], ["user"], ["user"]] and len(said) == 1


async def test_a_recorded_answer_comes_back_with_its_thought_and_its_end(tmp_path) -> None:
    async with serving(lambda call: answer(chat(None, "length", reasoning_content="hm"))) as base:
        model = chat_at(base, [])
        first = await RememberingChat(model, tmp_path / "replies.jsonl").complete(HELLO)
        await model.close()
    assert await RememberingChat(model, tmp_path / "replies.jsonl").complete(HELLO) == first
    assert (first.thought, first.finish) == ("hm", "length")


def test_spans_are_for_people() -> None:
    assert [span(s) for s in (0.25, 40, 119, 120, 7200, 86400 * 3)] == [
        *("0.25 s", "40 s", "119 s", "2 min", "2 h", "3 d")
    ]


_FIELDS = (
    *(
        "error",
        "message",
        "code",
        "param",
        "detail",
        "loc",
        "choices",
        "content",
        "text",
        "type",
        "data",
        "metadata",
    ),
    *("reasoning_content", "finish_reason", "usage", "raw", "retryDelay", "index", "embedding"),
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(_FIELDS) | st.text(max_size=4), inner, max_size=4)
    ),
    max_leaves=24,
)


@settings(max_examples=300, deadline=None)
@given(st.integers(100, 999), _JSON, st.sampled_from(["", "5", "nan", "inf", "-1", "Mon", "\x00", "9" * 400]))
def test_any_refusal_is_one_printable_line(status: int, body: object, wait: str) -> None:
    sent = {"messages": [{"role": "system", "content": ""}], "temperature": 1.0, "max_tokens": 5}
    said = read_refusal(status, {"retry-after": wait}, json.dumps(body).encode(), sent, now=0.0)
    assert said.what.isprintable() and len(said.what) < 500
    assert said.wait is None or 0 <= said.wait < float("inf")


@settings(max_examples=300, deadline=None)
@given(_JSON)
def test_any_answer_is_a_reply_or_no_message(body: object) -> None:
    for value in (
        body,
        {"choices": [{"message": body}]},
        {"choices": [{"message": {"content": body}}], "usage": body},
    ):
        try:
            reply = read_chat(value)
        except UnreadableAnswer:
            continue
        with_thought(reply).encode()


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=80), _JSON)
def test_any_stream_is_read_or_unreadable(text: str, body: object) -> None:
    for stream in (
        text,
        f"data: {text}",
        f"data: {json.dumps(body)}\n\ndata: {json.dumps({'choices': [body]})}",
    ):
        try:
            joined_stream(stream)
        except UnreadableAnswer:
            continue


@pytest.mark.parametrize(
    "piece",
    [
        *(
            "<think>",
            "</think>",
            "<|channel|>",
            "<|channel|>a<|message|>",
            "[THINK]",
            "◁think▷",
            "<",
            "prompt ",
            "token ",
        ),
        *(
            "input exceeds ",
            "system role ",
            "try again in ",
            "1",
            "1m",
            "range ",
            "not support ",
            '{"error":',
            "<title>",
            "a b ",
        ),
    ],
)
def test_sixty_thousand_characters_are_read_at_once(piece: str) -> None:
    text = (piece * 60_000)[:60_000]
    sent = {
        "messages": [{"role": "system", "content": ""}],
        "temperature": 1.0,
        "max_tokens": 5,
        "input": ["a", "b"],
    }
    began = time.perf_counter()
    with_thought(read_chat(chat(text)))
    read_refusal(400, {}, text.encode(), sent, now=0.0)
    read_refusal(400, {}, json.dumps({"error": {"message": text}}).encode(), sent, now=0.0)
    assert time.perf_counter() - began < 0.5
