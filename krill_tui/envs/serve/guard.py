"""Who may call: no web page from elsewhere, and nobody under a name that this server does not have.

A browser sends what a page tells it to, also to loopback. A page of another origin is known by its `Origin`; one whose
name was made to point here (DNS rebinding) by its `Host`; and a form or a plain text, which a browser sends without
asking first, by its content type.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from krill_tui.envs.serve.answers import error_answer
from krill_tui.io.text import one_line

_SIMPLE_TYPES = ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data")
"""What a page may send to another server without asking it first."""


class Guard:
    """Refuses calls of pages and under other names with status 403, and simple content types with 415.

    Loopback's names and addresses are always allowed, and the host names in `names`; with `any_address` (a server that
    listens beyond loopback) also every address that is written in numbers, which no page can have by rebinding.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str] = (), *, any_address: bool = False) -> None:
        self._app = app
        self._names = frozenset(name.lower().strip("[]").rstrip(".") for name in names)
        self._any_address = any_address

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self._app(scope, receive, send)
        else:
            await error_answer(*refusal)(scope, receive, send)

    def _refusal(self, scope: Scope) -> tuple[int, str] | None:
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in (b"host", b"origin") and name in headers:
                return 403, f"the call names its {name.decode()} twice"
            headers[name] = value
        host = _host(headers.get(b"host", b"").decode("latin-1"))
        if host is None or not (self._is_ours(host) or (self._any_address and _address(host))):
            named = one_line(headers.get(b"host", b"").decode("latin-1"), limit=100)
            return 403, f"this server does not answer to the name '{named}' (--allow-host adds one)"
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return None
        if b"origin" in headers:
            origin = _origin(headers[b"origin"].decode("latin-1"))
            if origin is None or not (origin == host or self._is_ours(origin)):
                return 403, "calls from web pages of other servers are not answered"
        elif headers.get(b"sec-fetch-site") in (b"cross-site", b"same-site"):
            return 403, "calls from web pages of other servers are not answered"
        kind = headers.get(b"content-type", b"").decode("latin-1").partition(";")[0].strip().lower()
        if kind in _SIMPLE_TYPES:
            return 415, f"the body is '{one_line(kind, limit=60)}': send it as application/json"
        return None

    def _is_ours(self, host: str) -> bool:
        address = _address(host)
        if address is not None:
            return address.is_loopback or host in self._names
        return host == "localhost" or host.endswith(".localhost") or host in self._names


def _host(value: str) -> str | None:
    """The host of a `Host` header, in lower case, without port and brackets; None where it is none."""
    try:
        parts = urlsplit(f"//{value.strip()}")
        parts.port  # noqa: B018  (raises where it is no number)
    except ValueError:
        return None
    if not parts.hostname or parts.path or parts.query or parts.fragment or "@" in parts.netloc:
        return None
    return parts.hostname.rstrip(".")


def _origin(value: str) -> str | None:
    """The host of an `Origin` header; None for `null` and what is none."""
    scheme, separator, rest = value.partition("://")
    return _host(rest) if separator and scheme in ("http", "https") else None


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None
