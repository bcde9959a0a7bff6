"""Whatever breaks is one line and an exit code: groups, files, streams, signals, encodings, views."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from krill_tui import headless
from krill_tui.cli import runs
from krill_tui.cli.app import run
from krill_tui.engine.state import RunState
from krill_tui.errors import EnvironmentFailure, ModelError, StorageError
from krill_tui.events import schema as ev
from krill_tui.events.bus import EventBus
from krill_tui.io import secrets
from krill_tui.io.explain import explained, needs_log, write_crash_log

ROOT = Path(__file__).parents[1]
FULL = OSError(errno.ENOSPC, "No space left on device")


def shell(command: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """A shell line in which `krill` is this checkout's."""
    return subprocess.run(
        ["bash", "-c", f'krill() {{ "{sys.executable}" -m krill_tui "$@"; }}\n{command}'],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def finished_run(folder: Path) -> Path:
    """A run whose lines hold characters that ASCII has not."""
    from tests.tui.journals import CONFIG
    from tests.tui.journals import finished_run as script

    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    script(folder / "events.jsonl").close()
    return folder


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ExceptionGroup("a", [ExceptionGroup("b", [ModelError("no model")])]), "no model"),
        (
            ExceptionGroup(
                "a", [EnvironmentFailure("world"), ValueError("x"), StorageError("events.jsonl", FULL)]
            ),
            "events.jsonl: cannot be written: no space left on device; and 2 other errors (free some space",
        ),
        (ExceptionGroup("a", [ModelError("the same"), ModelError("the same")]), "the same"),
        (OSError(errno.ENOSPC, "No space left on device", "x.json"), "x.json: no space left on device (free"),
        (FULL, "a file cannot be written: no space left on device (free some space"),
        (IsADirectoryError(errno.EISDIR, "Is a directory", "x"), "x: is a directory"),
        (OSError(errno.ENOENT, "No such file", "a", None, "b"), "b: no such file"),
        (OSError(errno.EMFILE, "Too many open files"), "too many open files (too many files are open: lower"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset"), "a connection failed: connection reset"),
        (RecursionError("maximum depth"), "nested too deeply"),
        (MemoryError(), "not enough memory (lower"),
        (UnicodeEncodeError("ascii", "→", 0, 1, "no"), "cannot be written in ascii (PYTHONUTF8=1"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "no"), "not utf-8 text"),
        (OverflowError("getsockaddrarg: port must be 0-65535."), "a number is too large: getsockaddrarg"),
        (type("InvalidURL", (Exception,), {})("Invalid port: '99999'"), "a URL or a header cannot be used"),
        (OSError("odd"), "the operating system refused: odd"),
    ],
)
def test_an_exception_becomes_a_sentence_without_a_class(error: Exception, said: str) -> None:
    told = str(explained(error))
    assert said in told
    assert "Error" not in told and "ExceptionGroup" not in told and "\n" not in told


def test_a_log_is_kept_where_the_line_does_not_say_all() -> None:
    assert not needs_log(ExceptionGroup("a", [ModelError("no model")]))
    assert not needs_log(FULL)
    assert needs_log(ValueError("x"))
    assert needs_log(OSError("odd"))
    assert needs_log(ExceptionGroup("a", [ModelError("no model"), ModelError("no other")]))


def test_a_crash_log_is_private_masked_and_holds_the_whole_group(tmp_path: Path) -> None:
    secrets.register("hunter2-hunter2")
    group = ExceptionGroup("all", [ValueError(f"number {n} of hunter2-hunter2 \ud800") for n in range(40)])
    path = tmp_path / "crash.log"
    assert write_crash_log(path, group) == f"details: {path}"
    text = path.read_text(encoding="utf-8")
    assert "number 39" in text and "hunter2" not in text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_crash_log_is_kept_elsewhere_or_it_is_said_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    told = write_crash_log(tmp_path / "gone" / "crash.log", ValueError("x"))
    assert told.startswith(f"details: {tmp_path}/krill-")
    assert not (tmp_path / "gone").exists()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "gone, too"))
    assert "could not be kept: no such file" in write_crash_log(tmp_path / "gone" / "x", ValueError("x"))


