"""`krill doctor RUN --repair`: what the journal holds is restored; nothing that is damaged is deleted, only set aside."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import Path

from krill_tui.engine.checkup import Checkup, check_run, newest_whole, remade
from krill_tui.engine.recovery import bank_changes
from krill_tui.engine.report import write_report
from krill_tui.engine.run_store import RunStore
from krill_tui.errors import KrillError, StorageError
from krill_tui.events import schema as ev
from krill_tui.events.journal import Journal
from krill_tui.io.files import sync_folder, write_atomically
from krill_tui.io.jsonl import JsonLines, parsed, repair_tail, whole_lines
from krill_tui.models.remembering import parse_reply_line
from krill_tui.skills.bank import SkillBank

_FILES = (
    "trajectories.jsonl",
    "skill_bank.json",
    "config.json",
    "progress.json",
    "report.md",
    "teacher_replies.jsonl",
)


def repair_run(folder: Path) -> list[str]:
    """Mend what can be mended; returns what was done, a line each.

    Raises:
        RunLockedError: another process writes to the run.
        StorageError: the folder cannot be written.
    """
    store = RunStore.open(folder)
    try:
        done = _repair(folder)
    except OSError as error:
        raise StorageError(folder, error, action="repaired") from None
    finally:
        store.close()
    return done


def _repair(folder: Path) -> list[str]:
    checkup = check_run(folder)
    # Of two findings about a file the damage counts.
    files = {f.file: f for f in sorted(checkup.findings, key=lambda f: f.damaged)}
    done = [f"{f.file}: {f.problem}: {f.repair}" for f in checkup.findings if f.repair]
    notes: list[ev.BaseEvent] = []
    if checkup.broken_lines:
        aside = set_aside(folder / "events.jsonl")
        numbered = (event.model_copy(update={"seq": n}) for n, event in enumerate(checkup.events, start=1))
        lines = [event.model_dump_json().encode() for event in numbered]
        _write_lines(folder / "events.jsonl", lines, checked=True)
        notes.append(
            ev.Noted(
                level="warning", message=f"{checkup.broken_lines} lines were damaged; {aside.name} has them"
            )
        )
        checkup = check_run(folder)
    if not checkup.events:
        return []
    for name in _FILES:
        path = folder / name
        if path.is_dir() or (path.is_symlink() and not path.exists()):
            set_aside(path)
    if "config.json" in files:
        set_aside(folder / "config.json")
        write_atomically(folder / "config.json", json.dumps(checkup.state.config, indent=2) + "\n")
    if "skill_bank.json" in files:
        set_aside(folder / "skill_bank.json")
        if checkup.told.skills or checkup.told.cycle:
            SkillBank.restore(
                folder / "skill_bank.json", bank_changes(checkup.told.skills), checkup.told.cycle
            )
    if "trajectories.jsonl" in files and files["trajectories.jsonl"].damaged:
        notes += _restore_episodes(folder, checkup)
    for name in ("events.jsonl", "trajectories.jsonl", "teacher_replies.jsonl"):
        repair_tail(folder / name)
    notes += _restore_checkpoints(folder, checkup)
    for file in files:
        if file.startswith("tokens/"):
            if files[file].damaged:
                set_aside(folder / file)
            else:
                repair_tail(folder / file)
    if "teacher_replies.jsonl" in files and files["teacher_replies.jsonl"].damaged:
        _keep_whole_replies(folder / "teacher_replies.jsonl")
    if done:
        notes.append(ev.Noted(message=f"repaired: {'; '.join(done)}"))
        _append(folder, notes)
    if "report.md" in files or (done and checkup.state.outcome):
        write_report(checkup.state, folder / "report.md")
    return done


def set_aside(path: Path) -> Path:
    """Rename a file or folder to a name that nothing reads; returns the new path, which is the old one if nothing is there."""
    if not (path.exists() or path.is_symlink()):
        return path
    number = 1
    while True:
        aside = path.with_name(f"{path.name}.damaged{number if number > 1 else ''}")
        if not (aside.exists() or aside.is_symlink()):
            os.replace(path, aside)
            sync_folder(path.parent)
            return aside
        number += 1


def _restore_episodes(folder: Path, checkup: Checkup) -> list[ev.BaseEvent]:
    path = folder / "trajectories.jsonl"
    lines = [line.data for line in checkup.kept]
    inexact = 0
    for line, exact in remade(checkup):
        lines.append(line)
        inexact += not exact
    set_aside(path)
    _write_lines(path, lines)
    if not inexact:
        return []
    message = f"of {inexact} restored episodes the journal does not hold seeds, versions and token counts"
    return [ev.Noted(level="warning", message=message)]


def _restore_checkpoints(folder: Path, checkup: Checkup) -> list[ev.BaseEvent]:
    """Damaged ones aside; where the current one is, the newest whole one takes its place."""
    bad = [f.file for f in checkup.findings if f.file.startswith("checkpoints/") and f.damaged]
    for file in bad:
        set_aside(folder / file)
    expected = checkup.told.progress()
    said: list[ev.BaseEvent] = []
    back = newest_whole(checkup)
    if expected and f"checkpoints/{expected['checkpoint']}" in bad and back is not None:
        restored = back.model_copy(update={"restored": True, "seq": 0})
        checkup.told.apply(restored)
        expected = checkup.told.progress()
        said.append(restored)
    if said or any(f.file == "progress.json" for f in checkup.findings):
        set_aside(folder / "progress.json")
        if expected:
            write_atomically(folder / "progress.json", json.dumps(expected, indent=1) + "\n")
    return said


def _keep_whole_replies(path: Path) -> None:
    lines = []
    for line in whole_lines(path):
        try:
            parsed(line, path, parse_reply_line, "a teacher's reply")
        except KrillError:
            continue
        lines.append(line.data)
    set_aside(path)
    _write_lines(path, lines)


def _write_lines(path: Path, lines: Iterable[bytes], *, checked: bool = False) -> None:
    file = JsonLines(path, checked=checked)
    for line in lines:
        file.append(line)
    file.close()


def _append(folder: Path, events: Iterable[ev.BaseEvent]) -> None:
    """Add events to the journal as a run would."""
    from krill_tui.events.bus import EventBus

    journal = Journal(folder / "events.jsonl")
    try:
        bus = EventBus(journal)
        for event in events:
            bus.emit(event)
    finally:
        journal.close()
