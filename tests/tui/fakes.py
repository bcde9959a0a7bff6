"""A session without an engine: it remembers what it was told, and says on its bus what a real one would."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from krill_tui.engine.state import RunState
from krill_tui.errors import UsageError
from krill_tui.events import schema as ev
from krill_tui.skill import Skill, SkillStatus
from tests.tui.journals import Script


class FakeSession:
    """The part of `engine.session.Session` that the app uses."""

    def __init__(self, script: Script, running: str | None = None) -> None:
        self.script = script
        self.bus = script.bus
        self.state = RunState()
        for event in script.events:
            self.state.apply(event)
        self.bus.subscribe(self.state.apply)
        self.store = SimpleNamespace(name="swift-otter")
        self.running = running
        self.error: Exception | None = None
        self.said: list[str] = []
        self.ended = asyncio.Event()
        self._undo: list[Skill] = []

    def launch(self, phases: Sequence[str]) -> None:
        if self.running:
            raise UsageError(f"'{self.running}' is running", hint="cancel it first, or wait")
        self.said.append(f"launch {' '.join(phases)}")
        self.running = phases[0]
        self.script.phase("collect", "Collect", 4, "episodes")

    async def wait(self) -> str:
        await self.ended.wait()
        return self.state.outcome

    def end(self, outcome: str, message: str = "") -> None:
        """The launched phases are over."""
        self.running = None
        self.script.emit(ev.RunFinished.model_validate({"outcome": outcome, "message": message}))
        self.ended.set()

    def pause(self) -> None:
        self.script.emit(ev.ControlChanged(action="paused"))

    def resume(self) -> None:
        self.script.emit(ev.ControlChanged(action="resumed"))

    def step_once(self) -> None:
        self.script.emit(ev.ControlChanged(action="stepped"))
        self.said.append("step")

    async def cancel(self) -> None:
        self.said.append("cancel")
        self.end("cancelled")

    def add_skill(self, **fields: Any) -> Skill:
        skill = Skill(id="gen_099", **fields)
        self.script.emit(ev.SkillAdded(skill=skill, author="hand", bank_version=self.state.bank_version + 1))
        return skill

    def edit_skill(self, skill_id: str, **fields: Any) -> Skill:
        return self._change(skill_id, fields, "edited")

    def set_skill_status(self, skill_id: str, status: SkillStatus) -> Skill:
        return self._change(skill_id, {"status": status}, status.value)

    def undo_skill_change(self) -> str | None:
        if not self._undo:
            return None
        before = self._undo.pop()
        version = self.state.bank_version + 1
        self.script.emit(ev.SkillChanged(skill=before, change="undone", author="hand", bank_version=version))
        return f"undone: last change of {before.id}"

    def _change(self, skill_id: str, fields: dict[str, Any], change: str) -> Skill:
        before = self.state.skills[skill_id]
        self._undo.append(before)
        skill = before.model_copy(update={**fields, "version": before.version + 1})
        version = self.state.bank_version + 1
        self.script.emit(ev.SkillChanged(skill=skill, change=change, author="hand", bank_version=version))
        return skill
