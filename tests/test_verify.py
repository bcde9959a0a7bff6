"""`krill report RUN --verify`: a run agrees with itself, and whatever was changed in it is named."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from krill_tui.cli.app import run
from krill_tui.engine.recheck import Difference
from krill_tui.engine.run_store import run_path
from krill_tui.engine.verify import Verification, verify_run
from tests.test_alfworld_listing import HEAT, add_game
from tests.test_panel import shop as shop

Record = dict[str, Any]
TRAINING = {
    "collect.episodes": 8,
    "sft.num_examples": 4,
    "sft.batch_size": 4,
    "rl.training_epochs": 2,
    "rl.batch_size": 8,
    "rl.group_size": 4,
    "evolution.validation_interval": 1,
    "evolution.episodes": 6,
    "evaluation.episodes": 6,
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was trained to the end: all purposes, a bank, metrics, evolution."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KRILL_RUNS", str(root))
        settings = [part for name, value in TRAINING.items() for part in ("--set", f"{name}={value}")]
        assert run(["train", "--run", "whole", "--seed", "5", "--display", "none", *settings]) == 0
    return root / "whole"


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    """A copy of the trained run, to be changed."""
    folder = tmp_path / "runs" / "whole"
    shutil.copytree(trained, folder)
    return folder


def test_a_fresh_run_agrees_with_itself(trained: Path) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    found = verify_run(trained)
    assert found.differences == ()
    assert found.verified == found.episodes > 60
    assert found.steps > 400
    assert found.unverified == {}
    checked = found.checks
    assert checked["seeds"] == checked["games by the plan"] == checked["prompts"] == found.episodes
    assert checked["rates"] == 3 + 2 * 3, "three evaluations; three validations and their evolutions"
    assert checked["steps of RL"] == 2 and checked["counts"] == 1 and checked["skills"] > 5
    assert {p: p.read_bytes() for p in trained.rglob("*") if p.is_file() and p.name != ".lock"} == {
        p: data for p, data in before.items() if p.name != ".lock"
    }


def edit(path: Path, change: Callable[[list[Record]], None]) -> None:
    """Change the records of a JSON lines file."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    for record in records:
        record.pop("crc", None)  # somebody who changes a line on purpose would leave its checksum out
    change(records)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")


def episode(records: list[Record], purpose: str = "rl", *, success: bool | None = None) -> Record:
    """An episode with some steps."""
    return next(
        r
        for r in records
        if r["purpose"] == purpose and len(r["steps"]) > 4 and success in (None, r["success"])
    )


def event(records: list[Record], kind: str) -> Record:
    return [r for r in records if r["kind"] == kind][-1]


def swap_letter(text: str) -> str:
    return text[:-3] + ("y" if text[-3] == "x" else "x") + text[-2:]


def in_step(number: int, **changes: Callable[[Any], Any]) -> Callable[[list[Record]], None]:
    def change(records: list[Record]) -> None:
        step = episode(records)["steps"][number]
        step |= {name: make(step[name]) for name, make in changes.items()}

    return change


def in_episode(purpose: str, **changes: Callable[[Any], Any]) -> Callable[[list[Record]], None]:
    def change(records: list[Record]) -> None:
        record = episode(records, purpose)
        record |= {name: make(record[name]) for name, make in changes.items()}

    return change


def in_event(kind: str, make: Callable[[Record], None]) -> Callable[[list[Record]], None]:
    return lambda records: make(event(records, kind))


def set_in(*path: str, to: Callable[[Any], Any]) -> Callable[[Record], None]:
    def change(record: Record) -> None:
        for name in path[:-1]:
            record = record[name]
        record[path[-1]] = to(record[path[-1]])

    return change


def other_action(action: str) -> str:
    return "look" if action != "look" else "inventory"


def delete_episode(records: list[Record]) -> None:
    records.remove(episode(records))


def double_episode(records: list[Record]) -> None:
    records.append(dict(episode(records)))


def won_instead(records: list[Record]) -> None:
    record = episode(records, success=False)
    record["success"] = True


def delete_event(records: list[Record]) -> None:
    records.remove(event(records, "episode_stepped"))


def more(number: float) -> float:
    return number + 1


