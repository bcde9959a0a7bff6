"""SkillRL's Algorithm 1 (arXiv 2602.08234), top to bottom.

Where it departs from the paper:
- the expert planner of the environment plays the demonstrations, with the skills in its prompt, in place of an LLM
  teacher; only episodes that were won are kept;
- success before, between and after is measured on a split that no phase learns from;
- one episode is one token sequence (the paper's code builds one prompt per step);
- the games that evolution learns from are a split of their own, never a reported one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from krill_tui.config.schema import KrillConfig
from krill_tui.engine import phases
from krill_tui.engine.build import TaskPlan, build_program_policy, untold, untrained_for
from krill_tui.engine.context import RunContext
from krill_tui.engine.reinforce import reinforce
from krill_tui.engine.trainer import Trainer, check_local
from krill_tui.envs.base import notices_of
from krill_tui.errors import UsageError
from krill_tui.events.schema import Stage
from krill_tui.models.base import Policy

TRAIN = ("evaluate-base", "collect", "distill", "sft", "evaluate-sft", "rl", "evaluate-rl")
"""What `train` does, in order; each is skipped when the run has it already."""


def train_stages(config: KrillConfig) -> tuple[str, ...]:
    """The stages of `train`: all of `TRAIN`, or those that are left without a cold start (`sft.enabled`)."""
    return TRAIN if config.sft.enabled else tuple(stage for stage in TRAIN if not stage.endswith("sft"))


def check(config: KrillConfig, phases: Sequence[str]) -> None:
    """Refuse, before anything is made, played or paid, what a later phase would refuse for certain.

    Raises:
        UsageError: a policy that cannot be trained, or settings of the local one that cannot work.
    """
    trains = [word for phase, word in _TRAINING.items() if phase in phases]
    if config.policy.kind == "local":
        check_local(config)
    elif trains:
        raise UsageError(
            f"policy '{config.policy.kind}' cannot be {trains[0]} here",
            hint="a local model can: --preset tiny, or set policy.kind to local and policy.model",
        )


_TRAINING = {
    "train": "trained",
    "sft": "fine-tuned",
    "rl": "trained",
    "evaluate-sft": "evaluated after training",
    "evaluate-rl": "evaluated after training",
}
"""Phases that only a local model can do, and what they do with it."""


class Pipeline:
    """The stages of one run."""

    def __init__(self, ctx: RunContext) -> None:
        self.ctx = ctx
        self.plan = TaskPlan(ctx.source, ctx.config)
        self.trainer = Trainer(ctx)
        self._program: Policy | None = None
        """The policy where it is no local model, kept from stage to stage with what it learned of its endpoint."""

    def check(self, stages: Sequence[str]) -> None:
        """As `check`, and that there are games for all of it.

        Raises:
            UsageError: something that one of the stages needs is certain not to be there.
        """
        check(self.ctx.config, stages)
        if {"collect", "sft", "rl"} & set(stages):
            self.plan.train(0, 1)
        if "rl" in stages:
            self.plan.evolve(1)
        if any(stage.startswith("evaluate") for stage in stages):
            self.plan.evaluation(1)

    async def close(self) -> None:
        """Stop the worker; let go of the connections."""
        await self.trainer.close()
        if self._program:
            await self._program.close()

    async def run(self, stage: str) -> None:
        """One stage by name.

        Raises:
            UsageError: it needs something this run does not have.
        """
        stages: dict[str, Callable[[], Awaitable[None]]] = {
            "collect": self._collect,
            "distill": self._distill,
            "sft": self._sft,
            "rl": self._rl,
            "evaluate": partial(self._evaluate, "eval"),
            "evaluate-base": partial(self._evaluate, "base"),
            "evaluate-sft": partial(self._evaluate, "sft"),
            "evaluate-rl": partial(self._evaluate, "rl"),
        }
        check(self.ctx.config, [stage])
        for setting in self.ctx.config.withheld:
            self.ctx.note_once(
                f"{setting} was given with a password or a key, which no run stores: give the whole address again, with "
                f"--set {setting}=…" + (" or OPENAI_BASE_URL" if setting.startswith("model.") else ""),
                "warning",
            )
        for notice in notices_of(self.ctx.source) if stage != "distill" else ():
            self.ctx.note_once(notice, "warning")
        if stage != "distill" and (warning := untrained_for(self.ctx.config)):
            self.ctx.note_once(warning, "warning")
        if stage not in ("distill", "evaluate-base"):
            self.ctx.note_unreached_skills()
        if stage != "distill" and (warning := untold(self.ctx.config)):
            self.ctx.note_once(warning, "warning")
        await stages[stage]()

    async def _collect(self) -> None:
        policy, _, _ = await self._policy("base")
        await phases.collect(self.ctx, self.plan, policy)

    async def _distill(self) -> None:
        await phases.distill(self.ctx, [*self.ctx.episodes.read("collect"), *self.ctx.episodes.read("")])

    async def _sft(self) -> None:
        mode = self.ctx.config.skill_retrieval.mode
        if mode not in ("none", "trajectories") and not self.ctx.bank.skills():
            raise UsageError(
                "the bank holds no skills to demonstrate",
                hint="distil or import some first; skill_retrieval.mode none goes without",
            )
        await phases.cold_start(self.ctx, self.plan, self.trainer)

    async def _rl(self) -> None:
        await reinforce(self.ctx, self.plan, self.trainer)

    async def _evaluate(self, stage: Stage) -> None:
        raw = self.ctx.config.skill_retrieval.mode == "trajectories"
        with_skills = stage != "base" and (raw or bool(self.ctx.bank.skills()))
        policy, weights, told = await self._policy(stage)
        await phases.evaluate(
            self.ctx, self.plan, policy, stage=stage, weights=weights, told=told, with_skills=with_skills
        )

    async def _policy(self, stage: Stage) -> tuple[Policy, str, str]:
        """Who plays a stage, the short name of its weights, and the whole one."""
        self._program = self._program or build_program_policy(self.ctx.config, self.ctx.source, self.ctx.note)
        if self._program is not None:
            return self._program, self._program.name, self._program.name
        policy, weights = await self.trainer.load_for(stage)
        return policy, weights, self.trainer.named(weights)
