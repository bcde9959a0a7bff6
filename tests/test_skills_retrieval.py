from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np
import pytest

from krill_tui.models.builtin_embedder import BuiltinEmbedder
from krill_tui.skill import GENERAL, SkillOrigin, SkillProposal, SkillStatus
from krill_tui.skills.bank import SkillBank
from krill_tui.skills.dedupe import find_duplicate
from krill_tui.skills.retrieval import RetrievalOptions, Retriever, select_skills

ORIGIN = SkillOrigin()


class AxisEmbedder:
    """Texts are vectors written out: `0.6 0.8` is [0.6, 0.8]."""

    name = "axis"

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def embed(self, texts: Sequence[str]) -> np.ndarray:
        self.asked += texts
        return np.array([[float(x) for x in text.split(". ")[0].split()] for text in texts], dtype=np.float32)

    async def close(self) -> None:
        """Nothing to let go of."""


def bank_of(*skills: tuple[str, str]) -> SkillBank:
    bank = SkillBank.in_memory()
    for vector, tier in skills:
        bank.add(SkillProposal(name=vector, principle=f"do {vector}", tier=tier), ORIGIN)
    return bank


BANK = (
    ("0 1", GENERAL),
    ("1 0", GENERAL),
    ("0.6 0.8", GENERAL),
    ("0.4 0.9", "Heat"),
    ("0.8 0.6", "Heat"),
    ("1 0", "Heat"),
    ("1 0", "Cool"),
)


async def test_general_skills_come_first_best_first_then_the_categorys_above_the_threshold() -> None:
    options = RetrievalOptions(top_k=6, threshold=0.5, general_top_k=2)
    selection = await select_skills(bank_of(*BANK), "1 0", "Heat", embedder=AxisEmbedder(), options=options)
    assert [s.id for s in selection.skills] == ["gen_002", "gen_003", "heat_003", "heat_002"]
    assert {left.id: left.reason for left in selection.left_out} == {
        "gen_001": "past general_top_k",
        "heat_001": "below the threshold",
    }
    assert selection.scores["heat_002"] == pytest.approx(0.8)
    assert "cool_001" not in selection.scores


async def test_the_threshold_is_exclusive_as_in_the_formula() -> None:
    options = RetrievalOptions(threshold=1.0)
    selection = await select_skills(
        bank_of(("1 0", "Heat")), "1 0", "Heat", embedder=AxisEmbedder(), options=options
    )
    assert selection.skills == ()


async def test_only_the_k_best_of_a_category_are_taken() -> None:
    options = RetrievalOptions(top_k=1, threshold=0.0, general_top_k=0)
    selection = await select_skills(bank_of(*BANK), "1 0", "Heat", embedder=AxisEmbedder(), options=options)
    assert [s.id for s in selection.skills] == ["heat_003"]
    assert [left.reason for left in selection.left_out].count("past top_k") == 2


async def test_template_mode_takes_the_category_in_bank_order_whatever_the_scores() -> None:
    options = RetrievalOptions(mode="template", top_k=2, threshold=0.99, general_top_k=1)
    selection = await select_skills(bank_of(*BANK), "1 0", "Heat", embedder=AxisEmbedder(), options=options)
    assert [s.id for s in selection.skills] == ["gen_002", "heat_001", "heat_002"]


async def test_what_does_not_fit_the_token_budget_is_left_out_and_said() -> None:
    options = RetrievalOptions(mode="template", general_top_k=2, top_k=1, token_budget=25)
    costs = {"gen_002": 10, "gen_003": 20, "heat_001": 15}
    selection = await select_skills(
        bank_of(*BANK),
        "1 0",
        "Heat",
        embedder=AxisEmbedder(),
        options=options,
        count_tokens=lambda skill: costs[skill.id],
    )
    assert [s.id for s in selection.skills] == ["gen_002", "heat_001"]
    assert selection.tokens == 25
    assert ("gen_003", "over the token budget") in [(left.id, left.reason) for left in selection.left_out]


