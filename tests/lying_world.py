"""A server of worlds that lies, hangs, dies and floods: one way for each first part of its address.

`http://127.0.0.1:PORT/<call>~<fault>/...` behaves as an honest server of any of the three protocols, except that the
call `<call>` (`create`, `reset`, `step`, `available_actions`; of the site `first` and `later` pages) has the fault.
Nothing an honest call answers ever wins.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from urllib.parse import unquote

ROOM = "You are in a room. You see a shelf 1.\nYour task is to: put some mug on shelf."
ACTIONS = ["go to shelf 1", "look"]
SHOP = "WebShop [SEP] Instruction: [SEP] Find me a lamp [SEP] Search"

HONEST: dict[tuple[str, str], dict[str, object]] = {
    ("krill", "alfworld"): {
        call: {
            "observation": ROOM,
            "available_actions": ACTIONS,
            "done": False,
            "reward": 0.0,
            "task_description": "put some mug on shelf",
            "task_category": "Pick",
            "info": {"won": False},
        }
        for call in ("reset", "step")
    },
    ("agentgym", "alfworld"): {
        "create": {"id": 1},
        "reset": {
            "id": 1,
            "observation": ROOM,
            "available_actions": ACTIONS,
            "task_type": "look_at_obj_in_light/x",
        },
        "step": {
            "observation": "Nothing happens.",
            "reward": 0.0,
            "available_actions": ACTIONS,
            "done": False,
        },
    },
    ("agentgym", "webshop"): {
        "create": 1,
        "reset": [SHOP, None],
        "step": {"state": SHOP, "reward": 0.0, "done": False, "info": None},
        "available_actions": {"has_search_bar": True, "clickables": ["search"]},
    },
    ("site", "webshop"): {"first": "", "later": ""},
}
"""(protocol, world) -> call -> what an honest server answers; the site's are pages."""

PAGE = """<!DOCTYPE html><html><head><title>WebShop</title></head><body><h1>WebShop</h1>
<div id="instruction-text"><h4>Instruction:<br>Find me a lamp</h4></div>
<form method="post" action=""><input id="search_input" type="text" name="search_query"><button type="submit" class="btn">
Search</button></form>{}</body></html>"""


def head(status: str = "200 OK", *lines: str, length: int | None = None) -> bytes:
    sized = () if length is None else (f"Content-Length: {length}",)
    return "\r\n".join([f"HTTP/1.1 {status}", "Connection: close", *lines, *sized, "", ""]).encode()


def whole(data: bytes, status: str = "200 OK", *lines: str) -> bytes:
    return head(status, *lines, length=len(data)) + data


def _statuses() -> dict[str, Callable[[bytes], bytes]]:
    numbers = (
        201,
        202,
        204,
        206,
        300,
        304,
        400,
        401,
        403,
        404,
        405,
        408,
        409,
        413,
        418,
        422,
        429,
        500,
        501,
        502,
        503,
    )
    bodies = (
        b'{"error": "no\\u001b[2J\\nluck"}',
        b"<html><title>Out of \x1b]0;x\x07order</title></html>",
        b"",
    )
    return {
        f"status {number}": lambda _, number=number, place=place: whole(bodies[place % 3], f"{number} X")
        for place, number in enumerate((*numbers, 504, 520, 599, 999))
    }


