"""Calls to a model server over HTTP: limits of time and size, retries, waits that are said, errors in one line.

The policy of an endpoint, the teacher, the embeddings and the vLLM sampler all call through this. httpx, not the openai
client, because a call needs a limit for the whole of it and for the bytes of its answer.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
import urllib.request
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx

from krill_tui.errors import ConfigError, ModelError
from krill_tui.io import secrets
from krill_tui.io.text import one_line
from krill_tui.io.urls import address_problem, is_loopback, without_secrets
from krill_tui.models.capabilities import Capabilities
from krill_tui.models.chat_answer import UnreadableAnswer, joined_stream
from krill_tui.models.server_said import Said, read_failure, read_refusal

R = TypeVar("R")
Say = Callable[[str, str], None]
"""Takes a line for people and its level, as `ev.Noted` does."""

SAID_WAIT = 3.0
"""Waits from this many seconds on are said."""
SILENCE = 30.0
"""A call without an answer is mentioned after this many seconds."""
_SILENCE_AGAIN = 300.0
_GATHERED = 0.3
"""Seconds in which calls that wait for the same reason are counted together."""
_MOST_CHANGES = 12
"""Times one call is written anew for what the server refused in it."""
_MOST_REDIRECTS = 3
_LONGEST_REFUSAL = 256 * 1024
_PARSED_ASIDE = 1024 * 1024
"""Answers longer than this are parsed in a thread."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long, how often and how much."""

    timeout: float = 120.0
    """Seconds a call may take, from connecting to the last byte."""
    max_retries: int = 6
    concurrency: int = 8
    """Calls in flight; those that wait to be tried again count."""
    longest_wait: float = 120.0
    """Seconds a server may ask to wait; asked for more, the call fails at once."""
    longest_answer: int = 4 * 1024 * 1024
    """Bytes, unpacked."""
    base_delay: float = 0.5
    """Seconds before the first retry; doubled for each one after it."""


class ContextOverflow(ModelError):
    """The conversation is longer than the model can read."""


class Refused(ModelError):
    """The server refused this call."""

    said = Said("refused", "")


class _Failed(Exception):
    def __init__(self, said: Said) -> None:
        self.said = said


