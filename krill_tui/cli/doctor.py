"""`krill doctor`: what is installed here, what was found, and the config that would be used."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from krill_tui import paths
from krill_tui.cli.options import Options, resolve_config
from krill_tui.errors import KrillError, UsageError
from krill_tui.io.streams import show, show_json

if TYPE_CHECKING:
    from krill_tui.config.schema import KrillConfig

PACKAGES = (
    *("krill-tui", "textual", "torch", "transformers", "peft", "httpx", "pydantic", "numpy"),
    *("alfworld", "sentence-transformers", "starlette"),
)


def doctor(
    options: Options,
    name: Annotated[
        str | None, typer.Argument(metavar="RUN", help="A run to look over, in place of the installation.")
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Restore what the journal of RUN holds; nothing is deleted.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
) -> None:
    """Say what is installed, which games and models were found, and the resolved config; or whether RUN is whole."""
    if name is not None:
        raise typer.Exit(_look_over(name, repair=repair, as_json=as_json))
    if repair:
        raise UsageError("--repair needs the run to mend", hint="krill doctor RUN --repair")
    config = resolve_config(options)
    facts = collect_facts(config)
    if as_json:
        show_json(facts)
        return
    from krill_tui.headless import make_console, print_line

    console = make_console()
    for section, values in facts.items():
        print_line(console, section, "bold")
        for name, value in _flat(values):
            print_line(console, f"  {name:32} {value}")


def _look_over(run: str, *, repair: bool, as_json: bool) -> int:
    """Print what is damaged in a run, mend it if asked, and return the exit code: 1 while something is damaged."""
    from krill_tui.engine.checkup import check_run, facts_of
    from krill_tui.engine.repair import repair_run
    from krill_tui.engine.run_store import run_path

    folder = run_path(run)
    if not folder.is_dir():
        raise UsageError(f"there is no run '{run}'", hint="krill runs lists them")
    done = repair_run(folder) if repair else []
    checkup = check_run(folder)
    if as_json:
        show_json({**facts_of(checkup), "repaired": done})
        return 1 if checkup.damaged else 0
    for line in done:
        show(f"repaired: {line}")
    for finding in checkup.findings:
        kind = "damaged" if finding.damaged else "left over"
        way_out = f" (--repair: {finding.repair})" if finding.repair else " (cannot be repaired)"
        show(f"{kind}: {finding.file}: {finding.problem}{way_out}")
    current = checkup.told.progress().get("checkpoint") or "none"
    show(
        f"{folder.name}: {len(checkup.events)} events, {len(checkup.kept)} episodes, {len(checkup.state.skills)} skills;"
        f" checkpoint {current}; whole checkpoints: {', '.join(checkup.whole) or 'none'}"
    )
    if not checkup.findings:
        show("nothing is damaged")
    return 1 if checkup.damaged else 0


COMMANDS: dict[str, Callable[..., None]] = {"doctor": doctor}


def collect_facts(config: KrillConfig) -> dict[str, dict[str, Any]]:
    """Everything `krill doctor` shows; a key is only ever said to be set or not."""
    from krill_tui.config.endpoints import API_KEY_FIELDS
    from krill_tui.config.load import public_dict
    from krill_tui.config.presets import PRESETS

    model = config.model
    return {
        "system": {
            "python": platform.python_version(),
            "platform": platform.platform(),
            "cpu cores": os.cpu_count(),
            "threads": config.policy.threads or "chosen by the model worker",
            "terminal": _terminal(),
        },
        "packages": {name: _version(name) or "not installed" for name in PACKAGES},
        "models": {"krill-tiny": _embedded_model(), "memory of the policy": _policy_memory(config)},
        "keys": {name: "set" if getattr(model, name) else "not set" for name in API_KEY_FIELDS},
        "alfworld": _alfworld_data(config),
        "webshop": _webshop_data(config),
        "runs": {"folder": str(paths.runs_dir().resolve())},
        "presets": {"known": ", ".join(sorted(PRESETS)), "used": config.preset},
        "config": public_dict(config),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _terminal() -> str:
    if not sys.stdout.isatty():
        return "none (standard output is no terminal)"
    size = shutil.get_terminal_size()
    return f"{os.environ.get('TERM', 'unknown')}, {size.columns}x{size.lines}"


def _embedded_model() -> str:
    folder = paths.asset("krill-tiny")
    weights = folder / "model.safetensors"
    if not weights.is_file():
        return "missing"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()[:12]
    return f"{folder} ({weights.stat().st_size / 1e6:.1f} MB, sha256 {digest})"


def _policy_memory(config: KrillConfig) -> str:
    """What training the local policy will need, from its folder's config.json; nothing is loaded or fetched."""
    from krill_tui.engine.build import policy_model
    from krill_tui.models.local import SHARDED
    from krill_tui.training.memory import Load, describe, estimate, read_shape

    policy, rl = config.policy, config.rl
    if policy.kind != "local":
        return f"none is trained (policy.kind is {policy.kind})"
    try:
        shape = read_shape(policy_model(config))
    except KrillError as error:
        return f"unknown ({error})"
    load = Load(
        dtype=policy.dtype,
        lora_rank=policy.lora_rank,
        gradient_checkpointing=policy.gradient_checkpointing,
        micro_batch_tokens=policy.micro_batch_tokens,
        episodes=0 if policy.sampler == "vllm" else -(-config.env.concurrency // policy.processes),
        context=rl.max_prompt_length + rl.max_response_length,
        shards=policy.processes if policy.accelerate_config == SHARDED else 1,
    )
    return f"{describe(estimate(shape, load), load, None)}, in each of {policy.processes} processes"


def _alfworld_data(config: KrillConfig) -> dict[str, Any]:
    """Splits of the genuine games, with counts and the hash that results are marked with."""
    from krill_tui.engine.build import split_size
    from krill_tui.envs.alfworld.source import GamesSource, alfworld_data

    engine = _version("alfworld")
    genuine = {"backend textworld": f"alfworld {engine}" if engine else "needs the extra alfworld"}
    folder = Path(config.env.data_dir) if config.env.data_dir else alfworld_data()
    if folder is None:
        return {"games": "none (ALFWORLD_DATA is not set)", **genuine}
    try:
        source = GamesSource(folder, all_games=config.env.all_games)
    except KrillError as error:
        return {"games": f"none ({error})", **genuine}
    facts: dict[str, Any] = {
        "games": str(source.root),
        **{name: split_size(games) for name, games in source.splits().items()},
        "content hash": source.content_hash(),
    }
    if skipped := source.listing.counts():
        facts["skipped"] = skipped
    if notices := source.notices():
        facts["to know"] = {str(n): notice for n, notice in enumerate(notices, start=1)}
    return facts | genuine


def _webshop_data(config: KrillConfig) -> dict[str, Any]:
    """The shop that would be played, with the goals of each split and the hash of its results."""
    from krill_tui.engine.build import split_size
    from krill_tui.envs.webshop.source import WebshopSource

    folder = config.env.webshop_data
    try:
        source = WebshopSource(config.seed, data_dir=Path(folder) if folder else None)
    except KrillError as error:
        return {"shop": f"none ({error})"}
    shop = folder or f"procedural, {source.size} products"
    splits = {name: split_size(games) for name, games in source.splits().items()}
    facts: dict[str, Any] = {"shop": shop, **splits, "content hash": source.content_hash()}
    if notices := source.notices():
        facts["to know"] = {str(n): notice for n, notice in enumerate(notices, start=1)}
    return facts


def _flat(values: dict[str, Any], prefix: str = "") -> list[tuple[str, object]]:
    found: list[tuple[str, object]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        else:
            found.append((prefix + name, "-" if value in ("", None) else value))
    return found
