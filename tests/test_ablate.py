"""`krill ablate`: which runs it makes, its statistics, its report, and a small real one that is killed and goes on."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from krill_tui.agent.prompts import PromptOptions, episode_block, render_system
from krill_tui.agent.substitutes import ExampleEpisodes, irrelevant_skills
from krill_tui.cli.app import run as krill
from krill_tui.config.load import load_config
from krill_tui.engine.ablate import (
    CONDITIONS,
    REPORTED,
    Ablation,
    AblationState,
    Game,
    Job,
    JobResult,
    Plan,
    make_plan,
    plan_jobs,
)
from krill_tui.engine.ablate_report import compare, report, report_markdown
from krill_tui.engine.build import TaskPlan
from krill_tui.engine.evaluate import mcnemar_exact, newcombe_paired
from krill_tui.engine.pipeline import TRAIN, train_stages
from krill_tui.engine.reinforce import validate_and_evolve
from krill_tui.engine.session import Session
from krill_tui.errors import KrillError, SplitProtectedError, UsageError
from krill_tui.events.journal import read_journal
from krill_tui.models.builtin_embedder import BuiltinEmbedder
from krill_tui.skill import Skill, SkillKind
from krill_tui.trajectory import Step, StopReason, Task, Trajectory


def settings(**sections: dict[str, object]):
    return load_config(overrides=sections, environ={})


def plan_of(seeds: str = "2", conditions: str = "", **sections: dict[str, object]) -> Plan:
    return make_plan("ab", settings(**sections), seeds=seeds, conditions=conditions)


def games(*won: int, category: str = "Pick") -> tuple[Game, ...]:
    return tuple(
        Game(task=f"t{n}", category=category, won=bool(w), steps=5, invalid=1, tokens=100)
        for n, w in enumerate(won)
    )


# Statistics


def test_newcombes_interval_is_that_of_his_own_examples():
    # Newcombe 1998, method 10: the table (36, 12, 2, 0) has the limits 0.0569 and 0.3404.
    difference, low, high = newcombe_paired(36, 12, 2, 0)
    assert (difference, round(low, 4), round(high, 4)) == (0.2, 0.0569, 0.3404)


def test_the_paired_interval_turns_round_with_the_two_conditions_and_knows_its_edges():
    difference, low, high = newcombe_paired(20, 9, 3, 8)
    assert newcombe_paired(20, 3, 9, 8) == pytest.approx((-difference, -high, -low))
    assert newcombe_paired(0, 0, 0, 0) == (0.0, -1.0, 1.0)
    # All alike: as wide as one Wilson interval of 54 of 54 reaches down, z²/(n + z²) each way.
    z2 = 1.959964**2
    reach = z2 / (54 + z2)
    assert newcombe_paired(54, 0, 0, 0)[1:] == pytest.approx((-reach, reach))


def test_mcnemars_p_is_the_binomial_tail():
    assert mcnemar_exact(1, 7) == 2 * (1 + 8) / 2**8
    assert mcnemar_exact(12, 2) == mcnemar_exact(2, 12) == 2 * (1 + 14 + 91) / 2**14
    assert mcnemar_exact(0, 0) == mcnemar_exact(5, 5) == 1.0


def test_two_conditions_are_compared_game_by_game_over_the_seeds_they_share():
    compared = compare(
        {0: games(1, 1, 0, 0), 1: games(1, 0), 2: games(1)}, {0: games(1, 0, 0, 1), 1: games(0, 0)}
    )
    assert compared is not None
    assert (compared["games"], compared["only_this_won"], compared["only_other_won"]) == (6, 2, 1)
    assert compared["points"] == pytest.approx(100 / 6)
    assert compare({0: games(1)}, {1: games(1)}) is None
    other = tuple(game.model_copy(update={"task": "elsewhere"}) for game in games(1))
    with pytest.raises(KrillError, match="different games"):
        compare({0: games(1)}, {0: other})


# The plan


def test_every_run_comes_after_those_it_needs_and_all_conditions_are_there_once_a_seed():
    jobs = plan_jobs(plan_of())
    names = [job.run for job in jobs]
    assert len(set(names)) == len(names)
    for number, job in enumerate(jobs):
        assert all(need in names[:number] for need in job.needs), job.run
    counted = [(job.condition, job.seed) for job in jobs if job.condition]
    assert sorted(counted) == sorted((name, seed) for name in REPORTED for seed in (0, 1))
    assert set(REPORTED) == CONDITIONS.keys()


def test_what_is_trained_has_one_budget_and_the_cold_start_that_is_said():
    jobs = {job.label: job for job in plan_jobs(plan_of())}
    trained = [job for job in jobs.values() if "rl" in job.stages or "sft" in job.stages]
    for section in ("sft", "rl", "collect"):
        assert len({getattr(job.config, section).model_dump_json() for job in trained}) == 1
    assert jobs["full-s0"].weights_of == jobs["no-evolution-s0"].weights_of == "ab-sft-skills-s0"
    assert jobs["rl-no-skills-s0"].weights_of == "ab-sft-s0"
    assert (
        jobs["sft-s0"].config.skill_retrieval.mode
        == jobs["rl-no-skills-s0"].config.skill_retrieval.mode
        == "none"
    )
    assert jobs["no-cold-start-s0"].weights_of == ""
    assert not jobs["no-evolution-s0"].config.evolution.enabled
    raw = jobs["raw-trajectories-s1"]
    assert (raw.config.skill_retrieval.mode, raw.episodes_of, raw.bank_of) == (
        "trajectories",
        "ab-start-s1",
        "",
    )
    assert raw.config.skill_retrieval.token_budget <= raw.config.rl.max_prompt_length // 4


def test_the_wrong_bank_is_of_another_household():
    two = {job.label: job for job in plan_jobs(plan_of("3,8"))}
    assert two["full-wrong-skills-s3"].bank_of == "ab-full-s8"
    assert two["full-wrong-skills-s8"].bank_of == "ab-full-s3"
    one = {job.label: job for job in plan_jobs(plan_of("1", "full-wrong-skills"))}
    assert one["full-wrong-skills-s0"].bank_of == "ab-start-s1"
    genuine = {
        job.label: job for job in plan_jobs(plan_of("2", "full-wrong-skills", env={"backend": "games"}))
    }
    bank = genuine["full-wrong-skills-s0"].bank_of
    assert bank == "ab-start-elsewhere-s0"
    assert genuine[bank.removeprefix("ab-")].config.env.backend == "builtin"


def test_free_evaluations_have_the_same_weights_and_prompts():
    plan = make_plan("ab", settings(), seeds="1", conditions="base,sft,full", free=True)
    jobs = {job.label: job for job in plan_jobs(plan)}
    free = {label: job for label, job in jobs.items() if job.free}
    assert free.keys() == {"base-free-s0", "sft-free-s0", "full-free-s0"}
    assert not any(job.config.policy.constrained for job in free.values())
    assert all(job.config.policy.constrained for label, job in jobs.items() if label not in free)
    assert (free["full-free-s0"].weights_of, free["full-free-s0"].bank_of) == ("ab-full-s0", "ab-full-s0")
    assert free["sft-free-s0"].config.skill_retrieval.mode == "none"
    assert (free["base-free-s0"].stages, free["base-free-s0"].weights_of) == (("evaluate-base",), "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--conditions", "full,magic"], "there is no condition 'magic' (known: base, base+skills,"),
        (["--seeds", "0"], "--seeds 0: should be 1 to 100 seeds"),
        (["--seeds", "1,x"], "--seeds 1,x: should be a count"),
        (["--seeds", "-1"], "--seeds -1: should be a count"),
        (["--episodes", "0"], "'--episodes'"),
        (["--run", "../up"], "'../up' is no name for a run"),
        (["--run", "a" * 40], "is too long for an ablation's name"),
        (["--set", "policy.kind=expert"], "policy 'expert' cannot be trained here"),
        (["--display", "app"], "ablate has no display 'app'"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str, capfd: pytest.CaptureFixture[str]):
    assert krill(["ablate", "--run", "ab", *arguments]) == 2
    err = capfd.readouterr().err
    assert said in err and err.count("\n") == 1


# Working through it


def opened(plan: Plan) -> Ablation:
    return Ablation.open(plan)


async def test_a_broken_off_ablation_does_only_what_is_owed():
    plan = plan_of("2", "base,full")
    done: list[str] = []

    async def until_the_third(job: Job) -> JobResult:
        if len(done) == 3:
            raise asyncio.CancelledError
        done.append(job.run)
        return JobResult(seconds=1.0, games=games(1, 0))

    first = opened(plan)
    with pytest.raises(asyncio.CancelledError):
        await first.work(until_the_third)
    first.close()
    stored = AblationState.model_validate_json((plan.folder / "ablation.json").read_text())
    assert list(stored.jobs) == done

    async def rest(job: Job) -> JobResult:
        assert all(need in done for need in job.needs)
        assert job.run not in done
        done.append(job.run)
        return JobResult(seconds=1.0)

    second = opened(plan)
    await second.work(rest, at_once=3)
    second.close()
    assert sorted(done) == sorted(job.run for job in plan_jobs(plan))


async def test_a_run_that_fails_holds_back_only_those_that_need_it():
    plan = plan_of("1", "base,sft+skills,full")
    ablation = opened(plan)

    async def execute(job: Job) -> JobResult:
        if job.condition == "sft+skills":
            raise KrillError("no memory")
        return JobResult(seconds=1.0)

    await ablation.work(execute)
    ablation.close()
    assert ablation.failures == {"ab-sft-skills-s0": "no memory"}
    assert list(ablation.results) == ["ab-base-s0", "ab-start-s0"]


def test_other_settings_another_process_and_a_damaged_file_are_refused():
    plan = plan_of("1", "base")
    first = opened(plan)
    with pytest.raises(KrillError, match="another process works on the ablation 'ab'"):
        opened(plan)
    first.close()
    (plan.folder / "ablation.json").write_text(
        AblationState(name="ab", settings=plan.settings, command="", jobs={}).model_dump_json()
    )
    opened(plan_of("5", "full")).close()  # more seeds and conditions are welcome
    with pytest.raises(UsageError, match="begun with other settings"):
        opened(plan_of("1", "base", rl={"training_epochs": 2}))
    assert plan_of("1", "base", policy={"threads": 2}).settings == plan.settings
    (plan.folder / "ablation.json").write_text("{}")
    with pytest.raises(KrillError, match="is damaged"):
        opened(plan)


def test_the_report_has_every_number_and_says_what_is_owed():
    plan = plan_of("2", "base,full")
    results = {
        "ab-base-s0": JobResult(seconds=60, games=games(0, 0, 0, 1)),
        "ab-base-s1": JobResult(seconds=60, games=games(0, 0, 0, 0)),
        "ab-full-s0": JobResult(seconds=120, games=games(1, 1, 1, 1)),
    }
    facts = report(plan, results)
    base, full = facts["conditions"]
    assert (base["overall"]["wins"], base["overall"]["games"]) == (1, 8)
    assert base["seeds"]["1"]["rate"] == 0.0
    assert (base["steps_of_wins"], base["valid_actions"], base["seconds"]) == (5.0, 0.8, 120)
    assert full["against_base"]["points"] == 75.0, "only the seed that both have"
    assert base["against_full"]["only_other_won"] == 3
    assert facts["owed"] == ["start-s0", "sft-skills-s0", "start-s1", "sft-skills-s1", "full-s1"]
    text = report_markdown(facts)
    assert "| base | 12.5 % [2.2, 47.1] of 8 | 25.0 % | 0.0 % | 12.5 % | 5.0 | 80.0 % |" in text
    assert "Not finished yet: start-s0," in text


# Prompts without skills, or with something else


def played(id_: str, task: str, category: str, *, won: bool = True, split: str = "train") -> Trajectory:
    first = Step(index=0, observation="You are in a room.", action="go to desk 1")
    second = Step(
        index=1, observation="On the desk 1, you see a mug 2. And dust.", action="take mug 2 from desk 1"
    )
    return Trajectory(
        id=id_,
        env="alfworld",
        task_id=id_,
        split=split,
        task=task,
        category=category,
        steps=(first, second),
        final_observation="You pick up the mug 2.",
        success=won,
        stop_reason=StopReason.SUCCESS if won else StopReason.STEP_LIMIT,
    )


def task(description: str, category: str) -> Task:
    return Task(id=description, env="alfworld", split="train", description=description, category=category)


async def test_won_episodes_of_the_category_stand_in_the_prompt_within_the_budget():
    episodes = [
        played("collect-0001", "put a mug on desk", "Pick"),
        played("collect-0002", "put a mug in sinkbasin", "Pick", won=False),
        played("collect-0003", "heat some egg and put it in fridge", "Heat"),
        played("collect-0004", "put a pen in drawer", "Pick"),
    ]
    examples = ExampleEpisodes(episodes, BuiltinEmbedder(), count=2, token_budget=500)
    chosen = await examples.select(task("put a pen on shelf", "Pick"))
    assert [skill.id for skill in chosen] == ["won_collect-0004", "won_collect-0001"], "the nearest first"
    nearest, *_ = await examples.select(task("cool some egg and put it in fridge", "Cool"))
    assert nearest.id == "won_collect-0003", "none of the category was won: the nearest of all"
    small = ExampleEpisodes(episodes, BuiltinEmbedder(), count=2, token_budget=60)
    assert len(await small.select(task("put a pen on shelf", "Pick"))) == 1
    none = ExampleEpisodes(episodes[1:2], BuiltinEmbedder(), count=2, token_budget=500)
    assert await none.select(task("put a pen on shelf", "Pick")) == ()


def test_an_episode_block_says_task_actions_and_answers_and_reported_games_are_refused():
    block = episode_block(played("collect-0001", "put a mug on desk", "Pick"))
    line = "task: put a mug on desk; go to desk 1 -> On the desk 1, you see a mug 2. And dust; take mug 2 from desk 1 -> You pick up the mug 2"
    assert block.principle == line
    assert render_system("alfworld", [block], PromptOptions("compact")) == f"{line} [won_collect-0001]"
    assert f"Earlier episodes that were won:\n- [won_collect-0001] {line}" in render_system(
        "alfworld", [block], PromptOptions("full")
    )
    with pytest.raises(SplitProtectedError, match="reported split"):
        ExampleEpisodes([played("e", "t", "Pick", split="test")], BuiltinEmbedder(), count=1, token_budget=9)


def test_irrelevant_skills_name_nothing_of_the_task():
    skills = [
        Skill(id="gen_1", name="Where the mug is", principle="mug: desk"),
        Skill(id="gen_2", name="Where the pen is", principle="pen: drawer"),
        Skill(id="gen_3", name="Where the egg is", principle="egg: fridge"),
        Skill(id="gen_4", name="Search once", principle="search each place once", kind=SkillKind.LESSON),
        Skill(id="pick_1", name="Order", principle="take it, then put it", tier="Pick"),
        Skill(id="heat_1", name="Heat first", principle="heat: take it, then heat it", tier="Heat"),
    ]
    asked = task("put a mug in drawer", "Pick")
    assert {skill.id for skill in irrelevant_skills(skills, asked, 9)} == {"gen_3", "heat_1"}
    assert irrelevant_skills(skills, asked, 1) == irrelevant_skills(skills, asked, 1)
    assert len(irrelevant_skills(skills, asked, 1)) == 1


async def evaluated(name: str, mode: str, **policy: object) -> list[Trajectory]:
    """The evaluation of a run whose expert collected and distilled before."""
    config = settings(
        policy={"kind": "expert"} | policy,
        collect={"episodes": 12},
        evaluation={"episodes": 5},
        skill_retrieval={"mode": mode},
    )
    session = await Session.open(name, config)
    try:
        session.launch(["collect", "distill", "evaluate"])
        assert await session.wait() == "completed", session.error
        return sorted(session.episodes.read("evaluate"), key=lambda t: t.id)
    finally:
        await session.close()


async def test_the_modes_decide_what_stands_in_a_prompt_and_it_is_recorded():
    own, none, raw, other = [
        await evaluated(mode, mode) for mode in ("template", "none", "trajectories", "irrelevant")
    ]
    assert all(t.skills for t in own)
    assert all(t.skills == () and t.system.count("[") == 0 for t in none)
    assert all(t.skills and all(id_.startswith("won_collect-") for id_ in t.skills) for t in raw)
    assert all(f"[{id_}]" in t.system for t in raw for id_ in t.skills)
    assert any(t.skills for t in other)
    assert not any(
        re.search(rf"\b{line.partition(':')[0]}\b", t.task) for t in other for line in t.system.splitlines()
    )
    for alike in zip(own, none, raw, other, strict=True):
        assert len({(t.task_id, t.seed) for t in alike}) == 1, "the same games with the same random numbers"


async def test_evolution_can_be_switched_off_and_says_so():
    config = settings(
        policy={"kind": "random"},
        collect={"episodes": 8},
        evolution={"enabled": False, "episodes": 4, "evolution_threshold": 1.0},
    )
    session = await Session.open("run", config)
    try:
        session.launch(["collect", "distill"])
        await session.wait()
        before, ctx = session.bank.version, session._ctx
        policy, _, _ = await session._pipeline._policy("base")
        await validate_and_evolve(ctx, TaskPlan(ctx.source, config), policy, 0)
        assert session.bank.version == before
    finally:
        await session.close()
    said = [e for e in read_journal(session.store.events_file) if e.kind == "evolved"]
    assert [(e.step, e.accepted, e.reason) for e in said] == [
        (0, (), "evolution is switched off (evolution.enabled)")
    ]


def test_train_can_go_without_the_cold_start():
    assert train_stages(settings()) == TRAIN
    assert train_stages(settings(sft={"enabled": False})) == (
        "evaluate-base",
        "collect",
        "distill",
        "rl",
        "evaluate-rl",
    )


# A real one

SIZES = {
    "collect.episodes": 6,
    "sft.num_examples": 4,
    "rl.training_epochs": 1,
    "rl.batch_size": 4,
    "rl.group_size": 2,
    "evolution.episodes": 4,
    "env.max_steps": 8,
    "policy.threads": 1,
}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_real_ablation_killed_and_started_again_ends_with_its_report():
    sizes = [f"--set={field}={value}" for field, value in SIZES.items()]
    chosen = [
        "--seeds",
        "2",
        "--episodes",
        "4",
        "--conditions",
        "base,full",
    ]
    command = [sys.executable, "-m", "krill_tui", "ablate", "--run", "ab", "--jobs", "2", *chosen, *sizes]
    folder = Path(os.environ["KRILL_RUNS"]) / "ab"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (folder / "ablation.json").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = AblationState.model_validate_json((folder / "ablation.json").read_text())
    assert before.jobs

    done = subprocess.run(
        [*command, "--json", "--display", "none"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts == json.loads((folder / "report.json").read_text())
    assert [entry["condition"] for entry in facts["conditions"]] == ["base", "full"]
    assert all(entry["overall"]["games"] == 8 for entry in facts["conditions"])
    assert facts["owed"] == []
    assert facts["conditions"][0]["against_full"]["games"] == 8
    after = AblationState.model_validate_json((folder / "ablation.json").read_text())
    assert {run: after.jobs[run] for run in before.jobs} == before.jobs, "what was finished is not done again"
    for name in ("report.md", "curves.svg", "success.svg"):
        assert (folder / name).stat().st_size > 500
    for entry in (folder.parent).glob("ab-*-s0"):
        played_ids = [
            json.loads(line)["id"] for line in (entry / "trajectories.jsonl").read_bytes().splitlines()
        ]
        assert len(played_ids) == len(set(played_ids))
