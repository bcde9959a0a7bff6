"""The shop's pages as lists of visible pieces of text, and how an agent reads them (specification A3, A4).

Nothing here is HTML: what stands in a product's text stays text.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:  # a command that only knows how pages are written needs no search engine
    from krill_tui.envs.webshop.catalogue import Product

ObservationMode = Literal["text", "text_rich"]
PageKind = Literal["index", "search_results", "item_page", "item_sub_page", "done"]

RESULTS_PER_PAGE = 10

SEARCH = "Search"
BACK_TO_SEARCH = "Back to Search"
NEXT_PAGE = "Next >"
PREVIOUS_PAGE = "< Prev"
BUY_NOW = "Buy Now"
SUB_PAGES = ("Description", "Features", "Reviews", "Attributes")

SEPARATOR = " [SEP] "
INSTRUCTION = "Instruction:"
QUERY_HINT = "search[<your query>]"
"""How a list of actions says that there is a search bar."""


class Piece(NamedTuple):
    """One visible text of a page."""

    kind: Literal["text", "button", "product", "option"]
    text: str
    group: str = ""
    """Of an option: its group."""


Page = Sequence[Piece]


def _texts(*texts: str) -> list[Piece]:
    return [Piece("text", text) for text in texts]


def _buttons(*texts: str) -> list[Piece]:
    return [Piece("button", text) for text in texts]


def _head(instruction: str, *buttons: str) -> list[Piece]:
    return [*_texts(INSTRUCTION, instruction), *_buttons(BACK_TO_SEARCH, *buttons)]


def index_page(instruction: str) -> Page:
    return [*_texts("WebShop", f"{INSTRUCTION} ", instruction), *_buttons(SEARCH)]


def results_page(instruction: str, found: Sequence[Product], number: int) -> Page:
    """Page `number` (from 1) of all that was found; beyond the last page it lists nothing."""
    page = [
        *_head(instruction),
        *_texts(f"Page {number} (Total results: {len(found)})"),
        *_buttons(*([PREVIOUS_PAGE] if number > 1 else []), NEXT_PAGE),
    ]
    for product in found[(number - 1) * RESULTS_PER_PAGE : number * RESULTS_PER_PAGE]:
        page += [Piece("product", product.asin), *_texts(product.title, product.price_tag)]
    return page


def item_page(instruction: str, product: Product, *, show_attributes: bool = False) -> Page:
    page = _head(instruction, PREVIOUS_PAGE)
    for group, values in product.options.items():
        page += [*_texts(group), *(Piece("option", value, group) for value in values)]
    page += _texts(product.title, f"Price: {product.price_tag}", "Rating: N.A.")
    return page + _buttons(*SUB_PAGES[: 4 if show_attributes else 3], BUY_NOW)


def sub_page(instruction: str, product: Product, name: str) -> Page:
    """One of SUB_PAGES; reviews are never loaded, so theirs is empty."""
    texts: Sequence[str] = ()
    if name == "Description":
        texts = (product.description,)
    elif name == "Features":
        texts = [f" {bullet}" for bullet in product.bullets]
    elif name == "Attributes":
        about = (*product.attributes, product.category, product.query, product.product_category)
        texts = [f" {text}" for text in about]
    return [*_head(instruction, PREVIOUS_PAGE), *_texts(*texts)]


def done_page(asin: str, options: str, reward: float) -> Page:
    """The receipt; the original does not tell it the goal, so most of its fields say None."""
    purchased = ("Purchased", "asin", asin, "options", options, "attrs", "None", "category", "None")
    return _texts(
        *("Thank you for shopping with us!", "Your code: ", "None", " (Paste it in your MTurk interface.)"),
        *(*purchased, "query", "None", "product category", "None", "Target", "asin", "options", "attrs"),
        *("price upper", "instuction text", "category", "product category", "query", "Goal ", "None"),
        *("Reward", "Your score (min 0.0, max 1.0)", str(reward), "Reward Details ", "None"),
    )


def _visible(page: Page) -> list[Piece]:
    """Pieces without text make no node, and blank ones that hold a line break are not shown."""
    return [piece for piece in page if piece.text and (piece.text.strip() or "\n" not in piece.text)]


def render_text(page: Page) -> str:
    """Mode `text`: one line, pieces stripped; chosen options cannot be told from others."""
    return SEPARATOR.join(piece.text.strip() for piece in _visible(page))


def render_rich(page: Page, url: str, visited: Collection[str]) -> str:
    """Mode `text_rich`: a line for each piece, buttons marked, and what was clicked told.

    An option counts as clicked where its value stands in quotes in the page's address, as in the original.
    """
    lines: list[str] = []
    clicked: list[str] = []
    for kind, text, _ in _visible(page):
        if kind == "button":
            lines.append(f"[button] {text} [button_]")
        elif kind == "option" and f'"{text}"' in url:
            clicked.append(f"You have clicked {text}.")
            lines.append(f"  [clicked button] {text} [clicked button_]")
        elif kind == "option":
            lines.append(f"  [button] {text} [button_]")
        elif kind == "product" and text in visited:
            lines.append(f"\n[clicked button] {text} [clicked button_]")
        elif kind == "product":
            lines.append(f"\n[button] {text} [button_]")
        else:
            lines.append(text)
    return "".join(f"{line}\n" for line in (*reversed(clicked), *lines))


def clickables(page: Page) -> dict[str, Piece]:
    """What can be clicked, in lower case: buttons, then products, then option values, each name once.

    A value of two groups stands at its first place but selects in the last group.
    """
    names = {piece.text.strip().lower(): piece for piece in page if piece.kind == "button"}
    names |= {piece.text.strip().lower(): piece for piece in page if piece.kind == "product"}
    return names | {piece.text: piece for piece in page if piece.kind == "option"}


def action_list(names: Iterable[str], has_search_bar: bool) -> tuple[str, ...]:
    """Available actions as SkillRL's wrapper lists them, in page order (specification B)."""
    search = (QUERY_HINT,) if has_search_bar else ()
    return (*search, *(f"click[{name}]" for name in names))
