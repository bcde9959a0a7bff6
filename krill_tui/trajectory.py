"""The shared words: what a task, a step, an episode and a group of episodes are."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field


class Record(BaseModel):
    """A frozen value that survives a JSON round trip; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class StopReason(StrEnum):
    """Why an episode ended."""

    SUCCESS = "success"
    FAILURE = "failure"
    """The environment ended the episode without a win (WebShop: bought the wrong thing)."""
    STEP_LIMIT = "step limit"
    CONTEXT_LIMIT = "context limit"
    ERROR = "error"
    """The environment or the policy broke; `Trajectory.error` says how."""
    CANCELLED = "cancelled"
    """A person stopped the episode; it is never trained on."""


class Task(Record):
    """One playable game. An environment source can rebuild it from this record alone."""

    id: str
    """Unique and stable, e.g. `builtin/train/7/12` or a path below `json_2.1.1`."""
    env: str
    """`alfworld` or `webshop`."""
    split: str
    """`train`, `evolve`, `valid`, `test`, or the dataset's `valid_seen`, `valid_unseen`."""
    description: str = ""
    """What the agent is asked to do; empty until the world was opened."""
    category: str = ""
    """ALFWorld: Pick, Look, Clean, Heat, Cool, PickTwo."""
    ref: str = ""
    """How the source finds the game again: a path, or `seed:index`."""


class Step(Record):
    """One decision of the policy and what the environment answered."""

    index: int
    observation: str
    """What the policy saw before it acted."""
    admissible: tuple[str, ...] = ()
    thought: str = ""
    action: str = ""
    """The action sent to the environment; empty when no action could be parsed."""
    text: str = ""
    """The policy's whole reply, exactly as it was said."""
    valid: bool = True
    """Parsed, and admissible (or accepted unlisted) where the environment lists its actions."""
    reward: float = 0.0
    latency: float = 0.0
    """Seconds the policy took."""
    author: str = "policy"
    """`policy`, or `human` when a person overrode the action."""


class TokenCounts(Record):
    """Tokens of one episode."""

    prompt: int = 0
    """System, observations and template tokens, each counted once."""
    policy: int = 0
    """Tokens the policy itself produced."""


class EpisodeTokens(Record):
    """The one token sequence of an episode, kept beside its trajectory for training."""

    ids: tuple[int, ...]
    mask: tuple[int, ...]
    """1 where the token was produced by the policy, else 0; same length as `ids`."""
    logprobs: tuple[float, ...]
    """Sampler's log-probability of each token under the sampled distribution; 0 where mask is 0."""
    allowed: tuple[tuple[int, ...], ...] | None = None
    """Where sampling was constrained: for each token the ids it was chosen among, () = all."""


class Trajectory(Record):
    """One finished episode."""

    id: str
    env: str
    task_id: str
    split: str
    task: str
    """The task description."""
    category: str
    steps: tuple[Step, ...] = ()
    final_observation: str = ""
    total_reward: float = 0.0
    """Sum of the environment's rewards, before any penalty."""
    success: bool = False
    stop_reason: StopReason
    error: str | None = None
    seed: int = 0
    policy: str = ""
    """Name of the policy, e.g. `expert`, `local:krill-tiny`."""
    policy_version: int = 0
    bank_version: int = 0
    skills: tuple[str, ...] = ()
    """Ids of the skills that stood in the prompt, in their order."""
    cited: tuple[str, ...] = ()
    """Ids of those that a thought quoted."""
    tokens: TokenCounts = Field(default_factory=TokenCounts)
    group: str = ""
    """Episodes of one GRPO group share this id."""
    purpose: str = ""
    """What it was played for: `collect`, `demonstrate`, `rl`, `validate`, `evaluate`; empty when imported."""
    number: int = 0
    """Counts the episodes of a run, for people."""
    system: str = ""
    """The system message exactly as it was sent."""

    @property
    def invalid_actions(self) -> int:
        """Number of steps whose action did not parse or was not admissible."""
        return sum(not step.valid for step in self.steps)


class TrajectoryGroup(Record):
    """G episodes of one task, whose returns are compared with each other (GRPO)."""

    id: str
    task: Task
    trajectories: tuple[Trajectory, ...]
