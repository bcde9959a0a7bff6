"""Two lines on top: which run this is and who acts and teaches in it; what goes on and how far it is."""

from __future__ import annotations

from collections.abc import Sequence

from textual.content import Content
from textual.widgets import Static

from krill_tui.engine.state import PhaseView
from krill_tui.io.text import one_line
from krill_tui.tui.bridge import Bridge
from krill_tui.tui.wording import (
    BAD,
    GOOD,
    KEY,
    MUTED,
    PHASE_NUMBERS,
    PHASE_TITLES,
    WARN,
    bar,
    duration,
    policy_words,
    setting,
    teacher_words,
)


def fitted(parts: Sequence[tuple[int, Content]], width: int, gap: str = "  ") -> Content:
    """The parts in their order, without those of the highest rank until the rest fits."""
    kept = list(parts)
    while len(kept) > 1 and sum(part.cell_length + len(gap) for _, part in kept) - len(gap) > width:
        kept.remove(max(kept, key=lambda ranked: ranked[0]))
    return Content(gap).join([part for _, part in kept])


class StatusBar(Static):
    DEFAULT_CSS = """
    StatusBar { height: 2; background: $panel; padding: 0 1; text-wrap: nowrap; text-overflow: ellipsis; }
    """

    def __init__(self) -> None:
        super().__init__("", markup=False)
        self._bridge: Bridge | None = None

    def draw(self, bridge: Bridge) -> None:
        self._bridge = bridge
        width = max(1, self.size.width)
        self.update(Content("\n").join([_identity(bridge, width), _progress(bridge, width)]), layout=False)

    def on_resize(self) -> None:
        if self._bridge:
            self.draw(self._bridge)


def _identity(bridge: Bridge, width: int) -> Content:
    state = bridge.state
    config = state.config
    parts = [(0, Content.assemble(("krill ", KEY), (one_line(state.run) or bridge.source.label, "bold")))]
    if config:
        world = f"{setting(config, 'env', 'name')}/{setting(config, 'env', 'backend')}"
        short = width < 130
        policy, teacher = (("policy ", MUTED), ("teacher ", MUTED)) if width >= 100 else ("", "")
        parts += [
            (3, Content(one_line(world))),
            (4, Content.assemble(("preset ", MUTED), one_line(str(setting(config, "preset") or "?")))),
            (1, Content.assemble(policy, policy_words(config, short=short))),
            (2, Content.assemble(teacher, teacher_words(config, short=width < 100))),
        ]
        if state.worker:
            million = state.worker.parameters / 1e6
            parts.append((5, Content.styled(f"{million:.2g} M on {one_line(state.worker.device)}", MUTED)))
    return fitted(parts, width, gap=" · " if width >= 60 else " ")


def _progress(bridge: Bridge, width: int) -> Content:
    parts = [(0, _standing(bridge))]
    phase = bridge.state.phase
    if phase:
        parts += _phase_parts(phase, width)
    if replay := bridge.replay:
        place = f"{replay.position}/{len(replay.events)}"
        parts.append((0, Content.assemble((f"×{replay.speed}", "$primary"), (f" event {place}", MUTED))))
    return fitted(parts, width)


def _standing(bridge: Bridge) -> Content:
    """What goes on, in a sign and a word."""
    state = bridge.state
    if replay := bridge.replay:
        return Content.styled("▸ replay" if replay.playing else "‖ replay", KEY)
    if state.paused and bridge.running:
        return Content.styled("‖ paused", f"bold {WARN}")
    if bridge.running:
        return Content.styled("● running", f"bold {GOOD}")
    outcomes = {
        "completed": ("✔ completed", GOOD),
        "cancelled": ("– cancelled", WARN),
        "failed": ("✖ failed", BAD),
    }
    return Content.styled(*outcomes.get(state.outcome, ("○ idle", MUTED)))


def _phase_parts(phase: PhaseView, width: int) -> list[tuple[int, Content]]:
    title = PHASE_TITLES[phase.phase]
    numbered = f"phase {PHASE_NUMBERS[phase.phase]}/4 {title}" if phase.phase in PHASE_NUMBERS else title
    parts = [(1, Content.styled(numbered, "bold"))]
    if phase.finished:
        parts.append((3, Content.styled(f"done in {duration(phase.seconds)}", MUTED)))
        parts.append((4, Content.styled(one_line(phase.summary), MUTED)))
        return parts
    parts.append((2, Content(f"{one_line(phase.unit, limit=12)} {phase.done}/{phase.total}")))
    cells = 24 if width >= 110 else 10
    parts.append((5, Content.styled(bar(phase.fraction, cells), "$primary on $surface")))
    left = phase.seconds_left
    if left is not None:
        parts.append((3, Content(f"{duration(left)} left")))
    if phase.detail:
        parts.append((6, Content.styled(one_line(phase.detail), MUTED)))
    return parts