RAW: dict[str, Callable[[bytes], bytes]] = {
    **_statuses(),
    "nothing": lambda _: b"",
    "no HTTP": lambda _: b"\x16\x03\x01\x02 hello\r\n\r\n",
    "HTTP 0.9": lambda data: data,
    "HTTP 9.9": lambda data: b"HTTP/9.9 200 OK\r\n\r\n" + data,
    "no reason": lambda data: b"HTTP/1.1 200\r\nContent-Length: %d\r\n\r\n" % len(data) + data,
    "half a head": lambda _: b"HTTP/1.1 200 OK\r\nContent-Le",
    "short body": lambda data: head(length=len(data) + 50) + data,
    "long body": lambda data: head(length=max(len(data) - 3, 0)) + data,
    "negative length": lambda data: head("200 OK", "Content-Length: -5") + data,
    "two lengths": lambda data: head("200 OK", "Content-Length: 1", "Content-Length: 2") + data,
    "bad chunks": lambda data: head("200 OK", "Transfer-Encoding: chunked") + b"zz\r\n" + data,
    "half chunks": lambda data: head("200 OK", "Transfer-Encoding: chunked") + b"5\r\n{",
    "huge chunk": lambda data: head("200 OK", "Transfer-Encoding: chunked") + b"f" * 40 + b"\r\n",
    "huge header": lambda data: whole(data, "200 OK", "X: " + "a" * 400_000),
    "many headers": lambda data: whole(data, "200 OK", *(f"X-{n}: a" for n in range(20_000))),
    "many cookies": lambda data: whole(data, "200 OK", *(f"Set-Cookie: c{n}=1" for n in range(1_000))),
    "bad header": lambda data: whole(data, "200 OK", "no colon here"),
    "continue for ever": lambda _: b"HTTP/1.1 100 Continue\r\n\r\n" * 5_000,
    "switching": lambda _: b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
    "elsewhere": lambda _: whole(b"", "302 X", "Location: http://evil.example/"),
    "to a file": lambda _: whole(b"", "302 X", "Location: file:///etc/passwd"),
    "to nowhere": lambda _: whole(b"", "302 X", "Location: http://[::bad"),
    "in a circle": lambda _: whole(b"", "307 X", "Location: ?again"),
    "says it is gzip": lambda data: whole(data, "200 OK", "Content-Encoding: gzip"),
    "says it is odd": lambda data: whole(data, "200 OK", "Content-Encoding: br, zstd, x"),
    "gzip bomb": lambda _: whole(gzip.compress(b" " * 50_000_000), "200 OK", "Content-Encoding: gzip"),
    "UTF-16": lambda data: whole(data.decode(errors="replace").encode("utf-16")),
    "not UTF-8": lambda data: whole(data.replace(b"a", b"\xe9\xff")),
    "a BOM": lambda data: whole(b"\xef\xbb\xbf" + data),
    "NULs": lambda data: whole(data.replace(b" ", b"\0")),
    "cut in half": lambda data: whole(data[: len(data) // 2]),
    "said twice": lambda data: whole(data + data),
    "answered twice": lambda data: whole(data) * 2,
    "5 MB": lambda _: whole(b"[" + b"0," * 2_500_000 + b"0]"),
    "deep": lambda _: whole(b"[" * 200_000),
    "deep objects": lambda _: whole(b'{"observation":' * 100_000),
    "a text": lambda _: whole(b'"hello"'),
    "null": lambda _: whole(b"null"),
    "an error with 200": lambda _: whole(b'{"error": "no\\u0007 such\\n thing"}'),
    "an error of no text": lambda _: whole(b'{"error": {"deep": [1]}}'),
    "a page": lambda _: whole(b"<html><body><h1>It works</h1></body></html>"),
}
"""Fault -> the bytes it answers, given the honest body; then the connection ends."""

_DEEP = "[" * 500 + "]" * 500
VALUES = {
    "null": "null",
    "true": "true",
    "0": "0",
    "-1": "-1",
    "3.5": "3.5",
    "1e308": "1e308",
    "-1e308": "-1e308",
    "1e7": "1e7",
    "1e999": "1e999",
    "NaN": "NaN",
    "Infinity": "-Infinity",
    "many digits": "9" * 5000,
    "empty": '""',
    "word": '"1.0"',
    "surrogate": '"\\ud800 x"',
    "escapes": '"\\u001b]0;owned\\u0007\\u202e\\u0000|x|\\n# y"',
    "1 MB": '"' + "aé" * 350_000 + '"',
    "list": "[]",
    "number list": "[1]",
    "50,000 texts": json.dumps([f"take mug {n} from shelf {n}" for n in range(50_000)]),
    "long texts": json.dumps(["x" * 100_000] * 5),
    "odd texts": '["\\u001b[2J", "", "\\u202e", "a\\nb", "a"]',
    "object": '{"won": "true", "error": 1}',
    "deep": _DEEP,
}
"""Name -> JSON that stands in place of one field."""

LIES: dict[tuple[str, str], tuple[dict[str, object], ...]] = {
    ("krill", "alfworld"): (
        {"done": True, "info": {"won": "true"}},
        {"done": True, "info": {"won": 1}},
        {"done": False, "info": {"won": True}},
        {"done": "true", "reward": 1.0},
        {"done": 1, "info": {"won": True}},
        {"done": True, "reward": "1.0"},
        {"done": True, "reward": True},
        {"done": True, "reward": 1e308},
        {"done": True, "reward": -1e308},
        {"done": True, "reward": 0.999},
    ),
    ("agentgym", "alfworld"): (
        {"done": "true", "reward": 1.0},
        {"done": 1, "reward": 1.0},
        {"done": True, "reward": "1.0"},
        {"done": True, "reward": 1e308},
        {"done": True, "reward": 0.999},
        {"done": False, "reward": 1.0, "won": True},
    ),
    ("agentgym", "webshop"): (
        {"done": "true", "reward": 1.0},
        {"done": True, "reward": "1.0"},
        {"done": True, "reward": 1e308},
        {"done": True, "reward": 0.999},
        {"done": False, "reward": 1.0},
    ),
    ("site", "webshop"): (),
}
"""Fields of a step that claim a win without the protocol's words for one."""

_SCORE = "Your score (min 0.0, max 1.0)"
PAGES = {
    "no search bar": "<html><body>hello</body></html>",
    "empty": "",
    "blank": "\n" * 100_000,
    "a score on any page": PAGE.format(f"<h3>{_SCORE}<pre>1.0</pre></h3>"),
    **{
        f"score {said}": PAGE.format(
            f'<form action=""><button class="btn">Buy Now</button></form>{_SCORE}<pre>{said}</pre>'
        )
        for said in ("nan", "inf", "2.0", "-1", "1e999", "1.0.0", "", "0.5", "\N{ARABIC-INDIC DIGIT ONE}.5")
    },
    "a form to elsewhere": PAGE.replace('action=""', 'action="http://evil.example/"'),
    "a form to a file": PAGE.replace('action=""', 'action="file:///etc/passwd"'),
    "a form to nowhere": PAGE.replace('action=""', 'action="http://[::bad"'),
    "a form to a script": PAGE.replace('action=""', 'action="javascript:x"'),
    **{
        f"many {piece}": PAGE.format(piece * (400_000 // len(piece)))
        for piece in (
            "<a ", "<a b='", '<a href="', "<!--", "<", "</", "<![x", "<?", "&", "&#xD800;", "<div>", "<div hidden>",
            "<script>", "<form>", '<button class="btn">', "</button>", "</form>", "\x1b]0;x\x07", "\u202e", "<h4>x</h4>",
            '<a class="product-link" href="#">x</a>', '<input type="radio" value="v" data-url="x">',
        )
    },
    "many buttons": PAGE.format(
        "".join(f'<form action="/b{n}"><button class="btn">b{n}</button></form>' for n in range(20_000))
    ),
    "4 MB": PAGE.format("x" * 4_100_000),
    "4 MB of tags": PAGE.format("<p>" * 1_300_000),
}  # fmt: skip
"""Fault -> the page that stands in place of an honest one."""

HANGS = (
    "hang",
    "hang in the head",
    "hang in the body",
    "drip",
    "endless body",
    "endless chunks",
    "endless head",
    "reset",
)
"""Faults that no fixed bytes tell."""


def faults(protocol: str, world: str) -> list[str]:
    """All `<call>~<fault>` of a protocol."""
    found: list[str] = []
    for call, honest in HONEST[protocol, world].items():
        found += [f"{call}~{fault}" for fault in (*HANGS, *RAW)]
        if protocol == "site":
            found += [f"{call}~page {name}" for name in PAGES]
        elif isinstance(honest, dict):
            found += [f"{call}~{field}={name}" for field in honest for name in VALUES]
            found += [f"{call}~without {field}" for field in honest]
        elif isinstance(honest, list):
            found += [f"{call}~{place}={name}" for place in range(len(honest)) for name in VALUES]
        else:
            found += [f"{call}~={name}" for name in VALUES]
    return [*found, *(f"step~lie {number}" for number in range(len(LIES[protocol, world])))]


@asynccontextmanager
async def lying(protocol: str, world: str) -> AsyncIterator[str]:
    """The address of the server."""
    honest = HONEST[protocol, world]
    stopping = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError, ValueError, asyncio.CancelledError):
            while line := await reader.readline():
                path = line.split()[1].decode()
                length = 0
                while (header := await reader.readline()).strip():
                    name, _, value = header.partition(b":")
                    length = int(value) if name.lower() == b"content-length" else length
                await reader.readexactly(length)
                faulty, _, rest = path.strip("/").partition("/")
                call, _, fault = unquote(faulty).partition("~")
                asked = rest.partition("?")[0]
                if protocol == "site":
                    asked = "first" if line.startswith(b"GET") and "/" not in asked else "later"
                    body = PAGE.format("").encode()
                else:
                    body = json.dumps(honest.get(asked)).encode()
                if asked != call:
                    writer.write(whole(body).replace(b"Connection: close\r\n", b"", 1))
                    await writer.drain()
                    continue
                await _misbehave(writer, fault, body, (protocol, world), call, stopping)
                break
        with suppress(OSError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        stopping.set()
        server.close()


async def _misbehave(
    writer: asyncio.StreamWriter,
    fault: str,
    body: bytes,
    kind: tuple[str, str],
    call: str,
    stopping: asyncio.Event,
) -> None:
    if fault in RAW:
        writer.write(RAW[fault](body))
    elif fault in HANGS:
        await _hang(writer, fault, body, stopping)
    elif fault.startswith("page "):
        writer.write(whole(PAGES[fault.removeprefix("page ")].encode()))
    else:
        writer.write(whole(_twisted(fault, HONEST[kind][call], LIES[kind])))
    await writer.drain()


def _twisted(fault: str, honest: object, lies: tuple[dict[str, object], ...]) -> bytes:
    """The honest answer with one field as the fault says."""
    if fault.startswith("lie "):
        assert isinstance(honest, dict)
        return json.dumps({**honest, **lies[int(fault.removeprefix("lie "))]}).encode()
    if fault.startswith("without "):
        assert isinstance(honest, dict)
        return json.dumps({k: v for k, v in honest.items() if k != fault.removeprefix("without ")}).encode()
    field, _, name = fault.partition("=")
    if isinstance(honest, dict):
        parts = [
            f"{json.dumps(k)}: {VALUES[name] if k == field else json.dumps(v)}" for k, v in honest.items()
        ]
        return ("{" + ", ".join(parts) + "}").encode()
    if isinstance(honest, list):
        parts = [VALUES[name] if str(n) == field else json.dumps(v) for n, v in enumerate(honest)]
        return ("[" + ", ".join(parts) + "]").encode()
    return VALUES[name].encode()


async def _hang(writer: asyncio.StreamWriter, fault: str, body: bytes, stopping: asyncio.Event) -> None:
    starts = {
        "hang": b"",
        "hang in the head": b"HTTP/1.1 200 OK\r\nContent-",
        "hang in the body": head(length=len(body)) + body[:-1],
        "drip": head(length=100_000),
        "endless body": head(),
        "endless chunks": head("200 OK", "Transfer-Encoding: chunked"),
        "endless head": b"HTTP/1.1 200 OK\r\n",
        "reset": b"",
    }
    writer.write(starts[fault])
    if fault == "reset":
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
        return
    more = {
        "drip": b" ",
        "endless body": b" " * 65_536,
        "endless chunks": b"10000\r\n" + b" " * 65_536 + b"\r\n",
        "endless head": b"X: " + b"a" * 1000 + b"\r\n",
    }.get(fault)
    while not stopping.is_set() and not writer.is_closing():
        if more is None:
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), 0.2)
            continue
        writer.write(more)
        await writer.drain()
        await asyncio.sleep(0.05 if fault == "drip" else 0)
