"""Which game files of a dataset folder are played: those that the genuine environment plays; the rest is counted and said."""

from __future__ import annotations

import importlib.util
import json
import shutil
import time
from pathlib import Path

import pytest

from krill_tui.cli.app import run
from krill_tui.engine.run_store import run_path
from krill_tui.envs.alfworld import listing
from krill_tui.envs.alfworld.listing import list_games
from krill_tui.envs.alfworld.source import GamesSource
from krill_tui.errors import UsageError
from krill_tui.events import schema as ev
from krill_tui.events.journal import read_journal
from tests.alfworld_games import write_game

HEAT = "pick_heat_then_place_in_recep-Mug-None-CounterTop-1"


def add_game(
    root: Path,
    task: str,
    trial: str,
    *,
    split: str = "valid_seen",
    trajectory: bool = True,
    **changes: object,
) -> Path:
    """A game as the dataset lays it out; `changes` replaces keys of the file, None takes one out."""
    folder = root / "json_2.1.1" / split / task / trial
    folder.mkdir(parents=True)
    path = write_game(folder)
    data = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not None}))
    if trajectory:
        task_type = task.partition("-")[0]
        (folder / "traj_data.json").write_text(json.dumps({"task_type": task_type}))
    return path


def unfiltered(root: Path) -> Path:
    """One good game in `valid_seen`, and beside it one of each kind that the genuine environment skips."""
    add_game(root, HEAT, "good")
    add_game(root, HEAT, "unsolvable", solvable=False)
    add_game(root, HEAT, "unchecked", solvable=None)
    add_game(root, HEAT, "null", grammar=json.loads(add_game(root, HEAT, "x").read_text())["grammar"] + " ")
    shutil.rmtree(root / "json_2.1.1" / "valid_seen" / HEAT / "x")
    add_game(root, "pick_and_place_with_movable_recep-Mug-Plate-Desk-1", "movable")
    add_game(root, "pick_heat_then_place_in_recep-AppleSliced-None-Desk-1", "sliced")
    add_game(root, "open_and_stare-Mug-None-Desk-1", "type")
    add_game(root, HEAT, "lonely", trajectory=False)
    add_game(root, HEAT, "cut").write_text('{"pddl_domain": "(define')
    add_game(root, HEAT, "empty").write_bytes(b"")
    add_game(root, HEAT, "textless", pddl_problem=None)
    inner = add_game(root, HEAT, "inner")
    inner.write_text(inner.read_text().replace('"pddl_domain"', "pddl_domain"))
    folder = add_game(root, HEAT, "folder")
    folder.unlink()
    folder.mkdir()
    return root


COUNTS = {
    "broken": 5,
    "movable or sliced": 2,
    "not solvable": 1,
    "of another task type": 1,
    "without the key solvable": 1,
    "without traj_data.json": 1,
}


def test_what_the_genuine_environment_skips_is_skipped_and_counted(tmp_path: Path) -> None:
    source = GamesSource(unfiltered(tmp_path))
    assert sorted(Path(t.id).parts[2] for t in source.tasks("valid_seen", 99)) == ["good", "null"]
    assert source.splits() == {"valid_seen": 2}
    assert source.listing.counts() == {"valid_seen": COUNTS}
    official, broken = source.notices()
    assert "valid_seen 6 of 13" in official and "2 movable or sliced" in official
    assert "env.all_games" in official and broken.startswith("5 broken game files are left out: valid_seen/")
    assert "\n" not in official + broken


def test_the_skipped_games_can_be_played_on_purpose_but_broken_ones_never(tmp_path: Path) -> None:
    source = GamesSource(unfiltered(tmp_path), all_games=True)
    assert source.splits() == {"valid_seen": 8}
    assert source.listing.counts() == {"valid_seen": {"broken": 5}}
    broken, unofficial, copies = source.notices()
    assert "5 broken" in broken and "valid_seen 6" in unofficial and "same content" in copies


