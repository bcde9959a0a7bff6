"""The other files of a run compared with its journal, which is the master copy: absence is never a fresh start.

What the journal can give back is given back when a run is opened, and said. What is there and is not what the journal
says is refused; `krill doctor RUN --repair` sets it aside and makes it again.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from krill_tui.engine.episodes import EpisodeFile, line_digest
from krill_tui.errors import DataError
from krill_tui.events import schema as ev
from krill_tui.io.files import read_json, write_atomically
from krill_tui.io.jsonl import Line
from krill_tui.skill import Skill
from krill_tui.skills.bank import BankChange, SkillBank
from krill_tui.trajectory import Step, StopReason, Trajectory

SkillEvent = ev.SkillAdded | ev.SkillChanged | ev.SkillRemoved
_CHECKPOINT = re.compile(r"(sft|rl)-(\d{1,9})")
_TOTALS = ("sft_total", "rl_total")
_KINDS = ("add", "refine", "edit", "status", "undo")


@dataclass
class Told:
    """What a journal says of the other files."""

    events: int = 0
    digests: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Of each finished episode: of the lines that were said of it; empty in an old journal."""
    ended: dict[str, ev.EpisodeFinished] = field(default_factory=dict)
    """Episodes that were played to an end, as they were last said."""
    skills: list[SkillEvent] = field(default_factory=list)
    cycle: int = 0
    checkpoints: list[ev.CheckpointSaved] = field(default_factory=list)
    sft_total: int = 0

    def apply(self, event: ev.Event) -> None:
        """Take one event in."""
        self.events += 1
        match event:
            case ev.EpisodeFinished():
                self.digests[event.episode] |= {event.digest} - {""}
                if event.stop_reason is not StopReason.ERROR:
                    self.ended[event.episode] = event
            case ev.SkillAdded() | ev.SkillChanged() | ev.SkillRemoved():
                self.skills.append(event)
            case ev.Evolved():
                self.cycle = event.cycle
            case ev.CheckpointSaved():
                self.checkpoints.append(event)
            case ev.SftStepped():
                self.sft_total = event.total

    def progress(self) -> dict[str, Any]:
        """What `progress.json` holds after the checkpoints that were said."""
        found: dict[str, Any] = {}
        for saved in self.checkpoints:
            if saved.restored and saved.phase == "sft":
                found.pop("rl_step", None)
            found |= {"checkpoint": f"{saved.phase}-{saved.step}", f"{saved.phase}_step": saved.step}
            total = saved.total or (self.sft_total if saved.phase == "sft" else 0)
            if total:
                found[f"{saved.phase}_total"] = total
        return found


def doctor_hint(run: str) -> str:
    return f"krill doctor {run} says what is damaged; with --repair it restores what the journal holds"


def check_journal(folder: Path, told: Told) -> None:
    """A folder with results and no journal is no new run.

    Raises:
        DataError: it is such a one.
    """
    if told.events:
        return
    trajectories, checkpoints = folder / "trajectories.jsonl", folder / "checkpoints"
    left = [path for path in (trajectories,) if path.is_file() and path.stat().st_size]
    left += [path for path in (folder / "progress.json",) if path.exists()]
    left += sorted(checkpoints.glob("[a-z]*"))[:1] if checkpoints.is_dir() else []
    if left:
        raise DataError(
            f"{folder / 'events.jsonl'}: is missing or empty, but {left[0].name} is there",
            hint="put the journal back, or use another --run",
        )


# Where the pipeline stands


def check_progress(folder: Path, told: Told) -> str:
    """Write `progress.json` again where it is missing or not what the journal says; returns what to say of it."""
    path, expected = folder / "progress.json", told.progress()
    problem = progress_problem(folder, told)
    if not problem:
        return ""
    if expected:
        write_atomically(path, json.dumps(expected, indent=1) + "\n")
        return f"{problem}: written again from the journal, {expected['checkpoint']} is current"
    path.unlink(missing_ok=True)
    return f"{problem}: the journal knows of no checkpoint"


