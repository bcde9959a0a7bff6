"""A model server on loopback that answers in one of many ways that are not as they should be: one for each path.

`DEVIATIONS` is the table. A deviation is what the server does, and what has to come of it for each caller: a reply, an
invalid turn, the end of the context, or an error in certain words. The wordings are those of real servers.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import re
import struct
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from email.utils import formatdate
from functools import cache
from itertools import pairwise
from typing import Any

KEY = "sk-deviating-0123456789-abcdef"
THOUGHT = "go on [gen_001]"
ACTION = "<action>look</action>"
REPLY = f"<think>{THOUGHT}</think>{ACTION}"
SKILLS = json.dumps(
    [{"name": "Look first", "principle": "Look at the list of places first.", "category": "general"}]
)
WIDTH = 4


@dataclass(frozen=True, slots=True)
class Call:
    """One request."""

    path: str
    body: dict[str, Any]
    key: str = ""
    number: int = 0
    """Of this deviation and caller."""

    @property
    def embeds(self) -> bool:
        return self.path.endswith("/embeddings")

    @property
    def text(self) -> str:
        """A good answer's text."""
        return SKILLS if "when_to_apply" in json.dumps(self.body.get("messages", "")) else REPLY

    @property
    def roles(self) -> list[str]:
        return [message["role"] for message in self.body.get("messages", ())]


@dataclass(frozen=True, slots=True)
class Answer:
    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    then: str = ""
    """What follows the body: `close`, `hang`, `endless`, `drip` (a byte now and then), `drip headers`."""
    raw: bytes = b""
    """Everything that is sent, in place of status, headers and body."""


Act = Callable[[Call], Answer]


@dataclass(frozen=True, slots=True)
class Deviation:
    """`policy`, `teacher`, `embeddings`: what has to come of it, each a word and, after a colon, a pattern.

    `reply`: as if nothing were wrong (policy: the pattern is in the thought); `invalid`: a turn without an action that
    says the pattern; `context`; `error`, `permanent`, `unreachable`: a ModelError of that kind in those words; empty:
    not tried.
    """

    name: str
    act: Act
    policy: str = ""
    teacher: str = ""
    embeddings: str = ""
    says: str = ""
    """Pattern of an event that is said meanwhile."""


def answer(value: object, status: int = 200, **headers: str) -> Answer:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    named = {name.replace("_", "-"): text for name, text in headers.items()}
    return Answer(status, data, {"content-type": "application/json", **named})


def refusal(status: int, message: object, **more: object) -> Act:
    """An error in OpenAI's form; `{key}` in the message is the caller's key."""

    def act(call: Call) -> Answer:
        said = message.replace("{key}", call.key) if isinstance(message, str) else message
        return answer(
            {"error": {"message": said, "type": "error", "param": None, "code": None, **more}}, status
        )

    return act


def body(status: int, value: object, **headers: str) -> Act:
    return lambda call: answer(value, status, **headers)


def fine(call: Call) -> Answer:
    return answer(vectors(call) if call.embeds else chat(call.text))


def chat(content: object, finish: str | None = "stop", **message: object) -> dict[str, Any]:
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "finish_reason": finish,
                "message": {"role": "assistant", "content": content, **message},
            }
        ],
        "usage": {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12},
    }


def vector(text: str) -> list[float]:
    return [float(len(text)), 1.0, 2.0, float(sum(map(ord, text)) % 13)]


def vectors(call: Call, make: Callable[[str, int], object] | None = None, **row: object) -> dict[str, Any]:
    made = make or (lambda text, place: vector(text))
    rows = [
        {"object": "embedding", "index": place, "embedding": made(text, place), **row}
        for place, text in enumerate(call.body["input"])
    ]
    return {"object": "list", "data": rows, "model": "m", "usage": {"prompt_tokens": 1, "total_tokens": 1}}


def spoken(shape: Callable[[str], dict[str, Any]]) -> Act:
    """A chat answer in another shape; embeddings are as they should be."""
    return lambda call: fine(call) if call.embeds else answer(shape(call.text))


def embedded(shape: Callable[[Call], object]) -> Act:
    return lambda call: answer(shape(call)) if call.embeds else fine(call)


def once(act: Act) -> Act:
    """Only the first call goes wrong."""
    return lambda call: act(call) if call.number == 0 else fine(call)


def unless(right: Callable[[Call], bool], act: Act) -> Act:
    return lambda call: fine(call) if right(call) else act(call)


def rest(text: str) -> str:
    """A policy's text without its thought; a teacher's as it is."""
    return text.replace(f"<think>{THOUGHT}</think>", "")


def stream(text: str, *, thought: bool = False, tail: str = "data: [DONE]\n\n") -> bytes:
    pieces = [{"content": text[i : i + 7]} for i in range(0, len(text), 7)]
    if thought:
        pieces = [{"reasoning_content": THOUGHT[:4]}, {"reasoning_content": THOUGHT[4:]}, *pieces]
    events = [{"choices": [{"delta": piece, "finish_reason": None}]} for piece in pieces]
    events.append({"choices": [{"delta": {}, "finish_reason": "stop"}]})
    return (": working\n\n" + "".join(f"data: {json.dumps(e)}\n\n" for e in events) + tail).encode()


