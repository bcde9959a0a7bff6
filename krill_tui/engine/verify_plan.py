"""What a run's config implies for its episodes before anything is played: which game, which seed, which prompt."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from krill_tui.agent.prompts import EPISODE_ID, PromptOptions, render_system
from krill_tui.config.schema import KrillConfig
from krill_tui.engine.build import TaskPlan, build_source
from krill_tui.engine.context import derive_seed
from krill_tui.engine.panel import Panel, apply_panel, load_panel
from krill_tui.engine.recheck import Difference, difference
from krill_tui.envs.base import TaskSource
from krill_tui.errors import EnvironmentFailure, KrillError
from krill_tui.skill import Skill
from krill_tui.trajectory import Task, Trajectory

_NUMBER = re.compile(r"(collect|demo|validate-\d+|evaluate-.+)-(\d{4,9})")
_GROUP = re.compile(r"rl-(\d{4,9})-(\d{1,6})-(\d{1,6})")
BankPast = Mapping[str, Sequence[tuple[int, Skill | None]]]
"""Skill -> (bank version, how it read from then on; None: it was taken out)."""
_MOST = 1_000_000
"""Games of one order that are looked at."""


EXACT = ("builtin", "games", "textworld")
"""Backends whose games our engines play exactly as they were played."""


class Worlds:
    """The exact engines of a run's configs, opened when they are first needed."""

    def __init__(self, path: Path, places: Mapping[str, str]) -> None:
        self._panels = path / "panels"
        self._places = dict(places)
        self._read: dict[str, Panel] = {}
        self._sources: dict[str, TaskSource | str] = {}

    def config_of(self, trajectory: Trajectory, config: KrillConfig) -> KrillConfig:
        """The config an episode was played with: the run's, or that with a panel over it."""
        panel = panel_key(trajectory.id)
        if panel is None:
            return config
        return apply_panel(self._panel(panel), config)

    def pinned(self, trajectory: Trajectory) -> tuple[str, int] | None:
        """The game and the sampling seed that a panel gave to an episode; None where no panel did."""
        if (key := panel_key(trajectory.id)) is None:
            return None
        panel, number = self._panel(key), int(trajectory.id.rpartition("-")[2])
        if number >= len(panel.episodes):
            return None
        game, seed = panel.episodes[number]
        return panel.games[game].id, seed

    def _panel(self, key: str) -> Panel:
        if key not in self._read:
            self._read[key] = load_panel(self._panels / f"{key}.json")
        return self._read[key]

    def source(self, config: KrillConfig) -> TaskSource:
        """The games of a config.

        Raises:
            KrillError: they are not here, or on a server.
        """
        env = config.env
        if env.backend not in EXACT:
            raise EnvironmentFailure("played on a server")
        exact = {"backend": "games"} if env.backend == "textworld" else {}
        config = config.model_copy(update={"env": env.model_copy(update={**exact, **self._places})})
        key = config.env.model_dump_json() + str(config.seed)
        if key not in self._sources:
            try:
                self._sources[key] = build_source(config)
            except KrillError as error:
                self._sources[key] = error.message
        source = self._sources[key]
        if isinstance(source, str):
            raise EnvironmentFailure(f"the games are not here: {source}")
        return source


def panel_key(episode: str) -> str | None:
    """The beginning of the digest of the panel that an episode belongs to, from its id; None where it belongs to none."""
    _, mark, rest = episode.rpartition("-panel-")
    key = rest.partition("-")[0]
    return key if mark and len(key) == 16 and all(c in "0123456789abcdef" for c in key) else None


def expected_seed(trajectory: Trajectory, config: KrillConfig) -> int | None:
    """The sampling seed of an episode by its id; None where the id is of a kind that does not say."""
    if match := _NUMBER.fullmatch(trajectory.id):
        name, number = match.groups()
        noise = f"evaluate-{trajectory.split}-{number}" if name.startswith("evaluate-") else trajectory.id
        return derive_seed(config.seed, noise)
    return derive_seed(config.seed, trajectory.id) if _GROUP.fullmatch(trajectory.id) else None


