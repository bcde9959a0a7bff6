"""The paper's ablations as one command: which runs they are, and how they are worked through (`ablate_report.py`: what
came out).

Every condition of every seed is a run of its own, `<name>-<condition>-s<seed>`. All of one seed share the base
weights, the games, the episodes of phase 1 and the bank distilled from them (run `<name>-start-s<seed>`), and play
the same reported games in the same order with the same random numbers. What is trained has the same budget: the
demonstrations and epochs of `sft`, the steps and episodes of `rl`.

Which cold start a condition has:

- `sft` and `rl-no-skills`: one that is made without skills in its prompts, as they are evaluated without any.
- `sft+skills`, `no-evolution`, `full`: the same one, with the distilled skills in its prompts. So `full` against
  `sft+skills` is what RL and evolution add, and `full` against `no-evolution` what evolution adds.
- `raw-trajectories`: its own, with won episodes of phase 1 in its prompts.
- `no-cold-start`: none; RL starts from the base, with the same number of steps.

The `full-…` conditions are the weights of `full` with other prompts: nothing is trained.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pydantic import ValidationError

from krill_tui import paths
from krill_tui.config.endpoints import NO_RESULT
from krill_tui.config.load import merge
from krill_tui.config.schema import KrillConfig
from krill_tui.engine.run_store import run_path
from krill_tui.errors import DataError, KrillError, RunLockedError, UsageError
from krill_tui.io.files import read_json, remove_unfinished, write_atomically
from krill_tui.trajectory import Record, StopReason, Trajectory

MAX_NAME = 28
"""Letters of an ablation's name: its runs' names have more behind it."""
RAW_SHARE = 4
"""Raw trajectories may take this part of `rl.max_prompt_length`, and never more than `token_budget`."""

_OFF: dict[str, Any] = {"evolution": {"enabled": False}}
_NO_SKILLS: dict[str, Any] = {"skill_retrieval": {"mode": "none"}}


@dataclass(frozen=True, slots=True)
class Condition:
    """One line of the table: what its run does, and what it takes from other runs of the same seed."""

    name: str
    stages: tuple[str, ...]
    what: str
    """For the report."""
    config: Mapping[str, Any] = field(default_factory=dict)
    bank: str = ""
    """Condition (or `start`) whose bank it begins with; `elsewhere`: of another household."""
    weights: str = ""
    """Condition whose newest checkpoint it begins with; empty: the base."""
    episodes: str = ""
    """Run whose collected episodes it may show."""


START = Condition("start", ("collect", "distill"), "")
CONDITIONS = {
    condition.name: condition
    for condition in (
        Condition("base", ("evaluate-base",), "the base policy, no skills", config=_NO_SKILLS),
        Condition(
            "base+skills",
            ("evaluate",),
            "the base policy with the distilled bank in its prompt",
            bank="start",
        ),
        Condition(
            "sft+skills",
            ("sft", "evaluate-sft"),
            "cold start with the distilled skills in all prompts",
            bank="start",
        ),
        Condition(
            "full",
            ("rl", "evaluate-rl"),
            "cold start and GRPO with skills, and a bank that evolves",
            bank="start",
            weights="sft+skills",
        ),
        Condition(
            "sft", ("sft", "evaluate-sft"), "cold start without skills in any prompt", config=_NO_SKILLS
        ),
        Condition(
            "rl-no-skills",
            ("rl", "evaluate-rl"),
            "cold start (of `sft`) and GRPO without skills in any prompt",
            config=merge(_NO_SKILLS, _OFF),
            weights="sft",
        ),
        Condition(
            "no-cold-start",
            ("rl", "evaluate-rl"),
            "GRPO from the base, with skills and evolution",
            bank="start",
        ),
        Condition(
            "no-evolution",
            ("rl", "evaluate-rl"),
            "like full (same cold start), but the bank stays as it was distilled",
            config=_OFF,
            bank="start",
            weights="sft+skills",
        ),
        Condition(
            "raw-trajectories",
            ("sft", "rl", "evaluate-rl"),
            "cold start and GRPO with won episodes of phase 1 in all prompts in place of skills",
            config=merge(_OFF, {"skill_retrieval": {"mode": "trajectories"}}),
            episodes="start",
        ),
        Condition(
            "full-no-skills",
            ("evaluate",),
            "the weights of full, no skills in the prompt",
            config=_NO_SKILLS,
            weights="full",
        ),
        Condition(
            "full-wrong-skills",
            ("evaluate",),
            "the weights of full with the bank of another household",
            bank="elsewhere",
            weights="full",
        ),
        Condition(
            "full-irrelevant-skills",
            ("evaluate",),
            "the weights of full with as many skills of its bank, about things the task does not name",
            config={"skill_retrieval": {"mode": "irrelevant"}},
            bank="full",
            weights="full",
        ),
    )
}
"""In the order they are worked through; `REPORTED` is that of the table."""
REPORTED = (
    "base",
    "base+skills",
    "sft",
    "sft+skills",
    "rl-no-skills",
    "no-cold-start",
    "no-evolution",
    "raw-trajectories",
    "full",
    "full-no-skills",
    "full-wrong-skills",
    "full-irrelevant-skills",
)


@dataclass(frozen=True, slots=True)
class Job:
    """One run: what it does, and which runs must be finished before."""

    run: str
    label: str
    """The run's name without the ablation's."""
    seed: int
    stages: tuple[str, ...]
    config: KrillConfig
    condition: str = ""
    """Condition whose evaluation it holds; empty: it only prepares."""
    free: bool = False
    """The evaluation lets the policy write free text."""
    bank_of: str = ""
    weights_of: str = ""
    episodes_of: str = ""

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of runs."""
        return tuple(filter(None, (self.bank_of, self.weights_of, self.episodes_of)))


