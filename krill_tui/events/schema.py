"""Everything the engine says, as a closed union of frozen records told apart by `kind`.

The journal holds these and nothing else; a screen, a watcher and a replay are made from them alone. Names are
facts in the past tense. A metric is never shown that did not come in an event.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter

from krill_tui.skill import Skill, SkillProposal
from krill_tui.trajectory import Record, Step, StopReason, TokenCounts

SCHEMA_VERSION = 1

Phase = Literal["collect", "distill", "sft", "rl", "evaluate"]
Stage = Literal["base", "sft", "rl", "eval"]
Purpose = Literal["collect", "demonstrate", "rl", "validate", "evaluate"]


class Rate(Record):
    """A success rate with its 95 % Wilson interval."""

    wins: int
    episodes: int
    """That were played to an end."""
    low: float
    high: float
    errors: int = 0
    """Episodes that broke: no result, in no rate, and owed."""

    @property
    def rate(self) -> float:
        return self.wins / self.episodes if self.episodes else 0.0

    @property
    def if_lost(self) -> float:
        """What the rate would be if the episodes that broke counted as lost."""
        asked = self.episodes + self.errors
        return self.wins / asked if asked else 0.0


class BaseEvent(Record):
    seq: int = 0
    """Position in the journal, from 1; given by the bus."""
    time: float = 0.0
    """Unix seconds; given by the bus."""


class RunStarted(BaseEvent):
    kind: Literal["run_started"] = "run_started"
    run: str
    config: dict[str, Any]
    """The resolved config without keys."""
    code: str
    """Version of Krill."""
    data: str = ""
    """Content hash of the games."""
    notices: tuple[str, ...] = ()
    """What is known about the games: which are skipped, and why."""
    resumed: bool = False
    schema_version: int = SCHEMA_VERSION


class RunFinished(BaseEvent):
    kind: Literal["run_finished"] = "run_finished"
    outcome: Literal["completed", "cancelled", "failed"]
    message: str = ""


class PhaseStarted(BaseEvent):
    kind: Literal["phase_started"] = "phase_started"
    phase: Phase
    title: str
    total: int
    unit: str
    """What is counted: episodes, calls, steps."""
    done: int = 0
    """Greater than 0 when a broken-off phase goes on."""


class PhaseProgressed(BaseEvent):
    kind: Literal["phase_progressed"] = "phase_progressed"
    phase: Phase
    done: int
    total: int
    detail: str = ""


class PhaseFinished(BaseEvent):
    kind: Literal["phase_finished"] = "phase_finished"
    phase: Phase
    seconds: float
    summary: str


class EpisodeStarted(BaseEvent):
    kind: Literal["episode_started"] = "episode_started"
    episode: str
    number: int
    """Counts all episodes of the run, for people."""
    purpose: Purpose
    task_id: str
    task: str
    category: str
    split: str
    policy: str
    skills: tuple[str, ...] = ()
    system: str = ""
    """The system message exactly as it was sent: role, skills, rules."""
    max_steps: int = 0
    group: str = ""


class EpisodeStepped(BaseEvent):
    kind: Literal["episode_stepped"] = "episode_stepped"
    episode: str
    step: Step


class EpisodeFinished(BaseEvent):
    kind: Literal["episode_finished"] = "episode_finished"
    episode: str
    purpose: Purpose
    category: str
    success: bool
    stop_reason: StopReason
    steps: int
    total_reward: float
    invalid_actions: int = 0
    cited: tuple[str, ...] = ()
    final_observation: str = ""
    error: str | None = None

    env: str = ""
    seed: int = 0
    policy_version: int = 0
    bank_version: int = 0
    tokens: TokenCounts = TokenCounts()
    digest: str = ""
    """Of its line in `trajectories.jsonl`, which the events of the episode can make again; empty in old journals."""


class EpisodeInterrupted(BaseEvent):
    """Nobody answered in the middle of an episode: it is no result, and will be played again."""

    kind: Literal["episode_interrupted"] = "episode_interrupted"
    episode: str
    reason: str = ""


class TeacherCalled(BaseEvent):
    kind: Literal["teacher_called"] = "teacher_called"
    teacher: str
    purpose: Literal["distill", "evolve"]
    trajectories: tuple[str, ...] = ()
    prompt: str = ""
    reply: str = ""
    error: str | None = None
    attempts: int = 1
    seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class SkillAdded(BaseEvent):
    kind: Literal["skill_added"] = "skill_added"
    skill: Skill
    author: str
    reason: str = ""
    bank_version: int


class SkillChanged(BaseEvent):
    """Edited, refined, disabled, enabled or retired: the skill as it is now."""

    kind: Literal["skill_changed"] = "skill_changed"
    skill: Skill
    change: str
    author: str
    reason: str = ""
    bank_version: int


class SkillRemoved(BaseEvent):
    """Only by undoing an addition."""

    kind: Literal["skill_removed"] = "skill_removed"
    skill_id: str
    author: str
    bank_version: int


class SkillRefused(BaseEvent):
    kind: Literal["skill_refused"] = "skill_refused"
    proposal: SkillProposal
    reason: str
    phase: Phase


class SftStepped(BaseEvent):
    kind: Literal["sft_stepped"] = "sft_stepped"
    step: int
    total: int
    metrics: dict[str, float]
    """TRL's names: loss, mean_token_accuracy, grad_norm, learning_rate, num_tokens …"""


