"""Recorded play of the genuine shop, replayed: pages, actions, rewards, rankings and goals."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import pytest

from krill_tui.envs.webshop.catalogue import Catalogue, load_products
from krill_tui.envs.webshop.goals import Goal, human_goals, in_genuine_order, synthetic_goals
from krill_tui.envs.webshop.nouns import title_nouns
from krill_tui.envs.webshop.reward import COLOURS, score
from krill_tui.envs.webshop.session import Session

Recording = dict[str, Any]


@pytest.fixture(scope="module")
def folder(shared_dir: Path) -> Path:
    path = shared_dir / "webshop"
    if not (path / "transcripts.json").is_file():
        pytest.skip("no recorded play of the shop in the shared folder")
    return path


@pytest.fixture(scope="module")
def recorded(folder: Path) -> Recording:
    return json.loads((folder / "transcripts.json").read_text())


@pytest.fixture(scope="module")
def seen(folder: Path) -> Recording:
    """What the genuine shop made of its product file."""
    return json.loads((folder / "catalogue.json").read_text())


@pytest.fixture
def catalogue(folder: Path) -> Catalogue:
    return Catalogue(load_products(folder))


def read_goal(record: Mapping[str, Any]) -> Goal:
    options = record["goal_options"]
    return Goal(
        asin=record["asin"],
        category=record["category"],
        query=record["query"],
        name=record["name"],
        product_category=record["product_category"],
        instruction=record["instruction_text"],
        attributes=tuple(record["attributes"]),
        price_upper=record["price_upper"],
        options=options if isinstance(options, dict) else tuple(options),
        weight=record["weight"],
    )


def test_products_are_read_as_the_genuine_shop_reads_them(catalogue: Catalogue, seen: Recording) -> None:
    ours = [
        {
            "asin": product.asin,
            "Title": product.title,
            "Price": product.price_tag,
            "pricing": list(product.prices),
            "options": {group: list(values) for group, values in product.options.items()},
            "Attributes": list(product.attributes),
            "BulletPoints": list(product.bullets),
            "Rating": "N.A.",
        }
        for product in catalogue.products
    ]
    assert ours == seen["products_seen"]
    assert list(COLOURS) == seen["colour_words"]


def test_every_recorded_step_is_identical(catalogue: Catalogue, recorded: Recording, seen: Recording) -> None:
    steps = 0
    for play in recorded["transcripts"]:
        of_people = isinstance(play["goal"]["goal_options"], list)
        catalogue.prices = seen["prices_human_run" if of_people else "prices"]
        session = Session(catalogue, read_goal(play["goal"]), name=str(play["session"]), genuine=True)
        for step in play["steps"]:
            reward, done = (None, None) if step["action"] is None else session.step(step["action"])
            assert session.observe("text") == step["obs"]
            assert session.observe("text_rich") == step["obs_text_rich"]
            assert session.url == step["url"]
            assert step["available_actions"] == {
                "has_search_bar": session.has_search_bar,
                "clickables": list(session.clickables),
            }
            assert (reward, done) == (step["reward"], step["done"])
            steps += 1
        details = session.score.details() if session.score else None
        assert details == play["verbose_info"]
    assert steps == 71


def test_every_recorded_reward_is_identical(catalogue: Catalogue, recorded: Recording) -> None:
    for case in recorded["reward_evaluations"]:
        product = catalogue.by_asin[case["purchased_asin"]]
        ours = score(product, read_goal(case["goal"]), case["price"], case["options"])
        assert (ours.reward, ours.details()) == (case["reward"], case["info"]), case["why"]


def test_every_recorded_ranking_is_identical(catalogue: Catalogue, recorded: Recording) -> None:
    for ranking in recorded["search_rankings"]:
        hits = catalogue.index.search(ranking["query"])[: len(ranking["hits"])]
        ours = [(catalogue.products[number].asin, found) for number, found in hits]
        assert [asin for asin, _ in ours] == [asin for asin, _ in ranking["hits"]]
        assert [found for _, found in ours] == pytest.approx(
            [found for _, found in ranking["hits"]], abs=1e-5
        )


def test_the_nouns_of_the_recorded_titles_are_those_of_their_tagger(
    catalogue: Catalogue, recorded: Recording
) -> None:
    ours = {asin: list(title_nouns(catalogue.by_asin[asin].title)) for asin in recorded["title_nouns"]}
    assert ours == recorded["title_nouns"]


@pytest.mark.parametrize(("kind", "draw"), [("synthetic", synthetic_goals), ("human", human_goals)])
def test_goals_have_the_genuine_numbers(catalogue: Catalogue, seen: Recording, kind: str, draw: Any) -> None:
    prices = seen["prices" if kind == "synthetic" else "prices_human_run"]
    catalogue.prices = prices
    ours = in_genuine_order(draw(catalogue, Random(0)))
    genuine = [read_goal(record) for record in seen[f"{kind}_goals"]]
    # Price bounds are drawn anew by every process, so only their rule can be compared.
    assert [without_bound(goal) for goal in ours] == [without_bound(goal) for goal in genuine]
    for goal in (*ours, *genuine):
        above = [bound for bound in range(10, 1000, 10) if bound > prices[goal.asin]][:4]
        assert goal.price_upper in (above[1:] if len(above) > 1 else [1_000_000])
        stated = f", and price lower than {goal.price_upper:.2f} dollars"
        assert goal.instruction.endswith(stated) == (goal.price_upper < 1_000_000)


def without_bound(goal: Goal) -> tuple[object, ...]:
    asked = goal.instruction.partition(", and price lower than ")[0]
    return goal.asin, asked, goal.attributes, goal.options, goal.weight, goal.query, goal.product_category
