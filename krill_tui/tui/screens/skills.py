"""The skill bank: read it, search it, and change it by hand."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.widgets import Static

from krill_tui.engine.state import RunState
from krill_tui.errors import KrillError
from krill_tui.io.text import one_line, plain
from krill_tui.skill import GENERAL, Skill, SkillStatus
from krill_tui.trajectory import StopReason
from krill_tui.tui import keys
from krill_tui.tui.bridge import Bridge
from krill_tui.tui.screens.base import KrillScreen
from krill_tui.tui.screens.skill_form import SkillDraft, SkillForm
from krill_tui.tui.widgets.key_footer import KeyFooter
from krill_tui.tui.widgets.line_list import LineList
from krill_tui.tui.widgets.pane import Pane
from krill_tui.tui.widgets.skill_tree import SkillTree
from krill_tui.tui.widgets.status_bar import StatusBar
from krill_tui.tui.wording import GOOD, HEADING, KIND_WORDS, MUTED, STATUS_MARKS, WARN, bar

ONLY_HERE = "skills can be changed only in the app that works on the run"


class SkillsScreen(KrillScreen):
    """Changes are journalled with the author `hand`, and used from the next episode on."""

    SCOPES = ("skills", "screen", "app")
    BINDINGS = keys.bindings("skills")
    DEFAULT_CSS = """
    SkillsScreen {
        & #skills-body { height: 1fr; }
        & Pane { width: 2fr; }
        & #skill { width: 3fr; padding: 1 2; }
        &.-narrow #skills-body, &.-tiny #skills-body {
            layout: vertical;
            & Pane { width: 1fr; height: 1fr; }
            & #skill { width: 1fr; height: 1fr; padding: 0 2; }
        }
    }
    """

    def __init__(self, bridge: Bridge, skill: str = "") -> None:
        super().__init__(bridge)
        self._first = skill
        self.skill_tree = SkillTree()
        self._pane = Pane(self.skill_tree)
        self._text = Static(markup=False)

    def compose(self) -> ComposeResult:
        yield StatusBar()
        with Horizontal(id="skills-body"):
            yield self._pane
            with VerticalScroll(id="skill", can_focus=False):
                yield self._text
        yield KeyFooter(*self.SCOPES)

    def on_mount(self) -> None:
        pane = self._pane
        pane.draw(self.bridge.state)
        if not self._first or not pane.list.select(self._first):
            skill = next((row.key for row in pane.list.rows if isinstance(row.data, Skill)), "")
            pane.list.select(skill)
        pane.focus_list()

    @property
    def skill(self) -> Skill | None:
        """The one under the cursor."""
        row = self.skill_tree.cursor_row
        return row.data if row and isinstance(row.data, Skill) else None

    def draw_content(self) -> None:
        self._pane.draw(self.bridge.state)
        self._draw_skill()

    def on_line_list_moved(self, event: LineList.Moved) -> None:
        self._draw_skill()

    def on_line_list_picked(self, event: LineList.Picked) -> None:
        if not self.skill_tree.toggle(event.row, self.bridge.state):
            self.action_edit()

    def action_back(self) -> None:
        if not self._pane.clear_search():
            self.dismiss()

    def action_search(self) -> None:
        self._pane.open_search()

    def action_add(self) -> None:
        if self._session():
            tier = self.skill.tier if self.skill else GENERAL
            self.app.push_screen(SkillForm("Add a skill", SkillDraft(tier=tier), self._tiers()), self._add)

    def action_edit(self) -> None:
        if (skill := self.skill) and self._session():
            draft = SkillDraft(skill.name, skill.principle, skill.when_to_apply, skill.tier)
            title = f"Edit {one_line(skill.id)}"
            self.app.push_screen(SkillForm(title, draft, self._tiers()), lambda d: self._save(skill.id, d))

    def action_toggle_skill(self) -> None:
        if skill := self.skill:
            enable = skill.status is not SkillStatus.ACTIVE
            self._set_status(skill, SkillStatus.ACTIVE if enable else SkillStatus.DISABLED)

    def action_retire(self) -> None:
        if skill := self.skill:
            self._set_status(skill, SkillStatus.RETIRED)

    def action_undo(self) -> None:
        if session := self._session():
            try:
                said = session.undo_skill_change()
            except KrillError as error:
                self.say_error(error)
                return
            self.say(said or "nothing to undo")
            self.draw()

    def _session(self):
        session = self.bridge.session
        if session is None:
            self.say(ONLY_HERE, severity="warning")
        return session

    def _tiers(self) -> list[str]:
        state = self.bridge.state
        seen = {skill.tier for skill in state.skills.values()}
        seen |= {view.category for view in (*state.finished, *state.live.values()) if view.category}
        return [GENERAL, *sorted(seen - {GENERAL})]

    def _add(self, draft: SkillDraft | None) -> None:
        session = self.bridge.session
        if draft is None or session is None:
            return
        try:
            skill = session.add_skill(
                name=draft.name, principle=draft.principle, when_to_apply=draft.when_to_apply, tier=draft.tier
            )
        except KrillError as error:
            self.say_error(error)
            return
        self.draw()
        self.skill_tree.select(skill.id)
        self._draw_skill()
        self.say(f"{skill.id} added; u takes it back")

    def _save(self, skill_id: str, draft: SkillDraft | None) -> None:
        session = self.bridge.session
        if draft is None or session is None:
            return
        try:
            session.edit_skill(
                skill_id,
                name=draft.name,
                principle=draft.principle,
                when_to_apply=draft.when_to_apply,
                tier=draft.tier,
            )
        except KrillError as error:
            self.say_error(error)
            return
        self.draw()
        self.say(f"{skill_id} saved; u takes it back")

    def _set_status(self, skill: Skill, status: SkillStatus) -> None:
        if session := self._session():
            try:
                session.set_skill_status(skill.id, status)
            except KrillError as error:
                self.say_error(error)
                return
            self.draw()
            self.say(f"{skill.id} is {status.value}; u takes it back")

    def _draw_skill(self) -> None:
        row = self.skill_tree.cursor_row
        if row is None:
            text = Content.styled("Skills appear here once they are distilled; a adds one by hand.", MUTED)
        elif isinstance(row.data, Skill):
            text = skill_text(row.data, self.bridge.state)
        else:
            text = tier_text(row.data[0], self.bridge.state)
        self._text.update(text)


def skill_text(skill: Skill, state: RunState) -> Content:
    """All there is to know of a skill."""
    active = skill.status is SkillStatus.ACTIVE
    lines = [
        Content.styled(one_line(skill.name), "bold"),
        Content.assemble(
            (f"{STATUS_MARKS[skill.status]} {skill.status.value}", GOOD if active else WARN),
            (f"   {one_line(skill.id)} · {one_line(skill.tier)} · {KIND_WORDS[skill.kind]}", MUTED),
        ),
        Content(""),
        Content(plain(skill.principle).strip()),
        Content(""),
        Content.styled("When to apply", HEADING),
        Content(plain(skill.when_to_apply).strip() or "always"),
        Content(""),
        Content.styled("Record", HEADING),
        *_record(skill, state),
        Content(""),
        Content.styled("Origin", HEADING),
        *_origin(skill),
    ]
    return Content("\n").join(lines)


def tier_text(tier: str, state: RunState) -> Content:
    """The skills of a tier in short."""
    parts = [Content.styled(one_line(tier), "bold")]
    for skill in state.skills.values():
        if skill.tier == tier:
            active = skill.status is SkillStatus.ACTIVE
            head = f"{STATUS_MARKS[skill.status]} {one_line(skill.id)} {one_line(skill.name)}"
            parts.append(
                Content.assemble(
                    (head, HEADING if active else MUTED),
                    "\n",
                    (one_line(skill.principle), "" if active else MUTED),
                )
            )
    return Content("\n\n").join(parts)


def _record(skill: Skill, state: RunState) -> list[Content]:
    ended = [view for view in state.finished if skill.id in view.skills and view.finished]
    kept = [view for view in ended if view.finished and view.finished.stop_reason is not StopReason.ERROR]
    wins = sum(bool(view.success) for view in kept)
    quoted = sum(skill.id in view.finished.cited for view in kept if view.finished)
    if not kept:
        return [Content.styled("in no prompt among the episodes kept in view", MUTED)]
    return [
        Content.assemble(
            (bar(wins / len(kept), 16), f"{GOOD} on $panel"),
            f"  won {wins} of {len(kept)} episodes with it in the prompt",
        ),
        Content.styled(
            f"cited in {quoted} of them; these are the last {len(state.finished)} episodes", MUTED
        ),
    ]


def _origin(skill: Skill) -> list[Content]:
    origin = skill.origin
    cycle = f", cycle {origin.cycle}" if origin.cycle else ""
    lines = [
        Content(
            f"{one_line(origin.phase)}{cycle}, by {one_line(origin.author) or 'unknown'}, version {skill.version}"
        )
    ]
    if origin.trajectories:
        shown = ", ".join(map(one_line, origin.trajectories[:6]))
        more = f" and {len(origin.trajectories) - 6} more" if len(origin.trajectories) > 6 else ""
        lines.append(Content.styled(f"from {shown}{more}", MUTED))
    return lines
