"""What a WebShop episode shows to a program: whether something was bought, and where it missed the wish."""

from __future__ import annotations

import re
from dataclasses import dataclass

from krill_tui.envs.webshop import pages
from krill_tui.envs.webshop.reading import read_page, read_wish
from krill_tui.envs.webshop.session import parse_action
from krill_tui.trajectory import Trajectory

_PAGE = re.compile(r"Page (\d{1,9}) \(Total results: ")
_SUB_PAGES = frozenset(name.lower() for name in pages.SUB_PAGES)


@dataclass(frozen=True, slots=True)
class Purchase:
    """The first thing that was bought."""

    unchosen: frozenset[str]
    """Option values that the instruction names and that were not chosen on the product's page."""
    dear: bool
    """It cost more than the instruction allows."""
    query: str = ""
    """The search it was found by."""
    rank: int = 0
    """Its place among the results, 1 for the first of the first page; 0 where that was not seen."""
    read: bool = False
    """One of its own pages (description, features, reviews) was opened before."""
    price: float = 0.0


def purchase(trajectory: Trajectory) -> Purchase | None:
    """None where nothing was bought.

    Instructions worded freely name no options and no bound that a program reads, so they are never missed.
    """
    wish = read_wish(trajectory.task)
    chosen: set[str] = set()
    query, rank, read = "", 0, False
    for step in trajectory.steps:
        name, argument = parse_action(step.action)
        clickable = [action[6:-1] for action in step.admissible if action.startswith("click[")]
        page = read_page(step.observation, clickable)
        if page.kind in ("index", "search_results"):
            chosen.clear()
            read = False
        if name == "search":
            query = argument
        if name != "click":
            continue
        if argument == "buy now":
            unchosen = frozenset(wish.options.values()) - chosen
            return Purchase(unchosen, page.price > wish.bound, query, rank, read, page.price)
        if page.kind == "search_results":
            shown = [listing.asin for listing in page.listings]
            if argument in shown:
                number = _PAGE.search(step.observation)
                before = (int(number[1]) - 1) * pages.RESULTS_PER_PAGE if number else 0
                rank = before + shown.index(argument) + 1
        if page.kind == "item_page":
            chosen.add(argument)
            read = read or argument in _SUB_PAGES
    return None
