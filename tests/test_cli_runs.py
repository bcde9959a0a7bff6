"""The commands that work in a run, through the real engine, with programs as policies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from krill_tui.cli.app import run
from krill_tui.cli.names import fresh_name
from krill_tui.engine.run_store import list_runs, run_path
from krill_tui.events import schema as ev
from krill_tui.events.journal import read_journal
from krill_tui.skills.formats.banks import load_bank
from krill_tui.skills.formats.trajectories import load_trajectories

ROOT = Path(__file__).parents[1]
SMALL = ("--set", "env.max_steps=8")
Krill = Callable[..., str]


@pytest.fixture
def krill(capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Krill:
    """Run one command line in the test's folder; it must exit with 0, and gives its standard output."""
    monkeypatch.chdir(tmp_path)

    def krill(*arguments: object) -> str:
        code = run([str(a) for a in arguments])
        out, err = capfd.readouterr()
        assert code == 0, err
        return out

    return krill


def events_of(name: str) -> list[ev.Event]:
    return list(read_journal(run_path(name) / "events.jsonl"))


def test_collect_then_distill_then_inspect_pass_files_by_their_default_names(
    krill: Krill, tmp_path: Path
) -> None:
    # Without skills the expert searches longer than the preset lets it.
    longer = ("--set", "env.max_steps=30")
    out = krill("collect", "--mock", "--policy", "expert", "--episodes", 12, "--display", "none", *longer)
    assert out == "wrote data/trajectories.json: 12 episodes, 12 won\n"
    assert len(load_trajectories(tmp_path / "data" / "trajectories.json")) == 12
    assert "12 trajectories" in krill("inspect", "data/trajectories.json")

    out = krill("distill", "--display", "none")
    bank = load_bank(tmp_path / "data" / "skill_bank.json")
    assert out == f"wrote data/skill_bank.json: {len(bank.skills)} skills\n"
    shown = krill("inspect", "data/skill_bank.json")
    facts = json.loads(krill("inspect", "data/skill_bank.json", "--json"))
    assert len(facts["skills"]) == len(bank.skills) > 3
    assert all(skill.id in shown and skill.principle in shown for skill in bank.skills)
    assert len(list_runs()) == 2


def test_inspect_reads_the_bank_of_a_run(krill: Krill) -> None:
    krill("collect", "--policy", "expert", "--episodes", 6, "--display", "none")
    krill("distill", "--run", "mine", "--display", "none")
    assert "skill bank (krill)" in krill("inspect", run_path("mine"))


def test_plain_progress_has_a_line_for_the_start_the_way_and_the_end(krill: Krill) -> None:
    out = krill("collect", "--policy", "expert", "--episodes", 40, "--display", "plain").splitlines()
    assert out[0] == "collect: Collecting episodes (40 episodes)"
    assert out[-2].startswith("collect: done in ")
    shares = [line.partition("(")[2].partition("%")[0] for line in out if line.startswith("collect ")]
    assert [int(share) for share in shares] == [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]


def test_json_display_prints_the_journal_and_nothing_else(krill: Krill) -> None:
    out = krill(
        "collect", "--policy", "random", "--episodes", 2, "--run", "mine", "--display", "json", *SMALL
    )
    printed = [ev.event_adapter.validate_json(line) for line in out.splitlines()]
    events = events_of("mine")
    assert printed == events[-len(printed) :]
    assert isinstance(printed[0], ev.PhaseStarted)
    assert isinstance(printed[-1], ev.RunFinished)


def test_the_result_is_the_same_whatever_the_display(krill: Krill, tmp_path: Path) -> None:
    outputs = []
    for display in ("plain", "json", "none"):
        output = tmp_path / f"{display}.json"
        krill(
            "collect", "--policy", "random", "--episodes", 5, "--display", display, "--output", output, *SMALL
        )
        trajectories = sorted(load_trajectories(output), key=lambda t: t.id)
        outputs.append([(t.id, t.task, [(s.action, s.observation) for s in t.steps]) for t in trajectories])
    assert outputs[0] == outputs[1] == outputs[2]
    assert len(outputs[0]) == 5


def test_options_before_the_command_count(krill: Krill) -> None:
    krill(
        "--run",
        "mine",
        "--seed",
        7,
        "--display",
        "none",
        "collect",
        "--policy",
        "random",
        "--episodes",
        1,
        *SMALL,
    )
    config = json.loads((run_path("mine") / "config.json").read_text(encoding="utf-8"))
    assert (config["seed"], config["env"]["max_steps"], config["collect"]["episodes"]) == (7, 8, 1)


def test_a_run_goes_on_with_the_config_it_was_started_with(krill: Krill) -> None:
    krill("collect", "--policy", "random", "--episodes", 3, "--run", "mine", "--display", "none", *SMALL)
    out = krill("collect", "--run", "mine", "--episodes", 5, "--display", "plain")
    assert "collect: Collecting episodes (5 episodes, 3 done already)" in out
    finished = [event.episode for event in events_of("mine") if isinstance(event, ev.EpisodeFinished)]
    assert len(finished) == len(set(finished)) == 5
    started = [event for event in events_of("mine") if isinstance(event, ev.RunStarted)]
    assert [(event.resumed, event.config["policy"]["kind"]) for event in started] == [
        (False, "random"),
        (True, "random"),
    ]


