"""WebShop through the engine and the commands: collect, distill, inspect, eval, play, doctor."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from krill_tui.agent.policies import RandomPolicy
from krill_tui.agent.prompts import PromptOptions
from krill_tui.agent.rollout import EpisodeSpec, RolloutOptions, run_episode
from krill_tui.cli.app import run
from krill_tui.config.load import load_config
from krill_tui.config.schema import KrillConfig
from krill_tui.engine.build import TaskPlan, build_source, untrained_for
from krill_tui.envs.base import FreeActions
from krill_tui.envs.webshop.pages import QUERY_HINT
from krill_tui.errors import UsageError
from krill_tui.models.base import ActRequest, Sampling
from krill_tui.skills.formats.trajectories import load_trajectories
from krill_tui.skills.plays import faults
from krill_tui.skills.purchases import purchase
from krill_tui.trajectory import Step, StopReason, Trajectory
from tests.test_webshop_files import write_small_set
from tests.worlds import Talker

Krill = Callable[..., str]
SECTIONS = {"beauty", "electronics", "fashion", "garden", "grocery"}


@pytest.fixture
def krill(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Krill:
    """Run a command in an empty folder; it must exit with 0, and gives its standard output."""
    monkeypatch.chdir(tmp_path)

    def krill(*arguments: object) -> str:
        code = run([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        assert code == 0, err
        return out

    return krill


def shop(**env: object) -> KrillConfig:
    return load_config(overrides={"env": {"name": "webshop", **env}}, environ={})


def said(action: str) -> str:
    return f"<think>so</think><action>{action}</action>"


async def test_actions_are_valid_where_they_are_listed_or_the_shop_accepts_them() -> None:
    source = build_source(shop())
    task = source.tasks("train", 1)[0]
    replies = ["search[headphones]", "click[Back to Search]", "click[nonsense]", "buy it", QUERY_HINT]
    rollout = await run_episode(
        EpisodeSpec(id="e", number=1, task=task, seed=0, purpose="collect"),
        source.open,
        Talker([said(reply) for reply in replies]),
        RolloutOptions(5, PromptOptions(), Sampling()),
        emit=lambda _: None,
    )
    steps = rollout.trajectory.steps
    assert [step.valid for step in steps] == [True, True, False, False, True]
    assert "Page 1" in steps[1].observation and steps[2].observation.startswith("WebShop")
    assert isinstance(source.open(task), FreeActions)


async def test_the_expert_is_told_how_many_steps_there_are_and_buys_before() -> None:
    source = build_source(shop(max_steps=8))
    for task in source.tasks("test", 20):
        env, expert = source.open(task), source.expert()
        result = await env.reset()
        for _ in range(8):
            result = await env.step(expert.act(result)[1])
        assert result.done


def test_phases_one_and_two_and_inspect(krill: Krill, tmp_path: Path) -> None:
    out = krill("collect", "--env", "webshop", "--policy", "expert", "--episodes", 20, "--display", "none")
    assert out.startswith("wrote data/trajectories.json: 20 episodes")
    played = load_trajectories(tmp_path / "data" / "trajectories.json")
    assert sum(t.success for t in played) >= 14
    assert {t.category for t in played} == SECTIONS
    assert max(len(t.steps) for t in played) <= 15 and not any(t.invalid_actions for t in played)
    facts = json.loads(krill("inspect", "data/trajectories.json", "--json"))
    assert (facts["trajectories"], set(facts["categories"])) == (20, SECTIONS)

    krill("collect", "--env", "webshop", "--policy", "random", "--episodes", 30, "--display", "none")
    krill("distill", "--env", "webshop", "--display", "none")
    bank = json.loads(krill("inspect", "data/skill_bank.json", "--json"))
    lessons = {skill["name"]: skill for skill in bank["skills"]}
    assert "Buy before the steps end" in lessons
    assert all(skill["kind"] == "lesson" for skill in lessons.values())
    assert not any("place" in skill["principle"] for skill in lessons.values()), "no household in a shop"


def test_the_expert_beats_chance(krill: Krill) -> None:
    overall = {}
    for policy in ("expert", "random"):
        out = krill("eval", "--env", "webshop", "--policy", policy, "--episodes", 30, "--json")
        facts = json.loads(out)
        assert facts["split"] == "test" and set(facts["categories"]) == SECTIONS
        overall[policy] = facts["overall"]
    assert overall["expert"]["low"] > 0.5 > overall["random"]["high"]


async def test_chance_searches_for_words_that_it_sees() -> None:
    request = ActRequest(
        episode="e",
        messages=(),
        observation="red mug [SEP] now",
        admissible=(QUERY_HINT,),
        seed=1,
        sampling=Sampling(),
    )
    reply = await RandomPolicy().act(request)
    words = reply.text.partition("search[")[2].partition("]")[0].split()
    assert len(words) == 3 and set(words) <= {"red", "mug", "now"}


def test_a_script_plays_a_shop_and_actions_stay_in_page_order(krill: Krill, tmp_path: Path) -> None:
    script = tmp_path / "script.txt"
    script.write_text('"search[coffee]"\n"click[back to search]"\n', encoding="utf-8")
    out = krill("play", "--env", "webshop", "--script", script, "--json")
    steps = [json.loads(line) for line in out.splitlines()]
    assert steps[0]["admissible"] == [QUERY_HINT, "click[search]"]
    assert steps[1]["admissible"][:2] == ["click[back to search]", "click[next >]"]
    assert steps[1]["admissible"] != sorted(steps[1]["admissible"])
    assert steps[2]["observation"] == steps[0]["observation"]


def test_by_hand_a_query_is_typed_not_numbered(krill: Krill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("1\nsearch[mug]\nhint\nquit\n"))
    out = krill("play", "--env", "webshop")
    assert "type it with words of your own" in out
    assert "Page 1 (Total results: " in out
    assert out.endswith("not won after 1 steps\n")


def test_doctor_shows_the_shop(krill: Krill, tmp_path: Path) -> None:
    facts = json.loads(krill("doctor", "--env", "webshop", "--json"))
    assert facts["webshop"]["shop"] == "procedural, 1000 products"
    assert facts["webshop"]["test"] == "endless"
    write_small_set(tmp_path)
    facts = json.loads(krill("doctor", "--webshop-data", tmp_path, "--json"))
    assert facts["webshop"]["shop"] == str(tmp_path) and facts["webshop"]["test"] > 0
    facts = json.loads(krill("doctor", "--set", "env.webshop_data=nowhere", "--json"))
    assert facts["webshop"]["shop"].startswith("none (")


def test_the_embedded_model_says_that_it_does_not_know_the_shop(krill: Krill) -> None:
    out = krill(
        *("collect", "--env", "webshop", "--mock", "--episodes", 1, "--display", "plain"),
        *("--set", "env.max_steps=2"),
    )
    assert out.count("krill-tiny was trained mostly on household worlds") == 1
    assert untrained_for(load_config(environ={})) == ""
    known = load_config(overrides={"env": {"name": "webshop"}, "policy": {"model": "mine"}}, environ={})
    assert untrained_for(known) == ""


def test_a_shop_has_no_games_backend() -> None:
    with pytest.raises(UsageError, match="WebShop has no backend 'games'"):
        build_source(shop(backend="games"))


def test_a_live_shop_is_looked_for_on_its_own_port() -> None:
    source = build_source(shop(backend="http"))
    assert source.content_hash() == "live:http://localhost:3001"


def test_tasks_of_product_files_are_learned_from_round_and_round(tmp_path: Path) -> None:
    write_small_set(tmp_path)
    config = shop(webshop_data=str(tmp_path))
    source = build_source(config)
    plan, size = TaskPlan(source, config), source.splits()["train"]
    assert [t.id for t in plan.train(size, 3)] == [t.id for t in plan.train(0, 3)]
    assert {t.split for t in plan.evolve(5)} == {"evolve"}
    assert not {t.id for t in plan.evolve(5)} & {t.id for t in plan.train(0, size)}


def test_the_genuine_flag_keeps_the_originals_splits(tmp_path: Path) -> None:
    write_small_set(tmp_path)
    ours, genuine = (
        build_source(shop(webshop_data=str(tmp_path), genuine=flag)).content_hash() for flag in (False, True)
    )
    assert ours != genuine


def visit(*plays: tuple[str, str, tuple[str, ...]], task: str = "") -> Trajectory:
    """A lost visit of (observation, action, clickable)."""
    steps = tuple(
        Step(
            index=i,
            observation=observation,
            admissible=tuple(f"click[{name}]" for name in names),
            thought="",
            action=action,
            text="",
            valid=True,
        )
        for i, (observation, action, names) in enumerate(plays)
    )
    wish = task or "Find me soft mugs with color: red, and size: 2 pack, and price lower than 10.00 dollars"
    return Trajectory(
        id="e",
        env="webshop",
        task_id="t",
        split="train",
        task=wish,
        category="garden",
        steps=steps,
        final_observation="",
        success=False,
        stop_reason=StopReason.FAILURE,
    )


ITEM = " [SEP] ".join(
    (
        "Instruction:",
        "x",
        "Back to Search",
        "< Prev",
        "color",
        "red",
        "blue",
        "size",
        "2 pack",
        "Mug",
        "Price: $12.0",
    )
)
NAMES = ("back to search", "< prev", "buy now", "red", "blue", "2 pack")


def test_faults_of_a_visit_name_what_the_purchase_missed() -> None:
    bought = visit((ITEM, "click[red]", NAMES), (ITEM, "click[Buy Now]", NAMES))
    found = purchase(bought)
    assert found is not None and found.unchosen == {"2 pack"} and found.dear
    whole = visit(*((ITEM, f"click[{name}]", NAMES) for name in ("red", "2 pack", "buy now")))
    assert not faults(whole).unchosen
    left = faults(visit((ITEM, "click[red]", NAMES)))
    assert left.unbought and not left.unchosen and not left.dear
    strolled = visit(*(("cold", f"go to shelf {i}", ()) for i in (1, 1, 1, 1, 1)))
    assert not faults(strolled).revisited, "a shop has no shelves to go to"
