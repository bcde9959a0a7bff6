"""An OpenAI-compatible server on loopback that fails the way real ones do."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Literal, Self

Fault = Literal[
    "",
    "429",
    "500",
    "401",
    "400",
    "drop",
    "truncate",
    "not json",
    "no choices",
    "html",
    "hang",
    "prose",
    "quota",
    "long",
]


def speak(request: dict[str, Any]) -> str:
    """Repeats the last message."""
    return request["messages"][-1]["content"]


@dataclass
class FaultyEndpoint:
    """`async with FaultyEndpoint(...) as server`: answers at `server.url`.

    `fault(number)` says how the request of that number (from 0) goes wrong; `latency` passes before every answer,
    a wrong one included.
    """

    fault: Callable[[int], Fault] = lambda _: ""
    reply: Callable[[dict[str, Any]], str] = speak
    latency: float = 0.0
    headers: str = ""
    """Extra header lines of 429, each with `\\r\\n`."""
    requests: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    busiest: int = 0
    """Most requests that were open at once."""
    url: str = ""
    _open: int = 0

    async def __aenter__(self) -> Self:
        self._handlers: set[asyncio.Task[None]] = set()
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}/v1"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for handler in self._handlers:
            handler.cancel()
        await asyncio.gather(*self._handlers, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.current_task()
        assert handler is not None
        self._handlers.add(handler)
        try:
            while await self._answer(reader, writer):
                pass
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            self._handlers.discard(handler)
            writer.transport.abort()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        fields = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in head.splitlines()[1:])}
        request = json.loads(await reader.readexactly(int(fields["content-length"])))
        number = len(self.requests)
        self.requests.append(request)
        self.keys.append(fields.get("authorization", ""))
        self._open += 1
        self.busiest = max(self.busiest, self._open)
        await asyncio.sleep(self.latency)
        self._open -= 1
        return await self._write(writer, self.fault(number), request)

    async def _write(self, writer: asyncio.StreamWriter, fault: Fault, request: dict[str, Any]) -> bool:
        if fault == "drop":
            return False
        if fault == "hang":
            await asyncio.Event().wait()
        if fault in ("429", "500", "401", "400", "quota", "long"):
            status, code = {
                "quota": ("429", "insufficient_quota"),
                "long": ("400", "context_length_exceeded"),
            }.get(fault, (fault, None))
            message = f"no, {self.keys[-1].removeprefix('Bearer ')}"
            body = json.dumps({"error": {"message": message, "code": code}})
            extra = self.headers if fault == "429" else ""
            writer.write(_response(status, body.encode(), extra))
        else:
            body = json.dumps(self._body(fault, request)).encode()
            if fault == "truncate":
                writer.write(_response("200", body)[:-10])
                await writer.drain()
                return False
            body = body[: len(body) // 2] if fault == "not json" else body
            if fault == "html":
                writer.write(_response("200", b"<html>busy</html>", kind="text/html"))
            else:
                writer.write(_response("200", body))
        await writer.drain()
        return True

    def _body(self, fault: Fault, request: dict[str, Any]) -> dict[str, Any]:
        if "input" in request:
            data = [
                {"object": "embedding", "index": i, "embedding": [len(t), 1.0]}
                for i, t in enumerate(request["input"])
            ]
            return {
                "object": "list",
                "model": "m",
                "data": data[::-1],
                "usage": {"prompt_tokens": 1, "total_tokens": 1},
            }
        text = self.reply(request)
        text = f"Here it is [1]:\n```json\n{text}\n```\nGood luck!" if fault == "prose" else text
        message = {"role": "assistant", "content": text}
        choices = [] if fault == "no choices" else [{"index": 0, "finish_reason": "stop", "message": message}]
        usage = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
        return {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": "m",
            "choices": choices,
            "usage": usage,
        }


def _response(status: str, body: bytes, extra: str = "", kind: str = "application/json") -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body
