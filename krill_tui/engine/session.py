"""The one object a front end holds: a run, opened, with the verbs to work it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

from krill_tui.config.schema import KrillConfig
from krill_tui.engine.context import RunContext, sync_bank_events
from krill_tui.engine.episodes import EpisodeFile
from krill_tui.engine.opening import import_bank, import_trajectories, open_context
from krill_tui.engine.panel import PanelPlan, pinned
from krill_tui.engine.pipeline import Pipeline, train_stages
from krill_tui.engine.report import write_report
from krill_tui.engine.run_store import RunStore
from krill_tui.engine.state import RunState
from krill_tui.errors import KrillError, UsageError, WorkerDiedError
from krill_tui.events import schema as ev
from krill_tui.events.bus import EventBus
from krill_tui.io.explain import explained, needs_log, write_crash_log
from krill_tui.skill import Skill, SkillKind, SkillOrigin, SkillProposal, SkillStatus
from krill_tui.skills.bank import SkillBank

WORKER_RESTARTS = 3
"""Times a dead model worker is started again within one launch."""

HAND = "hand"
Outcome = Literal["completed", "cancelled", "failed"]


class Session:
    """A run opened for work by one process. Phases run in a task the session owns."""

    def __init__(self, ctx: RunContext, held: ExitStack, opening_notes: Sequence[ev.Noted] = ()) -> None:
        self._ctx = ctx
        self._held = held
        self._pipeline = Pipeline(ctx)
        self._task: asyncio.Task[Outcome] | None = None
        self._outcome: Outcome = "completed"
        self.running: str | None = None
        """Name of the stage that is being worked on; None while idle."""
        self.error: KrillError | None = None
        """Why the last launch failed."""
        self.opening_notes = tuple(opening_notes)
        """What was said while the run was opened, before anybody could listen."""

    @classmethod
    async def open(
        cls,
        name: str,
        config: KrillConfig,
        *,
        bank: Path | None = None,
        trajectories: Path | None = None,
        keep_config: bool = False,
        panel: PanelPlan | None = None,
    ) -> Session:
        """Create the run or go on with it; `bank` and `trajectories` are files to start from.

        With `keep_config` a run that is there goes on later as it was configured before: `config` is for the
        evaluations of this session alone. With `panel` the launches of this session play it where they evaluate.

        What a kill left half said (an episode or a skill written down without its event) is said now.

        Raises:
            RunLockedError: another process writes to this run.
            DataError, UsageError: a file or the games cannot be used, or the run is there and was made with settings
                that must stay (`FixedFrom`).
        """
        from krill_tui.skills.formats.banks import load_bank
        from krill_tui.skills.formats.trajectories import read_trajectories

        # Before the run is made: a file that cannot be used should leave no run behind.
        loaded_bank = load_bank(bank) if bank else None
        loaded_trajectories = read_trajectories(trajectories) if trajectories else None
        with ExitStack() as held:
            ctx = open_context(name, config, held, keep_config)
            notes: list[ev.Noted] = []
            unsubscribe = ctx.bus.subscribe(lambda e: notes.append(e) if isinstance(e, ev.Noted) else None)
            if bank and loaded_bank:
                import_bank(ctx, bank, loaded_bank)
            if trajectories and loaded_trajectories is not None:
                import_trajectories(ctx, trajectories, loaded_trajectories)
            unsubscribe()
            return cls(pinned(ctx, panel) if panel else ctx, held.pop_all(), notes)

    @property
    def state(self) -> RunState:
        return self._ctx.state

    @property
    def bus(self) -> EventBus:
        return self._ctx.bus

    @property
    def store(self) -> RunStore:
        return self._ctx.store

    @property
    def config(self) -> KrillConfig:
        return self._ctx.config

    @property
    def checkpoint(self) -> Path | None:
        """Folder of the newest weights of the run; None where it has trained nothing."""
        name = self._pipeline.trainer.checkpoint
        return self.store.path / "checkpoints" / name if name else None

    @property
    def episodes(self) -> EpisodeFile:
        """The finished episodes of the run."""
        return self._ctx.episodes

    @property
    def bank(self) -> SkillBank:
        return self._ctx.bank

    # Phases

    def launch(self, phases: Sequence[str], *, resume: bool = False) -> None:
        """Start phases in the background: `collect`, `distill`, `sft`, `rl`, `evaluate`, or `train` for all.

        With `resume`, as always for `train`, what this run has finished is not begun again.

        Raises:
            UsageError: something runs already.
        """
        if self.running:
            raise UsageError(f"'{self.running}' is running", hint="cancel it first, or wait")
        whole = train_stages(self.config)
        stages = [stage for phase in phases for stage in (whole if phase == "train" else (phase,))]
        self.running = stages[0]
        self.error = None
        self._task = asyncio.create_task(
            self._run(stages, resume=resume or "train" in phases), name="krill-phases"
        )

    async def wait(self) -> Outcome:
        """Until nothing runs; says how the last launch ended."""
        if self._task:
            self._outcome = await asyncio.shield(self._task)
        return self._outcome

    def pause(self) -> None:
        """Hold every episode before its next turn, and training before its next step."""
        if not self._ctx.gate.paused:
            self._ctx.gate.pause()
            self._ctx.emit(ev.ControlChanged(action="paused"))

    def resume(self) -> None:
        if self._ctx.gate.paused:
            self._ctx.gate.resume()
            self._ctx.emit(ev.ControlChanged(action="resumed"))

    def step_once(self) -> None:
        """While paused, let one turn of the episode that has waited longest through."""
        if self._ctx.gate.step():
            self._ctx.emit(ev.ControlChanged(action="stepped"))

    async def cancel(self) -> None:
        """Stop what runs. Finished episodes and steps are kept; the same launch goes on from there."""
        task = self._task
        if task is None or task.done():
            return
        self._ctx.emit(ev.ControlChanged(action="cancelled"))
        task.cancel()
        self._outcome = await asyncio.shield(task)
        self._ctx.gate.resume()

    async def close(self) -> None:
        """Cancel what runs, stop the worker, let go of the run."""
        await self.cancel()
        await self._pipeline.close()
        await self._ctx.teacher.close()
        await self._ctx.embedder.close()
        try:
            self._held.close()
        except KrillError:  # a full disk, a deleted folder: where the launch has failed of it, that is said
            if self.error is None:
                raise

    async def _run(self, stages: Sequence[str], *, resume: bool) -> Outcome:
        outcome: Outcome = "completed"
        message = ""
        try:
            self._pipeline.check([stage for stage in stages if not (resume and self._has(stage))])
            for stage in stages:
                self.running = stage
                if not (resume and self._has(stage)):
                    await self._run_stage(stage)
        except asyncio.CancelledError:
            outcome, message = "cancelled", f"during {self.running}"
            self._pipeline.trainer.stale()
        except Exception as error:  # the boundary of a launch: the run says it and stays usable
            outcome, self.error = "failed", self._explained(error)
            message = str(self.error)
        finally:
            self.running = None
        try:
            self._ctx.bank.flush()
            self._ctx.emit(ev.RunFinished(outcome=outcome, message=message))
            write_report(self._ctx.state, self.store.path / "report.md")
        except KrillError as error:  # the disk is full, or the folder gone: what broke first says why
            outcome, self.error = "failed", self.error or error
        return outcome

    def _explained(self, error: Exception) -> KrillError:
        told = explained(error)
        if needs_log(error):
            told = KrillError(str(told), hint=write_crash_log(self.store.path / "crash.log", error))
        return told

    async def _run_stage(self, stage: str) -> None:
        for attempt in range(WORKER_RESTARTS + 1):
            try:
                await self._pipeline.run(stage)
                return
            except* WorkerDiedError as group:
                error = group.exceptions[0]
                self._ctx.emit(ev.WorkerDied(message=str(error)))
                self._pipeline.trainer.forget()
                if attempt == WORKER_RESTARTS:
                    raise KrillError(
                        f"the model worker died {attempt + 1} times", hint=f"see {self.store.worker_log}"
                    ) from None

    def _has(self, stage: str) -> bool:
        """Whether `train` finished this stage before."""
        state, config = self.state, self.config
        phases = [view for view in state.phases if view.finished]
        match stage:
            case "collect":
                return any(v.phase == "collect" for v in phases)
            case "distill":
                return any(v.phase == "distill" for v in phases)
            case "sft":
                return any(v.phase == "sft" and v.unit == "steps" for v in phases)
            case "rl":
                return self._pipeline.trainer.rl_step >= config.rl.training_epochs and any(
                    v.phase == "rl" for v in phases
                )
            case _:
                measured: ev.Stage = "eval" if stage == "evaluate" else stage.removeprefix("evaluate-")  # pyright: ignore[reportAssignmentType]
                said = state.evaluations.get(measured)
                owed = any(episode.startswith(f"evaluate-{measured}-") for episode in state.broken)
                return said is not None and not owed and self._pipeline.trainer.still_holds(said)

    # Curation by hand

    def add_skill(
        self,
        *,
        name: str,
        principle: str,
        when_to_apply: str = "",
        tier: str = "general",
        kind: SkillKind = SkillKind.STRATEGY,
    ) -> Skill:
        """Add a skill; prompts use it from the next episode on."""
        proposal = SkillProposal(
            name=name, principle=principle, when_to_apply=when_to_apply, tier=tier, kind=kind
        )
        skill = self.bank.add(proposal, SkillOrigin(phase="hand", cycle=self.bank.cycle, author=HAND))
        sync_bank_events(self._ctx)
        return skill

    def edit_skill(
        self,
        skill_id: str,
        *,
        name: str | None = None,
        principle: str | None = None,
        when_to_apply: str | None = None,
        tier: str | None = None,
    ) -> Skill:
        skill = self.bank.edit(
            skill_id, name=name, principle=principle, when_to_apply=when_to_apply, tier=tier, author=HAND
        )
        sync_bank_events(self._ctx)
        return skill

    def set_skill_status(self, skill_id: str, status: SkillStatus) -> Skill:
        skill = self.bank.set_status(skill_id, status, HAND)
        sync_bank_events(self._ctx)
        return skill

    def undo_skill_change(self) -> str | None:
        """Take back the newest change by hand; says which, or None when there is none.

        Raises:
            UsageError: the skill was changed again since.
        """
        if not any(change.author == HAND for change in self.bank.history()):
            return None
        change = self.bank.undo(HAND)
        sync_bank_events(self._ctx)
        return f"undone: last change of {change.skill_id}"
