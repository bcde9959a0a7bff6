"""A shopper that plays from the pages' text alone, and says why in a few words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from krill_tui.envs.base import StepResult
from krill_tui.envs.webshop.reading import Listing, PageView, Wish, coverage, read_page, read_wish

_CHANGE = 4
"""Steps to leave a product for another and read its features: back, open, features, back."""
_RETURN = 2
"""Steps from a product to another: back, open."""


@dataclass(slots=True)
class _Candidate:
    """A product, and what is known of it."""

    listing: Listing
    said: str
    """All that was read about it."""
    options: Mapping[str, Sequence[str]] | None = None
    """Not known before its page was opened."""
    read: set[str] = field(default_factory=set)
    """Sub pages that were read."""
    chosen: dict[str, str] = field(default_factory=dict)


class WebshopExpert:
    """Searches for what is asked, opens the most promising product, reads until it knows, then buys or goes on.

    It sees observations and available actions only, and buys the best product it saw before its steps end.
    """

    def __init__(self, max_steps: int = 15) -> None:
        self._steps_left = max_steps
        self.last_hint: str | None = None
        """Always None: hints name places of a household."""
        self._wish: Wish | None = None
        self._queries: list[str] = []
        self._candidates: dict[str, _Candidate] = {}
        self._current: _Candidate | None = None
        self._reading = ""
        """The sub page that was opened last."""

    def act(self, result: StepResult) -> tuple[str, str]:
        """(thought, action) for the newest observation; called once per step, in order."""
        names = [action[6:-1] for action in result.admissible if action.startswith("click[")]
        page = read_page(result.observation, names)
        if self._wish is None:
            self._wish = read_wish(page.instruction)
        thought, action = self._decide(page, self._wish, names)
        self._steps_left -= 1
        return thought, action

    def _decide(self, page: PageView, wish: Wish, names: Sequence[str]) -> tuple[str, str]:
        if page.kind == "index":
            return self._search(wish)
        if page.kind == "search_results":
            return self._pick(page, wish)
        if page.kind == "item_sub_page" and self._current:
            self._current.said += f" . {page.text}"
            self._current.read.add(self._reading)
            return "back to the product", "click[< prev]"
        if page.kind == "item_page":
            self._current = self._shown(page)
            return self._judge(page, wish, self._current, names)
        return "nothing else to do", f"click[{names[0]}]" if names else f"search[{wish.query}]"

    def _shown(self, page: PageView) -> _Candidate:
        """The product of this page, also where somebody else opened it; the page does not say its ASIN."""
        if self._current and self._current.listing.title == page.title:
            return self._current
        same = (other for other in self._candidates.values() if other.listing.title == page.title)
        unknown = _Candidate(Listing("", page.title, page.price), page.title)
        return next(same, unknown)

    def _search(self, wish: Wish) -> tuple[str, str]:
        kind = wish.phrases[-1] if wish.phrases else wish.text
        queries = (wish.query, " ".join(wish.phrases), kind)
        query = next((query for query in queries if query not in self._queries), kind)
        self._queries.append(query)
        return "search for what is asked", f"search[{_searchable(query)}]"

    def _pick(self, page: PageView, wish: Wish) -> tuple[str, str]:
        for listing in page.listings:
            self._candidates.setdefault(listing.asin, _Candidate(listing, listing.title))
        shown = [self._candidates[listing.asin] for listing in page.listings]
        if not shown:
            if self._queries and self._queries[-1] == (wish.phrases or (wish.text,))[-1]:
                return "nothing was found", "click[back to search]"
            return self._search(wish)
        best = self._best(wish)
        fresh = [candidate for candidate in shown if candidate.options is None]
        if best in shown and (not fresh or self._steps_left < _CHANGE + len(wish.options) + 2):
            return "the best so far; take it", self._open(best)
        fresh = fresh or shown
        # The search knows more of a product than its title says, so its order counts too.
        ranked = {candidate.listing.asin: rank for rank, candidate in enumerate(shown)}
        promise = {
            candidate.listing.asin: self._estimate(candidate, wish) - 0.02 * ranked[candidate.listing.asin]
            for candidate in fresh
        }
        likeliest = max(fresh, key=lambda candidate: promise[candidate.listing.asin])
        return self._why_open(likeliest, wish), self._open(likeliest)

    def _open(self, candidate: _Candidate) -> str:
        self._current = candidate
        candidate.chosen.clear()
        return f"click[{candidate.listing.asin}]"

    def _why_open(self, candidate: _Candidate, wish: Wish) -> str:
        held = [phrase for phrase in wish.phrases if coverage(phrase, candidate.listing.title) == 1]
        return f"its title says {held[0]}; open it" if held else "looks near; open it"

    def _judge(
        self, page: PageView, wish: Wish, current: _Candidate, names: Sequence[str]
    ) -> tuple[str, str]:
        current.options = page.options
        missing = self._missing(current, wish)
        offered = self._offered(current, wish)
        poor = len(offered) < len(wish.options) or page.price > wish.bound
        others = [c for c in self._candidates.values() if c.options is None and c.listing.price <= wish.bound]
        purchase = len(offered) + 1
        spare = self._steps_left - purchase
        if not poor and missing and spare >= 2:
            for name in ("features", "description"):
                if name not in current.read and name in names:
                    self._reading = name
                    return f"does it have {missing[0]}? read its {name}", f"click[{name}]"
        if (poor or missing) and others and spare >= _CHANGE + _RETURN:
            return f"{self._fault(page, current, wish)}; try another", "click[< prev]"
        best = self._best(wish)
        if best and best is not current and spare >= _RETURN and not current.chosen:
            return "another one was better", "click[< prev]"
        return self._purchase(current, offered)

    def _purchase(self, current: _Candidate, offered: Mapping[str, str]) -> tuple[str, str]:
        for group, value in offered.items():
            if current.chosen.get(group) != value:
                current.chosen[group] = value
                return f"{group}: {value}", f"click[{value}]"
        return "this is what was asked; buy it", "click[buy now]"

    def _best(self, wish: Wish) -> _Candidate | None:
        """The best product whose page was opened."""
        opened = [candidate for candidate in self._candidates.values() if candidate.options is not None]
        return max(opened, key=lambda candidate: self._estimate(candidate, wish), default=None)

    def _estimate(self, candidate: _Candidate, wish: Wish) -> float:
        """About the reward of buying it, as far as it is known."""
        met = sum(coverage(phrase, candidate.said) for phrase in wish.phrases)
        met += len(wish.options) if candidate.options is None else len(self._offered(candidate, wish))
        met += candidate.listing.price <= wish.bound
        return met / (len(wish.phrases) + len(wish.options) + 1)

    def _missing(self, candidate: _Candidate, wish: Wish) -> list[str]:
        """Phrases that nothing read about it says.

        The last phrase also names the kind of product, in words that a title may lack: words that no
        product seen says are not asked of this one.
        """
        seen = " . ".join(other.said for other in self._candidates.values())
        return [
            phrase
            for phrase in wish.phrases
            if coverage(phrase, candidate.said)
            < (coverage(phrase, seen) if phrase is wish.phrases[-1] else 1)
        ]

    def _fault(self, page: PageView, candidate: _Candidate, wish: Wish) -> str:
        offered = self._offered(candidate, wish)
        lacking = [value for group, value in wish.options.items() if group not in offered]
        if lacking:
            return f"it does not come in {lacking[0]}"
        if page.price > wish.bound:
            return "too dear"
        return f"no {self._missing(candidate, wish)[0]}"

    def _offered(self, candidate: _Candidate, wish: Wish) -> dict[str, str]:
        """Group -> the value to choose there: the one asked for, else one that the instruction names."""
        offered: dict[str, str] = {}
        for group, values in (candidate.options or {}).items():
            if group in wish.options:
                if wish.options[group] in values:
                    offered[group] = wish.options[group]
            elif not wish.options:
                named = [value for value in values if f" {value} " in f" {wish.text} "]
                if named:
                    offered[group] = max(named, key=len)
        return offered


def _searchable(query: str) -> str:
    """A query that stays within one pair of brackets."""
    return query.replace("[", " ").replace("]", " ").replace("\n", " ")
