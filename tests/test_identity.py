"""A run goes on only as the run it is; what may change is noted, and `--fork` makes another one of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from krill_tui.cli.app import run
from krill_tui.config.identity import differences, fixed_fields
from krill_tui.config.load import load_config, public_dict
from krill_tui.engine.run_store import run_path
from krill_tui.errors import UsageError
from krill_tui.events import schema as ev
from krill_tui.events.journal import read_journal
from tests.test_session import session

COLLECT = (
    "collect",
    "--policy",
    "expert",
    "--seed",
    "1",
    "--run",
    "mix",
    "--display",
    "none",
    "--output",
    "m.json",
)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refused(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line a command is refused with."""
    capfd.readouterr()
    assert run(list(arguments)) == 2
    err = capfd.readouterr().err
    assert "Traceback" not in err
    return err.splitlines()[-1]


def notes(name: str) -> list[str]:
    return [e.message for e in read_journal(run_path(name) / "events.jsonl") if isinstance(e, ev.Noted)]


def test_another_world_policy_or_seed_is_refused_with_the_fields_and_nothing_changes(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run([*COLLECT, "--episodes", "2"]) == 0
    before = {p.name: p.read_bytes() for p in run_path("mix").iterdir() if p.is_file()}
    other = ("--env", "webshop", "--policy", "random", "--seed", "77", "--run", "mix", "--display", "plain")
    line = refused(capfd, "collect", "--episodes", "10", *other)
    for field in ('env.name "alfworld" -> "webshop"', "seed 1 -> 77", 'policy.kind "expert" -> "random"'):
        assert field in line
    assert "--fork" in line
    assert {p.name: p.read_bytes() for p in run_path("mix").iterdir() if p.is_file()} == before
    for change in (
        "env.max_steps=9",
        "policy.prompt_style=full",
        "policy.constrained=false",
        "policy.lora_rank=2",
    ):
        assert change.partition("=")[0] in refused(capfd, *COLLECT, "--set", change)
    assert "seed 1 -> 2" in refused(capfd, "eval", "--run", "mix", "--seed", "2")


def test_what_may_change_goes_on_and_is_noted_with_old_and_new() -> None:
    assert run([*COLLECT, "--episodes", "2"]) == 0
    assert run([*COLLECT, "--episodes", "3", "--set", "env.concurrency=2", "--set", "rl.batch_size=8"]) == 0
    [note] = [message for message in notes("mix") if message.startswith("settings changed: ")]
    assert "collect.episodes 2 -> 3" in note and "env.concurrency 64 -> 2" in note
    assert len(json.loads(Path("m.json").read_text())) == 3
    assert run([*COLLECT, "--episodes", "3"]) == 0, "the same once more changes nothing"
    assert len([message for message in notes("mix") if "collect.episodes" in message]) == 1


def test_what_a_phase_uses_is_fixed_when_it_has_begun_and_not_before() -> None:
    state_free = {"rl.batch_size": "rl", "sft.epochs": "sft", "policy.kind": "collect", "env.name": "world"}
    assert {name: fixed_fields()[name] for name in state_free} == state_free
    assert "rl.training_epochs" not in fixed_fields() and "evaluation.episodes" not in fixed_fields()


def test_an_evaluation_may_ask_another_policy_but_not_in_another_world(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run([*COLLECT, "--episodes", "2"]) == 0
    assert run(["eval", "--run", "mix", "--policy", "random", "--episodes", "2", "--display", "none"]) == 0
    assert any(m.startswith("measured with other settings: policy.kind") for m in notes("mix"))
    started = [e for e in read_journal(run_path("mix") / "events.jsonl") if isinstance(e, ev.RunStarted)]
    assert [e.config["policy"]["kind"] for e in started] == ["expert", "expert"], "the run stays what it was"
    assert "policy: expert" in (run_path("mix") / "report.md").read_text()
    assert "seed 1 -> 5" in refused(capfd, "eval", "--run", "mix", "--seed", "5", "--display", "none")


@pytest.mark.parametrize("damage", [None, "", "{", '{"seed": "x"}', "[1]", '{"sed": 1}'])
def test_without_its_config_file_a_run_goes_on_with_what_the_journal_says(
    damage: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run([*COLLECT, "--episodes", "2"]) == 0
    path = run_path("mix") / "config.json"
    whole = path.read_text()
    path.unlink() if damage is None else path.write_text(damage)
    assert run(["collect", "--run", "mix", "--display", "none", "--output", "m.json"]) == 0
    assert "config.json" in capfd.readouterr().err
    assert path.read_text() == whole
    assert len(json.loads(Path("m.json").read_text())) == 2


def test_a_config_file_of_another_run_is_noticed(capfd: pytest.CaptureFixture[str]) -> None:
    assert run([*COLLECT, "--episodes", "2"]) == 0
    path = run_path("mix") / "config.json"
    path.write_text(path.read_text().replace('"seed": 1,', '"seed": 2,'))
    assert "seed 1 -> 2" in refused(
        capfd, "collect", "--run", "mix", "--display", "none", "--output", "m.json"
    )


def test_a_setting_that_an_old_run_never_heard_of_is_no_difference() -> None:
    new = public_dict(load_config(environ={}))
    old = json.loads(json.dumps(new))
    del old["env"]["all_games"], old["rl"]["num_iterations"], old["evolution"]
    assert differences(old, new) == []
    assert [d.field for d in differences(old | {"seed": 4}, new)] == ["seed"]


async def test_an_episode_of_another_plan_is_not_done_already() -> None:
    async with session("mix", collect={"episodes": 2}) as opened:
        opened.launch(["collect"])
        await opened.wait()
        other = opened.episodes.read("collect")[1].task_id
        opened.episodes.check_plan("collect-0001", other)
        with pytest.raises(UsageError, match="planned with other settings"):
            opened.episodes.check_plan("collect-0000", other)


def test_a_fork_is_a_new_run_with_the_settings_and_the_bank_of_the_old_one(
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert run([*COLLECT, "--episodes", "6"]) == 0
    assert run(["distill", "--run", "mix", "--display", "none", "--output", "b.json"]) == 0
    fork = ("--run", "mix", "--fork", "other", "--seed", "9", "--display", "none", "--output", "n.json")
    assert run(["collect", *fork]) == 0
    assert "forked from mix" in capfd.readouterr().err
    new = run_path("other")
    stored = json.loads((new / "config.json").read_text())
    assert stored["seed"] == 9 and stored["policy"]["kind"] == "expert" and stored["collect"]["episodes"] == 6
    skills = {
        e.skill.id for e in read_journal(run_path("mix") / "events.jsonl") if isinstance(e, ev.SkillAdded)
    }
    assert skills == {e.skill.id for e in read_journal(new / "events.jsonl") if isinstance(e, ev.SkillAdded)}
    assert "already" in refused(capfd, "collect", *fork)
    assert "--run" in refused(capfd, "collect", "--fork", "third")
    assert "no run 'nowhere'" in refused(capfd, "collect", "--run", "nowhere", "--fork", "third")


def test_the_page_on_runs_lists_every_field_that_may_change() -> None:
    page = (Path(__file__).parents[1] / "docs" / "runs.md").read_text()
    section = page.partition("## What may change")[2].partition("\n## ")[0]
    told = set(re.findall(r"`([a-z_]+(?:\.[a-z_]+)?)`", section))
    config_fields = {
        name if not isinstance(value, dict) else f"{name}.{inner}"
        for name, value in load_config(environ={}).model_dump().items()
        for inner in (value if isinstance(value, dict) else [""])
    }
    free = {name for name in config_fields - fixed_fields().keys() if "api_key" not in name}
    assert told - {"collect.episodes"} == free