def test_the_content_hash_covers_the_games_that_are_played(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    add_game(plain, HEAT, "good")
    alone = GamesSource(plain).content_hash()
    add_game(plain, HEAT, "unsolvable", solvable=False)
    assert GamesSource(plain).content_hash() == alone
    assert GamesSource(plain, all_games=True).content_hash() != alone


def test_a_copy_of_the_dataset_without_any_trajectories_is_taken_as_it_is(tmp_path: Path) -> None:
    add_game(tmp_path, HEAT, "a", trajectory=False)
    add_game(tmp_path, HEAT, "b", trajectory=False, solvable=False)
    assert GamesSource(tmp_path).splits() == {"valid_seen": 1}


def test_a_split_of_which_nothing_is_played_says_so(tmp_path: Path) -> None:
    add_game(tmp_path, HEAT, "a", split="train")
    add_game(tmp_path, HEAT, "b", solvable=False)
    with pytest.raises(UsageError, match="all 1 game files of split 'valid_seen' are skipped"):
        GamesSource(tmp_path).tasks("valid_seen", 1)
    shutil.rmtree(tmp_path / "json_2.1.1" / "train")
    with pytest.raises(UsageError, match=r"that are played: .*1 not solvable") as caught:
        GamesSource(tmp_path)
    assert "\n" not in str(caught.value)


def test_files_are_read_once_and_again_when_they_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = unfiltered(tmp_path)
    first = GamesSource(root)
    monkeypatch.setattr(listing, "read_facts", lambda path: pytest.fail(f"{path} was read again"))
    assert GamesSource(root).listing.games == first.listing.games
    monkeypatch.undo()
    game = root / "json_2.1.1" / first.tasks("valid_seen", 1)[0].ref
    game.write_text(game.read_text()[:500])
    assert GamesSource(root).splits() == {"valid_seen": 1}


@pytest.mark.parametrize(
    "content", ["", "[]", '{"version": 1, "files": {"x": [1]}}', '{"version": 1, "files": []}']
)
def test_a_damaged_cache_is_read_as_none(tmp_path: Path, content: str) -> None:
    root = unfiltered(tmp_path)
    GamesSource(root)
    (cache,) = (tmp_path / "home").rglob("games-*.json")
    cache.write_text(content)
    assert GamesSource(root).splits() == {"valid_seen": 2}


def test_without_a_place_for_the_cache_everything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert GamesSource(unfiltered(tmp_path / "data")).splits() == {"valid_seen": 2}


def test_an_evaluation_says_what_is_skipped_in_its_first_line_report_and_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    unfiltered(tmp_path / "data")
    monkeypatch.setenv("ALFWORLD_DATA", str(tmp_path / "data"))
    evaluation = ["eval", "--backend", "games", "--policy", "expert", "--run", "r", "--json"]
    assert run(evaluation) == 0
    said = capfd.readouterr()
    facts = json.loads(said.out)
    assert facts["overall"]["episodes"] == 2
    assert "valid_seen 6 of 13" in facts["notices"][0]
    first = said.err.splitlines()[1]  # after the run's name
    assert first.startswith("game files skipped, as the genuine environment does: valid_seen 6 of 13")
    assert "valid_seen 6 of 13" in (run_path("r") / "report.md").read_text().replace("\\", "")
    started = [e for e in read_journal(run_path("r") / "events.jsonl") if isinstance(e, ev.RunStarted)]
    assert list(started[0].notices) == facts["notices"]


def test_doctor_counts_what_is_skipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    unfiltered(tmp_path / "home" / "alf")
    monkeypatch.setenv("ALFWORLD_DATA", "~/alf")
    assert run(["doctor", "--json"]) == 0
    facts = json.loads(capfd.readouterr().out)["alfworld"]
    assert facts["valid_seen"] == 2
    assert facts["skipped"] == {"valid_seen": COUNTS}
    assert run(["doctor"]) == 0
    assert "skipped.valid_seen.movable or sliced" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("task", "changes", "reason"),
    [
        (HEAT, {}, ""),
        (HEAT, {"solvable": False}, "not solvable"),
        (HEAT, {"solvable": None}, "without the key solvable"),
        ("pick_heat_then_place_in_recep-AppleSliced-None-Desk-1", {}, "movable or sliced"),
    ],
)
def test_playing_one_skipped_game_warns(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], task: str, changes: dict[str, bool | None], reason: str
) -> None:
    game = add_game(tmp_path, task, "trial", **changes)  # pyright: ignore[reportArgumentType]
    (tmp_path / "script").write_text('"look"\n')
    assert run(["play", "--game", str(game), "--script", str(tmp_path / "script"), "--json"]) == 0
    said = capfd.readouterr()
    assert len(said.out.splitlines()) == 2
    assert (f"is {reason}: the genuine environment skips it" in said.err) == bool(reason)


