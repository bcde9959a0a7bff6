"""Small hand-written household episodes that tests read."""

from __future__ import annotations

from collections.abc import Sequence

from krill_tui.trajectory import Step, StopReason, Trajectory

ROOM = "You are in the middle of a room. Looking quickly around you, you see a cabinet 1, a microwave 1, and a shelf 1."


def episode(
    id: str = "e1",
    *,
    task: str = "heat some mug and put it in shelf.",
    category: str = "Heat",
    split: str = "train",
    success: bool = True,
    play: Sequence[tuple[str, str]] | None = None,
    task_id: str = "",
    stop: StopReason | None = None,
    skills: tuple[str, ...] = (),
    cited: tuple[str, ...] = (),
    env: str = "alfworld",
) -> Trajectory:
    """An episode from (action, answer) pairs; by default a mug is heated and put on the shelf."""
    play = list(HEAT if play is None else play)
    observations = [f"{ROOM}\n\nYour task is to: {task}", *(answer for _, answer in play)]
    steps = tuple(
        Step(index=i, observation=observations[i], action=action, text=action)
        for i, (action, _) in enumerate(play)
    )
    return Trajectory(
        id=id,
        env=env,
        task_id=task_id or f"game/{id}",
        split=split,
        task=task.rstrip("."),
        category=category,
        steps=steps,
        final_observation=observations[-1],
        total_reward=float(success),
        success=success,
        stop_reason=stop or (StopReason.SUCCESS if success else StopReason.STEP_LIMIT),
        skills=skills,
        cited=cited,
    )


HEAT = (
    ("go to cabinet 1", "You arrive at cabinet 1. The cabinet 1 is closed."),
    (
        "open cabinet 1",
        "You open the cabinet 1. The cabinet 1 is open. In it, you see a mug 1, and a plate 2.",
    ),
    ("take mug 1 from cabinet 1", "You pick up the mug 1 from the cabinet 1."),
    ("go to microwave 1", "You arrive at microwave 1. The microwave 1 is closed."),
    ("heat mug 1 with microwave 1", "You heat the mug 1 using the microwave 1."),
    ("go to shelf 1", "You arrive at shelf 1. On the shelf 1, you see a vase 1."),
    ("move mug 1 to shelf 1", "You move the mug 1 to the shelf 1."),
)

LOST = (
    ("go to cabinet 1", "You arrive at cabinet 1. The cabinet 1 is closed."),
    ("go to microwave 1", "You arrive at microwave 1. The microwave 1 is closed."),
    ("go to cabinet 1", "You arrive at cabinet 1. The cabinet 1 is closed."),
    ("go to microwave 1", "You arrive at microwave 1. The microwave 1 is closed."),
    ("go to cabinet 1", "You arrive at cabinet 1. The cabinet 1 is closed."),
    ("take mug 1 from shelf 1", "Nothing happens."),
    ("take mug 1 from shelf 1", "Nothing happens."),
    ("take mug 1 from shelf 1", "Nothing happens."),
)
"""Goes back and forth between two closed places, then repeats what does nothing."""
