"""What every phase works with: the parts of one run, and how episodes are played and written down."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from krill_tui.agent.collect import run_episodes
from krill_tui.agent.gate import Gate
from krill_tui.agent.outage import Patience
from krill_tui.agent.prompts import PromptOptions
from krill_tui.agent.rollout import EpisodeSpec, Rollout, RolloutOptions
from krill_tui.agent.substitutes import ExampleEpisodes, irrelevant_skills
from krill_tui.config.schema import KrillConfig
from krill_tui.engine import build
from krill_tui.engine.episodes import EpisodeFile
from krill_tui.engine.run_store import RunStore
from krill_tui.engine.state import RunState
from krill_tui.engine.tokens import TokenStore
from krill_tui.envs.base import TaskSource
from krill_tui.errors import EnvironmentFailure
from krill_tui.events import schema as ev
from krill_tui.events.bus import EventBus
from krill_tui.models.base import Embedder, Policy, Sampling
from krill_tui.models.local import WorkerClient
from krill_tui.skill import GENERAL, Skill
from krill_tui.skills.bank import SkillBank
from krill_tui.skills.retrieval import Retriever, Selection
from krill_tui.skills.teacher import Teacher
from krill_tui.skills.tiers import reach
from krill_tui.trajectory import StopReason, Task, Trajectory

if TYPE_CHECKING:
    from krill_tui.engine.panel import PanelPlan

ENOUGH_BROKEN = 10
"""When so many broke and they are too many, the rest is not tried."""


@dataclass
class RetrievalCounts:
    """What selecting skills gave, over the prompts of this session."""

    prompts: int = 0
    below: int = 0
    """Prompts that had task-specific skills to choose from, of which none passed the similarity threshold."""
    nearest: float = -1.0
    """The best similarity among those."""

    def add(self, selection: Selection) -> None:
        self.prompts += 1
        below = [left.score for left in selection.left_out if left.reason == "below the threshold"]
        if below and all(skill.tier == GENERAL for skill in selection.skills):
            self.below += 1
            self.nearest = max(self.nearest, *below)


@dataclass
class RunContext:
    """One run, opened for work."""

    config: KrillConfig
    store: RunStore
    bus: EventBus
    state: RunState
    source: TaskSource
    bank: SkillBank
    retriever: Retriever
    embedder: Embedder
    teacher: Teacher
    gate: Gate
    tokens: TokenStore
    episodes: EpisodeFile
    """Those that are finished."""
    worker: WorkerClient | None = None
    examples: ExampleEpisodes | None = None
    """Won episodes for prompts (`skill_retrieval.mode` trajectories), read when they are first asked for."""
    panel: PanelPlan | None = None
    """What an evaluation plays in place of a split."""
    notes: set[str] = field(default_factory=set)
    """Notes that are said once a run."""
    retrieved: RetrievalCounts = field(default_factory=RetrievalCounts)

    def emit(self, event: ev.BaseEvent) -> None:
        self.bus.emit(event)

    def note(self, message: str, level: str = "info") -> None:
        self.emit(ev.Noted(level=level, message=message))  # pyright: ignore[reportArgumentType]

    def sync(self) -> None:
        """Wait until the disk holds every episode and every event so far."""
        self.episodes.sync()
        self.bus.sync()

    def note_once(self, message: str, level: str = "info") -> None:
        if message not in self.notes:
            self.notes.add(message)
            self.note(message, level)

    @property
    def patience(self) -> Patience:
        faults = self.config.faults
        unknown = faults.patience if len(self.episodes) else faults.first_patience
        return Patience(faults.first_wait, faults.longest_wait, faults.patience, unknown)

    @property
    def prompt_options(self) -> PromptOptions:
        policy = self.config.policy
        return PromptOptions(style=policy.prompt_style, list_admissible=policy.list_admissible)

    def rollout_options(self, temperature: float) -> RolloutOptions:
        sampling = Sampling(
            temperature=temperature,
            max_tokens=self.config.rl.max_response_length,
            constrained=self.config.policy.constrained,
        )
        return RolloutOptions(self.config.env.max_steps, self.prompt_options, sampling)

    async def select_skills(self, task: Task) -> tuple[tuple[Skill, ...], int]:
        """The skills of a prompt for this task; what is left out for want of room is said once."""
        mode = self.config.skill_retrieval.mode
        if mode == "none":
            return (), 0
        if mode == "trajectories":
            return await self._won_episodes(task), 0
        selection = await self.retriever.select(task.description, task.category)
        self.retrieved.add(selection)
        cut = [left.id for left in selection.left_out if "budget" in left.reason]
        if cut:
            self.note_once(f"skills left out of prompts by the token budget: {', '.join(cut)}", "warning")
        if mode == "irrelevant":
            return irrelevant_skills(self.bank.skills(), task, len(selection.skills)), selection.bank_version
        return selection.skills, selection.bank_version

    def note_unreached_skills(self) -> None:
        """Say once which skills of the bank no task of this world can have in its prompt."""
        if self.config.skill_retrieval.mode not in ("none", "trajectories"):
            reached = reach(self.bank.skills(), self.config.env.name, build.known_categories(self.source))
            if told := reached.told(server=self.source.backend == "http"):
                self.note_once(told, "warning")

    def note_skills_below_threshold(self) -> None:
        """Say once in how many prompts no task-specific skill was near enough to its task."""
        counts = self.retrieved
        if counts.below and "threshold" not in self.notes:
            self.notes.add("threshold")
            self.note(
                f"no task-specific skill passed the threshold in {counts.below} of {counts.prompts} episodes:"
                f" the nearest was at {counts.nearest:.2f},"
                f" skill_retrieval.similarity_threshold is {self.config.skill_retrieval.similarity_threshold:g}",
                "warning" if counts.below == counts.prompts else "info",
            )

    async def _won_episodes(self, task: Task) -> tuple[Skill, ...]:
        """Blocks of won episodes of phase 1 (or of an imported file), in place of skills."""
        if self.examples is None:
            self.examples = ExampleEpisodes(
                [*self.episodes.read("collect"), *self.episodes.read("")],
                self.embedder,
                count=self.config.skill_retrieval.top_k,
                token_budget=self.config.skill_retrieval.token_budget,
            )
            if not len(self.examples):
                self.note_once("no collected episode was won: prompts hold no trajectories", "warning")
        return await self.examples.select(task)


def derive_seed(*parts: object) -> int:
    """A 31-bit seed that depends on nothing but its parts."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") & 0x7FFFFFFF


