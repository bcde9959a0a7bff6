"""HTTP calls to a live server: limits, and every fault as one line."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from typing import Any, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from krill_tui.envs.clients.html_scan import scan
from krill_tui.errors import EnvironmentFailure
from krill_tui.io.text import one_line

CONNECT_SECONDS = 5.0
LONGEST_ANSWER = 4 * 1024 * 1024
"""Bytes."""
LONGEST_WORDS = 200
"""Characters of what a server says about an error."""
MOST_REDIRECTS = 5
_OUT_OF_ORDER = (429, 502, 503, 504)
_REFUSED = (401, 403, 407)

_T = TypeVar("_T")


class ServerRefused(EnvironmentFailure):
    """The server answered that it cannot do this: by its status, or in a way of the protocol's own."""

    status = 200


def _refused(message: str, status: int) -> ServerRefused:
    error = ServerRefused(message, unreachable=status in _OUT_OF_ORDER, permanent=status in _REFUSED)
    error.status = status
    return error


class CallSlots:
    """How many calls a server gets at once, over all episodes; a call waits its turn before its time counts.

    A server goes on with a call that was given up for want of an answer. Its slot stays taken for as long again, so
    that such calls do not pile up in the server.
    """

    def __init__(self, most: int) -> None:
        self._free = asyncio.Semaphore(most)

    @contextlib.asynccontextmanager
    async def one(self, seconds: float) -> AsyncIterator[None]:
        await self._free.acquire()
        given_up = False
        try:
            yield
        except (TimeoutError, httpx.ReadTimeout):
            given_up = True
            raise
        finally:
            if given_up:
                asyncio.get_running_loop().call_later(seconds, self._free.release)
            else:
                self._free.release()


class ServerCalls:
    """The calls of one episode, over a connection of their own.

    No call is repeated once it was sent: the server may have played it before the connection broke. With `kept`
    False the connection is closed after each call, where there are fewer files than episodes.
    """

    def __init__(
        self,
        url: str,
        transport: httpx.AsyncBaseTransport,
        timeout: float,
        slots: CallSlots | None = None,
        *,
        kept: bool = True,
    ) -> None:
        self.url = url
        self._base = httpx.URL(url)
        self._timeout = timeout
        self._slots = slots
        self._client = httpx.AsyncClient(
            transport=transport,
            timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS)),
            # Not compressed: a short answer could unpack to any size.
            headers={"Accept-Encoding": "identity"} | ({} if kept else {"Connection": "close"}),
        )

    async def post(self, path: str, body: Mapping[str, object] | None, answer: TypeAdapter[_T]) -> _T:
        """POST `body` as JSON (None: nothing) and read the answer.

        Raises:
            EnvironmentFailure: no connection, no answer in time, an error status, or not this kind of answer.
        """
        return self._parsed(path, await self._ask("POST", path, json=body), answer)

    async def get(self, path: str, query: Mapping[str, int], answer: TypeAdapter[_T]) -> _T:
        """GET with a query; raises as `post` does."""
        return self._parsed(path, await self._ask("GET", path, params=query), answer)

    async def page(
        self, address: str, *, base: str, form: Mapping[str, str] | None = None
    ) -> tuple[str, str]:
        """(address, text) of a page, after its redirects; with `form` it is posted. Never leaves the server.

        `base` is the address of the page that led here.

        Raises:
            EnvironmentFailure: as `post`, and where an address lies on another server.
        """
        for _ in range(MOST_REDIRECTS + 1):
            url = self._within(base, address)
            response, data = await self._send("GET" if form is None else "POST", url, data=form)
            if not response.has_redirect_location:
                _must_be_fine(str(url), response, data)
                return str(url), data.decode(errors="replace")
            base, address, form = str(url), response.headers["location"], None
        raise EnvironmentFailure(f"{self.url}: too many redirects")

    async def close(self) -> None:
        await self._client.aclose()

    def _within(self, base: str, address: str) -> httpx.URL:
        try:
            url = httpx.URL(base).join(address)
        except (httpx.InvalidURL, ValueError):
            raise EnvironmentFailure(f"{self.url}: a page links to no address") from None
        if (url.scheme, url.host, url.port) != (self._base.scheme, self._base.host, self._base.port):
            raise EnvironmentFailure(f"{self.url}: a page leads to another server")
        return url

    async def _ask(self, method: str, path: str, **content: object) -> bytes:
        response, data = await self._send(method, httpx.URL(f"{self.url}{path}"), **content)
        _must_be_fine(f"{self.url}{path}", response, data)
        return data

    async def _send(self, method: str, url: httpx.URL, **content: object) -> tuple[httpx.Response, bytes]:
        where = f"{self.url}{url.path if len(url.path) < 100 else ''}"
        try:
            async with self._slots.one(self._timeout) if self._slots else contextlib.nullcontext():
                return await self._exchanged(method, url, where, content)
        except httpx.ConnectTimeout:
            seconds = min(self._timeout, CONNECT_SECONDS)
            raise _no_connection(where, f"nobody answered within {seconds:g} s") from None
        except (TimeoutError, httpx.TimeoutException):
            raise EnvironmentFailure(
                f"{where}: no answer within {self._timeout:g} s",
                hint="env.timeout is how long an answer may take, env.max_calls how many are asked for at once",
                unreachable=True,
            ) from None
        except httpx.ConnectError as error:
            raise _no_connection(where, _reason(error)) from None
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
            raise EnvironmentFailure(
                f"{where}: the connection broke: {_reason(error)}",
                unreachable=isinstance(error, httpx.TransportError),
            ) from None

    async def _exchanged(
        self, method: str, url: httpx.URL, where: str, content: dict[str, Any]
    ) -> tuple[httpx.Response, bytes]:
        async with (
            asyncio.timeout(self._timeout),
            self._client.stream(method, url, **content) as response,
        ):
            return response, await _read(response, where)

    def _parsed(self, path: str, data: bytes, answer: TypeAdapter[_T]) -> _T:
        try:
            return answer.validate_json(data, strict=True)  # a text "1.0" is no reward, a 1 no end
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, problem["loc"])) or "the answer"
            message = f"{self.url}{path}: no answer of the protocol: {field}: {problem['msg'].lower()}"
            raise EnvironmentFailure(one_line(message, limit=300)) from None


