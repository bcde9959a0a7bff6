"""Addresses of servers: what may be shown and stored of one, and whether it is this machine."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit, urlunsplit

from krill_tui.io.secrets import SECRET_QUERY
from krill_tui.io.text import one_line


def without_secrets(url: str) -> str:
    """The address without user, password and keys in its query: as it may be shown and stored.

    An address that cannot be read loses everything up to its last `@`.
    """
    try:
        parts = urlsplit(url.strip())
        if not parts.netloc:
            raise ValueError
        host = parts.netloc.rpartition("@")[2]
        _ = parts.port  # raises where there is none, which is how a password with a slash in it looks
    except ValueError:
        scheme, separator, rest = url.rpartition("://")
        return f"{scheme}{separator}{SECRET_QUERY.sub('', rest.rpartition('@')[2])}"
    query = "&".join(p for p in parts.query.split("&") if p and not SECRET_QUERY.match(f"?{p}"))
    return urlunsplit((parts.scheme, host, parts.path, query, parts.fragment))


def host_of(url: str) -> str:
    """The host in lower case, without port; empty where the address names none."""
    try:
        return (urlsplit(url.strip()).hostname or "").rstrip(".")
    except ValueError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, as far as its name says."""
    host = host.lower().strip("[]").rstrip(".")
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def address_problem(url: str) -> str:
    """Why this is no address of an HTTP server, in one line that shows no secret; empty where it is one."""
    text = url.strip()
    try:
        parts = urlsplit(text)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        fine = False
    if fine and text.isprintable() and " " not in text:
        return ""
    return f"'{one_line(without_secrets(text), limit=120)}' is no address of a server"
