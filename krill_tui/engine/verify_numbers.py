"""Every rate, metric and count of a run that follows from its episodes, made again from them."""

from __future__ import annotations

import math
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from krill_tui.config.schema import KrillConfig
from krill_tui.engine.evaluate import mean_steps, success_rates
from krill_tui.engine.panel import played_digest
from krill_tui.engine.recheck import Difference, difference
from krill_tui.engine.reinforce import episode_return, step_metrics
from krill_tui.errors import DataError
from krill_tui.events import schema as ev
from krill_tui.skill import SkillStats
from krill_tui.skills.bank import SkillBank
from krill_tui.trajectory import Step, StopReason, Trajectory

if TYPE_CHECKING:
    from krill_tui.engine.verify import Journalled, Stored

_COLLECTED = re.compile(r"collected (\d+) episodes, (\d+) won")
_LOST = "numbers over episodes that are missing"


def check_numbers(
    journal: Journalled, stored: Mapping[str, list[Stored]], checks: Counter[str], unverified: Counter[str]
) -> Iterator[Difference]:
    """The rates of validations, evaluations and evolution, metrics of RL steps, counts of phases."""
    past = _Past(journal, stored)
    for event, config, ended in journal.numbers:
        if isinstance(event, ev.Evaluated):
            where = f"evaluation {event.stage} on {event.split}"
            episodes = past.evaluated(event, ended)
            if episodes is None:
                unverified[f"{where}: its episodes are not known"] += 1
                continue
            checks["rates"] += 1
            yield from _rates(where, event.overall, event.categories, episodes)
            whole = [t for t in episodes if t.stop_reason is not StopReason.ERROR]
            yield from _close(where, "mean_steps", event.mean_steps, mean_steps(whole))
            if (
                event.played
                and not past.missing(episodes)
                and event.played != (found := played_digest(whole))
            ):
                yield difference(where, "played", event.played, found)
        elif isinstance(event, ev.Validated):
            checks["rates"] += 1
            episodes = past.of(f"validate-{event.step}-", ended)
            yield from _rates(f"validation at step {event.step}", event.overall, event.categories, episodes)
        elif isinstance(event, ev.Evolved):
            checks["rates"] += 1
            _, rates = success_rates(past.of(f"validate-{event.step}-", ended))
            yield from _by_category(f"evolution at step {event.step}", event.rates, rates)
        elif isinstance(event, ev.GrpoStepped):
            if config is None:
                continue
            episodes = past.of(f"rl-{event.step:04d}-", ended)
            if past.missing(episodes):
                unverified[_LOST] += 1
                continue
            checks["steps of RL"] += 1
            yield from _metrics(event, episodes, config)
        elif isinstance(event, ev.PhaseFinished) and (told := _COLLECTED.match(event.summary)):
            checks["counts"] += 1
            overall, _ = success_rates(past.of("collect-", ended))
            found = (overall.episodes, overall.wins)
            if (int(told[1]), int(told[2])) != found:
                made = f"collected {found[0]} episodes, {found[1]} won"
                yield difference("phase collect", "summary", told[0], made)


class _Past:
    """The episodes as they stood when an event was said."""

    def __init__(self, journal: Journalled, stored: Mapping[str, list[Stored]]) -> None:
        self._journal = journal
        self._stored = stored
        self._missing: set[str] = set()

    def of(self, prefix: str, ended: Mapping[str, int]) -> list[Trajectory]:
        """Those whose ids begin with `prefix`, as they should read; a missing one as the journal tells of it."""
        return [self._at(id_, count) for id_, count in ended.items() if id_.startswith(prefix)]

    def evaluated(self, event: ev.Evaluated, ended: Mapping[str, int]) -> list[Trajectory] | None:
        """Those of an evaluation; of an old journal, which does not say, the last ones that can be."""
        if event.episodes:
            return self.of(f"{event.episodes}-", ended)
        beginning = f"evaluate-{event.stage}-{event.split}-"
        groups = dict.fromkeys(id_.rpartition("-")[0] for id_ in ended if id_.startswith(beginning))
        found = [self.of(f"{group}-", ended) for group in groups]
        same = [episodes for episodes in found if success_rates(episodes)[0] == event.overall]
        return same[-1] if same else found[-1] if found else None

    def missing(self, episodes: Sequence[Trajectory]) -> bool:
        return any(t.id in self._missing for t in episodes)

    def _at(self, id_: str, count: int) -> Trajectory:
        lines = self._stored.get(id_, ())
        if count <= len(lines):
            return lines[count - 1].true
        self._missing.add(id_)
        told = self._journal.told[id_][count - 1]
        end, start = told.finished, told.started
        steps = tuple(Step(index=i, observation="", valid=i >= end.invalid_actions) for i in range(end.steps))
        return Trajectory(
            id=id_,
            env="",
            task_id=start.task_id if start else "",
            split=start.split if start else "",
            task="",
            category=end.category,
            steps=steps,
            success=end.success,
            stop_reason=end.stop_reason,
            total_reward=end.total_reward,
            purpose=end.purpose,
        )


