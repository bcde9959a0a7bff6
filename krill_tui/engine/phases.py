"""The four phases and the evaluation, all of one shape: `async def phase(ctx, plan, …) -> None`.

Each can be broken off anywhere and called again: what is owed is computed from what is written down.
"""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

from krill_tui.agent.prompts import PromptOptions
from krill_tui.agent.rollout import EpisodeSpec, Rollout, conversation
from krill_tui.config.schema import KrillConfig
from krill_tui.engine.build import TaskPlan, demonstrator
from krill_tui.engine.context import RunContext, make_specs, play, sync_bank_events
from krill_tui.engine.evaluate import broke, first_error, mean_steps, success_rates
from krill_tui.engine.lint import lint, summary
from krill_tui.engine.panel import played_digest
from krill_tui.engine.trainer import Trainer
from krill_tui.errors import UsageError
from krill_tui.events import schema as ev
from krill_tui.models.base import Policy
from krill_tui.models.worker_protocol import ChatMessage, SftExample
from krill_tui.skill import GENERAL
from krill_tui.skills.decision import Decision
from krill_tui.skills.distill import distill as distill_skills
from krill_tui.skills.teacher import TeacherCall
from krill_tui.trajectory import StopReason, Task, Trajectory

DEMONSTRATION_ATTEMPTS = 3
"""Demonstrations are given up when this many times more were tried than asked for."""
DEMONSTRATION_SPARES = 20
"""And not before this many more than asked for, so that a few can be had where many are lost."""


class PhaseLog:
    """Says a phase's start, progress and end."""

    def __init__(
        self, ctx: RunContext, phase: ev.Phase, title: str, total: int, unit: str, done: int = 0
    ) -> None:
        self.ctx = ctx
        self.phase: ev.Phase = phase
        self.total = total
        self.done = done
        self._began = time.perf_counter()
        ctx.emit(ev.PhaseStarted(phase=phase, title=title, total=total, unit=unit, done=done))

    def advance(self, count: int = 1, detail: str = "") -> None:
        self.done += count
        self.ctx.emit(ev.PhaseProgressed(phase=self.phase, done=self.done, total=self.total, detail=detail))

    def finish(self, summary: str) -> None:
        seconds = round(time.perf_counter() - self._began, 3)
        self.ctx.emit(ev.PhaseFinished(phase=self.phase, seconds=seconds, summary=summary))


async def collect(ctx: RunContext, plan: TaskPlan, policy: Policy) -> None:
    """Phase 1: the base policy plays; successes and failures are kept."""
    count = ctx.config.collect.episodes
    specs = make_specs(
        ctx, plan.train(0, count), prefix="collect", purpose="collect", with_skills=bool(len(ctx.bank))
    )
    log = PhaseLog(ctx, "collect", "Collecting episodes", count, "episodes", done=count - len(specs))
    await play(
        ctx,
        specs,
        policy,
        prefix="collect-",
        planned=count,
        temperature=ctx.config.policy.temperature,
        on_finished=lambda rollout: log.advance(detail=_told(rollout.trajectory)),
    )
    broken = ctx.episodes.broken("collect")
    overall, _ = success_rates([*ctx.episodes.read("collect"), *broken])
    lost = f"; {broke(overall, first_error(broken))}" if broken else ""
    log.finish(f"collected {overall.episodes} episodes, {overall.wins} won ({overall.rate:.0%}){lost}")


