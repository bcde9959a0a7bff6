"""The command line: one Typer app, and the boundary where errors become one line and an exit code.

Commands are thin, and import what they work with when they run: `krill --help` must appear at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

import typer
from typer.exceptions import Abort, TyperException
from typer.main import get_command

from krill_tui import paths
from krill_tui.cli import ablate, doctor, facts, play, runs, serve, work
from krill_tui.cli.options import with_options
from krill_tui.errors import EXIT_CANCELLED, EXIT_FAILURE, EXIT_USAGE, KrillError

EXIT_BROKEN_PIPE = 141

app = typer.Typer(
    name="krill",
    help="Train language-model agents with skills (SkillRL), and watch it happen. Without a command: the app.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
app.callback(invoke_without_command=True)(with_options(work.bare))
for _commands in (
    work.COMMANDS,
    ablate.COMMANDS,
    play.COMMANDS,
    facts.COMMANDS,
    runs.COMMANDS,
    serve.COMMANDS,
    doctor.COMMANDS,
):
    for _name, _function in _commands.items():
        app.command(_name)(with_options(_function))


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; whatever goes wrong is one line on standard error."""
    try:
        code = get_command(app).main(args=list(arguments), prog_name="krill", standalone_mode=False)
        sys.stdout.flush()
    except KrillError as error:
        return _fail(str(error), error.exit_code)
    except TyperException as error:
        message = error.format_message().replace("Value error, ", "")  # a validator's own prefix
        return _fail(f"{message} (see: {_help_command(error)})", EXIT_USAGE)
    except (KeyboardInterrupt, Abort):
        return EXIT_CANCELLED
    except BrokenPipeError:
        _discard_output()
        return EXIT_BROKEN_PIPE
    except Exception as error:  # the boundary: a traceback is for the log, not for the person
        return _crashed(error)
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int) -> int:
    line = "".join(c for c in " ".join(message.split()) if c.isprintable())
    with contextlib.suppress(BrokenPipeError):
        print(f"krill: {line}", file=sys.stderr)
    return code


def _crashed(error: Exception) -> int:
    report = "".join(traceback.format_exception(error))
    where = _write_crash_log(report)
    kind = type(error).__name__
    return _fail(f"something went wrong inside Krill: {kind}: {error} (details: {where})", EXIT_FAILURE)


def _write_crash_log(report: str) -> Path | str:
    folder = paths.runs_dir()
    path = folder / f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(report, encoding="utf-8")
    except OSError as error:
        return f"could not be written: {error.strerror}"
    return path


def _help_command(error: TyperException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context else 'krill'} --help"


def _discard_output() -> None:
    """Keep the interpreter from complaining once more when it flushes on exit."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, sys.stdout.fileno())
    os.close(devnull)
