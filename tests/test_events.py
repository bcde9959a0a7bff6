"""Events, the journal, the bus and the run directory: what is written survives, what is torn is cut."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import typing
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from krill_tui.config.load import load_config
from krill_tui.engine.episodes import EpisodeFile, read_trajectory_lines
from krill_tui.engine.run_store import RunStore, existing_run, list_runs, run_path
from krill_tui.engine.state import RunState
from krill_tui.errors import DataError, RunLockedError, UsageError
from krill_tui.events import schema as ev
from krill_tui.events.bus import EventBus
from krill_tui.events.journal import Journal, JournalFollower, read_journal
from krill_tui.io.files import write_atomically
from krill_tui.skill import Skill, SkillOrigin, SkillStats
from krill_tui.trajectory import Step, StopReason, Trajectory

KINDS: tuple[type[ev.BaseEvent], ...] = typing.get_args(typing.get_args(ev.Event)[0])

# Text as models and worlds give it: any character that can be encoded.
st.register_type_strategy(Skill, st.builds(Skill, origin=st.builds(SkillOrigin), stats=st.builds(SkillStats)))
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def note(message: str) -> ev.Noted:
    return ev.Noted(message=message)


def trajectory(id_: str) -> Trajectory:
    return Trajectory(
        id=id_,
        env="alfworld",
        task_id="t",
        split="train",
        task="put a mug on a desk",
        category="Pick",
        stop_reason=StopReason.SUCCESS,
        steps=(Step(index=0, observation="a [bold]line[/]\n\x1b[31m", action="look"),),
    )


# Events


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_kind_of_event_survives_a_round_trip(kind: type[ev.BaseEvent], data: st.DataObject) -> None:
    fields: dict[str, st.SearchStrategy[typing.Any]] = {"kind": st.just(kind.model_fields["kind"].default)}
    if "config" in kind.model_fields:
        fields["config"] = st.dictionaries(text, st.integers() | text, max_size=3)
    event = data.draw(st.builds(kind, **fields))
    line = event.model_dump_json()
    json.loads(line, parse_constant=pytest.fail)  # NaN is no JSON
    assert "\n" not in line
    read = ev.event_adapter.validate_json(line)
    assert type(read) is kind
    assert read.model_dump_json() == line


def test_a_metric_that_is_no_number_survives() -> None:
    """A loss can become NaN; the run must stay readable."""
    event = ev.SftStepped(step=1, total=2, metrics={"loss": math.nan, "grad_norm": math.inf})
    read = ev.event_adapter.validate_json(event.model_dump_json())
    assert isinstance(read, ev.SftStepped)
    assert math.isnan(read.metrics["loss"])
    assert read.metrics["grad_norm"] == math.inf


def test_each_kind_has_its_own_name() -> None:
    names = [kind.model_fields["kind"].default for kind in KINDS]
    assert len(set(names)) == len(names) > 20


def test_an_unknown_kind_and_an_unknown_field_are_refused() -> None:
    for data in ({"kind": "exploded"}, {"kind": "noted", "message": "m", "colour": "red"}, {}):
        with pytest.raises(ValidationError):
            ev.event_adapter.validate_python(data)


def test_the_state_takes_in_every_kind_of_event() -> None:
    handled = {kind.model_fields["kind"].default for kind in KINDS}
    from krill_tui.engine.state import _HANDLERS

    assert set(_HANDLERS) == handled


# Journal and bus


def test_the_bus_numbers_and_times_events_and_the_journal_gives_them_back(tmp_path: Path) -> None:
    times = iter([10.0, 11.5])
    journal = Journal(tmp_path / "events.jsonl")
    bus = EventBus(journal, clock=lambda: next(times))
    heard: list[ev.Event] = []
    bus.subscribe(heard.append)
    bus.emit(note("one"))
    bus.emit(note("two"))
    journal.close()
    read = list(read_journal(journal.path))
    assert read == heard
    assert [(event.seq, event.time) for event in read] == [(1, 10.0), (2, 11.5)]


def test_numbers_go_on_when_a_journal_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for message in ("first", "second"):
        journal = Journal(path)
        EventBus(journal).emit(note(message))
        journal.close()
    assert [event.seq for event in read_journal(path)] == [1, 2]


@pytest.mark.parametrize("torn", [b"{", b'{"kind":"noted","mess', b"\x00" * 70_000])
def test_a_torn_last_line_is_cut_and_nothing_else(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "events.jsonl"
    journal = Journal(path)
    EventBus(journal).emit(note("whole"))
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    assert len(list(read_journal(path))) == 1
    assert path.read_bytes() == whole + torn, "reading changes nothing"
    journal = Journal(path)
    assert (journal.last_seq, path.read_bytes()) == (1, whole)
    EventBus(journal).emit(note("next"))
    journal.close()
    assert [event.seq for event in read_journal(path)] == [1, 2]


def test_a_journal_that_is_one_torn_line_starts_anew(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"kind": "no')
    journal = Journal(path)
    journal.close()
    assert (journal.last_seq, path.read_bytes()) == (0, b"")


def test_a_damaged_whole_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text(note("fine").model_dump_json() + "\nnonsense\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2 is not an event"):
        list(read_journal(path))
    with pytest.raises(DataError, match="cannot be read"):
        list(read_journal(tmp_path / "nowhere.jsonl"))


def test_a_follower_gives_each_event_once_when_its_line_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    follower = JournalFollower(path)
    assert follower.read_new() == []
    line = note("élan\u2028line").model_dump_json().encode() + b"\n"
    with path.open("ab", buffering=0) as file:
        file.write(line + line[:10])
        assert len(follower.read_new()) == 1
        assert follower.read_new() == []
        file.write(line[10:])
        assert [event.message for event in follower.read_new()] == ["élan\u2028line"]  # type: ignore[union-attr]


def test_a_listener_that_breaks_is_dropped_and_the_others_go_on(tmp_path: Path) -> None:
    bus = EventBus()
    heard: list[ev.Event] = []

    def broken(event: ev.Event) -> None:
        raise ValueError("no screen")

    bus.subscribe(broken)
    stop = bus.subscribe(heard.append)
    bus.emit(note("one"))
    bus.emit(note("two"))
    stop()
    bus.emit(note("three"))
    assert [event.seq for event in heard] == [1, 2, 3]
    assert bus.broken == ["ValueError: no screen"]


def test_the_same_events_make_the_same_state(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "events.jsonl")
    bus = EventBus(journal)
    live = RunState()
    bus.subscribe(live.apply)
    bus.emit(ev.PhaseStarted(phase="collect", title="Collecting", total=2, unit="episodes"))
    bus.emit(ev.PhaseProgressed(phase="collect", done=1, total=2))
    bus.emit(note("worth knowing"))
    journal.close()
    again = RunState()
    for event in read_journal(journal.path):
        again.apply(event)
    assert again == live
    assert again.phase is not None and again.phase.fraction == 0.5


# Run directory


def test_episodes_come_back_in_order_and_a_torn_one_is_cut(tmp_path: Path) -> None:
    path = tmp_path / "trajectories.jsonl"
    episodes = EpisodeFile(path)
    episodes.append(trajectory("a"))
    episodes.append(trajectory("b"))
    episodes.close()
    with path.open("ab") as file:
        file.write(b'{"id": "c", "env"')
    seen: list[str] = []
    episodes = EpisodeFile(path, on_read=lambda t, line: seen.append(t.id))
    episodes.append(trajectory("d"))
    assert seen == ["a", "b"]
    assert [t.id for t in episodes.read()] == [t.id for t in read_trajectory_lines(path)] == ["a", "b", "d"]
    assert episodes.read(prefix="a") == [trajectory("a")]
    assert "c" not in episodes
    assert len(episodes) == 3
    episodes.close()


def test_a_damaged_episode_is_named(tmp_path: Path) -> None:
    path = tmp_path / "trajectories.jsonl"
    path.write_text(trajectory("a").model_dump_json() + "\n{}\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 2 is not a trajectory"):
        EpisodeFile(path)


def test_a_second_writer_is_refused_until_the_first_lets_go(tmp_path: Path) -> None:
    store = RunStore.open(tmp_path / "run")
    code = (
        "import sys; from pathlib import Path\n"
        "from krill_tui.engine.run_store import RunStore\n"
        "from krill_tui.errors import RunLockedError\n"
        "try: RunStore.open(Path(sys.argv[1]))\n"
        "except RunLockedError as error: print(error); sys.exit(9)\n"
    )

    def other_process() -> subprocess.CompletedProcess[str]:
        root = str(Path(__file__).parents[1])
        command = [sys.executable, "-c", code, str(store.path)]
        env = {**os.environ, "PYTHONPATH": root}
        return subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=60)

    refused = other_process()
    assert (refused.returncode, refused.stdout.strip()) == (
        9,
        "run 'run' is being written by another process (watch it with: krill watch run)",
    )
    with pytest.raises(RunLockedError):
        RunStore.open(tmp_path / "run")
    store.close()
    assert other_process().returncode == 0


def test_the_config_of_a_run_is_kept_without_keys(tmp_path: Path) -> None:
    store = RunStore.open(tmp_path / "run")
    assert store.load_config() is None
    config = load_config(environ={"OPENAI_API_KEY": "sk-secret"})
    store.save_config(config)
    assert "sk-secret" not in (store.path / "config.json").read_text(encoding="utf-8")
    assert store.load_config() == load_config(environ={})
    store.close()


def test_progress_comes_back_and_a_damaged_one_is_one_line(tmp_path: Path) -> None:
    store = RunStore.open(tmp_path / "run")
    assert store.load_progress() == {}
    store.save_progress({"rl_step": 3})
    assert store.load_progress() == {"rl_step": 3}
    (store.path / "progress.json").write_text("{", encoding="utf-8")
    with pytest.raises(DataError, match=r"progress\.json: is damaged"):
        store.load_progress()
    store.close()


def test_an_interrupted_atomic_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.txt"
    write_atomically(path, "old")

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, "new")
    assert path.read_text(encoding="utf-8") == "old"


@pytest.mark.parametrize("name", ["", ".", "..", "../up", "a/b", "-dash", "a b", "x" * 65, "é", "a\n"])
def test_a_name_that_could_leave_the_folder_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is no name for a run"):
        run_path(name)


def test_runs_are_listed_newest_first_and_an_unknown_one_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no run 'old' \(no runs yet\)"):
        existing_run("old")
    for age, name in enumerate(["new", "old"]):
        folder = run_path(name)
        folder.mkdir(parents=True)
        (folder / "events.jsonl").write_text("", encoding="utf-8")
        os.utime(folder / "events.jsonl", (1000 - age, 1000 - age))
    (run_path("empty")).mkdir()
    assert list_runs() == ["new", "old"]
    assert existing_run("old") == run_path("old")
    assert existing_run(str(run_path("old"))) == run_path("old")
    with pytest.raises(UsageError, match="known: new, old"):
        existing_run("other")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(messages=st.lists(text, max_size=5), cut=st.integers(min_value=0, max_value=400))
def test_a_journal_cut_anywhere_keeps_every_whole_line(tmp_path: Path, messages: list[str], cut: int) -> None:
    path = tmp_path / "events.jsonl"
    path.unlink(missing_ok=True)
    journal = Journal(path)
    bus = EventBus(journal, clock=lambda: 0.0)
    for message in messages:
        bus.emit(note(message))
    journal.close()
    data = path.read_bytes()[:cut]
    path.write_bytes(data)
    journal = Journal(path)
    EventBus(journal, clock=lambda: 0.0).emit(note("after"))
    journal.close()
    read = [json.loads(line)["message"] for line in path.read_bytes().split(b"\n")[:-1]]
    assert read == [*messages[: data.count(b"\n")], "after"]
    assert [event.seq for event in read_journal(path)] == list(range(1, len(read) + 1))