TRAJECTORIES = [
    (in_step(2, observation=swap_letter), "rl-", 2, "observation"),
    (in_step(0, observation=swap_letter), "rl-", 0, "observation"),
    (in_step(3, reward=lambda r: r + 0.5), "rl-", 3, "reward"),
    (in_step(1, admissible=lambda a: a[:-1]), "rl-", 1, "admissible"),
    (in_step(1, admissible=lambda a: [*a, "fly away"]), "rl-", 1, "admissible"),
    (in_step(1, admissible=lambda a: a[::-1]), "rl-", 1, "admissible"),
    (in_step(2, action=other_action), "rl-", 2, "action"),
    (in_step(2, thought=lambda t: t + " [x]"), "rl-", 2, "thought"),
    (in_step(2, valid=lambda v: not v), "rl-", 2, "valid"),
    (in_step(2, index=more), "rl-", 2, "index"),
    (in_step(2, latency=more), "rl-", 2, "step beside events.jsonl"),
    (in_episode("rl", final_observation=swap_letter), "rl-", None, "final_observation"),
    (in_episode("rl", total_reward=more), "rl-", None, "total_reward"),
    (won_instead, "", None, "success"),
    (in_episode("rl", stop_reason=lambda _: "cancelled"), "rl-", None, "stop_reason"),
    (in_episode("rl", cited=lambda c: [] if c else ["gen_001"]), "rl-", None, "cited"),
    (in_episode("rl", category=lambda c: "Look" if c != "Look" else "Pick"), "rl-", None, "category"),
    (in_episode("rl", seed=more), "rl-", None, "seed"),
    (in_episode("rl", system=swap_letter), "rl-", None, "system"),
    (in_episode("rl", skills=lambda s: s[:-1]), "rl-", None, "skills"),
    (in_episode("rl", skills=lambda s: [*s, "gen_999"]), "rl-", None, "skills"),
    (in_episode("rl", policy=lambda p: "expert"), "rl-", None, "policy beside events.jsonl"),
    (in_episode("collect", task_id=lambda t: t + "9"), "collect-", None, "task_id"),
    (in_episode("validate", task=lambda t: t + "s"), "validate-", None, "task"),
    (in_episode("evaluate", seed=more), "evaluate-", None, "seed"),
    (in_episode("demonstrate", total_reward=more), "demo-", None, "total_reward"),
    (delete_episode, "rl-", None, "trajectories.jsonl"),
    (double_episode, "rl-", None, "trajectories.jsonl"),
]
EVENTS = [
    (
        in_event("evaluated", set_in("overall", "wins", to=lambda w: w - 1)),
        "evaluation rl on test",
        "overall",
    ),
    (in_event("evaluated", set_in("overall", "low", to=lambda x: x / 2)), "evaluation rl on test", "overall"),
    (
        in_event("evaluated", set_in("categories", "Pick", "episodes", to=more)),
        "evaluation rl on test",
        "Pick",
    ),
    (in_event("evaluated", set_in("mean_steps", to=more)), "evaluation rl on test", "mean_steps"),
    (in_event("evaluated", set_in("played", to=lambda d: "0" * 64)), "evaluation rl on test", "played"),
    (in_event("validated", set_in("overall", "wins", to=more)), "validation at step 2", "overall"),
    (in_event("evolved", set_in("rates", "Pick", "wins", to=more)), "evolution at step 2", "Pick"),
    (in_event("grpo_stepped", set_in("metrics", "reward", to=more)), "RL step 2", "reward"),
    (in_event("grpo_stepped", set_in("metrics", "num_turns", to=more)), "RL step 2", "num_turns"),
    (in_event("episode_finished", set_in("total_reward", to=more)), "in events.jsonl", "total_reward"),
    (in_event("episode_finished", set_in("success", to=lambda s: not s)), "in events.jsonl", "success"),
    (in_event("episode_finished", set_in("invalid_actions", to=more)), "in events.jsonl", "invalid_actions"),
    (in_event("skill_added", set_in("skill", "created", to=more)), "", ""),
    (delete_event, "events.jsonl", "seq"),
]


def only(found: Verification) -> Difference:
    lines = [difference.line() for difference in found.differences]
    assert len(lines) == 1, "\n".join(lines)
    return found.differences[0]


@pytest.mark.parametrize(("change", "where", "step", "name"), TRAJECTORIES)
def test_a_change_of_a_stored_episode_is_named_and_nothing_else(
    copy: Path, change: Callable[[list[Record]], None], where: str, step: int | None, name: str
) -> None:
    edit(copy / "trajectories.jsonl", change)
    said = only(verify_run(copy))
    assert (said.step, said.field) == (step, name)
    assert said.where.startswith(where)
    assert said.stored != said.found


@pytest.mark.parametrize(("change", "where", "name"), EVENTS)
def test_a_change_of_the_journal_is_named_and_nothing_else(
    copy: Path, change: Callable[[list[Record]], None], where: str, name: str
) -> None:
    edit(copy / "events.jsonl", change)
    found = verify_run(copy)
    if not name:
        assert found.differences == (), "when a skill was made is no number of the run"
        return
    said = only(found)
    assert where in said.where and said.field == name


def test_the_counts_of_a_phase_are_made_again(copy: Path) -> None:
    def change(records: list[Record]) -> None:
        told = next(r for r in records if r["kind"] == "phase_finished" and r["phase"] == "collect")
        told["summary"] = told["summary"].replace("collected 8 episodes", "collected 9 episodes")

    edit(copy / "events.jsonl", change)
    assert only(verify_run(copy)).where == "phase collect"


@pytest.mark.parametrize("name", ["principle", "wins", "tier"])
def test_the_bank_is_compared_with_the_journal_and_its_counts_with_the_episodes(
    copy: Path, name: str
) -> None:
    path = copy / "skill_bank.json"
    data = json.loads(path.read_text())
    skill = next(iter(data["skills"].values()))
    if name == "wins":
        skill["stats"]["wins"] += 1
    else:
        skill[name] += "x"
    path.write_text(json.dumps(data))
    said = only(verify_run(copy))
    assert (said.where, said.field) == (f"skill {skill['id']}", name)


