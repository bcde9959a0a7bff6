"""The linter of fine-tuning data, on hand-made defects and on what the demonstrator really plays."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from krill_tui.agent.actions import format_reply
from krill_tui.cli.app import run
from krill_tui.config.load import load_config
from krill_tui.engine.build import TaskPlan
from krill_tui.engine.lint import lint
from krill_tui.engine.phases import PhaseLog, chosen_demonstrations, demonstrate
from krill_tui.engine.run_store import run_path
from krill_tui.engine.session import Session
from krill_tui.envs.alfworld.source import BuiltinSource
from krill_tui.skill import SkillOrigin, SkillProposal
from krill_tui.skills.formats.trajectories import save_trajectories
from krill_tui.trajectory import StopReason, Task, Trajectory
from tests.episodes import episode
from tests.test_formats_trajectories import household

Krill = Callable[..., tuple[int, str, str]]


def demonstration(number: int, thoughts: tuple[str, ...] = (), **fields: object) -> Trajectory:
    """A won episode of a game of its own, with two skills in its prompt; its first thoughts are given."""
    made = episode(f"demo-{number:04}", task_id=f"game/{number}", skills=("gen_001", f"gen_{number + 2:03}"))
    steps = [
        step.model_copy(
            update={
                "thought": thoughts[step.index] if step.index < len(thoughts) else "",
                "text": format_reply(thoughts[step.index] if step.index < len(thoughts) else "", step.action),
            }
        )
        for step in made.steps
    ]
    return made.model_copy(update={"steps": tuple(steps), "system": "skills", **fields})


CITES = ("mug: cabinet [gen_001]", "mug: cabinet [gen_001]")


def good(count: int = 4) -> list[Trajectory]:
    return [demonstration(n, CITES) for n in range(count)]


def checks(demonstrations: list[Trajectory], **arguments: object) -> list[str]:
    return [warning.check for warning in lint(demonstrations, **arguments).warnings]  # pyright: ignore[reportArgumentType]


def test_good_demonstrations_have_no_warning_and_exact_counts() -> None:
    report = lint(good(), lengths=[(100, 30)] * 3 + [(200, 50)], context=200)
    assert report.warnings == ()
    assert (report.episodes, report.won, report.games, report.outputs) == (4, 4, 4, 28)
    assert report.citing == 2 / 7 and report.citing_episodes == 1 and report.citing_unknown == 0
    assert (report.skill_blocks, report.without_skills, report.duplicates) == (4, 0, 0)
    assert report.verbs == {"go": 12, "open": 4, "take": 4, "heat": 4, "move": 4}
    assert (report.tokens, report.policy_tokens, report.longest, report.mean_tokens) == (500, 140, 200, 125)
    assert not report.estimated and lint(good()).estimated and lint(good()).tokens > 0


@pytest.mark.parametrize(
    ("check", "wrong"),
    [
        ("citing", [demonstration(n) for n in range(4)]),
        ("citing_unknown", [*good(3), demonstration(3, (*CITES, "as in [heat_009]"))]),
        ("skill_blocks", [demonstration(n, CITES, skills=("gen_001",)) for n in range(4)]),
        ("without_skills", [demonstration(n, skills=()) for n in range(4)]),
        ("won", [*good(3), demonstration(3, CITES, success=False)]),
        ("finished", [*good(3), demonstration(3, CITES, stop_reason=StopReason.CONTEXT_LIMIT)]),
        ("duplicates", [*good(3), good(3)[2].model_copy(update={"id": "demo-9"})]),
        ("episodes", []),
    ],
)
def test_each_defect_is_said_and_nothing_else(check: str, wrong: list[Trajectory]) -> None:
    found = lint(wrong)
    assert [w.check for w in found.warnings] == [check], found.warnings
    assert "\n" not in found.warnings[0].message


def test_an_invented_id_is_told_from_other_brackets() -> None:
    brackets = [demonstration(n, (*CITES, "a [SEP] b [1]")) for n in range(3)]
    assert lint(brackets).citing_unknown == 0


def test_one_verb_too_often_and_impossible_actions_are_said() -> None:
    walks = [
        demonstration(n, CITES).model_copy(update={"steps": demonstration(n, CITES).steps[:1] * 5})
        for n in range(3)
    ]
    assert checks(walks) == ["verbs"]
    wrong = [
        t.model_copy(update={"steps": tuple(s.model_copy(update={"valid": s.index > 0}) for s in t.steps)})
        for t in good()
    ]
    assert checks(wrong) == ["invalid"]


def test_what_the_context_does_not_hold_is_cut_and_not_finished() -> None:
    report = lint(good(), lengths=[(100, 30)] * 3 + [(300, 50)], context=200)
    assert report.cut == 100 / 600 and report.finished == 3 / 4
    assert [w.check for w in report.warnings] == ["finished", "cut"]
    assert "the longest episode has 300" in report.warnings[1].message


class FiniteSource(BuiltinSource):
    """A train split of a few games, as of genuine files."""

    def __init__(self, games: int) -> None:
        super().__init__("small", 3)
        self.games = games

    def splits(self) -> dict[str, int]:
        return {"train": self.games, "evolve": -1, "test": -1}

    def tasks(self, split: str, count: int, *, seed: int = 0) -> list[Task]:
        return list(super().tasks(split, min(count, self.games) if split == "train" else count, seed=seed))


class HardFirst(BuiltinSource):
    """Its first games take more than five steps whoever plays them."""

    HARD = 6

    def tasks(self, split: str, count: int, *, seed: int = 0) -> list[Task]:
        drawn = super().tasks(split, 8 * (count + self.HARD), seed=seed)
        hard = [t for t in drawn if t.category in ("Heat", "Cool", "Clean", "PickTwo")][: self.HARD + 1]
        return [*hard, *(t for t in drawn if t.category == "Pick")][:count]


async def demonstrated(
    count: int, source: BuiltinSource | None = None, **env: object
) -> tuple[list[Trajectory], list[str], int]:
    """(demonstrations, warnings, episodes played) of a run that has no skills but one."""
    overrides = {"policy": {"kind": "expert"}, "collect": {"episodes": 1}, "env": {"concurrency": 8, **env}}
    opened = await Session.open("demo", load_config(overrides=overrides, environ={}))
    ctx = opened._ctx
    if source is not None:
        ctx.source = source
    ctx.bank.add(SkillProposal(name="Where the mug is", principle="mug: shelf"), SkillOrigin())
    warnings: list[str] = []
    opened.bus.subscribe(
        lambda event: (
            warnings.append(event.message) if event.kind == "noted" and event.level == "warning" else None
        )
    )
    try:
        log = PhaseLog(ctx, "sft", "Demonstrations", count, "episodes")
        found = await demonstrate(ctx, TaskPlan(ctx.source, ctx.config), count, log)
        again = await demonstrate(ctx, TaskPlan(ctx.source, ctx.config), count, log)
        assert [t.id for t in again] == [t.id for t in found], "asked again, nothing is played again"
        return found, warnings, len(ctx.episodes)
    finally:
        await opened.close()


async def test_as_many_demonstrations_as_asked_for_all_won() -> None:
    for count in (1, 7):
        found, warnings, _ = await demonstrated(count)
        assert len(found) == count and all(t.success for t in found) and not warnings


async def test_one_demonstration_is_had_where_most_games_are_lost() -> None:
    found, warnings, played = await demonstrated(1, HardFirst("small", 0), max_steps=5)
    assert len(found) == 1 and found[0].success and not warnings
    assert played > HardFirst.HARD and found[0].id == f"demo-{played - 1:04}"


async def test_too_few_won_games_are_said_with_their_number() -> None:
    found, warnings, played = await demonstrated(30, max_steps=5)
    assert 0 < len(found) < 30 and played == 90
    assert f"only {len(found)} of 30 demonstrations were won, in 90 episodes" in warnings


async def test_a_finite_split_gives_the_number_asked_for_and_says_what_repeats() -> None:
    found, warnings, _ = await demonstrated(12, FiniteSource(5), max_steps=60)
    assert len(found) == 12 and len({t.task_id for t in found}) == 5
    assert warnings[0] == ("12 demonstrations come from 5 games: the split has no more, so 7 are repeats")
    report = lint(found)
    assert report.duplicates == pytest.approx(7 / 12) and "duplicates" in [w.check for w in report.warnings]


async def test_a_game_of_a_finite_split_that_was_lost_is_not_tried_again() -> None:
    found, _, played = await demonstrated(40, FiniteSource(8), max_steps=6)
    assert 0 < len({t.task_id for t in found}) < 8
    lost = 8 - len({t.task_id for t in found})
    assert played == len(found) + lost


@pytest.mark.parametrize("kept", [1, 3, 6, 11])
async def test_demonstrations_broken_off_anywhere_end_as_if_they_never_were(kept: int) -> None:
    whole, _, played = await demonstrated(14, FiniteSource(5), max_steps=8)
    folder = run_path("demo")
    lines = (folder / "trajectories.jsonl").read_text().splitlines(keepends=True)
    begun = (folder / "events.jsonl").read_text().splitlines(keepends=True)[0]
    finished = [line for line in lines if '"purpose":"demonstrate"' in line]
    # As a kill leaves it: some episodes of the first round, in the order they ended, and nothing else.
    shutil.rmtree(folder)
    folder.mkdir(parents=True)
    (folder / "events.jsonl").write_text(begun)
    (folder / "trajectories.jsonl").write_text("".join(finished[::-1][-kept:]))
    again, _, count = await demonstrated(14, FiniteSource(5), max_steps=8)
    assert [(t.id, t.task_id) for t in again] == [(t.id, t.task_id) for t in whole]
    assert count == played


def test_demonstrations_are_taken_in_the_order_of_the_games_past_ten_thousand() -> None:
    made = [episode(f"demo-{n}") for n in ("10000", "9999", "0001")]
    assert [t.id for t in chosen_demonstrations(made, 2)] == ["demo-0001", "demo-9999"]


@pytest.fixture
def krill(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Krill:
    """Run one command line in the test's folder; gives exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def krill(*arguments: object) -> tuple[int, str, str]:
        code = run([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return krill


def test_the_command_reads_our_files_and_those_of_others(krill: Krill, tiny_model_dir: Path) -> None:
    save_trajectories("ours.json", [demonstration(n) for n in range(4)])
    code, out, _ = krill("lint", "ours.json")
    assert code == 0 and "0.0% of 28 replies quote a skill" in out and "(estimated)" in out
    assert "warning: 0% of the replies quote a skill of their prompt (expected: 20% or more)" in out
    code, out, _ = krill(
        "lint", "ours.json", "--json", "--strict", "--tokenizer", tiny_model_dir, "--context", 50
    )
    facts = json.loads(out)
    assert code == 1 and facts["estimated"] is False and facts["cut"] > 0.5 and facts["finished"] == 0
    Path("eto.json").write_text(json.dumps([household()]))
    code, out, _ = krill("lint", "eto.json", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["episodes"] == 1
    assert facts["warnings"][0]["check"] == "without_skills"


def test_the_command_says_what_there_is_not(krill: Krill) -> None:
    assert krill("lint", "no.json") == (2, "", "krill: no.json: there is no such file\n")
    code, _, err = krill("lint", "nobody")
    assert code == 2 and "there is no run 'nobody'" in err
    krill("collect", "--policy", "expert", "--episodes", 1, "--run", "mine", "--display", "none")
    code, _, err = krill("lint", "mine")
    assert code != 0 and "run 'mine' has no demonstrations" in err
