"""What a served world does when too much comes at once: idle and slow connections, many sessions, endless headers.

    python -m benchmarks.reliability.connections [--count 1200] [--files 1024] [--keep]

The server is a process of its own with that limit of open files. While the connections are open, another caller plays.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from benchmarks.reliability.record import show
from krill_tui.envs.serve.connections import REQUEST_SECONDS
from krill_tui.io.open_files import room_for_files

ROOT = Path(__file__).parents[2]
LONGEST_WAIT = 5.0
"""Seconds another caller may wait for two calls while the server is being pestered."""
MOST_SAID = 64 * 1024
"""Bytes the server may write to stderr in all."""
MOST_GROWTH = 64 * 1024 * 1024
"""Bytes by which its memory may grow over endless headers."""


@dataclass(slots=True)
class Served:
    """The server under test."""

    process: subprocess.Popen[bytes]
    url: str
    said: Path

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname or "", parts.port or 0

    def memory(self) -> int:
        """Resident bytes."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                return int(line.split()[1]) * 1024
        return 0

    def files(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@contextlib.contextmanager
def server(files: int) -> Iterator[Served]:
    """A household world, served by a process that may have `files` files open."""
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder) / "stderr"
        command = f'ulimit -n {files}; exec "{sys.executable}" -m krill_tui serve-env alfworld --port 0'
        with said.open("wb") as errors:
            process = subprocess.Popen(["sh", "-c", command], stdout=subprocess.PIPE, stderr=errors, cwd=ROOT)
        assert process.stdout is not None
        try:
            line = process.stdout.readline().decode()
            assert " on http://" in line, said.read_text()
            yield Served(process, line.split(" on ")[1].split(";")[0], said)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


async def play(url: str, steps: int = 1) -> float:
    """Seconds that an episode of so many steps takes over a connection of its own."""
    began = time.perf_counter()
    async with httpx.AsyncClient(base_url=url, timeout=60, trust_env=False) as client:
        name = os.urandom(8).hex()
        (await client.post("/reset", json={"session_id": name})).raise_for_status()
        for _ in range(steps):
            (await client.post("/step", json={"session_id": name, "action": "look"})).raise_for_status()
    return time.perf_counter() - began


@contextlib.asynccontextmanager
async def pestered(served: Served, count: int, first: bytes) -> AsyncIterator[list[socket.socket]]:
    """So many connections that send `first` and nothing more."""
    opened: list[socket.socket] = []
    try:
        for number in range(count):
            connection = socket.create_connection(served.address, timeout=30)
            opened.append(connection)
            with contextlib.suppress(OSError):
                connection.sendall(first)
            if number % 50 == 0:
                await asyncio.sleep(0)
        yield opened
    finally:
        for connection in opened:
            connection.close()


async def cut_off(opened: list[socket.socket], seconds: float) -> int:
    """How many of the connections the server ends within so many seconds."""
    deadline = time.monotonic() + seconds
    waiting = list(opened)
    for connection in waiting:
        connection.setblocking(False)
    while waiting and time.monotonic() < deadline:
        waiting = [connection for connection in waiting if not _is_ended(connection)]
        await asyncio.sleep(0.2)
    return len(opened) - len(waiting)


def _is_ended(connection: socket.socket) -> bool:
    try:
        while data := connection.recv(4096):
            del data
        return True
    except BlockingIOError:
        return False
    except OSError:
        return True


def endless_headers(served: Served, size: int) -> int:
    """Bytes by which the server grows while it is sent headers of `size` bytes."""
    before = served.memory()
    with socket.create_connection(served.address, timeout=30) as connection, contextlib.suppress(OSError):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        for number in range(size // 65_536):
            connection.sendall(b"X-%d: " % number + b"a" * 65_500 + b"\r\n")
    return served.memory() - before


async def measure(
    count: int, files: int, *, sessions: int, header_bytes: int, wait: bool
) -> dict[str, object]:
    """The facts of the figure; `faults` names what is not as it should be. `wait` for the connections to be cut off."""
    room_for_files(count + 512)
    faults: list[str] = []
    facts: dict[str, object] = {"connections": count, "limit of open files": files}
    with server(files) as served:
        at_rest = served.files()
        kinds = {
            "idle": b"",
            "slow headers": b"POST /reset HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
            "slow body": b"POST /reset HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{",
        }
        for kind, first in kinds.items():
            async with pestered(served, count, first) as opened:
                waits = [await play(served.url) for _ in range(3)]
                facts[f"{kind}: another caller waits at most (s)"] = round(max(waits), 2)
                if max(waits) > LONGEST_WAIT:
                    faults.append(f"{kind}: a caller waited {max(waits):.1f} s")
                if wait:
                    ended = await cut_off(opened, REQUEST_SECONDS + 5)
                    facts[f"{kind}: cut off"] = ended
                    if ended < count:
                        faults.append(f"{kind}: {count - ended} were not cut off")
        async with asyncio.TaskGroup() as group:
            played = [group.create_task(play(served.url, 5)) for _ in range(sessions)]
        facts[f"{sessions} sessions at once: the slowest (s)"] = round(max(p.result() for p in played), 2)
        growth = await asyncio.to_thread(endless_headers, served, header_bytes)
        facts[f"{header_bytes / 1e6:.0f} MB of headers: memory grows by (MB)"] = round(growth / 1e6, 1)
        if growth > MOST_GROWTH:
            faults.append(f"headers: memory grew by {growth / 1e6:.0f} MB")
        for _ in range(200):
            with socket.create_connection(served.address, timeout=30) as connection:
                connection.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
        await play(served.url)
        await asyncio.sleep(0.5)
        left = served.files() - at_rest
        facts["files left open"] = left
        if left > 8:
            faults.append(f"{left} files are left open")
        said = served.said.stat().st_size
        facts["bytes on stderr"] = said
        if said > MOST_SAID or b"Traceback" in served.said.read_bytes():
            faults.append(f"stderr holds {said} bytes: {served.said.read_text()[:200]!r}")
    return {**facts, "faults": faults}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1200)
    parser.add_argument("--files", type=int, default=1024)
    parser.add_argument("--keep", action="store_true")
    options = parser.parse_args()
    facts = asyncio.run(
        measure(options.count, options.files, sessions=200, header_bytes=40_000_000, wait=True)
    )
    show("Connections to a served world", facts, keep=options.keep)
    return 1 if facts["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