def test_a_changed_reply_with_its_action_is_named_where_the_world_answers_otherwise(copy: Path) -> None:
    def change(records: list[Record]) -> None:
        step = episode(records)["steps"][1]
        step["text"] = step["text"].replace(step["action"], other_action(step["action"]))
        step["action"] = other_action(step["action"])

    edit(copy / "trajectories.jsonl", change)
    said = {(d.step, d.field) for d in verify_run(copy).differences}
    assert (2, "observation") in said and (1, "step beside events.jsonl") in said


def test_a_lost_episode_file_is_said_and_nothing_is_made_up(copy: Path) -> None:
    episodes = verify_run(copy).episodes
    (copy / "trajectories.jsonl").unlink()
    found = verify_run(copy)
    assert found.episodes == found.verified == 0
    assert {d.field for d in found.differences} == {"trajectories.jsonl"}
    assert len(found.differences) == episodes
    assert found.unverified["numbers over episodes that are missing"] == 2


def test_a_run_that_was_killed_agrees_as_far_as_it_came(copy: Path) -> None:
    journal = (copy / "events.jsonl").read_bytes().splitlines(keepends=True)
    ends = [i for i, line in enumerate(journal) if b'"kind":"episode_finished"' in line]
    (copy / "events.jsonl").write_bytes(b"".join(journal[: ends[-1]]))
    found = verify_run(copy)
    assert found.differences == ()
    assert found.unverified["episodes that the journal will tell of when the run goes on"] == 1


@pytest.mark.parametrize(
    "world", [("--env", "webshop"), ("--backend", "games"), ("--env", "webshop", "--webshop-data", "shop")]
)
def test_other_worlds_and_panels_agree_too(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    shop: Path,
    world: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in "abcdef":
        add_game(tmp_path / "data", HEAT, name)
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "data"))
    quiet = ("--display", "none", "--set", "env.max_steps=5")
    evaluation = (
        "eval",
        "--policy",
        "random",
        "--run",
        "r",
        "--seed",
        "3",
        "--episodes",
        "4",
        "--seeds",
        "2",
    )
    assert run([*evaluation, *quiet, *world]) == 0
    assert run(["panel", "make", "p", *world, "--episodes", "3", "--set", "env.max_steps=4"]) == 0
    assert run(["eval", "--policy", "random", "--run", "r", "--panel", "p.json", "--display", "none"]) == 0
    found = verify_run(run_path("r"))
    assert (found.differences, found.unverified) == ((), {})
    assert (found.verified, found.checks["seeds"], found.checks["rates"]) == (11, 11, 2)
    episodes = run_path("r") / "trajectories.jsonl"
    kept = episodes.read_text()
    for name, value in (("seed", 1), ("task_id", "builtin/small/test/0/99")):
        edit(episodes, lambda records, value=value, name=name: records[-1].update({name: value}))
        said = only(verify_run(run_path("r")))
        assert (said.field, "-panel-" in said.where) == (name, True)
        episodes.write_text(kept)
    if "games" in world:
        monkeypatch.delenv("ALFWORLD_DATA")
        found = verify_run(run_path("r"))
        (why,) = found.unverified
        assert why.startswith("episodes: the games are not here") and found.unverified[why] == 11
        assert verify_run(run_path("r"), {"data_dir": str(tmp_path / "data")}).verified == 11
    capfd.readouterr()


def test_what_was_played_on_a_server_or_imported_is_counted_as_not_compared(copy: Path) -> None:
    def on_a_server(records: list[Record]) -> None:
        for record in records:
            if record["kind"] == "run_started":
                record["config"]["env"]["backend"] = "http"

    def imported(records: list[Record]) -> None:
        records.append(episode(records) | {"id": "elsewhere", "purpose": ""})

    edit(copy / "events.jsonl", on_a_server)
    edit(copy / "trajectories.jsonl", imported)
    found = verify_run(copy)
    assert found.verified == 0
    assert found.unverified["episodes: played on a server"] == found.episodes - 1
    assert found.unverified["imported episodes"] == 1
    assert all(difference.where.startswith("skill ") for difference in found.differences)


def test_the_command_prints_what_differs_and_exits_with_1(
    copy: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert run(["report", "whole", "--verify"]) == 0
    out = capfd.readouterr().out
    assert "episodes played again" in out and out.endswith("no difference\n")
    assert run(["report", "whole", "--verify", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["agrees"] is True
    edit(copy / "trajectories.jsonl", in_step(2, observation=lambda o: o + "\x1b[31m"))
    assert run(["report", "whole", "--verify"]) == 1
    out = capfd.readouterr().out
    assert ", step 2, observation: stored " in out and "\x1b" not in out
    assert run(["report", "whole", "--verify", "--json"]) == 1
    facts = json.loads(capfd.readouterr().out)
    assert facts["agrees"] is False and facts["differences"][0]["step"] == 2
    (copy / "events.jsonl").write_text("{}\n")
    assert run(["report", "whole", "--verify"]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1
