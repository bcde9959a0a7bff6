"""What a run looks like right now: a pure reducer of events, the same for the app, `watch` and `replay`.

Bounded: it keeps the steps of live episodes and of the last `KEEP_FINISHED` finished ones.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from krill_tui.events import schema as ev
from krill_tui.skill import Skill
from krill_tui.trajectory import Step, StopReason, Trajectory

KEEP_FINISHED = 400
KEEP_LOG = 2000
PHASE_OF: dict[ev.Purpose, ev.Phase] = {
    "collect": "collect",
    "demonstrate": "sft",
    "rl": "rl",
    "validate": "rl",
    "evaluate": "evaluate",
}
"""What an episode was played for -> the phase it is part of."""


@dataclass(slots=True)
class EpisodeView:
    """One episode as a screen shows it."""

    id: str
    number: int
    purpose: ev.Purpose
    task_id: str
    task: str
    category: str
    split: str
    policy: str
    skills: tuple[str, ...]
    system: str
    max_steps: int
    group: str = ""
    steps: list[Step] = field(default_factory=list)
    finished: ev.EpisodeFinished | None = None
    started: float = 0.0

    @property
    def success(self) -> bool | None:
        """None while it is being played."""
        return self.finished.success if self.finished else None


@dataclass(slots=True)
class PhaseView:
    phase: ev.Phase
    title: str
    unit: str
    done: int
    total: int
    started: float
    """Unix seconds."""
    first: int
    """Where `done` stood when it started: what was finished before counts for no speed."""
    now: float
    detail: str = ""
    finished: bool = False
    seconds: float = 0.0
    """It took, over all starts of the run."""
    spent: float = 0.0
    """Seconds it took before it was broken off."""
    summary: str = ""

    @property
    def fraction(self) -> float:
        return min(1.0, self.done / self.total) if self.total else 0.0

    @property
    def seconds_left(self) -> float | None:
        """By the speed so far; None before anything was done."""
        made = self.done - self.first
        if made <= 0 or self.finished:
            return None
        return max(0.0, (self.total - self.done) * (self.now - self.started) / made)


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of the evolution log or of the notes."""

    time: float
    kind: str
    """`evolved`, `added`, `changed`, `refused`, `validated`, `note`, `warning`, `error`."""
    text: str
    event: ev.Event


@dataclass(slots=True)
class EvolutionView:
    """One evolution cycle, and what became of the categories it was about."""

    event: ev.Evolved
    skills: dict[str, tuple[Skill, str]]
    """By id: the new or refined skills as they were then, and the reason given for each."""
    next: ev.Validated | None = None
    """The validation after it; RL went on in between."""

    def effects(self) -> dict[str, tuple[ev.Rate, ev.Rate]]:
        """Failing category to its rate in this cycle's validation and in the next; empty before that."""
        after = self.next.categories if self.next else {}
        rates = self.event.rates
        return {c: (rates[c], after[c]) for c in self.event.failing if c in rates and c in after}


@dataclass(frozen=True, slots=True)
class WorkedUnder:
    """What a phase was last worked on with."""

    config: dict[str, Any]
    games: str
    """Content hash."""