class Endpoint:
    """One server, as one part of Krill uses it."""

    def __init__(
        self,
        url: str,
        key: str = "",
        *,
        role: str,
        setting: str,
        limits: Limits,
        say: Say | None = None,
        hint: str = "",
        model: str = "",
        adapts: bool = True,
        rng: random.Random | None = None,
    ) -> None:
        """
        Args:
            url: Base of the calls; a user and password in it are sent as HTTP's own (in place of the key), a query with
                every call. Neither is shown.
            role: Who calls, for people: "teacher".
            setting: Where the address comes from: "model.teacher_api_base".
            say: Takes lines about waits and about what the endpoint does not take.
            hint: Added to the error of a call that is refused for want of a key.
            adapts: Calls may be written anew where the server refuses a parameter. A sampler's may not: what is left
                out would change what it draws from.

        Raises:
            ConfigError: the address is none.
        """
        secrets.register(*secrets.url_secrets(url), *([key] if secrets.is_secret(key) else []))
        self._base, self._auth = _address(url, setting)
        self.shown = without_secrets(url)
        self.role = role
        self._setting = setting
        self._limits = limits
        self._say = say or (lambda message, level: None)
        self._hint = hint
        self._adapts = adapts
        self._headers = {"authorization": f"Bearer {key}"} if key and not self._auth else {}
        self.takes = Capabilities.of(model)
        # The jitter spreads clients in time; it never reaches a result.
        self._rng = rng or random.Random(0)
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._client: httpx.AsyncClient | None = None
        self._waiting = 0
        self._open = 0
        self._wait_said_until = 0.0
        self._silence_said_until = 0.0

    async def call(
        self, path: str, body: Mapping[str, Any], read: Callable[[Any], R], *, json_answer: bool = True
    ) -> R:
        """`read` of the JSON that POST `path` answers (its text without `json_answer`), tried again while it may help.

        `read` raises `UnreadableAnswer` where it is not what it should be. A call keeps its slot while it waits: a
        server that is out of breath gets fewer calls.

        Raises:
            ContextOverflow: the prompt is longer than the model can read.
            Refused: refused for good, or still broken after the last retry.
        """
        body = dict(body)
        attempts = changes = 0
        async with self._slots:
            while True:
                sent = self.takes.written(body)
                try:
                    return read(await self._answer(path, sent, json_answer))
                except UnreadableAnswer as problem:
                    said = Said("busy", str(problem))
                except _Failed as failed:
                    said = failed.said
                if changes < _MOST_CHANGES and self._changed(said, sent, body):
                    changes += 1
                    continue
                attempts += 1
                wait = self._wait(attempts, said)
                if wait is None:
                    raise self._error(said, attempts, path) from None
                await self._pause(wait, said)

    async def close(self) -> None:
        if self._client is not None:
            await self._client.aclose()

    def _changed(self, said: Said, sent: Mapping[str, Any], body: dict[str, Any]) -> bool:
        """Whether the call can be written so that the server takes it."""
        if said.kind == "context" and said.room and "max_tokens" in body and said.room < body["max_tokens"]:
            body["max_tokens"] = said.room
            return said.room >= _SHORTEST_REPLY
        if not self._adapts or said.kind not in ("parameter", "system", "empty"):
            return False
        if self.takes.written(body) != sent:
            return True  # learned from another call in the meantime
        if learned := self.takes.learn(said, sent):
            self._say(f"{self.role}: {self.shown}: {learned}", "info")
            return self.takes.written(body) != sent
        return False

    def _wait(self, attempts: int, said: Said) -> float | None:
        """Seconds until the next attempt; None where there is none."""
        limits = self._limits
        if said.kind != "busy" or attempts > limits.max_retries:
            return None
        if said.wait is not None and said.wait > limits.longest_wait:
            return None
        backoff = limits.base_delay * 2.0 ** min(attempts - 1, 30) * self._rng.uniform(0.5, 1.0)
        return min(max(said.wait or 0.0, backoff), limits.longest_wait)

    async def _pause(self, wait: float, said: Said) -> None:
        self._waiting += 1
        try:
            gathered = min(_GATHERED, wait)
            await asyncio.sleep(gathered)
            now = time.monotonic()
            if wait >= SAID_WAIT and now >= self._wait_said_until:
                self._wait_said_until = now + wait - gathered
                self._say(f"{self.role}: {self._wait_line(wait, said)}", "info")
            await asyncio.sleep(wait - gathered)
        finally:
            self._waiting -= 1

    def _wait_line(self, wait: float, said: Said) -> str:
        calls = f"{self._waiting} call{'s' if self._waiting > 1 else ''} waiting"
        if said.wait is not None and said.wait >= wait:
            reason = "rate limit" if said.status == 429 else f"status {said.status}"
            return f"asked to wait {span(wait)} ({reason}), {calls}"
        return f"{secrets.masked(said.what)}; trying again in {span(wait)}, {calls}"

    async def _answer(self, path: str, sent: Mapping[str, Any], json_answer: bool) -> Any:
        seconds = self._limits.timeout
        silence = asyncio.get_running_loop().call_later(SILENCE, self._silent)
        self._open += 1
        try:
            async with asyncio.timeout(seconds):
                status, headers, data = await self._post(path, json.dumps(sent).encode())
        except _Failed:
            raise
        # Whatever a connection can do: httpx lets errors of ssl, of h11 and of the system through here and there.
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError) as error:
            said = read_failure(error, seconds)
            raise _Failed(self._with_proxy(said)) from None
        finally:
            self._open -= 1
            silence.cancel()
        if not json_answer and status < 300:
            return data.decode("utf-8", "replace")
        return await self._parsed(status, headers, data, sent)

    async def _parsed(self, status: int, headers: httpx.Headers, data: bytes, sent: Mapping[str, Any]) -> Any:
        if status >= 300:
            raise _Failed(read_refusal(status, headers, data, sent, now=time.time()))
        try:
            if "event-stream" in headers.get("content-type", ""):
                answer = joined_stream(data.decode("utf-8", "replace"))
            elif len(data) > _PARSED_ASIDE:
                answer = await asyncio.to_thread(json.loads, data)
            else:
                answer = json.loads(data) if data.strip() else None
        except (ValueError, RecursionError):
            shown = one_line(data[:200].decode("utf-8", "replace"), limit=60)
            raise UnreadableAnswer(
                f"the answer is no JSON: {shown}" if shown else "the answer is empty"
            ) from None
        if isinstance(answer, dict) and answer.get("error") and not answer.get("choices"):
            raise _Failed(read_refusal(status, headers, data, sent, now=time.time()))
        return answer

    async def _post(self, path: str, content: bytes) -> tuple[int, httpx.Headers, bytes]:
        url = self._called(path)
        headers = {"content-type": "application/json", "accept-encoding": "gzip, deflate", **self._headers}
        for _ in range(_MOST_REDIRECTS + 1):
            async with self._opened().stream(
                "POST", url, content=content, headers=headers, auth=self._auth
            ) as response:
                if not response.has_redirect_location:
                    fine = response.status_code < 300
                    limit = self._limits.longest_answer if fine else _LONGEST_REFUSAL
                    return (
                        response.status_code,
                        response.headers,
                        await _bounded(response, limit, cut=not fine),
                    )
                url = self._followed(url, response.headers["location"])
        raise _Failed(Said("denied", "the endpoint redirects in a circle"))

    def _called(self, path: str) -> httpx.URL:
        return self._base.copy_with(path=f"{self._base.path.rstrip('/')}/{path}")

    def _followed(self, url: httpx.URL, location: str) -> httpx.URL:
        """Where a redirect leads; never to another server, which would get key and prompts."""
        target = url.join(location)
        upgraded = url.scheme == "http" and target.scheme == "https" and target.port is None
        same = (target.scheme, target.port) == (url.scheme, url.port) or upgraded
        if target.host != url.host or not same:
            where = one_line(without_secrets(str(target)), limit=120)
            raise _Failed(Said("denied", f"the endpoint redirects to another server, {where}: name that one"))
        return target

    def _opened(self) -> httpx.AsyncClient:
        if self._client is None:
            host, timeout = self._base.host, self._limits.timeout
            pool = httpx.Limits(max_connections=None, max_keepalive_connections=self._limits.concurrency)
            verify = httpx.create_ssl_context() if self._base.scheme == "https" else False
            try:
                # No proxy stands between a machine and itself.
                self._client = httpx.AsyncClient(
                    timeout=timeout, limits=pool, verify=verify, trust_env=not is_loopback(host)
                )
            except (ImportError, ValueError, httpx.InvalidURL) as error:
                reason = one_line(secrets.masked(str(error)), limit=200)
                raise _Failed(
                    Said("denied", f"the proxy of the environment cannot be used: {reason}")
                ) from None
        return self._client

    def _with_proxy(self, said: Said) -> Said:
        """A fault that may be a proxy's names the variable it came from."""
        host = self._base.host
        if is_loopback(host) or said.status or urllib.request.proxy_bypass(host):
            return said
        found = urllib.request.getproxies()
        proxy = found.get(self._base.scheme) or found.get("all")
        if not proxy:
            return said
        what = f"{said.what} (through the proxy {without_secrets(proxy)} of the environment)"
        return Said(said.kind, what, unreachable=said.unreachable)

    def _silent(self) -> None:
        now = time.monotonic()
        if now >= self._silence_said_until:
            self._silence_said_until = now + _SILENCE_AGAIN
            calls = f"{self._open} call{'s' if self._open > 1 else ''} waiting"
            limit = span(self._limits.timeout)
            self._say(
                f"{self.role}: no answer for {SILENCE:g} s, {calls}; given up after {limit} each", "info"
            )

    def _error(self, said: Said, attempts: int, path: str) -> ModelError:
        what = (
            f"{said.what}, after {attempts} attempts" if attempts > 1 and said.kind == "busy" else said.what
        )
        if said.wait is not None and said.wait > self._limits.longest_wait:
            what = f"{said.what}; it asks to wait {span(said.wait)}"
        called = without_secrets(str(self._called(path)))
        line = one_line(secrets.masked(f"{self.role} at {called}: {what}"), limit=500)
        if said.kind == "context":
            return ContextOverflow(line)
        error = Refused(
            line, hint=self._advice(said), unreachable=said.unreachable, permanent=said.kind == "denied"
        )
        error.said = said
        return error

    def _advice(self, said: Said) -> str | None:
        if said.status in (401, 403, 407):
            return self._hint or f"the address is {self._setting}"
        if said.status in (404, 405) or not said.status:
            return f"{self._setting} and the model's id say what is called"
        return None


