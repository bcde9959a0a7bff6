"""The command line: one Typer app, and the boundary where errors become one line and an exit code.

Commands are thin, and import what they work with when they run: `krill --help` must appear at once.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence

import typer
from typer.exceptions import Abort, TyperException
from typer.main import get_command

from krill_tui import paths
from krill_tui.cli import ablate, doctor, facts, panel, play, runs, serve, skills, work
from krill_tui.cli.options import with_options
from krill_tui.errors import EXIT_BROKEN_PIPE, EXIT_CANCELLED, EXIT_FAILURE, EXIT_USAGE
from krill_tui.io.explain import explained, leaves, needs_log, was_stopped, write_crash_log
from krill_tui.io.secrets import masked, register_environment
from krill_tui.io.streams import finish_streams, say
from krill_tui.io.text import one_line

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
for _group, _help, _commands in (
    ("skills", "Skill banks from one format to another.", skills.COMMANDS),
    ("panel", panel.HELP, panel.COMMANDS),
):
    _typer = typer.Typer(help=_help, no_args_is_help=True, rich_markup_mode=None)
    for _name, _function in _commands.items():
        _typer.command(_name)(with_options(_function))
    app.add_typer(_typer, name=_group)


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code; whatever goes wrong is one line on standard error."""
    register_environment(os.environ)
    try:
        code = get_command(app).main(args=list(arguments), prog_name="krill", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except TyperException as error:
        message = error.format_message().replace("Value error, ", "")  # a validator's own prefix
        return _fail(f"{message} (see: {_help_command(error)})", EXIT_USAGE)
    except Abort:
        return EXIT_CANCELLED
    except SystemExit as error:  # of a library: click turns a closed pipe into one
        if isinstance(error.__context__, BrokenPipeError):
            return EXIT_BROKEN_PIPE
        return error.code if isinstance(error.code, int) else EXIT_FAILURE
    except BaseException as error:  # the boundary: a traceback is for the log, not for the person
        return _failed(error)
    finally:
        finish_streams()


def _failed(error: BaseException) -> int:
    if was_stopped(error):
        return EXIT_CANCELLED
    if any(isinstance(leaf, BrokenPipeError) for leaf in leaves(error)):
        return EXIT_BROKEN_PIPE
    told = explained(error)
    if not needs_log(error):
        return _fail(str(told), told.exit_code)
    return _fail(f"{told} ({_write_crash_log(error)})", told.exit_code)


def _fail(message: str, code: int) -> int:
    say(f"krill: {one_line(masked(message), limit=2000)}")
    return code


def _write_crash_log(error: BaseException) -> str:
    folder = paths.runs_dir()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return write_crash_log(folder / f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log", error)


def _help_command(error: TyperException) -> str:
    context = getattr(error, "ctx", None)
    return f"{context.command_path if context else 'krill'} --help"
