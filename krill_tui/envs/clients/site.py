"""The unmodified WebShop site, played as a browser would: pages are opened, forms are sent.

The site makes a session for any name; one that holds `fixed` and ends in `_<number>` gets the goal of that number.
A page that does not understand an action stays as it is.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import replace

from krill_tui.envs.base import StepResult
from krill_tui.envs.clients.calls import ServerCalls
from krill_tui.envs.clients.common import RemoteEnvironment, described
from krill_tui.envs.clients.site_pages import SEARCH_FIELD, SitePage, read_site_page
from krill_tui.envs.webshop.pages import BUY_NOW, SEARCH, action_list
from krill_tui.envs.webshop.session import parse_action
from krill_tui.errors import EnvironmentFailure
from krill_tui.trajectory import Task

_LONG_PAGE = 256 * 1024
"""Characters; genuine pages have a tenth of it."""


class SiteEnvironment(RemoteEnvironment):
    """One visit to the shop."""

    def __init__(self, task: Task, calls: ServerCalls) -> None:
        super().__init__(task, calls)
        self._page = SitePage()
        self._address = ""
        self._index = ""

    async def _begin(self) -> StepResult:
        self._index = f"{self._calls.url}/krill{uuid.uuid4().hex}fixed_{int(self.task.ref)}"
        with self._asking_for_game():
            await self._open(self._index)
        if self._page.search_form is None:
            raise EnvironmentFailure(
                f"{self._calls.url}: the first page is not WebShop's: it has no search bar"
            )
        result = self._result()
        self.task = described(self.task, result.observation)
        return result

    async def _go_on(self, action: str, last: StepResult) -> StepResult:
        name, argument = parse_action(action)
        if name == "search":
            await self._open(self._index, {SEARCH_FIELD: argument})
            return self._result()
        target = self._page.clickables.get(argument)
        if name != "click" or argument == SEARCH.lower() or target is None:
            return replace(last, reward=0.0)
        bought = argument == BUY_NOW.lower() and target.by_form
        await self._open(target.address, {} if target.by_form else None)
        return self._bought() if bought else self._result()

    async def _open(self, address: str, form: dict[str, str] | None = None) -> None:
        base = self._address or self._calls.url
        self._address, html = await self._calls.page(address, base=base, form=form)
        # A hostile page may be long: its reading must not hold up the other episodes.
        long = len(html) > _LONG_PAGE
        self._page = await asyncio.to_thread(read_site_page, html) if long else read_site_page(html)

    def _result(self) -> StepResult:
        has_search_bar = self._page.search_form is not None
        return StepResult(self._page.observation, action_list(self._page.clickables, has_search_bar))

    def _bought(self) -> StepResult:
        score = self._page.score
        if score is None:
            raise EnvironmentFailure(f"{self._calls.url}: the receipt shows no score")
        return replace(self._result(), reward=score, done=True, won=score == 1.0)
