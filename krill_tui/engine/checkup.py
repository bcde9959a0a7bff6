"""`krill doctor RUN`: every file of a run directory read and compared with the journal; nothing is changed here."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from krill_tui.config.identity import differences, fixed_fields, listed
from krill_tui.engine.episodes import line_digest
from krill_tui.engine.recovery import Told, bank_problem, episodes_of, progress_problem
from krill_tui.engine.run_store import has_writer, stored_config
from krill_tui.engine.state import RunState
from krill_tui.engine.tokens import parse_tokens
from krill_tui.errors import DataError, KrillError
from krill_tui.events import schema as ev
from krill_tui.events.schema import event_adapter
from krill_tui.io.checksums import damage
from krill_tui.io.jsonl import Line, has_checksum, parsed, whole_lines
from krill_tui.models.remembering import parse_reply_line
from krill_tui.skills.bank import SkillBank
from krill_tui.trajectory import StopReason, Trajectory

UNFINISHED = (".tmp", ".copy", ".partial", ".old")


class Finding(NamedTuple):
    """One thing that is not as it should be."""

    file: str
    """Below the run's folder."""
    problem: str
    repair: str = ""
    """What `--repair` does about it; empty where nothing can be done."""
    damaged: bool = True
    """False: left over from a kill, and harmless."""


@dataclass
class Checkup:
    """What was found in a run directory."""

    folder: Path
    findings: list[Finding] = field(default_factory=list)
    told: Told = field(default_factory=Told)
    state: RunState = field(default_factory=RunState)
    events: list[ev.Event] = field(default_factory=list)
    """Those of the whole lines that are events."""
    broken_lines: int = 0
    """Of the journal."""
    kept: list[Line] = field(default_factory=list)
    """Lines of the episodes that are what the journal says, or that it says nothing of."""
    lost: set[str] = field(default_factory=set)
    """Episodes that were finished and are not in `kept`."""
    whole: list[str] = field(default_factory=list)
    """Checkpoints that are as they were written."""
    writer: bool = False

    @property
    def damaged(self) -> list[Finding]:
        return [finding for finding in self.findings if finding.damaged]

    def add(self, file: str, problem: str, repair: str = "", *, damaged: bool = True) -> None:
        prefix = f"{self.folder / file}: "
        self.findings.append(Finding(file, problem.removeprefix(prefix), repair, damaged))


def check_run(folder: Path) -> Checkup:
    """Read everything in a run's folder. Whatever is in there, this only tells; it raises nothing."""
    checkup = Checkup(folder, writer=has_writer(folder))
    parts: list[tuple[str, Callable[[Checkup], None]]] = [
        ("events.jsonl", _check_journal),
        ("config.json", _check_config),
        ("skill_bank.json", _check_bank),
        ("trajectories.jsonl", _check_episodes),
        ("progress.json", _check_progress),
        ("checkpoints", _check_checkpoints),
        ("tokens", _check_tokens),
        ("teacher_replies.jsonl", _check_replies),
        ("report.md", _check_report),
        (".", _check_leftovers),
    ]
    for file, check in parts:
        try:
            check(checkup)
        except KrillError as error:
            checkup.add(file, error.message)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            checkup.add(
                file,
                f"cannot be read: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}",
            )
    return checkup


def facts_of(checkup: Checkup) -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "run": checkup.folder.name,
        "folder": str(checkup.folder),
        "written by another process": checkup.writer,
        "events": len(checkup.events),
        "episodes": len(checkup.kept),
        "skills": len(checkup.state.skills),
        "whole checkpoints": checkup.whole,
        "current checkpoint": checkup.told.progress().get("checkpoint"),
        "damaged": [finding._asdict() for finding in checkup.damaged],
        "left over": [finding._asdict() for finding in checkup.findings if not finding.damaged],
    }


def _check_journal(checkup: Checkup) -> None:
    path = checkup.folder / "events.jsonl"
    if not path.is_file():
        checkup.add("events.jsonl", "is missing")
        return
    first = ""
    seq, after_broken = 0, False
    for line in whole_lines(path):
        try:
            event = parsed(line, path, event_adapter.validate_json, "an event")
        except DataError as error:
            checkup.broken_lines += 1
            first = first or error.message
            after_broken = True
            continue
        # Numbers that a broken line took with it are no further fault; events that are gone without a line are.
        if event.seq not in (0, seq + 1) and has_checksum(line.data) and not after_broken:
            checkup.broken_lines += 1
            first = first or f"before line {line.number} events are missing"
        seq, after_broken = event.seq or seq, False
        checkup.events.append(event)
        checkup.state.apply(event)
        checkup.told.apply(event)
    if checkup.broken_lines:
        more = f", and {checkup.broken_lines - 1} more" if checkup.broken_lines > 1 else ""
        checkup.add(
            "events.jsonl",
            first + more,
            "the other lines are kept; what they lack is said again where it can be",
        )
    elif not checkup.events:
        checkup.add("events.jsonl", "is empty")
    _torn_tail(checkup, "events.jsonl")


def _torn_tail(checkup: Checkup, file: str) -> None:
    path = checkup.folder / file
    size = path.stat().st_size
    end = sum(len(line.data) + 1 for line in whole_lines(path))
    if size > end:
        checkup.add(
            file, f"{size - end} bytes of a last line that was never finished", "cut off", damaged=False
        )


def _check_config(checkup: Checkup) -> None:
    if not checkup.events:
        return
    stored, problem = stored_config(checkup.folder)
    told = checkup.state.config
    if problem:
        checkup.add("config.json", problem.partition(": going on")[0], "written again from the journal")
    elif stored is not None and (found := differences(told, stored, fixed_fields())):
        checkup.add(
            "config.json", f"is not what the journal says: {listed(found)}", "written again from the journal"
        )


