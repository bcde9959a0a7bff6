"""Products of the shop, read from the genuine files (WebShop specification A7).

A data folder holds `items_shuffle.json` (a list of items), and beside it, where there are any,
`items_ins_v2.json` (attributes and instructions by ASIN) and `items_human_ins.json` (what people asked
for); or the same files of the small set, with `_1000` in their names; or one `catalogue.json` with the
keys `items`, `attributes` and `human_instructions`.
"""

from __future__ import annotations

import gc
import hashlib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from krill_tui.envs.webshop.search import SearchIndex
from krill_tui.errors import DataError, UsageError
from krill_tui.io.text import storable

CATEGORIES = ("beauty", "electronics", "fashion", "garden", "grocery")

DEFAULT_PRICE = 100.0
"""Of a product without a price."""
_MAX_ASIN = 10
_NO_ATTRIBUTES = ("DUMMY_ATTR",)
_FILES = (
    ("items_shuffle.json", "items_ins_v2.json"),
    ("items_shuffle_1000.json", "items_ins_v2_1000.json"),
)
_HUMAN_FILE = "items_human_ins.json"
_BUNDLE = "catalogue.json"


@dataclass(frozen=True, slots=True)
class HumanRequest:
    """What a person asked for, with this product in mind."""

    text: str
    attributes: tuple[str, ...]
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Product:
    """One item of the shop, as its pages show it."""

    asin: str
    title: str
    description: str
    bullets: tuple[str, ...]
    options: Mapping[str, tuple[str, ...]]
    """Option group -> its values, all lower case."""
    attributes: tuple[str, ...]
    prices: tuple[float, ...]
    """One price, or the two ends of a range; dollars."""
    category: str
    """Usually one of CATEGORIES."""
    query: str
    product_category: str
    """Levels joined by ` › `."""
    instruction: str = ""
    instruction_attributes: tuple[str, ...] = ()
    requests: tuple[HumanRequest, ...] = ()

    @property
    def price_tag(self) -> str:
        """As pages show it: `$32.99`, `$100.0` or `$24.99 to $34.99`."""
        return " to ".join(f"${price}" for price in self.prices)

    def indexed_text(self) -> str:
        """What the search engine knows of the product."""
        options = ", and ".join(f"{group}: {', '.join(values)}" for group, values in self.options.items())
        bullet = self.bullets[0] if self.bullets else ""
        return f"{self.title} {self.description} {bullet} {options}"


class Catalogue:
    """All products, what each costs, and the index that finds them."""

    def __init__(self, products: Sequence[Product], *, seed: int = 0) -> None:
        self.products = tuple(products)
        self.by_asin = {product.asin: product for product in self.products}
        rng = Random(f"webshop/prices/{seed}")
        self.prices = {product.asin: _draw_price(product, rng) for product in self.products}
        """ASIN -> the price a purchase is judged by; drawn from the range where there is one."""
        self.index = SearchIndex(product.indexed_text() for product in self.products)

    def search(self, query: str, limit: int = 50) -> list[Product]:
        return [self.products[number] for number, _ in self.index.search(query, limit)]

    def content_hash(self) -> str:
        digest = hashlib.sha256()
        for product in self.products:
            digest.update(f"{product!r} {self.prices[product.asin]}\n".encode(errors="surrogatepass"))
        return digest.hexdigest()[:16]


def _draw_price(product: Product, rng: Random) -> float:
    return product.prices[0] if len(product.prices) == 1 else rng.uniform(*product.prices)


def load_products(
    folder: Path, limit: int | None = None, *, left_out: list[str] | None = None
) -> list[Product]:
    """The products of a data folder, at most `limit` of them; why others are none is added to `left_out`.

    Raises:
        UsageError: there is no product file.
        DataError: a file is not what it should be, or holds not one product; names the file, the item and the field.
    """
    with _collector_paused():
        return _load(folder, limit, left_out)


def _load(folder: Path, limit: int | None, left_out: list[str] | None) -> list[Product]:
    if (folder / _BUNDLE).is_file():
        bundle = _mapping(_read(folder / _BUNDLE), _BUNDLE)
        return parse_products(
            bundle.get("items"),
            bundle.get("attributes"),
            bundle.get("human_instructions"),
            limit=limit,
            left_out=left_out,
        )
    for items, attributes in _FILES:
        if (folder / items).is_file():
            extra, human = folder / attributes, folder / _HUMAN_FILE
            return parse_products(
                _read(folder / items),
                _read(extra) if extra.is_file() else None,
                _read(human) if human.is_file() else None,
                limit=limit,
                left_out=left_out,
            )
    raise UsageError(
        f"there is no product file in {folder}",
        hint=f"it must hold {' or '.join(name for name, _ in _FILES)}, or {_BUNDLE}",
    )


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Millions of new objects without garbage: looking for cycles among them would take most of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path.name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name} is not a JSON file: {error}") from error


