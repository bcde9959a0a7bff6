"""Keys and passwords that this process knows, so that nothing it writes or prints holds one."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from urllib.parse import unquote

MASK = "[hidden]"
_SHORTEST = 6
"""Shorter values are not masked: they would be found in ordinary words."""

_SECRET_WORDS = (
    "TOKEN",
    "SECRET",
    "PASSWORD",
    "PASSWD",
    "API_KEY",
    "APIKEY",
    "CREDENTIAL",
    "ACCESS_KEY",
    "AUTH",
)

_known: set[str] = set()

_USERINFO = re.compile(r"\b([a-zA-Z][a-zA-Z0-9+.-]{0,20}://)[^\s/?#@\"'<>]{1,512}@")
SECRET_QUERY = re.compile(
    r"([?&](?:[a-z0-9_.-]{0,40}(?:key|token|secret|password|passwd|pwd|signature|sig|auth|credential)[a-z0-9_.-]{0,40})=)"
    r"[^\s&#\"'<>]{1,4096}",
    re.IGNORECASE,
)


def register(*secrets: str) -> None:
    """Remember secrets, to be masked from now on wherever `masked` stands."""
    for secret in secrets:
        for form in {secret.strip(), unquote(secret.strip())}:
            if len(form) >= _SHORTEST:
                _known.add(form)


def is_secret(key: str) -> bool:
    """False for what people set where a server takes any key ("ollama", "lm-studio"): it stands in other texts too."""
    return len(key) >= 12 or any(c.isdigit() for c in key)


def register_environment(environ: Mapping[str, str]) -> None:
    """Remember what stands in variables whose names say that it is secret, and the passwords of addresses in any."""
    for name, value in environ.items():
        if is_secret_name(name):
            register(value)
        elif "://" in value:
            register(*url_secrets(value))


def is_secret_name(name: str) -> bool:
    """Whether a variable of this name holds a key, a token or a password."""
    upper = name.upper()
    return any(word in upper for word in _SECRET_WORDS) and not upper.startswith("TOKENIZERS_")


def masked(text: str) -> str:
    """`text` with known secrets, passwords in URLs and keys in query strings replaced by `MASK`."""
    for secret in sorted(_known, key=len, reverse=True):
        if secret in text:
            text = text.replace(secret, MASK)
    if "://" in text:
        text = _USERINFO.sub(rf"\1{MASK}@", text)
    if "=" in text:
        text = SECRET_QUERY.sub(rf"\1{MASK}", text)
    return text


def masked_json(line: bytes) -> bytes:
    """The same for text that is JSON, where a secret may stand with its characters escaped; known secrets only."""
    for secret in sorted(_known, key=len, reverse=True):
        for form in (secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1]):
            encoded = form.encode("utf-8", "replace")
            if encoded in line:
                line = line.replace(encoded, MASK.encode())
    return line


def url_secrets(url: str) -> list[str]:
    """Passwords and keys that stand in a URL, as they stand there."""
    found = []
    authority = re.split(r"[/?#]", url.partition("://")[2], maxsplit=1)[0]
    if "@" in authority:
        userinfo = authority.rpartition("@")[0]
        found += [userinfo, userinfo.partition(":")[2]] if ":" in userinfo else [userinfo]
    found += [match.group(0)[len(match.group(1)) :] for match in SECRET_QUERY.finditer(url)]
    return [secret for secret in found if secret]
