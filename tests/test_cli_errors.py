"""What a person reads when a command cannot do what was asked: one line and an exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from krill_tui.cli import runs
from krill_tui.cli.app import run
from krill_tui.cli.options import Options, parse_assignment, resolve_config
from krill_tui.errors import UsageError

ROOT = Path(__file__).parents[1]
Krill = Callable[..., tuple[int, str, str]]


@pytest.fixture
def krill(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Krill:
    """Run one command line in an empty folder; gives exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def krill(*arguments: object) -> tuple[int, str, str]:
        code = run([str(a) for a in arguments])
        out, err = capfd.readouterr()
        return code, out, err

    return krill


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--bogus"], ["No such option: --bogus", "krill --help"]),
        (["train", "--bogus"], ["No such option: --bogus", "krill train --help"]),
        (["dance"], ["No such command 'dance'"]),
        (["collect", "--episodes", "many"], ["--episodes"]),
        (["collect", "--episodes", "0"], ["collect.episodes", "greater than or equal to 1"]),
        (["collect", "--policy", "magic"], ["policy.kind", "'expert'"]),
        (["distill", "--teacher", "magic"], ["teacher.kind", "'builtin'"]),
        (["train", "--display", "film"], ["--display"]),
        (["train", "--preset", "huge"], ["unknown preset 'huge'"]),
        (["train", "--backend", "cloud"], ["env.backend", "'builtin'"]),
        (["train", "--mock", "--backend", "games"], ["--mock", "--backend games"]),
        (["train", "--set", "sft.epoch=3"], ["unknown field 'sft.epoch'", "did you mean 'sft.epochs'"]),
        (["train", "--set", "nothing"], ["section.field=value"]),
        (["train", "--set", "=3"], ["section.field=value"]),
        (["train", "--config", "nowhere.json"], ["nowhere.json", "no such file"]),
        (["play", "--env", "webshop", "--backend", "games"], ["WebShop has no backend 'games'", "builtin"]),
        (["--env", "webshop", "play", "--game", "x"], ["genuine ALFWorld game", "--env webshop"]),
        (["play", "--env", "webshop", "--webshop-data", "no"], ["no product file in no"]),
        (["train", "--env", "chess"], ["env.name"]),
        (["train", "--run", "../up"], ["'../up' is no name for a run"]),
        (["train", "--run", ""], ["'' is no name for a run"]),
        (["distill"], ["data/trajectories.json: there is no such file", "krill collect"]),
        (["sft"], ["data/skill_bank.json: there is no such file", "krill distill"]),
        (["rl", "--skill-bank", "mine.json"], ["mine.json: there is no such file"]),
        (["inspect", "nothing.json"], ["nothing.json: there is no such file"]),
        (["inspect"], ["path", "krill inspect --help"]),
        (["convert", "csv", "a", "b"], ["'csv' cannot be converted", "eto"]),
        (["convert", "eto", "a.json", "b.json"], ["a.json"]),
        (
            ["train", "--mock", "--set", "policy.accelerate_config=my.yaml"],
            ["policy.accelerate_config my.yaml", "no such file"],
        ),
        (
            ["train", "--mock", "--set", "policy.accelerate_config=fsdp"],
            ["sharded", "policy.sampler to vllm"],
        ),
        (["watch", "nope"], ["there is no run 'nope'", "no runs yet"]),
        (["replay", "nope"], ["there is no run 'nope'"]),
        (["report", "nope"], ["there is no run 'nope'"]),
        (["eval", "--split", "moon", "--policy", "expert"], ["there is no split 'moon'"]),
        (["eval", "--seeds", "0"], ["--seeds"]),
        (["play", "--json"], ["--script"]),
        (["play", "--backend", "games"], ["ALFWORLD_DATA"]),
        (["play", "--game", "nothing"], ["there is no game nothing"]),
        (["play", "--split", "moon"], ["there is no split 'moon'"]),
        (["play", "--script", "nothing.txt"], ["nothing.txt: cannot be read"]),
        ([], ["the app needs a terminal", "krill train"]),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(krill: Krill, arguments: list[str], said: list[str]) -> None:
    code, out, err = krill(
        *arguments, *([] if "--display" in arguments or "train" not in arguments else ["--display", "none"])
    )
    lines = [line for line in err.splitlines() if not line.startswith("new run")]
    assert (code, out, len(lines)) == (2, "", 1), (out, err)
    assert lines[0].startswith("krill: ")
    assert all(part in lines[0] for part in said), lines[0]


def test_a_wrong_config_names_file_field_and_the_nearest_right_name(krill: Krill, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"rl": {"group_sise": 4}}), encoding="utf-8")
    code, _, err = krill("--config", path, "doctor")
    assert code == 2
    assert err == f"krill: {path}: unknown field 'rl.group_sise'; did you mean 'rl.group_size'?\n"


def test_a_file_may_begin_with_a_byte_order_mark(krill: Krill, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"seed": 3}', encoding="utf-8-sig")
    (tmp_path / "bank.json").write_text('[{"principle": "Look first."}]', encoding="utf-8-sig")
    assert krill("--config", "c.json", "doctor")[0] == 0
    assert "1 skills" in krill("inspect", "bank.json")[1]


