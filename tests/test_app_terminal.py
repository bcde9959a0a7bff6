"""The app in a real pseudo-terminal: bytes that are no text, sizes that are none, terminals that are none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.reliability.pseudo_terminal import ROOT, PseudoTerminal
from tests.hostile import forbidden, write_hostile_run

ODD_BYTES = (
    b"\xe9"  # a Latin-1 keyboard
    b"\x1b[Mq\xff\xe9"  # an old mouse report, with q as a button
    b"\xf0\x9f"  # half a character
    b"\x00\x80\xff\xfe\xc0\xaf\xed\xa0\x80"
    b"\x1b[200~pasted \x1b[31m\xff\x00 \xe2\x80\xae picture\x1b[201~"
    b"\x1b[999999999999;;;;m\x1b[<0;1;1\x1b]0;\x07\x1bPx\x1b\\\x9b31m"
)


def drawn(terminal: PseudoTerminal) -> bool:
    return len(terminal.screen) > 3000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_hostile_run(tmp_path / "runs" / "bad")
    return tmp_path


def test_bytes_that_are_no_text_do_not_end_the_app(folder: Path) -> None:
    terminal = PseudoTerminal("replay", "bad", cwd=folder)
    terminal.read_until(lambda: drawn(terminal))
    for byte in ODD_BYTES.replace(b"q", b"x"):  # one by one, where a mouse report is typed keys
        terminal.type(bytes([byte]))
    terminal.type("\x1b")
    terminal.wait(0.6)
    assert terminal.alive, terminal.text()[-2000:]
    for half in (ODD_BYTES[:40], ODD_BYTES):
        terminal.type(half)
        terminal.wait(0.4)
    assert terminal.alive, terminal.text()[-2000:]
    terminal.type("\x1b")
    terminal.wait(0.6)
    terminal.type("q")
    assert terminal.finish() == 0
    text = terminal.text()
    assert "Traceback" not in text
    assert not forbidden(text.replace("\r", "")), forbidden(text)


@pytest.mark.parametrize("term", ["dumb", "", "no-such-terminal"])
def test_the_app_bears_any_size_and_any_kind_of_terminal(folder: Path, term: str) -> None:
    replay = ("replay", "bad", "--display", "app")
    terminal = PseudoTerminal(*replay, cwd=folder, columns=1, lines=1, environment={"TERM": term})
    terminal.wait(1.5)
    for columns, lines in ((80, 24), (1, 1), (3, 2), (200, 60), (20, 1), (1, 50), (100, 30)):
        terminal.resize(columns, lines)
        terminal.wait(0.15)
    terminal.read_until(lambda: drawn(terminal))
    terminal.type("q")
    assert terminal.finish() == 0, terminal.text()[-2000:]
    assert not forbidden(terminal.text().replace("\r", ""))


def test_a_dumb_terminal_gets_lines(folder: Path) -> None:
    terminal = PseudoTerminal("replay", "bad", cwd=folder, environment={"TERM": "dumb"})
    assert terminal.finish() == 0
    assert b"\x1b" not in terminal.screen and b"evaluate" in terminal.screen


@pytest.mark.parametrize(
    "arguments",
    [
        ["--display", "app"],
        ["collect", "--policy", "random", "--display", "app"],
        ["replay", "bad", "--display", "app"],
        ["watch", "bad", "--display", "app"],
    ],
)
def test_without_a_terminal_the_app_is_refused(folder: Path, arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "krill_tui", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("krill: the app needs a terminal")
    assert len(done.stderr.splitlines()) == 1