def test_the_textworld_backend_lists_the_same_games(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from krill_tui.envs.alfworld.genuine import TextworldSource

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)  # the package is only needed to play
    root = unfiltered(tmp_path)
    assert TextworldSource(root).splits() == GamesSource(root).splits()


def test_an_unfiltered_copy_of_the_dataset_has_the_official_games(games_dir: Path, tmp_path: Path) -> None:
    """Real `valid_seen` games, with every tenth copied again as the full dataset has them."""
    valid = games_dir / "json_2.1.1" / "valid_seen"
    root = tmp_path / "json_2.1.1" / "valid_seen"
    shutil.copytree(valid, root, symlinks=True)
    games = sorted(root.glob("*/*/game.tw-pddl"))
    for number, game in enumerate(games[::10]):
        text = game.read_text()
        for name, changed in (
            ("unsolvable", text.replace('"solvable": true', '"solvable": false')),
            ("unchecked", text.replace(', "solvable": true', "")),
        ):
            assert changed != text
            folder = game.parent.parent / f"{name}_{number}"
            folder.mkdir()
            (folder / "game.tw-pddl").write_text(changed)
            shutil.copy(game.parent / "traj_data.json", folder)
        for name in (
            "pick_and_place_with_movable_recep-Mug-Plate-Desk",
            "pick_and_place_simple-EggSliced-None-Desk",
        ):
            shutil.copytree(game.parent, root / f"{name}-{number}" / "trial")
    began = time.perf_counter()
    source = GamesSource(tmp_path)
    cold = time.perf_counter() - began
    assert source.splits() == {"valid_seen": 140} == GamesSource(games_dir).splits()
    assert source.listing.counts() == {
        "valid_seen": {"movable or sliced": 28, "not solvable": 14, "without the key solvable": 14}
    }
    assert source.content_hash() == GamesSource(games_dir).content_hash()
    began = time.perf_counter()
    list_games(source.root)
    assert time.perf_counter() - began < max(cold, 0.1)


def test_paths_below_the_home_folder_are_expanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from krill_tui.config.load import load_config

    home = str(tmp_path / "home")
    config = load_config(
        overrides={
            "env": {"data_dir": "~/alf", "webshop_data": "~/shop"},
            "policy": {"model": "~/model", "adapter": "~/adapter", "accelerate_config": "~/a.yaml"},
        }
    )
    assert (config.env.data_dir, config.env.webshop_data) == (f"{home}/alf", f"{home}/shop")
    policy = config.policy
    assert [policy.model, policy.adapter, policy.accelerate_config] == [
        f"{home}/{name}" for name in ("model", "adapter", "a.yaml")
    ]
    monkeypatch.setenv("KRILL_RUNS", "~/runs")
    collect = ["collect", "--policy", "random", "--episodes", "1", "--display", "none", "--run", "r"]
    assert run([*collect, "--output=~/t.json", "--set", "env.max_steps=2"]) == 0
    assert (tmp_path / "home" / "t.json").is_file() and (tmp_path / "home" / "runs" / "r").is_dir()
    assert run(["inspect", "~/t.json"]) == 0
    assert run(["report", "~/runs/r"]) == 0
    capfd.readouterr()