async def distill(ctx: RunContext, trajectories: Sequence[Trajectory]) -> None:
    """Phase 2: the teacher turns episodes into skills: s+ = M_T(tau+, d), s- = M_T(tau-, d)."""
    if not trajectories:
        raise UsageError("there are no trajectories to distil", hint="collect some first")
    total = len(trajectories) if ctx.teacher.is_llm else 1
    broken_off = ctx.state.begun("distill") is not None
    log = PhaseLog(ctx, "distill", f"Distilling skills ({ctx.teacher.name})", total, "calls")

    def called(call: TeacherCall) -> None:
        ctx.emit(teacher_event(ctx.teacher.name, call))
        log.advance()

    decision = ctx.bank.decision if broken_off else None
    if decision is None or (decision.phase, decision.episodes) != ("distill", len(trajectories)):
        await distill_skills(
            trajectories, ctx.bank, ctx.teacher, ctx.embedder, env=ctx.config.env.name, on_call=called
        )
        decision = ctx.bank.decision
    assert decision is not None
    sync_bank_events(ctx)
    say_refused(ctx, decision, "distill")
    general = len(ctx.bank.skills(GENERAL))
    failed = f", {decision.failures} calls failed" if decision.failures else ""
    if decision.nothing:
        ctx.note(f"no skill was distilled: {decision.nothing}", "warning")
    log.finish(
        f"distilled {decision.episodes} episodes into {len(decision.accepted)} skills"
        f" ({general} general in the bank{failed})"
    )
    ctx.bank.forget_decision()


def say_refused(ctx: RunContext, decision: Decision, phase: ev.Phase) -> None:
    """Say each refusal of a round that the journal does not hold yet."""
    said = Counter(ctx.state.refused)
    for refused in decision.refused:
        if said[refused.proposal.name, refused.reason]:
            said[refused.proposal.name, refused.reason] -= 1
            continue
        ctx.emit(ev.SkillRefused(proposal=refused.proposal, reason=refused.reason, phase=phase))


async def demonstrate(ctx: RunContext, plan: TaskPlan, count: int, log: PhaseLog) -> list[Trajectory]:
    """The expert plays with the skills in view; the first `count` episodes that were won are the demonstrations.

    It plays on, game after game, until there are that many or too many were tried. The games of a finite split come
    round again: its demonstrations then repeat, and that is said; a game it lost is not tried again.
    """
    first_game = ctx.config.collect.episodes
    policy = demonstrator(ctx.source)
    played = ctx.episodes.read("demonstrate")

    def finished(rollout: Rollout) -> None:
        if rollout.trajectory.success and log.done < count:
            log.advance(detail=_told(rollout.trajectory))

    most = max(count * DEMONSTRATION_ATTEMPTS, count + DEMONSTRATION_SPARES)
    games = plan.train(first_game, most)
    broken: set[str] = set()
    while (missing := count - sum(t.success for t in played)) > 0:
        specs = make_specs(ctx, games, prefix="demo", purpose="demonstrate")
        specs = _promising([s for s in specs if s.id not in broken], played)[:missing]
        if not specs:
            break
        rollouts = await play(
            ctx, specs, policy, prefix="demo-", planned=count, temperature=0.0, on_finished=finished
        )
        trajectories = [r.trajectory for r in rollouts]
        broken |= {t.id for t in trajectories if t.stop_reason is StopReason.ERROR}
        played += [t for t in trajectories if t.id not in broken]
    demonstrations = chosen_demonstrations(played, count)
    if not demonstrations:
        raise UsageError("the expert won no demonstration: there is nothing to fine-tune on")
    if len(demonstrations) < count:
        ctx.note(
            f"only {len(demonstrations)} of {count} demonstrations were won, in {len(played)} episodes",
            "warning",
        )
    distinct = len({t.task_id for t in demonstrations})
    if distinct < len(demonstrations):
        ctx.note(
            f"{len(demonstrations)} demonstrations come from {distinct} games: the split has no more,"
            f" so {len(demonstrations) - distinct} are repeats",
            "warning",
        )
    return demonstrations


def _promising(specs: Sequence[EpisodeSpec], played: Sequence[Trajectory]) -> list[EpisodeSpec]:
    """In their order, without games that were lost, up to the first game whose end has to be waited for.

    Never past that one: whatever was played before a kill, in the end the same episodes are played.
    """
    won = {t.task_id for t in played if t.success}
    tried = {t.task_id for t in played}
    begun: set[str] = set()
    found: list[EpisodeSpec] = []
    for spec in specs:
        if spec.task.id in begun:
            break
        if spec.task.id in tried and spec.task.id not in won:
            continue
        if spec.task.id not in won:
            begun.add(spec.task.id)
        found.append(spec)
    return found


