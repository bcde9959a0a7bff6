"""Policies that are programs: the environment's expert, and chance."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence

from krill_tui.agent.actions import format_reply
from krill_tui.envs.base import Expert, StepResult
from krill_tui.envs.webshop.pages import QUERY_HINT
from krill_tui.models.base import ActReply, ActRequest
from krill_tui.skill import Skill

_WORD = re.compile(r"[a-z]+")
_QUERY_WORDS = 3
_PLACES = re.compile(r"([a-z]+): ([a-z]+(?:, [a-z]+)*)(?: \(.*\))?")


def place_hints(skills: Sequence[Skill]) -> dict[str, tuple[tuple[str, ...], Skill]]:
    """Object type or treatment -> (receptacle types, the skill), for skills that say a place.

    Those are of the form `mug: cabinet` or `heat: stoveburner (…)`; the first one counts.
    """
    hints: dict[str, tuple[tuple[str, ...], Skill]] = {}
    for skill in skills:
        match = _PLACES.fullmatch(skill.principle.strip())
        if match:
            hints.setdefault(match.group(1), (tuple(match.group(2).split(", ")), skill))
    return hints


def quote(skill: Skill) -> str:
    """A thought that follows a skill: its key and place, as it says them, and its id: `heat: stoveburner [heat_001]`."""
    return f"{skill.principle.partition(' (')[0].strip()} [{skill.id}]"


class RandomPolicy:
    """Any admissible action, by the episode's seed; a query is a few words of the observation."""

    name = "random"

    def __init__(self) -> None:
        self._rngs: dict[str, random.Random] = {}

    async def act(self, request: ActRequest) -> ActReply:
        rng = self._rngs.setdefault(request.episode, random.Random(request.seed))
        action = rng.choice(list(request.admissible)) if request.admissible else "look"
        if action == QUERY_HINT:
            words = sorted(set(_WORD.findall(request.observation)))
            action = f"search[{' '.join(rng.sample(words, min(_QUERY_WORDS, len(words))))}]"
        return ActReply(text=format_reply("", action))

    async def start(self, episode: str) -> None:
        self._rngs.pop(episode, None)

    async def finish(self, episode: str) -> None:
        self._rngs.pop(episode, None)

    async def close(self) -> None:
        self._rngs.clear()


class ExpertPolicy:
    """Plays by the environment's own planner, from observations alone.

    `make` opens a planner that tries the hinted receptacle types first. With `follow_skills` (demonstrations) the
    hints are the skills of the prompt that say a place, and the thought quotes the skill, with its id, wherever the
    action follows one.
    """

    name = "expert"

    def __init__(self, make: Callable[[Mapping[str, Sequence[str]]], Expert], *, follow_skills: bool = False):
        self._make = make
        self._follow_skills = follow_skills
        self._experts: dict[str, Expert] = {}

    async def act(self, request: ActRequest) -> ActReply:
        hints = place_hints(request.skills) if self._follow_skills else {}
        expert = self._experts.get(request.episode)
        if expert is None:
            expert = self._make({name: places for name, (places, _) in hints.items()})
            self._experts[request.episode] = expert
        thought, action = expert.act(StepResult(request.observation, admissible=tuple(request.admissible)))
        hinted = getattr(expert, "last_hint", None)
        if hinted in hints:
            thought = quote(hints[hinted][1])
        return ActReply(text=format_reply(thought, action))

    async def start(self, episode: str) -> None:
        self._experts.pop(episode, None)

    async def finish(self, episode: str) -> None:
        self._experts.pop(episode, None)

    async def close(self) -> None:
        self._experts.clear()
