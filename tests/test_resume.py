"""`kill -9` anywhere, then the same command again: nothing finished is lost or doubled."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from krill_tui.engine.episodes import read_trajectory_lines
from krill_tui.events import schema as ev
from krill_tui.events.journal import JournalFollower, read_journal
from krill_tui.skills.bank import SkillBank
from tests.tiny_model import build_tiny_model

SETTINGS = {
    "env.concurrency": 8,
    "env.max_steps": 6,
    "policy.threads": 1,
    "collect.episodes": 24,
    "sft.num_examples": 24,
    "sft.batch_size": 4,
    "sft.epochs": 2,
    "sft.checkpoint_interval": 3,
    "rl.batch_size": 8,
    "rl.group_size": 4,
    "rl.training_epochs": 3,
    "rl.checkpoint_interval": 2,
    "rl.max_prompt_length": 460,
    "rl.max_response_length": 30,
    "evolution.episodes": 8,
    "evolution.validation_interval": 2,
    "evaluation.episodes": 8,
}

KILLS: list[tuple[str, Callable[[ev.Event], bool]]] = [
    ("collecting", lambda e: e.kind == "episode_finished" and e.purpose == "collect"),
    ("distilling", lambda e: e.kind == "skill_added"),
    ("demonstrating", lambda e: e.kind == "episode_finished" and e.purpose == "demonstrate"),
    ("fine-tuning", lambda e: e.kind == "sft_stepped" and e.step == 5),
    ("validating", lambda e: e.kind == "episode_finished" and e.purpose == "validate"),
    ("reinforcing", lambda e: e.kind == "episode_finished" and e.purpose == "rl"),
    ("updating", lambda e: e.kind == "grpo_stepped" and e.step == 1),
]


def command(run: str, model: Path) -> list[str]:
    settings = [f"--set={name}={value}" for name, value in SETTINGS.items()]
    train = ["train", "--env", "alfworld", "--mock", "--seed", "3", "--display", "none", "--run", run]
    return [sys.executable, "-m", "krill_tui", *train, f'--set=policy.model="{model}"', *settings]


def kill_at(run: Path, model: Path, when: Callable[[ev.Event], bool]) -> None:
    """Start the command and kill it without warning at the first new event that fits."""
    follower = JournalFollower(run / "events.jsonl")
    follower.read_new()
    process = subprocess.Popen(command(run.name, model), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 100
    try:
        while not any(when(event) for event in follower.read_new()):
            if process.poll() is not None:
                error = process.stderr.read().decode() if process.stderr else ""
                raise AssertionError(f"the run ended by itself: {error}")
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()


def weights(run: Path) -> dict[str, list[float]]:
    [adapter] = (run / "checkpoints" / "rl-3").rglob("policy/*.safetensors")
    return {name: array.ravel().tolist() for name, array in load_file(adapter).items()}


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_run_killed_in_every_phase_ends_like_one_that_never_was(tmp_path: Path):
    model = build_tiny_model(tmp_path / "model")
    runs = Path(os.environ["KRILL_RUNS"])
    subprocess.run(command("whole", model), check=True, stdout=subprocess.DEVNULL)
    for _, when in KILLS:
        kill_at(runs / "broken", model, when)
    subprocess.run(command("broken", model), check=True, stdout=subprocess.DEVNULL)

    whole, broken = runs / "whole", runs / "broken"
    expected = {t.id: t for t in read_trajectory_lines(whole / "trajectories.jsonl")}
    written = list(read_trajectory_lines(broken / "trajectories.jsonl"))
    assert Counter(t.id for t in written) == Counter(expected.keys())
    for trajectory in written:
        assert [s.text for s in trajectory.steps] == [s.text for s in expected[trajectory.id].steps]

    events = list(read_journal(broken / "events.jsonl"))
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    said = Counter(e.episode for e in events if e.kind == "episode_finished")
    assert said == Counter(expected.keys())
    added = Counter(e.skill.id for e in events if e.kind == "skill_added")
    bank = SkillBank.open(broken / "skill_bank.json")
    assert added == Counter(skill.id for skill in bank.skills(active_only=False))
    whole_bank = SkillBank.open(whole / "skill_bank.json")
    assert [(s.id, s.principle, s.stats) for s in bank.skills()] == [
        (s.id, s.principle, s.stats) for s in whole_bank.skills()
    ]
    assert weights(broken) == weights(whole)
