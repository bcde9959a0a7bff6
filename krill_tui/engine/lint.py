"""Looks over fine-tuning data before anything is learned from it: does it show what it is meant to teach?

A pure function over demonstrations. It measures and warns; it changes and drops nothing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence

from krill_tui.agent.actions import citations
from krill_tui.trajectory import Record, Step, StopReason, Trajectory

CITING = 0.2
"""Share of replies that quote a skill of their prompt, at least. An expert's household episode of seven steps looks up
one or two things: with less, fine-tuning teaches to play without reading the skills."""
BLOCKS = 3
"""Sets of skills over all prompts, at least: with one or two they can be learned by heart instead of read."""
UNFINISHED = 0.05
"""Share of episodes without their end, at most: what they would teach is how to begin."""
ONE_VERB = 0.6
"""Share of one verb among all actions, at most: a policy that always says it is right too often."""
INVALID = 0.05
"""Share of actions that were not possible, at most."""
REPEATED = 0.05
"""Share of demonstrations that say the same as another, at most: each is an epoch more of a few."""
CUT = 0.01
"""Share of tokens past the context, at most: they are cut off before training."""
CHARACTERS_PER_TOKEN = 4
"""Of the estimate, where no tokenizer counted."""

_SKILL_ID = re.compile(r"\[([A-Za-z]+_\d+)\]")
"""How a skill is quoted; other brackets of a text (`[SEP]`, `[1]`) are none."""
_VERB = re.compile(r"[A-Za-z]+")


class LintWarning(Record):
    """One thing that is likely to go wrong."""

    check: str
    """Field of the report it is about."""
    message: str
    """What was found, what would be expected, and why, in one line."""


class LintReport(Record):
    """What a set of demonstrations holds. Shares are of 1."""

    episodes: int
    won: int
    games: int
    """Distinct ones."""
    outputs: int
    """Replies of the policy."""
    citing: float
    """Share of replies that quote a skill of their prompt."""
    citing_episodes: float
    """Share of episodes with at least one such reply."""
    citing_unknown: float
    """Share of replies that quote an id that is not in their prompt."""
    skill_blocks: int
    """Distinct sets of skills in prompts; the empty set is one."""
    without_skills: float
    """Share of episodes without a skill in the prompt."""
    finished: float
    """Share of episodes that the world ended and that the context holds to their end."""
    invalid: float
    """Share of actions that were not possible."""
    duplicates: float
    """Share of episodes that say the same as an earlier one: same prompt, same observations, same replies."""
    verbs: Mapping[str, int]
    """Actions by their first word, most frequent first; `(none)` where a reply held no action."""
    tokens: int
    policy_tokens: int
    """Those that are learned: the replies."""
    mean_tokens: float
    """Per episode."""
    longest: int
    context: int
    """Tokens the model holds; 0: not known."""
    cut: float
    """Share of tokens past the context."""
    estimated: bool
    """The tokens were not counted by a tokenizer but taken as a quarter of the characters."""
    warnings: tuple[LintWarning, ...] = ()


def lint(
    demonstrations: Sequence[Trajectory],
    *,
    lengths: Sequence[tuple[int, int]] | None = None,
    context: int = 0,
) -> LintReport:
    """Measure demonstrations and say what looks wrong.

    Args:
        lengths: Of each demonstration: tokens of its whole sequence, and of its replies; None: estimated.
        context: Tokens the model holds; 0: not known, nothing counts as cut.
    """
    if lengths is None:
        counts = [_estimate(trajectory) for trajectory in demonstrations]
    else:
        counts = list(lengths)
    steps = [(t, step) for t in demonstrations for step in t.steps]
    injected = {t.id: _injected(t) for t in demonstrations}
    citing = [bool(citations(step.thought, injected[t.id])) for t, step in steps]
    unknown = [bool(set(_SKILL_ID.findall(step.thought)) - injected[t.id]) for t, step in steps]
    fits = [context == 0 or total <= context for total, _ in counts]
    ended = [t.stop_reason in (StopReason.SUCCESS, StopReason.FAILURE) for t in demonstrations]
    totals = [total for total, _ in counts]
    report = LintReport(
        episodes=len(demonstrations),
        won=sum(t.success for t in demonstrations),
        games=len({t.task_id for t in demonstrations}),
        outputs=len(steps),
        citing=_share(citing),
        citing_episodes=_share(
            [any(citations(s.thought, injected[t.id]) for s in t.steps) for t in demonstrations]
        ),
        citing_unknown=_share(unknown),
        skill_blocks=len(set(injected.values())),
        without_skills=_share([not injected[t.id] for t in demonstrations]),
        finished=_share([e and f for e, f in zip(ended, fits, strict=True)]),
        invalid=_share([not step.valid for _, step in steps]),
        duplicates=1 - len({_said(t) for t in demonstrations}) / len(demonstrations)
        if demonstrations
        else 0.0,
        verbs=dict(Counter(map(_verb, (step for _, step in steps))).most_common()),
        tokens=sum(totals),
        policy_tokens=sum(own for _, own in counts),
        mean_tokens=sum(totals) / len(totals) if totals else 0.0,
        longest=max(totals, default=0),
        context=context,
        cut=sum(max(0, n - context) for n in totals) / max(1, sum(totals)) if context else 0.0,
        estimated=lengths is None,
    )
    return report.model_copy(update={"warnings": tuple(_warnings(report))})


def _warnings(report: LintReport) -> list[LintWarning]:
    """In the order of how much each is likely to cost."""
    if not report.episodes:
        return [LintWarning(check="episodes", message="there is no demonstration")]
    verb, count = next(iter(report.verbs.items()), ("", 0))
    few = min(BLOCKS, report.episodes)
    found = (
        ("without_skills", report.without_skills == 1, "no prompt holds a skill: nothing teaches to use one"),
        (
            "citing",
            report.without_skills < 1 and report.citing < CITING,
            f"{report.citing:.0%} of the replies quote a skill of their prompt (expected: {CITING:.0%} or more):"
            " what is learned is to play without them",
        ),
        (
            "citing_unknown",
            report.citing_unknown > 0,
            f"{_percent(report.citing_unknown)} of the replies quote a skill that is not in their prompt:"
            " that teaches to make ids up",
        ),
        (
            "skill_blocks",
            report.without_skills < 1 and report.skill_blocks < few,
            f"the prompts hold {report.skill_blocks} different sets of skills (expected: {few} or more):"
            " they can be learned by heart instead of read",
        ),
        (
            "won",
            report.won < report.episodes,
            f"{report.episodes - report.won} of {report.episodes} episodes were not won",
        ),
        (
            "finished",
            1 - report.finished > UNFINISHED,
            f"{_percent(1 - report.finished)} of the episodes have no end, or the context does not hold it"
            f" (expected: {UNFINISHED:.0%} or less)",
        ),
        (
            "cut",
            report.cut > CUT,
            f"{_percent(report.cut)} of the tokens are past the context of {report.context} and are cut off"
            f" (expected: {CUT:.0%} or less; the longest episode has {report.longest})",
        ),
        (
            "verbs",
            count > ONE_VERB * report.outputs,
            f"{count / max(1, report.outputs):.0%} of the actions are '{verb}' (expected: {ONE_VERB:.0%} or less)",
        ),
        (
            "invalid",
            report.invalid > INVALID,
            f"{_percent(report.invalid)} of the actions were not possible (expected: {INVALID:.0%} or less)",
        ),
        (
            "duplicates",
            report.duplicates > REPEATED,
            f"{_percent(report.duplicates)} of the demonstrations repeat another word for word:"
            f" {report.episodes} come from {report.games} games",
        ),
    )
    return [LintWarning(check=check, message=message) for check, is_wrong, message in found if is_wrong]


def summary(report: LintReport) -> str:
    """The report in one line."""
    return (
        f"{report.episodes} demonstrations of {report.games} games, {report.won} won;"
        f" {report.citing:.0%} of {report.outputs} replies quote a skill of their prompt,"
        f" {report.skill_blocks} different sets of skills, {report.finished:.0%} finished,"
        f" {report.mean_tokens:.0f} tokens on average{' (estimated)' if report.estimated else ''}"
    )


def _injected(trajectory: Trajectory) -> frozenset[str]:
    """Skills of the prompt; in data of other projects the ids that the text before the first reply shows."""
    if trajectory.skills or trajectory.system or not trajectory.steps:
        return frozenset(trajectory.skills)
    return frozenset(_SKILL_ID.findall(trajectory.steps[0].observation))


def _said(trajectory: Trajectory) -> tuple[object, ...]:
    return (
        trajectory.task_id,
        trajectory.system,
        tuple((step.observation, step.text or step.action) for step in trajectory.steps),
    )


def _estimate(trajectory: Trajectory) -> tuple[int, int]:
    own = sum(len(step.text or step.action) for step in trajectory.steps)
    seen = len(trajectory.system) + sum(len(step.observation) for step in trajectory.steps)
    return (own + seen) // CHARACTERS_PER_TOKEN, own // CHARACTERS_PER_TOKEN


def _verb(step: Step) -> str:
    match = _VERB.match(step.action.strip())
    return match[0].lower() if match else "(none)"


def _share(flags: Sequence[bool]) -> float:
    return sum(flags) / len(flags) if flags else 0.0


def _percent(share: float) -> str:
    """Whole percent; never 0 for something that is there."""
    return "under 1%" if 0 < share < 0.005 else f"{share:.0%}"
