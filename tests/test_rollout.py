"""What the rollout promises (krill_tui/agent/rollout.py)."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from krill_tui.agent.collect import run_episodes
from krill_tui.agent.gate import Gate
from krill_tui.agent.prompts import PromptOptions
from krill_tui.agent.rollout import EpisodeSpec, Rollout, RolloutOptions, conversation, run_episode
from krill_tui.envs.base import StepResult
from krill_tui.errors import WorkerDiedError
from krill_tui.events import schema as ev
from krill_tui.models.base import ActReply, ActRequest, Sampling
from krill_tui.skill import Skill
from krill_tui.trajectory import StopReason, Task
from tests.worlds import Corridor, Talker, door, task

WIN = [door(1), door(2), door(3)]
SKILL = Skill(id="gen_001", name="Doors", principle="open the doors in order")


def spec(number: int = 0) -> EpisodeSpec:
    return EpisodeSpec(
        id=f"collect-{number}", number=number + 1, task=task(number), seed=number, purpose="collect"
    )


def options(max_steps: int = 10) -> RolloutOptions:
    return RolloutOptions(max_steps, PromptOptions(), Sampling())


async def play(
    policy: Talker, *, max_steps: int = 10, env: Corridor | None = None, events: list | None = None
):
    world = env or Corridor(task())
    sink = [] if events is None else events

    async def select(task: Task):
        return (SKILL,), 7

    return await run_episode(
        spec(), lambda _: world, policy, options(max_steps), emit=sink.append, select=select
    )


async def test_a_won_episode_records_every_step_and_the_skills_of_its_prompt():
    rollout = await play(Talker([door(1, "do it [gen_001] [gen_002]"), door(2), door(3)]))
    trajectory = rollout.trajectory
    assert trajectory.success and trajectory.stop_reason is StopReason.SUCCESS
    assert [step.action for step in trajectory.steps] == ["open door 1", "open door 2", "open door 3"]
    assert [step.reward for step in trajectory.steps] == [0.0, 0.0, 1.0]
    assert trajectory.skills == ("gen_001",) and trajectory.cited == ("gen_001",)
    assert trajectory.bank_version == 7
    assert "open the doors in order" in trajectory.system
    assert trajectory.task == "open 3 doors"


async def test_the_token_sequence_is_what_was_seen_and_said_in_order_with_the_mask_on_the_policys_own():
    rollout = await play(Talker(WIN))
    tokens = rollout.tokens
    assert tokens is not None
    assert len(tokens.ids) == len(tokens.mask) == len(tokens.logprobs)
    said = "".join(chr(i) for i, own in zip(tokens.ids, tokens.mask, strict=True) if own)
    assert said == "".join(WIN)
    assert all(p == 0.0 for p, own in zip(tokens.logprobs, tokens.mask, strict=True) if not own)


async def test_unparsable_and_inadmissible_actions_are_invalid_and_reach_the_environment_as_they_are():
    rollout = await play(Talker(["mumble", "<action>fly</action>", *WIN]))
    assert [step.valid for step in rollout.trajectory.steps] == [False, False, True, True, True]
    assert rollout.trajectory.invalid_actions == 2
    assert rollout.trajectory.steps[2].observation == "Nothing happens."


async def test_the_step_limit_ends_an_episode_without_success():
    rollout = await play(Talker([door(9)]), max_steps=4)
    assert rollout.trajectory.stop_reason is StopReason.STEP_LIMIT
    assert len(rollout.trajectory.steps) == 4 and not rollout.trajectory.success


async def test_a_broken_environment_ends_its_episode_as_an_error_and_is_closed():
    env = Corridor(task(), breaks_at=2)
    rollout = await play(Talker(WIN), env=env)
    assert rollout.trajectory.stop_reason is StopReason.ERROR
    assert rollout.trajectory.error == "the corridor collapsed"
    assert len(rollout.trajectory.steps) == 1
    assert env.closed


async def test_events_say_start_and_steps_as_they_happen():
    events: list[ev.BaseEvent] = []
    await play(Talker(WIN), events=events)
    assert [type(event).__name__ for event in events] == ["EpisodeStarted"] + ["EpisodeStepped"] * 3
    started = events[0]
    assert isinstance(started, ev.EpisodeStarted) and started.skills == ("gen_001",)


async def test_the_conversation_read_back_from_the_record_is_the_one_that_was_played():
    seen: list[list[str]] = []

    class Listener(Talker):
        async def act(self, request: ActRequest) -> ActReply:
            seen.append([message["content"] for message in request.messages])
            return await super().act(request)

    world = Corridor(task())
    rollout = await run_episode(spec(), lambda _: world, Listener(WIN), options(), emit=lambda _: None)
    read = [m["content"] for m in conversation(rollout.trajectory, world.task, options().prompt)]
    assert read[:-1] == seen[-1]
    assert read[-1] == WIN[-1]


async def test_many_episodes_run_at_once_and_one_that_breaks_leaves_the_others_alone():
    policy = Talker(WIN)
    finished: list[Rollout] = []

    def world(task: Task) -> Corridor:
        return Corridor(task, breaks_at=1 if task.id.endswith("/3") else None)

    rollouts = await run_episodes(
        [spec(n) for n in range(10)],
        world,
        policy,
        options(),
        concurrency=4,
        emit=lambda _: None,
        on_finished=finished.append,
    )
    assert policy.most_live == 4
    assert [r.trajectory.id for r in rollouts] == [f"collect-{n}" for n in range(10)]
    assert len(finished) == 10
    ends = [r.trajectory.stop_reason for r in rollouts]
    assert ends[3] is StopReason.ERROR and ends.count(StopReason.SUCCESS) == 9
    assert not policy.live


async def test_the_death_of_the_worker_is_not_an_episodes_failure():
    class Dead(Talker):
        async def act(self, request: ActRequest) -> ActReply:
            raise WorkerDiedError("gone")

    with pytest.raises(WorkerDiedError, match="gone"):
        await run_episodes(
            [spec()],
            lambda task: Corridor(task),
            Dead(WIN),
            options(),
            concurrency=1,
            emit=lambda _: None,
            on_finished=lambda _: None,
        )


async def test_a_paused_gate_holds_every_turn_and_a_step_lets_one_through():
    gate = Gate()
    gate.pause()
    stepped = asyncio.Queue[ev.BaseEvent]()

    def emit(event: ev.BaseEvent) -> None:
        if isinstance(event, ev.EpisodeStepped):
            stepped.put_nowait(event)

    playing = asyncio.create_task(
        run_episode(spec(), lambda t: Corridor(t), Talker(WIN), options(), emit=emit, gate=gate)
    )
    await asyncio.wait_for(gate.someone_waits(), 5)
    assert gate.step()
    await asyncio.wait_for(stepped.get(), 5)
    await asyncio.wait_for(gate.someone_waits(), 5)
    assert stepped.empty()
    gate.resume()
    assert (await playing).trajectory.success


class _Hostile(Corridor):
    """Says `said` and gives `reward` at every step, without end."""

    def __init__(self, said: StepResult, category: str = "Pick") -> None:
        super().__init__(task())
        self.task = self.task.model_copy(update={"category": category, "description": "open\ud800 it" * 3000})
        self._said = said

    async def reset(self) -> StepResult:
        return replace(self._said, reward=0.0)

    async def step(self, action: str) -> StepResult:
        return self._said


class _Endpoint(Talker):
    """A policy without tokens."""

    async def act(self, request: ActRequest) -> ActReply:
        return ActReply((await super().act(request)).text)


@pytest.mark.parametrize("reward", [1e308, -1e308, float("inf"), float("nan"), 1e7])
async def test_a_reward_that_is_no_sensible_number_ends_the_episode_as_an_error(reward: float):
    trajectory = (await play(Talker(WIN), env=_Hostile(StepResult("o", reward=reward)))).trajectory
    assert trajectory.stop_reason is StopReason.ERROR
    assert "reward" in (trajectory.error or "")
    assert trajectory.total_reward == 0.0


async def test_what_a_world_says_is_storable_and_bounded():
    actions = tuple(f"{n} {'x' * 100}\udfff" for n in range(100_000))
    said = StepResult("\ud800" + "o" * 4_000_000 + "end", (*actions[:5], "y" * 5000, *actions[5:]))
    events: list[ev.BaseEvent] = []
    world = _Hostile(said, category="Pick\x1b]0;title\x07\n| \u202e" + "x" * 1000)
    trajectory = (await play(Talker(WIN), env=world, max_steps=3, events=events)).trajectory
    text = trajectory.model_dump_json()
    assert len(text) < 2_000_000
    assert len("".join(event.model_dump_json() for event in events)) < 2_000_000
    step = trajectory.steps[0]
    assert "characters cut" in step.observation
    assert "more actions were possible" in step.observation
    assert 0 < len(step.admissible) < 3000
    assert len(trajectory.task) == 2000
    assert "\x1b" not in trajectory.category and "\n" not in trajectory.category
    assert len(trajectory.category) <= 60


async def test_a_reply_of_any_length_and_with_lone_surrogates_is_written_down_and_its_action_counts():
    reply = "<think>\ud800" + "hm " * 1_000_000 + "</think><action>open door 1</action>"
    policy = _Endpoint([reply])
    seen: list[ActRequest] = []
    act = policy.act

    async def watched(request: ActRequest) -> ActReply:
        seen.append(request)
        return await act(request)

    policy.act = watched
    trajectory = (await play(policy, max_steps=2)).trajectory
    trajectory.model_dump_json()
    assert trajectory.steps[0].action == "open door 1"
    assert "characters cut" in trajectory.steps[0].text
    assert len(trajectory.steps[0].text) < 33_000
    assert len(seen[1].messages[2]["content"]) < 33_000


async def test_the_words_of_what_broke_are_one_storable_line():
    class Broken(Corridor):
        async def step(self, action: str) -> StepResult:
            raise ValueError("bad\ud800\n" + "x" * 100_000)

    trajectory = (await play(Talker(WIN), env=Broken(task()))).trajectory
    assert trajectory.error is not None
    assert "ValueError: bad" in trajectory.error
    assert len(trajectory.error) <= 2000
    trajectory.model_dump_json()
