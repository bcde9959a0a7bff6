"""Phase 4: GRPO with the SFT policy as reference, validation every V steps, and the bank that evolves."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence

from krill_tui.agent.collect import run_episodes
from krill_tui.agent.rollout import EpisodeSpec, Rollout
from krill_tui.config.schema import RlConfig
from krill_tui.engine.build import TaskPlan
from krill_tui.engine.context import RunContext, derive_seed, make_specs, play, sync_bank_events
from krill_tui.engine.evaluate import first_error, success_rates
from krill_tui.engine.phases import PhaseLog, say_refused, teacher_event
from krill_tui.engine.trainer import Trainer
from krill_tui.errors import DataError
from krill_tui.events import schema as ev
from krill_tui.models.base import Policy
from krill_tui.models.worker_protocol import GrpoEpisode
from krill_tui.skill import Skill
from krill_tui.skills.decision import Decision
from krill_tui.skills.evolve import evolve as evolve_bank
from krill_tui.training.advantage import batch_advantages
from krill_tui.trajectory import EpisodeTokens, StopReason, Task, Trajectory

TRUNCATED = (StopReason.STEP_LIMIT, StopReason.CONTEXT_LIMIT)
"""How an episode stops that a limit cut short."""


async def reinforce(ctx: RunContext, plan: TaskPlan, trainer: Trainer) -> None:
    """GRPO for `rl.training_epochs` steps of `rl.batch_size` episodes, with evolution at each validation."""
    config = ctx.config.rl
    policy = await trainer.load_for_rl()
    done = trainer.rl_step
    for name in ctx.tokens.names():
        if _step_of(name) <= done:  # a kill came between the checkpoint and this
            ctx.tokens.drop(name)
    log = PhaseLog(ctx, "rl", "Reinforcement learning (GRPO)", config.training_epochs, "steps", done=done)
    interval = ctx.config.evolution.validation_interval
    await validate_and_evolve(ctx, plan, policy, done if done % interval == 0 else done - done % interval)
    for step in range(done + 1, config.training_epochs + 1):
        metrics = await grpo_step(ctx, plan, trainer, policy, step)
        ctx.emit(ev.GrpoStepped(step=step, total=config.training_epochs, metrics=metrics))
        if step % config.checkpoint_interval == 0 or step == config.training_epochs:
            await trainer.save("rl", step)
            for covered in range(step - config.checkpoint_interval, step + 1):
                ctx.tokens.drop(f"rl-{covered}")
        if step % interval == 0:
            await validate_and_evolve(ctx, plan, policy, step)
        log.advance(detail=f"reward {metrics['reward']:.2f}")
    log.finish(f"{config.training_epochs} GRPO steps, bank of {len(ctx.bank)} skills")


async def grpo_step(
    ctx: RunContext, plan: TaskPlan, trainer: Trainer, policy: Policy, step: int
) -> dict[str, float]:
    """Sample groups, compare returns within each, update once; returns the step's metrics.

    Episodes of this step that are already written down (a broken-off run) are not played again: their tokens are.
    """
    began = time.perf_counter()
    config = ctx.config.rl
    groups = max(1, config.batch_size // config.group_size)
    first_game = ctx.config.collect.episodes + ctx.config.sft.num_examples + (step - 1) * groups
    name = f"rl-{step}"
    specs = _group_specs(ctx, plan.train(first_game, groups), step)
    kept = ctx.tokens.read(name)
    owed = [spec for spec in specs if spec.id not in ctx.episodes]
    await play(
        ctx,
        owed,
        policy,
        prefix="rl-",
        planned=config.training_epochs * len(specs),
        batch=len(specs),
        temperature=ctx.config.policy.temperature,
        keep_tokens=name,
    )
    played = {t.id: t for t in ctx.episodes.read("rl", prefix=f"rl-{step:04d}-")}
    tokens = ctx.tokens.read(name) if owed or kept else {}
    if gone := [s for s in specs if s.id in played and s.id not in tokens and played[s.id].tokens.policy]:
        await sample_again(ctx, policy, gone, played, name)
        tokens = ctx.tokens.read(name)
    sampled = time.perf_counter() - began
    broken = ctx.episodes.broken("rl", prefix=f"rl-{step:04d}-")
    if broken:
        ctx.note(
            f"step {step}: {len(broken)} of {len(specs)} episodes broke: {first_error(broken)}", "warning"
        )
    members: list[list[Trajectory]] = []
    for group in range(groups):
        of_group = [played[s.id] for s in specs if s.group == f"{name}-g{group}" and s.id in played]
        usable = [t for t in of_group if t.id in tokens]
        if len(usable) >= 2:
            members.append(usable)
    returns = [[episode_return(t, config.invalid_action_penalty) for t in group] for group in members]
    episodes = to_learn_from(members, returns, tokens, config)
    something = any(any(episode.tokens.mask) for episode in episodes)
    values = await trainer.grpo(episodes, config, ctx.config.policy.temperature) if something else {}
    seconds = time.perf_counter() - began
    return (
        step_metrics(list(played.values()), returns, errors=len(broken))
        | values
        | {
            "step_time": seconds,
            "sampling_time": sampled,
            "sampling_tokens_per_second": sum(t.tokens.policy for t in played.values()) / sampled
            if owed
            else 0.0,
        }
    )


async def sample_again(
    ctx: RunContext,
    policy: Policy,
    specs: Sequence[EpisodeSpec],
    played: Mapping[str, Trajectory],
    name: str,
) -> None:
    """Tokens of finished episodes that are gone: weights, prompts and seeds of then give the same episodes once more.

    Raises:
        DataError: they do not, so the step cannot be what it was.
    """
    ctx.note(
        f"step {name}: the tokens of {len(specs)} episodes are gone: they are sampled once more", "warning"
    )
    skills = {spec.task.id: played[spec.id] for spec in specs}

    async def as_then(task: Task) -> tuple[tuple[Skill, ...], int]:
        then = skills[task.id]
        bank = ctx.bank.skills_at(then.bank_version)
        if not then.skills or not all(id_ in bank for id_ in then.skills):
            return await ctx.select_skills(task) if then.skills else ((), then.bank_version)
        return tuple(bank[id_] for id_ in then.skills), then.bank_version

    def finish(rollout: Rollout) -> None:
        now, then = rollout.trajectory, played[rollout.trajectory.id]
        same = now.system == then.system and [s.text for s in now.steps] == [s.text for s in then.steps]
        if not same or rollout.tokens is None:
            raise DataError(
                f"the tokens of episode {then.id} are gone, and played again it was another one",
                hint="begin a new run from this one with --fork NAME",
            )
        ctx.tokens.append(name, then.id, rollout.tokens)

    await run_episodes(
        specs,
        ctx.source.open,
        policy,
        ctx.rollout_options(ctx.config.policy.temperature),
        concurrency=ctx.config.env.concurrency,
        emit=lambda event: None,
        on_finished=finish,
        select=as_then,
        gate=ctx.gate,
        patience=ctx.patience,
    )


def _step_of(name: str) -> int:
    """`rl-3` -> 3; a name of another kind belongs to no step."""
    number = name.removeprefix("rl-")
    return int(number) if number.isdecimal() else 1 << 62


def to_learn_from(
    groups: Sequence[Sequence[Trajectory]],
    returns: Sequence[Sequence[float]],
    tokens: Mapping[str, EpisodeTokens],
    config: RlConfig,
) -> list[GrpoEpisode]:
    """The episodes of a batch of groups, in their order, with their advantages.

    With `mask_truncated_completions` an episode that a limit cut has no token to learn from; it still counts as one
    of its batch and its return in its group, as in TRL.
    """
    episodes = []
    for group, advantages in zip(groups, batch_advantages(returns, config.scale_rewards), strict=True):
        for trajectory, advantage in zip(group, advantages, strict=True):
            sequence = tokens[trajectory.id]
            if config.mask_truncated_completions and trajectory.stop_reason in TRUNCATED:
                sequence = sequence.model_copy(update={"mask": (0,) * len(sequence.mask)})
            episodes.append(GrpoEpisode(tokens=sequence, advantage=float(advantage)))
    return episodes


def episode_return(trajectory: Trajectory, penalty: float) -> float:
    """R of Eq. 9: what the environment gave, less the penalty of each invalid action."""
    return trajectory.total_reward - penalty * trajectory.invalid_actions


def step_metrics(
    trajectories: Sequence[Trajectory], returns: Sequence[Sequence[float]], errors: int = 0
) -> dict[str, float]:
    """What can be recomputed from the stored trajectories, under TRL's names where TRL has one.

    Of those that were played to an end; `errors` is how many others broke.
    """
    rewards = [reward for group in returns for reward in group]
    overall, categories = success_rates(trajectories)
    steps = sum(len(t.steps) for t in trajectories)
    dead = [statistics.pstdev(group) == 0 for group in returns]
    with_skills = [t for t in trajectories if t.skills]
    count = max(1, len(trajectories))
    return {
        "reward": statistics.fmean(rewards) if rewards else 0.0,
        "reward_std": statistics.stdev(rewards) if len(rewards) > 1 else 0.0,
        "reward_group_std": statistics.fmean(statistics.stdev(g) for g in returns) if returns else 0.0,
        "frac_reward_zero_std": sum(dead) / len(dead) if dead else 1.0,
        "success": overall.rate,
        **{f"success/{category}": rate.rate for category, rate in categories.items()},
        "valid_action_ratio": 1 - sum(t.invalid_actions for t in trajectories) / max(1, steps),
        "num_turns": steps / count,
        "completions/mean_length": sum(t.tokens.policy for t in trajectories) / count,
        "completions/clipped_ratio": sum(t.stop_reason in TRUNCATED for t in trajectories) / count,
        "skills/injected_mean": sum(len(t.skills) for t in trajectories) / count,
        "skills/cited_rate": sum(bool(t.cited) for t in with_skills) / max(1, len(with_skills)),
        "errors": errors / max(1, len(trajectories) + errors),
    }


async def validate_and_evolve(ctx: RunContext, plan: TaskPlan, policy: Policy, step: int) -> None:
    """Success on the evolve split; where a category is under the threshold, S_new = M_T(T_val-, SkillBank).

    Validation and evolution that the journal already holds for this step are not done again.
    """
    tasks = plan.evolve(ctx.config.evolution.episodes)
    prefix = f"validate-{step}"
    specs = make_specs(ctx, tasks, prefix=prefix, purpose="validate")
    await play(
        ctx,
        specs,
        policy,
        prefix=f"{prefix}-",
        planned=len(tasks),
        temperature=ctx.config.policy.eval_temperature,
    )
    played = ctx.episodes.read("validate", prefix=f"{prefix}-")
    broken = ctx.episodes.broken("validate", prefix=f"{prefix}-")
    overall, categories = success_rates([*played, *broken])
    # Said before, and nothing that it owed was played since.
    if specs or not any(v.step == step for v in ctx.state.validations):
        ctx.emit(
            ev.Validated(step=step, overall=overall, categories=categories, first_error=first_error(broken))
        )
    # Of two evolutions behind the newest checkpoint both are done, when a killed run comes by again.
    if ctx.state.evolved_at < step:
        await _evolve(ctx, played, categories, step)


async def _evolve(
    ctx: RunContext, played: Sequence[Trajectory], categories: dict[str, ev.Rate], step: int
) -> None:
    decision = ctx.bank.decision
    if decision and decision.phase == "evolve" and decision.cycle > ctx.state.evolution_cycle:
        _say_cycle(ctx, categories, step, decision)  # a kill came between the bank's write and the event
        return
    if ctx.bank.cycle > ctx.state.evolution_cycle and not ctx.bank.keeps_decisions:
        _say_finished_cycle(ctx, categories, step)
        return
    settings = ctx.config.evolution
    if not settings.enabled:
        reason = "evolution is switched off (evolution.enabled)"
        ctx.emit(ev.Evolved(cycle=ctx.bank.cycle, step=step, rates=categories, reason=reason))
        return
    await evolve_bank(
        played,
        ctx.bank,
        ctx.teacher,
        ctx.embedder,
        threshold=settings.evolution_threshold,
        max_new_skills=settings.max_new_skills,
        max_analysis_deep=settings.max_analysis_deep,
        max_analysis_shallow=settings.max_analysis_shallow,
        background=_since_last_validation(ctx, step),
        on_call=lambda call: ctx.emit(teacher_event(ctx.teacher.name, call)),
    )
    assert ctx.bank.decision is not None
    _say_cycle(ctx, categories, step, ctx.bank.decision)


def _say_cycle(ctx: RunContext, categories: dict[str, ev.Rate], step: int, decision: Decision) -> None:
    """Say what a cycle did: its changes, what it refused, and the whole of it."""
    sync_bank_events(ctx)
    say_refused(ctx, decision, "rl")
    ctx.emit(
        ev.Evolved(
            cycle=decision.cycle,
            step=step,
            rates=categories,
            failing=decision.failing,
            failures=decision.chosen,
            prompt=decision.prompt,
            reply=decision.reply,
            accepted=decision.accepted,
            refused=tuple(f"{refused.proposal.name}: {refused.reason}" for refused in decision.refused),
            reason=decision.reason,
        )
    )
    ctx.bank.forget_decision()


def _since_last_validation(ctx: RunContext, step: int) -> list[Trajectory]:
    """The RL episodes between the validation before this one and this one."""
    first = step - ctx.config.evolution.validation_interval + 1
    return [t for s in range(max(first, 1), step + 1) for t in ctx.episodes.read("rl", prefix=f"rl-{s:04d}-")]


def _say_finished_cycle(ctx: RunContext, categories: dict[str, ev.Rate], step: int) -> None:
    """The same in a run of an earlier version, whose bank holds what was changed and nothing else."""
    cycle = ctx.bank.cycle
    changed = [s.id for s in ctx.bank.skills() if s.origin.phase == "evolve" and s.origin.cycle == cycle]
    reason = "" if changed else "the run was broken off here; nothing had been added"
    ctx.emit(ev.Evolved(cycle=cycle, step=step, rates=categories, accepted=tuple(changed), reason=reason))


def _group_specs(ctx: RunContext, tasks: Sequence[Task], step: int) -> list[EpisodeSpec]:
    size = ctx.config.rl.group_size
    specs = []
    for group, task in enumerate(tasks):
        for member in range(size):
            id_ = f"rl-{step:04d}-{group}-{member}"
            ctx.episodes.check_plan(id_, task.id)
            specs.append(
                EpisodeSpec(
                    id=id_,
                    number=len(ctx.episodes) + len(specs) + 1,
                    task=task,
                    seed=derive_seed(ctx.config.seed, id_),
                    purpose="rl",
                    group=f"rl-{step}-g{group}",
                )
            )
    return specs