def test_a_group_raised_by_a_command_is_told_by_its_member(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> dict[str, object]:
        raise ExceptionGroup("unhandled errors in a TaskGroup", [ModelError("the endpoint is gone\x1b[2J")])

    finished_run(tmp_path / "runs" / "one")
    monkeypatch.setattr(runs, "_run_facts", broken)
    assert run(["runs"]) == 1
    assert capfd.readouterr() == ("", "krill: the endpoint is gone\n")

    def stopped(path: Path) -> dict[str, object]:
        raise BaseExceptionGroup("a", [KeyboardInterrupt()])

    monkeypatch.setattr(runs, "_run_facts", stopped)
    assert run(["runs"]) == 130
    assert capfd.readouterr() == ("", "")


def test_closed_and_full_streams_are_no_fault_inside_krill(tmp_path: Path) -> None:
    finished_run(tmp_path / "runs" / "one")
    done = shell(
        """
        krill runs <&- | grep -c one
        krill runs >&-; echo $?
        krill report nope 2>&-; echo $?
        krill runs <&- >&- 2>&-; echo $?
        krill runs >/dev/full; echo $?
        krill report nope 2>/dev/full; echo $?
        """,
        tmp_path,
    )
    assert done.stdout.split() == ["1", "0", "2", "0", "1", "2"]
    [line] = done.stderr.splitlines()
    assert line.startswith("krill: standard output: no space left on device")


def test_a_closed_standard_error_does_not_leak_into_the_output(tmp_path: Path) -> None:
    command = "krill eval --policy random --episodes 1 --set env.max_steps=2 --json 2>&-; echo $?"
    *result, code = shell(command, tmp_path).stdout.splitlines()
    assert code == "0"
    assert json.loads("\n".join(result))["overall"]["episodes"] == 1


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "cp1252"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_an_encoding_without_the_characters_gets_escapes(tmp_path: Path, environment: dict[str, str]) -> None:
    finished_run(tmp_path / "runs" / "one")
    done = shell(
        "krill replay one --display plain && krill replay one --display json", tmp_path, **environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "\\u2192" in done.stdout
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert any("…" in event.get("prompt", "") for event in events)


@pytest.mark.parametrize(
    ("columns", "lines"), [("0", "0"), ("1", "1"), ("²", "x"), ("-5", ""), ("9" * 30, "0")]
)
def test_a_terminal_size_that_is_none_hides_nothing(tmp_path: Path, columns: str, lines: str) -> None:
    finished_run(tmp_path / "runs" / "one")
    done = shell("krill runs; krill --help | head -2", tmp_path, COLUMNS=columns, LINES=lines, TERM="odd")
    assert "one" in done.stdout and "Usage: krill" in done.stdout and done.stderr == ""


def test_ctrl_c_while_krill_starts_says_nothing(tmp_path: Path) -> None:
    """From the first line of `main` on: before that it is Python that is interrupted."""
    code = """
import builtins, os, signal, sys
real = builtins.__import__
def interrupted(name, *rest):
    if name == 'krill_tui.cli.app':
        os.kill(os.getpid(), signal.SIGINT)
    return real(name, *rest)
builtins.__import__ = interrupted
sys.argv = ['krill', 'doctor']
from krill_tui.__main__ import main
main()
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


class Broken:
    """A view that fails in the way of `error`."""

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.shown = 0

    def show(self, event: ev.Event) -> None:
        self.shown += 1
        raise self.error

    def close(self) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (SystemExit(1), "the display failed: SystemExit: 1"),
        (BrokenPipeError(), "nobody reads the output any more"),
        (FULL, "the output cannot be written: no space left on device"),
        (ZeroDivisionError("x"), "the display failed: ZeroDivisionError: x"),
    ],
)
def test_a_view_that_fails_says_so_once(
    error: BaseException, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = Broken(error)
    view = headless.Guarded(broken)
    for _ in range(3):
        view.show(ev.Noted(message="x"))
    view.close()
    assert broken.shown == 1
    assert view.error is error
    assert capfd.readouterr().err == f"krill: {said}; the run goes on without showing it\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()])
def test_what_stops_the_engine_passes_through_views(error: BaseException) -> None:
    bus = EventBus()
    bus.subscribe(headless.Guarded(Broken(error)).show)
    with pytest.raises(type(error)):
        bus.emit(ev.Noted(message="x"))


def test_a_listener_that_wants_to_exit_is_dropped_and_the_others_are_told() -> None:
    bus = EventBus()
    heard: list[ev.Event] = []
    bus.subscribe(Broken(SystemExit(1)).show)
    bus.subscribe(heard.append)
    bus.emit(ev.Noted(message="x"))
    bus.emit(ev.Noted(message="y"))
    assert [getattr(event, "message", "") for event in heard] == [
        "x",
        "a view failed and shows no more (SystemExit: 1)",
        "y",
    ]


def test_a_terminal_that_goes_away_ends_the_bars_without_a_thread_of_their_own() -> None:
    read, write = os.pipe()
    with open(write, "w", encoding="utf-8") as stream:
        console = headless.make_console(stream)
        assert isinstance(console, Console)
        view = headless.Guarded(headless.LineView(console, RunState()))
        os.close(read)
        view.show(ev.PhaseStarted(phase="collect", title="x", total=1, unit="episodes"))
        view.close()
        assert isinstance(view.error, BrokenPipeError)
        os.dup2(os.open(os.devnull, os.O_WRONLY), write)


def test_a_closed_pipe_does_not_end_the_run(tmp_path: Path) -> None:
    """A quit pager: the rest of the run is played, exported, and the exit code says that nobody read on."""
    done = shell(
        "krill collect --policy random --episodes 6 --set env.max_steps=3 --output out.json --run one"
        " --display plain | head -1; echo ${PIPESTATUS[0]}",
        tmp_path,
    )
    assert done.stdout.splitlines()[-1] == "141"
    assert len(json.loads((tmp_path / "out.json").read_text())) == 6
    assert "Traceback" not in done.stderr
    assert done.stderr.count("nobody reads the output any more; the run goes on") == 1
    assert (
        '"outcome":"completed"' in (tmp_path / "runs" / "one" / "events.jsonl").read_text().splitlines()[-1]
    )


def test_json_on_a_terminal_is_ascii() -> None:
    out = io.StringIO()
    headless.JsonView(out).show(ev.Noted(message="\x9b2J \x7f \u202e \U000e0041 é 🦐"))
    text = out.getvalue()
    assert text.isascii() and text[:-1].isprintable()
    assert json.loads(text)["message"] == "\x9b2J \x7f \u202e \U000e0041 é 🦐"
