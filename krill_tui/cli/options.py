"""Options every command takes, before its name or after it, and the config they make."""

from __future__ import annotations

import functools
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from krill_tui.errors import UsageError
from krill_tui.io.json_text import NotJson, loads
from krill_tui.io.streams import is_dumb

if TYPE_CHECKING:
    from krill_tui.config.schema import KrillConfig


class Display(StrEnum):
    """How a long command shows what it does."""

    AUTO = "auto"
    APP = "app"
    PLAIN = "plain"
    JSON = "json"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Options:
    """The options all commands share; None where nothing was typed."""

    config: Annotated[
        Path | None,
        typer.Option("--config", help="Config file (JSON); unset fields keep the paper's defaults."),
    ] = None
    env: Annotated[str | None, typer.Option("--env", help="World: alfworld or webshop.")] = None
    mock: Annotated[
        bool | None,
        typer.Option("--mock/--live", help="Embedded worlds (backend builtin), or a server (backend http)."),
    ] = None
    backend: Annotated[str | None, typer.Option("--backend", help="builtin, games, textworld or http.")] = (
        None
    )
    webshop_data: Annotated[
        Path | None,
        typer.Option("--webshop-data", help="Folder with genuine WebShop product files [a procedural shop]."),
    ] = None
    policy_model: Annotated[
        str | None,
        typer.Option(
            "--policy-model",
            metavar="NAME_OR_FOLDER",
            help="Local policy: any causal LM of Hugging Face with a chat template [krill-tiny].",
        ),
    ] = None
    preset: Annotated[str | None, typer.Option("--preset", help="Set of defaults: tiny or paper.")] = None
    seed: Annotated[int | None, typer.Option("--seed", help="Everything random follows from it.")] = None
    run: Annotated[
        str | None, typer.Option("--run", help="Run to make, or to go on with; default: a fresh name.")
    ] = None
    fork: Annotated[
        str | None,
        typer.Option(
            "--fork",
            metavar="NAME",
            help="Make this new run from --run: with its settings, but for those typed, its bank and newest checkpoint.",
        ),
    ] = None
    display: Annotated[
        Display | None, typer.Option("--display", help="How progress is shown; auto: the app in a terminal.")
    ] = None
    set: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="SECTION.FIELD=VALUE", help="One config field; the value is JSON. Repeatable."
        ),
    ] = None

    def over(self, earlier: Options) -> Options:
        """These options, and where nothing was typed the ones that stood before the command."""
        values = {f.name: _first(getattr(self, f.name), getattr(earlier, f.name)) for f in fields(self)}
        values["set"] = [*(earlier.set or []), *(self.set or [])] or None
        return Options(**values)

    def overrides(self) -> dict[str, object]:
        """The part of a config that was typed."""
        from krill_tui.config.load import merge

        backend = self.backend
        if self.mock is not None:
            implied = "builtin" if self.mock else "http"
            if backend not in (None, implied):
                flag = "--mock" if self.mock else "--live"
                raise UsageError(f"{flag} means --backend {implied}, but --backend {backend} was given")
            backend = implied
        shop = str(self.webshop_data) if self.webshop_data is not None else None
        env = {"name": self.env, "backend": backend, "webshop_data": shop}
        typed: dict[str, object] = {"env": {key: value for key, value in env.items() if value is not None}}
        if self.policy_model is not None:
            typed["policy"] = {"kind": "local", "model": self.policy_model}
        if self.seed is not None:
            typed["seed"] = self.seed
        for assignment in self.set or []:
            typed = merge(typed, parse_assignment(assignment))
        return typed


def resolve_config(
    options: Options,
    typed: Mapping[str, object] | None = None,
    *,
    stored: Mapping[str, object] | None = None,
    stored_path: Path | None = None,
) -> KrillConfig:
    """The config of a command: preset < file < options < `typed`, the command's own flags.

    `stored` is the config of a run that goes on, read from `stored_path`; it stands in for `--config` where none was
    given.

    Raises:
        ConfigError, UsageError: one line.
    """
    from krill_tui.config.load import load_config, merge

    overrides = merge(options.overrides(), typed or {})
    if options.config is None and options.preset is None and stored is not None:
        return load_config(stored_path, overrides=overrides, stored=stored)
    return load_config(options.config, preset=options.preset, overrides=overrides)


def parse_assignment(assignment: str) -> dict[str, object]:
    """`section.field=value` as the nested part of a config it stands for; what is not JSON is a string."""
    target, separator, text = assignment.partition("=")
    names = target.strip().split(".")
    if not separator or not all(names):
        raise UsageError(f"--set {assignment}: should be section.field=value")
    try:
        value: object = loads(text)
    except NotJson as error:
        if error.is_json:
            raise UsageError(f"--set {target.strip()}: {error}") from None
        value = text
    for name in reversed(names):
        value = {name: value}
    assert isinstance(value, dict)
    return value


def in_terminal() -> bool:
    """Whether a person reads the output and types the input, in a terminal that can do more than lines."""
    return sys.stdin.isatty() and sys.stdout.isatty() and not is_dumb(os.environ)


def needs_terminal() -> None:
    """Refuse where the app could not be shown: it reads standard input, and draws on standard error.

    Raises:
        UsageError: one of them is no terminal.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(
            "the app needs a terminal", hint="krill train works without one; krill --help lists the rest"
        )


def with_options(function: Callable[..., None]) -> Callable[..., None]:
    """Make a command of a function whose first parameter takes the shared `Options`.

    Typer reads a command's options from its signature, so the fields of `Options` are put into it; what was
    typed before the command's name waits in the context.
    """
    hints = get_type_hints(Options, include_extras=True)
    shared = [
        inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hints[f.name])
        for f in fields(Options)
    ]
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    own = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]

    @functools.wraps(function)
    def command(ctx: typer.Context, **values: Any) -> None:
        values = {name: _at_home(value) for name, value in values.items()}
        options = Options(**{parameter.name: values.pop(parameter.name) for parameter in shared})
        earlier = ctx.parent.obj if ctx.parent and isinstance(ctx.parent.obj, Options) else Options()
        ctx.obj = options = options.over(earlier)
        if ctx.invoked_subcommand is None:  # the app's own callback also runs before every command
            function(options, **values)

    context = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=typer.Context)
    command.__dict__["__signature__"] = inspect.Signature([context, *own, *shared])
    return command


def _at_home(value: Any) -> Any:
    """A path that begins with `~`, which no shell expands inside `--output=~/x`, below the home folder."""
    return Path(os.path.expanduser(value)) if isinstance(value, Path) else value


def _first(value: Any, other: Any) -> Any:
    return other if value is None else value
