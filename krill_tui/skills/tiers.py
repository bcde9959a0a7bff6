"""Which tiers of a bank serve which tasks: banks of other projects name their categories differently.

A tier serves the tasks whose category has its name. Beyond that, `Skill.also` names further categories (an import
fills it in), and in a shop the tiers that are no category of it are found by the words of a task, as SkillRL does.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from krill_tui.envs.alfworld.text import CATEGORIES as HOUSEHOLD_CATEGORIES
from krill_tui.envs.alfworld.text import CATEGORY_OF_TYPE, parse_task
from krill_tui.envs.webshop.catalogue import CATEGORIES as SHOP_CATEGORIES
from krill_tui.io.text import clean_text
from krill_tui.skill import GENERAL, Skill

SHOPPING = "search"
"""The one category of shopping tasks in the data of other projects."""

_HOUSEHOLD_NAMES: dict[str, tuple[str, ...]] = {
    # SkillRL has one set of skills for one object and for two.
    "pickandplace": ("Pick", "PickTwo"),
    "lookatobjinlight": ("Look",),
    "lookatobj": ("Look",),
    "examine": ("Look",),
    "picktwoobj": ("PickTwo",),
    "pickcleanthenplace": ("Clean",),
    "pickheatthenplace": ("Heat",),
    "pickcoolthenplace": ("Cool",),
    **{category.casefold(): (category,) for category in HOUSEHOLD_CATEGORIES},
    **{re.sub(r"[^a-z0-9]", "", kind): (category,) for kind, category in CATEGORY_OF_TYPE.items()},
}
"""Categories by the names that other projects give their tiers, in letters and digits alone."""

_HOUSEHOLD_WORDS = (
    (re.compile(r"\btwo\b"), "PickTwo"),
    (re.compile(r"\b(look|examine|light|lamp|desklamp)\b"), "Look"),
    (re.compile(r"\b(clean|rinse|wash)"), "Clean"),
    (re.compile(r"\b(hot|heat|warm|microwave)"), "Heat"),
    (re.compile(r"\b(cool|cold|chill)"), "Cool"),
)

_ANY_SHOPPING = frozenset({SHOPPING, "webshop", "shopping", "shop"})
"""Tiers of projects that know only one kind of shopping task."""
_OTHER_SHOPPING = frozenset({"other", "others", "misc"})
"""Tiers for the tasks that no other tier fits."""
_SEARCH_TIERS = frozenset(
    {"directretrieval", "multihopreasoning", "entityattributelookup", "comparison", "singlehop", "multihop"}
)
"""SkillRL's tiers of questions to a search engine, which no world here asks."""


@dataclass(frozen=True, slots=True)
class _Goods:
    tier: str
    """SkillRL's name, in letters and digits alone."""
    category: str
    words: frozenset[str]


def _goods(tier: str, category: str, words: str) -> _Goods:
    return _Goods(tier, category, frozenset(words.split()))