def streamed(call: Call, **options: Any) -> Answer:
    if call.embeds:
        return fine(call)
    text = rest(call.text) if options.get("thought") else call.text
    return Answer(200, stream(text, **options), {"content-type": "text/event-stream"})


def packed(call: Call, how: str) -> Answer:
    plain = fine(call)
    data = gzip.compress(plain.body) if how == "gzip" else zlib.compress(plain.body)
    return Answer(200, data, {**plain.headers, "content-encoding": how})


def chunked(call: Call) -> Answer:
    data = fine(call).body
    cuts = [*range(0, len(data), 11), len(data)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (end - start, data[start:end]) for start, end in pairwise(cuts))
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    return Answer(raw=head + chunks + b"0\r\n\r\n")


@cache
def bomb() -> bytes:
    """64 KB that unpack to 64 MB."""
    return gzip.compress(b" " * 64_000_000, 9)


def redirect(call: Call, status: int = 307) -> Answer:
    if "/moved/" in call.path:
        return fine(call)
    return Answer(status, b"", {"location": call.path.replace("/v1/", "/v1/moved/")})


def cut(call: Call) -> Answer:
    return Answer(200, fine(call).body[:-10], {"content-length": str(len(fine(call).body))}, then="close")


def unused(*names: str) -> Callable[[Call], bool]:
    return lambda call: not any(name in call.body for name in names)


def few(most: int) -> Callable[[Call], bool]:
    return lambda call: not call.embeds or len(call.body["input"]) <= most


def no_system(call: Call) -> bool:
    return "system" not in call.roles


def all_filled(call: Call) -> bool:
    return all(message["content"].strip() for message in call.body.get("messages", ()))


def at_most(name: str, value: float) -> Callable[[Call], bool]:
    return lambda call: call.embeds or call.body.get(name, 0) <= value


_OK = ("reply", "reply", "reply")


def _all(name: str, act: Act, expected: str, says: str = "") -> Deviation:
    return Deviation(name, act, expected, expected, expected, says)


def _chat(name: str, act: Act, policy: str = "reply", teacher: str = "reply", says: str = "") -> Deviation:
    return Deviation(name, act, policy, teacher, says=says)


_SHAPES = [
    _chat(name, spoken(shape), f"reply:{re.escape(THOUGHT)}")
    for name, shape in {
        "text parts": lambda t: chat([{"type": "text", "text": t[:9]}, {"type": "text", "text": t[9:]}]),
        "parts that are strings": lambda t: chat([t[:9], t[9:]]),
        "one part": lambda t: chat({"type": "text", "text": t}),
        "output_text parts": lambda t: chat([{"type": "output_text", "text": t, "annotations": []}]),
        "a thinking part": lambda t: chat(
            [{"type": "thinking", "thinking": THOUGHT, "signature": "x"}, {"type": "text", "text": rest(t)}]
        ),
        "a thinking part of parts": lambda t: chat(
            [
                {"type": "thinking", "thinking": [{"type": "text", "text": THOUGHT}]},
                {"type": "text", "text": rest(t)},
            ]
        ),
        "a reasoning part with a summary": lambda t: chat(
            [{"type": "reasoning", "summary": [{"text": THOUGHT}]}, {"type": "text", "text": rest(t)}]
        ),
        "a part marked as thought": lambda t: chat([{"text": THOUGHT, "thought": True}, {"text": rest(t)}]),
        "reasoning_content": lambda t: chat(rest(t), reasoning_content=THOUGHT),
        "reasoning": lambda t: chat(rest(t), reasoning=THOUGHT),
        "reasoning and reasoning_content": lambda t: chat(
            rest(t), reasoning=THOUGHT, reasoning_content=THOUGHT
        ),
        "reasoning_details": lambda t: chat(
            rest(t), reasoning_details=[{"type": "reasoning.text", "text": THOUGHT}]
        ),
        "reasoning in a summary": lambda t: chat(
            rest(t), reasoning_details=[{"type": "reasoning.summary", "summary": THOUGHT}]
        ),
        "reasoning that is an object": lambda t: chat(rest(t), reasoning={"content": THOUGHT}),
        "thinking": lambda t: chat(rest(t), thinking=THOUGHT),
        "reasoning beside a thought in the text": lambda t: chat(t, reasoning_content="before that"),
        "<thinking> tags": lambda t: chat(f"<thinking>{THOUGHT}</thinking>\n{rest(t)}"),
        "<thought> tags": lambda t: chat(f"<thought>{THOUGHT}</thought>{rest(t)}"),
        "<reasoning> tags": lambda t: chat(f"<reasoning>{THOUGHT}</reasoning>{rest(t)}"),
        "[THINK] tags": lambda t: chat(f"[THINK]{THOUGHT}[/THINK]{rest(t)}"),
        "seed tags": lambda t: chat(f"<seed:think>{THOUGHT}</seed:think>{rest(t)}"),
        "triangle tags": lambda t: chat(f"◁think▷{THOUGHT}◁/think▷{rest(t)}"),
        "thought tokens": lambda t: chat(
            f"<|begin_of_thought|>{THOUGHT}<|end_of_thought|><|begin_of_solution|>{rest(t)}<|end_of_solution|>"
        ),
        "START_THINKING tokens": lambda t: chat(
            f"<|START_THINKING|>{THOUGHT}<|END_THINKING|><|START_RESPONSE|>{rest(t)}<|END_RESPONSE|>"
        ),
        "Harmony channels": lambda t: chat(
            f"<|channel|>analysis<|message|>{THOUGHT}<|end|><|start|>assistant<|channel|>final<|message|>{rest(t)}<|return|>"
        ),
        "a thought opened by the prompt": lambda t: chat(f"{THOUGHT}\n</think>\n\n{rest(t)}"),
        "two choices": lambda t: {**chat(t), "choices": [chat(t)["choices"][0], chat("no")["choices"][0]]},
        "no finish reason": lambda t: chat(t, None),
        "an unknown finish reason": lambda t: chat(t, "eos"),
        "usage null": lambda t: {**chat(t), "usage": None},
        "usage that is a list": lambda t: {**chat(t), "usage": [1]},
        "usage of words": lambda t: {**chat(t), "usage": {"prompt_tokens": "many", "completion_tokens": -5}},
        "usage too large": lambda t: {
            **chat(t),
            "usage": {"prompt_tokens": 10**30, "completion_tokens": True},
        },
        "fields nobody knows": lambda t: {
            **chat(t, refusal=None, tool_calls=[], audio=None),
            "x": {"y": [1]},
        },
    }.items()
]