def make_specs(
    ctx: RunContext,
    tasks: Sequence[Task],
    *,
    prefix: str,
    purpose: ev.Purpose,
    with_skills: bool = True,
    noise: str = "",
    seeds: Sequence[int] = (),
) -> list[EpisodeSpec]:
    """One episode per task, named `<prefix>-<number>`; those already finished are left out.

    An episode's seed comes from its name; with `noise` from that and its number, so that two evaluations of the same
    games sample with the same random numbers (paired comparison). `seeds` are used instead, where a panel gives them.
    """
    named = [(index, f"{prefix}-{index:04d}", task) for index, task in enumerate(tasks)]
    for _, id_, task in named:
        ctx.episodes.check_plan(id_, task.id)
    owed = [(index, id_, task) for index, id_, task in named if id_ not in ctx.episodes]
    return [
        EpisodeSpec(
            id=id_,
            number=len(ctx.episodes) + offset,
            task=task,
            seed=seeds[index]
            if seeds
            else derive_seed(ctx.config.seed, f"{noise}-{index:04d}" if noise else id_),
            purpose=purpose,
            with_skills=with_skills,
        )
        for offset, (index, id_, task) in enumerate(owed, start=1)
    ]


async def play(
    ctx: RunContext,
    specs: Sequence[EpisodeSpec],
    policy: Policy,
    *,
    prefix: str,
    planned: int,
    batch: int | None = None,
    temperature: float,
    keep_tokens: str | None = None,
    on_finished: Callable[[Rollout], None] | None = None,
) -> list[Rollout]:
    """Play episodes and write each down as it ends: tokens, then trajectory, then the event.

    A kill between two of these is mended when the run is opened again: tokens without a trajectory are played
    again, a trajectory without its event gets it then.

    `prefix` begins the ids of all `planned` episodes of the phase, of which these are those that are owed; `batch` of
    them are used together (default: all).

    Raises:
        EnvironmentFailure: of the `planned` episodes more broke than `faults.max_error_rate` allows, or a whole batch.
        ServiceError: nobody answered for too long, or refused for good.
    """
    limit = ctx.config.faults.max_error_rate
    ids = {spec.id for spec in specs}
    earlier = [t for t in ctx.episodes.broken(prefix=prefix) if t.id not in ids]
    before = ctx.episodes.count(prefix) + len(earlier)
    broken: list[Trajectory] = []
    ended = 0

    def finish(rollout: Rollout) -> None:
        nonlocal ended
        ended += 1
        if rollout.trajectory.stop_reason is StopReason.ERROR:
            broken.append(rollout.trajectory)
        elif keep_tokens and rollout.tokens:
            ctx.tokens.append(keep_tokens, rollout.trajectory.id, rollout.tokens)
        digest = ctx.episodes.append(rollout.trajectory)
        ctx.bank.record_outcome(rollout.trajectory)
        ctx.emit(finished_event(rollout.trajectory, digest))
        if on_finished:
            on_finished(rollout)
        if len(broken) >= ENOUGH_BROKEN:
            check()

    def check() -> None:
        count = len(earlier) + len(broken)
        if broken and (count > limit * planned or len(broken) >= (batch or planned)):
            raise EnvironmentFailure(
                f"{count} of {before + ended} episodes broke, the first: {broken[0].error}",
                hint=f"faults.max_error_rate allows {limit:.0%} of {planned};"
                " the same command with --run plays them again",
            )

    rollouts = await run_episodes(
        specs,
        ctx.source.open,
        policy,
        ctx.rollout_options(temperature),
        concurrency=ctx.config.env.concurrency,
        emit=ctx.emit,
        on_finished=finish,
        select=ctx.select_skills,
        gate=ctx.gate,
        patience=ctx.patience,
    )
    ctx.note_skills_below_threshold()
    check()
    return rollouts


