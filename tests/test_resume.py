"""`kill -9` anywhere, then the same command again: nothing finished is lost or doubled."""

from __future__ import annotations

import json
import os
import shutil
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

SETTINGS = {
    "env.concurrency": 4,
    "env.max_steps": 6,
    "policy.threads": 1,
    # Some of its actions are invalid then, some returns of a group differ: RL has something to learn from.
    "policy.constrained": "false",
    "rl.invalid_action_penalty": 0.1,
    "collect.episodes": 12,
    "sft.num_examples": 24,
    "sft.batch_size": 4,
    "sft.epochs": 2,
    "sft.checkpoint_interval": 3,
    "rl.batch_size": 4,
    "rl.group_size": 2,
    "rl.training_epochs": 4,
    # Only at the end: the last kill lies a whole step before it, however slowly it comes.
    "rl.checkpoint_interval": 4,
    "rl.num_iterations": 2,
    "rl.max_prompt_length": 900,
    "rl.max_response_length": 30,
    "evolution.episodes": 4,
    "evolution.validation_interval": 1,
    "evaluation.episodes": 4,
}

KILLS: list[tuple[str, Callable[[ev.Event], bool]]] = [
    ("collecting", lambda e: e.kind == "episode_finished" and e.purpose == "collect"),
    ("distilling", lambda e: e.kind == "skill_added"),
    ("demonstrating", lambda e: e.kind == "episode_finished" and e.purpose == "demonstrate"),
    ("fine-tuning", lambda e: e.kind == "sft_stepped" and e.step == 5),
    ("validating", lambda e: e.kind == "episode_finished" and e.purpose == "validate"),
    ("reinforcing", lambda e: e.kind == "episode_finished" and e.purpose == "rl"),
    # Two updates and two evolutions behind the newest checkpoint, then an update that no checkpoint holds.
    ("evolving", lambda e: e.kind == "evolved" and e.step == 2),
    ("updating", lambda e: e.kind == "grpo_stepped" and e.step == 3),
]


def command(run: str) -> list[str]:
    settings = [f"--set={name}={value}" for name, value in SETTINGS.items()]
    train = ["train", "--env", "alfworld", "--mock", "--seed", "3", "--display", "none", "--run", run]
    return [sys.executable, "-m", "krill_tui", *train, *settings]


def kill_at(run: Path, when: Callable[[ev.Event], bool]) -> None:
    """Start the command and kill it without warning at the first new event that fits."""
    follower = JournalFollower(run / "events.jsonl")
    follower.read_new()
    process = subprocess.Popen(command(run.name), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 300
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


def state(checkpoint: Path) -> dict[str, list[float]]:
    """Adapters, optimizer and random state of a checkpoint, and its manifest."""
    found = {
        f"{file.parent.name}/{file.name}/{name}": array.ravel().tolist()
        for file in sorted(checkpoint.rglob("*.safetensors"))
        for name, array in load_file(file).items()
    }
    assert {name.split("/", 1)[0] for name in found} == {"policy", "reference", checkpoint.name}
    return found | json.loads((checkpoint / "manifest.json").read_text())


def told(run: Path) -> dict[str, object]:
    """What the journal says of training, each step as it was last: a step behind no checkpoint is done again."""
    events = list(read_journal(run / "events.jsonl"))
    # Beside times: what the sampler said of its own tokens has the last bits of the batch it said them in.
    timed = ("time", "per_second", "sampling/")
    steps = {
        (e.kind, e.step): {name: x for name, x in e.metrics.items() if not any(t in name for t in timed)}
        for e in events
        if isinstance(e, ev.SftStepped | ev.GrpoStepped)
    }
    cycles = [(e.cycle, e.step, e.accepted, e.rates) for e in events if e.kind == "evolved"]
    validations = [(e.step, e.overall, e.categories) for e in events if e.kind == "validated"]
    return {"steps": steps, "cycles": cycles, "validations": validations}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_run_killed_in_every_phase_ends_like_one_that_never_was():
    runs = Path(os.environ["KRILL_RUNS"])
    subprocess.run(command("whole"), check=True, stdout=subprocess.DEVNULL)
    for _, when in KILLS:
        kill_at(runs / "broken", when)
    # As if the last kill had come between a checkpoint and the line that makes it the current one.
    checkpoints = runs / "broken" / "checkpoints"
    shutil.copytree(checkpoints / "rl-0", checkpoints / "rl-4")
    subprocess.run(command("broken"), check=True, stdout=subprocess.DEVNULL)

    whole, broken = runs / "whole", runs / "broken"
    expected = {t.id: t for t in read_trajectory_lines(whole / "trajectories.jsonl")}
    written = list(read_trajectory_lines(broken / "trajectories.jsonl"))
    assert Counter(t.id for t in written) == Counter(expected.keys())
    for trajectory in written:
        same = expected[trajectory.id]
        assert [s.text for s in trajectory.steps] == [s.text for s in same.steps]
        assert (trajectory.policy_version, trajectory.bank_version, trajectory.skills) == (
            same.policy_version,
            same.bank_version,
            same.skills,
        )
    # SFT's updates are behind RL's, and RL's are two to a step.
    last = {t.policy_version for t in expected.values() if t.id.startswith("rl-0004-")}
    [version] = last
    assert version > 4

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
    assert told(broken) == told(whole)
    for name in ("rl-0", "rl-4"):
        assert state(broken / "checkpoints" / name) == state(whole / "checkpoints" / name)
    # The reference stayed what SFT had made, while the policy moved.
    first, last = (state(whole / "checkpoints" / name) for name in ("rl-0", "rl-4"))
    for name in (name for name in first if name.startswith("reference/")):
        assert last[name] == first[name] == first[name.replace("reference/", "policy/", 1)]
    assert any(last[name] != first[name] for name in first if name.startswith("policy/"))
