"""One episode: policy and environment in turn, until a win, an end or a limit.

What it promises (pinned by tests/test_rollout.py): a failed episode is a record, never an exception; the
conversation only grows; a policy's tokens are kept exactly as they were sampled; every step is an event.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from krill_tui.agent.actions import citations, kept_reply, parse_reply
from krill_tui.agent.gate import Gate
from krill_tui.agent.prompts import PromptOptions, first_messages, render_turn
from krill_tui.envs.base import Environment, FreeActions, StepResult
from krill_tui.envs.limits import admitted, admitted_task
from krill_tui.errors import ServiceError, StorageError, WorkerDiedError
from krill_tui.events import schema as ev
from krill_tui.io.explain import explained
from krill_tui.io.text import clean_text
from krill_tui.models.base import ActReply, ActRequest, Message, Policy, Sampling
from krill_tui.skill import Skill
from krill_tui.trajectory import EpisodeTokens, Step, StopReason, Task, TokenCounts, Trajectory

Emit = Callable[[ev.BaseEvent], object]


@dataclass(frozen=True, slots=True)
class EpisodeSpec:
    """One episode that is to be played."""

    id: str
    number: int
    task: Task
    seed: int
    purpose: ev.Purpose
    with_skills: bool = True
    """False: the prompt holds no skills, whatever the bank has."""
    group: str = ""


class SkillSelector(Protocol):
    """Chooses the skills of a prompt, once the task is known."""

    async def __call__(self, task: Task) -> tuple[tuple[Skill, ...], int]:
        """Return the skills in prompt order and the bank version they came from."""
        ...


@dataclass(frozen=True, slots=True)
class RolloutOptions:
    max_steps: int
    prompt: PromptOptions
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Rollout:
    """A finished episode, and its token sequence where the policy has tokens."""

    trajectory: Trajectory
    tokens: EpisodeTokens | None = None
    fault: ServiceError | None = None
    """What broke it, where that was a service (a world or a model)."""


@dataclass
class _TokenLog:
    """Grows the episode's one sequence: context tokens masked 0, policy tokens masked 1."""

    ids: list[int] = field(default_factory=list)
    mask: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    allowed: list[tuple[int, ...]] = field(default_factory=list)
    constrained: bool = False
    version: int = 0

    def add(self, reply: ActReply) -> None:
        if reply.restarted:
            for column in (self.ids, self.mask, self.logprobs, self.allowed):
                column.clear()
        context, own = len(reply.context_ids), len(reply.ids)
        self.ids += [*reply.context_ids, *reply.ids]
        self.mask += [0] * context + [1] * own
        self.logprobs += [0.0] * context + list(reply.logprobs)
        self.allowed += [()] * context + list(reply.allowed or [()] * own)
        self.constrained = self.constrained or bool(reply.allowed)
        self.version = reply.version

    def tokens(self) -> EpisodeTokens | None:
        if not any(self.mask):
            return None
        return EpisodeTokens(
            ids=tuple(self.ids),
            mask=tuple(self.mask),
            logprobs=tuple(self.logprobs),
            allowed=tuple(self.allowed) if self.constrained else None,
        )


@dataclass
class _Episode:
    """The mutable middle of `run_episode`."""

    steps: list[Step] = field(default_factory=list)
    reward: float = 0.0
    prompt_tokens: int = 0
    policy_tokens: int = 0
    log: _TokenLog = field(default_factory=_TokenLog)
    last: StepResult = field(default_factory=lambda: StepResult(""))
    task: Task | None = None
    system: str = ""
    skills: tuple[Skill, ...] = ()
    bank_version: int = 0
    error: str | None = None
    fault: ServiceError | None = None


async def run_episode(
    spec: EpisodeSpec,
    open_env: Callable[[Task], Environment],
    policy: Policy,
    options: RolloutOptions,
    *,
    emit: Emit,
    select: SkillSelector | None = None,
    gate: Gate | None = None,
) -> Rollout:
    """Play one episode to its end.

    Only cancellation, the death of the model worker and a disk that takes no more escape: the first is somebody's
    wish, after the others the episode is played again.
    """
    episode = _Episode(task=spec.task)
    await policy.start(spec.id)
    try:
        stop = await _play(spec, episode, open_env, policy, options, emit, select, gate or Gate())
    except (WorkerDiedError, StorageError):
        raise
    except Exception as error:  # the boundary: whatever broke ends this episode alone
        stop = StopReason.ERROR
        told = explained(error)
        episode.error = clean_text(str(told))
        episode.fault = told if isinstance(told, ServiceError) else None
    finally:
        await policy.finish(spec.id)
    return _record(spec, episode, policy, stop)


