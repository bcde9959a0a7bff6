"""SkillRL's generated memories as trajectories: a success keeps its refined steps, a failure its task alone."""

from __future__ import annotations

from typing import Any

from krill_tui.envs.alfworld.text import task_sentence
from krill_tui.io.text import clean_text
from krill_tui.skills.formats.records import Loose, Refused, digest, unsaid_stop, validated
from krill_tui.skills.tiers import household_category, shopping_category
from krill_tui.trajectory import Step, Trajectory

_WON = {"success": True, "failure": False, "failed": False}


class _Tags(Loose):
    environment: str
    outcome: str


class _TaskMeta(Loose):
    original_goal: str


class _RefinedStep(Loose):
    action: str
    critical_observation: str | None = ""
    reasoning: str | None = ""


class _Content(Loose):
    task_meta: _TaskMeta
    refined_trajectory: Any = None


class _Memory(Loose):
    memory_id: str
    tags: _Tags
    content: _Content
    origin_env_id: str | int | None = None


def from_memory(record: Any) -> Trajectory:
    """One memory. Its guidelines are no part of an episode and are left out.

    Raises:
        Refused: it is none, is of another world, or is a success without steps.
    """
    memory = validated(_Memory, record)
    env = memory.tags.environment.strip().lower()
    if env not in ("alfworld", "webshop"):
        raise Refused(f"its environment is '{clean_text(env, 40)}', neither ALFWorld nor WebShop")
    won = _WON.get(memory.tags.outcome.strip().lower())
    if won is None:
        raise Refused(f"its outcome is '{clean_text(memory.tags.outcome, 40)}', neither Success nor Failure")
    goal = memory.content.task_meta.original_goal
    task = (task_sentence(goal) or goal).strip().removesuffix(".")
    if not task:
        raise Refused("its original goal is empty")
    steps = _steps(memory.content.refined_trajectory)
    if won and not steps:
        raise Refused("it is a success without a refined trajectory")
    if won:
        steps[-1] = steps[-1].model_copy(update={"reward": 1.0})
    origin = clean_text(str(memory.origin_env_id or ""), 120) or clean_text(memory.memory_id, 120)
    return Trajectory(
        id=f"skillrl-{digest(record)}",
        env=env,
        task_id=f"skillrl/{origin}",
        split="",
        task=task,
        category=household_category("", task) if env == "alfworld" else shopping_category(task),
        steps=tuple(steps),
        total_reward=float(won),
        success=won,
        stop_reason=unsaid_stop(env, won),
        policy="import:skillrl",
    )


def _steps(refined: Any) -> list[Step]:
    """The steps of `refined_trajectory`, which some files nest once more under its own name."""
    while isinstance(refined, dict) and "refined_trajectory" in refined:
        refined = refined["refined_trajectory"]
    if refined is None:
        return []
    if not isinstance(refined, list):
        raise Refused("its refined trajectory is no list of steps")
    steps: list[Step] = []
    for index, value in enumerate(refined):
        try:
            step = validated(_RefinedStep, value)
        except Refused as reason:
            raise Refused(f"step {index}: {reason}") from None
        steps.append(
            Step(
                index=index,
                observation=step.critical_observation or "",
                thought=step.reasoning or "",
                action=step.action.strip(),
                text=step.action,
                valid=bool(step.action.strip()),
            )
        )
    return steps
