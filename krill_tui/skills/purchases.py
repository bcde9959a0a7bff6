"""What a WebShop episode shows to a program: whether something was bought, and where it missed the wish."""

from __future__ import annotations

from dataclasses import dataclass

from krill_tui.envs.webshop.reading import read_page, read_wish
from krill_tui.envs.webshop.session import parse_action
from krill_tui.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class Purchase:
    """The first thing that was bought."""

    unchosen: frozenset[str]
    """Option values that the instruction names and that were not chosen on the product's page."""
    dear: bool
    """It cost more than the instruction allows."""


def purchase(trajectory: Trajectory) -> Purchase | None:
    """None where nothing was bought.

    Instructions worded freely name no options and no bound that a program reads, so they are never missed.
    """
    wish = read_wish(trajectory.task)
    chosen: set[str] = set()
    for step in trajectory.steps:
        name, argument = parse_action(step.action)
        clickable = [action[6:-1] for action in step.admissible if action.startswith("click[")]
        page = read_page(step.observation, clickable)
        if page.kind in ("index", "search_results"):
            chosen.clear()
        if name != "click":
            continue
        if argument == "buy now":
            return Purchase(frozenset(wish.options.values()) - chosen, page.price > wish.bound)
        if page.kind == "item_page":
            chosen.add(argument)
    return None
