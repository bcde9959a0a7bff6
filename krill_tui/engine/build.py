"""From a config to the parts of a run: games, policy, teacher, embedder."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from krill_tui import paths
from krill_tui.agent.policies import ExpertPolicy, RandomPolicy
from krill_tui.config.endpoints import kept_back
from krill_tui.config.schema import KrillConfig
from krill_tui.engine.run_store import RunStore
from krill_tui.envs.alfworld.source import open_source
from krill_tui.envs.base import TaskSource
from krill_tui.errors import UsageError
from krill_tui.models.base import ChatModel, Embedder, Policy
from krill_tui.models.builtin_embedder import BuiltinEmbedder
from krill_tui.models.remembering import RememberingChat
from krill_tui.skills.builtin_teacher import BuiltinTeacher
from krill_tui.skills.retrieval import RetrievalOptions
from krill_tui.skills.teacher import Teacher
from krill_tui.skills.tiers import categories_of
from krill_tui.trajectory import Task

if TYPE_CHECKING:
    from krill_tui.models.endpoint import Limits, Say

LIVE_SERVERS = {"alfworld": "http://localhost:3000", "webshop": "http://localhost:3001"}


def build_source(config: KrillConfig) -> TaskSource:
    """The games of the config.

    Raises:
        UsageError: the world or backend cannot be played here; says what to do.
    """
    env = config.env
    if env.backend == "http":
        from krill_tui.envs.remote import HttpSource

        url = env.url or LIVE_SERVERS[env.name]
        return HttpSource(
            url,
            env=env.name,
            protocol=env.protocol,
            timeout=env.timeout,
            max_calls=env.max_calls,
            game_ranges=env.game_ranges,
            concurrency=env.concurrency,
            max_steps=env.max_steps,
        )
    if env.name == "webshop":
        return _build_shop(config)
    return open_source(
        env.backend,
        data_dir=Path(env.data_dir) if env.data_dir else None,
        size=env.world_size,
        seed=config.seed,
        all_games=env.all_games,
    )


def _build_shop(config: KrillConfig) -> TaskSource:
    from krill_tui.envs.webshop.source import WebshopSource

    env = config.env
    if env.backend != "builtin":
        raise UsageError(
            f"WebShop has no backend '{env.backend}'",
            hint="use --backend builtin, where env.webshop_data may name a folder of genuine product files",
        )
    return WebshopSource(
        config.seed,
        data_dir=Path(env.webshop_data) if env.webshop_data else None,
        observation_mode=env.observation_mode,
        genuine=env.genuine,
        human_goals=env.human_goals,
        max_steps=env.max_steps,
    )


def known_categories(source: TaskSource) -> tuple[str, ...]:
    """The categories that tasks of these games have; those of the world, where a server may know others."""
    from krill_tui.envs.webshop.source import WebshopSource

    return source.categories() if isinstance(source, WebshopSource) else categories_of(source.env)


def build_embedder(config: KrillConfig, say: Say | None = None) -> Embedder:
    if config.skill_retrieval.embedder == "builtin":
        return BuiltinEmbedder()
    from krill_tui.models.openai_api import LONGEST_VECTORS, OpenAIEmbedder

    model = config.model
    return OpenAIEmbedder(
        model.embedding_api_base,
        model.embedding_model_id,
        model.embedding_api_key,
        limits=replace(_limits(config), longest_answer=LONGEST_VECTORS),
        say=say,
        hint=kept_back(config, "embeddings", os.environ) or "check model.embedding_api_key or OPENAI_API_KEY",
    )


def _limits(config: KrillConfig) -> Limits:
    """Of the policy's and the embeddings' calls; what is not set is as for the teacher."""
    from krill_tui.models.endpoint import Limits

    model, teacher = config.model, config.teacher
    return Limits(
        timeout=model.timeout or teacher.timeout,
        max_retries=teacher.max_retries if model.max_retries is None else model.max_retries,
        longest_wait=model.longest_wait,
        base_delay=model.first_wait,
    )


def retrieval_options(config: KrillConfig) -> RetrievalOptions:
    retrieval = config.skill_retrieval
    return RetrievalOptions(
        # What the other modes show is chosen elsewhere (engine/context.py); they count by the template's rule.
        mode="embedding" if retrieval.mode == "embedding" else "template",
        top_k=retrieval.top_k,
        threshold=retrieval.similarity_threshold,
        general_top_k=retrieval.general_top_k,
        token_budget=retrieval.token_budget,
    )


def build_teacher(config: KrillConfig, store: RunStore, say: Say | None = None) -> Teacher:
    if config.teacher.kind == "builtin":
        return BuiltinTeacher()
    from krill_tui.models.endpoint import Limits
    from krill_tui.models.openai_api import OpenAIChat
    from krill_tui.skills.llm_teacher import LLMTeacher

    model, teacher = config.model, config.teacher
    chat: ChatModel = OpenAIChat(
        model.teacher_api_base,
        model.teacher_model_id,
        model.teacher_api_key,
        role="teacher",
        setting="model.teacher_api_base",
        limits=Limits(
            timeout=teacher.timeout,
            max_retries=teacher.max_retries,
            concurrency=teacher.concurrency,
            longest_wait=model.longest_wait,
            base_delay=model.first_wait,
        ),
        say=say,
        hint=kept_back(config, "teacher", os.environ) or "check model.teacher_api_key or OPENAI_API_KEY",
    )
    return LLMTeacher(
        RememberingChat(chat, store.path / "teacher_replies.jsonl"),
        trajectory_tokens=teacher.trajectory_tokens,
        evolve_tokens=teacher.evolve_tokens,
        max_tokens=teacher.max_tokens,
    )


def build_program_policy(config: KrillConfig, source: TaskSource, say: Say | None = None) -> Policy | None:
    """The policy of the config where it is no local model; None where it is. `say` takes what a person should know."""
    kind = config.policy.kind
    if kind == "expert":
        return ExpertPolicy(source.expert)
    if kind == "random":
        return RandomPolicy()
    if kind == "openai":
        from krill_tui.models.openai_api import OpenAIChat, OpenAIPolicy

        model = config.model
        chat = OpenAIChat(
            model.policy_api_base,
            model.policy_model_id,
            model.policy_api_key,
            role="policy",
            setting="model.policy_api_base",
            limits=replace(_limits(config), concurrency=config.env.concurrency),
            say=say,
            hint=kept_back(config, "policy", os.environ) or "check model.policy_api_key or OPENAI_API_KEY",
        )
        return OpenAIPolicy(chat, say)
    return None


def untold(config: KrillConfig) -> str:
    """What is missing from the prompt of a model that was not trained on it; empty where nothing is."""
    if config.policy.kind != "openai" or config.policy.prompt_style == "full":
        return ""
    return (
        "policy.prompt_style is compact: the system prompt holds no instructions and no reply format, which no model but "
        "krill-tiny can play with; set it to full"
    )


def policy_model(config: KrillConfig) -> str:
    """Folder or name of the local model.

    Raises:
        UsageError: the embedded model is missing from the installation.
    """
    if config.policy.model:
        return config.policy.model
    folder = paths.asset("krill-tiny")
    if not (folder / "config.json").exists():
        raise UsageError(
            "the embedded model krill-tiny is missing from this installation", hint="reinstall Krill"
        )
    return str(folder)


def untrained_for(config: KrillConfig) -> str:
    """What to know before the embedded model plays a world it hardly saw; empty where there is nothing."""
    if config.policy.kind != "local" or config.policy.model or config.env.name == "alfworld":
        return ""
    return (
        "the embedded model krill-tiny was trained mostly on household worlds: in WebShop expect few perfect purchases, "
        "and long episodes to outgrow its context; policy.model names another model"
    )


def demonstrator(source: TaskSource) -> ExpertPolicy:
    """The expert that follows the skills of its prompt and quotes them."""

    return ExpertPolicy(source.expert, follow_skills=True)


def split_size(games: int) -> int | str:
    """How many games a split holds, as people read it; procedural ones have no end."""
    return games if games >= 0 else "endless"


class TaskPlan:
    """Which games serve which purpose, so that no two purposes share one.

    Procedural splits are endless and disjoint. A finite train split serves collection, demonstrations and RL round
    and round; where there is no evolve split, its last games (by the seeded order) are that.
    """

    def __init__(self, source: TaskSource, config: KrillConfig) -> None:
        self._source = source
        self._config = config
        self._train: Sequence[Task] = ()
        self._evolve: Sequence[Task] = ()
        self._splits = source.splits()
        split = config.env.train_split
        if self._splits.get(split, -1) > 0:
            tasks = source.tasks(split, self._splits[split], seed=config.seed)
            held = 0 if "evolve" in self._splits else min(config.evolution.episodes, len(tasks) // 5)
            self._train, self._evolve = tasks[: len(tasks) - held], tasks[len(tasks) - held :]

    def train(self, offset: int, count: int) -> list[Task]:
        """`count` games for learning, from position `offset` of the seeded order on.

        Raises:
            UsageError: the split holds none.
        """
        split = self._config.env.train_split
        if not self._train:
            tasks = self._source.tasks(split, offset + count, seed=self._config.seed)
            return list(self._some(split, tasks)[offset:])
        return [self._train[(offset + i) % len(self._train)] for i in range(count)]

    def evolve(self, count: int) -> list[Task]:
        """Games of validations; the teacher may read the failures on them.

        Raises:
            UsageError: there are none.
        """
        if self._evolve:
            return [task.model_copy(update={"split": "evolve"}) for task in self._evolve[:count]]
        return list(self._some("evolve", self._source.tasks("evolve", count, seed=self._config.seed)))

    def evaluation_split(self) -> str:
        """The reported split: as configured, else `test`, else `valid_seen`, else what there is."""
        wanted = self._config.evaluation.split
        if wanted:
            return wanted
        return next((s for s in ("test", "valid_seen", "valid_unseen") if s in self._splits), "valid_seen")

    def evaluation(self, count: int, split: str | None = None) -> list[Task]:
        """Games of a reported split; fewer where it holds fewer.

        Raises:
            UsageError: it holds none; names the splits that do.
        """
        split = split or self.evaluation_split()
        return list(self._some(split, self._source.tasks(split, count, seed=self._config.seed)))

    def _some(self, split: str, tasks: Sequence[Task]) -> Sequence[Task]:
        if not tasks:
            held = ", ".join(f"{name} ({split_size(n)})" for name, n in self._splits.items() if n)
            raise UsageError(f"the split '{split}' holds no games", hint=f"these do: {held or 'none'}")
        return tasks
