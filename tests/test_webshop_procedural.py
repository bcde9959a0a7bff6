"""The procedural shop: always the same, always solvable, no goal in two splits; and who shops in it."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krill_tui.envs.base import StepResult
from krill_tui.envs.webshop import procedural
from krill_tui.envs.webshop.catalogue import CATEGORIES, Catalogue
from krill_tui.envs.webshop.expert import WebshopExpert
from krill_tui.envs.webshop.goals import SPLITS, Goal
from krill_tui.envs.webshop.pages import ObservationMode
from krill_tui.envs.webshop.reading import read_wish
from krill_tui.envs.webshop.reward import COLOURS, score
from krill_tui.envs.webshop.source import WebshopSource
from krill_tui.errors import UsageError

STEPS = 15
PIECES = [
    "WebShop",
    "Instruction:",
    "Find me red, soft things with size: 3, and price lower than 5.00 dollars",
    "Page 1 (Total results: 3)",
    "B01",
    "$3.0",
    "Price: $4.0",
    "< Prev",
    "red",
]


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return procedural.build_catalogue(0, 1000)


@pytest.fixture(scope="module")
def goals(catalogue: Catalogue) -> dict[str, list[Goal]]:
    return {
        split: [procedural.draw_goal(catalogue, 0, split, index) for index in range(150)] for split in SPLITS
    }


def test_a_shop_is_a_function_of_its_seed_and_size(catalogue: Catalogue) -> None:
    procedural.build_catalogue.cache_clear()
    assert procedural.build_catalogue(0, 1000).content_hash() == catalogue.content_hash()
    assert procedural.build_catalogue(1, 1000).content_hash() != catalogue.content_hash()
    assert WebshopSource(0).content_hash() != WebshopSource(1).content_hash()
    # Pinned: recorded tasks name their shop by seed alone.
    assert catalogue.content_hash() == "b8f02bc105c55e4a"


def test_a_shop_holds_every_category_with_options_attributes_and_prices(catalogue: Catalogue) -> None:
    count = Counter(product.category for product in catalogue.products)
    assert len(catalogue.products) == 1000 and set(count) == set(CATEGORIES)
    assert max(count.values()) - min(count.values()) <= 8
    for product in catalogue.products:
        text = f"{product.title} {' '.join(product.bullets)} {product.description}".lower()
        assert all(attribute in text for attribute in product.attributes)
        assert 5 <= min(product.prices) <= max(product.prices) < 1000
    assert sum(bool(product.options) for product in catalogue.products) > 850
    assert sum(len(product.prices) == 2 for product in catalogue.products) > 40


def test_no_option_value_holds_a_colour_word_inside_a_longer_word() -> None:
    for pool in procedural.kinds()["pools"].values():
        for value in pool:
            held = next((colour for colour in COLOURS if colour in value), None)
            assert held is None or held in value.split()


def test_a_perfect_purchase_of_every_goal_scores_exactly_one(
    catalogue: Catalogue, goals: dict[str, list[Goal]]
) -> None:
    for goal in (goal for split in goals.values() for goal in split):
        assert isinstance(goal.options, dict)
        bought = catalogue.by_asin[goal.asin]
        assert score(bought, goal, catalogue.prices[goal.asin], goal.options).reward == 1.0


def test_no_two_splits_ask_for_the_same(goals: dict[str, list[Goal]]) -> None:
    asked = {
        split: {goal.instruction.partition(", and price lower")[0] for goal in drawn}
        for split, drawn in goals.items()
    }
    assert all(len(wishes) > 140 for wishes in asked.values())
    assert sum(map(len, asked.values())) == len(set().union(*asked.values()))


def test_categories_take_turns() -> None:
    tasks = WebshopSource().tasks("valid", 10)
    assert Counter(task.category for task in tasks) == dict.fromkeys(CATEGORIES, 2)
    assert [a.category == b.category for a, b in pairwise(tasks)] == [False] * 9


def test_a_shop_too_small_for_its_splits_is_refused() -> None:
    with pytest.raises(UsageError, match="too small"):
        WebshopSource(size=50)


def test_an_instruction_is_understood() -> None:
    wish = read_wish(
        "Find me arch support, non slip women's sandals with color: black | white, and size: 8.5, "
        "and price lower than 70.00 dollars"
    )
    assert wish.phrases == ("arch support", "non slip women's sandals")
    assert wish.options == {"color": "black | white", "size": "8.5"}
    assert wish.bound == 70.0
    said = read_wish("i am looking for aluminum alloy usb c cable in silver and 6.6ft")
    assert said.phrases == ("aluminum alloy usb c cable in silver and 6.6ft",)
    assert said.bound == float("inf") and not said.options


async def shop(source: WebshopSource, count: int) -> list[float]:
    """The expert's rewards on the test split; 0 where it bought nothing."""
    rewards: list[float] = []
    for task in source.tasks("test", count):
        env, expert = source.open(task), source.expert()
        result = await env.reset()
        for _ in range(STEPS):
            thought, action = expert.act(result)
            assert thought and (action in result.admissible or action.startswith("search["))
            result = await env.step(action)
            if result.done:
                break
        rewards.append(result.reward)
    return rewards


@pytest.mark.parametrize("mode", ["text", "text_rich"])
async def test_the_expert_scores_at_least_nine_tenths_of_what_can_be_had(mode: ObservationMode) -> None:
    rewards = await shop(WebshopSource(observation_mode=mode), 60)
    assert sum(rewards) / len(rewards) >= 0.9
    assert min(rewards) > 0


async def test_the_expert_also_shops_where_its_habits_do_not_help() -> None:
    """Another seed, with no more steps than a purchase takes."""
    source = WebshopSource(seed=5, size=400)
    env, expert = source.open(source.tasks("test", 1)[0]), WebshopExpert(max_steps=5)
    result = await env.reset()
    for _ in range(5):
        result = await env.step(expert.act(result)[1])
    assert result.done and expert.last_hint is None


async def test_the_expert_goes_on_from_where_somebody_else_went() -> None:
    source = WebshopSource(size=400)
    env, expert = source.open(source.tasks("train", 1)[0]), WebshopExpert()
    result = await env.reset()
    result = await env.step(expert.act(result)[1])
    opened = result.admissible[-1]
    expert.act(result)
    result = await env.step(opened)
    rewards: list[float] = []
    for _ in range(13):
        result = await env.step(expert.act(result)[1])
        rewards.append(result.reward)
    assert result.done and max(rewards) > 0.5


@given(
    pages=st.lists(
        st.lists(st.sampled_from(PIECES) | st.text(max_size=8), max_size=9).map(" [SEP] ".join) | st.text(),
        min_size=1,
        max_size=6,
    ),
    names=st.lists(st.sampled_from(["buy now", "b01", "< prev", "features", "red"]), max_size=4),
)
def test_no_page_breaks_the_expert(pages: list[str], names: list[str]) -> None:
    expert = WebshopExpert()
    for page in pages:
        thought, action = expert.act(StepResult(page, tuple(f"click[{name}]" for name in names)))
        assert thought and action