_CARRIED = [
    Deviation("a stream nobody asked for", streamed, *_OK[:2]),
    Deviation(
        "a stream with a thought", lambda c: streamed(c, thought=True), f"reply:{re.escape(THOUGHT)}", "reply"
    ),
    Deviation("a stream without an end", lambda c: streamed(c, tail=""), *_OK[:2]),
    *(
        _all(name, act, "reply")
        for name, act in {
            "gzip": lambda c: packed(c, "gzip"),
            "deflate": lambda c: packed(c, "deflate"),
            "chunks": chunked,
            "text/plain": lambda c: Answer(200, fine(c).body, {"content-type": "text/plain"}),
            "no content type": lambda c: Answer(200, fine(c).body),
            "a byte order mark": lambda c: Answer(200, b"\xef\xbb\xbf" + fine(c).body),
            "blank lines first": lambda c: Answer(200, b"\n \n\n" + fine(c).body),
            "status 201": lambda c: answer(json.loads(fine(c).body), 201),
            "closed after each answer": lambda c: Answer(
                200, fine(c).body, {"connection": "close"}, then="close"
            ),
            "redirect 307": redirect,
            "redirect 308": lambda c: redirect(c, 308),
            "redirect 301": lambda c: redirect(c, 301),
        }.items()
    ),
]

_HOSTILE = [
    _chat("control characters", spoken(lambda t: chat("\x1b[2J\x1b]0;x\x07" + t))),
    _chat("lone surrogates", spoken(lambda t: chat(t.replace("look", "look", 1) + " \ud800"))),
    _chat("the key in the reply", lambda c: answer(chat(f"{c.key} {c.text}"))),
    _chat(
        "a reply of a megabyte",
        spoken(lambda t: chat("<think>" + "A" * 1_000_000 + "</think>" + rest(t))),
        "reply",
        "reply",
    ),
]


def _parameter(name: str, right: Callable[[Call], bool], act: Act, says: str) -> Deviation:
    return _chat(name, unless(right, act), says=says)


