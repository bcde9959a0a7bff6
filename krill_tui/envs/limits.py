"""What a world may say. Its text goes into prompts, files and views, so that it is storable and bounded where it enters."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from krill_tui.envs.base import StepResult
from krill_tui.errors import EnvironmentFailure
from krill_tui.io.text import clean_text, cut_middle, storable
from krill_tui.trajectory import Task

LONGEST_OBSERVATION = 32_768
"""Characters of one observation; of a longer one the middle is cut out, and that is said in it."""
LONGEST_LIST = 32_768
"""Characters of all admissible actions of one step together; how many are left out is said in the observation."""
MOST_ACTIONS = 2_000
LONGEST_ADMISSIBLE = 2_000
"""Characters of one admissible action; a longer one is left out."""
LONGEST_DESCRIPTION = 2_000
LONGEST_CATEGORY = 60
LARGEST_REWARD = 1e6
"""Of one step, in size: the sum over an episode stays finite and exact enough to compare."""


def admitted(result: StepResult) -> StepResult:
    """The result as it may go on: text storable, nothing longer than the limits; the same object where nothing changes.

    Raises:
        EnvironmentFailure: the reward is no number or absurdly large.
    """
    if not math.isfinite(result.reward) or abs(result.reward) > LARGEST_REWARD:
        raise EnvironmentFailure(f"the world gave a reward of {result.reward:g}: no sensible number")
    observation = storable(cut_middle(result.observation, LONGEST_OBSERVATION))
    admissible = _admitted_actions(result.admissible)
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
        category = clean_text(category, LONGEST_CATEGORY)
    if description == task.description and category == task.category:
        return task
    return task.model_copy(update={"description": description, "category": category})


def _admitted_actions(actions: Sequence[str]) -> tuple[str, ...]:
    kept: list[str] = []
    room = LONGEST_LIST
    for action in actions:
        room -= len(action) + 1
        if room < 0 or len(kept) == MOST_ACTIONS:
            break
        if len(action) <= LONGEST_ADMISSIBLE:
            kept.append(storable(action))
        else:
            room += len(action) + 1
    return tuple(kept)
