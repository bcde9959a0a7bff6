"""Reads the pages of the WebShop site: the text an agent sees, and where each button leads (specification A2-A5).

Hidden parts are left out: the receipt hides the goal in one, which no agent may read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from krill_tui.envs.clients.html_scan import scan
from krill_tui.envs.webshop import pages

SEARCH_FIELD = "search_query"
_UNSEEN = frozenset({"head", "title", "style", "script"})
_VOID = frozenset(
    {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "wbr"}
)
"""Elements that hold nothing and have no end."""
_SCORE = "Your score (min 0.0, max 1.0)"


@dataclass(frozen=True, slots=True)
class Target:
    """Where a click leads."""

    address: str
    by_form: bool
    """Buttons submit a form, links and options only open an address."""


@dataclass(slots=True)
class SitePage:
    """One page of the site."""

    texts: list[str] = field(default_factory=list)
    buttons: dict[str, Target] = field(default_factory=dict)
    """Name in lower case -> target, each in page order, here and below."""
    products: dict[str, Target] = field(default_factory=dict)
    options: dict[str, Target] = field(default_factory=dict)
    search_form: str | None = None
    """Address the search bar is sent to; None on pages without one."""

    @property
    def clickables(self) -> dict[str, Target]:
        """Buttons, then products, then options; of equal names the last one counts, at the first one's place."""
        return self.buttons | self.products | self.options

    @property
    def observation(self) -> str:
        return pages.SEPARATOR.join(text.strip() for text in self.texts)

    @property
    def score(self) -> float | None:
        """What the receipt says the purchase earned, from 0 to 1; None on other pages."""
        for text, following in zip(self.texts, self.texts[1:], strict=False):
            if text.strip() == _SCORE:
                return _score(following)
        return None


def read_site_page(html: str) -> SitePage:
    """Reads what there is, whatever the text is."""
    reader = _Reader()
    for piece in scan(html):
        match piece.kind:
            case "text":
                reader.text(piece.text)
            case "start":
                reader.start(piece.text, piece.attributes)
            case "end":
                reader.end(piece.text)
            case "comment":
                pass
    return reader.page


class _Reader:
    def __init__(self) -> None:
        self.page = SitePage()
        self._unseen = 0
        """How many elements that are not shown are open."""
        self._hidden = ""
        """Tag of the hidden part that is open."""
        self._depth = 0
        """Elements with that tag that are open in it."""
        self._form: str | None = None
        self._button: list[str] | None = None
        """What was read of the button or product link that is open."""
        self._link = ""

    def start(self, tag: str, values: Mapping[str, str]) -> None:
        if self._hidden:
            self._depth += tag == self._hidden
        elif tag in _VOID:
            pass
        elif "hidden" in values or "display:none" in values.get("style", "").replace(" ", ""):
            self._hidden, self._depth = tag, 1
        self._unseen += tag in _UNSEEN
        if self._hidden or self._unseen:
            return
        classes = values.get("class", "").split()
        if tag == "form":
            self._form = values.get("action", "")
        elif tag == "input":
            self._read_input(values)
        elif tag == "button" and "btn" in classes:
            self._button, self._link = [], ""
        elif tag == "a" and "product-link" in classes:
            self._button, self._link = [], values.get("href", "")

    def end(self, tag: str) -> None:
        if self._hidden == tag:
            self._depth -= 1
            if not self._depth:
                self._hidden = ""
        if tag in _UNSEEN and self._unseen:
            self._unseen -= 1
        if tag in ("button", "a") and self._button is not None:
            self._end_button(tag)
        elif tag == "form":
            self._form = None

    def text(self, text: str) -> None:
        """Blank ones that hold a line break are not shown."""
        if self._hidden or self._unseen or (not text.strip() and "\n" in text):
            return
        self.page.texts.append(text)
        if self._button is not None:
            self._button.append(text)

    def _read_input(self, values: Mapping[str, str]) -> None:
        if values.get("id") == "search_input":
            self.page.search_form = self._form
        elif values.get("type") == "radio" and values.get("data-url"):
            self.page.options[values.get("value", "")] = Target(values["data-url"], by_form=False)

    def _end_button(self, tag: str) -> None:
        name, self._button = "".join(self._button or ()).strip().lower(), None
        if tag == "a":
            self.page.products[name] = Target(self._link, by_form=False)
        elif self._form is not None:
            self.page.buttons[name] = Target(self._form, by_form=True)


def _score(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0.0 <= value <= 1.0 else None