_LEARNED = [
    _parameter(
        "max_tokens has another name",
        unused("max_tokens"),
        refusal(
            400,
            "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
            code="unsupported_parameter",
            param="max_tokens",
        ),
        "max_completion_tokens",
    ),
    _parameter(
        "only the default temperature",
        unused("temperature"),
        refusal(
            400,
            "Unsupported value: 'temperature' does not support 0.7 with this model. Only the default (1) value is supported.",
            code="unsupported_value",
            param="temperature",
        ),
        "does not take 'temperature'",
    ),
    _chat(
        "neither max_tokens nor temperature",
        lambda c: next(
            (
                refusal(400, f"Unsupported parameter: '{name}'.", code="unsupported_parameter", param=name)(c)
                for name in ("max_tokens", "temperature")
                if name in c.body
            ),
            fine(c),
        ),
    ),
    _parameter(
        "extra inputs are not permitted",
        unused("temperature"),
        body(
            422,
            {
                "detail": [
                    {
                        "type": "extra_forbidden",
                        "loc": ["body", "temperature"],
                        "msg": "Extra inputs are not permitted",
                    }
                ]
            },
        ),
        "temperature",
    ),
    _parameter(
        "unrecognized argument",
        unused("temperature"),
        refusal(400, "Unrecognized request argument supplied: temperature"),
        "temperature",
    ),
    _parameter(
        "a 500 for a parameter",
        unused("temperature"),
        body(500, {"error": "temperature is not supported by this backend"}),
        "temperature",
    ),
    _parameter(
        "too many max_tokens",
        at_most("max_tokens", 8),
        refusal(
            400,
            "max_tokens is too large: 64. This model supports at most 8 completion tokens, whereas you provided 64.",
            param="max_tokens",
            code="invalid_value",
        ),
        "'max_tokens' up to 8",
    ),
    _parameter(
        "a range for max_tokens",
        at_most("max_tokens", 32),
        body(400, {"message": "Range of max_tokens should be [1, 32]", "code": "InvalidParameter"}),
        "up to 32",
    ),
    _parameter(
        "a range for the temperature",
        at_most("temperature", 0.5),
        refusal(400, "temperature must be between 0 and 0.5, got 0.7"),
        "up to 0.5",
    ),
    *(
        _parameter(f"no system role: {name}", no_system, act, "no system role")
        for name, act in {
            "a template": refusal(400, "System role not supported", type="BadRequestError"),
            "a template's 500": body(
                500,
                {
                    "error": {
                        "code": 500,
                        "message": "Jinja Exception: System role not supported",
                        "type": "server_error",
                    }
                },
            ),
            "alternating roles": refusal(
                400, "Conversation roles must alternate user/assistant/user/assistant/..."
            ),
            "only two roles": refusal(400, "Only user and assistant roles are supported!"),
            "o1": refusal(
                400,
                "Unsupported value: 'messages[0].role' does not support 'system' with this model.",
                code="unsupported_value",
                param="messages[0].role",
            ),
            "Gemma at Google": body(
                400,
                [
                    {
                        "error": {
                            "code": 400,
                            "message": "Developer instruction is not enabled for models/gemma-3-27b-it",
                            "status": "INVALID_ARGUMENT",
                        }
                    }
                ],
            ),
            "an unexpected role": body(
                422, {"detail": "Unexpected role 'system'. Expected 'user' or 'assistant'."}
            ),
        }.items()
    ),
    _chat(
        "no empty messages",
        unless(all_filled, refusal(400, "messages.2: all messages must have non-empty content")),
    ),
    Deviation(
        "no encoding_format",
        unless(
            unused("encoding_format"),
            refusal(400, "Unknown parameter: encoding_format", param="encoding_format"),
        ),
        embeddings="reply",
        says="encoding_format",
    ),
    Deviation(
        "an extra encoding_format",
        unless(
            unused("encoding_format"),
            body(
                422,
                {
                    "detail": [
                        {
                            "loc": ["body", "encoding_format"],
                            "msg": "extra fields not permitted",
                            "type": "value_error.extra",
                        }
                    ]
                },
            ),
        ),
        embeddings="reply",
    ),
    Deviation(
        "batches of 32",
        unless(
            few(32),
            body(413, {"error": "batch size 40 > maximum allowed batch size 32", "error_type": "Validation"}),
        ),
        embeddings="reply",
        says="too many for one call",
    ),
    Deviation(
        "batches of 10",
        unless(
            few(10), refusal(400, "batch size is invalid, it should not be larger than 10.: input.contents")
        ),
        embeddings="reply",
    ),
    Deviation(
        "batches of 1",
        unless(few(1), body(422, {"detail": "inputs must be a single text"})),
        embeddings="reply",
    ),
    Deviation(
        "batches of 2 and a 500",
        unless(
            few(2),
            body(
                500,
                {
                    "error": {
                        "code": 500,
                        "message": "input is too large to process. increase the physical batch size",
                        "type": "server_error",
                    }
                },
            ),
        ),
        embeddings="reply",
    ),
    _chat(
        "room for a shorter reply",
        unless(
            at_most("max_tokens", 40),
            refusal(
                400,
                "This model's maximum context length is 100 tokens. However, you requested 124 tokens (60 in the messages, 64 in the completion). Please reduce the length of the messages or completion.",
            ),
        ),
        teacher="",
    ),
    _chat(
        "room for a shorter reply, vLLM",
        unless(
            at_most("max_tokens", 40),
            refusal(
                400,
                "'max_tokens' or 'max_completion_tokens' is too large: 64. This model's maximum context length is 100 tokens and your request has 60 input tokens (64 > 100 - 60).",
            ),
        ),
        teacher="",
    ),
]

