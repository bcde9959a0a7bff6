"""`krill skills`: banks from one format to another."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from krill_tui.cli.options import Options
from krill_tui.errors import DataError, UsageError

BankArgument = Annotated[
    Path,
    typer.Argument(metavar="BANK", help="A bank in any known format, a folder of SKILL.md files, or a run."),
]


def export(
    options: Options,
    source: BankArgument,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="File to write; a folder for skill-md.")],
    target_format: Annotated[
        str,
        typer.Option("--format", help="krill, rust, skillrl, json, markdown or skill-md."),
    ] = "json",
) -> None:
    """Write a bank as another project reads it."""
    _convert(source, output, target_format)


def import_(
    options: Options,
    source: BankArgument,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Bank of Krill's own to write.")],
) -> None:
    """Make a bank of Krill's own from one in any known format."""
    _convert(source, output, "krill")


COMMANDS: dict[str, Callable[..., None]] = {"export": export, "import": import_}


def _convert(source: Path, output: Path, target_format: str) -> None:
    from krill_tui.headless import make_console, print_line
    from krill_tui.skills.formats.bank_writers import ACTIVE_ONLY, WRITERS, export_bank
    from krill_tui.skills.formats.banks import load_bank

    if target_format not in WRITERS:
        raise UsageError(f"there is no format '{target_format}'", hint=f"known: {', '.join(WRITERS)}")
    path = _bank(source)
    if os.path.exists(output) and os.path.samefile(output, path):
        raise UsageError(f"{output} would be written over what is read", hint="name another file for OUT")
    bank = load_bank(path)
    written = export_bank(output, bank, target_format)
    console = make_console()
    print_line(console, f"wrote {output} ({target_format}): {written} of {len(bank.skills)} skills of {path}")
    if target_format in ACTIVE_ONLY and written < len(bank.skills):
        print_line(
            console, f"{target_format} has no status: {len(bank.skills) - written} skills not in use stay out"
        )
    if told := bank.told():
        print_line(console, told, "yellow")


def _bank(source: Path) -> Path:
    from krill_tui.cli.facts import bank_path

    if os.path.exists(source):
        return bank_path(source)
    from krill_tui.engine.run_store import existing_run

    try:
        return bank_path(existing_run(str(source)))
    except (DataError, UsageError):
        raise DataError(f"{source}: there is no such file, folder or run") from None
