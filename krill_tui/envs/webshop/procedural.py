"""A shop drawn from a seed: products in the genuine file format, and goals that can be met exactly.

Forty kinds of products (`kinds.json`), eight in each of the five top categories. Every attribute of a product
stands somewhere on its pages: one or two in the title, one in the first bullet, the others in later
bullets, which the search engine does not know, or in the description. Option values hold colour words only
as whole words, so that buying the wanted product with the wanted options always earns exactly 1.
"""

from __future__ import annotations

import json
from functools import lru_cache
from importlib import resources
from itertools import product as pairs
from random import Random
from typing import Any

from krill_tui.envs.webshop.catalogue import CATEGORIES, Catalogue, Product, parse_products
from krill_tui.envs.webshop.goals import Goal, make_goal, price_bound, split_of

_PACKAGE = "krill_tui.envs.webshop"
_LETTERS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_ENDINGS = (0.99, 0.95, 0.49, 0.0)
_RANGES = 0.08
"""Share of the products whose price is a range."""
_UNPRICED = 0.02
_PLAIN = 0.08
"""Share of the products without options."""
_GOAL_ATTRIBUTES = (1, 3)

Record = dict[str, Any]


@lru_cache(maxsize=1)
def kinds() -> dict[str, Any]:
    """The vocabulary of the shop."""
    return json.loads(resources.files(_PACKAGE).joinpath("kinds.json").read_text(encoding="utf-8"))


def draw_records(seed: int, size: int) -> tuple[list[Record], dict[str, Record]]:
    """`size` items and their attributes by ASIN, as the genuine product files hold them."""
    rng = Random(f"webshop/catalogue/{seed}/{size}")
    words = kinds()
    brands = _brands(rng, 40 + size // 50)
    asins: dict[str, None] = {}
    while len(asins) < size:
        asins["B0" + "".join(rng.choices(_LETTERS, k=8))] = None
    items: list[Record] = []
    extra: dict[str, Record] = {}
    for number, asin in enumerate(asins):
        kind = words["kinds"][number % len(words["kinds"])]
        item, attributes = _item(asin, kind, rng.choice(brands), rng)
        items.append(item)
        asked = sorted(rng.sample(attributes, min(len(attributes), rng.randint(*_GOAL_ATTRIBUTES))))
        extra[asin] = {
            "attributes": sorted(attributes),
            "instruction": _instruction(asked, kind["query"]),
            "instruction_attributes": asked,
        }
    rng.shuffle(items)
    return items, extra


def _brands(rng: Random, count: int) -> list[str]:
    words = kinds()
    parts = pairs(words["brand_beginnings"], words["brand_middles"], words["brand_endings"])
    names = ["".join(part) for part in parts]
    return rng.sample(names, min(count, len(names)))


def _item(asin: str, kind: Record, brand: str, rng: Random) -> tuple[Record, list[str]]:
    """One product and its attributes."""
    words = kinds()
    attributes = rng.sample(kind["attributes"], rng.randint(4, 6))
    in_title, in_bullet, rest = attributes[: rng.randint(1, 2)], attributes[2], attributes[3:]
    described = [attributes[1], *(name for name in rest if rng.random() < 0.5)]
    facts = {
        "brand": brand,
        "style": rng.choice(words["styles"]),
        "type": rng.choice(kind["types"]),
        "use": rng.choice(words["uses"]),
        "model": rng.randint(100, 9999),
        "title_attributes": ", ".join(map(str.title, in_title)),
        "attributes": ", ".join(described).capitalize(),
    }
    bullets = [
        rng.choice(words["bullets"]).format(attribute=name, brand=brand)
        for name in (in_bullet, *(name for name in rest if name not in described))
    ]
    bullets.append(rng.choice(words["closings"]).format(brand=brand))
    return {
        "asin": asin,
        "name": rng.choice(words["titles"]).format(**facts),
        "category": kind["category"],
        "query": kind["query"],
        "product_category": kind["path"],
        "full_description": rng.choice(words["descriptions"]).format(**facts),
        "small_description": [bullet[0].upper() + bullet[1:] for bullet in bullets],
        "pricing": _pricing(kind["price"], rng),
        "images": [],
        "customization_options": _options(kind["options"], rng),
    }, attributes


def _options(groups: dict[str, str], rng: Random) -> dict[str, list[Record]]:
    """Three to six values of each group, in the order of their pool."""
    if rng.random() < _PLAIN:
        return {}
    options: dict[str, list[Record]] = {}
    for group, pool in groups.items():
        values = kinds()["pools"][pool]
        chosen = set(rng.sample(values, min(len(values), rng.randint(3, 6))))
        options[group] = [{"value": value} for value in values if value in chosen]
    return options


def _pricing(bounds: list[int], rng: Random) -> str:
    if rng.random() < _UNPRICED:
        return ""
    low, high = bounds
    # Cheap things are more common than dear ones.
    price = int(low * (high / low) ** rng.random()) + rng.choice(_ENDINGS)
    return f"${price:.2f}${price + rng.choice((5, 10)):.2f}" if rng.random() < _RANGES else f"${price:.2f}"


def _instruction(attributes: list[str], query: str) -> str:
    return f"Find me {', '.join(attributes)} {query}"


@lru_cache(maxsize=4)
def build_catalogue(seed: int, size: int) -> Catalogue:
    """The shop of a seed; always the same for the same arguments."""
    return Catalogue(parse_products(*draw_records(seed, size)), seed=seed)


@lru_cache(maxsize=4)
def _by_category(catalogue: Catalogue) -> dict[str, list[Product]]:
    return {
        category: [item for item in catalogue.products if item.category == category]
        for category in CATEGORIES
    }


def category_of(index: int) -> str:
    """The top category of a split's goal `index`: they take turns."""
    return CATEGORIES[index % len(CATEGORIES)]


def draw_goal(catalogue: Catalogue, seed: int, split: str, index: int) -> Goal:
    """Goal `index` of a split: a wish that no other split holds (`goals.split_of`)."""
    rng = Random(f"webshop/goal/{seed}/{split}/{index}")
    products = _by_category(catalogue)[category_of(index)]
    while True:
        product = rng.choice(products)
        most = min(len(product.attributes), _GOAL_ATTRIBUTES[1])
        attributes = sorted(rng.sample(product.attributes, rng.randint(_GOAL_ATTRIBUTES[0], most)))
        options = {group: rng.choice(values) for group, values in sorted(product.options.items())}
        bound = price_bound(catalogue.prices[product.asin], rng)
        goal = make_goal(product, _instruction(attributes, product.query), attributes, options, bound)
        if split_of(goal) == split:
            return goal
