"""One visit to the shop: which page is shown, what was chosen, what a purchase earns (specification A1-A5)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from random import Random

from krill_tui.envs.webshop import pages
from krill_tui.envs.webshop.catalogue import Catalogue, Product
from krill_tui.envs.webshop.goals import Goal
from krill_tui.envs.webshop.nouns import NounTagger, title_nouns
from krill_tui.envs.webshop.pages import ObservationMode, Page, PageKind
from krill_tui.envs.webshop.reward import Score, score

BASE_URL = "http://127.0.0.1:3000"

_SPECIAL = ("<r>", "<a>", "<c>", "<q>")
_RANDOM_PRODUCTS = 50
_SUB_PAGES = {name.lower(): name for name in pages.SUB_PAGES}
_PAGE_KINDS: tuple[PageKind, ...] = ("search_results", "item_page", "item_sub_page", "done")


def parse_action(action: str) -> tuple[str, str]:
    """(name, argument in lower case) of `name[argument]`; no name where the text is not of this form.

    The same as matching `(.+)\\[(.+)\\]` at the start, in linear time: text after the last `]` of the
    first line does not matter, text before the name does.
    """
    line = action.partition("\n")[0]
    end = line.rfind("]")
    start = line.rfind("[", 1, max(end - 1, 0))
    return (line[:start], line[start + 1 : end].lower()) if start > 0 else ("", "")


class Session:
    """Plays one goal. `genuine` keeps what the original does and nobody wants: queries that begin with
    `<r>`, `<q>` or `<c>`, a page's kind read from its address, and shopping on after the purchase.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        goal: Goal,
        *,
        name: str = "0",
        genuine: bool = False,
        show_attributes: bool = False,
        nouns: NounTagger = title_nouns,
        rng: Random | None = None,
    ) -> None:
        self._catalogue = catalogue
        self.goal = goal
        self._name = name
        self._genuine = genuine
        self._show_attributes = show_attributes
        self._nouns = nouns
        self._rng = rng or Random(0)
        self.done = False
        self.score: Score | None = None
        """Of the last purchase."""
        self._show_index()

    def observe(self, mode: ObservationMode = "text") -> str:
        """The page as an agent reads it."""
        if mode == "text":
            return pages.render_text(self.page)
        return pages.render_rich(self.page, self.url, self._visited)

    @property
    def has_search_bar(self) -> bool:
        return self._kind == "index"

    def accepts(self, action: str) -> bool:
        """Whether the shop would act on this text now."""
        name, argument = parse_action(action)
        if self.done and not self._genuine:
            return False
        if name == "search":
            return self._can_find(argument.split(" "))
        return name == "click" and argument in self.clickables and argument != pages.SEARCH.lower()

    def step(self, action: str) -> tuple[float, bool]:
        """(reward, done) of one action; anything the shop does not understand leaves the page as it is."""
        if not self.accepts(action):
            return 0.0, False
        name, argument = parse_action(action)
        if name == "search":
            self._keywords = argument.split(" ")
            self._found = self._find(self._keywords)
            self._show_results(1)
            return 0.0, False
        return self._click(argument)

    def _click(self, name: str) -> tuple[float, bool]:
        kind = self._page_kind()
        if name == pages.BUY_NOW.lower():
            return self._buy()
        if name == pages.BACK_TO_SEARCH.lower():
            self._show_index()
        elif name == pages.NEXT_PAGE.lower() and kind == "search_results":
            self._show_results(self._number + 1)
        elif name == pages.PREVIOUS_PAGE.lower() and kind == "search_results":
            self._show_results(self._number - 1)
        elif name == pages.PREVIOUS_PAGE.lower() and kind == "item_page":
            self._show_results(self._number)
        elif name in _SUB_PAGES:
            self._show_sub_page(_SUB_PAGES[name])
        else:
            self._choose(self.clickables[name])
            self._show_item()
        return 0.0, False

    def _choose(self, piece: pages.Piece) -> None:
        if piece.kind == "product":
            self._product = self._catalogue.by_asin[piece.text]
            self._visited.add(piece.text)
        elif piece.kind == "option":
            self._options[piece.group] = piece.text

    def _buy(self) -> tuple[float, bool]:
        product = self._current()
        price = self._catalogue.prices[product.asin]
        self.score = score(product, self.goal, price, self._options, self._nouns)
        page = pages.done_page(product.asin, json.dumps(self._options), self.score.reward)
        self._show("done", page, f"{BASE_URL}/done/{self._name}/{product.asin}/{self._options}")
        self.done = True
        return self.score.reward, True

    def _current(self) -> Product:
        assert self._product is not None, "a product page is shown without a product"
        return self._product

    def _can_find(self, keywords: Sequence[str]) -> bool:
        """False for the special queries that break the original down."""
        if not self._genuine or keywords[0] not in _SPECIAL:
            return True
        if keywords[0] == "<r>":
            return len(self._catalogue.products) >= _RANDOM_PRODUCTS
        return keywords[0] == "<q>" or (keywords[0] == "<c>" and len(keywords) > 1)

    def _find(self, keywords: Sequence[str]) -> Sequence[Product]:
        products = self._catalogue.products
        if not self._genuine or keywords[0] not in _SPECIAL:
            return self._catalogue.search(" ".join(keywords))
        if keywords[0] == "<r>":
            return self._rng.sample(products, _RANDOM_PRODUCTS)
        if keywords[0] == "<q>":
            query = " ".join(keywords[1:]).strip()
            return [product for product in products if product.query == query]
        return [product for product in products if product.category == keywords[1].strip()]

    def _page_kind(self) -> PageKind:
        if not self._genuine:
            return self._kind
        for kind in _PAGE_KINDS:
            if kind in self.url:
                return kind
        return "index"

    def _show(self, kind: PageKind, page: Page, url: str) -> None:
        self._kind: PageKind = kind
        self.page = page
        self.url = url
        self.clickables = pages.clickables(page)

    def _show_index(self) -> None:
        self._keywords: Sequence[str] = ()
        self._found: Sequence[Product] = ()
        self._number = 1
        self._product: Product | None = None
        self._options: dict[str, str] = {}
        self._visited: set[str] = set()
        self._show("index", pages.index_page(self.goal.instruction), f"{BASE_URL}/{self._name}")

    def _show_results(self, number: int) -> None:
        self._number = number
        self._product = None
        self._options = {}
        page = pages.results_page(self.goal.instruction, self._found, number)
        self._show("search_results", page, f"{BASE_URL}/search_results/{self._name}/{self._place()}")

    def _show_item(self) -> None:
        product = self._current()
        page = pages.item_page(self.goal.instruction, product, show_attributes=self._show_attributes)
        place = f"{self._name}/{product.asin}/{self._place()}"
        self._show("item_page", page, f"{BASE_URL}/item_page/{place}/{json.dumps(self._options)}")

    def _show_sub_page(self, name: str) -> None:
        product = self._current()
        page = pages.sub_page(self.goal.instruction, product, name)
        place = f"{self._name}/{product.asin}/{self._place()}"
        self._show("item_sub_page", page, f"{BASE_URL}/item_sub_page/{place}/{name}/{self._options}")

    def _place(self) -> str:
        return f"{'+'.join(self._keywords)}/{self._number}"