def chosen_demonstrations(played: Sequence[Trajectory], count: int) -> list[Trajectory]:
    """The first `count` won episodes, in the order of the games."""
    won = (t for t in played if t.success)
    return sorted(won, key=lambda t: (len(t.id), t.id))[:count]


async def cold_start(ctx: RunContext, plan: TaskPlan, trainer: Trainer) -> None:
    """Phase 3: LoRA SFT on the demonstrations, theta_sft = argmin L_CE(D_sft; theta)."""
    config = ctx.config.sft
    won = sum(t.success for t in ctx.episodes.read("demonstrate"))
    log = PhaseLog(
        ctx,
        "sft",
        "Cold start: demonstrations",
        config.num_examples,
        "episodes",
        done=min(won, config.num_examples),
    )
    demonstrations = await demonstrate(ctx, plan, config.num_examples, log)
    log.finish(_linted(demonstrations))
    examples = [sft_example(t, ctx.prompt_options) for t in demonstrations]
    batches = _batches(len(examples), config.batch_size, config.epochs, ctx.config.seed)
    total = -(-len(examples) // config.batch_size) * config.epochs
    done = trainer.sft_step
    if done < total:
        trainer.check_sft()
    await trainer.load_for_sft()
    if done == 0:
        report = lint(demonstrations, lengths=await trainer.count_tokens(examples), context=trainer.context)
        ctx.note(f"fine-tuning data: {summary(report)}")
        for warning in report.warnings:
            ctx.note(f"fine-tuning data: {warning.message}", "warning")
    log = PhaseLog(ctx, "sft", "Cold start: fine-tuning", total, "steps", done=done)
    # Of the last step before the run was broken off, where all of them are done.
    before = ctx.state.curves.get("sft/loss")
    metrics: dict[str, float] = {"loss": before[-1][1]} if done and before else {}
    for number, batch in enumerate(islice(batches, done, None), start=done + 1):
        await ctx.gate.wait()
        rate = config.learning_rate * _linear(number - 1, total)
        metrics = await trainer.sft([examples[i] for i in batch], rate, number)
        ctx.emit(ev.SftStepped(step=number, total=total, metrics=metrics))
        if number % config.checkpoint_interval == 0 or number == total:
            await trainer.save("sft", number, total=total)
        log.advance(detail=f"loss {metrics.get('loss', float('nan')):.3f}")
    loss = f", loss {metrics['loss']:.3f}" if "loss" in metrics else ""
    log.finish(f"fine-tuned on {len(examples)} demonstrations in {total} steps{loss}")


async def evaluate(
    ctx: RunContext,
    plan: TaskPlan,
    policy: Policy,
    *,
    stage: ev.Stage,
    weights: str,
    told: str,
    with_skills: bool,
) -> None:
    """Success on a reported split; nobody learns from it. `weights` names what is measured, `told` says it in full.

    With several `evaluation.seeds` each game is played once per seed: all count in the rate. A panel names its games
    and seeds itself.
    """
    pinned = ctx.panel if stage == "eval" else None
    name = pinned.panel.split if pinned else plan.evaluation_split()
    games = pinned.games if pinned else plan.evaluation(ctx.config.evaluation.episodes)
    tasks = pinned.tasks if pinned else [task for _ in range(ctx.config.evaluation.seeds) for task in games]
    # The same question (weights, bank, split, settings) is the same evaluation, so a broken-off one goes on.
    bank = ctx.bank.version if with_skills else 0
    prefix = f"evaluate-{stage}-{name}-{weights}-{bank}-{_settings_key(ctx.config)}".replace(":", "-")
    if pinned:
        prefix += f"-panel-{pinned.panel.digest[:16]}"
    specs = make_specs(
        ctx,
        tasks,
        prefix=prefix,
        purpose="evaluate",
        with_skills=with_skills,
        noise=f"evaluate-{name}",
        seeds=pinned.seeds if pinned else (),
    )
    where = f"{name}, panel {pinned.panel.name} {pinned.panel.digest[:16]}" if pinned else name
    log = PhaseLog(
        ctx, "evaluate", f"Evaluating {stage} on {where}", len(tasks), "games", done=len(tasks) - len(specs)
    )
    began = time.perf_counter()
    await play(
        ctx,
        specs,
        policy,
        prefix=f"{prefix}-",
        planned=len(tasks),
        temperature=ctx.config.policy.eval_temperature,
        on_finished=lambda rollout: log.advance(detail=_told(rollout.trajectory)),
    )
    played = ctx.episodes.read("evaluate", prefix=f"{prefix}-")
    broken = ctx.episodes.broken("evaluate", prefix=f"{prefix}-")
    overall, categories = success_rates([*played, *broken])
    seconds = round(time.perf_counter() - began, 3)
    lost = f"; {broke(overall, first_error(broken))}" if broken else ""
    log.finish(
        f"{stage}: {overall.rate:.1%} [{overall.low:.1%}, {overall.high:.1%}] of {overall.episodes} games{lost}"
    )
    # Last: what is in the journal as evaluated is not done again, and its phase has to be finished there, too.
    ctx.emit(
        ev.Evaluated(
            stage=stage,
            split=name,
            overall=overall,
            categories=categories,
            mean_steps=mean_steps(played),
            seconds=seconds,
            panel=pinned.panel.name if pinned else "",
            panel_digest=pinned.panel.digest if pinned else "",
            episodes=prefix,
            played=played_digest(played),
            weights=told,
            first_error=first_error(broken),
        )
    )


def _settings_key(config: KrillConfig) -> str:
    """Six letters that differ where two configs ask different things of a policy; speed is no difference."""
    asked = config.model_dump(
        mode="json",
        include={
            "env": True,
            "policy": True,
            "skill_retrieval": True,
            "rl": {"max_prompt_length", "max_response_length"},
        },
    )
    del asked["env"]["concurrency"]
    for name in (
        *("threads", "device", "processes", "accelerate_config", "sampler_url"),
        *("micro_batch_tokens", "gradient_checkpointing"),
    ):
        del asked["policy"][name]
    return hashlib.blake2b(json.dumps(asked, sort_keys=True).encode(), digest_size=3).hexdigest()


def teacher_event(name: str, call: TeacherCall) -> ev.TeacherCalled:
    return ev.TeacherCalled(
        teacher=name,
        purpose=call.kind,
        trajectories=call.trajectories,
        prompt=call.prompt,
        reply=call.reply,
        error=call.error,
        attempts=call.attempts,
        seconds=round(call.seconds, 3),
        prompt_tokens=call.usage.prompt_tokens,
        completion_tokens=call.usage.completion_tokens,
    )


def _told(trajectory: Trajectory) -> str:
    """How it ended, and what it was about; where no world ever said that, which game it was."""
    how = "won" if trajectory.success else trajectory.stop_reason.value
    return f"{how}: {trajectory.task or trajectory.task_id}"


def sft_example(trajectory: Trajectory, options: PromptOptions) -> SftExample:
    """A demonstration as the conversation that was played, prompt and replies."""
    task = Task(
        id=trajectory.task_id,
        env=trajectory.env,
        split=trajectory.split,
        description=trajectory.task,
        category=trajectory.category,
    )
    messages = conversation(trajectory, task, options)
    return SftExample(messages=tuple(ChatMessage(role=m["role"], content=m["content"]) for m in messages))


def _batches(examples: int, size: int, epochs: int, seed: int) -> Iterator[list[int]]:
    """Indices of each step: every epoch a new order, the same for the same seed."""
    rng = random.Random(f"sft/{seed}")
    for _ in range(epochs):
        order = list(range(examples))
        rng.shuffle(order)
        yield from (order[i : i + size] for i in range(0, examples, size))


def _linear(step: int, total: int) -> float:
    """Linear decay to a tenth, after a short warm-up (as TRL's default, but never to zero)."""
    warmup = max(1, total // 20)
    if step < warmup:
        return (step + 1) / warmup
    return 1.0 - 0.9 * (step - warmup) / max(1, total - warmup)


def _linted(demonstrations: Sequence[Trajectory]) -> str:
    """How many demonstrations really use a skill of their prompt: what SFT can teach at most."""
    citing = sum(bool(t.cited) for t in demonstrations)
    return f"{len(demonstrations)} demonstrations won, {citing} of them quote a skill of their prompt"
