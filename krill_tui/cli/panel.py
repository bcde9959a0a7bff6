"""`krill panel make` and `show`: an evaluation as a file, which `krill eval --panel` plays."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from krill_tui.cli.options import Options, resolve_config
from krill_tui.cli.work import given
from krill_tui.errors import UsageError
from krill_tui.io import streams

HELP = "Make or show a panel: games, content hashes, seeds and settings of an evaluation, in a file."


def make(
    options: Options,
    target: Annotated[str, typer.Argument(metavar="NAME_OR_FILE", help="NAME writes NAME.json here.")],
    split: Annotated[
        str | None,
        typer.Option("--split", help="Split to take; default: test, or valid_seen of genuine games."),
    ] = None,
    episodes: Annotated[
        int | None, typer.Option("--episodes", min=1, help="Games of the split [140].")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", min=1, help="Times each game is played [1].")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over a file that is there.")] = False,
) -> None:
    """Write what `krill eval` would play with the same options, so that anybody can play exactly that."""
    from krill_tui.engine.build import build_source
    from krill_tui.engine.panel import MOST_EPISODES, MOST_GAMES, NAME, make_panel, panel_text
    from krill_tui.io.files import check_output, write_output

    path = Path(target).expanduser()
    if path.suffix != ".json":
        path = path.with_name(f"{path.name}.json")
    if not NAME.fullmatch(path.stem):
        raise UsageError(
            f"'{path.stem}' is no name for a panel",
            hint="letters, digits, dots, dashes and underscores, up to 64",
        )
    check_output(path)
    if path.exists() and not force:
        raise UsageError(f"{path}: is there already", hint="--force writes over it")
    config = resolve_config(options, {"evaluation": given(split=split, episodes=episodes, seeds=seeds)})
    asked = config.evaluation
    if asked.episodes > MOST_GAMES or asked.episodes * asked.seeds > MOST_EPISODES:
        raise UsageError(f"a panel holds at most {MOST_GAMES} games and {MOST_EPISODES} episodes")
    panel = make_panel(path.stem, build_source(config), config)
    write_output(path, panel_text(panel))
    streams.show(
        f"wrote {path}: {len(panel.games)} games, {len(panel.episodes)} episodes, digest {panel.digest}"
    )


def show(
    options: Options,
    name: Annotated[str, typer.Argument(metavar="FILE", help="A panel, or the name of one of Krill's own.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Say what a panel asks for."""
    from krill_tui.engine.panel import find_panel, load_panel

    panel = load_panel(find_panel(name))
    facts = {
        "name": panel.name,
        "digest": panel.digest,
        "split": panel.split,
        "games": len(panel.games),
        "episodes": len(panel.episodes),
        "seed": panel.seed,
        "settings": panel.settings,
    }
    if as_json:
        streams.show_json(facts)
        return
    from krill_tui.headless import make_console, print_line

    console = make_console()
    env = panel.settings["env"]
    print_line(console, f"panel {panel.name}: {env.get('name')}/{env.get('backend')}, split {panel.split}")
    print_line(console, f"  digest {panel.digest}")
    print_line(console, f"  {len(panel.games)} games, {len(panel.episodes)} episodes")
    for section, fields in panel.settings.items():
        told = ", ".join(f"{field} {json.dumps(value)}" for field, value in fields.items())
        print_line(console, f"  {section}: {told}")


COMMANDS: dict[str, Callable[..., None]] = {"make": make, "show": show}