def progress_problem(folder: Path, told: Told) -> str:
    """What is wrong with `progress.json`; empty where it says what the journal says, or one checkpoint more."""
    path, expected = folder / "progress.json", told.progress()
    try:
        found = read_json(path)
    except DataError as error:
        missing = not path.exists() and not path.is_symlink()
        return "" if missing and not expected else f"{path}: is missing" if missing else str(error)
    if not _is_progress(found):
        return f"{path}: does not say where a run stands"
    if all(found.get(key, expected.get(key)) == expected.get(key, found.get(key)) for key in _TOTALS):
        found = {key: value for key, value in found.items() if key not in _TOTALS}
        said = {key: value for key, value in expected.items() if key not in _TOTALS}
        if found == said or _is_one_ahead(folder, found, said):
            return ""
    return f"{path}: says {found['checkpoint']}, the journal {expected.get('checkpoint', 'no checkpoint')}"


def _is_one_ahead(folder: Path, found: dict[str, Any], said: dict[str, Any]) -> bool:
    """Whether one checkpoint was saved since: a kill came between the file and the event."""
    phase, _, step = found["checkpoint"].partition("-")
    own = ("checkpoint", f"{phase}_step")
    others = [{key: value for key, value in facts.items() if key not in own} for facts in (found, said)]
    ahead = int(step) > said.get(f"{phase}_step", -1)
    return (
        ahead
        and others[0] == others[1]
        and (folder / "checkpoints" / found["checkpoint"] / "manifest.json").exists()
    )


def unsaid_checkpoint(folder: Path, told: Told) -> ev.CheckpointSaved | None:
    """The event of a checkpoint that `progress.json` names and the journal does not, after `check_progress`."""
    try:
        found = read_json(folder / "progress.json")
    except DataError:
        return None
    if found == told.progress() or not _is_progress(found):
        return None
    name = found["checkpoint"]
    if any(f"{saved.phase}-{saved.step}" == name for saved in told.checkpoints):
        return None
    phase: ev.Phase = "sft" if name.startswith("sft-") else "rl"
    return ev.CheckpointSaved(
        phase=phase,
        step=int(name.partition("-")[2]),
        path=f"checkpoints/{name}",
        total=found.get(f"{phase}_total", 0),
    )


def _is_progress(found: Any) -> bool:
    if not isinstance(found, dict) or not isinstance(found.get("checkpoint"), str):
        return False
    match = _CHECKPOINT.fullmatch(found["checkpoint"])
    numbers = all(type(value) is int and value >= 0 for key, value in found.items() if key != "checkpoint")
    return match is not None and numbers and found.get(f"{match.group(1)}_step") == int(match.group(2))


# The bank


def check_bank(path: Path, told: Told) -> str:
    """Make the bank again where its file is missing or empty; returns what to say of it."""
    gone = not path.exists() or (path.is_file() and path.stat().st_size == 0)
    if not gone or not (told.skills or told.cycle):
        return ""
    path.unlink(missing_ok=True)
    SkillBank.restore(path, bank_changes(told.skills), told.cycle)
    return f"{path}: was missing or empty: made again from the journal, with {len(told.skills)} changes"


def bank_problem(bank: SkillBank, told: Told) -> str:
    """Where a bank is not what the journal says of it; empty where it is, or holds more."""
    history = {change.version: change for change in bank.history()}
    newest = told.skills[-1].bank_version if told.skills else 0
    if bank.version < newest:
        return f"it is older than the journal says (version {bank.version}, not {newest})"
    if bank.version != max(history, default=0):
        return f"its history ends at version {max(history, default=0)}, not {bank.version}"
    for event in told.skills:
        change = history.get(event.bank_version)
        if change is None:
            return f"its change {event.bank_version} is missing"
        if isinstance(event, ev.SkillRemoved):
            continue
        kind = event.change if isinstance(event, ev.SkillChanged) else "add"
        said = (kind, event.author, event.reason, event.skill)
        if (change.kind, change.author, change.reason, change.after) != said:
            return f"its change {event.bank_version}, of {event.skill.id}, is not what the journal says"
    folded = bank.skills_at(bank.version)
    for skill in bank.skills(active_only=False):
        if skill.id not in folded or _content(folded[skill.id]) != _content(skill):
            return f"its skill {skill.id} is not what its history says"
    if folded.keys() - {skill.id for skill in bank.skills(active_only=False)}:
        return "a skill of its history is missing"
    decided = bank.decision.cycle if bank.decision and bank.decision.phase == "evolve" else told.cycle
    if told.cycle and bank.keeps_decisions and bank.cycle not in (told.cycle, decided):
        return f"it counts {bank.cycle} evolution cycles, the journal {told.cycle}"
    return ""