class Game(Record):
    """One game of an evaluation, as the ablation keeps it."""

    task: str
    category: str
    won: bool
    steps: int
    invalid: int
    tokens: int
    """Of the prompts, each counted once."""
    broke: bool = False
    """It was not played to an end: in no rate."""


class JobResult(Record):
    """What a finished run left."""

    seconds: float
    """Wall time the run was worked on."""
    games: tuple[Game, ...] = ()
    """Of its evaluation, in order."""


class AblationState(Record):
    """`ablation.json`: all that an ablation remembers between two starts."""

    name: str
    settings: str
    """Hash of everything that changes a result, the seeds aside."""
    command: str
    jobs: dict[str, JobResult]
    """Finished ones, by run."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What was asked for."""

    name: str
    config: KrillConfig
    seeds: tuple[int, ...]
    conditions: tuple[str, ...]
    """In the table's order."""
    free: bool = False
    command: str = ""

    @property
    def folder(self) -> Path:
        return paths.runs_dir() / self.name

    @property
    def settings(self) -> str:
        """Twelve letters that differ where results may; seeds, speed and places are no part of it.

        Nor are fields at their defaults, so that a new version with more settings can go on.
        """
        config = self.config.model_dump(mode="json", exclude_defaults=True)
        for section, names in _NO_RESULT.items():
            for name in names:
                config.get(section, {}).pop(name, None)
        config.pop("seed", None)
        return hashlib.blake2b(json.dumps(config, sort_keys=True).encode(), digest_size=6).hexdigest()


_NO_RESULT = {
    "env": ("concurrency", "data_dir", "webshop_data", "url"),
    "policy": ("threads", "device", "sampler_url", "sampler_api_key"),
    "model": NO_RESULT,
    "rl": ("checkpoint_interval",),
    "sft": ("checkpoint_interval",),
    "faults": ("max_error_rate", "first_wait", "longest_wait", "patience"),
}


def make_plan(
    name: str,
    config: KrillConfig,
    *,
    seeds: str = "3",
    conditions: str = "",
    free: bool = False,
    command: str = "",
) -> Plan:
    """Check what was typed. `seeds` is a count (from `config.seed` on) or a list with commas.

    Raises:
        UsageError: a seed, a condition or the name cannot be used; one line.
    """
    run_path(name)
    if len(name) > MAX_NAME:
        raise UsageError(f"'{name}' is too long for an ablation's name", hint=f"up to {MAX_NAME} letters")
    if (paths.runs_dir() / name / "events.jsonl").exists():
        raise UsageError(f"'{name}' is a run, not an ablation", hint="choose another --run")
    if config.policy.kind != "local":
        raise UsageError(
            f"policy '{config.policy.kind}' cannot be trained here",
            hint="a local model can: --preset tiny, or set policy.kind to local and policy.model",
        )
    wanted = [part.strip() for part in conditions.split(",")] if conditions else list(REPORTED)
    unknown = [part for part in wanted if part not in CONDITIONS]
    if unknown:
        raise UsageError(f"there is no condition '{unknown[0]}'", hint=f"known: {', '.join(REPORTED)}")
    return Plan(
        name=name,
        config=config,
        seeds=_seeds(seeds, config.seed),
        conditions=tuple(part for part in REPORTED if part in wanted),
        free=free and config.policy.constrained,
        command=command,
    )


