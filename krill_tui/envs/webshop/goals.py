"""What is asked for: goals, drawn from the products of a catalogue (WebShop specification A8)."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from krill_tui.envs.webshop.catalogue import Catalogue, Product

SPLITS = ("train", "evolve", "valid", "test")
_SHARES = (("train", 60), ("evolve", 70), ("valid", 85), ("test", 100))
"""Split and the percentage below which a goal belongs to it."""

NO_BOUND = 1_000_000.0
"""Price bound of a goal that names none."""
_BOUNDS = tuple(float(price) for price in range(10, 1000, 10))
GENUINE_SHUFFLE = 233


@dataclass(frozen=True, slots=True)
class Goal:
    """A product with attributes, options and a price, and the sentence that asks for it."""

    asin: str
    category: str
    query: str
    name: str
    product_category: str
    instruction: str
    attributes: tuple[str, ...]
    price_upper: float
    options: Mapping[str, str] | tuple[str, ...]
    """Group -> value; in goals of people only the values."""
    weight: float = 1.0
    """Of a weighted draw: how rare its attributes are."""


def price_bound(price: float, rng: Random) -> tuple[float, str]:
    """A bound above the price, and the words that state it; no bound and no words near 1,000 dollars."""
    above = [bound for bound in _BOUNDS if bound > price][:4]
    if len(above) < 2:
        return NO_BOUND, ""
    upper = max(rng.sample(above, 2))
    return upper, f", and price lower than {upper:.2f} dollars"


def make_goal(
    product: Product,
    instruction: str,
    attributes: Sequence[str],
    options: Mapping[str, str],
    bound: tuple[float, str],
) -> Goal:
    """A goal in the words of the synthetic instructions; `bound` as `price_bound` returns it."""
    asked = ", and ".join(f"{group}: {value}" for group, value in options.items())
    return Goal(
        asin=product.asin,
        category=product.category,
        query=product.query,
        name=product.title,
        product_category=product.product_category,
        instruction=f"{instruction}{' with ' + asked if asked else ''}{bound[1]}",
        attributes=tuple(attributes),
        price_upper=bound[0],
        options=options,
    )


def synthetic_goals(catalogue: Catalogue, rng: Random) -> list[Goal]:
    """One goal for each combination of option values of each product that has an instruction."""
    goals: list[Goal] = []
    for product in catalogue.products:
        if not product.instruction or not product.instruction_attributes:
            continue
        bound = price_bound(catalogue.prices[product.asin], rng)
        groups = sorted(product.options)
        for values in itertools.product(*(product.options[group] for group in groups)):
            options = dict(zip(groups, values, strict=True))
            goals.append(
                make_goal(product, product.instruction, product.instruction_attributes, options, bound)
            )
    holders = Counter(attribute for goal in goals for attribute in goal.attributes)
    return [
        replace(goal, weight=sum(1 / holders[name] for name in goal.attributes) / len(goal.attributes))
        for goal in goals
    ]


def human_goals(catalogue: Catalogue, rng: Random) -> list[Goal]:
    """One goal for each thing that a person asked for, where they named attributes."""
    goals: list[Goal] = []
    for product in catalogue.products:
        for request in product.requests:
            if not request.attributes:
                continue
            bound = price_bound(catalogue.prices[product.asin], rng)
            goal = make_goal(product, request.text.strip("."), request.attributes, {}, bound)
            goals.append(replace(goal, options=request.options))
    return goals


def in_genuine_order(goals: Sequence[Goal]) -> list[Goal]:
    """The goals as the original numbers them: a session number is an index into this list."""
    order = list(goals)
    Random(GENUINE_SHUFFLE).shuffle(order)
    return order


def split_of(goal: Goal) -> str:
    """The split a goal belongs to, by what is asked for alone: equal wishes never lie in two splits."""
    options = sorted(goal.options.items()) if isinstance(goal.options, Mapping) else sorted(goal.options)
    wish = repr((goal.query, sorted(goal.attributes), options))
    share = int.from_bytes(hashlib.sha256(wish.encode(errors="surrogatepass")).digest()[:8]) % 100
    return next(split for split, below in _SHARES if share < below)
