"""Reads the shop's pages and instructions back out of their text, as an agent sees them."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from krill_tui.envs.webshop import pages
from krill_tui.envs.webshop.search import analyze

_MARKED = re.compile(r"^\s*\[(?:clicked )?button\] (.*) \[(?:clicked )?button_\]$")
_CLICKED = re.compile(r"^You have clicked .*\.$")
_COUNT = re.compile(r"Page \d+ \(Total results: (\d+)\)")
_PRICE = re.compile(r"\$(\d+(?:\.\d+)?)")
_BOUND = re.compile(r",? and price lower than (\d+(?:\.\d+)?) dollars\W*$")
_WITH = re.compile(r" with (?=[^:,]{1,200}: )")
"""Before the first group of options; a name of a group is not longer than that."""
_OPENING = re.compile(
    r"^(?:find me|i(?: a|')m looking for|i(?: would|'d) like|i want|i need)(?: an?)?\b\s*", re.I
)


@dataclass(frozen=True, slots=True)
class Wish:
    """What an instruction asks for."""

    phrases: tuple[str, ...]
    """Asked in words of their own; the last one also names the kind of product."""
    options: Mapping[str, str]
    """Group -> value, where the instruction names groups."""
    bound: float
    """Dollars; infinite without a bound."""
    text: str
    """All that is asked, lower case, without the bound."""

    @property
    def query(self) -> str:
        """Words to search for: attributes, kind of product and option values."""
        return " ".join((*self.phrases, *self.options.values()))


def read_wish(instruction: str) -> Wish:
    """Understand `Find me A, B things with color: C, and size: D, and price lower than 9.00 dollars`."""
    text = instruction.lower().strip()
    bound = _BOUND.search(text)
    if bound:
        text = text[: bound.start()]
    asked, *rest = _WITH.split(text, maxsplit=1)
    options: dict[str, str] = {}
    for pair in rest[0].split(", and ") if rest else ():
        group, _, value = pair.partition(": ")
        options[group.strip()] = value.strip()
    chunks = [chunk.strip() for chunk in _OPENING.sub("", asked).split(",")]
    return Wish(
        phrases=tuple(chunk for chunk in chunks if chunk),
        options=options,
        bound=float(bound[1]) if bound else float("inf"),
        text=text,
    )


@dataclass(frozen=True, slots=True)
class Listing:
    """A product on a page of results."""

    asin: str
    """As it is clicked: lower case."""
    title: str
    price: float
    """The lower end where there is a range."""


@dataclass(frozen=True, slots=True)
class PageView:
    """What a page says."""

    kind: pages.PageKind | Literal["unknown"]
    instruction: str = ""
    listings: Sequence[Listing] = ()
    title: str = ""
    price: float = 0.0
    options: Mapping[str, Sequence[str]] = field(default_factory=dict)
    text: str = ""
    """Of a sub page: all it says."""


def read_page(observation: str, names: Collection[str]) -> PageView:
    """Understand an observation of either mode; `names` are the clickable texts, lower case."""
    parts = _parts(observation)
    instruction = next((b for a, b in pairwise(parts) if a == pages.INSTRUCTION), "")
    if parts[:1] == ["WebShop"]:
        return PageView("index", instruction)
    if "buy now" in names:
        return _item(parts, instruction, names)
    if any(_COUNT.fullmatch(part) for part in parts):
        return PageView("search_results", instruction, listings=_listings(parts, names))
    if pages.PREVIOUS_PAGE in parts:
        text = parts[parts.index(pages.PREVIOUS_PAGE) + 1 :]
        return PageView("item_sub_page", instruction, text=" ".join(text))
    return PageView("done" if not names else "unknown", instruction)


def _parts(observation: str) -> list[str]:
    if pages.SEPARATOR in observation:
        return observation.split(pages.SEPARATOR)
    lines = [line for line in observation.split("\n") if line.strip() and not _CLICKED.match(line)]
    return [(match[1] if (match := _MARKED.match(line)) else line).strip() for line in lines]


def _listings(parts: Sequence[str], names: Collection[str]) -> list[Listing]:
    triples = zip(parts, parts[1:], parts[2:], strict=False)
    return [
        Listing(asin.lower(), title, _price(price))
        for asin, title, price in triples
        if asin.lower() in names and price.startswith("$")
    ]


def _item(parts: Sequence[str], instruction: str, names: Collection[str]) -> PageView:
    price_at = max((at for at, part in enumerate(parts) if part.startswith("Price: ")), default=0)
    if price_at == 0 or pages.PREVIOUS_PAGE not in parts:
        return PageView("item_page", instruction)
    options: dict[str, list[str]] = {}
    group = ""
    for part in parts[parts.index(pages.PREVIOUS_PAGE) + 1 : price_at - 1]:
        if part in names:
            options.setdefault(group, []).append(part)
        else:
            group = part
    price = _price(parts[price_at])
    return PageView("item_page", instruction, title=parts[price_at - 1], price=price, options=options)


def _price(tag: str) -> float:
    match = _PRICE.search(tag)
    return float(match[1]) if match else 0.0


def coverage(phrase: str, text: str) -> float:
    """How much of a phrase a text says: 1 when it says it word for word, else the share of its terms."""
    if phrase in text.lower():
        return 1.0
    terms = analyze(phrase)
    said = set(analyze(text))
    return sum(term in said for term in terms) / len(terms) if terms else 1.0