class GrpoStepped(BaseEvent):
    kind: Literal["grpo_stepped"] = "grpo_stepped"
    step: int
    total: int
    metrics: dict[str, float]
    """TRL's names (reward, kl, clip_ratio/low_mean …), success/<category>, and ours."""


class Validated(BaseEvent):
    """Success on the evolve split, at an RL step."""

    kind: Literal["validated"] = "validated"
    step: int
    overall: Rate
    categories: dict[str, Rate]
    first_error: str = ""
    """Why the first of the episodes broke that did."""


class Evaluated(BaseEvent):
    """Success on a reported split, which nobody learns from."""

    kind: Literal["evaluated"] = "evaluated"
    stage: Stage
    split: str
    overall: Rate
    categories: dict[str, Rate]
    mean_steps: float = 0.0
    seconds: float = 0.0
    panel: str = ""
    """Name of the panel that was played; empty where none was."""
    panel_digest: str = ""
    episodes: str = ""
    """How the ids of its episodes begin."""
    played: str = ""
    """Digest of what was played (games, seeds, replies, ends): the same wherever the same was played."""
    weights: str = ""
    """What was measured: the model, and the checkpoint on it; or the name of the program."""
    first_error: str = ""
    """Why the first of the episodes broke that did."""


class Evolved(BaseEvent):
    """One evolution cycle; doing nothing is said, with the reason."""

    kind: Literal["evolved"] = "evolved"
    cycle: int
    step: int
    rates: dict[str, Rate]
    failing: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    """Ids of the trajectories the teacher read."""
    prompt: str = ""
    reply: str = ""
    accepted: tuple[str, ...] = ()
    """Ids of new or refined skills."""
    refused: tuple[str, ...] = ()
    """One line each: name and why."""
    reason: str = ""
    """Why nothing was done, where nothing was."""


class CheckpointSaved(BaseEvent):
    kind: Literal["checkpoint_saved"] = "checkpoint_saved"
    phase: Phase
    step: int
    path: str
    """Below the run directory."""

    total: int = 0
    """Steps the phase ends with, where that is known."""
    restored: bool = False
    """Nothing was saved: a damaged newer one was set aside, and the run goes on from this one."""


class ControlChanged(BaseEvent):
    """A person paused, resumed, stepped or cancelled."""

    kind: Literal["control_changed"] = "control_changed"
    action: Literal["paused", "resumed", "stepped", "cancelled"]
    author: str = "hand"


class WorkerStarted(BaseEvent):
    kind: Literal["worker_started"] = "worker_started"
    model: str
    parameters: int
    trainable: int
    device: str
    version: int
    date: str = ""
    """What a chat template that writes the date is told."""
    changes: tuple[str, ...] = ()
    """What is done otherwise than the model's template, config or adapter has it, a line each."""


class WorkerDied(BaseEvent):
    kind: Literal["worker_died"] = "worker_died"
    message: str


class Noted(BaseEvent):
    """A line for people: something left out, retried, or worth knowing."""

    kind: Literal["noted"] = "noted"
    level: Literal["info", "warning", "error"] = "info"
    message: str


Event = Annotated[
    RunStarted
    | RunFinished
    | PhaseStarted
    | PhaseProgressed
    | PhaseFinished
    | EpisodeStarted
    | EpisodeStepped
    | EpisodeFinished
    | EpisodeInterrupted
    | TeacherCalled
    | SkillAdded
    | SkillChanged
    | SkillRemoved
    | SkillRefused
    | SftStepped
    | GrpoStepped
    | Validated
    | Evaluated
    | Evolved
    | CheckpointSaved
    | ControlChanged
    | WorkerStarted
    | WorkerDied
    | Noted,
    Field(discriminator="kind"),
]

event_adapter: TypeAdapter[Event] = TypeAdapter(Event)
