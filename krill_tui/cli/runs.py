"""The commands that look at runs: `runs`, `watch`, `replay`, `report`."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

from krill_tui.cli.options import Display, Options, in_terminal, needs_terminal
from krill_tui.errors import EXIT_FAILURE, DataError, UsageError
from krill_tui.io.files import check_output, write_output
from krill_tui.io.json_text import loads_leniently
from krill_tui.io.streams import say, show, show_json, show_text
from krill_tui.io.text import one_line

BROKEN_OFF = "broken off or running"

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run, or its folder.")]


def runs(
    options: Options,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """List the runs, the newest first."""
    from krill_tui import paths
    from krill_tui.engine.run_store import list_runs, odd_folders

    facts = [fact for name in list_runs() if (fact := _run_facts(paths.runs_dir() / name))]
    if odd := odd_folders():
        names = ", ".join(f"'{one_line(name, limit=60)}'" for name in odd[:4])
        more = f" and {len(odd) - 4} more" if len(odd) > 4 else ""
        say(f"krill: left out, their names are no names of runs: {names}{more}")
    if as_json:
        show_json(facts, indent=1)
        return
    if not facts:
        show("no runs yet: krill train makes one")
        return
    from rich.table import Table

    from krill_tui.headless import make_console

    table = Table("run", "last event", "outcome", "env", "preset", box=None, pad_edge=False)
    for fact in facts:
        table.add_row(
            *(one_line(str(fact[key]), limit=60) for key in ("run", "time", "outcome", "env", "preset"))
        )
    make_console().print(table)


def watch(options: Options, name: RunArgument) -> None:
    """Watch a run that another process is working on."""
    from krill_tui.engine.run_store import existing_run

    path = existing_run(name)
    if _wants_app(options):
        from krill_tui.tui.app import KrillApp
        from krill_tui.tui.bridge import WatchSource

        KrillApp(source=WatchSource(path)).run()
        return
    from krill_tui import headless
    from krill_tui.engine.state import RunState

    state = RunState()
    view = headless.make_view(options.display or Display.PLAIN, state)
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(view):
        asyncio.run(headless.follow(path / "events.jsonl", state, view))


def replay(options: Options, name: RunArgument) -> None:
    """Play a run again from its journal alone."""
    from krill_tui.engine.run_store import existing_run

    path = existing_run(name)
    if _wants_app(options):
        from krill_tui.tui.app import KrillApp
        from krill_tui.tui.replay import ReplaySource

        KrillApp(source=ReplaySource(path)).run()
        return
    from krill_tui import headless
    from krill_tui.engine.state import RunState
    from krill_tui.events.journal import read_journal

    state = RunState()
    view = headless.make_view(options.display or Display.PLAIN, state)
    with contextlib.closing(view):
        for event in read_journal(path / "events.jsonl"):
            state.apply(event)
            view.show(event)
    if state.evaluations and options.display is not Display.JSON:
        headless.make_console().print(headless.results_table(state))


def report(
    options: Options,
    names: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Name of a run, or its folder; several with --svg.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
    svg: Annotated[
        Path | None,
        typer.Option(
            "--svg", help="Write the curves of the runs, one over the other, into this file instead."
        ),
    ] = None,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Play every stored action again, make every number again, and say what differs (exit code 1).",
        ),
    ] = False,
) -> None:
    """Print the report of a run, verify it, or draw the curves of several."""
    from krill_tui.engine.run_store import existing_run

    if verify and svg is not None:
        raise UsageError("--verify and --svg are two questions", hint="ask one at a time")
    if svg is not None:
        check_output(svg)
        _write_curves([existing_run(name) for name in names], svg)
        return
    if len(names) > 1:
        raise UsageError("a report is of one run", hint="--svg FILE draws the curves of several")
    [name] = names
    if verify:
        _verify(existing_run(name), options, as_json)
        return
    if as_json:
        show_json(_report_facts(existing_run(name) / "events.jsonl"), indent=1)
        return
    path = existing_run(name) / "report.md"
    try:
        text = path.read_text(encoding="utf-8")
    except OSError:
        raise DataError(
            f"run '{path.parent.name}' has no report yet", hint="a completed run has one"
        ) from None
    show_text(text)


def _verify(path: Path, options: Options, as_json: bool) -> None:
    from krill_tui.engine.verify import verify_run
    from krill_tui.headless import make_console, print_line

    asked = options.overrides().get("env")
    places = {name: value for name, value in (asked or {}).items() if name in ("data_dir", "webshop_data")}  # pyright: ignore[reportAttributeAccessIssue]
    found = verify_run(path, places)
    if as_json:
        show_json({"agrees": not found.differences, **found.model_dump(mode="json")})
    else:
        console = make_console()
        speed = f", {found.steps / found.seconds:,.0f} a second" if found.seconds else ""
        print_line(
            console,
            f"{found.run}: {found.verified} of {found.episodes} episodes played again,"
            f" {found.steps} steps in {found.seconds:.1f} s{speed}",
        )
        compared = ", ".join(f"{count} {what}" for what, count in found.checks.items())
        print_line(console, f"also compared: {compared or 'nothing'}")
        for why, count in found.unverified.items():
            print_line(console, f"not compared: {count} {one_line(why)}")
        for difference in found.differences:
            print_line(console, difference.line(), "red")
        print_line(console, f"{len(found.differences)} differences" if found.differences else "no difference")
    if found.differences:
        raise typer.Exit(EXIT_FAILURE)


def _write_curves(folders: Sequence[Path], path: Path) -> None:
    from krill_tui.engine.curves import curves_svg, read_curves

    runs = [read_curves(folder / "events.jsonl") for folder in folders]
    if not any(run.curves for run in runs):
        raise DataError("no step of these runs is in their journals yet: there is nothing to draw")
    names = ", ".join(run.name for run in runs)
    write_output(path, curves_svg({run.name: [run] for run in runs}, names))
    show(f"wrote {path}")


def _report_facts(journal: Path) -> dict[str, object]:
    """What the report says in words, from the journal alone."""
    from krill_tui.engine.state import RunState
    from krill_tui.events.journal import read_journal

    state = RunState()
    for event in read_journal(journal):
        state.apply(event)
    phases = [view for view in state.phases if view.finished]
    return {
        "run": state.run,
        "outcome": state.outcome or BROKEN_OFF,
        "config": state.config,
        "episodes": state.episodes_done,
        "errors": len(state.broken),
        "broken": state.broken,
        "skills": len(state.skills),
        "evaluations": {stage: e.model_dump(mode="json") for stage, e in state.evaluations.items()},
        "validations": [v.model_dump(mode="json") for v in state.validations],
        "evolution": [
            {
                **view.event.model_dump(mode="json"),
                "skills": {id_: skill.model_dump(mode="json") for id_, (skill, _) in view.skills.items()},
                "reasons": {id_: reason for id_, (_, reason) in view.skills.items()},
                "effects": {
                    name: {"before": before.rate, "after": after.rate, "step": view.next.step}
                    for name, (before, after) in view.effects().items()
                    if view.next
                },
            }
            for view in state.evolutions
        ],
        "phases": [{"title": v.title, "seconds": v.seconds, "summary": v.summary} for v in phases],
    }


COMMANDS: dict[str, Callable[..., None]] = {"runs": runs, "watch": watch, "replay": replay, "report": report}


def _wants_app(options: Options) -> bool:
    if options.display in (None, Display.AUTO):
        return in_terminal()
    if options.display is Display.APP:
        needs_terminal()
    return options.display is Display.APP


def _run_facts(path: Path) -> dict[str, object] | None:
    """What the journal's end and the config of a run say; None where its folder went away."""
    from krill_tui.events.journal import last_outcome

    try:
        outcome, seconds = last_outcome(path / "events.jsonl")
    except OSError:
        return None
    return {
        "run": path.name,
        "time": time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else "-",
        "outcome": outcome or BROKEN_OFF,
        **_config_facts(path / "config.json"),
        "path": str(path),
    }


def _config_facts(path: Path) -> dict[str, object]:
    try:
        config = loads_leniently(path.read_bytes())
        return {"env": f"{config['env']['name']}/{config['env']['backend']}", "preset": config["preset"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {"env": "-", "preset": "-"}