def test_eval_counts_by_category_with_intervals(krill: Krill) -> None:
    # Without skills the expert has to search, for which the preset's limit is too short.
    expert = ("eval", "--policy", "expert", "--set", "env.max_steps=50", "--episodes", 10)
    out = krill(*expert, "--split", "test", "--seeds", 2, "--json")
    facts = json.loads(out)
    assert (facts["split"], facts["overall"]["episodes"], facts["overall"]["success"]) == ("test", 20, 1.0)
    started = [event for event in events_of(facts["run"]) if isinstance(event, ev.RunStarted)]
    assert facts["games"] == started[-1].data != ""
    report = (run_path(facts["run"]) / "report.md").read_text(encoding="utf-8")
    assert f"content hash {facts['games']}" in report
    assert facts["overall"]["low"] == pytest.approx(0.8389, abs=1e-4), "Wilson, 20 of 20"
    assert sum(rate["episodes"] for rate in facts["categories"].values()) == 20
    table = krill(*expert, "--display", "none")
    assert table.splitlines()[0] == "test, 10 episodes"
    assert "100.0%  72.2% - 100.0%" in table.splitlines()[-1]


def test_runs_are_listed_reported_watched_and_replayed(krill: Krill) -> None:
    assert krill("runs") == "no runs yet: krill train makes one\n"
    krill("eval", "--policy", "expert", "--episodes", 4, "--run", "first", "--display", "none")
    (fact,) = json.loads(krill("runs", "--json"))
    assert (fact["run"], fact["outcome"], fact["env"]) == ("first", "completed", "alfworld/builtin")
    assert "first" in krill("runs")
    assert krill("report", "first").startswith("# Run first\n")
    told = krill("watch", "first")
    assert "evaluate: done in" in told
    assert krill("replay", "first", "--display", "plain").startswith(told)
    assert len(krill("replay", "first", "--display", "json").splitlines()) == len(events_of("first"))


def test_watching_a_run_that_was_killed_ends_and_says_so(
    krill: Krill, capfd: pytest.CaptureFixture[str]
) -> None:
    krill("eval", "--policy", "expert", "--episodes", 2, "--run", "broken", "--display", "none")
    journal = run_path("broken") / "events.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]))
    assert run(["watch", "broken", "--display", "plain"]) == 1
    assert "run 'broken' was broken off: no process works on it" in capfd.readouterr().err


def test_the_report_as_json_holds_the_rates(krill: Krill) -> None:
    krill("eval", "--policy", "expert", "--episodes", 3, "--run", "first", "--display", "none")
    facts = json.loads(krill("report", "first", "--json"))
    assert facts["evaluations"]["eval"]["overall"]["episodes"] == 3
    assert facts["outcome"] == "completed" and facts["config"]["seed"] == 0


def test_a_damaged_run_does_not_hide_the_others(krill: Krill) -> None:
    krill("eval", "--policy", "expert", "--episodes", 1, "--run", "good", "--display", "none")
    run_path("bad").mkdir()
    (run_path("bad") / "events.jsonl").write_text("nonsense\n", encoding="utf-8")
    outcomes = {fact["run"]: fact["outcome"] for fact in json.loads(krill("runs", "--json"))}
    assert outcomes == {"good": "completed", "bad": "damaged"}


def test_genuine_games_are_played_from_the_data_folder(
    krill: Krill, games_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALFWORLD_DATA", str(games_dir))
    out = krill(
        "eval",
        "--backend",
        "games",
        "--policy",
        "expert",
        "--episodes",
        5,
        "--set",
        "env.max_steps=50",
        "--json",
    )
    facts = json.loads(out)
    assert (facts["split"], facts["overall"]["episodes"]) == ("valid_seen", 5)
    assert facts["overall"]["wins"] >= 4


def test_converted_trajectories_can_be_distilled(krill: Krill, tmp_path: Path) -> None:
    conversation = [
        {"from": "human", "value": "Interact with a household to solve a task."},
        {"from": "gpt", "value": "OK"},
        {
            "from": "human",
            "value": "You are in a room. You see a desk 1.\n\nYour task is to: put some mug on desk.",
        },
        {"from": "gpt", "value": "Thought: it is near.\nAction: go to desk 1"},
        {"from": "human", "value": "Observation: On the desk 1, you see a mug 1."},
        {"from": "gpt", "value": "Thought: done.\nAction: look"},
    ]
    game = "pick_and_place_simple-Mug-None-Desk-1/trial_1"
    records = [{"id": "a", "game_file": game, "conversations": conversation}, {"id": "b", "conversations": 3}]
    (tmp_path / "eto.json").write_text(json.dumps(records), encoding="utf-8")
    out = krill("convert", "eto", "eto.json", "data/trajectories.json", "--max", 100).splitlines()
    assert out[0] == "wrote data/trajectories.json: 1 trajectories of 2 records"
    assert out[1].startswith("  record 1 left out: ")
    first = (tmp_path / "data" / "trajectories.json").read_bytes()
    krill("convert", "eto", "eto.json", "data/trajectories.json")
    assert (tmp_path / "data" / "trajectories.json").read_bytes() == first
    krill("distill", "--display", "none", "--mock")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_and_keeps_what_is_finished(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "krill_tui", "collect", "--mock", "--policy", "expert", "--run", "mine"]
    command += ["--episodes", "2000", "--display", "json", "--set", "env.concurrency=4"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        assert process.stdout is not None
        for line in process.stdout:
            if '"episode_finished"' in line:
                break
        process.send_signal(number)
        process.send_signal(number)  # the second one does no harm
        _, err = process.communicate()
        watchdog.cancel()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert err.count("krill: stopping") == 1
    events = events_of("mine")
    assert isinstance(events[-1], ev.RunFinished)
    assert events[-1].outcome == "cancelled"
    finished = {
        e.episode for e in events if isinstance(e, ev.EpisodeFinished) and e.stop_reason != "cancelled"
    }
    kept = (run_path("mine") / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()
    assert finished <= {json.loads(line)["id"] for line in kept}
    assert finished


def test_names_of_runs_are_fresh() -> None:
    names: set[str] = set()
    for _ in range(200):
        names.add(fresh_name(names))
    assert len(names) == 200
