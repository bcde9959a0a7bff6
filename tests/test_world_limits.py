"""What a world may say (krill_tui/envs/limits.py)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from krill_tui.envs.base import StepResult
from krill_tui.envs.limits import ANY_WORLD, SERVER, Room, admitted, admitted_task
from krill_tui.trajectory import Task

_ANY = st.text(st.characters(), max_size=60)


@given(_ANY, st.lists(_ANY, max_size=12), st.floats(-1e6, 1e6), st.integers(2, 40))
def test_whatever_is_said_is_storable_and_bounded_and_the_rest_is_counted(
    observation: str, actions: list[str], reward: float, size: int
) -> None:
    room = Room(observation=size, actions=size, most_actions=5)
    result = admitted(StepResult(observation, tuple(actions), reward), room)
    "".join((result.observation, *result.admissible)).encode()
    assert sum(map(len, result.admissible)) <= size
    assert len(result.admissible) <= 5
    left_out = len(actions) - len(result.admissible)
    assert (f"[{left_out} more actions" in result.observation) == (left_out > 0)
    assert len(result.observation) <= size + 150
    assert result.reward == reward


@given(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.lists(st.text(st.characters(exclude_categories=["Cs"]))),
)
def test_what_ordinary_worlds_say_is_not_touched(observation: str, actions: list[str]) -> None:
    result = StepResult(observation, tuple(actions), 1.0)
    assert admitted(result, SERVER) is result
    assert admitted(result, ANY_WORLD) is result


@given(_ANY, _ANY)
def test_task_and_category_are_one_clean_line(description: str, category: str) -> None:
    task = admitted_task(
        Task(id="t", env="alfworld", split="test", description=description * 100, category=category * 10)
    )
    f"{task.description}{task.category}".encode()
    assert len(task.description) <= 2000
    assert len(task.category) <= 60
    assert "\x1b" not in task.category and "\n" not in task.category
