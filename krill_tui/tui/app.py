"""The app: it joins a source of state to the screens, and holds no logic of its own."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from textual.app import App
from textual.driver import Driver
from textual.screen import Screen

from krill_tui.errors import KrillError
from krill_tui.io.streams import is_dumb
from krill_tui.tui import keys
from krill_tui.tui.bridge import REDRAW_SECONDS, Bridge, EmptySource, SessionSource, Source
from krill_tui.tui.palette import KrillCommands
from krill_tui.tui.screens.base import KrillScreen
from krill_tui.tui.screens.choice import ChoiceScreen
from krill_tui.tui.screens.dashboard import DashboardScreen
from krill_tui.tui.screens.help import HelpScreen
from krill_tui.tui.screens.runs import RunsScreen
from krill_tui.tui.screens.skills import SkillsScreen
from krill_tui.tui.screens.training import TrainingScreen
from krill_tui.tui.themes import DARK, LIGHT, THEMES

if TYPE_CHECKING:
    from krill_tui.engine.session import Session


_STOPPING = (signal.SIGTERM, signal.SIGHUP)
"""Signals that save and end the app: a kill, and a terminal that was closed."""


class KrillApp(App[None]):
    """Shows one run: the session's own, one that is watched, or a replay.

    Whoever opened the session closes it, after the app has gone.
    """

    TITLE = "krill"
    CSS_PATH = "krill.tcss"
    BINDINGS = keys.bindings("app")
    COMMANDS: ClassVar = {KrillCommands}

    def __init__(
        self, session: Session | None = None, *, source: Source | None = None, autostart: Sequence[str] = ()
    ) -> None:
        """`source` shows another run than the session's; `autostart` names phases to launch at once."""
        if is_dumb(os.environ):  # somebody asked for the app all the same; Rich would take it for 80x25
            os.environ["TERM"] = "xterm-256color"
        super().__init__()
        self.session = session
        self.autostart = autostart
        self._told_to_stop = False
        first = source or (SessionSource(session) if session else EmptySource())
        self.bridge = Bridge(first, self._problem)
        for theme in THEMES:
            self.register_theme(theme)
        self.theme = DARK.name

    def get_driver_class(self) -> type[Driver]:
        """Ours in place of Textual's own for a terminal; others, as for a browser, stay."""
        found = super().get_driver_class()
        if found.__name__ != "LinuxDriver":
            return found
        from krill_tui.tui.driver import TolerantDriver

        return TolerantDriver

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """The sheet's own variables, for themes that do not set them."""
        return {"muted": "#888888"}

    def get_default_screen(self) -> Screen[None]:
        return DashboardScreen(self.bridge)

    async def on_mount(self) -> None:
        self.bridge.start()
        self.set_interval(REDRAW_SECONDS, self.redraw)
        # Left to its default, a signal would end the process with the run unsaved and the terminal in our hands.
        for number in _STOPPING:
            asyncio.get_running_loop().add_signal_handler(number, self._on_stopping_signal)
        if self.session and self.autostart:
            self.launch(self.autostart)

    async def on_unmount(self) -> None:
        for number in _STOPPING:
            asyncio.get_running_loop().remove_signal_handler(number)
        await self.bridge.stop()

    def launch(self, phases: Sequence[str]) -> None:
        """Start phases of the session, and say how they ended."""
        if self.session is None:
            return
        try:
            self.session.launch(phases)
        except KrillError as error:
            self._problem(str(error))
            return
        self.bridge.touch()
        self.run_worker(self._report_outcome(self.session), group="outcome", exclusive=True)

    async def _report_outcome(self, session: Session) -> None:
        outcome = await session.wait()
        self.bridge.touch()
        if outcome == "failed":
            self._problem(str(session.error or "the phase failed"))
        else:
            self.notify(
                f"{'done' if outcome == 'completed' else outcome}: {session.store.name}", markup=False
            )

    def redraw(self) -> None:
        """Draw the screen in view if anything changed; others are drawn when they are shown."""
        if self.is_running and self.bridge.take_dirty():
            for screen in reversed(self.screen_stack):
                if isinstance(screen, KrillScreen):
                    screen.draw()
                    return

    def _problem(self, message: str) -> None:
        self.notify(message, severity="error", timeout=10, markup=False)

    def on_dashboard_screen_launched(self, event: DashboardScreen.Launched) -> None:
        self.launch(event.phases)

    async def on_runs_screen_opened(self, event: RunsScreen.Opened) -> None:
        """Look at another run, on the dashboard; the session's own is taken up live."""
        own = self.session is not None and event.name == self.session.store.name
        source = SessionSource(self.session) if own and self.session else event.source
        while len(self.screen_stack) > 1:
            await self.pop_screen()
        await self.bridge.switch(source)
        self.redraw()

    def action_help(self) -> None:
        if isinstance(self.screen, KrillScreen):
            self.push_screen(HelpScreen(self.screen.SCOPES))

    def action_show(self, name: str) -> None:
        """Open one of the app's screens over the dashboard."""
        kinds = {"skills": SkillsScreen, "training": TrainingScreen, "runs": RunsScreen}
        if isinstance(self.screen, KrillScreen) and not isinstance(self.screen, kinds[name]):
            if not isinstance(self.screen, DashboardScreen):
                self.screen.dismiss()
            self.push_screen(kinds[name](self.bridge))

    def action_toggle_theme(self) -> None:
        self.theme = LIGHT.name if self.theme == DARK.name else DARK.name
        self.bridge.touch()

    def action_leave(self) -> None:
        """Close the screen; on the dashboard, quit."""
        if isinstance(self.screen, KrillScreen) and not isinstance(self.screen, DashboardScreen):
            self.screen.dismiss()
        else:
            self._quit()

    async def action_quit(self) -> None:
        self._quit()

    def action_help_quit(self) -> None:
        self.notify("q quits; a run that is going on is never stopped without a question", markup=False)

    def _quit(self) -> None:
        running = self.session.running if self.session else None
        if running is None:
            self.exit()
            return
        if isinstance(self.screen, ChoiceScreen):
            return
        self.push_screen(
            ChoiceScreen(
                f"{running} is running",
                "Stopping saves a checkpoint; the same command goes on from there.",
                {"stop": ("s", "Stop and checkpoint"), "": ("y", "Stay")},
            ),
            self._stop_and_exit,
        )

    async def _stop_and_exit(self, answer: str | None) -> None:
        if answer:
            await self._stop()

    def _on_stopping_signal(self) -> None:
        """A second signal changes nothing."""
        if not self._told_to_stop:
            self._told_to_stop = True
            self.run_worker(self._stop(), group="stop")

    async def _stop(self) -> None:
        """Cancel what runs, then leave."""
        if self.session and self.session.running:
            self.notify("stopping and saving a checkpoint …", timeout=60)
            await self.session.cancel()
        self.exit()
