"""One evolution cycle with a chat model on loopback: what it was asked and said, and what became of it, is on record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from krill_tui.agent.policies import ExpertPolicy, RandomPolicy
from krill_tui.cli.app import run
from krill_tui.config.load import load_config
from krill_tui.engine.build import TaskPlan
from krill_tui.engine.reinforce import validate_and_evolve
from krill_tui.engine.report import TEXT_SHOWN, write_report
from krill_tui.engine.session import Session
from krill_tui.engine.state import RunState
from krill_tui.envs.alfworld.expert import AlfworldExpert
from krill_tui.envs.alfworld.text import STATION, TREATMENT, TaskGoal, object_type
from krill_tui.envs.alfworld.worlds import household
from krill_tui.events import schema as ev
from krill_tui.events.journal import read_journal
from krill_tui.models.base import Policy
from krill_tui.skill import SkillOrigin, SkillProposal
from krill_tui.skills.prompts import CHARACTERS_PER_TOKEN, evolve_messages, render_trajectory
from krill_tui.skills.text import Station, parse_station
from krill_tui.tui.screens.detail import event_text
from tests.episodes import HEAT, LOST, episode
from tests.faulty_endpoint import FaultyEndpoint

REPLY = [
    {
        "name": "Look before you leap",
        "principle": "Open the closed places first.",
        "when_to_apply": "always",
        "category": "Heat",
        "reason": "all of the failures passed them",
    },
    {
        "name": "Heat at the stove",
        "principle": "Use the stove | not the microwave.",
        "when_to_apply": "hot",
        "category": "Heat",
        "refines": "heat_001",
        "reason": "the microwave did nothing",
    },
]


def config(url: str, **teacher: object):
    return load_config(
        overrides={
            "policy": {"kind": "random"},
            "env": {"max_steps": 6, "concurrency": 8},
            "evolution": {"episodes": 24, "validation_interval": 5},
            "teacher": {"kind": "openai", **teacher},
            "model": {"teacher_api_base": url, "teacher_api_key": "k", "teacher_model_id": "oracle"},
        },
        environ={},
    )


async def play_two_validations(url: str, name: str = "run", **teacher: object) -> Path:
    """A random player is validated, the bank evolves, and at step 5 the expert is validated in its place."""
    opened = await Session.open(name, config(url, **teacher))
    try:
        ctx = opened._ctx
        plan = TaskPlan(ctx.source, ctx.config)
        ctx.bank.add(SkillProposal(name="Heat", principle="Use the microwave.", tier="Heat"), SkillOrigin())
        players: list[tuple[int, Policy]] = [(0, RandomPolicy()), (5, ExpertPolicy(ctx.source.expert))]
        for step, policy in players:
            await validate_and_evolve(ctx, plan, policy, step)
        write_report(ctx.state, ctx.store.path / "report.md")
        return ctx.store.path
    finally:
        await opened.close()


async def test_prompt_reply_reasons_and_later_rates_are_in_journal_log_screen_and_report(
    capfd: pytest.CaptureFixture[str],
) -> None:
    async with FaultyEndpoint(reply=lambda _: json.dumps(REPLY)) as server:
        path = await play_two_validations(server.url)
    asked = "\n\n".join(m["content"] for m in server.requests[0]["messages"])
    events = list(read_journal(path / "events.jsonl"))
    called = next(e for e in events if isinstance(e, ev.TeacherCalled))
    first, second = (e for e in events if isinstance(e, ev.Evolved))
    assert (
        called.prompt == first.prompt == asked
        and json.loads(called.reply) == json.loads(first.reply) == REPLY
    )
    assert called.trajectories == first.failures and len(first.failures) == 10
    shown = [t for t in asked.split("Episode ")[1:] if t.startswith("validate-0-")]
    assert len(shown) == 10 and "left out" not in asked, "ten whole failures fit"
    assert first.accepted == ("heat_002", "heat_001") and set(first.failing) > {"Heat"}
    changed = next(e for e in events if isinstance(e, ev.SkillChanged))
    assert (changed.skill.version, changed.reason) == (2, "the microwave did nothing")

    state = RunState()
    for event in events:
        state.apply(event)
    effects = state.evolutions[0].effects()
    assert effects["Heat"][0].rate == first.rates["Heat"].rate == 0
    assert effects["Heat"][1] == second.rates["Heat"] and set(effects) == set(first.failing)
    line = next(li.text for li in state.log if li.kind == "validated" and "step 5" in li.text)
    assert f"since cycle 1: {first.failing[0]} 0% → " in line
    screen = event_text(first).plain
    assert asked.splitlines()[-1] in screen and "Use the stove" in screen

    report = (path / "report.md").read_text()
    assert "### Cycle 1, step 0" in report and "### Cycle 2, step 5" in report
    assert "- added: heat_002 (Heat) Open the closed places first.; because: all of the failures" in report
    assert r"- refined (version 2): heat_001 (Heat) Use the stove \| not the microwave." in report
    heat = state.evolutions[0].effects()["Heat"]
    assert (
        f"| Heat | {100 * heat[0].rate:.1f} % " in report and "| category | at step 0 | at step 5 |" in report
    )
    assert f"    [{len(asked) - TEXT_SHOWN} more characters" in report and '    [{"name"' in report

    assert run(["report", str(path), "--json"]) == 0
    facts: dict[str, Any] = json.loads(capfd.readouterr().out)["evolution"][0]
    assert facts["prompt"] == asked and facts["reasons"]["heat_001"] == "the microwave did nothing"
    assert facts["effects"]["Heat"]["before"] == 0 and facts["effects"]["Heat"]["step"] == 5


async def test_the_token_budget_is_a_setting_and_whole_failures_come_before_many_cut_ones() -> None:
    async with FaultyEndpoint(reply=lambda _: "[]") as server:
        path = await play_two_validations(server.url, evolve_tokens=1000)
    asked = server.requests[0]["messages"][-1]["content"]
    event = next(e for e in read_journal(path / "events.jsonl") if isinstance(e, ev.Evolved))
    assert 0 < len(event.failures) < 10 and "steps left out" not in asked
    assert f"Left out for want of room: {10 - len(event.failures)} more failed episodes (" in asked
    episodes = asked.split("Failed episodes:\n\n")[1].split("Left out for")[0]
    assert len(episodes) < 1000 * CHARACTERS_PER_TOKEN
    assert all(f"Episode {id_}\n" in asked for id_ in event.failures), "the log names those it really saw"


def test_failures_fit_worst_first_and_a_single_too_long_one_is_cut() -> None:
    lost = [episode(f"e{i}", success=False, play=LOST if i % 2 else HEAT[:3] * 9) for i in range(4)]
    sizes = {t.id: len(render_trajectory(t, 10**9)) for t in lost}
    budget = (sizes["e0"] + sizes["e1"] + 8) // CHARACTERS_PER_TOKEN
    messages, ids = evolve_messages(lost, {"Heat": 0.0}, [], ["Heat"], max_new_skills=3, token_budget=budget)
    assert ids == ("e0", "e1") and "2 more failed episodes (Heat 2)" in messages[-1]["content"]
    skipping, ids = evolve_messages(
        lost, {"Heat": 0.0}, [], ["Heat"], max_new_skills=3, token_budget=sizes["e1"] // 4 + 4
    )
    assert ids == ("e1",), "a short one that fits rather than the first one cut"
    cut, ids = evolve_messages(lost[:1], {}, [], ["Heat"], max_new_skills=3, token_budget=120)
    assert (
        ids == ("e0",)
        and "steps left out]" in cut[-1]["content"]
        and "Left out for" not in cut[-1]["content"]
    )
    assert "steps left out" not in skipping[-1]["content"]


class Follower(AlfworldExpert):
    """Treats things where its prompt says and nowhere else; only where that names no place it tries others."""

    def _treat(self, goal: TaskGoal, held: str) -> tuple[str, str]:
        treatment = goal.treatment or ""
        hinted = self._hints.get(treatment, ())
        places = [place for place in self._receptacles if object_type(place) in hinted]
        if not hinted:
            return super()._treat(goal, held)
        for place in places:
            action = self._reach(place, f"{treatment} {held} with {place}", opening=False)
            if action:
                return treatment, action
        return treatment, "look"


async def test_evolution_repairs_categories_whose_skill_was_wrong_and_the_report_shows_it() -> None:
    seed = next(s for s in range(50) if not set(household(s).stations.items()) & set(STATION.items()))
    overrides: dict[str, dict[str, object] | int] = {
        "seed": seed,
        "policy": {"kind": "expert"},
        "env": {"max_steps": 40, "world_size": "small"},
        "evolution": {"episodes": 48, "validation_interval": 5, "evolution_threshold": 0.7},
        "teacher": {"kind": "builtin"},
    }
    opened = await Session.open("repair", load_config(overrides=overrides, environ={}))
    try:
        ctx = opened._ctx
        for category, treatment in TREATMENT.items():
            usual = Station(treatment, STATION[treatment]).principle
            ctx.bank.add(SkillProposal(name="As usual", principle=usual, tier=category), SkillOrigin())
        policy = ExpertPolicy(Follower, follow_skills=True)
        plan = TaskPlan(ctx.source, ctx.config)
        for step in (0, 5, 10):
            await validate_and_evolve(ctx, plan, policy, step)
        write_report(ctx.state, ctx.store.path / "report.md")
        rates = {v.step: {c: v.categories[c].rate for c in TREATMENT} for v in ctx.state.validations}
        said = [ctx.bank.skills(category)[0].principle for category in TREATMENT]
        report = (ctx.store.path / "report.md").read_text()
    finally:
        await opened.close()
    assert set(rates[0].values()) == {0.0} and set(rates[10].values()) == {1.0}, rates
    found = {s.treatment: s.receptacle for s in map(parse_station, said) if s}
    assert found and found.items() <= household(seed).stations.items()
    assert all(parse_station(text) or "try each place but" in text for text in said)
    assert "| Heat | 0.0 % " in report and "said microwave, but heating was possible" in report


async def test_a_teacher_that_fails_is_in_the_report_with_the_reason() -> None:
    async with FaultyEndpoint(fault=lambda _: "401") as server:
        path = await play_two_validations(server.url)
    report = (path / "report.md").read_text()
    assert "- the teacher failed: " in report and "401" in report and "| category |" in report