_PASSING = [
    _all(f"once: {name}", once(act), "reply")
    for name, act in {
        "429": body(429, {"error": {"message": "slow down"}}, retry_after="0"),
        "429 for a fraction": body(429, {"error": {"message": "slow down"}}, retry_after="0.02"),
        "429 in milliseconds": body(429, {"error": {"message": "slow down"}}, retry_after_ms="20"),
        "429 until a date gone by": body(429, {"error": "slow down"}, retry_after=formatdate(0, usegmt=True)),
        "429 and no number": body(429, {"error": "slow down"}, retry_after="nan"),
        "429 and a negative number": body(429, {"error": "slow down"}, retry_after="-5"),
        "429 and a word": body(429, {"error": "slow down"}, retry_after="soon"),
        "429 with the time in words": refusal(429, "Rate limit reached for m. Please try again in 20ms."),
        "429 with a delay in the body": body(
            429,
            [
                {
                    "error": {
                        "code": 429,
                        "message": "You exceeded your current quota, please check your plan and billing details.",
                        "status": "RESOURCE_EXHAUSTED",
                        "details": [{"@type": "RetryInfo", "retryDelay": "0.02s"}],
                    }
                }
            ],
        ),
        "408": body(408, {"error": "timeout"}),
        "409": body(409, {"error": "conflict"}),
        "425": body(425, {"error": "too early"}),
        "500": body(500, {"error": {"message": "boom"}}),
        "502 in HTML": lambda c: Answer(
            502, b"<html><title>502 Bad Gateway</title></html>", {"content-type": "text/html"}
        ),
        "503 loading": body(
            503, {"error": {"message": "Loading model", "type": "unavailable_error", "code": 503}}
        ),
        "520": body(520, b"error code: 520"),
        "529 overloaded": body(
            529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
        ),
        "status 999": lambda c: Answer(raw=b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n"),
        "an error with status 200": body(200, {"error": {"message": "Provider returned error", "code": 502}}),
        "closed without a word": lambda c: Answer(then="close", raw=b" "[:0]),
        "half a head": lambda c: Answer(raw=b"HTTP/1.1 200 OK\r\nContent-", then="close"),
        "half a body": cut,
        "a chunk that is none": lambda c: Answer(
            raw=b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", then="close"
        ),
        "a header that is none": lambda c: Answer(
            raw=b"HTTP/1.1 200 OK\r\nX\x00Y: \xff\r\n\r\n", then="close"
        ),
        "gzip that is none": lambda c: Answer(200, b"not gzip at all", {"content-encoding": "gzip"}),
        "a packing nobody knows": lambda c: Answer(200, b"xx", {"content-encoding": "br"}),
        "half of the JSON": lambda c: Answer(200, fine(c).body[:-9]),
        "no UTF-8": lambda c: Answer(200, b'{"choices": "\xff\xfe"}'),
        "nothing": lambda c: Answer(200, b""),
        "HTML": lambda c: Answer(200, b"<html>busy</html>", {"content-type": "text/html"}),
        "null": body(200, None),
        "a list": body(200, [1, 2]),
        "a string": body(200, "hello"),
        "a number": lambda c: Answer(200, b"1e999"),
        "a number of 10,000 digits": lambda c: Answer(200, b"9" * 10_000),
        "no choices": body(200, {"choices": [], "data": []}),
        "null choices": body(200, {"choices": None, "data": None}),
        "choices that are an object": body(200, {"choices": {"a": 1}, "data": {"a": 1}}),
        "choices that are numbers": body(200, {"choices": [1, 2], "data": [1, 2]}),
        "no answer in time": lambda c: Answer(then="hang"),
    }.items()
]

_FINAL = [
    _all("a wrong key, repeated", refusal(401, "Incorrect API key provided: {key}. You can find your key at example.com"), r"permanent:401: Incorrect API key provided: \[hidden\]"),
    _all("403", refusal(403, "Your project does not have access"), "permanent:403: Your project"),
    _all("404 for the model", refusal(404, "The model `m` does not exist.", code="model_not_found"), "permanent:404: The model `m` does not exist.*api_base"),
    _all("404 in HTML", lambda c: Answer(404, b"<html><title>Not Found</title><p>x</p></html>", {"content-type": "text/html"}), "permanent:404: Not Found"),
    _all("404 of FastAPI", body(404, {"detail": "Not Found"}), "permanent:404: Not Found"),
    _all("405", body(405, {"detail": "Method Not Allowed"}), "permanent:405"),
    _all("402", body(402, {"error": {"message": "Insufficient Balance", "type": "unknown_error"}}), "permanent:402: Insufficient Balance"),
    _all("a quota by its code", refusal(429, "You exceeded your current quota", code="insufficient_quota"), "permanent:429: You exceeded your current quota"),
    _all("a quota in words", body(429, {"error": {"message": "You exceeded your current quota, please check your plan and billing details."}}), "permanent:current quota"),
    _all("credit of Anthropic", body(400, {"type": "error", "error": {"type": "invalid_request_error", "message": "Your credit balance is too low to access the API."}}), "permanent:credit balance is too low"),
    _all("two hours", body(429, {"error": {"message": "Weekly limit reached."}}, retry_after="7200"), "unreachable:Weekly limit reached.*asks to wait 2 h"),
    _all("until the year 2100", body(503, {"error": "closed"}, retry_after="Fri, 01 Jan 2100 00:00:00 GMT"), r"unreachable:closed.*asks to wait .* d"),
    _all("two hours in words", refusal(429, "Limit reached. Please try again in 2h5m."), r"unreachable:Limit reached.*asks to wait 2\.08 h"),
    _all("500 in words", refusal(500, "CUDA out of memory"), "unreachable:500: CUDA out of memory, after 3 attempts"),
    _all("the error is a string", body(400, {"error": "bad things"}), "error:400: bad things"),
    _all("the error is a detail", body(400, {"detail": "bad things"}), "error:400: bad things"),
    _all("the error is a list", body(400, {"errors": [{"message": "bad things"}]}), "error:400: bad things"),
    _all("the error is a message", body(400, {"object": "error", "message": "bad things", "code": 400}), "error:400: bad things"),
    _all("the error is a problem", body(400, {"type": "about:blank", "title": "Bad Request", "detail": "bad things"}), "error:400: bad things"),
    _all("the error holds another's", body(400, {"error": {"message": json.dumps({"error": {"message": "bad things"}})}}), "error:400: bad things"),
    _all("the error holds a provider's", body(400, {"error": {"message": "Provider returned error", "metadata": {"raw": '{"error":{"message":"bad things"}}'}}}), "error:Provider returned error: bad things"),
    _all("the error is a fault", body(400, {"fault": {"faultstring": "bad things"}}), "error:400: bad things"),
    _all("the error is text", lambda c: Answer(400, b"bad things", {"content-type": "text/plain"}), "error:400: bad things"),
    _all("the error is HTML", lambda c: Answer(400, f"<html>bad things {c.key}</html>".encode()), r"error:400: bad things \[hidden\]"),
    _all("the error is nothing", lambda c: Answer(400, b""), "error:refused with 400"),
    _all("the error is long", body(400, {"error": {"message": "bad things " + "x" * 1_000_000}}), "error:400"),
    _all("the error is deep", lambda c: Answer(400, b"[" * 100_000 + b"]" * 100_000), "error:400"),
    _all("the error moves the cursor", refusal(400, "\x1b]0;title\x07no\nway \u202e{key}"), r"error:400: no way \[hidden\]"),
    _all("an error with status 200, always", body(200, {"error": {"message": "invalid model", "code": 400}}), "error:400: invalid model"),
    _all("a redirect elsewhere", lambda c: Answer(307, b"", {"location": "http://other.example/v1"}), "permanent:redirects to another server, http://other.example"),
    _all("a redirect in a circle", lambda c: Answer(307, b"", {"location": c.path}), "permanent:redirects in a circle"),
    _all("a redirect to a file", lambda c: Answer(302, b"", {"location": "file:///etc/passwd"}), "permanent:redirects to another server"),
    _all("a redirect to another port", lambda c: Answer(308, b"", {"location": "http://127.0.0.1:9/v1"}), "permanent:redirects to another server"),
    _all("JSON too deep", lambda c: Answer(200, b"[" * 100_000 + b"]" * 100_000), "error:no JSON"),
    _all("never an answer", lambda c: Answer(then="hang"), "unreachable:no whole answer within .* after 3 attempts"),
    _all("a body without end", lambda c: Answer(200, b" " * 1000, {"transfer-encoding": "chunked"}, then="endless"), "error:(longer than|no whole answer)"),
    _all("a byte now and then", lambda c: Answer(200, b"{", {"content-length": "1000"}, then="drip"), "unreachable:no whole answer"),
    _all("a header now and then", lambda c: Answer(raw=b"HTTP/1.1 200 OK\r\n", then="drip headers"), "unreachable:no whole answer"),
    _all("a bomb", lambda c: Answer(200, bomb(), {"content-encoding": "gzip"}), "error:longer than"),
    _all("closed, always", lambda c: Answer(then="close"), "unreachable:after 3 attempts"),
    _all("busy, always", body(503, {"error": {"message": "overloaded"}}), "unreachable:503: overloaded, after 3 attempts"),
    _chat("a filter on the prompt", refusal(400, "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.", code="content_filter"), "error:content management policy", "error:content management policy"),
    _chat("content that is a number", spoken(lambda t: chat(5)), "error:no text", "error:no text"),
]  # fmt: skip

_CONTEXT_WORDS: dict[str, Act] = {
    "OpenAI": refusal(400, "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.", code="context_length_exceeded", param="messages"),
    "OpenAI, code only": refusal(400, "no", code="context_length_exceeded"),
    "vLLM": refusal(400, "This model's maximum context length is 2048 tokens. However, you requested 2100 tokens (2090 in the messages, 10 in the completion).", type="BadRequestError", code=400),
    "vLLM, negative": refusal(400, "max_tokens must be at least 1, got -512.", type="BadRequestError"),
    "vLLM, prompt": refusal(400, "The decoder prompt (length 5000) is longer than the maximum model length of 4096. Make sure that `max_model_len` is no smaller"),
    "llama.cpp": body(400, {"error": {"code": 400, "message": "request (5000 tokens) exceeds the available context size (4096 tokens), try increasing it", "type": "exceed_context_size_error", "n_prompt_tokens": 5000, "n_ctx": 4096}}),
    "llama.cpp, older": body(500, {"error": {"code": 500, "message": "the request exceeds the available context size. try increasing the context size or enable context shift", "type": "server_error"}}),
    "llama-cpp-python": refusal(400, "Requested tokens (5000) exceed context window of 4096"),
    "Anthropic": body(400, {"type": "error", "error": {"type": "invalid_request_error", "message": "prompt is too long: 213462 tokens > 200000 maximum"}}),
    "Anthropic, input and max_tokens": body(400, {"type": "error", "error": {"type": "invalid_request_error", "message": "input length and `max_tokens` exceed context limit: 199000 + 4096 > 200000"}}),
    "413": lambda c: Answer(413, b"Request Entity Too Large"),
    "TGI": body(422, {"error": "Input validation error: `inputs` must have less than 1024 tokens. Given: 3000", "error_type": "validation"}),
    "TGI, sum": body(422, {"error": "Input validation error: `inputs` tokens + `max_new_tokens` must be <= 2048. Given: 2040 `inputs` tokens and 64 `max_new_tokens`"}),
    "Gemini": body(400, {"error": {"code": 400, "message": "The input token count (1200000) exceeds the maximum number of tokens allowed (1048576).", "status": "INVALID_ARGUMENT"}}),
    "SGLang": body(400, {"object": "error", "message": "The input (5000 tokens) is longer than the model's context length (4096 tokens).", "code": 400}),
    "SGLang, sum": body(400, {"object": "error", "message": "Requested token count exceeds the model's maximum context length of 4096 tokens."}),
    "Ollama": body(400, {"error": "input length exceeds maximum context length"}),
    "Mistral": body(400, {"object": "error", "message": "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length", "type": "invalid_request_prompt"}),
    "Bedrock": body(400, {"message": "Input is too long for requested model."}),
    "xAI": body(400, {"code": "Client specified an invalid argument", "error": "This model's maximum prompt length is 131072 but the request contains 537812 tokens."}),
    "LM Studio": body(400, {"error": "Trying to keep the first 5000 tokens when context the overflows. However, the model is loaded with context length of only 4096 tokens"}),
    "Cohere": body(400, {"message": "too many tokens: total number of tokens in the prompt cannot exceed 4081 - received 5000."}),
    "DashScope": body(400, {"error": {"message": "Range of input length should be [1, 30720]", "code": "invalid_parameter_error"}}),
    "Moonshot": refusal(400, "Invalid request: Your request exceeded model token limit: 8192"),
    "Zhipu": body(400, {"error": {"code": "1261", "message": "Prompt exceeds max length"}}),
    "OpenRouter": refusal(400, "This endpoint's maximum context length is 32768 tokens. However, you requested about 40000 tokens. Please reduce the length of either one."),
    "Groq, per minute": refusal(413, "Request too large for model m on tokens per minute (TPM): Limit 6000, Requested 9000", code="rate_limit_exceeded"),
    "OpenAI, per minute": refusal(429, "Request too large for gpt-4o on tokens per min (TPM): Limit 30000, Requested 40000.", code="rate_limit_exceeded"),
    "in a stream": lambda c: Answer(200, b'data: {"error": {"message": "maximum context length is 10 tokens", "code": 400}}\n\n', {"content-type": "text/event-stream"}),
    "with status 200": body(200, {"error": {"message": "maximum context length exceeded", "code": 400}}),
}  # fmt: skip
_CONTEXT = [_chat(f"context: {name}", act, "context", "error:") for name, act in _CONTEXT_WORDS.items()]

_SPENT = "the model used its budget of 5 tokens for thinking.*teacher.max_tokens"
_REPLIES = [
    _chat("null content", spoken(lambda t: chat(None)), "invalid:", "error:unreadable reply"),
    _chat("empty content", spoken(lambda t: chat("")), "invalid:", "error:unreadable reply"),
    _chat("no content", spoken(lambda t: {**chat(None), "choices": [{"message": {"role": "assistant"}}]}), "invalid:", "error:unreadable reply"),
    _chat("the budget spent on thinking", spoken(lambda t: chat(None, "length", reasoning_content=THOUGHT)), f"invalid:{re.escape(THOUGHT)}", f"error:{_SPENT}", says="raise rl.max_response_length"),
    _chat("the budget spent, content empty", spoken(lambda t: chat("", "length", reasoning=THOUGHT)), f"invalid:{re.escape(THOUGHT)}", f"error:{_SPENT}"),
    _chat("the budget spent, finish max_tokens", spoken(lambda t: chat(None, "MAX_TOKENS")), "invalid:", f"error:{_SPENT}"),
    _chat("more room helps", lambda c: fine(c) if c.body.get("max_tokens", 0) > 1000 else answer(chat(None, "length")), "invalid:", "reply"),
    _chat("everything taken for a thought", spoken(lambda t: chat(None, reasoning_content=t))),
    _chat("a refusal", spoken(lambda t: chat(None, refusal="I cannot help with that.")), "invalid:I cannot help", "error:the model refused: I cannot help", says="refused to answer"),
    _chat("a filter on the reply", spoken(lambda t: chat(None, "content_filter")), "invalid:", "error:content filter", says="content filter"),
    _chat("a call of a tool", spoken(lambda t: chat(None, "tool_calls", tool_calls=[{"id": "1", "type": "function", "function": {"name": "a", "arguments": "{}"}}])), "invalid:", "error:unreadable reply"),
    _chat("prose", spoken(lambda t: chat("I am sorry, I do not know.")), "invalid:I am sorry", "error:unreadable reply"),
    _chat("the context is full", spoken(lambda t: chat("", "model_context_window_exceeded")), "context", "error:budget"),
]  # fmt: skip


def _packed_vector(text: str) -> str:
    return base64.b64encode(struct.pack(f"<{WIDTH}f", *vector(text))).decode()


_VECTORS = [
    Deviation(name, embedded(shape), embeddings=expected)
    for name, shape, expected in [
        ("vectors in base64", lambda c: vectors(c, lambda t, i: _packed_vector(t)), "reply"),
        ("vectors in any order", lambda c: {"data": vectors(c)["data"][::-1]}, "reply"),
        ("vectors without numbers", lambda c: vectors(c, index=None), "reply"),
        ("vectors in a list of one", lambda c: vectors(c, lambda t, i: [vector(t)]), "reply"),
        ("vectors of whole numbers", lambda c: vectors(c, lambda t, i: [int(x) for x in vector(t)]), "reply"),
        ("huge vectors", lambda c: vectors(c, lambda t, i: [x * 3e37 for x in vector(t)]), "reply"),
        ("tiny vectors", lambda c: vectors(c, lambda t, i: [x * 1e-40 for x in vector(t)]), "reply"),
        (
            "vectors of one number",
            lambda c: {"data": [{"index": 0, "embedding": 0.5}] * len(c.body["input"])},
            "error:names no text",
        ),
        (
            "vectors for each token",
            lambda c: vectors(c, lambda t, i: [vector(t)] * (2 + i % 3)),
            "permanent:--pooling mean",
        ),
        (
            "as many vectors for each text",
            lambda c: vectors(c, lambda t, i: [vector(t)] * 3),
            "permanent:--pooling mean",
        ),
        ("all of one number", lambda c: vectors(c, index=0), "error:names no text"),
        ("one too few", lambda c: {"data": vectors(c)["data"][:-1]}, "error:one vector for each"),
        ("numbers that are words", lambda c: vectors(c, index="a"), "error:not numbered"),
        ("empty vectors", lambda c: vectors(c, lambda t, i: []), "permanent:empty"),
        (
            "vectors of two widths",
            lambda c: vectors(c, lambda t, i: [1.0] * (3 + i % 2)),
            "permanent:cannot be read",
        ),
        ("vectors of words", lambda c: vectors(c, lambda t, i: ["x"] * 3), "permanent:cannot be read"),
        ("vectors of truths", lambda c: vectors(c, lambda t, i: [True] * 3), "permanent:cannot be read"),
        ("vectors that are null", lambda c: vectors(c, lambda t, i: None), "permanent:cannot be read"),
        ("vectors of NaN", lambda c: vectors(c, lambda t, i: [float("nan")] * 3), "permanent:NaN"),
        ("vectors of infinity", lambda c: vectors(c, lambda t, i: [1e400] * 3), "permanent:infinite"),
        ("vectors of zeros", lambda c: vectors(c, lambda t, i: [0.0] * 3), "permanent:zeros"),
        (
            "another width each time",
            lambda c: vectors(c, lambda t, i: [1.0] * (3 + c.number)),
            "permanent:numbers now",
        ),
    ]
]

DEVIATIONS: tuple[Deviation, ...] = (
    *_SHAPES,
    *_CARRIED,
    *_HOSTILE,
    *_LEARNED,
    *_PASSING,
    *_FINAL,
    *_CONTEXT,
    *_REPLIES,
    *_VECTORS,
)


class DeviatingEndpoint:
    """`url(deviation, caller)` is the base of a server that deviates in that way."""

    def __init__(self, base: str = "") -> None:
        self.base = base
        self.calls: Counter[str] = Counter()
        self.keys: set[str] = set()
        self._acts = {_slug(deviation.name): deviation.act for deviation in DEVIATIONS}
        assert len(self._acts) == len(DEVIATIONS), "two deviations of one name"

    def url(self, deviation: Deviation, caller: str) -> str:
        return f"{self.base}/{_slug(deviation.name)}/{caller}/v1"

    def act(self, call: Call) -> Answer:
        name, caller = call.path.split("/")[1:3]
        number = self.calls[f"{name}/{caller}"]
        self.calls[f"{name}/{caller}"] += 1
        self.keys.add(call.key)
        return self._acts[name](replace(call, number=number))


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name)