async def _play(
    spec: EpisodeSpec,
    episode: _Episode,
    open_env: Callable[[Task], Environment],
    policy: Policy,
    options: RolloutOptions,
    emit: Emit,
    select: SkillSelector | None,
    gate: Gate,
) -> StopReason:
    env = open_env(spec.task)
    try:
        result = admitted(await env.reset())
        episode.last, episode.task = result, admitted_task(env.task)
        if select and spec.with_skills:
            episode.skills, episode.bank_version = await select(episode.task)
        messages = first_messages(env.task.env, episode.skills, result, episode.task, options.prompt)
        episode.system = messages[0]["content"]
        emit(_started(spec, episode, episode.task, policy, options.max_steps))
        for index in range(options.max_steps):
            await gate.wait()
            step, reply = await _turn(
                spec, index, messages, env, result, episode.skills, policy, options.sampling
            )
            if reply.finish == "context":
                return StopReason.CONTEXT_LIMIT
            episode.log.add(reply)
            episode.prompt_tokens += reply.prompt_tokens
            episode.policy_tokens += reply.completion_tokens
            after = admitted(await env.step(step.action))
            step = step.model_copy(update={"reward": after.reward})
            episode.steps.append(step)
            episode.reward += after.reward
            episode.last = result = after
            emit(ev.EpisodeStepped(episode=spec.id, step=step))
            if after.done:
                return StopReason.SUCCESS if after.won else StopReason.FAILURE
            # A policy with tokens knows its turn by its exact text, which its token limit bounds.
            said = reply.text if reply.ids else step.text
            messages.append({"role": "assistant", "content": said})
            messages.append(
                {"role": "user", "content": render_turn(after, episode.task, options.prompt, first=False)}
            )
        return StopReason.STEP_LIMIT
    finally:
        await env.close()


async def _turn(
    spec: EpisodeSpec,
    index: int,
    messages: Sequence[Message],
    env: Environment,
    result: StepResult,
    skills: tuple[Skill, ...],
    policy: Policy,
    sampling: Sampling,
) -> tuple[Step, ActReply]:
    began = time.perf_counter()
    reply = await policy.act(
        ActRequest(
            episode=spec.id,
            messages=messages,
            observation=result.observation,
            admissible=result.admissible,
            seed=spec.seed,
            sampling=sampling,
            skills=skills,
        )
    )
    text = kept_reply(reply.text)
    parsed = parse_reply(text)
    step = Step(
        index=index,
        observation=result.observation,
        admissible=tuple(result.admissible),
        thought=parsed.thought,
        action=parsed.action,
        text=text,
        valid=is_valid(env, result, parsed.action),
        latency=round(time.perf_counter() - began, 4),
    )
    return step, reply


def is_valid(env: Environment, result: StepResult, action: str) -> bool:
    """Where nothing is listed, any action is."""
    if not action:
        return False
    listed = not result.admissible or action in result.admissible
    return listed or (isinstance(env, FreeActions) and env.accepts(action))


def _started(
    spec: EpisodeSpec, episode: _Episode, task: Task, policy: Policy, max_steps: int
) -> ev.EpisodeStarted:
    return ev.EpisodeStarted(
        episode=spec.id,
        number=spec.number,
        purpose=spec.purpose,
        task_id=task.id,
        task=task.description,
        category=task.category,
        split=task.split,
        policy=policy.name,
        skills=tuple(skill.id for skill in episode.skills),
        system=episode.system,
        max_steps=max_steps,
        group=spec.group,
    )


def _record(spec: EpisodeSpec, episode: _Episode, policy: Policy, stop: StopReason) -> Rollout:
    task = episode.task or spec.task
    known = frozenset(skill.id for skill in episode.skills)
    cited = dict.fromkeys(i for step in episode.steps for i in citations(step.thought, known))
    trajectory = Trajectory(
        id=spec.id,
        env=task.env,
        task_id=task.id,
        split=task.split,
        task=task.description,
        category=task.category,
        steps=tuple(episode.steps),
        final_observation=episode.last.observation,
        total_reward=episode.reward,
        success=stop is StopReason.SUCCESS,
        stop_reason=stop,
        error=episode.error,
        seed=spec.seed,
        policy=policy.name,
        policy_version=episode.log.version,
        bank_version=episode.bank_version,
        skills=tuple(skill.id for skill in episode.skills),
        cited=tuple(cited),
        tokens=TokenCounts(prompt=episode.prompt_tokens, policy=episode.policy_tokens),
        group=spec.group,
        purpose=spec.purpose,
        number=spec.number,
        system=episode.system,
    )
    return Rollout(trajectory, episode.log.tokens(), episode.fault)


def conversation(trajectory: Trajectory, task: Task, options: PromptOptions) -> list[Message]:
    """The messages of a finished episode, as they were sent and said (its last reply included)."""
    messages: list[Message] = [{"role": "system", "content": trajectory.system}]
    for step in trajectory.steps:
        seen = StepResult(step.observation, admissible=step.admissible)
        messages.append({"role": "user", "content": render_turn(seen, task, options, first=step.index == 0)})
        messages.append({"role": "assistant", "content": step.text})
    return messages