def _seeds(text: str, first: int) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 10 for part in parts):
        raise UsageError(f"--seeds {text}: should be a count, or numbers with commas between them")
    numbers = [int(part) for part in parts]
    if len(numbers) > 1:
        return tuple(dict.fromkeys(numbers))
    if not 1 <= numbers[0] <= 100:
        raise UsageError(f"--seeds {text}: should be 1 to 100 seeds")
    return tuple(range(first, first + numbers[0]))


def plan_jobs(plan: Plan) -> list[Job]:
    """All runs of the ablation, each after those it needs; one seed after the other."""
    jobs: dict[str, Job] = {}

    def run_of(condition: str, seed: int, ending: str = "") -> str:
        return f"{plan.name}-{condition.replace('+', '-')}{ending}-s{seed}"

    def add(condition: Condition, seed: int, *, home: bool = True, free: bool = False) -> str:
        run = run_of(condition.name, seed, ("" if home else "-elsewhere") + ("-free" if free else ""))
        if run in jobs:
            return run
        source = condition
        if free:  # the same prompts and weights as the condition's own evaluation had
            trained = len(condition.stages) > 1
            add(condition, seed)
            source = Condition(
                condition.name,
                (condition.stages[-1] if condition.name == "base" else "evaluate",),
                "",
                config=condition.config,
                bank=condition.name if trained and condition.bank else condition.bank,
                weights=condition.name if trained else condition.weights,
                episodes=condition.episodes,
            )
        bank_of = weights_of = episodes_of = ""
        if source.bank == "elsewhere":
            bank_of = add_elsewhere(seed)
        elif source.bank:
            bank_of = add(_named(source.bank), seed)
        if source.weights:
            weights_of = add(_named(source.weights), seed)
        if source.episodes:
            episodes_of = add(_named(source.episodes), seed)
        jobs[run] = Job(
            run=run,
            label=run.removeprefix(f"{plan.name}-"),
            seed=seed,
            stages=source.stages,
            config=_job_config(plan.config, source.config, seed, home=home, free=free),
            condition="" if condition is START else condition.name,
            free=free,
            bank_of=bank_of,
            weights_of=weights_of,
            episodes_of=episodes_of,
        )
        return run

    def add_elsewhere(seed: int) -> str:
        """Another household's bank: the evolved one of the next seed, else one that is distilled for it."""
        if (
            plan.config.env.backend != "builtin"
        ):  # genuine games are one household: a procedural one is another
            return add(START, seed, home=False)
        if len(plan.seeds) == 1:
            return add(START, seed + 1)
        following = plan.seeds[(plan.seeds.index(seed) + 1) % len(plan.seeds)]
        return add(CONDITIONS["full"], following)

    for seed in plan.seeds:
        for name, condition in CONDITIONS.items():
            if name in plan.conditions and condition.bank != "elsewhere":
                add(condition, seed)
                if plan.free:
                    add(condition, seed, free=True)
    # At the end, for it needs the next seed's full run.
    for seed in plan.seeds:
        for name in plan.conditions:
            if CONDITIONS[name].bank == "elsewhere":
                add(CONDITIONS[name], seed)
                if plan.free:
                    add(CONDITIONS[name], seed, free=True)
    return list(jobs.values())


def _named(name: str) -> Condition:
    return START if name == "start" else CONDITIONS[name]


def _job_config(
    config: KrillConfig, overrides: Mapping[str, Any], seed: int, *, home: bool, free: bool
) -> KrillConfig:
    changed: dict[str, Any] = merge(config.model_dump(mode="json"), overrides)
    changed["seed"] = seed
    if changed["skill_retrieval"]["mode"] == "trajectories":
        room = config.rl.max_prompt_length // RAW_SHARE
        changed["skill_retrieval"]["token_budget"] = min(config.skill_retrieval.token_budget, room)
    if not home:
        changed["env"] |= {"name": "alfworld", "backend": "builtin"}
    if free:
        changed["policy"]["constrained"] = False
    return KrillConfig.model_validate_json(
        json.dumps(changed)
    )  # keys included: they go to the child, not to a file


