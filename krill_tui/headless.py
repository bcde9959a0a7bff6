"""The plain front end: the same engine as the app's, shown as bars, lines, JSON lines or not at all."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from krill_tui.engine.report import result_rows
from krill_tui.engine.run_store import has_writer
from krill_tui.engine.state import LogLine, PhaseView, RunState
from krill_tui.errors import EXIT_CANCELLED, EXIT_FAILURE, KrillError
from krill_tui.events import schema as ev
from krill_tui.events.journal import AFTER_THE_END, JournalFollower
from krill_tui.io.streams import is_dumb, say
from krill_tui.io.text import ascii_json, one_line, plain, plain_line

if TYPE_CHECKING:
    from krill_tui.engine.session import Session

EXIT_CODES = {"completed": 0, "cancelled": EXIT_CANCELLED, "failed": EXIT_FAILURE}
"""By the outcome of a run."""

_SHOWN = frozenset({"note", "warning", "error", "evolved", "validated"})
_STYLES = {"warning": "yellow", "error": "red", "evolved": "cyan", "validated": "bold"}
_SAID_ELSEWHERE = (ev.CheckpointSaved, ev.Evaluated, ev.RunFinished)
"""Events whose line would repeat a phase's summary or the result."""
_NARROWEST, _LOWEST = 40, 10
"""Columns and lines that tables and bars are made for at least: a smaller terminal wraps them."""
_REDRAW_SECONDS = 0.1
_POLL_SECONDS = 0.25
_QUIET_SECONDS = 2.0
"""Without an event, after which it is looked whether anybody writes."""


class View(Protocol):
    """Shows events as they come. `RunState` has taken each event in before it is shown."""

    def show(self, event: ev.Event) -> None: ...

    def close(self) -> None: ...


class SilentView:
    def show(self, event: ev.Event) -> None:
        pass

    def close(self) -> None:
        pass