def finished_event(trajectory: Trajectory, digest: str) -> ev.EpisodeFinished:
    """The event of a finished episode; `digest` is that of its line."""
    return ev.EpisodeFinished(
        episode=trajectory.id,
        purpose=trajectory.purpose,  # pyright: ignore[reportArgumentType]
        category=trajectory.category,
        success=trajectory.success,
        stop_reason=trajectory.stop_reason,
        steps=len(trajectory.steps),
        total_reward=trajectory.total_reward,
        invalid_actions=trajectory.invalid_actions,
        cited=trajectory.cited,
        final_observation=trajectory.final_observation,
        error=trajectory.error,
        env=trajectory.env,
        seed=trajectory.seed,
        policy_version=trajectory.policy_version,
        bank_version=trajectory.bank_version,
        tokens=trajectory.tokens,
        digest=digest,
    )


def sync_bank_events(ctx: RunContext) -> None:
    """Say every change of the bank that the journal does not hold yet (also after a crash)."""
    for change in ctx.bank.history():
        if change.version <= ctx.state.bank_version or change.after is None:
            continue
        if change.kind == "add":
            ctx.emit(
                ev.SkillAdded(
                    skill=change.after,
                    author=change.author,
                    reason=change.reason,
                    bank_version=change.version,
                )
            )
        else:
            ctx.emit(
                ev.SkillChanged(
                    skill=change.after,
                    change=change.kind,
                    author=change.author,
                    reason=change.reason,
                    bank_version=change.version,
                )
            )
