"""What an LLM teacher is asked. The answers are data: see `replies`."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence

from krill_tui.models.base import Message
from krill_tui.skill import Skill
from krill_tui.trajectory import StopReason, Trajectory

CHARACTERS_PER_TOKEN = 4
"""A rule of thumb for English; the budgets here need no more."""

_WORLDS = {
    "alfworld": "text games in a household, where an agent walks between places, opens them, and takes,"
    " cleans, heats, cools and puts objects",
    "webshop": "a web shop, where an agent searches, opens products, chooses options and buys",
}
_ROLE = (
    "You teach agents that play {world}. From records of their episodes you write skills: short pieces of"
    " advice that will stand in the agent's prompt in other episodes of the same kind."
)
_FORM = """\
Answer with a JSON array and nothing else. Each element is an object with these string fields:
  "name": a title of two to six words
  "principle": what to do, in one or two sentences, concrete enough to act on
  "when_to_apply": the situation in which it helps
  "category": "general" if it helps in every task, else one of: {categories}"""
_REFINE_FIELDS = """
  "refines": only if this replaces the text of a skill of the bank: its id
  "reason": which failures it answers, in one sentence"""


def distill_messages(
    trajectory: Trajectory,
    bank_skills: Sequence[Skill],
    categories: Sequence[str],
    *,
    token_budget: int,
) -> list[Message]:
    """Ask for patterns of a success, s+ = M_T(tau+, d), or lessons of a failure, s- = M_T(tau-, d)."""
    if trajectory.success:
        ask = (
            "This episode was won. Say in one to three skills what made it work and will work again:"
            " the order of steps, where to look, what to check."
        )
    else:
        ask = (
            "This episode was lost. Say in one to three skills what the agent should have done instead:"
            " name the mistake's first sign and the way out."
        )
    parts = [
        ask,
        "Do not name numbered things of this one game (`cabinet 3`); kinds of things (`cabinet`) are fine.",
        render_trajectory(trajectory, token_budget),
    ]
    if bank_skills:
        parts.append(
            "Already known, do not repeat:\n" + "\n".join(f"- {skill.name}" for skill in bank_skills)
        )
    parts.append(_FORM.format(categories=_listed(categories)))
    return _conversation(trajectory.env, parts)


def evolve_messages(
    failures: Sequence[Trajectory],
    category_rates: Mapping[str, float],
    bank_skills: Sequence[Skill],
    categories: Sequence[str],
    *,
    max_new_skills: int,
    token_budget: int,
) -> tuple[list[Message], tuple[str, ...]]:
    """Ask what is missing from the bank: S_new = M_T(T_val-, SkillBank).

    Returns the messages, and the ids of the failures that are in them: as many whole episodes as `token_budget`
    holds, in their order. What has no room is left out, and the prompt says so; only where not one fits whole is the
    first one cut.
    """
    rates = "\n".join(f"- {name}: {rate:.0%}" for name, rate in sorted(category_rates.items()))
    bank = "\n".join(
        f"- [{skill.id}] ({skill.tier}) {skill.name}: {skill.principle}" for skill in bank_skills
    )
    shown = _whole_episodes(failures, token_budget)
    left = Counter(t.category or "unknown" for t in failures if t.id not in shown)
    told = ", ".join(f"{name} {count}" for name, count in left.items())
    parts = [
        "The agent had the skills below in view and still fails. Success by category of task:\n" + rates,
        "The bank:\n" + (bank or "(empty)"),
        "Failed episodes:",
        *shown.values(),
        *([f"Left out for want of room: {left.total()} more failed episodes ({told})."] if left else []),
        f"Suggest at most {max_new_skills} skills that would have turned these failures: new ones for what the"
        " bank does not say, or better versions of skills that misled. Suggest none rather than a repetition.",
        _FORM.format(categories=_listed(categories)) + _REFINE_FIELDS,
    ]
    return _conversation(failures[0].env if failures else "alfworld", parts), tuple(shown)


def _whole_episodes(failures: Sequence[Trajectory], token_budget: int) -> dict[str, str]:
    """Id to text of those that fit whole, one after the other; else the first one, cut."""
    room = token_budget * CHARACTERS_PER_TOKEN
    shown: dict[str, str] = {}
    for trajectory in failures:
        text = render_trajectory(trajectory, sys.maxsize)
        if len(text) <= room:
            shown[trajectory.id] = text
            room -= len(text)
    if not shown and failures:
        shown[failures[0].id] = render_trajectory(failures[0], token_budget)
    return shown


def complaint(problem: str) -> str:
    """Ask again after an answer that could not be read."""
    return f"That answer could not be read: {problem}. Answer with the complete JSON array alone, nothing around it."


def render_trajectory(trajectory: Trajectory, token_budget: int) -> str:
    """The whole episode as text; where the budget is too small, its middle steps are left out, and it says so."""
    head = [
        f"Episode {trajectory.id}",
        f"Task: {trajectory.task}",
        f"Category: {trajectory.category or 'unknown'}",
        f"Outcome: {_outcome(trajectory)}",
    ]
    steps = [_step_lines(trajectory, index) for index in range(len(trajectory.steps))]
    last = f"End: {trajectory.final_observation.strip()}" if trajectory.final_observation else ""
    room = token_budget * CHARACTERS_PER_TOKEN - sum(map(len, head)) - len(last)
    steps = _cut_middle(steps, room)
    return "\n".join([*head, *steps, *([last] if last else [])])


def _step_lines(trajectory: Trajectory, index: int) -> str:
    step = trajectory.steps[index]
    lines = [f"{index}. saw: {step.observation.strip()}"]
    if step.thought:
        lines.append(f"   thought: {step.thought}")
    lines.append(f"   did: {step.action or step.text.strip()[:200]}{'' if step.valid else ' (not possible)'}")
    return "\n".join(lines)


def _cut_middle(steps: Sequence[str], room: int) -> list[str]:
    """Steps from both ends, as many as fit; the end is worth as much as the beginning."""
    if sum(len(step) + 1 for step in steps) <= room:
        return list(steps)
    first, last = 0, len(steps)
    while last - first > 0:
        from_front = first <= len(steps) - last
        step = steps[first] if from_front else steps[last - 1]
        room -= len(step) + 1
        if room < 0:
            break
        first, last = (first + 1, last) if from_front else (first, last - 1)
    return [*steps[:first], f"[{last - first} steps left out]", *steps[last:]]


def _outcome(trajectory: Trajectory) -> str:
    if trajectory.success:
        return f"won after {len(trajectory.steps)} steps"
    if trajectory.stop_reason is StopReason.STEP_LIMIT:
        return f"lost: out of steps after {len(trajectory.steps)}"
    return f"lost: {trajectory.stop_reason.value} after {len(trajectory.steps)} steps"


def _listed(categories: Sequence[str]) -> str:
    return ", ".join(json.dumps(name, ensure_ascii=False) for name in categories) or '"general"'


def _conversation(env: str, parts: Sequence[str]) -> list[Message]:
    return [
        {"role": "system", "content": _ROLE.format(world=_WORLDS.get(env, env))},
        {"role": "user", "content": "\n\n".join(parts)},
    ]
