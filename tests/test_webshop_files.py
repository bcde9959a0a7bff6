"""Product files: what is read, what is skipped, and how a bad file is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krill_tui.envs.webshop import procedural
from krill_tui.envs.webshop.catalogue import Catalogue, load_products, parse_products
from krill_tui.envs.webshop.goals import SPLITS
from krill_tui.envs.webshop.source import WebshopSource
from krill_tui.errors import DataError, KrillError, UsageError


def item(**fields: Any) -> dict[str, Any]:
    return {
        "asin": "B000000001",
        "name": "Plain Thing",
        "category": "garden",
        "query": " Things ",
        "product_category": "Home › Things",
        "full_description": "It is plain.",
        "small_description": ["One", "Two"],
        "pricing": "$1,249.50",
        "images": [],
        "customization_options": {"Color": [{"value": " Red/Blue ", "image": None}], "size": None},
        **fields,
    }


def test_a_product_is_read_as_the_original_reads_it() -> None:
    product = parse_products([item()])[0]
    assert product.options == {"color": ("red | blue",)}
    assert product.price_tag == "$1249.5"
    assert product.query == "things"
    assert product.attributes == ("DUMMY_ATTR",)
    assert product.indexed_text() == "Plain Thing It is plain. One color: red | blue"


@pytest.mark.parametrize(
    ("pricing", "tag"),
    [("", "$100.0"), (None, "$100.0"), ("$10.00$25.00", "$10.0 to $25.0"), ("$1$2$3", "$1.0 to $2.0")],
)
def test_prices_may_be_missing_or_ranges(pricing: str | None, tag: str) -> None:
    assert parse_products([item(pricing=pricing)])[0].price_tag == tag


def test_unusable_and_repeated_items_are_skipped() -> None:
    items = [item(), item(name="Again"), item(asin="nan"), item(asin="B0000000012"), item(asin="B2")]
    assert [product.asin for product in parse_products(items)] == ["B000000001", "B2"]
    assert len(parse_products(items, limit=1)) == 1


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ({}, "must hold a list of items"),
        (["x"], "product 0 must be an object with named fields, not 'x'"),
        ([{}], "product 0 has no 'asin'"),
        ([item(name=None)], "has no 'name'"),
        ([item(query=3)], "has 3 for 'query', not a text"),
        ([item(pricing="cheap")], "'cheap' is not a price"),
        ([item(pricing="$1.2.3")], "is not a price"),
        ([item(pricing="$")], "is not a price"),
        ([item(pricing="$" + "9" * 400)], "is not a price"),
        ([item(customization_options=["red"])], "customization_options must be an object"),
        ([item(customization_options={"color": "red"})], "the option group 'color' must be a list"),
        ([item(customization_options={"color": [{}]})], "has no text as its 'value'"),
        ([item(small_description=[1])], "not a list of texts"),
    ],
)
def test_a_wrong_product_is_named_in_one_line(items: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        parse_products(items)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_a_product_that_is_none_is_left_out_and_said(tmp_path: Path) -> None:
    records = [
        item(asin="B1", pricing="Currently unavailable"),
        item(asin="B2"),
        item(asin="B3", category=None),
        7,
        item(asin="B4", customization_options={"color": [{"value": "\ud800"}]}),
        item(asin="B5"),
    ]
    left_out: list[str] = []
    products = parse_products(records, {"B5": 3}, left_out=left_out)
    assert [product.asin for product in products] == ["B2", "B4"]
    assert [line.split(" (")[0].split(" has")[0].split(" must")[0] for line in left_out] == [
        "product 0",
        "product 2",
        "product 3",
        "attributes of product 5",
    ]
    assert products[1].options == {"color": ("\ufffd",)}
    (tmp_path / "items_shuffle.json").write_text(json.dumps(records))
    asked = {"attributes": ["a"], "instruction": "i want a thing", "instruction_attributes": ["a"]}
    (tmp_path / "items_ins_v2.json").write_text(json.dumps({"B2": asked}))
    notices = WebshopSource(data_dir=tmp_path).notices()
    assert notices[0].startswith(
        "3 of 6 products cannot be read and are left out: product 0 ('B1'): 'Currently unavailable' is not a price"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not a JSON file"),
        (b"[1, 2", "is not a JSON file"),
        (b"\xff\xfe\x00", "is not a JSON file"),
        (b"[" * 100_000, "is not a JSON file"),
        (b"null", "must hold a list of items"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "items_shuffle.json").write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        load_products(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_products_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no product file"):
        load_products(tmp_path)
    (tmp_path / "items_shuffle.json").mkdir()
    with pytest.raises(UsageError, match="there is no product file"):
        load_products(tmp_path)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(field=st.sampled_from(sorted(item())), value=values, extra=values, human=values)
def test_any_json_is_read_or_refused_never_a_crash(field: str, value: Any, extra: Any, human: Any) -> None:
    try:
        products = parse_products([item(**{field: value})], {"B000000001": extra}, {"B000000001": human})
    except KrillError as error:
        assert "\n" not in str(error)
    else:
        Catalogue(products).search("plain thing")


def write_small_set(folder: Path) -> None:
    items, extra = procedural.draw_records(3, 200)
    (folder / "items_shuffle_1000.json").write_text(json.dumps(items))
    (folder / "items_ins_v2_1000.json").write_text(json.dumps(extra))
    asked = {
        "instruction": "i want a thing.",
        "instruction_attributes": extra[items[0]["asin"]]["attributes"],
        "instruction_options": [],
    }
    (folder / "items_human_ins.json").write_text(json.dumps({items[0]["asin"]: [asked]}))


async def test_a_data_folder_gives_tasks_whose_splits_share_no_goal(tmp_path: Path) -> None:
    write_small_set(tmp_path)
    source = WebshopSource(data_dir=tmp_path)
    sizes = source.splits()
    assert set(sizes) == set(SPLITS) and min(sizes.values()) > 0
    drawn = {split: {task.description for task in source.tasks(split, 10**6)} for split in SPLITS}
    wishes = {split: {text.partition(", and price")[0] for text in texts} for split, texts in drawn.items()}
    assert sum(map(len, wishes.values())) == len(set().union(*wishes.values()))
    task = source.tasks("test", 1, seed=4)[0]
    env = WebshopSource(data_dir=tmp_path).open(task)
    assert task.description in (await env.reset()).observation
    assert source.content_hash() == WebshopSource(data_dir=tmp_path).content_hash()


def test_genuine_splits_follow_goal_numbers(tmp_path: Path) -> None:
    write_small_set(tmp_path)
    source = WebshopSource(data_dir=tmp_path, genuine=True)
    sizes = source.splits()
    assert sizes["test"] == 500 and sizes["valid"] == 1000 and sizes["train"] > 0
    assert all(int(task.ref) < 500 for task in source.tasks("test", 500))


def test_goals_that_nothing_can_meet_are_only_asked_for_when_genuine(tmp_path: Path) -> None:
    sizes = [{"value": value} for value in ("Standard", "Large")]
    (tmp_path / "items_shuffle.json").write_text(json.dumps([item(customization_options={"Size": sizes})]))
    extra = {"attributes": ["good"], "instruction": "Find me good things", "instruction_attributes": ["good"]}
    (tmp_path / "items_ins_v2.json").write_text(json.dumps({"B000000001": extra}))
    assert sum(WebshopSource(data_dir=tmp_path).splits().values()) == 1
    assert sum(WebshopSource(data_dir=tmp_path, genuine=True).splits().values()) == 2


def test_what_people_asked_for_can_be_the_goals(tmp_path: Path) -> None:
    write_small_set(tmp_path)
    source = WebshopSource(data_dir=tmp_path, human_goals=True)
    assert sum(source.splits().values()) == 1
    split = next(split for split, size in source.splits().items() if size)
    assert source.tasks(split, 5)[0].description.startswith("i want a thing, and price lower than")
    with pytest.raises(UsageError, match="it has 1 goals"):
        source.open(source.tasks(split, 1)[0].model_copy(update={"id": f"webshop/files/{split}/0/9"}))


def test_files_without_instructions_are_refused(tmp_path: Path) -> None:
    (tmp_path / "items_shuffle.json").write_text(json.dumps([item()]))
    with pytest.raises(DataError, match="nothing can be asked for"):
        WebshopSource(data_dir=tmp_path)
