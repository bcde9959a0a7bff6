"""Habits of shopping, mined from real purchases in a procedural shop."""

from __future__ import annotations

import random

from krill_tui.agent.actions import format_reply
from krill_tui.agent.collect import run_episodes
from krill_tui.agent.policies import ExpertPolicy
from krill_tui.agent.prompts import PromptOptions
from krill_tui.agent.rollout import EpisodeSpec, RolloutOptions
from krill_tui.envs.webshop.reading import read_wish
from krill_tui.envs.webshop.source import WebshopSource
from krill_tui.models.base import ActReply, ActRequest, Sampling
from krill_tui.skill import GENERAL, Skill, SkillKind
from krill_tui.skills.builtin_teacher import BuiltinTeacher
from krill_tui.skills.purchases import purchase
from krill_tui.skills.shopping import shopping_skills
from krill_tui.trajectory import Step, StopReason, Trajectory


class Hasty(ExpertPolicy):
    """The expert, who clicks anything a quarter of the time."""

    async def act(self, request: ActRequest) -> ActReply:
        reply = await super().act(request)
        rng = random.Random(f"{request.seed}/{len(request.messages)}")
        if rng.random() < 0.25:
            return ActReply(text=format_reply("hmm", rng.choice(list(request.admissible))))
        return reply


async def shopped(count: int = 40) -> list[Trajectory]:
    source = WebshopSource(0, size=400)
    tasks = source.tasks("train", count)
    rollouts = await run_episodes(
        [EpisodeSpec(id=f"c{i}", number=i, task=t, seed=i, purpose="collect") for i, t in enumerate(tasks)],
        source.open,
        Hasty(source.expert),
        RolloutOptions(15, PromptOptions(), Sampling()),
        concurrency=8,
        emit=lambda _: None,
        on_finished=lambda _: None,
    )
    return [rollout.trajectory for rollout in rollouts]


async def test_what_wins_do_and_others_do_not_becomes_a_skill_with_its_counts() -> None:
    played = await shopped()
    report = await BuiltinTeacher().distill(played, [], env="webshop")
    choose = next(p for p in report.proposals if p.principle.startswith("choose: "))
    assert (choose.kind, choose.tier) == (SkillKind.STRATEGY, GENERAL)
    asked = [(t, p) for t in played if (p := purchase(t)) and read_wish(t.task).options]
    wins = [t for t, _ in asked if t.success]
    losses = [p for t, p in asked if not t.success]
    held = sum(not p.unchosen for p in losses)
    assert len(wins) >= 3 and choose.reason == (
        f"{len(wins)} of {len(wins)} wins did so, {held} of {len(losses)} purchases that did not win"
    ), "no purchase wins without the options asked for"
    assert choose.evidence == tuple(t.id for t in wins) and choose.reason in choose.when_to_apply
    principles = [p.principle for p in report.proposals]
    assert len(set(principles)) == len(principles), "the lesson of the same words is not said again"

    known = Skill(id="gen_001", name="x", principle=choose.principle)
    assert choose.principle not in [p.principle for p in shopping_skills(played, [known])]
    assert shopping_skills([t for t in played if not t.success], []) == [], "losses alone show no habit"
    equal = [t.model_copy(update={"success": i % 2 == 0}) for i, t in enumerate([*wins, *wins])]
    assert not [p for p in shopping_skills(equal, []) if p.principle == choose.principle], (
        "what all do tells nothing"
    )


async def test_a_purchase_knows_its_query_and_its_place_among_the_results() -> None:
    source = WebshopSource(0, size=400)
    (task,) = source.tasks("train", 1)
    env = source.open(task)
    result = await env.reset()
    wish = read_wish(env.task.description)
    actions = [f"search[{wish.phrases[-1]}]", "click[next >]"]
    steps = []
    while True:
        if len(actions) == 0:
            products = [a for a in result.admissible if a.startswith("click[b0")]
            actions = [products[1], "click[features]", "click[< prev]", "click[buy now]"]
        action = actions.pop(0)
        steps.append((result, action))
        result = await env.step(action)
        if result.done:
            break
    trajectory = Trajectory(
        id="e",
        env="webshop",
        task_id=task.id,
        split="train",
        task=env.task.description,
        category=env.task.category,
        steps=tuple(
            Step(index=i, observation=r.observation, admissible=r.admissible, action=a)
            for i, (r, a) in enumerate(steps)
        ),
        stop_reason=StopReason.FAILURE,
    )
    bought = purchase(trajectory)
    assert bought is not None
    assert (bought.query, bought.rank, bought.read) == (wish.phrases[-1], 12, True)
    assert bought.price > 0 and bought.dear == (bought.price > wish.bound)
