"""What a world may say. Its text goes into prompts, files and views, so that it is storable and bounded where it enters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from krill_tui.envs.base import StepResult
from krill_tui.errors import EnvironmentFailure
from krill_tui.io.text import clean_text, cut_middle, one_line, storable
from krill_tui.trajectory import Task


@dataclass(frozen=True, slots=True)
class Room:
    """How much one answer of a world may say."""

    observation: int
    """Characters; of a longer one the middle is cut out, and that is said in it."""
    actions: int
    """Characters of all admissible actions together; how many are left out is said in the observation."""
    most_actions: int


SERVER = Room(observation=32_768, actions=32_768, most_actions=2_000)
"""Of a live server: many times what genuine worlds say."""
ANY_WORLD = Room(observation=200_000, actions=200_000, most_actions=10_000)
"""Of a world in this process, whose every word is kept as it is: only a hostile game file says more."""
LONGEST_ADMISSIBLE = 2_000
"""Characters of one admissible action; a longer one is left out."""
LONGEST_DESCRIPTION = 2_000
LONGEST_CATEGORY = 60
LARGEST_REWARD = 1e6
"""Of one step, in size: the sum over an episode stays finite and exact enough to compare."""


def admitted(result: StepResult, room: Room = ANY_WORLD) -> StepResult:
    """The result as it may go on: text storable, nothing longer than the limits; the same object where nothing changes.

    Raises:
        EnvironmentFailure: the reward is no number or absurdly large.
    """
    if not math.isfinite(result.reward) or abs(result.reward) > LARGEST_REWARD:
        raise EnvironmentFailure(f"the world gave a reward of {result.reward:g}: no sensible number")
    observation = storable(cut_middle(result.observation, room.observation))
    admissible = _admitted_actions(result.admissible, room)
    left_out = len(result.admissible) - len(admissible)
    if left_out:
        observation += f"\n[{left_out:,} more actions were possible: too many or too long to list]"
    if observation == result.observation and admissible == tuple(result.admissible):
        return result
    return replace(result, observation=observation, admissible=admissible)


def admitted_task(task: Task) -> Task:
    """The task with a description and a category of one clean line each; the same object where nothing changes."""
    description = storable(task.description)
    if len(description) > LONGEST_DESCRIPTION:
        description = description[:LONGEST_DESCRIPTION]
    category = task.category
    if len(category) > LONGEST_CATEGORY or not (category.isascii() and category.isprintable()):
        category = clean_text(one_line(category), LONGEST_CATEGORY)
    if description == task.description and category == task.category:
        return task
    return task.model_copy(update={"description": description, "category": category})


def _admitted_actions(actions: Sequence[str], room: Room) -> tuple[str, ...]:
    kept: list[str] = []
    left = room.actions
    for action in actions:
        if len(action) > LONGEST_ADMISSIBLE:
            continue
        left -= len(action) + 1
        if left < 0 or len(kept) == room.most_actions:
            break
        kept.append(storable(action))
    return tuple(kept)