def parse_products(
    items: Any,
    attributes: Any = None,
    human_instructions: Any = None,
    *,
    limit: int | None = None,
    left_out: list[str] | None = None,
) -> list[Product]:
    """Products from the decoded files; items with an unusable or repeated ASIN are skipped, as in the original.

    One that cannot be a product (a price in words, a field missing) is left out, and why is added to `left_out`; the
    original falls over it.

    Raises:
        DataError: a file is not what it should be, or not one item is a product; names the first.
    """
    reasons = left_out if left_out is not None else []
    hint: str | None = None
    if not isinstance(items, list):
        raise DataError("the product file must hold a list of items")
    extra = _mapping(attributes or {}, "the attributes file")
    human = _mapping(human_instructions or {}, "the file of human instructions")
    products: dict[str, Product] = {}
    for number, item in enumerate(items):
        where = f"product {number}"
        try:
            asin = _text(_mapping(item, where), "asin", where)
            if asin == "nan" or len(asin) > _MAX_ASIN or asin in products:
                continue
            if limit is not None and len(products) >= limit:
                break
            products[asin] = _product(asin, item, extra.get(asin), human.get(asin), f"{where} ({asin!r})")
        except DataError as error:
            reasons.append(error.message)
            hint = hint or error.hint
    if reasons and not products:
        raise DataError(reasons[0], hint=hint)
    return list(products.values())


def _product(asin: str, item: Mapping[str, Any], extra: Any, human: Any, where: str) -> Product:
    known = _mapping(extra or {}, f"attributes of {where}")
    bullets = item.get("small_description") or []
    return Product(
        asin=asin,
        title=_text(item, "name", where),
        description=_text(item, "full_description", where, default=""),
        bullets=(storable(bullets),)
        if isinstance(bullets, str)
        else _texts(bullets, "small_description", where),
        options=_options(item.get("customization_options"), where),
        attributes=_texts(known.get("attributes") or _NO_ATTRIBUTES, "attributes", where),
        prices=_prices(item.get("pricing"), where),
        category=_text(item, "category", where),
        query=_text(item, "query", where).lower().strip(),
        product_category=_text(item, "product_category", where),
        instruction=_text(known, "instruction", where, default=""),
        instruction_attributes=_texts(
            known.get("instruction_attributes") or (), "instruction_attributes", where
        ),
        requests=_requests(human, where),
    )


def _prices(pricing: Any, where: str) -> tuple[float, ...]:
    """`$12.99`, or `$10.00$25.00`; commas are left out."""
    if not pricing:
        return (DEFAULT_PRICE,)
    parts = pricing.split("$")[1:] if isinstance(pricing, str) else []
    try:
        prices = tuple(float(re.sub(r"[^\d.]", "", part)) for part in parts[:2])
    except ValueError:
        prices = ()
    if not prices or not all(math.isfinite(price) for price in prices):
        raise DataError(f"{where}: {_short(pricing)} is not a price", hint="such as $12.99 or $10.00$25.00")
    return prices


def _options(groups: Any, where: str) -> dict[str, tuple[str, ...]]:
    if not groups:
        return {}
    options: dict[str, tuple[str, ...]] = {}
    for group, contents in _mapping(groups, f"{where}: customization_options").items():
        if contents is None:
            continue
        if not isinstance(contents, list):
            raise DataError(f"{where}: the option group {_short(group)} must be a list")
        options[storable(group).lower()] = tuple(
            _option_value(content, group, where).strip().replace("/", " | ").lower() for content in contents
        )
    return options


def _option_value(content: Any, group: str, where: str) -> str:
    value = content.get("value") if isinstance(content, dict) else None
    if not isinstance(value, str):
        raise DataError(f"{where}: an option of {_short(group)} has no text as its 'value'")
    return storable(value)


def _requests(human: Any, where: str) -> tuple[HumanRequest, ...]:
    if not human:
        return ()
    if not isinstance(human, list):
        raise DataError(f"{where}: its human instructions must be a list")
    where = f"human instruction of {where}"
    records = [_mapping(record, where) for record in human]
    return tuple(
        HumanRequest(
            text=_text(record, "instruction", where),
            attributes=_texts(record.get("instruction_attributes") or (), "instruction_attributes", where),
            options=_texts(record.get("instruction_options") or (), "instruction_options", where),
        )
        for record in records
    )


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{what} must be an object with named fields, not {_short(value)}")
    return value


def _text(record: Mapping[str, Any], field: str, where: str, default: str | None = None) -> str:
    value = record.get(field)
    if value is None and default is not None:
        return default
    if not isinstance(value, str):
        problem = f"has no '{field}'" if value is None else f"has {_short(value)} for '{field}', not a text"
        raise DataError(f"{where} {problem}")
    return storable(value)


def _texts(values: Any, field: str, where: str) -> tuple[str, ...]:
    if isinstance(values, Iterable) and not isinstance(values, str):
        texts = tuple(values)
        if all(isinstance(text, str) for text in texts):
            return tuple(map(storable, texts))
    raise DataError(f"{where} has {_short(values)} for '{field}', not a list of texts")


def _short(value: Any) -> str:
    """A value for a message of one line."""
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