@dataclass
class RunState:
    """Everything a screen needs of one run."""

    run: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    games: str = ""
    """Content hash of the games, of the newest start."""
    notices: tuple[str, ...] = ()
    """What is known about those games: which are skipped, and why."""
    seq: int = 0
    time: float = 0.0
    outcome: str = ""
    """Of the newest launch: `completed`, `cancelled`, `failed`; empty while it runs, and where it was broken off."""
    message: str = ""
    paused: bool = False
    phase: PhaseView | None = None
    """The newest phase, running or finished."""
    phases: list[PhaseView] = field(default_factory=list)
    live: dict[str, EpisodeView] = field(default_factory=dict)
    finished: deque[EpisodeView] = field(default_factory=lambda: deque(maxlen=KEEP_FINISHED))
    """Newest last."""
    finished_ids: set[str] = field(default_factory=set)
    """Episodes that were played to an end."""
    broken: dict[str, str] = field(default_factory=dict)
    """Episodes that broke, and why: they are no result, and owed."""
    episodes_done: int = 0
    """That were played to an end."""
    wins: int = 0
    skills: dict[str, Skill] = field(default_factory=dict)
    bank_version: int = 0
    curves: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    """Metric -> (step, value); SFT's under `sft/…`, validation under `validation/…`, evaluation under `evaluation/…`."""
    log: deque[LogLine] = field(default_factory=lambda: deque(maxlen=KEEP_LOG))
    evaluations: dict[str, ev.Evaluated] = field(default_factory=dict)
    """By stage: `base`, `sft`, `rl`, `eval`."""
    validations: list[ev.Validated] = field(default_factory=list)
    evolved_at: int = -1
    """RL step of the newest evolution cycle."""
    evolution_cycle: int = 0
    evolutions: list[EvolutionView] = field(default_factory=list)
    changed: dict[str, tuple[Skill, str]] = field(default_factory=dict)
    """Skills that were added or changed since the newest evolution, each with the reason given."""
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason of each proposal refused in the newest round of the teacher."""
    worker: ev.WorkerStarted | None = None
    worked: dict[str, WorkedUnder] = field(default_factory=dict)
    """By phase that something of is written down: `collect`, `sft` (demonstrations included), `rl`, `evaluate`."""

    def apply(self, event: ev.Event) -> None:
        """Take one event in."""
        self.seq = event.seq
        self.time = event.time
        if self.phase and not self.phase.finished:
            self.phase.now = event.time
        handler = _HANDLERS.get(event.kind)
        if handler:
            handler(self, event)

    def begun(self, phase: ev.Phase) -> PhaseView | None:
        """The newest phase of a kind, where it was broken off."""
        view = next((view for view in reversed(self.phases) if view.phase == phase), None)
        return view if view is not None and not view.finished else None

    def has_heard(self, trajectory: Trajectory) -> bool:
        """Whether the end of this episode was said, as it stands now: one that broke is said again when it was played."""
        if trajectory.stop_reason is StopReason.ERROR:
            return trajectory.id in self.broken or trajectory.id in self.finished_ids
        return trajectory.id in self.finished_ids

    def episode(self, id_: str) -> EpisodeView | None:
        """A live episode, or a finished one that is still kept."""
        if id_ in self.live:
            return self.live[id_]
        return next((view for view in reversed(self.finished) if view.id == id_), None)

    def add_point(self, metric: str, step: float, value: float) -> None:
        """A step that is done again after a crash replaces what was there from that step on."""
        points = self.curves.setdefault(metric, [])
        while points and points[-1][0] >= step:
            points.pop()
        points.append((step, value))

    def work_on(self, phase: str) -> None:
        """Something of a phase was finished, under the newest config."""
        worked = self.worked.get(phase)
        if worked is None or worked.config is not self.config:
            self.worked[phase] = WorkedUnder(self.config, self.games)

    def add_log(self, kind: str, text: str, event: ev.Event) -> None:
        self.log.append(LogLine(event.time, kind, text, event))


def _run_started(state: RunState, event: ev.RunStarted) -> None:
    # How it ended stays: opened and looked at, a completed run is still one. A phase that starts takes it back.
    state.run, state.config, state.games = event.run, event.config, event.data
    state.notices = event.notices
    state.paused = False
    state.live.clear()  # what was in flight when the run broke off is played again


def _run_finished(state: RunState, event: ev.RunFinished) -> None:
    state.outcome, state.message = event.outcome, event.message
    state.live.clear()
    if event.outcome != "completed":
        state.add_log(
            "error" if event.outcome == "failed" else "note", f"run {event.outcome}: {event.message}", event
        )


def _phase_started(state: RunState, event: ev.PhaseStarted) -> None:
    view = PhaseView(
        phase=event.phase,
        title=event.title,
        unit=event.unit,
        done=event.done,
        total=event.total,
        started=event.time,
        first=event.done,
        now=event.time,
    )
    place = next((i for i, old in enumerate(state.phases) if old.title == event.title), None)
    if place is not None and (event.done or not state.phases[place].finished):
        # It goes on: one phase, however often it was broken off, and its seconds are those of all its parts.
        old = state.phases[place]
        view.spent = old.seconds if old.finished else old.spent + max(0.0, old.now - old.started)
        state.phases[place] = view
    else:
        state.phases.append(view)
        state.refused.clear()
    state.phase = view
    state.outcome = state.message = ""


def _phase_progressed(state: RunState, event: ev.PhaseProgressed) -> None:
    if state.phase and state.phase.phase == event.phase:
        state.phase.done, state.phase.total, state.phase.detail = event.done, event.total, event.detail


def _phase_finished(state: RunState, event: ev.PhaseFinished) -> None:
    if state.phase and state.phase.phase == event.phase:
        state.phase.done = state.phase.total
        state.phase.finished = True
        state.phase.seconds, state.phase.summary = state.phase.spent + event.seconds, event.summary
    state.add_log("note", event.summary, event)


def _episode_started(state: RunState, event: ev.EpisodeStarted) -> None:
    state.live[event.episode] = EpisodeView(
        id=event.episode,
        number=event.number,
        purpose=event.purpose,
        task_id=event.task_id,
        task=event.task,
        category=event.category,
        split=event.split,
        policy=event.policy,
        skills=event.skills,
        system=event.system,
        max_steps=event.max_steps,
        group=event.group,
        started=event.time,
    )


def _episode_stepped(state: RunState, event: ev.EpisodeStepped) -> None:
    view = state.live.get(event.episode)
    if view:
        view.steps.append(event.step)


def _episode_finished(state: RunState, event: ev.EpisodeFinished) -> None:
    view = state.live.pop(event.episode, None)
    if event.stop_reason is StopReason.ERROR:
        if event.episode not in state.finished_ids:
            state.broken[event.episode] = event.error or "no reason"
        state.add_log("error", f"episode {event.episode} broke: {event.error or 'no reason'}", event)
    else:
        if state.broken.pop(event.episode, None) is not None:
            _forget_view(state, event.episode)
        state.finished_ids.add(event.episode)
        state.work_on(PHASE_OF[event.purpose])
        state.episodes_done += 1
        state.wins += event.success
    if view:
        view.finished = event
        state.finished.append(view)


def _forget_view(state: RunState, episode: str) -> None:
    """An episode that broke was played to an end after all: it is listed once."""
    old = next((view for view in state.finished if view.id == episode), None)
    if old is not None:
        state.finished.remove(old)


def _episode_interrupted(state: RunState, event: ev.EpisodeInterrupted) -> None:
    state.live.pop(event.episode, None)


def _skill_added(state: RunState, event: ev.SkillAdded) -> None:
    state.skills[event.skill.id] = event.skill
    state.changed[event.skill.id] = (event.skill, event.reason)
    state.bank_version = event.bank_version
    state.add_log("added", f"+ {event.skill.id} {event.skill.name}", event)


def _skill_changed(state: RunState, event: ev.SkillChanged) -> None:
    state.skills[event.skill.id] = event.skill
    state.changed[event.skill.id] = (event.skill, event.reason)
    state.bank_version = event.bank_version
    state.add_log(
        "changed", f"~ {event.skill.id} {event.skill.name}: {event.change} by {event.author}", event
    )


def _skill_removed(state: RunState, event: ev.SkillRemoved) -> None:
    state.skills.pop(event.skill_id, None)
    state.bank_version = event.bank_version
    state.add_log("changed", f"- {event.skill_id}: addition undone by {event.author}", event)


def _skill_refused(state: RunState, event: ev.SkillRefused) -> None:
    state.refused.append((event.proposal.name, event.reason))
    state.add_log("refused", f"refused “{event.proposal.name}”: {event.reason}", event)


def _teacher_called(state: RunState, event: ev.TeacherCalled) -> None:
    if event.error:
        state.add_log("warning", f"teacher call failed after {event.attempts} attempts: {event.error}", event)


def _sft_stepped(state: RunState, event: ev.SftStepped) -> None:
    state.work_on("sft")
    for name, value in event.metrics.items():
        state.add_point(f"sft/{name}", event.step, value)


def _grpo_stepped(state: RunState, event: ev.GrpoStepped) -> None:
    state.work_on("rl")
    for name, value in event.metrics.items():
        state.add_point(name, event.step, value)


def _validated(state: RunState, event: ev.Validated) -> None:
    if state.validations and state.validations[-1].step == event.step:
        state.validations.pop()  # said again: what it owed was played
    state.validations.append(event)
    for category, rate in {"success": event.overall, **event.categories}.items():
        if rate.episodes:
            state.add_point(f"validation/{category}", event.step, rate.rate)
    text = f"step {event.step}: {_percent(event.overall)} on the evolve split"
    for view in state.evolutions:
        if event.step > view.event.step and (view.next is None or view.next.step == event.step):
            view.next = event
            if view.event.accepted and (effects := view.effects()):
                told = ", ".join(f"{c} {b.rate:.0%} → {a.rate:.0%}" for c, (b, a) in effects.items())
                text += f"; since cycle {view.event.cycle}: {told}"
    state.add_log("validated", text, event)


def _evaluated(state: RunState, event: ev.Evaluated) -> None:
    state.evaluations[event.stage] = event
    state.add_log("validated", f"{event.stage}: {_percent(event.overall)} on {event.split}", event)


def _evolved(state: RunState, event: ev.Evolved) -> None:
    state.evolved_at = event.step
    state.evolution_cycle = event.cycle
    skills = {id_: state.changed[id_] for id_ in event.accepted if id_ in state.changed}
    state.evolutions.append(EvolutionView(event, skills))
    state.changed.clear()
    state.refused.clear()
    if event.accepted:
        text = f"cycle {event.cycle}: {', '.join(event.failing)} → {_gained(state, event.accepted)}"
    else:
        text = f"cycle {event.cycle}: nothing added: {event.reason}"
    state.add_log("evolved", text, event)


def _gained(state: RunState, accepted: Sequence[str]) -> str:
    """`+1 skills, 2 refined`: a refinement is a new version of a skill, and makes the bank no larger."""
    refined = sum(1 for id_ in accepted if id_ in state.skills and state.skills[id_].version > 1)
    added = len(accepted) - refined
    return ", ".join([f"+{added} skills"] * bool(added) + [f"{refined} refined"] * bool(refined))


def _control_changed(state: RunState, event: ev.ControlChanged) -> None:
    if event.action in ("paused", "resumed", "cancelled"):  # a cancelled launch leaves nothing held
        state.paused = event.action == "paused"


def _worker_started(state: RunState, event: ev.WorkerStarted) -> None:
    state.worker = event


def _worker_died(state: RunState, event: ev.WorkerDied) -> None:
    state.add_log("error", f"model worker died: {event.message}", event)


def _checkpoint_saved(state: RunState, event: ev.CheckpointSaved) -> None:
    state.add_log("note", f"checkpoint {event.path}", event)


def _noted(state: RunState, event: ev.Noted) -> None:
    state.add_log("note" if event.level == "info" else event.level, event.message, event)


def _percent(rate: ev.Rate) -> str:
    lost = f", {rate.errors} broke" if rate.errors else ""
    return f"{rate.rate:.0%} [{rate.low:.0%}, {rate.high:.0%}] of {rate.episodes}{lost}"


_HANDLERS: dict[str, Callable[[RunState, Any], None]] = {
    "run_started": _run_started,
    "run_finished": _run_finished,
    "phase_started": _phase_started,
    "phase_progressed": _phase_progressed,
    "phase_finished": _phase_finished,
    "episode_started": _episode_started,
    "episode_stepped": _episode_stepped,
    "episode_finished": _episode_finished,
    "episode_interrupted": _episode_interrupted,
    "teacher_called": _teacher_called,
    "skill_added": _skill_added,
    "skill_changed": _skill_changed,
    "skill_removed": _skill_removed,
    "skill_refused": _skill_refused,
    "sft_stepped": _sft_stepped,
    "grpo_stepped": _grpo_stepped,
    "validated": _validated,
    "evaluated": _evaluated,
    "evolved": _evolved,
    "control_changed": _control_changed,
    "worker_started": _worker_started,
    "worker_died": _worker_died,
    "checkpoint_saved": _checkpoint_saved,
    "noted": _noted,
}
