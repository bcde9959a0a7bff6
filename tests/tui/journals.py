"""Scripted runs for the app's tests: fixed times and texts, no engine, no model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from krill_tui.events import schema as ev
from krill_tui.events.bus import EventBus
from krill_tui.events.journal import Journal
from krill_tui.skill import Skill, SkillKind, SkillOrigin, SkillProposal, SkillStats, SkillStatus
from krill_tui.trajectory import Step, StopReason

START = 1_790_000_000.0
"""Unix seconds of the first event."""
CONFIG = {
    "preset": "tiny",
    "env": {"name": "alfworld", "backend": "builtin"},
    "policy": {"kind": "local", "model": "", "constrained": True},
    "teacher": {"kind": "builtin"},
}
TASKS = (
    ("Heat", "put a hot potato in fridge 1"),
    ("Pick", "put a mug in shelf 2"),
    ("Clean", "put a clean plate in countertop 1"),
    ("Cool", "put a cool tomato in microwave 1"),
    ("PickTwo", "put two books in sofa 1"),
    ("Look", "look at the alarm clock under the desklamp"),
)
PLAY = (
    ("You are in the middle of a room. Looking quickly around you, you see a cabinet 1, a fridge 1, a microwave 1.",
     "I should look where potatoes usually are [gen_001]", "go to fridge 1"),
    ("You arrive at fridge 1. The fridge 1 is closed.", "open it before looking [gen_001]", "open fridge 1"),
    ("You open the fridge 1. In it, you see a potato 2, a plate 1.", "take what the task names", "take potato 2 from fridge 1"),
    ("You pick up the potato 2 from the fridge 1.", "need it hot first [heat_001]", "go to microwave 1"),
    ("You arrive at microwave 1. The microwave 1 is closed.", "heat it, do not put it down [heat_001]", "heat potato 2 with microwave 1"),
    ("You heat the potato 2 using the microwave 1.", "now bring it to its place", "go to fridge 1"),
)  # fmt: skip
ADMISSIBLE = ("go to fridge 1", "go to microwave 1", "inventory", "look", "open fridge 1")


class Script:
    """Emits events a second or so apart, through a real bus, into a list or a journal."""

    def __init__(self, path: Path | None = None) -> None:
        self.now = START
        self.events: list[ev.Event] = []
        self.journal = Journal(path) if path else None
        self.bus = EventBus(self.journal, clock=lambda: self.now)
        self.bus.subscribe(self.events.append)
        self.number = 0

    def emit(self, event: ev.BaseEvent, seconds: float = 0.5) -> None:
        self.now += seconds
        self.bus.emit(event)

    def close(self) -> None:
        if self.journal:
            self.journal.close()

    def open(self, run: str = "swift-otter") -> None:
        self.emit(ev.RunStarted(run=run, config=CONFIG, code="0.1.0"), seconds=0)

    def phase(self, phase: ev.Phase, title: str, total: int, unit: str) -> None:
        self.emit(ev.PhaseStarted(phase=phase, title=title, total=total, unit=unit))

    def finish_phase(self, phase: ev.Phase, seconds: float, summary: str) -> None:
        self.emit(ev.PhaseFinished(phase=phase, seconds=seconds, summary=summary))

    def start_episode(
        self, purpose: ev.Purpose = "rl", skills: Sequence[str] = ("gen_001", "heat_001")
    ) -> str:
        """Begin the next episode; its task goes round the six categories."""
        category, task = TASKS[self.number % len(TASKS)]
        self.number += 1
        episode = f"e{self.number:04d}"
        system = "\n".join(f"Look where it usually is, open what is shut. [{skill}]" for skill in skills)
        self.emit(
            ev.EpisodeStarted(
                episode=episode, number=self.number, purpose=purpose, task_id=f"builtin/train/7/{self.number}",
                task=task, category=category, split="train", policy="local:krill-tiny", skills=tuple(skills),
                system=system, max_steps=25,
            ),
            seconds=0.05,
        )  # fmt: skip
        return episode

    def step(self, episode: str, index: int, *, valid: bool = True) -> None:
        observation, thought, action = PLAY[index % len(PLAY)]
        reply = f"<think>{thought}</think><action>{action}</action>"
        step = Step(
            index=index, observation=observation, admissible=ADMISSIBLE, thought=thought, text=reply,
            action=action if valid else "", valid=valid, latency=0.2,
        )  # fmt: skip
        self.emit(ev.EpisodeStepped(episode=episode, step=step), seconds=0.1)

    def finish_episode(self, episode: str, *, won: bool, steps: int, purpose: ev.Purpose = "rl") -> None:
        self.emit(
            ev.EpisodeFinished(
                episode=episode, purpose=purpose, category="Heat", success=won, steps=steps,
                stop_reason=StopReason.SUCCESS if won else StopReason.STEP_LIMIT, total_reward=float(won),
                invalid_actions=0 if won else 2, cited=("heat_001",) if won else (),
                final_observation="You put the potato 2 in the fridge 1." if won else "Nothing happens.",
            ),
            seconds=0.1,
        )  # fmt: skip

    def episode(self, *, won: bool, steps: int = 6, purpose: ev.Purpose = "rl") -> str:
        episode = self.start_episode(purpose)
        for index in range(steps):
            self.step(episode, index, valid=won or index % 3 != 2)
        self.finish_episode(episode, won=won, steps=steps, purpose=purpose)
        return episode


def rate(wins: int, episodes: int, low: float, high: float) -> ev.Rate:
    return ev.Rate(wins=wins, episodes=episodes, low=low, high=high)


def skill(id_: str, name: str, principle: str, tier: str = "general", **more: object) -> Skill:
    origin = SkillOrigin(phase="distill", trajectories=("e0001", "e0003"), author="builtin")
    fields = {"origin": origin, "when_to_apply": "the goal names one object", "created": START, **more}
    return Skill.model_validate({"id": id_, "name": name, "principle": principle, "tier": tier, **fields})


SKILLS = (
    skill("gen_001", "Open what is shut", "Go to closed receptacles and open them before looking elsewhere."),
    skill("gen_002", "Take what the task names", "Pick up the object the goal names, not one like it."),
    skill("heat_001", "Heat before placing", "After taking the object go to the microwave and heat it, then place it.", "Heat",
          stats=SkillStats(injected=18, cited=11, wins=12, losses=6)),
    skill("heat_002", "Do not reopen the microwave", "Once the object is hot, never go back to the microwave.", "Heat",
          kind=SkillKind.LESSON),
    skill("clean_001", "Sink first", "Clean the object in the sinkbasin before it goes to its place.", "Clean"),
    skill("look_001", "Lamp last", "Find the object first, then turn on the desklamp.", "Look", status=SkillStatus.DISABLED),
)  # fmt: skip


def collected(script: Script, episodes: int = 6) -> None:
    script.phase("collect", "Collect trajectories", episodes, "episodes")
    for number in range(episodes):
        script.episode(won=number % 3 == 0, purpose="collect")
        script.emit(ev.PhaseProgressed(phase="collect", done=number + 1, total=episodes))
    script.finish_phase("collect", 31.0, f"{episodes} episodes: {-(-episodes // 3)} won")


def distilled(script: Script) -> None:
    script.phase("distill", "Distill skills", 6, "calls")
    for version, new in enumerate(SKILLS, start=1):
        script.emit(ev.SkillAdded(skill=new, author="builtin", bank_version=version))
    refused = SkillProposal(name="Open doors", principle="Open closed things.")
    script.emit(ev.SkillRefused(proposal=refused, reason="too close to gen_001 (0.93)", phase="distill"))
    script.finish_phase("distill", 2.4, "6 skills from 6 episodes")


def fine_tuned(script: Script, steps: int = 32) -> None:
    script.phase("sft", "Cold-start SFT", steps, "steps")
    for step in range(1, steps + 1):
        loss = 0.2 + 1.6 / step
        metrics = {
            "loss": loss,
            "mean_token_accuracy": 1 - loss / 3,
            "grad_norm": 1.2 / step,
            "learning_rate": 2e-3,
        }
        script.emit(ev.SftStepped(step=step, total=steps, metrics=metrics))
    script.finish_phase("sft", 95.0, "32 steps, loss 0.25")


def reinforced(script: Script, steps: int = 8, total: int = 12) -> None:
    """RL that is still going on: a validation, an evolution, three episodes in flight."""
    script.phase("rl", "RL (GRPO)", total, "steps")
    for step in range(1, steps + 1):
        script.episode(won=step % 4 != 0)
        success = 0.4 + 0.05 * step
        metrics = {
            "reward": success - 0.03, "reward_std": 0.3, "success": success, "success/Heat": success - 0.1,
            "kl": 0.001 * step, "entropy": 1.1 - 0.05 * step, "clip_ratio/high_mean": 0.01, "grad_norm": 0.4,
        }  # fmt: skip
        script.emit(ev.GrpoStepped(step=step, total=total, metrics=metrics), seconds=6)
        script.emit(
            ev.PhaseProgressed(phase="rl", done=step, total=total, detail=f"reward {success - 0.03:.2f}")
        )
    heat, clean = rate(3, 8, 0.14, 0.69), rate(7, 8, 0.53, 0.98)
    script.emit(
        ev.Validated(step=8, overall=rate(34, 48, 0.57, 0.82), categories={"Heat": heat, "Clean": clean})
    )
    added = skill(
        "heat_003",
        "Close the loop",
        "When the microwave was used twice, leave it and place the object.",
        "Heat",
    )
    script.emit(
        ev.SkillAdded(skill=added, author="builtin", bank_version=7, reason="4 of 5 failures reopened it")
    )
    script.emit(
        ev.Evolved(
            cycle=1, step=8, rates={"Heat": heat, "Clean": clean}, failing=("Heat",), failures=("e0010",),
            prompt="Failures of Heat …", reply="Close the loop …", accepted=("heat_003",),
            refused=("Sink first: already known",),
        )
    )  # fmt: skip
    for position in range(3):
        episode = script.start_episode()
        for index in range(5 - position):
            script.step(episode, index)


def running_run(path: Path | None = None) -> Script:
    """A run in the middle of RL."""
    script = Script(path)
    script.open()
    script.emit(
        ev.WorkerStarted(model="krill-tiny", parameters=1_900_000, trainable=120_000, device="cpu", version=0)
    )
    script.emit(ev.Evaluated(stage="base", split="test", overall=rate(20, 140, 0.09, 0.21), categories={}))
    collected(script)
    distilled(script)
    fine_tuned(script)
    script.emit(ev.Evaluated(stage="sft", split="test", overall=rate(92, 140, 0.57, 0.73), categories={}))
    reinforced(script)
    return script


def finished_run(path: Path | None = None) -> Script:
    """A run that went through."""
    script = running_run(path)
    for episode in ("e0015", "e0016", "e0017"):
        script.finish_episode(episode, won=True, steps=6)
    script.finish_phase("rl", 260.0, "12 steps, success 71 % → 92 %")
    script.emit(ev.Evaluated(stage="rl", split="test", overall=rate(129, 140, 0.87, 0.95), categories={}))
    script.emit(ev.RunFinished(outcome="completed"))
    return script


def hostile_run() -> Script:
    """Every text a model or a world can write tries to be more than text."""
    evil = (
        "[bold]x[/bold] \x1b[31mred\x1b[0m [@click=app.quit]quit[/] \x1b]0;title\x07 a\u200bb \u202egnp\u202c 🦐"
        + "y" * 3000
    )
    script = Script()
    script.open()
    script.phase("collect", "Collect", 1, "episodes")
    script.emit(
        ev.EpisodeStarted(
            episode="bad", number=1, purpose="collect", task_id=evil, task=evil, category=evil, split=evil,
            policy=evil, skills=("gen_001",), system=evil + " [gen_001]", max_steps=5,
        )
    )  # fmt: skip
    step = Step(
        index=0, observation=evil, admissible=(evil,), thought=evil, action=evil, text=evil, valid=False
    )
    script.emit(ev.EpisodeStepped(episode="bad", step=step))
    script.emit(
        ev.SkillAdded(
            skill=skill("gen_001", evil, evil, evil, when_to_apply=evil), author=evil, bank_version=1
        )
    )
    script.emit(ev.GrpoStepped(step=1, total=2, metrics={"success/" + evil: 0.5, "nan": float("nan")}))
    script.emit(ev.GrpoStepped(step=2, total=2, metrics={"success/" + evil: 0.6, "nan": float("nan")}))
    script.emit(ev.Noted(level="error", message=evil))
    script.emit(ev.PhaseProgressed(phase="collect", done=0, total=1, detail=evil))
    return script
