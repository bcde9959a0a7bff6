"""What every screen of the app shares: it draws from the bridge, and says which keys it has."""

from __future__ import annotations

from typing import ClassVar

from textual.screen import Screen

from krill_tui.errors import KrillError
from krill_tui.tui import keys
from krill_tui.tui.bridge import Bridge
from krill_tui.tui.screens.sized import NewestSize
from krill_tui.tui.widgets.key_footer import KeyFooter
from krill_tui.tui.widgets.status_bar import StatusBar

WIDTHS = [(0, "-tiny"), (60, "-narrow"), (100, "-normal")]
HEIGHTS = [(0, "-short"), (16, "-medium")]
"""From so many columns, or lines, on a screen has this class."""
REPLAY_ACTIONS = frozenset({"seek", "seek_start", "seek_end", "speed"})


class KrillScreen(NewestSize, Screen[None]):
    """A full screen over a run."""

    SCOPES: ClassVar[tuple[keys.Scope, ...]] = ("screen", "app")
    """Scopes of its keys, its own first: what footer and help show."""
    BINDINGS = keys.bindings("screen")
    HORIZONTAL_BREAKPOINTS = WIDTHS
    VERTICAL_BREAKPOINTS = HEIGHTS

    def __init__(self, bridge: Bridge) -> None:
        super().__init__()
        self.bridge = bridge

    def draw_content(self) -> None:
        """Draw what is the screen's own."""

    def draw(self) -> None:
        """Take the newest state in."""
        if not self.is_mounted or not self.is_attached:  # not there yet, or being taken down
            return
        for bar in self.query(StatusBar):
            bar.draw(self.bridge)
        for footer in self.query(KeyFooter):
            footer.draw(self.when)
        self.draw_content()

    @property
    def when(self) -> keys.When:
        """What the footer should offer."""
        if self.bridge.replay:
            return "replay"
        return "running" if self.bridge.running else "idle"

    def on_screen_resume(self) -> None:
        self.draw()

    def say(self, message: str, *, severity: str = "information") -> None:
        """Show one line; it may quote what others wrote, so it is never markup."""
        self.notify(message, severity=severity, markup=False)  # pyright: ignore[reportArgumentType]

    def say_error(self, error: KrillError) -> None:
        self.say(str(error), severity="error")

    def action_back(self) -> None:
        self.dismiss()


class RunScreen(KrillScreen):
    """A screen on which a run is paused, stepped, cancelled or, in a replay, played."""

    BINDINGS = keys.bindings("run", "replay")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in REPLAY_ACTIONS:
            typing = self.focused is not None and self.focused.__class__.__name__ == "Input"
            return self.bridge.replay is not None and not typing
        return super().check_action(action, parameters)

    def action_pause(self) -> None:
        if replay := self.bridge.replay:
            replay.toggle()
        elif session := self.bridge.session:
            if session.running is None:
                self.say("nothing runs; t trains, c collects")
            elif self.bridge.state.paused:
                session.resume()
            else:
                session.pause()
        else:
            self.say("this run belongs to another process; it can only be watched here", severity="warning")
        self.draw()

    def action_step_once(self) -> None:
        if replay := self.bridge.replay:
            replay.move(1)
        elif session := self.bridge.session:
            if session.running is None:
                self.say("nothing runs; t trains, c collects")
                return
            if not self.bridge.state.paused:
                session.pause()
            session.step_once()
        self.draw()

    def action_cancel(self) -> None:
        from krill_tui.tui.screens.choice import ChoiceScreen

        session = self.bridge.session
        if session is None or session.running is None:
            self.say("nothing runs here")
            return
        self.app.push_screen(
            ChoiceScreen(
                f"Cancel {session.running}?",
                "What is finished is kept, and the phase can be resumed later.",
                {"cancel": ("y", "Cancel the phase"), "": ("n", "Let it run")},
            ),
            self._cancel,
        )

    async def _cancel(self, answer: str | None) -> None:
        session = self.bridge.session
        if answer and session:
            self.say("stopping after the calls in flight …")
            await session.cancel()

    def action_seek(self, events: int) -> None:
        if replay := self.bridge.replay:
            replay.move(events)
            self.draw()

    def action_seek_start(self) -> None:
        if replay := self.bridge.replay:
            replay.move(-len(replay.events))
            self.draw()

    def action_seek_end(self) -> None:
        if replay := self.bridge.replay:
            replay.move(len(replay.events))
            self.draw()

    def action_speed(self, steps: int) -> None:
        if replay := self.bridge.replay:
            replay.change_speed(steps)
            self.draw()
