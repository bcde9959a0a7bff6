"""An outage is waited for, a broken game is counted, and neither is ever a lost game."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from krill_tui.agent.collect import run_episodes
from krill_tui.agent.outage import TRIES, Patience
from krill_tui.agent.rollout import Rollout
from krill_tui.cli.app import run
from krill_tui.config.load import load_config
from krill_tui.engine.evaluate import broke, success_rates
from krill_tui.engine.reinforce import step_metrics
from krill_tui.engine.run_store import list_runs
from krill_tui.engine.session import Session
from krill_tui.engine.state import RunState
from krill_tui.envs.alfworld.source import BuiltinSource
from krill_tui.errors import EnvironmentFailure, ModelError
from krill_tui.events import schema as ev
from krill_tui.events.journal import read_journal
from krill_tui.skills.evolve import category_rates
from krill_tui.trajectory import StopReason, Task
from krill_tui.tui.widgets.episode_list import EpisodeList
from tests.alfworld_games import write_game
from tests.cut_wire import CutWire
from tests.episodes import episode
from tests.faulty_endpoint import FaultyEndpoint
from tests.serving import served
from tests.test_rollout import WIN, options, spec
from tests.worlds import Corridor, Talker

QUICK: dict[str, object] = {"first_wait": 0.02, "longest_wait": 0.1}


@asynccontextmanager
async def session(name: str = "run", **sections: Mapping[str, object]) -> AsyncIterator[Session]:
    base: dict[str, dict[str, object]] = {
        "policy": {"kind": "expert"},
        "env": {"concurrency": 2, "world_size": "small", "max_steps": 50},
        "evaluation": {"episodes": 8},
        "faults": QUICK,
    }
    asked = {**base, **{key: {**base.get(key, {}), **values} for key, values in sections.items()}}
    opened = await Session.open(name, load_config(overrides=asked, environ={}))
    try:
        yield opened
    finally:
        await opened.close()


@asynccontextmanager
async def wired() -> AsyncIterator[CutWire]:
    async with served(BuiltinSource("small", 0)) as url, CutWire(urlsplit(url).port or 0) as wire:
        yield wire


def notes(opened: Session) -> list[str]:
    return [e.message for e in read_journal(opened.store.events_file) if isinstance(e, ev.Noted)]


class Corridors:
    """Many corridors; `breaks` says of a game and its try (from 1) what breaks in its first move, if anything."""

    def __init__(self, breaks: Callable[[str, int], Exception | None]) -> None:
        self.breaks = breaks
        self.tries: Counter[str] = Counter()

    def open(self, task: Task) -> Corridor:
        self.tries[task.id] += 1
        fault = self.breaks(task.id, self.tries[task.id])

        class World(Corridor):
            async def reset(self):
                if fault is not None:
                    raise fault
                return await super().reset()

        return World(task)


async def play(
    worlds: Corridors, games: int = 8, *, concurrency: int = 2, patience: Patience | None = None
) -> tuple[list[Rollout], list[ev.BaseEvent]]:
    events: list[ev.BaseEvent] = []
    rollouts = await asyncio.wait_for(
        run_episodes(
            [spec(n) for n in range(games)],
            worlds.open,
            Talker(WIN),
            options(),
            concurrency=concurrency,
            emit=events.append,
            on_finished=lambda _: None,
            patience=patience or Patience(0.01, 0.05, 5),
        ),
        20,
    )
    return rollouts, events


def away() -> EnvironmentFailure:
    return EnvironmentFailure("no connection", unreachable=True)


async def test_a_server_that_goes_and_comes_back_costs_no_game():
    async with wired() as wire:
        live = {"backend": "http", "url": wire.url}
        async with session("whole", env=live) as opened:
            opened.launch(["evaluate"])
            assert await opened.wait() == "completed"
            whole = opened.state.evaluations["eval"].overall
        async with session("cut", env=live) as opened:
            ended = 0

            def count(event: ev.Event) -> None:
                nonlocal ended
                ended += isinstance(event, ev.EpisodeFinished)
                if ended == 4 and isinstance(event, ev.EpisodeFinished):
                    wire.cut()
                if isinstance(event, ev.Noted) and "trying again" in event.message:
                    later.append(asyncio.create_task(wire.mend()))

            later: list[asyncio.Task[None]] = []
            opened.bus.subscribe(count)
            opened.launch(["evaluate"])
            assert await opened.wait() == "completed"
            assert opened.state.evaluations["eval"].overall == whole, "an outage changed the result"
            assert whole.episodes == 8 and not whole.errors
            said = notes(opened)
            assert any("no answer" in n and "trying again in" in n for n in said), said
            assert any("answered again" in n for n in said)
            assert not opened.state.live and opened.state.episodes_done == 8
            assert all(t.stop_reason is not StopReason.ERROR for t in opened.episodes.read())


async def test_a_server_that_stays_away_fails_the_phase_and_the_same_command_goes_on():
    async with wired() as wire:
        live = {"backend": "http", "url": wire.url}

        def cut(event: ev.Event) -> None:
            if isinstance(event, ev.EpisodeFinished):
                wire.cut()

        async with session(env=live, faults=QUICK | {"patience": 0.3}) as opened:
            opened.bus.subscribe(cut)
            opened.launch(["evaluate"])
            assert await opened.wait() == "failed"
            assert "given up" in str(opened.error) and "no connection" in str(opened.error)
            kept = len(opened.episodes)
            assert kept and not opened.state.evaluations and not opened.episodes.broken()
        await wire.mend()
        async with session(env=live) as opened:
            opened.launch(["evaluate"])
            assert await opened.wait() == "completed"
            assert opened.state.evaluations["eval"].overall.episodes == 8
            assert opened.state.episodes_done == 8


async def test_a_refused_key_ends_the_phase_at_once_and_nothing_is_written_down():
    model = {"policy_model_id": "m"}
    fault = "401"
    async with FaultyEndpoint(fault=lambda _: fault) as server:  # type: ignore[arg-type]
        endpoint = {
            "policy": {"kind": "openai"},
            "env": {"max_steps": 2},
            "model": model | {"policy_api_base": server.url},
            "collect": {"episodes": 6},
        }
        async with session(**endpoint) as opened:
            opened.launch(["collect"])
            assert await opened.wait() == "failed"
            assert "401" in str(opened.error)
            assert len(server.requests) <= 2, "more calls with a key that was refused"
            assert not len(opened.episodes)
        fault = ""
        async with session(**endpoint) as opened:
            opened.launch(["collect"])
            assert await opened.wait() == "completed"
            assert len(opened.episodes.read("collect")) == 6


async def test_while_nobody_answers_one_episode_tries_at_a_time():
    down = 12
    worlds = Corridors(lambda game, n: away() if sum(worlds.tries.values()) <= down else None)
    rollouts, events = await play(worlds, 20, concurrency=8)
    assert [r.trajectory.success for r in rollouts] == [True] * 20
    waits = [e.message for e in events if isinstance(e, ev.Noted) and "trying again" in e.message]
    assert len(waits) == down
    assert sum(isinstance(e, ev.EpisodeInterrupted) for e in events) == down


async def test_patience_ends_and_the_error_says_who_did_not_answer():
    with pytest.raises(EnvironmentFailure, match="given up: no connection") as caught:
        await play(Corridors(lambda game, n: away()), patience=Patience(0.01, 0.02, 0.1))
    assert caught.value.unreachable


@pytest.mark.parametrize("concurrency", [1, 3])
@pytest.mark.parametrize("broken", ["corridor/2", "corridor/7", "corridor/0"])
async def test_one_game_that_never_answers_is_an_error_and_no_outage(concurrency: int, broken: str):
    worlds = Corridors(lambda game, n: away() if game == broken else None)
    rollouts, _ = await play(worlds, concurrency=concurrency)
    ends = {r.trajectory.task_id: r.trajectory.stop_reason for r in rollouts}
    assert ends.pop(broken) is StopReason.ERROR
    assert set(ends.values()) == {StopReason.SUCCESS} and len(ends) == 7
    assert worlds.tries[broken] < 5 * TRIES


@pytest.mark.parametrize("concurrency", [1, 4])
async def test_a_server_that_dies_in_the_middle_of_every_episode_ends_the_play_somehow(concurrency: int):
    class Dying(Corridor):
        async def step(self, action: str):
            if self._steps == 2:
                raise away()
            return await super().step(action)

    worlds = Corridors(lambda game, n: None)
    worlds.open = lambda task: Dying(task)  # type: ignore[method-assign]
    rollouts, _ = await play(worlds, 5, concurrency=concurrency)
    assert {r.trajectory.stop_reason for r in rollouts} == {StopReason.ERROR}


async def test_a_refusal_for_good_ends_the_play_at_once():
    refused = ModelError("no such model", permanent=True)
    worlds = Corridors(lambda game, n: refused)
    with pytest.raises(ModelError, match="no such model"):
        await play(worlds, 50, concurrency=2)
    assert sum(worlds.tries.values()) <= 2


async def test_a_probe_that_breaks_by_itself_ends_the_waiting():
    def breaks(game: str, n: int) -> Exception | None:
        if sum(worlds.tries.values()) <= 2:
            return away()
        return EnvironmentFailure("500") if game == "corridor/0" else None

    worlds = Corridors(breaks)
    rollouts, _ = await play(worlds, 4, concurrency=1)
    assert [r.trajectory.stop_reason for r in rollouts].count(StopReason.SUCCESS) == 3


def test_a_rate_is_of_the_episodes_that_were_played_and_says_how_many_broke():
    played = [
        episode("a", success=True),
        episode("b", success=False),
        episode("c", success=False, stop=StopReason.ERROR),
        episode("d", success=True, stop=StopReason.CANCELLED),
    ]
    overall, categories = success_rates(played)
    assert (overall.wins, overall.episodes, overall.errors) == (1, 2, 1)
    assert overall.rate == 0.5 and overall.if_lost == pytest.approx(1 / 3)
    assert sum(rate.errors for rate in categories.values()) == 1
    assert broke(overall, "it burned") == "1 of 3 broke: it burned; counted as lost: 33.3%"


GOOD: dict[str, object] = {"backend": "games", "max_steps": 20}


def dataset(folder: Path, games: int, broken: int) -> dict[str, object]:
    """Settings that play `games` copies of one kitchen, of which the first `broken` cannot be opened."""
    for n in range(games):
        place = (
            folder / f"json_2.1.1/valid_seen/pick_heat_then_place_in_recep-Mug-None-CounterTop-{n}/trial_{n}"
        )
        place.mkdir(parents=True)
        whole = write_game(place)
        if n < broken:
            size = whole.stat().st_size
            write_game(place, pddl_problem="(define (problem kitchen) (:init) (:goal (nonsense)))")
            # A file of another size would be another dataset.
            whole.write_bytes(whole.read_bytes().ljust(size))
    return GOOD | {"data_dir": str(folder)}


def repair(folder: Path) -> None:
    for game in folder.rglob("game.tw-pddl"):
        write_game(game.parent)


async def test_broken_games_fail_the_phase_with_their_count_and_the_first_reason(tmp_path: Path):
    async with session(env=dataset(tmp_path, 4, 3)) as opened:
        opened.launch(["evaluate"])
        assert await opened.wait() == "failed"
        assert "3 of 4 episodes broke, the first: " in str(opened.error)
        assert not opened.state.evaluations, "a rate was made of it"
        report = (opened.store.path / "report.md").read_text()
        assert "3 episodes broke and are owed; the first: " in report


async def test_below_the_limit_a_rate_is_of_what_was_played_and_says_what_broke_everywhere(tmp_path: Path):
    async with session(env=dataset(tmp_path, 4, 1), faults={"max_error_rate": 0.25}) as opened:
        opened.launch(["evaluate"])
        assert await opened.wait() == "completed"
        evaluated = opened.state.evaluations["eval"]
        assert (evaluated.overall.wins, evaluated.overall.episodes, evaluated.overall.errors) == (3, 3, 1)
        assert evaluated.weights == "expert" and evaluated.first_error
        assert opened.state.episodes_done == 3 and len(opened.state.broken) == 1
        line = f"1 of 4 broke: {evaluated.first_error}; counted as lost: 75.0%"
        assert opened.state.phase and opened.state.phase.summary.endswith(line)
        report = (opened.store.path / "report.md").read_text()
        assert "of 3, 1 broke |" in report and "counted as lost: 75.0%" in report


async def test_an_episode_that_broke_is_played_again_with_its_seed_when_the_run_goes_on(tmp_path: Path):
    settings = dataset(tmp_path, 4, 1)
    async with session(env=settings) as opened:
        opened.launch(["evaluate"])
        assert await opened.wait() == "failed"
        [owed] = opened.episodes.broken("evaluate")
        assert owed.error and owed.id not in opened.episodes
    repair(tmp_path)
    async with session(env=settings) as opened:
        assert list(opened.state.broken) == [owed.id], "what the journal says is read back"
        opened.launch(["evaluate"])
        assert await opened.wait() == "completed"
        again = {t.id: t for t in opened.episodes.read("evaluate")}
        assert len(again) == 4 and again[owed.id].seed == owed.seed and again[owed.id].success
        rate = opened.state.evaluations["eval"].overall
        assert (rate.wins, rate.episodes, rate.errors) == (4, 4, 0)
        assert not opened.state.broken and opened.state.episodes_done == 4
        assert [v.id for v in opened.state.finished].count(owed.id) == 1
    lines = [json.loads(line)["id"] for line in opened.store.trajectories_file.read_text().splitlines()]
    assert Counter(lines)[owed.id] == 2, "both tries are written down, and the later one counts"
    async with session(env=settings) as opened:
        assert len(opened.episodes.read("evaluate")) == 4 and not opened.episodes.broken()
        assert opened.state.episodes_done == 4


async def test_an_end_that_was_written_down_but_not_said_after_an_error_is_said_when_the_run_opens(
    tmp_path: Path,
):
    settings = dataset(tmp_path, 4, 1)
    async with session(env=settings) as opened:
        opened.launch(["evaluate"])
        await opened.wait()
        [owed] = opened.episodes.broken()
        opened.episodes.append(owed.model_copy(update={"stop_reason": StopReason.FAILURE, "error": None}))
    async with session(env=settings) as opened:
        assert not opened.state.broken and owed.id in opened.state.finished_ids
        assert opened.state.episodes_done == 4


async def test_a_run_of_broken_games_alone_fails_and_owes_them_all(tmp_path: Path):
    async with session(env=dataset(tmp_path, 8, 8), faults={"max_error_rate": 1.0}) as opened:
        opened.launch(["evaluate"])
        assert await opened.wait() == "failed"
        assert "8 of 8 episodes broke" in str(opened.error)
        assert len(opened.episodes) == 0 and len(opened.episodes.broken()) == 8


async def test_when_far_too_many_broke_the_rest_is_not_tried(tmp_path: Path):
    async with session(env=dataset(tmp_path, 60, 60), evaluation={"episodes": 60}) as opened:
        opened.launch(["evaluate"])
        assert await opened.wait() == "failed"
        assert "10 of 10 episodes broke" in str(opened.error)


def test_the_state_takes_an_error_and_the_later_end_as_one_episode():
    state = RunState()
    ended = ev.EpisodeFinished(
        episode="e",
        purpose="evaluate",
        category="Pick",
        success=False,
        stop_reason=StopReason.ERROR,
        steps=0,
        total_reward=0,
        error="gone",
    )
    state.apply(ended)
    assert state.broken == {"e": "gone"} and (state.episodes_done, state.wins) == (0, 0)
    won = ended.model_copy(update={"success": True, "stop_reason": StopReason.SUCCESS, "error": None})
    state.apply(won)
    assert not state.broken and (state.episodes_done, state.wins) == (1, 1)


async def test_a_split_without_games_is_refused_and_the_splits_that_hold_some_are_named(tmp_path: Path):
    async with session(env=dataset(tmp_path, 2, 0), evaluation={"split": "valid_unseen"}) as opened:
        opened.launch(["evaluate"])
        assert await opened.wait() == "failed"
        assert "valid_seen" in str(opened.error) and not opened.state.evaluations


@pytest.mark.parametrize("command", ["train", "sft", "rl"])
def test_a_policy_that_cannot_be_trained_is_refused_before_a_run_is_made(
    command: str, capfd: pytest.CaptureFixture[str]
):
    assert run([command, "--mock", "--set", "policy.kind=openai", "--run", "r", "--display", "none"]) == 2
    said = capfd.readouterr().err
    assert "policy 'openai' cannot be" in said and "new run" not in said
    assert list_runs() == []


def test_other_certain_refusals_come_first_too(capfd: pytest.CaptureFixture[str]):
    for setting, line in {
        ("policy.accelerate_config", "nowhere.yaml"): "there is no such file",
        ("policy.adapter", "/nowhere"): "there is no such checkpoint",
        ("policy.sampler", "vllm"): "cannot bind replies to the admissible actions",
    }.items():
        assert run(["train", "--mock", f"--set={setting[0]}={setting[1]}", "--display", "none"]) == 2
        assert line in capfd.readouterr().err
    assert list_runs() == []


async def test_the_list_of_episodes_says_what_broke_beside_the_rate():
    state = RunState()
    for name, stop in (("a", StopReason.SUCCESS), ("b", StopReason.FAILURE), ("c", StopReason.ERROR)):
        ended = ev.EpisodeFinished(
            episode=name,
            purpose="evaluate",
            category="Pick",
            success=stop is StopReason.SUCCESS,
            stop_reason=stop,
            steps=0,
            total_reward=0,
        )
        state.apply(ended)
    assert EpisodeList().title(state).plain == "Episodes 2 done · 50 % ✔ · 1 broke ‼"


def test_a_step_of_rl_counts_what_broke_apart():
    played = [episode("a", success=True), episode("b", success=False)]
    metrics = step_metrics(played, [[1.0, 0.0]], errors=2)
    assert (metrics["success"], metrics["errors"]) == (0.5, 0.5)


def test_evolution_takes_no_broken_episode_for_a_failure():
    rates = category_rates([episode("a", success=True), episode("b", success=False, stop=StopReason.ERROR)])
    assert [(rate.wins, rate.episodes) for rate in rates.values()] == [(1, 1)]