def bank_changes(events: Collection[SkillEvent]) -> list[BankChange]:
    """The history of a bank from what the journal says of it."""
    changes: list[BankChange] = []
    now: dict[str, Skill] = {}
    for event in events:
        if isinstance(event, ev.SkillRemoved):
            now.pop(event.skill_id, None)
            continue
        after = event.skill
        before = now.get(after.id)
        kind = event.change if isinstance(event, ev.SkillChanged) else "add"
        changes.append(
            BankChange(
                seq=len(changes) + 1,
                version=event.bank_version,
                time=event.time,
                kind=kind if kind in _KINDS else "edit",
                author=event.author,
                skill_id=after.id,
                # A change keeps the counts: they were then what they are in its outcome.
                before=before.model_copy(update={"stats": after.stats}) if before else None,
                after=after,
                reason=event.reason,
                undoes=_undone(changes, event.author) if kind == "undo" else None,
            )
        )
        now[after.id] = after
    return changes


def _undone(changes: list[BankChange], author: str) -> int | None:
    """An undo takes back the author's newest change that is not taken back yet."""
    taken = {change.undoes for change in changes}
    mine = (
        c.seq for c in reversed(changes) if c.author == author and c.kind != "undo" and c.seq not in taken
    )
    return next(mine, None)


def _content(skill: Skill) -> Any:
    return skill.model_dump(exclude={"stats", "updated"})


# The episodes


def check_line(path: Path, trajectory: Trajectory, line: Line, told: Told, run: str) -> str:
    """The digest of a line of `trajectories.jsonl`.

    Raises:
        DataError: the journal says another one of this episode.
    """
    digest = line_digest(line.data)
    said = told.digests.get(trajectory.id)
    # Of an episode that broke and was played again, the end may be written down and not yet said.
    unsaid = trajectory.id not in told.ended and trajectory.stop_reason is not StopReason.ERROR
    if said and digest not in said and not unsaid:
        raise DataError(
            f"{path}: line {line.number}: episode {trajectory.id} is not what the journal says of it",
            hint=doctor_hint(run),
        )
    return digest


def restore_episodes(
    episodes: EpisodeFile, journal: Callable[[], Iterator[ev.Event]], told: Told, run: str
) -> list[Trajectory]:
    """Write the episodes again that the journal says were finished and the file does not hold; returns them.

    Raises:
        DataError: the journal does not hold one of them whole.
    """
    lost = {id_ for id_ in told.ended if id_ not in episodes}
    if not lost:
        return []
    restored = []
    for trajectory, finished in episodes_of(journal(), lost):
        if told.ended[trajectory.id] is not finished and told.ended[trajectory.id] != finished:
            continue
        digest = episodes.append(trajectory)
        if finished.digest not in ("", digest):
            raise DataError(
                f"{episodes.path}: episode {trajectory.id} is missing, and the journal does not hold all of it",
                hint="begin a new run from this one with --fork NAME",
            )
        restored.append(trajectory)
    return restored


def episodes_of(
    events: Iterator[ev.Event], wanted: Collection[str]
) -> Iterator[tuple[Trajectory, ev.EpisodeFinished]]:
    """Trajectories made again from a journal's events, in the order they ended."""
    started: dict[str, ev.EpisodeStarted] = {}
    steps: dict[str, list[Step]] = {}
    for event in events:
        match event:
            case ev.EpisodeStarted() if event.episode in wanted:
                started[event.episode], steps[event.episode] = event, []
            case ev.EpisodeStepped() if event.episode in steps:
                steps[event.episode].append(event.step)
            case ev.EpisodeFinished() if (
                event.episode in started and event.stop_reason is not StopReason.ERROR
            ):
                yield (
                    _trajectory(started.pop(event.episode), tuple(steps.pop(event.episode)), event),
                    event,
                )


def _trajectory(start: ev.EpisodeStarted, steps: tuple[Step, ...], end: ev.EpisodeFinished) -> Trajectory:
    return Trajectory(
        id=start.episode,
        env=end.env,
        task_id=start.task_id,
        split=start.split,
        task=start.task,
        category=start.category,
        steps=steps,
        final_observation=end.final_observation,
        total_reward=end.total_reward,
        success=end.success,
        stop_reason=end.stop_reason,
        error=end.error,
        seed=end.seed,
        policy=start.policy,
        policy_version=end.policy_version,
        bank_version=end.bank_version,
        skills=start.skills,
        cited=end.cited,
        tokens=end.tokens,
        group=start.group,
        purpose=start.purpose,
        number=start.number,
        system=start.system,
    )