class JsonView:
    """Every event as one line of JSON."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def show(self, event: ev.Event) -> None:
        self._stream.write(ascii_json(event.model_dump_json()) + "\n")
        self._stream.flush()

    def close(self) -> None:
        pass


class LineView:
    """A line where a phase starts and ends and at every `every` percent of its way: for pipes and logs."""

    def __init__(self, console: Console, state: RunState, *, every: int = 10) -> None:
        self._console = console
        self._state = state
        self._every = every
        self._next = every

    def show(self, event: ev.Event) -> None:
        if isinstance(event, ev.PhaseStarted):
            self._next = self._every
            going_on = f", {event.done} done already" if event.done else ""
            self._print(f"{event.phase}: {event.title} ({event.total} {event.unit}{going_on})")
        elif isinstance(event, ev.PhaseProgressed):
            self._progress(self._state.phase)
        elif isinstance(event, ev.PhaseFinished):
            self._print(_finished(event))
        else:
            line = log_line(self._state, event)
            if line:
                self._print(line.text, line.kind)

    def close(self) -> None:
        pass

    def _progress(self, phase: PhaseView | None) -> None:
        percent = 100 * phase.done // phase.total if phase and phase.total else 0
        if phase is None or percent < self._next:
            return
        self._next = (percent // self._every + 1) * self._every
        left = f", {duration(phase.seconds_left)} left" if (phase.seconds_left or 0) >= 1 else ""
        detail = f": {phase.detail}" if phase.detail else ""
        self._print(f"{phase.phase} {phase.done}/{phase.total} ({percent}%{left}){detail}")

    def _print(self, text: str, kind: str = "") -> None:
        print_line(self._console, text, _STYLES.get(kind, ""))


class BarView:
    """A bar with the time left for each phase, for terminals; lines worth reading scroll above it."""

    def __init__(self, console: Console, state: RunState) -> None:
        self._console = console
        self._state = state
        self._progress = Progress(
            TextColumn("{task.description:9}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}", markup=False),
            TextColumn("{task.fields[detail]}", markup=False),
            console=console,
            auto_refresh=False,  # a thread of Rich's would print its own traceback when the terminal goes away
        )
        self._bar: TaskID | None = None
        self._drawn = 0.0
        self._progress.start()

    def show(self, event: ev.Event) -> None:
        if isinstance(event, ev.PhaseStarted):
            self._bar = self._progress.add_task(
                event.phase, total=event.total, completed=event.done, left="", detail=""
            )
        elif isinstance(event, ev.PhaseProgressed):
            self._update(self._state.phase)
        elif isinstance(event, ev.PhaseFinished):
            self._update(self._state.phase)
            print_line(self._progress.console, _finished(event))
        else:
            line = log_line(self._state, event)
            if line:
                print_line(self._progress.console, line.text, _STYLES.get(line.kind, ""))
        if time.monotonic() - self._drawn >= _REDRAW_SECONDS:
            self._progress.refresh()
            self._drawn = time.monotonic()

    def close(self) -> None:
        self._progress.stop()

    def _update(self, phase: PhaseView | None) -> None:
        if self._bar is None or phase is None:
            return
        left = duration(phase.seconds) if phase.finished else f"{duration(phase.seconds_left)} left"
        self._progress.update(
            self._bar,
            completed=phase.done,
            total=phase.total,
            left=left,
            detail=one_line(phase.detail, limit=60),
        )


def make_view(display: str, state: RunState, stream: TextIO | None = None) -> View:
    """The view for `--display`: `plain`, `json` or `none`; bars where `stream` is a terminal, else lines."""
    if display == "json":
        return JsonView(stream or sys.stdout)
    if display == "none":
        return SilentView()
    console = make_console(stream)
    return (
        LineView(console, state)
        if is_dumb(os.environ) or not console.is_terminal
        else BarView(console, state)
    )


class _Console(Console):
    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterator[Segment]:
        """The last gate: whatever is shown, only Rich's own styles and cursor moves reach the terminal."""
        for segment in super().render(renderable, options):
            text = segment.text
            if segment.control or text == "\n" or (text.isascii() and text.isprintable()):
                yield segment
            else:
                yield Segment(plain(text, limit=sys.maxsize), segment.style)

    def on_broken_pipe(self) -> None:
        """Rich would exit the process here."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def make_console(stream: TextIO | None = None) -> Console:
    """A console for text from anywhere: no markup, no highlighting, and never too narrow for a table."""
    console = _Console(file=stream or sys.stdout, highlight=False, markup=False, emoji=False)
    console.width = max(console.width, _NARROWEST)
    console.height = max(console.height, _LOWEST)
    return console


class Guarded:
    """A view that may fail: that is said once on standard error, and the run goes on without it."""

    def __init__(self, view: View) -> None:
        self._view = view
        self.error: BaseException | None = None

    def show(self, event: ev.Event) -> None:
        if self.error is None:
            self._try(lambda: self._view.show(event))

    def close(self) -> None:
        self._try(self._view.close)

    def _try(self, work: Callable[[], None]) -> None:
        try:
            work()
        except (KeyboardInterrupt, GeneratorExit, asyncio.CancelledError):
            raise
        except BaseException as error:  # what Rich or a stream raises, SystemExit included
            if self.error is None:
                self.error = error
                say(f"krill: {_failure_words(error)}; the run goes on without showing it")


def _failure_words(error: BaseException) -> str:
    if isinstance(error, BrokenPipeError):
        return "nobody reads the output any more"
    if isinstance(error, OSError):
        return f"the output cannot be written: {(error.strerror or str(error)).lower()}"
    return f"the display failed: {one_line(f'{type(error).__name__}: {error}')}"


async def run_session(session: Session, phases: Sequence[str], view: View, *, resume: bool = False) -> str:
    """Work through `phases`; returns `completed`, `cancelled` or `failed`. `resume` as in `Session.launch`.

    The first SIGINT or SIGTERM asks the engine to save and stop, a second one changes nothing. A `view` that may fail
    should be `Guarded`.
    """
    loop = asyncio.get_running_loop()
    stopping: asyncio.Task[None] | None = None

    def stop() -> None:
        nonlocal stopping
        if stopping is None:
            say("krill: stopping; what is finished is kept, the same --run goes on with it")
            stopping = loop.create_task(session.cancel())

    unsubscribe = session.bus.subscribe(view.show)
    for note in session.opening_notes:
        view.show(note)
    with _on_signals(loop, stop):
        try:
            session.launch(phases, resume=resume)
            outcome = await session.wait()
            if stopping is not None:
                await stopping
        finally:
            unsubscribe()
            view.close()
    return outcome


@contextlib.contextmanager
def _on_signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> Iterator[None]:
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in signals:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


async def follow(path: Path, state: RunState, view: View) -> None:
    """Show a run that another process writes, from its journal, until that says it has finished.

    Raises:
        KrillError: it has not finished, and no process works on it any more.
    """
    async for event in _journal_events(path):
        state.apply(event)
        view.show(event)


async def _journal_events(path: Path) -> AsyncIterator[ev.Event]:
    follower = JournalFollower(path)
    quiet = 0.0
    ended = False
    while True:
        events = await asyncio.to_thread(follower.read_new)
        quiet = 0.0 if events else quiet + _POLL_SECONDS
        for event in events:
            ended = event.kind == "run_finished" or (ended and event.kind in AFTER_THE_END)
            yield event
        if events and isinstance(events[-1], ev.RunFinished):
            return
        # An ended run that was opened once more and closed has ended all the same.
        if (ended and events) or quiet >= _QUIET_SECONDS:
            quiet = 0.0
            if not await asyncio.to_thread(has_writer, path.parent):
                if ended:
                    return
                raise KrillError(
                    f"run '{path.parent.name}' was broken off: no process works on it",
                    hint=f"krill train --run {path.parent.name} goes on with it",
                )
        await asyncio.sleep(_POLL_SECONDS)


def log_line(state: RunState, event: ev.Event) -> LogLine | None:
    """The line the state made of this event, where it is one to print."""
    if isinstance(event, _SAID_ELSEWHERE):
        return None
    # Mostly the newest; what was said while the run was opened is shown later.
    line = next((line for line in reversed(state.log) if line.event.seq <= event.seq), None)
    return line if line and line.event.seq == event.seq and line.kind in _SHOWN else None


def results_table(state: RunState) -> Table:
    """Success before and after each stage, with 95 % Wilson intervals."""
    table = Table("stage", "split", box=None, pad_edge=False)
    for heading in ("success", "95 % interval", "episodes", "steps of wins"):
        table.add_column(heading, justify="right")
    for title, evaluated in result_rows(state):
        steps = f"{evaluated.mean_steps:.1f}" if evaluated.mean_steps else "-"
        table.add_row(title, one_line(evaluated.split, limit=40), *rate_cells(evaluated.overall), steps)
    return table


def categories_table(evaluated: ev.Evaluated) -> Table:
    """One evaluation by category, with 95 % Wilson intervals."""
    table = Table("category", box=None, pad_edge=False)
    for heading in ("success", "95 % interval", "episodes"):
        table.add_column(heading, justify="right")
    for category, rate in evaluated.categories.items():
        table.add_row(Text(one_line(category, limit=40)), *rate_cells(rate))
    table.add_row("all", *rate_cells(evaluated.overall))
    return table


def print_line(console: Console, text: str, style: str = "") -> None:
    """One line of text that may come from anywhere: no markup, no control characters, no wrapping."""
    console.print(Text(plain_line(text), style=style), soft_wrap=True)


def duration(seconds: float | None) -> str:
    """`3m05s`, `12s`; `?` where it is unknown."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def _finished(event: ev.PhaseFinished) -> str:
    return f"{event.phase}: done in {duration(event.seconds)}: {event.summary}"


def rate_cells(rate: ev.Rate) -> tuple[str, str, str]:
    """Rate, interval and count as a table shows them, with how many broke."""
    lost = f", {rate.errors} broke" if rate.errors else ""
    if not rate.episodes:
        return "-", "-", f"0{lost}"
    return f"{rate.rate:.1%}", f"{rate.low:.1%} - {rate.high:.1%}", f"{rate.wins}/{rate.episodes}{lost}"