def test_no_class_of_ours_is_named_where_a_file_holds_something_else(krill: Krill, tmp_path: Path) -> None:
    (tmp_path / "list.json").write_text("[1, 2]", encoding="utf-8")
    for arguments in (["inspect", "list.json"], ["distill", "--trajectories", "list.json"]):
        code, _, err = krill(*arguments)
        assert code == 2
        assert "should be an object" in err and "instance" not in err


def test_a_locked_run_is_refused(krill: Krill, tmp_path: Path) -> None:
    from krill_tui.engine.run_store import RunStore, run_path

    store = RunStore.open(run_path("mine"))
    code, _, err = krill("collect", "--policy", "expert", "--run", "mine", "--display", "none")
    store.close()
    assert code == 1
    assert "run 'mine' is being written by another process (watch it with: krill watch mine)" in err


def test_control_characters_of_a_file_do_not_reach_the_terminal(krill: Krill, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"\x1b[2J\nsft": 1}), encoding="utf-8")
    code, _, err = krill("--config", path, "doctor")
    assert code == 2
    assert "\x1b" not in err
    assert len(err.splitlines()) == 1


def test_an_error_inside_krill_is_one_line_and_a_log(
    krill: Krill, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path) -> dict[str, object]:
        raise ZeroDivisionError("oh\nno")

    store = tmp_path / "runs" / "one"
    store.mkdir(parents=True)
    (store / "events.jsonl").touch()
    monkeypatch.setattr(runs, "_run_facts", broken)
    code, out, err = krill("runs")
    logs = list((tmp_path / "runs").glob("crash-*.log"))
    assert (code, out, len(logs)) == (1, "", 1)
    assert err == f"krill: something went wrong inside Krill: ZeroDivisionError: oh no (details: {logs[0]})\n"
    assert "Traceback" in logs[0].read_text(encoding="utf-8")


def test_a_closed_pipe_is_quiet(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = f'"{sys.executable}" -m krill_tui doctor --json | true; echo "${{PIPESTATUS[0]}}"'
    result = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert result.stderr == ""
    assert int(result.stdout) in (0, 1, 141)


def test_options_may_stand_before_and_after_the_command(krill: Krill) -> None:
    code, out, _ = krill("--seed", 5, "--set", "sft.epochs=9", "doctor", "--json", "--set", "rl.group_size=4")
    assert code == 0
    config = json.loads(out)["config"]
    assert (config["seed"], config["sft"]["epochs"], config["rl"]["group_size"]) == (5, 9, 4)
    _, out, _ = krill("--seed", 5, "doctor", "--json", "--seed", 6)
    assert json.loads(out)["config"]["seed"] == 6


def test_mock_and_live_name_backends() -> None:
    assert resolve_config(Options(mock=True)).env.backend == "builtin"
    assert resolve_config(Options(mock=False)).env.backend == "http"
    assert resolve_config(Options(mock=False, backend="http")).env.backend == "http"
    with pytest.raises(UsageError):
        resolve_config(Options(mock=False, backend="builtin"))


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("a.b=1", {"a": {"b": 1}}),
        ("a.b=true", {"a": {"b": True}}),
        ("a.b=text", {"a": {"b": "text"}}),
        ('a.b="1"', {"a": {"b": "1"}}),
        ("a=x=y", {"a": "x=y"}),
        ("a.b=", {"a": {"b": ""}}),
    ],
)
def test_an_assignment_takes_json_and_else_text(assignment: str, value: object) -> None:
    assert parse_assignment(assignment) == value


def test_doctor_says_that_a_key_is_set_and_never_which(krill: Krill, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-123")
    code, out, err = krill("doctor")
    assert code == 0
    assert "sk-secret" not in out + err
    _, out, _ = krill("doctor", "--json")
    facts = json.loads(out)
    assert facts["keys"]["teacher_api_key"] == "set"
    assert facts["packages"]["textual"][0].isdigit()
    assert facts["alfworld"]["games"] == "none (ALFWORLD_DATA is not set)"
    installed = facts["packages"]["alfworld"] != "not installed"
    assert ("needs the extra" in facts["alfworld"]["backend textworld"]) is not installed


def test_doctor_counts_the_games_it_finds(
    krill: Krill, games_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALFWORLD_DATA", str(games_dir))
    _, out, _ = krill("doctor", "--json")
    facts = json.loads(out)["alfworld"]
    assert facts["valid_seen"] == 140
    assert len(facts["content hash"]) == 16


def test_every_command_has_help(krill: Krill) -> None:
    code, out, _ = krill("--help")
    assert code == 0
    names = [line.split()[0] for line in out.partition("Commands:")[2].splitlines() if line.strip()]
    assert {"train", "collect", "distill", "sft", "rl", "inspect", "eval", "play", "convert"} <= set(names)
    assert {"watch", "replay", "report", "runs", "doctor"} <= set(names)
    for name in names:
        code, out, _ = krill(name, "--help")
        assert code == 0
        assert "--config" in out or "Commands:" in out  # the commands of a group take the options