_GOODS = (
    _goods(
        "footwear",
        "fashion",
        "shoe sneaker boot bootie sandal slipper heel pump loafer flat moccasin clog mule oxford wedge footwear slide",
    ),
    _goods(
        "apparel",
        "fashion",
        """shirt t-shirt tshirt tee polo blouse top dress skirt pant trouser jean short legging jogger sweatpant
        sweater sweatshirt hoodie cardigan pullover jacket coat vest blazer suit tuxedo tank tunic bra bralette panty
        underwear brief boxer lingerie sock hosiery pajama sleepwear nightgown robe swimsuit bikini swimwear jumpsuit
        romper overall uniform costume apparel clothing henley""",
    ),
    _goods(
        "accessories",
        "fashion",
        """watch bracelet necklace earring ring jewelry bag handbag purse backpack tote wallet clutch luggage belt hat
        cap beanie scarf glove sunglass sunglasses tie umbrella keychain accessory accessories""",
    ),
    _goods(
        "electronics",
        "electronics",
        """headphone earbud earphone headset speaker soundbar microphone phone smartphone iphone cell tablet ipad
        laptop computer pc desktop monitor keyboard mouse printer router modem camera camcorder lens tripod projector
        tv television antenna remote charger cable adapter usb hdmi bluetooth wireless battery drive ssd ram gb
        console gaming radio stereo memory card smartwatch binocular drone electronics protector""",
    ),
    _goods(
        "homedecor",
        "garden",
        """sofa couch loveseat chair stool ottoman bench table desk nightstand dresser cabinet bookcase bookshelf shelf
        shelves bed bedframe headboard mattress futon rug carpet curtain blind drape pillow pillowcase cushion blanket sheet window
        throw comforter duvet quilt lamp sconce chandelier pendant lighting candle vase mirror clock painting canvas
        poster frame tapestry planter furniture storage doormat bedroom decor""",
    ),
    _goods(
        "beautyhealth",
        "beauty",
        """shampoo conditioner hair wig lotion cream moisturizer serum cleanser toner sunscreen mask makeup lipstick
        lip gloss mascara eyeliner eyebrow eyelash eyeshadow foundation concealer powder blush nail polish perfume
        cologne fragrance deodorant soap scrub razor shaving beard toothbrush toothpaste mouthwash teeth dental skin
        skincare face facial body massage essential vitamin supplement beauty""",
    ),
    _goods(
        "grocery",
        "grocery",
        """coffee tea snack chocolate candy cookie cracker chip popcorn nut almond cashew peanut granola cereal oatmeal
        bar jerky meat sauce seasoning spice salt sugar syrup honey jam butter oil flour rice pasta noodle soup bean
        bread cake fruit vegetable juice drink beverage soda water milk cheese protein keto gluten vegan organic gummy
        gummies food grocery""",
    ),
)
_GOODS_OF_TIER = {goods.tier: goods for goods in _GOODS}
_LONGEST_TASK = 4000
"""Characters of a task that are looked at for words."""
_WORD = re.compile(r"[a-z][a-z-]*[a-z]|[a-z]")
_OPTIONS = re.compile(
    r"\bwith [a-z ]{1,40}:|,? and (?:the )?price\b|,? (?:the )?price (?:is )?(?:lower|less|under)\b"
)
_NO_NAMES = frozenset({"and", "for", "the", "task", "tasks", "with", "skill", "skills"})


def plain_name(tier: str) -> str:
    """A tier's name in small letters and digits alone: `Pick Two` and `pick_two` are the same."""
    return "".join(letter for letter in tier.casefold() if letter.isalnum())


def known_tier(name: str) -> tuple[str, tuple[str, ...]]:
    """(tier, further categories it serves) that skills of another project's tier `name` belong to here."""
    if plain_name(name) in ("", GENERAL):
        return GENERAL, ()
    categories = _HOUSEHOLD_NAMES.get(plain_name(name), ())
    return (categories[0], categories[1:]) if categories else (name, ())


def household_category(path: str, task: str) -> str:
    """The category by the name of the game's folder, else by the sentence, else by words of the task."""
    for part in path.replace("\\", "/").split("/"):
        if category := CATEGORY_OF_TYPE.get(part.split("-")[0]):
            return category
    goal = parse_task(task)
    if goal is not None:
        return goal.category
    lowered = task[:_LONGEST_TASK].lower()
    return next((category for words, category in _HOUSEHOLD_WORDS if words.search(lowered)), "Pick")


def shopping_category(task: str) -> str:
    """The category whose goods a shopping task names most, the last named among equals; `SHOPPING` where it names none."""
    named = _goods_named(task)
    if not named:
        return SHOPPING
    most = max(named.values())
    alike = [goods for goods, count in named.items() if count == most]
    # The thing itself is named last: "fleece lined, side pockets men's jackets".
    return max(alike, key=lambda goods: _last_place(task, goods)).category


def tiers_for(task: str, category: str, tiers: Collection[str], env: str) -> list[str]:
    """Those of `tiers` whose skills are for this task, beside the general one; in the order of `tiers`.

    `env` is the world's name; without it only the tier of the category's own name is found.
    """
    if env == "alfworld":
        wanted = category or household_category("", task)
        return [tier for tier in tiers if tier == wanted or _household(tier) == (wanted,)]
    if env == "webshop":
        return _shop_tiers(task, category, tiers)
    return [tier for tier in tiers if category and tier == category]


def _household(tier: str) -> tuple[str, ...]:
    return _HOUSEHOLD_NAMES.get(plain_name(tier), ())