def _rates(
    where: str, overall: ev.Rate, categories: Mapping[str, ev.Rate], episodes: Sequence[Trajectory]
) -> Iterator[Difference]:
    found, by_category = success_rates(episodes)
    yield from _rate(where, "overall", overall, found)
    yield from _by_category(where, categories, by_category)


def _by_category(
    where: str, stored: Mapping[str, ev.Rate], found: Mapping[str, ev.Rate]
) -> Iterator[Difference]:
    for category in dict.fromkeys([*stored, *found]):
        yield from _rate(where, category, stored.get(category), found.get(category))


def _rate(where: str, name: str, stored: ev.Rate | None, found: ev.Rate | None) -> Iterator[Difference]:
    if stored is None or found is None:
        if stored != found:
            yield difference(where, name, _shown(stored), _shown(found))
        return
    close = all(
        math.isclose(a, b, abs_tol=1e-9) for a, b in ((stored.low, found.low), (stored.high, found.high))
    )
    if not close or stored.model_dump(exclude={"low", "high"}) != found.model_dump(exclude={"low", "high"}):
        yield difference(where, name, _shown(stored), _shown(found))


def _shown(rate: ev.Rate | None) -> str:
    return f"{rate.wins} of {rate.episodes} [{rate.low:.4f}, {rate.high:.4f}]" if rate else "nothing"


def _metrics(
    event: ev.GrpoStepped, episodes: Sequence[Trajectory], config: KrillConfig
) -> Iterator[Difference]:
    groups: dict[str, list[Trajectory]] = {}
    whole = [t for t in episodes if t.stop_reason is not StopReason.ERROR]
    for trajectory in sorted(whole, key=_place):
        if trajectory.tokens.policy:
            groups.setdefault(trajectory.group, []).append(trajectory)
    penalty = config.rl.invalid_action_penalty
    returns = [[episode_return(t, penalty) for t in group] for group in groups.values() if len(group) > 1]
    for name, value in step_metrics(whole, returns, errors=len(episodes) - len(whole)).items():
        if name in event.metrics:
            yield from _close(f"RL step {event.step}", name, event.metrics[name], value)


def _place(trajectory: Trajectory) -> tuple[int, ...]:
    """By group and member: `rl-0003-1-7` is the eighth of the second group."""
    return tuple(int(part) for part in trajectory.id.split("-")[1:] if part.isdigit())


def _close(where: str, name: str, stored: float, found: float) -> Iterator[Difference]:
    if not math.isclose(stored, found, rel_tol=1e-9, abs_tol=1e-12):
        yield difference(where, name, f"{stored:.12g}", f"{found:.12g}")


def check_bank(
    path: Path,
    journal: Journalled,
    stored: Mapping[str, list[Stored]],
    checks: Counter[str],
    unverified: Counter[str],
) -> Iterator[Difference]:
    """The bank's file beside the journal, and the counts of each skill beside the episodes."""
    if not path.exists():
        if any(versions[-1][1] for versions in journal.skills.values()):
            yield difference(path.name, "file", "nothing", "the bank that the journal tells of")
        return
    complete = all(len(stored.get(id_, ())) >= len(told) for id_, told in journal.told.items())
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / path.name
        shutil.copyfile(path, copy)  # opening a bank may write to it
        try:
            bank = SkillBank.open(copy)
        except DataError as error:
            yield difference(path.name, "file", error.message.replace(str(copy), path.name), "a skill bank")
            return
        with closing(bank):
            kept = {skill.id: skill for skill in bank.skills(active_only=False)}
            bank.forget_outcomes()
            for lines in stored.values():
                for item in lines:
                    bank.record_outcome(item.true)
            counted = {skill.id: skill.stats for skill in bank.skills(active_only=False)}
    told = {id_: versions[-1][1] for id_, versions in journal.skills.items() if versions[-1][1]}
    for id_ in dict.fromkeys([*kept, *told]):
        checks["skills"] += 1
        one, other = kept.get(id_), told.get(id_)
        if one is None or other is None:
            yield difference(
                f"skill {id_}", path.name, "it" if one else "nothing", "it" if other else "nothing"
            )
            continue
        for name in type(one).model_fields:
            if name not in ("stats", "created", "updated") and getattr(one, name) != getattr(other, name):
                yield difference(f"skill {id_}", name, getattr(one, name), getattr(other, name))
    if not (journal.ended and complete):
        unverified["counts of the bank: the run was broken off, or episodes are missing"] += len(kept)
        return
    for id_, skill in kept.items():
        for name in SkillStats.model_fields:
            one, other = getattr(skill.stats, name), getattr(counted[id_], name)
            if one != other:
                yield difference(f"skill {id_}", name, one, other)