def server_words(data: bytes, kind: str = "") -> str:
    """What a server says about an error, as one short line: JSON of the usual shapes, a page of HTML, or plain text.

    Empty where it says nothing that can be read.
    """
    text = data[: 64 * 1024].decode(errors="replace").strip()
    if text.startswith(("{", "[", '"')):
        with contextlib.suppress(ValueError):
            return one_line(_said(from_json(data)), limit=LONGEST_WORDS)
    if text.startswith("<") or "html" in kind:
        return one_line(_page_words(text), limit=LONGEST_WORDS)
    return one_line(next((line for line in text.splitlines() if line.strip()), ""), limit=LONGEST_WORDS)


def _said(value: object) -> str:
    """The words in `{"error": …}`, `{"detail": …}`, `{"message": …}` and lists of these."""
    for _ in range(5):
        if isinstance(value, list) and value:
            value = value[0]
        elif isinstance(value, dict):
            value = next((value[key] for key in ("error", "detail", "message", "msg") if key in value), "")
    return value if isinstance(value, str) else ""


def _page_words(html: str) -> str:
    """The title of a page of errors, else its first words."""
    tag, first = "", ""
    for piece in scan(html):
        if piece.kind == "start":
            tag = piece.text
        elif piece.kind == "text" and piece.text.strip() and tag not in ("script", "style"):
            if tag == "title":
                return piece.text
            first = first or piece.text
    return first


def _must_be_fine(where: str, response: httpx.Response, data: bytes) -> None:
    if response.is_success:
        return
    said = server_words(data, response.headers.get("content-type", ""))
    message = f"{where[:200]}: the server answered {response.status_code}"
    raise _refused(f"{message}: {said}" if said else message, response.status_code)


def _no_connection(where: str, reason: str) -> EnvironmentFailure:
    if reason == _TOO_MANY_FILES:
        hint = "lower env.concurrency, or raise `ulimit -n`"
        return EnvironmentFailure(f"{where}: no connection: {reason}", hint=hint)
    hint = "is the server running? env.url says where it is"
    return EnvironmentFailure(f"{where}: no connection: {reason}", hint=hint, unreachable=True)


_TOO_MANY_FILES = "too many files are open"


def _reason(error: BaseException) -> str:
    """Why a connection failed, in a few words; the HTTP client keeps the reason in the chain of causes."""
    for cause in _causes(error):
        if isinstance(cause, socket.gaierror):
            return "the host's name is not known"
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not accepted: {one_line(cause.verify_message, limit=100)}"
        if isinstance(cause, ssl.SSLError):
            return "the server does not speak TLS there"
        if isinstance(cause, OSError) and cause.errno in (errno.EMFILE, errno.ENFILE):
            return _TOO_MANY_FILES
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno).lower()  # asyncio's own text repeats the address
    return type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The chain of causes, innermost last; several tries of one connection are a group."""
    for _ in range(10):
        if error is None:
            return
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        yield error
        error = error.__cause__ or error.__context__


async def _read(response: httpx.Response, where: str) -> bytes:
    """The body; a server that sends without end is cut off."""
    data = bytearray()
    async for chunk in response.aiter_raw():
        data += chunk
        if len(data) > LONGEST_ANSWER:
            raise EnvironmentFailure(f"{where}: the answer is longer than {LONGEST_ANSWER} bytes")
    return bytes(data)
