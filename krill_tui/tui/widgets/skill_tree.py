"""The skill bank as a tree of two levels: general skills first, then one tier per category."""

from __future__ import annotations

from textual.content import Content

from krill_tui.engine.state import RunState
from krill_tui.io.text import one_line
from krill_tui.skill import GENERAL, Skill, SkillStatus
from krill_tui.skills.tiers import categories_of, reach
from krill_tui.tui.widgets.line_list import Row
from krill_tui.tui.widgets.pane import SearchableList
from krill_tui.tui.wording import GOOD, KEY, MUTED, STATUS_MARKS, WARN

TIER = "tier:"


class SkillTree(SearchableList):
    noun = "skills"
    one = "skill"

    def __init__(self, *, id: str | None = None) -> None:
        super().__init__(id=id)
        self._shut: set[str] = set()
        self._searched: dict[str, tuple[Skill, str]] = {}
        self.empty = Content.assemble(
            "No skills yet.\n\n",
            ("d", KEY),
            (" distills them from collected episodes. ", MUTED),
            ("F2", KEY),
            (" opens the skills screen, where ", MUTED),
            ("a", KEY),
            (" adds one by hand.", MUTED),
        )

    def title(self, state: RunState) -> Content:
        active = sum(skill.status is SkillStatus.ACTIVE for skill in state.skills.values())
        rest = len(state.skills) - active
        words = f" {active} active" + (f" · {rest} off" if rest else "") if state.skills else ""
        return Content.assemble("Skills", (words, MUTED))

    def stamp(self, state: RunState) -> object:
        return id(state), state.bank_version, len(state.skills), frozenset(self._shut)

    def make_rows(self, state: RunState) -> list[Row]:
        tiers: dict[str, list[Skill]] = {}
        for skill in state.skills.values():
            if not self.query_text or self.matches(self._words(skill)):
                tiers.setdefault(skill.tier, []).append(skill)
        rows: list[Row] = []
        for tier in sorted(tiers, key=lambda name: (name != GENERAL, name)):
            shut = tier in self._shut and not self.query_text
            rows.append(
                Row(TIER + tier, (tier, len(tiers[tier]), shut, _is_unreached(tiers[tier][0], state)))
            )
            if not shut:
                rows += [Row(skill.id, skill) for skill in tiers[tier]]
        return rows

    def _words(self, skill: Skill) -> str:
        """What a search looks in; made once a skill, for a bank may hold 100,000."""
        known = self._searched.get(skill.id)
        if known is None or known[0] is not skill:
            words = f"{skill.id}\n{skill.name}\n{skill.principle}\n{skill.tier}".casefold()
            known = self._searched[skill.id] = (skill, words)
        return known[1]

    def first_hit(self) -> str | None:
        return next((row.key for row in self.rows if isinstance(row.data, Skill)), None)

    def line(self, row: Row, width: int) -> Content:
        if not isinstance(row.data, Skill):
            tier, count, shut, unreached = row.data
            return Content.assemble(
                ("▸ " if shut else "▾ "),
                (one_line(tier), "bold"),
                (f" {count}", MUTED),
                (" no task has it" if unreached else "", WARN),
            )
        skill = row.data
        active = skill.status is SkillStatus.ACTIVE
        head = Content.assemble(
            "  ",
            (STATUS_MARKS[skill.status], GOOD if active else MUTED),
            (f" {one_line(skill.id, limit=20)} ", "$secondary" if active else MUTED),
            (one_line(skill.name), "" if active else f"{MUTED} strike"),
        )
        played = skill.stats.wins + skill.stats.losses
        if not played or width < 44:
            return head
        record = f" {skill.stats.wins}/{played} won"
        return head.truncate(width - len(record), ellipsis=True, pad=True) + Content.styled(record, MUTED)

    def toggle(self, row: Row, state: RunState) -> bool:
        """Open or close a tier; False when the row is a skill."""
        if not row.key.startswith(TIER):
            return False
        self._shut ^= {row.key.removeprefix(TIER)}
        self.draw(state)
        return True


def _is_unreached(skill: Skill, state: RunState) -> bool:
    """Whether no task of the run's world can have this tier; a server may have categories that nobody knows."""
    world = state.config.get("env")
    if not isinstance(world, dict) or world.get("backend") == "http" or world.get("webshop_data"):
        return False
    env = str(world.get("name", ""))
    in_use = skill.model_copy(update={"status": SkillStatus.ACTIVE})
    return bool(env) and bool(reach([in_use], env, categories_of(env)).never)
