"""Panels: an evaluation as a file, so that anybody can play exactly it again.

A panel names every game with a hash of its content, the sampling seed of every episode, and each setting that a result
depends on. What it does not name (the model, the skill bank, where the data lie, how many episodes are played at once)
is what is measured, or makes no difference.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, ValidationError

from krill_tui import paths
from krill_tui.config.load import explain, merge
from krill_tui.config.schema import KrillConfig
from krill_tui.engine.build import TaskPlan, build_embedder, build_source, retrieval_options
from krill_tui.engine.context import RunContext, derive_seed
from krill_tui.envs.base import Pinnable, TaskSource
from krill_tui.errors import DataError, KrillError, StorageError, UsageError
from krill_tui.io.files import read_json, write_atomically
from krill_tui.io.text import one_line
from krill_tui.skills.retrieval import Retriever
from krill_tui.trajectory import Record, Task, Trajectory

FORMAT = "krill panel"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
MOST_BYTES = 32 * 2**20
MOST_GAMES = 20_000
MOST_EPISODES = 200_000
_MACHINE = (
    *("data_dir", "webshop_data", "concurrency", "train_split"),
    *("url", "protocol", "timeout", "max_calls", "game_ranges"),  # of servers, whose games cannot be pinned
)
"""Fields of `env` that say where and how, not what."""
_FIELDS: dict[str, tuple[str, ...]] = {
    "env": tuple(name for name in type(KrillConfig().env).model_fields if name not in _MACHINE),
    "policy": ("constrained", "prompt_style", "list_admissible", "eval_temperature"),
    "rl": ("max_prompt_length", "max_response_length"),
    "skill_retrieval": tuple(type(KrillConfig().skill_retrieval).model_fields),
    "faults": ("max_error_rate",),
}
"""Settings that a panel fixes."""

Digest = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Seed = Annotated[int, Field(ge=0, lt=2**31)]
Number = Annotated[int, Field(ge=0, lt=MOST_GAMES)]


class PanelGame(Record):
    model_config = ConfigDict(strict=True)

    id: Annotated[str, StringConstraints(min_length=1, max_length=500)]
    hash: Digest
    """SHA-256 of its content."""


class Panel(Record):
    """The file, as it is written."""

    model_config = ConfigDict(strict=True)

    format: Literal["krill panel"] = FORMAT
    version: Literal[1] = 1
    name: Annotated[str, StringConstraints(pattern=f"^{NAME.pattern}$")]
    split: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    """Where the games were taken from, for people."""
    seed: Annotated[int, Field(ge=0, lt=2**63)]
    """Of the world, where it draws something itself (prices of a shop)."""
    settings: dict[str, dict[str, Any]]
    """Section -> field -> value, as in a config."""
    games: Annotated[tuple[PanelGame, ...], Field(strict=False, min_length=1, max_length=MOST_GAMES)]
    episodes: Annotated[
        tuple[Annotated[tuple[Number, Seed], Field(strict=False)], ...],
        Field(strict=False, min_length=1, max_length=MOST_EPISODES),
    ]
    """(index of the game, sampling seed), in the order in which they are played."""
    digest: Digest = "0" * 64
    """Of everything above but the name."""


def digest_of(panel: Panel) -> str:
    """SHA-256 of what a panel asks; its name and the digest it states do not count."""
    content = panel.model_dump(mode="json", exclude={"name", "digest"})
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def make_panel(name: str, source: TaskSource, config: KrillConfig) -> Panel:
    """What `krill eval` would play with this config, fixed.

    Raises:
        UsageError: the content of these games cannot be known, or there are none.
    """
    pinnable = _pinnable(source)
    plan = TaskPlan(source, config)
    split = plan.evaluation_split()
    tasks = plan.evaluation(config.evaluation.episodes)
    if not tasks:
        raise UsageError(f"the split '{split}' holds no games")
    seeds = [
        derive_seed(config.seed, f"evaluate-{split}-{index:04d}")
        for index in range(len(tasks) * config.evaluation.seeds)
    ]
    given = config.model_dump(mode="json")
    panel = _validated(
        {
            "name": name,
            "split": split,
            "seed": config.seed,
            "settings": {
                section: {field: given[section][field] for field in fields if field in given[section]}
                for section, fields in _FIELDS.items()
                if section in given
            },
            "games": [{"id": task.id, "hash": pinnable.game_hash(task)} for task in tasks],
            "episodes": [[index % len(tasks), seed] for index, seed in enumerate(seeds)],
        },
        "this panel",
    )
    return panel.model_copy(update={"digest": digest_of(panel)})


def find_panel(name: str) -> Path:
    """The file of a panel: a path, or the name of one that comes with Krill.

    Raises:
        DataError: there is none; names those there are.
    """
    if Path(name).is_file():
        return Path(name)
    shipped = paths.asset("panels")
    if (shipped / f"{name}.json").is_file() and "/" not in name:
        return shipped / f"{name}.json"
    known = ", ".join(sorted(path.stem for path in shipped.glob("*.json")))
    raise DataError(f"there is no panel '{one_line(name)}'", hint=f"a file, or one of Krill's own: {known}")


def load_panel(path: Path) -> Panel:
    """Read a panel and check that it is whole.

    Raises:
        DataError: it cannot be read, is no panel, asks for what no config allows, or was changed by hand.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise DataError(f"{path}: is larger than {MOST_BYTES // 2**20} MiB, so it is no panel")
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    data = read_json(path)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise DataError(f"{path}: is no panel of Krill", hint="krill panel make writes one")
    if type(data.get("version")) is not int or data["version"] != 1:
        version = one_line(repr(data.get("version")), limit=20)
        raise DataError(f"{path}: has version {version}, this Krill reads 1", hint="a newer Krill wrote it")
    panel = _validated(data, str(path))
    if panel.digest != (found := digest_of(panel)):
        raise DataError(
            f"{path}: was changed since it was made: its digest is {found[:16]}, and it says {panel.digest[:16]}"
        )
    return panel