class Ablation:
    """An ablation opened for work by one process; what is finished is in `ablation.json`."""

    def __init__(self, plan: Plan, lock: FileLock, state: AblationState) -> None:
        self.plan = plan
        self.jobs = plan_jobs(plan)
        self._lock = lock
        self._state = state
        self.failures: dict[str, str] = {}
        """Run -> why it failed, of this start."""

    @classmethod
    def open(cls, plan: Plan) -> Ablation:
        """Begin it, or go on with it.

        Raises:
            RunLockedError: another process works on it.
            UsageError: it was begun with other settings.
            DataError: its file is damaged.
        """
        try:
            plan.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"{plan.folder}: cannot be created: {(error.strerror or '').lower()}") from None
        lock = FileLock(plan.folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunLockedError(f"another process works on the ablation '{plan.name}'") from None
        try:
            remove_unfinished(plan.folder)
            state = _load_state(plan)
            if state.settings != plan.settings:
                raise UsageError(
                    f"the ablation '{plan.name}' was begun with other settings ({state.settings}, now {plan.settings})",
                    hint="give another --run, or the settings it was begun with",
                )
        except KrillError:
            lock.release()
            raise
        return cls(plan, lock, state)

    @property
    def results(self) -> dict[str, JobResult]:
        return self._state.jobs

    def close(self) -> None:
        self._lock.release()

    async def work(
        self,
        execute: Callable[[Job], Awaitable[JobResult]],
        *,
        at_once: int = 1,
        on_finished: Callable[[Job, JobResult], None] = lambda job, result: None,
    ) -> None:
        """Do what is owed, up to `at_once` runs at a time, in order; a result is on disk before the next one begins.

        A run that fails holds back those that need it, and no others.
        """
        running: dict[asyncio.Task[JobResult], Job] = {}
        try:
            while True:
                started = {job.run for job in running.values()} | self.results.keys() | self.failures.keys()
                for job in self.jobs:
                    if len(running) >= at_once:
                        break
                    if job.run not in started and all(need in self.results for need in job.needs):
                        running[asyncio.ensure_future(execute(job))] = job
                if not running:
                    return
                done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    job = running.pop(task)
                    try:
                        result = task.result()
                    except KrillError as error:
                        self.failures[job.run] = str(error)
                        continue
                    self._keep(job, result)
                    on_finished(job, result)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _keep(self, job: Job, result: JobResult) -> None:
        self._state = self._state.model_copy(
            update={"jobs": {**self._state.jobs, job.run: result}, "command": self.plan.command}
        )
        write_atomically(self.plan.folder / "ablation.json", self._state.model_dump_json(indent=1) + "\n")


def _load_state(plan: Plan) -> AblationState:
    path = plan.folder / "ablation.json"
    if not path.exists():
        return AblationState(name=plan.name, settings=plan.settings, command=plan.command, jobs={})
    try:
        return AblationState.model_validate(read_json(path))
    except ValidationError:
        raise DataError(f"{path}: is damaged", hint="start another ablation with --run NAME") from None


# What a job's process needs and leaves


def job_order(job: Job) -> dict[str, Any]:
    """What the process that works on a job is told, as JSON.

    Raises:
        DataError: a run it needs holds no checkpoint.
    """
    config = job.config
    if job.weights_of:
        folder = run_path(job.weights_of).resolve()
        newest = read_json(folder / "progress.json").get("checkpoint")
        if not isinstance(newest, str) or not (folder / "checkpoints" / newest / "manifest.json").exists():
            raise DataError(f"run '{job.weights_of}' holds no checkpoint")
        adapter = str(folder / "checkpoints" / newest)
        config = config.model_copy(update={"policy": config.policy.model_copy(update={"adapter": adapter})})
    return {
        "run": job.run,
        "stages": job.stages,
        "config": config.model_dump(mode="json"),
        "bank": str(run_path(job.bank_of) / "skill_bank.json") if job.bank_of else "",
        "trajectories": str(run_path(job.episodes_of) / "trajectories.jsonl") if job.episodes_of else "",
    }


def job_result(journal: Path, evaluated: Sequence[Trajectory]) -> JobResult:
    """Of a finished run: its one evaluation, in the order of the games, and the time it took."""
    games = [
        Game(
            task=t.task_id,
            category=t.category,
            won=t.success,
            steps=len(t.steps),
            invalid=t.invalid_actions,
            tokens=t.tokens.prompt,
            broke=t.stop_reason is StopReason.ERROR,
        )
        for t in sorted(evaluated, key=lambda t: t.id)
        if t.stop_reason is not StopReason.CANCELLED
    ]
    return JobResult(seconds=round(_active_seconds(journal), 1), games=tuple(games))


def _active_seconds(journal: Path) -> float:
    """From each start of the run to the last thing it said before the next."""
    total = 0.0
    began = last = 0.0
    with journal.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                break
            event = json.loads(line)
            if event["kind"] == "run_started":
                total += last - began
                began = event["time"]
            last = event["time"]
    return total + last - began
