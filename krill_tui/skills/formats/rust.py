"""The Rust project's trajectories, both ways. Log-probabilities are not kept: ours lie beside, with their tokens."""

from __future__ import annotations

import uuid
from typing import Any, Literal

from pydantic import FiniteFloat

from krill_tui.envs.alfworld.text import CATEGORIES
from krill_tui.io.text import clean_text
from krill_tui.skills.formats.records import Loose, Refused, digest, finite, unsaid_stop, validated
from krill_tui.skills.tiers import SHOPPING, household_category, shopping_category
from krill_tui.trajectory import Step, StopReason, TokenCounts, Trajectory

_NAMESPACE = uuid.UUID("b0a5f6d2-52f7-5d0c-8f0e-1c1f4f0f2a6e")
_UNFINISHED = (StopReason.ERROR, StopReason.CANCELLED)


class _RustStep(Loose):
    observation: str
    action: str
    reward: FiniteFloat = 0.0


class _RustMetadata(Loose):
    environment: Literal["alfworld", "webshop"] = "alfworld"
    total_tokens: int = 0
    skills_used: tuple[str, ...] = ()


class _RustTrajectory(Loose):
    id: str
    task_description: str
    task_category: str = ""
    steps: tuple[_RustStep, ...]
    total_reward: FiniteFloat = 0.0
    success: bool
    metadata: _RustMetadata = _RustMetadata()


def from_rust(record: Any) -> Trajectory:
    """One trajectory of the Rust project.

    Raises:
        Refused: it is none; names the field.
    """
    source = validated(_RustTrajectory, record)
    env = source.metadata.environment
    name = clean_text(source.id, 80) or f"rust-{digest(record)}"
    steps = tuple(
        Step(
            index=index,
            observation=step.observation,
            action=step.action,
            text=step.action,
            valid=bool(step.action.strip()),
            reward=step.reward,
        )
        for index, step in enumerate(source.steps)
    )
    return Trajectory(
        id=name,
        env=env,
        task_id=f"rust/{name}",
        split="",
        task=source.task_description,
        category=_category(env, source.task_category, source.task_description),
        steps=steps,
        total_reward=source.total_reward,
        success=source.success,
        stop_reason=unsaid_stop(env, source.success),
        policy="import:rust",
        skills=source.metadata.skills_used,
        tokens=TokenCounts(policy=source.metadata.total_tokens),
    )


def to_rust(trajectory: Trajectory) -> dict[str, Any]:
    """A trajectory as the Rust project reads it: every key is there, an id that is no UUID becomes one.

    Raises:
        Refused: the format has no word for how it ended, or a reward is not finite.
    """
    if trajectory.stop_reason in _UNFINISHED:
        raise Refused(f"it ended by '{trajectory.stop_reason.value}', which would read as a failure")
    if trajectory.env not in ("alfworld", "webshop"):
        raise Refused(f"its world is '{clean_text(trajectory.env, 40)}', neither alfworld nor webshop")
    steps = [
        {
            "observation": step.observation,
            "action": step.action,
            "reward": finite(step.reward, "reward"),
            "step_index": index,
            "action_log_prob": None,
            "ref_log_prob": None,
        }
        for index, step in enumerate(trajectory.steps)
    ]
    shopping = trajectory.env == "webshop"
    return {
        "id": _uuid(trajectory.id),
        "task_description": trajectory.task,
        "task_category": SHOPPING
        if shopping
        else _category(trajectory.env, trajectory.category, trajectory.task),
        "steps": steps,
        "total_reward": finite(trajectory.total_reward, "total reward"),
        "success": trajectory.success,
        "metadata": {
            "environment": trajectory.env,
            "num_steps": len(steps),
            "total_tokens": trajectory.tokens.prompt + trajectory.tokens.policy,
            "skills_used": list(trajectory.skills),
        },
    }


def _category(env: str, category: str, task: str) -> str:
    if env == "webshop":
        # The Rust project knows only one category of shopping tasks.
        return shopping_category(task) if category in ("", SHOPPING) else clean_text(category, 80)
    return category if category in CATEGORIES else household_category(category, task)


def _uuid(name: str) -> str:
    try:
        return str(uuid.UUID(name))
    except ValueError:
        return str(uuid.uuid5(_NAMESPACE, name))