_SHORTEST_REPLY = 16
"""With less room than this for a reply, a conversation has reached the end of the context."""


async def _bounded(response: httpx.Response, limit: int, *, cut: bool) -> bytes:
    """The body, unpacked as it comes; with more than `limit` bytes it is cut there, or an error.

    httpx would unpack a whole packet at once, and a kilobyte can hold a megabyte.
    """
    packed = response.headers.get("content-encoding", "identity").strip().lower()
    if packed not in ("identity", "", "gzip", "deflate"):
        raise _Failed(Said("busy", f"the answer is packed in a way nobody asked for: {packed[:20]}"))
    unpacker = zlib.decompressobj(wbits=47) if packed not in ("identity", "") else None
    data = bytearray()
    try:
        async for chunk in response.aiter_raw():
            data += unpacker.decompress(chunk, limit + 1 - len(data)) if unpacker else chunk
            if len(data) > limit:
                if cut:
                    return bytes(data[:limit])
                raise _Failed(Said("refused", f"the answer is longer than {limit // 1024} KiB"))
    except zlib.error:
        raise _Failed(Said("busy", "the answer cannot be unpacked")) from None
    return bytes(data)


def _address(url: str, setting: str) -> tuple[httpx.URL, httpx.BasicAuth | None]:
    """(address without user and fragment, HTTP's own credentials)."""
    problem = address_problem(url)
    try:
        base = httpx.URL(url.strip())
    except (httpx.InvalidURL, ValueError, TypeError):
        base, problem = httpx.URL(""), problem or "no address of a server"
    if problem:
        raise ConfigError(f"{setting}: {problem}", hint="it is like http://localhost:8000/v1")
    auth = httpx.BasicAuth(base.username, base.password) if base.userinfo else None
    path = base.path.rstrip("/")
    for ending in (
        "/chat/completions",
        "/embeddings",
    ):  # the whole address of a call, as documentation shows it
        path = path.removesuffix(ending)
    return base.copy_with(userinfo=b"", path=path or "/", fragment=None), auth


def span(seconds: float) -> str:
    """Seconds for people: `40 s`, `2 min`, `3 h`, `2 d`."""
    for size, unit in ((86400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"
