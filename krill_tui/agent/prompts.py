"""The one place an acting prompt is rendered: sampling, SFT and RL all take their text from here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from krill_tui.envs.base import StepResult
from krill_tui.models.base import Message
from krill_tui.skill import GENERAL, Skill, SkillOrigin
from krill_tui.trajectory import Task, Trajectory

PromptStyle = Literal["compact", "full"]

EPISODE_ID = "won_"
"""How the id of an episode block begins."""
ANSWER_LENGTH = 80
"""Characters of an observation in an episode block."""

_ROLES = {
    "alfworld": "You are an agent in a household. Reach the goal by text commands, one at a time.",
    "webshop": "You are an agent in a web shop. Find and buy what the instruction asks for, one action at a time.",
}
_RULES = (
    "Reply with a short thought and exactly one action, in this form:\n"
    "<think>why, quoting the [id] of a skill when you follow it</think><action>the command</action>"
)


@dataclass(frozen=True, slots=True)
class PromptOptions:
    """What a prompt holds (DESIGN section 9); a setting of the policy."""

    style: PromptStyle = "full"
    """`compact` leaves out role and rules: for krill-tiny, which was trained on nothing else."""
    list_admissible: bool = True
    """Show the admissible actions after each observation."""


def episode_block(trajectory: Trajectory) -> Skill:
    """A finished episode as it stands in a prompt in place of a skill: its task, then action and answer in turn.

    The first observation lists the room and repeats the task; it is left out. An answer is cut after
    `ANSWER_LENGTH` characters.
    """
    seen = [*(step.observation for step in trajectory.steps[1:]), trajectory.final_observation]
    turns = [
        f"{step.action} -> {_shortened(answer)}" for step, answer in zip(trajectory.steps, seen, strict=False)
    ]
    return Skill(
        id=EPISODE_ID + re.sub(r"[^A-Za-z0-9_.-]", "-", trajectory.id),
        name=trajectory.task,
        principle="; ".join([f"task: {trajectory.task}", *turns]),
        tier=trajectory.category or GENERAL,
        origin=SkillOrigin(phase="episode", trajectories=(trajectory.id,)),
    )


def _shortened(observation: str) -> str:
    return " ".join(observation.split())[:ANSWER_LENGTH].rstrip(" .")


def skill_line(skill: Skill, style: PromptStyle) -> str:
    """One skill as it stands in the prompt, its id always in brackets."""
    if skill.origin.phase == "episode":
        return (
            f"{skill.principle} [{skill.id}]" if style == "compact" else f"- [{skill.id}] {skill.principle}"
        )
    if style == "compact":
        return f"{skill.principle} [{skill.id}]"
    when = f" (Apply when: {skill.when_to_apply})" if skill.when_to_apply else ""
    return f"- [{skill.id}] {skill.name}: {skill.principle}{when}"


def render_system(env: str, skills: Sequence[Skill], options: PromptOptions) -> str:
    """System message: role, skills with their ids, rules."""
    lines = [skill_line(skill, options.style) for skill in skills]
    if options.style == "compact":
        return "\n".join(lines)
    parts = [_ROLES[env]]
    if lines:
        episodes = skills[0].origin.phase == "episode"
        title = "Earlier episodes that were won" if episodes else "Skills learned from earlier episodes"
        parts.append(f"{title}:\n" + "\n".join(lines))
    parts.append(_RULES)
    return "\n\n".join(parts)


def render_turn(result: StepResult, task: Task, options: PromptOptions, *, first: bool) -> str:
    """User message: the observation, the task again (turns after the first), the admissible actions."""
    shop = task.env == "webshop"
    compact = options.style == "compact"
    parts = [_compact_page(result.observation) if compact and shop else result.observation.strip()]
    if compact and task.description and (shop or not first):
        parts.append(f"Task: {task.description}")
    if options.list_admissible and result.admissible:
        parts.append("Admissible actions:\n" + "\n".join(result.admissible))
    return "\n".join(parts)


def _compact_page(observation: str) -> str:
    """A WebShop page without the instruction, in lower case (as actions spell what they click), a line each."""
    parts = [part.strip() for part in observation.split("[SEP]")]
    if "Instruction:" in parts:
        parts = parts[parts.index("Instruction:") + 2 :]
    return "\n".join(parts).lower()


def first_messages(
    env: str, skills: Sequence[Skill], result: StepResult, task: Task, options: PromptOptions
) -> list[Message]:
    """The conversation before the policy's first reply."""
    return [
        {"role": "system", "content": render_system(env, skills, options)},
        {"role": "user", "content": render_turn(result, task, options, first=True)},
    ]
