"""SkillRL's Algorithm 1 (arXiv 2602.08234), top to bottom.

Where it departs from the paper:
- the expert planner of the environment plays the demonstrations, with the skills in its prompt, in place of an LLM
  teacher; only episodes that were won are kept;
- success before, between and after is measured on a split that no phase learns from;
- one episode is one token sequence (the paper's code builds one prompt per step);
- the games that evolution learns from are a split of their own, never a reported one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial

from krill_tui.config.schema import KrillConfig
from krill_tui.engine import phases
from krill_tui.engine.build import TaskPlan, build_program_policy, untold, untrained_for
from krill_tui.engine.context import RunContext
from krill_tui.engine.reinforce import reinforce
from krill_tui.engine.trainer import Trainer
from krill_tui.envs.base import notices_of
from krill_tui.errors import UsageError
from krill_tui.events.schema import Stage
from krill_tui.models.base import Policy

TRAIN = ("evaluate-base", "collect", "distill", "sft", "evaluate-sft", "rl", "evaluate-rl")
"""What `train` does, in order; each is skipped when the run has it already."""


def train_stages(config: KrillConfig) -> tuple[str, ...]:
    """The stages of `train`: all of `TRAIN`, or those that are left without a cold start (`sft.enabled`)."""
    return TRAIN if config.sft.enabled else tuple(stage for stage in TRAIN if not stage.endswith("sft"))


class Pipeline:
    """The stages of one run."""

    def __init__(self, ctx: RunContext) -> None:
        self.ctx = ctx
        self.plan = TaskPlan(ctx.source, ctx.config)
        self.trainer = Trainer(ctx)
        self._program: Policy | None = None
        """The policy where it is no local model, kept from stage to stage with what it learned of its endpoint."""

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
        await phases.collect(self.ctx, self.plan, await self._policy())

    async def _distill(self) -> None:
        await phases.distill(self.ctx, [*self.ctx.episodes.read("collect"), *self.ctx.episodes.read("")])

    async def _sft(self) -> None:
        self._require_local("fine-tuned")
        mode = self.ctx.config.skill_retrieval.mode
        if mode not in ("none", "trajectories") and not self.ctx.bank.skills():
            raise UsageError(
                "the bank holds no skills to demonstrate",
                hint="distil or import some first; skill_retrieval.mode none goes without",
            )
        await phases.cold_start(self.ctx, self.plan, self.trainer)

    async def _rl(self) -> None:
        self._require_local("trained")
        await reinforce(self.ctx, self.plan, self.trainer)

    async def _evaluate(self, stage: Stage) -> None:
        if stage != "base" and stage != "eval":
            self._require_local("evaluated after training")
        raw = self.ctx.config.skill_retrieval.mode == "trajectories"
        with_skills = stage != "base" and (raw or bool(self.ctx.bank.skills()))
        policy = await self._policy()
        weights = (
            (self.trainer.checkpoint or "base") if self.ctx.config.policy.kind == "local" else policy.name
        )
        await phases.evaluate(
            self.ctx, self.plan, policy, stage=stage, weights=weights, with_skills=with_skills
        )

    async def _policy(self) -> Policy:
        self._program = self._program or build_program_policy(self.ctx.config, self.ctx.source, self.ctx.note)
        return self._program or await self.trainer.acting()

    def _require_local(self, what: str) -> None:
        kind = self.ctx.config.policy.kind
        if kind != "local":
            raise UsageError(
                f"policy '{kind}' cannot be {what} here",
                hint="a local model can: --preset tiny, or set policy.kind to local and policy.model",
            )
