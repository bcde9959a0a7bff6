"""`krill train`, `sft`, `rl` and `eval` with a real model of a few thousand parameters and its worker process."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from krill_tui.cli.app import run
from krill_tui.engine.run_store import list_runs, run_path
from krill_tui.events import schema as ev
from krill_tui.events.journal import read_journal

SIZES = {
    "collect.episodes": 4,
    "sft.num_examples": 3,
    "sft.epochs": 1,
    "rl.training_epochs": 2,
    "rl.batch_size": 4,
    "rl.group_size": 2,
    "evolution.episodes": 4,
    "evaluation.episodes": 4,
    "env.max_steps": 12,
    "policy.threads": 1,
    "rl.max_prompt_length": 460,
    "rl.max_response_length": 24,
}


@pytest.fixture
def krill(
    tiny_model_dir: Path, capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., str]:
    """Run a command on small sizes; it must exit with 0, and gives its standard output."""
    monkeypatch.chdir(tmp_path)
    settings = [
        f"--set={field}={value}" for field, value in {**SIZES, "policy.model": tiny_model_dir}.items()
    ]

    def krill(*arguments: str) -> str:
        code = run([*settings, *arguments])
        out, err = capfd.readouterr()
        assert code == 0, err
        return out

    return krill


def test_train_runs_all_phases_and_shows_success_before_and_after(krill: Callable[..., str]) -> None:
    out = krill("train", "--env", "alfworld", "--mock", "--run", "mine").splitlines()
    begun = [line.partition(":")[0] for line in out if "(" in line and ": " in line and "/" not in line]
    phases = ("evaluate", "collect", "distill", "sft", "rl")
    begun = [name for name in begun if name in phases]
    assert tuple(dict.fromkeys(begun)) == phases
    table = out[-4:]
    assert (
        table[0].startswith("base ") and table[1].startswith("after SFT") and table[2].startswith("after RL")
    )
    assert all(" test " in line and "% - " in line for line in table[:3])
    report = run_path("mine") / "report.md"
    assert table[3] == f"report: {report}"
    assert "| after RL | test |" in report.read_text(encoding="utf-8")
    events = list(read_journal(run_path("mine") / "events.jsonl"))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert isinstance(events[-1], ev.RunFinished)
    assert events[-1].outcome == "completed"

    again = krill("train", "--run", "mine", "--display", "plain").splitlines()
    assert again == out[-5:], "nothing is done twice"


def test_the_phases_one_by_one_hand_on_their_results(krill: Callable[..., str], tmp_path: Path) -> None:
    krill("collect", "--policy", "expert", "--display", "none")
    krill("distill", "--display", "none")
    out = krill("sft", "--run", "tuned", "--display", "none").splitlines()
    assert out[0] == f"checkpoint: {run_path('tuned') / 'checkpoints' / 'sft-1'}"
    noted = [e for e in read_journal(run_path("tuned") / "events.jsonl") if isinstance(e, ev.Noted)]
    looked = [e for e in noted if e.message.startswith("fine-tuning data: ")]
    assert "3 demonstrations of 3 games, 3 won" in looked[0].message and "estimated" not in looked[0].message
    facts = json.loads(krill("lint", "tuned", "--json"))
    assert [w["message"] for w in facts["warnings"]] == [
        e.message.removeprefix("fine-tuning data: ") for e in looked if e.level == "warning"
    ], "the command says of a run what the run said before it learned"
    assert facts["estimated"] is False and facts["context"] == 484
    krill("rl", "--steps", "1", "--display", "none")
    better = list_runs()[0]
    config = json.loads((run_path(better) / "config.json").read_text(encoding="utf-8"))
    tuned = run_path("tuned") / "checkpoints" / "sft-1"
    assert config["policy"]["adapter"] == str(tuned.resolve()), "RL starts from the newest cold start"
    assert (run_path(better) / "checkpoints" / "rl-1" / "manifest.json").exists()

    facts = json.loads(krill("eval", "--run", better, "--episodes", "3", "--json"))
    assert (facts["run"], facts["policy"], facts["overall"]["episodes"]) == (better, "local", 3)


def test_a_program_cannot_be_trained(capfd: pytest.CaptureFixture[str]) -> None:
    assert (
        run(
            [
                "train",
                "--set",
                "policy.kind=expert",
                "--set",
                "evaluation.episodes=1",
                "--set",
                "collect.episodes=4",
                "--display",
                "none",
            ]
        )
        == 2
    )
    assert "policy 'expert' cannot be trained here" in capfd.readouterr().err.splitlines()[-1]
