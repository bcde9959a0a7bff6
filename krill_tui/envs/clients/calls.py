"""HTTP calls to a live server: limits, and every fault as one line."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Literal, TypeVar

import httpx
from pydantic import TypeAdapter, ValidationError

from krill_tui.errors import EnvironmentFailure

CONNECT_SECONDS = 5.0
LONGEST_ANSWER = 4 * 1024 * 1024
"""Bytes."""
MOST_REDIRECTS = 5
_OUT_OF_ORDER = (429, 502, 503, 504)
_REFUSED = (401, 403, 407)

_T = TypeVar("_T")
_SAID = TypeAdapter(dict[Literal["error"], str])
"""How our own server says what is wrong."""


class ServerCalls:
    """The calls of one episode, over a connection of their own.

    No call is repeated once it was sent: the server may have played it before the connection broke.
    """

    def __init__(self, url: str, transport: httpx.AsyncBaseTransport, timeout: float) -> None:
        self.url = url
        self._base = httpx.URL(url)
        self._timeout = timeout
        self._client = httpx.AsyncClient(
            transport=transport, timeout=httpx.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS))
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
            async with (
                asyncio.timeout(self._timeout),
                self._client.stream(method, url, **content) as response,  # pyright: ignore[reportArgumentType]
            ):
                return response, await _read(response, where)
        except (TimeoutError, httpx.TimeoutException):
            raise EnvironmentFailure(
                f"{where}: no answer within {self._timeout:g} s", unreachable=True
            ) from None
        except httpx.ConnectError:
            hint = "is the server running? env.url says where it is"
            raise EnvironmentFailure(f"{where}: no connection", hint=hint, unreachable=True) from None
        except (httpx.HTTPError, httpx.StreamError) as error:
            raise EnvironmentFailure(
                f"{where}: the connection broke: {type(error).__name__}",
                unreachable=isinstance(error, httpx.TransportError),
            ) from None

    def _parsed(self, path: str, data: bytes, answer: TypeAdapter[_T]) -> _T:
        try:
            return answer.validate_json(data)
        except ValidationError as error:
            problem = error.errors(include_url=False, include_input=False)[0]
            field = ".".join(map(str, problem["loc"])) or "the answer"
            message = f"{self.url}{path}: no answer of the protocol: {field}: {problem['msg'].lower()}"
            raise EnvironmentFailure(" ".join(message.split())[:300]) from None


def _must_be_fine(where: str, response: httpx.Response, data: bytes) -> None:
    if response.is_success:
        return
    message = f"{where[:200]}: the server answered {response.status_code}"
    unreachable, permanent = response.status_code in _OUT_OF_ORDER, response.status_code in _REFUSED
    try:
        said = " ".join(_SAID.validate_json(data)["error"].split())[:200]
    except (ValidationError, KeyError):
        said = ""
    message = f"{message}: {said}" if said else message
    raise EnvironmentFailure(message, unreachable=unreachable, permanent=permanent)


async def _read(response: httpx.Response, where: str) -> bytes:
    """The body; a server that sends without end is cut off."""
    data = bytearray()
    async for chunk in response.aiter_bytes():
        data += chunk
        if len(data) > LONGEST_ANSWER:
            raise EnvironmentFailure(f"{where}: the answer is longer than {LONGEST_ANSWER} bytes")
    return bytes(data)