def _check_bank(checkup: Checkup) -> None:
    path = checkup.folder / "skill_bank.json"
    repair = "made again from the journal" if checkup.told.skills else "begun again"
    if not path.is_file() or path.stat().st_size == 0:
        if checkup.told.skills or checkup.told.cycle or path.is_dir():
            checkup.add("skill_bank.json", "is missing or empty", repair)
        return
    try:
        with closing(SkillBank.open(path)) as bank:
            problem = bank_problem(bank, checkup.told)
    except KrillError as error:
        problem = error.message
    if problem:
        checkup.add("skill_bank.json", problem, repair)


def _check_episodes(checkup: Checkup) -> None:
    file = "trajectories.jsonl"
    path = checkup.folder / file
    found: set[str] = set()
    bad: list[str] = []
    try:
        lines = list(whole_lines(path))
    except DataError as error:
        lines = []
        bad.append(error.message)
    for line in lines:
        try:
            trajectory = parsed(line, path, Trajectory.model_validate_json, "a trajectory")
        except DataError as error:
            bad.append(error.message)
            continue
        said = checkup.told.digests.get(trajectory.id)
        if said and line_digest(line.data) not in said:
            bad.append(f"line {line.number}: episode {trajectory.id} is not what the journal says of it")
            continue
        checkup.kept.append(line)
        if trajectory.stop_reason is not StopReason.ERROR:
            found.add(trajectory.id)
    checkup.lost = checkup.told.ended.keys() - found
    lost = f"{len(checkup.lost)} finished episodes are missing" if checkup.lost else ""
    problem = "; ".join(
        filter(None, [*bad[:1], f"{len(bad) - 1} more bad lines" if len(bad) > 1 else "", lost])
    )
    if problem:
        repair = (
            "written again with what the journal says" if bad or any(True for _ in remade(checkup)) else ""
        )
        checkup.add(file, problem, repair)
    if path.is_file():
        _torn_tail(checkup, file)


def remade(checkup: Checkup) -> Iterator[tuple[bytes, bool]]:
    """Lines of the lost episodes that the journal holds whole, and whether it says that they are exactly those."""
    for trajectory, finished in episodes_of(iter(checkup.events), checkup.lost):
        line = trajectory.model_dump_json().encode()
        if finished.digest in ("", line_digest(line)):
            yield line, bool(finished.digest)


def _check_progress(checkup: Checkup) -> None:
    if problem := progress_problem(checkup.folder, checkup.told):
        checkup.add("progress.json", problem, "written again from the journal")


def _check_checkpoints(checkup: Checkup) -> None:
    folder = checkup.folder / "checkpoints"
    problems: dict[str, str] = {}
    if folder.is_dir():
        for path in sorted(folder.iterdir()):
            if path.name.startswith(".") or ".damaged" in path.name:
                continue
            found = damage(path) if path.is_dir() else [f"{path}: is no folder"]
            if found:
                problems[path.name] = found[0]
            else:
                checkup.whole.append(path.name)
    current = checkup.told.progress().get("checkpoint")
    if current and current not in checkup.whole and current not in problems:
        problems[current] = f"{folder / current}: is missing"
    back = newest_whole(checkup)
    for name, problem in problems.items():
        text = problem.removeprefix(f"{folder / name}").lstrip("/: ")
        if name != current:
            repair = "set aside"
        elif back:
            repair = (
                f"set aside; {back.phase}-{back.step} becomes current, and what came after it is done again"
            )
        else:
            repair = ""
        checkup.add(f"checkpoints/{name}", text, repair)


def newest_whole(checkup: Checkup) -> ev.CheckpointSaved | None:
    """The newest checkpoint, in the order they were saved, that is as it was written."""
    saved = [s for s in checkup.told.checkpoints if f"{s.phase}-{s.step}" in checkup.whole]
    return saved[-1] if saved else None


def _check_tokens(checkup: Checkup) -> None:
    folder = checkup.folder / "tokens"
    for path in sorted(folder.glob("*.jsonl")) if folder.is_dir() else []:
        file = f"tokens/{path.name}"
        _check_lines(
            checkup,
            file,
            lambda line: parse_tokens(line),
            "the tokens of an episode",
            "set aside; they are sampled again",
        )
        with suppress(OSError):
            _torn_tail(checkup, file)


def _check_replies(checkup: Checkup) -> None:
    if (checkup.folder / "teacher_replies.jsonl").exists():
        repair = "the other lines are kept; what is missing is asked again"
        _check_lines(checkup, "teacher_replies.jsonl", parse_reply_line, "a teacher's reply", repair)
        _torn_tail(checkup, "teacher_replies.jsonl")


def _check_lines(checkup: Checkup, file: str, parse: Callable[[bytes], Any], what: str, repair: str) -> None:
    path = checkup.folder / file
    try:
        for line in whole_lines(path):
            parsed(line, path, parse, what)
    except DataError as error:
        checkup.add(file, error.message, repair)


def _check_report(checkup: Checkup) -> None:
    if checkup.state.outcome and not (checkup.folder / "report.md").is_file():
        checkup.add("report.md", "is missing", "written again from the journal")


def _check_leftovers(checkup: Checkup) -> None:
    if checkup.writer:
        return
    for folder in (checkup.folder, checkup.folder / "checkpoints", checkup.folder / "adapters"):
        for path in sorted(folder.glob(".*")) if folder.is_dir() else []:
            if path.name.endswith(UNFINISHED):
                file = path.relative_to(checkup.folder).as_posix()
                checkup.add(
                    file, "was left half written by a process that was killed", "removed", damaged=False
                )
