"""How a run is opened for work: its files are read, compared with the journal, mended, and what was unsaid is said."""

from __future__ import annotations

from contextlib import ExitStack, closing
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from krill_tui.agent.gate import Gate
from krill_tui.config.load import public_dict
from krill_tui.config.schema import KrillConfig
from krill_tui.engine import build
from krill_tui.engine.context import RunContext, finished_event, sync_bank_events
from krill_tui.engine.episodes import EpisodeFile
from krill_tui.engine.identity import changed_settings, check_identity
from krill_tui.engine.recovery import (
    Told,
    bank_problem,
    check_bank,
    check_journal,
    check_line,
    check_progress,
    doctor_hint,
    restore_episodes,
    unsaid_checkpoint,
)
from krill_tui.engine.run_store import RunStore, run_path
from krill_tui.engine.state import RunState
from krill_tui.engine.tokens import TokenStore
from krill_tui.envs.base import notices_of
from krill_tui.errors import DataError
from krill_tui.events import schema as ev
from krill_tui.events.bus import EventBus
from krill_tui.events.journal import Journal, read_journal
from krill_tui.io.jsonl import Line
from krill_tui.skill import SkillOrigin
from krill_tui.skills.bank import SkillBank, copy_into
from krill_tui.skills.retrieval import Retriever
from krill_tui.trajectory import StopReason, Trajectory

if TYPE_CHECKING:
    from krill_tui.skills.formats.banks import LoadedBank
    from krill_tui.skills.formats.records import ConvertReport


def open_context(name: str, config: KrillConfig, held: ExitStack, keep_config: bool) -> RunContext:
    """Open the files of a run, read what is there, and say what a kill left unsaid; `held` closes them again."""
    source = build.build_source(config)
    store = RunStore.open(run_path(name))
    held.callback(store.close)
    state, told = RunState(), Told()

    def heard(event: ev.Event) -> None:
        state.apply(event)
        told.apply(event)

    journal = held.enter_context(closing(Journal(store.events_file, on_read=heard)))
    resumed = told.events > 0
    check_journal(store.path, told)
    games = source.content_hash()
    check_identity(store.name, state, config, games, measuring=keep_config)
    bus = EventBus(journal)
    bus.subscribe(state.apply)
    mended = [check_progress(store.path, told), check_bank(store.bank_file, told)]
    bank = held.enter_context(closing(SkillBank.open(store.bank_file)))
    if problem := bank_problem(bank, told):
        raise DataError(f"{store.bank_file}: {problem}", hint=doctor_hint(store.name))
    if bank.decision and bank.decision.phase == "evolve" and bank.decision.cycle <= told.cycle:
        bank.forget_decision()
    bank.forget_outcomes()
    unsaid: list[ev.EpisodeFinished] = []

    def read(trajectory: Trajectory, line: Line) -> None:
        digest = check_line(store.trajectories_file, trajectory, line, told, store.name)
        bank.record_outcome(trajectory)
        if trajectory.purpose and not state.has_heard(trajectory):
            unsaid.append(finished_event(trajectory, digest))

    episodes = held.enter_context(closing(EpisodeFile(store.trajectories_file, on_read=read)))
    restored = restore_episodes(episodes, lambda: read_journal(store.events_file), told, store.name)
    for trajectory in restored:
        bank.record_outcome(trajectory)
    if restored:
        mended.append(
            f"{store.trajectories_file}: {len(restored)} episodes were missing: written again from the journal"
        )

    def say(message: str, level: str) -> None:
        bus.emit(ev.Noted(level=level, message=message))  # pyright: ignore[reportArgumentType]

    embedder = build.build_embedder(config, say)
    ctx = RunContext(
        config=config,
        store=store,
        bus=bus,
        state=state,
        source=source,
        bank=bank,
        retriever=Retriever(bank, embedder, build.retrieval_options(config), env=config.env.name),
        embedder=embedder,
        teacher=build.build_teacher(config, store, say),
        gate=Gate(),
        tokens=TokenStore(store.path / "tokens"),
        episodes=episodes,
    )
    before = state.config
    measuring = keep_config and bool(before)
    if not measuring:
        store.save_config(config)
    ctx.emit(
        ev.RunStarted(
            run=store.name,
            config=before if measuring else public_dict(config),
            code=version("krill-tui"),
            data=games,
            notices=notices_of(source),
            resumed=resumed,
        )
    )
    if before and (changed := changed_settings(before, config)):
        ctx.note(f"{'measured with other settings' if measuring else 'settings changed'}: {changed}")
    for message in filter(None, mended):
        ctx.note(message, "warning")
    for event in unsaid:
        ctx.emit(event)
    if saved := unsaid_checkpoint(store.path, told):
        ctx.emit(saved)
    sync_bank_events(ctx)
    return ctx


def import_bank(ctx: RunContext, path: Path, loaded: LoadedBank) -> None:
    have = {(skill.tier, skill.principle) for skill in ctx.bank.skills(active_only=False)}
    new = [skill for skill in loaded.skills if (skill.tier, skill.principle) not in have]
    if new:
        copy_into(ctx.bank, new, SkillOrigin(phase="import", author=path.name))
        sync_bank_events(ctx)
    known = len(loaded.skills) - len(new)
    ctx.note(
        f"{len(new)} skills taken over from {path.name} ({loaded.format})"
        + (f", {known} were in the bank already" if known else "")
    )
    if told := loaded.told():
        ctx.note(f"{path.name}: {told}", "warning")
    ctx.note_unreached_skills()


def import_trajectories(ctx: RunContext, path: Path, loaded: ConvertReport[Trajectory]) -> None:
    whole = [t for t in loaded.trajectories if t.stop_reason is not StopReason.ERROR]
    new = [t for t in whole if t.id not in ctx.episodes]
    for trajectory in new:
        ctx.episodes.append(trajectory.model_copy(update={"purpose": ""}))
    known, broken = len(whole) - len(new), len(loaded.trajectories) - len(whole)
    ctx.note(
        f"{len(new)} trajectories taken over from {path.name}"
        + (f", {known} were in the run already" if known else "")
        + (f", {broken} that broke are left out" if broken else "")
    )
    if told := loaded.told():
        ctx.note(f"{path.name}: {told}", "warning")
