"""How good a purchase is: the genuine reward (WebShop specification A9).

reward = r_type * (attribute hits + option hits + [price <= bound]) / (attributes + options + 1)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from thefuzz import fuzz

from krill_tui.envs.webshop.catalogue import Product
from krill_tui.envs.webshop.goals import Goal
from krill_tui.envs.webshop.nouns import NounTagger, title_nouns

_FUZZY = 85
"""Percent of `token_set_ratio` above which two phrases count as the same."""

_COLOUR_WORDS = """
alabaster apricot aqua ash asphalt azure banana beige black blue blush bordeaux bronze brown burgundy
camel camo caramel champagne charcoal cheetah chestnut chocolate christmas coffee cognac copper coral
cranberry cream crystal dark denim eggplant elephant espresso fuchsia gold granite grape graphite grass
gray green grey heather indigo ivory ivy khaki lavender lemon leopard light lilac lime magenta maroon
mauve merlot midnight mint mocha multicolor mushroom mustard natural navy nude olive orange peach pewter
pink plum purple rainbow red rose royal rust sand sapphire seashell silver skull slate steel stone
stonewash sunflower tan taupe teal tiger turquoise violet walnut wheat white wine yellow
"""
COLOURS = tuple(_COLOUR_WORDS.split())
"""Names that stand for every value in which they occur, the first of them in this order."""


@dataclass(frozen=True, slots=True)
class Score:
    """A reward and its parts."""

    reward: float
    """0 to 1."""
    type_factor: float
    query_match: bool
    category_match: bool
    title_score: float
    attribute_hits: int
    attributes: int
    option_hits: int
    options: int
    price_fits: bool

    def details(self) -> dict[str, float | bool]:
        """The parts under the original's names: r_ the share that was met, w_ its weight."""
        total = self.attributes + self.options + 1
        parts: dict[str, float | bool] = {
            "r_type": self.type_factor,
            "r_att": self.attribute_hits / self.attributes if self.attributes else 0.0,
            "w_att": self.attributes / total,
            "query_match": self.query_match,
            "category_match": self.category_match,
            "title_score": self.title_score,
        }
        if self.options:
            parts |= {"r_option": self.option_hits / self.options, "w_option": self.options / total}
        return parts | {"r_price": self.price_fits, "w_price": 1 / total}


def score(
    product: Product,
    goal: Goal,
    price: float,
    options: Mapping[str, str],
    nouns: NounTagger = title_nouns,
) -> Score:
    """Judge the purchase of a product with the chosen options (group -> value)."""
    query_match = product.query == goal.query
    category_match = len(_levels(product.product_category) & _levels(goal.product_category)) >= 2
    title_score = _title_score(nouns(product.title), nouns(goal.name))
    factor = _type_factor(query_match or category_match, title_score)
    attribute_hits = sum(_has_attribute(product, attribute) for attribute in goal.attributes)
    option_hits = _option_hits(options.values(), goal.options)
    price_fits = price <= goal.price_upper
    total = len(goal.attributes) + len(goal.options) + 1
    return Score(
        reward=(attribute_hits + option_hits + price_fits) / total * factor,
        type_factor=factor,
        query_match=query_match,
        category_match=category_match,
        title_score=title_score,
        attribute_hits=attribute_hits,
        attributes=len(goal.attributes),
        option_hits=option_hits,
        options=len(goal.options),
        price_fits=price_fits,
    )


def can_be_met(product: Product, goal: Goal, price: float) -> bool:
    """Whether buying the wanted product with the wanted options earns all of the reward.

    It does not where a wanted value holds a colour word inside a longer word (`standard` holds `tan`).
    """
    options = (
        goal.options
        if isinstance(goal.options, Mapping)
        else dict(zip(goal.options, goal.options, strict=True))
    )
    return score(product, goal, price, options).reward == 1.0


def _levels(product_category: str) -> set[str]:
    return {level.strip() for level in product_category.split("›")}


def _title_score(bought: Sequence[str], asked: Sequence[str]) -> float:
    if not asked:
        return 0.2
    return len(set(bought) & set(asked)) / len(asked)


def _type_factor(match: bool, title_score: float) -> float:
    if title_score == 0:
        return 0.0
    if title_score < 0.1:
        return 0.1
    return 1.0 if match or title_score > 0.2 else 0.5


def _has_attribute(product: Product, wanted: str) -> bool:
    if any(fuzz.token_set_ratio(attribute, wanted) > _FUZZY for attribute in product.attributes):
        return True
    texts = (product.title, " ".join(product.bullets), product.description)
    return any(wanted in text.lower() for text in texts)


def _option_hits(chosen: Iterable[str], wanted: Mapping[str, str] | Sequence[str]) -> int:
    """How many wanted options are met.

    A wanted (group, value) is compared as the text of the pair, group word included, and only becomes a
    colour when it *is* one; chosen values become a colour when they hold one.
    """
    values = [_colour_in(value) for value in chosen]
    if isinstance(wanted, Mapping):
        pairs = [(group, value) for group, value in wanted.items()]
        asked = [next((colour for colour in COLOURS if colour in pair), str(pair)) for pair in pairs]
    else:
        asked = [_colour_in(value) for value in wanted]
    return sum(any(fuzz.token_set_ratio(value, want) > _FUZZY for value in values) for want in asked)


def _colour_in(value: str) -> str:
    return next((colour for colour in COLOURS if colour in value), value)