def apply_panel(panel: Panel, config: KrillConfig) -> KrillConfig:
    """`config` with every setting that the panel fixes."""
    fixed: dict[str, object] = {**panel.settings, "seed": panel.seed}
    merged = merge(config.model_dump(mode="json"), fixed)
    return KrillConfig.model_validate_json(json.dumps(merged))


def overrides(panel: Panel) -> dict[str, object]:
    """The part of a config that the panel fixes, for a run that is new."""
    return {**panel.settings, "seed": panel.seed}


def refuse_contradiction(panel: Panel, typed: Mapping[str, Any]) -> None:
    """Check options against a panel; `typed` is the part of a config that they say.

    Raises:
        UsageError: an option asks for something else than the panel; names the first.
    """
    size = len(panel.games)
    known: dict[str, dict[str, Any]] = {
        **panel.settings,
        "evaluation": {"split": panel.split, "episodes": size, "seeds": len(panel.episodes) // size},
    }
    said = [("seed", typed["seed"], panel.seed)] if "seed" in typed else []
    for section, fields in typed.items():
        if isinstance(fields, Mapping) and section in known:
            said += [
                (f"{section}.{name}", value, known[section][name])
                for name, value in fields.items()
                if name in known[section]
            ]
    for name, value, fixed in said:
        if value != fixed:
            asked, of = (json.dumps(v, default=str)[:60] for v in (value, fixed))
            raise UsageError(
                f"{name} {asked} contradicts the panel {panel.name}, which asks for {of}",
                hint="leave the option out, or make another panel",
            )


def panel_tasks(panel: Panel, source: TaskSource) -> list[Task]:
    """The games of a panel, each found and of the same content.

    Raises:
        DataError: a game is missing or another one; names the first.
    """
    pinnable = _pinnable(source)
    tasks: list[Task] = []
    for game in panel.games:
        name = one_line(game.id, limit=200)
        try:
            task = pinnable.task(game.id)
            found = pinnable.game_hash(task)
        except KrillError as error:
            raise DataError(
                f"the panel {panel.name} asks for the game {name}: {error.message}",
                hint="env.data_dir or env.webshop_data says where the data lie",
            ) from None
        if found != game.hash:
            raise DataError(
                f"the game {name} is not the one of the panel {panel.name}:"
                f" its content hash is {found[:16]}, not {game.hash[:16]}"
            )
        tasks.append(task)
    return tasks


@dataclass(frozen=True, slots=True)
class PanelPlan:
    """A panel whose games were found: what an evaluation plays."""

    panel: Panel
    games: tuple[Task, ...]
    """In the order of `panel.games`."""

    @property
    def tasks(self) -> list[Task]:
        """The game of each episode."""
        return [self.games[game] for game, _ in self.panel.episodes]

    @property
    def seeds(self) -> list[int]:
        """The sampling seed of each episode."""
        return [seed for _, seed in self.panel.episodes]


def plan_panel(panel: Panel, config: KrillConfig) -> PanelPlan:
    """Find the games of a panel where `config` says that they lie.

    Raises:
        KrillError: there are no games, one is missing, or it is another one.
    """
    return PanelPlan(panel, tuple(panel_tasks(panel, build_source(apply_panel(panel, config)))))


def pinned(ctx: RunContext, plan: PanelPlan) -> RunContext:
    """The same run, for as long as it plays a panel: the panel's settings and games in place of its own."""
    config = apply_panel(plan.panel, ctx.config)
    embedder = build_embedder(config)
    folder = ctx.store.path / "panels"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise StorageError(folder, error) from None
    write_atomically(folder / f"{plan.panel.digest[:16]}.json", panel_text(plan.panel))
    return replace(
        ctx,
        config=config,
        source=build_source(config),
        embedder=embedder,
        retriever=Retriever(ctx.bank, embedder, retrieval_options(config)),
        panel=plan,
    )


def played_digest(trajectories: Sequence[Trajectory]) -> str:
    """SHA-256 of what was played: game, seed, replies and end of each episode, in the order of their ids.

    Two machines that played the same have the same.
    """
    digest = hashlib.sha256()
    for trajectory in sorted(trajectories, key=lambda t: (len(t.id), t.id)):
        said = [step.text for step in trajectory.steps]
        line = [trajectory.task_id, trajectory.seed, said, trajectory.stop_reason.value]
        digest.update(json.dumps(line, ensure_ascii=True).encode() + b"\n")
    return digest.hexdigest()


def panel_text(panel: Panel) -> str:
    """The file's content: one game and one episode a line."""
    data = panel.model_dump(mode="json")
    games, episodes = data.pop("games"), data.pop("episodes")
    head = json.dumps(data, indent=1, ensure_ascii=True)
    lists = ",\n".join(
        f' "{name}": [\n  ' + ",\n  ".join(json.dumps(item, ensure_ascii=True) for item in items) + "\n ]"
        for name, items in (("games", games), ("episodes", episodes))
    )
    return f"{head.removesuffix('}').rstrip()},\n{lists}\n}}\n"


def _pinnable(source: TaskSource) -> Pinnable:
    if not isinstance(source, Pinnable):
        raise UsageError(
            "a panel needs games whose content is known, and a server's is not",
            hint="use --backend builtin, games or textworld",
        )
    return source


def _validated(data: Mapping[str, Any], where: str) -> Panel:
    try:
        panel = Panel.model_validate(data)
        # The schema of a config says what the settings may be.
        KrillConfig.model_validate_json(json.dumps(merge({}, panel.settings)))
    except ValidationError as error:
        raise DataError(f"{where}: {one_line(explain(error))}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{where}: {one_line(str(error))}") from None
    for section, fields in panel.settings.items():
        if unknown := [name for name in fields if name not in _FIELDS.get(section, ())]:
            raise DataError(f"{where}: {one_line(f'{section}.{unknown[0]}')} is no setting of a panel")
    for section in ("env", "policy", "rl", "skill_retrieval"):
        if section not in panel.settings:
            raise DataError(f"{where}: settings.{section} is missing")
    _refuse_repeats([game.id for game in panel.games], "the game", where)
    _refuse_repeats(list(panel.episodes), "the episode", where)
    if out := [game for game, _ in panel.episodes if game >= len(panel.games)]:
        raise DataError(f"{where}: an episode asks for game {out[0]}, of {len(panel.games)}")
    return panel


def _refuse_repeats(items: Sequence[object], what: str, where: str) -> None:
    (item, count), *_ = Counter(items).most_common(1)
    if count > 1:
        raise DataError(f"{where}: holds {what} {one_line(str(item), limit=200)} {count} times")
