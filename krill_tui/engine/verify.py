"""`krill report RUN --verify`: every stored episode played again, every number that can be made again made again.

Nothing is written. What a model or a teacher said is taken as it stands, and so are losses, times and tokens; all else
(what the world answered, what counted, who won, every rate) follows from that and is compared.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field

from krill_tui.config.load import merge
from krill_tui.config.schema import KrillConfig
from krill_tui.engine.recheck import Difference, Rechecked, difference, recheck
from krill_tui.engine.run_store import has_writer
from krill_tui.engine.verify_numbers import check_bank, check_numbers
from krill_tui.engine.verify_plan import Plans, Worlds, check_prompt, expected_seed, prompt_of
from krill_tui.envs.base import Pinnable, TaskSource
from krill_tui.errors import DataError, KrillError
from krill_tui.events import schema as ev
from krill_tui.events.journal import read_journal
from krill_tui.io.jsonl import parsed, whole_lines
from krill_tui.skill import Skill
from krill_tui.trajectory import Record, StopReason, Task, Trajectory


class Verification(Record):
    """What was compared, what differs, and what could not be compared."""

    run: str
    episodes: int = 0
    """Finished ones that are stored."""
    verified: int = 0
    """Episodes that were played again, step by step, to their ends."""
    steps: int = 0
    checks: dict[str, int] = Field(default_factory=dict)
    """What else was compared -> how often."""
    differences: tuple[Difference, ...] = ()
    unverified: dict[str, int] = Field(default_factory=dict)
    """Why something could not be compared -> of how many."""
    seconds: float = 0.0


@dataclass
class Told:
    """What the journal says of one playing of an episode."""

    started: ev.EpisodeStarted | None
    steps: list[int]
    """Hash of each step."""
    finished: ev.EpisodeFinished
    config: KrillConfig | None
    """In force when it ended."""


@dataclass
class Journalled:
    """A journal, sorted for comparison."""

    told: dict[str, list[Told]] = field(default_factory=dict)
    """Episode -> its playings; more than one where it broke and was played again."""
    numbers: list[tuple[ev.Event, KrillConfig | None, dict[str, int]]] = field(default_factory=list)
    """Events that say a number, the config in force, and how many playings of each episode had ended by then."""
    skills: dict[str, list[tuple[int, Skill | None]]] = field(default_factory=dict)
    """Skill -> (bank version, how it read from then on; None: it was taken out)."""
    run: str = ""
    ended: bool = False
    """The last thing it says is that the work ended: nothing was lost in between."""
    gaps: list[Difference] = field(default_factory=list)


@dataclass
class Stored:
    """One line of `trajectories.jsonl`."""

    trajectory: Trajectory
    line: int
    checked: Rechecked | None = None
    right: dict[str, Any] = field(default_factory=dict)
    """Fields that are known to be wrong in it -> what they should be."""

    @property
    def true(self) -> Trajectory:
        """As it should read, as far as that is known."""
        found = self.checked.trajectory if self.checked else self.trajectory
        return found.model_copy(update=self.right) if self.right else found


_NUMBERS = (ev.Validated, ev.Evaluated, ev.GrpoStepped, ev.Evolved, ev.PhaseFinished)


def verify_run(path: Path, places: Mapping[str, str] | None = None) -> Verification:
    """Compare a run's folder with what its own contents imply; `places` overrides fields of `env` that say where data lie.

    Takes seconds and blocks: in a front end it belongs into a thread.

    Raises:
        DataError: a file of the run cannot be read.
    """
    began = time.perf_counter()
    journal = _read_journal(path / "events.jsonl")
    stored = _read_trajectories(path / "trajectories.jsonl")
    said: list[Difference] = list(journal.gaps)
    unverified: Counter[str] = Counter()
    checks: Counter[str] = Counter()
    worlds = Worlds(path, places or {})
    plans = Plans(worlds.source)
    for id_, lines in stored.items():
        _check_lines(id_, lines, said)
        playings = journal.told.get(id_, [])
        for number, item in enumerate(lines):
            told = playings[number] if number < len(playings) else None
            said += _check_episode(item, told, journal, worlds, plans, checks, unverified)
    said += _check_presence(path, journal, stored, unverified)
    said += check_numbers(journal, stored, checks, unverified)
    said += check_bank(path / "skill_bank.json", journal, stored, checks, unverified)
    items = [item for lines in stored.values() for item in lines]
    return Verification(
        run=journal.run or path.name,
        episodes=len(items),
        verified=sum(item.checked is not None and item.checked.whole for item in items),
        steps=sum(item.checked.steps for item in items if item.checked),
        checks=dict(checks),
        differences=tuple(said),
        unverified=dict(unverified),
        seconds=round(time.perf_counter() - began, 3),
    )


def _read_journal(path: Path) -> Journalled:
    found = Journalled()
    config: KrillConfig | None = None
    live: dict[str, tuple[ev.EpisodeStarted, list[int]]] = {}
    ended: Counter[str] = Counter()
    seq = 0
    for event in read_journal(path):
        if event.seq != seq + 1:
            found.gaps.append(difference("events.jsonl", "seq", event.seq, seq + 1))
        seq = event.seq
        found.ended = isinstance(event, ev.RunFinished)
        if isinstance(event, ev.RunStarted):
            found.run, config = event.run, _config(event.config)
        elif isinstance(event, ev.EpisodeStarted):
            live[event.episode] = (event, [])
        elif isinstance(event, ev.EpisodeStepped):
            if event.episode in live:
                live[event.episode][1].append(hash(event.step))
        elif isinstance(event, ev.EpisodeFinished):
            started, steps = live.pop(event.episode, (None, []))
            found.told.setdefault(event.episode, []).append(Told(started, steps, event, config))
            ended[event.episode] += 1
        elif isinstance(event, (ev.SkillAdded, ev.SkillChanged)):
            found.skills.setdefault(event.skill.id, []).append((event.bank_version, event.skill))
        elif isinstance(event, ev.SkillRemoved):
            found.skills.setdefault(event.skill_id, []).append((event.bank_version, None))
        elif isinstance(event, _NUMBERS):
            found.numbers.append((event, config, dict(ended)))
    return found


def _config(data: dict[str, Any]) -> KrillConfig | None:
    """The config of a start; None where another version of Krill wrote it."""
    try:
        return KrillConfig.model_validate_json(json.dumps(merge({}, data)))
    except ValueError:
        return None


def _read_trajectories(path: Path) -> dict[str, list[Stored]]:
    found: dict[str, list[Stored]] = {}
    for line in whole_lines(path):
        trajectory = parsed(line, path, Trajectory.model_validate_json, "a trajectory")
        found.setdefault(trajectory.id, []).append(Stored(trajectory, line.number))
    return found


def _check_lines(id_: str, lines: list[Stored], said: list[Difference]) -> None:
    """An episode has one line; before it there may be some that broke."""
    whole = [item for item in lines if item.trajectory.stop_reason is not StopReason.ERROR]
    if len(whole) > 1:
        numbers = ", ".join(str(item.line) for item in whole)
        said.append(difference(id_, "trajectories.jsonl", f"{len(whole)} times (lines {numbers})", "once"))
        lines[:] = [item for item in lines if item not in whole[1:]]


def _check_episode(
    item: Stored,
    told: Told | None,
    journal: Journalled,
    worlds: Worlds,
    plans: Plans,
    checks: Counter[str],
    unverified: Counter[str],
) -> list[Difference]:
    """Play an episode again; then compare it with what the journal, the plan and the bank say."""
    trajectory = item.trajectory
    if not trajectory.purpose:
        unverified["imported episodes"] += 1
        return []
    if told is None or told.config is None:
        if told is not None:
            unverified["episodes under a config of another version"] += 1
        return []
    try:
        config = worlds.config_of(trajectory, told.config)
    except DataError:
        unverified["episodes of a panel that the run does not hold"] += 1
        return []
    skills = list(_check_skills(item, told, config, journal))
    trajectory = item.true
    said: list[Difference] = []
    pinned = worlds.pinned(trajectory)
    game = pinned[0] if pinned else plans.game_of(trajectory, config)
    played = told.started.task_id if told.started else trajectory.task_id
    if game is not None:
        checks["games by the plan"] += 1
    if wrong := next((id_ for id_ in (game, played) if id_ not in (None, trajectory.task_id)), None):
        said.append(difference(trajectory.id, "task_id", trajectory.task_id, wrong))
        item.right["task_id"] = played
    said += _replay(item, told, config, worlds, unverified)
    said += skills
    seed = pinned[1] if pinned else expected_seed(trajectory, config)
    if seed is not None:
        checks["seeds"] += 1
        if seed != trajectory.seed:
            said.append(difference(trajectory.id, "seed", trajectory.seed, seed))
            item.right["seed"] = seed
    said += check_prompt(trajectory, config, journal.skills, checks, unverified)
    checks["episodes beside the journal"] += 1
    seen = {(d.step, d.field) for d in said}
    beside = _check_journal(item, told)
    return said + [d for d in beside if (d.step, d.field.removesuffix(" beside events.jsonl")) not in seen]


def _check_skills(item: Stored, told: Told, config: KrillConfig, journal: Journalled) -> Iterator[Difference]:
    """The skills of the prompt: where the journal names others, and those make the prompt, it is right."""
    stored, start = item.trajectory, told.started
    if start is None or start.skills == stored.skills:
        return
    if prompt_of(stored, start.skills, config, journal.skills) == stored.system:
        item.right["skills"] = start.skills
        yield difference(stored.id, "skills", stored.skills, start.skills)


def _replay(
    item: Stored, told: Told, config: KrillConfig, worlds: Worlds, unverified: Counter[str]
) -> list[Difference]:
    trajectory = item.true
    if trajectory.stop_reason is StopReason.ERROR and not trajectory.steps:
        unverified["episodes that broke before their first step"] += 1
        return []
    try:
        source = worlds.source(config)
        env = source.open(_task_of(trajectory, source))
        item.checked = recheck(trajectory, env, told.started.max_steps if told.started else 0)
    except KrillError as error:
        unverified[f"episodes: {error.message}"] += 1
        return []
    if not item.checked.whole:
        unverified["ends of episodes that went another way"] += 1
    return item.checked.differences


def _task_of(trajectory: Trajectory, source: TaskSource) -> Task:
    """The game as the source lists it; one that it skips is still found by its name."""
    if isinstance(source, Pinnable):
        with contextlib.suppress(KrillError):
            return source.task(trajectory.task_id)
    return Task(
        id=trajectory.task_id,
        env=trajectory.env,
        split=trajectory.split,
        category=trajectory.category,
        ref=trajectory.task_id,
    )


def _check_journal(item: Stored, told: Told) -> Iterator[Difference]:
    """The same episode as the journal tells it: beside what the engine says where that is known, else beside what is stored."""
    stored, end, start = item.trajectory, told.finished, told.started
    known = item.checked is not None and item.checked.whole
    right = item.true
    facts: list[tuple[str, object, object]] = [
        ("category", end.category, right.category),
        ("success", end.success, right.success),
        ("stop_reason", end.stop_reason.value, right.stop_reason.value),
        ("steps", end.steps, len(right.steps)),
        ("total_reward", end.total_reward, right.total_reward),
        ("invalid_actions", end.invalid_actions, right.invalid_actions),
        ("cited", end.cited, right.cited),
        ("final_observation", end.final_observation, right.final_observation),
    ]
    if known or not item.checked:
        where = f"{stored.id} in events.jsonl"
        yield from (difference(where, name, one, other) for name, one, other in facts if one != other)
    said: list[tuple[str, object, object]] = [
        ("purpose", stored.purpose, end.purpose),
        ("error", stored.error, end.error),
    ]
    if start is not None:
        said += [
            ("task_id", stored.task_id, start.task_id),
            ("split", stored.split, start.split),
            ("policy", stored.policy, start.policy),
            ("skills", item.true.skills, start.skills),
            ("system", stored.system, start.system),
            ("group", stored.group, start.group),
        ]
    for name, one, other in said:
        if one != other:
            yield difference(stored.id, f"{name} beside events.jsonl", one, other)
    if start is None:
        return
    changed = {d.step for d in (item.checked.differences if item.checked else ()) if d.step is not None}
    for number, (step, told_hash) in enumerate(zip(stored.steps, told.steps, strict=False)):
        if hash(step) != told_hash and number not in changed:
            yield difference(stored.id, "step beside events.jsonl", "this", "another", number)


def _check_presence(
    path: Path, journal: Journalled, stored: Mapping[str, list[Stored]], unverified: Counter[str]
) -> Iterator[Difference]:
    """Whatever one of the two files tells of, the other must."""
    for id_, playings in journal.told.items():
        if len(stored.get(id_, ())) < len(playings):
            yield difference(id_, "trajectories.jsonl", "nothing", "the episode, which the journal tells of")
    untold = [
        id_
        for id_, lines in stored.items()
        if lines[0].trajectory.purpose and len(journal.told.get(id_, ())) < len(lines)
    ]
    if journal.ended and not has_writer(path):
        for id_ in untold:
            yield difference(id_, "events.jsonl", "nothing", "the end of the episode")
    elif untold:
        unverified["episodes that the journal will tell of when the run goes on"] += len(untold)