class Plans:
    """Which game each episode should have been of, by the plan of its config."""

    def __init__(self, source_of: Callable[[KrillConfig], TaskSource]) -> None:
        self._source_of = source_of
        self._plans: dict[str, TaskPlan | None] = {}
        self._orders: dict[tuple[str, str], Sequence[Task]] = {}

    def game_of(self, trajectory: Trajectory, config: KrillConfig) -> str | None:
        """Id of the game that the plan gives an episode; None where the plan does not say."""
        key = config.model_dump_json(include={"seed", "env", "evolution", "evaluation"})
        try:
            if key not in self._plans:
                self._plans[key] = TaskPlan(self._source_of(config), config)
            plan = self._plans[key]
            expected = self._expected(trajectory, config, plan, key) if plan else None
        except KrillError:
            self._plans[key] = None
            return None
        return expected.id if expected else None

    def _expected(self, trajectory: Trajectory, config: KrillConfig, plan: TaskPlan, key: str) -> Task | None:
        if match := _GROUP.fullmatch(trajectory.id):
            groups = max(1, config.rl.batch_size // config.rl.group_size)
            before = config.collect.episodes + config.sft.num_examples + (int(match[1]) - 1) * groups
            return self._train(plan, key, before + int(match[2]))
        match = _NUMBER.fullmatch(trajectory.id)
        if match is None:
            return None
        name, number = match[1], int(match[2])
        if name == "collect":
            return self._train(plan, key, number)
        if name == "demo":
            return self._train(plan, key, config.collect.episodes + number)
        if name.startswith("validate-"):
            order = self._order(key, "evolve", lambda: plan.evolve(config.evolution.episodes))
            return order[number] if number < len(order) else None
        split = trajectory.split
        games = config.evaluation.episodes
        order = self._order(key, f"{split}/{games}", lambda: plan.evaluation(games, split))
        return order[number % len(order)] if order else None

    def _train(self, plan: TaskPlan, key: str, index: int) -> Task | None:
        if index >= _MOST:
            return None
        order = self._orders.get((key, "train"), ())
        if index >= len(order):
            order = plan.train(0, min(_MOST, max(256, 2 * index)))
            self._orders[key, "train"] = order
        return order[index]

    def _order(self, key: str, name: str, make: Callable[[], Sequence[Task]]) -> Sequence[Task]:
        if (key, name) not in self._orders:
            self._orders[key, name] = make()
        return self._orders[key, name]


def check_prompt(
    trajectory: Trajectory,
    config: KrillConfig,
    bank: BankPast,
    checks: Counter[str],
    unverified: Counter[str],
) -> Iterator[Difference]:
    """The system message, from the skills as the bank held them then."""
    if not trajectory.system and not trajectory.steps:
        return  # it broke before it had one
    if any(id_.startswith(EPISODE_ID) for id_ in trajectory.skills):
        unverified["prompts that hold earlier episodes"] += 1
        return
    checks["prompts"] += 1
    system = prompt_of(trajectory, trajectory.skills, config, bank)
    if system is None:
        version = trajectory.bank_version
        yield difference(trajectory.id, "skills", trajectory.skills, f"not in version {version} of the bank")
    elif system != trajectory.system:
        yield difference(trajectory.id, "system", trajectory.system, system)


def prompt_of(
    trajectory: Trajectory, skills: Sequence[str], config: KrillConfig, bank: BankPast
) -> str | None:
    """The system message with these skills, as they read when the episode began; None where one of them was not there."""
    shown: list[Skill] = []
    for id_ in skills:
        versions = [skill for version, skill in bank.get(id_, ()) if version <= trajectory.bank_version]
        if not versions or versions[-1] is None:
            return None
        shown.append(versions[-1])
    options = PromptOptions(config.policy.prompt_style, config.policy.list_admissible)
    return render_system(trajectory.env, shown, options)
