"""The command palette: every key of the screen in view, then skills and episodes by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import NamedTuple

from textual.command import DiscoveryHit, Hit, Hits, Provider
from textual.content import Content

from krill_tui.io.text import one_line
from krill_tui.tui import keys
from krill_tui.tui.screens.base import KrillScreen
from krill_tui.tui.screens.episode import EpisodeScreen
from krill_tui.tui.screens.skills import SkillsScreen

MOST_PLACES = 2000
"""Skills, and episodes, that are searched."""


class Command(NamedTuple):
    title: str
    help: str
    run: Callable[[], object]


class KrillCommands(Provider):
    """Titles quote what models wrote, so none of them is ever read as markup."""

    async def discover(self) -> Hits:
        for command in self._actions():
            yield DiscoveryHit(Content(command.title), command.run, command.title, command.help)

    async def search(self, query: str) -> Hits:
        matcher = self.matcher(query)
        for command in (*self._actions(), *self._places()):
            score, offsets = matcher.fuzzy_search.match(query, command.title)
            if score > 0:
                title = Content(command.title)
                for offset in offsets:
                    title = title.stylize(matcher.match_style, offset, offset + 1)
                yield Hit(score, title, command.run, command.title, command.help)

    def _actions(self) -> Iterator[Command]:
        screen = self.screen
        if not isinstance(screen, KrillScreen):
            return
        for key in keys.scoped(*screen.SCOPES):
            if key.label and key.action != "command_palette" and key.when in ("always", screen.when):
                namespace = self.app if key.scope == "app" else screen
                run = partial(self.app.run_action, key.action, namespace)
                yield Command(f"{key.label}  {key.shown}", key.help, run)

    def _places(self) -> Iterator[Command]:
        screen = self.screen
        if not isinstance(screen, KrillScreen):
            return
        state = screen.bridge.state
        for skill in list(state.skills.values())[:MOST_PLACES]:
            title = one_line(f"skill {skill.id} {skill.name}", limit=80)
            yield Command(title, "Open the skill", partial(self._open, SkillsScreen, skill.id))
        episodes = [*state.live.values(), *reversed(state.finished)]
        for view in episodes[:MOST_PLACES]:
            title = one_line(f"episode {view.number} {view.category} {view.task}", limit=80)
            yield Command(title, "Open the episode", partial(self._open, EpisodeScreen, view.id))

    def _open(self, kind: type[SkillsScreen] | type[EpisodeScreen], key: str) -> None:
        screen = self.screen
        if isinstance(screen, KrillScreen):
            self.app.push_screen(kind(screen.bridge, key))
