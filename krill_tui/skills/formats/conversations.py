"""Episodes told as conversations (ETO, AgentGym, chat messages): whose turn it is, thoughts, actions, tasks, scores."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from krill_tui.envs.alfworld.text import task_sentence
from krill_tui.io.json_text import NotJson, loads
from krill_tui.skills.formats.records import Refused, finite, utf8
from krill_tui.trajectory import Step

_SPEAKERS = {
    **dict.fromkeys(("human", "user", "tool", "function", "observation", "environment", "env"), "human"),
    **dict.fromkeys(("gpt", "assistant", "model", "agent", "bot", "function_call"), "gpt"),
    "system": "system",
    "developer": "system",
}
TURNS = ("conversations", "messages", "conversation")
"""Where a record keeps its turns: `from` and `value`, or `role` and `content`."""
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")
"""Where chat messages keep what was thought before the reply."""

_OBSERVATION = re.compile(r"\s*Observation:\s*", re.IGNORECASE)
_LISTED = "AVAILABLE ACTIONS:"
# A label on a line of its own comes before one inside a line, Action before ACTION or action there.
_ACTION_LABELS = (
    re.compile(r"^[ \t*#>`]{0,16}actions?[ \t*`]{0,8}[:：][*`]{0,3}", re.IGNORECASE | re.MULTILINE),
    re.compile(r"Action:"),
    re.compile(r"\baction[ \t]?:", re.IGNORECASE),
)
_THOUGHT_LABEL = re.compile(
    r"[ \t*#>`]{0,16}(?:thoughts?|think|reasoning)[ \t*`]{0,8}[:：][*`]{0,3}", re.IGNORECASE
)
_ACTION_TAG = re.compile(r"<action>", re.IGNORECASE)
_TAGS = re.compile(r"</?(?:think|thinking|thought|action)>", re.IGNORECASE)
_THOUGHT_END = re.compile(r"</(?:think|thinking|thought)>", re.IGNORECASE)
_QUOTES = "*`"
_INSTRUCTION = "Instruction:"
_SEPARATOR = "[SEP]"
_SCORE = re.compile(r"Your score \(min 0\.0, max 1\.0\)\s*+(?:\[SEP\])?\s*+([01](?:\.\d+)?)\b")
_ACKNOWLEDGED = re.compile(r"\s*(?:ok|okay|understood|sure|got it|i understand)\b", re.IGNORECASE)


def read_turns(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """All (speaker, text) of a record, `human` and `gpt` taking turns, `human` first; a system message is left out.

    Raises:
        Refused: a turn is none or is out of turn; names it.
    """
    said = next((record[key] for key in TURNS if isinstance(record.get(key), list)), None)
    if said is None:
        raise Refused("it has no conversations and no messages")
    turns: list[tuple[str, str]] = []
    for number, turn in enumerate(said):
        said_by = _first(turn, "from", "role")
        speaker = _SPEAKERS.get(said_by.lower()) if isinstance(said_by, str) else None
        text = _text(turn)
        if speaker is None or text is None:
            raise Refused(f"turn {number} has no speaker or no text")
        if speaker == "system" and not turns:
            continue
        if speaker != ("human", "gpt")[len(turns) % 2]:
            raise Refused(f"turn {number} is out of turn")
        turns.append((speaker, utf8(text)))
    return turns


def without_instruction(turns: Sequence[tuple[str, str]]) -> Sequence[tuple[str, str]]:
    """The turns from the first that is played: what explains the game, and its `OK`, are the same in every record."""
    if len(turns) < 2 or parse_said(turns[1][1])[1]:
        return turns
    is_explained = bool(_ACKNOWLEDGED.match(turns[1][1])) or not _holds_task(turns[0][1])
    return turns[2:] if is_explained else turns


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
        thought, action = parse_said(reply)
        steps.append(
            Step(
                index=len(steps),
                observation=observation,
                admissible=admissible,
                thought=thought,
                action=action,
                text=reply,
                valid=bool(action),
            )
        )
    if not any(step.valid for step in steps):
        raise Refused("none of its replies holds an action")
    return steps, _observation(turns[-1][1])[0] if turns[-1][0] == "human" else ""


def parse_said(reply: str) -> tuple[str, str]:
    """(thought, action) of a reply; what follows the last label or tag is the action, empty where there is none."""
    reply = reply.lstrip()
    ends = list(_THOUGHT_END.finditer(reply))
    spoken_from = ends[-1].end() if ends else 0
    tags = [tag for tag in _ACTION_TAG.finditer(reply) if tag.start() >= spoken_from]
    if tags:
        action = reply[tags[-1].end() :]
        close = action.lower().find("</action>")
        thought = reply[: tags[0].start()]
        return _thought(thought), _first_line(action if close < 0 else action[:close])
    for label in _ACTION_LABELS:
        found = [match for match in label.finditer(reply) if match.start() >= spoken_from]
        if found:
            action = reply[found[-1].end() :].rpartition("Action:")[2]
            labelled = bool(_THOUGHT_LABEL.match(reply) or ends)
            return _thought(reply[: found[0].start()]) if labelled else "", _first_line(action)
    return _thought(reply) if _THOUGHT_LABEL.match(reply) or ends else "", ""


def read_task(observation: str, household: bool) -> tuple[str, str]:
    """(world, task) of a first observation; `household` says that it is one for another reason.

    Raises:
        Refused: it is of another world, or holds no task.
    """
    if household or "Your task is to:" in observation:
        env, task = "alfworld", task_sentence(observation)
    elif _SEPARATOR in observation or ("WebShop" in observation and _INSTRUCTION in observation):
        env, task = "webshop", _instruction(observation)
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


def _first(turn: Any, *keys: str) -> Any:
    if not isinstance(turn, dict):
        return None
    return next((turn[key] for key in keys if turn.get(key) is not None), None)


def _text(turn: Any) -> str | None:
    """What a turn says, with its thought before it and a tool call as its action; None where it says nothing."""
    content = _first(turn, "value", "content", "text")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else part for part in content]
        content = "\n".join(part for part in parts if isinstance(part, str))
    called = _called(turn)
    if not isinstance(content, str):
        if called is None:
            return None
        content = ""
    thought = _first(turn, *_THOUGHTS)
    if isinstance(thought, str) and thought.strip() and "</think>" not in content:
        content = f"<think>{thought.strip()}</think>\n{content}"
    return content if called is None else f"{content}\n<action>{called}</action>".lstrip()


def _called(turn: Any) -> str | None:
    """The action of a turn's last tool call: its only text, after its name where that is a shop's verb."""
    calls = turn.get("tool_calls") if isinstance(turn, dict) else None
    if not isinstance(calls, list) or not calls or not isinstance(calls[-1], dict):
        return None
    function = calls[-1].get("function", calls[-1])
    if not isinstance(function, dict):
        return None
    name, arguments = function.get("name"), function.get("arguments")
    if isinstance(arguments, str):
        try:
            arguments = loads(arguments)
        except NotJson:
            arguments = {"action": arguments}
    texts = [v for v in arguments.values() if isinstance(v, str)] if isinstance(arguments, dict) else []
    if len(texts) != 1:
        return None
    return f"{name}[{texts[0]}]" if name in ("search", "click") else texts[0]


def _thought(text: str) -> str:
    text = _TAGS.sub("", text).lstrip()
    if match := _THOUGHT_LABEL.match(text):
        text = text[match.end() :]
    return text.strip().rstrip(_QUOTES).strip()


def _first_line(text: str) -> str:
    lines = text.strip().strip(_QUOTES).strip().splitlines()
    return lines[0].strip().strip(_QUOTES).strip() if lines else ""


def _holds_task(text: str) -> bool:
    return "Your task is to:" in text or bool(_instruction(text))


def _instruction(page: str) -> str:
    """What a shop's page says after `Instruction:`, up to the next separator or line end."""
    _, found, rest = page.partition(_INSTRUCTION)
    rest = rest.lstrip()
    if not found:
        return ""
    rest = rest.removeprefix(_SEPARATOR).lstrip()
    return rest.split("\n", 1)[0].split(_SEPARATOR, 1)[0].strip()


def _observation(text: str) -> tuple[str, tuple[str, ...]]:
    """The observation of a turn, and the actions that are listed below it."""
    if match := _OBSERVATION.match(text):
        text = text[match.end() :]
    before, label, listed = text.rpartition(_LISTED)
    if not label or "\n" in listed.strip():
        return text, ()
    actions = (action.strip() for action in listed.split(","))
    return before.rstrip(), tuple(action for action in actions if action)