@asynccontextmanager
async def deviating() -> AsyncIterator[DeviatingEndpoint]:
    """A server that deviates in every way, each on a path of its own."""
    endpoint = DeviatingEndpoint()
    async with serving(endpoint.act) as base:
        endpoint.base = base
        yield endpoint


@asynccontextmanager
async def serving(act: Act) -> AsyncIterator[str]:
    """The address of a server on this machine that answers as `act` says."""
    handlers: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        try:
            while await _answered(act, reader, writer):
                pass
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            handlers.discard(task)
            writer.transport.abort()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in [*handlers]:
            task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)


async def _answered(act: Act, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
    """Answer one request; returns whether the connection goes on."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin1")
    path = head.split(" ", 2)[1]
    fields = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head.splitlines()[1:])}
    sent = json.loads(await reader.readexactly(int(fields["content-length"])))
    said = act(Call(path, sent, key=fields.get("authorization", "").removeprefix("Bearer ")))
    if said.raw:
        writer.write(said.raw)
    elif said.then not in ("hang", "close") or said.body:
        length = {} if said.then == "endless" else {"content-length": str(len(said.body))}
        lines = [f"{name}: {value}\r\n" for name, value in {**length, **said.headers}.items()]
        writer.write(f"HTTP/1.1 {said.status} X\r\n{''.join(lines)}\r\n".encode("latin1"))
        chunk = b"%x\r\n%s\r\n" % (len(said.body), said.body)
        writer.write(chunk if said.then == "endless" else said.body)
    await writer.drain()
    await _follow(said.then, writer)
    return not said.then


async def _follow(then: str, writer: asyncio.StreamWriter) -> None:
    """What comes after an answer."""
    if then == "hang":
        await asyncio.Event().wait()
    while then == "endless":
        writer.write(b"10000\r\n" + b" " * 0x10000 + b"\r\n")
        await writer.drain()
    while then == "drip":
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.05)
    while then == "drip headers":
        writer.write(b"X-More: 1\r\n")
        await writer.drain()
        await asyncio.sleep(0.05)
