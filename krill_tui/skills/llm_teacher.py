"""The teacher of the paper: a chat model that reads episodes and writes skills."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Literal

from krill_tui.envs.alfworld.text import CATEGORIES
from krill_tui.errors import ModelError
from krill_tui.io.text import one_line
from krill_tui.models.base import ChatModel, ChatReply, ChatUsage, Message
from krill_tui.skill import GENERAL, Skill, SkillKind, SkillProposal
from krill_tui.skills.prompts import complaint, distill_messages, evolve_messages
from krill_tui.skills.replies import TaughtSkill, UnreadableReply, parse_reply
from krill_tui.skills.teacher import DistillResult, EvolveResult, OnCall, TeacherCall, check_teachable
from krill_tui.trajectory import Trajectory

_ATTEMPTS = 3
_NAMES_SHOWN = 60
_LEAST_ROOM = 8192
"""Tokens that a reply is given at least, when one was cut off and is asked for again."""


class LLMTeacher:
    """Asks once for each trajectory, all at once: the chat model bounds how many calls are in flight."""

    is_llm = True

    def __init__(
        self,
        chat: ChatModel,
        *,
        attempts: int = _ATTEMPTS,
        trajectory_tokens: int = 6000,
        evolve_tokens: int = 24000,
        temperature: float | None = None,
        max_tokens: int | None = None,
    ) -> None:
        """
        Args:
            attempts: Questions asked until a reply can be read.
            trajectory_tokens: Budget of one episode in a distillation prompt.
            evolve_tokens: Budget of all failures together in an evolution prompt.
            temperature: None is the endpoint's own.
            max_tokens: Of one reply; None is the endpoint's own limit.
        """
        self.name = chat.name
        self._chat = chat
        self._attempts = attempts
        self._trajectory_tokens = trajectory_tokens
        self._evolve_tokens = evolve_tokens
        self._temperature = temperature
        self._max_tokens = max_tokens

    async def distill(
        self,
        trajectories: Sequence[Trajectory],
        bank_skills: Sequence[Skill],
        *,
        env: str,
        on_call: OnCall | None = None,
    ) -> DistillResult:
        """See `Teacher.distill`. A call that fails is a record in `failures`; the others go on."""
        check_teachable(trajectories)
        categories = _categories(env, trajectories, bank_skills)

        async def read(trajectory: Trajectory) -> tuple[TeacherCall, list[SkillProposal]]:
            messages = distill_messages(
                trajectory,
                bank_skills[:_NAMES_SHOWN],
                categories,
                token_budget=self._trajectory_tokens,
            )
            call, taught = await self._ask("distill", (trajectory.id,), messages)
            if on_call is not None:
                on_call(call)
            kind = SkillKind.STRATEGY if trajectory.success else SkillKind.LESSON
            proposals = [
                _proposal(skill, kind, categories, trajectory.category, (trajectory.id,)) for skill in taught
            ]
            # A reading of one episode cannot judge the bank: only evolution refines.
            return call, [proposal.model_copy(update={"refines": None}) for proposal in proposals]

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(read(trajectory)) for trajectory in trajectories]
        results = [task.result() for task in tasks]
        return DistillResult(
            tuple(proposal for _, proposals in results for proposal in proposals),
            calls=len(results),
            failures=tuple(call for call, _ in results if call.error is not None),
        )

    async def evolve(
        self,
        failures: Sequence[Trajectory],
        successes: Sequence[Trajectory],
        *,
        category_rates: Mapping[str, float],
        bank_skills: Sequence[Skill],
        max_new_skills: int,
        background: Sequence[Trajectory] = (),
        on_call: OnCall | None = None,
    ) -> EvolveResult:
        """See `Teacher.evolve`; an LLM reads the failures only, within its token budget."""
        check_teachable([*failures, *successes, *background])
        if not failures:
            return EvolveResult()
        categories = _categories(failures[0].env, failures, bank_skills)
        messages, ids = evolve_messages(
            failures,
            category_rates,
            bank_skills,
            categories,
            max_new_skills=max_new_skills,
            token_budget=self._evolve_tokens,
        )
        call, taught = await self._ask("evolve", ids, messages)
        if on_call is not None:
            on_call(call)
        worst = min(category_rates, key=lambda name: (category_rates[name], name), default="")
        fallback = failures[0].category or worst
        proposals = [_proposal(skill, SkillKind.LESSON, categories, fallback, ids) for skill in taught]
        return EvolveResult(tuple(proposals), call.prompt, call.reply, call.error, read=ids)

    async def close(self) -> None:
        await self._chat.close()

    async def _ask(
        self, kind: Literal["distill", "evolve"], ids: tuple[str, ...], messages: list[Message]
    ) -> tuple[TeacherCall, list[TaughtSkill]]:
        """Ask until the reply can be read; the record of it, and the skills (none if it never could)."""
        started = perf_counter()
        prompt = "\n\n".join(message["content"] for message in messages)
        call = TeacherCall(kind, ids, prompt)
        asked = list(messages)
        used = ChatUsage()
        room = self._max_tokens
        taught: list[TaughtSkill] = []
        for attempt in range(1, self._attempts + 1):
            try:
                answer = await self._chat.complete(asked, temperature=self._temperature, max_tokens=room)
            except ModelError as error:
                before = f"{call.error}; then: " if call.error else ""
                call = replace(call, error=f"{before}{error}", attempts=attempt)
                break
            used = ChatUsage(
                used.prompt_tokens + answer.usage.prompt_tokens,
                used.completion_tokens + answer.usage.completion_tokens,
            )
            text = _said(answer)
            call = replace(call, reply=text or answer.refusal, attempts=attempt, error=None)
            try:
                taught = parse_reply(text)
                break
            except UnreadableReply as problem:
                error, final = _why(answer, problem, again=room != self._max_tokens)
                call = replace(call, error=error)
                if final:
                    break
                if answer.finish in ("length", "context"):
                    room = _more_room(answer, room)
                    asked = list(messages)
                elif text.strip():
                    asked = [*messages, {"role": "assistant", "content": text}]
                    asked.append({"role": "user", "content": complaint(str(problem))})
        return replace(call, seconds=perf_counter() - started, usage=used), taught


def _said(answer: ChatReply) -> str:
    """The answer, or what stands for it: some servers take a whole answer for a thought."""
    if answer.text.strip() or answer.finish != "stop" or answer.refusal:
        return answer.text
    return answer.thought if "{" in answer.thought else answer.text


def _why(answer: ChatReply, problem: UnreadableReply, *, again: bool) -> tuple[str, bool]:
    """(why a reply gives no skills, whether asking again is no use)."""
    if answer.refusal and not answer.text.strip():
        return f"the model refused: {one_line(answer.refusal, limit=200)}", True
    if answer.finish == "filter":
        return "the endpoint's content filter cut the reply off", True
    if answer.finish in ("length", "context"):
        used = answer.usage.completion_tokens
        budget = f"of {used} tokens " if used else ""
        spent = (
            "for thinking" if answer.thought or not answer.text.strip() else "before the skills were complete"
        )
        advice = "raise teacher.max_tokens, or lower teacher.trajectory_tokens and teacher.evolve_tokens to ask for less"
        return f"the model used its budget {budget}{spent}; {advice}", again
    return f"unreadable reply: {problem}", False


def _more_room(answer: ChatReply, room: int | None) -> int:
    return 2 * max(answer.usage.completion_tokens, room or 0, _LEAST_ROOM // 2)


def _categories(
    env: str, trajectories: Sequence[Trajectory], bank_skills: Sequence[Skill]
) -> tuple[str, ...]:
    """Tiers a skill may go to, besides the general one."""
    known = list(CATEGORIES) if env == "alfworld" else []
    known += [trajectory.category for trajectory in trajectories]
    known += [skill.tier for skill in bank_skills]
    return tuple(name for name in dict.fromkeys(known) if name and name != GENERAL)


def _proposal(
    skill: TaughtSkill,
    kind: SkillKind,
    categories: Sequence[str],
    fallback: str,
    evidence: tuple[str, ...],
) -> SkillProposal:
    return SkillProposal(
        name=skill.name,
        principle=skill.principle,
        when_to_apply=skill.when_to_apply,
        tier=_tier(skill.category, categories, fallback),
        kind=kind,
        refines=skill.refines or None,
        evidence=evidence,
        reason=skill.reason,
    )


def _tier(category: str, categories: Sequence[str], fallback: str) -> str:
    """`general` in any case; a known category in any case; anything else is the episode's own."""
    if category.casefold() == GENERAL:
        return GENERAL
    known = {name.casefold(): name for name in categories}
    return known.get(category.casefold(), fallback or GENERAL)