async def test_a_changed_bank_is_seen_at_the_next_selection_and_only_new_texts_are_embedded() -> None:
    bank, embedder = bank_of(("1 0", GENERAL), ("0 1", GENERAL)), AxisEmbedder()
    retriever = Retriever(bank, embedder)
    await retriever.select("1 0", "")
    bank.edit("gen_002", name="0.6 0.8")
    bank.set_status("gen_001", SkillStatus.DISABLED)
    embedder.asked.clear()
    selection = await retriever.select("1 0", "")
    assert embedder.asked == ["0.6 0.8. do 0 1"]
    assert [s.id for s in selection.skills] == ["gen_002"]
    assert selection.bank_version == bank.version


async def test_episodes_that_begin_at_once_embed_each_text_once() -> None:
    class Slow(AxisEmbedder):
        async def embed(self, texts: Sequence[str]) -> np.ndarray:
            await asyncio.sleep(0)
            return await super().embed(texts)

    embedder = Slow()
    retriever = Retriever(bank_of(("1 0", GENERAL)), embedder)
    found = await asyncio.gather(*(retriever.select(task, "") for task in ("1 0", "0 1") * 8))
    assert sorted(embedder.asked) == ["0 1", "1 0", "1 0. do 1 0"]
    assert [round(selection.scores["gen_001"]) for selection in found] == [1, 0] * 8


async def test_an_empty_bank_gives_an_empty_selection() -> None:
    assert (await select_skills(SkillBank.in_memory(), "1 0", "Heat", embedder=AxisEmbedder())).skills == ()


async def test_the_task_ranks_the_location_skill_of_its_object_first_with_the_builtin_embedder() -> None:
    bank = SkillBank.in_memory()
    for thing, place in (("mug", "cabinet"), ("egg", "fridge"), ("cup", "shelf"), ("keychain", "dresser")):
        bank.add(SkillProposal(name=f"Where the {thing} is", principle=f"{thing}: {place}"), ORIGIN)
    selection = await select_skills(bank, "put a clean mug in fridge", "Clean", embedder=BuiltinEmbedder())
    assert selection.skills[0].principle == "mug: cabinet"


async def test_the_builtin_embedder_gives_unit_rows_the_same_each_time_and_zero_for_no_words() -> None:
    texts = ["heat the mug", "heat the mugs", "buy red shoes", "", "…"]
    matrix = await BuiltinEmbedder().embed(texts)
    assert matrix.shape == (5, 1024) and matrix.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(matrix, axis=1), [1, 1, 1, 0, 0], atol=1e-6)
    np.testing.assert_array_equal(matrix, await BuiltinEmbedder().embed(texts))
    assert matrix[0] @ matrix[1] > 0.4 > 0.1 > matrix[0] @ matrix[2]
    # crc32("w:mug") is fixed: vectors of other machines and versions can be compared.
    assert int(np.abs((await BuiltinEmbedder().embed(["mug"]))[0]).argmax()) == 572


async def duplicate_of(principle: str, *others: tuple[str, str], tier: str = GENERAL) -> str | None:
    bank = SkillBank.in_memory()
    for other, other_tier in others:
        bank.add(SkillProposal(name="Heat before putting", principle=other, tier=other_tier), ORIGIN)
    found = await find_duplicate(
        SkillProposal(name="Heat before putting", principle=principle, tier=tier),
        bank.skills(),
        BuiltinEmbedder(),
    )
    return found.skill.id if found else None


async def test_the_same_words_are_a_duplicate_whatever_their_case_and_punctuation() -> None:
    assert await duplicate_of("Heat it, first!", ("heat it first", GENERAL)) == "gen_001"


async def test_nearly_the_same_text_is_a_duplicate_by_embedding() -> None:
    long = "carry the object to the microwave and heat it before you put it into its final receptacle"
    assert await duplicate_of(long + " there", (long, GENERAL)) == "gen_001"
    assert await duplicate_of("look into each drawer once", (long, GENERAL)) is None


async def test_skills_of_another_category_are_no_duplicates_but_general_ones_are() -> None:
    assert await duplicate_of("heat it first", ("heat it first", "Cool"), tier="Heat") is None
    assert await duplicate_of("heat it first", ("heat it first", GENERAL), tier="Heat") == "gen_001"


async def test_locations_that_differ_are_never_duplicates_of_each_other() -> None:
    assert await duplicate_of("mug: cabinet", ("mug: shelf", GENERAL), ("cup: cabinet", GENERAL)) is None
    assert await duplicate_of("mug: cabinet", ("mug: cabinet", GENERAL)) == "gen_001"
