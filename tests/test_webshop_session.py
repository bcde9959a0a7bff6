"""The shop's rules, on a procedural shop: actions, pages, search, what happens after the purchase."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from krill_tui.envs.webshop import procedural
from krill_tui.envs.webshop.catalogue import Catalogue, Product, parse_products
from krill_tui.envs.webshop.goals import make_goal
from krill_tui.envs.webshop.porter import stem
from krill_tui.envs.webshop.search import SearchIndex, analyze
from krill_tui.envs.webshop.session import Session, parse_action
from krill_tui.envs.webshop.source import WebshopSource
from krill_tui.errors import UsageError

SIZE = 400


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return procedural.build_catalogue(0, SIZE)


def visit(catalogue: Catalogue, *, genuine: bool = False, index: int = 0) -> Session:
    return Session(catalogue, procedural.draw_goal(catalogue, 0, "train", index), genuine=genuine)


def at_target(catalogue: Catalogue, **options: bool) -> Session:
    """A visit that stands at the product it was asked for, found by its exact title."""
    session = visit(catalogue, **options)
    session.step(f"search[{session.goal.name}]")
    session.step(f"click[{session.goal.asin}]")
    assert "buy now" in session.clickables
    return session


def shop_of(**fields: object) -> tuple[Catalogue, Product]:
    item = {
        "asin": "B000000001",
        "name": "Plain Thing",
        "category": "garden",
        "query": "things",
        "product_category": "A › B",
    }
    catalogue = Catalogue(parse_products([item | fields]))
    return catalogue, catalogue.products[0]


def shop_visit(**fields: object) -> Session:
    catalogue, product = shop_of(**fields)
    return Session(catalogue, make_goal(product, "Find me a thing", ("good",), {}, (50.0, "")))


GENUINE_ACTION = re.compile(r"(.+)\[(.+)\]")


@given(st.text(alphabet="ab[]\n \rİ", max_size=12) | st.text())
def test_actions_are_read_as_the_genuine_regular_expression_reads_them(text: str) -> None:
    match = GENUINE_ACTION.match(text)
    assert parse_action(text) == ((match[1], match[2].lower()) if match else ("", ""))


def test_a_very_long_action_is_read_at_once() -> None:
    assert parse_action("[" * 2_000_000) == ("", "")
    assert parse_action("]" + "[" * 1_000_000) == ("", "")


words = st.sampled_from(
    ["click[buy now]", "click[< prev]", "click[next >]", "click[back to search]", "click[features]"]
)
queries = st.sampled_from(["<r>", "<q> coffee", "<c> beauty", "<c>", "<a> x", "coffee", " "]).map(
    "search[{}]".format
)
listed = st.integers(0, 40)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    genuine=st.booleans(),
    actions=st.lists(st.text() | st.text().map("search[{}]".format) | words | queries | listed, max_size=15),
)
def test_no_text_breaks_a_visit_and_rewards_stay_within_bounds(
    catalogue: Catalogue, genuine: bool, actions: list[str | int]
) -> None:
    session = visit(catalogue, genuine=genuine)
    for action in actions:
        if isinstance(action, int):
            names = list(session.clickables) or ["nothing"]
            action = f"click[{names[action % len(names)]}]"
        reward, done = session.step(action)
        assert 0.0 <= reward <= 1.0
        assert done or reward == 0.0
        assert session.observe("text")
        assert session.observe("text_rich").endswith("\n")


def test_the_wanted_product_with_the_wanted_options_earns_exactly_one(catalogue: Catalogue) -> None:
    session = at_target(catalogue)
    assert isinstance(session.goal.options, dict)
    for value in session.goal.options.values():
        session.step(f"click[{value}]")
    assert session.step("click[Buy Now]") == (1.0, True)
    assert session.score and session.score.details()["r_type"] == 1.0


def test_a_purchase_without_the_wanted_options_earns_less(catalogue: Catalogue) -> None:
    session = at_target(catalogue)
    assert session.goal.options
    reward, done = session.step("click[buy now]")
    assert done and 0 < reward < 1


def test_after_the_purchase_the_shop_is_closed_unless_genuine(catalogue: Catalogue) -> None:
    closed, genuine = at_target(catalogue), at_target(catalogue, genuine=True)
    for session in (closed, genuine):
        session.step("click[buy now]")
        assert not session.clickables
        receipt = session.observe()
        assert session.step("click[buy now]") == (0.0, False)
        assert session.observe() == receipt
        session.step("search[coffee]")
    assert closed.observe().startswith("Thank you")
    assert "Total results" in genuine.observe()


def test_special_queries_are_ordinary_words_unless_genuine(catalogue: Catalogue) -> None:
    ours, genuine = visit(catalogue), visit(catalogue, genuine=True)
    for session in (ours, genuine):
        session.step("search[<q> potato chips]")
    count = sum(product.query == "potato chips" for product in catalogue.products)
    assert f"(Total results: {count})" in genuine.observe()
    assert f"(Total results: {count})" not in ours.observe()
    genuine.step("search[<r> whatever]")
    assert "(Total results: 50)" in genuine.observe()
    before = genuine.observe()
    for broken in ("search[<a> easy]", "search[<c>]"):
        assert not genuine.accepts(broken)
        genuine.step(broken)
        assert genuine.observe() == before
    assert ours.accepts("search[<a> easy]")


def test_an_action_counts_as_accepted_exactly_when_the_page_knows_it(catalogue: Catalogue) -> None:
    session = at_target(catalogue)
    assert session.accepts("click[Buy Now] please")
    assert session.accepts("search[anything at all]")
    for text in ("click[search]", "Click[buy now]", " click[next >]", "buy now", "search[]", "", "think[x]"):
        assert not session.accepts(text)


def test_text_of_products_is_never_markup() -> None:
    title = '<b>Bold</b> &amp; "12\'" <script>alert(1)</script> \x1b[31m'
    session = shop_visit(name=title, full_description="<p>one</p>", small_description=["<li>two", ""])
    session.step("search[bold]")
    assert title.strip() in session.observe()
    session.step("click[b000000001]")
    session.step("click[description]")
    assert session.observe().endswith("[SEP] <p>one</p>")
    session.step("click[< prev]")
    session.step("click[features]")
    assert session.observe("text_rich").endswith("\n <li>two\n \n")


def test_a_value_of_two_groups_selects_the_last_and_buttons_win_over_values() -> None:
    values = [{"value": "Black"}, {"value": "Features"}, {"value": "A/B"}]
    session = shop_visit(customization_options={"Color": values, "Trim": values[:1], "None": None})
    session.step("search[plain]")
    session.step("click[b000000001]")
    names = list(session.clickables)
    assert names.count("black") == 1 and "a | b" in names
    session.step("click[black]")
    assert session.url.endswith('{"trim": "black"}')
    session.step("click[features]")
    assert "item_sub_page" in session.url


def test_blank_texts_make_no_piece_and_broken_lines_are_not_shown() -> None:
    session = shop_visit(full_description="", small_description=["kept", "\n \t"])
    session.step("search[plain]")
    session.step("click[b000000001]")
    session.step("click[description]")
    assert session.observe().endswith("Back to Search [SEP] < Prev")
    session.step("click[< prev]")
    session.step("click[features]")
    # A leading blank makes the second bullet " \n \t", which holds a line break.
    assert session.observe("text_rich").endswith("\n kept\n")


@pytest.mark.parametrize(
    ("text", "terms"),
    [
        ("3.3ft 1,249.50 u.s.a don't", ["3.3ft", "1,249.50", "u.s.a", "don't"]),
        ("T-Shirt 16:9 black/white", ["t", "shirt", "16", "9", "black", "white"]),
        ("Men's and women’s", ["men", "women"]),
        ("the of to", []),
        ("日本 nike™ ½ cup x_y __ a·b", ["日", "本", "nike", "™", "cup", "x_y", "a·b"]),
        ("running sandals easily", ["run", "sandal", "easili"]),
        ("b" * 300, ["b" * 255, "b" * 45]),
    ],
)
def test_texts_are_cut_into_terms_as_lucene_cuts_them(text: str, terms: list[str]) -> None:
    assert analyze(text) == terms


def test_attributes_have_a_page_where_they_are_shown() -> None:
    catalogue, product = shop_of()
    goal = make_goal(product, "Find me a thing", ("good",), {}, (50.0, ""))
    session = Session(catalogue, goal, show_attributes=True)
    for action in ("search[plain]", "click[b000000001]", "click[attributes]"):
        assert session.accepts(action)
        session.step(action)
    assert session.observe().endswith("< Prev [SEP] DUMMY_ATTR [SEP] garden [SEP] things [SEP] A › B")


WORDS_AND_STEMS = """
caresses>caress ponies>poni cats>cat agreed>agre plastered>plaster motoring>motor sing>sing
hopping>hop falling>fall filing>file happy>happi sky>sky relational>relat digitizer>digit
vietnamization>vietnam sensibiliti>sensibl technology>technolog visibly>visibl electrical>electr
hopeful>hope adjustment>adjust adoption>adopt effective>effect probate>probat rate>rate
controller>control roll>roll is>is
"""
STEMS = WORDS_AND_STEMS.split()


@pytest.mark.parametrize("pair", STEMS)
def test_words_have_their_porter_stems(pair: str) -> None:
    word, expected = pair.split(">")
    assert stem(word) == expected


@settings(max_examples=50, deadline=None)
@given(
    documents=st.lists(
        st.lists(st.sampled_from(["red", "blue", "wool", "lamp", "3.3ft", "x"]), max_size=60), max_size=12
    ),
    query=st.lists(st.sampled_from(["red", "blue", "wool", "lamp", "none"]), max_size=5),
)
def test_the_index_ranks_like_the_formula_written_out(documents: list[list[str]], query: list[str]) -> None:
    lengths = [len(document) for document in documents]
    filled = sum(map(bool, lengths))

    def stored(length: int) -> int:
        if length < 40:
            return length
        digits = f"{length - 24:b}"
        return 24 + int(digits[:4].ljust(len(digits), "0"), 2)

    def total(document: list[str]) -> float:
        found = 0.0
        for term in query:
            frequency = document.count(term)
            if frequency:
                holders = sum(term in other for other in documents)
                idf = np.log(1 + (filled - holders + 0.5) / (holders + 0.5))
                average = sum(lengths) / filled
                norm = 0.9 * (1 - 0.4 + 0.4 * stored(len(document)) / average)
                found += idf * frequency / (frequency + norm)
        return float(np.float32(found))

    scores = [total(document) for document in documents]
    expected = sorted((n for n, found in enumerate(scores) if found > 0), key=lambda n: (-scores[n], n))
    hits = SearchIndex(map(" ".join, documents)).search(" ".join(query), limit=5)
    assert [number for number, _ in hits] == expected[:5]
    assert [found for _, found in hits] == pytest.approx([scores[n] for n in expected[:5]], rel=1e-6)


async def test_the_environment_repeats_its_last_result_after_the_purchase() -> None:
    source = WebshopSource(size=SIZE)
    env = source.open(source.tasks("train", 1)[0])
    first = await env.reset()
    assert first.admissible == ("search[<your query>]", "click[search]")
    assert first.observation.split(" [SEP] ")[2] == env.task.description
    page = await env.step("search[thing with features]")
    while not page.done:
        page = await env.step(next(a for a in reversed(page.admissible) if a != "click[< prev]"))
        if "click[buy now]" in page.admissible:
            page = await env.step("click[buy now]")
    assert page.admissible == () and page.info["free_form"] == ()
    assert page.won == (page.reward == 1.0)
    assert await env.step("search[coffee]") is page
    await env.close()


def test_a_task_is_rebuilt_from_its_id_alone() -> None:
    source = WebshopSource(size=SIZE)
    task = source.tasks("test", 3, seed=2)[2]
    again = WebshopSource(size=SIZE).open(task.model_copy(update={"ref": "", "category": ""}))
    assert again.task.description == source.open(task).task.description
    assert again.task.category == task.category
    for wrong in (
        "webshop/builtin/nowhere/0/1",
        "webshop/files/test/0/1",
        "../../etc/passwd",
        "webshop/builtin/test/0/x",
    ):
        with pytest.raises(UsageError, match="is no task of this shop"):
            source.open(task.model_copy(update={"id": wrong}))
    with pytest.raises(UsageError, match="there is no split 'train2'"):
        source.tasks("train2", 1)
