"""A finished episode, played once more in an exact engine and compared with what was written down."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from krill_tui.agent.actions import citations, parse_reply
from krill_tui.agent.rollout import is_valid
from krill_tui.envs.base import Environment, StepResult
from krill_tui.envs.limits import admitted, admitted_task
from krill_tui.io.text import one_line
from krill_tui.trajectory import Record, Step, StopReason, Trajectory

_SHOWN = 60
"""Characters of a value in a difference."""


class Difference(Record):
    """One thing that is not what it should be."""

    where: str
    """An episode's id, `step 4`, `evaluation base`, `skill heat_001`, a file …"""
    step: int | None = None
    """Of the episode, from 0."""
    field: str
    stored: str = ""
    found: str = ""
    """What it should be, by the engine or by recomputation."""

    def line(self) -> str:
        step = "" if self.step is None else f", step {self.step}"
        return f"{one_line(self.where, limit=120)}{step}, {self.field}: stored {self.stored or 'nothing'}, found {self.found or 'nothing'}"


def difference(where: str, field: str, stored: object, found: object, step: int | None = None) -> Difference:
    """A difference of two values, each shown around the place where they part."""
    one, other = (value if isinstance(value, str) else repr(value) for value in (stored, found))
    start = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), 0)
    if start <= _SHOWN // 2:
        start = 0
    else:
        start -= _SHOWN // 4
    shown = [_part(text, start) for text in (one, other)]
    return Difference(where=where, step=step, field=field, stored=shown[0], found=shown[1])


def _part(text: str, start: int) -> str:
    piece = text[start : start + _SHOWN]
    return f"{'…' if start else ''}{one_line(piece, limit=_SHOWN)}{'…' if start + _SHOWN < len(text) else ''}"


@dataclass
class Rechecked:
    """What playing an episode again gave."""

    trajectory: Trajectory
    """As it should have been written down, as far as it was played."""
    differences: list[Difference] = field(default_factory=list)
    steps: int = 0
    whole: bool = True
    """False: it went another way than what is stored, so the rest could not be compared."""


def finished(coroutine: Coroutine[Any, Any, StepResult]) -> StepResult:
    """What an exact engine answers: it never waits, so no event loop is needed."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    coroutine.close()
    raise RuntimeError("this engine waits for something")


def recheck(stored: Trajectory, env: Environment, max_steps: int) -> Rechecked:
    """Play the actions of `stored` again in `env`, which nothing was played in yet; `max_steps` 0: not known.

    Where a reply and the action read from it do not fit together, the reply counts.

    Raises:
        KrillError: the world could not be opened or broke.
    """
    result = admitted(finished(env.reset()))
    task = admitted_task(env.task)
    checked = Rechecked(stored)
    said = checked.differences

    def compare(name: str, one: object, other: object, step: int | None = None) -> None:
        if one != other:
            said.append(difference(stored.id, name, one, other, step))

    compare("env", stored.env, task.env)
    compare("task", stored.task, task.description)
    compare("category", stored.category, task.category)
    played: list[Step] = []
    total = 0.0
    doubtful = False
    for number, step in enumerate(stored.steps):
        compare("index", step.index, number, number)
        seen, listed = step.observation == result.observation, step.admissible == tuple(result.admissible)
        if not seen and (doubtful or not listed) and number:
            # Another state altogether: an earlier action was another one, and what follows tells nothing.
            if not doubtful:
                compare("observation", step.observation, result.observation, number)
            checked.whole = False
            break
        compare("observation", step.observation, result.observation, number)
        compare("admissible", step.admissible, tuple(result.admissible), number)
        action, thought = step.action, step.thought
        if step.author == "policy":
            reply = parse_reply(step.text)
            compare("action", step.action, reply.action, number)
            compare("thought", step.thought, reply.thought, number)
            doubtful = doubtful or step.action != reply.action
            action, thought = reply.action, reply.thought
        valid = is_valid(env, result, action)
        if step.action == action:
            compare("valid", step.valid, valid, number)
        if result.done:
            said.append(difference(stored.id, "action", step.action, "the episode had ended", number))
            checked.whole = False
            break
        before, result = result, admitted(finished(env.step(action)))
        if not doubtful:
            compare("reward", step.reward, result.reward, number)
        total += result.reward
        played.append(
            step.model_copy(
                update={
                    "index": number,
                    "observation": before.observation,
                    "admissible": tuple(before.admissible),
                    "action": action,
                    "thought": thought,
                    "valid": valid,
                    "reward": result.reward,
                }
            )
        )
    checked.steps = len(played)
    if not checked.whole:
        return checked
    if doubtful and stored.final_observation != result.observation:
        checked.whole = False
        return checked
    compare("final_observation", stored.final_observation, result.observation)
    compare("total_reward", stored.total_reward, total)
    won = result.done and result.won
    compare("success", stored.success, won)
    stop = _stop(stored, result, max_steps)
    # A wrong flag is one fault, not two: the reason is compared where it says more than the flag.
    if stored.success == won or stored.stop_reason is not (
        StopReason.SUCCESS if stored.success else StopReason.FAILURE
    ):
        compare("stop_reason", stored.stop_reason.value, stop.value)
    known = frozenset(stored.skills)
    cited = tuple(dict.fromkeys(i for step in played for i in citations(step.thought, known)))
    compare("cited", stored.cited, cited)
    checked.trajectory = stored.model_copy(
        update={
            "task": task.description,
            "category": task.category,
            "steps": tuple(played),
            "final_observation": result.observation,
            "total_reward": total,
            "success": won,
            "stop_reason": stop,
            "cited": cited,
        }
    )
    return checked


def _stop(stored: Trajectory, result: StepResult, max_steps: int) -> StopReason:
    """How the episode must have ended; what the world cannot know (a limit of tokens, a fault, a person) is believed."""
    if result.done:
        return StopReason.SUCCESS if result.won else StopReason.FAILURE
    if max_steps and len(stored.steps) >= max_steps:
        return StopReason.STEP_LIMIT
    believed = (StopReason.CONTEXT_LIMIT, StopReason.ERROR, StopReason.CANCELLED)
    if stored.stop_reason in believed or (stored.stop_reason is StopReason.STEP_LIMIT and not max_steps):
        return stored.stop_reason
    return StopReason.STEP_LIMIT
