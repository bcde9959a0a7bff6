"""Categories of other projects: which tasks an imported skill reaches, and what is said where it reaches none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from krill_tui.cli.app import run
from krill_tui.envs.webshop.source import WebshopSource
from krill_tui.models.builtin_embedder import BuiltinEmbedder
from krill_tui.skill import GENERAL, Skill, SkillOrigin, SkillStatus
from krill_tui.skills.bank import SkillBank, copy_into
from krill_tui.skills.formats.banks import load_bank
from krill_tui.skills.retrieval import RetrievalOptions, Retriever
from krill_tui.skills.tiers import (
    SHOPPING,
    categories_of,
    household_category,
    known_tier,
    reach,
    shopping_category,
    tiers_for,
)

SKILLRL_SHOP = ("apparel", "footwear", "home_decor", "accessories", "electronics", "beauty_health", "other")


def skillrl_bank(*tiers: str) -> dict[str, Any]:
    """A bank in SkillRL's form with a general skill and one skill a tier."""

    def skill(name: str) -> dict[str, str]:
        return {
            "skill_id": f"{name[:3]}_001",
            "title": f"On {name}",
            "principle": f"Mind {name}.",
            "when_to_apply": "",
        }

    return {
        "general_skills": [skill("general")],
        "task_specific_skills": {tier: [skill(tier)] for tier in tiers},
        "common_mistakes": [],
    }


async def tiers_in_prompt(bank: SkillBank, task: str, category: str, env: str) -> set[str]:
    retriever = Retriever(bank, BuiltinEmbedder(), RetrievalOptions(mode="template"), env=env)
    return {skill.tier for skill in (await retriever.select(task, category)).skills}


def imported(tmp_path: Path, data: Any) -> SkillBank:
    path = tmp_path / "foreign.json"
    path.write_text(json.dumps(data))
    bank = SkillBank.in_memory()
    copy_into(bank, load_bank(path).skills, SkillOrigin())
    return bank


async def test_skills_for_one_object_reach_tasks_of_two_as_in_skillrl(tmp_path: Path) -> None:
    bank = imported(tmp_path, skillrl_bank("pick_and_place", "heat"))
    assert [(s.tier, s.also) for s in bank.skills()] == [(GENERAL, ()), ("Pick", ("PickTwo",)), ("Heat", ())]
    for category in ("Pick", "PickTwo"):
        assert await tiers_in_prompt(bank, "put two mug in shelf", category, "alfworld") == {GENERAL, "Pick"}
    assert await tiers_in_prompt(bank, "cool a mug", "Cool", "alfworld") == {GENERAL}


async def test_a_bank_of_our_own_is_shown_to_its_own_categories_alone() -> None:
    bank = SkillBank.in_memory()
    copy_into(bank, [Skill(id="pick_001", name="a", principle="b", tier="Pick")], SkillOrigin())
    assert await tiers_in_prompt(bank, "put two mug in shelf", "PickTwo", "alfworld") == set()
    assert await tiers_in_prompt(bank, "put a mug in shelf", "Pick", "alfworld") == {"Pick"}


@pytest.mark.parametrize(
    ("task", "category", "tier"),
    [
        ("Find me machine wash men's t-shirts with color: tan", "fashion", "apparel"),
        ("i need women's ankle boots size 8", "fashion", "footwear"),
        ("i need women's ankle boots size 8", "", "footwear"),
        ("Find me water resistant women's handbags", "fashion", "accessories"),
        ("i am looking for a gold plated hdmi cable", "electronics", "electronics"),
        ("Find me scented candles with scent: honey, and price lower than 50 dollars", "", "home_decor"),
        ("a shampoo for dry scalp", "beauty", "beauty_health"),
        ("Find me shade grown coffee", "grocery", "other"),
        ("something nice for my aunt", "", "other"),
    ],
)
async def test_shop_skills_of_skillrl_are_found_by_the_words_of_a_task(
    tmp_path: Path, task: str, category: str, tier: str
) -> None:
    bank = imported(tmp_path, skillrl_bank(*SKILLRL_SHOP))
    assert await tiers_in_prompt(bank, task, category, "webshop") == {GENERAL, tier}
    assert await tiers_in_prompt(bank, task, "Pick", "alfworld") == {GENERAL}, "no tier of a household"


async def test_every_shop_tier_of_skillrl_reaches_tasks_of_the_embedded_shop(tmp_path: Path) -> None:
    source = WebshopSource(seed=3)
    tasks = [source.open(task).task for task in source.tasks("train", 60)]
    reached: set[str] = set()
    for task in tasks:
        found = set(tiers_for(task.description, task.category, SKILLRL_SHOP, "webshop"))
        assert found, f"no tier for {task.description}"
        reached |= found
    assert reached == set(SKILLRL_SHOP)


def test_the_category_of_a_shopping_task_is_told_by_its_words() -> None:
    source = WebshopSource(seed=4)
    tasks = [source.open(task).task for task in source.tasks("train", 100)]
    wrong = [t.description for t in tasks if shopping_category(t.description) != t.category]
    assert wrong == []
    assert shopping_category("surprise me") == SHOPPING
    assert shopping_category("x" * 100_000 + " shoes") == SHOPPING


async def test_skills_for_any_shopping_reach_all_of_it(tmp_path: Path) -> None:
    bank = imported(tmp_path, skillrl_bank(SHOPPING))
    for category in ("", "fashion", "grocery"):
        assert await tiers_in_prompt(bank, "Find me something", category, "webshop") == {GENERAL, SHOPPING}