def _shop_tiers(task: str, category: str, tiers: Collection[str]) -> list[str]:
    if category in ("", SHOPPING):
        category = shopping_category(task)
    names = {tier: plain_name(tier) for tier in tiers if tier != GENERAL}
    found = {tier for tier, name in names.items() if tier == category or name in _ANY_SHOPPING}
    others = {
        tier: name for tier, name in names.items() if tier not in SHOP_CATEGORIES or tier == "electronics"
    }
    hits = {goods.tier: count for goods, count in _goods_named(task).items()}
    known = {tier: hits.get(name, 0) for tier, name in others.items() if name in _GOODS_OF_TIER}
    most = max(known.values(), default=0)
    by_words = {tier for tier, count in known.items() if count == most > 0}
    if not by_words:
        by_words = {tier for tier in known if _GOODS_OF_TIER[names[tier]].category == category}
    words = _words(task)
    by_name = {
        tier
        for tier, name in others.items()
        if name not in _GOODS_OF_TIER and name not in _OTHER_SHOPPING and _name_words(tier) & words
    }
    if not by_words and not by_name and category not in names:
        by_words = {tier for tier, name in others.items() if name in _OTHER_SHOPPING}
    found |= by_words | by_name
    return [tier for tier in tiers if tier in found]


def _goods_named(task: str) -> dict[_Goods, int]:
    """How many different words of each kind of goods a task holds."""
    words = _words(_thing_asked_for(task))
    return {goods: count for goods in _GOODS if (count := len(goods.words & words))}


def _last_place(task: str, goods: _Goods) -> int:
    text = _thing_asked_for(task)[:_LONGEST_TASK].lower()
    return max((m.start() for m in _WORD.finditer(text) if goods.words & _words(m[0])), default=-1)


def _thing_asked_for(task: str) -> str:
    """A shopping task up to its options and its price, whose colours and scents name goods too."""
    match = _OPTIONS.search(task)
    return (task[: match.start()] if match else task).replace("smart watch", "smartwatch")


@lru_cache(maxsize=4096)
def _words(task: str) -> frozenset[str]:
    """The words of a text, each also in the singular, and the parts of `t-shirt` beside it."""
    words: set[str] = set()
    for word in _WORD.findall(task[:_LONGEST_TASK].lower()):
        for part in (word, *word.split("-")):
            words |= {part, part.removesuffix("s"), part.removesuffix("es")}
    return frozenset(words)


@lru_cache(maxsize=1024)
def _name_words(tier: str) -> frozenset[str]:
    return frozenset(w for w in _words(tier.replace("_", " ")) if len(w) > 2 and w not in _NO_NAMES)


# What no task can reach


@dataclass(frozen=True, slots=True)
class Reach:
    """Which skills of a bank the tasks of a world can get into their prompts."""

    skills: int
    """Active ones."""
    never: Mapping[str, int]
    """Tier -> its skills that no task of the world can have in its prompt."""
    by_name: Mapping[str, int]
    """Tier -> skills of tiers that are no category, and reach only tasks whose words name the tier."""

    def told(self, *, server: bool = False) -> str:
        """One line for people; empty where every skill can be in a prompt. A `server` may have other categories."""
        said = []
        if self.never:
            said.append(
                f"{sum(self.never.values())} of {self.skills} skills can never be in a prompt:"
                f" {_tiers(self.never)} match{'es' if len(self.never) == 1 else ''} no category of this world"
                + (", unless its server has them" if server else "")
            )
        if self.by_name:
            said.append(
                f"{sum(self.by_name.values())} of {self.skills} skills are only for tasks whose words name their tier:"
                f" {_tiers(self.by_name)}"
            )
        return "; ".join(said)


def reach(skills: Iterable[Skill], env: str, categories: Sequence[str]) -> Reach:
    """What of the active `skills` can stand in prompts of a world `env` whose tasks have these `categories`."""
    never: Counter[str] = Counter()
    by_name: Counter[str] = Counter()
    active = [skill for skill in skills if skill.status == "active"]
    for skill in active:
        if skill.tier == GENERAL or not {skill.tier, *skill.also}.isdisjoint(categories):
            continue
        name = plain_name(skill.tier)
        if env == "alfworld":
            if not set(_household(skill.tier)) & set(categories):
                never[skill.tier] += 1
        elif name in _ANY_SHOPPING or name in _GOODS_OF_TIER or name in _OTHER_SHOPPING:
            continue
        elif name in _SEARCH_TIERS or name in _HOUSEHOLD_NAMES or not _name_words(skill.tier):
            never[skill.tier] += 1
        else:
            by_name[skill.tier] += 1
    return Reach(len(active), dict(never), dict(by_name))


def _tiers(counts: Mapping[str, int]) -> str:
    names = [clean_text(tier, 40) for tier in counts]
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"tier{'s' if len(names) > 1 else ''} {', '.join(names[:8])}{more}"


def categories_of(env: str) -> tuple[str, ...]:
    """The categories that tasks of an embedded world have."""
    return SHOP_CATEGORIES if env == "webshop" else HOUSEHOLD_CATEGORIES
