"""The nouns of a product name, which the type part of the reward compares (WebShop specification A9).

The original asks spaCy's small English model. Names of products are nearly all nouns, so a list of the
other words that they use gives almost the same answer at no cost; whoever needs the model's own answer
passes another tagger to `reward.score`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache

NounTagger = Callable[[str], Sequence[str]]
"""From a name to its nouns in lower case, repeats kept."""

_WORD = re.compile(r"[^\W\d_]+")
_OTHER_WORDS = """
a an and are as at be but by for from if in into is it its no non not of off on onto or our over per so
such that the their then there these they this to under up was will with within without your you
adjustable all anti artificial authentic automatic best big bold breathable bright casual cheap classic
clean clear close comfortable compact cool crisp cute dark decorative deep delicious dense different dry
durable each easy elastic elegant everyday extra fashionable fast fine flat flexible foldable formal free
fresh full funny gentle genuine good great handmade hard healthy heavy high hot hypoallergenic ideal
intense large last light lightweight little long loose low luxurious many matte medium mini modern moist
more most multiple natural new nice old only open organic original perfect personalized plain pleasant
plus portable powerful premium professional protective pure quick quiet raw ready real rechargeable
refreshing regular removable replaceable reusable rich romantic round rustic seamless sharp sheer short
silent simple single sleek slim small smart smooth soft solid special stainless stretchy strong sturdy
stylish super sweet tall thick thin tight tiny total traditional true ultra universal useful versatile
vibrant vintage warm washable waterproof wet wide wild wireless young
"""
_NOT_NOUNS = frozenset(_OTHER_WORDS.split())


@lru_cache(maxsize=65536)
def title_nouns(name: str) -> tuple[str, ...]:
    """The words of a name that are not function words or common adjectives, lower case, in order."""
    return tuple(word for word in _WORD.findall(name.lower()) if word not in _NOT_NOUNS)