def test_tiers_of_other_names_are_known_however_they_are_written() -> None:
    assert known_tier("pick_heat_then_place_in_recep") == ("Heat", ())
    assert known_tier("Pick Two") == ("PickTwo", ()) and known_tier("GENERAL") == (GENERAL, ())
    assert known_tier("apparel") == ("apparel", ()) and known_tier("") == (GENERAL, ())
    assert household_category("", "chill some wine for me") == "Cool"


def test_a_tier_of_a_persons_own_is_for_shopping_tasks_that_name_it() -> None:
    assert tiers_for("a kitchen knife", "garden", ["kitchen tools", "garage"], "webshop") == ["kitchen tools"]
    assert tiers_for("a kitchen knife", "Pick", ["kitchen tools"], "alfworld") == []


def test_skills_that_no_task_can_have_are_counted_by_tier() -> None:
    tiers = (GENERAL, "Heat", "comparison", "comparison", "apparel")
    skills = [Skill(id=f"s{n}", name="a", principle="b", tier=tier) for n, tier in enumerate(tiers)]
    skills.append(skills[2].model_copy(update={"id": "off", "status": SkillStatus.DISABLED}))
    told = reach(skills, "alfworld", categories_of("alfworld")).told()
    assert told == (
        "3 of 5 skills can never be in a prompt: tiers comparison, apparel match no category of this world"
    )
    assert reach(skills, "alfworld", ("Heat",)).told(server=True).endswith(", unless its server has them")
    shop = reach(skills, "webshop", categories_of("webshop"))
    assert (shop.never, shop.by_name) == ({"Heat": 1, "comparison": 2}, {})
    own = [skills[4].model_copy(update={"tier": "kitchen tools"})]
    assert "only for tasks whose words name their tier" in reach(own, "webshop", ()).told()
    assert reach(skills[:2], "alfworld", categories_of("alfworld")).told() == ""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_says_at_its_start_which_skills_it_can_never_show(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = skillrl_bank("clean", "apparel", "direct_retrieval")
    data["general_skills"].append({"skill_id": "gen_002", "title": 5})
    Path("bank.json").write_text(json.dumps(data))
    command = ("eval", "--policy", "random", "--episodes", "2", "--set", "env.max_steps=2", "--run", "r")
    assert run([*command, "--skill-bank", "bank.json", "--display", "plain"]) == 0
    out = capfd.readouterr().out
    line = "2 of 4 skills can never be in a prompt: tiers apparel, direct_retrieval match no category of this world"
    assert out.count(line) == 1
    assert "4 skills taken over from bank.json (skillrl)" in out
    assert "bank.json: 1 of 5 records left out: general_skills.1.title: Input should be a valid string" in out
    assert out.index(line) < out.index("evaluate: Evaluating")


def test_inspect_says_for_a_world_which_skills_it_can_never_show(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("bank.json").write_text(json.dumps(skillrl_bank("clean", "apparel")))
    assert run(["inspect", "bank.json"]) == 0 and "prompt" not in capfd.readouterr().out
    assert run(["inspect", "bank.json", "--env", "webshop"]) == 0
    assert "1 of 3 skills can never be in a prompt: tier Clean matches no category" in capfd.readouterr().out
    assert run(["inspect", "bank.json", "--env", "alfworld", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["never_in_prompts"] == {"apparel": 1}


def test_skills_that_are_never_near_enough_are_said_once(
    here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Path("bank.json").write_text(
        json.dumps(skillrl_bank("pick_and_place", "clean", "heat", "cool", "examine"))
    )
    command = [
        "eval",
        "--policy",
        "random",
        "--episodes",
        "4",
        "--set",
        "env.max_steps=2",
        "--display",
        "plain",
    ]
    command += ["--skill-bank", "bank.json", "--set", 'skill_retrieval.mode="embedding"']
    assert run([*command, "--set", "skill_retrieval.similarity_threshold=0.99"]) == 0
    out = capfd.readouterr().out
    assert (
        out.count("no task-specific skill passed the threshold in 4 of 4 episodes: the nearest was at 0.")
        == 1
    )
    assert run([*command, "--set", "skill_retrieval.similarity_threshold=-1"]) == 0
    assert "threshold" not in capfd.readouterr().out


def test_a_distillation_that_learns_nothing_says_why(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from tests.test_formats_foreign import memory

    lost = memory(memory_id="m2", tags={"environment": "Alfworld", "outcome": "Failure"})
    lost["content"] = {**lost["content"], "refined_trajectory": None}
    Path("memories.json").write_text(json.dumps([memory(), lost]))
    command = ["distill", "--trajectories", "memories.json", "--output", "bank.json", "--display", "plain"]
    assert run(command) == 0
    assert (
        "no skill was distilled: 1 episodes hold no steps; the other 1 do not show" in capfd.readouterr().out
    )


def test_the_app_marks_a_tier_that_no_task_has() -> None:
    from krill_tui.engine.state import RunState
    from krill_tui.tui.widgets.skill_tree import SkillTree

    state = RunState()
    state.config = {"env": {"name": "alfworld", "backend": "builtin"}}
    for number, tier in enumerate((GENERAL, "Heat", "apparel")):
        state.skills[f"s{number}"] = Skill(id=f"s{number}", name="a", principle="b", tier=tier)
    tree = SkillTree()
    lines = [tree.line(row, 60).plain for row in tree.make_rows(state) if row.key.startswith("tier:")]
    assert lines == ["▾ general 1", "▾ Heat 1", "▾ apparel 1 no task has it"]
    state.config = {"env": {"name": "alfworld", "backend": "http"}}
    assert "no task" not in "".join(tree.line(row, 60).plain for row in tree.make_rows(state))
