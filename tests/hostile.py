"""A run in which every text that a model, a world or a file can write tries to be more than text."""

from __future__ import annotations

import enum
import json
import types
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from krill_tui.engine.report import write_report
from krill_tui.engine.state import RunState
from krill_tui.events import schema as ev
from krill_tui.events.journal import Journal
from krill_tui.trajectory import Trajectory

EVIL = (
    "\x1b]0;OWNED\x07\x1b[2J\x1b[31m\x1bPq\x9b5m\x1b]8;;http://evil\x1b\\ a\r\n\tb\x00\x08\x7f\x85"
    "\u2028c\u2029\u202edcba\u202c\u2066\u200b\ufeff\U000e0001\U000e0041\ue000 [bold]m[/] [@click=app.quit]q[/]"
    " <script>x</script> &amp; | ``` ![i](http://evil) é 🦐"
)
"""Titles, colours, sixels, links, cursor moves as one byte, line ends, bidi, invisible tags, markup of three kinds."""
EVENTS: Sequence[type[ev.BaseEvent]] = get_args(get_args(ev.Event)[0])
"""The class of each kind of event."""


def forbidden(text: str) -> set[str]:
    """The characters of `text` that must reach no terminal."""
    unsafe = ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    return {c for c in set(text) if c not in "\n\u200c\u200d" and unicodedata.category(c) in unsafe}


def filled(kind: Any, text: str = EVIL, number: float = 1) -> Any:
    """A value of a type in which every text is `text` and every number `number`, optional fields included."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is str or kind is Any:
        return text
    if origin is Literal:
        return arguments[-1]
    if kind in (int, float):
        return kind(number)
    if kind is bool:
        return True
    if origin in (Union, types.UnionType):
        return filled(next(one for one in arguments if one is not type(None)), text, number)
    if origin is not None and issubclass(origin, Mapping):
        return {text: filled(arguments[1], text, number)}
    if origin is not None and issubclass(origin, Sequence):
        return (filled(arguments[0], text, number),)
    if issubclass(kind, enum.Enum):
        return list(kind)[-1]
    if issubclass(kind, BaseModel):
        fields = {name: filled(field.annotation, text, number) for name, field in kind.model_fields.items()}
        return kind.model_validate(fields)
    raise TypeError(f"no value for {kind}")


def hostile_events(text: str = EVIL, number: float = 1) -> list[ev.BaseEvent]:
    """An event of each kind at least, in an order a run could have."""
    last = (ev.EpisodeFinished, ev.Evolved, ev.Validated, ev.RunFinished)
    events = [filled(kind, text, number) for kind in EVENTS if kind not in last]
    events[0] = events[0].model_copy(update={"config": {"env": {"name": text, "backend": text}, text: text}})
    evaluated = filled(ev.Evaluated, text, number)
    events += [evaluated.model_copy(update={"stage": stage}) for stage in ("base", "sft", "rl", "eval")]
    events += [filled(ev.Noted, text, number).model_copy(update={"level": "warning"})]
    validated = filled(ev.Validated, text, number)
    events += [validated, filled(ev.Evolved, text, number), validated.model_copy(update={"step": 10**9})]
    events += [filled(ev.EpisodeFinished, text, number), filled(ev.EpisodeStarted, text, number)]
    return [*events, filled(ev.RunFinished, text, number).model_copy(update={"outcome": "failed"})]


def write_hostile_run(folder: Path, text: str = EVIL, number: float = 1) -> RunState:
    """All files of such a run: config, journal, episodes, bank, report."""
    folder.mkdir(parents=True)
    state = RunState()
    journal = Journal(folder / "events.jsonl")
    for seq, event in enumerate(hostile_events(text, number), start=1):
        stamped = event.model_copy(update={"seq": seq, "time": 1_790_000_000.0 + seq})
        journal.append(stamped)
        state.apply(stamped)  # pyright: ignore[reportArgumentType]
    journal.close()
    config = {"env": {"name": text, "backend": text}, "preset": text, text: text}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    trajectory = filled(Trajectory, text, number).model_copy(update={"purpose": "collect"})
    (folder / "trajectories.jsonl").write_text(trajectory.model_dump_json() + "\n", encoding="utf-8")
    skill = {"principle": text, "title": text, "when_to_apply": text, "skill_id": text, "category": text}
    bank = {"general_skills": [skill], "task_specific_skills": {text: [skill]}, "common_mistakes": [skill]}
    (folder / "skill_bank.json").write_text(json.dumps(bank), encoding="utf-8")
    write_report(state, folder / "report.md")
    return state
