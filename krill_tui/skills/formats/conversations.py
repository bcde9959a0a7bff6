"""Episodes told as conversations (ETO, AgentGym): whose turn it is, thoughts, actions, tasks and scores."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from krill_tui.envs.alfworld.text import CATEGORY_OF_TYPE, parse_task, task_sentence
from krill_tui.skills.formats.records import Refused, finite, utf8
from krill_tui.trajectory import Step

SHOPPING = "search"
"""The one category of shopping tasks in the data of other projects."""

_SPEAKERS = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}
_OBSERVATION = re.compile(r"\s*Observation:\s*")
_ADMISSIBLE = "AVAILABLE ACTIONS:"
_ACTION = re.compile(r"Action:[ \t]*(.*)", re.DOTALL)
_THOUGHT = re.compile(r"\s*+Thought:(.*?)(?=\n[ \t]*+Action:|\Z)", re.DOTALL)
_INSTRUCTION = re.compile(r"Instruction:\s*+(?:\[SEP\])?\s*+(.+?)(?:\[SEP\]|\n|\Z)", re.DOTALL)
_SCORE = re.compile(r"Your score \(min 0\.0, max 1\.0\)\s*+(?:\[SEP\])?\s*+([01](?:\.\d+)?)\b")
_KEYWORDS = (
    (re.compile(r"\btwo\b"), "PickTwo"),
    (re.compile(r"\b(look|examine|light|lamp|desklamp)\b"), "Look"),
    (re.compile(r"\b(clean|rinse|wash)"), "Clean"),
    (re.compile(r"\b(hot|heat|warm|microwave)"), "Heat"),
    (re.compile(r"\b(cool|cold|chill)"), "Cool"),
)


def read_turns(conversations: Any) -> list[tuple[str, str]]:
    """All (speaker, text), `human` and `gpt` taking turns, `human` first.

    Raises:
        Refused: a turn is none or is out of turn; names it.
    """
    if not isinstance(conversations, list):
        raise Refused("it has no conversations")
    turns: list[tuple[str, str]] = []
    for number, turn in enumerate(conversations):
        said_by = turn.get("from") if isinstance(turn, dict) else None
        speaker = _SPEAKERS.get(said_by) if isinstance(said_by, str) else None
        text = turn.get("value") if isinstance(turn, dict) else None
        if speaker is None or not isinstance(text, str):
            raise Refused(f"turn {number} has no speaker or no text")
        if speaker != ("human", "gpt")[number % 2]:
            raise Refused(f"turn {number} is out of turn")
        turns.append((speaker, utf8(text)))
    return turns


def read_steps(turns: Sequence[tuple[str, str]]) -> tuple[list[Step], str]:
    """The steps, and the last observation where the record has one.

    Raises:
        Refused: there is no step, or no action in any.
    """
    if len(turns) < 2:
        raise Refused("it holds no step")
    steps: list[Step] = []
    for number in range(0, len(turns) - 1, 2):
        observation, admissible = _observation(turns[number][1])
        reply = turns[number + 1][1]
        action = _ACTION.findall(reply)
        thought = _THOUGHT.match(reply)
        said = action[-1].rpartition("Action:")[2].strip() if action else ""
        steps.append(
            Step(
                index=len(steps),
                observation=observation,
                admissible=admissible,
                thought=thought.group(1).strip() if thought else "",
                action=said.splitlines()[0].strip() if said else "",
                text=reply,
                valid=bool(said),
            )
        )
    if not any(step.valid for step in steps):
        raise Refused("none of its replies holds an action")
    return steps, _observation(turns[-1][1])[0] if turns[-1][0] == "human" else ""


def read_task(observation: str, household: bool) -> tuple[str, str]:
    """(world, task) of a first observation; `household` says that it is one for another reason.

    Raises:
        Refused: it is of another world, or holds no task.
    """
    if household or "Your task is to:" in observation:
        env, task = "alfworld", task_sentence(observation)
    elif "[SEP]" in observation:
        match = _INSTRUCTION.search(observation)
        env, task = "webshop", match.group(1).strip() if match else ""
    else:
        raise Refused("it is neither an ALFWorld nor a WebShop episode")
    if not task:
        raise Refused("its first observation holds no task")
    return env, task


def read_reward(value: Any, final_observation: str) -> float:
    """The reward of a record, else the score on its last page, else 1.0, as for a demonstration."""
    if value is not None:
        return finite(value, "reward")
    match = _SCORE.search(final_observation)
    return float(match.group(1)) if match else 1.0


def household_category(path: str, task: str) -> str:
    """The category by the name of the game's folder, else by the sentence, else by words of the task."""
    for part in path.replace("\\", "/").split("/"):
        if category := CATEGORY_OF_TYPE.get(part.split("-")[0]):
            return category
    goal = parse_task(task)
    if goal is not None:
        return goal.category
    return next((category for words, category in _KEYWORDS if words.search(task.lower())), "Pick")


def _observation(text: str) -> tuple[str, tuple[str, ...]]:
    """The observation of a turn, and the actions that are listed below it."""
    if match := _OBSERVATION.match(text):
        text = text[match.end() :]
    before, label, listed = text.rpartition(_ADMISSIBLE)
    if not label or "\n" in listed.strip():
        return text, ()
    actions = (action.strip() for action in listed.split(","))
    return before.rstrip(), tuple(action for action in actions if action)
